//! What a repository itself says of its jobs, at a ref that whoever proposes a change cannot write:
//! out of a mirror on this host, or as a command of the administrator tells it.
//!
//! git and the command run as children of the daemon, with what it has kept: see
//! [`super::confine`]. They have a few seconds, no terminal, and an environment of their own. git
//! reads objects by their names, and nothing else: it fetches nothing, starts nothing, and goes by no
//! configuration but the repository's own, which is root's.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::unix::{
        fs::MetadataExt as _,
        process::{CommandExt as _, ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};
use thiserror::Error;

use super::config::Config;
use crate::control::protocol::PolicyText;

/// How long a child may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Bytes of a policy, at most.
const MAX_POLICY: usize = 1 << 20;

/// Bytes that git may say of two files and a commit.
const MAX_SAID: usize = 2 * MAX_POLICY + (64 << 10);

/// The files in which a repository has its policy; the first that is there counts.
const FILES: [&str; 2] = [".jobfence.yml", ".github/jobfence.yml"];

/// What [`Config::policy_command`] exits with when the repository has no policy.
const NONE: i32 = 3;

/// Where children look for programs.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Why a policy that the host trusts cannot be had.
#[derive(Debug, Error)]
pub enum TrustedError {
    /// Others could change what is trusted.
    #[error(
        "{path} can be changed by others than root, so what it says is not taken: `chown -R root \
         {path}`, and `chmod -R go-w {path}`"
    )]
    NotRoots {
        /// The file or folder.
        path: PathBuf,
    },
    /// The mirror has no such ref.
    #[error(
        "the mirror {mirror} has no {what}, of which the policy is taken: fetch it, or see `refs` \
         in agent.yml"
    )]
    NoRef {
        /// The mirror.
        mirror: PathBuf,
        /// The ref.
        what: String,
    },
    /// What is there is no policy.
    #[error("{what} of {repository} {problem}")]
    NotAPolicy {
        /// The file, with its ref, or the command.
        what: String,
        /// The repository.
        repository: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A child failed.
    #[error("{program} for the policy of {repository} {status}; the agent's log has what it said")]
    Failed {
        /// The child.
        program: PathBuf,
        /// The repository.
        repository: String,
        /// How it ended.
        status: String,
    },
    /// A child has not ended.
    #[error(
        "{program} for the policy of {repository} did not end within {seconds} s",
        seconds = LIMIT.as_secs()
    )]
    Hung {
        /// The child.
        program: PathBuf,
        /// The repository.
        repository: String,
    },
    /// A child has said more than it may.
    #[error("{program} for the policy of {repository} says more than {limit} bytes")]
    TooLong {
        /// The child.
        program: PathBuf,
        /// The repository.
        repository: String,
        /// How much it may say.
        limit: usize,
    },
    /// A system call failed.
    #[error("could not {doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

fn failed(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> TrustedError + use<> {
    let path = path.to_owned();
    move |source| TrustedError::Io {
        doing,
        path: path.clone(),
        source,
    }
}

/// The policy of `repository`, at the branch `base` if [`Config::refs`] has it, else at the
/// repository's default branch. `None` when it has none, and when the host has nowhere to look for
/// it. Blocks for seconds at worst.
pub(super) fn policy(
    config: &Config,
    repository: &str,
    base: Option<&str>,
) -> Result<Option<PolicyText>, TrustedError> {
    let repository = Repository {
        name: repository,
        branch: base.and_then(|base| config.trusted_branch(base)),
    };
    if let Some(mirrors) = &config.mirrors {
        repository.in_mirror(mirrors)
    } else if let [program, arguments @ ..] = &config.policy_command[..] {
        repository.by_command(Path::new(program), arguments)
    } else {
        Ok(None)
    }
}

/// Whose policy is looked for.
struct Repository<'a> {
    /// As in `group/project`; of plain characters.
    name: &'a str,
    /// The branch that counts; the default branch without it.
    branch: Option<&'a str>,
}

