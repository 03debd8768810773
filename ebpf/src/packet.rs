//! The packet, which is the truth.
//!
//! `BPF_CGROUP_INET_EGRESS` runs for every packet of every socket that a process of the job
//! created, after netfilter's OUTPUT chain and before fragmentation. The destination is read from
//! the header, since the context's `remote_ip4` is 0 for an unconnected UDP socket.

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_sk_fullsock, programs::SkBuffContext};
use jobfence_abi::{
    Checks, Client, ClientKey, Flow, Hook, Job, Reason, Socket, Verdict, decide, proto,
};

use crate::{
    header::{AF_INET, Header, glance, obscure_zero, read},
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
