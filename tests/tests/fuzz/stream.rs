//! The parsers that the programs in the kernel run, against the references beside this file.
//!
//! The direction that matters is asserted for every input: what [`Stream`] lets through, the
//! reference reads the same way, and with it rustls and httparse. The other direction, that a good
//! input passes, is asserted too, so that the fence does not refuse what clients send.

use jobfence_abi::{Bytes, Checks, Step, Stream};
use proptest::prelude::*;

use crate::{http, tls};

/// What came of a byte string.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reading {
    /// The names that were asked about, in order.
    names: Vec<String>,
    /// How many ClientHellos were complete and in order.
    hellos: usize,
    /// `Step::END`, `DONE` or `REFUSED`.
    end: Step,
}

struct Slice<'a> {
    bytes: &'a [u8],
    first: u32,
}

impl Bytes for Slice<'_> {
    fn at(&self, position: u32) -> u32 {
        let at = position.wrapping_sub(self.first) as usize;
        self.bytes.get(at).map_or(256, |&byte| byte.into())
    }
}

/// Reads `bytes` in segments that end at `cuts`, with sequence numbers that wrap on the way.
fn read(checks: Checks, bytes: &[u8], cuts: &[prop::sample::Index]) -> Reading {
    let first = u32::MAX - 50;
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    let mut stream = Stream::new(first, checks, 1);
    let mut reading = Reading {
        names: Vec::new(),
        hellos: 0,
        end: Step::END,
    };
    for end in ends {
        let seen = Slice {
            bytes: &bytes[..end],
            first,
        };
        let before = stream.next;
        let mut steps = 0;
        loop {
            let step = stream.step(&seen, first.wrapping_add(u32::try_from(end).unwrap()));
            match step {
                Step::MORE => {}
                Step::NAME => reading.names.push(stream.name().map(char::from).collect()),
                Step::HELLO => reading.hellos += 1,
                Step::END => break,
                end => return Reading { end, ..reading },
            }
            steps += 1;
            let read = stream.next.wrapping_sub(before);
            assert!(steps <= read + Stream::IDLE_STEPS, "reads for ever");
        }
    }
    reading
}

fn canonical(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

/// Whether no rule can allow `name`.
fn never(name: &str) -> bool {
    name.is_empty() || name.parse::<std::net::Ipv4Addr>().is_ok()
}

proptest! {
    #![proptest_config(crate::config())]

    #[test]
    fn a_hello_passes_for_the_name_that_others_read(
        hello in tls::hello(), next in tls::next(), damage in tls::damage(3), later in tls::damage(2),
        within in prop::sample::select(vec![8, 100, 8192]),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let hello = hello.bytes();
        let damaged = [
            hello.clone(),
            tls::damaged(hello.clone(), &damage, within),
            [hello.as_slice(), &next].concat(),
            [hello, tls::damaged(next, &later, within)].concat(),
        ];
        for bytes in damaged {
            let got = read(Checks::TLS, &bytes, &cuts);
            let expected = tls::connection(&bytes);
            let names: Vec<&str> = got.names.iter().map(|name| canonical(name)).collect();
            let count = expected.names.len();
            prop_assert!(names.get(..count).is_some_and(|names| names == expected.names), "{:?} is {:?} by the reference", got, expected);
            let good = match (expected.end, got.end) {
                (tls::End::Open, Step::END) | (tls::End::Over, Step::DONE) => names.len() == count && got.hellos == count,
                // The reference sees earlier that lengths cannot agree. A name can be known before
                // its ClientHello is complete.
                (tls::End::Refused(tls::Refusal::Incomplete | tls::Refusal::Length), Step::END) => got.hellos == count,
                // What is no name is asked about like one, and never allowed.
                (tls::End::Refused(tls::Refusal::Name), Step::DONE | Step::END) => never(names[count]),
                (tls::End::Refused(_), Step::REFUSED) => got.hellos == count || never(names[count]),
                _ => false,
            };
            prop_assert!(good, "{:?} is {:?} by the reference\n{:02x?}", got, expected, bytes);
        }
    }

    #[test]
    fn a_request_passes_for_the_host_that_others_read(
        requests in http::requests(), damage in tls::damage(2), within in prop::sample::select(vec![40, 8192]),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let bytes: Vec<u8> = requests
            .iter()
            .flat_map(|request| [request.head.bytes(), request.body.clone()].concat())
            .collect();
        for bytes in [tls::damaged(bytes.clone(), &damage, within), bytes] {
            let got = read(Checks::HTTP, &bytes, &cuts);
            let expected = http::connection(&bytes);
            // Up to where it was refused, the stream has asked about every host that is named.
            let names: Vec<&str> = got.names.iter().map(|name| canonical(name)).collect();
            match got.end {
                Step::END => {
                    // A target that names another host passes when both hosts are allowed: either
                    // reading is one that the job may have.
                    let both = expected.end == Some(http::Refusal::Target) && names.len() > expected.hosts.len() + 1;
                    // What is no name is asked about like one, and never allowed.
                    if expected.end == Some(http::Refusal::Host) && names.iter().any(|name| never(name)) {
                        continue;
                    }
                    prop_assert!(
                        both || matches!(expected.end, None | Some(http::Refusal::Incomplete)),
                        "{:?} passes, by the reference {:?}\n{}", got, expected, bytes.escape_ascii()
                    );
                    for host in &expected.hosts {
                        prop_assert!(names.contains(&host.as_str()), "{} is not in {:?}", host, names);
                    }
                }
                Step::REFUSED => {
                    // Nothing can be checked in a tunnel, so it is refused whatever its name.
                    let tunnel = requests.iter().any(|request| request.head.method.eq_ignore_ascii_case("connect"));
                    prop_assert!(
                        tunnel || expected.end.is_some(),
                        "{:?} is refused, by the reference it is good\n{}", got, bytes.escape_ascii()
                    );
                }
                _ => prop_assert!(false, "{:?}", got),
            }
        }
    }
}
