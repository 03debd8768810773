//! What a job's first process tries in vain before it becomes the command.
//!
//! That programs load and attach does not prove that they refuse: a program of somebody else on a
//! cgroup above can overrule them, a security module can be listed and never be called, a hook can
//! be missing in this kernel. So the process that is about to become the command, in its cgroup and
//! with nothing more than the command will have, tries each way out once, and the agent starts the
//! command only when each was refused and the refusal was reported.
//!
//! Nothing of it can leave the host, whatever the fence does:
//!
//! - Destinations are documentation addresses (RFC 5737, RFC 3849), to which nobody has a route.
//! - IPv4 sockets are tied to the loopback interface (`SO_BINDTODEVICE`). For such a socket the
//!   kernel takes any destination to be on that link, so a packet gets as far as the program that
//!   decides about packets, and is dropped when the interface hands it back. Its time to live is 1.
//! - IPv6 has no such rule; the destination for a packet is a socket of the agent's on `::1`, and
//!   the others have no route by that interface.
//!
//! The fence has none of the policy's rules for addresses meanwhile, so neither policy nor mode
//! changes what must come out. It has two of the probe's own: listeners of the agent, to which a
//! connection is open as to an allowed host, and on which nothing may arrive that shows no name.
//! When nothing of the job has run yet, every report there is is the probe's: the agent takes them
//! out by time, not by anything that a process could claim to be.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr as UnixAddr, UnixDatagram},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use ipnet::IpNet;
use jobfence_abi::{self as abi, Addr, Checks, DNS_PORT, Hook, PortRange, Reason, proto};
use rustix::thread::{CapabilitySet, capabilities};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use thiserror::Error;

use super::cgroup::Cgroup;
use crate::{kernel::BPFFS, sys};

/// Addresses that nobody has.
const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// Where the agent listens for what must not arrive.
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The discard service (RFC 863).
const PORT: u16 = 9;

/// How long the agent, which answers from memory, may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a job was not started.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// Something went through, or was refused by something else than what should.
    #[error(
        "the fence does not hold: an attempt to {what} was to be refused, but {outcome}. {HINT}"
    )]
    Open {
        /// What was tried.
        what: &'static str,
        /// What came of it.
        outcome: String,
    },
    /// Something was refused, and no program reported it.
    #[error(
        "the fence does not hold: an attempt to {what} was refused, but not by jobfence's programs, \
         which reported nothing. {HINT}"
    )]
    Unreported {
        /// What was tried.
        what: &'static str,
    },
    /// Something failed that a job needs.
    #[error("the fence is incomplete: an attempt to {what} was to succeed, but {outcome}. {HINT}")]
    Broken {
        /// What was tried.
        what: &'static str,
        /// What came of it.
        outcome: String,
    },
}

const HINT: &str = "A BPF program of something else on a cgroup above overrules jobfence's: \
                    `bpftool cgroup tree` lists them";

/// What the agent puts up for the probe to aim at: things outside the job, on this host.
pub(crate) struct Targets {
    v6: Option<UdpSocket>,
    tls: Listener,
    http: Listener,
    name: String,
    _unix: UnixDatagram,
}

impl Targets {
    /// Puts them up; `id` is the job's.
    pub(crate) fn new(id: &str) -> io::Result<Self> {
        let name = format!("jobfence-probe-{id}");
        Ok(Self {
            // A host without IPv6 has nothing to probe there.
            v6: UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).ok(),
            tls: Listener::new()?,
            http: Listener::new()?,
            _unix: UnixDatagram::bind_addr(&UnixAddr::from_abstract_name(&name)?)?,
            name,
        })
    }

    /// Where they are, for the process that is to aim at them.
    pub(crate) fn aim(&self, cgroup: &Path) -> Aim {
        let address = self.v6.as_ref().and_then(|socket| socket.local_addr().ok());
        Aim {
            v6: address.map_or(0, |address| address.port()),
            tls: self.tls.port,
            http: self.http.port,
            unix: self.name.clone(),
            cgroup: cgroup.to_owned(),
        }
    }

    /// What the probe may reach.
    pub(crate) fn prefixes(&self) -> [(IpNet, Vec<PortRange>); 1] {
        let range = |listener: &Listener, checks| {
            PortRange::new(proto::TCP, listener.port, listener.port).checked(checks)
        };
        let ranges = vec![
            range(&self.tls, Checks::TLS),
            range(&self.http, Checks::HTTP),
        ];
        [(LOCAL.into(), ranges)]
    }

    /// Completes `outcomes` by what arrived here. Who sends is not told that a packet was dropped:
    /// where nothing arrived, this puts `EPERM` in place of success.
    pub(crate) fn witness(&self, held: Held, outcomes: &mut Outcomes) {
        let attempts = ATTEMPTS.iter().zip(&mut outcomes.0);
        for (attempt, outcome) in attempts.filter(|(attempt, _)| attempt.concerns(held)) {
            let listener = match attempt.report {
                Some((Hook::TLS, ..)) => &self.tls,
                Some((Hook::HTTP, ..)) => &self.http,
                _ => continue,
            };
            if *outcome == 0 {
                *outcome = match listener.has_received() {
                    Ok(true) => 0,
                    Ok(false) => libc::EPERM,
                    Err(error) => errno(&error),
                };
            }
        }
    }
}

