//! What the programs report.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Addr, Fault, Flow, NAME_ROOM};

/// Length of a command name, its terminating zero included (`TASK_COMM_LEN`).
pub const COMM_LEN: usize = 16;

/// One attempt, as a program puts it into the ring buffer.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Event {
    /// `CLOCK_MONOTONIC` in nanoseconds (`bpf_ktime_get_ns`).
    pub monotonic_ns: u64,
    /// Slot of the job.
    pub slot: u32,
    /// Which hook saw the attempt.
    pub hook: Hook,
    /// Why it was decided so; [`Reason::ALLOWED`] for an allowed one.
    pub reason: Reason,
    /// 1 when the attempt was let through, which in audit mode a refused one is too.
    pub passed: u8,
    /// The socket's address family (`AF_INET`, `AF_INET6`).
    pub family: u8,
    /// Where the attempt went. For [`Hook::SOCKET`]: only the protocol is known.
    pub flow: Flow,
    /// For [`Hook::SOCKET`] the socket type (`SOCK_STREAM`, …), else 0.
    pub socket_type: u32,
    /// Process (thread group) id in the initial process id namespace; 0 when the kernel sent the
    /// packet on behalf of a socket that no process of the job created.
    pub pid: u32,
    /// Real user id in the initial user namespace.
    pub uid: u32,
    /// Command name.
    pub comm: [u8; COMM_LEN],
    /// The socket's cookie (`bpf_get_socket_cookie`), by which sock_diag knows it; 0 where no
    /// packet was seen.
    pub cookie: u64,
    /// Where the packet comes from; zeros where no packet was seen.
    pub source: Addr,
    /// Its port, host byte order.
    pub source_port: u16,
    /// For [`Hook::TLS`] and [`Hook::HTTP`]: what is wrong with the name.
    pub fault: Fault,
    /// For those two: the length of the name in [`NamedEvent`], in bytes.
    pub name_len: u8,
    /// Zero.
    pub pad: u32,
}

/// An attempt with the name that the connection's payload gave. The ring buffer holds records of
/// two lengths; this is the longer one.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NamedEvent {
    /// The attempt.
    pub event: Event,
    /// The name in lower case, its last byte first, at the end of the room.
    pub name: [u8; NAME_ROOM],
}

impl NamedEvent {
    /// The bytes of the name, in order.
    pub fn name(&self) -> impl Iterator<Item = u8> + use<'_> {
        let length = usize::from(self.event.name_len);
        self.name.iter().rev().take(length).copied()
    }
}

/// Reads a record of the ring buffer: an attempt, and the longer form of it if that is what it is.
/// `None` when the record has neither length.
#[must_use]
pub fn decode(record: &[u8]) -> Option<(Event, Option<NamedEvent>)> {
    if let Ok(event) = Event::read_from_bytes(record) {
        return Some((event, None));
    }
    let named = NamedEvent::read_from_bytes(record).ok()?;
    Some((named.event, Some(named)))
}

/// The place in the kernel that saw an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Hook(pub u8);

impl Hook {
    /// `connect()` or an unconnected send.
    pub const CONNECT: Self = Self(1);
    /// A packet.
    pub const PACKET: Self = Self(2);
    /// `socket()`.
    pub const SOCKET: Self = Self(3);
    /// The first payload of a connection on which TLS is checked.
    pub const TLS: Self = Self(4);
    /// A request on a connection on which HTTP is checked.
    pub const HTTP: Self = Self(5);
}

/// Why an attempt was allowed or denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Reason(pub u8);

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $word:literal;)*) => {
        impl Reason {
            $($(#[$doc])* pub const $name: Self = Self($code);)*

            /// The word that stands for the reason in events. It is a contract.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self($code) => $word,)*
                    Self(_) => "unknown",
                }
            }

            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
        }
    };
}

