//! ClientHellos, good and bad, and what is to become of them.
//!
//! [`verdict`] says it a second time, for a whole byte string and as plainly as it can be said, so
//! that the program in the kernel, which sees segments and may not loop, has something to agree
//! with. rustls, a real server's parser, keeps `verdict` honest: the two never read different
//! names. [`connection`] goes on to the second ClientHello, which rustls's parser shows nobody.

use std::net::Ipv4Addr;

use proptest::prelude::*;

/// Record type `handshake`, RFC 8446 section 5.1.
const HANDSHAKE: u8 = 22;
/// Longest fragment of a record, the same section.
const MAX_FRAGMENT: usize = 1 << 14;
/// Records that servers ignore between two ClientHellos: `change_cipher_spec` (RFC 8446 appendix
/// D.4), `alert` that is a warning, and `application_data` if the first hello has [`EARLY_DATA`].
const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const APPLICATION_DATA: u8 = 23;
/// Handshake type `client_hello`, RFC 8446 section 4.
const CLIENT_HELLO: u8 = 1;
/// Extension type `server_name`, RFC 6066 section 3.
const SERVER_NAME: u16 = 0;
/// Extension type `early_data`, RFC 8446 section 4.2.10.
const EARLY_DATA: u16 = 42;
/// Extension type `encrypted_client_hello`, RFC 9849.
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
/// Longest host name in text.
const MAX_NAME: usize = 253;
/// Longest ClientHello that the fence reads.
const MAX_HELLO: usize = 1 << 14;
/// Longest that any server takes.
const MAX_HELLO_OF_SERVERS: usize = 131_396;

/// Why a flow is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Refusal {
    /// The bytes end before the ClientHello does.
    Incomplete,
    /// They do not begin with handshake records that hold a ClientHello.
    NotHello,
    /// A length disagrees with what is around it.
    Length,
    /// There is no `server_name` extension, or not one with exactly one name.
    Names,
    /// There is another ClientHello in it, encrypted.
    Encrypted,
    /// The name is none: empty, too long, an address, or with characters that names do not have.
    Name,
}

/// The server name, in lower case and without a dot at the end, for which the flow that begins
/// with `payload` asks.
pub(crate) fn verdict(payload: &[u8]) -> Result<String, Refusal> {
    first(payload).map(|first| first.name)
}

/// A ClientHello.
struct First {
    name: String,
    /// Whether it announces early data.
    early: bool,
    /// Bytes of its records.
    length: usize,
}

fn first(payload: &[u8]) -> Result<First, Refusal> {
    let (hello, length) = handshake(payload)?;
    let mut rest = Reader(&hello);
    // legacy_version and random.
    rest.take(2 + 32)?;
    if rest.vector8()?.len() > 32 {
        return Err(Refusal::Length);
    }
    let ciphers = rest.vector16()?;
    if ciphers.is_empty() || ciphers.len() % 2 == 1 || rest.vector8()?.is_empty() {
        return Err(Refusal::Length);
    }
    if rest.0.is_empty() {
        // TLS 1.2 without extensions.
        return Err(Refusal::Names);
    }
    let mut extensions = Reader(rest.vector16()?);
    if !rest.0.is_empty() {
        return Err(Refusal::Length);
    }
    let mut found = None;
    let mut early = false;
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let body = extensions.vector16()?;
        if kind == ENCRYPTED_CLIENT_HELLO {
            return Err(Refusal::Encrypted);
        }
        early |= kind == EARLY_DATA;
        if kind == SERVER_NAME && found.replace(body).is_some() {
            return Err(Refusal::Names);
        }
    }
    let mut body = Reader(found.ok_or(Refusal::Names)?);
    let mut list = Reader(body.vector16()?);
    if !body.0.is_empty() {
        return Err(Refusal::Length);
    }
    if list.0.is_empty() || list.take(1)? != [0] {
        return Err(Refusal::Names);
    }
    let text = list.vector16()?;
    if !list.0.is_empty() {
        return Err(Refusal::Names);
    }
    let name = name(text).ok_or(Refusal::Name)?;
    Ok(First {
        name,
        early,
        length,
    })
}

/// What a client says of names before it encrypts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Connection {
    /// The name of each complete ClientHello.
    pub(crate) names: Vec<String>,
    pub(crate) end: End,
}

/// How a [`Connection`] ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// A ClientHello can still come.
    Open,
    /// None can.
    Over,
    /// By [`Refusal::Incomplete`]: there is more to come.
    Refused(Refusal),
}

