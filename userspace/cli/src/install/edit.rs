//! Changes to files that are somebody else's: as small as can be, with every comment kept.
//!
//! YAML is changed as text, and then read to see that it says what it said before and the one thing
//! more. What cannot be changed like that is refused, with the lines to add by hand.

use serde_yaml::{Mapping, Value};
use thiserror::Error;
use toml_edit::{Array, DocumentMut, Item, Table, TableLike, value};

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

/// `current` without the variables that have jobfence's values in `ours`: each is what it was in `base`
/// again, or gone.
pub(super) fn without_variables(base: &str, current: &str, ours: &[(&str, &str)]) -> String {
    let restored = |line: &str| {
        let set = |(name, value): &&(&str, &str)| variable(line, name) == Some(*value);
        match ours.iter().find(set) {
            None => line.to_owned(),
            Some((name, _)) => {
                let before = variables(base, name).last();
                before.map_or_else(String::new, |value| format!("{name}={value}\n"))
            }
        }
    };
    current.split_inclusive('\n').map(restored).collect()
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
fn set(table: &mut dyn TableLike, key: &str, new: toml_edit::Value) {
    match table.get_mut(key) {
        // The same may be written in another way.
        Some(old) if is_same(Some(old), Some(&value(new.clone()))) => {}
        Some(Item::Value(old)) => {
            let decor = old.decor().clone();
            *old = new;
            *old.decor_mut() = decor;
        }
        _ => _ = table.insert(key, value(new)),
    }
}

/// Whether both say the same, as texts and as lists of texts.
fn is_same(one: Option<&Item>, other: Option<&Item>) -> bool {
    let texts = |item: Option<&Item>| -> Option<Vec<String>> {
        let texts = match item?.as_array() {
            Some(list) => list.iter().map(toml_edit::Value::as_str).collect(),
            None => item?.as_str().map(|text| vec![text]),
        };
        texts.map(|texts: Vec<&str>| texts.into_iter().map(str::to_owned).collect())
    };
    let is_list = |item: Option<&Item>| item.is_some_and(Item::is_array);
    texts(one).is_some() && texts(one) == texts(other) && is_list(one) == is_list(other)
}

/// The names of the runners of a config.toml that have a shell as their executor.
pub(super) fn shell_runners(text: &str) -> Vec<String> {
    let document: DocumentMut = text.parse().unwrap_or_default();
    let runners = document.get("runners").and_then(Item::as_array_of_tables);
    let shells = runners.into_iter().flatten().filter_map(|runner| {
        let is_shell = runner.get("executor")?.as_str()? == "shell";
        is_shell.then(|| {
            runner
                .get("name")
                .and_then(Item::as_str)
                .unwrap_or_default()
                .to_owned()
        })
    });
    shells.collect()
}

/// The sections of a config.toml that have jobfence as their driver.
fn driven(document: &DocumentMut) -> impl Iterator<Item = (&str, &Table)> {
    let runners = document.get("runners").and_then(Item::as_array_of_tables);
    runners.into_iter().flatten().filter_map(|runner| {
        let program = custom(runner, "run_exec")?.as_str()?;
        let name = runner.get("name")?.as_str()?;
        program.ends_with("/jobfence").then_some((name, runner))
    })
}

fn custom<'a>(runner: &'a Table, key: &str) -> Option<&'a Item> {
    runner.get("custom")?.as_table_like()?.get(key)
}

/// `current` without the executors that `written` has and `base` has not. GitLab Runner writes the
/// whole file anew when it registers a runner or gets a token, in its own order and without comments:
/// so each key is looked at by itself. One that says something else by now is somebody else's.
pub(super) fn without_executors(
    base: &str,
    written: &str,
    current: &str,
) -> Result<String, EditError> {
    let mut base: DocumentMut = base.parse()?;
    let written: DocumentMut = written.parse()?;
    let mut document: DocumentMut = current.parse()?;
    for (name, ours) in driven(&written) {
        let before = runner(&mut base, name).ok().cloned().unwrap_or_default();
        // It may have another name by now. Its policy has not.
        let call = custom(ours, "run_args");
        let is_it = |now: &Table| now.get("name").and_then(Item::as_str) == Some(name);
        let is_renamed = |now: &Table| is_same(custom(now, "run_args"), call);
        let runners = document
            .get_mut("runners")
            .and_then(Item::as_array_of_tables_mut);
        let Some(runners) = runners else { continue };
        let at = runners.iter().position(is_it);
        let at = at.or_else(|| runners.iter().position(is_renamed));
        if let Some(now) = at.and_then(|at| runners.get_mut(at)) {
            restore(now, ours, &before);
        }
    }
    Ok(document.to_string())
}

