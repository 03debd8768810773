//! Putting attempts into the ring buffer.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use jobfence_abi::{Event, Flow, Hook, Job, JobState, Reason, Socket, digest};

use crate::maps::{COUNTERS, EVENTS};

/// An attempt that has been decided.
pub(crate) struct Attempt {
    pub(crate) slot: u32,
    pub(crate) hook: Hook,
    pub(crate) reason: Reason,
    pub(crate) family: u8,
    pub(crate) flow: Flow,
    pub(crate) socket_type: u32,
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
    entry.write(Event {
        // SAFETY: the helper only reads the clock.
        monotonic_ns: unsafe { bpf_ktime_get_ns() },
        slot: attempt.slot,
        hook: attempt.hook,
        reason: attempt.reason,
        passed: u8::from(passed),
        family: attempt.family,
        flow: attempt.flow,
        socket_type: attempt.socket_type,
        pid: socket.pid,
        uid: socket.uid,
        comm: socket.comm,
    });
    entry.submit(0);
    socket.reported = digest(&attempt.flow, attempt.reason, job);
    passed
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