impl Repository<'_> {
    fn in_mirror(&self, mirrors: &Path) -> Result<Option<PolicyText>, TrustedError> {
        let mirror = mirrors.join(format!("{}.git", self.name));
        if !check_mirror(mirrors, &mirror)? {
            return Ok(None);
        }
        let revision = match self.branch {
            Some(branch) => format!("refs/heads/{branch}"),
            None => "HEAD".to_owned(),
        };
        let mut git = Command::new("git");
        git.arg("--no-replace-objects")
            .arg(format!("--git-dir={}", mirror.display()))
            .args(["cat-file", "--batch"])
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", "/nonexistent")
            .env("LC_ALL", "C")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            // A partial clone would have what is missing fetched by programs of its configuration.
            .env("GIT_NO_LAZY_FETCH", "1")
            .env("GIT_ALLOW_PROTOCOL", "none");
        let mut questions = format!("{revision}^{{commit}}\n");
        for file in FILES {
            questions += &format!("{revision}:{file}\n");
        }
        let (status, said) = self.run(&mut git, questions.as_bytes(), MAX_SAID)?;
        if !status.success() {
            return Err(self.failure(Path::new("git"), status));
        }
        let mut rest = &said[..];
        let unread = || TrustedError::NotAPolicy {
            what: "what git says".to_owned(),
            repository: self.name.to_owned(),
            problem: "cannot be read".to_owned(),
        };
        if object(&mut rest).ok_or_else(unread)?.is_none() {
            return Err(TrustedError::NoRef {
                mirror,
                what: revision,
            });
        }
        for file in FILES {
            let Some((kind, bytes)) = object(&mut rest).ok_or_else(unread)? else {
                continue;
            };
            let file = format!("{}:{file}", self.branch.unwrap_or("HEAD"));
            return match kind {
                "blob" => self.text(file, bytes.to_vec()).map(Some),
                kind => Err(TrustedError::NotAPolicy {
                    what: file,
                    repository: self.name.to_owned(),
                    problem: format!("is a {kind}, and no file"),
                }),
            };
        }
        Ok(None)
    }

    fn by_command(
        &self,
        program: &Path,
        arguments: &[String],
    ) -> Result<Option<PolicyText>, TrustedError> {
        let meta = fs::metadata(program).map_err(failed("look at", program))?;
        check_owner(program, &meta)?;
        let branch = self.branch.unwrap_or("HEAD");
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", PATH)
            .env("JOBFENCE_REPO", self.name)
            .env("JOBFENCE_REF", branch);
        let (status, said) = self.run(&mut command, b"", MAX_POLICY)?;
        match status.code() {
            Some(0) => {
                let file = format!("{}@{branch}", self.name);
                self.text(file, said).map(Some)
            }
            Some(NONE) => Ok(None),
            _ => Err(self.failure(program, status)),
        }
    }

    /// Runs a child to its end with `input`, and returns what it has said on its standard output.
    fn run(
        &self,
        command: &mut Command,
        input: &[u8],
        most: usize,
    ) -> Result<(ExitStatus, Vec<u8>), TrustedError> {
        let program = PathBuf::from(command.get_program());
        let child = command
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // What it starts is ended with it.
            .process_group(0)
            .spawn()
            .map_err(failed("run", &program))?;
        let mut child = Running {
            child,
            is_gone: false,
        };
        let deadline = Instant::now() + LIMIT;
        let Some((status, said)) = child
            .converse(input, most, deadline)
            .map_err(failed("talk to", &program))?
        else {
            return Err(TrustedError::Hung {
                program,
                repository: self.name.to_owned(),
            });
        };
        if said.len() > most {
            return Err(TrustedError::TooLong {
                program,
                repository: self.name.to_owned(),
                limit: most,
            });
        }
        Ok((status, said))
    }

    fn text(&self, file: String, bytes: Vec<u8>) -> Result<PolicyText, TrustedError> {
        let problem = if bytes.len() > MAX_POLICY {
            format!("has more than {MAX_POLICY} bytes")
        } else {
            match String::from_utf8(bytes) {
                Ok(text) => return Ok(PolicyText { file, text }),
                Err(error) => format!("is no UTF-8: {error}"),
            }
        };
        Err(TrustedError::NotAPolicy {
            what: file,
            repository: self.name.to_owned(),
            problem,
        })
    }

    fn failure(&self, program: &Path, status: ExitStatus) -> TrustedError {
        let status = match (status.code(), status.signal()) {
            (Some(code), _) => format!("exited with {code}"),
            (None, signal) => format!("was killed by signal {}", signal.unwrap_or_default()),
        };
        TrustedError::Failed {
            program: program.to_owned(),
            repository: self.name.to_owned(),
            status,
        }
    }
}

/// A child, and what it starts, which is its process group. Killed on drop.
struct Running {
    child: Child,
    /// Whether it was waited for: its number may be another's then.
    is_gone: bool,
}

