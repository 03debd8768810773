//! `jobfence hook`: what a CI system calls when a job begins and when it ends.
//!
//! A hook runs as the runner's user, below the process that serves the job: in the fence of the
//! runner until it has made that process a job, in the job's own fence from then on. What it says is
//! read by the CI system, in that system's own words, so each system has a module. What it can ask of
//! the agent is little ([`jobfence_agent::control::protocol`]), and an environment that a job has
//! prepared cannot make it more. A hook is no boundary: a job that gets around its hook stays in the
//! fence that it is in.

mod buildkite;
mod github;
mod gitlab;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use clap::{Args, Subcommand};
use jobfence_agent::{
    control::{
        client::{self, ClientError, Reply, SOCKET},
        protocol::{Answer, JobStatus, MaybeJobId, Request, Start, Started},
    },
    job::process::is_hidden,
};
use nix::unistd::{geteuid, getppid};
use thiserror::Error;

/// What CI systems call at the beginning and at the end of a job.
///
/// `jobfence install` writes the files that call it.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct HookArguments {
    #[command(subcommand)]
    system: System,
    /// The agent's socket
    #[arg(long, value_name = "PATH", global = true, default_value = SOCKET)]
    socket: PathBuf,
}

#[derive(Subcommand)]
enum System {
    /// GitHub Actions
    Github {
        #[command(subcommand)]
        hook: github::Hook,
    },
    /// GitLab Runner's custom executor
    Gitlab {
        #[command(subcommand)]
        hook: gitlab::Hook,
    },
    /// Buildkite
    Buildkite {
        #[command(subcommand)]
        hook: buildkite::Hook,
    },
}

/// Runs a hook, which tells by itself what went wrong.
pub(crate) fn hook(arguments: HookArguments) -> ExitCode {
    let HookArguments { system, socket } = arguments;
    match system {
        System::Github { hook } => github::hook(&hook, &socket),
        System::Gitlab { hook } => gitlab::hook(&hook, &socket),
        System::Buildkite { hook } => buildkite::hook(hook, &socket),
    }
}

/// Why a hook could not do its work.
#[derive(Debug, Error)]
enum HookError {
    /// Nothing was called from where a hook is called.
    #[error("{name} is not set: this is a hook, which {system} calls in each job")]
    NoVariable {
        /// The environment variable.
        name: &'static str,
        /// The CI system.
        system: &'static str,
    },
    /// The process that serves the job is not above this one.
    #[error(
        "no process above this one is {name}, which becomes the job: this is a hook, which \
         {system} calls in each job"
    )]
    NoWorker {
        /// The base name of its program.
        name: &'static str,
        /// The CI system.
        system: &'static str,
    },
    /// A process could not be read.
    #[error("could not read /proc/{pid}/stat: mount /proc so that users see their own processes")]
    Unread {
        /// The process.
        pid: u32,
    },
    /// The agent did not do what was asked.
    #[error(transparent)]
    Agent(#[from] ClientError),
    /// It has answered another question.
    #[error("the agent at {0} has answered another question: use the jobfence that the agent is")]
    Unexpected(PathBuf),
}

/// A process above the hook.
#[derive(Debug)]
struct Process {
    pid: u32,
    /// When it began, in clock ticks since boot.
    start: u64,
    /// Its program, where it can be read.
    exe: PathBuf,
}

/// The nearest process above this one whose program has the base name `name`.
fn ancestor(system: &'static str, name: &'static str) -> Result<Process, HookError> {
    let mut pid = u32::try_from(getppid().as_raw()).unwrap_or(0);
    while pid != 0 {
        let stat = Stat::of(pid)?;
        let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        // Read again: only then the link was of the same process.
        if is_program(&exe, name) && Stat::of(pid)?.start == stat.start {
            let start = stat.start;
            return Ok(Process { pid, start, exe });
        }
        pid = stat.ppid;
    }
    Err(HookError::NoWorker { name, system })
}

/// Whether a program's file has the name. One that was replaced while it runs is the same program.
fn is_program(exe: &Path, name: &str) -> bool {
    let file = exe.file_name().and_then(|file| file.to_str());
    file.is_some_and(|file| file.strip_suffix(" (deleted)").unwrap_or(file) == name)
}

/// What is needed of `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    ppid: u32,
    start: u64,
}

impl Stat {
    fn of(pid: u32) -> Result<Self, HookError> {
        let text = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
        Self::parse(&String::from_utf8_lossy(&text)).ok_or(HookError::Unread { pid })
    }

    /// proc_pid_stat(5): the second field is the command name, in parentheses, and can hold anything.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<_> = rest.split_whitespace().collect();
        Some(Self {
            ppid: fields.get(1)?.parse().ok()?,
            start: fields.get(19)?.parse().ok()?,
        })
    }
}

