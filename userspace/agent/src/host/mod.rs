//! The daemon for a host with many jobs.
//!
//! One load of the programs holds every job. What is enforced is pinned in the kernel, what a job is
//! and what it did is on disk, so the daemon can be killed and started again at any moment: its jobs
//! stay as they are, what they report waits in the ring buffer, new names wait for the resolver, and
//! nothing opens.
//!
//! - [`config`]: what agent.yml says
//! - [`confine`]: what the daemon gives up once it is ready
//! - `job`: one job
//! - `start`, `finish`: its beginning and its end
//! - `journal`: what outlives the daemon
//! - `policy`: what a job's policy is made of
//! - `trusted`: what a repository's trusted ref says of its policy
//! - `tree`: moving a process tree into a job
//! - [`metrics`]: numbers for Prometheus
//! - [`notify`]: what the service manager is told

pub mod config;
pub mod confine;
mod finish;
mod job;
mod journal;
pub mod metrics;
pub mod notify;
mod policy;
mod start;
mod tree;
mod trusted;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs,
    future::pending,
    io,
    net::IpAddr,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use jobfence_abi::{MAX_JOBS, Reason};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thiserror::Error;
use tokio::{
    io::unix::AsyncFd,
    sync::Notify,
    task::{spawn_blocking, yield_now},
    time::{MissedTickBehavior, interval, sleep},
};

use crate::{
    audit::{export::Exporter, ledger::Summary, log::LogError, retention},
    control::{
        protocol::{Finished, JobStatus, Phase, PolicyText, Refusal, Start, Started},
        server::{self, Owner, Within},
    },
    job::{
        cgroup::{self, Cgroup, CgroupError},
        probe,
        process::{self, Processes},
        scope::ScopeError,
        user::UserError,
    },
    kernel::{self, Events, EventsError, Fence, Kernel, KernelError, Slot, Tries},
    names::NamesError,
};
use config::Config;
use job::Job;
pub(crate) use journal::Journal;
use journal::JournalError;
use metrics::Totals;
use policy::{Policies, PolicyError};
use tree::TreeError;

/// How often the daemon takes the attempts that it was not woken for, which are the allowed ones.
const ROUND: Duration = Duration::from_millis(100);

/// In how many rounds it looks after each job once.
const ROUNDS: u32 = 10;

/// Places in the kernel's maps that are kept ready for the next jobs.
const READY: usize = 64;

/// How the names of jobs' cgroups begin, before the id, here and with `jobfence run`.
const JOB_CGROUP: &str = "jobfence-";

/// How long the report of a job that has ended is kept.
const KEPT: Duration = Duration::from_secs(3600);

/// How often new lines of logs are exported.
const EXPORT: Duration = Duration::from_secs(2);

/// How long a collector that does not answer is left alone, at most.
const EXPORT_AGAIN: Duration = Duration::from_secs(60);

/// How often old logs are looked for.
const RETAIN: Duration = Duration::from_secs(600);

