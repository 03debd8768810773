//! The emulator: the system's qemu or, where that is too old, a newer one of the same release's
//! backports, unpacked beside it.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::debian::Debian;
use crate::sh;

/// The oldest major version that is used. 7.2, of Debian 12, now and then spoils the flags behind
/// `cmpxchg16b`, of which the allocator of a kernel 6.12 dies; with 10.0 it was not seen.
const OLDEST: u32 = 10;

const PROGRAM: &str = "qemu-system-x86_64";

/// Its packages, beside what those of the system's qemu have brought.
const PACKAGES: [&str; 2] = ["qemu-system-x86", "qemu-system-data"];

/// The firmware's package has not changed its place.
const FIRMWARE: &str = "/usr/share/seabios";

/// A qemu that can be started.
pub(crate) struct Emulator {
    program: PathBuf,
    /// Folders with its firmware; none for the system's.
    firmware: Vec<PathBuf>,
}

impl Emulator {
    /// Finds the system's qemu, or brings a newer one into `folder`.
    pub(crate) fn find(debian: &Debian, folder: &Path) -> Result<Self> {
        let systems = Self {
            program: PROGRAM.into(),
            firmware: Vec::new(),
        };
        if systems.major()? >= OLDEST {
            return Ok(systems);
        }
        let tree = folder.join("qemu");
        let newer = Self {
            program: tree.join("usr/bin").join(PROGRAM),
            firmware: vec![tree.join("usr/share/qemu"), FIRMWARE.into()],
        };
        if !newer.program.is_file() {
            debian.unpack_backports(&PACKAGES, &tree)?;
        }
        let major = newer.major()?;
        ensure!(
            major >= OLDEST,
            "qemu {major} of the backports is too old: {OLDEST} is needed"
        );
        Ok(newer)
    }

    /// Its command line, without a machine.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        for folder in &self.firmware {
            command.arg("-L").arg(folder);
        }
        command
    }

    fn major(&self) -> Result<u32> {
        let mut ask = self.command();
        let said = sh::ask(ask.arg("--version"));
        let said = said.with_context(|| format!("`{}` failed", sh::render(&ask)))?;
        parse(&said).with_context(|| format!("{PROGRAM} is of no known version: {said}"))
    }
}

/// The 7 in `QEMU emulator version 7.2.22 (Debian …)`.
fn parse(said: &str) -> Option<u32> {
    let (_, version) = said.split_once("version ")?;
    version.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read() {
        let said = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright (c)";
        assert_eq!(parse(said), Some(10));
        assert_eq!(parse("command not found"), None);
    }
}
