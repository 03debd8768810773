//! GitHub Actions on a self-hosted runner: the hooks that come with jobfence, called as the runner
//! calls them (see [`jobfence_tests::worker`]).

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Result;
use jobfence_tests::{
    Agent, Internet,
    addresses::BLOCKED,
    binary, eventually, run,
    worker::{COMPLETED, COMPLETED_JS, Conclusion, Hooks, Job, Runner, STARTED, STARTED_JS, hook},
};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::json;

/// The binary that is a listener and a worker.
const PROGRAM: &str = env!("CARGO_BIN_EXE_runner");

/// What a runner itself may reach: `v4only.test` is the platform.
const PLATFORM: &str = "version: 1\njobs: {default: {allow: [{host: v4only.test}]}}\n";

/// What the host gives the jobs of `group/project`.
const POLICY: &str = "version: 1\njobs: {default: {allow: [{host: allowed.test}]}}\n";

const ALLOWED: &str = "curl -sS -m 5 -o /dev/null https://allowed.test/";
const REFUSED: &str = "curl -sS -m 5 -o /dev/null http://198.51.100.20/ || true";

/// An agent that takes `nobody`'s word on a job's repository, with policies of two.
fn agent<'a>(internet: &'a Internet, policies: &[(&str, &str)]) -> Result<Agent<'a>> {
    let folder = internet.dir().join("policies");
    for (repository, policy) in policies {
        let file = folder.join(format!("{repository}.yml"));
        fs::create_dir_all(file.parent().unwrap_or(&folder))?;
        fs::write(file, policy)?;
    }
    let folder = folder.display();
    Agent::start(
        internet,
        &format!("runners: [nobody]\npolicies: {folder}\n"),
    )
}

/// A host as `jobfence install github` leaves it: the runner is in a fence, and calls the hooks.
fn fenced(internet: &Internet, agent: &Agent, name: &str) -> Result<(Runner, String)> {
    let hooks = Hooks::installed(internet, agent)?;
    let runner = Runner::start(internet, name, Path::new(PROGRAM), &hooks)?;
    let id = runner.fence(agent, PLATFORM)?;
    Ok((runner, id))
}

/// Ends runners, and waits until the agent has ended what was fenced, so that no cgroup is left.
fn end<const N: usize>(agent: &Agent, runners: [Runner; N]) {
    drop(runners);
    eventually("every fence has come down", || {
        let listed = agent.job(&["list", "--json"]).expect("an answer");
        listed.stdout.trim() == "[]"
    });
}

/// Shows that what the job does arrives where there is no fence.
fn arrives_unfenced(internet: &Internet, job: &Job) -> Result<()> {
    let mark = internet.mark();
    let program = Path::new(PROGRAM);
    let outcome = Runner::start(internet, "unfenced", program, &Hooks::default())?.run(job)?;
    assert_eq!(outcome.conclusion, Conclusion::Success, "{outcome:#?}");
    assert!(
        !internet.since(mark).to(BLOCKED.v4).is_empty(),
        "{outcome:#?}"
    );
    Ok(())
}

#[test]
fn a_job_that_keeps_to_its_policy_passes() -> Result<()> {
    let internet = Internet::new()?;
    let agent = agent(&internet, &[("group/project", POLICY)])?;
    let (mut runner, _) = fenced(&internet, &agent, "one")?;
    let started = format!(
        "{} hook --socket {} github started",
        binary()?.display(),
        agent.socket().display()
    );
    let job = Job::new("group/project")
        .step("test", ALLOWED)
        .step("the hook once more", &started);
    let outcome = runner.run(&job)?;
    assert_eq!(
        outcome.conclusion,
        Conclusion::Success,
        "{outcome:#?}\n{}",
        agent.said()
    );
    let hook = outcome.step(STARTED);
    assert!(
        hook.log.contains("jobfence: this job is fenced · "),
        "{hook:#?}"
    );
    for line in [
        "- repository group/project, branch main\n",
        "- may reach allowed.test on 443 (",
    ] {
        assert!(hook.log.contains(line), "{line}: {hook:#?}");
    }
    assert!(
        hook.annotations("warning").is_empty(),
        "the runner is fenced: {hook:#?}"
    );
    let again = outcome.step("the hook once more");
    assert!(
        again.log.contains("the job is fenced already"),
        "{again:#?}"
    );
    let hook = outcome.step(COMPLETED);
    assert!(
        hook.log.contains("jobfence: nothing was refused"),
        "{hook:#?}"
    );
    assert_eq!(hook.summary, "");
    end(&agent, [runner]);
    Ok(())
}