/// Why the daemon cannot work.
#[derive(Debug, Error)]
pub enum HostError {
    /// The bpf file system is not there. The agent does not mount it: in a mount namespace of its own
    /// what is pinned would be gone with it.
    #[error("no bpf file system at {path}: mount it with `mount -t bpf bpf {path}`", path = kernel::BPFFS)]
    Bpffs,
    /// The kernel's part.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The ring buffer of attempts.
    #[error(transparent)]
    Events(#[from] EventsError),
    /// What jobs left on disk.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A job's cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The unit of a job's cgroup.
    #[error(transparent)]
    Scope(#[from] ScopeError),
    /// A job's log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A job's policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A job's resolver.
    #[error(transparent)]
    Names(#[from] NamesError),
    /// The fence does not hold.
    #[error(transparent)]
    Probe(#[from] probe::ProbeError),
    /// A process tree.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A job that only the kernel knows of.
    #[error(
        "nothing is known of the job but its fence: its folder is gone from the agent's state, or \
         is of another job"
    )]
    Unknown,
    /// A job's user.
    #[error(transparent)]
    User(#[from] UserError),
    /// Some other system call.
    #[error("could not {doing}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

fn failed(doing: &'static str) -> impl Fn(io::Error) -> HostError {
    move |source| HostError::Io { doing, source }
}

/// The jobs of a host.
pub struct Host {
    this: Weak<Self>,
    /// What was configured when the daemon started.
    config: Config,
    /// What is configured now.
    settings: Mutex<Arc<Settings>>,
    render: fn(&Summary) -> String,
    kernel: Mutex<Kernel>,
    tries: Tries,
    places: Mutex<Places>,
    /// Told when places were taken or came free.
    taken: Notify,
    /// Told when places have been made ready.
    made: Notify,
    events: Mutex<Events>,
    readable: AsyncFd<OwnedFd>,
    processes: Arc<Mutex<Processes>>,
    /// Told when a resolver has reported something.
    changed: Arc<Notify>,
    jobs: Mutex<Jobs>,
    policies: Mutex<Policies>,
    totals: Totals,
    /// When old logs were last looked for.
    retained: Mutex<Option<Instant>>,
}

/// What can change while the daemon runs.
struct Settings {
    /// Of this, [`Config::fixed`] is not looked at.
    config: Config,
    /// Users that are held to jobs.
    guarded: Vec<u32>,
}

/// Places in the kernel's maps.
struct Places {
    ready: Vec<Slot>,
    /// How many are being made ready.
    making: usize,
    free: BTreeSet<u32>,
}

#[derive(Default)]
struct Jobs {
    by_id: HashMap<String, Arc<Job>>,
    by_slot: HashMap<u32, Arc<Job>>,
    /// Ids of jobs that are being started.
    starting: HashSet<String>,
    /// Fences of jobs that have ended, until the last socket of each is gone.
    leaving: Vec<Leaving>,
}

/// An id that is taken while its job is being started.
struct Reservation<'a> {
    host: &'a Host,
    id: &'a str,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        lock(&self.host.jobs).starting.remove(self.id);
    }
}

/// Each job takes some descriptors, for its resolver above all.
fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, most) {
        tracing::warn!(%error, "no more descriptors than usual: some hundred jobs may be too many");
    }
}

