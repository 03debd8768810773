//! Ways around the fence that were found by attacking it. Each is shown to lead out without the
//! fence, where that can be shown, and not to in it.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use jobfence_tests::{
    Fence, Fenced, Internet, Output, addresses::BLOCKED, binary, eventually, run,
};

const POLICY: &str = "
version: 1
jobs:
  default:
    allow: [{host: allowed.test}]
";

const DEADLINE: Duration = Duration::from_secs(30);

/// Runs a Python script unfenced, as the user of the fenced one.
fn unfenced(internet: &Internet, script: &str, arguments: &[&str]) -> Result<Output> {
    let mut command = internet.command("setpriv");
    let user = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    command
        .args(user)
        .args(["python3", "-c", script])
        .args(arguments);
    run(&mut command, DEADLINE)
}

fn fenced(internet: &Internet, script: &str, arguments: &[&str]) -> Result<Fenced> {
    Fence::new(internet, POLICY)?.run(&[&["python3", "-c", script], arguments].concat())
}

/// A process outside every fence, ended on drop.
struct Outside(Child);

impl Outside {
    /// Starts it as `nobody` and waits for its first line.
    fn start(internet: &Internet, words: &[&str]) -> Result<(Self, String)> {
        let mut command = internet.command("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .args(words);
        let mut outside = Self(command.stdout(Stdio::piped()).spawn()?);
        let mut line = String::new();
        BufReader::new(outside.0.stdout.take().context("no pipe")?).read_line(&mut line)?;
        Ok((outside, line.trim().to_owned()))
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// The kernel side.

/// Two threads send datagrams on one socket, to a listener of their own and to where the policy
/// does not allow: the verdict on one must never be taken for the other's.
const RACE: &str = r#"
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
static int s;
static struct sockaddr_in inside;
static int rounds;
static void *mix(void *arg) {
    long cpu = (long)arg;
    unsigned r = cpu * 7919 + 1;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof set, &set);
    for (int i = 0; i < rounds; i++) {
        r = r * 1103515245 + 12345;
        if ((r >> 16) & 1) sendto(s, "x", 1, 0, (void *)&inside, sizeof inside);
        else send(s, "secret", 6, 0);
    }
    return 0;
}
int main(int argc, char **argv) {
    rounds = atoi(argv[1]);
    int listener = socket(AF_INET, SOCK_DGRAM, 0);
    socklen_t length = sizeof inside;
    inside.sin_family = AF_INET;
    inside.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    bind(listener, (void *)&inside, sizeof inside);
    getsockname(listener, (void *)&inside, &length);
    struct sockaddr_in blocked = {.sin_family = AF_INET, .sin_port = htons(9999)};
    inet_pton(AF_INET, "198.51.100.20", &blocked.sin_addr);
    s = socket(AF_INET, SOCK_DGRAM, 0);
    connect(s, (void *)&blocked, sizeof blocked);
    pthread_t threads[2];
    for (long i = 0; i < 2; i++) pthread_create(&threads[i], 0, mix, (void *)i);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], 0);
    return 0;
}
"#;

#[test]
fn two_threads_on_one_socket_cannot_mix_up_verdicts() -> Result<()> {
    let internet = Internet::new()?;
    let source = internet.dir().join("race.c");
    let program = internet.home().join("race");
    fs::write(&source, RACE)?;
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-pthread", "-o"])
        .arg(&program)
        .arg(&source);
    assert!(cc.status()?.success(), "cc");
    let program = program.to_string_lossy();

    let start = internet.mark();
    run(internet.command(&program).arg("1000"), DEADLINE)?;
    assert!(
        !internet.since(start).to(BLOCKED.v4).is_empty(),
        "proves nothing"
    );

    let start = internet.mark();
    let fenced = Fence::new(&internet, POLICY)?.run(&[&program, "500000"])?;
    let arrived = internet.since(start);
    assert!(arrived.is_empty(), "passed the fence: {arrived}");
    fenced.assert_code(110);
    assert!(!fenced.denials("no-rule").is_empty(), "{fenced:#?}");
    Ok(())
}

