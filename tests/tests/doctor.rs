//! What `jobfence doctor` says of hosts: this one, and views of it that lack something. What it says
//! must be what `jobfence run` does there, which `host.rs` tests.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use jobfence_tests::{Agent, Cgroup, Foreign, Internet, Output, binary, mounted, run};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(30);

/// The checks, in their order. Scripts use these names.
const IDS: [&str; 24] = [
    "root",
    "capabilities",
    "kernel",
    "cgroup",
    "bpffs",
    "programs",
    "co-attached",
    "user-namespaces",
    "dns",
    "user",
    "guard",
    "trial",
    "jit",
    "unprivileged-bpf",
    "lsm",
    "io-uring",
    "ptrace",
    "ipv6",
    "process-events",
    "refused-connections",
    "groups",
    "sudo",
    "docker-socket",
    "unix-sockets",
];

/// `jobfence doctor` with `options`, started by the words `through`, to its end.
fn doctor(through: &[&str], options: &[&str]) -> Result<Output> {
    let binary = binary()?;
    let binary = binary.to_str().context("a path in UTF-8")?;
    let words = [through, &[binary, "doctor"], options].concat();
    run(Command::new(words[0]).args(&words[1..]), DEADLINE)
}

/// What it says with `--json`.
#[derive(Debug)]
struct Said {
    report: Value,
    output: Output,
}

impl Said {
    /// Of jobs of `user`.
    fn of(through: &[&str], user: &str) -> Result<Self> {
        Self::read(doctor(through, &["--json", "--user", user])?)
    }

    fn read(output: Output) -> Result<Self> {
        let report = serde_json::from_str(&output.stdout)
            .with_context(|| format!("not JSON: {output:#?}"))?;
        Ok(Self { report, output })
    }

    /// The state, and the exit code that goes with it.
    #[track_caller]
    fn assert_state(&self, state: &str) {
        let codes = [("enforcing", 0), ("advisory", 1), ("cannot", 2)];
        let code = codes.iter().find(|(name, _)| *name == state);
        assert_eq!(self.report["state"], state, "{self:#?}");
        assert_eq!(
            self.output.status.code(),
            code.map(|(_, code)| *code),
            "{self:#?}"
        );
    }

    #[track_caller]
    fn check(&self, id: &str) -> &Value {
        let checks = self.report["checks"].as_array().expect("checks");
        let found = checks.iter().find(|check| check["id"] == id);
        found.unwrap_or_else(|| panic!("no check {id}: {self:#?}"))
    }

    /// That the check `id` has `status`, and each of `said` in what it says.
    #[track_caller]
    fn assert_check(&self, id: &str, status: &str, said: &[&str]) {
        let check = self.check(id);
        assert_eq!(check["status"], status, "{check:#}\n{self:#?}");
        let text = ["found", "means", "mend"].map(|key| check[key].as_str().unwrap_or_default());
        let text = text.join("\n");
        for part in said {
            assert!(text.contains(part), "does not say {part:?}: {check:#}");
        }
    }
}

#[test]
fn an_ordinary_user_on_this_host_is_fenced() -> Result<()> {
    let cgroup = Cgroup::new()?;
    let said = Said::of(&cgroup.enter(), "nobody")?;
    said.assert_state("enforcing");
    assert_eq!(said.report["user"], "nobody");
    assert_eq!(said.report["version"], env!("CARGO_PKG_VERSION"));
    let checks = said.report["checks"].as_array().context("checks")?;
    let ids: Vec<_> = checks
        .iter()
        .filter_map(|check| check["id"].as_str())
        .collect();
    assert_eq!(ids, IDS);
    for check in checks {
        let keys: Vec<_> = check.as_object().context("an object")?.keys().collect();
        assert_eq!(
            keys,
            ["found", "id", "means", "mend", "status"],
            "{check:#}"
        );
        assert_ne!(check["found"], "", "{check:#}");
    }
    for id in [
        "root", "kernel", "cgroup", "bpffs", "programs", "trial", "dns", "user",
    ] {
        said.assert_check(id, "ok", &[]);
    }
    let never = said.report["not_covered"]
        .as_array()
        .context("not_covered")?;
    assert!(!never.is_empty());
    assert!(cgroup.jobs().is_empty(), "left: {:?}", cgroup.jobs());
    Ok(())
}