/// Nothing that is locked here is left half changed by a panic in a way that matters.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Host {
    /// Loads the programs, and takes up the jobs that the daemon before this one left. `render` says
    /// to a person what a job has done.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    pub async fn open(
        config: Config,
        guarded: Vec<u32>,
        render: fn(&Summary) -> String,
    ) -> Result<Arc<Self>, HostError> {
        if !kernel::is_bpffs().map_err(failed("look at the bpf file system"))? {
            return Err(HostError::Bpffs);
        }
        allow_descriptors();
        for folder in [&config.state, &config.logs] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o750)
                .create(folder)
                .map_err(failed("make the folders for state and logs"))?;
        }
        let mut kernel = Kernel::load_pinned()?;
        let events = Events::new(&mut kernel)?;
        let readable = events.watch()?;
        let host = Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            settings: Mutex::new(Arc::new(Settings {
                config: config.clone(),
                guarded,
            })),
            render,
            tries: kernel.tries(),
            readable,
            events: Mutex::new(events),
            kernel: Mutex::new(kernel),
            places: Mutex::new(Places {
                ready: Vec::new(),
                making: 0,
                free: (1..=config.jobs.min(MAX_JOBS - 1)).collect(),
            }),
            taken: Notify::new(),
            made: Notify::new(),
            processes: Arc::new(Mutex::new(Processes::new())),
            changed: Arc::new(Notify::new()),
            jobs: Mutex::default(),
            policies: Mutex::default(),
            totals: Totals::default(),
            retained: Mutex::default(),
            config,
        });
        host.take_up().await?;
        lock(&host.kernel).guard(&cgroup::outermost()?, &host.settings().guarded)?;
        Ok(host)
    }

    /// Goes by another configuration from now on, as far as that can change while jobs run; what runs
    /// keeps its policy. Tells which keys wait for the next start.
    ///
    /// # Errors
    ///
    /// When who is held to jobs cannot be changed. All is as before then.
    pub fn reload(
        &self,
        config: Config,
        guarded: Vec<u32>,
    ) -> Result<Vec<&'static str>, HostError> {
        let old = self.settings();
        let mut kernel = lock(&self.kernel);
        if guarded != old.guarded {
            let outermost = cgroup::outermost()?;
            kernel.guard(&outermost, &guarded).inspect_err(|_| {
                if let Err(error) = kernel.guard(&outermost, &old.guarded) {
                    tracing::error!(%error, "not all of `guard` holds");
                }
            })?;
        }
        let waiting = self.config.fixed(&config);
        // As many places as there were are all that there are.
        let jobs = config.jobs.min(self.config.jobs);
        let config = Config { jobs, ..config };
        *lock(&self.settings) = Arc::new(Settings { config, guarded });
        Ok(waiting)
    }

    fn settings(&self) -> Arc<Settings> {
        Arc::clone(&lock(&self.settings))
    }

    /// Does what the jobs need, for as long as it is polled.
    ///
    /// # Errors
    ///
    /// What waiting for a descriptor can fail with.
    pub async fn serve(&self) -> io::Result<()> {
        tokio::try_join!(
            self.watch(),
            self.keep_ready(),
            self.serve_metrics(),
            self.export()
        )?;
        Ok(())
    }

    /// Sends the logs to a collector, if there is one.
    async fn export(&self) -> io::Result<()> {
        let Some(endpoint) = self.config.otlp.clone() else {
            return pending().await;
        };
        let (logs, state) = (&self.config.logs, &self.config.state);
        let mut exporter = Exporter::new(&endpoint, logs, state);
        let mut wait = EXPORT;
        loop {
            sleep(wait).await;
            let running = lock(&self.jobs).by_id.keys().cloned().collect();
            let outcome;
            (exporter, outcome) = spawn_blocking(move || {
                let outcome = exporter.pass(&running);
                (exporter, outcome)
            })
            .await?;
            let failed = wait > EXPORT;
            wait = match outcome {
                Ok(true) => Duration::ZERO,
                Ok(false) => EXPORT,
                Err(error) => {
                    if !failed {
                        tracing::warn!(%error, "logs are not exported, and wait");
                    }
                    (wait * 2).clamp(EXPORT * 2, EXPORT_AGAIN)
                }
            };
            if failed && wait <= EXPORT {
                tracing::info!("logs are exported again");
            }
        }
    }

    async fn watch(&self) -> io::Result<()> {
        let processes = process::watch(&self.processes)?;
        let mut rounds = interval(ROUND);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut round = 0_u32;
        loop {
            tokio::select! {
                biased;
                _ = rounds.tick() => {
                    round = round.wrapping_add(1);
                    if round.is_multiple_of(ROUNDS) {
                        self.look_after_jobs();
                    }
                }
                () = self.changed.notified() => {
                    let jobs: Vec<_> = lock(&self.jobs).by_id.values().cloned().collect();
                    jobs.iter().for_each(|job| job.kill_violator());
                }
                ready = process::readable(processes.as_ref()) => {
                    ready?.clear_ready();
                    process::lock(&self.processes).catch_up();
                    continue;
                }
                // Cleared first: what comes while a batch is taken is seen again.
                ready = self.readable.readable() => ready?.clear_ready(),
            }
            while self.drain() {
                // Names have their turn, and callers.
                yield_now().await;
            }
        }
    }

    /// Keeps places ready, so that no job has to wait for the kernel to make one.
    async fn keep_ready(&self) -> io::Result<()> {
        loop {
            let numbers = self.unready();
            if numbers.is_empty() {
                self.taken.notified().await;
                continue;
            }
            let (tries, wanted) = (self.tries.clone(), numbers.clone());
            let made = spawn_blocking(move || tries.slots(&wanted)).await;
            let made = made.map_err(io::Error::from)?;
            lock(&self.places).making = 0;
            match made {
                Ok(slots) => lock(&self.places).ready.extend(slots),
                Err(error) => {
                    tracing::warn!(%error, "places for jobs could not be made");
                    lock(&self.places).free.extend(numbers);
                }
            }
            self.made.notify_waiters();
            self.taken.notified().await;
        }
    }

    /// Takes free places that are to be made ready, if too few are.
    fn unready(&self) -> Vec<u32> {
        let mut places = lock(&self.places);
        if places.ready.len() > READY / 2 {
            return Vec::new();
        }
        let wanted = READY - places.ready.len();
        let numbers: Vec<_> = std::iter::from_fn(|| places.free.pop_first())
            .take(wanted)
            .collect();
        places.making = numbers.len();
        numbers
    }

    /// Gives a place back.
    fn free(&self, number: u32) {
        // Of a fence that was never told its place.
        if number == 0 {
            return;
        }
        lock(&self.places).free.insert(number);
        self.taken.notify_one();
    }

    async fn make_ready(&self, number: u32) -> Result<Slot, HostError> {
        let tries = self.tries.clone();
        let made = spawn_blocking(move || tries.slot(number)).await;
        let made = made.map_err(|error| failed("make a place for a job")(error.into()))?;
        Ok(made?)
    }

    /// A place for a job; `None` when all are taken.
    async fn place(&self) -> Result<Option<Slot>, HostError> {
        loop {
            // Before the look: what is made after it is not missed.
            let made = self.made.notified();
            let (ready, free, making) = {
                let mut places = lock(&self.places);
                let ready = places.ready.pop();
                let free = match ready {
                    Some(_) => None,
                    None => places.free.pop_first(),
                };
                (ready, free, places.making)
            };
            self.taken.notify_one();
            if ready.is_some() {
                return Ok(ready);
            }
            if let Some(number) = free {
                let slot = self.make_ready(number).await;
                return slot.map(Some).inspect_err(|_| self.free(number));
            }
            if making == 0 {
                self.take_down();
                if lock(&self.places).free.is_empty() {
                    return Ok(None);
                }
                continue;
            }
            made.await;
        }
    }

    /// Takes a batch of attempts, of whatever jobs, and says whether there may be more.
    fn drain(&self) -> bool {
        lock(&self.events).drain(|event, name| {
            let job = match event.reason {
                Reason::OUTSIDE_JOB => self.suspect(event.uid),
                _ => lock(&self.jobs).by_slot.get(&event.slot).cloned(),
            };
            if job.is_none() && event.reason == Reason::OUTSIDE_JOB {
                tracing::warn!(
                    uid = event.uid,
                    pid = event.pid,
                    to = %IpAddr::from(event.flow.dst),
                    port = event.flow.port,
                    "refused a socket outside every job"
                );
            }
            // Without one: also the last packets of a job that has ended.
            job.is_none_or(|job| job.take(event, name))
        })
    }

    /// The job that something outside every job must have been done for: the only one of the user
    /// `uid`, else its only runner.
    fn suspect(&self, uid: u32) -> Option<Arc<Job>> {
        let uid = lock(&self.kernel).guarded_user(uid).unwrap_or(uid);
        let jobs = lock(&self.jobs);
        let of_user = jobs
            .by_id
            .values()
            .filter(|job| job.parts().record.uid == Some(uid));
        let (runners, jobs): (Vec<_>, Vec<_>) =
            of_user.partition(|job| job.parts().record.is_runner);
        match (&jobs[..], &runners[..]) {
            ([one], _) | (_, [one]) => Some(Arc::clone(one)),
            _ => None,
        }
    }

    /// Ends jobs that are over, and takes down the fences of those whose last socket is gone.
    fn look_after_jobs(&self) {
        let jobs: Vec<_> = lock(&self.jobs).by_id.values().cloned().collect();
        for job in jobs {
            let counters = lock(&self.kernel).counters(job.slot);
            let noted = counters
                .map_err(HostError::from)
                .and_then(|counters| Ok(job.note(&counters)?));
            if let Err(error) = noted {
                tracing::warn!(job = job.id, %error, "not everything is noted yet");
            }
            if job.is_over() && !job.ending.swap(true, Ordering::Relaxed) {
                let host = self.this();
                tokio::spawn(async move { host.end(&job).await });
            }
        }
        self.take_down();
        self.forget();
        self.retain();
    }

    /// Removes old logs, and what other versions have left, once in a while.
    fn retain(&self) {
        let mut retained = lock(&self.retained);
        if retained.is_some_and(|last| last.elapsed() < RETAIN) {
            return;
        }
        let more = kernel::clear_others().unwrap_or_else(|error| {
            tracing::warn!(%error, "fences of another version's jobs may be left");
            false
        });
        *retained = (!more).then(Instant::now);
        let config::Retention { days, bytes } = self.settings().config.retention;
        let limits = retention::Limits {
            age: Duration::from_secs(u64::from(days) * 86_400),
            bytes,
            files: usize::MAX,
        };
        let is_running = |id: &str| {
            let jobs = lock(&self.jobs);
            jobs.by_id.contains_key(id) || jobs.starting.contains(id)
        };
        let owner = |id: &str| match (self.stranger(id), start::owner_of(id)) {
            (Some(_), _) => retention::Owner::Stranger,
            (None, 0) => retention::Owner::Trusted,
            (None, uid) => retention::Owner::Runner(uid),
        };
        let now = SystemTime::now();
        match retention::retain(&self.config.logs, &limits, now, is_running, owner) {
            Ok(removed) if removed.files > 0 => {
                tracing::info!(
                    files = removed.files,
                    bytes = removed.bytes,
                    "removed old logs"
                );
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "old logs are left"),
        }
    }

    /// Takes down the fences of jobs that have ended, as far as nothing of the job can send any more.
    fn take_down(&self) {
        let leaving = std::mem::take(&mut lock(&self.jobs).leaving);
        for left in leaving {
            let forgotten = lock(&self.kernel).forget_uploads(&left.fence);
            let gone = forgotten
                .map_err(io::Error::other)
                .and_then(|()| left.is_gone());
            match gone {
                Ok(true) => self.free(left.slot),
                Ok(false) => lock(&self.jobs).leaving.push(left),
                Err(error) => {
                    tracing::warn!(%error, pins = %left.fence.pins().display(), "a fence stays up");
                    lock(&self.jobs).leaving.push(left);
                }
            }
        }
    }

    /// Forgets reports that have been kept long enough.
    fn forget(&self) {
        let now = SystemTime::now();
        for entry in fs::read_dir(self.config.state.join(ENDED))
            .into_iter()
            .flatten()
            .flatten()
        {
            let written = entry.metadata().and_then(|meta| meta.modified());
            let age = written
                .ok()
                .and_then(|written| now.duration_since(written).ok());
            if age.is_some_and(|age| age > KEPT)
                && let Err(error) = fs::remove_file(entry.path())
            {
                tracing::warn!(%error, path = %entry.path().display(), "a report is left behind");
            }
        }
    }
}

