//! What `jobfence run` lets out, what it refuses, what it reports, and how it runs a command.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _, pipe},
    net::IpAddr,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use jobfence_tests::{
    Expect, Fence, Fenced, Internet,
    addresses::{ALLOWED, BLOCKED, CDN, DNS, Host, OTHER_DNS},
    binary, denied, denied_name, run,
};

/// The default job may reach `allowed.test` on the web ports.
const POLICY: &str = "
version: 1
jobs:
  default:
    allow:
      - host: allowed.test
        ports: [80, 443]
";

/// A policy whose default job has the rules `rules`, in flow style.
fn policy(rules: &str) -> String {
    format!("version: 1\njobs:\n  default:\n    allow: [{rules}]\n")
}

/// Connects by TCP to an address and a port.
const TCP: &str = "
import socket, sys
socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
";
/// Sends a datagram on a connected socket.
const UDP_CONNECTED: &str = "
import socket, sys
s = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
s.connect((sys.argv[1], int(sys.argv[2])))
s.send(b'x')
";
/// Sends a datagram with sendto.
const UDP_SENDTO: &str = "
import socket, sys
s = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
s.sendto(b'x', (sys.argv[1], int(sys.argv[2])))
";
/// Proves that `script` cannot reach `port` at either address of `host`.
#[track_caller]
fn script_denied(policy: &str, script: &str, reason: &'static str, host: Host, port: u16) {
    let internet = Internet::new().expect("a private internet");
    for ip in host.both() {
        let command = ["python3", "-c", script, &ip.to_string(), &port.to_string()];
        denied(&internet, policy, &command, &Expect::new(reason, ip, port))
            .expect("it runs to its end");
    }
}

/// Runs `command` fenced by `policy`.
#[track_caller]
fn fenced(internet: &Internet, policy: &str, command: &[&str]) -> Fenced {
    let fence = Fence::new(internet, policy).expect("a policy file");
    fence.run(command).expect("it runs to its end")
}

/// Runs `command` fenced by `policy`, which must succeed without a violation; returns what it
/// printed.
#[track_caller]
fn allowed(internet: &Internet, policy: &str, command: &[&str]) -> String {
    let fenced = fenced(internet, policy, command);
    fenced.assert_code(0);
    fenced.output.stdout
}

/// Waits until `condition` holds.
#[track_caller]
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "did not happen: {what}");
        thread::yield_now();
    }
}

/// A TCP listener on the job side's loopback interface, outside every fence.
struct Outside(Child);

