//! What tests of several files need.

use std::net::IpAddr;

use ipnet::IpNet;
use jobfence_abi::PortRange;

/// The longest prefix's ranges, as the kernel finds them: IPv4 networks are mapped ones, in one
/// map with IPv6.
pub(crate) fn lookup(prefixes: &[(IpNet, Vec<PortRange>)], addr: IpAddr) -> Vec<PortRange> {
    let mapped = |addr: IpAddr| match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    prefixes
        .iter()
        .map(|(net, ranges)| {
            (
                mapped(net.network()),
                128 - u32::from(net.max_prefix_len() - net.prefix_len()),
                ranges,
            )
        })
        .filter(|&(network, length, _)| {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            mapped(addr) & mask == network
        })
        .max_by_key(|&(_, length, _)| length)
        .map_or_else(Vec::new, |(_, _, ranges)| ranges.clone())
}
