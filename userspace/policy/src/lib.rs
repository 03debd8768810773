//! The policy language: what a job may reach, as its repository writes it.
//!
//! [`Policy::parse`] turns the bytes of a policy file into a [`Policy`], [`Policy::job`] resolves
//! one of its jobs, and a [`Job`] answers what the rest of jobfence asks:
//!
//! - the resolver: may this name be looked up? [`Job::name_verdict`]
//! - the agent, filling the kernel's map: what is allowed at fixed addresses
//!   ([`Job::prefixes`]), and at an address that an allowed name has just resolved to
//!   ([`Job::grants`])?
//! - the audit log: which rule was it? [`Job::explain_addr`]
//!
//! The crate is pure: it opens no file and asks no network. The file is untrusted input, so it
//! is limited in size, everything in it that goes into a message is stripped of control
//! characters, and all that is not understood is an [`Error`]: a rule that is parsed and then
//! ignored would be a fence with a hole in it.
//!
//! From the bytes inwards: `yaml` (syntax and positions) → `file` (keys, and what they may
//! hold) → `target`, `name` and `ports` (values) → `policy` and `job` (meaning).
#![forbid(unsafe_code)]

mod error;
mod file;
mod job;
mod name;
mod policy;
mod ports;
mod target;
mod yaml;

pub use error::{Error, Location};
pub use job::{AddrRule, Job, NameVerdict, TooManyRanges};
pub use name::{HostPattern, Name, NameError};
pub use policy::{MAX_BYTES, Mode, OnViolation, Policy};
pub use target::{Rule, Target};