impl Running {
    /// Its end and what it has said, at most a little more than `most` bytes; `None` when it has not
    /// ended in time.
    fn converse(
        &mut self,
        input: &[u8],
        most: usize,
        deadline: Instant,
    ) -> io::Result<Option<(ExitStatus, Vec<u8>)>> {
        if let Some(mut stdin) = self.child.stdin.take() {
            // A pipe holds that much. Who does not want it may close it.
            match stdin.write_all(input) {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
                _ => {}
            }
        }
        let mut said = Vec::new();
        let mut chunk = [0; 16 << 10];
        if let Some(mut stdout) = self.child.stdout.take() {
            while said.len() <= most {
                if !is_ready(&stdout, deadline)? {
                    return Ok(None);
                }
                match stdout.read(&mut chunk)? {
                    0 => break,
                    length => said.extend_from_slice(&chunk[..length]),
                }
            }
        }
        if said.len() <= most && !is_ready(pidfd_open(self.pid(), PidfdFlags::empty())?, deadline)?
        {
            return Ok(None);
        }
        Ok(Some((self.end()?, said)))
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Ends it and all of its group.
    fn end(&mut self) -> io::Result<ExitStatus> {
        // It is in it itself until it is waited for, so the group is there.
        kill_process_group(self.pid(), Signal::KILL)?;
        self.is_gone = true;
        self.child.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.is_gone
            && let Err(error) = self.end()
        {
            tracing::warn!(%error, "a child is left");
        }
    }
}

/// Waits until there is something to read, or nothing more will come; false at the deadline.
fn is_ready(fd: impl std::os::fd::AsFd, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or_default();
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Checks that what git reads is root's; false when there is no such mirror. git does not look at the
/// owner of a repository that it is given by its path.
fn check_mirror(mirrors: &Path, mirror: &Path) -> Result<bool, TrustedError> {
    if !check_below(mirrors, mirror)? {
        return Ok(false);
    }
    for part in ["HEAD", "config", "objects", "refs", "packed-refs"] {
        let path = mirror.join(part);
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            meta => check_owner(&path, &meta.map_err(failed("look at", &path))?)?,
        }
    }
    Ok(true)
}

/// Checks that only root can change the folder `top`, and what leads from there to `path`; false when
/// that is not there. The folder must be.
pub(super) fn check_below(top: &Path, path: &Path) -> Result<bool, TrustedError> {
    let mut part = top.to_owned();
    check_owner(top, &fs::metadata(top).map_err(failed("look at", top))?)?;
    for name in path.strip_prefix(top).unwrap_or(Path::new("")) {
        part.push(name);
        match fs::metadata(&part) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            meta => check_owner(&part, &meta.map_err(failed("look at", &part))?)?,
        }
    }
    Ok(true)
}

fn check_owner(path: &Path, meta: &fs::Metadata) -> Result<(), TrustedError> {
    if meta.uid() == 0 && meta.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(TrustedError::NotRoots {
        path: path.to_owned(),
    })
}

/// Takes the next object from what `git cat-file --batch` says: its type and its bytes, or `None` for
/// one that is missing. Not anything when that cannot be read.
fn object<'a>(said: &mut &'a [u8]) -> Option<Option<(&'a str, &'a [u8])>> {
    let end = said.iter().position(|&byte| byte == b'\n')?;
    let (line, rest) = (str::from_utf8(&said[..end]).ok()?, &said[end + 1..]);
    if line.ends_with(" missing") {
        *said = rest;
        return Some(None);
    }
    let mut words = line.split(' ').skip(1);
    let (kind, size) = (words.next()?, words.next()?.parse().ok()?);
    let (bytes, rest) = rest.split_at_checked(size)?;
    *said = rest.strip_prefix(b"\n")?;
    Some(Some((kind, bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_git_says_is_taken_apart() {
        let mut said = &b"HEAD:a missing\n1f commit 4\nab\n\n\n2e blob 0\n\nHEAD:b missing\n"[..];
        assert_eq!(object(&mut said), Some(None));
        assert_eq!(object(&mut said), Some(Some(("commit", &b"ab\n\n"[..]))));
        assert_eq!(object(&mut said), Some(Some(("blob", &b""[..]))));
        assert_eq!(object(&mut said), Some(None));
        assert_eq!(object(&mut said), None, "nothing more was said");
        for torn in [
            &b"1f blob 4\nab"[..],
            b"1f blob 2\nabc\n",
            b"1f blob x\n",
            b"1f\n",
            b"1f blob 18446744073709551615\n",
        ] {
            assert_eq!(object(&mut &torn[..]), None, "{torn:?}");
        }
    }
}
