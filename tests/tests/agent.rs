//! `jobfence agent`: many jobs at once, which outlive it.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::Result;
use jobfence_tests::{
    Agent, Cgroup, Fence, Internet, Shell, addresses::BLOCKED, binary, eventually, run,
};
use serde_json::Value;

/// The default job may reach `allowed.test` on the web ports.
const POLICY: &str = "
version: 1
jobs:
  default:
    allow:
      - host: allowed.test
        ports: [80, 443]
";

/// Events of refusals for the reason `reason`.
fn denials<'a>(events: &'a [Value], reason: &str) -> Vec<&'a Value> {
    let wanted = |event: &&Value| event["verdict"] == "deny" && event["reason"] == reason;
    events.iter().filter(wanted).collect()
}

#[test]
fn a_process_tree_becomes_a_job_and_is_held_to_its_policy() -> Result<()> {
    let internet = Internet::new()?;
    let agent = Agent::start(&internet, "")?;
    let mut shell = Shell::new(&internet)?;
    let allowed = "curl -sS -m 5 https://allowed.test/";
    let blocked = format!("curl -sS -m 5 http://{}/", BLOCKED.v4);

    let mark = internet.mark();
    assert_eq!(shell.run(&blocked)?.0, 0, "without the fence it arrives");
    assert!(!internet.since(mark).to(BLOCKED.v4).is_empty());

    let id = agent.fence(&shell, "one", POLICY)?;
    let mark = internet.mark();
    let (status, said) = shell.run(allowed)?;
    assert_eq!(status, 0, "{said}\n{}", agent.said());
    let (status, said) = shell.run(&blocked)?;
    assert_eq!(status, 7, "{said}");
    assert!(internet.since(mark).to(BLOCKED.v4).is_empty());

    let (code, output) = agent.finish(&id)?;
    assert_eq!(code, Some(110), "{output:?}");
    assert!(
        output.stdout.contains(&BLOCKED.v4.to_string()),
        "{output:?}"
    );
    let events = agent.log(&id)?;
    assert_eq!(denials(&events, "no-rule").len(), 1, "{events:#?}");
    assert!(
        shell.run("true").is_err(),
        "what is left of a job is killed"
    );
    Ok(())
}

/// A connection that stays, and sends a line whenever it is told to.
const TALKER: &str = "
import os, socket, sys, time
s = socket.create_connection((sys.argv[1], 22), 5)
answers = s.makefile('rb')
answers.readline()
while True:
    s.sendall(b'x')
    assert answers.read(1) == b'x'
    open('beat.new', 'w').write(str(time.monotonic()))
    os.rename('beat.new', 'beat')
    time.sleep(0.01)
";

#[test]
fn jobs_outlive_a_killed_agent_and_nothing_opens_meanwhile() -> Result<()> {
    let internet = Internet::new()?;
    let mut agent = Agent::start(&internet, "")?;
    let mut shell = Shell::new(&internet)?;
    let policy = "
version: 1
jobs:
  default:
    allow:
      - host: allowed.test
      - {cidr: 198.51.100.10/32, ports: [22]}
";
    let id = agent.fence(&shell, "one", policy)?;
    let https = "curl -sS -m 5 https://allowed.test/";
    assert_eq!(shell.run(https)?.0, 0);
    let talker = internet.home().join("talker.py");
    fs::write(&talker, TALKER)?;
    shell.run("python3 talker.py 198.51.100.10 >talk 2>&1 &")?;
    let beat = internet.home().join("beat");
    eventually("the connection works", || {
        let said = fs::read_to_string(internet.home().join("talk")).unwrap_or_default();
        assert_eq!(said, "");
        beat.exists()
    });

    agent.kill()?;
    let mark = internet.mark();
    fs::remove_file(&beat)?;
    eventually("it goes on without an agent", || beat.exists());
    for attempt in [
        format!("curl -sS -m 5 http://{}/", BLOCKED.v4),
        "curl -sS -m 5 https://blocked.test/".to_owned(),
        "curl -sS -m 5 https://v4only.test/".to_owned(),
    ] {
        let (status, said) = shell.run(&attempt)?;
        assert!([6, 7].contains(&status), "{attempt}: {status} {said}");
    }
    let arrived = internet.since(mark);
    assert!(arrived.to(BLOCKED.v4).is_empty(), "{arrived:?}");
    assert!(arrived.port(53).is_empty(), "nobody is asked: {arrived:?}");

    agent.restart()?;
    let (status, said) = shell.run(https)?;
    assert_eq!(
        status,
        0,
        "a name is answered again: {said}\n{}",
        agent.said()
    );
    fs::remove_file(&beat)?;
    eventually("the connection has outlived it", || beat.exists());
    let (code, output) = agent.finish(&id)?;
    assert_eq!(code, Some(110), "{output:?}");
    let events = agent.log(&id)?;
    let seqs: Vec<_> = events.iter().map(|event| event["seq"].as_u64()).collect();
    let expected: Vec<_> = (0..events.len() as u64).map(Some).collect();
    assert_eq!(seqs, expected, "no gaps");
    let denied = denials(&events, "no-rule");
    assert_eq!(
        denied.len(),
        1,
        "the attempt without an agent is there: {events:#?}"
    );
    Ok(())
}

