//! The file that events are written to.
//!
//! Its folder may belong to the user of the job, and so may whatever is there in its place. No
//! link on the way is followed, and a file that others can change is no log. Who owns the folder
//! can still move it away, which is found out while the job runs.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use thiserror::Error;

use super::event::Event;

/// The log cannot be written.
#[derive(Debug, Error)]
#[error("cannot write the log {path}: {source}. Links on its path are not followed")]
pub struct LogError {
    path: PathBuf,
    source: io::Error,
}

/// An open log.
pub struct Log {
    path: PathBuf,
    file: File,
    error: Option<io::Error>,
}

impl Log {
    /// Opens the log at `path`, or makes it.
    ///
    /// # Errors
    ///
    /// [`LogError`] when there is something else in its place, or a link on the way to it.
    pub fn open(path: &Path) -> Result<Self, LogError> {
        let failed = |source| LogError {
            path: path.to_owned(),
            source,
        };
        let flags = OFlags::CREATE | OFlags::APPEND | OFlags::WRONLY | OFlags::CLOEXEC;
        // Else a FIFO in its place would wait for a reader.
        let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
        let mode = Mode::from_raw_mode(0o644);
        let file = openat2(CWD, path, flags, mode, ResolveFlags::NO_SYMLINKS)
            .map_err(|errno| failed(errno.into()))?;
        let file = File::from(file);
        let meta = file.metadata().map_err(failed)?;
        let fault = if meta.file_type().is_char_device() {
            None
        } else if !meta.is_file() {
            Some("it is not a file")
        } else if meta.uid() != 0 || meta.mode() & 0o022 != 0 {
            Some("others than root can change it; remove it, and jobfence makes a new one")
        } else if meta.nlink() > 1 {
            Some("it has more than one name (hard links)")
        } else {
            None
        };
        match fault {
            Some(fault) => Err(failed(io::Error::other(fault))),
            None => Ok(Self {
                path: path.to_owned(),
                file,
                error: None,
            }),
        }
    }

    /// Appends an event. The first failure is kept for [`Log::fault`].
    pub(super) fn append(&mut self, event: &Event) {
        let written = serde_json::to_vec(event)
            .map_err(io::Error::from)
            .and_then(|mut line| {
                line.push(b'\n');
                self.file.write_all(&line)
            });
        if let Err(error) = written {
            self.error.get_or_insert(error);
        }
    }

    /// Why not everything is in the log, if so. What cannot be logged must not go on.
    pub(super) fn fault(&self) -> Option<LogError> {
        let failed = |source| LogError {
            path: self.path.clone(),
            source,
        };
        if let Some(error) = &self.error {
            return Some(failed(error.raw_os_error().map_or_else(
                || io::Error::other(error.to_string()),
                io::Error::from_raw_os_error,
            )));
        }
        let there = fs::symlink_metadata(&self.path);
        let in_place = matches!((there, self.file.metadata()), (Ok(there), Ok(here))
            if (there.dev(), there.ino()) == (here.dev(), here.ino()));
        (!in_place).then(|| {
            failed(io::Error::other(
                "it was moved or replaced while the job ran",
            ))
        })
    }
}