impl Outside {
    fn listen(internet: &Internet, port: u16) -> Result<Self> {
        let script = format!(
            "import socket; s = socket.create_server(('127.0.0.1', {port})); print('up', flush=True)\n\
             while True: s.accept()[0].sendall(b'outside')"
        );
        let mut command = internet.command("python3");
        let mut child = command
            .args(["-c", &script])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no pipe")?).read_line(&mut line)?;
        assert_eq!(line, "up\n");
        Ok(Self(child))
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// What a policy allows.

#[test]
fn an_allowed_name_is_reached_over_https_and_http_and_both_families() -> Result<()> {
    let internet = Internet::new()?;
    for family in ["-4", "-6"] {
        for scheme in ["https", "http"] {
            let url = format!("{scheme}://allowed.test/");
            let body = allowed(&internet, POLICY, &["curl", "-sS", family, &url]);
            assert_eq!(body, "allowed.test /\n");
        }
    }
    Ok(())
}

#[test]
fn a_rule_without_ports_means_https() {
    let rules = policy("{host: blocked.test}");
    script_denied(&rules, TCP, "no-rule", BLOCKED, 80);
    let internet = Internet::new().unwrap();
    allowed(&internet, &rules, &["curl", "-sS", "https://blocked.test/"]);
}

#[test]
fn a_wildcard_allows_names_at_any_depth() -> Result<()> {
    let internet = Internet::new()?;
    let rules = policy("{host: '*.wild.test'}");
    for name in ["a.wild.test", "a.b.c.wild.test"] {
        let body = allowed(
            &internet,
            &rules,
            &["curl", "-sS", &format!("https://{name}/")],
        );
        assert_eq!(body, format!("{name} /\n"));
    }
    Ok(())
}

#[test]
fn a_cidr_rule_allows_its_addresses_on_its_ports() -> Result<()> {
    let internet = Internet::new()?;
    let rules = policy(
        "{cidr: 198.51.100.0/28, ports: [8000-8005]}, {cidr: '2001:db8:2::/64', ports: [8000]}",
    );
    allowed(
        &internet,
        &rules,
        &["curl", "-sS", "http://198.51.100.10:8000/"],
    );
    allowed(
        &internet,
        &rules,
        &["curl", "-sS", "http://198.51.100.10:8005/"],
    );
    allowed(
        &internet,
        &rules,
        &["curl", "-sS", "http://[2001:db8:2::10]:8000/"],
    );
    Ok(())
}

#[test]
fn the_end_of_a_port_range_is_its_end() {
    let rules = policy(
        "{cidr: 198.51.100.0/24, ports: [8000-8005]}, {cidr: '2001:db8:2::/64', ports: [8000-8005]}",
    );
    script_denied(&rules, TCP, "port", ALLOWED, 8006);
}

#[test]
fn the_end_of_a_cidr_is_its_end() {
    let rules =
        policy("{cidr: 198.51.100.0/28, ports: [80]}, {cidr: '2001:db8:2::/123', ports: [80]}");
    script_denied(&rules, TCP, "no-rule", BLOCKED, 80);
}

#[test]
fn a_udp_rule_allows_udp() -> Result<()> {
    let internet = Internet::new()?;
    let rules = policy("{host: allowed.test, ports: [123/udp]}");
    for (script, ip) in [
        (UDP_SENDTO, ALLOWED.v4.to_string()),
        (UDP_CONNECTED, ALLOWED.v6.to_string()),
    ] {
        let script = format!(
            "import socket\nsocket.getaddrinfo('allowed.test', 123)\n{script}\ns.settimeout(5); print(s.recv(9))"
        );
        let got = allowed(&internet, &rules, &["python3", "-c", &script, &ip, "123"]);
        assert_eq!(got, "b'x'\n");
    }
    Ok(())
}

#[test]
fn a_job_extends_another() -> Result<()> {
    let internet = Internet::new()?;
    let text =
        format!("{POLICY}  release:\n    extends: default\n    allow: [{{host: blocked.test}}]\n");
    for name in ["allowed.test", "blocked.test"] {
        let fence = Fence::new(&internet, &text)?.options(&["--job", "release"]);
        fence
            .run(&["curl", "-sS", &format!("https://{name}/")])?
            .assert_code(0);
    }
    let command = ["curl", "-sS", "-m", "5", "https://blocked.test/"];
    denied_name(&internet, &text, &command, "blocked.test", BLOCKED)?;
    Ok(())
}

#[test]
fn an_alias_to_a_name_without_a_rule_is_followed() -> Result<()> {
    let internet = Internet::new()?;
    let rules = policy("{host: alias.allowed.test}");
    let start = internet.mark();
    allowed(
        &internet,
        &rules,
        &["curl", "-sS", "-4", "https://alias.allowed.test/"],
    );
    assert!(!internet.since(start).to(CDN.v4).is_empty());
    Ok(())
}

#[test]
fn a_changing_name_is_followed() -> Result<()> {
    let internet = Internet::new()?;
    let rules = policy("{host: changing.test, ports: [8000], http: verify}");
    let script = "for i in 1 2 3; do curl -sS http://changing.test:8000/ || exit; sleep 1.1; done";
    allowed(&internet, &rules, &["sh", "-c", script]);
    Ok(())
}

// What it refuses.

#[test]
fn a_name_without_a_rule_is_refused_before_any_packet() -> Result<()> {
    let internet = Internet::new()?;
    for family in ["-4", "-6"] {
        let command = ["curl", "-sS", "-m", "20", family, "https://blocked.test/"];
        let fenced = denied_name(&internet, POLICY, &command, "blocked.test", BLOCKED)?;
        assert!(
            fenced.output.stderr.contains("Could not resolve"),
            "hung: {fenced:#?}"
        );
    }
    Ok(())
}

#[test]
fn deny_beats_allow() -> Result<()> {
    let internet = Internet::new()?;
    let rules = policy("{host: '*.wild.test'}") + "    deny: [{host: a.wild.test}]\n";
    let start = internet.mark();
    let fenced = fenced(
        &internet,
        &rules,
        &["curl", "-sS", "-m", "5", "https://a.wild.test/"],
    );
    fenced.assert_code(110);
    assert_eq!(
        fenced.denials("denied").len(),
        fenced
            .events
            .iter()
            .filter(|e| e["dns"]["qname"] == "a.wild.test")
            .count()
    );
    assert!(!fenced.denials("denied").is_empty(), "{fenced:#?}");
    assert!(internet.since(start).questions("a.wild.test").is_empty());
    allowed(&internet, &rules, &["curl", "-sS", "https://b.wild.test/"]);
    Ok(())
}

#[test]
fn a_denied_name_that_does_not_fail_is_refused_without_a_violation() -> Result<()> {
    let internet = Internet::new()?;
    let rules = format!("{POLICY}    deny: [{{host: blocked.test, fail: false}}]\n");
    let start = internet.mark();
    let fenced = fenced(
        &internet,
        &rules,
        &["sh", "-c", "curl -sS -m 5 https://blocked.test/; true"],
    );
    fenced.assert_code(0);
    assert!(
        fenced
            .denials("denied")
            .iter()
            .all(|event| event["violation"] == false),
        "{fenced:#?}"
    );
    assert!(
        !fenced.denials("denied").is_empty(),
        "not logged: {fenced:#?}"
    );
    assert!(internet.since(start).is_empty());
    Ok(())
}

// Names.

#[test]
fn a_question_to_another_resolver_goes_to_the_jobs_own() -> Result<()> {
    let internet = Internet::new()?;
    for server in OTHER_DNS.both() {
        for transport in ["+notcp", "+tcp"] {
            let at = format!("@{server}");
            let command = ["dig", "+short", transport, &at, "allowed.test"];
            let unfenced = run(
                internet.command("dig").args(&command[1..]),
                Duration::from_secs(10),
            )?;
            assert_eq!(
                unfenced.stdout, "198.51.100.54\n",
                "the other resolver answers with itself"
            );

            let start = internet.mark();
            assert_eq!(allowed(&internet, POLICY, &command), "198.51.100.10\n");
            assert!(internet.attempts_since(start).to(server).is_empty());
        }
    }
    Ok(())
}

#[test]
fn a_refused_question_is_not_asked_upstream() -> Result<()> {
    let internet = Internet::new()?;
    for transport in ["+notcp", "+tcp"] {
        let start = internet.mark();
        let fenced = fenced(
            &internet,
            POLICY,
            &["dig", transport, "secret.blocked.test"],
        );
        fenced.assert_code(110);
        assert!(
            fenced.output.stdout.contains("status: NXDOMAIN"),
            "{fenced:#?}"
        );
        assert!(
            fenced.output.stdout.contains("EDE: "),
            "no Extended DNS Error: {fenced:#?}"
        );
        let arrived = internet.since(start);
        assert!(arrived.is_empty(), "asked upstream: {arrived}");
    }
    Ok(())
}

#[test]
fn the_public_address_of_a_mixed_answer_is_kept() -> Result<()> {
    let internet = Internet::new()?;
    let fenced = fenced(
        &internet,
        &policy("{host: mixed.test}"),
        &["dig", "+short", "mixed.test"],
    );
    assert_eq!(fenced.output.stdout, "198.51.100.10\n", "{fenced:#?}");
    Ok(())
}

#[test]
fn a_rule_may_permit_private_answers() -> Result<()> {
    let internet = Internet::new()?;
    let rules = policy("{host: private.test, ports: [80], private: true}");
    allowed(&internet, &rules, &["curl", "-sS", "http://private.test/"]);
    Ok(())
}

#[test]
fn an_answer_too_long_for_udp_comes_by_tcp() -> Result<()> {
    let internet = Internet::new()?;
    let text = allowed(
        &internet,
        &policy("{host: big.test}"),
        &["dig", "+short", "big.test"],
    );
    assert_eq!(text.lines().count(), 100);
    Ok(())
}

#[test]
fn search_suffixes_of_an_allowed_name_are_no_violation() -> Result<()> {
    let internet = Internet::new()?;
    let servers = DNS.both().map(|ip| format!("nameserver {ip}\n")).concat();
    fs::write(
        internet.dir().join("resolv.conf"),
        servers + "search corp.test\noptions ndots:3\n",
    )?;
    let start = internet.mark();
    allowed(&internet, POLICY, &["curl", "-sS", "https://allowed.test/"]);
    assert!(
        internet
            .since(start)
            .questions("allowed.test.corp.test")
            .is_empty()
    );
    Ok(())
}

// Modes.

#[test]
fn audit_mode_lets_through_and_logs() -> Result<()> {
    let internet = Internet::new()?;
    let fence = Fence::new(&internet, POLICY)?.options(&["--mode", "audit"]);
    let fenced = fence.run(&["curl", "-sS", "https://blocked.test/"])?;
    fenced.assert_code(0);
    assert_eq!(fenced.output.stdout, "blocked.test /\n");
    let event = fenced.denials("name");
    assert!(!event.is_empty(), "{fenced:#?}");
    assert_eq!(event[0]["state"], "auditing");
    Ok(())
}

#[test]
fn bad_policies_run_nothing() -> Result<()> {
    let internet = Internet::new()?;
    for text in [
        "",
        "jobs: {}",
        "version: 2\njobs: {}",
        "version: 1\njobs: {default: {alow: []}}",
        "version: 1\nversion: 1\njobs: {}",
        "version: 1\njobs: {default: {allow: [{host: 'a..b'}]}}",
        "version: 1\njobs: {default: {extends: nobody}}",
        "version: 1\njobs: {default: {allow: [{host: a.test, ports: [70000]}]}}",
        ": [",
    ] {
        let fenced = fenced(&internet, text, &["touch", "ran"]);
        fenced.assert_code(112);
        assert!(
            fenced.output.stderr.contains("policy-"),
            "names no file: {fenced:#?}"
        );
        assert!(
            !internet.home().join("ran").exists(),
            "user code ran with {text:?}"
        );
    }
    Ok(())
}

// The command.

#[test]
fn exit_codes_are_the_commands() -> Result<()> {
    let internet = Internet::new()?;
    for (command, code) in [
        (["sh", "-c", "exit 0"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -TERM $$"], 128 + 15),
        (["/nonexistent/program", "", ""], 127),
        (["/etc/hosts", "", ""], 126),
        (["no-such-program", "", ""], 127),
    ] {
        fenced(&internet, POLICY, &command).assert_code(code);
    }
    Ok(())
}

#[test]
fn standard_streams_are_the_commands() -> Result<()> {
    let internet = Internet::new()?;
    let (reader, mut writer) = pipe()?;
    writer.write_all(b"through\n")?;
    drop(writer);
    let fenced = Fence::new(&internet, POLICY)?.stdin(reader).run(&["cat"])?;
    fenced.assert_code(0);
    assert_eq!(fenced.output.stdout, "through\n");
    Ok(())
}

#[test]
fn inherited_sockets_are_closed() -> Result<()> {
    let internet = Internet::new()?;
    let list = "import os; print(sorted(int(fd) for fd in os.listdir('/proc/self/fd')))";
    let (fence, _log) = Fence::new(&internet, POLICY)?.command(&["python3", "-c", list])?;
    // A connection made before the fence, handed down as descriptor 7.
    let before = "
import os, socket, sys
s = socket.create_connection(('blocked.test', 80))
os.dup2(s.fileno(), 7)
os.execvp(sys.argv[1], sys.argv[1:])
";
    let inner = fence
        .get_args()
        .skip_while(|argument| *argument != "--")
        .skip(1);
    let mut command = internet.command("python3");
    let output = run(
        command.args(["-c", before]).args(inner),
        Duration::from_secs(20),
    )?;
    // 3 is the directory that is being read.
    assert_eq!(output.stdout, "[0, 1, 2, 3]\n", "{output:?}");
    Ok(())
}

#[test]
fn the_command_has_the_users_ids_and_no_privileges() -> Result<()> {
    let internet = Internet::new()?;
    let status = allowed(&internet, POLICY, &["cat", "/proc/self/status"]);
    let field = |name: &str| -> Vec<&str> {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {name} in {status}"))
            .split_whitespace()
            .collect()
    };
    assert_eq!(field("Uid"), ["65534"; 4]);
    assert_eq!(field("Gid"), ["65534"; 4]);
    assert!(
        field("Groups").iter().all(|group| *group == "65534"),
        "{status}"
    );
    assert_eq!(field("NoNewPrivs"), ["1"]);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), ["0000000000000000"], "{set}");
    }
    Ok(())
}

#[test]
fn processes_left_in_the_background_are_ended() -> Result<()> {
    let internet = Internet::new()?;
    let script = "setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $!";
    let pid = allowed(&internet, POLICY, &["sh", "-c", script]);
    assert!(is_gone(pid.trim()), "{pid} outlives its job");
    Ok(())
}

#[test]
fn killing_jobfence_leaves_no_process_of_the_job() -> Result<()> {
    let internet = Internet::new()?;
    let script = "setsid sleep 1000 & echo $! > pid.new; mv pid.new pid; wait";
    let (mut command, _log) = Fence::new(&internet, POLICY)?.command(&["sh", "-c", script])?;
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let file = internet.home().join("pid");
    eventually("the command has begun", || {
        file.exists() || !matches!(child.try_wait(), Ok(None))
    });
    child.kill()?;
    child.wait()?;
    let pid = fs::read_to_string(&file)?;
    eventually("the job ends with jobfence", || is_gone(pid.trim()));
    Ok(())
}

/// Whether there is no such process, or only its exit code is left.
fn is_gone(pid: &str) -> bool {
    assert!(pid.parse::<u32>().is_ok(), "no process id: {pid:?}");
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.contains(") Z "),
        Err(_) => true,
    }
}

