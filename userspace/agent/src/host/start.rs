//! The beginning of a job, and its taking up by another daemon.

use std::{
    collections::HashMap,
    fs, io,
    os::{fd::BorrowedFd, unix::fs::MetadataExt as _},
    panic,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use jobfence_abi::JobState;
use jobfence_policy::{Date, Job as Policy, Limits, Mode};
use time::OffsetDateTime;
use tokio::task::{JoinError, spawn_blocking, yield_now};

use super::{
    Host, HostError, JOB_CGROUP, Leaving, Reservation, failed,
    finish::unknown,
    job::{FAILED, Job, Made, Means, Parts},
    journal::{self, Journal, Left, Record},
    lock,
    policy::{self, PolicyError, Sources},
    tree::{self, TreeError},
};
use crate::{
    audit::{
        event::JobName,
        log::Log,
        mask::Mask,
        recorder::{Recorder, Subject},
    },
    control::{
        protocol::{
            Code, Finished, JobStatus, Labels, Launch, Phase, PolicyText, Refusal, Start, Started,
        },
        server::{Owner, Within},
    },
    job::{
        Layers, State,
        cgroup::{self, Cgroup},
        live::{HostNames, Live, Opener},
        probe::{self, Findings, Held, Means as ProbeMeans, Targets},
        scope::{self, Scope},
    },
    kernel::{Fence, JobSpec, KernelError, Left as Fenced, Slot},
    names::{Ports, Resolver, Table},
};

/// A user who is not trusted has no more than one place in so many.
const SHARE: usize = 4;

/// Rules that whoever starts a job is told of.
const TOLD: usize = 100;

/// The folder of jobs' cgroups that can be in none that is there.
const OWN_CGROUP: &str = "jobfence";

impl Host {
    /// Fences a process tree as a job of `owner`. Whoever is trusted says which policy it has; others
    /// can only take from what the host gives it.
    pub(super) async fn start(&self, owner: Owner, order: Start) -> Result<Started, Refusal> {
        let id = order.id.clone();
        let settings = self.settings();
        let is_limited = !owner.trusted && !settings.config.is_runner(owner.uid);
        let reservation = self.reserve(&id, is_limited.then_some(owner.uid))?;
        let sources = self.sources(&owner, &order).await;
        let (sources, closed) = match sources {
            Ok(sources) => (sources, None),
            Err(error) => (Sources::default(), Some(error.to_string())),
        };
        let started = OffsetDateTime::now_utc();
        let compiled = lock(&self.policies).compile(sources, started.date());
        let (sources, policy, closed) = match compiled {
            Ok((sources, policy)) => (sources, policy, closed),
            Err(error) => (
                Arc::default(),
                Arc::new(policy::nothing()),
                Some(error.to_string()),
            ),
        };
        // Whatever is to be done about it, the job's processes are not to run unfenced. What every job
        // may reach, this one may: a CI system that is among that can still tell what is wrong.
        let (sources, policy) = match &closed {
            Some(_) => self.fallback(started.date()).unwrap_or((sources, policy)),
            None => (sources, policy),
        };
        if let (Some(closed), Some(_)) = (&closed, order.launch) {
            // Nothing runs yet that would have to be fenced.
            return Err(Refusal::new(Code::Policy, closed));
        }
        let Some(slot) = self.place().await.map_err(|error| no_fence(&error))? else {
            return Err(full());
        };
        let number = slot.number();
        let pid = order.pid;
        let prepared = self
            .prepare(&owner, order, sources, closed, policy, slot)
            .await;
        let (job, means) = prepared.map_err(|error| {
            // Nothing of it was there before: the id was free.
            journal::discard(&self.config.state, &id);
            if let Err(error) = fs::remove_file(self.log_path(&id)) {
                tracing::debug!(job = id, %error, "no log to remove");
            }
            self.free(number);
            no_fence(&error)
        })?;
        let established = self.establish(&job, pid, &owner, means).await;
        drop(reservation);
        let moved = match established {
            Ok(moved) => moved,
            Err(error) => {
                tracing::warn!(job = id, %error, "not started");
                if !lock(&self.jobs).by_id.contains_key(&id) {
                    self.abandon(&job).await;
                }
                return Err(no_fence(&error));
            }
        };
        self.totals.start();
        let status = job.status(Phase::Running);
        tracing::info!(
            job = id,
            owner = owner.uid,
            runner = owner.runner,
            processes = moved.len(),
            state = status.state,
            "started"
        );
        let parts = job.parts();
        if let Some(closed) = &parts.record.closed {
            return Err(Refusal {
                code: Code::Policy,
                message: match parts.policy.allow.is_empty() {
                    true => format!("{closed}\nThe job is fenced, and may reach nothing"),
                    false => format!(
                        "{closed}\nThe job is fenced, and may reach only what this host's baseline allows"
                    ),
                },
            });
        }
        Ok(Started {
            id,
            cgroup: job.cgroup.path().to_string_lossy().into_owned(),
            state: status.state,
            log: status.log,
            processes: moved.len(),
            runner: owner.runner,
            open_before: tree::open_connections(&moved),
            clipped: parts
                .policy
                .clipped
                .iter()
                .map(ToString::to_string)
                .collect(),
            allowed: (parts.policy.allow.iter().take(TOLD))
                .map(|rule| format!("{rule} ({})", rule.location))
                .collect(),
        })
    }

    /// Takes an id, which no job has, or had. A user who is neither trusted nor runs CI runners,
    /// `owner`, gets a part of the places only.
    fn reserve<'a>(&'a self, id: &'a str, owner: Option<u32>) -> Result<Reservation<'a>, Refusal> {
        let most = self.settings().config.jobs as usize;
        let mut jobs = lock(&self.jobs);
        if jobs.by_id.len() + jobs.starting.len() >= most {
            return Err(full());
        }
        if let Some(owner) = owner {
            let ids = jobs.by_id.keys().chain(&jobs.starting);
            let users: Vec<_> = ids.filter_map(|id| self.stranger(id)).collect();
            let own = users.iter().filter(|&&uid| uid == owner).count();
            // Who has subordinate ids is as many users as they like.
            for (running, share, who) in [
                (own, most / SHARE, "this user"),
                (users.len(), most / 2, "users who run no CI runner"),
            ] {
                if running >= share.max(1) {
                    return Err(Refusal {
                        code: Code::Full,
                        message: format!("{running} jobs of {who} run, which is all there may be"),
                    });
                }
            }
        }
        let is_known = jobs.by_id.contains_key(id)
            || jobs.starting.contains(id)
            || self.ended(id).is_some()
            || self.log_path(id).exists();
        if is_known {
            return Err(Refusal {
                code: Code::Exists,
                message: format!("there is, or was, a job {id}: give each its own id"),
            });
        }
        jobs.starting.insert(id.to_owned());
        Ok(Reservation { host: self, id })
    }

    /// The user whose job it is by its id, where that user is neither trusted nor runs CI runners.
    pub(super) fn stranger(&self, id: &str) -> Option<u32> {
        let uid = id.strip_prefix('u')?.split_once('-')?.0.parse().ok()?;
        (!self.settings().config.is_runner(uid)).then_some(uid)
    }

    fn log_path(&self, id: &str) -> PathBuf {
        self.config.logs.join(format!("{id}.jsonl"))
    }

    /// What a job may reach whose own policy cannot be used: the host's baseline, if that can be.
    fn fallback(&self, today: Date) -> Option<(Arc<Sources>, Arc<Policy>)> {
        let settings = self.settings();
        let config = &settings.config;
        let sources = Sources {
            host: Some(policy::read(config.host_policy.as_ref()?).ok()?),
            presets: match &config.presets {
                Some(folder) => policy::presets(folder).ok()?,
                None => Vec::new(),
            },
            ..Sources::default()
        };
        lock(&self.policies).compile(sources, today).ok()
    }

    /// What the policy of a job is made of.
    async fn sources(&self, owner: &Owner, order: &Start) -> Result<Sources, PolicyError> {
        let trusted = owner.trusted;
        let settings = self.settings();
        let config = &settings.config;
        let host = match &config.host_policy {
            Some(path) => Some(policy::read(path)?),
            None => None,
        };
        let narrows = order.launch.is_some_and(|launch| launch.narrows);
        let (base, narrowing) = match (&order.policy, trusted && !narrows) {
            (Some(policy), true) => (Some(policy.clone()), Vec::new()),
            (policy, _) => {
                // Whose word does not count gets what everybody gets.
                let counts = trusted || config.is_runner(owner.uid);
                let labels = order.labels.clone();
                let settings = Arc::clone(&settings);
                // It waits for children.
                let found = spawn_blocking(move || {
                    let Labels { repo, base, .. } = labels;
                    let (repo, base) = (repo.filter(|_| counts), base.filter(|_| counts));
                    policy::of_repository(&settings.config, repo.as_deref(), base.as_deref())
                });
                (unpanicked(found.await)?, policy.iter().cloned().collect())
            }
        };
        let presets = match &config.presets {
            Some(folder) => policy::presets(folder)?,
            None => Vec::new(),
        };
        Ok(Sources {
            job: order.job.clone(),
            audit: order.launch.and_then(|launch| launch.audit),
            base,
            narrowing,
            host,
            presets,
        })
    }

    /// Makes all that a job needs but its fence.
    async fn prepare(
        &self,
        owner: &Owner,
        order: Start,
        sources: Arc<Sources>,
        closed: Option<String>,
        policy: Arc<Policy>,
        slot: Slot,
    ) -> Result<(Arc<Job>, Means), HostError> {
        let mut means = match order.launch {
            Some(Launch { uid, .. }) => Means::launched(order.pid, uid)?,
            None => {
                let mut kernel = lock(&self.kernel);
                let means = Means::of(order.pid, kernel.has_lsm(), &self.settings().guarded);
                if let Some(user) = means
                    .uid
                    .filter(|uid| self.settings().guarded.contains(uid))
                {
                    // It may have got more ids meanwhile.
                    kernel.guard_user(user)?;
                }
                means
            }
        };
        // Before anything is made: a cgroup for it would be in that of the other job.
        let folder = order.pid.and_then(cgroup::of);
        let may_leave = |pid, folder: &Path| self.may_leave(owner, pid, folder);
        match (order.pid, &folder) {
            // It is not moved.
            (Some(pid), Some(folder)) if order.launch.is_some() => may_leave(pid, folder)?,
            (Some(pid), _) => tree::check(pid, owner.of_tree(), may_leave)?,
            (None, _) => {}
        }
        let runner = order
            .pid
            .map(|pid| tree::runner(pid).ok_or(TreeError::Gone(pid)))
            .transpose()?;
        let id = &order.id;
        // Beside its runner's and never below: what is below a fence is held to that one too.
        let (parent, scope) = match folder.and_then(|folder| self.beside_runner(&folder)) {
            Some(parent) => (parent, None),
            None => self.parent(id, order.pid).await?,
        };
        let cgroup = Cgroup::make_in(&parent, &cgroup_name(id))?;
        let undo = Undo(Some(&cgroup));
        let journal = Journal::begin(&self.config.state, id)?;
        let log = Log::create(&self.log_path(id))?;
        let record = Record {
            slot: slot.number(),
            cgroup: cgroup.path().to_owned(),
            cgroup_id: cgroup.id().map_err(failed("look at the job's cgroup"))?,
            owner: owner.uid,
            is_runner: order.runner,
            uid: means.uid,
            labels: order.labels,
            sources,
            closed,
            ports: (0, 0),
            started: now(),
            narrowed: false,
            runner,
            reasons: means.reasons.clone(),
            begun: false,
            id: order.id,
        };
        journal.write(&record)?;
        let environment = std::mem::take(&mut means.environment);
        let assembled = self.assemble(
            record,
            policy,
            slot,
            Arc::new(journal),
            |subject| {
                Ok(Recorder::new(Subject {
                    mask: Mask::new(environment.into_iter()),
                    log: Some(log),
                    ..subject
                }))
            },
            None,
        );
        let job = assembled.await?;
        *lock(&job.scope) = scope;
        undo.not_needed();
        Ok((job, means))
    }

    /// Fences the job, proves its fence, moves the process tree into it, and lets it reach what its
    /// policy allows.
    async fn establish(
        &self,
        job: &Arc<Job>,
        pid: Option<u32>,
        owner: &Owner,
        means: Means,
    ) -> Result<Vec<u32>, HostError> {
        self.fence(job)?;
        let findings = self.prove(job).await?;
        open_prefixes(&job.parts())?;
        let launcher = pid.filter(|_| means.launched);
        let pid = pid.filter(|_| !means.launched);
        job.live.begin(Layers {
            cgroup: lock(&self.kernel).programs().collect(),
            lsm: findings.lsm,
            seccomp: means.launched,
            landlock: means.launched && findings.landlock,
            capabilities: means.capabilities,
        })?;
        if let Some(launcher) = launcher {
            // For its children, of which the first is the job's.
            job.live.recorder().adopt(launcher, Vec::new());
        }
        if let Some(fault) = job.live.recorder().log_fault() {
            return Err(fault.into());
        }
        // From here on it is a job also for the daemon after this one: closed, until it is opened.
        job.journal.write(&Record {
            begun: true,
            ..job.parts().record.clone()
        })?;
        lock(&self.jobs)
            .by_id
            .insert(job.id.clone(), Arc::clone(job));
        let admitted = self.admit(job, pid, owner);
        if let Err(error) = &admitted {
            // Some of it may be inside, and stays there: what is fenced is not freed again.
            job.fail(&error.to_string());
        }
        admitted
    }

    fn admit(&self, job: &Job, pid: Option<u32>, owner: &Owner) -> Result<Vec<u32>, HostError> {
        let may_leave = |pid, folder: &Path| self.may_leave(owner, pid, folder);
        let moved = match pid {
            Some(pid) => tree::move_into(&job.cgroup, pid, owner.of_tree(), may_leave)?,
            None => Vec::new(),
        };
        for &pid in &moved {
            job.live.recorder().adopt(pid, Vec::new());
        }
        self.open_to_policy(job)?;
        Ok(moved)
    }

    /// Lets the job reach what its policy allows.
    fn open_to_policy(&self, job: &Job) -> Result<(), KernelError> {
        let parts = job.parts();
        let state = match (&parts.record.closed, parts.policy.mode) {
            (Some(_), _) if parts.policy.allow.is_empty() => JobState::CLOSED,
            (Some(_), _) | (None, Mode::Enforce) => JobState::ENFORCE,
            (None, Mode::Audit) => JobState::AUDIT,
        };
        self.write(job, state, Some(&parts.policy.limits))
    }

    /// Whether the process `pid` may be moved out of the cgroup `folder` into a job of `owner`: out of
    /// none that is a job's, and out of a runner's for those who are inside it, the runner not.
    fn may_leave(&self, owner: &Owner, pid: u32, folder: &Path) -> Result<(), TreeError> {
        match self.fence_of(folder) {
            None => Ok(()),
            Some(Within::Runner(id)) if owner.runner.as_ref() == Some(&id) => {
                let runner = lock(&self.jobs).by_id.get(&id).cloned();
                let runner = runner.and_then(|runner| runner.parts().record.runner);
                match runner.is_some_and(|runner| runner.pid == pid) {
                    true => Err(TreeError::Runner(pid)),
                    false => Ok(()),
                }
            }
            Some(_) => Err(TreeError::Fenced(pid)),
        }
    }

    /// The cgroup in which that of the runner is whose fence the cgroup `folder` is in, if it is in
    /// one.
    fn beside_runner(&self, folder: &Path) -> Option<PathBuf> {
        let Some(Within::Runner(id)) = self.fence_of(folder) else {
            return None;
        };
        let runner = lock(&self.jobs).by_id.get(&id).cloned()?;
        Some(runner.cgroup.path().parent()?.to_owned())
    }

    /// The cgroup in which that of the job `id` is made: that of its first process, so that what limits
    /// that one limits the job, unless somebody else than root could move processes in it, or it is not
    /// for the agent to make cgroups there. Where systemd runs, it is then a scope of the job's own.
    async fn parent(
        &self,
        id: &str,
        pid: Option<u32>,
    ) -> Result<(PathBuf, Option<Scope>), HostError> {
        if let Some(folder) = &self.config.cgroup {
            return Ok((folder.clone(), None));
        }
        let is_systemds = scope::is_systemd_here();
        let outermost = cgroup::outermost()?;
        if let Some(folder) = pid.and_then(cgroup::of)
            && folder
                .ancestors()
                .take_while(|above| above.starts_with(&outermost))
                .all(is_roots)
            && (!is_systemds || cgroup::is_delegated(&folder))
        {
            return Ok((folder, None));
        }
        if is_systemds && pid.is_some() {
            let name = cgroup_name(id);
            let made = spawn_blocking(move || Scope::make(&name)).await;
            let scope = made.map_err(|error| failed("ask systemd for a scope")(error.into()))??;
            return Ok((scope.folder().to_owned(), Some(scope)));
        }
        // Also of a job that begins empty: it may stay so for long, and systemd removes what is empty
        // when a unit stops, such as the agent's at each restart. Here it removes nothing.
        let own = outermost.join(OWN_CGROUP);
        match fs::create_dir(&own) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(failed("make a cgroup for jobs")(error))
            }
            _ => Ok((own, None)),
        }
    }

    /// Puts together what a job consists of. Nothing of it is fenced yet.
    async fn assemble(
        &self,
        record: Record,
        policy: Arc<Policy>,
        slot: Slot,
        journal: Arc<Journal>,
        recorder: impl FnOnce(Subject) -> Result<Recorder, HostError>,
        fence: Option<&Fence>,
    ) -> Result<Arc<Job>, HostError> {
        let table = Arc::new(Table::new(policy.limits.addresses));
        let state = match policy.mode {
            Mode::Audit => State::Auditing,
            Mode::Enforce if record.reasons.is_empty() => State::Enforcing,
            Mode::Enforce => State::Advisory(record.reasons.clone()),
        };
        let recorder = recorder(Subject {
            job: job_name(&record, &policy),
            state,
            policy: Arc::clone(&policy),
            table: Arc::clone(&table),
            processes: Arc::clone(&self.processes),
            mask: Mask::new(std::iter::empty()),
            log: None,
            is_runner: record.is_runner,
        })?;
        let live = Arc::new(Live::new(
            recorder,
            lock(&self.kernel).clients(slot.number()),
            Arc::clone(&self.changed),
        ));
        let cgroup = Cgroup::open(record.cgroup.clone());
        let log = self.log_path(&record.id);
        let parts = self
            .parts(record, policy, slot, (&live, &table, &journal), fence)
            .await?;
        Ok(Arc::new(Job::new(Made {
            cgroup,
            live,
            table,
            journal,
            log,
            parts,
        })))
    }

    /// What goes with a policy: what it allows by name, a resolver, and the addresses to which the
    /// names have led so far. Where there is a `fence`, the job may ask that resolver at once.
    async fn parts(
        &self,
        mut record: Record,
        policy: Arc<Policy>,
        mut slot: Slot,
        (live, table, journal): (&Arc<Live>, &Arc<Table>, &Arc<Journal>),
        fence: Option<&Fence>,
    ) -> Result<Parts, HostError> {
        slot.set_names(&policy.names().map_err(PolicyError::from)?)?;
        let addresses = slot.addresses().clone();
        let opener = Opener::new(Arc::clone(&policy), Arc::clone(table), addresses);
        for (name, chain, addresses) in journal.grants()? {
            opener.open(&name, &chain, &addresses).map_err(|error| {
                failed("open again what a job's names had led it to")(io::Error::other(error))
            })?;
        }
        let opener = Arc::new(opener.noted_in(Arc::clone(journal)));
        opener.open_hosts();
        let host = HostNames::read().map_err(failed(
            "read /etc/resolv.conf, which names the host's DNS servers",
        ))?;
        let mut config = host.config(&policy, table, &opener, live);
        let (v4, v6) = record.ports;
        config.ports = (v4 != 0).then_some(Ports { v4, v6: Some(v6) });
        // One that is not the job's would be somebody else's for a moment, and asking it a violation.
        let mark = |socket: BorrowedFd<'_>| {
            let marked = fence.map(|fence| lock(&self.kernel).mark(fence, socket));
            marked.transpose().map(drop).map_err(io::Error::other)
        };
        let resolver = Resolver::bind_marked(config, &mark).await?;
        let ports = resolver.ports();
        record.ports = (ports.v4, ports.v6.unwrap_or(0));
        Ok(Parts {
            record,
            policy,
            slot,
            resolver,
        })
    }

    /// Fences the job's cgroup, which is empty, with nothing allowed. Its attempts come in from here
    /// on.
    fn fence(&self, job: &Arc<Job>) -> Result<(), HostError> {
        let parts = job.parts();
        let mut kernel = lock(&self.kernel);
        let fence = kernel.fence(job.cgroup.path(), &job.id, &parts.slot)?;
        for socket in parts.resolver.sockets() {
            kernel.mark(&fence, socket)?;
        }
        *lock(&job.fence) = Some(fence);
        lock(&self.jobs).by_slot.insert(job.slot, Arc::clone(job));
        Ok(())
    }

    /// Has a process try to get out of the fence, which has no rule yet but for the probe's own.
    async fn prove(&self, job: &Arc<Job>) -> Result<Findings, HostError> {
        let targets = Targets::new(&job.id).map_err(failed("put up targets for the self-probe"))?;
        let prefixes = targets.prefixes();
        let parts = job.parts();
        parts.slot.addresses().set_all(&prefixes)?;
        self.write(job, JobState::ENFORCE, None)?;
        let cgroup = job.cgroup.path().to_owned();
        let probed = spawn_blocking(move || probe::probe_cgroup(&targets, &cgroup)).await;
        let outcomes = probed
            .map_err(io::Error::from)
            .and_then(|outcomes| outcomes)
            .map_err(failed("probe the fence"))?;
        while self.drain() {
            yield_now().await;
        }
        let reports = lock(&job.probed).take().unwrap_or_default();
        let means = ProbeMeans::find(lock(&self.kernel).has_lsm());
        let findings = probe::judge(&outcomes, Held::Programs, &reports, means)?;
        self.write(job, JobState::CLOSED, Some(&parts.policy.limits))?;
        parts.slot.addresses().remove_all(&prefixes)?;
        lock(&self.kernel).count_anew(job.slot)?;
        Ok(findings)
    }

    fn write(
        &self,
        job: &Job,
        state: JobState,
        limits: Option<&Limits>,
    ) -> Result<(), KernelError> {
        let (resolver_v4, resolver_v6) = job.parts().record.ports;
        let spec = JobSpec {
            state,
            resolver_v4,
            resolver_v6,
            rate: limits.map_or(0, |limits| limits.events),
            upload: limits.and_then(|limits| limits.upload),
        };
        match &*lock(&job.fence) {
            Some(fence) => lock(&self.kernel).write(fence, &spec),
            None => Ok(()),
        }
    }

    /// Takes back a job that could not be started, in which nothing ever was: it is as if it had not
    /// been. Unlike [`Host::end`] it does not wait for a log that cannot be written.
    async fn abandon(&self, job: &Arc<Job>) {
        let cgroup = job.cgroup.clone();
        if let Ok(Err(error)) = spawn_blocking(move || cgroup.end()).await {
            tracing::warn!(job = job.id, %error, "not ended yet");
        }
        job.journal.remove();
        if let Err(error) = fs::remove_file(&job.log) {
            tracing::debug!(%error, path = %job.log.display(), "not removed");
        }
        let mut jobs = lock(&self.jobs);
        jobs.by_slot.remove(&job.slot);
        match lock(&job.fence).take() {
            Some(fence) => jobs.leaving.push(Leaving {
                id: job.id.clone(),
                fence,
                slot: job.slot,
                cgroup: job.cgroup.clone(),
            }),
            None => self.free(job.slot),
        }
    }

    /// Takes up the jobs that the daemon before this one left.
    ///
    /// What the kernel holds goes before what is on disk: a place that some fence still has is not
    /// given to another job, and a job of which nothing else is known is ended.
    pub(super) async fn take_up(&self) -> Result<(), HostError> {
        let mut fences: HashMap<_, _> = HashMap::new();
        for left in lock(&self.kernel).left()? {
            lock(&self.places).free.remove(&left.slot);
            fences.insert(left.id.clone(), left);
        }
        for (id, found) in journal::left(&self.config.state)? {
            let fence = fences.remove(&id);
            if self.ended(&id).is_some() {
                // An agent was killed when it had told the end. Last sockets may be left.
                journal::discard(&self.config.state, &id);
                if let Some(fence) = fence {
                    self.leave(id, &fence, Vec::new());
                }
                continue;
            }
            let (record, journal) = match found {
                Left::Job(record, journal) => (*record, journal),
                Left::Beginning if fence.is_none() => {
                    journal::discard(&self.config.state, &id);
                    continue;
                }
                Left::Beginning => {
                    self.give_up(&id, fence, HostError::Unknown).await;
                    continue;
                }
                Left::Damaged(error) => {
                    self.give_up(&id, fence, error.into()).await;
                    continue;
                }
            };
            let is_other = |fence: &Fenced| {
                fence.slot != 0 && (fence.slot, fence.cgroup_id) != (record.slot, record.cgroup_id)
            };
            if fence.as_ref().is_some_and(is_other) {
                self.give_up(&id, fence, HostError::Unknown).await;
                continue;
            }
            let slot = record.slot;
            lock(&self.places).free.remove(&slot);
            if !record.begun {
                tracing::info!(job = record.id, "was not started to its end");
                self.clear(record, &journal, None).await;
                continue;
            }
            let journal = Arc::new(journal);
            match self.resume(record.clone(), Arc::clone(&journal)).await {
                Ok(()) => tracing::info!(job = record.id, "taken up"),
                Err(error) => {
                    // Nobody could answer for what it goes on to do.
                    tracing::error!(job = record.id, %error, "ended, since it cannot be taken up");
                    self.clear(record, &journal, Some(error)).await;
                }
            }
        }
        for (id, fence) in fences {
            if self.ended(&id).is_some() {
                // Its last sockets are left.
                self.leave(id, &fence, Vec::new());
            } else {
                self.give_up(&id, Some(fence), HostError::Unknown).await;
            }
        }
        Ok(())
    }

    /// Ends a job of which there is no record that could be used.
    async fn give_up(&self, id: &str, fence: Option<Fenced>, error: HostError) {
        tracing::error!(job = id, %error, "ended, since it cannot be taken up");
        let cgroup_id = fence.as_ref().map_or(0, |fence| fence.cgroup_id);
        let cgroups: Vec<_> = cgroup::find(&cgroup_name(id))
            .into_iter()
            .filter(|cgroup| cgroup_id != 0 && cgroup.id().is_ok_and(|id| id == cgroup_id))
            .collect();
        for cgroup in cgroups.clone() {
            if let Ok(Err(error)) = spawn_blocking(move || cgroup.end()).await {
                tracing::warn!(job = id, %error, "not ended yet");
            }
        }
        self.keep(&Finished {
            exit: FAILED,
            report: format!("jobfence: the job was ended: {error}\n"),
            status: JobStatus {
                id: id.to_owned(),
                job: String::new(),
                policy: None,
                labels: Labels::default(),
                state: State::Failed(error.to_string()).to_string(),
                phase: Phase::Finished,
                violations: 0,
                exit: FAILED,
                runner: false,
                owner: owner_of(id),
                started: 0,
                log: self.log_path(id).to_string_lossy().into_owned(),
                refused: Vec::new(),
                refused_more: 0,
            },
        });
        journal::discard(&self.config.state, id);
        if let Some(fence) = fence {
            self.leave(id.to_owned(), &fence, cgroups);
        }
    }

    /// Leaves a fence up until nothing passes it any more.
    fn leave(&self, id: String, left: &Fenced, cgroups: Vec<Cgroup>) {
        let cgroup = cgroups.into_iter().next();
        // Gone: a path that no cgroup has.
        let gone = || Cgroup::open(Path::new("/").join(cgroup_name(&id)));
        let cgroup = cgroup.unwrap_or_else(gone);
        let fence = lock(&self.kernel).take_up(&id, cgroup.path(), left.cgroup_id, left.slot);
        match fence {
            Ok(fence) => lock(&self.jobs).leaving.push(Leaving {
                id,
                fence,
                slot: left.slot,
                cgroup,
            }),
            // Its place stays taken.
            Err(error) => tracing::error!(job = id, %error, "a fence is left behind"),
        }
    }

    /// Ends a job of which there is no more than its record. With an `error`, whoever asks is told.
    async fn clear(&self, record: Record, journal: &Journal, error: Option<HostError>) {
        let cgroup = Cgroup::open(record.cgroup.clone());
        let ending = cgroup.clone();
        let ended = spawn_blocking(move || ending.end()).await;
        if let Ok(Err(error)) = ended {
            tracing::warn!(job = record.id, %error, "not ended yet");
        }
        match &error {
            Some(error) => self.keep(&Finished {
                exit: FAILED,
                report: format!("jobfence: the job was ended: {error}\n"),
                status: JobStatus {
                    job: record.sources.job.clone().unwrap_or_default(),
                    policy: None,
                    labels: record.labels.clone(),
                    state: State::Failed(error.to_string()).to_string(),
                    phase: Phase::Finished,
                    violations: 0,
                    exit: FAILED,
                    runner: record.is_runner,
                    owner: record.owner,
                    started: record.started,
                    log: self.log_path(&record.id).to_string_lossy().into_owned(),
                    refused: Vec::new(),
                    refused_more: 0,
                    id: record.id.clone(),
                },
            }),
            None => {
                let _ = fs::remove_file(self.log_path(&record.id));
            }
        }
        let fence =
            lock(&self.kernel).take_up(&record.id, &record.cgroup, record.cgroup_id, record.slot);
        match fence {
            // Nothing was ever in it.
            Ok(fence) if error.is_none() => match fence.discard() {
                Ok(()) => self.free(record.slot),
                Err(error) => tracing::error!(job = record.id, %error, "a fence is left behind"),
            },
            Ok(fence) => lock(&self.jobs).leaving.push(Leaving {
                id: record.id.clone(),
                fence,
                slot: record.slot,
                cgroup,
            }),
            Err(KernelError::Pins { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                self.free(record.slot);
            }
            // Its place stays taken: something may still pass that fence.
            Err(error) => tracing::error!(job = record.id, %error, "a fence is left behind"),
        }
        journal.remove();
    }

    async fn resume(&self, mut record: Record, journal: Arc<Journal>) -> Result<(), HostError> {
        let policy = self.compile(&mut record)?;
        let slot = self.tries.open(record.slot)?;
        let fence = lock(&self.kernel).take_up(
            &record.id,
            &record.cgroup,
            record.cgroup_id,
            record.slot,
        )?;
        let log = Log::reopen(&self.log_path(&record.id))?;
        let means = Means::of(
            record.runner.map(|runner| runner.pid),
            true,
            &self.settings().guarded,
        );
        let resumed = |subject| {
            Ok(Recorder::resume(Subject {
                mask: Mask::new(means.environment.into_iter()),
                log: Some(log),
                ..subject
            })?)
        };
        let job = self
            .assemble(record, policy, slot, journal, resumed, Some(&fence))
            .await?;
        *lock(&job.probed) = None;
        if job.parts().record.closed.is_none() && lock(&self.kernel).is_closed(&fence)? {
            job.fail("the agent was killed while it started the job, which may reach nothing");
        }
        self.resume_fence(&job, fence)?;
        job.live.resume();
        for pid in job.cgroup.processes().unwrap_or_default() {
            job.live.recorder().adopt(pid, Vec::new());
        }
        let mut jobs = lock(&self.jobs);
        jobs.by_slot.insert(job.slot, Arc::clone(&job));
        jobs.by_id.insert(job.id.clone(), job);
        Ok(())
    }

    /// Lets the job ask its new resolver.
    fn resume_fence(&self, job: &Job, fence: Fence) -> Result<(), KernelError> {
        let parts = job.parts();
        let mut kernel = lock(&self.kernel);
        for socket in parts.resolver.sockets() {
            kernel.mark(&fence, socket)?;
        }
        let (v4, v6) = parts.record.ports;
        kernel.redirect(&fence, v4, v6)?;
        *lock(&job.fence) = Some(fence);
        Ok(())
    }

    /// The policy of a job that began some time ago.
    fn compile(&self, record: &mut Record) -> Result<Arc<Policy>, PolicyError> {
        let sources = Sources::clone(&record.sources);
        let compiled = lock(&self.policies).compile(sources, date_of(record.started));
        let (sources, policy) = compiled?;
        record.sources = sources;
        Ok(policy)
    }

    /// Takes from what the running job `id` may reach, once: a second file could undo the first.
    pub(super) async fn narrow(&self, id: &str, policy: PolicyText) -> Result<(), Refusal> {
        let found = lock(&self.jobs).by_id.get(id).cloned();
        let job = found.ok_or_else(|| unknown(id))?;
        let _turn = job.narrowing.lock().await;
        if lock(&job.fence).is_none() {
            return Err(unknown(id));
        }
        let mut record = job.parts().record.clone();
        let has_failed = lock(&job.failure).is_some();
        if record.narrowed || has_failed {
            return Err(Refusal {
                code: Code::Exists,
                message: "the job's policy was narrowed before, which is done once".to_owned(),
            });
        }
        record.narrowed = true;
        Arc::make_mut(&mut record.sources).narrowing.push(policy);
        let narrowed = self.compile(&mut record);
        let policy = narrowed.map_err(|error| Refusal {
            code: Code::Policy,
            message: format!("{error}\nThe job's policy is as it was"),
        })?;
        let changed = self.change(&job, record, policy).await;
        changed.map_err(|error| {
            job.fail(&error.to_string());
            no_fence(&error)
        })
    }

    /// Gives a running job another policy. While that is done it may reach nothing, and when it fails,
    /// that stays so.
    async fn change(
        &self,
        job: &Arc<Job>,
        record: Record,
        policy: Arc<Policy>,
    ) -> Result<(), HostError> {
        let limits = job.parts().policy.limits;
        self.write(job, JobState::CLOSED, Some(&limits))?;
        let slot = self.make_ready(job.slot).await?;
        let parts = self
            .parts(
                record,
                Arc::clone(&policy),
                slot,
                (&job.live, &job.table, &job.journal),
                None,
            )
            .await?;
        open_prefixes(&parts)?;
        job.journal.write(&Record {
            begun: true,
            ..parts.record.clone()
        })?;
        if let Some(fence) = &*lock(&job.fence) {
            let mut kernel = lock(&self.kernel);
            for socket in parts.resolver.sockets() {
                kernel.mark(fence, socket)?;
            }
        }
        job.live.recorder().set_policy(policy);
        job.replace(parts);
        self.open_to_policy(job)?;
        Ok(())
    }
}

