//! What a job tried, counted.
//!
//! The same book is kept while the job runs and when its log is read back, so a job whose agent was
//! killed ends with the tallies that it would have had, and a report made of a log says what was said
//! when the job ended.

use std::{
    borrow::Cow,
    collections::{HashMap, VecDeque},
    net::IpAddr,
    time::SystemTime,
};

use jobfence_abi::{Fault, proto};
use serde::{Serialize, Serializer};

use super::{
    event::{self, Event, Kind, ProcessInfo, Verdict},
    refused::{Refusals, Refused},
};
use crate::job::State;

/// Attempts that are told apart in one job. Beyond it they are only counted, by kind and reason, so
/// that a job fills neither the log's disk nor this memory.
pub(super) const MAX_FLOWS: usize = 20_000;

/// Bytes of text about processes that the attempts of one job may have, for the same purpose: a job
/// chooses the length of its command lines. A usual attempt has a few hundred.
const MAX_TEXT: usize = 32 << 20;

/// The message of an attempt that stands for all beyond these.
const BEYOND: &str = "attempts beyond those that are told apart in one job";

/// The word on the line that says how many attempts were counted by the kernel only.
pub(super) const UNCOUNTED: &str = "uncounted";

/// An attempt and how often it was made.
#[derive(Clone, Debug, PartialEq)]
pub struct Tally {
    /// The first.
    pub event: Event,
    /// How often in all.
    pub count: u64,
    /// How many of those a line of the log stands for already.
    pub(super) written: u64,
    /// Whether the next of those lines is due.
    is_due: bool,
    /// Where it is told of, if it was refused: see [`Refusals::first`].
    refusal: Option<usize>,
}

/// As its first event, with the count of all.
impl Serialize for Tally {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let event = Event {
            count: self.count,
            epoch: None,
            prev: None,
            ..self.event.clone()
        };
        event.serialize(serializer)
    }
}

/// What a person is told in the end.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// What the fence was worth.
    #[serde(serialize_with = "event::display")]
    pub state: State,
    /// The file that the job's own rules are in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Every attempt, the first of each kind with a count, in the order in which they came.
    #[serde(rename = "attempts")]
    pub tallies: Vec<Tally>,
    /// Attempts that violate the policy.
    pub violations: u64,
}

impl Summary {
    /// Whether the job kept to its policy.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.violations == 0
    }
}

/// What makes two attempts the same. Nothing counts that is not in the log too: [`FlowKey::of`] the
/// line of an attempt is the key of the attempt.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct FlowKey {
    pub(super) kind: Kind,
    pub(super) reason: Cow<'static, str>,
    /// IP protocol number.
    pub(super) proto: u8,
    pub(super) ip: Option<IpAddr>,
    /// Host byte order; 0 for none.
    pub(super) port: u16,
    /// The name that was asked for, or that the connection said it is for, as it is shown.
    pub(super) name: String,
    /// The record type that was asked for, or what is wrong with the connection.
    pub(super) detail: Cow<'static, str>,
    /// 0 for none.
    pub(super) pid: u32,
}

impl FlowKey {
    /// Of the attempt that a line tells of.
    fn of(event: &Event) -> Self {
        let dst = event.dst.as_ref();
        let message = event.message.clone().unwrap_or_default();
        let (name, detail) = match event.kind {
            Kind::Dns => event
                .dns
                .as_ref()
                .map(|dns| (dns.qname.clone(), dns.qtype.clone()))
                .unwrap_or_default(),
            Kind::Tls | Kind::Http if message != BEYOND => {
                // Where the name was not read to its end, another is shown.
                let is_whole = message.is_empty() || message == Fault::NAME.text();
                let name = dst.filter(|_| is_whole).and_then(|dst| dst.name.clone());
                (name.unwrap_or_default(), message)
            }
            _ => (String::new(), String::new()),
        };
        Self {
            kind: event.kind,
            reason: event.reason.clone(),
            proto: event.proto.as_deref().map_or(0, protocol_number),
            ip: dst
                .filter(|_| event.kind != Kind::Dns)
                .and_then(|dst| dst.ip),
            port: dst.and_then(|dst| dst.port).unwrap_or(0),
            name,
            detail: detail.into(),
            pid: event.process.as_ref().map_or(0, |process| process.pid),
        }
    }

