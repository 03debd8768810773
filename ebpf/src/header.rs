//! What a packet's header says.
//!
//! [`glance`] reads what is ordinary in place, [`read`] copies all the rest. Neither looks at
//! `skb->protocol`: the version is in the first byte.

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_load_bytes};
use jobfence_abi::{Addr, Flow, Reason, proto};

pub(crate) const AF_INET: u8 = 2;
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

/// A packet's header.
pub(crate) struct Header {
    pub(crate) flow: Flow,
    pub(crate) source: Addr,
    /// Network byte order.
    pub(crate) source_port: u16,
    pub(crate) family: u8,
    /// [`Reason::ALLOWED`], or what makes the packet one that is never let through.
    pub(crate) fault: Reason,
    /// TCP: whether a connection begins with it.
    pub(crate) syn: bool,
    /// TCP: whether some of the payload is urgent.
    pub(crate) urgent: bool,
    /// TCP: sequence number of its first byte of payload, host byte order.
    pub(crate) sequence: u32,
    /// TCP: where in the packet the payload begins.
    pub(crate) payload: u32,
}

/// The flow of an ordinary TCP segment or datagram, and whether a connection begins with it.
/// Ordinary is one without IP options or extension headers, no fragment, its headers in one piece.
/// They are read in place; [`read`], which copies, is for all the others.
#[inline(always)]
pub(crate) fn glance(skb: *const __sk_buff) -> Option<(Flow, bool)> {
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

/// Reads the header, whatever is in it.
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
pub(crate) fn obscure_zero(skb: *const __sk_buff) -> u32 {
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
