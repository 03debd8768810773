//! What is measured: loops that run on the job side, inside the fence or outside, and the servers
//! for them on the net side.
//!
//! A loop does as many steps as a line of its standard input says and answers with the
//! nanoseconds that they took. So two of them can take turns, one in the fence and one without,
//! and whatever else the machine does meanwhile slows both.

use std::{
    io::{self, BufRead as _, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _, UdpSocket},
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::{
    net::sockopt::{set_socket_linger, set_socket_recv_buffer_size},
    time::{ClockId, clock_gettime},
};
use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::ring};

/// Datagrams are as long as a question for a name.
const DATAGRAM: [u8; 64] = [0; 64];
/// What a server of [`serve`] acknowledges with one byte.
pub(crate) const BLOCK: usize = 1 << 20;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Questions that are under way at once in [`Work::NameRate`].
const WINDOW: usize = 16;

/// Does what `arguments` say until standard input ends.
pub(crate) fn client(arguments: &[String]) -> Result<()> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut work = Work::new(&arguments)?;
    let mut answers = io::stdout();
    for line in io::stdin().lock().lines() {
        let steps = line?.parse().context("not a number of steps")?;
        let start = Instant::now();
        work.go(steps)?;
        writeln!(answers, "{}", start.elapsed().as_nanos())?;
        answers.flush()?;
    }
    Ok(())
}

/// A loop.
enum Work {
    /// Connects and closes.
    Connect(SocketAddr),
    /// Sends datagrams; to the address, or to none on a connected socket.
    Datagrams(UdpSocket, Option<SocketAddr>),
    /// Sends blocks of [`BLOCK`] bytes and waits until all are received.
    Bulk(TcpStream),
    /// Sends small segments on a connection.
    Segments(TcpStream),
    /// Asks for a name, one question after the other.
    Name(Questions),
    /// Asks for a name, many questions at once.
    NameRate(Questions),
    /// Executes a program that ends at once.
    Execute,
}

impl Work {
    fn new(arguments: &[&str]) -> Result<Self> {
        Ok(match arguments {
            ["connect", to] => Self::Connect(to.parse()?),
            ["datagrams", to] => Self::Datagrams(UdpSocket::bind("0.0.0.0:0")?, Some(to.parse()?)),
            ["connected-datagrams", to] => {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.connect(to)?;
                Self::Datagrams(socket, None)
            }
            ["bulk", to] => Self::Bulk(TcpStream::connect(to)?),
            ["segments", to] => {
                let stream = TcpStream::connect(to)?;
                stream.set_nodelay(true)?;
                Self::Segments(stream)
            }
            ["tls-bulk", name, port] => Self::Bulk(tls(name, port.parse()?)?),
            ["name", server, name] => Self::Name(Questions::new(server, name)?),
            ["name-rate", server, name] => Self::NameRate(Questions::new(server, name)?),
            ["execute"] => Self::Execute,
            _ => bail!("no such work: {arguments:?}"),
        })
    }

    fn go(&mut self, steps: usize) -> Result<()> {
        match self {
            Self::Connect(to) => {
                for _ in 0..steps {
                    let stream = TcpStream::connect(*to).context("refused")?;
                    // Ended by a reset: a connection that lingers keeps its port for a minute.
                    set_socket_linger(&stream, Some(Duration::ZERO))?;
                }
            }
            Self::Datagrams(socket, Some(to)) => {
                for _ in 0..steps {
                    socket.send_to(&DATAGRAM, *to).context("refused")?;
                }
            }
            Self::Datagrams(socket, None) => {
                for _ in 0..steps {
                    socket.send(&DATAGRAM).context("refused")?;
                }
            }
            Self::Bulk(stream) => {
                let chunk = vec![0; BLOCK / 8];
                for _ in 0..steps * 8 {
                    stream.write_all(&chunk)?;
                }
                stream.read_exact(&mut vec![0; steps])?;
            }
            Self::Segments(stream) => {
                for _ in 0..steps {
                    stream.write_all(&DATAGRAM)?;
                }
            }
            Self::Name(questions) => questions.ask(steps, 1)?,
            Self::NameRate(questions) => questions.ask(steps, WINDOW)?,
            Self::Execute => {
                for _ in 0..steps {
                    let status = Command::new("/bin/true").stdin(Stdio::null()).status()?;
                    ensure!(status.success(), "/bin/true: {status}");
                }
            }
        }
        Ok(())
    }
}

