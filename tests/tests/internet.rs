//! Is the private internet a ground to prove anything on? Real clients reach it, each packet is
//! counted, and nothing of it is left behind.

use std::{
    fs,
    io::Read as _,
    os::unix::{fs::MetadataExt as _, process::ExitStatusExt as _},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use jobfence_tests::{
    Data, Internet, Output, Protocol,
    addresses::{ALLOWED, BLOCKED, CDN, DNS, GATEWAY, GIT, Host, METADATA, OTHER_DNS, PRIVATE},
    run,
};

const DEADLINE: Duration = Duration::from_secs(20);

/// Runs `command` on the job side.
fn client(internet: &Internet, command: &[&str]) -> Output {
    run(internet.command(command[0]).args(&command[1..]), DEADLINE).expect("it runs to its end")
}

/// Runs `command`, which must succeed, and returns its standard output.
#[track_caller]
fn succeeds(internet: &Internet, command: &[&str]) -> String {
    let output = client(internet, command);
    assert!(output.status.success(), "{command:?}: {output:?}");
    output.stdout
}

/// Runs `command`, which must succeed and have opened TCP connections to `ip` at `port`.
#[track_caller]
fn connects(internet: &Internet, command: &[&str], host: Host, port: u16) -> String {
    let start = internet.mark();
    let stdout = succeeds(internet, command);
    let arrivals = internet.since(start);
    let to_host = host.both().map(|ip| arrivals.to(ip).port(port).0).concat();
    assert!(
        to_host.iter().any(|arrival| arrival.tcp_syn),
        "{command:?}: {arrivals}"
    );
    stdout
}

#[test]
fn curl_fetches_over_http_and_https_and_both_families() -> Result<()> {
    let internet = Internet::new()?;
    for family in ["-4", "-6"] {
        for (url, port) in [
            ("http://allowed.test/x", 80),
            ("https://allowed.test/x", 443),
            ("http://allowed.test:8003/x", 8003),
            ("https://allowed.test:8443/x", 8443),
        ] {
            let body = connects(&internet, &["curl", "-sS", family, url], ALLOWED, port);
            assert_eq!(body, "allowed.test /x\n");
        }
    }
    Ok(())
}

#[test]
fn curl_fetches_from_a_bare_address_with_a_valid_certificate() -> Result<()> {
    let internet = Internet::new()?;
    for url in ["https://198.51.100.20/", "https://[2001:db8:2::20]/"] {
        connects(&internet, &["curl", "-sS", url], BLOCKED, 443);
    }
    Ok(())
}

#[test]
fn certificates_are_trusted_by_the_authority_alone() -> Result<()> {
    let internet = Internet::new()?;
    let forget = ["env", "-u", "CURL_CA_BUNDLE", "-u", "SSL_CERT_FILE"];
    let command = [&forget[..], &["curl", "-sS", "https://allowed.test/"]].concat();
    let output = client(&internet, &command);
    assert_eq!(
        output.status.code(),
        Some(60),
        "trusted without our authority: {output:?}"
    );
    Ok(())
}

#[test]
fn large_bodies_arrive_whole_and_are_counted_without_loss() -> Result<()> {
    let internet = Internet::new()?;
    let size = 100 << 20;
    let start = internet.mark();
    let url = format!("http://allowed.test/bytes/{size}");
    let got = succeeds(
        &internet,
        &[
            "curl",
            "-sS",
            "-4",
            "-o",
            "/dev/null",
            "-w",
            "%{size_download}",
            &url,
        ],
    );
    assert_eq!(got, size.to_string());
    assert!(internet.since(start).to(ALLOWED.v4).len() > 10);
    Ok(())
}

#[test]
fn wget_python_node_and_openssl_connect() -> Result<()> {
    let internet = Internet::new()?;
    let url = "https://allowed.test/y";
    let wget = [
        "wget",
        "-q",
        "-O",
        "-",
        "--ca-certificate",
        &internet.dir().join("ca.pem").to_string_lossy(),
        url,
    ]
    .map(str::to_owned);
    let wget: Vec<&str> = wget.iter().map(String::as_str).collect();
    assert_eq!(
        connects(&internet, &wget, ALLOWED, 443),
        "allowed.test /y\n"
    );

    let python =
        format!("import urllib.request as r; print(r.urlopen('{url}').read().decode(), end='')");
    assert_eq!(
        connects(&internet, &["python3", "-c", &python], ALLOWED, 443),
        "allowed.test /y\n"
    );

    let node = format!("fetch('{url}').then(r => r.text()).then(t => process.stdout.write(t))");
    assert_eq!(
        connects(&internet, &["node", "-e", &node], ALLOWED, 443),
        "allowed.test /y\n"
    );

    let openssl = "openssl s_client -connect allowed.test:443 -servername shared.test -verify_return_error </dev/null";
    let session = connects(&internet, &["sh", "-c", openssl], ALLOWED, 443);
    // OpenSSL 3.0 and later ones space it differently.
    let subject = session.replace(" = ", "=");
    assert!(subject.contains("CN=shared.test"), "{session}");
    Ok(())
}

#[test]
fn git_clones_over_https() -> Result<()> {
    let internet = Internet::new()?;
    let root = internet.dir().join("git");
    let script = r#"
        git init -q --initial-branch=main work && cd work
        echo hello > file && git add file
        git -c user.name=t -c user.email=t@allowed.test commit -q -m first
        git clone -q --bare . "$1/repo.git" && cd "$1/repo.git" && git update-server-info
    "#;
    fs::create_dir(&root)?;
    succeeds(
        &internet,
        &["sh", "-ec", script, "sh", &root.to_string_lossy()],
    );
    internet.serve_dir("git.test", &root);
    connects(
        &internet,
        &["git", "clone", "-q", "https://git.test/repo.git", "clone"],
        GIT,
        443,
    );
    assert_eq!(
        fs::read_to_string(internet.home().join("clone/file"))?,
        "hello\n"
    );
    Ok(())
}

#[test]
fn a_served_directory_has_an_index_and_no_way_out() -> Result<()> {
    let internet = Internet::new()?;
    let root = internet.dir().join("pkg");
    fs::create_dir_all(root.join("simple"))?;
    fs::write(root.join("simple/index.html"), "<a href=x>x</a>")?;
    internet.serve_dir("pkg.test", &root);
    assert_eq!(
        succeeds(&internet, &["curl", "-sS", "http://pkg.test/simple/?q"]),
        "<a href=x>x</a>"
    );
    for path in ["/none", "/../ca.pem", "//etc/passwd/.."] {
        let url = format!("http://pkg.test{path}");
        let output = client(&internet, &["curl", "-sS", "-f", "--path-as-is", &url]);
        assert_eq!(output.status.code(), Some(22), "{path}: {output:?}");
    }
    Ok(())
}

#[test]
fn names_resolve_as_the_zone_says() -> Result<()> {
    let internet = Internet::new()?;
    internet.add_record("added.test", Data::Address(CDN.v4.into()));
    let dig = |arguments: &[&str]| succeeds(&internet, &[&["dig", "+short"], arguments].concat());
    for tcp in ["+notcp", "+tcp"] {
        assert_eq!(dig(&[tcp, "allowed.test"]), "198.51.100.10\n");
        assert_eq!(dig(&[tcp, "allowed.test", "AAAA"]), "2001:db8:2::10\n");
        assert_eq!(
            dig(&[tcp, "@2001:db8:2::53", "ALLOWED.test"]),
            "198.51.100.10\n"
        );
    }
    assert_eq!(
        dig(&["alias.allowed.test"]),
        "cdn.other.test.\n198.51.100.30\n"
    );
    assert_eq!(dig(&["a.b.wild.test"]), "198.51.100.80\n");
    assert_eq!(dig(&["wild.test"]), "");
    assert_eq!(dig(&["v6only.test"]), "");
    assert_eq!(dig(&["private.test"]), "10.77.0.9\n");
    assert_eq!(dig(&["loopback.test", "AAAA"]), "::1\n");
    assert_eq!(dig(&["metadata.test"]), "169.254.169.254\n");
    assert_eq!(dig(&["text.test", "TXT"]), "\"text of text.test\"\n");
    assert_eq!(dig(&["extra.test"]).lines().count(), 2);
    assert_eq!(
        dig(&["big.test"]).lines().count(),
        100,
        "by UDP, truncated, then by TCP"
    );
    assert_eq!(dig(&["added.test"]), "198.51.100.30\n");
    assert_ne!(dig(&["changing.test"]), dig(&["changing.test"]));
    for server in OTHER_DNS.both() {
        assert_eq!(
            dig(&[&format!("@{server}"), "any.example.com"]),
            "198.51.100.54\n"
        );
    }
    let status = |name| succeeds(&internet, &["dig", name]);
    assert!(status("nothing.test").contains("status: NXDOMAIN"));
    assert!(status("servfail.test").contains("status: SERVFAIL"));
    assert!(status("v6only.test").contains("status: NOERROR"));
    Ok(())
}

#[test]
fn questions_are_read_from_the_wire() -> Result<()> {
    let internet = Internet::new()?;
    succeeds(&internet, &["dig", "Allowed.Test"]);
    succeeds(&internet, &["dig", "+tcp", "blocked.test"]);
    let arrivals = internet.arrivals();
    let udp = arrivals.questions("allowed.test");
    assert_eq!(
        (udp.len(), udp[0].protocol),
        (1, Protocol::Udp),
        "{arrivals}"
    );
    let tcp = arrivals.questions("blocked.test").to(DNS.v4);
    assert_eq!(
        (tcp.len(), tcp[0].protocol),
        (1, Protocol::Tcp),
        "{arrivals}"
    );
    Ok(())
}

#[test]
fn bytes_are_found_across_the_segments_of_one_connection() -> Result<()> {
    let internet = Internet::new()?;
    let script = "
import socket
for pieces in [(b'jobf', b'ence'), (b'jobf',), (b'ence',)]:
    s = socket.create_connection(('198.51.100.10', 5432))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    s.recv(99)
    for piece in pieces:
        s.sendall(piece)
        s.recv(99)
";
    succeeds(&internet, &["python3", "-c", script]);
    let arrived = internet.arrivals();
    assert_eq!(arrived.carrying(b"jobfence").len(), 1, "{arrived}");
    assert_eq!(arrived.carrying(b"jobf").len(), 2, "{arrived}");
    assert_eq!(arrived.carrying(b"fence of").len(), 0, "{arrived}");
    Ok(())
}

#[test]
fn datagrams_are_echoed_and_counted_one_by_one() -> Result<()> {
    let internet = Internet::new()?;
    let script = r"
import socket, sys
address, port = sys.argv[1], int(sys.argv[2])
s = socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
s.connect((address, port))
for i in range(7):
    s.send(b'%d' % i)
    assert s.recv(9) == b'%d' % i
";
    for ip in [ALLOWED, BLOCKED].iter().flat_map(|host| host.both()) {
        for port in [123, 443, 5000] {
            let start = internet.mark();
            succeeds(
                &internet,
                &["python3", "-c", script, &ip.to_string(), &port.to_string()],
            );
            let arrivals = internet.since(start);
            assert_eq!(
                arrivals.to(ip).port(port).protocol(Protocol::Udp).len(),
                7,
                "{arrivals}"
            );
        }
    }
    Ok(())
}

#[test]
fn plain_tcp_ports_greet_and_echo() -> Result<()> {
    let internet = Internet::new()?;
    let script = r"
import socket, sys
s = socket.create_connection(('allowed.test', int(sys.argv[1])), 5)
f = s.makefile('rw')
f.write('hello\n'); f.flush()
print(f.readline() + f.readline(), end='')
";
    for port in [22, 25, 5432] {
        let text = connects(
            &internet,
            &["python3", "-c", script, &port.to_string()],
            ALLOWED,
            port,
        );
        assert_eq!(text, format!("{port}\nhello\n"));
    }
    Ok(())
}

#[test]
fn every_address_there_is_belongs_to_the_net_side() -> Result<()> {
    let internet = Internet::new()?;
    for host in [PRIVATE, METADATA, GATEWAY, CDN] {
        for ip in host.both() {
            let script = "import socket, sys; socket.create_connection((sys.argv[1], 80), 5)";
            connects(
                &internet,
                &["python3", "-c", script, &ip.to_string()],
                host,
                80,
            );
        }
    }
    Ok(())
}

#[test]
fn a_packet_that_nobody_answers_is_counted() -> Result<()> {
    let internet = Internet::new()?;
    let script = "import socket; socket.socket(2, 2).sendto(b'x', ('203.0.113.7', 9))";
    // One every time: a record that lags behind would miss some.
    for round in 0..20 {
        let start = internet.mark();
        succeeds(&internet, &["/usr/bin/python3", "-S", "-c", script]);
        let arrivals = internet.since(start);
        let datagrams = arrivals.protocol(Protocol::Udp);
        assert_eq!(datagrams.len(), 1, "round {round}: {arrivals}");
        assert_eq!(
            (datagrams[0].dst_port, datagrams[0].len),
            (9, 29),
            "round {round}"
        );
    }
    Ok(())
}

#[test]
fn fragments_and_extension_headers_are_counted() -> Result<()> {
    let internet = Internet::new()?;
    let script = r"
import socket
for family, address in ((socket.AF_INET, '203.0.113.7'), (socket.AF_INET6, '2001:db8:9::7')):
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.sendto(b'x' * 3000, (address, 5353))
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, bytes([0, 0, 1, 4, 0, 0, 0, 0]))
s.sendto(b'y', ('2001:db8:9::8', 5354))
";
    succeeds(&internet, &["python3", "-c", script]);
    let arrivals = internet.arrivals().protocol(Protocol::Udp);
    let ports = |port| arrivals.port(port).len();
    assert_eq!(
        (ports(5353), ports(0), ports(5354)),
        (2, 4, 1),
        "{arrivals}"
    );
    Ok(())
}

