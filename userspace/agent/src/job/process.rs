//! Which process is which, also when it is gone already.
//!
//! The kernel side reports a process by number and command name. The rest, its program, command
//! line and parents, is in /proc as long as the process lives, which for a refused `curl` can be
//! a millisecond. So the table follows the kernel's process events (`NETLINK_CONNECTOR`,
//! [`linux/cn_proc.h`](https://github.com/torvalds/linux/blob/v6.12/include/uapi/linux/cn_proc.h))
//! from each job's first processes on, and reads /proc when a process of the job executes a program
//! rather than when it is refused something.
//!
//! A process that lives shorter than it takes to read /proc is still known by number, user,
//! command name and parent.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet, VecDeque},
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind,
        netlink::{self, SocketAddrNetlink},
        recv, send, socket_with,
        sockopt::set_socket_recv_buffer_size,
    },
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

use crate::sys;

/// Processes that have ended and are still remembered, of all jobs together. Each job has an equal
/// share, so that one with many short-lived processes does not take the memory of the others.
const REMEMBERED: usize = 16_384;

/// Bytes of command lines of those, likewise.
const REMEMBERED_TEXT: usize = 16 << 20;

/// The least share of a job.
const SHARE: usize = 64;

/// Events that are taken in one go, so that a fork bomb does not keep the agent from all else.
const MAX_EVENTS: usize = 4096;

/// How far up a process's ancestors are followed.
const MAX_ANCESTORS: usize = 32;

/// What is known of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Parent's process id; 0 when unknown.
    pub ppid: u32,
    /// Command name.
    pub comm: String,
    /// The program's file, if it could be read.
    pub exe: Option<PathBuf>,
    /// Its arguments, from its own name on; none when they could not be read.
    pub arguments: Arc<[String]>,
}

/// The processes of all jobs of this host. One table for all: the kernel tells each listener of
/// every process of the host.
pub struct Processes {
    jobs: HashMap<u64, Members>,
    /// By process id, with the job that each belongs to.
    known: HashMap<u32, (u64, Process)>,
    last_job: u64,
    events: Option<Events>,
}

/// What the table keeps for one job.
#[derive(Default)]
struct Members {
    roots: HashSet<u32>,
    /// The oldest first, each with the bytes of its command line.
    ended: VecDeque<(u32, usize)>,
    ended_text: usize,
}

/// The part of a shared table that is one job's. What the table knows of the job is forgotten when
/// this is dropped.
pub struct JobProcesses {
    table: Arc<Mutex<Processes>>,
    job: u64,
}

impl JobProcesses {
    /// A part of `table` for one more job, which has no processes yet.
    #[must_use]
    pub fn new(table: Arc<Mutex<Processes>>) -> Self {
        let mut locked = lock(&table);
        locked.last_job += 1;
        let job = locked.last_job;
        locked.jobs.insert(job, Members::default());
        drop(locked);
        Self { table, job }
    }

    /// The table of all jobs.
    pub fn table(&self) -> MutexGuard<'_, Processes> {
        lock(&self.table)
    }

    /// Says that a process is the job's, and so is what it will fork. `arguments` is what it was
    /// asked to run, if that is known: it can be gone before anybody looks at it.
    pub fn adopt(&self, pid: u32, arguments: Vec<String>) {
        let process = read(pid).unwrap_or_else(|| Process {
            pid,
            ppid: std::process::id(),
            arguments: arguments.into(),
            ..Process::default()
        });
        let mut table = self.table();
        // Its own fork may still be among what the kernel has told: that makes a new process of it.
        table.catch_up();
        if let Some(members) = table.jobs.get_mut(&self.job) {
            members.roots.insert(pid);
        }
        table.insert(self.job, process);
    }

    /// What is known of a process of the job. `comm` is the command name that the kernel saw, which
    /// can be that of one of its threads.
    #[must_use]
    pub fn find(&self, pid: u32, comm: &str) -> Process {
        let mut table = self.table();
        table.catch_up();
        if table.get(self.job, pid).is_none()
            && let Some(process) = read(pid)
        {
            table.insert(self.job, process);
        }
        let process = table.get(self.job, pid).cloned().unwrap_or(Process {
            pid,
            ..Process::default()
        });
        Process {
            comm: comm.to_owned(),
            ..process
        }
    }

    /// The process's ancestors, its parent first, up to the outermost that was adopted.
    #[must_use]
    pub fn ancestors(&self, process: &Process) -> Vec<Process> {
        let table = self.table();
        let roots = table.jobs.get(&self.job).map(|members| &members.roots);
        let is_root = |pid| roots.is_some_and(|roots| roots.contains(&pid));
        let mut ancestors: Vec<Process> = Vec::new();
        // How many there are up to the outermost root so far.
        let mut kept = is_root(process.pid).then_some(0);
        let mut ppid = process.ppid;
        while ppid > 1 && ancestors.len() < MAX_ANCESTORS {
            // Past a root only what is known to be the job's too.
            let known = table.get(self.job, ppid).cloned();
            let Some(parent) = known.or_else(|| kept.is_none().then(|| read(ppid)).flatten())
            else {
                break;
            };
            ppid = parent.ppid;
            ancestors.push(parent);
            if ancestors.last().is_some_and(|parent| is_root(parent.pid)) {
                kept = Some(ancestors.len());
            }
        }
        ancestors.truncate(kept.unwrap_or(ancestors.len()));
        ancestors
    }
}

