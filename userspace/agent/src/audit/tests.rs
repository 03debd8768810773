//! The record of a job across the death of its agent, a full disk, and hands that change it.

use std::{
    fs,
    io::{self, BufReader, Cursor, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use jobfence_abi::{Addr, Client, Fault as Said, Flow, Hook, NAME_ROOM, NamedEvent, Reason, proto};
use jobfence_policy::Policy;
use nix::sched::{CloneFlags, unshare};
use proptest::prelude::*;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};
use zerocopy::FromZeros as _;

use super::{
    event::{Event, JobName, Kind, LineHash, Verdict},
    history::{Chain, Fault, Lines, MAX_LINE, VerifyError, read, verify},
    ledger::Tally,
    log::{Log, LogError},
    mask::Mask,
    recorder::{Recorder, Subject},
    refused::{MOST, Refused},
};
use crate::{
    job::{Layers, State},
    names::{self, DnsEvent, Transport},
};

/// A folder of this process, removed with what is in it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("jobfence-audit-{}-{count}", std::process::id());
        let path = std::env::temp_dir().canonicalize().unwrap().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn log(&self) -> PathBuf {
        self.0.join("1.jsonl")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn subject(id: &str, log: Option<Log>) -> Subject {
    let text = "version: 1\njobs:\n  default:\n    allow: [{host: '*.example.com'}]\n";
    let policy = Policy::parse("policy.yml", text.as_bytes()).unwrap();
    Subject {
        job: JobName {
            id: id.to_owned(),
            name: "default".to_owned(),
            actor: Some("somebody".to_owned()),
            ..JobName::default()
        },
        state: State::Advisory(vec!["one".to_owned(), "two (2)".to_owned()]),
        policy: Arc::new(policy.job(None).unwrap()),
        table: Arc::default(),
        processes: Arc::default(),
        mask: Mask::new([("API_TOKEN".to_owned(), "correct-horse".to_owned())].into_iter()),
        log,
        is_runner: false,
    }
}

fn layers() -> Layers {
    Layers {
        cgroup: vec!["connect4"],
        lsm: true,
        seccomp: true,
        landlock: false,
        capabilities: Vec::new(),
    }
}

/// No process has such an id: what the log says does not depend on this machine's.
const NOBODY: u32 = 1 << 30;

/// What a recorder is told.
#[derive(Clone, Debug)]
enum Told {
    Kernel(Box<NamedEvent>),
    Dns(Box<DnsEvent>),
    Flush,
}

/// A report of the kernel at the nanosecond `at`.
fn report(at: u64, hook: Hook, reason: Reason, place: u8, name: &str) -> NamedEvent {
    let mut named = NamedEvent::new_zeroed();
    named.event.monotonic_ns = at;
    named.event.hook = hook;
    named.event.reason = reason;
    named.event.pid = if place == 3 { 0 } else { NOBODY };
    named.event.comm[..4].copy_from_slice(b"curl");
    let ip = match place % 2 {
        0 => IpAddr::from([198, 51, 100, place]),
        _ => "2001:db8::1".parse().unwrap(),
    };
    let proto = [proto::TCP, proto::UDP, proto::ICMP, 47][usize::from(place % 4)];
    named.event.flow = Flow::new(Addr::from(ip), u16::from(place) * 443, proto);
    if [Hook::TLS, Hook::HTTP].contains(&hook) {
        named.event.fault = if reason.is_allowed() {
            Said::NONE
        } else {
            Said::ALL[usize::from(place) % Said::ALL.len()]
        };
        named.event.name_len = u8::try_from(name.len()).unwrap();
        named.name[NAME_ROOM - name.len()..].copy_from_slice(name.as_bytes());
        named.name[NAME_ROOM - name.len()..].reverse();
    }
    named
}

fn question(qname: &str, reason: Reason) -> DnsEvent {
    DnsEvent {
        peer: ([127, 0, 0, 1], 5300).into(),
        transport: Transport::Udp,
        qname: qname.to_owned(),
        qtype: "A".to_owned(),
        rcode: "NXDOMAIN".to_owned(),
        verdict: names::Verdict::Deny,
        reason,
        violation: true,
        rule: None,
        chain: Vec::new(),
        addresses: Vec::new(),
    }
}

fn tell(recorder: &mut Recorder, told: &Told) -> Result<(), LogError> {
    let client = Client {
        pid: NOBODY,
        uid: 7,
        comm: *b"curl\0\0\0\0\0\0\0\0\0\0\0\0",
    };
    match told {
        Told::Kernel(named) => recorder.kernel(&named.event, Some(named)),
        Told::Dns(question) => recorder.dns(question, &client),
        Told::Flush => recorder.flush(),
    }
}

fn some_story() -> impl Strategy<Value = Vec<Told>> {
    let hooks = [
        Hook::CONNECT,
        Hook::PACKET,
        Hook::SOCKET,
        Hook::TLS,
        Hook::HTTP,
    ];
    let reasons = [
        Reason::ALLOWED,
        Reason::NO_RULE,
        Reason::SNI,
        Reason::MULTICAST,
    ];
    let names = ["a.example.com", "b.test", "x-correct-horse.test", ""];
    let kernel = (
        prop::sample::select(hooks.to_vec()),
        prop::sample::select(reasons.to_vec()),
        0..4_u8,
        prop::sample::select(names.to_vec()),
    )
        .prop_map(|(hook, reason, place, name)| {
            Told::Kernel(Box::new(report(0, hook, reason, place, name)))
        });
    let dns = prop::sample::select(names.to_vec())
        .prop_map(|name| Told::Dns(Box::new(question(name, Reason::NAME))));
    let told = prop_oneof![6 => kernel, 2 => dns, 1 => Just(Told::Flush)];
    prop::collection::vec(told, 1..12).prop_map(|mut story| {
        for (told, at) in story.iter_mut().zip(1..) {
            if let Told::Kernel(named) = told {
                named.event.monotonic_ns = at;
            }
        }
        story
    })
}

fn reports(story: &[Told]) -> u64 {
    let kernels = story.iter().filter(|told| matches!(told, Told::Kernel(_)));
    kernels.count() as u64
}

/// Tallies without what depends on when they were written.
fn plain(tallies: &[Tally]) -> Vec<(Event, u64)> {
    let plain = |tally: &Tally| {
        let event = Event {
            ts: std::time::UNIX_EPOCH,
            seq: 0,
            prev: None,
            epoch: None,
            ..tally.event.clone()
        };
        (event, tally.count)
    };
    tallies.iter().map(plain).collect()
}

/// The lines of a log, of which each is an event and the next one in its job's chain.
fn whole(path: &Path) -> Vec<Event> {
    let bytes = fs::read(path).unwrap();
    let mut lines = Lines::new(Cursor::new(bytes));
    let mut chain = Chain::default();
    let mut events = Vec::new();
    while let Some(line) = lines.read().unwrap() {
        let event = line.event().unwrap();
        chain.follow(&line, &event).unwrap();
        events.push(event);
    }
    events
}

/// Kills the agent of a job when `cuts`, which is told the length of a line, of its bytes are written,
/// for every line behind the first. What the agent did not take out of the ring buffer comes again,
/// be it written or not.
fn kill_at<I: IntoIterator<Item = usize>>(
    story: &[Told],
    cuts: impl Fn(usize) -> I,
) -> Result<(), TestCaseError> {
    let folder = Folder::new();
    let path = folder.log();
    let mut recorder = Recorder::new(subject("1", Some(Log::create(&path).unwrap())));
    recorder.started(layers()).unwrap();
    // How long the log was before each of what it was told.
    let mut lengths = Vec::new();
    for told in story {
        lengths.push(fs::metadata(&path).unwrap().len());
        tell(&mut recorder, told).unwrap();
    }
    let log = fs::read(&path).unwrap();
    let expected = recorder.finish(None).unwrap();
    let violations = expected.violations;
    let expected = plain(&expected.tallies);

    let mut begin = usize::try_from(lengths[0]).unwrap();
    let mut all = vec![begin];
    for line in log[begin..].split_inclusive(|&byte| byte == b'\n') {
        all.extend(cuts(line.len()).into_iter().map(|cut| begin + cut));
        begin += line.len();
    }
    for cut in all.into_iter().map(|cut| cut as u64) {
        // What was being written, or had just been, when the agent was killed.
        let at = lengths
            .iter()
            .rposition(|&length| length < cut)
            .unwrap_or(0);
        fs::write(&path, &log[..usize::try_from(cut).unwrap()]).unwrap();
        let resumed = subject("1", Some(Log::reopen(&path).unwrap()));
        let mut recorder = Recorder::resume(resumed).unwrap();
        prop_assert!(recorder.has_begun() && !recorder.has_ended());
        // Questions are not asked again that were noted.
        let end = lengths.get(at + 1).copied().unwrap_or(log.len() as u64);
        let is_noted = cut == end && !matches!(story[at], Told::Kernel(_));
        for told in &story[at + usize::from(is_noted)..] {
            tell(&mut recorder, told).unwrap();
        }
        recorder.reconcile(reports(story)).unwrap();
        recorder.reconcile(reports(story)).unwrap();
        let summary = recorder.finish(None).unwrap();
        let tallies = plain(&summary.tallies);

        let events = whole(&path);
        let missing: u64 = events
            .iter()
            .filter(|event| event.reason == "uncounted")
            .map(|event| event.count)
            .sum();
        let sum = |tallies: &[(Event, u64)]| {
            let kernels = tallies.iter().filter(|(event, _)| event.kind != Kind::Dns);
            kernels.map(|(_, count)| count).sum::<u64>()
        };
        prop_assert_eq!(sum(&tallies) + missing, reports(story), "cut at {}", cut);
        prop_assert_eq!(tallies.len(), expected.len(), "cut at {}", cut);
        for ((event, count), (other, most)) in tallies.iter().zip(&expected) {
            prop_assert_eq!(event, other, "cut at {}", cut);
            prop_assert!(count <= most, "cut at {cut}: {count} of {most}: {event:?}");
        }
        prop_assert!(summary.violations <= violations);
        prop_assert_eq!(summary.violations == 0, violations == 0);

        // The log tells the same as the record.
        let file = BufReader::new(fs::File::open(&path).unwrap());
        let mut histories = read(file, None, |line, fault| panic!("{line}: {fault}")).unwrap();
        prop_assert_eq!(histories.len(), 1);
        prop_assert!(histories[0].ended.is_some());
        let told = histories.remove(0).summary;
        prop_assert_eq!(plain(&told.tallies), tallies);
        prop_assert_eq!(told.violations, summary.violations);
    }
    Ok(())
}

#[test]
fn an_agent_that_is_killed_after_any_byte_of_its_log_loses_nothing() {
    let connect = |at, place| {
        let report = report(at, Hook::CONNECT, Reason::NO_RULE, place, "");
        Told::Kernel(Box::new(report))
    };
    let story = [
        connect(1, 0),
        connect(2, 0),
        Told::Dns(Box::new(question("b.test", Reason::NAME))),
        connect(3, 0),
        Told::Flush,
        connect(4, 1),
    ];
    kill_at(&story, |line| 0..=line).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_job_whose_agent_is_killed_ends_with_the_tallies_of_one_whose_agent_is_not(
        story in some_story(), within in 2..400_usize,
    ) {
        kill_at(&story, |line| [0, 1, within.min(line - 2), line - 1, line])?;
    }

    #[test]
    fn bytes_that_are_no_log_are_refused_and_nothing_panics(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let _ = verify(&bytes[..], None);
        let mut lines = Lines::new(&bytes[..]);
        while let Some(line) = lines.read().unwrap() {
            prop_assert!(line.event().is_err());
        }
    }

    #[test]
    fn a_line_that_is_changed_anywhere_breaks_the_chain(
        at in any::<prop::sample::Index>(), bit in 0..8_u32,
    ) {
        let mut log = some_log();
        // Of the last line nothing tells but a copy of its hash.
        let last = log[..log.len() - 1].iter().rposition(|&byte| byte == b'\n').unwrap();
        let at = at.index(last + 1);
        log[at] ^= 1 << bit;
        prop_assert!(verify(&log[..], None).is_err(), "byte {at}: {}", String::from_utf8_lossy(&log));
    }
}

/// The log of a small job.
fn some_log() -> Vec<u8> {
    let folder = Folder::new();
    let path = folder.log();
    write_job(&path, "1");
    fs::read(path).unwrap()
}

/// Appends a job of four lines to a log.
fn write_job(path: &Path, id: &str) {
    let mut recorder = Recorder::new(subject(id, Some(Log::open(path).unwrap())));
    recorder.started(layers()).unwrap();
    for (at, reason) in [
        (1, Reason::NO_RULE),
        (2, Reason::NO_RULE),
        (3, Reason::PORT),
    ] {
        let report = report(at, Hook::CONNECT, reason, 0, "");
        recorder.kernel(&report.event, None).unwrap();
    }
    recorder.finish(None).unwrap();
}

fn first_fault(log: &str) -> (u64, Fault) {
    match verify(log.as_bytes(), None) {
        Err(VerifyError::Line { line, fault }) => (line, fault),
        other => panic!("{other:?}: {log}"),
    }
}

#[test]
fn the_jobs_of_one_log_have_a_chain_each() {
    let folder = Folder::new();
    let path = folder.log();
    write_job(&path, "1");
    write_job(&path, "2");
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 10);
    // Two at once would have written by turns.
    let turns = (0..5).flat_map(|at| [lines[at], lines[at + 5]]);
    let turns: String = turns.map(|line| format!("{line}\n")).collect();
    for text in [&text, &turns] {
        let chains = verify(text.as_bytes(), None).unwrap();
        let chains: Vec<_> = chains
            .iter()
            .map(|(id, chain)| (id.as_str(), chain.seq, chain.head))
            .collect();
        let head = |at: usize| LineHash::of(lines[at].as_bytes());
        assert_eq!(chains, [("1", 5, head(4)), ("2", 5, head(9))]);
    }
    let zeros = format!("\"prev\":\"{}\"", "0".repeat(64));
    let firsts: Vec<_> = (0..10).filter(|&at| lines[at].contains(&zeros)).collect();
    assert_eq!(firsts, [0, 5]);
}

#[test]
fn the_first_bad_line_is_named_with_what_is_wrong() {
    let text = String::from_utf8(some_log()).unwrap();
    let lines: Vec<_> = text.lines().collect();
    let with = |change: &dyn Fn(&mut Vec<String>)| {
        let mut lines: Vec<_> = lines.iter().map(ToString::to_string).collect();
        change(&mut lines);
        lines.join("\n") + "\n"
    };
    let changed = with(&|lines| lines[1] = lines[1].replace("198.51.100.0", "198.51.100.9"));
    assert_eq!(first_fault(&changed), (3, Fault::Hash { before: 2 }));
    let removed = with(&|lines| drop(lines.remove(2)));
    let gap = |found, expected| Fault::Sequence { found, expected };
    assert_eq!(first_fault(&removed), (3, gap(3, 2)));
    let doubled = with(&|lines| lines.insert(2, lines[1].clone()));
    assert_eq!(first_fault(&doubled), (3, gap(1, 2)));
    let headless = with(&|lines| drop(lines.remove(0)));
    assert_eq!(first_fault(&headless), (1, gap(1, 0)));
    let endless = with(&|lines| drop(lines.pop()));
    assert_eq!(first_fault(&endless), (4, Fault::NoEnd("1".to_owned())));
    let cut = text.trim_end();
    assert_eq!(first_fault(cut), (5, Fault::Cut));
    let longer = with(&|lines| lines.push(lines[4].replace("\"seq\":4", "\"seq\":5")));
    assert_eq!(first_fault(&longer), (6, Fault::AfterEnd(5)));
    let unchained = with(&|lines| lines[0] = lines[0].replace("\"prev\"", "\"old\""));
    assert_eq!(first_fault(&unchained), (1, Fault::NoHash));
    let huge = with(&|lines| lines[1] = "x".repeat(MAX_LINE + 1));
    assert_eq!(first_fault(&huge), (2, Fault::TooLong));
    let foreign = with(&|lines| lines[1] = "{}".to_owned());
    let (line, fault) = first_fault(&foreign);
    assert!(matches!((line, &fault), (2, Fault::NoEvent(_))), "{fault}");
}

#[test]
fn lines_of_another_job_may_be_wrong_in_their_chain() {
    let folder = Folder::new();
    let path = folder.log();
    write_job(&path, "1");
    write_job(&path, "2");
    let text = fs::read_to_string(&path).unwrap();
    let mut lines: Vec<_> = text.lines().collect();
    lines[2] = &lines[2][..lines[2].len() / 2];
    let torn = lines.join("\n") + "\n";
    assert!(
        verify(torn.as_bytes(), None).is_err(),
        "whose is the torn line?"
    );
    assert!(verify(torn.as_bytes(), Some("2")).is_err());
    let broken = fs::read_to_string(&path)
        .unwrap()
        .replacen("\"seq\":1", "\"seq\":7", 1);
    assert!(verify(broken.as_bytes(), Some("1")).is_err());
    assert_eq!(verify(broken.as_bytes(), Some("2")).unwrap().len(), 1);
    assert_eq!(verify(broken.as_bytes(), Some("3")).unwrap().len(), 0);
}

#[test]
fn what_a_log_says_cannot_change_how_the_rest_is_shown() {
    let text = String::from_utf8(some_log()).unwrap();
    for tricky in ["\\u001b[31m", "\\n\\r", "\\u202e", "\u{9b}31m", "\u{202e}"] {
        let text = text.replace("curl", tricky).replace("default", tricky);
        let mut lines = Lines::new(text.as_bytes());
        while let Some(line) = lines.read().unwrap() {
            let event = line.event().unwrap();
            let shown = format!("{:?} {:?}", event.job, event.process);
            // Debug would escape them.
            assert!(!shown.contains("\\u{"), "{shown}");
        }
        let bad = text.replace("\"kind\":\"connect\"", &format!("\"kind\":\"{tricky}\""));
        let (_, fault) = first_fault(&bad);
        let fault = fault.to_string();
        assert!(!fault.contains(crate::job::process::is_hidden), "{fault:?}");
    }
}

#[test]
fn a_nested_line_is_refused_and_not_followed_down() {
    let deep = format!(
        "{{\"a\":{}1\n",
        "[\\u0000".repeat(10_000).replace("\\u0000", "")
    );
    let text = format!("{deep}{}", deep.replace("\"a\"", "\"\\u0061\""));
    let mut lines = Lines::new(text.as_bytes());
    while let Some(line) = lines.read().unwrap() {
        assert!(matches!(line.event(), Err(Fault::NoEvent(_))));
    }
}

#[test]
fn an_event_is_the_same_after_it_is_read_back() {
    let folder = Folder::new();
    let path = folder.log();
    let mut recorder = Recorder::new(subject("1", Some(Log::create(&path).unwrap())));
    for (at, hook) in [(1, Hook::CONNECT), (2, Hook::TLS), (3, Hook::SOCKET)] {
        let report = report(at, hook, Reason::SNI, 1, "x-correct-horse.test");
        recorder.kernel(&report.event, Some(&report)).unwrap();
    }
    let question = question("y.test", Reason::NAME);
    tell(&mut recorder, &Told::Dns(Box::new(question))).unwrap();
    let summary = recorder.summary();
    let events = whole(&path);
    let written: Vec<_> = summary.tallies.iter().map(|tally| &tally.event).collect();
    assert_eq!(events.iter().collect::<Vec<_>>(), written);
    let text = fs::read_to_string(&path).unwrap();
    assert!(!text.contains("correct-horse"), "{text}");
}

#[test]
fn a_question_has_the_layer_of_its_rule() {
    let subject = subject("1", None);
    let rule = subject.policy.allow[0].location.clone();
    let mut recorder = Recorder::new(subject);
    for rule in [Some(rule), None] {
        let question = DnsEvent {
            qtype: if rule.is_some() { "A" } else { "AAAA" }.to_owned(),
            rule,
            ..question("a.example.com", Reason::ALLOWED)
        };
        tell(&mut recorder, &Told::Dns(Box::new(question))).unwrap();
    }
    let tallies = recorder.summary().tallies;
    let layers = tallies.iter().map(|tally| tally.event.layer.as_deref());
    assert!(layers.eq([Some("repository"), None]));
}

#[test]
fn a_log_of_another_job_or_with_a_changed_line_is_not_resumed() {
    let folder = Folder::new();
    let path = folder.log();
    let mut recorder = Recorder::new(subject("1", Some(Log::create(&path).unwrap())));
    recorder.started(layers()).unwrap();
    recorder.job("something").unwrap();
    let resume = |id| {
        Recorder::resume(subject(id, Some(Log::reopen(&path).unwrap())))
            .map(drop)
            .map_err(|error| error.to_string())
    };
    resume("1").unwrap();
    let error = resume("2").unwrap_err();
    assert!(error.contains(":1 is not as the agent left it"), "{error}");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("started", "STARTED")).unwrap();
    let error = resume("1").unwrap_err();
    assert!(error.contains(":2 is not as the agent left it"), "{error}");
}

