//! The kernel, and what a fence stands on besides it.

use std::{
    fs::{self, File},
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
};

use aya::programs::loaded_programs;
use jobfence_policy::Policy;
use nix::sched::{CloneFlags, unshare};
use rustix::{
    fs::{Access, access},
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    system::uname,
    thread::{CapabilitySet, capabilities as own_capabilities},
};

use super::{Check, read};
use crate::{
    control::protocol::{Labels, PolicyText},
    job::{
        cgroup::{self, CgroupError},
        delegate,
        launch::LaunchError,
        process,
        run::{Options, job_id, run},
        user::Account,
    },
    kernel::{self, BPFFS, Connections, Guard, Kernel, KernelError},
    names, sys,
};

/// The oldest kernel that takes the programs, which read payload in a loop (`bpf_loop`). Before 5.15
/// a job would not even stay in its fence: a version 1 `net_cls` cgroup takes a socket out of its
/// version 2 cgroup (kernel commit 8520e224f547, "bpf, cgroups: Fix cgroup v2 fallback on v1/v2 mixed
/// mode").
const FLOOR: (u32, u32) = (5, 17);
/// The oldest long-term kernel with `lsm_cgroup`.
const RECOMMENDED: (u32, u32) = (6, 1);

/// What setting up a job takes: mount namespaces and programs, and the maps of user and group ids.
const NEEDED: [(CapabilitySet, &str); 3] = [
    (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"),
    (CapabilitySet::SETUID, "CAP_SETUID"),
    (CapabilitySet::SETGID, "CAP_SETGID"),
];

/// How a job's cgroup is reached.
const OUTSIDE: &str = "run jobfence on the host, or in a container with --privileged";

pub(super) fn root(root: bool) -> Check {
    const ID: &str = "root";
    if root {
        Check::ok(ID, "runs as root")
    } else {
        Check::cannot(
            ID,
            "does not run as root, so not everything could be checked",
        )
        .mend("sudo jobfence doctor")
    }
}

pub(super) fn capabilities() -> Check {
    const ID: &str = "capabilities";
    let own = match own_capabilities(None) {
        Ok(sets) => sets.effective,
        Err(error) => return Check::unknown(ID, format!("capget: {error}")),
    };
    let missing: Vec<_> = NEEDED
        .iter()
        .filter(|(needed, _)| !own.contains(*needed))
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        Check::ok(ID, "jobfence has all that a fence takes")
    } else {
        Check::cannot(ID, format!("lacks {}", missing.join(", "))).mend(
            "run jobfence as root; in a service unit or a container, do not take these away from it",
        )
    }
}

pub(super) fn version() -> Check {
    let uname = uname();
    release(&uname.release().to_string_lossy())
}

/// Judges a kernel by its release, as `6.1.0-35-amd64`.
fn release(release: &str) -> Check {
    const ID: &str = "kernel";
    let found = format!("Linux {release}");
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return Check::unknown(ID, found);
    };
    if (major, minor) < FLOOR {
        Check::cannot(ID, found)
            .means("not supported: it lacks what the programs are made of (bpf_loop)")
            .mend("Linux 5.17 or newer; 6.1 or newer is recommended")
    } else if (major, minor) < RECOMMENDED {
        Check::note(ID, found)
            .means("it can have no program on the making of sockets of other families (lsm_cgroup)")
            .mend("Linux 6.1 or newer")
    } else {
        Check::ok(ID, found)
    }
}

pub(super) fn cgroup() -> Check {
    const ID: &str = "cgroup";
    let own = match cgroup::own() {
        // Without the slash at the end that the path of the uppermost has.
        Ok(own) => own.components().collect::<PathBuf>(),
        Err(error) => return no_cgroup(ID, &error),
    };
    let mounts = sys::read_text("/proc/self/mountinfo").unwrap_or_default();
    let beside = version_1(&mounts);
    let mut found = format!("version 2, jobs go below {}", own.display());
    if !beside.is_empty() {
        found = format!("{found}; version 1 beside it has {}", beside.join(", "));
    }
    Check::ok(ID, found)
}

