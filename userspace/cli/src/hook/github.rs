//! GitHub Actions: the hooks of a self-hosted runner.
//!
//! `Runner.Listener` starts one `Runner.Worker` for each job. The started hook, which runs before
//! checkout, has the agent make that worker a job, so everything that the worker starts afterwards is
//! in its fence. The completed hook, which runs last, tells what was refused and fails the job for it.
//!
//! The runner reads workflow commands in what a hook prints: `::name key=value::text` at the beginning
//! of a line, and the older `##[name]text` anywhere in one
//! ([`ActionCommand`](https://github.com/actions/runner/blob/v2.330.0/src/Runner.Common/ActionCommand.cs)).
//! Command lines and names come from the job, so nothing of them is printed but escaped.

use std::{
    collections::HashSet,
    fmt::Write as _,
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Subcommand;
use jobfence_agent::{
    control::{
        client::ClientError,
        protocol::{Code, JobStatus, Labels, Refused, Start, Started},
    },
    job::process::is_hidden,
};
use serde::Deserialize;
use thiserror::Error;

use super::{HookError, Process, ancestor, job_id, label, optional, own_job, start, variable};
use crate::run::{NO_FENCE, VIOLATION};

/// How the CI system is called in errors.
const SYSTEM: &str = "GitHub Actions";

/// The program that serves one job.
const WORKER: &str = "Runner.Worker";

/// Bytes of an event's payload, at most: GitHub delivers none of more than 25 MB.
const MAX_EVENT: u64 = 32 << 20;

/// Bytes of the runner's settings, at most.
const MAX_SETTINGS: u64 = 64 << 10;

/// Annotations of one kind: GitHub shows ten of a step, and the runner adds one of its own.
const MOST: usize = 9;

/// Characters of a text that is the job's, so that a summary keeps far below the 1 MiB that GitHub
/// takes.
const WIDEST: usize = 1000;

#[derive(Subcommand)]
pub(super) enum Hook {
    /// Make the worker a job: ACTIONS_RUNNER_HOOK_JOB_STARTED
    Started,
    /// Tell what the job was refused, and fail it for that: ACTIONS_RUNNER_HOOK_JOB_COMPLETED
    Completed,
}

/// Why a job fails by its hook, beside its violations.
#[derive(Debug, Error)]
enum GithubError {
    /// What any hook can fail with.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// A file of the runner cannot be used.
    #[error("cannot use {what} {path}: {source}")]
    Unusable {
        /// What it is.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The environment and the payload of the event contradict each other.
    #[error(
        "{variable} is {said}, and the event that caused the job says {found}: the environment of \
         this hook is not the one that the runner has made"
    )]
    Event {
        /// The environment variable.
        variable: &'static str,
        /// What it says.
        said: String,
        /// What the payload says.
        found: String,
    },
    /// The worker is another runner's.
    #[error(
        "RUNNER_NAME is {said}, and the worker above this hook is of the runner {found} \
         ({settings}): the environment of this hook is not the one that the runner has made"
    )]
    Runner {
        /// What the environment says.
        said: String,
        /// Whose the worker is.
        found: String,
        /// The file that says so.
        settings: PathBuf,
    },
    /// The job has no fence of its own.
    #[error(
        "this job ran outside a fence of its own{}: its started hook was skipped, replaced or has \
         failed. Set ACTIONS_RUNNER_HOOK_JOB_STARTED as `jobfence install github` does, and restart \
         the runner",
        .runner.as_ref().map(|id| format!(", in that of the runner ({id})")).unwrap_or_default()
    )]
    Outside {
        /// The runner whose fence it was in, if in any.
        runner: Option<String>,
    },
    /// The job is in a fence that its started hook has not made.
    #[error(
        "this job runs in the fence of {found}, and its own would be {expected}: the runner was \
         started inside another job. Start it outside, as a service"
    )]
    Other {
        /// The fence that it is in.
        found: String,
        /// The one that its started hook makes.
        expected: String,
    },
}

/// Runs a hook, and tells the runner what went wrong.
pub(super) fn hook(hook: &Hook, socket: &Path) -> ExitCode {
    let told = match hook {
        Hook::Started => started(socket),
        Hook::Completed => completed(socket),
    };
    let Told { commands, code } = told.unwrap_or_else(|error| Told::failure(hook, &error));
    // What the runner was not told, it must not take for a success.
    match io::stdout().write_all(commands.as_bytes()) {
        Ok(()) => code.into(),
        Err(_) => FAILED.into(),
    }
}

