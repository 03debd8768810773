//! What apt offers on Debian and Ubuntu, and which of it gives this machine a
//! compiler and a linker for the kernel.

use std::{collections::BTreeMap, process::Command};

use crate::{sh, toolchain};

/// The LLVM versions that the pinned bpf-linker can be built with.
const LINKER_LLVMS: [u32; 3] = [21, 22, 23];

/// What apt knows of some packages.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Apt {
    packages: BTreeMap<String, Package>,
}

/// One package's lines of `apt-cache policy`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Package {
    installed: Option<String>,
    candidate: Option<String>,
}

/// A compiler that apt can install.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CompilerPackages {
    pub(crate) names: Vec<String>,
    /// The 96 of 1.96.
    pub(crate) minor: u32,
}

impl Apt {
    /// Asks apt about what setup may install; empty where there is no apt.
    pub(crate) fn ask() -> Self {
        let mut names: Vec<String> = [
            "rustc",
            "rustup",
            "rustc-web",
            "rust-web-src",
            "rust-web-clippy",
            "bpftool",
        ]
        .map(str::to_owned)
        .to_vec();
        names.extend(LINKER_LLVMS.into_iter().flat_map(llvm_packages));
        // Ubuntu packages every release since 1.76 as rustc-1.NN.
        let versioned = sh::ask(Command::new("apt-cache").args(["pkgnames", "rustc-1."]));
        for name in versioned.unwrap_or_default().lines() {
            let release = name.trim_start_matches("rustc-");
            names.extend([name.to_owned(), format!("rust-{release}-src")]);
        }
        let mut policy = Command::new("apt-cache");
        policy.arg("policy").args(names).env("LC_ALL", "C");
        Self::parse(&sh::ask(&mut policy).unwrap_or_default())
    }

    /// Reads the output of `apt-cache policy NAME…` in the C locale.
    pub(crate) fn parse(text: &str) -> Self {
        let mut packages: BTreeMap<String, Package> = BTreeMap::new();
        let mut current = None;
        for line in text.lines() {
            let version = |field: &str| {
                let value = line.trim_start().strip_prefix(field)?.trim();
                Some((value != "(none)").then(|| value.to_owned()))
            };
            if !line.starts_with(' ') {
                let name = line.trim_end().trim_end_matches(':').to_owned();
                current = Some(packages.entry(name).or_default());
            } else if let Some(package) = &mut current {
                if let Some(installed) = version("Installed:") {
                    package.installed = installed;
                } else if let Some(candidate) = version("Candidate:") {
                    package.candidate = candidate;
                }
            }
        }
        Self { packages }
    }

    /// Whether apt can install `name`, or has.
    pub(crate) fn offers(&self, name: &str) -> bool {
        self.packages
            .get(name)
            .is_some_and(|package| package.candidate.is_some())
    }

    /// Whether `name` is installed.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.packages
            .get(name)
            .is_some_and(|package| package.installed.is_some())
    }

    /// The installed package that keeps `rustc-web` from being installed.
    pub(crate) fn conflict(&self) -> Option<&'static str> {
        ["rustc", "rustup"].into_iter().find(|name| self.has(name))
    }

    /// The compiler to install: Debian's `rustc-web`, which follows the
    /// browsers' needs in a stable release, else Ubuntu's newest `rustc-1.NN`.
    pub(crate) fn compiler(&self) -> Option<CompilerPackages> {
        let web = || {
            let version = self.packages.get("rustc-web")?.candidate.as_deref()?;
            let minor = toolchain::parse_minor(version)?;
            (minor >= toolchain::OLDEST_RUST
                && self.conflict().is_none()
                && self.offers("rust-web-src"))
            .then(|| CompilerPackages {
                names: vec!["rustc-web".into(), "rust-web-src".into()],
                minor,
            })
        };
        let versioned = || {
            let newest = self.packages.keys().filter_map(|name| {
                let minor = toolchain::parse_minor(name.strip_prefix("rustc-")?)?;
                let source = format!("rust-1.{minor}-src");
                (minor >= toolchain::OLDEST_RUST && self.offers(name) && self.offers(&source)).then(
                    || CompilerPackages {
                        names: vec![name.clone(), source],
                        minor,
                    },
                )
            });
            newest.max_by_key(|compiler| compiler.minor)
        };
        web().or_else(versioned)
    }

    /// The oldest LLVM from `least` on that apt has and bpf-linker builds with.
    pub(crate) fn llvm(&self, least: u32) -> Option<u32> {
        LINKER_LLVMS
            .into_iter()
            .find(|llvm| *llvm >= least && self.offers(&format!("llvm-{llvm}-dev")))
    }

    /// Of the packages that bpf-linker is built from with this LLVM, those
    /// that are not installed.
    pub(crate) fn missing_for_linker(&self, llvm: u32) -> impl Iterator<Item = String> {
        llvm_packages(llvm)
            .into_iter()
            .filter(|name| !self.has(name))
    }
}

