//! Finding and reading a policy file.

use std::{
    fs::OpenOptions,
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Result, anyhow, bail};
use jobfence_agent::{control::protocol::PolicyText, job::user::Account};
use jobfence_policy::{Job, MAX_BYTES, Policy};
use nix::{
    fcntl::OFlag,
    unistd::{Gid, Uid, getegid, geteuid, getgroups, setfsgid, setfsuid, setgroups},
};
use time::OffsetDateTime;

/// Where a policy is looked for when none is given, in this order, from the working folder.
const PLACES: [&str; 2] = [".jobfence.yml", ".github/jobfence.yml"];

/// Reads the job `name` of the policy at `path`, as `account` may read it.
pub(crate) fn load(path: &Path, name: Option<&str>, account: &Account) -> Result<Job> {
    let bytes = read_as(path, account)?;
    let job = Policy::parse(&path.to_string_lossy(), &bytes)?.job(name)?;
    Ok(job.retire(OffsetDateTime::now_utc().date()))
}

/// Reads the policy file at `path` as `account` may read it, for the agent.
pub(crate) fn text(path: &Path, account: &Account) -> Result<PolicyText> {
    let bytes = read_as(path, account)?;
    let text = String::from_utf8(bytes).map_err(|error| Unread {
        path: path.to_owned(),
        user: account.uid,
        source: io::Error::new(io::ErrorKind::InvalidData, error),
    })?;
    Ok(PolicyText {
        file: path.to_string_lossy().into_owned(),
        text,
    })
}

/// A policy file could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the policy {path} as user {user}: {source}")]
pub(crate) struct Unread {
    path: PathBuf,
    user: u32,
    source: io::Error,
}

/// Whether there was no such file.
pub(crate) fn is_absent(error: &anyhow::Error) -> bool {
    let unread = error.downcast_ref::<Unread>();
    unread.is_some_and(|unread| unread.source.kind() == io::ErrorKind::NotFound)
}

fn read_as(path: &Path, account: &Account) -> Result<Vec<u8>> {
    let groups = become_user(account)?;
    let bytes = read(path);
    become_self(groups)?;
    Ok(bytes.map_err(|source| Unread {
        path: path.to_owned(),
        user: account.uid,
        source,
    })?)
}

/// The policy file that is `given`, or is at the first place where there is one.
pub(crate) fn find(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    // A place that cannot be looked at is not passed over: that would choose another policy.
    for place in PLACES {
        if Path::new(place)
            .try_exists()
            .map_err(|error| anyhow!("cannot look for {place}: {error}"))?
        {
            return Ok(place.into());
        }
    }
    bail!(
        "no policy: neither {} is here. Write one, or name it with --policy",
        PLACES.join(" nor ")
    );
}

/// Takes on the rights of the job's user to files: the policy is that user's, and could be a link
/// to a file that is not, whose lines an error would show. Returns the groups to go back to; none
/// where this process is not root, who alone can do so, and which will be told of later.
fn become_user(account: &Account) -> Result<Option<Vec<Gid>>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let groups = getgroups()?;
    let theirs: Vec<_> = account.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&theirs).map_err(NotThatUser)?;
    setfsgid(Gid::from_raw(account.gid));
    setfsuid(Uid::from_raw(account.uid));
    Ok(Some(groups))
}

fn become_self(groups: Option<Vec<Gid>>) -> Result<()> {
    if let Some(groups) = groups {
        setfsuid(geteuid());
        setfsgid(getegid());
        setgroups(&groups).map_err(NotThatUser)?;
    }
    Ok(())
}

/// The groups of a process could not be set: a fault of the host, not of the policy.
#[derive(Debug, thiserror::Error)]
#[error("cannot take on the rights of the job's user: {0} (CAP_SETGID is needed)")]
pub(crate) struct NotThatUser(#[source] nix::Error);

/// Reads at most one byte more than a policy may have, which [`Policy::parse`] then refuses.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new()
        .read(true)
        // Else a FIFO in its place would wait for a writer.
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
