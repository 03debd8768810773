//! The agent's end of the control socket.
//!
//! Whoever may connect, which is everybody, can take neither the agent's memory nor its time nor the
//! places of others: a request is bounded in size and time, a caller in the number of its
//! connections and in how soon the next one is served, and every kind of caller in the number that
//! all of that kind have together.

use std::{
    cell::RefCell,
    collections::HashMap,
    fs::{self, File, Permissions},
    io::{self, IoSliceMut, Read as _},
    os::{
        fd::AsRawFd as _,
        unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FlockOperation, flock},
};
use serde::Serialize;
use thiserror::Error;
use tokio::{
    io::{AsyncWriteExt as _, Interest},
    net::{UnixListener, UnixStream},
    task::{JoinSet, LocalSet},
    time::{sleep, timeout},
};

use super::{
    peer::{Peer, PeerError},
    protocol::{
        Answer, Code, Envelope, Finished, Greeting, JobId, JobStatus, MAX_REQUEST, MaybeJobId,
        Nothing, Phase, PolicyText, Refusal, Request, Start, Started, VERSION,
    },
};

/// What the server needs of the jobs of a host.
pub trait Jobs: 'static {
    /// Fences a process tree as a job.
    fn start(&self, owner: Owner, order: Start) -> impl Future<Output = Result<Started, Refusal>>;
    /// Ends a job.
    fn finish(&self, id: &str) -> impl Future<Output = Result<Finished, Refusal>>;
    /// Takes from what a job may reach.
    fn narrow(&self, id: &str, policy: PolicyText) -> impl Future<Output = Result<(), Refusal>>;
    /// A job, if it is known.
    fn status(&self, id: &str) -> Option<JobStatus>;
    /// Every job, the oldest first.
    fn list(&self) -> Vec<JobStatus>;
    /// The fence around this folder of a cgroup.
    fn fence_of(&self, cgroup: &Path) -> Option<Within>;
    /// The log of a job.
    fn log_of(&self, id: &str) -> Option<PathBuf>;
}

/// Whose job is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The caller's user.
    pub uid: u32,
    /// Whether its word counts: on the policy, and on whatever process is to be moved.
    pub trusted: bool,
    /// The runner in whose fence it is. Processes of that one may be moved out of it.
    pub runner: Option<String>,
}

/// The fence that a process is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Within {
    /// A job, by its id: nothing leaves it.
    Job(String),
    /// A runner, by its id: jobs begin in it.
    Runner(String),
    /// By the name of a cgroup a job, and none of this agent's: of a `jobfence run`, or of another
    /// version's agent. Nothing leaves it either. Anybody with a cgroup of their own can give such a
    /// name to one in it, so the name says nothing.
    Another,
}

/// How long a caller may take for its request, and to take the answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 6 } else { 10 });

/// How long requests that are being answered may go on when the agent is asked to stop.
const FAREWELL: Duration = Duration::from_secs(5);

/// Connections that all callers of a kind may have: more than there can be jobs.
const MOST_OF_A_KIND: usize = 2048;

/// Bytes of a policy that somebody hands over who is not trusted, at most: it can only take from what
/// is allowed, and the agent keeps it for as long as the job runs.
const MAX_NARROWING: usize = 64 << 10;

/// How long the place of a caller who is not trusted stays taken after the answer: a caller in a
/// loop is answered so often, times its places, and no more.
const REST: Duration = Duration::from_millis(10);

/// How long to wait after an error that others cause, such as too many open files.
const PAUSE: Duration = Duration::from_millis(50);

/// How often a log that is followed is looked at.
const ROUND: Duration = Duration::from_millis(100);

/// Bytes that are read at once.
const CHUNK: usize = 16 << 10;

/// Why the socket could not be put up.
#[derive(Debug, Error)]
pub enum ServerError {
    /// Another agent has it.
    #[error("another agent is running: {lock} is locked. Stop that one first")]
    Running {
        /// The file that an agent locks.
        lock: PathBuf,
    },
    /// Others could put a socket of their own in its place.
    #[error(
        "{folder}, where the control socket is to be, can be changed by others than root: give it to \
         root with mode 0755, or set `socket` to a path in another folder"
    )]
    Folder {
        /// The folder.
        folder: PathBuf,
    },
    /// A system call failed.
    #[error("could not {doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// The control socket. Removed on drop.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Held by whoever may put the socket in its place. The kernel drops it with the agent.
    _lock: File,
}