/// Reads the first ClientHello and the second one, which a HelloRetryRequest asks for
/// (RFC 8446 section 4.1.4).
pub(crate) fn connection(payload: &[u8]) -> Connection {
    let mut names = Vec::new();
    let end = names_of(payload, &mut names).unwrap_or_else(End::Refused);
    Connection { names, end }
}

fn names_of(payload: &[u8], names: &mut Vec<String>) -> Result<End, Refusal> {
    let First {
        name,
        early,
        length,
    } = first(payload)?;
    names.push(name);
    let mut rest = &payload[length..];
    let ignored =
        |kind: u8| kind == CHANGE_CIPHER_SPEC || kind == ALERT || kind == APPLICATION_DATA && early;
    while rest.first().is_some_and(|&kind| ignored(kind)) {
        let (_, length) = record(rest)?;
        rest = rest.get(5 + length..).ok_or(Refusal::Incomplete)?;
    }
    match rest.first() {
        None => return Ok(End::Open),
        Some(&HANDSHAKE) => {}
        Some(_) => return Ok(End::Over),
    }
    // The rest of a handshake is encrypted or of another type: told by the first bytes.
    let start = beginning(rest);
    if start.first().is_some_and(|&kind| kind != CLIENT_HELLO) {
        return Ok(End::Over);
    }
    if let Some(&[_, a, b, c]) = start.first_chunk::<4>() {
        let length = whole(a, b, c);
        if length > MAX_HELLO_OF_SERVERS {
            return Ok(End::Over);
        }
        if length > MAX_HELLO {
            return Err(Refusal::Length);
        }
    }
    names.push(verdict(rest)?);
    Ok(End::Over)
}

/// The host name in `text`, in canonical form.
pub(crate) fn name(text: &[u8]) -> Option<String> {
    let text = str::from_utf8(text).ok()?.to_ascii_lowercase();
    let short = text.len() <= MAX_NAME;
    let text = text.strip_suffix('.').unwrap_or(&text);
    let fits = |c| matches!(c, 'a'..='z' | '0'..='9' | '-' | '_' | '.');
    let good = short
        && text.chars().all(fits)
        && text.split('.').all(|label| !label.is_empty())
        && text.parse::<Ipv4Addr>().is_err();
    good.then(|| text.to_owned())
}

/// The type and the length of the record that `bytes` begin with.
fn record(bytes: &[u8]) -> Result<(u8, usize), Refusal> {
    if bytes.get(1).is_some_and(|&major| major != 3) {
        return Err(Refusal::NotHello);
    }
    let header = bytes.first_chunk::<5>().ok_or(Refusal::Incomplete)?;
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    if length == 0 || length > MAX_FRAGMENT {
        return Err(Refusal::Length);
    }
    Ok((header[0], length))
}

/// The bytes of the message that the handshake records hold.
fn beginning(mut bytes: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    while let Ok((HANDSHAKE, length)) = record(bytes) {
        let end = bytes.len().min(5 + length);
        message.extend_from_slice(&bytes[5..end]);
        bytes = &bytes[end..];
    }
    message
}

/// A length of three bytes.
fn whole(a: u8, b: u8, c: u8) -> usize {
    usize::from(a) * 65_536 + usize::from(b) * 256 + usize::from(c)
}

/// The body of the ClientHello that the records at the beginning of `payload` hold, and the length
/// of those records.
fn handshake(payload: &[u8]) -> Result<(Vec<u8>, usize), Refusal> {
    let mut rest = payload;
    let mut message = Vec::new();
    loop {
        // As early as it can be told: a flow that is no TLS is refused by its first byte.
        if rest.first().is_some_and(|&kind| kind != HANDSHAKE) {
            return Err(Refusal::NotHello);
        }
        let (_, length) = record(rest)?;
        let after = &rest[5..];
        let here = &after[..length.min(after.len())];
        message.extend_from_slice(here);
        if message.first().is_some_and(|&kind| kind != CLIENT_HELLO) {
            return Err(Refusal::NotHello);
        }
        if let Some(&[_, a, b, c]) = message.first_chunk::<4>() {
            let whole = 4 + whole(a, b, c);
            // The hello ends where a record ends: what comes next is under other keys.
            if message.len() - here.len() + length > whole {
                return Err(Refusal::Length);
            }
            if message.len() == whole {
                let length = payload.len() - after.len() + length;
                return Ok((message.split_off(4), length));
            }
        }
        rest = after.get(length..).ok_or(Refusal::Incomplete)?;
    }
}

