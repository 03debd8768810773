//! The process that runs now.

use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_get_current_uid_gid, generated::bpf_get_current_comm,
};
use jobfence_abi::{COMM_LEN, Socket};

/// Notes the running process as the one that uses `socket`. Only where a process is certain to be
/// the cause: in a system call's hooks, never in the packet's, which can run in an interrupt.
#[inline(always)]
pub(crate) fn stamp(socket: &mut Socket) {
    socket.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    socket.uid = bpf_get_current_uid_gid() as u32;
    // SAFETY: the destination is `COMM_LEN` bytes of a map value. The helper fails only without
    // a current task, and then fills it with zeros.
    unsafe { bpf_get_current_comm(socket.comm.as_mut_ptr().cast(), COMM_LEN as u32) };
}

/// As [`stamp`], where nothing is recorded in the ordinary course of things: only if it is another
/// process than the one noted last.
#[inline(always)]
pub(crate) fn stamp_another(socket: &mut Socket) {
    if socket.pid != (bpf_get_current_pid_tgid() >> 32) as u32 {
        stamp(socket);
    }
}
