//! What the host's configuration says of jobs' policies while the agent runs: a repository's own from
//! its trusted ref, a configuration that is read again, shares, and an upgrade.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use jobfence_tests::{
    Agent, Internet, Output, Shell,
    addresses::{ALLOWED, BLOCKED, GIT, Host, PKG},
    eventually, run,
};
use rustix::process::Signal;
use serde_json::Value;

const SITES: [(&str, Host); 4] = [
    ("allowed.test", ALLOWED),
    ("git.test", GIT),
    ("pkg.test", PKG),
    ("blocked.test", BLOCKED),
];

fn policy(host: &str) -> String {
    format!("version: 1\njobs: {{default: {{allow: [{{host: {host}}}]}}}}\n")
}

/// A job's id that `nobody` may give.
fn own_id(internet: &Internet, name: &str) -> Result<String> {
    let folder = internet.dir().file_name().context("a folder")?;
    Ok(format!("u65534-{}-{name}", folder.to_string_lossy()))
}

/// Checks that of the sites the shell reaches these and no other, to which nothing gets.
fn reaches(shell: &mut Shell, internet: &Internet, allowed: &[&str]) -> Result<()> {
    for (name, host) in SITES {
        let mark = internet.mark();
        let (status, said) = shell.run(&format!("curl -sS -m 5 -o /dev/null https://{name}/"))?;
        let arrived = internet.since(mark);
        let arrived: usize = host.both().iter().map(|&ip| arrived.to(ip).len()).sum();
        let expected = allowed.contains(&name);
        assert_eq!(
            (status == 0, arrived > 0),
            (expected, expected),
            "{name}: {said}"
        );
    }
    Ok(())
}

/// Makes a job of the shell, by itself; returns the exit status and what was said.
fn start(agent: &Agent<'_>, shell: &mut Shell, id: &str, more: &str) -> Result<(i32, String)> {
    shell.run(&agent.line(&format!("start --id {id} --pid $$ {more}"))?)
}

/// A git repository that root writes.
struct Repository<'a>(&'a Path);

impl Repository<'_> {
    fn git(&self, arguments: &[&str]) -> Result<()> {
        let mut git = Command::new("git");
        git.current_dir(self.0)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", self.0)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .args(["-c", "user.name=a", "-c", "user.email=a@example.com"])
            .args(arguments);
        let Output { status, stderr, .. } = run(&mut git, Duration::from_secs(30))?;
        ensure!(status.success(), "git {arguments:?}: {stderr}");
        Ok(())
    }

    /// Commits `files` to a new branch that has nothing else.
    fn branch(&self, branch: &str, files: &[(&str, &str)]) -> Result<()> {
        self.git(&["checkout", "-q", "--orphan", branch])?;
        self.git(&["rm", "-rfq", "--ignore-unmatch", "."])?;
        for (file, text) in files {
            let path = self.0.join(file);
            fs::create_dir_all(path.parent().context("a folder")?)?;
            fs::write(path, text)?;
            self.git(&["add", "-f", file])?;
        }
        self.git(&["commit", "-q", "--allow-empty", "-m", branch])
    }
}

/// Mirrors of `group/project` (default branch `main`: `git.test`; `release/1`: `pkg.test`, in
/// `.github`; `change`: `blocked.test`), `group/bare`, which has no policy, `group/bad`, which has one
/// that is invalid, and `group/folder`, in which it is a folder.
fn mirrors(internet: &Internet) -> Result<std::path::PathBuf> {
    let mirrors = internet.dir().join("mirrors");
    for (name, branches) in [
        (
            "project",
            &[
                ("main", &[(".jobfence.yml", policy("git.test"))][..]),
                ("release/1", &[(".github/jobfence.yml", policy("pkg.test"))]),
                ("change", &[(".jobfence.yml", policy("blocked.test"))]),
            ][..],
        ),
        ("bare", &[("main", &[("README", "none".to_owned())])]),
        (
            "bad",
            &[("main", &[(".jobfence.yml", "version: 9\n".to_owned())])],
        ),
        (
            "folder",
            &[("main", &[(".jobfence.yml/x", "x".to_owned())])],
        ),
    ] {
        let work = internet.dir().join(format!("work-{name}"));
        fs::create_dir(&work)?;
        let repository = Repository(&work);
        repository.git(&["init", "-q", "-b", "start"])?;
        for (branch, files) in branches {
            let files: Vec<_> = files.iter().map(|(file, text)| (*file, &**text)).collect();
            repository.branch(branch, &files)?;
        }
        repository.git(&["checkout", "-q", "main"])?;
        let bare = mirrors.join(format!("group/{name}.git"));
        repository.git(&["clone", "-q", "--mirror", ".", &bare.to_string_lossy()])?;
    }
    Ok(mirrors)
}