fn no_cgroup(id: &'static str, error: &CgroupError) -> Check {
    match error {
        CgroupError::NotMounted => Check::cannot(
            id,
            "no cgroup v2 hierarchy is mounted that holds this process",
        )
        .mend(
            "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none \
                 /sys/fs/cgroup/unified, or boot with systemd.unified_cgroup_hierarchy=1",
        ),
        error => Check::cannot(id, error.to_string()).mend(OUTSIDE),
    }
}

/// The controllers of version 1 hierarchies in a `mountinfo` file (proc(5)), sorted.
fn version_1(mountinfo: &str) -> Vec<&str> {
    /// What else is among the options of such a mount, or begins it.
    const OTHER: [&str; 8] = [
        "rw",
        "ro",
        "xattr",
        "clone_children",
        "cpuset_v2_mode",
        "noprefix",
        "name=",
        "release_agent=",
    ];
    let mut controllers: Vec<_> = mountinfo
        .lines()
        .filter_map(|line| {
            let (_, after) = line.split_once(" - ")?;
            after.strip_prefix("cgroup ")?.split(' ').nth(1)
        })
        .flat_map(|options| options.split(','))
        .filter(|option| {
            !OTHER.iter().any(|other| match other.strip_suffix('=') {
                Some(_) => option.starts_with(other),
                None => option == other,
            })
        })
        .collect();
    controllers.sort_unstable();
    controllers.dedup();
    controllers
}

pub(super) fn bpffs(root: bool) -> Check {
    const ID: &str = "bpffs";
    let mend = format!("mount -t bpf bpf {BPFFS}");
    match kernel::is_bpffs() {
        // Not mounted yet is what `jobfence run` mends itself.
        Ok(false) if root && has_sys_admin() => Check::note(ID, format!("not mounted at {BPFFS}"))
            .means("`jobfence run` mounts it")
            .mend(mend),
        Ok(false) => Check::cannot(ID, format!("not mounted at {BPFFS}")).mend(mend),
        Err(error) => Check::cannot(ID, format!("{BPFFS}: {error}"))
            .mend(format!("mount -t sysfs sysfs /sys && {mend}")),
        Ok(true) if root => match access(BPFFS, Access::WRITE_OK) {
            Ok(()) => Check::ok(ID, format!("at {BPFFS}")),
            Err(error) => Check::cannot(ID, format!("cannot write to {BPFFS}: {error}"))
                .mend(format!("mount -o remount,rw {BPFFS}")),
        },
        Ok(true) => Check::ok(ID, format!("at {BPFFS}")),
    }
}

