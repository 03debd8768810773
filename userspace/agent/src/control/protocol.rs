//! What is said over the control socket, `/run/jobfence/agent.sock` unless agent.yml says otherwise.
//!
//! For whoever writes a client in another language: a stream socket, UTF-8, one JSON object a line.
//!
//! 1. The agent greets, with the version of this protocol that it speaks ([`Greeting`]). Nothing may
//!    be sent before the greeting has been read: what the agent knows of a caller holds from then on.
//! 2. The client sends one request ([`Envelope`]), with a line feed at its end, from the process that
//!    has connected: a connection that was handed on is refused. Ten seconds, 2 MiB.
//! 3. The agent answers ([`Answer`]), and closes the connection. After [`Request::Tail`] the job's
//!    log follows the answer, line by line, until the job has ended.
//!
//! Unknown keys are refused by the agent, so that nothing that a caller asked for is ignored, and
//! skipped by clients, so that answers can grow. A client that hangs up undoes nothing.
//!
//! ```text
//! ← {"version":1,"agent":"0.1.0"}
//! → {"version":1,"request":{"start":{"id":"u1001-build-7","pid":4711,"job":"default","labels":{"repo":"group/project","run":"7"}}}}
//! ← {"started":{"id":"u1001-build-7","cgroup":"/sys/fs/cgroup/…","state":"enforcing","log":"/var/log/jobfence/u1001-build-7.jsonl","processes":3,"open_before":[],"clipped":[]}}
//!
//! → {"version":1,"request":{"finish":{"id":"u1001-build-7"}}}
//! ← {"finished":{"status":{"id":"u1001-build-7",…,"phase":"finished","violations":2,"exit":110,…},"exit":110,"report":"…"}}
//!
//! → {"version":1,"request":{"status":{"id":"u1001-build-7"}}}       or {"status":{}} inside a job
//! ← {"status":{"id":"u1001-build-7","job":"default",…,"phase":"running","violations":0,"exit":0,…}}
//!
//! → {"version":1,"request":{"list":{}}}
//! ← {"jobs":[{"id":"u1001-build-7",…}]}
//!
//! → {"version":1,"request":{"tail":{"id":"u1001-build-7"}}}
//! ← {"tail":{}}
//! ← {"ts":"…","seq":1,…}                                             the log, line by line
//!
//! → {"version":1,"request":{"narrow":{"file":".jobfence.yml","text":"version: 1\n…"}}}
//! ← {"narrowed":{}}
//!
//! ← {"error":{"code":"unknown","message":"there is no job x that user 1001 may see: …"}}
//! ```
//!
//! # Who may ask for what
//!
//! | caller | may |
//! |---|---|
//! | a process inside a job, whoever its user | `status` and `narrow` of that job |
//! | root, members of the configured group | all but `narrow`; of them root alone `start` with `launch` |
//! | a process inside the fence of a runner, whoever its user | as any other user; `status` of that fence |
//! | any other user | `start` with the caller itself or an ancestor as `pid` and an id that begins with `u<uid>-`, all processes of that tree being its own; `status`, `finish`, `tail` and `list` of the jobs that it has started |
//!
//! A job that the caller may not see is answered like one that does not exist.
//!
//! # The fence of a runner
//!
//! A CI runner, the process that takes jobs from a CI system, is itself a job: [`Start::runner`]. What
//! it does is held to its own policy, which names the CI system and nothing else. The one thing that
//! a process inside has before one inside a job is that it may `start` a job of its own tree. That
//! one is moved out of the runner's fence into a cgroup beside it, and can nevermore leave. So what
//! the runner has not made a job of, because its hook was skipped or failed, is held to the runner's
//! policy, and shows in the runner's report.
//!
//! | | |
//! |---|---|
//! | starts a runner's fence | root, members of the configured group; outside every fence |
//! | may be moved from it into a job | a process that the caller descends from, but not the runner (`pid` of its fence) itself, all of the tree being of the caller's user and in that fence or in none |
//! | ends | with the runner; the jobs that began in it go on until their own `pid` ends |
//! | sockets that a moved process has made before | stay in the fence in which they were made |

use serde::{Deserialize, Serialize};

pub use crate::audit::refused::Refused;
use crate::job::process::is_hidden;

/// The version of the protocol.
pub const VERSION: u32 = 1;