#[test]
fn eight_jobs_know_nothing_of_each_other() -> Result<()> {
    let internet = Internet::new()?;
    let agent = Agent::start(&internet, "")?;
    let mut jobs = Vec::new();
    for number in 0..8 {
        let shell = Shell::new(&internet)?;
        let port = 8000 + number;
        let policy = format!(
            "version: 1\njobs: {{default: {{allow: [{{host: allowed.test, ports: [{port}], \
             http: verify, tls: 'off'}}]}}}}"
        );
        let id = agent.fence(&shell, &format!("job-{number}"), &policy)?;
        jobs.push((shell, id));
    }
    for (shell, _) in &mut jobs {
        let ports = (8000..8008).map(|port| format!("http://allowed.test:{port}/"));
        let urls: Vec<_> = ports.collect();
        shell.begin(&format!(
            "for url in {}; do curl -sS -m 5 -o /dev/null -w ' http=%{{http_code}} ' $url; done",
            urls.join(" ")
        ))?;
    }
    for (number, (shell, id)) in jobs.iter_mut().enumerate() {
        let (_, said) = shell.end()?;
        let codes: Vec<_> = said
            .split_whitespace()
            .filter_map(|word| word.strip_prefix("http="))
            .collect();
        let expected: Vec<_> = (0..8)
            .map(|port| if port == number { "200" } else { "000" })
            .collect();
        assert_eq!(codes, expected, "job {number}: {said}");
        let (code, output) = agent.finish(id)?;
        assert_eq!(code, Some(110), "{output:?}");
        let events = agent.log(id)?;
        assert!(events.iter().all(|event| event["job"]["id"] == id.as_str()));
        let refused = denials(&events, "port");
        let mut ports: Vec<_> = refused
            .iter()
            .filter_map(|event| event["dst"]["port"].as_u64())
            .collect();
        ports.sort_unstable();
        ports.dedup();
        let others: Vec<_> = (0..8)
            .filter(|&port| port != number as u64)
            .map(|port| 8000 + port)
            .collect();
        assert_eq!(ports, others, "job {number}");
    }
    Ok(())
}

/// The guard holds for the whole machine: a user that no other test has, and an id that a user
/// namespace gives it.
const GUARDED: &str = "games";
const SUBORDINATE: &str = "3000001234";

