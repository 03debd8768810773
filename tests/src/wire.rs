//! The record of what reached the net side.
//!
//! A packet socket on the net side sees every frame before the network stack does. That the
//! record is complete is checked against the kernel's own count of the frames that came in by the
//! cable: when both agree, no frame is on its way or lost. A refusal that is proven by an empty
//! record therefore cannot be a race.

use std::{
    collections::HashSet,
    fmt::{self, Display, Formatter},
    fs::File,
    io::{self, Read as _, Seek as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Deref,
    os::fd::OwnedFd,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{AddressFamily, RecvFlags, SocketFlags, SocketType, eth, recv, socket_with, sockopt},
};

/// The net side's end of the cable.
pub(crate) const INTERFACE: &str = "wire";
/// The net side's hardware address.
pub(crate) const NET_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Bytes of a frame that are read: enough for the headers and a DNS question, a ClientHello or the
/// head of a request.
const SNAP: usize = 2048;
/// Room for frames that the recording thread has not read yet.
const BUFFER: usize = 64 << 20;
/// How long [`Wire::arrivals`] waits for frames in flight.
const SETTLE: Duration = Duration::from_secs(5);

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP or ICMPv6.
    Icmp,
    /// Another one, by its IP protocol number.
    Other(u8),
}

/// One IPv4 or IPv6 packet that reached the net side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Its transport protocol.
    pub protocol: Protocol,
    /// The sender's address.
    pub src: IpAddr,
    /// The sender's port; 0 when the protocol has none or the packet is a later fragment.
    pub src_port: u16,
    /// The destination's address.
    pub dst: IpAddr,
    /// The destination's port; 0 when the protocol has none or the packet is a later fragment.
    pub dst_port: u16,
    /// Length of the IP packet in bytes. Segments that a network card would have split are one.
    pub len: usize,
    /// Whether it asks for a TCP connection (SYN without ACK).
    pub tcp_syn: bool,
    /// The TCP sequence number; 0 for other protocols.
    pub tcp_seq: u32,
    /// What follows the header of TCP or UDP, or of IP if it is another protocol; of a long packet
    /// only the first two kilobytes or so.
    pub payload: Box<[u8]>,
    /// The name that it asks for, in lower case without the last dot, when it goes to port 53.
    pub dns_question: Option<String>,
}

impl Arrival {
    /// Whether its payload continues that of `before` on the same connection.
    fn follows(&self, before: &Self) -> bool {
        let flow = |arrival: &Self| (arrival.src, arrival.src_port, arrival.dst, arrival.dst_port);
        let length = u32::try_from(before.payload.len()).unwrap_or_default();
        let next = before
            .tcp_seq
            .wrapping_add(u32::from(before.tcp_syn) + length);
        self.protocol == Protocol::Tcp
            && before.protocol == Protocol::Tcp
            && flow(self) == flow(before)
            && !self.payload.is_empty()
            && length > 0
            && self.tcp_seq == next
    }
}

impl Display for Arrival {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            protocol,
            src,
            src_port,
            dst,
            dst_port,
            len,
            ..
        } = self;
        write!(
            f,
            "{protocol:?} {src} port {src_port} -> {dst} port {dst_port}, {len} bytes"
        )?;
        if self.tcp_syn {
            write!(f, ", SYN")?;
        }
        if let Some(name) = &self.dns_question {
            write!(f, ", asks for {name}")?;
        }
        Ok(())
    }
}

/// Packets that reached the net side, in the order of their arrival.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arrivals(pub Vec<Arrival>);

impl Arrivals {
    /// Those to the address `dst`.
    #[must_use]
    pub fn to(&self, dst: impl Into<IpAddr>) -> Self {
        let dst = dst.into();
        self.only(|arrival| arrival.dst == dst)
    }

    /// Those to the port `port`.
    #[must_use]
    pub fn port(&self, port: u16) -> Self {
        self.only(|arrival| arrival.dst_port == port)
    }

