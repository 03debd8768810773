//! What no crate here has a safe function for.
#![expect(unsafe_code, reason = "each use says why it is sound")]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
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

/// Whether the pinned cgroup link at `path` is attached to nothing any more: its cgroup is removed
/// and the last socket of it is gone (`bpf_cgroup_link_auto_detach`).
///
/// # Errors
///
/// What bpf(2) says.
pub(crate) fn is_detached(path: &Path) -> io::Result<bool> {
    /// Commands of bpf(2).
    const OBJ_GET: libc::c_int = 7;
    const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
    /// Words of eight bytes; more than `struct bpf_link_info` has, the rest zero.
    const INFO: usize = 16;
    /// `bpf_link_info.cgroup.cgroup_id`, the third word: type, id and program come first.
    const CGROUP_ID: usize = 2;

    let path = CString::new(path.as_os_str().as_bytes())?;
    // `pathname`, then `bpf_fd` and `file_flags`, both 0.
    let opened = bpf(OBJ_GET, &mut [path.as_ptr() as u64, 0])?;
    // SAFETY: the call has just opened it, and nobody else knows of it.
    let link = unsafe { OwnedFd::from_raw_fd(opened) };
    let mut info = [0_u64; INFO];
    let length = u64::try_from(size_of_val(&info)).map_err(io::Error::other)?;
    let fd = u64::from(link.as_raw_fd().unsigned_abs());
    // `bpf_fd` and `info_len` share a word, in the order of a little-endian machine.
    bpf(
        OBJ_GET_INFO_BY_FD,
        &mut [fd | length << 32, info.as_mut_ptr() as u64],
    )?;
    Ok(info[CGROUP_ID] == 0)
}

/// bpf(2), for commands whose attributes are two words.
fn bpf(command: libc::c_int, attributes: &mut [u64; 2]) -> io::Result<libc::c_int> {
    // SAFETY: the two commands above read and write only the attributes and what they point to,
    // which the caller keeps alive for the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_mut_ptr(),
            size_of_val(attributes),
        )
    };
    libc::c_int::try_from(result)
        .ok()
        .filter(|result| *result >= 0)
        .ok_or_else(io::Error::last_os_error)
}