/// Reads what a length says, and no more.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Refusal> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Refusal::Length)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, Refusal> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector8(&mut self) -> Result<&'a [u8], Refusal> {
        let length = self.take(1)?[0];
        self.take(length.into())
    }

    fn vector16(&mut self) -> Result<&'a [u8], Refusal> {
        let length = self.u16()?;
        self.take(length.into())
    }
}

// ---- generation ----

/// A ClientHello in parts, which can be put together in many ways.
#[derive(Clone, Debug)]
pub(crate) struct Hello {
    /// Bytes of the legacy session id.
    pub(crate) session: usize,
    /// Cipher suites, some of them GREASE (RFC 8701).
    pub(crate) ciphers: Vec<u16>,
    /// Extensions in order.
    pub(crate) extensions: Vec<(u16, Vec<u8>)>,
    /// Bytes of the handshake message after which a new record begins.
    pub(crate) cuts: Vec<usize>,
}

impl Hello {
    /// The handshake message in its records, as it is sent.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([0x5a; 32]);
        body.extend(sized(1, &vec![7; self.session]));
        let ciphers: Vec<u8> = self.ciphers.iter().flat_map(|c| c.to_be_bytes()).collect();
        body.extend(sized(2, &ciphers));
        body.extend([1, 0]);
        let mut extensions = Vec::new();
        for (kind, content) in &self.extensions {
            extensions.extend(kind.to_be_bytes());
            extensions.extend(sized(2, content));
        }
        body.extend(sized(2, &extensions));
        let message = [&[CLIENT_HELLO], sized(3, &body).as_slice()].concat();
        let mut cuts: Vec<usize> = self.cuts.iter().map(|cut| cut % message.len()).collect();
        cuts.extend((0..message.len()).step_by(MAX_FRAGMENT));
        cuts.push(message.len());
        cuts.sort_unstable();
        cuts.dedup();
        let mut bytes = Vec::new();
        for pair in cuts.windows(2) {
            bytes.extend([HANDSHAKE, 3, 1]);
            bytes.extend(sized(2, &message[pair[0]..pair[1]]));
        }
        bytes
    }
}

/// `content` behind its length in `width` bytes.
fn sized(width: usize, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap().to_be_bytes();
    [&length[4 - width..], content].concat()
}

/// The content of a `server_name` extension with these entries.
pub(crate) fn server_names(entries: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let list: Vec<u8> = entries
        .iter()
        .flat_map(|(kind, name)| [&[*kind], sized(2, name).as_slice()].concat())
        .collect();
    sized(2, &list)
}

/// A name as clients send it, or nearly so.
pub(crate) fn some_name() -> impl Strategy<Value = Vec<u8>> {
    let text = prop_oneof![
        8 => "([a-z0-9]([a-z0-9_-]{0,12}[a-z0-9])?\\.){1,4}test",
        2 => "([a-zA-Z0-9]{1,8}\\.){1,3}TEST",
        1 => "([a-z]{1,8}\\.){1,3}test\\.",
        1 => "([a-z]{60}\\.){3}[a-z]{60,75}",
        1 => "198\\.51\\.100\\.[0-9]{1,3}|\\[?2001:db8::[0-9a-f]{1,4}\\]?",
        1 => "|\\.|\\.\\.|a\\.\\.test|\\.test|\\*\\.wild\\.test",
        1 => "[ -~]{0,20}",
    ];
    prop_oneof![
        12 => text.prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 0..24),
    ]
}

