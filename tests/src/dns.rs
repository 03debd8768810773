//! The DNS servers: one that knows the names of [`addresses`](crate::addresses), and one that
//! knows every name and always answers with itself.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Mutex,
};

use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, SOA, TXT},
    },
};

use crate::addresses::{ALLOWED, BLOCKED, CDN, GIT, Host, METADATA, OTHER_DNS, PKG, PRIVATE, WILD};

/// Seconds that an answer may be kept, but for `changing.test`'s.
const TTL: u32 = 300;
/// Longest chain of aliases that is followed.
const MAX_CHAIN: usize = 8;

/// What a name in the zone stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// An `A` or `AAAA` record.
    Address(IpAddr),
    /// A `CNAME` record.
    Alias(String),
    /// A `TXT` record.
    Text(String),
    /// `SERVFAIL` for every question about the name.
    Failure,
}

/// The zone, which knows everything below the root.
#[derive(Debug)]
pub(crate) struct Zone {
    entries: Mutex<Vec<(String, Data)>>,
    /// Answers for `changing.test` so far.
    changes: Mutex<u8>,
}

impl Zone {
    /// The zone that [`addresses`](crate::addresses) describes.
    pub(crate) fn new() -> Self {
        let mut entries = Vec::new();
        let mut add = |name: &str, data| entries.push((name.to_owned(), data));
        let hosts: &[(&str, Host)] = &[
            ("allowed.test", ALLOWED),
            ("shared.test", ALLOWED),
            ("extra.test", ALLOWED),
            ("mixed.test", ALLOWED),
            ("mixed.test", PRIVATE),
            ("blocked.test", BLOCKED),
            ("cdn.other.test", CDN),
            ("git.test", GIT),
            ("pkg.test", PKG),
            ("*.wild.test", WILD),
            ("private.test", PRIVATE),
            ("metadata.test", METADATA),
        ];
        for (name, host) in hosts {
            for address in host.both() {
                add(name, Data::Address(address));
            }
        }
        add("v4only.test", Data::Address(ALLOWED.v4.into()));
        add("v6only.test", Data::Address(ALLOWED.v6.into()));
        add("loopback.test", Data::Address(IpAddr::from([127, 0, 0, 1])));
        add(
            "loopback.test",
            Data::Address(IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])),
        );
        add(
            "alias.allowed.test",
            Data::Alias("cdn.other.test".to_owned()),
        );
        add("text.test", Data::Text("text of text.test".to_owned()));
        add("servfail.test", Data::Failure);
        for last in 100..200 {
            add(
                "big.test",
                Data::Address(IpAddr::from([198, 51, 100, last])),
            );
        }
        Self {
            entries: Mutex::new(entries),
            changes: Mutex::new(0),
        }
    }

    /// Adds a record.
    pub(crate) fn add(&self, name: &str, data: Data) {
        self.entries
            .lock()
            .expect("zone panicked")
            .push((name.to_ascii_lowercase(), data));
    }

    /// Answers a question, the names in the records as they were asked.
    fn answer(&self, asked: &Name, record_type: RecordType) -> (ResponseCode, Vec<Record>) {
        let mut records = Vec::new();
        let mut name = asked.clone();
        for _ in 0..MAX_CHAIN {
            let text = plain(&name);
            if text == "changing.test" {
                if record_type == RecordType::A {
                    let mut changes = self.changes.lock().expect("zone panicked");
                    let address = Ipv4Addr::new(198, 51, 100, 70 + *changes);
                    *changes = (*changes + 1) % 10;
                    records.push(Record::from_rdata(name, 1, RData::A(A(address))));
                }
                return (ResponseCode::NoError, records);
            }
            let data = self.look_up(&text);
            if data.contains(&Data::Failure) {
                return (ResponseCode::ServFail, Vec::new());
            }
            let mut alias = None;
            for data in &data {
                let rdata = match data {
                    Data::Address(IpAddr::V4(v4)) => RData::A(A(*v4)),
                    Data::Address(IpAddr::V6(v6)) => RData::AAAA(AAAA(*v6)),
                    Data::Text(text) => RData::TXT(TXT::new(vec![text.clone()])),
                    Data::Alias(target) => {
                        let target = absolute(target);
                        alias = Some(target.clone());
                        RData::CNAME(CNAME(target))
                    }
                    Data::Failure => continue,
                };
                let kind = rdata.record_type();
                if kind == record_type || kind == RecordType::CNAME {
                    records.push(Record::from_rdata(name.clone(), TTL, rdata));
                }
            }
            if text == "extra.test" {
                let off_the_chain = RData::A(A(BLOCKED.v4));
                records.push(Record::from_rdata(
                    absolute("blocked.test"),
                    TTL,
                    off_the_chain,
                ));
            }
            match alias {
                Some(target) if record_type != RecordType::CNAME => name = target,
                _ if data.is_empty() => return (ResponseCode::NXDomain, records),
                _ => break,
            }
        }
        (ResponseCode::NoError, records)
    }

    /// What the zone holds for `name`, else for the closest wildcard above it.
    fn look_up(&self, name: &str) -> Vec<Data> {
        let entries = self.entries.lock().expect("zone panicked");
        let of = |owner: &str| -> Vec<Data> {
            let matching = entries.iter().filter(|(name, _)| name == owner);
            matching.map(|(_, data)| data.clone()).collect()
        };
        let exact = of(name);
        if !exact.is_empty() {
            return exact;
        }
        name.match_indices('.')
            .map(|(dot, _)| of(&format!("*{}", &name[dot..])))
            .find(|found| !found.is_empty())
            .unwrap_or_default()
    }
}

