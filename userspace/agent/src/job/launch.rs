//! Starting a job's first process.
//!
//! The process must be in the job's cgroup, and without the means to leave it, before its first
//! instruction. So the agent starts itself once more with the hidden first argument [`ENTRY`];
//! that process does what only root can, gives up everything that could undo the fence, and
//! becomes the command. Before that it tries each way out (`probe`) and waits for the agent
//! to find that none led anywhere. It has one thread, so every call below holds for the whole process.

use std::{
    convert::Infallible,
    env,
    ffi::OsString,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    process::{Child, Command},
    str::FromStr,
};

use nix::sched::{CloneFlags, unshare};
use rustix::{
    fs::{FileType, fstat},
    io::{FdFlags, fcntl_setfd},
    net::{AddressFamily, sockopt::socket_domain},
    pipe::{PipeFlags, pipe_with},
    process::{Gid, Signal, Uid, getppid, set_parent_process_death_signal},
    thread::{
        CapabilitySet, CapabilitySets, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
        set_thread_res_gid, set_thread_res_uid,
    },
};
use thiserror::Error;

use super::{
    cgroup::Cgroup,
    filter,
    probe::{Aim, Held, Outcomes, Stage},
    seclude, signals,
    user::Account,
};
use crate::sys;

/// The argument that makes a process of this program a job's first one.
pub const ENTRY: &str = "__job";

/// What a job that is root keeps: enough for a package manager to unpack files of any owner and
/// to become its own helper users. Not among it is whatever configures networks, sends raw
/// packets, loads programs or modules, mounts, traces or makes device nodes. They count in the
/// job's user namespace only.
const ROOT_KEEPS: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::AUDIT_WRITE);

/// The capabilities that a job of `account` keeps, by name.
pub(crate) fn kept(account: &Account) -> Vec<String> {
    keeps(account.uid)
        .iter_names()
        .map(|(name, _)| format!("CAP_{name}"))
        .collect()
}

fn keeps(uid: u32) -> CapabilitySet {
    if uid == 0 {
        ROOT_KEEPS
    } else {
        CapabilitySet::empty()
    }
}

/// Why a job's first process could not be started.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// The command cannot be executed: shells exit 127 for `ENOENT`, else 126.
    #[error("{command}: {source}")]
    Exec {
        /// The command's name.
        command: String,
        /// Why.
        source: io::Error,
    },
    /// The process could not be secured, and did not become the command.
    #[error("could not secure the job's first process: {0}")]
    Setup(String),
    /// The process could not be started at all.
    #[error("could not start the job's first process: {0}")]
    Spawn(#[source] io::Error),
}

impl LaunchError {
    /// The exit status that a shell gives for a command that cannot be executed.
    #[must_use]
    pub fn shell_status(&self) -> Option<u8> {
        match self {
            Self::Exec { source, .. } if source.kind() == io::ErrorKind::NotFound => Some(127),
            Self::Exec { .. } => Some(126),
            Self::Setup(_) | Self::Spawn(_) => None,
        }
    }
}

/// A job's first process, before it is the command.
pub(super) struct Starting {
    child: Child,
    /// What it says.
    status: File,
    /// Where it is told to go on.
    go: File,
    /// The command's name.
    command: String,
}

impl Starting {
    /// Starts the first process of `command` as `account`, with this process's standard streams,
    /// terminal, working folder and environment, in the cgroup that `aim` names. `held` says what
    /// it is to prove. To be called on a thread that outlives the job: the process dies with it.
    pub(super) fn start(
        account: &Account,
        command: &[OsString],
        held: Held,
        aim: &Aim,
    ) -> Result<Self, LaunchError> {
        refuse_streams()?;
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(spawn_error)?;
        let (go_reader, go_writer) = pipe_with(PipeFlags::CLOEXEC).map_err(spawn_error)?;
        // The two descriptors that the process needs besides its standard streams.
        fcntl_setfd(&writer, FdFlags::empty()).map_err(spawn_error)?;
        fcntl_setfd(&go_reader, FdFlags::empty()).map_err(spawn_error)?;
        let mut process = Command::new("/proc/self/exe");
        process
            .arg(ENTRY)
            .arg(std::process::id().to_string())
            .arg(writer.as_raw_fd().to_string())
            .arg(go_reader.as_raw_fd().to_string())
            .arg(held.word())
            .args(aim.arguments())
            .arg(account.uid.to_string())
            .arg(account.gid.to_string())
            .arg(join(&account.groups))
            .args(command);
        if account.uid != rustix::process::getuid().as_raw() {
            process.envs(account.environment());
        }
        let child = process.spawn().map_err(LaunchError::Spawn)?;
        let command = command.first().map(|name| name.to_string_lossy());
        Ok(Self {
            child,
            status: reader.into(),
            go: go_writer.into(),
            command: command.unwrap_or_default().into_owned(),
        })
    }