impl Drop for JobProcesses {
    fn drop(&mut self) {
        let mut table = self.table();
        table.jobs.remove(&self.job);
        table.known.retain(|_, (job, _)| *job != self.job);
    }
}

/// Waits for the kernel to tell of processes; `None` where it does not.
///
/// # Errors
///
/// What watching a descriptor can fail with.
pub(crate) fn watch(table: &Mutex<Processes>) -> io::Result<Option<AsyncFd<OwnedFd>>> {
    lock(table)
        .events_fd()
        .map(|fd| sys::watch(&fd))
        .transpose()
}

/// Waits for a descriptor that may be missing: then for ever.
pub(crate) async fn readable(
    fd: Option<&AsyncFd<OwnedFd>>,
) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
    match fd {
        Some(fd) => fd.readable().await,
        None => std::future::pending().await,
    }
}

/// The table is whole between any two of its changes, whatever panicked in between.
pub(crate) fn lock(table: &Mutex<Processes>) -> MutexGuard<'_, Processes> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Processes {
    /// A table that is fed by the kernel's process events, if this host has them.
    #[must_use]
    pub fn new() -> Self {
        let events = Events::open()
            .inspect_err(|error| {
                tracing::warn!(
                    %error,
                    "no process events from the kernel: the command lines of short-lived \
                     processes may be missing from events"
                );
            })
            .ok();
        Self::fed_by(events)
    }

    fn fed_by(events: Option<Events>) -> Self {
        Self {
            jobs: HashMap::new(),
            known: HashMap::new(),
            last_job: 0,
            events,
        }
    }

    /// Takes in what has happened since the last call. Never blocks.
    pub fn catch_up(&mut self) {
        let Some(events) = self.events.take() else {
            return;
        };
        let mut lost = false;
        for _ in 0..MAX_EVENTS {
            match events.next() {
                Ok(Some(event)) => self.apply(event),
                Ok(None) => break,
                // Some were dropped: what lives is read again when it is asked for.
                Err(Errno::NOBUFS) => lost = true,
                Err(error) => {
                    tracing::warn!(%error, "lost the kernel's process events");
                    return;
                }
            }
        }
        if lost {
            tracing::debug!("some process events were dropped");
        }
        self.events = Some(events);
    }

    /// The descriptor that becomes readable when there is something to take in.
    #[must_use]
    pub fn events_fd(&self) -> Option<BorrowedFd<'_>> {
        self.events.as_ref().map(|events| events.socket.as_fd())
    }

    fn get(&self, job: u64, pid: u32) -> Option<&Process> {
        let (owner, process) = self.known.get(&pid)?;
        (*owner == job).then_some(process)
    }

    fn insert(&mut self, job: u64, process: Process) {
        let pid = process.pid;
        if let Some((before, _)) = self.known.insert(pid, (job, process))
            && before != job
        {
            self.disown(before, pid);
        }
    }

    /// Forgets that `pid` was a process of `job`.
    fn disown(&mut self, job: u64, pid: u32) {
        if let Some(members) = self.jobs.get_mut(&job) {
            let Members {
                ended, ended_text, ..
            } = members;
            ended.retain(|&(other, text)| {
                let keep = other != pid;
                *ended_text -= if keep { 0 } else { text };
                keep
            });
            members.roots.remove(&pid);
        }
    }

    fn apply(&mut self, event: ProcessEvent) {
        match event {
            ProcessEvent::Fork { parent, child } => {
                // The number may have been another process's.
                if let Some((job, _)) = self.known.remove(&child) {
                    self.disown(job, child);
                }
                if let Some((job, parent)) = self.known.get(&parent) {
                    let process = Process {
                        pid: child,
                        ppid: parent.pid,
                        ..parent.clone()
                    };
                    self.insert(*job, process);
                }
            }
            ProcessEvent::Exec { pid } => {
                if let Some((job, before)) = self.known.get(&pid) {
                    // Gone already: what it was before it executed the program is not what it is.
                    let (job, ppid) = (*job, before.ppid);
                    let process = read_program(pid, ppid).unwrap_or_else(|| Process {
                        pid,
                        ppid,
                        ..Process::default()
                    });
                    self.insert(job, process);
                }
            }
            ProcessEvent::Exit { pid } => {
                let Some((job, process)) = self.known.get(&pid) else {
                    return;
                };
                let text = process.arguments.iter().map(String::len).sum();
                let jobs = self.jobs.len().max(1);
                let Some(members) = self.jobs.get_mut(job) else {
                    return;
                };
                members.ended.push_back((pid, text));
                members.ended_text += text;
                while (members.ended.len() > (REMEMBERED / jobs).max(SHARE)
                    || members.ended_text > REMEMBERED_TEXT / jobs)
                    && let Some((oldest, text)) = members.ended.pop_front()
                {
                    members.ended_text -= text;
                    self.known.remove(&oldest);
                }
            }
        }
    }
}

