//! Every program passes this kernel's verifier, and with room to spare.
//!
//! The verifier gives up on a program after walking a million instructions, over all paths
//! (`BPF_COMPLEXITY_LIMIT_INSNS`), and how many it walks differs from kernel to kernel. A program
//! that comes near the limit here is refused somewhere else. `cargo xtask vm` makes a table of
//! what this prints on each kernel.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use aya::{Btf, EbpfLoader, programs::Program};

/// Half of what the verifier walks before it gives up.
const MOST: u32 = 500_000;

#[test]
fn every_program_costs_less_than_half_of_the_verifiers_limit() -> Result<()> {
    let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/jobfence.bpf.o");
    let bytes = fs::read(&object).context("run `cargo xtask build` first")?;
    let mut ebpf = EbpfLoader::new().btf(None).load(&bytes)?;
    let mut dear = Vec::new();
    let mut programs: Vec<_> = ebpf.programs_mut().collect();
    programs.sort_by_key(|(name, _)| *name);
    ensure!(!programs.is_empty(), "the object has no programs");
    for (name, program) in programs {
        match program {
            Program::CgroupSkb(program) => program.load(),
            Program::CgroupSock(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            // Named after its hook. The kernel takes it only where it is called.
            Program::LsmCgroup(program) if lsm_is_active() => {
                program.load(name, &Btf::from_sys_fs()?)
            }
            Program::LsmCgroup(_) => {
                println!("left out: {name}: bpf is not among this kernel's security modules");
                continue;
            }
            _ => panic!("{name} is of a type that this test cannot load: teach it"),
        }
        .with_context(|| format!("the verifier refuses {name}"))?;
        let walked = program
            .info()?
            .verified_instruction_count()
            .with_context(|| format!("{name}: Linux before 5.16 does not tell"))?;
        // `cargo xtask vm` reads this line.
        println!("verified: {name} {walked}");
        if walked >= MOST {
            dear.push(format!("{name} {walked}"));
        }
    }
    ensure!(dear.is_empty(), "at {MOST} instructions or more: {dear:?}");
    Ok(())
}

fn lsm_is_active() -> bool {
    let list = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    list.trim().split(',').any(|module| module == "bpf")
}
