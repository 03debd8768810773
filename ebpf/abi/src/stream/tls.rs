//! The grammar of a ClientHello (RFC 8446 sections 4.1.2 and 5.1) and of the server name in it
//! (RFC 6066 section 3).
//!
//! A server can answer with a HelloRetryRequest (RFC 8446 section 4.1.4), and then the client sends
//! a second ClientHello. It has to have the same name, but there are servers that do not compare
//! and take the second one, so that is read too. What comes in its place otherwise, the rest of the
//! handshake, is known by its record's type or by its first bytes. Of the encrypted handshake messages
//! of resumed TLS 1.2 sessions one in 30,000 looks like a ClientHello, and is refused.

use super::{Fault, START, Step, Stream};

/// The content type of a handshake record, the first byte of a connection.
pub(super) const HANDSHAKE: u8 = 22;
/// Of records that servers ignore between two ClientHellos: what clients put there to please
/// middleboxes (RFC 8446 appendix D.4), warnings, and after a hello that announces it early data
/// (section 4.2.10).
const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const APPLICATION_DATA: u8 = 23;
/// The longest record, in bytes, and the longest that is encrypted (RFC 8446 section 5.2).
const MAX_RECORD: u32 = 1 << 14;
const MAX_ENCRYPTED_RECORD: u32 = MAX_RECORD + 256;
/// The longest ClientHello that is read, in bytes. With a post-quantum key share it has about
/// 1,800; servers take no more than a few times this.
const MAX_HELLO: u32 = 1 << 14;
/// The longest that a server is known to take.
const MAX_HELLO_OF_SERVERS: u32 = 131_396;
/// The handshake type `client_hello`.
const CLIENT_HELLO: u32 = 1;
/// The extension type `server_name`.
const SERVER_NAME: u32 = 0;
/// The extension type `early_data`.
const EARLY_DATA: u32 = 42;
/// The extension type `encrypted_client_hello`.
const ENCRYPTED_CLIENT_HELLO: u32 = 0xfe0d;
/// The name type `host_name`.
const HOST_NAME: u32 = 0;
/// Bytes of `random`.
const RANDOM: u64 = 32;

// The states, each named for the number that is read in it.
const TYPE: u8 = 1;
const LENGTH: u8 = 2;
const VERSION: u8 = 3;
const SESSION: u8 = 4;
const CIPHERS: u8 = 5;
const COMPRESSION: u8 = 6;
const EXTENSIONS: u8 = 7;
const EXTENSION_TYPE: u8 = 8;
const EXTENSION_LENGTH: u8 = 9;
const LIST_LENGTH: u8 = 10;
const NAME_TYPE: u8 = 11;
const NAME_LENGTH: u8 = 12;
/// The name itself, byte by byte.
const NAME: u8 = 13;
/// A record between two ClientHellos, which is passed over.
const BETWEEN: u8 = 14;
/// Nothing more is read.
const FINISHED: u8 = 15;

/// [`Stream::seen`]: the extension with the name.
const NAMED: u8 = 1;
/// The first ClientHello.
const SECOND: u8 = 2;
/// That it announces early data.
const EARLY: u8 = 4;

const _: () = assert!(START < TYPE && FINISHED < super::HTTP);

impl Stream {
    #[inline(always)]
    pub(super) fn begin_hello(&mut self) {
        self.expect(TYPE, 1);
    }

    /// Goes on to a number of `bytes` bytes.
    #[inline(always)]
    fn expect(&mut self, state: u8, bytes: u8) {
        self.state = state;
        self.need = bytes;
        self.number = 0;
    }

    /// Whether the ClientHello has been read to its end, which is the end of its extensions.
    #[inline(always)]
    pub(super) const fn hello_is_read(&self) -> bool {
        self.state == EXTENSION_TYPE && self.need == 2 && self.hello == 0
    }

