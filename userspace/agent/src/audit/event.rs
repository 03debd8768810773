//! One attempt as a line of JSON. The names of the fields are a contract.

use std::{net::IpAddr, time::SystemTime};

use serde::{Serialize, Serializer};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::job::{Layers, State};

/// A line of the log.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    /// When, in UTC, with nanoseconds (RFC 3339).
    #[serde(serialize_with = "rfc3339")]
    pub ts: SystemTime,
    /// Number of the line in its job, from 0, without gaps.
    pub seq: u64,
    /// Which job.
    pub job: JobName,
    /// What the fence was worth when it happened.
    #[serde(serialize_with = "display")]
    pub state: State,
    /// What kind of attempt.
    pub kind: Kind,
    /// What the policy says. In audit mode a denied attempt goes on all the same.
    pub verdict: Verdict,
    /// Why, as a fixed word.
    pub reason: &'static str,
    /// The rule behind it, as `file:line`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
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
    /// How many attempts this line stands for. A repetition is counted, and its count written on
    /// a later line that is otherwise the same.
    pub count: u64,
    /// What holds the job, on the line of its start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<Layers>,
    /// Free text: for [`Kind::Job`] and [`Kind::Loss`], and what is wrong with a refused
    /// connection for [`Kind::Tls`] and [`Kind::Http`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Which job an event belongs to.
#[derive(Clone, Debug, Serialize)]
pub struct JobName {
    /// Unique on the host.
    pub id: String,
    /// The job's name in the policy.
    pub name: String,
}

/// Kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
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
    /// The beginning or the end of the job.
    Job,
    /// Attempts that were denied because their events found no room.
    Loss,
}

/// What the policy says of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Allowed.
    Allow,
    /// Denied.
    Deny,
}

/// A destination.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub chain: Vec<String>,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Question {
    /// The name.
    pub qname: String,
    /// The record type.
    pub qtype: String,
    /// The response code that it was answered with.
    pub rcode: String,
}

/// A process. What could not be found out is missing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ancestors: Vec<ProcessInfo>,
}

impl ProcessInfo {
    /// How a person knows the process: by its command line, else its name.
    #[must_use]
    pub fn label(&self) -> &str {
        self.cmdline.as_deref().unwrap_or(&self.comm)
    }
}

fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let text = OffsetDateTime::from(*time).format(&Rfc3339);
    serializer.serialize_str(&text.map_err(serde::ser::Error::custom)?)
}

fn display<S: Serializer>(state: &State, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(state)
}
