//! Messages that were damaged on their way, and answers that were made to mislead.
//!
//! `cargo xtask fuzz` runs these longer.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::rdata::{CNAME, SOA, TXT};
use hickory_proto::rr::{DNSClass, Name as WireName, RData, Record, RecordType};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngSeed};

use super::answer::{self, Class, classify};
use super::message::{self, ExtendedError, Reply, Unreadable};

/// The same cases in every run, unless `PROPTEST_RNG_SEED` and `PROPTEST_CASES` say otherwise.
fn config() -> Config {
    let mut config = Config::default();
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(0);
    }
    config
}

fn some_label() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => "[a-zA-Z0-9_-]{1,12}".prop_map(String::into_bytes),
        1 => "[a-z]{63}".prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 1..20),
    ]
}

fn some_name() -> impl Strategy<Value = WireName> {
    let few = prop::sample::select(vec!["a.test.", "b.test.", "c.test.", "D.Test.", "."]);
    prop_oneof![
        4 => few.prop_map(|text| WireName::from_ascii(text).unwrap()),
        2 => prop::collection::vec(some_label(), 0..6)
            .prop_map(|labels| WireName::from_labels(labels).unwrap_or_else(|_| WireName::root())),
    ]
}

fn some_kind() -> impl Strategy<Value = RecordType> {
    prop_oneof![
        3 => Just(RecordType::A),
        2 => Just(RecordType::AAAA),
        1 => any::<u16>().prop_map(RecordType::from),
    ]
}

fn some_edns() -> impl Strategy<Value = Option<Edns>> {
    let options = prop::collection::vec(
        (any::<u16>(), prop::collection::vec(any::<u8>(), 0..40)),
        0..4,
    );
    let edns = (any::<u16>(), any::<bool>(), options).prop_map(|(payload, ok, options)| {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        edns.set_dnssec_ok(ok);
        for (code, content) in options {
            edns.options_mut()
                .insert(EdnsOption::Unknown(code, content));
        }
        edns
    });
    prop::option::of(edns)
}

fn some_record() -> impl Strategy<Value = Record> {
    let special = [
        "127.0.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "::ffff:10.0.0.1",
        "::1",
    ];
    let special = special.map(|text| text.parse::<IpAddr>().unwrap());
    let data = prop_oneof![
        2 => any::<u32>().prop_map(|ip| RData::from(IpAddr::from(Ipv4Addr::from(ip)))),
        2 => any::<u128>().prop_map(|ip| RData::from(IpAddr::from(Ipv6Addr::from(ip)))),
        2 => prop::sample::select(special.to_vec()).prop_map(RData::from),
        4 => some_name().prop_map(|name| RData::CNAME(CNAME(name))),
        1 => "[ -~]{0,100}".prop_map(|text| RData::TXT(TXT::new(vec![text]))),
        1 => (some_name(), some_name())
            .prop_map(|(a, b)| RData::SOA(SOA::new(a, b, 1, 2, 3, 4, 5))),
    ];
    (some_name(), any::<u32>(), data, prop::bool::weighted(0.9)).prop_map(
        |(owner, ttl, data, internet)| {
            let mut record = Record::from_rdata(owner, ttl, data);
            if !internet {
                record.dns_class = DNSClass::CH;
            }
            record
        },
    )
}

prop_compose! {
    /// A question as clients send it, and nearly so.
    fn some_question()(
        id: u16, flags: u8, name in some_name(), kind in some_kind(), edns in some_edns(),
        more in prop::collection::vec(some_record(), 0..2), section in 0..12_u8,
    ) -> Vec<u8> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = flags & 1 == 1;
        message.metadata.checking_disabled = flags & 2 == 2;
        message.metadata.authentic_data = flags & 4 == 4;
        message.add_query(Query::query(name, kind));
        match section {
            0 => message.answers = more,
            1 => message.authorities = more,
            2 => message.additionals = more,
            _ => {}
        }
        if let Some(edns) = edns {
            message.set_edns(edns);
        }
        message.to_vec().unwrap_or_default()
    }
}

prop_compose! {
    /// An answer as upstream resolvers send it, with names compressed.
    fn some_answer()(
        name in some_name(), kind in some_kind(),
        answers in prop::collection::vec(some_record(), 0..12),
    ) -> Vec<u8> {
        let mut message = Message::response(7, OpCode::Query);
        message.add_query(Query::query(name, kind));
        message.answers = answers;
        message.to_vec().unwrap_or_default()
    }
}

#[derive(Clone, Copy, Debug)]
enum Damage {
    Set(u8),
    /// A pointer of a compressed name (RFC 1035 section 4.1.4).
    Point(u8),
    Insert(u8),
    Remove,
    Cut,
}

fn some_damage() -> impl Strategy<Value = Vec<(Index, Damage)>> {
    let damage = prop_oneof![
        4 => any::<u8>().prop_map(Damage::Set),
        2 => any::<u8>().prop_map(Damage::Point),
        1 => any::<u8>().prop_map(Damage::Insert),
        1 => Just(Damage::Remove),
        1 => Just(Damage::Cut),
    ];
    prop::collection::vec((any::<Index>(), damage), 0..4)
}