/// A packet to a loopback address can be sent out by a real interface.
#[test]
fn a_loopback_address_leads_nowhere_but_to_loopback() -> Result<()> {
    let internet = Internet::new()?;
    let script = "
import socket
device = next(name for _, name in socket.if_nameindex() if name != 'lo').encode()
for family, address in [(socket.AF_INET, '127.0.0.1'), (socket.AF_INET, '127.9.9.9'),
                        (socket.AF_INET6, '::1'), (socket.AF_INET6, '::ffff:127.0.0.1')]:
    for kind in [socket.SOCK_DGRAM, socket.SOCK_STREAM]:
        s = socket.socket(family, kind)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
        s.settimeout(0.2)
        try:
            if kind == socket.SOCK_DGRAM: s.sendto(b'secret', (address, 9999))
            else: s.connect((address, 9999))
        except OSError: pass
";
    let start = internet.mark();
    unfenced(&internet, script, &[])?;
    assert!(
        !internet.since(start).port(9999).is_empty(),
        "proves nothing"
    );

    let start = internet.mark();
    let fenced = fenced(&internet, script, &[])?;
    let arrived = internet.since(start);
    assert!(arrived.is_empty(), "passed the fence: {arrived}");
    fenced.assert_code(110);
    assert!(!fenced.denials("loopback").is_empty(), "{fenced:#?}");
    Ok(())
}

/// Receives datagrams on the loopback interface; says each, and its port first.
const UDP_LISTENER: &str = "
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
if sys.argv[2]: s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, sys.argv[2].encode())
s.bind(('127.0.0.1', int(sys.argv[1])))
print('up', flush=True)
s.settimeout(20)
s.recv(9)
open(sys.argv[3], 'w').write('got it')
";

/// Sends to a loopback port until told to stop.
const UDP_SENDER: &str = "
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect(('127.0.0.1', int(sys.argv[1])))
open(sys.argv[2], 'w').write('sending')
refused = 0
while refused < 20:
    try: s.send(b'secret')
    except PermissionError: refused += 1
    except ConnectionRefusedError: pass
    time.sleep(0.01)
";

#[test]
fn a_listener_that_comes_later_is_outside_all_the_same() -> Result<()> {
    let internet = Internet::new()?;
    for device in ["", "lo"] {
        let sending = internet.home().join(format!("sending{device}"));
        let received = internet.home().join(format!("received{device}"));
        let (sending, received) = (sending.to_string_lossy(), received.to_string_lossy());
        let fence = Fence::new(&internet, POLICY)?;
        let (mut job, _) = fence.command(&["python3", "-c", UDP_SENDER, "7003", &sending])?;
        let mut job = job.stderr(Stdio::null()).spawn()?;
        eventually("the job sends", || fs::exists(&*sending).is_ok_and(|is| is));
        let listener = ["python3", "-c", UDP_LISTENER, "7003", device, &received];
        let (_outside, up) = Outside::start(&internet, &listener)?;
        assert_eq!(up, "up");
        assert_eq!(job.wait()?.code(), Some(110), "device {device:?}");
        assert!(
            !fs::exists(&*received)?,
            "the listener outside received a datagram"
        );

        // Without the fence it arrives.
        let sender = format!("{UDP_SENDER}\n").replace("while refused < 20", "for _ in range(50)");
        unfenced(&internet, &sender, &["7003", &sending])?;
        eventually("the listener hears it", || {
            fs::exists(&*received).is_ok_and(|is| is)
        });
    }
    Ok(())
}

/// Whoever knocks at a job's listener gets no answer, and the job is not to blame.
#[test]
fn a_connection_from_outside_is_refused_and_no_violation() -> Result<()> {
    let internet = Internet::new()?;
    let script = "
import socket
s = socket.create_server(('0.0.0.0', 7010))
open('listening', 'w').write('x')
s.settimeout(3)
try: s.accept(); print('accepted')
except TimeoutError: print('nobody')
";
    let knock = "
import socket, sys
s = socket.socket(); s.settimeout(1)
try: s.connect(('192.0.2.2', 7010)); print('connected')
except TimeoutError: print('no answer')
";
    let listening = internet.home().join("listening");
    let (mut job, log) = Fence::new(&internet, POLICY)?.command(&["python3", "-c", script])?;
    let job = job.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    eventually("the job listens", || listening.exists());
    assert_eq!(unfenced(&internet, knock, &[])?.stdout, "no answer\n");
    let output = job.wait_with_output()?;
    assert_eq!(output.stdout, b"nobody\n");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(fs::read_to_string(log)?.contains("\"inbound\""));

    fs::remove_file(&listening)?;
    let (_outside, answer) = Outside::start(
        &internet,
        &[
            "python3",
            "-c",
            &script.replace(
                "open('listening', 'w').write('x')",
                "print('up', flush=True)",
            ),
        ],
    )?;
    assert_eq!(answer, "up");
    assert_eq!(unfenced(&internet, knock, &[])?.stdout, "connected\n");
    Ok(())
}

