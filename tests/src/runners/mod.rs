//! Real CI runners on the job side of a private internet, and stand-ins for what no package registry
//! has: GitLab itself, GitLab Runner's custom executor, Buildkite's agent.
//!
//! `cargo xtask setup` puts the real ones into `target/runners`.

mod buildkite;
mod custom;
mod gitlab;

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

pub use buildkite::Buildkite;
pub use custom::{BUILD_FAILURE, CustomExecutor, Cut, Ended, SYSTEM_FAILURE};
pub use gitlab::GitLab;

use crate::{Internet, slowness};

/// A file of the real runners: `bin/act`.
///
/// # Errors
/// When it is not there, with what to do.
pub fn installed(path: &str) -> Result<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"));
    let workspace = workspace.parent().context("no workspace")?;
    let file = workspace.join("target/runners").join(path);
    ensure!(
        file.exists(),
        "{path} is missing: run `cargo xtask setup`, which puts CI runners into target/runners"
    );
    Ok(file)
}

/// Writes a file that every user can read, and its folder.
///
/// # Errors
/// What writing can fail with.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().context("no folder")?;
    fs::create_dir_all(folder)?;
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Writes a script that every user can execute, and its folder.
///
/// # Errors
/// What writing can fail with.
pub fn write_script(path: &Path, text: &str) -> Result<()> {
    write(path, text)?;
    Ok(fs::set_permissions(path, Permissions::from_mode(0o755))?)
}

/// A folder that every user can write.
///
/// # Errors
/// What making it can fail with.
pub fn open_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path)?;
    Ok(fs::set_permissions(path, Permissions::from_mode(0o1777))?)
}

/// `program` on the job side as the user `nobody`.
#[must_use]
pub fn as_nobody(internet: &Internet, program: &Path) -> Command {
    let mut command = internet.command("setpriv");
    command
        .args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups"])
        .arg(program);
    command
}

/// Waits until `condition` holds, as [`eventually`](crate::eventually), but for as long as programs take that
/// a busy machine starts by the dozen.
///
/// # Panics
/// After a minute, [`slowness`] times that on a slow machine.
#[track_caller]
pub fn in_time(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60) * slowness();
    while !condition() {
        assert!(Instant::now() < deadline, "did not happen: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A program that runs until it is dropped.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it, with what it prints at the end of `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command, log: PathBuf) -> Result<Self> {
        let file = File::options().create(true).append(true).open(&log);
        let file = file.context("cannot make a log")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self { child, log })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said so far.
    #[must_use]
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it has said `words`.
    ///
    /// # Panics
    /// When it does not in time, or ends.
    #[track_caller]
    pub fn wait_for(&mut self, words: &str) {
        in_time(words, || {
            let ended = self.child.try_wait().expect("a child");
            assert!(ended.is_none(), "ended with {ended:?}: {}", self.said());
            self.said().contains(words)
        });
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
