//! `jobfence job start --runner`: a runner's own fence, and the jobs that begin in it.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::chown},
};

use anyhow::{Context as _, Result};
use jobfence_agent::job::cgroup;
use jobfence_tests::{
    Agent, Internet, Mark, Shell,
    addresses::{ALLOWED, BLOCKED, GIT, Host},
    eventually,
};
use serde_json::Value;

/// A runner may reach `allowed.test`, which is its CI system.
const RUNNER: &str = "version: 1\njobs: {default: {allow: [{host: allowed.test}]}}\n";

/// Jobs of the repository `group/project` may reach `git.test`.
const PROJECT: &str = "version: 1\njobs: {default: {allow: [{host: git.test}]}}\n";

const SITES: [(&str, Host); 3] = [
    ("allowed.test", ALLOWED),
    ("git.test", GIT),
    ("blocked.test", BLOCKED),
];

/// The user that runs the runners of these tests.
const USER: &str = "nobody";

/// An agent that takes the word of the runners of `user` on repositories.
fn agent<'a>(internet: &'a Internet, user: &str, more: &str) -> Result<Agent<'a>> {
    let policies = internet.dir().join("policies");
    fs::create_dir_all(policies.join("group"))?;
    fs::write(policies.join("group/project.yml"), PROJECT)?;
    let policies = policies.display();
    Agent::start(
        internet,
        &format!("policies: {policies}\nrunners: [{user}]\n{more}"),
    )
}

/// A job's id that the user `uid` may give.
fn own_id(internet: &Internet, uid: u32, name: &str) -> Result<String> {
    let folder = internet.dir().file_name().context("a folder")?;
    Ok(format!("u{uid}-{}-{name}", folder.to_string_lossy()))
}

fn get(name: &str) -> String {
    format!("curl -sS -m 5 -o /dev/null https://{name}/")
}

/// Checks which of the sites the shell reaches, and that nothing arrives at the others.
fn reaches(shell: &mut Shell, internet: &Internet, allowed: &[&str]) -> Result<()> {
    for (name, host) in SITES {
        let mark = internet.mark();
        let (status, said) = shell.run(&get(name))?;
        let arrived = arrivals(internet, mark, host);
        if allowed.contains(&name) {
            assert_eq!(status, 0, "{name}: {said}");
            assert!(arrived > 0, "{name}");
        } else {
            assert_ne!(status, 0, "{name} is reached: {said}");
            assert_eq!(arrived, 0, "{name}");
        }
    }
    Ok(())
}

fn arrivals(internet: &Internet, mark: Mark, host: Host) -> usize {
    let arrived = internet.since(mark);
    host.both()
        .iter()
        .map(|&address| arrived.to(address).len())
        .sum()
}

/// Has the shell make a job of itself; returns what the agent answered.
fn start(agent: &Agent<'_>, shell: &mut Shell, id: &str) -> Result<Value> {
    let start = format!("start --json --id {id} --pid $$ --repo group/project");
    let (status, said) = shell.run(&agent.line(&start)?)?;
    assert_eq!(status, 0, "{said}\n{}", agent.said());
    serde_json::from_str(&said).context("not JSON")
}

/// What the agent says to root of a job.
fn status(agent: &Agent<'_>, id: &str) -> Result<Value> {
    let output = agent.job(&["status", id, "--json"])?;
    serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))
}

/// The names of the questions that a job's log says were refused.
fn refused(agent: &Agent<'_>, id: &str) -> Result<Vec<String>> {
    let events = agent.log(id)?;
    let refused = events.iter().filter(|event| event["verdict"] == "deny");
    let mut names: Vec<_> = refused
        .filter_map(|event| Some(event["dns"]["qname"].as_str()?.to_owned()))
        .collect();
    names.dedup();
    Ok(names)
}