#[test]
fn multipath_tcp_is_refused_quietly() -> Result<()> {
    let internet = Internet::new()?;
    let script = "import socket; socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)";
    assert!(
        unfenced(&internet, script, &[])?.status.success(),
        "proves nothing"
    );
    let fenced = fenced(&internet, script, &[])?;
    fenced.assert_code(1);
    assert_eq!(fenced.denials("mptcp").len(), 1, "{fenced:#?}");
    Ok(())
}

// Other processes.

#[test]
fn a_process_of_the_same_user_outside_is_no_way_out() -> Result<()> {
    let internet = Internet::new()?;
    let (outside, up) = Outside::start(&internet, &["sh", "-c", "echo up; exec sleep 60"])?;
    assert_eq!(up, "up");
    let script = "
import ctypes, os, sys
pid = int(sys.argv[1])
for part in ['root', 'cwd', 'fd/0']:
    try: os.readlink(f'/proc/{pid}/{part}'); print(part)
    except PermissionError: pass
if ctypes.CDLL(None).ptrace(16, pid, 0, 0) == 0: print('ptrace')
";
    let pid = outside.0.id().to_string();
    let ways = unfenced(&internet, script, &[&pid])?.stdout;
    assert_eq!(ways, "root\ncwd\nfd/0\nptrace\n", "proves nothing");
    assert_eq!(fenced(&internet, script, &[&pid])?.output.stdout, "");
    Ok(())
}

/// Who asks the job's resolver from outside is refused, and fails no job.
#[test]
fn questions_of_others_are_not_the_jobs() -> Result<()> {
    let internet = Internet::new()?;
    let (mut job, log) = Fence::new(&internet, POLICY)?.command(&["sh", "-c", "read line"])?;
    let mut job = job.stdin(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    eventually("the job starts", || {
        fs::read_to_string(&log).is_ok_and(|log| log.contains("started"))
    });
    let script = "
import socket, struct
port = next(int(line.split()[1].split(':')[1], 16) for line in open('/proc/net/udp')
            if line.split()[1].startswith('0100007F:'))
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5)
for name in [b'blocked', b'allowed']:
    s.sendto(b'\\0\\1\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\7' + name + b'\\4test\\0\\0\\1\\0\\1', ('127.0.0.1', port))
    print(s.recv(512)[3] & 15)
";
    let start = internet.mark();
    assert_eq!(
        unfenced(&internet, script, &[])?.stdout,
        "5\n5\n",
        "REFUSED twice"
    );
    assert!(
        internet.since(start).is_empty(),
        "an upstream resolver was asked"
    );
    drop(job.stdin.take());
    assert_eq!(
        job.wait()?.code(),
        Some(1),
        "`read` at the end of its input"
    );
    assert!(!fs::read_to_string(log)?.contains("\"dns\""));
    Ok(())
}

// What the job is given.

#[test]
fn a_network_socket_as_a_stream_is_refused() -> Result<()> {
    let internet = Internet::new()?;
    let fence = Fence::new(&internet, POLICY)?;
    let (job, _) = fence.command(&["touch", "ran"])?;
    let words: Vec<_> = job
        .get_args()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    // The command of a private internet is `nsenter … PROGRAM …`; the socket has to be made inside.
    let inner = words
        .iter()
        .position(|word| word.ends_with("jobfence"))
        .context("no jobfence")?;
    let script = "
import os, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
os.dup2(s.fileno(), 1)
os.execv(sys.argv[1], sys.argv[1:])
";
    let mut command = internet.command("python3");
    let output = run(command.args(["-c", script]).args(&words[inner..]), DEADLINE)?;
    assert_eq!(output.status.code(), Some(111), "{output:?}");
    assert!(
        output
            .stderr
            .contains("standard output is a network socket"),
        "{output:?}"
    );
    assert!(!internet.home().join("ran").exists());
    Ok(())
}

