//! How much a job sends to one address, for jobs whose policy limits that.
//!
//! A program of its own, attached to the cgroups of such jobs only, so that the others pay nothing for
//! it. It counts what the packets hold, headers included, whether or not [`crate::packet`] lets them
//! go; what is sent again counts again.

use aya_ebpf::{helpers::generated::bpf_sk_fullsock, programs::SkBuffContext};
use jobfence_abi::{Hook, Reason, UploadKey};

use crate::{
    header::{Header, read},
    maps::{SOCKETS, UPLOADS, job},
    report::{Attempt, Origin, increment_by, record_new},
};

/// Lets the packet go (1) or drops it (0).
#[inline(always)]
pub(crate) fn egress(ctx: &SkBuffContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some((slot, job)) = job() else { return 0 };
    if job.upload == 0 {
        return 1;
    }
    // SAFETY: as in `packet::egress`.
    let (socket, length) = unsafe {
        let sk = (*skb).__bindgen_anon_2.sk;
        if sk.is_null() {
            return 0;
        }
        let sk = bpf_sk_fullsock(sk);
        if sk.is_null() {
            return 0;
        }
        (SOCKETS.find_or_make(sk), u64::from((*skb).len))
    };
    if socket.is_null() {
        return 0;
    }
    // SAFETY: checked above; see `jobfence_abi::Socket` on what other processors can do.
    let socket = unsafe { &mut *socket };
    let header: Header = read(skb);
    if header.flow.dst.is_loopback() {
        return 1;
    }
    let key = UploadKey {
        job: job.id,
        addr: header.flow.dst,
    };
    if UPLOADS.get_ptr_mut(key).is_none() {
        // Another processor may have been faster.
        let _ = UPLOADS.insert(key, 0, NO_EXIST);
    }
    let sent = match UPLOADS.get_ptr_mut(key) {
        // SAFETY: an eight-byte value of a map, only added to; it goes when the job has ended.
        Some(sent) => unsafe {
            increment_by(sent, length);
            sent.read_volatile()
        },
        // No room to count in.
        None => u64::MAX,
    };
    if sent <= job.upload {
        return 1;
    }
    let attempt = Attempt {
        slot,
        hook: Hook::PACKET,
        reason: Reason::LIMIT,
        family: header.family,
        flow: header.flow,
        socket_type: 0,
        origin: Origin::of(skb, &header),
    };
    i32::from(record_new(&attempt, job, socket))
}

/// `BPF_NOEXIST` of `linux/bpf.h`.
const NO_EXIST: u64 = 1;
