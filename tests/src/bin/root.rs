//! Makes the root file system of test machines with systemd, if there is none, and prints where it
//! is.
#![forbid(unsafe_code)]

use anyhow::Result;
use jobfence_tests::root_file_system;

fn main() -> Result<()> {
    println!("{}", root_file_system(None)?.display());
    Ok(())
}
