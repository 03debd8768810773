//! Holding users to their jobs: the programs that refuse their sockets outside.

use std::{
    fs::{self, File},
    hash::{BuildHasher as _, RandomState},
    io,
    path::Path,
};

use jobfence_abi::{Job, JobState};
use zerocopy::FromZeros as _;

use super::{Kernel, KernelError, io_error, map, pins};

/// The programs, each with its place in the object.
pub(super) const PROGRAMS: [&str; 5] = [
    "guard_create",
    "guard_connect4",
    "guard_connect6",
    "guard_sendmsg4",
    "guard_sendmsg6",
];

/// Attempts a second that are recorded of all that is outside.
const RATE: u32 = 1000;

impl Kernel {
    /// Refuses sockets of `users` outside every job, below the cgroup `outermost`, for as long as
    /// that is not changed: also while there is no agent. Nobody: nothing is refused.
    ///
    /// # Errors
    ///
    /// [`KernelError`].
    pub fn guard(&mut self, outermost: &Path, users: &[u32]) -> Result<(), KernelError> {
        let folder = pins::guard().map_err(|(path, source)| KernelError::Pins { path, source })?;
        let known: Vec<u32> = self.guarded.keys().flatten().collect();
        for user in known.iter().filter(|user| !users.contains(user)) {
            self.guarded.remove(user).map_err(map("GUARDED"))?;
        }
        let remove = |path: &Path| match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(path, error)),
            _ => Ok(()),
        };
        // Of an agent that was killed here.
        for name in PROGRAMS {
            remove(&folder.join(format!("{name}-new")))?;
        }
        if users.is_empty() {
            return PROGRAMS
                .iter()
                .try_for_each(|name| remove(&folder.join(name)));
        }
        let nobody = Job {
            state: JobState::CLOSED,
            key: RandomState::new().hash_one(()),
            rate: RATE,
            ..Job::new_zeroed()
        };
        self.put(0, &nobody)?;
        let cgroup = File::open(outermost).map_err(|source| io_error(outermost, source))?;
        for name in PROGRAMS {
            let link = self.attach(name, &cgroup, outermost)?;
            // In place of the one that an agent before this one has left, without a moment between.
            let (path, new) = (folder.join(name), folder.join(format!("{name}-new")));
            let pinned = link.pin(&new).map_err(|source| KernelError::Pin {
                program: name,
                path: new.clone(),
                source: Box::new(source),
            });
            pinned?;
            fs::rename(&new, &path).map_err(|source| io_error(&new, source))?;
        }
        for user in users {
            self.guarded.insert(user, 1, 0).map_err(map("GUARDED"))?;
        }
        Ok(())
    }
}
