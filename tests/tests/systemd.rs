//! jobfence under a real systemd: the unit that it ships, where jobs' cgroups go, and what a service
//! manager has to offer to a job that wants out.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use jobfence_tests::{
    Arrivals, Internet, Machine, Output, Shell, addresses::BLOCKED, eventually, run, slowness,
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

/// What curl(1) exits with when a name cannot be resolved.
const NO_NAME: i32 = 6;

/// The cgroups that root makes for jobs, seen from the root of the hierarchy.
const SLICE: &str = "/sys/fs/cgroup/jobfence.slice";

/// How long a command may take. Only a hanging one comes near.
const LIMIT: Duration = Duration::from_secs(30);

/// A command that fetches `url`.
fn curl(url: &str) -> String {
    format!("curl -sS -m {} -o /dev/null {url}", 5 * slowness())
}

/// An attempt to reach what the policy allows.
fn allowed() -> String {
    curl("https://allowed.test/")
}

/// An attempt to reach what no job may.
fn blocked() -> String {
    curl(&format!("http://{}/", BLOCKED.v4))
}

/// A machine with a running agent and the policy `/etc/jobfence/p.yml`. Without the agent, what is
/// refused to a job arrives.
fn agent<'a>(internet: &'a Internet, config: &str) -> Result<Machine<'a>> {
    let machine = Machine::boot(internet)?;
    let mark = internet.mark();
    machine.ok(&blocked())?;
    ensure!(!is_silent(&internet.since(mark)), "nothing arrives");
    machine.write("/etc/jobfence/agent.yml", config)?;
    machine.write("/etc/jobfence/p.yml", POLICY)?;
    machine.ok("systemctl start jobfence-agent")?;
    Ok(machine)
}

/// Has the user `ci` a service manager without being logged in.
fn start_user_manager(machine: &Machine) -> Result<()> {
    machine.ok("loginctl enable-linger ci && systemctl start user@1001")?;
    Ok(())
}

fn start(machine: &Machine, id: &str, shell: &mut Shell) -> Result<Output> {
    let pid = Machine::pid(shell)?;
    machine.sh(&format!(
        "jobfence job start --json --id {id} --pid {pid} --policy /etc/jobfence/p.yml"
    ))
}

/// Makes a job of `shell`, and returns the folder of its cgroup.
fn fence(machine: &Machine, id: &str, shell: &mut Shell) -> Result<String> {
    let started = start(machine, id, shell)?;
    ensure!(
        started.status.success(),
        "{started:#?}\n{}",
        machine.journal()
    );
    let started: Value = serde_json::from_str(&started.stdout)?;
    let cgroup = started["cgroup"].as_str().context("no cgroup")?;
    assert_eq!(current(shell)?, cgroup, "its processes are elsewhere");
    Ok(cgroup.to_owned())
}

/// The folder of the cgroup of `shell`.
fn current(shell: &mut Shell) -> Result<String> {
    let (_, own) = shell.run("sed -n s/^0:://p /proc/self/cgroup")?;
    Ok(format!("/sys/fs/cgroup{}", own.trim()))
}

/// Whether the fence is there: what the policy allows gets out, and nothing else does.
fn assert_fenced(internet: &Internet, shell: &mut Shell, when: &str) -> Result<()> {
    let (status, said) = shell.run(&allowed())?;
    assert_eq!(status, 0, "{when}: {said}");
    assert_closed(internet, shell, when)
}

fn assert_closed(internet: &Internet, shell: &mut Shell, when: &str) -> Result<()> {
    let mark = internet.mark();
    let (status, said) = shell.run(&blocked())?;
    assert_eq!(status, 7, "{when}: {said}");
    let arrived = internet.since(mark);
    assert!(is_silent(&arrived), "{when}: {arrived:?}");
    Ok(())
}

/// Whether nothing of an attempt arrived.
fn is_silent(arrived: &Arrivals) -> bool {
    arrived.to(BLOCKED.v4).is_empty()
}

