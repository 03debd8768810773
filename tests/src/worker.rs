//! A stand-in for GitHub's self-hosted runner: what it does with a job on the host, and nothing of
//! what it does with its server.
//!
//! `Runner.Listener` takes jobs, and starts one `Runner.Worker` for each. A worker runs the started
//! hook before everything else, the steps, and the completed hook after everything else
//! ([`JobHookProvider`](https://github.com/actions/runner/blob/v2.330.0/src/Runner.Worker/JobHookProvider.cs)).
//! As in the original:
//!
//! - a `.js` hook runs with the runner's own node, a `.sh` hook and the steps with the `bash` that the
//!   job's path leads to;
//! - a hook that fails, or is not there, fails the job; steps that run `always()` run after it, and so
//!   does the completed hook;
//! - hooks get the runner's environment and what describes the job, and nothing that a step has set
//!   but the path;
//! - each line that a hook or a step prints can be a workflow command, in the present form at its
//!   beginning, in the older one anywhere
//!   ([`ActionCommand`](https://github.com/actions/runner/blob/v2.330.0/src/Runner.Common/ActionCommand.cs)).
//!
//! A test talks to the listener with a line of JSON for each job, and gets two lines for it.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{Agent, Internet, binary};

/// The user that runners of tests run as, and its group.
const NOBODY: u32 = 65534;

/// What the step of the started hook is called.
pub const STARTED: &str = "Set up runner";

/// What the step of the completed hook is called.
pub const COMPLETED: &str = "Complete runner";

/// A job, as the server describes it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// `GITHUB_REPOSITORY`.
    pub repository: String,
    /// `GITHUB_RUN_ID`.
    pub run: u64,
    /// `GITHUB_JOB`, its key in the workflow.
    pub job: String,
    /// `GITHUB_BASE_REF`; empty unless a pull request is built.
    pub base_ref: String,
    /// The payload of the event.
    pub event: Value,
    /// What it runs.
    pub steps: Vec<Step>,
}

/// A step of a job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// Its script.
    pub run: String,
    /// Whether it runs `if: always()`.
    pub always: bool,
}

impl Job {
    /// A job of `repository`, for a push to its branch `main`.
    #[must_use]
    pub fn new(repository: &str) -> Self {
        Self {
            repository: repository.to_owned(),
            run: 12_345_678_901,
            job: "build".to_owned(),
            base_ref: String::new(),
            event: json!({"repository": {"full_name": repository}, "ref": "refs/heads/main"}),
            steps: Vec::new(),
        }
    }

    /// With one step more.
    #[must_use]
    pub fn step(mut self, name: &str, run: &str) -> Self {
        self.steps.push(Step {
            name: name.to_owned(),
            run: run.to_owned(),
            always: false,
        });
        self
    }

    /// With one step more, which runs also after one that has failed.
    #[must_use]
    pub fn always(self, name: &str, run: &str) -> Self {
        let mut job = self.step(name, run);
        if let Some(step) = job.steps.last_mut() {
            step.always = true;
        }
        job
    }
}

/// How a job or a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Conclusion {
    /// It succeeded.
    Success,
    /// It failed.
    Failure,
    /// It was not run.
    Skipped,
    /// Its worker is gone.
    Lost,
}

/// What a server is told of a job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// How it ended.
    pub conclusion: Conclusion,
    /// Its hooks and steps.
    pub steps: Vec<Ran>,
}

/// What a server is told of a step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ran {
    /// Its name; that of a hook is [`STARTED`] or [`COMPLETED`].
    pub name: String,
    /// How it ended.
    pub conclusion: Conclusion,
    /// What it printed.
    pub log: String,
    /// The workflow commands in that.
    pub commands: Vec<WorkflowCommand>,
    /// What it wrote to its summary.
    pub summary: String,
}

/// A workflow command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkflowCommand {
    /// Its name.
    pub name: String,
    /// Its properties.
    pub properties: BTreeMap<String, String>,
    /// Its text.
    pub data: String,
}

impl Outcome {
    /// The step `name`.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    #[track_caller]
    pub fn step(&self, name: &str) -> &Ran {
        let found = self.steps.iter().find(|step| step.name == name);
        found.unwrap_or_else(|| panic!("no step {name}: {self:#?}"))
    }
}

impl Ran {
    /// The annotations of `level`: `error`, `warning` or `notice`.
    #[must_use]
    pub fn annotations(&self, level: &str) -> Vec<&WorkflowCommand> {
        let commands = self.commands.iter();
        commands.filter(|command| command.name == level).collect()
    }
}

