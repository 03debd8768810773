//! The loaded program against [`Stream`] and a job's names, on connections whose first packet
//! carries what they have to show.
//!
//! That is TCP fast open (RFC 7413): the packet with SYN has a payload too, so one run of the
//! program begins a stream, reads it, and looks its names up. The parsers are the same code on both
//! sides; compared are what a compiler and the kernel's verifier made of it, how it gets its bytes,
//! the keys of the names, and what is recorded.

use std::{cell::RefCell, collections::HashMap, net::IpAddr};

use jobfence_abi::{
    Bytes, Checks, Event, Fault, Flow, Grants, Hook, JobState, NameKey, NamedEvent, PortRange,
    Reason, Step, Stream, proto,
};
use jobfence_tests::program::{self, LONGEST, Prefix, Program, SYN};
use proptest::{prelude::*, test_runner::TestRunner};

use crate::{http, tls};

/// The first of four ports: on each, another set of [`Checks`] is asked, by their bits.
const PORT: u16 = 8440;
const LAST_PORT: u16 = PORT + 3;
/// Packets of one job. To give it names takes the kernel longer than to run many packets, since it
/// waits until no program uses the old ones.
const PACKETS: usize = 64;
/// Sequence number of the packet: the numbers of its payload wrap.
const SEQUENCE: u32 = u32::MAX - 50;

/// The job's key, by which its names are told apart.
const KEY: u64 = program::job(JobState::ENFORCE).key;

/// Flags of a TCP header's 14th byte.
const PSH: u8 = 8;
const ACK: u8 = 16;
const URG: u8 = 32;

/// A packet of a connection to one of the ports.
#[derive(Clone, Debug)]
struct Packet {
    v6: bool,
    checks: Checks,
    flags: u8,
    /// What the header says of its length, in words, and how many bytes of options there are.
    words: u8,
    options: usize,
    payload: Vec<u8>,
    /// How much of it there is.
    cut: Option<prop::sample::Index>,
}

impl Packet {
    fn flow(&self) -> Flow {
        let address = if self.v6 {
            "2001:db8::7"
        } else {
            "198.51.100.7"
        };
        Flow::new(
            address.parse::<IpAddr>().unwrap().into(),
            self.port(),
            proto::TCP,
        )
    }

    fn port(&self) -> u16 {
        PORT + u16::from(self.checks.0)
    }

    /// Where the TCP header begins.
    fn transport(&self) -> usize {
        if self.v6 { 40 } else { 20 }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut packet = program::packet(&self.flow());
        let tcp = self.transport();
        packet[tcp + 4..tcp + 8].copy_from_slice(&SEQUENCE.to_be_bytes());
        packet[tcp + 12] = self.words << 4;
        packet[tcp + 13] = self.flags;
        packet.extend(vec![1; self.options]);
        packet.extend(&self.payload);
        packet.truncate(LONGEST);
        if let Some(cut) = self.cut {
            packet.truncate(cut.index(packet.len() + 1));
        }
        packet
    }
}

/// A name that the job's rules have.
#[derive(Clone, Debug)]
struct Name {
    name: String,
    /// Whether it is what is below the name that is allowed.
    below: bool,
    ports: PortRange,
}

impl Name {
    fn holds(&self, name: &str) -> bool {
        if self.below {
            let prefix = name.strip_suffix(&self.name);
            prefix.is_some_and(|prefix| prefix.len() > 1 && prefix.ends_with('.'))
        } else {
            name == self.name
        }
    }
}

/// What an event says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    hook: Hook,
    reason: Reason,
    passed: bool,
    fault: Fault,
    name: Option<String>,
}

impl From<&(Event, Option<NamedEvent>)> for Said {
    fn from((event, named): &(Event, Option<NamedEvent>)) -> Self {
        Self {
            hook: event.hook,
            reason: event.reason,
            passed: event.passed == 1,
            fault: event.fault,
            name: named.map(|named| named.name().map(char::from).collect()),
        }
    }
}

/// The job.
struct Host<'a> {
    state: JobState,
    names: &'a [Name],
}

struct Payload<'a>(&'a [u8]);

impl Bytes for Payload<'_> {
    fn at(&self, position: u32) -> u32 {
        let at = position.wrapping_sub(SEQUENCE).wrapping_sub(1);
        self.0.get(at as usize).map_or(256, |&byte| byte.into())
    }
}

