//! Finding what compiles for the kernel: a Rust compiler with the source of its
//! `core` (the BPF target has no prebuilt one), and a bpf-linker whose LLVM
//! reads the bitcode that this compiler's LLVM writes: the same major version
//! or a newer one.
//!
//! The compiler need not be the one that builds the rest. Any release works,
//! with `RUSTC_BOOTSTRAP=1` for `-Z build-std`.

use std::{
    collections::BTreeSet,
    env, fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use crate::sh;

/// The oldest compiler that builds the workspace: `rust-version` in Cargo.toml.
pub(crate) const OLDEST_RUST: u32 = 88;

/// A compiler and a linker that fit together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Toolchain {
    pub(crate) compiler: Compiler,
    pub(crate) linker: Linker,
}

/// A Rust compiler with library source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Compiler {
    pub(crate) rustc: PathBuf,
    pub(crate) version: Version,
}

/// A bpf-linker that starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Linker {
    pub(crate) path: PathBuf,
    /// Major version of its LLVM; unknown when LLVM is linked into it.
    pub(crate) llvm: Option<u32>,
}

/// What `rustc -vV` tells of a compiler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    /// As printed: `1.96.0`, `1.97.0-nightly`.
    pub(crate) release: String,
    /// The 96 of 1.96.0.
    pub(crate) minor: u32,
    /// Major version of the LLVM that it writes bitcode with.
    pub(crate) llvm: u32,
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Version { release, llvm, .. } = &self.version;
        write!(f, "{} ({release}, LLVM {llvm})", self.rustc.display())
    }
}

impl fmt::Display for Linker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.llvm {
            Some(llvm) => write!(f, "{} (LLVM {llvm})", self.path.display()),
            None => write!(f, "{} (LLVM linked into it)", self.path.display()),
        }
    }
}

/// Everything on this machine that could compile for the kernel.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// Best first.
    pub(crate) compilers: Vec<Compiler>,
    /// In the order in which a shell and cargo would find them.
    pub(crate) linkers: Vec<Linker>,
}

impl Survey {
    /// Looks at PATH, Debian's and Ubuntu's versioned compilers, rustup's and
    /// cargo's folders.
    pub(crate) fn take() -> Self {
        let mut compilers: Vec<_> = rustc_files()
            .iter()
            .filter_map(|file| probe(file))
            .collect();
        // Releases before nightlies, which aya's pinned version was never built with.
        compilers.sort_by_key(|compiler| {
            let nightly = compiler.version.release.contains('-');
            (nightly, std::cmp::Reverse(compiler.version.minor))
        });
        Self {
            compilers,
            linkers: linker_files()
                .iter()
                .filter_map(|file| probe_linker(file))
                .collect(),
        }
    }

    /// The best compiler that has a linker, with the first such linker.
    pub(crate) fn pick(&self) -> Option<Toolchain> {
        self.compilers.iter().find_map(|compiler| {
            let reads =
                |linker: &&Linker| linker.llvm.is_none_or(|llvm| llvm >= compiler.version.llvm);
            Some(Toolchain {
                compiler: compiler.clone(),
                linker: self.linkers.iter().find(reads)?.clone(),
            })
        })
    }
}

/// The toolchain to build the kernel object with; an error that says what to
/// run when there is none.
pub(crate) fn find() -> Result<Toolchain> {
    match Survey::take().pick() {
        Some(toolchain) => Ok(toolchain),
        None => bail!(
            "no Rust compiler with library source and a bpf-linker that fits it: \
             run `cargo xtask setup`"
        ),
    }
}

/// Files that may be Rust compilers, each once.
fn rustc_files() -> BTreeSet<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut files: Vec<PathBuf> = env::split_paths(&path)
        .map(|dir| dir.join("rustc"))
        .collect();
    files.push("/usr/bin/rustc".into());
    // Ubuntu's rustc-1.NN packages live beside each other in /usr/lib/rust-1.NN.
    for (folder, prefix) in [
        (PathBuf::from("/usr/lib"), "rust-1."),
        (sh::home("RUSTUP_HOME", ".rustup").join("toolchains"), ""),
    ] {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                files.push(entry.path().join("bin/rustc"));
            }
        }
    }
    files
        .iter()
        .filter_map(|file| fs::canonicalize(file).ok())
        // rustup's proxies are links to rustup; the compilers behind them are listed already.
        .filter(|file| file.file_name().is_some_and(|name| name != "rustup"))
        .filter(|file| sh::is_executable(file))
        .collect()
}

/// `rustc` as a compiler for the kernel: new enough, and with library source.
fn probe(rustc: &Path) -> Option<Compiler> {
    let version = parse_rustc(&sh::ask(Command::new(rustc).arg("-vV"))?)?;
    let sysroot = sh::ask(Command::new(rustc).args(["--print", "sysroot"]))?;
    let source = Path::new(sysroot.trim_end()).join("lib/rustlib/src/rust/library");
    (version.minor >= OLDEST_RUST && source.join("core/Cargo.toml").exists()).then(|| Compiler {
        rustc: rustc.to_path_buf(),
        version,
    })
}

