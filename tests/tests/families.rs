//! Sockets that no job may have, what keeps them away, and that a fence which does not hold is
//! found before the command runs.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use jobfence_tests::{Fence, Fenced, Internet, Output, pins, run};
use serde_json::Value;

const POLICY: &str = "
version: 1
jobs:
  default:
    allow: [{host: allowed.test}]
";

const DEADLINE: Duration = Duration::from_secs(30);

fn unfenced(internet: &Internet, script: &str, arguments: &[&str]) -> Result<Output> {
    let mut command = internet.command("python3");
    run(command.args(["-c", script]).args(arguments), DEADLINE)
}

/// As root, which in the fence has the most of all jobs, and outside is refused nothing.
fn fenced(internet: &Internet, script: &str, arguments: &[&str]) -> Result<Fenced> {
    let fence = Fence::new(internet, POLICY)?.user("root");
    fence.run(&[&["python3", "-c", script], arguments].concat())
}

fn json(output: &Output) -> Result<Value> {
    serde_json::from_str(&output.stdout).with_context(|| format!("{output:#?}"))
}

/// The event of the job's start.
fn start(fenced: &Fenced) -> &Value {
    let start = fenced.events.first().expect("no event");
    assert_eq!(start["message"], "started", "{fenced:#?}");
    start
}

// The self-probe.

#[test]
fn the_self_probe_leaves_no_trace_and_sends_nothing() -> Result<()> {
    let everything = "
version: 1
jobs:
  default:
    allow: [{cidr: 0.0.0.0/0, ports: [1-65535]}, {cidr: '::/0', ports: [1-65535]}]
";
    let internet = Internet::new()?;
    for policy in [POLICY, everything] {
        for mode in ["enforce", "audit"] {
            let mark = internet.mark();
            let fence = Fence::new(&internet, policy)?.options(&["--mode", mode]);
            let fenced = fence.run(&["true"])?;
            fenced.assert_code(0);
            let told: Vec<_> = fenced
                .events
                .iter()
                .map(|event| &event["message"])
                .collect();
            assert_eq!(told, ["started", "finished"], "{fenced:#?}");
            let arrived = internet.attempts_since(mark);
            assert!(arrived.is_empty(), "the probe left the host: {arrived}");
        }
    }
    Ok(())
}

#[test]
fn the_start_says_which_layers_hold_the_job() -> Result<()> {
    let internet = Internet::new()?;
    let fenced = Fence::new(&internet, POLICY)?.run(&["true"])?;
    let layers = &start(&fenced)["layers"];
    let programs = layers["cgroup"].as_array().context("no programs")?;
    for program in PROGRAMS {
        assert!(programs.contains(&program.into()), "{program}: {layers:#}");
    }
    assert_eq!(layers["seccomp"], true);
    assert_eq!(layers["capabilities"], Value::Array(Vec::new()));
    assert!(layers["lsm"].is_boolean() && layers["landlock"].is_boolean());

    let as_root = Fence::new(&internet, POLICY)?.user("root").run(&["true"])?;
    let kept = start(&as_root)["layers"]["capabilities"].clone();
    let kept = kept.as_array().context("no capabilities")?;
    assert!(kept.contains(&"CAP_CHOWN".into()), "{kept:?}");
    assert!(!kept.contains(&"CAP_NET_RAW".into()), "{kept:?}");
    Ok(())
}

/// Every program of which the probe must notice that it is missing, and a word of what it says.
const PROGRAMS: [&str; 10] = [
    "egress",
    "sock_create",
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
];

/// Detaches one program of the next fence on this host, as soon as it is attached.
struct Saboteur {
    stop: AtomicBool,
    before: Vec<PathBuf>,
    program: &'static str,
}

impl Saboteur {
    fn new(program: &'static str) -> Self {
        Self {
            stop: AtomicBool::new(false),
            before: folders(),
            program,
        }
    }

    fn detach(&self, is_it: impl Fn(&Path) -> bool) {
        while !self.stop.load(Ordering::Relaxed) {
            let others = folders().into_iter();
            for folder in others.filter(|folder| !self.before.contains(folder) && is_it(folder)) {
                // A pinned link is detached when its last pin goes.
                if fs::remove_file(folder.join(self.program)).is_ok() {
                    return;
                }
            }
        }
    }
}

