//! Buildkite: hooks of the agent.
//!
//! `buildkite-agent start` runs `pre-bootstrap` by itself, before there is a process for the job. It
//! then starts `buildkite-agent bootstrap`, which serves one job, and whose first hook is
//! `environment`: that has the agent make the bootstrap a job, before plugins and sources are fetched.
//! `pre-exit` is the last hook that counts: its exit status replaces that of the job.
//!
//! Buildkite shows what a hook prints in the job's log, where a line that begins with `+++` is a heading
//! that is open, and takes notes for the page of the build, in Markdown, from `buildkite-agent annotate`.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use clap::Subcommand;
use jobfence_agent::{
    control::{
        client::ClientError,
        protocol::{Answer, Code, JobStatus, Labels, Nothing, Request, Start, Started},
    },
    job::process::is_hidden,
};
use thiserror::Error;

use super::{HookError, Process, ancestor, ask, job_id, label, optional, own_job, start, variable};
use crate::run::VIOLATION;

/// How the CI system is called in errors.
const SYSTEM: &str = "Buildkite";

/// The program that serves jobs, and each single one.
const AGENT: &str = "buildkite-agent";

/// What a hook that fails exits with.
const FAILED: u8 = 1;

#[derive(Clone, Copy, Subcommand)]
pub(super) enum Hook {
    /// See that jobs can be fenced, and reject this one if not
    PreBootstrap,
    /// Make the bootstrap a job
    Environment,
    /// Tell what the job was refused, and fail it for that
    PreExit,
}

#[derive(Debug, Error)]
enum BuildkiteError {
    /// What any hook can fail with.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The bootstrap is not there yet.
    #[error(
        "{AGENT} (process {0}) has not started the bootstrap of a job: call this from the hook \
         `environment`"
    )]
    NoBootstrap(u32),
    /// The job has no fence of its own.
    #[error(
        "this job ran outside a fence of its own{}: its environment hook was skipped, replaced or \
         has failed. Put the hooks back with `jobfence install buildkite`",
        .runner.as_ref().map(|id| format!(", in that of the runner ({id})")).unwrap_or_default()
    )]
    Outside {
        /// The runner whose fence it was in, if in any.
        runner: Option<String>,
    },
    /// The job is in a fence that its environment hook has not made.
    #[error(
        "this job runs in the fence of {found}, and its own would be {expected}: {AGENT} was \
         started inside another job. Start it outside, as a service"
    )]
    Other {
        /// The fence that it is in.
        found: String,
        /// The one that its environment hook makes.
        expected: String,
    },
}

/// Runs a hook, and tells Buildkite what went wrong.
pub(super) fn hook(hook: Hook, socket: &Path) -> ExitCode {
    let told = match hook {
        Hook::PreBootstrap => pre_bootstrap(socket),
        Hook::Environment => environment(socket),
        Hook::PreExit => pre_exit(socket),
    };
    let Told { text, code } = told.unwrap_or_else(|error| Told {
        text: format!("+++ jobfence: this job fails\n{error}\n"),
        code: FAILED,
    });
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => code.into(),
        Err(_) => FAILED.into(),
    }
}

/// What the log is told.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    text: String,
    /// 0, or [`FAILED`].
    code: u8,
}

/// Before the bootstrap there is nothing to fence: this only finds out early that the agent is away.
fn pre_bootstrap(socket: &Path) -> Result<Told, BuildkiteError> {
    let answer = ask(socket, &Request::List(Nothing {})).map(|reply| reply.answer);
    match answer {
        Ok(Answer::Jobs(_)) => {}
        // Of a process in the fence of a runner, not everything is answered; but somebody is there.
        Err(ClientError::Refused(_)) => {}
        Ok(_) => return Err(HookError::Unexpected(socket.to_owned()).into()),
        Err(error) => return Err(HookError::from(error).into()),
    }
    Ok(Told {
        text: String::new(),
        code: 0,
    })
}

fn environment(socket: &Path) -> Result<Told, BuildkiteError> {
    let bootstrap = bootstrap()?;
    let id = id_of(&bootstrap)?;
    let order = Start {
        id: id.clone(),
        pid: Some(bootstrap.pid),
        launch: None,
        runner: false,
        policy: None,
        job: None,
        labels: labels()?,
    };
    let started = match start(socket, order) {
        Ok(started) => started,
        // Called twice: from inside its fence nothing is started.
        Err(HookError::Agent(ClientError::Refused(refusal)))
            if refusal.code == Code::Forbidden && own_job(socket).is_ok_and(|job| job.id == id) =>
        {
            let text = "jobfence: the job is fenced already\n".to_owned();
            return Ok(Told { text, code: 0 });
        }
        Err(error) => return Err(error.into()),
    };
    Ok(Told {
        text: tell_start(&started),
        code: 0,
    })
}

