//! A Debian with systemd as its first process, on the job side of a private internet.
//!
//! A container of `systemd-nspawn` with a root file system that mmdebstrap makes once, in
//! `target/systemd`, from this machine's own mirror and, unless another is asked for, of its own
//! release. Each [`Machine`] has a layer of its own above it and leaves nothing behind. It sees the
//! unified cgroup hierarchy as current distributions have it, whatever this machine's is, and a bpf
//! file system of its own.
//!
//! In the virtual machines of `cargo xtask vm --systemd`, which have the same root file system, a
//! [`Machine`] is the one that the tests run on.
//!
//! Needs `mmdebstrap` and `systemd-nspawn`.

use std::{
    env,
    fs::{self, File},
    io,
    os::{
        fd::AsFd,
        unix::{
            fs::{PermissionsExt as _, symlink},
            net::UnixDatagram,
            process::CommandExt as _,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::{
    fs::{FlockOperation, flock},
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::{Cgroup, Internet, Output, Shell, binary, eventually, run, run::wait, slowness};

/// Where root file systems are kept, each in a folder with the name of its release.
const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/systemd");

/// Where the units are that jobfence ships.
const UNITS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../userspace/cli/systemd");

/// What it has beyond Debian's essential packages.
const PACKAGES: &str = "systemd-sysv,dbus,libpam-systemd,cron,at,curl,ca-certificates,iproute2,\
                        kmod,procps,python3-minimal,sudo";

/// How it differs from what the packages make: a runner's user, and nothing at a console.
const CUSTOMS: [&str; 2] = [
    "chroot \"$1\" useradd --create-home --shell /bin/bash --uid 1001 ci",
    "chroot \"$1\" systemctl mask console-getty.service getty.target",
];

/// How long making the root file system may take: it is downloaded.
const MAKING: Duration = Duration::from_secs(900);

/// How long anything else may take. Only what hangs comes near.
const DEADLINE: Duration = Duration::from_secs(60);

/// The exit code of `systemd-nspawn --keep-unit` when the container wants to be booted again
/// (`EXIT_FORCE_RESTART` in its source).
const REBOOT: i32 = 133;

/// Mounts, in a namespace of its own, what the container is to see, and becomes the container.
/// `$0` is the root file system, `$1` the machine's folder, `$2` the network namespace.
const BOOT: &str = r#"
umount --lazy /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs none /run
mount -t overlay none -o "lowerdir=$0,upperdir=$1/upper,workdir=$1/work" "$1/root"
exec systemd-nspawn --quiet --boot --directory="$1/root" --machine=ci-host \
    --network-namespace-path="$2" --notify-ready=yes --register=no --keep-unit \
    --capability=all \
    --system-call-filter="bpf landlock_create_ruleset landlock_add_rule landlock_restrict_self" \
    --console=pipe --link-journal=no --resolv-conf=off --timezone=off
"#;

/// What systemd does by itself where it is not in a container.
const BPFFS: &str = "\
[Unit]
DefaultDependencies=no
Before=sysinit.target
[Service]
Type=oneshot
ExecStart=/usr/bin/mount -t bpf bpf /sys/fs/bpf
";

/// A running Debian with systemd. Commands in it reach the private internet, and nothing else.
///
/// It has the user `ci` (1001) beside Debian's own, and this jobfence as `/usr/bin/jobfence` with its
/// units, not started. A container is killed on drop.
pub struct Machine<'a> {
    internet: &'a Internet,
    /// Its process 1, as seen from here.
    first: u32,
    /// The root of its cgroups, as seen from here.
    cgroups: PathBuf,
    /// `None` where it is the machine that the tests run on.
    container: Option<Container>,
}

/// Whether the tests run on a machine that [`Machine`] is to be, and of which nothing is needed
/// afterwards: its network becomes the job side of an [`Internet`], packages are installed.
/// `cargo xtask vm --systemd` says so by a variable.
pub(crate) fn is_here() -> bool {
    env::var_os("JOBFENCE_TEST_HOST").is_some_and(|host| host == "systemd")
}

struct Container {
    /// What it has below its own layer.
    root: PathBuf,
    folder: PathBuf,
    nspawn: Child,
    _reaper: Reaper,
    /// Goes last: what is left in it is killed.
    cgroup: Cgroup,
}

impl<'a> Machine<'a> {
    /// Boots it, and waits until all that starts with it has started. One a private internet.
    ///
    /// # Errors
    /// When it does not boot in time; with what it wrote to its console.
    pub fn boot(internet: &'a Internet) -> Result<Self> {
        let machine = Self::boot_bare(internet)?;
        machine.install()?;
        Ok(machine)
    }

    /// As [`boot`](Self::boot), without anything of jobfence.
    ///
    /// # Errors
    /// As [`boot`](Self::boot).
    pub fn boot_bare(internet: &'a Internet) -> Result<Self> {
        match is_here() {
            true => Self::here(internet),
            false => Self::boot_root(internet, root_file_system(None)?),
        }
    }

    /// As [`boot_bare`](Self::boot_bare), with Debian's release `release`, in a container.
    ///
    /// # Errors
    /// As [`boot`](Self::boot).
    pub fn boot_release(internet: &'a Internet, release: &str) -> Result<Self> {
        Self::boot_root(internet, root_file_system(Some(release))?)
    }

    /// The machine that this is.
    fn here(internet: &'a Internet) -> Result<Self> {
        prepare(Path::new("/"), internet)?;
        let machine = Self {
            internet,
            first: 1,
            cgroups: "/sys/fs/cgroup".into(),
            container: None,
        };
        // It reads its configuration.
        machine.ok("systemctl daemon-reexec")?;
        Ok(machine)
    }

    fn boot_root(internet: &'a Internet, root: PathBuf) -> Result<Self> {
        let folder = internet.dir().join("machine");
        for name in ["upper", "work", "root"] {
            fs::create_dir_all(folder.join(name))?;
        }
        let upper = folder.join("upper");
        // A program may be another user's.
        fs::set_permissions(&upper, fs::Permissions::from_mode(0o755))?;
        prepare(&upper, internet)?;
        mount_bpffs(&upper)?;
        let cgroup = Cgroup::new()?;
        let reaper = Reaper::start(&cgroup)?;
        let (nspawn, first) = launch(internet, &root, &folder, &cgroup)?;
        Ok(Self {
            internet,
            first,
            cgroups: cgroup.path().join("payload"),
            container: Some(Container {
                root,
                folder,
                nspawn,
                _reaper: reaper,
                cgroup,
            }),
        })
    }

    /// Puts this jobfence and its units into it.
    fn install(&self) -> Result<()> {
        self.copy(&binary()?, "/usr/bin/jobfence")?;
        for entry in fs::read_dir(UNITS).context(UNITS)? {
            let from = entry?.path();
            let name = from.file_name().unwrap_or_default().to_string_lossy();
            if name.ends_with(".service") || name.ends_with(".slice") {
                self.copy(&from, &format!("/usr/lib/systemd/system/{name}"))?;
            }
        }
        self.ok("systemctl daemon-reload").map(drop)
    }

    /// Boots it again, as its own `systemctl reboot` does. Files stay, in `/run` none.
    ///
    /// # Errors
    /// When it does not come back in time, or the tests would go down with it.
    pub fn reboot(&mut self) -> Result<()> {
        let mut reboot = self.enter("systemctl");
        let Some(Container {
            root,
            folder,
            nspawn,
            cgroup,
            ..
        }) = &mut self.container
        else {
            bail!("the tests run on this machine");
        };
        // Whoever asks is gone before the answer is there.
        run(reboot.arg("reboot"), DEADLINE)?;
        // Without a unit that could be started again, the container only ends.
        let pidfd = pidfd_open(Pid::from_child(nspawn), PidfdFlags::empty())?;
        let in_time = wait(&pidfd, DEADLINE * slowness())?;
        ensure!(in_time, "it does not go down: {}", console(folder));
        let status = nspawn.wait()?;
        ensure!(status.code() == Some(REBOOT), "{status}");
        (*nspawn, self.first) = launch(self.internet, root, folder, cgroup)?;
        Ok(())
    }

    /// Where the file `path` of it is for this side.
    ///
    /// # Panics
    /// When the path is not absolute.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        let path = path.strip_prefix('/').expect("an absolute path");
        Path::new(&format!("/proc/{}/root", self.first)).join(path)
    }

    /// Writes a file.
    ///
    /// # Errors
    /// When that fails.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        write(&self.path(path), text)
    }

    /// Copies the file `from` of this side to `to`, with its mode.
    ///
    /// # Errors
    /// When that fails.
    pub fn copy(&self, from: &Path, to: &str) -> Result<()> {
        // A program that runs cannot be written to, but another can take its name.
        let new = self.path(&format!("{to}.new"));
        fs::copy(from, &new).with_context(|| format!("cannot copy {}", from.display()))?;
        Ok(fs::rename(new, self.path(to))?)
    }

    /// A command inside, which is not part of any unit: a process of somebody who looks in from
    /// outside.
    fn enter(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.first))
            .args(["--all", "--wdns=/", program])
            .stdin(Stdio::null());
        command
    }

    /// A command in a unit of its own that systemd starts with `options` of `systemd-run`. Standard
    /// input is empty unless the caller sets it.
    #[must_use]
    pub fn command(&self, options: &[&str], program: &str) -> Command {
        let mut command = self.enter("systemd-run");
        command
            .args(["--quiet", "--wait", "--pipe", "--collect"])
            .args(["--service-type=exec"])
            .args(options)
            .args(["--", program]);
        command
    }

    /// A command in the unit `unit` of the system slice, which systemd does not learn of.
    #[must_use]
    pub fn command_in(&self, unit: &str, program: &str) -> Command {
        let unit = self.cgroups.join("system.slice").join(unit);
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""])
            .arg(unit)
            .arg("nsenter")
            .arg(format!("--target={}", self.first))
            .args(["--all", "--wdns=/", program])
            .stdin(Stdio::null());
        command
    }

    /// Does `work` while systemd is stopped, and does nothing itself.
    ///
    /// # Errors
    /// What `work` fails with.
    pub fn while_systemd_hangs<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        // Not by a signal: a first process takes none from within its machine.
        let scope = self.cgroups.join("init.scope");
        let freeze = scope.join("cgroup.freeze");
        fs::write(&freeze, "1")?;
        eventually("systemd is stopped", || {
            fs::read_to_string(scope.join("cgroup.events"))
                .is_ok_and(|text| text.contains("frozen 1"))
        });
        let done = work();
        fs::write(freeze, "0")?;
        done
    }

    /// Runs a script as root in a unit of its own.
    ///
    /// # Errors
    /// When it hangs.
    pub fn sh(&self, script: &str) -> Result<Output> {
        self.sh_with(&[], script)
    }

    /// Runs a script in a unit of its own, with `options` of `systemd-run`, such as `--uid=ci`.
    ///
    /// # Errors
    /// When it hangs.
    pub fn sh_with(&self, options: &[&str], script: &str) -> Result<Output> {
        run(self.command(options, "sh").args(["-c", script]), DEADLINE)
    }

    /// Runs a script as root that must not fail, and returns what it printed.
    ///
    /// # Errors
    /// When it fails, with what it and the journal say.
    pub fn ok(&self, script: &str) -> Result<String> {
        let output = self.sh(script)?;
        if !output.status.success() {
            bail!("{script}: {output:#?}\n{}", self.journal());
        }
        Ok(output.stdout)
    }

    /// The journal since the last boot.
    #[must_use]
    pub fn journal(&self) -> String {
        let journal = run(
            self.enter("journalctl")
                .args(["--boot", "--no-pager", "--output=short-monotonic"]),
            DEADLINE,
        );
        journal.map_or_else(|error| format!("{error:#}"), |output| output.stdout)
    }

    /// A shell in a unit of its own, with `options` of `systemd-run`. Its [`pid`](Shell::pid) is that
    /// of the command that waits for it: [`Machine::pid`] is its own.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn shell(&self, options: &[&str]) -> Result<Shell> {
        Shell::of(self.command(options, "sh"))
    }

    /// The process id that a shell has inside.
    ///
    /// # Errors
    /// When it is gone.
    pub fn pid(shell: &mut Shell) -> Result<String> {
        Ok(shell.run("echo $$")?.1.trim().to_owned())
    }

    /// The internet that it is on.
    #[must_use]
    pub fn internet(&self) -> &'a Internet {
        self.internet
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // What it leaves is killed with its cgroup.
        let killed = self.nspawn.kill().and_then(|()| self.nspawn.wait());
        if !std::thread::panicking() {
            killed.expect("the container can be killed");
        }
    }
}