/// Files that may be a bpf-linker, in PATH and where `cargo install` puts it.
fn linker_files() -> Vec<PathBuf> {
    let cargo = sh::home("CARGO_HOME", ".cargo").join("bin/bpf-linker");
    let root = env::var_os("CARGO_INSTALL_ROOT").map(|dir| Path::new(&dir).join("bin/bpf-linker"));
    let mut files: Vec<PathBuf> = sh::which("bpf-linker").into_iter().collect();
    for file in root.into_iter().chain([cargo]) {
        if !files.contains(&file) {
            files.push(file);
        }
    }
    files
}

/// `file` as a bpf-linker, if it starts.
fn probe_linker(file: &Path) -> Option<Linker> {
    // It does not print its LLVM's version, but the library that it loads has it in its name.
    sh::ask(Command::new(file).arg("--version"))?;
    let libraries = sh::ask(Command::new("ldd").arg(file)).unwrap_or_default();
    Some(Linker {
        path: file.to_path_buf(),
        llvm: parse_ldd(&libraries),
    })
}

/// Reads the output of `rustc -vV`.
fn parse_rustc(text: &str) -> Option<Version> {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            .map(str::trim)
    };
    let release = field("release")?;
    Some(Version {
        release: release.to_owned(),
        minor: parse_minor(release)?,
        llvm: leading_number(field("LLVM version")?)?,
    })
}

/// The 96 of a version that starts with `1.96`.
pub(crate) fn parse_minor(version: &str) -> Option<u32> {
    leading_number(version.strip_prefix("1.")?)
}

/// The major version of the LLVM library among those that `ldd` lists:
/// `libLLVM.so.22.1` by LLVM's own naming, `libLLVM-19.so.1` by Debian's.
fn parse_ldd(text: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let name = line.trim_start().strip_prefix("libLLVM")?;
        leading_number(
            name.strip_prefix(".so.")
                .or_else(|| name.strip_prefix('-'))?,
        )
    })
}

fn leading_number(text: &str) -> Option<u32> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiler(minor: u32, llvm: u32) -> Compiler {
        Compiler {
            rustc: format!("/opt/rust-1.{minor}/bin/rustc").into(),
            version: Version {
                release: format!("1.{minor}.0"),
                minor,
                llvm,
            },
        }
    }

    fn linker(path: &str, llvm: Option<u32>) -> Linker {
        Linker {
            path: path.into(),
            llvm,
        }
    }

    #[test]
    fn rustc_of_a_release_and_of_a_nightly_are_understood() {
        let release = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\n\
                       binary: rustc\nhost: x86_64-unknown-linux-gnu\nrelease: 1.96.0\n\
                       LLVM version: 22.1.8\n";
        assert_eq!(
            parse_rustc(release),
            Some(Version {
                release: "1.96.0".into(),
                minor: 96,
                llvm: 22
            })
        );
        let nightly = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\nrelease: 1.97.0-nightly\n\
                       LLVM version: 22.1.4\n";
        assert_eq!(parse_rustc(nightly).map(|version| version.minor), Some(97));
    }

    #[test]
    fn a_compiler_without_llvm_is_no_compiler_for_the_kernel() {
        assert_eq!(
            parse_rustc("release: 1.96.0\nhost: x86_64-unknown-linux-gnu\n"),
            None
        );
        assert_eq!(parse_rustc("release: 2.0.0\nLLVM version: 30.0\n"), None);
        assert_eq!(parse_rustc(""), None);
    }

    #[test]
    fn the_llvm_of_a_linker_shows_in_both_library_names() {
        let upstream = "\tlinux-vdso.so.1 (0x00007f)\n\
                        \tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x00007f)\n";
        assert_eq!(parse_ldd(upstream), Some(22));
        assert_eq!(
            parse_ldd("\tlibLLVM-19.so.1 => /lib/libLLVM-19.so.1 (0x0)\n"),
            Some(19)
        );
        assert_eq!(parse_ldd("\tlibc.so.6 => /lib/libc.so.6 (0x0)\n"), None);
        assert_eq!(parse_ldd("\tstatically linked\n"), None);
    }

    #[test]
    fn a_linker_older_than_the_compiler_is_passed_over() {
        let mut survey = Survey {
            compilers: vec![compiler(96, 22)],
            linkers: vec![linker("/a", Some(21))],
        };
        assert_eq!(survey.pick(), None);
        survey.linkers.push(linker("/b", Some(23)));
        assert_eq!(
            survey.pick().map(|found| found.linker.path),
            Some("/b".into())
        );
    }

    #[test]
    fn an_older_compiler_is_used_when_only_it_has_a_linker() {
        let survey = Survey {
            compilers: vec![compiler(96, 22), compiler(92, 21)],
            linkers: vec![linker("/a", Some(21))],
        };
        assert_eq!(
            survey.pick().map(|found| found.compiler.version.minor),
            Some(92)
        );
    }

    #[test]
    fn a_linker_with_llvm_inside_is_given_the_benefit_of_the_doubt() {
        let survey = Survey {
            compilers: vec![compiler(96, 22)],
            linkers: vec![linker("/a", None)],
        };
        assert!(survey.pick().is_some());
    }
}