reasons! {
    /// A rule allows it.
    ALLOWED = 0, "rule";
    /// It stays between sockets of the job, on the loopback interface. Not reported.
    INSIDE = 1, "inside";
    /// It is a question to the job's own resolver, which reports it. Not reported here.
    RESOLVER = 2, "resolver";
    /// No rule speaks of the destination.
    NO_RULE = 16, "no-rule";
    /// A rule allows the destination, on other ports.
    PORT = 17, "port";
    /// The protocol is one that no rule names.
    PROTOCOL = 18, "protocol";
    /// A cloud metadata service, which only a rule for exactly that address allows.
    METADATA = 19, "metadata";
    /// A listener on the loopback interface that is not the job's.
    LOOPBACK = 20, "loopback";
    /// Multicast or broadcast.
    MULTICAST = 21, "multicast";
    /// A DNS server other than the job's resolver, reached past the redirection.
    RESOLVER_BYPASS = 22, "resolver-bypass";
    /// A fragment, in which no port can be seen.
    FRAGMENT = 23, "fragment";
    /// An IPv6 header that leads the packet elsewhere or hides its protocol.
    EXTENSION_HEADER = 24, "extension-header";
    /// A packet too short for its own headers, or none of IPv4 and IPv6.
    MALFORMED = 25, "malformed";
    /// A raw socket.
    RAW_SOCKET = 26, "raw-socket";
    /// A Multipath TCP socket: its subflows would each need a verdict of their own. Programs that
    /// ask for one go on with TCP, so it is no violation.
    MPTCP = 27, "mptcp";
    /// A socket of a family that no job may use.
    FAMILY = 31, "family";
    /// An answer to a connection that somebody outside the job opened. The job did not try
    /// anything, so it is no violation.
    INBOUND = 30, "inbound";
    /// A connection that is not TLS for an allowed server name.
    SNI = 33, "sni";
    /// A request that is not HTTP for an allowed host.
    HOST_HEADER = 34, "host-header";
    /// A socket outside every job, of a user that runs jobs.
    OUTSIDE_JOB = 32, "outside-job";
    /// The job has no policy yet, or none any more.
    CLOSED = 28, "closed";
    /// The event found no room: what cannot be logged does not leave.
    AUDIT_LOSS = 29, "audit-loss";
    /// The name is not allowed. Given by the resolver.
    NAME = 64, "name";
    /// A `deny` rule. Given by the agent, which knows the rules behind a missing grant.
    DENIED = 65, "denied";
    /// A record type that the resolver does not ask for. Given by the resolver.
    DNS_TYPE = 66, "dns-type";
    /// The answer held private addresses. Given by the resolver.
    PRIVATE_ADDRESS = 67, "private-address";
    /// A limit of the job.
    LIMIT = 68, "limit";
    /// The rule that allowed it does not hold any more. Given by the agent.
    EXPIRED = 70, "expired";
    /// The upstream resolvers gave no answer. Given by the resolver.
    UPSTREAM = 69, "upstream";
}

impl Reason {
    /// Whether an attempt with this reason is let through in enforce mode.
    #[must_use]
    #[inline(always)]
    pub const fn is_allowed(self) -> bool {
        self.0 < 16
    }

    /// Whether the reason is that the rules do not allow the destination.
    #[must_use]
    #[inline(always)]
    pub const fn is_about_rules(self) -> bool {
        self.0 >= Self::NO_RULE.0 && self.0 <= Self::RESOLVER_BYPASS.0
    }

    /// Whether an attempt with this reason is reported by the programs.
    #[must_use]
    #[inline(always)]
    pub const fn is_reported(self) -> bool {
        self.0 != Self::INSIDE.0 && self.0 != Self::RESOLVER.0
    }
}

const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<Event>() == 96);
    assert!(offset_of!(Event, flow) == 16);
    assert!(offset_of!(Event, comm) == 48);
    assert!(offset_of!(Event, source) == 72);
    assert!(size_of::<NamedEvent>() == 96 + NAME_ROOM);
};
