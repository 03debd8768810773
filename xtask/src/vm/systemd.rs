//! The tests of a host with systemd, each in a machine of its own whose first process is systemd.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::{debian::Scratch, image};
use crate::{dist, sh};

/// The test programs that need a systemd.
pub(super) const SUITES: [&str; 2] = ["package", "systemd"];

/// Their tests that do not run in such a machine, with the reason.
const ELSEWHERE: [(&str, &str); 6] = [
    (
        "package::every_command_has_a_manual_page_and_completions",
        "looks into the package only",
    ),
    (
        "package::links_of_the_documents_lead_to_what_is_in_the_package",
        "looks into the package only",
    ),
    (
        "package::the_bill_of_materials_has_what_is_in_the_binary_and_no_tests",
        "looks into the package only",
    ),
    (
        "package::links_of_the_documents_lead_to_what_is_in_the_package",
        "looks into the package only",
    ),
    (
        "package::debian_13_has_it_installed_upgraded_and_purged",
        "is about another release",
    ),
    (
        "systemd::jobs_have_ended_after_a_reboot",
        "the test would go down with its machine",
    ),
];

/// A test: the name of its program, and its own.
pub(super) type Test = (String, String);

/// The tests of the programs `names` whose own names contain `filter`, but for those that do not run
/// in such a machine, of which it tells.
pub(super) fn tests(
    programs: &BTreeMap<String, PathBuf>,
    names: &[&str],
    filter: Option<&str>,
) -> Result<Vec<Test>> {
    let mut tests = Vec::new();
    for name in names {
        let program = programs
            .get(*name)
            .with_context(|| format!("there is no test program {name}"))?;
        let list = sh::ask(Command::new(program).args(["--list", "--format=terse"]))
            .with_context(|| format!("{} does not list its tests", program.display()))?;
        let listed = list.lines().filter_map(|line| line.strip_suffix(": test"));
        for test in listed.filter(|test| filter.is_none_or(|text| test.contains(text))) {
            let full = format!("{name}::{test}");
            match ELSEWHERE.iter().find(|(name, _)| *name == full) {
                Some((_, why)) => eprintln!("left out: {full}: {why}"),
                None => tests.push(((*name).to_owned(), test.to_owned())),
            }
        }
    }
    ensure!(!tests.is_empty(), "no test of {names:?} can run there");
    Ok(tests)
}

/// A disk with the root file system that the tests' containers have, too; the one that was made
/// before if it is the same.
pub(super) fn root(folder: &Path) -> Result<PathBuf> {
    let mut cargo = sh::cargo();
    cargo.args(["run", "--quiet", "-p", "jobfence-tests", "--bin", "root"]);
    sh::announce(&cargo);
    let output = cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.context("start cargo")?;
    ensure!(
        output.status.success(),
        "no root file system: {}",
        output.status
    );
    let tree = PathBuf::from(String::from_utf8(output.stdout)?.trim_end());
    let note = tree.with_file_name("made-of");
    let made_of = fs::read_to_string(&note).with_context(|| format!("read {}", note.display()))?;

    let folder = folder.join("systemd");
    let (disk, note) = (folder.join("root.img"), folder.join("made-of"));
    if fs::read_to_string(&note).is_ok_and(|text| text == made_of) {
        return Ok(disk);
    }
    // Until the disk is whole, there is no note.
    drop(Scratch::new(folder.clone())?);
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    image::bootable(&tree, "root", &disk, 1 << 30)?;
    fs::write(&note, made_of).with_context(|| format!("write {}", note.display()))?;
    Ok(disk)
}

/// The package of `binary`, unless JOBFENCE_DEB names one.
pub(super) fn package(binary: &Path) -> Result<PathBuf> {
    if let Some(package) = env::var_os("JOBFENCE_DEB") {
        return Ok(package.into());
    }
    dist::run(binary)?;
    let name = format!("jobfence_{}_amd64.deb", env!("CARGO_PKG_VERSION"));
    Ok(sh::workspace().join("target/dist").join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_elsewhere_is_a_test() {
        for (name, _) in ELSEWHERE {
            let (program, test) = name.split_once("::").unwrap();
            let file = sh::workspace().join(format!("tests/tests/{program}.rs"));
            let source = fs::read_to_string(file).unwrap();
            assert!(source.contains(&format!("fn {test}() ")), "{name}");
        }
    }
}
