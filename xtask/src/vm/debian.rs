//! Kernels and a root file system from the Debian mirror that this machine uses.
//!
//! Kernels of other releases come by a private apt state, so the system's own lists and packages
//! stay as they are. apt checks all signatures.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::image;
use crate::sh;

/// Where kernels are looked for. A suite that the mirror has no more is left out, with apt's own
/// warning.
const SUITES: [&str; 6] = [
    "bullseye",
    "bookworm",
    "bookworm-backports",
    "trixie",
    "trixie-backports",
    "sid",
];

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The package that depends on the newest kernel of a suite. Its kernels are for virtual machines
/// and have the drivers for a disk built in.
const META: &str = "linux-image-cloud-amd64";

/// A kernel that the mirror offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// As `uname -r` has it: `6.1.0-50-cloud-amd64`.
    pub(crate) release: String,
    /// The 6 and 1 of 6.1.
    pub(crate) series: (u32, u32),
}

/// The files of a kernel.
pub(crate) struct Files {
    pub(crate) kernel: PathBuf,
    /// A disk with its modules.
    pub(crate) modules: PathBuf,
}

/// A Debian mirror, and a folder to keep what came from it.
pub(crate) struct Debian {
    mirror: String,
    /// This machine's release: its programs run on no older C library.
    codename: String,
    folder: PathBuf,
}