#[test]
fn a_finished_record_is_not_finished_twice() {
    let folder = Folder::new();
    let path = folder.log();
    let mut recorder = Recorder::new(subject("1", Some(Log::create(&path).unwrap())));
    recorder.started(layers()).unwrap();
    recorder.finish(Some("the disk burnt")).unwrap();
    let before = fs::read(&path).unwrap();
    let mut recorder = Recorder::resume(subject("1", Some(Log::reopen(&path).unwrap()))).unwrap();
    assert!(recorder.has_ended());
    let summary = recorder.finish(None).unwrap();
    assert_eq!(summary.state, State::Failed("the disk burnt".to_owned()));
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn a_clock_that_is_set_changes_no_line() {
    let folder = Folder::new();
    let path = folder.log();
    let mut recorder = Recorder::new(subject("1", Some(Log::create(&path).unwrap())));
    recorder.started(layers()).unwrap();
    let mut text = fs::read_to_string(&path).unwrap();
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    let epoch = line["epoch"].as_str().unwrap();
    // As if the agent had begun in the year 2001 by a wrong clock.
    text = text.replace(epoch, "2001-02-03T04:05:06.123456789Z");
    fs::write(&path, text).unwrap();
    let mut recorder = Recorder::resume(subject("1", Some(Log::reopen(&path).unwrap()))).unwrap();
    recorder.job("resumed").unwrap();
    let report = report(1_000_000_001, Hook::CONNECT, Reason::NO_RULE, 0, "");
    recorder.kernel(&report.event, None).unwrap();
    recorder.finish(None).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let times: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["ts"].take())
        .collect();
    assert_eq!(times[2], "2001-02-03T04:05:07.12345679Z");
    let from_old = |time: &serde_json::Value| time.as_str().unwrap().starts_with("2001-");
    assert!(times[1..].iter().all(from_old), "{times:?}");
}

