//! How callers reach the agent: who they are, what they may ask for, and what they are told.
//!
//! - [`protocol`]: what is said, and who may say it
//! - [`peer`]: who asks, as the kernel tells it
//! - [`server`]: the agent's end
//! - [`client`]: the other end

pub mod client;
pub mod peer;
pub mod protocol;
pub mod server;
#[cfg(test)]
mod tests;
