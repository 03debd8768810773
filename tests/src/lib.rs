//! A private internet to test a fence in, and the means to run commands in it with and without
//! the fence.
//!
//! An [`Internet`] is two network namespaces joined by one virtual cable. The *job side* is where
//! commands run. The *net side* is everybody else: it answers for every address there is, so each
//! packet that leaves the job side arrives somewhere, and it counts what arrives
//! ([`Internet::since`]). Neither side has a way out, so no packet of a test leaves the machine.
//!
//! A refusal is proven by [`denied`]: the attempt reaches the net side without the fence, and with
//! it not one packet does.
//!
//! Needs root (`CAP_NET_ADMIN`, `CAP_SYS_ADMIN`), `ip` of iproute2, and `nsenter`, `unshare` and
//! `mount` of util-linux. Each test makes its own [`Internet`]; they run in parallel.
#![forbid(unsafe_code)]

pub mod addresses;
mod agent;
pub mod attack;
mod dns;
mod fence;
mod host;
mod http;
mod internet;
pub mod program;
mod run;
pub mod runners;
mod servers;
mod systemd;
mod tls;
mod wire;
pub mod worker;

pub use agent::{Agent, Shell};
pub use dns::Data;
pub use fence::{Expect, Fence, Fenced, binary, denied, denied_name, pins};
pub use host::{Cgroup, Foreign, mounted};
pub use internet::Internet;
pub use run::{Output, eventually, run, slowness};
pub use systemd::{Machine, root_file_system};
pub use wire::{Arrival, Arrivals, Mark, Protocol};
