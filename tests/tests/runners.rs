//! Real CI runners: a job that passes, one that is refused, and two at once with different policies.
//!
//! GitLab Runner and Buildkite's agent are in no package registry. In their place are programs that call
//! the hooks as the real ones do ([`jobfence_tests::runners`]).

use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use jobfence_tests::{
    Agent, Fence, Internet, Mark, Shell,
    addresses::BLOCKED,
    binary, run,
    runners::{
        Buildkite, CustomExecutor, Cut, Daemon, Ended, GitLab, SYSTEM_FAILURE, as_nobody, in_time,
        installed, open_folder, write,
    },
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long a runner may take for a job.
const DEADLINE: Duration = Duration::from_secs(60);

/// The job may reach `allowed.test` on the web ports.
const POLICY: &str =
    "version: 1\njobs: {default: {allow: [{host: allowed.test, ports: [80, 443]}]}}\n";

/// What a job does that its policy allows.
const ALLOWED: &str = "curl -sS -m 5 -o /dev/null http://allowed.test/";

/// What a job does that its policy does not allow.
const REFUSED: &str = "curl -sS -m 5 -o /dev/null http://blocked.test/";

/// The id of a job, which no other job has: tests that run at once have agents of their own, and cgroups in
/// the same place.
fn fresh_id() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    u64::from(process::id()) * 1000 + COUNT.fetch_add(1, Ordering::Relaxed)
}

/// What [`TRIES`] says of a job that may reach port 8001.
const FIRST: &str = "at 8001: 200\nat 8002: 000\n";

/// What it says of one that may reach port 8002.
const SECOND: &str = "at 8001: 000\nat 8002: 200\n";

/// What each of two jobs does, of which each may do the half.
const TRIES: &str = "for port in 8001 8002; do curl -sS -m 5 -o /dev/null \
                     -w \"at $port: %{http_code}\\n\" http://allowed.test:$port/ || true; done";

/// The job may reach one port of `allowed.test`.
fn policy_for(port: u16) -> String {
    format!(
        "version: 1\njobs: {{default: {{allow: [{{host: allowed.test, ports: [{port}], \
         http: verify, tls: 'off'}}]}}}}\n"
    )
}

/// Packets to the server that no policy allows.
fn arrived(internet: &Internet, mark: Mark) -> usize {
    let arrived = internet.attempts_since(mark);
    BLOCKED.both().iter().map(|&ip| arrived.to(ip).len()).sum()
}

/// Checks that `text` names what was refused, in the words of a report.
#[track_caller]
fn assert_names(text: &str, destination: &str) {
    let named = text.lines().any(|line| {
        let refused = line.trim_start().strip_prefix("✗ ");
        refused.is_some_and(|refused| refused.starts_with(destination))
    });
    assert!(named, "{destination} is not named: {text}");
}

/// The tries of [`TRIES`] in the log of a job, in which each line can have something before it.
fn tries(log: &str) -> String {
    log.lines()
        .filter_map(|line| {
            let at = line.find("at 800")?;
            let tried = &line[at..];
            // Not the script itself, which a runner may show too.
            let result = tried.get(..12)?;
            let is_result = result.ends_with(|c: char| c.is_ascii_digit());
            is_result.then(|| format!("{result}\n"))
        })
        .collect()
}

// Runners that run a pipeline on the spot: they are fenced as a whole, by whoever calls them.

/// A git repository of `nobody`'s, with these files by name and text.
fn repository(internet: &Internet, name: &str, files: &[(&str, &str)]) -> Result<PathBuf> {
    let folder = internet.home().join(name);
    fs::create_dir(&folder)?;
    for (name, text) in files {
        write(&folder.join(name), text)?;
    }
    chown(&folder, Some(NOBODY), Some(NOBODY))?;
    let mut git = as_nobody(internet, Path::new("sh"));
    git.args([
        "-ec",
        "cd \"$1\" && git init -q -b main && git add -A &&
         git -c user.name=t -c user.email=t@example.com commit -qm one &&
         git remote add origin http://git.test/group/project.git",
        "sh",
    ]);
    let output = run(git.arg(&folder), DEADLINE)?;
    ensure!(output.status.success(), "{output:?}");
    Ok(folder)
}

/// A runner that runs a pipeline of a folder on the spot: what `env` runs, and a pipeline whose one job
/// runs a line of shell.
struct Local {
    words: fn(&Path) -> Result<Vec<String>>,
    file: &'static str,
    pipeline: fn(&str) -> String,
}

const ACT: Local = Local {
    words: |folder| {
        let act = installed("bin/act")?.to_string_lossy().into_owned();
        let folder = folder.to_string_lossy();
        let words = [
            // At each start it asks its makers for news, which is refused, and a violation.
            "ACT_DISABLE_VERSION_CHECK=1",
            &act,
            "push",
            "--directory",
            &folder,
            "--platform",
            "ubuntu-latest=-self-hosted",
            "--no-cache-server",
        ];
        Ok(words.map(ToOwned::to_owned).to_vec())
    },
    file: ".github/workflows/ci.yml",
    pipeline: |line| {
        format!(
            "on: push\njobs:\n  build:\n    runs-on: ubuntu-latest\n    steps:\n      - run: |\n          \
             {line}\n"
        )
    },
};

