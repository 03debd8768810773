//! What hosts do to `jobfence run`: those that cannot fence, policies that say nothing, users,
//! other jobs, and the sudden end of jobfence itself. Whatever happens, nothing runs unfenced.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use jobfence_tests::{
    Cgroup, Foreign, Internet, Output,
    addresses::{BLOCKED, GIT, PKG},
    binary, eventually, mounted, run,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(30);

/// What the default job of most tests may reach.
const POLICY: &str = "\
version: 1
jobs:
  default:
    allow:
      - host: allowed.test
";

/// A command that leaves a file behind, then sends packets that [`POLICY`] allows.
const PROBE: [&str; 3] = [
    "sh",
    "-c",
    "touch ran && exec curl -sS -m 10 https://allowed.test/",
];

/// Writes `policy` to a file that everybody can read.
fn policy_file(internet: &Internet, policy: impl AsRef<[u8]>) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = internet.dir().join(format!("host-{count}.yml"));
    fs::write(&path, policy).expect("a policy file");
    path.to_str().expect("a path in UTF-8").to_owned()
}

/// `jobfence run`, started by the words `through`, with `options`, for `command`.
fn jobfence(internet: &Internet, through: &[&str], options: &[&str], command: &[&str]) -> Command {
    let binary = binary().expect("a binary to test");
    let binary = binary.to_str().expect("a path in UTF-8");
    let words = [through, &[binary, "run"], options, &["--"], command].concat();
    let mut command = internet.command(words[0]);
    command.args(&words[1..]);
    command
}

/// [`jobfence`] to its end.
#[track_caller]
fn output(internet: &Internet, through: &[&str], options: &[&str], command: &[&str]) -> Output {
    let mut command = jobfence(internet, through, options, command);
    run(&mut command, DEADLINE).expect("it runs to its end")
}

fn ran(internet: &Internet) -> PathBuf {
    internet.home().join("ran")
}

/// Asserts that [`PROBE`] runs and is heard: what a refusal is compared with.
#[track_caller]
fn runs(internet: &Internet, through: &[&str], options: &[&str]) {
    let start = internet.mark();
    let output = output(internet, through, options, &PROBE);
    assert_eq!(output.status.code(), Some(0), "{output:#?}");
    assert!(ran(internet).exists(), "nothing ran: {output:#?}");
    assert!(!internet.since(start).is_empty(), "nothing was sent");
    fs::remove_file(ran(internet)).expect("the probe's file");
}

/// Asserts that nothing of [`PROBE`] runs, that the exit code is `code`, and that standard error
/// has each of `said`. Returns it.
#[track_caller]
fn refuses(
    internet: &Internet,
    through: &[&str],
    options: &[&str],
    code: i32,
    said: &[&str],
) -> String {
    let start = internet.mark();
    let output = output(internet, through, options, &PROBE);
    assert!(!ran(internet).exists(), "the command ran: {output:#?}");
    let arrived = internet.attempts_since(start);
    assert!(arrived.is_empty(), "sent: {arrived}{output:#?}");
    assert_eq!(output.status.code(), Some(code), "{output:#?}");
    assert_eq!(output.stdout, "", "{output:#?}");
    for part in said {
        assert!(
            output.stderr.contains(part),
            "does not say {part:?}: {output:#?}"
        );
    }
    output.stderr
}

/// The events in the log at `path`.
fn events(path: impl AsRef<Path>) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path)?;
    let events: Result<_, _> = text.lines().map(serde_json::from_str).collect();
    events.with_context(|| format!("not JSON lines: {text}"))
}

/// Kills and waits, so that no test leaves a process behind.
struct Running(Child);

impl Running {
    fn kill(&mut self) -> io::Result<()> {
        self.0.kill()?;
        self.0.wait().map(drop)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.kill();
    }
}

/// Whether there is no such process, or only its exit code is left.
fn is_gone(pid: &str) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.contains(") Z "),
        Err(_) => true,
    }
}

// Hosts that cannot fence.

#[test]
fn without_root_nothing_runs() -> Result<()> {
    let internet = Internet::new()?;
    let policy = policy_file(&internet, POLICY);
    // Where the other user can execute it.
    let copy = internet.dir().join("jobfence");
    fs::copy(binary()?, &copy)?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    let copy = copy.to_str().context("a path in UTF-8")?;
    let words = |prefix: &[&str]| {
        let options: &[&str] = &[copy, "run", "--policy", &policy, "--user", "nobody", "--"];
        let words = [prefix, options, &PROBE].concat();
        let mut command = internet.command(words[0]);
        command.args(&words[1..]);
        command
    };
    let nobody = [
        "setpriv",
        "--reuid=nobody",
        "--regid=nogroup",
        "--clear-groups",
    ];
    let start = internet.mark();
    let refused = run(&mut words(&nobody), DEADLINE)?;
    assert_eq!(refused.status.code(), Some(111), "{refused:#?}");
    assert!(!ran(&internet).exists(), "{refused:#?}");
    assert!(internet.attempts_since(start).is_empty(), "{refused:#?}");
    for part in ["root", "sudo"] {
        assert!(refused.stderr.contains(part), "{refused:#?}");
    }

    let control = run(&mut words(&["env"]), DEADLINE)?;
    assert_eq!(control.status.code(), Some(0), "{control:#?}");
    assert!(ran(&internet).exists(), "{control:#?}");
    Ok(())
}

