//! What no crate here has a safe function for.
#![expect(unsafe_code, reason = "each use says why it is sound")]

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use tokio::io::unix::AsyncFd;

/// Reads what the kernel tells as text. Names of processes, cgroups and mount points in it are bytes,
/// and their owners choose them: what is no UTF-8 is replaced, and hides nothing else.
pub(crate) fn read_text(path: impl AsRef<Path>) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned())
}

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

/// Makes an io_uring of one entry (io_uring_setup(2)), to see whether one can be made.
///
/// # Errors
///
/// What the kernel says.
pub(crate) fn io_uring_setup() -> io::Result<OwnedFd> {
    // `struct io_uring_params`, 120 bytes.
    let mut params = [0_u64; 15];
    // SAFETY: the call reads and writes the parameters only, which live until it returns.
    let made = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
    new_descriptor(made)
}

/// Keeps the calling thread, and all that it starts, from abstract Unix sockets of processes
/// outside, and from sending those signals
/// ([landlock(7)](https://man7.org/linux/man-pages/man7/landlock.7.html), Linux 6.12). Needs
/// `no_new_privs`. On a kernel without it, or with Landlock off, does nothing.
///
/// # Errors
///
/// What a kernel that has it says.
pub(crate) fn scope() -> io::Result<()> {
    /// `LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET` and `LANDLOCK_SCOPE_SIGNAL` of `linux/landlock.h`.
    const SCOPED: u64 = 1 | 1 << 1;
    /// `struct landlock_ruleset_attr`: file and network accesses that are handled, then what is
    /// scoped.
    const ATTRIBUTES: [u64; 3] = [0, 0, SCOPED];

    // SAFETY: the call reads the attributes, and no more of them than their size.
    let made = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            ATTRIBUTES.as_ptr(),
            size_of_val(&ATTRIBUTES),
            0,
        )
    };
    let rules = match new_descriptor(made) {
        Ok(rules) => rules,
        Err(error) => {
            return match error.raw_os_error() {
                // None; off; one that knows of fewer attributes, or of fewer scopes.
                Some(libc::ENOSYS | libc::EOPNOTSUPP | libc::E2BIG | libc::EINVAL) => Ok(()),
                _ => Err(error),
            };
        }
    };
    // SAFETY: the call only reads what the descriptor, which is open, stands for.
    match unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The supplementary groups that the process at the other end of a Unix socket had when it connected
