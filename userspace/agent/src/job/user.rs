//! The user that a job runs as.

use std::{collections::HashSet, env, ffi::OsString, fs, ops::RangeInclusive, path::PathBuf};

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use thiserror::Error;

/// Who runs the job's processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups, the primary one included, but for those that would make it root.
    pub groups: Vec<u32>,
    /// The groups that are left out for that, with their ids.
    pub left_out: Vec<(String, u32)>,
    /// The primary group, where it is one that can act as root: that one cannot be left out.
    pub privileged_group: Option<String>,
    /// Name, home folder and shell, for the environment; none for a user id without an entry in
    /// the user database.
    pub entry: Option<Entry>,
}

/// What the user database says of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Login name.
    pub name: String,
    /// Home folder.
    pub home: PathBuf,
    /// Login shell.
    pub shell: PathBuf,
}

/// Why a job's user could not be found.
#[derive(Debug, Error)]
pub enum UserError {
    /// Neither a name nor a number that is known.
    #[error("there is no user {0:?} on this host: give --user a login name or a numeric user id")]
    Unknown(String),
    /// The user database could not be read.
    #[error("could not look up user {user}: {source}")]
    Lookup {
        /// Who was looked up.
        user: String,
        /// Why it failed.
        source: nix::Error,
    },
}

/// The ids that processes of a user can have: its own, and by a user namespace those that
/// `/etc/subuid` gives it (subuid(5)). What a name service gives beside that file is not known.
pub(crate) fn ids(uid: u32) -> Vec<RangeInclusive<u32>> {
    let mut ids = vec![uid..=uid];
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    let names = [Some(uid.to_string()), user.map(|user| user.name)];
    let text = fs::read_to_string("/etc/subuid").unwrap_or_default();
    ids.extend(subordinate(&text, names.iter().flatten()));
    ids
}

/// The ranges that lines of `name:first:count` give to one of `names`. Root's id is nobody's else.
fn subordinate<'a>(
    text: &str,
    names: impl Iterator<Item = &'a String> + Clone,
) -> Vec<RangeInclusive<u32>> {
    let range = |line: &str| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        names.clone().find(|name| *name == owner)?;
        let first: u32 = fields.next()?.parse().ok()?;
        let count: u32 = fields.next()?.parse().ok()?;
        let last = first.checked_add(count.checked_sub(1)?)?;
        (first > 0).then_some(first..=last)
    };
    text.lines().filter_map(range).collect()
}

/// Those of `groups` whose members can act as root, by name.
pub(crate) fn acting_as_root(groups: &HashSet<u32>) -> Vec<&'static str> {
    LEFT_OUT
        .into_iter()
        .filter(|name| {
            let group = Group::from_name(name).ok().flatten();
            group.is_some_and(|group| groups.contains(&group.gid.as_raw()))
        })
        .collect()
}

/// Groups whose members can act as root, on the host or through a service that does: a job is in
/// none of them.
const LEFT_OUT: [&str; 7] = [
    "disk",
    "docker",
    "incus",
    "incus-admin",
    "libvirt",
    "lxd",
    "podman",
];

/// The id in a variable that sudo sets. One that does not parse is no reason to become root.
fn by_sudo(name: &'static str) -> Result<Option<u32>, UserError> {
    let Some(value) = env::var_os(name) else {
        return Ok(None);
    };
    let id = value.to_str().and_then(|value| value.parse().ok());
    id.map(Some)
        .ok_or_else(|| UserError::Unknown(format!("{name}={}", value.display())))
}

impl Account {
    /// The user of a job: `asked` (a login name or a user id) if given, else the one who called
    /// sudo, else root.
    ///
    /// # Errors
    ///
    /// [`UserError`].
    pub fn find(asked: Option<&str>) -> Result<Self, UserError> {
        if let Some(asked) = asked {
            return Self::named(asked);
        }
        // sudo sets both from the caller's credentials. Whoever can set them otherwise is root.
        match by_sudo("SUDO_UID")? {
            Some(uid) => Self::with_id(uid, by_sudo("SUDO_GID")?),
            None => Self::with_id(0, None),
        }
    }

    fn named(asked: &str) -> Result<Self, UserError> {
        let by_name = User::from_name(asked).map_err(|source| UserError::Lookup {
            user: asked.to_owned(),
            source,
        })?;
        match by_name {
            Some(user) => Self::of(&user),
            None => match asked.parse() {
                Ok(uid) => Self::with_id(uid, None),
                Err(_) => Err(UserError::Unknown(asked.to_owned())),
            },
        }
    }

    /// A user by id, who need not have an entry: containers often lack one.
    pub(crate) fn with_id(uid: u32, gid: Option<u32>) -> Result<Self, UserError> {
        // To setresuid(2) this one means "leave it as it is".
        if uid == u32::MAX || gid == Some(u32::MAX) {
            return Err(UserError::Unknown(u32::MAX.to_string()));
        }
        let user = User::from_uid(Uid::from_raw(uid)).map_err(|source| UserError::Lookup {
            user: uid.to_string(),
            source,
        })?;
        match user {
            Some(user) => Self::of(&user),
            None => {
                let gid = gid.unwrap_or(uid);
                Ok(Self {
                    uid,
                    gid,
                    groups: vec![gid],
                    left_out: Vec::new(),
                    privileged_group: None,
                    entry: None,
                })
            }
        }
    }

    fn of(user: &User) -> Result<Self, UserError> {
        let lookup = |source| UserError::Lookup {
            user: user.name.clone(),
            source,
        };
        let name =
            std::ffi::CString::new(user.name.as_str()).map_err(|_| lookup(nix::Error::EINVAL))?;
        let mut groups = getgrouplist(&name, user.gid).map_err(lookup)?;
        let mut left_out = Vec::new();
        let mut privileged_group = None;
        for name in LEFT_OUT {
            let Some(group) = Group::from_name(name).map_err(lookup)? else {
                continue;
            };
            if group.gid == user.gid {
                privileged_group = Some(group.name);
            } else if groups.contains(&group.gid) {
                groups.retain(|&gid| gid != group.gid);
                left_out.push((group.name, group.gid.as_raw()));
            }
        }
        Ok(Self {
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
            groups: groups.into_iter().map(Gid::as_raw).collect(),
            left_out,
            privileged_group,
            entry: Some(Entry {
                name: user.name.clone(),
                home: user.dir.clone(),
                shell: user.shell.clone(),
            }),
        })
    }

    /// Whether this is root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// A login name, or a user id.
    #[must_use]
    pub fn name(&self) -> String {
        let name = self.entry.as_ref().map(|entry| entry.name.clone());
        name.unwrap_or_else(|| self.uid.to_string())
    }

    /// What the environment has to say of the user where it is not the calling one, as after
    /// `sudo`.
    #[must_use]
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        let Some(entry) = &self.entry else {
            return Vec::new();
        };
        vec![
            ("HOME", entry.home.clone().into()),
            ("LOGNAME", entry.name.clone().into()),
            ("SHELL", entry.shell.clone().into()),
            ("USER", entry.name.clone().into()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_subordinate_ids_are_those_of_its_name_and_its_number() {
        let text = "# made by hand\nrunner:100000:65536\nrunner2:200000:1\n 1001:300000:2\n\
                    runner:0:5\nrunner:7:0\nrunner:4294967295:2\nrunner:x:1\nrunner:5\n";
        let names = ["1001".to_owned(), "runner".to_owned()];
        let ids = subordinate(text, names.iter());
        assert_eq!(ids, [100_000..=165_535, 300_000..=300_001]);
    }
}
