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
const COMPLETED: &str = "ACTIONS_RUNNER_HOOK_JOB_COMPLETED=/etc/jobfence/hooks/github/completed.js";

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
    let shown = host.done(&["uninstall", "--dry-run"])?;
    assert_eq!(host.shape()?, installed);
    let done = host.done(&["uninstall"])?;
    let lines = |text: &str| {
        text.lines()
            .filter(|line| line.starts_with("    -"))
            .count()
    };
    assert!(lines(&shown) > 50 && lines(&done) == 0, "{shown}\n{done}");
    assert!(done.contains(&format!("remove /{DROP_IN}\n")), "{done}");
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

/// A job runs as the user whose folder the runner's is.
#[test]
fn what_a_job_writes_into_the_runners_folder_opens_nothing_at_the_next_installation() -> Result<()>
{
    let host = Host::new()?;
    host.done(ONE)?;
    let settings = "{\"agentName\":\"one\",\"gitHubUrl\":\"https://git.example.com/group\"";
    for (file, text, option) in [
        (
            ".runner",
            format!("{settings},\"serverUrlV2\":\"https://drop.test/\"}}"),
            "--platform-host",
        ),
        (
            ".runner",
            format!("{settings},\"serverUrl\":\"https://x.actions.test\"}}"),
            "--platform-host",
        ),
        (".runner", settings.replace("one", "deploy") + "}", "--name"),
        (
            ".service",
            "actions.runner.other.service".to_owned(),
            "--unit",
        ),
    ] {
        let path = format!("opt/one/{file}");
        let before = host.read(&path)?;
        host.put(
            "etc/systemd/system/actions.runner.other.service",
            "[Service]\nUser=alice\n",
        )?;
        host.put(&path, &text)?;
        let said = host.refused(ONE)?;
        assert!(
            said.contains(&format!("say so with {option}")),
            "{text}: {said}"
        );
        host.put(&path, &before)?;
    }
    fs::remove_file(host.path("opt/one/.service"))?;
    let said = host.refused(ONE)?;
    assert!(said.contains("the unit none, and named"), "{said}");
    assert_eq!(host.status()?.0, Some(0));

    // Root may say so.
    host.put("opt/one/.service", UNIT)?;
    host.put(
        "opt/one/.runner",
        &format!("{settings},\"serverUrlV2\":\"https://new.test/\"}}"),
    )?;
    let words: &[&str] = &["--platform-host", "new.test"];
    host.done(&[ONE, words].concat())?;
    assert!(
        host.read("etc/jobfence/runners/one.yml")?
            .contains("\"new.test\"")
    );
    let said = host.done(ONE)?;
    assert!(
        said.starts_with("Nothing to change.\n"),
        "it stays so: {said}"
    );
    Ok(())
}

#[test]
fn a_runners_folder_can_name_no_wildcard() -> Result<()> {
    let host = Host::new()?;
    let settings = "{\"agentName\":\"one\",\"gitHubUrl\":\"https://*.test/\",\"serverUrl\":\"https://*.example.com\"}";
    host.put("opt/one/.runner", settings)?;
    host.done(ONE)?;
    for policy in ["etc/jobfence/runners/one.yml", "etc/jobfence/host.yml"] {
        let policy = host.read(policy)?;
        assert!(
            policy.contains("github-actions") && !policy.contains('*'),
            "{policy}"
        );
    }
    Ok(())
}

