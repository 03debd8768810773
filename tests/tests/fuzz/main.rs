//! Input that nobody wrote by hand: policies, events, and the first bytes of connections.
//!
//! Each target is an ordinary test on generated input, with the same cases in every run.
//! `cargo xtask fuzz` runs them with others, for as long as it is told; a failure is shrunk and
//! printed, and written beside the target so that later runs begin with it. DNS messages, the
//! other target, are in the agent (`names/fuzz.rs`), whose parser is its own affair.
//!
//! `program` needs root and `cargo xtask build`, as it loads what the kernel runs.
#![expect(
    clippy::unwrap_used,
    reason = "all of this is a test; clippy sees only functions with #[test] as such"
)]

mod events;
mod http;
mod policy;
mod program;
mod stream;
mod tls;

use proptest::test_runner::{Config, RngSeed};

/// The same cases in every run, unless `PROPTEST_RNG_SEED` and `PROPTEST_CASES` say otherwise.
fn config() -> Config {
    let mut config = Config::default();
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(0);
    }
    config
}
