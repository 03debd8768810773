//! The CI runners of a host: who runs them, from which folder, as which service.

use std::path::{Component, Path, PathBuf};

use clap::ValueEnum;
use nix::unistd::{Uid, User};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use super::{
    InstallArguments,
    edit::{self, EditError},
    tree::{Place, Tree, TreeError},
    unit,
    wanted::policy_path,
};

/// GitLab Runner's configuration.
pub(super) const GITLAB_CONFIG: &str = "/etc/gitlab-runner/config.toml";

/// Characters of a runner's name: an id has 64, and `runner-`, `-` and an invocation id take 40.
const LONGEST_NAME: usize = 24;

/// Why a runner could not be found.
#[derive(Debug, Error)]
pub(super) enum RunnerError {
    /// A file cannot be looked at.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// GitLab Runner's configuration.
    #[error("cannot use {GITLAB_CONFIG}: {0}")]
    Config(#[from] EditError),
    /// Something must be said.
    #[error("{0}")]
    Unclear(String),
}

fn unclear<T>(text: impl Into<String>) -> Result<T, RunnerError> {
    Err(RunnerError::Unclear(text.into()))
}

/// A kind of CI system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum System {
    /// GitHub Actions: hooks of the runner in --runner-dir, and a fence around its service
    Github,
    /// GitLab Runner: jobfence as the custom executor of the runner --name
    Gitlab,
    /// Buildkite: hooks of the agent, and a fence around its service
    Buildkite,
    /// Buildbot: a fence around the worker's service, --unit
    Buildbot,
    /// Any other, as Jenkins: the agent, for `jobfence run` and `jobfence job`
    Generic,
}

impl System {
    /// Its name, as on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Github => "github",
            Self::Gitlab => "gitlab",
            Self::Buildkite => "buildkite",
            Self::Buildbot => "buildbot",
            Self::Generic => "generic",
        }
    }
}

/// A runner that jobfence is installed for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Runner {
    /// The CI system.
    pub(super) system: System,
    /// Its name, as it can be part of a job's id.
    pub(super) name: String,
    /// What the CI system's own configuration calls it.
    pub(super) title: String,
    /// Who runs it, and its jobs.
    pub(super) user: Option<String>,
    /// The owner and group of its folder.
    pub(super) owner: (u32, u32),
    /// The owner of the configuration that names its folder.
    #[serde(default)]
    pub(super) config_owner: u32,
    /// Its folder, where something of it changes there.
    pub(super) folder: Option<PathBuf>,
    /// Its systemd unit.
    pub(super) unit: Option<String>,
    /// Names of hosts that its platform goes by.
    pub(super) hosts: Vec<String>,
}

impl Runner {
    /// One of which nothing else is known.
    fn new(system: System, title: String, user: Option<String>) -> Self {
        Self {
            system,
            name: plain(&title),
            title,
            user,
            owner: (0, 0),
            config_owner: 0,
            folder: None,
            unit: None,
            hosts: Vec::new(),
        }
    }

    /// The runner that `arguments` mean; `known` are those that are installed.
    pub(super) fn find(
        tree: &Tree,
        arguments: &InstallArguments,
        known: &[Self],
    ) -> Result<Self, RunnerError> {
        let Some(system) = arguments.system else {
            return unclear("name the CI system");
        };
        let mut runner = match system {
            System::Github => github(tree, arguments),
            System::Gitlab => gitlab(tree, arguments),
            System::Buildkite => buildkite(tree, arguments, known),
            System::Buildbot => buildbot(arguments),
            System::Generic => Ok(generic(arguments)),
        }?;
        if let Some(unit) = &runner.unit {
            check_unit(tree, unit)?;
            // Whoever else is named, that is who its jobs are.
            let own = unit::user(tree, unit);
            if own.parse() == Ok(0) || user_named(tree, &own) == Some(0) {
                return unclear(format!(
                    "{unit} runs as root, whose jobs could take every fence away: give it a `User=` of its \
                     own"
                ));
            }
            runner.user = runner.user.or_else(|| Some(unit::user(tree, unit)));
        }
        // A unit may name its user by id.
        if let Some(name) = runner.user.as_ref().and_then(|user| user.parse().ok())
            && let Some(name) = user_with_id(tree, name)
        {
            runner.user = Some(name);
        }
        if let Some(user) = &runner.user
            && user_named(tree, user).is_none_or(|uid| uid == 0)
        {
            return unclear(format!(
                "the runner's user is {user}: jobfence needs one that exists and is not root, whose jobs \
                 could take every fence away. Change the runner, or name the user with --user"
            ));
        }
        for host in &arguments.platform_host {
            if !runner.hosts.contains(host) {
                runner.hosts.push(host.clone());
            }
        }
        if let Some(host) = runner.hosts.iter().find(|host| !is_host(host)) {
            return unclear(format!("{host:?} is no name of a host"));
        }
        Ok(runner)
    }