#[test]
fn without_cgroup_v2_nothing_runs() -> Result<()> {
    let internet = Internet::new()?;
    let policy = policy_file(&internet, POLICY);
    let options = ["--policy", &policy, "--user", "nobody"];
    let without = mounted("umount -l -a -t cgroup2; exec \"$@\"", "sh");
    refuses(
        &internet,
        &without,
        &options,
        111,
        &["no cgroup v2", "mount -t cgroup2"],
    );
    runs(&internet, &mounted("exec \"$@\"", "sh"), &options);
    Ok(())
}

#[test]
fn without_a_capability_nothing_runs() -> Result<()> {
    let internet = Internet::new()?;
    let policy = policy_file(&internet, POLICY);
    let options = ["--policy", &policy, "--user", "nobody"];
    // CAP_SYS_ADMIN implies the others that bpf(2) asks for.
    for (without, said) in [
        ("-bpf,-sys_admin", "Operation not permitted"),
        ("-net_admin,-sys_admin", "CAP_NET_ADMIN"),
        ("-perfmon,-sys_admin", "CAP_PERFMON"),
        ("-sys_admin", "CAP_SYS_ADMIN"),
        ("-setuid", "CAP_SETUID"),
        ("-setgid", "CAP_SETGID"),
    ] {
        let set = format!("--bounding-set={without}");
        refuses(&internet, &["setpriv", &set], &options, 111, &[said]);
    }
    let harmless = ["setpriv", "--bounding-set=-sys_time"];
    runs(&internet, &harmless, &options);
    Ok(())
}

#[test]
fn without_a_bpf_file_system_nothing_runs() -> Result<()> {
    let internet = Internet::new()?;
    let policy = policy_file(&internet, POLICY);
    let options = ["--policy", &policy, "--user", "nobody"];
    let said = ["/sys/fs/bpf", "mount -t bpf bpf"];
    for without in [
        "umount -a -t bpf; exec setpriv --bounding-set=-sys_admin \"$@\"",
        "mount -t tmpfs none /sys/fs; exec \"$@\"",
    ] {
        refuses(&internet, &mounted(without, "sh"), &options, 111, &said);
    }
    let read_only = "mount -o remount,bind,ro /sys/fs/bpf; exec \"$@\"";
    let said = ["/sys/fs/bpf", "Read-only file system"];
    refuses(&internet, &mounted(read_only, "sh"), &options, 111, &said);
    // With the right to do so, it is mounted.
    let unmounted = mounted("umount -a -t bpf; exec \"$@\"", "sh");
    runs(&internet, &unmounted, &options);
    Ok(())
}

#[test]
fn below_a_program_that_tolerates_no_other_nothing_runs() -> Result<()> {
    let internet = Internet::new()?;
    let policy = policy_file(&internet, POLICY);
    let options = ["--policy", &policy, "--user", "nobody"];
    let cgroup = Cgroup::new()?;
    cgroup.attach(&Foreign::ALONE)?;
    let said = ["could not attach", "bpftool cgroup tree"];
    refuses(&internet, &cgroup.enter(), &options, 111, &said);
    assert!(cgroup.jobs().is_empty(), "left: {:?}", cgroup.jobs());

    let cgroup = Cgroup::new()?;
    cgroup.attach(&Foreign::BESIDE)?;
    runs(&internet, &cgroup.enter(), &options);
    assert!(cgroup.jobs().is_empty(), "left: {:?}", cgroup.jobs());
    Ok(())
}

#[test]
fn without_resolv_conf_nothing_runs() -> Result<()> {
    let internet = Internet::new()?;
    let policy = policy_file(&internet, POLICY);
    let options = ["--policy", &policy, "--user", "nobody"];
    let with = "mkdir \"$0/etc\"
        for file in passwd group hosts nsswitch.conf resolv.conf; do
            cp \"/etc/$file\" \"$0/etc/\"
        done
        mount --bind \"$0/etc\" /etc";
    let with = format!("cd /; rm -rf \"$0/etc\"; {with}; cd \"$0/home\"");
    let dir = internet.dir().to_str().context("a path in UTF-8")?;
    let said = ["/etc/resolv.conf", "No such file"];
    let without = format!("{with}; rm /etc/resolv.conf; exec \"$@\"");
    refuses(&internet, &mounted(&without, dir), &options, 111, &said);
    let with = format!("{with}; exec \"$@\"");
    runs(&internet, &mounted(&with, dir), &options);
    Ok(())
}

#[test]
fn a_log_that_cannot_be_written_safely_runs_nothing() -> Result<()> {
    let internet = Internet::new()?;
    let policy = policy_file(&internet, POLICY);
    let logs = internet.dir().join("logs");
    fs::create_dir_all(logs.join("folder"))?;
    fs::write(logs.join("target"), "as it was")?;
    symlink("target", logs.join("link"))?;
    symlink("nowhere", logs.join("dangling"))?;
    fs::hard_link(logs.join("target"), logs.join("second-name"))?;
    for name in ["link", "dangling", "second-name", "folder", "missing/log"] {
        let log = logs.join(name);
        let log = log.to_str().context("a path in UTF-8")?;
        let options = ["--policy", &policy, "--user", "nobody", "--log", log];
        refuses(
            &internet,
            &[],
            &options,
            111,
            &["cannot write the log", log],
        );
    }
    assert_eq!(fs::read_to_string(logs.join("target"))?, "as it was");
    assert!(!logs.join("nowhere").exists(), "a link was followed");

    let log = logs.join("log");
    let log = log.to_str().context("a path in UTF-8")?;
    let options = ["--policy", &policy, "--user", "nobody", "--log", log];
    runs(&internet, &[], &options);
    assert!(!events(log)?.is_empty());
    Ok(())
}