#[test]
fn repetitions_are_written_at_each_doubling_and_no_more_often() {
    let folder = Folder::new();
    let path = folder.log();
    let mut recorder = Recorder::new(subject("1", Some(Log::create(&path).unwrap())));
    recorder.started(layers()).unwrap();
    for at in 0..100_000 {
        let report = report(at, Hook::CONNECT, Reason::NO_RULE, 0, "");
        recorder.kernel(&report.event, None).unwrap();
        recorder.loss(Reason::LIMIT, 3 * at).unwrap();
        recorder.flush().unwrap();
    }
    let events = whole(&path);
    for (reason, all) in [("no-rule", 100_000), ("limit", 3 * 99_999)] {
        let counts = events.iter().filter(|event| event.reason == reason);
        let counts: Vec<_> = counts.map(|event| event.count).collect();
        assert!(counts.len() < 22, "{reason}: {} lines", counts.len());
        let sum: u64 = counts.iter().sum();
        assert!(
            2 * sum > all && sum <= all,
            "{reason}: {sum} written of {all}"
        );
    }
    let resumed = Recorder::resume(subject("1", Some(Log::reopen(&path).unwrap()))).unwrap();
    let count = |recorder: &Recorder| recorder.summary().tallies[0].count;
    assert!(2 * count(&resumed) > count(&recorder));
    // What the kernel counted for itself is told again, and noted once.
    let mut resumed = resumed;
    resumed.loss(Reason::LIMIT, 3 * 99_999).unwrap();
    assert_eq!(resumed.summary().tallies[1].count, 3 * 99_999);
}

