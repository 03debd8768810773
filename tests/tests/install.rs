//! `jobfence install` and `uninstall`, in folders that stand for a host's root.
//!
//! Nothing is started there, and nothing outside of these folders is looked at: `--root` is for images
//! of hosts. What systemd makes of it, the last test shows in a container with one.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use jobfence_tests::{Internet, Machine, Output, binary, eventually, run};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(30);

const RECORD: &str = "var/lib/jobfence/install/record.json";
const AGENT_YML: &str = "etc/jobfence/agent.yml";
const UNIT: &str = "actions.runner.one.service";
const DROP_IN: &str = "etc/systemd/system/actions.runner.one.service.d/jobfence.conf";
const ENV: &str = "opt/one/.env";
const STARTED: &str = "ACTIONS_RUNNER_HOOK_JOB_STARTED=/etc/jobfence/hooks/github/started.js";

/// Who runs the runners.
const ALICE: u32 = 1501;
const BOB: u32 = 1502;

/// A file system of a host, with a GitHub runner of alice's in /opt/one.
struct Host {
    root: PathBuf,
}

/// All that can be told of a file: mode, owner, group, and what it holds.
type Shape = (u32, u32, u32, String);

impl Host {
    fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("jobfence-install-{}-{count}", std::process::id());
        let host = Self {
            root: std::env::temp_dir().join(name),
        };
        fs::create_dir(&host.root).context("cannot make a root")?;
        host.put("etc/passwd", &format!("root:x:0:0::/root:/bin/sh\nalice:x:{ALICE}:{ALICE}::/home/alice:/bin/sh\nbob:x:{BOB}:{BOB}::/:/bin/sh\n"))?;
        host.runner("one", "alice", ALICE)?;
        Ok(host)
    }

    /// Lays out a GitHub runner, as its config.sh and svc.sh leave it.
    fn runner(&self, name: &str, user: &str, uid: u32) -> Result<()> {
        let unit = format!("actions.runner.{name}.service");
        self.put(
            &format!("etc/systemd/system/{unit}"),
            &format!("[Service]\nExecStart=/opt/{name}/runsvc.sh\nUser={user}\n"),
        )?;
        let settings = format!(
            "\u{feff}{{\"agentName\":\"{name}\",\"gitHubUrl\":\"https://git.example.com/group\",\
             \"serverUrl\":\"https://one.actions.example.com/x\"}}"
        );
        self.put(&format!("opt/{name}/.runner"), &settings)?;
        self.put(&format!("opt/{name}/.service"), &unit)?;
        for file in ["", "/.runner", "/.service"] {
            self.give(&format!("opt/{name}{file}"), uid)?;
        }
        Ok(())
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn put(&self, path: &str, text: &str) -> Result<()> {
        let path = self.path(path);
        fs::create_dir_all(path.parent().context("a folder")?)?;
        fs::write(path, text)?;
        Ok(())
    }

    fn give(&self, path: &str, uid: u32) -> Result<()> {
        Ok(chown(self.path(path), Some(uid), Some(uid))?)
    }

    fn read(&self, path: &str) -> Result<String> {
        fs::read_to_string(self.path(path)).with_context(|| format!("cannot read {path}"))
    }

    /// Every file and folder below the root.
    fn shape(&self) -> Result<BTreeMap<PathBuf, Shape>> {
        let mut shape = BTreeMap::new();
        let mut folders = vec![self.root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder)? {
                let path = entry?.path();
                let meta = path.symlink_metadata()?;
                let holds = if meta.is_dir() {
                    folders.push(path.clone());
                    "folder".to_owned()
                } else if meta.is_symlink() {
                    fs::read_link(&path)?.to_string_lossy().into_owned()
                } else {
                    fs::read_to_string(&path)?
                };
                shape.insert(path, (meta.mode(), meta.uid(), meta.gid(), holds));
            }
        }
        Ok(shape)
    }

    /// Runs `jobfence` with `words` and this root.
    fn jobfence(&self, words: &[&str]) -> Result<Output> {
        let mut command = Command::new(binary()?);
        command.args(words).arg("--root").arg(&self.root);
        run(&mut command, DEADLINE)
    }

    /// The same, which has to succeed; returns what it printed.
    fn done(&self, words: &[&str]) -> Result<String> {
        let output = self.jobfence(words)?;
        ensure!(output.status.success(), "{words:?}: {output:#?}");
        Ok(output.stdout)
    }

    /// The same, which has to fail and change nothing; returns what it said.
    fn refused(&self, words: &[&str]) -> Result<String> {
        let before = self.shape()?;
        let output = self.jobfence(words)?;
        ensure!(output.status.code() == Some(1), "{words:?}: {output:#?}");
        ensure!(
            self.shape()? == before,
            "{words:?} changed something: {output:#?}"
        );
        Ok(output.stderr)
    }

    fn status(&self) -> Result<(Option<i32>, Value)> {
        let output = self.jobfence(&["install", "status", "--json"])?;
        let said = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
        Ok((output.status.code(), said))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let removed = fs::remove_dir_all(&self.root);
        if !thread::panicking() {
            removed.expect("the root can be removed");
        }
    }
}

const ONE: &[&str] = &["install", "github", "--runner-dir", "/opt/one"];
const TWO: &[&str] = &["install", "github", "--runner-dir", "/opt/two"];