/// What a runner's `.env` names as hooks.
#[derive(Clone, Debug, Default)]
pub struct Hooks {
    /// `ACTIONS_RUNNER_HOOK_JOB_STARTED`.
    pub started: Option<PathBuf>,
    /// `ACTIONS_RUNNER_HOOK_JOB_COMPLETED`.
    pub completed: Option<PathBuf>,
}

impl Hooks {
    /// The hooks as they are installed, for the binary and the agent under test.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn installed(internet: &Internet, agent: &Agent) -> Result<Self> {
        let install = |name: &str, text: &str| -> Result<PathBuf> {
            let socket = agent.socket().to_string_lossy().into_owned();
            let text = hook(text, &binary()?, &["--socket", &socket])?;
            let path = internet.dir().join(name);
            fs::write(&path, text)?;
            Ok(path)
        };
        Ok(Self {
            started: Some(install("started.js", STARTED_JS)?),
            completed: Some(install("completed.js", COMPLETED_JS)?),
        })
    }
}

/// The started hook as it comes with jobfence.
pub const STARTED_JS: &str = include_str!("../../userspace/cli/ci/github/started.js");

/// The completed hook as it comes with jobfence.
pub const COMPLETED_JS: &str = include_str!("../../userspace/cli/ci/github/completed.js");

/// A hook that executes `program` with `more` arguments at the end.
///
/// # Errors
/// When the hook does not name the program as expected.
pub fn hook(text: &str, program: &Path, more: &[&str]) -> Result<String> {
    let installed = "\"/usr/bin/jobfence\"";
    let end = "];\n";
    ensure!(
        text.matches(installed).count() == 1,
        "it names a program: {text}"
    );
    ensure!(text.matches(end).count() == 1, "it names arguments: {text}");
    let more: String = more
        .iter()
        .map(|word| format!(", {}", json!(word)))
        .collect();
    let program = json!(program.to_string_lossy()).to_string();
    let text = text.replace(installed, &program);
    Ok(text.replace(end, &format!("{more}{end}")))
}

/// A runner on the job side of a private internet.
pub struct Runner {
    name: String,
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Runner {
    /// Sets up a runner's folder, and starts its listener as the user `nobody`. `program` is the
    /// binary `runner` of this crate.
    ///
    /// # Errors
    /// When it does not begin to listen.
    pub fn start(internet: &Internet, name: &str, program: &Path, hooks: &Hooks) -> Result<Self> {
        let folder = internet.dir().join(name);
        for path in ["bin", "externals/node20/bin", "_work/_temp"] {
            fs::create_dir_all(folder.join(path))?;
        }
        let listener = folder.join("bin/Runner.Listener");
        fs::copy(program, &listener).context("cannot copy the runner")?;
        fs::set_permissions(&listener, fs::Permissions::from_mode(0o755))?;
        fs::hard_link(&listener, folder.join("bin/Runner.Worker"))?;
        symlink(node()?, folder.join("externals/node20/bin/node"))?;
        // The original begins it with a byte order mark.
        let settings = format!("\u{feff}{}", json!({"agentId": 1, "agentName": name}));
        fs::write(folder.join(".runner"), settings)?;
        let mut environment = String::new();
        for (variable, hook) in [
            ("ACTIONS_RUNNER_HOOK_JOB_STARTED", &hooks.started),
            ("ACTIONS_RUNNER_HOOK_JOB_COMPLETED", &hooks.completed),
        ] {
            if let Some(hook) = hook {
                environment += &format!("{variable}={}\n", hook.display());
            }
        }
        fs::write(folder.join(".env"), environment)?;
        for path in ["", "_work", "_work/_temp"] {
            chown(folder.join(path), Some(NOBODY), Some(NOBODY))?;
        }
        let mut command = internet.command("setpriv");
        command
            .args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups"])
            .arg(&listener)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start the listener")?;
        let stdin = child.stdin.take().context("no stdin")?;
        let stdout = BufReader::new(child.stdout.take().context("no stdout")?);
        let mut runner = Self {
            name: name.to_owned(),
            child,
            stdin,
            stdout,
        };
        // It is what it will be, and not nsenter any more.
        let up: String = runner.hear()?;
        ensure!(up == "up", "the listener said {up}");
        Ok(runner)
    }

    /// Puts it into a fence of its own, as the service does that starts it; returns the fence's id.
    ///
    /// # Errors
    /// When the daemon refuses.
    pub fn fence(&self, agent: &Agent, policy: &str) -> Result<String> {
        let folder = agent.folder();
        let file = folder.join(format!("{}.yml", self.name));
        fs::write(&file, policy)?;
        let pid = self.child.id();
        let id = format!("runner-{}-{pid}", self.name);
        let (pid, file) = (pid.to_string(), file.to_string_lossy());
        let arguments = [
            "start", "--runner", "--id", &id, "--pid", &pid, "--policy", &file,
        ];
        let started = agent.job(&arguments)?;
        ensure!(started.status.success(), "{started:?}\n{}", agent.said());
        Ok(id)
    }

    /// Gives it a job; returns the worker's process id.
    ///
    /// # Errors
    /// When the listener is gone.
    pub fn begin(&mut self, job: &Job) -> Result<u32> {
        writeln!(self.stdin, "{}", serde_json::to_string(job)?)?;
        self.hear()
    }

    /// Waits until the job has ended.
    ///
    /// # Errors
    /// When the listener is gone.
    pub fn end(&mut self) -> Result<Outcome> {
        self.hear()
    }

    /// Has it run a job to its end.
    ///
    /// # Errors
    /// When the listener is gone.
    pub fn run(&mut self, job: &Job) -> Result<Outcome> {
        self.begin(job)?;
        self.end()
    }

    fn hear<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("the listener said {line:?}"))
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        // It may have been killed with its fence.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The node of this machine.
fn node() -> Result<PathBuf> {
    which("node", &env::var("PATH").unwrap_or_default()).context("no node in the path")
}

/// The program `name` that a path leads to.
fn which(name: &str, path: &str) -> Option<PathBuf> {
    let mut places = env::split_paths(path).map(|folder| folder.join(name));
    places.find(|file| {
        fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 1 != 0)
    })
}