    /// The key of all attempts of this kind that are not told apart.
    pub(super) fn others(&self) -> Self {
        Self {
            kind: self.kind,
            reason: self.reason.clone(),
            proto: self.proto,
            ip: None,
            port: 0,
            name: String::new(),
            detail: Cow::Borrowed(""),
            pid: 0,
        }
    }
}

/// `event` as the first of those that are not told apart.
pub(super) fn as_others(event: Event) -> Event {
    Event {
        rule: None,
        layer: None,
        dst: None,
        dns: None,
        process: None,
        message: Some(BEYOND.to_owned()),
        ..event
    }
}

/// Bytes of text that an event has about processes.
fn text(event: &Event) -> usize {
    let of = |process: &ProcessInfo| {
        let given = [&process.exe, &process.cmdline];
        let given = given.into_iter().flatten().map(String::len);
        process.comm.len() + given.sum::<usize>()
    };
    let of_all =
        |process: &ProcessInfo| of(process) + process.ancestors.iter().map(of).sum::<usize>();
    event.process.as_ref().map_or(0, of_all)
}

/// A protocol as events name it.
pub(super) fn protocol(number: u8) -> String {
    match number {
        proto::TCP => "tcp".to_owned(),
        proto::UDP => "udp".to_owned(),
        proto::ICMP => "icmp".to_owned(),
        proto::ICMPV6 => "icmpv6".to_owned(),
        other => other.to_string(),
    }
}

fn protocol_number(text: &str) -> u8 {
    match text {
        "tcp" => proto::TCP,
        "udp" => proto::UDP,
        "icmp" => proto::ICMP,
        "icmpv6" => proto::ICMPV6,
        other => other.parse().unwrap_or(0),
    }
}

/// Whether attempts of this kind are reported by the programs in the kernel.
fn is_kernels(kind: Kind) -> bool {
    match kind {
        Kind::Connect | Kind::Packet | Kind::Tls | Kind::Http | Kind::Socket => true,
        Kind::Dns | Kind::Job | Kind::Loss => false,
    }
}