impl Host<'_> {
    fn watched(&self) -> bool {
        self.state == JobState::AUDIT
    }

    fn allows(&self, name: &str, port: u16) -> bool {
        // The longest, and of two with one name the exact one.
        let best = self
            .names
            .iter()
            .filter(|rule| rule.holds(name))
            .max_by_key(|rule| (rule.name.len(), !rule.below));
        best.is_some_and(|rule| rule.ports.contains(proto::TCP, port))
    }

    fn said(&self, hook: Hook, reason: Reason, stream: Option<&Stream>) -> Said {
        Said {
            hook,
            reason,
            passed: self.watched() || reason == Reason::ALLOWED,
            fault: stream.map_or(Fault::NONE, |stream| stream.fault),
            name: stream.map(|stream| stream.name().map(char::from).collect()),
        }
    }

    fn refused(&self, stream: &Stream) -> Said {
        let (hook, reason) = if stream.is_http() {
            (Hook::HTTP, Reason::HOST_HEADER)
        } else {
            (Hook::TLS, Reason::SNI)
        };
        let reason = if stream.fault == Fault::UNSEEN {
            Reason::INBOUND
        } else {
            reason
        };
        self.said(hook, reason, Some(stream))
    }

    /// Whether the packet passes, and what is recorded.
    fn decide(&self, packet: &Packet) -> (bool, Vec<Said>) {
        let bytes = packet.bytes();
        // A TCP header without its last four bytes is enough.
        if bytes.len() < packet.transport() + 16 {
            let said = self.said(Hook::PACKET, Reason::MALFORMED, None);
            return (self.watched(), vec![said]);
        }
        let mut said = vec![self.said(Hook::PACKET, Reason::ALLOWED, None)];
        let start = packet.transport() + 4 * usize::from(packet.words);
        let payload = bytes.get(start..).unwrap_or_default();
        let urgent = packet.flags & URG != 0;
        if packet.checks.is_none() || payload.is_empty() && !urgent {
            return (true, said);
        }
        let first = SEQUENCE.wrapping_add(1);
        let mut stream = Stream::new(first, packet.checks, KEY);
        if packet.flags & SYN == 0 {
            stream.fault = Fault::UNSEEN;
        } else if urgent {
            stream.fault = Fault::URGENT;
        }
        let end = first.wrapping_add(u32::try_from(payload.len()).unwrap());
        loop {
            match stream.step(&Payload(payload), end) {
                Step::MORE => {}
                Step::NAME => {
                    let name: String = stream.name().map(char::from).collect();
                    if !self.allows(&name, packet.port()) {
                        stream.fault = Fault::NAME;
                    }
                    if stream.is_http() && (stream.fault.is_none() || self.watched()) {
                        let reason = if stream.fault.is_none() {
                            Reason::ALLOWED
                        } else {
                            Reason::HOST_HEADER
                        };
                        if stream.is_news() {
                            said.push(self.said(Hook::HTTP, reason, Some(&stream)));
                        }
                        stream.fault = Fault::NONE;
                    }
                }
                Step::HELLO => {
                    if stream.is_news() {
                        said.push(self.said(Hook::TLS, Reason::ALLOWED, Some(&stream)));
                    }
                }
                Step::REFUSED => {
                    said.push(self.refused(&stream));
                    return (self.watched(), said);
                }
                _ => return (true, said),
            }
        }
    }
}

/// The names in a packet, read as if every one were allowed.
fn names(packet: &Packet) -> Vec<String> {
    let payload = &packet.payload;
    let first = SEQUENCE.wrapping_add(1);
    let mut stream = Stream::new(first, packet.checks, KEY);
    let end = first.wrapping_add(u32::try_from(payload.len()).unwrap());
    let mut names = Vec::new();
    loop {
        match stream.step(&Payload(payload), end) {
            Step::NAME => names.push(stream.name().map(char::from).collect()),
            Step::MORE | Step::HELLO => {}
            _ => return names,
        }
    }
}

/// How a name that a payload has is among the rules.
#[derive(Clone, Copy, Debug)]
enum Rule {
    Exact,
    Below,
    /// What is below it: not the name itself.
    Under,
    OtherPort,
    OtherProtocol,
    None,
}

impl Rule {
    fn name(self, name: &str) -> Option<Name> {
        let parent = name.split_once('.').map(|(_, parent)| parent);
        let (name, below) = match self {
            Self::None => return None,
            Self::Below => (parent?, true),
            Self::Under => (name, true),
            Self::Exact | Self::OtherPort | Self::OtherProtocol => (name, false),
        };
        let ports = match self {
            // Not the last of the ports.
            Self::OtherPort => PortRange::new(proto::TCP, 1, LAST_PORT - 1),
            Self::OtherProtocol => PortRange::new(proto::UDP, PORT, LAST_PORT),
            _ => PortRange::new(proto::TCP, PORT, LAST_PORT),
        };
        Some(Name {
            name: name.to_owned(),
            below,
            ports,
        })
    }
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let rule = prop_oneof![
        12 => Just(Rule::Exact),
        4 => Just(Rule::Below),
        1 => prop::sample::select(vec![Rule::Under, Rule::OtherPort, Rule::OtherProtocol, Rule::None]),
    ];
    prop::collection::vec(rule, 1..100)
}

