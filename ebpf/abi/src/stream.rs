//! What a connection says of the name that it is for: a TLS ClientHello's server name, or the
//! Host header of each HTTP request.
//!
//! A [`Stream`] reads the bytes that a job sends, one step at a time, in the order of their
//! sequence numbers and whatever the segments that they come in. Nothing is buffered but the name,
//! so a ClientHello of many segments costs no more memory than a short one, and bytes that do not
//! matter (key shares, bodies) are passed over without being read.
//!
//! It is strict: what two servers could read in two ways is refused. `tls.rs` and `http.rs` hold
//! the grammars.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Checks, decide::mix};

mod http;
mod tls;

/// Room for a name, in bytes. A DNS name has at most 253 (RFC 1035 section 3.1, without the
/// lengths).
pub const NAME_ROOM: usize = 256;
/// The longest name.
const NAME_MAX: u8 = 253;
/// Length of the bits of a [`NameKey`] in bytes, the most that a trie in the kernel takes.
pub const NAME_KEY_LEN: usize = 256;

/// Bytes of a connection, by their sequence numbers.
pub trait Bytes {
    /// The byte at `position`, or more than 255 when it cannot be read. A plain number, since
    /// verifiers before Linux 6.7 can lose a branch of a `match` on a `Result` or an `Option`.
    fn at(&self, position: u32) -> u32;
}

/// What is left to do after a step. Plain numbers, for the reason that [`Bytes::at`] gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step(pub u32);

impl Step {
    /// Take the next step.
    pub const MORE: Self = Self(0);
    /// All bytes have been read; go on when there are more of them.
    pub const END: Self = Self(1);
    /// A name is complete. The caller looks it up, sets [`Stream::fault`] if it is not allowed,
    /// and goes on.
    pub const NAME: Self = Self(2);
    /// A ClientHello is complete and in order. The caller records its name and goes on.
    pub const HELLO: Self = Self(5);
    /// The connection has shown what it has to. Nothing on it is of interest any more.
    pub const DONE: Self = Self(3);
    /// The connection is refused, see [`Stream::fault`].
    pub const REFUSED: Self = Self(4);
}

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)*) => {
        impl Fault {
            $($(#[$doc])* pub const $name: Self = Self($code);)*

            /// What a person is told.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self($code) => $text,)*
                    Self(_) => "unknown",
                }
            }

            /// Every fault.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
        }
    };
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Fault(pub u8);

faults! {
    /// It is not refused.
    NONE = 0, "";
    /// The name is not allowed on this port.
    NAME = 1, "the name is not allowed on this port";
    /// The name has a byte that no host name has, or is too long, or empty.
    BAD_NAME = 2, "the name is no host name";
    /// The first bytes are not those of a TLS ClientHello.
    NOT_TLS = 3, "the connection does not begin with a TLS ClientHello";
    /// The ClientHello has no server name.
    NO_SERVER_NAME = 4, "the TLS ClientHello has no server name";
    /// The ClientHello has more than one server name.
    SEVERAL_SERVER_NAMES = 5, "the TLS ClientHello has several server names";
    /// Lengths in the ClientHello do not agree.
    BAD_HELLO = 6, "the TLS ClientHello is malformed";
    /// The ClientHello or the request head is longer than any honest one.
    TOO_LONG = 7, "it is longer than what can be checked";
    /// Not a request of HTTP/1.0 or HTTP/1.1.
    NOT_HTTP = 8, "the connection does not carry HTTP/1 requests";
    /// The request has no Host header, or an empty one.
    NO_HOST = 9, "the HTTP request has no Host header";
    /// The request has more than one Host header.
    SEVERAL_HOSTS = 10, "the HTTP request has several Host headers";
    /// A header goes on in the next line (RFC 9112 section 5.2).
    FOLDED = 11, "the HTTP request has a folded header line";
    /// The request opens a tunnel, in which nothing can be checked.
    CONNECT = 12, "the HTTP request opens a tunnel (CONNECT)";
    /// It cannot be told where the request's body ends.
    FRAMING = 13, "the end of the HTTP request's body cannot be told";
    /// A byte stands where HTTP has none of its kind.
    BAD_HEAD = 14, "the HTTP request is malformed";
    /// The beginning of the connection was not seen.
    UNSEEN = 15, "the beginning of the connection was not seen";
    /// Some of the payload is urgent: most servers take that out of the stream and so read another
    /// one than was checked (RFC 6093).
    URGENT = 17, "the connection uses urgent data";
    /// The ClientHello has an encrypted one within it (RFC 9849), or says so to look as if.
    ENCRYPTED = 18, "the TLS ClientHello has an encrypted part (ECH), which can hold another name";
    /// A name could not be recorded.
    UNRECORDED = 16, "its record found no room";
}

