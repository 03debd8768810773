//! The resolver from the outside: a client on one side, a fake upstream resolver on the other that
//! counts what reaches it.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{DNSClass, Name as WireName, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::*;

/// Longer than any answer takes, so that a missing one fails the test instead of hanging it.
const PATIENCE: Duration = Duration::from_secs(20);

const PUBLIC: [u8; 4] = [198, 51, 100, 7];

// ---- policy ----

const RULES: &str = "
jobs:
  default:
    allow:
      - host: allowed.test
      - host: '*.wild.test'
      - host: inside.test
        private: true
    deny:
      - host: denied.test
      - host: telemetry.test
        fail: false
";

fn job(mode: &str) -> Job {
    let text = format!("version: 1\nmode: {mode}\n{RULES}");
    jobfence_policy::Policy::parse("policy.yml", text.as_bytes())
        .and_then(|policy| policy.job(None))
        .unwrap_or_else(|error| panic!("{error}"))
}

fn policy() -> Job {
    job("enforce")
}

fn audited() -> Job {
    job("audit")
}

// ---- the fake upstream resolver ----

#[derive(Clone)]
enum Zone {
    Answer(Vec<Record>),
    Code(ResponseCode),
    Silence,
}

#[derive(Default)]
struct Fake {
    zones: HashMap<String, Zone>,
    asked: Mutex<Vec<String>>,
    messages: Mutex<Vec<Vec<u8>>>,
}

impl Fake {
    fn reply(&self, bytes: &[u8], udp: bool) -> Option<Vec<u8>> {
        let question = Message::from_vec(bytes).unwrap();
        self.messages.lock().unwrap().push(bytes.to_vec());
        let query = question.queries[0].clone();
        let name = query.name().to_ascii();
        assert_eq!(
            name,
            name.to_ascii_lowercase(),
            "the case of the job's question went upstream"
        );
        self.asked
            .lock()
            .unwrap()
            .push(format!("{name} {}", query.query_type()));
        let mut reply = Message::response(question.metadata.id, OpCode::Query);
        reply.metadata.recursion_available = true;
        reply.add_query(query.clone());
        match self.zones.get(&name) {
            Some(Zone::Answer(records)) => {
                let kind = query.query_type();
                reply.answers = records
                    .iter()
                    .filter(|record| [kind, RecordType::CNAME].contains(&record.record_type()))
                    .cloned()
                    .collect();
                if udp && reply.answers.len() > 20 {
                    reply.answers.clear();
                    reply.metadata.truncation = true;
                }
            }
            Some(Zone::Code(code)) => reply.metadata.response_code = *code,
            Some(Zone::Silence) => return None,
            None => reply.metadata.response_code = ResponseCode::NXDomain,
        }
        Some(reply.to_vec().unwrap())
    }

    /// Serves over UDP and TCP at the port that is returned.
    async fn serve(self: &Arc<Self>, tasks: &mut JoinSet<()>) -> u16 {
        let Pair { port, udp, tcp } = Pair::v4(0, &|_| Ok(())).await.unwrap();
        let fake = Arc::clone(self);
        tasks.spawn(async move {
            let mut buffer = [0; 4096];
            loop {
                let (length, peer) = udp.recv_from(&mut buffer).await.unwrap();
                if let Some(reply) = fake.reply(&buffer[..length], true) {
                    udp.send_to(&reply, peer).await.unwrap();
                }
            }
        });
        let fake = Arc::clone(self);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                let fake = Arc::clone(&fake);
                connections.spawn(async move {
                    while let Ok(length) = stream.read_u16().await {
                        let mut bytes = vec![0; length.into()];
                        stream.read_exact(&mut bytes).await.unwrap();
                        if let Some(reply) = fake.reply(&bytes, false) {
                            stream
                                .write_u16(reply.len().try_into().unwrap())
                                .await
                                .unwrap();
                            stream.write_all(&reply).await.unwrap();
                        }
                    }
                });
            }
        });
        port
    }
}

fn wire(text: &str) -> WireName {
    let mut name = WireName::from_ascii(text).unwrap();
    name.set_fqdn(true);
    name
}

fn address(owner: &str, ip: impl Into<IpAddr>) -> Record {
    Record::from_rdata(wire(owner), 300, RData::from(ip.into()))
}

fn alias(owner: &str, target: &str) -> Record {
    Record::from_rdata(wire(owner), 300, RData::CNAME(CNAME(wire(target))))
}

// ---- the agent's side ----

/// Name, chain, addresses.
type Grant = (String, Vec<String>, Vec<IpAddr>);

#[derive(Default)]
struct Agent {
    grants: Mutex<Vec<Grant>>,
    events: Mutex<Vec<DnsEvent>>,
    refuses: AtomicBool,
    strangers: AtomicBool,
}

impl AddressSink for Agent {
    fn grant(&self, name: &Name, chain: &[Name], addresses: &[IpAddr]) -> Result<(), GrantError> {
        if self.refuses.load(Ordering::Relaxed) {
            return Err(GrantError::new(io::Error::other("the map is full")));
        }
        let chain = chain.iter().map(Name::to_string).collect();
        self.grants
            .lock()
            .unwrap()
            .push((name.to_string(), chain, addresses.to_vec()));
        Ok(())
    }
}

impl EventSink for Agent {
    fn client(&self, _: SocketAddr, _: Transport) -> Option<Client> {
        let client = Client {
            pid: 1,
            uid: 1,
            comm: *b"client\0\0\0\0\0\0\0\0\0\0",
        };
        (!self.strangers.load(Ordering::Relaxed)).then_some(client)
    }

    fn is_ready(&self) -> bool {
        true
    }

    fn dns(&self, event: DnsEvent, _: Client) -> Result<(), Unnoted> {
        self.events.lock().unwrap().push(event);
        Ok(())
    }
}

// ---- both, and a client ----

struct Bed {
    fake: Arc<Fake>,
    agent: Arc<Agent>,
    table: Arc<Table>,
    resolver: Resolver,
    client: UdpSocket,
    _tasks: JoinSet<()>,
}