#[test]
fn a_runner_does_not_get_a_policy_by_calling_itself_what_that_is_called() -> Result<()> {
    let host = Host::new()?;
    let wide = "version: 1\njobs: {default: {allow: [{cidr: 0.0.0.0/0}]}}\n";
    host.put("etc/jobfence/runners/one.yml", wide)?;
    let said = host.refused(ONE)?;
    assert!(said.contains("say so with --name one"), "{said}");
    let name: &[&str] = &["--name", "one"];
    host.done(&[ONE, name].concat())?;
    let policy = host.read("etc/jobfence/runners/one.yml")?;
    assert!(
        policy.contains("{cidr: 0.0.0.0/0}, {use: github-actions}"),
        "{policy}"
    );
    assert!(
        host.read(DROP_IN)?
            .contains("/etc/jobfence/runners/one.yml")
    );
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

/// Files of a service, each with what it says, and what is said of them, if anything.
type Surroundings<'a> = (&'a [(&'a str, &'a str)], Option<&'a str>);

/// What else can decide on a hook of the service [`UNIT`], beside its own drop-in.
const SURROUNDINGS: &[Surroundings<'_>] = &[
    // What a file of the environment says goes before what a unit says, whichever comes later.
    (
        &[
            (
                "etc/systemd/system/actions.runner.one.service.d/10.conf",
                "[Service]\nEnvironmentFile=-/etc/default/ci\n",
            ),
            (
                "etc/default/ci",
                "A=1\nACTIONS_RUNNER_HOOK_JOB_STARTED=\"/opt/x.js\"\n",
            ),
        ],
        Some(
            "/etc/default/ci sets ACTIONS_RUNNER_HOOK_JOB_STARTED: take it out there. As an EnvironmentFile= of /etc/systemd/system/actions.runner.one.service.d/10.conf",
        ),
    ),
    (
        &[
            (
                "run/systemd/system/service.d/all.conf",
                "[Service]\nEnvironmentFile=-/etc/ci/%N/*.env\n",
            ),
            ("etc/ci/actions.runner.one/a.env", "A=1\n"),
            (
                "etc/ci/actions.runner.one/b.env",
                "ACTIONS_RUNNER_HOOK_JOB_STARTED=/opt/x.js\n",
            ),
        ],
        Some("b.env sets"),
    ),
    (
        &[(
            "etc/systemd/system/actions.runner.one.service.d/own.conf",
            "[Service]\nEnvironment=A=1 \\\n# more\n  'ACTIONS_RUNNER_HOOK_JOB_STARTED=/opt/x.js'\n",
        )],
        Some("own.conf sets"),
    ),
    (
        &[(
            "etc/systemd/system/actions.runner.one.service.d/own.conf",
            "[Service]\nEnvironment=\n",
        )],
        Some("the empty Environment= of /etc/systemd/system/actions.runner.one.service.d/own.conf"),
    ),
    (
        &[(
            "etc/systemd/system/actions.runner.one.service.d/10.conf",
            "[Service]\nUnsetEnvironment=B ACTIONS_RUNNER_HOOK_JOB_STARTED\n",
        )],
        Some("10.conf takes ACTIONS_RUNNER_HOOK_JOB_STARTED away"),
    ),
    // What is taken back, is hidden, comes too early or says the same is in nobody's way.
    (
        &[
            (
                "etc/systemd/system/actions.runner.one.service.d/10.conf",
                "[Service]\nEnvironmentFile=/etc/default/ci\nEnvironmentFile=\nEnvironment=ACTIONS_RUNNER_HOOK_JOB_STARTED=/opt/x.js\nEnvironment=\n",
            ),
            (
                "run/systemd/system/actions.runner.one.service.d/10.conf",
                "[Service]\nEnvironmentFile=/etc/default/ci\n",
            ),
            (
                "etc/systemd/system/actions.runner.one.service.d/20.conf",
                "[Service]\nUnsetEnvironment=ACTIONS_RUNNER_HOOK_JOB_STARTED=/opt/x.js OTHER\nEnvironmentFile=-/none\nEnvironmentFile=/etc/default/same\n",
            ),
            (
                "etc/default/ci",
                "ACTIONS_RUNNER_HOOK_JOB_STARTED=/opt/x.js\n",
            ),
            ("etc/default/same", STARTED),
        ],
        None,
    ),
];

#[test]
fn what_else_decides_on_a_services_hook_is_found() -> Result<()> {
    for (files, found) in SURROUNDINGS {
        let host = Host::new()?;
        for (path, text) in *files {
            host.put(path, text)?;
        }
        let Some(found) = found else {
            host.done(ONE)?;
            let (code, status) = host.status()?;
            assert_eq!(code, Some(0), "{files:?}: {status}");
            continue;
        };
        let said = host.refused(&[ONE, &["--replace"]].concat())?;
        assert!(said.contains(found), "{files:?}: {said}");
        for (path, _) in *files {
            fs::remove_file(host.path(path))?;
        }
        host.done(ONE)?;
        assert_eq!(host.status()?.0, Some(0));
        for (path, text) in *files {
            host.put(path, text)?;
        }
        let (code, status) = host.status()?;
        assert_eq!(code, Some(1), "{files:?}: {status}");
        let problem = status["problems"][0].as_str().context("a problem")?;
        assert!(problem.contains(found), "{problem}");
        // The runner puts what is in this file in place of what the service has.
        host.put(ENV, &format!("{STARTED}\n{COMPLETED}\n"))?;
        host.give(ENV, ALICE)?;
        assert_eq!(host.status()?.0, Some(0), "{files:?}");
    }
    Ok(())
}

#[test]
fn buildkites_hooks_are_where_its_service_looks_for_them() -> Result<()> {
    for (unit, environment, found) in [
        ("", "", None),
        (
            "Environment=BUILDKITE_HOOKS_PATH=/srv/hooks\n",
            "",
            Some("sets BUILDKITE_HOOKS_PATH"),
        ),
        (
            "",
            "BUILDKITE_HOOKS_PATH=/srv/hooks\n",
            Some("/etc/default/bk sets BUILDKITE_HOOKS_PATH"),
        ),
        (
            "",
            "BUILDKITE_HOOKS_PATH=/etc/buildkite-agent/hooks\n",
            None,
        ),
        (
            "ExecStart=\nExecStart=/usr/bin/buildkite-agent start --hooks-path \"/srv/hooks\"\n",
            "",
            Some("with --hooks-path /srv/hooks"),
        ),
        // An option goes before the variable.
        (
            "ExecStart=/usr/bin/buildkite-agent start --hooks-path=/etc/buildkite-agent/hooks\n",
            "BUILDKITE_HOOKS_PATH=/srv/hooks\n",
            None,
        ),
    ] {
        let host = Host::new()?;
        host.put(
            "etc/systemd/system/buildkite-agent.service",
            &format!("[Service]\nExecStart=/usr/bin/buildkite-agent start\nUser=alice\nEnvironmentFile=/etc/default/bk\n{unit}"),
        )?;
        host.put("etc/default/bk", environment)?;
        fs::create_dir_all(host.path("etc/buildkite-agent/hooks"))?;
        let install = &["install", "buildkite"];
        match found {
            None => {
                host.done(install)?;
                assert_eq!(host.status()?.0, Some(0), "{unit}, {environment}");
            }
            Some(found) => {
                let said = host.refused(install)?;
                assert!(said.contains(found), "{said}");
                assert!(said.contains("are in /etc/buildkite-agent/hooks"), "{said}");
            }
        }
    }
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
fn a_part_of_ours_that_was_changed_stays_with_its_runner_and_goes_with_it() -> Result<()> {
    let host = Host::new()?;
    let before = host.shape()?;
    host.done(ONE)?;
    let policy = "etc/jobfence/runners/one.yml";
    let edited = [
        (DROP_IN, host.read(DROP_IN)? + "Nice=5\n", "    +Nice=5\n"),
        (
            policy,
            host.read(policy)? + "      - host: own.test\n",
            "    +      - host: own.test\n",
        ),
        (
            "etc/jobfence/hooks/github/started.js",
            "own();\n".to_owned(),
            "    +own();\n",
        ),
    ];
    for (path, text, _) in &edited {
        host.put(path, text)?;
    }
    let (code, status) = host.status()?;
    assert_eq!(code, Some(1), "{status}");
    let said = host.done(ONE)?;
    assert!(
        said.contains("jobfence.conf: was changed since, and stays"),
        "{said}"
    );
    for (path, text, _) in &edited {
        assert_eq!(host.read(path)?, *text);
    }
    // Without it, none of them is of any use.
    let said = host.done(&["uninstall"])?;
    for (_, _, change) in &edited {
        assert!(said.contains(change), "no {change:?}: {said}");
    }
    assert_eq!(host.shape()?, before);
    assert_eq!(host.status()?.0, Some(2));
    Ok(())
}

#[test]
fn the_agents_own_folder_is_not_taken_from_under_it() -> Result<()> {
    let unit = "usr/lib/systemd/system/jobfence-agent.service";
    let host = Host::new()?;
    for folder in [
        "var/lib/jobfence",
        "var/log/jobfence",
        "run/jobfence",
        "etc/jobfence",
    ] {
        fs::create_dir_all(host.path(folder))?;
    }
    let before = host.shape()?;
    assert_eq!(host.done(&["uninstall"])?, "Nothing is installed.\n");
    assert_eq!(host.shape()?, before, "nothing was installed");
    host.put(unit, "[Service]\n")?;
    let before = host.shape()?;
    host.done(&["uninstall"])?;
    host.done(ONE)?;
    host.done(&["uninstall"])?;
    assert_eq!(host.shape()?, before, "they were there before");
    // Made by an installation, and by now that of an agent that was started.
    let host = Host::new()?;
    host.put(unit, "[Service]\n")?;
    host.done(ONE)?;
    host.done(&["uninstall"])?;
    assert!(host.path("var/lib/jobfence").is_dir());
    assert!(!host.path("etc/jobfence").exists());
    Ok(())
}

#[test]
fn where_our_part_cannot_be_told_the_whole_runner_stays() -> Result<()> {
    let host = Host::new()?;
    host.put(AGENT_YML, "runners: [bob]\n")?;
    let before = host.shape()?;
    host.done(ONE)?;
    // At our lines, in the middle of them.
    let agent = host.read(AGENT_YML)?;
    let agent = agent.replace("[bob, alice]", "[alice, carol]") + "    - carol\n";
    host.put(AGENT_YML, &agent)?;
    let edited = host.shape()?;
    for words in [
        &["uninstall", "--dry-run"][..],
        &["uninstall"],
        &["uninstall", "github", "--name", "one"],
    ] {
        let output = host.jobfence(words)?;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said =
            "/etc/jobfence/agent.yml: was changed since where jobfence had written: it stays";
        assert!(output.stdout.contains(said), "{output:?}");
        let mut now = host.shape()?;
        now.insert(host.path(RECORD), edited[&host.path(RECORD)].clone());
        assert_eq!(now, edited, "{words:?}: half of it is gone");
        if words.len() == 4 {
            let command = "\n    jobfence uninstall github --name \"one\" --force\n";
            assert!(output.stdout.contains(command), "{output:?}");
        }
    }
    let (_, status) = host.status()?;
    assert_eq!(status["runners"][0]["name"], "one", "{status}");
    host.done(&["uninstall", "github", "--name", "one", "--force"])?;
    assert_eq!(host.shape()?, before);
    Ok(())
}

#[test]
fn variables_are_taken_out_of_a_file_that_was_changed_around_them() -> Result<()> {
    let host = two_without_units()?;
    host.put(ENV, "A=1\nACTIONS_RUNNER_HOOK_JOB_STARTED=/opt/own.js\n")?;
    host.give(ENV, ALICE)?;
    host.done(&[ONE, &["--replace"]].concat())?;
    let text = format!("{COMPLETED}\nA=2\n{STARTED}\nB=3");
    fs::write(host.path(ENV), text)?;
    assert_eq!(host.status()?.0, Some(0));
    host.done(&["uninstall"])?;
    let text = "A=2\nACTIONS_RUNNER_HOOK_JOB_STARTED=/opt/own.js\nB=3";
    assert_eq!(host.read(ENV)?, text);
    assert_eq!(host.status()?.0, Some(2));
    Ok(())
}

#[test]
fn what_cannot_be_written_keeps_what_it_names() -> Result<()> {
    let host = Host::new()?;
    let config = "[[runners]]\n  name = \"a\"\n  executor = \"shell\"\n";
    host.put(GITLAB, config)?;
    let before = host.shape()?;
    host.done(&["install", "gitlab", "--name", "a", "--user", "alice"])?;
    let block = host.path("etc/gitlab-runner/.config.toml.jobfence-new");
    fs::create_dir(&block)?;
    for words in [&["uninstall"][..], &["uninstall", "gitlab", "--force"]] {
        let output = host.jobfence(words)?;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = "a.yml: stays as it is: /etc/gitlab-runner/config.toml may need it";
        assert!(output.stdout.contains(said), "{output:?}");
        assert!(host.path("etc/jobfence/runners/a.yml").exists());
        assert!(host.path("etc/jobfence/agent.yml").exists());
        let (_, status) = host.status()?;
        assert!(
            status.to_string().contains("uninstall gitlab --name a`"),
            "{status}"
        );
    }
    fs::remove_dir(&block)?;
    host.done(&["uninstall", "gitlab", "--name", "a", "--force"])?;
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

/// Two runners that have their hooks from a file in their folders.
fn two_without_units() -> Result<Host> {
    let host = Host::new()?;
    host.runner("two", "bob", BOB)?;
    for (name, uid) in [("one", ALICE), ("two", BOB)] {
        fs::remove_file(host.path(&format!("opt/{name}/.service")))?;
        let env = format!("opt/{name}/.env");
        host.put(&env, "A=1\n")?;
        host.give(&env, uid)?;
    }
    Ok(host)
}

#[test]
fn what_cannot_be_restored_keeps_nothing_else_from_it_and_is_finished_later() -> Result<()> {
    let host = two_without_units()?;
    let mut before = host.shape()?;
    host.done(ONE)?;
    host.done(TWO)?;
    // One that is found out before anything is changed, and one that is not.
    let one = host.path(ENV);
    fs::remove_file(&one)?;
    symlink("/etc/passwd", &one)?;
    let block = host.path("opt/two/..env.jobfence-new");
    fs::create_dir(&block)?;

    for words in [&["uninstall"][..], &["uninstall", "github"]] {
        let output = host.jobfence(words)?;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        for said in [
            "/opt/one/.env: stays as it is: /opt/one/.env is a symbolic link",
            "/opt/two/.env: stays as it is: cannot remove /opt/two/..env.jobfence-new: ",
            "Not all is taken back",
        ] {
            assert!(output.stdout.contains(said), "no {said:?}: {output:?}");
        }
        let mut now = host.shape()?;
        let mut wanted = before.clone();
        for shape in [&mut now, &mut wanted] {
            let left = ["opt/one/.env", "opt/two/.env", "opt/two/..env.jobfence-new"];
            let left = left.map(|path| host.path(path));
            shape.retain(|path, _| !left.contains(path) && !path.starts_with(host.path("var")));
        }
        assert_eq!(now, wanted, "the rest is back");
        let record: Value = serde_json::from_str(&host.read(RECORD)?)?;
        let files = record["files"].as_object().context("files")?;
        let files: Vec<_> = files.keys().collect();
        assert_eq!(files, ["/opt/one/.env", "/opt/two/.env"]);
        let (code, status) = host.status()?;
        assert_eq!(code, Some(1), "{status}");
        let uninstall = "jobfence uninstall github --name two";
        assert!(status.to_string().contains(uninstall), "{status}");
    }

    // One is finished, and is not told of any more.
    fs::remove_file(&one)?;
    let output = host.jobfence(&["uninstall", "github", "--name", "one"])?;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = "/opt/one/.env: was removed since, and stays so";
    assert!(output.stdout.contains(said), "{output:?}");
    let (_, status) = host.status()?;
    assert!(!status.to_string().contains("--name one"), "{status}");
    fs::remove_dir(&block)?;
    host.done(&["uninstall", "github", "--name", "two"])?;
    before.remove(&one);
    assert_eq!(host.shape()?, before);
    assert_eq!(host.status()?.0, Some(2));
    Ok(())
}

#[test]
fn one_runners_file_is_in_the_way_of_no_other_that_goes_or_stays() -> Result<()> {
    let host = two_without_units()?;
    let shape_of_two = |host: &Host| -> Result<Vec<Shape>> {
        let shape = host.shape()?;
        let two = shape
            .into_iter()
            .filter(|(path, _)| path.starts_with(host.path("opt/two")));
        Ok(two.map(|(_, shape)| shape).collect())
    };
    host.done(ONE)?;
    host.done(TWO)?;
    let (env, installed) = (host.path(ENV), host.read(ENV)?);
    let two = shape_of_two(&host)?;
    // The one that stays.
    fs::remove_file(&env)?;
    symlink("/etc/passwd", &env)?;
    let said = host.done(&["uninstall", "github", "--name", "two"])?;
    assert!(said.contains("/opt/one/.env: stays as it is"), "{said}");
    assert_eq!(host.read("opt/two/.env")?, "A=1\n");
    let agent = host.read(AGENT_YML)?;
    assert!(
        agent.contains("- alice") && !agent.contains("- bob"),
        "{agent}"
    );
    host.done(TWO)
        .expect_err("an installation sees to all of them");
    // The one that goes.
    fs::remove_file(&env)?;
    host.put(ENV, &installed)?;
    host.give(ENV, ALICE)?;
    host.done(TWO)?;
    assert_eq!(shape_of_two(&host)?, two);
    fs::remove_file(&env)?;
    symlink("/etc/passwd", &env)?;
    let uninstall = &["uninstall", "github", "--name", "one"];
    assert_eq!(host.jobfence(uninstall)?.status.code(), Some(1));
    let output = host.jobfence(&["uninstall", "--dry-run"])?;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let agent = host.read(AGENT_YML)?;
    assert!(
        !agent.contains("- alice") && agent.contains("- bob"),
        "{agent}"
    );
    fs::remove_file(&env)?;
    host.done(uninstall)?;
    assert_eq!(shape_of_two(&host)?, two);
    assert_eq!(host.status()?.0, Some(0));
    let said = host.refused(uninstall)?;
    assert!(said.contains("no such runner"), "{said}");
    // Installed again, it is none that is leaving.
    host.put(ENV, "A=1\n")?;
    host.give(ENV, ALICE)?;
    host.done(ONE)?;
    assert_eq!(host.status()?.0, Some(0));
    Ok(())
}

#[test]
fn a_runner_whose_folder_is_gone_gets_none_again() -> Result<()> {
    let host = two_without_units()?;
    host.done(ONE)?;
    host.done(TWO)?;
    fs::remove_dir_all(host.path("opt/two"))?;
    let (code, status) = host.status()?;
    assert_eq!(code, Some(1));
    let said = "/opt/two is gone: if the runner two is, `jobfence uninstall github --name two`";
    assert!(status.to_string().contains(said), "{status}");
    host.done(ONE)?;
    host.done(&["uninstall", "github", "--name", "one"])?;
    assert!(!host.path("opt/two").exists());
    host.done(&["uninstall", "github", "--name", "two"])?;
    assert!(!host.path("opt/two").exists());
    assert_eq!(host.status()?.0, Some(2));
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
    for (folder, said) in [
        ("/opt/typo", "there is no folder /opt/typo"),
        ("/opt", "is this where config.sh was called?"),
    ] {
        let error = host.refused(&["install", "github", "--runner-dir", folder])?;
        assert!(error.contains(said), "{error}");
    }
    Ok(())
}

#[test]
fn a_runner_of_root_is_refused() -> Result<()> {
    let host = Host::new()?;
    host.runner("two", "root", 0)?;
    for words in [TWO, &[TWO, &["--user", "alice"]].concat()] {
        let said = host.refused(words)?;
        assert!(
            said.contains("runs as root") && !said.contains("--user"),
            "{said}"
        );
    }
    // Without `User=`.
    host.put("etc/systemd/system/w.service", "[Service]\nExecStart=/w\n")?;
    let said = host.refused(&[
        "install",
        "buildbot",
        "--unit",
        "w.service",
        "--user",
        "bob",
    ])?;
    assert!(said.contains("w.service runs as root"), "{said}");
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
    host.put("home/bk/hooks/x", "")?;
    host.give("home/bk", ALICE)?;
    for named in ["/etc/cron.d", "/home/bk/../../etc/cron.d"] {
        let config = "home/bk/buildkite-agent.cfg";
        host.put(config, &format!("hooks-path=\"{named}\"\n"))?;
        host.give(config, ALICE)?;
        // Also where the folder is root's, and the file is not.
        for owner in [ALICE, 0] {
            host.give("home/bk", owner)?;
            let said = host.refused(&["install", "buildkite", "--runner-dir", "/home/bk"])?;
            assert!(
                said.contains("cron.d, which belongs to user 0"),
                "{named}: {said}"
            );
        }
    }
    // Nor by a link.
    fs::remove_file(host.path("home/bk/buildkite-agent.cfg"))?;
    fs::remove_dir_all(host.path("home/bk/hooks"))?;
    symlink("/etc/cron.d", host.path("home/bk/hooks"))?;
    host.give("home/bk", ALICE)?;
    let said = host.refused(&["install", "buildkite", "--runner-dir", "/home/bk"])?;
    assert!(said.contains("symbolic link"), "{said}");
    Ok(())
}

/// Buildkite's agent of alice's, with its configuration and hooks.
fn buildkite(owner: u32) -> Result<Host> {
    let host = Host::new()?;
    host.put(
        "etc/systemd/system/buildkite-agent.service",
        "[Service]\nUser=alice\n",
    )?;
    host.put("etc/buildkite-agent/buildkite-agent.cfg", "tags=\"a=b\"\n")?;
    host.put("etc/buildkite-agent/hooks/pre-exit", "echo theirs\n")?;
    for path in ["", "/buildkite-agent.cfg", "/hooks", "/hooks/pre-exit"] {
        host.give(&format!("etc/buildkite-agent{path}"), owner)?;
    }
    Ok(host)
}

#[test]
fn buildkites_folders_can_change_hands() -> Result<()> {
    const CONFIG: &str = "etc/buildkite-agent";
    const HOOKS: &str = "etc/buildkite-agent/hooks";
    let install = &["install", "buildkite"];
    for (first, given, then) in [
        (ALICE, &[HOOKS][..], 0),
        (ALICE, &[CONFIG, HOOKS], 0),
        (0, &[HOOKS], ALICE),
        (0, &[CONFIG, HOOKS], ALICE),
    ] {
        for files in [false, true] {
            let host = buildkite(first)?;
            let said = host.done(install)?;
            let advice = "`chown root: /etc/buildkite-agent /etc/buildkite-agent/hooks`";
            assert_eq!(said.contains(advice), first != 0, "{said}");
            for folder in given {
                host.give(folder, then)?;
            }
            if files {
                for file in fs::read_dir(host.path(HOOKS))? {
                    chown(file?.path(), Some(then), Some(then))?;
                }
            }
            let case = format!("{first} -> {then}: {given:?}, files {files}");
            if given.len() == 1 && then != 0 {
                // Root's configuration may name any folder.
            } else {
                host.done(install).context(case.clone())?;
            }
            host.done(install).context(case.clone())?;
            let (code, status) = host.status()?;
            assert_eq!(code, Some(0), "{case}: {status}");
            assert_eq!(
                host.path(HOOKS).join("environment").metadata()?.uid(),
                then,
                "{case}"
            );
            assert!(
                host.done(install)?.starts_with("Nothing to change.\n"),
                "{case}"
            );
            host.done(&["uninstall"]).context(case.clone())?;
            assert_eq!(host.read(&format!("{HOOKS}/pre-exit"))?, "echo theirs\n");
            assert_eq!(fs::read_dir(host.path(HOOKS))?.count(), 1, "{case}");
        }
    }
    // Also when nothing was installed in between.
    for (first, then) in [(ALICE, 0), (0, ALICE)] {
        let host = buildkite(first)?;
        host.done(install)?;
        host.give(HOOKS, then)?;
        host.done(&["uninstall"])?;
        assert_eq!(fs::read_dir(host.path(HOOKS))?.count(), 1);
    }
    Ok(())
}

#[test]
fn a_hook_that_was_moved_comes_back_as_it_is_by_now() -> Result<()> {
    let host = buildkite(0)?;
    let hooks = "etc/buildkite-agent/hooks";
    host.done(&["install", "buildkite"])?;
    let wrapper = format!("{hooks}/pre-exit");
    host.put(&wrapper, &(host.read(&wrapper)? + "echo more\n"))?;
    host.put(&format!("{wrapper}.before-jobfence"), "echo newer\n")?;
    let said = host.done(&["install", "buildkite"])?;
    assert!(!said.contains("before-jobfence: "), "it is theirs: {said}");
    let said = host.done(&["uninstall", "buildkite"])?;
    assert!(said.contains("    +echo more\n"), "{said}");
    assert_eq!(host.read(&wrapper)?, "echo newer\n");
    assert_eq!(fs::read_dir(host.path(hooks))?.count(), 1);
    // One that was removed comes back as well.
    host.done(&["install", "buildkite"])?;
    fs::remove_file(host.path(&wrapper))?;
    host.done(&["uninstall", "buildkite"])?;
    assert_eq!(host.read(&wrapper)?, "echo newer\n");
    Ok(())
}

#[test]
fn who_would_be_cut_off_is_told_of_before() -> Result<()> {
    let host = Host::new()?;
    host.runner("two", "alice", ALICE)?;
    host.runner("three", "bob", BOB)?;
    host.put(
        "etc/gitlab-runner/config.toml",
        "[[runners]]\nname = \"a\"\nexecutor = \"shell\"\n[[runners]]\nname = \"b\"\nexecutor = \"shell\"\n[[runners]]\nname = \"c\"\nexecutor = \"docker\"\n",
    )?;
    let told = |words: &[&str]| -> Result<String> {
        let said = host.done(words)?;
        let line = said.lines().find(|line| line.starts_with("Careful: "));
        Ok(line.unwrap_or_default().to_owned())
    };
    for dry in [&["--dry-run"][..], &[]] {
        let line = told(&[ONE, dry].concat())?;
        assert!(
            line.contains("run as alice") && line.ends_with(": actions.runner.two.service"),
            "{line}"
        );
    }
    assert_eq!(told(TWO)?, "");
    let gitlab = ["install", "gitlab", "--user", "bob", "--name"];
    let line = told(&[&gitlab[..], &["a"]].concat())?;
    assert!(
        line.ends_with(
            ": [[runners]] \"b\" of /etc/gitlab-runner/config.toml, actions.runner.three.service"
        ),
        "{line}"
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
    let policy = "etc/jobfence/runners/one.yml";
    let written = host.read(policy)?;
    host.put(policy, &(written.clone() + "# ours\n"))?;
    host.done(&[ONE, &["--name", "two"]].concat())?;
    assert!(host.read(policy)?.ends_with("# ours\n"), "it may be wanted");
    fs::remove_file(host.path(policy))?;
    host.done(&[ONE, &["--name", "one"]].concat())?;
    assert_eq!(host.read(policy)?, written);
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
    // The agent's own folder, which stays once it is there.
    fs::create_dir_all(host.path("var/lib/jobfence"))?;
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
    let said = host.done(install)?;
    assert!(said.starts_with("Nothing to change.\n"), "{said}");
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

const GITLAB: &str = "etc/gitlab-runner/config.toml";

/// What GitLab Runner makes of its configuration when it writes it: another order, no comments.
fn encoded(text: &str) -> String {
    let (mut encoded, mut keys) = (String::new(), Vec::new());
    for line in text.lines().chain(["["]) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.starts_with('[') {
            keys.sort_unstable();
            keys.reverse();
            encoded.extend(keys.drain(..).map(|key| format!("      {key}\n")));
            encoded += &format!("\n{line}\n");
        } else if !line.is_empty() {
            keys.push(line);
        }
    }
    encoded.trim_end_matches("[\n").to_owned()
}

/// The sections of runners in it.
fn sections(config: &str) -> Vec<&str> {
    config.split("[[runners]]").skip(1).collect()
}

#[test]
fn a_configuration_that_gitlab_runner_has_written_anew_is_known_and_taken_back() -> Result<()> {
    let host = Host::new()?;
    let section = |name: &str| {
        format!(
            "[[runners]]\n  # {name}\n  name = \"{name}\"\n  url = \"https://gitlab.example.com/\"\n  token = \"old\"\n  executor = \"shell\" # for now\n  [runners.cache]\n    Type = \"s3\"\n"
        )
    };
    host.put(GITLAB, &format!("concurrent = 2 # two\n{}", section("a")))?;
    let install = |name| ["install", "gitlab", "--user", "alice", "--name", name];
    host.done(&install("a"))?;
    // It gets another token, its administrator sets something beside ours, and another one is registered.
    let now = encoded(&host.read(GITLAB)?).replace("\"old\"", "\"new\"");
    let now = now.replace("name = \"a\"", "name = \"a\"\nlimit = 3");
    host.put(GITLAB, &(now + &section("b")))?;
    let (code, status) = host.status()?;
    assert_eq!(code, Some(0), "{status}");
    assert!(status.to_string().contains("\"edited\""), "{status}");
    let status = host.done(&["install", "status"])?;
    assert!(status.contains("  edited: others have"), "{status}");
    let same = host.shape()?;
    let said = host.done(&install("a"))?;
    assert!(said.starts_with("Nothing to change.\n"), "{said}");
    assert!(
        host.done(&[&install("a")[..], &["--replace"]].concat())?
            .starts_with("Nothing to change.\n")
    );
    assert_eq!(host.shape()?, same);
    host.done(&install("b"))?;
    let config = host.read(GITLAB)?;
    for section in sections(&config) {
        assert!(section.contains("executor = \"custom\"\n") || section.contains("\"custom\" #"));
    }

    host.put(GITLAB, &encoded(&host.read(GITLAB)?))?;
    host.done(&["uninstall", "gitlab", "--name", "a"])?;
    let config = host.read(GITLAB)?;
    let [a, b] = sections(&config)[..] else {
        panic!("two runners: {config}");
    };
    for line in ["executor = \"shell\"\n", "token = \"new\"\n", "limit = 3\n"] {
        assert!(a.contains(line), "no {line:?}: {a}");
    }
    for key in ["custom", "builds_dir", "cache_dir", "jobfence"] {
        assert!(!a.contains(key) && b.contains(key), "{key}: {config}");
    }
    assert_eq!(host.status()?.0, Some(0));

    // Also with --force nothing of theirs is lost. Who has another driver by now keeps it.
    host.done(&install("a"))?;
    let text = encoded(&host.read(GITLAB)?).replace("\"new\"", "\"newest\"");
    let text = text.replace("\"--user\", \"alice\"", "\"--user\", \"bob\"");
    host.put(GITLAB, &text)?;
    host.done(&["uninstall", "--force"])?;
    let text = host.read(GITLAB)?;
    assert!(
        !text.contains("jobfence") && text.contains("newest"),
        "{text}"
    );
    assert_eq!(text.matches("\"shell\"").count(), 2, "{text}");
    assert_eq!(host.status()?.0, Some(2));

    host.done(&install("b"))?;
    let text = host
        .read(GITLAB)?
        .replace("name = \"b\"", "name = \"renamed\"");
    host.put(GITLAB, &text)?;
    let (_, status) = host.status()?;
    assert!(
        status
            .to_string()
            .contains("`jobfence uninstall gitlab --name b`"),
        "{status}"
    );
    host.done(&["uninstall", "gitlab", "--name", "b"])?;
    assert!(!host.read(GITLAB)?.contains("jobfence"), "the same one");
    Ok(())
}

#[test]
fn a_runner_that_gitlab_does_not_know_any_more_is_in_no_others_way() -> Result<()> {
    let host = Host::new()?;
    let section = |name| format!("[[runners]]\n  name = \"{name}\"\n  executor = \"shell\"\n");
    host.put(GITLAB, &(section("a") + &section("b") + &section("c")))?;
    let install = |name| ["install", "gitlab", "--user", "alice", "--name", name];
    host.done(&install("a"))?;
    host.done(&install("b"))?;
    let text = host.read(GITLAB)?;
    let at = text.rfind("[[runners]]").context("c")?;
    let b = text.find("name = \"b\"").context("b")?;
    let b = text[..b].rfind("[[runners]]").context("its section")?;
    host.put(GITLAB, &text[b..])?;
    assert!(at > b);
    host.done(&install("c"))?;
    host.done(&["uninstall", "gitlab", "--name", "b"])?;
    let text = host.read(GITLAB)?;
    let [b, c] = sections(&text)[..] else {
        panic!("two runners: {text}");
    };
    assert!(!b.contains("jobfence") && c.contains("jobfence"), "{text}");
    host.done(&["uninstall", "gitlab", "--name", "a"])?;

    // Nothing is put in place of what cannot be read.
    let broken = text + "[[\n";
    host.put(GITLAB, &broken)?;
    for words in [&["uninstall"][..], &["uninstall", "--force"]] {
        let output = host.jobfence(words)?;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(
            output.stdout.contains("config.toml: cannot be understood")
                && !output.stdout.contains("\n    jobfence uninstall"),
            "{output:?}"
        );
        assert_eq!(host.read(GITLAB)?, broken);
        assert!(host.path("etc/jobfence/runners/c.yml").exists());
    }
    host.put(GITLAB, broken.trim_end_matches("[[\n"))?;
    host.done(&["uninstall"])?;
    assert_eq!(host.read(GITLAB)?, section("b") + &section("c"));
    assert_eq!(host.status()?.0, Some(2));
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
    let said = host.done(install)?;
    assert!(said.starts_with("Nothing to change.\n"), "{said}");
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
    assert!(!host.read(file)?.contains("nothing yet"));
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
    let said = host.done(install)?;
    assert!(said.starts_with("Nothing to change.\n"), "{said}");
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
    let policy = host.read("etc/jobfence/runners/w.yml")?;
    assert!(!policy.contains("policies of their own"), "{policy}");
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
    fs::create_dir_all(host.path("var/lib/jobfence"))?;
    let before = host.shape()?;
    let said = host.done(&["install", "generic"])?;
    assert!(!said.contains("the runner has no job"), "{said}");
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
    // Nothing is there to be taken back, least of all the folders of the agent.
    machine.ok("systemctl start jobfence-agent && jobfence uninstall")?;
    machine.write("/root/p.yml", "version: 1\njobs: {default: {}}\n")?;
    machine.ok(
        "sleep 60 & jobfence job start --id one --pid $! --policy /root/p.yml && jobfence job finish one",
    )?;
    machine.ok("systemctl stop jobfence-agent")?;
    let status = machine.sh_with(&["--uid=ci"], "jobfence install status")?;
    assert!(status.stderr.contains("run this with sudo"), "{status:?}");
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

/// Has a GitHub runner, which `script` stands for, on a machine, and starts it.
fn lay_out(machine: &Machine, script: &str) -> Result<()> {
    machine.write(
        "/etc/systemd/system/actions.runner.one.service",
        "[Service]\nUser=ci\nWorkingDirectory=/opt/one\nExecStart=/opt/one/run.sh\nKillMode=process\n",
    )?;
    machine.ok("mkdir -p /opt/one")?;
    for (file, text) in [
        ("run.sh", script),
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
    Ok(())
}

/// Installs jobfence for a GitHub runner and takes it back, and sees what the runner reaches meanwhile.
fn fenced_and_freed(machine: &Machine) -> Result<()> {
    lay_out(machine, LISTENER)?;
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

    // What is in the file counts once the agent has read it.
    machine.ok(
        "cp -p /etc/jobfence/agent.yml /root/ && echo 'refs: [main]' >>/etc/jobfence/agent.yml",
    )?;
    let stale = machine.sh("jobfence install status")?;
    assert_eq!(stale.status.code(), Some(1), "{stale:?}");
    let older =
        "the agent goes by an older /etc/jobfence/agent.yml: `systemctl reload jobfence-agent";
    assert!(stale.stdout.contains(older), "{stale:?}");
    machine.ok("systemctl reload jobfence-agent")?;
    eventually("the agent goes by its file", || {
        let status = machine.sh("jobfence install status");
        status.is_ok_and(|status| status.status.success())
    });
    machine.ok("mv /root/agent.yml /etc/jobfence/")?;

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

#[test]
fn a_runner_whose_fence_fails_does_not_go_on_without_it() -> Result<()> {
    let internet = Internet::new()?;
    let machine = Machine::boot(&internet)?;
    // As GitHub's, which waits for what it has started: another process, and a job.
    let script = "#!/bin/bash\nsleep 3601 &\n(until grep -q jobfence-runner /proc/self/cgroup; do sleep 0.1; \
                  done\njobfence job start --id u$UID-$$ --pid $BASHPID --policy \
                  /etc/jobfence/policies/default.yml\nexec sleep 3602) &\nwait\n";
    lay_out(&machine, script)?;
    machine.ok("jobfence install github --runner-dir /opt/one")?;
    machine.ok("systemctl restart jobfence-agent actions.runner.one")?;
    let kill_mode = machine.ok("systemctl show -P KillMode actions.runner.one")?;
    assert_eq!(kill_mode.trim(), "mixed");
    // A job goes on when its runner is started again.
    let job = || -> Result<String> {
        let list =
            machine.sh("jobfence job list | grep -q '^u[0-9]' && pgrep -u ci -f 'sleep 3602'")?;
        Ok(list.stdout.trim().to_owned())
    };
    eventually("the runner has a job", || {
        job().is_ok_and(|pid| !pid.is_empty())
    });
    let first = job()?;
    machine.ok("systemctl restart actions.runner.one")?;
    assert!(job()?.lines().any(|pid| pid == first), "it was ended");

    machine.ok("systemctl stop actions.runner.one && mv /etc/jobfence/runners/one.yml /root/")?;
    let failed = machine.sh("systemctl start actions.runner.one")?;
    assert!(!failed.status.success(), "{failed:?}");
    let state = machine.sh("systemctl is-active actions.runner.one")?;
    assert_eq!(state.stdout.trim(), "failed");
    eventually("nothing of the runner is left", || {
        // A job of an earlier one may go on.
        let left = machine.sh("ps -u ci -o args= | grep -v -e 'sleep 3602' -e '^ps '");
        left.is_ok_and(|left| left.stdout.trim().is_empty())
    });

    // A template has every instance, also one that nobody meant.
    machine.write(
        "/etc/systemd/system/w@.service",
        "[Service]\nUser=ci\nExecStart=sleep 3603\n[Install]\nWantedBy=multi-user.target\n",
    )?;
    let install = "jobfence install buildbot --dry-run --unit";
    let said = machine.ok(&format!("{install} w@typo.service"))?;
    assert!(
        said.contains("w@typo.service is neither enabled nor running"),
        "{said}"
    );
    machine.ok("systemctl start w@one")?;
    let said = machine.ok(&format!("{install} w@one.service"))?;
    assert!(!said.contains("neither"), "{said}");
    Ok(())
}

/// What stands for GitHub's runner: it has the environment that systemd gives it.
const IDLE: &str = "#!/bin/sh\nexec sleep infinity\n";

#[test]
fn what_is_found_of_a_hook_is_what_systemd_makes_of_it() -> Result<()> {
    let internet = Internet::new()?;
    let machine = Machine::boot(&internet)?;
    lay_out(&machine, IDLE)?;
    machine.ok("jobfence install github --runner-dir /opt/one")?;
    machine.ok("systemctl restart jobfence-agent")?;
    for (files, found) in SURROUNDINGS {
        // What names others comes last, and goes first: it is for every service, also one that writes.
        for (path, text) in files.iter().rev() {
            let path = format!("/{path}");
            machine.ok(&format!("mkdir -p $(dirname {path})"))?;
            machine.write(&path, text)?;
        }
        machine.ok("systemctl daemon-reload && systemctl restart actions.runner.one")?;
        let environment = machine
            .ok("tr '\\0' '\\n' </proc/$(systemctl show -P MainPID actions.runner.one)/environ")?;
        let is_ours = environment.lines().any(|line| line == STARTED);
        assert_eq!(is_ours, found.is_none(), "{files:?}: {environment}");
        let status = machine.sh("jobfence install status")?;
        let said = found.map_or(0, |_| 1);
        assert_eq!(status.status.code(), Some(said), "{files:?}: {status:?}");
        assert!(
            status.stdout.contains(found.unwrap_or_default()),
            "{status:?}"
        );
        for (path, _) in *files {
            machine.ok(&format!("rm /{path}"))?;
        }
    }
    Ok(())
}
