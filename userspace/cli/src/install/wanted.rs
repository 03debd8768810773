//! The files that the runners of a host need.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use jobfence_agent::host::config::{CONFIG, Config, ConfigError};
use jobfence_policy::{Name, NameVerdict, Policy, Presets};

use super::{
    edit::{self, Edit, EditError},
    plan::{Kind, Wanted},
    record::Record,
    runner::{self, GITLAB_CONFIG, Runner, System},
    tree::{Content, Place, Tree},
    unit::{self, AGENT_UNIT, ETC_UNITS},
};

/// The program, as the texts below name it.
const PROGRAM: &str = "/usr/bin/jobfence";

const AGENT_YML: &str = include_str!("../../systemd/agent.yml");
const AGENT_SERVICE: &str = include_str!("../../systemd/jobfence-agent.service");
const STARTED: &str = include_str!("../../ci/github/started.js");
const COMPLETED: &str = include_str!("../../ci/github/completed.js");

/// The runner's variables that name its hooks, with the hooks.
pub(super) const GITHUB_HOOKS: [(&str, &str); 2] = [
    (
        "ACTIONS_RUNNER_HOOK_JOB_STARTED",
        "/etc/jobfence/hooks/github/started.js",
    ),
    (
        "ACTIONS_RUNNER_HOOK_JOB_COMPLETED",
        "/etc/jobfence/hooks/github/completed.js",
    ),
];

/// What of a host decides about the files.
pub(super) struct Host {
    /// The program, by its absolute path.
    pub(super) program: String,
    /// Where the agent listens.
    pub(super) socket: PathBuf,
    /// Folder of the policies of repositories.
    policies: PathBuf,
    /// The host's policy.
    host_policy: PathBuf,
    /// Whether somebody else brings the agent's unit.
    has_unit: bool,
}

impl Host {
    /// Looks at what is there.
    pub(super) fn new(tree: &Tree, record: &Record, program: String) -> Result<Self, ConfigError> {
        let config = if tree.exists(Path::new(CONFIG)) {
            Config::load(Some(&tree.outside(Path::new(CONFIG))))?
        } else {
            Config::default()
        };
        let ours = Path::new(ETC_UNITS).join(AGENT_UNIT);
        let unit = unit::file(tree, AGENT_UNIT);
        Ok(Self {
            program,
            socket: config.socket,
            policies: config
                .policies
                .unwrap_or_else(|| "/etc/jobfence/policies".into()),
            host_policy: config
                .host_policy
                .unwrap_or_else(|| "/etc/jobfence/host.yml".into()),
            has_unit: unit.is_some_and(|unit| unit != ours || !record.files.contains_key(&ours)),
        })
    }

