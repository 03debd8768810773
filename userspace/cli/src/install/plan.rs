//! From what is to be to what has to be changed for it.
//!
//! What each file is to say follows from what was there before jobfence and from the runners that it
//! is installed for now, and from nothing else. So a second installation changes nothing, taking one
//! runner away leaves what others need, and taking away the last one leaves what was there at first.

use std::{collections::BTreeSet, path::PathBuf};

use diffy::{DiffOptions, Line};
use thiserror::Error;

use super::{
    edit::{Edit, EditError},
    record::{Entry, Record, RecordError},
    tree::{Content, Place, Tree, TreeError},
};

/// A file that is to be there.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) path: PathBuf,
    pub(super) place: Place,
    pub(super) kind: Kind,
    /// What it says; of an edited file, what it says where there is none.
    pub(super) content: Content,
}

/// How a file is dealt with that is there already.
#[derive(Debug)]
pub(super) enum Kind {
    /// It is jobfence's: another one at its place is a conflict.
    Ours,
    /// It is jobfence's, and stands for the one that was there, which it calls.
    Wrapper,
    /// It is the administrator's as soon as it is there.
    First,
    /// It is the administrator's, and has these changes, with which jobfence works.
    Edited(Vec<Edit>),
    /// It is the administrator's, and had these changes once: what it says now is for nobody else to
    /// judge.
    Policy(Vec<Edit>),
}

/// A file that is about to change.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) path: PathBuf,
    pub(super) before: Option<Content>,
    pub(super) after: Option<Content>,
    /// What the record is to say of it, with [`Entry::next`] where it will be written.
    entry: Option<Entry>,
    place: Place,
}

/// What is to be said of a file that somebody else has changed since.
#[derive(Debug)]
pub(super) struct Note {
    pub(super) path: PathBuf,
    pub(super) text: String,
    /// What jobfence had written, and what it says now, where it stays like that.
    pub(super) changed: Option<(String, String)>,
    /// Whether it is a part of jobfence that should be gone.
    pub(super) is_rest: bool,
}

impl Note {
    fn kept(path: PathBuf, entry: &Entry, current: &Content) -> Self {
        Self {
            path,
            text: "was changed since, and stays like that; --replace brings it back".to_owned(),
            changed: Some((entry.text(), current.text.clone())),
            is_rest: false,
        }
    }
}

/// What has to be changed.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) notes: Vec<Note>,
    /// Folders that have to be made, the outermost first.
    folders: Vec<PathBuf>,
    /// Files that the record need not name any more.
    forget: Vec<PathBuf>,
}

/// Why nothing is changed.
#[derive(Debug, Error)]
pub(super) enum PlanError {
    /// A file cannot be looked at or changed.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A file of somebody else cannot be changed.
    #[error("cannot change {path}: {source}")]
    Edit {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: EditError,
    },
    /// A file is where jobfence has one.
    #[error(
        "{0} is there already, and not from jobfence: move it away, or let it be replaced with \
         --replace (`jobfence uninstall` brings it back)"
    )]
    Conflict(PathBuf),
    /// What was written there was changed at the same lines by somebody else.
    #[error(
        "{0} was changed since at the lines that jobfence had written: take these changes back, or let \
         them be replaced with --replace"
    )]
    Merge(PathBuf),
}

impl Plan {
    /// What has to be changed so that all of `wanted` is there, and nothing else that the record
    /// knows. `force` is to replace what somebody else has made or changed.
    pub(super) fn new(
        tree: &Tree,
        record: &Record,
        wanted: Vec<Wanted>,
        force: bool,
    ) -> Result<Self, PlanError> {
        let mut plan = Self::default();
        let paths: BTreeSet<_> = wanted.iter().map(|file| file.path.clone()).collect();
        for file in wanted {
            plan.put(tree, record, file, force)?;
        }
        // What refers to others goes before them: units before the policies that they name.
        for (path, entry) in record.files.iter().rev() {
            if !paths.contains(path) {
                plan.take_back(tree, path.clone(), entry, force);
            }
        }
        // What calls another file goes back to what it was before that one is gone.
        plan.steps.sort_by_key(|step| step.after.is_none());
        for step in plan.steps.iter().filter(|step| step.after.is_some()) {
            for folder in tree.missing_folders(&step.path) {
                if !plan.folders.contains(&folder) {
                    plan.folders.push(folder);
                }
            }
        }
        Ok(plan)
    }

