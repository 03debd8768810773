//! What `jobfence report` says of logs: of whole ones, of such that somebody changed, of such that
//! somebody made up. It needs neither root nor a fence.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use jobfence_abi::{Addr, Event, Flow, Hook, Reason, proto};
use jobfence_agent::{
    audit::{
        event::JobName,
        log::Log,
        mask::Mask,
        recorder::{Recorder, Subject},
    },
    job::{State, process::is_hidden},
};
use jobfence_policy::Policy;
use jobfence_tests::{Output, binary, run};
use serde_json::Value;
use zerocopy::FromZeros as _;

const DEADLINE: Duration = Duration::from_secs(30);

/// A log, removed in the end.
struct LogFile(PathBuf);

impl LogFile {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("jobfence-report-{}-{count}.jsonl", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    /// Appends a job that tries port 443 of `ip` three times.
    fn add(&self, id: &str, ip: [u8; 4], ends: bool) -> Result<()> {
        let policy = Policy::parse("p.yml", b"version: 1\njobs: {default: {allow: []}}\n");
        let path = self.0.parent().map(Path::canonicalize).transpose()?;
        let path = path
            .unwrap_or_default()
            .join(self.0.file_name().unwrap_or_default());
        let mut recorder = Recorder::new(Subject {
            job: JobName {
                id: id.to_owned(),
                name: "default".to_owned(),
                ..JobName::default()
            },
            state: State::Enforcing,
            policy: Arc::new(policy?.job(None)?),
            table: Arc::default(),
            processes: Arc::default(),
            mask: Mask::default(),
            log: Some(Log::open(&path)?),
            is_runner: false,
        });
        recorder.job("started")?;
        let mut event = Event::new_zeroed();
        event.hook = Hook::CONNECT;
        event.reason = Reason::NO_RULE;
        event.flow = Flow::new(Addr::from(std::net::IpAddr::from(ip)), 443, proto::TCP);
        for _ in 0..3 {
            recorder.kernel(&event, None)?;
        }
        if ends {
            recorder.finish(None)?;
        }
        Ok(())
    }

    fn change(&self, from: &str, to: &str) -> Result<()> {
        let text = fs::read_to_string(&self.0)?;
        ensure!(text.contains(from), "no {from} in {text}");
        Ok(fs::write(&self.0, text.replacen(from, to, 1))?)
    }

    /// `jobfence report` of it with `options`.
    fn report(&self, options: &[&str]) -> Result<Output> {
        let mut command = Command::new(binary()?);
        run(command.arg("report").arg(&self.0).args(options), DEADLINE)
    }
}

impl Drop for LogFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[track_caller]
fn assert_told(output: &Output, code: i32, stdout: &[&str], stderr: &[&str]) {
    assert_eq!(output.status.code(), Some(code), "{output:#?}");
    for text in stdout {
        assert!(output.stdout.contains(text), "no {text:?}: {output:#?}");
    }
    for text in stderr {
        assert!(output.stderr.contains(text), "no {text:?}: {output:#?}");
    }
    if stderr.is_empty() {
        assert_eq!(output.stderr, "", "{output:#?}");
    }
}

#[test]
fn a_log_tells_what_was_told_at_the_end_of_the_job() -> Result<()> {
    let log = LogFile::new();
    log.add("a", [198, 51, 100, 7], true)?;
    let output = log.report(&[])?;
    let told = "jobfence: 1 destination refused (3 attempts) · enforcing\n  \
                ✗ 198.51.100.7:443 — no rule allows the address, 3×\n      \
                to allow it: - {cidr: 198.51.100.7/32, ports: [443]}\n";
    assert_told(&output, 0, &[], &[]);
    assert_eq!(output.stdout, told);

    log.add("b", [198, 51, 100, 8], false)?;
    let both = log.report(&[])?;
    assert_told(
        &both,
        0,
        &["job a (default)\n", "job b (default)\n", told],
        &[],
    );
    assert_told(&both, 0, &["its end is not in the log"], &[]);
    let one = log.report(&["--job", "a"])?;
    assert_eq!(one.stdout, told, "{one:#?}");
    assert_told(
        &log.report(&["--job", "c"])?,
        1,
        &[],
        &["has nothing of job c"],
    );

    let json = log.report(&["--format", "json", "--job", "a"])?;
    assert_told(&json, 0, &[], &[]);
    let json: Value = serde_json::from_str(&json.stdout)?;
    let job = &json["jobs"][0];
    assert_eq!(job["job"]["id"], "a", "{json:#}");
    assert_eq!(job["state"], "enforcing", "{json:#}");
    assert_eq!(job["violations"], 3, "{json:#}");
    assert_eq!(job["attempts"][0]["count"], 3, "{json:#}");
    assert_eq!(job["attempts"][0]["dst"]["ip"], "198.51.100.7", "{json:#}");
    assert!(
        job["began"].is_string() && job["ended"].is_string(),
        "{json:#}"
    );
    Ok(())
}

#[test]
fn a_whole_log_is_told_from_one_that_is_not() -> Result<()> {
    let log = LogFile::new();
    log.add("a", [198, 51, 100, 7], true)?;
    log.add("b", [198, 51, 100, 8], true)?;
    let whole = log.report(&["--verify"])?;
    assert_told(&whole, 0, &["is whole\n", "job a: 4 lines, the last "], &[]);
    let json = log.report(&["--verify", "--format", "json"])?;
    let json: Value = serde_json::from_str(&json.stdout)?;
    assert_eq!(json["whole"], true);
    assert_eq!(json["jobs"][1]["lines"], 4);
    assert_eq!(json["jobs"][1]["last"].as_str().map(str::len), Some(64));

    log.change("198.51.100.8", "198.51.100.9")?;
    let name = log.0.display();
    let fault = format!("{name}:7: `prev` is not the hash of the job's line before, 6");
    let changed = log.report(&["--verify"])?;
    assert_told(&changed, 1, &[], &[&fault]);
    assert_eq!(changed.stdout, "");
    assert_told(
        &log.report(&["--verify", "--job", "a"])?,
        0,
        &["is whole"],
        &[],
    );
    let json = log.report(&["--verify", "--format", "json"])?;
    assert_eq!(json.status.code(), Some(1), "{json:#?}");
    let json: Value = serde_json::from_str(&json.stdout)?;
    assert_eq!((&json["whole"], &json["line"]), (&false.into(), &7.into()));

    let open = LogFile::new();
    open.add("c", [198, 51, 100, 7], false)?;
    let fault = "it is the last line of job c, and not its end";
    assert_told(&open.report(&["--verify"])?, 1, &[], &[":2: ", fault]);
    fs::write(&open.0, "")?;
    for options in [&["--verify"][..], &[]] {
        assert_told(&open.report(options)?, 1, &[], &["has nothing of any job"]);
    }
    fs::remove_file(&open.0)?;
    assert_told(
        &open.report(&["--verify"])?,
        1,
        &[],
        &["cannot read", "No such file"],
    );
    Ok(())
}

#[test]
fn what_a_made_up_log_says_does_not_reach_the_terminal_as_it_is() -> Result<()> {
    let log = LogFile::new();
    log.add("a", [198, 51, 100, 7], true)?;
    let text = fs::read_to_string(&log.0)?;
    for tricky in ["\\u001b[2J", "\\n\\rok", "\\u202e", "\u{9b}2J", "\u{202e}"] {
        let job = text.replace("\"a\"", &format!("\"a{tricky}\""));
        let state = job.replace("enforcing", &format!("failed({tricky})"));
        let kind = text.replacen("\"connect\"", &format!("\"{tricky}\""), 1);
        let name = text.replace(
            "\"port\":443",
            &format!("\"port\":443,\"name\":\"x{tricky}\""),
        );
        let twice = format!("{state}{text}{name}");
        for made_up in [job, state, kind, name, twice] {
            fs::write(&log.0, made_up)?;
            for options in [&[][..], &["--verify"], &["--job", "a\u{1b}[2J"]] {
                let output = log.report(options)?;
                assert!(matches!(output.status.code(), Some(0 | 1)), "{output:#?}");
                for text in [&output.stdout, &output.stderr] {
                    let hidden = |c| c != '\n' && is_hidden(c);
                    assert!(!text.contains(hidden), "{text:?}");
                    assert!(!text.contains("\nok"), "{text:?}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_made_up_log_cannot_overflow_a_count_or_the_memory() -> Result<()> {
    let log = LogFile::new();
    log.add("a", [198, 51, 100, 7], true)?;
    let text = fs::read_to_string(&log.0)?;
    let most = text.replace("\"count\":1,", "\"count\":18446744073709551615,");
    fs::write(&log.0, format!("{most}{most}"))?;
    let output = log.report(&[])?;
    assert_told(&output, 0, &["18446744073709551615×"], &[]);

    // One line without an end.
    fs::File::create(&log.0)?.set_len(1 << 30)?;
    let output = log.report(&[])?;
    assert_told(&output, 1, &[], &[":1: it is longer than 1048576 bytes"]);

    // Lines that are none are left out and told of, the first few one by one.
    fs::write(&log.0, format!("{}{text}", "[]\n".repeat(9)))?;
    let output = log.report(&[])?;
    assert_told(
        &output,
        1,
        &["198.51.100.7:443"],
        &[":5: it is no event", "9 lines were left out"],
    );
    assert!(!output.stderr.contains(":6:"), "{output:#?}");
    Ok(())
}