/// Fails the job: the runner tells no other exit codes apart.
const FAILED: u8 = 1;

/// What the runner is told.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    /// Lines with workflow commands.
    commands: String,
    /// 0, or [`FAILED`].
    code: u8,
}

impl Told {
    fn failure(hook: &Hook, error: &GithubError) -> Self {
        let is_policy = matches!(
            error,
            GithubError::Hook(HookError::Agent(ClientError::Refused(refusal)))
                if refusal.code == Code::Policy
        );
        let title = match hook {
            _ if is_policy => "jobfence: the policy cannot be used",
            Hook::Started => "jobfence: the job is not fenced",
            Hook::Completed => "jobfence: what the job did is not known",
        };
        let advice = match hook {
            _ if is_policy => "Mend the policy: until then its jobs fail.",
            Hook::Started => {
                "The job fails here. What it still runs stays in the fence that the runner has, and \
                 in none if that has none."
            }
            Hook::Completed => {
                "The agent's log tells of its fences: `journalctl -u jobfence-agent` on the runner's host."
            }
        };
        Self {
            commands: command("error", &[("title", title)], &format!("{error}\n{advice}")),
            code: FAILED,
        }
    }
}

/// What the runner says of the job in the environment of its hooks.
struct Context {
    repository: String,
    run: String,
    attempt: String,
    job: String,
    git_ref: Option<String>,
    /// The branch that is built, or is to be.
    base: Option<String>,
    workflow: Option<String>,
    actor: Option<String>,
    runner: Option<String>,
}

impl Context {
    fn read() -> Result<Self, GithubError> {
        let repository = variable(SYSTEM, "GITHUB_REPOSITORY")?;
        let path = PathBuf::from(variable(SYSTEM, "GITHUB_EVENT_PATH")?);
        let event: Event = read(&path, "the payload of the event", MAX_EVENT)?;
        let base = event.base(&repository, optional("GITHUB_BASE_REF"))?;
        let is_branch = optional("GITHUB_REF_TYPE").is_some_and(|kind| kind == "branch");
        Ok(Self {
            repository,
            run: variable(SYSTEM, "GITHUB_RUN_ID")?,
            attempt: variable(SYSTEM, "GITHUB_RUN_ATTEMPT")?,
            job: variable(SYSTEM, "GITHUB_JOB")?,
            git_ref: optional("GITHUB_REF"),
            base: base.or_else(|| optional("GITHUB_REF_NAME").filter(|_| is_branch)),
            workflow: optional("GITHUB_WORKFLOW"),
            actor: optional("GITHUB_ACTOR"),
            runner: optional("RUNNER_NAME"),
        })
    }

    /// The id of the job that `worker` is, for each of its hooks.
    fn id(&self, worker: &Process) -> String {
        let run = format!("{}-{}", self.run, self.attempt);
        job_id("github", &run, &self.job, worker)
    }

    fn labels(&self) -> Labels {
        let of = |text: &Option<String>| text.as_deref().map(label);
        Labels {
            repo: Some(label(&self.repository)),
            git_ref: of(&self.git_ref),
            base: of(&self.base),
            run: Some(label(&self.run)),
            attempt: Some(label(&self.attempt)),
            workflow: of(&self.workflow),
            actor: of(&self.actor),
            runner: of(&self.runner),
        }
    }

    /// Checks that the worker is of the runner that the environment names. Both are the runner's own
    /// word, so this finds a mistake and no forgery.
    fn check_runner(&self, worker: &Process) -> Result<(), GithubError> {
        // `<runner>/bin/Runner.Worker`, and `bin.<version>` after an upgrade.
        let folder = worker.exe.parent().and_then(Path::parent);
        let (Some(said), Some(folder)) = (&self.runner, folder) else {
            return Ok(());
        };
        let settings = folder.join(".runner");
        let found: Settings = read(&settings, "the settings of the runner", MAX_SETTINGS)?;
        if found.agent_name == *said {
            return Ok(());
        }
        Err(GithubError::Runner {
            said: said.clone(),
            found: found.agent_name,
            settings,
        })
    }
}