#[test]
fn the_end_of_an_earlier_connection_is_no_attempt() -> Result<()> {
    let internet = Internet::new()?;
    let script = "
import socket, sys
s = socket.create_connection(('allowed.test', 22), 5)
print('open', flush=True)
sys.stdin.read()
";
    let mut command = internet.command("python3");
    command
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let mut line = [0; 5];
    child
        .stdout
        .take()
        .context("no pipe")?
        .read_exact(&mut line)?;
    let start = internet.mark();
    drop(child.stdin.take());
    child.wait()?;
    assert!(
        !internet.since(start).is_empty(),
        "the connection ended without a packet"
    );
    assert!(
        internet.attempts_since(start).is_empty(),
        "{}",
        internet.attempts_since(start)
    );
    Ok(())
}

#[test]
fn nothing_arrives_when_nothing_is_sent() -> Result<()> {
    let internet = Internet::new()?;
    succeeds(&internet, &["true"]);
    assert!(internet.arrivals().is_empty(), "{}", internet.arrivals());
    Ok(())
}

#[test]
fn instances_do_not_hear_each_other() -> Result<()> {
    let [one, other] = [Internet::new()?, Internet::new()?];
    succeeds(&one, &["curl", "-sS", "https://allowed.test/"]);
    assert!(!one.arrivals().is_empty());
    assert!(other.arrivals().is_empty(), "{}", other.arrivals());
    Ok(())
}

