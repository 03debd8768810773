//! Process trees: moving one into a job, and what it had open before.
//!
//! Nothing of the job's own code runs yet when its tree is moved. A process that was forked before is
//! found below its parent; one that is forked meanwhile is in the cgroup of its parent from the
//! beginning, so parents are moved first, and the tree is gone through again until nothing of it is
//! outside.

use std::{collections::HashSet, fs, io, net::SocketAddr, os::fd::OwnedFd, path::Path};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{getpeername, ipproto, sockopt::socket_protocol},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};
use thiserror::Error;

use super::journal::Runner;
use crate::{job::cgroup::Cgroup, sys};

/// Times that a tree is gone through before it is given up: it forks faster than it can be moved.
const ROUNDS: usize = 100;

/// A process tree could not be moved.
#[derive(Debug, Error)]
pub enum TreeError {
    /// It is not there.
    #[error("there is no process {0}")]
    Gone(u32),
    /// It is another's.
    #[error("process {pid} belongs to user {uid}: only root may put it into a job")]
    Foreign {
        /// The process.
        pid: u32,
        /// Whose it is.
        uid: u32,
    },
    /// What it may leave is not known.
    #[error(
        "cannot tell in which cgroup process {0} is: it is outside of what the agent sees, so run the \
         agent in the host's own cgroup namespace"
    )]
    Unseen(u32),
    /// It is fenced already.
    #[error("process {0} is in a job already, and a job is left by ending only")]
    Fenced(u32),
    /// It is a runner.
    #[error("process {0} is a runner, which stays in its own fence: make jobs of what it starts")]
    Runner(u32),
    /// It cannot be looked at.
    #[error("could not look at process {pid}, which was to become a part of the job: {source}")]
    Unread {
        /// The process.
        pid: u32,
        /// Why not.
        source: io::Error,
    },
    /// It cannot be moved.
    #[error("could not move process {pid} into the job: {source}")]
    Move {
        /// The process.
        pid: u32,
        /// Why not.
        source: io::Error,
    },
    /// It has not stopped forking.
    #[error("the processes below {0} could not be caught: they fork too fast")]
    Restless(u32),
}

/// The process `pid` as one with which a job ends.
pub(super) fn runner(pid: u32) -> Option<Runner> {
    Some(Runner {
        pid,
        start: start_time(pid)?,
    })
}

/// Whether the process still runs. One that has ended, and that nobody has waited for, is still in
/// `/proc`; its pidfd is readable from when its last thread has ended.
pub(super) fn is_alive(runner: Runner) -> bool {
    let number = i32::try_from(runner.pid).ok().and_then(Pid::from_raw);
    let Some(Ok(fd)) = number.map(|number| pidfd_open(number, PidfdFlags::empty())) else {
        return false;
    };
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let is_same = start_time(runner.pid) == Some(runner.start);
    is_same && poll(&mut fds, Some(&Timespec::default())) != Ok(1)
}

/// Whether `root` and all that is below it may be put into a job, as [`move_into`] finds it.
pub(super) fn check(
    root: u32,
    owner: Option<u32>,
    may_leave: impl Fn(u32, &Path) -> Result<(), TreeError>,
) -> Result<(), TreeError> {
    let mut stack = vec![root];
    while let Some(pid) = stack.pop() {
        match admit(pid, owner, &may_leave) {
            Err(TreeError::Gone(_)) if pid != root => continue,
            admitted => admitted?,
        }
        stack.extend(children(pid)?);
    }
    Ok(())
}

