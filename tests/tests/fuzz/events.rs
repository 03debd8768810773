//! Whatever comes out of the ring buffer and the resolver, the log is lines of JSON.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

use jobfence_abi::{Client, Event, Reason};
use jobfence_agent::{
    audit::{
        event::JobName,
        history::verify,
        log::Log,
        mask::Mask,
        recorder::{Recorder, Subject},
    },
    job::{State, process::is_hidden},
    names::{DnsEvent, Table, Transport, Verdict},
};
use jobfence_policy::{Name, Policy};
use proptest::prelude::*;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use zerocopy::{FromBytes as _, FromZeros as _, IntoBytes as _};

const POLICY: &str = "
version: 1
jobs:
  default:
    allow:
      - host: allowed.test
      - cidr: 198.51.100.0/24
    deny:
      - cidr: 198.51.100.7/32
";

/// Bytes of an event: any, and such with fields that mean something.
fn some_event() -> impl Strategy<Value = Vec<u8>> {
    let any_bytes = any::<[u8; size_of::<Event>()]>();
    let likely = (
        any::<[u8; size_of::<Event>()]>(),
        0..7_u8,
        any::<prop::sample::Index>(),
        some_comm(),
    )
        .prop_map(|(bytes, hook, reason, comm)| {
            let mut event = Event::read_from_bytes(&bytes).unwrap();
            event.hook.0 = hook;
            event.reason = *reason.get(Reason::ALL);
            event.passed &= 1;
            event.comm = comm;
            event.as_bytes().to_vec()
        });
    prop_oneof![1 => any_bytes.prop_map(|bytes| bytes.to_vec()), 3 => likely]
}

fn some_comm() -> impl Strategy<Value = [u8; 16]> {
    let tricky = [
        &b"\x1b[31mred\n{}\"\\\0\0\0\0"[..],
        "\u{202e}gpj.sh\u{85}\0\0\0\0\0".as_bytes(),
        b"\xff\xfe\r\n\t'\"\\\x7f\x80\x81\x9b\0\0\0\0",
        b"curl\0hidden\0\0\0\0\0",
    ];
    let tricky = tricky.map(|bytes| {
        let mut comm = [0; 16];
        let length = bytes.len().min(16);
        comm[..length].copy_from_slice(&bytes[..length]);
        comm
    });
    prop_oneof![any::<[u8; 16]>(), prop::sample::select(tricky.to_vec())]
}

prop_compose! {
    /// A question as the resolver reports it: its name is printable ASCII by contract, here not.
    fn some_question()(
        qname in "\\PC{0,40}|[a-z.]{0,40}", qtype in "[A-Z0-9]{0,8}", rcode in "[A-Z]{0,8}",
        reason in any::<prop::sample::Index>(), deny: bool, violation: bool, tcp: bool,
    ) -> DnsEvent {
        DnsEvent {
            peer: SocketAddr::from(([127, 0, 0, 1], 5300)),
            transport: if tcp { Transport::Tcp } else { Transport::Udp },
            qname,
            qtype,
            rcode,
            verdict: if deny { Verdict::Deny } else { Verdict::Allow },
            reason: *reason.get(Reason::ALL),
            violation,
            rule: None,
            chain: vec![Name::parse("target.test").unwrap()],
            addresses: vec![[198, 51, 100, 7].into()],
        }
    }
}

/// A recorder and the file of its log.
fn recorder(path: &std::path::Path) -> Recorder {
    let policy = Policy::parse("p.yml", POLICY.as_bytes()).unwrap();
    Recorder::new(Subject {
        job: JobName {
            id: "1".to_owned(),
            name: "default".to_owned(),
            ..JobName::default()
        },
        state: State::Advisory(vec!["a reason".to_owned()]),
        policy: Arc::new(policy.job(None).unwrap()),
        table: Arc::new(Table::default()),
        processes: Arc::default(),
        mask: Mask::new([("API_TOKEN".to_owned(), "correct-horse".to_owned())].into_iter()),
        log: Some(Log::open(path).unwrap()),
        is_runner: false,
    })
}

/// That `text` is a log: each line an object, numbered, with nothing that deceives a terminal.
fn check(text: &str, from: u64) -> Result<u64, TestCaseError> {
    let mut seq = from;
    prop_assert!(text.is_empty() || text.ends_with('\n'));
    for line in text.split_terminator('\n') {
        prop_assert!(!line.contains(is_hidden), "{:?}", line);
        let value: Value = serde_json::from_str(line)
            .map_err(|error| TestCaseError::fail(format!("{error}: {line}")))?;
        prop_assert_eq!(&value["seq"], seq, "{}", line);
        prop_assert!(
            value["reason"]
                .as_str()
                .is_some_and(|word| !word.is_empty())
        );
        let passes = value["verdict"] == "allow";
        prop_assert!(passes || value["verdict"] == "deny");
        prop_assert!(
            !(passes && value["violation"] == true && value["kind"] != "dns"),
            "{}",
            line
        );
        strings(&value, &|text| !text.contains(is_hidden))?;
        seq += 1;
    }
    Ok(seq)
}