/// The names of a payload by these rules, each name once.
fn job_names(rules: &[Rule], names: &[String]) -> Vec<Name> {
    let mut kept: Vec<Name> = Vec::new();
    for (rule, name) in rules.iter().cycle().zip(names) {
        let Some(name) = rule.name(name) else {
            continue;
        };
        let same = |other: &Name| other.name == name.name && other.below == name.below;
        if !kept.iter().any(same) {
            kept.push(name);
        }
    }
    kept
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    let within = prop::sample::select(vec![8_usize, 100, 8192]);
    let hello = (tls::hello(), tls::next(), any::<bool>()).prop_map(|(hello, next, more)| {
        let mut bytes = hello.bytes();
        if more {
            bytes.extend(next);
        }
        bytes
    });
    let requests = http::requests().prop_map(|requests| {
        let requests = requests.iter();
        let bytes = requests.map(|request| [request.head.bytes(), request.body.clone()].concat());
        bytes.collect::<Vec<_>>().concat()
    });
    let good = prop_oneof![1 => hello, 1 => requests];
    let damage = prop_oneof![2 => Just(vec![]), 1 => tls::damage(2)];
    prop_oneof![
        20 => (good, damage, within).prop_map(|(bytes, damage, within)| tls::damaged(bytes, &damage, within)),
        1 => prop::collection::vec(any::<u8>(), 0..200),
    ]
}

fn packet() -> impl Strategy<Value = Packet> {
    let flags = prop_oneof![
        16 => prop::sample::select(vec![SYN, SYN | PSH]),
        1 => prop::sample::select(vec![0, ACK, PSH | ACK, SYN | URG, ACK | URG, SYN | ACK, 0xff]),
    ];
    let length = prop_oneof![
        12 => (0..=10_u8).prop_map(|words| (5 + words, 4 * usize::from(words))),
        1 => (0..=15_u8, 0..48_usize),
    ];
    let cut = prop_oneof![6 => Just(None), 1 => any::<prop::sample::Index>().prop_map(Some)];
    (any::<bool>(), some_checks(), flags, length, payload(), cut).prop_map(
        |(v6, checks, flags, (words, options), payload, cut)| Packet {
            v6,
            checks,
            flags,
            words,
            options,
            payload,
            cut,
        },
    )
}

fn some_checks() -> impl Strategy<Value = Checks> {
    prop_oneof![
        8 => Just(Checks::TLS.or(Checks::HTTP)),
        4 => Just(Checks::TLS),
        4 => Just(Checks::HTTP),
        1 => Just(Checks::NONE),
    ]
}

fn some_state() -> impl Strategy<Value = JobState> {
    prop_oneof![4 => Just(JobState::ENFORCE), 1 => Just(JobState::AUDIT)]
}

/// Sets a job that may go anywhere, with these names.
fn set(program: &mut Program, host: &Host<'_>) {
    let ports = (0..4_u8).map(|checks| {
        let port = PORT + u16::from(checks);
        PortRange::new(proto::TCP, port, port).checked(Checks(checks))
    });
    let everywhere = Prefix {
        addr: jobfence_abi::Addr { words: [0; 4] },
        bits: 0,
        grants: Grants::new(&ports.collect::<Vec<_>>()).unwrap(),
    };
    program
        .set(program::job(host.state), &[everywhere])
        .unwrap();
    let names = host.names.iter().map(|name| {
        let key = if name.below {
            NameKey::below(&name.name)
        } else {
            NameKey::exact(&name.name)
        };
        (key, Grants::new(&[name.ports]).unwrap())
    });
    program.set_names(&names.collect::<Vec<_>>()).unwrap();
}

