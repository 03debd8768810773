#![expect(
    clippy::cast_possible_truncation,
    reason = "lengths of what is made here are small"
)]

extern crate std;

use std::{format, string::String, vec, vec::Vec};

use proptest::prelude::*;

use super::*;

struct Sent<'a> {
    first: u32,
    bytes: &'a [u8],
}

impl Bytes for Sent<'_> {
    fn at(&self, position: u32) -> u32 {
        let index = position.wrapping_sub(self.first) as usize;
        self.bytes.get(index).map_or(256, |&byte| byte.into())
    }
}

/// Where a stream that begins near the end of the sequence numbers begins.
const FIRST: u32 = u32::MAX - 20;

/// What a connection was found to be: the names that it gave, and why it was refused.
#[derive(Debug, PartialEq)]
struct Found {
    names: Vec<String>,
    fault: Fault,
    /// Complete ClientHellos.
    hellos: u32,
    done: bool,
}

/// Reads `bytes` in segments that end at `cuts`.
fn read(checks: Checks, bytes: &[u8], cuts: &[usize]) -> Found {
    let mut stream = Stream::new(FIRST, checks, 7);
    let mut found = Found {
        names: vec![],
        fault: Fault::NONE,
        hellos: 0,
        done: false,
    };
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    for end in ends {
        let sent = Sent {
            first: FIRST,
            bytes: &bytes[..end],
        };
        let before = stream.next;
        let mut steps = 0;
        loop {
            match stream.step(&sent, FIRST.wrapping_add(end as u32)) {
                Step::MORE => {}
                Step::NAME => found
                    .names
                    .push(String::from_utf8(stream.name().collect()).unwrap()),
                Step::END => break,
                Step::HELLO => found.hellos += 1,
                Step::DONE => {
                    found.done = true;
                    return found;
                }
                _ => {
                    found.fault = stream.fault;
                    return found;
                }
            }
            steps += 1;
            let read = stream.next.wrapping_sub(before);
            assert!(
                steps <= read + Stream::IDLE_STEPS,
                "steps that read nothing"
            );
        }
    }
    found
}

fn hello_with(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut all = vec![];
    for (kind, data) in extensions {
        all.extend(kind.to_be_bytes());
        all.extend((data.len() as u16).to_be_bytes());
        all.extend(data);
    }
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(32);
    body.extend([8; 32]);
    body.extend([0, 4, 0x13, 1, 0x13, 2, 1, 0]);
    body.extend((all.len() as u16).to_be_bytes());
    body.extend(all);
    let mut message = vec![1, 0];
    message.extend((body.len() as u16).to_be_bytes());
    message.extend(body);
    message
}

fn server_name(name: &str) -> (u16, Vec<u8>) {
    let length = name.len() as u16;
    let mut data = (length + 3).to_be_bytes().to_vec();
    data.push(0);
    data.extend(length.to_be_bytes());
    data.extend(name.bytes());
    (0, data)
}

/// `message` in records of at most `size` bytes.
fn records(message: &[u8], size: usize) -> Vec<u8> {
    let mut all = vec![];
    for part in message.chunks(size) {
        all.extend([22, 3, 1]);
        all.extend((part.len() as u16).to_be_bytes());
        all.extend(part);
    }
    all
}

fn key_share() -> (u16, Vec<u8>) {
    (51, vec![9; 1300])
}

fn hello(name: &str) -> Vec<u8> {
    let extensions = [
        key_share(),
        server_name(name),
        (0x2a2a, vec![]),
        (16, vec![1; 9]),
    ];
    records(&hello_with(&extensions), 16384)
}

fn tls(bytes: &[u8]) -> Found {
    read(Checks::TLS, bytes, &[])
}

fn http(text: &str) -> Found {
    read(Checks::HTTP, text.as_bytes(), &[])
}

fn names(names: &[&str]) -> Found {
    Found {
        names: names.iter().map(|name| (*name).into()).collect(),
        fault: Fault::NONE,
        hellos: 0,
        done: false,
    }
}

/// A complete ClientHello for `name`, and perhaps what comes next.
fn complete(name: &str, done: bool) -> Found {
    Found {
        hellos: 1,
        done,
        ..names(&[name])
    }
}

#[test]
fn a_server_name_is_found() {
    assert_eq!(
        tls(&hello("Git.Example.COM")),
        complete("git.example.com", false)
    );
    // With something behind it, as early data is.
    let early = [hello("a.test"), vec![23, 3, 3, 0, 1, 0]].concat();
    assert_eq!(tls(&early), complete("a.test", true));
}