fn has_sys_admin() -> bool {
    own_capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

pub(super) fn programs(root: bool) -> (Check, Option<Kernel>) {
    const ID: &str = "programs";
    if !root {
        return (Check::unknown(ID, "only root can load programs"), None);
    }
    match Kernel::load() {
        Ok(kernel) => {
            let count = kernel.attached().count();
            (
                Check::ok(
                    ID,
                    format!("the kernel accepts all {count} BPF programs of a fence"),
                ),
                Some(kernel),
            )
        }
        Err(error) => {
            let mend = "Linux 5.17 or newer with CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF, not \
                        locked down; see also `capabilities`";
            (Check::cannot(ID, error.to_string()).mend(mend), None)
        }
    }
}

/// Flags of an attached program (`linux/bpf.h`).
const ALLOW_OVERRIDE: u32 = 1;
const ALLOW_MULTI: u32 = 2;

/// Another's program on a cgroup above a job's.
struct CoAttached {
    hook: &'static str,
    id: u32,
    name: Option<String>,
    cgroup: PathBuf,
    flags: u32,
}

/// Programs of others run for jobs too, after jobfence's own (one that can be overridden does not).
/// They can overturn an error of the `connect`, `sendmsg` and `sock_create` programs
/// (`bpf_set_retval`) and lead elsewhere what those let pass, but not bring back a packet: the packet
/// program's verdict counts when it denies, and there is no such helper for it
/// (`cgroup_common_func_proto` in kernel/bpf/cgroup.c). Those of `guard` are no others'.
pub(super) fn co_attached(kernel: Option<&Kernel>, guard: Option<&Guard>) -> Check {
    const ID: &str = "co-attached";
    let Some(kernel) = kernel else {
        return Check::unknown(ID, "not asked: no programs");
    };
    let found = cgroup::own()
        .map_err(io::Error::other)
        .and_then(|own| above(&own, kernel));
    let mut found = match found {
        Ok(found) => found,
        Err(error) => return Check::unknown(ID, error.to_string()),
    };
    // By number: anybody's program can have any name.
    let ours = guard.map_or(&[][..], |guard| &guard.programs);
    let all = found.len();
    found.retain(|other| !ours.contains(&other.id));
    if found.is_empty() {
        let but = match all {
            0 => "",
            _ => " but jobfence's `guard`",
        };
        return Check::ok(
            ID,
            format!("no other BPF program at this cgroup or above{but}"),
        );
    }
    let alone = found
        .iter()
        .any(|other| other.flags & (ALLOW_MULTI | ALLOW_OVERRIDE) == 0);
    let check = Check::note(
        ID,
        found.iter().map(describe).collect::<Vec<_>>().join("; "),
    );
    let means = if alone {
        "a program that tolerates no other below keeps jobfence's from being attached: see `trial`"
    } else {
        "they run for jobs too, and can turn an immediate error into a dropped packet; they cannot \
         let a refused packet out. Whether they overturn anything now, `trial` tells"
    };
    check.means(means).mend(detach(&found))
}

/// The programs of others at `own` and the cgroups above, as far as these can be seen from here.
fn above(own: &Path, kernel: &Kernel) -> io::Result<Vec<CoAttached>> {
    let mut found = Vec::new();
    let is_cgroup = |folder: &&Path| folder.join("cgroup.procs").exists();
    for cgroup in own.ancestors().take_while(is_cgroup) {
        let folder = File::open(cgroup)?;
        for (hook, attach_type) in kernel.attached() {
            let attached = sys::attached(&folder, attach_type)?;
            found.extend(attached.programs.into_iter().map(|id| CoAttached {
                hook,
                id,
                name: None,
                cgroup: cgroup.to_owned(),
                flags: attached.flags,
            }));
        }
    }
    if !found.is_empty() {
        // Of a program that cannot be looked at, the id has to do.
        for info in loaded_programs().flatten() {
            for other in found.iter_mut().filter(|other| other.id == info.id()) {
                other.name = info.name_as_str().map(str::to_owned);
            }
        }
    }
    Ok(found)
}

fn describe(other: &CoAttached) -> String {
    let CoAttached {
        hook,
        id,
        name,
        cgroup,
        flags,
    } = other;
    let name = name.as_deref().filter(|name| !name.is_empty());
    let how = match flags {
        flags if flags & ALLOW_MULTI != 0 => "beside others",
        flags if flags & ALLOW_OVERRIDE != 0 => "can be overridden",
        _ => "tolerates no other",
    };
    format!(
        "{hook}: program {id} {}at {} ({how})",
        name.map(|name| format!("{name} ")).unwrap_or_default(),
        cgroup.display()
    )
}

fn detach(found: &[CoAttached]) -> String {
    let mut cgroups: Vec<_> = found
        .iter()
        .map(|other| other.cgroup.display().to_string())
        .collect();
    cgroups.dedup();
    let trees: Vec<_> = cgroups
        .iter()
        .map(|cgroup| format!("bpftool cgroup show {cgroup}"))
        .collect();
    format!(
        "{}, and end what attached those that are not needed",
        trees.join("; ")
    )
}

/// Whether an agent holds the user to its jobs, and is there for them: at `agent`.
pub(super) fn guard(found: &Result<Guard, KernelError>, account: &Account, agent: &Path) -> Check {
    const ID: &str = "guard";
    let user = account.name();
    match found {
        Err(error) => return Check::unknown(ID, error.to_string()),
        Ok(guard) if !guard.holds(account.uid) => {
            let found = format!("{user} may have sockets outside jobs (no `guard` in agent.yml)");
            return Check::ok(ID, found);
        }
        Ok(_) => {}
    }
    let found = format!("{user} may have sockets only in jobs of the agent (`guard` in agent.yml)");
    match UnixStream::connect(agent) {
        Ok(_) => Check::ok(ID, found),
        Err(error) => Check::cannot(
            ID,
            format!("{found}, and no agent is at {}: {error}", agent.display()),
        )
        .means(
            "each socket of this user is refused, and `jobfence run` refuses to run anything (exit \
             code 111), until the agent is there",
        )
        .mend("systemctl start jobfence-agent"),
    }
}

/// A job that may reach nothing.
const POLICY: &str = "version: 1\njobs: {default: {}}\n";
/// What none can execute: a folder.
const COMMAND: &str = "/";

/// Sets up a job, and lets it begin a command that cannot be executed: all that `jobfence run` does,
/// its self-probe included, by the same functions. As a job of the agent at `agent`, if that is given.
pub(super) fn trial(account: &Account, agent: Option<&Path>) -> Check {
    const ID: &str = "trial";
    let account = account.clone();
    let socket = agent.map(Path::to_owned);
    let tried = thread::spawn(move || match socket {
        Some(socket) => under_agent(account, socket),
        None => alone(account),
    });
    let (whose, where_else) = match agent {
        Some(_) => (" of the agent", "the agent's log says more"),
        None => ("", OUTSIDE),
    };
    let failed = match tried.join() {
        Ok(Ok(())) => {
            let found = format!("a job{whose} was set up, refused each way out, and ended");
            return Check::ok(ID, found);
        }
        Ok(Err(error)) => error,
        Err(_) => "it panicked".to_owned(),
    };
    Check::cannot(ID, failed).mend(format!("see the other checks; {where_else}"))
}

/// As it should be: the command was not executed.
fn ended(not_executed: Option<LaunchError>) -> Result<(), String> {
    let none = || format!("{COMMAND} was executed as a program");
    not_executed.map(drop).ok_or_else(none)
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())
}

