//! One virtual machine from its start to the end of its tests.
//!
//! Everything is emulated (TCG): hardware virtualisation is missing on many machines, and on some
//! it can be opened and then hangs. The disks are NVMe, whose driver is part of the kernels, so no
//! initial RAM disk is needed.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{debian, emulator::Emulator, image};
use crate::sh;

/// How long a machine may take to its first process. On two idle cores it is five seconds.
const BOOT: Duration = Duration::from_secs(90);

/// A machine, not yet started.
pub(crate) struct Machine<'a> {
    pub(crate) release: &'a str,
    pub(crate) emulator: &'a Emulator,
    pub(crate) files: &'a debian::Files,
    pub(crate) root: &'a Path,
    pub(crate) tests: &'a Path,
    /// What its first process becomes, with its arguments, once `tests` is at `/mnt`.
    pub(crate) init: &'a str,
    /// Where its logs go: what its tests print, and beside it what its kernel says.
    pub(crate) log: PathBuf,
    /// When its tests have to be at their end.
    pub(crate) limit: Duration,
}

/// What a machine told, as far as it came.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The release of the kernel that came up.
    pub(crate) up: Option<String>,
    /// The test programs that were started.
    pub(crate) suites: Vec<Suite>,
    /// Whether it came to its end.
    pub(crate) done: bool,
    /// What it said outside of tests: why it could not begin.
    pub(crate) complaint: String,
}

/// What one test program did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Suite {
    pub(crate) name: String,
    /// Its exit code, if it ended.
    pub(crate) code: Option<i32>,
    pub(crate) output: String,
}