#[test]
fn a_runner_is_held_to_its_policy_and_a_job_of_it_to_the_jobs() -> Result<()> {
    let internet = Internet::new()?;
    let agent = agent(&internet, USER, "")?;
    let mut shell = Shell::new(&internet)?;
    reaches(
        &mut shell,
        &internet,
        &["allowed.test", "git.test", "blocked.test"],
    )?;
    let runner = agent.fence_runner(&shell, "runner", RUNNER)?;
    reaches(&mut shell, &internet, &["allowed.test"])?;
    // Another of the runner's own processes, which is none of the job's.
    shell.run(&format!(
        "(while [ ! -e go ]; do sleep 0.05; done; {}; echo $? >own; {}; echo $? >>own) >/dev/null 2>&1 &",
        get("allowed.test"),
        get("git.test")
    ))?;

    shell.enter_child()?;
    let id = own_id(&internet, 65_534, "job")?;
    let started = start(&agent, &mut shell, &id)?;
    assert_eq!(started["runner"], runner, "{started:#}");
    let cgroup = started["cgroup"].as_str().context("a cgroup")?;
    assert!(!cgroup.contains(&runner), "beside, not below: {cgroup}");
    reaches(&mut shell, &internet, &["git.test"])?;
    fs::write(internet.home().join("go"), "")?;
    let own = || fs::read_to_string(internet.home().join("own")).unwrap_or_default();
    eventually("the runner's process has tried", || {
        own().lines().count() == 2
    });
    assert_eq!(own(), "0\n6\n", "it is held as before");
    shell.leave()?;

    let (code, output) = agent.finish(&id)?;
    assert_eq!(code, Some(110), "{output:?}");
    assert_eq!(refused(&agent, &id)?, ["allowed.test", "blocked.test"]);
    reaches(&mut shell, &internet, &["allowed.test"])?;
    let (code, output) = agent.finish(&runner)?;
    assert_eq!(code, Some(110), "{output:?}");
    let names = refused(&agent, &runner)?;
    assert!(
        names.iter().all(|name| name != "allowed.test"),
        "no name of the job's: {names:?}"
    );
    Ok(())
}

#[test]
fn a_job_whose_hook_was_skipped_is_refused_and_reported_by_the_runners_fence() -> Result<()> {
    let internet = Internet::new()?;
    let agent = agent(&internet, USER, "")?;
    let mut shell = Shell::new(&internet)?;
    reaches(
        &mut shell,
        &internet,
        &["allowed.test", "git.test", "blocked.test"],
    )?;
    let runner = agent.fence_runner(&shell, "runner", RUNNER)?;
    shell.enter_child()?;
    reaches(&mut shell, &internet, &["allowed.test"])?;
    // What it may ask from inside, and what root is told, is the same.
    let (_, said) = shell.run(&agent.line("status --json")?)?;
    let inside: Value = serde_json::from_str(&said).context("not JSON")?;
    let told = status(&agent, &runner)?;
    assert_eq!(inside, told);
    assert_eq!(
        (&told["runner"], &told["exit"]),
        (&true.into(), &110.into())
    );
    let refused = told["refused"].as_array().context("a list")?;
    let names: Vec<_> = refused.iter().map(|one| &one["destination"]).collect();
    assert_eq!(names, ["git.test", "blocked.test"], "{told:#}");
    assert_eq!(told["refused_more"], 0);
    for (one, name) in refused.iter().zip(["git.test", "blocked.test"]) {
        assert_eq!(one["reason"], "name", "{one:#}");
        assert_eq!(one["violation"], true, "{one:#}");
        assert_eq!(one["allow"], format!("- host: {name}"), "{one:#}");
        let process = one["process"].as_str().context("a process")?;
        assert!(
            process.starts_with("curl ") && process.contains(" ← sh"),
            "{process}"
        );
    }
    let list = agent.job(&["list", "--json"])?;
    let list: Value = serde_json::from_str(&list.stdout)?;
    assert_eq!(list[0]["refused"], Value::Array(Vec::new()), "{list:#}");
    assert_eq!(agent.finish(&runner)?.0, Some(110));
    assert_eq!(status(&agent, &runner)?["refused"], told["refused"]);
    Ok(())
}

