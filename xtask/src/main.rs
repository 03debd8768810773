//! `cargo xtask`: everything that a developer or CI does with this repository
//! beyond plain cargo: bring the machine to what the build needs, build the
//! kernel object and the binary, run all tests, show the demonstration, fence
//! real builds, lint.
#![forbid(unsafe_code)]

mod apt;
mod lint;
mod object;
mod registries;
mod setup;
mod sh;
mod test;
mod toolchain;

use std::{env, os::unix::process::CommandExt as _, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

/// Set-up, build, test and demonstration of jobfence.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the build and the tests need and this machine lacks.
    Setup {
        /// Only report what is missing and how it would be installed; exit 1 if anything is.
        #[arg(long)]
        check: bool,
        /// Also what `lint` needs: cargo-deny, clippy and rustfmt.
        #[arg(long)]
        ci: bool,
    },
    /// Build the kernel object, then the jobfence binary around it.
    Build {
        /// Build the binary without optimisation; the kernel object always has it.
        #[arg(long)]
        debug: bool,
    },
    /// Set up, build, and run every test.
    Test {
        /// Run only tests whose name contains this.
        #[arg(long, value_name = "TEXT")]
        filter: Option<String>,
    },
    /// Set up, build, and show a fenced job at work.
    Demo,
    /// Set up, build, and fence a real build with each package manager that is installed.
    ///
    /// Needs root and this machine's registries or mirrors: no part of `test`, which needs no
    /// network. `JOBFENCE_BIN` names a jobfence to use in place of a new one.
    Registries,
    /// Check format, lints, documentation, licences and advisories.
    Lint,
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Setup { check, ci } => setup::run(setup::Options { check, ci }),
        Task::Build { debug } => build(debug),
        Task::Test { filter } => {
            setup::run(setup::Options::default())?;
            build(false)?;
            test::run(filter.as_deref())
        }
        Task::Demo => {
            setup::run(setup::Options::default())?;
            build(false)?;
            // In place of this process: the demonstration's exit code is what it shows.
            let error = sh::cargo()
                .args(["run", "--release", "-p", "jobfence-tests", "--bin", "demo"])
                .env("JOBFENCE_BIN", sh::release_binary())
                .exec();
            Err(error).context("run the demonstration")
        }
        Task::Registries => match env::var_os("JOBFENCE_BIN") {
            Some(binary) => registries::run(binary.as_ref()),
            None => {
                setup::run(setup::Options::default())?;
                build(false)?;
                registries::run(&sh::release_binary())
            }
        },
        Task::Lint => lint::run(),
    }
}

/// Builds the kernel object and then the binary, which embeds it.
fn build(debug: bool) -> Result<()> {
    object::build(&toolchain::find()?)?;
    let mut cargo = sh::cargo();
    cargo.arg("build");
    if !debug {
        cargo.arg("--release");
    }
    sh::run(cargo.args(["-p", "jobfence"])).context("build the jobfence binary")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_definition_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