#[test]
fn a_repositorys_policy_is_that_of_its_trusted_ref() -> Result<()> {
    let internet = Internet::new()?;
    let mirrors = mirrors(&internet)?;
    let policies = internet.dir().join("policies");
    fs::create_dir(&policies)?;
    fs::write(policies.join("default.yml"), policy("allowed.test"))?;
    let config = format!(
        "mirrors: {}\npolicies: {}\nrefs: [main, 'release/*']\nrunners: [nobody]\n",
        mirrors.display(),
        policies.display()
    );
    let agent = Agent::start(&internet, &config)?;
    let mut free = Shell::new(&internet)?;
    reaches(&mut free, &internet, &SITES.map(|(name, _)| name))?;
    for (number, (labels, allowed)) in [
        ("--repo group/project", "git.test"),
        ("--repo group/project --base release/1", "pkg.test"),
        (
            "--repo group/project --base refs/heads/release/1",
            "pkg.test",
        ),
        // Its own branch is not asked for.
        (
            "--repo group/project --base change --ref change",
            "git.test",
        ),
        ("--repo group/project --base ../change", "git.test"),
        ("--repo group/bare", "allowed.test"),
        ("--repo group/unknown", "allowed.test"),
        ("--repo group/../group/project", "allowed.test"),
        ("--repo --upload-pack=x", "allowed.test"),
        ("", "allowed.test"),
    ]
    .into_iter()
    .enumerate()
    {
        let labels = labels.replace("--repo --", "--repo=--");
        let mut shell = Shell::new(&internet)?;
        let id = own_id(&internet, &number.to_string())?;
        let (status, said) = start(&agent, &mut shell, &id, &labels)?;
        assert_eq!(status, 0, "{labels}: {said}");
        reaches(&mut shell, &internet, &[allowed])?;
        let events = agent.log(&id)?;
        let rule = events.iter().find_map(|event| event["rule"].as_str());
        let place = match allowed {
            "git.test" => "HEAD:.jobfence.yml:2",
            "pkg.test" => "release/1:.github/jobfence.yml:2",
            _ => "default.yml:2",
        };
        let rule = rule.context("no rule was used")?;
        assert!(rule.ends_with(place), "{labels}: {rule}");
    }
    // A file of the host's own goes before the mirror.
    fs::create_dir(policies.join("group"))?;
    fs::write(policies.join("group/project.yml"), policy("blocked.test"))?;
    let mut shell = Shell::new(&internet)?;
    let id = own_id(&internet, "own")?;
    let (status, said) = start(&agent, &mut shell, &id, "--repo group/project")?;
    assert_eq!(status, 0, "{said}");
    reaches(&mut shell, &internet, &["blocked.test"])?;
    Ok(())
}

#[test]
fn whose_word_does_not_count_gets_no_repositorys_policy() -> Result<()> {
    let internet = Internet::new()?;
    let mirrors = mirrors(&internet)?;
    let agent = Agent::start(&internet, &format!("mirrors: {}\n", mirrors.display()))?;
    let mut shell = Shell::new(&internet)?;
    let id = own_id(&internet, "job")?;
    let (status, said) = start(&agent, &mut shell, &id, "--repo group/project")?;
    assert_eq!(status, 0, "{said}");
    reaches(&mut shell, &internet, &[])?;
    Ok(())
}

/// Checks that a job with these labels begins, may reach nothing, and is told why.
fn closed(agent: &Agent<'_>, internet: &Internet, name: &str, more: &str, why: &str) -> Result<()> {
    let mut shell = Shell::new(internet)?;
    let id = own_id(internet, name)?;
    let (status, said) = start(agent, &mut shell, &id, more)?;
    assert_eq!(status, 112, "{name}: {said}");
    assert!(said.contains(why), "{name}: {said}");
    reaches(&mut shell, internet, &[])?;
    assert_eq!(agent.finish(&id)?.0, Some(111), "{name}");
    Ok(())
}