/// The process that serves this job: the nearest of its kind, and not the one that serves them all.
fn bootstrap() -> Result<Process, BuildkiteError> {
    let nearest = ancestor(SYSTEM, AGENT)?;
    let agent = variable(SYSTEM, "BUILDKITE_AGENT_PID")?;
    match agent == nearest.pid.to_string() {
        true => Err(BuildkiteError::NoBootstrap(nearest.pid)),
        false => Ok(nearest),
    }
}

/// The id of the job, which is the same for each of its hooks.
fn id_of(bootstrap: &Process) -> Result<String, HookError> {
    let build = variable(SYSTEM, "BUILDKITE_BUILD_NUMBER")?;
    let job = variable(SYSTEM, "BUILDKITE_JOB_ID")?;
    Ok(job_id("buildkite", &build, &job, bootstrap))
}

/// What Buildkite says of the job. Of its variables, a pipeline cannot set these.
fn labels() -> Result<Labels, HookError> {
    let of = |name| optional(name).map(|text| label(&text));
    let organization = variable(SYSTEM, "BUILDKITE_ORGANIZATION_SLUG")?;
    let pipeline = variable(SYSTEM, "BUILDKITE_PIPELINE_SLUG")?;
    Ok(Labels {
        repo: Some(label(&format!("{organization}/{pipeline}"))),
        git_ref: of("BUILDKITE_BRANCH"),
        base: of("BUILDKITE_PULL_REQUEST_BASE_BRANCH").or_else(|| of("BUILDKITE_BRANCH")),
        run: of("BUILDKITE_BUILD_NUMBER"),
        attempt: of("BUILDKITE_RETRY_COUNT"),
        workflow: of("BUILDKITE_LABEL"),
        actor: of("BUILDKITE_BUILD_CREATOR"),
        runner: of("BUILDKITE_AGENT_NAME"),
    })
}

fn tell_start(started: &Started) -> String {
    let mut text = format!(
        "~~~ jobfence: this job is fenced\njobfence: job {} · {} · log {} on the agent's host\n",
        started.id,
        inert(&started.state),
        started.log
    );
    for rule in &started.clipped {
        _ = writeln!(text, "  not allowed by this host: {}", inert(rule));
    }
    for socket in &started.open_before {
        let held = match &started.runner {
            Some(runner) => format!("held to the policy of {runner}"),
            None => "not fenced".to_owned(),
        };
        _ = writeln!(text, "  open before, {held}: {}", inert(socket));
    }
    if started.runner.is_none() {
        text += "  buildkite-agent itself is in no fence: a job that skips its hooks is not held\n";
    }
    text
}

fn pre_exit(socket: &Path) -> Result<Told, BuildkiteError> {
    let status = match own_job(socket) {
        Ok(status) if status.runner => {
            return Err(BuildkiteError::Outside {
                runner: Some(status.id),
            });
        }
        Ok(status) => status,
        Err(HookError::Agent(ClientError::Refused(refusal))) if refusal.code == Code::Unknown => {
            return Err(BuildkiteError::Outside { runner: None });
        }
        Err(error) => return Err(error.into()),
    };
    let expected = id_of(&bootstrap()?)?;
    if status.id != expected {
        return Err(BuildkiteError::Other {
            found: status.id,
            expected,
        });
    }
    let mut told = tell_end(&status);
    if told.code != 0
        && let Err(error) = annotate(&note(&status))
    {
        _ = writeln!(told.text, "jobfence: the build's page has no note: {error}");
    }
    Ok(told)
}

/// What the log is told of a job that ends.
fn tell_end(status: &JobStatus) -> Told {
    let state = inert(&status.state);
    let mut text = match status.exit {
        0 => format!("~~~ jobfence: nothing was refused that counts · {state}\n"),
        VIOLATION => format!(
            "+++ jobfence: refused, so this job fails ({} attempts) · {state}\n",
            status.violations
        ),
        _ => format!("+++ jobfence: the fence failed, so this job does · {state}\n"),
    };
    for refused in &status.refused {
        let mark = match refused.violation {
            true => "✗",
            false => "refused, not a violation:",
        };
        let mut lines = refused.lines().into_iter();
        _ = writeln!(
            text,
            "  {mark} {}",
            inert(&lines.next().unwrap_or_default())
        );
        for line in lines {
            _ = writeln!(text, "      {}", inert(&line));
        }
    }
    if status.refused_more > 0 {
        _ = writeln!(text, "  … and {} more", status.refused_more);
    }
    if let (Some(policy), false) = (&status.policy, status.refused.is_empty()) {
        _ = writeln!(text, "  policy: {}", inert(policy));
    }
    let code = if status.exit == 0 { 0 } else { FAILED };
    Told { text, code }
}

