//! `jobfence run`: one command as a fenced job.

use std::{
    ffi::OsString,
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Error, Result, anyhow};
use clap::{Args, ValueEnum};
use jobfence_agent::{
    control::{
        client::{ClientError, SOCKET},
        protocol::{Code, Labels, Refusal},
    },
    job::{
        delegate,
        run::{Options, RunError, run as run_job},
        user::Account,
    },
};
use jobfence_policy::{Mode, OnViolation};
use nix::unistd::geteuid;
use tokio::runtime::Runtime;

use crate::{policy, report};

/// The job violated its policy.
pub(crate) const VIOLATION: u8 = 110;
/// The fence could not be set up, or failed; nothing ran unfenced.
pub(crate) const NO_FENCE: u8 = 111;
/// The policy is invalid; nothing ran.
pub(crate) const BAD_POLICY: u8 = 112;

/// Run one command inside a fence.
///
/// The command runs as the user who called sudo, else as --user, with this terminal, folder and
/// environment. What its policy does not allow is refused at once and reported at the end.
///
/// Where the agent of this host is running, the command is a job of that one: the host's own policy
/// bounds it, its log is with those of other jobs, and --log gets a copy at the end. Else, and with
/// `--agent none`, nothing but this program is needed.
///
/// Exit status: the command's own (as a shell tells it) when it kept to the policy; 110 when it
/// did not; 111 when the fence could not be set up, or failed; 112 when the policy is invalid.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct RunArguments {
    /// Policy file [default: .jobfence.yml, then .github/jobfence.yml]
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Job of the policy whose rules apply
    #[arg(long, value_name = "NAME", default_value = "default")]
    job: String,
    /// Refuse what is not allowed, or only record it [default: what the policy says]
    #[arg(long, value_name = "MODE")]
    mode: Option<ModeArgument>,
    /// User to run the command as, by login name or id [default: who called sudo, else root]
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// File to which every attempt is appended, as one JSON object a line
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Socket of the agent that holds the job, or `none` [default: /run/jobfence/agent.sock, if an
    /// agent is there]
    #[arg(long, value_name = "SOCKET")]
    agent: Option<PathBuf>,
    /// The command and its arguments
    #[arg(value_name = "CMD", required = true, last = true)]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ModeArgument {
    Enforce,
    Audit,
}

pub(crate) fn run(arguments: RunArguments) -> ExitCode {
    match perform(arguments) {
        Ok(status) => status.into(),
        Err(error) => {
            report::error(&error);
            exit_status(&error).into()
        }
    }
}

fn exit_status(error: &Error) -> u8 {
    match error.downcast_ref() {
        Some(
            RunError::Policy(_)
            | RunError::Agent(ClientError::Refused(Refusal {
                code: Code::Policy, ..
            })),
        ) => BAD_POLICY,
        _ if error.is::<BadPolicy>() => BAD_POLICY,
        _ => NO_FENCE,
    }
}

/// The policy could not be read, or is invalid.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct BadPolicy(Error);

/// Tells what is wrong with a policy from what is wrong with the host.
fn of_policy<T>(read: Result<T>) -> Result<T> {
    read.map_err(|error| match error.is::<policy::NotThatUser>() {
        true => error,
        false => BadPolicy(error).into(),
    })
}

/// Returns the exit status.
fn perform(arguments: RunArguments) -> Result<u8> {
    let account = Account::find(arguments.user.as_deref())?;
    let path = of_policy(policy::find(arguments.policy.as_deref()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| anyhow!("cannot start the agent: {error}"))?;
    match agent(arguments.agent.as_deref()) {
        Some(socket) => under_agent(arguments, account, &path, socket, &runtime),
        None => alone(arguments, account, &path, &runtime),
    }
}

/// The socket of the agent that is to hold the job; none for no agent.
fn agent(given: Option<&Path>) -> Option<PathBuf> {
    match given {
        Some(socket) => (socket != Path::new("none")).then(|| socket.to_owned()),
        None => match UnixStream::connect(SOCKET) {
            // The second is of one that was killed.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                None
            }
            // Whatever is there: a job that is to be the agent's is not run without it.
            _ => Some(SOCKET.into()),
        },
    }
}

fn under_agent(
    arguments: RunArguments,
    account: Account,
    path: &Path,
    socket: PathBuf,
    runtime: &Runtime,
) -> Result<u8> {
    // What is in it, the agent says, which may know more presets.
    let policy = of_policy(policy::text(path, &account))?;
    warn_of_root(arguments.user.as_deref(), &account);
    let outcome = runtime.block_on(delegate::run(delegate::Options {
        socket,
        id: None,
        policy: Some(policy),
        narrows: false,
        labels: Labels::default(),
        job: arguments.job,
        audit: arguments.mode.map(|mode| mode == ModeArgument::Audit),
        account,
        command: arguments.command,
        log: arguments.log,
    }))?;
    if let Some(error) = &outcome.not_executed {
        report::emit(&format!("jobfence: {error}\n"));
    }
    report::emit(&outcome.finished.report);
    if let Some(failure) = outcome.failure {
        return Err(failure.into());
    }
    Ok(match outcome.finished.exit {
        0 => outcome.status,
        exit => exit,
    })
}

fn alone(arguments: RunArguments, account: Account, path: &Path, runtime: &Runtime) -> Result<u8> {
    let mut job = of_policy(policy::load(path, Some(&arguments.job), &account))?;
    match arguments.mode {
        Some(ModeArgument::Enforce) => job.mode = Mode::Enforce,
        Some(ModeArgument::Audit) => job.mode = Mode::Audit,
        None => {}
    }
    warn_of_root(arguments.user.as_deref(), &account);
    let on_violation = job.on_violation;
    let outcome = runtime.block_on(run_job(Options {
        policy: job,
        account,
        command: arguments.command,
        log: arguments.log,
    }))?;
    report::print(&outcome);
    Ok(if outcome.failure.is_some() {
        NO_FENCE
    } else if !outcome.summary.is_clean() && on_violation != OnViolation::Warn {
        VIOLATION
    } else {
        outcome.status
    })
}

fn warn_of_root(asked: Option<&str>, account: &Account) {
    if account.is_root() && asked.is_none() && geteuid().is_root() {
        tracing::warn!(
            "the job runs as root, so its fence is advisory: call jobfence with sudo from the \
             account that builds, or give --user"
        );
    }
}