#[test]
fn a_process_in_a_job_starts_no_other_wherever_the_job_began() -> Result<()> {
    let internet = Internet::new()?;
    let agent = agent(&internet, USER, "")?;
    let mut shell = Shell::new(&internet)?;
    agent.fence_runner(&shell, "runner", RUNNER)?;
    shell.enter_child()?;
    let id = own_id(&internet, 65_534, "job")?;
    start(&agent, &mut shell, &id)?;
    let again = own_id(&internet, 65_534, "again")?;
    for arguments in [
        format!("start --id {again} --pid $$"),
        format!("start --id {again} --pid $$ --runner"),
        format!("finish {id}"),
        "list".to_owned(),
    ] {
        let (status, said) = shell.run(&agent.line(&arguments)?)?;
        assert_eq!(status, 1, "{arguments}: {said}");
        assert!(said.contains("and nothing else"), "{arguments}: {said}");
    }
    // Nor can its runner, or root, take it out again.
    let worker = fs::read_to_string(internet.home().join("worker")).unwrap_or_default();
    assert_eq!(worker, "");
    shell.run("echo $$ >worker")?;
    let worker = fs::read_to_string(internet.home().join("worker"))?;
    let output = agent.job(&["start", "--id", "again", "--pid", worker.trim()])?;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stderr.contains("in a job already"), "{output:?}");
    reaches(&mut shell, &internet, &["git.test"])?;
    Ok(())
}

#[test]
fn who_is_inside_a_runners_fence_is_trusted_in_nothing() -> Result<()> {
    let internet = Internet::new()?;
    let agent = agent(&internet, USER, "")?;
    let wide = internet.dir().join("wide.yml");
    fs::write(
        &wide,
        "version: 1\njobs: {default: {allow: [{host: blocked.test}]}}\n",
    )?;
    let wide = wide.display();
    // Root's own, and another runner.
    let other = Shell::new(&internet)?;
    let others = agent.fence(&other, "other", RUNNER)?;
    let second = Shell::new(&internet)?;
    let seconds = agent.fence_runner(&second, "second", RUNNER)?;
    for (user, uid) in [("nobody", 65_534), ("root", 0)] {
        let mut shell = Shell::of_user(&internet, user)?;
        let name = format!("runner-{user}");
        let outside = own_id(&internet, uid, "outside")?;
        if uid != 0 {
            let (status, said) = shell.run(&agent.line(&format!(
                "start --id {outside} --pid $$ --runner --policy {wide}"
            ))?)?;
            assert_eq!(status, 1, "{said}");
            assert!(said.contains("only root"), "{said}");
        }
        let runner = agent.fence_runner(&shell, &name, RUNNER)?;
        shell.enter_child()?;
        let id = own_id(&internet, uid, "job")?;
        for (arguments, reason) in [
            (format!("start --id {id} --pid $$ --runner"), "only root"),
            ("start --id mine --pid $$".to_owned(), "begins with"),
            (format!("start --id {id}"), "without processes"),
            (format!("start --id {id} --pid $PPID"), "is a runner"),
            (
                format!("start --id {id} --pid {}", second.pid()),
                "neither the caller nor an ancestor",
            ),
            (
                // Whatever of the host's processes is come upon first: the runner, one in a job, one of
                // another user.
                format!("start --id {id} --pid 1"),
                "process ",
            ),
            (format!("finish {runner}"), "there is no job"),
            (format!("finish {others}"), "there is no job"),
            (format!("status {seconds}"), "there is no job"),
            (format!("tail {others}"), "there is no job"),
            (format!("narrow --policy {wide}"), "from inside"),
        ] {
            let (status, said) = shell.run(&agent.line(&arguments)?)?;
            assert_eq!(status, 1, "{user}: {arguments}: {said}");
            assert!(said.contains(reason), "{user}: {arguments}: {said}");
        }
        let (_, said) = shell.run(&agent.line("list --json")?)?;
        assert_eq!(said.trim(), "[]", "{user}");
        // A policy of its own only takes from the host's, which has none here.
        let start = format!("start --id {id} --pid $$ --policy {wide}");
        let (status, said) = shell.run(&agent.line(&start)?)?;
        assert_eq!(status, 0, "{user}: {said}");
        reaches(&mut shell, &internet, &[])?;
        shell.leave()?;
        // From outside of the job it sees it as its own, and as it ended.
        shell.enter_child()?;
        let (status, said) = shell.run(&agent.line(&format!("finish {id}"))?)?;
        assert_eq!(status, 110, "{user}: {said}");
        shell.leave()?;
        reaches(&mut shell, &internet, &["allowed.test"])?;
    }
    Ok(())
}

