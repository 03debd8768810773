//! HTTP/1 requests, good and bad, and what is to become of them.
//!
//! [`verdict`] of a head and [`connection`] of all of them are to the program in the kernel what
//! [`tls::verdict`](crate::tls::verdict) is. httparse, a real server's parser, keeps them honest:
//! of a head that `verdict` lets through it reads the same host, once.

use proptest::prelude::*;

use crate::tls;

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Refusal {
    /// The bytes end before the head does.
    Incomplete,
    /// The first line is no `METHOD SP target SP HTTP/1.0` or `HTTP/1.1`.
    RequestLine,
    /// A line is no header field: folded, with space before its colon, with a line feed alone or a
    /// carriage return alone, or without a colon.
    Field,
    /// There is no Host, or more than one.
    Hosts,
    /// The Host is no `host[:port]`.
    Host,
    /// The target names another host.
    Target,
    /// It cannot be told where the body ends.
    Framing,
}

/// The host, in canonical form, for which the request asks whose head begins `bytes`, and the
/// length of the head.
pub(crate) fn verdict(bytes: &[u8]) -> Result<(String, usize), Refusal> {
    let mut length = 0;
    let mut asked = None;
    let mut host = None;
    loop {
        let rest = &bytes[length..];
        let end = rest.iter().position(|&byte| byte == b'\n');
        let end = end.ok_or(Refusal::Incomplete)?;
        length += end + 1;
        let line = rest[..end].strip_suffix(b"\r");
        let line = line.filter(|line| line.iter().all(|&byte| is_text(byte)));
        if asked.is_none() {
            asked = Some(line.and_then(target).ok_or(Refusal::RequestLine)?);
            continue;
        }
        let line = line.ok_or(Refusal::Field)?;
        if line.is_empty() {
            break;
        }
        let colon = line.iter().position(|&byte| byte == b':');
        let (name, value) = line.split_at(colon.ok_or(Refusal::Field)?);
        if name.is_empty() || !name.iter().all(|&byte| is_token(byte)) {
            return Err(Refusal::Field);
        }
        if name.eq_ignore_ascii_case(b"host") && host.replace(&value[1..]).is_some() {
            return Err(Refusal::Hosts);
        }
    }
    let value = trimmed(host.ok_or(Refusal::Hosts)?);
    let name = authority(value).ok_or(Refusal::Host)?;
    if let Some(Target::Host(named)) = asked {
        let named = authority(named).ok_or(Refusal::Target)?;
        if named != name {
            return Err(Refusal::Target);
        }
    }
    Ok((name, length))
}

/// The requests of a connection, one after another, as a strict server reads them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Connection {
    /// The host of each complete head.
    pub(crate) hosts: Vec<String>,
    /// Why reading ended before the bytes did.
    pub(crate) end: Option<Refusal>,
}

/// Reads heads and bodies to the end of `bytes`. A head whose body's end is in doubt (both a length
/// and chunks, two lengths, chunks in HTTP/1.0) is refused.
pub(crate) fn connection(bytes: &[u8]) -> Connection {
    let mut hosts = Vec::new();
    let mut rest = bytes;
    let end = loop {
        // Servers pass over empty lines in front of a request (RFC 9112 section 2.2).
        while let Some(after) = rest.strip_prefix(b"\r\n") {
            rest = after;
        }
        if rest.is_empty() {
            break None;
        }
        let length = match verdict(rest) {
            Ok((host, length)) => {
                hosts.push(host);
                length
            }
            Err(refusal) => break Some(refusal),
        };
        match body(&rest[..length], &rest[length..]) {
            Ok(body) => rest = &rest[length + body..],
            Err(refusal) => break Some(refusal),
        }
    };
    Connection { hosts, end }
}

