//! The two namespaces, and how a command gets into them.

use std::{
    fs::{self, File, Metadata, Permissions},
    io::{BufRead as _, BufReader, Write as _},
    net::IpAddr,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    sync::{
        Arc, Mutex, Once,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::{
    event::{EventfdFlags, eventfd},
    process::{Pid, PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::{
    addresses::{ALLOWED, BLOCKED, DNS, GATEWAY, JOB, OTHER_DNS},
    dns::{Data, Zone},
    run::wait,
    servers::{Servers, World},
    systemd,
    tls::Authority,
    wire::{Arrivals, INTERFACE, Mark, NET_MAC, Wire},
};

/// What the names of everything that outlives a crash begin with.
const PREFIX: &str = "jobfence-tests";
/// Where commands are searched: the system's own, which any user may run.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Environment variables by which clients find the certificates that they trust.
const CA_VARIABLES: &[&str] = &[
    "CARGO_HTTP_CAINFO",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
];

/// A private internet: see the [crate's](crate) documentation.
///
/// The namespaces have no names, they live as long as this value and the processes in them; a
/// crashed test leaves none behind.
pub struct Internet {
    job: OwnedFd,
    net: OwnedFd,
    mounts: OwnedFd,
    dir: PathBuf,
    /// `None` when nothing is recorded.
    wire: Option<Arc<Wire>>,
    world: Arc<World>,
    /// Readable when the threads shall end.
    stop: Arc<OwnedFd>,
    threads: Vec<JoinHandle<()>>,
}

impl Internet {
    /// Builds the internet and starts its servers.
    ///
    /// # Errors
    /// When the caller is not root, a tool is missing or the kernel refuses a namespace.
    pub fn new() -> Result<Self> {
        Self::make(true)
    }

    /// As [`new`](Self::new), without the record of packets, whose keeping costs as much as
    /// sending them: for measurements.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn unrecorded() -> Result<Self> {
        Self::make(false)
    }

    fn make(recorded: bool) -> Result<Self> {
        static SWEEP: Once = Once::new();
        static COUNT: AtomicU32 = AtomicU32::new(0);

        ensure!(
            geteuid().is_root(),
            "the private internet needs root to make network namespaces: run the tests as root"
        );
        SWEEP.call_once(sweep);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("{PREFIX}-{}-{count}", process::id()));
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let built = Self::build(&dir, recorded);
        if built.is_err() {
            // The first error says more than one about the directory could.
            let _ = fs::remove_dir_all(&dir);
        }
        built
    }

    fn build(dir: &Path, recorded: bool) -> Result<Self> {
        // Open to every user: fenced commands run as another one.
        fs::set_permissions(dir, Permissions::from_mode(0o755))?;
        fs::create_dir(dir.join("home"))?;
        fs::set_permissions(dir.join("home"), Permissions::from_mode(0o1777))?;

        let authority = Authority::new()?;
        fs::write(dir.join("ca.pem"), &authority.pem)?;
        let world = Arc::new(World {
            zone: Zone::new(),
            silent: AtomicBool::new(false),
            roots: Mutex::default(),
            authority,
        });

        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let job = match systemd::is_here() {
            true => Named::of_first_process(format!("{name}-job"))?,
            false => Named::new(format!("{name}-job"))?,
        };
        let net = Named::new(format!("{name}-net"))?;
        // The recorder counts from the first frame, so it opens before there is a cable.
        let wire = match recorded {
            true => Some(Arc::new(net.inside(Wire::open)?)),
            false => None,
        };
        connect(&job.name, &net.name)?;
        // As distributions do: any user may ask for an echo by ICMP.
        job.inside(|| {
            fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")
                .context("cannot open ICMP echo to every user")
        })?;
        let servers = net.inside(Servers::open)?;
        let mounts = mounts(dir)?;
        let (job, net) = (job.fd()?, net.fd()?);

        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let mut threads = Vec::new();
        if let Some(wire) = wire.clone() {
            let stop = Arc::clone(&stop);
            let thread = thread::Builder::new().name("recorder".to_owned());
            threads.push(thread.spawn(move || wire.record(&stop))?);
        }
        let serving = (Arc::clone(&world), Arc::clone(&stop));
        let thread = thread::Builder::new().name("servers".to_owned());
        threads.push(thread.spawn(move || servers.serve(&serving.1, &serving.0))?);
        Ok(Self {
            job,
            net,
            mounts,
            dir: dir.to_owned(),
            wire,
            world,
            stop,
            threads,
        })
    }

    /// A command that runs on the job side.
    ///
    /// The process that is spawned becomes the program itself, so its id, signals and exit code
    /// are the program's (127 or 126 when there is no such program). It resolves names with the
    /// internet's DNS server alone, trusts its certificate authority, has an environment of its
    /// own with none of the caller's variables, and runs in [`home`](Self::home). Standard input
    /// is empty unless the caller sets it.
    pub fn command(&self, program: &str) -> Command {
        self.command_in(&self.job, program)
    }

    /// A command that runs on the net side, as another server there; else as
    /// [`command`](Self::command).
    pub fn net_command(&self, program: &str) -> Command {
        self.command_in(&self.net, program)
    }

    /// The network namespace of the job side, as a file.
    pub(crate) fn job_side(&self) -> String {
        namespace(&self.job)
    }

    fn command_in(&self, net: &OwnedFd, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", namespace(net)))
            .arg(format!("--mount={}", namespace(&self.mounts)))
            .arg(format!("--wdns={}", self.home().display()))
            // Signals that whoever runs the tests ignores (nohup) are not ignored in them.
            .args(["--", "env", "--default-signal"])
            .arg(program)
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", self.home())
            .env("LANG", "C.UTF-8")
            .envs(
                CA_VARIABLES
                    .iter()
                    .map(|variable| (variable, self.dir.join("ca.pem"))),
            )
            .stdin(Stdio::null());
        command
    }

    /// A directory that every user can read and root can write; it ends with the internet.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The home and working directory of commands, which every user can write.
    #[must_use]
    pub fn home(&self) -> PathBuf {
        self.dir.join("home")
    }

    /// Adds a record to the zone of [`addresses::DNS`](crate::addresses::DNS). An owner that
    /// begins with `*.` is a wildcard.
    pub fn add_record(&self, owner: &str, data: Data) {
        self.world.zone.add(owner, data);
    }

    /// Lets the DNS servers take questions and not answer them, or answer again.
    pub fn silence_dns(&self, silent: bool) {
        self.world.silent.store(silent, Ordering::Relaxed);
    }

    /// Lets the web servers answer for `name` with the files below `root`.
    pub fn serve_dir(&self, name: &str, root: impl Into<PathBuf>) {
        let mut roots = self.world.roots.lock().expect("a web server panicked");
        roots.insert(name.to_ascii_lowercase(), root.into());
    }

    /// The present moment: all packets sent before the call are before it.
    ///
    /// # Panics
    /// As [`since`](Self::since).
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.wire().mark()
    }

    /// Every IPv4 and IPv6 packet that the job side sent after `mark` and before this call, but
    /// for what its kernel sends of its own accord (neighbour and router discovery, group
    /// membership).
    ///
    /// # Panics
    /// When the record is not complete by the kernel's count of frames, or there is none
    /// ([`unrecorded`](Self::unrecorded)).
    #[must_use]
    pub fn since(&self, mark: Mark) -> Arrivals {
        self.wire().since(mark)
    }

    /// As [`since`](Self::since), without the rest of TCP connections that were opened before
    /// `mark`, which the kernel ends in its own time.
    ///
    /// # Panics
    /// As [`since`](Self::since).
    #[must_use]
    pub fn attempts_since(&self, mark: Mark) -> Arrivals {
        self.wire().attempts_since(mark)
    }

    /// As [`since`](Self::since), from the beginning.
    ///
    /// # Panics
    /// As [`since`](Self::since).
    #[must_use]
    pub fn arrivals(&self) -> Arrivals {
        self.wire().since(Mark::START)
    }

    fn wire(&self) -> &Wire {
        self.wire
            .as_deref()
            .expect("an unrecorded internet knows nothing of arrivals")
    }

    /// Kills every process that is on one of the two sides and waits for its end. Not on the job
    /// side where that is the machine's own.
    fn end_processes(&self) -> Result<()> {
        let identity = |namespace: Metadata| (namespace.dev(), namespace.ino());
        let of = |fd: &OwnedFd| anyhow::Ok(identity(File::from(fd.try_clone()?).metadata()?));
        let mut ours = vec![of(&self.net)?];
        if !systemd::is_here() {
            ours.push(of(&self.job)?);
        }
        for entry in fs::read_dir("/proc")? {
            let Ok(pid) = entry?.file_name().to_string_lossy().parse::<i32>() else {
                continue;
            };
            let inside = || {
                fs::metadata(format!("/proc/{pid}/ns/net"))
                    .is_ok_and(|theirs| ours.contains(&identity(theirs)))
            };
            let (Some(id), true) = (Pid::from_raw(pid), inside()) else {
                continue;
            };
            let Ok(pidfd) = pidfd_open(id, PidfdFlags::empty()) else {
                continue;
            };
            // Asked again: only now can the id not be given to another process.
            if inside() && pidfd_send_signal(&pidfd, Signal::KILL).is_ok() {
                wait(&pidfd, Duration::from_secs(5))?;
            }
        }
        Ok(())
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        let ended = self.end_processes();
        let stopped = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        for thread in self.threads.drain(..) {
            if thread.join().is_err() && !thread::panicking() {
                panic!("a thread of the private internet panicked");
            }
        }
        let removed = fs::remove_dir_all(&self.dir);
        if !thread::panicking() {
            ended.expect("cannot end the processes of the private internet");
            stopped.expect("cannot stop the threads of the private internet");
            removed.expect("cannot remove the directory of the private internet");
        }
    }
}

/// A namespace that this process has open, as a file.
fn namespace(fd: &OwnedFd) -> String {
    format!("/proc/{}/fd/{}", process::id(), fd.as_raw_fd())
}

/// A network namespace with a name, by which `ip` finds it while it is being set up.
struct Named {
    name: String,
}

impl Named {
    fn new(name: String) -> Result<Self> {
        ip(&["netns", "add", &name], "")?;
        Ok(Self { name })
    }

    /// Gives the namespace of the machine's first process a name.
    fn of_first_process(name: String) -> Result<Self> {
        ip(&["netns", "attach", &name, "1"], "")?;
        Ok(Self { name })
    }

    fn fd(&self) -> Result<OwnedFd> {
        let path = Path::new("/run/netns").join(&self.name);
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(file.into())
    }

    /// Runs `work` in a thread inside the namespace. Sockets that it opens stay there.
    fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let fd = self.fd()?;
        let thread = move || {
            move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::Network))
                .context("cannot enter a network namespace")?;
            work()
        };
        thread::scope(|scope| match scope.spawn(thread).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }
}