impl Fault {
    /// Whether nothing is wrong.
    #[must_use]
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}

/// How far a connection has been read. All zeros with [`Stream::next`] and [`Stream::checks`] set
/// is a connection of which nothing has been read.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Stream {
    /// TLS: bytes still to be passed over. HTTP: length of the body or the chunk.
    skip: u64,
    /// Where [`Self::hash`] begins: [`crate::Job::key`].
    key: u64,
    /// A hash of the name, keyed so that a job cannot look for two names that share one.
    hash: u64,
    /// The hash of the name that was reported last; 0 for none.
    reported: u64,
    /// HTTP: the last 24 bytes of a token, the newest lowest.
    token: [u64; 3],
    /// Sequence number of the next byte to be read, host byte order.
    pub next: u32,
    /// TLS: a number of which some bytes have been read.
    number: u32,
    /// TLS: bytes left in the record.
    record: u32,
    /// TLS: bytes left in the ClientHello.
    hello: u32,
    /// TLS: bytes left in the extension or the name.
    field: u32,
    /// HTTP: length of the token. TLS: the high byte of a record's length.
    token_len: u32,
    /// Bytes of the head or the ClientHello that have been read.
    read: u32,
    /// Where in the grammar.
    state: u8,
    /// TLS: bytes that `number` still lacks.
    need: u8,
    /// TLS: bytes of the record's header that have been read.
    header: u8,
    /// What has been seen.
    seen: u8,
    /// Why the connection is refused.
    pub fault: Fault,
    /// What is accepted.
    pub checks: Checks,
    /// Length of the name.
    pub name_len: u8,
    /// The last byte of the name.
    last: u8,
    /// Zeros.
    pad: [u8; 4],
    /// Room in front of the name for a trie key's length of prefix.
    pub room: [u8; 8],
    /// The name in lower case, its last byte first, at the end of the room.
    pub name: [u8; NAME_ROOM],
    /// Zeros: the end of an exact name, and the rest of its key.
    pub zeros: [u8; NAME_KEY_LEN],
}

/// A state of both grammars: nothing has been read.
const START: u8 = 0;
/// The first state of `http.rs`; those of `tls.rs` are below it.
const HTTP: u8 = 32;

/// [`Stream::seen`]: the refusal has been reported. The grammars have the other bits.
const REPORTED: u8 = 128;

impl Stream {
    /// A connection of which nothing has been read, of a job with this key, for the host. The kernel clears what it keeps
    /// by [`Stream::restart`].
    #[must_use]
    pub const fn new(next: u32, checks: Checks, key: u64) -> Self {
        Self {
            skip: 0,
            key,
            hash: 0,
            reported: 0,
            token: [0; 3],
            next,
            number: 0,
            record: 0,
            hello: 0,
            field: 0,
            token_len: 0,
            read: 0,
            state: START,
            need: 0,
            header: 0,
            seen: 0,
            fault: Fault::NONE,
            checks,
            name_len: 0,
            last: 0,
            pad: [0; 4],
            room: [0; 8],
            name: [0; NAME_ROOM],
            zeros: [0; NAME_KEY_LEN],
        }
    }