#[test]
fn a_first_installation_has_all_that_a_github_runner_needs() -> Result<()> {
    let host = Host::new()?;
    let said = host.done(ONE)?;
    let drop_in = host.read(DROP_IN)?;
    for line in [
        "Wants=jobfence-agent.service",
        "After=jobfence-agent.service",
        "ExecStartPost=+/usr/bin/jobfence job start --runner --id runner-one-${INVOCATION_ID} --pid \
         $MAINPID --policy /etc/jobfence/runners/one.yml",
        "Environment=ACTIONS_RUNNER_HOOK_JOB_STARTED=/etc/jobfence/hooks/github/started.js",
        "Environment=ACTIONS_RUNNER_HOOK_JOB_COMPLETED=/etc/jobfence/hooks/github/completed.js",
    ] {
        assert!(
            drop_in.lines().any(|is| is == line),
            "no {line:?} in {drop_in}"
        );
    }
    let agent = host.read(AGENT_YML)?;
    assert!(agent.contains("\nrunners:\n  - alice\n"), "{agent}");
    assert!(
        agent.contains("\nguard:\n  users:\n    - alice\n"),
        "{agent}"
    );
    let policy = host.read("etc/jobfence/runners/one.yml")?;
    assert!(policy.contains("- use: github-actions\n"), "{policy}");
    for rule in [
        "host: \"git.example.com\"",
        "host: \"*.actions.example.com\"",
    ] {
        assert!(policy.contains(rule), "the runner's own platform: {policy}");
        assert!(
            host.read("etc/jobfence/host.yml")?.contains(rule),
            "that of its jobs"
        );
    }
    for path in [
        "etc/jobfence/hooks/github/started.js",
        "etc/jobfence/policies/default.yml",
    ] {
        let meta = host.path(path).metadata()?;
        assert_eq!((meta.mode() & 0o777, meta.uid()), (0o644, 0), "{path}");
    }
    let record = host.path(RECORD).metadata()?;
    assert_eq!(record.mode() & 0o777, 0o600, "it can hold what is secret");
    assert!(
        host.path("etc/systemd/system/jobfence-agent.service")
            .is_file()
    );
    assert!(!host.path(ENV).exists(), "the unit has the variables");
    // It was shown before: whole.
    for line in drop_in.lines() {
        assert!(
            said.contains(&format!("    +{line}\n")),
            "{line:?} was not shown: {said}"
        );
    }
    Ok(())
}

#[test]
fn a_dry_run_shows_the_same_and_changes_nothing() -> Result<()> {
    let host = Host::new()?;
    let before = host.shape()?;
    let shown = host.done(&[ONE, &["--dry-run"]].concat())?;
    assert_eq!(host.shape()?, before);
    let done = host.done(ONE)?;
    let changes = |text: &str| -> Vec<String> {
        let is_change = |line: &&str| line.starts_with("create ") || line.starts_with("    ");
        text.lines()
            .take_while(|line| is_change(line))
            .map(str::to_owned)
            .collect()
    };
    assert!(changes(&shown).len() > 50, "{shown}");
    assert_eq!(changes(&shown), changes(&done));
    let installed = host.shape()?;
    host.done(&["uninstall", "--dry-run"])?;
    assert_eq!(host.shape()?, installed);
    Ok(())
}

#[test]
fn a_second_time_nothing_changes_and_that_is_said() -> Result<()> {
    let host = Host::new()?;
    host.done(ONE)?;
    let before = host.shape()?;
    let said = host.done(ONE)?;
    assert!(said.starts_with("Nothing to change.\n"), "{said}");
    assert_eq!(host.shape()?, before);
    Ok(())
}

#[test]
fn what_was_there_before_comes_back_byte_for_byte() -> Result<()> {
    let host = Host::new()?;
    host.put(
        AGENT_YML,
        "# ours\njobs: 9   # few\nrunners: [bob] # him\nguard:\n  # who\n  users:\n  - bob\n",
    )?;
    host.put(
        "etc/jobfence/host.yml",
        "version: 1\nbaseline:\n  - host: cache.example.com # ours\nlimits: {names: 9}",
    )?;
    host.put(
        "etc/jobfence/policies/default.yml",
        "version: 1\njobs: {}\n",
    )?;
    host.put(
        &format!("etc/systemd/system/{UNIT}.d/own.conf"),
        "[Service]\nNice=1\n",
    )?;
    host.put(ENV, "LANG=C\r\nHTTP_PROXY=http://u:p@proxy.test\nLAST=1")?;
    host.give(ENV, ALICE)?;
    fs::set_permissions(host.path(ENV), Permissions::from_mode(0o640))?;
    fs::set_permissions(host.path(AGENT_YML), Permissions::from_mode(0o600))?;
    // Without its unit the runner has its variables from the file.
    fs::remove_file(host.path("opt/one/.service"))?;
    let before = host.shape()?;

    let said = host.done(ONE)?;
    assert!(
        !said.contains("u:p@"),
        "a secret beside a changed line was shown: {said}"
    );
    assert!(host.path(RECORD).exists());
    let agent = host.read(AGENT_YML)?;
    assert!(
        agent.starts_with("# ours\njobs: 9   # few\nrunners: [bob, alice] # him\nguard:\n  # who\n  users:\n  - bob\n"),
        "{agent}"
    );
    assert!(
        !agent.contains("- alice"),
        "a runner that has no fence must not be held to jobs: {agent}"
    );
    let policy = host.read("etc/jobfence/host.yml")?;
    assert!(
        policy.starts_with(
            "version: 1\nbaseline:\n  - host: cache.example.com # ours\n  - use: github-actions\n"
        ),
        "{policy}"
    );
    let env = host.read(ENV)?;
    assert!(
        env.starts_with("LANG=C\r\nHTTP_PROXY=http://u:p@proxy.test\nLAST=1\n")
            && env.contains(STARTED),
        "{env}"
    );
    let meta = host.path(ENV).metadata()?;
    assert_eq!(
        (meta.mode() & 0o777, meta.uid(), meta.gid()),
        (0o640, ALICE, ALICE)
    );
    assert_eq!(host.path(AGENT_YML).metadata()?.mode() & 0o777, 0o600);

    host.done(&["uninstall"])?;
    assert_eq!(host.shape()?, before);
    assert_eq!(host.done(&["uninstall"])?, "Nothing is installed.\n");
    Ok(())
}

