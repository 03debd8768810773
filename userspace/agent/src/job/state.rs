//! What the fence of a job is worth, and what it is made of.

use std::fmt;

use jobfence_policy::Mode;
use serde::Serialize;

use super::user::Account;

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

impl State {
    /// What a fence in `mode` around a job of `account` is worth.
    #[must_use]
    pub fn assess(mode: Mode, account: &Account) -> Self {
        let reasons = advisory_reasons(account);
        match mode {
            Mode::Audit => Self::Auditing,
            Mode::Enforce if reasons.is_empty() => Self::Enforcing,
            Mode::Enforce => Self::Advisory(reasons),
        }
    }
}

/// What a job of `account` could get around its fence with; nothing for an ordinary user.
#[must_use]
pub fn advisory_reasons(account: &Account) -> Vec<String> {
    let mut reasons = Vec::new();
    if account.is_root() {
        reasons.push(
            "the job is root: it can change files that others run outside the fence".to_owned(),
        );
    } else if let Some(group) = &account.privileged_group {
        reasons.push(format!("the job's primary group, {group}, can act as root"));
    }
    reasons
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

/// The layers that hold one job. The event of its start names them, so that whoever reads the log
/// knows which refusals to expect in it: seccomp and capabilities refuse without an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Layers {
    /// Programs that are attached to the job's cgroup.
    pub cgroup: Vec<&'static str>,
    /// Whether the program for the families that those do not see is called: found out by a
    /// refused attempt, since it attaches also where the kernel never calls it.
    pub lsm: bool,
    /// Whether the job's processes have a filter for system calls. Always, where jobfence
    /// launches the job.
    pub seccomp: bool,
    /// Whether abstract Unix sockets of processes outside the job are out of reach (Linux 6.12,
    /// Landlock active), found out by a refused attempt.
    pub landlock: bool,
    /// The capabilities that a job of this user keeps, in its own user namespace.
    pub capabilities: Vec<String>,
}