/// Connects to `port` at `name` and sends a ClientHello for it, padded to a whole block.
fn tls(name: &str, port: u16) -> Result<TcpStream> {
    let mut addresses = (name, port).to_socket_addrs()?;
    let to = addresses.find(SocketAddr::is_ipv4).context("no address")?;
    let mut stream = TcpStream::connect(to)?;
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let mut hello = Vec::new();
    ClientConnection::new(Arc::new(config), name.to_owned().try_into()?)?.write_tls(&mut hello)?;
    stream.write_all(&hello)?;
    stream.write_all(&vec![0; BLOCK - hello.len()])?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

/// A socket for questions, and the question for an IPv4 address (RFC 1035 section 4.1).
struct Questions {
    socket: UdpSocket,
    message: Vec<u8>,
    id: u16,
}

impl Questions {
    fn new(server: &str, name: &str) -> Result<Self> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        // The number; recursion desired; one question, no more.
        let mut message = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            message.push(u8::try_from(label.len())?);
            message.extend(label.bytes());
        }
        // The root; type A, class IN.
        message.extend([0, 0, 1, 0, 1]);
        Ok(Self {
            socket,
            message,
            id: 0,
        })
    }

    /// Asks `count` times, with at most `window` questions that are not answered yet.
    fn ask(&mut self, count: usize, window: usize) -> Result<()> {
        let mut buffer = [0; 512];
        for sent in 0..count + window - 1 {
            if sent < count {
                self.id = self.id.wrapping_add(1);
                self.message[..2].copy_from_slice(&self.id.to_be_bytes());
                self.socket.send(&self.message)?;
            }
            if sent + 1 >= window {
                let length = self.socket.recv(&mut buffer).context("no answer")?;
                // No error, and an answer.
                let good = length > 12 && buffer[3] & 0xf == 0 && buffer[6..8] != [0, 0];
                ensure!(good, "not the answer: {:02x?}", &buffer[..length]);
            }
        }
        Ok(())
    }
}

/// Prints the monotonic clock, in nanoseconds, as soon as it runs.
pub(crate) fn stamp() {
    println!("{}", now());
}

/// The monotonic clock, which all processes share, in nanoseconds.
pub(crate) fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let nanoseconds = Duration::try_from(now).unwrap_or_default().as_nanos();
    u64::try_from(nanoseconds).unwrap_or(u64::MAX)
}

/// Serves the loops, on the net side: takes connections at `tcp` and closes them, reads all at
/// `bulk` and acknowledges each block, and lets datagrams come to `udp`. Says `ready` first.
pub(crate) fn serve(tcp: u16, bulk: &[u16], udp: u16) -> Result<()> {
    let listen = |port| TcpListener::bind(("0.0.0.0", port)).context("cannot listen");
    let datagrams = UdpSocket::bind(("0.0.0.0", udp))?;
    // They are dropped where they arrive: to read them is no part of sending them.
    set_socket_recv_buffer_size(&datagrams, 0)?;
    let connections = listen(tcp)?;
    for &port in bulk {
        let listener = listen(port)?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Its end is the client's affair.
                thread::spawn(move || drain(stream));
            }
        });
    }
    println!("ready");
    io::stdout().flush()?;
    for stream in connections.incoming() {
        drop(stream);
    }
    Ok(())
}

fn drain(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BLOCK / 4];
    let mut count = 0;
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        count += read;
        stream.write_all(&vec![0; count / BLOCK])?;
        count %= BLOCK;
    }
}