    fn put(
        &mut self,
        tree: &Tree,
        record: &Record,
        file: Wanted,
        force: bool,
    ) -> Result<(), PlanError> {
        let Wanted {
            path,
            place,
            kind,
            content,
        } = file;
        let current = tree.read(&path, place)?;
        let known = record.files.get(&path);
        let is_untouched = known.is_some_and(|entry| entry.is_untouched(current.as_ref()));
        let mut original = match known {
            Some(entry) => entry.original.clone(),
            None => current.clone(),
        };
        // Of an edited file, what it would say without jobfence is known, and comes back.
        let is_ours = !matches!(kind, Kind::First | Kind::Policy(_));
        let (after, base) = match kind {
            Kind::First if current.is_some() => return Ok(()),
            Kind::First => (content, None),
            Kind::Wrapper if known.is_none() => (content, None),
            Kind::Ours | Kind::Wrapper => {
                let is_same = current.as_ref() == Some(&content);
                if let (Some(current), false, false, false) =
                    (&current, is_same, is_untouched, force)
                {
                    let Some(entry) = known else {
                        return Err(PlanError::Conflict(path));
                    };
                    self.notes.push(Note::kept(path, entry, current));
                    return Ok(());
                }
                (content, None)
            }
            Kind::Edited(edits) | Kind::Policy(edits) => {
                let edited = |text: &str| {
                    edits
                        .iter()
                        .try_fold(text.to_owned(), |text, edit| edit.apply(&text))
                        .map_err(|source| PlanError::Edit {
                            path: path.clone(),
                            source,
                        })
                };
                if let (Some(entry), Some(current), false, false) =
                    (known, &current, is_untouched, force)
                    && let Some(base) = &entry.base
                    && edited(base)? == entry.text()
                {
                    // Others have changed it since, and there is nothing new to be put into it.
                    if is_ours && edited(&current.text)? != current.text {
                        self.notes.push(Note::kept(path.clone(), entry, current));
                    }
                    return Ok(());
                }
                let base = match (known, &current) {
                    (None, Some(current)) => current.text.clone(),
                    (None, None) => content.text.clone(),
                    (Some(entry), current) => match revert(entry, current.as_ref(), is_untouched) {
                        Some(base) => base,
                        None if force => entry.base.clone().unwrap_or_default(),
                        None => return Err(PlanError::Merge(path)),
                    },
                };
                let text = edited(&base)?;
                if known.is_some() && current.is_some() && !is_untouched {
                    // What others have made of it since is what is to be there in the end.
                    let text = base.clone();
                    original = current.clone().map(|current| Content { text, ..current });
                }
                let after = match &current {
                    Some(current) => Content {
                        text,
                        ..current.clone()
                    },
                    None => Content { text, ..content },
                };
                (after, Some(base))
            }
        };
        let entry = Entry {
            place,
            original,
            base,
            is_ours,
            written: known.and_then(|entry| entry.written.clone()),
            next: Some(after.clone()),
        };
        let after = Some(after);
        if current != after {
            self.steps.push(Step {
                path,
                before: current,
                after,
                entry: Some(entry),
                place,
            });
        }
        Ok(())
    }

    fn take_back(&mut self, tree: &Tree, path: PathBuf, entry: &Entry, force: bool) {
        let current = match tree.read(&path, entry.place) {
            Ok(current) => current,
            // The runner's user is not to keep what is elsewhere from being taken back.
            Err(error) => {
                self.notes.push(Note {
                    path,
                    text: format!("stays as it is: {error}"),
                    changed: None,
                    is_rest: true,
                });
                return;
            }
        };
        let is_untouched = entry.is_untouched(current.as_ref());
        let after = if is_untouched || force {
            entry.original.clone()
        } else if let Some(content) = current.clone() {
            let Some(text) = revert(entry, current.as_ref(), false) else {
                let text = if entry.is_ours {
                    "was changed since, and stays; --force takes it back"
                } else {
                    "was changed since: it is yours, and stays"
                };
                if !entry.is_ours {
                    self.forget.push(path.clone());
                }
                self.notes.push(Note {
                    path,
                    text: text.to_owned(),
                    changed: Some((entry.text(), content.text)),
                    is_rest: entry.is_ours,
                });
                return;
            };
            let said = if text == content.text {
                "was changed since: it is yours, and stays"
            } else {
                "was changed since: only what jobfence had written is taken out"
            };
            self.notes.push(Note {
                path: path.clone(),
                text: said.to_owned(),
                changed: None,
                is_rest: false,
            });
            Some(Content { text, ..content })
        } else {
            self.notes.push(Note {
                path: path.clone(),
                text: "was removed since, and stays so".to_owned(),
                changed: None,
                is_rest: false,
            });
            None
        };
        if current == after {
            self.forget.push(path);
        } else {
            self.steps.push(Step {
                path,
                before: current,
                after,
                entry: None,
                place: entry.place,
            });
        }
    }