/// The length of the body that follows `head`.
fn body(head: &[u8], rest: &[u8]) -> Result<usize, Refusal> {
    let mut lines = head.split(|&byte| byte == b'\n');
    let is_new = lines
        .next()
        .is_some_and(|line| line.ends_with(b"HTTP/1.1\r"));
    let fields: Vec<(&[u8], &[u8])> = lines
        .filter_map(|line| {
            let line = line.strip_suffix(b"\r")?;
            let colon = line.iter().position(|&byte| byte == b':')?;
            Some((&line[..colon], trimmed(&line[colon + 1..])))
        })
        .collect();
    let values = |name: &str| -> Vec<&[u8]> {
        let named = fields
            .iter()
            .filter(|(field, _)| field.eq_ignore_ascii_case(name.as_bytes()));
        named.map(|(_, value)| *value).collect()
    };
    match (
        &values("content-length")[..],
        &values("transfer-encoding")[..],
    ) {
        ([], []) => Ok(0),
        ([length], []) => {
            let digits = str::from_utf8(length).ok().filter(|text| {
                !text.is_empty()
                    && text.len() <= 15
                    && text.bytes().all(|byte| byte.is_ascii_digit())
            });
            let length = digits
                .and_then(|text| text.parse().ok())
                .ok_or(Refusal::Framing)?;
            if length > rest.len() {
                return Err(Refusal::Incomplete);
            }
            Ok(length)
        }
        ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") && is_new => chunks(rest),
        _ => Err(Refusal::Framing),
    }
}

/// The length of a chunked body, RFC 9112 section 7.1.
fn chunks(bytes: &[u8]) -> Result<usize, Refusal> {
    let mut at = 0;
    // A line without its CRLF.
    let line = |at: &mut usize| {
        let rest = &bytes[*at..];
        let end = rest
            .iter()
            .position(|&byte| byte == b'\n')
            .ok_or(Refusal::Incomplete)?;
        *at += end + 1;
        let line = rest[..end].strip_suffix(b"\r");
        line.filter(|line| line.iter().all(|&byte| is_text(byte)))
            .ok_or(Refusal::Framing)
    };
    loop {
        let line = line(&mut at)?;
        let digits = line.split(|&byte| byte == b';').next().unwrap_or_default();
        let digits = str::from_utf8(digits).ok().filter(|text| {
            !text.is_empty()
                && text.len() <= 15
                && text.bytes().all(|byte| byte.is_ascii_hexdigit())
        });
        let size = digits.and_then(|text| usize::from_str_radix(text, 16).ok());
        let size = size.ok_or(Refusal::Framing)?;
        if size == 0 {
            break;
        }
        let after = bytes.get(at + size..).ok_or(Refusal::Incomplete)?;
        if !b"\r\n".starts_with(&after[..after.len().min(2)]) {
            return Err(Refusal::Framing);
        }
        at += size + 2;
        if at > bytes.len() {
            return Err(Refusal::Incomplete);
        }
    }
    loop {
        let line = line(&mut at)?;
        if line.is_empty() {
            return Ok(at);
        }
        let colon = line
            .iter()
            .position(|&byte| byte == b':')
            .ok_or(Refusal::Field)?;
        if colon == 0 || !line[..colon].iter().all(|&byte| is_token(byte)) {
            return Err(Refusal::Field);
        }
    }
}

/// What a request line asks for, RFC 9112 section 3.2.
enum Target<'a> {
    /// `/path` or `*`.
    Path,
    /// `http://host:port/path`, or `host:port` of a CONNECT.
    Host(&'a [u8]),
}

fn target(line: &[u8]) -> Option<Target<'_>> {
    let mut parts = line.split(|&byte| byte == b' ');
    let (method, target, version) = (parts.next()?, parts.next()?, parts.next()?);
    let minor = version.strip_prefix(b"HTTP/1.")?;
    if parts.next().is_some()
        || method.is_empty()
        || !method.iter().all(|&byte| is_token(byte))
        || !matches!(minor, b"0" | b"1")
        || !target.iter().all(|&byte| byte > b' ' && byte != 0x7f)
    {
        return None;
    }
    if method == b"CONNECT" {
        return Some(Target::Host(target));
    }
    if target.starts_with(b"/") || target.starts_with(b"*") {
        return Some(Target::Path);
    }
    let (scheme, rest) = target.split_at_checked(7)?;
    if !scheme.eq_ignore_ascii_case(b"http://") {
        return None;
    }
    let end = rest.iter().position(|byte| b"/?#".contains(byte));
    Some(Target::Host(&rest[..end.unwrap_or(rest.len())]))
}

/// The host of `host[:port]`; the port may be empty (RFC 3986 section 3.2.3).
fn authority(text: &[u8]) -> Option<String> {
    let colon = text.iter().position(|&byte| byte == b':');
    let (host, port) = text.split_at(colon.unwrap_or(text.len()));
    let port = port.strip_prefix(b":").unwrap_or(port);
    port.iter()
        .all(u8::is_ascii_digit)
        .then(|| tls::name(host))?
}

