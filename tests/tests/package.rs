//! The Debian package: what is in it, and a host on which it is installed, upgraded and purged.
//!
//! `cargo xtask dist` makes it of the jobfence under test, unless JOBFENCE_DEB names one.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use jobfence_tests::{Internet, Machine, Shell, binary, eventually, run, slowness};
use serde_json::Value;

/// The default job may reach `allowed.test`.
const POLICY: &str = "
version: 1
jobs: {default: {allow: [{host: allowed.test}]}}
";

const ALLOWED: &str = "https://allowed.test/";
const REFUSED: &str = "https://blocked.test/";
/// What curl(1) exits with when a name cannot be resolved.
const NO_NAME: i32 = 6;

/// Compressing takes a while for a binary that is not stripped.
const PACKING: Duration = Duration::from_secs(600);
const DEADLINE: Duration = Duration::from_secs(60);

static PACKAGE: LazyLock<PathBuf> =
    LazyLock::new(|| package().expect("`cargo xtask dist` makes a package"));

fn package() -> Result<PathBuf> {
    if let Some(set) = env::var_os("JOBFENCE_DEB") {
        return Ok(set.into());
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut xtask = Command::new("cargo");
    xtask
        .args(["xtask", "dist"])
        .current_dir(&workspace)
        .env("JOBFENCE_BIN", binary()?);
    let output = run(&mut xtask, PACKING)?;
    ensure!(output.status.success(), "{output:#?}");
    let name = format!("jobfence_{}_amd64.deb", env!("CARGO_PKG_VERSION"));
    Ok(workspace.join("target/dist").join(name).canonicalize()?)
}

/// A command that fetches `url`.
fn curl(url: &str) -> String {
    format!("curl -sS -m {} -o /dev/null {url}", 5 * slowness())
}

/// Runs a script on this side that must not fail, with `words` as `$0`, `$1`, …
fn ok(script: &str, words: &[&Path]) -> Result<String> {
    let mut sh = Command::new("sh");
    let output = run(sh.args(["-ec", script]).args(words), DEADLINE)?;
    ensure!(output.status.success(), "{script}: {output:#?}");
    Ok(output.stdout)
}

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Result<Self> {
        let name = format!("jobfence-tests-package-{name}-{}", std::process::id());
        let folder = env::temp_dir().join(name);
        fs::create_dir(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left in a folder for that is no test's failure.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The package as of another version, changed by a script that finds what is in it in `$0`.
fn version(folder: &Path, version: &str, change: &str) -> Result<PathBuf> {
    let (tree, made) = (folder.join("tree"), folder.join("jobfence.deb"));
    ok("dpkg-deb -R \"$0\" \"$1\"", &[&*PACKAGE, &tree])?;
    let set = format!("sed -i 's/^Version: .*/Version: {version}/' \"$0/DEBIAN/control\"");
    ok(&set, &[&tree])?;
    ok(change, &[&tree])?;
    // What it is compressed with is not what is tested.
    ok("dpkg-deb -Znone -b \"$0\" \"$1\"", &[&tree, &made])?;
    fs::remove_dir_all(&tree)?;
    Ok(made)
}

/// The words that each command of `jobfence` begins with, the empty one first, as `--help` tells.
fn commands(binary: &Path) -> Result<Vec<Vec<String>>> {
    let mut found = vec![Vec::new()];
    let mut next = 0;
    while let Some(words) = found.get(next).cloned() {
        next += 1;
        let output = run(Command::new(binary).args(&words).arg("--help"), DEADLINE)?;
        let list = output.stdout.split("\nCommands:\n").nth(1);
        let list = list.and_then(|rest| rest.split("\n\n").next());
        for line in list.unwrap_or_default().lines() {
            // What does not fit beside a name goes on below, further in.
            let name = line
                .strip_prefix("  ")
                .filter(|rest| !rest.starts_with(' '));
            let name = name.and_then(|rest| rest.split(' ').next());
            if let Some(name) = name.filter(|name| *name != "help") {
                found.push([words.as_slice(), &[name.to_owned()]].concat());
            }
        }
    }
    Ok(found)
}

#[test]
fn every_command_has_a_manual_page_and_completions() -> Result<()> {
    let folder = Folder::new("contents")?;
    ok("dpkg-deb -x \"$0\" \"$1\"", &[&*PACKAGE, &folder.0])?;
    let share = folder.0.join("usr/share");
    let commands = commands(&folder.0.join("usr/bin/jobfence"))?;
    let has = |words: &[&str]| commands.iter().any(|command| command == words);
    ensure!(has(&["run"]) && has(&["job", "start"]), "{commands:?}");

    let mut expected = BTreeSet::new();
    for words in &commands {
        let name = [&["jobfence".to_owned()], words.as_slice()]
            .concat()
            .join("-");
        let page = share.join(format!("man/man1/{name}.1.gz"));
        let text = ok("gzip -dc \"$0\"", &[&page])?;
        for section in ["NAME", "SYNOPSIS", "EXIT STATUS", "FILES", "SEE ALSO"] {
            let heading = section.replace(' ', "\\ ");
            let is_there = |line: &str| {
                line == format!(".SH {section}")
                    || line == format!(".SH \"{section}\"")
                    || line == format!(".SH {heading}")
            };
            ensure!(
                text.lines().any(is_there),
                "{name} has no {section}:\n{text}"
            );
        }
        expected.insert(format!("{name}.1.gz"));
    }
    let pages = fs::read_dir(share.join("man/man1"))?;
    let pages: Result<BTreeSet<_>, _> = pages
        .map(|page| page.map(|page| page.file_name().to_string_lossy().into_owned()))
        .collect();
    assert_eq!(pages?, expected, "pages of what is no command");

    for completion in [
        "bash-completion/completions/jobfence",
        "zsh/vendor-completions/_jobfence",
        "fish/vendor_completions.d/jobfence.fish",
    ] {
        let text = fs::read_to_string(share.join(completion)).context(completion)?;
        for word in commands.iter().flatten() {
            ensure!(text.contains(word.as_str()), "{completion} lacks {word}");
        }
        ensure!(
            !text.contains("__generate"),
            "{completion} shows what is not for people"
        );
    }
    Ok(())
}

/// Where the links of a Markdown document lead, as they stand in it.
fn links(document: &str) -> impl Iterator<Item = &str> {
    let ends = document.split("](").skip(1);
    ends.filter_map(|rest| rest.split(')').next())
}

/// The anchors that the headings of a document have where it is shown as a page: small letters, digits
/// and dashes.
fn anchors(document: &str) -> BTreeSet<String> {
    let headings = document.lines().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| {
        let words = line.trim_start_matches('#').trim().to_lowercase();
        let kept = words
            .chars()
            .filter(|c| c.is_alphanumeric() || " -".contains(*c));
        kept.collect::<String>().replace(' ', "-")
    };
    headings.map(anchor).collect()
}

#[test]
fn links_of_the_documents_lead_to_what_is_in_the_package() -> Result<()> {
    let folder = Folder::new("documents")?;
    ok("dpkg-deb -x \"$0\" \"$1\"", &[&*PACKAGE, &folder.0])?;
    let root = folder.0.join("usr/share/doc/jobfence");
    let found = ok("cd \"$0\" && find . -name '*.md'", &[&root])?;
    let documents: Vec<_> = found
        .lines()
        .map(|path| path.trim_start_matches("./"))
        .collect();
    for needed in [
        "README.md",
        "userspace/agent/README.md",
        "userspace/cli/ci/github.md",
    ] {
        ensure!(documents.contains(&needed), "{needed}: {documents:?}");
    }
    // Source code is not installed: who reads it has all of it.
    let is_elsewhere = |link: &str| link.contains("://") || link.ends_with(".rs");
    for name in documents {
        let text = fs::read_to_string(root.join(name))?;
        for link in links(&text).filter(|link| !is_elsewhere(link)) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => root.join(name),
                path => root.join(name).with_file_name(path),
            };
            ensure!(target.exists(), "{name}: nothing is where {link} leads");
            let is_there =
                || -> Result<bool> { Ok(anchors(&fs::read_to_string(&target)?).contains(anchor)) };
            ensure!(
                anchor.is_empty() || is_there()?,
                "{name}: {link} names no heading"
            );
        }
    }
    Ok(())
}

#[test]
fn the_bill_of_materials_has_what_is_in_the_binary_and_no_tests() -> Result<()> {
    let dist = PACKAGE.parent().context("a folder")?;
    ok("cd \"$0\" && sha256sum --strict -c SHA256SUMS", &[dist])?;
    let name = format!("jobfence-{}.cdx.json", env!("CARGO_PKG_VERSION"));
    let sbom: Value = serde_json::from_str(&fs::read_to_string(dist.join(name))?)?;
    let components = sbom["components"].as_array().context("components")?;
    let scope = |name: &str| {
        let component = components.iter().find(|one| one["name"] == name);
        component.and_then(|one| one["scope"].as_str())
    };
    // Of the binary, of the kernel object in it, and of the compilers.
    for name in ["hickory-proto", "jobfence-ebpf", "aya-ebpf", "std", "core"] {
        assert_eq!(scope(name), Some("required"), "{name}");
    }
    for name in ["serde_derive", "aya-ebpf-macros"] {
        assert_eq!(scope(name), Some("excluded"), "{name} makes code only");
    }
    for name in ["proptest", "rcgen", "rustls", "xtask", "jobfence-tests"] {
        assert_eq!(scope(name), None, "{name} is in no released file");
    }
    let licences = ok(
        "dpkg-deb --fsys-tarfile \"$0\" | tar -xO ./usr/share/doc/jobfence/copyright",
        &[&*PACKAGE],
    )?;
    for one in components.iter().filter(|one| one["purl"].is_string()) {
        let (Some(name), Some(version)) = (one["name"].as_str(), one["version"].as_str()) else {
            continue;
        };
        if one["scope"] == "required" {
            let line = format!("\n{name} {version}: ");
            ensure!(licences.contains(&line), "no licence of {name} {version}");
        }
    }
    Ok(())
}

/// A machine with the package in `/jobfence.deb`.
fn machine(internet: &Internet) -> Result<Machine<'_>> {
    bring_package(Machine::boot_bare(internet)?)
}