    /// Does it, and keeps `record` of it.
    pub(super) fn apply(self, tree: &Tree, record: &mut Record) -> Result<(), PlanError> {
        for step in &self.steps {
            if let Some(entry) = &step.entry {
                record.files.insert(step.path.clone(), entry.clone());
            }
        }
        record.folders.extend_from_slice(&self.folders);
        record.save(tree)?;
        for folder in &self.folders {
            tree.make_folder(folder, 0o755)?;
        }
        for step in &self.steps {
            match &step.after {
                Some(content) => tree.write(&step.path, step.place, content)?,
                None => tree.remove(&step.path, step.place)?,
            }
        }
        for (path, entry) in &record.files {
            // Of what cannot be looked at, there is a note.
            _ = tree.clean(path, entry.place);
        }
        for step in self.steps {
            match (step.entry, record.files.get_mut(&step.path)) {
                (Some(_), Some(entry)) => entry.written = entry.next.take(),
                _ => _ = record.files.remove(&step.path),
            }
        }
        for path in &self.forget {
            record.files.remove(path);
        }
        record.remove_folders(tree)?;
        Ok(record.save(tree)?)
    }
}

/// What a file says without what jobfence has written; `None` if others have changed that, or it is
/// not known.
fn revert(entry: &Entry, current: Option<&Content>, is_untouched: bool) -> Option<String> {
    let base = entry.base.as_ref()?;
    match current {
        Some(current) if !is_untouched => {
            let merged = diffy::merge(&entry.text(), base, &current.text).ok();
            merged.or_else(|| take_out(base, &entry.text(), &current.text))
        }
        _ => Some(base.clone()),
    }
}

/// `current` without the lines that `written` has and `base` has not, wherever they stand in it by now;
/// `None` unless each group of them is there just once. For what a merge takes for a conflict: lines
/// that were added right behind ours.
fn take_out(base: &str, written: &str, current: &str) -> Option<String> {
    let patch = DiffOptions::new()
        .set_context_len(0)
        .create_patch(base, written);
    let mut lines: Vec<&str> = current.split_inclusive('\n').collect();
    for hunk in patch.hunks() {
        let (mut old, mut new) = (Vec::new(), Vec::new());
        for line in hunk.lines() {
            match line {
                Line::Delete(line) => old.push(*line),
                Line::Insert(line) => new.push(*line),
                Line::Context(_) => return None,
            }
        }
        if new.is_empty() {
            return None;
        }
        let mut places = (0..lines.len()).filter(|&at| lines[at..].starts_with(&new));
        let (at, None) = (places.next()?, places.next()) else {
            return None;
        };
        // What is further in may belong to what goes.
        let next = lines.get(at + new.len()).copied().unwrap_or_default();
        if next.starts_with([' ', '\t', '-']) {
            return None;
        }
        lines.splice(at..at + new.len(), old);
    }
    Some(lines.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_lines_are_taken_out_wherever_they_stand_by_now() {
        let (base, written) = ("a: 1\nl: [x]\n", "a: 1\nl: [x, y]\ng:\n  - y\n");
        for (current, without) in [
            (
                "a: 1\nl: [x, y]\ng:\n  - y\nb: 2\n",
                Some("a: 1\nl: [x]\nb: 2\n"),
            ),
            (
                "c: 3\nl: [x, y]\ng:\n  - y\na: 1\n",
                Some("c: 3\nl: [x]\na: 1\n"),
            ),
            // Theirs would be left without its key.
            ("a: 1\nl: [x, y]\ng:\n  - y\n  - z\n", None),
            ("a: 1\nl: [x, y, z]\ng:\n  - y\n", None),
            ("l: [x, y]\ng:\n  - y\nl: [x, y]\ng:\n  - y\n", None),
        ] {
            assert_eq!(
                take_out(base, written, current).as_deref(),
                without,
                "{current}"
            );
        }
    }
}