/// Tries one port after the other for ever.
const ENDLESS: &str = "
import socket, sys
port = 0
while True:
    port = port % 65535 + 1
    s = socket.socket()
    s.settimeout(1)
    try: s.connect((sys.argv[1], port))
    except OSError: pass
    s.close()
";

#[test]
fn a_log_that_fills_up_ends_the_job() -> Result<()> {
    let internet = Internet::new()?;
    let policy = policy_file(&internet, POLICY);
    let small = internet.dir().join("small");
    fs::create_dir(&small)?;
    let small = small.to_str().context("a path in UTF-8")?;
    let through = mounted("mount -t tmpfs -o size=64k none \"$0\"; exec \"$@\"", small);
    for log in [format!("{small}/log"), "/dev/full".to_owned()] {
        let options = ["--policy", &policy, "--user", "nobody", "--log", &log];
        let start = internet.mark();
        let command = ["python3", "-c", ENDLESS, &BLOCKED.v4.to_string()];
        let output = output(&internet, &through, &options, &command);
        assert_eq!(output.status.code(), Some(111), "{log}: {output:#?}");
        for part in ["the log", "No space left on device"] {
            assert!(output.stderr.contains(part), "{log}: {output:#?}");
        }
        let arrived = internet.attempts_since(start);
        assert!(arrived.is_empty(), "{log}: sent: {arrived}");
    }
    Ok(())
}

#[test]
fn an_unknown_user_runs_nothing() -> Result<()> {
    let internet = Internet::new()?;
    let policy = policy_file(&internet, POLICY);
    // 4294967295 is (uid_t)-1, which setresuid(2) takes for "leave it as it is".
    for user in ["nosuchuser", "", "4294967296", "4294967295"] {
        let user = format!("--user={user}");
        refuses(&internet, &[], &["--policy", &policy, &user], 111, &[]);
    }
    let options = ["--policy", &policy, "--user=nosuchuser"];
    let said = ["no user \"nosuchuser\"", "give --user a login name"];
    refuses(&internet, &[], &options, 111, &said);
    runs(&internet, &[], &["--policy", &policy, "--user", "nobody"]);
    // A number needs no entry in the user database.
    runs(&internet, &[], &["--policy", &policy, "--user", "12345"]);
    Ok(())
}

// Policies that say nothing.

#[test]
fn a_policy_with_a_mistake_runs_nothing_and_is_pointed_at() -> Result<()> {
    let internet = Internet::new()?;
    let job = |rest: &str| format!("version: 1\njobs:\n  default:\n{rest}").into_bytes();
    let rule = |rest: &str| job(&format!("    allow:\n      - host: allowed.test\n{rest}"));
    let mut invalid_utf8 = rule("");
    invalid_utf8.extend(b"  # \xff\n");
    let cases: [(Vec<u8>, &str, &str, &str); 10] = [
        (b"\n# nothing\n".to_vec(), "1:1", "empty", "version: 1"),
        (invalid_utf8, "6:5", "UTF-8", "UTF-8"),
        (
            job("    alow: []\n"),
            "4:5",
            "unknown key `alow`",
            "`allow`",
        ),
        (
            job("    allow: []\n    allow: []\n"),
            "5:5",
            "duplicate key `allow`",
            "line 4",
        ),
        (job("    extends: nobody\n"), "4:14", "nobody", "jobs"),
        (
            job("    extends: release\n  release:\n    extends: default\n"),
            "6:14",
            "circle",
            "third job",
        ),
        (
            rule("        ports: [70000]\n"),
            "6:17",
            "70000",
            "1 to 65535",
        ),
        (
            rule("        ports: [8010-8000]\n"),
            "6:17",
            "8010-8000",
            "8000-8010",
        ),
        (
            b"jobs: {default: {}}\n".to_vec(),
            "1:1",
            "version",
            "version: 1",
        ),
        (
            job("    allow: [{cidr: 198.51.100.0/33}]\n"),
            "4:20",
            "198.51.100.0/33",
            "198.51.100.0/24",
        ),
    ];
    for (text, place, message, hint) in cases {
        let policy = policy_file(&internet, &text);
        let place = format!("{policy}:{place}: ");
        let said = refuses(
            &internet,
            &[],
            &["--policy", &policy, "--user", "nobody"],
            112,
            &[&place, message],
        );
        let hinted = said.split_once("= hint: ").map_or("", |(_, hint)| hint);
        assert!(hinted.contains(hint), "hints at no {hint:?}: {said}");
        // The caret is under the place that the column names.
        let mut lines = said.lines().skip_while(|line| !line.contains("| "));
        let (shown, caret) = (lines.next(), lines.next());
        let column: usize = place
            .trim_end_matches(": ")
            .rsplit(':')
            .next()
            .context("no column")?
            .parse()?;
        let bar = shown
            .and_then(|line| line.find("| "))
            .context("no excerpt")?;
        assert_eq!(
            caret.and_then(|line| line.find('^')),
            Some(bar + 1 + column),
            "{said}"
        );
    }

    // Where there is no line to show.
    let mut large = b"version: 1\njobs: {default: {}}\n#".to_vec();
    large.resize((1 << 20) + 1, b'x');
    for (text, message) in [(Vec::new(), "empty"), (large, "1048576")] {
        let policy = policy_file(&internet, &text);
        let said = [&format!("{policy}:1:1: "), message, "= hint: "];
        refuses(&internet, &[], &["--policy", &policy], 112, &said);
    }
    let policy = policy_file(&internet, "version: 1\njobs: [\n");
    refuses(&internet, &[], &["--policy", &policy], 112, &[&policy, "^"]);

    let policy = policy_file(&internet, POLICY);
    runs(&internet, &[], &["--policy", &policy, "--user", "nobody"]);
    Ok(())
}

