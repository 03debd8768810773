//! `agent.yml`: what the administrator of a host decides.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::OFlag,
    unistd::{Group, Uid, User},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::metrics::Listen;
use crate::control::client::SOCKET;

/// Where the configuration is, by custom.
pub const CONFIG: &str = "/etc/jobfence/agent.yml";

/// The file beside the agent's socket that says which configuration it goes by.
pub const IN_USE: &str = "in-use.yml";

/// What cannot be used of a configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others than root could change what is fenced.
    #[error(
        "the configuration {path} can be changed by others than root: `chown root {path}` and \
         `chmod go-w {path}`"
    )]
    NotRoots {
        /// The file.
        path: PathBuf,
    },
    /// It is no YAML, or has a key or a value that is not known.
    #[error("the configuration {path} is invalid: {source}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, with its key, line and column.
        source: serde_yaml::Error,
    },
    /// A value cannot be used.
    #[error("the configuration {path} is invalid: {key}: {problem}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What is wrong with its value, and what would be right.
        problem: String,
    },
}

/// What an `agent.yml` says, or what goes without saying.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Path of the control socket.
    pub socket: PathBuf,
    /// Group whose members are trusted as root is: they start, end and see all jobs. None by
    /// default.
    pub group: Option<String>,
    /// Users that run CI runners: what they say of a job's repository decides which policy of the
    /// host it gets. What others say does not.
    pub runners: Vec<String>,
    /// Who is held to jobs.
    pub guard: Guard,
    /// Folder for what outlives the agent.
    pub state: PathBuf,
    /// Folder of the jobs' logs.
    pub logs: PathBuf,
    /// Cgroup in which the jobs' are made; by default the agent's own.
    pub cgroup: Option<PathBuf>,
    /// Folder with the policies of repositories: that of `group/project` is
    /// `group/project.yml`.
    pub policies: Option<PathBuf>,
    /// Folder with mirrors of repositories, that of `group/project` in `group/project.git`: what a
    /// repository's default branch says there is its policy, where `policies` has none for it.
    pub mirrors: Option<PathBuf>,
    /// A command that prints that policy instead, and its arguments. It gets the repository in
    /// `JOBFENCE_REPO` and the branch in `JOBFENCE_REF`, and exits with 3 when there is none.
    pub policy_command: Vec<String>,
    /// Branches beside the default branch that count: a job's policy is of the one that it is built
    /// for. `*` stands for any part of a name without `/`.
    pub refs: Vec<String>,
    /// The host's own policy: what no job may go beyond, what each may reach, and what none may.
    pub host_policy: Option<PathBuf>,
    /// Folder with the host's presets.
    pub presets: Option<PathBuf>,
    /// Jobs at once, at most.
    pub jobs: u32,
    /// How long logs are kept.
    pub retention: Retention,
    /// Where numbers for Prometheus are to be had; nowhere by default.
    #[serde(with = "serde_yaml::with::singleton_map")]
    pub metrics: Option<Listen>,
    /// Base URL of an OpenTelemetry collector that gets the jobs' logs, by OTLP over HTTP; none by
    /// default.
    pub otlp: Option<String>,
}

/// Who is held to jobs: a way out of a fence is to have something outside of it run for the job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Guard {
    /// Users whose processes can have network sockets in jobs only.
    pub users: Vec<String>,
}

/// How long logs of jobs that have ended are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// Days after the end of a job.
    pub days: u32,
    /// Bytes that all logs together may have; the oldest go first.
    pub bytes: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            socket: SOCKET.into(),
            group: None,
            runners: Vec::new(),
            guard: Guard::default(),
            state: "/var/lib/jobfence".into(),
            logs: "/var/log/jobfence".into(),
            cgroup: None,
            policies: None,
            mirrors: None,
            policy_command: Vec::new(),
            refs: Vec::new(),
            host_policy: None,
            presets: None,
            jobs: MAX_JOBS,
            retention: Retention::default(),
            metrics: None,
            otlp: None,
        }
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            days: 30,
            bytes: 1 << 30,
        }
    }
}

/// Jobs at once: the kernel's maps have that many places, and one for none.
const MAX_JOBS: u32 = jobfence_abi::MAX_JOBS - 1;