fn strings(value: &Value, holds: &dyn Fn(&str) -> bool) -> Result<(), TestCaseError> {
    match value {
        Value::String(text) => prop_assert!(holds(text), "{:?}", text),
        Value::Array(values) => values.iter().try_for_each(|value| strings(value, holds))?,
        Value::Object(map) => map.values().try_for_each(|value| strings(value, holds))?,
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
    Ok(())
}

/// A shell whose file has `name`, and a child of it that sleeps.
struct Masquerade {
    shell: Child,
    sleeper: u32,
    folder: PathBuf,
}

impl Masquerade {
    fn new(name: &OsStr) -> Self {
        let folder = std::env::temp_dir().join(format!("jobfence-name-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join(name);
        fs::copy("/bin/sh", &file).unwrap();
        let mut shell = Command::new(&file)
            .args(["-c", "sleep 60 >/dev/null & echo $!; wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let output = shell.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        Self {
            sleeper: line.trim().parse().unwrap(),
            shell,
            folder,
        }
    }
}

impl Drop for Masquerade {
    fn drop(&mut self) {
        let sleeper = self.sleeper.try_into().ok().and_then(Pid::from_raw);
        let _ = sleeper.map(|pid| kill_process(pid, Signal::KILL));
        let _ = self.shell.kill();
        let _ = self.shell.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn the_name_of_a_program_cannot_change_how_its_line_looks() {
    let name = "a\u{202e}hs\u{85}\u{7f}\nb";
    let process = Masquerade::new(OsStr::new(name));
    let path = std::env::temp_dir().join(format!("jobfence-name-{}.jsonl", std::process::id()));
    let mut recorder = recorder(&path);
    let mut event = Event::new_zeroed();
    for pid in [process.shell.id(), process.sleeper] {
        event.pid = pid;
        event.reason = Reason::NO_RULE;
        recorder.kernel(&event, None).unwrap();
    }
    recorder.finish(None).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    fs::remove_file(&path).unwrap();
    check(&text, 0).unwrap();
    let first: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let exe = first["process"]["exe"].as_str().unwrap();
    assert!(exe.ends_with("/a hs   b"), "{exe:?}");
    let second: Value = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
    let parent = second["process"]["ancestors"][0]["exe"].as_str();
    assert_eq!(parent, Some(exe), "{second:#}");
}

proptest! {
    #![proptest_config(crate::config())]

    #[test]
    fn every_report_of_the_kernel_becomes_a_line_of_the_log(
        reports in prop::collection::vec(some_event(), 1..20),
        questions in prop::collection::vec((some_question(), some_comm()), 0..4),
    ) {
        // One folder for all threads of the test; the log is made anew by each case.
        static FOLDER: Mutex<()> = Mutex::new(());
        let _alone = FOLDER.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let path = std::env::temp_dir().join(format!("jobfence-fuzz-{}.jsonl", std::process::id()));
        let _ = fs::remove_file(&path);
        let mut recorder = recorder(&path);
        for bytes in &reports {
            let mut event = Event::read_from_bytes(bytes).unwrap();
            // No process has such an id: what the log says does not depend on this machine's.
            event.pid |= 1 << 31;
            recorder.kernel(&event, None).unwrap();
        }
        for (question, comm) in questions {
            recorder.dns(&question, &Client { pid: 1 << 31, uid: 7, comm }).unwrap();
        }
        recorder.loss(Reason::AUDIT_LOSS, 3).unwrap();
        let summary = recorder.finish(None).unwrap();
        prop_assert!(recorder.log_fault().is_none());
        let text = fs::read_to_string(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let lines = check(&text, 0)?;
        prop_assert!(verify(text.as_bytes(), None).is_ok());
        prop_assert!(usize::try_from(lines).unwrap() >= summary.tallies.len());
        let counted: u64 = summary.tallies.iter().map(|tally| tally.count).sum();
        prop_assert!(counted >= reports.len() as u64);
    }

    #[test]
    fn bytes_of_another_length_are_no_event(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let read = Event::read_from_bytes(&bytes);
        prop_assert_eq!(read.is_ok(), bytes.len() == size_of::<Event>());
    }
}
