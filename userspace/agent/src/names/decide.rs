//! What a question is answered with, and what the event about it says.
//!
//! One place for the order of things: what is no ordinary question, what is answered from here
//! without a rule (reverse names, `localhost`), the policy's verdict on the name, the record type,
//! and only then the network.

use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::PTR;
use hickory_proto::rr::{Name as WireName, RData, Record, RecordType};
use jobfence_abi::{Addr, Reason};
use jobfence_policy::{Cause, Job, Location, Mode, Name, NameVerdict, Rule};
use tokio::sync::Semaphore;

use super::allowance::{Allowance, Exceeded};
use super::answer::{self, Class, classify, furthest_class};
use super::message::{self, ExtendedError, Question, Reply, Unreadable};
use super::ready::Ready;
use super::table::Table;
use super::upstream::{Found, Upstream};
use super::{AddressSink, DnsEvent, EventSink, GrantError, Transport, Verdict};

/// Questions of one job that may wait for the upstream resolvers at once.
pub(super) const MAX_WAITING: u32 = 256;

/// Seconds for which a client may keep what is answered without the upstream resolvers.
const LOCAL_TTL: u32 = 60;

/// Everything that an answer depends on.
pub(super) struct Decider {
    pub(super) job: Arc<Job>,
    pub(super) own_names: OwnNames,
    pub(super) upstream: Upstream,
    pub(super) allowance: Allowance,
    pub(super) table: Arc<Table>,
    pub(super) addresses: Arc<dyn AddressSink>,
    pub(super) events: Arc<dyn EventSink>,
    pub(super) ready: Ready,
    pub(super) waiting: Semaphore,
}

/// The names by which the host itself goes, and the suffixes that its C library appends.
#[derive(Debug)]
pub(super) struct OwnNames {
    host: Vec<String>,
    suffixes: Vec<String>,
}

impl OwnNames {
    /// From the host's name, short or fully qualified, and its search list.
    pub(super) fn new(host_name: &str, search: &[String]) -> Self {
        let full = host_name.trim_end_matches('.').to_ascii_lowercase();
        let mut suffixes = search.to_vec();
        let mut host = vec![full.clone()];
        if let Some((short, domain)) = full.split_once('.') {
            host.push(short.to_owned());
            // Without a search list it is the host's own domain, resolv.conf(5).
            if suffixes.is_empty() {
                suffixes.push(domain.to_owned());
            }
        }
        suffixes.retain(|suffix| suffix != ".");
        Self { host, suffixes }
    }

    fn is_host(&self, name: &str) -> bool {
        self.host.iter().any(|own| own == name)
    }

    /// `name` without each of the suffixes that it ends with.
    fn stripped<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.suffixes
            .iter()
            .filter_map(|suffix| name.strip_suffix(suffix.as_str())?.strip_suffix('.'))
    }
}

/// An answer, and what its event says; `None` for what is not worth one.
struct Outcome {
    reply: Reply,
    finding: Option<Finding>,
}

/// The part of an event that the answer decides.
struct Finding {
    verdict: Verdict,
    reason: Reason,
    violation: bool,
    rule: Option<Location>,
    chain: Vec<Name>,
    addresses: Vec<IpAddr>,
}

impl Finding {
    fn allow(rule: Option<&Rule>) -> Self {
        Self {
            verdict: Verdict::Allow,
            reason: Reason::ALLOWED,
            violation: false,
            rule: rule.map(|rule| rule.location.clone()),
            chain: Vec::new(),
            addresses: Vec::new(),
        }
    }

    /// A refusal that is not counted.
    fn deny(reason: Reason, rule: Option<&Rule>) -> Self {
        Self {
            verdict: Verdict::Deny,
            reason,
            ..Self::allow(rule)
        }
    }
}

impl Decider {
    /// Questions that may wait at once.
    pub(super) fn waiting_room() -> Semaphore {
        Semaphore::new(MAX_WAITING as usize)
    }

    /// Waits until no question waits for an upstream resolver.
    pub(super) async fn settle(&self) {
        // Fails only when somebody closes the semaphore, which nobody does.
        let _ = self.waiting.acquire_many(MAX_WAITING).await;
    }

