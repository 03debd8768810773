//! Makes events of what the kernel and the resolver report.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use jobfence_abi::{self as abi, COMM_LEN, Client, Fault, Hook, NamedEvent, Reason, proto};
use jobfence_policy::{AddrRule, Job, Location, Mode, Name, Rule};
use rustix::time::{ClockId, clock_gettime};

use super::{
    event::{Destination, Event, JobName, Kind, ProcessInfo, Question, Verdict},
    log::{Log, LogError},
    mask::Mask,
};
use crate::{
    job::{
        Layers, State,
        process::{self, Process, Processes},
    },
    names::{self, DnsEvent, Table, Transport},
};

/// Attempts that are told apart in one job. Beyond it they are only counted, by kind and reason, so
/// that a job fills neither the log's disk nor this memory.
const MAX_FLOWS: usize = 20_000;

/// The record of one job.
pub struct Recorder {
    job: JobName,
    state: State,
    policy: Arc<Job>,
    table: Arc<Table>,
    processes: Processes,
    mask: Mask,
    log: Option<Log>,
    seq: u64,
    flows: HashMap<FlowKey, usize>,
    tallies: Vec<Tally>,
    violations: u64,
    /// `CLOCK_REALTIME` minus `CLOCK_MONOTONIC`.
    epoch: SystemTime,
}

/// What a recorder needs to know of its job.
pub struct Subject {
    /// The job's name and id.
    pub job: JobName,
    /// What its fence is worth.
    pub state: State,
    /// Its policy.
    pub policy: Arc<Job>,
    /// The names and addresses that its resolver has given it.
    pub table: Arc<Table>,
    /// Its secrets.
    pub mask: Mask,
    /// Where events are written, if anywhere.
    pub log: Option<Log>,
}

/// What makes two attempts the same.
#[derive(Clone, PartialEq, Eq, Hash)]
struct FlowKey {
    kind: Kind,
    reason: Reason,
    proto: u8,
    ip: Option<IpAddr>,
    port: u16,
    qname: String,
    qtype: String,
    pid: u32,
}

/// An attempt and how often it was made.
#[derive(Clone, Debug)]
pub struct Tally {
    /// The first.
    pub event: Event,
    /// How often in all.
    pub count: u64,
    /// How many of those a line of the log stands for already.
    written: u64,
}

/// What a person is told in the end.
#[derive(Debug)]
pub struct Summary {
    /// What the fence was worth.
    pub state: State,
    /// Every attempt, the first of each kind with a count, in the order in which they came.
    pub tallies: Vec<Tally>,
    /// Attempts that violate the policy.
    pub violations: u64,
}

impl Recorder {
    /// Begins the record of `subject`.
    #[must_use]
    pub fn new(subject: Subject) -> Self {
        let (monotonic, now) = (clock_gettime(ClockId::Monotonic), SystemTime::now());
        let epoch = now - Duration::try_from(monotonic).unwrap_or_default();
        Self {
            job: subject.job,
            state: subject.state,
            policy: subject.policy,
            table: subject.table,
            processes: Processes::new(),
            mask: subject.mask,
            log: subject.log,
            seq: 0,
            flows: HashMap::new(),
            tallies: Vec::new(),
            violations: 0,
            epoch,
        }
    }

    /// The job's processes.
    pub fn processes(&mut self) -> &mut Processes {
        &mut self.processes
    }

    /// Attempts so far that violate the policy.
    #[must_use]
    pub fn violations(&self) -> u64 {
        self.violations
    }

    /// Why not everything is in the log, if so. What cannot be logged must not go on.
    #[must_use]
    pub fn log_fault(&self) -> Option<LogError> {
        self.log.as_ref()?.fault()
    }

    /// Notes that the job begins, held by `layers`.
    pub fn started(&mut self, layers: Layers) {
        let event = self.event(SystemTime::now(), Kind::Job, Reason::ALLOWED);
        self.write(Event {
            reason: "job",
            layers: Some(layers),
            message: Some("started".to_owned()),
            ..event
        });
    }

    /// Notes something about the job itself.
    pub fn job(&mut self, message: &str) {
        let event = self.event(SystemTime::now(), Kind::Job, Reason::ALLOWED);
        self.write(Event {
            reason: "job",
            message: Some(message.to_owned()),
            ..event
        });
    }