/// A listener of the agent's for one connection.
struct Listener {
    socket: Socket,
    port: u16,
}

impl Listener {
    fn new() -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(LOCAL, 0).into())?;
        socket.listen(1)?;
        // Of accept(2) too.
        socket.set_read_timeout(Some(PATIENCE))?;
        let address = socket.local_addr()?.as_socket();
        let port = address.ok_or(io::ErrorKind::Unsupported)?.port();
        Ok(Self { socket, port })
    }

    /// Whether the connection brought any byte before it was reset.
    fn has_received(&self) -> io::Result<bool> {
        let (connection, _) = self.socket.accept()?;
        connection.set_read_timeout(Some(PATIENCE))?;
        // What arrived comes out before the reset does.
        match TcpStream::from(connection).read(&mut [0]) {
            Ok(count) => Ok(count > 0),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Where the targets are.
pub(crate) struct Aim {
    /// Port of a UDP socket on `::1`; 0 for none.
    pub(super) v6: u16,
    /// Port on `127.0.0.1` to which a connection is open if it is TLS for an allowed name.
    pub(super) tls: u16,
    /// The same for HTTP.
    pub(super) http: u16,
    /// Name of an abstract Unix socket.
    pub(super) unix: String,
    /// The job's cgroup.
    pub(super) cgroup: PathBuf,
}

impl Aim {
    /// As arguments of a process.
    pub(super) fn arguments(&self) -> [OsString; 5] {
        [
            self.cgroup.clone().into_os_string(),
            self.v6.to_string().into(),
            self.tls.to_string().into(),
            self.http.to_string().into(),
            self.unix.clone().into(),
        ]
    }

    /// From what [`Self::arguments`] gave.
    pub(super) fn parse(mut arguments: impl Iterator<Item = OsString>) -> Option<Self> {
        let mut next = || arguments.next();
        let port = |text: Option<OsString>| text?.to_str()?.parse().ok();
        Some(Self {
            cgroup: next()?.into(),
            v6: port(next())?,
            tls: port(next())?,
            http: port(next())?,
            unix: next()?.into_string().ok()?,
        })
    }

    /// Tries `attempt` on a host that has IPv6.
    fn if_ipv6(&self, attempt: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match self.v6 {
            0 => Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
            _ => attempt(),
        }
    }
}

/// When an attempt is made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// In the cgroup, with every capability: what is refused now, the programs refuse.
    Privileged,
    /// As the command will be.
    Job,
}

/// What must come of an attempt.
enum Expect {
    /// One of these errors.
    Refused(&'static [i32]),
    /// Success; with an error of these, there is nothing to have success with.
    Success(&'static [i32]),
    /// Either: it only tells what is there.
    Either,
}

/// By what a job is to be proven to be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// The programs, and what a job is launched with.
    Both,
    /// The programs alone: nothing of the job is launched yet, or it was there before the fence.
    Programs,
    /// What a job is launched with, in a fence that is proven and notes every attempt already.
    Launch,
}

impl Held {
    /// As an argument of a process.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Both => "both",
            Self::Programs => "programs",
            Self::Launch => "launch",
        }
    }

    /// From what [`Self::word`] gave.
    pub(super) fn parse(word: &str) -> Option<Self> {
        let mut all = [Self::Both, Self::Programs, Self::Launch].into_iter();
        all.find(|held| held.word() == word)
    }
}

struct Attempt {
    /// Completes "an attempt to …".
    what: &'static str,
    stage: Stage,
    make: fn(&Aim) -> io::Result<()>,
    expect: Expect,
    /// Where an `EPERM` must be reported from, with the destination (of a socket: its family
    /// only) and the protocol.
    report: Option<(Hook, IpAddr, u8)>,
}

