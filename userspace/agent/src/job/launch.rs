//! Starting a job's first process.
//!
//! The process must be in the job's cgroup, and without the means to leave it, before its first
//! instruction. So the agent starts itself once more with the hidden first argument [`ENTRY`];
//! that process does what only root can, gives up everything that could undo the fence, and
//! becomes the command. It has one thread, so every call below holds for the whole process.

use std::{
    convert::Infallible,
    env,
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, process::CommandExt as _},
    },
    path::PathBuf,
    process::{Child, Command},
};

use rustix::{
    io::{FdFlags, fcntl_setfd},
    pipe::{PipeFlags, pipe_with},
    process::{Gid, Signal, Uid, getppid, set_parent_process_death_signal},
    thread::{
        CapabilitySet, CapabilitySets, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
        set_thread_res_gid, set_thread_res_uid,
    },
};
use thiserror::Error;

use super::{cgroup::Cgroup, run, seclude, user::Account};
use crate::sys;

/// The argument that makes a process of this program a job's first one.
pub const ENTRY: &str = "__job";

/// What a job that is root keeps: enough for a package manager to unpack files of any owner and
/// to become its own helper users. Not among it is whatever configures networks, sends raw
/// packets, loads programs or modules, mounts, traces, makes device nodes, or signals others.
const ROOT_KEEPS: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::AUDIT_WRITE);

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

/// Starts `command` as `account` in `cgroup`, with this process's standard streams, terminal,
/// working folder and environment. Returns once the command runs, or has failed to.
///
/// # Errors
///
/// [`LaunchError`]; nothing of the job runs then.
pub fn launch(
    cgroup: &Cgroup,
    account: &Account,
    command: &[OsString],
) -> Result<Child, LaunchError> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(spawn_error)?;
    // The one descriptor that the process needs besides its standard streams.
    fcntl_setfd(&writer, FdFlags::empty()).map_err(spawn_error)?;
    let mut process = Command::new("/proc/self/exe");
    process
        .arg(ENTRY)
        .arg(writer.as_raw_fd().to_string())
        .arg(cgroup.path())
        .arg(account.uid.to_string())
        .arg(account.gid.to_string())
        .arg(join(&account.groups))
        .args(command);
    if account.uid != rustix::process::getuid().as_raw() {
        process.envs(account.environment());
    }
    let mut child = process.spawn().map_err(LaunchError::Spawn)?;
    drop(writer);
    match outcome(reader, command) {
        Ok(()) => Ok(child),
        Err(error) => {
            // It has said why and is about to exit.
            child.wait().map_err(LaunchError::Spawn)?;
            Err(error)
        }
    }
}

fn spawn_error(errno: rustix::io::Errno) -> LaunchError {
    LaunchError::Spawn(errno.into())
}

/// Reads what the process says: nothing when it has become the command, since the pipe is closed
/// by that.
fn outcome(reader: OwnedFd, command: &[OsString]) -> Result<(), LaunchError> {
    let mut said = String::new();
    File::from(reader)
        .read_to_string(&mut said)
        .map_err(LaunchError::Spawn)?;
    if said.is_empty() {
        return Ok(());
    }
    if let Some(errno) = said
        .strip_prefix("exec ")
        .and_then(|code| code.parse().ok())
    {
        let command = command
            .first()
            .map(|name| name.to_string_lossy().into_owned());
        return Err(LaunchError::Exec {
            command: command.unwrap_or_default(),
            source: io::Error::from_raw_os_error(errno),
        });
    }
    Err(LaunchError::Setup(said))
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
    // The descriptor came by inheritance; its number is all there is of it.
    let status = format!("/proc/self/fd/{}", order.status);
    let Ok(mut status) = File::options().write(true).open(status) else {
        return 111;
    };
    let said = match order.carry_out() {
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
    status: u32,
    cgroup: PathBuf,
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
        fn number(text: Option<OsString>) -> Option<u32> {
            text?.to_str()?.parse().ok()
        }
        Some(Self {
            status: number(arguments.next())?,
            cgroup: arguments.next()?.into(),
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

    fn carry_out(&self) -> Result<Infallible, Failure> {
        let parent = getppid();
        // The agent takes these by a descriptor and so has them blocked, which is inherited.
        run::forwarded()
            .thread_unblock()
            .map_err(|errno| Failure::Setup(format!("unblock signals: {errno}")))?;
        Cgroup::open(self.cgroup.clone())
            .enter()
            .map_err(|error| Failure::Setup(error.to_string()))?;
        sys::close_on_exec_from(3).map_err(|error| {
            Failure::Setup(format!(
                "close inherited descriptors: {error} (Linux 5.11 is needed)"
            ))
        })?;
        seclude::seclude(self.uid).map_err(|(path, errno)| {
            Failure::Setup(format!(
                "hide what leads around the fence, at {path}: {errno} (CAP_SYS_ADMIN is needed)"
            ))
        })?;
        self.drop_privileges()
            .map_err(|(what, errno)| Failure::Setup(format!("{what}: {errno}")))?;
        // If the agent dies, this process does. It is the reaper that ends the others; a change
        // of user clears the setting, so it comes after.
        set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(|errno| Failure::Setup(format!("die with the agent: {errno}")))?;
        if getppid() != parent {
            return Err(Failure::Setup("the agent is gone".to_owned()));
        }
        let error = Command::new(&self.command).args(&self.arguments).exec();
        Err(Failure::Exec(error))
    }

    fn drop_privileges(&self) -> Result<(), (&'static str, rustix::io::Errno)> {
        let keep = if self.uid == 0 {
            ROOT_KEEPS
        } else {
            CapabilitySet::empty()
        };
        // Numbers beyond the kernel's last capability are EINVAL; there is none to drop.
        for bit in 0..u64::BITS {
            let capability = CapabilitySet::from_bits_retain(1 << bit);
            if keep.contains(capability) {
                continue;
            }
            match remove_capability_from_bounding_set(capability) {
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(errno) => return Err(("drop capabilities", errno)),
            }
        }
        let groups: Vec<_> = self.groups.iter().copied().map(Gid::from_raw).collect();
        set_thread_groups(&groups).map_err(|errno| ("set the groups", errno))?;
        let gid = Gid::from_raw(self.gid);
        set_thread_res_gid(gid, gid, gid).map_err(|errno| ("set the group", errno))?;
        let uid = Uid::from_raw(self.uid);
        set_thread_res_uid(uid, uid, uid).map_err(|errno| ("set the user", errno))?;
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

/// Whether `name` is what [`ENTRY`] calls; for `main`, before anything else is done.
#[must_use]
pub fn is_entry(name: &OsStr) -> bool {
    name.as_bytes() == ENTRY.as_bytes()
}

/// The arguments after the program's name and `ENTRY`.
#[must_use]
pub fn entry_arguments() -> impl Iterator<Item = OsString> {
    env::args_os().skip(2)
}