    /// Begins anew with a connection of a job with this key, whose first byte has the sequence
    /// number `next`.
    #[inline(always)]
    pub fn restart(&mut self, next: u32, checks: Checks, key: u64) {
        self.key = key;
        self.skip = 0;
        self.token = [0; 3];
        self.next = next;
        self.number = 0;
        self.record = 0;
        self.hello = 0;
        self.field = 0;
        self.token_len = 0;
        self.read = 0;
        self.hash = 0;
        self.reported = 0;
        self.state = START;
        self.need = 0;
        self.header = 0;
        self.seen = 0;
        self.fault = Fault::NONE;
        self.checks = checks;
        self.name_len = 0;
    }

    /// Reads on, up to and without the byte with the sequence number `end`. Each step reads a byte
    /// or passes over some, but for a few that only change the state: one packet takes no more than
    /// its length and [`Self::IDLE_STEPS`].
    #[inline(always)]
    pub fn step<B: Bytes>(&mut self, bytes: &B, end: u32) -> Step {
        if !self.fault.is_none() {
            return Step::REFUSED;
        }
        if self.is_done() {
            return Step::DONE;
        }
        if self.hello_is_read() {
            return self.end_hello();
        }
        let available = end.wrapping_sub(self.next);
        // Sequence numbers wrap: more than half of them ahead is behind.
        if available == 0 || available > i32::MAX as u32 {
            return Step::END;
        }
        if self.passes_over() {
            return self.pass_over(available);
        }
        let byte = bytes.at(self.next);
        if byte > 255 {
            return self.refuse(if self.is_http() {
                Fault::BAD_HEAD
            } else {
                Fault::BAD_HELLO
            });
        }
        let byte = low_byte(byte);
        if self.state == START {
            return self.begin(byte);
        }
        self.next = self.next.wrapping_add(1);
        if self.state >= HTTP {
            self.http(byte)
        } else {
            self.tls(byte)
        }
    }

    /// Steps that read nothing, of those that one packet can take.
    pub const IDLE_STEPS: u32 = 4;

    /// Whether the connection is read as HTTP, or would be for want of anything else.
    #[must_use]
    #[inline(always)]
    pub const fn is_http(&self) -> bool {
        self.state >= HTTP || !self.checks.has(Checks::TLS)
    }

