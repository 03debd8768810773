//! `jobfence install` and `jobfence uninstall`: what a CI runner's host needs, and back.
//!
//! - [`runner`]: which runner is meant, and what is known of it
//! - `wanted`: the files that the runners of a host need
//! - [`edit`]: small changes to files that are somebody else's
//! - `plan`: what has to be changed, and the changing
//! - [`record`]: what was installed, and what was there before
//! - [`tree`]: files, without following what a runner's user has laid out
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
use runner::{AGENT_UNIT, GITLAB_CONFIG, Runner, System};
use tree::{Content, Tree};
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
/// written there is taken out. What cannot be told apart stays, with a word on it.
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
    /// Restore what was there before also where it was changed since
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
            // It can name what a runner's user has laid out.
            let text = format!("{error:#}");
            let lines: Vec<_> = text.lines().map(visible).collect();
            report::emit(&format!("jobfence: {}\n", lines.join("\n")));
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
    let mut runner = Runner::find(&tree, arguments)?;
    refuse_other_hooks(&tree, &runner, *replace)?;
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
        Some(known) => {
            for host in &known.hosts {
                if !runner.hosts.contains(host) {
                    runner.hosts.push(host.clone());
                }
            }
            *known = runner.clone();
        }
        None => record.runners.push(runner.clone()),
    }
    let host = Host::new(&tree, &record, program(&tree)?)?;
    ensure!(
        host.socket == Path::new(SOCKET),
        "{CONFIG} says that the agent listens at {}, but hooks and units ask at {SOCKET}: take `socket` out \
         of it",
        host.socket.display()
    );
    let wanted = host.wanted(&tree, &record)?;
    let plan = Plan::new(&tree, &record, wanted, *replace)?;
    let is_nothing = plan.steps.is_empty() && record.runners == before;
    show(&plan)?;
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
        plan.apply(&tree, &mut record).context(
            "not all was changed: run this again when that is mended, or `jobfence uninstall`",
        )?;
    }
    let services = Services::of(&tree);
    if !is_nothing {
        services.reload()?;
    }
    services.settle_in(&tree, &mut record, &runner)?;
    say(&next_steps(&services, &runner, is_nothing))
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
    let (gone, kept): (Vec<_>, Vec<_>) = record.runners.drain(..).partition(is_meant);
    record.runners = kept;
    ensure!(
        !gone.is_empty() || (system.is_none() && name.is_none()),
        "no such runner is installed: `jobfence install status` tells which are"
    );
    // A program that was installed elsewhere is not at fault when it goes.
    let program = if record.runners.is_empty() {
        PROGRAM.to_owned()
    } else {
        program(&tree)?
    };
    let wanted = if record.runners.is_empty() {
        Vec::new()
    } else {
        Host::new(&tree, &record, program)?.wanted(&tree, &record)?
    };
    let plan = Plan::new(&tree, &record, wanted, *force)?;
    show(&plan)?;
    let rests = plan.notes.iter().any(|note| note.is_rest);
    if common.dry_run {
        say("This was a dry run: nothing is changed.\n")?;
        return Ok(rests.into());
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
    plan.apply(&tree, &mut record)
        .context("not all was taken back: run this again when that is mended")?;
    if services.has_systemd {
        done = done.and(services.let_go());
    }
    say(&last_steps(&services, &gone, is_ours))?;
    done?;
    Ok(rests.into())
}

/// Hooks that are in use are not replaced unless that is wanted.
fn refuse_other_hooks(tree: &Tree, runner: &Runner, replace: bool) -> Result<()> {
    if runner.system == System::Gitlab && !replace {
        let path = Path::new(GITLAB_CONFIG);
        let text = tree.read(path, tree::Place::Host)?;
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
    if runner.system != System::Github {
        return Ok(());
    }
    for (name, hook) in GITHUB_HOOKS {
        if let Some(path) = env_file(runner) {
            let text = tree.read(&path, tree::Place::Runner(runner.owner.0))?;
            let text = text.map_or_else(String::new, |content| content.text);
            let other = edit::variables(&text, name).find(|value| *value != hook);
            if let (Some(other), false) = (other, replace) {
                bail!(
                    "{} sets {name} to another hook, {}: --replace puts jobfence's in its place",
                    path.display(),
                    visible(other)
                );
            }
        }
        let unit = runner.unit.as_ref();
        if let Some(path) = unit.and_then(|unit| runner::unit_with_variable(tree, unit, name)) {
            bail!(
                "{} sets {name}, and only one file of the unit can: take it out there",
                path.display()
            );
        }
    }
    Ok(())
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
            tree.clean(Path::new(record::RECORD), tree::Place::Host)?;
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
    if runner.system == System::Buildkite && runner.owner.0 != 0 {
        _ = writeln!(
            text,
            "The folder of the hooks belongs to user {}: a job can change them. Who gets around them stays in \
             the fence of the agent. `chown root` the folder.",
            runner.owner.0
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
            "To put it to use, when the runner has no job:\n    systemctl restart {}",
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
    let mut text = "Taken back.\n".to_owned();
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

/// Prints every change.
fn show(plan: &Plan) -> Result<()> {
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

fn say(text: &str) -> Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        // Who closes the pipe, as `head` does, has what they wanted.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
