//! A real build with each package manager of this machine, in a fence.
//!
//! The tests under `tests/` never leave the machine, so they cannot show that a fence holds with a
//! real client, a real registry and the caches, retries and mirrors in between. This does, with
//! the registries and settings that the machine has. No registry is named here: a recorded run
//! says what a client needs, and the policy is made of that. For each client, every time with
//! empty caches:
//!
//! 1. without a fence: the client works here at all;
//! 2. in audit mode, starting from an empty policy, until nothing more would be refused: the names;
//! 3. with a policy of exactly these names: the build succeeds and jobfence exits 0;
//! 4. without one of the names, for each of them: jobfence exits 110, its report has the name, and
//!    at least one of these builds comes to nothing (a client may do without a mirror).

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fmt::Write as _,
    fs,
    io::ErrorKind,
    net::IpAddr,
    os::unix::{
        fs::{PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::sh;

/// What jobfence exits with after a violation.
const VIOLATION: i32 = 110;

/// Audit runs before giving up: one finds the names, one what came after them, one confirms.
const ROUNDS: usize = 5;

/// What a build leaves in its folder when it has succeeded.
const ARTEFACT: &str = "artefact";

/// Before each script. The caller's home folder may be closed to the job's user, and has caches.
const PREAMBLE: &str = r#"
set -eu
export HOME="$PWD/home"
export CARGO_HOME="$HOME/.cargo" XDG_CACHE_HOME="$HOME/.cache" TMPDIR="$HOME"
"#;

/// Files in a home folder in which clients keep their registries, mirrors, proxies and the
/// credentials for them.
const SETTINGS: [&str; 4] = [".config/pip/pip.conf", ".netrc", ".npmrc", ".pip/pip.conf"];

/// The same in cargo's folder, whose place is a setting of its own.
const CARGO_SETTINGS: [&str; 4] = ["config", "config.toml", "credentials", "credentials.toml"];

/// A package manager and a small build for it. In its shell commands, `$PROGRAM` is the program.
struct Client {
    name: &'static str,
    program: &'static str,
    /// Succeeds if the program works for the user.
    probe: &'static str,
    /// Leaves [`ARTEFACT`] in the working folder.
    build: &'static str,
    /// Whether it is tried as root even if it works for another user.
    root_too: bool,
}

const CLIENTS: [Client; 4] = [
    Client {
        name: "pip",
        program: "python3",
        probe: r#""$PROGRAM" -c 'import ensurepip, venv'"#,
        // From source, which also fetches what builds it.
        build: r#"
            "$PROGRAM" -m venv venv
            venv/bin/pip wheel --no-cache-dir --no-binary idna --wheel-dir wheels idna
            venv/bin/pip install --no-index wheels/idna-*.whl
            venv/bin/python -c 'import idna'
            mv wheels/idna-*.whl artefact
        "#,
        root_too: false,
    },
    Client {
        name: "npm",
        program: "npm",
        probe: r#""$PROGRAM" --version"#,
        build: r#"
            echo '{"name": "small", "version": "0.1.0"}' > package.json
            "$PROGRAM" install --cache "$HOME/.npm" is-odd
            test "$(node -p 'require("is-odd")(3)')" = true
            mv node_modules/is-odd/package.json artefact
        "#,
        root_too: false,
    },
    Client {
        name: "cargo",
        program: "cargo",
        probe: r#""$PROGRAM" --version && rustc --version"#,
        build: r#"
            mkdir src
            printf '[package]\nname = "small"\nedition = "2021"\n[dependencies]\nitoa = "1"\n' > Cargo.toml
            echo 'pub use itoa::Buffer;' > src/lib.rs
            "$PROGRAM" build --target-dir target
            mv target/debug/libsmall.rlib artefact
        "#,
        root_too: false,
    },
    Client {
        name: "apt",
        program: "apt-get",
        probe: r#""$PROGRAM" --version"#,
        // The machine's sources, but none of its lists and archives.
        build: r#"
            mkdir state cache
            set -- -o Dir::State="$PWD/state" -o Dir::State::status=/var/lib/dpkg/status \
                -o Dir::Cache="$PWD/cache"
            "$PROGRAM" "$@" update
            "$PROGRAM" "$@" download hostname
            dpkg-deb --info hostname_*.deb
            mv hostname_*.deb artefact
        "#,
        root_too: true,
    },
];

/// Runs all four steps for every client and prints a table of what came out.
pub(crate) fn run(jobfence: &Path) -> Result<()> {
    if !sh::is_root() {
        bail!("a fence needs root: run `sudo -E cargo xtask registries`");
    }
    let scratch = Scratch::new()?;
    let caller = env::var("SUDO_USER").ok().filter(|name| name != "root");
    let unprivileged = User::find(caller.as_deref().unwrap_or("nobody"))?;
    let root = User::find("root")?;
    let settings = match &caller {
        Some(_) => unprivileged.home.clone(),
        None => env::var_os("HOME").map_or_else(|| root.home.clone(), PathBuf::from),
    };

    let (mut rows, mut ran, mut failed) = (Vec::new(), 0, 0);
    for client in &CLIENTS {
        let programs = programs(client.program);
        if programs.is_empty() {
            rows.push(format!("{:<7} left out: not installed", client.name));
            continue;
        }
        let cases: Vec<_> = [&unprivileged, &root]
            .into_iter()
            .filter_map(|user| {
                let works = |program: &&PathBuf| probe(client, program, user);
                let program = programs.iter().find(works)?.clone();
                Some(Case {
                    client,
                    program,
                    user,
                    settings: &settings,
                    scratch: &scratch.0,
                    jobfence,
                })
            })
            .collect();
        let wanted = if client.root_too { cases.len() } else { 1 };
        if cases.is_empty() {
            let name = client.name;
            rows.push(format!("{name:<7} left out: installed, but does not work"));
        } else if cases[0].user.uid == 0 {
            let (name, user) = (client.name, &unprivileged.name);
            eprintln!("{name}: does not work for {user}, so it runs as root");
        }
        for case in cases.iter().take(wanted) {
            ran += 1;
            let head = format!("{:<7} {:<10}", client.name, case.user.name);
            rows.push(match case.run() {
                Ok(outcome) => format!("{head} {outcome}"),
                Err(error) => {
                    failed += 1;
                    eprintln!("error: {}: {error:#}", client.name);
                    format!("{head} FAILED, see above")
                }
            });
        }
    }

    println!(
        "\n{:<7} {:<10} {:>5} {:>9} {:>9}  without one of the names",
        "client", "user", "names", "unfenced", "fenced"
    );
    for row in rows {
        println!("{row}");
    }
    ensure!(failed == 0, "{failed} of {ran} failed");
    ensure!(
        ran > 0,
        "no package manager works here, so nothing was shown"
    );
    Ok(())
}

/// A client, and how it is run here.
struct Case<'a> {
    client: &'a Client,
    program: PathBuf,
    user: &'a User,
    /// The home folder with the client's settings.
    settings: &'a Path,
    scratch: &'a Path,
    jobfence: &'a Path,
}

/// One run of a client's build.
struct Ended {
    /// What it exited with; none if a signal ended it.
    code: Option<i32>,
    took: Duration,
    /// Whether there is an artefact.
    built: bool,
    stdout: String,
    stderr: String,
    events: Vec<Event>,
}

impl Case<'_> {
    /// All four steps. Returns the rest of the table's row.
    fn run(&self) -> Result<String> {
        self.say("without a fence");
        let unfenced = self.build(None)?;
        unfenced.expect_built("it does not work here even without a fence")?;

        let rules = self.learn()?;
        for (target, rule) in &rules {
            self.say(&format!("needs {}", rule.render(target)));
        }
        self.say("with a policy of these names");
        let fenced = self.build(Some(&policy("enforce", &rules)))?;
        fenced.expect_built("it does not work with all its names allowed")?;

        let mut without_artefact = 0;
        for target in rules.keys() {
            self.say(&format!("without {}", target.text));
            let mut fewer = rules.clone();
            fewer.remove(target);
            let ended = self.build(Some(&policy("enforce", &fewer)))?;
            if ended.code != Some(VIOLATION) || !ended.report_names(target) {
                bail!(
                    "{} was not refused and reported: {}",
                    target.text,
                    ended.describe()
                );
            }
            without_artefact += usize::from(!ended.built);
        }
        ensure!(
            without_artefact > 0,
            "its build succeeds without any one of its names: the policy is not what it stands on"
        );
        let names = rules.len();
        let (unfenced, fenced) = (unfenced.took.as_secs_f64(), fenced.took.as_secs_f64());
        Ok(format!(
            "{names:>5} {unfenced:>7.1} s {fenced:>7.1} s  exit {VIOLATION}, named: {names} of \
             {names}; build failed: {without_artefact} of {names}"
        ))
    }

    /// What the client needs, from audit runs.
    fn learn(&self) -> Result<Rules> {
        let mut rules = Rules::new();
        for round in 1..=ROUNDS {
            self.say(&format!("in audit mode, round {round}"));
            let ended = self.build(Some(&policy("audit", &rules)))?;
            ended.expect_built("it does not work in audit mode, which refuses nothing")?;
            if !extend(&mut rules, &ended.events) {
                ensure!(
                    !rules.is_empty(),
                    "it went nowhere: is its registry on disk?"
                );
                return Ok(rules);
            }
        }
        bail!("it wanted something new in each of {ROUNDS} audit runs")
    }

    fn say(&self, what: &str) {
        eprintln!("{} as {}: {what}", self.client.name, self.user.name);
    }

    /// Builds once in a new folder: in a fence with `policy`, or without one.
    fn build(&self, policy: Option<&str>) -> Result<Ended> {
        let folder = self.scratch.join("run");
        make_folder(&folder, 0o711, None)?;
        let work = folder.join("work");
        make_folder(&work, 0o711, Some(self.user))?;
        self.copy_settings(&work.join("home"))?;

        let log = folder.join("log");
        let script = format!("{PREAMBLE}{}", self.client.build);
        let mut command = match policy {
            None => self.user.command("sh"),
            Some(policy) => {
                let file = folder.join("policy.yml");
                fs::write(&file, policy).context("write the policy")?;
                let mut command = Command::new(self.jobfence);
                command.args(["run", "--user", &self.user.name]);
                command.arg("--policy").arg(file).arg("--log").arg(&log);
                command.args(["--", "sh"]);
                command
            }
        };
        command.args(["-c", &script]).current_dir(&work);
        equip(&mut command, &self.program);
        let start = Instant::now();
        let output = command
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("start {}", command.get_program().display()))?;
        let took = start.elapsed();
        let ended = Ended {
            code: output.status.code(),
            took,
            built: work.join(ARTEFACT).is_file(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            // Without a fence, or when none could be set up, there is none.
            events: if log.exists() {
                read_log(&log)?
            } else {
                Vec::new()
            },
        };
        fs::remove_dir_all(&folder).context("remove the build's folder")?;
        Ok(ended)
    }

    /// Makes the home folder of a build, with the caller's settings for the clients.
    fn copy_settings(&self, home: &Path) -> Result<()> {
        make_folder(home, 0o700, Some(self.user))?;
        let cargo_home =
            env::var_os("CARGO_HOME").map_or_else(|| self.settings.join(".cargo"), PathBuf::from);
        let own = SETTINGS.map(|name| (self.settings.join(name), home.join(name)));
        let cargo =
            CARGO_SETTINGS.map(|name| (cargo_home.join(name), home.join(".cargo").join(name)));
        for (from, to) in own.into_iter().chain(cargo) {
            let bytes = match fs::read(&from) {
                Ok(bytes) => bytes,
                Err(error)
                    if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
                {
                    continue;
                }
                Err(error) => return Err(error).context(format!("read {}", from.display())),
            };
            let inside = to.strip_prefix(home).unwrap_or(&to);
            for parent in inside.ancestors().skip(1).collect::<Vec<_>>().iter().rev() {
                let parent = home.join(parent);
                if !parent.exists() {
                    make_folder(&parent, 0o700, Some(self.user))?;
                }
            }
            fs::write(&to, bytes).with_context(|| format!("write {}", to.display()))?;
            self.user.own(&to)?;
        }
        Ok(())
    }
}

