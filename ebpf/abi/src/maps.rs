//! Keys and values of the maps.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Addr, COMM_LEN};

/// Jobs that one load of the programs can hold at once. Slot 0 is never given to a job: it is
/// what an unwritten cgroup storage names, and a job in no known state is denied everything.
pub const MAX_JOBS: u32 = 1024;

/// Addresses at which uploads of all jobs with a limit are counted.
pub const MAX_UPLOADS: u32 = 65_536;

/// Prefixes of user ids whose sockets can be held to jobs.
pub const MAX_GUARDED: u32 = 4096;

/// Addresses and prefixes that one job can hold.
pub const MAX_ADDRESSES: u32 = 65_536;

/// Names and wildcards that one job can hold.
pub const MAX_NAMES: u32 = 16_384;

/// Disjoint port ranges that one address or name can hold.
pub const MAX_RANGES: usize = 16;

/// Bytes of the ring buffer, a power of two and a multiple of the page size.
pub const RING_BYTES: u32 = 1 << 21;

/// Where a packet, or a socket's next packet, goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Flow {
    /// Destination address.
    pub dst: Addr,
    /// Destination port, host byte order; 0 for protocols without ports.
    pub port: u16,
    /// IP protocol number, see [`crate::proto`].
    pub proto: u8,
    /// Zero.
    pub pad: u8,
}

impl Flow {
    /// No flow: what a socket without a decision holds. No packet has protocol 0 on this path,
    /// since `decide` refuses it.
    pub const NONE: Self = Self {
        dst: Addr { words: [0; 4] },
        port: 0,
        proto: 0,
        pad: 0,
    };

    /// A flow to `dst`, `port` in host byte order.
    #[must_use]
    #[inline(always)]
    pub const fn new(dst: Addr, port: u16, proto: u8) -> Self {
        Self {
            dst,
            port,
            proto,
            pad: 0,
        }
    }
}

/// Ports of one protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PortRange {
    /// First port, host byte order.
    pub first: u16,
    /// Last port, host byte order, included.
    pub last: u16,
    /// IP protocol number.
    pub proto: u8,
    /// What a connection to these ports must begin with.
    pub checks: Checks,
}

/// What the payload of a connection has to say of the name that it is for, as bits. With both of
/// them, either will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Checks(pub u8);

impl Checks {
    /// Nothing: the address was allowed for itself, or a rule says `tls: off`.
    pub const NONE: Self = Self(0);
    /// A TLS ClientHello with the server name of an allowed host.
    pub const TLS: Self = Self(1);
    /// HTTP requests, each with the Host header of an allowed host.
    pub const HTTP: Self = Self(2);

    /// Whether nothing is asked.
    #[must_use]
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Whether `self` has a bit of `other`.
    #[must_use]
    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// What two rules for the same ports ask: nothing if one of them asks nothing, since its
    /// connections cannot be told from those of the other, else what either accepts.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        if self.is_none() || other.is_none() {
            Self::NONE
        } else {
            Self(self.0 | other.0)
        }
    }
}

impl PortRange {
    /// A range that holds no port.
    pub const NONE: Self = Self {
        first: 1,
        last: 0,
        proto: 0,
        checks: Checks::NONE,
    };

    /// The ports from `first` to `last`, host byte order, both included.
    #[must_use]
    pub const fn new(proto: u8, first: u16, last: u16) -> Self {
        Self {
            first,
            last,
            proto,
            checks: Checks::NONE,
        }
    }

    /// The same ports, with connections to them checked.
    #[must_use]
    pub const fn checked(self, checks: Checks) -> Self {
        Self { checks, ..self }
    }

    /// Whether the range holds `port` of `proto`.
    #[must_use]
    #[inline(always)]
    pub const fn contains(&self, proto: u8, port: u16) -> bool {
        self.proto == proto && self.first <= port && port <= self.last
    }
}

/// What a job may reach at one address or prefix: the value of its address map.
///
/// The agent merges every rule that speaks of an address before it writes the entry, denials
/// included, because the kernel sees only the longest matching prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Grants {
    /// Ranges, unused places filled with [`PortRange::NONE`].
    pub ranges: [PortRange; MAX_RANGES],
}