    /// Gives the process its ids, and waits for what came of its attempts to get out. When that
    /// fails, the process is gone.
    pub(super) fn probe(mut self) -> Result<(Self, Outcomes), LaunchError> {
        match self.outcomes() {
            Ok(outcomes) => Ok((self, outcomes)),
            Err(error) => {
                self.end()?;
                Err(error)
            }
        }
    }

    fn outcomes(&mut self) -> Result<Outcomes, LaunchError> {
        self.hear(NEEDS_IDS)?;
        map_ids(self.child.id())?;
        self.go
            .write_all(&[NEEDS_IDS])
            .map_err(LaunchError::Spawn)?;
        self.hear(PROBED)?;
        let mut outcomes = [0; Outcomes::BYTES];
        self.status
            .read_exact(&mut outcomes)
            .map_err(LaunchError::Spawn)?;
        Ok(Outcomes::from_bytes(outcomes))
    }

    /// Ends the process, which has not become the command.
    pub(super) fn end(self) -> Result<(), LaunchError> {
        let Self { mut child, go, .. } = self;
        // It exits for that, if it has not yet.
        drop(go);
        child.wait().map(drop).map_err(LaunchError::Spawn)
    }

    /// Lets the process become the command, and returns once it has, or has failed to.
    pub(super) fn release(mut self) -> Result<Child, LaunchError> {
        self.go.write_all(&[PROBED]).map_err(LaunchError::Spawn)?;
        // Says nothing when it becomes the command: the pipe is closed by that.
        let mut said = String::new();
        self.status
            .read_to_string(&mut said)
            .map_err(LaunchError::Spawn)?;
        if said.is_empty() {
            return Ok(self.child);
        }
        let error = self.failure(said);
        self.end()?;
        Err(error)
    }

    /// Reads one byte; anything but `wanted` begins the reason of a failure.
    fn hear(&mut self, wanted: u8) -> Result<(), LaunchError> {
        let mut first = [0];
        if self.status.read(&mut first).map_err(LaunchError::Spawn)? == 0 {
            let silent = "it ended without a word";
            return Err(LaunchError::Setup(silent.to_owned()));
        }
        if first == [wanted] {
            return Ok(());
        }
        let mut said = String::from(char::from(first[0]));
        self.status
            .read_to_string(&mut said)
            .map_err(LaunchError::Spawn)?;
        Err(self.failure(said))
    }

    fn failure(&self, said: String) -> LaunchError {
        let errno = said
            .strip_prefix("exec ")
            .and_then(|code| code.parse().ok());
        match errno {
            Some(errno) => LaunchError::Exec {
                command: self.command.clone(),
                source: io::Error::from_raw_os_error(errno),
            },
            None => LaunchError::Setup(said),
        }
    }
}

/// A socket belongs to the cgroup that it was made in, so one that the job is handed as a standard
/// stream would send unfenced.
fn refuse_streams() -> Result<(), LaunchError> {
    let streams = [
        ("standard input", rustix::stdio::stdin()),
        ("standard output", rustix::stdio::stdout()),
        ("standard error", rustix::stdio::stderr()),
    ];
    for (name, fd) in streams {
        // What is closed or no socket has no domain.
        if socket_domain(fd).is_ok_and(|domain| domain != AddressFamily::UNIX) {
            return Err(LaunchError::Setup(format!(
                "{name} is a network socket, which would lead around the fence: put a pipe \
                 between, as in `… | cat`"
            )));
        }
        // From a folder one gets to file systems that the job does not see.
        if fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
        {
            return Err(LaunchError::Setup(format!("{name} is a directory")));
        }
    }
    Ok(())
}