#[test]
fn one_flush_writes_no_more_than_a_few_lines() {
    let folder = Folder::new();
    let path = folder.log();
    let mut recorder = Recorder::new(subject("1", Some(Log::create(&path).unwrap())));
    for at in 0..2000 {
        let mut report = report(at, Hook::CONNECT, Reason::NO_RULE, 0, "");
        report.event.flow.port = u16::try_from(at % 1000).unwrap();
        recorder.kernel(&report.event, None).unwrap();
    }
    let lines = || fs::read_to_string(&path).unwrap().lines().count();
    assert_eq!(lines(), 1000);
    recorder.flush().unwrap();
    assert_eq!(lines(), 1064);
    for _ in 0..20 {
        recorder.flush().unwrap();
    }
    assert_eq!(lines(), 2000);
}

#[test]
fn more_flows_than_are_told_apart_are_counted_and_resumed() {
    let folder = Folder::new();
    let path = folder.log();
    let mut recorder = Recorder::new(subject("1", Some(Log::create(&path).unwrap())));
    let told = |recorder: &mut Recorder, from: u64, to: u64| {
        for at in from..to {
            let mut report = report(at, Hook::CONNECT, Reason::NO_RULE, 0, "");
            report.event.flow.port = u16::try_from(at).unwrap();
            recorder.kernel(&report.event, None).unwrap();
        }
    };
    told(&mut recorder, 0, 20_001);
    drop(recorder);
    // The last one comes again, which is one of the others.
    let mut recorder = Recorder::resume(subject("1", Some(Log::reopen(&path).unwrap()))).unwrap();
    told(&mut recorder, 20_000, 20_011);
    recorder.reconcile(20_011).unwrap();
    let summary = recorder.finish(None).unwrap();
    assert_eq!(summary.tallies.len(), 20_001);
    assert_eq!(summary.tallies[20_000].count, 11);
    assert_eq!(summary.violations, 20_011);
    let events = whole(&path);
    assert!(events.iter().all(|event| event.reason != "uncounted"));
}