/// A note for the page of the build.
fn note(status: &JobStatus) -> String {
    let job = optional("BUILDKITE_LABEL").map_or_else(
        || "A job".to_owned(),
        |label| format!("The job {}", code(&label)),
    );
    let mut text = match status.exit {
        VIOLATION => format!("**jobfence**: {job} was refused what its policy does not allow.\n\n"),
        _ => format!("**jobfence**: {job} failed, since its fence did.\n\n"),
    };
    for refused in status.refused.iter().filter(|refused| refused.violation) {
        for (index, line) in refused.lines().iter().enumerate() {
            let bullet = if index == 0 { "-" } else { "  -" };
            _ = writeln!(text, "{bullet} {}", code(line));
        }
    }
    if status.refused_more > 0 {
        _ = writeln!(text, "- and {} more", status.refused_more);
    }
    if let Some(policy) = &status.policy {
        _ = writeln!(text, "- policy: {}", code(policy));
    }
    text
}

/// Puts a note on the page of the build. Where the policy does not allow Buildkite's own host there is
/// none; the log tells it all the same.
fn annotate(note: &str) -> io::Result<()> {
    let folder = optional("BUILDKITE_BIN_PATH").map(PathBuf::from);
    let program = folder.map_or_else(|| AGENT.into(), |folder| folder.join(AGENT));
    let job = optional("BUILDKITE_JOB_ID").unwrap_or_default();
    let mut child = Command::new(program)
        .args(["annotate", "--style", "error"])
        .args(["--context", &format!("jobfence-{job}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(note.as_bytes())?;
    }
    let status = child.wait()?;
    match status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("{AGENT} annotate: {status}"))),
    }
}

/// A text of the job's in a line of the log: it can neither begin a line nor command a terminal.
fn inert(text: &str) -> String {
    text.replace(is_hidden, "\u{fffd}")
}

/// A text of the job's as code in Markdown, which nothing in it ends.
fn code(text: &str) -> String {
    format!("`` {} ``", inert(text).replace('`', "'"))
}

#[cfg(test)]
mod tests {
    use jobfence_agent::control::protocol::{Phase, Refused};

    use super::*;

    fn status(exit: u8, destination: &str) -> JobStatus {
        JobStatus {
            id: "u1001-buildkite-7-j-1-2".to_owned(),
            job: "default".to_owned(),
            policy: Some("/etc/jobfence/policies/a.yml".to_owned()),
            labels: Labels::default(),
            state: "enforcing".to_owned(),
            phase: Phase::Running,
            violations: 2,
            exit,
            runner: false,
            owner: 1001,
            started: 0,
            log: String::new(),
            refused: vec![Refused {
                destination: destination.to_owned(),
                reason: "name".to_owned(),
                why: "no rule allows the name".to_owned(),
                rule: None,
                count: 2,
                violation: exit == VIOLATION,
                process: Some("curl https://x.test/ (pid 7) ← bash".to_owned()),
                allow: Some("- host: x.test".to_owned()),
            }],
            refused_more: 0,
        }
    }

    #[test]
    fn a_violation_fails_the_job_and_says_by_what() {
        let told = tell_end(&status(VIOLATION, "x.test"));
        assert_eq!(
            told.text,
            "+++ jobfence: refused, so this job fails (2 attempts) · enforcing\n  \
             ✗ x.test — no rule allows the name, 2×\n      by curl https://x.test/ (pid 7) ← \
             bash\n      to allow it: - host: x.test\n  policy: /etc/jobfence/policies/a.yml\n"
        );
        assert_eq!(told.code, FAILED);
    }

    #[test]
    fn what_does_not_count_and_a_broken_fence_are_told_apart() {
        assert_eq!(tell_end(&status(0, "x.test")).code, 0);
        let broken = tell_end(&status(111, "x.test"));
        assert!(broken.text.contains("the fence failed"), "{broken:?}");
        assert_eq!(broken.code, FAILED);
    }

    #[test]
    fn a_job_cannot_write_headings_or_markdown() {
        let status = status(VIOLATION, "x\n+++ all is well\u{1b}[2J`**`.test");
        let text = tell_end(&status).text;
        let headings = text.lines().filter(|line| line.starts_with("+++"));
        assert_eq!(headings.count(), 1, "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
        let note = note(&status);
        let line = note.lines().find(|line| line.contains("all is well"));
        let line = line.expect("one line");
        assert!(line.starts_with("- `` x\u{fffd}+++ "), "{line}");
        assert_eq!(line.matches("``").count() % 2, 0, "{line}");
    }
}