    /// Reads a message; where it is no question, `Err` with the reply, if it deserves one.
    pub(super) fn read(
        &self,
        bytes: &[u8],
        peer: SocketAddr,
        transport: Transport,
    ) -> Result<Question, Option<Vec<u8>>> {
        message::read(bytes).map_err(|unreadable| match unreadable {
            Unreadable::Ignore => None,
            Unreadable::Answer(metadata, code) => {
                let finding = Finding::deny(Reason::MALFORMED, None);
                let event =
                    self.event(finding, peer, transport, String::new(), String::new(), code);
                // Without one it is from somebody else on this host.
                let client = self.events.client(peer, transport);
                let noted = client.map_or(Ok(()), |client| self.events.dns(event, client));
                noted.ok().map(|()| message::encode_error(&metadata, code))
            }
        })
    }

    /// The answer to a datagram that asks what was just answered, noted as every other.
    pub(super) fn answer_again(&self, bytes: &[u8], peer: SocketAddr) -> Option<Vec<u8>> {
        let (reply, event) = self.ready.find(bytes)?;
        if !self.events.is_ready() {
            return None;
        }
        let client = self.events.client(peer, Transport::Udp)?;
        let noted = self.events.dns(DnsEvent { peer, ..event }, client);
        noted.ok().map(|()| reply)
    }

    /// Answers a question. The addresses in the answer are usable when it is returned.
    pub(super) async fn answer(
        &self,
        question: Question,
        peer: SocketAddr,
        transport: Transport,
    ) -> Vec<u8> {
        let shown = message::text(question.name());
        let is_local = message::host_name(&shown).is_some_and(|name| is_localhost(&name));
        // Before anything is waited for: the kernel can forget who sent the question.
        let client = self.events.client(peer, transport);
        let Outcome { mut reply, finding } = if !self.events.is_ready() {
            Outcome {
                reply: unnoted(),
                finding: None,
            }
        } else if is_local || client.is_some() {
            self.decide(&question, &shown).await
        } else {
            Outcome {
                reply: Reply::empty(ResponseCode::Refused),
                finding: None,
            }
        };
        let mut again = None;
        if let (Some(finding), Some(client)) = (finding, client) {
            let kind = message::kind_word(question.kind());
            let event = self.event(finding, peer, transport, shown, kind, reply.code);
            // An answer with addresses holds for as long as the first of its records.
            let ttl = reply.answers.iter().map(|record| record.ttl).min();
            if transport == Transport::Udp && event.reason.is_allowed() {
                again = ttl.map(|ttl| (event.clone(), ttl));
            }
            if self.events.dns(event, client).is_err() {
                reply = unnoted();
                again = None;
            }
        }
        let limit = match transport {
            Transport::Udp => question.udp_limit(),
            Transport::Tcp => usize::from(u16::MAX),
        };
        let bytes = message::encode(&question, reply, limit);
        if let Some((event, ttl)) = again {
            self.ready.keep(question.bytes(), &bytes, event, ttl);
        }
        bytes
    }

    fn event(
        &self,
        finding: Finding,
        peer: SocketAddr,
        transport: Transport,
        qname: String,
        qtype: String,
        code: ResponseCode,
    ) -> DnsEvent {
        DnsEvent {
            peer,
            transport,
            qname,
            qtype,
            rcode: message::code_word(code),
            verdict: finding.verdict,
            reason: finding.reason,
            violation: finding.violation && !self.audits(),
            rule: finding.rule,
            chain: finding.chain,
            addresses: finding.addresses,
        }
    }

    fn audits(&self) -> bool {
        self.job.mode == Mode::Audit
    }