#[test]
fn system_calls_that_lead_around_the_fence_are_refused() -> Result<()> {
    let internet = Internet::new()?;
    let script = "
import ctypes, errno, fcntl, socket, sys
for family in [38, 40]:
    try: socket.socket(family, socket.SOCK_STREAM if family == 40 else socket.SOCK_SEQPACKET); print(family)
    except OSError as error: print(errno.errorcode[error.errno])
try: fcntl.ioctl(0, 0x5412, b'x')
except OSError as error: print(errno.errorcode[error.errno])
libc = ctypes.CDLL(None, use_errno=True)
for call in [425, 321]:
    libc.syscall(call, 0, 0, 0); print(errno.errorcode[ctypes.get_errno()])
socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()
socket.socketpair()
print('done')
";
    let output = unfenced(&internet, script, &[])?.stdout;
    assert!(
        output.starts_with("38\n") || output.contains("40\n"),
        "proves nothing: {output}"
    );
    assert!(
        output.contains("ENOTTY") && output.contains("EFAULT"),
        "proves nothing: {output}"
    );
    let fenced = fenced(&internet, script, &[])?;
    assert_eq!(
        fenced.output.stdout,
        "EAFNOSUPPORT\nEAFNOSUPPORT\nEPERM\nEPERM\nEPERM\ndone\n"
    );
    Ok(())
}

#[test]
fn not_even_root_finds_the_fence_to_take_it_down() -> Result<()> {
    let internet = Internet::new()?;
    let script = "
import os
print(os.listdir('/sys/fs/bpf'))
for path in ['/proc/sys/kernel/core_pattern', '/proc/sysrq-trigger', '/sys/fs/cgroup/unified/cgroup.procs',
             '/sys/fs/cgroup/cgroup.procs']:
    try: os.close(os.open(path, os.O_WRONLY)); print(path)
    except OSError: pass
";
    let fence = Fence::new(&internet, POLICY)?.user("root");
    let fenced = fence.run(&["python3", "-c", script])?;
    assert_eq!(fenced.output.stdout, "[]\n", "{fenced:#?}");
    assert!(fs::exists("/sys/fs/bpf/jobfence")?, "proves nothing");
    Ok(())
}

/// A socket outlives its process: the kernel goes on sending what is left in it, and then too the
/// fence has to be there.
#[test]
fn the_fence_stays_until_the_last_socket_is_gone() -> Result<()> {
    let internet = Internet::new()?;
    let script = "
import socket
s = socket.create_connection(('198.51.100.10', 5432))
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
s.recv(99)
# The first segments of a connection are not paced.
for _ in range(12): s.send(b'x'); s.recv(1)
# SO_MAX_PACING_RATE, in bytes a second.
s.setsockopt(socket.SOL_SOCKET, 47, 12)
s.send(b'y' * 100)
# What is not read would end the connection at once.
s.recv(100, socket.MSG_WAITALL)
s.send(b'z' * 100)
";
    let policy = "
version: 1
jobs: {default: {allow: [{cidr: 198.51.100.10/32, ports: [5432]}]}}
";
    let fenced = Fence::new(&internet, policy)?.run(&["python3", "-c", script])?;
    fenced.assert_code(0);
    let id = fenced.events[0]["job"]["id"].as_str().context("no id")?;
    let pins = format!("/sys/fs/bpf/jobfence/v1/{id}");
    let orphaned = internet.mark();
    assert!(
        fs::exists(&pins)?,
        "the fence was taken down with a socket left"
    );
    // It takes about ten seconds, for which `eventually` does not wait.
    let deadline = Instant::now() + DEADLINE;
    while fs::exists(&pins)? {
        assert!(Instant::now() < deadline, "the fence stays for ever");
        thread::sleep(Duration::from_millis(50));
    }
    assert!(
        !internet.since(orphaned).is_empty(),
        "nothing was sent later: proves nothing"
    );
    Ok(())
}

#[test]
fn a_connection_cannot_be_led_elsewhere() -> Result<()> {
    let internet = Internet::new()?;
    let script = "
import errno, socket
for family, level, option in [(socket.AF_INET, 0, 4), (socket.AF_INET6, 41, 57), (socket.AF_INET6, 41, 54),
                              (socket.AF_INET6, 41, 6)]:
    try: socket.socket(family).setsockopt(level, option, b''); print('set')
    except OSError as error: print(errno.errorcode[error.errno])
";
    let output = unfenced(&internet, script, &[])?.stdout;
    assert_ne!(output, "EPERM\n".repeat(4), "proves nothing");
    assert_eq!(
        fenced(&internet, script, &[])?.output.stdout,
        "EPERM\n".repeat(4)
    );
    Ok(())
}