const GITLAB_CI_LOCAL: Local = Local {
    words: |folder| {
        let path = |path| Ok::<_, anyhow::Error>(installed(path)?.to_string_lossy().into_owned());
        Ok(vec![
            path("bin/node")?,
            path("node_modules/gitlab-ci-local/dist/index.js")?,
            "--cwd".to_owned(),
            // Where commands begin, the folder is; it takes no absolute one.
            folder
                .file_name()
                .context("a name")?
                .to_string_lossy()
                .into_owned(),
            "build".to_owned(),
        ])
    },
    file: ".gitlab-ci.yml",
    pipeline: |line| format!("build:\n  script:\n    - |\n      {line}\n"),
};

/// Runs the three jobs, each with the runner and all that it starts in one fence of the agent.
fn runs_in_a_fence(local: &Local) -> Result<()> {
    let internet = Internet::new()?;
    let agent = Agent::start(&internet, "")?;
    let job = |name: &str, line: &str| -> Result<Vec<String>> {
        let pipeline = (local.pipeline)(line);
        let folder = repository(&internet, name, &[(local.file, &pipeline)])?;
        // Each its own, with its caches.
        let home = internet.home().join(format!("home-{name}"));
        open_folder(&home)?;
        let env = ["env".to_owned(), format!("HOME={}", home.display())];
        Ok([env.to_vec(), (local.words)(&folder)?].concat())
    };
    let fenced = |words: &[String], policy: &str| {
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let fence = Fence::new(&internet, policy)?.agent(Some(agent.socket()));
        fence.run(&words)
    };

    let passing = fenced(&job("passing", ALLOWED)?, POLICY)?;
    passing.assert_code(0);

    let words = job("refused", REFUSED)?;
    let mark = internet.mark();
    let mut unfenced = as_nobody(&internet, Path::new(&words[0]));
    let unfenced = run(unfenced.args(&words[1..]), DEADLINE)?;
    assert!(unfenced.status.success(), "{unfenced:?}");
    assert!(arrived(&internet, mark) > 0, "nothing arrives anyway");
    let mark = internet.mark();
    let refused = fenced(&words, POLICY)?;
    refused.assert_code(110);
    assert_eq!(arrived(&internet, mark), 0, "{refused:#?}");
    assert_names(&refused.output.stderr, "blocked.test");

    let both = [("first", 8001, FIRST), ("second", 8002, SECOND)];
    let mut jobs = Vec::new();
    for (name, port, expected) in both {
        jobs.push((job(name, TRIES)?, policy_for(port), expected));
    }
    thread::scope(|scope| {
        let fenced = &fenced;
        let started: Vec<_> = jobs
            .iter()
            .map(|(words, policy, _)| scope.spawn(move || fenced(words, policy)))
            .collect();
        for (run, (_, _, expected)) in started.into_iter().zip(&jobs) {
            let run = run.join().expect("no panic")?;
            run.assert_code(110);
            assert_eq!(tries(&run.output.stdout), *expected, "{run:#?}");
        }
        Ok(())
    })
}

#[test]
fn act_runs_workflows_in_a_fence() -> Result<()> {
    runs_in_a_fence(&ACT)
}

#[test]
fn gitlab_ci_local_runs_pipelines_in_a_fence() -> Result<()> {
    runs_in_a_fence(&GITLAB_CI_LOCAL)
}

// Buildbot: each step's command is fenced by the worker.

/// A master and a worker, with a builder for each command.
struct Buildbot {
    folder: PathBuf,
    _master: Daemon,
    _worker: Daemon,
}

impl Buildbot {
    fn start(internet: &Internet, builders: &[(&str, Vec<String>)]) -> Result<Self> {
        let folder = internet.dir().join("buildbot");
        for name in ["builders", "changes", "results", "master"] {
            fs::create_dir_all(folder.join(name))?;
        }
        for (name, words) in builders {
            write(&folder.join("builders").join(name), &words.join("\n"))?;
        }
        let (master, worker) = (folder.join("master"), folder.join("worker"));
        write(
            &master.join("master.cfg"),
            include_str!("../src/runners/master.py"),
        )?;
        let do_it = |program: &str, arguments: &[&Path]| -> Result<()> {
            let program = installed(program)?;
            let mut command = internet.command(&program.to_string_lossy());
            let output = run(command.args(arguments), DEADLINE)?;
            ensure!(output.status.success(), "{output:?}");
            Ok(())
        };
        do_it("bin/buildbot", &[Path::new("create-master"), &master])?;
        let words = ["127.0.0.1:9989", "worker", "password"].map(Path::new);
        let create = [&[Path::new("create-worker"), &worker], &words[..]].concat();
        do_it("bin/buildbot-worker", &create)?;
        let daemon = |of: &Path| -> Result<Daemon> {
            let twistd = installed("bin/twistd")?;
            let mut command = internet.command("env");
            command.arg("-C").arg(of).arg(twistd);
            command.args(["--nodaemon", "--no_save", "-y", "buildbot.tac"]);
            command.arg("--pidfile=");
            // Where its own log goes.
            Daemon::start(&mut command, of.join("twistd.log"))
        };
        let mut master = daemon(&master)?;
        master.wait_for("BuildMaster is running");
        let mut worker = daemon(&worker)?;
        worker.wait_for("worker is ready");
        Ok(Self {
            folder,
            _master: master,
            _worker: worker,
        })
    }

    /// Has a builder build.
    fn begin(&self, builder: &str) -> Result<()> {
        write(&self.folder.join("changes").join(builder), "")
    }