    /// Takes over from when it was installed before what the command line does not say. Where its
    /// folder says otherwise by now, it must: the folder is its user's, who could have named another
    /// unit in it to be let out of a fence, or another host to be let reach that.
    pub(super) fn go_on(
        &mut self,
        known: &Self,
        arguments: &InstallArguments,
    ) -> Result<(), RunnerError> {
        if self.system == System::Github {
            let differs = |what: &str, now: Option<&str>, then: Option<&str>, option: &str| {
                let quoted = |text: &str| format!("{text:?}");
                let [now, then] = [now, then].map(|text| text.map_or("none".into(), quoted));
                unclear(format!(
                    "the runner's folder names {what} {now}, and named {then} when jobfence was \
                     installed for it; its user can write there. If that is right, say so with {option}, \
                     or `jobfence uninstall` first"
                ))
            };
            let is_new = |host: &&String| {
                !known.hosts.contains(host) && !arguments.platform_host.contains(host)
            };
            if arguments.unit.is_none() && self.unit != known.unit {
                let (now, then) = (self.unit.as_deref(), known.unit.as_deref());
                return differs("the unit", now, then, "--unit");
            }
            if arguments.name.is_none() && self.title != known.title {
                return differs(
                    "the runner",
                    Some(&self.title),
                    Some(&known.title),
                    "--name",
                );
            }
            if let Some(host) = self.hosts.iter().find(is_new) {
                return differs("the host", Some(host), None, "--platform-host");
            }
        }
        if arguments.name.is_none() {
            self.name.clone_from(&known.name);
            self.title.clone_from(&known.title);
        }
        if arguments.user.is_none() {
            self.user.clone_from(&known.user);
        }
        if arguments.unit.is_none() {
            self.unit.clone_from(&known.unit);
        }
        for host in &known.hosts {
            if !self.hosts.contains(host) {
                self.hosts.push(host.clone());
            }
        }
        Ok(())
    }

    /// Whether its user is held to jobs. One without a fence of its own would be held, too.
    pub(super) fn is_guarded(&self) -> bool {
        self.unit.is_some() || self.system == System::Gitlab
    }

    /// Whether its folder is there: of a runner that is gone, none is made.
    pub(super) fn has_folder(&self, tree: &Tree) -> bool {
        let folder = self.folder.as_ref();
        folder.is_some_and(|folder| tree.exists(folder))
    }

    /// Whose the folder of `file` is: with `place`, when it was written. Root may have given one to
    /// another user since.
    pub(super) fn place_now(tree: &Tree, all: &[&Self], file: &Path, place: Place) -> Place {
        let is_runners = |folder: &&Path| all.iter().any(|it| it.folder.as_deref() == Some(folder));
        let folder = file.parent().filter(is_runners);
        match folder.map(|folder| tree.owner(folder)) {
            Some(Ok((uid, _))) if uid != 0 => Place::Runner(uid),
            _ => place,
        }
    }

