//! Makes events of what the kernel and the resolver report.

use std::{
    borrow::Cow,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use jobfence_abi::{self as abi, COMM_LEN, Client, Fault, Hook, NamedEvent, Reason, proto};
use jobfence_policy::{AddrRule, Cause, Clipped, Job, Location, Mode, Name, Rule};
use rustix::time::{ClockId, clock_gettime};

use super::{
    event::{
        Destination, Event, FINISHED, JobName, Kind, LineHash, ProcessInfo, Question, Verdict,
    },
    history::{Chain, Fault as LineFault},
    ledger::{self, FlowKey, Ledger, Mark, Summary, UNCOUNTED, protocol},
    log::{Log, LogError},
    mask::Mask,
    refused::Refused,
};
use crate::{
    job::{
        Layers, State,
        process::{self, JobProcesses, Process, Processes},
    },
    names::{self, DnsEvent, Table, Transport},
};

/// Lines that one [`Recorder::flush`] writes at most.
const MAX_FLUSH: usize = 64;

/// The record of one job.
///
/// A method that returns [`LogError`] has noted nothing then: what it was told of is not in the log,
/// and is not counted. Its caller keeps it and offers it again, and takes no more meanwhile. Only a
/// log of the agent's own, [`Log::create`], has such errors. With another, or without one, everything
/// is counted, and [`Recorder::log_fault`] says whether the job has to end.
pub struct Recorder {
    job: Arc<JobName>,
    state: State,
    policy: Arc<Job>,
    table: Arc<Table>,
    processes: JobProcesses,
    mask: Mask,
    log: Option<Log>,
    chain: Chain,
    ledger: Ledger,
    /// `CLOCK_REALTIME` minus `CLOCK_MONOTONIC`, when the job began.
    epoch: SystemTime,
    /// The report that the agent before this one wrote last. It comes again if that agent had no
    /// time to take it out of the ring buffer.
    repeated: Option<Mark>,
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
    /// The processes of all jobs of this agent.
    pub processes: Arc<Mutex<Processes>>,
    /// Its secrets.
    pub mask: Mask,
    /// Where events are written, if anywhere.
    pub log: Option<Log>,
    /// Whether it is a runner: of what it is allowed, not every process has a line of its own.
    pub is_runner: bool,
}

impl Recorder {
    /// Begins the record of `subject`.
    #[must_use]
    pub fn new(subject: Subject) -> Self {
        let now = SystemTime::now();
        let mut job = subject.job;
        for text in job.texts_mut() {
            *text = shown(text);
        }
        Self {
            job: Arc::new(job),
            state: subject.state,
            policy: subject.policy,
            table: subject.table,
            processes: JobProcesses::new(subject.processes),
            mask: subject.mask,
            log: subject.log,
            chain: Chain::default(),
            ledger: Ledger::new(subject.is_runner),
            epoch: now - monotonic(),
            repeated: None,
        }
    }

    /// Goes on with the record of `subject`, whose agent was killed, from its log, which
    /// [`Log::reopen`] has opened. What was repeated since the last [`Recorder::flush`] is not in
    /// it; [`Recorder::reconcile`] says how much that was.
    ///
    /// # Errors
    ///
    /// [`LogError::Read`], and [`LogError::Changed`] when the log is not what an agent left.
    pub fn resume(subject: Subject) -> Result<Self, LogError> {
        let mut recorder = Self::new(subject);
        let Some(log) = &recorder.log else {
            return Ok(recorder);
        };
        let (chain, ledger) = (&mut recorder.chain, &mut recorder.ledger);
        log.replay(|line| {
            let event = line.event()?;
            if event.job.id != recorder.job.id {
                return Err(LineFault::OtherJob);
            }
            chain.follow(&line, &event)?;
            if let Some(epoch) = event.epoch {
                recorder.epoch = epoch;
            }
            if chain.ended {
                recorder.state = event.state.clone();
            }
            let job = Arc::clone(&recorder.job);
            ledger.replay(Event { job, ..event });
            Ok(())
        })?;
        recorder.repeated = recorder.ledger.newest().cloned();
        Ok(recorder)
    }

    /// Whether the job's beginning is in its log.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.chain.seq > 0
    }

    /// Whether the job's end is in its log.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.chain.ended
    }

    /// The processes of all jobs of this agent.
    pub fn processes(&self) -> MutexGuard<'_, Processes> {
        self.processes.table()
    }

    /// Says that a process is the job's, and so is what it will fork; call it for each process
    /// that is moved into the job. `arguments` is what it was asked to run, if that is known: it
    /// can be gone before anybody looks at it.
    pub fn adopt(&self, pid: u32, arguments: Vec<String>) {
        self.processes.adopt(pid, arguments);
    }

    /// Attempts so far that violate the policy.
    #[must_use]
    pub fn violations(&self) -> u64 {
        self.ledger.violations()
    }

    /// What was refused so far: the first few, and how many more; also when the record has ended.
    #[must_use]
    pub fn refused(&self) -> (Vec<Refused>, u64) {
        self.ledger.refused()
    }

    /// Goes by another policy from now on.
    pub fn set_policy(&mut self, policy: Arc<Job>) {
        self.policy = policy;
    }

    /// What the fence is worth.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What there is to tell so far.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary {
            state: self.state.clone(),
            policy: Some(self.policy.file().to_owned()),
            tallies: self.ledger.tallies().to_vec(),
            violations: self.violations(),
        }
    }

    /// Why not everything is in the log, if so. What cannot be logged must not go on.
    #[must_use]
    pub fn log_fault(&self) -> Option<LogError> {
        self.log.as_ref()?.fault()
    }

    /// Notes that the job begins, held by `layers`.
    ///
    /// # Errors
    ///
    /// As for all that is noted: see [`Recorder`].
    pub fn started(&mut self, layers: Layers) -> Result<(), LogError> {
        self.write(Event {
            layers: Some(layers),
            policy: Some(self.policy.file().to_owned()),
            ..self.of_job("started")
        })
        .map(drop)
    }

    /// Notes something about the job itself.
    ///
    /// # Errors
    ///
    /// As for all that is noted: see [`Recorder`].
    pub fn job(&mut self, message: &str) -> Result<(), LogError> {
        self.write(self.of_job(message)).map(drop)
    }

    /// Notes attempts that were denied and only counted: for [`Reason::AUDIT_LOSS`] since their events
    /// found no room, for [`Reason::LIMIT`] since there were too many in a second. `total` is how
    /// many there have been in all. They are written as repetitions are: see [`Recorder::flush`].
    ///
    /// # Errors
    ///
    /// As for all that is noted: see [`Recorder`].
    pub fn loss(&mut self, reason: Reason, total: u64) -> Result<(), LogError> {
        if total == 0 || self.ledger.lose(reason.word(), total) {
            return Ok(());
        }
        let why = if reason == Reason::LIMIT {
            "the job made more in a second than `limits.events` allows"
        } else {
            "their events found no room"
        };
        let event = self.event(self.now(), Kind::Loss, reason);
        let event = self.write(Event {
            violation: self.policy.mode == Mode::Enforce,
            count: total,
            message: Some(format!("attempts were denied: {why}")),
            ..event
        })?;
        self.ledger.first(event);
        Ok(())
    }

    /// Compares the record with `reports`, the number of reports that the programs in the kernel
    /// have made since the job began, and notes how many of them only the memory of an agent held
    /// that was killed. Call it when all that there will be are taken, before
    /// [`Recorder::finish`]. Each of them repeated an attempt that the log has, so the verdict does
    /// not depend on them.
    ///
    /// # Errors
    ///
    /// As for all that is noted: see [`Recorder`].
    pub fn reconcile(&mut self, reports: u64) -> Result<(), LogError> {
        let known = self.ledger.reports();
        if known > reports {
            tracing::warn!(
                job = self.job.id,
                known,
                reports,
                "more attempts than were reported"
            );
        }
        let count = reports.saturating_sub(known);
        if count == 0 {
            return Ok(());
        }
        let message = format!(
            "{count} repeated attempts are in no other line: the agent that had counted them was \
             killed"
        );
        let event = self.write(Event {
            reason: Cow::Borrowed(UNCOUNTED),
            count,
            ..self.of_job(&message)
        })?;
        self.ledger.replay(event);
        Ok(())
    }

    /// Notes what a program in the kernel reported, and the name that came with it. The report is
    /// taken out of the ring buffer after this, never before, and before anything else is called.
    ///
    /// # Errors
    ///
    /// As for all that is noted, see [`Recorder`]: the report stays in the ring buffer then.
    pub fn kernel(
        &mut self,
        report: &abi::Event,
        named: Option<&NamedEvent>,
    ) -> Result<(), LogError> {
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
        let said = matches!(kind, Kind::Tls | Kind::Http).then(|| {
            let name = named.filter(|_| is_whole).into_iter();
            let name = name.flat_map(NamedEvent::name).map(char::from);
            name.collect::<String>()
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
            AddrRule::Clipped(clipped) if !report.reason.is_allowed() => {
                (of_clipped(clipped, report.reason), Some(&clipped.rule))
            }
            _ => (report.reason, None),
        };
        let fault = report.fault.text();
        let is_checked = said.is_some();
        let said = said.map(|said| self.masked(&said));
        let key = FlowKey {
            kind,
            reason: Cow::Borrowed(reason.word()),
            proto: flow.proto,
            ip,
            port: if has_ports && ip.is_some() {
                flow.port
            } else {
                0
            },
            name: said.clone().unwrap_or_default(),
            detail: Cow::Borrowed(if is_checked { fault } else { "" }),
            pid: self.ledger.process(report.pid, Verdict::of(reason)),
        };
        if let Some(mark) = self.repeated.take()
            && mark == (ts, kind, Cow::Borrowed(reason.word()), flow.proto)
        {
            return Ok(());
        }
        let violation = self.is_violation(reason, rule);
        if self.repeat(&key, violation) {
            return Ok(());
        }
        let name = names.first();
        let led = || {
            let names = ip.map(|ip| self.table.names_of(ip))?;
            names.first().map(|name| self.masked(name.as_str()))
        };
        let shown = match said {
            Some(said) if is_whole => Some(said).filter(|said| !said.is_empty()),
            _ => led(),
        };
        let chain = name.map(|name| self.table.chain_of(name));
        let chain = chain.iter().flat_map(|chain| chain.iter());
        let dst = ip.map(|ip| Destination {
            ip: Some(ip),
            port: has_ports.then_some(flow.port),
            name: shown,
            chain: chain.map(|name| self.masked(name.as_str())).collect(),
        });
        let process = self.process(&Client {
            pid: report.pid,
            uid: report.uid,
            comm: report.comm,
        });
        let event = Event {
            rule: rule.map(|rule| rule.location.to_string()),
            layer: rule.map(|rule| rule.layer.to_string()),
            violation,
            proto: Some(protocol(flow.proto)),
            dst,
            process,
            message: match report.fault.is_none() {
                true => rule.and_then(|rule| self.clipped(&rule.location)),
                false => Some(fault.to_owned()),
            },
            ..self.event(ts, kind, reason)
        };
        self.first(event)
    }

    /// Notes a question of the job, which `client` asked. It is answered after this, never before.
    ///
    /// # Errors
    ///
    /// As for all that is noted, see [`Recorder`]: the question must not be answered then.
    pub fn dns(&mut self, question: &DnsEvent, client: &Client) -> Result<(), LogError> {
        let qname = self.masked(&question.qname);
        let verdict = match question.verdict {
            names::Verdict::Allow => Verdict::Allow,
            names::Verdict::Deny => Verdict::Deny,
        };
        let key = FlowKey {
            kind: Kind::Dns,
            reason: Cow::Borrowed(question.reason.word()),
            proto: match question.transport {
                Transport::Udp => proto::UDP,
                Transport::Tcp => proto::TCP,
            },
            ip: None,
            port: 0,
            name: qname.clone(),
            detail: Cow::Owned(question.qtype.clone()),
            pid: self.ledger.process(client.pid, verdict),
        };
        if self.repeat(&key, question.violation) {
            return Ok(());
        }
        let process = self.process(client);
        let event = self.event(self.now(), Kind::Dns, question.reason);
        let event = Event {
            verdict,
            rule: question.rule.as_ref().map(Location::to_string),
            layer: question.rule.as_ref().and_then(|rule| self.layer(rule)),
            violation: question.violation,
            proto: Some(protocol(key.proto)),
            dst: Some(Destination {
                ip: question.addresses.first().copied(),
                port: None,
                name: Some(qname.clone()),
                chain: question
                    .chain
                    .iter()
                    .map(|name| self.masked(name.as_str()))
                    .collect(),
            }),
            dns: Some(Question {
                qname,
                qtype: question.qtype.clone(),
                rcode: question.rcode.clone(),
            }),
            message: (verdict == Verdict::Deny)
                .then(|| self.clipped(question.rule.as_ref()?))
                .flatten(),
            process,
            ..event
        };
        self.first(event)
    }

    /// Writes how often attempts were repeated, so that less is lost if the agent is killed; to be
    /// called every second or so. It writes a line for an attempt when there are twice as many as
    /// the log says, and no more than a few at once: what is due stays due.
    ///
    /// # Errors
    ///
    /// As for all that is noted: see [`Recorder`].
    pub fn flush(&mut self) -> Result<(), LogError> {
        for _ in 0..MAX_FLUSH {
            let Some(index) = self.ledger.due() else {
                break;
            };
            self.write_count(index)?;
        }
        Ok(())
    }

    /// Writes the line that a tally lacks, if it lacks one.
    fn write_count(&mut self, index: usize) -> Result<(), LogError> {
        if let Some(event) = self.ledger.line(index, self.now()) {
            self.write(event)?;
        }
        self.ledger.written(index);
        Ok(())
    }

    /// Ends the record: writes the counts of repetitions and the job's end, in a few words or with
    /// what became of its fence, and says what there is to tell. If the log of a job that was
    /// resumed has its end already, nothing is written.
    ///
    /// # Errors
    ///
    /// As for all that is noted, see [`Recorder`]. It can be called again then; what is written is
    /// not written twice.
    pub fn finish(&mut self, failure: Option<&str>) -> Result<Summary, LogError> {
        if !self.has_ended() {
            for index in 0..self.ledger.tallies().len() {
                self.write_count(index)?;
            }
            if let Some(failure) = failure {
                self.state = State::Failed(shown(failure));
            }
            self.job(FINISHED)?;
            self.chain.ended = true;
        }
        Ok(Summary {
            state: self.state.clone(),
            policy: Some(self.policy.file().to_owned()),
            violations: self.violations(),
            tallies: self.ledger.take_tallies(),
        })
    }

    /// Why the rule at `location` does not hold, if it does not.
    fn clipped(&self, location: &Location) -> Option<String> {
        let mut clipped = self.policy.clipped.iter();
        let clipped = clipped.find(|clipped| clipped.rule.location == *location)?;
        Some(clipped.to_string())
    }

    /// The layer of the policy that a rule is of.
    fn layer(&self, rule: &Location) -> Option<String> {
        let mut rules = self.policy.allow.iter().chain(&self.policy.deny);
        let found = rules.find(|known| known.location == *rule);
        found.map(|rule| rule.layer.to_string())
    }

    /// What counts against the job: what was denied, but for what a rule excuses, what libraries do
    /// unasked (discovery by multicast, Multipath TCP) and what somebody else began.
    fn is_violation(&self, reason: Reason, rule: Option<&Rule>) -> bool {
        self.policy.mode == Mode::Enforce
            && !reason.is_allowed()
            && ![Reason::MULTICAST, Reason::MPTCP, Reason::INBOUND].contains(&reason)
            && rule.is_none_or(|rule| rule.fail)
    }

    /// Counts an attempt that was made before, or one too many with others; false if it is the
    /// first of its kind.
    fn repeat(&mut self, key: &FlowKey, violation: bool) -> bool {
        self.ledger.repeat(key, violation)
            || !self.ledger.has_room() && self.ledger.repeat(&key.others(), violation)
    }

    /// Writes the first attempt of its kind, or the first that is counted with others.
    fn first(&mut self, mut event: Event) -> Result<(), LogError> {
        if !self.ledger.has_room() {
            event = ledger::as_others(event);
        }
        let event = self.write(event)?;
        self.ledger.first(event);
        Ok(())
    }

    /// What the time is, by the clock as it was when the job began.
    fn now(&self) -> SystemTime {
        self.epoch + monotonic()
    }

    /// An event of the job itself.
    fn of_job(&self, message: &str) -> Event {
        Event {
            reason: Cow::Borrowed("job"),
            message: Some(shown(message)),
            ..self.event(self.now(), Kind::Job, Reason::ALLOWED)
        }
    }

    /// An event without particulars.
    fn event(&self, ts: SystemTime, kind: Kind, reason: Reason) -> Event {
        Event {
            ts,
            seq: 0,
            job: Arc::clone(&self.job),
            state: self.state.clone(),
            kind,
            verdict: Verdict::of(reason),
            reason: Cow::Borrowed(reason.word()),
            rule: None,
            layer: None,
            violation: false,
            proto: None,
            dst: None,
            dns: None,
            process: None,
            bytes: None,
            count: 1,
            layers: None,
            policy: None,
            message: None,
            epoch: None,
            prev: None,
        }
    }

    /// Writes an event as the job's next line.
    fn write(&mut self, event: Event) -> Result<Event, LogError> {
        let mut event = Event {
            seq: self.chain.seq,
            epoch: (self.chain.seq == 0).then_some(self.epoch),
            prev: None,
            ..event
        };
        if let Some(log) = &mut self.log {
            event.prev = Some(self.chain.head);
            let line = log.encode(&event)?;
            let head = LineHash::of(&line);
            log.append(line)?;
            self.chain.head = head;
        }
        self.chain.seq += 1;
        Ok(event)
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

    /// A name without the job's secrets.
    fn masked(&self, name: &str) -> String {
        self.mask.name(name).into_owned()
    }

    fn info(&self, process: &Process) -> ProcessInfo {
        ProcessInfo {
            pid: process.pid,
            ppid: (process.ppid != 0).then_some(process.ppid),
            uid: None,
            comm: shown(&self.mask.text(&process.comm)),
            exe: process
                .exe
                .as_ref()
                .map(|exe| shown(&self.mask.text(&exe.to_string_lossy()))),
            cmdline: (!process.arguments.is_empty()).then(|| {
                // Before they are quoted: a secret with a quote in it would look different then.
                process::join(self.mask.arguments(process.arguments.iter()))
            }),
            ancestors: Vec::new(),
        }
    }
}

/// `CLOCK_MONOTONIC`, in which the kernel reports.
fn monotonic() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default()
}