impl Drop for Named {
    /// Takes the name away. The namespace lives on while it is in use.
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "delete", &self.name], "") {
            eprintln!("cannot take away the name {}: {error:#}", self.name);
        }
    }
}

/// Joins the namespaces and gives the whole address space to the net side.
///
/// Neighbours are permanent and IPv6 has no link-local addresses, so nothing but what a process
/// sends is on the cable (a group membership report aside).
fn connect(job: &str, net: &str) -> Result<()> {
    let mac = |bytes: [u8; 6]| bytes.map(|byte| format!("{byte:02x}")).join(":");
    let mut job_mac = NET_MAC;
    job_mac[5] += 1;
    let (net_mac, job_mac) = (mac(NET_MAC), mac(job_mac));
    let ends = |addresses: [IpAddr; 2], device: &str| {
        let [v4, v6] = addresses;
        format!("address add {v4}/24 dev {device}\naddress add {v6}/64 dev {device} nodad\n")
    };
    let neighbours = |addresses: [IpAddr; 2], mac: &str, device: &str| {
        addresses
            .map(|ip| format!("neighbour add {ip} lladdr {mac} nud permanent dev {device}\n"))
            .concat()
    };
    let up = |device: &str| {
        format!("link set lo up\nlink set {device} addrgenmode none\nlink set {device} up\n")
    };

    let mut net_side = up(INTERFACE);
    net_side += &ends(GATEWAY.both(), INTERFACE);
    net_side += &neighbours(JOB.both(), &job_mac, INTERFACE);
    // In the main table, where the cable's own network is more specific.
    net_side += "route add local 0.0.0.0/0 dev lo table main\n";
    net_side += "route add local ::/0 dev lo table main\n";
    for ip in [ALLOWED, BLOCKED, DNS, OTHER_DNS]
        .iter()
        .flat_map(|host| host.both())
    {
        net_side += &match ip {
            IpAddr::V4(ip) => format!("address add {ip}/32 dev lo\n"),
            IpAddr::V6(ip) => format!("address add {ip}/128 dev lo nodad\n"),
        };
    }

    let mut job_side = up("eth0");
    job_side += &ends(JOB.both(), "eth0");
    job_side += &neighbours(GATEWAY.both(), &net_mac, "eth0");
    job_side += &GATEWAY
        .both()
        .map(|ip| format!("route add default via {ip}\n"))
        .concat();

    ip(
        &[
            "-n", job, "link", "add", "eth0", "address", &job_mac, "type", "veth", "peer", "name",
            INTERFACE, "address", &net_mac, "netns", net,
        ],
        "",
    )?;
    ip(&["-n", net, "-batch", "-"], &net_side)?;
    ip(&["-n", job, "-batch", "-"], &job_side)
}

