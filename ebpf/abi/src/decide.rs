//! The decision.

use crate::{Addr, Checks, DNS_PORT, Flow, Grants, Job, JobState, Reason, proto};

/// Who listens at a loopback destination. Plain numbers, since verifiers before Linux 6.7 can
/// lose a live branch of a `match` on an enum (<https://github.com/aya-rs/aya/issues/1584>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub u32);

impl Peer {
    /// Nobody listens there.
    pub const NONE: Self = Self(0);
    /// A socket of the same job.
    pub const INSIDE: Self = Self(1);
    /// A socket of anybody else.
    pub const OUTSIDE: Self = Self(2);
}

/// A decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Allowed or denied, and why.
    pub reason: Reason,
    /// What an allowed connection has to show still.
    pub checks: Checks,
}

impl From<Reason> for Verdict {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self {
            reason,
            checks: Checks::NONE,
        }
    }
}

/// What a decision asks of the world, so that the kernel and a test can each answer in their own
/// way.
pub trait Rules {
    /// The grants of the longest prefix that holds `dst`.
    fn grants(&self, dst: &Addr) -> Option<&Grants>;
    /// Who listens at `flow`, which goes to a loopback address. The agent gives the listeners of a
    /// job's resolver the job's mark, so they are inside.
    fn peer(&self, flow: &Flow) -> Peer;
}

/// Decides about `flow` of `job`.
///
/// The order is the meaning: what the fence itself needs, then what no rule can allow, then
/// loopback, then the rules. In audit mode the answer is the same; whether it is enforced is the
/// caller's affair.
#[inline(always)]
pub fn decide<R: Rules>(flow: &Flow, job: &Job, rules: &R) -> Verdict {
    if job.state == JobState::CLOSED {
        return Reason::CLOSED.into();
    }
    let has_ports = flow.proto == proto::TCP || flow.proto == proto::UDP;
    let peer = if has_ports && flow.dst.is_loopback() {
        rules.peer(flow)
    } else {
        Peer::OUTSIDE
    };
    // While there is no agent, its ports are for whoever takes them.
    if peer == Peer::INSIDE && job.is_resolver(flow) {
        return Reason::RESOLVER.into();
    }
    if has_ports && flow.port == DNS_PORT {
        return Reason::RESOLVER_BYPASS.into();
    }
    if peer != Peer::OUTSIDE {
        // Nobody: the kernel answers with a reset or an ICMP error that never leaves.
        return Reason::INSIDE.into();
    }
    let Some(grants) = rules.grants(&flow.dst) else {
        return unnamed(flow, has_ports).into();
    };
    if let Some(checks) = grants.checks(flow.proto, flow.port) {
        return Verdict {
            reason: Reason::ALLOWED,
            checks,
        };
    }
    if grants.is_empty() {
        return unnamed(flow, has_ports).into();
    }
    if !has_ports || grants.contains_port(flow.port) {
        return Reason::PROTOCOL.into();
    }
    Reason::PORT.into()
}

/// One word for an attempt and what was said of it, to know a repetition by. Keyed, so that a job
/// cannot look for two attempts that share one. The mixing is that of splitmix64
/// (<https://doi.org/10.1145/2714064.2660195>).
#[must_use]
#[inline(always)]
pub const fn digest(flow: &Flow, reason: Reason, job: &Job) -> u64 {
    let [a, b, c, d] = flow.dst.words;
    let tail = (flow.port as u64) << 16 | (flow.proto as u64) << 8 | reason.0 as u64;
    let mut word = mix(job.key ^ ((a as u64) << 32 | b as u64));
    word = mix(word ^ ((c as u64) << 32 | d as u64));
    word = mix(word ^ ((job.generation as u64) << 32 | tail));
    // 0 is what a socket has before its first report.
    word | 1
}

