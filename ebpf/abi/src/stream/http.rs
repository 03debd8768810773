//! The grammar of HTTP/1 requests (RFC 9112), one after another on a connection.
//!
//! To find the next request, the end of each body has to be known: by `Content-Length` or by
//! chunks. What leaves it open is refused, and much of what servers are known to make different
//! things of: folded lines, white space before a colon, bare line feeds, two of a header that may
//! stand once. A server that does not read the body that a request announces, which no server should
//! (RFC 9112 section 9.3), reads other requests than were checked.

use super::{Fault, Step, Stream, lower};

/// The longest head that is read, in bytes. Common servers take 8,000 to 16,000.
const MAX_HEAD: u32 = 1 << 14;
/// The longest method.
const MAX_METHOD: u32 = 24;
/// Digits of a length: fewer than a `u64` can hold.
const MAX_DIGITS: u32 = 15;

// The states, each named for what is read in it.
const METHOD: u8 = super::HTTP;
const EMPTY_LINE: u8 = METHOD + 1;
const TARGET_START: u8 = METHOD + 2;
const TARGET: u8 = METHOD + 3;
const SCHEME: u8 = METHOD + 4;
const AUTHORITY: u8 = METHOD + 5;
const AUTHORITY_PORT: u8 = METHOD + 6;
const VERSION: u8 = METHOD + 7;
const LINE_FEED: u8 = METHOD + 8;
const LINE: u8 = METHOD + 9;
const FIELD: u8 = METHOD + 10;
const VALUE: u8 = METHOD + 11;
const HOST_START: u8 = METHOD + 12;
const HOST: u8 = METHOD + 13;
const HOST_PORT: u8 = METHOD + 14;
const VALUE_END: u8 = METHOD + 15;
const LENGTH_START: u8 = METHOD + 16;
const LENGTH: u8 = METHOD + 17;
const CODING_START: u8 = METHOD + 18;
const CODING: u8 = METHOD + 19;
const HEAD_END: u8 = METHOD + 20;
const BODY: u8 = METHOD + 21;
const CHUNK_SIZE: u8 = METHOD + 22;
const CHUNK_EXTENSION: u8 = METHOD + 23;
const CHUNK_LINE_FEED: u8 = METHOD + 24;
const CHUNK: u8 = METHOD + 25;
const CHUNK_END: u8 = METHOD + 26;
const CHUNK_END_LINE_FEED: u8 = METHOD + 27;
const TRAILER_LINE: u8 = METHOD + 28;
const TRAILER: u8 = METHOD + 29;
const TRAILER_LINE_FEED: u8 = METHOD + 30;
const TRAILER_END: u8 = METHOD + 31;

// `Stream::seen`.
const HAS_HOST: u8 = 1;
const HAS_LENGTH: u8 = 2;
const IS_CHUNKED: u8 = 4;
const IS_OLD: u8 = 8;

const CR: u8 = b'\r';
const LF: u8 = b'\n';

impl Stream {
    #[inline(always)]
    pub(super) fn begin_request(&mut self) {
        self.skip = 0;
        self.seen = 0;
        self.read = 0;
        self.token_to(METHOD);
    }

    /// Whether a body or a chunk of one is being passed over.
    #[inline(always)]
    pub(super) const fn in_body(&self) -> bool {
        self.state == BODY || self.state == CHUNK
    }

    /// A body or a chunk has been passed over.
    #[inline(always)]
    pub(super) fn end_body(&mut self) {
        if self.state == CHUNK {
            self.state = CHUNK_END;
        } else {
            self.begin_request();
        }
    }

