//! Which socket families a job may use, and which netlink protocols.
//!
//! Two layers apply this one rule: a seccomp filter for what jobfence launches, and a program on
//! `socket_create` for whatever else is in the job's cgroup, on kernels where that program runs.

/// Address families of `linux/socket.h` that a job may have sockets of: `AF_UNIX`, which stays on
/// the host, `AF_INET` and `AF_INET6`, about which the other programs decide, and `AF_NETLINK`,
/// see [`NETLINK`]. No other: most lead to other machines, past the hooks for IP
/// (`AF_PACKET`, `AF_XDP`, `AF_VSOCK`, `AF_TIPC`, `AF_SMC`, `AF_BLUETOOTH`, `AF_CAN`, …), and the
/// rest is kernel interface that builds do without (`AF_ALG`, `AF_KEY`, `AF_KCM`).
pub const FAMILIES: [u32; 4] = [1, 2, 10, AF_NETLINK];

/// `AF_NETLINK` of `linux/socket.h`.
pub const AF_NETLINK: u32 = 16;

/// Netlink protocols of `linux/netlink.h` that builds use: `NETLINK_ROUTE`, with which C libraries
/// list interfaces and addresses, and `NETLINK_KOBJECT_UEVENT`, with which device libraries wait
/// for devices. Without capabilities over the network namespace both only tell.
pub const NETLINK: [u32; 2] = [0, 15];

/// Whether a job may have a socket of `family` and `protocol`, as the kernel's `socket_create`
/// hook sees them.
#[must_use]
#[inline(always)]
pub const fn is_family_allowed(family: u32, protocol: u32) -> bool {
    let [unix, inet, inet6, netlink] = FAMILIES;
    let [route, uevent] = NETLINK;
    if family == netlink {
        protocol == route || protocol == uevent
    } else {
        family == unix || family == inet || family == inet6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_builds_need_is_allowed() {
        for family in 0..64 {
            for protocol in 0..32 {
                let allowed = match family {
                    1 | 2 | 10 => true,
                    16 => protocol == 0 || protocol == 15,
                    _ => false,
                };
                assert_eq!(
                    is_family_allowed(family, protocol),
                    allowed,
                    "{family} {protocol}"
                );
            }
        }
    }
}
