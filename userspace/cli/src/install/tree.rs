//! The files of a host, read and written by root without being led astray.
//!
//! Some of them lie in a folder of the runner's user, who may be hostile: a job could have put a link
//! where root is about to write. There no symbolic link is followed at all, and a file is replaced by
//! a new one and never opened for writing. Elsewhere links are the administrator's, and are followed
//! within the root that was asked for (openat2(2)); what is written must lie in a folder that nobody
//! but root can change.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    fs::File,
    io::{self, Read as _, Write as _},
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, Dir, FlockOperation, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, chmodat,
        fchmod, fchown, flock, fstat, fsync, mkdirat, openat, openat2, renameat, statat, unlinkat,
    },
    io::Errno,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Bytes of a file that is read, at most.
const MAX_BYTES: u64 = 1 << 20;

/// Why a file cannot be looked at or changed.
#[derive(Debug, Error)]
pub(super) enum TreeError {
    /// The system refused.
    #[error("cannot {act} {path}: {source}")]
    Io {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A link where none is followed.
    #[error(
        "{path} is a symbolic link, or leads through one, which is not followed there: give its real \
         path, or remove the link if it is not yours"
    )]
    Link {
        /// The path.
        path: PathBuf,
    },
    /// Something that is not safe to use.
    #[error("{path} {problem}")]
    Unsafe {
        /// The path.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// Another one changes the same files.
    #[error("another `jobfence install` or `uninstall` is at work: wait for it")]
    Locked,
}

impl TreeError {
    fn new(act: &'static str, path: &Path, errno: Errno) -> Self {
        let path = path.to_owned();
        match errno {
            Errno::LOOP => Self::Link { path },
            errno => Self::Io {
                act,
                path,
                source: errno.into(),
            },
        }
    }
}

/// Whom the folder of a file belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Place {
    /// Root, and nobody else may change it.
    Host,
    /// The user with this id, or root.
    Runner(u32),
}

/// A file: what it says, and who may do what with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Content {
    /// Its text.
    pub(super) text: String,
    /// Permission bits.
    pub(super) mode: u32,
    /// User id of its owner.
    pub(super) uid: u32,
    /// Id of its group.
    pub(super) gid: u32,
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mode {:o}, owner {}:{}", self.mode, self.uid, self.gid)
    }
}

/// All files below a folder, which to them is `/`.
pub(super) struct Tree {
    root: OwnedFd,
    path: PathBuf,
    is_host: bool,
}