/// Why the kernel refused for `reason` what a rule would allow that does not hold.
fn of_clipped(clipped: &Clipped, reason: Reason) -> Reason {
    match clipped.by {
        Cause::Expired if reason.is_about_rules() => Reason::EXPIRED,
        _ => reason,
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

#[cfg(test)]
mod tests {
    use jobfence_abi::{Addr, Flow, NAME_ROOM};
    use jobfence_policy::Policy;
    use zerocopy::FromZeros as _;

    use super::*;

    fn recorder() -> Recorder {
        Recorder::new(subject(None))
    }

    fn subject(log: Option<Log>) -> Subject {
        let text = "version: 1\njobs:\n  default:\n    allow: [{host: '*.example.com'}]\n    \
                    deny: [{host: telemetry.example.com, fail: false}]\n";
        let policy = Policy::parse("policy.yml", text.as_bytes())
            .and_then(|policy| policy.job(None))
            .unwrap_or_else(|error| panic!("{error}"));
        Subject {
            job: JobName {
                id: "1".to_owned(),
                name: "default".to_owned(),
                ..JobName::default()
            },
            state: State::Enforcing,
            policy: Arc::new(policy),
            table: Arc::default(),
            processes: Arc::default(),
            mask: Mask::new(std::iter::empty()),
            log,
            is_runner: false,
        }
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
            recorder.kernel(&named.event, Some(&named)).unwrap();
            let event = &recorder.ledger.tallies()[0].event;
            let name = event.dst.as_ref().and_then(|dst| dst.name.as_deref());
            if [Fault::NONE, Fault::NAME].contains(&fault) {
                assert_eq!(recorder.violations(), 0, "{fault:?}");
                assert_eq!(
                    (&*event.reason, name),
                    ("denied", Some(excused)),
                    "{fault:?}"
                );
                assert_eq!(event.layer.as_deref(), Some("repository"), "{fault:?}");
            } else {
                assert_eq!(recorder.violations(), 1, "{fault:?}");
                assert_eq!((&*event.reason, name), ("sni", None), "{fault:?}");
                assert_eq!(event.rule, None, "{fault:?}");
            }
        }
    }

    #[test]
    fn a_clock_that_jumped_while_no_agent_ran_leaves_lines_in_order() {
        let path = std::env::temp_dir().join(format!("jobfence-clock-{}", std::process::id()));
        let day = Duration::from_secs(86_400);
        let forwards = SystemTime::now() - monotonic() + day;
        for epoch in [forwards, forwards - 2 * day] {
            // What the clock said when the job began; since then it was set by a day.
            let mut before = Recorder::new(subject(Some(Log::create(&path).unwrap())));
            before.epoch = epoch;
            before.job("begun").unwrap();
            let first = before.now();
            drop(before);
            let mut after = Recorder::resume(subject(Some(Log::reopen(&path).unwrap()))).unwrap();
            assert_eq!(after.epoch, epoch);
            let mut named = refusal(Hook::CONNECT, Reason::NO_RULE, Fault::NONE, "");
            named.event.monotonic_ns = u64::try_from(monotonic().as_nanos()).unwrap();
            after.kernel(&named.event, None).unwrap();
            let ts = after.ledger.tallies()[0].event.ts;
            assert!(
                first <= ts && ts < first + Duration::from_secs(60),
                "{first:?} {ts:?}"
            );
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn what_somebody_else_began_is_no_violation_at_any_hook() {
        for hook in [Hook::PACKET, Hook::TLS, Hook::HTTP] {
            let named = refusal(hook, Reason::INBOUND, Fault::UNSEEN, "");
            let mut recorder = recorder();
            recorder.kernel(&named.event, Some(&named)).unwrap();
            assert_eq!(recorder.violations(), 0, "{hook:?}");
            assert_eq!(
                recorder.ledger.tallies()[0].event.reason,
                "inbound",
                "{hook:?}"
            );
        }
    }
}