impl Ended {
    fn expect_built(&self, otherwise: &str) -> Result<()> {
        if self.code == Some(0) && self.built {
            return Ok(());
        }
        bail!("{otherwise}: {}", self.describe())
    }

    /// The part of standard error that is jobfence's report, which comes last. What the client
    /// itself says of a name does not count.
    fn report(&self) -> &str {
        let start = self.stderr.rfind("\njobfence: ").map_or(0, |at| at + 1);
        &self.stderr[start..]
    }

    /// Whether the report has `target` as refused.
    fn report_names(&self, target: &Target) -> bool {
        self.report()
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix("✗ "))
            .any(|refused| {
                // The name or address ends where the port, or the reason, begins.
                let rest = refused.trim_start_matches('[').strip_prefix(target.host());
                rest.is_some_and(|rest| rest.starts_with([' ', ':', ']']))
            })
    }

    fn describe(&self) -> String {
        let code = self
            .code
            .map_or("a signal".to_owned(), |code| code.to_string());
        let artefact = if self.built { "an" } else { "no" };
        format!(
            "ended with {code} and {artefact} artefact\n{}{}",
            self.stdout, self.stderr
        )
    }
}

/// Rules of a policy, by what they allow.
type Rules = BTreeMap<Target, Rule>;

/// What a rule allows: `host: NAME` or `cidr: PREFIX`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    key: &'static str,
    text: String,
}

