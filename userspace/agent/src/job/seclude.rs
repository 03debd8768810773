//! A mount namespace without the host's other doors.
//!
//! A process that may write to a cgroup's `cgroup.procs` can leave its own cgroup, and the fence
//! with it: root can, and so can a user to whom systemd has delegated a part of the hierarchy
//! (`user@.service`). And a process that may talk to a service manager, a container engine or
//! another resolver can have that one act in its place. The job gets a mount namespace in which
//! the hierarchies are read-only and those sockets are covered. Mounts that a namespace inherits
//! cannot be taken apart in a user namespace below it (mount_namespaces(7)).

use std::{
    fs::{self, Metadata},
    path::Path,
};

use nix::sched::{CloneFlags, unshare};
use rustix::{
    fs::{Gid, Mode, Uid, chown, mkdir},
    io,
    mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change, mount_remount},
};

use crate::sys;

/// File systems on which a write could undo the fence, or make the kernel act for the job.
const READ_ONLY: [&str; 7] = [
    "cgroup",
    "cgroup2",
    "tracefs",
    "debugfs",
    "securityfs",
    "sysfs",
    "configfs",
];

/// The file system where the fence is pinned. Read-only is not enough: whoever may open a pinned
/// link can detach it.
const COVERED: &str = "bpf";

/// Parts of a proc file system of which the same is true.
const READ_ONLY_PROC: [&str; 2] = ["sys", "sysrq-trigger"];

/// Sockets and devices that lead around the fence for whoever may open them.
pub(crate) const FILES: [&str; 8] = [
    // Service managers and container engines: start anything, anywhere.
    "/run/systemd/private",
    "/run/docker.sock",
    "/run/snapd.socket",
    // A resolver: asks for any name, and carries data out in it.
    "/run/systemd/resolve/io.systemd.Resolve",
    // Packets that come from an interface are no socket's.
    "/dev/net/tun",
    "/dev/ppp",
    "/dev/vhost-net",
    "/dev/vhost-vsock",
];

/// Folders in which such sockets come and go; the job gets an empty one in place of each. `{uid}`
/// is its user.
pub(crate) const FOLDERS: [&str; 12] = [
    "/run/dbus",
    "/run/containerd",
    "/run/podman",
    "/run/crio",
    "/run/buildkit",
    "/run/libvirt",
    "/var/lib/incus",
    "/run/nscd",
    "/run/avahi-daemon",
    // The user's own service manager, bus, container engine and terminal multiplexers.
    "/run/user",
    "/tmp/tmux-{uid}",
    "/run/screen",
];

/// Moves the calling process into such a namespace. `uid` and `gid` are the job's.
///
/// Returns what failed, on which path.
pub(crate) fn seclude(uid: u32, gid: u32) -> Result<(), (String, io::Errno)> {
    let at = |path: &str| {
        let path = path.to_owned();
        move |errno| (path, errno)
    };
    unshare(CloneFlags::CLONE_NEWNS)
        .map_err(|errno| at("a new mount namespace")(io::Errno::from_raw_os_error(errno as i32)))?;
    // What the host mounts later must not uncover what is covered here.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(at("/"))?;

    let mounts = sys::read_text("/proc/self/mountinfo")
        .map_err(|error| at("/proc/self/mountinfo")(io_errno(&error)))?;
    for Mount { point, kind, flags } in mounted(&mounts) {
        if READ_ONLY.contains(&kind) {
            let flags = flags | MountFlags::BIND | MountFlags::RDONLY;
            mount_remount(point.as_str(), flags, "").map_err(at(&point))?;
        } else if kind == COVERED {
            cover(&point).map_err(at(&point))?;
        } else if kind == "proc" {
            for part in READ_ONLY_PROC.map(|part| format!("{point}/{part}")) {
                if Path::new(&part).exists() {
                    let flags = flags | MountFlags::BIND | MountFlags::RDONLY;
                    mount_bind(part.as_str(), part.as_str()).map_err(at(&part))?;
                    mount_remount(part.as_str(), flags, "").map_err(at(&part))?;
                }
            }
        }
    }
    for file in FILES {
        let is_file = |meta: Metadata| !meta.is_dir();
        if fs::metadata(file).is_ok_and(is_file) {
            mount_bind("/dev/null", file).map_err(at(file))?;
        }
    }
    for folder in FOLDERS {
        let folder = folder.replace("{uid}", &uid.to_string());
        if Path::new(&folder).is_dir() {
            cover(&folder).map_err(at(&folder))?;
        }
    }
    runtime_folder(uid, gid)
}

/// Makes an empty folder for the user's runtime files, where there are such folders.
fn runtime_folder(uid: u32, gid: u32) -> Result<(), (String, io::Errno)> {
    let folder = format!("/run/user/{uid}");
    let failed = |errno| (folder.clone(), errno);
    if !Path::new("/run/user").is_dir() {
        return Ok(());
    }
    mkdir(&folder, Mode::RWXU).map_err(failed)?;
    chown(&folder, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(failed)
}

/// Covers a folder with an empty one.
fn cover(folder: &str) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", folder, "tmpfs", flags, c"mode=0755")
}

fn io_errno(error: &std::io::Error) -> io::Errno {
    io::Errno::from_io_error(error).unwrap_or(io::Errno::IO)
}

/// A mounted file system.
struct Mount<'a> {
    point: String,
    kind: &'a str,
    /// Its flags as a mount, which a remount has to repeat.
    flags: MountFlags,
}

/// What a `mountinfo` file lists (proc(5)).
fn mounted(mountinfo: &str) -> impl Iterator<Item = Mount<'_>> {
    mountinfo.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(4);
        let (point, options) = (fields.next()?, fields.next()?);
        let flags = options.split(',').map(|option| match option {
            "nosuid" => MountFlags::NOSUID,
            "nodev" => MountFlags::NODEV,
            "noexec" => MountFlags::NOEXEC,
            "noatime" => MountFlags::NOATIME,
            "nodiratime" => MountFlags::NODIRATIME,
            "relatime" => MountFlags::RELATIME,
            _ => MountFlags::empty(),
        });
        Some(Mount {
            point: unescape(point),
            kind: kind.split(' ').next()?,
            flags: flags.fold(MountFlags::empty(), |all, flag| all | flag),
        })
    })
}

/// Undoes the escapes of `mountinfo`: a space, a tab, a line feed and a backslash are written as
/// three octal digits (proc(5)).
fn unescape(point: &str) -> String {
    point
        .replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_with_their_flags() {
        let mounts = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 24 0:26 / /sys/fs/cgroup/memory rw,nosuid,nodev,noexec,relatime shared:9 - cgroup cgroup rw
42 24 0:38 / /sys/fs/cgroup/with\\040space rw shared:10 - cgroup2 none rw
43 24 0:39 / /sys/fs/bpf rw,nosuid shared:11 - bpf bpf rw
";
        let found: Vec<_> = mounted(mounts).collect();
        let points: Vec<_> = found
            .iter()
            .map(|mount| (mount.kind, mount.point.as_str()))
            .collect();
        assert_eq!(
            points,
            [
                ("ext4", "/"),
                ("cgroup", "/sys/fs/cgroup/memory"),
                ("cgroup2", "/sys/fs/cgroup/with space"),
                ("bpf", "/sys/fs/bpf")
            ]
        );
        assert!(
            found[1]
                .flags
                .contains(MountFlags::NOEXEC | MountFlags::RELATIME)
        );
        assert_eq!(found[3].flags, MountFlags::NOSUID);
    }
}