/// What tells one report of the kernel from every other: the nanosecond, and what it is about.
pub(super) type Mark = (SystemTime, Kind, Cow<'static, str>, u8);

/// The book of one job.
#[derive(Default)]
pub(super) struct Ledger {
    /// Whether an allowed attempt is the same whichever process makes it. A runner has new processes
    /// for each job, for months, and would fill the book with what is the same every time.
    is_runners: bool,
    flows: HashMap<FlowKey, usize>,
    tallies: Vec<Tally>,
    text: usize,
    /// Tallies that have doubled since they were last written.
    due: VecDeque<usize>,
    violations: u64,
    refusals: Refusals,
    /// Reports of the kernel that are counted here.
    counted: u64,
    /// Reports of the kernel of which only the number is known.
    uncounted: u64,
    /// The newest report of the kernel that had a line of its own.
    newest: Option<Mark>,
}

impl Ledger {
    /// Of a runner, or of a job.
    pub(super) fn new(is_runners: bool) -> Self {
        Self {
            is_runners,
            ..Self::default()
        }
    }

    pub(super) fn violations(&self) -> u64 {
        self.violations
    }

    pub(super) fn tallies(&self) -> &[Tally] {
        &self.tallies
    }

    /// What was refused: the first few, and how many more.
    pub(super) fn refused(&self) -> (Vec<Refused>, u64) {
        self.refusals.told()
    }

    pub(super) fn newest(&self) -> Option<&Mark> {
        self.newest.as_ref()
    }

    /// How many reports of the kernel it knows of.
    pub(super) fn reports(&self) -> u64 {
        self.counted.saturating_add(self.uncounted)
    }

    /// Whether one more attempt can be told apart from the others.
    pub(super) fn has_room(&self) -> bool {
        self.flows.len() < MAX_FLOWS && self.text < MAX_TEXT
    }

    /// Whether it tells more attempts apart than that of any job does, the others of each kind and
    /// reason included.
    pub(super) fn is_overfull(&self) -> bool {
        self.flows.len() > MAX_FLOWS + 1024
    }

    /// The process that makes two attempts different; 0 for none.
    pub(super) fn process(&self, pid: u32, verdict: Verdict) -> u32 {
        match self.is_runners && verdict == Verdict::Allow {
            true => 0,
            false => pid,
        }
    }

    fn key(&self, event: &Event) -> FlowKey {
        let key = FlowKey::of(event);
        let pid = self.process(key.pid, event.verdict);
        FlowKey { pid, ..key }
    }

    /// Counts an attempt that was made before; false if it was not.
    pub(super) fn repeat(&mut self, key: &FlowKey, violation: bool) -> bool {
        let Some(&index) = self.flows.get(key) else {
            return false;
        };
        self.add(index, 1, violation);
        true
    }

    fn add(&mut self, index: usize, count: u64, violation: bool) {
        let tally = &mut self.tallies[index];
        tally.count = tally.count.saturating_add(count);
        // The more seldom the more there were: an attempt that is repeated for as long as the job
        // lasts has a line for each doubling.
        if !tally.is_due && tally.count >= tally.written.saturating_mul(2) {
            tally.is_due = true;
            self.due.push_back(index);
        }
        if let Some(refusal) = tally.refusal {
            self.refusals.add(refusal, count);
        }
        let kind = tally.event.kind;
        self.count(kind, count, violation);
    }

    /// Counts what the kernel only counted, of which there was `total` in all; true if it was known
    /// before that there is any.
    pub(super) fn lose(&mut self, reason: &str, total: u64) -> bool {
        let of_reason =
            |tally: &Tally| tally.event.kind == Kind::Loss && tally.event.reason == reason;
        let Some(index) = self.tallies.iter().position(of_reason) else {
            return false;
        };
        let count = total.saturating_sub(self.tallies[index].count);
        if count > 0 {
            self.add(index, count, self.tallies[index].event.violation);
        }
        true
    }

    /// Takes in a line of the log, which a new attempt has and nothing else.
    pub(super) fn first(&mut self, event: Event) {
        let key = self.key(&event);
        self.count(event.kind, event.count, event.violation);
        if is_kernels(event.kind) {
            self.newest = Some((event.ts, key.kind, key.reason.clone(), key.proto));
        }
        self.flows.insert(key, self.tallies.len());
        self.text += text(&event);
        let count = event.count;
        let is_refused = event.verdict == Verdict::Deny;
        let refusal = is_refused.then(|| self.refusals.first(&event)).flatten();
        self.tallies.push(Tally {
            event,
            count,
            written: count,
            is_due: false,
            refusal,
        });
    }

    /// Takes in any line of the log.
    pub(super) fn replay(&mut self, event: Event) {
        if event.kind == Kind::Job {
            if event.reason == UNCOUNTED {
                self.uncounted = self.uncounted.saturating_add(event.count);
            }
            return;
        }
        let Some(&index) = self.flows.get(&self.key(&event)) else {
            return self.first(event);
        };
        self.count(event.kind, event.count, event.violation);
        let tally = &mut self.tallies[index];
        tally.count = tally.count.saturating_add(event.count);
        tally.written = tally.count;
        if let Some(refusal) = tally.refusal {
            self.refusals.add(refusal, event.count);
        }
    }

    fn count(&mut self, kind: Kind, count: u64, violation: bool) {
        if violation {
            self.violations = self.violations.saturating_add(count);
        }
        if is_kernels(kind) {
            self.counted = self.counted.saturating_add(count);
        }
    }

    /// The tally that has been due for the longest.
    pub(super) fn due(&self) -> Option<usize> {
        self.due.front().copied()
    }

    /// The line that is still to be written for a tally; none when every attempt has one.
    pub(super) fn line(&self, index: usize, ts: SystemTime) -> Option<Event> {
        let tally = self.tallies.get(index)?;
        let count = tally.count.saturating_sub(tally.written);
        (count > 0).then(|| Event {
            ts,
            count,
            ..tally.event.clone()
        })
    }

    /// Notes that [`Ledger::line`] is written.
    pub(super) fn written(&mut self, index: usize) {
        if let Some(tally) = self.tallies.get_mut(index) {
            tally.written = tally.count;
            tally.is_due = false;
        }
        if self.due.front() == Some(&index) {
            self.due.pop_front();
        }
    }

    /// Ends the book.
    pub(super) fn take_tallies(&mut self) -> Vec<Tally> {
        self.flows.clear();
        self.due.clear();
        std::mem::take(&mut self.tallies)
    }
}
