//! The packet, which is the truth.
//!
//! `BPF_CGROUP_INET_EGRESS` runs for every packet of every socket that a process of the job
//! created, after netfilter's OUTPUT chain and before fragmentation. The destination is read from
//! the header, since the context's `remote_ip4` is 0 for an unconnected UDP socket.

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_sk_fullsock, bpf_skb_load_bytes},
    programs::SkBuffContext,
};
use jobfence_abi::{
    Addr, Checks, Client, ClientKey, Flow, Hook, Job, Reason, Socket, Verdict, decide, proto,
};

use crate::{
    maps::{CLIENTS, SOCKETS, job},
    payload,
    report::{Attempt, Counter, Origin, count, record_new, was_allowed},
    rules::KernelRules,
};

/// The loopback interface's index, which Linux gives it in every network namespace
/// (`LOOPBACK_IFINDEX`, net/flow.h).
const LOOPBACK: u32 = 1;

/// `TCP_LISTEN` of `net/tcp_states.h`, which `bpf_sock.state` holds.
const LISTEN: u32 = 10;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// IPv6 next headers that are no protocol of their own (RFC 8200 section 4).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// Bits of a TCP header's fourth word (RFC 9293 section 3.1): a connection begins, and there is
/// urgent data.
const SYN: u32 = 1 << 17;
const URG: u32 = 1 << 21;

/// What a packet's header says.
pub(crate) struct Header {
    pub(crate) flow: Flow,
    pub(crate) source: Addr,
    /// Network byte order.
    pub(crate) source_port: u16,
    pub(crate) family: u8,
    /// [`Reason::ALLOWED`], or what makes the packet one that is never let through.
    fault: Reason,
    /// TCP: whether a connection begins with it.
    pub(crate) syn: bool,
    /// TCP: whether some of the payload is urgent.
    pub(crate) urgent: bool,
    /// TCP: sequence number of its first byte of payload, host byte order.
    pub(crate) sequence: u32,
    /// TCP: where in the packet the payload begins.
    pub(crate) payload: u32,
}

/// Lets the packet go (1) or drops it (0); a send that it came from fails with `EPERM`.
#[inline(always)]
pub(crate) fn egress(ctx: &SkBuffContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some((slot, job)) = job() else { return 0 };
    // SAFETY: the context is the program's own. The hook runs only with a full socket, and the
    // verifier wants both checks.
    let (socket, sk, state) = unsafe {
        let sk = (*skb).__bindgen_anon_2.sk;
        if sk.is_null() {
            return 0;
        }
        let sk = bpf_sk_fullsock(sk);
        if sk.is_null() {
            return 0;
        }
        let state = (*sk).state;
        (SOCKETS.find_or_make(sk), sk, state)
    };
    if socket.is_null() {
        count(slot, Counter::Lost);
        return 0;
    }
    // SAFETY: checked above; see `jobfence_abi::Socket` on what other processors can do.
    let socket = unsafe { &mut *socket };

    if is_one_more(skb, state, job, socket) {
        return 1;
    }

    let header = read(skb);
    let flow = header.flow;
    // A listener answers whoever knocks, on several processors at once and without its lock.
    let connection = flow.proto == proto::TCP && state != LISTEN;
    let sound = header.fault.is_allowed();
    if connection && sound && is_open(&flow, header.syn, job, socket) {
        if socket.checks.is_none() {
            return 1;
        }
        return i32::from(payload::inspect(skb, sk, slot, job, &header, socket));
    }
    if sound && flow.proto == proto::UDP && was_sent(&flow, job, socket) {
        return 1;
    }

    let Verdict { mut reason, checks } = judge(skb, slot, job, &header);
    let zero = obscure_zero(skb) as u8;
    reason.0 ^= zero;
    let checks = Checks(checks.0 ^ zero);
    if reason == Reason::RESOLVER {
        // Not kept: each question may come from another process.
        remember(slot, &header, socket);
        return 1;
    }
    if !reason.is_reported() {
        // Not kept either: who listens at a loopback address can change.
        return 1;
    }
    let origin = Origin::of(skb, &header);
    if state == LISTEN {
        // What it was connected to once is not for those whom it accepts.
        socket.allowed = Flow::NONE;
    } else if header.syn {
        socket.began = origin.cookie;
    }
    let accepted = state == LISTEN || socket.began != origin.cookie;
    if flow.proto == proto::TCP && accepted && reason.is_about_rules() {
        reason = Reason::INBOUND;
    }
    let attempt = Attempt {
        slot,
        hook: Hook::PACKET,
        reason,
        family: header.family,
        flow,
        socket_type: 0,
        origin,
    };
    if !record_new(&attempt, job, socket) {
        return 0;
    }
    if !connection || !sound {
        return 1;
    }
    socket.allowed = flow;
    socket.generation = job.generation;
    // What is only watched has nothing to show.
    socket.checks = if reason.is_allowed() {
        checks
    } else {
        Checks::NONE
    };
    if socket.checks.is_none() {
        return 1;
    }
    i32::from(payload::inspect(skb, sk, slot, job, &header, socket))
}