impl Attempt {
    /// Whether it says something about a job that is held so.
    fn concerns(&self, held: Held) -> bool {
        // What the programs refuse they report.
        let by_launch = self.report.is_none() && matches!(self.expect, Expect::Refused(_));
        match held {
            Held::Both => true,
            Held::Programs => !by_launch,
            // A connection that only a fence makes, and that is no event: else a process that has
            // entered some other cgroup would pass.
            Held::Launch => by_launch || self.what == RESOLVER,
        }
    }
}

/// `EPERM` is what programs and capabilities refuse with.
const EPERM: &[i32] = &[libc::EPERM];
/// Also what a host without IPv6 says of a socket.
const EPERM_V6: &[i32] = &[libc::EPERM, libc::EAFNOSUPPORT];
/// What the filter for system calls says of a family; nothing else says so of those that exist.
const NO_FAMILY: &[i32] = &[libc::EAFNOSUPPORT];

const ATTEMPTS: [Attempt; 22] = [
    Attempt {
        what: "make a raw IPv4 socket as root",
        stage: Stage::Privileged,
        make: |_| raw(Domain::IPV4),
        expect: Expect::Refused(EPERM),
        report: Some((Hook::SOCKET, V4, proto::UDP)),
    },
    Attempt {
        what: "make a raw IPv6 socket as root",
        stage: Stage::Privileged,
        make: |_| raw(Domain::IPV6),
        expect: Expect::Refused(EPERM_V6),
        report: Some((Hook::SOCKET, V6, proto::UDP)),
    },
    Attempt {
        what: OTHER_FAMILY,
        stage: Stage::Privileged,
        make: |_| Socket::new(Domain::VSOCK, Type::STREAM, None).map(drop),
        expect: Expect::Either,
        report: None,
    },
    Attempt {
        what: "connect to an IPv4 address",
        stage: Stage::Job,
        make: |_| connect(V4),
        expect: Expect::Refused(EPERM),
        report: Some((Hook::CONNECT, V4, proto::TCP)),
    },
    Attempt {
        what: "connect to an IPv6 address",
        stage: Stage::Job,
        make: |_| connect(V6),
        expect: Expect::Refused(EPERM_V6),
        report: Some((Hook::CONNECT, V6, proto::TCP)),
    },
    Attempt {
        what: "send a datagram to an IPv4 address",
        stage: Stage::Job,
        make: |_| send_to(V4),
        expect: Expect::Refused(EPERM),
        report: Some((Hook::CONNECT, V4, proto::UDP)),
    },
    Attempt {
        what: "send a datagram to an IPv6 address",
        stage: Stage::Job,
        make: |_| send_to(V6),
        expect: Expect::Refused(EPERM_V6),
        report: Some((Hook::CONNECT, V6, proto::UDP)),
    },
    Attempt {
        what: "send an IPv4 datagram on a connected socket",
        stage: Stage::Job,
        make: |_| send(SocketAddr::new(V4, PORT)),
        expect: Expect::Refused(EPERM),
        report: Some((Hook::PACKET, V4, proto::UDP)),
    },
    Attempt {
        what: "send an IPv6 datagram on a connected socket",
        stage: Stage::Job,
        make: |aim| aim.if_ipv6(|| send((Ipv6Addr::LOCALHOST, aim.v6).into())),
        expect: Expect::Refused(EPERM_V6),
        report: Some((Hook::PACKET, IpAddr::V6(Ipv6Addr::LOCALHOST), proto::UDP)),
    },
    Attempt {
        what: "send what is no TLS to where only TLS for an allowed name may go",
        stage: Stage::Job,
        make: |aim| send_nameless(aim.tls, b"no ClientHello"),
        expect: Expect::Refused(EPERM),
        report: Some((Hook::TLS, LOCAL, proto::TCP)),
    },
    Attempt {
        what: "send a request without a host to where only requests for an allowed one may go",
        stage: Stage::Job,
        make: |aim| send_nameless(aim.http, b"GET / HTTP/1.1\r\n\r\n"),
        expect: Expect::Refused(EPERM),
        report: Some((Hook::HTTP, LOCAL, proto::TCP)),
    },
    Attempt {
        what: "make a raw socket",
        stage: Stage::Job,
        make: |_| raw(Domain::IPV4),
        expect: Expect::Refused(EPERM),
        report: None,
    },
    Attempt {
        what: "make a packet socket",
        stage: Stage::Job,
        make: |_| Socket::new(Domain::PACKET, Type::RAW, None).map(drop),
        expect: Expect::Refused(NO_FAMILY),
        report: None,
    },
    Attempt {
        what: "make a vsock socket",
        stage: Stage::Job,
        make: |_| Socket::new(Domain::VSOCK, Type::STREAM, None).map(drop),
        expect: Expect::Refused(NO_FAMILY),
        report: None,
    },
    Attempt {
        what: "make an io_uring",
        stage: Stage::Job,
        make: |_| sys::io_uring_setup().map(drop),
        expect: Expect::Refused(EPERM),
        report: None,
    },
    Attempt {
        what: "open the fence by bpf(2)",
        stage: Stage::Job,
        make: |_| sys::is_detached(Path::new(BPFFS)).map(drop),
        expect: Expect::Refused(EPERM),
        report: None,
    },
    Attempt {
        what: "leave the cgroup",
        stage: Stage::Job,
        make: leave,
        expect: Expect::Refused(&[libc::EROFS, libc::EACCES, libc::EPERM]),
        report: None,
    },
    Attempt {
        what: "ask the job's resolver over UDP, by the address of another one",
        stage: Stage::Job,
        make: |_| ask(V4),
        expect: Expect::Success(&[]),
        report: None,
    },
    Attempt {
        what: RESOLVER,
        stage: Stage::Job,
        make: |_| reach(V4),
        expect: Expect::Success(&[]),
        report: None,
    },
    Attempt {
        what: "ask the job's resolver over UDP, by an IPv6 address",
        stage: Stage::Job,
        make: |aim| aim.if_ipv6(|| ask(V6)),
        expect: Expect::Success(&[libc::EAFNOSUPPORT]),
        report: None,
    },
    Attempt {
        what: "reach the job's resolver over TCP, by an IPv6 address",
        stage: Stage::Job,
        make: |aim| aim.if_ipv6(|| reach(V6)),
        expect: Expect::Success(&[libc::EAFNOSUPPORT]),
        report: None,
    },
    Attempt {
        what: ABSTRACT,
        stage: Stage::Job,
        make: abstract_socket,
        expect: Expect::Either,
        report: None,
    },
];