impl Target {
    fn name(name: &str) -> Self {
        Self {
            key: "host",
            text: name.to_owned(),
        }
    }

    fn address(ip: IpAddr) -> Self {
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        Self {
            key: "cidr",
            text: format!("{ip}/{bits}"),
        }
    }

    /// The name or the address, as reports have it.
    fn host(&self) -> &str {
        self.text.split('/').next().unwrap_or_default()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rule {
    /// As in a policy: `443`, `123/udp`. None is the default, `443`.
    ports: BTreeSet<String>,
    private: bool,
}

impl Rule {
    fn render(&self, target: &Target) -> String {
        let mut text = format!("{{{}: \"{}\"", target.key, target.text);
        if !self.ports.is_empty() {
            let ports: Vec<_> = self.ports.iter().map(String::as_str).collect();
            _ = write!(text, ", ports: [{}]", ports.join(", "));
        }
        if self.private {
            text.push_str(", private: true");
        }
        text.push('}');
        text
    }
}

/// A policy with these rules.
fn policy(mode: &str, rules: &Rules) -> String {
    let mut text = format!("version: 1\nmode: {mode}\njobs:\n  default:\n    allow:\n");
    for (target, rule) in rules {
        _ = writeln!(text, "      - {}", rule.render(target));
    }
    text
}

/// The fields of a line of the log that matter here.
#[derive(Debug, Deserialize)]
struct Event {
    kind: String,
    verdict: String,
    reason: String,
    proto: Option<String>,
    dst: Option<Destination>,
    dns: Option<Question>,
}

#[derive(Debug, Deserialize)]
struct Destination {
    ip: Option<IpAddr>,
    port: Option<u16>,
    name: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Question {
    qname: String,
    qtype: String,
}

fn read_log(log: &Path) -> Result<Vec<Event>> {
    fs::read_to_string(log)
        .with_context(|| format!("read the log {}", log.display()))?
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("in the log: {line}")))
        .collect()
}

/// Adds to `rules` what they lacked in an audit run. Whether there was anything.
fn extend(rules: &mut Rules, events: &[Event]) -> bool {
    let before = rules.clone();
    let denied = |kind: &str, reasons: &[&str]| {
        let (kind, reasons) = (kind.to_owned(), reasons.join(" "));
        events.iter().filter(move |event| {
            event.verdict == "deny"
                && event.kind == kind
                && reasons.split(' ').any(|reason| reason == event.reason)
        })
    };

    let mut names: BTreeMap<IpAddr, BTreeSet<&str>> = BTreeMap::new();
    for event in denied("dns", &["name", "private-address"]) {
        let Some(dns) = &event.dns else { continue };
        // Other types only look for a better server; clients do without.
        if !matches!(dns.qtype.as_str(), "A" | "AAAA") {
            continue;
        }
        let rule = rules.entry(Target::name(&dns.qname)).or_default();
        rule.private |= event.reason == "private-address";
        if let Some(ip) = event.dst.as_ref().and_then(|dst| dst.ip) {
            names.entry(ip).or_default().insert(&dns.qname);
        }
    }
    for event in denied("connect", &["no-rule", "port"]) {
        let Some(dst) = &event.dst else { continue };
        let (Some(ip), Some(port)) = (dst.ip, dst.port) else {
            continue;
        };
        let port = match event.proto.as_deref() {
            Some("udp") => format!("{port}/udp"),
            _ => port.to_string(),
        };
        // Several names may share the address, and the event has one of them.
        let mut targets: BTreeSet<_> = names
            .get(&ip)
            .into_iter()
            .flatten()
            .copied()
            .chain(dst.name.as_deref())
            .map(Target::name)
            .collect();
        if targets.is_empty() {
            targets.insert(Target::address(ip));
        }
        for target in targets {
            rules.entry(target).or_default().ports.insert(port.clone());
        }
    }
    *rules != before
}

/// Someone to run a job as.
struct User {
    name: String,
    uid: u32,
    gid: u32,
    home: PathBuf,
}

impl User {
    fn find(name: &str) -> Result<Self> {
        let line = sh::ask(Command::new("getent").args(["passwd", name]))
            .with_context(|| format!("there is no user {name} here"))?;
        // passwd(5): name:password:uid:gid:comment:home:shell
        let fields: Vec<_> = line.trim_end().split(':').collect();
        let [name, _, uid, gid, _, home, _] = fields[..] else {
            bail!("getent said of user {name}: {line}");
        };
        Ok(Self {
            name: name.to_owned(),
            uid: uid.parse().context("parse the user id")?,
            gid: gid.parse().context("parse the group id")?,
            home: home.into(),
        })
    }