#[test]
fn a_hook_of_somebody_else_is_replaced_only_when_that_is_wanted() -> Result<()> {
    let host = Host::new()?;
    host.put(
        ENV,
        "A=1\nACTIONS_RUNNER_HOOK_JOB_STARTED=/opt/x\u{1b}[2J.js\nB=2\n",
    )?;
    host.give(ENV, ALICE)?;
    let before = host.shape()?;
    let said = host.refused(ONE)?;
    assert!(
        said.contains("/opt/one/.env sets ACTIONS_RUNNER_HOOK_JOB_STARTED to another hook"),
        "{said}"
    );
    assert!(
        said.contains("--replace") && !said.contains('\u{1b}'),
        "{said:?}"
    );
    let said = host.done(&[ONE, &["--replace"]].concat())?;
    assert!(
        !said.contains('\u{1b}'),
        "the runner's user wrote to root's terminal: {said:?}"
    );
    assert_eq!(host.read(ENV)?, format!("A=1\n{STARTED}\nB=2\n"));
    assert!(host.done(ONE)?.starts_with("Nothing to change.\n"));
    host.done(&["uninstall"])?;
    assert_eq!(host.shape()?, before);

    // In a unit, the administrator has put it.
    let own = format!("etc/systemd/system/{UNIT}.d/own.conf");
    host.put(
        &own,
        "[Service]\nEnvironment=ACTIONS_RUNNER_HOOK_JOB_COMPLETED=/opt/y.js\n",
    )?;
    fs::remove_file(host.path(ENV))?;
    let said = host.refused(&[ONE, &["--replace"]].concat())?;
    assert!(
        said.contains("own.conf sets ACTIONS_RUNNER_HOOK_JOB_COMPLETED"),
        "{said}"
    );
    Ok(())
}

#[test]
fn a_file_at_a_place_of_ours_is_a_conflict() -> Result<()> {
    let host = Host::new()?;
    host.put(DROP_IN, "[Service]\nNice=5\n")?;
    let before = host.shape()?;
    let said = host.refused(ONE)?;
    assert!(said.contains("jobfence.conf is there already"), "{said}");
    host.done(&[ONE, &["--replace"]].concat())?;
    host.done(&["uninstall"])?;
    assert_eq!(host.shape()?, before);
    Ok(())
}

#[test]
fn a_configuration_that_cannot_be_changed_safely_is_left_and_the_lines_are_told() -> Result<()> {
    let host = Host::new()?;
    host.put(AGENT_YML, "runners: [\n  bob,\n]\n")?;
    let said = host.refused(ONE)?;
    assert!(
        said.contains("/etc/jobfence/agent.yml: it cannot be changed without a risk"),
        "{said}"
    );
    assert!(said.contains("runners:\n  - alice\n"), "{said}");
    host.put(AGENT_YML, "socket: /run/other.sock\n")?;
    let said = host.refused(ONE)?;
    assert!(said.contains("take `socket` out of it"), "{said}");
    host.put(AGENT_YML, "runner: [bob]\n")?;
    let said = host.refused(ONE)?;
    assert!(
        said.contains("runner"),
        "an invalid one is not made worse: {said}"
    );
    Ok(())
}

#[test]
fn what_was_changed_since_stays_and_only_our_part_goes() -> Result<()> {
    let host = Host::new()?;
    host.put(AGENT_YML, "jobs: 9\nlogs: /srv/logs\n")?;
    host.done(ONE)?;
    let agent = host.read(AGENT_YML)?;
    // Also right behind what was written.
    let agent = agent.replace("jobs: 9", "# more\njobs: 99") + "presets: /srv/presets\n";
    host.put(AGENT_YML, &agent)?;
    host.put(
        "etc/jobfence/policies/default.yml",
        "version: 1\njobs: {mine: {}}\n",
    )?;
    let said = host.done(ONE)?;
    assert!(said.starts_with("Nothing to change.\n"), "{said}");
    let said = host.done(&["uninstall"])?;
    assert!(
        said.contains("/etc/jobfence/agent.yml: was changed since: only what"),
        "{said}"
    );
    assert_eq!(
        host.read(AGENT_YML)?,
        "# more\njobs: 99\nlogs: /srv/logs\npresets: /srv/presets\n"
    );
    assert!(
        said.contains("default.yml: was changed since: it is yours, and stays"),
        "{said}"
    );
    assert_eq!(
        host.read("etc/jobfence/policies/default.yml")?,
        "version: 1\njobs: {mine: {}}\n"
    );
    assert!(!host.path(RECORD).exists() && !host.path(DROP_IN).exists());
    Ok(())
}