fn spawn_error(errno: rustix::io::Errno) -> LaunchError {
    LaunchError::Spawn(errno.into())
}

/// What the process says when it has a user namespace and waits for its ids.
const NEEDS_IDS: u8 = b'+';

/// What it says when it has tried to get out, before what came of it. Neither begins a message.
const PROBED: u8 = b'=';

/// Maps every user and group id to itself. Only a process of the namespace above may.
fn map_ids(pid: u32) -> Result<(), LaunchError> {
    for map in ["uid_map", "gid_map"] {
        let path = format!("/proc/{pid}/{map}");
        fs::write(&path, "0 0 4294967295").map_err(|error| {
            LaunchError::Setup(format!(
                "write {path}: {error} (CAP_SETUID and CAP_SETGID are needed)"
            ))
        })?;
    }
    Ok(())
}

fn join(groups: &[u32]) -> String {
    let groups: Vec<_> = groups.iter().map(u32::to_string).collect();
    groups.join(",")
}

/// Becomes the command that the arguments after [`ENTRY`] describe. Only returns, with an exit
/// status, when that failed.
#[must_use]
pub fn become_job(arguments: impl Iterator<Item = OsString>) -> u8 {
    let Some(order) = Order::parse(arguments) else {
        eprintln!("jobfence: {ENTRY} is for jobfence's own use");
        return 2;
    };
    // The descriptors came by inheritance; their numbers are all there is of them.
    let inherited = |fd: u32| format!("/proc/self/fd/{fd}");
    let status = File::options().write(true).open(inherited(order.status));
    let (Ok(mut status), Ok(mut go)) = (status, File::open(inherited(order.go))) else {
        return 111;
    };
    let said = match order.carry_out(&mut status, &mut go) {
        Err(Failure::Exec(error)) => format!("exec {}", error.raw_os_error().unwrap_or(0)),
        Err(Failure::Setup(what)) => what,
    };
    // The other end treats a process that says nothing as one that runs.
    match status.write_all(said.as_bytes()) {
        Ok(()) => 111,
        Err(_) => std::process::abort(),
    }
}

/// What the agent wants of the process.
struct Order {
    agent: u32,
    status: u32,
    go: u32,
    held: Held,
    aim: Aim,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    command: OsString,
    arguments: Vec<OsString>,
}

enum Failure {
    Setup(String),
    Exec(io::Error),
}

impl Order {
    fn parse(mut arguments: impl Iterator<Item = OsString>) -> Option<Self> {
        fn number<T: FromStr>(text: Option<OsString>) -> Option<T> {
            text?.to_str()?.parse().ok()
        }
        Some(Self {
            agent: number(arguments.next())?,
            status: number(arguments.next())?,
            go: number(arguments.next())?,
            held: Held::parse(arguments.next()?.to_str()?)?,
            aim: Aim::parse(arguments.by_ref())?,
            uid: number(arguments.next())?,
            gid: number(arguments.next())?,
            groups: arguments
                .next()?
                .to_str()?
                .split(',')
                .map(str::parse)
                .collect::<Result<_, _>>()
                .ok()?,
            command: arguments.next()?,
            arguments: arguments.collect(),
        })
    }