/// Opens what the policy allows by address.
fn open_prefixes(parts: &Parts) -> Result<(), HostError> {
    let prefixes = parts.policy.prefixes().map_err(PolicyError::from)?;
    Ok(parts.slot.addresses().set_all(&prefixes)?)
}

fn full() -> Refusal {
    let message = "as many jobs run as this host can hold: end some, or raise `jobs` in agent.yml";
    Refusal::new(Code::Full, message)
}

/// What a task has come to, which nobody aborts.
fn unpanicked<T>(ended: Result<T, JoinError>) -> T {
    ended.unwrap_or_else(|error| panic::resume_unwind(error.into_panic()))
}

/// The day of a time in seconds since 1970, in UTC.
fn date_of(seconds: u64) -> Date {
    let time = i64::try_from(seconds).ok();
    let time = time.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    time.unwrap_or(OffsetDateTime::UNIX_EPOCH).date()
}

/// Removes an empty cgroup again, unless it is not needed.
struct Undo<'a>(Option<&'a Cgroup>);

impl Undo<'_> {
    fn not_needed(mut self) {
        self.0 = None;
    }
}

impl Owner {
    /// Whose the processes of a tree must be, if not anybody's.
    fn of_tree(&self) -> Option<u32> {
        (!self.trusted).then_some(self.uid)
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if let Some(cgroup) = self.0 {
            cgroup.try_end();
        }
    }
}