    /// Those of the protocol `protocol`.
    #[must_use]
    pub fn protocol(&self, protocol: Protocol) -> Self {
        self.only(|arrival| arrival.protocol == protocol)
    }

    /// Those that ask a DNS server for `name`.
    #[must_use]
    pub fn questions(&self, name: &str) -> Self {
        self.only(|arrival| arrival.dns_question.as_deref() == Some(name))
    }

    /// Those that carry `bytes`, also when they are split over several packets of a connection.
    /// A packet counts when `bytes` begins in it.
    #[must_use]
    pub fn carrying(&self, bytes: &[u8]) -> Self {
        self.only(|first| {
            let mut data = first.payload.to_vec();
            let mut next = first;
            while let Some(follows) = self.iter().find(|arrival| arrival.follows(next)) {
                if data.len() >= first.payload.len() + bytes.len() {
                    break;
                }
                data.extend(&*follows.payload);
                next = follows;
            }
            let found = data.windows(bytes.len()).position(|part| part == bytes);
            found.is_some_and(|at| at < first.payload.len())
        })
    }

    fn only(&self, wanted: impl Fn(&Arrival) -> bool) -> Self {
        Self(
            self.iter()
                .filter(|arrival| wanted(arrival))
                .cloned()
                .collect(),
        )
    }
}

impl Deref for Arrivals {
    type Target = [Arrival];

    fn deref(&self) -> &[Arrival] {
        &self.0
    }
}

impl Display for Arrivals {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return write!(f, "nothing");
        }
        for arrival in self.iter() {
            writeln!(f, "{arrival}")?;
        }
        Ok(())
    }
}

/// A moment in the record.
#[derive(Clone, Copy, Debug)]
pub struct Mark(usize);

impl Mark {
    /// Before the first packet.
    pub(crate) const START: Self = Self(0);
}

/// The recorder.
#[derive(Debug)]
pub(crate) struct Wire {
    socket: OwnedFd,
    record: Mutex<Record>,
    /// `/proc/net/dev` of the net side.
    counters: Mutex<File>,
}

#[derive(Debug, Default)]
struct Record {
    /// Frames from the cable, the uninteresting ones too.
    frames: u64,
    arrivals: Vec<Arrival>,
}

