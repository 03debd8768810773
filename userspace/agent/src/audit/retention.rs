//! Which logs are kept, and for how long.

use std::{
    collections::{HashMap, VecDeque},
    ffi::OsString,
    io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, openat2, statat, unlinkat},
    io::Errno,
};
use thiserror::Error;

/// What the names of logs end in, after the id of the job.
const SUFFIX: &str = ".jsonl";

/// How much is kept of the logs of jobs that have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long after its last line.
    pub age: Duration,
    /// How many bytes, of all logs in the folder.
    pub bytes: u64,
    /// How many logs, of all in the folder.
    pub files: usize,
}

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Logs.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Logs cannot be removed.
#[derive(Debug, Error)]
pub enum RetentionError {
    /// The folder cannot be read.
    #[error("cannot look for old logs in {path}: {source}. Links on its path are not followed")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A log cannot be removed. The others were all the same.
    #[error("cannot remove the old log {path}: {source}")]
    Remove {
        /// The log.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Whose log it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A user who is neither trusted nor runs CI runners.
    Stranger,
    /// A user who runs CI runners.
    Runner(u32),
    /// Somebody who is trusted.
    Trusted,
}

struct Old {
    name: OsString,
    modified: SystemTime,
    bytes: u64,
}

impl Old {
    fn is_older(&self, age: Duration, now: SystemTime) -> bool {
        now.duration_since(self.modified).unwrap_or_default() > age
    }
}

/// The logs of one owner.
#[derive(Default)]
struct Owned {
    /// What can be removed, the oldest first.
    logs: VecDeque<Old>,
    /// Of all of them.
    bytes: u64,
}

/// Removes logs from `folder` until what is left keeps to `limits` at the time `now`: those that are
/// too old, and then the oldest of whoever `owner` says has the most bytes, of strangers before all
/// others, so that nobody pushes out what another has done. The log of a job of which `is_running` says
/// so stays, and counts. What is not a file, or has another name than a log, is left alone and does
/// not count.
///
/// # Errors
///
/// [`RetentionError`]; what could be removed is.
pub fn retain(
    folder: &Path,
    limits: &Limits,
    now: SystemTime,
    is_running: impl Fn(&str) -> bool,
    owner: impl Fn(&str) -> Owner,
) -> Result<Removed, RetentionError> {
    let unreadable = |errno: Errno| RetentionError::Folder {
        path: folder.to_owned(),
        source: errno.into(),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = openat2(CWD, folder, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
        .map_err(unreadable)?;
    let mut logs = Vec::new();
    for entry in Dir::read_from(&fd).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name().to_owned();
        if !name.to_bytes().ends_with(SUFFIX.as_bytes()) {
            continue;
        }
        let stat = match statat(&fd, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(unreadable(errno)),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            continue;
        }
        // A time before 1970 is as old as it gets.
        let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
        logs.push(Old {
            name: std::ffi::OsStr::from_bytes(name.to_bytes()).to_owned(),
            modified: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
            bytes: u64::try_from(stat.st_size).unwrap_or(0),
        });
    }
    logs.sort_by(|a, b| (a.modified, &a.name).cmp(&(b.modified, &b.name)));

    let mut files = logs.len();
    let mut bytes: u64 = logs.iter().map(|log| log.bytes).sum();
    // Those of each owner, the oldest first.
    let mut owners: HashMap<Owner, Owned> = HashMap::new();
    for log in logs {
        let name = log.name.to_string_lossy();
        let id = name.strip_suffix(SUFFIX).unwrap_or(&name);
        let owned = owners.entry(owner(id)).or_default();
        owned.bytes += log.bytes;
        if !is_running(id) {
            owned.logs.push_back(log);
        }
    }
    let mut removed = Removed::default();
    let mut result = Ok(());
    loop {
        let is_full = files > limits.files || bytes > limits.bytes;
        let next = owners
            .iter_mut()
            .filter(|(_, owned)| {
                let oldest = owned.logs.front();
                oldest.is_some_and(|log| is_full || log.is_older(limits.age, now))
            })
            .max_by_key(|(owner, owned)| (**owner == Owner::Stranger, owned.bytes));
        let Some((_, owned)) = next else { break };
        let Some(log) = owned.logs.pop_front() else {
            break;
        };
        owned.bytes -= log.bytes;
        match unlinkat(&fd, &log.name, AtFlags::empty()) {
            Ok(()) => {
                removed.files += 1;
                removed.bytes += log.bytes;
            }
            Err(Errno::NOENT) => {}
            Err(errno) => {
                result = Err(RetentionError::Remove {
                    path: folder.join(&log.name),
                    source: errno.into(),
                });
                continue;
            }
        }
        files -= 1;
        bytes -= log.bytes;
    }
    result.map(|()| removed)
}

#[cfg(test)]
mod tests {
    use std::{fs, fs::File, os::unix::fs::symlink};

    use super::*;

    const LIMITS: Limits = Limits {
        age: Duration::from_secs(1000),
        bytes: 1000,
        files: 10,
    };

    /// A folder, removed with its files.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let name = format!("jobfence-retention-{name}-{}", std::process::id());
            let path = std::env::temp_dir().canonicalize().unwrap().join(name);
            let _ = fs::remove_dir_all(&path);
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        /// Makes a file of `bytes` bytes that was last written to `age` seconds before [`now`].
        fn add(&self, name: &str, bytes: u64, age: u64) {
            let file = File::create(self.0.join(name)).unwrap();
            file.set_len(bytes).unwrap();
            file.set_modified(now() - Duration::from_secs(age)).unwrap();
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).unwrap();
            let mut names: Vec<_> = entries
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }

        fn retain(&self, limits: &Limits) -> Result<Removed, RetentionError> {
            let owner = |id: &str| match id.split_once('-') {
                Some(("stranger", _)) => Owner::Stranger,
                Some((uid, _)) => Owner::Runner(uid.parse().unwrap_or(0)),
                None => Owner::Trusted,
            };
            retain(
                &self.0,
                limits,
                now(),
                |id| id.starts_with("running"),
                owner,
            )
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)
    }