#[test]
fn a_refused_destination_fails_the_job_and_is_named() -> Result<()> {
    let internet = Internet::new()?;
    let job = Job::new("group/project").step("test", REFUSED);
    arrives_unfenced(&internet, &job)?;

    let agent = agent(&internet, &[("group/project", POLICY)])?;
    let (mut runner, _) = fenced(&internet, &agent, "one")?;
    let mark = internet.mark();
    let outcome = runner.run(&job)?;
    assert!(internet.since(mark).is_empty());
    assert_eq!(outcome.conclusion, Conclusion::Failure, "{outcome:#?}");
    assert_eq!(
        outcome.step("test").conclusion,
        Conclusion::Success,
        "it ignored the refusal"
    );
    let hook = outcome.step(COMPLETED);
    assert_eq!(hook.conclusion, Conclusion::Failure);
    let errors = hook.annotations("error");
    assert_eq!(errors.len(), 1, "{hook:#?}");
    let title = format!("jobfence: {}:80 refused", BLOCKED.v4);
    assert_eq!(errors[0].properties["title"], title);
    for text in [
        "by curl -sS",
        "to allow it: - {cidr: 198.51.100.20/32, ports: [80]}",
    ] {
        assert!(errors[0].data.contains(text), "{text}: {hook:#?}");
        assert!(hook.summary.contains(text), "{text}: {hook:#?}");
    }
    // The job ends with its worker, without anybody's call.
    let id = job_id(&agent)?;
    eventually("the job is finished", || {
        let (_, output) = agent.finish(&id).expect("an answer");
        output.stdout.contains("1 destination refused")
    });
    let events = agent.log(&id)?;
    assert_eq!(events[0]["job"]["repo"], "group/project");
    assert_eq!(events[0]["job"]["runner"], "one");
    end(&agent, [runner]);
    Ok(())
}

/// The id of the only job that hooks have started.
fn job_id(agent: &Agent) -> Result<String> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(agent.folder().join("logs"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        ids.extend(name.strip_suffix(".jsonl").map(str::to_owned));
    }
    ids.retain(|id| id.starts_with("u65534-github-12345678901-1-build-"));
    assert_eq!(ids.len(), 1, "{ids:?}");
    Ok(ids.remove(0))
}

#[test]
fn two_jobs_at_once_have_the_policies_of_their_repositories() -> Result<()> {
    let internet = Internet::new()?;
    let policy = |port: u16| {
        format!(
            "version: 1\njobs: {{default: {{allow: [{{host: allowed.test, ports: [{port}], \
             http: verify, tls: 'off'}}]}}}}\n"
        )
    };
    let (a, b) = (policy(8001), policy(8002));
    let agent = agent(&internet, &[("group/a", &a), ("group/b", &b)])?;
    // Each waits for the other, so that both are there at once.
    let script = |own: &str, other: &str| {
        format!(
            "touch {0}/{own}; for _ in $(seq 1000); do test -e {0}/{other} && break; sleep 0.01; done
             for port in 8001 8002; do
               curl -sS -m 5 -o /dev/null -w \"$port=%{{http_code}} \" http://allowed.test:$port/ || true
             done; touch {0}/{own}-done
             for _ in $(seq 1000); do test -e {0}/{other}-done && break; sleep 0.01; done",
            internet.home().display()
        )
    };
    let (mut one, _) = fenced(&internet, &agent, "one")?;
    let (mut two, _) = fenced(&internet, &agent, "two")?;
    one.begin(&Job::new("group/a").step("test", &script("a", "b")))?;
    two.begin(&Job::new("group/b").step("test", &script("b", "a")))?;
    for (runner, open, shut) in [(&mut one, 8001, 8002), (&mut two, 8002, 8001)] {
        let outcome = runner.end()?;
        let log = &outcome.step("test").log;
        assert!(log.contains(&format!("{open}=200")), "{outcome:#?}");
        assert!(log.contains(&format!("{shut}=000")), "{outcome:#?}");
        let errors = outcome.step(COMPLETED).annotations("error");
        assert_eq!(errors.len(), 1, "{outcome:#?}");
        let title = format!("jobfence: allowed.test:{shut} refused");
        assert_eq!(errors[0].properties["title"], title);
    }
    end(&agent, [one, two]);
    Ok(())
}