#[test]
fn a_guarded_user_has_sockets_in_jobs_only() -> Result<()> {
    let internet = Internet::new()?;
    // For the agent of this test alone.
    let subuid = internet.dir().join("subuid");
    fs::write(&subuid, format!("{GUARDED}:3000000000:65536\n"))?;
    let mut mount = internet.command("mount");
    mount.arg("--bind").arg(&subuid).arg("/etc/subuid");
    let mounted = run(&mut mount, Duration::from_secs(10))?;
    assert!(mounted.status.success(), "{mounted:?}");

    let mut outside = Shell::of_user(&internet, GUARDED)?;
    let mut contained = Shell::of_user(&internet, SUBORDINATE)?;
    let attempt = format!("curl -sS -m 5 http://{}/", BLOCKED.v4);
    for shell in [&mut outside, &mut contained] {
        let mark = internet.mark();
        assert_eq!(shell.run(&attempt)?.0, 0, "without the guard it arrives");
        assert!(!internet.since(mark).to(BLOCKED.v4).is_empty());
    }
    // A socket from before.
    fs::write(
        internet.home().join("before.py"),
        format!(
            "
import os, socket, time
tcp, udp = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
open('ready', 'w')
while not os.path.exists('go'): time.sleep(0.01)
for attempt in (lambda: tcp.connect(('{0}', 80)), lambda: udp.sendto(b'x', ('{0}', 5000))):
    try: attempt(); print('open')
    except PermissionError: print('refused')
",
            BLOCKED.v4
        ),
    )?;
    outside.run("python3 before.py >before 2>&1 & echo $! >before.pid")?;
    eventually("it has its sockets", || {
        internet.home().join("ready").exists()
    });

    let agent = Agent::start(&internet, &format!("guard: {{users: [{GUARDED}]}}\n"))?;
    let mut inside = Shell::of_user(&internet, GUARDED)?;
    let id = agent.fence(&inside, "one", POLICY)?;
    let mark = internet.mark();
    for shell in [&mut outside, &mut contained] {
        let (status, said) = shell.run(&attempt)?;
        assert_ne!(status, 0, "{said}");
    }
    fs::write(internet.home().join("go"), "")?;
    let result = internet.home().join("before");
    let read = || fs::read_to_string(&result).unwrap_or_default();
    eventually("it has tried", || read().lines().count() == 2);
    assert_eq!(read(), "refused\nrefused\n");
    assert!(internet.since(mark).is_empty());
    let mut other = Shell::new(&internet)?;
    assert_eq!(other.run(&attempt)?.0, 0, "other users are not held");
    let (status, said) = inside.run("curl -sS -m 5 https://allowed.test/")?;
    assert_eq!(status, 0, "{said}");

    let (code, output) = agent.finish(&id)?;
    assert_eq!(code, Some(110), "{output:?}");
    let events = agent.log(&id)?;
    let denied = denials(&events, "outside-job");
    let kinds: Vec<_> = denied
        .iter()
        .filter_map(|event| event["kind"].as_str())
        .collect();
    assert!(
        kinds.contains(&"socket") && kinds.contains(&"connect"),
        "{denied:#?}"
    );
    assert!(denied.iter().all(|event| event["violation"] == true));
    let uids: Vec<_> = denied
        .iter()
        .map(|event| event["process"]["uid"].to_string())
        .collect();
    assert!(uids.iter().any(|uid| uid == SUBORDINATE), "{denied:#?}");
    Ok(())
}

#[test]
fn limits_are_kept_and_hitting_one_is_a_violation() -> Result<()> {
    let internet = Internet::new()?;
    let agent = Agent::start(&internet, "")?;
    let upload = "head -c 200000 /dev/zero | curl -sS -m 5 -o /dev/null --data-binary @- \
                  http://allowed.test/";
    let names = "for n in 1 2 3; do getent ahostsv4 n$n.wild.test >/dev/null; echo $?; done";
    let addresses = "for n in 1 2 3 4 5 6; do getent ahostsv4 changing.test >/dev/null; echo $?; \
                     sleep 1.1; done";
    let policy = |limits: &str| {
        format!(
            "version: 1\nlimits: {{{limits}}}\njobs: {{default: {{allow: [{{host: '*.wild.test'}}, \
             {{host: changing.test}}, {{host: allowed.test, ports: [80]}}]}}}}\n"
        )
    };
    for (limits, command, free) in [
        ("upload: 100kB", upload, "upload: 1MB"),
        ("names: 2", names, "names: 3"),
        ("addresses: 3", addresses, "addresses: 100"),
    ] {
        let [held, free] = [limits, free].map(|limits| -> Result<_> {
            let mut shell = Shell::new(&internet)?;
            let name = limits.replace(|c: char| !c.is_ascii_alphanumeric(), "");
            let id = agent.fence(&shell, &name, &policy(limits))?;
            let (_, said) = shell.run(command)?;
            let (code, output) = agent.finish(&id)?;
            let events = agent.log(&id)?;
            Ok((code, denials(&events, "limit").len(), said, output))
        });
        let (code, refused, said, output) = free?;
        assert_eq!(
            (code, refused),
            (Some(0), 0),
            "{limits} is not reached: {said} {output:?}"
        );
        let (code, refused, said, output) = held?;
        assert_eq!(code, Some(110), "{limits}: {said} {output:?}");
        assert!(refused > 0, "{limits}: {said} {output:?}");
    }
    Ok(())
}

