//! System calls that a job does without (seccomp(2)).
//!
//! The programs in the kernel see sockets of IPv4 and IPv6. What would let data out beside those,
//! or make something outside the job act for it, is refused here. No event tells of it: the
//! kernel asks nobody.

use std::{collections::BTreeMap, env::consts::ARCH};

use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, apply_filter,
};

/// Address families that a job may have sockets of: within the host, and those that the programs
/// decide about. Not `AF_VSOCK`, which leads from a virtual machine to its hypervisor, and no
/// other.
const FAMILIES: [i32; 4] = [
    libc::AF_UNIX,
    libc::AF_INET,
    libc::AF_INET6,
    libc::AF_NETLINK,
];

/// Netlink protocols that builds use: routes and interfaces, device events.
const NETLINK: [i32; 2] = [libc::NETLINK_ROUTE, libc::NETLINK_KOBJECT_UEVENT];

/// Requests that put input into a terminal, for the shell that reads it after the job: TIOCSTI and
/// TIOCLINUX of `asm-generic/ioctls.h`.
const TERMINAL_INPUT: [u64; 2] = [0x5412, 0x541c];

/// Options that lead packets elsewhere than their connection: `IP_OPTIONS`, and of IPv6 (level and
/// option; RFC 3542 and its predecessor RFC 2292) routing headers and those before them.
const ROUTES: [(u64, u64); 8] = [
    (0, 4),
    (41, 3),
    (41, 4),
    (41, 5),
    (41, 6),
    (41, 54),
    (41, 55),
    (41, 57),
];

/// Calls that are refused altogether: io_uring makes sockets past this filter; bpf detaches a
/// fence that it can open; request_key has the kernel start a helper as root, one of which
/// resolves names.
const REFUSED: [i64; 3] = [
    libc::SYS_io_uring_setup,
    libc::SYS_bpf,
    libc::SYS_request_key,
];

/// The bit that marks a system call of the x32 interface, which has numbers of its own for some.
#[cfg(target_arch = "x86_64")]
const X32: i64 = 0x4000_0000;
#[cfg(target_arch = "x86_64")]
const X32_OWN: [(i64, i64); 2] = [(libc::SYS_ioctl, 514), (libc::SYS_setsockopt, 541)];

/// Filters the calling thread from now on, and all that it starts. Needs `no_new_privs`. Programs
/// of another architecture, as 32-bit ones on x86-64, are killed: their calls have other numbers.
pub(super) fn apply() -> Result<(), Error> {
    // Programs go on without a family that the kernel does not have.
    apply_filter(&compile(sockets()?, libc::EAFNOSUPPORT)?)?;
    apply_filter(&compile(others()?, libc::EPERM)?)
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn compile(mut rules: Rules, errno: i32) -> Result<BpfProgram, Error> {
    #[cfg(target_arch = "x86_64")]
    for (call, conditions) in rules.clone() {
        let own = X32_OWN.iter().find(|(usual, _)| *usual == call);
        let call = X32 | own.map_or(call, |(_, own)| *own);
        rules.insert(call, conditions);
    }
    let refuse = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, ARCH.try_into()?)?;
    Ok(filter.try_into()?)
}

fn sockets() -> Result<Rules, Error> {
    let family = FAMILIES.map(|family| is(0, SeccompCmpOp::Ne, family.unsigned_abs().into()));
    let mut netlink = vec![is(
        0,
        SeccompCmpOp::Eq,
        libc::AF_NETLINK.unsigned_abs().into(),
    )];
    netlink.extend(NETLINK.map(|protocol| is(2, SeccompCmpOp::Ne, protocol.unsigned_abs().into())));
    let rules = vec![all(family.into())?, all(netlink)?];
    Ok([(libc::SYS_socket, rules)].into())
}

fn others() -> Result<Rules, Error> {
    let mut rules: Rules = REFUSED.map(|call| (call, Vec::new())).into();
    let input = TERMINAL_INPUT.map(|request| all(vec![is(1, SeccompCmpOp::Eq, request)]));
    rules.insert(
        libc::SYS_ioctl,
        input.into_iter().collect::<Result<_, _>>()?,
    );
    let routes = ROUTES.map(|(level, option)| {
        all(vec![
            is(1, SeccompCmpOp::Eq, level),
            is(2, SeccompCmpOp::Eq, option),
        ])
    });
    rules.insert(
        libc::SYS_setsockopt,
        routes.into_iter().collect::<Result<_, _>>()?,
    );
    Ok(rules)
}

fn all(conditions: Vec<Result<SeccompCondition, Error>>) -> Result<SeccompRule, Error> {
    let conditions = conditions.into_iter().collect::<Result<_, _>>()?;
    Ok(SeccompRule::new(conditions)?)
}

/// A condition on an argument of 32 bits: the kernel ignores the upper half of each of these.
fn is(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, Error> {
    Ok(SeccompCondition::new(
        argument,
        SeccompCmpArgLen::Dword,
        operator,
        value,
    )?)
}