/// By an agent: its guard refuses the sockets of all other jobs.
fn under_agent(account: Account, socket: PathBuf) -> Result<(), String> {
    /// What an agent says of a job whose fence failed.
    const FAILED: u8 = 111;
    let options = delegate::Options {
        socket,
        id: Some(format!("doctor-{}", job_id())),
        policy: Some(PolicyText {
            file: "doctor".to_owned(),
            text: POLICY.to_owned(),
        }),
        narrows: false,
        labels: Labels::default(),
        job: "default".to_owned(),
        audit: None,
        account,
        command: vec![COMMAND.into()],
        log: None,
    };
    let outcome = runtime()?
        .block_on(delegate::run(options))
        .map_err(|error| error.to_string())?;
    // Not for what the user does outside meanwhile, which is a violation of each job that runs.
    match outcome.finished {
        finished if finished.exit == FAILED => Err(finished.report),
        _ => ended(outcome.not_executed),
    }
}

/// In a mount namespace with a bpf file system of its own, so that what is pinned goes with it, and
/// abandoned jobs of others are not seen, which a start of jobfence would end.
fn alone(account: Account) -> Result<(), String> {
    let job = Policy::parse("doctor", POLICY.as_bytes())
        .and_then(|policy| policy.job(None))
        .map_err(|error| error.to_string())?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(|errno| format!("a mount namespace: {errno}"))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private)
        .and_then(|()| mount("bpf", BPFFS, "bpf", MountFlags::empty(), c"mode=0700"))
        .map_err(|errno| format!("a bpf file system in a mount namespace: {errno}"))?;
    let options = Options {
        policy: job,
        account,
        command: vec![COMMAND.into()],
        log: None,
    };
    let outcome = runtime()?
        .block_on(run(options))
        .map_err(|error| error.to_string())?;
    match outcome.failure {
        Some(failure) => Err(failure),
        None => ended(outcome.not_executed),
    }
}

