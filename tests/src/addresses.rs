//! Who is where in the private internet.
//!
//! | name | address | what it is for |
//! |---|---|---|
//! | `allowed.test`, `shared.test` | [`ALLOWED`] | two names on one address |
//! | `v4only.test`, `v6only.test` | [`ALLOWED`] | one family only |
//! | `blocked.test` | [`BLOCKED`] | what policies do not allow |
//! | `alias.allowed.test` | `CNAME cdn.other.test` | a chain that leaves the allowed name |
//! | `cdn.other.test` | [`CDN`] | the end of that chain |
//! | `git.test`, `pkg.test` | [`GIT`], [`PKG`] | for [`serve_dir`](crate::Internet::serve_dir) |
//! | `*.wild.test` | [`WILD`] | any depth below `wild.test`, not itself |
//! | `private.test` | [`PRIVATE`] | a public name with private addresses |
//! | `mixed.test` | [`ALLOWED`] and [`PRIVATE`] | a public and a private address |
//! | `loopback.test` | `127.0.0.1`, `::1` | a public name with loopback addresses |
//! | `metadata.test` | [`METADATA`] | a public name with a metadata address |
//! | `extra.test` | [`ALLOWED`] | the answer also holds `blocked.test`'s record |
//! | `changing.test` | `198.51.100.70` to `.79` | another address each time, TTL 1 s |
//! | `big.test` | `198.51.100.100` to `.199` | an answer too long for UDP |
//! | `text.test` | `TXT` | data in an answer |
//! | `servfail.test` | | `SERVFAIL` |
//!
//! Anything else is `NXDOMAIN`. [`Internet::add_record`](crate::Internet::add_record) adds names.
//!
//! | port | answers |
//! |---|---|
//! | 53/tcp, 53/udp | DNS: the zone above at [`DNS`], the [other resolver](OTHER_DNS) |
//! | 80, 8000-8010 | HTTP |
//! | 443, 8443 | HTTPS, with a certificate for the name that is asked for |
//! | 22, 25, 5432 | one line with the port's number, then an echo |
//! | 123/udp, 443/udp, 5000/udp | an echo, at [`ALLOWED`] and [`BLOCKED`] |
//!
//! TCP ports answer at every address in the world, UDP ports at the ones named here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv4 and an IPv6 address of one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

impl Host {
    /// `198.51.100.last` and `2001:db8:2::last`, the last part as written.
    const fn public(last_v4: u8, last_v6: u16) -> Self {
        Self {
            v4: Ipv4Addr::new(198, 51, 100, last_v4),
            v6: Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, last_v6),
        }
    }

    /// Both addresses.
    #[must_use]
    pub const fn both(self) -> [IpAddr; 2] {
        [IpAddr::V4(self.v4), IpAddr::V6(self.v6)]
    }
}

/// The job side's end of the cable.
pub const JOB: Host = Host {
    v4: Ipv4Addr::new(192, 0, 2, 2),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2),
};
/// The net side's end of the cable, the job side's gateway.
pub const GATEWAY: Host = Host {
    v4: Ipv4Addr::new(192, 0, 2, 1),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1),
};
/// The DNS server that the job side's `resolv.conf` names.
pub const DNS: Host = Host::public(53, 0x53);
/// A DNS server that answers every question for an address with its own.
pub const OTHER_DNS: Host = Host::public(54, 0x54);
/// The server that policies of tests allow.
pub const ALLOWED: Host = Host::public(10, 0x10);
/// A server that policies of tests do not allow.
pub const BLOCKED: Host = Host::public(20, 0x20);
/// Where the chain of `alias.allowed.test` ends.
pub const CDN: Host = Host::public(30, 0x30);
/// A git server.
pub const GIT: Host = Host::public(40, 0x40);
/// A package index.
pub const PKG: Host = Host::public(60, 0x60);
/// Every name below `wild.test`.
pub const WILD: Host = Host::public(80, 0x80);
/// A server in a private network.
pub const PRIVATE: Host = Host {
    v4: Ipv4Addr::new(10, 77, 0, 9),
    v6: Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 9),
};
/// A cloud's metadata service.
pub const METADATA: Host = Host {
    v4: Ipv4Addr::new(169, 254, 169, 254),
    v6: Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
};

/// Ports with HTTP.
pub(crate) const HTTP_PORTS: &[u16] = &[
    80, 8000, 8001, 8002, 8003, 8004, 8005, 8006, 8007, 8008, 8009, 8010,
];
/// Ports with HTTPS.
pub(crate) const HTTPS_PORTS: &[u16] = &[443, 8443];
/// TCP ports with a banner and an echo.
pub(crate) const ECHO_PORTS: &[u16] = &[22, 25, 5432];
/// UDP ports with an echo.
pub(crate) const UDP_ECHO_PORTS: &[u16] = &[123, 443, 5000];
