//! The job: who is asking, from its start to its end.
//!
//! - [`cgroup`]: the cgroup that the fence hangs on
//! - [`delegate`]: one command as a job of the host's agent
//! - [`launch`]: a process that is in the cgroup, and has nothing to undo the fence with, before
//!   its first instruction
//! - `live`: what is reported of it while it runs, and what its resolver opens to it
//! - `probe`: what the first process tries in vain before it becomes the command
//! - [`process`]: which process is which, also when it is gone already
//! - [`reaper`]: ends the job when the agent dies
//! - [`run`]: one command as a job without an agent
//! - `scope`: a unit of systemd for the cgroup
//! - `state`: what the fence is worth, and what it is made of

pub mod cgroup;
pub mod delegate;
pub(crate) mod filter;
pub mod launch;
pub(crate) mod live;
pub mod probe;
pub mod process;
pub mod reaper;
pub mod run;
pub(crate) mod scope;
pub(crate) mod seclude;
mod signals;
mod state;
pub mod user;

pub use state::{Layers, State, advisory_reasons};
