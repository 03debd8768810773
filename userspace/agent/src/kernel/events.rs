//! The ring buffer of attempts, and what is done about each at once.

use std::{io, os::fd::OwnedFd};

use aya::maps::{MapData, RingBuf};
use jobfence_abi::{self as abi, Event, NamedEvent};
use thiserror::Error;
use tokio::io::unix::AsyncFd;

use super::{Connections, Kernel, KernelError};
use crate::sys;

/// The ring buffer cannot be read.
#[derive(Debug, Error)]
pub enum EventsError {
    /// It was taken before.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// It cannot be waited for.
    #[error("could not watch the ring buffer: {0}")]
    Watch(#[source] io::Error),
    /// Connections could not be ended.
    #[error("could not open sock_diag: {0}")]
    Connections(#[source] io::Error),
}

/// The ring buffer of attempts.
pub struct Events {
    ring: RingBuf<MapData>,
    connections: Connections,
}

impl Events {
    /// Attempts that are taken in one go.
    const BATCH: usize = 256;

    /// Takes the ring buffer of `kernel`.
    ///
    /// # Errors
    ///
    /// [`EventsError`].
    pub fn new(kernel: &mut Kernel) -> Result<Self, EventsError> {
        Ok(Self {
            ring: kernel.take_events()?,
            connections: Connections::open().map_err(EventsError::Connections)?,
        })
    }

    /// What is readable when there is something to take.
    ///
    /// # Errors
    ///
    /// [`EventsError::Watch`].
    pub fn watch(&self) -> Result<AsyncFd<OwnedFd>, EventsError> {
        sys::watch(&self.ring).map_err(EventsError::Watch)
    }

    /// Takes a batch of attempts, ends the connections of those that were refused, and says whether
    /// there may be more at once. An attempt leaves the buffer when `take` has returned `true` for it;
    /// with `false` it stays, with all that came after it, until the next call.
    pub fn drain(&mut self, mut take: impl FnMut(&Event, Option<&NamedEvent>) -> bool) -> bool {
        for _ in 0..Self::BATCH {
            let Some(item) = self.ring.next() else {
                return false;
            };
            let Some((event, name)) = abi::decode(&item) else {
                tracing::error!(bytes = item.len(), "an event of the wrong size");
                continue;
            };
            self.connections.end(&event);
            if !take(&event, name.as_ref()) {
                // Dropped, it would leave the buffer.
                std::mem::forget(item);
                return false;
            }
        }
        true
    }

    /// Takes everything that was reported so far, whoever it is about.
    pub fn take(&mut self) -> Vec<Event> {
        let mut taken = Vec::new();
        while let Some(item) = self.ring.next() {
            taken.extend(abi::decode(&item).map(|(event, _)| event));
        }
        taken
    }
}