impl Grants {
    /// Nothing: an address that a longer prefix takes out of a shorter one.
    pub const NONE: Self = Self {
        ranges: [PortRange::NONE; MAX_RANGES],
    };

    /// Grants of these ranges; `None` when there are more than [`MAX_RANGES`].
    #[must_use]
    pub fn new(ranges: &[PortRange]) -> Option<Self> {
        let mut grants = Self::NONE;
        grants
            .ranges
            .get_mut(..ranges.len())?
            .copy_from_slice(ranges);
        Some(grants)
    }

    // The next three are functions of their own in the programs too: unrolled into each hook,
    // their loops need more stack than a program has (512 bytes).

    /// What the range that holds `port` of `proto` asks of a connection; `None` when none holds
    /// it. Ranges are disjoint.
    #[must_use]
    #[inline(never)]
    pub fn checks(&self, proto: u8, port: u16) -> Option<Checks> {
        self.ranges
            .iter()
            .find(|range| range.contains(proto, port))
            .map(|range| range.checks)
    }

    /// Whether some range holds `port`, of whatever protocol.
    #[must_use]
    #[inline(never)]
    pub fn contains_port(&self, port: u16) -> bool {
        self.ranges
            .iter()
            .any(|range| range.contains(range.proto, port))
    }

    /// Whether no range holds any port. Ranges fill their places from the front.
    #[must_use]
    #[inline(always)]
    pub const fn is_empty(&self) -> bool {
        self.ranges[0].first > self.ranges[0].last
    }
}

/// What the fence does with a job's packets. Plain numbers, since the kernel reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct JobState(pub u32);

impl JobState {
    /// No job, or one that is not ready: everything is denied.
    pub const CLOSED: Self = Self(0);
    /// The policy is enforced.
    pub const ENFORCE: Self = Self(1);
    /// The policy is evaluated and recorded, and everything is let through.
    pub const AUDIT: Self = Self(2);
}

/// One job, the value of the job array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Job {
    /// What to do with the job's packets.
    pub state: JobState,
    /// Counts changes that could turn a verdict; a socket's stored verdict of another generation
    /// is decided anew.
    pub generation: u32,
    /// Port of the job's resolver on `127.0.0.1`, host byte order, for UDP and TCP; 0 for none.
    pub resolver_v4: u16,
    /// The same on `::1`.
    pub resolver_v6: u16,
    /// Tells this job from every other that had or will have its slot; never 0.
    pub id: u32,
    /// A secret of the job's agent, for [`digest`](crate::digest).
    pub key: u64,
    /// Attempts a second that are recorded; what is beyond is denied and only counted. 0 for no
    /// limit.
    pub rate: u32,
    /// Zero.
    pub pad: u32,
    /// Bytes that it may send to one address, headers included; 0 for no limit.
    pub upload: u64,
}

impl Job {
    /// Whether `flow` goes to the job's own resolver.
    #[must_use]
    #[inline(always)]
    pub fn is_resolver(&self, flow: &Flow) -> bool {
        // Port 0 means that there is no resolver for the family; no packet goes to port 0.
        flow.port != 0
            && ((flow.port == self.resolver_v4 && flow.dst == Addr::LOCALHOST_V4)
                || (flow.port == self.resolver_v6 && flow.dst == Addr::LOCALHOST_V6))
    }
}

/// What the programs count for a job; only the kernel writes it, with atomic additions, but for
/// `second`: when two processors begin a second at once, some attempts more are recorded in it.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Counters {
    /// Attempts that were recorded: put into the ring buffer.
    pub recorded: u64,
    /// Attempts that were denied because their event found no room in the ring buffer.
    pub lost: u64,
    /// Attempts that were denied because they were beyond [`Job::rate`].
    pub limited: u64,
    /// Packets dropped after the first of their flow, for which no event was written.
    pub dropped_again: u64,
    /// When the second began in which `this_second` counts: `CLOCK_MONOTONIC`, nanoseconds.
    pub second: u64,
    /// Attempts in that second.
    pub this_second: u64,
}

