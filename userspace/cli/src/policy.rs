//! Finding and reading a policy file.

use std::{
    fs::OpenOptions,
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Result, anyhow, bail};
use jobfence_agent::job::user::Account;
use jobfence_policy::{Job, MAX_BYTES, Policy};
use nix::{
    fcntl::OFlag,
    unistd::{Gid, Uid, getegid, geteuid, setfsgid, setfsuid},
};

/// Where a policy is looked for when none is given, in this order, from the working folder.
const PLACES: [&str; 2] = [".jobfence.yml", ".github/jobfence.yml"];

/// Reads the job `name` of the policy at `given`, or at the first place where there is one, as
/// `account` may read it.
pub(crate) fn load(given: Option<&Path>, name: Option<&str>, account: &Account) -> Result<Job> {
    let path = find(given)?;
    let bytes = read(&path, account).map_err(|error| {
        let user = account.uid;
        anyhow!(
            "cannot read the policy {} as user {user}, who runs the job: {error}",
            path.display()
        )
    })?;
    Ok(Policy::parse(&path.to_string_lossy(), &bytes)?.job(name)?)
}

fn find(given: Option<&Path>) -> Result<PathBuf> {
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

/// Reads at most one byte more than a policy may have, which [`Policy::parse`] then refuses.
///
/// With the rights of the job's user: the file is that user's, and could be a link to one that is
/// not, whose lines an error would show.
fn read(path: &Path, account: &Account) -> io::Result<Vec<u8>> {
    let root = (geteuid(), getegid());
    setfsgid(Gid::from_raw(account.gid));
    setfsuid(Uid::from_raw(account.uid));
    let opened = OpenOptions::new()
        .read(true)
        // Else a FIFO in its place would wait for a writer.
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path);
    setfsuid(root.0);
    setfsgid(root.1);
    let file = opened?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