    /// The end of a ClientHello. It is the end of its record too.
    #[inline(always)]
    pub(super) fn end_hello(&mut self) -> Step {
        if self.seen & NAMED == 0 {
            return self.refuse(Fault::NO_SERVER_NAME);
        }
        if self.record != 0 {
            return self.refuse(Fault::BAD_HELLO);
        }
        if self.seen & SECOND != 0 {
            self.finish();
        } else {
            self.seen = SECOND | self.seen & EARLY;
            self.expect(TYPE, 1);
        }
        Step::HELLO
    }

    /// Whether the connection has shown what it has to: nothing that follows can be a ClientHello.
    #[must_use]
    #[inline(always)]
    pub const fn is_done(&self) -> bool {
        self.state == FINISHED
    }

    #[inline(always)]
    fn finish(&mut self) -> Step {
        self.state = FINISHED;
        Step::DONE
    }

    /// What is no ClientHello where one may be: first it is wrong, and later the rest of the
    /// handshake.
    #[inline(always)]
    fn no_hello(&mut self, fault: Fault) -> Step {
        if self.seen & SECOND != 0 {
            self.finish()
        } else {
            self.refuse(fault)
        }
    }

    /// Reads a byte of a record.
    #[inline(always)]
    pub(super) fn tls(&mut self, byte: u8) -> Step {
        if self.record == 0 {
            return self.record_header(byte);
        }
        self.record = self.record.wrapping_sub(1);
        if self.state >= VERSION && self.state <= NAME {
            if self.hello == 0 {
                return self.refuse(Fault::BAD_HELLO);
            }
            self.hello = self.hello.wrapping_sub(1);
        }
        if self.state == NAME {
            return self.server_name(byte);
        }
        self.number = self.number << 8 | byte as u32;
        self.need = self.need.wrapping_sub(1);
        if self.need > 0 {
            return Step::MORE;
        }
        self.number_is_read()
    }

    /// Reads a record's header: type, version, length. The ClientHello goes on over as many records
    /// as it likes, with nothing else between them.
    #[inline(always)]
    fn record_header(&mut self, byte: u8) -> Step {
        let place = self.header;
        self.header = place.wrapping_add(1);
        if place == 0 {
            if self.state == BETWEEN {
                self.expect(TYPE, 1);
            }
            // Behind the first ClientHello, and not within the second.
            let between = self.seen & SECOND != 0 && self.state == TYPE;
            let ignored = byte == CHANGE_CIPHER_SPEC
                || byte == ALERT
                || byte == APPLICATION_DATA && self.seen & EARLY != 0;
            if between && ignored {
                self.state = BETWEEN;
            } else if byte != HANDSHAKE {
                return if between {
                    self.finish()
                } else {
                    self.refuse(Fault::NOT_TLS)
                };
            }
        }
        // The low byte of the version says nothing and is not looked at (RFC 8446 section 5.1).
        if place == 1 && byte != 3 {
            return self.refuse(Fault::NOT_TLS);
        }
        if place == 3 {
            // Not in `number`, which the record may have interrupted.
            self.token_len = byte as u32;
        } else if place == 4 {
            self.header = 0;
            self.record = self.token_len << 8 | byte as u32;
            // Handshake records are never empty (RFC 8446 section 5.1).
            let longest = if self.state == BETWEEN {
                self.skip = self.record as u64;
                MAX_ENCRYPTED_RECORD
            } else {
                MAX_RECORD
            };
            if self.record == 0 || self.record > longest {
                return self.refuse(Fault::BAD_HELLO);
            }
        }
        Step::MORE
    }