    /// The files that the runners of `record` need, those first that others refer to.
    pub(super) fn wanted(&self, tree: &Tree, record: &Record) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        let runners = &record.runners;
        if runners.is_empty() {
            return wanted;
        }
        self.agent(runners, &mut wanted);
        for runner in runners {
            match runner.system {
                System::Github => self.github(tree, runner, &mut wanted),
                System::Gitlab => self.gitlab(tree, runner, &mut wanted),
                System::Buildkite => self.buildkite(tree, record, runner, &mut wanted),
                System::Buildbot => self.policy(runner, &mut wanted),
                System::Generic => {}
            }
            self.drop_in(runner, &mut wanted);
        }
        // What runners share.
        let mut paths = HashSet::new();
        wanted.retain(|file: &Wanted| paths.insert(file.path.clone()));
        wanted
    }

    /// What the agent needs.
    fn agent(&self, runners: &[Runner], wanted: &mut Vec<Wanted>) {
        let mut in_every_job = Vec::new();
        for runner in runners {
            // What serves a job of these is in the job's fence.
            if matches!(runner.system, System::Github | System::Buildkite) {
                for item in platform(runner) {
                    if !in_every_job.contains(&item) {
                        in_every_job.push(item);
                    }
                }
            }
        }
        let baseline = match in_every_job.as_slice() {
            [] => String::new(),
            items => format!("baseline:\n{}", list(items, 2)),
        };
        wanted.push(Wanted {
            path: self.host_policy.clone(),
            place: Place::Host,
            kind: Kind::Policy(edits(&["baseline"], in_every_job)),
            content: plain(format!(
                "# What this host says of all jobs: `ceiling`, what they may reach at most; `baseline`,\n\
                 # what each may reach; `deny`, what none may.\nversion: 1\n{baseline}"
            )),
        });
        wanted.push(Wanted {
            path: self.policies.join("default.yml"),
            place: Place::Host,
            kind: Kind::First,
            content: plain(
                "# What a job may reach whose repository has no policy on this host: that of the\n\
                 # repository group/project is group/project.yml in this folder.\n\
                 version: 1\n\
                 # While you find out what your jobs need, let everything through and record it:\n\
                 #mode: audit\n\
                 jobs:\n  default: {}\n"
                    .to_owned(),
            ),
        });
        let shown = |path: &Path| path.display().to_string();
        let mut edits = vec![
            Edit::Key("policies", shown(&self.policies)),
            Edit::Key("host_policy", shown(&self.host_policy)),
        ];
        for runner in runners {
            let Some(user) = &runner.user else { continue };
            // The others' jobs are started by root, or are none of their own.
            if matches!(
                runner.system,
                System::Github | System::Buildkite | System::Generic
            ) {
                edits.push(Edit::Item(&["runners"], user.clone()));
            }
            if runner.is_guarded() {
                edits.push(Edit::Item(&["guard", "users"], user.clone()));
            }
        }
        wanted.push(Wanted {
            path: CONFIG.into(),
            place: Place::Host,
            kind: Kind::Edited(edits),
            content: plain(AGENT_YML.to_owned()),
        });
        if !self.has_unit {
            wanted.push(self.ours(
                Path::new(ETC_UNITS).join(AGENT_UNIT),
                AGENT_SERVICE.to_owned(),
                0o644,
            ));
        }
    }

    /// A file of ours, with the program's path in it.
    fn ours(&self, path: PathBuf, text: String, mode: u32) -> Wanted {
        Wanted {
            path,
            place: Place::Host,
            kind: Kind::Ours,
            content: Content {
                mode,
                ..plain(text.replace(PROGRAM, &self.program))
            },
        }
    }

    /// The policy of a runner's own fence.
    fn policy(&self, runner: &Runner, wanted: &mut Vec<Wanted>) {
        let items = platform(runner);
        let allow = if items.is_empty() {
            "# The hosts of the CI platform, as in `- host: ci.example.com`.\n    allow: []\n"
                .to_owned()
        } else {
            format!("allow:\n{}", list(&items, 6))
        };
        let (name, own) = (&runner.name, "Its jobs have policies of their own.");
        let about = match runner.system {
            System::Buildbot => {
                format!("# What the worker {name} and all of its builds may reach.")
            }
            _ => format!("# What the runner {name} itself may reach. {own}"),
        };
        wanted.push(Wanted {
            path: policy_path(runner),
            place: Place::Host,
            kind: Kind::Policy(edits(&["jobs", "default", "allow"], items)),
            content: plain(format!(
                "{about}\nversion: 1\n\
                 # For its whole life: a restart begins anew.\n\
                 limits: {{names: 16384, name_bytes: 1048576, addresses: 65536}}\n\
                 jobs:\n  default:\n    {allow}"
            )),
        });
    }

    fn drop_in(&self, runner: &Runner, wanted: &mut Vec<Wanted>) {
        let (Some(unit), name) = (&runner.unit, &runner.name) else {
            return;
        };
        let mut text = format!(
            "# Of jobfence: the service is fenced when it starts, and does not start without its fence.\n\
             # `jobfence uninstall {}` takes it away.\n\n\
             [Unit]\nWants={AGENT_UNIT}\nAfter={AGENT_UNIT}\n\n[Service]\n",
            runner.system.name()
        );
        let start = match runner.system {
            System::Buildbot => format!("--id worker-{name}"),
            _ => format!("--runner --id runner-{name}"),
        };
        text += &format!(
            "ExecStartPost=+{PROGRAM} job start {start}-${{INVOCATION_ID}} --pid $MAINPID --policy {}\n",
            policy_path(runner).display()
        );
        if runner.system == System::Github {
            // Its unit says `process`.
            text += "# When the fence fails, none of the runner's processes goes on without it. Those in \
                     fences are\n# not in the service's cgroup: to them it is the same as `process`.\n\
                     KillMode=mixed\n";
            for (variable, hook) in GITHUB_HOOKS {
                text += &format!("Environment={variable}={hook}\n");
            }
        }
        wanted.push(self.ours(unit::drop_in(unit), text, 0o644));
    }

    fn github(&self, tree: &Tree, runner: &Runner, wanted: &mut Vec<Wanted>) {
        self.policy(runner, wanted);
        for ((_, hook), text) in GITHUB_HOOKS.into_iter().zip([STARTED, COMPLETED]) {
            wanted.push(self.ours(hook.into(), text.to_owned(), 0o644));
        }
        let Some(path) = env_file(runner).filter(|_| runner.has_folder(tree)) else {
            return;
        };
        let place = Place::Runner(runner.owner.0);
        let there = tree.read(&path, place);
        // What the file says goes before what the unit says. Without either there is no need for it.
        let edits: Vec<_> = GITHUB_HOOKS
            .into_iter()
            .filter(|(name, _)| match &there {
                Ok(Some(content)) if runner.unit.is_some() => {
                    edit::variables(&content.text, name).next().is_some()
                }
                Ok(None) => runner.unit.is_none(),
                // Whoever is to change it finds the same error, and tells it.
                _ => true,
            })
            .map(|(name, hook)| Edit::Variable(name, hook.to_owned()))
            .collect();
        if !edits.is_empty() {
            let (uid, gid) = runner.owner;
            wanted.push(Wanted {
                path,
                place,
                kind: Kind::Edited(edits),
                content: Content {
                    text: String::new(),
                    mode: 0o644,
                    uid,
                    gid,
                },
            });
        }
    }

    fn gitlab(&self, tree: &Tree, runner: &Runner, wanted: &mut Vec<Wanted>) {
        self.policy(runner, wanted);
        // One that is not registered any more is in nobody's way.
        let text = tree.peek(Path::new(GITLAB_CONFIG)).unwrap_or_default();
        let section = edit::runner_text(&text, &runner.title, &["url"]);
        if matches!(section, Err(EditError::NoRunner(_))) {
            return;
        }
        let mut arguments = Vec::new();
        if let Some(user) = &runner.user {
            arguments.extend(["--user".to_owned(), user.clone()]);
        }
        let policy = policy_path(runner).to_string_lossy().into_owned();
        arguments.extend(["--runner-policy".to_owned(), policy]);
        let edit = Edit::Executor {
            runner: runner.title.clone(),
            program: self.program.clone(),
            arguments,
            home: runner
                .user
                .as_ref()
                .and_then(|user| runner::home(tree, user)),
        };
        let path = Path::new(GITLAB_CONFIG);
        // Several runners share the file.
        let other = wanted.iter_mut().find(|file| file.path == path);
        match other.map(|file| &mut file.kind) {
            Some(Kind::Edited(edits)) => edits.push(edit),
            _ => wanted.push(Wanted {
                path: path.to_owned(),
                place: Place::Host,
                kind: Kind::Edited(vec![edit]),
                content: Content {
                    mode: 0o600,
                    ..plain(String::new())
                },
            }),
        }
    }

    fn buildkite(&self, tree: &Tree, record: &Record, runner: &Runner, wanted: &mut Vec<Wanted>) {
        self.policy(runner, wanted);
        let folder = runner.folder.as_ref();
        let Some(folder) = folder.filter(|_| runner.has_folder(tree)) else {
            return;
        };
        for (name, text) in BUILDKITE_HOOKS {
            let path = folder.join(name);
            let place = runner.place();
            let before = match record.files.get(&path) {
                Some(entry) => entry.original.clone(),
                // Whoever is to change it finds the same error, and tells it.
                None => tree.read(&path, place).unwrap_or_default(),
            };
            let mut text = text.to_owned();
            // A hook that is there already goes on to be called.
            if let Some(content) = before {
                let moved = moved(&path);
                text = with_hook(name, &text, &moved, &content.text);
                wanted.push(Wanted {
                    path: moved,
                    place,
                    kind: Kind::Moved,
                    content,
                });
            }
            let (uid, gid) = runner.owner;
            wanted.push(Wanted {
                path,
                place,
                kind: Kind::Wrapper,
                content: Content {
                    text: text.replace(PROGRAM, &self.program),
                    mode: 0o755,
                    uid,
                    gid,
                },
            });
        }
    }
}

