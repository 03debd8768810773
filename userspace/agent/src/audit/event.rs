//! One attempt as a line of JSON. The names of the fields are a contract.

use std::{borrow::Cow, fmt, net::IpAddr, str::FromStr, sync::Arc, time::SystemTime};

use jobfence_abi::Reason;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::job::{Layers, State};

/// What the message of a job's last line is.
pub(super) const FINISHED: &str = "finished";

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When, in UTC, with nanoseconds (RFC 3339). A clock that is set while the job runs does not
    /// change it: it is [`Event::epoch`] and what has passed since.
    #[serde(with = "rfc3339")]
    pub ts: SystemTime,
    /// Number of the line in its job, from 0, without gaps.
    pub seq: u64,
    /// Which job.
    #[serde(serialize_with = "name", deserialize_with = "shared_name")]
    pub job: Arc<JobName>,
    /// What the fence was worth when it happened.
    #[serde(serialize_with = "display", deserialize_with = "state")]
    pub state: State,
    /// What kind of attempt.
    pub kind: Kind,
    /// What the policy says. In audit mode a denied attempt goes on all the same.
    pub verdict: Verdict,
    /// Why, as a fixed word.
    pub reason: Cow<'static, str>,
    /// The rule behind it, as `file:line`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The layer of the policy that the rule is of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<String>,
    /// Whether it fails the job.
    pub violation: bool,
    /// Protocol: `tcp`, `udp`, `icmp`, `icmpv6`, or its number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proto: Option<String>,
    /// Where to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst: Option<Destination>,
    /// The question, for [`Kind::Dns`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<Question>,
    /// The process that tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessInfo>,
    /// How many bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// How many attempts this line stands for. A repetition is counted, and its count written on
    /// a later line that is otherwise the same.
    pub count: u64,
    /// What holds the job, on the line of its start.
    #[serde(skip_serializing_if = "Option::is_none", skip_deserializing)]
    pub layers: Option<Layers>,
    /// The file that the job's own rules are in, in a job's first line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Free text: for [`Kind::Job`] and [`Kind::Loss`]; what is wrong with a refused connection for
    /// [`Kind::Tls`] and [`Kind::Http`]; why the rule that would allow an attempt does not hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// On a job's first line: the instant at which the host's `CLOCK_MONOTONIC` was 0, by the wall
    /// clock as it was when the job began.
    #[serde(
        with = "rfc3339::option",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub epoch: Option<SystemTime>,
    /// [`LineHash`] of the same job's line before; [`LineHash::NONE`] on its first line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prev: Option<LineHash>,
}

/// Which job an event belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobName {
    /// Unique on the host.
    pub id: String,
    /// The job's name in the policy.
    pub name: String,
    /// The repository, as whoever started the job names it. So for all that follow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repo: Option<String>,
    /// The branch, tag or change.
    #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// The run of the pipeline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// Which attempt at that run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<String>,
    /// The pipeline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workflow: Option<String>,
    /// Who set it off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// The runner that took it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runner: Option<String>,
}

impl JobName {
    /// Every text of it.
    pub(super) fn texts_mut(&mut self) -> impl Iterator<Item = &mut String> {
        let given = [
            &mut self.repo,
            &mut self.reference,
            &mut self.run,
            &mut self.attempt,
            &mut self.workflow,
            &mut self.actor,
            &mut self.runner,
        ];
        [&mut self.id, &mut self.name]
            .into_iter()
            .chain(given.into_iter().flatten())
    }
}

/// SHA-256 of a line's bytes without the newline, which makes the lines of one job a chain: none
/// can be changed, removed or put in between without all that follow. It is no signature. Who may
/// write the file can make another chain, and only a copy of a later hash elsewhere tells.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LineHash([u8; 32]);

impl LineHash {
    /// What a job's first line has for the line before.
    pub const NONE: Self = Self([0; 32]);

    /// Of a line without its newline.
    #[must_use]
    pub fn of(line: &[u8]) -> Self {
        Self(Sha256::digest(line).into())
    }
}

impl fmt::Display for LineHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for LineHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for LineHash {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let mut hash = [0; 32];
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != hash.len() || !rest.is_empty() {
            return Err("a hash has 64 digits");
        }
        for (byte, [high, low]) in hash.iter_mut().zip(pairs) {
            let (high, low) = digit(*high)
                .zip(digit(*low))
                .ok_or("a digit is 0-9 or a-f")?;
            *byte = high << 4 | low;
        }
        Ok(Self(hash))
    }
}