/// The attempt that tells of a fence without an event.
const RESOLVER: &str = "reach the job's resolver over TCP, by the address of another one";

/// Attempts that tell of a layer.
const OTHER_FAMILY: &str = "make a socket of another family as root";
const ABSTRACT: &str = "send to an abstract Unix socket outside the job";

/// A socket that reaches no further than the loopback interface.
fn tied(ip: IpAddr, kind: Type) -> io::Result<Socket> {
    let domain = Domain::for_address(SocketAddr::new(ip, 0));
    let socket = Socket::new(domain, kind, None)?;
    socket.bind_device(Some(b"lo"))?;
    if ip.is_ipv4() {
        socket.set_ttl_v4(1)?;
    } else {
        socket.set_unicast_hops_v6(1)?;
    }
    Ok(socket)
}

fn raw(domain: Domain) -> io::Result<()> {
    Socket::new(domain, Type::RAW, Some(Protocol::UDP)).map(drop)
}

fn connect(ip: IpAddr) -> io::Result<()> {
    let socket = tied(ip, Type::STREAM)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SocketAddr::new(ip, PORT).into())
}

fn send_to(ip: IpAddr) -> io::Result<()> {
    let socket = tied(ip, Type::DGRAM)?;
    socket
        .send_to(b"", &SocketAddr::new(ip, PORT).into())
        .map(drop)
}

fn send(to: SocketAddr) -> io::Result<()> {
    let socket = tied(to.ip(), Type::DGRAM)?;
    socket.connect(&to.into())?;
    socket.send(b"").map(drop)
}

/// Sends `payload` to a listener of the agent's, and ends the connection by a reset, so that the
/// agent need not wait to know that nothing arrived.
fn send_nameless(port: u16, payload: &[u8]) -> io::Result<()> {
    let socket = tied(LOCAL, Type::STREAM)?;
    socket.connect(&SocketAddr::new(LOCAL, port).into())?;
    // The second send makes TCP send the first again, which must leave no more than before. It
    // stays apart from that as the end of a record.
    for _ in 0..2 {
        socket.send_with_flags(payload, libc::MSG_EOR)?;
    }
    socket.set_linger(Some(Duration::ZERO))
}