impl Socket {
    /// Puts the socket at `path`, for everybody to connect to. One that an agent has left there is
    /// replaced; as long as another agent runs, this fails.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub fn bind(path: &Path) -> Result<Self, ServerError> {
        let failed = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| ServerError::Io {
                doing,
                path,
                source,
            }
        };
        let folder = path.parent().unwrap_or(Path::new("/"));
        match fs::DirBuilder::new().mode(0o755).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("make the folder", folder)(error));
            }
            _ => {}
        }
        let meta = fs::symlink_metadata(folder).map_err(failed("look at", folder))?;
        if !meta.is_dir() || meta.uid() != 0 || meta.mode() & 0o022 != 0 {
            let folder = folder.to_owned();
            return Err(ServerError::Folder { folder });
        }

        let lock_path = with_suffix(path, ".lock");
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(failed("open", &lock_path))?;
        // A lock that everybody could take would keep the agent from starting.
        lock.set_permissions(Permissions::from_mode(0o600))
            .map_err(failed("close to others", &lock_path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(ServerError::Running { lock: lock_path });
            }
            Err(errno) => return Err(failed("lock", &lock_path)(errno.into())),
        }

        // Made beside and moved there, so that nobody finds one that is not ready, and a client
        // finds the old or the new one.
        let made = with_suffix(path, ".new");
        match fs::remove_file(&made) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &made)(error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&made).map_err(failed("listen at", &made))?;
        fs::set_permissions(&made, Permissions::from_mode(0o666))
            .map_err(failed("open to callers", &made))?;
        fs::rename(&made, path).map_err(failed("put the control socket at", path))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            _lock: lock,
        })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "the control socket stays");
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Serves callers until `stop` is ready; then those that are being served for a few seconds more.
/// Members of `group` are trusted as root is.
pub async fn serve<J: Jobs>(
    socket: Socket,
    jobs: Arc<J>,
    group: Option<u32>,
    stop: impl Future<Output = ()>,
) {
    let server = Rc::new(Server {
        jobs,
        group,
        places: Rc::default(),
    });
    // Everything happens on one thread, also what a job needs; no task has to be sent to another.
    LocalSet::new().run_until(server.serve(socket, stop)).await;
}

struct Server<J> {
    jobs: Arc<J>,
    group: Option<u32>,
    places: Rc<RefCell<Places>>,
}

/// What a caller is to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Caller {
    /// A process inside the job, whoever its user.
    Inside(String),
    /// A process of the user inside the fence of a runner, and what that one has not moved into a job.
    Runner {
        /// The id of that fence.
        fence: String,
        /// The user: also root is one as any other here.
        uid: u32,
    },
    /// A process of the user inside what seems to be a fence, and is none of this agent's.
    Another(u32),
    /// Root, or a member of the group.
    Trusted,
    /// Another user.
    User(u32),
}

/// How many connections each caller has.
type Places = HashMap<Caller, usize>;

/// A place that a caller has taken. Free again on drop.
struct Place {
    places: Rc<RefCell<Places>>,
    caller: Caller,
}

impl Caller {
    /// How many connections it may have, and how many all callers of its kind together that have more
    /// than one.
    fn limits(&self) -> (usize, usize) {
        match self {
            Self::Inside(_) | Self::Another(_) => (8, 64),
            Self::Trusted => (64, 64),
            Self::Runner { .. } | Self::User(_) => (16, 64),
        }
    }
}

impl Place {
    /// Takes a place; `None` when the caller, or all of its kind, have as many as they may.
    fn take(places: &Rc<RefCell<Places>>, caller: &Caller) -> Option<Self> {
        use std::mem::discriminant;

        let mut taken = places.borrow_mut();
        let of = |is: &dyn Fn(&Caller) -> bool| -> usize {
            let taken = taken.iter().filter(|(other, _)| is(other));
            taken.map(|(_, n)| n).sum()
        };
        let all = of(&|other| discriminant(other) == discriminant(caller));
        // A user inside a runner's fence has more users, subordinate ones, and none has more by that.
        let own = of(&|other| match (other, caller) {
            (Caller::Runner { fence: a, .. }, Caller::Runner { fence: b, .. }) => a == b,
            _ => other == caller,
        });
        let (most, most_of_all) = caller.limits();
        // One that has none gets one, however many the others have.
        if own >= most || own > 0 && all >= most_of_all || all >= MOST_OF_A_KIND {
            return None;
        }
        *taken.entry(caller.clone()).or_default() += 1;
        drop(taken);
        Some(Self {
            places: Rc::clone(places),
            caller: caller.clone(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.borrow_mut();
        if let Some(own) = taken.get_mut(&self.caller) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.caller);
            }
        }
    }
}

