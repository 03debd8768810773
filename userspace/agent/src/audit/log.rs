//! The file that events are written to.
//!
//! There are two sorts. A log that a person names may have lines of other jobs in it, now and later,
//! and its folder may belong to the user of the job, and so may whatever is there in its place. A
//! log of the agent's own is in a folder of root's and has one job's lines. The first ends the job
//! when it cannot be written; of the second the last line is taken back, and what it told of waits.
//!
//! No link on the way to either is followed, and a file that others can change is no log. Who owns
//! the folder can still move it away, which is found out while the job runs.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read, Seek as _, Write as _},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat2},
    process::geteuid,
};
use thiserror::Error;

use super::{
    event::Event,
    history::{Fault, Line, Lines},
};

/// What is wrong with a log.
#[derive(Debug, Error)]
pub enum LogError {
    /// It cannot be written: there is something else in its place, or no room on its disk.
    #[error("cannot write the log {path}: {source}. Links on its path are not followed")]
    Write {
        /// Where it is.
        path: PathBuf,
        /// What stood in the way.
        source: io::Error,
    },
    /// It cannot be read back.
    #[error("cannot read the log {path}: {source}")]
    Read {
        /// Where it is.
        path: PathBuf,
        /// What stood in the way.
        source: io::Error,
    },
    /// It is not what its agent left: somebody changed it meanwhile, and nothing that it says of
    /// the job can be relied on.
    #[error("the log {path}:{line} is not as the agent left it: {fault}")]
    Changed {
        /// Where it is.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        fault: Fault,
    },
}

/// An open log.
pub struct Log {
    path: PathBuf,
    file: File,
    /// Where it ends, in bytes, if it is the agent's own.
    end: Option<u64>,
    /// Why it could not be written, if it is not.
    error: Option<io::Error>,
}

impl Log {
    /// Opens the log at `path`, or makes it. What cannot be appended to it is counted all the same,
    /// and the first failure is kept for [`Recorder::log_fault`](super::recorder::Recorder::log_fault).
    ///
    /// # Errors
    ///
    /// [`LogError::Write`] when there is something else in its place, or a link on the way to it.
    pub fn open(path: &Path) -> Result<Self, LogError> {
        Self::open_with(path, OFlags::CREATE | OFlags::WRONLY, 0o644)
    }