/// Moves the process to the cgroup above its own. If that works, the process never becomes the
/// command.
fn leave(aim: &Aim) -> io::Result<()> {
    let above = aim.cgroup.join("../cgroup.procs");
    File::options().write(true).open(above)?.write_all(b"0")
}

fn abstract_socket(aim: &Aim) -> io::Result<()> {
    let target = UnixAddr::from_abstract_name(&aim.unix)?;
    UnixDatagram::unbound()?
        .send_to_addr(b"", &target)
        .map(drop)
}

/// A question for the address of the root, for which no policy can have a rule (RFC 1035 section
/// 4.1).
const QUESTION: [u8; 17] = *b"\x1d\x0b\x01\0\0\x01\0\0\0\0\0\0\0\0\x01\0\x01";

/// Asks a DNS server that does not exist. Only the job's own resolver can answer, and must look
/// like the one that was asked.
fn ask(ip: IpAddr) -> io::Result<()> {
    let socket = tied(ip, Type::DGRAM)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let server = SocketAddr::new(ip, DNS_PORT);
    socket.send_to(&QUESTION, &server.into())?;
    let socket = UdpSocket::from(socket);
    let mut answer = [0; 512];
    let (length, from) = socket.recv_from(&mut answer)?;
    if from != server {
        let shown = format!("the answer seems to come from {from}");
        return Err(io::Error::other(shown));
    }
    // The same id; an answer; no record in it; and not REFUSED, as strangers are answered.
    let [a, b, c, d, _, _, e, f, ..] = answer;
    let is_answer = length >= 12 && [a, b] == QUESTION[..2] && c & 0x80 != 0;
    if is_answer && [e, f] == [0, 0] && d & 0x0f != 5 {
        Ok(())
    } else {
        Err(io::Error::other(
            "the answer was not the resolver's for a job",
        ))
    }
}

fn reach(ip: IpAddr) -> io::Result<()> {
    let socket = tied(ip, Type::STREAM)?;
    let server = SockAddr::from(SocketAddr::new(ip, DNS_PORT));
    socket.connect_timeout(&server, PATIENCE)?;
    let peer = socket.peer_addr()?;
    if peer == server {
        Ok(())
    } else {
        Err(io::Error::other("the resolver shows its own address"))
    }
}

/// The argument that makes a process of this program one that proves the fence of a job whose
/// processes were there before it.
pub const ENTRY: &str = "__probe";

/// What such a process does, with the arguments after [`ENTRY`]: it enters the job's cgroup, tries each
/// way out, and writes what came of it to its standard output. Returns the exit status.
#[must_use]
pub fn probe(arguments: impl Iterator<Item = OsString>) -> u8 {
    let Some(aim) = Aim::parse(arguments) else {
        eprintln!("jobfence: {ENTRY} is for jobfence's own use");
        return 2;
    };
    if let Err(error) = Cgroup::open(aim.cgroup.clone()).enter() {
        eprintln!("{error}");
        return 1;
    }
    // As a process that is launched is, of which this can tell too. When it fails, the attempt at an
    // abstract socket does not.
    _ = sys::scope();
    let mut outcomes = Outcomes::none();
    for stage in [Stage::Privileged, Stage::Job] {
        outcomes.attempt(stage, Held::Programs, &aim);
    }
    u8::from(io::stdout().write_all(&outcomes.bytes()).is_err())
}

/// Has a process of this program try to get out of the cgroup that `targets` are the job's in. To be
/// called where blocking is allowed.
///
/// # Errors
///
/// What starting a process can fail with, and what it said when it failed.
pub(crate) fn probe_cgroup(targets: &Targets, cgroup: &Path) -> io::Result<Outcomes> {
    let output = Command::new("/proc/self/exe")
        .arg(ENTRY)
        .args(targets.aim(cgroup).arguments())
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .output()?;
    let Ok(bytes) = output.stdout.try_into() else {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(io::Error::other(format!("{}: {said}", output.status)));
    };
    let mut outcomes = Outcomes::from_bytes(bytes);
    targets.witness(Held::Programs, &mut outcomes);
    Ok(outcomes)
}

/// What came of the attempts: the error number of each, 0 for success, [`OTHER_ERROR`] for an
/// error that has none.
pub(crate) struct Outcomes([i32; ATTEMPTS.len()]);

/// An answer from the wrong server, or a wrong one.
const OTHER_ERROR: i32 = libc::EPROTO;

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(OTHER_ERROR)
}

