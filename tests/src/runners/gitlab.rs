//! GitLab, as far as a runner sees it, on the net side.

use std::{fs, net::IpAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Daemon, open_folder, write};
use crate::{Data, Internet, addresses::GIT, run};

/// Its port, at which nobody else listens.
const PORT: u16 = 8929;

/// Serves jobs and repositories at `http://gitlab.test:8929`.
pub struct GitLab<'a> {
    internet: &'a Internet,
    folder: PathBuf,
    _server: Daemon,
}

impl<'a> GitLab<'a> {
    /// Its address for clients.
    pub const URL: &'static str = "http://gitlab.test:8929";

    /// A policy's rule for it.
    pub const RULE: &'static str = "{host: gitlab.test, ports: [8929], http: verify, tls: 'off'}";

    /// Starts it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(internet: &'a Internet) -> Result<Self> {
        let folder = internet.dir().join("gitlab");
        for name in ["queue", "taken", "repositories"] {
            fs::create_dir_all(folder.join(name))?;
        }
        internet.add_record("gitlab.test", Data::Address(IpAddr::V4(GIT.v4)));
        let script = folder.join("gitlab.py");
        fs::write(&script, include_str!("gitlab.py"))?;
        let mut command = internet.net_command("python3");
        command.arg(script).arg(PORT.to_string()).arg(&folder);
        let mut server = Daemon::start(&mut command, folder.join("server.log"))?;
        server.wait_for("ready");
        Ok(Self {
            internet,
            folder,
            _server: server,
        })
    }

    /// Makes a repository with these files, by name and text; returns its commit.
    ///
    /// # Errors
    /// When git fails.
    pub fn project(&self, path: &str, files: &[(&str, &str)]) -> Result<String> {
        let work = self.folder.join("work").join(path);
        for (name, text) in files {
            write(&work.join(name), text)?;
        }
        let bare = self.folder.join("repositories").join(format!("{path}.git"));
        let mut git = self.internet.command("sh");
        git.current_dir("/").args([
            "-ec",
            "cd \"$1\" && git init -q -b main . && git add -A &&
             git -c user.name=t -c user.email=t@example.com commit -qm one &&
             git clone -q --bare . \"$2\" && git -C \"$2\" update-server-info &&
             git rev-parse HEAD",
            "sh",
        ]);
        git.arg(work).arg(bare);
        let output = run(&mut git, Duration::from_secs(20))?;
        ensure!(output.status.success(), "{output:?}");
        Ok(output.stdout.trim().to_owned())
    }

    /// What GitLab tells a runner of a job of `project`, whose commit is `commit`.
    #[must_use]
    pub fn job(&self, id: u64, project: &str, commit: &str, name: &str) -> Value {
        let variable = |key: &str, value: &str| json!({"key": key, "value": value, "public": true});
        let url = Self::URL.replace("http://", "http://gitlab-ci-token:secret-of-the-job@");
        json!({
            "id": id,
            "token": format!("token-{id}"),
            "job_info": {"name": name, "stage": "test", "project_id": 1, "project_name": "p"},
            "git_info": {
                "repo_url": format!("{url}/{project}.git"),
                "ref": "main", "ref_type": "branch", "sha": commit, "depth": 0,
            },
            "variables": [
                variable("CI_JOB_ID", &id.to_string()),
                variable("CI_PROJECT_PATH", project),
                variable("CI_COMMIT_SHA", commit),
                variable("CI_CONFIG_PATH", ".gitlab-ci.yml"),
                variable("CI_PIPELINE_ID", "100"),
            ],
            "steps": [],
            "dependencies": [],
        })
    }

    /// Has the job wait for a runner.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn queue(&self, job: &Value) -> Result<()> {
        let name = format!("{}.json", job["id"]);
        fs::write(self.folder.join(&name), job.to_string())?;
        // Whole at once.
        let queued = self.folder.join("queue").join(&name);
        fs::rename(self.folder.join(&name), queued).context("cannot queue a job")
    }

    /// How a job ended, once it has.
    #[must_use]
    pub fn state(&self, id: u64) -> Option<String> {
        fs::read_to_string(self.folder.join(format!("state-{id}"))).ok()
    }

    /// The log of a job.
    #[must_use]
    pub fn trace(&self, id: u64) -> String {
        let trace = fs::read(self.folder.join(format!("trace-{id}"))).unwrap_or_default();
        String::from_utf8_lossy(&trace).into_owned()
    }

    /// Makes a folder below its own that every user can write.
    ///
    /// # Errors
    /// What making it can fail with.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.join(name);
        open_folder(&folder)?;
        Ok(folder)
    }
}
