//! Putting attempts into the ring buffer.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_get_socket_cookie, bpf_ringbuf_query},
    },
};
use core::mem::MaybeUninit;
use jobfence_abi::{
    Addr, Event, Fault, Flow, Hook, Job, JobState, NAME_ROOM, NamedEvent, RING_BYTES, Reason,
    Socket, Stream, digest,
};

use crate::{
    header::Header,
    maps::{COUNTERS, EVENTS},
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
    pub(crate) cookie: u64,
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

/// Whether the last attempt on `socket` was to `flow` and allowed. One word says so, which two
/// processors cannot half write, so this holds for datagrams too.
#[inline(always)]
pub(crate) fn was_allowed(flow: &Flow, job: &Job, socket: &Socket) -> bool {
    socket.reported == digest(flow, Reason::ALLOWED, job)
}

/// Records `attempt` on `socket`, unless it is what was recorded last there, and says whether it
/// may go on.
#[inline(always)]
pub(crate) fn record_new(attempt: &Attempt, job: &Job, socket: &mut Socket) -> bool {
    if socket.reported != digest(&attempt.flow, attempt.reason, job) {
        return record(attempt, job, socket);
    }
    let passed = passes(attempt.reason, job);
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
    let passed = passes(attempt.reason, job);
    if !is_within_rate(attempt.slot, job) {
        return job.state == JobState::AUDIT;
    }
    let Some(mut entry) = EVENTS.reserve_untyped::<Event>(0) else {
        count(attempt.slot, Counter::Lost);
        return job.state == JobState::AUDIT;
    };
    let to: *mut MaybeUninit<Event> = &raw mut *entry;
    // SAFETY: the entry has room for an `Event`.
    unsafe {
        write_event(
            to.cast(),
            attempt,
            (attempt.hook, attempt.reason),
            job,
            socket,
            None,
        )
    };
    entry.submit(wakeup(passed));
    count(attempt.slot, Counter::Recorded);
    socket.reported = digest(&attempt.flow, attempt.reason, job);
    passed
}

/// What became of a record.
pub(crate) struct Recorded {
    /// Whether it was written.
    pub(crate) written: bool,
    /// Whether the attempt may go on.
    pub(crate) pass: bool,
}

/// Records what `stream` says of the name of a connection, and `reason` for it. What finds no room is
/// denied, as in [`record`].
///
/// The attempt's own hook and reason do not count: a copy of it with others would be too much for
/// the stack, of which Linux 6.1 rounds every function's part up to 32 bytes.
#[inline(always)]
pub(crate) fn record_name(
    attempt: &Attempt,
    reason: Reason,
    job: &Job,
    socket: &Socket,
    stream: &Stream,
) -> Recorded {
    let unwritten = Recorded {
        written: false,
        pass: job.state == JobState::AUDIT,
    };
    if !is_within_rate(attempt.slot, job) {
        return unwritten;
    }
    let Some(mut entry) = EVENTS.reserve_untyped::<NamedEvent>(0) else {
        count(attempt.slot, Counter::Lost);
        return unwritten;
    };
    let hook = if stream.is_http() {
        Hook::HTTP
    } else {
        Hook::TLS
    };
    let to: *mut MaybeUninit<NamedEvent> = &raw mut *entry;
    let to = to.cast::<NamedEvent>();
    // SAFETY: the entry has room for a whole `NamedEvent`. The name is copied word by word, since
    // it fits on no program's stack, and volatile, since LLVM would call `memcpy`.
    unsafe {
        write_event(
            &raw mut (*to).event,
            attempt,
            (hook, reason),
            job,
            socket,
            Some(stream),
        );
        let from = (&raw const stream.name).cast::<u64>();
        let name = (&raw mut (*to).name).cast::<u64>();
        for index in 0..NAME_ROOM / 8 {
            name.add(index).write_volatile(from.add(index).read());
        }
    }
    let pass = passes(reason, job);
    entry.submit(wakeup(pass));
    count(attempt.slot, Counter::Recorded);
    Recorded {
        written: true,
        pass,
    }
}

/// Whether the agent is woken for a record, as flags of `bpf_ringbuf_submit`. For a refusal it is,
/// always: without the flag the kernel leaves out whoever has not read what came before. What is
/// allowed waits until the agent looks by itself, or the buffer is a quarter full; waking it costs
/// more than deciding.
#[inline(always)]
fn wakeup(passed: bool) -> u64 {
    let map = (&raw const EVENTS).cast_mut().cast();
    // SAFETY: the map is this static, which the loader made.
    let waiting = || unsafe { bpf_ringbuf_query(map, BPF_RB_AVAIL_DATA.into()) };
    if passed && waiting() < u64::from(RING_BYTES / 4) {
        BPF_RB_NO_WAKEUP.into()
    } else {
        BPF_RB_FORCE_WAKEUP.into()
    }
}

/// Writes an event field by field: a whole one, made on the stack first, is a fifth of that.
///
/// # Safety
///
/// `to` must have room for an event.
#[inline(always)]
unsafe fn write_event(
    to: *mut Event,
    attempt: &Attempt,
    (hook, reason): (Hook, Reason),
    job: &Job,
    socket: &Socket,
    stream: Option<&Stream>,
) {
    // SAFETY: by the contract; the clock is only read.
    unsafe {
        (&raw mut (*to).monotonic_ns).write(bpf_ktime_get_ns());
        (&raw mut (*to).slot).write(attempt.slot);
        (&raw mut (*to).hook).write(hook);
        (&raw mut (*to).reason).write(reason);
        (&raw mut (*to).passed).write(u8::from(passes(reason, job)));
        (&raw mut (*to).family).write(attempt.family);
        (&raw mut (*to).flow).write(attempt.flow);
        (&raw mut (*to).socket_type).write(attempt.socket_type);
        (&raw mut (*to).pid).write(socket.pid);
        (&raw mut (*to).uid).write(socket.uid);
        (&raw mut (*to).comm).write(socket.comm);
        (&raw mut (*to).cookie).write(attempt.origin.cookie);
        (&raw mut (*to).source).write(attempt.origin.source);
        (&raw mut (*to).source_port).write(attempt.origin.port);
        let (fault, name_len) = match stream {
            Some(stream) => (stream.fault, stream.name_len),
            None => (Fault::NONE, 0),
        };
        (&raw mut (*to).fault).write(fault);
        (&raw mut (*to).name_len).write(name_len);
        (&raw mut (*to).pad).write(0);
    }
}

/// Whether an attempt is let through.
#[inline(always)]
fn passes(reason: Reason, job: &Job) -> bool {
    job.state == JobState::AUDIT || reason.is_allowed()
}

/// Whether one more attempt of the job may be recorded in this second. All jobs share the ring
/// buffer, and one that floods it must take no room from the others.
#[inline(always)]
fn is_within_rate(slot: u32, job: &Job) -> bool {
    if job.rate == 0 {
        return true;
    }
    let Some(counters) = COUNTERS.get_ptr_mut(slot) else {
        return false;
    };
    // SAFETY: as in `count`; `second` is written whole, whoever else writes it.
    unsafe {
        let now = bpf_ktime_get_ns();
        let second = &raw mut (*counters).second;
        if now.wrapping_sub(second.read_volatile()) >= SECOND {
            second.write_volatile(now);
            (&raw mut (*counters).this_second).write_volatile(0);
        }
        let this_second = &raw mut (*counters).this_second;
        if this_second.read_volatile() >= u64::from(job.rate) {
            count(slot, Counter::Limited);
            return false;
        }
        increment(this_second);
    }
    true
}

/// In nanoseconds.
const SECOND: u64 = 1_000_000_000;

/// A counter of [`jobfence_abi::Counters`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counter {
    Recorded,
    Lost,
    Limited,
    DroppedAgain,
}

