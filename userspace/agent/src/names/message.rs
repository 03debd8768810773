//! DNS messages between a job and its resolver: questions in, replies out.
//!
//! A job can send any bytes. The counts of the header are checked before anything is allocated
//! for them, and what is not one ordinary question is told from it here, so that the rest of the
//! module sees questions only.

use std::fmt::Write as _;

use hickory_proto::op::{
    Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode,
};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{DNSClass, Name as WireName, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use jobfence_policy::Name;

/// Bytes of the longest message that is read. A question needs 271; the rest is room for EDNS
/// options such as padding (RFC 7830, RFC 8467).
pub(super) const MAX_QUESTION: usize = 4096;

/// Bytes of the longest reply over UDP, when the client offers that much. There is no path MTU
/// to mind on the loopback interface.
const MAX_UDP_REPLY: u16 = 4096;

/// Records that a question may carry besides EDNS. A signature is one; none is used.
const MAX_ADDITIONALS: u16 = 4;

/// One question.
#[derive(Debug)]
pub(super) struct Question {
    metadata: Metadata,
    query: Query,
    edns: Option<Edns>,
    bytes: Box<[u8]>,
}

/// What a message that is no question deserves.
#[derive(Debug)]
pub(super) enum Unreadable {
    /// Silence: a reply, to which a reply could start a loop, or no DNS message at all.
    Ignore,
    /// A reply with this code. The question is not echoed, since it could not be trusted.
    Answer(Box<Metadata>, ResponseCode),
}

/// Reads one question.
pub(super) fn read(bytes: &[u8]) -> Result<Question, Unreadable> {
    let header = Header::read(&mut BinDecoder::new(bytes)).map_err(|_| Unreadable::Ignore)?;
    if header.metadata.message_type != MessageType::Query {
        return Err(Unreadable::Ignore);
    }
    let refuse = |code| Unreadable::Answer(Box::new(header.metadata), code);
    if header.metadata.op_code != OpCode::Query {
        return Err(refuse(ResponseCode::NotImp));
    }
    // More than one question is an error, RFC 9619 section 4.
    let counts = header.counts;
    if counts.queries != 1
        || counts.answers != 0
        || counts.authorities != 0
        || counts.additionals > MAX_ADDITIONALS
    {
        return Err(refuse(ResponseCode::FormErr));
    }
    let message = Message::from_vec(bytes).map_err(|_| refuse(ResponseCode::FormErr))?;
    let [query] =
        <[Query; 1]>::try_from(message.queries).map_err(|_| refuse(ResponseCode::FormErr))?;
    Ok(Question {
        metadata: header.metadata,
        query,
        edns: message.edns,
        bytes: bytes.into(),
    })
}

impl Question {
    /// The name, in the case in which it was asked.
    pub(super) fn name(&self) -> &WireName {
        self.query.name()
    }

    /// The message that it came in.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The record type that is asked for.
    pub(super) fn kind(&self) -> RecordType {
        self.query.query_type()
    }

    /// Whether the class is `IN`, the only one that holds addresses.
    pub(super) fn is_internet(&self) -> bool {
        self.query.query_class() == DNSClass::IN
    }

    /// Whether the client speaks a version of EDNS that nobody else speaks.
    pub(super) fn is_of_unknown_edns(&self) -> bool {
        self.edns.as_ref().is_some_and(|edns| edns.version() != 0)
    }

    /// Bytes that a reply over UDP may have, RFC 6891 section 6.2.3.
    pub(super) fn udp_limit(&self) -> usize {
        let offered = self.edns.as_ref().map_or(0, Edns::max_payload);
        usize::from(offered.clamp(512, MAX_UDP_REPLY))
    }
}

/// What is answered to a question.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) code: ResponseCode,
    pub(super) answers: Vec<Record>,
    /// Why, for clients that understand Extended DNS Errors.
    pub(super) error: Option<(ExtendedError, String)>,
}

impl Reply {
    /// A reply without records. It has no SOA record either, so nobody caches it (RFC 2308
    /// section 5): the name may be allowed later.
    pub(super) fn empty(code: ResponseCode) -> Self {
        Self::with(code, Vec::new())
    }

    /// A reply with records.
    pub(super) fn with(code: ResponseCode, answers: Vec<Record>) -> Self {
        Self {
            code,
            answers,
            error: None,
        }
    }

    /// Adds the reason.
    pub(super) fn because(mut self, error: ExtendedError, text: String) -> Self {
        self.error = Some((error, text));
        self
    }
}