/// How events name a job.
fn job_name(record: &Record, policy: &Policy) -> JobName {
    let Labels {
        repo,
        git_ref,
        run,
        attempt,
        workflow,
        actor,
        runner,
        base: _,
    } = record.labels.clone();
    JobName {
        id: record.id.clone(),
        name: policy.name.clone(),
        repo,
        reference: git_ref,
        run,
        attempt,
        workflow,
        actor,
        runner,
    }
}

/// The name of a job's cgroup.
fn cgroup_name(id: &str) -> String {
    format!("{JOB_CGROUP}{id}")
}

/// Whose job it is, by its id alone: that of a user who is not trusted begins with `u<uid>-`.
pub(super) fn owner_of(id: &str) -> u32 {
    let uid = id
        .strip_prefix('u')
        .and_then(|rest| rest.split_once('-')?.0.parse().ok());
    uid.unwrap_or(0)
}

/// Whether only root can move processes in a cgroup.
fn is_roots(folder: &Path) -> bool {
    [folder.to_owned(), folder.join("cgroup.procs")]
        .iter()
        .all(|path| {
            fs::metadata(path).is_ok_and(|meta| meta.uid() == 0 && meta.mode() & 0o022 == 0)
        })
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

fn no_fence(error: &HostError) -> Refusal {
    let code = match error {
        HostError::Tree(_) => Code::Forbidden,
        _ => Code::Fence,
    };
    Refusal {
        code,
        message: error.to_string(),
    }
}
