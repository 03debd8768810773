//! Sets of ports: what a rule's `ports` says, and the sums that are done with it.
//!
//! A set is a list of [`PortRange`]s. [`normalise`] gives every set one form: sorted by protocol
//! and port, disjoint, and with neighbours merged.

use jobfence_abi::{Checks, DNS_PORT, PortRange, proto};

use crate::error::{Fault, quote};

/// The port on which HTTP is checked unless a rule says otherwise.
const HTTP_PORT: u16 = 80;

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

/// `ranges` with what a rule for a host asks of connections to them: `tls` and `http` as its keys
/// say, `true` for `verify`. What they do not say is a ClientHello everywhere but on port 80, and
/// HTTP there.
pub(crate) fn checked(
    ranges: &[PortRange],
    tls: Option<bool>,
    http: Option<bool>,
) -> Vec<PortRange> {
    let checks = |port| {
        let tls = tls.unwrap_or(port != HTTP_PORT);
        let http = http.unwrap_or(port == HTTP_PORT);
        Checks((Checks::TLS.0 * u8::from(tls)) | (Checks::HTTP.0 * u8::from(http)))
    };
    let parts = ranges.iter().flat_map(|range| {
        if range.proto != proto::TCP {
            return vec![*range];
        }
        let one = [PortRange::new(proto::TCP, HTTP_PORT, HTTP_PORT)];
        let rest = subtract(&[*range], &one);
        let mut parts: Vec<_> = rest
            .into_iter()
            .map(|part| part.checked(checks(part.first)))
            .collect();
        if range.contains(proto::TCP, HTTP_PORT) {
            parts.push(one[0].checked(checks(HTTP_PORT)));
        }
        parts
    });
    normalise(parts.collect())
}

