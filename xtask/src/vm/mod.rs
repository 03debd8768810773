//! The end-to-end tests under other kernels than this machine's, each in a virtual machine, and
//! what the verifier of each thinks of the programs.
//!
//! - [`debian`]: where kernels and the root file system come from
//! - [`emulator`][]: qemu
//! - [`image`]: disks made of folders
//! - [`machine`]: one virtual machine
//!
//! All of it is kept in `target/vm`; what was brought once is not brought again.

mod debian;
mod emulator;
mod image;
mod machine;

use std::{
    collections::{BTreeMap, VecDeque},
    env, fs,
    io::{BufRead as _, BufReader},
    num::NonZero,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, value_parser};
use serde_json::Value;

use crate::{setup, sh, test};
use debian::{Debian, Kernel, Scratch};
use emulator::Emulator;
use machine::{Machine, Outcome, Suite};

/// The test programs that run in each machine, in this order: targets of `jobfence-tests`. They are
/// those that go by what the kernel does; how jobfence is used is the same everywhere.
const SUITES: [&str; 7] = [
    "verifier", "decide", "names", "families", "escape", "run", "attack",
];

/// The kernels of Debian's last two releases, which most hosts have. The newest two that there
/// are come on top.
const SERIES: [(u32, u32); 2] = [(6, 1), (6, 12)];

/// What the machines have beyond what the tests need of any host.
const PACKAGES: [&str; 2] = ["kmod", "util-linux-extra"];

/// How long one test program may take in a machine. Most take a minute or two on two idle cores;
/// `attack` starts a fence a few hundred times, and the verifier is slow where it is emulated.
const SUITE_LIMIT: Duration = Duration::from_secs(60 * 60);

/// What [`run`] is asked to do.
#[derive(Args)]
pub(crate) struct Options {
    /// A series of kernels, such as 6.1, in place of the usual; may be given again.
    #[arg(long = "kernel", value_name = "SERIES")]
    kernels: Vec<String>,
    /// Only list the kernels that there are.
    #[arg(long)]
    list: bool,
    /// A test program of `tests/tests`, in place of the usual; may be given again.
    #[arg(long = "test", value_name = "NAME")]
    suites: Vec<String>,
    /// Run only tests whose name contains this.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// How many machines run at once, each on one core; usually as many as there are cores.
    #[arg(long, value_name = "N", value_parser = value_parser!(u8).range(1..))]
    machines: Option<u8>,
}

/// Lists the kernels, or runs the tests under each and prints the tables.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(
        sh::is_root(),
        "virtual machines' disks are made by root: run this as root"
    );
    setup::run(setup::Options {
        vm: true,
        ..setup::Options::default()
    })?;
    let folder = sh::workspace().join("target/vm");
    let debian = Debian::find(folder.clone())?;
    let offered = debian.kernels()?;
    if options.list {
        for kernel in &offered {
            println!("{}", kernel.release);
        }
        return Ok(());
    }
    let kernels = choose(&offered, &options.kernels)?;
    let names: Vec<&str> = match &options.suites[..] {
        [] => SUITES.to_vec(),
        named => named.iter().map(String::as_str).collect(),
    };
    let emulator = Emulator::find(&debian, &folder)?;
    let root = debian.root(&packages())?;
    let binary = match env::var_os("JOBFENCE_BIN") {
        Some(binary) => binary.into(),
        None => {
            crate::build(false)?;
            sh::release_binary()
        }
    };
    let tests = folder.join("tests.ext4");
    pack(&folder, &tests, &binary, &names, options.filter.as_deref())?;
    fs::create_dir_all(folder.join("log")).context("make the folder for logs")?;

    let queue = Mutex::new(kernels.iter().copied().collect::<VecDeque<_>>());
    let results = Mutex::new(BTreeMap::new());
    let work = || {
        let next = || {
            queue
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop_front()
        };
        while let Some(kernel) = next() {
            let result = debian.fetch(kernel).and_then(|files| {
                let machine = Machine {
                    release: &kernel.release,
                    emulator: &emulator,
                    files: &files,
                    root: &root,
                    tests: &tests,
                    log: folder.join("log").join(format!("{}.txt", kernel.release)),
                    limit: SUITE_LIMIT * u32::try_from(names.len()).unwrap_or(u32::MAX),
                };
                machine.run()
            });
            let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
            results.insert(kernel.release.as_str(), result);
        }
    };
    thread::scope(|scope| {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        for _ in 0..options.machines.map_or(cores, usize::from) {
            scope.spawn(work);
        }
    });
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    report(&kernels, &names, &results)
}