    async fn decide(&self, question: &Question, shown: &str) -> Outcome {
        let quiet = |code, reason| Outcome {
            reply: Reply::empty(code),
            finding: Some(Finding::deny(reason, None)),
        };
        if question.is_of_unknown_edns() {
            return quiet(ResponseCode::BADVERS, Reason::MALFORMED);
        }
        if !question.is_internet() {
            return quiet(ResponseCode::Refused, Reason::DNS_TYPE);
        }
        let is_reverse = shown.ends_with(".in-addr.arpa") || shown.ends_with(".ip6.arpa");
        if question.kind() == RecordType::PTR && is_reverse {
            return self.reverse(question);
        }
        let Some(name) = message::host_name(shown) else {
            return self
                .service(question, shown)
                .unwrap_or_else(|| self.unknown(shown, None));
        };
        if is_localhost(&name) {
            return localhost(question);
        }
        let is_address = matches!(question.kind(), RecordType::A | RecordType::AAAA);
        match self.job.name_verdict(&name) {
            NameVerdict::Allowed(rules) if is_address => {
                let rule = rules.first().copied();
                let admitted = rule.map_or(Ok(()), |rule| self.allowance.admit(&name, rule));
                let finding = match admitted {
                    Ok(()) => Finding::allow(rule),
                    Err(_) if self.audits() => Finding::deny(Reason::LIMIT, rule),
                    Err(exceeded) => return too_much(exceeded, rule),
                };
                self.resolve(question, &name, &rules, finding).await
            }
            NameVerdict::Allowed(rules) => other_type(question.kind(), rules.first().copied()),
            NameVerdict::Denied(rule) if self.audits() && is_address => {
                let finding = Finding::deny(Reason::DENIED, Some(rule));
                self.resolve(question, &name, &[], finding).await
            }
            NameVerdict::Denied(rule) => self.denied(&name, rule),
            NameVerdict::Unknown if self.audits() && is_address => {
                let finding = self.unallowed(Some(&name));
                self.resolve(question, &name, &[], finding).await
            }
            NameVerdict::Unknown => self
                .service(question, shown)
                .unwrap_or_else(|| self.unknown(shown, Some(&name))),
        }
    }

    /// A reverse name: answered from what the job was given, never asked for.
    fn reverse(&self, question: &Question) -> Outcome {
        let net = question.name().parse_arpa_name().ok();
        let ip = net
            .filter(|net| net.prefix_len() == net.max_prefix_len())
            .map(|net| net.addr());
        let loopback = ip.is_some_and(|ip| Addr::from(ip).is_loopback());
        let known = ip.and_then(|ip| self.table.names_of(ip).into_iter().next());
        let target = if loopback {
            WireName::from_ascii("localhost.").ok()
        } else {
            known
                .as_ref()
                .and_then(|name| WireName::from_ascii(format!("{name}.")).ok())
        };
        let Some(target) = target else {
            return Outcome {
                reply: Reply::empty(ResponseCode::NXDomain).because(
                    ExtendedError::Blocked,
                    "jobfence: no name led to this address".to_owned(),
                ),
                finding: Some(Finding::deny(Reason::NAME, None)),
            };
        };
        let rule = known
            .as_ref()
            .and_then(|name| match self.job.name_verdict(name) {
                NameVerdict::Allowed(rules) => rules.first().copied(),
                NameVerdict::Denied(_) | NameVerdict::Unknown => None,
            });
        Outcome {
            reply: local(question, RData::PTR(PTR(target))),
            finding: (!loopback).then(|| Finding::allow(rule)),
        }
    }

    /// A name such as `_https._tcp.allowed.test`, which clients try before the name itself.
    fn service(&self, question: &Question, shown: &str) -> Option<Outcome> {
        let mut host = shown;
        while host.starts_with('_') {
            (_, host) = host.split_once('.')?;
        }
        if host.len() == shown.len() {
            return None;
        }
        match self.job.name_verdict(&message::host_name(host)?) {
            NameVerdict::Allowed(rules) => {
                let mut outcome = other_type(question.kind(), rules.first().copied());
                if let Some(finding) = &mut outcome.finding {
                    finding.violation = false;
                }
                Some(outcome)
            }
            NameVerdict::Denied(_) | NameVerdict::Unknown => None,
        }
    }

    /// The code of a refused name. In audit mode it has addresses, and clients take "no such name"
    /// for an answer about all types.
    fn refusal(&self) -> ResponseCode {
        if self.audits() {
            ResponseCode::NoError
        } else {
            ResponseCode::NXDomain
        }
    }

    fn denied(&self, name: &Name, rule: &Rule) -> Outcome {
        let reason = rule
            .reason
            .as_deref()
            .map_or_else(String::new, |reason| format!(": {reason}"));
        Outcome {
            reply: Reply::empty(self.refusal()).because(
                ExtendedError::Blocked,
                format!("jobfence: a rule denies {name}{reason}"),
            ),
            finding: Some(Finding {
                violation: rule.fail,
                ..Finding::deny(Reason::DENIED, Some(rule))
            }),
        }
    }