#[test]
fn an_audit_of_a_pull_request_passes_and_warns() -> Result<()> {
    let internet = Internet::new()?;
    let policy = format!("mode: audit\n{POLICY}");
    let agent = agent(&internet, &[("group/project", &policy)])?;
    let (mut runner, _) = fenced(&internet, &agent, "one")?;
    let job = Job {
        base_ref: "release".to_owned(),
        event: json!({
            "repository": {"full_name": "group/project"},
            "pull_request": {"base": {"ref": "release"}, "head": {"repo": null}},
        }),
        ..Job::new("group/project")
    };
    let mark = internet.mark();
    let outcome = runner.run(&job.step("test", REFUSED))?;
    assert!(
        !internet.since(mark).to(BLOCKED.v4).is_empty(),
        "an audit refuses nothing"
    );
    assert_eq!(outcome.conclusion, Conclusion::Success, "{outcome:#?}");
    let hook = outcome.step(STARTED);
    assert!(
        hook.log
            .contains("- repository group/project, branch release\n"),
        "{hook:#?}"
    );
    let hook = outcome.step(COMPLETED);
    let warnings = hook.annotations("warning");
    assert_eq!(warnings.len(), 1, "{hook:#?}");
    let title = format!("jobfence: {}:80 would be refused", BLOCKED.v4);
    assert_eq!(warnings[0].properties["title"], title);
    assert!(
        hook.summary.contains("1 destination would be refused"),
        "{hook:#?}"
    );
    end(&agent, [runner]);
    Ok(())
}

#[test]
fn a_job_that_skips_its_hook_is_held_to_the_runners_policy() -> Result<()> {
    let internet = Internet::new()?;
    let job = Job::new("group/project").step("test", REFUSED);
    arrives_unfenced(&internet, &job)?;

    let agent = agent(&internet, &[("group/project", POLICY)])?;
    let shadow = internet.dir().join("shadow.js");
    fs::write(&shadow, "process.exitCode = 0;\n")?;
    let hooks = Hooks {
        started: Some(shadow),
        ..Hooks::installed(&internet, &agent)?
    };
    let mut runner = Runner::start(&internet, "one", Path::new(PROGRAM), &hooks)?;
    let id = runner.fence(&agent, PLATFORM)?;
    let mark = internet.mark();
    let reach =
        "curl -sS -m 5 -o /dev/null https://v4only.test/; ! curl -sS -m 5 https://allowed.test/";
    let outcome = runner.run(&job.step("the platform and no more", reach))?;
    assert!(internet.since(mark).to(BLOCKED.v4).is_empty());
    let last = outcome.step("the platform and no more");
    assert_eq!(last.conclusion, Conclusion::Success, "{outcome:#?}");
    let hook = outcome.step(COMPLETED);
    assert_eq!(hook.conclusion, Conclusion::Failure);
    let text = format!("this job ran outside a fence of its own, in that of the runner ({id})");
    assert!(
        hook.annotations("error")[0].data.starts_with(&text),
        "{hook:#?}"
    );
    let (code, output) = agent.finish(&id)?;
    assert_eq!(code, Some(110), "{output:?}");
    for refused in [format!("✗ {}:80", BLOCKED.v4), "✗ allowed.test".to_owned()] {
        assert!(output.stdout.contains(&refused), "{refused}: {output:?}");
    }
    end(&agent, [runner]);
    Ok(())
}

