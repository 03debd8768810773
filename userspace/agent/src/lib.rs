//! Everything that holds a job's fence, laid out by what happens to a packet:
//!
//! - [`kernel`]: the programs that decide, and the maps that tell them about a job
//! - [`names`]: the job's resolver, which turns the names that the policy allows into addresses
//! - [`job`]: the job itself: its cgroup, its processes, its start and its end
//! - [`audit`]: the record of what the job tried
//! - [`host`]: the daemon that holds many jobs at once, and [`control`]: how callers reach it
//! - [`doctor`]: what of this a host can do
//!
//! What may leave is the business of [`jobfence_policy`]; what a person sees, of the command line.
#![deny(unsafe_code)]

pub mod audit;
pub mod control;
pub mod doctor;
pub mod host;
pub mod job;
pub mod kernel;
pub mod names;
mod sys;
