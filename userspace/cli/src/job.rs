//! `jobfence job`: what runner hooks call.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use clap::{Args, Subcommand};
use jobfence_agent::{
    control::{
        client::{ClientError, Reply, SOCKET, ask},
        protocol::{
            Answer, Code, Finished, JobId, JobStatus, Labels, MaybeJobId, Nothing, Phase, Refusal,
            Request, Start, Started,
        },
    },
    job::user::Account,
};
use nix::unistd::geteuid;
use serde::Serialize;

use crate::{
    policy,
    report::{self, Style},
    run::{BAD_POLICY, NO_FENCE},
};

/// The agent did not do what was asked.
const REFUSED: u8 = 1;

/// Fence processes that run already, with the agent of this host.
///
/// Root and members of the agent's group may do all of it. Others may make a job of their own
/// processes (`--pid` is the caller or an ancestor of it), and see and end their own jobs. A process
/// inside a job may ask for its status and narrow it.
///
/// Exit status: 0; 1 when the agent refuses; 111 when there is no agent, or the fence could not be
/// set up; 112 when the policy is invalid; of `finish` and `status --exit-code` also 110 when the
/// job violated its policy, and 111 when its fence failed.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct JobArguments {
    #[command(subcommand)]
    command: JobCommand,
    /// The agent's socket
    #[arg(long, value_name = "PATH", global = true, default_value = SOCKET)]
    socket: PathBuf,
    /// Print one JSON value
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one, and not for long")]
enum JobCommand {
    /// Make a job of a process tree, and print its id
    Start(StartArguments),
    /// End a job: what is left of it is killed; print what it did
    Finish {
        /// Its id
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Tell how a job stands
    Status {
        /// Its id [default: the job that this process is in]
        #[arg(value_name = "ID")]
        id: Option<String>,
        /// Exit as `finish` would
        #[arg(long)]
        exit_code: bool,
    },
    /// List the jobs that the caller may see
    List,
    /// Print a job's log, one JSON object a line, until the job has ended
    Tail {
        /// Its id
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Take from what the job that this process is in may reach: once
    Narrow {
        /// Policy file
        #[arg(long, value_name = "FILE")]
        policy: PathBuf,
    },
}

#[derive(Args)]
struct StartArguments {
    /// The job's id, unique on this host for ever; of callers that are not trusted it begins with
    /// `u<uid>-` [default: a fresh one]
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Process that becomes the job, with all below it [default: none yet; root moves them into
    /// the job's cgroup]
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// The process is a CI runner, not a job of one: what it runs may leave its fence into jobs of
    /// its own, and nowhere else
    #[arg(long, requires = "pid")]
    runner: bool,
    /// Policy file [default: what the host has for the repository]
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Job of the policy whose rules apply
    #[arg(long, value_name = "NAME")]
    job: Option<String>,
    /// Repository, as in `group/project`
    #[arg(long)]
    repo: Option<String>,
    /// Ref that is built
    #[arg(long = "ref", value_name = "REF")]
    git_ref: Option<String>,
    /// Branch that the change is to be merged into, or that is built
    #[arg(long)]
    base: Option<String>,
    /// Run, or pipeline
    #[arg(long)]
    run: Option<String>,
    /// Attempt of the run
    #[arg(long)]
    attempt: Option<String>,
    /// Workflow
    #[arg(long)]
    workflow: Option<String>,
    /// Who caused the run
    #[arg(long)]
    actor: Option<String>,
    /// Runner that has the job
    #[arg(long, value_name = "NAME")]
    runner_name: Option<String>,
}

pub(crate) fn job(arguments: JobArguments) -> ExitCode {
    let JobArguments {
        command,
        socket,
        json,
    } = arguments;
    match perform(command, &socket, json) {
        Ok(code) => code.into(),
        // Who closes the pipe, as `head` does, has what they wanted.
        Err(error) if is_broken_pipe(&error) => 0.into(),
        Err(error) => {
            report::error(&error);
            let refusal = match error.downcast_ref() {
                Some(ClientError::Refused(refusal)) => Some(refusal),
                _ => None,
            };
            if let (Some(refusal), true) = (refusal, json) {
                // For programs, as an answer is. That it is an error, the exit status tells.
                let _ = print_json(&Answer::Error(refusal.clone()));
            }
            exit_status(&error).into()
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn exit_status(error: &anyhow::Error) -> u8 {
    match error.downcast_ref() {
        Some(ClientError::Refused(Refusal { code, .. })) => match code {
            Code::Policy => BAD_POLICY,
            Code::Fence | Code::Full => NO_FENCE,
            _ => REFUSED,
        },
        Some(_) => NO_FENCE,
        None if error.is::<policy::NotThatUser>() => NO_FENCE,
        // Nothing else but a policy file is read here.
        None if error.is::<policy::Unread>() => BAD_POLICY,
        None => REFUSED,
    }
}

fn perform(command: JobCommand, socket: &Path, json: bool) -> Result<u8> {
    let mut status = 0;
    let mut is_exit_wanted = false;
    let request = match command {
        JobCommand::Start(arguments) => Request::Start(arguments.order()?),
        JobCommand::Finish { id } => Request::Finish(JobId { id }),
        JobCommand::Status { id, exit_code } => {
            is_exit_wanted = exit_code;
            Request::Status(MaybeJobId { id })
        }
        JobCommand::List => Request::List(Nothing {}),
        JobCommand::Tail { id } => Request::Tail(JobId { id }),
        JobCommand::Narrow { policy } => Request::Narrow(policy::text(&policy, &caller()?)?),
    };
    let Reply { answer, mut rest } = ask(socket, request)?;
    match &answer {
        Answer::Started(started) if json => print_json(started)?,
        Answer::Started(started) => {
            print(&format!("{}\n", started.id))?;
            report::emit(&render_start(started, Style::of(&io::stderr())));
        }
        Answer::Finished(finished) => {
            let Finished { exit, report, .. } = finished;
            status = *exit;
            if json {
                print_json(finished)?;
            } else {
                print(report)?;
            }
        }
        Answer::Status(job) => {
            if is_exit_wanted {
                status = job.exit;
            }
            if json {
                print_json(job)?;
            } else {
                print(&render_status(job))?;
            }
        }
        Answer::Jobs(jobs) if json => print_json(jobs)?,
        Answer::Jobs(jobs) => print(&render_jobs(jobs))?,
        Answer::Tail(_) => {
            io::copy(&mut rest, &mut io::stdout().lock())?;
        }
        Answer::Narrowed(nothing) if json => print_json(nothing)?,
        Answer::Narrowed(_) => {}
        Answer::Error(refusal) => return Err(ClientError::Refused(refusal.clone()).into()),
    }
    Ok(status)
}

impl StartArguments {
    fn order(self) -> Result<Start> {
        let policy = match &self.policy {
            Some(path) => Some(policy::text(path, &caller()?)?),
            None => None,
        };
        Ok(Start {
            id: self.id.unwrap_or_else(fresh_id),
            pid: self.pid,
            launch: None,
            runner: self.runner,
            policy,
            job: self.job,
            labels: Labels {
                repo: self.repo,
                git_ref: self.git_ref,
                base: self.base,
                run: self.run,
                attempt: self.attempt,
                workflow: self.workflow,
                actor: self.actor,
                runner: self.runner_name,
            },
        })
    }
}

/// With whose rights a policy file is read: it is the user's who called sudo.
fn caller() -> Result<Account> {
    let uid = geteuid();
    let asked = (!uid.is_root()).then(|| uid.to_string());
    Ok(Account::find(asked.as_deref())?)
}

/// An id that nobody has had: the time in microseconds, and this process.
fn fresh_id() -> String {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let (micros, pid) = (since.as_micros(), std::process::id());
    match geteuid() {
        uid if uid.is_root() => format!("{micros:x}-{pid}"),
        uid => format!("u{uid}-{micros:x}-{pid}"),
    }
}

fn print(text: &str) -> io::Result<()> {
    io::stdout().write_all(text.as_bytes())
}

fn print_json(value: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    print(&(text + "\n"))
}

fn render_start(started: &Started, style: Style) -> String {
    let Started {
        id,
        state,
        log,
        processes,
        runner,
        open_before,
        clipped,
        ..
    } = started;
    let s = if *processes == 1 { "" } else { "es" };
    let mut text = format!("jobfence: job {id} · {state} · {processes} process{s} · log {log}\n");
    let held = match runner {
        Some(runner) => format!("left in the fence of {runner}"),
        None => "not fenced".to_owned(),
    };
    for socket in open_before {
        _ = writeln!(text, "  open before, {held}: {socket}");
    }
    for line in clipped {
        _ = writeln!(
            text,
            "  {}",
            style.dim(format!("not allowed by this host: {line}"))
        );
    }
    text
}

/// A table, one job a line. What is in it, the agent has checked to be free of control characters.
fn render_jobs(jobs: &[JobStatus]) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let mut rows = vec![
        [
            "ID",
            "PHASE",
            "EXIT",
            "REFUSED",
            "AGE",
            "USER",
            "REPOSITORY",
            "STATE",
        ]
        .map(str::to_owned),
    ];
    rows.extend(jobs.iter().map(|job| {
        let phase = match job.phase {
            Phase::Running => "running",
            Phase::Finished => "finished",
        };
        [
            job.id.clone(),
            phase.to_owned(),
            job.exit.to_string(),
            job.violations.to_string(),
            age(now.saturating_sub(Duration::from_secs(job.started))),
            job.owner.to_string(),
            job.labels.repo.clone().unwrap_or_else(|| "-".to_owned()),
            // Its reasons are in the job's status as JSON, and in its report.
            job.state.split('(').next().unwrap_or_default().to_owned(),
        ]
    }));
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: [usize; 8] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            _ = write!(line, "{cell:width$}  ");
        }
        _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// A job, and what it was refused.
fn render_status(job: &JobStatus) -> String {
    let mut text = render_jobs(std::slice::from_ref(job));
    for refused in &job.refused {
        let mark = if refused.violation { "✗" } else { "·" };
        let mut lines = refused.lines().into_iter();
        _ = writeln!(text, "  {mark} {}", lines.next().unwrap_or_default());
        for line in lines {
            _ = writeln!(text, "      {line}");
        }
    }
    if job.refused_more > 0 {
        _ = writeln!(text, "  … and {} more", job.refused_more);
    }
    if let Some(policy) = &job.policy {
        _ = writeln!(text, "  policy: {policy}");
    }
    _ = writeln!(text, "  log: {}", job.log);
    text
}

/// A duration in its two largest units.
fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    match (
        seconds / 86_400,
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60,
    ) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m{s}s"),
        (0, h, m, _) => format!("{h}h{m}m"),
        (d, h, ..) => format!("{d}d{h}h"),
    }
}

#[cfg(test)]
mod tests {
    use jobfence_agent::control::protocol::Refused;

    use super::*;

    fn job(id: &str) -> JobStatus {
        JobStatus {
            id: id.to_owned(),
            job: "default".to_owned(),
            policy: Some("/etc/jobfence/policies/a.yml".to_owned()),
            labels: Labels::default(),
            state: "advisory(it can be root)".to_owned(),
            phase: Phase::Running,
            violations: 2,
            exit: 110,
            runner: false,
            owner: 1001,
            started: u64::MAX,
            log: "/var/log/jobfence/a.jsonl".to_owned(),
            refused: Vec::new(),
            refused_more: 0,
        }
    }

    #[test]
    fn jobs_stand_in_columns() {
        let jobs = [job("a"), job("u1001-long-name")];
        assert_eq!(
            render_jobs(&jobs),
            "\
ID               PHASE    EXIT  REFUSED  AGE  USER  REPOSITORY  STATE
a                running  110   2        0s   1001  -           advisory
u1001-long-name  running  110   2        0s   1001  -           advisory
"
        );
    }

    #[test]
    fn a_status_tells_what_was_refused_and_why() {
        let mut job = job("a");
        job.refused = vec![Refused {
            destination: "x.test".to_owned(),
            reason: "name".to_owned(),
            why: "no rule allows the name".to_owned(),
            rule: None,
            count: 2,
            violation: true,
            process: Some("curl https://x.test/ (pid 7) ← bash".to_owned()),
            allow: Some("- host: x.test".to_owned()),
        }];
        job.refused_more = 3;
        let text = render_status(&job);
        let (_, rest) = text.split_once("advisory\n").expect("a table");
        assert_eq!(
            rest,
            "  ✗ x.test — no rule allows the name, 2×
      by curl https://x.test/ (pid 7) ← bash
      to allow it: - host: x.test
  … and 3 more
  policy: /etc/jobfence/policies/a.yml
  log: /var/log/jobfence/a.jsonl
"
        );
    }

    #[test]
    fn an_age_has_two_units() {
        for (seconds, shown) in [(0, "0s"), (61, "1m1s"), (7_199, "1h59m"), (90_000, "1d1h")] {
            assert_eq!(age(Duration::from_secs(seconds)), shown);
        }
    }

    #[test]
    fn what_was_open_before_the_fence_is_told() {
        let started = Started {
            id: "a".to_owned(),
            cgroup: "/sys/fs/cgroup/a".to_owned(),
            state: "enforcing".to_owned(),
            log: "/var/log/jobfence/a.jsonl".to_owned(),
            processes: 1,
            runner: None,
            open_before: vec!["tcp 198.51.100.1:443 of runner (pid 7)".to_owned()],
            clipped: vec!["host: x.test".to_owned()],
            allowed: Vec::new(),
        };
        assert_eq!(
            render_start(&started, Style::Plain),
            "jobfence: job a · enforcing · 1 process · log /var/log/jobfence/a.jsonl\n  \
             open before, not fenced: tcp 198.51.100.1:443 of runner (pid 7)\n  \
             not allowed by this host: host: x.test\n"
        );
    }

    #[test]
    fn each_refusal_has_its_exit_status() {
        for (code, status) in [
            (Code::Policy, 112),
            (Code::Fence, 111),
            (Code::Full, 111),
            (Code::Unknown, 1),
            (Code::Forbidden, 1),
            (Code::Other, 1),
        ] {
            let error = ClientError::Refused(Refusal::new(code, "no")).into();
            assert_eq!(exit_status(&error), status, "{code:?}");
        }
        let gone = ClientError::NoAgent {
            socket: "/nowhere".into(),
            source: io::ErrorKind::NotFound.into(),
        };
        assert_eq!(exit_status(&gone.into()), 111);
    }
}
