//! GitLab Runner's custom executor, as its manual describes it: the same calls in the same order, with
//! the same environment, files and working folder, and what it makes of exit codes.

use std::{
    fmt::Write as _,
    fs::{self, Permissions},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

use crate::{Internet, Output, binary, run};

/// What this runner takes for a failure of the job: not GitLab Runner's 1, which may change.
pub const BUILD_FAILURE: i32 = 71;

/// What it takes for a failure of the runner.
pub const SYSTEM_FAILURE: i32 = 72;

/// How long a call may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// How often `prepare` is tried.
const TRIES: usize = 3;

/// The stages of a job that has neither caches nor artifacts, those of a project marked.
const STAGES: [(&str, bool); 5] = [
    ("prepare_script", false),
    ("get_sources", false),
    ("build_script", true),
    ("after_script", true),
    ("cleanup_file_variables", false),
];

/// A runner whose driver is jobfence.
pub struct CustomExecutor<'a> {
    internet: &'a Internet,
    socket: PathBuf,
    /// `config_args` and the others have these after the name of the call.
    arguments: Vec<String>,
}

/// How a job ended.
#[derive(Debug)]
pub struct Ended {
    /// Its id.
    pub id: u64,
    /// `success`, `build failure`, `system failure` or `unknown failure`.
    pub state: &'static str,
    /// What the job's log has.
    pub log: String,
    /// What was written to `BUILD_EXIT_CODE_FILE`.
    pub exit_code: Option<String>,
    /// What `config` said.
    pub config: Value,
    /// What `cleanup` exited with: it is called twice.
    pub cleanups: [Option<i32>; 2],
}

/// How GitLab Runner ends a call of a job that was cancelled, or has run out of time.
pub struct Cut<'a> {
    /// The call, or the stage that it is for.
    pub stage: &'a str,
    /// Waits until that is to be done.
    pub wait: &'a (dyn Fn() + Sync),
    /// Signals to its process group, one after the other, as long as it does not end.
    pub signals: &'a [Signal],
}

/// How long it may take to end after a signal: ten minutes with GitLab Runner.
const GRACE: Duration = Duration::from_millis(500);

impl<'a> CustomExecutor<'a> {
    /// A runner with the agent at `socket`.
    #[must_use]
    pub fn new(internet: &'a Internet, socket: PathBuf, arguments: &[&str]) -> Self {
        Self {
            internet,
            socket,
            arguments: arguments.iter().map(ToString::to_string).collect(),
        }
    }

    /// Runs `job`, as GitLab has described it, with the script `scripts` for each stage, and with more
    /// variables, which a project could set.
    ///
    /// # Errors
    /// When a call hangs.
    pub fn run(
        &self,
        job: &Value,
        scripts: impl Fn(&str, &Path) -> String,
        variables: &[(&str, &str)],
        cut: Option<&Cut<'_>>,
    ) -> Result<Ended> {
        let folder = self
            .internet
            .dir()
            .join(format!("custom-executor{}", job["id"]));
        private(&folder)?;
        let response = folder.join("response.json");
        fs::write(&response, job.to_string())?;
        let status = folder.join("exit_code");
        let mut call = Call {
            runner: self,
            folder: &folder,
            response: &response,
            status: &status,
            project: PathBuf::new(),
            job,
            variables,
            cut,
        };
        let configured = call.run("config", &[])?;
        let config = serde_json::from_str(&configured.stdout).unwrap_or_default();
        let mut ended = Ended {
            id: job["id"].as_u64().context("no id")?,
            state: "success",
            log: configured.stderr.clone(),
            exit_code: None,
            config,
            cleanups: [None; 2],
        };
        if !configured.status.success() {
            ended.state = state(&configured);
            return Ok(ended);
        }
        let builds = ended.config["builds_dir"].as_str().context("no folder")?;
        // Jobs at once get folders of their own.
        call.project = Path::new(builds).join(format!("slot-{}/project", job["id"]));
        for _ in 0..TRIES {
            let prepared = call.run("prepare", &[])?;
            ended.state = "success";
            ended.add(&prepared);
            if ended.state != "system failure" {
                break;
            }
        }
        if ended.state == "success" {
            self.stages(&call, &scripts, &mut ended)?;
        }
        ended.exit_code = fs::read_to_string(&status).ok();
        // Its end is of no consequence, and what it says goes to the runner's own log.
        for code in &mut ended.cleanups {
            *code = call.run("cleanup", &[])?.status.code();
        }
        fs::remove_dir_all(&folder).context("cannot remove the runner's folder")?;
        Ok(ended)
    }

