//! What a job leaves on disk, for the agent that comes after this one.
//!
//! The kernel keeps what is enforced, the job's log what has happened. The rest is here, in a folder
//! for each job: what the job is (`job.json`, written once, whole or not at all) and which names have
//! led it where (`names`, a line for each grant, written before it is made). A folder goes when its
//! job has ended.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Write as _},
    net::IpAddr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use jobfence_policy::Name;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::policy::Sources;
use crate::control::protocol::Labels;

/// What is wrong with what is on disk.
#[derive(Debug, Error)]
#[error("could not {doing} {path}: {source}")]
pub struct JournalError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// What a job is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    /// Its id.
    pub(super) id: String,
    /// Its place in the kernel's maps.
    pub(super) slot: u32,
    /// Its cgroup's folder.
    pub(super) cgroup: PathBuf,
    /// The number of that folder, by which the kernel knows the cgroup.
    pub(super) cgroup_id: u64,
    /// Who started it.
    pub(super) owner: u32,
    /// Whether it is a runner: see [`crate::control::protocol::Start::runner`].
    #[serde(default)]
    pub(super) is_runner: bool,
    /// Whose its processes are.
    pub(super) uid: Option<u32>,
    /// What the CI system calls it.
    pub(super) labels: Labels,
    /// What its policy is made of.
    pub(super) sources: Arc<Sources>,
    /// Whether its policy was narrowed while it ran.
    pub(super) narrowed: bool,
    /// Why it may reach no more than the host's baseline, if its policy could not be used.
    pub(super) closed: Option<String>,
    /// Ports of its resolver.
    pub(super) ports: (u16, u16),
    /// When it began, in seconds since 1970.
    pub(super) started: u64,
    /// The process with which it ends.
    pub(super) runner: Option<Runner>,
    /// What stands against taking its fence for a guarantee.
    pub(super) reasons: Vec<String>,
    /// Whether processes may be in it.
    pub(super) begun: bool,
}

/// A process, and when it began, in clock ticks since boot: numbers are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Runner {
    pub(super) pid: u32,
    pub(super) start: u64,
}

/// The folder of one job.
pub(crate) struct Journal {
    folder: PathBuf,
    names: Mutex<File>,
}

/// A grant, as a line.
#[derive(Serialize, Deserialize)]
struct Line {
    name: String,
    chain: Vec<String>,
    addresses: Vec<IpAddr>,
}

/// A grant: the name, the CNAME targets behind it, and the addresses.
pub(super) type Grant = (Name, Vec<Name>, Vec<IpAddr>);

impl Journal {
    /// Begins the journal of a job below `state`. The job is not there yet for those that come after,
    /// until [`Journal::write`].
    pub(super) fn begin(state: &Path, id: &str) -> Result<Self, JournalError> {
        let folder = jobs(state).join(id);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(failed("make", &folder))?;
        Self::open(folder)
    }

    fn open(folder: PathBuf) -> Result<Self, JournalError> {
        let path = folder.join(NAMES);
        let names = File::options()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed("open", &path))?;
        Ok(Self {
            folder,
            names: Mutex::new(names),
        })
    }

    /// Writes what the job is.
    pub(super) fn write(&self, record: &Record) -> Result<(), JournalError> {
        let path = self.folder.join(JOB);
        let new = self.folder.join("job.new");
        let written = serde_json::to_vec(record)
            .map_err(io::Error::from)
            .and_then(|bytes| {
                let mut file = File::create(&new)?;
                file.write_all(&bytes)?;
                fs::rename(&new, &path)
            });
        written.map_err(failed("write", &path))
    }

    /// Notes a grant that is about to be made.
    pub(crate) fn grant(
        &self,
        name: &Name,
        chain: &[Name],
        addresses: &[IpAddr],
    ) -> Result<(), JournalError> {
        let line = Line {
            name: name.to_string(),
            chain: chain.iter().map(Name::to_string).collect(),
            addresses: addresses.to_vec(),
        };
        let mut file = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let written = serde_json::to_vec(&line)
            .map_err(io::Error::from)
            .and_then(|line| {
                // It begins on a line of its own also where the one before was cut off.
                let line = [b"\n", line.as_slice(), b"\n"].concat();
                file.write_all(&line)
            });
        written.map_err(failed("write", &self.folder.join(NAMES)))
    }

    /// The grants of the job so far. A line that was cut off was not made yet.
    pub(super) fn grants(&self) -> Result<Vec<Grant>, JournalError> {
        let path = self.folder.join(NAMES);
        let read_failed = failed("read", &path);
        let file = File::open(&path).map_err(&read_failed)?;
        let mut grants = Vec::new();
        for line in BufReader::new(file).lines() {
            let Ok(line) = serde_json::from_str::<Line>(&line.map_err(&read_failed)?) else {
                continue;
            };
            let chain = line.chain.iter().filter_map(|name| Name::parse(name).ok());
            if let Ok(name) = Name::parse(&line.name) {
                grants.push((name, chain.collect(), line.addresses));
            }
        }
        Ok(grants)
    }

    /// Removes the journal of a job that has ended.
    pub(super) fn remove(&self) {
        remove(&self.folder);
    }
}

/// What is left of one job.
pub(super) enum Left {
    /// All that there is to know.
    Job(Box<Record>, Journal),
    /// It was about to begin, and nothing was in it.
    Beginning,
    /// Not enough: somebody else has been there.
    Damaged(JournalError),
}

/// The jobs that were left by the agent before this one, by id.
pub(super) fn left(state: &Path) -> Result<Vec<(String, Left)>, JournalError> {
    let folder = jobs(state);
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed("read", &folder))?,
    };
    let mut left = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("read", &folder))?;
        let id = entry.file_name().to_string_lossy().into_owned();
        let found = of_job(&entry.path(), &id).unwrap_or_else(Left::Damaged);
        left.push((id, found));
    }
    Ok(left)
}

fn of_job(folder: &Path, id: &str) -> Result<Left, JournalError> {
    let path = folder.join(JOB);
    let record = fs::read(&path)
        .and_then(|bytes| serde_json::from_slice::<Record>(&bytes).map_err(io::Error::from))
        .and_then(|record| match record.id == id {
            true => Ok(record),
            false => Err(io::Error::other("it is another job's")),
        });
    match record {
        Ok(record) => Ok(Left::Job(
            Box::new(record),
            Journal::open(folder.to_owned())?,
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Left::Beginning),
        Err(source) => Err(failed("read", &path)(source)),
    }
}

/// Removes what is left of the job `id`.
pub(super) fn discard(state: &Path, id: &str) {
    remove(&jobs(state).join(id));
}

fn remove(folder: &Path) {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(folder = %folder.display(), %error, "a job's state is left behind");
        }
        _ => {}
    }
}

const JOB: &str = "job.json";
const NAMES: &str = "names";

fn jobs(state: &Path) -> PathBuf {
    state.join("jobs")
}

fn failed(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> JournalError + use<> {
    let path = path.to_owned();
    move |source| JournalError {
        doing,
        path: path.clone(),
        source,
    }
}