/// The fence of a job that has ended, until nothing of the job can send any more.
struct Leaving {
    id: String,
    fence: Fence,
    slot: u32,
    cgroup: Cgroup,
}

impl Leaving {
    /// Takes down what is left of it, as far as it fences nothing any more.
    fn is_gone(&self) -> io::Result<bool> {
        // Processes that could not be ended in time.
        if self.cgroup.path().exists() {
            self.cgroup.try_end();
        }
        kernel::unpin(self.fence.pins())
    }
}

/// The folder of reports of jobs that have ended, in the folder for state.
const ENDED: &str = "ended";

impl server::Jobs for Host {
    async fn start(&self, owner: Owner, order: Start) -> Result<Started, Refusal> {
        Host::start(self, owner, order).await
    }

    async fn finish(&self, id: &str) -> Result<Finished, Refusal> {
        Host::finish(self, id).await
    }

    async fn narrow(&self, id: &str, policy: PolicyText) -> Result<(), Refusal> {
        Host::narrow(self, id, policy).await
    }

    fn status(&self, id: &str) -> Option<JobStatus> {
        let job = lock(&self.jobs).by_id.get(id).cloned();
        match job {
            Some(job) => {
                // What a caller has just seen refused is told.
                self.drain();
                Some(job.full_status(Phase::Running))
            }
            None => self.ended(id).map(|finished| finished.status),
        }
    }