#[test]
fn a_job_can_narrow_itself_once() -> Result<()> {
    let internet = Internet::new()?;
    let agent = Agent::start(&internet, "")?;
    let mut shell = Shell::new(&internet)?;
    let id = agent.fence(&shell, "one", POLICY)?;
    let https = "curl -sS -m 5 -o /dev/null https://allowed.test/";
    let http = "curl -sS -m 5 -o /dev/null http://allowed.test/";
    for url in [https, http] {
        let (status, said) = shell.run(url)?;
        assert_eq!(status, 0, "{said}");
    }
    // Allows port 80 no more, and something that the job could not reach before.
    let narrow =
        "version: 1\njobs: {default: {allow: [{host: allowed.test}, {host: blocked.test}]}}\n";
    fs::write(internet.home().join("narrow.yml"), narrow)?;
    let command = agent.command(&["narrow", "--policy", "narrow.yml"])?;
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .skip_while(|word| !word.to_string_lossy().ends_with("jobfence"))
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let words = words.join(" ");
    let (status, said) = shell.run(&words)?;
    assert_eq!(status, 0, "{said}\n{}", agent.said());
    let (status, said) = shell.run(https)?;
    assert_eq!(status, 0, "{said}\n{}", agent.said());
    let mark = internet.mark();
    assert_ne!(shell.run(http)?.0, 0, "narrowed away");
    assert_ne!(
        shell.run("curl -sS -m 5 https://blocked.test/")?.0,
        0,
        "never was allowed"
    );
    let arrived = internet.since(mark);
    assert!(
        arrived.port(80).is_empty() && arrived.to(BLOCKED.v4).is_empty(),
        "{arrived:?}"
    );
    assert_ne!(shell.run(&words)?.0, 0, "once");
    let (code, output) = agent.finish(&id)?;
    assert_eq!(code, Some(110), "{output:?}");
    Ok(())
}

#[test]
fn prometheus_is_told_what_happened() -> Result<()> {
    let internet = Internet::new()?;
    let socket = internet.dir().join("metrics.sock");
    let socket = socket.to_string_lossy();
    let agent = Agent::start(&internet, &format!("metrics: {{unix: {socket}}}\n"))?;
    let scrape = |path: &str| -> Result<String> {
        let mut curl = internet.command("curl");
        let url = format!("http://agent{path}");
        curl.args(["-sS", "-m", "5", "-f", "--unix-socket", &socket, &url]);
        Ok(run(&mut curl, Duration::from_secs(10))?.stdout)
    };
    let mut shell = Shell::new(&internet)?;
    let id = agent.fence(&shell, "one", POLICY)?;
    shell.run(&format!("curl -sS -m 5 http://{}/", BLOCKED.v4))?;
    let running = scrape("/metrics")?;
    for line in ["jobfence_jobs 1", "jobfence_jobs_started_total 1"] {
        assert!(
            running.lines().any(|found| found == line),
            "{line}: {running}"
        );
    }
    assert_eq!(agent.finish(&id)?.0, Some(110));
    let ended = scrape("/metrics")?;
    for line in [
        "jobfence_jobs 0",
        "jobfence_jobs_ended_total{verdict=\"violated\"} 1",
        "jobfence_violations_total 1",
        "jobfence_attempts_total{record=\"lost\"} 0",
    ] {
        assert!(ended.lines().any(|found| found == line), "{line}: {ended}");
    }
    assert_eq!(scrape("/")?, "", "there is nothing else");
    Ok(())
}