#[test]
fn people_get_a_line_for_each_check_and_one_that_sums_up() -> Result<()> {
    let output = doctor(&[], &["--user", "nobody"])?;
    assert_eq!(output.status.code(), Some(0), "{output:#?}");
    assert!(
        !output.stdout.contains('\x1b'),
        "colour without a terminal: {output:#?}"
    );
    for id in IDS {
        let mut lines = output.stdout.lines();
        let found = lines.any(|line| line.split_whitespace().nth(1) == Some(id));
        assert!(found, "no line for {id}: {output:#?}");
    }
    let summary = output.stdout.lines().rev().nth(1);
    assert!(
        summary.is_some_and(|line| line.starts_with("enforcing: ")),
        "{output:#?}"
    );
    Ok(())
}

#[test]
fn a_job_that_is_root_is_advisory() -> Result<()> {
    let said = Said::of(&[], "root")?;
    said.assert_state("advisory");
    said.assert_check("user", "advisory", &["root", "--user"]);
    said.assert_check("trial", "ok", &[]);
    Ok(())
}

#[test]
fn without_root_it_cannot_and_says_what_it_could_not_check() -> Result<()> {
    // Where the other user can execute it.
    let dir = std::env::temp_dir().join(format!("jobfence-tests-doctor-{}", std::process::id()));
    fs::create_dir(&dir)?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
    let copy = dir.join("jobfence");
    fs::copy(binary()?, &copy)?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    let words = ["--reuid=nobody", "--regid=nogroup", "--clear-groups"];
    let mut command = Command::new("setpriv");
    command.args(words).arg(&copy).args(["doctor", "--json"]);
    let output = run(&mut command, DEADLINE);
    fs::remove_dir_all(&dir)?;
    let said = Said::read(output?)?;
    said.assert_state("cannot");
    said.assert_check("root", "cannot", &["sudo jobfence doctor"]);
    for id in [
        "programs",
        "co-attached",
        "trial",
        "process-events",
        "refused-connections",
    ] {
        said.assert_check(id, "unknown", &[]);
    }
    // Who would call sudo.
    said.assert_check("user", "ok", &["nobody"]);
    said.assert_check("cgroup", "ok", &[]);
    Ok(())
}

#[test]
fn without_cgroup_v2_it_cannot() -> Result<()> {
    let without = mounted("umount -l -a -t cgroup2; exec \"$@\"", "sh");
    let said = Said::of(&without, "nobody")?;
    said.assert_state("cannot");
    said.assert_check("cgroup", "cannot", &["no cgroup v2", "mount -t cgroup2"]);
    said.assert_check("trial", "unknown", &[]);
    Ok(())
}

#[test]
fn a_cgroup_that_cannot_be_written_to_is_found_by_trying() -> Result<()> {
    let script = "for mount in $(findmnt -n -o TARGET -t cgroup2); do
            mount -o remount,bind,ro \"$mount\"
        done
        exec \"$@\"";
    let said = Said::of(&mounted(script, "sh"), "nobody")?;
    said.assert_state("cannot");
    said.assert_check("trial", "cannot", &["Read-only file system"]);
    Ok(())
}