/// Bytes of a configuration, at most.
const MAX_BYTES: u64 = 64 << 10;

impl Config {
    /// Reads the configuration at `given`, or the one at [`CONFIG`]; where that is not there, all is
    /// as by default.
    ///
    /// # Errors
    ///
    /// [`ConfigError`].
    pub fn load(given: Option<&Path>) -> Result<Self, ConfigError> {
        let path = given.unwrap_or(Path::new(CONFIG));
        match read(path) {
            Ok((file, text)) => {
                let meta = file.metadata().map_err(|source| unreadable(path, source))?;
                if meta.uid() != 0 || meta.mode() & 0o022 != 0 {
                    return Err(ConfigError::NotRoots {
                        path: path.to_owned(),
                    });
                }
                Self::parse(path, &text)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && given.is_none() => {
                Ok(Self::default())
            }
            Err(source) => Err(unreadable(path, source)),
        }
    }

    /// The configuration with every key, as the agent leaves it beside its socket ([`IN_USE`]) once it
    /// goes by it.
    ///
    /// # Panics
    ///
    /// Never: each value is one that YAML has.
    #[must_use]
    pub fn whole(&self) -> String {
        serde_yaml::to_string(self).expect("YAML has each of the values")
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        // A file of comments is an empty document, which is no map.
        let parsed: Option<Self> =
            serde_yaml::from_str(text).map_err(|source| ConfigError::Invalid {
                path: path.to_owned(),
                source,
            })?;
        let config = parsed.unwrap_or_default();
        config.check(path)?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let wrong = |key, problem: String| ConfigError::Value {
            path: path.to_owned(),
            key,
            problem,
        };
        let paths = [
            ("socket", Some(&self.socket)),
            ("state", Some(&self.state)),
            ("logs", Some(&self.logs)),
            ("cgroup", self.cgroup.as_ref()),
            ("policies", self.policies.as_ref()),
            ("mirrors", self.mirrors.as_ref()),
            ("host_policy", self.host_policy.as_ref()),
            ("presets", self.presets.as_ref()),
        ];
        for (key, value) in paths {
            if let Some(value) = value.filter(|value| !value.is_absolute()) {
                let problem = format!("{} is not an absolute path", value.display());
                return Err(wrong(key, problem));
            }
        }
        if let Some(url) = self
            .otlp
            .as_deref()
            .filter(|url| !url.starts_with("http://"))
        {
            let problem = format!(
                "{url} does not begin with http://: name a collector on this host, which can go on by TLS"
            );
            return Err(wrong("otlp", problem));
        }
        self.check_trusted()
            .map_err(|(key, problem)| wrong(key, problem))?;
        if !(1..=MAX_JOBS).contains(&self.jobs) {
            let problem = format!("{} is not between 1 and {MAX_JOBS}", self.jobs);
            return Err(wrong("jobs", problem));
        }
        Ok(())
    }

    fn check_trusted(&self) -> Result<(), (&'static str, String)> {
        if let Some(program) = self.policy_command.first()
            && !Path::new(program).is_absolute()
        {
            return Err((
                "policy_command",
                format!("{program} is not an absolute path"),
            ));
        }
        if self.mirrors.is_some() && !self.policy_command.is_empty() {
            let problem = "there are `mirrors`, which it would stand for: set one of them";
            return Err(("policy_command", problem.to_owned()));
        }
        if let Some(pattern) = self.refs.iter().find(|pattern| !is_plain(pattern, b"._-*")) {
            let problem = format!("{pattern} is no name of a branch, as `main` or `release/*`");
            return Err(("refs", problem));
        }
        Ok(())
    }

    /// The branch of that name, or of that ref, if it is one that counts.
    pub(super) fn trusted_branch<'a>(&self, base: &'a str) -> Option<&'a str> {
        let branch = base.strip_prefix("refs/heads/").unwrap_or(base);
        let counts = |pattern: &String| {
            let (pattern, parts) = (pattern.split('/'), branch.split('/'));
            pattern.clone().count() == parts.clone().count()
                && pattern
                    .zip(parts)
                    .all(|(pattern, part)| matches(pattern, part))
        };
        (is_plain(branch, b"._-") && self.refs.iter().any(counts)).then_some(branch)
    }

    /// The keys in which `new` differs from this one, and that count from the next start on.
    pub(super) fn fixed(&self, new: &Self) -> Vec<&'static str> {
        [
            ("socket", self.socket != new.socket),
            ("group", self.group != new.group),
            ("state", self.state != new.state),
            ("logs", self.logs != new.logs),
            ("cgroup", self.cgroup != new.cgroup),
            ("jobs", self.jobs < new.jobs),
            ("metrics", self.metrics != new.metrics),
            ("otlp", self.otlp != new.otlp),
        ]
        .into_iter()
        .filter_map(|(key, differs)| differs.then_some(key))
        .collect()
    }

    /// Whether the user `uid` runs CI runners.
    #[must_use]
    pub fn is_runner(&self, uid: u32) -> bool {
        let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
        user.is_some_and(|user| self.runners.contains(&user.name))
    }

    /// The ids of the users that are held to jobs.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Value`] when there is no such user, or it is root: what runs jobs would be held,
    /// too.
    pub fn guarded(&self, path: &Path) -> Result<Vec<u32>, ConfigError> {
        let find = |name: &String| {
            let problem = match User::from_name(name) {
                Ok(Some(user)) if user.uid.is_root() => "root cannot be held to jobs".to_owned(),
                Ok(Some(user)) => return Ok(user.uid.as_raw()),
                Ok(None) => format!("there is no user {name}"),
                Err(error) => format!("could not look up the user {name}: {error}"),
            };
            Err(ConfigError::Value {
                path: path.to_owned(),
                key: "guard",
                problem,
            })
        };
        self.guard.users.iter().map(find).collect()
    }

    /// The id of the group whose members are trusted.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Value`] when there is no such group: it may be misspelt.
    pub fn group_id(&self, path: &Path) -> Result<Option<u32>, ConfigError> {
        let Some(name) = &self.group else {
            return Ok(None);
        };
        let problem = match Group::from_name(name) {
            Ok(Some(group)) => return Ok(Some(group.gid.as_raw())),
            Ok(None) => {
                format!("there is no group {name}: make it with `groupadd --system {name}`")
            }
            Err(error) => format!("could not look up the group {name}: {error}"),
        };
        Err(ConfigError::Value {
            path: path.to_owned(),
            key: "group",
            problem,
        })
    }
}

