//! The end-to-end tests under other kernels than this machine's, each in a virtual machine, and
//! what the verifier of each thinks of the programs.
//!
//! - [`debian`]: where kernels and the root file system come from
//! - [`emulator`][]: qemu
//! - [`image`]: disks made of folders
//! - [`machine`]: one virtual machine
//! - [`systemd`]: the tests of a host with systemd, each in a machine that is one
//!
//! All of it is kept in `target/vm`; what was brought once is not brought again.

mod debian;
mod emulator;
mod image;
mod machine;
mod systemd;

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
    /// Run the tests of the Debian package and of systemd, each on a Debian of its own that systemd
    /// has booted, with the kernels 6.1 and 6.12.
    #[arg(long)]
    systemd: bool,
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
        dist: options.systemd,
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
    // What systemd does, it does under the newest kernels too.
    let newest = if options.systemd { 0 } else { 2 };
    let kernels = choose(&offered, &options.kernels, newest)?;
    let suites: Vec<&str> = match &options.suites[..] {
        [] if options.systemd => systemd::SUITES.to_vec(),
        [] => SUITES.to_vec(),
        named => named.iter().map(String::as_str).collect(),
    };
    let emulator = Emulator::find(&debian, &folder)?;
    let binary = match env::var_os("JOBFENCE_BIN") {
        Some(binary) => binary.into(),
        None => {
            crate::build(false)?;
            sh::release_binary()
        }
    };
    let programs = build_tests(&suites)?;
    let disk = Disk {
        folder: &folder,
        binary: &binary,
        programs: &programs,
        suites: &suites,
    };
    let (root, tests, runs) = if options.systemd {
        let tests = systemd::tests(&programs, &suites, options.filter.as_deref())?;
        let runs = tests.into_iter().map(|(program, test)| Run {
            init: format!("/mnt/systemd {program} {test}"),
            label: format!(".{program}.{test}"),
            suites: vec![format!("{program}::{test}")],
        });
        let package = systemd::package(&binary)?;
        let disk = disk.pack_host(&package)?;
        (systemd::root(&folder)?, disk, runs.collect())
    } else {
        let run = Run {
            init: "/mnt/init".to_owned(),
            label: String::new(),
            suites: suites.iter().map(|name| (*name).to_owned()).collect(),
        };
        let disk = disk.pack(options.filter.as_deref())?;
        (debian.root(&packages())?, disk, vec![run])
    };
    fs::create_dir_all(folder.join("log")).context("make the folder for logs")?;

    let work = kernels
        .iter()
        .flat_map(|kernel| runs.iter().map(move |run| (*kernel, run)));
    let queue = Mutex::new(work.collect::<VecDeque<_>>());
    let results = Mutex::new(BTreeMap::new());
    // Several machines may want the same kernel.
    let fetching = Mutex::new(());
    let fetch = |kernel| {
        let _alone = fetching.lock().unwrap_or_else(PoisonError::into_inner);
        debian.fetch(kernel)
    };
    let work = || {
        let next = || {
            queue
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop_front()
        };
        while let Some((kernel, run)) = next() {
            let result = fetch(kernel).and_then(|files| {
                let log = format!("{}{}.txt", kernel.release, run.label);
                let machine = Machine {
                    release: &kernel.release,
                    emulator: &emulator,
                    files: &files,
                    root: &root,
                    tests: &tests,
                    init: &run.init,
                    log: folder.join("log").join(log),
                    limit: SUITE_LIMIT * u32::try_from(run.suites.len()).unwrap_or(u32::MAX),
                };
                machine.run()
            });
            let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
            add(&mut results, &kernel.release, result);
        }
    };
    thread::scope(|scope| {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        for _ in 0..options.machines.map_or(cores, usize::from) {
            scope.spawn(work);
        }
    });
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    let names = runs.iter().flat_map(|run| &run.suites);
    let names: Vec<_> = names.map(String::as_str).collect();
    report(&kernels, &names, &results)
}

/// What one machine is started for.
struct Run {
    /// Its first process, once its disks are there.
    init: String,
    /// What the names of its logs have behind the kernel's release.
    label: String,
    /// What it is to tell of.
    suites: Vec<String>,
}

/// Adds what a machine told to what others with the same kernel have told.
fn add<'a>(
    results: &mut BTreeMap<&'a str, Result<Outcome>>,
    release: &'a str,
    result: Result<Outcome>,
) {
    match (results.get_mut(release), result) {
        (Some(Ok(outcome)), Ok(more)) => {
            outcome.suites.extend(more.suites);
            outcome.complaint += &more.complaint;
        }
        (Some(Err(_)), Ok(_)) => {}
        (_, result) => drop(results.insert(release, result)),
    }
}

/// The kernels that were asked for, or else the usual and the `newest` so many; an error when one is
/// not offered.
fn choose<'a>(offered: &'a [Kernel], asked: &[String], newest: usize) -> Result<Vec<&'a Kernel>> {
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
        series.extend(offered.iter().take(newest).map(|kernel| kernel.series));
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

/// What the disk with the tests is made of.
struct Disk<'a> {
    folder: &'a Path,
    /// The jobfence that they test.
    binary: &'a Path,
    programs: &'a BTreeMap<String, PathBuf>,
    suites: &'a [&'a str],
}