#[test]
fn a_mirror_that_cannot_be_used_closes_the_job() -> Result<()> {
    let internet = Internet::new()?;
    let mirrors = mirrors(&internet)?;
    let config = format!(
        "mirrors: {}\nrunners: [nobody]\nrefs: ['release/*']\n",
        mirrors.display()
    );
    let agent = Agent::start(&internet, &config)?;
    for (name, more, why) in [
        ("bad", "--repo group/bad", "HEAD:.jobfence.yml"),
        ("folder", "--repo group/folder", "is a tree, and no file"),
        (
            "ref",
            "--repo group/project --base release/2",
            "has no refs/heads/release/2",
        ),
    ] {
        closed(&agent, &internet, name, more, why)?;
    }
    let project = mirrors.join("group/project.git");
    let not_roots = "can be changed by others than root";
    for part in ["", "objects", "HEAD", "config"] {
        let path = project.join(part);
        let name = format!("owner{part}");
        chown(&path, Some(65_534), None)?;
        closed(&agent, &internet, &name, "--repo group/project", not_roots)?;
        chown(&path, Some(0), None)?;
    }
    let group = mirrors.join("group");
    fs::set_permissions(&group, Permissions::from_mode(0o775))?;
    closed(&agent, &internet, "mode", "--repo group/project", not_roots)?;
    fs::set_permissions(&group, Permissions::from_mode(0o755))?;
    fs::write(project.join("HEAD"), "ref: refs/heads/none\n")?;
    closed(
        &agent,
        &internet,
        "head",
        "--repo group/project",
        "has no HEAD",
    )?;
    fs::write(project.join("HEAD"), "nonsense\n")?;
    closed(
        &agent,
        &internet,
        "git",
        "--repo group/project",
        "git for the policy of",
    )?;
    fs::write(project.join("HEAD"), "ref: refs/heads/main\n")?;
    let mut shell = Shell::new(&internet)?;
    let id = own_id(&internet, "again")?;
    let (status, said) = start(&agent, &mut shell, &id, "--repo group/project")?;
    assert_eq!(status, 0, "{said}");
    reaches(&mut shell, &internet, &["git.test"])?;
    Ok(())
}

/// Answers as its repository is called.
const COMMAND: &str = "#!/bin/sh
case $JOBFENCE_REPO in
good) printf 'version: 1\\njobs: {default: {allow: [{host: %s}]}}\\n' \"$1\" ;;
ref) [ \"$JOBFENCE_REF\" = release/1 ] && printf 'version: 1\\njobs: {default: {}}\\n' ;;
none) exit 3 ;;
fails) echo trouble >&2; exit 1 ;;
hangs) sleep 1000 & echo $! >\"$2\"; exec sleep 1000 ;;
closes) exec >&-; sleep 1000 ;;
leaves) (sleep 1000 & echo $! >\"$2\") ;;
long) head -c 2000000 /dev/zero ;;
bytes) printf '\\377' ;;
killed) kill -9 $$ ;;
user) echo \"$(id -u) $(env | cut -d= -f1 | sort | tr '\\n' ' ')\" >\"$2\"; exit 3 ;;
esac
";

