//! Who asks, as the kernel tells it, and never as the caller does.
//!
//! - **User and groups** are those that the process had when it connected (`SO_PEERCRED`,
//!   `SO_PEERGROUPS`). What it has become since, by executing a set-user-ID program, does not count.
//! - **The process** is held by a pidfd, opened by the number in `SO_PEERCRED`. Before that the
//!   process can have ended and its number have become another's: a job's process could so pass for
//!   one outside. `SO_PEERPIDFD` would not have that gap, but is there from Linux 6.5 on only. So it
//!   is closed in another way, which works on all kernels, and is the only one: the request must
//!   bear that number as its sender's (`SCM_CREDENTIALS`, which the kernel fills in), and nothing
//!   may have been sent when the pidfd has been opened, which is why the agent greets first. If
//!   that process still lives when the request is there, it is the one that has sent it. It also
//!   follows that a connection which was inherited or handed on serves nobody else.
//! - **The cgroup** is read from `/proc` by number, and only then is the process seen to be alive: so
//!   the number was its own. It is read again once the request is there, since the process can have
//!   been moved into a job meanwhile.
//!
//! Threads share all of this: the numbers are those of the process, and so is its place in `/proc`.
//! A process in another pid namespace has a number here too, unless that namespace lies outside the
//! agent's: then the number is 0, and the caller is refused. What such a caller calls a number is
//! another one here, so it cannot name processes. User ids of user namespaces are translated by the
//! kernel; root in one is whoever made it.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{RecvFlags, recv},
    process::{Pid, PidfdFlags, pidfd_open},
};
use thiserror::Error;

use crate::{job::cgroup, sys};