pub(super) fn jit(enable: Option<&str>, harden: Option<&str>) -> Check {
    const ID: &str = "jit";
    match (enable, harden) {
        (None, _) => Check::unknown(ID, "cannot be seen from this network namespace"),
        (Some("0"), _) => Check::note(ID, "the kernel does not compile BPF programs")
            .means("every packet of a job is decided by an interpreter: slower, not weaker")
            .mend("sysctl -w net.core.bpf_jit_enable=1"),
        (Some(_), Some("2")) => Check::ok(ID, "the kernel compiles BPF programs, hardened"),
        (Some(_), Some("1")) => Check::ok(
            ID,
            "the kernel compiles BPF programs, those of other users hardened",
        ),
        (Some(_), _) => Check::ok(ID, "the kernel compiles BPF programs"),
    }
}

pub(super) fn unprivileged_bpf(disabled: Option<&str>) -> Check {
    const ID: &str = "unprivileged-bpf";
    match disabled {
        Some("0") => Check::note(ID, "every user may load BPF programs")
            .means(
                "bugs of the verifier are in reach of users; not of jobs, which are refused bpf()",
            )
            .mend("sysctl -w kernel.unprivileged_bpf_disabled=2"),
        Some(_) => Check::ok(ID, "only root may load BPF programs"),
        None => Check::unknown(ID, "no kernel.unprivileged_bpf_disabled here"),
    }
}

pub(super) fn lsm(list: Option<&str>, kernel: Option<&Kernel>) -> Check {
    const ID: &str = "lsm";
    const MEANS: &str = "sockets of other families (packet, vsock, XDP, …) are refused to what \
                         `jobfence run` launches by seccomp and missing capabilities, without an \
                         event; a program on the job's cgroup would do it too, and log it";
    let Some(list) = list.filter(|list| !list.is_empty()) else {
        return Check::note(
            ID,
            "no /sys/kernel/security/lsm: not known whether BPF is active",
        )
        .means(MEANS)
        .mend("mount -t securityfs securityfs /sys/kernel/security");
    };
    if !list.split(',').any(|module| module == "bpf") {
        return Check::note(ID, format!("{list}: without bpf"))
            .means(MEANS)
            .mend(format!("boot with lsm={list},bpf"));
    }
    match kernel.map(Kernel::has_lsm) {
        Some(false) => Check::note(ID, format!("{list}, but the kernel takes no program"))
            .means(MEANS)
            .mend("Linux 6.1 or newer with CONFIG_BPF_LSM and CONFIG_DEBUG_INFO_BTF"),
        _ => Check::ok(ID, list),
    }
}

pub(super) fn user_namespaces() -> Check {
    const ID: &str = "user-namespaces";
    if !Path::new("/proc/self/ns/user").exists() {
        return Check::cannot(ID, "the kernel has none").mend("a kernel with CONFIG_USER_NS");
    }
    user_namespace_limits(
        read("/proc/sys/user/max_user_namespaces").as_deref(),
        read("/proc/sys/kernel/unprivileged_userns_clone").as_deref(),
        read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").as_deref(),
    )
}

/// The last two are Debian's and Ubuntu's, and do not bind who has `CAP_SYS_ADMIN`.
fn user_namespace_limits(max: Option<&str>, clone: Option<&str>, apparmor: Option<&str>) -> Check {
    const ID: &str = "user-namespaces";
    if max == Some("0") {
        return Check::cannot(ID, "user.max_user_namespaces is 0, and each job needs one")
            .mend("sysctl -w user.max_user_namespaces=10000");
    }
    let restricted = clone == Some("0") || apparmor == Some("1");
    let found = match max {
        Some(max) => format!("at most {max}, of which each job takes one"),
        None => "the kernel has them, and each job takes one".to_owned(),
    };
    if restricted {
        Check::ok(
            ID,
            format!("{found}; restricted for others, not for jobfence"),
        )
    } else {
        Check::ok(ID, found)
    }
}