    /// Goes on behind a number.
    #[inline(always)]
    fn number_is_read(&mut self) -> Step {
        let value = self.number;
        match self.state {
            TYPE => {
                if value != CLIENT_HELLO {
                    return self.no_hello(Fault::NOT_TLS);
                }
                self.expect(LENGTH, 3);
            }
            LENGTH => {
                if value > MAX_HELLO_OF_SERVERS {
                    return self.no_hello(Fault::TOO_LONG);
                }
                if value > MAX_HELLO {
                    return self.refuse(Fault::TOO_LONG);
                }
                self.hello = value;
                self.expect(VERSION, 2);
            }
            VERSION => {
                self.expect(SESSION, 1);
                return self.pass(RANDOM);
            }
            SESSION => {
                if value > 32 {
                    return self.refuse(Fault::BAD_HELLO);
                }
                self.expect(CIPHERS, 2);
                return self.pass(value as u64);
            }
            CIPHERS => {
                if value == 0 || value & 1 != 0 {
                    return self.refuse(Fault::BAD_HELLO);
                }
                self.expect(COMPRESSION, 1);
                return self.pass(value as u64);
            }
            COMPRESSION => {
                if value == 0 {
                    return self.refuse(Fault::BAD_HELLO);
                }
                self.expect(EXTENSIONS, 2);
                let left = self.hello as u64;
                // A ClientHello without extensions ends here (RFC 5246 section 7.4.1.2).
                if left == value as u64 {
                    return self.refuse(Fault::NO_SERVER_NAME);
                }
                return self.pass(value as u64);
            }
            EXTENSIONS => {
                if value != self.hello {
                    return self.refuse(Fault::BAD_HELLO);
                }
                self.expect(EXTENSION_TYPE, 2);
            }
            EXTENSION_TYPE => {
                self.field = value;
                self.expect(EXTENSION_LENGTH, 2);
            }
            EXTENSION_LENGTH => return self.extension(value),
            LIST_LENGTH => {
                if value.wrapping_add(2) != self.field {
                    return self.refuse(Fault::BAD_HELLO);
                }
                self.field = value;
                self.expect(NAME_TYPE, 1);
            }
            NAME_TYPE => {
                if value != HOST_NAME {
                    return self.refuse(Fault::BAD_HELLO);
                }
                self.expect(NAME_LENGTH, 2);
            }
            NAME_LENGTH => {
                if value.wrapping_add(3) != self.field {
                    return self.refuse(if value.wrapping_add(3) < self.field {
                        Fault::SEVERAL_SERVER_NAMES
                    } else {
                        Fault::BAD_HELLO
                    });
                }
                if value == 0 {
                    return self.refuse(Fault::BAD_NAME);
                }
                self.field = value;
                self.clear_name();
                self.expect(NAME, 0);
            }
            _ => return self.refuse(Fault::BAD_HELLO),
        }
        Step::MORE
    }

    /// Enters an extension of `length` bytes, whose type is in `field`.
    #[inline(always)]
    fn extension(&mut self, length: u32) -> Step {
        if self.field == ENCRYPTED_CLIENT_HELLO {
            return self.refuse(Fault::ENCRYPTED);
        }
        if self.field == EARLY_DATA {
            self.seen |= EARLY;
        }
        if self.field != SERVER_NAME {
            self.expect(EXTENSION_TYPE, 2);
            return self.pass(length as u64);
        }
        if self.seen & NAMED != 0 {
            return self.refuse(Fault::SEVERAL_SERVER_NAMES);
        }
        // The list's length, one entry's type and length.
        if length < 5 || length > self.hello {
            return self.refuse(Fault::BAD_HELLO);
        }
        self.seen |= NAMED;
        self.field = length;
        self.expect(LIST_LENGTH, 2);
        Step::MORE
    }

    /// Passes over `count` bytes of the ClientHello.
    #[inline(always)]
    fn pass(&mut self, count: u64) -> Step {
        if count > self.hello as u64 {
            return self.refuse(Fault::BAD_HELLO);
        }
        self.skip = count;
        Step::MORE
    }

    /// Reads a byte of the name.
    #[inline(always)]
    fn server_name(&mut self, byte: u8) -> Step {
        if !self.push_name(byte) {
            return self.refuse(Fault::BAD_NAME);
        }
        self.field = self.field.wrapping_sub(1);
        if self.field > 0 {
            return Step::MORE;
        }
        self.expect(EXTENSION_TYPE, 2);
        Step::NAME
    }
}