    fn carry_out(&self, status: &mut File, go: &mut File) -> Result<Infallible, Failure> {
        let setup =
            |what: &str, error: &dyn std::fmt::Display| Failure::Setup(format!("{what}: {error}"));
        // The agent takes these by a descriptor and so has them blocked, which is inherited.
        signals::forwarded()
            .thread_unblock()
            .map_err(|errno| setup("unblock signals", &errno))?;
        Cgroup::open(self.aim.cgroup.clone())
            .enter()
            .map_err(|error| Failure::Setup(error.to_string()))?;
        sys::close_on_exec_from(3)
            .map_err(|error| setup("close inherited descriptors (Linux 5.11 is needed)", &error))?;
        let mut outcomes = Outcomes::none();
        outcomes.attempt(Stage::Privileged, self.held, &self.aim);
        seclude::seclude(self.uid, self.gid).map_err(|(path, errno)| {
            let what =
                format!("hide what leads around the fence, at {path} (CAP_SYS_ADMIN is needed)");
            setup(&what, &errno)
        })?;
        // A process outside that runs as the same user would be a way out: through its /proc/PID
        // folder its file systems, and by ptrace itself. The kernel allows neither from another
        // user namespace (ptrace(2), "Ptrace access mode checking").
        unshare(CloneFlags::CLONE_NEWUSER).map_err(|errno| {
            setup(
                "make a user namespace (is user.max_user_namespaces 0?)",
                &errno,
            )
        })?;
        status
            .write_all(&[NEEDS_IDS])
            .and_then(|()| go.read_exact(&mut [0]))
            .map_err(|error| setup("wait for the agent", &error))?;
        self.drop_privileges()
            .map_err(|(what, errno)| setup(what, &errno))?;
        filter::apply().map_err(|error| setup("filter system calls", &error))?;
        sys::scope().map_err(|error| setup("close abstract sockets off by Landlock", &error))?;
        // If the agent dies, this process does. It is the reaper that ends the others; a change
        // of user clears the setting, so it comes after.
        set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(|errno| setup("die with the agent", &errno))?;
        if getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs()) != Some(self.agent) {
            return Err(Failure::Setup("the agent is gone".to_owned()));
        }
        outcomes.attempt(Stage::Job, self.held, &self.aim);
        status
            .write_all(&[&[PROBED], outcomes.bytes().as_slice()].concat())
            .and_then(|()| go.read_exact(&mut [0]))
            .map_err(|error| setup("wait for the agent's verdict", &error))?;
        let error = Command::new(&self.command).args(&self.arguments).exec();
        Err(Failure::Exec(self.explain(error)))
    }

    /// `execvp` says "permission denied" when a folder of PATH cannot be searched and no other has
    /// the command. Shells say that there is none.
    fn explain(&self, error: io::Error) -> io::Error {
        let by_path = !self.command.as_encoded_bytes().contains(&b'/');
        let path = env::var_os("PATH").unwrap_or_default();
        let found = env::split_paths(&path).any(|folder| folder.join(&self.command).is_file());
        if by_path && !found {
            io::Error::from_raw_os_error(libc::ENOENT)
        } else {
            error
        }
    }

    fn drop_privileges(&self) -> Result<(), (&'static str, rustix::io::Errno)> {
        let keep = keeps(self.uid);
        // Numbers beyond the kernel's last capability are EINVAL; there is none to drop.
        for bit in 0..u64::BITS {
            let capability = CapabilitySet::from_bits_retain(1 << bit);
            if keep.contains(capability) {
                continue;
            }
            match remove_capability_from_bounding_set(capability) {
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(errno) => return Err(("drop capabilities (CAP_SETPCAP is needed)", errno)),
            }
        }
        let groups: Vec<_> = self.groups.iter().copied().map(Gid::from_raw).collect();
        set_thread_groups(&groups)
            .map_err(|errno| ("set the groups (CAP_SETGID is needed)", errno))?;
        let gid = Gid::from_raw(self.gid);
        set_thread_res_gid(gid, gid, gid).map_err(|errno| ("set the group", errno))?;
        let uid = Uid::from_raw(self.uid);
        set_thread_res_uid(uid, uid, uid)
            .map_err(|errno| ("set the user (CAP_SETUID is needed)", errno))?;
        clear_ambient_capability_set().map_err(|errno| ("clear ambient capabilities", errno))?;
        let sets = CapabilitySets {
            effective: keep,
            permitted: keep,
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, sets).map_err(|errno| ("set capabilities", errno))?;
        set_no_new_privs(true).map_err(|errno| ("set no_new_privs", errno))
    }
}