    /// Waits for what came of it: Buildbot's number (0 is success, 2 failure), and the log.
    fn end(&self, builder: &str) -> Result<(u64, String)> {
        let path = self.folder.join("results").join(builder);
        in_time("the build ends", || path.exists());
        let result: Value = serde_json::from_slice(&fs::read(path)?)?;
        let log = result["log"].as_str().context("no log")?;
        Ok((
            result["results"].as_u64().context("no result")?,
            log.to_owned(),
        ))
    }

    fn build(&self, builder: &str) -> Result<(u64, String)> {
        self.begin(builder)?;
        self.end(builder)
    }
}

#[test]
fn buildbots_steps_are_fenced_by_its_worker() -> Result<()> {
    let internet = Internet::new()?;
    let agent = Agent::start(&internet, "")?;
    let step = |line: &str| ["sh", "-c", line].map(ToOwned::to_owned).to_vec();
    let fenced = |name: &str, policy: &str, line: &str| -> Result<Vec<String>> {
        let file = internet.dir().join(format!("{name}.yml"));
        write(&file, policy)?;
        let (binary, socket) = (binary()?, agent.socket());
        let words = [
            &*binary.to_string_lossy(),
            "run",
            "--agent",
            &socket.to_string_lossy(),
            "--user",
            "nobody",
            "--policy",
            &file.to_string_lossy(),
            "--",
        ];
        Ok([words.map(ToOwned::to_owned).to_vec(), step(line)].concat())
    };
    let buildbot = Buildbot::start(
        &internet,
        &[
            ("unfenced", step(REFUSED)),
            ("passing", fenced("passing", POLICY, ALLOWED)?),
            ("refused", fenced("refused", POLICY, REFUSED)?),
            ("first", fenced("first", &policy_for(8001), TRIES)?),
            ("second", fenced("second", &policy_for(8002), TRIES)?),
        ],
    )?;

    let mark = internet.mark();
    let (result, log) = buildbot.build("unfenced")?;
    assert_eq!(result, 0, "{log}");
    assert!(arrived(&internet, mark) > 0, "nothing arrives anyway");

    let (result, log) = buildbot.build("passing")?;
    assert_eq!(result, 0, "{log}");

    let mark = internet.mark();
    let (result, log) = buildbot.build("refused")?;
    assert_eq!(result, 2, "{log}");
    assert_eq!(arrived(&internet, mark), 0, "{log}");
    assert_names(&log, "blocked.test");

    buildbot.begin("first")?;
    buildbot.begin("second")?;
    for (builder, expected) in [("first", FIRST), ("second", SECOND)] {
        let (result, log) = buildbot.end(builder)?;
        assert_eq!(result, 2, "{log}");
        assert_eq!(tries(&log), expected, "{log}");
    }
    Ok(())
}

// A polling GitLab runner in a fence of its own, whose jobs begin in it.

/// The user id of `nobody`, as whom runners run.
const NOBODY: u32 = 65_534;

/// Has the agent hold a policy for each project, and take the word of `nobody`'s runners on projects.
fn with_policies<'a>(internet: &'a Internet, policies: &[(&str, &str)]) -> Result<Agent<'a>> {
    let folder = internet.dir().join("policies");
    for (project, policy) in policies {
        write(&folder.join(format!("{project}.yml")), policy)?;
    }
    let folder = folder.display();
    Agent::start(
        internet,
        &format!("policies: {folder}\nrunners: [nobody]\n"),
    )
}

/// A policy for a runner, which may reach GitLab.
fn for_runner() -> String {
    format!(
        "version: 1\njobs: {{default: {{allow: [{}]}}}}\n",
        GitLab::RULE
    )
}

