//! The program in the kernel and [`jobfence_abi::decide`] on the host give the same verdict, for
//! the same reason, on packets of all sorts. What connections say of names is in
//! `fuzz/program.rs`.
#![expect(
    clippy::unwrap_used,
    reason = "all of this is a test; clippy sees only functions with #[test] as such"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};

use jobfence_abi::{
    Addr, Event, Flow, Grants, Hook, JobState, Peer, PortRange, Reason, Rules, decide, proto,
};
use jobfence_tests::program::{Prefix, Program, job, packet};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

/// [`Rules`] without a kernel: the longest prefix by comparing all, and the ports on which
/// somebody listens.
struct HostRules<'a> {
    prefixes: &'a [Prefix],
    outside: [u16; 2],
}

impl Rules for HostRules<'_> {
    fn grants(&self, dst: &Addr) -> Option<&Grants> {
        let holds = |prefix: &&Prefix| matches(prefix, dst);
        let longest = self
            .prefixes
            .iter()
            .filter(holds)
            .max_by_key(|prefix| prefix.bits);
        longest.map(|prefix| &prefix.grants)
    }

    fn peer(&self, flow: &Flow) -> Peer {
        let [tcp, udp] = self.outside;
        let listens = flow.dst == Addr::LOCALHOST_V4
            && (flow.proto == proto::TCP && flow.port == tcp
                || flow.proto == proto::UDP && flow.port == udp);
        if listens { Peer::OUTSIDE } else { Peer::NONE }
    }
}

fn bits(addr: Addr) -> u128 {
    let octets: [u8; 16] = zerocopy::transmute!(addr);
    u128::from_be_bytes(octets)
}

fn matches(prefix: &Prefix, dst: &Addr) -> bool {
    let shift = 128 - prefix.bits;
    let cut = |addr| bits(addr).checked_shr(shift).unwrap_or(0);
    cut(prefix.addr) == cut(*dst)
}

/// Runs the program on a packet that carries nothing, of which there is one event at most.
fn run(program: &mut Program, packet: &[u8]) -> (bool, Option<Event>) {
    let (passed, reports) = program.run(packet).unwrap();
    assert!(reports.len() < 2, "two events of one packet");
    (passed, reports.first().map(|(event, _)| *event))
}

fn some_addr() -> impl Strategy<Value = Addr> {
    // Few networks, so that addresses, prefixes and special ranges meet.
    let special = [
        "127.0.0.1",
        "127.9.9.9",
        "::1",
        "169.254.169.254",
        "fd00:ec2::254",
    ];
    let special = special.map(|text| text.parse::<IpAddr>().unwrap());
    let groups = ["224.0.0.251", "255.255.255.255", "ff02::fb"];
    let groups = groups.map(|text| text.parse::<IpAddr>().unwrap());
    prop_oneof![
        4 => (0..4_u8, any::<u8>()).prop_map(|(net, host)| Ipv4Addr::new(198, 51, net, host).into()),
        4 => (0..4_u16, any::<u16>())
            .prop_map(|(net, host)| Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, host).into()),
        2 => prop::sample::select(special.to_vec()),
        1 => prop::sample::select(groups.to_vec()),
        1 => any::<u32>().prop_map(|word| IpAddr::from(word.to_be_bytes())),
        1 => any::<u128>().prop_map(|word| IpAddr::from(word.to_be_bytes())),
    ]
    .prop_map(Addr::from)
}

fn some_port() -> impl Strategy<Value = u16> {
    prop_oneof![3 => Just(443), 2 => Just(53), 2 => 8000..8010_u16, 1 => any::<u16>()]
}

fn some_proto() -> impl Strategy<Value = u8> {
    let headers = [0, 43, 44, 60];
    // Those are extension headers in IPv6; `faults` has them.
    prop_oneof![
        4 => Just(proto::TCP),
        4 => Just(proto::UDP),
        1 => Just(proto::ICMP),
        1 => any::<u8>(),
    ]
    .prop_filter("no extension header", move |proto| !headers.contains(proto))
}

fn some_prefix() -> impl Strategy<Value = Prefix> {
    let range = (some_proto(), some_port(), 0..20_u16)
        .prop_map(|(proto, first, more)| PortRange::new(proto, first, first.saturating_add(more)));
    let ranges = prop::collection::vec(range, 0..=jobfence_abi::MAX_RANGES);
    (some_addr(), 0..=128_u32, ranges).prop_map(|(addr, bits, ranges)| Prefix {
        addr,
        // Prefixes of IPv4 networks lie within the mapped form.
        bits: if addr.is_v4() { 96 + bits / 4 } else { bits },
        grants: Grants::new(&ranges).unwrap(),
    })
}