/// The answer to a request, and the log that follows it.
struct Reply {
    answer: Answer,
    log: Option<(String, File)>,
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Self {
        Self { answer, log: None }
    }
}

impl<J: Jobs> Server<J> {
    async fn serve(self: Rc<Self>, socket: Socket, stop: impl Future<Output = ()>) {
        let mut connections = JoinSet::new();
        tokio::pin!(stop);
        loop {
            let accepted = tokio::select! {
                () = &mut stop => break,
                accepted = socket.listener.accept() => accepted,
            };
            while connections.try_join_next().is_some() {}
            match accepted {
                Ok((stream, _)) => {
                    let server = Rc::clone(&self);
                    connections.spawn_local(async move { server.attend(stream).await });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept callers, trying again");
                    sleep(PAUSE).await;
                }
            }
        }
        drop(socket);
        let rest = async { while connections.join_next().await.is_some() {} };
        if timeout(FAREWELL, rest).await.is_err() {
            tracing::info!("callers are left without an answer, since the agent stops");
        }
    }

    /// Serves one connection.
    async fn attend(&self, mut stream: UnixStream) {
        let greeting = Greeting {
            version: VERSION,
            agent: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let admitted = Peer::of(&stream).and_then(|peer| {
            let caller = self.caller(&peer)?;
            Ok((peer, caller))
        });
        let (peer, caller) = match admitted {
            Ok(admitted) => admitted,
            Err(error) => {
                tracing::debug!(%error, "a caller is not served");
                let refusal = Refusal::new(Code::Forbidden, error.to_string());
                send_at_once(&stream, &greeting, refusal);
                return;
            }
        };
        let Some(place) = Place::take(&self.places, &caller) else {
            // Where everybody can ask for a line, lines are lost.
            tracing::debug!(
                pid = peer.pid(),
                uid = peer.uid(),
                ?caller,
                "a caller has too many connections"
            );
            let message =
                "the agent is answering as many requests as this caller may have: try again";
            send_at_once(&stream, &greeting, Refusal::new(Code::Busy, message));
            return;
        };
        if let Err(error) = self.converse(&mut stream, &peer, &greeting).await {
            tracing::debug!(pid = peer.pid(), %error, "a caller is gone");
        }
        drop(stream);
        if caller != Caller::Trusted {
            sleep(REST).await;
        }
        drop(place);
    }

    async fn converse(
        &self,
        stream: &mut UnixStream,
        peer: &Peer,
        greeting: &Greeting,
    ) -> io::Result<()> {
        timeout(PATIENCE, send(stream, greeting)).await??;
        let request = match timeout(PATIENCE, receive(stream, peer.pid())).await {
            Ok(received) => received?,
            Err(_) => Err(Refusal::new(
                Code::Malformed,
                format!("no request within {} s", PATIENCE.as_secs()),
            )),
        };
        let what = request.as_ref().ok().map(told);
        let changes = matches!(
            request,
            Ok(Request::Start(_) | Request::Finish(_) | Request::Narrow(_))
        );
        let reply = match request {
            Ok(request) => self.answer(peer, request).await,
            Err(refusal) => Err(refusal),
        };
        let (pid, uid) = (peer.pid(), peer.uid());
        let reply = match reply {
            Ok(reply) => {
                if changes {
                    tracing::info!(pid, uid, request = what, outcome = "done");
                } else {
                    tracing::debug!(pid, uid, request = what, outcome = "done");
                }
                reply
            }
            Err(refusal) => {
                let Refusal { code, message } = &refusal;
                if uid == 0 {
                    tracing::info!(pid, uid, request = what, outcome = ?code, ?message);
                } else {
                    tracing::debug!(pid, uid, request = what, outcome = ?code, ?message);
                }
                Answer::Error(refusal).into()
            }
        };
        timeout(PATIENCE, send(stream, &reply.answer)).await??;
        match reply.log {
            Some((id, log)) => self.follow(stream, &id, log).await,
            None => Ok(()),
        }
    }

    /// What the peer is now.
    fn caller(&self, peer: &Peer) -> Result<Caller, PeerError> {
        let cgroup = peer.cgroup()?;
        let uid = peer.uid();
        // First of all: inside a fence nobody is trusted, and root is not either.
        Ok(if let Some(within) = self.jobs.fence_of(&cgroup) {
            match within {
                Within::Job(job) => Caller::Inside(job),
                Within::Runner(fence) => Caller::Runner { fence, uid },
                Within::Another => Caller::Another(uid),
            }
        } else if uid == 0 || self.group.is_some_and(|gid| peer.is_in(gid)) {
            Caller::Trusted
        } else {
            Caller::User(uid)
        })
    }

    async fn answer(&self, peer: &Peer, request: Request) -> Result<Reply, Refusal> {
        let caller = self.caller(peer).map_err(forbidden)?;
        let answer = match (request, &caller) {
            (_, Caller::Another(_)) => {
                return Err(Refusal::new(
                    Code::Forbidden,
                    "this process is in a fence that is not this agent's, as that of `jobfence run` \
                     is: it is told nothing, and changes nothing",
                ));
            }
            (Request::Narrow(policy), Caller::Inside(job)) => {
                check_length(&policy)?;
                self.jobs.narrow(job, policy).await?;
                Answer::Narrowed(Nothing {})
            }
            (Request::Status(MaybeJobId { id }), Caller::Inside(job))
                if id.as_ref().is_none_or(|id| id == job) =>
            {
                Answer::Status(self.visible(&caller, job)?)
            }
            (Request::Status(MaybeJobId { id }), Caller::Runner { fence, .. })
                if id.as_ref().is_none_or(|id| id == fence) =>
            {
                let status = self.jobs.status(fence);
                Answer::Status(status.ok_or_else(|| unknown(fence))?)
            }
            // Whatever it names: what is there, is not its business.
            (_, Caller::Inside(job)) => {
                return Err(Refusal::new(
                    Code::Forbidden,
                    format!(
                        "a process inside the job {job} may ask for its status and narrow it, and nothing else"
                    ),
                ));
            }
            (Request::Narrow(_), _) => {
                return Err(Refusal::new(
                    Code::Forbidden,
                    "a job is narrowed from inside, and this process is in none",
                ));
            }
            (Request::Start(order), _) => self.start(peer, &caller, order).await?,
            (Request::Finish(JobId { id }), _) => {
                self.visible(&caller, &id)?;
                Answer::Finished(self.jobs.finish(&id).await?)
            }
            (Request::Status(MaybeJobId { id: None }), _) => {
                return Err(Refusal::new(
                    Code::Unknown,
                    "this process is in no job: name the job that is meant",
                ));
            }
            (Request::Status(MaybeJobId { id: Some(id) }), _) => {
                Answer::Status(self.visible(&caller, &id)?)
            }
            (Request::List(Nothing {}), _) => {
                let mut jobs = self.jobs.list();
                jobs.retain(|job| sees(&caller, job));
                Answer::Jobs(jobs)
            }
            (Request::Tail(JobId { id }), _) => {
                self.visible(&caller, &id)?;
                let log = self.jobs.log_of(&id).ok_or_else(|| unknown(&id))?;
                let log = File::open(&log).map_err(|error| {
                    let message = format!("cannot read the log {}: {error}", log.display());
                    Refusal::new(Code::Fence, message)
                })?;
                return Ok(Reply {
                    answer: Answer::Tail(Nothing {}),
                    log: Some((id, log)),
                });
            }
        };
        Ok(answer.into())
    }

    async fn start(&self, peer: &Peer, caller: &Caller, order: Start) -> Result<Answer, Refusal> {
        // Nobody else can put a process into the job, let alone one that is held as it says.
        if order.launch.is_some() && (peer.uid() != 0 || order.pid != Some(peer.pid())) {
            return Err(Refusal::new(
                Code::Forbidden,
                "only root launches a job's first process, and names itself as `pid`",
            ));
        }
        let trusted = *caller == Caller::Trusted;
        if !trusted && (order.runner || order.launch.is_some()) {
            return Err(Refusal::new(
                Code::Forbidden,
                "only root and members of the configured group, outside every fence, start a runner's \
                 fence or a job with its first process",
            ));
        }
        match (caller, order.pid) {
            (Caller::User(uid) | Caller::Runner { uid, .. }, pid) => {
                let prefix = format!("u{uid}-");
                if !order.id.starts_with(&prefix) {
                    return Err(Refusal::new(
                        Code::Forbidden,
                        format!("the id of a job that user {uid} starts begins with {prefix}"),
                    ));
                }
                let Some(pid) = pid else {
                    return Err(Refusal::new(
                        Code::Forbidden,
                        "a job without processes is for root to start: name the process that becomes \
                         the job, the caller or an ancestor of it",
                    ));
                };
                peer.check_descent(pid).map_err(forbidden)?;
            }
            (_, Some(_)) => peer.check_numbers().map_err(forbidden)?,
            (_, None) => {}
        }
        let narrows = !trusted || order.launch.is_some_and(|launch| launch.narrows);
        if let (true, Some(policy)) = (narrows, &order.policy) {
            check_length(policy)?;
        }
        let owner = Owner {
            uid: peer.uid(),
            trusted,
            runner: match caller {
                Caller::Runner { fence, .. } => Some(fence.clone()),
                _ => None,
            },
        };
        let started = self.jobs.start(owner, order).await?;
        Ok(Answer::Started(started))
    }

    /// A job, as far as the caller may see it.
    fn visible(&self, caller: &Caller, id: &str) -> Result<JobStatus, Refusal> {
        let job = self.jobs.status(id).filter(|job| sees(caller, job));
        job.ok_or_else(|| unknown(id))
    }

    /// Sends a log up to its end, which is there when the job has ended.
    async fn follow(&self, stream: &mut UnixStream, id: &str, mut log: File) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK];
        loop {
            // Asked before the log is read: what is written until then is in it.
            let running = self
                .jobs
                .status(id)
                .is_some_and(|job| job.phase == Phase::Running);
            loop {
                match log.read(&mut buffer)? {
                    0 => break,
                    // For as long as it takes: somebody may be reading it in a pager.
                    length => stream.write_all(&buffer[..length]).await?,
                }
            }
            if !running || has_hung_up(stream)? {
                return Ok(());
            }
            sleep(ROUND).await;
        }
    }
}

