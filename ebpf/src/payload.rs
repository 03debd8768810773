//! The name that a connection's payload gives, where a rule asks for one.
//!
//! The hook sees each segment before it leaves, in the order in which TCP sends them, and again
//! when TCP sends it again. [`Stream`] keeps how far the connection has been read, by sequence
//! number: what has been read before passes, what lies beyond a gap is dropped and comes again, and
//! everything else is read before it may leave. Once refused, a connection sends nothing more; the
//! agent ends it (`kernel/destroy.rs`).
//!
//! TCP sends under its socket's lock, so no two processors read one stream at once.

use core::{ffi::c_void, mem::offset_of};

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    btf_maps::lpm_trie::Key,
    helpers::generated::bpf_loop,
};
use jobfence_abi::{
    Bytes, Checks, Fault, Hook, Job, JobState, NAME_KEY_LEN, NAME_ROOM, Reason, Socket, Step,
    Stream, proto,
};

use crate::{
    header::{Header, load},
    maps::{NAMES, STREAMS},
    report::{Attempt, Counter, Origin, Recorded, count, record_name},
};

/// Steps for one packet. Each reads a byte at least; no packet is longer (`GSO_MAX_SIZE` of
/// linux/netdevice.h, 8 × 65,535 bytes).
const MAX_STEPS: u32 = 1 << 19;

/// What the steps of one packet share. They only read it.
struct Reading<'a> {
    skb: *mut __sk_buff,
    job: &'a Job,
    socket: &'a Socket,
    stream: *mut Stream,
    attempt: Attempt,
    /// Where in the packet the byte with sequence number 0 would be.
    origin: u32,
    /// Sequence number behind the packet's last byte.
    end: u32,
}

impl Bytes for Reading<'_> {
    #[inline(always)]
    fn at(&self, position: u32) -> u32 {
        match load::<u8>(self.skb, self.origin.wrapping_add(position)) {
            Some(byte) => u32::from(byte),
            None => 256,
        }
    }
}

/// Reads on in the connection of `sk`, which may go to its address but has to show a name, and says
/// whether the packet may leave.
#[inline(always)]
pub(crate) fn inspect(
    skb: *mut __sk_buff,
    sk: *mut bpf_sock,
    slot: u32,
    job: &Job,
    header: &Header,
    socket: &mut Socket,
) -> bool {
    // SAFETY: the socket is the packet's own.
    let stream = unsafe { STREAMS.find_or_make(sk) };
    if stream.is_null() {
        count(slot, Counter::Lost);
        return false;
    }
    // SAFETY: checked above; the socket's lock keeps other programs away.
    let stream = unsafe { &mut *stream };
    if header.syn {
        stream.restart(header.sequence, socket.checks, job.key);
    } else if stream.checks.is_none() {
        // This socket's connection was not seen to begin: somebody else opened it.
        stream.restart(header.sequence, socket.checks, job.key);
        stream.fault = Fault::UNSEEN;
    }
    if header.urgent && stream.fault.is_none() {
        stream.fault = Fault::URGENT;
    }
    // SAFETY: the context is the program's own.
    let length = unsafe { (*skb).len };
    if length <= header.payload && !header.urgent {
        return true;
    }
    let end = header.sequence.wrapping_add(length - header.payload);
    // A refusal comes first: it may have read to the end of the packet that it dropped.
    if stream.is_reported() {
        count(slot, Counter::DroppedAgain);
        return false;
    }
    if stream.fault.is_none() {
        if end.wrapping_sub(stream.next).wrapping_sub(1) > i32::MAX as u32 {
            // Sent again.
            return true;
        }
        if stream.next.wrapping_sub(header.sequence) > i32::MAX as u32 {
            // What lies between was lost on its way here.
            return job.state == JobState::AUDIT;
        }
    }

    let reading = Reading {
        skb,
        job,
        socket,
        stream,
        attempt: Attempt {
            slot,
            hook: if stream.is_http() {
                Hook::HTTP
            } else {
                Hook::TLS
            },
            reason: Reason::ALLOWED,
            family: header.family,
            flow: header.flow,
            socket_type: 0,
            origin: Origin::of(skb, header),
        },
        origin: header.payload.wrapping_sub(header.sequence),
        end,
    };
    // SAFETY: `take_step` gets `reading`, which outlives the call.
    unsafe {
        let reading = (&raw const reading).cast_mut().cast();
        bpf_loop(MAX_STEPS, take_step as *mut c_void, reading, 0);
    }
    if stream.fault.is_none() && !stream.is_done() && stream.next != end {
        stream.fault = Fault::TOO_LONG;
    }

    if !stream.fault.is_none() {
        let Recorded { written, pass } =
            record_name(&reading.attempt, refusal(stream), job, socket, stream);
        if written {
            stream.set_reported();
        }
        if pass {
            // What is only watched is not read further: where to go on is not known.
            socket.checks = Checks::NONE;
        }
        return pass;
    }
    if !stream.is_done() {
        return true;
    }
    socket.checks = Checks::NONE;
    // SAFETY: as above, and `stream` is not used any more.
    unsafe { STREAMS.remove(sk) };
    true
}