#[test]
fn a_part_of_ours_that_was_changed_stays_unless_it_is_forced() -> Result<()> {
    let host = Host::new()?;
    let before = host.shape()?;
    host.done(ONE)?;
    let drop_in = host.read(DROP_IN)? + "Nice=5\n";
    host.put(DROP_IN, &drop_in)?;
    let (code, status) = host.status()?;
    assert_eq!(code, Some(1), "{status}");
    let said = host.done(ONE)?;
    assert!(
        said.contains("jobfence.conf: was changed since, and stays"),
        "{said}"
    );
    assert!(said.contains("    +Nice=5\n"), "the difference: {said}");
    assert_eq!(host.read(DROP_IN)?, drop_in);

    let output = host.jobfence(&["uninstall"])?;
    assert_eq!(
        output.status.code(),
        Some(1),
        "something is left: {output:?}"
    );
    assert!(
        output.stdout.contains("--force takes it back"),
        "{output:?}"
    );
    assert_eq!(host.read(DROP_IN)?, drop_in);
    assert_eq!(host.status()?.0, Some(1), "what is left is told of");
    host.done(&["uninstall", "--force"])?;
    assert_eq!(host.shape()?, before);
    Ok(())
}

#[test]
fn no_link_in_the_runners_folder_is_followed() -> Result<()> {
    let host = Host::new()?;
    fs::remove_file(host.path("opt/one/.service"))?;
    host.put("etc/shadow", "root:secret\n")?;
    let env = host.path(ENV);
    for target in ["/etc/shadow", "../../etc/shadow", "/etc/new"] {
        symlink(target, &env)?;
        let said = host.refused(ONE)?;
        assert!(
            said.contains("/opt/one/.env is a symbolic link"),
            "{target}: {said}"
        );
        fs::remove_file(&env)?;
    }
    fs::hard_link(host.path("etc/shadow"), &env)?;
    let said = host.refused(ONE)?;
    assert!(said.contains("/opt/one/.env is no plain file"), "{said}");
    fs::remove_file(&env)?;
    fs::create_dir(&env)?;
    host.refused(ONE)?;
    fs::remove_dir(&env)?;
    // The folder itself, and one above it.
    symlink("/opt/one", host.path("opt/link"))?;
    let said = host.refused(&["install", "github", "--runner-dir", "/opt/link"])?;
    assert!(said.contains("symbolic link"), "{said}");
    symlink("/opt", host.path("srv"))?;
    host.refused(&["install", "github", "--runner-dir", "/srv/one"])?;
    let output = host.jobfence(&["install", "github", "--runner-dir", "/srv/../opt/one"])?;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    // Put there after the installation, for `uninstall`.
    host.done(ONE)?;
    fs::remove_file(&env)?;
    symlink("/etc/shadow", &env)?;
    let output = host.jobfence(&["uninstall"])?;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        output
            .stdout
            .contains("/opt/one/.env: stays as it is: /opt/one/.env is a symbolic link"),
        "{output:?}"
    );
    assert!(!host.path(AGENT_YML).exists(), "the rest is taken back");
    assert_eq!(host.read("etc/shadow")?, "root:secret\n");
    Ok(())
}

#[test]
fn a_runner_cannot_have_the_service_of_somebody_else_changed() -> Result<()> {
    let host = Host::new()?;
    host.put(
        "etc/systemd/system/ssh.service",
        "[Service]\nExecStart=/usr/sbin/sshd\n",
    )?;
    for (named, said) in [
        ("ssh.service", "runs as root and not as the folder's owner"),
        ("../x.service", "no name of a service"),
        ("x.timer", "no name of a service"),
        ("none.service", "there is no unit none.service"),
    ] {
        fs::write(host.path("opt/one/.service"), named)?;
        let error = host.refused(ONE)?;
        assert!(error.contains(said), "{named}: {error}");
    }
    Ok(())
}

#[test]
fn a_runner_of_root_is_refused() -> Result<()> {
    let host = Host::new()?;
    host.runner("two", "root", 0)?;
    let said = host.refused(TWO)?;
    assert!(said.contains("is not root"), "{said}");
    Ok(())
}

#[test]
fn a_folder_that_others_can_change_gets_no_hook() -> Result<()> {
    let host = Host::new()?;
    host.put("etc/jobfence/hooks/github/x", "")?;
    for folder in [
        "etc/jobfence/hooks/github",
        "etc/jobfence/hooks",
        "etc/jobfence",
    ] {
        host.give(folder, ALICE)?;
        let said = host.refused(ONE)?;
        assert!(
            said.contains(&format!("/{folder} can be changed by others than root")),
            "{said}"
        );
        host.give(folder, 0)?;
        fs::set_permissions(host.path(folder), Permissions::from_mode(0o775))?;
        let said = host.refused(ONE)?;
        assert!(
            said.contains(&format!("/{folder} can be changed")),
            "{said}"
        );
        fs::set_permissions(host.path(folder), Permissions::from_mode(0o755))?;
    }
    Ok(())
}

#[test]
fn a_buildkite_folder_cannot_name_that_of_somebody_else() -> Result<()> {
    let host = Host::new()?;
    host.put(
        "etc/systemd/system/buildkite-agent.service",
        "[Service]\nUser=alice\n",
    )?;
    host.put("etc/cron.d/x", "")?;
    host.put(
        "home/bk/buildkite-agent.cfg",
        "hooks-path=\"/etc/cron.d\"\n",
    )?;
    host.give("home/bk", ALICE)?;
    host.give("home/bk/buildkite-agent.cfg", ALICE)?;
    let said = host.refused(&["install", "buildkite", "--runner-dir", "/home/bk"])?;
    assert!(
        said.contains("/etc/cron.d, which belongs to user 0"),
        "{said}"
    );
    Ok(())
}