#[test]
fn neither_side_has_a_way_out() -> Result<()> {
    let internet = Internet::new()?;
    let links = succeeds(&internet, &["ip", "-o", "link"]);
    let names: Vec<_> = links
        .lines()
        .filter_map(|line| line.split(": ").nth(1))
        .collect();
    assert_eq!(names.len(), 2, "more than loopback and the cable: {links}");
    assert!(names[0] == "lo" && names[1].starts_with("eth0@"), "{links}");
    Ok(())
}

#[test]
fn commands_keep_their_pid_signals_and_exit_codes() -> Result<()> {
    let internet = Internet::new()?;
    assert_eq!(
        client(&internet, &["sh", "-c", "exit 7"]).status.code(),
        Some(7)
    );
    assert_eq!(
        client(&internet, &["sh", "-c", "kill -15 $$"])
            .status
            .signal(),
        Some(15)
    );
    assert_eq!(
        client(&internet, &["no-such-program"]).status.code(),
        Some(127)
    );
    let mut child = internet
        .command("sh")
        .args(["-c", "echo $$"])
        .stdout(Stdio::piped())
        .spawn()?;
    let pid = child.id();
    child.wait()?;
    let printed = std::io::read_to_string(child.stdout.take().unwrap())?;
    assert_eq!(printed.trim(), pid.to_string());
    Ok(())
}