impl Outcomes {
    /// Bytes of [`Self::bytes`].
    pub(super) const BYTES: usize = 4 * ATTEMPTS.len();

    /// No attempt made.
    pub(super) const fn none() -> Self {
        Self([0; ATTEMPTS.len()])
    }

    /// Makes the attempts of a stage. Called in the process that is to become the command.
    pub(super) fn attempt(&mut self, stage: Stage, held: Held, aim: &Aim) {
        for (attempt, outcome) in ATTEMPTS.iter().zip(&mut self.0) {
            if attempt.stage == stage && attempt.concerns(held) {
                *outcome = (attempt.make)(aim).map_or_else(|error| errno(&error), |()| 0);
            }
        }
    }

    /// As bytes, for the pipe to the agent.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0
            .iter()
            .flat_map(|outcome| outcome.to_ne_bytes())
            .collect()
    }

    /// From the bytes that came through the pipe.
    pub(super) fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let (words, _) = bytes.as_chunks();
        let mut outcomes = Self::none();
        for (outcome, word) in outcomes.0.iter_mut().zip(words) {
            *outcome = i32::from_ne_bytes(*word);
        }
        outcomes
    }

    fn of(&self, what: &str) -> i32 {
        let mut both = ATTEMPTS.iter().zip(self.0);
        both.find(|(attempt, _)| attempt.what == what)
            .map_or(0, |(_, outcome)| outcome)
    }
}

/// What the attempts told of layers that not every kernel has.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Findings {
    /// The program on `socket_create` is called.
    pub(crate) lsm: bool,
    /// Abstract Unix sockets outside the job are out of reach.
    pub(crate) landlock: bool,
}

/// What there is to probe.
#[derive(Clone, Copy, Default)]
pub(crate) struct Means {
    /// The program on `socket_create` is attached, and the kernel claims to call it.
    pub(crate) lsm: bool,
    /// The agent, and so the first process while it is privileged, has `CAP_NET_RAW`. Without it the
    /// kernel refuses a raw socket before it asks any program.
    pub(crate) raw: bool,
}

impl Means {
    /// What there is on this host, given the program on `socket_create` or not.
    pub(crate) fn find(lsm: bool) -> Self {
        let sets = capabilities(None);
        let raw = sets.is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_RAW));
        Self { lsm, raw }
    }
}

/// Judges `outcomes` by the `reports` of the programs.
pub(crate) fn judge(
    outcomes: &Outcomes,
    held: Held,
    reports: &[abi::Event],
    means: Means,
) -> Result<Findings, ProbeError> {
    let attempts = ATTEMPTS.iter().zip(&outcomes.0);
    for (attempt, &outcome) in attempts.filter(|(attempt, _)| attempt.concerns(held)) {
        let what = attempt.what;
        match attempt.expect {
            Expect::Refused(errors) if !errors.contains(&outcome) => {
                let outcome = told(outcome);
                return Err(ProbeError::Open { what, outcome });
            }
            Expect::Success(errors) if outcome != 0 && !errors.contains(&outcome) => {
                let outcome = told(outcome);
                return Err(ProbeError::Broken { what, outcome });
            }
            _ => {}
        }
        let asked = attempt.stage == Stage::Job || means.raw;
        if let Some((hook, ip, proto)) = attempt.report
            && outcome == libc::EPERM
            && asked
            && !reports
                .iter()
                .any(|report| tells_of(report, hook, ip, proto))
        {
            return Err(ProbeError::Unreported { what });
        }
    }
    let lsm = outcomes.of(OTHER_FAMILY) == libc::EPERM
        && reports.iter().any(|report| report.reason == Reason::FAMILY);
    if means.lsm && !lsm {
        return Err(ProbeError::Open {
            what: OTHER_FAMILY,
            outcome: told(outcomes.of(OTHER_FAMILY)),
        });
    }
    Ok(Findings {
        lsm,
        landlock: outcomes.of(ABSTRACT) == libc::EPERM,
    })
}

/// Whether `report` tells of the refusal of this attempt.
fn tells_of(report: &abi::Event, hook: Hook, ip: IpAddr, proto: u8) -> bool {
    let family = if ip.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    // A connection can be refused for other reasons too, as one that was not seen to begin.
    let names_it = match hook {
        Hook::TLS => report.reason == Reason::SNI,
        Hook::HTTP => report.reason == Reason::HOST_HEADER,
        _ => true,
    };
    report.hook == hook
        && names_it
        && report.passed == 0
        && i32::from(report.family) == family
        && report.flow.proto == proto
        && (hook == Hook::SOCKET || report.flow.dst == Addr::from(ip))
}

