//! What hosts can be like: views without a part, and cgroups with somebody else's programs.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, id},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{eventually, run};

/// How long attaching a program may take. Only a hanging one comes near.
const DEADLINE: Duration = Duration::from_secs(30);

/// The words that run `script` in a mount namespace of its own, and then what follows them.
/// `$0` is `argument`.
#[must_use]
pub fn mounted<'a>(script: &'a str, argument: &'a str) -> [&'a str; 6] {
    ["unshare", "--mount", "sh", "-ec", script, argument]
}

/// A cgroup to start jobfence in, and so the only one in which its job's can be. What is left in
/// it is killed on drop.
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes one below the caller's own.
    ///
    /// # Errors
    /// Without cgroup v2, or the right to make one.
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let mount = mounts
            .lines()
            .find(|line| line.contains(" - cgroup2 "))
            .and_then(|line| line.split(' ').nth(4))
            .context("no cgroup v2 hierarchy here")?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .context("not in a cgroup v2 hierarchy")?;
        // Not as those of jobs are named.
        let name = format!("tests-of-jobfence-{}-{count}", id());
        let path = Path::new(mount).join(own).join(name);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    /// Its folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The words that start what follows them in this cgroup.
    ///
    /// # Panics
    /// When its path is not UTF-8.
    #[must_use]
    pub fn enter(&self) -> [&str; 4] {
        let script = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";
        let path = self.0.to_str().expect("a path in UTF-8");
        ["sh", "-c", script, path]
    }

    /// The cgroups below it.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    pub fn jobs(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.0).expect("the cgroup").flatten();
        let folders = entries.filter(|entry| entry.path().is_dir());
        folders.map(|entry| entry.path()).collect()
    }

    /// The cgroup of the only job in it.
    ///
    /// # Panics
    /// When there is not exactly one.
    #[track_caller]
    #[must_use]
    pub fn job(&self) -> PathBuf {
        let jobs = self.jobs();
        let [job] = jobs.as_slice() else {
            panic!("not one job: {jobs:?}");
        };
        job.clone()
    }

    /// Attaches somebody else's program to it, which goes with it.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn attach(&self, foreign: &Foreign) -> Result<()> {
        let mut command = Command::new("python3");
        let flags = foreign.flags.to_string();
        let command = command.args(["-c", ATTACH]).arg(&self.0);
        let output = run(command.args([&flags, foreign.code]), DEADLINE)?;
        ensure!(output.status.success(), "cannot attach: {output:#?}");
        Ok(())
    }

    fn kill(&self) -> io::Result<()> {
        fs::write(self.0.join("cgroup.kill"), "1")?;
        eventually("the cgroup is empty", || {
            fs::read_to_string(self.0.join("cgroup.events"))
                .is_ok_and(|text| text.contains("populated 0"))
        });
        Ok(())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let removed = self.kill().and_then(|()| remove(&self.0));
        if !thread::panicking() {
            removed.expect("the cgroup can be removed");
        }
    }
}

/// Removes an empty cgroup, and those below it.
fn remove(cgroup: &Path) -> io::Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let path = entry?.path();
        if path.is_dir() {
            remove(&path)?;
        }
    }
    fs::remove_dir(cgroup)
}

/// Somebody else's program on the making of sockets.
pub struct Foreign {
    flags: u32,
    /// Its instructions, in hexadecimal.
    code: &'static str,
}

/// `r0 = 1; exit`: lets every socket be made.
const PASS: &str = "b7000000010000009500000000000000";

impl Foreign {
    /// Passes everything, and tolerates no other program below.
    pub const ALONE: Self = Self {
        flags: 0,
        code: PASS,
    };
    /// Passes everything, beside others (`BPF_F_ALLOW_MULTI`).
    pub const BESIDE: Self = Self {
        flags: 2,
        code: PASS,
    };
    /// Beside others, and takes back what they refused: `bpf_set_retval(0)`, then `PASS`.
    pub const OVERTURNING: Self = Self {
        flags: 2,
        code: "b70100000000000085000000bb000000b7000000010000009500000000000000",
    };
}

/// Loads the program `argv[3]`, attaches it to the making of sockets in the cgroup `argv[1]` with the
/// flags `argv[2]`, by bpf(2).
const ATTACH: &str = r"
import ctypes, os, platform, struct, sys
number = {'x86_64': 321, 'aarch64': 280}[platform.machine()]
libc = ctypes.CDLL(None, use_errno=True)
def bpf(command, attr):
    attr = ctypes.create_string_buffer(attr, 128)
    result = libc.syscall(number, command, attr, 128)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
instructions = bytes.fromhex(sys.argv[3])
code = ctypes.create_string_buffer(instructions)
license = ctypes.create_string_buffer(b'GPL')
CGROUP_SOCK, INET_SOCK_CREATE, PROG_LOAD, PROG_ATTACH = 9, 2, 5, 8
load = struct.pack('=IIQQ', CGROUP_SOCK, len(instructions) // 8, ctypes.addressof(code), ctypes.addressof(license))
load += struct.pack('=IIQII16sII', 0, 0, 0, 0, 0, b'', 0, INET_SOCK_CREATE)
program = bpf(PROG_LOAD, load)
cgroup = os.open(sys.argv[1], os.O_RDONLY)
bpf(PROG_ATTACH, struct.pack('=IIII', cgroup, program, INET_SOCK_CREATE, int(sys.argv[2])))
";