/// The hooks of Buildkite's agent. The last line of each is the call.
const BUILDKITE_HOOKS: [(&str, &str); 3] = [
    (
        "environment",
        include_str!("../../ci/buildkite/environment"),
    ),
    (
        "pre-bootstrap",
        include_str!("../../ci/buildkite/pre-bootstrap"),
    ),
    ("pre-exit", include_str!("../../ci/buildkite/pre-exit")),
];

/// The hook `name` that calls another one, which says `theirs`, as well: when a job begins, after it
/// is fenced, and when it ends, before its fence is told of. The agent executes the first of a job
/// and sources the others, unless they are no shell's.
fn with_hook(name: &str, ours: &str, path: &Path, theirs: &str) -> String {
    let (head, call) = ours.trim_end().rsplit_once('\n').unwrap_or(("", ours));
    let first = theirs.lines().next().unwrap_or_default();
    let is_shell = !first.starts_with("#!") || first.contains("sh");
    let path = format!("'{}'", path.display());
    let run = if is_shell {
        format!("bash {path}")
    } else {
        path.clone()
    };
    let lines = match name {
        "pre-bootstrap" => {
            let call = call.trim_start_matches("exec ");
            format!("{call} || exit $?\n{run}")
        }
        // What it sets is for the job.
        "environment" if is_shell => format!("{call} || return $?\n. {path}"),
        "environment" => format!("{call} || return $?\n{run}"),
        // One that exits would take ours with it.
        _ => format!("status=0\n{run} || status=$?\n{call} && (exit \"$status\")"),
    };
    format!("{head}\n{lines}\n")
}

