//! What no crate here has a safe function for.
#![expect(unsafe_code, reason = "each use says why it is sound")]

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use tokio::io::unix::AsyncFd;

/// Lets tokio wait for `fd`, by a duplicate of it.
///
/// # Errors
///
/// What `dup` and `epoll_ctl` can fail with.
pub(crate) fn watch(fd: &impl AsFd) -> io::Result<AsyncFd<OwnedFd>> {
    let duplicate = fd.as_fd().try_clone_to_owned()?;
    // SAFETY: an `OwnedFd` is open, and the same descriptor, until it is dropped.
    let watched = unsafe { AsyncFd::register(duplicate) };
    watched.map_err(io::Error::from)
}

/// Marks every descriptor from `first` on to be closed by the next `execve`
/// ([close_range(2)](https://man7.org/linux/man-pages/man2/close_range.2.html), Linux 5.11).
///
/// # Errors
///
/// What the kernel says: `ENOSYS` or `EINVAL` before Linux 5.11.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: the call changes descriptor flags only; no descriptor is closed here, so none that
    // some value in this process owns becomes invalid.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
