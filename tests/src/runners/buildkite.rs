//! Buildkite's agent, as its manual and source describe it: which process runs which hook, with which
//! variables, and what their exit codes do. Both of its processes are shells under its name.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{Daemon, as_nobody, in_time, open_folder, write, write_script};
use crate::Internet;

/// `buildkite-agent start`: takes jobs, one folder each; rejects one whose `pre-bootstrap` fails.
const START: &str = r#"
cd "$1"; hooks=$2
echo "agent is up"
while [ ! -e stop ]; do
    for job in job-*; do
        [ -e "$job/env" ] && [ ! -e "$job/taken" ] || continue
        touch "$job/taken"
        (
            if ! BUILDKITE_ENV_FILE="$PWD/$job/env" "$hooks/pre-bootstrap" >"$job/log" 2>&1; then
                echo "-1" >"$job/exit.new"; mv "$job/exit.new" "$job/exit"; exit
            fi
            set -a; . "./$job/env"; set +a
            export BUILDKITE=true BUILDKITE_AGENT_PID=$$ BUILDKITE_BIN_PATH="$PWD/bin" HOOKS="$hooks"
            "$BUILDKITE_BIN_PATH/buildkite-agent" bin/bootstrap "$PWD/$job" >>"$job/log" 2>&1
            echo $? >"$job/exit.new"; mv "$job/exit.new" "$job/exit"
        ) &
    done
    sleep 0.02
done
"#;

/// `buildkite-agent bootstrap`: serves one job. A hook is sourced in a shell of its own; one that fails
/// fails the job, and `pre-exit` runs whatever happened.
const BOOTSTRAP: &str = r#"
cd "$1"
hook() {
    [ -e "$HOOKS/$1" ] || return 0
    [ -e "skip-$1" ] && return 0
    bash -c '. "$1"; exit $?' hook "$HOOKS/$1"
}
status=0
hook environment || status=$?
if [ $status = 0 ]; then
    bash -ec "$BUILDKITE_COMMAND" || status=$?
fi
export BUILDKITE_COMMAND_EXIT_STATUS=$status
hook pre-exit || status=$?
exit $status
"#;

/// `buildkite-agent annotate`, as a file that a shell finds where it is started.
const ANNOTATE: &str = "cat >\"$BUILDKITE_BIN_PATH/../note-$BUILDKITE_JOB_ID\"\n";

/// An agent that is running.
pub struct Buildkite {
    folder: PathBuf,
    agent: Daemon,
}

impl Buildkite {
    /// Starts it as the user `nobody`, with hooks by name and text.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(internet: &Internet, hooks: &[(&str, String)]) -> Result<Self> {
        let folder = internet.home().join("buildkite");
        open_folder(&folder)?;
        for (name, text) in hooks {
            write_script(&folder.join("hooks").join(name), text)?;
        }
        let bin = folder.join("bin");
        write(&bin.join("start"), START)?;
        write(&bin.join("bootstrap"), BOOTSTRAP)?;
        let program = bin.join("buildkite-agent");
        fs::copy("/bin/bash", &program).context("cannot copy bash")?;
        let mut command: Command = as_nobody(internet, &program);
        command.arg(bin.join("start")).arg(&folder);
        command.arg(folder.join("hooks"));
        let mut agent = Daemon::start(&mut command, internet.dir().join("buildkite.log"))?;
        agent.wait_for("agent is up");
        Ok(Self { folder, agent })
    }

    /// The process id of `buildkite-agent start`.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.agent.pid()
    }

    /// Gives it a job of the pipeline `pipeline` of the organization `group`, which leaves out the hooks
    /// `skipped`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn queue(&self, id: &str, pipeline: &str, command: &str, skipped: &[&str]) -> Result<()> {
        let job = self.job(id);
        open_folder(&job)?;
        for hook in skipped {
            write(&job.join(format!("skip-{hook}")), "")?;
        }
        // Where the job's processes are started.
        write(&job.join("annotate"), ANNOTATE)?;
        let command = command.replace('\'', r"'\''");
        let env = format!(
            "BUILDKITE_JOB_ID={id}\nBUILDKITE_BUILD_NUMBER=7\nBUILDKITE_ORGANIZATION_SLUG=group\n\
             BUILDKITE_PIPELINE_SLUG={pipeline}\nBUILDKITE_BRANCH=main\nBUILDKITE_LABEL=tests\n\
             BUILDKITE_COMMAND='{command}'\n"
        );
        fs::write(job.join("env.new"), env)?;
        fs::rename(job.join("env.new"), job.join("env")).context("cannot queue a job")
    }

    /// Waits for a job's end: its exit status, and its log.
    ///
    /// # Panics
    /// When it does not end in time.
    #[track_caller]
    #[must_use]
    pub fn wait(&self, id: &str) -> (String, String) {
        let job = self.job(id);
        let read = |name: &str| fs::read_to_string(job.join(name)).unwrap_or_default();
        in_time("the job ends", || job.join("exit").exists());
        (read("exit").trim().to_owned(), read("log"))
    }

    /// The note that a job has put on the page of its build.
    #[must_use]
    pub fn note(&self, id: &str) -> Option<String> {
        fs::read_to_string(self.folder.join(format!("note-{id}"))).ok()
    }

    fn job(&self, id: &str) -> PathBuf {
        let folder: &Path = &self.folder;
        folder.join(format!("job-{id}"))
    }
}
