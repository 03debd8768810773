//! `connect()` and unconnected sends, before a packet exists.
//!
//! These hooks give the refusal that a program sees at once (`EPERM`), name the process, and send
//! questions to the job's resolver. They are not the last word: a packet can go elsewhere than
//! the address given here (source routing, an address that a control message carries, a send on
//! a connected socket, which they do not see), so [`crate::packet`] decides again from its header.

use aya_ebpf::{bindings::bpf_sock_addr, programs::SockAddrContext};
use jobfence_abi::{Addr, DNS_PORT, Flow, Hook, Job, Redirect, Socket, decide, proto};

use crate::{
    maps::{SOCKETS, job},
    process,
    report::{Attempt, Origin, record, record_new, was_allowed},
    rules::KernelRules,
};

/// The address family of the hook, as it lies in the context.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// `AF_INET` and `AF_INET6`.
pub(crate) const AF: [u8; 2] = [2, 10];

/// Decides about a destination: 1 goes on, 0 is `EPERM`. Redirects questions for names.
#[inline(always)]
pub(crate) fn outgoing(ctx: &SockAddrContext, family: Family, sending: bool) -> i32 {
    let addr = ctx.sock_addr;
    let Some((slot, job)) = job() else { return 0 };
    // SAFETY: the context is the program's own; `sk` in it is never null for these hooks.
    let socket = unsafe { SOCKETS.find_or_make((*addr).__bindgen_anon_1.sk) };
    if socket.is_null() {
        return 0;
    }
    // SAFETY: checked above. Programs on other processors may write the same entry; see
    // `jobfence_abi::Socket` on what that can do.
    let socket = unsafe { &mut *socket };

    // SAFETY: as above.
    let asked = unsafe { read_addr(addr, family) };
    // SAFETY: as above. The port lies in the low half of the word, in network byte order.
    let (port, protocol) = unsafe { (u16::from_be((*addr).user_port as u16), (*addr).protocol) };
    let proto = protocol as u8;
    let mut flow = Flow::new(asked.effective(), port, proto);
    // One more datagram to where the last one went.
    if sending && !flow.dst.is_loopback() && was_allowed(&flow, job, socket) {
        process::stamp_another(socket);
        return 1;
    }
    process::stamp(socket);
    if sending && port == 0 && asked.is_unspecified() {
        // A send with control messages on a connected socket, which carries no address here.
        return 1;
    }
    // SAFETY: as above.
    let zero = unsafe { obscure_zero(addr) };
    for word in &mut flow.dst.words {
        *word ^= zero;
    }
    if port == DNS_PORT
        && (proto == proto::UDP || proto == proto::TCP)
        && redirect(addr, family, asked, job, socket)
    {
        return 1;
    }
    if !sending && proto == proto::UDP {
        // Nothing is sent yet, and often nothing ever is: resolver libraries connect a datagram
        // socket to each address that they found, only to learn which source address the kernel
        // would take (RFC 6724). What is sent is decided as a packet.
        return 1;
    }
    let rules = KernelRules {
        // SAFETY: a plain pointer to the context for the look-up helpers.
        ctx: addr.cast(),
        slot,
        job: job.id,
        source: if flow.dst.is_v4() {
            Addr::v4(0)
        } else {
            Addr { words: [0; 4] }
        },
        source_port: 0,
    };
    let mut reason = decide(&flow, job, &rules).reason;
    // SAFETY: as above.
    reason.0 ^= unsafe { obscure_zero(addr) } as u8;
    if !reason.is_reported() {
        return 1;
    }
    let attempt = Attempt {
        slot,
        hook: Hook::CONNECT,
        reason,
        family: AF[usize::from(family == Family::V6)],
        flow,
        socket_type: 0,
        origin: Origin::NONE,
    };
    i32::from(if sending {
        record_new(&attempt, job, socket)
    } else {
        record(&attempt, job, socket)
    })
}