/// The kernels that were asked for, or the usual; an error when one is not offered.
fn choose<'a>(offered: &'a [Kernel], asked: &[String]) -> Result<Vec<&'a Kernel>> {
    let mut series: Vec<_> = asked
        .iter()
        .map(|text| {
            let numbers = text.split_once('.');
            let parsed = numbers.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
            parsed.with_context(|| format!("`{text}` is no series of kernels like 6.1"))
        })
        .collect::<Result<_>>()?;
    if series.is_empty() {
        series = SERIES.to_vec();
        series.extend(offered.iter().take(2).map(|kernel| kernel.series));
        series.sort_unstable();
        series.dedup();
    }
    series
        .into_iter()
        .map(|(major, minor)| {
            let found = offered
                .iter()
                .find(|kernel| kernel.series == (major, minor));
            found.with_context(|| {
                format!("the mirror offers no kernel {major}.{minor}: see `cargo xtask vm --list`")
            })
        })
        .collect()
}

/// The packages of a machine's root file system.
fn packages() -> Vec<&'static str> {
    let mut packages: Vec<_> = setup::test_packages().chain(PACKAGES).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// Makes the disk with the test programs, the binary that they test and `init.sh`.
fn pack(
    folder: &Path,
    disk: &Path,
    binary: &Path,
    names: &[&str],
    filter: Option<&str>,
) -> Result<()> {
    let built = build_tests()?;
    let work = Scratch::new(folder.join("tests.new"))?;
    let copy = |from: &Path, to: &str| -> Result<()> {
        let to = work.0.join(to);
        let folder = to.parent().context("a file is in a folder")?;
        fs::create_dir_all(folder)
            .and_then(|()| fs::copy(from, &to).map(drop))
            .with_context(|| format!("copy {} to {}", from.display(), to.display()))
    };
    for name in names {
        let program = built
            .get(*name)
            .with_context(|| format!("there is no test program {name} among {:?}", built.keys()))?;
        copy(program, &format!("tests/{name}"))?;
        // Most of it is for debuggers.
        let program = work.0.join("tests").join(name);
        sh::run(Command::new("strip").arg("--strip-debug").arg(program))?;
    }
    copy(binary, "jobfence")?;
    let object = "bpf/jobfence.bpf.o";
    copy(&sh::workspace().join("target").join(object), object)?;
    let environment = [
        ("WORKSPACE", sh::workspace().display().to_string()),
        ("TESTS", names.join(" ")),
        ("LIMIT", SUITE_LIMIT.as_secs().to_string()),
        // libtest's. Tests wait as much as they compute.
        (
            "ARGUMENTS",
            format!(
                "--color=never --show-output --test-threads=6 {}",
                filter.unwrap_or_default()
            ),
        ),
        ("JOBFENCE_TEST_SLOW", "20".to_owned()),
        ("JOBFENCE_BIN", "/usr/local/bin/jobfence".to_owned()),
    ];
    let environment: String = environment
        .iter()
        .map(|(name, value)| format!("{name}='{value}'\n"))
        .collect();
    fs::write(work.0.join("environment"), environment).context("write the environment")?;
    let init = work.0.join("init");
    fs::write(&init, include_str!("init.sh"))
        .and_then(|()| fs::set_permissions(&init, fs::Permissions::from_mode(0o755)))
        .context("write init")?;
    image::plain(&work.0, "tests", disk)
}