impl Debian {
    /// Takes the mirror from the system's own package sources and keeps files in `folder`.
    pub(crate) fn find(folder: PathBuf) -> Result<Self> {
        let targets = sh::ask(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(LABEL) $(CODENAME) $(REPO_URI)",
            "Created-By: Packages",
        ]))
        .context("ask apt-get for the package sources: is this Debian?")?;
        let (codename, mirror) = main_source(&targets).context(
            "no Debian release among apt's package sources (`apt-get indextargets`): the kernels \
             and the virtual machines' programs come from there",
        )?;
        let debian = Self {
            mirror: mirror.to_owned(),
            codename: codename.to_owned(),
            folder,
        };
        let apt = debian.folder.join("apt");
        for folder in ["lists/partial", "cache/archives/partial"] {
            create_dir(&apt.join(folder))?;
        }
        write(&apt.join("status"), "")?;
        let sources: String = SUITES
            .iter()
            .map(|suite| format!("deb [arch=amd64 signed-by={KEYRING}] {mirror} {suite} main\n"))
            .collect();
        write(&apt.join("sources.list"), &sources)?;
        Ok(debian)
    }

    /// All kernels of the suites, newest first, the newest of each series.
    pub(crate) fn kernels(&self) -> Result<Vec<Kernel>> {
        if let Err(error) = sh::run(self.apt("apt-get").args(["-q", "update"])) {
            eprintln!("warning: {error:#}; going on with what is known");
        }
        let text = sh::ask(self.apt("apt-cache").args(["show", META])).unwrap_or_default();
        let kernels = parse_kernels(&text);
        ensure!(
            !kernels.is_empty(),
            "the mirror offers no package {META} in {SUITES:?}"
        );
        Ok(kernels)
    }

    /// Brings the files of a kernel, or finds them where they were brought before.
    pub(crate) fn fetch(&self, kernel: &Kernel) -> Result<Files> {
        let release = &kernel.release;
        let folder = self.folder.join("kernels").join(release);
        let files = Files {
            kernel: folder.join("vmlinuz"),
            modules: folder.join("modules.ext4"),
        };
        if folder.is_dir() {
            return Ok(files);
        }
        // Not by `with_extension`: a release is full of dots.
        let work = Scratch::new(folder.with_file_name(format!("{release}.new")))?;
        let image = format!("linux-image-{release}");
        let mut show = self.apt("apt-cache");
        let text = sh::ask(show.args(["show", &image]))
            .with_context(|| format!("ask for the package {image}"))?;
        // From 7.x on, kernel, modules and their list are packages of their own.
        let mut packages = vec![image.clone()];
        packages.extend(
            dependencies(&text)
                .filter(|name| name.ends_with(release.as_str()))
                .map(str::to_owned),
        );
        sh::run(
            self.apt("apt-get")
                .args(["-q", "download"])
                .args(&packages)
                .current_dir(&work.0),
        )?;
        let tree = work.0.join("tree");
        unpack(&work.0, &tree)?;
        // Merged or not, depmod wants it in /lib.
        let merged = tree.join("usr/lib/modules");
        if merged.is_dir() {
            create_dir(&tree.join("lib"))?;
            rename(&merged, &tree.join("lib/modules"))?;
        }
        let modules = tree.join("lib/modules");
        let mut depmod = Command::new(sh::which("depmod").context("find depmod")?);
        sh::run(depmod.arg("-b").arg(&tree).arg(release))?;
        let binary = [
            tree.join(format!("boot/vmlinuz-{release}")),
            modules.join(release).join("vmlinuz"),
        ];
        let binary = binary.iter().find(|file| file.is_file());
        let binary = binary.with_context(|| format!("no kernel in {packages:?}"))?;

        let ready = work.0.join("ready");
        create_dir(&ready)?;
        rename(binary, &ready.join("vmlinuz"))?;
        image::plain(&modules, "modules", &ready.join("modules.ext4"))?;
        rename(&ready, &folder)?;
        Ok(files)
    }

    /// Unpacks `packages` of the release's backports into `tree`, beside what is installed.
    pub(crate) fn unpack_backports(&self, packages: &[&str], tree: &Path) -> Result<()> {
        let work = Scratch::new(tree.with_extension("new"))?;
        let suite = format!("{}-backports", self.codename);
        let wanted = packages.iter().map(|name| format!("{name}/{suite}"));
        let mut download = self.apt("apt-get");
        download.args(["-q", "download"]).args(wanted);
        sh::run(download.current_dir(&work.0))?;
        let ready = work.0.join("ready");
        unpack(&work.0, &ready)?;
        rename(&ready, tree)
    }

    /// A disk with a root file system of this machine's release that has `packages`; the one that
    /// was made before if it has the same.
    pub(crate) fn root(&self, packages: &[&str]) -> Result<PathBuf> {
        let made_of = format!("{} {}\n", self.codename, packages.join(" "));
        let folder = self.folder.join("root");
        let disk = folder.join("root.img");
        let note = folder.join("made-of");
        if fs::read_to_string(&note).is_ok_and(|text| text == made_of) {
            return Ok(disk);
        }
        let work = Scratch::new(folder.with_extension("new"))?;
        let tree = work.0.join("tree");
        sh::run(
            Command::new("mmdebstrap")
                .args(["--variant=minbase", "--mode=root"])
                .arg(format!("--include={}", packages.join(",")))
                .arg(&self.codename)
                .arg(&tree)
                .arg(&self.mirror),
        )?;
        let ready = work.0.join("ready");
        create_dir(&ready)?;
        image::bootable(&tree, "root", &ready.join("root.img"), 2 << 30)?;
        write(&ready.join("made-of"), &made_of)?;
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed.with_context(|| format!("remove {}", folder.display()))?,
        }
        rename(&ready, &folder)?;
        Ok(disk)
    }

    /// `apt-get` or `apt-cache` with the private state.
    fn apt(&self, program: &str) -> Command {
        let apt = self.folder.join("apt");
        let set = |name: &str, value: &Path| format!("{name}={}", value.display());
        let mut command = Command::new(program);
        for option in [
            set("Dir::State", &apt),
            set("Dir::State::lists", &apt.join("lists")),
            set("Dir::State::status", &apt.join("status")),
            set("Dir::Cache", &apt.join("cache")),
            set("Dir::Etc::SourceList", &apt.join("sources.list")),
            set("Dir::Etc::SourceParts", Path::new("/dev/null")),
            // Containers' configuration turns it off, and reading the lists takes seconds.
            "Dir::Cache::pkgcache=pkgcache.bin".into(),
            "Acquire::Languages=none".into(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".into(),
            // Its own user may not read below the workspace.
            "APT::Sandbox::User=root".into(),
        ] {
            command.args(["-o", &option]);
        }
        command.env("LC_ALL", "C");
        command
    }
}

