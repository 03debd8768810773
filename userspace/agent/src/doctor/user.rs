//! The user whose jobs are fenced, and what that user can do outside a fence.

use std::{
    ffi::OsStr,
    fs,
    io::Read as _,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, geteuid, getuid, pidfd_open},
};

use super::Check;
use crate::job::{
    advisory_reasons, process, seclude,
    user::{Account, UserError},
};

/// Where Docker's engine listens unless it is told otherwise.
const DOCKER: &str = "/run/docker.sock";

/// Groups to which sudo's usual rules give everything, for where sudo cannot be asked.
const SUDO_GROUPS: [&str; 3] = ["sudo", "wheel", "admin"];

/// How long sudo may take to list its rules: they can be in a directory service.
const SUDO_TIME: Duration = Duration::from_secs(5);

/// Sockets that are named one by one.
const MOST: usize = 5;

/// The user of jobs, as `jobfence run` finds it. Who is not root would have to call that with sudo.
pub(super) fn find(asked: Option<&str>) -> Result<Account, UserError> {
    let caller = getuid().as_raw().to_string();
    Account::find(match asked {
        None if !geteuid().is_root() => Some(&caller),
        asked => asked,
    })
}

pub(super) fn user(found: &Result<Account, UserError>) -> Check {
    const ID: &str = "user";
    let account = match found {
        Ok(account) => account,
        Err(error) => {
            return Check::cannot(ID, error.to_string()).mend("--user with a user of this host");
        }
    };
    let reasons = advisory_reasons(account);
    let found = format!("jobs run as {} (uid {})", account.name(), account.uid);
    if reasons.is_empty() {
        return Check::ok(ID, found);
    }
    let mend = match &account.privileged_group {
        Some(_) => format!("usermod -g ANOTHER_GROUP {}", account.name()),
        None => {
            "call `sudo jobfence run …` from the account that builds, or give --user".to_owned()
        }
    };
    Check::advisory(ID, found)
        .means(reasons.join("; "))
        .mend(mend)
}

pub(super) fn groups(account: &Account) -> Check {
    const ID: &str = "groups";
    let groups: Vec<_> = account
        .left_out
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    if groups.is_empty() {
        return Check::ok(ID, "in no supplementary group that can act as root");
    }
    let user = account.name();
    let mend: Vec<_> = groups
        .iter()
        .map(|group| format!("gpasswd -d {user} {group}"))
        .collect();
    Check::note(
        ID,
        format!("{user} is in {}, which can act as root", groups.join(", ")),
    )
    .means(
        "a job is in none of them, but what it leaves behind and the user runs later, outside \
             a fence, can be root",
    )
    .mend(mend.join("; "))
}

pub(super) fn sudo(account: &Account, root: bool) -> Check {
    const ID: &str = "sudo";
    if account.is_root() {
        return Check::ok(ID, "not asked: the user is root");
    }
    let user = account.name();
    let Some(program) = in_system_path("sudo") else {
        return Check::ok(ID, "not installed");
    };
    let asked = if root {
        sudo_list(&program, &user)
    } else {
        Err("only root can ask for all rules of a user".to_owned())
    };
    match asked {
        Ok(text) => sudo_rules(&user, &text),
        Err(error) => {
            let groups = sudo_groups(account);
            let found = if groups.is_empty() {
                format!("sudo could not be asked: {error}")
            } else {
                format!(
                    "{user} is in {}; sudo could not be asked: {error}",
                    groups.join(", ")
                )
            };
            Check::unknown(ID, found).mend(format!("sudo -l -U {user}"))
        }
    }
}

/// What sudo's list of a user's rules comes to.
fn sudo_rules(user: &str, text: &str) -> Check {
    const ID: &str = "sudo";
    let rules: Vec<_> = text
        .lines()
        .skip_while(|line| !line.contains("may run the following commands"))
        .skip(1)
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    if rules.is_empty() {
        return Check::ok(ID, format!("{user} may run nothing with it"));
    }
    let found = format!("{user} may run: {}", rules.join("; "));
    let means = "no job can use it (no_new_privs), but what it leaves behind and the user runs \
                 later, outside a fence, can";
    let means = if rules.iter().any(|rule| rule.contains("NOPASSWD")) {
        format!("{means}, without a password")
    } else {
        means.to_owned()
    };
    Check::note(ID, found).means(means).mend(format!(
        "take the rules for {user} out with visudo, but for the one that runs jobfence"
    ))
}

