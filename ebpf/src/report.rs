//! Putting attempts into the ring buffer.

use aya_ebpf::{
    bindings::__sk_buff, helpers::bpf_ktime_get_ns, helpers::generated::bpf_get_socket_cookie,
};
use core::mem::MaybeUninit;
use jobfence_abi::{
    Addr, Event, Fault, Flow, Hook, Job, JobState, NAME_ROOM, NamedEvent, Reason, Socket, Stream,
    digest,
};

use crate::{
    maps::{COUNTERS, EVENTS},
    packet::Header,
};

/// An attempt that has been decided.
#[derive(Clone, Copy)]
pub(crate) struct Attempt {
    pub(crate) slot: u32,
    pub(crate) hook: Hook,
    pub(crate) reason: Reason,
    pub(crate) family: u8,
    pub(crate) flow: Flow,
    pub(crate) socket_type: u32,
    pub(crate) origin: Origin,
}

/// Which socket sent a packet, so that the agent can find it.
#[derive(Clone, Copy)]
pub(crate) struct Origin {
    cookie: u64,
    source: Addr,
    port: u16,
}

impl Origin {
    /// Of an attempt that is no packet yet.
    pub(crate) const NONE: Self = Self {
        cookie: 0,
        source: Addr { words: [0; 4] },
        port: 0,
    };

    #[inline(always)]
    pub(crate) fn of(skb: *mut __sk_buff, header: &Header) -> Self {
        Self {
            // SAFETY: the context is the program's own.
            cookie: unsafe { bpf_get_socket_cookie(skb.cast()) },
            source: header.source,
            port: u16::from_be(header.source_port),
        }
    }
}

/// Records `attempt` on `socket`, unless it is what was recorded last there, and says whether it
/// may go on.
#[inline(always)]
pub(crate) fn record_new(attempt: &Attempt, job: &Job, socket: &mut Socket) -> bool {
    if socket.reported != digest(&attempt.flow, attempt.reason, job) {
        return record(attempt, job, socket);
    }
    let passed = passes(attempt, job);
    if !passed {
        // A retransmission, or a send after a refused one.
        count(attempt.slot, Counter::DroppedAgain);
    }
    passed
}

/// Records `attempt`, whatever was recorded before it, and says whether it may go on.
///
/// What finds no room in the ring buffer is denied and counted: nothing leaves unlogged. Only in
/// audit mode does it go on, since there nothing is ever denied; it is counted all the same.
#[inline(always)]
pub(crate) fn record(attempt: &Attempt, job: &Job, socket: &mut Socket) -> bool {
    let passed = passes(attempt, job);
    let Some(mut entry) = EVENTS.reserve_untyped::<Event>(0) else {
        count(attempt.slot, Counter::Lost);
        return job.state == JobState::AUDIT;
    };
    entry.write(event(attempt, job, socket, None));
    entry.submit(0);
    socket.reported = digest(&attempt.flow, attempt.reason, job);
    passed
}

/// Records what `stream` says of the name of a connection, and says whether it may go on. What
/// finds no room is denied, as in [`record`].
#[inline(always)]
pub(crate) fn record_name(attempt: &Attempt, job: &Job, socket: &Socket, stream: &Stream) -> bool {
    let Some(mut entry) = EVENTS.reserve_untyped::<NamedEvent>(0) else {
        count(attempt.slot, Counter::Lost);
        return job.state == JobState::AUDIT;
    };
    let to: *mut MaybeUninit<NamedEvent> = &raw mut *entry;
    let to = to.cast::<NamedEvent>();
    // SAFETY: the entry has room for a whole `NamedEvent`. The name is copied word by word, since
    // it fits on no program's stack, and volatile, since LLVM would call `memcpy`.
    unsafe {
        (&raw mut (*to).event).write(event(attempt, job, socket, Some(stream)));
        let from = (&raw const stream.name).cast::<u64>();
        let name = (&raw mut (*to).name).cast::<u64>();
        for index in 0..NAME_ROOM / 8 {
            name.add(index).write_volatile(from.add(index).read());
        }
    }
    entry.submit(0);
    passes(attempt, job)
}

#[inline(always)]
fn event(attempt: &Attempt, job: &Job, socket: &Socket, stream: Option<&Stream>) -> Event {
    Event {
        // SAFETY: the helper only reads the clock.
        monotonic_ns: unsafe { bpf_ktime_get_ns() },
        slot: attempt.slot,
        hook: attempt.hook,
        reason: attempt.reason,
        passed: u8::from(passes(attempt, job)),
        family: attempt.family,
        flow: attempt.flow,
        socket_type: attempt.socket_type,
        pid: socket.pid,
        uid: socket.uid,
        comm: socket.comm,
        cookie: attempt.origin.cookie,
        source: attempt.origin.source,
        source_port: attempt.origin.port,
        fault: stream.map_or(Fault::NONE, |stream| stream.fault),
        name_len: stream.map_or(0, |stream| stream.name_len),
        pad: 0,
    }
}

/// Whether an attempt is let through.
#[inline(always)]
fn passes(attempt: &Attempt, job: &Job) -> bool {
    job.state == JobState::AUDIT || attempt.reason.is_allowed()
}

/// A counter of [`jobfence_abi::Counters`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counter {
    Lost,
    DroppedAgain,
}

/// Adds one to a counter of the job.
#[inline(always)]
pub(crate) fn count(slot: u32, counter: Counter) {
    let Some(counters) = COUNTERS.get_ptr_mut(slot) else {
        return;
    };
    // SAFETY: an eight-byte aligned field of a map entry, which lives for ever and is only added
    // to. Rust offers no read-modify-write atomics for this target, so the instruction is named.
    unsafe {
        let field = if counter == Counter::Lost {
            &raw mut (*counters).lost
        } else {
            &raw mut (*counters).dropped_again
        };
        core::arch::asm!(
            "lock *(u64 *)({field} + 0) += {one}",
            field = in(reg) field,
            one = in(reg) 1_u64,
        );
    }
}
