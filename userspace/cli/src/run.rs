//! `jobfence run`: one command as a fenced job.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use anyhow::anyhow;
use clap::{Args, ValueEnum};
use jobfence_agent::job::{
    run::{Options, RunError, run as run_job},
    user::Account,
};
use jobfence_policy::{Mode, OnViolation};

use nix::unistd::geteuid;

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
    /// The command and its arguments
    #[arg(value_name = "CMD", required = true, last = true)]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, ValueEnum)]
enum ModeArgument {
    Enforce,
    Audit,
}

pub(crate) fn run(arguments: RunArguments) -> ExitCode {
    let account = match Account::find(arguments.user.as_deref()) {
        Ok(account) => account,
        Err(error) => return fail(&error.into(), NO_FENCE),
    };
    let found = policy::load(arguments.policy.as_deref(), Some(&arguments.job), &account);
    let mut job = match found {
        Ok(job) => job,
        Err(error) if error.is::<policy::NotThatUser>() => return fail(&error, NO_FENCE),
        Err(error) => return fail(&error, BAD_POLICY),
    };
    match arguments.mode {
        Some(ModeArgument::Enforce) => job.mode = Mode::Enforce,
        Some(ModeArgument::Audit) => job.mode = Mode::Audit,
        None => {}
    }
    if account.is_root() && arguments.user.is_none() && geteuid().is_root() {
        tracing::warn!(
            "the job runs as root, so its fence is advisory: call jobfence with sudo from the \
             account that builds, or give --user"
        );
    }
    let on_violation = job.on_violation;
    let options = Options {
        policy: job,
        account,
        command: arguments.command,
        log: arguments.log,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(run_job(options)),
        Err(error) => return fail(&anyhow!("cannot start the agent: {error}"), NO_FENCE),
    };
    match outcome {
        Ok(outcome) => {
            report::print(&outcome);
            if outcome.failure.is_some() {
                NO_FENCE.into()
            } else if !outcome.summary.is_clean() && on_violation != OnViolation::Warn {
                VIOLATION.into()
            } else {
                outcome.status.into()
            }
        }
        Err(error @ RunError::Policy(_)) => fail(&error.into(), BAD_POLICY),
        Err(error) => fail(&error.into(), NO_FENCE),
    }
}

fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    report::error(error);
    code.into()
}
