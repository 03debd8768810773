//! What an upstream answer means: the addresses that its CNAME chain leads to, and which of them
//! a name may lead a job to.
//!
//! Whoever controls a zone chooses its addresses, so an allowed name must not open the runner's
//! own network (DNS rebinding). Nothing here does I/O.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::{DNSClass, Name as WireName, RData, Record, RecordType};
use jobfence_abi::Addr;
use jobfence_policy::{Name, Rule};

use super::message;

/// Whether a name may lead to an address, from harmless to never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// Any rule that allows the name suffices.
    Public,
    /// Only a rule with `private: true` may lead here: the address belongs to some network of
    /// the host's surroundings, or to none.
    Private,
    /// No name may lead here: loopback, the unspecified address (which Linux sends to loopback),
    /// groups and metadata services. They need a rule for the address itself.
    Never,
}

/// The class of `ip`. Addresses that carry an IPv4 address are never better than that one.
pub(super) fn classify(ip: IpAddr) -> Class {
    let addr = Addr::from(ip);
    if addr.is_unspecified() || addr.is_loopback() || addr.is_multicast() || addr.is_metadata() {
        return Class::Never;
    }
    match ip {
        IpAddr::V4(ip) => classify_v4(ip),
        IpAddr::V6(ip) => classify_v6(ip),
    }
}

fn classify_v4(ip: Ipv4Addr) -> Class {
    let [a, b, ..] = ip.octets();
    match a {
        // "This network", RFC 1122 section 3.2.1.3: no host has such an address.
        0 => Class::Never,
        // Shared address space, RFC 6598: 100.64.0.0/10.
        100 if b & 0xc0 == 0x40 => Class::Private,
        // Reserved, RFC 1112 section 4: 240.0.0.0/4.
        240.. => Class::Private,
        _ if ip.is_private() || ip.is_link_local() => Class::Private,
        _ => Class::Public,
    }
}

fn classify_v6(ip: Ipv6Addr) -> Class {
    let segments = ip.segments();
    let v4 = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        classify(Ipv4Addr::new(a, b, c, d).into())
    };
    match segments {
        // IPv4-mapped and the deprecated IPv4-compatible, RFC 4291 section 2.5.5. No zone has a
        // reason to publish them.
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] => Class::Private.max(v4(high, low)),
        // NAT64, RFC 6052 section 2.1: the IPv4 address is the end of the address.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        // NAT64 of some local network, RFC 8215.
        [0x64, 0xff9b, 1, ..] => Class::Private,
        // 6to4, RFC 3056 section 2: the IPv4 address of the router follows the prefix.
        [0x2002, high, low, ..] => v4(high, low),
        // Teredo, RFC 4380 section 4: the server, and the client with every bit inverted.
        [0x2001, 0, high, low, _, _, not_high, not_low] => {
            v4(high, low).max(v4(!not_high, !not_low))
        }
        // Unique local (RFC 4193), link-local (RFC 4291) and site-local (RFC 3879).
        [0xfc00..=0xfdff | 0xfe80..=0xfeff, ..] => Class::Private,
        _ => Class::Public,
    }
}

/// The furthest class of address to which these rules let a name lead.
pub(super) fn furthest_class(rules: &[&Rule]) -> Class {
    if rules.iter().any(|rule| rule.private) {
        Class::Private
    } else {
        Class::Public
    }
}

/// Targets that a chain of CNAME records may have. hickory-resolver asks for eight more at most.
const MAX_CHAIN: usize = 16;

/// The part of an answer that belongs to the question.
#[derive(Debug, Default)]
pub(super) struct Chain {
    /// The CNAME records in order, then the address records.
    pub(super) records: Vec<Record>,
    /// The targets of the CNAME records, in order. A target that is no host name is followed
    /// but not listed.
    pub(super) names: Vec<Name>,
    /// The addresses of the last name.
    pub(super) addresses: Vec<IpAddr>,
}

impl Chain {
    /// Keeps the addresses for which `keep` holds, and their records.
    pub(super) fn retain(&mut self, keep: impl Fn(IpAddr) -> bool) {
        self.records
            .retain(|record| record.data.ip_addr().is_none_or(&keep));
        self.addresses.retain(|ip| keep(*ip));
    }
}

