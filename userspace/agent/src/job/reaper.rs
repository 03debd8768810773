//! Ends the job when the agent dies.
//!
//! The agent can be killed at any moment. The pinned links keep what is left of the job fenced;
//! this small process ends it. It holds the reading end of a pipe whose writing end only the
//! agent has: when that is closed without a word, the agent is gone. The reaper then kills the
//! job's cgroup, waits until it is empty, and only then takes the fence down.
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

use super::cgroup::{self, Cgroup, CgroupError};
use crate::kernel::{self, Abandoned};

/// The argument that makes a process of this program a reaper.
pub const ENTRY: &str = "__reap";

/// What the agent writes to a reaper that is no longer needed.
const DONE: &[u8] = b"done";

/// How often a reaper tries to end a job. A try takes ten seconds while a process cannot be killed.
const TRIES: u32 = 1000;

/// How long it waits after a try that failed at once.
const PAUSE: Duration = Duration::from_millis(100);

/// A running reaper.
pub struct Reaper {
    process: Child,
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
        Ok(Self { process, pipe })
    }

    /// Sends the reaper away: the job has ended.
    ///
    /// # Errors
    ///
    /// When the reaper is not there any more.
    pub fn dismiss(self) -> io::Result<()> {
        let Self {
            mut process,
            mut pipe,
        } = self;
        pipe.write_all(DONE)?;
        drop(pipe);
        process.wait().map(drop)
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
    if io::stdin().read_to_end(&mut said).is_ok() && said == DONE {
        return 0;
    }
    let cgroup = Cgroup::open(PathBuf::from(cgroup));
    for _ in 0..TRIES {
        match cgroup.end() {
            Ok(()) => return u8::from(kernel::unpin(Path::new(&pins)).is_err()),
            Err(CgroupError::Populated { .. }) => {}
            // A process that was just on its way in, for one.
            Err(_) => thread::sleep(PAUSE),
        }
    }
    // Whatever is left stays fenced; the next start of jobfence tries again.
    1
}

/// Ends the jobs whose agent and reaper are gone.
///
/// A job that cannot be ended stays fenced; that is logged, and no reason not to run another.
pub fn sweep() {
    let abandoned = kernel::abandoned().unwrap_or_else(|error| {
        tracing::warn!(%error, "could not look for what a killed jobfence left behind");
        Vec::new()
    });
    for job in abandoned {
        tracing::info!(job = job.id, "ending what a killed jobfence left behind");
        if let Err(error) = end(&job) {
            tracing::info!(job = job.id, error, "it is still there, and still fenced");
        }
    }
}

fn end(job: &Abandoned) -> Result<(), String> {
    // From within a cgroup namespace or a container only a part can be seen: what is not found
    // there may be alive elsewhere.
    let found =
        cgroup::find(&job_cgroup(&job.id)).ok_or("not all cgroups can be seen from here")?;
    for cgroup in found {
        cgroup.end().map_err(|error| error.to_string())?;
    }
    kernel::unpin(&job.folder).map_err(|error| error.to_string())
}

/// The name of the cgroup of the job `id`.
pub(super) fn job_cgroup(id: &str) -> String {
    format!("jobfence-{id}")
}