/// Ends the job `id` that tried what it may not.
fn finish(machine: &Machine, id: &str) -> Result<()> {
    let finished = machine.sh(&format!("jobfence job finish {id}"))?;
    assert_eq!(finished.status.code(), Some(110), "{id}: {finished:#?}");
    let found = finished.stdout.contains(&BLOCKED.v4.to_string());
    assert!(found, "{id}: {finished:#?}");
    Ok(())
}

/// Waits until the job `id` has ended by itself.
fn is_over(machine: &Machine, id: &str) {
    let phase = || -> Result<Value> { Ok(status(machine, id)?["phase"].clone()) };
    eventually(&format!("the job {id} is over"), || {
        phase().is_ok_and(|phase| phase == "finished")
    });
}

/// The names of the units whose names fit.
fn units(machine: &Machine, pattern: &str) -> Result<String> {
    let list = format!("systemctl list-units --all --plain --no-legend '{pattern}'");
    machine.ok(&list)
}

fn tell(what: &str) {
    // Not by a macro, whose output a test that passes does not show.
    writeln!(io::stderr(), "{what}").expect("stderr");
}

#[test]
fn a_job_is_below_a_delegated_unit_of_root_and_else_in_a_scope() -> Result<()> {
    let internet = Internet::new()?;
    let machine = agent(&internet, "")?;
    let slice = |id: &str| format!("{SLICE}/jobfence-{id}.scope/jobfence-{id}");

    let mut below = machine.shell(&["--unit=below", "-pDelegate=yes"])?;
    let unit = current(&mut below)?;
    let cgroup = fence(&machine, "below", &mut below)?;
    assert_eq!(cgroup, format!("{unit}/jobfence-below"));

    // systemd gives a delegated cgroup to the unit's user, who could move processes in it.
    let mut users = machine.shell(&["--unit=users", "-pDelegate=yes", "--uid=ci"])?;
    assert_eq!(fence(&machine, "users", &mut users)?, slice("users"));

    let mut plain = machine.shell(&["--unit=plain", "--uid=ci"])?;
    let before = Instant::now();
    assert_eq!(fence(&machine, "plain", &mut plain)?, slice("plain"));
    tell(&format!("a start with a scope: {:?}", before.elapsed()));
    let status = machine.ok("systemctl status --no-pager jobfence-plain.scope")?;
    assert!(status.contains("jobfence.slice"), "{status}");

    start_user_manager(&machine)?;
    let mut command = machine.command(
        &["--uid=ci", "--setenv=XDG_RUNTIME_DIR=/run/user/1001"],
        "systemd-run",
    );
    command.args(["--user", "--scope", "--quiet", "sh"]);
    let mut session = Shell::of(command)?;
    let own = current(&mut session)?;
    assert!(own.contains("/user@1001.service/"), "{own}");
    assert_eq!(fence(&machine, "session", &mut session)?, slice("session"));

    // What `jobfence run` starts is its child, and its job goes where any other's does.
    let run = "jobfence run --user ci --policy /etc/jobfence/p.yml -- sh -c \"sed -n s/^0:://p /proc/self/cgroup\"";
    let ran = machine.sh(run)?;
    assert_eq!(ran.status.code(), Some(0), "{ran:#?}");
    assert!(ran.stdout.starts_with("/jobfence.slice/"), "{ran:#?}");
    a_service_becomes_a_runner(&machine)?;
    a_runners_job_is_beside_it(&machine)?;

    let before = machine.ok("systemctl show -p MainPID jobfence-agent")?;
    machine.ok("systemctl restart jobfence-agent")?;
    let after = machine.ok("systemctl show -p MainPID jobfence-agent")?;
    assert_ne!(before, after);
    let jobs = [
        ("below", &mut below),
        ("users", &mut users),
        ("plain", &mut plain),
        ("session", &mut session),
    ];
    for (id, shell) in jobs {
        assert_fenced(&internet, shell, id)?;
        // What user it is, it cannot move to where it was.
        let (status, said) = shell.run(&format!("echo $$ > {own}/cgroup.procs"))?;
        if id != "below" {
            assert_ne!(status, 0, "{id} {said}");
        }
        finish(&machine, id)?;
    }
    eventually("systemd removes the scopes", || {
        units(&machine, "jobfence-*.scope").is_ok_and(|units| units.is_empty())
    });
    assert!(!machine.path(&unit).join("jobfence-below").exists());
    a_scope_that_fails_or_is_stopped(&machine)
}