#[test]
fn a_directory_as_a_stream_is_refused() -> Result<()> {
    let internet = Internet::new()?;
    let fence = Fence::new(&internet, POLICY)?.stdin(File::open("/")?);
    let fenced = fence.run(&["touch", "ran"])?;
    fenced.assert_code(111);
    assert!(
        fenced
            .output
            .stderr
            .contains("standard input is a directory"),
        "{fenced:#?}"
    );
    assert!(!internet.home().join("ran").exists());
    Ok(())
}

// The agent.

/// Sends datagrams to addresses at random for as many seconds as it is told.
const FLOOD: &str = "
import random, socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    try: s.sendto(b'x', (f'203.0.113.{random.randrange(256)}', random.randrange(1, 65536)))
    except PermissionError: pass
";

#[test]
fn a_flood_does_not_keep_the_job_from_being_killed() -> Result<()> {
    let internet = Internet::new()?;
    let policy = POLICY.replace("jobs:", "on_violation: kill\njobs:");
    let script = format!("for i in 1 2 3; do python3 -c \"{FLOOD}\" 20 & done; wait");
    let fenced = Fence::new(&internet, &policy)?.run(&["sh", "-c", &script])?;
    fenced.assert_code(110);
    assert!(
        fenced.output.elapsed < Duration::from_secs(10),
        "it ran for {:?}",
        fenced.output.elapsed
    );
    Ok(())
}

#[test]
fn a_flood_does_not_fill_the_log() -> Result<()> {
    let internet = Internet::new()?;
    let script = format!("for i in 1 2; do python3 -c \"{FLOOD}\" 4 & done; wait");
    let fenced = Fence::new(&internet, POLICY)?.run(&["sh", "-c", &script])?;
    fenced.assert_code(110);
    let counts: u64 = fenced
        .events
        .iter()
        .filter_map(|event| event["count"].as_u64())
        .sum();
    assert!(counts > 20_100, "only {counts} attempts: proves nothing");
    assert!(
        fenced.events.len() < 45_000,
        "{} lines",
        fenced.events.len()
    );
    Ok(())
}

#[test]
fn a_log_that_the_job_replaces_fails_it() -> Result<()> {
    let internet = Internet::new()?;
    let folder = internet.home().join("logs");
    fs::create_dir(&folder)?;
    chown(&folder, Some(65534), Some(65534))?;
    let log = folder.join("log.jsonl");
    let log = log.to_string_lossy();
    let replace = "rm logs/log.jsonl && echo '{}' > logs/log.jsonl";
    let fence = Fence::new(&internet, POLICY)?;
    let (job, _) = fence.command(&["sh", "-c", replace])?;
    let mut words: Vec<_> = job
        .get_args()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let inner = words
        .iter()
        .position(|word| word.ends_with("jobfence"))
        .context("no jobfence")?;
    let at = words
        .iter()
        .position(|word| word == "--log")
        .context("no --log")?;
    words[at + 1] = log.into_owned();
    let mut command = internet.command(&words[inner]);
    let output = run(command.args(&words[inner + 1..]), DEADLINE)?;
    assert_eq!(output.status.code(), Some(111), "{output:?}");
    assert!(output.stderr.contains("moved or replaced"), "{output:?}");

    // A file of the job's user in its place.
    fs::write(&words[at + 1], "{}\n")?;
    chown(&words[at + 1], Some(65534), Some(65534))?;
    let mut command = internet.command(&words[inner]);
    let output = run(command.args(&words[inner + 1..]), DEADLINE)?;
    assert_eq!(output.status.code(), Some(111), "{output:?}");
    assert!(
        output.stderr.contains("others than root can change it"),
        "{output:?}"
    );
    Ok(())
}

#[test]
fn a_policy_that_its_user_may_not_read_is_not_shown() -> Result<()> {
    let internet = Internet::new()?;
    let secret = internet.dir().join("secret");
    fs::write(&secret, "root:secret-of-root\n")?;
    // Readable by root's group, in which jobfence is and the job's user is not.
    File::open(&secret)?.set_permissions(fs::Permissions::from_mode(0o440))?;
    symlink(&secret, internet.home().join(".jobfence.yml"))?;
    let arguments = ["run", "--user", "nobody", "--", "touch", "ran"];
    let jobfence = binary()?;
    let output = run(
        internet
            .command(&jobfence.to_string_lossy())
            .args(arguments),
        DEADLINE,
    )?;
    assert_eq!(output.status.code(), Some(112), "{output:?}");
    assert!(!output.stderr.contains("secret-of-root"), "{output:?}");
    assert!(!internet.home().join("ran").exists());
    Ok(())
}