#[test]
fn a_polling_gitlab_runners_jobs_leave_its_fence_for_their_own() -> Result<()> {
    let internet = Internet::new()?;
    let gitlab = GitLab::start(&internet)?;
    let agent = with_policies(
        &internet,
        &[
            ("group/project", POLICY),
            ("group/refused", POLICY),
            ("group/first", &policy_for(8001)),
            ("group/second", &policy_for(8002)),
        ],
    )?;
    let start = agent.line(
        "start --id u65534-gitlab-$CI_JOB_ID --pid $$ --repo $CI_PROJECT_PATH --run $CI_PIPELINE_ID",
    )?;
    let status = agent.line("status --exit-code --json")?;
    let pipeline = |line: &str| format!("build:\n  script:\n    - {line}\n");
    let fenced = |line: &str| {
        format!("build:\n  script:\n    - {start}\n    - |\n      {line} || true\n    - {status}\n")
    };
    let queue = |project: &str, text: &str| -> Result<u64> {
        let (id, commit) = (
            fresh_id(),
            gitlab.project(project, &[(".gitlab-ci.yml", text)])?,
        );
        gitlab.queue(&gitlab.job(id, project, &commit, "build"))?;
        Ok(id)
    };
    let runner = |name: &str| -> Result<String> {
        let folder = internet.home().join(name);
        open_folder(&folder)?;
        let config = format!(
            "server: {}\ntoken: t\nexecutor: shell\nshell: bash\ndir: {}\n",
            GitLab::URL,
            folder.display()
        );
        write(&folder.join("runner.yml"), &config)?;
        let (python, program) = (installed("bin/python")?, installed("bin/gitlab-runner.py")?);
        let (python, program) = (python.display(), program.display());
        let folder = folder.display();
        Ok(format!(
            "{python} {program} --start {folder}/runner.yml --once >{folder}/log 2>&1"
        ))
    };
    let said = |name: &str| fs::read_to_string(internet.home().join(name).join("log"));
    let mut shell = Shell::new(&internet)?;

    let unfenced = queue("group/unfenced", &pipeline(REFUSED))?;
    let mark = internet.mark();
    shell.run(&runner("unfenced")?)?;
    let ended = gitlab.state(unfenced);
    assert_eq!(ended.as_deref(), Some("success"), "{}", said("unfenced")?);
    assert!(arrived(&internet, mark) > 0, "nothing arrives anyway");

    let fence = agent.fence_runner(&shell, "runner", &for_runner())?;
    let passing = queue("group/project", &fenced(ALLOWED))?;
    shell.run(&runner("passing")?)?;
    let (ended, trace) = (gitlab.state(passing), gitlab.trace(passing));
    assert_eq!(ended.as_deref(), Some("success"), "{trace}");

    let mark = internet.mark();
    let refused = queue("group/refused", &fenced(REFUSED))?;
    shell.run(&runner("refused")?)?;
    let skips = queue("group/skips", &pipeline(REFUSED))?;
    shell.run(&runner("skips")?)?;
    for id in [refused, skips] {
        let trace = gitlab.trace(id);
        assert_eq!(gitlab.state(id).as_deref(), Some("failed"), "{trace}");
    }
    assert_eq!(arrived(&internet, mark), 0);
    let trace = gitlab.trace(refused);
    assert!(trace.contains(r#""destination": "blocked.test"#), "{trace}");

    let first = queue("group/first", &fenced(TRIES))?;
    let second = queue("group/second", &fenced(TRIES))?;
    // Either may get either.
    let (one, other) = (runner("one")?, runner("other")?);
    shell.run(&format!("{one} & {other} & wait"))?;
    for (id, expected) in [(first, FIRST), (second, SECOND)] {
        let trace = gitlab.trace(id);
        assert_eq!(gitlab.state(id).as_deref(), Some("failed"), "{trace}");
        assert_eq!(tries(&trace), expected, "{trace}");
    }

    let (code, report) = agent.finish(&fence)?;
    assert_eq!(
        code,
        Some(110),
        "the job that made no fence is in the runner's: {report:?}"
    );
    assert_names(&report.stdout, "blocked.test");
    Ok(())
}

// GitLab Runner's custom executor, whose driver jobfence is.

/// Makes a user `gitlab-runner` with a home folder for the job side: GitLab Runner's packages make one.
fn add_gitlab_runner(internet: &Internet) -> Result<PathBuf> {
    let home = internet.home().join("gitlab-runner");
    fs::create_dir(&home)?;
    chown(&home, Some(RUNNER), Some(RUNNER))?;
    for (file, line) in [
        (
            "passwd",
            format!(
                "gitlab-runner:x:{RUNNER}:{RUNNER}::{}:/bin/bash\n",
                home.display()
            ),
        ),
        ("group", format!("gitlab-runner:x:{RUNNER}:\n")),
    ] {
        let copy = internet.dir().join(file);
        let there = Path::new("/etc").join(file);
        fs::write(&copy, fs::read_to_string(&there)? + &line)?;
        let mut mount = internet.command("mount");
        let output = run(mount.arg("--bind").arg(copy).arg(there), DEADLINE)?;
        ensure!(output.status.success(), "{output:?}");
    }
    Ok(home)
}

/// The user id of `gitlab-runner`.
const RUNNER: u32 = 64_123;

/// A driver's surroundings: GitLab, an agent, a policy for the runner.
struct Driver<'a> {
    internet: &'a Internet,
    gitlab: GitLab<'a>,
    agent: Agent<'a>,
    runner_policy: PathBuf,
}

impl<'a> Driver<'a> {
    fn new(internet: &'a Internet, policies: &[(&str, &str)]) -> Result<Self> {
        add_gitlab_runner(internet)?;
        let runner_policy = internet.dir().join("runner.yml");
        write(&runner_policy, &for_runner())?;
        Ok(Self {
            internet,
            gitlab: GitLab::start(internet)?,
            agent: with_policies(internet, policies)?,
            runner_policy,
        })
    }

    /// Runs a job of `project`, which has `files`, with the script `build`.
    fn run(&self, project: &str, files: &[(&str, &str)], build: &str) -> Result<Ended> {
        let commit = self
            .gitlab
            .project(project, &[&[("README", "")], files].concat())?;
        let job = self.gitlab.job(fresh_id(), project, &commit, "build");
        self.run_job(&job, build, &[], None)
    }

    fn run_job(
        &self,
        job: &Value,
        build: &str,
        variables: &[(&str, &str)],
        cut: Option<&Cut<'_>>,
    ) -> Result<Ended> {
        let policy = self.runner_policy.to_string_lossy();
        let arguments = ["--runner-policy", &policy];
        let runner = CustomExecutor::new(self.internet, self.agent.socket(), &arguments);
        let url = job["git_info"]["repo_url"].as_str().context("no URL")?;
        let script = |stage: &str, project: &Path| match stage {
            "prepare_script" => "echo Running on $HOSTNAME as $(id -un)".to_owned(),
            "get_sources" => format!("rm -rf {0}; git clone -q {url} {0}", project.display()),
            "build_script" => build.to_owned(),
            "after_script" => "echo the after_script runs".to_owned(),
            _ => String::new(),
        };
        runner.run(job, script, variables, cut)
    }

    /// Stages of the job `id` that have a log, which each fenced stage has.
    fn fenced(&self, id: u64) -> Result<Vec<String>> {
        let prefix = format!("gitlab-{id}-");
        let mut stages = Vec::new();
        for entry in fs::read_dir(self.agent.folder().join("logs"))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            stages.extend(name.strip_prefix(&prefix).map(ToOwned::to_owned));
        }
        stages.sort();
        Ok(stages)
    }
}

