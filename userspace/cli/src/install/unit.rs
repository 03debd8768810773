//! systemd's units, as far as it takes to know who runs a service, and what its environment says.
//!
//! systemd itself is not asked: of an image there is none, and of a running one the answer would be
//! that of before the next `daemon-reload`. Read as in systemd.unit(5) and systemd.exec(5).

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::{edit, tree::Tree};

/// Folders of units, the first with a unit counts.
const FOLDERS: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// Where units that an administrator makes or changes are.
pub(super) const ETC_UNITS: &str = "/etc/systemd/system";

/// The unit of the agent.
pub(super) const AGENT_UNIT: &str = "jobfence-agent.service";

/// Name of jobfence's file among the drop-ins of a service.
const DROP_IN: &str = "jobfence.conf";

/// Who sees to it that a variable of a service is not what it has to be.
#[derive(Debug, PartialEq, Eq, Error)]
pub(super) enum Contrary {
    /// Another file of the unit.
    #[error("{0} sets {1}: take it out there")]
    Sets(PathBuf, String),
    /// A file that one of the unit names, which goes before all that stands in the unit.
    #[error(
        "{file} sets {name}: take it out there. As an EnvironmentFile= of {by} it goes before every \
         Environment="
    )]
    File {
        /// The file.
        file: PathBuf,
        /// The variable.
        name: String,
        /// Who names it.
        by: PathBuf,
    },
    /// A file of the unit begins anew, behind jobfence's.
    #[error(
        "the empty Environment= of {0} takes away what {DROP_IN} sets: give that file a name that \
         comes before"
    )]
    Resets(PathBuf),
    /// A file of the unit takes it away, whoever sets it.
    #[error("{0} takes {1} away with UnsetEnvironment=: take it out there")]
    Unsets(PathBuf, String),
}

/// Where jobfence's drop-in of a unit is.
pub(super) fn drop_in(unit: &str) -> PathBuf {
    Path::new(ETC_UNITS).join(format!("{unit}.d")).join(DROP_IN)
}

/// The services whose names begin with `prefix`.
pub(super) fn named(tree: &Tree, prefix: &str) -> BTreeSet<String> {
    let names = FOLDERS
        .iter()
        .flat_map(|folder| tree.names(Path::new(folder)));
    let is_meant = |name: &String| name.starts_with(prefix) && name.ends_with(".service");
    names.filter(is_meant).collect()
}

/// The main file of a unit.
pub(super) fn file(tree: &Tree, unit: &str) -> Option<PathBuf> {
    [Some(unit.to_owned()), template(unit)]
        .into_iter()
        .flatten()
        .flat_map(|name| FOLDERS.map(|folder| Path::new(folder).join(&name)))
        .find(|path| tree.exists(path))
}

/// Who runs a unit.
pub(super) fn user(tree: &Tree, unit: &str) -> String {
    let user = last(tree, unit, "User").filter(|user| !user.is_empty());
    user.unwrap_or_else(|| "root".to_owned())
}

/// What the option `--name` of the command of a unit says.
pub(super) fn option(tree: &Tree, unit: &str, name: &str) -> Option<String> {
    let command = last(tree, unit, "ExecStart")?;
    let mut words = words(&command).skip_while(|word| {
        let option = word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
        let option = option.map(|option| option.split('=').next().unwrap_or(option));
        option != Some(name)
    });
    match words.next()?.split_once('=') {
        Some((_, value)) => Some(value.to_owned()),
        None => words.next().map(str::to_owned),
    }
}

/// What a unit says last for `key`.
fn last(tree: &Tree, unit: &str, key: &str) -> Option<String> {
    let files = settings(tree, unit).into_iter();
    let mut settings = files.flat_map(|(_, settings)| settings).rev();
    let (_, value) = settings.find(|(said, _)| said == key)?;
    Some(value)
}

/// Who sets the variable `name` of a unit to something else than `wanted`. With `in_drop_in`, it is
/// jobfence's drop-in that says `wanted`, and who keeps it from that counts as well.
pub(super) fn contrary(
    tree: &Tree,
    unit: &str,
    (name, wanted): (&str, &str),
    in_drop_in: bool,
) -> Option<Contrary> {
    // One of a folder may end with a slash.
    let is_other = |said: &str| Path::new(said) != Path::new(wanted);
    let (mut in_unit, mut unset, mut files) = (None, None, Vec::new());
    for (path, settings) in settings(tree, unit) {
        let file = path.file_name().unwrap_or_default();
        if file == DROP_IN {
            continue;
        }
        let is_later = path.extension().is_some_and(|kind| kind == "conf") && *file > *DROP_IN;
        for (key, value) in settings {
            let said = words(&value).filter_map(|word| word.strip_prefix(name));
            let said = said.filter(|rest| rest.is_empty() || rest.starts_with('='));
            let said = said.last();
            match (key.as_str(), value.as_str()) {
                ("Environment", "") => {
                    in_unit = (in_drop_in && is_later).then(|| Contrary::Resets(path.clone()));
                }
                ("Environment", _) => {
                    if let Some(said) = said.and_then(|said| said.strip_prefix('=')) {
                        in_unit =
                            is_other(said).then(|| Contrary::Sets(path.clone(), name.to_owned()));
                    }
                }
                ("EnvironmentFile", "") => files.clear(),
                ("EnvironmentFile", _) => files.push((value, path.clone())),
                ("UnsetEnvironment", "") => unset = None,
                ("UnsetEnvironment", _) => {
                    let is_meant = said.is_some_and(|rest| {
                        rest.is_empty() || rest.strip_prefix('=') == Some(wanted)
                    });
                    if in_drop_in && is_meant {
                        unset = Some(Contrary::Unsets(path.clone(), name.to_owned()));
                    }
                }
                _ => {}
            }
        }
    }
    let mut found = in_unit;
    for (pattern, by) in files {
        for file in environment_files(tree, unit, &pattern) {
            let text = tree.peek(&file).unwrap_or_default();
            if let Some(said) = edit::variables(&text, name).last() {
                let is_other = is_other(said.trim().trim_matches(['"', '\'']));
                found = is_other.then(|| Contrary::File {
                    file,
                    name: name.to_owned(),
                    by: by.clone(),
                });
            }
        }
    }
    unset.or(found)
}

