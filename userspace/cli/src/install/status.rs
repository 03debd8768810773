//! `jobfence install status`: what is installed, and whether it works.

use std::{fmt::Write as _, io, path::Path};

use anyhow::Result;
use jobfence_agent::{
    control::{
        client::ask,
        protocol::{Answer, JobStatus, Nothing, Phase, Request},
    },
    host::config::{CONFIG, Config},
    job::user::Account,
};
use serde::Serialize;

use super::{
    Services,
    record::Record,
    runner::{Runner, System},
    say,
    tree::{Place, Tree},
    visible,
    wanted::env_file,
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
    if record.runners.is_empty() && !record.is_empty() {
        problems.push(
            "no runner is installed, but files are left: `jobfence uninstall --force` restores what was \
             there before them"
                .to_owned(),
        );
    }
    Report {
        runners,
        files,
        agent,
        problems,
    }
}

fn files(tree: &Tree, record: &Record, problems: &mut Vec<String>) -> Vec<FileReport> {
    let mut files = Vec::new();
    for (path, entry) in &record.files {
        let shown = path.display();
        let state = match tree.read(path, entry.place) {
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
                if entry.place == Place::Host
                    && (content.uid != 0 || content.mode & 0o022 != 0) =>
            {
                problems.push(format!("others than its owner can change {shown}"));
                FileState::Changed
            }
            // What the administrator says is not for us to judge, as long as our part is in it.
            Ok(Some(content)) if !entry.is_ours || has_ours(entry, &content.text) => {
                FileState::Edited
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

/// Whether every line that jobfence has added to a file is in it still.
fn has_ours(entry: &super::record::Entry, text: &str) -> bool {
    let Some(base) = &entry.base else {
        return false;
    };
    let written = entry.text();
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
    // Hooks that the runner's user has set in place of these since.
    if let Some(path) = env_file(runner)
        && let Ok(Some(content)) = tree.read(&path, Place::Runner(runner.owner.0))
    {
        for (variable, hook) in super::GITHUB_HOOKS {
            if super::edit::variables(&content.text, variable).any(|value| value != hook) {
                problems.push(format!(
                    "{} sets {variable} to another hook than {hook}",
                    path.display()
                ));
            }
        }
    }
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