/// Field content and the blanks in it, RFC 9110 section 5.5.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || byte >= b' ' && byte != 0x7f
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn trimmed(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

// ---- generation ----

/// A request's head in parts.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) method: String,
    pub(crate) target: Vec<u8>,
    pub(crate) version: String,
    /// Lines without their ends; some are no fields.
    pub(crate) lines: Vec<Vec<u8>>,
    /// The line that ends with something else than CRLF, and with what.
    pub(crate) odd_end: Option<(prop::sample::Index, &'static str)>,
}

impl Head {
    /// The head as it is sent.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let first = [
            self.method.as_bytes(),
            b" ",
            &self.target,
            b" ",
            self.version.as_bytes(),
        ]
        .concat();
        let lines: Vec<&[u8]> = [first.as_slice()]
            .into_iter()
            .chain(self.lines.iter().map(Vec::as_slice))
            .chain([&b""[..]])
            .collect();
        let odd = self.odd_end.map(|(at, end)| (at.index(lines.len()), end));
        let mut bytes = Vec::new();
        for (i, line) in lines.iter().enumerate() {
            bytes.extend_from_slice(line);
            let end = odd
                .filter(|(at, _)| *at == i)
                .map_or("\r\n", |(_, end)| end);
            bytes.extend_from_slice(end.as_bytes());
        }
        bytes
    }
}

/// A request on a connection that is kept: a head and a body whose length both sides know.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
}

/// The head of a request as clients send it, and nearly so. Most are good.
pub(crate) fn head() -> impl Strategy<Value = Head> {
    let method = prop_oneof![
        20 => Just("GET".to_owned()),
        8 => prop::sample::select(vec!["HEAD", "POST", "PUT", "OPTIONS", "PATCH", "connect", "M-SEARCH"])
            .prop_map(str::to_owned),
        1 => "[!-~]{0,6}",
    ];
    let version = prop_oneof![
        24 => Just("HTTP/1.1"),
        4 => Just("HTTP/1.0"),
        1 => prop::sample::select(vec!["HTTP/2.0", "HTTP/1.", "HTTP/1.10", "http/1.1", "HTTP/0.9", "", "HTTP/1.1 "]),
    ]
    .prop_map(str::to_owned);
    let host =
        prop_oneof![12 => "[a-z]{1,8}\\.test".prop_map(String::into_bytes), 1 => tls::some_name()];
    let port = prop_oneof![30 => Just(""), 10 => Just(":80"), 1 => Just(":"), 1 => Just(":8o"), 1 => Just(":99999")];
    let odd_end = prop_oneof![
        15 => Just(None),
        1 => (any::<prop::sample::Index>(), prop::sample::select(vec!["\n", "\r", "\r\r\n", "\n\n", "\r\n \r\n", "\0\r\n"]))
            .prop_map(Some),
    ];
    let others = prop::collection::vec(other_line(), 0..6);
    let place = any::<prop::sample::Index>();
    (
        method,
        version,
        (host, tls::some_name(), port),
        host_lines(),
        0..20_u8,
        others,
        place,
        odd_end,
    )
        .prop_map(
            |(method, version, (host, other, port), host_lines, form, others, place, odd_end)| {
                let authority = [&host, port.as_bytes()].concat();
                let foreign = [&other[..], b":443"].concat();
                let (method, target) = match form {
                    0 => (
                        method,
                        [b"http://", &authority[..], b"/a?b=http://c"].concat(),
                    ),
                    1 => (method, [b"HTTP://", &authority[..]].concat()),
                    2 => (method, [b"http://", &foreign[..], b"/"].concat()),
                    3 => ("CONNECT".to_owned(), authority.clone()),
                    4 => ("CONNECT".to_owned(), foreign),
                    5 => (method, b"*".to_vec()),
                    6 => (method, [b"http://user@", &authority[..], b"/"].concat()),
                    7 => (method, other),
                    _ => (method, b"/path/of?a=thing".to_vec()),
                };
                let mut lines = others;
                for make in host_lines {
                    let line = make.line(&authority);
                    lines.insert(place.index(lines.len() + 1), line);
                }
                Head {
                    method,
                    target,
                    version,
                    lines,
                    odd_end,
                }
            },
        )
}