#[test]
fn a_policy_or_a_job_that_is_not_there_runs_nothing() -> Result<()> {
    let internet = Internet::new()?;
    let missing = "/nonexistent/policy.yml";
    let said = [missing, "No such file"];
    refuses(&internet, &[], &["--policy", missing], 112, &said);
    let folder = internet.dir().to_str().context("a path in UTF-8")?;
    let said = [folder, "it is not a file"];
    refuses(&internet, &[], &["--policy", folder], 112, &said);
    let said = [".jobfence.yml", ".github/jobfence.yml", "--policy"];
    refuses(&internet, &[], &[], 112, &said);
    let policy = policy_file(&internet, POLICY);
    let options = ["--policy", &policy, "--job", "release"];
    refuses(
        &internet,
        &[],
        &options,
        112,
        &["`release`", "default", "= hint: "],
    );

    // From where it is looked for.
    fs::write(internet.home().join(".jobfence.yml"), POLICY)?;
    runs(&internet, &[], &["--user", "nobody"]);
    fs::remove_file(internet.home().join(".jobfence.yml"))?;
    fs::create_dir(internet.home().join(".github"))?;
    fs::write(internet.home().join(".github/jobfence.yml"), POLICY)?;
    runs(&internet, &[], &["--user", "nobody"]);
    Ok(())
}

#[test]
fn a_usage_error_runs_nothing() -> Result<()> {
    let internet = Internet::new()?;
    let policy = policy_file(&internet, POLICY);
    for options in [
        vec!["--nonsense"],
        vec!["--policy", &policy, "--mode", "off"],
        vec!["--policy", &policy, "--policy", &policy],
        vec!["--policy"],
        vec!["--policy", &policy, "true"],
    ] {
        refuses(&internet, &[], &options, 2, &["error: "]);
    }
    let no_command = output(&internet, &[], &["--policy", &policy], &[]);
    assert_eq!(no_command.status.code(), Some(2), "{no_command:#?}");
    runs(&internet, &[], &["--policy", &policy, "--user", "nobody"]);
    Ok(())
}

// The sudden end.

/// Gives this internet a bpf file system of its own: jobfence ends what a killed one left behind
/// there, and other tests' are not to end this one's.
fn own_bpffs(internet: &Internet) -> Result<()> {
    let mut mount = internet.command("mount");
    let output = run(mount.args(["-t", "bpf", "bpf", "/sys/fs/bpf"]), DEADLINE)?;
    ensure!(output.status.success(), "{output:#?}");
    Ok(())
}

/// The links of jobs that are pinned on this internet's bpf file system.
fn pins(internet: &Internet) -> Vec<String> {
    let mut find = internet.command("find");
    let output = run(find.args(["/sys/fs/bpf", "-type", "f"]), DEADLINE).expect("find");
    let files = output.stdout.lines().map(str::to_owned);
    files.filter(|file| !file.ends_with(".debug")).collect()
}

/// Four processes, three of which go to the background in three ways, try whatever [`POLICY`]
/// does not allow, for ever or (with any second argument) once. Each writes `pid-N`, and a byte
/// to `tries-N` after every round; what gets through is noted in `leaks`.
const TRIERS: &str = r"
import os, signal, socket, sys, time
once = len(sys.argv) > 1
V4, V6 = '198.51.100.20', '2001:db8:2::20'
QUESTION = bytes.fromhex('000101000001000000000000') + b'\x07blocked\x04test\x00' + bytes([0, 1, 0, 1])
def attempt():
    for family, address in (socket.AF_INET, V4), (socket.AF_INET6, V6):
        for kind, port in (socket.SOCK_STREAM, 443), (socket.SOCK_DGRAM, 5000):
            with socket.socket(family, kind) as s:
                s.settimeout(1)
                try:
                    s.connect((address, port))
                    s.send(b'x')
                except OSError:
                    continue
                open('leaks', 'a').write(f'{address} {port}\n')
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try: s.sendto(QUESTION, ('198.51.100.53', 53))
        except OSError: pass
def work(number):
    for name in signal.SIGHUP, signal.SIGTERM, signal.SIGINT:
        signal.signal(name, signal.SIG_IGN)
    open(f'pid-{number}', 'w').write(str(os.getpid()))
    tries = open(f'tries-{number}', 'ab', buffering=0)
    while True:
        attempt()
        tries.write(b'.')
        if once: os._exit(0)
        time.sleep(0.002)
if os.fork() == 0:
    work(1)
if os.fork() == 0:
    os.setsid()
    work(2)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 3)
        work(3)
    os._exit(0)
work(0)
";

/// What the home folder says of [`TRIERS`].
struct Triers(PathBuf);

impl Triers {
    /// Proves that they send what they are meant to, unfenced.
    fn prove(internet: &Internet) -> Result<()> {
        let start = internet.mark();
        let triers = Self(internet.home());
        let mut command = internet.command("python3");
        run(command.args(["-c", TRIERS, "once"]), DEADLINE)?;
        eventually("each has tried", || {
            triers.tries().iter().all(|&tries| tries == 1)
        });
        let arrived = internet.attempts_since(start);
        for ip in BLOCKED.both() {
            assert!(!arrived.to(ip).port(443).is_empty(), "proves nothing");
            assert!(!arrived.to(ip).port(5000).is_empty(), "proves nothing");
        }
        assert!(
            !arrived.questions("blocked.test").is_empty(),
            "proves nothing"
        );
        for entry in fs::read_dir(internet.home())? {
            fs::remove_file(entry?.path())?;
        }
        Ok(())
    }

