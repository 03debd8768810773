//! What is released, in `target/dist`: a Debian package, a tarball of the same files, a bill of
//! materials, and checksums of the three.
//!
//! One tree is laid out as it will be installed, and both archives are made from it; cargo-deb adds
//! what a Debian package has beyond files, as `[package.metadata.deb]` in `userspace/cli/Cargo.toml`
//! says. The archives depend on the sources and the compiler only: names are sorted, the time of
//! everything is that of the commit, or SOURCE_DATE_EPOCH.

use std::{env, fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{crates::Crates, sh, toolchain};

/// The newest glibc that the binary may need: Debian 12's. Debian 13 and Ubuntu 24.04 have newer ones.
const GLIBC: (u32, u32) = (2, 36);

/// Documents, and what they lead to but for source code. They are installed in the folders that they
/// have here, so that their links lead there, too.
const DOCUMENTS: [&str; 10] = [
    "README.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "LICENSE-MIT",
    "LICENSE-APACHE",
    "policies",
    "tests/attacks.md",
    "userspace/agent/README.md",
    "userspace/cli/ci",
    "userspace/cli/systemd/agent.yml",
];

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Makes a release of `binary`, which must run on every system that the packages are for.
pub(crate) fn run(binary: &Path) -> Result<()> {
    check_glibc(binary)?;
    let dist = sh::workspace().join("target/dist");
    match fs::remove_dir_all(&dist) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("empty {}", dist.display()));
        }
        _ => {}
    }
    let crates = Crates::find(&toolchain::find()?)?;
    let epoch = epoch()?;
    let tree = dist.join("tree");
    lay_out(binary, &crates, &epoch, &tree)?;
    maintainer_scripts(&dist.join("debian"))?;

    let debian = format!("jobfence_{VERSION}_amd64.deb");
    let tarball = format!("jobfence-{VERSION}-x86_64-linux.tar.gz");
    let sbom = format!("jobfence-{VERSION}.cdx.json");
    let mut cargo = sh::cargo();
    cargo
        .args([
            "deb",
            "-p",
            "jobfence",
            "--no-build",
            "--no-strip",
            "--locked",
            // It warns of every file that cargo has not built.
            "--quiet",
        ])
        .arg("--output")
        .arg(dist.join(&debian))
        .env("SOURCE_DATE_EPOCH", &epoch);
    sh::run(&mut cargo).context("cargo-deb comes with `cargo xtask setup`")?;
    pack_tarball(&tree, &dist.join(&tarball), &epoch)?;
    let sha256 = sums(&tree, &["usr/bin/jobfence"])?;
    let sha256 = sha256.split(' ').next().unwrap_or_default();
    write(&dist.join(&sbom), crates.sbom(sha256, &time(&epoch)?)?)?;
    write(
        &dist.join("SHA256SUMS"),
        sums(&dist, &[&debian, &tarball, &sbom])?,
    )?;
    eprintln!("dist: {}", dist.display());
    Ok(())
}

/// Lays out in `tree` what is installed.
fn lay_out(binary: &Path, crates: &Crates, epoch: &str, tree: &Path) -> Result<()> {
    let source = sh::workspace();
    let cli = source.join("userspace/cli");
    let share = tree.join("usr/share");
    let doc = share.join("doc/jobfence");
    let installed = tree.join("usr/bin/jobfence");
    copy(binary, &installed)?;
    let executable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&installed, executable)
        .with_context(|| format!("make {} executable", installed.display()))?;
    // Manual pages and completions.
    let mut generate = Command::new(&installed);
    generate
        .arg("__generate")
        .arg(&share)
        .env("SOURCE_DATE_EPOCH", epoch);
    sh::run(&mut generate)?;

    // Not in /etc/jobfence: there it is the host's own, and no upgrade has to ask what becomes of it.
    copy(
        &cli.join("systemd/agent.yml"),
        &share.join("jobfence/agent.yml"),
    )?;
    let units = tree.join("usr/lib/systemd/system");
    copy_all(&cli.join("systemd"), &units, |name| !name.ends_with(".yml"))?;
    let policies = source.join("policies");
    copy_all(
        &policies.join("presets"),
        &share.join("jobfence/presets"),
        |_| true,
    )?;
    copy(
        &policies.join("schema.json"),
        &share.join("jobfence/schema.json"),
    )?;

    for path in DOCUMENTS {
        copy_all(&source.join(path), &doc.join(path), |_| true)?;
    }
    write(&doc.join("copyright"), copyright(crates)?)
}

/// The maintainer scripts of the Debian package, with the version of the programs' interface in them.
fn maintainer_scripts(folder: &Path) -> Result<()> {
    let source = sh::workspace().join("userspace/cli/debian");
    for name in ["preinst", "postinst", "prerm", "postrm"] {
        let script = source.join(name);
        let text = fs::read_to_string(&script)
            .with_context(|| format!("read {}", script.display()))?
            .replace("@ABI@", &jobfence_abi::VERSION.to_string());
        write(&folder.join(name), text)?;
    }
    Ok(())
}

