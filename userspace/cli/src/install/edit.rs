//! Changes to files that are somebody else's: as small as can be, with every comment kept.
//!
//! YAML is changed as text, and then read to see that it says what it said before and the one thing
//! more. What cannot be changed like that is refused, with the lines to add by hand.

use serde_yaml::{Mapping, Value};
use thiserror::Error;
use toml_edit::{Array, DocumentMut, Item, Table, value};

/// Why a file was not changed.
#[derive(Debug, Error)]
pub(super) enum EditError {
    /// It is no YAML.
    #[error("it is no YAML: {0}")]
    Yaml(#[from] serde_yaml::Error),
    /// It is no TOML.
    #[error("it is no TOML: {0}")]
    Toml(#[from] toml_edit::TomlError),
    /// It is written in a way that is not understood.
    #[error("it cannot be changed without a risk to what else it says. Add this to it:\n{0}")]
    ByHand(String),
    /// It has no such runner.
    #[error(
        "it has no runner with the name {0:?}: give `--name` the `name` of a [[runners]] section"
    )]
    NoRunner(String),
}

/// A change.
#[derive(Clone, Debug)]
pub(super) enum Edit {
    /// A key at the top of a YAML file has this value, unless it has another one.
    Key(&'static str, String),
    /// The list at these keys of a YAML file has this item, which stands for itself in YAML.
    Item(&'static [&'static str], String),
    /// A variable of a file with one in each line, as in `NAME=value`.
    Variable(&'static str, String),
    /// A runner of GitLab's config.toml has jobfence, the program at this path, as its executor.
    Executor {
        /// The runner's name.
        runner: String,
        /// The program.
        program: String,
        /// What it is called with, after the stage.
        arguments: Vec<String>,
        /// Folder for builds and caches, where the runner has none.
        home: Option<String>,
    },
}

impl Edit {
    /// `text` with the change.
    pub(super) fn apply(&self, text: &str) -> Result<String, EditError> {
        match self {
            Self::Key(key, value) => add_key(text, key, value),
            Self::Item(keys, item) => add_item(text, keys, item),
            Self::Variable(name, value) => Ok(set_variable(text, name, value)),
            Self::Executor {
                runner,
                program,
                arguments,
                home,
            } => set_executor(text, runner, program, arguments, home.as_deref()),
        }
    }
}

/// What a YAML file says; nothing is an empty mapping.
fn read(text: &str) -> Result<Value, EditError> {
    Ok(match serde_yaml::from_str(text)? {
        Value::Null => Value::Mapping(Mapping::new()),
        value => value,
    })
}

fn add_key(text: &str, key: &str, value: &str) -> Result<String, EditError> {
    let before = read(text)?;
    if before.get(key).is_some() {
        return Ok(text.to_owned());
    }
    let line = format!("{key}: {value}\n");
    let mut after = before;
    if let Value::Mapping(map) = &mut after {
        map.insert(key.into(), read(value)?);
    }
    verified(with_line_end(text) + &line, &after, &line)
}

fn add_item(text: &str, keys: &[&str], item: &str) -> Result<String, EditError> {
    let before = read(text)?;
    let new = read(item)?;
    let list = keys.iter().try_fold(&before, |value, key| value.get(*key));
    if let Some(Value::Sequence(items)) = list
        && items.contains(&new)
    {
        return Ok(text.to_owned());
    }
    let mut after = before.clone();
    let by_hand = new_list(keys, item);
    if push(&mut after, keys, new).is_none() {
        return Err(EditError::ByHand(by_hand));
    }
    let changed = insert_item(text, keys, item)
        // It may say it in another way, which would then stand there twice.
        .unwrap_or_else(|| with_line_end(text) + &by_hand);
    verified(changed, &after, &by_hand)
}

/// Adds `item` to the list at `keys`; `None` where something else is there.
fn push(value: &mut Value, keys: &[&str], item: Value) -> Option<()> {
    let [key, rest @ ..] = keys else {
        value.as_sequence_mut()?.push(item);
        return Some(());
    };
    let map = value.as_mapping_mut()?;
    let empty = match rest {
        [] => Value::Sequence(Vec::new()),
        _ => Value::Mapping(Mapping::new()),
    };
    if !map.contains_key(*key) {
        map.insert((*key).into(), empty);
    }
    push(map.get_mut(*key)?, rest, item)
}

/// `changed`, if it says the same as `wanted`.
fn verified(changed: String, wanted: &Value, by_hand: &str) -> Result<String, EditError> {
    match read(&changed) {
        Ok(value) if value == *wanted => Ok(changed),
        _ => Err(EditError::ByHand(by_hand.to_owned())),
    }
}

fn with_line_end(text: &str) -> String {
    let end = if text.is_empty() || text.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    format!("{text}{end}")
}

/// Lines that say that the list at `keys` has `item`.
fn new_list(keys: &[&str], item: &str) -> String {
    let mut text = String::new();
    for (depth, key) in keys.iter().enumerate() {
        text += &format!("{:1$}{key}:\n", "", 2 * depth);
    }
    text + &format!("{:1$}- {item}\n", "", 2 * keys.len())
}

/// `text` with `item` in the list at `keys`, if that list is there in one of the usual forms.
fn insert_item(text: &str, keys: &[&str], item: &str) -> Option<String> {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let (mut at, mut column) = (0, 0);
    let mut indent = None;
    for key in keys {
        // In the same line in braces, or in a later line that is further in.
        let here = lines.get(at)?;
        let flow = here[column..].find(&format!("{key}:"));
        if let (Some(found), true) = (flow, indent.is_some()) {
            column += found + key.len() + 1;
            continue;
        }
        let start = if indent.is_some() { at + 1 } else { 0 };
        let (line, depth) = find_key(&lines, start, indent, key)?;
        (at, column, indent) = (line, depth + key.len() + 1, Some(depth));
    }
    let mut lines: Vec<String> = lines.into_iter().map(str::to_owned).collect();
    let rest = lines[at][column..].split(" #").next()?.trim().to_owned();
    if rest.is_empty() {
        let (last, depth) = last_item(&lines, at, indent?)?;
        let line = format!("{:depth$}- {item}\n", "");
        lines[last] = with_line_end(&lines[last]);
        lines.insert(last + 1, line);
    } else {
        let open = column + lines[at][column..].find('[')?;
        let close = open + lines[at][open..].find(']')?;
        let is_empty = lines[at][open + 1..close].trim().is_empty();
        let item = if item.contains(": ") {
            format!("{{{item}}}")
        } else {
            item.to_owned()
        };
        let item = if is_empty { item } else { format!(", {item}") };
        lines[at].insert_str(close, &item);
    }
    Some(lines.concat())
}

/// The line of `key` in the block that begins at `start`, one level further in than `outer`, and how
/// far in it stands.
fn find_key(
    lines: &[&str],
    start: usize,
    outer: Option<usize>,
    key: &str,
) -> Option<(usize, usize)> {
    for (at, line) in lines.iter().enumerate().skip(start) {
        let text = line.trim_start();
        let depth = line.len() - text.len();
        if text.trim().is_empty() || text.starts_with('#') {
            continue;
        }
        match outer {
            Some(outer) if depth <= outer => return None,
            None if depth > 0 => continue,
            _ => {}
        }
        if text
            .strip_prefix(key)
            .is_some_and(|rest| rest.starts_with(':'))
        {
            return Some((at, depth));
        }
    }
    None
}

/// The last line of the list in the block of the key at `at`, which stands `outer` in, and how far
/// in its items stand.
fn last_item(lines: &[String], at: usize, outer: usize) -> Option<(usize, usize)> {
    let mut found = None;
    for (at, line) in lines.iter().enumerate().skip(at + 1) {
        let text = line.trim_start();
        let depth = line.len() - text.len();
        if text.trim().is_empty() || text.starts_with('#') {
            continue;
        }
        let is_item = text.starts_with("- ");
        if depth < outer || (depth == outer && !is_item) {
            break;
        }
        found = match found {
            None if is_item => Some((at, depth)),
            None => return None,
            Some((_, depth)) => Some((at, depth)),
        };
    }
    found
}

/// Whether `line` sets the variable `name`, and to what.
fn variable<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let value = line.trim_start().strip_prefix(name)?.trim_start();
    Some(value.strip_prefix('=')?.trim_end_matches(['\n', '\r']))
}

