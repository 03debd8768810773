//! One job of the host.

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use jobfence_abi::{Counters, Event, NamedEvent, Reason};
use jobfence_policy::{Job as Policy, OnViolation};
use rustix::thread::CapabilitySet;
use tokio::sync::OnceCell;

use super::{
    journal::{Journal, Record},
    lock, tree,
};
use crate::{
    audit::log::LogError,
    control::protocol::{Finished, JobStatus, Phase},
    job::{
        advisory_reasons,
        cgroup::Cgroup,
        launch,
        live::Live,
        scope::Scope,
        user::{Account, UserError},
    },
    kernel::{Fence, Slot},
    names::{Resolver, Table},
};

/// Exit codes of `finish`.
const VIOLATION: u8 = 110;
pub(super) const FAILED: u8 = 111;

/// A job that is fenced.
pub(super) struct Job {
    pub(super) id: String,
    pub(super) cgroup: Cgroup,
    /// What keeps the unit of that cgroup until something is in the job.
    pub(super) scope: Mutex<Option<Scope>>,
    /// Its place in the kernel's maps.
    pub(super) slot: u32,
    /// `None` when the job has ended.
    pub(super) fence: Mutex<Option<Fence>>,
    pub(super) live: Arc<Live>,
    pub(super) table: Arc<Table>,
    pub(super) journal: Arc<Journal>,
    pub(super) log: PathBuf,
    parts: RwLock<Arc<Parts>>,
    /// Held while the policy changes.
    pub(super) narrowing: tokio::sync::Mutex<()>,
    /// What the self-probe is refused, while there is nothing else in the job.
    pub(super) probed: Mutex<Option<Vec<Event>>>,
    /// Whether a process was ever in it.
    populated: AtomicBool,
    /// Whether it was killed for a violation.
    killed: AtomicBool,
    /// What became of the fence, if it failed.
    pub(super) failure: Mutex<Option<String>>,
    /// Whether its end has been set going.
    pub(super) ending: AtomicBool,
    pub(super) ended: OnceCell<Finished>,
}

/// What changes when the job's policy does.
pub(super) struct Parts {
    pub(super) record: Record,
    pub(super) policy: Arc<Policy>,
    pub(super) slot: Slot,
    pub(super) resolver: Resolver,
}

/// What a job is made of.
pub(super) struct Made {
    pub(super) cgroup: Cgroup,
    pub(super) live: Arc<Live>,
    pub(super) table: Arc<Table>,
    pub(super) journal: Arc<Journal>,
    pub(super) log: PathBuf,
    pub(super) parts: Parts,
}

impl Job {
    /// A job in which nothing is yet, and around which there is no fence.
    pub(super) fn new(made: Made) -> Self {
        Self {
            id: made.parts.record.id.clone(),
            cgroup: made.cgroup,
            scope: Mutex::new(None),
            slot: made.parts.slot.number(),
            fence: Mutex::new(None),
            live: made.live,
            table: made.table,
            journal: made.journal,
            log: made.log,
            parts: RwLock::new(Arc::new(made.parts)),
            narrowing: tokio::sync::Mutex::new(()),
            probed: Mutex::new(Some(Vec::new())),
            populated: AtomicBool::new(false),
            killed: AtomicBool::new(false),
            failure: Mutex::new(None),
            ending: AtomicBool::new(false),
            ended: OnceCell::new(),
        }
    }

    /// What its policy is now, and what goes with that.
    pub(super) fn parts(&self) -> Arc<Parts> {
        let parts = self.parts.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&parts)
    }

    /// Gives it another policy.
    pub(super) fn replace(&self, parts: Parts) {
        let mut current = self.parts.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(parts);
    }

    /// Takes an attempt of the job, and says whether it is noted.
    pub(super) fn take(&self, event: &Event, name: Option<&NamedEvent>) -> bool {
        if let Some(probed) = &mut *lock(&self.probed) {
            probed.push(*event);
            return true;
        }
        // What found no room in the log comes first, so that the order is kept.
        let noted = self
            .live
            .catch_up()
            .and_then(|()| self.live.recorder().kernel(event, name));
        self.kill_violator();
        noted.is_ok()
    }

    /// Notes what the programs have only counted, and what was repeated.
    pub(super) fn note(&self, counters: &Counters) -> Result<(), LogError> {
        self.live.catch_up()?;
        let mut recorder = self.live.recorder();
        recorder.loss(Reason::AUDIT_LOSS, counters.lost)?;
        recorder.loss(Reason::LIMIT, counters.limited)?;
        recorder.flush()
    }

    /// Whether there is a reason to end the job now.
    pub(super) fn is_over(&self) -> bool {
        let populated = self.cgroup.is_populated().unwrap_or(true);
        if populated {
            self.populated.store(true, Ordering::Relaxed);
            lock(&self.scope).take();
        }
        let recorder = self.live.recorder();
        if let Some(fault) = recorder.log_fault() {
            self.fail(&fault.to_string());
            return true;
        }
        // An agent was killed when it had written the end, and had nothing more to do.
        let ended = recorder.has_ended();
        // Its cgroup can have been removed while there was no agent.
        let was_populated = self.populated.load(Ordering::Relaxed) || !self.cgroup.path().exists();
        let emptied = !populated && was_populated;
        let parts = self.parts();
        let orphaned = parts
            .record
            .runner
            .is_some_and(|runner| !tree::is_alive(runner));
        ended || emptied || orphaned || self.killed.load(Ordering::Relaxed)
    }

    /// Kills what is in the job if its policy says so of a violation, and there is one. The job is over
    /// then.
    pub(super) fn kill_violator(&self) {
        if self.live.recorder().violations() == 0
            || self.parts().policy.on_violation != OnViolation::Kill
            || self.killed.swap(true, Ordering::Relaxed)
        {
            return;
        }
        if let Err(error) = self.cgroup.kill() {
            tracing::warn!(job = self.id, %error, "not killed yet");
        }
    }

    /// Notes that the fence has failed the job. The first failure counts.
    pub(super) fn fail(&self, failure: &str) {
        lock(&self.failure).get_or_insert_with(|| failure.to_owned());
    }

    /// What `finish` exits with as things are.
    pub(super) fn exit(&self, violations: u64) -> u8 {
        let parts = self.parts();
        if parts.record.closed.is_some() || lock(&self.failure).is_some() {
            FAILED
        } else if violations > 0 && parts.policy.on_violation != OnViolation::Warn {
            VIOLATION
        } else {
            0
        }
    }

    /// The job as it is, with what was refused.
    pub(super) fn full_status(&self, phase: Phase) -> JobStatus {
        let (refused, refused_more) = self.live.recorder().refused();
        JobStatus {
            refused,
            refused_more,
            ..self.status(phase)
        }
    }

    /// The job as it is in a list.
    pub(super) fn status(&self, phase: Phase) -> JobStatus {
        let recorder = self.live.recorder();
        let violations = recorder.violations();
        let state = recorder.state().to_string();
        drop(recorder);
        let parts = self.parts();
        JobStatus {
            id: self.id.clone(),
            job: parts.policy.name.clone(),
            policy: Some(parts.policy.file().to_owned()),
            labels: parts.record.labels.clone(),
            state,
            phase,
            violations,
            exit: self.exit(violations),
            runner: parts.record.is_runner,
            owner: parts.record.owner,
            started: parts.record.started,
            log: self.log.to_string_lossy().into_owned(),
            refused: Vec::new(),
            refused_more: 0,
        }
    }
}

