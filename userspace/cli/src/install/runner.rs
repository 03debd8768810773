//! The CI runners of a host: who runs them, from which folder, as which service.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use nix::unistd::{Uid, User};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use super::{
    InstallArguments,
    edit::{self, EditError},
    tree::{Place, Tree, TreeError},
};

/// Folders of units, the first with a unit counts (systemd.unit(5)).
const UNITS: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// Where units that an administrator makes or changes are.
pub(super) const ETC_UNITS: &str = "/etc/systemd/system";

/// Name of the drop-in.
pub(super) const DROP_IN: &str = "jobfence.conf";

/// The unit of the agent.
pub(super) const AGENT_UNIT: &str = "jobfence-agent.service";

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
    /// Any other: the agent, for `jobfence run` and `jobfence job`
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
    /// Its folder, where something of it changes there.
    pub(super) folder: Option<PathBuf>,
    /// Its systemd unit.
    pub(super) unit: Option<String>,
    /// Names of hosts that its platform goes by.
    pub(super) hosts: Vec<String>,
}

impl Runner {
    /// The runner that `arguments` mean.
    pub(super) fn find(tree: &Tree, arguments: &InstallArguments) -> Result<Self, RunnerError> {
        let Some(system) = arguments.system else {
            return unclear("name the CI system");
        };
        let mut runner = match system {
            System::Github => github(tree, arguments),
            System::Gitlab => gitlab(tree, arguments),
            System::Buildkite => buildkite(tree, arguments),
            System::Buildbot => buildbot(arguments),
            System::Generic => Ok(generic(arguments)),
        }?;
        if let Some(unit) = &runner.unit {
            check_unit(tree, unit)?;
            runner.user = runner.user.or_else(|| Some(user_of_unit(tree, unit)));
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

    /// Where its drop-in is.
    pub(super) fn drop_in(&self) -> Option<PathBuf> {
        let unit = self.unit.as_ref()?;
        Some(Path::new(ETC_UNITS).join(format!("{unit}.d")).join(DROP_IN))
    }

    /// Whose folder its own is.
    pub(super) fn place(&self) -> Place {
        place_of(self.owner.0)
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
            "{} is not there, or cannot be read: configure the runner with its config.sh first",
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
        let user = user_of_unit(tree, &named);
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
    Ok(Runner {
        system: System::Gitlab,
        name: plain(&title),
        title,
        user: user.or_else(|| Some("gitlab-runner".to_owned())),
        owner: (0, 0),
        folder: None,
        // It is root's, and starts jobs as another user: a fence around it would hold nobody.
        unit: None,
        hosts: url.as_deref().and_then(host_of).into_iter().collect(),
    })
}

fn buildkite(tree: &Tree, arguments: &InstallArguments) -> Result<Runner, RunnerError> {
    let folder = arguments.runner_dir.clone();
    let folder = folder.unwrap_or_else(|| "/etc/buildkite-agent".into());
    let (config_owner, _) = tree.owner(&folder)?;
    let place = place_of(config_owner);
    let config = tree.read(&folder.join("buildkite-agent.cfg"), place)?;
    let config = config.map_or_else(String::new, |content| content.text);
    let hooks = edit::variables(&config, "hooks-path").last();
    let hooks = hooks.map(|path| PathBuf::from(path.trim().trim_matches(['"', '\''])));
    let hooks = hooks.unwrap_or_else(|| folder.join("hooks"));
    let owner = tree.owner(&hooks)?;
    // The configuration is the user's, who could name a folder of somebody else.
    if config_owner != 0 && owner.0 != config_owner {
        return unclear(format!(
            "{} belongs to user {config_owner} and names the folder of hooks {}, which belongs to user {}",
            folder.display(),
            hooks.display(),
            owner.0
        ));
    }
    let unit = arguments.unit.clone().or_else(|| {
        let unit = "buildkite-agent.service";
        unit_file(tree, unit).map(|_| unit.to_owned())
    });
    let title = arguments
        .name
        .clone()
        .unwrap_or_else(|| "buildkite".to_owned());
    if unit.is_none() && arguments.user.is_none() {
        return unclear("the agent has no unit buildkite-agent.service: name its --unit or --user");
    }
    Ok(Runner {
        system: System::Buildkite,
        name: plain(&title),
        title,
        user: arguments.user.clone(),
        owner,
        folder: Some(hooks),
        unit,
        hosts: Vec::new(),
    })
}

fn buildbot(arguments: &InstallArguments) -> Result<Runner, RunnerError> {
    let Some(unit) = arguments.unit.clone() else {
        return unclear("name the worker's systemd unit: --unit");
    };
    let title = arguments.name.clone();
    let title = title.unwrap_or_else(|| unit.trim_end_matches(".service").to_owned());
    Ok(Runner {
        system: System::Buildbot,
        name: plain(&title),
        title,
        user: arguments.user.clone(),
        owner: (0, 0),
        folder: None,
        unit: Some(unit),
        hosts: Vec::new(),
    })
}

fn generic(arguments: &InstallArguments) -> Runner {
    let title = arguments
        .name
        .clone()
        .unwrap_or_else(|| "generic".to_owned());
    Runner {
        system: System::Generic,
        name: plain(&title),
        title,
        user: arguments.user.clone(),
        owner: (0, 0),
        folder: None,
        unit: None,
        hosts: Vec::new(),
    }
}

/// The host of a URL.
fn host_of(url: &str) -> Option<String> {
    let rest = url.split_once("://")?.1;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit('@').next()?.split(':').next()?;
    Some(host.to_ascii_lowercase()).filter(|host| is_host(host))
}

/// The files that make up a unit, the main one first.
fn unit_files(tree: &Tree, unit: &str) -> Vec<PathBuf> {
    let main = unit_file(tree, unit);
    let mut drop_ins = Vec::new();
    for folder in UNITS {
        let folder = Path::new(folder).join(format!("{unit}.d"));
        for name in tree.names(&folder) {
            if name.ends_with(".conf") {
                drop_ins.push((name.clone(), folder.join(name)));
            }
        }
    }
    // In whichever folder they are, by their names.
    drop_ins.sort();
    main.into_iter()
        .chain(drop_ins.into_iter().map(|(_, path)| path))
        .collect()
}

/// The main file of a unit.
pub(super) fn unit_file(tree: &Tree, unit: &str) -> Option<PathBuf> {
    // An instance `a@b.service` is made of `a@.service`.
    let template = unit
        .split_once('@')
        .and_then(|(name, rest)| Some(format!("{name}@.{}", rest.rsplit_once('.')?.1)));
    [Some(unit.to_owned()), template]
        .into_iter()
        .flatten()
        .flat_map(|name| UNITS.map(|folder| Path::new(folder).join(&name)))
        .find(|path| tree.exists(path))
}

fn check_unit(tree: &Tree, unit: &str) -> Result<(), RunnerError> {
    let usual = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    if !unit.ends_with(".service") || unit.starts_with('.') || !unit.chars().all(usual) {
        return unclear(format!(
            "{unit:?} is no name of a service, as in ci-runner.service"
        ));
    }
    if unit_file(tree, unit).is_none() {
        return unclear(format!(
            "there is no unit {unit}: `systemctl list-units` has the runner's"
        ));
    }
    Ok(())
}

/// Who runs a unit.
fn user_of_unit(tree: &Tree, unit: &str) -> String {
    let mut user = "root".to_owned();
    for file in unit_files(tree, unit) {
        let text = tree.peek(&file).unwrap_or_default();
        if let Some(said) = edit::variables(&text, "User").last() {
            said.trim().clone_into(&mut user);
        }
    }
    user
}

/// The file of `unit` that sets the variable `name`, other than ours.
pub(super) fn unit_with_variable(tree: &Tree, unit: &str, name: &str) -> Option<PathBuf> {
    unit_files(tree, unit).into_iter().find(|path| {
        let is_ours = path.file_name().is_some_and(|name| name == DROP_IN);
        let text = tree.peek(path).unwrap_or_default();
        let mut lines = text.lines().map(str::trim_start);
        !is_ours && lines.any(|line| line.starts_with("Environment=") && line.contains(name))
    })
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