    /// A name of which no rule speaks; `name` is `None` when it is no host name at all.
    fn unknown(&self, shown: &str, name: Option<&Name>) -> Outcome {
        Outcome {
            reply: Reply::empty(self.refusal()).because(
                ExtendedError::Blocked,
                format!("jobfence: no rule allows {shown}"),
            ),
            finding: Some(Finding {
                violation: !name.is_some_and(|name| self.is_noise(name)),
                ..self.unallowed(name)
            }),
        }
    }

    /// Why a name is refused that no rule allows which holds; there can be one that does not.
    fn unallowed(&self, name: Option<&Name>) -> Finding {
        match name.and_then(|name| self.job.clipped_name(name)) {
            Some(clipped) if clipped.by == Cause::Expired => {
                Finding::deny(Reason::EXPIRED, Some(&clipped.rule))
            }
            Some(clipped) => Finding::deny(Reason::NAME, Some(&clipped.rule)),
            None => Finding::deny(Reason::NAME, None),
        }
    }

    /// Whether a refused name is one that the C library makes up: the host's own name, or another
    /// name with a suffix of the host's search list.
    fn is_noise(&self, name: &Name) -> bool {
        let name = name.as_str();
        self.own_names.is_host(name)
            || self.own_names.stripped(name).any(|stripped| {
                self.own_names.is_host(stripped)
                    || message::host_name(stripped).is_some_and(|name| {
                        is_localhost(&name)
                            || matches!(self.job.name_verdict(&name), NameVerdict::Allowed(_))
                    })
            })
    }

    /// Asks the upstream resolvers for the addresses of `name`, which `rules` allow, and grants
    /// them. `finding` is what the event says when all goes well. In audit mode `name` may be
    /// refused, and nothing is kept from the job.
    async fn resolve(
        &self,
        question: &Question,
        name: &Name,
        rules: &[&Rule],
        mut finding: Finding,
    ) -> Outcome {
        // An answer from the cache is there at once. Any other waits, and only so many may.
        let mut lookup = self
            .upstream
            .lookup(question.name().to_lowercase(), question.kind());
        let found = match poll_once(&mut lookup).await {
            Poll::Ready(found) => found,
            Poll::Pending => {
                let Ok(_place) = self.waiting.try_acquire() else {
                    return failure(
                        Finding::deny(Reason::LIMIT, rules.first().copied()),
                        ExtendedError::Other,
                        format!("jobfence: {MAX_WAITING} questions of this job wait already"),
                    );
                };
                lookup.await
            }
        };
        let chain = match found {
            Some(Found::Nothing(code)) => {
                return Outcome {
                    reply: Reply::empty(code),
                    finding: Some(finding),
                };
            }
            Some(Found::Records(records)) => {
                answer::follow(question.name(), question.kind(), &records)
            }
            None => None,
        };
        let Some(mut chain) = chain else {
            if finding.verdict == Verdict::Allow {
                finding.reason = Reason::UPSTREAM;
            }
            return failure(
                finding,
                ExtendedError::NetworkError,
                format!("jobfence: the host's resolvers gave no answer for {name}"),
            );
        };
        let limit = furthest_class(rules);
        let all_too_far =
            !chain.addresses.is_empty() && chain.addresses.iter().all(|ip| classify(*ip) > limit);
        if all_too_far && finding.verdict == Verdict::Allow {
            finding.verdict = Verdict::Deny;
            finding.reason = Reason::PRIVATE_ADDRESS;
            finding.violation = true;
        }
        if all_too_far && !self.audits() {
            // No data rather than no such name: the other address family may be public, and
            // clients take "no such name" for an answer about both.
            let hint = match limit {
                Class::Public => "; its rule needs private: true",
                Class::Private | Class::Never => "",
            };
            finding.chain = chain.names;
            finding.addresses = chain.addresses;
            return Outcome {
                reply: Reply::empty(ResponseCode::NoError).because(
                    ExtendedError::Blocked,
                    format!("jobfence: {name} has no public address{hint}"),
                ),
                finding: Some(finding),
            };
        }
        if !self.audits() {
            chain.retain(|ip| classify(ip) <= limit);
        }
        if let Err(error) = self.grant(name, &chain.names, &chain.addresses) {
            finding.verdict = Verdict::Deny;
            finding.reason = Reason::LIMIT;
            finding.violation = error.is_for_limit();
            if !self.audits() {
                finding.chain = chain.names;
                finding.addresses = chain.addresses;
                return failure(
                    finding,
                    ExtendedError::Other,
                    format!("jobfence: cannot open the way to {name}: {error}"),
                );
            }
        }
        for record in &mut chain.records {
            if record.name == *question.name() {
                record.name = question.name().clone();
            }
        }
        finding.chain = chain.names;
        finding.addresses = chain.addresses;
        Outcome {
            reply: Reply::with(ResponseCode::NoError, chain.records),
            finding: Some(finding),
        }
    }