/// Why a caller is not served.
#[derive(Debug, Error)]
pub enum PeerError {
    /// Its process cannot be seen from here.
    #[error(
        "the caller is in a pid namespace that the agent does not see: call from the host, or from \
         a container whose processes the host sees"
    )]
    Unseen,
    /// It has ended, or what has its number is another process.
    #[error(
        "process {pid} has ended, so nobody can tell what it may ask for: stay until the answer"
    )]
    Gone {
        /// Its process id.
        pid: u32,
    },
    /// It has not waited for the greeting.
    #[error("process {pid} sent something before it was greeted: read a line first, then ask")]
    Early {
        /// Its process id.
        pid: u32,
    },
    /// Somebody else has sent the request.
    #[error(
        "the connection is that of process {pid}, but another one sent the request: connect and \
         ask from one process"
    )]
    HandedOn {
        /// The process that connected.
        pid: u32,
    },
    /// The caller names processes by other numbers than the agent.
    #[error(
        "the caller, process {pid}, is in a pid namespace of its own, where processes have other \
         numbers: start the job from outside"
    )]
    Renumbered {
        /// The caller's process id.
        pid: u32,
    },
    /// The process is neither the caller nor above it.
    #[error(
        "process {pid} is neither the caller nor an ancestor of it: only root makes jobs of other \
         processes"
    )]
    Unrelated {
        /// The process that was named.
        pid: u32,
    },
    /// The kernel did not tell.
    #[error("could not read {what} of the caller: {source}")]
    Io {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

fn unread(what: &'static str) -> impl Fn(io::Error) -> PeerError {
    move |source| PeerError::Io { what, source }
}

/// The process at the other end of a connection.
#[derive(Debug)]
pub struct Peer {
    process: Process,
    uid: u32,
    groups: Vec<u32>,
}

impl Peer {
    /// Who has connected `socket`. From now on each message on it tells its sender.
    ///
    /// # Errors
    ///
    /// [`PeerError::Unseen`], [`PeerError::Gone`], [`PeerError::Early`] and [`PeerError::Io`].
    pub fn of(socket: &impl AsFd) -> Result<Self, PeerError> {
        let told = |what| move |errno: nix::Error| unread(what)(errno.into());
        let credentials =
            getsockopt(socket, sockopt::PeerCredentials).map_err(told("credentials"))?;
        let pid = u32::try_from(credentials.pid()).unwrap_or(0);
        if pid == 0 {
            return Err(PeerError::Unseen);
        }
        let mut groups = sys::peer_groups(socket).map_err(unread("the groups"))?;
        groups.push(credentials.gid());
        let process = Process::open(pid)?;
        setsockopt(socket, sockopt::PassCred, &true).map_err(told("the senders of messages"))?;
        // After the pidfd was opened: what comes from now on is sent by whoever has the number now.
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match recv(socket, &mut [0_u8; 1], flags) {
            Err(rustix::io::Errno::AGAIN) => {}
            Ok((_, 0)) => return Err(PeerError::Gone { pid }),
            Ok(_) => return Err(PeerError::Early { pid }),
            Err(errno) => return Err(unread("the first message")(errno.into())),
        }
        Ok(Self {
            process,
            uid: credentials.uid(),
            groups,
        })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid
    }

    /// Its effective user id when it connected.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Whether it was in the group when it connected.
    #[must_use]
    pub fn is_in(&self, gid: u32) -> bool {
        self.groups.contains(&gid)
    }

    /// The folder of its cgroup as it is now.
    ///
    /// # Errors
    ///
    /// [`PeerError::Gone`] and [`PeerError::Io`].
    pub fn cgroup(&self) -> Result<PathBuf, PeerError> {
        let folder = cgroup::of(self.pid());
        self.process.check_alive()?;
        folder.ok_or_else(|| {
            let source = io::Error::other("no cgroup v2 hierarchy that holds it is mounted here");
            unread("the cgroup")(source)
        })
    }

    /// Checks that the caller may make a job of the tree below `root`: it is that process, or one
    /// below it. Whose the tree's processes are, the host sees to when it moves them.
    ///
    /// # Errors
    ///
    /// [`PeerError::Renumbered`], [`PeerError::Unrelated`], [`PeerError::Gone`] and
    /// [`PeerError::Io`].
    pub fn check_descent(&self, root: u32) -> Result<(), PeerError> {
        self.check_numbers()?;
        if self.process.descends_from(root)? {
            Ok(())
        } else {
            Err(PeerError::Unrelated { pid: root })
        }
    }

    /// Whether it calls processes by the same numbers as this one does.
    ///
    /// # Errors
    ///
    /// [`PeerError::Renumbered`] if not; [`PeerError::Gone`] and [`PeerError::Io`].
    pub fn check_numbers(&self) -> Result<(), PeerError> {
        match self.process.status()?.numbers {
            1 => Ok(()),
            _ => Err(PeerError::Renumbered { pid: self.pid() }),
        }
    }
}

/// A process that is held by its pidfd, so that it is not taken for another one.
#[derive(Debug)]
struct Process {
    pid: u32,
    fd: OwnedFd,
}

/// What `/proc/PID/status` says.
#[derive(Debug, PartialEq, Eq)]
struct Status {
    ppid: u32,
    /// How many numbers it has, in this pid namespace and those below.
    numbers: usize,
}

impl Process {
    /// The process that has the number now.
    fn open(pid: u32) -> Result<Self, PeerError> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let number = number.ok_or(PeerError::Gone { pid })?;
        match pidfd_open(number, PidfdFlags::empty()) {
            Ok(fd) => Ok(Self { pid, fd }),
            // EINVAL: the number is a thread's.
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => Err(PeerError::Gone { pid }),
            Err(errno) => Err(unread("the process")(errno.into())),
        }
    }

    fn status(&self) -> Result<Status, PeerError> {
        let text = fs::read(format!("/proc/{}/status", self.pid));
        self.check_alive()?;
        let text = text.map_err(unread("the status"))?;
        parse(&String::from_utf8_lossy(&text))
            .ok_or_else(|| unread("the status")(io::ErrorKind::InvalidData.into()))
    }

    /// Checks that it has not ended: then what was read by its number was its own. A pidfd becomes
    /// readable when the last thread has ended.
    fn check_alive(&self) -> Result<(), PeerError> {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        match poll(&mut fds, Some(&Timespec::default())) {
            Ok(0) => Ok(()),
            Ok(_) => Err(PeerError::Gone { pid: self.pid }),
            Err(errno) => Err(unread("the state")(errno.into())),
        }
    }

    /// Whether `pid` is this process or one above it.
    fn descends_from(&self, pid: u32) -> Result<bool, PeerError> {
        let mut parent;
        let mut child = self;
        loop {
            if child.pid == pid {
                return Ok(true);
            }
            match child.parent()? {
                Some(above) => {
                    parent = above;
                    child = &parent;
                }
                None => return Ok(false),
            }
        }
    }

    /// Its parent; `None` for the first process, and for one whose parent is not seen from here.
    fn parent(&self) -> Result<Option<Self>, PeerError> {
        loop {
            let ppid = self.status()?.ppid;
            if ppid == 0 {
                return Ok(None);
            }
            // It may have ended in between, and the number be another's. If it is the parent's
            // afterwards, it was all the time: this process has been alive.
            match Self::open(ppid) {
                Ok(parent) if self.status()?.ppid == ppid => return Ok(Some(parent)),
                Ok(_) | Err(PeerError::Gone { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Reads what is needed of a `status` file (proc(5)). A line feed in the command name is escaped
/// there.
fn parse(status: &str) -> Option<Status> {
    let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key));
    Some(Status {
        ppid: line("PPid:")?.trim().parse().ok()?,
        numbers: line("NSpid:")?.split_whitespace().count(),
    })
}
