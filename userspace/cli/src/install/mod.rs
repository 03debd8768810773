//! `jobfence install` and `jobfence uninstall`: what a CI runner's host needs, and back.
//!
//! - [`runner`]: which runner is meant, and what is known of it
//! - `wanted`: the files that the runners of a host need
//! - [`edit`]: small changes to files that are somebody else's
//! - `plan`: what has to be changed, and the changing
//! - [`record`]: what was installed, and what was there before
//! - [`tree`]: files, without following what a runner's user has laid out
//! - [`mod@unit`]: what systemd's units say of a runner
//! - `status`: what of it is there, and works
//!
//! Nothing here is asked: `--dry-run` shows every change and makes none. What is running is left
//! running. A CI runner is never restarted, since it may have jobs; for the same reason an agent that
//! would begin to hold the runner's user to jobs is not started beside a runner that has no fence yet.

mod edit;
mod plan;
mod record;
mod runner;
mod status;
mod tree;
mod unit;
mod wanted;

use std::{
    env,
    fmt::Write as _,
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, Subcommand};
use jobfence_agent::{control::client::SOCKET, host::config::CONFIG, job::process::is_hidden};
use nix::unistd::geteuid;

use crate::report::{self, Style};
use plan::{Note, Plan};
use record::Record;
use runner::{GITLAB_CONFIG, Runner, System};
use tree::{Content, Place, Tree, TreeError};
use unit::AGENT_UNIT;
use wanted::{GITHUB_HOOKS, Host, env_file, policy_path};

/// The program, where no other one is known of.
const PROGRAM: &str = "/usr/bin/jobfence";

/// Set up this host for the jobs of a CI runner.
///
/// Shows every change to a file, then makes it; `--dry-run` only shows. A second time it changes
/// nothing. `jobfence uninstall` restores what was there before.
///
/// Exit status: 0; 1 when something is in the way, and then nothing was changed; of `status` 1 when
/// something is not as it should be, 2 when nothing is installed.
#[derive(Args)]
#[command(verbatim_doc_comment, args_conflicts_with_subcommands = true)]
pub(crate) struct InstallArguments {
    #[command(subcommand)]
    command: Option<InstallCommand>,
    /// The CI system
    #[arg(value_enum, value_name = "SYSTEM", required = true)]
    system: Option<System>,
    /// The runner's folder: of GitHub's the one with config.sh, of Buildkite's agent that of its
    /// configuration
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    runner_dir: Option<PathBuf>,
    /// The runner's name [default: what its own configuration says]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The runner's systemd unit [default: what its own configuration says]
    #[arg(long, value_name = "UNIT")]
    unit: Option<String>,
    /// Who runs the runner's jobs [default: the unit's user, else the folder's owner]
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// A host that the CI platform goes by, for its runner and all of its jobs; more than one may be
    /// named
    #[arg(long, value_name = "HOST")]
    platform_host: Vec<String>,
    /// Replace hooks and files that are somebody else's; `uninstall` brings them back
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Subcommand)]
enum InstallCommand {
    /// Tell what is installed, and whether it works
    Status {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
        /// The folder that is `/`: files alone are looked at
        #[arg(long, value_name = "DIR", default_value = "/")]
        root: PathBuf,
    },
}

/// Take back what `jobfence install` has changed.
///
/// Files are as they were before, byte for byte; of one that was changed since, only what jobfence had
/// written there is taken out. What is of no use without jobfence goes also when it was changed; the
/// changes are shown. Where the two cannot be told apart, the file stays, and all that it needs.
///
/// Exit status: 0; 1 when something could not be taken back.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct UninstallArguments {
    /// The CI system [default: all]
    #[arg(value_enum, value_name = "SYSTEM")]
    system: Option<System>,
    /// The runner's name [default: all of the system]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Restore what was there before also where others' changes cannot be told apart
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Common {
    /// Show what would be changed, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// The folder that is `/`, as of an image that is being made; nothing is started
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    // What is written into units and records has to mean the same to everybody.
    let path: PathBuf = path.components().collect();
    if path.is_absolute() && !text.contains("/../") && !text.ends_with("/..") {
        Ok(path)
    } else {
        Err("an absolute path without `..` is needed".to_owned())
    }
}