/// What `text` sets the variable `name` to, as often as it does.
pub(super) fn variables<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| variable(line, name))
}

fn set_variable(text: &str, name: &str, value: &str) -> String {
    let line = format!("{name}={value}\n");
    if variables(text, name).next().is_none() {
        return with_line_end(text) + &line;
    }
    text.split_inclusive('\n')
        .map(|old| match variable(old, name) {
            Some(old) if old == value => line.as_str(),
            Some(_) => &line,
            None => old,
        })
        .collect()
}

/// The keys of GitLab's custom executor, and what jobfence is called with for each.
const STAGES: [(&str, &str, &str); 4] = [
    ("config_exec", "config_args", "config"),
    ("prepare_exec", "prepare_args", "prepare"),
    ("run_exec", "run_args", "run"),
    ("cleanup_exec", "cleanup_args", "cleanup"),
];

/// The section of the runner `name`.
fn runner<'a>(document: &'a mut DocumentMut, name: &str) -> Result<&'a mut Table, EditError> {
    document
        .get_mut("runners")
        .and_then(Item::as_array_of_tables_mut)
        .and_then(|runners| {
            runners
                .iter_mut()
                .find(|runner| runner.get("name").and_then(Item::as_str) == Some(name))
        })
        .ok_or_else(|| EditError::NoRunner(name.to_owned()))
}