#[test]
fn a_command_tells_a_repositorys_policy_and_can_do_no_harm() -> Result<()> {
    let internet = Internet::new()?;
    let program = internet.dir().join("policy-of");
    let note = internet.dir().join("note");
    fs::write(&program, COMMAND)?;
    fs::set_permissions(&program, Permissions::from_mode(0o755))?;
    let config = format!(
        "policy_command: [{}, git.test, {}]\nrunners: [nobody]\nrefs: ['release/*']\n",
        program.display(),
        note.display()
    );
    let agent = Agent::start(&internet, &config)?;
    let mut shell = Shell::new(&internet)?;
    let id = own_id(&internet, "good")?;
    let (status, said) = start(&agent, &mut shell, &id, "--repo good")?;
    assert_eq!(status, 0, "{said}\n{}", agent.said());
    reaches(&mut shell, &internet, &["git.test"])?;
    for (name, more) in [
        ("ref", "--repo ref --base release/1"),
        ("none", "--repo none"),
        ("user", "--repo user"),
    ] {
        let mut shell = Shell::new(&internet)?;
        let id = own_id(&internet, name)?;
        let (status, said) = start(&agent, &mut shell, &id, more)?;
        assert_eq!(status, 0, "{name}: {said}");
        reaches(&mut shell, &internet, &[])?;
    }
    assert_eq!(
        fs::read_to_string(&note)?.trim(),
        "0 JOBFENCE_REF JOBFENCE_REPO PATH PWD",
        "its environment is its own"
    );
    for (name, why) in [
        ("fails", "exited with 1"),
        ("killed", "was killed by signal 9"),
        ("bytes", "is no UTF-8"),
        ("long", "says more than 1048576 bytes"),
        ("hangs", "did not end within 5 s"),
        ("closes", "did not end within 5 s"),
        ("leaves", "did not end within 5 s"),
    ] {
        // Another caller is served meanwhile.
        let mut shell = Shell::new(&internet)?;
        let id = own_id(&internet, name)?;
        shell.begin(&agent.line(&format!("start --id {id} --pid $$ --repo {name}"))?)?;
        let asked = Instant::now();
        let list = agent.job(&["list"])?;
        assert!(list.status.success(), "{list:?}");
        assert!(asked.elapsed() < Duration::from_secs(4), "{name}");
        let (status, said) = shell.end()?;
        assert_eq!(status, 112, "{name}: {said}");
        assert!(said.contains(why), "{name}: {said}");
        reaches(&mut shell, &internet, &[])?;
        if ["hangs", "leaves"].contains(&name) {
            let left = fs::read_to_string(&note)?;
            let path = Path::new("/proc").join(left.trim()).join("cmdline");
            eventually("what the command has started is ended", || {
                fs::read(&path).unwrap_or_default().is_empty()
            });
        }
    }
    assert!(agent.said().contains("trouble"), "its errors are logged");
    fs::set_permissions(&program, Permissions::from_mode(0o775))?;
    closed(
        &agent,
        &internet,
        "mode",
        "--repo good",
        "can be changed by others than root",
    )?;
    fs::remove_file(&program)?;
    closed(&agent, &internet, "gone", "--repo good", "No such file")?;
    Ok(())
}

/// Rewrites the keys that follow the daemon's own files, and has it read them.
fn reload(agent: &Agent<'_>, config: &str, says: &str) -> Result<()> {
    let path = agent.folder().join("agent.yml");
    let old = fs::read_to_string(&path)?;
    let own: String = old
        .lines()
        .take(3)
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(&path, own + config)?;
    let times = agent.said().matches(says).count();
    agent.signal(Signal::HUP)?;
    eventually("it is read again", || {
        agent.said().matches(says).count() > times
    });
    Ok(())
}

/// The guard holds for the whole machine: a user that no other test has.
const GUARDED: &str = "irc";

