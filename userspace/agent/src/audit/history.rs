//! Reading a log back: to go on with it, to report from it, to check that it is whole.
//!
//! A log comes from wherever a person got it, so nothing in it is trusted: not the length of its
//! lines, not what they say, not the characters that they say it with.

use std::{
    collections::HashMap,
    io::{self, BufRead},
    sync::Arc,
    time::SystemTime,
};

use serde::Serialize;
use serde_json::Value;
use thiserror::Error;

use super::{
    event::{self, Event, FINISHED, JobName, Kind, LineHash},
    ledger::{Ledger, MAX_FLOWS, Summary},
};
use crate::job::process::is_hidden;

/// Longest line that is read, in bytes; several times what the longest event needs.
pub const MAX_LINE: usize = 1 << 20;

/// What is wrong with a line of a log.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// No event is as long.
    #[error("it is longer than {MAX_LINE} bytes, and no event is")]
    TooLong,
    /// Its writer was killed, or its disk full.
    #[error("it is cut off: the line has no end")]
    Cut,
    /// It is no line of a log.
    #[error("it is no event: {0}")]
    NoEvent(String),
    /// Lines are missing, or there are some too many.
    #[error("`seq` is {found}, and the job's next line is {expected}: lines are missing or added")]
    Sequence {
        /// What the line says.
        found: u64,
        /// What it has to say.
        expected: u64,
    },
    /// It has no hash, as in logs of the first version.
    #[error("it has no `prev`, so nothing shows that the lines before it are whole")]
    NoHash,
    /// The line before is not what it was, or this line is not.
    #[error(
        "`prev` is not the hash of the job's line before, {before}: one of the two was changed"
    )]
    Hash {
        /// The line before, from 1; 0 for none.
        before: u64,
    },
    /// The job's end was written before.
    #[error("the job has ended before, at line {0}")]
    AfterEnd(u64),
    /// A log of one job has a line of another.
    #[error("it is a line of another job")]
    OtherJob,
    /// The end of the job is missing.
    #[error(
        "it is the last line of job {0}, and not its end: the job goes on, or the rest was cut off"
    )]
    NoEnd(String),
    /// More attempts are told apart than any agent does.
    #[error("the log tells more attempts apart than jobfence does ({MAX_FLOWS} a job)")]
    TooMany,
}

/// The lines of a log, of which no more than one is held at a time.
pub struct Lines<R> {
    reader: R,
    number: u64,
    line: Vec<u8>,
}

/// A line of a log.
pub struct Line<'a> {
    /// Its number in the file, from 1.
    pub number: u64,
    /// Its bytes, without the newline.
    pub bytes: Result<&'a [u8], Fault>,
}

impl<R: BufRead> Lines<R> {
    /// The lines of `reader`.
    pub fn new(reader: R) -> Self {
        Self {
            reader,
            number: 0,
            line: Vec::new(),
        }
    }

    /// The next line; `None` at the end.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn read(&mut self) -> io::Result<Option<Line<'_>>> {
        self.line.clear();
        let mut length = 0;
        let has_end = loop {
            let part = match self.reader.fill_buf() {
                Ok(part) => part,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if part.is_empty() {
                break false;
            }
            let end = part.iter().position(|&byte| byte == b'\n');
            let piece = &part[..end.unwrap_or(part.len())];
            length += piece.len();
            if length <= MAX_LINE {
                self.line.extend_from_slice(piece);
            }
            let taken = piece.len() + usize::from(end.is_some());
            self.reader.consume(taken);
            if end.is_some() {
                break true;
            }
        };
        if length == 0 && !has_end {
            return Ok(None);
        }
        self.number += 1;
        Ok(Some(Line {
            number: self.number,
            bytes: if length > MAX_LINE {
                Err(Fault::TooLong)
            } else if has_end {
                Ok(&self.line)
            } else {
                Err(Fault::Cut)
            },
        }))
    }
}

impl Line<'_> {
    /// The event that the line tells of. Its texts hold nothing that would change how others are
    /// shown.
    ///
    /// # Errors
    ///
    /// [`Fault::TooLong`], [`Fault::Cut`], [`Fault::NoEvent`].
    pub fn event(&self) -> Result<Event, Fault> {
        let bytes = self.bytes.clone()?;
        let read = || {
            let text = str::from_utf8(bytes).map_err(|error| error.to_string())?;
            if text.contains('\\') || text.contains(is_hidden) {
                let mut value = serde_json::from_str(text).map_err(|error| error.to_string())?;
                disarm(&mut value);
                serde_json::from_value(value).map_err(|error| error.to_string())
            } else {
                serde_json::from_str(text).map_err(|error| error.to_string())
            }
        };
        read().map_err(|error: String| {
            let error = error.replace(is_hidden, " ");
            Fault::NoEvent(error.chars().take(200).collect())
        })
    }
}