/// An id for the job that `worker` becomes: `u<uid>-<system>-<run>-<name>-<start>-<pid>`, so that it
/// is the same for each hook of the job, and nobody has had it before. `name`, which people know the
/// job by, is cut as needed.
fn job_id(system: &str, run: &str, name: &str, worker: &Process) -> String {
    /// Characters of an id, at most ([`Start::id`]).
    const LONGEST: usize = 64;
    let plain = |text: &str| -> String {
        let usual = |c: char| c.is_ascii_alphanumeric() || c == '_';
        text.chars()
            .map(|c| if usual(c) { c } else { '-' })
            .collect()
    };
    let head = format!("u{}-{system}-{}-", geteuid(), plain(run));
    let tail = format!("-{}-{}", worker.start, worker.pid);
    let room = LONGEST.saturating_sub(head.len() + tail.len());
    let name: String = plain(name).chars().take(room).collect();
    head + &name + &tail
}

/// An environment variable that the CI system sets in each hook.
fn variable(system: &'static str, name: &'static str) -> Result<String, HookError> {
    optional(name).ok_or(HookError::NoVariable { name, system })
}

/// An environment variable that is not always there; one that is empty is not.
fn optional(name: &str) -> Option<String> {
    let text = env::var_os(name)?.to_string_lossy().into_owned();
    (!text.is_empty()).then_some(text)
}

/// A text as a label of a job may be: one that a person has chosen can hold anything.
fn label(text: &str) -> String {
    /// Bytes of a label, at most ([`Labels`](jobfence_agent::control::protocol::Labels)).
    const LONGEST: usize = 512;
    let mut shown = text.replace(is_hidden, " ");
    while shown.len() > LONGEST {
        shown.pop();
    }
    shown
}

/// How long an agent may be away: it is when it is upgraded.
const AWAY: Duration = Duration::from_secs(10);

/// Asks the agent, and waits for one that is being started again.
fn ask(socket: &Path, request: &Request) -> Result<Reply, ClientError> {
    let deadline = Instant::now() + AWAY;
    loop {
        match client::ask(socket, request.clone()) {
            Err(ClientError::NoAgent { .. }) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(100));
            }
            reply => return reply,
        }
    }
}

/// Has the agent make a job.
fn start(socket: &Path, order: Start) -> Result<Started, HookError> {
    match ask(socket, &Request::Start(order))?.answer {
        Answer::Started(started) => Ok(started),
        _ => Err(HookError::Unexpected(socket.to_owned())),
    }
}

/// The job, or the runner, whose fence this process is in.
fn own_job(socket: &Path) -> Result<JobStatus, HookError> {
    match ask(socket, &Request::Status(MaybeJobId::default()))?.answer {
        Answer::Status(status) => Ok(status),
        _ => Err(HookError::Unexpected(socket.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_cannot_pass_for_other_fields() {
        let fields = format!("S 7 {} 4711 x", "0 ".repeat(17).trim());
        for name in ["node", "a) R 1 (b", ") S 1 0 0"] {
            let stat = Stat::parse(&format!("12 ({name}) {fields}"));
            let expected = Stat {
                ppid: 7,
                start: 4711,
            };
            assert_eq!(stat, Some(expected), "{name}");
        }
        assert_eq!(Stat::parse("12 (node"), None);
        assert_eq!(Stat::parse("12 (node) S 7"), None);
    }

    #[test]
    fn a_program_that_was_replaced_is_still_it() {
        for exe in ["/r/bin/Runner.Worker", "/r/bin.2/Runner.Worker (deleted)"] {
            assert!(is_program(Path::new(exe), "Runner.Worker"), "{exe}");
        }
        for exe in ["", "/r/bin/Runner.Listener", "/r/Runner.Worker/x"] {
            assert!(!is_program(Path::new(exe), "Runner.Worker"), "{exe}");
        }
    }

    #[test]
    fn an_id_is_short_enough_and_tells_workers_apart() {
        let worker = |pid, start| Process {
            pid,
            start,
            exe: PathBuf::new(),
        };
        let name = "build / test (ubuntu, ä) ".repeat(9);
        let id = |worker| job_id("github", "12345678901-1", &name, &worker);
        let one = id(worker(4_194_303, 123_456_789));
        assert_eq!(one.len(), 64, "{one}");
        assert!(one.ends_with("-123456789-4194303"), "{one}");
        assert_ne!(one, id(worker(4_194_302, 123_456_789)));
        assert_ne!(one, id(worker(4_194_303, 123_456_788)));
        let uid = geteuid();
        let short = job_id("github", "7-1", "a.b/c", &worker(5, 6));
        assert_eq!(short, format!("u{uid}-github-7-1-a-b-c-6-5"));
    }

    #[test]
    fn a_label_has_what_the_agent_takes() {
        assert_eq!(label("fix\u{202e}\n\x1b[2J"), "fix   [2J");
        let long = "ä".repeat(300);
        assert_eq!(label(&long).len(), 512);
        assert_eq!(label(&format!("a{long}")).len(), 511);
    }
}