/// A runner's unit, fenced as it starts.
const RUNNER: &str = "\
[Unit]
Wants=jobfence-agent.service
After=jobfence-agent.service
[Service]
User=ci
ExecStart=/bin/sh -c 'sleep infinity & exec sleep infinity'
ExecStartPost=+/usr/bin/jobfence job start --runner --id runner-${INVOCATION_ID} --pid $MAINPID \
    --policy /etc/jobfence/p.yml
";

/// In a machine that runs already.
fn a_service_becomes_a_runner(machine: &Machine) -> Result<()> {
    machine.write("/run/systemd/system/runner.service", RUNNER)?;
    machine.ok("systemctl daemon-reload && systemctl start runner")?;
    let show = "systemctl show --value -p MainPID -p InvocationID runner";
    let shown = machine.ok(show)?;
    let (pid, id) = shown.split_once('\n').context(shown.clone())?;
    let id = format!("runner-{}", id.trim());
    let cgroup = format!("/jobfence.slice/jobfence-{id}.scope/jobfence-{id}");
    let found = machine.ok(&format!("sed -n s/^0:://p /proc/{pid}/cgroup"))?;
    assert_eq!(found.trim(), cgroup);
    machine.ok("systemctl daemon-reload && systemctl is-active runner")?;
    machine.ok("systemctl restart runner")?;
    let again = machine.ok(show)?;
    assert_ne!(again, shown);
    // Its first process ends it, though it is elsewhere, and the agent what else there is.
    machine.ok("systemctl stop runner")?;
    eventually("nothing of the service is left", || {
        units(machine, "jobfence-runner-*.scope").is_ok_and(|units| units.is_empty())
    });
    let left = machine.sh("pgrep -u ci -x sleep")?;
    assert_eq!(left.stdout, "");
    Ok(())
}

/// In a machine that runs already.
fn a_runners_job_is_beside_it(machine: &Machine) -> Result<()> {
    let mut shell = machine.shell(&["--uid=ci"])?;
    let pid = Machine::pid(&mut shell)?;
    let policy = "--policy /etc/jobfence/p.yml";
    let id = "runner-shell";
    machine.ok(&format!(
        "jobfence job start --runner --id {id} --pid {pid} {policy}"
    ))?;
    let scope = format!("{SLICE}/jobfence-{id}.scope");
    assert_eq!(current(&mut shell)?, format!("{scope}/jobfence-{id}"));
    shell.enter_child()?;
    let start = format!("jobfence job start --id u1001-job --pid $$ {policy}");
    let (status, said) = shell.run(&start)?;
    assert_eq!(status, 0, "{said}");
    assert_eq!(current(&mut shell)?, format!("{scope}/jobfence-u1001-job"));
    assert_closed(machine.internet(), &mut shell, "the runner's job")?;
    shell.leave()?;
    assert_eq!(current(&mut shell)?, format!("{scope}/jobfence-{id}"));
    is_over(machine, "u1001-job");
    Ok(())
}