    /// How often each has tried.
    fn tries(&self) -> [u64; 4] {
        [0, 1, 2, 3].map(|number| {
            fs::metadata(self.0.join(format!("tries-{number}"))).map_or(0, |meta| meta.len())
        })
    }

    fn pids(&self) -> Result<Vec<String>> {
        let pid = |number| fs::read_to_string(self.0.join(format!("pid-{number}")));
        Ok((0..4).map(pid).collect::<Result<_, _>>()?)
    }

    fn leaks(&self) -> String {
        fs::read_to_string(self.0.join("leaks")).unwrap_or_default()
    }
}

/// Starts [`TRIERS`] fenced in `cgroup`, and waits until all are at it.
fn start_triers(internet: &Internet, cgroup: &Cgroup) -> Result<(Running, Triers)> {
    let policy = policy_file(internet, POLICY);
    let options = ["--policy", &policy, "--user", "nobody"];
    let command = ["python3", "-c", TRIERS];
    let mut command = jobfence(internet, &cgroup.enter(), &options, &command);
    let child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let running = Running(child);
    let triers = Triers(internet.home());
    eventually("all try", || {
        triers.tries().iter().all(|&tries| tries >= 20)
    });
    Ok((running, triers))
}

#[test]
fn a_killed_jobfence_takes_its_job_along_and_nothing_leaks() -> Result<()> {
    let internet = Internet::new()?;
    Triers::prove(&internet)?;
    own_bpffs(&internet)?;
    let cgroup = Cgroup::new()?;
    let start = internet.mark();
    let (mut jobfence, triers) = start_triers(&internet, &cgroup)?;
    let pids = triers.pids()?;
    assert!(!pins(&internet).is_empty(), "where are its links?");
    jobfence.kill()?;
    eventually("the job ends with jobfence", || {
        pids.iter().all(|pid| is_gone(pid))
    });
    eventually("its cgroup is removed", || cgroup.jobs().is_empty());
    eventually("its fence is unpinned", || pins(&internet).is_empty());
    let arrived = internet.attempts_since(start);
    assert!(arrived.is_empty(), "passed the fence: {arrived}");
    assert_eq!(triers.leaks(), "");
    Ok(())
}

/// The process that `jobfence run` leaves to end the job in `cgroup`.
fn reaper(cgroup: &Path) -> Result<Pid> {
    let cgroup = cgroup.to_str().context("a path in UTF-8")?;
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(words) = fs::read_to_string(entry.path().join("cmdline")) else {
            continue;
        };
        let mut words = words.split('\0').skip(1);
        if words.next() == Some("__reap") && words.next() == Some(cgroup) {
            let pid = entry.file_name().to_string_lossy().parse()?;
            return Pid::from_raw(pid).context("a process id");
        }
    }
    anyhow::bail!("no reaper for {cgroup}")
}

#[test]
fn what_outlives_jobfence_and_its_reaper_stays_fenced() -> Result<()> {
    let internet = Internet::new()?;
    Triers::prove(&internet)?;
    own_bpffs(&internet)?;
    let cgroup = Cgroup::new()?;
    let start = internet.mark();
    let (mut jobfence, triers) = start_triers(&internet, &cgroup)?;
    kill_process(reaper(&cgroup.job())?, Signal::KILL)?;
    jobfence.kill()?;
    let pids = triers.pids()?;
    // The kernel ends the first process with jobfence; nobody is left to end the others.
    eventually("the first process ends with jobfence", || is_gone(&pids[0]));
    let before = triers.tries();
    eventually("the others go on trying", || {
        (1..4).all(|number| triers.tries()[number] >= before[number] + 200)
    });
    let arrived = internet.attempts_since(start);
    assert!(arrived.is_empty(), "passed the fence: {arrived}");
    assert_eq!(triers.leaks(), "");

    // The next jobfence on the host ends them, and their fence after them.
    let policy = policy_file(&internet, POLICY);
    runs(&internet, &[], &["--policy", &policy, "--user", "nobody"]);
    eventually("the processes are gone", || {
        pids.iter().all(|pid| is_gone(pid))
    });
    eventually("the cgroup is gone", || cgroup.jobs().is_empty());
    eventually("the fence is gone", || pins(&internet).is_empty());
    let packets = BLOCKED
        .both()
        .map(|ip| internet.attempts_since(start).to(ip));
    assert!(
        packets.iter().all(|packets| packets.is_empty()),
        "{packets:?}"
    );
    assert_eq!(triers.leaks(), "");
    Ok(())
}

