//! Names: the DNS resolver of one job.
//!
//! The programs in the kernel lead every DNS question of a job, whatever server it was meant for,
//! to the sockets that a [`Resolver`] listens at. So the socket tells which job asks, and nothing
//! that the job says can change that.
//!
//! - A name that the policy does not allow is answered with NXDOMAIN, and nobody is asked: a name
//!   can carry data out as well as any payload.
//! - An allowed name is asked for with a question of our own making, for A and AAAA only. From
//!   the answer only the CNAME chain of that name counts, and addresses of the host's own
//!   surroundings are left out unless a rule says `private: true` (DNS rebinding).
//! - Below a wildcard the job chooses the name, and so only so many and so long ones are asked
//!   for.
//! - Each address is handed to an [`AddressSink`] *before* the answer leaves, so the job never
//!   holds an address that it cannot use. It stays usable for the job's life.
//! - Every question becomes a [`DnsEvent`], but for what needs no rule (`localhost`) and for
//!   HTTPS records, which clients ask for beside each address.
//!
//! In audit mode refused names are resolved too. Types other than A and AAAA are not.
//!
//! `decide.rs` holds the order of the checks, `answer.rs` what an answer may hold, `allowance.rs`
//! how much the job may say in names, `ready.rs` what is answered again without all that.

mod allowance;
mod answer;
mod decide;
#[cfg(test)]
mod fuzz;
mod hosts;
mod message;
mod ready;
mod server;
mod table;
#[cfg(test)]
mod tests;
mod upstream;

use std::error::Error;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use jobfence_abi::{Client, Reason};
use jobfence_policy::{Job, Location, Name};
use tokio::task::JoinSet;

use self::allowance::Allowance;
use self::decide::{Decider, OwnNames};
pub use self::hosts::hosts;
use self::ready::Ready;
use self::server::Pair;
pub use self::table::{Full, Table};
use self::upstream::Upstream;

/// What a resolver needs.
pub struct Config<'a> {
    /// The job that it answers.
    pub job: Arc<Job>,
    /// Where it listens if it can: where the job's resolver did before this one.
    pub ports: Option<Ports>,
    /// The text of the host's resolv.conf(5).
    pub resolv_conf: &'a str,
    /// The host's own name, short or fully qualified. A job asks for it without meaning to.
    pub host_name: &'a str,
    /// Where names and addresses are noted; shared, so that the agent can note its own grants.
    pub table: Arc<Table>,
    /// What makes an address usable.
    pub addresses: Arc<dyn AddressSink>,
    /// Where events go.
    pub events: Arc<dyn EventSink>,
}

/// What is done to a socket before it is bound.
pub type Mark<'a> = dyn Fn(BorrowedFd<'_>) -> io::Result<()> + Sync + 'a;

/// The resolver of one job. It answers until it is dropped.
pub struct Resolver {
    ports: Ports,
    pairs: Vec<Pair>,
    decider: Arc<Decider>,
    _tasks: JoinSet<()>,
}

/// Where a resolver listens, over UDP and TCP; host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The port of `127.0.0.1`.
    pub v4: u16,
    /// The port of `::1`; `None` on a host without IPv6.
    pub v6: Option<u16>,
}

impl Resolver {
    /// Binds the sockets and begins to answer, on the current tokio runtime.
    ///
    /// # Errors
    ///
    /// When `resolv_conf` does not parse or a socket cannot be bound.
    pub async fn bind(config: Config<'_>) -> Result<Self, NamesError> {
        Self::bind_marked(config, &|_| Ok(())).await
    }

    /// The same; `mark` is given each socket before it is bound. A job that runs already may ask
    /// from that moment on.
    ///
    /// # Errors
    ///
    /// As [`Resolver::bind`], and what `mark` fails with.
    pub async fn bind_marked(config: Config<'_>, mark: &Mark<'_>) -> Result<Self, NamesError> {
        let upstream = upstream(config.resolv_conf)?;
        Self::bind_with(config, upstream, mark).await
    }

    async fn bind_with(
        config: Config<'_>,
        upstream: Upstream,
        mark: &Mark<'_>,
    ) -> Result<Self, NamesError> {
        let bind_error = |address| move |source| NamesError::Bind { address, source };
        let (wanted_v4, wanted_v6) = config
            .ports
            .map_or((0, 0), |ports| (ports.v4, ports.v6.unwrap_or(0)));
        let v4 = Pair::v4(wanted_v4, mark)
            .await
            .map_err(bind_error("127.0.0.1"))?;
        let v6 = Pair::v6(wanted_v6, mark).await.map_err(bind_error("::1"))?;
        let ports = Ports {
            v4: v4.port,
            v6: v6.as_ref().map(|pair| pair.port),
        };
        let decider = Arc::new(Decider {
            allowance: Allowance::new(&config.job.limits),
            job: config.job,
            own_names: OwnNames::new(config.host_name, upstream.search()),
            upstream,
            table: config.table,
            addresses: config.addresses,
            events: config.events,
            ready: Ready::default(),
            waiting: Decider::waiting_room(),
        });
        let mut tasks = JoinSet::new();
        let pairs: Vec<_> = [Some(v4), v6].into_iter().flatten().collect();
        for pair in &pairs {
            pair.serve(&decider, &mut tasks);
        }
        Ok(Self {
            ports,
            pairs,
            decider,
            _tasks: tasks,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// The sockets that questions arrive at.
    pub fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.pairs.iter().flat_map(Pair::sockets)
    }

    /// Waits until every question that has arrived is answered, and so noted: for the end of a
    /// job, which can ask and be gone. Takes no longer than an upstream resolver may.
    pub async fn settle(&self) {
        let addresses = [
            Some(SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports.v4))),
            self.ports
                .v6
                .map(|port| SocketAddr::from((Ipv6Addr::LOCALHOST, port))),
        ];
        for address in addresses.into_iter().flatten() {
            if let Err(error) = server::settle(address).await {
                tracing::warn!(%error, "the last questions of the job may be missing from its log");
            }
        }
        self.decider.settle().await;
    }
}

