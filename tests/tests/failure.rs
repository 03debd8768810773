//! What goes wrong around the daemon, and what becomes of its jobs then: nothing opens, established
//! connections go on, new names fail soon, and nothing is missing in the log.

use std::{
    env, fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use jobfence_agent::job::cgroup;
use jobfence_tests::{
    Agent, Internet, Output, Shell,
    addresses::{ALLOWED, BLOCKED, DNS},
    binary, eventually, run,
};
use rustix::process::Signal;
use serde_json::Value;

/// How long anything that is asked of the daemon may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// The default job may reach `allowed.test` on the web ports, and a server by its address.
const POLICY: &str = "
version: 1
jobs:
  default:
    allow:
      - {host: allowed.test, ports: [80, 443]}
      - {host: v4only.test, ports: [80, 443]}
      - {cidr: 198.51.100.10/32, ports: [22]}
";

/// What clients here have in common: attempts, and questions for names.
const CLIENT: &str = "
import os, socket, struct, sys, time

def connect(address, port, limit=5):
    'open, refused, or what else became of it'
    try:
        with socket.socket() as s:
            s.settimeout(limit)
            s.connect((address, port))
            if port == 22: assert s.recv(100)
            return 'open'
    except PermissionError: return 'refused'
    except OSError as error: return repr(error)

def ask(name, limit=5):
    'the response code, or none'
    labels = b''.join(bytes([len(label)]) + label.encode() for label in name.split('.'))
    question = struct.pack('>6H', os.getpid() & 0xffff, 0x100, 1, 0, 0, 0) + labels
    try:
        with socket.socket(type=socket.SOCK_DGRAM) as s:
            s.settimeout(limit)
            s.connect((DNS, 53))
            s.send(question + struct.pack('>b2H', 0, 1, 1))
            return s.recv(512)[3] & 15
    except OSError: return None
";

/// Writes a client to the home of jobs; `ALLOWED`, `BLOCKED` and `DNS` are addresses in it.
fn client(internet: &Internet, name: &str, text: &str) -> Result<()> {
    let addresses = [("ALLOWED", ALLOWED), ("BLOCKED", BLOCKED), ("DNS", DNS)];
    let addresses = addresses.map(|(name, host)| format!("{name} = '{}'\n", host.v4));
    let text = [&addresses.concat(), CLIENT, text].concat();
    Ok(fs::write(internet.home().join(name), text)?)
}

/// A connection that stays, and says again and again that it still is one.
const TALKER: &str = "
s = socket.create_connection((ALLOWED, 22), 5)
while s.recv(1) != b'\\n': pass
while True:
    s.sendall(b'x')
    assert s.recv(1) == b'x'
    open('beat.new', 'w').close()
    os.rename('beat.new', 'beat')
    time.sleep(0.01)
";

/// Opens the connection of [`TALKER`].
fn talk(internet: &Internet, shell: &mut Shell) -> Result<()> {
    client(internet, "talker.py", TALKER)?;
    shell.run("python3 talker.py >talk 2>&1 &")?;
    let beat = internet.home().join("beat");
    let said = || fs::read_to_string(internet.home().join("talk")).unwrap_or_default();
    eventually("the connection works", || {
        beat.exists() || !said().is_empty()
    });
    ensure!(beat.exists(), "{}", said());
    Ok(())
}

/// Waits until the connection of [`TALKER`] says so once more.
#[track_caller]
fn goes_on(internet: &Internet, what: &str) {
    let beat = internet.home().join("beat");
    // The one that is being written may be from before.
    for _ in 0..2 {
        let _ = fs::remove_file(&beat);
        eventually(what, || beat.exists());
    }
}

/// Runs a line of Python with [`CLIENT`] before it, and returns what it printed.
fn python(internet: &Internet, shell: &mut Shell, line: &str) -> Result<String> {
    client(internet, "line.py", line)?;
    let (status, said) = shell.run("python3 line.py")?;
    ensure!(status == 0, "{line}: {said}");
    Ok(said.trim().to_owned())
}

/// One refused attempt, which arrives without a fence.
const ATTEMPT: &str = "print(connect(BLOCKED, 80))";

/// Proves that [`ATTEMPT`] arrives from a shell that is not in a job yet.
fn arrives(internet: &Internet, shell: &mut Shell) -> Result<()> {
    let mark = internet.mark();
    assert_eq!(python(internet, shell, ATTEMPT)?, "open");
    assert!(!internet.since(mark).to(BLOCKED.v4).is_empty());
    Ok(())
}

/// Runs `jobfence` on the job side.
fn jobfence(internet: &Internet, arguments: &[&str]) -> Result<Output> {
    let binary = binary()?;
    let mut command = internet.command(&binary.to_string_lossy());
    run(command.args(arguments), DEADLINE)
}

/// Asserts that the log at `path` is whole, by `jobfence report --verify`, and reads it.
fn whole_log(internet: &Internet, path: &Path) -> Result<Vec<Value>> {
    let path = path.to_string_lossy();
    let verified = jobfence(internet, &["report", "--verify", &path])?;
    ensure!(verified.status.success(), "{verified:?}");
    // It may be on a file system that is mounted for the job side only.
    let read = run(internet.command("cat").arg(&*path), DEADLINE)?;
    let events: Result<Vec<Value>, _> = read.stdout.lines().map(serde_json::from_str).collect();
    let events = events?;
    for (seq, event) in events.iter().enumerate() {
        ensure!(event["seq"] == seq, "a gap before {event:#}");
    }
    Ok(events)
}

/// How many attempts a log tells of.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    /// To an address, allowed.
    allowed: u64,
    /// To an address, refused.
    refused: u64,
    /// Refused, and counted by the kernel only.
    lost: u64,
    limited: u64,
    /// Of either kind, counted again after a crash.
    uncounted: u64,
}