/// Bytes of a request's line at most. A policy has 1 MiB at most, and JSON escapes its line feeds.
pub const MAX_REQUEST: usize = 2 << 20;

/// What the agent says first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Greeting {
    /// [`VERSION`].
    pub version: u32,
    /// The agent's own version, for people.
    pub agent: String,
}

/// A request with the version that it is written in.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// [`VERSION`].
    pub version: u32,
    /// What is asked.
    pub request: Request,
}

/// What a client asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one at a time, and not for long"
)]
pub enum Request {
    /// Fence a process tree as a job.
    Start(Start),
    /// End a job: what is left of it is killed.
    Finish(JobId),
    /// What a job has done so far. Without an id, the job that the caller is in.
    Status(MaybeJobId),
    /// Every job that the caller may see.
    List(Nothing),
    /// A job's log, from its beginning and on.
    Tail(JobId),
    /// Hand over a policy that takes from what the caller's job may reach; once.
    Narrow(PolicyText),
}

impl Request {
    /// Checks what types cannot say. The agent refuses a request that fails this.
    ///
    /// # Errors
    ///
    /// What is wrong, and where.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::Start(start) => start.check(),
            Self::Finish(JobId { id }) | Self::Tail(JobId { id }) => check_id(id),
            Self::Status(MaybeJobId { id }) => id.as_deref().map_or(Ok(()), check_id),
            Self::List(Nothing {}) => Ok(()),
            Self::Narrow(policy) => policy.check(),
        }
    }
}

/// Checks an id: see [`Start::id`].
fn check_id(id: &str) -> Result<(), String> {
    /// Characters of an id, at most.
    const LONGEST: usize = 64;
    // No dot: an id becomes the name of a folder on the bpf file system, which has none.
    let usual = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    if id.is_empty() || id.len() > LONGEST || !id.chars().all(usual) || id.starts_with('-') {
        return Err(format!(
            "an id has 1 to {LONGEST} ASCII letters, digits, `_` and `-`, and does not begin with `-`"
        ));
    }
    Ok(())
}

/// Checks a text that is shown to people and written to logs.
fn check_text(key: &str, text: &str) -> Result<(), String> {
    /// Bytes of such a text, at most.
    const LONGEST: usize = 512;
    if text.len() > LONGEST || text.chars().any(is_hidden) {
        return Err(format!(
            "{key} has {LONGEST} bytes at most, and no control characters"
        ));
    }
    Ok(())
}

/// No particulars.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// Names a job.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobId {
    /// Its id.
    pub id: String,
}

/// Names a job, or the caller's own.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaybeJobId {
    /// Its id.
    pub id: Option<String>,
}

/// A policy file that the caller has read with its own rights.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyText {
    /// What rules and errors call the file.
    pub file: String,
    /// Its content.
    pub text: String,
}

impl PolicyText {
    fn check(&self) -> Result<(), String> {
        check_text("file", &self.file)
    }
}

/// A job to be started.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// Its id, unique on the host for ever: ASCII letters, digits, `_` and `-`, 64 at most, the
    /// first no `-`. That of a caller who is not trusted begins with `u<uid>-`, so that nobody
    /// can take the id of another user's job.
    pub id: String,
    /// The process that is moved into the job with all its descendants, and with which the job ends;
    /// without it the job begins empty, for processes that root moves into its cgroup.
    #[serde(default)]
    pub pid: Option<u32>,
    /// The caller, root, starts the job's first process itself, in the job's cgroup, as `jobfence run`
    /// does. `pid` is then the caller's own: the job ends with it, but nothing is moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launch: Option<Launch>,
    /// Whether it is a runner: see [the fence of a runner](self#the-fence-of-a-runner).
    #[serde(default)]
    pub runner: bool,
    /// The repository's policy, as far as the caller is trusted to give it: root and members of the
    /// configured group are. From others it can only narrow what the host gives the job.
    #[serde(default)]
    pub policy: Option<PolicyText>,
    /// The job of the policy whose rules apply; `default` without it.
    #[serde(default)]
    pub job: Option<String>,
    /// What the CI system calls the job.
    #[serde(default)]
    pub labels: Labels,
}

