//! `jobfence agent`: the daemon for a host with many jobs.

use std::{
    fs::OpenOptions,
    future::{Future, pending},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::Args;
use jobfence_agent::{
    control::server::{self, Socket},
    host::{
        Host,
        config::{CONFIG, Config, ConfigError, IN_USE},
        confine::confine,
        notify::{Notify, reloading, watchdog},
    },
};
use nix::unistd::geteuid;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::interval,
};

use crate::report;

/// Fence the jobs of this host.
///
/// Runs until it is told to stop (SIGTERM, SIGINT). Jobs stay fenced meanwhile: the next agent takes
/// them up. On SIGHUP it reads its configuration again. `jobfence job` talks to it.
#[derive(Args)]
pub(crate) struct AgentArguments {
    /// Configuration [default: /etc/jobfence/agent.yml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(crate) fn agent(arguments: &AgentArguments) -> ExitCode {
    match run(arguments.config.as_deref()) {
        Ok(()) => 0.into(),
        Err(error) => {
            report::error(&error);
            1.into()
        }
    }
}

fn run(path: Option<&Path>) -> Result<()> {
    ensure!(
        geteuid().is_root(),
        "the agent must be root to fence jobs: run it as a service"
    );
    let (config, guarded) = configured(path)?;
    let group = config.group_id(path.unwrap_or(Path::new(CONFIG)))?;
    let notify = Notify::from_env().context("cannot reach the service manager at NOTIFY_SOCKET")?;
    // One thread: what a job needs is done in turn, and the watchdog sees when that stops.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Threads for what blocks end soon: only a thread that is alone can be confined.
        .thread_keep_alive(Duration::from_millis(100))
        .build()
        .context("cannot start the agent")?;
    runtime.block_on(serve(path, config, guarded, group, &notify))
}

/// The configuration, and the users that are held to jobs.
fn configured(path: Option<&Path>) -> Result<(Config, Vec<u32>), ConfigError> {
    let config = Config::load(path)?;
    let guarded = config.guarded(path.unwrap_or(Path::new(CONFIG)))?;
    Ok((config, guarded))
}

async fn serve(
    path: Option<&Path>,
    config: Config,
    guarded: Vec<u32>,
    group: Option<u32>,
    notify: &Notify,
) -> Result<()> {
    // First of all, since it tells whether another agent is running. Callers wait from now on.
    let socket = Socket::bind(&config.socket)?;
    let stop = stop_signal()?;
    let hangup = signal(SignalKind::hangup()).context("cannot take signals")?;
    let whole = config.whole();
    let in_use = config.socket.with_file_name(IN_USE);
    let host = Host::open(config, guarded, report::plain).await?;
    note(&in_use, &whole);
    confine().await?;
    notify.tell("READY=1");
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "the agent is ready");
    let stop = async {
        let signal = stop.await;
        tracing::info!(signal, "the agent stops; its jobs stay fenced");
        notify.tell("STOPPING=1");
    };
    tokio::select! {
        () = server::serve(socket, Arc::clone(&host), group, stop) => Ok(()),
        // It ends only by an error.
        ended = host.serve() => ended.map_err(|error| anyhow!("the agent cannot look after its jobs: {error}")),
        () = keep_alive(notify, watchdog()) => Ok(()),
        () = reload(hangup, &host, path, &in_use, notify) => Ok(()),
    }
}

/// Reads the configuration again, for ever, when it is told to. One that cannot be used changes
/// nothing.
async fn reload(
    mut hangup: Signal,
    host: &Host,
    path: Option<&Path>,
    in_use: &Path,
    notify: &Notify,
) {
    while hangup.recv().await.is_some() {
        notify.tell(&reloading());
        let reloaded = configured(path)
            .map_err(anyhow::Error::from)
            .and_then(|(config, guarded)| Ok((config.whole(), host.reload(config, guarded)?)));
        match reloaded {
            Ok((whole, waiting)) => {
                tracing::info!("the configuration is read again");
                if waiting.is_empty() {
                    note(in_use, &whole);
                }
                for key in waiting {
                    tracing::warn!(key, "is not changed until the agent is started again");
                }
            }
            Err(error) => tracing::error!(%error, "the configuration stays as it was"),
        }
        notify.tell("READY=1");
    }
    pending().await
}

/// Leaves for others to see which configuration the agent goes by.
fn note(in_use: &Path, whole: &str) {
    // A command for policies can have a secret among its arguments.
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(in_use);
    if let Err(error) = file.and_then(|mut file| file.write_all(whole.as_bytes())) {
        tracing::warn!(path = %in_use.display(), %error, "not written");
    }
}

/// Ready with its name when the process is told to stop.
fn stop_signal() -> Result<impl Future<Output = &'static str>> {
    let take = |kind| signal(kind).context("cannot take signals");
    let mut terminate = take(SignalKind::terminate())?;
    let mut interrupt = take(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    })
}

/// Tells the service manager, for ever, that this thread has its turn.
async fn keep_alive(notify: &Notify, period: Option<Duration>) {
    let Some(period) = period else {
        return pending().await;
    };
    let mut beat = interval(period);
    loop {
        beat.tick().await;
        notify.tell("WATCHDOG=1");
    }
}