/// Whether this process may mount; says that the test is left out if not.
fn can_mount() -> bool {
    let can = rustix::process::geteuid().is_root();
    if !can {
        // Not by a macro, whose output a test that passes does not show.
        writeln!(io::stderr(), "LEFT OUT: a log on a full disk (needs root)").unwrap();
    }
    can
}

/// A small file system that only this thread sees, unmounted on drop.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one of `bytes` at `path`.
    fn mount(path: PathBuf, bytes: u64) -> Self {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).unwrap();
        let size = std::ffi::CString::new(format!("size={bytes}")).unwrap();
        mount(
            "tmpfs",
            &path,
            "tmpfs",
            MountFlags::empty(),
            size.as_c_str(),
        )
        .unwrap();
        Self(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Files of it may be open still.
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn long_command_lines_fill_neither_the_log_nor_the_memory() {
    let folder = Folder::new();
    let path = folder.log();
    let mut recorder = Recorder::new(subject("1", Some(Log::create(&path).unwrap())));
    for pid in NOBODY..NOBODY + 33 {
        let longest = vec!["x".repeat(4096)];
        recorder.adopt(pid, longest);
    }
    let from = |recorder: &mut Recorder, from: u64, to: u64| {
        for at in from..to {
            let mut report = report(at, Hook::CONNECT, Reason::NO_RULE, 0, "");
            report.event.flow.port = u16::try_from(at).unwrap();
            recorder.kernel(&report.event, None).unwrap();
        }
    };
    from(&mut recorder, 0, 10_000);
    let size = || fs::metadata(&path).unwrap().len();
    assert!((32 << 20..40 << 20).contains(&size()), "{} bytes", size());
    drop(recorder);
    let mut recorder = Recorder::resume(subject("1", Some(Log::reopen(&path).unwrap()))).unwrap();
    let before = size();
    from(&mut recorder, 9999, 19_000);
    assert!(size() < before + 10_000, "{} more", size() - before);
    recorder.reconcile(19_000).unwrap();
    let summary = recorder.finish(None).unwrap();
    assert!(summary.tallies.len() < 19_000);
    let events = whole(&path);
    let counted: u64 = events.iter().map(|event| event.count).sum();
    assert_eq!(counted, 19_000 + 1);
}

#[test]
fn a_full_disk_loses_no_attempt_and_leaves_no_part_of_a_line() {
    if !can_mount() {
        return;
    }
    let folder = Folder::new();
    let disk = folder.0.join("disk");
    fs::create_dir(&disk).unwrap();
    let disk = SmallDisk::mount(disk, 64 << 10);
    let path = disk.0.join("1.jsonl");
    let ballast = disk.0.join("ballast");
    let mut recorder = Recorder::new(subject("1", Some(Log::create(&path).unwrap())));
    recorder.started(layers()).unwrap();
    fs::write(&ballast, vec![0; 32 << 10]).unwrap();
    let report = |at| {
        let mut report = report(at, Hook::CONNECT, Reason::NO_RULE, 0, "");
        report.event.flow.port = u16::try_from(at).unwrap();
        report.event
    };
    let mut at = 0;
    let refused = loop {
        match recorder.kernel(&report(at), None) {
            Ok(()) => at += 1,
            Err(error) => break error,
        }
    };
    let LogError::Write { source, .. } = &refused else {
        panic!("{refused}");
    };
    assert_eq!(source.raw_os_error(), Some(libc::ENOSPC));
    assert!(at > 10, "{at} lines prove nothing");
    // Nothing of it is counted, nothing of it is in the log, and it can be offered again.
    for _ in 0..3 {
        assert!(recorder.kernel(&report(at), None).is_err());
        let question = Told::Dns(Box::new(question("y.test", Reason::NAME)));
        assert!(tell(&mut recorder, &question).is_err());
        assert!(recorder.finish(None).is_err());
        assert_eq!(recorder.violations(), at);
        assert_eq!(recorder.summary().tallies.len() as u64, at);
        assert_eq!(whole(&path).len() as u64, at + 1);
    }
    assert!(recorder.log_fault().is_none());
    fs::remove_file(&ballast).unwrap();
    recorder.kernel(&report(at), None).unwrap();
    let summary = recorder.finish(None).unwrap();
    assert_eq!(summary.violations, at + 1);
    let events = whole(&path);
    assert_eq!(events.len() as u64, at + 3);
    assert!(verify(BufReader::new(fs::File::open(&path).unwrap()), None).is_ok());
}

#[test]
fn another_log_that_cannot_be_written_is_told_of_and_counting_goes_on() {
    let log = Log::open(Path::new("/dev/full")).unwrap();
    let mut recorder = Recorder::new(subject("1", Some(log)));
    recorder.started(layers()).unwrap();
    let report = report(1, Hook::CONNECT, Reason::NO_RULE, 0, "");
    recorder.kernel(&report.event, None).unwrap();
    assert!(recorder.log_fault().is_some());
    let summary = recorder.finish(Some("the log")).unwrap();
    assert_eq!((summary.violations, summary.tallies.len()), (1, 1));
}

#[test]
fn a_clock_that_goes_back_does_not_change_the_order_of_lines() {
    let folder = Folder::new();
    let path = folder.log();
    let mut recorder = Recorder::new(subject("1", Some(Log::create(&path).unwrap())));
    recorder.started(layers()).unwrap();
    recorder.job("later").unwrap();
    let events = whole(&path);
    let epoch = events[0].epoch.unwrap();
    let uptime = events[0].ts.duration_since(epoch).unwrap();
    assert!(events[0].ts <= events[1].ts);
    assert!(events[1].ts.duration_since(events[0].ts).unwrap() < Duration::from_secs(60));
    assert!(uptime > Duration::ZERO);
}

#[test]
fn what_was_refused_is_told_by_destination_and_bounded() {
    let folder = Folder::new();
    let mut recorder = Recorder::new(subject("1", Some(Log::create(&folder.log()).unwrap())));
    let client = Client {
        pid: NOBODY,
        uid: 1001,
        comm: *b"curl\0\0\0\0\0\0\0\0\0\0\0\0",
    };
    let excused = |number: usize| DnsEvent {
        violation: false,
        ..question(&format!("e{number}.test"), Reason::DENIED)
    };
    for number in 0..25 {
        recorder.dns(&excused(number), &client).unwrap();
    }
    let (told, more) = recorder.refused();
    assert_eq!((told.len(), more), (MOST, 5));
    for name in ["correct-horse.test", "b.test", "correct-horse.test"] {
        let question = question(name, Reason::NAME);
        recorder.dns(&question, &client).unwrap();
        let other = Client {
            pid: NOBODY + 1,
            ..client
        };
        recorder.dns(&question, &other).unwrap();
    }
    let (told, more) = recorder.refused();
    assert_eq!((told.len(), more), (MOST, 7), "violations come first");
    let masked = &told[0].destination;
    assert!(!masked.contains("horse"), "{masked}");
    let expected = Refused {
        destination: masked.clone(),
        reason: "name".to_owned(),
        why: "no rule allows the name".to_owned(),
        rule: None,
        count: 4,
        violation: true,
        process: Some(format!("curl (pid {NOBODY})")),
        allow: Some(format!("- host: {masked}")),
    };
    assert_eq!(told[0], expected);
    assert_eq!((&*told[1].destination, told[1].count), ("b.test", 2));
    assert!(told[2..].iter().all(|told| !told.violation));
    for number in 2..MOST + 10 {
        let question = question(&format!("v{number}.test"), Reason::NAME);
        recorder.dns(&question, &client).unwrap();
    }
    let (told, more) = recorder.refused();
    assert!(told.iter().all(|told| told.violation), "{told:#?}");
    assert_eq!((told.len(), more), (MOST, 35));

    recorder.finish(None).unwrap();
    assert_eq!(recorder.refused(), (told.clone(), more), "also at its end");
    drop(recorder);
    let log = Log::reopen(&folder.log()).unwrap();
    let resumed = Recorder::resume(subject("1", Some(log))).unwrap();
    assert_eq!(resumed.refused(), (told, more), "and out of its log");
}

#[test]
fn a_runners_processes_do_not_fill_its_log_with_what_is_allowed() {
    let folder = Folder::new();
    let of_runner = |log| Subject {
        is_runner: true,
        ..subject("1", Some(log))
    };
    let mut recorder = Recorder::new(of_runner(Log::create(&folder.log()).unwrap()));
    let allowed = DnsEvent {
        verdict: names::Verdict::Allow,
        violation: false,
        ..question("a.example.com", Reason::ALLOWED)
    };
    let refused = question("b.test", Reason::NAME);
    let mut at = 0;
    for pid in NOBODY..NOBODY + 3 {
        let client = Client {
            pid,
            uid: 1001,
            comm: [0; 16],
        };
        recorder.dns(&allowed, &client).unwrap();
        recorder.dns(&refused, &client).unwrap();
        for reason in [Reason::ALLOWED, Reason::NO_RULE] {
            at += 1;
            let mut named = report(at, Hook::CONNECT, reason, 4, "");
            named.event.pid = pid;
            recorder.kernel(&named.event, None).unwrap();
        }
    }
    let counts = |recorder: &Recorder| {
        let tallies = recorder.summary().tallies;
        let mut counts: Vec<_> = tallies
            .iter()
            .map(|tally| {
                (
                    tally.event.kind,
                    tally.event.verdict == Verdict::Allow,
                    tally.count,
                )
            })
            .collect();
        counts.sort();
        counts
    };
    let expected = [
        (Kind::Connect, false, 1),
        (Kind::Connect, false, 1),
        (Kind::Connect, false, 1),
        (Kind::Connect, true, 3),
        (Kind::Dns, false, 1),
        (Kind::Dns, false, 1),
        (Kind::Dns, false, 1),
        (Kind::Dns, true, 3),
    ];
    assert_eq!(counts(&recorder), expected);
    recorder.flush().unwrap();
    drop(recorder);
    let log = Log::reopen(&folder.log()).unwrap();
    let mut resumed = Recorder::resume(of_runner(log)).unwrap();
    assert_eq!(counts(&resumed), expected);
    let client = Client {
        pid: NOBODY + 9,
        uid: 1001,
        comm: [0; 16],
    };
    resumed.dns(&allowed, &client).unwrap();
    assert!(counts(&resumed).contains(&(Kind::Dns, true, 4)));
}