/// A text of the runner `name` of GitLab's config.toml.
pub(super) fn runner_text(
    text: &str,
    name: &str,
    keys: &[&str],
) -> Result<Option<String>, EditError> {
    let mut document: DocumentMut = text.parse()?;
    let mut table = runner(&mut document, name)?;
    let Some((last, outer)) = keys.split_last() else {
        return Ok(None);
    };
    for key in outer {
        match table.get_mut(key).and_then(Item::as_table_mut) {
            Some(inner) => table = inner,
            None => return Ok(None),
        }
    }
    Ok(table.get(last).and_then(Item::as_str).map(str::to_owned))
}

fn set_executor(
    text: &str,
    name: &str,
    program: &str,
    arguments: &[String],
    home: Option<&str>,
) -> Result<String, EditError> {
    let mut document: DocumentMut = text.parse()?;
    let runner = runner(&mut document, name)?;
    // A key keeps its place and its comments when its value is set, but not what follows the value.
    set(runner, "executor", "custom".into());
    // The custom executor has no default for them.
    for (key, folder) in [("builds_dir", "builds"), ("cache_dir", "cache")] {
        if let (Some(home), None) = (home, runner.get(key)) {
            set(runner, key, format!("{home}/{folder}").into());
        }
    }
    let custom = runner
        .entry("custom")
        .or_insert_with(|| Item::Table(Table::new()));
    let Some(custom) = custom.as_table_mut() else {
        let by_hand = "[runners.custom]\nconfig_exec = …".to_owned();
        return Err(EditError::ByHand(by_hand));
    };
    for (exec, args, stage) in STAGES {
        set(custom, exec, program.into());
        let call = ["hook", "gitlab", stage].into_iter();
        let words = Array::from_iter(call.chain(arguments.iter().map(String::as_str)));
        set(custom, args, words.into());
    }
    Ok(document.to_string())
}

