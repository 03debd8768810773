//! `cargo xtask`: everything that a developer or CI does with this repository
//! beyond plain cargo: bring the machine to what the build needs, build the
//! kernel object and the binary, run all tests, show the demonstration, measure,
//! fence real builds, lint.
#![forbid(unsafe_code)]

mod apt;
mod crates;
mod dist;
mod fuzz;
mod lint;
mod object;
mod registries;
mod runners;
mod setup;
mod sh;
mod test;
mod toolchain;
mod vm;

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
        /// Also what `bench` needs: dnsmasq and iperf3.
        #[arg(long)]
        bench: bool,
        /// Also what `vm` needs: qemu and mmdebstrap.
        #[arg(long)]
        vm: bool,
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
    /// Set up, build, try every attack without the fence and with it, and print what came of each.
    ///
    /// Needs root. `JOBFENCE_BIN` names a jobfence to use in place of a new one. `test` runs the
    /// same attacks, each as a test of its own.
    Attack {
        /// Print tables for a README.
        #[arg(long)]
        markdown: bool,
        /// Try only attacks whose name contains this.
        #[arg(long, value_name = "TEXT")]
        filter: Option<String>,
        /// Try them as jobs of an agent, each of its own.
        #[arg(long)]
        agent: bool,
    },
    /// Set up, build, and measure what a fence costs, beside its budgets.
    ///
    /// Needs root, and is best run on an idle machine. `JOBFENCE_BIN` names a jobfence to use in
    /// place of a new one.
    Bench {
        /// Only see that it works: few rounds, in half a minute.
        #[arg(long)]
        quick: bool,
        /// Print JSON in place of a table.
        #[arg(long)]
        json: bool,
        /// Measure only that whose name holds this.
        #[arg(long, value_name = "TEXT")]
        only: Option<String>,
    },
    /// Set up, build, and fence a real build with each package manager that is installed.
    ///
    /// Needs root and this machine's registries or mirrors: no part of `test`, which needs no
    /// network. `JOBFENCE_BIN` names a jobfence to use in place of a new one.
    Registries,
    /// Feed the parsers with generated and damaged input.
    ///
    /// Some seconds with fixed cases, or `--minutes` of new ones. `test` has a few hundred cases
    /// of each target. Needs no root.
    Fuzz {
        /// How long in all.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        minutes: Option<u64>,
        /// The only target.
        #[arg(long)]
        target: Option<fuzz::Target>,
    },
    /// Set up, build, and run the end-to-end tests under other kernels, in virtual machines.
    ///
    /// Boots Debian's kernels 6.1, 6.12 and the newest two under qemu, without KVM, and runs the
    /// tests in each. Prints how many instructions each kernel's verifier walked for each program,
    /// and fails when that is half of what a verifier allows.
    ///
    /// Needs root, the Debian mirror that apt uses and four gigabytes in target/vm; no part of
    /// `test`. Machines are emulated and ten to twenty times slower: all of it takes hours, most of
    /// them for the attacks. `--test verifier --test decide` takes a minute for each kernel.
    ///
    /// `--systemd` installs the Debian package on hosts that systemd has booted, and runs the tests
    /// of it and of jobfence under systemd there, a few minutes each.
    ///
    /// `JOBFENCE_BIN` names a jobfence to use in place of a new one.
    Vm(vm::Options),
    /// Set up, build, and make what is released: a Debian package, a tarball, checksums and an SBOM.
    ///
    /// In target/dist. `JOBFENCE_BIN` names a jobfence to use in place of a new one.
    Dist,
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
        Task::Setup {
            check,
            ci,
            bench,
            vm,
        } => setup::run(setup::Options {
            check,
            ci,
            bench,
            vm,
            runners: true,
            dist: true,
        }),
        Task::Build { debug } => build(debug),
        Task::Test { filter } => {
            setup::run(setup::Options {
                runners: true,
                dist: true,
                ..setup::Options::default()
            })?;
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
        Task::Attack {
            markdown,
            filter,
            agent,
        } => attack(markdown, filter.as_deref(), agent),
        Task::Bench { quick, json, only } => bench(quick, json, only.as_deref()),
        Task::Registries => match env::var_os("JOBFENCE_BIN") {
            Some(binary) => registries::run(binary.as_ref()),
            None => {
                setup::run(setup::Options::default())?;
                build(false)?;
                registries::run(&sh::release_binary())
            }
        },
        Task::Fuzz { minutes, target } => fuzz::run(fuzz::Options { minutes, target }),
        Task::Vm(options) => vm::run(&options),
        Task::Dist => {
            setup::run(setup::Options {
                dist: true,
                ..setup::Options::default()
            })?;
            match env::var_os("JOBFENCE_BIN") {
                Some(binary) => dist::run(binary.as_ref()),
                None => {
                    build(false)?;
                    dist::run(&sh::release_binary())
                }
            }
        }
        Task::Lint => lint::run(),
    }
}

fn attack(markdown: bool, filter: Option<&str>, agent: bool) -> Result<()> {
    setup::run(setup::Options::default())?;
    let binary = match env::var_os("JOBFENCE_BIN") {
        Some(binary) => binary.into(),
        None => {
            build(false)?;
            sh::release_binary()
        }
    };
    let mut attack = sh::cargo();
    attack
        .args(["run", "-p", "jobfence-tests", "--bin", "attack", "--"])
        .args(markdown.then_some("--markdown"))
        .args(filter.map(|text| text.replace(' ', "_")))
        .envs(agent.then_some(("JOBFENCE_TEST_AGENT", "1")))
        .env("JOBFENCE_BIN", binary);
    sh::run(&mut attack).context("some attacks succeeded, or could not be tried")
}

fn bench(quick: bool, json: bool, only: Option<&str>) -> Result<()> {
    setup::run(setup::Options {
        bench: true,
        ..setup::Options::default()
    })?;
    let binary = match env::var_os("JOBFENCE_BIN") {
        Some(binary) => binary.into(),
        None => {
            build(false)?;
            sh::release_binary()
        }
    };
    let mut bench = sh::cargo();
    bench
        .args(["run", "--release", "-p", "jobfence-tests", "--bin", "bench"])
        .arg("--")
        .args(quick.then_some("--quick"))
        .args(json.then_some("--json"))
        .args(only.map(|text| format!("--only={text}")))
        .env("JOBFENCE_BIN", binary);
    sh::run(&mut bench).context("measure")
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