/// In a machine that runs already.
fn a_scope_that_fails_or_is_stopped(machine: &Machine) -> Result<()> {
    // systemd refuses a name that is taken.
    let mut holder = machine.shell(&["--unit=holder"])?;
    holder.begin("systemd-run --scope --unit=jobfence-taken.scope cat /dev/zero >/dev/null")?;
    let taken = Path::new("/sys/fs/cgroup/system.slice/jobfence-taken.scope");
    let taken = machine.path(&taken.to_string_lossy());
    eventually("the name is taken", || taken.exists());
    let mut shell = machine.shell(&["--uid=ci"])?;
    let before = current(&mut shell)?;
    let refused = start(machine, "taken", &mut shell)?;
    assert_eq!(refused.status.code(), Some(111), "{refused:#?}");
    let said = refused.stdout + &refused.stderr;
    assert!(said.contains("jobfence-taken.scope"), "{said}");
    assert_eq!(current(&mut shell)?, before, "a process was moved");
    assert!(!machine.path(SLICE).join("jobfence-taken.scope").exists());
    machine.ok("systemctl stop jobfence-taken.scope")?;
    // Nothing is left that would stand in the way.
    fence(machine, "taken", &mut shell)?;

    // To a job it is as if its processes had ended, which they have.
    machine.ok("systemctl stop jobfence-taken.scope")?;
    assert!(shell.run("true").is_err(), "the job's shell lives");
    is_over(machine, "taken");
    let finished = machine.sh("jobfence job finish taken")?;
    assert_eq!(finished.status.code(), Some(0), "{finished:#?}");
    nobody_waits_for_a_systemd_that_hangs(machine)
}

fn nobody_waits_for_a_systemd_that_hangs(machine: &Machine) -> Result<()> {
    let mut shell = machine.shell(&["--uid=ci"])?;
    let before = current(&mut shell)?;
    let pid = Machine::pid(&mut shell)?;
    // Whoever asks is one of the host's own, and no child of a systemd that does not start any.
    let jobfence = || machine.command_in("cron.service", "jobfence");
    machine.while_systemd_hangs(|| {
        let mut start = jobfence();
        start.args(["job", "start", "--id", "hangs", "--pid", &pid]);
        start.args(["--policy", "/etc/jobfence/p.yml"]);
        let mut start = start.stderr(Stdio::piped()).spawn()?;
        let listed = run(jobfence().args(["job", "list"]), LIMIT)?;
        assert!(listed.status.success(), "{listed:#?}");
        assert_eq!(start.try_wait()?, None, "it did not wait for systemd");
        let started = start.wait_with_output()?;
        let said = String::from_utf8_lossy(&started.stderr);
        assert_eq!(started.status.code(), Some(111), "{said}");
        assert!(said.contains("jobfence-hangs.scope"), "{said}");
        Ok(())
    })?;
    assert_eq!(current(&mut shell)?, before, "a process was moved");
    fence(machine, "hangs", &mut shell)?;
    machine.ok("systemctl is-active jobfence-agent").map(drop)
}