/// Kills what is in a cgroup when this process is gone, however it ended: a container outlives its
/// `systemd-nspawn`.
struct Reaper(Child);

impl Reaper {
    fn start(cgroup: &Cgroup) -> Result<Self> {
        let script = "read -r _; echo 1 > \"$0/cgroup.kill\"";
        let reaper = Command::new("sh")
            .args(["-c", script])
            .arg(cgroup.path())
            // Not for the signals of a terminal.
            .process_group(0)
            .stdin(Stdio::piped())
            .spawn();
        Ok(Self(reaper.context("cannot start a shell")?))
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        // The end of its input.
        drop(self.0.stdin.take());
        let ended = self.0.wait();
        if !std::thread::panicking() {
            ended.expect("the reaper ends");
        }
    }
}

/// Starts the container, and waits until it has booted. Returns its first process too, as seen from
/// here.
fn launch(
    internet: &Internet,
    root: &Path,
    folder: &Path,
    cgroup: &Cgroup,
) -> Result<(Child, u32)> {
    let path = folder.join("notify");
    let notify = UnixDatagram::bind(&path)?;
    notify.set_read_timeout(Some(DEADLINE * slowness()))?;
    let [shell, words @ ..] = cgroup.enter();
    let console_file = File::options()
        .create(true)
        .append(true)
        .open(folder.join("console"))?;
    let nspawn = Command::new(shell)
        .args(words)
        .args(["unshare", "--mount", "--propagation", "private"])
        .args(["sh", "-ec", BOOT])
        .arg(root)
        .arg(folder)
        .arg(internet.job_side())
        .env("NOTIFY_SOCKET", &path)
        .stdin(Stdio::null())
        .stdout(console_file.try_clone()?)
        .stderr(console_file)
        .spawn()
        .context("cannot start a container")?;
    let first = booted(&notify).with_context(|| console(folder))?;
    // What else it would tell is not taken, and must not fill a queue.
    drop(notify);
    fs::remove_file(path)?;
    Ok((nspawn, first))
}