#[test]
fn a_runner_that_is_named_anew_is_the_same_and_names_are_not_shared() -> Result<()> {
    let host = Host::new()?;
    host.runner("two", "bob", BOB)?;
    let before = host.shape()?;
    host.done(ONE)?;
    let said = host.refused(&[TWO, &["--name", "one"]].concat())?;
    assert!(said.contains("give this one another --name"), "{said}");
    host.done(&[ONE, &["--name", "uno"]].concat())?;
    let drop_in = host.read(DROP_IN)?;
    assert!(drop_in.contains("--id runner-uno-$"), "{drop_in}");
    assert!(!host.path("etc/jobfence/runners/one.yml").exists());
    let (code, status) = host.status()?;
    assert_eq!(
        (code, status["runners"].as_array().map(Vec::len)),
        (Some(0), Some(1))
    );
    host.done(&["uninstall"])?;
    assert_eq!(host.shape()?, before);
    Ok(())
}

#[test]
fn an_interrupted_installation_is_gone_on_with_or_taken_back() -> Result<()> {
    for then in [ONE, &["uninstall"]] {
        let host = Host::new()?;
        let before = host.shape()?;
        // In the way of a file that comes late.
        let block = host.path("etc/systemd/system").join(format!("{UNIT}.d"));
        fs::create_dir(&block)?;
        fs::set_permissions(&block, Permissions::from_mode(0o777))?;
        host.refused(ONE)?;
        fs::remove_dir(&block)?;
        host.done(ONE)?;
        let whole = host.shape()?;
        // As a crash leaves it: the record says what was about to be, half of it is there.
        let mut record: Value = serde_json::from_str(&host.read(RECORD)?)?;
        for (path, entry) in record["files"].as_object_mut().context("files")? {
            entry["next"] = entry["written"].take();
            if path.contains("systemd") || path.contains("agent.yml") {
                fs::remove_file(host.path(path.trim_start_matches('/')))?;
            }
        }
        fs::write(host.path(RECORD), serde_json::to_string(&record)?)?;
        host.done(then)?;
        let now = host.shape()?;
        let wanted = if then == ONE { whole } else { before };
        let differ: Vec<_> = now
            .iter()
            .filter(|(path, is)| wanted.get(*path) != Some(is))
            .map(|(path, _)| path)
            .collect();
        assert!(
            differ.iter().all(|path| path.ends_with("record.json")),
            "{differ:?}"
        );
        assert_eq!(now.len(), wanted.len());
    }
    Ok(())
}

#[test]
fn killed_at_any_moment_it_can_be_gone_on_with_or_taken_back() -> Result<()> {
    /// As often as fits into some seconds.
    const KILLS: u32 = 20;
    let host = Host::new()?;
    fs::create_dir_all(host.path("var/lib"))?;
    host.put(AGENT_YML, "jobs: 9\n")?;
    let before = host.shape()?;
    let start = Instant::now();
    host.done(ONE)?;
    let whole_time = start.elapsed();
    let whole = host.shape()?;
    host.done(&["uninstall"])?;
    for kill in 0..KILLS {
        for killed in [ONE, &["uninstall"]] {
            if killed != ONE {
                host.done(ONE)?;
            }
            let mut command = Command::new(binary()?);
            command.args(killed).arg("--root").arg(&host.root);
            let mut child = command.stdout(Stdio::null()).spawn()?;
            // Whenever it is: nothing of what follows depends on it.
            thread::sleep(whole_time * kill / KILLS);
            child.kill()?;
            child.wait()?;
            if kill % 2 == 0 && killed == ONE {
                host.done(ONE)?;
                let mut now = host.shape()?;
                // What was about to be written stands in it as well.
                now.insert(host.path(RECORD), whole[&host.path(RECORD)].clone());
                assert_eq!(now, whole, "gone on with");
            }
            host.done(&["uninstall"])?;
            assert_eq!(host.shape()?, before, "taken back");
        }
    }
    Ok(())
}

#[test]
fn two_runners_share_what_they_need_and_one_can_go() -> Result<()> {
    for (user, uid) in [("alice", ALICE), ("bob", BOB)] {
        let host = Host::new()?;
        host.runner("two", user, uid)?;
        let before = host.shape()?;
        host.done(ONE)?;
        let one = host.shape()?;
        host.done(TWO)?;
        let agent = host.read(AGENT_YML)?;
        assert_eq!(agent.matches("- alice\n").count(), 2, "{agent}");
        assert_eq!(
            agent.matches("- bob\n").count(),
            if user == "bob" { 2 } else { 0 },
            "{agent}"
        );

        host.done(&["uninstall", "github", "--name", "two"])?;
        let mut now = host.shape()?;
        // It remembers in other words.
        now.remove(&host.path(RECORD));
        let mut wanted = one;
        wanted.remove(&host.path(RECORD));
        assert_eq!(now, wanted, "what is left is the other's, whole");
        host.done(TWO)?;
        host.done(&["uninstall", "github", "--name", "one"])?;
        let agent = host.read(AGENT_YML)?;
        assert!(
            agent.contains(&format!("runners:\n  - {user}\n")),
            "{agent}"
        );
        assert!(!host.path(DROP_IN).exists());
        assert!(host.path("etc/jobfence/hooks/github/started.js").exists());
        host.done(&["uninstall"])?;
        assert_eq!(host.shape()?, before);
    }
    Ok(())
}