    #[test]
    fn what_keeps_to_the_limits_stays() {
        let folder = Folder::new("stays");
        folder.add("a.jsonl", 500, 1000);
        folder.add("b.jsonl", 500, 0);
        assert_eq!(folder.retain(&LIMITS).unwrap(), Removed::default());
        assert_eq!(folder.names(), ["a.jsonl", "b.jsonl"]);
    }

    #[test]
    fn the_oldest_go_first_by_age_by_bytes_and_by_number() {
        for (limits, left) in [
            (
                Limits {
                    age: Duration::from_secs(25),
                    ..LIMITS
                },
                ["b.jsonl", "c.jsonl"].as_slice(),
            ),
            (
                Limits {
                    bytes: 150,
                    ..LIMITS
                },
                &["c.jsonl"],
            ),
            (Limits { files: 2, ..LIMITS }, &["b.jsonl", "c.jsonl"]),
            (Limits { files: 0, ..LIMITS }, &[]),
        ] {
            let folder = Folder::new("oldest");
            for (name, age) in [("c.jsonl", 10), ("a.jsonl", 30), ("b.jsonl", 20)] {
                folder.add(name, 100, age);
            }
            let removed = folder.retain(&limits).unwrap();
            assert_eq!(folder.names(), left, "{limits:?}");
            let files = 3 - left.len();
            assert_eq!(
                removed,
                Removed {
                    files,
                    bytes: files as u64 * 100
                },
                "{limits:?}"
            );
        }
    }

    #[test]
    fn nobody_pushes_out_the_logs_of_others() {
        for (limits, left) in [
            // What strangers have goes first,
            (
                1_000,
                ["1-a.jsonl", "1-b.jsonl", "2-a.jsonl", "trusted.jsonl"].as_slice(),
            ),
            // then the oldest of whoever has the most.
            (650, &["1-b.jsonl", "2-a.jsonl", "trusted.jsonl"]),
            (250, &["2-a.jsonl", "trusted.jsonl"]),
        ] {
            let folder = Folder::new("owners");
            folder.add("trusted.jsonl", 100, 90);
            folder.add("2-a.jsonl", 100, 80);
            folder.add("1-a.jsonl", 400, 20);
            folder.add("1-b.jsonl", 400, 10);
            for number in 0..9 {
                folder.add(&format!("stranger-{number}.jsonl"), 10, number);
            }
            folder
                .retain(&Limits {
                    bytes: limits,
                    ..LIMITS
                })
                .unwrap();
            let mut names = folder.names();
            names.retain(|name| !name.starts_with("stranger"));
            assert_eq!(names, left, "{limits}");
        }
    }

    #[test]
    fn the_log_of_a_running_job_stays_and_counts() {
        let folder = Folder::new("running");
        folder.add("running-1.jsonl", 900, 5000);
        folder.add("a.jsonl", 100, 20);
        folder.add("b.jsonl", 100, 10);
        folder.retain(&LIMITS).unwrap();
        assert_eq!(folder.names(), ["b.jsonl", "running-1.jsonl"]);
    }

    #[test]
    fn what_is_no_log_is_left_alone() {
        let folder = Folder::new("alone");
        folder.add("a.jsonl", 100, 5000);
        folder.add("notes.txt", 5000, 5000);
        fs::create_dir(folder.0.join("folder.jsonl")).unwrap();
        symlink(folder.0.join("notes.txt"), folder.0.join("link.jsonl")).unwrap();
        folder.retain(&Limits { files: 0, ..LIMITS }).unwrap();
        assert_eq!(folder.names(), ["folder.jsonl", "link.jsonl", "notes.txt"]);
    }

    #[test]
    fn a_link_in_place_of_the_folder_is_not_followed() {
        let folder = Folder::new("real");
        folder.add("a.jsonl", 100, 5000);
        let link = Folder::new("link").0.join("logs");
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(&folder.0, &link).unwrap();
        let refused = retain(&link, &LIMITS, now(), |_| false, |_| Owner::Trusted);
        fs::remove_dir_all(link.parent().unwrap()).unwrap();
        assert!(
            matches!(refused, Err(RetentionError::Folder { .. })),
            "{refused:?}"
        );
        assert_eq!(folder.names(), ["a.jsonl"]);
    }
}