    /// Notes attempts that were denied because their events found no room.
    pub fn loss(&mut self, count: u64) {
        let event = self.event(SystemTime::now(), Kind::Loss, Reason::AUDIT_LOSS);
        let violation = self.policy.mode == Mode::Enforce;
        let event = Event {
            violation,
            count,
            message: Some(format!(
                "{count} attempts were denied: their events found no room"
            )),
            ..event
        };
        if violation {
            self.violations += count;
        }
        self.write(event.clone());
        self.tallies.push(Tally {
            event,
            count,
            written: count,
        });
    }

    /// Notes what a program in the kernel reported, and the name that came with it.
    pub fn kernel(&mut self, report: &abi::Event, named: Option<&NamedEvent>) {
        let ts = self.epoch + Duration::from_nanos(report.monotonic_ns);
        let flow = &report.flow;
        let kind = match report.hook {
            Hook::SOCKET => Kind::Socket,
            Hook::PACKET => Kind::Packet,
            Hook::TLS => Kind::Tls,
            Hook::HTTP => Kind::Http,
            _ => Kind::Connect,
        };
        let ip = (kind != Kind::Socket).then(|| IpAddr::from(flow.dst));
        let has_ports = flow.proto == proto::TCP || flow.proto == proto::UDP;
        // What the connection says of itself, where it was asked, else what led to the address. Of
        // what is wrong with more than the name, that is a part of a name, or the one before.
        let is_whole = [Fault::NONE, Fault::NAME].contains(&report.fault);
        let said = named.map(|named| {
            let name = named.name().map(char::from);
            name.filter(|_| is_whole).collect::<String>()
        });
        let names = match (&said, ip) {
            (Some(said), _) => Name::parse(said).into_iter().collect(),
            (None, Some(ip)) => self.table.names_of(ip),
            (None, None) => Vec::new(),
        };

        let policy = Arc::clone(&self.policy);
        let behind = match (&said, ip) {
            (Some(_), _) => names
                .first()
                .map_or(AddrRule::None, |name| policy.explain_name(name, flow.port)),
            (None, Some(ip)) => policy.explain_addr(ip, &names, flow.proto, flow.port),
            (None, None) => AddrRule::None,
        };
        let (reason, rule) = match behind {
            AddrRule::Denied(rule) if !report.reason.is_allowed() => (Reason::DENIED, Some(rule)),
            AddrRule::Allowed(rule) if report.reason.is_allowed() => (report.reason, Some(rule)),
            _ => (report.reason, None),
        };
        let detail = if kind == Kind::Socket {
            report.socket_type.to_string()
        } else {
            report.fault.text().to_owned()
        };
        let key = FlowKey {
            kind,
            reason,
            proto: flow.proto,
            ip,
            port: flow.port,
            qname: said.clone().unwrap_or_default(),
            qtype: detail.clone(),
            pid: report.pid,
        };
        let violation = self.is_violation(reason, rule);
        if self.repeat(&key, violation) {
            return;
        }
        let name = names.first();
        let led = || ip.and_then(|ip| self.table.names_of(ip).first().map(Name::to_string));
        let shown = said.filter(|said| !said.is_empty()).or_else(led);
        let chain = name.map(|name| self.table.chain_of(name));
        let chain = chain.iter().flat_map(|chain| chain.iter());
        let dst = ip.map(|ip| Destination {
            ip: Some(ip),
            port: has_ports.then_some(flow.port),
            name: shown.map(|name| self.masked(&name)),
            chain: chain.map(|name| self.masked(name.as_str())).collect(),
        });
        let process = self.process(&Client {
            pid: report.pid,
            uid: report.uid,
            comm: report.comm,
        });
        let event = Event {
            rule: rule.map(|rule| rule.location.to_string()),
            violation,
            proto: Some(protocol(flow.proto)),
            dst,
            process,
            message: (!report.fault.is_none()).then_some(detail),
            ..self.event(ts, kind, reason)
        };
        self.first(key, event);
    }

    /// Notes a question of the job, which `client` asked.
    pub fn dns(&mut self, question: &DnsEvent, client: &Client) {
        let key = FlowKey {
            kind: Kind::Dns,
            reason: question.reason,
            proto: match question.transport {
                Transport::Udp => proto::UDP,
                Transport::Tcp => proto::TCP,
            },
            ip: None,
            port: 0,
            qname: question.qname.clone(),
            qtype: question.qtype.clone(),
            pid: client.pid,
        };
        if self.repeat(&key, question.violation) {
            return;
        }
        let process = self.process(client);
        let event = self.event(SystemTime::now(), Kind::Dns, question.reason);
        let event = Event {
            verdict: match question.verdict {
                names::Verdict::Allow => Verdict::Allow,
                names::Verdict::Deny => Verdict::Deny,
            },
            rule: question.rule.as_ref().map(Location::to_string),
            violation: question.violation,
            proto: Some(protocol(key.proto)),
            dst: Some(Destination {
                ip: question.addresses.first().copied(),
                port: None,
                name: Some(self.masked(&question.qname)),
                chain: question
                    .chain
                    .iter()
                    .map(|name| self.masked(name.as_str()))
                    .collect(),
            }),
            dns: Some(Question {
                qname: self.masked(&question.qname),
                qtype: question.qtype.clone(),
                rcode: question.rcode.clone(),
            }),
            process,
            ..event
        };
        self.first(key, event);
    }