#[test]
fn whenever_in_its_start_jobfence_is_killed_nothing_leaks_and_nothing_stays() -> Result<()> {
    const MOMENTS: u32 = 25;
    let internet = Internet::new()?;
    own_bpffs(&internet)?;
    let cgroup = Cgroup::new()?;
    let policy = policy_file(&internet, POLICY);
    let options = ["--policy", &policy, "--user", "nobody"];
    let address = BLOCKED.v4.to_string();
    let start = internet.mark();
    let job = || {
        let command = ["python3", "-c", ENDLESS, &address];
        let mut command = jobfence(&internet, &cgroup.enter(), &options, &command);
        command.stderr(Stdio::null()).spawn().map(Running)
    };
    // How long it takes until the command is there: the job's first process, and its python3.
    let begun = Instant::now();
    let mut first = job()?;
    let procs = || {
        let jobs = cgroup.jobs();
        let procs = jobs
            .iter()
            .map(|job| fs::read_to_string(job.join("cgroup.procs")));
        procs.flatten().collect::<String>()
    };
    eventually("the job has begun", || !procs().is_empty());
    let step = begun.elapsed() * 5 / 4 / MOMENTS;
    first.kill()?;
    for moment in 0..MOMENTS {
        let mut jobfence = job()?;
        thread::sleep(step * moment);
        jobfence.kill()?;
    }
    eventually("what had begun is ended", || procs().is_empty());
    let arrived = internet.attempts_since(start);
    assert!(arrived.is_empty(), "passed the fence: {arrived}");
    // A fence around nothing may be left, until the next start.
    runs(&internet, &cgroup.enter(), &options);
    eventually("the fence is gone", || pins(&internet).is_empty());
    assert_eq!(procs(), "");

    // Unfenced, the same command is heard.
    let start = internet.mark();
    let mut command = internet.command("python3");
    let _endless = Running(command.args(["-c", ENDLESS, &address]).spawn()?);
    eventually("the command is heard without a fence", || {
        !internet.since(start).to(BLOCKED.v4).is_empty()
    });
    Ok(())
}

// Users.

/// The words that start what follows them where there are the users `root`, `nobody` and
/// `builder` (4242, of the groups 4243, 4244 and 4245).
fn with_builder(internet: &Internet) -> Result<Vec<String>> {
    let home = internet.home();
    let home = home.display();
    let nobody = "nobody:x:65534:65534::/nonexistent:/bin/false\n";
    let passwd = format!(
        "root:x:0:0:root:/root:/bin/sh\n{nobody}builder:x:4242:4243::{home}/builder:/bin/bash\n"
    );
    let group = "root:x:0:\nnogroup:x:65534:\nbuilder:x:4243:\n\
                 docs:x:4244:builder\nmedia:x:4245:nobody,builder\nother:x:4246:nobody\n";
    fs::write(internet.dir().join("passwd"), passwd)?;
    fs::write(internet.dir().join("group"), group)?;
    let script = "mount --bind \"$0/passwd\" /etc/passwd; mount --bind \"$0/group\" /etc/group
                  exec \"$@\"";
    let dir = internet.dir().to_str().context("a path in UTF-8")?;
    Ok(mounted(script, dir).map(str::to_owned).to_vec())
}

/// Who the job is, with `environment` around jobfence; and what standard error and the log say.
fn who(
    internet: &Internet,
    environment: &[&str],
    options: &[&str],
) -> Result<(String, String, Vec<Value>)> {
    let policy = policy_file(internet, POLICY);
    let log = format!("{policy}.jsonl");
    let users = with_builder(internet)?;
    let mut through: Vec<&str> = users.iter().map(String::as_str).collect();
    through.push("env");
    through.extend(environment);
    let options = [&["--policy", &policy, "--log", &log], options].concat();
    let script =
        "echo $(id -u) $(id -g) $(id -G | tr ' ' '\\n' | sort -n) $USER $LOGNAME $HOME $SHELL";
    let output = output(internet, &through, &options, &["sh", "-c", script]);
    ensure!(output.status.success(), "{output:#?}");
    Ok((output.stdout, output.stderr, events(log)?))
}

const BY_SUDO: [&str; 2] = ["SUDO_UID=4242", "SUDO_GID=4243"];

#[test]
fn the_job_is_the_one_who_called_sudo() -> Result<()> {
    let internet = Internet::new()?;
    let home = internet.home();
    let builder = format!(
        "4242 4243 4243 4244 4245 builder builder {}/builder /bin/bash\n",
        home.display()
    );
    let (job, stderr, events) = who(&internet, &BY_SUDO, &[])?;
    assert_eq!(job, builder);
    assert!(!stderr.contains("root"), "{stderr}");
    assert!(
        events.iter().all(|event| event["state"] == "enforcing"),
        "{events:#?}"
    );

    let (job, _, _) = who(&internet, &[], &["--user", "builder"])?;
    assert_eq!(job, builder);
    Ok(())
}

#[test]
fn an_explicit_user_beats_the_one_who_called_sudo() -> Result<()> {
    let internet = Internet::new()?;
    for user in ["nobody", "65534"] {
        let (job, _, _) = who(&internet, &BY_SUDO, &["--user", user])?;
        let nobody = "65534 65534 4245 4246 65534 nobody nobody /nonexistent /bin/false\n";
        assert_eq!(job, nobody);
    }
    Ok(())
}

#[test]
fn a_job_that_is_root_for_want_of_a_user_is_advisory_and_says_so() -> Result<()> {
    let internet = Internet::new()?;
    for environment in [&[][..], &["SUDO_UID=0", "SUDO_GID=0"]] {
        let (job, stderr, events) = who(&internet, environment, &[])?;
        assert!(job.starts_with("0 0 0 "), "{job}");
        for part in ["WARN", "root", "--user", "advisory"] {
            assert!(stderr.contains(part), "does not say {part:?}: {stderr}");
        }
        assert!(!events.is_empty());
        for event in &events {
            let state = event["state"].as_str().unwrap_or_default();
            assert!(state.starts_with("advisory"), "{event:#}");
        }
    }
    let (_, _, events) = who(&internet, &BY_SUDO, &["--user", "root"])?;
    let state = events[0]["state"].as_str().unwrap_or_default();
    assert!(
        state.starts_with("advisory"),
        "asked for, but root: {state}"
    );
    Ok(())
}

