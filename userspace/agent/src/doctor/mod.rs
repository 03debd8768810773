//! What this host can enforce, what it cannot, and the mend.
//!
//! Each check is about something that [`run`](crate::job::run::run) stands on, or that leads around
//! a job's fence. What can be told by trying is tried: a job is set up by the very function that
//! `jobfence run` calls, with a command that cannot be executed, and ends. Nothing of it is left
//! behind, and nothing of the host is changed; but where an agent holds the user to its jobs, the
//! trial is one of these, and its log is with theirs.
//!
//! What [`advisory_reasons`](crate::job::advisory_reasons) says of a job is said here too, and what
//! a job would be refused for is [`Status::Cannot`]. A note weakens no fence.
//!
//! `host.rs` holds the checks of the kernel and the host, `user.rs` those of the job's user.

mod host;
mod user;

use std::{fs, path::Path};

use rustix::process::geteuid;
use serde::Serialize;

use crate::{job::user::Account, kernel::Guard};

/// What no fence of this kind closes, whatever the host.
pub const NOT_COVERED: [&str; 5] = [
    "data sent to an allowed destination that takes it",
    "a program outside the job that acts for whoever asks it, over a Unix socket or a file",
    "a job that is root",
    "secrets that a job prints into its own log",
    "bugs of the kernel, and channels by timing",
];

/// What a check found, from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Worth knowing; the fence holds.
    Note,
    /// Could not be checked: without root, or because something before it failed.
    Unknown,
    /// The job has means to get around the fence.
    Advisory,
    /// No job can be fenced.
    Cannot,
}

/// What a fence on this host is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Worth {
    /// What a policy does not allow does not leave.
    Enforcing,
    /// It is refused, but the job has means to get around that.
    Advisory,
    /// No job runs: `jobfence run` would refuse to.
    Cannot,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// A stable name.
    pub id: &'static str,
    /// How it is.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What that means for enforcement; none where all is well.
    pub means: Option<String>,
    /// How to mend it: a command or a setting; none where there is nothing to mend.
    pub mend: Option<String>,
}

/// Everything that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The version of jobfence.
    pub version: &'static str,
    /// What it comes to.
    pub state: Worth,
    /// The user whose jobs this is about: a login name, or a user id; none where there is none.
    pub user: Option<String>,
    /// In a fixed order. Without a user, some of the user's are missing.
    pub checks: Vec<Check>,
    /// [`NOT_COVERED`].
    pub not_covered: [&'static str; 5],
}

impl Check {
    fn ok(id: &'static str, found: impl Into<String>) -> Self {
        Self {
            id,
            status: Status::Ok,
            found: found.into(),
            means: None,
            mend: None,
        }
    }

    fn note(id: &'static str, found: impl Into<String>) -> Self {
        Self {
            status: Status::Note,
            ..Self::ok(id, found)
        }
    }

    fn unknown(id: &'static str, found: impl Into<String>) -> Self {
        Self {
            status: Status::Unknown,
            ..Self::ok(id, found)
        }
    }

    fn advisory(id: &'static str, found: impl Into<String>) -> Self {
        Self {
            status: Status::Advisory,
            ..Self::ok(id, found)
        }
    }

    /// It is always the same that this means.
    fn cannot(id: &'static str, found: impl Into<String>) -> Self {
        Self {
            status: Status::Cannot,
            ..Self::ok(id, found)
        }
        .means("`jobfence run` refuses to run anything (exit code 111)")
    }

    fn means(mut self, means: impl Into<String>) -> Self {
        self.means = Some(means.into());
        self
    }

    fn mend(mut self, mend: impl Into<String>) -> Self {
        self.mend = Some(mend.into());
        self
    }
}

/// Looks at this host, for jobs of `asked` (a login name or a user id), else of whom `jobfence run`
/// would take: who called sudo, or calls this without root and would call sudo; else root. `agent` is
/// the socket of the host's agent, which is asked for a job only where that holds the user to its jobs.
///
/// It is quick, but waits for programs: call it before a runtime is started.
#[must_use]
pub fn examine(asked: Option<&str>, agent: &Path) -> Report {
    let root = geteuid().is_root();
    let found = user::find(asked);
    let account = found.as_ref().ok();

    let guard = Guard::find();
    let is_held = match (&guard, account) {
        (Ok(guard), Some(account)) => guard.holds(account.uid),
        _ => false,
    };

    let (programs, kernel) = host::programs(root);
    let mut checks = vec![
        host::root(root),
        host::capabilities(),
        host::version(),
        host::cgroup(),
        host::bpffs(root),
        programs,
        host::co_attached(kernel.as_ref(), guard.as_ref().ok()),
        host::user_namespaces(),
        host::dns(),
        user::user(&found),
    ];
    checks.extend(account.map(|account| host::guard(&guard, account, agent)));
    // What is known to fail need not be tried.
    checks.push(match account {
        Some(account) if worth(&checks) != Worth::Cannot => {
            host::trial(account, is_held.then_some(agent))
        }
        _ => Check::unknown("trial", "not tried, since it would fail"),
    });
    checks.extend([
        host::jit(
            read("/proc/sys/net/core/bpf_jit_enable").as_deref(),
            read("/proc/sys/net/core/bpf_jit_harden").as_deref(),
        ),
        host::unprivileged_bpf(read("/proc/sys/kernel/unprivileged_bpf_disabled").as_deref()),
        host::lsm(read("/sys/kernel/security/lsm").as_deref(), kernel.as_ref()),
        host::io_uring(read("/proc/sys/kernel/io_uring_disabled").as_deref()),
        host::ptrace(read("/proc/sys/kernel/yama/ptrace_scope").as_deref()),
        host::ipv6(),
        host::process_events(root),
        host::refused_connections(root),
    ]);
    checks.extend(account.into_iter().flat_map(|account| {
        [
            user::groups(account),
            user::sudo(account, root),
            user::docker_socket(account),
            user::unix_sockets(account),
        ]
    }));
    Report {
        version: env!("CARGO_PKG_VERSION"),
        state: worth(&checks),
        user: account.map(Account::name),
        checks,
        not_covered: NOT_COVERED,
    }
}

fn worth(checks: &[Check]) -> Worth {
    match checks.iter().map(|check| check.status).max() {
        Some(Status::Cannot) => Worth::Cannot,
        Some(Status::Advisory) => Worth::Advisory,
        _ => Worth::Enforcing,
    }
}

/// The one line of a file of /proc or /sys; none where there is no such file.
fn read(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_decides() {
        let ok = Check::ok("a", "");
        let note = Check::note("b", "");
        let unknown = Check::unknown("c", "");
        let advisory = Check::advisory("d", "");
        let cannot = Check::cannot("e", "");
        let mut checks = vec![ok, note, unknown];
        assert_eq!(worth(&checks), Worth::Enforcing);
        checks.insert(0, advisory);
        assert_eq!(worth(&checks), Worth::Advisory);
        checks.insert(1, cannot);
        assert_eq!(worth(&checks), Worth::Cannot);
    }
}