pub(crate) fn install(arguments: InstallArguments) -> ExitCode {
    let done = match &arguments.command {
        Some(InstallCommand::Status { json, root }) => status::status(root, *json),
        None => perform(&arguments).map(|()| 0),
    };
    exit(done)
}

pub(crate) fn uninstall(arguments: &UninstallArguments) -> ExitCode {
    exit(take_back(arguments))
}

fn exit(done: Result<u8>) -> ExitCode {
    match done {
        Ok(status) => status.into(),
        Err(error) => {
            // Most of our errors tell their causes themselves.
            let mut text = String::new();
            for cause in error.chain().map(ToString::to_string) {
                if !text.contains(&cause) {
                    text = [text, cause]
                        .into_iter()
                        .filter(|part| !part.is_empty())
                        .collect::<Vec<_>>()
                        .join(": ");
                }
            }
            // It can name what a runner's user has laid out.
            report::emit(&format!("jobfence: {}\n", visible_lines(&text).trim_end()));
            1.into()
        }
    }
}

fn perform(arguments: &InstallArguments) -> Result<()> {
    let InstallArguments {
        common, replace, ..
    } = arguments;
    let tree = common.open()?;
    let mut record = Record::load(&tree)?;
    let before = record.runners.clone();
    let mut runner = Runner::find(&tree, arguments, &record.runners)?;
    refuse_other_hooks(&tree, &runner, *replace)?;
    let known = record.runners.iter().find(|other| other.is(&runner));
    match known.cloned() {
        Some(known) => runner.go_on(&known, arguments)?,
        None => refuse_other_policy(&tree, &record, &runner, arguments)?,
    }
    let mut others = record.runners.iter().filter(|other| !other.is(&runner));
    if let Some(other) = others.find(|other| other.name == runner.name) {
        bail!(
            "the runner {} of {} is called {} here, too: give this one another --name",
            other.title,
            other.system.name(),
            other.name
        );
    }
    match record.runners.iter_mut().find(|other| other.is(&runner)) {
        Some(known) => *known = runner.clone(),
        None => record.runners.push(runner.clone()),
    }
    let is_leaving = record.leaving.iter().any(|other| other.is(&runner));
    record.leaving.retain(|other| !other.is(&runner));
    let host = Host::new(&tree, &record, program(&tree)?)?;
    ensure!(
        host.socket == Path::new(SOCKET),
        "{CONFIG} says that the agent listens at {}, but hooks and units ask at {SOCKET}: take `socket` out \
         of it",
        host.socket.display()
    );
    let wanted = host.wanted(&tree, &record);
    let plan = Plan::install(&tree, &record, wanted, *replace)?;
    let is_nothing = plan.is_empty() && record.runners == before && !is_leaving;
    show(&plan, true)?;
    let services = Services::of(&tree);
    if !is_nothing {
        warn(&tree, &services, &record, &runner)?;
    }
    if common.dry_run {
        return say(if is_nothing {
            "Nothing to change.\n"
        } else {
            "This was a dry run: nothing is changed.\n"
        });
    }
    if is_nothing {
        say("Nothing to change.\n")?;
    } else {
        let applied = plan.apply(&tree, &mut record).map(drop);
        let saved = applied.and_then(|()| Ok(record.save(&tree)?));
        saved.context(
            "not all was changed: run this again when that is mended, or `jobfence uninstall`",
        )?;
    }
    if !is_nothing {
        services.reload()?;
    }
    services.settle_in(&tree, &mut record, &runner)?;
    say(&next_steps(&services, &runner, is_nothing))
}