/// Whether a name such as `group/project` has no part that could lead elsewhere, or be taken for an
/// option: ASCII letters, digits and those of `more`, with no `.` or `-` first.
pub(super) fn is_plain(name: &str, more: &[u8]) -> bool {
    name.split('/').all(|part| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && !part.contains("..")
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte))
    })
}

/// Whether a name is as `pattern` says, in which `*` stands for whatever there is.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    for part in parts {
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

fn unreadable(path: &Path, source: io::Error) -> ConfigError {
    ConfigError::Read {
        path: path.to_owned(),
        source,
    }
}

fn read(path: &Path) -> io::Result<(File, String)> {
    let mut file = OpenOptions::new()
        .read(true)
        // Else a FIFO in its place would wait for a writer.
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut text = String::new();
    (&mut file).take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(io::Error::other(format!(
            "it has more than {MAX_BYTES} bytes"
        )));
    }
    Ok((file, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("/etc/a.yml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_said_is_as_by_default() {
        for text in ["", "# nothing\n", "---\n", "{}\n"] {
            assert_eq!(parse(text), Ok(Config::default()), "{text:?}");
        }
        let some = parse("group: ci\nretention: {days: 7}\n").expect("valid");
        assert_eq!(some.group.as_deref(), Some("ci"));
        assert_eq!(some.retention.days, 7);
        assert_eq!(some.retention.bytes, Retention::default().bytes);
    }

    #[test]
    fn the_example_is_what_goes_without_saying() {
        let example = include_str!("../../../cli/systemd/agent.yml");
        assert_eq!(parse(example), Ok(Config::default()));
        // Every line that is commented out is one that could stand there.
        let all: String = example
            .lines()
            .map(|line| {
                line.strip_prefix('#')
                    .filter(|rest| !rest.starts_with(' '))
                    .unwrap_or(line)
            })
            .map(|line| format!("{line}\n"))
            .collect();
        let all = parse(&all).expect("valid");
        assert!(
            all.group.is_some() && all.cgroup.is_some() && all.presets.is_some(),
            "{all:?}"
        );
    }

    #[test]
    fn a_branch_counts_when_it_is_one_of_those_that_are_named() {
        let config = parse("refs: [main, 'release/*', 'v*.*-lts']\n").expect("valid");
        for branch in ["main", "release/1.2", "v1.2-lts", "v.-lts"] {
            assert_eq!(config.trusted_branch(branch), Some(branch));
            let whole = format!("refs/heads/{branch}");
            assert_eq!(config.trusted_branch(&whole), Some(branch));
        }
        for branch in [
            "",
            "mai",
            "main2",
            "main/x",
            "release",
            "release/",
            "release/a/b",
            "release/..",
            "release/-x",
            "release/a b",
            "release/a:b",
            "v1-lts",
            "v1.2-lts2",
            "refs/tags/main",
            "refs/heads/refs/heads/main",
        ] {
            assert_eq!(config.trusted_branch(branch), None, "{branch:?}");
        }
        assert_eq!(Config::default().trusted_branch("main"), None);
    }

    #[test]
    fn an_error_names_the_file_and_the_key() {
        for (text, said) in [
            ("groups: ci\n", "groups"),
            (
                "socket: agent.sock\n",
                "socket: agent.sock is not an absolute path",
            ),
            ("jobs: 0\n", "jobs: 0 is not between"),
            ("jobs: many\n", "jobs: "),
            ("jobs: 1\njobs: 2\n", "jobs"),
            ("retention: {weeks: 1}\n", "weeks"),
            ("retention: {days: -1}\n", "retention.days: "),
            ("- socket\n", "invalid"),
            ("mirrors: git\n", "mirrors: git is not an absolute path"),
            (
                "policy_command: [cat, x]\n",
                "policy_command: cat is not an absolute path",
            ),
            (
                "policy_command: [/bin/cat]\nmirrors: /srv/git\n",
                "policy_command: there are `mirrors`",
            ),
            ("refs: [main, 'a..b']\n", "refs: a..b is no name"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(
                error.starts_with("the configuration /etc/a.yml is invalid: "),
                "{error}"
            );
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn a_group_that_does_not_exist_is_an_error_and_not_nobody() {
        let config = parse("group: no-such-group-here\n").expect("valid");
        let error = config
            .group_id(Path::new("/etc/a.yml"))
            .expect_err("no group");
        assert!(
            error.to_string().contains("group: there is no group"),
            "{error}"
        );
        assert_eq!(
            Config::default().group_id(Path::new("/")).expect("none"),
            None
        );
    }

    #[test]
    fn a_file_that_others_can_change_is_not_followed() {
        use std::{
            fs::{self, Permissions},
            os::unix::fs::{PermissionsExt as _, chown},
        };
        if !nix::unistd::geteuid().is_root() {
            // Not by a macro, whose output a test that passes does not show.
            use std::io::Write as _;
            writeln!(
                io::stderr(),
                "LEFT OUT: a configuration of another user (needs root)"
            )
            .expect("stderr");
            return;
        }
        let path = std::env::temp_dir().join(format!("jobfence-config-{}.yml", std::process::id()));
        fs::write(&path, "jobs: 5\n").expect("written");
        let load = || Config::load(Some(&path));
        assert_eq!(load().expect("root's own").jobs, 5);
        fs::set_permissions(&path, Permissions::from_mode(0o664)).expect("mode");
        assert!(matches!(load(), Err(ConfigError::NotRoots { .. })));
        fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("mode");
        chown(&path, Some(1), None).expect("owner");
        assert!(matches!(load(), Err(ConfigError::NotRoots { .. })));
        fs::remove_file(&path).expect("removed");
        assert!(
            matches!(load(), Err(ConfigError::Read { .. })),
            "a file that was named must be there"
        );
    }
}
