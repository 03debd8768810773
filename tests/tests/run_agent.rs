//! `jobfence run` where an agent is running: the command is a job of that one.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use jobfence_tests::{Agent, Fence, Fenced, Internet, addresses::BLOCKED, eventually, run};
use rustix::process::{Pid, Signal, kill_process};
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

const ALLOWED: &str = "curl -sS -m 5 -o /dev/null https://allowed.test/";

/// How long anything may take that does not hang.
const DEADLINE: Duration = Duration::from_secs(60);

/// An attempt that is refused.
fn blocked() -> String {
    format!("curl -sS -m 5 http://{}/", BLOCKED.v4)
}

/// Runs a shell script as a job of `agent`.
fn fenced(internet: &Internet, agent: &Agent<'_>, policy: &str, script: &str) -> Result<Fenced> {
    let fence = Fence::new(internet, policy)?.agent(Some(agent.socket()));
    fence.run(&["sh", "-c", script])
}

/// What the agent says of all its jobs.
fn jobs(agent: &Agent<'_>) -> Result<Vec<Value>> {
    let output = agent.job(&["list", "--json"])?;
    ensure!(output.status.success(), "{output:?}\n{}", agent.said());
    Ok(serde_json::from_str(&output.stdout)?)
}

/// Starts a shell script as a job of `agent`, and waits until it has made the file `ready`.
fn begin(internet: &Internet, agent: &Agent<'_>, script: &str) -> Result<Child> {
    let fence = Fence::new(internet, POLICY)?.agent(Some(agent.socket()));
    let (mut command, _log) = fence.command(&["sh", "-c", script])?;
    let mut child = command.stderr(Stdio::piped()).spawn()?;
    let ready = internet.home().join("ready");
    let mut ended = None;
    eventually("the job runs, or has ended", || {
        ended = child.try_wait().unwrap_or_default();
        ready.exists() || ended.is_some()
    });
    if ended.is_some() {
        bail!("{:?}\n{}", child.wait_with_output()?, agent.said());
    }
    Ok(child)
}

fn send(child: &Child, signal: Signal) -> Result<()> {
    Ok(kill_process(Pid::from_child(child), signal)?)
}

#[test]
fn the_exit_code_is_that_of_the_command_or_of_the_verdict() -> Result<()> {
    let internet = Internet::new()?;
    let agent = Agent::start(&internet, "")?;

    let clean = fenced(&internet, &agent, POLICY, &format!("{ALLOWED} && exit 7"))?;
    clean.assert_code(7);
    let mark = internet.mark();
    let violation = fenced(&internet, &agent, POLICY, &blocked())?;
    violation.assert_code(110);
    assert!(internet.since(mark).to(BLOCKED.v4).is_empty());
    let report = &violation.output.stderr;
    assert!(report.contains(&format!("✗ {}:80", BLOCKED.v4)), "{report}");

    fenced(&internet, &agent, "version: 2", "touch ran")?.assert_code(112);
    let fence = Fence::new(&internet, POLICY)?.agent(Some(agent.socket()));
    fence.run(&["no-such-program"])?.assert_code(127);
    assert!(!internet.home().join("ran").exists());

    let audit = Fence::new(&internet, POLICY)?.agent(Some(agent.socket()));
    let audit = audit.options(&["--mode", "audit"]);
    let audit = audit.run(&["sh", "-c", &blocked()])?;
    audit.assert_code(0);
    assert!(
        audit.output.stderr.contains("auditing"),
        "{}",
        audit.output.stderr
    );
    eventually("no job is left", || {
        jobs(&agent).is_ok_and(|jobs| jobs.is_empty())
    });
    Ok(())
}