#[test]
fn a_process_in_a_job_is_not_made_another_job() -> Result<()> {
    let internet = Internet::new()?;
    let agent = Agent::start(&internet, "")?;
    let shell = Shell::new(&internet)?;
    let id = agent.fence(&shell, "one", POLICY)?;
    let pid = shell.pid().to_string();
    let again = agent.job(&["start", "--id", "again", "--pid", &pid])?;
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    assert!(again.stderr.contains("in a job already"), "{again:?}");
    let (code, output) = agent.finish(&id)?;
    assert_eq!(
        code,
        Some(0),
        "nothing of the second is told of the first: {output:?}"
    );
    Ok(())
}

#[test]
fn a_fenced_command_cannot_have_the_agent_free_it() -> Result<()> {
    let internet = Internet::new()?;
    let policies = internet.dir().join("policies");
    fs::create_dir(&policies)?;
    let wide = format!(
        "version: 1\njobs: {{default: {{allow: [{{cidr: {}/32, ports: [80]}}]}}}}\n",
        BLOCKED.v4
    );
    fs::write(policies.join("default.yml"), wide)?;
    // Elsewhere than the job's own cgroup, so that its fence would be left behind.
    let above = Cgroup::new()?;
    let config = format!(
        "policies: {}\ncgroup: {}\n",
        policies.display(),
        above.path().display()
    );
    let agent = Agent::start(&internet, &config)?;
    let command = agent.command(&["start", "--pid", "$$"])?;
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .skip_while(|word| !word.to_string_lossy().ends_with("jobfence"))
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let attempt = format!(
        "{} 2>&1; curl -sS -m 5 -o /dev/null http://{}/ && echo free",
        words.join(" "),
        BLOCKED.v4
    );
    // Who is in no job may.
    let mut shell = Shell::new(&internet)?;
    let (_, said) = shell.run(&attempt)?;
    assert!(said.contains("free"), "{said}\n{}", agent.said());
    drop(shell);
    let mark = internet.mark();
    let fence = Fence::new(&internet, "version: 1\njobs: {default: {}}\n")?;
    let fenced = fence.run(&["sh", "-c", &attempt])?;
    fenced.assert_code(110);
    assert!(!fenced.output.stdout.contains("free"), "{fenced:#?}");
    assert!(internet.since(mark).to(BLOCKED.v4).is_empty());
    Ok(())
}

#[test]
fn a_job_is_killed_at_once_for_a_violation_if_its_policy_says_so() -> Result<()> {
    let internet = Internet::new()?;
    let agent = Agent::start(&internet, "")?;
    let policy = format!("{POLICY}\non_violation: kill\n");
    let packet = format!("curl -sS -m 5 http://{}/", BLOCKED.v4);
    for (name, attempt) in [
        ("packet", packet.as_str()),
        ("name", "getent ahostsv4 blocked.test"),
    ] {
        let mut shell = Shell::new(&internet)?;
        let id = agent.fence(&shell, name, &policy)?;
        assert_eq!(
            shell
                .run("curl -sS -m 5 -o /dev/null https://allowed.test/")?
                .0,
            0
        );
        shell.begin(&format!("{attempt}; sleep 60"))?;
        let start = Instant::now();
        assert!(shell.end().is_err(), "{name}: killed");
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{name}: not for another reason"
        );
        assert_eq!(agent.finish(&id)?.0, Some(110), "{name}");
    }
    Ok(())
}

/// As [`GUARDED`].
const ALSO_GUARDED: &str = "lp";