impl Machine<'_> {
    /// Starts the machine, a second time if the first does not come up, and ends it when its
    /// tests have ended or the time is up.
    pub(crate) fn run(&self) -> Result<Outcome> {
        for attempt in 1..=2 {
            let outcome = self.boot()?;
            match &outcome.up {
                Some(up) => {
                    ensure!(
                        up == self.release,
                        "{up} came up in place of {}",
                        self.release
                    );
                    return Ok(outcome);
                }
                None => eprintln!(
                    "{}: did not come up (attempt {attempt}), see {}",
                    self.release,
                    self.console().display()
                ),
            }
        }
        bail!("{} did not come up twice", self.release)
    }

    fn console(&self) -> PathBuf {
        self.log.with_extension("console")
    }

    fn boot(&self) -> Result<Outcome> {
        File::create(&self.log).with_context(|| format!("make {}", self.log.display()))?;
        let mut command = self.command();
        sh::announce(&command);
        let child = command.stdin(Stdio::null()).spawn();
        let mut qemu = Running(child.context("start qemu")?);
        let start = Instant::now();
        let mut told = 0;
        loop {
            let ended = qemu.0.try_wait()?;
            let text = fs::read(&self.log)?;
            let outcome = parse(&String::from_utf8_lossy(&text));
            let ends = outcome.suites.iter().filter(|suite| suite.code.is_some());
            for suite in ends.skip(told) {
                told += 1;
                let seconds = start.elapsed().as_secs();
                eprintln!("{}: {} at {seconds} s", self.release, suite.summary());
            }
            let elapsed = start.elapsed();
            let late = elapsed > self.limit || outcome.up.is_none() && elapsed > BOOT;
            if outcome.done || ended.is_some() || late {
                return Ok(outcome);
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    fn command(&self) -> Command {
        // There is no telling which disk the kernel sees first: all are found by what they hold.
        // Without an initial RAM disk, nobody has mounted what mount looks in.
        let init = format!(
            "mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys; \
             until mount -r -t ext4 LABEL=tests /mnt 2>/dev/null; do sleep 0.1; done; exec {}",
            self.init
        );
        let kernel = format!(
            "root=PARTUUID={:08x}-01 rootwait rw console=ttyS0 loglevel=4 panic=-1 \
             lsm=landlock,lockdown,yama,bpf init=/bin/sh -- -c \"{init}\"",
            image::SIGNATURE
        );
        // Both processors in one thread: it is what has been seen to go on for hours.
        //
        // Emulated page tables of five levels are slow, and no test needs them.
        let mut command = self.emulator.command();
        command
            .args([
                "-machine",
                "q35",
                "-accel",
                "tcg,thread=single",
                "-cpu",
                "max,la57=off",
            ])
            .args(["-m", "2048", "-smp", "2", "-nodefaults", "-display", "none"])
            // No network but what the tests make.
            .args(["-no-reboot", "-nic", "none"]);
        for log in [&self.console(), &self.log] {
            command.args(["-serial", &format!("file:{}", log.display())]);
        }
        command.args(["-device", "nvme,serial=jobfence"]);
        let disks = [self.root, &self.files.modules, self.tests];
        for (number, disk) in disks.into_iter().enumerate() {
            // Several machines share them; what one writes goes when it does.
            let drive = format!(
                "id=disk{number},if=none,format=raw,snapshot=on,file={}",
                disk.display()
            );
            command.args(["-drive", &drive]);
            command.args(["-device", &format!("nvme-ns,drive=disk{number}")]);
        }
        command.arg("-kernel").arg(&self.files.kernel);
        command.args(["-append", &kernel]);
        command
    }
}

impl Suite {
    /// Its name and how it ended.
    fn summary(&self) -> String {
        match self.code {
            Some(0) => format!("{} passed", self.name),
            Some(code) => format!("{} failed with exit code {code}", self.name),
            None => format!("{} did not end", self.name),
        }
    }
}

/// A process that is killed when this value goes.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads what `init.sh` writes.
fn parse(text: &str) -> Outcome {
    let mut outcome = Outcome::default();
    for line in text.split_inclusive('\n') {
        let words: Vec<_> = line.split_whitespace().collect();
        let open = outcome
            .suites
            .last_mut()
            .filter(|suite| suite.code.is_none());
        match (&words[..], open) {
            // Half a line is read when it is whole.
            _ if !line.ends_with('\n') => {}
            (["@@", "up", release], None) => outcome.up = Some((*release).to_owned()),
            (["@@", "begin", name], None) => outcome.suites.push(Suite {
                name: (*name).to_owned(),
                ..Suite::default()
            }),
            (["@@", "end", name, code], Some(suite)) if *name == suite.name => {
                suite.code = code.parse().ok();
            }
            (["@@", "done"], None) => outcome.done = true,
            (_, Some(suite)) => {
                suite.output += line.trim_end();
                suite.output.push('\n');
            }
            (_, None) => outcome.complaint += line,
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_machine_tells_is_read_suite_by_suite() {
        let text = "@@ up 6.1.0-50-cloud-amd64\r\n@@ begin one\r\nrunning 1 test\r\n\r\n\
                    @@ end one 0\r\n@@ begin two\r\n@@ done is not said here\r\n@@ end two 101\r\n\
                    @@ done\r\n";
        let suite = |name: &str, code, output: &str| Suite {
            name: name.to_owned(),
            code: Some(code),
            output: output.to_owned(),
        };
        let outcome = Outcome {
            up: Some("6.1.0-50-cloud-amd64".to_owned()),
            suites: vec![
                suite("one", 0, "running 1 test\n\n"),
                suite("two", 101, "@@ done is not said here\n"),
            ],
            done: true,
            complaint: String::new(),
        };
        assert_eq!(parse(text), outcome);
    }

    #[test]
    fn a_machine_that_dies_has_not_ended() {
        let outcome = parse("@@ up 6.1\n@@ begin one\ntest a ... ok\ntest b ...");
        assert!(!outcome.done);
        assert_eq!(outcome.suites[0].code, None);
        assert_eq!(outcome.suites[0].output, "test a ... ok\n");
        assert_eq!(parse("Kernel panic\n@@ up 6.").up, None);
    }
}
