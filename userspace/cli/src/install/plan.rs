//! From what is to be to what has to be changed for it.
//!
//! What each file is to say follows from what was there before jobfence and from the runners that it
//! is installed for now, and from nothing else. So a second installation changes nothing, taking one
//! runner away leaves what others need, and taking away the last one leaves what was there at first.

use std::{
    collections::BTreeSet,
    error::Error,
    path::{Path, PathBuf},
};

use diffy::{DiffOptions, Line};
use thiserror::Error as ThisError;

use super::{
    edit::{self, Edit, EditError},
    record::{Entry, Record, RecordError},
    runner::{GITLAB_CONFIG, Runner},
    tree::{Content, Place, Tree, TreeError},
    wanted::{GITHUB_HOOKS, hook_of, moved},
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
    /// It is what was at the place of a wrapper, and is the administrator's.
    Moved,
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
    /// What jobfence had written, and what others have made of it.
    pub(super) changed: Option<(String, String)>,
    /// Whose folder it is in, if it is a part of jobfence that should be gone.
    pub(super) rest: Option<Place>,
}

impl Note {
    fn kept(path: PathBuf, entry: &Entry, current: &Content) -> Self {
        Self {
            path,
            text: "was changed since, and stays like that; --replace brings it back".to_owned(),
            changed: Some((entry.text(), current.text.clone())),
            rest: None,
        }
    }

    /// Whether something stays that other files are needed for. A runner's user is not to keep by that
    /// what is root's.
    pub(super) fn keeps(&self) -> bool {
        self.rest == Some(Place::Host)
    }

    /// Whether it keeps what `runner` needs.
    pub(super) fn keeps_of(&self, runner: &Runner, all: &[Runner]) -> bool {
        // What none has alone, each has.
        let is_shared = || !all.iter().any(|other| other.has(&self.path));
        self.keeps() && (runner.has(&self.path) || is_shared())
    }
}

/// What has to be changed.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Whether what cannot be done is left, and the rest done.
    goes_on: bool,
    pub(super) steps: Vec<Step>,
    pub(super) notes: Vec<Note>,
    /// Folders that have to be made, the outermost first.
    folders: Vec<PathBuf>,
    /// Files that the record need not name any more.
    forget: Vec<PathBuf>,
    /// What the record is to say of files that are as they are to be.
    renewed: Vec<(PathBuf, Entry)>,
}

