//! System calls that a job does without (seccomp(2)).
//!
//! The programs in the kernel see sockets of IPv4 and IPv6. What would let data out beside those,
//! or make something outside the job act for it, is refused here; which families those are, is
//! [`jobfence_abi::is_family_allowed`]'s to say. No event tells of it: the
//! kernel asks nobody.

use std::{collections::BTreeMap, env::consts::ARCH};

use jobfence_abi::{AF_NETLINK, FAMILIES, NETLINK};
use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, apply_filter,
};

/// `SOCK_PACKET` of `linux/net.h`, and the bits of a type that it is compared in
/// (`SOCK_TYPE_MASK`): with it the kernel makes `AF_PACKET` of `AF_INET`.
const PACKET: (u64, u64) = (10, 0xf);

/// Requests that put input into a terminal, for the shell that reads it after the job: TIOCSTI and
/// TIOCLINUX of `asm-generic/ioctls.h`.
const TERMINAL_INPUT: [u64; 2] = [0x5412, 0x541c];

/// `TUNSETIFF` of `linux/if_tun.h`: ties a descriptor to an interface, whose packets are no
/// socket's. The device is covered; another node of it may lie elsewhere.
const TUN: u64 = 0x4004_54ca;

/// Options, by level and number. `SO_ZEROCOPY`, see [`BY_REFERENCE`]. Those that lead packets
/// elsewhere than their connection: `TCP_ULP`, which can turn a TCP socket into one of `AF_SMC`;
/// `IP_OPTIONS`; and of IPv6 (RFC 3542 and its predecessor RFC 2292) routing headers and those
/// before them.
const OPTIONS: [(u64, u64); 10] = [
    (1, 60),
    (6, 31),
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

/// Calls that send pages by reference. The program that reads a connection's name sees the page, and
/// what leaves is what the job has written to it since. Programs copy instead when the kernel says
/// `EINVAL`, as it does for files that cannot be sent so.
const BY_REFERENCE: [i64; 2] = [libc::SYS_sendfile, libc::SYS_splice];

/// Calls with arguments that a filter cannot see: clone3 makes children in another cgroup, and asks
/// for no more than a descriptor of it. Programs use clone when the kernel does not have clone3.
pub(crate) const UNSEEN: [i64; 1] = [libc::SYS_clone3];

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
    apply_filter(&compile(others()?, libc::EPERM)?)?;
    apply_filter(&compile(whole(&BY_REFERENCE), libc::EINVAL)?)?;
    apply_filter(&compile(whole(&UNSEEN), libc::ENOSYS)?)
}

pub(crate) type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// A filter that refuses with `errno` what `rules` name, and nothing else.
pub(crate) fn compile(mut rules: Rules, errno: i32) -> Result<BpfProgram, Error> {
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
    let other = FAMILIES.map(|family| is(0, SeccompCmpOp::Ne, family.into()));
    let mut netlink = vec![is(0, SeccompCmpOp::Eq, AF_NETLINK.into())];
    netlink.extend(NETLINK.map(|protocol| is(2, SeccompCmpOp::Ne, protocol.into())));
    let (packet, mask) = PACKET;
    let packet = vec![is(1, SeccompCmpOp::MaskedEq(mask), packet)];
    let rules = vec![all(other.into())?, all(netlink)?, all(packet)?];
    // A pair is made of whatever family has pairs, and in some each can talk to others too.
    Ok([
        (libc::SYS_socket, rules.clone()),
        (libc::SYS_socketpair, rules),
    ]
    .into())
}

/// Calls with whatever arguments.
pub(crate) fn whole(calls: &[i64]) -> Rules {
    calls.iter().map(|&call| (call, Vec::new())).collect()
}

fn others() -> Result<Rules, Error> {
    let mut rules = whole(&REFUSED);
    let requests = [TERMINAL_INPUT.as_slice(), &[TUN]].concat();
    let requests = requests
        .into_iter()
        .map(|request| all(vec![is(1, SeccompCmpOp::Eq, request)]));
    rules.insert(libc::SYS_ioctl, requests.collect::<Result<_, _>>()?);
    let options = OPTIONS.map(|(level, option)| {
        all(vec![
            is(1, SeccompCmpOp::Eq, level),
            is(2, SeccompCmpOp::Eq, option),
        ])
    });
    rules.insert(
        libc::SYS_setsockopt,
        options.into_iter().collect::<Result<_, _>>()?,
    );
    Ok(rules)
}

/// When all conditions hold.
pub(crate) fn all(conditions: Vec<Result<SeccompCondition, Error>>) -> Result<SeccompRule, Error> {
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
