//! What the service manager is told ([sd_notify(3)](https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html)).

use std::{
    env, io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};

/// A connection to the service manager, if one has started this process and wants to know.
#[derive(Debug)]
pub struct Notify(Option<UnixDatagram>);

impl Notify {
    /// Connects to where `NOTIFY_SOCKET` says.
    ///
    /// # Errors
    ///
    /// When nobody is there.
    pub fn from_env() -> io::Result<Self> {
        let Some(path) = env::var_os("NOTIFY_SOCKET") else {
            return Ok(Self(None));
        };
        let address = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&path)?,
        };
        let socket = UnixDatagram::unbound()?;
        // A service manager that is not looking must not keep the agent from its work.
        socket.set_nonblocking(true)?;
        socket.connect_addr(&address)?;
        Ok(Self(Some(socket)))
    }

    /// Tells it a state, as `READY=1`. One that cannot be told changes nothing here.
    pub fn tell(&self, state: &str) {
        if let Some(socket) = &self.0
            && let Err(error) = socket.send(state.as_bytes())
        {
            tracing::warn!(%error, state, "the service manager could not be told");
        }
    }
}

/// What the service manager is told when the configuration is read again: `RELOADING=1`, and when
/// that was, in microseconds of `CLOCK_MONOTONIC`. `READY=1` ends it.
#[must_use]
pub fn reloading() -> String {
    let now = clock_gettime(ClockId::Monotonic);
    let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
    format!("RELOADING=1\nMONOTONIC_USEC={micros}")
}

/// How often the service manager wants to hear that this process is alive, if it does: half of the
/// time after which it gives it up.
#[must_use]
pub fn watchdog() -> Option<Duration> {
    let number = |name| env::var(name).ok()?.parse::<u64>().ok();
    // Without it, every process of the service is meant.
    let is_meant = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    let limit = number("WATCHDOG_USEC").filter(|&limit| limit > 0 && is_meant)?;
    Some(Duration::from_micros(limit) / 2)
}
