//! `jobfence job` as root, as users and inside jobs; and what the daemon has given up.

use std::fs;

use anyhow::{Context as _, Result};
use jobfence_agent::host::confine::KEEPS;
use jobfence_tests::{Agent, Internet, Shell, run};
use serde_json::Value;

/// What `nobody` calls its job: one of its own, in each test.
fn own_id(internet: &Internet) -> Result<String> {
    let folder = internet.dir().file_name().context("a folder")?;
    Ok(format!("u65534-{}", folder.to_string_lossy()))
}

/// The command line of `jobfence job`, for a shell.
fn job(agent: &Agent<'_>, arguments: &str) -> Result<String> {
    let binary = jobfence_tests::binary()?;
    let socket = agent.folder().join("agent.sock");
    let (binary, socket) = (binary.display(), socket.display());
    Ok(format!("{binary} job --socket {socket} {arguments}"))
}

#[test]
fn a_user_fences_its_own_processes_and_they_cannot_undo_it() -> Result<()> {
    let internet = Internet::new()?;
    let agent = Agent::start(&internet, "")?;
    let id = own_id(&internet)?;
    let mut outside = Shell::new(&internet)?;
    let mut shell = Shell::new(&internet)?;

    let (status, said) = shell.run(&job(&agent, &format!("start --id {id} --pid $$"))?)?;
    assert_eq!(status, 0, "{said}\n{}", agent.said());
    assert!(said.starts_with(&format!("{id}\n")), "{said}");

    // Inside: its status, and nothing more.
    let (status, said) = shell.run(&job(&agent, "status --json")?)?;
    assert_eq!(status, 0, "{said}");
    let told: Value = serde_json::from_str(&said).context("not JSON")?;
    assert_eq!(
        (&told["id"], &told["owner"]),
        (&id.as_str().into(), &65_534.into())
    );
    for arguments in [
        "list".to_owned(),
        format!("finish {id}"),
        format!("tail {id}"),
        "status other".to_owned(),
        "start --id u65534-b --pid $$".to_owned(),
    ] {
        let (status, said) = shell.run(&job(&agent, &arguments)?)?;
        assert_eq!(status, 1, "{arguments}: {said}");
        assert!(said.contains("and nothing else"), "{arguments}: {said}");
    }

    // Outside: as the same user, of processes that are not above it.
    let forged = format!("start --id u65534-b --pid {}", shell.pid());
    let (status, said) = outside.run(&job(&agent, &forged)?)?;
    assert_eq!(status, 1, "{said}");
    assert!(
        said.contains("neither the caller nor an ancestor"),
        "{said}"
    );
    // Its first process is root's.
    let (status, said) = outside.run(&job(&agent, "start --id u65534-b --pid 1")?)?;
    assert_ne!(status, 0, "{said}");
    let (status, said) = outside.run(&job(&agent, &format!("finish {id}"))?)?;
    assert_eq!(status, 0, "{said}");
    assert!(
        shell.run("true").is_err(),
        "what is left of a job is killed"
    );
    Ok(())
}

#[test]
fn a_user_neither_sees_nor_ends_the_job_of_another() -> Result<()> {
    let internet = Internet::new()?;
    let agent = Agent::start(&internet, "")?;
    let id = own_id(&internet)?;
    let mut shell = Shell::new(&internet)?;
    let (status, said) = shell.run(&job(&agent, &format!("start --id {id} --pid $$"))?)?;
    assert_eq!(status, 0, "{said}");

    let as_other = |arguments: &[&str]| -> Result<_> {
        let mut command = internet.command("setpriv");
        command.args(["--reuid", "60012", "--regid", "60012", "--clear-groups"]);
        command.arg(jobfence_tests::binary()?);
        command
            .arg("job")
            .arg("--socket")
            .arg(agent.folder().join("agent.sock"));
        run(command.args(arguments), std::time::Duration::from_secs(30))
    };
    for request in ["finish", "status", "tail"] {
        let output = as_other(&[request, &id])?;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(output.stderr.contains("there is no job"), "{output:?}");
    }
    let taken = as_other(&["start", "--id", &id, "--pid", "1"])?;
    assert!(taken.stderr.contains("begins with u60012-"), "{taken:?}");
    let list = as_other(&["list", "--json"])?;
    assert_eq!(list.stdout.trim(), "[]", "{list:?}");
    // It goes on as it was.
    assert_eq!(shell.run("true")?.0, 0);
    let (code, output) = agent.finish(&id)?;
    assert_eq!(code, Some(0), "{output:?}");
    Ok(())
}

#[test]
fn without_an_agent_a_hook_is_told_that_nothing_is_fenced() -> Result<()> {
    let internet = Internet::new()?;
    let mut agent = Agent::start(&internet, "")?;
    agent.kill()?;
    for arguments in [&["start", "--id", "a"][..], &["finish", "a"], &["list"]] {
        let output = agent.job(arguments)?;
        assert_eq!(output.status.code(), Some(111), "{output:?}");
        assert!(output.stderr.contains("no agent at "), "{output:?}");
    }
    let usage = agent.job(&["start", "--uid", "0"])?;
    assert_eq!(usage.status.code(), Some(2), "{usage:?}");
    Ok(())
}

#[test]
fn the_agent_has_given_up_what_it_does_not_need() -> Result<()> {
    let internet = Internet::new()?;
    let agent = Agent::start(&internet, "")?;
    // It has started and ended a job like this, with all that belongs to it.
    let mut shell = Shell::new(&internet)?;
    let id = agent.fence(&shell, "one", "version: 1\njobs: {default: {}}\n")?;
    assert_ne!(shell.run("curl -sS -m 5 http://blocked.test/")?.0, 0);
    let mut looked_at = 0;
    for thread in fs::read_dir(format!("/proc/{}/task", agent.pid()?))? {
        let status = fs::read_to_string(thread?.path().join("status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().trim().to_owned()
        };
        let keeps = format!("{:016x}", KEEPS.bits());
        for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
            assert_eq!(field(set), keeps, "{set}\n{status}");
        }
        for set in ["CapInh:", "CapAmb:"] {
            assert_eq!(field(set), "0".repeat(16), "{set}\n{status}");
        }
        assert_eq!(field("NoNewPrivs:"), "1", "{status}");
        assert_eq!(field("Seccomp:"), "2", "{status}");
        looked_at += 1;
    }
    assert!(looked_at > 0);
    // What it says of a process still is all that there is to say.
    let events = agent.log(&id)?;
    let refused = events.iter().find(|event| event["verdict"] == "deny");
    let process = &refused.context("nothing refused")?["process"];
    assert!(
        process["exe"]
            .as_str()
            .is_some_and(|exe| exe.contains("curl")),
        "{process:#}"
    );
    let (code, output) = agent.finish(&id)?;
    assert_eq!(code, Some(110), "{output:?}");
    Ok(())
}