/// Asks sudo for the rules of `user`. It changes nothing, and is not asked for a password.
fn sudo_list(program: &Path, user: &str) -> Result<String, String> {
    let mut child = Command::new(program)
        .args(["-n", "-l", "-U", user])
        .env_clear()
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| error.to_string())?;
    let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
    let ended = pidfd.and_then(|pidfd| {
        let time = Timespec::try_from(SUDO_TIME).ok();
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], time.as_ref())
    });
    if !matches!(ended, Ok(1)) {
        // It may have ended meanwhile.
        let _ = child.kill();
    }
    let mut text = String::new();
    let read = child
        .stdout
        .take()
        .map(|mut stdout| stdout.read_to_string(&mut text));
    let status = child.wait().map_err(|error| error.to_string())?;
    match read {
        Some(Err(error)) => Err(error.to_string()),
        // It also fails for a user without rules, and says so.
        _ if status.success() || text.contains("is not allowed to run sudo") => Ok(text),
        _ => Err(format!("it ended with {status}")),
    }
}

/// A program of the system, in the folders that only root can write to.
fn in_system_path(program: &str) -> Option<PathBuf> {
    ["/usr/bin", "/bin", "/usr/local/bin", "/run/wrappers/bin"]
        .map(|folder| Path::new(folder).join(program))
        .into_iter()
        .find(|path| path.is_file())
}

fn sudo_groups(account: &Account) -> Vec<&'static str> {
    let is_member = |name: &&str| {
        nix::unistd::Group::from_name(name)
            .ok()
            .flatten()
            .is_some_and(|group| account.groups.contains(&group.gid.as_raw()))
    };
    SUDO_GROUPS.into_iter().filter(is_member).collect()
}

pub(super) fn docker_socket(account: &Account) -> Check {
    const ID: &str = "docker-socket";
    if !Path::new(DOCKER).exists() {
        return Check::ok(ID, format!("none at {DOCKER}"));
    }
    let user = account.name();
    if account.is_root() {
        return Check::note(ID, format!("{DOCKER} is there; covered in jobs")).means(
            "should Docker restart while a job that is root runs, the job sees the new one",
        );
    }
    let left_out = account.left_out.iter().map(|&(_, gid)| gid);
    let all: Vec<u32> = account.groups.iter().copied().chain(left_out).collect();
    if may_connect(Path::new(DOCKER), account.uid, &account.groups) {
        Check::note(
            ID,
            format!("{user} may use {DOCKER}, without a group that jobs are not in"),
        )
        .means(
            "it is covered in jobs, but should Docker restart while one runs, that job sees \
                 the new one and can be root; so can what it leaves behind",
        )
        .mend(format!(
            "chgrp docker {DOCKER} && chmod 660 {DOCKER}, and SocketMode=0660 of docker.socket"
        ))
    } else if may_connect(Path::new(DOCKER), account.uid, &all) {
        Check::note(
            ID,
            format!("{user} may use {DOCKER} by a group that jobs are not in"),
        )
        .means("a job does not reach it; what it leaves behind and the user runs later can be root")
        .mend("rootless Docker, or a user without that group for builds")
    } else {
        Check::ok(ID, format!("{user} may not use {DOCKER}"))
    }
}