#[test]
fn the_gitlab_driver_runs_each_stage_in_a_fence() -> Result<()> {
    let internet = Internet::new()?;
    let driver = Driver::new(&internet, &[("group/project", POLICY)])?;
    let build = format!("echo I am $(id -un) in $PWD; env | sort; {ALLOWED}; exit 0");
    let ended = driver.run("group/project", &[], &build)?;
    assert_eq!(ended.state, "success", "{}", ended.log);
    let home = internet.home().join("gitlab-runner");
    let at = format!(
        "I am gitlab-runner in {}/builds/slot-{}/project",
        home.display(),
        ended.id
    );
    assert!(ended.log.contains(&at), "{}", ended.log);
    assert!(ended.log.contains("the after_script runs"), "{}", ended.log);
    let of_project = ended
        .log
        .lines()
        .find(|line| line.contains("each stage of group/project runs in a fence"));
    let of_project = of_project.with_context(|| ended.log.clone())?;
    assert!(
        of_project.ends_with("/policies/group/project.yml"),
        "{of_project}"
    );
    for secret in ["hunter2", "CUSTOM_ENV", "JOB_RESPONSE_FILE"] {
        assert!(
            !ended.log.contains(secret),
            "{secret} reaches the job: {}",
            ended.log
        );
    }
    assert_eq!(ended.config["driver"]["name"], "jobfence");
    assert_eq!(ended.exit_code, None);
    let stages = [
        "after_script-1",
        "build_script-1",
        "cleanup_file_variables-1",
        "get_sources-1",
        "prepare-1",
        "prepare_runner-1",
        "prepare_script-1",
    ];
    assert_eq!(
        driver.fenced(ended.id)?,
        stages.map(|stage| format!("{stage}.jsonl"))
    );
    Ok(())
}

#[test]
fn the_gitlab_driver_fails_a_job_that_was_refused_something() -> Result<()> {
    let internet = Internet::new()?;
    let driver = Driver::new(&internet, &[("group/project", POLICY)])?;
    let mark = internet.mark();
    let mut unfenced = as_nobody(&internet, Path::new("sh"));
    let unfenced = run(unfenced.args(["-c", REFUSED]), DEADLINE)?;
    assert!(unfenced.status.success(), "{unfenced:?}");
    assert!(arrived(&internet, mark) > 0, "nothing arrives anyway");

    let mark = internet.mark();
    let ended = driver.run("group/project", &[], &format!("{REFUSED} || true"))?;
    assert_eq!(ended.state, "build failure", "{}", ended.log);
    assert_eq!(ended.exit_code.as_deref(), Some("110"));
    assert_names(&ended.log, "blocked.test");
    let allow = "to allow it: - {host: blocked.test, ports: [80]}";
    let named =
        ended.log.contains(allow) || ended.log.contains("to allow it: - host: blocked.test");
    assert!(named, "{}", ended.log);

    // GitLab's host is for the runner's stages.
    let gitlab = format!("curl -sS -m 5 {}/ || true", GitLab::URL);
    let ended = driver.run("group/other", &[], &gitlab)?;
    assert_eq!(ended.state, "build failure", "{}", ended.log);
    assert_names(&ended.log, "gitlab.test");
    assert_eq!(arrived(&internet, mark), 0, "{}", ended.log);

    let ended = driver.run("group/project3", &[], "exit 3")?;
    assert_eq!(ended.state, "build failure", "{}", ended.log);
    assert_eq!(ended.exit_code.as_deref(), Some("3"), "{}", ended.log);
    Ok(())
}

#[test]
fn the_gitlab_drivers_policy_is_the_projects_by_gitlabs_word() -> Result<()> {
    let internet = Internet::new()?;
    let wide = "version: 1\njobs: {default: {allow: [{host: allowed.test, ports: [80]}, {host: \
                blocked.test, ports: [80]}]}}\n";
    let driver = Driver::new(
        &internet,
        &[("group/wide", wide), ("group/project", POLICY)],
    )?;
    let mark = internet.mark();

    let commit = driver.gitlab.project("group/project", &[("README", "")])?;
    let job = driver
        .gitlab
        .job(fresh_id(), "group/project", &commit, "build");
    let forged = [("CI_PROJECT_PATH", "group/wide")];
    let ended = driver.run_job(&job, REFUSED, &forged, None)?;
    assert_eq!(ended.state, "build failure", "{}", ended.log);
    assert_names(&ended.log, "blocked.test");

    // A project's own file takes from the host's, and adds nothing.
    let narrow = "version: 1\njobs: {default: {allow: [{host: allowed.test, ports: [80]}, {host: \
                  v4only.test, ports: [80]}]}}\n";
    let files = [(".jobfence.yml", narrow)];
    let both = format!("{REFUSED} || {ALLOWED}");
    fs::rename(
        internet.dir().join("policies/group/wide.yml"),
        internet.dir().join("policies/group/narrowed.yml"),
    )?;
    let ended = driver.run("group/narrowed", &files, &both)?;
    assert_eq!(ended.state, "build failure", "{}", ended.log);
    assert_names(&ended.log, "blocked.test");
    let ended = driver.run("group/narrowed2", &[], "true")?;
    assert_eq!(ended.state, "success", "{}", ended.log);
    assert_eq!(arrived(&internet, mark), 0, "{}", ended.log);

    let files = [(
        ".jobfence.yml",
        "version: 1\njobs: {default: {allow: [{hots: a.test}]}}\n",
    )];
    let ended = driver.run("group/invalid", &files, ALLOWED)?;
    assert_eq!(ended.state, "build failure", "{}", ended.log);
    assert!(ended.log.contains("hots"), "{}", ended.log);
    Ok(())
}