#[test]
fn status_tells_by_its_exit_code_what_is_installed() -> Result<()> {
    let host = Host::new()?;
    assert_eq!(host.status()?.0, Some(2));
    host.done(ONE)?;
    let (code, said) = host.status()?;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(said["runners"][0]["user"], "alice", "{said}");
    let files = said["files"].as_array().context("files")?;
    assert!(
        files.iter().all(|file| file["state"] == "written"),
        "{said}"
    );

    host.put(
        "etc/jobfence/runners/one.yml",
        "version: 1\njobs: {default: {}}\n",
    )?;
    assert_eq!(host.status()?.0, Some(0), "a policy is the administrator's");
    // The runner's user has its own hook.
    host.put(ENV, "ACTIONS_RUNNER_HOOK_JOB_STARTED=/tmp/none.js\n")?;
    host.give(ENV, ALICE)?;
    let (code, said) = host.status()?;
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said["problems"][0]
            .as_str()
            .context("a problem")?
            .contains("another hook"),
        "{said}"
    );
    fs::remove_file(host.path(ENV))?;
    fs::set_permissions(
        host.path("etc/jobfence/hooks/github/started.js"),
        Permissions::from_mode(0o666),
    )?;
    assert_eq!(host.status()?.0, Some(1), "a hook that others can change");
    fs::remove_file(host.path(DROP_IN))?;
    let (code, said) = host.status()?;
    assert_eq!(code, Some(1));
    assert!(said.to_string().contains("jobfence.conf is gone"), "{said}");
    Ok(())
}

#[test]
fn gitlab_gets_an_executor_and_keeps_its_comments() -> Result<()> {
    let host = Host::new()?;
    let config = "concurrent = 2 # two\n\n[[runners]]\n  name = \"build one\"\n  url = \"https://gitlab.example.com/\"\n  token = \"secret\" # token\n  executor = \"shell\"\n";
    host.put("etc/gitlab-runner/config.toml", config)?;
    fs::set_permissions(
        host.path("etc/gitlab-runner/config.toml"),
        Permissions::from_mode(0o600),
    )?;
    let before = host.shape()?;
    let install = &[
        "install",
        "gitlab",
        "--name",
        "build one",
        "--user",
        "alice",
    ];
    let said = host.done(install)?;
    assert!(!said.contains("secret"), "{said}");
    let now = host.read("etc/gitlab-runner/config.toml")?;
    assert!(
        now.contains("executor = \"custom\"") && now.contains("# token"),
        "{now}"
    );
    assert!(
        now.contains(
            "run_args = [\"hook\", \"gitlab\", \"run\", \"--user\", \"alice\", \"--runner-policy\", \"/etc/jobfence/runners/build-one.yml\"]"
        ),
        "{now}"
    );
    assert!(now.contains("builds_dir = \"/home/alice/builds\""), "{now}");
    let policy = host.read("etc/jobfence/runners/build-one.yml")?;
    assert!(policy.contains("host: \"gitlab.example.com\""), "{policy}");
    assert!(host.done(install)?.starts_with("Nothing to change.\n"));
    host.done(&["uninstall", "gitlab"])?;
    assert_eq!(host.shape()?, before);
    let other = config.to_owned() + "  [runners.custom]\n    run_exec = \"/opt/driver\"\n";
    host.put("etc/gitlab-runner/config.toml", &other)?;
    let said = host.refused(install)?;
    assert!(
        said.contains("has another driver, /opt/driver: --replace"),
        "{said}"
    );
    let said = host.refused(&["install", "gitlab", "--name", "none", "--user", "alice"])?;
    assert!(said.contains("no runner with the name \"none\""), "{said}");
    Ok(())
}

/// Hooks that are there already.
const HOOKS: [(&str, &str); 3] = [
    ("pre-bootstrap", "#!/bin/sh\necho theirs\nexit 3\n"),
    ("environment", "#!/bin/bash\necho theirs\nX=1\n"),
    ("pre-exit", "#!/bin/sh\necho theirs\nexit 3\n"),
];

#[test]
fn hooks_of_buildkite_go_on_to_be_called() -> Result<()> {
    let host = Host::new()?;
    host.put(
        "etc/systemd/system/buildkite-agent.service",
        "[Service]\nUser=alice\n",
    )?;
    let folder = "etc/buildkite-agent/hooks";
    for (name, text) in HOOKS {
        host.put(&format!("{folder}/{name}"), text)?;
        fs::set_permissions(host.path(folder).join(name), Permissions::from_mode(0o755))?;
    }
    let before = host.shape()?;
    let install = &[
        "install",
        "buildkite",
        "--platform-host",
        "agent.example.com",
    ];
    host.done(install)?;
    assert!(host.done(install)?.starts_with("Nothing to change.\n"));
    for (name, text) in HOOKS {
        let moved = host.read(&format!("{folder}/{name}.before-jobfence"))?;
        assert_eq!(moved, text, "the one that was there");
    }

    // Run here as the agent runs them, with a program that stands for jobfence.
    let stand_in = host.path("jobfence");
    fs::write(&stand_in, "#!/bin/sh\necho ours \"$@\"\nexit ${OURS:-0}\n")?;
    fs::set_permissions(&stand_in, Permissions::from_mode(0o755))?;
    let run_hook = |name: &str, ours: &str| -> Result<(Option<i32>, String)> {
        let text = host
            .read(&format!("{folder}/{name}"))?
            .replace("/usr/bin/jobfence", &stand_in.to_string_lossy())
            .replace("'/etc/", &format!("'{}/etc/", host.root.display()));
        let script = if name == "pre-bootstrap" {
            text
        } else {
            fs::write(host.path("hook"), text)?;
            ". \"$0\"; status=$?; echo X=$X; exit $status".to_owned()
        };
        let mut command = Command::new("bash");
        command.arg("-c").arg(script).arg(host.path("hook"));
        let output = run(command.env("OURS", ours), DEADLINE)?;
        Ok((output.status.code(), output.stdout))
    };
    for (name, ours, status, said) in [
        ("pre-bootstrap", "0", 3, "ours\ntheirs\n"),
        ("pre-bootstrap", "1", 1, "ours\n"),
        ("environment", "0", 0, "ours\ntheirs\nX=1\n"),
        ("environment", "1", 1, "ours\nX=\n"),
        ("pre-exit", "0", 3, "theirs\nours\nX=\n"),
        ("pre-exit", "1", 1, "theirs\nours\nX=\n"),
    ] {
        let said = said.replace("ours", &format!("ours hook buildkite {name}"));
        assert_eq!(
            run_hook(name, ours)?,
            (Some(status), said),
            "{name}, {ours}"
        );
    }
    fs::remove_file(host.path("hook"))?;
    fs::remove_file(&stand_in)?;

    let drop_in = host.read("etc/systemd/system/buildkite-agent.service.d/jobfence.conf")?;
    assert!(
        drop_in.contains("--runner --id runner-buildkite-$"),
        "{drop_in}"
    );
    assert!(!drop_in.contains("ACTIONS_RUNNER"), "{drop_in}");
    host.done(&["uninstall"])?;
    assert_eq!(host.shape()?, before);
    Ok(())
}