/// Waits until the container says that it has booted, and returns its first process.
fn booted(notify: &UnixDatagram) -> Result<u32> {
    let deadline = Instant::now() + DEADLINE * slowness();
    let (mut first, mut message) = (None, [0; 1024]);
    loop {
        ensure!(Instant::now() < deadline, "it does not boot");
        let length = match notify.recv(&mut message) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => bail!("it does not boot: {error}"),
        };
        for line in String::from_utf8_lossy(&message[..length]).lines() {
            match line.strip_prefix("X_NSPAWN_LEADER_PID=") {
                Some(pid) => first = Some(pid.parse()?),
                None if line == "READY=1" => return first.context("which process is its first?"),
                None => {}
            }
        }
    }
}

fn console(folder: &Path) -> String {
    fs::read_to_string(folder.join("console")).unwrap_or_default()
}

/// What is special about one machine, below `root`.
fn prepare(root: &Path, internet: &Internet) -> Result<()> {
    let etc = root.join("etc");
    for name in ["resolv.conf", "hosts", "nsswitch.conf", "ca.pem"] {
        let text = fs::read_to_string(internet.dir().join(name))?;
        write(&etc.join(name), &text)?;
    }
    let environment = "[Manager]\nDefaultEnvironment=CURL_CA_BUNDLE=/etc/ca.pem\n";
    for manager in ["system", "user"] {
        let file = format!("systemd/{manager}.conf.d/tests.conf");
        write(&etc.join(file), environment)?;
    }
    Ok(())
}