impl Counts {
    fn of(events: &[Value]) -> Self {
        let mut counts = Self::default();
        for event in events {
            let count = event["count"].as_u64().unwrap_or(1);
            let word = |key: &str| event[key].as_str().unwrap_or_default();
            match (word("kind"), word("verdict"), word("reason")) {
                ("job", _, "uncounted") => counts.uncounted += count,
                ("loss", _, "audit-loss") => counts.lost += count,
                ("loss", ..) => counts.limited += count,
                ("job" | "dns", ..) => {}
                (_, "allow", _) => counts.allowed += count,
                _ => counts.refused += count,
            }
        }
        counts
    }
}

/// Names that a log has questions for.
fn names(events: &[Value]) -> Vec<&str> {
    let names = events
        .iter()
        .filter_map(|event| event["dns"]["qname"].as_str());
    names.collect()
}

/// Numbers that nobody can foresee, and that can be had again with their seed.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let seed = env::var("JOBFENCE_TEST_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| now.unwrap_or_default().as_secs());
        eprintln!("JOBFENCE_TEST_SEED={seed}");
        Self(seed)
    }

    /// A time below `limit`: splitmix64.
    fn below(&mut self, limit: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        limit.mul_f64(f64::from((word >> 40) as u32) / f64::from(1 << 24))
    }
}

/// Attempts without end: at most one a millisecond, every fiftieth of the refused ones to a
/// port that was not tried before, with a question for a new name; every tenth round an allowed one.
const LOAD: &str = "
import json
tag, refuses = sys.argv[1], sys.argv[2] == 'refused'
allowed = refused = round = 0
answered, wrong = [], []
while not os.path.exists('stop'):
    round += 1
    if refuses:
        port = 1000 + round // 50 if round % 50 == 0 else 80
        became = connect(BLOCKED, port)
        if became == 'refused': refused += 1
        else: wrong.append(became)
        name = f'n{round}.refused.test'
        if round % 50 == 9 and ask(name, 0.2) == 3: answered.append(name)
    elif round % 50 == 9: ask('allowed.test', 0.2)
    if round % 10 == 0:
        became = connect(ALLOWED, 22)
        if became == 'open': allowed += 1
        else: wrong.append(became)
    time.sleep(0.001)
json.dump([allowed, refused, answered, wrong], open(f'counts-{tag}.new', 'w'))
os.rename(f'counts-{tag}.new', f'counts-{tag}')
";

/// How often the daemon is killed, unless `JOBFENCE_TEST_KILLS` says so.
const KILLS: u32 = 10;

