//! Ways around the fence that take more than one command, which is what `attack` tries.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use jobfence_tests::{Fence, Fenced, Internet, Output, binary, eventually, pins, run, slowness};

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

// Other processes.

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

/// Accepts a connection and, once told to, reads it to its end and says how long it was.
const READS_LATE: &str = "
import socket, sys
s = socket.create_server(('198.51.100.10', 7000))
print('up', flush=True)
connection, _ = s.accept()
sys.stdin.readline()
length = 0
while got := len(connection.recv(65536)): length += got
print(length, flush=True)
";

/// A socket outlives its process: the kernel goes on sending what is left in it, and then too the
/// fence has to be there.
#[test]
fn the_fence_stays_until_the_last_socket_is_gone() -> Result<()> {
    let internet = Internet::new()?;
    let mut server = internet.net_command("python3");
    server.args(["-c", READS_LATE]);
    let mut server = server
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = BufReader::new(server.stdout.take().context("no pipe")?).lines();
    assert_eq!(said.next().context("no server")??, "up");

    // Leaves more than the other end takes.
    let script = "
import socket
s = socket.create_connection(('198.51.100.10', 7000))
s.setblocking(False)
sent = 0
try:
    while True: sent += s.send(b'x' * 65536)
except BlockingIOError: print(sent)
";
    let policy = "
version: 1
jobs: {default: {allow: [{cidr: 198.51.100.10/32, ports: [7000]}]}}
";
    let fenced = Fence::new(&internet, policy)?.run(&["python3", "-c", script])?;
    fenced.assert_code(0);
    let id = fenced.events[0]["job"]["id"].as_str().context("no id")?;
    let pins = pins().join(id);
    assert!(
        fs::exists(&pins)?,
        "the fence was taken down with a socket left"
    );

    let orphaned = internet.mark();
    writeln!(server.stdin.take().context("no pipe")?, "read")?;
    let length = said.next().context("the server ended")??;
    assert_eq!(length, fenced.output.stdout.trim(), "something was lost");
    assert!(
        internet
            .since(orphaned)
            .iter()
            .any(|packet| packet.len > 99),
        "nothing was left to send: proves nothing"
    );
    server.wait()?;
    eventually("the fence goes with its last socket", || {
        !fs::exists(&pins).unwrap_or(true)
    });
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

/// Sends as many datagrams as it is told to addresses at random, for no more seconds than it is told.
const FLOOD: &str = "
import random, socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
count, end = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
while count > 0 and time.monotonic() < end:
    count -= 1
    try: s.sendto(b'x', (f'203.0.113.{random.randrange(256)}', random.randrange(1, 65536)))
    except PermissionError: pass
";

#[test]
fn a_flood_does_not_keep_the_job_from_being_killed() -> Result<()> {
    let internet = Internet::new()?;
    let policy = POLICY.replace("jobs:", "on_violation: kill\njobs:");
    let seconds = 20 * slowness();
    let script =
        format!("for i in 1 2 3; do python3 -c \"{FLOOD}\" 9999999 {seconds} & done; wait");
    let fenced = Fence::new(&internet, &policy)?.run(&["sh", "-c", &script])?;
    fenced.assert_code(110);
    assert!(
        fenced.output.elapsed < Duration::from_secs(10) * slowness(),
        "it ran for {:?}",
        fenced.output.elapsed
    );
    Ok(())
}

#[test]
fn a_flood_does_not_fill_the_log() -> Result<()> {
    let internet = Internet::new()?;
    let seconds = 25 * slowness();
    let script = format!("for i in 1 2; do python3 -c \"{FLOOD}\" 15000 {seconds} & done; wait");
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

/// A job whose log is in a folder of its user, and that log.
fn logging_to_its_user(internet: &Internet, script: &str) -> Result<(Vec<String>, String)> {
    let folder = internet.home().join("logs");
    fs::create_dir(&folder)?;
    chown(&folder, Some(65534), Some(65534))?;
    let log = folder.join("log.jsonl").to_string_lossy().into_owned();
    let fence = Fence::new(internet, POLICY)?;
    let (job, _) = fence.command(&["sh", "-c", script])?;
    let words = job.get_args().map(|word| word.to_string_lossy());
    let mut words: Vec<_> = words
        .map(|word| word.into_owned())
        .skip_while(|word| !word.ends_with("jobfence"))
        .collect();
    let at = words.iter().position(|word| word == "--log");
    words[at.context("no --log")? + 1].clone_from(&log);
    Ok((words, log))
}

#[test]
fn a_log_that_vanishes_in_a_flood_ends_the_job() -> Result<()> {
    let internet = Internet::new()?;
    let seconds = 25 * slowness();
    let script = format!(
        "for i in 1 2 3; do python3 -c \"{FLOOD}\" 9999999 {seconds} & done
         until [ $(wc -l < logs/log.jsonl) -gt 100 ]; do sleep 0.1; done
         mv logs/log.jsonl logs/gone; wait"
    );
    let (words, _) = logging_to_its_user(&internet, &script)?;
    let output = run(internet.command(&words[0]).args(&words[1..]), DEADLINE)?;
    assert!(internet.home().join("logs/gone").exists(), "{output:?}");
    assert_eq!(output.status.code(), Some(111), "{output:?}");
    assert!(output.stderr.contains("moved or replaced"), "{output:?}");
    assert!(
        output.elapsed < Duration::from_secs(20) * slowness(),
        "it ran for {:?}",
        output.elapsed
    );
    Ok(())
}

#[test]
fn a_log_that_the_job_replaces_fails_it() -> Result<()> {
    let internet = Internet::new()?;
    let replace = "rm logs/log.jsonl && echo '{}' > logs/log.jsonl";
    let (words, log) = logging_to_its_user(&internet, replace)?;
    let job = || {
        let mut command = internet.command(&words[0]);
        command.args(&words[1..]);
        command
    };
    let output = run(&mut job(), DEADLINE)?;
    assert_eq!(output.status.code(), Some(111), "{output:?}");
    assert!(output.stderr.contains("moved or replaced"), "{output:?}");

    // A file of the job's user in its place.
    fs::write(&log, "{}\n")?;
    chown(&log, Some(65534), Some(65534))?;
    let output = run(&mut job(), DEADLINE)?;
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
