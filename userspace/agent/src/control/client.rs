//! The caller's end of the control socket.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::sys::socket::{getsockopt, sockopt};
use thiserror::Error;

use super::protocol::{Answer, Code, Envelope, Greeting, Refusal, Request, VERSION};

/// Where the agent listens, unless agent.yml says otherwise.
pub const SOCKET: &str = "/run/jobfence/agent.sock";

/// How long the agent may take to greet, and for a part of a request to be taken.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long it may take to answer. Processes that are killed have ten seconds to be gone.
const WORK: Duration = Duration::from_secs(60);

/// Bytes of an answer at most, so that whatever is at the other end cannot exhaust this process.
const MAX_ANSWER: u64 = 64 << 20;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no agent at {socket}: {source}. Is it running (`systemctl status jobfence-agent`), and is \
         that the `socket` of its agent.yml?"
    )]
    NoAgent {
        /// The socket.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Somebody else than root listens there.
    #[error("whoever listens at {socket} is user {uid}, and not root's agent: nothing was asked")]
    NotRoot {
        /// The socket.
        socket: PathBuf,
        /// Whose process it is.
        uid: u32,
    },
    /// The agent speaks another version of the protocol.
    #[error(
        "the agent is jobfence {agent} and speaks version {version} of the protocol, this program \
         {VERSION}: use the jobfence that the agent is"
    )]
    Version {
        /// The agent's version of the protocol.
        version: u32,
        /// Its own version.
        agent: String,
    },
    /// The connection ended, or said something else.
    #[error(
        "the agent at {socket} gave no answer: {source}. Its log says why (`journalctl -u jobfence-agent`)"
    )]
    Lost {
        /// The socket.
        socket: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The agent refused.
    #[error("{}", .0.message)]
    Refused(Refusal),
}

impl ClientError {
    /// The answer is to another question.
    pub(crate) fn unexpected(socket: &Path) -> Self {
        Self::Lost {
            socket: socket.to_owned(),
            source: io::Error::other("it has answered another question"),
        }
    }
}

/// An answer, and what follows it.
pub struct Reply {
    /// The answer; never [`Answer::Error`].
    pub answer: Answer,
    /// What the agent sends after it: the log after [`Request::Tail`], else nothing.
    pub rest: BufReader<UnixStream>,
}

/// Asks the agent at `socket`, and waits for its answer. An agent that is too busy for this caller is
/// asked again for some seconds.
///
/// # Errors
///
/// [`ClientError`].
pub fn ask(socket: &Path, request: Request) -> Result<Reply, ClientError> {
    let envelope = Envelope {
        version: VERSION,
        request,
    };
    let mut pause = Duration::from_millis(10);
    loop {
        match ask_once(socket, &envelope) {
            Err(ClientError::Refused(refusal))
                if refusal.code == Code::Busy && pause < PATIENCE =>
            {
                thread::sleep(pause);
                pause *= 2;
            }
            reply => return reply,
        }
    }
}

fn ask_once(socket: &Path, envelope: &Envelope) -> Result<Reply, ClientError> {
    let no_agent = |source| ClientError::NoAgent {
        socket: socket.to_owned(),
        source,
    };
    let lost = |source| ClientError::Lost {
        socket: socket.to_owned(),
        source,
    };
    let stream = UnixStream::connect(socket).map_err(no_agent)?;
    let server =
        getsockopt(&stream, sockopt::PeerCredentials).map_err(|errno| lost(errno.into()))?;
    // Else a job could be told that it is fenced by somebody who does not fence it.
    if server.uid() != 0 {
        return Err(ClientError::NotRoot {
            socket: socket.to_owned(),
            uid: server.uid(),
        });
    }
    stream.set_write_timeout(Some(PATIENCE)).map_err(lost)?;
    let wait = |time| stream.set_read_timeout(time).map_err(lost);
    wait(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream.try_clone().map_err(lost)?);
    let Greeting { version, agent } = receive(&mut reader).map_err(lost)?;
    if version != VERSION {
        return Err(ClientError::Version { version, agent });
    }
    let mut line = serde_json::to_vec(envelope).map_err(|error| lost(error.into()))?;
    line.push(b'\n');
    // One that does not want to hear it to its end says why.
    let sent = (&stream).write_all(&line);
    wait(Some(WORK))?;
    let answer = match (receive(&mut reader), sent) {
        (Ok(answer), _) => answer,
        (Err(_), Err(error)) | (Err(error), Ok(())) => return Err(lost(error)),
    };
    if let Answer::Error(refusal) = answer {
        return Err(ClientError::Refused(refusal));
    }
    wait(None)?;
    Ok(Reply {
        answer,
        rest: reader,
    })
}

/// Receives a line.
fn receive<T: serde::de::DeserializeOwned>(reader: &mut BufReader<UnixStream>) -> io::Result<T> {
    let mut line = Vec::new();
    let read = reader.take(MAX_ANSWER).read_until(b'\n', &mut line);
    read.map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    })?;
    if line.last() != Some(&b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&line)?)
}
