//! One command as a job: the fence without a daemon.
//!
//! The order is what makes it fail closed. Everything that can be wrong is found before the
//! command's first process exists: the programs are loaded, the resolver listens, the fence hangs
//! on an empty cgroup, the reaper waits. Only then is the process started, inside, and only when it
//! has tried in vain to get out (`probe`) does it get the policy and become the command.

use std::{
    env,
    ffi::OsString,
    fs, io,
    net::{IpAddr, SocketAddr},
    os::{fd::OwnedFd, unix::process::ExitStatusExt as _},
    path::PathBuf,
    process::{Child, ExitStatus},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aya::maps::{MapData, RingBuf};
use jobfence_abi::{self as abi, Client, JobState, proto};
use jobfence_policy::{Job, Mode, Name, OnViolation};
use rustix::{
    mount::{MountFlags, mount},
    process::{Pid, PidfdFlags, geteuid, pidfd_open, setpriority_process},
};
use thiserror::Error;
use tokio::{
    io::unix::AsyncFd,
    sync::Notify,
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};

use super::{
    Layers, State,
    cgroup::{Cgroup, CgroupError},
    launch::{self, LaunchError, Starting},
    probe::{self, Findings, Means, ProbeError, Targets},
    reaper::{self, Reaper},
    signals::Signals,
    user::Account,
};
use crate::{
    audit::{
        event::JobName,
        log::{Log, LogError},
        mask::Mask,
        recorder::{Recorder, Subject, Summary},
    },
    kernel::{self, Addresses, Clients, Connections, JobSpec, Kernel, KernelError, Names},
    names::{
        self, AddressSink, DnsEvent, EventSink, GrantError, NamesError, Resolver, Table, Transport,
    },
    sys,
};

/// The only job of this process's programs. Slot 0 names no job.
const SLOT: u32 = 1;

/// How often the agent looks for attempts that it was not woken for, which are the allowed ones, and
/// after its log: for so long an attempt can go on when the log is gone.
const ROUND: Duration = Duration::from_millis(100);

/// The agent's nice value while a job runs.
const PRECEDENCE: i32 = -20;

/// What to run, and how.
#[derive(Debug)]
pub struct Options {
    /// The job's policy.
    pub policy: Job,
    /// Who runs it.
    pub account: Account,
    /// The command and its arguments; not empty.
    pub command: Vec<OsString>,
    /// Where events are written, if anywhere.
    pub log: Option<PathBuf>,
}

/// How a job ended.
#[derive(Debug)]
pub struct Outcome {
    /// What it tried.
    pub summary: Summary,
    /// What its command said, as a shell would have it: its exit code, 128 and the number of the
    /// signal that ended it, 126 or 127 when it could not be executed.
    pub status: u8,
    /// Why the command could not be executed, if so.
    pub not_executed: Option<LaunchError>,
    /// What became of the fence itself, if it failed while the job ran. The job was ended then.
    pub failure: Option<String>,
}

/// Why a job was not run.
#[derive(Debug, Error)]
pub enum RunError {
    /// Not root.
    #[error("jobfence must be root to fence a job: run it with sudo, which keeps the job your own")]
    NotRoot,
    /// The bpf file system is not there.
    #[error(
        "no bpf file system at {path}, and it could not be mounted: {source}. Mount it with \
         `mount -t bpf bpf {path}`", path = kernel::BPFFS
    )]
    Bpffs {
        /// What the kernel said.
        source: io::Error,
    },
    /// The log cannot be written.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The policy cannot be held in the kernel's maps.
    #[error(transparent)]
    Policy(#[from] jobfence_policy::Error),
    /// The kernel's part.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The resolver.
    #[error(transparent)]
    Names(#[from] NamesError),
    /// The first process.
    #[error(transparent)]
    Launch(LaunchError),
    /// The fence does not hold.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// Some other system call.
    #[error("could not {doing}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

fn failed(doing: &'static str) -> impl Fn(io::Error) -> RunError {
    move |source| RunError::Io { doing, source }
}

/// Runs a command as a fenced job, with the standard streams and the terminal of this process.
///
/// # Errors
///
/// [`RunError`]: the fence could not be set up, and nothing of the command has run.
pub async fn run(options: Options) -> Result<Outcome, RunError> {
    if !geteuid().is_root() {
        return Err(RunError::NotRoot);
    }
    mount_bpffs()?;
    reaper::sweep();
    let id = job_id();
    let log = options.log.as_deref().map(Log::open).transpose()?;
    let policy = Arc::new(options.policy);
    let addresses = Addresses::new(&policy.prefixes()?)?;
    let names = Names::new(&policy.names()?)?;
    let table = Arc::new(Table::default());
    let mut kernel = Kernel::load()?;

    let recorder = Recorder::new(Subject {
        job: JobName {
            id: id.clone(),
            name: policy.name.clone(),
        },
        state: State::assess(policy.mode, &options.account),
        policy: Arc::clone(&policy),
        table: Arc::clone(&table),
        mask: Mask::new(environment()),
        log,
    });
    let audit = Arc::new(Audit {
        recorder: Mutex::new(recorder),
        clients: kernel.take_clients(SLOT)?,
        live: AtomicBool::new(false),
        changed: Notify::new(),
    });
    let resolver = resolver(&policy, table, &addresses, &audit).await?;
    let signals = Signals::new().map_err(failed("take signals"))?;
    let mut events = Events::new(&mut kernel)?;

    let targets = Targets::new(&id).map_err(failed("put up targets for the self-probe"))?;
    let cgroup = Cgroup::make(&reaper::job_cgroup(&id))?;
    let mut spec = JobSpec {
        state: JobState::ENFORCE,
        resolver_v4: resolver.ports().v4,
        resolver_v6: resolver.ports().v6.unwrap_or(0),
        addresses: Addresses::new(&targets.prefixes())?,
        names,
    };
    let fenced =
        Fenced::start(&mut kernel, &cgroup, &id, &spec).inspect_err(|_| discard(&cgroup))?;
    let (account, command) = (&options.account, &options.command);
    let proven = prove(account, command, &cgroup, targets, &kernel, &mut events).await;
    let (starting, findings) = match proven {
        Ok(proven) => proven,
        Err(error) => {
            fenced.end(&cgroup)?;
            return Err(error);
        }
    };

    // Everything so far was the probe's. From here on it is the job's.
    spec.addresses = addresses;
    if policy.mode == Mode::Audit {
        spec.state = JobState::AUDIT;
    }
    let layers = layers(&kernel, &findings, &options.account);
    let replaced = kernel.replace(&fenced.fence, SLOT, &spec);
    let begun = replaced.map_err(RunError::from).and_then(|()| {
        audit.begin(layers);
        let fault = audit.recorder().log_fault();
        fault.map_or(Ok(()), |fault| Err(fault.into()))
    });
    if let Err(error) = begun {
        let ended = starting.end();
        fenced.end(&cgroup)?;
        ended.map_err(RunError::Launch)?;
        return Err(error);
    }
    let (status, not_executed) = match starting.release() {
        Ok(child) => {
            hurry();
            let words = options.command.iter();
            let words = words.map(|word| word.to_string_lossy().into_owned());
            let words = words.collect();
            audit.recorder().processes().set_root(child.id(), words);
            let on_violation = policy.on_violation;
            let watched = watch(child, &cgroup, &audit, &mut events, &signals, on_violation).await;
            (watched.map(shell_status), None)
        }
        Err(error) => match error.shell_status() {
            Some(status) => (Ok(status), Some(error)),
            None => {
                fenced.end(&cgroup)?;
                return Err(RunError::Launch(error));
            }
        },
    };

    // Whatever happened, nothing of the job goes on without the fence.
    let ended = fenced.end(&cgroup);
    resolver.settle().await;
    while events.drain(&audit) {}
    let counted = kernel.counters(SLOT);

    let mut recorder = audit.recorder();
    let lost = counted.as_ref().map_or(0, |counters| counters.lost);
    if lost > 0 {
        recorder.loss(lost);
    }
    let failures = [
        status.as_ref().err().map(ToString::to_string),
        recorder.log_fault().map(|fault| fault.to_string()),
        ended.err().map(|error| error.to_string()),
        counted.err().map(|error| error.to_string()),
    ];
    let failure = failures.into_iter().flatten().next();
    Ok(Outcome {
        summary: recorder.finish(failure.as_deref()),
        status: status.unwrap_or(1),
        not_executed,
        failure,
    })
}

/// Starts the job's first process, and has it prove the fence, which has no rule yet but for
/// `targets`, before it becomes the command.
async fn prove(
    account: &Account,
    command: &[OsString],
    cgroup: &Cgroup,
    targets: Targets,
    kernel: &Kernel,
    events: &mut Events,
) -> Result<(Starting, Findings), RunError> {
    let aim = targets.aim(cgroup.path());
    // On this thread, which lasts as long as the job; the waiting on another, since the resolver
    // has to answer.
    let starting = Starting::start(account, command, &aim).map_err(RunError::Launch)?;
    let probed = spawn_blocking(move || {
        let (starting, mut outcomes) = starting.probe()?;
        targets.witness(&mut outcomes);
        Ok((starting, outcomes))
    })
    .await;
    let probed = probed.map_err(|error| failed("wait for the self-probe")(error.into()))?;
    let (starting, outcomes) = probed.map_err(RunError::Launch)?;
    match probe::judge(&outcomes, &events.take(), Means::find(kernel.has_lsm())) {
        Ok(findings) => Ok((starting, findings)),
        Err(error) => {
            starting.end().map_err(RunError::Launch)?;
            Err(error.into())
        }
    }
}

/// What holds a job that has been launched.
fn layers(kernel: &Kernel, findings: &Findings, account: &Account) -> Layers {
    Layers {
        cgroup: kernel.programs().collect(),
        lsm: findings.lsm,
        seccomp: true,
        landlock: findings.landlock,
        capabilities: launch::kept(account),
    }
}

/// Gives this process precedence over the job's: names have to be answered, and a process that was
/// refused something looked at before it is gone. Called once the job's first process is there, so
/// that it does not inherit it.
fn hurry() {
    if let Err(error) = setpriority_process(None, PRECEDENCE) {
        tracing::debug!(%error, "no precedence over the job");
    }
}

/// The variables of this process, which become the job's. Those that are no text hold no secret
/// that could be found in text.
fn environment() -> impl Iterator<Item = (String, String)> {
    env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// Starts the job's resolver, with the host's settings.
async fn resolver(
    policy: &Arc<Job>,
    table: Arc<Table>,
    addresses: &Addresses,
    audit: &Arc<Audit>,
) -> Result<Resolver, RunError> {
    let grants = Arc::new(Grants {
        policy: Arc::clone(policy),
        table: Arc::clone(&table),
        addresses: addresses.clone(),
    });
    grant_hosts(policy, &table, &grants);
    let resolv_conf = fs::read_to_string("/etc/resolv.conf").map_err(failed(
        "read /etc/resolv.conf, which names the host's DNS servers",
    ))?;
    let host = rustix::system::uname();
    let host_name = host.nodename().to_string_lossy();
    let resolver = Resolver::bind(names::Config {
        job: Arc::clone(policy),
        resolv_conf: &resolv_conf,
        host_name: &host_name,
        table,
        addresses: grants,
        events: Arc::clone(audit) as Arc<dyn EventSink>,
    });
    Ok(resolver.await?)
}

/// What a fenced cgroup needs for as long as something is in it. When it is dropped without
/// [`Fenced::end`], the reaper takes over: the fence stays until the cgroup is empty.
struct Fenced {
    reaper: Reaper,
    /// Holds the lock that says that the job has an agent.
    fence: kernel::Fence,
}

impl Fenced {
    fn start(
        kernel: &mut Kernel,
        cgroup: &Cgroup,
        id: &str,
        spec: &JobSpec,
    ) -> Result<Self, RunError> {
        let fence = kernel.fence(cgroup.path(), id, SLOT, spec)?;
        match Reaper::start(cgroup, fence.pins()) {
            Ok(reaper) => Ok(Self { reaper, fence }),
            Err(error) => {
                fence.discard().map_err(failed("take down the fence"))?;
                Err(failed("start the reaper")(error))
            }
        }
    }

    /// Ends the job. Its fence stays until its sockets are gone too; the reaper sees to that. When
    /// processes cannot be ended, the reaper goes on trying.
    fn end(self, cgroup: &Cgroup) -> Result<(), RunError> {
        cgroup.end()?;
        if let Err(error) = self.reaper.leave_the_rest() {
            tracing::debug!(%error, "the reaper was gone");
        }
        Ok(())
    }
}

/// Removes a cgroup in which nothing has run yet.
fn discard(cgroup: &Cgroup) {
    if let Err(error) = cgroup.end() {
        tracing::warn!(%error, "an empty cgroup is left behind");
    }
}

/// Waits for the job's first process, and does what the job needs meanwhile.
async fn watch(
    mut child: Child,
    cgroup: &Cgroup,
    audit: &Audit,
    events: &mut Events,
    signals: &Signals,
    on_violation: OnViolation,
) -> io::Result<ExitStatus> {
    let pid = Pid::from_child(&child);
    let exited = sys::watch(&pidfd_open(pid, PidfdFlags::NONBLOCK)?)?;
    let processes = process_events(audit)?;
    let mut killed = false;
    let mut rounds = interval(ROUND);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let mut round = false;
        // In this order: a flood of attempts must keep neither signals, nor the job's end, nor the look
        // after the log waiting.
        tokio::select! {
            biased;
            come = signals.come() => {
                come?;
                signals.forward(pid)?;
            }
            ready = exited.readable() => {
                ready?.retain_ready();
                return child.wait();
            }
            _ = rounds.tick() => {
                round = true;
                events.drain(audit);
            }
            () = audit.changed.notified() => {}
            ready = readable(processes.as_ref()) => {
                ready?.clear_ready();
                audit.recorder().processes().catch_up();
            }
            ready = events.readable.readable() => {
                // Cleared first: what comes while draining is seen again.
                ready?.clear_ready();
                events.drain(audit);
            }
            () = tokio::task::yield_now(), if events.more => {
                events.drain(audit);
            }
        }
        let recorder = audit.recorder();
        let violated = on_violation == OnViolation::Kill && recorder.violations() > 0;
        if !killed && (violated || round && recorder.log_fault().is_some()) {
            killed = true;
            cgroup.kill().map_err(io::Error::other)?;
        }
    }
}

/// Waits for a descriptor that may be missing: then for ever.
async fn readable(
    fd: Option<&AsyncFd<OwnedFd>>,
) -> io::Result<tokio::io::unix::AsyncFdReadyGuard<'_, OwnedFd>> {
    match fd {
        Some(fd) => fd.readable().await,
        None => std::future::pending().await,
    }
}

fn process_events(audit: &Audit) -> io::Result<Option<AsyncFd<OwnedFd>>> {
    let mut recorder = audit.recorder();
    let Some(fd) = recorder.processes().events_fd() else {
        return Ok(None);
    };
    Ok(Some(sys::watch(&fd)?))
}

/// The ring buffer of attempts.
struct Events {
    ring: RingBuf<MapData>,
    readable: AsyncFd<OwnedFd>,
    connections: Connections,
    /// Whether some were left when it was last drained.
    more: bool,
}

impl Events {
    /// Attempts that are taken in one go.
    const BATCH: usize = 256;

    fn new(kernel: &mut Kernel) -> Result<Self, RunError> {
        let ring = kernel.take_events()?;
        let readable = sys::watch(&ring).map_err(failed("watch the ring buffer"))?;
        Ok(Self {
            ring,
            readable,
            connections: Connections::open().map_err(failed("open sock_diag"))?,
            more: false,
        })
    }

    /// Takes what was reported so far.
    fn take(&mut self) -> Vec<abi::Event> {
        let mut taken = Vec::new();
        while let Some(item) = self.ring.next() {
            taken.extend(abi::decode(&item).map(|(event, _)| event));
        }
        taken
    }

    /// Takes a batch of attempts, and says whether there may be more.
    fn drain(&mut self, audit: &Audit) -> bool {
        let mut recorder = audit.recorder();
        for _ in 0..Self::BATCH {
            let Some(item) = self.ring.next() else {
                self.more = false;
                return false;
            };
            let Some((event, name)) = abi::decode(&item) else {
                tracing::error!(bytes = item.len(), "an event of the wrong size");
                continue;
            };
            self.connections.end(&event);
            recorder.kernel(&event, name.as_ref());
        }
        self.more = true;
        true
    }
}

/// Where the kernel's and the resolver's reports meet.
struct Audit {
    recorder: Mutex<Recorder>,
    clients: Clients,
    /// Whether the job has begun. Questions before that are the self-probe's.
    live: AtomicBool,
    changed: Notify,
}

impl Audit {
    fn begin(&self, layers: Layers) {
        self.recorder().started(layers);
        self.live.store(true, Ordering::Release);
    }

    fn recorder(&self) -> MutexGuard<'_, Recorder> {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Audit {
    /// The process that asked, which the kernel noted before the question arrived.
    fn client(&self, peer: SocketAddr, transport: Transport) -> Option<Client> {
        let proto = match transport {
            Transport::Udp => proto::UDP,
            Transport::Tcp => proto::TCP,
        };
        self.clients.find(peer.port(), proto, peer.is_ipv6())
    }
}

impl EventSink for Audit {
    fn is_from_job(&self, peer: SocketAddr, transport: Transport) -> bool {
        self.client(peer, transport).is_some()
    }

    fn dns(&self, event: DnsEvent) {
        if !self.live.load(Ordering::Acquire) {
            return;
        }
        // A message that could not be read, from somebody else on this host.
        let Some(client) = self.client(event.peer, event.transport) else {
            return;
        };
        self.recorder().dns(&event, &client);
        self.changed.notify_one();
    }
}

/// Opens addresses to the job as its resolver learns them.
struct Grants {
    policy: Arc<Job>,
    table: Arc<Table>,
    addresses: Addresses,
}

impl AddressSink for Grants {
    fn grant(&self, name: &Name, _chain: &[Name], addresses: &[IpAddr]) -> Result<(), GrantError> {
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

/// Grants what the host's own `/etc/hosts` says of allowed names: clients read that file
/// themselves and ask no resolver.
fn grant_hosts(policy: &Job, table: &Table, grants: &Grants) {
    let Ok(text) = fs::read_to_string("/etc/hosts") else {
        return;
    };
    for (name, addresses) in names::hosts(&text, policy) {
        let granted = grants
            .grant(&name, &[], &addresses)
            .map_err(|error| error.to_string());
        let noted = granted.and_then(|()| {
            table
                .insert(&name, &[], &addresses)
                .map_err(|error| error.to_string())
        });
        if let Err(error) = noted {
            tracing::warn!(%name, error, "the host's /etc/hosts has it, but it is not reachable");
        }
    }
}

/// A name for the job that no other on this host has had.
fn job_id() -> String {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format!("{:x}-{}", since.as_micros(), std::process::id())
}

/// Mounts the bpf file system where it is not mounted yet, as systemd does at boot.
fn mount_bpffs() -> Result<(), RunError> {
    let bpffs = |source| RunError::Bpffs { source };
    if kernel::is_bpffs().map_err(bpffs)? {
        return Ok(());
    }
    tracing::info!(path = kernel::BPFFS, "mounting the bpf file system");
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("bpf", kernel::BPFFS, "bpf", flags, c"mode=0700").map_err(|errno| bpffs(errno.into()))
}

/// An exit status as shells tell it.
fn shell_status(status: ExitStatus) -> u8 {
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 1,
    };
    u8::try_from(code).unwrap_or(u8::MAX)
}
