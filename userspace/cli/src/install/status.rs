//! `jobfence install status`: what is installed, and whether it works.

use std::{fmt::Write as _, fs, io, path::Path};

use anyhow::{Result, ensure};
use jobfence_agent::{
    control::{
        client::ask,
        protocol::{Answer, JobStatus, Nothing, Phase, Request},
    },
    host::config::{CONFIG, Config, IN_USE},
    job::user::Account,
};
use nix::unistd::geteuid;
use serde::Serialize;

use super::{
    AGENT_UNIT, Services,
    edit::{self, EditError},
    record::{Entry, Record},
    runner::{GITLAB_CONFIG, Runner, System},
    say,
    tree::{Place, Tree},
    visible,
};
use crate::report::Style;

/// Something is not as it should be.
const WRONG: u8 = 1;
/// There is nothing to tell of.
const NOTHING: u8 = 2;

/// What is told.
#[derive(Serialize)]
struct Report {
    runners: Vec<RunnerReport>,
    files: Vec<FileReport>,
    /// Whether the agent answers; `null` where that was not asked.
    agent: Option<bool>,
    /// What is not as it should be, and what to do.
    problems: Vec<String>,
}

#[derive(Serialize)]
struct RunnerReport {
    system: System,
    name: String,
    user: Option<String>,
    unit: Option<String>,
    /// Whether its unit runs; `null` where there is none, or no systemd.
    active: Option<bool>,
    /// Whether the agent has a fence of its name; `null` where there is no agent to ask.
    fenced: Option<bool>,
}