fn told(outcome: i32) -> String {
    match outcome {
        0 => "it went through".to_owned(),
        error => format!("it ended with: {}", io::Error::from_raw_os_error(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::{process::Command, thread};

    use jobfence_abi::Flow;
    use nix::sched::{CloneFlags, unshare};
    use rustix::process::geteuid;
    use zerocopy::FromZeros as _;

    use super::*;

    const MEANS: Means = Means {
        lsm: false,
        raw: true,
    };
    const WITH_LSM: Means = Means { lsm: true, ..MEANS };

    /// What comes of every attempt in a fence that holds.
    fn held() -> (Outcomes, Vec<abi::Event>) {
        let mut outcomes = Outcomes::none();
        let mut reports = Vec::new();
        for (attempt, outcome) in ATTEMPTS.iter().zip(&mut outcomes.0) {
            if let Expect::Refused(errors) = attempt.expect {
                *outcome = errors[0];
            }
            reports.extend(
                attempt
                    .report
                    .map(|(hook, ip, proto)| report(hook, ip, proto)),
            );
        }
        (outcomes, reports)
    }

    fn report(hook: Hook, ip: IpAddr, proto: u8) -> abi::Event {
        abi::Event {
            slot: 1,
            hook,
            reason: match hook {
                Hook::TLS => Reason::SNI,
                Hook::HTTP => Reason::HOST_HEADER,
                _ => Reason::NO_RULE,
            },
            family: if ip.is_ipv4() { 2 } else { 10 },
            flow: Flow::new(ip.into(), PORT, proto),
            pid: 1,
            ..abi::Event::new_zeroed()
        }
    }

    fn index(what: &str) -> usize {
        let found = ATTEMPTS.iter().position(|attempt| attempt.what == what);
        found.expect("no such attempt")
    }

    #[test]
    fn a_fence_that_holds_is_found_to() {
        let (mut outcomes, mut reports) = held();
        let findings = judge(&outcomes, Held::Both, &reports, MEANS).expect("it holds");
        assert_eq!(
            findings,
            Findings {
                lsm: false,
                landlock: false
            }
        );

        outcomes.0[index(OTHER_FAMILY)] = libc::EPERM;
        outcomes.0[index(ABSTRACT)] = libc::EPERM;
        let family = report(Hook::SOCKET, V4, 0);
        reports.push(abi::Event {
            reason: Reason::FAMILY,
            ..family
        });
        let findings = judge(&outcomes, Held::Both, &reports, WITH_LSM).expect("it holds");
        assert_eq!(
            findings,
            Findings {
                lsm: true,
                landlock: true
            }
        );
    }

    #[test]
    fn whatever_goes_through_is_found() {
        for (index, attempt) in ATTEMPTS.iter().enumerate() {
            let (mut outcomes, reports) = held();
            let Expect::Refused(_) = attempt.expect else {
                continue;
            };
            // It went through; or was refused by something else, as by a route that is missing.
            for outcome in [0, libc::ENETUNREACH, libc::EINPROGRESS] {
                outcomes.0[index] = outcome;
                match judge(&outcomes, Held::Both, &reports, MEANS) {
                    Err(ProbeError::Open { what, .. }) => assert_eq!(what, attempt.what),
                    other => panic!("{} with {outcome}: {other:?}", attempt.what),
                }
            }
        }
    }

    #[test]
    fn a_refusal_without_its_own_report_is_found() {
        for attempt in &ATTEMPTS {
            let (outcomes, mut reports) = held();
            let Some((hook, ip, proto)) = attempt.report else {
                continue;
            };
            reports.retain(|report| !tells_of(report, hook, ip, proto));
            match judge(&outcomes, Held::Both, &reports, MEANS) {
                Err(ProbeError::Unreported { what }) => assert_eq!(what, attempt.what),
                other => panic!("{}: {other:?}", attempt.what),
            }
        }
    }

    #[test]
    fn what_was_let_through_does_not_count_as_a_report() {
        let (outcomes, mut reports) = held();
        for report in &mut reports {
            report.passed = 1;
        }
        assert!(judge(&outcomes, Held::Both, &reports, MEANS).is_err());
    }

    #[test]
    fn a_payload_that_was_refused_for_another_reason_does_not_count_as_checked() {
        for hook in [Hook::TLS, Hook::HTTP] {
            let (outcomes, mut reports) = held();
            for report in reports.iter_mut().filter(|report| report.hook == hook) {
                report.reason = Reason::INBOUND;
            }
            let unreported = judge(&outcomes, Held::Both, &reports, MEANS);
            assert!(
                matches!(unreported, Err(ProbeError::Unreported { .. })),
                "{unreported:?}"
            );
        }
    }

    #[test]
    fn what_arrives_at_a_listener_is_told_from_what_does_not() {
        let aim = |targets: &Targets| targets.aim(Path::new("/nonexistent"));
        let connect = |port| TcpStream::connect((LOCAL, port)).expect("a connection");
        let index = |hook| {
            let found = |attempt: &Attempt| attempt.report.is_some_and(|(at, ..)| at == hook);
            ATTEMPTS.iter().position(found).expect("no such attempt")
        };
        let targets = Targets::new("arrivals").expect("targets");
        let (tls, http) = (aim(&targets).tls, aim(&targets).http);
        connect(tls).write_all(b"x").expect("sent");
        // Ends without a byte.
        drop(connect(http));
        let mut outcomes = Outcomes::none();
        targets.witness(Held::Both, &mut outcomes);
        assert_eq!(outcomes.0[index(Hook::TLS)], 0);
        assert_eq!(outcomes.0[index(Hook::HTTP)], libc::EPERM);

        // Of an attempt that failed, nothing is waited for.
        outcomes.0 = [libc::ECONNREFUSED; ATTEMPTS.len()];
        targets.witness(Held::Both, &mut outcomes);
        assert_eq!(outcomes.0, [libc::ECONNREFUSED; ATTEMPTS.len()]);
    }

    #[test]
    fn a_resolver_that_cannot_be_reached_is_found() {
        for (index, attempt) in ATTEMPTS.iter().enumerate() {
            let (mut outcomes, reports) = held();
            if let Expect::Success(_) = attempt.expect {
                outcomes.0[index] = libc::EAGAIN;
                let broken = judge(&outcomes, Held::Both, &reports, MEANS);
                assert!(
                    matches!(broken, Err(ProbeError::Broken { .. })),
                    "{broken:?}"
                );
            }
        }
    }

    #[test]
    fn a_program_that_is_attached_and_never_called_is_found() {
        let (outcomes, reports) = held();
        assert!(judge(&outcomes, Held::Both, &reports, WITH_LSM).is_err());
    }

    #[test]
    fn outcomes_come_through_a_pipe() {
        let (outcomes, _) = held();
        let bytes = outcomes.bytes().try_into().expect("as long as it says");
        assert_eq!(Outcomes::from_bytes(bytes).0, outcomes.0);
    }

    /// The attempts would be worth nothing if they failed for reasons of their own.
    #[test]
    fn without_a_fence_no_attempt_looks_refused() {
        if !geteuid().is_root() {
            // Not by a macro, whose output a test that passes does not show.
            let told = "LEFT OUT: the self-probe without a fence (needs root)";
            writeln!(io::stderr(), "{told}").expect("stderr");
            return;
        }
        let outcomes = thread::spawn(|| {
            // In a network with nothing but a loopback interface.
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            let up = Command::new("ip")
                .args(["link", "set", "lo", "up"])
                .status();
            assert!(up.expect("ip of iproute2").success());
            let targets = Targets::new("test").expect("targets");
            let aim = targets.aim(Path::new("/nonexistent"));
            assert_ne!(aim.v6, 0, "needs IPv6");
            let mut outcomes = Outcomes::none();
            outcomes.attempt(Stage::Privileged, Held::Both, &aim);
            for (attempt, outcome) in ATTEMPTS.iter().zip(&mut outcomes.0) {
                // These two wait for an answer that nobody gives.
                if attempt.stage == Stage::Job && !matches!(attempt.expect, Expect::Success(_)) {
                    *outcome = (attempt.make)(&aim).map_or_else(|error| errno(&error), |()| 0);
                }
            }
            targets.witness(Held::Both, &mut outcomes);
            outcomes
        });
        let outcomes = outcomes.join().expect("no panic");
        for (attempt, outcome) in ATTEMPTS.iter().zip(outcomes.0) {
            match attempt.expect {
                Expect::Refused(errors) => assert!(
                    !errors.contains(&outcome),
                    "{} fails without a fence too: {}",
                    attempt.what,
                    told(outcome)
                ),
                Expect::Either => assert_eq!(outcome, 0, "{}", attempt.what),
                Expect::Success(_) => {}
            }
        }
    }
}