#[inline(always)]
pub(crate) const fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The reason for a destination that no rule names.
#[inline(always)]
fn unnamed(flow: &Flow, has_ports: bool) -> Reason {
    if flow.dst.is_metadata() {
        Reason::METADATA
    } else if flow.dst.is_multicast() {
        Reason::MULTICAST
    } else if flow.dst.is_loopback() {
        Reason::LOOPBACK
    } else if has_ports {
        Reason::NO_RULE
    } else {
        Reason::PROTOCOL
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::PortRange;

    /// The same grants everywhere, and the same listener behind every loopback port.
    struct Everywhere(Option<Grants>, Peer);

    impl Rules for Everywhere {
        fn grants(&self, _: &Addr) -> Option<&Grants> {
            self.0.as_ref()
        }

        fn peer(&self, _: &Flow) -> Peer {
            self.1
        }
    }

    const JOB: Job = Job {
        state: JobState::ENFORCE,
        generation: 1,
        resolver_v4: 5300,
        resolver_v6: 0,
        id: 1,
        key: 7,
        rate: 0,
        pad: 0,
        upload: 0,
    };

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn flow(dst: &str, port: u16, proto: u8) -> Flow {
        Flow::new(addr(dst), port, proto)
    }

    fn https() -> Everywhere {
        let grants = Grants::new(&[PortRange::new(proto::TCP, 443, 443)]);
        Everywhere(grants, Peer::OUTSIDE)
    }

    fn everything() -> Everywhere {
        let range = |proto| PortRange::new(proto, 0, u16::MAX);
        let grants = Grants::new(&[range(proto::TCP), range(proto::UDP)]);
        Everywhere(grants, Peer::OUTSIDE)
    }

    #[test]
    fn each_denial_has_its_own_reason() {
        let nothing = Everywhere(None, Peer::OUTSIDE);
        for (dst, port, proto, rules, reason) in [
            ("198.51.100.1", 443, proto::TCP, https(), Reason::ALLOWED),
            ("198.51.100.1", 444, proto::TCP, https(), Reason::PORT),
            ("198.51.100.1", 443, proto::UDP, https(), Reason::PROTOCOL),
            ("198.51.100.1", 0, proto::ICMP, https(), Reason::PROTOCOL),
            ("198.51.100.1", 443, proto::TCP, nothing, Reason::NO_RULE),
            ("127.0.0.1", 443, proto::TCP, https(), Reason::ALLOWED),
            ("127.0.0.1", 80, proto::TCP, https(), Reason::PORT),
        ] {
            let got = decide(&flow(dst, port, proto), &JOB, &rules).reason;
            assert_eq!(got, reason, "{dst} {port}: {}", got.word());
        }
        for (dst, reason) in [
            ("169.254.169.254", Reason::METADATA),
            ("fd00:ec2::254", Reason::METADATA),
            ("224.0.0.251", Reason::MULTICAST),
            ("ff02::fb", Reason::MULTICAST),
            ("127.0.0.1", Reason::LOOPBACK),
            ("::1", Reason::LOOPBACK),
        ] {
            for rules in [None, Some(Grants::NONE)].map(|grants| Everywhere(grants, Peer::OUTSIDE))
            {
                let got = decide(&flow(dst, 80, proto::TCP), &JOB, &rules).reason;
                assert_eq!(got, reason, "{dst}: {}", got.word());
            }
        }
    }

    #[test]
    fn loopback_is_free_inside_the_job_only() {
        let flow = flow("127.0.0.1", 8080, proto::TCP);
        let with = |peer| decide(&flow, &JOB, &Everywhere(None, peer)).reason;
        assert_eq!(with(Peer::INSIDE), Reason::INSIDE);
        assert_eq!(with(Peer::NONE), Reason::INSIDE);
        assert_eq!(with(Peer::OUTSIDE), Reason::LOOPBACK);
        // Elsewhere the peer does not matter.
        let away = Flow::new(addr("198.51.100.1"), 8080, proto::TCP);
        let verdict = decide(&away, &JOB, &Everywhere(None, Peer::INSIDE)).reason;
        assert_eq!(verdict, Reason::NO_RULE);
    }

    #[test]
    fn the_resolver_is_who_has_its_port_and_the_jobs_mark() {
        let to = |port| flow("127.0.0.1", port, proto::UDP);
        let of = |port, peer| decide(&to(port), &JOB, &Everywhere(None, peer)).reason;
        assert_eq!(of(5300, Peer::INSIDE), Reason::RESOLVER);
        assert_eq!(of(5300, Peer::OUTSIDE), Reason::LOOPBACK);
        assert_eq!(of(5300, Peer::NONE), Reason::INSIDE);
        assert_eq!(of(5301, Peer::INSIDE), Reason::INSIDE);
    }

    #[test]
    fn a_job_without_a_resolver_for_a_family_has_none_at_port_0() {
        let verdict = decide(&flow("::1", 0, proto::UDP), &JOB, &https()).reason;
        assert_eq!(verdict, Reason::PORT);
    }

    #[test]
    fn a_digest_tells_attempts_apart() {
        let base = flow("198.51.100.1", 443, proto::TCP);
        let other = [
            flow("198.51.100.2", 443, proto::TCP),
            flow("2001:db8::1", 443, proto::TCP),
            flow("198.51.100.1", 444, proto::TCP),
            flow("198.51.100.1", 443, proto::UDP),
        ];
        let digest_of = |flow: &Flow| digest(flow, Reason::NO_RULE, &JOB);
        assert!(other.iter().all(|flow| digest_of(flow) != digest_of(&base)));
        assert_ne!(digest(&base, Reason::PORT, &JOB), digest_of(&base));
        let later = Job {
            generation: 2,
            ..JOB
        };
        assert_ne!(digest(&base, Reason::NO_RULE, &later), digest_of(&base));
    }

    proptest! {
        #[test]
        fn a_closed_job_reaches_nothing(word: u128, port: u16, proto: u8) {
            let closed = Job { state: JobState::CLOSED, ..JOB };
            let flow = Flow::new(IpAddr::from(word.to_be_bytes()).into(), port, proto);
            prop_assert_eq!(decide(&flow, &closed, &everything()), Reason::CLOSED.into());
        }

        #[test]
        fn no_rule_opens_the_way_to_another_dns_server(word: u128, tcp: bool) {
            let proto = if tcp { proto::TCP } else { proto::UDP };
            let flow = Flow::new(IpAddr::from(word.to_be_bytes()).into(), 53, proto);
            prop_assert_eq!(decide(&flow, &JOB, &everything()), Reason::RESOLVER_BYPASS.into());
        }

        #[test]
        fn what_is_allowed_is_in_a_range(word: u32, port: u16, proto: u8, first: u16, last: u16) {
            let range = PortRange::new(proto::TCP, first, last);
            let rules = Everywhere(Grants::new(&[range]), Peer::OUTSIDE);
            let flow = Flow::new(IpAddr::from(word.to_be_bytes()).into(), port, proto);
            let allowed = decide(&flow, &JOB, &rules).reason == Reason::ALLOWED;
            prop_assert_eq!(allowed, range.contains(proto, port) && port != 53);
        }

        #[test]
        fn the_mode_does_not_change_the_verdict(word: u32, port: u16, proto: u8) {
            let audit = Job { state: JobState::AUDIT, ..JOB };
            let flow = Flow::new(IpAddr::from(word.to_be_bytes()).into(), port, proto);
            prop_assert_eq!(decide(&flow, &audit, &https()), decide(&flow, &JOB, &https()));
        }
    }
}