#[test]
fn a_configuration_that_is_read_again_holds_for_what_begins_then() -> Result<()> {
    const AGAIN: &str = "the configuration is read again";
    let internet = Internet::new()?;
    let [one, two] = ["one", "two"].map(|name| internet.dir().join(name));
    for (folder, host) in [(&one, "git.test"), (&two, "pkg.test")] {
        fs::create_dir(folder)?;
        fs::write(folder.join("project.yml"), policy(host))?;
    }
    let first = format!("policies: {}\nrunners: [nobody]\n", one.display());
    let agent = Agent::start(&internet, &first)?;
    let pid = agent.pid()?;
    let mut free = Shell::of_user(&internet, GUARDED)?;
    reaches(&mut free, &internet, &SITES.map(|(name, _)| name))?;
    let mut before = Shell::new(&internet)?;
    let id = own_id(&internet, "before")?;
    start(&agent, &mut before, &id, "--repo project")?;
    reaches(&mut before, &internet, &["git.test"])?;

    let second = format!(
        "policies: {}\nrunners: [nobody]\nguard: {{users: [{GUARDED}]}}\njobs: 2\n",
        two.display()
    );
    reload(&agent, &second, AGAIN)?;
    reaches(&mut before, &internet, &["git.test"])?;
    reaches(&mut free, &internet, &[])?;
    let mut after = Shell::new(&internet)?;
    let id = own_id(&internet, "after")?;
    let (status, said) = start(&agent, &mut after, &id, "--repo project")?;
    assert_eq!(status, 0, "{said}");
    reaches(&mut after, &internet, &["pkg.test"])?;
    let mut third = Shell::new(&internet)?;
    let id = own_id(&internet, "third")?;
    let (status, said) = start(&agent, &mut third, &id, "--repo project")?;
    assert_eq!(status, 111, "{said}");
    assert!(said.contains("as many jobs run"), "{said}");

    // What cannot be used changes nothing.
    for bad in [
        "guards: {}\n",
        "guard: {users: [no-such-user-here]}\n",
        "jobs: 0\n",
    ] {
        reload(&agent, bad, "the configuration stays as it was")?;
        reaches(&mut free, &internet, &[])?;
        let (status, said) = start(&agent, &mut third, &id, "--repo project")?;
        assert_eq!(status, 111, "{said}");
    }
    // What waits is told.
    let fourth = format!("policies: {}\nlogs: /nowhere\njobs: 1023\n", one.display());
    let path = agent.folder().join("agent.yml");
    let own = fs::read_to_string(&path)?;
    let own: Vec<_> = own.lines().take(2).collect();
    fs::write(&path, format!("{}\n{fourth}", own.join("\n")))?;
    agent.signal(Signal::HUP)?;
    eventually("it is read again", || {
        agent.said().contains("until the agent is started again")
    });
    let said = agent.said();
    let waiting = said.lines().filter(|line| line.contains("started again"));
    let waiting: Vec<_> = waiting.collect();
    assert!(
        waiting.len() == 1 && waiting[0].contains("logs"),
        "{waiting:?}"
    );
    // No runner's word counts any more, and nobody is guarded.
    reaches(&mut free, &internet, &SITES.map(|(name, _)| name))?;
    let (status, said) = start(&agent, &mut third, &id, "--repo project")?;
    assert_eq!(status, 0, "{said}");
    reaches(&mut third, &internet, &[])?;
    reaches(&mut before, &internet, &["git.test"])?;
    assert_eq!(agent.pid()?, pid);
    Ok(())
}

#[test]
fn a_user_has_its_share_of_places_and_a_runner_all() -> Result<()> {
    let internet = Internet::new()?;
    // A quarter of eight.
    let agent = Agent::start(&internet, "jobs: 8\nrunners: [nobody]\n")?;
    let begin = |user: &str, uid: u32, name: &str| -> Result<_> {
        let mut shell = Shell::of_user(&internet, user)?;
        let folder = internet.dir().file_name().context("a folder")?;
        let id = format!("u{uid}-{}-{name}", folder.to_string_lossy());
        let (status, said) = start(&agent, &mut shell, &id, "")?;
        Ok((shell, status, said))
    };
    let mut held = Vec::new();
    for (name, expected) in [("a", 0), ("b", 0), ("c", 111)] {
        let (shell, status, said) = begin("daemon", 1, name)?;
        assert_eq!(status, expected, "{name}: {said}");
        if expected != 0 {
            assert!(said.contains("2 jobs of this user run"), "{said}");
        }
        held.push(shell);
    }
    // Another user's is its own; whose word counts has all that is left.
    let (shell, status, said) = begin("bin", 2, "a")?;
    assert_eq!(status, 0, "{said}");
    held.push(shell);
    for name in ["a", "b", "c", "d", "e"] {
        let (shell, status, said) = begin("nobody", 65_534, name)?;
        assert_eq!(status, 0, "{name}: {said}");
        held.push(shell);
    }
    let (_, status, said) = begin("nobody", 65_534, "f")?;
    assert_eq!(status, 111, "{said}");
    assert!(said.contains("as many jobs run"), "{said}");
    Ok(())
}