pub(super) fn io_uring(disabled: Option<&str>) -> Check {
    let host = match disabled {
        Some("2") => "off",
        Some("1") => "restricted",
        Some(_) => "on",
        None => "on, or not in this kernel",
    };
    Check::ok("io-uring", format!("{host} for the host, refused to jobs"))
}

pub(super) fn ptrace(scope: Option<&str>) -> Check {
    let scope = match scope {
        Some(scope) => format!("kernel.yama.ptrace_scope is {scope}"),
        None => "no Yama".to_owned(),
    };
    Check::ok(
        "ptrace",
        format!("{scope}; a job that jobfence launches traces nothing outside its user namespace"),
    )
}

pub(super) fn dns() -> Check {
    const ID: &str = "dns";
    const FILE: &str = "/etc/resolv.conf";
    let text = match fs::read_to_string(FILE) {
        Ok(text) => text,
        Err(error) => {
            return Check::cannot(ID, format!("{FILE}: {error}")).mend(format!(
                "name the host's DNS servers in {FILE}, readable to root"
            ));
        }
    };
    if let Err(error) = names::check_resolv_conf(&text) {
        return Check::cannot(ID, error.to_string()).mend(format!("correct {FILE}"));
    }
    let servers = name_servers(&text);
    if servers.is_empty() {
        Check::note(ID, format!("{FILE} names no server"))
            .means("allowed names are asked for at 127.0.0.1, as resolv.conf(5) says")
            .mend(format!("nameserver ADDRESS in {FILE}"))
    } else {
        Check::ok(
            ID,
            format!("allowed names are asked for at {}", servers.join(", ")),
        )
    }
}

/// The servers in a resolv.conf(5), for people to read.
fn name_servers(text: &str) -> Vec<&str> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next())?
        })
        .collect()
}

pub(super) fn ipv6() -> Check {
    let found = if Path::new("/proc/net/if_inet6").exists() {
        "on, fenced as IPv4 is"
    } else {
        "off"
    };
    Check::ok("ipv6", found)
}

pub(super) fn process_events(root: bool) -> Check {
    const ID: &str = "process-events";
    if !root {
        return Check::unknown(ID, "only root can ask for them");
    }
    match process::try_events() {
        Ok(()) => Check::ok(ID, "the kernel tells of processes"),
        Err(error) => no_process_events(&error, process::is_contained()),
    }
}

fn no_process_events(error: &io::Error, is_contained: bool) -> Check {
    const ID: &str = "process-events";
    const MEANS: &str = "of a process that is gone when its attempt is looked at, events lack the \
                         command line and the ancestors; what is refused is the same";
    let mend = if is_contained {
        "run jobfence on the host itself"
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        "give jobfence CAP_NET_ADMIN, and CAP_SYS_ADMIN to enter the host's network namespace"
    } else {
        "a kernel with CONFIG_PROC_EVENTS"
    };
    Check::note(ID, format!("the kernel tells of no processes: {error}"))
        .means(MEANS)
        .mend(mend)
}