fn sees(caller: &Caller, job: &JobStatus) -> bool {
    match caller {
        Caller::Inside(id) => *id == job.id,
        Caller::Another(_) => false,
        Caller::Trusted => true,
        Caller::User(uid) => *uid == job.owner,
        // Not what root has started elsewhere, if it is root.
        Caller::Runner { uid, .. } => *uid == job.owner && job.id.starts_with(&format!("u{uid}-")),
    }
}

/// For a job that does not exist, and for one that the caller may not see.
fn unknown(id: &str) -> Refusal {
    let message = format!(
        "there is no job {id} that the caller may see: `jobfence job list` tells which there are"
    );
    Refusal::new(Code::Unknown, message)
}

fn check_length(policy: &PolicyText) -> Result<(), Refusal> {
    let length = policy.text.len();
    if length <= MAX_NARROWING {
        return Ok(());
    }
    Err(Refusal::new(
        Code::Policy,
        format!(
            "the policy {} has {length} bytes, and one that can only take from what the host allows has \
             at most {MAX_NARROWING}",
            policy.file
        ),
    ))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn forbidden(error: PeerError) -> Refusal {
    Refusal::new(Code::Forbidden, error.to_string())
}

fn malformed(message: impl Into<String>) -> Refusal {
    Refusal::new(Code::Malformed, message)
}

/// What a request is, for the log. Ids have been checked.
fn told(request: &Request) -> String {
    match request {
        Request::Start(Start { id, pid, .. }) => match pid {
            Some(pid) => format!("start {id} with process {pid}"),
            None => format!("start {id}"),
        },
        Request::Finish(JobId { id }) => format!("finish {id}"),
        Request::Status(MaybeJobId { id: Some(id) }) => format!("status {id}"),
        Request::Status(MaybeJobId { id: None }) => "status".to_owned(),
        Request::List(Nothing {}) => "list".to_owned(),
        Request::Tail(JobId { id }) => format!("tail {id}"),
        Request::Narrow(_) => "narrow".to_owned(),
    }
}

async fn send(stream: &mut UnixStream, message: &impl Serialize) -> io::Result<()> {
    stream.write_all(&line(message)?).await
}

/// Sends a refusal to a caller for whom nobody waits. A new connection has room for it.
fn send_at_once(stream: &UnixStream, greeting: &Greeting, refusal: Refusal) {
    let both = line(greeting).and_then(|mut both| {
        both.extend(line(&Answer::Error(refusal))?);
        Ok(both)
    });
    if let Err(error) = both.and_then(|both| stream.try_write(&both)) {
        tracing::debug!(%error, "a caller is gone");
    }
}

fn line(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// Receives the request of the process `pid`. An error of the outer kind is the connection's.
async fn receive(stream: &UnixStream, pid: u32) -> io::Result<Result<Request, Refusal>> {
    let mut request = Vec::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let received = stream.async_io(Interest::READABLE, || receive_chunk(stream, &mut chunk));
        let (length, sender) = received.await?;
        if length == 0 {
            return Ok(Err(malformed("the request has no line feed at its end")));
        }
        if sender != Some(pid) {
            return Ok(Err(forbidden(PeerError::HandedOn { pid })));
        }
        let chunk = &chunk[..length];
        let end = chunk.iter().position(|&byte| byte == b'\n');
        request.extend_from_slice(&chunk[..end.unwrap_or(length)]);
        if request.len() > MAX_REQUEST {
            let message = format!("the request has more than {MAX_REQUEST} bytes");
            return Ok(Err(malformed(message)));
        }
        match end {
            Some(end) if end + 1 < length => {
                return Ok(Err(malformed(
                    "a connection is for one request: more came after it",
                )));
            }
            Some(_) => return Ok(parse(&request)),
            None => {}
        }
    }
}

/// Receives bytes of one sender, and its process id.
fn receive_chunk(stream: &UnixStream, chunk: &mut [u8]) -> io::Result<(usize, Option<u32>)> {
    // Room for the credentials and no more: a descriptor that is sent along is not received.
    let mut control = nix::cmsg_space!(UnixCredentials);
    let mut buffers = [IoSliceMut::new(chunk)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut buffers, Some(&mut control), flags)?;
    let mut sender = None;
    // An error when there was no room for all: somebody sends descriptors, and is not listened to.
    for control in message.cmsgs().into_iter().flatten() {
        if let ControlMessageOwned::ScmCredentials(credentials) = control {
            sender = u32::try_from(credentials.pid()).ok();
        }
    }
    Ok((message.bytes, sender))
}

fn parse(request: &[u8]) -> Result<Request, Refusal> {
    /// What every version of the protocol has.
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    /// Characters of an error that are told. It may repeat what the caller has sent.
    const LONGEST: usize = 300;

    let unread = |error: serde_json::Error| {
        let error: String = error.to_string().chars().take(LONGEST).collect();
        malformed(format!("the request could not be read: {error}"))
    };
    let Versioned { version } = serde_json::from_slice(request).map_err(unread)?;
    if version != VERSION {
        return Err(malformed(format!(
            "the request is of version {version} of the protocol, and the agent speaks {VERSION}: \
             use the jobfence that the agent is"
        )));
    }
    let envelope: Envelope = serde_json::from_slice(request).map_err(unread)?;
    envelope.request.check().map_err(malformed)?;
    Ok(envelope.request)
}

/// Whether the other end is closed altogether. One that has only ended its own sending is not.
fn has_hung_up(stream: &UnixStream) -> io::Result<bool> {
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    poll(&mut fds, Some(&Timespec::default()))?;
    Ok(fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(places: &Rc<RefCell<Places>>, caller: &Caller, times: usize) -> Vec<Place> {
        (0..times)
            .filter_map(|_| Place::take(places, caller))
            .collect()
    }

    #[test]
    fn who_has_no_connection_gets_one_however_many_the_others_have() {
        let places = Rc::default();
        let inside = |job: usize| Caller::Inside(job.to_string());
        let jobs: Vec<_> = (0..9).map(|job| take(&places, &inside(job), 9)).collect();
        let taken: Vec<_> = jobs.iter().map(Vec::len).collect();
        assert_eq!(taken, [8, 8, 8, 8, 8, 8, 8, 8, 1]);
        drop(jobs);
        assert!(places.borrow().is_empty());
        assert_eq!(take(&places, &inside(0), 9).len(), 8);
    }

    #[test]
    fn a_runners_fence_has_no_more_by_having_more_users() {
        let places = Rc::default();
        let runner = |fence: &str, uid| Caller::Runner {
            fence: fence.to_owned(),
            uid,
        };
        let users = (100_000..100_040).map(|uid| take(&places, &runner("a", uid), 1));
        let users: Vec<_> = users.flatten().collect();
        assert_eq!(users.len(), 16);
        assert_eq!(take(&places, &runner("b", 1001), 1).len(), 1);
    }
}