/// Runs `script` in Python as a fenced root; it must end well. Returns what it printed.
#[track_caller]
fn as_root(internet: &Internet, script: &str) -> String {
    let policy = policy_file(internet, POLICY);
    let options = ["--policy", &policy, "--user", "root"];
    let output = output(internet, &[], &options, &["python3", "-c", script]);
    assert_eq!(output.status.code(), Some(0), "{output:#?}");
    output.stdout
}

#[test]
fn a_job_that_is_root_has_the_documented_capabilities_and_no_more() -> Result<()> {
    let internet = Internet::new()?;
    // chown, dac_override, fowner, fsetid, setgid, setuid, sys_chroot,
    // audit_write, setfcap, by their numbers in linux/capability.h.
    let kept: u64 = [0, 1, 3, 4, 6, 7, 18, 29, 31]
        .iter()
        .map(|bit| 1 << bit)
        .sum();
    let status = as_root(&internet, "print(open('/proc/self/status').read())");
    for (set, bits) in [
        ("CapPrm", kept),
        ("CapEff", kept),
        ("CapBnd", kept),
        ("CapInh", 0),
        ("CapAmb", 0),
    ] {
        let line = format!("{set}:\t{bits:016x}\n");
        assert!(status.contains(&line), "not {line}: {status}");
    }
    assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
    Ok(())
}

/// Tries to leave the cgroup by every hierarchy. Prints the hierarchy's type and what happened.
const LEAVE: &str = "
import errno, os
for line in open('/proc/self/mountinfo'):
    point, kind = line.split(' ')[4], line.split(' - ')[1].split(' ')[0]
    try:
        if kind not in ('cgroup', 'cgroup2'): continue
        open(point + '/cgroup.procs', 'w').write(str(os.getpid()))
        print(kind, 'written')
    except OSError as error:
        print(kind, errno.errorcode[error.errno])
";

#[test]
fn a_job_that_is_root_can_leave_its_cgroup_by_no_hierarchy() -> Result<()> {
    let internet = Internet::new()?;
    let unfenced = run(internet.command("python3").args(["-c", LEAVE]), DEADLINE)?;
    assert!(
        unfenced.stdout.contains("cgroup2 written\n"),
        "proves nothing: {unfenced:#?}"
    );
    let fenced = as_root(&internet, LEAVE);
    let lines = |text: &str| text.lines().count();
    assert_eq!(lines(&fenced), lines(&unfenced.stdout), "{fenced}");
    for line in fenced.lines() {
        assert!(line.ends_with(" EROFS"), "{fenced}");
    }

    let undo = "
import subprocess
points = [line.split(' ')[4] for line in open('/proc/self/mountinfo') if ' - cgroup2 ' in line or ' - bpf ' in line]
for point in points:
    for words in ['mount', '-o', 'remount,bind,rw', point], ['umount', '-l', point], ['unshare', '--mount', 'true']:
        assert subprocess.run(words, stderr=subprocess.DEVNULL).returncode != 0, words
";
    as_root(&internet, &format!("{undo}\nassert points"));
    let again = as_root(&internet, &format!("{undo}\n{LEAVE}"));
    assert_eq!(again, fenced);
    Ok(())
}

#[test]
fn a_job_that_is_root_can_do_what_package_managers_do() -> Result<()> {
    let internet = Internet::new()?;
    let script = "
import os, socket, stat, subprocess, sys
os.mkdir('theirs', 0o700)
open('theirs/file', 'w').write('x')
os.chown('theirs/file', 1234, 1235)
os.chown('theirs', 1234, 1235)
# Another user's folder and file are written, and a mode survives that its owner alone could set.
open('theirs/file', 'a').write('y')
os.chmod('theirs/file', 0o6755)
assert stat.S_IMODE(os.stat('theirs/file').st_mode) == 0o6755
os.setxattr('theirs/file', 'security.capability', bytes.fromhex('0100000200040000000000000000000000000000'))
pid = os.fork()
if pid == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    try: open('theirs/file')
    except PermissionError: os._exit(7)
    os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
os.chroot('theirs')
assert os.path.exists('/file')
";
    as_root(&internet, script);
    Ok(())
}

#[test]
fn a_job_that_is_root_can_install_a_package() -> Result<()> {
    let internet = Internet::new()?;
    if !Path::new("/usr/bin/dpkg").exists() {
        println!("left out: there is no dpkg on this host");
        return Ok(());
    }
    let home = internet.home();
    fs::create_dir_all(home.join("package/DEBIAN"))?;
    fs::create_dir_all(home.join("package/opt"))?;
    fs::write(home.join("package/opt/tiny"), "installed\n")?;
    fs::write(
        home.join("package/DEBIAN/control"),
        "Package: tiny\nVersion: 1\nArchitecture: all\nMaintainer: a <a@example.com>\n\
         Description: tiny\n",
    )?;
    let script = "set -e
        dpkg-deb --root-owner-group --build package tiny.deb
        mkdir -p root/var/lib/dpkg/info root/var/lib/dpkg/updates
        touch root/var/lib/dpkg/status
        dpkg --root=\"$PWD/root\" --install tiny.deb
        dpkg --root=\"$PWD/root\" --status tiny
        cat root/opt/tiny";
    let policy = policy_file(&internet, POLICY);
    let options = ["--policy", &policy, "--user", "root"];
    let output = output(&internet, &[], &options, &["sh", "-c", script]);
    assert_eq!(output.status.code(), Some(0), "{output:#?}");
    assert!(
        output.stdout.contains("install ok installed"),
        "{output:#?}"
    );
    assert!(output.stdout.ends_with("installed\n"), "{output:#?}");
    Ok(())
}