impl Tree {
    /// The tree below `root`.
    pub(super) fn open(root: &Path) -> Result<Self, TreeError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(CWD, root, flags, Mode::empty())
            .map_err(|errno| TreeError::new("open", root, errno))?;
        let id = |stat: Stat| (stat.st_dev, stat.st_ino);
        let is_host = fstat(&fd)
            .and_then(|this| Ok(id(this) == id(statat(CWD, "/", AtFlags::empty())?)))
            .map_err(|errno| TreeError::new("look at", root, errno))?;
        Ok(Self {
            root: fd,
            path: root.to_owned(),
            is_host,
        })
    }

    /// Whether this is the running system's own.
    pub(super) fn is_host(&self) -> bool {
        self.is_host
    }

    /// Where `path` is for the rest of this process.
    pub(super) fn outside(&self, path: &Path) -> PathBuf {
        self.path.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Keeps others that would change the tree away, as long as this lives.
    pub(super) fn lock(&self) -> Result<(), TreeError> {
        flock(&self.root, FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
            Errno::WOULDBLOCK => TreeError::Locked,
            errno => TreeError::new("lock", &self.path, errno),
        })
    }

    /// The owner and group of the folder `path`, to which no symbolic link may lead.
    pub(super) fn owner(&self, path: &Path) -> Result<(u32, u32), TreeError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let stat = self
            .descriptor(path, flags, ResolveFlags::NO_SYMLINKS)
            .and_then(fstat)
            .map_err(|errno| TreeError::new("open the folder", path, errno))?;
        Ok((stat.st_uid, stat.st_gid))
    }

    /// Whether there is something at `path`; links are followed.
    pub(super) fn exists(&self, path: &Path) -> bool {
        self.stat(path).is_ok()
    }

    /// What the file `path` says, if it can be read; links are followed. For what decides nothing
    /// about where something is written.
    pub(super) fn peek(&self, path: &Path) -> Option<String> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = self.descriptor(path, flags, ResolveFlags::empty()).ok()?;
        let mut text = Vec::new();
        File::from(fd).take(MAX_BYTES).read_to_end(&mut text).ok()?;
        Some(String::from_utf8_lossy(&text).into_owned())
    }

    /// The names in the folder `path`, sorted; none if it cannot be read.
    pub(super) fn names(&self, path: &Path) -> Vec<String> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let folder = self.descriptor(path, flags, ResolveFlags::empty());
        let Ok(entries) = folder.and_then(Dir::read_from) else {
            return Vec::new();
        };
        let name = |entry: Result<rustix::fs::DirEntry, Errno>| {
            Some(entry.ok()?.file_name().to_str().ok()?.to_owned())
        };
        let mut names: Vec<_> = entries.filter_map(name).collect();
        names.sort();
        names
    }

    /// The file `path`; `None` if there is none.
    pub(super) fn read(&self, path: &Path, place: Place) -> Result<Option<Content>, TreeError> {
        let Some(folder) = self.folder_of(path, place)? else {
            return Ok(None);
        };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = match openat(&folder, name(path)?, flags | OFlags::CLOEXEC, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            fd => fd.map_err(|errno| TreeError::new("read", path, errno))?,
        };
        let failed = |source| TreeError::Io {
            act: "read",
            path: path.to_owned(),
            source,
        };
        let file = File::from(fd);
        let meta = file.metadata().map_err(failed)?;
        // What a hard link shows may be another folder's, which this user could not read.
        let is_theirs = match place {
            Place::Host => true,
            Place::Runner(uid) => meta.nlink() == 1 && [0, uid].contains(&meta.uid()),
        };
        if !meta.is_file() || !is_theirs {
            return Err(TreeError::Unsafe {
                path: path.to_owned(),
                problem: "is no plain file of the folder's owner: remove it".to_owned(),
            });
        }
        let mut text = String::new();
        (&file)
            .take(MAX_BYTES + 1)
            .read_to_string(&mut text)
            .map_err(failed)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(failed(io::ErrorKind::FileTooLarge.into()));
        }
        Ok(Some(Content {
            text,
            mode: meta.mode() & 0o777,
            uid: meta.uid(),
            gid: meta.gid(),
        }))
    }

    /// Puts `content` in place of the file `path`, at once or not at all.
    pub(super) fn write(
        &self,
        path: &Path,
        place: Place,
        content: &Content,
    ) -> Result<(), TreeError> {
        let failed = |errno| TreeError::new("write", path, errno);
        let folder = self
            .folder_of(path, place)?
            .ok_or_else(|| failed(Errno::NOENT))?;
        let name = name(path)?;
        let temporary = temporary(name);
        // Of a process that was killed.
        self.clean(path, place)?;
        let written = replace(&folder, name, &temporary, content);
        if written.is_err() {
            // Else the next one would find it.
            _ = unlinkat(&folder, &temporary, AtFlags::empty());
        }
        written.map_err(|source| TreeError::Io {
            act: "write",
            path: path.to_owned(),
            source,
        })
    }

    /// Removes what an interrupted [`write`](Self::write) of `path` may have left.
    pub(super) fn clean(&self, path: &Path, place: Place) -> Result<(), TreeError> {
        let Some(folder) = self.folder_of(path, place)? else {
            return Ok(());
        };
        let temporary = temporary(name(path)?);
        match unlinkat(&folder, &temporary, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(TreeError::new(
                "remove",
                &path.with_file_name(temporary),
                errno,
            )),
        }
    }

    /// Removes the file `path`.
    pub(super) fn remove(&self, path: &Path, place: Place) -> Result<(), TreeError> {
        let Some(folder) = self.folder_of(path, place)? else {
            return Ok(());
        };
        match unlinkat(&folder, name(path)?, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => fsync(&folder),
            Err(errno) => Err(errno),
        }
        .map_err(|errno| TreeError::new("remove", path, errno))
    }

    /// The folders on the way to the file `path` that are missing, the outermost first.
    pub(super) fn missing_folders(&self, path: &Path) -> Vec<PathBuf> {
        let mut missing: Vec<_> = path
            .ancestors()
            .skip(1)
            .take_while(|folder| !self.exists(folder))
            .map(Path::to_owned)
            .collect();
        missing.reverse();
        missing
    }

    /// Makes the folder `path`, root's own, with the permissions `mode`, if it is not there.
    pub(super) fn make_folder(&self, path: &Path, mode: u32) -> Result<(), TreeError> {
        let failed = |errno| TreeError::new("make the folder", path, errno);
        let folder = self
            .folder_of(path, Place::Host)?
            .ok_or_else(|| failed(Errno::NOENT))?;
        let (name, mode) = (name(path)?, Mode::from_raw_mode(mode));
        match mkdirat(&folder, name, mode) {
            Err(Errno::EXIST) => return Ok(()),
            made => made.map_err(failed)?,
        }
        // The umask may have taken from it.
        chmodat(&folder, name, mode, AtFlags::empty()).map_err(failed)?;
        fsync(&folder).map_err(failed)
    }

    /// Removes the folder `path` if it is empty; says whether it is gone.
    pub(super) fn remove_folder(&self, path: &Path) -> Result<bool, TreeError> {
        let Some(folder) = self.folder_of(path, Place::Host)? else {
            return Ok(true);
        };
        match unlinkat(&folder, name(path)?, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::BUSY) => Ok(false),
            Err(errno) => Err(TreeError::new("remove the folder", path, errno)),
        }
    }

    /// The folder in which the file `path` is, if it is safe to use; `None` if it is not there.
    fn folder_of(&self, path: &Path, place: Place) -> Result<Option<OwnedFd>, TreeError> {
        let folder = path.parent().unwrap_or(path);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let resolve = match place {
            Place::Host => ResolveFlags::empty(),
            Place::Runner(_) => ResolveFlags::NO_SYMLINKS,
        };
        let fd = match self.descriptor(folder, flags, resolve) {
            Err(Errno::NOENT) => return Ok(None),
            fd => fd.map_err(|errno| TreeError::new("open the folder", folder, errno))?,
        };
        let stat = fstat(&fd).map_err(|errno| TreeError::new("open the folder", folder, errno))?;
        check_folder(folder, &stat, place)?;
        if place == Place::Host {
            // Who can rename a folder above can put another one in its place.
            for above in folder.ancestors().skip(1) {
                let stat = self
                    .stat(above)
                    .map_err(|errno| TreeError::new("look at", above, errno))?;
                if stat.st_mode & STICKY == 0 {
                    check_folder(above, &stat, place)?;
                }
            }
        }
        Ok(Some(fd))
    }

    fn stat(&self, path: &Path) -> Result<Stat, Errno> {
        self.descriptor(path, OFlags::PATH, ResolveFlags::empty())
            .and_then(fstat)
    }

    /// Opens `path`, on the way to which nothing leads out of the tree.
    fn descriptor(
        &self,
        path: &Path,
        flags: OFlags,
        resolve: ResolveFlags,
    ) -> Result<OwnedFd, Errno> {
        openat2(
            &self.root,
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            resolve | ResolveFlags::IN_ROOT,
        )
    }
}

