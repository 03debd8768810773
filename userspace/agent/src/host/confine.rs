//! What the daemon gives up once it is ready, so that whoever takes it over has little.
//!
//! | given up | what for |
//! |---|---|
//! | capabilities but those of [`KEEPS`], from every set and the bounding set | nothing needs them after the start |
//! | new privileges (`no_new_privs`) | it executes itself alone, for the self-probe |
//! | system calls that it has no use for, and user namespaces (seccomp) | none is part of its work; each has been part of kernel exploits, or of ways out of a sandbox |
//!
//! The file system is the service manager's to make read-only (see jobfence-agent.service), and not
//! Landlock's: a process in a Landlock domain may not look at one outside of it (`ptrace` access,
//! which `/proc/PID/exe`, `fd` and `environ` need; `hook_ptrace_access_check` in the kernel's
//! security/landlock), and looking at the jobs' processes is this one's work.
//!
//! Nor does the filter refuse sockets: the self-probe inherits it, and must be refused by the programs
//! of the fence and by nothing else.

use std::{fs, io, time::Duration};

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};
use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, apply_filter};
use thiserror::Error;
use tokio::time::{Instant, sleep};

use crate::job::filter::{self, UNSEEN};

/// What the daemon goes on needing.
pub const KEEPS: CapabilitySet = CapabilitySet::BPF
    // Maps of a job's addresses and names (BPF), its links (NET_ADMIN), the end of connections
    // (SOCK_DESTROY, NET_ADMIN).
    .union(CapabilitySet::NET_ADMIN)
    // The self-probe: without it the kernel refuses a raw socket before it asks the fence.
    .union(CapabilitySet::NET_RAW)
    // Programs, descriptors and environments of jobs' processes, which belong to others.
    .union(CapabilitySet::SYS_PTRACE)
    // Those too; and to make a cgroup at the top of the hierarchy, where not even root may write.
    .union(CapabilitySet::DAC_OVERRIDE);

/// System calls that are refused with `EPERM`.
const REFUSED: &[i64] = &[
    // Other processes, other namespaces, other file systems.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_mknodat,
    // The kernel itself, and the machine.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_personality,
    // Parts of it that have been attacked often, and that nothing here uses.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_fanotify_init,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // Who it is stays as it is.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
];

/// How long other threads may take to end.
const ALONE: Duration = Duration::from_secs(30);

/// Something could not be given up.
#[derive(Debug, Error)]
pub enum ConfineError {
    /// What is given up is given up by one thread.
    #[error("{0} threads still run after {seconds} s, and would keep what this one gives up", seconds = ALONE.as_secs())]
    Threads(usize),
    /// A system call failed.
    #[error("could not {doing}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The filter was refused.
    #[error("could not filter system calls: {0}. The kernel needs CONFIG_SECCOMP_FILTER")]
    Filter(#[from] seccompiler::Error),
}

/// Gives up what the daemon does not need any more, for itself and all that it starts. Waits until the
/// calling thread is the only one: another would keep what this one gives up.
///
/// # Errors
///
/// [`ConfineError`].
pub async fn confine() -> Result<(), ConfineError> {
    alone().await?;
    give_up()
}

fn give_up() -> Result<(), ConfineError> {
    drop_capabilities()?;
    let mut refused = filter::whole(REFUSED);
    #[cfg(target_arch = "x86_64")]
    refused.extend(filter::whole(&[
        libc::SYS_iopl,
        libc::SYS_ioperm,
        libc::SYS_mknod,
        libc::SYS_kexec_file_load,
    ]));
    // A user namespace is the way back to every capability. The flags of clone3 cannot be seen;
    // without it the C library uses clone.
    let flag = u64::from(libc::CLONE_NEWUSER.unsigned_abs());
    let namespace = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::MaskedEq(flag),
        flag,
    );
    let namespace = filter::all(vec![namespace.map_err(seccompiler::Error::from)])?;
    refused.insert(libc::SYS_clone, vec![namespace]);
    apply_filter(&filter::compile(refused, libc::EPERM)?)?;
    apply_filter(&filter::compile(filter::whole(&UNSEEN), libc::ENOSYS)?)?;
    Ok(())
}

