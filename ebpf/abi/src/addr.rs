//! Addresses as the kernel side handles them, and the ranges that have a meaning of their own.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An IPv4 or IPv6 address, in one form for both.
///
/// Sixteen bytes in network byte order, held as the four words that the kernel's contexts offer
/// (`bpf_sock_addr.user_ip6`, each word's bytes in network order in memory). IPv4 addresses are
/// IPv4-mapped, `::ffff:a.b.c.d` (RFC 4291 section 2.5.5.2), so an IPv4 destination is the same
/// key whether a program reached it over an IPv4 socket or over an IPv6 one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Addr {
    /// The words of the address; the bytes of each are in network order.
    pub words: [u32; 4],
}

/// The third word of an IPv4-mapped address.
const V4_MAPPED: u32 = 0xffff_u32.to_be();

impl Addr {
    /// `127.0.0.1`, where a fenced job's resolver listens for IPv4 sockets.
    pub const LOCALHOST_V4: Self = Self::v4(0x7f00_0001_u32.to_be());
    /// `::1`, where a fenced job's resolver listens for IPv6 sockets.
    pub const LOCALHOST_V6: Self = Self {
        words: [0, 0, 0, 1_u32.to_be()],
    };

    /// An IPv4 address from a word in network byte order.
    #[must_use]
    #[inline(always)]
    pub const fn v4(word: u32) -> Self {
        Self {
            words: [0, 0, V4_MAPPED, word],
        }
    }

    /// Whether this is an IPv4 address.
    #[must_use]
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == V4_MAPPED
    }

    /// Whether this is `0.0.0.0` or `::`. Linux connects such a destination to the loopback
    /// address of its family.
    #[must_use]
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.words[0] == 0
            && self.words[1] == 0
            && (self.words[2] == 0 || self.words[2] == V4_MAPPED)
            && self.words[3] == 0
    }

    /// The address that a packet to this one carries: Linux sends to the loopback address what
    /// is addressed to the unspecified one (`ip_route_output_key_hash`, `tcp_v6_connect`).
    #[must_use]
    #[inline(always)]
    pub const fn effective(&self) -> Self {
        if !self.is_unspecified() {
            *self
        } else if self.is_v4() {
            Self::LOCALHOST_V4
        } else {
            Self::LOCALHOST_V6
        }
    }

    /// Whether this is in `127.0.0.0/8` or is `::1`.
    #[must_use]
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            self.octet(0) == 127
        } else {
            self.words[0] == 0
                && self.words[1] == 0
                && self.words[2] == 0
                && self.words[3] == 1_u32.to_be()
        }
    }

    /// Whether packets to this address go to a group: IPv4 and IPv6 multicast and the limited
    /// broadcast address `255.255.255.255`.
    #[must_use]
    #[inline(always)]
    pub const fn is_multicast(&self) -> bool {
        if self.is_v4() {
            self.octet(0) & 0xf0 == 0xe0 || self.words[3] == u32::MAX
        } else {
            self.words[0].to_ne_bytes()[0] == 0xff
        }
    }

    /// Whether a cloud's metadata service answers here: `169.254.169.254` (most clouds),
    /// `168.63.129.16` (Azure's wire server), `100.100.100.200` (Alibaba) and `fd00:ec2::254`
    /// (EC2 over IPv6). Such a service hands credentials to whoever asks.
    #[must_use]
    #[inline(always)]
    pub const fn is_metadata(&self) -> bool {
        if self.is_v4() {
            let word = u32::from_be(self.words[3]);
            word == 0xa9fe_a9fe || word == 0xa83f_8110 || word == 0x6464_64c8
        } else {
            self.words[0] == 0xfd00_0ec2_u32.to_be()
                && self.words[1] == 0
                && self.words[2] == 0
                && self.words[3] == 0x0254_u32.to_be()
        }
    }

    /// The `index`th octet of an IPv4 address.
    #[inline(always)]
    const fn octet(&self, index: usize) -> u8 {
        self.words[3].to_ne_bytes()[index & 3]
    }
}

/// Every address that [`Addr::is_metadata`] knows, for user space to enumerate.
impl Addr {
    /// The metadata services' addresses.
    pub const METADATA: [IpAddr; 4] = [
        IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
        IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
        IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254)),
    ];
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        let octets = match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        zerocopy::transmute!(octets)
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> Self {
        let octets: [u8; 16] = zerocopy::transmute!(addr);
        Ipv6Addr::from(octets).to_canonical()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn an_address_survives_the_way_to_the_kernel_and_back() {
        for text in [
            "192.0.2.7",
            "::",
            "0.0.0.0",
            "2001:db8::1",
            "::1",
            "255.255.255.255",
        ] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Addr::from(ip)), ip);
        }
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address() {
        assert_eq!(addr("::ffff:192.0.2.7"), addr("192.0.2.7"));
        assert!(addr("192.0.2.7").is_v4());
        assert!(!addr("2001:db8::1").is_v4());
    }

    #[test]
    fn ranges_end_where_they_should() {
        assert!(addr("127.0.0.1").is_loopback() && addr("127.255.255.255").is_loopback());
        assert!(addr("::1").is_loopback());
        for outside in [
            "126.255.255.255",
            "128.0.0.0",
            "::2",
            "::",
            "2001:db8::1",
            "::7f00:1",
        ] {
            assert!(!addr(outside).is_loopback(), "{outside}");
        }
        for group in ["224.0.0.1", "239.255.255.255", "255.255.255.255", "ff02::1"] {
            assert!(addr(group).is_multicast(), "{group}");
        }
        for host in ["223.255.255.255", "240.0.0.1", "255.255.255.254", "fe80::1"] {
            assert!(!addr(host).is_multicast(), "{host}");
        }
    }

    #[test]
    fn the_list_of_metadata_services_is_the_one_that_the_kernel_knows() {
        for ip in Addr::METADATA {
            assert!(Addr::from(ip).is_metadata(), "{ip}");
        }
        for near in [
            "169.254.169.253",
            "169.254.169.255",
            "fd00:ec2::253",
            "fd00:ec2:1::254",
        ] {
            assert!(!addr(near).is_metadata(), "{near}");
        }
    }

    #[test]
    fn the_unspecified_address_leads_to_loopback() {
        assert_eq!(addr("0.0.0.0").effective(), Addr::LOCALHOST_V4);
        assert_eq!(addr("::").effective(), Addr::LOCALHOST_V6);
        assert_eq!(addr("192.0.2.7").effective(), addr("192.0.2.7"));
    }
}
