//! Numbers for Prometheus, in its
//! [text format](https://prometheus.io/docs/instrumenting/exposition_formats/), over HTTP.
//!
//! What a scraper needs of HTTP is one request and one answer, so that is all there is: one connection
//! after the other, each for a bounded time. No label comes from a job, so the numbers are as many as
//! are named here.

use std::{
    fmt::Write as _,
    fs, io,
    net::SocketAddr,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, UnixListener},
    time::{sleep, timeout},
};

use super::{Host, lock};
use crate::control::protocol::Finished;

/// Where the numbers are to be had.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Listen {
    /// At the path of a Unix socket.
    Unix(PathBuf),
    /// At an address and port. Whoever can reach it can read them.
    Tcp(SocketAddr),
}

/// How long one scraper may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of a request that are read.
const LONGEST: usize = 8192;

/// How long to wait after an error that others cause, such as too many open files.
const PAUSE: Duration = Duration::from_millis(50);

/// What has happened since the agent began.
#[derive(Default)]
pub(super) struct Totals {
    started: AtomicU64,
    clean: AtomicU64,
    violated: AtomicU64,
    failed: AtomicU64,
    violations: AtomicU64,
    recorded: AtomicU64,
    lost: AtomicU64,
    limited: AtomicU64,
}

impl Totals {
    /// Counts a job that begins.
    pub(super) fn start(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a job that has ended, with what the programs counted for it.
    pub(super) fn end(&self, finished: &Finished, counters: &jobfence_abi::Counters) {
        let by_exit = match finished.exit {
            0 => &self.clean,
            super::job::FAILED => &self.failed,
            _ => &self.violated,
        };
        for (total, more) in [
            (by_exit, 1),
            (&self.violations, finished.status.violations),
            (&self.recorded, counters.recorded),
            (&self.lost, counters.lost),
            (&self.limited, counters.limited),
        ] {
            total.fetch_add(more, Ordering::Relaxed);
        }
    }
}

impl Host {
    /// Answers scrapers, for as long as it is polled; for ever if there are to be none.
    pub(super) async fn serve_metrics(&self) -> io::Result<()> {
        match &self.config.metrics {
            None => std::future::pending().await,
            Some(Listen::Unix(path)) => {
                match fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                let listener = UnixListener::bind(path)?;
                loop {
                    match listener.accept().await {
                        Ok((stream, _)) => self.answer(stream).await,
                        Err(_) => sleep(PAUSE).await,
                    }
                }
            }
            Some(Listen::Tcp(address)) => {
                let listener = TcpListener::bind(address).await?;
                loop {
                    match listener.accept().await {
                        Ok((stream, _)) => self.answer(stream).await,
                        Err(_) => sleep(PAUSE).await,
                    }
                }
            }
        }
    }

    async fn answer(&self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        match timeout(PATIENCE, self.exchange(stream)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a scraper went away"),
            Err(_) => tracing::debug!("a scraper took too long"),
        }
    }

    async fn exchange(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        let mut request = Vec::new();
        while !request.windows(4).any(|end| end == b"\r\n\r\n") {
            if request.len() > LONGEST || stream.read_buf(&mut request).await? == 0 {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        let (status, body) = if request.starts_with(b"GET /metrics ") {
            ("200 OK", self.metrics())
        } else {
            ("404 Not Found", "only GET /metrics is here\n".to_owned())
        };
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        stream.shutdown().await
    }

    fn metrics(&self) -> String {
        let jobs: Vec<_> = lock(&self.jobs).by_id.values().cloned().collect();
        let totals = &self.totals;
        let of = |total: &AtomicU64| total.load(Ordering::Relaxed);
        let (mut recorded, mut lost) = (of(&totals.recorded), of(&totals.lost));
        let (mut limited, mut violations) = (of(&totals.limited), of(&totals.violations));
        for job in &jobs {
            if let Ok(counters) = lock(&self.kernel).counters(job.slot) {
                recorded += counters.recorded;
                lost += counters.lost;
                limited += counters.limited;
            }
            violations += job.live.recorder().violations();
        }
        let mut text = String::new();
        let mut add = |name: &str, kind: &str, help: &str, values: &[(&str, u64)]| {
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "# HELP jobfence_{name} {help}\n# TYPE jobfence_{name} {kind}"
            );
            for (labels, value) in values {
                let _ = writeln!(text, "jobfence_{name}{labels} {value}");
            }
        };
        let running = jobs.len() as u64;
        add("jobs", "gauge", "Jobs that run.", &[("", running)]);
        let started = of(&totals.started);
        add(
            "jobs_started_total",
            "counter",
            "Jobs that began.",
            &[("", started)],
        );
        add(
            "jobs_ended_total",
            "counter",
            "Jobs that ended, by their verdict.",
            &[
                ("{verdict=\"clean\"}", of(&totals.clean)),
                ("{verdict=\"violated\"}", of(&totals.violated)),
                ("{verdict=\"failed\"}", of(&totals.failed)),
            ],
        );
        add(
            "violations_total",
            "counter",
            "Attempts that violate a policy.",
            &[("", violations)],
        );
        add(
            "attempts_total",
            "counter",
            "Attempts that the kernel saw, by what became of the record of them.",
            &[
                ("{record=\"written\"}", recorded),
                ("{record=\"lost\"}", lost),
                ("{record=\"limited\"}", limited),
            ],
        );
        text
    }
}