/// Takes out what would change how a text is shown.
fn disarm(value: &mut Value) {
    match value {
        Value::String(text) => {
            if text.contains(is_hidden) {
                *text = text.replace(is_hidden, " ");
            }
        }
        Value::Array(values) => values.iter_mut().for_each(disarm),
        Value::Object(fields) => fields.values_mut().for_each(disarm),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// How far the chain of one job's lines is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The `seq` of the next line.
    pub seq: u64,
    /// The hash of the last line.
    pub head: LineHash,
    /// The number of the last line in its file, from 1; 0 for none.
    pub line: u64,
    /// Whether the last line is the job's end.
    pub ended: bool,
}

impl Default for Chain {
    fn default() -> Self {
        Self {
            seq: 0,
            head: LineHash::NONE,
            line: 0,
            ended: false,
        }
    }
}

impl Chain {
    /// Follows the chain to `line`, which tells of `event`.
    ///
    /// # Errors
    ///
    /// The [`Fault`] by which it is not the line that has to come.
    pub fn follow(&mut self, line: &Line<'_>, event: &Event) -> Result<(), Fault> {
        let bytes = line.bytes.clone()?;
        if self.ended {
            return Err(Fault::AfterEnd(self.line));
        }
        if event.seq != self.seq {
            return Err(Fault::Sequence {
                found: event.seq,
                expected: self.seq,
            });
        }
        if event.prev.ok_or(Fault::NoHash)? != self.head {
            return Err(Fault::Hash { before: self.line });
        }
        *self = Self {
            seq: self.seq.saturating_add(1),
            head: LineHash::of(bytes),
            line: line.number,
            ended: is_end(event),
        };
        Ok(())
    }
}

fn is_end(event: &Event) -> bool {
    event.kind == Kind::Job && event.message.as_deref() == Some(FINISHED)
}

/// Why a log is not known to be whole.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// It cannot be read.
    #[error("cannot read it: {0}")]
    Read(#[from] io::Error),
    /// The first line that is not right.
    #[error("line {line}: {fault}")]
    Line {
        /// Its number, from 1.
        line: u64,
        /// What is wrong with it.
        fault: Fault,
    },
}

/// Follows the chains of all jobs in a log, or of the one that is called `job`, and gives them with
/// the jobs' ids, in the order of their last lines. A change of a job's last line shows in no other:
/// for that, [`Chain::head`] is to be compared with one from elsewhere.
///
/// # Errors
///
/// [`VerifyError`]: the first line that is not right. Lines of other jobs than `job` may be wrong in
/// their chain, but have to be events: else nobody knows whose they are.
pub fn verify(
    reader: impl BufRead,
    job: Option<&str>,
) -> Result<Vec<(String, Chain)>, VerifyError> {
    let mut chains: HashMap<String, Chain> = HashMap::new();
    let mut lines = Lines::new(reader);
    while let Some(line) = lines.read()? {
        let followed = line.event().and_then(|event| {
            let id = &event.job.id;
            if job.is_some_and(|job| job != id) {
                return Ok(());
            }
            match chains.get_mut(id) {
                Some(chain) => chain.follow(&line, &event),
                None => chains.entry(id.clone()).or_default().follow(&line, &event),
            }
        });
        followed.map_err(|fault| VerifyError::Line {
            line: line.number,
            fault,
        })?;
    }
    let mut chains: Vec<_> = chains.into_iter().collect();
    chains.sort_by_key(|(_, chain)| chain.line);
    match chains.iter().find(|(_, chain)| !chain.ended) {
        Some((id, chain)) => Err(VerifyError::Line {
            line: chain.line,
            fault: Fault::NoEnd(id.clone()),
        }),
        None => Ok(chains),
    }
}

/// What a log says of one job.
#[derive(Debug, Serialize)]
pub struct History {
    /// Which job.
    #[serde(serialize_with = "event::name")]
    pub job: Arc<JobName>,
    /// When it began.
    #[serde(with = "event::rfc3339")]
    pub began: SystemTime,
    /// When it ended, if it did.
    #[serde(with = "event::rfc3339::option")]
    pub ended: Option<SystemTime>,
    /// What its record was in the end.
    #[serde(flatten)]
    pub summary: Summary,
}

/// Reads what a log says of every job in it, or of the one that is called `job`, in the order in
/// which they began. Lines that are no events are given to `bad`, with their numbers, and left out.
/// Nothing is verified.
///
/// # Errors
///
/// When the log cannot be read.
pub fn read(
    reader: impl BufRead,
    job: Option<&str>,
    mut bad: impl FnMut(u64, Fault),
) -> io::Result<Vec<History>> {
    let mut index: HashMap<String, usize> = HashMap::new();
    let mut jobs: Vec<(History, Ledger)> = Vec::new();
    let mut lines = Lines::new(reader);
    while let Some(line) = lines.read()? {
        let event = match line.event() {
            Ok(event) => event,
            Err(fault) => {
                bad(line.number, fault);
                continue;
            }
        };
        let id = &event.job.id;
        if job.is_some_and(|job| job != id) {
            continue;
        }
        let at = *index.entry(id.clone()).or_insert_with(|| {
            jobs.push((History::begin(&event), Ledger::default()));
            jobs.len() - 1
        });
        let Some((history, ledger)) = jobs.get_mut(at) else {
            continue;
        };
        if ledger.is_overfull() {
            bad(line.number, Fault::TooMany);
            continue;
        }
        if is_end(&event) {
            history.ended = Some(event.ts);
        }
        history.summary.state = event.state.clone();
        let job = Arc::clone(&history.job);
        ledger.replay(Event { job, ..event });
    }
    let whole = |(history, mut ledger): (History, Ledger)| {
        let summary = Summary {
            violations: ledger.violations(),
            tallies: ledger.take_tallies(),
            ..history.summary
        };
        History { summary, ..history }
    };
    Ok(jobs.into_iter().map(whole).collect())
}

impl History {
    /// Of a job whose first line tells of `event`.
    fn begin(event: &Event) -> Self {
        Self {
            job: Arc::clone(&event.job),
            began: event.ts,
            ended: None,
            summary: Summary {
                state: event.state.clone(),
                policy: event.policy.clone(),
                tallies: Vec::new(),
                violations: 0,
            },
        }
    }
}