/// Any ClientHello that a client could mean: extensions in any order, key shares of classic and
/// post-quantum sizes, GREASE, one or several records. Most have one server name.
pub(crate) fn hello() -> impl Strategy<Value = Hello> {
    let names = prop_oneof![
        12 => some_name().prop_map(|name| vec![server_names(&[(0, name)])]),
        1 => Just(vec![]),
        1 => prop::collection::vec((prop_oneof![6 => Just(0), 1 => any::<u8>()], some_name()), 0..4)
            .prop_map(|entries| vec![server_names(&entries)]),
        1 => prop::collection::vec(some_name(), 2..4)
            .prop_map(|names| names.into_iter().map(|name| server_names(&[(0, name)])).collect()),
        1 => prop::collection::vec(any::<u8>(), 0..20).prop_map(|bytes| vec![bytes]),
    ];
    let shares = prop::sample::select(vec![
        vec![(0x001d_u16, 32)],
        // X25519MLKEM768 and what goes with it.
        vec![(0x11ec, 1216), (0x001d, 32)],
        vec![(0x2a2a, 1), (0x11ec, 1216), (0x001d, 32), (0x0017, 65)],
        // Something that does not fit into one record's usual segment, however large that is.
        vec![(0x0200, 4000)],
    ]);
    let others = prop::collection::vec(other_extension(), 0..16);
    let order = any::<prop::sample::Index>();
    (names, shares, others, order, 0..=32_usize, cuts()).prop_map(
        |(names, shares, others, order, session, cuts)| {
            let shares: Vec<u8> = shares
                .iter()
                .flat_map(|(group, length)| {
                    [
                        &u16::to_be_bytes(*group),
                        sized(2, &vec![9; *length]).as_slice(),
                    ]
                    .concat()
                })
                .collect();
            let mut extensions = vec![
                // Versions: GREASE, 1.3 and 1.2. Groups. Signature algorithms. A key share.
                (43, sized(1, &[0x1a, 0x1a, 3, 4, 3, 3])),
                (10, sized(2, &[0x2a, 0x2a, 0x11, 0xec, 0, 0x1d, 0, 0x17])),
                (13, sized(2, &[4, 3, 8, 4, 8, 7])),
                (51, sized(2, &shares)),
            ];
            let known = |kind: u16| [0, 10, 13, 43, 51].contains(&kind);
            extensions.extend(others.into_iter().filter(|(kind, _)| !known(*kind)));
            extensions.sort_by_key(|(kind, _)| *kind);
            extensions.dedup_by_key(|(kind, _)| *kind);
            // Any rotation, and each name somewhere else in it.
            let turn = order.index(extensions.len());
            extensions.rotate_left(turn);
            for (i, names) in names.into_iter().enumerate() {
                let at = order.index(extensions.len() + 1 - i.min(extensions.len()));
                extensions.insert(at, (SERVER_NAME, names));
            }
            Hello {
                session,
                ciphers: vec![0x0a0a, 0x1301, 0x1302, 0xc02f],
                extensions,
                cuts,
            }
        },
    )
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        6 => Just(vec![]),
        2 => prop::collection::vec(any::<usize>(), 1..4),
        // Inside the first bytes, where the lengths are.
        1 => prop::collection::vec(1..60_usize, 1..6),
    ]
}

fn other_extension() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let body = |most| prop::collection::vec(any::<u8>(), 0..=most);
    let usual = prop_oneof![
        // Early data. ALPN, status request, EC points, extended master secret, session ticket, early data.
        1 => Just((EARLY_DATA, vec![])),
        2 => Just((16, sized(2, &[2, b'h', b'2', 8, b'h', b't', b't', b'p', b'/', b'1', b'.', b'1']))),
        1 => Just((5, vec![1, 0, 0, 0, 0])),
        1 => Just((11, sized(1, &[0]))),
        1 => Just((23, vec![])),
        1 => body(200).prop_map(|ticket| (35, ticket)),
        // Padding, RFC 7685.
        1 => (0..600_usize).prop_map(|length| (21, vec![0; length])),
        // GREASE.
        2 => (0..16_u16, body(3)).prop_map(|(i, content)| (0x0a0a + i * 0x1010, content)),
        1 => (100..20_000_u16, body(40)),
    ];
    prop_oneof![
        60 => usual,
        1 => body(300).prop_map(|payload| (ENCRYPTED_CLIENT_HELLO, payload)),
    ]
}