    /// Ends the record: writes the counts of repetitions and the job's end, in a few words or with
    /// what became of its fence, and says what there is to tell.
    pub fn finish(&mut self, failure: Option<&str>) -> Summary {
        let repeated: Vec<Event> = self
            .tallies
            .iter_mut()
            .filter(|tally| tally.count > tally.written)
            .map(|tally| {
                let count = tally.count - tally.written;
                tally.written = tally.count;
                Event {
                    count,
                    ts: SystemTime::now(),
                    ..tally.event.clone()
                }
            })
            .collect();
        for event in repeated {
            self.write(event);
        }
        if let Some(failure) = failure {
            self.state = State::Failed(failure.to_owned());
        }
        self.job("finished");
        Summary {
            state: self.state.clone(),
            tallies: std::mem::take(&mut self.tallies),
            violations: self.violations,
        }
    }

    /// What counts against the job: what was denied, but for what a rule excuses, what libraries do
    /// unasked (discovery by multicast, Multipath TCP) and what somebody else began.
    fn is_violation(&self, reason: Reason, rule: Option<&Rule>) -> bool {
        self.policy.mode == Mode::Enforce
            && !reason.is_allowed()
            && ![Reason::MULTICAST, Reason::MPTCP, Reason::INBOUND].contains(&reason)
            && rule.is_none_or(|rule| rule.fail)
    }

    /// Counts an attempt that was made before.
    fn repeat(&mut self, key: &FlowKey, violation: bool) -> bool {
        if violation {
            self.violations += 1;
        }
        let Some(&index) = self.flows.get(key) else {
            return false;
        };
        self.tallies[index].count += 1;
        true
    }

    /// Writes the first attempt of its kind; one too many is counted with others.
    fn first(&mut self, key: FlowKey, event: Event) {
        if self.flows.len() < MAX_FLOWS {
            return self.tally(key, event);
        }
        let others = FlowKey {
            ip: None,
            port: 0,
            qname: String::new(),
            qtype: String::new(),
            pid: 0,
            ..key
        };
        if let Some(&index) = self.flows.get(&others) {
            self.tallies[index].count += 1;
            return;
        }
        let event = Event {
            rule: None,
            dst: None,
            dns: None,
            process: None,
            message: Some(format!(
                "attempts beyond the {MAX_FLOWS} that are told apart"
            )),
            ..event
        };
        self.tally(others, event);
    }

    fn tally(&mut self, key: FlowKey, event: Event) {
        self.write(event.clone());
        self.flows.insert(key, self.tallies.len());
        self.tallies.push(Tally {
            event,
            count: 1,
            written: 1,
        });
    }

    /// An event without particulars.
    fn event(&self, ts: SystemTime, kind: Kind, reason: Reason) -> Event {
        Event {
            ts,
            seq: 0,
            job: self.job.clone(),
            state: self.state.clone(),
            kind,
            verdict: if reason.is_allowed() {
                Verdict::Allow
            } else {
                Verdict::Deny
            },
            reason: reason.word(),
            rule: None,
            violation: false,
            proto: None,
            dst: None,
            dns: None,
            process: None,
            count: 1,
            layers: None,
            message: None,
        }
    }

    fn write(&mut self, event: Event) {
        let event = Event {
            seq: self.seq,
            ..event
        };
        self.seq += 1;
        if let Some(log) = &mut self.log {
            log.append(&event);
        }
    }

    fn process(&mut self, client: &Client) -> Option<ProcessInfo> {
        if client.pid == 0 {
            return None;
        }
        let comm = text(&client.comm);
        let process = self.processes.find(client.pid, &comm);
        let ancestors = self.processes.ancestors(&process);
        Some(ProcessInfo {
            uid: Some(client.uid),
            ancestors: ancestors
                .iter()
                .map(|ancestor| self.info(ancestor))
                .collect(),
            ..self.info(&process)
        })
    }