fn mount_bpffs(root: &Path) -> Result<()> {
    let units = root.join("etc/systemd/system");
    write(&units.join("bpffs.service"), BPFFS)?;
    fs::create_dir_all(units.join("sysinit.target.wants"))?;
    let wanted = units.join("sysinit.target.wants/bpffs.service");
    Ok(symlink("../bpffs.service", wanted)?)
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// The root file system of a machine with Debian's release `release`, this machine's own without
/// one. It is made if there is none of the same packages.
///
/// # Errors
/// When mmdebstrap fails, or this is not Debian.
pub fn root_file_system(release: Option<&str>) -> Result<PathBuf> {
    let mut sources = sources()?;
    let own = codename(&sources)?.to_owned();
    let release = release.unwrap_or(&own);
    sources = sources.replace(&own, release);
    let kept = Path::new(KEPT).join(release);
    fs::create_dir_all(&kept)?;
    let lock = File::create(kept.join("lock"))?;
    // Tests run in several processes.
    flock(lock.as_fd(), FlockOperation::LockExclusive)?;
    let made_of = format!("{sources}{PACKAGES}\n{}\n", CUSTOMS.join("\n"));
    let (root, note) = (kept.join("root"), kept.join("made-of"));
    if fs::read_to_string(&note).is_ok_and(|text| text == made_of) {
        return Ok(root);
    }
    eprintln!("making the root file system of test machines with Debian {release}");
    for old in [&root, &kept.join("new")] {
        match fs::remove_dir_all(old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => bail!("{error}"),
            _ => {}
        }
    }
    let list = kept.join("sources.list");
    fs::write(&list, &sources)?;
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        .args(["--variant=minbase", "--mode=root"])
        .arg(format!("--include={PACKAGES}"))
        .args(CUSTOMS.map(|custom| format!("--customize-hook={custom}")))
        .args([release, &kept.join("new").to_string_lossy()])
        .arg(&list);
    let made = run(&mut mmdebstrap, MAKING)?;
    ensure!(made.status.success(), "mmdebstrap failed: {made:#?}");
    fs::rename(kept.join("new"), &root)?;
    fs::write(note, made_of)?;
    Ok(root)
}

/// The Debian sources of this machine's own apt, one a line.
fn sources() -> Result<String> {
    let mut apt = Command::new("apt-get");
    apt.args(["indextargets", "Created-By: Packages", "Origin: Debian"])
        .args(["--format", "deb $(REPO_URI) $(RELEASE) $(COMPONENT)"]);
    let listed = run(&mut apt, DEADLINE).context("is this Debian?")?;
    ensure!(
        !listed.stdout.is_empty(),
        "apt has no Debian sources, of which a root file system is made: {listed:#?}"
    );
    Ok(listed.stdout)
}

/// The release among the sources: its updates have a hyphen.
fn codename(sources: &str) -> Result<&str> {
    let mut suites = sources.lines().filter_map(|line| line.split(' ').nth(2));
    let release = suites.find(|suite| !suite.contains('-'));
    release.with_context(|| format!("no release among apt's sources: {sources}"))
}