/// What the binary does: it is a listener or a worker, by its name.
///
/// # Errors
/// When whoever talks to it is gone.
pub fn main() -> Result<()> {
    let program = env::current_exe()?;
    let folder = program.ancestors().nth(2).context("the runner's folder")?;
    match program.file_name().and_then(|name| name.to_str()) {
        Some("Runner.Listener") => listen(folder),
        Some("Runner.Worker") => work(folder),
        _ => bail!("not called by a runner's name: {}", program.display()),
    }
}

/// Starts a worker for each job that it is told of.
fn listen(folder: &Path) -> Result<()> {
    let environment = fs::read_to_string(folder.join(".env"))?;
    let environment = environment.lines().filter_map(|line| line.split_once('='));
    let say = |value: &Value| writeln!(io::stdout(), "{value}");
    say(&json!("up"))?;
    for job in io::stdin().lines() {
        let mut command = Command::new(folder.join("bin/Runner.Worker"));
        command
            .arg("spawnclient")
            .envs(environment.clone())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut worker = command.spawn()?;
        say(&json!(worker.id()))?;
        let told = worker
            .stdin
            .take()
            .context("no stdin")?
            .write_all(job?.as_bytes());
        let output = worker.wait_with_output()?;
        let lost = json!({"conclusion": "lost", "steps": []});
        let outcome = serde_json::from_slice(&output.stdout).unwrap_or(lost);
        say(&if told.is_ok() { outcome } else { json!(null) })?;
    }
    Ok(())
}

/// Serves one job, and says how it ended.
fn work(folder: &Path) -> Result<()> {
    let job: Job = serde_json::from_reader(io::stdin())?;
    let outcome = Worker::new(folder, job)?.serve()?;
    writeln!(io::stdout(), "{}", serde_json::to_string(&outcome)?)?;
    Ok(())
}

struct Worker {
    folder: PathBuf,
    workspace: PathBuf,
    temp: PathBuf,
    job: Job,
    /// What describes the job.
    context: BTreeMap<&'static str, String>,
    /// What steps have set for the steps after them.
    environment: Vec<(String, String)>,
    /// What steps have put before the path, the latest first.
    path: Vec<String>,
    ran: Vec<Ran>,
}