#[test]
fn a_host_of_the_platform_can_be_named_later_and_a_policy_is_the_administrators() -> Result<()> {
    use jobfence_policy::{Policy, Presets};
    let host = Host::new()?;
    host.put(
        "etc/systemd/system/buildkite-agent.service",
        "[Service]\nUser=alice\n",
    )?;
    fs::create_dir_all(host.path("etc/buildkite-agent/hooks"))?;
    let install = &["install", "buildkite"];
    let said = host.done(install)?;
    assert!(said.contains("The runner can reach nothing yet"), "{said}");
    let file = "etc/jobfence/runners/buildkite.yml";
    let parse = || -> Result<()> {
        let text = host.read(file)?;
        Policy::parse_with(file, text.as_bytes(), &Presets::built_in())?.job(None)?;
        Ok(())
    };
    parse()?;
    let named = &[
        "install",
        "buildkite",
        "--platform-host",
        "agent.example.com",
    ];
    host.done(named)?;
    parse()?;
    for policy in [file, "etc/jobfence/host.yml"] {
        assert!(
            host.read(policy)?.contains("host: \"agent.example.com\""),
            "{policy}"
        );
    }
    // Another one is put into what the administrator has made of it, and the same one is not put back.
    let text = host
        .read(file)?
        .replace("host: \"agent.example.com\"", "host: own.example.com");
    host.put(file, &text)?;
    assert!(host.done(install)?.starts_with("Nothing to change.\n"));
    assert_eq!(host.read(file)?, text);
    assert_eq!(host.status()?.0, Some(0));
    Ok(())
}

#[test]
fn two_agents_of_buildkite_share_their_hooks() -> Result<()> {
    let host = Host::new()?;
    host.put(
        "etc/systemd/system/buildkite-agent@.service",
        "[Service]\nUser=alice\n",
    )?;
    fs::create_dir_all(host.path("etc/buildkite-agent/hooks"))?;
    let before = host.shape()?;
    for name in ["1", "2"] {
        let unit = format!("buildkite-agent@{name}.service");
        host.done(&["install", "buildkite", "--unit", &unit, "--name", name])?;
    }
    let (code, status) = host.status()?;
    assert_eq!(
        (code, status["runners"].as_array().map(Vec::len)),
        (Some(0), Some(2))
    );
    host.done(&["uninstall", "buildkite", "--name", "1"])?;
    assert!(host.path("etc/buildkite-agent/hooks/pre-exit").exists());
    host.done(&["uninstall", "buildkite", "--name", "2"])?;
    assert_eq!(host.shape()?, before);
    Ok(())
}

#[test]
fn a_buildbot_worker_is_fenced_as_a_whole() -> Result<()> {
    let host = Host::new()?;
    host.put(
        "lib/systemd/system/buildbot-worker@.service",
        "[Service]\nUser=bob\n",
    )?;
    let before = host.shape()?;
    host.done(&[
        "install",
        "buildbot",
        "--unit",
        "buildbot-worker@default.service",
        "--name",
        "w",
    ])?;
    let drop_in =
        host.read("etc/systemd/system/buildbot-worker@default.service.d/jobfence.conf")?;
    assert!(
        drop_in.contains("job start --id worker-w-${INVOCATION_ID} --pid $MAINPID --policy /etc/jobfence/runners/w.yml\n"),
        "{drop_in}"
    );
    let agent = host.read(AGENT_YML)?;
    assert!(
        agent.contains("users:\n    - bob\n") && !agent.contains("\nrunners:"),
        "{agent}"
    );
    host.done(&["uninstall", "buildbot"])?;
    assert_eq!(host.shape()?, before);
    Ok(())
}

#[test]
fn a_host_of_another_system_gets_the_agent_alone() -> Result<()> {
    let host = Host::new()?;
    host.put(
        "usr/lib/systemd/system/jobfence-agent.service",
        "[Service]\n",
    )?;
    let before = host.shape()?;
    host.done(&["install", "generic"])?;
    assert!(host.path("etc/jobfence/policies/default.yml").exists());
    let own = host.path("etc/systemd/system/jobfence-agent.service");
    assert!(!own.exists(), "the package has brought the unit");
    host.done(&["uninstall", "generic"])?;
    assert_eq!(host.shape()?, before);
    Ok(())
}