/// Follows the CNAME records of `answers` from `asked` and takes the addresses of type `kind` at
/// the end. What is not on the way is left out. `None` when the chain is longer than 16 or a loop.
pub(super) fn follow(asked: &WireName, kind: RecordType, answers: &[Record]) -> Option<Chain> {
    let mut chain = Chain::default();
    let mut at = asked;
    for _ in 0..=MAX_CHAIN {
        let here = || {
            answers
                .iter()
                .filter(|record| record.dns_class == DNSClass::IN && record.name == *at)
        };
        let alias = here().find_map(|record| match &record.data {
            RData::CNAME(target) => Some((record, &target.0)),
            _ => None,
        });
        let Some((record, target)) = alias else {
            let addresses = here().filter(|record| record.record_type() == kind);
            for record in addresses {
                let Some(ip) = record.data.ip_addr() else {
                    continue;
                };
                if !chain.addresses.contains(&ip) {
                    chain.addresses.push(ip);
                    chain.records.push(record.clone());
                }
            }
            return Some(chain);
        };
        chain.records.push(record.clone());
        chain
            .names
            .extend(message::host_name(&message::text(target)));
        at = target;
    }
    None
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::{A, AAAA, CNAME};
    use proptest::prelude::*;

    use super::*;

    fn class(text: &str) -> Class {
        classify(text.parse().unwrap())
    }

    #[test]
    fn addresses_of_the_surroundings_are_told_from_public_ones_at_every_border() {
        let table = [
            (
                Class::Public,
                "1.0.0.0 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 \
                 128.0.0.0 169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 192.0.2.1 \
                 192.167.255.255 192.169.0.0 198.51.100.1 203.0.113.1 223.255.255.255 \
                 2001:db8::1 2001:1::1 2000::1 fbff::1 64:ff9b::198.51.100.1 2002:c633:6401::1 \
                 2001:0:c633:6401:0:0:39cc:9bfe",
            ),
            (
                Class::Private,
                "10.0.0.0 10.255.255.255 100.64.0.0 100.127.255.255 169.254.0.1 172.16.0.0 \
                 172.31.255.255 192.168.0.0 192.168.255.255 240.0.0.0 255.255.255.254 \
                 fc00::1 fdff::1 fe80::1 fec0::1 feff::1 ::ffff:198.51.100.1 ::198.51.100.1 \
                 64:ff9b::10.0.0.1 64:ff9b:1::1 2002:0a00:0001::1 \
                 2001:0:0a00:1:0:0:39cc:9bfe 2001:0:c633:6401:0:0:f5ff:fffe",
            ),
            (
                Class::Never,
                "0.0.0.0 0.1.2.3 127.0.0.1 127.255.255.255 224.0.0.1 239.255.255.255 \
                 255.255.255.255 169.254.169.254 168.63.129.16 100.100.100.200 fd00:ec2::254 \
                 :: ::1 ff02::1 ::ffff:127.0.0.1 ::ffff:169.254.169.254 ::ffff:0.0.0.0 \
                 ::127.0.0.1 64:ff9b::169.254.169.254 64:ff9b::127.0.0.1 2002:7f00:1::1 \
                 2001:0:c633:6401:0:0:80ff:fffe",
            ),
        ];
        for (expected, addresses) in table {
            for text in addresses.split_whitespace() {
                assert_eq!(class(text), expected, "{text}");
            }
        }
    }

    proptest! {
        #[test]
        fn an_ipv4_address_inside_an_ipv6_one_is_never_taken_for_something_better(v4: u32) {
            let ip = Ipv4Addr::from(v4);
            let plain = classify(ip.into());
            let low = u128::from(v4);
            for carrier in [
                0xffff_u128 << 32 | low,
                0x0064_ff9b_u128 << 96 | low,
                0x2002_u128 << 112 | low << 80 | 1,
                0x2001_0000_u128 << 96 | 0xc633_6401_u128 << 64 | u128::from(!v4),
                0x2001_0000_u128 << 96 | low << 64 | 0x39cc_9bfe,
            ] {
                let carrier = Ipv6Addr::from(carrier);
                prop_assert!(classify(carrier.into()) >= plain, "{carrier} against {ip}");
            }
        }
    }

    fn wire(text: &str) -> WireName {
        WireName::from_ascii(text).unwrap()
    }

    fn a(owner: &str, ip: [u8; 4]) -> Record {
        Record::from_rdata(wire(owner), 60, RData::A(A(ip.into())))
    }

    fn alias(owner: &str, target: &str) -> Record {
        Record::from_rdata(wire(owner), 60, RData::CNAME(CNAME(wire(target))))
    }

    fn follow_a(answers: &[Record]) -> Option<Chain> {
        follow(&wire("a.test."), RecordType::A, answers)
    }

    #[test]
    fn only_what_the_chain_leads_to_is_taken() {
        let chain = follow_a(&[
            a("c.test.", [198, 51, 100, 3]),
            a("stray.test.", [198, 51, 100, 9]),
            alias("B.test.", "c.test."),
            alias("stray.test.", "a.test."),
            alias("a.test.", "b.test."),
            a("b.test.", [198, 51, 100, 8]),
            a("c.test.", [198, 51, 100, 3]),
            Record::from_rdata(wire("c.test."), 60, RData::AAAA(AAAA(Ipv6Addr::LOCALHOST))),
        ])
        .unwrap();
        assert_eq!(chain.addresses, [IpAddr::from([198, 51, 100, 3])]);
        let names: Vec<_> = chain.names.iter().map(Name::as_str).collect();
        assert_eq!(names, ["b.test", "c.test"]);
        assert_eq!(chain.records.len(), 3);
    }

    #[test]
    fn a_loop_and_an_endless_chain_are_refused() {
        assert!(follow_a(&[alias("a.test.", "b.test."), alias("b.test.", "a.test.")]).is_none());
        let long: Vec<_> = (0..40)
            .map(|i| {
                let owner = if i == 0 {
                    "a.test.".into()
                } else {
                    format!("n{i}.test.")
                };
                alias(&owner, &format!("n{}.test.", i + 1))
            })
            .collect();
        assert!(follow_a(&long).is_none());
        assert!(follow_a(&long[..MAX_CHAIN]).is_some());
        assert!(follow_a(&long[..=MAX_CHAIN]).is_none());
    }

    #[test]
    fn dropped_addresses_take_their_records_with_them() {
        let mut chain = follow_a(&[
            alias("a.test.", "b.test."),
            a("b.test.", [10, 0, 0, 1]),
            a("b.test.", [198, 51, 100, 1]),
        ])
        .unwrap();
        chain.retain(|ip| classify(ip) == Class::Public);
        assert_eq!(chain.addresses, [IpAddr::from([198, 51, 100, 1])]);
        assert_eq!(chain.records.len(), 2);
    }
}