/// Says what may not be meant, before it is done.
fn warn(tree: &Tree, services: &Services, record: &Record, runner: &Runner) -> Result<()> {
    let mut text = String::new();
    let others = runner::cut_off(tree, runner, &record.runners);
    if let (Some(user), false) = (&runner.user, others.is_empty()) {
        _ = writeln!(
            text,
            "Careful: these run as {user}, too, and reach nothing any more until jobfence is installed for \
             them: {}",
            others.join(", ")
        );
    }
    // Of a template, any instance seems to be there.
    if let Some(unit) = runner.unit.as_ref().filter(|unit| unit.contains('@'))
        && services.has_systemd
        && !["is-enabled", "is-active", "is-failed"]
            .into_iter()
            .any(|question| services.is(question, unit))
    {
        _ = writeln!(
            text,
            "Careful: {unit} is neither enabled nor running. Is that its name?"
        );
    }
    say(&visible_lines(&text))
}

fn take_back(arguments: &UninstallArguments) -> Result<u8> {
    let UninstallArguments {
        system,
        name,
        force,
        common,
    } = arguments;
    let tree = common.open()?;
    let mut record = Record::load(&tree)?;
    if record.is_empty() {
        if !common.dry_run {
            record.save(&tree)?;
        }
        say("Nothing is installed.\n")?;
        return Ok(0);
    }
    let is_meant = |runner: &Runner| {
        system.is_none_or(|system| system == runner.system)
            && name
                .as_ref()
                .is_none_or(|name| [&runner.name, &runner.title].contains(&name))
    };
    let (leaving, kept): (Vec<_>, Vec<_>) = record.runners.drain(..).partition(is_meant);
    record.runners = kept;
    // What was in the way of others that were meant before may be mended by now.
    let newly = leaving.clone();
    record.leaving.extend(leaving);
    let mut gone: Vec<_> = record
        .leaving
        .iter()
        .filter(|runner| is_meant(runner))
        .cloned()
        .collect();
    // What an interruption has left is no runner's.
    let is_any = system.is_none() && name.is_none()
        || record.runners.is_empty() && record.leaving.is_empty();
    ensure!(
        !gone.is_empty() || is_any,
        "no such runner is installed: `jobfence install status` tells which are"
    );
    let mut plan = plan_without(&tree, &record, *force)?;
    // A half of a runner would be worse than the whole: its jobs would fail.
    let kept: Vec<_> = plan.notes.extract_if(.., |note| note.keeps()).collect();
    if !kept.is_empty() {
        let all = gone.clone();
        let is_kept = |runner: &Runner| kept.iter().any(|note| note.keeps_of(runner, &all));
        let stay = |runner: &Runner| newly.iter().any(|other| other == runner) && is_kept(runner);
        record
            .runners
            .extend(record.leaving.extract_if(.., |runner| stay(runner)));
        gone.retain(|runner| !stay(runner));
        plan = plan_without(&tree, &record, *force)?;
        plan.notes
            .retain(|note| kept.iter().all(|other| other.path != note.path));
        plan.notes.extend(kept);
    }
    let is_forced = |note: &Note| note.keeps() && note.changed.is_some();
    let could_be_forced = plan.notes.iter().any(is_forced);
    show(&plan, common.dry_run)?;
    let rests = plan.notes.iter().filter(|note| note.rest.is_some());
    let mut rests: Vec<_> = rests.map(|note| note.path.clone()).collect();
    if common.dry_run {
        say("This was a dry run: nothing is changed.\n")?;
        return Ok((!rests.is_empty()).into());
    }
    let services = Services::of(&tree);
    let is_agent = |path: &Path| path.file_name().is_some_and(|name| name == AGENT_UNIT);
    let is_gone = plan
        .steps
        .iter()
        .any(|step| step.after.is_none() && is_agent(&step.path));
    let is_ours = record.runners.is_empty() && (record.enabled || is_gone);
    let mut done = Ok(());
    if record.enabled && record.runners.is_empty() {
        record.enabled = false;
        // What systemd has against that is no reason to leave the rest.
        done = services.systemctl(&["disable", AGENT_UNIT]);
    }
    let failed = plan.apply(&tree, &mut record).and_then(|failed| {
        rests.extend(failed.iter().map(|(path, _)| path.clone()));
        // What no runner alone has, each has.
        let is_shared = |path: &PathBuf| !record.leaving.iter().any(|runner| runner.has(path));
        let is_shared = rests.iter().any(is_shared);
        let is_rest = |runner: &Runner| is_shared || rests.iter().any(|path| runner.has(path));
        record.leaving.retain(is_rest);
        record.save(&tree)?;
        Ok(failed)
    });
    let failed = failed.context("not all was taken back: run this again when that is mended")?;
    for (path, error) in &failed {
        let note = format!("{}: stays as it is: {error}", path.display());
        say(&(visible(&note) + "\n"))?;
    }
    if services.has_systemd {
        done = done.and(services.let_go());
    }
    let is_whole = rests.is_empty();
    if is_whole {
        say("Uninstalled.\n")?;
    } else {
        say("Not all is taken back: see to what stays, and run this again.\n")?;
    }
    if could_be_forced {
        let of = system.map(|system| format!(" {}", system.name()));
        let named = name.as_ref().map(|name| format!(" --name {name:?}"));
        let words = [of, named].map(Option::unwrap_or_default).concat();
        say(&format!(
            "What was there before comes back in place of what was changed with:\n    jobfence \
             uninstall{words} --force\n"
        ))?;
    }
    say(&last_steps(&services, &gone, is_ours))?;
    done?;
    Ok((!is_whole).into())
}