#[test]
fn jobs_stay_fenced_whatever_systemd_does_to_the_agent() -> Result<()> {
    let internet = Internet::new()?;
    let machine = agent(&internet, "")?;
    let mut job = machine.shell(&["--uid=ci"])?;
    fence(&machine, "job", &mut job)?;
    let mut below = machine.shell(&["--unit=below", "-pDelegate=yes"])?;
    let unit = current(&mut below)?;
    fence(&machine, "below", &mut below)?;

    let mut gone = machine.shell(&["--uid=ci"])?;
    fence(&machine, "gone", &mut gone)?;
    let empty = "jobfence job start --json --id empty --policy /etc/jobfence/p.yml";
    let empty: Value = serde_json::from_str(&machine.ok(empty)?)?;
    let empty = empty["cgroup"].as_str().context("no cgroup")?.to_owned();

    let doctor = machine.sh("jobfence doctor --user ci")?;
    assert!(doctor.status.success(), "{doctor:#?}");
    // Without an agent, below the unit that it is started in, of which it is a part.
    let mut command = machine.command(&["--unit=alone"], "jobfence");
    command.args(["run", "--agent", "none", "--user", "ci"]);
    command.args(["--policy", "/etc/jobfence/p.yml", "--", "sh"]);
    let mut alone = Shell::of(command)?;
    for (what, command) in [
        ("as it is", "true"),
        ("after a reload", "systemctl daemon-reload"),
        ("after systemd executed itself", "systemctl daemon-reexec"),
        (
            "with limits of its unit",
            "systemctl set-property --runtime below CPUWeight=50 MemoryMax=1G TasksMax=500",
        ),
        (
            "with limits of all scopes",
            "systemctl set-property --runtime jobfence.slice MemoryMax=4G IPAccounting=yes",
        ),
        ("after a restart", "systemctl restart jobfence-agent"),
    ] {
        machine.ok(command)?;
        assert_fenced(&internet, &mut job, what)?;
        assert_fenced(&internet, &mut below, what)?;
        assert_eq!(current(&mut below)?, format!("{unit}/jobfence-below"));
        assert_fenced(&internet, &mut alone, what)?;
        let own = current(&mut alone)?;
        assert!(own.contains("/alone.service/jobfence-"), "{own}");
    }

    machine.ok("systemctl kill -s KILL jobfence-agent")?;
    assert_closed(&internet, &mut job, "while the agent is dead")?;
    comes_back(&machine, &mut job)?;

    // It does not answer any more: the watchdog has it killed.
    let short = "[Service]\nWatchdogSec=2s\n";
    machine.write(
        "/run/systemd/system/jobfence-agent.service.d/short.conf",
        short,
    )?;
    machine.ok("systemctl daemon-reload && systemctl restart jobfence-agent")?;
    machine.ok("systemctl kill -s STOP jobfence-agent")?;
    assert_closed(&internet, &mut job, "while the agent hangs")?;
    comes_back(&machine, &mut job)?;
    let result = machine.journal();
    assert!(result.contains("Watchdog timeout"), "{result}");

    machine.ok("systemctl stop jobfence-agent")?;
    assert_closed(&internet, &mut job, "without an agent")?;
    assert_closed(&internet, &mut below, "without an agent")?;
    machine.ok("systemctl stop jobfence-gone.scope")?;
    assert!(
        gone.run("true").is_err(),
        "the shell of a stopped scope lives"
    );
    machine.ok("systemctl start jobfence-agent")?;
    assert_fenced(&internet, &mut job, "with another agent")?;
    is_over(&machine, "gone");
    // Not even an empty job has lost its cgroup to systemd.
    let mut late = machine.shell(&["--uid=ci"])?;
    let pid = Machine::pid(&mut late)?;
    machine.ok(&format!("echo {pid} > {empty}/cgroup.procs"))?;
    assert_fenced(&internet, &mut late, "what comes late")?;
    finish(&machine, "empty")?;
    finish(&machine, "below")
}

#[test]
fn jobs_have_ended_after_a_reboot() -> Result<()> {
    let internet = Internet::new()?;
    let mut machine = agent(&internet, "")?;
    let mut job = machine.shell(&["--uid=ci"])?;
    fence(&machine, "job", &mut job)?;
    assert_fenced(&internet, &mut job, "before")?;

    // What a runner's unit has to say to begin after the agent, and what is left of a job of before.
    let runner = "[Unit]\nWants=jobfence-agent.service\nAfter=jobfence-agent.service\n\
                  [Service]\nType=oneshot\nExecStart=/usr/bin/jobfence job list\n";
    machine.write("/etc/systemd/system/runner.service", runner)?;
    let wants = "/etc/systemd/system/multi-user.target.wants/runner.service";
    machine.ok(&format!("ln -s ../runner.service {wants}"))?;
    machine.reboot()?;
    let journal = machine.journal();
    let result = machine.ok("systemctl show -p Result -p ExecMainStatus runner")?;
    assert_eq!(result, "Result=success\nExecMainStatus=0\n", "{journal}");
    let ended: Value = serde_json::from_str(&machine.ok("jobfence job status --json job")?)?;
    assert_eq!(ended["phase"], "finished", "{ended:#}");
    assert_eq!(ended["exit"], 111, "{ended:#}");
    machine.ok(&format!(
        "grep -q {} /var/log/jobfence/job.jsonl",
        BLOCKED.v4
    ))?;
    Ok(())
}