/// Extended DNS Error codes, RFC 8914 section 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum ExtendedError {
    /// None of the others: a limit of this resolver.
    Other = 0,
    /// "Blocked": by a policy of whoever runs the resolver. Not "Filtered" (17), which is a
    /// block that the client asked for, nor "Censored" (16), which somebody outside demands.
    Blocked = 15,
    /// "Network Error": the upstream resolvers could not be talked to.
    NetworkError = 23,
}

/// Code of the EDNS option that holds an Extended DNS Error, RFC 8914 section 2.
const EDE_OPTION: u16 = 15;

/// Bytes of its text. Header, the longest question and this fit into 512 bytes.
const MAX_EDE_TEXT: usize = 200;

/// Encodes the reply to `question`. When it is longer than `limit` bytes it is sent without its
/// records and marked as truncated, so that the client asks again over TCP.
pub(super) fn encode(question: &Question, reply: Reply, limit: usize) -> Vec<u8> {
    let mut message = Message::response(question.metadata.id, OpCode::Query);
    message.metadata = Metadata::response_from_request(&question.metadata);
    message.metadata.recursion_available = true;
    message.metadata.response_code = reply.code;
    message.add_query(question.query.clone());
    message.answers = reply.answers;
    if let Some(asked) = &question.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP_REPLY);
        // RFC 3225 section 3: copied, whether or not it has an effect.
        edns.set_dnssec_ok(asked.flags().dnssec_ok);
        if let Some((code, text)) = reply.error {
            let mut end = text.len().min(MAX_EDE_TEXT);
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            let mut option = (code as u16).to_be_bytes().to_vec();
            option.extend_from_slice(&text.as_bytes()[..end]);
            edns.options_mut()
                .insert(EdnsOption::Unknown(EDE_OPTION, option));
        }
        message.set_edns(edns);
    }
    match message.to_vec() {
        Ok(bytes) if bytes.len() <= limit => bytes,
        _ => {
            message.answers.clear();
            message.metadata.truncation = true;
            message.to_vec().unwrap_or_default()
        }
    }
}

/// Encodes the reply to a message that is no question.
pub(super) fn encode_error(asked: &Metadata, code: ResponseCode) -> Vec<u8> {
    let mut message = Message::response(asked.id, asked.op_code);
    message.metadata = Metadata::response_from_request(asked);
    message.metadata.response_code = code;
    message.to_vec().unwrap_or_default()
}

/// A name as text: lower case, without the dot at the end, `\DDD` (RFC 1035 section 5.1) for
/// every byte that a host name does not have.
pub(super) fn text(name: &WireName) -> String {
    let mut text = String::with_capacity(name.len());
    for label in name.iter() {
        if !text.is_empty() {
            text.push('.');
        }
        for byte in label {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => {
                    text.push(char::from(byte.to_ascii_lowercase()));
                }
                // Writing to a string cannot fail.
                _ => drop(write!(text, "\\{byte:03}")),
            }
        }
    }
    if text.is_empty() {
        text.push('.');
    }
    text
}

/// The host name that `text` gave, if it is one.
pub(super) fn host_name(text: &str) -> Option<Name> {
    // Nothing that was escaped, and nothing that the policy language would read as something
    // else than a plain name.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !text.bytes().all(plain) {
        return None;
    }
    Name::parse(text).ok()
}

/// The mnemonic of a response code, as in the IANA registry of DNS RCODEs.
pub(super) fn code_word(code: ResponseCode) -> String {
    let word = match code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::NotImp => "NOTIMP",
        ResponseCode::Refused => "REFUSED",
        ResponseCode::BADVERS => "BADVERS",
        _ => return format!("RCODE{}", u16::from(code)),
    };
    word.to_owned()
}