/// In such a folder one can rename one's own files only (inode(7)).
const STICKY: u32 = 0o1000;

/// Whether root may write into a folder.
fn check_folder(path: &Path, stat: &Stat, place: Place) -> Result<(), TreeError> {
    const OTHERS: u32 = 0o002;
    const GROUP: u32 = 0o020;
    let (is_owned, writable, owner) = match place {
        Place::Host => (stat.st_uid == 0, GROUP | OTHERS, "root".to_owned()),
        Place::Runner(uid) => (
            [0, uid].contains(&stat.st_uid),
            OTHERS,
            format!("user {uid}"),
        ),
    };
    if is_owned && stat.st_mode & writable == 0 {
        return Ok(());
    }
    Err(TreeError::Unsafe {
        path: path.to_owned(),
        problem: format!(
            "can be changed by others than {owner}: mend its owner (`chown`) and mode (`chmod go-w`)"
        ),
    })
}

fn name(path: &Path) -> Result<&OsStr, TreeError> {
    path.file_name().ok_or_else(|| TreeError::Unsafe {
        path: path.to_owned(),
        problem: "is not the name of a file".to_owned(),
    })
}

/// What a file is called while it is written. Always the same: one process writes at a time, and the
/// next one finds what was left.
fn temporary(name: &OsStr) -> OsString {
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(".jobfence-new");
    temporary
}

/// Writes `temporary` and renames it to `name`.
fn replace(folder: &OwnedFd, name: &OsStr, temporary: &OsStr, content: &Content) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(
        folder,
        temporary,
        flags,
        Mode::from_raw_mode(0o600),
    )?);
    file.write_all(content.text.as_bytes())?;
    fchown(
        &file,
        Some(Uid::from_raw(content.uid)),
        Some(Gid::from_raw(content.gid)),
    )?;
    fchmod(&file, Mode::from_raw_mode(content.mode))?;
    file.sync_all()?;
    renameat(folder, temporary, folder, name)?;
    Ok(fsync(folder)?)
}
