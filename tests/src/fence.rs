//! Runs commands inside the fence.

use std::{
    env, fs,
    io::ErrorKind,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{Arrivals, Internet, Output, addresses::Host, run};

/// How long a command may take. Only a hanging one comes near.
const DEADLINE: Duration = Duration::from_secs(30);

/// `jobfence run` on the job side of a private internet.
pub struct Fence<'a> {
    internet: &'a Internet,
    policy: PathBuf,
    log: PathBuf,
    through: Vec<String>,
    options: Vec<String>,
    agent: Option<PathBuf>,
    user: String,
    stdin: Stdio,
}

/// What a fenced command left behind.
#[derive(Clone, Debug)]
pub struct Fenced {
    /// The exit code of `jobfence run`.
    pub code: Option<i32>,
    /// The output, the report on standard error included.
    pub output: Output,
    /// The event log.
    pub events: Vec<Value>,
}

impl<'a> Fence<'a> {
    /// A fence with the policy `policy`, a YAML text. Commands run as `nobody`.
    ///
    /// # Errors
    /// When the policy cannot be written to a file.
    pub fn new(internet: &'a Internet, policy: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let file = internet.dir().join(format!("policy-{count}.yml"));
        fs::write(&file, policy).context("cannot write the policy")?;
        Ok(Self {
            internet,
            policy: file,
            log: internet.dir().join(format!("events-{count}.jsonl")),
            through: Vec::new(),
            options: Vec::new(),
            agent: Some("none".into()),
            user: "nobody".to_owned(),
            stdin: Stdio::null(),
        })
    }

    /// Runs commands as `user`.
    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        user.clone_into(&mut self.user);
        self
    }

    /// Words that start jobfence: a command that becomes the one after it.
    #[must_use]
    pub fn through(mut self, words: &[&str]) -> Self {
        self.through.extend(words.iter().map(ToString::to_string));
        self
    }

    /// More options of `jobfence run`.
    #[must_use]
    pub fn options(mut self, options: &[&str]) -> Self {
        self.options.extend(options.iter().map(ToString::to_string));
        self
    }

    /// Has the agent at `socket` hold the job; without it, the one that jobfence finds. Else none
    /// does, also where the machine has one.
    #[must_use]
    pub fn agent(mut self, socket: Option<PathBuf>) -> Self {
        self.agent = socket;
        self
    }

    /// The standard input of the command.
    #[must_use]
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.stdin = stdin.into();
        self
    }

    /// The command line for a fenced `command`, and where its log will be.
    ///
    /// # Errors
    /// When there is no jobfence binary.
    pub fn command(self, command: &[&str]) -> Result<(Command, PathBuf)> {
        let binary = binary()?;
        let binary = binary.to_string_lossy().into_owned();
        let words = [self.through, vec![binary]].concat();
        let mut fenced = self.internet.command(&words[0]);
        fenced
            .args(&words[1..])
            .arg("run")
            .arg("--policy")
            .arg(self.policy)
            .arg("--log")
            .arg(&self.log)
            .args(["--user", &self.user])
            .args(
                self.agent
                    .iter()
                    .flat_map(|socket| [Path::new("--agent"), socket]),
            )
            .args(self.options)
            .arg("--")
            .args(command)
            .stdin(self.stdin);
        Ok((fenced, self.log))
    }

    /// Runs `command` to its end.
    ///
    /// # Errors
    /// When it cannot be started or hangs, or the log is not one JSON object a line.
    pub fn run(self, command: &[&str]) -> Result<Fenced> {
        let (mut command, log) = self.command(command)?;
        let output = run(&mut command, DEADLINE)?;
        let text = match fs::read_to_string(&log) {
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            text => text.with_context(|| format!("cannot read {}", log.display()))?,
        };
        let events: Result<_, _> = text.lines().map(serde_json::from_str).collect();
        let events = events.with_context(|| format!("not JSON lines: {text}"))?;
        Ok(Fenced {
            code: output.status.code(),
            output,
            events,
        })
    }
}

impl Fenced {
    /// Events of refusals for the reason `reason`.
    #[must_use]
    pub fn denials(&self, reason: &str) -> Vec<&Value> {
        let wanted = |event: &&Value| event["verdict"] == "deny" && event["reason"] == reason;
        self.events.iter().filter(wanted).collect()
    }

    /// How long the job went on after `event`.
    ///
    /// # Errors
    ///
    /// When there are no events, or one has no time.
    pub fn after(&self, event: &Value) -> Result<Duration> {
        let last = self.events.last().context("no events")?;
        let passed = (clock(last)? + DAY - clock(event)?).as_nanos() % DAY.as_nanos();
        Ok(Duration::from_nanos(u64::try_from(passed)?))
    }

    /// Panics with all that is known unless the exit code is `code`.
    ///
    /// # Panics
    /// As it says.
    #[track_caller]
    pub fn assert_code(&self, code: i32) {
        assert_eq!(self.code, Some(code), "wrong exit code; {self:#?}");
    }

    /// Panics with all that is known unless exactly one event is a refusal of the kind that
    /// `expect` describes; returns that event.
    ///
    /// # Panics
    /// As it says.
    #[track_caller]
    pub fn assert_denial(&self, expect: &Expect) -> &Value {
        let denials = self.denials(expect.reason);
        let mut matching = denials.iter().filter(|event| expect.matches(event));
        match (matching.next(), matching.next()) {
            (Some(event), None) => event,
            (None, _) => panic!("no event for {expect:?}; {self:#?}"),
            (Some(_), Some(_)) => panic!("more than one event for {expect:?}; {self:#?}"),
        }
    }
}