/// What a client sends behind its first ClientHello: often nothing yet, else a second one or the
/// rest of the handshake, in records of its own.
pub(crate) fn next() -> impl Strategy<Value = Vec<u8>> {
    let change = || {
        prop::sample::select(vec![
            &[][..],
            &[CHANGE_CIPHER_SPEC, 3, 3, 0, 1, 1],
            &[ALERT, 3, 3, 0, 2, 1, 90],
            &[APPLICATION_DATA, 3, 3, 0, 3, 1, 2, 3],
        ])
    };
    let rest = prop_oneof![
        // A ClientKeyExchange and others of TLS 1.2; encrypted handshake messages; early data.
        (
            prop::sample::select(vec![1, 2, 11, 16, 22]),
            prop::collection::vec(any::<u8>(), 0..40)
        )
            .prop_map(|(kind, body)| (HANDSHAKE, [&[kind], sized(3, &body).as_slice()].concat())),
        prop::collection::vec(any::<u8>(), 1..60).prop_map(|body| (HANDSHAKE, body)),
        (20..=24_u8, prop::collection::vec(any::<u8>(), 0..60)),
    ]
    .prop_map(|(kind, body)| [&[kind, 3, 3], sized(2, &body).as_slice()].concat());
    prop_oneof![
        2 => Just(vec![]),
        3 => (change(), hello(), change()).prop_map(|(before, hello, after)| [before, &hello.bytes(), after].concat()),
        2 => (change(), rest).prop_map(|(before, rest)| [before, &rest].concat()),
    ]
}

/// What can go wrong with bytes on their way: changed, cut, repeated, removed.
pub(crate) fn damage(most: usize) -> impl Strategy<Value = Vec<(prop::sample::Index, Damage)>> {
    let damage = prop_oneof![
        4 => any::<u8>().prop_map(Damage::Set),
        2 => prop::sample::select(vec![1_u8, 2, 4, 0xff, 0xfe]).prop_map(Damage::Add),
        1 => any::<u8>().prop_map(Damage::Insert),
        1 => Just(Damage::Remove),
        1 => Just(Damage::Cut),
    ];
    prop::collection::vec((any::<prop::sample::Index>(), damage), 0..=most)
}

/// One way to damage a byte string at a place.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Damage {
    Set(u8),
    Add(u8),
    Insert(u8),
    Remove,
    Cut,
}

/// `bytes` with all of `damage` done to it, in the first `within` bytes: most fields that matter
/// are there.
pub(crate) fn damaged(
    mut bytes: Vec<u8>,
    damage: &[(prop::sample::Index, Damage)],
    within: usize,
) -> Vec<u8> {
    for (place, damage) in damage {
        if bytes.is_empty() {
            break;
        }
        let at = place.index(bytes.len().min(within));
        match damage {
            Damage::Set(byte) => bytes[at] = *byte,
            Damage::Add(more) => bytes[at] = bytes[at].wrapping_add(*more),
            Damage::Insert(byte) => bytes.insert(at, *byte),
            Damage::Remove => drop(bytes.remove(at)),
            Damage::Cut => bytes.truncate(at),
        }
    }
    bytes
}

/// What rustls makes of a hello: its name, `None` when it has none that rustls knows.
fn rustls_name(payload: &[u8]) -> Result<Option<String>, rustls::Error> {
    let mut acceptor = rustls::server::Acceptor::default();
    let mut rest = payload;
    loop {
        if rest.is_empty() || acceptor.read_tls(&mut rest).is_err() {
            return Err(rustls::Error::HandshakeNotComplete);
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                return Ok(hello.server_name().map(str::to_ascii_lowercase));
            }
            Ok(None) => {}
            Err((error, _)) => return Err(error),
        }
    }
}

/// That `verdict` and rustls do not read different names. Says whether both read one.
fn agrees(payload: &[u8]) -> Result<bool, TestCaseError> {
    let ours = verdict(payload);
    let theirs = rustls_name(payload);
    if let (Ok(ours), Ok(Some(theirs))) = (&ours, &theirs) {
        let theirs = theirs.strip_suffix('.').unwrap_or(theirs);
        prop_assert_eq!(ours, theirs);
        return Ok(true);
    }
    if let (Err(refusal), Ok(Some(theirs))) = (&ours, &theirs) {
        // Refused here and taken there is safe, but is the reason a good one?
        let known = matches!(
            refusal,
            Refusal::Name | Refusal::Names | Refusal::Length | Refusal::Encrypted
        );
        prop_assert!(known, "{:?} of a hello for {}", refusal, theirs);
    }
    Ok(false)
}