/// A folder that is gone when this value is.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(folder: PathBuf) -> Result<Self> {
        if folder.exists() {
            // Of a run that was killed.
            fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
        }
        create_dir(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

/// Release and mirror of the first Debian release in lines of `label codename URI`.
fn main_source(targets: &str) -> Option<(&str, &str)> {
    targets.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (label, codename, mirror) = (words.next()?, words.next()?, words.next()?);
        // Updates and backports have a hyphen.
        (label == "Debian" && !codename.contains('-')).then_some((codename, mirror))
    })
}

/// The kernels in the output of `apt-cache show` on [`META`], newest first, one of each series.
fn parse_kernels(text: &str) -> Vec<Kernel> {
    let mut kernels: Vec<(Vec<u32>, Kernel)> = dependencies(text)
        .filter_map(|name| {
            let release = name.strip_prefix("linux-image-")?;
            let numbers: Vec<u32> = release
                .split(['.', '-', '+'])
                .map_while(|part| part.parse().ok())
                .collect();
            let [major, minor, ..] = numbers[..] else {
                return None;
            };
            let kernel = Kernel {
                release: release.to_owned(),
                series: (major, minor),
            };
            Some((numbers, kernel))
        })
        .collect();
    kernels.sort_by(|(a, _), (b, _)| b.cmp(a));
    kernels.dedup_by_key(|(_, kernel)| kernel.series);
    kernels.into_iter().map(|(_, kernel)| kernel).collect()
}

/// The packages that the `Depends` lines in the output of `apt-cache show` name.
fn dependencies(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter_map(|line| line.strip_prefix("Depends: "))
        .flat_map(|line| line.split([',', '|']))
        .filter_map(|dependency| dependency.split_whitespace().next())
}

/// Unpacks the packages that are in `folder`.
fn unpack(folder: &Path, tree: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let package = entry?.path();
        if package.extension().is_some_and(|end| end == "deb") {
            sh::run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(tree))?;
        }
    }
    Ok(())
}

fn create_dir(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("make the folder {}", folder.display()))
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("move {} to {}", from.display(), to.display()))
}

fn write(file: &Path, text: &str) -> Result<()> {
    if let Some(folder) = file.parent() {
        create_dir(folder)?;
    }
    fs::write(file, text).with_context(|| format!("write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_that_of_the_release_and_not_of_its_updates() {
        let targets = "Vendor nodistro https://packages.example.com/\n\
                       Debian bookworm-updates http://deb.example.com/debian/\n\
                       Debian-Security bookworm-security http://deb.example.com/security/\n\
                       Debian bookworm http://deb.example.com/debian/\n";
        assert_eq!(
            main_source(targets),
            Some(("bookworm", "http://deb.example.com/debian/"))
        );
        assert_eq!(
            main_source("Ubuntu noble http://ports.example.com/\n"),
            None
        );
    }

    #[test]
    fn each_series_has_its_newest_kernel() {
        let text = "Package: linux-image-cloud-amd64\n\
            Depends: linux-image-6.12.95+deb12-cloud-amd64 (= 6.12.95-1~bpo12+1)\n\n\
            Package: linux-image-cloud-amd64\n\
            Depends: linux-image-6.1.0-50-cloud-amd64 (= 6.1.176-1)\n\n\
            Depends: linux-image-6.12.107+deb13-cloud-amd64 (= 6.12.107-1)\n\n\
            Depends: linux-base-cloud-amd64 (= 7.3.4-1), linux-image-7.3.4+deb13-cloud-amd64 (= 7.3.4-1)\n";
        let found: Vec<_> = parse_kernels(text)
            .into_iter()
            .map(|kernel| (kernel.series, kernel.release))
            .collect();
        let expected = [
            ((7, 3), "7.3.4+deb13-cloud-amd64"),
            ((6, 12), "6.12.107+deb13-cloud-amd64"),
            ((6, 1), "6.1.0-50-cloud-amd64"),
        ];
        assert_eq!(
            found,
            expected.map(|(series, release)| (series, release.to_owned()))
        );
    }
}