fn failed(doing: &'static str) -> impl Fn(rustix::io::Errno) -> ConfineError {
    move |errno| ConfineError::Io {
        doing,
        source: errno.into(),
    }
}

async fn alone() -> Result<(), ConfineError> {
    let deadline = Instant::now() + ALONE;
    loop {
        let threads = fs::read_dir("/proc/self/task").map_err(|source| ConfineError::Io {
            doing: "read /proc/self/task",
            source,
        })?;
        match threads.count() {
            1 => return Ok(()),
            count if Instant::now() > deadline => return Err(ConfineError::Threads(count)),
            _ => sleep(Duration::from_millis(10)).await,
        }
    }
}

fn drop_capabilities() -> Result<(), ConfineError> {
    // Numbers beyond the kernel's last capability are EINVAL; there is none to drop.
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if KEEPS.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(errno) => {
                return Err(failed("drop capabilities (CAP_SETPCAP is needed)")(errno));
            }
        }
    }
    clear_ambient_capability_set().map_err(failed("clear ambient capabilities"))?;
    // In a container it may not have had all of them.
    let had = capabilities(None).map_err(failed("read capabilities"))?;
    let kept = had.permitted.intersection(KEEPS);
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).map_err(failed("set capabilities"))?;
    set_no_new_privs(true).map_err(failed("set no_new_privs"))
}

#[cfg(test)]
mod tests {
    use std::{
        env,
        io::Write as _,
        process::{Command, Stdio},
        thread,
    };

    use nix::{
        errno::Errno,
        sched::{CloneFlags, unshare},
        sys::stat::{Mode, SFlag, mknod},
        unistd::{chroot, geteuid},
    };

    use rustix::{
        mount::{MountPropagationFlags, mount_change},
        process::{Gid, Uid},
        thread::{set_thread_res_gid, set_thread_res_uid},
    };

    use super::*;

    /// Gives up what the daemon does, in a process of its own, and tries it.
    #[test]
    fn confined() {
        if env::var_os("JOBFENCE_TEST_CONFINED").is_none() {
            return;
        }
        give_up().expect("given up");
        // As it is, and in a thread that is made afterwards.
        attempt();
        thread::spawn(attempt).join().expect("no panic");
        // The self-probe has to start.
        let own = Command::new("/proc/self/exe")
            .arg("--list")
            .stdout(Stdio::null())
            .status();
        assert!(own.expect("it executes itself").success());
        println!("\nconfined");
    }

    fn attempt() {
        for (what, came) in [
            ("a user namespace", unshare(CloneFlags::CLONE_NEWUSER)),
            ("a mount namespace", unshare(CloneFlags::CLONE_NEWNS)),
            ("chroot", chroot("/")),
            ("mknod", mknod("/tmp/x", SFlag::S_IFCHR, Mode::empty(), 0)),
        ] {
            assert_eq!(came, Err(Errno::EPERM), "{what}");
        }
        // Of this thread: the other one of the test is not confined.
        let (uid, gid) = (Uid::from_raw(1), Gid::from_raw(1));
        for (what, came) in [
            ("mount", mount_change("/", MountPropagationFlags::PRIVATE)),
            ("setresuid", set_thread_res_uid(uid, uid, uid)),
            ("setresgid", set_thread_res_gid(gid, gid, gid)),
        ] {
            assert_eq!(came, Err(rustix::io::Errno::PERM), "{what}");
        }
        let sets = capabilities(None).expect("capabilities");
        assert!(KEEPS.contains(sets.permitted) && sets.inheritable.is_empty());
    }

    #[test]
    fn what_is_given_up_is_gone_and_the_rest_works() {
        if !geteuid().is_root() {
            // Not by a macro, whose output a test that passes does not show.
            let told = "LEFT OUT: what the daemon gives up (needs root)";
            writeln!(io::stderr(), "{told}").expect("stderr");
            return;
        }
        let output = Command::new("/proc/self/exe")
            .args([
                "--exact",
                "host::confine::tests::confined",
                "--nocapture",
                "--test-threads=1",
            ])
            .env("JOBFENCE_TEST_CONFINED", "1")
            .output()
            .expect("started");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("\nconfined\n"),
            "{output:?}"
        );
    }
}