/// Sends a question to the job's resolver, and keeps where it was meant to go. `false` when the
/// job has no resolver for the family: then the rules decide, which never allow the port.
#[inline(always)]
fn redirect(
    ctx: *mut bpf_sock_addr,
    family: Family,
    asked: Addr,
    job: &Job,
    socket: &mut Socket,
) -> bool {
    let mapped = asked.is_v4();
    let port = if mapped {
        job.resolver_v4
    } else {
        job.resolver_v6
    };
    if port == 0 {
        return false;
    }
    // SAFETY: the context is the program's own, and these fields are writable in these hooks.
    unsafe {
        socket.redirect = Redirect {
            addr: asked,
            port: (*ctx).user_port,
        };
        let resolver = if mapped {
            Addr::LOCALHOST_V4
        } else {
            Addr::LOCALHOST_V6
        };
        write_addr(ctx, family, &resolver);
        (*ctx).user_port = u32::from(port.to_be());
    }
    true
}

/// Shows the resolver's answer as coming from the server that was asked. Always 1: the hooks
/// `recvmsg` and `getpeername` can change an address, not refuse it.
#[inline(always)]
pub(crate) fn restore(ctx: &SockAddrContext, family: Family) -> i32 {
    let addr = ctx.sock_addr;
    let Some((_, job)) = job() else { return 1 };
    // SAFETY: as in `outgoing`.
    let (peer, port) = unsafe {
        (
            read_addr(addr, family),
            u16::from_be((*addr).user_port as u16),
        )
    };
    if !job.is_resolver(&Flow::new(peer, port, proto::UDP)) {
        return 1;
    }
    // SAFETY: as in `outgoing`.
    let socket = unsafe { SOCKETS.find((*addr).__bindgen_anon_1.sk) };
    if socket.is_null() {
        return 1;
    }
    // SAFETY: checked above.
    let redirect = unsafe { (*socket).redirect };
    if redirect.port != 0 {
        // SAFETY: as in `redirect`.
        unsafe {
            write_addr(addr, family, &redirect.addr);
            (*addr).user_port = redirect.port;
        }
    }
    1
}

/// As [`obscure_zero`](crate::header::obscure_zero).
#[inline(always)]
unsafe fn obscure_zero(ctx: *const bpf_sock_addr) -> u32 {
    // SAFETY: the caller's context.
    unsafe {
        let protocol = &raw const (*ctx).protocol;
        protocol.read_volatile() ^ protocol.read_volatile()
    }
}

/// The address in the context, an IPv4 one mapped.
#[inline(always)]
pub(crate) unsafe fn read_addr(ctx: *const bpf_sock_addr, family: Family) -> Addr {
    // The verifier allows reads of one word at a time. Volatile keeps LLVM from joining them.
    // SAFETY: the caller's context.
    unsafe {
        match family {
            Family::V4 => Addr::v4((&raw const (*ctx).user_ip4).read_volatile()),
            Family::V6 => {
                let words = (&raw const (*ctx).user_ip6).cast::<u32>();
                Addr {
                    words: [
                        words.read_volatile(),
                        words.add(1).read_volatile(),
                        words.add(2).read_volatile(),
                        words.add(3).read_volatile(),
                    ],
                }
            }
        }
    }
}

/// Writes an address of the hook's family.
#[inline(always)]
unsafe fn write_addr(ctx: *mut bpf_sock_addr, family: Family, value: &Addr) {
    // SAFETY: the caller's context, writable in its hook; one word at a time as above.
    unsafe {
        match family {
            Family::V4 => (&raw mut (*ctx).user_ip4).write_volatile(value.words[3]),
            Family::V6 => {
                let words = (&raw mut (*ctx).user_ip6).cast::<u32>();
                words.write_volatile(value.words[0]);
                words.add(1).write_volatile(value.words[1]);
                words.add(2).write_volatile(value.words[2]);
                words.add(3).write_volatile(value.words[3]);
            }
        }
    }
}