impl Bed {
    async fn new(job: Job, zones: &[(&str, Zone)]) -> Self {
        let fake = Arc::new(Fake {
            zones: zones
                .iter()
                .map(|(name, zone)| (format!("{name}."), zone.clone()))
                .collect(),
            ..Fake::default()
        });
        let mut tasks = JoinSet::new();
        let port = fake.serve(&mut tasks).await;
        let resolv_conf =
            "nameserver 127.0.0.1\nsearch Corp.test lan\noptions timeout:1 attempts:1";
        let upstream = Upstream::with_port(resolv_conf, port).unwrap();
        let agent = Arc::new(Agent::default());
        let table = Arc::new(Table::default());
        let config = Config {
            job: Arc::new(job),
            ports: None,
            resolv_conf,
            host_name: "Runner7.corp.test",
            table: Arc::clone(&table),
            addresses: Arc::clone(&agent) as Arc<dyn AddressSink>,
            events: Arc::clone(&agent) as Arc<dyn EventSink>,
        };
        let resolver = Resolver::bind_with(config, upstream, &|_| Ok(()))
            .await
            .unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client
            .connect(("127.0.0.1", resolver.ports().v4))
            .await
            .unwrap();
        Self {
            fake,
            agent,
            table,
            resolver,
            client,
            _tasks: tasks,
        }
    }

    async fn exchange(&self, bytes: &[u8]) -> Message {
        self.client.send(bytes).await.unwrap();
        self.receive().await
    }

    async fn receive(&self) -> Message {
        let mut buffer = [0; 65_535];
        let length = timeout(PATIENCE, self.client.recv(&mut buffer))
            .await
            .expect("no answer")
            .unwrap();
        Message::from_vec(&buffer[..length]).unwrap()
    }

    async fn ask(&self, name: &str, kind: RecordType) -> Message {
        self.exchange(&question(wire(name), kind, true)).await
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.resolver.ports().v4))
            .await
            .unwrap()
    }

    /// The only event since the last call.
    fn event(&self) -> DnsEvent {
        let mut events = self.events();
        assert_eq!(events.len(), 1, "{events:?}");
        events.remove(0)
    }

    fn events(&self) -> Vec<DnsEvent> {
        std::mem::take(&mut *self.agent.events.lock().unwrap())
    }

    fn asked_upstream(&self) -> Vec<String> {
        self.fake.asked.lock().unwrap().clone()
    }
}