/// A few requests on one connection.
pub(crate) fn requests() -> impl Strategy<Value = Vec<Request>> {
    let body = prop_oneof![
        4 => Just((vec![], vec![])),
        2 => prop::collection::vec(any::<u8>(), 0..300).prop_map(|body| {
            (format!("Content-Length: {}", body.len()).into_bytes(), body)
        }),
        // A body that looks like a request.
        1 => Just((b"Content-Length: 34".to_vec(), b"GET / HTTP/1.1\r\nHost: other.test\r\n\r\n"[..34].to_vec())),
        1 => prop::collection::vec(prop::collection::vec(any::<u8>(), 1..60), 0..4).prop_map(|chunks| {
            let mut body = Vec::new();
            for chunk in chunks {
                body.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
                body.extend(chunk);
                body.extend(b"\r\n");
            }
            body.extend(b"0\r\n\r\n");
            (b"Transfer-Encoding: chunked".to_vec(), body)
        }),
        // Nearly those, which servers take for something else.
        1 => prop::sample::select(vec![
            "Xransfer-Encoding: chunked", "Transfer-Encodinh: chunked", "Xontent-Length: 5", "Content-Length: +5",
            "Content-Length: 5, 5", "Transfer-Encoding: gzip, chunked", "Transfer-Encoding: xchunked",
            "Content-Length: 5\r\nTransfer-Encoding: chunked", "Content-Length: 5\r\nContent-Length: 5",
        ])
        .prop_map(|line| (line.as_bytes().to_vec(), b"5\r\nhello\r\n0\r\n\r\n".to_vec())),
    ];
    let request = (head(), body).prop_map(|(mut head, (line, body))| {
        if !line.is_empty() {
            head.lines.push(line);
        }
        Request { head, body }
    });
    prop::collection::vec(request, 1..4)
}

/// How a Host line is written.
#[derive(Clone, Copy, Debug)]
enum HostLine {
    Plain,
    Lower,
    Tight,
    Blanks,
    SpaceBeforeColon,
    Folded,
    Other,
    Two,
}

impl HostLine {
    fn line(self, authority: &[u8]) -> Vec<u8> {
        let (before, after): (&[u8], &[u8]) = match self {
            Self::Plain => (b"Host: ", b""),
            Self::Lower => (b"hOsT: ", b""),
            Self::Tight => (b"Host:", b""),
            Self::Blanks => (b"Host:\t  ", b" \t"),
            Self::SpaceBeforeColon => (b"Host : ", b""),
            Self::Folded => (b"Host:\r\n ", b""),
            Self::Other => (b"Host: other.test", b""),
            Self::Two => (b"Host: ", b", other.test"),
        };
        match self {
            Self::Other => before.to_vec(),
            _ => [before, authority, after].concat(),
        }
    }
}

fn host_lines() -> impl Strategy<Value = Vec<HostLine>> {
    use HostLine::*;
    let good = prop::sample::select(vec![Plain, Plain, Lower, Tight, Blanks]);
    let any = prop::sample::select(vec![Plain, Lower, SpaceBeforeColon, Folded, Other, Two]);
    prop_oneof![
        12 => good.prop_map(|line| vec![line]),
        2 => prop::collection::vec(any, 0..3),
    ]
}

fn other_line() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        60 => prop::sample::select(vec![
            "Accept: */*", "User-Agent: a/1 (b; c)", "X-Host: other.test", "Hostname: other.test", "Hos: t",
            "Referer: http://other.test/", "Connection: keep-alive", "X-Empty:", "X-Tab:\tb",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
        8 => "[A-Za-z-]{1,20}: [ -~]{0,1500}".prop_map(String::into_bytes),
        1 => prop::sample::select(vec![" folded: Host: other.test", "\tHost: x.test", "no colon", ": no name", "a b: c"])
            .prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 1..30),
    ]
}

/// The only Host of the head, as httparse reads it.
fn httparse_host(bytes: &[u8]) -> Option<(String, usize)> {
    // Its targets are UTF-8; servers take any byte.
    let end = bytes.iter().position(|&byte| byte == b'\n')?;
    let plain = |byte: &u8| if byte.is_ascii() { *byte } else { b'x' };
    let first: Vec<u8> = bytes[..end].iter().map(plain).collect();
    let bytes = [&first, &bytes[end..]].concat();
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let Ok(httparse::Status::Complete(length)) = request.parse(&bytes) else {
        return None;
    };
    let mut hosts = request
        .headers
        .iter()
        .filter(|header| header.name.eq_ignore_ascii_case("host"));
    let host = hosts.next()?;
    if hosts.next().is_some() {
        return None;
    }
    Some((authority(trimmed(host.value))?, length))
}