/// Sets a key, with the comment that stands behind its value kept.
fn set(table: &mut Table, key: &str, new: toml_edit::Value) {
    match table.get_mut(key).and_then(Item::as_value_mut) {
        Some(old) => {
            let decor = old.decor().clone();
            *old = new;
            *old.decor_mut() = decor;
        }
        None => {
            table.insert(key, value(new));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(text: &str, keys: &'static [&'static str], item: &str) -> String {
        Edit::Item(keys, item.to_owned())
            .apply(text)
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn an_item_joins_a_list_in_whatever_form_it_is_written() {
        const USERS: &[&str] = &["guard", "users"];
        for (before, after) in [
            ("", "guard:\n  users:\n    - ci\n"),
            ("# only this\n", "# only this\nguard:\n  users:\n    - ci\n"),
            ("jobs: 7", "jobs: 7\nguard:\n  users:\n    - ci\n"),
            ("guard: {users: [a]}\n", "guard: {users: [a, ci]}\n"),
            (
                "guard: {users: []} # who\njobs: 7\n",
                "guard: {users: [ci]} # who\njobs: 7\n",
            ),
            (
                "guard:\n  users: [a, b]  # two\n",
                "guard:\n  users: [a, b, ci]  # two\n",
            ),
            (
                "guard:\n  # who\n  users:\n    - a\n    # and\n    - b # last\n\njobs: 7\n",
                "guard:\n  # who\n  users:\n    - a\n    # and\n    - b # last\n    - ci\n\njobs: 7\n",
            ),
            (
                "guard:\n  users:\n  - a",
                "guard:\n  users:\n  - a\n  - ci\n",
            ),
            ("guard: {users: [a, ci]}\n", "guard: {users: [a, ci]}\n"),
        ] {
            assert_eq!(item(before, USERS, "ci"), after, "{before:?}");
        }
        assert_eq!(
            item(
                "baseline:\n- host: a.test\n  ports: [80]\ndeny: []\n",
                &["baseline"],
                "use: ci"
            ),
            "baseline:\n- host: a.test\n  ports: [80]\n- use: ci\ndeny: []\n"
        );
        assert_eq!(
            item("baseline: []\n", &["baseline"], "use: ci"),
            "baseline: [{use: ci}]\n"
        );
    }

    #[test]
    fn what_could_be_damaged_is_left_for_a_person() {
        for text in [
            "runners: ci\n",
            "runners:\n",
            "runners: [\n  a,\n]\n",
            "\"runners\": [a]\n",
            "runners: [\"a]\"]\n",
            "- a\n",
            "text: |\n  runners: [a]\nx: &a [b]\nrunners: *a\n",
        ] {
            let edit = Edit::Item(&["runners"], "ci".to_owned());
            let error = edit.apply(text).expect_err(text);
            assert!(
                matches!(&error, EditError::ByHand(lines) if lines == "runners:\n  - ci\n"),
                "{text:?}: {error}"
            );
        }
    }

    #[test]
    fn a_key_is_added_and_never_changed() {
        let edit = Edit::Key("policies", "/etc/p".to_owned());
        assert_eq!(
            edit.apply("jobs: 7").expect("valid"),
            "jobs: 7\npolicies: /etc/p\n"
        );
        let other = "policies: /srv/p # ours\n";
        assert_eq!(edit.apply(other).expect("valid"), other);
        assert!(edit.apply("a: [\n").is_err());
    }

    #[test]
    fn a_variable_is_set_and_every_other_line_stays() {
        for (before, after) in [
            ("", "H=/x.js\n"),
            ("A=1", "A=1\nH=/x.js\n"),
            ("A=1\r\nH=/old\nB=\n", "A=1\r\nH=/x.js\nB=\n"),
            (" H = /old\nHH=2\nH=\n", "H=/x.js\nHH=2\nH=/x.js\n"),
        ] {
            assert_eq!(set_variable(before, "H", "/x.js"), after, "{before:?}");
        }
    }

    const CONFIG: &str = r#"concurrent = 2 # two

[[runners]]
  name = "other"
  executor = "shell"

[[runners]]
  # the one
  name = "one"
  url = "https://gitlab.example.com/"
  token = "t" # secret
  executor = "shell" # for now
  [runners.cache]
    Type = "s3"
"#;

    #[test]
    fn a_runner_gets_its_executor_and_the_rest_of_the_file_stays() {
        let changed =
            set_executor(CONFIG, "one", "/usr/bin/jobfence", &[], None).expect("a runner");
        let kept = diffy::create_patch(CONFIG, &changed);
        let removed: Vec<_> = kept
            .hunks()
            .iter()
            .flat_map(diffy::Hunk::lines)
            .filter_map(|line| match line {
                diffy::Line::Delete(line) => Some(*line),
                _ => None,
            })
            .collect();
        assert_eq!(removed, ["  executor = \"shell\" # for now\n"], "{changed}");
        assert!(
            changed.contains("  executor = \"custom\" # for now\n"),
            "{changed}"
        );
        assert!(
            changed.contains("run_args = [\"hook\", \"gitlab\", \"run\"]\n"),
            "{changed}"
        );
        let again =
            set_executor(&changed, "one", "/usr/bin/jobfence", &[], None).expect("a runner");
        assert_eq!(again, changed, "a second time changes nothing");
        assert!(matches!(
            set_executor(CONFIG, "none", "/x", &[], None),
            Err(EditError::NoRunner(_))
        ));
        assert_eq!(
            runner_text(CONFIG, "one", &["url"])
                .expect("a runner")
                .as_deref(),
            Some("https://gitlab.example.com/")
        );
        assert_eq!(
            runner_text(&changed, "one", &["custom", "run_exec"])
                .expect("a runner")
                .as_deref(),
            Some("/usr/bin/jobfence")
        );
    }
}