    fn list(&self) -> Vec<JobStatus> {
        let jobs: Vec<_> = lock(&self.jobs).by_id.values().cloned().collect();
        let mut list: Vec<_> = jobs.iter().map(|job| job.status(Phase::Running)).collect();
        list.sort_by(|a, b| (a.started, &a.id).cmp(&(b.started, &b.id)));
        list
    }

    fn fence_of(&self, cgroup: &Path) -> Option<Within> {
        Host::fence_of(self, cgroup)
    }

    fn log_of(&self, id: &str) -> Option<PathBuf> {
        server::Jobs::status(self, id).map(|status| status.log.into())
    }
}

impl Host {
    /// This host, for a task of its own.
    fn this(&self) -> Arc<Self> {
        self.this.upgrade().expect("whoever calls a method has one")
    }

    /// The fence around the folder `cgroup`.
    fn fence_of(&self, cgroup: &Path) -> Option<Within> {
        let jobs = lock(&self.jobs);
        let mut running = jobs.by_id.values();
        if let Some((job, below)) =
            running.find_map(|job| Some((job, cgroup.strip_prefix(job.cgroup.path()).ok()?)))
        {
            let id = job.id.clone();
            return Some(match job.parts().record.is_runner {
                // A `jobfence run` in the fence of a runner has one of its own there.
                true if is_named(below) => Within::Another,
                true => Within::Runner(id),
                false => Within::Job(id),
            });
        }
        let mut leaving = jobs.leaving.iter();
        if let Some(left) = leaving.find(|left| cgroup.starts_with(left.cgroup.path())) {
            return Some(Within::Job(left.id.clone()));
        }
        is_named(cgroup).then_some(Within::Another)
    }
}

/// Whether a cgroup is by its name, or by that of one above, a job's.
fn is_named(cgroup: &Path) -> bool {
    let mut names = cgroup.iter().filter_map(|name| name.to_str());
    // No id has a dot, and units of a service manager have one.
    names.any(|name| {
        let id = name.strip_prefix(JOB_CGROUP);
        id.is_some_and(|id| !id.contains('.'))
    })
}