impl Worker {
    fn new(folder: &Path, job: Job) -> Result<Self> {
        let settings = fs::read_to_string(folder.join(".runner"))?;
        let settings: Value = serde_json::from_str(settings.trim_start_matches('\u{feff}'))?;
        let temp = folder.join("_work/_temp");
        let name = job.repository.rsplit('/').next().unwrap_or_default();
        let workspace = folder.join("_work").join(name).join(name);
        fs::create_dir_all(&workspace)?;
        let payload = temp.join("_github_workflow/event.json");
        fs::create_dir_all(temp.join("_github_workflow"))?;
        fs::write(&payload, job.event.to_string())?;
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let (is_pull, branch) = match job.base_ref.as_str() {
            "" => (false, "main"),
            _ => (true, "7/merge"),
        };
        let context = [
            ("CI", "true".to_owned()),
            ("GITHUB_ACTIONS", "true".to_owned()),
            ("GITHUB_ACTOR", "octo".to_owned()),
            ("GITHUB_BASE_REF", job.base_ref.clone()),
            (
                "GITHUB_EVENT_NAME",
                if is_pull { "pull_request" } else { "push" }.to_owned(),
            ),
            ("GITHUB_EVENT_PATH", path(&payload)),
            (
                "GITHUB_HEAD_REF",
                if is_pull { "change" } else { "" }.to_owned(),
            ),
            ("GITHUB_JOB", job.job.clone()),
            (
                "GITHUB_REF",
                if is_pull {
                    "refs/pull/7/merge"
                } else {
                    "refs/heads/main"
                }
                .to_owned(),
            ),
            ("GITHUB_REF_NAME", branch.to_owned()),
            ("GITHUB_REF_TYPE", "branch".to_owned()),
            ("GITHUB_REPOSITORY", job.repository.clone()),
            ("GITHUB_REPOSITORY_ID", "1".to_owned()),
            ("GITHUB_RUN_ATTEMPT", "1".to_owned()),
            ("GITHUB_RUN_ID", job.run.to_string()),
            ("GITHUB_RUN_NUMBER", "7".to_owned()),
            ("GITHUB_SHA", "0".repeat(40)),
            ("GITHUB_WORKFLOW", "test".to_owned()),
            ("GITHUB_WORKSPACE", path(&workspace)),
            ("RUNNER_ARCH", "X64".to_owned()),
            (
                "RUNNER_NAME",
                settings["agentName"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
            ),
            ("RUNNER_OS", "Linux".to_owned()),
            ("RUNNER_TEMP", path(&temp)),
            ("RUNNER_WORKSPACE", path(&folder.join("_work").join(name))),
        ];
        Ok(Self {
            folder: folder.to_owned(),
            workspace,
            temp,
            job,
            context: context.into(),
            environment: Vec::new(),
            path: Vec::new(),
            ran: Vec::new(),
        })
    }

    fn serve(mut self) -> Result<Outcome> {
        if let Some(hook) = env::var_os("ACTIONS_RUNNER_HOOK_JOB_STARTED") {
            self.hook(STARTED, Path::new(&hook))?;
        }
        for step in self.job.steps.clone() {
            if self.has_failed() && !step.always {
                self.ran.push(Ran {
                    name: step.name,
                    conclusion: Conclusion::Skipped,
                    log: String::new(),
                    commands: Vec::new(),
                    summary: String::new(),
                });
                continue;
            }
            let script = self.temp.join(format!("step-{}.sh", self.ran.len()));
            fs::write(&script, &step.run)?;
            let mut command = self.bash(&["--noprofile", "--norc", "-e"], &script)?;
            command.envs(self.environment.clone());
            self.run(&step.name, command)?;
        }
        if let Some(hook) = env::var_os("ACTIONS_RUNNER_HOOK_JOB_COMPLETED") {
            self.hook(COMPLETED, Path::new(&hook))?;
        }
        Ok(Outcome {
            conclusion: match self.has_failed() {
                true => Conclusion::Failure,
                false => Conclusion::Success,
            },
            steps: self.ran,
        })
    }

    fn has_failed(&self) -> bool {
        self.ran
            .iter()
            .any(|ran| ran.conclusion == Conclusion::Failure)
    }

    fn hook(&mut self, name: &str, path: &Path) -> Result<()> {
        let extension = path.extension().and_then(|extension| extension.to_str());
        let command = match extension {
            _ if !path.is_file() => None,
            Some("js") => {
                let mut command = Command::new(self.folder.join("externals/node20/bin/node"));
                command.arg(path);
                Some(command)
            }
            Some("sh") => Some(self.bash(&["-e"], path)?),
            _ => None,
        };
        match command {
            Some(command) => self.run(name, command),
            None => {
                self.ran.push(Ran {
                    name: name.to_owned(),
                    conclusion: Conclusion::Failure,
                    log: "File doesn't exist, or has no extension of a hook".to_owned(),
                    commands: Vec::new(),
                    summary: String::new(),
                });
                Ok(())
            }
        }
    }

    /// What the job takes for `bash`.
    fn bash(&self, arguments: &[&str], script: &Path) -> Result<Command> {
        let bash = which("bash", &self.search_path()).context("no bash")?;
        let mut command = Command::new(bash);
        command.args(arguments).arg(script);
        Ok(command)
    }

    fn search_path(&self) -> String {
        let own = env::var("PATH").unwrap_or_default();
        let all = self.path.iter().cloned().chain([own]);
        all.collect::<Vec<_>>().join(":")
    }

    /// Runs a hook or a step, and reads what it says to the runner.
    fn run(&mut self, name: &str, mut command: Command) -> Result<()> {
        let files = [
            "GITHUB_ENV",
            "GITHUB_PATH",
            "GITHUB_OUTPUT",
            "GITHUB_STEP_SUMMARY",
        ];
        let number = self.ran.len();
        let file = |variable: &str| self.temp.join(format!("{variable}-{number}"));
        for variable in files {
            fs::write(file(variable), "")?;
            command.env(variable, file(variable));
        }
        let (reader, writer) = io::pipe()?;
        command
            .current_dir(&self.workspace)
            .env("PATH", self.search_path())
            .envs(&self.context)
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer);
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        // Of the pipe's writing end, too: what is read ends with the child.
        drop(command);
        let mut log = Vec::new();
        io::copy(&mut BufReader::new(reader), &mut log)?;
        let log = String::from_utf8_lossy(&log).into_owned();
        let status = child.wait()?;
        let read = |variable| fs::read_to_string(file(variable));
        let (variables, paths) = (read("GITHUB_ENV")?, read("GITHUB_PATH")?);
        let summary = read("GITHUB_STEP_SUMMARY")?;
        for line in variables.lines() {
            let Some((name, value)) = line.split_once('=') else {
                continue;
            };
            if name != "NODE_OPTIONS" {
                self.environment.push((name.to_owned(), value.to_owned()));
            }
        }
        for path in paths.lines() {
            self.path.insert(0, path.to_owned());
        }
        self.ran.push(Ran {
            name: name.to_owned(),
            conclusion: match status.success() {
                true => Conclusion::Success,
                false => Conclusion::Failure,
            },
            commands: log.split(['\r', '\n']).filter_map(parse).collect(),
            log,
            summary,
        });
        Ok(())
    }
}