    /// Reads a byte outside a body.
    #[inline(always)]
    pub(super) fn http(&mut self, byte: u8) -> Step {
        self.read = self.read.wrapping_add(1);
        if self.read > MAX_HEAD {
            return self.refuse(Fault::TOO_LONG);
        }
        match self.state {
            METHOD => self.method(byte),
            EMPTY_LINE => self.only(byte, LF, METHOD, Fault::NOT_HTTP),
            TARGET_START => self.target_start(byte),
            TARGET => {
                if byte == b' ' {
                    self.token_to(VERSION)
                } else if byte < b' ' || byte == 0x7f {
                    // HTTP/0.9 has nothing behind the target.
                    self.refuse(Fault::NOT_HTTP)
                } else {
                    Step::MORE
                }
            }
            SCHEME => {
                self.push(byte);
                if self.token_len < 7 {
                    Step::MORE
                } else if self.is_token(&const { Word::new(b"http://") }) {
                    self.clear_name();
                    self.to(AUTHORITY)
                } else {
                    self.refuse(Fault::BAD_HEAD)
                }
            }
            AUTHORITY => self.authority(byte),
            AUTHORITY_PORT => {
                if byte.is_ascii_digit() {
                    Step::MORE
                } else {
                    self.authority_end(byte)
                }
            }
            VERSION => self.version(byte),
            LINE_FEED => self.only(byte, LF, LINE, Fault::BAD_HEAD),
            LINE => self.line(byte, HEAD_END, FIELD),
            FIELD => self.field(byte),
            VALUE => self.value(byte, LINE_FEED),
            HOST_START => self.host_start(byte),
            HOST => self.host(byte),
            HOST_PORT => {
                if byte.is_ascii_digit() {
                    Step::MORE
                } else {
                    self.value_end(byte, Fault::BAD_NAME)
                }
            }
            VALUE_END => self.value_end(byte, Fault::BAD_HEAD),
            LENGTH_START | LENGTH => self.content_length(byte),
            CODING_START | CODING => self.transfer_coding(byte),
            HEAD_END => self.head_end(byte),
            CHUNK_SIZE => self.chunk_size(byte),
            CHUNK_EXTENSION => self.value(byte, CHUNK_LINE_FEED),
            CHUNK_LINE_FEED => {
                let next = if self.skip == 0 { TRAILER_LINE } else { CHUNK };
                self.only(byte, LF, next, Fault::FRAMING)
            }
            CHUNK_END => self.only(byte, CR, CHUNK_END_LINE_FEED, Fault::FRAMING),
            CHUNK_END_LINE_FEED => {
                if byte != LF {
                    return self.refuse(Fault::FRAMING);
                }
                self.read = 0;
                self.token_to(CHUNK_SIZE)
            }
            TRAILER_LINE => self.line(byte, TRAILER_END, TRAILER),
            TRAILER => self.value(byte, TRAILER_LINE_FEED),
            TRAILER_LINE_FEED => self.only(byte, LF, TRAILER_LINE, Fault::BAD_HEAD),
            TRAILER_END => {
                if byte != LF {
                    return self.refuse(Fault::BAD_HEAD);
                }
                self.begin_request();
                Step::MORE
            }
            _ => self.refuse(Fault::BAD_HEAD),
        }
    }

    #[inline(always)]
    fn to(&mut self, state: u8) -> Step {
        self.state = state;
        Step::MORE
    }

    /// Goes on to a token.
    #[inline(always)]
    fn token_to(&mut self, state: u8) -> Step {
        self.token = [0; 3];
        self.token_len = 0;
        self.to(state)
    }

    #[inline(always)]
    fn push(&mut self, byte: u8) {
        self.push_exactly(lower(byte));
    }

    #[inline(always)]
    fn push_exactly(&mut self, byte: u8) {
        self.token = shift(self.token, byte);
        self.token_len = self.token_len.wrapping_add(1);
    }

    /// Whether the token is `word`. Names are pushed in lower case.
    #[inline(always)]
    const fn is_token(&self, word: &Word) -> bool {
        let ([a, b, c], [d, e, f]) = (self.token, word.bytes);
        self.token_len == word.len && a == d && b == e && c == f
    }

    /// The one byte that may stand here.
    #[inline(always)]
    fn only(&mut self, byte: u8, expected: u8, next: u8, fault: Fault) -> Step {
        if byte == expected {
            self.to(next)
        } else {
            self.refuse(fault)
        }
    }

    #[inline(always)]
    fn method(&mut self, byte: u8) -> Step {
        if byte == b' ' && self.token_len > 0 {
            if self.is_token(&const { Word::new(b"connect") }) {
                return self.refuse(Fault::CONNECT);
            }
            return self.to(TARGET_START);
        }
        // Servers pass over empty lines in front of a request (RFC 9112 section 2.2).
        if byte == CR && self.token_len == 0 {
            return self.to(EMPTY_LINE);
        }
        if !is_tchar(byte) || self.token_len >= MAX_METHOD {
            return self.refuse(Fault::NOT_HTTP);
        }
        self.push(byte);
        Step::MORE
    }

