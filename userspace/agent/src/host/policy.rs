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
    Policy::parse("no policy", b"version: 1\njobs: {default: {}}\n")
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

/// Reads a file of the host.
pub(super) fn read(path: &Path) -> Result<PolicyText, PolicyError> {
    let file = path.to_string_lossy().into_owned();
    match fs::read_to_string(path) {
        Ok(text) => Ok(PolicyText { file, text }),
        Err(source) => Err(PolicyError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// The host's policy for a repository, in `folder`: `<repository>.yml`, else `default.yml`, else none.
pub(super) fn of_repository(
    folder: &Path,
    repository: Option<&str>,
) -> Result<Option<PolicyText>, PolicyError> {
    let named = repository.and_then(|name| path_of(folder, name));
    for path in named.into_iter().chain([folder.join("default.yml")]) {
        match read(&path) {
            Err(PolicyError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            found => return found.map(Some),
        }
    }
    Ok(None)
}

/// The file for a repository such as `group/project`; `None` for a name that could lead out of the
/// folder.
fn path_of(folder: &Path, repository: &str) -> Option<PathBuf> {
    let is_plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    repository
        .split('/')
        .all(is_plain)
        .then(|| folder.join(format!("{repository}.yml")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_repository_leads_out_of_the_folder() {
        let folder = Path::new("/policies");
        assert_eq!(
            path_of(folder, "group/project"),
            Some("/policies/group/project.yml".into())
        );
        for name in [
            "",
            "/etc/x",
            "../x",
            "a/../../x",
            "a//b",
            ".git",
            "a/.b",
            "a\0b",
            "a/",
        ] {
            assert_eq!(path_of(folder, name), None, "{name:?}");
        }
    }
}