impl Default for Processes {
    fn default() -> Self {
        Self::new()
    }
}

/// Reads a process from /proc.
fn read(pid: u32) -> Option<Process> {
    let status = fs::read(format!("/proc/{pid}/status")).ok()?;
    // The command name in it can be anything.
    let status = String::from_utf8_lossy(&status);
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    read_program(pid, line.trim().parse().ok()?)
}

/// Reads from /proc what program a child of `ppid` runs. This is done for every program that a job
/// executes, so it reads no more than it needs.
fn read_program(pid: u32, ppid: u32) -> Option<Process> {
    let path = |part: &str| format!("/proc/{pid}/{part}");
    let comm = fs::read(path("comm")).ok()?;
    let cmdline = fs::read(path("cmdline")).unwrap_or_default();
    Some(Process {
        pid,
        ppid,
        comm: String::from_utf8_lossy(&comm).trim_end().to_owned(),
        exe: fs::read_link(path("exe")).ok(),
        arguments: split(&cmdline),
    })
}

/// Splits a `cmdline` file, in which each argument ends in a zero byte.
fn split(cmdline: &[u8]) -> Arc<[String]> {
    /// How much of a command line is kept, in bytes: what [`join`] shows, where each character takes
    /// four. A list of files can be megabytes.
    const LONGEST: usize = 16 << 10;
    let kept = &cmdline[..cmdline.len().min(LONGEST)];
    let kept = kept.strip_suffix(b"\0").unwrap_or(kept);
    if kept.is_empty() {
        return Arc::default();
    }
    let text = |argument: &[u8]| String::from_utf8_lossy(argument).into_owned();
    kept.split(|&byte| byte == 0).map(text).collect()
}

/// Makes one line of arguments, quoted where that is needed.
#[must_use]
pub fn join<'a>(arguments: impl Iterator<Item = Cow<'a, str>>) -> String {
    /// How much of it is shown, in characters.
    const LONGEST: usize = 4096;
    let mut line = String::new();
    for word in arguments {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&quote(&word));
        // The rest is not even looked at.
        if line.len() >= 4 * LONGEST {
            break;
        }
    }
    line.chars().take(LONGEST).collect()
}