/// What the job `id` is, as the agent tells.
fn status(machine: &Machine, id: &str) -> Result<Value> {
    let status = machine.ok(&format!("jobfence job status --json {id}"))?;
    Ok(serde_json::from_str(&status)?)
}

/// The cgroup controllers that the machine has in the unified hierarchy.
fn has_controller(machine: &Machine, name: &str) -> Result<bool> {
    let controllers = fs::read_to_string(machine.path("/sys/fs/cgroup/cgroup.controllers"))?;
    Ok(controllers.split_whitespace().any(|found| found == name))
}

#[test]
fn limits_of_a_running_job_hold_and_so_does_its_fence() -> Result<()> {
    let internet = Internet::new()?;
    let machine = agent(&internet, "")?;
    let mut job = machine.shell(&["--uid=ci"])?;
    let cgroup = fence(&machine, "job", &mut job)?;
    let scope = format!("{SLICE}/jobfence-job.scope");
    assert_eq!(cgroup, format!("{scope}/jobfence-job"));
    for command in [
        "systemctl set-property --runtime jobfence-job.scope CPUQuota=50% MemoryMax=200M",
        "systemctl set-property --runtime jobfence-job.scope MemorySwapMax=0",
        "systemctl daemon-reload",
        "systemctl set-property --runtime jobfence.slice CPUQuota=80% MemoryMax=400M TasksMax=200",
        "systemctl daemon-reload",
    ] {
        machine.ok(command)?;
        assert_fenced(&internet, &mut job, command)?;
        assert_eq!(current(&mut job)?, cgroup, "{command}");
    }
    if !has_controller(&machine, "memory")? || !has_controller(&machine, "cpu")? {
        tell("left out: whether limits hold, without their controllers in cgroup v2");
        return finish(&machine, "job");
    }
    let read = |file: &str| fs::read_to_string(machine.path(&format!("{scope}/{file}")));
    assert_eq!(read("memory.max")?, format!("{}\n", 200 << 20));
    assert_eq!(read("cpu.max")?, "50000 100000\n");
    // The scope's limit holds for the job's cgroup below it.
    let (killed, said) = job.run("python3 -c 'print(len(bytearray(300 << 20)))'")?;
    assert_ne!(killed, 0, "{said}");
    let events = read("memory.events")?;
    assert!(!events.contains("\noom_kill 0\n"), "{events}");
    // systemd leaves what is delegated to decide for itself: the rest of the job goes on.
    assert_fenced(&internet, &mut job, "after it had too little memory")?;
    machine.ok("systemctl is-active jobfence-agent")?;
    finish(&machine, "job")
}

