//! One command as a job of the host's agent.
//!
//! The agent holds the fence, the resolver and the log. This process starts the job's first process
//! in the job's cgroup, as it would without an agent, waits for it, and has the agent end the job. The
//! job ends also when this process does: the agent sees to that. When it is the agent that dies, the
//! fence stays, and the command goes on.

use std::{
    ffi::OsString,
    future::pending,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::process::geteuid;

use super::{
    cgroup::Cgroup,
    launch::LaunchError,
    probe::{Held, Means, Targets},
    run::{RunError, failed, job_id, prove, shell_status, until_exit},
    signals::Signals,
    user::Account,
};
use crate::{
    audit::log::Log,
    control::{
        client::{ClientError, Reply, ask},
        protocol::{Answer, Finished, JobId, Labels, Launch, PolicyText, Request, Start, Started},
    },
};

/// How long an agent may be away when the job is to end: it may be starting again.
const AWAY: Duration = Duration::from_secs(10);

/// How often it is looked for meanwhile.
const PAUSE: Duration = Duration::from_millis(100);

/// What to run, and how.
#[derive(Debug)]
pub struct Options {
    /// The agent's socket.
    pub socket: PathBuf,
    /// Its id, which no job has had, if it is to be a certain one.
    pub id: Option<String>,
    /// The job's policy, which the host's own bounds; without it, what the host has for the
    /// repository in `labels`.
    pub policy: Option<PolicyText>,
    /// Whether `policy` can only take from what the host has for the repository.
    pub narrows: bool,
    /// What the CI system calls the job.
    pub labels: Labels,
    /// The job of the policy whose rules apply.
    pub job: String,
    /// Whether to record only, or to refuse, whatever the policy says.
    pub audit: Option<bool>,
    /// Who runs it.
    pub account: Account,
    /// The command and its arguments; not empty.
    pub command: Vec<OsString>,
    /// Where a copy of the job's log is appended at its end, if anywhere.
    pub log: Option<PathBuf>,
}

/// How a job ended.
#[derive(Debug)]
pub struct Outcome {
    /// What the agent says of it.
    pub finished: Finished,
    /// What its command said: see [`run::Outcome::status`](super::run::Outcome::status).
    pub status: u8,
    /// Why the command could not be executed, if so.
    pub not_executed: Option<LaunchError>,
    /// Why there is no copy of the log, if so.
    pub failure: Option<RunError>,
}

/// Runs a command as a job of the agent, with the standard streams and the terminal of this process.
///
/// # Errors
///
/// [`RunError::Agent`] when the agent is not there, refuses, or has not come back to end the job.
/// Otherwise nothing of the command has run.
pub async fn run(options: Options) -> Result<Outcome, RunError> {
    if !geteuid().is_root() {
        return Err(RunError::NotRoot);
    }
    let log = options.log.as_deref().map(Log::open).transpose()?;
    let socket = &options.socket;
    let Started {
        id,
        cgroup,
        clipped,
        ..
    } = start(&options)?;
    for rule in clipped {
        tracing::warn!("not allowed by this host: {rule}");
    }
    let cgroup = Cgroup::open(cgroup.into());
    let ran = launch(&options.account, &options.command, &cgroup, &id).await;
    let finished = finish(socket, &id).inspect_err(|_| {
        // Nobody answers for the job any more. Its fence stays, and so does its cgroup, for the next
        // agent.
        if let Err(error) = cgroup.kill() {
            tracing::warn!(%error, "processes of the job may be left, inside the fence");
        }
    });
    let (status, not_executed) = ran?;
    let finished = finished?;
    let copied = log.map_or(Ok(()), |log| copy(socket, id, log));
    Ok(Outcome {
        finished,
        status,
        not_executed,
        failure: copied.err(),
    })
}

/// Has the agent make a job, in which nothing is yet.
fn start(options: &Options) -> Result<Started, ClientError> {
    let order = Start {
        id: options.id.clone().unwrap_or_else(job_id),
        pid: Some(std::process::id()),
        launch: Some(Launch {
            uid: options.account.uid,
            audit: options.audit,
            narrows: options.narrows,
        }),
        runner: false,
        policy: options.policy.clone(),
        job: Some(options.job.clone()),
        labels: options.labels.clone(),
    };
    match ask(&options.socket, Request::Start(order))?.answer {
        Answer::Started(started) => Ok(started),
        _ => Err(ClientError::unexpected(&options.socket)),
    }
}

/// Starts the command in the job, and waits for it.
async fn launch(
    account: &Account,
    command: &[OsString],
    cgroup: &Cgroup,
    id: &str,
) -> Result<(u8, Option<LaunchError>), RunError> {
    let signals = Signals::new().map_err(failed("take signals"))?;
    // The agent's own had the job's id, and can still be held by a process that it has forked meanwhile
    // and that has not executed its program yet.
    let targets = Targets::new(&format!("{id}-launch"));
    let targets = targets.map_err(failed("put up targets for the self-probe"))?;
    // The agent has seen that the programs hold, and what they report goes to it.
    let (held, means) = (Held::Launch, Means::default());
    let (starting, _) = prove(account, command, cgroup, targets, held, means, Vec::new).await?;
    match starting.release() {
        Ok(child) => {
            let status = until_exit(child, &signals, pending()).await;
            Ok((
                shell_status(status.map_err(failed("wait for the command"))?),
                None,
            ))
        }
        Err(error) => match error.shell_status() {
            Some(status) => Ok((status, Some(error))),
            None => Err(RunError::Launch(error)),
        },
    }
}

/// Has the agent end the job. One that is away is waited for.
fn finish(socket: &Path, id: &str) -> Result<Finished, ClientError> {
    let deadline = Instant::now() + AWAY;
    loop {
        let request = Request::Finish(JobId { id: id.to_owned() });
        match ask(socket, request) {
            Ok(Reply {
                answer: Answer::Finished(finished),
                ..
            }) => return Ok(finished),
            Ok(_) => return Err(ClientError::unexpected(socket)),
            Err(ClientError::NoAgent { .. } | ClientError::Lost { .. })
                if Instant::now() < deadline =>
            {
                thread::sleep(PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Appends the job's log to one of the caller's.
fn copy(socket: &Path, id: String, log: Log) -> Result<(), RunError> {
    let mut reply = ask(socket, Request::Tail(JobId { id }))?;
    Ok(log.append_all(&mut reply.rest)?)
}
