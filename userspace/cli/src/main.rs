//! `jobfence`: an egress firewall for CI jobs.
//!
//! The binary's edge: arguments, exit codes, and what a person reads. What it does is in
//! `jobfence-agent` and `jobfence-policy`.
#![forbid(unsafe_code)]

mod agent;
mod doctor;
mod generate;
mod history;
mod hook;
mod install;
mod job;
mod policy;
mod report;
mod run;

use std::{
    env,
    process::{ExitCode, Termination as _},
};

use clap::{CommandFactory as _, Parser, Subcommand};
use jobfence_agent::job::{launch, probe, reaper};

/// An egress firewall for CI jobs: a job reaches the domains on its allow list, and nothing else.
#[derive(Parser)]
#[command(name = "jobfence", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(run::RunArguments),
    Agent(agent::AgentArguments),
    Job(job::JobArguments),
    Hook(hook::HookArguments),
    Install(install::InstallArguments),
    Uninstall(install::UninstallArguments),
    Report(history::ReportArguments),
    Doctor(doctor::DoctorArguments),
}

fn main() -> ExitCode {
    // Four roles of this program are for its own use, and begin before anything else is set up.
    if let Some(role) = env::args_os().nth(1) {
        if role == launch::ENTRY {
            return launch::become_job(env::args_os().skip(2)).into();
        }
        if role == probe::ENTRY {
            return probe::probe(env::args_os().skip(2)).into();
        }
        if role == reaper::ENTRY {
            return reaper::reap(env::args_os().skip(2)).into();
        }
        if role == generate::ENTRY {
            return generate::generate(env::args_os().skip(2), Arguments::command()).report();
        }
    }
    let arguments = Arguments::parse();
    // Of a daemon, its log is all that there is to see.
    let is_agent = matches!(arguments.command, Command::Agent(_));
    report::init_diagnostics(if is_agent { "info" } else { "warn" });
    match arguments.command {
        Command::Run(arguments) => run::run(arguments).report(),
        Command::Agent(arguments) => agent::agent(&arguments).report(),
        Command::Job(arguments) => job::job(arguments).report(),
        Command::Hook(arguments) => hook::hook(arguments).report(),
        Command::Install(arguments) => install::install(arguments).report(),
        Command::Uninstall(arguments) => install::uninstall(&arguments).report(),
        Command::Report(arguments) => history::report(&arguments).report(),
        Command::Doctor(arguments) => doctor::doctor(&arguments).report(),
    }
}