/// What has to be changed so that what only runners need that are not in `record` any more is gone.
fn plan_without(tree: &Tree, record: &Record, force: bool) -> Result<Plan> {
    let wanted = if record.runners.is_empty() {
        Vec::new()
    } else {
        // A program that was installed elsewhere is not at fault when it goes.
        Host::new(tree, record, program(tree)?)?.wanted(tree, record)
    };
    Ok(Plan::uninstall(tree, record, wanted, force)?)
}

/// What a runner calls itself, its user can have chosen: a policy that is there already is not its own
/// for that.
fn refuse_other_policy(
    tree: &Tree,
    record: &Record,
    runner: &Runner,
    arguments: &InstallArguments,
) -> Result<()> {
    let path = policy_path(runner);
    let is_ours = record.files.contains_key(&path) || arguments.name.is_some();
    ensure!(
        is_ours || runner.folder.is_none() || tree.peek(&path).is_none(),
        "{} is there, and is not of a runner that jobfence was installed for: if this one is to have that \
         policy, say so with --name {}, else give it another name",
        path.display(),
        runner.name
    );
    Ok(())
}

/// Hooks that are in use are not replaced unless that is wanted.
fn refuse_other_hooks(tree: &Tree, runner: &Runner, replace: bool) -> Result<()> {
    if runner.system == System::Gitlab && !replace {
        let path = Path::new(GITLAB_CONFIG);
        let text = tree.read(path, Place::Host)?;
        let text = text.map_or_else(String::new, |content| content.text);
        let other = edit::runner_text(&text, &runner.title, &["custom", "run_exec"])?;
        if let Some(other) = other.filter(|other| !other.ends_with("/jobfence")) {
            bail!(
                "the runner {:?} of {GITLAB_CONFIG} has another driver, {}: --replace puts jobfence in its \
                 place",
                runner.title,
                visible(&other)
            );
        }
    }
    let in_the_way = other_hooks(tree, runner)?
        .into_iter()
        .find(|other| !(replace && other.is_replaced));
    if let Some(OtherHook { problem, .. }) = in_the_way {
        bail!(problem);
    }
    Ok(())
}

/// Something that has a runner call another hook than jobfence's.
struct OtherHook {
    /// What it is, and what to do.
    problem: String,
    /// Whether `--replace` puts it right.
    is_replaced: bool,
}

