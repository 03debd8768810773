//! Finding and reading a policy file.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use jobfence_policy::{Job, MAX_BYTES, Policy};

/// Where a policy is looked for when none is given, in this order, from the working folder.
const PLACES: [&str; 2] = [".jobfence.yml", ".github/jobfence.yml"];

/// Reads the job `name` of the policy at `given`, or at the first place where there is one.
/// Returns the job with the path of its policy.
pub(crate) fn load(given: Option<&Path>, name: Option<&str>) -> Result<(Job, PathBuf)> {
    let path = find(given)?;
    let bytes =
        read(&path).with_context(|| format!("cannot read the policy {}", path.display()))?;
    let job = Policy::parse(&path.to_string_lossy(), &bytes)?.job(name)?;
    Ok((job, path))
}

fn find(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    // A place that cannot be looked at is not passed over: that would choose another policy.
    for place in PLACES {
        if Path::new(place)
            .try_exists()
            .with_context(|| format!("cannot look for {place}"))?
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
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_BYTES as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}