#[derive(Serialize)]
struct FileReport {
    path: String,
    state: FileState,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum FileState {
    /// As it was written.
    Written,
    /// The administrator's own by now, as it may be.
    Edited,
    /// Not what it has to be.
    Changed,
    /// It is gone.
    Missing,
}

/// Prints it, and returns the exit status.
pub(super) fn status(root: &Path, json: bool) -> Result<u8> {
    let tree = Tree::open(root)?;
    ensure!(
        !tree.is_host() || geteuid().is_root(),
        "only root can read what is installed: run this with sudo"
    );
    let record = Record::load(&tree)?;
    let report = examine(&tree, &record);
    if json {
        say(&(serde_json::to_string_pretty(&report)? + "\n"))?;
    } else if record.is_empty() {
        say("Nothing is installed.\n")?;
    } else {
        say(&render(&report, Style::of(&io::stdout())))?;
    }
    Ok(match (record.is_empty(), report.problems.is_empty()) {
        (true, _) => NOTHING,
        (false, true) => 0,
        (false, false) => WRONG,
    })
}

fn examine(tree: &Tree, record: &Record) -> Report {
    let mut problems = Vec::new();
    let files = files(tree, record, &mut problems);
    let services = Services::of(tree);
    let jobs = (tree.is_host() && !record.is_empty()).then(jobs);
    if let Some(Err(error)) = &jobs {
        problems.push(error.clone());
    }
    let agent = jobs.as_ref().map(Result::is_ok);
    if agent == Some(true)
        && let Err(problem) = is_configured()
    {
        problems.push(problem);
    }
    let jobs = jobs.and_then(Result::ok);
    let runner = |runner: &Runner| {
        let report = RunnerReport {
            system: runner.system,
            name: runner.name.clone(),
            user: runner.user.clone(),
            unit: runner.unit.clone(),
            active: runner
                .unit
                .as_ref()
                .filter(|_| services.has_systemd)
                .map(|unit| services.is("is-active", unit)),
            fenced: jobs
                .as_ref()
                .filter(|_| has_fence(runner))
                .map(|jobs| is_fenced(runner, jobs)),
        };
        say_of_runner(tree, runner, &report, &mut problems);
        report
    };
    let runners = record.runners.iter().map(runner).collect();
    problems.extend(record.leaving.iter().map(|runner| {
        let (system, name) = (runner.system.name(), &runner.name);
        format!(
            "not all of what was there before {system} {name} is back: `jobfence uninstall {system} --name \
             {name}` says what is in the way"
        )
    }));
    Report {
        runners,
        files,
        agent,
        problems,
    }
}

/// Whether the agent goes by what its configuration says by now.
fn is_configured() -> Result<(), String> {
    let config = Config::load(None).map_err(|error| {
        format!(
            "{error}. The agent goes by what it read before, and does not start again with this"
        )
    })?;
    let in_use = fs::read_to_string(config.socket.with_file_name(IN_USE)).unwrap_or_default();
    match in_use == config.whole() {
        true => Ok(()),
        false => Err(format!(
            "the agent goes by an older {CONFIG}: `systemctl reload {AGENT_UNIT}`, or restart it if its journal \
             says so"
        )),
    }
}

fn files(tree: &Tree, record: &Record, problems: &mut Vec<String>) -> Vec<FileReport> {
    let mut files = Vec::new();
    for (path, entry) in &record.files {
        let shown = path.display();
        let place = record.place_now(tree, path, entry);
        let state = match tree.read(path, place) {
            Err(error) => {
                problems.push(error.to_string());
                FileState::Changed
            }
            Ok(None) => {
                problems.push(format!("{shown} is gone: install again"));
                FileState::Missing
            }
            Ok(Some(content)) if entry.written.as_ref() == Some(&content) => FileState::Written,
            Ok(Some(content))
                if place == Place::Host && (content.uid != 0 || content.mode & 0o022 != 0) =>
            {
                problems.push(format!("others than its owner can change {shown}"));
                FileState::Changed
            }
            // What the administrator says is not for us to judge, as long as our part is in it.
            Ok(Some(content)) if !entry.is_ours || has_ours(path, entry, &content.text) => {
                FileState::Edited
            }
            Ok(Some(content)) if content.text == entry.text() => {
                problems.push(format!(
                    "the owner or mode of {shown} was changed: install again"
                ));
                FileState::Changed
            }
            Ok(Some(_)) => {
                problems.push(format!(
                    "{shown} was changed since: install again with --replace, if that was not you"
                ));
                FileState::Changed
            }
        };
        files.push(FileReport {
            path: path.to_string_lossy().into_owned(),
            state,
        });
    }
    files
}

/// Whether all that jobfence has added to a file is in it still.
fn has_ours(path: &Path, entry: &Entry, text: &str) -> bool {
    let Some(base) = &entry.base else {
        return false;
    };
    let written = entry.text();
    if path == Path::new(GITLAB_CONFIG) {
        return edit::has_executors(&written, text).unwrap_or(false);
    }
    let mut added = written
        .lines()
        .filter(|line| !base.lines().any(|old| old == *line));
    added.all(|line| text.lines().any(|now| now == line))
}

/// Whether jobfence fences the runner itself.
fn has_fence(runner: &Runner) -> bool {
    runner.unit.is_some()
}

fn is_fenced(runner: &Runner, jobs: &[JobStatus]) -> bool {
    let ids = [
        format!("runner-{}-", runner.name),
        format!("worker-{}-", runner.name),
    ];
    jobs.iter()
        .any(|job| job.phase == Phase::Running && ids.iter().any(|id| job.id.starts_with(id)))
}

/// The agent's jobs, or why it does not answer.
fn jobs() -> Result<Vec<JobStatus>, String> {
    let config = Path::new(CONFIG);
    let config =
        Config::load(config.exists().then_some(config)).map_err(|error| error.to_string())?;
    match ask(&config.socket, Request::List(Nothing {})).map(|reply| reply.answer) {
        Ok(Answer::Jobs(jobs)) => Ok(jobs),
        Ok(_) => Err("the agent has answered another question".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn say_of_runner(tree: &Tree, runner: &Runner, report: &RunnerReport, problems: &mut Vec<String>) {
    let name = &runner.name;
    match (report.active, report.fenced, &runner.unit) {
        (Some(true), Some(false), Some(unit)) => problems.push(format!(
            "the runner {name} is not fenced: `systemctl restart {unit}` when it has no job"
        )),
        (Some(false), _, Some(unit)) => problems.push(format!(
            "the unit {unit} does not run: `systemctl status {unit}` says why"
        )),
        _ => {}
    }
    if let Some(folder) = runner.folder.as_ref().filter(|_| !runner.has_folder(tree)) {
        let (folder, system) = (folder.display(), runner.system.name());
        problems.push(format!(
            "{folder} is gone: if the runner {name} is, `jobfence uninstall {system} --name {name}`"
        ));
    }
    if runner.system == System::Gitlab
        && let Some(text) = tree.peek(Path::new(GITLAB_CONFIG))
        && let Err(EditError::NoRunner(_)) = edit::runner_text(&text, &runner.title, &["url"])
    {
        problems.push(format!(
            "{GITLAB_CONFIG} has no runner {:?} any more: if it is gone, `jobfence uninstall gitlab --name {name}`",
            runner.title
        ));
    }
    // A file that cannot be read is told of where files are.
    let others = super::other_hooks(tree, runner).unwrap_or_default();
    problems.extend(others.into_iter().map(|other| other.problem));
    let Some(user) = runner.user.as_deref().filter(|_| tree.is_host()) else {
        return;
    };
    match Account::find(Some(user)) {
        Err(error) => problems.push(error.to_string()),
        Ok(account) => {
            let groups = account.left_out.iter().map(|(name, _)| name.clone());
            for group in groups.chain(account.privileged_group.clone()) {
                problems.push(format!(
                    "the user {user} is in the group {group}, whose members can act as root and so \
                     around every fence: `gpasswd -d {user} {group}`"
                ));
            }
        }
    }
}

fn render(report: &Report, style: Style) -> String {
    let mut text = String::new();
    for runner in &report.runners {
        let RunnerReport {
            system,
            name,
            user,
            unit,
            active,
            fenced,
        } = runner;
        let user = user.as_deref().unwrap_or("nobody");
        _ = write!(text, "{} {name}, user {user}", system.name());
        if let Some(unit) = unit {
            _ = write!(text, ", unit {unit}");
        }
        match active {
            Some(true) => text.push_str(", runs"),
            Some(false) => text.push_str(", does not run"),
            None => {}
        }
        match fenced {
            Some(true) => text.push_str(", fenced"),
            Some(false) => text.push_str(", not fenced"),
            None => {}
        }
        text.push('\n');
    }
    for FileReport { path, state } in &report.files {
        let mark = match state {
            FileState::Written => style.green("ok     "),
            FileState::Edited => style.paint("36", "edited "),
            FileState::Changed => style.red("changed"),
            FileState::Missing => style.red("missing"),
        };
        _ = writeln!(text, "  {mark} {}", visible(path));
    }
    for (state, said) in [
        (
            FileState::Edited,
            "edited: others have changed it since, and what jobfence needs is in it",
        ),
        (
            FileState::Changed,
            "changed: others have changed what jobfence needs, or can",
        ),
    ] {
        if report.files.iter().any(|file| file.state == state) {
            _ = writeln!(text, "  {said}");
        }
    }
    match report.agent {
        Some(true) => text.push_str("  the agent answers\n"),
        Some(false) => text.push_str("  the agent does not answer\n"),
        None => {}
    }
    for problem in &report.problems {
        _ = writeln!(text, "{} {}", style.red("wrong:"), visible(problem));
    }
    text
}
