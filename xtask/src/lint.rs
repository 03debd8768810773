//! Format, lints, documentation, and what the dependencies may be.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{
    object, sh,
    toolchain::{self, Toolchain},
};

/// How long fetching the advisories may take; there are networks that never answer.
const FETCH_SECONDS: &str = "60";

type Check = fn(&Toolchain) -> Result<()>;

/// Runs every check, each to its end, and fails if any did.
pub(crate) fn run() -> Result<()> {
    let toolchain = toolchain::find()?;
    // The agent's build script embeds the object, and clippy runs build scripts.
    object::build(&toolchain)?;

    let checks: [(&str, Check); 6] = [
        ("format", |_| {
            sh::run(sh::cargo().args(["fmt", "--all", "--check"]))
        }),
        ("clippy", |_| {
            sh::run(sh::cargo().args(["clippy", "--all-targets", "--", "-D", "warnings"]))
        }),
        ("clippy of the kernel programs", ebpf_clippy),
        ("documentation", |_| {
            sh::run(
                sh::cargo()
                    .args(["doc", "--no-deps"])
                    .env("RUSTDOCFLAGS", "-Dwarnings"),
            )
        }),
        ("dependencies", |_| {
            let checks = ["bans", "licenses", "sources"];
            sh::run(
                sh::cargo()
                    .args(["deny", "check", "--hide-inclusion-graph"])
                    .args(checks),
            )
            .context("cargo-deny comes with `cargo xtask setup --ci`")
        }),
        ("advisories", advisories),
    ];
    let mut failed = Vec::new();
    for (name, check) in checks {
        if let Err(error) = check(&toolchain) {
            eprintln!("{name}: {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("lint: {}", failed.join(", "));
    }
    eprintln!("lint: clean");
    Ok(())
}

/// Clippy of the eBPF crate, by the clippy of the compiler that builds it.
fn ebpf_clippy(toolchain: &Toolchain) -> Result<()> {
    let rustc = &toolchain.compiler.rustc;
    let clippy = rustc.with_file_name("cargo-clippy");
    if !sh::is_executable(&clippy) || !rustc.with_file_name("clippy-driver").exists() {
        eprintln!(
            "left out: clippy of the kernel programs ({} has none)",
            rustc.display()
        );
        return Ok(());
    }
    // Cargo tells xtask which cargo runs it; cargo-clippy takes it from there too.
    let mut command = Command::new(clippy);
    command.current_dir(sh::workspace()).arg("clippy");
    object::configure(&mut command, toolchain);
    sh::run(command.args(["--", "-D", "warnings"]))
}

/// Known vulnerabilities, where their database can be had.
fn advisories(_: &Toolchain) -> Result<()> {
    let mut fetch = Command::new("timeout");
    fetch
        .args([FETCH_SECONDS, "cargo", "deny", "fetch", "db"])
        .current_dir(sh::workspace());
    if sh::run(&mut fetch).is_err() {
        eprintln!("left out: advisories (their database could not be fetched)");
        return Ok(());
    }
    sh::run(sh::cargo().args(["deny", "check", "--disable-fetch", "advisories"]))
}