// Two jobs at once.

/// Does what the job `argv[1]` does: everything that the policies of either of the two jobs
/// allow. Goes from step to step with the other one. Prints what worked.
const TOGETHER: &str = r"
import os, socket, sys, time
me, other = sys.argv[1], {'git': 'pkg', 'pkg': 'git'}[sys.argv[1]]
def meet(step):
    open(f'{me}-{step}', 'w').close()
    end = time.monotonic() + 20
    while not os.path.exists(f'{other}-{step}'):
        assert time.monotonic() < end, f'alone at {step}'
        time.sleep(0.001)
def reach(what, where):
    try: socket.create_connection(where, 5).close()
    except OSError: return
    print(what)
ADDRESSES = {
    'git': ('198.51.100.40', '2001:db8:2::40'),
    'pkg': ('198.51.100.60', '2001:db8:2::60'),
}
server = socket.create_server(('127.0.0.1', {'git': 7101, 'pkg': 7102}[me]))
meet('up')
# Each at the port that is its own, so that the wire tells who it was.
port = {'git': 8001, 'pkg': 8002}[me]
reach('own name', (f'{me}.test', port))
for address in ADDRESSES[me]: reach('own address', (address, port))
meet('known')
reach('other name', (f'{other}.test', port))
for address in ADDRESSES[other]: reach('other address', (address, port))
reach('other listener', ('127.0.0.1', {'git': 7102, 'pkg': 7101}[me]))
reach('own listener', server.getsockname())
meet('done')
if me == 'git': sys.exit()
# The other job has ended, and its fence with it.
end = time.monotonic() + 20
while not os.path.exists('git-ended'):
    assert time.monotonic() < end, 'the other job goes on'
    time.sleep(0.001)
reach('own name, later', ('pkg.test', port))
for address in ADDRESSES['git']: reach('other address, later', (address, port))
";

#[test]
fn two_jobs_at_once_have_nothing_of_each_other() -> Result<()> {
    let internet = Internet::new()?;
    let policy = |name: &str| {
        let allow = format!("{{host: {name}.test, ports: [8001, 8002], tls: off}}");
        policy_file(
            &internet,
            format!("version: 1\njobs: {{default: {{allow: [{allow}]}}}}\n"),
        )
    };
    let policies = [policy("git"), policy("pkg")];
    let start = |index: usize, name: &str| -> Result<Child> {
        let policy = &policies[index];
        let log = format!("{policy}.jsonl");
        let options = ["--policy", policy, "--user", "nobody", "--log", &log];
        let command = ["python3", "-c", TOGETHER, name];
        let mut command = jobfence(&internet, &[], &options, &command);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(command.spawn()?)
    };
    let mark = internet.mark();
    let git = start(0, "git")?;
    let pkg = start(1, "pkg")?;
    let git = git.wait_with_output()?;
    fs::write(internet.home().join("git-ended"), "")?;
    let pkg = pkg.wait_with_output()?;

    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let both = format!("git: {}\npkg: {}", text(&git.stderr), text(&pkg.stderr));
    assert_eq!(
        text(&git.stdout),
        "own name\nown address\nown address\nown listener\n",
        "{both}"
    );
    assert_eq!(
        text(&pkg.stdout),
        "own name\nown address\nown address\nown listener\nown name, later\n",
        "{both}"
    );
    assert_eq!(
        (git.status.code(), pkg.status.code()),
        (Some(110), Some(110)),
        "{both}"
    );

    // Not one packet of a job's to the other's server, each of which the other itself may send.
    let arrived = internet.since(mark);
    for (host, own, other) in [(GIT, 8001, 8002), (PKG, 8002, 8001)] {
        for ip in host.both() {
            let arrived = arrived.to(ip);
            assert!(!arrived.port(own).is_empty(), "proves nothing: {arrived}");
            let crossed = arrived.port(other);
            assert!(crossed.is_empty(), "cross-talk: {crossed}");
        }
    }

    // Each log has what its own job tried, and nothing else.
    let [git, pkg] = policies.map(|policy| events(format!("{policy}.jsonl")));
    let (git, pkg) = (git?, pkg?);
    for (events, other, port, own_port) in [(&git, &pkg, 8002, 8001), (&pkg, &git, 8001, 8002)] {
        let job = &events[0]["job"]["id"];
        assert!(
            events.iter().all(|event| event["job"]["id"] == *job),
            "{events:#?}"
        );
        assert!(
            other.iter().all(|event| event["job"]["id"] != *job),
            "{events:#?}"
        );
        let of_port = |port: u16| {
            events
                .iter()
                .filter(move |event| event["dst"]["port"] == port)
        };
        assert_eq!(of_port(port).count(), 0, "the other's: {events:#?}");
        assert!(
            of_port(own_port).any(|event| event["verdict"] == "deny"),
            "{events:#?}"
        );
        assert!(
            of_port(own_port).any(|event| event["verdict"] == "allow"),
            "{events:#?}"
        );
        let seq: Vec<_> = events.iter().map(|event| event["seq"].as_u64()).collect();
        let expected: Vec<_> = (0..events.len() as u64).map(Some).collect();
        assert_eq!(seq, expected);
    }
    let listener = git.iter().find(|event| event["dst"]["port"] == 7102);
    let listener = listener.context("the other job's listener is nowhere in the log")?;
    assert_eq!(listener["reason"], "loopback", "{listener:#}");
    Ok(())
}