#[test]
fn the_gitlab_driver_tells_a_broken_host_from_a_failed_job() -> Result<()> {
    let internet = Internet::new()?;
    let mut driver = Driver::new(&internet, &[("group/project", POLICY)])?;
    driver.agent.kill()?;
    let ended = driver.run("group/project", &[], "true")?;
    assert_eq!(ended.state, "system failure", "{}", ended.log);
    assert!(ended.log.contains("no agent at"), "{}", ended.log);
    assert!(!ended.log.contains("after_script"), "{}", ended.log);
    assert_eq!(ended.cleanups, [Some(SYSTEM_FAILURE); 2]);

    driver.agent.restart()?;
    fs::write(&driver.runner_policy, "version: 2\n")?;
    let ended = driver.run("group/project2", &[], "true")?;
    assert_eq!(ended.state, "system failure", "{}", ended.log);
    assert!(ended.log.contains("version"), "{}", ended.log);
    assert_eq!(ended.cleanups, [Some(0); 2], "also after a failed prepare");
    Ok(())
}

#[test]
fn the_gitlab_driver_fences_two_jobs_at_once() -> Result<()> {
    let internet = Internet::new()?;
    let (first, second) = (policy_for(8001), policy_for(8002));
    let driver = Driver::new(
        &internet,
        &[("group/first", &first), ("group/second", &second)],
    )?;
    let jobs = [("group/first", FIRST), ("group/second", SECOND)];
    let mut described = Vec::new();
    for (project, expected) in jobs {
        let commit = driver.gitlab.project(project, &[("README", "")])?;
        described.push((
            driver.gitlab.job(fresh_id(), project, &commit, "build"),
            expected,
        ));
    }
    thread::scope(|scope| {
        let driver = &driver;
        let started: Vec<_> = described
            .iter()
            .map(|(job, _)| scope.spawn(move || driver.run_job(job, TRIES, &[], None)))
            .collect();
        for (run, (_, expected)) in started.into_iter().zip(&described) {
            let ended = run.join().expect("no panic")?;
            assert_eq!(ended.state, "build failure", "{}", ended.log);
            assert_eq!(tries(&ended.log), *expected, "{}", ended.log);
        }
        Ok(())
    })
}

/// Starts what outlives whoever is killed for it, with a mark in its command line: in a session of its
/// own, and deaf to what asks it to end.
fn stubborn(mark: &str) -> String {
    let work = "trap \"\" TERM HUP INT; touch started; while :; do sleep 0.05; done";
    format!("setsid sh -c '{work}' {mark} </dev/null >/dev/null 2>&1 & ")
}

/// The processes that have `mark` in their command lines.
fn marked(mark: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let line = fs::read(entry?.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        // Not the shell that has it in its script.
        if line.ends_with(&format!(" {mark} ")) {
            found.push(line);
        }
    }
    Ok(found)
}

/// What the agent still has of jobs whose ids begin with `prefix`: those that run, and fences.
fn left_of(internet: &Internet, agent: &Agent<'_>, prefix: &str) -> Result<Vec<String>> {
    let list = agent.job(&["list", "--json"])?;
    let list: Value = serde_json::from_str(&list.stdout).with_context(|| format!("{list:?}"))?;
    let jobs = list.as_array().into_iter().flatten();
    let jobs = jobs.filter_map(|job| job["id"].as_str().map(str::to_owned));
    let mut list = internet.command("sh");
    list.args(["-c", "ls /sys/fs/bpf/jobfence/v*/agent"]);
    let fences = run(&mut list, DEADLINE)?.stdout;
    let fences: Vec<_> = fences.lines().map(str::to_owned).collect();
    let all = jobs.chain(fences);
    Ok(all.filter(|id| id.starts_with(prefix)).collect())
}