/// The template that an instance is made of: `a@.service` of `a@b.service`.
fn template(unit: &str) -> Option<String> {
    let (name, rest) = unit.split_once('@')?;
    Some(format!("{name}@.{}", rest.rsplit_once('.')?.1))
}

/// The files that make up a unit, each with what it sets, in their order: the main one, and drop-ins by
/// their names, in whichever folder they are.
fn settings(tree: &Tree, unit: &str) -> Vec<(PathBuf, Vec<(String, String)>)> {
    // Its own, those of its template, and those that it shares with others.
    let mut names = vec![unit.to_owned()];
    names.extend(template(unit));
    let name = unit.trim_end_matches(".service");
    let name = name.split('@').next().unwrap_or(name);
    for (dash, _) in name.rmatch_indices('-') {
        names.push(format!("{}.service", &name[..=dash]));
    }
    names.push("service".to_owned());

    let mut drop_ins = BTreeMap::new();
    for folder in FOLDERS {
        for name in &names {
            let folder = Path::new(folder).join(format!("{name}.d"));
            for file in tree.names(&folder) {
                if file.ends_with(".conf") {
                    // Of those with the same name, the first.
                    let path = folder.join(&file);
                    drop_ins.entry(file).or_insert(path);
                }
            }
        }
    }
    let files = file(tree, unit).into_iter().chain(drop_ins.into_values());
    files
        .map(|path| {
            let text = tree.peek(&path).unwrap_or_default();
            (path, parse(&text))
        })
        .collect()
}

/// What a unit's file sets, a line each, in its order.
fn parse(text: &str) -> Vec<(String, String)> {
    let mut settings = Vec::new();
    let mut whole = String::new();
    for line in text.lines().map(str::trim) {
        // Also between the parts of a line that goes on.
        if line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(part) = line.strip_suffix('\\') {
            whole = whole + part + " ";
            continue;
        }
        whole += line;
        if let Some((key, value)) = whole.split_once('=') {
            settings.push((key.trim().to_owned(), value.trim().to_owned()));
        }
        whole.clear();
    }
    settings
}

/// The words of a value. A quoted one with spaces in it is taken for several.
fn words(value: &str) -> impl Iterator<Item = &str> {
    let words = value.split([' ', '\t', '"', '\'']);
    words.filter(|word| !word.is_empty())
}

/// The files that an `EnvironmentFile=` names.
fn environment_files(tree: &Tree, unit: &str, pattern: &str) -> Vec<PathBuf> {
    let name = unit.trim_end_matches(".service");
    let (prefix, instance) = name.split_once('@').unwrap_or((name, ""));
    let mut path = pattern.trim_start_matches('-').to_owned();
    for (specifier, text) in [
        ("%n", unit),
        ("%N", name),
        ("%p", prefix),
        ("%i", instance),
        ("%I", instance),
    ] {
        path = path.replace(specifier, text);
    }
    let Some((folder, file)) = path.rsplit_once('/') else {
        return Vec::new();
    };
    const WILD: [char; 3] = ['*', '?', '['];
    let (Some(from), Some(to)) = (file.find(WILD), file.rfind(['*', '?', ']'])) else {
        return vec![path.into()];
    };
    // What is between the first and the last special character may be anything.
    let mut names = tree.names(Path::new(folder));
    names.retain(|name| name.starts_with(&file[..from]) && name.ends_with(&file[to + 1..]));
    let paths = names.iter().map(|name| Path::new(folder).join(name));
    paths.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_go_on_and_comments_do_not_count() {
        let text = "[Service]\n# User=a\nEnvironment=A=1 \\\n; and\n  \"B=2 3\"\n User = ci \nX=\n";
        let said: Vec<_> = parse(text);
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(
            said,
            [
                pair("Environment", "A=1  \"B=2 3\""),
                pair("User", "ci"),
                pair("X", "")
            ]
        );
    }
}
