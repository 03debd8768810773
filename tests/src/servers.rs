//! The servers of the net side: one thread that waits on every socket, and one more for each TCP
//! connection.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};

use crate::{
    addresses::{
        ALLOWED, BLOCKED, DNS, ECHO_PORTS, HTTP_PORTS, HTTPS_PORTS, OTHER_DNS, UDP_ECHO_PORTS,
    },
    dns::{self, Zone},
    http::{self, Roots},
    tls::Authority,
};

/// What the servers know.
pub(crate) struct World {
    pub(crate) zone: Zone,
    /// Whether no question gets an answer.
    pub(crate) silent: AtomicBool,
    pub(crate) roots: Roots,
    pub(crate) authority: Authority,
}

/// The servers' sockets.
pub(crate) struct Servers {
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
}

/// A TCP connection and the thread that serves it.
type Connection = (TcpStream, JoinHandle<()>);

impl Servers {
    /// Opens the sockets. The calling thread must be on the net side.
    pub(crate) fn open() -> Result<Self> {
        let mut tcp = Vec::new();
        for &port in [HTTP_PORTS, HTTPS_PORTS, ECHO_PORTS, &[53]].concat().iter() {
            // `::` takes IPv4 connections too.
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
                .with_context(|| format!("cannot listen on the net side's TCP port {port}"))?;
            listener.set_nonblocking(true)?;
            tcp.push(listener);
        }
        // One socket an address: the answer must come from where the question went.
        let dns = [DNS, OTHER_DNS].map(|host| host.both().map(|ip| (ip, 53)));
        let mut addresses: Vec<(IpAddr, u16)> = dns.concat();
        for ip in [ALLOWED, BLOCKED].iter().flat_map(|host| host.both()) {
            addresses.extend(UDP_ECHO_PORTS.iter().map(|&port| (ip, port)));
        }
        let mut udp = Vec::new();
        for (ip, port) in addresses {
            let socket = UdpSocket::bind((ip, port))
                .with_context(|| format!("cannot open the net side's UDP port {port} at {ip}"))?;
            socket.set_nonblocking(true)?;
            udp.push(socket);
        }
        Ok(Self { tcp, udp })
    }

    /// Serves until `stop` becomes readable, then ends every connection.
    pub(crate) fn serve(&self, stop: &OwnedFd, world: &Arc<World>) {
        let mut connections: Vec<Connection> = Vec::new();
        loop {
            let mut fds = vec![PollFd::new(stop, PollFlags::IN)];
            fds.extend(
                self.tcp
                    .iter()
                    .map(|socket| PollFd::new(socket, PollFlags::IN)),
            );
            fds.extend(
                self.udp
                    .iter()
                    .map(|socket| PollFd::new(socket, PollFlags::IN)),
            );
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => panic!("cannot poll the servers' sockets: {error}"),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            if ready[0] {
                break;
            }
            let (tcp, udp) = ready[1..].split_at(self.tcp.len());
            for (listener, _) in self.tcp.iter().zip(tcp).filter(|(_, ready)| **ready) {
                connections.retain(|(_, thread)| !thread.is_finished());
                while let Ok((stream, _)) = listener.accept() {
                    connections.extend(connect(stream, world));
                }
            }
            for (socket, _) in self.udp.iter().zip(udp).filter(|(_, ready)| **ready) {
                datagrams(socket, world);
            }
        }
        for (stream, thread) in connections {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
            let _ = thread.join();
        }
    }
}

/// Serves a connection in a thread of its own; `None` if the client is gone already.
fn connect(stream: TcpStream, world: &Arc<World>) -> Option<Connection> {
    stream.set_nonblocking(false).ok()?;
    stream.set_nodelay(true).ok()?;
    let local = stream.local_addr().ok()?;
    let ours = stream.try_clone().ok()?;
    let end = stream.try_clone().ok()?;
    let world = Arc::clone(world);
    let thread = thread::spawn(move || {
        // A client that goes away in the middle is what refusals look like from here.
        let _ = conversation(stream, local, &world);
        // The listener's thread holds the socket too, so closing it would not end it.
        let _ = end.shutdown(Shutdown::Both);
    });
    Some((ours, thread))
}

fn conversation(mut stream: TcpStream, local: SocketAddr, world: &World) -> Result<()> {
    let port = local.port();
    if HTTPS_PORTS.contains(&port) {
        let mut stream = world.authority.accept(stream)?;
        http::answer(&mut stream, &world.roots)?;
        stream.conn.send_close_notify();
        stream.flush()?;
    } else if HTTP_PORTS.contains(&port) {
        http::answer(stream, &world.roots)?;
    } else if port == 53 {
        loop {
            let mut len = [0; 2];
            stream.read_exact(&mut len)?;
            let mut message = vec![0; u16::from_be_bytes(len).into()];
            stream.read_exact(&mut message)?;
            let at = local.ip().to_canonical();
            if world.silent.load(Ordering::Relaxed) {
                continue;
            }
            let Some(reply) = dns::reply(&world.zone, at, &message, false) else {
                break;
            };
            let mut framed = u16::try_from(reply.len())?.to_be_bytes().to_vec();
            framed.extend(reply);
            stream.write_all(&framed)?;
        }
    } else {
        writeln!(stream, "{port}")?;
        io::copy(&mut stream.try_clone()?, &mut stream)?;
    }
    Ok(())
}

/// Answers the datagrams that wait at `socket`.
fn datagrams(socket: &UdpSocket, world: &World) {
    let mut buffer = [0; 4096];
    let Ok(local) = socket.local_addr() else {
        return;
    };
    while let Ok((len, from)) = socket.recv_from(&mut buffer) {
        let message = &buffer[..len];
        let reply = if local.port() == 53 && world.silent.load(Ordering::Relaxed) {
            None
        } else if local.port() == 53 {
            dns::reply(&world.zone, local.ip(), message, true)
        } else {
            Some(message.to_vec())
        };
        if let Some(reply) = reply {
            // A client that has closed its socket since does not want the answer.
            let _ = socket.send_to(&reply, from);
        }
    }
}