    /// Makes a log at `path` that has nothing but the lines of one job, and takes back the part of
    /// a line that found no room.
    ///
    /// # Errors
    ///
    /// [`LogError::Write`] when there is something already, or a link on the way to it.
    pub fn create(path: &Path) -> Result<Self, LogError> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR;
        let log = Self::open_with(path, flags, 0o640)?;
        Ok(Self {
            end: Some(0),
            ..log
        })
    }

    /// Opens a log that [`Log::create`] made, for [`Recorder::resume`]. A last line without an end,
    /// whose writer was killed, is cut off.
    ///
    /// [`Recorder::resume`]: super::recorder::Recorder::resume
    ///
    /// # Errors
    ///
    /// [`LogError::Write`] when it is not there or is no log.
    pub fn reopen(path: &Path) -> Result<Self, LogError> {
        let log = Self::open_with(path, OFlags::RDWR, 0)?;
        let failed = |source| failed(path, source);
        let length = log.file.metadata().map_err(failed)?.len();
        let end = end_of_last_line(&log.file, length).map_err(failed)?;
        if end < length {
            log.file.set_len(end).map_err(failed)?;
        }
        Ok(Self {
            end: Some(end),
            ..log
        })
    }

    fn open_with(path: &Path, flags: OFlags, mode: u32) -> Result<Self, LogError> {
        let failed = |source| failed(path, source);
        let flags = flags | OFlags::APPEND | OFlags::CLOEXEC;
        // Else a FIFO in its place would wait for a reader.
        let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
        let mode = Mode::from_raw_mode(mode);
        let file = openat2(CWD, path, flags, mode, ResolveFlags::NO_SYMLINKS)
            .map_err(|errno| failed(errno.into()))?;
        let file = File::from(file);
        let meta = file.metadata().map_err(failed)?;
        let fault = if meta.file_type().is_char_device() {
            None
        } else if !meta.is_file() {
            Some("it is not a file")
        } else if meta.uid() != geteuid().as_raw() || meta.mode() & 0o022 != 0 {
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
                end: None,
                error: None,
            }),
        }
    }

    /// Appends the whole log of a job that has ended, which the host's agent has written.
    ///
    /// # Errors
    ///
    /// [`LogError::Write`], also when it was moved away meanwhile. A part may be in it then.
    pub fn append_all(mut self, log: &mut impl Read) -> Result<(), LogError> {
        io::copy(log, &mut self.file).map_err(|source| failed(&self.path, source))?;
        self.fault().map_or(Ok(()), Err)
    }

    /// The line of an event.
    ///
    /// # Errors
    ///
    /// [`LogError::Write`] when it cannot be said in JSON.
    pub(super) fn encode(&self, event: &Event) -> Result<Vec<u8>, LogError> {
        serde_json::to_vec(event).map_err(|error| failed(&self.path, error.into()))
    }

    /// Appends a line, to which the newline is added.
    ///
    /// # Errors
    ///
    /// [`LogError::Write`] of the agent's own log: nothing of the line is in it then, and the same
    /// line can be appended later. The failure of another log is kept instead.
    pub(super) fn append(&mut self, mut line: Vec<u8>) -> Result<(), LogError> {
        line.push(b'\n');
        let Some(end) = self.end else {
            if let Err(error) = self.file.write_all(&line) {
                self.error.get_or_insert(error);
            }
            return Ok(());
        };
        // What could not be taken back the last time is in the way.
        let written = self.take_back(end).and_then(|()| {
            self.file.write_all(&line).inspect_err(|_| {
                if let Err(error) = self.take_back(end) {
                    tracing::debug!(%error, "part of a line is left at the end of a log");
                }
            })
        });
        written.map_err(|source| failed(&self.path, source))?;
        self.end = Some(end + line.len() as u64);
        Ok(())
    }

    /// Cuts off what is behind `end`.
    fn take_back(&self, end: u64) -> io::Result<()> {
        if self.file.metadata()?.len() > end {
            self.file.set_len(end)?;
        }
        Ok(())
    }

    /// Reads a log of the agent's own from its beginning and gives each line to `take`.
    ///
    /// # Errors
    ///
    /// [`LogError::Read`], or [`LogError::Changed`] with what `take` finds wrong with a line.
    pub(super) fn replay(
        &self,
        mut take: impl FnMut(Line<'_>) -> Result<(), Fault>,
    ) -> Result<(), LogError> {
        let unreadable = |source| LogError::Read {
            path: self.path.clone(),
            source,
        };
        let mut file = &self.file;
        file.rewind().map_err(unreadable)?;
        let mut lines = Lines::new(BufReader::new(file.take(self.end.unwrap_or(0))));
        while let Some(line) = lines.read().map_err(unreadable)? {
            let number = line.number;
            take(line).map_err(|fault| LogError::Changed {
                path: self.path.clone(),
                line: number,
                fault,
            })?;
        }
        Ok(())
    }

    /// Why not everything is in the log, if so. What cannot be logged must not go on.
    pub(super) fn fault(&self) -> Option<LogError> {
        if let Some(error) = &self.error {
            let again = error.raw_os_error().map_or_else(
                || io::Error::other(error.to_string()),
                io::Error::from_raw_os_error,
            );
            return Some(failed(&self.path, again));
        }
        let there = fs::symlink_metadata(&self.path);
        let in_place = matches!((there, self.file.metadata()), (Ok(there), Ok(here))
            if (there.dev(), there.ino()) == (here.dev(), here.ino()));
        (!in_place).then(|| {
            let fault = "it was moved or replaced while the job ran";
            failed(&self.path, io::Error::other(fault))
        })
    }
}

fn failed(path: &Path, source: io::Error) -> LogError {
    LogError::Write {
        path: path.to_owned(),
        source,
    }
}

/// Where the last line ends that has a newline, in a file of `length` bytes.
fn end_of_last_line(file: &File, length: u64) -> io::Result<u64> {
    use std::os::unix::fs::FileExt as _;
    let mut block = [0; 4096];
    let mut end = length;
    while end > 0 {
        let begin = end.saturating_sub(block.len() as u64);
        let length = usize::try_from(end - begin).unwrap_or(block.len());
        let part = &mut block[..length];
        file.read_exact_at(part, begin)?;
        if let Some(at) = part.iter().rposition(|&byte| byte == b'\n') {
            return Ok(begin + at as u64 + 1);
        }
        end = begin;
    }
    Ok(0)
}