#[test]
fn a_fence_inside_a_runners_is_no_way_out_of_both() -> Result<()> {
    let internet = Internet::new()?;
    let agent = agent(&internet, USER, "")?;
    let mut shell = Shell::of_user(&internet, "root")?;
    agent.fence_runner(&shell, "runner", RUNNER)?;
    let cgroup = cgroup::of(shell.pid()).context("a cgroup")?;
    shell.enter_child()?;
    // As `jobfence run` makes one.
    let inner = cgroup.join("jobfence-inner");
    let inner = inner.display();
    let (status, said) = shell.run(&format!("mkdir {inner} && echo $$ >{inner}/cgroup.procs"))?;
    assert_eq!(status, 0, "{said}");
    let id = own_id(&internet, 0, "job")?;
    let (status, said) = shell.run(&agent.line(&format!("start --id {id} --pid $$"))?)?;
    assert_eq!(status, 1, "{said}");
    assert!(said.contains("a fence that is not this agent's"), "{said}");
    Ok(())
}

#[test]
fn a_killed_agent_leaves_a_runner_and_its_jobs_to_the_next() -> Result<()> {
    let internet = Internet::new()?;
    let mut agent = agent(&internet, USER, "")?;
    let mut shell = Shell::new(&internet)?;
    reaches(
        &mut shell,
        &internet,
        &["allowed.test", "git.test", "blocked.test"],
    )?;
    let runner = agent.fence_runner(&shell, "runner", RUNNER)?;
    shell.enter_child()?;
    let id = own_id(&internet, 65_534, "job")?;
    start(&agent, &mut shell, &id)?;
    agent.kill()?;
    reaches(&mut shell, &internet, &[])?;
    agent.restart()?;
    reaches(&mut shell, &internet, &["git.test"])?;
    let again = own_id(&internet, 65_534, "again")?;
    let start_again = agent.line(&format!("start --id {again} --pid $$"))?;
    let (status, said) = shell.run(&start_again)?;
    assert_eq!(status, 1, "{said}");
    shell.leave()?;
    reaches(&mut shell, &internet, &["allowed.test"])?;
    shell.enter_child()?;
    let started = start(&agent, &mut shell, &again)?;
    assert_eq!(started["runner"], runner, "{started:#}");
    reaches(&mut shell, &internet, &["git.test"])?;
    shell.leave()?;
    assert_eq!(self::status(&agent, &runner)?["runner"], true);
    assert_eq!(agent.finish(&id)?.0, Some(110));
    assert_eq!(agent.finish(&again)?.0, Some(110));
    assert_eq!(agent.finish(&runner)?.0, Some(110));
    Ok(())
}

#[test]
fn jobs_outlive_their_runner() -> Result<()> {
    let internet = Internet::new()?;
    let agent = agent(&internet, USER, "")?;
    let mut shell = Shell::new(&internet)?;
    let runner = agent.fence_runner(&shell, "runner", RUNNER)?;
    shell.enter_child()?;
    let id = own_id(&internet, 65_534, "job")?;
    start(&agent, &mut shell, &id)?;
    let mut kill = internet.command("kill");
    kill.args(["-9", &shell.pid().to_string()]);
    assert!(kill.status()?.success());
    eventually("the runner's fence has ended", || {
        status(&agent, &runner).is_ok_and(|status| status["phase"] == "finished")
    });
    reaches(&mut shell, &internet, &["git.test"])?;
    assert_eq!(status(&agent, &id)?["phase"], "running");
    assert_eq!(agent.finish(&id)?.0, Some(110));
    assert_eq!(agent.finish(&runner)?.0, Some(0));
    Ok(())
}

/// Sockets from before a job, and after.
const SOCKETS: &str = "
import os, socket, subprocess, sys
allowed, git = ('198.51.100.10', 22), ('198.51.100.40', 22)
connected = socket.create_connection(allowed, 5)
answers = connected.makefile('rb')
answers.readline()
before = [socket.socket() for _ in range(2)]
subprocess.run(sys.argv[1] + ' --pid ' + str(os.getpid()), shell=True, check=True)
connected.sendall(b'x')
print('connected before:', answers.read(1) == b'x')
for when, sockets in (('before', before), ('after', [socket.socket() for _ in range(2)])):
    for name, to, one in zip(('allowed', 'git'), (allowed, git), sockets):
        one.settimeout(5)
        try: one.connect(to); came = 'open'
        except PermissionError: came = 'refused'
        print('made', when, name, came)
";