/// Puts the keys of a section back that say what they say in `ours`.
fn restore(now: &mut Table, ours: &Table, before: &Table) {
    let put_back = |table: &mut dyn TableLike, key: &str, before: Option<&Item>| match before {
        Some(Item::Value(old)) => set(table, key, old.clone()),
        _ => _ = table.remove(key),
    };
    let driver = custom(now, "run_exec");
    // Whoever has put another driver there has its executor, too.
    if driver.is_none() || is_same(driver, custom(ours, "run_exec")) {
        for key in ["executor", "builds_dir", "cache_dir"] {
            if is_same(now.get(key), ours.get(key)) {
                put_back(now, key, before.get(key));
            }
        }
    }
    let Some(table) = now.get_mut("custom").and_then(Item::as_table_like_mut) else {
        return;
    };
    for (exec, args, _) in STAGES {
        if is_same(table.get(exec), custom(ours, exec)) {
            put_back(table, exec, custom(before, exec));
            put_back(table, args, custom(before, args));
        }
    }
    if table.is_empty() && !before.contains_key("custom") {
        now.remove("custom");
    }
}

/// Whether `current` has the executors that `written` has.
pub(super) fn has_executors(written: &str, current: &str) -> Result<bool, EditError> {
    let written: DocumentMut = written.parse()?;
    let mut current: DocumentMut = current.parse()?;
    Ok(driven(&written).all(|(name, ours)| {
        let Ok(now) = runner(&mut current, name) else {
            return false;
        };
        let keys = STAGES.iter().flat_map(|(exec, args, _)| [exec, args]);
        is_same(now.get("executor"), ours.get("executor"))
            && keys
                .into_iter()
                .all(|key| is_same(custom(now, key), custom(ours, key)))
    }))
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

    #[test]
    fn each_key_of_an_executor_is_taken_out_that_is_ours_still() {
        let base = CONFIG.to_owned() + "  [runners.custom]\n    run_exec = \"/opt/driver\"\n";
        let arguments = ["--user".to_owned(), "ci".to_owned()];
        let written = set_executor(
            &base,
            "one",
            "/usr/bin/jobfence",
            &arguments,
            Some("/home/ci"),
        )
        .expect("a runner");
        assert_eq!(has_executors(&written, &written).ok(), Some(true));
        let without = |current: &str| without_executors(&base, &written, current).expect("TOML");
        assert_eq!(without(&written), base);
        for (ours, theirs, kept) in [
            ("executor = \"custom\"", "executor = \"docker\"", true),
            ("builds_dir = \"/home/ci", "builds_dir = \"/srv", true),
            (
                "run_exec = \"/usr/bin/jobfence\"",
                "run_exec = '/opt/new'",
                true,
            ),
            // With the program goes what it is called with.
            ("\"run\", \"--user\"", "\"run\", \"--more\"", false),
            (
                "run_exec = \"/usr/bin/jobfence\"",
                "run_exec = '/usr/bin/jobfence'",
                false,
            ),
        ] {
            let current = written.replace(ours, theirs);
            assert_ne!(current, written);
            let after = without(&current);
            assert_eq!(after.contains(theirs), kept, "{theirs}: {after}");
            assert!(!after.contains("prepare_"), "{theirs}: {after}");
        }
        // Another driver has its executor.
        let other = written.replace("/usr/bin/jobfence", "/opt/new");
        assert_eq!(without(&other), other);
        let gone = "[[runners]]\n  name = \"other\"\n";
        assert_eq!(without(gone), gone);
        assert_eq!(has_executors(&written, gone).ok(), Some(false));
    }
}