// Loopback.

#[test]
fn a_listener_of_the_job_is_reached_without_a_rule() -> Result<()> {
    let internet = Internet::new()?;
    let script = "
import socket
for family, address in ((socket.AF_INET, '127.0.0.1'), (socket.AF_INET6, '::1')):
    server = socket.create_server((address, 0), family=family)
    client = socket.create_connection(server.getsockname()[:2])
    server.accept()[0].sendall(b'inside')
    assert client.recv(9) == b'inside'
";
    let fenced = fenced(&internet, POLICY, &["python3", "-c", script]);
    fenced.assert_code(0);
    assert!(
        fenced.events.iter().all(|event| event["verdict"] != "deny"),
        "{fenced:#?}"
    );
    Ok(())
}

#[test]
fn a_listener_outside_the_job_needs_a_rule() -> Result<()> {
    let internet = Internet::new()?;
    let _outside = Outside::listen(&internet, 7001)?;
    let script = "import socket; print(socket.create_connection(('127.0.0.1', 7001), 5).recv(9))";
    let command = ["python3", "-c", script];
    let refused = fenced(&internet, POLICY, &command);
    refused.assert_code(110);
    refused.assert_denial(&Expect::new("loopback", IpAddr::from([127, 0, 0, 1]), 7001));
    let rules = policy("{host: localhost, ports: [7001]}");
    assert_eq!(allowed(&internet, &rules, &command), "b'outside'\n");
    Ok(())
}

