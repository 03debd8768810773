//! Holding users to their jobs: the programs that refuse their sockets outside.

use std::{
    fs::{self, File},
    hash::{BuildHasher as _, RandomState},
    io,
    path::Path,
};

use aya::{
    maps::{LpmTrie, Map, MapData, lpm_trie::Key},
    programs::links::{FdLink, LinkError, PinnedLink},
};
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
            PROGRAMS
                .iter()
                .try_for_each(|name| remove(&folder.join(name)))?;
        } else {
            self.hold(outermost, users, &folder)?;
        }
        // Their programs know none of this version's jobs, and would refuse them all.
        let others = pins::others_guards().map_err(|error| io_error(&folder, error))?;
        for other in others {
            pins::discard(&other).map_err(|error| io_error(&other, error))?;
            tracing::info!(path = %other.display(), "the guard of another version's agent is gone");
        }
        Ok(())
    }

    fn hold(&mut self, outermost: &Path, users: &[u32], folder: &Path) -> Result<(), KernelError> {
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
        users.iter().try_for_each(|&user| self.guard_user(user))
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
        user_of(&self.guarded, uid)
    }
}

/// Users by their ids, as prefixes of these.
pub(super) type Guarded = LpmTrie<MapData, [u8; 4], u32>;

fn user_of(guarded: &Guarded, uid: u32) -> Option<u32> {
    let key = Key::new(u32::BITS, uid.to_be_bytes());
    guarded.get(&key, 0).ok()
}

/// What holds users to their jobs on this host: the work of [`Kernel::guard`] in any agent, which may
/// be gone.
pub(crate) struct Guard {
    /// The ids of its programs; none where nobody is held.
    pub(crate) programs: Vec<u32>,
    guarded: Vec<Guarded>,
}

impl Guard {
    /// Looks at what is pinned.
    ///
    /// # Errors
    ///
    /// [`KernelError::Left`], and [`KernelError::Map`] for a map of which this version knows nothing.
    pub(crate) fn find() -> Result<Self, KernelError> {
        let (mut programs, mut guarded) = (Vec::new(), Vec::new());
        for folder in pins::guards().map_err(KernelError::Left)? {
            let before = programs.len();
            for link in fs::read_dir(&folder).map_err(KernelError::Left)? {
                let path = link.map_err(KernelError::Left)?.path();
                let program = program_of_link(&path)
                    .map_err(|source| KernelError::Left(io::Error::other(source)))?;
                programs.push(program);
            }
            if programs.len() > before {
                let pinned = MapData::from_pin(folder.with_file_name("maps").join("GUARDED"));
                let users = pinned.and_then(Map::from_map_data);
                let users = users.and_then(Guarded::try_from);
                guarded.push(users.map_err(map("GUARDED"))?);
            }
        }
        Ok(Self { programs, guarded })
    }

    /// Whether it refuses sockets of `uid` outside jobs.
    pub(crate) fn holds(&self, uid: u32) -> bool {
        let mut guarded = self.guarded.iter();
        guarded.any(|guarded| user_of(guarded, uid).is_some())
    }
}

/// The id of the program of the pinned link at `path`.
fn program_of_link(path: &Path) -> Result<u32, LinkError> {
    let link = FdLink::from(PinnedLink::from_pin(path)?);
    Ok(link.info()?.program_id())
}
