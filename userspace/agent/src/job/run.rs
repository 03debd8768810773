//! One command as a job: the fence without a daemon.
//!
//! The order is what makes it fail closed. Everything that can be wrong is found before the
//! command's first process exists: the programs are loaded, the resolver listens, the fence hangs
//! on an empty cgroup, the reaper waits. Only then is the process started, inside, and only when it
//! has tried in vain to get out (`probe`) does it get the policy and become the command.

use std::{
    convert::Infallible,
    env,
    ffi::OsString,
    io,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{Child, ExitStatus},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jobfence_abi::{Event, JobState, Reason};
use jobfence_policy::{Job, Mode, OnViolation};
use rustix::{
    mount::{MountFlags, mount},
    process::{Pid, PidfdFlags, geteuid, pidfd_open, setpriority_process},
};
use thiserror::Error;
use tokio::{
    sync::Notify,
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};

use super::{
    Layers, State,
    cgroup::{Cgroup, CgroupError},
    launch::{self, LaunchError, Starting},
    live::{HostNames, Live, Opener},
    probe::{self, Findings, Held, Means, ProbeError, Targets},
    process::{self, Processes},
    reaper::{self, Reaper},
    signals::Signals,
    user::Account,
};
use crate::{
    audit::{
        event::JobName,
        ledger::Summary,
        log::{Log, LogError},
        mask::Mask,
        recorder::{Recorder, Subject},
    },
    control::client::ClientError,
    kernel::{self, Events, EventsError, Guard, JobSpec, Kernel, KernelError, Slot},
    names::{NamesError, Resolver, Table},
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
    /// The ring buffer of attempts.
    #[error(transparent)]
    Events(#[from] EventsError),
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
    /// The host's agent, which was to hold the job.
    #[error(transparent)]
    Agent(#[from] ClientError),
    /// The user is held to jobs of the host's agent, and this one would be none of them.
    #[error(
        "{user} may have sockets only in jobs of this host's agent (`guard` in agent.yml, which holds \
         also while no agent runs): start the agent (`systemctl start jobfence-agent`), and run this \
         again without `--agent none`; or take {user} out of `guard`, and start the agent"
    )]
    Guarded {
        /// Login name, or id.
        user: String,
    },
    /// Some other system call.
    #[error("could not {doing}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

pub(super) fn failed(doing: &'static str) -> impl Fn(io::Error) -> RunError {
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
    refuse_guarded(&options.account)?;
    reaper::sweep();
    let id = job_id();
    let log = options.log.as_deref().map(Log::open).transpose()?;
    let policy = Arc::new(options.policy);
    let table = Arc::new(Table::new(policy.limits.addresses));
    let mut kernel = Kernel::load()?;
    let mut slot = kernel.tries().slot(SLOT)?;
    let prefixes = policy.prefixes()?;
    slot.set_names(&policy.names()?)?;

    let processes = Arc::new(Mutex::new(Processes::new()));
    let recorder = Recorder::new(Subject {
        job: JobName {
            id: id.clone(),
            name: policy.name.clone(),
            ..JobName::default()
        },
        state: State::assess(policy.mode, &options.account),
        policy: Arc::clone(&policy),
        table: Arc::clone(&table),
        processes: Arc::clone(&processes),
        mask: Mask::new(environment()),
        log,
        is_runner: false,
    });
    let changed = Arc::new(Notify::new());
    let live = Arc::new(Live::new(
        recorder,
        kernel.clients(SLOT),
        Arc::clone(&changed),
    ));
    let opener = Opener::new(
        Arc::clone(&policy),
        Arc::clone(&table),
        slot.addresses().clone(),
    );
    let opener = Arc::new(opener);
    let host = HostNames::read().map_err(failed(
        "read /etc/resolv.conf, which names the host's DNS servers",
    ))?;
    let resolver = Resolver::bind(host.config(&policy, &table, &opener, &live)).await?;
    let signals = Signals::new().map_err(failed("take signals"))?;
    let mut events = Events::new(&mut kernel)?;

    let targets = Targets::new(&id).map_err(failed("put up targets for the self-probe"))?;
    let probed = targets.prefixes();
    slot.addresses().set_all(&probed)?;
    let cgroup = Cgroup::make(&reaper::job_cgroup(&id))?;
    let mut spec = JobSpec {
        state: JobState::ENFORCE,
        resolver_v4: resolver.ports().v4,
        resolver_v6: resolver.ports().v6.unwrap_or(0),
        rate: 0,
        upload: None,
    };
    let fenced =
        Fenced::start(&mut kernel, &cgroup, &id, &slot).inspect_err(|_| discard(&cgroup))?;
    let (account, command) = (&options.account, &options.command);
    let ready = begin_probe(&mut kernel, &fenced.fence, &resolver, &spec);
    let proven = match ready {
        Ok(()) => {
            let means = Means::find(kernel.has_lsm());
            let (held, reports) = (Held::Both, || events.take());
            prove(account, command, &cgroup, targets, held, means, reports).await
        }
        Err(error) => Err(error.into()),
    };
    let (starting, findings) = match proven {
        Ok(proven) => proven,
        Err(error) => {
            fenced.end(&cgroup)?;
            return Err(error);
        }
    };

    // Everything so far was the probe's. From here on it is the job's.
    if policy.mode == Mode::Audit {
        spec.state = JobState::AUDIT;
    }
    spec.rate = policy.limits.events;
    spec.upload = policy.limits.upload;
    let layers = layers(&kernel, &findings, &options.account);
    let replaced = slot
        .addresses()
        .remove_all(&probed)
        .and_then(|()| slot.addresses().set_all(&prefixes))
        .and_then(|()| kernel.write(&fenced.fence, &spec))
        .and_then(|()| kernel.count_anew(SLOT));
    let begun = replaced.map_err(RunError::from).and_then(|()| {
        opener.open_hosts();
        live.begin(layers)?;
        let fault = live.recorder().log_fault();
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
            live.recorder().adopt(child.id(), words);
            let mut watch = Watch {
                cgroup: &cgroup,
                live: &live,
                changed: &changed,
                processes: &processes,
                events: &mut events,
                on_violation: policy.on_violation,
            };
            let status = until_exit(child, &signals, watch.care()).await;
            (status.map(shell_status), None)
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
    while drain(&mut events, &live) {}
    let counted = kernel.counters(SLOT);

    let mut recorder = live.recorder();
    let noted = counted.as_ref().map_or(Ok(()), |counters| {
        recorder.loss(Reason::AUDIT_LOSS, counters.lost)?;
        recorder.loss(Reason::LIMIT, counters.limited)
    });
    let failures = [
        status.as_ref().err().map(ToString::to_string),
        recorder.log_fault().map(|fault| fault.to_string()),
        noted.err().map(|error| error.to_string()),
        ended.err().map(|error| error.to_string()),
        counted.err().map(|error| error.to_string()),
    ];
    let failure = failures.into_iter().flatten().next();
    Ok(Outcome {
        summary: recorder.finish(failure.as_deref())?,
        status: status.unwrap_or(1),
        not_executed,
        failure,
    })
}

/// Starts the job's first process, and has it prove what it is `held` by, before it becomes the
/// command. Where that includes the programs, they have no rule yet but for `targets`, and `reports`
/// gives what they have reported.
pub(super) async fn prove(
    account: &Account,
    command: &[OsString],
    cgroup: &Cgroup,
    targets: Targets,
    held: Held,
    means: Means,
    reports: impl FnOnce() -> Vec<Event>,
) -> Result<(Starting, Findings), RunError> {
    let aim = targets.aim(cgroup.path());
    // On this thread, which lasts as long as the job; the waiting on another, since the resolver
    // has to answer.
    let starting = Starting::start(account, command, held, &aim).map_err(RunError::Launch)?;
    let probed = spawn_blocking(move || {
        let (starting, mut outcomes) = starting.probe()?;
        targets.witness(held, &mut outcomes);
        Ok((starting, outcomes))
    })
    .await;
    let probed = probed.map_err(|error| failed("wait for the self-probe")(error.into()))?;
    let (starting, outcomes) = probed.map_err(RunError::Launch)?;
    match probe::judge(&outcomes, held, &reports(), means) {
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
        slot: &Slot,
    ) -> Result<Self, RunError> {
        let fence = kernel.fence(cgroup.path(), id, slot)?;
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

/// Lets the process that proves the fence begin: its attempts are to be refused by the programs, and
/// its questions to reach the resolver.
fn begin_probe(
    kernel: &mut Kernel,
    fence: &kernel::Fence,
    resolver: &Resolver,
    spec: &JobSpec,
) -> Result<(), KernelError> {
    for socket in resolver.sockets() {
        kernel.mark(fence, socket)?;
    }
    kernel.write(fence, spec)
}

/// Waits for the job's first process, passes signals on to it, and takes `care` of the job, which
/// ends by an error only.
pub(super) async fn until_exit(
    mut child: Child,
    signals: &Signals,
    care: impl Future<Output = io::Result<Infallible>>,
) -> io::Result<ExitStatus> {
    let pid = Pid::from_child(&child);
    let exited = sys::watch(&pidfd_open(pid, PidfdFlags::NONBLOCK)?)?;
    tokio::pin!(care);
    loop {
        // In this order: a flood of attempts must keep neither signals nor the job's end waiting.
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
            failed = &mut care => match failed? {},
        }
    }
}

/// What the agent looks after while the job's command runs.
struct Watch<'a> {
    cgroup: &'a Cgroup,
    live: &'a Live,
    changed: &'a Notify,
    processes: &'a Mutex<Processes>,
    events: &'a mut Events,
    on_violation: OnViolation,
}

impl Watch<'_> {
    /// Does what the job needs, for as long as it is polled.
    async fn care(&mut self) -> io::Result<Infallible> {
        let processes = process::watch(self.processes)?;
        let reported = self.events.watch().map_err(io::Error::other)?;
        // Whether attempts were left when some were last taken.
        let mut more = false;
        let mut killed = false;
        let mut rounds = interval(ROUND);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut round = false;
            // The look after the log first: a flood of attempts must not keep it waiting.
            tokio::select! {
                biased;
                _ = rounds.tick() => {
                    round = true;
                    more = drain(self.events, self.live);
                }
                () = self.changed.notified() => {}
                ready = process::readable(processes.as_ref()) => {
                    ready?.clear_ready();
                    process::lock(self.processes).catch_up();
                }
                ready = reported.readable() => {
                    // Cleared first: what comes while draining is seen again.
                    ready?.clear_ready();
                    more = drain(self.events, self.live);
                }
                () = tokio::task::yield_now(), if more => {
                    more = drain(self.events, self.live);
                }
            }
            let recorder = self.live.recorder();
            let violated = self.on_violation == OnViolation::Kill && recorder.violations() > 0;
            if !killed && (violated || round && recorder.log_fault().is_some()) {
                killed = true;
                self.cgroup.kill().map_err(io::Error::other)?;
            }
        }
    }
}

/// Takes a batch of attempts of the only job, and says whether there may be more.
fn drain(events: &mut Events, live: &Live) -> bool {
    let mut recorder = live.recorder();
    events.drain(|event, name| recorder.kernel(event, name).is_ok())
}

/// Refuses a user whose sockets the guard of the host's agent would refuse, whatever the fence says.
fn refuse_guarded(account: &Account) -> Result<(), RunError> {
    match Guard::find() {
        Ok(guard) if guard.holds(account.uid) => Err(RunError::Guarded {
            user: account.name(),
        }),
        Ok(_) => Ok(()),
        // Should it hold this user, the self-probe finds so.
        Err(error) => {
            tracing::warn!(%error, "not known whom the guard of the host's agent holds");
            Ok(())
        }
    }
}

/// A name for the job that no other on this host has had.
pub(crate) fn job_id() -> String {
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
pub(super) fn shell_status(status: ExitStatus) -> u8 {
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 1,
    };
    u8::try_from(code).unwrap_or(u8::MAX)
}