// Events.

#[test]
fn an_event_tells_which_process_it_was() -> Result<()> {
    let internet = Internet::new()?;
    let script = format!("python3 -c \"{TCP}\" 198.51.100.20 443; true");
    let expect = Expect::new("no-rule", BLOCKED.v4, 443);
    let fenced = denied(&internet, POLICY, &["sh", "-c", &script], &expect)?;
    let process = &fenced.assert_denial(&expect)["process"];
    let exe = process["exe"].as_str().unwrap_or_default();
    assert!(exe.contains("/python3"), "{process:#}");
    assert!(
        process["cmdline"].to_string().contains("198.51.100.20"),
        "{process:#}"
    );
    assert!(
        process["comm"]
            .as_str()
            .unwrap_or_default()
            .starts_with("python3"),
        "{process:#}"
    );
    assert_eq!(process["uid"], 65534, "{process:#}");
    assert!(
        process["ancestors"][0].to_string().contains("sh"),
        "{process:#}"
    );
    Ok(())
}

#[test]
fn events_are_numbered_without_gaps() -> Result<()> {
    let internet = Internet::new()?;
    let script = "
import socket
for port in range(1000, 1200):
    try: socket.create_connection(('198.51.100.20', port), 5)
    except OSError: pass
";
    let fenced = fenced(&internet, POLICY, &["python3", "-c", script]);
    fenced.assert_code(110);
    let seq: Vec<_> = fenced
        .events
        .iter()
        .filter_map(|event| event["seq"].as_u64())
        .collect();
    assert_eq!(
        seq.len(),
        fenced.events.len(),
        "an event has no number: {fenced:#?}"
    );
    assert!(seq.windows(2).all(|pair| pair[1] == pair[0] + 1), "{seq:?}");
    for port in 1000..1200 {
        fenced.assert_denial(&Expect::new("no-rule", BLOCKED.v4, port));
    }
    Ok(())
}