/// Answers a message that came over UDP (`udp`) or TCP to the server `at`; `None` when it is not
/// a question.
pub(crate) fn reply(zone: &Zone, at: IpAddr, message: &[u8], udp: bool) -> Option<Vec<u8>> {
    let request = Message::from_vec(message).ok()?;
    if request.metadata.message_type != MessageType::Query {
        return None;
    }
    let query = request.queries.first()?.clone();
    let (code, answers) = if OTHER_DNS.both().contains(&at) {
        let data = match query.query_type() {
            RecordType::A => Some(RData::A(A(OTHER_DNS.v4))),
            RecordType::AAAA => Some(RData::AAAA(AAAA(OTHER_DNS.v6))),
            _ => None,
        };
        let record = data.map(|data| Record::from_rdata(query.name().clone(), TTL, data));
        (ResponseCode::NoError, record.into_iter().collect())
    } else {
        zone.answer(query.name(), query.query_type())
    };

    let limit = if udp {
        request.max_payload().into()
    } else {
        usize::from(u16::MAX)
    };
    let mut response = Message::response(request.metadata.id, request.metadata.op_code);
    response.metadata.authoritative = true;
    response.metadata.recursion_desired = request.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.metadata.response_code = code;
    response.add_query(query);
    if answers.is_empty() {
        // How long nothing may be remembered (RFC 2308 section 5).
        let mail = absolute("hostmaster.test");
        let soa = SOA::new(absolute("ns.test"), mail, 1, 3600, 600, 86400, 60);
        response.add_authority(Record::from_rdata(Name::root(), 60, RData::SOA(soa)));
    }
    response.add_answers(answers);
    if let Some(edns) = request.edns {
        response.set_edns(edns);
    }
    let bytes = response.to_vec().ok()?;
    if bytes.len() <= limit {
        return Some(bytes);
    }
    response.truncate().to_vec().ok()
}

/// The name in lower case, without the last dot.
fn plain(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_ascii_lowercase()
}

fn absolute(name: &str) -> Name {
    let mut name = Name::from_ascii(name).expect("a valid name");
    name.set_fqdn(true);
    name
}