#[test]
fn the_program_decides_as_the_host_does() {
    // Somebody outside the job listens; the program finds the sockets in this namespace.
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let outside = [
        tcp.local_addr().unwrap().port(),
        udp.local_addr().unwrap().port(),
    ];

    let mut program = Program::load().unwrap();
    let states = [JobState::ENFORCE, JobState::AUDIT, JobState::CLOSED];
    let to_listener = prop::sample::select(outside.to_vec());
    let port = prop_oneof![8 => some_port(), 1 => to_listener, 1 => 5300..=5301_u16];
    let flow = (some_addr(), port, some_proto()).prop_map(|(dst, port, proto)| {
        let has_ports = proto == proto::TCP || proto == proto::UDP;
        Flow::new(dst, if has_ports { port } else { 0 }, proto)
    });
    let cases = (
        prop::sample::select(states.to_vec()),
        prop::collection::vec(some_prefix(), 0..8),
        prop::collection::vec(flow, 1..32),
    );
    let mut seen = std::collections::HashSet::new();
    let mut runner = TestRunner::new(Config {
        cases: 300,
        failure_persistence: None,
        ..Config::default()
    });
    let seen_by = std::cell::RefCell::new((&mut program, &mut seen));
    runner
        .run(&cases, |(state, mut prefixes, flows)| {
            let (program, seen) = &mut *seen_by.borrow_mut();
            // Of two equal prefixes the trie keeps the last.
            let mut kept: Vec<Prefix> = Vec::new();
            while let Some(prefix) = prefixes.pop() {
                let same =
                    |other: &Prefix| other.bits == prefix.bits && matches(other, &prefix.addr);
                if !kept.iter().any(same) {
                    kept.push(prefix);
                }
            }
            program.set(job(state), &kept).unwrap();
            let rules = HostRules {
                prefixes: &kept,
                outside,
            };
            for flow in flows {
                // A loopback look-up sees whatever else listens on this machine.
                if flow.dst.is_loopback() && !outside.contains(&flow.port) && flow.port != 53 {
                    continue;
                }
                let reason = decide(&flow, &job(state), &rules).reason;
                let (passed, event) = run(program, &packet(&flow));
                let expected = state == JobState::AUDIT || reason.is_allowed();
                prop_assert_eq!(passed, expected, "{:?}: {}", flow, reason.word());
                match event {
                    Some(event) => {
                        prop_assert_eq!(event.reason, reason, "{}", event.reason.word());
                        prop_assert_eq!(event.flow, flow);
                        prop_assert_eq!(event.hook, Hook::PACKET);
                    }
                    None => prop_assert!(!reason.is_reported(), "{:?} was not reported", flow),
                }
                seen.insert(reason);
            }
            Ok(())
        })
        .unwrap();
    // Else the comparison proves less than it seems to.
    for reason in [
        Reason::ALLOWED,
        Reason::NO_RULE,
        Reason::PORT,
        Reason::PROTOCOL,
        Reason::METADATA,
        Reason::LOOPBACK,
        Reason::MULTICAST,
        Reason::RESOLVER_BYPASS,
        Reason::CLOSED,
    ] {
        assert!(seen.contains(&reason), "no case came to {}", reason.word());
    }
}

/// Everything is allowed here, so only the packet's form can be the reason.
#[test]
fn packets_that_hide_where_they_go_are_refused() {
    let mut program = Program::load().unwrap();
    let all = [
        PortRange::new(proto::TCP, 0, u16::MAX),
        PortRange::new(proto::UDP, 0, u16::MAX),
    ];
    let everything = Prefix {
        addr: Addr { words: [0; 4] },
        bits: 0,
        grants: Grants::new(&all).unwrap(),
    };
    program.set(job(JobState::ENFORCE), &[everything]).unwrap();
    let v4 = packet(&Flow::new(
        IpAddr::from([198, 51, 100, 7]).into(),
        443,
        proto::TCP,
    ));
    let v6 = packet(&Flow::new(
        "2001:db8::7".parse::<IpAddr>().unwrap().into(),
        443,
        proto::UDP,
    ));
    assert!(
        run(&mut program, &v4).0 && run(&mut program, &v6).0,
        "the packets as such are allowed"
    );

    let with = |packet: &[u8], at: usize, byte: u8| {
        let mut packet = packet.to_vec();
        packet[at] = byte;
        packet
    };
    for (packet, reason) in [
        (with(&v4, 0, 0x46), Reason::EXTENSION_HEADER),
        (with(&v4, 0, 0x44), Reason::MALFORMED),
        (with(&v4, 0, 0x55), Reason::MALFORMED),
        (with(&v4, 6, 0x20), Reason::FRAGMENT),
        (with(&v4, 7, 1), Reason::FRAGMENT),
        (with(&v6, 6, 0), Reason::EXTENSION_HEADER),
        (with(&v6, 6, 43), Reason::EXTENSION_HEADER),
        (with(&v6, 6, 60), Reason::EXTENSION_HEADER),
        (with(&v6, 6, 44), Reason::FRAGMENT),
        (with(&v6, 6, 50), Reason::PROTOCOL),
        (with(&v4, 9, 132), Reason::PROTOCOL),
    ] {
        let (passed, event) = run(&mut program, &packet);
        assert!(!passed, "passed: {packet:02x?}");
        assert_eq!(
            event.map(|event| event.reason),
            Some(reason),
            "{packet:02x?}"
        );
    }
    for whole in [&v4, &v6] {
        // A whole TCP header; of UDP's the ports.
        let needed = if whole[0] == 0x45 { 36 } else { 44 };
        for length in 0..whole.len() {
            let (passed, _) = run(&mut program, &whole[..length]);
            assert_eq!(passed, length >= needed, "{length} bytes");
        }
    }
}

#[test]
fn a_job_without_a_state_is_closed() {
    let mut program = Program::load().unwrap();
    let flow = Flow::new(IpAddr::from([198, 51, 100, 7]).into(), 443, proto::TCP);
    let (passed, event) = run(&mut program, &packet(&flow));
    assert!(!passed);
    assert_eq!(event.unwrap().reason, Reason::CLOSED);
}
