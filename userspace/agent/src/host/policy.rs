//! From what a host and a caller say to the policy of one job.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use jobfence_policy::{Date, Error, HostPolicy, Job, Mode, Policy, Presets};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error as ThisError;

use super::{
    config::{Config, is_plain},
    trusted::{self, TrustedError},
};
use crate::control::protocol::PolicyText;

/// A job's policy cannot be had.
#[derive(Debug, ThisError)]
pub enum PolicyError {
    /// A file of the host cannot be read.
    #[error("could not read the policy {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The repository's own cannot be had.
    #[error(transparent)]
    Trusted(#[from] TrustedError),
    /// It is invalid.
    #[error(transparent)]
    Invalid(#[from] Error),
}

/// The files that a job's policy is made of, as they were when the job began: what happens to them
/// later does not change the job.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Sources {
    /// The job of the policy; `default` without it.
    pub(super) job: Option<String>,
    /// Whether to record only, or to refuse, whatever `base` says.
    pub(super) audit: Option<bool>,
    /// What the job may reach.
    pub(super) base: Option<PolicyText>,
    /// Files that can only take from that.
    pub(super) narrowing: Vec<PolicyText>,
    /// The host's own.
    pub(super) host: Option<PolicyText>,
    /// The host's presets, by name.
    pub(super) presets: Vec<(String, PolicyText)>,
}

/// The policies of the jobs that run, each once: most jobs of a host have the policy of some other.
#[derive(Default)]
pub(super) struct Policies(HashMap<[u8; 32], (Weak<Sources>, Weak<Job>)>);

impl Policies {
    /// The policy that `sources` make `today`, and the sources to keep.
    pub(super) fn compile(
        &mut self,
        sources: Sources,
        today: Date,
    ) -> Result<(Arc<Sources>, Arc<Job>), PolicyError> {
        let text = serde_json::to_vec(&(&sources, today.to_julian_day()));
        let key: [u8; 32] = Sha256::digest(text.map_err(unwritten)?).into();
        if let Some((sources, job)) = self.0.get(&key)
            && let (Some(sources), Some(job)) = (sources.upgrade(), job.upgrade())
        {
            return Ok((sources, job));
        }
        self.0.retain(|_, (_, job)| job.strong_count() > 0);
        let job = Arc::new(sources.compile(today)?);
        let sources = Arc::new(sources);
        self.0
            .insert(key, (Arc::downgrade(&sources), Arc::downgrade(&job)));
        Ok((sources, job))
    }
}

fn unwritten(error: serde_json::Error) -> PolicyError {
    PolicyError::Read {
        path: PathBuf::new(),
        source: error.into(),
    }
}

/// A policy that allows nothing.
pub(super) fn nothing() -> Job {
    Policy::parse("none on this host", b"version: 1\njobs: {default: {}}\n")
        .and_then(|policy| policy.job(None))
        .expect("a valid policy")
}

impl Sources {
    /// The job's policy, without what has expired `today`.
    fn compile(&self, today: Date) -> Result<Job, PolicyError> {
        let mut presets = Presets::built_in();
        for (name, preset) in &self.presets {
            presets.insert(name, &preset.file, preset.text.as_bytes())?;
        }
        let name = self.job.as_deref();
        let parse = |text: &PolicyText| {
            Policy::parse_with(&text.file, text.text.as_bytes(), &presets)?.job(name)
        };
        let host = self
            .host
            .as_ref()
            .map(|host| HostPolicy::parse(&host.file, host.text.as_bytes(), &presets))
            .transpose()?;
        let mut job = match (&self.base, &host) {
            (Some(base), _) => parse(base)?,
            // Nobody who is trusted has said anything of this job but what it may say itself.
            (None, Some(host)) if !self.narrowing.is_empty() => host.job(name.unwrap_or(DEFAULT)),
            (None, _) => nothing(),
        };
        job.mode = match self.audit {
            Some(true) => Mode::Audit,
            Some(false) => Mode::Enforce,
            None => job.mode,
        };
        for change in &self.narrowing {
            job = job.narrowed_by(&parse(change)?)?;
        }
        if let Some(host) = &host {
            job = job.under(host)?;
        }
        Ok(job.retire(today))
    }
}

/// The name of a job without one.
const DEFAULT: &str = "default";

/// The presets in `folder`, by name.
pub(super) fn presets(folder: &Path) -> Result<Vec<(String, PolicyText)>, PolicyError> {
    let failed = |source| PolicyError::Read {
        path: folder.to_owned(),
        source,
    };
    let mut presets = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "yml")
            && let Some(name) = path.file_stem().and_then(|name| name.to_str())
        {
            presets.push((name.to_owned(), read(&path)?));
        }
    }
    presets.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(presets)
}

/// Reads a file of the host, which only root can change.
pub(super) fn read(path: &Path) -> Result<PolicyText, PolicyError> {
    match read_below(path.parent().unwrap_or(path), path)? {
        Some(policy) => Ok(policy),
        None => Err(PolicyError::Read {
            path: path.to_owned(),
            source: io::ErrorKind::NotFound.into(),
        }),
    }
}

/// Reads a file that is in the folder `top`, or below it, if it is there. Only root can change it, and
/// what leads to it from there.
fn read_below(top: &Path, path: &Path) -> Result<Option<PolicyText>, PolicyError> {
    if !trusted::check_below(top, path)? {
        return Ok(None);
    }
    let text = fs::read_to_string(path).map_err(|source| PolicyError::Read {
        path: path.to_owned(),
        source,
    })?;
    let file = path.to_string_lossy().into_owned();
    Ok(Some(PolicyText { file, text }))
}

/// What the host knows as the policy of a repository, at the branch `base` if that counts: what stands
/// in its folder under the repository's name, what the repository itself says, `default.yml` in that
/// folder, or nothing. A repository whose name could lead elsewhere has no name here. Blocks for
/// seconds at worst.
pub(super) fn of_repository(
    config: &Config,
    repository: Option<&str>,
    base: Option<&str>,
) -> Result<Option<PolicyText>, PolicyError> {
    let in_folder = |name: &str| match &config.policies {
        None => Ok(None),
        Some(folder) => read_below(folder, &folder.join(format!("{name}.yml"))),
    };
    if let Some(repository) = repository.filter(|name| is_plain(name, b"._-")) {
        if let Some(policy) = in_folder(repository)? {
            return Ok(Some(policy));
        }
        if let Some(policy) = trusted::policy(config, repository, base)? {
            return Ok(Some(policy));
        }
    }
    in_folder(DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_repository_leads_out_of_the_folder() {
        assert!(is_plain("group/project", b"._-"));
        assert!(is_plain("group/pro.ject_2-x", b"._-"));
        for name in [
            "",
            "/etc/x",
            "../x",
            "a/../../x",
            "a//b",
            ".git",
            "a/.b",
            "a/-b",
            "--help",
            "a..b",
            "a\0b",
            "a\nb",
            "a/",
        ] {
            assert!(!is_plain(name, b"._-"), "{name:?}");
        }
    }
}