/// What is kept with each socket of a job.
///
/// Two processors can be sending on one socket at once, and only TCP sends under the socket's
/// lock. So what lets a packet through, `allowed`, is kept and used for TCP alone; for every other
/// protocol each packet is decided anew. `reported` is one word, which cannot be half written, and
/// opens nothing.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Socket {
    /// [`digest`](crate::digest) of the attempt that was last reported.
    pub reported: u64,
    /// [`Job::id`] of the job whose process created the socket, or, for an accepted connection,
    /// its listener; 0 for none.
    pub job: u32,
    /// [`Job::generation`] at which `allowed` was decided.
    pub generation: u32,
    /// Cookie of the socket that began a connection; 0 for none. An accepted connection has its
    /// listener's entry, and another cookie.
    pub began: u64,
    /// The flow of a TCP connection that is let through; [`Flow::NONE`] for none.
    pub allowed: Flow,
    /// What that connection's payload still has to show.
    pub checks: Checks,
    /// Zero.
    pub pad: [u8; 7],
    /// Process (thread group) id of the process that last used the socket, in the initial
    /// process id namespace.
    pub pid: u32,
    /// Its real user id, in the initial user namespace.
    pub uid: u32,
    /// Its command name.
    pub comm: [u8; COMM_LEN],
    /// Where the question went before it was sent to the job's resolver.
    pub redirect: Redirect,
}

impl Socket {
    /// A socket of which nothing is known.
    pub const NONE: Self = Self {
        reported: 0,
        job: 0,
        generation: 0,
        began: 0,
        allowed: Flow::NONE,
        checks: Checks::NONE,
        pad: [0; 7],
        pid: 0,
        uid: 0,
        comm: [0; COMM_LEN],
        redirect: Redirect {
            addr: Addr { words: [0; 4] },
            port: 0,
        },
    };
}

/// The destination that a process asked for, kept to be shown to it where it asks who answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Redirect {
    /// The address as the socket's own family writes it: an IPv4 address is mapped, and was
    /// given to an IPv4 socket or, mapped, to an IPv6 one.
    pub addr: Addr,
    /// The port, network byte order, as in `bpf_sock_addr.user_port`; 0 for no redirection.
    pub port: u32,
}

/// What is counted: the key of the map of uploads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UploadKey {
    /// [`Job::id`].
    pub job: u32,
    /// Destination address.
    pub addr: Addr,
}

/// Names one question's sender to the resolver: the key of the client map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ClientKey {
    /// Slot of the job.
    pub slot: u32,
    /// Source port of the question, host byte order.
    pub port: u16,
    /// UDP or TCP.
    pub proto: u8,
    /// 4 or 6.
    pub family: u8,
}

/// The process behind a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Client {
    /// Process (thread group) id.
    pub pid: u32,
    /// Real user id.
    pub uid: u32,
    /// Command name.
    pub comm: [u8; COMM_LEN],
}

const _: () = {
    use core::mem::{align_of, offset_of, size_of};
    assert!(size_of::<Addr>() == 16 && align_of::<Addr>() == 4);
    assert!(size_of::<Flow>() == 20 && offset_of!(Flow, port) == 16);
    assert!(offset_of!(Flow, proto) == 18);
    assert!(size_of::<PortRange>() == 6 && align_of::<PortRange>() == 2);
    assert!(size_of::<Grants>() == 6 * MAX_RANGES);
    assert!(size_of::<Job>() == 40 && offset_of!(Job, resolver_v4) == 8);
    assert!(size_of::<Counters>() == 48 && align_of::<Counters>() == 8);
    assert!(size_of::<Redirect>() == 20);
    assert!(size_of::<Socket>() == 96 && offset_of!(Socket, redirect) == 76);
    assert!(size_of::<ClientKey>() == 8 && size_of::<Client>() == 24);
    assert!(RING_BYTES.is_power_of_two());
};