/// What is needed of a webhook's payload.
#[derive(Debug, Deserialize)]
struct Event {
    repository: Repository,
    pull_request: Option<PullRequest>,
    merge_group: Option<MergeGroup>,
}

#[derive(Debug, Deserialize)]
struct Repository {
    full_name: String,
}

#[derive(Debug, Deserialize)]
struct PullRequest {
    base: Base,
}

#[derive(Debug, Deserialize)]
struct Base {
    #[serde(rename = "ref")]
    branch: String,
}

#[derive(Debug, Deserialize)]
struct MergeGroup {
    base_ref: String,
}

impl Event {
    /// The branch that a change is to be merged into, if there is a change; once the payload is seen
    /// to be that of the environment's job.
    fn base(&self, repository: &str, base: Option<String>) -> Result<Option<String>, GithubError> {
        let differs = |variable, said: &str, found: &str| GithubError::Event {
            variable,
            said: said.to_owned(),
            found: found.to_owned(),
        };
        let of = &self.repository.full_name;
        if of != repository {
            return Err(differs("GITHUB_REPOSITORY", repository, of));
        }
        if let Some(PullRequest {
            base: Base { branch },
        }) = &self.pull_request
        {
            return match base {
                Some(said) if said != *branch => Err(differs("GITHUB_BASE_REF", &said, branch)),
                _ => Ok(Some(branch.clone())),
            };
        }
        let group = self.merge_group.as_ref();
        Ok(base.or_else(|| {
            let branch = &group?.base_ref;
            Some(
                branch
                    .strip_prefix("refs/heads/")
                    .unwrap_or(branch)
                    .to_owned(),
            )
        }))
    }
}

/// What is needed of a runner's `.runner`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Settings {
    agent_name: String,
}

/// Reads a JSON file of `most` bytes or less.
fn read<T: serde::de::DeserializeOwned>(
    path: &Path,
    what: &'static str,
    most: u64,
) -> Result<T, GithubError> {
    let unusable = |source| GithubError::Unusable {
        what,
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unusable)?;
    file.take(most + 1)
        .read_to_end(&mut bytes)
        .map_err(unusable)?;
    if bytes.len() as u64 > most {
        return Err(unusable(io::Error::other(format!(
            "it has more than {most} bytes"
        ))));
    }
    // The runner begins its settings with a byte order mark.
    let text = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
    serde_json::from_slice(text).map_err(|error| unusable(error.into()))
}