/// The folders with the links of each job.
fn folders() -> Vec<PathBuf> {
    let jobs = fs::read_dir(pins()).into_iter().flatten();
    jobs.flatten().map(|job| job.path()).collect()
}

#[test]
fn a_program_that_is_missing_is_found_before_the_command_runs() -> Result<()> {
    /// Taking the link away races with the probe, which comes some milliseconds later.
    const TRIES: usize = 20;

    let internet = Internet::new()?;
    for program in PROGRAMS {
        let ran = internet.home().join(format!("ran-without-{program}"));
        let ran_there = ran.to_string_lossy();
        let found = (0..TRIES).find_map(|_| {
            let saboteur = Saboteur::new(program);
            let (command, _) = Fence::new(&internet, POLICY)
                .ok()?
                .command(&["touch", &ran_there])
                .ok()?;
            let mut command = command;
            let child = command
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .ok()?;
            let pid = child.id().to_string();
            let output = thread::scope(|scope| {
                scope.spawn(|| {
                    saboteur.detach(|folder| {
                        // The job's id ends with the agent's process id.
                        folder.to_string_lossy().ends_with(&format!("-{pid}"))
                    });
                });
                let output = child.wait_with_output();
                saboteur.stop.store(true, Ordering::Relaxed);
                output
            });
            let output = output.ok()?;
            if output.status.code() == Some(111) {
                return Some(String::from_utf8_lossy(&output.stderr).into_owned());
            }
            // It came too late.
            let _ = fs::remove_file(&ran);
            None
        });
        let said = found.with_context(|| format!("never noticed that {program} was missing"))?;
        assert!(
            !ran.exists(),
            "without {program} the command ran all the same: {said}"
        );
        assert!(said.contains("the fence"), "{program}: {said}");
    }
    Ok(())
}

/// Has the kernel run a program that takes back every refusal of the cgroups below, on the cgroup
/// and for the attach type that its arguments name, until it is killed.
const OVERRULE: &str = r#"
import ctypes, os, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
cgroup, kind, attach = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
def insn(op, regs, imm): return struct.pack("<BBhi", op, regs, 0, imm)
# r1 = 0; bpf_set_retval(r1); r0 = 1; exit
code = insn(0xb7, 1, 0) + insn(0x85, 0, 187) + insn(0xb7, 0, 1) + insn(0x95, 0, 0)
buffer, licence = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
attributes = struct.pack("<IIQQIIQII16sII", kind, 4, ctypes.addressof(buffer),
    ctypes.addressof(licence), 0, 0, 0, 0, 0, b"overrule", 0, attach)
program = libc.syscall(BPF, 5, attributes, len(attributes))
assert program >= 0, os.strerror(ctypes.get_errno())
folder = os.open(cgroup, os.O_RDONLY)
attributes = struct.pack("<IIII", folder, program, attach, 2)
attached = libc.syscall(BPF, 8, attributes, len(attributes))
assert attached == 0, os.strerror(ctypes.get_errno())
print("attached", flush=True)
sys.stdin.read()
"#;

/// A cgroup below the test's own, removed on drop.
struct Cgroup(PathBuf);