#[test]
fn a_plain_request_has_its_host_and_each_fault_its_refusal() {
    let line = "GET / HTTP/1.1\r\n";
    for (head, host) in [
        (
            "GET / HTTP/1.1\r\nHost: Allowed.test\r\n\r\n",
            "allowed.test",
        ),
        (
            "GET / HTTP/1.0\r\nA: b\r\nhOST:\tallowed.test. \r\nC:\r\n\r\n",
            "allowed.test",
        ),
        (
            "OPTIONS * HTTP/1.1\r\nHost: allowed.test:80\r\n\r\n",
            "allowed.test",
        ),
        (
            "GET http://allowed.test/a HTTP/1.1\r\nHost: allowed.test\r\n\r\n",
            "allowed.test",
        ),
        (
            "GET HTTP://ALLOWED.test:80?a HTTP/1.1\r\nHost: allowed.test\r\n\r\n",
            "allowed.test",
        ),
        (
            "CONNECT allowed.test:443 HTTP/1.1\r\nHost: allowed.test:443\r\n\r\n",
            "allowed.test",
        ),
    ] {
        let expected = Ok((host.to_owned(), head.len()));
        assert_eq!(verdict(head.as_bytes()), expected, "{head:?}");
        assert_eq!(httparse_host(head.as_bytes()), expected.ok(), "{head:?}");
        for length in 0..head.len() {
            assert_eq!(
                verdict(&head.as_bytes()[..length]),
                Err(Refusal::Incomplete)
            );
        }
        let more = format!("{head}GET / HTTP/1.1\r\n");
        assert_eq!(verdict(more.as_bytes()), Ok((host.to_owned(), head.len())));
    }
    for (head, refusal) in [
        ("GET /\r\nHost: a.test", Refusal::RequestLine),
        ("GET  / HTTP/1.1\r\nHost: a.test", Refusal::RequestLine),
        (" GET / HTTP/1.1\r\nHost: a.test", Refusal::RequestLine),
        ("\r\nGET / HTTP/1.1\r\nHost: a.test", Refusal::RequestLine),
        ("GET / HTTP/2.0\r\nHost: a.test", Refusal::RequestLine),
        ("PRI * HTTP/2.0", Refusal::RequestLine),
        ("GET / HTTP/1.1\nHost: a.test", Refusal::RequestLine),
        ("GET a.test HTTP/1.1\r\nHost: a.test", Refusal::RequestLine),
        (
            "GET https://a.test/ HTTP/1.1\r\nHost: a.test",
            Refusal::RequestLine,
        ),
        ("G(T / HTTP/1.1\r\nHost: a.test", Refusal::RequestLine),
        (
            "GET http://b.test/ HTTP/1.1\r\nHost: a.test",
            Refusal::Target,
        ),
        (
            "GET http://a.test@b.test/ HTTP/1.1\r\nHost: a.test",
            Refusal::Target,
        ),
        ("GET http:/// HTTP/1.1\r\nHost: a.test", Refusal::Target),
        (
            "CONNECT b.test:443 HTTP/1.1\r\nHost: a.test",
            Refusal::Target,
        ),
        ("CONNECT / HTTP/1.1\r\nHost: a.test", Refusal::Target),
    ] {
        let head = format!("{head}\r\n\r\n");
        assert_eq!(verdict(head.as_bytes()), Err(refusal), "{head:?}");
    }
    for (lines, refusal) in [
        ("Accept: */*", Refusal::Hosts),
        ("Host: a.test\r\nhost: a.test", Refusal::Hosts),
        ("Host:", Refusal::Host),
        ("Host: a.test, b.test", Refusal::Host),
        ("Host: a.test b.test", Refusal::Host),
        ("Host: a.test:8o", Refusal::Host),
        ("Host: :80", Refusal::Host),
        ("Host: a.test/b", Refusal::Host),
        ("Host: x@a.test", Refusal::Host),
        ("Host: 198.51.100.1", Refusal::Host),
        ("Host: [2001:db8::1]", Refusal::Host),
        ("Host : a.test", Refusal::Field),
        ("Host:\r\n a.test", Refusal::Field),
        ("Host: a.test\r\n\tb: c", Refusal::Field),
        ("A: b\r\n Host: b.test\r\nHost: a.test", Refusal::Field),
        ("A: b\nHost: b.test\r\nHost: a.test", Refusal::Field),
        ("A: b\rHost: b.test\r\nHost: a.test", Refusal::Field),
        ("Host: a.test\r\nA\0: b", Refusal::Field),
        ("Host: a.test\r\nno colon", Refusal::Field),
        ("Host: a.test\r\n: no name", Refusal::Field),
    ] {
        let head = format!("{line}{lines}\r\n\r\n");
        assert_eq!(verdict(head.as_bytes()), Err(refusal), "{head:?}");
    }
}