#[test]
fn a_daemon_killed_at_any_moment_loses_no_attempt_and_lets_none_through() -> Result<()> {
    let kills = match env::var("JOBFENCE_TEST_KILLS") {
        Ok(number) => number.parse().context("JOBFENCE_TEST_KILLS is no number")?,
        Err(_) => KILLS,
    };
    let mut random = Random::new();
    let internet = Internet::new()?;
    let mut agent = Agent::start(&internet, "")?;
    client(&internet, "load.py", LOAD)?;
    let mut jobs = Vec::new();
    for (tag, what) in [("a", "allowed"), ("b", "refused"), ("c", "refused")] {
        let mut shell = Shell::new(&internet)?;
        arrives(&internet, &mut shell)?;
        let id = agent.fence(&shell, tag, POLICY)?;
        shell.run(&format!("python3 load.py {tag} {what} >said-{tag} 2>&1 &"))?;
        jobs.push((tag, what, id, shell));
    }
    let mark = internet.mark();

    let stop = AtomicBool::new(false);
    let shorts = thread::scope(|scope| {
        let shorts = scope.spawn(|| short_jobs(&internet, agent_folder(&internet), &stop));
        let killed = (0..kills).try_for_each(|kill| {
            thread::sleep(random.below(Duration::from_millis(200)));
            agent.kill()?;
            thread::sleep(random.below(Duration::from_millis(20)));
            if kill % 3 == 0 {
                // While it takes up its jobs, or puts itself up.
                agent.launch()?;
                thread::sleep(random.below(Duration::from_millis(400)));
                agent.kill()?;
            }
            agent.restart()
        });
        stop.store(true, Ordering::Relaxed);
        let shorts = shorts.join().expect("no panic");
        killed.and(shorts)
    })?;
    fs::write(internet.home().join("stop"), "")?;

    for (tag, what, id, _shell) in &jobs {
        let told = internet.home().join(format!("counts-{tag}"));
        eventually("the client says what it did", || told.exists());
        let told: (u64, u64, Vec<String>, Vec<String>) =
            serde_json::from_str(&fs::read_to_string(told)?)?;
        let (allowed, refused, answered, wrong) = told;
        assert!(wrong.is_empty(), "{tag}: {wrong:?}");
        let (code, output) = agent.finish(id)?;
        let expected = if *what == "refused" { 110 } else { 0 };
        assert_eq!(code, Some(expected), "{tag}: {output:?}");
        let events = whole_log(&internet, &agent.log_path(id))?;
        let counts = Counts::of(&events);
        eprintln!("{tag}: {allowed} allowed, {refused} refused, {counts:?}");
        let targets = [ALLOWED.v4.to_string(), BLOCKED.v4.to_string()];
        let is_other = |event: &&Value| {
            let ip = event["dst"]["ip"].as_str();
            !["job", "dns"].map(Some).contains(&event["kind"].as_str())
                && !ip.is_some_and(|ip| targets.iter().any(|target| target == ip))
        };
        let others: Vec<_> = events.iter().filter(is_other).collect();
        assert!(others.is_empty(), "{tag}: {others:#?}");
        assert_eq!((counts.lost, counts.limited), (0, 0), "{tag}");
        assert_eq!(
            counts.allowed + counts.refused + counts.uncounted,
            allowed + refused,
            "{tag}: {counts:?}"
        );
        assert!(
            counts.allowed <= allowed && counts.refused <= refused,
            "{tag}: {allowed} {refused} {counts:?}"
        );
        let names = names(&events);
        for name in &answered {
            assert!(
                names.contains(&name.as_str()),
                "{name} was answered, and is not in the log"
            );
        }
    }
    let arrived = internet.since(mark);
    assert!(
        arrived.to(BLOCKED.v4).is_empty(),
        "{:?}",
        arrived.to(BLOCKED.v4)
    );
    let said = agent.said();
    for word in ["panicked", "more attempts than were reported"] {
        assert!(!said.contains(word), "{said}");
    }
    eprintln!("{kills} kills, {shorts} jobs started and ended meanwhile");
    Ok(())
}

/// The folder of the daemon on `internet`.
fn agent_folder(internet: &Internet) -> std::path::PathBuf {
    internet.dir().join("agent")
}