/// Whether the packet is one more of what `socket` was let to send, and has nothing to show: nearly
/// every one is. A function of its own, so that the verifier forgets how it came to its answer.
#[inline(never)]
fn is_one_more(skb: *const __sk_buff, state: u32, job: &Job, socket: &Socket) -> bool {
    let Some((flow, syn)) = glance(skb) else {
        return false;
    };
    if flow.proto == proto::TCP {
        state != LISTEN && socket.checks.is_none() && is_open(&flow, syn, job, socket)
    } else {
        was_sent(&flow, job, socket)
    }
}

/// Whether a packet of a TCP connection goes where the connection was let to. A socket can be
/// connected anew: what its last connection showed is worth nothing then.
#[inline(always)]
fn is_open(flow: &Flow, syn: bool, job: &Job, socket: &Socket) -> bool {
    !syn && socket.generation == job.generation && socket.allowed == *flow
}

/// The same for datagrams, whose sockets two processors can use at once. Not on loopback: who
/// listens there can change.
#[inline(always)]
fn was_sent(flow: &Flow, job: &Job, socket: &Socket) -> bool {
    !flow.dst.is_loopback() && was_allowed(flow, job, socket)
}

#[inline(always)]
fn judge(skb: *mut __sk_buff, slot: u32, job: &Job, header: &Header) -> Verdict {
    if !header.fault.is_allowed() {
        return header.fault.into();
    }
    // SAFETY: the context is readable throughout.
    if header.flow.dst.is_loopback() && unsafe { (*skb).ifindex } != LOOPBACK {
        return Reason::LOOPBACK.into();
    }
    let rules = KernelRules {
        ctx: skb.cast(),
        slot,
        job: job.id,
        source: header.source,
        source_port: header.source_port,
    };
    decide(&header.flow, job, &rules)
}

/// Tells the resolver whose question this is, before the packet reaches it.
#[inline(always)]
fn remember(slot: u32, header: &Header, socket: &Socket) {
    let key = ClientKey {
        slot,
        port: u16::from_be(header.source_port),
        proto: header.flow.proto,
        family: if header.family == AF_INET { 4 } else { 6 },
    };
    let client = Client {
        pid: socket.pid,
        uid: socket.uid,
        comm: socket.comm,
    };
    // A failure costs the event its process, nothing else.
    let _ = CLIENTS.insert(key, client, 0);
}

/// The flow of an ordinary TCP segment or datagram, and whether a connection begins with it.
/// Ordinary is one without IP options or extension headers, no fragment, its headers in one piece.
/// They are read in place; [`read`], which copies, is for all the others.
#[inline(always)]
fn glance(skb: *const __sk_buff) -> Option<(Flow, bool)> {
    // SAFETY: the verifier holds every read to what was compared with the packet's end. Words are
    // as aligned as the kernel's own code wants headers, and where a processor insists on that, the
    // verifier does too.
    unsafe {
        let data = (*skb).data as usize;
        let end = (*skb).data_end as usize;
        let at = |offset: usize| data + offset;
        // An IPv4 and a UDP header.
        if at(28) > end {
            return None;
        }
        let byte = |offset: usize| *(at(offset) as *const u8);
        let word = |offset: usize| *(at(offset) as *const u32);
        let first = byte(0);
        let (dst, proto, transport) = if first == 0x45 {
            let fragment = u32::from_be(word(4)) & 0x3fff;
            if fragment != 0 {
                return None;
            }
            (Addr::v4(word(16)), byte(9), 20)
        } else if first >> 4 == 6 {
            if at(48) > end {
                return None;
            }
            let dst = Addr {
                words: [word(24), word(28), word(32), word(36)],
            };
            (dst, byte(6), 40)
        } else {
            return None;
        };
        let syn = if proto == proto::TCP {
            if at(transport + 20) > end {
                return None;
            }
            u32::from_be(word(transport + 12)) & SYN != 0
        } else if proto == proto::UDP {
            false
        } else {
            return None;
        };
        let port = u32::from_be(word(transport)) as u16;
        Some((Flow::new(dst, port, proto), syn))
    }
}