/// (`SO_PEERGROUPS`, Linux 4.13).
///
/// # Errors
///
/// What getsockopt(2) says.
pub(crate) fn peer_groups(socket: &impl AsFd) -> io::Result<Vec<u32>> {
    const GROUP: usize = size_of::<libc::gid_t>();
    let mut groups: Vec<libc::gid_t> = vec![0; 32];
    loop {
        let room = groups.len() * GROUP;
        let mut length = libc::socklen_t::try_from(room).map_err(io::Error::other)?;
        // SAFETY: the call writes as many bytes to the groups as the length says, which is theirs,
        // and to the length; both live until it returns.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        // How many there are, also where there is no room for them.
        let count = length as usize / GROUP;
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

/// The descriptor that a system call has just made, or its error.
fn new_descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    match libc::c_int::try_from(result) {
        // SAFETY: it is open, and nobody else knows of it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes a trie for longest-prefix matching, with keys and values of so many bytes.
///
/// # Errors
///
/// What bpf(2) says.
pub(crate) fn make_trie(key: usize, value: usize, entries: u32) -> io::Result<OwnedFd> {
    /// A command of bpf(2), `BPF_MAP_TYPE_LPM_TRIE` and `BPF_F_NO_PREALLOC`, which the kernel
    /// demands of tries.
    const MAP_CREATE: libc::c_int = 0;
    const LPM_TRIE: u64 = 11;
    const NO_PREALLOC: u64 = 1;

    // `map_type` and `key_size`, `value_size` and `max_entries`, `map_flags`.
    let key = u64::from(u32::try_from(key).map_err(io::Error::other)?);
    let value = u64::from(u32::try_from(value).map_err(io::Error::other)?);
    let entries = u64::from(entries);
    let made = bpf(
        MAP_CREATE,
        &mut [LPM_TRIE | key << 32, value | entries << 32, NO_PREALLOC],
    )?;
    // SAFETY: the call has just made it, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(made) })
}

/// Puts `maps` into the places `places` of the array of maps `array`. The kernel waits once for every
/// program that might still use what was there (before Linux 6.8 once for each).
///
/// # Errors
///
/// What bpf(2) says. Some may have been put then.
pub(crate) fn put_maps(array: BorrowedFd<'_>, places: &[u32], maps: &[OwnedFd]) -> io::Result<()> {
    /// A command of bpf(2).
    const MAP_UPDATE_BATCH: libc::c_int = 26;

    let maps: Vec<u32> = maps
        .iter()
        .map(|map| map.as_raw_fd().unsigned_abs())
        .collect();
    if maps.len() != places.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let count = u64::try_from(places.len()).map_err(io::Error::other)?;
    // `union bpf_attr.batch`: `in_batch` and `out_batch`, `keys`, `values`, `count` and `map_fd`,
    // `elem_flags`, `flags`. Halves of a word are in the order of a little-endian machine.
    let array = u64::from(array.as_raw_fd().unsigned_abs());
    let (keys, values) = (places.as_ptr() as u64, maps.as_ptr() as u64);
    bpf(
        MAP_UPDATE_BATCH,
        &mut [0, 0, keys, values, count | array << 32, 0, 0],
    )
    .map(drop)
}

/// Whether the pinned cgroup link at `path` is attached to nothing any more: its cgroup is removed
/// and the last socket of it is gone (`bpf_cgroup_link_auto_detach`).
///
/// # Errors
///
/// What bpf(2) says.
pub(crate) fn is_detached(path: &Path) -> io::Result<bool> {
    Ok(cgroup_of_link(path)? == 0)
}

/// The number of the cgroup that the pinned link at `path` is attached to; 0 for none any more.
///
/// # Errors
///
/// What bpf(2) says.
pub(crate) fn cgroup_of_link(path: &Path) -> io::Result<u64> {
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
    Ok(info[CGROUP_ID])
}

/// Programs that are attached to a cgroup for one kind of event.
#[derive(Debug)]
pub(crate) struct Attached {
    /// How: 0 for a program that tolerates no other, `BPF_F_ALLOW_OVERRIDE` (1) or
    /// `BPF_F_ALLOW_MULTI` (2). 0 also where there is none.
    pub(crate) flags: u32,
    /// Their ids.
    pub(crate) programs: Vec<u32>,
}

/// What is attached to `cgroup` itself for `attach_type` (`enum bpf_attach_type`).
///
/// # Errors
///
/// What bpf(2) says: `EPERM` without `CAP_NET_ADMIN`, `EINVAL` for a type that the kernel lacks.
pub(crate) fn attached(cgroup: &impl AsFd, attach_type: u32) -> io::Result<Attached> {
    /// A command of bpf(2).
    const PROG_QUERY: libc::c_int = 16;
    /// Programs that one cgroup can have of one type (`BPF_CGROUP_MAX_PROGS` of the kernel).
    const MOST: u32 = 64;
    /// An attach type that stands for many hooks. The kernel tells the flags of each program in
    /// place of those of the type, and refuses the question where there is no room for them.
    const LSM_CGROUP: u32 = 43;

    let mut programs = vec![0_u32; MOST as usize];
    let mut flags_of_each = [0_u32; MOST as usize];
    let fd = u64::from(cgroup.as_fd().as_raw_fd().unsigned_abs());
    // `union bpf_attr.query`: `target_fd` and `attach_type`, `query_flags` and `attach_flags`,
    // `prog_ids`, `prog_cnt` and padding, then what later kernels know, `prog_attach_flags` up to
    // `revision`. Halves of a word are in the order of a little-endian machine.
    let mut query = [0_u64; 8];
    query[0] = fd | u64::from(attach_type) << 32;
    query[2] = programs.as_mut_ptr() as u64;
    query[3] = u64::from(MOST);
    let is_lsm = attach_type == LSM_CGROUP;
    if is_lsm {
        query[4] = flags_of_each.as_mut_ptr() as u64;
    }
    bpf(PROG_QUERY, &mut query)?;
    let [_, flags] = halves(query[1]);
    let flags = if is_lsm { flags_of_each[0] } else { flags };
    let [count, _] = halves(query[3]);
    programs.truncate(count as usize);
    Ok(Attached { flags, programs })
}

/// The lower and the upper half of a word.
fn halves(word: u64) -> [u32; 2] {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the halves are what is wanted"
    )]
    [word as u32, (word >> 32) as u32]
}

/// bpf(2).
fn bpf(command: libc::c_int, attributes: &mut [u64]) -> io::Result<libc::c_int> {
    // SAFETY: the commands above read and write only the attributes and what they point to, as far
    // as they say, and the caller keeps that alive for the call.
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