/// What has the runner call other hooks than jobfence's.
fn other_hooks(tree: &Tree, runner: &Runner) -> Result<Vec<OtherHook>, TreeError> {
    let mut found: Vec<OtherHook> = Vec::new();
    let mut add = |problem, is_replaced| {
        // What stands in the way of both hooks is told once.
        if found.iter().all(|other| other.problem != problem) {
            found.push(OtherHook {
                problem,
                is_replaced,
            });
        }
    };
    if let Some(path) = env_file(runner) {
        let text = tree.read(&path, Place::Runner(runner.owner.0))?;
        let text = text.map_or_else(String::new, |content| content.text);
        for (name, hook) in GITHUB_HOOKS {
            let mut values = edit::variables(&text, name).peekable();
            // The runner puts what this file says in place of what its service has.
            let is_set = values.peek().is_some();
            if let Some(other) = values.find(|value| *value != hook) {
                let (path, other) = (path.display(), visible(other));
                add(
                    format!(
                        "{path} sets {name} to another hook, {other}: --replace puts jobfence's in its \
                         place"
                    ),
                    true,
                );
            } else if let (Some(unit), false) = (&runner.unit, is_set)
                && let Some(contrary) = unit::contrary(tree, unit, (name, hook), true)
            {
                add(contrary.to_string(), false);
            }
        }
    }
    if let (System::Buildkite, Some(folder), Some(unit)) =
        (runner.system, &runner.folder, &runner.unit)
    {
        let shown = folder.display();
        let ours = format!(
            "jobfence's hooks are in {shown}, as buildkite-agent.cfg says: name one folder in both"
        );
        // It goes before the variable.
        match unit::option(tree, unit, "hooks-path") {
            Some(other) if Path::new(&other) == folder => {}
            Some(other) => add(
                format!(
                    "{unit} calls the agent with --hooks-path {}, and {ours}",
                    visible(&other)
                ),
                false,
            ),
            None => {
                let wanted = ("BUILDKITE_HOOKS_PATH", &*folder.to_string_lossy());
                if let Some(contrary) = unit::contrary(tree, unit, wanted, false) {
                    add(format!("{contrary}; {ours}"), false);
                }
            }
        }
    }
    Ok(found)
}

impl Common {
    fn open(&self) -> Result<Tree> {
        let tree = Tree::open(&self.root)?;
        if !self.dry_run {
            ensure!(
                geteuid().is_root(),
                "only root can change what jobs are held to: run this with sudo"
            );
            tree.lock()?;
            // Where nothing is left to do, nobody else would.
            tree.clean(Path::new(record::RECORD), Place::Host)?;
        }
        Ok(tree)
    }
}

/// The path of this program, for units and hooks.
fn program(tree: &Tree) -> Result<String> {
    if !tree.is_host() {
        return Ok(PROGRAM.to_owned());
    }
    let path = env::current_exe().context("cannot tell where this program is")?;
    for part in path.ancestors() {
        let meta = part
            .metadata()
            .with_context(|| format!("cannot look at {}", part.display()))?;
        ensure!(
            meta.uid() == 0 && meta.mode() & 0o022 == 0,
            "others than root can change {}, which root and hooks would run: install the program first, \
             as with `install -m 755 {} /usr/local/bin/`",
            part.display(),
            path.display()
        );
    }
    let path = path
        .to_str()
        .context("the path of this program is not UTF-8")?;
    ensure!(
        path.chars()
            .all(|c| c.is_ascii_alphanumeric() || "/._-+".contains(c)),
        "units and hooks cannot name a path like {path:?}: install the program in /usr/local/bin"
    );
    Ok(path.to_owned())
}

/// The services of the host, where it has systemd and is the running one.
struct Services {
    is_host: bool,
    has_systemd: bool,
}

impl Services {
    fn of(tree: &Tree) -> Self {
        Self {
            is_host: tree.is_host(),
            // As sd_booted(3) tells.
            has_systemd: tree.is_host() && Path::new("/run/systemd/system").is_dir(),
        }
    }

    /// Whether `systemctl QUESTION UNIT` says yes.
    fn is(&self, question: &str, unit: &str) -> bool {
        self.has_systemd
            && Command::new("systemctl")
                .args([question, "--quiet", unit])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
    }

    fn systemctl(&self, arguments: &[&str]) -> Result<()> {
        if !self.has_systemd {
            return Ok(());
        }
        say(&format!("systemctl {}\n", arguments.join(" ")))?;
        let status = Command::new("systemctl")
            .args(arguments)
            .status()
            .context("cannot run systemctl")?;
        ensure!(
            status.success(),
            "`systemctl {}` failed",
            arguments.join(" ")
        );
        Ok(())
    }