/// The commands that a runner knows.
const KNOWN: [&str; 15] = [
    "add-mask",
    "add-matcher",
    "add-path",
    "debug",
    "echo",
    "endgroup",
    "error",
    "group",
    "notice",
    "remove-matcher",
    "save-state",
    "set-env",
    "set-output",
    "stop-commands",
    "warning",
];

/// The workflow command that a line is, or has in it.
fn parse(line: &str) -> Option<WorkflowCommand> {
    parse_line(line).or_else(|| parse_bracket(line))
}

/// `::name key=value,key=value::text`.
fn parse_line(line: &str) -> Option<WorkflowCommand> {
    let (head, data) = line.trim_start().strip_prefix("::")?.split_once("::")?;
    command(
        head,
        data,
        ',',
        &[("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ",")],
    )
}

/// `##[name key=value;key=value]text`.
fn parse_bracket(line: &str) -> Option<WorkflowCommand> {
    let (_, rest) = line.split_once("##[")?;
    let (head, data) = rest.split_once(']')?;
    command(
        head,
        data,
        ';',
        &[("%3B", ";"), ("%0D", "\r"), ("%0A", "\n"), ("%5D", "]")],
    )
}

fn command(
    head: &str,
    data: &str,
    separator: char,
    escapes: &[(&str, &str)],
) -> Option<WorkflowCommand> {
    let unescape = |text: &str, escapes: &[(&str, &str)]| {
        let plain = escapes
            .iter()
            .fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
        plain.replace("%25", "%")
    };
    let (name, properties) = head.split_once(' ').unwrap_or((head, ""));
    if !KNOWN.contains(&name) {
        return None;
    }
    let properties = properties.trim().split(separator);
    let properties = properties.filter_map(|property| {
        let (key, value) = property.split_once('=')?;
        Some((key.to_lowercase(), unescape(value, escapes)))
    });
    let is_line = separator == ',';
    Some(WorkflowCommand {
        name: name.to_owned(),
        properties: properties.collect(),
        data: unescape(data, if is_line { &escapes[..2] } else { escapes }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_the_runner_reads_them() {
        let error =
            parse("  ::error file=a%2Cb,line=7,Title=x%3Ay::50%25%0Amore: yes").expect("one");
        assert_eq!(error.name, "error");
        let properties = [("file", "a,b"), ("line", "7"), ("title", "x:y")];
        let properties = properties.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(error.properties, properties.into());
        assert_eq!(error.data, "50%\nmore: yes");
        let older = parse("text ##[set-env name=a%3Bb]c").expect("one");
        assert_eq!((older.name.as_str(), older.data.as_str()), ("set-env", "c"));
        assert_eq!(older.properties["name"], "a;b");
        for line in [
            "",
            "::",
            "::error",
            "- ::error::x",
            "::nothing::x",
            "## [error]x",
            "%3A:error::x",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