fn damaged(mut bytes: Vec<u8>, damage: &[(Index, Damage)]) -> Vec<u8> {
    for (place, damage) in damage {
        if bytes.is_empty() {
            break;
        }
        let at = place.index(bytes.len());
        match damage {
            Damage::Set(byte) => bytes[at] = *byte,
            Damage::Point(to) => {
                bytes[at] = 0xc0;
                if let Some(next) = bytes.get_mut(at + 1) {
                    *next = *to;
                }
            }
            Damage::Insert(byte) => bytes.insert(at, *byte),
            Damage::Remove => drop(bytes.remove(at)),
            Damage::Cut => bytes.truncate(at),
        }
    }
    bytes
}

/// The first name behind the header, by hand; `None` when it is compressed or cut.
fn first_name(bytes: &[u8]) -> Option<&[u8]> {
    let names = bytes.get(12..)?;
    let mut end = 0;
    loop {
        match *names.get(end)? {
            0 => return names.get(..=end),
            length @ 1..64 => end += 1 + usize::from(length),
            _ => return None,
        }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_damaged_question_is_dropped_or_gets_an_answer_that_is_its_own(
        bytes in some_question(), damage in some_damage(),
        answers in prop::collection::vec(some_record(), 0..40), text in "\\PC{0,300}",
    ) {
        let bytes = damaged(bytes, &damage);
        let reply = match message::read(&bytes) {
            Err(Unreadable::Ignore) => {
                let is_reply = bytes.get(2).is_some_and(|flags| flags & 0x80 != 0);
                prop_assert!(bytes.len() < 12 || is_reply, "a question was dropped");
                return Ok(());
            }
            Err(Unreadable::Answer(metadata, code)) => {
                let bytes = message::encode_error(&metadata, code);
                prop_assert_eq!(bytes.len(), 12, "more than a header in an error");
                bytes
            }
            Ok(question) => {
                let shown = message::text(question.name());
                prop_assert!(shown.bytes().all(|byte| byte.is_ascii_graphic()), "{:?}", shown);
                prop_assert_eq!(message::text(&question.name().to_lowercase()), shown.as_str());
                if let Some(name) = message::host_name(&shown) {
                    // What the policy decides about is what is asked for.
                    let asked = WireName::from_ascii(format!("{name}.")).unwrap();
                    prop_assert_eq!(&asked, &question.name().to_lowercase());
                }
                let limit = question.udp_limit();
                prop_assert!((512..=4096).contains(&limit));
                let reply = Reply::with(ResponseCode::NoError, answers)
                    .because(ExtendedError::Blocked, text);
                let reply = message::encode(&question, reply, limit);
                prop_assert!(reply.len() <= limit, "{} bytes of {}", reply.len(), limit);
                if let Some(name) = first_name(&bytes) {
                    prop_assert_eq!(first_name(&reply), Some(name), "another question");
                    let after = 12 + name.len();
                    prop_assert_eq!(&reply[after..after + 4], &bytes[after..after + 4]);
                }
                let decoded = Message::from_vec(&reply).unwrap();
                prop_assert!(!decoded.metadata.truncation || decoded.answers.is_empty());
                reply
            }
        };
        prop_assert_eq!(&reply[..2], &bytes[..2], "another id");
        prop_assert_eq!(reply[2] & 0x80, 0x80, "not a reply");
        prop_assert!(Message::from_vec(&reply).is_ok());
    }

    #[test]
    fn a_damaged_answer_leads_only_where_its_chain_does(
        bytes in some_answer(), damage in some_damage(), asked in some_name(),
        kind in prop::sample::select(vec![RecordType::A, RecordType::AAAA]),
    ) {
        let Ok(answer) = Message::from_vec(&damaged(bytes, &damage)) else {
            return Ok(());
        };
        let records = answer.answers;
        let Some(mut chain) = answer::follow(&asked, kind, &records) else {
            return Ok(());
        };
        // Every name that aliases lead to, in any order: the chain is within.
        let mut reached: HashSet<WireName> = [asked.to_lowercase()].into();
        for _ in 0..records.len() {
            for record in &records {
                if let RData::CNAME(target) = &record.data
                    && reached.contains(&record.name.to_lowercase())
                {
                    reached.insert(target.0.to_lowercase());
                }
            }
        }
        for record in &chain.records {
            prop_assert!(reached.contains(&record.name.to_lowercase()), "{} is off the chain", record);
            prop_assert_eq!(record.dns_class, DNSClass::IN);
            prop_assert!([kind, RecordType::CNAME].contains(&record.record_type()), "{}", record);
        }
        for ip in &chain.addresses {
            prop_assert_eq!(ip.is_ipv4(), kind == RecordType::A);
            let given = records.iter().any(|record| record.data.ip_addr() == Some(*ip));
            prop_assert!(given, "{} is in no record", ip);
        }
        chain.retain(|ip| classify(ip) == Class::Public);
        let told: Vec<_> = chain.records.iter().filter_map(|record| record.data.ip_addr()).collect();
        prop_assert_eq!(&told, &chain.addresses, "told other addresses than are granted");
        for ip in told {
            let far = ip.is_loopback() || ip.is_multicast() || ip.is_unspecified();
            prop_assert!(!far, "{}", ip);
            if let IpAddr::V6(v6) = ip {
                prop_assert_eq!(v6.to_ipv4_mapped(), None);
            }
        }
    }
}