fn question(name: WireName, kind: RecordType, edns: bool) -> Vec<u8> {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind));
    if edns {
        let mut edns = Edns::new();
        edns.set_max_payload(1232);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

async fn ask_tcp(stream: &mut TcpStream, bytes: &[u8]) -> Message {
    stream
        .write_u16(bytes.len().try_into().unwrap())
        .await
        .unwrap();
    stream.write_all(bytes).await.unwrap();
    read_tcp(stream).await
}

async fn read_tcp(stream: &mut TcpStream) -> Message {
    let read = async {
        let length = stream.read_u16().await.unwrap();
        let mut bytes = vec![0; length.into()];
        stream.read_exact(&mut bytes).await.unwrap();
        Message::from_vec(&bytes).unwrap()
    };
    timeout(PATIENCE, read).await.expect("no answer over TCP")
}

fn extended_error(reply: &Message) -> (u16, String) {
    match reply.edns.as_ref().and_then(|edns| edns.option(15.into())) {
        Some(EdnsOption::Unknown(15, bytes)) => {
            let (code, text) = bytes.split_first_chunk::<2>().unwrap();
            (
                u16::from_be_bytes(*code),
                String::from_utf8(text.to_vec()).unwrap(),
            )
        }
        other => panic!("no extended error but {other:?}"),
    }
}

fn addresses(reply: &Message) -> Vec<IpAddr> {
    reply
        .answers
        .iter()
        .filter_map(|record| record.data.ip_addr())
        .collect()
}

fn code(reply: &Message) -> ResponseCode {
    reply.metadata.response_code
}

fn public(owner: &str) -> Zone {
    Zone::Answer(vec![address(owner, PUBLIC)])
}

// ---- refused names ----

#[tokio::test]
async fn a_refused_name_is_told_so_and_nobody_is_asked() {
    let bed = Bed::new(
        policy(),
        &[("secret.blocked.test", public("secret.blocked.test"))],
    )
    .await;
    for kind in [
        RecordType::A,
        RecordType::AAAA,
        RecordType::TXT,
        RecordType::HTTPS,
    ] {
        let reply = bed.ask("secret.blocked.test", kind).await;
        assert_eq!(code(&reply), ResponseCode::NXDomain);
        assert!(reply.answers.is_empty() && reply.authorities.is_empty());
        assert_eq!(
            extended_error(&reply),
            (
                15,
                "jobfence: no rule allows secret.blocked.test".to_owned()
            )
        );
        let event = bed.event();
        assert_eq!((event.verdict, event.reason), (Verdict::Deny, Reason::NAME));
        assert!(event.violation);
        assert_eq!(event.qname, "secret.blocked.test");
        assert_eq!(event.qtype, kind.to_string());
        assert_eq!(event.rcode, "NXDOMAIN");
        assert_eq!(event.peer, bed.client.local_addr().unwrap());
    }
    assert_eq!(bed.asked_upstream(), [""; 0]);
    assert!(bed.agent.grants.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_client_without_edns_gets_none() {
    let bed = Bed::new(policy(), &[]).await;
    let reply = bed
        .exchange(&question(wire("blocked.test"), RecordType::A, false))
        .await;
    assert_eq!(code(&reply), ResponseCode::NXDomain);
    assert!(reply.edns.is_none());
}

#[tokio::test]
async fn a_denied_name_is_a_violation_unless_its_rule_says_otherwise() {
    let bed = Bed::new(policy(), &[]).await;
    for (name, violation) in [("denied.test", true), ("telemetry.test", false)] {
        let reply = bed.ask(name, RecordType::A).await;
        assert_eq!(code(&reply), ResponseCode::NXDomain);
        assert_eq!(extended_error(&reply).0, 15);
        let event = bed.event();
        assert_eq!(
            (event.reason, event.violation),
            (Reason::DENIED, violation),
            "{name}"
        );
        assert!(event.rule.is_some());
    }
    assert_eq!(bed.asked_upstream(), [""; 0]);
}

#[tokio::test]
async fn names_that_are_no_host_names_are_refused_and_shown_escaped() {
    let bed = Bed::new(policy(), &[]).await;
    let table: [(&[u8], &str); 3] = [
        (b"a\x1b[31m", "a\\027\\09131m.wild.test"),
        (b"data.in.a.label", "data\\046in\\046a\\046label.wild.test"),
        (b"\xff", "\\255.wild.test"),
    ];
    for (label, shown) in table {
        let name = WireName::from_labels([label, b"wild", b"test"]).unwrap();
        let reply = bed.exchange(&question(name, RecordType::A, true)).await;
        assert_eq!(code(&reply), ResponseCode::NXDomain, "{shown}");
        let event = bed.event();
        assert_eq!(event.qname, shown);
        assert!(event.violation);
    }
    let reply = bed.ask(".", RecordType::NS).await;
    assert_eq!(code(&reply), ResponseCode::NXDomain);
    assert_eq!(bed.event().qname, ".");
    assert_eq!(bed.asked_upstream(), [""; 0]);
}

#[tokio::test]
async fn what_the_c_library_makes_up_is_refused_without_a_violation() {
    let bed = Bed::new(policy(), &[]).await;
    let table = [
        ("allowed.test.corp.test", false),
        ("x.wild.test.lan", false),
        ("localhost.lan", false),
        ("runner7", false),
        ("runner7.corp.test", false),
        ("runner7.lan", false),
        ("blocked.test.lan", true),
        ("allowed.test.other.test", true),
        ("xallowed.testcorp.test", true),
        ("denied.test.lan", true),
        ("lan", true),
    ];
    for (name, violation) in table {
        let reply = bed.ask(name, RecordType::A).await;
        assert_eq!(code(&reply), ResponseCode::NXDomain, "{name}");
        let event = bed.event();
        assert_eq!(
            (event.reason, event.violation),
            (Reason::NAME, violation),
            "{name}"
        );
    }
    assert_eq!(bed.asked_upstream(), [""; 0]);
}

// ---- allowed names ----

#[tokio::test]
async fn an_allowed_name_is_resolved_and_granted_before_the_answer() {
    let bed = Bed::new(
        policy(),
        &[(
            "allowed.test",
            Zone::Answer(vec![
                alias("allowed.test", "edge.cdn.test"),
                alias("edge.cdn.test", "node.cdn.test"),
                address("node.cdn.test", PUBLIC),
                address("node.cdn.test", "2001:db8::7".parse::<IpAddr>().unwrap()),
                address("stray.test", [198, 51, 100, 99]),
            ]),
        )],
    )
    .await;
    let reply = bed.ask("allowed.test", RecordType::A).await;
    assert_eq!(code(&reply), ResponseCode::NoError);
    assert_eq!(addresses(&reply), [IpAddr::from(PUBLIC)]);
    assert_eq!(
        reply.answers.len(),
        3,
        "two aliases and the address: {reply}"
    );
    let chain = vec!["edge.cdn.test".to_owned(), "node.cdn.test".to_owned()];
    assert_eq!(
        *bed.agent.grants.lock().unwrap(),
        [("allowed.test".to_owned(), chain, vec![IpAddr::from(PUBLIC)])]
    );
    let event = bed.event();
    assert_eq!(
        (event.verdict, event.reason),
        (Verdict::Allow, Reason::ALLOWED)
    );
    assert!(!event.violation && event.rule.is_some());
    assert_eq!(event.addresses, [IpAddr::from(PUBLIC)]);
    assert_eq!(event.chain.len(), 2);

    let reply = bed.ask("allowed.test", RecordType::AAAA).await;
    assert_eq!(
        addresses(&reply),
        ["2001:db8::7".parse::<IpAddr>().unwrap()]
    );
    let name = Name::parse("allowed.test").unwrap();
    assert_eq!(
        bed.table.names_of(PUBLIC.into()),
        std::slice::from_ref(&name)
    );
    assert_eq!(bed.table.addresses_of(&name).len(), 2);
    assert_eq!(bed.table.chain_of(&name).len(), 2);
}

#[tokio::test]
async fn the_target_of_an_allowed_name_is_not_allowed_by_itself() {
    let zone = Zone::Answer(vec![
        alias("allowed.test", "target.test"),
        address("target.test", PUBLIC),
    ]);
    let bed = Bed::new(policy(), &[("allowed.test", zone)]).await;
    assert_eq!(
        addresses(&bed.ask("allowed.test", RecordType::A).await).len(),
        1
    );
    let asked = bed.asked_upstream().len();
    assert_eq!(
        code(&bed.ask("target.test", RecordType::A).await),
        ResponseCode::NXDomain
    );
    assert_eq!(bed.asked_upstream().len(), asked);
}

#[tokio::test]
async fn a_target_in_another_answer_is_followed() {
    let bed = Bed::new(
        policy(),
        &[
            (
                "allowed.test",
                Zone::Answer(vec![alias("allowed.test", "target.test")]),
            ),
            ("target.test", public("target.test")),
        ],
    )
    .await;
    for _ in 0..2 {
        let reply = bed.ask("allowed.test", RecordType::A).await;
        assert_eq!(addresses(&reply), [IpAddr::from(PUBLIC)], "{reply}");
        assert_eq!(bed.event().chain, [Name::parse("target.test").unwrap()]);
    }
}

#[tokio::test]
async fn case_is_echoed_and_does_not_matter() {
    let bed = Bed::new(policy(), &[("allowed.test", public("allowed.test"))]).await;
    for name in ["aLLowed.TEST", "ALLOWED.test"] {
        let reply = bed.ask(name, RecordType::A).await;
        assert_eq!(addresses(&reply), [IpAddr::from(PUBLIC)]);
        assert_eq!(reply.queries[0].name().to_ascii(), format!("{name}."));
        assert_eq!(reply.answers[0].name.to_ascii(), format!("{name}."));
        assert_eq!(bed.event().qname, "allowed.test");
    }
    assert_eq!(bed.asked_upstream(), ["allowed.test. A"]);
}

#[tokio::test]
async fn a_cached_answer_grows_old_and_is_not_granted_again() {
    let bed = Bed::new(policy(), &[("allowed.test", public("allowed.test"))]).await;
    let first = bed.ask("allowed.test", RecordType::A).await;
    assert_eq!(first.answers[0].ttl, 300);
    // The time that is measured here, not a time to wait for somebody.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let second = bed.ask("allowed.test", RecordType::A).await;
    assert!(second.answers[0].ttl < 300, "TTL {}", second.answers[0].ttl);
    assert_eq!(addresses(&second), addresses(&first));
    assert_eq!(bed.asked_upstream().len(), 1);
    assert_eq!(bed.agent.grants.lock().unwrap().len(), 1);
    assert_eq!(bed.events().len(), 2);
}

#[tokio::test]
async fn what_was_just_answered_is_noted_again_and_not_for_strangers() {
    let bed = Bed::new(policy(), &[("allowed.test", public("allowed.test"))]).await;
    let mut asked = question(wire("allowed.test"), RecordType::A, true);
    let first = bed.exchange(&asked).await;
    asked[..2].copy_from_slice(&[1, 2]);
    let again = bed.exchange(&asked).await;
    assert_eq!(
        (again.metadata.id, &again.answers),
        (0x0102, &first.answers)
    );
    let [first, again] = bed.events().try_into().unwrap();
    assert_eq!(first, again);
    bed.agent.strangers.store(true, Ordering::Relaxed);
    let refused = bed.exchange(&asked).await;
    assert_eq!(code(&refused), ResponseCode::Refused);
    assert_eq!(bed.events(), []);
}

#[tokio::test]
async fn the_absence_of_a_name_or_of_an_address_is_passed_on() {
    let bed = Bed::new(
        policy(),
        &[
            ("a.wild.test", Zone::Code(ResponseCode::NXDomain)),
            ("b.wild.test", Zone::Answer(vec![])),
        ],
    )
    .await;
    for (name, expected, word) in [
        ("a.wild.test", ResponseCode::NXDomain, "NXDOMAIN"),
        ("b.wild.test", ResponseCode::NoError, "NOERROR"),
    ] {
        let reply = bed.ask(name, RecordType::A).await;
        assert_eq!(code(&reply), expected);
        assert!(reply.answers.is_empty());
        let event = bed.event();
        assert_eq!((event.verdict, event.violation), (Verdict::Allow, false));
        assert_eq!(event.rcode, word);
    }
}

#[tokio::test]
async fn a_failing_upstream_is_a_server_failure_and_no_violation() {
    let bed = Bed::new(
        policy(),
        &[
            ("a.wild.test", Zone::Code(ResponseCode::ServFail)),
            ("b.wild.test", Zone::Silence),
            (
                "c.wild.test",
                Zone::Answer(vec![
                    alias("c.wild.test", "d.wild.test"),
                    alias("d.wild.test", "c.wild.test"),
                ]),
            ),
        ],
    )
    .await;
    for name in ["a.wild.test", "b.wild.test"] {
        let reply = bed.ask(name, RecordType::A).await;
        assert_eq!(code(&reply), ResponseCode::ServFail, "{name}");
        assert_eq!(extended_error(&reply).0, 23);
        let event = bed.event();
        assert_eq!(
            (event.verdict, event.reason),
            (Verdict::Allow, Reason::UPSTREAM),
            "{name}"
        );
        assert!(!event.violation);
        assert_eq!(event.rcode, "SERVFAIL");
    }
    let reply = bed.ask("c.wild.test", RecordType::A).await;
    assert!(reply.answers.is_empty(), "a loop of aliases: {reply}");
    assert!(bed.agent.grants.lock().unwrap().is_empty());
}

#[tokio::test]
async fn of_a_question_nothing_but_the_name_and_the_type_goes_upstream() {
    let bed = Bed::new(policy(), &[]).await;
    let plain = question(wire("n0.wild.test"), RecordType::A, false);
    let dressed = {
        let mut message = Message::new(0x5ec7, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = false;
        message.metadata.authentic_data = true;
        message.metadata.checking_disabled = true;
        message.metadata.authoritative = true;
        message.add_query(Query::query(wire("N1.wILD.test"), RecordType::A));
        let mut edns = Edns::new();
        edns.set_max_payload(4000);
        edns.set_dnssec_ok(true);
        // A client subnet, a cookie, padding, a name server id and one for local use.
        for (code, content) in [
            (8, &[0, 1, 24, 0, 192, 0, 2][..]),
            (10, b"8 bytes."),
            (12, b"padding that says something"),
            (3, b"id"),
            (65_001, b"data"),
        ] {
            edns.options_mut()
                .insert(EdnsOption::Unknown(code, content.to_vec()));
        }
        message.set_edns(edns);
        let mut bytes = message.to_vec().unwrap();
        bytes.extend(b"and what follows the message");
        bytes
    };
    for bytes in [plain, dressed] {
        let reply = bed.exchange(&bytes).await;
        assert_eq!(code(&reply), ResponseCode::NXDomain);
        let options = reply
            .edns
            .as_ref()
            .map_or(0, |edns| edns.options().as_ref().len());
        assert_eq!(options, 0, "options in an answer that explains nothing");
    }
    let mut sent = bed.fake.messages.lock().unwrap().clone();
    assert_eq!(sent.len(), 2, "{sent:02x?}");
    for (i, bytes) in sent.iter_mut().enumerate() {
        assert_eq!(bytes[12..15], [2, b'n', b'0' + u8::try_from(i).unwrap()]);
        bytes[14] = 0;
    }
    assert_ne!(sent[0][..2], [0x12, 0x67], "the id of the job's question");
    assert_ne!(sent[1][..2], [0x5e, 0xc7], "the id of the job's question");
    assert_eq!(sent[0][2..], sent[1][2..]);
}

// ---- addresses ----

#[tokio::test]
async fn private_addresses_are_left_out() {
    let zone = Zone::Answer(vec![
        address("allowed.test", [10, 0, 0, 1]),
        address("allowed.test", PUBLIC),
        address("allowed.test", [127, 0, 0, 1]),
    ]);
    let bed = Bed::new(policy(), &[("allowed.test", zone)]).await;
    let reply = bed.ask("allowed.test", RecordType::A).await;
    assert_eq!(addresses(&reply), [IpAddr::from(PUBLIC)]);
    assert_eq!(
        bed.agent.grants.lock().unwrap()[0].2,
        [IpAddr::from(PUBLIC)]
    );
    assert_eq!(bed.event().verdict, Verdict::Allow);
}

#[tokio::test]
async fn a_name_that_leads_only_to_private_addresses_is_refused_with_the_reason() {
    let zone = Zone::Answer(vec![
        alias("allowed.test", "rebind.test"),
        address("rebind.test", [10, 0, 0, 1]),
        address("rebind.test", [169, 254, 169, 254]),
    ]);
    let bed = Bed::new(policy(), &[("allowed.test", zone)]).await;
    let reply = bed.ask("allowed.test", RecordType::A).await;
    assert_eq!(code(&reply), ResponseCode::NoError);
    assert!(reply.answers.is_empty(), "{reply}");
    let (code, text) = extended_error(&reply);
    assert_eq!(code, 15);
    assert!(text.contains("private: true"), "{text}");
    let event = bed.event();
    assert_eq!(
        (event.verdict, event.reason),
        (Verdict::Deny, Reason::PRIVATE_ADDRESS)
    );
    assert!(event.violation);
    assert_eq!(event.addresses.len(), 2);
    assert!(bed.agent.grants.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_rule_may_open_private_addresses_but_not_loopback_or_metadata() {
    let zone = Zone::Answer(vec![
        address("inside.test", [10, 0, 0, 1]),
        address("inside.test", [127, 0, 0, 1]),
        address("inside.test", [169, 254, 169, 254]),
        address("inside.test", [0, 0, 0, 0]),
        address("inside.test", [224, 0, 0, 1]),
    ]);
    let bed = Bed::new(policy(), &[("inside.test", zone)]).await;
    let reply = bed.ask("inside.test", RecordType::A).await;
    assert_eq!(addresses(&reply), [IpAddr::from([10, 0, 0, 1])]);
    assert_eq!(
        bed.agent.grants.lock().unwrap()[0].2,
        [IpAddr::from([10, 0, 0, 1])]
    );
}

#[tokio::test]
async fn an_address_that_cannot_be_granted_is_not_answered() {
    let bed = Bed::new(policy(), &[("allowed.test", public("allowed.test"))]).await;
    bed.agent.refuses.store(true, Ordering::Relaxed);
    for _ in 0..2 {
        let reply = bed.ask("allowed.test", RecordType::A).await;
        assert_eq!(code(&reply), ResponseCode::ServFail);
        assert!(extended_error(&reply).1.contains("the map is full"));
        let event = bed.event();
        assert_eq!(
            (event.verdict, event.reason),
            (Verdict::Deny, Reason::LIMIT)
        );
    }
    assert!(bed.table.names_of(PUBLIC.into()).is_empty());
    bed.agent.refuses.store(false, Ordering::Relaxed);
    let reply = bed.ask("allowed.test", RecordType::A).await;
    assert_eq!(
        addresses(&reply),
        [IpAddr::from(PUBLIC)],
        "a later grant must work"
    );
}

// ---- record types and special names ----

#[tokio::test]
async fn other_types_of_an_allowed_name_are_empty_and_never_asked_for() {
    let bed = Bed::new(policy(), &[("allowed.test", public("allowed.test"))]).await;
    for kind in [RecordType::HTTPS, RecordType::SVCB] {
        let reply = bed.ask("allowed.test", kind).await;
        assert_eq!(
            (code(&reply), reply.answers.len()),
            (ResponseCode::NoError, 0)
        );
        assert_eq!(bed.events(), [], "{kind}");
    }
    let quiet = [
        RecordType::SRV,
        RecordType::NAPTR,
        RecordType::SSHFP,
        RecordType::TLSA,
        RecordType::CAA,
        RecordType::DS,
        RecordType::DNSKEY,
        RecordType::SOA,
        RecordType::NS,
    ];
    let counted = [
        RecordType::TXT,
        RecordType::NULL,
        RecordType::ANY,
        RecordType::MX,
        RecordType::CNAME,
        RecordType::AXFR,
        RecordType::PTR,
        RecordType::from(65_280),
    ];
    let all = quiet
        .map(|kind| (kind, false))
        .into_iter()
        .chain(counted.map(|kind| (kind, true)));
    for (kind, violation) in all {
        let reply = bed.ask("allowed.test", kind).await;
        assert_eq!(
            (code(&reply), reply.answers.len()),
            (ResponseCode::NoError, 0),
            "{kind}"
        );
        let event = bed.event();
        assert_eq!(
            (event.verdict, event.reason),
            (Verdict::Deny, Reason::DNS_TYPE),
            "{kind}"
        );
        assert_eq!(event.violation, violation, "{kind}");
    }
    assert_eq!(bed.asked_upstream(), [""; 0]);
}

#[tokio::test]
async fn service_names_below_an_allowed_name_are_no_violation() {
    let bed = Bed::new(policy(), &[]).await;
    for (name, kind) in [
        ("_https._tcp.allowed.test", RecordType::SRV),
        ("_acme-challenge.allowed.test", RecordType::TXT),
    ] {
        let reply = bed.ask(name, kind).await;
        assert_eq!(
            (code(&reply), reply.answers.len()),
            (ResponseCode::NoError, 0)
        );
        let event = bed.event();
        assert_eq!(
            (event.reason, event.violation),
            (Reason::DNS_TYPE, false),
            "{name}"
        );
    }
    for name in ["_https._tcp.blocked.test", "_a.x.allowed.test", "_tcp"] {
        let reply = bed.ask(name, RecordType::SRV).await;
        assert_eq!(code(&reply), ResponseCode::NXDomain, "{name}");
        let event = bed.event();
        assert_eq!(
            (event.reason, event.violation),
            (Reason::NAME, true),
            "{name}"
        );
    }
    assert_eq!(bed.asked_upstream(), [""; 0]);
}

#[tokio::test]
async fn localhost_needs_no_rule_and_makes_no_event() {
    let bed = Bed::new(policy(), &[]).await;
    for name in ["localhost", "LocalHost", "db.localhost"] {
        let reply = bed.ask(name, RecordType::A).await;
        assert_eq!(
            addresses(&reply),
            [IpAddr::from(Ipv4Addr::LOCALHOST)],
            "{name}"
        );
        let reply = bed.ask(name, RecordType::AAAA).await;
        assert_eq!(
            addresses(&reply),
            ["::1".parse::<IpAddr>().unwrap()],
            "{name}"
        );
        let reply = bed.ask(name, RecordType::TXT).await;
        assert_eq!(
            (code(&reply), reply.answers.len()),
            (ResponseCode::NoError, 0)
        );
    }
    assert_eq!(bed.events(), []);
    assert_eq!(bed.asked_upstream(), [""; 0]);
    let reply = bed.ask("notlocalhost", RecordType::A).await;
    assert_eq!(code(&reply), ResponseCode::NXDomain);
}

#[tokio::test]
async fn reverse_names_are_answered_from_what_the_job_was_given() {
    let v6: IpAddr = "2001:db8::7".parse().unwrap();
    let zone = Zone::Answer(vec![
        address("allowed.test", PUBLIC),
        address("allowed.test", v6),
    ]);
    let bed = Bed::new(policy(), &[("allowed.test", zone)]).await;
    let reverse = |ip: IpAddr| WireName::from(ip).to_ascii();

    let reply = bed.ask(&reverse(PUBLIC.into()), RecordType::PTR).await;
    assert_eq!(
        code(&reply),
        ResponseCode::NXDomain,
        "before the address was given"
    );
    bed.ask("allowed.test", RecordType::A).await;
    bed.ask("allowed.test", RecordType::AAAA).await;
    let asked = bed.asked_upstream().len();
    bed.events();
    for ip in [PUBLIC.into(), v6] {
        let reply = bed.ask(&reverse(ip), RecordType::PTR).await;
        assert_eq!(reply.answers.len(), 1, "{ip}");
        assert_eq!(reply.answers[0].data.to_string(), "allowed.test.");
        assert_eq!(bed.event().verdict, Verdict::Allow);
    }
    for ip in ["127.0.0.1", "::1"] {
        let reply = bed
            .ask(&reverse(ip.parse().unwrap()), RecordType::PTR)
            .await;
        assert_eq!(reply.answers[0].data.to_string(), "localhost.");
        assert_eq!(bed.events(), []);
    }
    let unknown = reverse([198, 51, 100, 8].into());
    for name in [
        &unknown,
        "100.51.198.in-addr.arpa",
        "x.in-addr.arpa",
        "data.ip6.arpa",
    ] {
        let reply = bed.ask(name, RecordType::PTR).await;
        assert_eq!(code(&reply), ResponseCode::NXDomain, "{name}");
        let event = bed.event();
        assert_eq!(
            (event.reason, event.violation),
            (Reason::NAME, false),
            "{name}"
        );
    }
    assert_eq!(bed.asked_upstream().len(), asked);
}

// ---- audit mode ----

#[tokio::test]
async fn audit_mode_keeps_nothing_from_the_job_and_says_what_would_be() {
    let bed = Bed::new(
        audited(),
        &[
            (
                "blocked.test",
                Zone::Answer(vec![address("blocked.test", [10, 0, 0, 1])]),
            ),
            ("denied.test", public("denied.test")),
            (
                "allowed.test",
                Zone::Answer(vec![address("allowed.test", [10, 0, 0, 2])]),
            ),
        ],
    )
    .await;
    for (name, reason) in [
        ("blocked.test", Reason::NAME),
        ("denied.test", Reason::DENIED),
        ("allowed.test", Reason::PRIVATE_ADDRESS),
    ] {
        let reply = bed.ask(name, RecordType::A).await;
        assert_eq!(addresses(&reply).len(), 1, "{name}");
        let event = bed.event();
        assert_eq!(
            (event.verdict, event.reason),
            (Verdict::Deny, reason),
            "{name}"
        );
        assert!(!event.violation);
        assert_eq!(bed.agent.grants.lock().unwrap().last().unwrap().0, name);
    }
    for name in ["blocked.test", "denied.test", "allowed.test"] {
        for kind in [RecordType::TXT, RecordType::HTTPS] {
            let reply = bed.ask(name, kind).await;
            assert_eq!(
                (code(&reply), reply.answers.len()),
                (ResponseCode::NoError, 0),
                "{kind} of {name}, which has addresses"
            );
        }
    }
    assert!(bed.events().iter().all(|event| !event.violation));
}

// ---- messages ----

#[tokio::test]
async fn messages_that_are_no_question_are_refused_and_noted() {
    let bed = Bed::new(policy(), &[]).await;
    let good = question(wire("allowed.test"), RecordType::A, true);
    let with = |position: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[position] = value;
        bytes
    };
    let chaos = {
        let mut message = Message::from_vec(&good).unwrap();
        message.queries[0].set_query_class(DNSClass::CH);
        message.to_vec().unwrap()
    };
    let future = {
        let mut message = Message::from_vec(&good).unwrap();
        message.edns.as_mut().unwrap().set_version(1);
        message.to_vec().unwrap()
    };
    let table = [
        ("two questions", with(5, 2), 1, Reason::MALFORMED),
        ("no question", with(5, 0), 1, Reason::MALFORMED),
        ("an update", with(2, 5 << 3), 4, Reason::MALFORMED),
        ("a cut message", good[..20].to_vec(), 1, Reason::MALFORMED),
        ("class CHAOS", chaos, 5, Reason::DNS_TYPE),
        ("EDNS version 1", future, 16, Reason::MALFORMED),
    ];
    for (what, bytes, expected, reason) in table {
        let reply = bed.exchange(&bytes).await;
        assert_eq!(u16::from(code(&reply)), expected, "{what}");
        assert_eq!(reply.metadata.id, 4711);
        let event = bed.event();
        assert_eq!(
            (event.verdict, event.reason),
            (Verdict::Deny, reason),
            "{what}"
        );
        assert!(!event.violation);
    }
    // Neither of these is replied to; the next reply is that to the question after them.
    bed.client.send(&with(2, 0x80)).await.unwrap();
    bed.client.send(&good[..5]).await.unwrap();
    let reply = bed.ask("localhost", RecordType::A).await;
    assert_eq!(reply.queries[0].name().to_ascii(), "localhost.");
    assert_eq!(bed.asked_upstream(), [""; 0]);
}

#[tokio::test]
async fn an_answer_too_long_for_a_datagram_is_asked_for_again_over_tcp() {
    let records: Vec<_> = (0..200)
        .map(|last| address("allowed.test", [198, 51, 100, last]))
        .collect();
    let bed = Bed::new(policy(), &[("allowed.test", Zone::Answer(records))]).await;
    let bytes = question(wire("allowed.test"), RecordType::A, true);
    let reply = bed.exchange(&bytes).await;
    assert!(reply.metadata.truncation && reply.answers.is_empty());
    assert!(reply.edns.is_some());
    let mut stream = bed.connect().await;
    for _ in 0..2 {
        let reply = ask_tcp(&mut stream, &bytes).await;
        assert!(!reply.metadata.truncation);
        assert_eq!(addresses(&reply).len(), 200);
    }
    let events = bed.events();
    assert_eq!(
        events
            .iter()
            .map(|event| event.transport)
            .collect::<Vec<_>>(),
        [Transport::Udp, Transport::Tcp, Transport::Tcp]
    );
    assert_eq!(events[1].peer, stream.local_addr().unwrap());
}

#[tokio::test]
async fn each_message_of_a_stream_is_judged_by_itself_and_answered_in_turn() {
    let bed = Bed::new(policy(), &[("allowed.test", public("allowed.test"))]).await;
    let names = [
        "allowed.test",
        "blocked.test",
        "allowed.test",
        "denied.test",
    ];
    let mut stream = bed.connect().await;
    let mut bytes = Vec::new();
    for name in names {
        let message = question(wire(name), RecordType::A, true);
        bytes.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
        bytes.extend(message);
    }
    // In one segment but for the last byte, then that.
    let (most, last) = bytes.split_at(bytes.len() - 1);
    stream.write_all(most).await.unwrap();
    let mut replies = Vec::new();
    for _ in 1..names.len() {
        replies.push(read_tcp(&mut stream).await);
    }
    stream.write_all(last).await.unwrap();
    replies.push(read_tcp(&mut stream).await);
    let found: Vec<_> = replies
        .iter()
        .map(|reply| (reply.queries[0].name().to_ascii(), addresses(reply).len()))
        .collect();
    let expected = names.map(|name| (format!("{name}."), usize::from(name == "allowed.test")));
    assert_eq!(found, expected);
    let reasons: Vec<_> = bed.events().iter().map(|event| event.reason).collect();
    let expected = [
        Reason::ALLOWED,
        Reason::NAME,
        Reason::ALLOWED,
        Reason::DENIED,
    ];
    assert_eq!(reasons, expected);
    assert_eq!(bed.asked_upstream(), ["allowed.test. A"]);
}

#[tokio::test]
async fn both_address_families_are_served() {
    let bed = Bed::new(policy(), &[("allowed.test", public("allowed.test"))]).await;
    let has_ipv6 = std::net::UdpSocket::bind("[::1]:0").is_ok();
    let port = bed.resolver.ports().v6;
    assert_eq!(port.is_some(), has_ipv6);
    let Some(port) = port else { return };
    let mut stream = TcpStream::connect(("::1", port)).await.unwrap();
    let bytes = question(wire("allowed.test"), RecordType::A, false);
    assert_eq!(
        addresses(&ask_tcp(&mut stream, &bytes).await),
        [IpAddr::from(PUBLIC)]
    );
    let client = UdpSocket::bind("[::1]:0").await.unwrap();
    client.send_to(&bytes, ("::1", port)).await.unwrap();
    let mut buffer = [0; 512];
    let length = timeout(PATIENCE, client.recv(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    let reply = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(addresses(&reply), [IpAddr::from(PUBLIC)]);
}

// ---- limits ----

#[tokio::test]
async fn questions_beyond_the_limit_fail_at_once_and_cached_names_go_on() {
    let names: Vec<_> = (0..decide::MAX_WAITING + 20)
        .map(|i| format!("n{i}.exact.test"))
        .collect();
    let hosts: String = names
        .iter()
        .chain([&"allowed.test".to_owned()])
        .map(|name| format!("      - host: {name}\n"))
        .collect();
    let text = format!("version: 1\njobs:\n  default:\n    allow:\n{hosts}");
    let policy = jobfence_policy::Policy::parse("policy.yml", text.as_bytes())
        .and_then(|policy| policy.job(None))
        .unwrap_or_else(|error| panic!("{error}"));
    let mut zones: Vec<_> = names
        .iter()
        .map(|name| (name.as_str(), Zone::Silence))
        .collect();
    zones.push(("allowed.test", public("allowed.test")));
    let bed = Bed::new(policy, &zones).await;
    bed.ask("allowed.test", RecordType::A).await;
    bed.events();
    for name in &names {
        bed.client
            .send(&question(wire(name), RecordType::A, true))
            .await
            .unwrap();
    }
    for _ in 0..20 {
        let reply = bed.receive().await;
        assert_eq!(code(&reply), ResponseCode::ServFail);
        assert_eq!(extended_error(&reply).0, 0, "{reply}");
    }
    let reasons: Vec<_> = bed.events().into_iter().map(|event| event.reason).collect();
    assert_eq!(reasons, [Reason::LIMIT; 20]);
    let reply = bed.ask("allowed.test", RecordType::A).await;
    assert_eq!(addresses(&reply), [IpAddr::from(PUBLIC)]);
}

#[tokio::test]
async fn a_tunnel_in_names_below_a_wildcard_ends_and_other_names_go_on() {
    let zones = [
        ("allowed.test", public("allowed.test")),
        ("mirror.wild.test", public("mirror.wild.test")),
    ];
    let bed = Bed::new(policy(), &zones).await;
    bed.ask("mirror.wild.test", RecordType::A).await;
    // Three labels of payload below the wildcard, as tunnels make them.
    let payload = |i: usize| {
        let label = "d".repeat(57);
        format!("{label}.{label}.{i:057}.wild.test")
    };
    let mut codes = Vec::new();
    for i in 0..100 {
        codes.push(code(&bed.ask(&payload(i), RecordType::A).await));
    }
    // The zone has none of them, so the codes of both kinds are the same: what differs is who was
    // asked, and what the events say.
    assert_eq!(codes, [ResponseCode::NXDomain; 100]);
    let suffix = ".wild.test. A";
    let sent: usize = bed
        .asked_upstream()
        .iter()
        .map(|asked| asked.strip_suffix(suffix).unwrap().len())
        .sum();
    assert!(sent <= 4096, "{sent} bytes left in names");
    assert!(sent > 4096 / 2, "{sent} bytes are too few");
    let events = bed.events();
    let last = events.last().unwrap();
    assert_eq!((last.verdict, last.reason), (Verdict::Deny, Reason::LIMIT));
    assert!(last.violation && last.rule.is_some());
    let refused = events
        .iter()
        .filter(|event| event.reason == Reason::LIMIT)
        .count();
    assert_eq!(refused, 101 - bed.asked_upstream().len());

    let reply = bed.ask(&payload(99), RecordType::AAAA).await;
    let (number, text) = extended_error(&reply);
    assert_eq!(number, 15);
    assert!(text.ends_with("4096 bytes, the limit"), "{text}");
    let asked = bed.asked_upstream().len();
    for name in ["mirror.wild.test", "allowed.test"] {
        let reply = bed.ask(name, RecordType::A).await;
        assert_eq!(addresses(&reply), [IpAddr::from(PUBLIC)], "{name}");
    }
    // The type is not part of the name: this one was counted before.
    bed.ask("mirror.wild.test", RecordType::AAAA).await;
    assert_eq!(bed.asked_upstream().len(), asked + 2);
}

#[tokio::test]
async fn in_audit_mode_a_tunnel_goes_on_and_is_noted() {
    let bed = Bed::new(audited(), &[]).await;
    let deep = format!("{}wild.test", "a.".repeat(allowance::MAX_DEPTH + 1));
    bed.ask(&deep, RecordType::A).await;
    let event = bed.event();
    assert_eq!(
        (event.verdict, event.reason),
        (Verdict::Deny, Reason::LIMIT)
    );
    assert!(!event.violation);
    assert_eq!(bed.asked_upstream().len(), 1);
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_until_one_ends() {
    let bed = Bed::new(policy(), &[]).await;
    let bytes = question(wire("localhost"), RecordType::A, false);
    let mut open = Vec::new();
    for _ in 0..server::MAX_CONNECTIONS {
        let mut stream = bed.connect().await;
        ask_tcp(&mut stream, &bytes).await;
        open.push(stream);
    }
    let mut late = bed.connect().await;
    late.write_u16(bytes.len().try_into().unwrap())
        .await
        .unwrap();
    late.write_all(&bytes).await.unwrap();
    // The others are still served, and so is UDP.
    ask_tcp(&mut open[0], &bytes).await;
    bed.ask("localhost", RecordType::A).await;
    let mut byte = [0];
    let early = timeout(Duration::from_millis(50), late.peek(&mut byte)).await;
    assert!(early.is_err(), "a connection beyond the limit was served");
    open.pop();
    assert_eq!(addresses(&read_tcp(&mut late).await).len(), 1);
}

#[tokio::test]
async fn a_connection_that_sends_nonsense_is_closed() {
    let bed = Bed::new(policy(), &[]).await;
    for bytes in [&[0xff, 0xff, 1][..], &[0, 3, 1, 2, 3], &[0, 0]] {
        let mut stream = bed.connect().await;
        stream.write_all(bytes).await.unwrap();
        let mut rest = Vec::new();
        let end = timeout(PATIENCE, stream.read_to_end(&mut rest))
            .await
            .expect("left open");
        assert!(rest.is_empty(), "{bytes:?} was answered with {rest:?}");
        drop(end);
    }
}

#[tokio::test]
async fn the_sockets_are_gone_with_the_resolver() {
    let bed = Bed::new(policy(), &[]).await;
    let port = bed.resolver.ports().v4;
    drop(bed);
    // Aborted tasks end when the runtime next runs them.
    let free = async {
        while UdpSocket::bind(("127.0.0.1", port)).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, free)
        .await
        .expect("the port is still taken");
}

// ---- the host's files ----

#[test]
fn of_the_hosts_file_only_allowed_names_with_allowed_addresses_count() {
    let text = "127.0.0.1 localhost allowed.test\n\
                198.51.100.1 Allowed.Test blocked.test # comment allowed.test\n\
                2001:db8::1\tx.wild.test  allowed.test\n\
                10.0.0.1 inside.test y.wild.test\n\
                169.254.169.254 inside.test\n\
                nonsense allowed.test\n\
                # 198.51.100.2 allowed.test\n\
                198.51.100.1 allowed.test denied.test *.wild.test\n";
    let found: Vec<_> = hosts(text, &policy())
        .into_iter()
        .map(|(name, ips)| {
            (
                name.to_string(),
                ips.iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(" "),
            )
        })
        .collect();
    let expected = [
        ("allowed.test", "198.51.100.1 2001:db8::1"),
        ("inside.test", "10.0.0.1"),
        ("x.wild.test", "2001:db8::1"),
    ];
    assert_eq!(
        found,
        expected.map(|(name, ips)| (name.to_owned(), ips.to_owned()))
    );
}

#[test]
fn a_resolv_conf_without_servers_is_one_with_the_local_server() {
    for text in ["", "search corp.test\n", "# nothing\n"] {
        assert!(Upstream::new(text).is_ok(), "{text:?}");
    }
}

/// Not a test of speed: `cargo test --release -- --ignored --nocapture cached` prints the time
/// that a cached name takes over UDP, client included, beside that of a datagram sent back as it
/// came.
#[tokio::test]
#[ignore = "a measurement"]
async fn cached_name_over_udp() {
    let bed = Bed::new(policy(), &[("allowed.test", public("allowed.test"))]).await;
    let bytes = question(wire("allowed.test"), RecordType::A, true);
    bed.exchange(&bytes).await;
    let echo = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let ports = [echo.local_addr().unwrap().port(), bed.resolver.ports().v4];
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut buffer = [0; 512];
        loop {
            let (length, peer) = echo.recv_from(&mut buffer).await.unwrap();
            echo.send_to(&buffer[..length], peer).await.unwrap();
        }
    });
    let client = tokio::task::spawn_blocking(move || {
        for (what, port) in ["echo", "cached name"]
            .into_iter()
            .zip(ports)
            .cycle()
            .take(6)
        {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.connect(("127.0.0.1", port)).unwrap();
            let mut buffer = [0; 512];
            let mut times: Vec<_> = (0..10_000)
                .map(|_| {
                    let start = std::time::Instant::now();
                    socket.send(&bytes).unwrap();
                    socket.recv(&mut buffer).unwrap();
                    start.elapsed()
                })
                .collect();
            times.sort();
            println!("{what}: median {:?}, least {:?}", times[5_000], times[0]);
        }
    });
    client.await.unwrap();
}

#[tokio::test]
async fn a_question_of_somebody_else_is_refused_and_not_noted() {
    let bed = Bed::new(policy(), &[("allowed.test", public("allowed.test"))]).await;
    bed.agent.strangers.store(true, Ordering::Relaxed);
    for name in ["allowed.test", "blocked.test"] {
        let reply = bed.ask(name, RecordType::A).await;
        assert_eq!(code(&reply), ResponseCode::Refused);
    }
    assert_eq!(bed.asked_upstream(), [""; 0]);
    assert_eq!(bed.events(), []);
    assert!(bed.agent.grants.lock().unwrap().is_empty());
}