/// A refusal that a test expects.
#[derive(Clone, Debug)]
pub struct Expect {
    /// The event's `reason`.
    pub reason: &'static str,
    /// The event's `dst.ip`, whose packets are counted.
    pub ip: IpAddr,
    /// The event's `dst.port`.
    pub port: u16,
}

impl Expect {
    /// A refusal for `reason` of `port` at `ip`.
    pub fn new(reason: &'static str, ip: impl Into<IpAddr>, port: u16) -> Self {
        Self {
            reason,
            ip: ip.into(),
            port,
        }
    }

    fn matches(&self, event: &Value) -> bool {
        event["dst"]["ip"] == self.ip.to_string() && event["dst"]["port"] == self.port
    }
}

/// Proves a refusal: `command` sends packets to the destination without the fence; with it and
/// `policy`, not one packet to the destination arrives, exactly one event tells of it, and the
/// exit code is 110.
///
/// # Errors
/// When a command cannot be started or hangs.
///
/// # Panics
/// When the proof fails.
#[track_caller]
pub fn denied(
    internet: &Internet,
    policy: &str,
    command: &[&str],
    expect: &Expect,
) -> Result<Fenced> {
    unfenced(internet, command, expect)?;

    let start = internet.mark();
    let fenced = Fence::new(internet, policy)?.run(command)?;
    let arrived = internet
        .attempts_since(start)
        .to(expect.ip)
        .port(expect.port);
    assert!(arrived.is_empty(), "passed the fence: {arrived}{fenced:#?}");
    fenced.assert_code(110);
    let event = fenced.assert_denial(expect);
    assert_eq!(event["violation"], true, "not a violation: {event:#}");
    Ok(fenced)
}

/// As [`denied`], for a refusal of the name `name`, whose servers are `host`: neither a packet to
/// them nor a question about the name reaches the net side.
///
/// # Errors
/// When a command cannot be started or hangs.
///
/// # Panics
/// When the proof fails.
#[track_caller]
pub fn denied_name(
    internet: &Internet,
    policy: &str,
    command: &[&str],
    name: &str,
    host: Host,
) -> Result<Fenced> {
    let (program, arguments) = command.split_first().context("no command")?;
    let arrived = |start| {
        let arrivals = internet.attempts_since(start);
        let packets = host.both().map(|ip| arrivals.to(ip).0).concat();
        (Arrivals(packets), arrivals.questions(name))
    };

    let start = internet.mark();
    let output = run(internet.command(program).args(arguments), DEADLINE)?;
    let (packets, questions) = arrived(start);
    assert!(
        !packets.is_empty() && !questions.is_empty(),
        "proves nothing, it sends no packet unfenced: {output:?}"
    );

    let start = internet.mark();
    let fenced = Fence::new(internet, policy)?.run(command)?;
    let (packets, questions) = arrived(start);
    assert!(packets.is_empty(), "passed the fence: {packets}{fenced:#?}");
    assert!(
        questions.is_empty(),
        "the name passed the fence: {questions}{fenced:#?}"
    );
    fenced.assert_code(110);
    let denials = fenced.denials("name");
    assert!(
        denials
            .iter()
            .any(|event| event["dns"]["qname"] == name && event["violation"] == true),
        "no event for {name}; {fenced:#?}"
    );
    Ok(fenced)
}

/// Runs `command` without a fence and checks that packets to the destination arrive.
#[track_caller]
fn unfenced(internet: &Internet, command: &[&str], expect: &Expect) -> Result<()> {
    let (program, arguments) = command.split_first().context("no command")?;
    let start = internet.mark();
    let output = run(internet.command(program).args(arguments), DEADLINE)?;
    let arrived = internet
        .attempts_since(start)
        .to(expect.ip)
        .port(expect.port);
    assert!(
        !arrived.is_empty(),
        "proves nothing, it sends no packet unfenced: {output:?}"
    );
    Ok(())
}

/// The binary under test: `JOBFENCE_BIN`, else the one that was built beside the tests.
///
/// # Errors
/// When there is none.
pub fn binary() -> Result<PathBuf> {
    let path = match env::var_os("JOBFENCE_BIN") {
        Some(path) => PathBuf::from(path),
        None => {
            let tests = env::current_exe().context("cannot find the test program")?;
            let profile = tests.ancestors().find(|dir| dir.join("deps").is_dir());
            profile
                .context("not run from a target directory")?
                .join("jobfence")
        }
    };
    ensure!(
        path.is_file(),
        "no jobfence at {}: build it (cargo xtask build) or set JOBFENCE_BIN",
        path.display()
    );
    Ok(path)
}

/// Where the links of the jobs of `jobfence run` are pinned, in a folder for each.
#[must_use]
pub fn pins() -> PathBuf {
    format!("/sys/fs/bpf/jobfence/v{}/run", jobfence_abi::VERSION).into()
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// When an event happened, since the last midnight.
fn clock(event: &Value) -> Result<Duration> {
    let parse = || {
        let time = event["ts"].as_str()?.split_once('T')?.1;
        let mut parts = time.trim_end_matches('Z').splitn(3, ':');
        let mut next = || parts.next()?.parse::<f64>().ok();
        let (hours, minutes, seconds) = (next()?, next()?, next()?);
        Some(Duration::from_secs_f64(
            hours * 3600. + minutes * 60. + seconds,
        ))
    };
    parse().with_context(|| format!("no time: {event}"))
}