/// Builds the end-to-end tests; where each program is, by name.
fn build_tests() -> Result<BTreeMap<String, PathBuf>> {
    let mut cargo = sh::cargo();
    cargo.args(["test", "--no-run", "-p", "jobfence-tests", "--tests"]);
    cargo.arg("--message-format=json-render-diagnostics");
    sh::announce(&cargo);
    let mut child = cargo
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start cargo")?;
    let mut programs = BTreeMap::new();
    if let Some(pipe) = child.stdout.take() {
        for line in BufReader::new(pipe).lines() {
            let message: Value = serde_json::from_str(&line?).context("read cargo's messages")?;
            let target = &message["target"];
            if let (Some("test"), Some(name), Some(program)) = (
                target["kind"][0].as_str(),
                target["name"].as_str(),
                message["executable"].as_str(),
            ) {
                programs.insert(name.to_owned(), program.into());
            }
        }
    }
    let status = child.wait()?;
    ensure!(
        status.success(),
        "the end-to-end tests do not build: {status}"
    );
    Ok(programs)
}

/// Prints what failed and the tables; an error unless all is well.
fn report(
    kernels: &[&Kernel],
    names: &[&str],
    results: &BTreeMap<&str, Result<Outcome>>,
) -> Result<()> {
    let mut bad = Vec::new();
    let mut columns = Vec::new();
    for kernel in kernels {
        let release = kernel.release.as_str();
        match results.get(release) {
            Some(Ok(outcome)) => {
                let failed = failures(outcome, names);
                for (what, output) in &failed {
                    println!("---- {release}: {what} ----\n{output}");
                }
                bad.extend(
                    failed
                        .into_iter()
                        .map(|(what, _)| format!("{release}: {what}")),
                );
                columns.push((release, outcome));
            }
            Some(Err(error)) => bad.push(format!("{release}: {error:#}")),
            None => bad.push(format!("{release}: was not started")),
        }
    }
    if !columns.is_empty() {
        print!("\n{}", tables(&columns, names));
    }
    if !bad.is_empty() {
        bail!("{}", bad.join("\n       "));
    }
    println!("\n{} kernels passed", kernels.len());
    Ok(())
}

/// What went wrong in a machine, each with what was printed of it.
fn failures(outcome: &Outcome, names: &[&str]) -> Vec<(String, String)> {
    let mut failed = Vec::new();
    for name in names {
        let Some(suite) = outcome.suites.iter().find(|suite| suite.name == *name) else {
            failed.push((format!("{name} was not started"), outcome.complaint.clone()));
            continue;
        };
        let tests = suite.failed();
        let what = match suite.code {
            Some(0) if suite.tally().passed > 0 => continue,
            Some(0) => format!("{name} ran no test"),
            // timeout(1)'s own.
            Some(124 | 137) => format!("{name} did not end in time"),
            None => format!("{name} did not end: the machine died, or its time was up"),
            Some(_) if !tests.is_empty() => format!("{name} failed: {}", tests.join(", ")),
            Some(code) => format!("{name} died with exit code {code}"),
        };
        failed.push((what, suite.output.clone()));
    }
    failed
}

impl Suite {
    fn tally(&self) -> test::Tally {
        test::count_results(&self.output)
    }

    /// The tests that failed, by libtest's lines `test NAME ... FAILED`.
    fn failed(&self) -> Vec<&str> {
        let failed = |line: &'_ str| line.starts_with("test ") && line.ends_with(" ... FAILED");
        let lines = self.output.lines().filter(|line| failed(line));
        lines.filter_map(|line| line.split(' ').nth(1)).collect()
    }

    /// Programs with what the verifier walked, by the lines that the verifier's test prints.
    fn verified(&self) -> BTreeMap<&str, &str> {
        let lines = self.output.lines();
        let told = lines.filter_map(|line| line.trim().strip_prefix("verified: "));
        told.filter_map(|line| line.split_once(' ')).collect()
    }
}