#[test]
fn a_hello_that_is_not_complete_is_neither_allowed_nor_refused() {
    let hello = hello("a.test");
    assert_eq!(tls(&hello[..hello.len() - 1]), names(&["a.test"]));
    assert_eq!(tls(&hello[..60]), names(&[]));
    assert_eq!(tls(&[]), names(&[]));
}

#[test]
fn each_fault_of_a_hello_is_told_apart() {
    let one = |extensions: &[_]| tls(&records(&hello_with(extensions), 16384)).fault;
    let two = {
        let mut data = vec![0, 18];
        for name in [b"a.test", b"b.test"] {
            data.extend([0, 0, 6]);
            data.extend(name);
        }
        (0, data)
    };
    assert_eq!(one(&[key_share()]), Fault::NO_SERVER_NAME);
    assert_eq!(one(&[]), Fault::NO_SERVER_NAME);
    assert_eq!(one(&[two]), Fault::SEVERAL_SERVER_NAMES);
    assert_eq!(
        one(&[server_name("a.test"), server_name("b.test")]),
        Fault::SEVERAL_SERVER_NAMES
    );
    let encrypted = (0xfe0d, vec![0; 40]);
    assert_eq!(one(&[server_name("a.test"), encrypted]), Fault::ENCRYPTED);
    assert_eq!(one(&[server_name("a.te\0st")]), Fault::BAD_NAME);
    assert_eq!(one(&[server_name("[2001:db8::1]")]), Fault::BAD_NAME);
    assert_eq!(one(&[server_name("")]), Fault::BAD_NAME);
    assert_eq!(one(&[server_name(&"a".repeat(253))]), Fault::NONE);
    assert_eq!(one(&[server_name(&"a".repeat(254))]), Fault::BAD_NAME);
    assert_eq!(
        one(&[(0, vec![0, 9, 0, 0, 5, 1, 2, 3, 4, 5])]),
        Fault::BAD_HELLO
    );
    for first in [
        "SSH-2.0-x\r\n",
        "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n",
        "\x17\x03\x03",
    ] {
        assert_eq!(tls(first.as_bytes()).fault, Fault::NOT_TLS, "{first}");
    }
    // A record that is empty, or too long; a ClientHello that is too long.
    assert_eq!(tls(&[22, 3, 1, 0, 0]).fault, Fault::BAD_HELLO);
    assert_eq!(tls(&[22, 3, 1, 0x40, 1]).fault, Fault::BAD_HELLO);
    assert_eq!(tls(&[22, 3, 1, 1, 0, 1, 0, 0x40, 1]).fault, Fault::TOO_LONG);
    // Something between two records of one hello.
    let mut parts = records(&hello_with(&[server_name("a.test")]), 40);
    parts[45] = 20;
    assert_eq!(tls(&parts).fault, Fault::NOT_TLS);
}

#[test]
fn no_length_of_a_hello_can_be_changed_unnoticed() {
    let message = hello_with(&[server_name("a.test")]);
    // The high and low bytes of the message's, the extensions', the name's three lengths.
    let name = message.len() - 6;
    for place in [
        2,
        3,
        name - 1,
        name - 2,
        name - 4,
        name - 5,
        name - 6,
        name - 7,
        name - 10,
        name - 11,
    ] {
        for change in [1_u8, 0xff] {
            let mut changed = message.clone();
            changed[place] = changed[place].wrapping_add(change);
            let found = tls(&records(&changed, 16384));
            assert_eq!(
                found.hellos, 0,
                "byte {place} changed by {change}: {found:?}"
            );
        }
    }
}