#[test]
fn a_socket_from_before_a_job_stays_under_the_runners_policy() -> Result<()> {
    let internet = Internet::new()?;
    let agent = agent(&internet, USER, "")?;
    let policy = |address| {
        format!("version: 1\njobs: {{default: {{allow: [{{cidr: {address}/32, ports: [22]}}]}}}}\n")
    };
    fs::write(
        internet.dir().join("policies/group/project.yml"),
        policy(GIT.v4),
    )?;
    fs::write(internet.home().join("sockets.py"), SOCKETS)?;
    let mut shell = Shell::new(&internet)?;
    let free = "python3 sockets.py true";
    let (_, said) = shell.run(free)?;
    assert_eq!(
        said.matches(" open\n").count(),
        4,
        "without a fence: {said}"
    );
    let runner = agent.fence_runner(&shell, "runner", &policy(ALLOWED.v4))?;
    let id = own_id(&internet, 65_534, "job")?;
    let start = agent.line(&format!("start --json --id {id} --repo group/project"))?;
    let mark = internet.mark();
    let (_, said) = shell.run(&format!("python3 sockets.py '{start}'"))?;
    let (started, made) = said.split_once("\nconnected").context("it went on")?;
    let started: Value = serde_json::from_str(started).with_context(|| said.clone())?;
    let open = started["open_before"][0].as_str().context("one")?;
    assert!(open.starts_with("tcp 198.51.100.10:22 "), "{started:#}");
    assert_eq!(
        made,
        " before: True\nmade before allowed open\nmade before git refused\n\
         made after allowed refused\nmade after git open\n"
    );
    let arrived = internet.since(mark);
    assert!(!arrived.to(GIT.v4).is_empty() && !arrived.to(ALLOWED.v4).is_empty());
    for (id, address) in [(&runner, GIT), (&id, ALLOWED)] {
        let told = status(&agent, id)?;
        let told: Vec<_> = told["refused"].as_array().into_iter().flatten().collect();
        assert_eq!(told.len(), 1, "{id}: {told:#?}");
        let to = format!("{}:22", address.v4);
        assert_eq!(told[0]["destination"], to, "{id}");
    }
    Ok(())
}

/// The guard holds for the whole machine: a user that no other test has.
const GUARDED: &str = "news";

#[test]
fn a_guarded_runner_works_in_its_fence_and_in_jobs_and_nowhere_else() -> Result<()> {
    let internet = Internet::new()?;
    let mut outside = Shell::of_user(&internet, GUARDED)?;
    reaches(
        &mut outside,
        &internet,
        &["allowed.test", "git.test", "blocked.test"],
    )?;
    let agent = agent(
        &internet,
        GUARDED,
        &format!("guard: {{users: [{GUARDED}]}}\n"),
    )?;
    let mut shell = Shell::of_user(&internet, GUARDED)?;
    reaches(&mut shell, &internet, &[])?;
    let runner = agent.fence_runner(&shell, "runner", RUNNER)?;
    reaches(&mut shell, &internet, &["allowed.test"])?;
    reaches(&mut outside, &internet, &[])?;
    shell.enter_child()?;
    let (_, uid) = shell.run("id -u")?;
    let id = own_id(&internet, uid.trim().parse()?, "job")?;
    start(&agent, &mut shell, &id)?;
    reaches(&mut shell, &internet, &["git.test"])?;
    reaches(&mut outside, &internet, &[])?;
    // Outside of both it was done for the job, as far as anybody knows; without one, for the runner.
    for id in [&id, &runner] {
        let events = agent.log(id)?;
        let outside = events
            .iter()
            .filter(|event| event["reason"] == "outside-job");
        assert!(outside.count() > 0, "{id}: {events:#?}");
    }
    Ok(())
}