/// Why nothing is changed.
#[derive(Debug, ThisError)]
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
    /// Whether all is as it is to be.
    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.renewed.is_empty()
    }

    /// What has to be changed so that all of `wanted` is there, and nothing else that the record
    /// knows. `replace` is to replace what somebody else has made or changed.
    pub(super) fn install(
        tree: &Tree,
        record: &Record,
        wanted: Vec<Wanted>,
        replace: bool,
    ) -> Result<Self, PlanError> {
        Self::new(tree, record, wanted, replace, false)
    }

    /// The same, to take back what is not wanted any more. What stands in the way of one file keeps
    /// no other from being taken back: there is a note.
    pub(super) fn uninstall(
        tree: &Tree,
        record: &Record,
        wanted: Vec<Wanted>,
        force: bool,
    ) -> Result<Self, PlanError> {
        Self::new(tree, record, wanted, force, true)
    }

    fn new(
        tree: &Tree,
        record: &Record,
        wanted: Vec<Wanted>,
        force: bool,
        goes_on: bool,
    ) -> Result<Self, PlanError> {
        let mut plan = Self {
            goes_on,
            ..Self::default()
        };
        let paths: BTreeSet<_> = wanted.iter().map(|file| file.path.clone()).collect();
        for file in wanted {
            let (path, place) = (file.path.clone(), file.place);
            match plan.put(tree, record, file, force) {
                // What a runner that stays has of its own is no part of one that goes.
                Err(error) if goes_on => {
                    let rest = (place == Place::Host).then_some(place);
                    plan.note(path, stays(&error), rest);
                }
                put => put?,
            }
        }
        // What refers to others goes before them: units before the policies that they name.
        for (path, entry) in record.files.iter().rev() {
            if !paths.contains(path) {
                plan.take_back(tree, record, path.clone(), entry, force);
            }
        }
        // A hook that was moved away is called as long as the wrapper is there.
        let rests = plan.notes.iter().filter(|note| note.rest.is_some());
        let rests: BTreeSet<_> = rests.map(|note| note.path.clone()).collect();
        plan.steps.retain(|step| {
            let hook = hook_of(&step.path).filter(|_| step.after.is_none());
            hook.is_none_or(|hook| !rests.contains(&hook))
        });
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
        let is_ours = !matches!(kind, Kind::First | Kind::Moved | Kind::Policy(_));
        let (after, base) = match kind {
            Kind::First if current.is_some() => return Ok(()),
            Kind::Moved if known.is_some() && current.is_some() => {
                if let Some(entry) = known.filter(|entry| entry.place != place) {
                    let entry = entry.clone();
                    self.renewed.push((path, Entry { place, ..entry }));
                }
                return Ok(());
            }
            Kind::First => (content, None),
            Kind::Wrapper if known.is_none() => (content, None),
            Kind::Ours | Kind::Wrapper | Kind::Moved => {
                let is_same = current.as_ref().is_some_and(|current| {
                    // Whose it is and who may do what with it is put right.
                    *current == content || known.is_some_and(|entry| current.text == entry.text())
                });
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
                if let (Some(entry), Some(current), false) = (known, &current, is_untouched)
                    && let Some(base) = &entry.base
                    && edited(base).is_ok_and(|text| text == entry.text())
                {
                    // Others have changed it since, and there is nothing new to be put into it.
                    let is_whole = edited(&current.text)? == current.text;
                    if is_ours && !is_whole && !force {
                        self.notes.push(Note::kept(path.clone(), entry, current));
                    }
                    if is_whole || !force {
                        return Ok(());
                    }
                }
                let base = match (known, &current) {
                    (None, Some(current)) => current.text.clone(),
                    (None, None) => content.text.clone(),
                    (Some(entry), current) => {
                        match revert(&path, entry, current.as_ref(), is_untouched) {
                            Some(base) => base,
                            None if force && has_copy(&path) => {
                                entry.base.clone().unwrap_or_default()
                            }
                            None => return Err(PlanError::Merge(path)),
                        }
                    }
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
        } else if known.is_some_and(|known| known.place != place || known.written != after) {
            let (written, next) = (after, None);
            let entry = Entry {
                written,
                next,
                ..entry
            };
            self.renewed.push((path, entry));
        }
        Ok(())
    }

    fn note(&mut self, path: PathBuf, text: impl Into<String>, rest: Option<Place>) {
        self.notes.push(Note {
            path,
            text: text.into(),
            changed: None,
            rest,
        });
    }

    fn take_back(
        &mut self,
        tree: &Tree,
        record: &Record,
        path: PathBuf,
        entry: &Entry,
        force: bool,
    ) {
        let place = record.place_now(tree, &path, entry);
        let current = match tree.read(&path, place) {
            Ok(current) => current,
            // The runner's user is not to keep what is elsewhere from being taken back.
            Err(error) => return self.note(path, stays(&error), Some(place)),
        };
        let is_untouched = entry.is_untouched(current.as_ref());
        let original = original(tree, record, &path, entry);
        let after = if is_untouched {
            original
        } else if entry.is_all_ours(&path) && (self.goes_on || entry.is_ours) {
            if let Some(current) = current.as_ref().filter(|now| now.text != entry.text()) {
                let is_moved = hook_of(&path).is_some();
                self.notes.push(Note {
                    path: path.clone(),
                    text: if is_moved {
                        "was changed since, and comes back like that".to_owned()
                    } else {
                        "was changed since, and goes with its runner; the changes were:".to_owned()
                    },
                    changed: (!is_moved).then(|| (entry.text(), current.text.clone())),
                    rest: None,
                });
            }
            original
        } else if let Some(content) = current.clone() {
            match revert(&path, entry, current.as_ref(), false) {
                // Nothing of anybody else is in it.
                Some(text) if original.is_none() && entry.base.as_ref() == Some(&text) => None,
                Some(text) => {
                    let said = if text == content.text {
                        "was changed since: it is yours, and stays"
                    } else {
                        "was changed since: only what jobfence had written is taken out"
                    };
                    self.note(path.clone(), said, None);
                    Some(Content { text, ..content })
                }
                None if force && entry.is_ours && has_copy(&path) => original,
                None if !has_copy(&path) => {
                    let text =
                        "cannot be understood, and stays, and so does all that it needs: mend it";
                    return self.note(path, text, Some(place));
                }
                None => {
                    if !entry.is_ours {
                        self.forget.push(path.clone());
                    }
                    let text = if entry.is_ours {
                        "was changed since where jobfence had written: it stays, and so does all that it \
                         needs"
                    } else {
                        "was changed since: it is yours, and stays"
                    };
                    self.notes.push(Note {
                        path,
                        text: text.to_owned(),
                        changed: Some((entry.text(), content.text)),
                        rest: entry.is_ours.then_some(place),
                    });
                    return;
                }
            }
        } else {
            self.note(path.clone(), "was removed since, and stays so", None);
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
                place,
            });
        }
    }

    /// Does it, with a record of it before. What is done then, `record` knows; the caller saves it.
    ///
    /// Returns what could not be taken back, and why.
    pub(super) fn apply(
        self,
        tree: &Tree,
        record: &mut Record,
    ) -> Result<Vec<(PathBuf, String)>, PlanError> {
        for step in &self.steps {
            if let Some(entry) = &step.entry {
                record.files.insert(step.path.clone(), entry.clone());
            }
        }
        record.files.extend(self.renewed);
        record.folders.extend_from_slice(&self.folders);
        record.save(tree)?;
        for folder in &self.folders {
            match tree.make_folder(folder, 0o755) {
                // Nor can the file in it be written then.
                Err(_) if self.goes_on => {}
                made => made?,
            }
        }
        let (mut done, mut failed): (Vec<Step>, Vec<(PathBuf, String)>) = (Vec::new(), Vec::new());
        // What stays may need what comes after it.
        let mut needing = None;
        for step in self.steps {
            let hook = hook_of(&step.path);
            let hook = hook.filter(|hook| failed.iter().any(|(path, _)| path == hook));
            let needing_it = hook.or_else(|| needing.clone().filter(|_| step.place == Place::Host));
            if let Some(path) = needing_it {
                failed.push((step.path, format!("{} may need it", path.display())));
                continue;
            }
            let changed = match &step.after {
                Some(content) => tree.write(&step.path, step.place, content),
                None => tree.remove(&step.path, step.place),
            };
            match changed {
                Ok(()) => done.push(step),
                Err(error) if self.goes_on => {
                    if step.place == Place::Host {
                        needing = Some(step.path.clone());
                    }
                    failed.push((step.path, error.to_string()));
                }
                Err(error) => return Err(error.into()),
            }
        }
        for (path, entry) in &record.files {
            // Of what cannot be looked at, there is a note.
            _ = tree.clean(path, entry.place);
        }
        for step in done {
            match (step.entry, record.files.get_mut(&step.path)) {
                (Some(_), Some(entry)) => entry.written = entry.next.take(),
                _ => _ = record.files.remove(&step.path),
            }
        }
        for path in &self.forget {
            record.files.remove(path);
        }
        record.remove_folders(tree);
        Ok(failed)
    }
}