#[test]
fn a_gitlab_stage_whose_driver_is_killed_ends_and_the_next_ones_work() -> Result<()> {
    let internet = Internet::new()?;
    let driver = Driver::new(&internet, &[("group/project", POLICY)])?;
    let commit = driver.gitlab.project("group/project", &[("README", "")])?;
    let home = internet.home().join("gitlab-runner");
    // Cancelled and timed out; and killed by the kernel, when memory is short.
    for (signals, state) in [
        (&[Signal::TERM, Signal::KILL][..], "build failure"),
        (&[Signal::KILL], "unknown failure"),
    ] {
        let id = fresh_id();
        let job = driver.gitlab.job(id, "group/project", &commit, "build");
        let mark = format!("mark-{id}");
        let started = home.join(format!("builds/slot-{id}/project/started"));
        let build = format!("{}sleep 1000", stubborn(&mark));
        let cut = Cut {
            stage: "build_script",
            wait: &|| in_time("the job works", || started.exists()),
            signals,
        };
        let ended = driver.run_job(&job, &build, &[], Some(&cut))?;
        assert_eq!(marked(&mark)?, Vec::<String>::new(), "after the cleanup");
        assert_eq!(ended.state, state, "{}", ended.log);
        assert!(ended.log.contains("the after_script runs"), "{}", ended.log);
        assert_eq!(ended.cleanups, [Some(0); 2]);
        let fenced = driver.fenced(id)?;
        for stage in [
            "after_script-1",
            "build_script-1",
            "cleanup_file_variables-1",
        ] {
            let stage = format!("{stage}.jsonl");
            assert!(fenced.contains(&stage), "{stage}: {fenced:?}");
        }
        let prefix = format!("gitlab-{id}-");
        in_time("its fences come down", || {
            left_of(&internet, &driver.agent, &prefix).is_ok_and(|left| left.is_empty())
        });
    }
    let job = driver
        .gitlab
        .job(fresh_id(), "group/project", &commit, "build");
    let ended = driver.run_job(&job, ALLOWED, &[], None)?;
    assert_eq!(ended.state, "success", "{}", ended.log);
    Ok(())
}

#[test]
fn a_gitlab_job_is_cleaned_up_wherever_its_driver_was_killed() -> Result<()> {
    /// Moments after the start of a call, in milliseconds: nothing depends on what they hit.
    const MOMENTS: [u64; 6] = [0, 5, 20, 50, 100, 200];
    let internet = Internet::new()?;
    let driver = Driver::new(&internet, &[("group/project", POLICY)])?;
    let commit = driver.gitlab.project("group/project", &[("README", "")])?;
    for (number, moment) in MOMENTS.into_iter().enumerate() {
        let id = fresh_id();
        let job = driver.gitlab.job(id, "group/project", &commit, "build");
        let cut = Cut {
            stage: ["prepare", "get_sources"][number % 2],
            wait: &|| thread::sleep(Duration::from_millis(moment)),
            signals: &[Signal::KILL],
        };
        let ended = driver.run_job(&job, "true", &[], Some(&cut))?;
        // It may have been faster.
        assert!(
            ["unknown failure", "success"].contains(&ended.state),
            "{}: {}",
            ended.state,
            ended.log
        );
        assert_eq!(ended.cleanups, [Some(0); 2]);
        in_time("its fences come down", || {
            left_of(&internet, &driver.agent, &format!("gitlab-{id}-"))
                .is_ok_and(|left| left.is_empty())
        });
    }
    let job = driver
        .gitlab
        .job(fresh_id(), "group/project", &commit, "build");
    let ended = driver.run_job(&job, ALLOWED, &[], None)?;
    assert_eq!(ended.state, "success", "{}", ended.log);
    Ok(())
}

// Buildkite's agent, in a fence of its own.

/// The hooks as they are installed, but for where jobfence is.
fn buildkite_hooks(agent: &Agent<'_>) -> Result<Vec<(&'static str, String)>> {
    let called = format!(
        "{} hook --socket {} ",
        binary()?.display(),
        agent.socket().display()
    );
    let hook = |name, text: &str| (name, text.replace("/usr/bin/jobfence hook ", &called));
    Ok(vec![
        hook(
            "pre-bootstrap",
            include_str!("../../userspace/cli/ci/buildkite/pre-bootstrap"),
        ),
        hook(
            "environment",
            include_str!("../../userspace/cli/ci/buildkite/environment"),
        ),
        hook(
            "pre-exit",
            include_str!("../../userspace/cli/ci/buildkite/pre-exit"),
        ),
    ])
}

/// Fences Buildkite's agent as its drop-in does; returns the fence's id.
fn fence_buildkite(
    internet: &Internet,
    agent: &Agent<'_>,
    buildkite: &Buildkite,
) -> Result<String> {
    let policy = internet.dir().join("runner.yml");
    write(&policy, &for_runner())?;
    let (pid, policy) = (buildkite.pid().to_string(), policy.to_string_lossy());
    let id = format!("runner-buildkite-{pid}");
    let start = [
        "start", "--runner", "--id", &id, "--pid", &pid, "--policy", &policy,
    ];
    let started = agent.job(&start)?;
    ensure!(started.status.success(), "{started:?}");
    Ok(id)
}

