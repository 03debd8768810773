//! Callers of every kind against a server whose jobs are a list.
//!
//! A caller is a process of its own: this test program once more, which runs [`caller`] alone. What
//! it is to do stands in its environment.

use std::{
    collections::HashMap,
    env, fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::Shutdown,
    os::unix::{
        fs::{DirBuilderExt as _, PermissionsExt as _},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::{Gid, Uid, geteuid, getppid, setgroups, setresgid, setresuid},
};
use tokio::sync::oneshot;

use super::{
    client::{self, ClientError},
    peer::{Peer, PeerError},
    protocol::{
        Answer, Code, Finished, JobStatus, Labels, MAX_REQUEST, MaybeJobId, Nothing, Phase,
        PolicyText, Refusal, Request, Start, Started,
    },
    server::{self, Jobs, Owner, ServerError, Socket, Within},
};
use crate::job::cgroup::Cgroup;

/// What a caller says before its answers.
const MARK: &str = "said: ";

/// A caller, in its own process. Without being asked to, it does nothing.
#[test]
fn caller() {
    let var = |name: &str| env::var(format!("JOBFENCE_TEST_{name}")).ok();
    let Some(action) = var("ACTION") else { return };
    if let Some(cgroup) = var("CGROUP") {
        Cgroup::open(cgroup.into()).enter().expect("its cgroup");
    }
    if let Some(uid) = var("UID") {
        let ids = |text: &str| text.parse::<u32>().expect("a number");
        let groups: Vec<_> = var("GROUPS")
            .iter()
            .flat_map(|groups| groups.split(',').map(|gid| Gid::from_raw(ids(gid))))
            .collect();
        setgroups(&groups).expect("groups");
        let (uid, gid) = (Uid::from_raw(ids(&uid)), Gid::from_raw(ids(&uid)));
        setresgid(gid, gid, gid).expect("a group");
        setresuid(uid, uid, uid).expect("a user");
    }
    let request = var("REQUEST").unwrap_or_default();
    let request = request
        .replace("SELF", &std::process::id().to_string())
        .replace("PARENT", &getppid().to_string());
    let connect = || UnixStream::connect(var("SOCKET").expect("a socket")).expect("connected");
    match action.as_str() {
        "ask" => {
            let mut stream = connect();
            greeted(&mut stream);
            // It may be refused before.
            _ = writeln!(stream, "{request}");
            say(&line_of(&mut stream));
        }
        // Connects, and waits to be told on its standard input before it goes on.
        "ask-later" => {
            let mut stream = connect();
            say("connected");
            wait();
            greeted(&mut stream);
            // In one piece: a connection may end for what the first one says.
            let line = format!("{request}\n");
            stream.write_all(line.as_bytes()).expect("sent");
            say(&line_of(&mut stream));
        }
        "ask-early" => {
            let mut stream = connect();
            // In one piece: a connection may end for what the first one says.
            let line = format!("{request}\n");
            stream.write_all(line.as_bytes()).expect("sent");
            say("connected");
            wait();
            let answer = io::read_to_string(&mut stream).unwrap_or_default();
            say(answer.lines().last().unwrap_or_default());
        }
        // The connection is another's.
        "ask-by-inherited" => {
            let stdin = io::stdin();
            let mut stream = UnixStream::from(
                std::os::fd::AsFd::as_fd(&stdin)
                    .try_clone_to_owned()
                    .expect("a descriptor"),
            );
            // In one piece: a connection may end for what the first one says.
            let line = format!("{request}\n");
            stream.write_all(line.as_bytes()).expect("sent");
            say(&line_of(&mut stream));
        }
        // As process 1 of a pid namespace.
        "ask-from-namespace" => {
            unshare(CloneFlags::CLONE_NEWPID).expect("a pid namespace");
            let output = Command::new("/proc/self/exe")
                .args(env::args_os().skip(1))
                .env("JOBFENCE_TEST_ACTION", "ask")
                .output()
                .expect("run");
            io::stdout().write_all(&output.stdout).expect("stdout");
        }
        // Takes one caller, from a pid namespace.
        "serve-from-namespace" => {
            unshare(CloneFlags::CLONE_NEWPID).expect("a pid namespace");
            let status = Command::new("/proc/self/exe")
                .args(env::args_os().skip(1))
                .env("JOBFENCE_TEST_ACTION", "serve")
                .status()
                .expect("run");
            assert!(status.success());
        }
        "serve" => {
            let listener = UnixListener::bind(var("SOCKET").expect("a socket")).expect("bound");
            say("listening");
            let (stream, _) = listener.accept().expect("accepted");
            say(&format!("{:?}", Peer::of(&stream).map(|peer| peer.pid())));
        }
        "idle" => {
            say("here");
            wait();
        }
        other => panic!("what is {other}?"),
    }
}

fn say(what: &str) {
    println!("\n{MARK}{what}");
}

fn wait() {
    _ = io::stdin().read(&mut [0]);
}

fn greeted(stream: &mut UnixStream) {
    assert!(line_of(stream).starts_with(r#"{"version":1"#));
}

/// Reads a line, and not a byte more.
fn line_of(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).is_ok_and(|length| length == 1) && byte != *b"\n" {
        line.push(byte[0]);
    }
    String::from_utf8(line).expect("text")
}

/// A caller.
struct Caller {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Caller {
    fn start(action: &str, variables: &[(&str, &str)]) -> Self {
        Self::with_input(action, variables, Stdio::piped())
    }

    fn with_input(action: &str, variables: &[(&str, &str)], input: Stdio) -> Self {
        let action = [("ACTION", action)];
        let variables = action.iter().chain(variables);
        let variables = variables.map(|(name, value)| (format!("JOBFENCE_TEST_{name}"), value));
        let mut child = Command::new("/proc/self/exe")
            .args([
                "--exact",
                "control::tests::caller",
                "--nocapture",
                "--test-threads=1",
            ])
            .envs(variables)
            .stdin(input)
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, output }
    }

    /// The next thing that it says.
    fn said(&mut self) -> String {
        let mut line = String::new();
        while self.output.read_line(&mut line).expect("output") > 0 {
            if let Some(said) = line.trim_end().strip_prefix(MARK) {
                return said.to_owned();
            }
            line.clear();
        }
        panic!("it said nothing: {:?}", self.child.wait());
    }

    fn answer(&mut self) -> Answer {
        let said = self.said();
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
    }

    fn go_on(&mut self) {
        drop(self.child.stdin.take());
    }

    fn end(&mut self) {
        _ = self.child.kill();
        self.child.wait().expect("ended");
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.end();
    }
}

/// Jobs that are a list.
#[derive(Default)]
struct List {
    jobs: Mutex<Vec<JobStatus>>,
    cgroups: Mutex<HashMap<PathBuf, String>>,
    /// What was done, in words.
    done: Mutex<Vec<String>>,
    log: Mutex<Option<PathBuf>>,
}

impl List {
    fn note(&self, what: String) {
        self.done.lock().unwrap().push(what);
    }
}

impl Jobs for List {
    async fn start(&self, owner: Owner, order: Start) -> Result<Started, Refusal> {
        let Owner {
            uid,
            trusted,
            runner,
        } = owner;
        let from = runner.map(|runner| format!(", from {runner}"));
        let from = from.unwrap_or_default();
        self.note(format!(
            "start {} of {uid}, trusted: {trusted}{from}",
            order.id
        ));
        // Longer than a caller may have to live.
        tokio::time::sleep(Duration::from_millis(20)).await;
        self.note(format!("started {}", order.id));
        Ok(Started {
            id: order.id,
            cgroup: String::new(),
            state: "enforcing".to_owned(),
            log: String::new(),
            processes: 1,
            runner: None,
            open_before: Vec::new(),
            clipped: Vec::new(),
            allowed: Vec::new(),
        })
    }

    async fn finish(&self, id: &str) -> Result<Finished, Refusal> {
        self.note(format!("finish {id}"));
        Ok(Finished {
            status: self.status(id).expect("asked before"),
            exit: 0,
            report: String::new(),
        })
    }

    async fn narrow(&self, id: &str, policy: PolicyText) -> Result<(), Refusal> {
        self.note(format!("narrow {id} by {}", policy.file));
        Ok(())
    }

    fn status(&self, id: &str) -> Option<JobStatus> {
        self.list().into_iter().find(|job| job.id == id)
    }

    fn list(&self) -> Vec<JobStatus> {
        self.jobs.lock().unwrap().clone()
    }

    fn fence_of(&self, cgroup: &Path) -> Option<Within> {
        let cgroups = self.cgroups.lock().unwrap();
        let id = cgroup
            .ancestors()
            .find_map(|folder| cgroups.get(folder).cloned())?;
        Some(match id.starts_with("runner-") {
            true => Within::Runner(id),
            false => Within::Job(id),
        })
    }

    fn log_of(&self, _: &str) -> Option<PathBuf> {
        self.log.lock().unwrap().clone()
    }
}

fn job(id: &str, owner: u32) -> JobStatus {
    JobStatus {
        id: id.to_owned(),
        job: "default".to_owned(),
        policy: None,
        labels: Labels::default(),
        state: "enforcing".to_owned(),
        phase: Phase::Running,
        violations: 0,
        exit: 0,
        runner: false,
        owner,
        started: 0,
        log: String::new(),
        refused: Vec::new(),
        refused_more: 0,
    }
}

/// A folder for a socket. Removed on drop.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("jobfence-control-{}-{number}", std::process::id());
        let path = env::temp_dir().join(name);
        fs::DirBuilder::new()
            .mode(0o755)
            .create(&path)
            .expect("a folder");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("agent.sock")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

/// A server on a thread of its own.
struct Server {
    folder: Folder,
    jobs: Arc<List>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// A group that is trusted, and some users.
const GROUP: u32 = 60_001;
const ANN: u32 = 60_011;
const BOB: u32 = 60_012;

impl Server {
    fn start() -> Self {
        let folder = Folder::new();
        let jobs = Arc::new(List::default());
        let (stop, stopped) = oneshot::channel();
        let (ready, started) = std::sync::mpsc::channel();
        let (socket, served) = (folder.socket(), Arc::clone(&jobs));
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.expect("a runtime").block_on(async {
                let socket = Socket::bind(&socket).expect("a socket");
                ready.send(()).expect("waited for");
                let stop = async { _ = stopped.await };
                server::serve(socket, served, Some(GROUP), stop).await;
            });
        });
        started.recv().expect("started");
        Self {
            folder,
            jobs,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn ask_as(&self, uid: u32, request: &str) -> Answer {
        self.ask_with(&[("UID", &uid.to_string())], request)
    }

    fn ask_with(&self, variables: &[(&str, &str)], request: &str) -> Answer {
        let socket = self.folder.socket();
        let request = format!(r#"{{"version":1,"request":{request}}}"#);
        let own = [
            ("SOCKET", socket.to_str().expect("text")),
            ("REQUEST", &request),
        ];
        Caller::start("ask", &[&own, variables].concat()).answer()
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.folder.socket()).expect("connected")
    }

    /// Sends bytes after the greeting, and reads what comes of it.
    fn exchange(&self, bytes: &[u8]) -> Answer {
        let mut stream = self.connect();
        greeted(&mut stream);
        // It may be refused before its end.
        _ = stream.write_all(bytes);
        let line = line_of(&mut stream);
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    fn done(&self) -> Vec<String> {
        self.jobs.done.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

/// A cgroup that is a job's. Removed on drop.
struct JobCgroup(Cgroup);

impl JobCgroup {
    fn make(server: &Server, job: &str) -> Self {
        let cgroup = Cgroup::make(&format!("control-{}-{job}", std::process::id()));
        let cgroup = cgroup.expect("a cgroup");
        let mut cgroups = server.jobs.cgroups.lock().unwrap();
        cgroups.insert(cgroup.path().to_owned(), job.to_owned());
        Self(cgroup)
    }

    fn path(&self) -> &str {
        self.0.path().to_str().expect("text")
    }
}

impl Drop for JobCgroup {
    fn drop(&mut self) {
        _ = self.0.end();
    }
}

/// Says what is left out where this is not root, who alone can be others.
fn is_root(what: &str) -> bool {
    if !geteuid().is_root() {
        // Not by a macro, whose output a test that passes does not show.
        writeln!(io::stderr(), "LEFT OUT: {what} (needs root)").expect("stderr");
        return false;
    }
    true
}

#[track_caller]
fn refused(answer: Answer, code: Code) -> String {
    match answer {
        Answer::Error(refusal) if refusal.code == code => refusal.message,
        other => panic!("not refused as {code:?}: {other:?}"),
    }
}

const START: &str = r#"{"start":{"id":"u60011-a","pid":SELF}}"#;

#[test]
fn a_user_makes_a_job_of_itself_and_of_what_is_above_it_alone() {
    if !is_root("whom a user may make a job of") {
        return;
    }
    let server = Server::start();
    let started = server.ask_as(ANN, START);
    assert!(matches!(started, Answer::Started(Started { id, .. }) if id == "u60011-a"));
    assert_eq!(
        server.done(),
        [
            "start u60011-a of 60011, trusted: false",
            "started u60011-a"
        ]
    );
    // Whose the tree is, the host sees to when it moves it.
    let parent = server.ask_as(ANN, r#"{"start":{"id":"u60011-b","pid":PARENT}}"#);
    assert!(matches!(parent, Answer::Started(_)), "{parent:?}");

    let mut same_user = Caller::start("idle", &[("UID", "60011")]);
    same_user.said();
    for pid in [same_user.child.id(), 2, 4_000_000, u32::MAX, 0] {
        let request = format!(r#"{{"start":{{"id":"u60011-c","pid":{pid}}}}}"#);
        let message = refused(server.ask_as(ANN, &request), Code::Forbidden);
        assert!(
            message.contains("neither the caller nor an ancestor"),
            "{pid}: {message}"
        );
    }
    assert_eq!(server.done().len(), 4, "{:?}", server.done());
}

#[test]
fn nobody_but_root_says_that_it_launches_a_job_and_only_that_it_does_itself() {
    if !is_root("who launches a job") {
        return;
    }
    let server = Server::start();
    let launch = |pid: &str| {
        format!(r#"{{"start":{{"id":"u60011-a","pid":{pid},"launch":{{"uid":60011}}}}}}"#)
    };
    let (uid, gid) = (ANN.to_string(), GROUP.to_string());
    let member = [("UID", uid.as_str()), ("GROUPS", &gid)];
    for answer in [
        server.ask_as(ANN, &launch("SELF")),
        server.ask_with(&member, &launch("SELF")),
        server.ask_as(0, &launch("PARENT")),
        server.ask_as(0, &launch("null")),
    ] {
        let message = refused(answer, Code::Forbidden);
        assert!(message.contains("only root launches"), "{message}");
    }
    assert!(server.done().is_empty(), "{:?}", server.done());
    let started = server.ask_as(0, &launch("SELF"));
    assert!(matches!(started, Answer::Started(_)), "{started:?}");
}

#[test]
fn a_user_cannot_take_the_id_of_anothers_job() {
    if !is_root("ids of users' jobs") {
        return;
    }
    let server = Server::start();
    for id in ["build-7", "u60012-a", "u6001-a", "u60011", "U60011-a"] {
        let request = format!(r#"{{"start":{{"id":"{id}","pid":SELF}}}}"#);
        let message = refused(server.ask_as(ANN, &request), Code::Forbidden);
        assert!(message.contains("begins with u60011-"), "{message}");
    }
    let without = server.ask_as(ANN, r#"{"start":{"id":"u60011-a"}}"#);
    assert!(refused(without, Code::Forbidden).contains("name the process"));
    assert!(server.done().is_empty());
}

#[test]
fn a_user_sees_and_ends_its_own_jobs_and_cannot_tell_others_from_none() {
    if !is_root("what a user sees") {
        return;
    }
    let server = Server::start();
    *server.jobs.jobs.lock().unwrap() = vec![job("a", ANN), job("b", BOB), job("r", 0)];
    let Answer::Jobs(seen) = server.ask_as(ANN, r#"{"list":{}}"#) else {
        panic!("no list")
    };
    assert_eq!(
        seen.iter().map(|job| job.id.as_str()).collect::<Vec<_>>(),
        ["a"]
    );
    let own = server.ask_as(ANN, r#"{"status":{"id":"a"}}"#);
    assert!(matches!(own, Answer::Status(_)), "{own:?}");
    for request in ["status", "finish", "tail"] {
        let about = |id: &str| {
            let answer = server.ask_as(ANN, &format!(r#"{{"{request}":{{"id":"{id}"}}}}"#));
            refused(answer, Code::Unknown).replace(&format!("job {id} "), "job X ")
        };
        let none = about("n");
        assert_eq!(about("b"), none, "{request} tells of another user's job");
        assert_eq!(about("r"), none, "{request} tells of root's job");
    }
    assert!(server.done().is_empty(), "{:?}", server.done());
    let ended = server.ask_as(ANN, r#"{"finish":{"id":"a"}}"#);
    assert!(matches!(ended, Answer::Finished(_)), "{ended:?}");
    assert_eq!(server.done(), ["finish a"]);
}

#[test]
fn a_member_of_the_group_is_trusted_and_a_user_with_its_number_is_not() {
    if !is_root("the group") {
        return;
    }
    let server = Server::start();
    server.jobs.jobs.lock().unwrap().push(job("b", BOB));
    let (uid, gid) = (ANN.to_string(), GROUP.to_string());
    let other = (GROUP + 1).to_string();
    let groups = format!("{other},{gid}");
    let member = [("UID", uid.as_str()), ("GROUPS", &groups)];
    let started = server.ask_with(&member, r#"{"start":{"id":"any"}}"#);
    assert!(matches!(started, Answer::Started(_)), "{started:?}");
    assert_eq!(server.done()[0], "start any of 60011, trusted: true");
    let status = server.ask_with(&member, r#"{"status":{"id":"b"}}"#);
    assert!(matches!(status, Answer::Status(_)), "{status:?}");

    let stranger = [("UID", uid.as_str()), ("GROUPS", &other)];
    let status = server.ask_with(&stranger, r#"{"status":{"id":"b"}}"#);
    refused(status, Code::Unknown);
}

#[test]
fn inside_a_job_even_root_asks_for_that_job_alone() {
    if !is_root("callers inside a job") {
        return;
    }
    let server = Server::start();
    *server.jobs.jobs.lock().unwrap() = vec![job("in", ANN), job("out", ANN), job("r", 0)];
    let cgroup = JobCgroup::make(&server, "in");
    let below = Cgroup::open(cgroup.0.path().join("container"));
    fs::create_dir(below.path()).expect("a cgroup");
    let gid = GROUP.to_string();
    for (uid, folder) in [
        ("0", cgroup.path()),
        ("60011", cgroup.path()),
        ("0", below.path().to_str().expect("text")),
    ] {
        let inside = [("CGROUP", folder), ("UID", uid), ("GROUPS", &gid)];
        let ask = |request: &str| server.ask_with(&inside, request);
        for request in [r#"{"status":{}}"#, r#"{"status":{"id":"in"}}"#] {
            let own = ask(request);
            assert!(
                matches!(&own, Answer::Status(job) if job.id == "in"),
                "{own:?}"
            );
        }
        let messages: Vec<_> = [
            r#"{"status":{"id":"out"}}"#,
            r#"{"status":{"id":"r"}}"#,
            r#"{"status":{"id":"none"}}"#,
            r#"{"finish":{"id":"in"}}"#,
            r#"{"finish":{"id":"out"}}"#,
            r#"{"tail":{"id":"in"}}"#,
            r#"{"tail":{"id":"none"}}"#,
            r#"{"list":{}}"#,
            r#"{"start":{"id":"u60011-x","pid":SELF}}"#,
            r#"{"start":{"id":"x"}}"#,
        ]
        .iter()
        .map(|request| refused(ask(request), Code::Forbidden))
        .collect();
        assert!(
            messages.iter().all(|message| *message == messages[0]),
            "{messages:#?}"
        );
    }
    assert!(server.done().is_empty(), "{:?}", server.done());

    let narrow = r#"{"narrow":{"file":"a.yml","text":"version: 1"}}"#;
    let inside = [("CGROUP", cgroup.path()), ("UID", "60011")];
    let narrowed = server.ask_with(&inside, narrow);
    assert!(matches!(narrowed, Answer::Narrowed(_)), "{narrowed:?}");
    assert_eq!(server.done(), ["narrow in by a.yml"]);
    refused(server.ask_as(0, narrow), Code::Forbidden);
}

#[test]
fn inside_the_fence_of_a_runner_even_root_is_any_other_user() {
    if !is_root("callers inside the fence of a runner") {
        return;
    }
    let server = Server::start();
    *server.jobs.jobs.lock().unwrap() = vec![
        job("runner-a", 0),
        job("runner-b", 0),
        job("roots", 0),
        job("u0-a", 0),
        job("u60011-a", ANN),
    ];
    let cgroup = JobCgroup::make(&server, "runner-a");
    let gid = GROUP.to_string();
    for (uid, own, other) in [("0", "u0-a", "u60011-a"), ("60011", "u60011-a", "u0-a")] {
        let inside = [("CGROUP", cgroup.path()), ("UID", uid), ("GROUPS", &gid)];
        let ask = |request: &str| server.ask_with(&inside, request);
        for request in [r#"{"status":{}}"#, r#"{"status":{"id":"runner-a"}}"#] {
            let fence = ask(request);
            assert!(
                matches!(&fence, Answer::Status(job) if job.id == "runner-a"),
                "{fence:?}"
            );
        }
        let list = ask(r#"{"list":{}}"#);
        assert!(
            matches!(&list, Answer::Jobs(jobs) if jobs.len() == 1 && jobs[0].id == own),
            "{list:?}"
        );
        for id in ["runner-a", "runner-b", "roots", other] {
            refused(
                ask(&format!(r#"{{"finish":{{"id":"{id}"}}}}"#)),
                Code::Unknown,
            );
        }
        for request in [
            r#"{"start":{"id":"x","pid":SELF}}"#.to_owned(),
            format!(r#"{{"start":{{"id":"u{uid}-x"}}}}"#),
            format!(r#"{{"start":{{"id":"u{uid}-x","pid":SELF,"runner":true}}}}"#),
            format!(r#"{{"start":{{"id":"u{uid}-x","pid":SELF,"launch":{{"uid":0}}}}}}"#),
            r#"{"narrow":{"file":"a","text":""}}"#.to_owned(),
        ] {
            refused(ask(&request), Code::Forbidden);
        }
        assert!(server.done().is_empty(), "{:?}", server.done());
        let start = format!(r#"{{"start":{{"id":"u{uid}-x","pid":PARENT}}}}"#);
        assert!(matches!(ask(&start), Answer::Started(_)));
        let finish = format!(r#"{{"finish":{{"id":"{own}"}}}}"#);
        assert!(matches!(ask(&finish), Answer::Finished(_)));
        let mut done = server.jobs.done.lock().unwrap();
        assert_eq!(
            std::mem::take(&mut *done),
            [
                format!("start u{uid}-x of {uid}, trusted: false, from runner-a"),
                format!("started u{uid}-x"),
                format!("finish {own}"),
            ]
        );
    }
}

#[test]
fn a_caller_that_is_moved_into_a_job_before_it_asks_is_inside() {
    if !is_root("a caller that is moved") {
        return;
    }
    let server = Server::start();
    let cgroup = JobCgroup::make(&server, "in");
    let socket = server.folder.socket();
    let mut caller = Caller::start(
        "ask-later",
        &[
            ("SOCKET", socket.to_str().expect("text")),
            ("REQUEST", r#"{"version":1,"request":{"list":{}}}"#),
        ],
    );
    assert_eq!(caller.said(), "connected");
    let procs = cgroup.0.path().join("cgroup.procs");
    fs::write(procs, caller.child.id().to_string()).expect("moved");
    caller.go_on();
    refused(caller.answer(), Code::Forbidden);
}

#[test]
fn a_connection_that_was_handed_on_serves_nobody_else() {
    let server = Server::start();
    let mut stream = server.connect();
    greeted(&mut stream);
    let input = std::os::fd::OwnedFd::from(stream.try_clone().expect("a copy"));
    let request = r#"{"version":1,"request":{"list":{}}}"#;
    let mut other = Caller::with_input("ask-by-inherited", &[("REQUEST", request)], input.into());
    let message = refused(other.answer(), Code::Forbidden);
    assert!(
        message.contains("another one sent the request"),
        "{message}"
    );
}

#[test]
fn descriptors_that_are_sent_along_are_not_taken() {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::os::fd::AsRawFd as _;

    let server = Server::start();
    let mut stream = server.connect();
    greeted(&mut stream);
    let (file, mut other_end) = UnixStream::pair().expect("a pair");
    let request = b"{\"version\":1,\"request\":{\"list\":{}}}\n";
    sendmsg::<()>(
        stream.as_raw_fd(),
        &[io::IoSlice::new(request)],
        &[ControlMessage::ScmRights(&[file.as_raw_fd()])],
        MsgFlags::empty(),
        None,
    )
    .expect("sent");
    let line = line_of(&mut stream);
    assert!(line.contains("error"), "{line}");
    drop((file, stream));
    // Nobody has it any more.
    assert_eq!(other_end.read(&mut [0]).expect("its end"), 0);
}

#[test]
fn who_has_ended_is_not_taken_for_who_has_its_number() {
    let folder = Folder::new();
    let socket = folder.socket();
    let listener = UnixListener::bind(&socket).expect("bound");
    let variables = [
        ("SOCKET", socket.to_str().expect("text")),
        ("REQUEST", "{}"),
    ];
    let mut caller = Caller::start("ask-later", &variables);
    let (stream, _) = listener.accept().expect("accepted");
    assert_eq!(caller.said(), "connected");
    let peer = Peer::of(&stream).expect("it lives");
    assert_eq!(peer.pid(), caller.child.id());
    peer.cgroup().expect("it has one");
    caller.end();
    assert!(matches!(peer.cgroup(), Err(PeerError::Gone { .. })));
    assert!(matches!(peer.check_descent(1), Err(PeerError::Gone { .. })));
    assert!(matches!(Peer::of(&stream), Err(PeerError::Gone { .. })));

    // One that has asked before anybody looked, and is gone.
    let mut caller = Caller::start("ask-early", &variables);
    let (stream, _) = listener.accept().expect("accepted");
    assert_eq!(caller.said(), "connected");
    assert!(matches!(Peer::of(&stream), Err(PeerError::Early { .. })));
    caller.end();
    assert!(matches!(Peer::of(&stream), Err(PeerError::Gone { .. })));
}

#[test]
fn another_pid_namespace_gives_no_false_numbers() {
    if !is_root("callers of other pid namespaces") {
        return;
    }
    let server = Server::start();
    let socket = server.folder.socket();
    let ask = |request: &str| {
        let request = format!(r#"{{"version":1,"request":{request}}}"#);
        let variables = [
            ("SOCKET", socket.to_str().expect("text")),
            ("REQUEST", &request),
        ];
        Caller::start("ask-from-namespace", &variables).answer()
    };
    // There it is 1, and here that is another process.
    let message = refused(ask(r#"{"start":{"id":"a","pid":SELF}}"#), Code::Forbidden);
    assert!(
        message.contains("processes have other numbers"),
        "{message}"
    );
    let list = ask(r#"{"list":{}}"#);
    assert!(matches!(list, Answer::Jobs(_)), "{list:?}");

    let folder = Folder::new();
    let variables = [("SOCKET", folder.socket())];
    let variables = variables
        .each_ref()
        .map(|(name, path)| (*name, path.to_str().expect("text")));
    let mut server = Caller::start("serve-from-namespace", &variables);
    assert_eq!(server.said(), "listening");
    let _outside = UnixStream::connect(folder.socket()).expect("connected");
    assert_eq!(server.said(), "Err(Unseen)");
}

#[test]
fn what_is_no_request_of_this_version_is_refused_with_the_reason() {
    let server = Server::start();
    let big = format!("\"{}\n", "a".repeat(MAX_REQUEST + 1));
    let deep = "[".repeat(100_000) + "\n";
    for (request, said) in [
        ("\n", "could not be read"),
        ("GET / HTTP/1.1\r\n\r\n", "more came after it"),
        ("{\"request\":{\"list\":{}}}\n", "missing field `version`"),
        (
            "{\"version\":2,\"request\":{\"fly\":{}}}\n",
            "of version 2 of the protocol, and the agent speaks 1",
        ),
        (
            "{\"version\":1,\"request\":{\"fly\":{}}}\n",
            "unknown variant",
        ),
        (
            "{\"version\":1,\"request\":{\"list\":{}}}\n{}\n",
            "more came after it",
        ),
        (
            "{\"version\":1,\"request\":{\"finish\":{\"id\":\"../a\"}}}\n",
            "an id has",
        ),
        (&big, "more than 2097152 bytes"),
        (&deep, "could not be read"),
    ] {
        let message = refused(server.exchange(request.as_bytes()), Code::Malformed);
        assert!(message.contains(said), "{message}");
        assert!(message.len() < 500, "{message}");
    }
    let not_text = server.exchange(b"{\"version\":1,\"request\":{\"finish\":{\"id\":\"\xff\"}}}\n");
    refused(not_text, Code::Malformed);
    assert!(server.done().is_empty());
}

#[test]
fn a_half_closed_connection_is_answered_and_half_a_request_is_not_done() {
    let server = Server::start();
    let request = b"{\"version\":1,\"request\":{\"list\":{}}}\n";
    let mut stream = server.connect();
    greeted(&mut stream);
    stream.write_all(request).expect("sent");
    stream.shutdown(Shutdown::Write).expect("half closed");
    assert_eq!(line_of(&mut stream), r#"{"jobs":[]}"#);

    let mut stream = server.connect();
    greeted(&mut stream);
    stream
        .write_all(&request[..request.len() - 1])
        .expect("sent");
    stream.shutdown(Shutdown::Write).expect("half closed");
    assert!(line_of(&mut stream).contains("no line feed"));
}

#[test]
fn silent_callers_hurt_nobody_and_are_let_go() {
    if !is_root("callers of other users") {
        return;
    }
    let server = Server::start();
    // More than one caller may have; some send a byte, some nothing.
    let began = Instant::now();
    let mut silent: Vec<_> = (0..80).map(|_| server.connect()).collect();
    let mut busy = 0;
    for (index, stream) in silent.iter_mut().enumerate() {
        greeted(stream);
        if index % 2 == 0 {
            _ = stream.write_all(b"{");
        }
        stream
            .set_read_timeout(Some(Duration::from_millis(1)))
            .expect("set");
        busy += usize::from(line_of(stream).contains("\"busy\""));
    }
    assert_eq!(busy, 80 - 64, "root has 64 places");
    // Another user does not notice.
    let asked = Instant::now();
    let list = server.ask_as(ANN, r#"{"list":{}}"#);
    assert!(matches!(list, Answer::Jobs(_)), "{list:?}");
    assert!(asked.elapsed() < server::PATIENCE, "it had to wait");
    for stream in &mut silent {
        stream.set_read_timeout(None).expect("set");
        assert_eq!(
            stream.read_to_end(&mut Vec::new()).map(|_| ()).ok(),
            Some(())
        );
    }
    assert!(began.elapsed() >= server::PATIENCE);
    // The places are free again.
    assert!(matches!(
        server.exchange(b"{\"version\":1,\"request\":{\"list\":{}}}\n"),
        Answer::Jobs(_)
    ));
}

#[test]
fn what_a_stranger_hands_over_is_not_kept_at_any_length() {
    if !is_root("callers of other users") {
        return;
    }
    let server = Server::start();
    let start = |id: &str, pid: &str, length: usize| {
        let text = "#".repeat(length);
        format!(
            r#"{{"start":{{"id":"{id}","pid":{pid},"policy":{{"file":"p.yml","text":"{text}"}}}}}}"#
        )
    };
    let long = start("u60011-a", "SELF", (64 << 10) + 1);
    refused(server.ask_as(ANN, &long), Code::Policy);
    assert!(server.done().is_empty());
    let most = start("u60011-a", "SELF", 64 << 10);
    assert!(matches!(server.ask_as(ANN, &most), Answer::Started(_)));
    let roots = start("a", &std::process::id().to_string(), 1 << 19);
    let roots = format!("{{\"version\":1,\"request\":{roots}}}\n");
    let root = server.exchange(roots.as_bytes());
    assert!(matches!(root, Answer::Started(_)), "{root:?}");
}

#[test]
fn who_hangs_up_undoes_nothing() {
    let server = Server::start();
    let mut stream = server.connect();
    greeted(&mut stream);
    stream
        .write_all(b"{\"version\":1,\"request\":{\"start\":{\"id\":\"a\"}}}\n")
        .expect("sent");
    let deadline = Instant::now() + Duration::from_secs(10);
    while server.done().is_empty() {
        assert!(Instant::now() < deadline, "not begun");
        thread::yield_now();
    }
    drop(stream);
    while server.done().len() < 2 {
        assert!(
            Instant::now() < deadline,
            "begun, and not done: {:?}",
            server.done()
        );
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(server.done()[1], "started a");
}

#[test]
fn many_callers_at_once_are_each_answered() {
    let server = Server::start();
    let answers: Vec<_> = thread::scope(|scope| {
        let ask = |index: usize| {
            let server = &server;
            scope.spawn(move || {
                let start = Start {
                    id: format!("j{index}"),
                    pid: None,
                    launch: None,
                    runner: false,
                    policy: None,
                    job: None,
                    labels: Labels::default(),
                };
                client::ask(&server.folder.socket(), Request::Start(start))
                    .map(|reply| reply.answer)
            })
        };
        let callers: Vec<_> = (0..40).map(ask).collect();
        callers
            .into_iter()
            .map(|caller| caller.join().expect("no panic"))
            .collect()
    });
    for (index, answer) in answers.into_iter().enumerate() {
        let answer = answer.expect("an answer");
        assert!(
            matches!(&answer, Answer::Started(started) if started.id == format!("j{index}")),
            "{answer:?}"
        );
    }
}

#[test]
fn a_log_is_followed_to_the_end_of_its_job() {
    let server = Server::start();
    let path = server.folder.0.join("a.jsonl");
    fs::write(&path, "{\"seq\":1}\n").expect("written");
    *server.jobs.log.lock().unwrap() = Some(path.clone());
    server.jobs.jobs.lock().unwrap().push(job("a", 0));
    let request = Request::Tail(super::protocol::JobId { id: "a".to_owned() });
    let reply = client::ask(&server.folder.socket(), request).expect("an answer");
    assert!(matches!(reply.answer, Answer::Tail(_)));
    let mut log = reply.rest;
    let mut line = String::new();
    log.read_line(&mut line).expect("the first line");
    assert_eq!(line, "{\"seq\":1}\n");
    let mut file = fs::File::options().append(true).open(&path).expect("open");
    file.write_all(b"{\"seq\":2}\n").expect("written");
    line.clear();
    log.read_line(&mut line).expect("the second line");
    assert_eq!(line, "{\"seq\":2}\n");
    file.write_all(b"{\"seq\":3}\n").expect("written");
    server.jobs.jobs.lock().unwrap()[0].phase = Phase::Finished;
    let mut rest = String::new();
    log.read_to_string(&mut rest).expect("the end");
    assert_eq!(rest, "{\"seq\":3}\n");
}

#[test]
fn who_leaves_while_it_follows_a_log_leaves_its_place() {
    let server = Server::start();
    let path = server.folder.0.join("a.jsonl");
    fs::write(&path, "").expect("written");
    *server.jobs.log.lock().unwrap() = Some(path);
    server.jobs.jobs.lock().unwrap().push(job("a", 0));
    // More than there are places.
    for _ in 0..3 {
        let followers: Vec<_> = (0..60)
            .map(|_| {
                let request = Request::Tail(super::protocol::JobId { id: "a".to_owned() });
                client::ask(&server.folder.socket(), request).expect("a place")
            })
            .collect();
        drop(followers);
    }
}

#[test]
fn two_agents_do_not_run_at_once_and_a_dead_ones_socket_is_replaced() {
    let folder = Folder::new();
    let path = folder.socket();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");
    let _inside = runtime.enter();
    let first = Socket::bind(&path).expect("free");
    let mode = fs::metadata(&path).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o666, "{mode:o}");
    assert!(matches!(
        Socket::bind(&path),
        Err(ServerError::Running { .. })
    ));
    UnixStream::connect(&path).expect("the first one is as it was");
    drop(first);
    assert!(!path.exists(), "it stays after its agent");

    // As after kill -9: the socket is there, and nobody listens.
    drop(UnixListener::bind(&path).expect("bound"));
    let refused = UnixStream::connect(&path).expect_err("nobody listens");
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    let _second = Socket::bind(&path).expect("replaced");
    UnixStream::connect(&path).expect("the new one");
}

#[test]
fn a_folder_that_others_can_change_is_no_place_for_the_socket() {
    let folder = Folder::new();
    fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o777)).expect("its mode");
    let bound = Socket::bind(&folder.socket());
    assert!(
        matches!(bound, Err(ServerError::Folder { .. })),
        "{bound:?}"
    );
    let link = Folder::new();
    let to = link.0.join("link");
    std::os::unix::fs::symlink(&folder.0, &to).expect("a link");
    let bound = Socket::bind(&to.join("agent.sock"));
    assert!(
        matches!(bound, Err(ServerError::Folder { .. })),
        "{bound:?}"
    );
}

#[test]
fn a_client_says_what_is_wrong_with_the_other_end() {
    let folder = Folder::new();
    let path = folder.socket();
    let ask = || client::ask(&path, Request::List(Nothing {})).map(|_| ());
    let none = ask().expect_err("nobody");
    assert!(matches!(none, ClientError::NoAgent { .. }), "{none}");

    for (said, expected) in [
        ("", "gave no answer"),
        ("{\"version\":1", "gave no answer"),
        (
            "{\"version\":7,\"agent\":\"9.9.9\"}\n",
            "jobfence 9.9.9 and speaks version 7",
        ),
        (
            "{\"version\":1,\"agent\":\"0\"}\n{\"weather\":{}}\n",
            "gave no answer",
        ),
        (
            "{\"version\":1,\"agent\":\"0\",\"new\":1}\n{\"error\":{\"code\":\"full\",\"message\":\"no place\"}}\n",
            "no place",
        ),
    ] {
        _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).expect("bound");
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accepted");
            stream.write_all(said.as_bytes()).expect("said");
        });
        let error = ask().expect_err(said).to_string();
        assert!(error.contains(expected), "{said}: {error}");
        server.join().expect("no panic");
    }
}

#[test]
fn a_client_asks_nobody_but_root() {
    if !is_root("an agent that is not root's") {
        return;
    }
    let folder = Folder::new();
    fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o777)).expect("its mode");
    let socket = folder.socket();
    let variables = [("SOCKET", socket.to_str().expect("text")), ("UID", "60012")];
    let mut impostor = Caller::start("serve", &variables);
    assert_eq!(impostor.said(), "listening");
    let answer = client::ask(&socket, Request::Status(MaybeJobId { id: None })).map(|_| ());
    assert!(
        matches!(answer, Err(ClientError::NotRoot { uid: 60_012, .. })),
        "{answer:?}"
    );
}