/// Whoever has a cgroup of its own, as systemd gives each user one, can name folders in it.
#[test]
fn a_cgroup_with_the_name_of_a_job_makes_nobody_a_part_of_it() -> Result<()> {
    let internet = Internet::new()?;
    let agent = agent(&internet, USER, "")?;
    let runner = Shell::of_user(&internet, "root")?;
    let id = agent.fence_runner(&runner, "runner", RUNNER)?;

    let mut shell = Shell::new(&internet)?;
    let folder = cgroup::outermost()?.join(format!("delegated-{id}"));
    fs::create_dir(&folder)?;
    for name in ["", "cgroup.procs"] {
        chown(folder.join(name), Some(65_534), None)?;
    }
    fs::write(folder.join("cgroup.procs"), shell.pid().to_string())?;
    let inner = folder.join(format!("jobfence-{id}"));
    let inner = inner.display();
    let (status, said) = shell.run(&format!("mkdir {inner} && echo $$ >{inner}/cgroup.procs"))?;
    assert_eq!(status, 0, "{said}");

    let nothing = internet.dir().join("nothing.yml");
    fs::write(&nothing, "version: 1\njobs: {default: {}}\n")?;
    let narrow = format!("narrow --policy {}", nothing.display());
    for arguments in ["status", &format!("status {id}"), &narrow] {
        let (status, said) = shell.run(&agent.line(arguments)?)?;
        assert_eq!(status, 1, "{arguments}: {said}");
    }
    drop(shell);
    eventually("the attacker's cgroup can go", || {
        fs::remove_dir(folder.join(format!("jobfence-{id}"))).is_ok()
    });
    fs::remove_dir(&folder)?;
    Ok(())
}

/// Names of cgroups are bytes, and whoever has a cgroup of its own gives them to those in it.
#[test]
fn a_process_in_a_cgroup_whose_name_is_no_text_is_moved_like_any_other() -> Result<()> {
    let internet = Internet::new()?;
    let agent = agent(&internet, USER, "")?;
    let mut shell = Shell::new(&internet)?;
    let (_, said) = shell.run("sleep 1000 >/dev/null & echo $!")?;
    let child = said.trim();
    let name = internet.dir().file_name().context("a folder")?;
    let name = [b"delegated-", name.as_bytes(), b"-\xff"].concat();
    let folder = cgroup::outermost()?.join(OsStr::from_bytes(&name));
    fs::create_dir(&folder)?;
    fs::write(folder.join("cgroup.procs"), child)?;

    let id = agent.fence(&shell, "job", PROJECT)?;
    let held = fs::read(format!("/proc/{child}/cgroup"))?;
    let held = String::from_utf8_lossy(&held).into_owned();
    let (code, output) = agent.finish(&id)?;
    fs::write(folder.join("cgroup.kill"), "1")?;
    eventually("the cgroup is empty", || fs::remove_dir(&folder).is_ok());
    assert!(held.contains(&id), "it is outside the job: {held}");
    assert_eq!(code, Some(0), "{output:?}");
    Ok(())
}

/// The kernel cuts names after 15 bytes, also in the middle of a character.
#[test]
fn a_process_whose_name_is_no_text_is_moved_like_any_other() -> Result<()> {
    let internet = Internet::new()?;
    let agent = agent(&internet, USER, "")?;
    let mut shell = Shell::new(&internet)?;
    let program = internet.home().join("abcdefghijklmn\u{e4}");
    fs::copy("/bin/sh", &program)?;
    let program = program.display();
    let (_, said) = shell.run(&format!(
        "'{program}' -c 'sleep 1000; true' >/dev/null & echo $!"
    ))?;
    let child = said.trim();
    let name = || fs::read(format!("/proc/{child}/comm")).unwrap_or_default();
    eventually("it has its name", || name() == b"abcdefghijklmn\xc3\n");

    let id = agent.fence(&shell, "job", PROJECT)?;
    let held = fs::read_to_string(format!("/proc/{child}/cgroup"))?;
    assert!(held.contains(&id), "it is outside the job: {held}");
    assert_eq!(agent.finish(&id)?.0, Some(0));

    // Nor does a job end when its own process has such a name.
    let mut shell = Shell::new(&internet)?;
    let id = agent.fence(&shell, "renamed", PROJECT)?;
    shell.run("printf '\\377' >/proc/$$/comm")?;
    // The agent has looked for jobs that are over when it has found the next one.
    let other = Shell::new(&internet)?;
    let next = agent.fence(&other, "next", PROJECT)?;
    drop(other);
    eventually("the next job is over", || {
        status(&agent, &next).is_ok_and(|job| job["phase"] == "finished")
    });
    assert_eq!(status(&agent, &id)?["phase"], "running");
    assert_eq!(agent.finish(&id)?.0, Some(0));
    Ok(())
}