#[test]
fn what_is_written_the_agent_and_the_policies_understand() -> Result<()> {
    use jobfence_agent::host::config::Config;
    use jobfence_policy::{HostPolicy, Policy, Presets};
    let host = Host::new()?;
    host.done(ONE)?;
    let config = Config::load(Some(&host.path(AGENT_YML)))?;
    assert_eq!(
        (config.runners, config.guard.users),
        (vec!["alice".to_owned()], vec!["alice".to_owned()])
    );
    assert_eq!(
        config.host_policy.as_deref(),
        Some(Path::new("/etc/jobfence/host.yml"))
    );
    let presets = Presets::built_in();
    let policy = host.read("etc/jobfence/host.yml")?;
    HostPolicy::parse("host.yml", policy.as_bytes(), &presets)?;
    for file in ["runners/one.yml", "policies/default.yml"] {
        let text = host.read(&format!("etc/jobfence/{file}"))?;
        Policy::parse_with(file, text.as_bytes(), &presets)?.job(None)?;
    }
    Ok(())
}

/// What stands for GitHub's runner: it goes on asking for an allowed and another host, and says how that
/// went.
const LISTENER: &str = "#!/bin/bash
while :; do
    said=
    for host in allowed blocked; do
        curl -sS -m 5 -o /dev/null https://$host.test/
        said+=\"$host $? \"
    done
    echo $said >last.new
    mv last.new last
    sleep 0.1
done
";

#[test]
fn under_systemd_a_runner_is_fenced_from_its_next_start_and_free_after_the_removal() -> Result<()> {
    let internet = Internet::new()?;
    let machine = Machine::boot(&internet)?;
    fenced_and_freed(&machine)?;
    let enabled = machine.sh("systemctl is-enabled jobfence-agent")?;
    assert_eq!(enabled.stdout.trim(), "disabled", "as it was before");
    assert!(!machine.path("/etc/jobfence").exists());
    Ok(())
}

#[test]
fn a_single_binary_brings_its_unit_and_takes_it_away() -> Result<()> {
    let internet = Internet::new()?;
    let machine = Machine::boot_bare(&internet)?;
    machine.copy(&binary()?, "/usr/local/bin/jobfence")?;
    fenced_and_freed(&machine)?;
    let unit = machine.sh("systemctl status jobfence-agent")?;
    assert_eq!(
        unit.status.code(),
        Some(4),
        "there is no such unit: {unit:?}"
    );
    assert!(!machine.path("/etc/jobfence").exists());
    Ok(())
}

/// Installs jobfence for a GitHub runner and takes it back, and sees what the runner reaches meanwhile.
fn fenced_and_freed(machine: &Machine) -> Result<()> {
    machine.write(
        "/etc/systemd/system/actions.runner.one.service",
        "[Service]\nUser=ci\nWorkingDirectory=/opt/one\nExecStart=/opt/one/run.sh\nKillMode=process\n",
    )?;
    machine.ok("mkdir -p /opt/one")?;
    for (file, text) in [
        ("run.sh", LISTENER),
        (
            ".runner",
            "{\"agentName\":\"one\",\"gitHubUrl\":\"https://allowed.test/group\"}",
        ),
        (".service", "actions.runner.one.service"),
    ] {
        machine.write(&format!("/opt/one/{file}"), text)?;
    }
    machine.ok("chmod 755 /opt/one/run.sh && chown -R ci: /opt/one")?;
    machine.ok("systemctl daemon-reload && systemctl start actions.runner.one")?;
    let last = machine.path("/opt/one/last");
    let is = |wanted: &str| {
        eventually(&format!("the runner says {wanted}"), || {
            fs::read_to_string(&last).is_ok_and(|said| said.trim() == wanted)
        });
    };
    let (free, fenced) = ("allowed 0 blocked 0", "allowed 0 blocked 6");
    is(free);

    let said = machine.ok("jobfence install github --runner-dir /opt/one")?;
    let restart = "systemctl restart jobfence-agent.service actions.runner.one.service";
    assert!(said.contains(restart), "{said}");
    // Its jobs may be running: they are not cut off.
    fs::remove_file(&last)?;
    is(free);
    let status = machine.sh("jobfence install status")?;
    assert_eq!(status.status.code(), Some(1), "{status:?}");

    machine.ok(restart)?;
    is(fenced);
    let status = machine.ok("jobfence install status --json")?;
    let status: Value = serde_json::from_str(&status)?;
    assert_eq!(status["runners"][0]["fenced"], true, "{status}");
    assert_eq!(status["problems"], Value::Array(Vec::new()), "{status}");
    let environment = machine.ok("systemctl show -p Environment actions.runner.one")?;
    assert!(environment.contains(STARTED), "{environment}");
    assert_eq!(
        machine.ok("systemctl is-enabled jobfence-agent")?.trim(),
        "enabled"
    );

    let said = machine.ok("jobfence uninstall")?;
    fs::remove_file(&last)?;
    is(fenced);
    for command in [
        "systemctl restart actions.runner.one.service",
        "systemctl stop jobfence-agent.service",
    ] {
        assert!(said.contains(command), "{command}: {said}");
        machine.ok(command)?;
        fs::remove_file(&last)?;
        is(free);
    }
    Ok(())
}
