//! What was refused, in the words that a person is told it in.

use std::{borrow::Cow, collections::HashMap, fmt::Write as _};

use jobfence_abi::Fault;
use serde::{Deserialize, Serialize};

use super::event::{Event, Kind, ProcessInfo};

/// Refusals of each sort, violations and others, that a job's status tells of; the log has all.
pub const MOST: usize = 20;

/// Characters of a command line that are shown.
const WIDEST: usize = 100;

/// Attempts at one destination, refused for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// What they were after, as in a report: `name:port`, `address:port/udp`, a name.
    pub destination: String,
    /// Why, as the word of the events.
    pub reason: String,
    /// The same for people, in a few words.
    pub why: String,
    /// The rule that refuses it, as `file:line`, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// How many there were.
    pub count: u64,
    /// Whether they fail the job.
    pub violation: bool,
    /// Who tried first: its command line, and those of the processes that led to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// The line of a policy that would allow it, if one can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<String>,
}

impl Refused {
    /// What a person is told of it, a line each: what was refused and why, who tried, and what would
    /// allow it. All of it is what the job has called things: whoever prints it where such texts mean
    /// something escapes it.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let Self {
            destination,
            why,
            rule,
            count,
            process,
            allow,
            ..
        } = self;
        let mut first = format!("{destination} — {why}");
        if let Some(rule) = rule.as_ref().filter(|rule| !why.contains(&**rule)) {
            _ = write!(first, " ({rule})");
        }
        if *count != 1 {
            _ = write!(first, ", {count}×");
        }
        let process = process.iter().map(|process| format!("by {process}"));
        let allow = allow.iter().map(|line| format!("to allow it: {line}"));
        [first].into_iter().chain(process).chain(allow).collect()
    }
}

/// What was refused so far, kept up with each attempt: whoever asks costs the agent nothing that
/// grows with what the job has done.
#[derive(Default)]
pub(super) struct Refusals {
    /// By destination, reason, and whether it is a violation: where it is in `told`, if it is.
    known: HashMap<(String, Cow<'static, str>, bool), Option<usize>>,
    /// [`MOST`] violations and as many others, in the order in which they came.
    told: Vec<Refused>,
}

impl Refusals {
    /// Takes in the first attempt of a kind, which was refused. Where it is told of: the number to
    /// give to [`Refusals::add`].
    pub(super) fn first(&mut self, event: &Event) -> Option<usize> {
        let key = (destination(event), event.reason.clone(), event.violation);
        if let Some(&place) = self.known.get(&key) {
            if let Some(place) = place {
                self.add(place, event.count);
            }
            return place;
        }
        let of_sort = |told: &&Refused| told.violation == event.violation;
        let place = (self.told.iter().filter(of_sort).count() < MOST).then(|| {
            self.told.push(Refused {
                destination: key.0.clone(),
                reason: event.reason.to_string(),
                why: meaning(event).to_owned(),
                rule: event.rule.clone(),
                count: event.count,
                violation: event.violation,
                process: event.process.as_ref().map(lineage),
                allow: suggestion(event),
            });
            self.told.len() - 1
        });
        self.known.insert(key, place);
        place
    }

    /// Counts more attempts of a kind.
    pub(super) fn add(&mut self, place: usize, count: u64) {
        if let Some(told) = self.told.get_mut(place) {
            told.count = told.count.saturating_add(count);
        }
    }

    /// The first [`MOST`], violations before others, and how many there are beside those.
    pub(super) fn told(&self) -> (Vec<Refused>, u64) {
        let (violations, others): (Vec<_>, Vec<_>) =
            self.told.iter().partition(|told| told.violation);
        let told: Vec<_> = violations.into_iter().chain(others).take(MOST).collect();
        let more = self.known.len() - told.len();
        (told.into_iter().cloned().collect(), more as u64)
    }
}

/// A process and its ancestors, by their command lines.
#[must_use]
pub fn lineage(process: &ProcessInfo) -> String {
    let mut line = format!("{} (pid {})", shorten(process.label()), process.pid);
    for ancestor in &process.ancestors {
        _ = write!(line, " ← {}", shorten(ancestor.label()));
    }
    line
}

fn shorten(line: &str) -> Cow<'_, str> {
    match line.char_indices().nth(WIDEST) {
        Some((end, _)) => format!("{}…", &line[..end]).into(),
        None => line.into(),
    }
}