#[test]
fn commands_do_not_see_the_callers_environment_or_resolver() -> Result<()> {
    let internet = Internet::new()?;
    let text = succeeds(&internet, &["sh", "-c", "env; pwd; cat /etc/resolv.conf"]);
    assert!(!text.contains("CARGO_MANIFEST_DIR") && !text.to_lowercase().contains("proxy"));
    assert!(
        text.contains(&internet.home().to_string_lossy().into_owned()),
        "{text}"
    );
    assert!(
        text.contains("nameserver 198.51.100.53\nnameserver 2001:db8:2::53\n"),
        "{text}"
    );
    Ok(())
}

#[test]
fn a_hanging_command_is_ended_with_its_children() -> Result<()> {
    let internet = Internet::new()?;
    let start = Instant::now();
    let mut command = internet.command("sh");
    command.args(["-c", "echo begun; sleep 1000 & sleep 1000"]);
    let error = run(&mut command, Duration::from_millis(100)).unwrap_err();
    assert!(format!("{error:#}").contains("begun"), "{error:#}");
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "waited for the children"
    );
    Ok(())
}

#[test]
fn nothing_is_left_after_drop() -> Result<()> {
    let internet = Internet::new()?;
    // A daemon that outlives its command, and a connection that nobody closes.
    let script = "import socket, time; s = socket.create_connection(('allowed.test', 22)); print('up', flush=True); time.sleep(1000)";
    let daemon = format!(
        "setsid python3 -c \"{script}\" & while ! ss -Htn | grep -q ESTAB; do :; done; echo $!"
    );
    let pid = succeeds(&internet, &["sh", "-c", &daemon]);
    let pid = pid
        .lines()
        .find(|line| line.parse::<u32>().is_ok())
        .unwrap()
        .to_owned();
    let dir = internet.dir().to_owned();
    let names = dir.file_name().unwrap().to_string_lossy().into_owned();
    let id = |path: &Path| fs::metadata(path).map(|namespace| (namespace.dev(), namespace.ino()));
    let namespace = id(Path::new(&format!("/proc/{pid}/ns/net")))?;
    let is_held = || -> Result<bool> {
        let mut open = fs::read_dir("/proc/self/fd")?.flatten();
        Ok(open.any(|entry| id(&entry.path()).is_ok_and(|other| other == namespace)))
    };
    assert!(is_held()?, "the test looks for the wrong namespace");
    drop(internet);

    let alive = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(
        alive.is_empty() || alive.contains(") Z "),
        "a process is left: {alive}"
    );
    assert!(!dir.exists(), "a directory is left: {}", dir.display());
    assert!(
        !fs::read_to_string("/proc/self/mountinfo")?.contains(&names),
        "a mount is left"
    );
    assert!(
        !Path::new("/run/netns")
            .join(format!("{names}-job"))
            .exists(),
        "a name is left"
    );
    assert!(!is_held()?, "the namespace is held");
    Ok(())
}

#[test]
fn what_a_killed_test_leaves_is_swept() -> Result<()> {
    // A process id that is no more: the child has been waited for.
    let mut child = Command::new("true").spawn()?;
    let pid = child.id();
    child.wait()?;
    let left = std::env::temp_dir().join(format!("jobfence-tests-{pid}-0"));
    fs::create_dir_all(&left)?;
    let output = Command::new(std::env::current_exe()?)
        .args(["--exact", "nothing_arrives_when_nothing_is_sent"])
        .output()?;
    assert!(output.status.success(), "{output:?}");
    assert!(!left.exists(), "not swept: {}", left.display());
    Ok(())
}