    /// A command that this user runs, without a fence.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.uid(self.uid).gid(self.gid);
        command
    }

    fn own(&self, path: &Path) -> Result<()> {
        chown(path, Some(self.uid), Some(self.gid))
            .with_context(|| format!("give {} to {}", path.display(), self.name))
    }
}

/// The programs called `name`, in the order in which they are preferred.
///
/// The cargo that runs this is the toolchain's own. The one in PATH may be a proxy, which looks
/// for its toolchains in the home folder.
fn programs(name: &str) -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let running = env::var_os("CARGO").filter(|_| name == "cargo");
    running
        .map(PathBuf::from)
        .into_iter()
        .chain(env::split_paths(&path).map(|folder| folder.join(name)))
        .filter(|file| sh::is_executable(file))
        .collect()
}

/// Whether `program` works for `user`.
fn probe(client: &Client, program: &Path, user: &User) -> bool {
    let mut command = user.command("sh");
    // A home folder that is empty, like that of a build.
    let script = format!("cd / && HOME=/nonexistent && {}", client.probe);
    command.args(["-c", &script]).current_dir("/");
    equip(&mut command, program);
    sh::ask(&mut command).is_some()
}

/// Sets `$PROGRAM`, and has its own folder searched first: a toolchain's cargo finds its rustc.
fn equip(command: &mut Command, program: &Path) {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = program.parent().map(Path::to_path_buf).into_iter();
    // What came from PATH can go back into it.
    let path = env::join_paths(folders.chain(env::split_paths(&path))).unwrap_or(path);
    command.env("PROGRAM", program).env("PATH", path);
    sh::scrub(command, |name| {
        name == "CARGO" || name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
    });
}

