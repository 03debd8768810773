//! The sockets at which a job's questions arrive.
//!
//! hickory-server is not used here. It accepts any number of TCP connections, so that one job
//! could take all file descriptors of the agent and with them the names of every other job, and
//! then accepts again at once and for ever. These loops take a bounded number and wait.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::decide::{Decider, poll_once};
use super::message::MAX_QUESTION;
use super::{Mark, Transport};

/// How long a TCP connection may take for its next question, and to take an answer.
const IDLE: Duration = Duration::from_secs(10);

/// TCP connections per socket. The others wait in the kernel, which holds no descriptor for them.
pub(super) const MAX_CONNECTIONS: usize = 32;

/// How long to wait after an error that another process causes, such as too many open files.
const PAUSE: Duration = Duration::from_millis(50);

/// Ports to try before giving up on one that is free for UDP and TCP.
const BIND_TRIES: usize = 64;

/// Connections that wait in the kernel to be accepted, at most.
const BACKLOG: u32 = 1024;

/// A port of one address, for UDP and TCP.
pub(super) struct Pair {
    pub(super) port: u16,
    pub(super) udp: Arc<UdpSocket>,
    pub(super) tcp: Arc<TcpListener>,
}

impl Pair {
    /// Takes a port of `127.0.0.1`: `wanted` if it is free, and not 0, else any.
    pub(super) async fn v4(wanted: u16, mark: &Mark<'_>) -> io::Result<Self> {
        Self::bind(Ipv4Addr::LOCALHOST.into(), wanted, mark).await
    }