    /// Opens the way to those of `addresses` to which `name` has not led yet.
    fn grant(&self, name: &Name, chain: &[Name], addresses: &[IpAddr]) -> Result<(), GrantError> {
        let new = self
            .table
            .unknown(name, addresses)
            .map_err(GrantError::new)?;
        if new.is_empty() {
            return Ok(());
        }
        self.addresses.grant(name, chain, &new)?;
        self.table
            .insert(name, chain, &new)
            .map_err(GrantError::new)
    }
}

/// Whether `name` is `localhost` or below it, which are never asked for (RFC 6761 section 6.3).
fn is_localhost(name: &Name) -> bool {
    let name = name.as_str();
    name == "localhost" || name.ends_with(".localhost")
}

fn localhost(question: &Question) -> Outcome {
    let reply = match question.kind() {
        RecordType::A => local(question, RData::A(Ipv4Addr::LOCALHOST.into())),
        RecordType::AAAA => local(question, RData::AAAA(Ipv6Addr::LOCALHOST.into())),
        _ => Reply::empty(ResponseCode::NoError),
    };
    Outcome {
        reply,
        finding: None,
    }
}

/// An answer that nobody was asked for.
fn local(question: &Question, data: RData) -> Reply {
    let record = Record::from_rdata(question.name().clone(), LOCAL_TTL, data);
    Reply::with(ResponseCode::NoError, vec![record])
}

/// A type that is not asked for, of an allowed name: there is none. Only types that ordinary
/// clients ask for in passing are no violation; the others carry data in both directions.
fn other_type(kind: RecordType, rule: Option<&Rule>) -> Outcome {
    let finding = match kind {
        // An empty answer keeps clients from encrypting the server name (ECH) and from QUIC.
        RecordType::HTTPS | RecordType::SVCB => None,
        RecordType::SRV
        | RecordType::NAPTR
        | RecordType::SSHFP
        | RecordType::TLSA
        | RecordType::CAA
        | RecordType::DS
        | RecordType::DNSKEY
        | RecordType::SOA
        | RecordType::NS => Some(Finding::deny(Reason::DNS_TYPE, rule)),
        _ => Some(Finding {
            violation: true,
            ..Finding::deny(Reason::DNS_TYPE, rule)
        }),
    };
    Outcome {
        reply: Reply::empty(ResponseCode::NoError),
        finding,
    }
}

/// An allowed name with which the job would say more than it may.
fn too_much(exceeded: Exceeded, rule: Option<&Rule>) -> Outcome {
    Outcome {
        reply: Reply::empty(ResponseCode::NXDomain)
            .because(ExtendedError::Blocked, format!("jobfence: {exceeded}")),
        finding: Some(Finding {
            violation: true,
            ..Finding::deny(Reason::LIMIT, rule)
        }),
    }
}

/// The answer while nothing can be noted.
fn unnoted() -> Reply {
    let text = "jobfence: the job's log cannot be written".to_owned();
    Reply::empty(ResponseCode::ServFail).because(ExtendedError::Other, text)
}

fn failure(finding: Finding, error: ExtendedError, text: String) -> Outcome {
    Outcome {
        reply: Reply::empty(ResponseCode::ServFail).because(error, text),
        finding: Some(finding),
    }
}

/// Polls `future` once on behalf of the current task.
pub(super) async fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    poll_fn(|context| Poll::Ready(Pin::new(&mut *future).poll(context))).await
}
