//! Where the links of jobs are pinned: a folder for each job on the bpf file system, below one for
//! each [`Keeper`].
//!
//! An agent holds a lock (flock(2)) on the folder of each of its jobs. The kernel drops it with
//! the agent, however that ends, so a folder that can be locked is an abandoned one, whatever
//! process id or namespace its agent had. The lock on the folder above is held while a folder is
//! made and locked, so that nobody takes a new one for abandoned.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock, statfs};

use super::{BPFFS, KernelError};
use crate::{job::cgroup, sys};

/// Who looks after a job, and takes it up when whoever did so before is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeper {
    /// A `jobfence run`. When it is gone, its job is ended.
    Run,
    /// The daemon. When it is gone, its jobs wait for the next.
    Agent,
}

impl Keeper {
    fn folder(self) -> PathBuf {
        root().join(match self {
            Self::Run => "run",
            Self::Agent => "agent",
        })
    }
}

/// The folder of everything that is pinned. Its name holds the version of what the programs and the
/// agent say to each other: what another version has left is not this one's to use.
fn root() -> PathBuf {
    let version = format!("v{}", jobfence_abi::VERSION);
    Path::new(BPFFS).join("jobfence").join(version)
}

/// The pinned links of one job. They stay pinned when this is dropped.
pub(super) struct Pins {
    pub(super) folder: PathBuf,
    _lock: File,
}

/// Pinned links whose agent is gone.
pub struct Abandoned {
    /// The job's id.
    pub id: String,
    /// Their folder.
    pub folder: PathBuf,
    _lock: File,
}

/// Whether a bpf file system is mounted at [`BPFFS`].
///
/// # Errors
///
/// What the file system says: above all that there is no such folder.
pub fn is_bpffs() -> io::Result<bool> {
    /// `BPF_FS_MAGIC` of `linux/magic.h`.
    const MAGIC: u64 = 0xcafe_4a11;
    let found = statfs(BPFFS)?;
    Ok(u64::try_from(found.f_type).ok() == Some(MAGIC))
}

impl Pins {
    /// Makes the folder of the job `id`.
    pub(super) fn make(keeper: Keeper, id: &str) -> Result<Self, KernelError> {
        let folder = keeper.folder().join(id);
        let failed = |source| KernelError::Pins {
            path: folder.clone(),
            source,
        };
        let _above = lock_above(keeper).map_err(failed)?;
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .map_err(failed)?;
        let lock = File::open(&folder).map_err(failed)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|errno| failed(errno.into()))?;
        Ok(Self {
            folder,
            _lock: lock,
        })
    }
}

impl Pins {
    /// The folder of the daemon's job `id`, whose daemon is gone.
    pub(super) fn take_up(id: &str) -> Result<Self, KernelError> {
        let folder = Keeper::Agent.folder().join(id);
        let locked = File::open(&folder).and_then(|lock| {
            flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
            Ok(lock)
        });
        match locked {
            Ok(lock) => Ok(Self {
                folder,
                _lock: lock,
            }),
            Err(source) => Err(KernelError::Pins {
                path: folder,
                source,
            }),
        }
    }
}

/// The ids of the daemon's jobs that have links pinned, each with the number of its cgroup: 0 when
/// nothing of the job is left that they could hold.
pub(super) fn left() -> io::Result<Vec<(String, u64)>> {
    let mut left = Vec::new();
    let folders = match fs::read_dir(Keeper::Agent.folder()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(left),
        folders => folders?,
    };
    for folder in folders {
        let folder = folder?;
        let cgroup = cgroup_of(&folder.path())?;
        left.push((folder.file_name().to_string_lossy().into_owned(), cgroup));
    }
    Ok(left)
}

/// The number of the cgroup that the links in a job's folder are attached to; 0 for none any more.
fn cgroup_of(folder: &Path) -> io::Result<u64> {
    let mut cgroup = 0;
    for link in fs::read_dir(folder)? {
        cgroup = cgroup.max(sys::cgroup_of_link(&link?.path())?);
    }
    Ok(cgroup)
}

/// The folder for maps that outlive their agent, made if it is not there, and the lock that says that
/// it has an agent.
pub(super) fn maps() -> Result<(PathBuf, File), (PathBuf, io::Error)> {
    let folder = make(root().join("maps"))?;
    let locked = File::open(&folder).and_then(|lock| {
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(lock)
    });
    match locked {
        Ok(lock) => Ok((folder, lock)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            let running = io::Error::other("another agent is running");
            Err((folder, running))
        }
        Err(error) => Err((folder, error)),
    }
}

/// The folder for the links that hold users to their jobs, made if it is not there.
pub(super) fn guard() -> Result<PathBuf, (PathBuf, io::Error)> {
    make(root().join("guard"))
}

/// The folders of such links that there are, of agents of all versions, running or not.
pub(super) fn guards() -> io::Result<Vec<PathBuf>> {
    let versions = match fs::read_dir(Path::new(BPFFS).join("jobfence")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        versions => versions?,
    };
    let mut found = Vec::new();
    for version in versions {
        let guard = version?.path().join("guard");
        if guard.is_dir() {
            found.push(guard);
        }
    }
    Ok(found)
}