/// The licences of jobfence and of all that is linked into it.
fn copyright(crates: &Crates) -> Result<String> {
    let file = sh::workspace().join("LICENSE-MIT");
    let mit = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let others = crates.licences()?;
    Ok(format!(
        "jobfence {VERSION} may be used under the MIT License, which follows, or under the Apache\n\
         License, Version 2.0, as you like. Debian has the latter's text in\n\
         /usr/share/common-licenses/Apache-2.0. The programs for the kernel that are part of it\n\
         may also be used under the GNU General Public License, version 2:\n\
         /usr/share/common-licenses/GPL-2.\n\n{mit}\n\
         The program contains code of these libraries; their licences follow, as far as the\n\
         libraries came with their text:\n\n{others}"
    ))
}

/// Packs the tree, below a folder with the tarball's name.
fn pack_tarball(tree: &Path, tarball: &Path, epoch: &str) -> Result<()> {
    let name = tarball.file_name().unwrap_or_default().to_string_lossy();
    let folder = name.trim_end_matches(".tar.gz");
    let plain = tarball.with_extension("");
    let mut tar = Command::new("tar");
    tar.args([
        "--format=gnu",
        "--sort=name",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
    ])
    .args(["--mode=u=rwX,go=rX", &format!("--mtime=@{epoch}")])
    .arg(format!("--transform=s,^[.],{folder},"))
    .arg("-C")
    .arg(tree)
    .arg("-cf")
    .arg(&plain)
    .arg(".");
    sh::run(&mut tar)?;
    sh::run(Command::new("gzip").args(["-9", "-n"]).arg(&plain))
}

/// Lines of sha256sum(1) for files in `folder`.
fn sums(folder: &Path, files: &[&str]) -> Result<String> {
    let mut command = Command::new("sha256sum");
    command.args(files).current_dir(folder);
    sh::ask(&mut command).with_context(|| format!("`{}` failed", sh::render(&command)))
}

/// The time of everything, in seconds since 1970: SOURCE_DATE_EPOCH, or the commit's.
fn epoch() -> Result<String> {
    if let Ok(set) = env::var("SOURCE_DATE_EPOCH") {
        return Ok(set);
    }
    let mut git = Command::new("git");
    git.args(["log", "-1", "--format=%ct"])
        .current_dir(sh::workspace());
    let time = sh::ask(&mut git).context("git does not tell the commit: set SOURCE_DATE_EPOCH")?;
    Ok(time.trim().to_owned())
}

/// The same, of RFC 3339.
fn time(epoch: &str) -> Result<String> {
    let mut date = Command::new("date");
    date.args(["-u", "-d", &format!("@{epoch}"), "+%Y-%m-%dT%H:%M:%SZ"]);
    let time = sh::ask(&mut date).with_context(|| format!("no time: {epoch}"))?;
    Ok(time.trim().to_owned())
}

/// Fails when `binary` needs a newer glibc than [`GLIBC`].
fn check_glibc(binary: &Path) -> Result<()> {
    let mut objdump = Command::new("objdump");
    objdump.arg("-T").arg(binary);
    let symbols =
        sh::ask(&mut objdump).with_context(|| format!("`{}` failed", sh::render(&objdump)))?;
    let Some(needed) = newest_glibc(&symbols) else {
        bail!("{} has no symbol of glibc: what is it?", binary.display());
    };
    let (major, minor) = needed;
    if needed > GLIBC {
        bail!(
            "{} needs glibc {major}.{minor}, and Debian 12 has {}.{}: build it on Debian 12",
            binary.display(),
            GLIBC.0,
            GLIBC.1
        );
    }
    eprintln!("{}: glibc {major}.{minor} or newer", binary.display());
    Ok(())
}

/// The newest version of glibc among the symbols that `objdump -T` lists.
fn newest_glibc(symbols: &str) -> Option<(u32, u32)> {
    let versions = symbols.split("GLIBC_").skip(1).filter_map(|rest| {
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let mut numbers = rest[..end].split('.');
        let mut number = || numbers.next()?.parse().ok();
        Some((number()?, number()?))
    });
    versions.max()
}

/// Copies a file, or every file of a folder, in the folders that it has, whose name is `wanted`.
fn copy_all(from: &Path, to: &Path, wanted: fn(&str) -> bool) -> Result<()> {
    if from.is_file() {
        return copy(from, to);
    }
    let failed = || format!("read {}", from.display());
    for entry in fs::read_dir(from).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        let name = entry.file_name();
        if entry.file_type().with_context(failed)?.is_dir() {
            copy_all(&entry.path(), &to.join(name), wanted)?;
        } else if wanted(&name.to_string_lossy()) {
            copy(&entry.path(), &to.join(name))?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let text = fs::read(from).with_context(|| format!("read {}", from.display()))?;
    write(to, text)
}

fn write(file: &Path, text: impl AsRef<[u8]>) -> Result<()> {
    let parent = file.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent)
        .and_then(|()| fs::write(file, text))
        .with_context(|| format!("write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_glibc_is_found_by_number_and_not_by_name() {
        let symbols = "0000  w   DF *UND*  0000 (GLIBC_2.2.5) getenv\n\
                       0000      DF *UND*  0000 (GLIBC_2.34) pidfd_open\n\
                       0000      DF *UND*  0000 (GLIBC_2.9) pipe2\n\
                       0000      DF *UND*  0000 (GCC_3.0)   _Unwind_Resume\n\
                       0000      DF *UND*  0000 (GLIBC_PRIVATE) hidden\n";
        assert_eq!(newest_glibc(symbols), Some((2, 34)));
        assert_eq!(
            newest_glibc("0000 DF *UND* 0000 (GCC_3.0) _Unwind_Resume\n"),
            None
        );
    }
}