#[test]
fn an_upgrade_of_the_agent_leaves_jobs_and_their_logs_whole() -> Result<()> {
    let internet = Internet::new()?;
    let mut agent = Agent::start(&internet, "")?;
    let mut shell = Shell::new(&internet)?;
    let id = agent.fence(&shell, "one", &policy("git.test"))?;
    reaches(&mut shell, &internet, &["git.test"])?;
    // As a package does: the new program, then stop and start.
    let new = internet.dir().join("jobfence-new");
    fs::copy(jobfence_tests::binary()?, &new)?;
    agent.stop()?;
    reaches(&mut shell, &internet, &[])?;
    agent.restart_as(&new)?;
    assert_eq!(
        fs::read_link(format!("/proc/{}/exe", agent.pid()?))?,
        new,
        "it is the new program"
    );
    reaches(&mut shell, &internet, &["git.test"])?;
    let (code, output) = agent.finish(&id)?;
    assert_eq!(code, Some(110), "{output:?}");
    let check = run(
        internet
            .command(&new.to_string_lossy())
            .arg("report")
            .arg(agent.log_path(&id)),
        Duration::from_secs(30),
    )?;
    assert!(
        !check.stderr.contains("left out") && check.stdout.contains("blocked.test"),
        "{check:?}"
    );
    let events = agent.log(&id)?;
    let seqs: Vec<_> = events.iter().map(|event| event["seq"].as_u64()).collect();
    let expected: Vec<_> = (0..events.len() as u64).map(Some).collect();
    assert_eq!(seqs, expected, "no gaps");
    let refused = |name: &str| {
        let refused = events
            .iter()
            .filter(|event: &&Value| event["verdict"] == "deny" && event["dns"]["qname"] == name);
        refused.count() > 0
    };
    assert!(refused("blocked.test") && !refused("git.test"));
    Ok(())
}

/// A job runs as a user who may have got hold of a policy's file.
#[test]
fn a_policy_that_others_than_root_can_change_counts_for_nobody() -> Result<()> {
    let internet = Internet::new()?;
    let policies = internet.dir().join("policies");
    let file = policies.join("group/project.yml");
    fs::create_dir_all(policies.join("group"))?;
    fs::write(&file, policy("git.test"))?;
    let config = format!("policies: {}\nrunners: [nobody]\n", policies.display());
    let agent = Agent::start(&internet, &config)?;
    let not_roots = "can be changed by others than root";
    for (number, path) in [&policies, &policies.join("group"), &file]
        .into_iter()
        .enumerate()
    {
        let mode = path.metadata()?.permissions().mode();
        let name = |what: &str| format!("{what}{number}");
        chown(path, Some(65_534), None)?;
        closed(
            &agent,
            &internet,
            &name("owner"),
            "--repo group/project",
            not_roots,
        )?;
        chown(path, Some(0), None)?;
        fs::set_permissions(path, Permissions::from_mode(mode | 0o020))?;
        closed(
            &agent,
            &internet,
            &name("mode"),
            "--repo group/project",
            not_roots,
        )?;
        fs::set_permissions(path, Permissions::from_mode(mode))?;
    }
    let mut shell = Shell::new(&internet)?;
    let id = own_id(&internet, "again")?;
    let (status, said) = start(&agent, &mut shell, &id, "--repo group/project")?;
    assert_eq!(status, 0, "{said}");
    reaches(&mut shell, &internet, &["git.test"])?;
    fs::rename(&policies, internet.dir().join("elsewhere"))?;
    closed(
        &agent,
        &internet,
        "none",
        "--repo group/project",
        "could not look at",
    )
}

/// A CI system that every job may reach can still tell what is wrong.
#[test]
fn a_policy_that_cannot_be_used_leaves_a_job_what_every_job_may_reach() -> Result<()> {
    let internet = Internet::new()?;
    let policies = internet.dir().join("policies");
    fs::create_dir(&policies)?;
    fs::write(policies.join("default.yml"), "version: 1\nallow: all\n")?;
    let host = internet.dir().join("host.yml");
    fs::write(
        &host,
        "version: 1\nbaseline: [{host: git.test}, {host: pkg.test}]\ndeny: [{host: pkg.test}]\n",
    )?;
    let config = format!(
        "policies: {}\nhost_policy: {}\n",
        policies.display(),
        host.display()
    );
    let mut agent = Agent::start(&internet, &config)?;
    let mut shell = Shell::new(&internet)?;
    let id = own_id(&internet, "job")?;
    let (status, said) = start(&agent, &mut shell, &id, "")?;
    assert_eq!(status, 112, "{said}");
    assert!(said.contains("default.yml:2:1: "), "{said}");
    assert!(
        said.contains("only what this host's baseline allows"),
        "{said}"
    );
    reaches(&mut shell, &internet, &["git.test"])?;
    agent.kill()?;
    agent.restart()?;
    reaches(&mut shell, &internet, &["git.test"])?;
    assert_eq!(agent.finish(&id)?.0, Some(111));
    Ok(())
}