#[test]
fn a_second_hello_is_read_and_nothing_else_is_taken_for_one() {
    let change = [20, 3, 3, 0, 1, 1];
    let then = |parts: &[&[u8]]| tls(&[&[&hello("a.test")[..]], parts].concat().concat());
    let second = hello("b.test");
    let warning = [21, 3, 3, 0, 2, 1, 90];
    for parts in [
        &[&second[..]][..],
        &[&change, &second],
        &[&change, &change, &second],
        &[&warning, &second],
    ] {
        let found = then(parts);
        assert_eq!(found.names, ["a.test", "b.test"]);
        assert_eq!((found.hellos, found.done), (2, true), "{found:?}");
    }
    let split = records(&hello_with(&[server_name("b.test")]), 2);
    assert_eq!(then(&[&split]).names, ["a.test", "b.test"]);
    // Data, a certificate, a key exchange, and what is encrypted behind a change.
    let rest: [&[&[u8]]; 4] = [
        &[&[23, 3, 3, 0, 1, 0]],
        &[&[22, 3, 3, 0, 9, 11, 0]],
        &[&[22, 3, 3, 0, 9, 16, 0]],
        &[&change, &[22, 3, 3, 0, 40, 1, 0x20, 7, 7]],
    ];
    for parts in rest {
        assert_eq!(then(parts), complete("a.test", true), "{parts:?}");
    }
    // Early data is passed over where it was announced.
    let early = records(&hello_with(&[(42, vec![]), server_name("a.test")]), 16384);
    let data = [vec![23, 3, 3, 0x41, 0], vec![0; 0x4100]].concat();
    let found = tls(&[&early[..], &data, &second].concat());
    assert_eq!((found.hellos, found.done), (2, true), "{found:?}");
    let nameless = records(&hello_with(&[key_share()]), 16384);
    assert_eq!(then(&[&nameless]).fault, Fault::NO_SERVER_NAME);
    // Something between two records of the second hello.
    assert_eq!(then(&[&split[..14], &change]).fault, Fault::NOT_TLS);
    assert_eq!(
        then(&[&[22, 3, 3, 0, 9, 1, 1, 0, 0]]).fault,
        Fault::TOO_LONG
    );
}

#[test]
fn a_hello_ends_with_its_record() {
    let mut message = hello_with(&[server_name("a.test")]);
    message.push(1);
    assert_eq!(tls(&records(&message, 16384)).fault, Fault::BAD_HELLO);
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";

#[test]
fn each_request_of_a_connection_is_read() {
    let requests = format!(
        "{GET}\r\nPOST /x HTTP/1.1\r\nhost:\t B.Test:8080 \r\nContent-Length: {}\r\n\r\n{GET}\
         PUT * HTTP/1.1\r\nHOST:c.test\r\nTransfer-Encoding: Chunked\r\n\r\n\
         {:X};name=value\r\n{GET}\r\n1\r\nx\r\n000\r\nX-Trailer: 1\r\n\r\n\
         GET HTTP://d.test:80/x?y HTTP/1.0\r\nX: \x09y\u{e9}\r\nHost: e.test\r\n\r\n",
        GET.len(),
        GET.len(),
    );
    let found = http(&requests);
    assert_eq!(
        found,
        names(&["a.test", "b.test", "c.test", "d.test", "e.test"])
    );
}

#[test]
fn each_fault_of_a_request_is_told_apart() {
    for (text, fault) in [
        ("GET / HTTP/1.1\r\n\r\n", Fault::NO_HOST),
        // Not a chunked body: what follows is the next request.
        (
            "POST / HTTP/1.1\r\nHost: a.test\r\nXransfer-Encoding: chunked\r\n\r\n40\r\n",
            Fault::NOT_HTTP,
        ),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", Fault::NO_HOST),
        ("GET / HTTP/1.1\r\nXHost: a.test\r\n\r\n", Fault::NO_HOST),
        (
            "GET / HTTP/1.1\r\nHost: a.test\r\nhost: a.test\r\n\r\n",
            Fault::SEVERAL_HOSTS,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a.test\r\n b.test\r\n\r\n",
            Fault::FOLDED,
        ),
        ("GET / HTTP/1.1\r\n Host: b.test\r\n\r\n", Fault::FOLDED),
        ("GET / HTTP/1.1\r\nHost : a.test\r\n\r\n", Fault::BAD_HEAD),
        ("GET / HTTP/1.1\r\nHost\0: a.test\r\n\r\n", Fault::BAD_HEAD),
        ("GET / HTTP/1.1\nHost: a.test\n\n", Fault::NOT_HTTP),
        ("GET / HTTP/1.1\r\nHost: a.test\n\r\n", Fault::BAD_NAME),
        (
            "GET / HTTP/1.1\r\nX: a\nHost: b.test\r\n\r\n",
            Fault::BAD_HEAD,
        ),
        (
            "GET / HTTP/1.1\r\nX: a\rHost: b.test\r\n\r\n",
            Fault::BAD_HEAD,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a.test, b.test\r\n\r\n",
            Fault::BAD_NAME,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a.test b.test\r\n\r\n",
            Fault::BAD_HEAD,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a.test@b.test\r\n\r\n",
            Fault::BAD_NAME,
        ),
        ("GET / HTTP/1.1\r\nHost: a.test:8x\r\n\r\n", Fault::BAD_NAME),
        (
            "GET / HTTP/1.1\r\nHost: [2001:db8::1]\r\n\r\n",
            Fault::BAD_NAME,
        ),
        ("GET http://a.test@b.test/ HTTP/1.1\r\n", Fault::BAD_NAME),
        ("GET http:/// HTTP/1.1\r\n", Fault::BAD_NAME),
        ("GET https://a.test/ HTTP/1.1\r\n", Fault::BAD_HEAD),
        (
            "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test\r\n\r\n",
            Fault::CONNECT,
        ),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Fault::NOT_HTTP),
        ("GET /\r\n", Fault::NOT_HTTP),
        ("GET / http/1.1\r\n", Fault::NOT_HTTP),
        ("GET / HTTP/1.1\r\nHost: .a.test\r\n\r\n", Fault::BAD_NAME),
        ("GET / HTTP/1.1\r\nHost: a..test\r\n\r\n", Fault::BAD_NAME),
        ("GET / HTTP/1.12\r\n", Fault::NOT_HTTP),
        ("\u{16}\u{3}\u{1}", Fault::NOT_HTTP),
        ("SSH-2.0-x\r\n", Fault::NOT_HTTP),
        (
            "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1\r\nContent-Length: 1\r\n",
            Fault::FRAMING,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1, 1\r\n",
            Fault::FRAMING,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: -1\r\n",
            Fault::FRAMING,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length:\r\n",
            Fault::FRAMING,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 9999999999999999\r\n",
            Fault::FRAMING,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: gzip, chunked\r\n",
            Fault::FRAMING,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: xchunked\r\n",
            Fault::FRAMING,
        ),
        (
            "POST / HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n",
            Fault::FRAMING,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            Fault::FRAMING,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n\r\n",
            Fault::FRAMING,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n1 \r\nx",
            Fault::FRAMING,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxx",
            Fault::FRAMING,
        ),
    ] {
        let found = http(text);
        assert_eq!(found.fault, fault, "{text}: {found:?}");
    }
    let long = format!(
        "GET /{} HTTP/1.1\r\nHost: a.test\r\n\r\n",
        "x".repeat(16384)
    );
    assert_eq!(http(&long).fault, Fault::TOO_LONG);
    let label = "a".repeat(254);
    assert_eq!(
        http(&format!("GET / HTTP/1.1\r\nHost: {label}\r\n\r\n")).fault,
        Fault::BAD_NAME
    );
}

