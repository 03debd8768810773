//! Ends the job when the agent dies.
//!
//! The agent can be killed at any moment. The pinned links keep what is left of the job fenced;
//! this small process ends it. It holds the reading end of a pipe whose writing end only the
//! agent has: when that is closed without a word, the agent is gone. The reaper then kills the
//! job's cgroup and waits until it is empty. Either way it is the reaper that takes the fence down,
//! when the last socket of the job is gone.
//!
//! Should both be killed, what is left stays fenced, and the next start of jobfence ends it
//! ([`sweep`]).

use std::{
    ffi::OsString,
    io::{self, Read as _, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    thread,
    time::Duration,
};

use super::cgroup::{self, Cgroup};
use crate::kernel;

/// The argument that makes a process of this program a reaper.
pub const ENTRY: &str = "__reap";

/// What the agent writes to a reaper that is no longer needed.
const DONE: &[u8] = b"done";

/// How often a reaper tries to end a job, and then to take its fence down, before it leaves that to
/// the next start of jobfence. The kernel gives up on a connection whose other end is silent after
/// some minutes.
const TRIES: u32 = 1000;

/// The longest pause between two tries.
const PAUSE: Duration = Duration::from_secs(1);

/// A running reaper.
pub struct Reaper {
    /// Not waited for: it can outlive the agent.
    _process: Child,
    pipe: ChildStdin,
}

impl Reaper {
    /// Starts a reaper for the job in `cgroup`, whose links are pinned in `pins`.
    ///
    /// # Errors
    ///
    /// What starting a process can fail with.
    pub fn start(cgroup: &Cgroup, pins: &Path) -> io::Result<Self> {
        let mut process = Command::new("/proc/self/exe")
            .arg(ENTRY)
            .arg(cgroup.path())
            .arg(pins)
            .env_clear()
            // The terminal's signals are for the job's process group only.
            .process_group(0)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let pipe = process.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self {
            _process: process,
            pipe,
        })
    }

    /// Leaves the rest to the reaper: the job has ended, its cgroup is removed, and the fence goes
    /// when the last socket of the job has.
    ///
    /// # Errors
    ///
    /// When the reaper is not there any more. Then the next start of jobfence does it.
    pub fn leave_the_rest(self) -> io::Result<()> {
        let mut pipe = self.pipe;
        pipe.write_all(DONE)
    }
}

/// What a reaper does, with the arguments after [`ENTRY`]. Returns the exit status.
#[must_use]
pub fn reap(mut arguments: impl Iterator<Item = OsString>) -> u8 {
    let (Some(cgroup), Some(pins)) = (arguments.next(), arguments.next()) else {
        eprintln!("jobfence: {ENTRY} is for jobfence's own use");
        return 2;
    };
    let mut said = Vec::new();
    let agent_ended_it = io::stdin().read_to_end(&mut said).is_ok() && said == DONE;
    // Held to the end, so that no other reaper is started for this job.
    let _lock = kernel::lock_pins(Path::new(&pins));
    let cgroup = Cgroup::open(PathBuf::from(cgroup));
    let done = agent_ended_it || until(|| cgroup.end().is_ok());
    // Whatever is left stays fenced; the next start of jobfence tries again.
    u8::from(!(done && until(|| kernel::unpin(Path::new(&pins)).unwrap_or(false))))
}

/// Tries until it is done, or for too long.
fn until(mut done: impl FnMut() -> bool) -> bool {
    let mut pause = Duration::from_millis(5);
    for _ in 0..TRIES {
        if done() {
            return true;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(PAUSE);
    }
    false
}

/// Starts a reaper for each job whose agent and reaper are gone. Does not wait for them. What other
/// versions have left goes as far as its jobs are over: none of them may come again.
pub fn sweep() {
    let abandoned = kernel::abandoned().unwrap_or_else(|error| {
        tracing::warn!(%error, "could not look for what a killed jobfence left behind");
        Vec::new()
    });
    for job in abandoned {
        tracing::info!(job = job.id, "ending what a killed jobfence left behind");
        let found = cgroup::find(&job_cgroup(&job.id)).into_iter().next();
        let started = match &found {
            // Not told that the job has ended, it ends it.
            Some(cgroup) => Reaper::start(cgroup, &job.folder).map(drop),
            // Removed, or not to be seen from here: then its links are still attached, and stay.
            None => Reaper::start(&Cgroup::open(job.folder.clone()), &job.folder)
                .and_then(Reaper::leave_the_rest),
        };
        if let Err(error) = started {
            tracing::warn!(job = job.id, %error, "no reaper could be started; the job stays fenced");
        }
    }
    if let Err(error) = kernel::clear_others() {
        tracing::warn!(%error, "fences of another version's jobs may be left");
    }
}

/// The name of the cgroup of the job `id`.
pub(super) fn job_cgroup(id: &str) -> String {
    format!("jobfence-{id}")
}