    /// The bytes of the name that was read last, in order.
    pub fn name(&self) -> impl Iterator<Item = u8> + use<'_> {
        let length = usize::from(self.name_len);
        self.name.iter().rev().take(length).copied()
    }

    /// Whether the name is another than the one before it on the connection. Asked once for each
    /// name.
    #[inline(always)]
    pub fn is_news(&mut self) -> bool {
        let last = self.reported;
        self.reported = self.hash | 1;
        last != self.reported
    }

    /// Notes that the refusal of the connection has been reported.
    #[inline(always)]
    pub fn set_reported(&mut self) {
        self.seen |= REPORTED;
    }

    /// Whether the connection is refused and that has been reported.
    #[must_use]
    #[inline(always)]
    pub const fn is_reported(&self) -> bool {
        self.seen & REPORTED != 0
    }

    /// The first byte tells TLS from HTTP where both are accepted.
    #[inline(always)]
    fn begin(&mut self, byte: u8) -> Step {
        if byte == tls::HANDSHAKE && self.checks.has(Checks::TLS) {
            self.begin_hello();
        } else if self.checks.has(Checks::HTTP) {
            self.begin_request();
        } else {
            return self.refuse(Fault::NOT_TLS);
        }
        Step::MORE
    }

    /// Whether the next bytes do not matter.
    #[inline(always)]
    const fn passes_over(&self) -> bool {
        self.skip > 0
            && if self.state >= HTTP {
                self.in_body()
            } else {
                self.record > 0
            }
    }

    #[inline(always)]
    fn pass_over(&mut self, available: u32) -> Step {
        let mut count = available;
        if self.skip < count as u64 {
            count = low_half(self.skip);
        }
        if self.state < HTTP {
            if self.record < count {
                count = self.record;
            }
            self.record = self.record.wrapping_sub(count);
            self.hello = self.hello.wrapping_sub(count);
        }
        self.skip = self.skip.wrapping_sub(count as u64);
        self.next = self.next.wrapping_add(count);
        if self.skip == 0 && self.state >= HTTP {
            self.end_body();
        }
        Step::MORE
    }

    #[inline(always)]
    fn refuse(&mut self, fault: Fault) -> Step {
        self.fault = fault;
        Step::REFUSED
    }

    #[inline(always)]
    fn clear_name(&mut self) {
        self.name_len = 0;
        self.hash = self.key;
    }

    /// Adds a byte to the name; `false` when it cannot be part of one. Letters, digits, `-`, `.`
    /// and `_`, which host names in use have too.
    #[inline(always)]
    fn push_name(&mut self, byte: u8) -> bool {
        let lower = lower(byte);
        let fits = lower.is_ascii_lowercase()
            || lower.is_ascii_digit()
            || lower == b'-'
            || lower == b'_'
            // Between labels, none of which is empty.
            || lower == b'.' && self.name_len > 0 && self.last != b'.';
        self.last = lower;
        if !fits || self.name_len >= NAME_MAX {
            return false;
        }
        // The last byte first: the key of a wildcard is then a prefix.
        if let Some(place) = self.name.get_mut(NAME_ROOM - 1 - self.name_len as usize) {
            *place = lower;
        }
        self.name_len = self.name_len.wrapping_add(1);
        self.hash = mix(self.hash ^ lower as u64);
        true
    }
}

#[expect(clippy::cast_possible_truncation, reason = "what is wanted")]
#[inline(always)]
const fn low_byte(word: u32) -> u8 {
    word as u8
}

#[expect(clippy::cast_possible_truncation, reason = "what is wanted")]
#[inline(always)]
const fn low_half(word: u64) -> u32 {
    word as u32
}

/// ASCII lower case, without the branch.
#[inline(always)]
const fn lower(byte: u8) -> u8 {
    byte | ((byte.is_ascii_uppercase() as u8) << 5)
}

/// A key of a job's names: bits of a longest-prefix match over names read from their end. An exact
/// name ends in a zero byte, so that it is a prefix of nothing else; a wildcard ends in its dot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameKey {
    /// How many bits of `data` count.
    pub bits: u32,
    /// The bytes.
    pub data: [u8; NAME_KEY_LEN],
}

impl NameKey {
    /// The key of one name, in lower case and without the dot at the end.
    #[must_use]
    pub fn exact(name: &str) -> Self {
        Self::new(name, 0)
    }

    /// The key of all names below `name`, at any depth.
    #[must_use]
    pub fn below(name: &str) -> Self {
        Self::new(name, b'.')
    }

    fn new(name: &str, end: u8) -> Self {
        let mut data = [0; NAME_KEY_LEN];
        let mut bits = 0;
        let bytes = name.bytes().rev().take(NAME_MAX as usize);
        for (to, from) in data.iter_mut().zip(bytes.chain([end])) {
            *to = from;
            bits += 8;
        }
        Self { bits, data }
    }
}

const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(offset_of!(Stream, name) == offset_of!(Stream, room) + 8);
    assert!(offset_of!(Stream, zeros) == offset_of!(Stream, name) + NAME_ROOM);
    assert!(size_of::<Stream>() == offset_of!(Stream, zeros) + NAME_KEY_LEN);
    assert!(NAME_MAX as usize + 1 < NAME_KEY_LEN);
};

#[cfg(test)]
mod tests;
