//! Ways out of one fenced command, each tried without the fence and with it.
//!
//! The tables in this folder are the only list of attacks there is: `cargo xtask test` runs each
//! as a test of its own, `cargo xtask attack` runs them and prints what came of it. An attack is a
//! command and a proof of its success, which is what others see of it: packets that reached
//! the net side, or the answer of somebody whom the job must not reach. It passes when the proof
//! is there without the fence, is not there in it, and the fence said what the table expects.
//!
//! With `JOBFENCE_TEST_AGENT` in the environment, each is tried as a job of an agent of its own.

mod around;
mod names;
mod packets;
mod policy;
mod shared;

use std::{
    env,
    fmt::{self, Display, Formatter},
    net::IpAddr,
    os::unix::fs::symlink,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    Agent, Arrivals, Data, Fence, Fenced, Internet, Output, Protocol, addresses::Host, binary,
    eventually, run, slowness,
};

/// How long a command may take without the fence.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long a client may go on after it was refused a connection that it had; [`slowness`] times
/// that on a slow machine.
const PATIENCE: Duration = Duration::from_secs(1);
/// What attacks send, and nothing else does: `MARK` of [`PRELUDE`].
const MARK: Proof = Proof::Carrying(b"jobfence-secret");

/// What a job may reach, where an attack has no policy of its own.
const POLICY: &str = "
version: 1
jobs: {default: {allow: [{host: allowed.test, ports: [80, 443]}]}}
";

const fn v4(host: Host) -> IpAddr {
    IpAddr::V4(host.v4)
}

const fn v6(host: Host) -> IpAddr {
    IpAddr::V6(host.v6)
}

/// What every script begins with.
const PRELUDE: &str = include_str!("prelude.py");

/// What is fenced in an attack, by the sections of the project's list of threats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// The names that the job asks for.
    Names,
    /// The packets that it sends.
    Packets,
    /// Servers with an allowed name and others.
    Shared,
    /// Whatever is not the network.
    Around,
    /// The rules.
    Policy,
}

impl Display for Section {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Names => "names",
            Self::Packets => "addresses and packets",
            Self::Shared => "shared addresses",
            Self::Around => "around the fence",
            Self::Policy => "policy",
        })
    }
}

/// What is expected to stop an attack. Where that leaves an event, its `kind` is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// The job's resolver.
    Resolver,
    /// `connect` and `sendmsg`.
    Connect,
    /// The egress program.
    Packet,
    /// `sock_create`.
    Socket,
    /// The egress program's check of the server name.
    ServerName,
    /// The egress program's check of the `Host` header.
    HostHeader,
    /// The filter of system calls.
    Seccomp,
    /// Privileges that the job does not have.
    Privileges,
    /// The job's Landlock domain.
    Landlock,
    /// The job's user namespace.
    UserNamespace,
    /// The job's mount namespace.
    Mounts,
    /// Descriptors that are closed or refused at the start.
    Descriptors,
    /// The reading of the policy.
    Policy,
}

impl Layer {
    /// The `kind` of its events.
    fn kind(self) -> Option<&'static str> {
        match self {
            Self::Resolver => Some("dns"),
            Self::Connect => Some("connect"),
            Self::Packet => Some("packet"),
            Self::Socket => Some("socket"),
            Self::ServerName => Some("tls"),
            Self::HostHeader => Some("http"),
            _ => None,
        }
    }
}

impl Display for Layer {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolver => "resolver",
            Self::Connect => "connect hook",
            Self::Packet => "packet hook",
            Self::Socket => "socket hook",
            Self::ServerName => "server name",
            Self::HostHeader => "Host header",
            Self::Seccomp => "seccomp",
            Self::Privileges => "privileges",
            Self::Landlock => "Landlock",
            Self::UserNamespace => "user namespace",
            Self::Mounts => "mount namespace",
            Self::Descriptors => "descriptors",
            Self::Policy => "policy",
        })
    }
}