#[test]
fn the_guard_of_another_version_gives_way_to_that_of_the_agent_after_it() -> Result<()> {
    let internet = Internet::new()?;
    let attempt = format!("curl -sS -m 5 http://{}/", BLOCKED.v4);
    let mut outside = Shell::of_user(&internet, ALSO_GUARDED)?;
    let mark = internet.mark();
    assert_eq!(outside.run(&attempt)?.0, 0, "without the guard it arrives");
    assert!(!internet.since(mark).to(BLOCKED.v4).is_empty());
    let mut agent = Agent::start(&internet, &format!("guard: {{users: [{ALSO_GUARDED}]}}\n"))?;
    agent.kill()?;
    // As one of version 1 would have left it, with programs that go by maps of their own.
    let mut strange = internet.command("sh");
    let script = "cd /sys/fs/bpf/jobfence && mkdir -p v1 && mv v*/guard v1/guard && \
                  rm -r v*/maps && ls v1/guard";
    let output = run(strange.args(["-ec", script]), Duration::from_secs(10))?;
    assert!(output.stdout.contains("guard_create"), "{output:?}");

    agent.restart()?;
    let mut inside = Shell::of_user(&internet, ALSO_GUARDED)?;
    agent.fence(&inside, "one", POLICY)?;
    let (status, said) = inside.run("curl -sS -m 5 https://allowed.test/")?;
    assert_eq!(status, 0, "{said}\n{}", agent.said());
    let mark = internet.mark();
    assert_ne!(outside.run(&attempt)?.0, 0);
    assert!(internet.since(mark).to(BLOCKED.v4).is_empty());
    Ok(())
}

#[test]
fn what_a_process_had_open_before_is_told() -> Result<()> {
    let internet = Internet::new()?;
    let agent = Agent::start(&internet, "")?;
    let mut shell = Shell::new(&internet)?;
    let connect = "import socket, time
s = socket.create_connection(('198.51.100.10', 22), 5)
open('open', 'w').close()
time.sleep(60)";
    fs::write(internet.home().join("hold.py"), connect)?;
    shell.run("python3 hold.py >held 2>&1 &")?;
    let open = internet.home().join("open");
    eventually("it is connected", || {
        assert_eq!(
            fs::read_to_string(internet.home().join("held")).unwrap_or_default(),
            ""
        );
        open.exists()
    });
    let pid = shell.pid().to_string();
    let policy = internet.dir().join("open-before.yml");
    fs::write(&policy, POLICY)?;
    // Cgroups are the whole machine's: no other test may have the id.
    let folder = internet
        .dir()
        .file_name()
        .map(|name| name.to_string_lossy());
    let id = format!("{}-open", folder.unwrap_or_default());
    let started = agent.job(&[
        "start",
        "--id",
        &id,
        "--pid",
        &pid,
        "--policy",
        &policy.to_string_lossy(),
    ])?;
    assert!(started.status.success(), "{started:?}");
    let told = format!("{}{}", started.stdout, started.stderr);
    assert!(told.contains("tcp 198.51.100.10:22 (pid "), "{told}");
    Ok(())
}

/// A collector of OpenTelemetry: writes what it gets to a file, a request a line.
const COLLECTOR: &str = "
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length']))
        with open(sys.argv[1], 'ab') as file:
            file.write(self.path.encode() + b' ' + body + b'\\n')
        self.send_response(200)
        self.send_header('Content-Length', '2')
        self.end_headers()
        self.wfile.write(b'{}')
    def log_message(self, *words):
        pass
http.server.HTTPServer(('127.0.0.1', 4318), Handler).serve_forever()
";