/// Whether a character changes how others are shown: control characters, and those that turn the
/// direction of text (Unicode Standard Annex 9).
#[must_use]
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Quotes an argument as a shell reads it, if it holds anything but the usual characters.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=@%+,~".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    let word: String = word
        .chars()
        .map(|c| if is_hidden(c) { ' ' } else { c })
        .collect();
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Whether the kernel tells of processes.
///
/// # Errors
///
/// Why not: a missing capability (`CAP_NET_ADMIN`, `CAP_SYS_ADMIN`), no `CONFIG_PROC_EVENTS`, or
/// [`is_contained`].
pub(crate) fn try_events() -> io::Result<()> {
    /// It answers before send(2) is over.
    const PATIENCE: Timespec = Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    };
    let events = Events::open()?;
    let mut answer = [PollFd::new(&events.socket, PollFlags::IN)];
    match poll(&mut answer, Some(&PATIENCE))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

/// Whether this process is in a pid or user namespace other than the first, as in a container. The
/// kernel leaves such a one's request for process events unanswered (`cn_proc_mcast_ctl` in
/// drivers/connector/cn_proc.c), and in those that others asked for, the process ids are not this one's.
pub(crate) fn is_contained() -> bool {
    /// `PROC_PID_INIT_INO` and `PROC_USER_INIT_INO` of the kernel's include/linux/proc_ns.h.
    const FIRST: [(&str, u64); 2] = [("pid", 0xefff_fffc), ("user", 0xefff_fffd)];
    FIRST.into_iter().any(|(kind, first)| {
        let found = fs::metadata(format!("/proc/self/ns/{kind}"));
        found.is_ok_and(|namespace| namespace.ino() != first)
    })
}

/// The socket on which the kernel tells of processes.
struct Events {
    socket: OwnedFd,
}

/// What happened to a process of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProcessEvent {
    Fork { parent: u32, child: u32 },
    Exec { pid: u32 },
    Exit { pid: u32 },
}

/// `CN_IDX_PROC` and `CN_VAL_PROC` of `linux/connector.h`: the group of the process events.
const GROUP: u32 = 1;
/// `PROC_CN_MCAST_LISTEN` of `linux/cn_proc.h`.
const LISTEN: u32 = 1;
/// The kernel's thread 2 is always in the first network namespace, and may be looked at where
/// process 1, with more capabilities than this one has, may not.
const KTHREADD_NETNS: &str = "/proc/2/ns/net";
/// Bytes before `struct proc_event`: `struct nlmsghdr` and `struct cn_msg`.
const HEADERS: usize = 16 + 20;

