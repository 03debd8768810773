//! Puts the eBPF object where `src/kernel` includes it from.

use std::{env, fs, path::PathBuf};

fn main() -> Result<(), String> {
    println!("cargo::rerun-if-env-changed=JOBFENCE_BPF_OBJECT");
    let object = env::var_os("JOBFENCE_BPF_OBJECT").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/bpf/jobfence.bpf.o"),
        PathBuf::from,
    );
    println!("cargo::rerun-if-changed={}", object.display());
    let out = env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: build with cargo")?;
    fs::copy(&object, PathBuf::from(out).join("jobfence.bpf.o")).map_err(|error| {
        format!(
            "no eBPF object at {}: {error}. Run `cargo xtask build`, which makes it first",
            object.display()
        )
    })?;
    Ok(())
}
