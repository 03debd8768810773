//! Building the kernel object that the jobfence binary embeds.
//!
//! It has its own compiler, flags and target folder, so that nothing of the
//! outer cargo's environment leaks in and neither build invalidates the other.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{sh, toolchain::Toolchain};

/// The target of the kernel object.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// Builds the object and puts it where the agent's build script looks, touching
/// that file only when the object changed: cargo goes by its time.
pub(crate) fn build(toolchain: &Toolchain) -> Result<()> {
    eprintln!(
        "kernel object: {} with {}",
        toolchain.compiler, toolchain.linker
    );
    let mut cargo = sh::cargo();
    cargo.arg("build");
    sh::run(configure(&mut cargo, toolchain)).context("build the kernel object")?;

    let built = target_dir().join(TARGET).join("release/jobfence");
    let object = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    // Without BTF the kernel refuses the maps; say it here, not at the first run.
    for section in [".BTF", ".BTF.ext"] {
        // The end of a name in the string table, which `.rel.BTF` may share.
        if !contains(&object, format!("{section}\0").as_bytes()) {
            bail!(
                "{} has no section {section}: its programs would not load",
                built.display()
            );
        }
    }
    install(&object, &target_dir().join("jobfence.bpf.o"))
}

/// Adds to a cargo or cargo-clippy command all that compiling for the kernel
/// needs: package, target, compiler, linker and flags.
pub(crate) fn configure<'a>(command: &'a mut Command, toolchain: &Toolchain) -> &'a mut Command {
    sh::scrub(command, |name| {
        matches!(
            name,
            "CARGO_BUILD_RUSTC" | "CARGO_ENCODED_RUSTFLAGS" | "CARGO_BUILD_RUSTFLAGS" | "CARGO_BUILD_TARGET"
                | "RUSTC_WORKSPACE_WRAPPER" | "RUSTC_WRAPPER" | "RUSTFLAGS" | "RUSTUP_TOOLCHAIN"
                // `cargo xtask` points it at the libraries of the outer compiler.
                | "LD_LIBRARY_PATH"
        ) || name.starts_with("CARGO_PROFILE_")
            || name.starts_with("CARGO_TARGET_BPFEL")
    });
    // Without the last flag LLVM calls `memset` for a row of zeros, and libbpf's tools, bpftool
    // and veristat, refuse a global function that returns no number.
    //
    // Debug info, from which bpf-linker makes BTF, has to come from here: asked
    // for in a Cargo profile it leaves `core` without, and the kernel refuses
    // the mix.
    command
        .args([
            "--package",
            "jobfence-ebpf",
            "--release",
            "--target",
            TARGET,
        ])
        .args(["-Z", "build-std=core"])
        .env("RUSTC", &toolchain.compiler.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env(
            "RUSTFLAGS",
            "-Cdebuginfo=2 -Clink-arg=--btf -Clink-arg=--disable-expand-memcpy-in-order",
        )
        .env(
            "CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER",
            &toolchain.linker.path,
        )
        .env("CARGO_TARGET_DIR", target_dir())
}

/// Fixed, whatever CARGO_TARGET_DIR says: the agent's build script looks here.
fn target_dir() -> PathBuf {
    sh::workspace().join("target/bpf")
}

/// Writes `bytes` to `file` unless it holds them already; never half a file.
fn install(bytes: &[u8], file: &Path) -> Result<()> {
    if fs::read(file).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let new = file.with_extension("new");
    fs::write(&new, bytes)
        .and_then(|()| fs::rename(&new, file))
        .with_context(|| format!("write {}", file.display()))
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unchanged_object_keeps_its_time() {
        let folder = std::env::temp_dir().join(format!("xtask-object-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("object");
        let time = || fs::metadata(&file).unwrap().modified().unwrap();

        install(b"one", &file).unwrap();
        let old = std::time::SystemTime::UNIX_EPOCH;
        fs::File::options()
            .append(true)
            .open(&file)
            .unwrap()
            .set_modified(old)
            .unwrap();
        install(b"one", &file).unwrap();
        assert_eq!(time(), old, "the same bytes were written again");
        install(b"two", &file).unwrap();
        assert_ne!(time(), old);
        assert_eq!(fs::read(&file).unwrap(), b"two");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_section_name_is_found_whole() {
        assert!(contains(b"\0.text\0.rel.BTF\0", b".BTF\0"));
        assert!(!contains(b"\0.text\0.BTF.ext\0", b".BTF\0"));
    }
}