    /// Takes a port of `::1`, as [`Pair::v4`] does; `None` on a host without IPv6.
    pub(super) async fn v6(wanted: u16, mark: &Mark<'_>) -> io::Result<Option<Self>> {
        let without = rustix::io::Errno::AFNOSUPPORT.raw_os_error();
        match Self::bind(Ipv6Addr::LOCALHOST.into(), wanted, mark).await {
            Ok(pair) => Ok(Some(pair)),
            Err(error)
                if error.kind() == io::ErrorKind::AddrNotAvailable
                    || error.raw_os_error() == Some(without) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn bind(ip: IpAddr, wanted: u16, mark: &Mark<'_>) -> io::Result<Self> {
        let any = std::iter::repeat_n(0, BIND_TRIES);
        for port in std::iter::once(wanted).chain(any) {
            match Self::try_bind(ip, port, mark) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                bound => return bound,
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }

    fn try_bind(ip: IpAddr, port: u16, mark: &Mark<'_>) -> io::Result<Self> {
        let tcp = match ip {
            IpAddr::V4(_) => TcpSocket::new_v4()?,
            IpAddr::V6(_) => TcpSocket::new_v6()?,
        };
        mark(tcp.as_fd())?;
        tcp.set_reuseaddr(true)?;
        tcp.bind((ip, port).into())?;
        let tcp = tcp.listen(BACKLOG)?;
        let address = tcp.local_addr()?;
        let family = match ip {
            IpAddr::V4(_) => AddressFamily::INET,
            IpAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let udp = socket_with(family, SocketType::DGRAM, flags, None)?;
        mark(udp.as_fd())?;
        bind(&udp, &address)?;
        Ok(Self {
            port: address.port(),
            udp: Arc::new(UdpSocket::from_std(udp.into())?),
            tcp: Arc::new(tcp),
        })
    }

    /// Its sockets.
    pub(super) fn sockets(&self) -> [BorrowedFd<'_>; 2] {
        [self.udp.as_fd(), self.tcp.as_fd()]
    }

    /// Answers questions until `tasks` is dropped.
    pub(super) fn serve(&self, decider: &Arc<Decider>, tasks: &mut JoinSet<()>) {
        tasks.spawn(serve_udp(Arc::clone(&self.udp), Arc::clone(decider)));
        tasks.spawn(serve_tcp(Arc::clone(&self.tcp), Arc::clone(decider)));
    }
}

/// A question for the address of `localhost`, which needs no rule and leaves no event (RFC 1035
/// section 4.1).
const LOCALHOST: &[u8] = b"\0\0\x01\0\0\x01\0\0\0\0\0\0\x09localhost\0\0\x01\0\x01";

/// How long an answer to that question may take.
const SETTLE: Duration = Duration::from_secs(1);

/// Asks the resolver at `address` a question of its own. Questions are taken in the order in which
/// they came, so when this one is answered, the others have been read.
pub(super) async fn settle(address: SocketAddr) -> io::Result<()> {
    let mut answer = [0; 512];
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let udp = UdpSocket::bind((any, 0)).await?;
    udp.send_to(LOCALHOST, address).await?;
    timeout(SETTLE, udp.recv(&mut answer)).await??;
    let mut tcp = timeout(SETTLE, TcpStream::connect(address)).await??;
    let length = u16::try_from(LOCALHOST.len()).map_err(io::Error::other)?;
    tcp.write_all(&[&length.to_be_bytes(), LOCALHOST].concat())
        .await?;
    timeout(SETTLE, tcp.read(&mut answer)).await?.map(drop)
}

async fn serve_udp(socket: Arc<UdpSocket>, decider: Arc<Decider>) {
    let mut buffer = vec![0; MAX_QUESTION];
    let mut waiting = JoinSet::new();
    loop {
        let (length, peer) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::warn!(%error, "cannot receive questions over UDP, trying again");
                sleep(PAUSE).await;
                continue;
            }
        };
        while waiting.try_join_next().is_some() {}
        if let Some(reply) = decider.answer_again(&buffer[..length], peer) {
            send(&socket, &reply, peer).await;
            continue;
        }
        let question = match decider.read(&buffer[..length], peer, Transport::Udp) {
            Ok(question) => question,
            Err(reply) => {
                if let Some(reply) = reply {
                    send(&socket, &reply, peer).await;
                }
                continue;
            }
        };
        let answer = {
            let (socket, decider) = (Arc::clone(&socket), Arc::clone(&decider));
            async move {
                let reply = decider.answer(question, peer, Transport::Udp).await;
                send(&socket, &reply, peer).await;
            }
        };
        // Most answers need nobody else. The others become tasks, as many as the decider lets
        // wait.
        let mut answer = Box::pin(answer);
        if poll_once(&mut answer).await.is_pending() {
            waiting.spawn(answer);
        }
    }
}

async fn send(socket: &UdpSocket, reply: &[u8], peer: SocketAddr) {
    if let Err(error) = socket.send_to(reply, peer).await {
        tracing::debug!(%error, %peer, "cannot send an answer over UDP");
    }
}

async fn serve_tcp(listener: Arc<TcpListener>, decider: Arc<Decider>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    // Fails only when somebody closes the semaphore, which nobody does.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, peer)) => {
                let decider = Arc::clone(&decider);
                connections.spawn(async move {
                    let _place = place;
                    if let Err(error) = serve_connection(stream, peer, &decider).await {
                        tracing::trace!(%error, %peer, "a TCP connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept questions over TCP, trying again");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Answers the questions of one connection, one after the other.
async fn serve_connection(
    mut stream: TcpStream,
    peer: SocketAddr,
    decider: &Decider,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        timeout(IDLE, read_message(&mut stream, &mut buffer)).await??;
        let reply = match decider.read(&buffer, peer, Transport::Tcp) {
            Ok(question) => decider.answer(question, peer, Transport::Tcp).await,
            Err(Some(reply)) => reply,
            Err(None) => return Ok(()),
        };
        let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
        // One write, so that the length does not travel in a segment of its own.
        let framed = [&length.to_be_bytes(), reply.as_slice()].concat();
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

/// Reads a message with its length in front, RFC 1035 section 4.2.2.
async fn read_message(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<()> {
    let length = usize::from(stream.read_u16().await?);
    if length > MAX_QUESTION {
        return Err(io::ErrorKind::InvalidData.into());
    }
    buffer.resize(length, 0);
    stream.read_exact(buffer).await?;
    Ok(())
}