#[test]
fn the_log_of_a_job_is_whole_and_tells_what_was_told() -> Result<()> {
    let internet = Internet::new()?;
    let script = "for i in 1 2 3; do curl -s --max-time 5 https://198.51.100.20/; done; exit 0";
    let (mut command, log) = Fence::new(&internet, POLICY)?.command(&["sh", "-c", script])?;
    let job = run(&mut command, Duration::from_secs(30))?;
    assert_eq!(job.status.code(), Some(110), "{job:#?}");
    let report = |options: &[&str]| {
        let mut report = Command::new(binary()?);
        let command = report.arg("report").arg(&log).args(options);
        run(command, Duration::from_secs(30))
    };
    let whole = report(&["--verify"])?;
    assert_eq!(whole.status.code(), Some(0), "{whole:#?}");
    let told = report(&[])?;
    assert_eq!((told.status.code(), told.stdout), (Some(0), job.stderr));
    Ok(())
}

#[test]
fn a_rule_that_has_expired_is_named_and_no_other_is_proposed() -> Result<()> {
    let internet = Internet::new()?;
    let policy = "
version: 1
jobs:
  default:
    allow:
      - host: allowed.test
        expires: 2020-02-29
";
    let fenced = fenced(&internet, policy, &["curl", "-sS", "https://allowed.test/"]);
    fenced.assert_code(110);
    assert!(!fenced.denials("expired").is_empty(), "{fenced:#?}");
    let report = &fenced.output.stderr;
    assert!(
        report.contains(":6 allowed allowed.test until 2020-02-29, which is past"),
        "{report}"
    );
    assert!(!report.contains("to allow it"), "{report}");
    Ok(())
}

#[test]
fn repeated_attempts_are_counted_in_one_event() -> Result<()> {
    let internet = Internet::new()?;
    let script = "
import socket
for i in range(50):
    try: socket.create_connection(('198.51.100.20', 443), 5)
    except PermissionError: pass
";
    let fenced = fenced(&internet, POLICY, &["python3", "-c", script]);
    fenced.assert_code(110);
    let count: u64 = fenced
        .denials("no-rule")
        .iter()
        .filter_map(|e| e["count"].as_u64())
        .sum();
    assert_eq!(count, 50, "{fenced:#?}");
    Ok(())
}