/// What an attempt was after, in a few words.
#[must_use]
pub fn destination(event: &Event) -> String {
    let proto = event.proto.as_deref().unwrap_or("");
    if let Some(question) = &event.dns {
        return question.qname.clone();
    }
    let Some(dst) = &event.dst else {
        return match event.kind {
            Kind::Loss => "events".to_owned(),
            _ if event.message.is_some() => format!("others ({:?})", event.kind).to_lowercase(),
            _ => format!("socket of protocol {proto}"),
        };
    };
    let mut text = String::new();
    let ip = dst.ip.map(|ip| ip.to_string()).unwrap_or_default();
    match (&dst.name, dst.port) {
        (Some(name), Some(port)) => _ = write!(text, "{name}:{port}"),
        (Some(name), None) => text.push_str(name),
        (None, Some(port)) if ip.contains(':') => _ = write!(text, "[{ip}]:{port}"),
        (None, Some(port)) => _ = write!(text, "{ip}:{port}"),
        (None, None) => text.push_str(&ip),
    }
    if proto != "tcp" {
        _ = write!(text, "/{proto}");
    }
    text
}

/// What a reason means to someone who meets it for the first time.
#[must_use]
pub fn meaning(event: &Event) -> &str {
    match &*event.reason {
        _ if event.message.is_some() => event.message.as_deref().unwrap_or_default(),
        "sni" | "host-header" => "refused by its name",
        "expired" => "the rule for it is past its last day",
        "outside-job" => "a process of the job's user, and in no job: `guard` holds it",
        "name" => "no rule allows the name",
        "denied" => "a deny rule refuses it",
        "no-rule" => "no rule allows the address",
        "port" => "allowed, but not on this port",
        "protocol" => "allowed protocols are TCP and UDP to the ports of a rule",
        "metadata" => "a cloud metadata service, which hands out credentials",
        "loopback" => "a listener on this host that is not the job's",
        "multicast" => "multicast; not counted as a violation",
        "resolver-bypass" => "a DNS server other than the job's",
        "fragment" => "an IP fragment, in which no port can be seen",
        "extension-header" => "IP options or extension headers, which can reroute a packet",
        "malformed" => "a malformed packet",
        "raw-socket" => "a raw socket",
        "mptcp" => "Multipath TCP; programs go on with TCP",
        "inbound" => "an answer to a connection from outside the job",
        "dns-type" => "a record type that jobfence does not look up",
        "private-address" => "the name leads to a private address",
        "audit-loss" => "more attempts than could be logged",
        "limit" => "a limit of the job",
        "family" => "a socket of a family that no build needs",
        "closed" => "the job had no policy",
        _ => "refused",
    }
}

/// The policy line that would allow an attempt; none where no rule can.
#[must_use]
pub fn suggestion(event: &Event) -> Option<String> {
    let proto = event.proto.as_deref()?;
    if event.message.is_some() && !matches!(event.kind, Kind::Tls | Kind::Http) {
        // There is a rule for it, and another line like it would not hold either.
        return None;
    }
    match &*event.reason {
        "name" => {
            let question = event.dns.as_ref()?;
            // A question for another record type, as `_http._tcp.NAME SRV`, is not what a rule
            // would have to allow.
            if !["A", "AAAA"].contains(&question.qtype.as_str()) {
                return None;
            }
            let name = &question.qname;
            Some(format!("- host: {name}"))
        }
        "private-address" => {
            let name = &event.dns.as_ref()?.qname;
            Some(format!("- {{host: {name}, private: true}}"))
        }
        "sni" | "host-header" => {
            let dst = event.dst.as_ref()?;
            let (name, port) = (dst.name.as_ref()?, dst.port?);
            let is_tls = event.reason == "sni";
            let key = if is_tls { "tls" } else { "http" };
            let rest = if event.message.as_deref() != Some(Fault::NAME.text()) {
                format!(", {key}: off")
            } else if is_tls && port == 443 {
                return Some(format!("- host: {name}"));
            } else if is_tls || port == 80 {
                String::new()
            } else {
                ", http: verify".to_owned()
            };
            Some(format!("- {{host: {name}, ports: [{port}]{rest}}}"))
        }
        "no-rule" | "port" | "loopback" | "metadata" | "protocol" => {
            let dst = event.dst.as_ref()?;
            let (ip, port) = (dst.ip?, dst.port?);
            let ports = match proto {
                "tcp" => port.to_string(),
                other => format!("{port}/{other}"),
            };
            let target = match &dst.name {
                Some(name) => format!("host: {name}"),
                None if event.reason == "loopback" => "host: localhost".to_owned(),
                None if ip.is_ipv4() => format!("cidr: {ip}/32"),
                None => format!("cidr: \"{ip}/128\""),
            };
            Some(format!("- {{{target}, ports: [{ports}]}}"))
        }
        _ => None,
    }
}