#[test]
fn a_job_that_cannot_gain_rights_is_as_held_as_the_kernel_can() -> Result<()> {
    let internet = Internet::new()?;
    let machine = agent(&internet, "guard: {users: [ci]}\n")?;
    let mut job = machine.shell(&["--uid=ci", "-pNoNewPrivileges=yes"])?;
    fence(&machine, "job", &mut job)?;
    assert_fenced(&internet, &mut job, "a guarded job")?;
    // Whose guard this is, and that its user's jobs are the agent's.
    let doctor = machine.ok("jobfence doctor --user ci")?;
    assert!(doctor.contains("a job of the agent was set up"), "{doctor}");

    let read = |file: &str| fs::read_to_string(machine.path(file)).unwrap_or_default();
    let lsms = read("/sys/kernel/security/lsm");
    let bpf = lsms.trim().split(',').any(|name| name == "bpf");
    let scope = read("/proc/sys/kernel/yama/ptrace_scope");
    let mut reasons = Vec::new();
    if matches!(scope.trim(), "" | "0") {
        reasons.push("ptrace_scope");
    }
    if !bpf {
        reasons.push("BPF LSM");
    }
    let state = status(&machine, "job")?["state"].to_string();
    tell(&format!("its state: {state}"));
    match reasons.is_empty() {
        true => assert_eq!(state, "\"enforcing\""),
        false => assert_eq!(state.matches(';').count() + 1, reasons.len(), "{state}"),
    }
    for reason in reasons {
        assert!(state.contains(reason), "{state}");
    }
    // A family of which only that layer knows.
    let attempt = "python3 -c 'import socket; socket.socket(socket.AF_VSOCK)' 2>&1 | tail -n 1";
    let without = machine.ok(attempt)?;
    assert!(!without.contains("Operation not permitted"), "{without}");
    let (_, with) = job.run(attempt)?;
    assert_eq!(with.contains("Operation not permitted"), bpf, "{with}");
    finish(&machine, "job")
}

/// Writes a configuration, and has systemd tell the agent, which is to say `expected`.
fn reload(machine: &Machine, config: &str, expected: &str) -> Result<()> {
    let times = machine.journal().matches(expected).count();
    machine.write("/etc/jobfence/agent.yml", config)?;
    machine.ok("systemctl reload jobfence-agent")?;
    eventually("the agent reads its configuration", || {
        machine.journal().matches(expected).count() > times
    });
    machine.ok("systemctl is-active jobfence-agent").map(drop)
}

#[test]
fn a_reload_is_for_the_jobs_that_begin_then_and_a_bad_one_for_none() -> Result<()> {
    let internet = Internet::new()?;
    let machine = agent(&internet, "")?;
    machine.write(
        "/etc/jobfence/host.yml",
        "version: 1\ndeny: [{host: allowed.test}]\n",
    )?;
    let main = || machine.ok("systemctl show -p MainPID -p NRestarts jobfence-agent");
    let agent = main()?;
    let mut before = machine.shell(&["--uid=ci"])?;
    fence(&machine, "before", &mut before)?;
    assert_fenced(&internet, &mut before, "before")?;

    let denied = |id: &str| -> Result<()> {
        let mut job = machine.shell(&["--uid=ci"])?;
        fence(&machine, id, &mut job)?;
        let (status, said) = job.run(&allowed())?;
        assert_eq!(status, NO_NAME, "{id}: {said}");
        assert_closed(&internet, &mut job, id)?;
        finish(&machine, id)
    };
    let config = "host_policy: /etc/jobfence/host.yml\n";
    reload(&machine, config, "the configuration is read again")?;
    denied("after")?;
    assert_fenced(&internet, &mut before, "a job from before")?;

    let bad = "hots_policy: /etc/jobfence/host.yml\n";
    reload(&machine, bad, "the configuration stays as it was")?;
    let journal = machine.journal();
    assert!(journal.contains("hots_policy"), "{journal}");
    denied("bad")?;
    assert_fenced(&internet, &mut before, "after a bad one")?;

    reload(&machine, "", "the configuration is read again")?;
    let mut last = machine.shell(&["--uid=ci"])?;
    fence(&machine, "last", &mut last)?;
    assert_fenced(&internet, &mut last, "without a policy of the host")?;
    assert_eq!(main()?, agent, "it is another agent");
    finish(&machine, "before")
}

/// Waits until the agent answers again, and looks whether the job's fence is whole.
fn comes_back(machine: &Machine, job: &mut Shell) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20) * slowness();
    while !machine.sh("jobfence job status job")?.status.success() {
        ensure!(Instant::now() < deadline, "{}", machine.journal());
    }
    assert_fenced(machine.internet(), job, "after it came back")
}

