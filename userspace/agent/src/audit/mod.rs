//! What happened: the record of everything that a job tried.
//!
//! - [`event`]: one attempt as a line of JSON
//! - [`log`]: the file that they are written to
//! - [`recorder`]: makes events of what the kernel and the resolver report, counts repeats, and
//!   keeps what a person is shown in the end
//! - [`mask`]: keeps secrets out of both

pub mod event;
pub mod log;
pub mod mask;
pub mod recorder;
