//! Where the links of jobs are pinned: a folder for each job on the bpf file system.
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

use rustix::fs::{FlockOperation, flock};

use super::{BPFFS, KernelError};

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

/// The folder above the jobs' folders.
fn root() -> PathBuf {
    let version = format!("v{}", jobfence_abi::VERSION);
    Path::new(BPFFS).join("jobfence").join(version)
}

impl Pins {
    /// Makes the folder of the job `id`.
    pub(super) fn make(id: &str) -> Result<Self, KernelError> {
        let folder = root().join(id);
        let failed = |source| KernelError::Pins {
            path: folder.clone(),
            source,
        };
        let _above = lock_root().map_err(failed)?;
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

/// Removes a job's pinned links and their folder. That takes its fence down: only for a cgroup
/// in which nothing runs any more.
///
/// # Errors
///
/// What the file system says; a folder that is gone is no error.
pub fn unpin(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// The jobs whose agents are gone. Each is this process's to end for as long as it holds what it
/// got here.
///
/// # Errors
///
/// What the file system says.
pub fn abandoned() -> io::Result<Vec<Abandoned>> {
    let _above = lock_root()?;
    let mut found = Vec::new();
    for entry in fs::read_dir(root())? {
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

fn lock_root() -> io::Result<File> {
    let root = root();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&root)?;
    let lock = File::open(root)?;
    flock(&lock, FlockOperation::LockExclusive)?;
    Ok(lock)
}
