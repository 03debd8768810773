//! Holding users to their jobs: the programs that refuse their sockets outside.

use std::{
    fs::{self, File},
    hash::{BuildHasher as _, RandomState},
    io,
    path::Path,
};

use aya::maps::lpm_trie::Key;
use ipnet::Ipv4Subnets;
use jobfence_abi::{Job, JobState};
use zerocopy::FromZeros as _;

use super::{Kernel, KernelError, io_error, map, pins};
use crate::job::user;

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
    /// that is not changed: also while there is no agent. Nobody: nothing is refused. Users have their
    /// subordinate ids, too (subuid(5)).
    ///
    /// # Errors
    ///
    /// [`KernelError`].
    pub fn guard(&mut self, outermost: &Path, users: &[u32]) -> Result<(), KernelError> {
        let folder = pins::guard().map_err(|(path, source)| KernelError::Pins { path, source })?;
        let known: Vec<_> = self.guarded.iter().flatten().collect();
        for (ids, _) in known.iter().filter(|(_, user)| !users.contains(user)) {
            self.guarded.remove(ids).map_err(map("GUARDED"))?;
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
        users.iter().try_for_each(|&user| self.guard_user(user))?;
        // Their programs know none of this version's jobs, and would refuse them all.
        let others = pins::others_guards().map_err(|error| io_error(&folder, error))?;
        for other in others {
            pins::discard(&other).map_err(|error| io_error(&other, error))?;
            tracing::info!(path = %other.display(), "the guard of another version's agent is gone");
        }
        Ok(())
    }

    /// Refuses sockets of a user also by the ids that it has got since [`Kernel::guard`] was called.
    ///
    /// # Errors
    ///
    /// [`KernelError`].
    pub fn guard_user(&mut self, user: u32) -> Result<(), KernelError> {
        for ids in user::ids(user) {
            // A range of ids is made of prefixes as one of addresses is.
            let prefixes = Ipv4Subnets::new((*ids.start()).into(), (*ids.end()).into(), 0);
            for prefix in prefixes {
                let key = Key::new(prefix.prefix_len().into(), prefix.addr().octets());
                let inserted = self.guarded.insert(&key, user, 0);
                inserted.map_err(map("GUARDED"))?;
            }
        }
        Ok(())
    }

    /// The user that is held to jobs and has the id `uid`.
    #[must_use]
    pub fn guarded_user(&self, uid: u32) -> Option<u32> {
        let key = Key::new(u32::BITS, uid.to_be_bytes());
        self.guarded.get(&key, 0).ok()
    }
}