    /// `/path`, `*` or, to a proxy and understood by every server, `http://host/path`.
    #[inline(always)]
    fn target_start(&mut self, byte: u8) -> Step {
        if byte == b'/' || byte == b'*' {
            return self.to(TARGET);
        }
        if !byte.is_ascii_alphabetic() {
            return self.refuse(Fault::NOT_HTTP);
        }
        self.token_to(SCHEME);
        self.push(byte);
        Step::MORE
    }

    #[inline(always)]
    fn authority(&mut self, byte: u8) -> Step {
        if self.push_name(byte) {
            return Step::MORE;
        }
        if self.name_len == 0 {
            return self.refuse(Fault::BAD_NAME);
        }
        let step = if byte == b':' {
            self.to(AUTHORITY_PORT)
        } else {
            self.authority_end(byte)
        };
        if step == Step::MORE { Step::NAME } else { step }
    }

    #[inline(always)]
    fn authority_end(&mut self, byte: u8) -> Step {
        if byte == b'/' || byte == b'?' {
            self.to(TARGET)
        } else if byte == b' ' {
            self.token_to(VERSION)
        } else {
            self.refuse(Fault::BAD_NAME)
        }
    }

    #[inline(always)]
    fn version(&mut self, byte: u8) -> Step {
        if byte != CR {
            self.push_exactly(byte);
            return if self.token_len > 8 {
                self.refuse(Fault::NOT_HTTP)
            } else {
                Step::MORE
            };
        }
        if self.is_token(&const { Word::new(b"HTTP/1.0") }) {
            self.seen |= IS_OLD;
        } else if !self.is_token(&const { Word::new(b"HTTP/1.1") }) {
            return self.refuse(Fault::NOT_HTTP);
        }
        self.to(LINE_FEED)
    }

    /// The first byte of a line: of a field's name, or of the empty line at the end.
    #[inline(always)]
    fn line(&mut self, byte: u8, end: u8, field: u8) -> Step {
        if byte == CR {
            return self.to(end);
        }
        if byte == b' ' || byte == b'\t' {
            return self.refuse(Fault::FOLDED);
        }
        if !is_tchar(byte) {
            return self.refuse(Fault::BAD_HEAD);
        }
        self.token_to(field);
        self.push(byte);
        Step::MORE
    }

    #[inline(always)]
    fn field(&mut self, byte: u8) -> Step {
        if byte != b':' {
            if !is_tchar(byte) {
                return self.refuse(Fault::BAD_HEAD);
            }
            self.push(byte);
            return Step::MORE;
        }
        if self.is_token(&const { Word::new(b"host") }) {
            self.clear_name();
            return self.once(HAS_HOST, HOST_START, Fault::SEVERAL_HOSTS);
        }
        if self.is_token(&const { Word::new(b"content-length") }) {
            return self.once(HAS_LENGTH, LENGTH_START, Fault::FRAMING);
        }
        if self.is_token(&const { Word::new(b"transfer-encoding") }) {
            return self.once(IS_CHUNKED, CODING_START, Fault::FRAMING);
        }
        self.to(VALUE)
    }

    /// A field that may stand once.
    #[inline(always)]
    fn once(&mut self, bit: u8, next: u8, fault: Fault) -> Step {
        if self.seen & bit != 0 {
            return self.refuse(fault);
        }
        self.seen |= bit;
        self.token_to(next)
    }

    /// A value that does not matter.
    #[inline(always)]
    fn value(&mut self, byte: u8, next: u8) -> Step {
        if byte == CR {
            return self.to(next);
        }
        if byte < b' ' && byte != b'\t' || byte == 0x7f {
            return self.refuse(Fault::BAD_HEAD);
        }
        Step::MORE
    }

    /// White space behind a value, and the end of the line.
    #[inline(always)]
    fn value_end(&mut self, byte: u8, fault: Fault) -> Step {
        if byte == CR {
            self.to(LINE_FEED)
        } else if byte == b' ' || byte == b'\t' {
            self.to(VALUE_END)
        } else {
            self.refuse(fault)
        }
    }

    #[inline(always)]
    fn host_start(&mut self, byte: u8) -> Step {
        if byte == b' ' || byte == b'\t' {
            return Step::MORE;
        }
        if byte == CR {
            return self.refuse(Fault::NO_HOST);
        }
        if !self.push_name(byte) {
            return self.refuse(Fault::BAD_NAME);
        }
        self.to(HOST)
    }

    #[inline(always)]
    fn host(&mut self, byte: u8) -> Step {
        if self.push_name(byte) {
            return Step::MORE;
        }
        let step = if byte == b':' {
            self.to(HOST_PORT)
        } else {
            self.value_end(byte, Fault::BAD_NAME)
        };
        if step == Step::MORE { Step::NAME } else { step }
    }