/// Makes a folder that must not be there yet.
fn make_folder(path: &Path, mode: u32, owner: Option<&User>) -> Result<()> {
    let make = || {
        fs::create_dir(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    };
    make().with_context(|| format!("make the folder {}", path.display()))?;
    owner.map_or(Ok(()), |user| user.own(path))
}

/// A folder that is removed with all that is in it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let path = env::temp_dir().join(format!("jobfence-registries-{}", std::process::id()));
        make_folder(&path, 0o711, None)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("warning: {} stays behind: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(line: &str) -> Event {
        serde_json::from_str(line).expect("an event")
    }

    fn ended(stderr: &str) -> Ended {
        Ended {
            code: Some(VIOLATION),
            took: Duration::ZERO,
            built: false,
            stdout: String::new(),
            stderr: stderr.to_owned(),
            events: Vec::new(),
        }
    }

    #[test]
    fn a_recorded_run_becomes_a_policy_of_its_names_and_ports() {
        let events = [
            r#"{"kind":"job","verdict":"allow","reason":"job"}"#,
            r#"{"kind":"dns","verdict":"deny","reason":"name","dns":{"qname":"_http._tcp.a.test","qtype":"SRV"}}"#,
            r#"{"kind":"dns","verdict":"deny","reason":"name","dst":{"ip":"198.51.100.1","name":"a.test"},"dns":{"qname":"a.test","qtype":"A"}}"#,
            r#"{"kind":"dns","verdict":"deny","reason":"name","dst":{"ip":"198.51.100.1","name":"b.test"},"dns":{"qname":"b.test","qtype":"A"}}"#,
            r#"{"kind":"dns","verdict":"allow","reason":"rule","dst":{"ip":"198.51.100.3","name":"c.test"},"dns":{"qname":"c.test","qtype":"A"}}"#,
            // One of the two names that share the address.
            r#"{"kind":"connect","verdict":"deny","reason":"no-rule","proto":"tcp","dst":{"ip":"198.51.100.1","port":80,"name":"a.test"}}"#,
            r#"{"kind":"connect","verdict":"deny","reason":"no-rule","proto":"udp","dst":{"ip":"2001:db8::1","port":123}}"#,
        ]
        .map(event);
        let mut rules = Rules::new();
        assert!(extend(&mut rules, &events));
        assert_eq!(
            policy("enforce", &rules),
            r#"version: 1
mode: enforce
jobs:
  default:
    allow:
      - {cidr: "2001:db8::1/128", ports: [123/udp]}
      - {host: "a.test", ports: [80]}
      - {host: "b.test", ports: [80]}
"#
        );
        assert!(!extend(&mut rules, &events), "there was nothing new");

        let private = [
            r#"{"kind":"dns","verdict":"deny","reason":"private-address","dns":{"qname":"a.test","qtype":"A"}}"#,
        ]
        .map(event);
        assert!(extend(&mut rules, &private));
        assert!(rules[&Target::name("a.test")].private);
        assert!(!rules[&Target::name("b.test")].private);
    }

    #[test]
    fn only_the_report_counts_as_naming_a_host() {
        let target = Target::name("a.test");
        let report =
            "error: no such host\njobfence: 1 destination refused (1 attempt) · enforcing\n";
        let names = |refused: &str| ended(&format!("{report}{refused}\n")).report_names(&target);
        assert!(names("  ✗ a.test — no rule allows the name, 2×"));
        assert!(names(
            "  ✗ a.test:80 [198.51.100.1] — no rule allows the address"
        ));
        assert!(!names("  ✗ a.test.example.com — no rule allows the name"));
        assert!(!names("  ✗ b.test — no rule allows the name"));
        assert!(!names("  refused, not a violation: a.test — a record type"));
        assert!(!ended(&format!("  ✗ a.test — said the client\n{report}")).report_names(&target));

        let address = Target::address("2001:db8::1".parse().expect("an address"));
        let line = "  ✗ [2001:db8::1]:443 — no rule allows the address\n";
        assert!(ended(&format!("{report}{line}")).report_names(&address));
    }
}