/// The file of a GitHub runner from which it takes its environment.
pub(super) fn env_file(runner: &Runner) -> Option<PathBuf> {
    let folder = runner.folder.as_ref()?;
    (runner.system == System::Github).then(|| folder.join(".env"))
}

/// Folder of the policies of runners.
pub(super) const RUNNERS: &str = "/etc/jobfence/runners";

/// What a hook is called that was there before, behind its name.
const BEFORE: &str = ".before-jobfence";

/// Where a hook goes that jobfence's stands for.
pub(super) fn moved(hook: &Path) -> PathBuf {
    let mut path = hook.as_os_str().to_owned();
    path.push(BEFORE);
    path.into()
}

/// The hook that was moved to `path`, if one was.
pub(super) fn hook_of(path: &Path) -> Option<PathBuf> {
    path.to_str()?.strip_suffix(BEFORE).map(PathBuf::from)
}

/// Where the policy of a runner's own fence is.
pub(super) fn policy_path(runner: &Runner) -> PathBuf {
    Path::new(RUNNERS).join(format!("{}.yml", runner.name))
}

/// A file of root's that everybody may read.
fn plain(text: String) -> Content {
    Content {
        text,
        mode: 0o644,
        uid: 0,
        gid: 0,
    }
}

/// The rules that let a runner reach its platform.
pub(super) fn platform(runner: &Runner) -> Vec<String> {
    let mut items = Vec::new();
    let mut known = None;
    if runner.system == System::Github {
        items.push("use: github-actions".to_owned());
        known = Policy::parse_with("platform", PLATFORM, &Presets::built_in())
            .and_then(|policy| policy.job(None))
            .ok();
    }
    let is_known = |host: &str| {
        // Below a wildcard, any name.
        let name = Name::parse(&host.replace('*', "any"));
        let verdict = known.as_ref().zip(name.ok());
        verdict
            .is_some_and(|(job, name)| matches!(job.name_verdict(&name), NameVerdict::Allowed(_)))
    };
    let others = runner.hosts.iter().filter(|host| !is_known(host));
    items.extend(others.map(|host| format!("host: \"{host}\"")));
    items
}

/// A policy that allows what the preset of GitHub's platform does.
const PLATFORM: &[u8] = b"version: 1\njobs: {default: {allow: [{use: github-actions}]}}\n";

/// The items of a YAML list, a line each.
fn list(items: &[String], indent: usize) -> String {
    let line = |item| format!("{:indent$}- {item}\n", "");
    items.iter().map(line).collect()
}

fn edits(keys: &'static [&'static str], items: Vec<String>) -> Vec<Edit> {
    let edit = |item| Edit::Item(keys, item);
    items.into_iter().map(edit).collect()
}
