//! The stand-in for a CI runner that [`jobfence_tests::worker`] describes.
#![forbid(unsafe_code)]

fn main() -> anyhow::Result<()> {
    jobfence_tests::worker::main()
}
