//! A fenced job while it runs: what is reported of it, and what its resolver opens to it.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use jobfence_abi::{Client, proto};
use jobfence_policy::{Job, Name};
use tokio::sync::Notify;

use super::Layers;
use crate::{
    audit::{log::LogError, recorder::Recorder},
    host::Journal,
    kernel::{Addresses, Clients},
    names::{self, AddressSink, DnsEvent, EventSink, GrantError, Table, Transport, Unnoted},
};

/// Where the kernel's and the resolver's reports of one job meet.
pub(crate) struct Live {
    recorder: Mutex<Recorder>,
    clients: Clients,
    /// Whether the job has begun. Questions before that are the self-probe's.
    begun: AtomicBool,
    /// Questions that found no room in the log. While there are any, no more are answered.
    pending: Mutex<Vec<(DnsEvent, Client)>>,
    /// Told when the resolver has reported a violation.
    changed: Arc<Notify>,
}

impl Live {
    /// Of a job whose questions `clients` tells apart.
    pub(crate) fn new(recorder: Recorder, clients: Clients, changed: Arc<Notify>) -> Self {
        Self {
            recorder: Mutex::new(recorder),
            clients,
            begun: AtomicBool::new(false),
            pending: Mutex::default(),
            changed,
        }
    }

    /// Begins to take reports.
    ///
    /// # Errors
    ///
    /// When the beginning cannot be written to the agent's own log.
    pub(crate) fn begin(&self, layers: Layers) -> Result<(), LogError> {
        self.recorder().started(layers)?;
        self.resume();
        Ok(())
    }

    /// Takes reports of a job that has begun long ago.
    pub(crate) fn resume(&self) {
        self.begun.store(true, Ordering::Release);
    }

    /// The record of the job.
    pub(crate) fn recorder(&self) -> MutexGuard<'_, Recorder> {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tries again to note what found no room in the log.
    ///
    /// # Errors
    ///
    /// When there still is none.
    pub(crate) fn catch_up(&self) -> Result<(), LogError> {
        let mut pending = self.pending();
        while let Some((event, client)) = pending.first() {
            self.recorder().dns(event, client)?;
            pending.remove(0);
        }
        Ok(())
    }

    fn pending(&self) -> MutexGuard<'_, Vec<(DnsEvent, Client)>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventSink for Live {
    /// The kernel noted it before the question arrived.
    fn client(&self, peer: SocketAddr, transport: Transport) -> Option<Client> {
        let proto = match transport {
            Transport::Udp => proto::UDP,
            Transport::Tcp => proto::TCP,
        };
        self.clients.find(peer.port(), proto, peer.is_ipv6())
    }

    fn is_ready(&self) -> bool {
        self.pending().is_empty()
    }

    fn dns(&self, event: DnsEvent, client: Client) -> Result<(), Unnoted> {
        if !self.begun.load(Ordering::Acquire) {
            return Ok(());
        }
        let noted = self.recorder().dns(&event, &client);
        if event.violation {
            self.changed.notify_one();
        }
        noted.map_err(|error| {
            tracing::warn!(%error, "names are not answered until the log can be written again");
            self.pending().push((event, client));
            Unnoted
        })
    }
}

/// Opens addresses to a job as its resolver learns them.
pub(crate) struct Opener {
    policy: Arc<Job>,
    table: Arc<Table>,
    addresses: Addresses,
    /// Where a grant is noted before it is made, if it has to outlive this process.
    journal: Option<Arc<Journal>>,
}

impl Opener {
    /// Of a job that is held to `policy`.
    pub(crate) fn new(policy: Arc<Job>, table: Arc<Table>, addresses: Addresses) -> Self {
        Self {
            policy,
            table,
            addresses,
            journal: None,
        }
    }

    /// Notes in `journal` what is opened from now on.
    pub(crate) fn noted_in(self, journal: Arc<Journal>) -> Self {
        Self {
            journal: Some(journal),
            ..self
        }
    }

    /// Opens `addresses` to the job for `name`, and notes that the name led there.
    ///
    /// # Errors
    ///
    /// When the addresses cannot be granted, or there are too many.
    pub(crate) fn open(
        &self,
        name: &Name,
        chain: &[Name],
        addresses: &[IpAddr],
    ) -> Result<(), GrantError> {
        self.grant(name, chain, addresses)?;
        self.table
            .insert(name, chain, addresses)
            .map_err(GrantError::new)
    }

    /// Opens what the host's own `/etc/hosts` says of allowed names: clients read that file
    /// themselves and ask no resolver.
    pub(crate) fn open_hosts(&self) {
        let Ok(text) = fs::read_to_string("/etc/hosts") else {
            return;
        };
        for (name, addresses) in names::hosts(&text, &self.policy) {
            if !self.table.addresses_of(&name).is_empty() {
                continue;
            }
            let noted = self.open(&name, &[], &addresses);
            if let Err(error) = noted {
                tracing::warn!(%name, %error, "the host's /etc/hosts has it, but it is not reachable");
            }
        }
    }
}

impl AddressSink for Opener {
    fn grant(&self, name: &Name, chain: &[Name], addresses: &[IpAddr]) -> Result<(), GrantError> {
        if let Some(journal) = &self.journal {
            journal
                .grant(name, chain, addresses)
                .map_err(GrantError::new)?;
        }
        for &addr in addresses {
            // The address may have been given for other names: all of them count.
            let mut names = self.table.names_of(addr);
            if !names.contains(name) {
                names.push(name.clone());
            }
            let ranges = self.policy.grants(addr, &names).map_err(GrantError::new)?;
            self.addresses.set(addr, &ranges).map_err(GrantError::new)?;
        }
        Ok(())
    }
}

/// The host's own settings for names, which the resolvers of jobs go by.
pub(crate) struct HostNames {
    resolv_conf: String,
    host_name: String,
}

impl HostNames {
    /// Reads them.
    ///
    /// # Errors
    ///
    /// When `/etc/resolv.conf` cannot be read.
    pub(crate) fn read() -> io::Result<Self> {
        let host = rustix::system::uname();
        Ok(Self {
            resolv_conf: fs::read_to_string("/etc/resolv.conf")?,
            host_name: host.nodename().to_string_lossy().into_owned(),
        })
    }

    /// What a resolver needs for a job.
    pub(crate) fn config(
        &self,
        policy: &Arc<Job>,
        table: &Arc<Table>,
        opener: &Arc<Opener>,
        live: &Arc<Live>,
    ) -> names::Config<'_> {
        names::Config {
            job: Arc::clone(policy),
            ports: None,
            resolv_conf: &self.resolv_conf,
            host_name: &self.host_name,
            table: Arc::clone(table),
            addresses: Arc::clone(opener) as Arc<dyn AddressSink>,
            events: Arc::clone(live) as Arc<dyn EventSink>,
        }
    }
}