    #[inline(always)]
    fn content_length(&mut self, byte: u8) -> Step {
        if byte.is_ascii_digit() && self.token_len < MAX_DIGITS {
            self.token_len = self.token_len.wrapping_add(1);
            self.skip = self
                .skip
                .wrapping_mul(10)
                .wrapping_add((byte - b'0') as u64);
            return self.to(LENGTH);
        }
        if self.state == LENGTH {
            return self.value_end(byte, Fault::FRAMING);
        }
        if byte == b' ' || byte == b'\t' {
            return Step::MORE;
        }
        self.refuse(Fault::FRAMING)
    }

    #[inline(always)]
    fn transfer_coding(&mut self, byte: u8) -> Step {
        if is_tchar(byte) {
            self.push(byte);
            return self.to(CODING);
        }
        if self.state == CODING_START && (byte == b' ' || byte == b'\t') {
            return Step::MORE;
        }
        if !self.is_token(&const { Word::new(b"chunked") }) {
            return self.refuse(Fault::FRAMING);
        }
        self.value_end(byte, Fault::FRAMING)
    }

    #[inline(always)]
    fn head_end(&mut self, byte: u8) -> Step {
        if byte != LF {
            return self.refuse(Fault::BAD_HEAD);
        }
        if self.seen & HAS_HOST == 0 {
            return self.refuse(Fault::NO_HOST);
        }
        if self.seen & IS_CHUNKED != 0 {
            // Either of both with a length or in HTTP/1.0 is how requests are smuggled
            // (RFC 9112 section 6.1).
            if self.seen & (HAS_LENGTH | IS_OLD) != 0 {
                return self.refuse(Fault::FRAMING);
            }
            self.skip = 0;
            return self.token_to(CHUNK_SIZE);
        }
        if self.skip > 0 {
            return self.to(BODY);
        }
        self.begin_request();
        Step::MORE
    }

    #[inline(always)]
    fn chunk_size(&mut self, byte: u8) -> Step {
        let lower = lower(byte);
        let digit = if byte.is_ascii_digit() {
            byte - b'0'
        } else if lower.wrapping_sub(b'a') < 6 {
            lower - b'a' + 10
        } else if self.token_len == 0 {
            return self.refuse(Fault::FRAMING);
        } else if byte == CR {
            return self.to(CHUNK_LINE_FEED);
        } else if byte == b';' {
            return self.to(CHUNK_EXTENSION);
        } else {
            return self.refuse(Fault::FRAMING);
        };
        if self.token_len >= MAX_DIGITS {
            return self.refuse(Fault::FRAMING);
        }
        self.token_len = self.token_len.wrapping_add(1);
        self.skip = self.skip << 4 | digit as u64;
        Step::MORE
    }
}

/// Whether `byte` may stand in a token (RFC 9110 section 5.6.2): a bit for each.
#[inline(always)]
const fn is_tchar(byte: u8) -> bool {
    const LOW: u64 = bits(b"!#$%&'*+-.0123456789", 0);
    const HIGH: u64 = bits(
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZ^_`abcdefghijklmnopqrstuvwxyz|~",
        64,
    );
    let set = if byte < 64 { LOW } else { HIGH };
    byte < 128 && set >> (byte & 63) & 1 != 0
}

/// A set of bytes from `first` on, as bits.
const fn bits(bytes: &[u8], first: u8) -> u64 {
    let mut set = 0;
    let mut index = 0;
    while index < bytes.len() {
        set |= 1 << (bytes[index] - first);
        index += 1;
    }
    set
}

/// A word to compare tokens with.
struct Word {
    len: u32,
    bytes: [u64; 3],
}

impl Word {
    /// `word`, packed as [`Stream::push`] packs.
    const fn new(word: &[u8]) -> Self {
        assert!(word.len() <= 24, "a longer word is not compared whole");
        let mut bytes = [0; 3];
        let mut len = 0;
        while (len as usize) < word.len() {
            bytes = shift(bytes, word[len as usize]);
            len += 1;
        }
        Self { len, bytes }
    }
}

/// The last 24 bytes, with `byte` behind them.
#[inline(always)]
const fn shift([a, b, c]: [u64; 3], byte: u8) -> [u64; 3] {
    [a << 8 | b >> 56, b << 8 | c >> 56, c << 8 | byte as u64]
}