#[test]
fn a_collector_gets_every_line_of_a_log() -> Result<()> {
    let internet = Internet::new()?;
    let got = internet.dir().join("collected");
    let mut collector = internet.command("python3");
    collector.args(["-c", COLLECTOR]).arg(&got);
    let mut collector = collector.spawn()?;
    let agent = Agent::start(&internet, "otlp: http://127.0.0.1:4318\n")?;
    let mut shell = Shell::new(&internet)?;
    let id = agent.fence(&shell, "one", POLICY)?;
    shell.run(&format!("curl -sS -m 5 http://{}/", BLOCKED.v4))?;
    agent.finish(&id)?;
    let log = fs::read_to_string(agent.log_path(&id))?;
    let collected = || -> Vec<String> {
        let text = fs::read_to_string(&got).unwrap_or_default();
        let requests = text
            .lines()
            .filter_map(|line| line.strip_prefix("/v1/logs "));
        let parsed = requests.filter_map(|body| serde_json::from_str::<Value>(body).ok());
        let lines = parsed.flat_map(|body| {
            let scopes = &body["resourceLogs"][0]["scopeLogs"][0];
            let records = scopes["logRecords"].as_array().cloned().unwrap_or_default();
            records
                .into_iter()
                .filter_map(|record| Some(record["body"]["stringValue"].as_str()?.to_owned()))
        });
        lines.collect()
    };
    eventually("every line has arrived", || {
        collected().len() >= log.lines().count()
    });
    collector.kill()?;
    collector.wait()?;
    assert_eq!(
        collected(),
        log.lines().collect::<Vec<_>>(),
        "{}",
        agent.said()
    );
    Ok(())
}

#[test]
fn a_secret_is_nowhere_in_what_is_told_of_a_job() -> Result<()> {
    const SECRETS: [&str; 7] = [
        "correct-horse-1",
        "hunter22",
        "aBcDeF0123",
        "npm_zzzz",
        "swordfish1",
        "opensesame",
        "A1b2C3d4E5f6G7h8I9j0A1b2C3d4E5f6G7h8",
    ];
    let internet = Internet::new()?;
    let agent = Agent::start(&internet, "")?;
    let mut command = internet.command("setpriv");
    command
        .args(["--reuid", "nobody", "--regid", "nogroup"])
        .args(["--clear-groups", "sh"])
        .env("DEPLOY_TOKEN", "Correct-Horse-1");
    let mut shell = Shell::of(command)?;
    let id = agent.fence(&shell, "secrets", POLICY)?;
    let host = BLOCKED.v4;
    for line in [
        format!("curl -sS -m 5 --data token=npm_zzzz -u user:hunter22 http://{host}/"),
        format!("curl -sS -m 5 -H 'Authorization: Bearer aBcDeF0123' http://{host}:81/"),
        format!(
            "sh -c 'curl -sS -m 5 \"http://a:opensesame@{host}:82/?password=swordfish1\"; true'"
        ),
        format!("curl -sS -m 5 http://{host}:83/ghp_A1b2C3d4E5f6G7h8I9j0A1b2C3d4E5f6G7h8"),
        "curl -sS -m 5 http://Correct-Horse-1.x.test/".to_owned(),
    ] {
        shell.run(&line)?;
    }
    let mut told = Vec::new();
    for arguments in [
        &["status", &id, "--json"][..],
        &["status", &id],
        &["list", "--json"],
    ] {
        let output = agent.job(arguments)?;
        told.push(("status", output.stdout + &output.stderr));
    }
    let (code, output) = agent.finish(&id)?;
    assert_eq!(code, Some(110), "{output:?}");
    told.push(("finish", output.stdout + &output.stderr));
    told.push(("the agent's diagnostics", agent.said()));
    let log = agent.log_path(&id);
    told.push(("the log", fs::read_to_string(&log)?));
    for format in ["text", "json"] {
        let mut report = internet.command(&binary()?.to_string_lossy());
        report.arg("report").arg(&log).args(["--format", format]);
        let output = run(&mut report, Duration::from_secs(30))?;
        assert!(output.stdout.contains("***"), "{format}: {output:?}");
        told.push((format, output.stdout + &output.stderr));
    }
    for (what, text) in &told {
        for secret in SECRETS {
            let found = text.to_lowercase().contains(&secret.to_lowercase());
            assert!(!found, "{secret} is in {what}: {text}");
        }
    }
    let log = &told
        .iter()
        .find(|(what, _)| *what == "the log")
        .expect("it")
        .1;
    for shown in [
        "--data 'token=***' -u 'user:***' http://",
        "Authorization: Bearer ***",
        "a:***@",
        "?password=***",
        "/ghp_***",
        "\"***.x.test\"",
        "http://***.x.test/",
    ] {
        assert!(log.contains(shown), "{shown} is not in the log: {log}");
    }
    Ok(())
}