pub(super) fn refused_connections(root: bool) -> Check {
    const ID: &str = "refused-connections";
    if !root {
        return Check::unknown(ID, "only root can end those of others");
    }
    match Connections::open().and_then(|connections| connections.try_ending()) {
        Ok(()) => Check::ok(
            ID,
            "a connection that turns out to be forbidden is ended at once",
        ),
        Err(error) => Check::note(
            ID,
            format!("a connection that turns out to be forbidden cannot be ended: {error}"),
        )
        .means("a client that is refused for what it sends waits until it gives up")
        .mend("a kernel with CONFIG_INET_DIAG_DESTROY, and CAP_NET_ADMIN for jobfence"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    #[test]
    fn kernels_are_judged_by_number_not_by_text() {
        for (text, status) in [
            ("5.4.0-200-generic", Status::Cannot),
            ("5.10.0-33-amd64", Status::Cannot),
            ("5.15.0-1", Status::Cannot),
            ("5.17.0-1", Status::Note),
            ("6.0.19", Status::Note),
            ("6.1.0-35-amd64", Status::Ok),
            ("6.18.44", Status::Ok),
            ("10.0-rc1", Status::Ok),
            ("weird", Status::Unknown),
        ] {
            assert_eq!(release(text).status, status, "{text}");
        }
    }

    #[test]
    fn controllers_of_version_1_are_told_from_other_options() {
        let mounts = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 24 0:26 / /sys/fs/cgroup/net_cls,net_prio rw shared:9 - cgroup cgroup rw,net_cls,net_prio
31 24 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
32 24 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
42 24 0:38 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 none rw,nsdelegate
";
        assert_eq!(version_1(mounts), ["cpu", "net_cls", "net_prio"]);
    }

    #[test]
    fn an_interpreter_is_slow_and_no_weaker() {
        assert_eq!(jit(Some("0"), Some("0")).status, Status::Note);
        assert_eq!(jit(Some("1"), Some("2")).status, Status::Ok);
        assert_eq!(jit(None, None).status, Status::Unknown);
    }

    #[test]
    fn a_list_of_security_modules_without_bpf_is_told_how_to_have_it() {
        let check = lsm(Some("capability,landlock,yama"), None);
        assert_eq!(check.status, Status::Note);
        assert_eq!(
            check.mend.as_deref(),
            Some("boot with lsm=capability,landlock,yama,bpf")
        );
        // Not a part of a name.
        assert_eq!(lsm(Some("capability,bpfx"), None).status, Status::Note);
        assert_eq!(lsm(Some("capability,bpf"), None).status, Status::Ok);
        assert_eq!(lsm(None, None).status, Status::Note);
    }

    #[test]
    fn only_a_limit_of_none_keeps_jobfence_from_user_namespaces() {
        assert_eq!(
            user_namespace_limits(Some("0"), None, None).status,
            Status::Cannot
        );
        let restricted = user_namespace_limits(Some("9"), Some("0"), Some("1"));
        assert_eq!(restricted.status, Status::Ok);
        assert!(restricted.found.contains("restricted for others"));
    }

    #[test]
    fn why_the_kernel_tells_of_no_processes_decides_what_to_do() {
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        for (error, is_contained, mend) in [
            (&refused, true, "on the host itself"),
            (&denied, true, "on the host itself"),
            (&denied, false, "CAP_NET_ADMIN"),
            (&refused, false, "CONFIG_PROC_EVENTS"),
        ] {
            let check = no_process_events(error, is_contained);
            assert_eq!(check.status, Status::Note);
            let told = check.mend.unwrap_or_default();
            assert!(told.contains(mend), "{error}, {is_contained}: {told}");
        }
    }

    #[test]
    fn users_who_may_load_programs_are_a_note() {
        assert_eq!(unprivileged_bpf(Some("0")).status, Status::Note);
        assert_eq!(unprivileged_bpf(Some("2")).status, Status::Ok);
    }

    #[test]
    fn servers_are_found_as_resolv_conf_has_them() {
        let text = "# nameserver 192.0.2.1\nsearch x.test\nnameserver\t198.51.100.1  \nnameserver 2001:db8::1\nnameserver\n";
        assert_eq!(name_servers(text), ["198.51.100.1", "2001:db8::1"]);
    }

    #[test]
    fn a_program_that_tolerates_no_other_is_told_from_one_that_does() {
        let other = |flags| {
            describe(&CoAttached {
                hook: "connect4",
                id: 7,
                name: Some("deny".to_owned()),
                cgroup: "/sys/fs/cgroup/a".into(),
                flags,
            })
        };
        assert_eq!(
            other(0),
            "connect4: program 7 deny at /sys/fs/cgroup/a (tolerates no other)"
        );
        assert!(other(ALLOW_MULTI).ends_with("(beside others)"));
        assert!(other(ALLOW_OVERRIDE).ends_with("(can be overridden)"));
    }
}