    /// Whether a file is for no other runner.
    pub(super) fn has(&self, file: &Path) -> bool {
        let folder = self.folder.as_ref();
        let unit = self.unit.as_ref();
        folder.is_some_and(|folder| file.starts_with(folder))
            || unit.is_some_and(|unit| unit::drop_in(unit) == file)
            || policy_path(self) == file
    }

    /// Whose folder its own is.
    pub(super) fn place(&self) -> Place {
        // Whoever has the configuration may have the folder above as well.
        match self.owner.0 {
            0 => place_of(self.config_owner),
            uid => place_of(uid),
        }
    }

    /// Whether `other` is the same one, installed again.
    pub(super) fn is(&self, other: &Self) -> bool {
        let is_same = match self.system {
            System::Github => self.folder == other.folder,
            System::Buildkite | System::Buildbot => self.unit.is_some() && self.unit == other.unit,
            System::Gitlab | System::Generic => false,
        };
        let is_named_so = (&self.name, &self.title) == (&other.name, &other.title);
        self.system == other.system && (is_same || is_named_so && self.system != System::Github)
    }
}

fn place_of(owner: u32) -> Place {
    match owner {
        0 => Place::Host,
        uid => Place::Runner(uid),
    }
}

/// Whether this can stand in a policy: what is there of a runner, its user can have written.
fn is_host(host: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-".contains(c);
    let name = host.strip_prefix("*.").unwrap_or(host);
    !name.is_empty() && name.chars().all(plain)
}

/// A name that can be a part of an id, and of a file's name.
fn plain(title: &str) -> String {
    let usual = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let name: String = title.chars().take(LONGEST_NAME).map(usual).collect();
    let name = name.trim_matches('-');
    if name.is_empty() { "runner" } else { name }.to_owned()
}