/// The mnemonic of a record type, `TYPE` and its number for an unknown one (RFC 3597 section 5).
pub(super) fn kind_word(kind: RecordType) -> String {
    match kind {
        RecordType::Unknown(number) => format!("TYPE{number}"),
        _ => kind.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn question(name: WireName, edns: Option<u16>) -> Vec<u8> {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(name, RecordType::A));
        if let Some(payload) = edns {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            message.set_edns(edns);
        }
        message.to_vec().unwrap()
    }

    fn ascii(text: &str) -> WireName {
        WireName::from_ascii(text).unwrap()
    }

    #[test]
    fn a_question_is_echoed_in_the_case_in_which_it_was_asked() {
        let question = read(&question(ascii("MiXed.Test."), None)).unwrap();
        let bytes = encode(&question, Reply::empty(ResponseCode::NXDomain), 512);
        let reply = Message::from_vec(&bytes).unwrap();
        assert_eq!(reply.queries[0].name().to_ascii(), "MiXed.Test.");
        assert_eq!(reply.metadata.id, 7);
        assert!(reply.metadata.recursion_available && reply.metadata.recursion_desired);
        assert!(
            reply.edns.is_none(),
            "EDNS in a reply to a question without"
        );
    }

    #[test]
    fn the_reason_fits_into_the_smallest_message() {
        let label = "x".repeat(63);
        let longest = format!("{label}.{label}.{label}.{}.", "x".repeat(61));
        let question = read(&question(ascii(&longest), Some(512))).unwrap();
        let reply = Reply::empty(ResponseCode::NXDomain)
            .because(ExtendedError::Blocked, "y".repeat(10_000));
        let bytes = encode(&question, reply, question.udp_limit());
        assert!(bytes.len() <= 512, "{} bytes", bytes.len());
        let reply = Message::from_vec(&bytes).unwrap();
        assert!(!reply.metadata.truncation);
        assert!(reply.edns.unwrap().option(EDE_OPTION.into()).is_some());
    }

    #[test]
    fn several_questions_or_none_are_a_format_error() {
        let one = question(ascii("a.test."), None);
        for count in [0, 2, 0xffff_u16] {
            let mut bytes = one.clone();
            bytes[4..6].copy_from_slice(&count.to_be_bytes());
            assert!(
                matches!(
                    read(&bytes),
                    Err(Unreadable::Answer(_, ResponseCode::FormErr))
                ),
                "{count} questions"
            );
        }
        for section in [6, 8, 10] {
            let mut bytes = one.clone();
            bytes[section..section + 2].copy_from_slice(&[0xff, 0xff]);
            assert!(
                matches!(
                    read(&bytes),
                    Err(Unreadable::Answer(_, ResponseCode::FormErr))
                ),
                "65535 records in the section counted at {section}"
            );
        }
    }

    #[test]
    fn other_operations_are_not_implemented_and_replies_are_not_replied_to() {
        let mut bytes = question(ascii("a.test."), None);
        bytes[2] = 5 << 3;
        assert!(matches!(
            read(&bytes),
            Err(Unreadable::Answer(_, ResponseCode::NotImp))
        ));
        bytes[2] = 0x80;
        assert!(matches!(read(&bytes), Err(Unreadable::Ignore)));
        assert!(matches!(read(&bytes[..11]), Err(Unreadable::Ignore)));
    }

    #[test]
    fn names_that_are_no_host_names_are_shown_safely_and_match_nothing() {
        let label = |bytes: &[u8]| WireName::from_labels([bytes, b"test"]).unwrap();
        let table: [(&[u8], &str); 4] = [
            (b"a.b", "a\\046b.test"),
            (b"\x00\x1b[31m", "\\000\\027\\09131m.test"),
            (b"\\", "\\092.test"),
            ("bücher".as_bytes(), "b\\195\\188cher.test"),
        ];
        for (bytes, expected) in table {
            let shown = text(&label(bytes));
            assert_eq!(shown, expected);
            assert!(host_name(&shown).is_none(), "{shown} taken for a host name");
        }
        assert_eq!(text(&WireName::root()), ".");
        assert!(host_name(".").is_none());
        assert!(host_name("*.test").is_none());
        assert_eq!(host_name("a-1.test").unwrap().as_str(), "a-1.test");
    }

    #[test]
    fn unknown_types_are_named_by_number() {
        assert_eq!(kind_word(RecordType::from(65_280)), "TYPE65280");
        assert_eq!(kind_word(RecordType::AAAA), "AAAA");
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_or_answering_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..600),
            plausible: bool,
        ) {
            if plausible && bytes.len() > 12 {
                bytes[2] = 1;
                let additionals = bytes[11] % 3;
                bytes[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, additionals]);
            }
            match read(&bytes) {
                Ok(question) => {
                    let shown = text(question.name());
                    prop_assert!(shown.is_ascii());
                    let reply = Reply::empty(ResponseCode::NXDomain)
                        .because(ExtendedError::Blocked, shown);
                    let bytes = encode(&question, reply, question.udp_limit());
                    prop_assert!(Message::from_vec(&bytes).is_ok());
                }
                Err(Unreadable::Answer(metadata, code)) => {
                    prop_assert!(Message::from_vec(&encode_error(&metadata, code)).is_ok());
                }
                Err(Unreadable::Ignore) => {}
            }
        }
    }
}
