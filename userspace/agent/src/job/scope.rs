//! A scope of systemd for a job's cgroup.
//!
//! Where systemd runs, the hierarchy of cgroups is its own, and others make cgroups only below a unit
//! that it has delegated ("Control Group APIs and Delegation" in its documentation). A process that is
//! to become a job is rarely in such a one. The job then gets a unit of its own, a scope: systemd
//! starts nothing in it, leaves to us what is below it, and removes it when it is empty.
//!
//! `systemd-run` asks for it, as it does for everybody. A scope begins with a process and ends with its
//! last one. That process is `cat` here: what it is sent comes back as soon as it is there, and it ends
//! when nothing more can be sent to it.

use std::{
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use thiserror::Error;

use super::cgroup;

/// The slice of all jobs' scopes. What limits it limits them together.
const SLICE: &str = "--slice=jobfence.slice";

/// How long systemd may take. Some milliseconds are usual, some hundred where other work has all cores.
const LIMIT: Duration = Duration::from_secs(5);

/// There is no scope for a job.
#[derive(Debug, Error)]
#[error(
    "could not make the unit {unit} for the job's cgroup: {source}. See whether systemd is well \
     (`systemctl status`); with `cgroup` in agent.yml it is not asked"
)]
pub struct ScopeError {
    unit: String,
    source: io::Error,
}

/// A scope, and the process that keeps it until something else is below it. Without that it ends when
/// this is dropped.
pub(crate) struct Scope {
    folder: PathBuf,
    holder: Child,
}

impl Scope {
    /// Has systemd make the scope `name`. Blocks until it is there, [`LIMIT`] at most.
    ///
    /// # Errors
    ///
    /// [`ScopeError`]; then nothing is left of it.
    pub(crate) fn make(name: &str) -> Result<Self, ScopeError> {
        let unit = format!("{name}.scope");
        Self::begin(&unit).map_err(|source| ScopeError { unit, source })
    }

    /// The folder of its cgroup. Only root can move processes there.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    fn begin(unit: &str) -> io::Result<Self> {
        let holder = Command::new("systemd-run")
            .args(["--scope", "--quiet", "--collect", SLICE])
            .arg(format!("--unit={unit}"))
            .arg("--description=Egress fence of a CI job")
            // Without controllers: `yes` would turn on all there are.
            .args(["--property=Delegate=", "cat"])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("systemd-run: {error}")))?;
        // From here on it is ended whatever happens.
        let mut scope = Self {
            folder: PathBuf::new(),
            holder,
        };
        if !scope.is_there()? {
            return Err(scope.complaint());
        }
        let folder = cgroup::of(scope.holder.id());
        let folder = folder.filter(|folder| folder.ends_with(unit));
        scope.folder = folder.ok_or_else(|| io::Error::other("systemd-run has not entered it"))?;
        Ok(scope)
    }

    /// Whether the holder answers, and is not gone instead.
    fn is_there(&mut self) -> io::Result<bool> {
        let no_pipe = io::ErrorKind::BrokenPipe;
        // One that is gone already is known by the end of its answers.
        let _ = self.holder.stdin.as_mut().ok_or(no_pipe)?.write_all(b"\n");
        let mut answers = self.holder.stdout.take().ok_or(no_pipe)?;
        let deadline = Instant::now() + LIMIT;
        while !is_readable(&answers, deadline.saturating_duration_since(Instant::now()))? {
            if Instant::now() >= deadline {
                let waited = format!("systemd has not made it after {} s", LIMIT.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, waited));
            }
        }
        Ok(answers.read(&mut [0])? > 0)
    }

    /// What a holder that does not answer said.
    fn complaint(&mut self) -> io::Error {
        if let Err(error) = self.holder.kill() {
            return error;
        }
        let mut said = String::new();
        if let Some(stderr) = &mut self.holder.stderr
            && let Err(error) = stderr.take(4096).read_to_string(&mut said)
        {
            return error;
        }
        io::Error::other(format!("systemd-run: {}", said.trim()))
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        // The stronger way, since nobody may wait for it for long.
        let ended = self.holder.kill().and_then(|()| self.holder.wait());
        if let Err(error) = ended {
            tracing::warn!(%error, scope = %self.folder.display(), "a scope is held on to");
        }
    }
}

/// Whether there is something to read, or the end, within `limit`.
fn is_readable(pipe: &ChildStdout, limit: Duration) -> io::Result<bool> {
    let timeout = Timespec::try_from(limit).map_err(io::Error::other)?;
    match poll(&mut [PollFd::new(pipe, PollFlags::IN)], Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether the hierarchy of cgroups is systemd's: sd_booted(3).
pub(crate) fn is_systemd_here() -> bool {
    Path::new("/run/systemd/system").is_dir()
}
