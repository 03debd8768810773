//! Sets of ports: what a rule's `ports` says, and the sums that are done with it.
//!
//! A set is a list of [`PortRange`]s. [`normalise`] gives every set one form: sorted by protocol
//! and port, disjoint, and with neighbours merged.

use jobfence_abi::{DNS_PORT, PortRange, proto};

use crate::error::{Fault, quote};

/// What an `allow` rule without `ports` allows.
pub(crate) const HTTPS: PortRange = PortRange::new(proto::TCP, 443, 443);

/// Every port that can be allowed at all.
pub(crate) const EVERY: [PortRange; 2] = [
    PortRange::new(proto::TCP, 0, u16::MAX),
    PortRange::new(proto::UDP, 0, u16::MAX),
];

/// DNS, which the fence itself takes to the job's resolver: no rule can allow it.
pub(crate) const DNS: [PortRange; 2] = [
    PortRange::new(proto::TCP, DNS_PORT, DNS_PORT),
    PortRange::new(proto::UDP, DNS_PORT, DNS_PORT),
];

/// Parses one item of `ports`: `443`, `8000-8010`, `123/udp`, `8000-8010/tcp`.
pub(crate) fn parse(text: &str) -> Result<PortRange, Fault> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol {
        "tcp" => proto::TCP,
        "udp" => proto::UDP,
        "icmp" => {
            return Err(Fault::new(
                "ICMP is not supported by this version of jobfence",
            ));
        }
        other => {
            return Err(Fault::new(format!("unknown protocol {}", quote(other)))
                .hint("`tcp` and `udp` have ports"));
        }
    };
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let (first, last) = (port(first, text)?, port(last, text)?);
    if first > last {
        return Err(
            Fault::new(format!("the range {} ends before it begins", quote(text)))
                .hint(format!("did you mean {last}-{first}?")),
        );
    }
    if first == DNS_PORT && last == DNS_PORT {
        return Err(Fault::new("port 53 cannot be allowed or denied")
            .hint("DNS always goes to the job's own resolver, which answers for allowed names"));
    }
    Ok(PortRange::new(protocol, first, last))
}

fn port(digits: &str, whole: &str) -> Result<u16, Fault> {
    // A leading zero is an octal number to some readers of YAML.
    if digits.is_empty()
        || !digits.bytes().all(|b| b.is_ascii_digit())
        || (digits.len() > 1 && digits.starts_with('0'))
    {
        return Err(Fault::new(format!("{} is not a port", quote(whole)))
            .hint("ports are written as 443, 8000-8010, 123/udp or 8000-8010/udp"));
    }
    match digits.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(Fault::new(format!(
            "port {} is out of range",
            quote(digits).trim_matches('`')
        ))
        .hint("ports are 1 to 65535")),
    }
}

/// The same ports, sorted by protocol and port, disjoint, neighbours merged.
pub(crate) fn normalise(mut ranges: Vec<PortRange>) -> Vec<PortRange> {
    ranges.sort_unstable_by_key(|range| (range.proto, range.first, range.last));
    ranges.dedup_by(|next, last| {
        let touches = next.proto == last.proto && next.first <= last.last.saturating_add(1);
        if touches {
            last.last = last.last.max(next.last);
        }
        touches
    });
    ranges
}

/// The ports of `from` that are not in `less`; both normalised, and so is the result.
pub(crate) fn subtract(from: &[PortRange], less: &[PortRange]) -> Vec<PortRange> {
    let mut left = Vec::new();
    for range in from {
        // The first port that is still to be dealt with; `None` behind port 65535.
        let mut next = Some(range.first);
        for cut in less.iter().filter(|cut| cut.proto == range.proto) {
            let Some(first) = next.filter(|&first| first <= cut.last && cut.first <= range.last)
            else {
                continue;
            };
            if first < cut.first {
                left.push(PortRange {
                    last: cut.first - 1,
                    ..PortRange { first, ..*range }
                });
            }
            next = cut.last.checked_add(1);
        }
        if let Some(first) = next.filter(|&first| first <= range.last) {
            left.push(PortRange { first, ..*range });
        }
    }
    left
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Any set; low ports so that ranges meet, and the very last ones.
    pub(crate) fn any_ranges() -> impl Strategy<Value = Vec<PortRange>> {
        let port = prop_oneof![1_u16..80, 65_500_u16..=u16::MAX];
        let range = (
            prop_oneof![Just(proto::TCP), Just(proto::UDP)],
            port.clone(),
            port,
        )
            .prop_map(|(proto, a, b)| PortRange::new(proto, a.min(b), a.max(b)));
        prop::collection::vec(range, 0..6)
    }

    fn holds(ranges: &[PortRange], proto: u8, port: u16) -> bool {
        ranges.iter().any(|range| range.contains(proto, port))
    }

    fn is_normal(ranges: &[PortRange]) -> bool {
        ranges.iter().all(|range| range.first <= range.last)
            && ranges.windows(2).all(|pair| {
                (pair[0].proto, u32::from(pair[0].last) + 1)
                    < (pair[1].proto, u32::from(pair[1].first))
                    && pair[0].proto <= pair[1].proto
            })
    }

    proptest! {
        #[test]
        fn normalised_ranges_are_disjoint_and_the_same_set(ranges in any_ranges()) {
            let normal = normalise(ranges.clone());
            prop_assert!(is_normal(&normal), "{normal:?}");
            for port in (0..200).chain(65_400..=u16::MAX) {
                for proto in [proto::TCP, proto::UDP] {
                    prop_assert_eq!(holds(&normal, proto, port), holds(&ranges, proto, port));
                }
            }
        }

        #[test]
        fn subtraction_leaves_what_is_in_the_first_set_only(a in any_ranges(), b in any_ranges()) {
            let (a, b) = (normalise(a), normalise(b));
            let left = subtract(&a, &b);
            prop_assert!(is_normal(&left), "{left:?}");
            for port in (0..200).chain(65_400..=u16::MAX) {
                for proto in [proto::TCP, proto::UDP] {
                    prop_assert_eq!(
                        holds(&left, proto, port),
                        holds(&a, proto, port) && !holds(&b, proto, port)
                    );
                }
            }
        }

        #[test]
        fn a_range_means_what_it_says(a in 54_u16.., b in 54_u16..) {
            let (first, last) = (a.min(b), a.max(b));
            prop_assert_eq!(parse(&format!("{first}-{last}")), Ok(PortRange::new(proto::TCP, first, last)));
            prop_assert_eq!(parse(&format!("{a}/udp")), Ok(PortRange::new(proto::UDP, a, a)));
        }
    }

    #[test]
    fn nothing_is_left_of_anything_without_every_port() {
        assert_eq!(subtract(&EVERY, &EVERY), []);
        assert_eq!(subtract(&[HTTPS], &EVERY), []);
    }
}
