//! What was installed, and what was there before.
//!
//! Saved before anything is changed, so that an installation that was interrupted can be taken back,
//! or gone on with.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    runner::Runner,
    tree::{Content, Place, Tree, TreeError},
    unit,
    wanted::{RUNNERS, hook_of},
};

/// Where the record is. Root alone may read it: files that were there before may hold secrets.
pub(super) const RECORD: &str = "/var/lib/jobfence/install/record.json";

/// The agent's folder (`StateDirectory=` of its unit).
const STATE: &str = "/var/lib/jobfence";

/// The version of the record's form.
const VERSION: u32 = 1;

/// Why there is no record to go by.
#[derive(Debug, Error)]
pub(super) enum RecordError {
    /// It cannot be read or written.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// It says something else.
    #[error(
        "the record of what is installed, {RECORD}, cannot be understood: {0}. Use the jobfence that \
         wrote it"
    )]
    Invalid(#[from] serde_json::Error),
    /// It is of another version.
    #[error(
        "the record of what is installed, {RECORD}, has version {0}, and this program knows {VERSION}: \
         use the jobfence that wrote it"
    )]
    Version(u32),
}

/// The record of a host.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    /// The runners that jobfence is installed for.
    pub(super) runners: Vec<Runner>,
    /// Those that it is being taken back for: not all of what was there before is back.
    #[serde(default)]
    pub(super) leaving: Vec<Runner>,
    /// The files that were written.
    pub(super) files: BTreeMap<PathBuf, Entry>,
    /// The folders that were made, the outermost first.
    pub(super) folders: Vec<PathBuf>,
    /// Whether the agent's unit was enabled.
    pub(super) enabled: bool,
}

/// A file that was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Whose folder it is in.
    pub(super) place: Place,
    /// Whether it is of no use to anybody without jobfence.
    pub(super) is_ours: bool,
    /// What was there before.
    pub(super) original: Option<Content>,
    /// Of a file that has parts of others: what it says without those of jobfence.
    pub(super) base: Option<String>,
    /// What was written.
    pub(super) written: Option<Content>,
    /// What was about to be written; something else than `written` only after an interruption.
    pub(super) next: Option<Content>,
}

impl Entry {
    /// Whether nobody else has changed the file since.
    pub(super) fn is_untouched(&self, current: Option<&Content>) -> bool {
        current == self.original.as_ref()
            || current.is_some_and(|current| {
                [&self.written, &self.next]
                    .into_iter()
                    .any(|ours| ours.as_ref() == Some(current))
            })
    }

    /// Whether the whole file is of no use to anybody without jobfence, whatever others have made of it.
    pub(super) fn is_all_ours(&self, path: &Path) -> bool {
        let is_policy = path.starts_with(RUNNERS) && self.original.is_none();
        self.is_ours && self.base.is_none() || is_policy || hook_of(path).is_some()
    }

    /// What was written, or was about to be.
    pub(super) fn text(&self) -> String {
        let content = self.written.as_ref().or(self.next.as_ref());
        content.map_or_else(String::new, |content| content.text.clone())
    }
}

impl Default for Record {
    fn default() -> Self {
        Self {
            version: VERSION,
            runners: Vec::new(),
            leaving: Vec::new(),
            files: BTreeMap::new(),
            folders: Vec::new(),
            enabled: false,
        }
    }
}

impl Record {
    /// The record of `tree`; an empty one if nothing is installed.
    pub(super) fn load(tree: &Tree) -> Result<Self, RecordError> {
        let Some(content) = tree.read(Path::new(RECORD), Place::Host)? else {
            return Ok(Self::default());
        };
        let record: Self = serde_json::from_str(&content.text)?;
        match record.version {
            VERSION => Ok(record),
            version => Err(RecordError::Version(version)),
        }
    }

    /// Whose the folder of the file `path` is by now.
    pub(super) fn place_now(&self, tree: &Tree, path: &Path, entry: &Entry) -> Place {
        let all: Vec<_> = self.runners.iter().chain(&self.leaving).collect();
        Runner::place_now(tree, &all, path, entry.place)
    }

    /// Whether nothing is installed.
    pub(super) fn is_empty(&self) -> bool {
        self.runners.is_empty() && self.files.is_empty()
    }

    /// Saves it; one that says nothing is removed, with its folders that are empty.
    pub(super) fn save(&mut self, tree: &Tree) -> Result<(), RecordError> {
        let path = Path::new(RECORD);
        if self.is_empty() {
            tree.clean(path, Place::Host)?;
            tree.remove(path, Place::Host)?;
            // Made for the first record, which then was not written. The one around it is the agent's.
            if let Some(folder) = path.parent() {
                tree.remove_folder(folder)?;
            }
            self.remove_folders(tree);
            return Ok(());
        }
        let missing = tree.missing_folders(path);
        self.folders.extend_from_slice(&missing);
        for folder in &missing {
            // As the agent's own unit makes the outer one; other ones are the system's.
            let is_ours = folder.starts_with(STATE);
            tree.make_folder(folder, if is_ours { 0o700 } else { 0o755 })?;
        }
        let content = Content {
            text: serde_json::to_string_pretty(self)? + "\n",
            mode: 0o600,
            uid: 0,
            gid: 0,
        };
        Ok(tree.write(path, Place::Host, &content)?)
    }

    /// Removes those of the folders that were made that are empty, as far as that can be done.
    pub(super) fn remove_folders(&mut self, tree: &Tree) {
        let mut left = std::mem::take(&mut self.folders);
        // Mounted in an agent that runs, which could not write there any more.
        let is_mounted = unit::file(tree, unit::AGENT_UNIT).is_some();
        let stays = |folder: &Path| is_mounted && folder == Path::new(STATE);
        // The inner ones first.
        left.reverse();
        left.retain(|folder| stays(folder) || !tree.remove_folder(folder).unwrap_or(false));
        left.reverse();
        self.folders = left;
    }
}