fn bring_package(machine: Machine<'_>) -> Result<Machine<'_>> {
    machine.copy(&PACKAGE, "/jobfence.deb")?;
    machine.write("/policy.yml", POLICY)?;
    Ok(machine)
}

/// All that can be left behind, but for what dpkg and systemd keep of every package and unit.
fn everything(machine: &Machine<'_>) -> Result<BTreeSet<String>> {
    let found = machine.ok(
        "find / -xdev \\( -path /proc -o -path /sys -o -path /tmp -o -path /var/tmp \
             -o -path /var/lib/dpkg -o -path /var/log/dpkg.log -o -path /var/log/journal -o -path /run/systemd \
             -o -path /var/cache -o -path /var/lib/systemd \\) -prune -o -print
         find /run /sys/fs/bpf -name '*jobfence*' -not -path '/run/systemd/*'
         find /sys/fs/cgroup -type d -name '*jobfence*'
         find /var/lib/systemd /run/systemd/generator* -name '*jobfence*'
         getent passwd; getent group",
    )?;
    Ok(found.lines().map(str::to_owned).collect())
}

/// A shell in the container that is a job of its agent.
fn fenced(machine: &Machine<'_>, id: &str) -> Result<Shell> {
    let mut shell = machine.shell(&["--uid=ci"])?;
    let pid = Machine::pid(&mut shell)?;
    machine.ok(&format!(
        "jobfence job start --id {id} --pid {pid} --policy /policy.yml"
    ))?;
    Ok(shell)
}

/// Asserts that a job's fence does what it is for.
fn assert_fenced(machine: &Machine<'_>, shell: &mut Shell) -> Result<()> {
    let (status, said) = shell.run(&curl(ALLOWED))?;
    ensure!(status == 0, "allowed: {said}\n{}", machine.journal());
    let (status, said) = shell.run(&curl(REFUSED))?;
    ensure!(
        status == NO_NAME,
        "refused: {status} {said}\n{}",
        machine.journal()
    );
    Ok(())
}

#[test]
fn it_is_installed_and_purged_where_systemd_does_not_run() -> Result<()> {
    let internet = Internet::new()?;
    let machine = machine(&internet)?;
    let before = everything(&machine)?;
    // By this folder, scripts tell whether systemd runs.
    let without = |script: &str| {
        machine.ok(&format!(
            "unshare --mount sh -ec 'mount -t tmpfs none /run; {script}'"
        ))
    };
    without("dpkg -i /jobfence.deb; jobfence --version; test -d /etc/jobfence/policies")?;
    without("dpkg --purge jobfence")?;
    let left: Vec<_> = everything(&machine)?.difference(&before).cloned().collect();
    assert_eq!(left, Vec::<String>::new());
    Ok(())
}

#[test]
fn it_fences_jobs_once_installed_and_leaves_nothing_once_purged() -> Result<()> {
    let internet = Internet::new()?;
    let machine = machine(&internet)?;
    let before = everything(&machine)?;
    install(&machine)?;
    let mut shell = fenced(&machine, "one")?;
    assert_fenced(&machine, &mut shell)?;
    machine.ok("systemctl restart jobfence-agent")?;
    assert_fenced(&machine, &mut shell)?;

    // A fence does not go before its job.
    let refused = machine.sh("dpkg --purge jobfence")?;
    ensure!(!refused.status.success(), "{refused:#?}");
    ensure!(refused.stderr.contains("\n    one\n"), "{refused:#?}");
    assert_fenced(&machine, &mut shell)?;
    machine.ok("systemctl stop jobfence-agent")?;
    let refused = machine.sh("dpkg --remove jobfence")?;
    ensure!(
        refused.stderr.contains("\n    one\n"),
        "without an agent: {refused:#?}"
    );
    machine.ok("systemctl start jobfence-agent")?;

    let removed = machine.ok("JOBFENCE_REMOVE=finish dpkg --remove jobfence 2>&1")?;
    ensure!(removed.contains("blocked.test"), "no report: {removed}");
    ensure!(
        shell.run("true").is_err(),
        "what is left of a job is killed"
    );
    machine.ok("test -e /var/log/jobfence/one.jsonl -a -e /etc/jobfence/agent.yml")?;
    machine.ok("dpkg --purge jobfence")?;
    let left: Vec<_> = everything(&machine)?.difference(&before).cloned().collect();
    assert_eq!(left, Vec::<String>::new());
    Ok(())
}

/// Installs the package, and has a command fenced.
fn install(machine: &Machine<'_>) -> Result<()> {
    let free = machine.sh(&curl(REFUSED))?;
    ensure!(free.status.success(), "without a fence: {free:#?}");
    machine.ok("dpkg -i /jobfence.deb")?;
    machine.ok("systemctl is-enabled jobfence-agent && systemctl is-active jobfence-agent")?;
    let doctor = machine.sh("jobfence doctor --user ci")?;
    ensure!(
        matches!(doctor.status.code(), Some(0 | 1)),
        "no job can be fenced: {doctor:#?}"
    );
    let run = |url: &str| {
        let command = curl(url);
        machine.sh(&format!(
            "jobfence run --user ci --policy /policy.yml -- {command}"
        ))
    };
    let passed = run(ALLOWED)?;
    ensure!(passed.status.code() == Some(0), "{passed:#?}");
    let failed = run(REFUSED)?;
    ensure!(failed.status.code() == Some(110), "{failed:#?}");
    ensure!(failed.stderr.contains("blocked.test"), "{failed:#?}");
    Ok(())
}

#[test]
fn debian_13_has_it_installed_upgraded_and_purged() -> Result<()> {
    let internet = Internet::new()?;
    let machine = bring_package(Machine::boot_release(&internet, "trixie")?)?;
    let release = machine.ok("cat /etc/debian_version")?;
    ensure!(release.starts_with("13"), "{release}");
    let before = everything(&machine)?;
    install(&machine)?;
    let mut shell = fenced(&machine, "one")?;
    assert_fenced(&machine, &mut shell)?;
    upgrade(&machine)?;
    assert_fenced(&machine, &mut shell)?;
    let finished = machine.sh("jobfence job finish one")?;
    ensure!(finished.status.code() == Some(110), "{finished:#?}");
    machine.ok("dpkg --purge jobfence")?;
    let left: Vec<_> = everything(&machine)?.difference(&before).cloned().collect();
    assert_eq!(left, Vec::<String>::new());
    Ok(())
}

/// Upgrades the package to a later version, and waits for its agent.
fn upgrade(machine: &Machine<'_>) -> Result<()> {
    let agent = || machine.ok("systemctl show --property=MainPID --value jobfence-agent");
    let old = agent()?;
    let folder = machine.internet().dir().join("upgrade");
    fs::create_dir(&folder)?;
    // With another agent.yml, dpkg would ask about one that is a conffile and was changed, and give up
    // where nobody answers.
    let other = "find \"$0\" -name agent.yml -exec sed -i '$a # of the later version' {} +";
    let newer = version(&folder, "999", other)?;
    machine.copy(&newer, "/jobfence.deb")?;
    let written = || machine.ok("cat /etc/jobfence/agent.yml");
    let before = written()?;
    machine.ok("dpkg -i /jobfence.deb </dev/null")?;
    assert_eq!(written()?, before, "an upgrade has changed agent.yml");
    eventually("the next agent runs", || {
        let is_active = machine.sh("systemctl is-active jobfence-agent");
        is_active.is_ok_and(|output| output.status.success())
    });
    ensure!(agent()? != old, "the agent is the old one");
    Ok(())
}

#[test]
fn what_was_installed_for_a_ci_system_goes_with_the_package() -> Result<()> {
    let internet = Internet::new()?;
    let machine = machine(&internet)?;
    let unit = "[Service]\nUser=ci\nExecStart=/usr/bin/sleep infinity\n";
    machine.write("/etc/systemd/system/worker.service", unit)?;
    let before = everything(&machine)?;
    machine.ok("dpkg -i /jobfence.deb")?;
    machine.ok("jobfence install buildbot --unit worker.service")?;
    machine.ok("systemctl daemon-reload && systemctl restart jobfence-agent worker")?;
    let outside = || machine.sh_with(&["--uid=ci"], &curl(ALLOWED));
    let held = outside()?;
    ensure!(!held.status.success(), "the user is not held: {held:#?}");
    upgrade(&machine)?;
    let held = outside()?;
    ensure!(!held.status.success(), "after an upgrade: {held:#?}");

    machine.ok("JOBFENCE_REMOVE=finish dpkg --purge jobfence")?;
    let free = outside()?;
    ensure!(free.status.success(), "{free:#?}\n{}", machine.journal());
    machine.ok("systemctl restart worker")?;
    let left: Vec<_> = everything(&machine)?.difference(&before).cloned().collect();
    assert_eq!(left, Vec::<String>::new());
    Ok(())
}

#[test]
fn an_upgrade_takes_running_jobs_along() -> Result<()> {
    let internet = Internet::new()?;
    let machine = machine(&internet)?;
    machine.ok("dpkg -i /jobfence.deb")?;
    let mut shell = fenced(&machine, "one")?;
    assert_fenced(&machine, &mut shell)?;
    upgrade(&machine)?;
    assert_fenced(&machine, &mut shell)?;

    // One that could not take it along is not installed.
    let folder = Folder::new("other-abi")?;
    let change = "sed -i 's/^abi=v[0-9]*$/abi=v0/' \"$0/DEBIAN/preinst\"";
    let other = version(&folder.0, "1000", change)?;
    machine.copy(&other, "/jobfence.deb")?;
    let refused = machine.sh("dpkg -i /jobfence.deb")?;
    ensure!(!refused.status.success(), "{refused:#?}");
    ensure!(refused.stderr.contains("\n    one\n"), "{refused:#?}");
    machine.ok("systemctl is-active jobfence-agent")?;
    assert_fenced(&machine, &mut shell)?;

    let finished = machine.sh("jobfence job finish one")?;
    ensure!(finished.status.code() == Some(110), "{finished:#?}");
    ensure!(finished.stdout.contains("blocked.test"), "{finished:#?}");
    machine.ok("dpkg -i /jobfence.deb")?;
    machine.ok("systemctl is-active jobfence-agent")?;
    Ok(())
}
