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
};

/// Where the record is. Root alone may read it: files that were there before may hold secrets.
pub(super) const RECORD: &str = "/var/lib/jobfence/install/record.json";

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
            self.remove_folders(tree)?;
            // Made for the first record, which then was not written.
            for folder in path.ancestors().skip(1).take(2) {
                tree.remove_folder(folder)?;
            }
            return Ok(());
        }
        let missing = tree.missing_folders(path);
        self.folders.extend_from_slice(&missing);
        for folder in &missing {
            // As the agent's own unit makes the outer one; other ones are the system's.
            let is_ours = folder.starts_with("/var/lib/jobfence");
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

    /// Removes those of the folders that were made that are empty.
    pub(super) fn remove_folders(&mut self, tree: &Tree) -> Result<(), RecordError> {
        for folder in std::mem::take(&mut self.folders).into_iter().rev() {
            if !tree.remove_folder(&folder)? {
                self.folders.insert(0, folder);
            }
        }
        Ok(())
    }
}
