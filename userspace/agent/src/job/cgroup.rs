//! The cgroup that a job's fence hangs on.
//!
//! `jobfence run` makes it below the caller's own, so that whatever limits the caller stays in force
//! for the job; the agent below that of the process which becomes the job, where that may be. The
//! caller may have processes of its own there: the rule against processes in inner
//! cgroups binds only cgroups that hand controllers down (cgroups(7)), and no controller is used
//! here.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::getxattr,
};
use thiserror::Error;

use crate::sys;

/// What can be wrong with cgroups.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// Version 2 is not mounted.
    #[error(
        "no cgroup v2 hierarchy is mounted that holds this process: mount one with \
         `mount -t cgroup2 none /sys/fs/cgroup/unified`, or boot with \
         systemd.unified_cgroup_hierarchy=1"
    )]
    NotMounted,
    /// A file system call failed.
    #[error("could not {doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Processes remained.
    #[error(
        "processes in {path} did not end within {seconds} s of being killed; the fence stays up"
    )]
    Populated {
        /// The cgroup.
        path: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
}

/// How long killed processes may take to be gone. A process in an uninterruptible sleep can take
/// long; nothing is unfenced meanwhile.
const END: Duration = Duration::from_secs(10);

/// A cgroup made for a job. Not removed on drop: see [`Cgroup::end`].
#[derive(Clone, Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes the cgroup `name` below the caller's own.
    ///
    /// # Errors
    ///
    /// [`CgroupError::NotMounted`] without cgroup v2, [`CgroupError::Io`] without the right to
    /// make a folder there.
    pub fn make(name: &str) -> Result<Self, CgroupError> {
        Self::make_in(&own()?, name)
    }

    /// Makes the cgroup `name` in the folder `parent` of a cgroup.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Io`].
    pub fn make_in(parent: &Path, name: &str) -> Result<Self, CgroupError> {
        let path = parent.join(name);
        fs::create_dir(&path).map_err(|source| CgroupError::Io {
            doing: "make the cgroup",
            path: path.clone(),
            source,
        })?;
        Ok(Self { path })
    }

    /// The cgroup at `path`, which another process made.
    #[must_use]
    pub fn open(path: PathBuf) -> Self {
        Self { path }
    }

    /// Its folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the calling process into the cgroup.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Io`].
    pub fn enter(&self) -> Result<(), CgroupError> {
        self.write("cgroup.procs", "0")
    }

    /// Moves the process `pid` into the cgroup.
    ///
    /// # Errors
    ///
    /// What the kernel says: `ESRCH` when there is no such process.
    pub fn add(&self, pid: u32) -> io::Result<()> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string())
    }

    /// The processes in it, not those below it.
    ///
    /// # Errors
    ///
    /// What reading its `cgroup.procs` can fail with.
    pub fn processes(&self) -> io::Result<Vec<u32>> {
        let list = fs::read_to_string(self.path.join("cgroup.procs"))?;
        Ok(list.lines().filter_map(|pid| pid.parse().ok()).collect())
    }

    /// The number of its folder, by which the kernel knows it.
    ///
    /// # Errors
    ///
    /// When it is gone.
    pub fn id(&self) -> io::Result<u64> {
        Ok(fs::metadata(&self.path)?.ino())
    }

    /// Whether a process is in it, or below it. One that is gone has none.
    ///
    /// # Errors
    ///
    /// What reading its `cgroup.events` can fail with.
    pub fn is_populated(&self) -> io::Result<bool> {
        match fs::read_to_string(self.path.join("cgroup.events")) {
            Ok(events) => Ok(!is_empty(&events)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Kills every process in the cgroup and below, waits until none is left, and removes it. A
    /// cgroup that is gone is no error.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Populated`], after which the cgroup is still there.
    pub fn end(&self) -> Result<(), CgroupError> {
        let ended = self
            .kill()
            .and_then(|()| self.wait_until_empty())
            // Below it there are cgroups only if a job that is root made some.
            .and_then(|()| self.remove(&self.path));
        match ended {
            // Somebody else, a reaper or a sweep, was faster.
            Err(CgroupError::Io { .. }) if !self.path.exists() => Ok(()),
            ended => ended,
        }
    }

    /// Kills what is in the cgroup and removes it if nothing is left. Does not wait.
    pub fn try_end(&self) {
        if let Err(error) = self.kill().and_then(|()| self.remove(&self.path)) {
            tracing::debug!(%error, "a cgroup is still in use");
        }
    }

    /// Removes the cgroup, unless a process is in it or below it; says whether that is done.
    pub(crate) fn remove_if_empty(&self) -> bool {
        // One that comes in between is safe: the kernel removes no cgroup that has a process.
        self.is_populated().is_ok_and(|populated| !populated) && self.remove(&self.path).is_ok()
    }

    /// Kills every process in the cgroup and below (`cgroup.kill`, Linux 5.14).
    ///
    /// # Errors
    ///
    /// [`CgroupError::Io`].
    pub fn kill(&self) -> Result<(), CgroupError> {
        self.write("cgroup.kill", "1")
    }

    fn wait_until_empty(&self) -> Result<(), CgroupError> {
        let path = self.path.join("cgroup.events");
        let failed = |source| CgroupError::Io {
            doing: "watch",
            path: path.clone(),
            source,
        };
        let deadline = Instant::now() + END;
        let mut file = fs::File::open(&path).map_err(failed)?;
        loop {
            let events = read_from_start(&mut file).map_err(failed)?;
            if is_empty(&events) {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CgroupError::Populated {
                    path: self.path.clone(),
                    seconds: END.as_secs(),
                });
            }
            // The kernel raises POLLPRI when the file changes (cgroup-v2, "cgroup.events").
            let mut fds = [PollFd::new(&file, PollFlags::PRI)];
            let timeout = Timespec::try_from(left).ok();
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(failed(error.into())),
            }
        }
    }

    fn remove(&self, path: &Path) -> Result<(), CgroupError> {
        let failed = |source| CgroupError::Io {
            doing: "remove the cgroup",
            path: path.to_owned(),
            source,
        };
        for entry in fs::read_dir(path).map_err(failed)?.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.remove(&entry.path())?;
            }
        }
        fs::remove_dir(path).map_err(failed)
    }

    fn write(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        let path = self.path.join(file);
        fs::write(&path, value).map_err(|source| CgroupError::Io {
            doing: "write to",
            path,
            source,
        })
    }
}