/// What bpf-linker is built from with this LLVM.
fn llvm_packages(llvm: u32) -> [String; 4] {
    [
        format!("llvm-{llvm}-dev"),
        format!("libpolly-{llvm}-dev"),
        "zlib1g-dev".into(),
        "libzstd-dev".into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offering(packages: &[(&str, &str)]) -> Apt {
        let text: String = packages
            .iter()
            .map(|(name, version)| {
                format!("{name}:\n  Installed: (none)\n  Candidate: {version}\n")
            })
            .collect();
        Apt::parse(&text)
    }

    #[test]
    fn policy_output_is_read_with_its_version_table_left_aside() {
        let apt = Apt::parse(
            "rustc-web:\n  Installed: 1.96.0+dfsg1-1~deb12u2\n  Candidate: 1.96.0+dfsg1-1~deb12u2\n\
             \x20 Version table:\n *** 1.96.0+dfsg1-1~deb12u2 500\n\
             \x20       500 mirror bookworm-security/main amd64 Packages\n\
             rustup:\n  Installed: (none)\n  Candidate: (none)\n  Version table:\n\
             llvm-22-dev:\n  Installed: (none)\n  Candidate: 1:22.1.8-1~deb12u1\n",
        );
        assert!(apt.has("rustc-web") && apt.offers("rustc-web"));
        assert!(!apt.has("rustup") && !apt.offers("rustup"));
        assert!(!apt.has("llvm-22-dev") && apt.offers("llvm-22-dev"));
        assert!(!apt.offers("never asked"));
        assert_eq!(apt.packages.len(), 3);
    }

    #[test]
    fn debian_gets_the_browsers_compiler_with_its_source() {
        let apt = offering(&[
            ("rustc-web", "1.96.0+dfsg1-1~deb12u2"),
            ("rust-web-src", "1.96.0+dfsg1-1~deb12u2"),
        ]);
        assert_eq!(
            apt.compiler(),
            Some(CompilerPackages {
                names: vec!["rustc-web".into(), "rust-web-src".into()],
                minor: 96
            })
        );
    }

    #[test]
    fn a_compiler_that_is_too_old_is_not_offered() {
        let apt = offering(&[
            ("rustc-web", "1.85.0+dfsg3-1"),
            ("rust-web-src", "1.85.0+dfsg3-1"),
        ]);
        assert_eq!(apt.compiler(), None);
    }

    #[test]
    fn ubuntu_gets_the_newest_compiler_that_has_its_source() {
        let apt = offering(&[
            ("rustc-1.80", "1.80.1+dfsg0ubuntu1-0ubuntu0.24.04"),
            ("rust-1.80-src", "1.80.1+dfsg0ubuntu1-0ubuntu0.24.04"),
            ("rustc-1.89", "1.89.0+dfsg-0ubuntu0.24.04"),
            ("rust-1.89-src", "1.89.0+dfsg-0ubuntu0.24.04"),
            ("rustc-1.91", "1.91.1+dfsg-0ubuntu0.24.04"),
            ("rust-1.91-src", "1.91.1+dfsg-0ubuntu0.24.04"),
            ("rustc-1.93", "1.93.0+dfsg-0ubuntu0.24.04"),
        ]);
        assert_eq!(apt.compiler().map(|compiler| compiler.minor), Some(91));
    }

    #[test]
    fn an_installed_rustc_or_rustup_package_rules_the_browsers_compiler_out() {
        let web = "rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0\n\
                   rust-web-src:\n  Installed: (none)\n  Candidate: 1.96.0\n";
        for package in ["rustc", "rustup"] {
            let apt = Apt::parse(&format!(
                "{web}{package}:\n  Installed: 1.2\n  Candidate: 1.2\n"
            ));
            assert_eq!(apt.conflict(), Some(package));
            assert_eq!(apt.compiler(), None, "{package} would have to be removed");
        }
    }

    #[test]
    fn the_linkers_llvm_is_never_older_than_asked() {
        let apt = offering(&[("llvm-21-dev", "1:21.1"), ("llvm-23-dev", "1:23.1")]);
        assert_eq!(apt.llvm(20), Some(21));
        assert_eq!(apt.llvm(21), Some(21));
        assert_eq!(apt.llvm(22), Some(23));
        assert_eq!(apt.llvm(24), None);
    }

    #[test]
    fn installed_packages_are_not_asked_for_again() {
        let apt = Apt::parse("llvm-22-dev:\n  Installed: 1:22.1\n  Candidate: 1:22.1\n");
        assert!(
            apt.missing_for_linker(22)
                .eq(["libpolly-22-dev", "zlib1g-dev", "libzstd-dev"])
        );
    }
}