#[test]
fn requests_are_told_from_bodies_and_doubtful_bodies_refused() {
    let head = |line: &str, host| format!("POST / HTTP/1.1\r\nHost: {host}\r\n{line}\r\n\r\n");
    let inner = head("A: b", "inner.test");
    let length = inner.len();
    let sized = format!(
        "{}{inner}",
        head(&format!("Content-Length: {length}"), "a.test")
    );
    let chunked = format!(
        "{}{length:x};x=y\r\n{inner}\r\n0\r\nHost: trailer.test\r\n\r\n",
        head("transfer-encoding: Chunked", "b.test")
    );
    let all = format!("{sized}{chunked}\r\n{}", head("A: b", "c.test"));
    let read = connection(all.as_bytes());
    assert_eq!(
        (read.hosts, read.end),
        (
            ["a.test", "b.test", "c.test"].map(str::to_owned).into(),
            None
        )
    );
    for lines in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Content-Length: 5\r\nContent-Length: 5",
        "Transfer-Encoding: gzip, chunked",
        "Content-Length: +5",
        "Content-Length: 5, 5",
        "Content-Length:",
    ] {
        let read = connection(head(lines, "a.test").as_bytes());
        assert_eq!(read.end, Some(Refusal::Framing), "{lines}");
    }
    // What is almost the name of a field says nothing of the body.
    let almost = format!("{}{inner}", head("Xransfer-Encoding: chunked", "a.test"));
    assert_eq!(
        connection(almost.as_bytes()).hosts,
        ["a.test", "inner.test"]
    );
}

proptest! {
    #![proptest_config(crate::config())]

    #[test]
    fn httparse_and_the_reference_read_the_same_host(
        requests in requests(), damage in tls::damage(3), within in prop::sample::select(vec![40, 8192]),
    ) {
        let bytes: Vec<u8> = requests
            .iter()
            .flat_map(|request| [request.head.bytes(), request.body.clone()].concat())
            .collect();
        for bytes in [tls::damaged(bytes.clone(), &damage, within), bytes] {
            if let Ok((host, length)) = verdict(&bytes) {
                prop_assert_eq!(httparse_host(&bytes), Some((host, length)), "{}", bytes.escape_ascii());
            }
        }
    }

    /// So segments can be judged as they come.
    #[test]
    fn what_the_beginning_of_a_request_says_its_end_does_not_change(
        head in head(), damage in tls::damage(2), cut in any::<prop::sample::Index>(),
    ) {
        let bytes = tls::damaged(head.bytes(), &damage, 8192);
        let early = verdict(&bytes[..cut.index(bytes.len() + 1)]);
        prop_assert!(early == Err(Refusal::Incomplete) || early == verdict(&bytes));
    }

    #[test]
    fn no_bytes_make_the_reference_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = verdict(&bytes);
        let _ = tls::verdict(&bytes);
    }
}

/// Else the comparison proves less than it seems to.
#[test]
fn generated_heads_are_of_all_sorts() {
    use std::collections::HashMap;

    use proptest::{strategy::ValueTree as _, test_runner::TestRunner};

    let mut runner = TestRunner::deterministic();
    let mut seen: HashMap<String, usize> = HashMap::new();
    for _ in 0..3000 {
        let head = head().new_tree(&mut runner).unwrap().current();
        let what = match verdict(&head.bytes()) {
            Ok(_) if head.target.starts_with(b"/") => "good".to_owned(),
            Ok(_) => "good, with a host in its target".to_owned(),
            Err(refusal) => format!("{refusal:?}"),
        };
        *seen.entry(what).or_default() += 1;
    }
    let all = [
        "good",
        "good, with a host in its target",
        "RequestLine",
        "Field",
        "Hosts",
        "Host",
        "Target",
    ];
    for what in all {
        let count = seen.get(what).copied().unwrap_or(0);
        assert!(count > 20, "{count} heads: {what}: {seen:?}");
    }
}