impl Events {
    /// Opens the socket. The kernel answers in the first network namespace only, so a thread goes
    /// there to make it: a socket stays in the namespace that it was made in.
    fn open() -> io::Result<Self> {
        if is_contained() {
            let why = "only who is in no container (pid or user namespace) is told of them";
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        let namespaces = ["/proc/self/ns/net", "/proc/1/ns/net", KTHREADD_NETNS];
        let mut refused = io::Error::from(io::ErrorKind::NotFound);
        for namespace in namespaces {
            let opened = thread::spawn(move || Self::open_in(namespace)).join();
            match opened.map_err(|_| io::Error::other("the thread that opens it panicked"))? {
                Ok(socket) => return Ok(Self { socket }),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    fn open_in(namespace: &str) -> io::Result<OwnedFd> {
        let namespace = File::open(namespace)?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            Some(netlink::CONNECTOR),
        )?;
        // A build forks in bursts; the default holds a few hundred events.
        set_socket_recv_buffer_size(&socket, 4 << 20)?;
        bind(&socket, &SocketAddrNetlink::new(0, GROUP))?;
        send(&socket, &listen_message(), SendFlags::empty())?;
        Ok(socket)
    }

    /// The next event; `None` when there is none now.
    fn next(&self) -> rustix::io::Result<Option<ProcessEvent>> {
        let mut buffer = [0_u8; 256];
        loop {
            match recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((_, length)) => {
                    if let Some(event) = decode(&buffer[..length.min(buffer.len())]) {
                        return Ok(Some(event));
                    }
                }
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// The message that asks for events: `struct nlmsghdr`, `struct cn_msg`, and the operation.
fn listen_message() -> Vec<u8> {
    /// `NLMSG_DONE`.
    const DONE: u16 = 3;
    /// Of the headers and the operation.
    const LENGTH: u32 = 16 + 20 + 4;
    let mut message = Vec::with_capacity(HEADERS + 4);
    message.extend(LENGTH.to_ne_bytes());
    message.extend(DONE.to_ne_bytes());
    message.extend([0; 10]);
    message.extend(GROUP.to_ne_bytes());
    message.extend(GROUP.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(4_u16.to_ne_bytes());
    message.extend([0; 2]);
    message.extend(LISTEN.to_ne_bytes());
    message
}

/// Decodes a message; `None` for what is of no interest: threads, changes of names and users.
fn decode(message: &[u8]) -> Option<ProcessEvent> {
    let word = |offset: usize| {
        let bytes = message.get(HEADERS + offset..HEADERS + offset + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    // `struct proc_event`: what, processor, a timestamp of eight bytes, and the data.
    match word(0)? {
        // PROC_EVENT_FORK: parent's thread and process, child's thread and process.
        1 => {
            let (parent, thread, child) = (word(20)?, word(24)?, word(28)?);
            (thread == child).then_some(ProcessEvent::Fork { parent, child })
        }
        // PROC_EVENT_EXEC: thread and process.
        2 => Some(ProcessEvent::Exec { pid: word(20)? }),
        // PROC_EVENT_EXIT: thread and process.
        0x8000_0000 => {
            let (thread, pid) = (word(16)?, word(20)?);
            (thread == pid).then_some(ProcessEvent::Exit { pid })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(words: &[u32]) -> Vec<u8> {
        let mut message = vec![0; HEADERS];
        message.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        message
    }

    #[test]
    fn events_are_decoded_and_threads_are_not_taken_for_processes() {
        let fork = [1, 0, 0, 0, 10, 10, 11, 11];
        let thread = [1, 0, 0, 0, 10, 10, 12, 10];
        assert_eq!(
            decode(&message(&fork)),
            Some(ProcessEvent::Fork {
                parent: 10,
                child: 11
            })
        );
        assert_eq!(decode(&message(&thread)), None);
        assert_eq!(
            decode(&message(&[2, 0, 0, 0, 11, 11])),
            Some(ProcessEvent::Exec { pid: 11 })
        );
        assert_eq!(
            decode(&message(&[0x8000_0000, 0, 0, 0, 11, 11])),
            Some(ProcessEvent::Exit { pid: 11 })
        );
        assert_eq!(decode(&message(&[0x8000_0000, 0, 0, 0, 12, 11])), None);
    }

    #[test]
    fn a_truncated_message_is_ignored() {
        let full = message(&[1, 0, 0, 0, 10, 10, 11, 11]);
        for length in 0..full.len() {
            assert_eq!(decode(&full[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn a_command_line_can_be_pasted_into_a_shell() {
        let line = |cmdline: &[u8]| join(split(cmdline).iter().map(Cow::from));
        assert_eq!(
            line(b"curl\0-sS\0https://a.test/\0"),
            "curl -sS https://a.test/"
        );
        assert_eq!(
            line(b"sh\0-c\0echo 'a' > b\0\0"),
            r"sh -c 'echo '\''a'\'' > b' ''"
        );
        assert_eq!(line(b"printf\0\x1b[31m\n\0"), "printf ' [31m '");
    }

    fn table() -> Arc<Mutex<Processes>> {
        Arc::new(Mutex::new(Processes::fed_by(None)))
    }

    fn process(pid: u32, ppid: u32) -> Process {
        Process {
            pid,
            ppid,
            ..Process::default()
        }
    }

    /// A process id that no process has.
    const NOBODY: u32 = 1 << 30;

    #[test]
    fn processes_of_two_jobs_are_kept_apart() {
        let table = table();
        let [a, b] = [(), ()].map(|()| JobProcesses::new(Arc::clone(&table)));
        a.adopt(NOBODY, vec!["a".to_owned()]);
        b.adopt(NOBODY + 1, vec!["b".to_owned()]);
        for parent in [NOBODY, NOBODY + 1] {
            let child = parent + 10;
            lock(&table).apply(ProcessEvent::Fork { parent, child });
        }
        assert_eq!(*a.find(NOBODY + 10, "x").arguments, ["a"]);
        assert_eq!(*b.find(NOBODY + 11, "x").arguments, ["b"]);
        assert!(a.find(NOBODY + 11, "x").arguments.is_empty());
        drop(a);
        assert!(b.find(NOBODY + 10, "x").arguments.is_empty());
        assert_eq!(*b.find(NOBODY + 11, "x").arguments, ["b"]);
        drop(b);
        let table = lock(&table);
        assert!(table.jobs.is_empty() && table.known.is_empty());
    }

    #[test]
    fn ancestors_end_at_the_outermost_process_that_was_adopted() {
        let table = table();
        let job = JobProcesses::new(Arc::clone(&table));
        // A runner that is not the job's, the worker that was moved with its child, and a
        // grandchild that came later.
        let [runner, worker, shell, client] = [NOBODY, NOBODY + 1, NOBODY + 2, NOBODY + 3];
        {
            let mut table = lock(&table);
            table.insert(job.job, process(worker, runner));
            table.insert(job.job, process(shell, worker));
            let roots = &mut table.jobs.get_mut(&job.job).unwrap().roots;
            roots.extend([shell, worker]);
            table.apply(ProcessEvent::Fork {
                parent: shell,
                child: client,
            });
        }
        let pids = |pid| {
            let process = job.find(pid, "");
            let ancestors = job.ancestors(&process);
            ancestors
                .iter()
                .map(|process| process.pid)
                .collect::<Vec<_>>()
        };
        assert_eq!(pids(client), [shell, worker]);
        assert_eq!(pids(shell), [worker]);
        assert_eq!(pids(worker), [0; 0]);
    }

    #[test]
    fn a_job_with_many_ended_processes_does_not_make_another_forget() {
        let table = table();
        let [quiet, noisy] = [(), ()].map(|()| JobProcesses::new(Arc::clone(&table)));
        quiet.adopt(NOBODY, vec!["quiet".to_owned()]);
        noisy.adopt(NOBODY + 1, vec!["noisy".to_owned()]);
        lock(&table).apply(ProcessEvent::Exit { pid: NOBODY });
        let children = NOBODY + 2..NOBODY + 2 + 2 * u32::try_from(REMEMBERED).unwrap();
        for child in children.clone() {
            let mut table = lock(&table);
            table.apply(ProcessEvent::Fork {
                parent: NOBODY + 1,
                child,
            });
            table.apply(ProcessEvent::Exit { pid: child });
        }
        assert_eq!(*quiet.find(NOBODY, "").arguments, ["quiet"]);
        assert_eq!(*noisy.find(children.end - 1, "").arguments, ["noisy"]);
        assert!(noisy.find(children.start, "").arguments.is_empty());
        assert!(lock(&table).known.len() <= REMEMBERED);

        // Nor does one whose processes have long command lines.
        for child in children.start..children.start + 1000 {
            let mut table = lock(&table);
            let job = noisy.job;
            table.insert(
                job,
                Process {
                    arguments: Arc::new([" ".repeat(64 << 10)]),
                    ..process(child, NOBODY + 1)
                },
            );
            table.apply(ProcessEvent::Exit { pid: child });
        }
        let table = lock(&table);
        assert!(table.jobs[&noisy.job].ended_text <= REMEMBERED_TEXT / 2);
        let kept = table
            .known
            .values()
            .filter(|(_, process)| !process.arguments.is_empty());
        let kept: usize = kept.map(|(_, process)| process.arguments[0].len()).sum();
        assert!(kept <= REMEMBERED_TEXT / 2 + 100_000, "{kept} bytes");
        drop(table);
        assert_eq!(*quiet.find(NOBODY, "").arguments, ["quiet"]);
    }

    #[test]
    fn a_number_that_is_used_again_is_another_process() {
        let table = table();
        let [a, b] = [(), ()].map(|()| JobProcesses::new(Arc::clone(&table)));
        a.adopt(NOBODY, vec!["a".to_owned()]);
        b.adopt(NOBODY + 1, vec!["b".to_owned()]);
        lock(&table).apply(ProcessEvent::Exit { pid: NOBODY });
        lock(&table).apply(ProcessEvent::Fork {
            parent: NOBODY + 1,
            child: NOBODY,
        });
        assert!(a.find(NOBODY, "").arguments.is_empty());
        assert_eq!(*b.find(NOBODY, "").arguments, ["b"]);
        let locked = lock(&table);
        let members = &locked.jobs[&a.job];
        assert!(members.ended.is_empty() && members.roots.is_empty());
    }

    #[test]
    fn this_process_is_found() {
        let pid = std::process::id();
        let process = read(pid).unwrap();
        assert_eq!(process.exe, Some(std::env::current_exe().unwrap()));
        assert_eq!(process.ppid, std::os::unix::process::parent_id());
    }
}