impl Wire {
    /// Opens the recorder. The calling thread must be on the net side, before the cable is up.
    pub(crate) fn open() -> Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(
            AddressFamily::PACKET,
            SocketType::RAW,
            flags,
            Some(eth::ALL),
        )
        .context("cannot open a packet socket on the net side")?;
        sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER)
            .context("cannot enlarge the packet socket's buffer")?;
        // An open file of /proc/net stays with the namespace of the thread that opened it.
        let counters = File::open("/proc/thread-self/net/dev")
            .context("cannot open the net side's interface counters")?;
        Ok(Self {
            socket,
            record: Mutex::default(),
            counters: Mutex::new(counters),
        })
    }

    /// Records until `stop` becomes readable.
    pub(crate) fn record(&self, stop: &OwnedFd) {
        let mut frame = [0; SNAP];
        loop {
            let mut fds = [
                PollFd::new(&self.socket, PollFlags::IN),
                PollFd::new(stop, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => panic!("cannot poll the packet socket: {error}"),
            }
            if !fds[1].revents().is_empty() {
                return;
            }
            // TRUNC: the length returned is the frame's own, however much of it fits.
            while let Ok((read, len)) = recv(&self.socket, &mut frame, RecvFlags::TRUNC) {
                let frame = &frame[..read.min(SNAP)];
                if !is_from_cable(frame) {
                    continue;
                }
                let arrival = parse(frame, len).filter(|arrival| !is_kernel_noise(frame, arrival));
                let mut record = self.record.lock().expect("recorder panicked");
                record.frames += 1;
                record.arrivals.extend(arrival);
            }
        }
    }

    /// The present moment. All packets sent before the call are before it.
    pub(crate) fn mark(&self) -> Mark {
        self.settle();
        Mark(
            self.record
                .lock()
                .expect("recorder panicked")
                .arrivals
                .len(),
        )
    }

    /// Every packet that was sent after `mark` and before this call.
    ///
    /// # Panics
    /// When the kernel's count of frames and the record do not come to agree: frames were lost,
    /// and the record would prove nothing.
    pub(crate) fn since(&self, mark: Mark) -> Arrivals {
        self.settle();
        Arrivals(self.record.lock().expect("recorder panicked").arrivals[mark.0..].to_vec())
    }

    /// As [`since`](Self::since), without the rest of TCP connections that were opened before
    /// `mark`: the kernel ends a connection in its own time, also after its process is gone.
    pub(crate) fn attempts_since(&self, mark: Mark) -> Arrivals {
        let all = self.since(Mark::START);
        let (earlier, later) = all.split_at(mark.0);
        let flow =
            |arrival: &Arrival| (arrival.src, arrival.src_port, arrival.dst, arrival.dst_port);
        let open: HashSet<_> = earlier
            .iter()
            .filter(|arrival| arrival.tcp_syn)
            .map(flow)
            .collect();
        let is_rest = |arrival: &&Arrival| {
            arrival.protocol == Protocol::Tcp && !arrival.tcp_syn && open.contains(&flow(arrival))
        };
        Arrivals(
            later
                .iter()
                .filter(|arrival| !is_rest(arrival))
                .cloned()
                .collect(),
        )
    }

    /// Waits until every frame that was sent so far is in the record.
    ///
    /// The sending end of a veth pair counts a frame in the same softirq-disabled section that
    /// hands it over, so a recorded frame is a counted one. Equal numbers, with a counter that
    /// stood still meanwhile, are therefore equal sets.
    fn settle(&self) {
        let deadline = Instant::now() + SETTLE;
        loop {
            let before = self
                .counted()
                .expect("cannot read the net side's interface counters");
            let recorded = self.record.lock().expect("recorder panicked").frames;
            let after = self
                .counted()
                .expect("cannot read the net side's interface counters");
            if before == recorded && recorded == after {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{after} frames reached the net side but {recorded} are recorded: \
                 the record is incomplete and proves nothing"
            );
            thread::yield_now();
        }
    }

    /// Frames that came in by the cable, by the kernel's count.
    fn counted(&self) -> Result<u64> {
        let mut text = String::new();
        let mut file = self.counters.lock().expect("counter reader panicked");
        file.rewind()?;
        file.read_to_string(&mut text)?;
        text.lines()
            .find_map(|line| line.trim_start().strip_prefix(INTERFACE)?.strip_prefix(':'))
            .and_then(|columns| columns.split_whitespace().nth(1)?.parse().ok())
            .ok_or_else(|| io::Error::other(format!("no {INTERFACE} in {text}")).into())
    }
}

/// Whether the frame came in by the cable. The net side's own frames bear its address, those of
/// its loopback interface none at all.
fn is_from_cable(frame: &[u8]) -> bool {
    frame.len() < 12 || (frame[6..12] != NET_MAC && frame[..12] != [0; 12])
}

/// Whether the kernel of the job side sent the packet to keep its interface going: neighbour and
/// router discovery, and group membership. No process asks for these.
fn is_kernel_noise(frame: &[u8], arrival: &Arrival) -> bool {
    const IGMP: u8 = 2;
    let group = match arrival.dst {
        IpAddr::V4(dst) => dst.is_multicast(),
        IpAddr::V6(dst) => dst.is_multicast(),
    };
    match arrival.protocol {
        Protocol::Other(IGMP) => group,
        // MLD, router solicitation, neighbour solicitation and advertisement (RFC 2710, RFC 3810,
        // RFC 4861). Their hop limit is 1 or 255 and their destination is on the link.
        Protocol::Icmp if arrival.dst.is_ipv6() => {
            let on_link = group || arrival.dst == crate::addresses::GATEWAY.v6;
            on_link && matches!(icmpv6_type(frame), Some(131 | 132 | 143 | 133 | 135 | 136))
        }
        _ => false,
    }
}

const ETHERNET: usize = 14;