/// Adds one to a counter of the job.
#[inline(always)]
pub(crate) fn count(slot: u32, counter: Counter) {
    let Some(counters) = COUNTERS.get_ptr_mut(slot) else {
        return;
    };
    // SAFETY: an eight-byte aligned field of a map entry, which lives for ever and is only added
    // to.
    unsafe {
        increment(match counter {
            Counter::Recorded => &raw mut (*counters).recorded,
            Counter::Lost => &raw mut (*counters).lost,
            Counter::Limited => &raw mut (*counters).limited,
            Counter::DroppedAgain => &raw mut (*counters).dropped_again,
        });
    }
}

/// Adds one, atomically.
///
/// # Safety
///
/// `field` must be aligned, and in a map entry.
#[inline(always)]
unsafe fn increment(field: *mut u64) {
    // SAFETY: by the contract.
    unsafe { increment_by(field, 1) };
}

/// Adds to a field, atomically. Rust offers no read-modify-write atomics for this target, so the
/// instruction is named.
///
/// # Safety
///
/// `field` must be aligned, and in a map entry.
#[inline(always)]
pub(crate) unsafe fn increment_by(field: *mut u64, more: u64) {
    // SAFETY: by the contract.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({field} + 0) += {more}",
            field = in(reg) field,
            more = in(reg) more,
        );
    }
}