#[test]
fn an_event_of_another_repository_fails_the_job() -> Result<()> {
    let internet = Internet::new()?;
    let agent = agent(&internet, &[("group/project", POLICY)])?;
    let (mut runner, _) = fenced(&internet, &agent, "one")?;
    let pull = json!({
        "repository": {"full_name": "group/project"},
        "pull_request": {"base": {"ref": "main"}},
    });
    for (repository, base_ref, event) in [
        (
            "group/project",
            "",
            json!({"repository": {"full_name": "evil/fork"}}),
        ),
        ("group/project", "", json!({"ref": "refs/heads/main"})),
        ("group/project", "release", pull),
    ] {
        let job = Job {
            base_ref: base_ref.to_owned(),
            event: event.clone(),
            ..Job::new(repository)
        };
        let job = job.step("test", ALLOWED).always("report", ALLOWED);
        let mark = internet.mark();
        let outcome = runner.run(&job)?;
        assert!(internet.since(mark).is_empty(), "{event}: {outcome:#?}");
        assert_eq!(outcome.conclusion, Conclusion::Failure);
        let hook = outcome.step(STARTED);
        let error = hook.annotations("error");
        assert_eq!(error.len(), 1, "{event}: {hook:#?}");
        assert_eq!(
            error[0].properties["title"],
            "jobfence: the job is not fenced"
        );
        assert_eq!(outcome.step("test").conclusion, Conclusion::Skipped);
        assert_eq!(
            outcome.step("report").conclusion,
            Conclusion::Failure,
            "{outcome:#?}"
        );
    }
    end(&agent, [runner]);
    Ok(())
}

#[test]
fn a_policy_that_is_invalid_fails_the_job_and_it_reaches_nothing() -> Result<()> {
    let internet = Internet::new()?;
    let agent = agent(&internet, &[("group/project", "version: 1\nallow: all\n")])?;
    let (mut runner, _) = fenced(&internet, &agent, "one")?;
    let job = Job::new("group/project").always("report", "curl -sS -m 5 https://v4only.test/");
    let mark = internet.mark();
    let outcome = runner.run(&job)?;
    assert!(
        internet.since(mark).is_empty(),
        "not even the platform: {outcome:#?}"
    );
    let error = outcome.step(STARTED).annotations("error");
    assert_eq!(error.len(), 1, "{outcome:#?}");
    for text in [
        "project.yml:2:1: ",
        "The job is fenced, and may reach nothing",
    ] {
        assert!(error[0].data.contains(text), "{text}: {outcome:#?}");
    }
    let error = outcome.step(COMPLETED).annotations("error");
    assert_eq!(error.len(), 1, "{outcome:#?}");
    assert!(
        error[0].data.contains("its policy cannot be used"),
        "{outcome:#?}"
    );
    assert_eq!(outcome.conclusion, Conclusion::Failure);
    end(&agent, [runner]);
    Ok(())
}

#[test]
fn without_an_agent_the_job_fails_and_what_always_runs_reaches_nothing() -> Result<()> {
    let internet = Internet::new()?;
    let job = Job::new("group/project")
        .step("test", REFUSED)
        .always("report", REFUSED);
    arrives_unfenced(&internet, &job)?;

    let mut agent = agent(&internet, &[("group/project", POLICY)])?;
    let (mut runner, id) = fenced(&internet, &agent, "one")?;
    agent.kill()?;
    let mark = internet.mark();
    let outcome = runner.run(&job)?;
    assert!(internet.since(mark).is_empty());
    assert_eq!(outcome.conclusion, Conclusion::Failure);
    for hook in [STARTED, COMPLETED] {
        let error = outcome.step(hook).annotations("error");
        assert!(error[0].data.contains("no agent at"), "{outcome:#?}");
    }
    assert_eq!(outcome.step("test").conclusion, Conclusion::Skipped);
    assert_eq!(
        outcome.step("report").conclusion,
        Conclusion::Success,
        "it was run"
    );
    agent.restart()?;
    let (code, output) = agent.finish(&id)?;
    assert_eq!(
        code,
        Some(110),
        "what was tried meanwhile is told: {output:?}"
    );
    end(&agent, [runner]);
    Ok(())
}

