//! The policy language: what a job may reach, as its repository writes it and its host permits.
//!
//! [`Policy::parse`] turns the bytes of a policy file into a [`Policy`], [`Policy::job`] resolves
//! one of its jobs, and a [`Job`] answers what the rest of jobfence asks:
//!
//! - the resolver: may this name be looked up? [`Job::name_verdict`]
//! - the agent, filling the kernel's map: what is allowed at fixed addresses
//!   ([`Job::prefixes`]), and at an address that an allowed name has just resolved to
//!   ([`Job::grants`])? How much of it? [`Job::limits`]
//! - the audit log: which rule was it, and whose? [`Job::explain_addr`], [`Rule::layer`]
//!
//! Others have a say in what a repository writes, and each makes another [`Job`] of it, which
//! answers for all of them: an unreviewed version of the policy ([`Job::narrowed_by`]), the host
//! ([`Job::under`] a [`HostPolicy`]) and the calendar ([`Job::retire`]), in this order. What they
//! take from a rule is kept as [`Clipped`]. [`Presets`] are rules for many policies to use.
//!
//! The crate is pure: it opens no file and asks no network. The file is untrusted input, so it
//! is limited in size, everything in it that goes into a message is stripped of control
//! characters, and all that is not understood is an [`Error`]: a rule that is parsed and then
//! ignored would be a fence with a hole in it.
//!
//! From the bytes inwards: `yaml` (syntax and positions) → `file` (keys, and what they may
//! hold) → `target`, `name`, `ports` and `limits` (values) → `presets`, `policy` and `job`
//! (meaning) → `intersect` and `host` (what several policies say together).
#![forbid(unsafe_code)]

mod error;
mod file;
mod host;
mod index;
mod intersect;
mod job;
mod limits;
mod mode;
mod name;
mod policy;
mod ports;
mod presets;
mod target;
mod yaml;

pub use error::{Error, Location, MAX_BYTES};
pub use host::HostPolicy;
pub use intersect::{Cause, Clipped};
pub use job::{AddrRule, Job, NameVerdict, TooManyRanges};
pub use limits::Limits;
pub use mode::{Mode, OnViolation};
pub use name::{HostPattern, Name, NameError};
pub use policy::Policy;
pub use presets::Presets;
pub use target::{Layer, Rule, Target};
pub use time::Date;