#[test]
fn the_first_byte_tells_tls_from_http() {
    let both = Checks(Checks::TLS.0 | Checks::HTTP.0);
    assert_eq!(read(both, &hello("a.test"), &[]), complete("a.test", false));
    assert_eq!(read(both, GET.as_bytes(), &[]), names(&["a.test"]));
    assert_eq!(read(both, b"\0", &[]).fault, Fault::NOT_HTTP);
}

#[test]
fn a_wildcard_is_a_prefix_of_the_names_below_it_and_of_no_other() {
    let matches = |key: NameKey, name: &str| {
        let name = NameKey::exact(name);
        let bytes = (key.bits / 8) as usize;
        key.bits <= name.bits && key.data[..bytes] == name.data[..bytes]
    };
    let below = NameKey::below("cdn.test");
    assert!(matches(below, "a.cdn.test") && matches(below, "a.b.cdn.test"));
    assert!(!matches(below, "cdn.test") && !matches(below, "xcdn.test"));
    let exact = NameKey::exact("cdn.test");
    assert!(matches(exact, "cdn.test"));
    assert!(!matches(exact, "a.cdn.test") && !matches(exact, "cdn.tes"));
}

proptest! {
    #[test]
    fn segments_and_records_make_no_difference(
        name in "[a-z]{1,20}\\.test", size in 1_usize..600, cuts: Vec<usize>,
    ) {
        let message = hello_with(&[key_share(), server_name(&name), (16, vec![0; 3])]);
        let found = read(Checks::TLS, &records(&message, size), &cuts);
        prop_assert_eq!(found, complete(&name, false));
    }

    #[test]
    fn segments_make_no_difference_to_requests(cuts: Vec<usize>, length in 0_usize..5000) {
        let body = "x".repeat(length);
        let text = format!(
            "POST / HTTP/1.1\r\nHost: b.test\r\nContent-Length: {length}\r\n\r\n{body}{GET}"
        );
        let found = read(Checks::HTTP, text.as_bytes(), &cuts);
        prop_assert_eq!(found, names(&["b.test", "a.test"]));
    }

    #[test]
    fn no_bytes_are_read_for_ever(bytes: Vec<u8>, cuts: Vec<usize>, checks in 1_u8..4) {
        read(Checks(checks), &bytes, &cuts);
        read(Checks(checks), &[&[22, 3, 1, 0, 255, 1, 0, 0, 251, 3, 3], &bytes[..]].concat(), &cuts);
    }
}