fn upstream(resolv_conf: &str) -> Result<Upstream, NamesError> {
    Upstream::new(resolv_conf).map_err(|error| NamesError::ResolvConf(Box::new(error)))
}

/// Whether a [`Resolver`] can be made of the text of a resolv.conf(5). Nobody is asked anything.
///
/// # Errors
///
/// [`NamesError::ResolvConf`].
pub fn check_resolv_conf(resolv_conf: &str) -> Result<(), NamesError> {
    upstream(resolv_conf).map(drop)
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver")
            .field("ports", &self.ports)
            .finish_non_exhaustive()
    }
}

/// Makes addresses usable for a job. The kernel module implements it with the job's address map.
pub trait AddressSink: Send + Sync {
    /// Lets the job reach `addresses`, to which its allowed name `name` leads through the CNAME
    /// targets `chain`. When this returns, a packet to them is let through.
    ///
    /// It is called once for each pair of name and address. In audit mode it is also called for
    /// names that the policy refuses.
    ///
    /// # Errors
    ///
    /// When the addresses cannot be granted. The job is told SERVFAIL.
    fn grant(&self, name: &Name, chain: &[Name], addresses: &[IpAddr]) -> Result<(), GrantError>;
}

/// Takes events. It is called before the answer is sent, in the task that sends it.
pub trait EventSink: Send + Sync {
    /// The process that sent a question from `peer`; `None` when it is none of the job's. Anybody on
    /// the host can send to the resolver's port; others are refused, and leave no event.
    fn client(&self, peer: SocketAddr, transport: Transport) -> Option<Client>;

    /// Whether what happens can be noted. While it cannot, nobody is asked anything.
    fn is_ready(&self) -> bool;

    /// Notes one question, which `client` asked, and its answer.
    ///
    /// # Errors
    ///
    /// When it cannot be noted now. The job is told SERVFAIL; it is noted as soon as it can be.
    fn dns(&self, event: DnsEvent, client: Client) -> Result<(), Unnoted>;
}

/// Something is not in the record yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unnoted;

/// One question of the job, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsEvent {
    /// Where the question came from; its port leads to the process.
    pub peer: SocketAddr,
    /// How it came.
    pub transport: Transport,
    /// The name, in lower case and without the dot at the end. Bytes that no host name has are
    /// escaped as `\DDD`. Empty when the message could not be read.
    pub qname: String,
    /// The mnemonic of the record type. Empty when the message could not be read.
    pub qtype: String,
    /// The mnemonic of the response code.
    pub rcode: String,
    /// Whether the policy allows it, in audit mode too.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// Whether it counts as a violation; never in audit mode.
    pub violation: bool,
    /// The rule that decided.
    pub rule: Option<Location>,
    /// The CNAME targets on the way to the addresses.
    pub chain: Vec<Name>,
    /// The addresses that were answered, or that were the reason for the refusal.
    pub addresses: Vec<IpAddr>,
}

/// How a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram.
    Udp,
    /// Over a connection.
    Tcp,
}

/// What the policy says of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A rule allows it.
    Allow,
    /// It is refused.
    Deny,
}

/// An address could not be granted.
#[derive(Debug)]
pub struct GrantError(Box<dyn Error + Send + Sync>);

impl GrantError {
    /// From whatever stood in the way: a full map, too many port ranges.
    pub fn new(source: impl Error + Send + Sync + 'static) -> Self {
        Self(Box::new(source))
    }

    /// Whether it is for a limit of the job's policy.
    fn is_for_limit(&self) -> bool {
        self.0.is::<Full>()
    }
}

impl fmt::Display for GrantError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for GrantError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

/// A resolver could not be started.
#[derive(Debug, thiserror::Error)]
pub enum NamesError {
    /// No port was free, or the process has too many open files.
    #[error(
        "cannot listen for the job's DNS questions on {address}: {source}; \
         check the limit of open files and `ip address show dev lo`"
    )]
    Bind {
        /// The address.
        address: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The host's resolv.conf has a line that makes no sense.
    #[error("cannot use the host's resolv.conf: {0}; correct the file")]
    ResolvConf(#[source] Box<dyn Error + Send + Sync>),
}