/// The parts of an IP packet that [`Arrival`] is made of. `len` is the frame's length.
fn parse(frame: &[u8], len: usize) -> Option<Arrival> {
    let packet = frame.get(ETHERNET..)?;
    let (number, src, dst, transport) = match u16_at(frame, 12)? {
        0x0800 => ipv4(packet)?,
        0x86dd => ipv6(packet)?,
        _ => return None,
    };
    let protocol = match number {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        1 | 58 => Protocol::Icmp,
        other => Protocol::Other(other),
    };
    let has_ports = matches!(protocol, Protocol::Tcp | Protocol::Udp);
    let port = |at| {
        has_ports
            .then(|| u16_at(transport, at))
            .flatten()
            .unwrap_or(0)
    };
    let (src_port, dst_port) = (port(0), port(2));
    let payload = match protocol {
        Protocol::Tcp => transport
            .get(12)
            .and_then(|offset| transport.get(usize::from(offset >> 4) * 4..)),
        Protocol::Udp => transport.get(8..),
        _ => Some(transport),
    };
    let payload = payload.unwrap_or_default();
    // A length precedes the message over TCP (RFC 1035 section 4.2.2).
    let prefix = if protocol == Protocol::Tcp { 2 } else { 0 };
    Some(Arrival {
        protocol,
        src,
        src_port,
        dst,
        dst_port,
        len: len - ETHERNET,
        tcp_syn: protocol == Protocol::Tcp
            && transport.get(13).is_some_and(|flags| flags & 0x12 == 0x02),
        tcp_seq: (protocol == Protocol::Tcp)
            .then(|| transport.get(4..8)?.try_into().ok())
            .flatten()
            .map_or(0, u32::from_be_bytes),
        dns_question: payload
            .get(prefix..)
            .filter(|_| dst_port == 53)
            .and_then(question),
        payload: payload.into(),
    })
}

/// Protocol number, addresses and transport header; the latter is empty in a later fragment.
fn ipv4(packet: &[u8]) -> Option<(u8, IpAddr, IpAddr, &[u8])> {
    let address = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets).into())
    };
    let header = usize::from(packet.first()? & 0xf) * 4;
    let later_fragment = u16_at(packet, 6)? & 0x1fff != 0;
    let transport = packet
        .get(header..)
        .filter(|_| !later_fragment)
        .unwrap_or_default();
    Some((*packet.get(9)?, address(12)?, address(16)?, transport))
}

/// As [`ipv4`], past the extension headers.
fn ipv6(packet: &[u8]) -> Option<(u8, IpAddr, IpAddr, &[u8])> {
    let address = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
        Some(Ipv6Addr::from(octets).into())
    };
    let mut number = *packet.get(6)?;
    let mut at = 40;
    loop {
        let size = match number {
            // Hop-by-hop options, routing, destination options (RFC 8200 section 4).
            0 | 43 | 60 => usize::from(*packet.get(at + 1)?) * 8 + 8,
            44 if u16_at(packet, at + 2)? & 0xfff8 == 0 => 8,
            44 => return Some((*packet.get(at)?, address(8)?, address(24)?, &[])),
            _ => break,
        };
        number = *packet.get(at)?;
        at += size;
    }
    Some((
        number,
        address(8)?,
        address(24)?,
        packet.get(at..).unwrap_or_default(),
    ))
}

fn icmpv6_type(frame: &[u8]) -> Option<u8> {
    let (_, _, _, transport) = ipv6(frame.get(ETHERNET..)?)?;
    transport.first().copied()
}

/// The name in the first question of a DNS message (RFC 1035 section 4.1).
fn question(message: &[u8]) -> Option<String> {
    if u16_at(message, 4)? == 0 {
        return None;
    }
    let mut labels = Vec::new();
    let mut rest = message.get(12..)?;
    loop {
        let (&len, after) = rest.split_first()?;
        if len == 0 {
            return Some(labels.join("."));
        }
        labels.push(String::from_utf8_lossy(after.get(..usize::from(len))?).to_lowercase());
        rest = &after[usize::from(len)..];
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