    fn stages(
        &self,
        call: &Call<'_>,
        scripts: impl Fn(&str, &Path) -> String,
        ended: &mut Ended,
    ) -> Result<()> {
        for (number, (stage, is_projects)) in STAGES.into_iter().enumerate() {
            let goes_on = ended.state == "success" || stage.starts_with("after") || number == 4;
            if !goes_on || ended.state == "system failure" {
                continue;
            }
            let folder = call.folder.join(format!("script{number}"));
            private(&folder)?;
            let script = folder.join("script.");
            let text = scripts(stage, &call.project);
            fs::write(&script, wrap(&text, &call.project, is_projects))?;
            fs::set_permissions(&script, Permissions::from_mode(0o700))?;
            let output = call.run("run", &[&script.to_string_lossy(), stage])?;
            let before = ended.state;
            ended.add(&output);
            if stage == "after_script" {
                // What it says does not count.
                ended.state = before;
            }
        }
        Ok(())
    }
}

/// A script as GitLab Runner writes it for bash.
fn wrap(text: &str, project: &Path, is_projects: bool) -> String {
    let folder = match is_projects {
        true => format!("cd {}\n", project.display()),
        false => String::new(),
    };
    let body = format!(
        "export CI_PROJECT_DIR={}\n{folder}{text}\n",
        project.display()
    );
    let quoted = body.replace('\\', "\\\\").replace('\'', "\\'");
    let quoted = quoted.replace('\n', "\\n");
    format!(
        "#!/usr/bin/env bash\n\nif set -o | grep pipefail > /dev/null; then set -o pipefail; fi; \
         set -o errexit\nset +o noclobber\n: | eval $'{quoted}'\nexit 0\n"
    )
}

/// A folder that only root can look into.
fn private(folder: &Path) -> Result<()> {
    fs::create_dir(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(fs::set_permissions(folder, Permissions::from_mode(0o700))?)
}

fn state(output: &Output) -> &'static str {
    match output.status.code() {
        Some(0) => "success",
        Some(BUILD_FAILURE) => "build failure",
        Some(SYSTEM_FAILURE) => "system failure",
        _ => "unknown failure",
    }
}

impl Ended {
    fn add(&mut self, output: &Output) {
        // The first failure is the job's.
        if self.state == "success" {
            self.state = state(output);
        }
        self.log += &output.stdout;
        self.log += &output.stderr;
        if !output.status.success() {
            _ = writeln!(self.log, "({})", output.status);
        }
    }
}

impl Cut<'_> {
    fn run(&self, command: &mut Command) -> Result<Output> {
        let start = Instant::now();
        let mut child = command.process_group(0).spawn()?;
        let group = Pid::from_child(&child);
        (self.wait)();
        for &signal in self.signals {
            if child.try_wait()?.is_some() {
                break;
            }
            // Not waited for yet, so the number is still its own.
            kill_process_group(group, signal)?;
            let deadline = Instant::now() + GRACE;
            while child.try_wait()?.is_none() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(Output {
            status: child.wait()?,
            stdout: String::new(),
            stderr: String::new(),
            elapsed: start.elapsed(),
        })
    }
}

/// What the calls of one job have in common.
struct Call<'a> {
    runner: &'a CustomExecutor<'a>,
    folder: &'a Path,
    response: &'a Path,
    status: &'a Path,
    /// Where its sources are, once that is known.
    project: PathBuf,
    job: &'a Value,
    variables: &'a [(&'a str, &'a str)],
    cut: Option<&'a Cut<'a>>,
}

impl Call<'_> {
    fn run(&self, name: &str, more: &[&str]) -> Result<Output> {
        let mut command = self.command(name)?;
        command.args(more);
        let called = more.last().unwrap_or(&name);
        match self.cut {
            Some(cut) if cut.stage == *called => cut.run(&mut command),
            _ => run(&mut command, DEADLINE),
        }
    }

    fn command(&self, name: &str) -> Result<Command> {
        let internet = self.runner.internet;
        // The working folder is the runner's temporary one.
        let mut command = internet.command("env");
        command
            .arg("-C")
            .arg(self.folder)
            .arg(binary()?)
            .args(["hook", "gitlab", name, "--socket"])
            .arg(&self.runner.socket)
            .args(&self.runner.arguments)
            .env("TMPDIR", self.folder)
            .env("JOB_RESPONSE_FILE", self.response)
            .env("BUILD_EXIT_CODE_FILE", self.status)
            .env("BUILD_FAILURE_EXIT_CODE", BUILD_FAILURE.to_string())
            .env("SYSTEM_FAILURE_EXIT_CODE", SYSTEM_FAILURE.to_string())
            .env("SECRET_OF_THE_RUNNER", "hunter2")
            .env("CUSTOM_ENV_CI_PROJECT_DIR", &self.project);
        let variables = self.job["variables"].as_array().into_iter().flatten();
        for variable in variables {
            let text = |key: &str| variable[key].as_str().unwrap_or_default();
            command.env(format!("CUSTOM_ENV_{}", text("key")), text("value"));
        }
        for (key, value) in self.variables {
            command.env(format!("CUSTOM_ENV_{key}"), value);
        }
        Ok(command)
    }
}
