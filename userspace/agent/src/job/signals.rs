//! Signals that come for a job.

use std::{io, os::fd::OwnedFd};

use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use rustix::process::{Pid, getpid, getsid, kill_process};
use tokio::io::unix::AsyncFd;

use crate::sys;

/// The signals that are passed on to the job.
pub(super) fn forwarded() -> SigSet {
    SigSet::from_iter([
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ])
}

/// Those of them that have come. They are blocked from now on, also in processes that are started.
pub(super) struct Signals {
    fd: SignalFd,
    readable: AsyncFd<OwnedFd>,
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        let set = forwarded();
        set.thread_block()?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let readable = sys::watch(&fd)?;
        Ok(Self { fd, readable })
    }

    /// Waits until one has come.
    pub(super) async fn come(&self) -> io::Result<()> {
        self.readable.readable().await?.clear_ready();
        Ok(())
    }

    /// Passes on what was sent to this process alone. What the terminal sends (Ctrl-C) went to the
    /// job too, which is in the same process group; but a hangup goes to the session's leader only.
    pub(super) fn forward(&self, job: Pid) -> io::Result<()> {
        /// `SI_KERNEL` of `asm-generic/siginfo.h`.
        const SI_KERNEL: i32 = 0x80;
        let leads = getsid(None).is_ok_and(|session| session == getpid());
        while let Some(info) = self.fd.read_signal()? {
            let number = i32::try_from(info.ssi_signo).unwrap_or(0);
            let Some(signal) = rustix::process::Signal::from_named_raw(number) else {
                continue;
            };
            let to_leader = leads && signal == rustix::process::Signal::HUP;
            if info.ssi_code == SI_KERNEL && !to_leader {
                continue;
            }
            match kill_process(job, signal) {
                // It has just ended, which is seen next.
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => {
                    tracing::warn!(%error, number, "could not pass a signal on to the job");
                }
            }
        }
        Ok(())
    }
}
