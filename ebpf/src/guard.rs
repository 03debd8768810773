//! Sockets outside every job.
//!
//! A job that gets something else to run for it, by cron, a service manager or a daemon of an earlier
//! job, has left its cgroup and with it its fence. These programs are attached to the outermost cgroup
//! and refuse the sockets of the users that run jobs, but for those that carry a job's mark. A cgroup's
//! programs run before those of the cgroups above it, so a job's own socket is marked when it gets here.

use aya_ebpf::{
    bindings::bpf_sock,
    btf_maps::lpm_trie::Key,
    helpers::bpf_get_current_uid_gid,
    programs::{SockAddrContext, SockContext},
};
use jobfence_abi::{Flow, Hook, Reason, Socket};

use crate::{
    connect::{AF, Family, read_addr},
    maps::{GUARDED, JOBS, SOCKETS},
    process,
    report::{Attempt, Origin, record},
};

/// The slot of no job.
const NO_JOB: u32 = 0;

/// `socket()`: made (1) or refused with `EPERM` (0).
#[inline(always)]
pub(crate) fn create(ctx: &SockContext) -> i32 {
    let sk = ctx.sock;
    // SAFETY: the socket is the program's own context, readable throughout.
    let Some(socket) = (unsafe { outside(sk) }) else {
        return 1;
    };
    // SAFETY: as above.
    let (family, kind, protocol) = unsafe { ((*sk).family, (*sk).type_, (*sk).protocol) };
    let flow = Flow {
        proto: protocol as u8,
        ..Flow::NONE
    };
    refuse(socket, Hook::SOCKET, family as u8, flow, kind)
}

/// `connect()` and unconnected sends on a socket that was there before this program was: on it goes (1),
/// or it is `EPERM` (0).
#[inline(always)]
pub(crate) fn outgoing(ctx: &SockAddrContext, family: Family) -> i32 {
    let addr = ctx.sock_addr;
    // SAFETY: the context is the program's own; `sk` in it is never null for these hooks.
    let (socket, flow) = unsafe {
        let Some(socket) = outside((*addr).__bindgen_anon_1.sk) else {
            return 1;
        };
        let dst = read_addr(addr, family).effective();
        let port = u16::from_be((*addr).user_port as u16);
        (socket, Flow::new(dst, port, (*addr).protocol as u8))
    };
    let family = AF[usize::from(family == Family::V6)];
    refuse(socket, Hook::CONNECT, family, flow, 0)
}

/// The entry of a socket that is no job's, though its user runs jobs. One for which there is no memory
/// has an entry all the same: no storage, no way to know.
///
/// # Safety
///
/// `sk` must be a socket that the verifier accepts here.
#[inline(always)]
unsafe fn outside(sk: *mut bpf_sock) -> Option<*mut Socket> {
    // SAFETY: by the contract; what is found is the socket's for as long as the program runs.
    unsafe {
        let socket = SOCKETS.find(sk);
        if !socket.is_null() && (*socket).job != 0 {
            return None;
        }
        let uid = bpf_get_current_uid_gid() as u32;
        GUARDED.get(&Key::new(u32::BITS, uid.to_be_bytes()))?;
        Some(SOCKETS.find_or_make(sk))
    }
}

#[inline(always)]
fn refuse(socket: *mut Socket, hook: Hook, family: u8, flow: Flow, socket_type: u32) -> i32 {
    let Some(job) = JOBS.get(NO_JOB) else {
        return 0;
    };
    if socket.is_null() {
        return 0;
    }
    // SAFETY: checked above; see `jobfence_abi::Socket` on what other processors can do.
    let socket = unsafe { &mut *socket };
    process::stamp(socket);
    let attempt = Attempt {
        slot: NO_JOB,
        hook,
        reason: Reason::OUTSIDE_JOB,
        family,
        flow,
        socket_type,
        origin: Origin::NONE,
    };
    // Whatever becomes of the record: no job is in audit mode here.
    record(&attempt, job, socket);
    0
}