#[test]
fn a_job_whose_worker_is_killed_ends_by_itself() -> Result<()> {
    let internet = Internet::new()?;
    let agent = agent(&internet, &[("group/project", POLICY)])?;
    let (mut runner, _) = fenced(&internet, &agent, "one")?;
    let pid = internet.home().join("pid");
    let script = format!(
        "echo $$ >{0}.new; mv {0}.new {0}; exec sleep 1000",
        pid.display()
    );
    let worker = runner.begin(&Job::new("group/project").step("test", &script))?;
    eventually("the step runs", || pid.exists());
    let id = job_id(&agent)?;
    let step: i32 = fs::read_to_string(&pid)?.trim().parse()?;
    let step = Pid::from_raw(step).expect("a process id");
    test_kill_process(step)?;

    let worker = Pid::from_raw(worker.try_into()?).expect("a process id");
    kill_process(worker, Signal::KILL)?;
    assert_eq!(runner.end()?.conclusion, Conclusion::Lost);
    eventually("what was left of the job is gone", || {
        test_kill_process(step).is_err()
    });
    eventually("the job is finished", || {
        let output = agent.job(&["status", &id]).expect("an answer");
        output.stdout.contains("finished")
    });
    // The runner goes on.
    let outcome = runner.run(&Job::new("group/project").step("test", ALLOWED))?;
    assert_eq!(outcome.conclusion, Conclusion::Success, "{outcome:#?}");
    end(&agent, [runner]);
    Ok(())
}

#[test]
fn a_violation_that_kills_loses_the_worker_and_not_the_runner() -> Result<()> {
    let internet = Internet::new()?;
    let policy = format!("on_violation: kill\n{POLICY}");
    let agent = agent(
        &internet,
        &[("group/project", &policy), ("group/other", POLICY)],
    )?;
    let (mut runner, _) = fenced(&internet, &agent, "one")?;
    let after = internet.home().join("after");
    let script = format!("{REFUSED}; sleep 60; touch {}", after.display());
    let start = Instant::now();
    let outcome = runner.run(&Job::new("group/project").step("test", &script))?;
    assert_eq!(outcome.conclusion, Conclusion::Lost, "{outcome:#?}");
    assert!(start.elapsed() < Duration::from_secs(50) && !after.exists());
    let (code, output) = agent.finish(&job_id(&agent)?)?;
    assert_eq!(code, Some(110), "{output:?}");
    let said = format!("✗ {}:80", BLOCKED.v4);
    assert!(
        output.stdout.contains(&said),
        "the host knows why: {output:?}"
    );
    let outcome = runner.run(&Job::new("group/other").step("test", ALLOWED))?;
    assert_eq!(outcome.conclusion, Conclusion::Success, "{outcome:#?}");
    end(&agent, [runner]);
    Ok(())
}

#[test]
fn what_a_job_calls_itself_is_no_workflow_command() -> Result<()> {
    let internet = Internet::new()?;
    let agent = agent(&internet, &[("group/project", POLICY)])?;
    let (mut runner, _) = fenced(&internet, &agent, "one")?;
    let evil = [
        "\n::add-path::/evil",
        "##[add-path]/evil",
        "%0A::add-path::/evil",
        "###[set-env name=a]/evil",
        "\n````\n<img src=/evil>",
    ];
    let mut script = String::new();
    for (port, evil) in (8000..).zip(evil) {
        // Each at a port of its own: of attempts at one destination, the first is told of.
        let url = format!("http://{}:{port}/", BLOCKED.v4);
        script += &format!("curl -m 5 -so /dev/null -A '{evil}' {url} || true\n");
    }
    let outcome = runner.run(&Job::new("group/project").step("test", &script))?;
    let hook = outcome.step(COMPLETED);
    let errors = hook.annotations("error");
    assert_eq!(errors.len(), evil.len(), "{hook:#?}");
    assert!(
        errors.iter().all(|error| error.data.contains("/evil")),
        "the command lines are told: {hook:#?}"
    );
    for command in &hook.commands {
        let name = command.name.as_str();
        assert!(
            ["group", "endgroup", "error", "notice"].contains(&name),
            "{hook:#?}"
        );
    }
    let fences = hook
        .summary
        .lines()
        .filter(|line| line.trim_start().starts_with("````"));
    assert_eq!(fences.count(), 2, "{}", hook.summary);
    end(&agent, [runner]);
    Ok(())
}