/// The started hook.
fn started(socket: &Path) -> Result<Told, GithubError> {
    let context = Context::read()?;
    let worker = ancestor(SYSTEM, WORKER)?;
    context.check_runner(&worker)?;
    let id = context.id(&worker);
    let order = Start {
        id: id.clone(),
        pid: Some(worker.pid),
        launch: None,
        runner: false,
        policy: None,
        // Its name is in the workflow, so a change under review would choose its rules by it.
        job: None,
        labels: context.labels(),
    };
    match start(socket, order) {
        Ok(started) => Ok(tell_start(&started, &context)),
        // Called twice: from inside its fence nothing is started.
        Err(HookError::Agent(ClientError::Refused(refusal)))
            if refusal.code == Code::Forbidden && is_own(socket, &id) =>
        {
            let text = "the job is fenced already";
            let commands = command("notice", &[("title", "jobfence")], text);
            Ok(Told { commands, code: 0 })
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether this process is in the fence of the job `id`, and that has not failed.
fn is_own(socket: &Path, id: &str) -> bool {
    own_job(socket).is_ok_and(|job| job.id == id && job.exit != NO_FENCE)
}

fn tell_start(started: &Started, context: &Context) -> Told {
    let (word, reasons) = state(&started.state);
    let mut commands = command(
        "group",
        &[],
        &format!("jobfence: this job is fenced · {word}"),
    );
    let mut line = |text: &str| _ = writeln!(commands, "- {}", inert(text));
    let base = context.base.as_deref();
    let base = base.map(|branch| format!(", branch {branch}"));
    let base = base.unwrap_or_default();
    line(&format!("repository {}{base}", context.repository));
    line(&format!(
        "job {}, log {} on the runner's host",
        started.id, started.log
    ));
    for rule in &started.allowed {
        line(&format!("may reach {rule}"));
    }
    match (word, started.allowed.is_empty()) {
        ("auditing", _) => line("what it reaches beside that is let through, and recorded"),
        (_, true) => {
            line("may reach nothing: its policy allows nothing, or the host has none for it")
        }
        (_, false) => {}
    }
    for rule in &started.clipped {
        line(&format!("not allowed by this host: {rule}"));
    }
    for socket in &started.open_before {
        let held = match &started.runner {
            Some(runner) => format!("held to the policy of {runner}"),
            None => "not fenced".to_owned(),
        };
        line(&format!("open before, {held}: {socket}"));
    }
    commands += "::endgroup::\n";
    if !reasons.is_empty() {
        commands += &command(
            "notice",
            &[("title", "jobfence: advisory, not a guarantee")],
            reasons,
        );
    }
    if started.runner.is_none() {
        let text = "The runner itself is in no fence: a job that skips its started hook is not held. \
                    `jobfence install github` fences the runner.";
        commands += &command(
            "warning",
            &[("title", "jobfence: the runner is not fenced")],
            text,
        );
    }
    Told { commands, code: 0 }
}

/// The word of a state, and its reasons.
fn state(text: &str) -> (&str, &str) {
    match text.split_once('(') {
        Some((word, reasons)) => (word, reasons.strip_suffix(')').unwrap_or(reasons)),
        None => (text, ""),
    }
}

/// The completed hook.
fn completed(socket: &Path) -> Result<Told, GithubError> {
    let status = match own_job(socket) {
        Ok(status) if status.runner => {
            return Err(GithubError::Outside {
                runner: Some(status.id),
            });
        }
        Ok(status) => status,
        Err(HookError::Agent(ClientError::Refused(refusal))) if refusal.code == Code::Unknown => {
            return Err(GithubError::Outside { runner: None });
        }
        Err(error) => return Err(error.into()),
    };
    let context = Context::read()?;
    let worker = ancestor(SYSTEM, WORKER)?;
    let expected = context.id(&worker);
    if status.id != expected {
        return Err(GithubError::Other {
            found: status.id,
            expected,
        });
    }
    let mut told = tell_end(&status);
    if let Err(error) = summarize(&summary(&status)) {
        let text = format!("the job summary was not written: {error}");
        told.commands += &command("warning", &[("title", "jobfence")], &text);
    }
    Ok(told)
}

/// What the job is told at its end.
fn tell_end(status: &JobStatus) -> Told {
    let code = if status.exit == 0 { 0 } else { FAILED };
    let (word, reasons) = state(&status.state);
    let mut commands = command("group", &[], &format!("jobfence: {}", headline(status)));
    for refused in &status.refused {
        _ = writeln!(commands, "- {}", inert(&describe(refused).join(" · ")));
    }
    if let (Some(policy), false) = (&status.policy, status.refused.is_empty()) {
        _ = writeln!(commands, "- policy: {}", inert(policy));
    }
    commands += "::endgroup::\n";
    if code != 0 && status.exit != VIOLATION {
        let cause = match word {
            "failed" => reasons,
            _ => "its policy cannot be used, so it reached nothing: the started hook has told why",
        };
        let text = format!("{cause}\nThe log is {} on the runner's host.", status.log);
        commands += &command("error", &[("title", "jobfence: the fence failed")], &text);
    }
    // What fails no job is told, not shouted.
    let level = if status.exit == VIOLATION {
        "error"
    } else {
        "warning"
    };
    let is_audit = word == "auditing";
    let shown = |refused: &&Refused| refused.violation || is_audit;
    let refused: Vec<_> = status.refused.iter().filter(shown).collect();
    let all = refused.len() as u64 + status.refused_more;
    let room = if all > MOST as u64 { MOST - 1 } else { MOST };
    for refused in refused.iter().take(room) {
        commands += &annotation(level, refused, status.policy.as_deref(), is_audit);
    }
    let more = all - refused.len().min(room) as u64;
    if more > 0 {
        let text = format!("{more} more: the summary of the job and its log have them");
        commands += &command(level, &[("title", "jobfence")], &text);
    }
    Told { commands, code }
}

fn headline(status: &JobStatus) -> String {
    let (word, _) = state(&status.state);
    let destinations: HashSet<_> = status.refused.iter().map(|one| &one.destination).collect();
    let count = destinations.len() as u64 + status.refused_more;
    let s = if count == 1 { "" } else { "s" };
    let more = if status.refused_more > 0 {
        "more than "
    } else {
        ""
    };
    let would = if word == "auditing" { "would be " } else { "" };
    match (count, status.violations) {
        (0, 0) => format!("nothing was refused · {word}"),
        (0, attempts) => format!("{attempts} attempts refused · {word}"),
        (_, 0) if would.is_empty() => {
            format!("{more}{count} destination{s} refused, no violation · {word}")
        }
        _ => format!("{more}{count} destination{s} {would}refused · {word}"),
    }
}

/// What is said of a refusal, a line each.
fn describe(refused: &Refused) -> Vec<String> {
    refused.lines().iter().map(|line| shown(line)).collect()
}

fn annotation(level: &str, refused: &Refused, policy: Option<&str>, is_audit: bool) -> String {
    let verb = if is_audit {
        "would be refused"
    } else {
        "refused"
    };
    let title = format!("jobfence: {} {verb}", shown(&refused.destination));
    let place = refused.rule.as_deref().and_then(place);
    let mut properties = vec![("title", title.as_str())];
    if let Some((file, line)) = place {
        properties.extend([("file", file), ("line", line)]);
    }
    let mut lines = describe(refused);
    lines.extend(policy.map(|policy| format!("policy: {}", shown(policy))));
    command(level, &properties, &lines.join("\n"))
}

/// The file and the line of a rule, if it is in a file of the repository.
fn place(rule: &str) -> Option<(&str, &str)> {
    let (file, line) = rule.rsplit_once(':')?;
    let is_line = !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_digit());
    (is_line && Path::new(file).is_relative()).then_some((file, line))
}

/// The job summary: a block of text, in which neither Markdown nor HTML means anything. It ends at a
/// line of the same fence only, and no line of it begins with what the job has said.
fn summary(status: &JobStatus) -> String {
    const FENCE: &str = "````";
    if status.refused.is_empty() && status.exit == 0 {
        return String::new();
    }
    let mut text = format!(
        "### jobfence\n\n{FENCE}text\n{}\n",
        shown(&headline(status))
    );
    for refused in &status.refused {
        let mark = if refused.violation { "✗" } else { "·" };
        let mut lines = describe(refused).into_iter();
        _ = writeln!(text, "  {mark} {}", lines.next().unwrap_or_default());
        for line in lines {
            _ = writeln!(text, "      {line}");
        }
    }
    if status.refused_more > 0 {
        _ = writeln!(text, "  … and {} more", status.refused_more);
    }
    if let Some(policy) = &status.policy {
        _ = writeln!(text, "  policy: {}", shown(policy));
    }
    _ = writeln!(text, "  log: {}\n{FENCE}", shown(&status.log));
    text
}

fn summarize(text: &str) -> io::Result<()> {
    match optional("GITHUB_STEP_SUMMARY") {
        Some(path) => OpenOptions::new()
            .append(true)
            .open(path)?
            .write_all(text.as_bytes()),
        None => Ok(()),
    }
}

/// A workflow command, as a line. Whatever is in its texts stays in them.
fn command(name: &str, properties: &[(&str, &str)], text: &str) -> String {
    let mut line = format!("::{name}");
    for (index, (key, value)) in properties.iter().enumerate() {
        let separator = if index == 0 { ' ' } else { ',' };
        let value = escape(value).replace(':', "%3A").replace(',', "%2C");
        _ = write!(line, "{separator}{key}={value}");
    }
    _ = writeln!(line, "::{}", escape(text));
    line
}

/// Escapes the text of a workflow command. The percent sign comes first: it begins what the others
/// become.
fn escape(text: &str) -> String {
    text.replace('%', "%25")
        .replace('\r', "%0D")
        .replace('\n', "%0A")
}

/// A text as a part of a line that is no workflow command: in none of its places one begins. It must
/// not be at the beginning of the line.
fn inert(text: &str) -> String {
    text.replace(is_hidden, " ").replace("##[", "## [")
}

/// A text that is the job's, as one line of bounded length.
fn shown(text: &str) -> String {
    match text.char_indices().nth(WIDEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
    .replace(is_hidden, " ")
}

#[cfg(test)]
mod tests {
    use jobfence_agent::control::protocol::Phase;

    use super::*;

    fn refused(destination: &str, process: &str) -> Refused {
        Refused {
            destination: destination.to_owned(),
            reason: "name".to_owned(),
            why: "no rule allows the name".to_owned(),
            rule: None,
            count: 2,
            violation: true,
            process: Some(process.to_owned()),
            allow: Some(format!("- host: {destination}")),
        }
    }

    fn status(state: &str, exit: u8, refused: Vec<Refused>) -> JobStatus {
        JobStatus {
            id: "u1001-github-7-1-build-6-5".to_owned(),
            job: "default".to_owned(),
            policy: Some("/etc/jobfence/policies/a.yml".to_owned()),
            labels: Labels::default(),
            state: state.to_owned(),
            phase: Phase::Running,
            violations: refused
                .iter()
                .filter(|one| one.violation)
                .map(|one| one.count)
                .sum(),
            exit,
            runner: false,
            owner: 1001,
            started: 0,
            log: "/var/log/jobfence/a.jsonl".to_owned(),
            refused,
            refused_more: 0,
        }
    }

    #[test]
    fn a_refusal_is_an_annotation_and_fails_the_job() {
        let refusal = refused("a.test", "curl https://a.test/ ← sh x.sh");
        let status = status("enforcing", 110, vec![refusal]);
        assert_eq!(
            tell_end(&status),
            Told {
                commands: "\
::group::jobfence: 1 destination refused · enforcing
- a.test — no rule allows the name, 2× · by curl https://a.test/ ← sh x.sh · to allow it: - host: a.test
- policy: /etc/jobfence/policies/a.yml
::endgroup::
::error title=jobfence%3A a.test refused::a.test — no rule allows the name, 2×%0Aby curl https://a.test/ ← sh x.sh%0Ato allow it: - host: a.test%0Apolicy: /etc/jobfence/policies/a.yml
"
                .to_owned(),
                code: 1,
            }
        );
        assert_eq!(
            summary(&status),
            "\
### jobfence

````text
1 destination refused · enforcing
  ✗ a.test — no rule allows the name, 2×
      by curl https://a.test/ ← sh x.sh
      to allow it: - host: a.test
  policy: /etc/jobfence/policies/a.yml
  log: /var/log/jobfence/a.jsonl
````
"
        );
    }

    #[test]
    fn nothing_refused_is_nothing_to_be_told_of() {
        let status = status("enforcing", 0, Vec::new());
        let told = tell_end(&status);
        assert_eq!(told.code, 0);
        assert_eq!(
            told.commands,
            "::group::jobfence: nothing was refused · enforcing\n::endgroup::\n"
        );
        assert_eq!(summary(&status), "");
    }

    #[test]
    fn an_audit_warns_of_what_it_let_through() {
        let mut refusal = refused("a.test", "curl");
        refusal.violation = false;
        let told = tell_end(&status("auditing", 0, vec![refusal]));
        assert_eq!(told.code, 0);
        assert!(
            told.commands
                .contains("1 destination would be refused · auditing")
        );
        assert!(
            told.commands
                .contains("\n::warning title=jobfence%3A a.test would be refused::")
        );
        assert!(!told.commands.contains("::error"));
    }

    #[test]
    fn a_violation_that_only_warns_does_not_fail_the_job() {
        let told = tell_end(&status("enforcing", 0, vec![refused("a.test", "curl")]));
        assert_eq!(told.code, 0);
        assert!(
            told.commands
                .contains("\n::warning title=jobfence%3A a.test refused::")
        );
    }

    #[test]
    fn a_fence_that_failed_fails_the_job() {
        let told = tell_end(&status("failed(the log is gone)", 111, Vec::new()));
        assert_eq!(told.code, 1);
        let error = "\n::error title=jobfence%3A the fence failed::the log is gone%0A";
        assert!(told.commands.contains(error), "{}", told.commands);
    }

    #[test]
    fn github_shows_ten_annotations_so_the_last_one_counts_the_rest() {
        let many = (0..20).map(|number| refused(&format!("{number}.test"), "curl"));
        let mut status = status("enforcing", 110, many.collect());
        status.refused_more = 5;
        let told = tell_end(&status);
        let mut errors = told
            .commands
            .lines()
            .filter(|line| line.starts_with("::error "));
        assert_eq!(errors.clone().count(), MOST);
        let last = errors.next_back().expect("nine lines");
        assert!(
            last.ends_with("::17 more: the summary of the job and its log have them"),
            "{last}"
        );
    }

    #[test]
    fn what_a_job_calls_itself_is_no_workflow_command() {
        let evil = "sh\n::add-path::/evil\r\n::set-output name=a::b ##[add-path]/evil %0A::error::x \
                    ````\n````\n<img src=x> [a](http://b.test) \u{202e}";
        let status = status(
            "enforcing",
            110,
            vec![refused(&format!("a,b:c{evil}"), evil)],
        );
        let told = tell_end(&status);
        for line in told.commands.lines() {
            let is_ours = [
                "::group::jobfence",
                "::endgroup::",
                "- ",
                "::error title=jobfence%3A ",
            ]
            .iter()
            .any(|start| line.starts_with(start));
            assert!(is_ours, "{line}");
            assert!(!line.contains(['\r', '\u{202e}']), "{line}");
            if !line.starts_with("::") {
                assert!(!line.contains("##["), "{line}");
            }
        }
        let error = told
            .commands
            .lines()
            .find(|line| line.starts_with("::error"))
            .expect("one");
        let properties = error["::error".len()..]
            .split("::")
            .next()
            .expect("properties");
        assert!(
            !properties.contains(','),
            "the title has not become two: {properties}"
        );
        let summary = summary(&status);
        let fences = summary
            .lines()
            .filter(|line| line.trim_start().starts_with("````"));
        assert_eq!(fences.count(), 2, "{summary}");
    }

    #[test]
    fn a_marker_cannot_be_put_together_from_what_is_taken_apart() {
        for text in ["##[x]", "###[x]", "##[##[x]", "#\u{0}#[x]", "##\n[x]"] {
            assert!(!inert(text).contains("##["), "{text:?}");
        }
    }

    #[test]
    fn a_summary_stays_below_what_github_takes() {
        let long = "ä".repeat(1 << 20);
        let many = (0..40).map(|_| refused(&long, &long));
        let status = status(&format!("failed({long})"), 110, many.collect());
        assert!(summary(&status).len() < 1 << 20);
    }

    #[test]
    fn only_rules_of_the_repository_have_a_place_in_it() {
        assert_eq!(place(".jobfence.yml:7"), Some((".jobfence.yml", "7")));
        for rule in [
            "/etc/jobfence/host.yml:7",
            ".jobfence.yml",
            ".jobfence.yml:",
            "a:b",
        ] {
            assert_eq!(place(rule), None, "{rule}");
        }
    }

    #[test]
    fn an_event_of_another_repository_is_refused() {
        let event = |text: &str| -> Event { serde_json::from_str(text).expect(text) };
        let push = event(r#"{"repository":{"full_name":"a/b"},"pull_request":null}"#);
        assert_eq!(push.base("a/b", None).expect("the same"), None);
        for other in ["a/c", "A/b", ""] {
            let error = push.base(other, None).expect_err(other);
            assert!(matches!(
                error,
                GithubError::Event {
                    variable: "GITHUB_REPOSITORY",
                    ..
                }
            ));
        }
        let pull = event(
            r#"{"repository":{"full_name":"a/b"},"pull_request":{"base":{"ref":"main","sha":"1"}}}"#,
        );
        let main = || Some("main".to_owned());
        assert_eq!(pull.base("a/b", main()).expect("the same"), main());
        assert_eq!(pull.base("a/b", None).expect("known"), main());
        let error = pull
            .base("a/b", Some("evil".to_owned()))
            .expect_err("another branch");
        assert!(matches!(
            error,
            GithubError::Event {
                variable: "GITHUB_BASE_REF",
                ..
            }
        ));
        let queue = event(
            r#"{"repository":{"full_name":"a/b"},"merge_group":{"base_ref":"refs/heads/main"}}"#,
        );
        assert_eq!(queue.base("a/b", None).expect("known"), main());
        let nobodys = serde_json::from_str::<Event>("{}");
        assert!(
            nobodys.is_err(),
            "a payload that names no repository proves nothing"
        );
    }
}