/// Moves `root` and all that is below it into `cgroup`; returns their numbers. `owner` is whose the
/// processes must be, if not anybody's. `may_leave` says of a process whether it may leave the cgroup
/// with this folder.
pub(super) fn move_into(
    cgroup: &Cgroup,
    root: u32,
    owner: Option<u32>,
    may_leave: impl Fn(u32, &Path) -> Result<(), TreeError>,
) -> Result<Vec<u32>, TreeError> {
    // What is forked by one that was moved is inside from the beginning.
    let may_enter = |pid, folder: &Path| match folder == cgroup.path() {
        true => Ok(()),
        false => may_leave(pid, folder),
    };
    let mut moved = HashSet::new();
    for round in 0..ROUNDS {
        let mut new = 0;
        // The tree as a stack: a parent is moved before its children are looked for.
        let mut stack = vec![root];
        while let Some(pid) = stack.pop() {
            if !moved.contains(&pid) {
                match admit(pid, owner, may_enter) {
                    Ok(()) => {}
                    Err(TreeError::Gone(_)) if pid != root || round > 0 => continue,
                    Err(error) => return Err(error),
                }
                match cgroup.add(pid) {
                    Ok(()) => {}
                    // It has ended meanwhile.
                    Err(error) if is_gone(&error) && pid != root => continue,
                    Err(source) => return Err(TreeError::Move { pid, source }),
                }
                moved.insert(pid);
                new += 1;
            }
            stack.extend(children(pid)?);
        }
        if new == 0 {
            let mut moved: Vec<_> = moved.into_iter().collect();
            moved.sort_unstable();
            return Ok(moved);
        }
    }
    Err(TreeError::Restless(root))
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Only what has ended may be passed over.
fn unread(pid: u32) -> impl Fn(io::Error) -> TreeError {
    move |source| match is_gone(&source) {
        true => TreeError::Gone(pid),
        false => TreeError::Unread { pid, source },
    }
}

/// Whether a process may be put into the job.
fn admit(
    pid: u32,
    owner: Option<u32>,
    may_leave: impl Fn(u32, &Path) -> Result<(), TreeError>,
) -> Result<(), TreeError> {
    let status = sys::read_text(format!("/proc/{pid}/status")).map_err(unread(pid))?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let uids = uids.unwrap_or_default().split_whitespace();
    let uids: Vec<u32> = uids.filter_map(|uid| uid.parse().ok()).collect();
    let foreign = uids.iter().find(|&&uid| Some(uid) != owner);
    if let (Some(_), Some(&uid)) = (owner, foreign) {
        return Err(TreeError::Foreign { pid, uid });
    }
    let Some(current) = crate::job::cgroup::of(pid) else {
        return Err(match Path::new(&format!("/proc/{pid}")).exists() {
            true => TreeError::Unseen(pid),
            false => TreeError::Gone(pid),
        });
    };
    may_leave(pid, &current)
}

/// The children of all threads of a process; of one that has ended, none.
fn children(pid: u32) -> Result<Vec<u32>, TreeError> {
    let found = || -> io::Result<Vec<u32>> {
        let mut found = Vec::new();
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let task = task?.path();
            match fs::read_to_string(task.join("children")) {
                Ok(list) => found.extend(
                    list.split_whitespace()
                        .filter_map(|pid| pid.parse::<u32>().ok()),
                ),
                // Not that of a kernel without CONFIG_PROC_CHILDREN: it would hide them all.
                Err(error) if is_gone(&error) && !task.exists() => {}
                Err(error) => return Err(io::Error::new(io::ErrorKind::Unsupported, error)),
            }
        }
        Ok(found)
    };
    match found() {
        Err(error) if is_gone(&error) => Ok(Vec::new()),
        found => found.map_err(unread(pid)),
    }
}

/// When a process began, in clock ticks since boot: the 22nd field of its `stat` (proc_pid_stat(5)).
fn start_time(pid: u32) -> Option<u64> {
    let stat = sys::read_text(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command name, in parentheses, and can hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// Connections of `processes` to other hosts. They were made outside the fence, which does not see
/// them. A copy of each socket is asked, whichever network namespace it is of; the kernel's tables in
/// `/proc` have those of one only, and are long.
pub(super) fn open_connections(processes: &[u32]) -> Vec<String> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for &pid in processes {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let Some(Ok(process)) = number.map(|number| pidfd_open(number, PidfdFlags::empty())) else {
            continue;
        };
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"));
        for entry in descriptors.into_iter().flatten().flatten() {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            let is_socket = target.to_str().is_some_and(|to| to.starts_with("socket:["));
            let number = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            let (true, Some(number)) = (is_socket, number) else {
                continue;
            };
            // Several descriptors, of several processes, can be of one socket.
            if seen.insert(target)
                && let Ok(socket) = pidfd_getfd(&process, number, PidfdGetfdFlags::empty())
                && let Some(connection) = connection(&socket)
            {
                found.push(format!("{connection} (pid {pid})"));
            }
        }
    }
    found.sort();
    found
}

/// The protocol and the other end of a socket that is connected to another host.
fn connection(socket: &OwnedFd) -> Option<String> {
    let peer = SocketAddr::try_from(getpeername(socket).ok()??).ok()?;
    if peer.port() == 0 || peer.ip().to_canonical().is_loopback() {
        return None;
    }
    let protocol = match socket_protocol(socket).ok()? {
        Some(ipproto::TCP) => "tcp".to_owned(),
        Some(ipproto::UDP) => "udp".to_owned(),
        other => format!("protocol {}", other.map_or(0, |other| other.as_raw().get())),
    };
    Some(format!("{protocol} {peer}"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_that_has_ended_is_not_alive_though_nobody_waits_for_it() {
        let mut child = Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("a process");
        let runner = runner(child.id()).expect("it is there");
        assert!(is_alive(runner));
        let other = Runner {
            start: runner.start + 1,
            ..runner
        };
        assert!(!is_alive(other), "its number was another's");
        let fd = Pid::from_child(&child);
        let fd = pidfd_open(fd, PidfdFlags::empty()).expect("a pidfd");
        drop(child.stdin.take());
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], None).expect("it ends");
        assert_eq!(start_time(runner.pid), Some(runner.start), "a zombie");
        assert!(!is_alive(runner));
        child.wait().expect("its status");
        assert!(!is_alive(runner));
    }
}