fn github(tree: &Tree, arguments: &InstallArguments) -> Result<Runner, RunnerError> {
    let Some(folder) = arguments.runner_dir.clone() else {
        return unclear("name the runner's folder, where its config.sh was called: --runner-dir");
    };
    if !tree.exists(&folder) {
        return unclear(format!(
            "there is no folder {}: --runner-dir is the one where config.sh was called",
            folder.display()
        ));
    }
    let owner = tree.owner(&folder)?;
    let place = Place::Runner(owner.0);
    let file = folder.join(".runner");
    let settings = tree.read(&file, place)?.map(|content| content.text);
    // .NET writes a byte order mark.
    let settings: Option<Value> = settings
        .as_deref()
        .and_then(|text| serde_json::from_str(text.strip_prefix('\u{feff}').unwrap_or(text)).ok());
    let Some(settings) = settings else {
        return unclear(format!(
            "{} is not there, or cannot be read: is this where config.sh was called?",
            file.display()
        ));
    };
    let text = |key| settings.get(key).and_then(Value::as_str);
    let title = text("agentName").unwrap_or_default().to_owned();
    let mut hosts = Vec::new();
    if let Some(host) = text("gitHubUrl").and_then(host_of) {
        hosts.extend([
            host.clone(),
            format!("api.{host}"),
            format!("codeload.{host}"),
        ]);
    }
    for host in ["serverUrl", "serverUrlV2"]
        .into_iter()
        .filter_map(text)
        .filter_map(host_of)
    {
        // Its services have a name each below one that is the platform's.
        let host = match host.split_once('.') {
            Some((_, domain)) if domain.starts_with("actions.") => format!("*.{domain}"),
            _ => host,
        };
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    let owner_name = user_with_id(tree, owner.0);
    let mut unit = arguments.unit.clone();
    if unit.is_none()
        && let Some(content) = tree.read(&folder.join(".service"), place)?
    {
        // The file is the user's, who could name the service of somebody else.
        let named = content
            .text
            .trim()
            .trim_start_matches('\u{feff}')
            .to_owned();
        check_unit(tree, &named)?;
        let user = unit::user(tree, &named);
        if owner_name.as_deref() != Some(&user) {
            return unclear(format!(
                "the .service of {} names the unit {named:?}, which runs as {user} and not as the \
                 folder's owner: if it is the runner's, say so with --unit",
                folder.display()
            ));
        }
        unit = Some(named);
    }
    let user = match (&arguments.user, &unit) {
        (None, None) => owner_name.or_else(|| Some(owner.0.to_string())),
        (user, _) => user.clone(),
    };
    Ok(Runner {
        system: System::Github,
        name: plain(arguments.name.as_deref().unwrap_or(&title)),
        title,
        user,
        owner,
        config_owner: owner.0,
        folder: Some(folder),
        unit,
        hosts,
    })
}

fn gitlab(tree: &Tree, arguments: &InstallArguments) -> Result<Runner, RunnerError> {
    let Some(title) = arguments.name.clone() else {
        return unclear(format!(
            "name the runner, as [[runners]] of {GITLAB_CONFIG} does: --name"
        ));
    };
    let Some(content) = tree.read(Path::new(GITLAB_CONFIG), Place::Host)? else {
        return unclear(format!(
            "{GITLAB_CONFIG} is not there: register the runner first"
        ));
    };
    let url = edit::runner_text(&content.text, &title, &["url"])?;
    let user = arguments.user.clone();
    let user = user.or_else(|| Some("gitlab-runner".to_owned()));
    // It is root's, and starts jobs as another user: a fence around its unit would hold nobody.
    Ok(Runner {
        hosts: url.as_deref().and_then(host_of).into_iter().collect(),
        ..Runner::new(System::Gitlab, title, user)
    })
}

fn buildkite(
    tree: &Tree,
    arguments: &InstallArguments,
    known: &[Runner],
) -> Result<Runner, RunnerError> {
    let folder = arguments.runner_dir.clone();
    let folder = folder.unwrap_or_else(|| "/etc/buildkite-agent".into());
    let (folder_owner, _) = tree.owner(&folder)?;
    let place = place_of(folder_owner);
    let config = tree.read(&folder.join("buildkite-agent.cfg"), place)?;
    let config_owner = match (folder_owner, &config) {
        (0, Some(config)) => config.uid,
        (uid, _) => uid,
    };
    let config = config.map_or_else(String::new, |content| content.text);
    let hooks = edit::variables(&config, "hooks-path").last();
    let hooks = hooks.map(|path| PathBuf::from(path.trim().trim_matches(['"', '\''])));
    let hooks = hooks.unwrap_or_else(|| folder.join("hooks"));
    let owner = tree.owner(&hooks)?;
    // The configuration is the user's, who could name a folder of somebody else. Root's is for hooks
    // if it is below the configuration's, where no link leads, or was theirs before.
    let is_plain = !hooks.components().any(|part| part == Component::ParentDir);
    let is_below = is_plain && hooks.starts_with(&folder);
    let is_known = known
        .iter()
        .any(|runner| runner.system == System::Buildkite && runner.folder.as_ref() == Some(&hooks));
    let is_for_hooks = owner.0 == 0 && (is_below || is_known);
    if config_owner != 0 && owner.0 != config_owner && !is_for_hooks {
        return unclear(format!(
            "the configuration in {} belongs to user {config_owner} and names the folder of hooks {}, \
             which belongs to user {}: give both to root (`chown root:`), or both to that user",
            folder.display(),
            hooks.display(),
            owner.0
        ));
    }
    let unit = arguments.unit.clone().or_else(|| {
        let unit = "buildkite-agent.service";
        unit::file(tree, unit).map(|_| unit.to_owned())
    });
    let title = arguments
        .name
        .clone()
        .unwrap_or_else(|| "buildkite".to_owned());
    if unit.is_none() && arguments.user.is_none() {
        return unclear("the agent has no unit buildkite-agent.service: name its --unit or --user");
    }
    Ok(Runner {
        owner,
        config_owner,
        folder: Some(hooks),
        unit,
        ..Runner::new(System::Buildkite, title, arguments.user.clone())
    })
}

fn buildbot(arguments: &InstallArguments) -> Result<Runner, RunnerError> {
    let Some(unit) = arguments.unit.clone() else {
        return unclear("name the worker's systemd unit: --unit");
    };
    let title = arguments.name.clone();
    let title = title.unwrap_or_else(|| unit.trim_end_matches(".service").to_owned());
    Ok(Runner {
        unit: Some(unit),
        ..Runner::new(System::Buildbot, title, arguments.user.clone())
    })
}

fn generic(arguments: &InstallArguments) -> Runner {
    let title = arguments
        .name
        .clone()
        .unwrap_or_else(|| "generic".to_owned());
    Runner::new(System::Generic, title, arguments.user.clone())
}

/// The host of a URL.
fn host_of(url: &str) -> Option<String> {
    let rest = url.split_once("://")?.1;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit('@').next()?.split(':').next()?;
    // No wildcard: that is for who knows the platform to say.
    Some(host.to_ascii_lowercase()).filter(|host| is_host(host) && !host.contains('*'))
}

/// What else runs as the user of `runner` without a fence, and would be cut off with the user held to
/// jobs: other runners that jobfence is not installed for, as far as files tell.
pub(super) fn cut_off(tree: &Tree, runner: &Runner, known: &[Runner]) -> Vec<String> {
    let mut found = Vec::new();
    let Some(user) = runner.user.as_ref().filter(|_| runner.is_guarded()) else {
        return found;
    };
    if runner.system == System::Gitlab
        && let Some(text) = tree.peek(Path::new(GITLAB_CONFIG))
    {
        let is_known = |title: &String| {
            let mut gitlab = known.iter().filter(|other| other.system == System::Gitlab);
            gitlab.any(|other| other.title == *title)
        };
        let mut shells = edit::shell_runners(&text);
        shells.retain(|title| !is_known(title));
        let named = |title| format!("[[runners]] {title:?} of {GITLAB_CONFIG}");
        found.extend(shells.into_iter().map(named));
    }
    for unit in unit::named(tree, "actions.runner.") {
        let is_known = known.iter().any(|other| other.unit.as_ref() == Some(&unit));
        if !is_known && unit::user(tree, &unit) == *user {
            found.push(unit);
        }
    }
    found
}

fn check_unit(tree: &Tree, unit: &str) -> Result<(), RunnerError> {
    let usual = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    if !unit.ends_with(".service") || unit.starts_with('.') || !unit.chars().all(usual) {
        return unclear(format!(
            "{unit:?} is no name of a service, as in ci-runner.service"
        ));
    }
    if unit::file(tree, unit).is_none() {
        return unclear(format!(
            "there is no unit {unit}: `systemctl list-units` has the runner's"
        ));
    }
    Ok(())
}

/// A user's id. Of another root, its user database counts.
fn user_named(tree: &Tree, name: &str) -> Option<u32> {
    if tree.is_host() {
        return Some(User::from_name(name).ok()??.uid.as_raw());
    }
    passwd(tree, |fields| fields[0] == name)?[2].parse().ok()
}

/// The name of a user.
fn user_with_id(tree: &Tree, uid: u32) -> Option<String> {
    if tree.is_host() {
        return Some(User::from_uid(Uid::from_raw(uid)).ok()??.name);
    }
    Some(passwd(tree, |fields| fields[2].parse() == Ok(uid))?[0].clone())
}

/// A user's home folder.
pub(super) fn home(tree: &Tree, name: &str) -> Option<String> {
    if tree.is_host() {
        let home = User::from_name(name).ok()??.dir;
        return home.to_str().map(str::to_owned);
    }
    Some(passwd(tree, |fields| fields[0] == name)?[5].clone())
}

/// The fields of the first user of the tree's passwd(5) that `is_wanted`.
fn passwd(tree: &Tree, is_wanted: impl Fn(&[String; 7]) -> bool) -> Option<[String; 7]> {
    let text = tree.peek(Path::new("/etc/passwd"))?;
    text.lines().find_map(|line| {
        let fields: Vec<_> = line.split(':').map(str::to_owned).collect();
        fields.try_into().ok().filter(&is_wanted)
    })
}