/// The same ports, sorted by protocol and port, disjoint, neighbours merged. Ports that several
/// ranges hold ask of connections what [`Checks::or`] says.
pub(crate) fn normalise(ranges: Vec<PortRange>) -> Vec<PortRange> {
    // Each range as the place where it begins and the one behind its end.
    let mut edges: Vec<(u8, u32, bool, Checks)> = ranges
        .into_iter()
        .filter(|range| range.first <= range.last)
        .flat_map(|range| {
            let end = u32::from(range.last) + 1;
            [
                (range.proto, u32::from(range.first), true, range.checks),
                (range.proto, end, false, range.checks),
            ]
        })
        .collect();
    edges.sort_unstable_by_key(|&(proto, place, ..)| (proto, place));
    let mut normal: Vec<PortRange> = Vec::new();
    // How many ranges are open, by their checks.
    let mut open = [0_usize; 4];
    for (index, &(proto, place, begins, checks)) in edges.iter().enumerate() {
        let count = &mut open[usize::from(checks.0 & 3)];
        *count = if begins { *count + 1 } else { *count - 1 };
        let Some(&(_, next, ..)) = edges.get(index + 1) else {
            break;
        };
        let kinds = (0..).zip(open).filter(|&(_, count)| count > 0);
        let Some(checks) = kinds.map(|(kind, _)| Checks(kind)).reduce(Checks::or) else {
            continue;
        };
        // Both are ports: something is open from `place` to in front of `next`.
        let (Ok(first), Ok(last)) = (u16::try_from(place), u16::try_from(next.wrapping_sub(1)))
        else {
            continue;
        };
        if place == next {
            continue;
        }
        match normal.last_mut() {
            Some(before)
                if (before.proto, before.checks) == (proto, checks)
                    && u32::from(before.last) + 1 == place =>
            {
                before.last = last;
            }
            _ => normal.push(PortRange::new(proto, first, last).checked(checks)),
        }
    }
    normal
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

/// The ports that are in both sets, with what satisfies both; both normalised, and so is the
/// result. A port of which one asks for TLS and the other for HTTP is in neither.
pub(crate) fn intersect(a: &[PortRange], b: &[PortRange]) -> Vec<PortRange> {
    let common = a.iter().flat_map(|a| {
        b.iter()
            .filter(|b| b.proto == a.proto)
            .filter_map(|b| Some((b, both(a.checks, b.checks)?)))
            .map(|(b, checks)| PortRange {
                first: a.first.max(b.first),
                last: a.last.min(b.last),
                proto: a.proto,
                checks,
            })
    });
    // Where they do not meet, the range ends before it begins, and is left out.
    normalise(common.collect())
}

/// What a connection must begin with to satisfy both; `None` when nothing does. It is to
/// [`Checks::or`] what "and" is to "or": asking nothing accepts everything.
fn both(a: Checks, b: Checks) -> Option<Checks> {
    match (a.is_none(), b.is_none()) {
        (true, _) => Some(b),
        (_, true) => Some(a),
        _ => Some(Checks(a.0 & b.0)).filter(|checks| !checks.is_none()),
    }
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
            0_u8..4,
        )
            .prop_map(|(proto, a, b, checks)| {
                PortRange::new(proto, a.min(b), a.max(b)).checked(Checks(checks))
            });
        prop::collection::vec(range, 0..6)
    }

    fn holds(ranges: &[PortRange], proto: u8, port: u16) -> bool {
        ranges.iter().any(|range| range.contains(proto, port))
    }

    /// What is asked at a port, by going through all ranges.
    fn asked(ranges: &[PortRange], proto: u8, port: u16) -> Option<Checks> {
        let at = ranges.iter().filter(|range| range.contains(proto, port));
        at.map(|range| range.checks).reduce(Checks::or)
    }

    fn is_normal(ranges: &[PortRange]) -> bool {
        ranges.iter().all(|range| range.first <= range.last)
            && ranges.windows(2).all(|pair| {
                let end = (pair[0].proto, u32::from(pair[0].last) + 1);
                let next = (pair[1].proto, u32::from(pair[1].first));
                end < next || end == next && pair[0].checks != pair[1].checks
            })
    }

    proptest! {
        #[test]
        fn normalised_ranges_are_disjoint_and_the_same_set(ranges in any_ranges()) {
            let normal = normalise(ranges.clone());
            prop_assert!(is_normal(&normal), "{normal:?}");
            for port in (0..200).chain(65_400..=u16::MAX) {
                for proto in [proto::TCP, proto::UDP] {
                    prop_assert_eq!(asked(&normal, proto, port), asked(&ranges, proto, port));
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
        fn an_intersection_holds_what_both_sets_hold_and_asks_what_both_ask(
            a in any_ranges(), b in any_ranges(),
        ) {
            let (a, b) = (normalise(a), normalise(b));
            let common = intersect(&a, &b);
            prop_assert!(is_normal(&common), "{common:?}");
            // What a connection may begin with: neither, TLS, HTTP.
            let accepts = |checks: Option<Checks>, begins: Checks| {
                checks.is_some_and(|checks| checks.is_none() || checks.has(begins))
            };
            for port in (0..200).chain(65_400..=u16::MAX) {
                for proto in [proto::TCP, proto::UDP] {
                    for begins in [Checks::NONE, Checks::TLS, Checks::HTTP] {
                        prop_assert_eq!(
                            accepts(asked(&common, proto, port), begins),
                            accepts(asked(&a, proto, port), begins)
                                && accepts(asked(&b, proto, port), begins),
                            "{} {}", proto, port
                        );
                    }
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
    fn port_80_is_checked_for_http_and_every_other_for_tls() {
        let all = [
            PortRange::new(proto::TCP, 79, 81),
            PortRange::new(proto::UDP, 80, 80),
        ];
        let asked = |tls, http| {
            let ranges = checked(&all, tls, http);
            [79, 80, 81].map(|port| asked(&ranges, proto::TCP, port).unwrap().0)
        };
        assert_eq!(asked(None, None), [1, 2, 1]);
        assert_eq!(asked(Some(false), None), [0, 2, 0]);
        assert_eq!(asked(None, Some(false)), [1, 0, 1]);
        assert_eq!(asked(None, Some(true)), [3, 2, 3]);
        assert_eq!(asked(Some(true), None), [1, 3, 1]);
        assert_eq!(asked(Some(false), Some(false)), [0, 0, 0]);
        let udp = checked(&all, None, None)[3];
        assert_eq!(udp, PortRange::new(proto::UDP, 80, 80));
    }

    #[test]
    fn nothing_is_left_of_anything_without_every_port() {
        assert_eq!(subtract(&EVERY, &EVERY), []);
        assert_eq!(subtract(&[HTTPS], &EVERY), []);
    }
}
