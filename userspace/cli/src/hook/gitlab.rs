//! GitLab Runner's custom executor: a driver that runs each stage of a job in a fence of its own.
//!
//! GitLab Runner calls the driver once before a job (`config`, `prepare`), once for each of its stages
//! (`run SCRIPT STAGE`) and once after it (`cleanup`). A stage is one command of the host's agent, as
//! `jobfence run` starts it: a failure is told by the exit code of `run`, since that of `cleanup`
//! changes nothing any more.
//!
//! Variables of a job reach the driver as `CUSTOM_ENV_…`, and a project can set most of them. So who a
//! job is, the driver takes from `JOB_RESPONSE_FILE`, which holds what GitLab said to the runner.

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Error;
use clap::{Args, Subcommand};
use jobfence_agent::{
    control::{
        client::ClientError,
        protocol::{
            Answer, Code, JobId, JobStatus, Labels, Nothing, Phase, PolicyText, Refusal, Request,
        },
    },
    job::{
        delegate,
        run::RunError,
        user::{Account, UserError},
    },
};
use nix::unistd::dup2_stdin;
use serde::Deserialize;
use serde_json::json;
use thiserror::Error as ThisError;
use tokio::runtime::Runtime;

use super::{ask, label, optional};
use crate::{policy, report, run::VIOLATION};

/// The stages in which GitLab Runner does its own work. Any other is a script of the project's: what
/// is not known here has the smaller rights.
const PLATFORM: [&str; 10] = [
    "archive_cache",
    "archive_cache_on_failure",
    "cleanup_file_variables",
    "download_artifacts",
    "get_sources",
    "prepare_executor",
    "prepare_script",
    "restore_cache",
    "upload_artifacts_on_failure",
    "upload_artifacts_on_success",
];

/// Where a project's file is, in its folder.
const NARROWING: [&str; 2] = [".jobfence.yml", ".github/jobfence.yml"];

/// Where commands of a job are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Variables of the runner's service that say how its host writes texts and times.
const HOST_VARIABLES: [&str; 4] = ["LANG", "LANGUAGE", "LC_ALL", "TZ"];

/// How often a stage can run again in one job.
const MOST_TRIES: u32 = 100;

/// Bytes of what GitLab says of a job, at most.
const MAX_RESPONSE: u64 = 64 << 20;

#[derive(Subcommand)]
pub(super) enum Hook {
    /// Print where jobs are built: config_exec
    Config(Driver),
    /// See that a job can be fenced: prepare_exec
    Prepare(Driver),
    /// Run a stage of a job in a fence: run_exec
    Run {
        #[command(flatten)]
        driver: Driver,
        /// The script, which GitLab Runner has written
        #[arg(value_name = "SCRIPT")]
        script: PathBuf,
        /// The name of the stage
        #[arg(value_name = "STAGE")]
        stage: String,
    },
    /// End what is left of a job: cleanup_exec
    Cleanup(Driver),
}

#[derive(Args)]
pub(super) struct Driver {
    /// User to run jobs as
    #[arg(long, value_name = "USER", default_value = "gitlab-runner")]
    user: String,
    /// Policy of the stages in which GitLab Runner itself works: sources, caches, artifacts
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/jobfence/runners/gitlab.yml"
    )]
    runner_policy: PathBuf,
}

