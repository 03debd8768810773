//! Ending refused connections.
//!
//! A program in the kernel can drop what a connection sends, and then the client waits for minutes
//! while TCP sends it again and again. So the agent ends the connection: `SOCK_DESTROY` of
//! sock_diag(7) gives its process an error at once (`ECONNABORTED`) and the server a reset. Nothing
//! depends on it but how long a refusal takes.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, TcpListener},
    os::fd::OwnedFd,
};

use jobfence_abi::{Addr, Event, Hook, Reason, proto};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect,
        netlink::{self, SocketAddrNetlink},
        recv, send, socket_with,
        sockopt::socket_cookie,
    },
};
use zerocopy::FromZeros as _;

/// `linux/netlink.h` and `linux/sock_diag.h`.
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
/// As events have it.
const AF_INET: u8 = 2;
/// `struct nlmsghdr`, in bytes.
const HEADER: usize = 16;
/// With `struct inet_diag_req_v2` behind it.
const REQUEST: u32 = 72;

/// The TCP connections of the network namespace in which this was made.
pub struct Connections {
    socket: OwnedFd,
    /// Whether it was told already that one could not be ended.
    told: bool,
}

impl Connections {
    /// Asks the kernel for its sock_diag.
    ///
    /// # Errors
    ///
    /// What socket(2) says.
    pub fn open() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            Some(netlink::SOCK_DIAG),
        )?;
        connect(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self {
            socket,
            told: false,
        })
    }

    /// Ends the connection that `event` refused, if it refused one.
    pub fn end(&mut self, event: &Event) {
        if !is_refused_connection(event) {
            return;
        }
        match self.destroy(event) {
            Ok(()) => {}
            // It has ended by itself, or is in a network namespace of the job's own.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if self.told => {
                tracing::debug!(%error, "one more refused connection could not be ended");
            }
            // Once: how many there are is up to the job.
            Err(error) => {
                self.told = true;
                tracing::warn!(%error, "a refused connection could not be ended: its client waits");
            }
        }
    }

    /// Tries it on a socket of this process.
    ///
    /// # Errors
    ///
    /// What the kernel says: `EOPNOTSUPP` without `CONFIG_INET_DIAG_DESTROY`, `EPERM` without
    /// `CAP_NET_ADMIN`.
    pub fn try_ending(&self) -> io::Result<()> {
        let local = IpAddr::from(Ipv4Addr::LOCALHOST);
        let listener = TcpListener::bind((local, 0))?;
        let mut event = Event::new_zeroed();
        event.family = AF_INET;
        event.flow.proto = proto::TCP;
        event.flow.dst = Addr::v4(0);
        event.source = local.into();
        event.source_port = listener.local_addr()?.port();
        event.cookie = socket_cookie(&listener)?;
        self.destroy(&event)
    }

    fn destroy(&self, event: &Event) -> io::Result<()> {
        send(&self.socket, &request(event), SendFlags::empty())?;
        // The kernel has answered when the call returns.
        let mut answer = [0; 256];
        let (length, _) = recv(&self.socket, &mut answer[..], RecvFlags::empty())?;
        let code = answer
            .get(HEADER..HEADER + 4)
            .filter(|_| length >= HEADER + 4);
        let code = code.and_then(|bytes| bytes.try_into().ok().map(i32::from_ne_bytes));
        let kind = u16::from_ne_bytes([answer[4], answer[5]]);
        match code.filter(|_| kind == NLMSG_ERROR) {
            Some(0) => Ok(()),
            Some(code) => Err(io::Error::from_raw_os_error(-code)),
            None => Err(Errno::BADMSG.into()),
        }
    }
}

/// Whether `event` is about a connection of the job's that was refused. One that somebody else opened
/// is left alone: its socket is the job's listener, or what that accepted.
fn is_refused_connection(event: &Event) -> bool {
    let is_packet = [Hook::PACKET, Hook::TLS, Hook::HTTP].contains(&event.hook);
    event.passed == 0
        && is_packet
        && event.flow.proto == proto::TCP
        && event.reason != Reason::INBOUND
}

/// The message that asks to destroy the socket of `event`.
fn request(event: &Event) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(REQUEST as usize);
    bytes.extend(REQUEST.to_ne_bytes());
    bytes.extend(SOCK_DESTROY.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    // Sequence number and port: there is one question at a time.
    bytes.extend([0; 8]);
    // `sdiag_family`, `sdiag_protocol`, `idiag_ext`, `pad`, `idiag_states`: any state.
    bytes.extend([event.family, event.flow.proto, 0, 0]);
    bytes.extend(u32::MAX.to_ne_bytes());
    // `struct inet_diag_sockid`.
    bytes.extend(event.source_port.to_be_bytes());
    bytes.extend(event.flow.port.to_be_bytes());
    for addr in [event.source, event.flow.dst] {
        let words = addr.words.map(u32::to_ne_bytes);
        if addr.is_v4() {
            bytes.extend(words[3]);
            bytes.extend([0; 12]);
        } else {
            bytes.extend(words.concat());
        }
    }
    // Any interface; the cookie's low and high half.
    bytes.extend([0; 4]);
    bytes.extend(event.cookie.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_job_began_is_ended() {
        for hook in [Hook::PACKET, Hook::TLS, Hook::HTTP] {
            let mut event = Event::new_zeroed();
            event.hook = hook;
            event.flow.proto = proto::TCP;
            event.reason = Reason::SNI;
            assert!(is_refused_connection(&event), "{hook:?}");
            event.reason = Reason::INBOUND;
            assert!(!is_refused_connection(&event), "{hook:?}");
            event.reason = Reason::SNI;
            event.passed = 1;
            assert!(!is_refused_connection(&event), "{hook:?}");
        }
    }
}