/// Takes one step and looks up the names that come to light; 1 ends the loop.
unsafe extern "C" fn take_step(_index: u32, reading: *const Reading<'_>) -> i64 {
    // SAFETY: `inspect` passes it.
    let reading = unsafe { &*reading };
    // SAFETY: not null, by `inspect`; its reference is not used while the loop runs.
    let stream = unsafe { &mut *reading.stream };
    let step = stream.step(reading, reading.end);
    if step == Step::MORE {
        return 0;
    }
    if step != Step::NAME && step != Step::HELLO {
        return 1;
    }
    let watched = reading.job.state == JobState::AUDIT;
    if step == Step::NAME {
        let allowed = is_allowed(stream, &reading.attempt);
        if !allowed {
            stream.fault = Fault::NAME;
        }
        // A ClientHello is recorded when the rest of it is read. A refusal ends the loop and is
        // recorded behind it, but for a request that is only watched: the next one is too.
        if !stream.is_http() || !allowed && !watched {
            return 0;
        }
    }
    if stream.is_news() {
        let reason = if stream.fault.is_none() {
            Reason::ALLOWED
        } else {
            Reason::HOST_HEADER
        };
        let recorded = record_name(
            &reading.attempt,
            reason,
            reading.job,
            reading.socket,
            stream,
        );
        stream.fault = if recorded.pass {
            Fault::NONE
        } else {
            Fault::UNRECORDED
        };
    } else if watched {
        stream.fault = Fault::NONE;
    }
    0
}

#[inline(always)]
fn refusal(stream: &Stream) -> Reason {
    if stream.fault == Fault::UNSEEN {
        Reason::INBOUND
    } else if stream.fault == Fault::UNRECORDED {
        Reason::AUDIT_LOSS
    } else if stream.is_http() {
        Reason::HOST_HEADER
    } else {
        Reason::SNI
    }
}

/// Whether the job's rules allow the name that `stream` has read, on the attempt's port.
#[inline(always)]
fn is_allowed(stream: &mut Stream, attempt: &Attempt) -> bool {
    let Some(names) = NAMES.get(attempt.slot) else {
        return false;
    };
    let length = u32::from(stream.name_len);
    // SAFETY: a subtraction. Written here, it stays in one piece: LLVM would add the base first, and
    // the verifier takes what is left for a step in front of the map value.
    let free: usize = unsafe {
        let mut free = NAME_ROOM as u64;
        core::arch::asm!("{free} -= {length}", free = inout(reg) free, length = in(reg) u64::from(length));
        free as usize
    };
    // SAFETY: a key is the length of its prefix and `NAME_KEY_LEN` bytes. It begins in front of the
    // name's bytes, in the room that they leave, and ends within `zeros`; the first of those is the
    // end of the exact name.
    let key = unsafe {
        let room = (&raw mut *stream)
            .byte_add(offset_of!(Stream, name))
            .cast::<u8>();
        let key = room.add(free).sub(4);
        key.cast::<u32>().write_unaligned(8 * (length + 1));
        &*key.cast_const().cast::<Key<[u8; NAME_KEY_LEN]>>()
    };
    names
        .get(key)
        .is_some_and(|grants| grants.checks(proto::TCP, attempt.flow.port).is_some())
}