/// What a `cgroup.events` file says.
fn is_empty(events: &str) -> bool {
    events.lines().any(|line| line == "populated 0")
}

fn read_from_start(file: &mut fs::File) -> io::Result<String> {
    use io::{Read as _, Seek as _};
    file.rewind()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

/// The folder of the calling process's own cgroup, below which jobs are.
///
/// # Errors
///
/// [`CgroupError::NotMounted`] without cgroup v2.
pub(crate) fn own() -> Result<PathBuf, CgroupError> {
    let read = |path: &str| {
        sys::read_text(path).map_err(|source| CgroupError::Io {
            doing: "read",
            path: path.into(),
            source,
        })
    };
    locate(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?)
        .ok_or(CgroupError::NotMounted)
}

/// The folder of the cgroup of the process `pid`; `None` when there is no such process, or its cgroup
/// cannot be seen from here.
#[must_use]
pub fn of(pid: u32) -> Option<PathBuf> {
    let mounts = sys::read_text("/proc/self/mountinfo").ok()?;
    locate(
        &mounts,
        &sys::read_text(format!("/proc/{pid}/cgroup")).ok()?,
    )
}

/// Whether the unit of systemd that `folder` is, or is below, leaves to others what is below it: what
/// `Delegate=` asks for, and systemd notes on the unit's cgroup.
#[must_use]
pub(crate) fn is_delegated(folder: &Path) -> bool {
    // The innermost: a unit of another manager may be delegated as a whole, to that manager.
    let unit = folder.ancestors().find(|folder| {
        let kind = folder.extension().and_then(OsStr::to_str);
        matches!(kind, Some("service" | "scope" | "slice"))
    });
    // The second is all that old versions write, and takes CAP_SYS_ADMIN to be seen.
    let notes = ["user.delegate", "trusted.delegate"];
    unit.is_some_and(|unit| {
        notes.iter().any(|note| {
            let mut value = [0; 1];
            getxattr(unit, *note, &mut value) == Ok(1) && value == *b"1"
        })
    })
}

/// The folder of the outermost cgroup that can be seen from here.
///
/// # Errors
///
/// [`CgroupError::NotMounted`] without cgroup v2.
pub fn outermost() -> Result<PathBuf, CgroupError> {
    let mounts = sys::read_text("/proc/self/mountinfo").unwrap_or_default();
    locate(&mounts, "0::/").ok_or(CgroupError::NotMounted)
}

/// Every cgroup of that name that can be seen from here.
#[must_use]
pub fn find(name: &str) -> Vec<Cgroup> {
    let mounts = sys::read_text("/proc/self/mountinfo").unwrap_or_default();
    let mut folders: Vec<PathBuf> = locate(&mounts, "0::/").into_iter().collect();
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.file_name() == name {
                found.push(Cgroup::open(entry.path()));
            } else {
                folders.push(entry.path());
            }
        }
    }
    found
}

/// Finds the folder of a process's cgroup from its `mountinfo` and `cgroup` files (proc(5)).
fn locate(mountinfo: &str, cgroup: &str) -> Option<PathBuf> {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    mountinfo.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        if kind.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let below = Path::new(path).strip_prefix(root).ok()?;
        // Of a process that is outside this one's cgroup namespace: `/../other`.
        if below.iter().any(|name| name == "..") {
            return None;
        }
        Some(Path::new(point).join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 24 0:26 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory
42 24 0:38 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 none rw
";

    #[test]
    fn the_hierarchy_is_found_wherever_it_is_mounted() {
        let cgroup = "4:memory:/a\n0::/system.slice/runner.service\n";
        assert_eq!(
            locate(HYBRID, cgroup),
            Some("/sys/fs/cgroup/unified/system.slice/runner.service".into())
        );
        let unified = "25 20 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(locate(unified, "0::/\n"), Some("/sys/fs/cgroup".into()));
    }

    #[test]
    fn a_mount_of_a_part_that_does_not_hold_the_process_is_not_taken() {
        let part = "25 20 0:22 /docker/a /mnt rw - cgroup2 cgroup2 rw\n";
        assert_eq!(locate(part, "0::/docker/b\n"), None);
        assert_eq!(locate(part, "0::/docker/a/c\n"), Some("/mnt/c".into()));
    }

    #[test]
    fn a_process_outside_the_namespace_is_nowhere() {
        let unified = "25 20 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(locate(unified, "0::/../../a\n"), None);
        let usual = locate(unified, "0::/a..b\n");
        assert_eq!(usual, Some("/sys/fs/cgroup/a..b".into()));
    }

    #[test]
    fn version_1_alone_is_not_enough() {
        assert_eq!(
            locate(
                "30 24 0:26 / /sys/fs/cgroup/memory rw - cgroup none rw\n",
                "0::/\n"
            ),
            None
        );
        assert_eq!(locate(HYBRID, "4:memory:/a\n"), None);
    }
}
