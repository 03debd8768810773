//! Running every test there is and adding up their results.
//!
//! The end-to-end tests make cgroups, network namespaces and BPF links and so
//! need root. Without it they are left out, and counted: nothing is skipped in
//! silence.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    ops::AddAssign,
    process::{Command, ExitStatus, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::sh;

const BPFFS: &str = "/sys/fs/bpf";

/// Runs all tests, those whose name contains `filter` if given, and ends its
/// output with `N passed, N failed`.
pub(crate) fn run(filter: Option<&str>) -> Result<()> {
    let mut tally = Tally::default();
    let mut broken = Vec::new();
    let mut add = |name: &str, command: &mut Command| -> Result<()> {
        let (status, counted) = tee(command)?;
        tally += counted;
        // A failed test is in the tally; a test binary that did not build or died is not.
        if !status.success() && counted.failed == 0 {
            broken.push(format!("{name}: {status}"));
        }
        Ok(())
    };

    let mut units = sh::cargo();
    units.args(["test", "--no-fail-fast", "--workspace"]);
    // The kernel's programs do not run on a host; the end-to-end tests come below.
    units.args(["--exclude", "jobfence-ebpf", "--exclude", "jobfence-tests"]);
    add("unit tests", units.arg("--").args(filter))?;

    let mut left_out = 0;
    if sh::is_root() {
        mount_bpffs()?;
        let mut e2e = sh::cargo();
        e2e.args(["test", "--no-fail-fast", "-p", "jobfence-tests", "--"])
            .args(filter)
            .env("JOBFENCE_BIN", sh::release_binary());
        add("end-to-end tests", &mut e2e)?;
    } else {
        let mut list = sh::cargo();
        list.args(["test", "-p", "jobfence-tests", "--"])
            .args(filter)
            .arg("--list");
        sh::announce(&list);
        let names = list
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()?;
        if !names.status.success() {
            bail!("`{}` failed: {}", sh::render(&list), names.status);
        }
        left_out = count_listed(&String::from_utf8_lossy(&names.stdout));
    }

    println!();
    if tally.ignored > 0 {
        println!("ignored: {} tests (marked #[ignore])", tally.ignored);
    }
    if left_out > 0 {
        println!("left out: {left_out} tests (need root)");
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    if !broken.is_empty() {
        bail!("not built, or died: {}", broken.join("; "));
    }
    if tally.failed > 0 {
        bail!("{} tests failed", tally.failed);
    }
    if tally.passed + left_out == 0 {
        bail!("no test ran");
    }
    Ok(())
}

/// Results of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) ignored: usize,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

/// Runs `command`, passing its output on as it comes and counting the results in it.
fn tee(command: &mut Command) -> Result<(ExitStatus, Tally)> {
    sh::announce(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start `{}`", sh::render(command)))?;
    let mut output = Vec::new();
    if let Some(mut pipe) = child.stdout.take() {
        // Not line by line: a running test's name comes without its line end.
        let mut buffer = [0; 8192];
        loop {
            let n = pipe.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            output.extend_from_slice(&buffer[..n]);
            io::stdout().write_all(&buffer[..n])?;
            io::stdout().flush()?;
        }
    }
    let status = child.wait()?;
    Ok((status, count_results(&String::from_utf8_lossy(&output))))
}

/// Adds up libtest's closing lines:
/// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s`.
pub(crate) fn count_results(output: &str) -> Tally {
    let mut tally = Tally::default();
    for line in output.lines() {
        let Some((_, counts)) = line
            .strip_prefix("test result: ")
            .and_then(|rest| rest.split_once(". "))
        else {
            continue;
        };
        for count in counts.split("; ") {
            match count.split_once(' ') {
                Some((n, "passed")) => tally.passed += n.parse().unwrap_or(0),
                Some((n, "failed")) => tally.failed += n.parse().unwrap_or(0),
                Some((n, "ignored")) => tally.ignored += n.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
    tally
}

/// The number of tests that `--list` named.
fn count_listed(output: &str) -> usize {
    output
        .lines()
        .filter(|line| line.ends_with(": test"))
        .count()
}

/// Mounts a BPF file system where links and maps are pinned, if none is there.
fn mount_bpffs() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
    if is_bpffs(&mounts) {
        return Ok(());
    }
    eprintln!("no BPF file system at {BPFFS}; mounting one");
    sh::run(Command::new("mount").args(["-t", "bpf", "bpf", BPFFS]))
}

/// Whether the mount table (proc_pid_mountinfo(5)) has a BPF file system at [`BPFFS`].
fn is_bpffs(mountinfo: &str) -> bool {
    mountinfo.lines().any(|line| {
        let mut sides = line.splitn(2, " - ");
        let place = sides.next().and_then(|left| left.split(' ').nth(4));
        let kind = sides.next().and_then(|right| right.split(' ').next());
        (place, kind) == (Some(BPFFS), Some("bpf"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_test_binaries_are_added_up() {
        let output = "running 3 tests\n\
            test a ... ok\n\
            test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
            test result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 5 filtered out; finished in 1.2s\n\
            all doctests ran in 0.31s; merged doctests compilation took 0.30s\n";
        assert_eq!(
            count_results(output),
            Tally {
                passed: 13,
                failed: 2,
                ignored: 1
            }
        );
    }

    #[test]
    fn a_tests_own_output_is_not_counted() {
        let output = "saw: test result: ok. 3 passed; 0 failed\ntest result: unknown\n";
        assert_eq!(count_results(output), Tally::default());
    }

    #[test]
    fn listed_tests_are_counted_without_the_totals() {
        let output = "a::b: test\nc: test\n\n2 tests, 0 benchmarks\n0 tests, 0 benchmarks\n";
        assert_eq!(count_listed(output), 2);
    }

    #[test]
    fn a_bpf_file_system_is_told_from_other_mounts() {
        let bpf = "42 23 0:39 / /sys/fs/bpf rw,relatime shared:7 - bpf bpf rw,mode=700\n";
        assert!(is_bpffs(bpf));
        assert!(!is_bpffs("42 23 0:39 / /sys/fs/bpf rw - tmpfs tmpfs rw\n"));
        assert!(!is_bpffs("42 23 0:39 / /mnt rw - bpf bpf rw\n"));
        assert!(!is_bpffs(""));
    }
}