    fn masked(&self, text: &str) -> String {
        self.mask.apply(text).into_owned()
    }

    fn info(&self, process: &Process) -> ProcessInfo {
        ProcessInfo {
            pid: process.pid,
            ppid: (process.ppid != 0).then_some(process.ppid),
            uid: None,
            comm: shown(&process.comm),
            exe: process
                .exe
                .as_ref()
                .map(|exe| shown(&exe.to_string_lossy())),
            cmdline: (!process.arguments.is_empty()).then(|| {
                // Before they are quoted: a secret with a quote in it would look different then.
                process::join(
                    process
                        .arguments
                        .iter()
                        .map(|argument| self.mask.apply(argument)),
                )
            }),
            ancestors: Vec::new(),
        }
    }
}

impl Summary {
    /// Whether the job kept to its policy.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.violations == 0
    }
}

/// A command name, which ends at the first zero byte and can hold anything else.
fn text(comm: &[u8; COMM_LEN]) -> String {
    let end = comm.iter().position(|&byte| byte == 0).unwrap_or(COMM_LEN);
    shown(&String::from_utf8_lossy(&comm[..end]))
}

/// What a job chose, such as the name of a file, without what would change how the rest of a line
/// looks.
fn shown(text: &str) -> String {
    text.replace(process::is_hidden, " ")
}

fn protocol(number: u8) -> String {
    match number {
        proto::TCP => "tcp".to_owned(),
        proto::UDP => "udp".to_owned(),
        proto::ICMP => "icmp".to_owned(),
        proto::ICMPV6 => "icmpv6".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use jobfence_abi::{Addr, Flow, NAME_ROOM};
    use jobfence_policy::Policy;
    use zerocopy::FromZeros as _;

    use super::*;

    fn recorder() -> Recorder {
        let text = "version: 1\njobs:\n  default:\n    allow: [{host: '*.example.com'}]\n    \
                    deny: [{host: telemetry.example.com, fail: false}]\n";
        let policy = Policy::parse("policy.yml", text.as_bytes())
            .and_then(|policy| policy.job(None))
            .unwrap_or_else(|error| panic!("{error}"));
        Recorder::new(Subject {
            job: JobName {
                id: "1".to_owned(),
                name: "default".to_owned(),
            },
            state: State::Enforcing,
            policy: Arc::new(policy),
            table: Arc::default(),
            mask: Mask::new(std::iter::empty()),
            log: None,
        })
    }

    /// A refusal in which `name` came to light.
    fn refusal(hook: Hook, reason: Reason, fault: Fault, name: &str) -> NamedEvent {
        let mut named = NamedEvent::new_zeroed();
        let dst = Addr::from(IpAddr::from([198, 51, 100, 1]));
        named.event.hook = hook;
        named.event.reason = reason;
        named.event.fault = fault;
        named.event.flow = Flow::new(dst, 443, proto::TCP);
        named.event.name_len = u8::try_from(name.len()).expect("a short name");
        named.name[NAME_ROOM - name.len()..].copy_from_slice(name.as_bytes());
        named.name[NAME_ROOM - name.len()..].reverse();
        named
    }

    #[test]
    fn a_rule_excuses_no_name_that_was_not_read_to_its_end() {
        let excused = "telemetry.example.com";
        for &fault in Fault::ALL {
            let named = refusal(Hook::TLS, Reason::SNI, fault, excused);
            let mut recorder = recorder();
            recorder.kernel(&named.event, Some(&named));
            let event = &recorder.tallies[0].event;
            let name = event.dst.as_ref().and_then(|dst| dst.name.as_deref());
            if [Fault::NONE, Fault::NAME].contains(&fault) {
                assert_eq!(recorder.violations(), 0, "{fault:?}");
                assert_eq!((event.reason, name), ("denied", Some(excused)), "{fault:?}");
            } else {
                assert_eq!(recorder.violations(), 1, "{fault:?}");
                assert_eq!((event.reason, name), ("sni", None), "{fault:?}");
                assert_eq!(event.rule, None, "{fault:?}");
            }
        }
    }

    #[test]
    fn what_somebody_else_began_is_no_violation_at_any_hook() {
        for hook in [Hook::PACKET, Hook::TLS, Hook::HTTP] {
            let named = refusal(hook, Reason::INBOUND, Fault::UNSEEN, "");
            let mut recorder = recorder();
            recorder.kernel(&named.event, Some(&named));
            assert_eq!(recorder.violations(), 0, "{hook:?}");
            assert_eq!(recorder.tallies[0].event.reason, "inbound", "{hook:?}");
        }
    }
}
