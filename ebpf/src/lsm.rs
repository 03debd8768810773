//! Families that the hooks for IP do not see.
//!
//! `BPF_CGROUP_INET_SOCK_CREATE` runs for `AF_INET` and `AF_INET6` only. The LSM hook
//! `socket_create` (`security_socket_create`, called by `__sock_create` before it looks for the
//! family) runs for every one, and by `BPF_LSM_CGROUP` (Linux 6.0) only for the tasks of one
//! cgroup. The first process of a job that jobfence launches is held to the same rule by seccomp;
//! this program holds whatever else enters the cgroup.
//!
//! It runs only where `bpf` is among the active LSMs. Elsewhere it attaches and is never called.

use aya_ebpf::programs::LsmContext;
use jobfence_abi::{Flow, Hook, Reason, Socket, is_family_allowed};

use crate::{
    maps::job,
    process,
    report::{Attempt, Origin, record},
};

/// Lets the socket be made (1) or refuses it with `EPERM` (0).
#[inline(always)]
pub(crate) fn create(ctx: &LsmContext) -> i32 {
    // int family, int type, int protocol, int kern: plain integers, for which the program needs
    // to know no layout of the kernel's.
    let (family, kind, protocol, kern): (u32, u32, u32, u32) =
        (ctx.arg(0), ctx.arg(1), ctx.arg(2), ctx.arg(3));
    // The kernel's own, such as the one behind a TLS offload: no process can use it as it likes.
    if kern != 0 || is_family_allowed(family, protocol) {
        return 1;
    }
    let Some((slot, job)) = job() else { return 0 };
    let mut nobody = Socket::NONE;
    process::stamp(&mut nobody);
    let attempt = Attempt {
        slot,
        hook: Hook::SOCKET,
        reason: Reason::FAMILY,
        family: family as u8,
        flow: Flow {
            proto: protocol as u8,
            ..Flow::NONE
        },
        socket_type: kind,
        origin: Origin::NONE,
    };
    i32::from(record(&attempt, job, &mut nobody))
}