/// Reads the header. `skb->protocol` is not looked at: the version is in the first byte.
#[inline(always)]
pub(crate) fn read(skb: *mut __sk_buff) -> Header {
    let mut header = Header {
        flow: Flow::NONE,
        source: Addr { words: [0; 4] },
        source_port: 0,
        family: 0,
        fault: Reason::MALFORMED,
        syn: false,
        urgent: false,
        sequence: 0,
        payload: 0,
    };
    let Some(first) = load::<u8>(skb, 0) else {
        return header;
    };
    let transport = match first >> 4 {
        4 => read_v4(skb, &mut header),
        6 => read_v6(skb, &mut header),
        _ => return header,
    };
    let zero = obscure_zero(skb);
    let transport = transport ^ zero;
    header.family ^= zero as u8;
    header.fault.0 ^= zero as u8;
    for word in &mut header.flow.dst.words {
        *word ^= zero;
    }
    for word in &mut header.source.words {
        *word ^= zero;
    }
    if !header.fault.is_allowed() {
        return header;
    }
    if header.flow.proto == proto::TCP {
        let Some([ports, sequence, _, rest]) = load::<[u32; 4]>(skb, transport) else {
            header.fault = Reason::MALFORMED;
            return header;
        };
        let [ports, sequence, rest] = [ports, sequence, rest].map(u32::from_be);
        header.source_port = ((ports >> 16) as u16).to_be();
        header.flow.port = ports as u16;
        header.syn = rest & SYN != 0;
        header.urgent = rest & URG != 0;
        header.sequence = sequence.wrapping_add(u32::from(header.syn));
        header.payload = transport + (rest >> 28) * 4;
    } else if header.flow.proto == proto::UDP {
        let Some([source, destination]) = load::<[u16; 2]>(skb, transport) else {
            header.fault = Reason::MALFORMED;
            return header;
        };
        header.source_port = source;
        header.flow.port = u16::from_be(destination);
    }
    header
}

/// Zero, of which the verifier does not know that it is. What is combined with it is no constant to
/// the verifier, which otherwise goes through all that follows once for each way in which it came
/// about.
#[inline(always)]
fn obscure_zero(skb: *const __sk_buff) -> u32 {
    // SAFETY: the context is the program's own. Volatile, so that LLVM reads it twice.
    unsafe {
        let length = &raw const (*skb).len;
        length.read_volatile() ^ length.read_volatile()
    }
}

/// Reads an IPv4 header (RFC 791) and returns the length of it.
#[inline(always)]
fn read_v4(skb: *mut __sk_buff, header: &mut Header) -> u32 {
    let Some(words) = load::<[u32; 5]>(skb, 0) else {
        return 0;
    };
    header.family = AF_INET;
    header.source = Addr::v4(words[3]);
    header.flow.dst = Addr::v4(words[4]);
    let first = u32::from_be(words[0]);
    let fragment = u32::from_be(words[1]) & 0x3fff;
    header.flow.proto = (u32::from_be(words[2]) >> 16) as u8;
    header.fault = if fragment != 0 {
        Reason::FRAGMENT
    } else if first >> 24 == 0x45 {
        Reason::ALLOWED
    } else if first >> 24 > 0x45 {
        // Options: a source route names where the packet goes after the header's destination.
        Reason::EXTENSION_HEADER
    } else {
        Reason::MALFORMED
    };
    20
}

/// Reads an IPv6 header (RFC 8200) and returns the length of it.
#[inline(always)]
fn read_v6(skb: *mut __sk_buff, header: &mut Header) -> u32 {
    let Some(words) = load::<[u32; 10]>(skb, 0) else {
        return 0;
    };
    header.family = AF_INET6;
    let [_, lengths, s0, s1, s2, s3, d0, d1, d2, d3] = words;
    header.source = Addr {
        words: [s0, s1, s2, s3],
    };
    header.flow.dst = Addr {
        words: [d0, d1, d2, d3],
    };
    let next = (u32::from_be(lengths) >> 8) as u8;
    header.flow.proto = next;
    header.fault = if next == FRAGMENT {
        Reason::FRAGMENT
    } else if next == HOP_BY_HOP || next == ROUTING || next == DESTINATION_OPTIONS {
        Reason::EXTENSION_HEADER
    } else {
        Reason::ALLOWED
    };
    40
}

/// Copies a `T` from `offset` of the packet; `None` when the packet is shorter.
#[inline(always)]
pub(crate) fn load<T: Copy>(skb: *mut __sk_buff, offset: u32) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper writes all of `value` or fails; every `T` here is made of integers.
    unsafe {
        let to = value.as_mut_ptr().cast::<c_void>();
        let result = bpf_skb_load_bytes(skb.cast(), offset, to, size_of::<T>() as u32);
        (result == 0).then(|| value.assume_init())
    }
}