/// Whether a file as it was at first is good for something. GitLab Runner goes on writing its own.
fn has_copy(path: &Path) -> bool {
    path != Path::new(GITLAB_CONFIG)
}

/// What is said of a file that nothing can be done with.
fn stays(error: &dyn Error) -> String {
    format!("stays as it is: {error}")
}

/// What was at `path` before jobfence. A hook that was moved away may have been changed there.
fn original(tree: &Tree, record: &Record, path: &Path, entry: &Entry) -> Option<Content> {
    let mut content = entry.original.clone()?;
    let moved = moved(path);
    if let Some(entry) = record.files.get(&moved)
        && let Ok(Some(now)) = tree.read(&moved, record.place_now(tree, &moved, entry))
    {
        content.text = now.text;
    }
    Some(content)
}

/// What a file says without what jobfence has written; `None` if others have changed that, or it is
/// not known.
fn revert(
    path: &Path,
    entry: &Entry,
    current: Option<&Content>,
    is_untouched: bool,
) -> Option<String> {
    let base = entry.base.as_ref()?;
    let Some(current) = current.filter(|_| !is_untouched) else {
        return Some(base.clone());
    };
    let written = entry.text();
    if path == Path::new(GITLAB_CONFIG) {
        return edit::without_executors(base, &written, &current.text).ok();
    }
    if path.file_name().is_some_and(|name| name == ".env") {
        return Some(edit::without_variables(base, &current.text, &GITHUB_HOOKS));
    }
    let merged = diffy::merge(&written, base, &current.text).ok();
    merged.or_else(|| take_out(base, &written, &current.text))
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