pub(super) fn unix_sockets(account: &Account) -> Check {
    const ID: &str = "unix-sockets";
    const TABLE: &str = "/proc/net/unix";
    let table = match fs::read(TABLE) {
        Ok(table) => table,
        Err(error) => return Check::unknown(ID, format!("{TABLE}: {error}")),
    };
    let reached: Vec<_> = listening(&table)
        .into_iter()
        .filter(|name| {
            let path = Path::new(OsStr::from_bytes(name));
            name.starts_with(b"@")
                || !is_covered(path, account.uid) && may_connect(path, account.uid, &account.groups)
        })
        .collect();
    if reached.is_empty() {
        return Check::ok(ID, "a job can connect to none of this network namespace");
    }
    let named = reached
        .iter()
        .take(MOST)
        .map(|name| shown(name))
        .collect::<Vec<_>>()
        .join(", ");
    let more = match reached.len().saturating_sub(MOST) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Check::note(ID, format!("a job can connect to {named}{more}"))
        .means(
            "a program behind one of them that acts for whoever asks acts outside the fence. Those \
             with an @ are out of reach where Landlock is active on Linux 6.12 or newer",
        )
        .mend("end the programs that are not needed beside builds, or use another user for builds")
}

/// The names of the sockets that are listened at, abstract ones with `@` (proc_net_unix(5): number,
/// count, protocol, flags, type, state, inode, path).
///
/// Names are bytes of anybody's choice. One with a line break in it is shown as two lines; what that
/// can hide is itself.
fn listening(table: &[u8]) -> Vec<&[u8]> {
    /// `__SO_ACCEPTCON` of the kernel, as it is printed.
    const ACCEPTS: &[u8] = b"00010000";
    let mut names: Vec<_> = table
        .split(|&byte| byte == b'\n')
        .filter_map(|line| {
            let mut fields: [&[u8]; 7] = [b""; 7];
            let mut rest = line;
            for field in &mut fields {
                rest = rest.trim_ascii_start();
                let end = rest.iter().position(|&byte| byte == b' ')?;
                (*field, rest) = (&rest[..end], &rest[end + 1..]);
            }
            (fields[3] == ACCEPTS).then_some(rest)
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// A name for people to read, on a terminal too.
fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    text.replace(process::is_hidden, "\u{fffd}")
}

/// Whether a job of `uid` sees something else in the socket's place.
fn is_covered(socket: &Path, uid: u32) -> bool {
    // The usual link.
    let unlinked = socket.strip_prefix("/var/run").ok();
    let unlinked = unlinked.map(|rest| Path::new("/run").join(rest));
    let socket = unlinked.as_deref().unwrap_or(socket);
    let within = |folder: &str| socket.starts_with(folder.replace("{uid}", &uid.to_string()));
    let is = |file: &str| socket == Path::new(file);
    seclude::FILES.into_iter().any(is) || seclude::FOLDERS.into_iter().any(within)
}

/// Whether the permissions of a socket, and of the folders above it, let a user connect. Access
/// control lists are not looked at.
fn may_connect(socket: &Path, uid: u32, groups: &[u32]) -> bool {
    const WRITE: u32 = 2;
    const SEARCH: u32 = 1;
    let may = |path: &Path, right: u32| {
        fs::metadata(path).is_ok_and(|meta| {
            uid == 0 || right & allowed(meta.mode(), (meta.uid(), meta.gid()), uid, groups) == right
        })
    };
    // What is behind a link is where it is.
    let Ok(socket) = fs::canonicalize(socket) else {
        return false;
    };
    may(&socket, WRITE) && socket.ancestors().skip(1).all(|folder| may(folder, SEARCH))
}

/// The rights that a mode gives: 4 to read, 2 to write, 1 to search.
fn allowed(mode: u32, owner: (u32, u32), uid: u32, groups: &[u32]) -> u32 {
    let shift = if owner.0 == uid {
        6
    } else if groups.contains(&owner.1) {
        3
    } else {
        0
    };
    mode >> shift & 7
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    #[test]
    fn only_sockets_that_are_listened_at_are_found_by_their_whole_name() {
        let table = "\
Num       RefCount Protocol Flags    Type St Inode Path
00000000a4c6d962: 00000003 00000000 00000000 0001 03 20529 /run/connected
00000000ccc6d962: 00000002 00000000 00010000 0001 01 20533
000000005f6dc8a1: 00000002 00000000 00010000 0001 01   812 /run/with space
000000005f6dc8a2: 00000002 00000000 00010000 0005 01 20535 @/tmp/abstract
000000005f6dc8a3: 00000002 00000000 00010000 0001 01 20536 @/tmp/abstract
";
        let expected: [&[u8]; 2] = [b"/run/with space", b"@/tmp/abstract"];
        assert_eq!(listening(table.as_bytes()), expected);
    }

    #[test]
    fn a_name_that_is_no_text_hides_no_other_and_does_nothing_to_a_terminal() {
        let table = b"\
000000005f6dc8a2: 00000002 00000000 00010000 0001 01 20535 @\xff\x1b[2J\xc2\x9b
000000005f6dc8a1: 00000002 00000000 00010000 0001 01   812 /run/plain
";
        let names: Vec<_> = listening(table).into_iter().map(shown).collect();
        assert_eq!(names, ["/run/plain", "@\u{fffd}\u{fffd}[2J\u{fffd}"]);
    }

    #[test]
    fn what_the_job_sees_covered_is_not_reached() {
        for covered in [
            "/run/docker.sock",
            "/var/run/docker.sock",
            "/run/dbus/system_bus_socket",
            "/run/user/1000/podman/podman.sock",
            "/tmp/tmux-1000/default",
        ] {
            assert!(is_covered(Path::new(covered), 1000), "{covered}");
        }
        for reached in ["/run/docker.sock2", "/run/dbus2", "/tmp/tmux-10001/default"] {
            assert!(!is_covered(Path::new(reached), 1000), "{reached}");
        }
    }

    #[test]
    fn a_mode_gives_the_rights_of_the_first_class_that_fits() {
        assert_eq!(allowed(0o640, (7, 8), 7, &[8]), 6);
        assert_eq!(allowed(0o640, (7, 8), 9, &[9, 8]), 4);
        assert_eq!(allowed(0o642, (7, 8), 9, &[9]), 2);
        // The owner has no right of others.
        assert_eq!(allowed(0o007, (7, 8), 7, &[8]), 0);
    }

    #[test]
    fn rules_of_sudo_are_told_and_none_is_well() {
        let none = "User ci is not allowed to run sudo on host.\n";
        assert_eq!(sudo_rules("ci", none).status, Status::Ok);
        let all = "\
Matching Defaults entries for ci on host:
    env_reset, mail_badpass

User ci may run the following commands on host:
    (ALL : ALL) ALL
    (root) NOPASSWD: /usr/local/bin/jobfence
";
        let check = sudo_rules("ci", all);
        assert_eq!(check.status, Status::Note);
        assert_eq!(
            check.found,
            "ci may run: (ALL : ALL) ALL; (root) NOPASSWD: /usr/local/bin/jobfence"
        );
        assert!(
            check
                .means
                .is_some_and(|means| means.ends_with("without a password"))
        );
    }

    fn account(uid: u32) -> Account {
        Account {
            uid,
            gid: uid,
            groups: vec![uid],
            left_out: Vec::new(),
            privileged_group: None,
            entry: None,
        }
    }

    #[test]
    fn what_makes_a_job_advisory_does_so_here() {
        let root = user(&Ok(account(0)));
        assert_eq!(root.status, Status::Advisory);
        assert_eq!(root.means, Some(advisory_reasons(&account(0)).join("; ")));

        let docker = Account {
            privileged_group: Some("docker".to_owned()),
            ..account(1000)
        };
        let check = user(&Ok(docker));
        assert_eq!(check.status, Status::Advisory);
        assert_eq!(check.mend.as_deref(), Some("usermod -g ANOTHER_GROUP 1000"));

        assert_eq!(user(&Ok(account(1000))).status, Status::Ok);
        let nobody = user(&Err(UserError::Unknown("x".to_owned())));
        assert_eq!(nobody.status, Status::Cannot);
    }

    #[test]
    fn groups_that_are_left_out_are_a_note_with_the_command_that_ends_each() {
        let account = Account {
            left_out: vec![("docker".to_owned(), 990), ("lxd".to_owned(), 991)],
            ..account(1000)
        };
        let check = groups(&account);
        assert_eq!(check.status, Status::Note);
        assert_eq!(
            check.mend.as_deref(),
            Some("gpasswd -d 1000 docker; gpasswd -d 1000 lxd")
        );
    }
}