/// Starts and ends jobs, each with one refused attempt, until `stop`; the hooks are called again when
/// the daemon is killed while it does what they ask.
fn short_jobs(internet: &Internet, folder: std::path::PathBuf, stop: &AtomicBool) -> Result<u32> {
    let socket = folder.join("agent.sock");
    let socket = socket.to_string_lossy();
    let policy = folder.join("short.yml");
    fs::write(&policy, POLICY)?;
    let policy = policy.to_string_lossy();
    let name = internet.dir().file_name().context("a folder")?;
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let id = format!("{}-short-{count}", name.to_string_lossy());
        count += 1;
        let mut shell = Shell::new(internet)?;
        let pid = shell.pid().to_string();
        let hook = |arguments: &[&str]| {
            let arguments = [&["job", "--json", "--socket", &socket], arguments].concat();
            jobfence(internet, &arguments)
        };
        let started = hook(&["start", "--id", &id, "--pid", &pid, "--policy", &policy])?;
        let is_fenced = started.status.success();
        if is_fenced {
            let (status, said) = shell.run(&format!("curl -sS -m 5 http://{}/", BLOCKED.v4))?;
            ensure!(status == 7, "{id}: {status} {said}");
        }
        let deadline = Instant::now() + DEADLINE;
        loop {
            let output = hook(&["finish", &id])?;
            let answer: Option<Value> = serde_json::from_str(&output.stdout).ok();
            let answer = answer.unwrap_or_default();
            // Else there was no agent, or it was killed before it could answer.
            if let Some(exit) = answer["exit"].as_u64() {
                let right = if is_fenced {
                    exit == 110
                } else {
                    exit == 0 || exit == 111
                };
                ensure!(right, "{id}: {started:?} {output:?}");
                if is_fenced {
                    whole_log(internet, &folder.join("logs").join(format!("{id}.jsonl")))?;
                }
                break;
            }
            if !is_fenced && output.status.code() == Some(1) {
                break;
            }
            ensure!(Instant::now() < deadline, "{id}: {output:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(count)
}

#[test]
fn while_the_daemon_is_stopped_connections_go_on_and_nothing_opens() -> Result<()> {
    let internet = Internet::new()?;
    let agent = Agent::start(&internet, "")?;
    let mut shell = Shell::new(&internet)?;
    arrives(&internet, &mut shell)?;
    let id = agent.fence(&shell, "one", POLICY)?;
    talk(&internet, &mut shell)?;

    agent.signal(Signal::STOP)?;
    let mark = internet.mark();
    goes_on(&internet, "it goes on without an agent");
    assert_eq!(python(&internet, &mut shell, ATTEMPT)?, "refused");
    for name in ["allowed.test", "refused.test"] {
        let asked = format!("print(ask('{name}', 0.3))");
        assert_eq!(python(&internet, &mut shell, &asked)?, "None", "{name}");
    }
    let arrived = internet.since(mark);
    assert!(arrived.to(BLOCKED.v4).is_empty(), "{arrived:?}");
    assert!(arrived.port(53).is_empty(), "nobody is asked: {arrived:?}");

    agent.signal(Signal::CONT)?;
    assert_eq!(
        python(&internet, &mut shell, "print(ask('allowed.test'))")?,
        "0"
    );
    goes_on(&internet, "it goes on with the agent");
    let (code, output) = agent.finish(&id)?;
    assert_eq!(code, Some(110), "{output:?}");
    let events = whole_log(&internet, &agent.log_path(&id))?;
    let counts = Counts::of(&events);
    assert_eq!((counts.allowed, counts.refused), (1, 1), "{events:#?}");
    // The questions that waited were answered, to nobody.
    assert!(names(&events).contains(&"refused.test"), "{events:#?}");
    Ok(())
}

/// Mounts a file system of `kib` KiB at `folder`, for the job side only.
fn small_disk(internet: &Internet, folder: &Path, kib: u32) -> Result<()> {
    let mut mount = internet.command("mount");
    mount.args(["-t", "tmpfs", "-o", &format!("size={kib}k"), "tmpfs"]);
    let mounted = run(mount.arg(folder), DEADLINE)?;
    ensure!(mounted.status.success(), "{mounted:?}");
    Ok(())
}

/// Leaves no room below `folder`.
fn fill(internet: &Internet, folder: &Path) -> Result<()> {
    let of = format!("of={}", folder.join("fill").display());
    let filled = run(internet.command("dd").args(["if=/dev/zero", &of]), DEADLINE)?;
    ensure!(filled.stderr.contains("No space left"), "{filled:?}");
    Ok(())
}

/// Makes room again.
fn make_room(internet: &Internet, folder: &Path) -> Result<()> {
    let removed = run(internet.command("rm").arg(folder.join("fill")), DEADLINE)?;
    ensure!(removed.status.success(), "{removed:?}");
    Ok(())
}

#[test]
fn on_a_full_disk_what_cannot_be_logged_waits_and_nothing_leaves() -> Result<()> {
    let internet = Internet::new()?;
    let mut agent = Agent::start(&internet, "")?;
    agent.kill()?;
    let logs = agent.folder().join("logs");
    small_disk(&internet, &logs, 256)?;
    agent.restart()?;
    let mut shell = Shell::new(&internet)?;
    arrives(&internet, &mut shell)?;
    let id = agent.fence(&shell, "one", POLICY)?;
    talk(&internet, &mut shell)?;
    assert_eq!(
        python(&internet, &mut shell, "print(ask('allowed.test'))")?,
        "0"
    );

    fill(&internet, &logs)?;
    let mark = internet.mark();
    // More than what fits at the end of the file.
    let attempts = "print({connect(BLOCKED, port) for port in range(1000, 1100)})";
    assert_eq!(python(&internet, &mut shell, attempts)?, "{'refused'}");
    // 2: SERVFAIL. The first answer that cannot be noted shows that there is no room.
    for name in ["v4only.test", "allowed.test", "refused.test"] {
        let asked = format!("print(ask('{name}'))");
        assert_eq!(python(&internet, &mut shell, &asked)?, "2", "{name}");
    }
    goes_on(&internet, "what was open stays open");
    let other = Shell::new(&internet)?;
    assert!(
        agent.fence(&other, "two", POLICY).is_err(),
        "a job whose beginning cannot be logged does not begin"
    );
    let arrived = internet.since(mark);
    assert!(arrived.to(BLOCKED.v4).is_empty(), "{arrived:?}");
    // Another agent has no more room, and goes on as soon as there is some.
    agent.kill()?;
    agent.restart()?;
    assert_eq!(python(&internet, &mut shell, ATTEMPT)?, "refused");

    make_room(&internet, &logs)?;
    eventually("names are answered again", || {
        python(&internet, &mut shell, "print(ask('allowed.test'))").is_ok_and(|said| said == "0")
    });
    let (code, output) = agent.finish(&id)?;
    assert_eq!(code, Some(110), "{output:?}");
    let events = whole_log(&internet, &agent.log_path(&id))?;
    let counts = Counts::of(&events);
    let expected = Counts {
        allowed: 1,
        refused: 101,
        ..Counts::default()
    };
    assert_eq!(counts, expected, "{events:#?}");
    Ok(())
}

#[test]
fn a_name_that_cannot_be_kept_is_not_opened() -> Result<()> {
    let internet = Internet::new()?;
    let mut agent = Agent::start(&internet, "")?;
    agent.kill()?;
    let state = agent.folder().join("state");
    small_disk(&internet, &state, 256)?;
    agent.restart()?;
    let mut shell = Shell::new(&internet)?;
    let open = format!("print(connect('{}', 80, 0.5))", ALLOWED.v4);
    assert_eq!(
        python(&internet, &mut shell, &open)?,
        "open",
        "without the fence"
    );
    let id = agent.fence(&shell, "one", POLICY)?;
    fill(&internet, &state)?;
    let mark = internet.mark();
    assert_eq!(
        python(&internet, &mut shell, "print(ask('allowed.test'))")?,
        "2"
    );
    assert_eq!(python(&internet, &mut shell, &open)?, "refused");
    assert!(internet.since(mark).to(ALLOWED.v4).is_empty());
    make_room(&internet, &state)?;
    assert_eq!(
        python(&internet, &mut shell, "print(ask('allowed.test'))")?,
        "0"
    );
    assert_eq!(python(&internet, &mut shell, &open)?, "open");
    assert_eq!(agent.finish(&id)?.0, Some(110));
    whole_log(&internet, &agent.log_path(&id))?;
    Ok(())
}

/// Asserts that the job `id` of `shell` was ended by the daemon, and that `finish` says 111.
fn was_ended(agent: &Agent<'_>, shell: &mut Shell, id: &str) -> Result<()> {
    eventually("the job is ended", || shell.run("true").is_err());
    let (code, output) = agent.finish(id)?;
    assert_eq!(code, Some(111), "{output:?}\n{}", agent.said());
    Ok(())
}

/// Asserts that the job `id` of `shell` is as it was, and ends it.
fn is_unharmed(
    internet: &Internet,
    agent: &Agent<'_>,
    (shell, id): &mut (Shell, String),
) -> Result<()> {
    let mark = internet.mark();
    assert_eq!(python(internet, shell, "print(ask('allowed.test'))")?, "0");
    assert_eq!(
        python(internet, shell, "print(connect(ALLOWED, 22))")?,
        "open"
    );
    assert_eq!(python(internet, shell, ATTEMPT)?, "refused");
    assert!(internet.since(mark).to(BLOCKED.v4).is_empty());
    let (code, output) = agent.finish(id)?;
    assert_eq!(code, Some(110), "{output:?}\n{}", agent.said());
    whole_log(internet, &agent.log_path(id))?;
    Ok(())
}

#[test]
fn a_job_whose_log_is_taken_away_is_ended_and_the_others_go_on() -> Result<()> {
    let internet = Internet::new()?;
    let mut agent = Agent::start(&internet, "")?;
    let mut jobs = Vec::new();
    for name in ["moved", "deleted", "gone", "cut", "whole"] {
        let mut shell = Shell::new(&internet)?;
        arrives(&internet, &mut shell)?;
        let id = agent.fence(&shell, name, POLICY)?;
        jobs.push((shell, id));
    }
    let [mut moved, mut deleted, mut gone, mut cut, mut whole] =
        <[_; 5]>::try_from(jobs).map_err(|_| anyhow::anyhow!("five jobs"))?;
    let path = |job: &(Shell, String)| agent.log_path(&job.1);
    let (gone_path, cut_path) = (path(&gone), path(&cut));
    fs::rename(path(&moved), internet.dir().join("moved.jsonl"))?;
    fs::remove_file(path(&deleted))?;
    for (shell, id) in [&mut moved, &mut deleted] {
        was_ended(&agent, shell, id)?;
    }

    agent.kill()?;
    fs::remove_file(gone_path)?;
    // As it was but for one byte.
    let mut text = fs::read(&cut_path)?;
    text[20] ^= 1;
    fs::write(&cut_path, text)?;
    agent.restart()?;
    for (shell, id) in [&mut gone, &mut cut] {
        was_ended(&agent, shell, id)?;
    }
    is_unharmed(&internet, &agent, &mut whole)
}

#[test]
fn a_job_whose_state_is_damaged_is_ended_and_the_others_go_on() -> Result<()> {
    let internet = Internet::new()?;
    let mut agent = Agent::start(&internet, "")?;
    let mut jobs = Vec::new();
    let damages = [
        "cut", "garbage", "swapped", "without", "folder", "names", "whole",
    ];
    for name in damages {
        let mut shell = Shell::new(&internet)?;
        arrives(&internet, &mut shell)?;
        let id = agent.fence(&shell, name, POLICY)?;
        jobs.push((shell, id));
    }
    agent.kill()?;
    let mut ids = jobs.iter().map(|(_, id)| id);
    let state = agent.folder().join("state/jobs");
    let folders = damages.map(|_| state.join(ids.next().expect("as many")));
    let [cut, garbage, swapped, without, folder, names, whole] = &folders;
    let record = fs::read(cut.join("job.json"))?;
    fs::write(cut.join("job.json"), &record[..record.len() / 2])?;
    fs::write(garbage.join("job.json"), [0xff; 512])?;
    fs::copy(whole.join("job.json"), swapped.join("job.json"))?;
    fs::remove_file(without.join("job.json"))?;
    fs::remove_dir_all(folder)?;
    fs::write(names.join("names"), [0xff; 512])?;
    let mark = internet.mark();
    for (shell, _) in &mut jobs {
        assert_eq!(
            python(&internet, shell, ATTEMPT)?,
            "refused",
            "without an agent"
        );
    }
    agent.restart()?;
    let mut whole = jobs.pop().context("the last")?;
    for (shell, id) in &mut jobs {
        was_ended(&agent, shell, id)?;
    }
    // Places of jobs that were ended are given to others, and nothing of the old is in them.
    let shell = Shell::new(&internet)?;
    let id = agent.fence(&shell, "next", POLICY)?;
    assert!(internet.since(mark).to(BLOCKED.v4).is_empty());
    is_unharmed(&internet, &agent, &mut (shell, id))?;
    is_unharmed(&internet, &agent, &mut whole)?;
    nothing_is_left(&internet, &agent)
}

/// Asserts that nothing is left of any job: no cgroup, no link, no state.
fn nothing_is_left(internet: &Internet, agent: &Agent<'_>) -> Result<()> {
    let list = |folder: &str| -> Result<String> {
        let script = "ls -A $0 2>/dev/null || true";
        Ok(run(
            internet.command("sh").args(["-c", script, folder]),
            DEADLINE,
        )?
        .stdout)
    };
    let version = jobfence_abi::VERSION;
    for folder in [
        format!("/sys/fs/bpf/jobfence/v{version}/agent"),
        agent
            .folder()
            .join("state/jobs")
            .to_string_lossy()
            .into_owned(),
    ] {
        let mut left = String::new();
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            left = list(&folder)?;
            if left.is_empty() {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
        ensure!(left.is_empty(), "left in {folder}: {left}");
    }
    // Every job of a test has its folder's name in its own.
    let name = internet
        .dir()
        .file_name()
        .context("a folder")?
        .to_string_lossy();
    let named = format!("jobfence-{name}-*");
    let cgroups = run(
        internet
            .command("find")
            .args(["/sys/fs/cgroup", "-name", &named]),
        DEADLINE,
    )?;
    ensure!(
        cgroups.stdout.is_empty(),
        "cgroups are left: {}",
        cgroups.stdout
    );
    Ok(())
}

#[test]
fn without_its_state_folder_the_daemon_ends_what_it_does_not_know() -> Result<()> {
    let internet = Internet::new()?;
    let mut agent = Agent::start(&internet, "")?;
    let mut jobs = Vec::new();
    for name in ["ends", "killed"] {
        let mut shell = Shell::new(&internet)?;
        arrives(&internet, &mut shell)?;
        let id = agent.fence(&shell, name, POLICY)?;
        talk(&internet, &mut shell)?;
        jobs.push((shell, id));
    }
    // While it runs, nothing needs it.
    fs::remove_dir_all(agent.folder().join("state"))?;
    is_unharmed(&internet, &agent, &mut jobs[0])?;

    agent.kill()?;
    let (shell, id) = &mut jobs[1];
    let mark = internet.mark();
    assert_eq!(python(&internet, shell, ATTEMPT)?, "refused");
    agent.restart()?;
    was_ended(&agent, shell, id)?;
    assert!(internet.since(mark).to(BLOCKED.v4).is_empty());
    nothing_is_left(&internet, &agent)?;
    let shell = Shell::new(&internet)?;
    let id = agent.fence(&shell, "next", POLICY)?;
    is_unharmed(&internet, &agent, &mut (shell, id))
}

#[test]
fn a_job_whose_policy_cannot_be_read_may_reach_nothing() -> Result<()> {
    let internet = Internet::new()?;
    let policies = internet.dir().join("policies");
    fs::create_dir_all(policies.join("group"))?;
    fs::write(
        policies.join("group/invalid.yml"),
        "version: 1\njobs: {default: {alow: []}}\n",
    )?;
    fs::create_dir(policies.join("group/folder.yml"))?;
    fs::write(policies.join("group/valid.yml"), POLICY)?;
    let config = format!("policies: {}\n", policies.display());
    let agent = Agent::start(&internet, &config)?;
    let folder = internet
        .dir()
        .file_name()
        .context("a folder")?
        .to_string_lossy();
    for (name, code) in [("invalid", 112), ("folder", 112), ("valid", 0)] {
        let mut shell = Shell::new(&internet)?;
        arrives(&internet, &mut shell)?;
        let (id, repo) = (format!("{folder}-{name}"), format!("group/{name}"));
        let pid = shell.pid().to_string();
        let started = agent.job(&["start", "--id", &id, "--pid", &pid, "--repo", &repo])?;
        assert_eq!(started.status.code(), Some(code), "{name}: {started:?}");
        let mark = internet.mark();
        assert_eq!(python(&internet, &mut shell, ATTEMPT)?, "refused", "{name}");
        let allowed = python(&internet, &mut shell, "print(ask('allowed.test'))")?;
        assert_eq!(allowed, if code == 0 { "0" } else { "None" }, "{name}");
        assert!(internet.since(mark).to(BLOCKED.v4).is_empty());
        let (finished, output) = agent.finish(&id)?;
        let expected = if code == 0 { 110 } else { 111 };
        assert_eq!(finished, Some(expected), "{name}: {output:?}");
        whole_log(&internet, &agent.log_path(&id))?;
    }
    Ok(())
}

/// How long a name may take that no server answers: the resolver's own limit, and some.
const NO_ANSWER: Duration = Duration::from_secs(8);

#[test]
fn without_an_upstream_server_new_names_fail_and_refused_ones_at_once() -> Result<()> {
    let internet = Internet::new()?;
    let agent = Agent::start(&internet, "")?;
    let mut shell = Shell::new(&internet)?;
    let id = agent.fence(&shell, "one", POLICY)?;
    talk(&internet, &mut shell)?;
    assert_eq!(
        python(&internet, &mut shell, "print(ask('allowed.test'))")?,
        "0"
    );

    internet.silence_dns(true);
    goes_on(&internet, "what was open stays open");
    let timed = |shell: &mut Shell, name: &str| -> Result<(String, Duration)> {
        let line = format!("t = time.monotonic()\nprint(ask('{name}', 20), time.monotonic() - t)");
        let said = python(&internet, shell, &line)?;
        let (code, seconds) = said.split_once(' ').context("two words")?;
        Ok((code.to_owned(), Duration::from_secs_f64(seconds.parse()?)))
    };
    let (code, new) = timed(&mut shell, "v4only.test")?;
    assert_eq!(code, "2", "SERVFAIL");
    assert!(new < NO_ANSWER, "{new:?}");
    let (code, refused) = timed(&mut shell, "refused.test")?;
    assert_eq!(code, "3", "NXDOMAIN");
    assert!(refused < new, "it waits for nobody: {refused:?}");
    assert_eq!(
        timed(&mut shell, "allowed.test")?.0,
        "0",
        "it was answered before"
    );
    let open = format!("print(connect('{}', 80))", ALLOWED.v4);
    assert_eq!(
        python(&internet, &mut shell, &open)?,
        "open",
        "and is open still"
    );
    internet.silence_dns(false);
    assert_eq!(
        python(&internet, &mut shell, "print(ask('v4only.test'))")?,
        "0"
    );
    let (code, output) = agent.finish(&id)?;
    assert_eq!(code, Some(110), "a refused name was asked for: {output:?}");
    whole_log(&internet, &agent.log_path(&id))?;
    Ok(())
}

/// Refused attempts as fast as they go: the odd clients always the same one, the others ever new
/// ones.
const FLOOD: &str = "
number, attempts = int(sys.argv[1]), int(sys.argv[2])
refused = 0
for attempt in range(attempts):
    s = socket.socket()
    port = 80 if number % 2 else 1 + (number * attempts + attempt) % 60000
    try: s.connect((BLOCKED, port))
    except PermissionError: refused += 1
    s.close()
assert refused == attempts, refused
";

/// Clients that flood, and the attempts of each.
const FLOODERS: u64 = 4;
const EACH: u64 = 20_000;

/// What the other job does, beside the flood.
const STEADY: &str = "
became = {}
for attempt in range(200):
    for what in (connect(BLOCKED, 2000 + attempt), connect(ALLOWED, 22),
                 ask('allowed.test', 2), ask(f'n{attempt}.refused.test', 2)):
        became[what] = became.get(what, 0) + 1
print(sorted(became.items(), key=str))
";

#[test]
fn a_job_that_floods_takes_nothing_from_another_and_is_counted_to_the_last() -> Result<()> {
    let internet = Internet::new()?;
    let agent = Agent::start(&internet, "")?;
    client(&internet, "flood.py", FLOOD)?;
    let mut flooding = Shell::new(&internet)?;
    arrives(&internet, &mut flooding)?;
    let limited = "version: 1\njobs: {default: {limits: {events: 1000}}}\n";
    let flood = agent.fence(&flooding, "flood", limited)?;
    let mut steady = Shell::new(&internet)?;
    let other = agent.fence(&steady, "steady", POLICY)?;
    let mark = internet.mark();
    flooding.begin(&format!(
        "for n in $(seq {FLOODERS}); do python3 flood.py $n {EACH} & pids=\"$pids $!\"; done\n\
         for pid in $pids; do wait $pid || exit 1; done"
    ))?;
    let became = python(&internet, &mut steady, STEADY)?;
    assert_eq!(
        became,
        "[('open', 200), ('refused', 200), (0, 200), (3, 200)]"
    );
    let (status, said) = flooding.end()?;
    assert_eq!(status, 0, "{said}");
    assert!(internet.since(mark).to(BLOCKED.v4).is_empty());

    for (id, code) in [(&flood, 110), (&other, 110)] {
        assert_eq!(agent.finish(id)?.0, Some(code));
    }
    let events = whole_log(&internet, &agent.log_path(&other))?;
    let counts = Counts::of(&events);
    let expected = Counts {
        allowed: 200,
        refused: 200,
        ..Counts::default()
    };
    assert_eq!(counts, expected, "the other job");
    let counts = Counts::of(&whole_log(&internet, &agent.log_path(&flood))?);
    eprintln!("{counts:?}");
    assert_eq!((counts.lost, counts.uncounted), (0, 0), "{counts:?}");
    assert!(counts.limited > 0, "{counts:?}");
    assert_eq!(
        counts.refused + counts.limited,
        FLOODERS * EACH,
        "{counts:?}"
    );
    Ok(())
}

/// Jobs one after the other, unless `JOBFENCE_TEST_JOBS` says how many.
const JOBS: u32 = 40;

#[test]
fn nothing_is_left_of_many_jobs_one_after_the_other() -> Result<()> {
    let number: u32 = match env::var("JOBFENCE_TEST_JOBS") {
        Ok(number) => number.parse().context("JOBFENCE_TEST_JOBS is no number")?,
        Err(_) => JOBS,
    };
    let internet = Internet::new()?;
    // Fewer places than jobs: each is used again and again.
    let agent = Agent::start(&internet, "jobs: 8\n")?;
    let descriptors =
        || -> Result<usize> { Ok(fs::read_dir(format!("/proc/{}/fd", agent.pid()?))?.count()) };
    let mut before = None;
    for job in 0..number {
        let shell = Shell::new(&internet)?;
        let id = agent.fence(&shell, &format!("job-{job}"), POLICY)?;
        let (code, output) = agent.finish(&id)?;
        ensure!(code == Some(0), "{job}: {output:?}");
        if job % 8 == 7 {
            nothing_is_left(&internet, &agent)?;
            before = before.map_or_else(descriptors, Ok).map(Some)?;
        }
    }
    nothing_is_left(&internet, &agent)?;
    let before = before.context("more than eight jobs")?;
    let mut now = 0;
    eventually("no descriptor more than after the first jobs", || {
        now = descriptors().unwrap_or(usize::MAX);
        now <= before
    });
    Ok(())
}

#[test]
fn what_another_version_has_left_goes_when_its_job_is_over_and_not_before() -> Result<()> {
    const LEFT: &str =
        "ls /sys/fs/bpf/jobfence/v0/agent 2>/dev/null || ls -d /sys/fs/bpf/jobfence/v0";
    let internet = Internet::new()?;
    let mut agent = Agent::start(&internet, "")?;
    let sh = |script: &str| run(internet.command("sh").args(["-c", script]), DEADLINE);
    let left = || sh(LEFT).map_or_else(|error| error.to_string(), |output| output.stdout);
    let mut jobs = Vec::new();
    for name in ["living", "over", "removed"] {
        let mut shell = Shell::new(&internet)?;
        arrives(&internet, &mut shell)?;
        let id = agent.fence(&shell, name, POLICY)?;
        let cgroup = cgroup::of(shell.pid()).context("a cgroup")?;
        jobs.push((shell, id, cgroup));
    }
    agent.kill()?;
    let (_, _, removed) = jobs.pop().context("the last")?;
    let (_, _, over) = jobs.pop().context("one more")?;
    let (mut living, lives, _) = jobs.pop().context("the first")?;
    // As the agent of an older version would have left it on a host that has a newer one.
    fs::remove_dir(&removed)?;
    let version = jobfence_abi::VERSION;
    let moved = sh(&format!(
        "cd /sys/fs/bpf/jobfence && mv v{version} v0 && ls v0/agent | wc -l"
    ))?;
    assert_eq!(moved.stdout, "3\n", "{moved:?}");
    fs::remove_dir_all(agent.folder().join("state"))?;

    agent.restart()?;
    eventually("what is over is gone", || left() == format!("{lives}\n"));
    assert!(!over.exists(), "with its cgroup");
    let mark = internet.mark();
    assert_eq!(python(&internet, &mut living, ATTEMPT)?, "refused");
    assert!(internet.since(mark).to(BLOCKED.v4).is_empty());

    // So does a run without an agent.
    drop(living);
    let policy = internet.dir().join("run.yml");
    fs::write(&policy, POLICY)?;
    let policy = policy.to_string_lossy();
    eventually("nothing is left of the version", || {
        jobfence(&internet, &["run", "--policy", &policy, "--", "true"])
            .is_ok_and(|output| output.status.success())
            && left().is_empty()
    });
    nothing_is_left(&internet, &agent)
}