impl Serialize for LineHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LineHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// `connect()`, or a send with a destination.
    Connect,
    /// A packet that none of those announced.
    Packet,
    /// A question for a name.
    Dns,
    /// The beginning of a connection on which TLS is checked.
    Tls,
    /// A request on a connection on which HTTP is checked.
    Http,
    /// `socket()`.
    Socket,
    /// The job itself: its beginning, its end, and what is to be told of its record.
    Job,
    /// Attempts that were denied because their events found no room.
    Loss,
}

/// What the policy says of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Allowed.
    Allow,
    /// Denied.
    Deny,
}

impl Verdict {
    /// What goes with a reason.
    pub(super) fn of(reason: Reason) -> Self {
        match reason.is_allowed() {
            true => Self::Allow,
            false => Self::Deny,
        }
    }
}

/// A destination.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Destination {
    /// Address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    /// Port, for protocols that have some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The name that the job asked for and was given this address for. For [`Kind::Tls`] and
    /// [`Kind::Http`]: the name that the connection says it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The CNAME targets between the name and the address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chain: Vec<String>,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Question {
    /// The name.
    pub qname: String,
    /// The record type.
    pub qtype: String,
    /// The response code that it was answered with.
    pub rcode: String,
}

/// A process. What could not be found out is missing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Process id.
    pub pid: u32,
    /// Parent's process id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ppid: Option<u32>,
    /// Real user id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Command name.
    pub comm: String,
    /// The program's file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
    /// The command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// Its ancestors in the job, its parent first; they have none of their own here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ancestors: Vec<ProcessInfo>,
}

impl ProcessInfo {
    /// How a person knows the process: by its command line, else its name.
    #[must_use]
    pub fn label(&self) -> &str {
        self.cmdline.as_deref().unwrap_or(&self.comm)
    }
}

/// An instant in UTC as RFC 3339 has it.
pub(super) mod rfc3339 {
    use std::borrow::Cow;

    use serde::{Deserialize as _, de, ser};

    use super::{Deserializer, OffsetDateTime, Rfc3339, Serializer, SystemTime};

    pub(in super::super) fn serialize<S: Serializer>(
        time: &SystemTime,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let text = OffsetDateTime::from(*time).format(&Rfc3339);
        serializer.serialize_str(&text.map_err(ser::Error::custom)?)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<SystemTime, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        let time = OffsetDateTime::parse(&text, &Rfc3339).map_err(de::Error::custom)?;
        Ok(time.into())
    }

    pub(in super::super) mod option {
        use super::{Deserializer, Serializer, SystemTime};

        pub(in super::super::super) fn serialize<S: Serializer>(
            time: &Option<SystemTime>,
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            match time {
                Some(time) => super::serialize(time, serializer),
                None => serializer.serialize_none(),
            }
        }

        pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
            deserializer: D,
        ) -> Result<Option<SystemTime>, D::Error> {
            super::deserialize(deserializer).map(Some)
        }
    }
}

pub(super) fn display<S: Serializer>(state: &State, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(state)
}

fn state<'de, D: Deserializer<'de>>(deserializer: D) -> Result<State, D::Error> {
    let text = String::deserialize(deserializer)?;
    let within = |word| {
        let rest = text.strip_prefix(word)?.strip_prefix('(')?;
        rest.strip_suffix(')')
    };
    if text == "enforcing" {
        Ok(State::Enforcing)
    } else if text == "auditing" {
        Ok(State::Auditing)
    } else if let Some(reasons) = within("advisory") {
        Ok(State::Advisory(
            reasons.split("; ").map(str::to_owned).collect(),
        ))
    } else if let Some(reason) = within("failed") {
        Ok(State::Failed(reason.to_owned()))
    } else {
        Err(de::Error::custom("no such state of a fence"))
    }
}

pub(super) fn name<S: Serializer>(name: &Arc<JobName>, serializer: S) -> Result<S::Ok, S::Error> {
    name.as_ref().serialize(serializer)
}

fn shared_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<JobName>, D::Error> {
    JobName::deserialize(deserializer).map(Arc::new)
}
