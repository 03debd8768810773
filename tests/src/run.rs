//! Runs a command to its end, and never past a deadline.

use std::{
    env,
    fs::File,
    io::{Read as _, Seek as _},
    os::unix::process::CommandExt as _,
    process::{Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, memfd_create},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};

/// What a command left behind.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// How long it ran.
    pub elapsed: Duration,
}

/// How many times longer than on real hardware everything may take: `JOBFENCE_TEST_SLOW`, or 1.
///
/// An emulated machine computes ten to twenty times slower. Only time-outs that a working test
/// never reaches are stretched by this; what a test asserts about time is not.
///
/// # Panics
/// When the variable is set and no whole number from 1 on.
#[must_use]
pub fn slowness() -> u32 {
    match env::var("JOBFENCE_TEST_SLOW") {
        Ok(text) => match text.parse() {
            Ok(factor) if factor > 0 => factor,
            _ => panic!("JOBFENCE_TEST_SLOW is no whole number from 1 on: {text}"),
        },
        Err(_) => 1,
    }
}

/// Runs `command` in a process group of its own. Processes that it leaves behind do not hold up
/// the answer: output goes to memory files, whose end is the command's.
///
/// # Errors
/// When the command cannot be started, or has not ended by `deadline` ([`slowness`] times that on a
/// slow machine); its process group is then killed, and the error tells what it printed.
pub fn run(command: &mut Command, deadline: Duration) -> Result<Output> {
    let [mut stdout, mut stderr] = [memory_file("stdout")?, memory_file("stderr")?];
    let deadline = deadline * slowness();
    let start = Instant::now();
    let mut child = command
        .process_group(0)
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    let pid = Pid::from_child(&child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("cannot open a pidfd")?;
    let in_time = wait(&pidfd, deadline)?;
    if !in_time {
        // The group is the child's own and the child is not waited for: the id is still its.
        kill_process_group(pid, Signal::KILL).context("cannot kill an overdue command")?;
    }
    let status = child.wait()?;
    let output = Output {
        status,
        stdout: contents(&mut stdout)?,
        stderr: contents(&mut stderr)?,
        elapsed: start.elapsed(),
    };
    if !in_time {
        bail!("not finished after {deadline:?}: {command:?}\n{output:?}");
    }
    Ok(output)
}

/// Waits until `condition` holds, and panics with `what` if it never does.
///
/// # Panics
/// After ten seconds, [`slowness`] times that on a slow machine.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10) * slowness();
    while !condition() {
        assert!(Instant::now() < deadline, "did not happen: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Waits for `pidfd`'s process to end; false if it has not after `limit`.
pub(crate) fn wait(pidfd: &impl std::os::fd::AsFd, limit: Duration) -> Result<bool> {
    let end = Instant::now() + limit;
    loop {
        let left = Timespec::try_from(end.saturating_duration_since(Instant::now()))?;
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for a process"),
        }
    }
}

fn memory_file(name: &str) -> Result<File> {
    let file = memfd_create(name, MemfdFlags::CLOEXEC).context("cannot make a memory file")?;
    Ok(file.into())
}

fn contents(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
