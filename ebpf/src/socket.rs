//! `socket()`: which sockets a job may have at all.
//!
//! `BPF_CGROUP_INET_SOCK_CREATE` runs for `AF_INET` and `AF_INET6` only, so other families are
//! not decided here. What it lets through is marked as the job's: the mark is how a listener on
//! the loopback interface is known to be inside, and how a packet finds the process behind it.

use aya_ebpf::{bindings::bpf_sock, programs::SockContext};
use jobfence_abi::{Flow, Hook, Job, JobState, Reason, proto};

use crate::{
    maps::{SOCKETS, job},
    process,
    report::{Attempt, Origin, record},
};

/// `SOCK_STREAM`, `SOCK_DGRAM` and `SOCK_RAW` of `linux/net.h`.
const STREAM: u32 = 1;
const DGRAM: u32 = 2;
const RAW: u32 = 3;
/// `IPPROTO_MPTCP` of `linux/in.h`.
const MPTCP: u32 = 262;

/// Lets the socket be made (1) or refuses it with `EPERM` (0).
#[inline(always)]
pub(crate) fn create(ctx: &SockContext) -> i32 {
    let sk = ctx.sock;
    let Some((slot, job)) = job() else { return 0 };
    // SAFETY: the socket is the program's own context.
    let socket = unsafe { SOCKETS.find_or_make(sk) };
    if socket.is_null() {
        return 0;
    }
    // SAFETY: checked above; the entry is this socket's, which no other program sees yet.
    let socket = unsafe { &mut *socket };
    socket.job = job.id;
    process::stamp(socket);
    // SAFETY: the context is readable throughout.
    let reason = unsafe { judge(sk, job) };
    if reason.is_allowed() {
        return 1;
    }
    // SAFETY: as above.
    let (family, kind, protocol) = unsafe { ((*sk).family, (*sk).type_, (*sk).protocol) };
    i32::from(record(
        &Attempt {
            slot,
            hook: Hook::SOCKET,
            reason,
            family: family as u8,
            flow: Flow {
                proto: protocol as u8,
                ..Flow::NONE
            },
            socket_type: kind,
            origin: Origin::NONE,
        },
        job,
        socket,
    ))
}

#[inline(always)]
unsafe fn judge(sk: *mut bpf_sock, job: &Job) -> Reason {
    // SAFETY: the caller's context.
    let (kind, protocol) = unsafe { ((*sk).type_, (*sk).protocol) };
    if job.state == JobState::CLOSED {
        Reason::CLOSED
    } else if kind == RAW {
        Reason::RAW_SOCKET
    } else if protocol == MPTCP {
        Reason::MPTCP
    } else if kind == STREAM && protocol == u32::from(proto::TCP)
        || kind == DGRAM && protocol == u32::from(proto::UDP)
    {
        Reason::ALLOWED
    } else {
        Reason::PROTOCOL
    }
}