impl Cgroup {
    fn make(name: &str) -> Result<Self> {
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let point = mounts.lines().find_map(|line| {
            line.contains(" - cgroup2 ")
                .then(|| line.split(' ').nth(4))?
        });
        let path = Path::new(point.context("no cgroup v2")?)
            .join(own.context("no cgroup v2")?)
            .join(format!("{name}-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The last reaper in it is about to end.
        for _ in 0..1000 {
            match fs::remove_dir(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    thread::sleep(Duration::from_millis(10));
                }
                _ => break,
            }
        }
    }
}

/// A helper outside the fence, ended on drop.
struct Outside(Child);

impl Outside {
    /// Starts it and waits for its first line.
    fn start(internet: &Internet, words: &[&str]) -> Result<Self> {
        let mut command = internet.command(words[0]);
        command
            .args(&words[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut outside = Self(command.spawn()?);
        let mut line = String::new();
        BufReader::new(outside.0.stdout.take().context("no pipe")?).read_line(&mut line)?;
        assert!(!line.is_empty(), "the helper failed: {words:?}");
        Ok(outside)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_program_above_that_overrules_a_refusal_is_found_before_the_command_runs() -> Result<()> {
    /// `BPF_PROG_TYPE_CGROUP_SOCK` and `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`.
    const SOCK: &str = "9";
    const SOCK_ADDR: &str = "18";

    let internet = Internet::new()?;
    for (kind, attach, what) in [
        (SOCK, "2", "make a raw IPv4 socket"),
        (SOCK_ADDR, "10", "connect to an IPv4 address"),
        (SOCK_ADDR, "11", "connect to an IPv6 address"),
        // Not 14, an unconnected send over IPv4: the program for packets refuses that as well, so
        // the fence holds without the other.
        (SOCK_ADDR, "15", "send a datagram to an IPv6 address"),
    ] {
        let above = Cgroup::make(&format!("overruled-{attach}"))?;
        let cgroup = above.0.to_string_lossy();
        let overruler = Outside::start(
            &internet,
            &["python3", "-c", OVERRULE, &cgroup, kind, attach],
        )?;
        let ran = internet.home().join(format!("ran-overruled-{attach}"));
        let (fenced, _) =
            Fence::new(&internet, POLICY)?.command(&["touch", &ran.to_string_lossy()])?;
        let words = std::iter::once(fenced.get_program()).chain(fenced.get_args());
        let mut command = internet.command("sh");
        command
            .args([
                "-c",
                r#"echo 0 >"$1/cgroup.procs" && shift && "$@""#,
                "sh",
                &cgroup,
            ])
            .args(words);
        let mark = internet.mark();
        let output = run(&mut command, DEADLINE)?;
        drop(overruler);
        assert_eq!(output.status.code(), Some(111), "{attach}: {output:#?}");
        assert!(!ran.exists(), "the command ran all the same: {output:#?}");
        assert!(output.stderr.contains(what), "{output:#?}");
        let arrived = internet.attempts_since(mark);
        assert!(arrived.is_empty(), "the probe left the host: {arrived}");
    }
    Ok(())
}

/// Takes one of its checks (the bits of the last argument) from all that a process, the first argument,
/// lets a job reach on `127.0.0.1`, as soon as there is anything; until it is killed.
const UNCHECK: &str = r#"
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
pid, check = int(sys.argv[1]), int(sys.argv[2])
TRIE, KEY, RANGE = 11, struct.pack("<I10x", 128) + b"\xff\xff\x7f\0\0\1", 6
key, value = ctypes.create_string_buffer(KEY, len(KEY)), ctypes.create_string_buffer(96)
def bpf(command, format, *words):
    attributes = struct.pack(format, *words)
    return libc.syscall(BPF, command, attributes, len(attributes))
def uncheck(map):
    # Look up, change, update.
    element = (map, ctypes.addressof(key), ctypes.addressof(value), 0)
    if bpf(1, "<I4xQQQ", *element) != 0: return
    ranges = bytearray(value.raw)
    for at in range(RANGE - 1, len(ranges), RANGE):
        if ranges[at] == check: ranges[at] = 0
    value.raw = bytes(ranges)
    bpf(2, "<I4xQQQ", *element)
print("ready", flush=True)
sys.stdin.readline()
folder = f"/proc/{pid}/fdinfo"
while True:
    try:
        for name in os.listdir(folder):
            with open(f"{folder}/{name}") as file: lines = file.read().split("\n")
            fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            if fields.get("map_type") == str(TRIE) and fields["key_size"] == str(len(KEY)):
                map = bpf(14, "<III", int(fields["map_id"]), 0, 0)
                if map >= 0:
                    uncheck(map)
                    os.close(map)
    except OSError:
        if not os.path.exists(folder): break
"#;

/// Writes a line to the standard input of `child`, and ends it.
fn go(child: &mut Child) -> Result<()> {
    writeln!(child.stdin.take().context("no pipe")?)?;
    Ok(())
}

#[test]
fn a_check_of_payload_that_is_missing_is_found_before_the_command_runs() -> Result<()> {
    /// Taking the check away races with the probe.
    const TRIES: usize = 20;

    let internet = Internet::new()?;
    for (check, what) in [
        ("1", "send what is no TLS"),
        ("2", "send a request without"),
    ] {
        let ran = internet.home().join(format!("ran-unchecked-{check}"));
        let mut found = None;
        for _ in 0..TRIES {
            // Waits in the shell, whose process it becomes, until the saboteur knows it.
            let (fenced, _) =
                Fence::new(&internet, POLICY)?.command(&["touch", &ran.to_string_lossy()])?;
            let words = std::iter::once(fenced.get_program()).chain(fenced.get_args());
            let mut command = internet.command("sh");
            let mut child = command
                .args(["-c", r#"read go && exec "$@""#, "sh"])
                .args(words)
                .stdin(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            let pid = child.id().to_string();
            let mut saboteur = Outside::start(&internet, &["python3", "-c", UNCHECK, &pid, check])?;
            go(&mut saboteur.0)?;
            go(&mut child)?;
            let output = child.wait_with_output()?;
            if output.status.code() == Some(111) {
                found = Some(String::from_utf8_lossy(&output.stderr).into_owned());
                break;
            }
            // It came too late.
            let _ = fs::remove_file(&ran);
        }
        let said = found.with_context(|| format!("never noticed that nothing asked to {what}"))?;
        assert!(!ran.exists(), "the command ran all the same: {said}");
        assert!(said.contains(what), "{said}");
        assert!(said.contains("it went through"), "{said}");
    }
    Ok(())
}

// Families.

/// Tries to make a socket of each of its arguments, `domain:type:protocol`, with `socket` and
/// with `socketpair`, and prints the error of each, 0 for none.
const SOCKETS: &str = r#"
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
tried = {}
for name in sys.argv[1:]:
    family, kind, protocol = map(int, name.split(":"))
    pair = (ctypes.c_int * 2)()
    one = libc.socket(family, kind, protocol)
    one = 0 if one >= 0 else ctypes.get_errno()
    two = libc.socketpair(family, kind, protocol, pair)
    two = 0 if two >= 0 else ctypes.get_errno()
    tried[name] = [one, two]
print(json.dumps(tried))
"#;

const EPERM: i64 = 1;
const EAFNOSUPPORT: i64 = 97;

#[test]
fn a_job_has_no_sockets_of_other_families() -> Result<()> {
    let internet = Internet::new()?;
    let others = (0..64).filter(|family| ![1, 2, 10, 16].contains(family));
    // Streams, datagrams, raw and sequenced packets.
    let mut names: Vec<String> = others
        .flat_map(|family| [1, 2, 3, 5].map(|kind| format!("{family}:{kind}:0")))
        .collect();
    names.extend(
        (0..32)
            .filter(|n| ![0, 15].contains(n))
            .map(|n| format!("16:3:{n}")),
    );
    // SOCK_PACKET, of which the kernel makes AF_PACKET; the flags do not hide it.
    names.extend(["2:10:0", "2:10:3", &format!("2:{}:3", 10 | 0o2_000_000)].map(str::to_owned));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();

    let without = json(&unfenced(&internet, SOCKETS, &names)?)?;
    // Known to every kernel that tests run on: packet and vsock sockets, and two of netlink.
    for name in ["17:3:0", "2:10:0", "40:1:0", "16:3:9", "16:3:4"] {
        assert_eq!(without[name][0], 0, "proves nothing about {name}");
    }
    let fenced = fenced(&internet, SOCKETS, &names)?;
    let within = json(&fenced.output)?;
    for name in names {
        let refused = serde_json::json!([EAFNOSUPPORT, EAFNOSUPPORT]);
        assert_eq!(within[name], refused, "{name}");
    }
    Ok(())
}

#[test]
fn a_job_has_no_ip_sockets_but_of_tcp_and_udp() -> Result<()> {
    /// Names and what they are; protocols of the IANA registry and of `linux/in.h`.
    const OTHERS: [(&str, &str); 20] = [
        ("2:3:1", "raw-socket"),
        ("2:3:255", "raw-socket"),
        ("10:3:58", "raw-socket"),
        ("10:3:17", "raw-socket"),
        // Ping sockets.
        ("2:2:1", "protocol"),
        ("10:2:58", "protocol"),
        // UDP-Lite.
        ("2:2:136", "protocol"),
        ("10:2:136", "protocol"),
        // SCTP, one to one and one to many.
        ("2:1:132", "protocol"),
        ("2:5:132", "protocol"),
        ("10:5:132", "protocol"),
        // DCCP.
        ("2:6:33", "protocol"),
        ("10:6:33", "protocol"),
        // L2TP.
        ("2:2:115", "protocol"),
        ("10:2:115", "protocol"),
        // SMC by its number as a protocol.
        ("2:1:256", "protocol"),
        ("10:1:256", "protocol"),
        ("2:1:257", "protocol"),
        ("2:1:262", "mptcp"),
        ("10:1:262", "mptcp"),
    ];
    let names = OTHERS.map(|(name, _)| name);
    let internet = Internet::new()?;
    let without = json(&unfenced(&internet, SOCKETS, &names)?)?;
    assert_eq!(without["2:3:1"][0], 0, "proves nothing");
    let fenced = fenced(&internet, SOCKETS, &names)?;
    let within = json(&fenced.output)?;
    for (name, reason) in OTHERS {
        assert_ne!(within[name][0], 0, "{name}");
        // What this kernel has at all is refused with the same error, and reported. A raw socket
        // the job has no capability for either, and the kernel asks that first.
        if without[name][0] == 0 {
            assert_eq!(within[name][0], EPERM, "{name}");
            if reason != "raw-socket" {
                assert!(!fenced.denials(reason).is_empty(), "{name}: {fenced:#?}");
            }
        }
    }
    Ok(())
}

/// What else makes packets, or sockets of another kind out of ordinary ones.
const OTHER_WAYS: &str = r#"
import ctypes, fcntl, json, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def error(attempt, *arguments):
    try:
        attempt(*arguments)
        return 0
    except OSError as error:
        return error.errno
null = os.open("/dev/null", os.O_RDWR)
tcp = socket.socket()
print(json.dumps({
    "TUNSETIFF": error(fcntl.ioctl, null, 0x400454ca, b"\0" * 40),
    "TCP_ULP": error(tcp.setsockopt, socket.IPPROTO_TCP, 31, b"smc\0"),
    "IP_OPTIONS": error(tcp.setsockopt, socket.IPPROTO_IP, 4, b""),
}))
"#;

#[test]
fn a_job_ties_no_descriptor_to_an_interface_and_turns_no_socket_into_another_kind() -> Result<()> {
    let internet = Internet::new()?;
    let without = json(&unfenced(&internet, OTHER_WAYS, &[])?)?;
    let within = json(&fenced(&internet, OTHER_WAYS, &[])?.output)?;
    for way in ["TUNSETIFF", "TCP_ULP", "IP_OPTIONS"] {
        assert_ne!(without[way], EPERM, "proves nothing about {way}");
        assert_eq!(within[way], EPERM, "{way}");
    }
    Ok(())
}

// Beside the network.

/// Listens on the abstract socket that its argument names.
const LISTEN: &str = r#"
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind("\0" + sys.argv[1])
s.listen()
print("listening", flush=True)
sys.stdin.read()
"#;

/// Connects to the abstract socket that its argument names, and to one of its own; then sends
/// signal 0 to its parent.
const CONNECT: &str = r#"
import json, os, socket, sys
def error(name):
    try:
        socket.socket(socket.AF_UNIX).connect("\0" + name)
        return 0
    except OSError as error:
        return error.errno
own = socket.socket(socket.AF_UNIX)
own.bind("\0own-" + sys.argv[1])
own.listen()
try:
    os.kill(os.getppid(), 0)
    signal = 0
except OSError as e:
    signal = e.errno
print(json.dumps({"outside": error(sys.argv[1]), "own": error("own-" + sys.argv[1]), "signal": signal}))
"#;

#[test]
fn abstract_sockets_and_processes_outside_are_out_of_reach() -> Result<()> {
    let internet = Internet::new()?;
    let name = format!("jobfence-test-{}", std::process::id());
    let _listener = Outside::start(&internet, &["python3", "-c", LISTEN, &name])?;
    let without = json(&unfenced(&internet, CONNECT, &[&name])?)?;
    assert_eq!(without["outside"], 0, "proves nothing");
    let fenced = fenced(&internet, CONNECT, &[&name])?;
    fenced.assert_code(0);
    let within = json(&fenced.output)?;
    assert_eq!(within["own"], 0, "a job's own sockets must work: {within}");
    if start(&fenced)["layers"]["landlock"] == true {
        assert_eq!(within["outside"], EPERM, "{within}");
        assert_eq!(within["signal"], EPERM, "its agent is the parent: {within}");
    } else {
        left_out("Landlock cannot scope abstract sockets here (Linux 6.12 can)");
        assert_eq!(
            within["outside"], 0,
            "the log must not claim less than there is"
        );
    }
    Ok(())
}

/// Things that builds do, each of which one layer or another could break by taking too much.
const ORDINARY: &str = r#"
set -e
cd "$(mktemp -d)"
mkdir a b && echo x >a/f && mv a/f b/f
python3 -c 'import socket; socket.socketpair(); socket.if_nameindex(); socket.getaddrinfo("localhost", 1)'
python3 -c 'import socket; socket.socket(16, 3, 0).bind((0, 0)); socket.socket(16, 3, 15)'
sleep 60 & kill $! && ! wait $!
timeout 5 true
unshare --user --map-root-user --mount sh -c 'mount -t tmpfs none a && touch a/f'
setsid sh -c 'kill -0 $$'
echo done
"#;

#[test]
fn what_builds_do_still_works() -> Result<()> {
    let internet = Internet::new()?;
    let without = run(internet.command("sh").args(["-c", ORDINARY]), DEADLINE)?;
    assert_eq!(without.stdout, "done\n", "proves nothing: {without:#?}");
    let fenced = Fence::new(&internet, POLICY)?.run(&["sh", "-c", ORDINARY])?;
    fenced.assert_code(0);
    assert_eq!(fenced.output.stdout, "done\n", "{fenced:#?}");
    Ok(())
}

// The program on `socket_create`.

/// Waits to be moved into the cgroup of a job, and tries a family then.
const INTRUDER: &str = r#"
import socket, sys, time
for _ in range(1000):
    if "/jobfence-" in open("/proc/self/cgroup").read(): break
    time.sleep(0.01)
for family in (40, 17, 38):
    try:
        socket.socket(family, 3 if family == 17 else 1 if family == 40 else 5)
        print(family, 0, flush=True)
    except OSError as error:
        print(family, error.errno, flush=True)
"#;

#[test]
fn what_joins_the_cgroup_from_elsewhere_has_no_other_families_either() -> Result<()> {
    let internet = Internet::new()?;
    let probe = Fence::new(&internet, POLICY)?.run(&["true"])?;
    if start(&probe)["layers"]["lsm"] != true {
        left_out("no BPF LSM here: the program on socket_create is not there to be tested");
        return Ok(());
    }
    let ready = internet.home().join("ready");
    let script = r#"grep -o 'jobfence-.*' /proc/self/cgroup >"$1" && sleep 5"#;
    let (mut command, log) = Fence::new(&internet, POLICY)?.command(&[
        "sh",
        "-c",
        script,
        "sh",
        &ready.to_string_lossy(),
    ])?;
    let mut job = command.stderr(Stdio::null()).spawn()?;
    jobfence_tests::eventually("the job runs", || {
        fs::read_to_string(&ready).is_ok_and(|text| text.ends_with('\n'))
    });
    let name = fs::read_to_string(&ready)?;
    let mut intruder = internet.command("python3");
    let mut intruder = intruder
        .args(["-c", INTRUDER])
        .stdout(Stdio::piped())
        .spawn()?;
    let found = run(
        internet
            .command("find")
            .args(["/sys/fs/cgroup", "-name", name.trim(), "-type", "d"]),
        DEADLINE,
    )?;
    let folder = found.stdout.lines().next().context("no such cgroup")?;
    fs::write(
        Path::new(folder).join("cgroup.procs"),
        intruder.id().to_string(),
    )?;
    let stdout = BufReader::new(intruder.stdout.take().context("no pipe")?);
    let lines: Vec<String> = stdout.lines().collect::<Result<_, _>>()?;
    assert_eq!(lines, ["40 1", "17 1", "38 1"]);
    intruder.wait()?;
    job.wait()?;
    let log = fs::read_to_string(log)?;
    assert_eq!(log.matches(r#""reason":"family""#).count(), 3, "{log}");
    Ok(())
}

/// Says, past the capture of a test's output, what was not tested.
fn left_out(what: &str) {
    let _ = writeln!(io::stderr(), "LEFT OUT: {what}");
}
