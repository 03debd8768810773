//! What the eBPF programs and the agent share.
//!
//! Three things live here, and each exists once:
//!
//! - [`decide`], the decision about a flow. The programs in the kernel run it, host tests and
//!   property tests call it, and so does everything in user space that has to say what the
//!   kernel would do.
//! - the layout of every map key and value ([`Addr`], [`Flow`], [`Grants`], [`Job`], …). Both
//!   sides are compiled from these definitions; sizes and offsets are asserted below, so a change
//!   of layout is a change of [`VERSION`] that a reader sees.
//! - the layout of the [`Event`] that the programs put into the ring buffer.
//!
//! Nothing here allocates, does I/O or contains `unsafe`. Types that cross the boundary hold
//! integers only: the kernel writes them, and an `enum` or a `bool` made from bytes that the
//! compiler did not write would be undefined behaviour. Codes are therefore newtypes with
//! associated constants ([`Reason`], [`Hook`]).
#![no_std]
#![forbid(unsafe_code)]

mod addr;
mod decide;
mod event;
mod family;
mod maps;
mod stream;

pub use addr::Addr;
pub use decide::{Peer, Rules, Verdict, decide, digest};
pub use event::{COMM_LEN, Event, Hook, NamedEvent, Reason, decode};
pub use family::{AF_NETLINK, FAMILIES, NETLINK, is_family_allowed};
pub use maps::{
    Checks, Client, ClientKey, Counters, Flow, Grants, Job, JobState, MAX_ADDRESSES, MAX_GUARDED,
    MAX_JOBS, MAX_NAMES, MAX_RANGES, MAX_UPLOADS, PortRange, RING_BYTES, Redirect, Socket,
    UploadKey,
};
pub use stream::{Bytes, Fault, NAME_KEY_LEN, NAME_ROOM, NameKey, Step, Stream};

/// Version of everything in this crate. It is part of the path under which maps and links are
/// pinned, so that an agent never opens maps that another layout wrote.
pub const VERSION: u32 = 3;

/// IP protocol numbers, as in the `protocol` field of an IPv4 header and the `next header` field
/// of an IPv6 header
/// ([IANA registry](https://www.iana.org/assignments/protocol-numbers/protocol-numbers.xhtml)).
pub mod proto {
    /// ICMP, RFC 792.
    pub const ICMP: u8 = 1;
    /// TCP, RFC 9293.
    pub const TCP: u8 = 6;
    /// UDP, RFC 768.
    pub const UDP: u8 = 17;
    /// ICMPv6, RFC 4443.
    pub const ICMPV6: u8 = 58;
}

/// The port of DNS over UDP and TCP, RFC 1035 section 4.2.
pub const DNS_PORT: u16 = 53;