    fn reload(&self) -> Result<()> {
        self.systemctl(&["daemon-reload"])
    }

    /// Has the agent start with the host, and now unless that would cut off a runner that runs.
    fn settle_in(&self, tree: &Tree, record: &mut Record, runner: &Runner) -> Result<()> {
        if !self.has_systemd {
            return Ok(());
        }
        if !self.is("is-enabled", AGENT_UNIT) {
            record.enabled = true;
            record.save(tree)?;
            self.systemctl(&["enable", AGENT_UNIT])?;
        }
        if !self.is("is-active", AGENT_UNIT) && !self.has_jobs(runner) {
            self.systemctl(&["start", AGENT_UNIT])?;
        }
        Ok(())
    }

    /// Whether the runner may have jobs that are not fenced.
    fn has_jobs(&self, runner: &Runner) -> bool {
        match (&runner.unit, runner.system) {
            (_, System::Generic) if runner.user.is_none() => false,
            (Some(unit), _) => self.is("is-active", unit),
            (None, _) => true,
        }
    }

    /// Has the agent do without what was taken back: a user that it holds to jobs is held until an agent
    /// starts that is not told to. Running jobs stay as they are, and go on needing it.
    fn let_go(&self) -> Result<()> {
        let is_active = self.is("is-active", AGENT_UNIT);
        let is_held = Path::new("/sys/fs/bpf/jobfence").exists();
        let mut done = Ok(());
        if is_active || is_held && self.is("cat", AGENT_UNIT) {
            // Before systemd is told of a unit that may be gone.
            done = self.systemctl(&["restart", AGENT_UNIT]);
            if !is_active {
                done = done.and(self.systemctl(&["stop", AGENT_UNIT]));
            }
        }
        self.reload().and(done)
    }
}

/// What is to be done by hand, after an installation.
fn next_steps(services: &Services, runner: &Runner, is_nothing: bool) -> String {
    let mut text = String::new();
    if wanted::platform(runner).is_empty() && runner.system != System::Generic {
        _ = writeln!(
            text,
            "The runner can reach nothing yet: name the hosts of its CI platform with --platform-host, \
             or in {}.",
            policy_path(runner).display()
        );
    }
    if runner.system == System::Github && !runner.hosts.is_empty() && !is_nothing {
        _ = writeln!(
            text,
            "Every job of this host may reach these hosts, which the runner's .runner file names: {}.",
            runner.hosts.join(", ")
        );
    }
    if let (System::Buildkite, Some(folder)) = (runner.system, &runner.folder)
        && runner.owner.0 != 0
    {
        _ = writeln!(
            text,
            "The folder of the hooks belongs to user {}: a job can change them. A job that skips them is \
             held by the fence of Buildkite's agent. Root should have it, and the folder that it is in: `chown root: {} {}`, \
             and install again.",
            runner.owner.0,
            folder.parent().unwrap_or(folder).display(),
            folder.display()
        );
    }
    if !services.is_host {
        _ = writeln!(
            text,
            "Nothing was started. On the host: systemctl daemon-reload && systemctl enable {AGENT_UNIT}"
        );
    }
    if services.is_host && !services.has_systemd {
        _ = writeln!(
            text,
            "No systemd runs here. Start the agent, then the runner, and fence it:\n    jobfence agent &\n    \
             jobfence job start --runner --id runner-{0}-1 --pid PID --policy {1}",
            runner.name,
            policy_path(runner).display()
        );
        return text;
    }
    let restart: Vec<_> = [Some(AGENT_UNIT), runner.unit.as_deref()]
        .into_iter()
        .flatten()
        .collect();
    if !is_nothing {
        _ = writeln!(
            text,
            "To put it to use{}:\n    systemctl restart {}",
            match runner.system {
                System::Generic => "",
                _ => ", when the runner has no job",
            },
            restart.join(" ")
        );
        if runner.unit.is_none() && matches!(runner.system, System::Github | System::Buildkite) {
            _ = writeln!(
                text,
                "and restart the runner. Since it is no systemd service, it has no fence of its own, and its \
                 user is not held to jobs: make it one, and install again."
            );
        }
        _ = writeln!(text, "Then see:\n    jobfence install status");
        if let Some(user) = &runner.user {
            _ = writeln!(text, "    jobfence doctor --user {user}");
        }
    }
    text
}