impl Start {
    fn check(&self) -> Result<(), String> {
        check_id(&self.id)?;
        if self.runner && (self.pid.is_none() || self.launch.is_some()) {
            return Err("a runner has a `pid`, and no `launch`: it runs already".to_owned());
        }
        self.policy.as_ref().map_or(Ok(()), PolicyText::check)?;
        check_text("job", self.job.as_deref().unwrap_or_default())?;
        self.labels.check()
    }
}

/// How a job's first process is launched: without capabilities that could undo the fence, in a user
/// namespace of its own and under a filter for system calls.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    /// The user id that it runs as.
    pub uid: u32,
    /// Whether to record only (`true`) or to refuse (`false`), whatever the policy says; the host's
    /// own policy has the last word.
    #[serde(default)]
    pub audit: Option<bool>,
    /// Whether the policy that the caller hands over is the word of somebody who is not trusted: it
    /// can only take from what the host gives the job.
    #[serde(default)]
    pub narrows: bool,
}

/// What a CI system calls a job. All of it is the caller's word, and decides nothing but, where the
/// caller is trusted, which policy of the host is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Labels {
    /// The repository, as in `group/project`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repo: Option<String>,
    /// The ref that is built.
    #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
    pub git_ref: Option<String>,
    /// The branch that the change is to be merged into, or that is built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// The run, or pipeline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// Which attempt of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<String>,
    /// The workflow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow: Option<String>,
    /// Who caused the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// The runner that has the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner: Option<String>,
}

impl Labels {
    fn check(&self) -> Result<(), String> {
        let Self {
            repo,
            git_ref,
            base,
            run,
            attempt,
            workflow,
            actor,
            runner,
        } = self;
        [
            ("repo", repo),
            ("ref", git_ref),
            ("base", base),
            ("run", run),
            ("attempt", attempt),
            ("workflow", workflow),
            ("actor", actor),
            ("runner", runner),
        ]
        .into_iter()
        .try_for_each(|(key, text)| check_text(key, text.as_deref().unwrap_or_default()))
    }
}

/// What the agent answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// The job is fenced.
    Started(Started),
    /// The job has ended.
    Finished(Finished),
    /// The job as it is.
    Status(JobStatus),
    /// Jobs, the oldest first.
    Jobs(Vec<JobStatus>),
    /// The log follows.
    Tail(Nothing),
    /// The job is narrowed.
    Narrowed(Nothing),
    /// Nothing was done.
    Error(Refusal),
}

/// A job that has begun.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Started {
    /// Its id.
    pub id: String,
    /// Its cgroup's folder.
    pub cgroup: String,
    /// What its fence is worth: `enforcing`, `auditing`, `advisory(…)`.
    pub state: String,
    /// Its log.
    pub log: String,
    /// Processes that were moved.
    pub processes: usize,
    /// The runner out of whose fence they were moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner: Option<String>,
    /// Sockets to other hosts that they had open before, and that the fence does not reach: those
    /// that were made in the fence of a runner go on in that one.
    pub open_before: Vec<String>,
    /// What the host's policy takes from the repository's, a line each.
    pub clipped: Vec<String>,
    /// What the job may reach, a rule a line with its place: the first hundred.
    #[serde(default)]
    pub allowed: Vec<String>,
}

/// How a job ended, or stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finished {
    /// The job at its end.
    pub status: JobStatus,
    /// 0; 110 when it violated its policy in a way that fails it; 111 when its fence failed.
    pub exit: u8,
    /// What a person reads, as at the end of `jobfence run`.
    pub report: String,
}

/// A job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobStatus {
    /// Its id.
    pub id: String,
    /// The job of the policy.
    pub job: String,
    /// The file that its own rules are in: of the host, or of its repository with the ref.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// What the CI system calls it.
    pub labels: Labels,
    /// What its fence is worth, or was.
    pub state: String,
    /// `running` or `finished`.
    pub phase: Phase,
    /// Attempts that violate the policy.
    pub violations: u64,
    /// What `finish` would exit with now.
    pub exit: u8,
    /// Whether it is a runner.
    #[serde(default)]
    pub runner: bool,
    /// User id of whoever started it.
    pub owner: u32,
    /// When it began, in seconds since 1970.
    pub started: u64,
    /// Its log.
    pub log: String,
    /// What was refused, violations first: 20 destinations at most, and none in a list of jobs.
    #[serde(default)]
    pub refused: Vec<Refused>,
    /// How many destinations more were refused.
    #[serde(default)]
    pub refused_more: u64,
}