#[test]
fn a_shadowed_shell_and_node_open_nothing() -> Result<()> {
    let internet = Internet::new()?;
    let agent = agent(&internet, &[("group/project", POLICY)])?;
    let (mut runner, _) = fenced(&internet, &agent, "one")?;
    let home = internet.home();
    let shadow = format!(
        "mkdir -p {0}/bin
         for name in bash node jobfence; do
           printf '#!/bin/sh\\necho shadow\\n{REFUSED}\\nexit 0\\n' >{0}/bin/$name
           chmod +x {0}/bin/$name
         done
         echo {0}/bin >>$GITHUB_PATH",
        home.display()
    );
    let job = Job::new("group/project")
        .step("shadow", &shadow)
        .step("test", "exit 1");
    let mark = internet.mark();
    let outcome = runner.run(&job)?;
    let test = outcome.step("test");
    assert!(
        test.log.contains("shadow"),
        "the step ran what the job put there: {outcome:#?}"
    );
    assert_eq!(test.conclusion, Conclusion::Success, "{outcome:#?}");
    assert!(internet.since(mark).is_empty());
    let hook = outcome.step(COMPLETED);
    assert!(!hook.log.contains("shadow"), "the hook did not: {hook:#?}");
    assert_eq!(hook.annotations("error").len(), 1, "{hook:#?}");
    assert_eq!(outcome.conclusion, Conclusion::Failure);
    end(&agent, [runner]);
    Ok(())
}

#[test]
fn a_hook_that_hangs_or_cannot_be_run_fails() -> Result<()> {
    let folder = std::env::temp_dir().join(format!("jobfence-hooks-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let path = folder.join("hook.js");
    for text in [STARTED_JS, COMPLETED_JS] {
        let quick = text.replace("const SECONDS = 60;", "const SECONDS = 1;");
        assert_ne!(quick, text, "it has a limit");
        let arguments = text
            .lines()
            .find(|line| line.starts_with("const ARGUMENTS"));
        let arguments = arguments.expect("it has arguments");
        let sleeping = quick.replace(arguments, "const ARGUMENTS = [\"30\"\n];\n");
        for (text, program, said) in [
            (
                sleeping.as_str(),
                "/bin/sleep",
                "could not run /bin/sleep: no answer in 1 s",
            ),
            (
                text,
                "/nowhere/jobfence",
                "could not run /nowhere/jobfence: ENOENT",
            ),
            (text, "/bin/false", ""),
        ] {
            fs::write(&path, hook(text, Path::new(program), &[])?)?;
            let output = run(Command::new("node").arg(&path), Duration::from_secs(20))?;
            assert_eq!(output.status.code(), Some(1), "{program}: {output:?}");
            assert!(output.stdout.contains(said), "{program}: {output:?}");
        }
        fs::write(&path, hook(text, Path::new("/bin/true"), &[])?)?;
        let output = run(Command::new("node").arg(&path), Duration::from_secs(20))?;
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
    fs::remove_dir_all(&folder)?;
    Ok(())
}

/// The script of the composite action, which fences one step without an agent.
fn action() -> String {
    let text = include_str!("../../userspace/cli/ci/github/action/action.yml");
    let (_, script) = text.split_once("      run: |\n").expect("a script");
    let lines = script
        .lines()
        .map(|line| line.trim_start_matches("        "));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_action_fences_one_step() -> Result<()> {
    let internet = Internet::new()?;
    let home = internet.home();
    fs::write(home.join("action.sh"), action())?;
    fs::write(home.join(".jobfence.yml"), POLICY)?;
    let step = |script: &str| {
        let mut command = internet.command("bash");
        command
            .args(["--noprofile", "--norc", "-eo", "pipefail", "action.sh"])
            .env("RUNNER_TEMP", &home)
            .env("JOBFENCE_RUN", script)
            .env("JOBFENCE_POLICY", ".jobfence.yml")
            .env("JOBFENCE_JOB", "default")
            .env("JOBFENCE_PROGRAM", binary()?);
        run(&mut command, Duration::from_secs(30))
    };
    let output = step(&format!(
        "{ALLOWED}\necho \"in $PWD\"\nfalse\necho not here"
    ))?;
    assert_eq!(
        output.status.code(),
        Some(1),
        "as the script ended: {output:?}"
    );
    assert_eq!(output.stdout, format!("in {}\n", home.display()));
    let mark = internet.mark();
    let output = step(REFUSED)?;
    assert_eq!(output.status.code(), Some(110), "{output:?}");
    assert!(internet.since(mark).is_empty(), "{output:?}");
    let said = format!("✗ {}:80", BLOCKED.v4);
    assert!(output.stderr.contains(&said), "{output:?}");
    Ok(())
}