#[test]
fn a_job_is_as_secured_as_without_an_agent_and_its_log_says_so() -> Result<()> {
    let internet = Internet::new()?;
    let agent = Agent::start(&internet, "")?;
    let script = format!(
        "{}; grep -E '^(Cap|Seccomp|NoNew)' /proc/self/status",
        blocked()
    );
    let fenced = fenced(&internet, &agent, POLICY, &script)?;
    fenced.assert_code(110);
    for line in ["CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(fenced.output.stdout.contains(line), "{fenced:#?}");
    }
    let start = fenced.events.first().context("no events")?;
    assert_eq!(start["state"], "enforcing", "{start:#}");
    let alone = Fence::new(&internet, POLICY)?.run(&["true"])?;
    assert_eq!(start["layers"], alone.events[0]["layers"]);

    // Of the proof that the command was preceded by, nothing.
    let of_command = |event: &Value| {
        event["process"]["exe"]
            .as_str()
            .is_some_and(|exe| exe.ends_with("curl"))
    };
    let of_job = |event: &&Value| event["kind"] != "job";
    let events: Vec<_> = fenced.events.iter().filter(of_job).collect();
    assert!(!events.is_empty(), "{fenced:#?}");
    assert!(events.into_iter().all(of_command), "{fenced:#?}");

    let id = start["job"]["id"].as_str().context("no id")?;
    assert_eq!(agent.log(id)?, fenced.events, "--log has a copy");
    Ok(())
}

#[test]
fn an_agent_at_the_usual_place_is_used_and_one_that_is_named_must_be_there() -> Result<()> {
    let internet = Internet::new()?;
    let missing = Fence::new(&internet, POLICY)?.agent(Some(internet.dir().join("none.sock")));
    missing.run(&["touch", "ran"])?.assert_code(111);
    assert!(!internet.home().join("ran").exists());

    // In this mount namespace only.
    let prepare =
        "mount -t tmpfs none /run; mkdir /run/jobfence; ln -s \"$1\" /run/jobfence/agent.sock";
    let socket = internet.dir().join("agent/agent.sock");
    let mut prepared = internet.command("sh");
    prepared.args(["-ec", prepare, "sh"]).arg(&socket);
    let prepared = run(&mut prepared, DEADLINE)?;
    ensure!(prepared.status.success(), "{prepared:?}");
    let usual = || Fence::new(&internet, POLICY)?.agent(None).run(&["true"]);
    let alone = usual()?;
    alone.assert_code(0);

    let mut agent = Agent::start(&internet, "")?;
    let held = usual()?;
    held.assert_code(0);
    let id = |fenced: &Fenced| fenced.events[0]["job"]["id"].as_str().map(str::to_owned);
    let log = |fenced| agent.log_path(&id(fenced).unwrap_or_default());
    assert!(log(&held).exists(), "{held:#?}\n{}", agent.said());
    assert!(!log(&alone).exists());

    // What it leaves is no agent.
    agent.kill()?;
    assert!(socket.exists());
    usual()?.assert_code(0);
    Ok(())
}

#[test]
fn an_agent_that_refuses_is_no_reason_to_run_without_it() -> Result<()> {
    let internet = Internet::new()?;
    let agent = Agent::start(&internet, "jobs: 1\n")?;
    let first = begin(&internet, &agent, "touch ready; exec sleep 60")?;
    let second = fenced(&internet, &agent, POLICY, "touch ran")?;
    second.assert_code(111);
    assert!(
        second.output.stderr.contains("as many jobs run"),
        "{second:#?}"
    );
    assert!(!internet.home().join("ran").exists());
    send(&first, Signal::TERM)?;
    let ended = first.wait_with_output()?;
    assert_eq!(ended.status.code(), Some(143), "{ended:?}");
    Ok(())
}

#[test]
fn the_hosts_policy_bounds_what_the_file_allows() -> Result<()> {
    let internet = Internet::new()?;
    let host = internet.dir().join("host.yml");
    fs::write(&host, "version: 1\nceiling: [{host: other.test}]\n")?;
    let agent = Agent::start(&internet, &format!("host_policy: {}\n", host.display()))?;
    let fenced = fenced(&internet, &agent, POLICY, ALLOWED)?;
    fenced.assert_code(110);
    assert!(
        fenced.output.stderr.contains("not allowed by this host"),
        "{fenced:#?}"
    );
    Ok(())
}

#[test]
fn a_command_outlives_its_agent_inside_the_fence() -> Result<()> {
    let internet = Internet::new()?;
    let mut agent = Agent::start(&internet, "")?;
    let script = format!(
        "touch ready; until test -e go; do sleep 0.01; done; {}; exit 0",
        blocked()
    );
    let child = begin(&internet, &agent, &script)?;
    agent.kill()?;
    let mark = internet.mark();
    fs::write(internet.home().join("go"), "")?;
    agent.restart()?;
    let ended = child.wait_with_output()?;
    assert_eq!(
        ended.status.code(),
        Some(110),
        "{ended:?}\n{}",
        agent.said()
    );
    assert!(internet.since(mark).to(BLOCKED.v4).is_empty());
    eventually("no job is left", || {
        jobs(&agent).is_ok_and(|jobs| jobs.is_empty())
    });
    Ok(())
}

#[test]
fn without_an_agent_to_say_how_it_went_the_verdict_is_that_the_fence_failed() -> Result<()> {
    let internet = Internet::new()?;
    let mut agent = Agent::start(&internet, "")?;
    let script = "touch ready; until test -e go; do sleep 0.01; done; \
                  sleep 60 & echo $! >left; touch done";
    let child = begin(&internet, &agent, script)?;
    agent.kill()?;
    fs::write(internet.home().join("go"), "")?;
    let ended = child.wait_with_output()?;
    assert_eq!(ended.status.code(), Some(111), "{ended:?}");
    assert!(
        internet.home().join("done").exists(),
        "it was not waited for"
    );
    let left = fs::read_to_string(internet.home().join("left"))?;
    let left = Path::new("/proc").join(left.trim());
    eventually("nothing of the job goes on", || !left.exists());

    agent.restart()?;
    eventually("the next agent ends it", || {
        jobs(&agent).is_ok_and(|jobs| jobs.is_empty())
    });
    Ok(())
}

#[test]
fn a_job_ends_when_the_process_that_launched_it_is_killed() -> Result<()> {
    let internet = Internet::new()?;
    let agent = Agent::start(&internet, "")?;
    let script = "sleep 60 & echo $! >left; touch ready; wait";
    let child = begin(&internet, &agent, script)?;
    let left = fs::read_to_string(internet.home().join("left"))?;
    let left = Path::new("/proc").join(left.trim());
    assert!(left.exists());
    send(&child, Signal::KILL)?;
    let ended = child.wait_with_output()?;
    assert_eq!(ended.status.signal(), Some(9));
    eventually("nothing of the job is left", || {
        !left.exists() && jobs(&agent).is_ok_and(|jobs| jobs.is_empty())
    });
    Ok(())
}