#[test]
fn a_plain_hello_has_its_name_in_both_readings() {
    let hello = |name: &str| Hello {
        session: 32,
        ciphers: vec![0x1301],
        extensions: vec![
            (10, sized(2, &[0, 0x1d])),
            (13, sized(2, &[8, 4])),
            (SERVER_NAME, server_names(&[(0, name.into())])),
            (43, sized(1, &[3, 4])),
            (
                51,
                sized(2, &[&[0, 0x1d], sized(2, &[9; 32]).as_slice()].concat()),
            ),
        ],
        cuts: vec![],
    };
    let bytes = hello("Allowed.test").bytes();
    assert_eq!(verdict(&bytes).as_deref(), Ok("allowed.test"));
    assert_eq!(rustls_name(&bytes), Ok(Some("allowed.test".to_owned())));
    for length in 0..bytes.len() {
        assert_eq!(
            verdict(&bytes[..length]),
            Err(Refusal::Incomplete),
            "{length}"
        );
    }
    for cut in 1..bytes.len() - 5 {
        let cuts = vec![cut];
        let split = Hello {
            cuts,
            ..hello("allowed.test")
        }
        .bytes();
        assert_eq!(verdict(&split).as_deref(), Ok("allowed.test"), "{cut}");
    }
    let with_data = [bytes.as_slice(), &[20, 3, 3, 0, 1, 1]].concat();
    assert!(
        verdict(&with_data).is_ok(),
        "what follows the hello is another matter"
    );
    for (name, refusal) in [
        ("", Refusal::Name),
        (".", Refusal::Name),
        ("198.51.100.1", Refusal::Name),
        ("2001:db8::1", Refusal::Name),
        ("a b.test", Refusal::Name),
        ("a\0.test", Refusal::Name),
        ("b\u{fc}cher.test", Refusal::Name),
        (&"a".repeat(254), Refusal::Name),
    ] {
        assert_eq!(verdict(&hello(name).bytes()), Err(refusal), "{name:?}");
    }
    for (first, refusal) in [
        (&b"GET / HTTP/1.1\r\n"[..], Refusal::NotHello),
        (b"SSH-2.0-x\r\n", Refusal::NotHello),
        (&[21, 3, 3, 0, 2, 1, 0], Refusal::NotHello),
        (&[22, 3, 3, 0, 4, 2, 0, 0, 0], Refusal::NotHello),
        (&[22, 2, 0, 0, 4, 1, 0, 0, 0], Refusal::NotHello),
        (&[22, 3, 3, 0, 0], Refusal::Length),
        (&[22, 3, 3, 0x40, 1], Refusal::Length),
        (&[22, 3, 3, 0, 5, 1, 0, 0, 0, 0], Refusal::Length),
    ] {
        assert_eq!(verdict(first), Err(refusal), "{first:?}");
    }
}

proptest! {
    #![proptest_config(crate::config())]

    #[test]
    fn rustls_and_the_reference_read_the_same_name(
        hello in hello(), damage in damage(3), within in prop::sample::select(vec![8, 100, 8192]),
    ) {
        let bytes = hello.bytes();
        agrees(&bytes)?;
        agrees(&damaged(bytes, &damage, within))?;
    }

    /// So segments can be judged as they come.
    #[test]
    fn what_the_beginning_of_a_flow_says_its_end_does_not_change(
        hello in hello(), damage in damage(2), within in prop::sample::select(vec![8, 100, 8192]),
        cut in any::<prop::sample::Index>(),
    ) {
        let bytes = damaged(hello.bytes(), &damage, within);
        let early = verdict(&bytes[..cut.index(bytes.len() + 1)]);
        prop_assert!(early == Err(Refusal::Incomplete) || early == verdict(&bytes));
    }
}

/// Else the comparison proves less than it seems to.
#[test]
fn generated_hellos_are_of_all_sorts() {
    use std::collections::HashMap;

    use proptest::{strategy::ValueTree as _, test_runner::TestRunner};

    let mut runner = TestRunner::deterministic();
    let mut seen: HashMap<String, usize> = HashMap::new();
    for _ in 0..2000 {
        let hello = hello().new_tree(&mut runner).unwrap().current();
        let bytes = hello.bytes();
        let both = agrees(&bytes).unwrap();
        let mut note = |what: &str| *seen.entry(what.to_owned()).or_default() += 1;
        note(&match verdict(&bytes) {
            Ok(_) if both => "a name in both".to_owned(),
            Ok(_) => "a name".to_owned(),
            Err(refusal) => format!("{refusal:?}"),
        });
        if bytes.len() > 2048 {
            note("2 kB");
        }
        if !hello.cuts.is_empty() {
            note("several records");
        }
    }
    for what in [
        "a name in both",
        "Names",
        "Name",
        "Length",
        "Encrypted",
        "2 kB",
        "several records",
    ] {
        let count = seen.get(what).copied().unwrap_or(0);
        assert!(count > 20, "{count} hellos with {what}: {seen:?}");
    }
}