/// Those that agents of other versions have left. What a running one keeps is not among them.
pub(super) fn others_guards() -> io::Result<Vec<PathBuf>> {
    let own = root().join("guard");
    let mut found = guards()?;
    found.retain(|guard| {
        let has_agent = File::open(guard.with_file_name("maps"))
            .is_ok_and(|maps| flock(&maps, FlockOperation::NonBlockingLockExclusive).is_err());
        *guard != own && !has_agent
    });
    Ok(found)
}

/// Removes what jobfences of other versions have left of jobs that are over, cgroups included. What may
/// hold a process or a socket stays, and so does what somebody looks after.
///
/// Says whether more will be over in a moment: the kernel takes a while to let go of a cgroup.
///
/// # Errors
///
/// What the file system and bpf(2) say.
pub fn clear_others() -> io::Result<bool> {
    let versions = match fs::read_dir(Path::new(BPFFS).join("jobfence")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        versions => versions?,
    };
    let mut more = false;
    for version in versions {
        let version = version?.path();
        if version == root() {
            continue;
        }
        for keeper in ["run", "agent"] {
            more |= clear(&version.join(keeper))?;
        }
        // Without a job, an agent that is gone needs its maps no more.
        let maps = version.join("maps");
        if !version.join("agent").exists()
            && let Some(_lock) = try_lock(&maps)?
        {
            fs::remove_dir_all(&maps)?;
        }
        // Unless something else is there.
        _ = fs::remove_dir(&version);
    }
    Ok(more)
}

/// Does so for the jobs of one keeper.
fn clear(keeper: &Path) -> io::Result<bool> {
    // So that nobody makes a job's folder meanwhile.
    let Some(_above) = try_lock(keeper)? else {
        return Ok(false);
    };
    let mut more = false;
    for job in fs::read_dir(keeper)? {
        let job = job?;
        let Some(_lock) = try_lock(&job.path())? else {
            continue;
        };
        let fenced = cgroup_of(&job.path())?;
        if fenced != 0 {
            let name = format!("jobfence-{}", job.file_name().to_string_lossy());
            let cgroups = cgroup::find(&name).into_iter();
            // Not one of this version's that has got the name since.
            let mut cgroups = cgroups.filter(|cgroup| cgroup.id().is_ok_and(|id| id == fenced));
            more |= cgroups.any(|cgroup| cgroup.remove_if_empty());
        }
        if unpin(&job.path())? {
            tracing::info!(path = %job.path().display(), "the fence of another version's job is gone");
        }
    }
    _ = fs::remove_dir(keeper);
    Ok(more)
}

/// The lock on a folder, unless somebody has it or there is no such folder.
fn try_lock(folder: &Path) -> io::Result<Option<File>> {
    let lock = match File::open(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        lock => lock?,
    };
    let locked = flock(&lock, FlockOperation::NonBlockingLockExclusive);
    Ok(locked.is_ok().then_some(lock))
}

fn make(folder: PathBuf) -> Result<PathBuf, (PathBuf, io::Error)> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .map(|()| folder.clone())
        .map_err(|error| (folder, error))
}

/// Removes what is pinned in `folder` as far as it fences nothing any more, and says whether all of
/// it is gone.
///
/// Sockets outlive the processes that made them, and the kernel goes on sending for them: what is
/// in a connection's buffer, and its end. Their packets pass the programs of a cgroup that is
/// removed until the last such socket is gone, unless the links are unpinned before.
///
/// # Errors
///
/// What the file system and bpf(2) say; a folder that is gone is no error.
pub fn unpin(folder: &Path) -> io::Result<bool> {
    let links = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        links => links?,
    };
    let mut all = true;
    for link in links {
        let path = link?.path();
        if sys::is_detached(&path)? {
            fs::remove_file(path)?;
        } else {
            all = false;
        }
    }
    if all {
        fs::remove_dir(folder)?;
    }
    Ok(all)
}

/// Removes what is pinned in `folder`, whatever it fences: for a cgroup that nothing was ever in.
pub(super) fn discard(folder: &Path) -> io::Result<()> {
    fs::remove_dir_all(folder)
}

/// The jobs of `jobfence run` that nobody looks after any more. Each is this process's to end for as
/// long as it holds what it got here.
///
/// # Errors
///
/// What the file system says.
pub fn abandoned() -> io::Result<Vec<Abandoned>> {
    let _above = lock_above(Keeper::Run)?;
    let mut found = Vec::new();
    for entry in fs::read_dir(Keeper::Run.folder())? {
        let entry = entry?;
        let lock = File::open(entry.path())?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            found.push(Abandoned {
                id: entry.file_name().to_string_lossy().into_owned(),
                folder: entry.path(),
                _lock: lock,
            });
        }
    }
    Ok(found)
}

/// Takes the lock on a job's folder, waiting for its agent to be gone.
///
/// # Errors
///
/// What the file system says.
pub fn lock(folder: &Path) -> io::Result<File> {
    let lock = File::open(folder)?;
    flock(&lock, FlockOperation::LockExclusive)?;
    Ok(lock)
}

fn lock_above(keeper: Keeper) -> io::Result<File> {
    let folder = keeper.folder();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)?;
    let lock = File::open(folder)?;
    flock(&lock, FlockOperation::LockExclusive)?;
    Ok(lock)
}