/// Why a process can trace any other of its user, and not what it has started alone (the kernel's
/// Documentation/admin-guide/LSM/Yama.rst); none where it cannot. `scope` is
/// `/proc/sys/kernel/yama/ptrace_scope`, if it could be read.
fn traceable(scope: Option<&str>) -> Option<&'static str> {
    match scope.map(str::trim) {
        Some("1" | "2" | "3") => None,
        Some(_) => Some("kernel.yama.ptrace_scope is 0"),
        None => Some("there is no kernel.yama.ptrace_scope (boot with `yama` in `lsm=`)"),
    }
}

/// What a process that is moved into a job can do there.
pub(super) struct Means {
    /// Whose it is, by the real user id.
    pub(super) uid: Option<u32>,
    /// What its fence can be got around with.
    pub(super) reasons: Vec<String>,
    /// Its capabilities, by name.
    pub(super) capabilities: Vec<String>,
    /// Its variables.
    pub(super) environment: Vec<(String, String)>,
    /// Whether it is launched, and not moved: under a filter for system calls.
    pub(super) launched: bool,
}

impl Means {
    /// Of the process `pid`; `lsm` says whether sockets of every family are seen, `guarded`
    /// which users are held to jobs. What cannot be read is taken for the worse.
    pub(super) fn of(pid: Option<u32>, lsm: bool, guarded: &[u32]) -> Self {
        let read =
            |file: &str| pid.and_then(|pid| std::fs::read(format!("/proc/{pid}/{file}")).ok());
        let status = read("status").unwrap_or_default();
        let status = String::from_utf8_lossy(&status).into_owned();
        let field = |name: &str| {
            let mut lines = status.lines();
            let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_default().trim().to_owned()
        };
        let mut reasons = Vec::new();
        if field("Uid").split_whitespace().any(|uid| uid == "0") || status.is_empty() {
            reasons.push("the job can be root".to_owned());
        } else {
            let groups: HashSet<u32> = field("Groups")
                .split_whitespace()
                .filter_map(|group| group.parse().ok())
                .collect();
            for name in crate::job::user::acting_as_root(&groups) {
                reasons.push(format!("its group {name} can act as root"));
            }
            if field("NoNewPrivs") != "1" {
                reasons.push("it can run set-uid programs".to_owned());
            }
            let uid = field("Uid")
                .split_whitespace()
                .next()
                .and_then(|uid| uid.parse().ok());
            if uid.is_none_or(|uid| !guarded.contains(&uid)) {
                reasons.push("its user is not guarded outside of jobs".to_owned());
            }
            let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").ok();
            if let Some(why) = traceable(scope.as_deref()) {
                reasons.push(format!("it can trace its runner: {why}"));
            }
        }
        if !lsm {
            reasons.push("no BPF LSM: other socket families are not refused".to_owned());
        }
        let bits = u64::from_str_radix(&field("CapEff"), 16).unwrap_or_default();
        let names = CapabilitySet::from_bits_retain(bits);
        let environment = read("environ").unwrap_or_default();
        let variables = environment.split(|&byte| byte == 0).filter_map(|variable| {
            let (name, value) = str::from_utf8(variable).ok()?.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        });
        let uid = field("Uid");
        let uid = uid
            .split_whitespace()
            .next()
            .and_then(|uid| uid.parse().ok());
        Self {
            uid,
            reasons,
            capabilities: names
                .iter_names()
                .map(|(name, _)| format!("CAP_{name}"))
                .collect(),
            environment: variables.collect(),
            launched: false,
        }
    }

    /// Of one that the process `pid` launches as the user `uid`.
    pub(super) fn launched(pid: Option<u32>, uid: u32) -> Result<Self, UserError> {
        let account = Account::with_id(uid, None)?;
        Ok(Self {
            uid: Some(uid),
            reasons: advisory_reasons(&account),
            capabilities: launch::kept(&account),
            launched: true,
            ..Self::of(pid, true, &[])
        })
    }
}