/// What cannot be laid to the job: GitLab calls it a failure of the runner system.
#[derive(Debug, ThisError)]
enum GitlabError {
    /// GitLab Runner sets it in every call.
    #[error("{0} is not set: this is a driver, which GitLab Runner's custom executor calls")]
    NoVariable(&'static str),
    /// What GitLab said of the job.
    #[error("could not read JOB_RESPONSE_FILE, {path}: {source}")]
    Response {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It names no project.
    #[error(
        "{0} names no project: neither job_info.project_full_path nor a path in git_info.repo_url"
    )]
    NoProject(PathBuf),
    /// The user of jobs.
    #[error(transparent)]
    User(#[from] UserError),
    /// A home folder is where jobs are built.
    #[error("user {0} has no home folder: give --user one that has")]
    NoHome(String),
    /// The script of a stage.
    #[error("could not open the script {path}: {source}")]
    Script {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A policy file.
    #[error("{0}")]
    Policy(Error),
    /// The fence.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The agent.
    #[error(transparent)]
    Agent(#[from] ClientError),
    /// Some other call.
    #[error("could not {doing}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

fn failed(doing: &'static str) -> impl Fn(io::Error) -> GitlabError {
    move |source| GitlabError::Io { doing, source }
}

/// How a call of the driver ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Success,
    /// The job has failed; with the exit status of its script.
    BuildFailure(u8),
    SystemFailure,
}

/// Does what one call of the driver is to do.
pub(super) fn hook(hook: &Hook, socket: &Path) -> ExitCode {
    let end = match hook {
        Hook::Config(driver) => driver.config().map(|()| End::Success),
        Hook::Prepare(driver) => driver.prepare(socket),
        Hook::Run {
            driver,
            script,
            stage,
        } => driver.run(socket, script, stage),
        Hook::Cleanup(_) => cleanup(socket).map(|()| End::Success),
    };
    end.unwrap_or_else(|error| {
        report::emit(&format!("jobfence: {error}\n"));
        End::SystemFailure
    })
    .into()
}

impl From<End> for ExitCode {
    fn from(end: End) -> Self {
        // The runner says which codes it takes for what; these are what they have always been.
        match end {
            End::Success => Self::SUCCESS,
            End::BuildFailure(status) => {
                tell_status(status);
                number("BUILD_FAILURE_EXIT_CODE").unwrap_or(1).into()
            }
            End::SystemFailure => number("SYSTEM_FAILURE_EXIT_CODE").unwrap_or(2).into(),
        }
    }
}

fn number(variable: &str) -> Option<u8> {
    optional(variable)?.parse().ok()
}

/// Tells runners that want to know it (since 17.5) the script's own exit status, for
/// `allow_failure: exit_codes`.
fn tell_status(status: u8) {
    if let Some(path) = env::var_os("BUILD_EXIT_CODE_FILE")
        && let Err(error) = fs::write(&path, status.to_string())
    {
        tracing::warn!(%error, path = %path.display(), "the exit status is not told");
    }
}

impl Driver {
    fn config(&self) -> Result<(), GitlabError> {
        let home = self.home(&self.account()?)?;
        let config = json!({
            "driver": {"name": "jobfence", "version": env!("CARGO_PKG_VERSION")},
            "builds_dir": home.join("builds"),
            "cache_dir": home.join("cache"),
            // Jobs that run at once get folders of their own below it.
            "builds_dir_is_shared": true,
            "job_env": {},
        });
        let text = format!("{config}\n");
        let written = io::stdout().write_all(text.as_bytes());
        written.map_err(failed("write to standard output"))
    }

    /// Has the agent make a fence with either policy, with nothing in it that could do harm: nothing
    /// else finds out as surely whether the job can be fenced.
    fn prepare(&self, socket: &Path) -> Result<End, GitlabError> {
        let job = Job::read()?;
        let command = || vec!["/bin/true".into()];
        for (stage, policy) in [
            ("prepare_runner", Rules::OfRunner(self.runner_policy()?)),
            ("prepare", Rules::OfProject(None)),
        ] {
            let outcome = self.launch(socket, &job, stage, policy, command())?;
            if outcome.finished.exit != 0 || outcome.status != 0 {
                report::emit(&outcome.finished.report);
                return Ok(End::SystemFailure);
            }
            if stage == "prepare" {
                let JobStatus { state, policy, .. } = &outcome.finished.status;
                let policy = policy.as_deref().unwrap_or("none");
                report::emit(&format!(
                    "jobfence: each stage of {} runs in a fence as {} ({state}), policy: {policy}\n",
                    job.project, self.user
                ));
            }
        }
        Ok(End::Success)
    }

    fn run(&self, socket: &Path, script: &Path, stage: &str) -> Result<End, GitlabError> {
        let job = Job::read()?;
        let account = self.account()?;
        let rules = match PLATFORM.contains(&stage) {
            true => Rules::OfRunner(self.runner_policy()?),
            false => match narrowing(&account) {
                Ok(policy) => Rules::OfProject(policy),
                Err(error) if error.is::<policy::NotThatUser>() => {
                    return Err(GitlabError::Policy(error));
                }
                // Nobody can say what of it the project wants to be taken away.
                Err(error) => {
                    report::error(&error);
                    return Ok(End::BuildFailure(1));
                }
            },
        };
        // The script is root's, and in a folder of root's.
        let opened = File::open(script).map_err(|source| GitlabError::Script {
            path: script.to_owned(),
            source,
        })?;
        dup2_stdin(&opened).map_err(|errno| failed("read the script")(errno.into()))?;
        let is_projects = matches!(rules, Rules::OfProject(_));
        let command = self.command(&account)?;
        let outcome = match self.launch(socket, &job, stage, rules, command) {
            Ok(outcome) => outcome,
            Err(GitlabError::Run(RunError::Agent(ClientError::Refused(Refusal {
                code: Code::Policy,
                message,
            }))))
                if is_projects =>
            {
                report::emit(&format!("jobfence: {message}\n"));
                return Ok(End::BuildFailure(1));
            }
            Err(error) => return Err(error),
        };
        if let Some(error) = &outcome.not_executed {
            report::emit(&format!("jobfence: {error}\n"));
        }
        let exit = outcome.finished.exit;
        // GitLab's own stages are many, and seldom of interest.
        if is_projects || exit != 0 || outcome.status != 0 {
            report::emit(&outcome.finished.report);
        }
        Ok(match (exit, outcome.status) {
            (0, 0) => End::Success,
            (0, status) => End::BuildFailure(status),
            (VIOLATION, _) => End::BuildFailure(VIOLATION),
            _ => End::SystemFailure,
        })
    }

    /// Runs a command as a job of the agent, to its end.
    fn launch(
        &self,
        socket: &Path,
        job: &Job,
        stage: &str,
        rules: Rules,
        command: Vec<OsString>,
    ) -> Result<delegate::Outcome, GitlabError> {
        let (policy, narrows) = match rules {
            Rules::OfRunner(policy) => (Some(policy), false),
            Rules::OfProject(narrowing) => (narrowing, true),
        };
        let account = self.account()?;
        // The runner's own temporary folder, where this was called, is closed to the job's user.
        let home = self.home(&account)?;
        env::set_current_dir(&home).map_err(failed("go to the home folder of the job's user"))?;
        let runtime = runtime().map_err(failed("start an event loop"))?;
        for number in 1..=MOST_TRIES {
            let options = delegate::Options {
                socket: socket.to_owned(),
                id: Some(job.id_of(stage, number)),
                policy: policy.clone(),
                narrows,
                labels: job.labels(),
                job: "default".to_owned(),
                audit: None,
                account: account.clone(),
                command: command.clone(),
                log: None,
            };
            match runtime.block_on(delegate::run(options)) {
                // The stage has run before.
                Err(RunError::Agent(ClientError::Refused(refusal)))
                    if refusal.code == Code::Exists && number < MOST_TRIES => {}
                ran => return Ok(ran?),
            }
        }
        unreachable!("the last try returns")
    }

    /// A shell that reads the script, with an environment of its own: that of this process is the
    /// runner's, and holds what is none of the job's business. The script sets the job's variables.
    fn command(&self, account: &Account) -> Result<Vec<OsString>, GitlabError> {
        let home = self.home(account)?;
        let mut command: Vec<OsString> = vec!["/usr/bin/env".into(), "-i".into()];
        let set = |name: &str, value: OsString| {
            let mut word = OsString::from(format!("{name}="));
            word.push(value);
            word
        };
        let of_host = HOST_VARIABLES
            .into_iter()
            .filter_map(|name| Some((name, env::var_os(name)?)));
        let of_user = account.environment().into_iter();
        command.extend(of_host.chain(of_user).map(|(name, value)| set(name, value)));
        command.push(set("PATH", PATH.into()));
        command.push(set("PWD", home.into()));
        command.push("bash".into());
        Ok(command)
    }

    fn account(&self) -> Result<Account, UserError> {
        Account::find(Some(&self.user))
    }

    fn home(&self, account: &Account) -> Result<PathBuf, GitlabError> {
        let home = account.entry.as_ref().map(|entry| entry.home.clone());
        home.filter(|home| home.is_absolute())
            .ok_or_else(|| GitlabError::NoHome(self.user.clone()))
    }

    fn runner_policy(&self) -> Result<PolicyText, GitlabError> {
        let root = Account::find(Some("0"))?;
        policy::text(&self.runner_policy, &root).map_err(GitlabError::Policy)
    }
}

fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// Where a stage's rules come from.
enum Rules {
    /// What the runner itself may reach.
    OfRunner(PolicyText),
    /// What the host has for the project, from which the project's own file takes.
    OfProject(Option<PolicyText>),
}

/// The project's own file, which counts as far as it takes from what the host allows. The job's user
/// reads it, from where the job has put it.
fn narrowing(account: &Account) -> anyhow::Result<Option<PolicyText>> {
    let Some(folder) = env::var_os("CUSTOM_ENV_CI_PROJECT_DIR") else {
        return Ok(None);
    };
    for place in NARROWING {
        match policy::text(&Path::new(&folder).join(place), account) {
            Ok(text) => {
                return Ok(Some(PolicyText {
                    file: place.to_owned(),
                    ..text
                }));
            }
            Err(error) if policy::is_absent(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Ends the stages of this job that have outlived their call of the driver.
fn cleanup(socket: &Path) -> Result<(), GitlabError> {
    let job = Job::read()?;
    let Answer::Jobs(jobs) = ask(socket, &Request::List(Nothing {}))?.answer else {
        return Ok(());
    };
    for other in jobs {
        let is_ours = other.id.starts_with(&job.prefix())
            && other.labels.repo.as_deref() == Some(&job.project)
            && other.phase == Phase::Running;
        if is_ours {
            tracing::warn!(job = other.id, "ended, since it was left behind");
            ask(socket, &Request::Finish(JobId { id: other.id }))?;
        }
    }
    Ok(())
}

/// A job, as GitLab has described it to the runner.
#[derive(Debug, PartialEq, Eq)]
struct Job {
    id: u64,
    /// `group/project`.
    project: String,
    git_ref: String,
}

/// The parts of the description that are needed.
#[derive(Deserialize)]
struct Response {
    id: u64,
    job_info: JobInfo,
    git_info: GitInfo,
}

#[derive(Deserialize)]
struct JobInfo {
    /// Since GitLab 18.
    #[serde(default)]
    project_full_path: String,
}

#[derive(Deserialize)]
struct GitInfo {
    repo_url: String,
    #[serde(rename = "ref")]
    git_ref: String,
}

impl Job {
    fn read() -> Result<Self, GitlabError> {
        const NAME: &str = "JOB_RESPONSE_FILE";
        let path = PathBuf::from(env::var_os(NAME).ok_or(GitlabError::NoVariable(NAME))?);
        let failed = |source| GitlabError::Response {
            path: path.clone(),
            source,
        };
        let size = fs::metadata(&path).map_err(failed)?.len();
        if size > MAX_RESPONSE {
            return Err(failed(io::ErrorKind::FileTooLarge.into()));
        }
        let bytes = fs::read(&path).map_err(failed)?;
        let response = serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))?;
        Self::of(response).ok_or(GitlabError::NoProject(path))
    }

    fn of(response: Response) -> Option<Self> {
        let Response {
            id,
            job_info,
            git_info,
        } = response;
        let project = match job_info.project_full_path {
            path if path.is_empty() => path_of(&git_info.repo_url)?.to_owned(),
            path => path,
        };
        Some(Self {
            id,
            project,
            git_ref: git_info.git_ref,
        })
    }

    fn labels(&self) -> Labels {
        let of = |name| optional(name).map(|text| label(&text));
        Labels {
            repo: Some(label(&self.project)),
            git_ref: Some(label(&self.git_ref)),
            // A branch that the host does not trust counts for nothing.
            base: Some(label(&self.git_ref)),
            run: of("CUSTOM_ENV_CI_PIPELINE_ID"),
            workflow: of("CUSTOM_ENV_CI_JOB_NAME"),
            actor: of("CUSTOM_ENV_GITLAB_USER_LOGIN"),
            runner: of("CUSTOM_ENV_CI_RUNNER_DESCRIPTION"),
            ..Labels::default()
        }
    }

    /// How the ids of its stages begin.
    fn prefix(&self) -> String {
        format!("gitlab-{}-", self.id)
    }

    /// The id of a stage, the first time or again.
    fn id_of(&self, stage: &str, number: u32) -> String {
        /// Characters of a stage's name that an id has room for.
        const ROOM: usize = 32;
        let usual = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let stage = stage
            .chars()
            .map(|c| if usual(c) { c } else { '-' })
            .take(ROOM);
        self.prefix() + &stage.collect::<String>() + &format!("-{number}")
    }
}

/// `group/project` of `https://gitlab-ci-token:…@gitlab.example.com/group/project.git`. Where GitLab
/// itself has a path on its host, that is part of it.
fn path_of(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let (_, path) = rest.split_once('/')?;
    let path = path.trim_matches('/');
    let path = path.strip_suffix(".git").unwrap_or(path);
    (!path.is_empty()).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(response: &str) -> Option<Job> {
        Job::of(serde_json::from_str(response).expect("a response"))
    }

    #[test]
    fn the_project_is_what_gitlab_says_and_not_what_a_variable_says() {
        let new = r#"{"id":7,"job_info":{"name":"test","project_full_path":"group/sub/project"},
            "git_info":{"repo_url":"https://gitlab-ci-token:x@gitlab.test/other/other.git","ref":"main"},
            "variables":[{"key":"CI_PROJECT_PATH","value":"other/other"}]}"#;
        let expected = Job {
            id: 7,
            project: "group/sub/project".to_owned(),
            git_ref: "main".to_owned(),
        };
        assert_eq!(job(new), Some(expected));
        let old = r#"{"id":7,"job_info":{"name":"test"},
            "git_info":{"repo_url":"https://gitlab-ci-token:x@gitlab.test/group/project.git","ref":"main"}}"#;
        let project = job(old).map(|job| job.project);
        assert_eq!(project.as_deref(), Some("group/project"));
        let none =
            r#"{"id":7,"job_info":{},"git_info":{"repo_url":"https://gitlab.test/","ref":"main"}}"#;
        assert_eq!(job(none), None);
    }

    #[test]
    fn an_id_is_one_that_the_agent_takes() {
        let job = Job {
            id: u64::MAX,
            project: String::new(),
            git_ref: String::new(),
        };
        let id = job.id_of(&"step_ä/b".repeat(9), 100);
        assert!(
            id.starts_with("gitlab-18446744073709551615-step_--bstep_"),
            "{id}"
        );
        assert!(id.ends_with("-100") && id.len() <= 64, "{id}");
        assert_ne!(job.id_of("get_sources", 1), job.id_of("get_sources", 2));
    }

    #[test]
    fn an_unknown_stage_is_the_projects() {
        for stage in [
            "build_script",
            "step_script",
            "step_release",
            "after_script",
            "new",
        ] {
            assert!(!PLATFORM.contains(&stage), "{stage}");
        }
    }
}