#[test]
fn buildkites_jobs_leave_the_agents_fence_for_their_own() -> Result<()> {
    let internet = Internet::new()?;
    let mut agent = with_policies(
        &internet,
        &[
            ("group/project", POLICY),
            ("group/first", &policy_for(8001)),
            ("group/second", &policy_for(8002)),
        ],
    )?;
    let buildkite = Buildkite::start(&internet, &buildkite_hooks(&agent)?)?;
    let mark = internet.mark();
    buildkite.queue("u0", "project", REFUSED, &["environment", "pre-exit"])?;
    assert_eq!(buildkite.wait("u0").0, "0");
    assert!(arrived(&internet, mark) > 0, "nothing arrives anyway");

    let id = fence_buildkite(&internet, &agent, &buildkite)?;

    buildkite.queue("j1", "project", ALLOWED, &[])?;
    let (status, log) = buildkite.wait("j1");
    assert_eq!(status, "0", "{log}");
    assert!(log.contains("this job is fenced"), "{log}");

    let mark = internet.mark();
    buildkite.queue("j2", "project", &format!("{REFUSED} || true"), &[])?;
    let (status, log) = buildkite.wait("j2");
    assert_eq!(status, "1", "{log}");
    assert_names(&log, "blocked.test");
    let note = buildkite.note("j2").context("no note")?;
    assert!(note.contains("`` blocked.test"), "{note}");

    // A job that gets around its hook stays in the agent's fence, and fails.
    buildkite.queue(
        "j3",
        "project",
        &format!("{REFUSED} || true"),
        &["environment"],
    )?;
    let (status, log) = buildkite.wait("j3");
    assert_eq!(status, "1", "{log}");
    assert!(log.contains("ran outside a fence of its own"), "{log}");
    assert_eq!(arrived(&internet, mark), 0);

    buildkite.queue("j4", "first", TRIES, &[])?;
    buildkite.queue("j5", "second", TRIES, &[])?;
    for (job, expected) in [("j4", FIRST), ("j5", SECOND)] {
        let (status, log) = buildkite.wait(job);
        assert_eq!(status, "1", "{log}");
        assert_eq!(tries(&log), expected, "{log}");
    }

    agent.kill()?;
    buildkite.queue("j6", "project", ALLOWED, &[])?;
    let (status, log) = buildkite.wait("j6");
    assert_eq!(status, "-1", "rejected, since nobody could fence it: {log}");
    agent.restart()?;
    let (code, report) = agent.finish(&id)?;
    assert_eq!(
        code,
        Some(110),
        "what j3 tried is told of the agent: {report:?}"
    );
    assert_names(&report.stdout, "blocked.test");
    Ok(())
}

#[test]
fn a_buildkite_job_outlives_neither_its_bootstrap_nor_its_fence() -> Result<()> {
    let internet = Internet::new()?;
    let mut agent = with_policies(&internet, &[("group/project", POLICY)])?;
    let buildkite = Buildkite::start(&internet, &buildkite_hooks(&agent)?)?;
    let runner = fence_buildkite(&internet, &agent, &buildkite)?;
    let prefix = "u65534-buildkite-7-";

    // The bootstrap is killed, and with it goes its last hook.
    let mark = format!("mark-{}", fresh_id());
    let build = format!(
        "{}echo $PPID >pid.new; mv pid.new pid; sleep 1000",
        stubborn(&mark)
    );
    buildkite.queue("k1", "project", &build, &[])?;
    let folder = internet.home().join("buildkite/job-k1");
    in_time("the job works", || {
        folder.join("pid").exists() && folder.join("started").exists()
    });
    assert_eq!(marked(&mark)?.len(), 1);
    let bootstrap = fs::read_to_string(folder.join("pid"))?;
    let bootstrap = Pid::from_raw(bootstrap.trim().parse()?).context("a process")?;
    kill_process(bootstrap, Signal::KILL)?;
    assert_eq!(buildkite.wait("k1").0, "137");
    in_time("nothing of it goes on", || {
        marked(&mark).is_ok_and(|left| left.is_empty())
            && left_of(&internet, &agent, prefix).is_ok_and(|left| left.is_empty())
    });

    // jobfence's agent is killed between the two hooks.
    let go = "touch started; while [ ! -e go ]; do sleep 0.05; done; ";
    let killed_meanwhile = |id: &str, command: &str, kill: &mut dyn FnMut() -> Result<()>| {
        buildkite.queue(id, "project", &format!("{go}{command}"), &[])?;
        let folder = internet.home().join(format!("buildkite/job-{id}"));
        in_time("the job works", || folder.join("started").exists());
        kill()?;
        write(&folder.join("go"), "")?;
        Ok::<_, anyhow::Error>(folder.join("log"))
    };
    let mut kill_agent = || {
        agent.kill()?;
        agent.restart()
    };
    killed_meanwhile("k2", ALLOWED, &mut kill_agent)?;
    let (status, log) = buildkite.wait("k2");
    assert_eq!(status, "0", "{log}");
    assert!(log.contains("nothing was refused that counts"), "{log}");
    let at = internet.mark();
    killed_meanwhile("k3", &format!("{REFUSED} || true"), &mut kill_agent)?;
    let (status, log) = buildkite.wait("k3");
    assert_eq!(status, "1", "{log}");
    assert_names(&log, "blocked.test");
    assert_eq!(arrived(&internet, at), 0, "{log}");

    // Buildkite's agent is killed, and nobody waits for its jobs, which are processes of their own.
    let pid = i32::try_from(buildkite.pid())?;
    let pid = Pid::from_raw(pid).context("a process")?;
    let mut kill_buildkite = || Ok(kill_process(pid, Signal::KILL)?);
    let log = killed_meanwhile("k4", ALLOWED, &mut kill_buildkite)?;
    in_time("its last hook tells of it", || {
        fs::read_to_string(&log).is_ok_and(|log| log.contains("nothing was refused that counts"))
    });
    let (code, report) = agent.finish(&runner)?;
    assert_eq!(code, Some(0), "{report:?}");
    in_time("all fences come down", || {
        left_of(&internet, &agent, "").is_ok_and(|left| left.is_empty())
    });
    Ok(())
}