/// How an attack is recognised.
#[derive(Clone, Copy, Debug)]
enum Proof {
    /// Packets to a port of an address.
    To(IpAddr, u16),
    /// Packets with a payload to a port of an address: those of a TCP handshake have none.
    Payload(IpAddr, u16),
    /// Packets with these bytes, which may be split over several of a connection.
    Carrying(&'static [u8]),
    /// Questions for this name, or for one below it.
    Question(&'static str),
    /// Packets of a protocol.
    Protocol(Protocol),
    /// The command's output says so.
    Prints(&'static str),
}

impl Proof {
    /// How often it is there.
    fn count(self, arrivals: &Arrivals, output: &Output) -> usize {
        let only = |wanted: &dyn Fn(&crate::Arrival) -> bool| {
            arrivals.iter().filter(|arrival| wanted(arrival)).count()
        };
        match self {
            Self::To(ip, port) => arrivals.to(ip).port(port).len(),
            Self::Payload(ip, port) => only(&|arrival| {
                arrival.dst == ip && arrival.dst_port == port && !arrival.payload.is_empty()
            }),
            Self::Carrying(bytes) => arrivals.carrying(bytes).len(),
            Self::Question(name) => only(&|arrival| {
                arrival.dns_question.as_deref().is_some_and(|asked| {
                    asked
                        .strip_suffix(name)
                        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
                })
            }),
            Self::Protocol(protocol) => arrivals.protocol(protocol).len(),
            Self::Prints(text) => output.stdout.matches(text).count(),
        }
    }
}

/// What the fence says.
#[derive(Clone, Copy, Debug)]
enum Expect {
    /// A violation for this reason; the exit code is 110.
    Violation(&'static str),
    /// A refusal for this reason that is no violation.
    Refusal(&'static str),
    /// A violation for this reason on kernels on which the attack gets so far, else nothing.
    Perhaps(&'static str),
    /// Nothing: why is said here.
    Nothing(&'static str),
    /// No command runs, and the exit code is this one.
    Exit(i32),
}

/// The command.
#[derive(Clone, Copy, Debug)]
enum How {
    Words(&'static [&'static str]),
    Shell(&'static str),
    /// A Python script, after [`PRELUDE`].
    Python(&'static str),
}

impl How {
    fn words(self) -> Vec<String> {
        match self {
            Self::Words(words) => words.iter().map(ToString::to_string).collect(),
            Self::Shell(script) => ["sh", "-c", script].map(str::to_owned).to_vec(),
            Self::Python(script) => vec![
                "python3".to_owned(),
                "-c".to_owned(),
                format!("{PRELUDE}\n{script}"),
            ],
        }
    }
}

/// Somebody outside the fence, on the job's side or the net's.
#[derive(Clone, Copy, Debug)]
struct Outside {
    how: How,
    ready: Ready,
}

/// When such a process is ready.
#[derive(Clone, Copy, Debug)]
enum Ready {
    /// It listens on this TCP port.
    Port(u16),
    /// This file is there, in the home folder.
    File(&'static str),
}

/// One attack.
#[derive(Clone, Copy, Debug)]
pub struct Attack {
    /// What it does, in a few words joined by underscores.
    pub name: &'static str,
    /// What is expected to stop it.
    pub layer: Layer,
    how: How,
    proof: Proof,
    expect: Expect,
    policy: &'static str,
    user: &'static str,
    /// Words that start the command, or jobfence.
    through: &'static [&'static str],
    /// Run first, as root and unfenced.
    prepare: Option<&'static str>,
    outside: Option<Outside>,
    records: &'static [(&'static str, &'static str)],
    /// Whether jobfence may be killed by it.
    kills: bool,
    /// A script that fails on hosts where the attack cannot be tried, and says why.
    needs: Option<&'static str>,
}

/// An attack by a user without privileges.
const fn attack(
    name: &'static str,
    layer: Layer,
    how: How,
    proof: Proof,
    expect: Expect,
) -> Attack {
    Attack {
        name,
        layer,
        how,
        proof,
        expect,
        policy: POLICY,
        user: "nobody",
        through: &[],
        prepare: None,
        outside: None,
        records: &[],
        kills: false,
        needs: None,
    }
}

impl Attack {
    const fn policy(mut self, policy: &'static str) -> Self {
        self.policy = policy;
        self
    }

    const fn as_root(mut self) -> Self {
        self.user = "root";
        self
    }

    const fn through(mut self, words: &'static [&'static str]) -> Self {
        self.through = words;
        self
    }

    const fn prepare(mut self, script: &'static str) -> Self {
        self.prepare = Some(script);
        self
    }

    const fn outside(mut self, how: How, ready: Ready) -> Self {
        self.outside = Some(Outside { how, ready });
        self
    }

    const fn records(mut self, records: &'static [(&'static str, &'static str)]) -> Self {
        self.records = records;
        self
    }

    const fn or_killed(mut self) -> Self {
        self.kills = true;
        self
    }

    const fn needs(mut self, script: &'static str) -> Self {
        self.needs = Some(script);
        self
    }
}

/// Every attack.
#[must_use]
pub fn attacks() -> Vec<(Section, Attack)> {
    let sections = [
        (Section::Names, names::ATTACKS),
        (Section::Packets, packets::ATTACKS),
        (Section::Shared, shared::ATTACKS),
        (Section::Around, around::ATTACKS),
        (Section::Policy, policy::ATTACKS),
    ];
    let of = |(section, attacks): (Section, &[Attack])| -> Vec<_> {
        attacks.iter().map(|attack| (section, *attack)).collect()
    };
    sections.map(of).concat()
}

/// What came of an attack that the fence held against.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It was stopped.
    Stopped {
        /// How often the proof of success was there without the fence: packets, or lines.
        unfenced: usize,
        /// How long the command went on after it was first refused.
        waited: Option<Duration>,
    },
    /// It cannot be tried on this host, for this reason.
    LeftOut(String),
}

impl Attack {
    /// What the event about it says, or why there is none.
    #[must_use]
    pub fn expected(&self) -> String {
        match self.expect {
            Expect::Violation(reason) => reason.to_owned(),
            Expect::Refusal(reason) => format!("{reason} (no violation)"),
            Expect::Perhaps(reason) => format!("{reason}, or none: the system call fails"),
            Expect::Nothing(why) => format!("none: {why}"),
            Expect::Exit(code) => format!("none: exit code {code}"),
        }
    }

    /// Tries the attack in a private internet of its own.
    ///
    /// # Errors
    /// When it succeeds in the fence, does not without it, or the fence says something else than
    /// expected; the error says what.
    pub fn run(&self) -> Result<Outcome> {
        let internet = Internet::new()?;
        for (name, address) in self.records {
            internet.add_record(name, Data::Address(address.parse()?));
        }
        symlink(binary()?, internet.home().join("jobfence"))?;
        if let Some(script) = self.needs {
            let words = How::Python(script).words();
            let output = run(&mut self.unprivileged(&internet, &words, &[]), DEADLINE)?;
            if !output.status.success() {
                let why = output.stderr.lines().last().unwrap_or("no reason given");
                return Ok(Outcome::LeftOut(why.to_owned()));
            }
        }
        if let Some(script) = self.prepare {
            let output = run(internet.command("sh").args(["-c", script]), DEADLINE)?;
            ensure!(output.status.success(), "cannot prepare it: {output:?}");
        }
        let _outside = match self.outside {
            Some(outside) => Some(Running::start(&internet, outside)?),
            None => None,
        };
        let words = self.how.words();

        let start = internet.mark();
        let output = run(
            &mut self.unprivileged(&internet, &words, self.through),
            DEADLINE,
        )?;
        // Others may act for the command after its end.
        let unfenced = || self.proof.count(&internet.attempts_since(start), &output);
        let deadline = Instant::now() + PATIENCE * slowness();
        while unfenced() == 0 && Instant::now() < deadline {
            thread::yield_now();
        }
        let unfenced = unfenced();
        ensure!(
            unfenced > 0,
            "proves nothing, it does not succeed without the fence: {output:?}\narrived: {}",
            internet.attempts_since(start)
        );

        let agent = match env::var_os("JOBFENCE_TEST_AGENT") {
            Some(_) => Some(Agent::start(&internet, "")?),
            None => None,
        };
        let start = internet.mark();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut fence = Fence::new(&internet, self.policy)?.user(self.user);
        if let Some(agent) = &agent {
            fence = fence.agent(Some(agent.socket()));
        }
        let fenced = fence.through(self.through).run(&words)?;
        let arrived = internet.attempts_since(start);
        let passed = self.proof.count(&arrived, &fenced.output);
        ensure!(
            passed == 0,
            "{passed} of {unfenced} passed the fence: {arrived}{fenced:#?}"
        );
        self.check(&fenced)
            .map(|waited| Outcome::Stopped { unfenced, waited })
            .with_context(|| format!("nothing passed, but {fenced:#?}"))
    }

    /// Checks what the fence said and did, and returns how long the command went on after that.
    fn check(&self, fenced: &Fenced) -> Result<Option<Duration>> {
        let denied = |event: &Value| event["verdict"] == "deny";
        let silent = !fenced.events.iter().any(denied);
        if self.kills && fenced.code.is_none() {
            return Ok(None);
        }
        let (reason, violation) = match self.expect {
            Expect::Violation(reason) => (reason, true),
            Expect::Perhaps(_) if silent => return Ok(None),
            Expect::Perhaps(reason) => (reason, true),
            Expect::Refusal(reason) => (reason, false),
            Expect::Exit(code) => {
                ensure!(fenced.code == Some(code), "the exit code is not {code}");
                return Ok(None);
            }
            Expect::Nothing(_) => {
                ensure!(silent, "an event tells of something");
                ensure!(
                    !matches!(fenced.code, Some(110..=112)),
                    "the exit code is the fence's"
                );
                return Ok(None);
            }
        };
        let destination = match self.proof {
            // Of a question it is the answer.
            _ if self.layer == Layer::Resolver => None,
            Proof::To(ip, _) | Proof::Payload(ip, _) => Some(ip.to_string()),
            _ => None,
        };
        let expected = |event: &&&Value| {
            let kind = self.layer.kind();
            let ip = event["dst"]["ip"].as_str();
            event["violation"] == violation
                && kind.is_none_or(|kind| event["kind"] == kind)
                && (ip.is_none() || destination.is_none() || ip == destination.as_deref())
        };
        let denials = fenced.denials(reason);
        let Some(first) = denials.iter().find(expected) else {
            bail!("no event of {} tells of it as {reason}", self.layer);
        };
        ensure!(
            (fenced.code == Some(110)) == violation,
            "the exit code does not tell a violation"
        );
        let waited = fenced.after(first)?;
        let ends_at_once = matches!(self.layer, Layer::ServerName | Layer::HostHeader);
        ensure!(
            !ends_at_once || waited <= PATIENCE * slowness(),
            "the client hung for {waited:?} after it was refused"
        );
        Ok(Some(waited))
    }

    /// The command that becomes `words`, as the job's user but without the fence.
    fn unprivileged(&self, internet: &Internet, words: &[String], through: &[&str]) -> Command {
        let mut all: Vec<&str> = through.to_vec();
        if self.user == "nobody" {
            all.extend([
                "setpriv",
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
            ]);
        }
        all.extend(words.iter().map(String::as_str));
        let mut command = internet.command(all[0]);
        command.args(&all[1..]);
        command
    }
}

/// A process outside, ended on drop.
struct Running(Child);

impl Running {
    fn start(internet: &Internet, outside: Outside) -> Result<Self> {
        let words = outside.how.words();
        let mut command = internet.command("setpriv");
        let child = command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .args(&words)
            .stdout(Stdio::null())
            .spawn()?;
        let running = Self(child);
        let listens = |port: u16| -> Result<bool> {
            let mut tables = internet.command("cat");
            tables.args(["/proc/net/tcp", "/proc/net/tcp6"]);
            let tables = run(&mut tables, DEADLINE)?.stdout;
            let local = format!(":{port:04X}");
            Ok(tables.lines().any(|line| {
                let mut fields = line.split_whitespace().skip(1);
                let (at, _, state) = (fields.next(), fields.next(), fields.next());
                at.is_some_and(|at| at.ends_with(&local)) && state == Some("0A")
            }))
        };
        eventually("somebody outside is ready", || match outside.ready {
            Ready::Port(port) => listens(port).unwrap_or(false),
            Ready::File(file) => internet.home().join(file).exists(),
        });
        Ok(running)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