/// Two tables in Markdown, with a column for each kernel: verified instructions of each program,
/// and the results of each test program.
fn tables(columns: &[(&str, &Outcome)], names: &[&str]) -> String {
    let row = |first: &str, cells: Vec<String>| format!("| {first} | {} |\n", cells.join(" | "));
    let head = |first: &str| {
        let releases = columns.iter().map(|(release, _)| (*release).to_owned());
        row(first, releases.collect()) + &row("---", vec!["---:".to_owned(); columns.len()])
    };
    let verified: Vec<_> = columns
        .iter()
        .map(|(_, outcome)| {
            let suites = outcome.suites.iter();
            suites.flat_map(Suite::verified).collect::<BTreeMap<_, _>>()
        })
        .collect();
    let mut programs: Vec<_> = verified.iter().flat_map(BTreeMap::keys).collect();
    programs.sort_unstable();
    programs.dedup();

    let mut text = String::new();
    if !programs.is_empty() {
        text += &head("verified instructions");
        for program in programs {
            let cells = verified
                .iter()
                .map(|kernel| (*kernel.get(program).unwrap_or(&"-")).to_owned());
            text += &row(program, cells.collect());
        }
        text.push('\n');
    }
    text += &head("tests");
    for name in names {
        let cell = |outcome: &Outcome| {
            let suite = outcome.suites.iter().find(|suite| suite.name == *name);
            suite.map_or("-".to_owned(), |suite| {
                let tally = suite.tally();
                if suite.code != Some(0) && tally.failed == 0 {
                    return "died".to_owned();
                }
                let counts = [
                    (tally.passed, "passed"),
                    (tally.failed, "failed"),
                    (tally.ignored, "left out"),
                ];
                let told = counts.iter().filter(|(count, _)| *count > 0);
                let told = told.map(|(count, what)| format!("{count} {what}"));
                told.collect::<Vec<_>>().join(", ")
            })
        };
        text += &row(
            name,
            columns.iter().map(|(_, outcome)| cell(outcome)).collect(),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(major: u32, minor: u32) -> Kernel {
        Kernel {
            release: format!("{major}.{minor}.1-cloud-amd64"),
            series: (major, minor),
        }
    }

    #[test]
    fn the_usual_kernels_are_those_of_releases_and_the_newest_two() {
        let offered = [(7, 3), (7, 2), (6, 12), (6, 1), (5, 10)].map(|(a, b)| kernel(a, b));
        let chosen = choose(&offered, &[]).unwrap();
        let series: Vec<_> = chosen.iter().map(|kernel| kernel.series).collect();
        assert_eq!(series, [(6, 1), (6, 12), (7, 2), (7, 3)]);
        let chosen = choose(&offered, &["5.10".to_owned()]).unwrap();
        assert_eq!(chosen, [&offered[4]]);
        for wrong in ["6.2", "newest"] {
            assert!(choose(&offered, &[wrong.to_owned()]).is_err(), "{wrong}");
        }
        assert!(
            choose(&offered[..2], &[]).is_err(),
            "6.1 is not left out in silence"
        );
    }

    fn suite(name: &str, code: Option<i32>, output: &str) -> Suite {
        Suite {
            name: name.to_owned(),
            code,
            output: output.to_owned(),
        }
    }

    #[test]
    fn whatever_did_not_pass_is_a_failure() {
        let passed = "verified: egress 1200\ntest result: ok. 1 passed; 0 failed; 0 ignored\n";
        let failed = "test a_hole ... FAILED\ntest result: FAILED. 3 passed; 1 failed; 2 ignored\n";
        let outcome = Outcome {
            suites: vec![
                suite("good", Some(0), passed),
                suite("bad", Some(101), failed),
                suite("dead", Some(139), ""),
                suite(
                    "empty",
                    Some(0),
                    "test result: ok. 0 passed; 0 failed; 0 ignored\n",
                ),
                suite("slow", Some(124), ""),
                suite("open", None, ""),
            ],
            ..Outcome::default()
        };
        let names = ["good", "bad", "dead", "empty", "slow", "open", "absent"];
        let found: Vec<_> = failures(&outcome, &names)
            .into_iter()
            .map(|(what, _)| what)
            .collect();
        let expected = [
            "bad failed: a_hole",
            "dead died with exit code 139",
            "empty ran no test",
            "slow did not end in time",
            "open did not end: the machine died, or its time was up",
            "absent was not started",
        ];
        assert_eq!(found, expected);
        let table = tables(&[("6.1", &outcome)], &names[..2]);
        let expected = "| verified instructions | 6.1 |\n| --- | ---: |\n| egress | 1200 |\n\n\
                        | tests | 6.1 |\n| --- | ---: |\n| good | 1 passed |\n\
                        | bad | 3 passed, 1 failed, 2 left out |\n";
        assert_eq!(table, expected);
    }
}