impl Disk<'_> {
    /// Makes the disk for machines that run all programs after each other, but only the tests whose
    /// name contains `filter`.
    fn pack(&self, filter: Option<&str>) -> Result<PathBuf> {
        let work = self.lay_out()?;
        copy(
            &sh::workspace().join("target/bpf/jobfence.bpf.o"),
            &work.0.join("bpf/jobfence.bpf.o"),
        )?;
        script(&work.0.join("init"), include_str!("init.sh"))?;
        // Tests wait as much as they compute.
        let arguments = format!("--test-threads=6 {}", filter.unwrap_or_default());
        let environment = [
            ("TESTS", self.suites.join(" ")),
            ("JOBFENCE_BIN", "/usr/local/bin/jobfence".to_owned()),
        ];
        self.finish(&work.0, &arguments, &environment)
    }

    /// Makes the disk for machines that run one test each.
    fn pack_host(&self, package: &Path) -> Result<PathBuf> {
        let work = self.lay_out()?;
        copy(package, &work.0.join("jobfence.deb"))?;
        let units = sh::workspace().join("userspace/cli/systemd");
        for entry in fs::read_dir(&units).with_context(|| format!("read {}", units.display()))? {
            let unit = entry?;
            copy(&unit.path(), &work.0.join("units").join(unit.file_name()))?;
        }
        script(&work.0.join("systemd"), include_str!("systemd.sh"))?;
        let environment = [
            ("JOBFENCE_TEST_HOST", "systemd".to_owned()),
            ("JOBFENCE_BIN", "/mnt/jobfence".to_owned()),
            ("JOBFENCE_DEB", "/mnt/jobfence.deb".to_owned()),
        ];
        self.finish(&work.0, "", &environment)
    }

    /// A folder with the programs and the binary.
    fn lay_out(&self) -> Result<Scratch> {
        let work = Scratch::new(self.folder.join("tests.new"))?;
        for name in self.suites {
            let program = self.programs.get(*name).with_context(|| {
                format!(
                    "there is no test program {name} among {:?}",
                    self.programs.keys()
                )
            })?;
            let copied = work.0.join("tests").join(name);
            copy(program, &copied)?;
            // Most of it is for debuggers.
            sh::run(Command::new("strip").arg("--strip-debug").arg(copied))?;
        }
        copy(self.binary, &work.0.join("jobfence"))?;
        Ok(work)
    }

    /// Makes the disk of what is laid out in `work` and what every machine is told.
    fn finish(&self, work: &Path, arguments: &str, more: &[(&str, String)]) -> Result<PathBuf> {
        let environment = [
            ("WORKSPACE", sh::workspace().display().to_string()),
            ("LIMIT", SUITE_LIMIT.as_secs().to_string()),
            // libtest's.
            (
                "ARGUMENTS",
                format!("--color=never --show-output {arguments}"),
            ),
            ("JOBFENCE_TEST_SLOW", "20".to_owned()),
        ];
        let environment: String = environment
            .iter()
            .chain(more)
            .map(|(name, value)| format!("{name}='{value}'\n"))
            .collect();
        fs::write(work.join("environment"), environment).context("write the environment")?;
        let disk = self.folder.join("tests.ext4");
        image::plain(work, "tests", &disk)?;
        Ok(disk)
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().context("a file is in a folder")?;
    fs::create_dir_all(folder)
        .and_then(|()| fs::copy(from, to).map(drop))
        .with_context(|| format!("copy {} to {}", from.display(), to.display()))
}

fn script(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text)
        .and_then(|()| fs::set_permissions(file, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("write {}", file.display()))
}

/// Builds the test programs `suites`; where each is, by name.
fn build_tests(suites: &[&str]) -> Result<BTreeMap<String, PathBuf>> {
    let mut cargo = sh::cargo();
    cargo.args(["test", "--no-run", "-p", "jobfence-tests"]);
    cargo.args(suites.iter().flat_map(|name| ["--test", name]));
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
    use anyhow::anyhow;

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
        let chosen = choose(&offered, &[], 2).unwrap();
        let series: Vec<_> = chosen.iter().map(|kernel| kernel.series).collect();
        assert_eq!(series, [(6, 1), (6, 12), (7, 2), (7, 3)]);
        let chosen = choose(&offered, &["5.10".to_owned()], 2).unwrap();
        assert_eq!(chosen, [&offered[4]]);
        for wrong in ["6.2", "newest"] {
            assert!(choose(&offered, &[wrong.to_owned()], 2).is_err(), "{wrong}");
        }
        assert!(
            choose(&offered[..2], &[], 2).is_err(),
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
    fn machines_with_one_kernel_are_told_of_together() {
        let told = |name| {
            Ok(Outcome {
                suites: vec![suite(name, Some(0), "")],
                ..Outcome::default()
            })
        };
        let mut results = BTreeMap::new();
        for name in ["one", "two"] {
            add(&mut results, "6.1", told(name));
        }
        add(&mut results, "6.12", Err(anyhow!("did not come up")));
        add(&mut results, "6.12", told("one"));
        let suites = &results["6.1"].as_ref().unwrap().suites;
        let names: Vec<_> = suites.iter().map(|suite| suite.name.as_str()).collect();
        assert_eq!(names, ["one", "two"]);
        assert!(results["6.12"].is_err(), "a failure is forgotten");
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