/// What a user has that runs programs elsewhere, and what it is told, with the name of the attempt.
const DOORS: [(&str, &str); 4] = [
    (
        "user-scope",
        "systemd-run --user --scope --quiet attempt user-scope",
    ),
    ("user-service", "systemctl --user start user-service"),
    ("at", "echo attempt at | at now"),
    // Debian's cron looks at its tables once a minute.
    (
        "cron",
        "echo '* * * * * /usr/local/bin/attempt cron' | crontab -",
    ),
];

/// Goes through `doors` from within `shell`, and has an administrator's tools start something for the
/// user; each must end with `expected`, the exit status of curl.
fn attempt_all(
    machine: &Machine,
    shell: &mut Shell,
    doors: &[(&str, &str)],
    expected: u8,
) -> Result<()> {
    for (name, command) in doors {
        // Whether it works is seen by what becomes of the attempt.
        let (status, said) = shell.run(command)?;
        tell(&format!("{name}: {status} {said}"));
    }
    machine.sh_with(&["--uid=ci"], "attempt service")?;
    machine.sh_with(&["--uid=ci", "-pPAMName=login"], "attempt login")?;
    machine.sh("su ci -c 'attempt su'")?;
    let names = doors.iter().map(|(name, _)| *name);
    let deadline = Instant::now() + Duration::from_secs(75) * slowness();
    for name in names.chain(["service", "login", "su"]) {
        let done = machine.path(&format!("/tmp/{name}.done"));
        while !done.exists() {
            ensure!(Instant::now() < deadline, "{name}: {}", machine.journal());
            thread::sleep(Duration::from_millis(20));
        }
        let status = fs::read_to_string(&done)?;
        assert_eq!(status, format!("{expected}\n"), "{name}");
        fs::remove_file(done)?;
    }
    Ok(())
}

#[test]
fn a_guarded_user_gets_out_by_no_door_of_the_host() -> Result<()> {
    let internet = Internet::new()?;
    let machine = Machine::boot(&internet)?;
    start_user_manager(&machine)?;
    let attempt = format!(
        "#!/bin/sh\n{} 2>/tmp/$1\necho $? >/tmp/$1.new\nmv /tmp/$1.new /tmp/$1.done\n",
        blocked()
    );
    machine.write("/usr/local/bin/attempt", &attempt)?;
    let service = "[Service]\nType=oneshot\nExecStart=-/usr/local/bin/attempt user-service\n";
    let unit = "/home/ci/.config/systemd/user/user-service.service";
    machine.write(unit, service)?;
    machine.ok("chmod 755 /usr/local/bin/attempt && chown -R ci /home/ci/.config")?;
    let mut job = machine.shell(&["--uid=ci", "--setenv=XDG_RUNTIME_DIR=/run/user/1001"])?;

    let (cron, quick) = DOORS.split_last().context("doors")?;
    let mark = internet.mark();
    attempt_all(&machine, &mut job, quick, 0).context("without a fence")?;
    assert!(!is_silent(&internet.since(mark)), "nothing arrived");

    machine.write("/etc/jobfence/agent.yml", "guard: {users: [ci]}\n")?;
    machine.write("/etc/jobfence/p.yml", POLICY)?;
    machine.ok("systemctl start jobfence-agent")?;
    fence(&machine, "job", &mut job)?;
    assert_fenced(&internet, &mut job, "itself")?;
    let mark = internet.mark();
    attempt_all(&machine, &mut job, quick, 7)?;
    attempt_all(&machine, &mut job, &[*cron], 7)?;
    let arrived = internet.since(mark);
    assert!(is_silent(&arrived), "{arrived:?}");
    finish(&machine, "job")?;
    let log = machine.ok("cat /var/log/jobfence/job.jsonl")?;
    assert!(log.contains("outside-job"), "{log}");
    Ok(())
}