/// Runs `ip` with `input`.
fn ip(arguments: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start ip: install iproute2")?;
    // Dropped at the end of the statement, which is the end of the input.
    child
        .stdin
        .take()
        .context("no pipe")?
        .write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("ip {}: {}\n{input}", arguments.join(" "), error.trim());
    }
    Ok(())
}

/// A mount namespace in which names are resolved by the private internet only.
fn mounts(dir: &Path) -> Result<OwnedFd> {
    let servers = DNS.both().map(|ip| format!("nameserver {ip}\n")).concat();
    let files = [
        ("resolv.conf", servers + "options timeout:2 attempts:1\n"),
        ("hosts", "127.0.0.1 localhost\n::1 localhost\n".to_owned()),
        (
            "nsswitch.conf",
            "passwd: files\ngroup: files\nhosts: files dns\n".to_owned(),
        ),
    ];
    let mut script = "set -e\n".to_owned();
    for (name, content) in files {
        fs::write(dir.join(name), content)?;
        script += &format!("mount --bind \"$1/{name}\" /etc/{name}\n");
    }
    // Waits until the namespace has been opened.
    script += "echo ready\nread -r _ || true\n";
    let mut child = Command::new("unshare")
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            &script,
            "sh",
        ])
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start unshare: install util-linux")?;
    let mut line = String::new();
    let stdout = child.stdout.take().context("no pipe")?;
    BufReader::new(stdout).read_line(&mut line)?;
    let namespace = File::open(format!("/proc/{}/ns/mnt", child.id()));
    drop(child.stdin.take());
    let output = child.wait_with_output()?;
    if line.trim() != "ready" || !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!(
            "cannot make a mount namespace with its own /etc: {}",
            error.trim()
        );
    }
    Ok(namespace.context("cannot open the mount namespace")?.into())
}

/// Removes what test processes that have been killed could not.
fn sweep() {
    let is_left_over = |name: &str| {
        let pid = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').nth(1));
        pid.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists())
    };
    let left_over = |dir: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let names = entries.filter(|entry| is_left_over(&entry.file_name().to_string_lossy()));
        names.map(|entry| entry.path()).collect()
    };
    for path in left_over(&std::env::temp_dir()) {
        // Another test process may be sweeping too.
        let _ = fs::remove_dir_all(path);
    }
    for path in left_over(Path::new("/run/netns")) {
        let _ = ip(
            &[
                "netns",
                "delete",
                &path.file_name().unwrap_or_default().to_string_lossy(),
            ],
            "",
        );
    }
}