/// Whether a job runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It runs.
    Running,
    /// It has ended; its report is kept until somebody has asked for it, or for an hour.
    Finished,
}

/// Why nothing was done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// For programs.
    pub code: Code,
    /// For people: what was tried, why it failed, what to do.
    pub message: String,
}

/// The kinds of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The request could not be read, or is of another version.
    Malformed,
    /// The caller may not.
    Forbidden,
    /// There is no such job.
    Unknown,
    /// There is, or was, a job with that id; or it was narrowed before.
    Exists,
    /// The policy is invalid. The job is fenced, and may reach no more than the host's baseline.
    Policy,
    /// The fence could not be set up, or does not hold.
    Fence,
    /// As many jobs run as the host can hold.
    Full,
    /// Too many requests are being answered for this caller: try again.
    Busy,
    /// A kind that this client does not know.
    #[serde(other)]
    Other,
}

impl Refusal {
    /// A refusal with its reason.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(json: &str) -> Result<Request, String> {
        let envelope: Envelope = serde_json::from_str(json).map_err(|error| error.to_string())?;
        envelope.request.check()?;
        Ok(envelope.request)
    }

    #[test]
    fn the_examples_of_the_documentation_are_requests() {
        let text = include_str!("protocol.rs");
        let examples = text.lines().filter_map(|line| line.strip_prefix("//! → "));
        let mut count = 0;
        for example in examples {
            let end = example.find("   ").unwrap_or(example.len());
            let json = example[..end].replace('…', "");
            request(&json).unwrap_or_else(|error| panic!("{json}: {error}"));
            count += 1;
        }
        assert_eq!(count, 6, "a kind of request has no example");
    }

    #[test]
    fn what_the_agent_does_not_know_is_refused_and_not_ignored() {
        for (json, said) in [
            (
                r#"{"version":1,"request":{"list":{"all":true}}}"#,
                "unknown field",
            ),
            (
                r#"{"version":1,"request":{"list":{}},"trace":1}"#,
                "unknown field",
            ),
            (
                r#"{"version":1,"request":{"stop":{"id":"a"}}}"#,
                "unknown variant",
            ),
            (
                r#"{"version":1,"request":{"start":{"id":"a","uid":0}}}"#,
                "unknown field",
            ),
            (
                r#"{"version":1,"request":{"start":{"id":"a","labels":{"token":"x"}}}}"#,
                "unknown field",
            ),
            (
                r#"{"version":1,"request":{"finish":{"id":"a","id":"b"}}}"#,
                "duplicate field",
            ),
            (r#"{"version":1,"request":{"finish":{}}}"#, "missing field"),
            (
                r#"{"version":1,"request":{"start":{"id":"a","pid":-1}}}"#,
                "invalid value",
            ),
        ] {
            let error = request(json).expect_err(json);
            assert!(error.contains(said), "{json}: {error}");
        }
    }

    #[test]
    fn an_id_that_could_be_a_path_or_an_option_is_refused() {
        for id in [
            "",
            ".",
            "..",
            ".a",
            "-a",
            "a/b",
            "a b",
            "a\n",
            "ä",
            "a\0",
            &"a".repeat(65),
        ] {
            assert!(check_id(id).is_err(), "{id:?}");
        }
        for id in ["a", "_", "A_b-c_9", "u1001-7", &"a".repeat(64)] {
            assert_eq!(check_id(id), Ok(()), "{id:?}");
        }
    }

    #[test]
    fn a_label_cannot_rewrite_the_terminal_that_it_is_shown_on() {
        for text in ["\x1b[2J", "a\nb", "\u{202e}cod", &"a".repeat(513)] {
            let labels = Labels {
                actor: Some(text.to_owned()),
                ..Labels::default()
            };
            let error = labels.check().expect_err(text);
            assert!(error.starts_with("actor "), "{error}");
        }
    }

    #[test]
    fn a_client_understands_an_agent_that_knows_more() {
        let answer = r#"{"error":{"code":"weather","message":"rain","since":1}}"#;
        let answer: Answer = serde_json::from_str(answer).expect("an answer");
        assert!(matches!(answer, Answer::Error(refusal) if refusal.code == Code::Other));
    }
}
