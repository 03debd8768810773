//! What happened: the record of everything that a job tried.
//!
//! - [`event`]: one attempt as a line of JSON
//! - [`log`]: the file that they are written to
//! - [`recorder`]: makes events of what the kernel and the resolver report
//! - [`ledger`]: counts them, and keeps what a person is shown in the end
//! - [`history`]: reads a log back: to go on with it, to report from it, to check that it is whole
//! - [`refused`]: what of it was refused, as a person is told
//! - [`export`]: sends it to a collector
//! - [`retention`]: which logs are kept, and for how long
//! - [`mask`]: keeps secrets out of all of it

pub mod event;
pub mod export;
pub mod history;
pub mod ledger;
pub mod log;
pub mod mask;
pub mod recorder;
pub mod refused;
pub mod retention;

#[cfg(test)]
mod tests;
