//! The job: who is asking, from its start to its end.
//!
//! - [`cgroup`]: the cgroup that the fence hangs on
//! - [`launch`]: a process that is in the cgroup, and has nothing to undo the fence with, before
//!   its first instruction
//! - [`process`]: which process is which, also when it is gone already
//! - [`reaper`]: ends the job when the agent dies
//! - [`run`]: one command as a job

pub mod cgroup;
mod filter;
pub mod launch;
pub mod process;
pub mod reaper;
pub mod run;
mod seclude;
mod signals;
pub mod user;

use std::fmt;

/// What the fence of a job is worth. Every report and event carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// What the policy does not allow does not leave.
    Enforcing,
    /// Everything leaves, and is recorded as the policy sees it.
    Auditing,
    /// What the policy does not allow is refused, but the job has means to get around that.
    Advisory(Vec<String>),
    /// The fence failed while the job ran, and the job was ended.
    Failed(String),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enforcing => f.write_str("enforcing"),
            Self::Auditing => f.write_str("auditing"),
            Self::Failed(reason) => write!(f, "failed({reason})"),
            Self::Advisory(reasons) => write!(f, "advisory({})", reasons.join("; ")),
        }
    }
}