#[test]
fn a_connection_gets_the_hosts_verdict_and_record() {
    let program = RefCell::new(Program::load().unwrap());
    let seen = RefCell::new(HashMap::<(Hook, Fault, bool), u32>::new());
    let mut config = crate::config();
    config.cases = config.cases.div_ceil(16);
    config.max_shrink_iters = 1000;
    config.failure_persistence = None;
    let packets = prop::collection::vec(packet(), PACKETS);
    let run = |(packets, rules, state): (Vec<Packet>, Vec<Rule>, JobState)| {
        let names: Vec<String> = packets.iter().flat_map(names).collect();
        let names = job_names(&rules, &names);
        let host = Host {
            state,
            names: &names,
        };
        let program = &mut *program.borrow_mut();
        set(program, &host);
        for packet in &packets {
            let (passed, reports) = program.run(&packet.bytes()).unwrap();
            let said: Vec<Said> = reports.iter().map(Said::from).collect();
            let expected = host.decide(packet);
            prop_assert_eq!((passed, &said), (expected.0, &expected.1), "{:?}", packet);
            for (event, _) in &reports {
                if event.reason != Reason::MALFORMED {
                    prop_assert_eq!(event.flow, packet.flow());
                    prop_assert_eq!(event.source_port, 40_000);
                }
                let what = (event.hook, event.fault, event.passed == 1);
                *seen.borrow_mut().entry(what).or_default() += 1;
            }
        }
        Ok(())
    };
    let cases = (packets, rules(), some_state());
    TestRunner::new(config).run(&cases, run).unwrap();
    // Else the comparison proves less than it seems to.
    let seen = seen.into_inner();
    for (hook, fault) in [
        (Hook::TLS, Fault::NAME),
        (Hook::TLS, Fault::BAD_NAME),
        (Hook::TLS, Fault::NOT_TLS),
        (Hook::TLS, Fault::NO_SERVER_NAME),
        (Hook::TLS, Fault::SEVERAL_SERVER_NAMES),
        (Hook::TLS, Fault::BAD_HELLO),
        (Hook::TLS, Fault::ENCRYPTED),
        (Hook::TLS, Fault::UNSEEN),
        (Hook::TLS, Fault::URGENT),
        (Hook::HTTP, Fault::NAME),
        (Hook::HTTP, Fault::BAD_NAME),
        (Hook::HTTP, Fault::NOT_HTTP),
        (Hook::HTTP, Fault::NO_HOST),
        (Hook::HTTP, Fault::SEVERAL_HOSTS),
        (Hook::HTTP, Fault::FOLDED),
        (Hook::HTTP, Fault::CONNECT),
        (Hook::HTTP, Fault::FRAMING),
        (Hook::HTTP, Fault::BAD_HEAD),
    ] {
        let refused = seen.contains_key(&(hook, fault, false));
        assert!(refused, "no case of: {}\n{seen:?}", fault.text());
    }
    for hook in [Hook::PACKET, Hook::TLS, Hook::HTTP] {
        let allowed = seen.get(&(hook, Fault::NONE, true)).copied();
        assert!(allowed > Some(50), "{seen:?}");
    }
}

/// Whatever a packet is: it passes or it does not, once, and the record says the same.
#[test]
fn no_packet_is_refused_without_a_word_or_passes_with_one() {
    let mut program = Program::load().unwrap();
    let names = [Name {
        name: "test".to_owned(),
        below: true,
        ports: PortRange::new(proto::TCP, PORT, LAST_PORT),
    }];
    let host = Host {
        state: JobState::ENFORCE,
        names: &names,
    };
    set(&mut program, &host);
    let program = RefCell::new(program);
    let mut config = crate::config();
    config.failure_persistence = None;
    let within = prop::sample::select(vec![1_usize, 20, 60, 4000]);
    let damaged = (
        packet(),
        tls::damage(4),
        within,
        any::<prop::sample::Index>(),
    )
        .prop_map(|(packet, damage, within, length)| {
            (tls::damaged(packet.bytes(), &damage, within), length)
        });
    let any = (
        prop::collection::vec(any::<u8>(), 0..200),
        any::<prop::sample::Index>(),
    );
    let cases = prop_oneof![8 => damaged, 1 => any];
    let run = |(mut bytes, length): (Vec<u8>, prop::sample::Index)| {
        // The longest too.
        if length.index(8) == 0 {
            bytes.resize(LONGEST, b'a');
        }
        bytes.truncate(LONGEST);
        let (passed, reports) = program.borrow_mut().run(&bytes).unwrap();
        let said: Vec<Said> = reports.iter().map(Said::from).collect();
        let refused = said.iter().filter(|said| !said.passed).count();
        prop_assert_eq!(refused, usize::from(!passed), "{:?}\n{:02x?}", said, bytes);
        let packets = said.iter().filter(|said| said.hook == Hook::PACKET).count();
        prop_assert!(packets <= 1, "{:?}\n{:02x?}", said, bytes);
        for said in said {
            prop_assert_eq!(said.passed, said.reason.is_allowed());
            prop_assert_eq!(
                said.fault.is_none(),
                said.passed || said.hook == Hook::PACKET
            );
        }
        Ok(())
    };
    TestRunner::new(config).run(&cases, run).unwrap();
}