/// What is to be done by hand, after it was taken back. `is_ours`: nobody else has the agent run.
fn last_steps(services: &Services, gone: &[Runner], is_ours: bool) -> String {
    let mut text = String::new();
    if services.is_host && !services.has_systemd {
        return text;
    }
    let units: Vec<_> = gone
        .iter()
        .filter_map(|runner| runner.unit.as_deref())
        .collect();
    if !units.is_empty() {
        _ = writeln!(
            text,
            "The runner stays in its fence until it is started again. When it has no job:\n    \
             systemctl restart {}",
            units.join(" ")
        );
    }
    if is_ours && services.is("is-active", AGENT_UNIT) {
        _ = writeln!(
            text,
            "The agent goes on for the jobs that are running. When there are none:\n    systemctl stop {AGENT_UNIT}"
        );
    }
    text
}

/// Prints every change; `removed`: also what files say that are removed.
fn show(plan: &Plan, removed: bool) -> Result<()> {
    let style = Style::of(&io::stdout());
    let mut text = String::new();
    for step in &plan.steps {
        let (verb, content) = match (&step.before, &step.after) {
            (None, Some(after)) => ("create", Some(after)),
            (Some(before), Some(after))
                if (before.mode, before.uid, before.gid) != (after.mode, after.uid, after.gid) =>
            {
                ("change", Some(after))
            }
            (_, Some(_)) => ("change", None),
            (_, None) => ("remove", None),
        };
        let about = content.map_or_else(String::new, |content| format!(" ({content})"));
        _ = writeln!(
            text,
            "{verb} {}{about}",
            visible(&step.path.to_string_lossy())
        );
        if step.after.is_none() && !removed {
            continue;
        }
        let of = |content: &Option<Content>| {
            content
                .as_ref()
                .map_or_else(String::new, |content| content.text.clone())
        };
        // Lines beside the changed ones can hold secrets, in files that not everybody may read.
        let is_private = [&step.before, &step.after]
            .into_iter()
            .flatten()
            .any(|content| content.mode & 0o004 == 0)
            || step.path.file_name().is_some_and(|name| name == ".env");
        diff(
            &mut text,
            &of(&step.before),
            &of(&step.after),
            is_private,
            style,
        );
    }
    for Note {
        path,
        text: said,
        changed,
        ..
    } in &plan.notes
    {
        _ = writeln!(text, "{}: {said}", visible(&path.to_string_lossy()));
        if let Some((written, current)) = changed {
            diff(&mut text, written, current, true, style);
        }
    }
    say(&text)
}

/// The lines that differ, as `diff -u` has them.
fn diff(text: &mut String, before: &str, after: &str, is_private: bool, style: Style) {
    let mut options = diffy::DiffOptions::new();
    if is_private {
        options.set_context_len(0);
    }
    let patch = options.create_patch(before, after).to_string();
    // Without the names, which stand above.
    for line in patch.lines().skip(2) {
        let line = format!("    {}", visible(line));
        let line = match line.as_bytes().get(4) {
            Some(b'+') => style.green(line),
            Some(b'-') => style.red(line),
            _ => line,
        };
        _ = writeln!(text, "{line}");
    }
}

/// `text` without characters that would change what the terminal shows.
fn visible(text: &str) -> String {
    let shown = |c: char| {
        if is_hidden(c) && c != '\t' {
            c.escape_default().to_string()
        } else {
            c.to_string()
        }
    };
    text.chars().map(shown).collect()
}

fn visible_lines(text: &str) -> String {
    text.lines().map(|line| visible(line) + "\n").collect()
}

fn say(text: &str) -> Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        // Who closes the pipe, as `head` does, has what they wanted.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