#[test]
fn without_a_bpf_file_system_it_says_whether_run_can_mount_one() -> Result<()> {
    // It mounts none itself: 99 if it did.
    let script = "umount -a -t bpf; code=0; \"$@\" || code=$?
        [ \"$(findmnt -n -o FSTYPE /sys/fs/bpf)\" != bpf ] || code=99
        exit $code";
    let said = Said::of(&mounted(script, "sh"), "nobody")?;
    said.assert_state("enforcing");
    said.assert_check("bpffs", "note", &["not mounted", "mount -t bpf bpf"]);
    said.assert_check("trial", "ok", &[]);

    let script = "umount -a -t bpf; exec setpriv --bounding-set=-sys_admin \"$@\"";
    let said = Said::of(&mounted(script, "sh"), "nobody")?;
    said.assert_state("cannot");
    said.assert_check("bpffs", "cannot", &["mount -t bpf bpf"]);
    said.assert_check("capabilities", "cannot", &["CAP_SYS_ADMIN"]);

    let script = "mount -o remount,bind,ro /sys/fs/bpf; exec \"$@\"";
    let said = Said::of(&mounted(script, "sh"), "nobody")?;
    said.assert_state("cannot");
    said.assert_check("bpffs", "cannot", &["Read-only file system", "remount,rw"]);
    Ok(())
}

#[test]
fn nothing_is_left_pinned() -> Result<()> {
    let script = "mount -t bpf bpf /sys/fs/bpf; code=0; \"$@\" || code=$?
        [ ! -e /sys/fs/bpf/jobfence ] || code=99
        exit $code";
    Said::of(&mounted(script, "sh"), "nobody")?.assert_state("enforcing");
    Ok(())
}

#[test]
fn a_missing_capability_is_named() -> Result<()> {
    for (without, name) in [("-setuid", "CAP_SETUID"), ("-setgid", "CAP_SETGID")] {
        let set = format!("--bounding-set={without}");
        let said = Said::of(&["setpriv", &set], "nobody")?;
        said.assert_state("cannot");
        said.assert_check("capabilities", "cannot", &[name]);
    }
    // Without these the kernel still takes programs from who has CAP_SYS_ADMIN.
    let set = "--bounding-set=-bpf,-perfmon";
    Said::of(&["setpriv", set], "nobody")?.assert_state("enforcing");
    Ok(())
}

#[test]
fn programs_of_others_above_are_named_with_what_they_do_to_a_fence() -> Result<()> {
    let cgroup = Cgroup::new()?;
    cgroup.attach(&Foreign::BESIDE)?;
    let said = Said::of(&cgroup.enter(), "nobody")?;
    said.assert_state("enforcing");
    let place = &format!("at {}", cgroup.enter()[3]);
    said.assert_check(
        "co-attached",
        "note",
        &["sock_create", place, "beside others"],
    );

    let cgroup = Cgroup::new()?;
    cgroup.attach(&Foreign::ALONE)?;
    let said = Said::of(&cgroup.enter(), "nobody")?;
    said.assert_state("cannot");
    let place = &format!("at {}", cgroup.enter()[3]);
    said.assert_check(
        "co-attached",
        "note",
        &[place, "tolerates no other", "bpftool"],
    );
    said.assert_check("trial", "cannot", &["could not attach"]);
    assert!(cgroup.jobs().is_empty(), "left: {:?}", cgroup.jobs());
    Ok(())
}

#[test]
fn a_program_that_overturns_refusals_is_found_by_trying() -> Result<()> {
    let cgroup = Cgroup::new()?;
    cgroup.attach(&Foreign::OVERTURNING)?;
    let said = Said::of(&cgroup.enter(), "nobody")?;
    said.assert_state("cannot");
    said.assert_check("co-attached", "note", &["sock_create"]);
    said.assert_check("trial", "cannot", &["the fence does not hold"]);
    assert!(cgroup.jobs().is_empty(), "left: {:?}", cgroup.jobs());
    Ok(())
}

/// Held to jobs on the whole host while a test runs, so a user of no other test.
const GUARDED: &str = "uucp";

/// `jobfence` on the job side of `internet`, in `cgroup`, to its end.
fn beside(internet: &Internet, cgroup: &Cgroup, arguments: &[&str]) -> Result<Output> {
    let [shell, enter @ ..] = cgroup.enter();
    let mut command = internet.command(shell);
    command.args(enter).arg(binary()?).args(arguments);
    run(&mut command, DEADLINE)
}

#[test]
fn a_user_that_is_held_to_jobs_is_judged_as_a_job_of_the_agent() -> Result<()> {
    let internet = Internet::new()?;
    let cgroup = Cgroup::new()?;
    let socket = internet.dir().join("agent/agent.sock");
    let socket = socket.to_str().context("a path in UTF-8")?;
    let doctor = |cgroup: &Cgroup, user: &str| {
        let options = ["doctor", "--json", "--user", user, "--agent", socket];
        Said::read(beside(&internet, cgroup, &options)?)
    };
    let free = doctor(&cgroup, GUARDED)?;
    free.assert_state("enforcing");
    free.assert_check("guard", "ok", &[GUARDED, "outside jobs"]);

    let mut agent = Agent::start(&internet, &format!("guard: {{users: [{GUARDED}]}}\n"))?;
    let held = doctor(&cgroup, GUARDED)?;
    held.assert_state("enforcing");
    held.assert_check("guard", "ok", &["only in jobs of the agent"]);
    held.assert_check("trial", "ok", &["a job of the agent"]);
    // Its programs are no others'.
    let others = |said: &Said| said.check("co-attached")["status"].to_string();
    assert_eq!(others(&held), others(&free), "{held:#?}");
    let logs = || -> Result<Vec<_>> {
        let logs = fs::read_dir(agent.folder().join("logs"))?;
        logs.map(|log| Ok(log?.file_name().to_string_lossy().into_owned()))
            .collect()
    };
    let kept = logs()?;
    assert!(
        matches!(kept.as_slice(), [log] if log.starts_with("doctor-")),
        "{kept:?}"
    );
    let other = doctor(&cgroup, "nobody")?;
    other.assert_state("enforcing");
    other.assert_check("guard", "ok", &["nobody may have sockets outside jobs"]);
    assert_eq!(
        logs()?,
        kept,
        "a trial of whom nothing holds is the agent's"
    );

    let overturned = Cgroup::new()?;
    overturned.attach(&Foreign::OVERTURNING)?;
    let said = doctor(&overturned, GUARDED)?;
    said.assert_state("cannot");
    said.assert_check("guard", "ok", &[]);
    said.assert_check("trial", "cannot", &["the fence does not hold"]);
    said.assert_check("co-attached", "note", &["sock_create"]);

    agent.kill()?;
    let said = doctor(&cgroup, GUARDED)?;
    said.assert_state("cannot");
    let start = "systemctl start jobfence-agent";
    said.assert_check("guard", "cannot", &["no agent", socket, start]);
    said.assert_check("trial", "unknown", &[]);
    doctor(&cgroup, "nobody")?.assert_state("enforcing");

    agent.restart()?;
    doctor(&cgroup, GUARDED)?.assert_state("enforcing");

    // Which is what a job without the agent would come to, also while that runs.
    let policy = internet.dir().join("none.yml");
    fs::write(&policy, "version: 1\njobs: {default: {}}\n")?;
    let policy = policy.to_str().context("a path in UTF-8")?;
    for (agent, code) in [(socket, 0), ("none", 111)] {
        let options = ["run", "--policy", policy, "--user", GUARDED];
        let run = [&options, &["--agent", agent, "--", "true"][..]].concat();
        let output = beside(&internet, &cgroup, &run)?;
        assert_eq!(output.status.code(), Some(code), "{output:#?}");
        let names_it = output.stderr.contains("`guard` in agent.yml");
        assert_eq!(names_it, code == 111, "{output:#?}");
    }
    for cgroup in [cgroup, overturned] {
        assert!(cgroup.jobs().is_empty(), "left: {:?}", cgroup.jobs());
    }
    Ok(())
}

#[test]
fn in_a_container_nothing_of_the_kernel_is_asked_for() -> Result<()> {
    let container = ["unshare", "--pid", "--fork", "--mount-proc"];
    for more in [&["--net"][..], &[]] {
        let said = Said::of(&[&container, more].concat(), "nobody")?;
        said.assert_check("process-events", "note", &["container", "on the host"]);
        let text = said.check("process-events").to_string();
        assert!(!text.contains("CONFIG_PROC_EVENTS"), "{text}");
    }
    Ok(())
}

#[test]
fn a_host_without_user_namespaces_cannot() -> Result<()> {
    let script = "mount --bind \"$0\" /proc/sys/user/max_user_namespaces; exec \"$@\"";
    let zero = std::env::temp_dir().join(format!("jobfence-tests-zero-{}", std::process::id()));
    fs::write(&zero, "0\n")?;
    let said = Said::of(&mounted(script, zero.to_str().context("UTF-8")?), "nobody");
    fs::remove_file(&zero)?;
    let said = said?;
    said.assert_state("cannot");
    said.assert_check(
        "user-namespaces",
        "cannot",
        &["sysctl -w user.max_user_namespaces="],
    );
    Ok(())
}

#[test]
fn a_kernel_before_the_floor_cannot() -> Result<()> {
    let said = Said::of(&["setarch", "--uname-2.6"], "nobody")?;
    said.assert_state("cannot");
    said.assert_check("kernel", "cannot", &["Linux 2.6.", "5.17"]);
    Ok(())
}

#[test]
fn without_resolv_conf_it_cannot() -> Result<()> {
    let script = &with_etc("rm etc/resolv.conf");
    let said = Said::of(&mounted(script, "sh"), "nobody")?;
    said.assert_state("cannot");
    said.assert_check("dns", "cannot", &["/etc/resolv.conf", "No such file"]);

    let script = &with_etc("printf 'nameserver 198.51.100.53\\n' > etc/resolv.conf");
    let said = Said::of(&mounted(script, "sh"), "nobody")?;
    said.assert_state("enforcing");
    said.assert_check("dns", "ok", &["198.51.100.53"]);
    Ok(())
}

#[test]
fn an_unknown_user_cannot() -> Result<()> {
    let said = Said::of(&[], "nosuchuser")?;
    said.assert_state("cannot");
    said.assert_check("user", "cannot", &["nosuchuser"]);
    assert_eq!(said.report["user"], Value::Null);
    Ok(())
}

/// A script for [`mounted`] that makes a copy of what is needed of /etc, which `change` may change
/// at `etc`, and puts it in place; and an empty /run.
fn with_etc(change: &str) -> String {
    format!(
        "mount -t tmpfs none /run; mkdir /run/etc; cd /run
        for file in passwd group hosts nsswitch.conf resolv.conf; do
            cp -L \"/etc/$file\" etc/
        done
        {change}
        mount --bind etc /etc; exec \"$@\""
    )
}

/// A user `ci` with the primary group `group`, and a group `docker` that it is in.
fn with_ci(group: u32, change: &str) -> String {
    with_etc(&format!(
        "sed -i /^docker:/d etc/group
        printf 'ci:x:4242:\\ndocker:x:4243:ci\\n' >> etc/group
        printf 'ci:x:4242:{group}::/:/bin/sh\\n' >> etc/passwd
        {change}"
    ))
}

#[test]
fn groups_that_can_act_as_root_are_a_note_and_as_primary_group_advisory() -> Result<()> {
    let said = Said::of(&mounted(&with_ci(4242, ""), "sh"), "ci")?;
    said.assert_state("enforcing");
    said.assert_check(
        "groups",
        "note",
        &["ci is in docker", "gpasswd -d ci docker"],
    );
    said.assert_check("docker-socket", "ok", &["none"]);

    let said = Said::of(&mounted(&with_ci(4243, ""), "sh"), "ci")?;
    said.assert_state("advisory");
    said.assert_check("user", "advisory", &["docker", "usermod -g"]);
    Ok(())
}

/// Listens at `argv[1:]` until it is killed, and says when.
const LISTEN: &str = "
import os, socket, sys, time
listeners = []
for path in sys.argv[1:]:
    listener = socket.socket(socket.AF_UNIX)
    os.umask(0)
    listener.bind(path)
    listener.listen()
    listeners.append(listener)
print('listening', flush=True)
time.sleep(60)
";

/// A script for [`mounted`] with sockets at `paths`.
fn with_listener(paths: &str, change: &str) -> String {
    let listen = LISTEN.replace('"', "");
    with_ci(
        4242,
        &format!(
            "mkfifo ready; python3 -c \"{listen}\" {paths} > ready & listener=$!
            read line < ready; [ \"$line\" = listening ]
            trap 'kill $listener' EXIT
            {change}
            mount --bind etc /etc; \"$@\"; exit $?"
        ),
    )
}

#[test]
fn a_docker_socket_is_judged_by_who_may_use_it() -> Result<()> {
    for (change, status, said) in [
        ("chmod 666 docker.sock", "note", "without a group"),
        (
            "chgrp 4243 docker.sock; chmod 660 docker.sock",
            "note",
            "by a group that jobs are not in",
        ),
        ("chmod 600 docker.sock", "ok", "may not"),
    ] {
        let script = with_listener("/run/docker.sock", change);
        let report = Said::of(&mounted(&script, "sh"), "ci")?;
        report.assert_state("enforcing");
        report.assert_check("docker-socket", status, &[said]);
        // It is covered in jobs.
        let others = report.check("unix-sockets")["found"].to_string();
        ensure!(!others.contains("docker.sock"), "{report:#?}");
    }
    Ok(())
}

#[test]
fn sockets_that_a_job_can_connect_to_are_named() -> Result<()> {
    let script = with_listener(
        "/run/open.sock /run/closed.sock",
        "chmod 600 /run/closed.sock",
    );
    let said = Said::of(&mounted(&script, "sh"), "ci")?;
    said.assert_state("enforcing");
    said.assert_check("unix-sockets", "note", &["/run/open.sock"]);
    let found = said.check("unix-sockets")["found"].to_string();
    assert!(!found.contains("closed.sock"), "{said:#?}");
    Ok(())
}

#[test]
fn rules_of_sudo_are_told() -> Result<()> {
    // No sudo need be installed: one that answers as it does.
    let fake = "mount -t tmpfs none /usr/local/bin
        cat > /usr/local/bin/sudo <<'END'
#!/bin/sh
[ \"$*\" = '-n -l -U ci' ] || exit 1
echo 'User ci may run the following commands on host:'
echo '    (ALL) NOPASSWD: ALL'
END
        chmod 755 /usr/local/bin/sudo
        mount --bind /usr/local/bin/sudo /usr/bin/sudo 2> /dev/null || true";
    let script = with_ci(4242, fake);
    let said = Said::of(&mounted(&script, "sh"), "ci")?;
    said.assert_state("enforcing");
    said.assert_check(
        "sudo",
        "note",
        &["(ALL) NOPASSWD: ALL", "without a password", "visudo"],
    );
    Ok(())
}
