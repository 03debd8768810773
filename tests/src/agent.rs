//! The daemon on the job side of a private internet, and shells that become its jobs.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, ErrorKind, Write as _},
    os::unix::net::{UnixDatagram, UnixStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{Internet, Output, binary, run, slowness};

/// How long anything that is asked of the daemon may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// A `jobfence agent`, with a bpf file system, a socket and folders of its own.
pub struct Agent<'a> {
    internet: &'a Internet,
    folder: PathBuf,
    program: PathBuf,
    child: Option<Child>,
}

impl<'a> Agent<'a> {
    /// Starts a daemon with what `config` says beside where its files are.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub fn start(internet: &'a Internet, config: &str) -> Result<Self> {
        let folder = internet.dir().join("agent");
        fs::create_dir(&folder).context("cannot make the daemon's folder")?;
        let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
        let (socket, state, logs) = (path("agent.sock"), path("state"), path("logs"));
        let config = format!("socket: {socket}\nstate: {state}\nlogs: {logs}\n{config}");
        fs::write(folder.join("agent.yml"), config).context("cannot write agent.yml")?;
        // Pinned maps of other daemons are in theirs.
        let mut mount = internet.command("mount");
        mount.args(["-t", "bpf", "bpf", "/sys/fs/bpf"]);
        let mounted = run(&mut mount, DEADLINE)?;
        ensure!(mounted.status.success(), "no bpf file system: {mounted:?}");
        let mut agent = Self {
            internet,
            folder,
            program: binary()?,
            child: None,
        };
        agent.restart()?;
        Ok(agent)
    }

    /// Starts the daemon again, and waits until it is ready.
    ///
    /// # Errors
    /// When it is not ready in time; with what it said.
    pub fn restart(&mut self) -> Result<()> {
        let socket = self.launch()?;
        let mut state = [0; 256];
        // With a limit of time, the kernel does not begin again by itself (signal(7)).
        let received = loop {
            match socket.recv(&mut state) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                received => break received,
            }
        };
        let heard = received.map(|length| &state[..length] == b"READY=1");
        match heard {
            Ok(true) => Ok(()),
            heard => bail!("the daemon is not ready: {heard:?}\n{}", self.said()),
        }
    }

    /// Starts the daemon again, as another program, and waits until it is ready.
    ///
    /// # Errors
    /// As [`Agent::restart`].
    pub fn restart_as(&mut self, program: &Path) -> Result<()> {
        self.program = program.to_owned();
        self.restart()
    }

    /// Starts the daemon again, and does not wait: the socket is where it says that it is ready.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch(&mut self) -> Result<UnixDatagram> {
        let notify = self.folder.join("notify.sock");
        if let Err(error) = fs::remove_file(&notify) {
            ensure!(error.kind() == ErrorKind::NotFound, "{error}");
        }
        let socket = UnixDatagram::bind(&notify).context("cannot bind the notify socket")?;
        socket.set_read_timeout(Some(DEADLINE * slowness()))?;
        let said = fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.join("agent.log"))?;
        let mut command = self.internet.command(&self.program.to_string_lossy());
        command
            .arg("agent")
            .arg("--config")
            .arg(self.folder.join("agent.yml"))
            .env("NOTIFY_SOCKET", &notify)
            .env("JOBFENCE_LOG", "info")
            .stdout(said.try_clone()?)
            .stderr(said);
        self.child = Some(command.spawn().context("cannot start the daemon")?);
        Ok(socket)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When there is none.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().context("no daemon")?;
        Ok(kill_process(Pid::from_child(child), signal)?)
    }

    /// Kills the daemon, and waits until it is gone.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("no daemon")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Stops the daemon as a service manager does, and waits until it is gone.
    ///
    /// # Errors
    /// When there is none, or it does not end well.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let status = self.child.take().context("no daemon")?.wait()?;
        ensure!(status.success(), "{status}\n{}", self.said());
        Ok(())
    }

    /// Its process id.
    ///
    /// # Errors
    /// When there is none.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.child.as_ref().context("no daemon")?.id())
    }

    /// What it has said so far.
    #[must_use]
    pub fn said(&self) -> String {
        fs::read_to_string(self.folder.join("agent.log")).unwrap_or_default()
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.join("agent.sock")
    }

    /// Its folder, with `logs` and `state`.
    #[must_use]
    pub fn folder(&self) -> &PathBuf {
        &self.folder
    }

    /// A `jobfence job` command.
    ///
    /// # Errors
    /// When there is no jobfence binary.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.internet.command(&self.program.to_string_lossy());
        command
            .arg("job")
            .arg("--socket")
            .arg(self.folder.join("agent.sock"))
            .args(arguments);
        Ok(command)
    }

    /// The command line of `jobfence job`, for a shell.
    ///
    /// # Errors
    /// When there is no jobfence binary.
    pub fn line(&self, arguments: &str) -> Result<String> {
        let (binary, socket) = (binary()?, self.socket());
        let (binary, socket) = (binary.display(), socket.display());
        Ok(format!("{binary} job --socket {socket} {arguments}"))
    }

    /// Runs `jobfence job` as root to its end.
    ///
    /// # Errors
    /// When it hangs.
    pub fn job(&self, arguments: &[&str]) -> Result<Output> {
        run(&mut self.command(arguments)?, DEADLINE)
    }

    /// Makes a job of `shell` with the policy `policy`, a YAML text, and returns its id.
    ///
    /// # Errors
    /// When the daemon refuses.
    pub fn fence(&self, shell: &Shell, name: &str, policy: &str) -> Result<String> {
        self.start_job(shell, name, policy, &[])
    }

    /// Makes a runner of `shell`, as [`Agent::fence`] makes a job.
    ///
    /// # Errors
    /// When the daemon refuses.
    pub fn fence_runner(&self, shell: &Shell, name: &str, policy: &str) -> Result<String> {
        self.start_job(shell, name, policy, &["--runner"])
    }

    fn start_job(&self, shell: &Shell, name: &str, policy: &str, more: &[&str]) -> Result<String> {
        let folder = self.internet.dir().file_name().context("a folder")?;
        let id = format!("{}-{name}", folder.to_string_lossy());
        let file = self.folder.join(format!("{name}.yml"));
        fs::write(&file, policy)?;
        let pid = shell.pid().to_string();
        let file = file.to_string_lossy();
        let arguments = ["start", "--id", &id, "--pid", &pid, "--policy", &file];
        let started = self.job(&[&arguments, more].concat())?;
        ensure!(started.status.success(), "{started:?}\n{}", self.said());
        Ok(id)
    }

    /// Asks it over its socket, as root; the answer is one of
    /// `jobfence_agent::control::protocol::Answer`, in JSON.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn ask(&self, request: &Value) -> Result<Value> {
        let mut stream = UnixStream::connect(self.socket()).context("no daemon listens")?;
        stream.set_read_timeout(Some(DEADLINE * slowness()))?;
        let mut answers = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        answers.read_line(&mut line).context("no greeting")?;
        writeln!(stream, "{}", json!({"version": 1, "request": request}))?;
        line.clear();
        answers.read_line(&mut line).context("no answer")?;
        Ok(serde_json::from_str(&line)?)
    }

    /// Ends the job `id`, and returns the exit code and what it printed.
    ///
    /// # Errors
    /// When it hangs.
    pub fn finish(&self, id: &str) -> Result<(Option<i32>, Output)> {
        let output = self.job(&["finish", id])?;
        Ok((output.status.code(), output))
    }

    /// The log of the job `id`.
    ///
    /// # Errors
    /// When it is not one JSON object a line.
    pub fn log(&self, id: &str) -> Result<Vec<Value>> {
        let text = fs::read_to_string(self.log_path(id)).context("cannot read the log")?;
        let events: Result<_, _> = text.lines().map(serde_json::from_str).collect();
        events.with_context(|| format!("not JSON lines: {text}"))
    }

    /// Where the log of the job `id` is.
    #[must_use]
    pub fn log_path(&self, id: &str) -> PathBuf {
        self.folder.join("logs").join(format!("{id}.jsonl"))
    }
}

impl Agent<'_> {
    /// The cgroups of its jobs, as far as its state tells.
    fn cgroups(&self) -> Vec<PathBuf> {
        let jobs = fs::read_dir(self.folder.join("state/jobs"));
        let jobs = jobs.into_iter().flatten().flatten();
        jobs.filter_map(|job| {
            let record = fs::read(job.path().join("job.json")).ok()?;
            let record: Value = serde_json::from_slice(&record).ok()?;
            Some(record["cgroup"].as_str()?.into())
        })
        .collect()
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        let cgroups = self.cgroups();
        if let Some(mut child) = self.child.take() {
            let ended = child.kill().and_then(|()| child.wait());
            if !std::thread::panicking() {
                ended.expect("the daemon can be killed");
            }
        }
        // Jobs outlive a daemon that is killed.
        for cgroup in cgroups {
            let _ = fs::write(cgroup.join("cgroup.kill"), "1");
            let deadline = Instant::now() + Duration::from_secs(2);
            // As long as one of its processes has not gone yet.
            while remove(&cgroup).is_err_and(|error| error.kind() != ErrorKind::NotFound)
                && Instant::now() < deadline
            {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// Removes a cgroup, and those that its job has made below it.
fn remove(cgroup: &Path) -> io::Result<()> {
    for below in fs::read_dir(cgroup)? {
        let below = below?;
        if below.file_type()?.is_dir() {
            remove(&below.path())?;
        }
    }
    fs::remove_dir(cgroup)
}

/// A shell on the job side that runs what it is told, as CI runners do.
pub struct Shell {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Shell {
    /// Starts a shell as the user `nobody`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn new(internet: &Internet) -> Result<Self> {
        Self::of_user(internet, "nobody")
    }

    /// Starts a shell as the user `user`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn of_user(internet: &Internet, user: &str) -> Result<Self> {
        let mut command = internet.command("setpriv");
        command
            .args(["--reuid", user, "--regid", "nogroup", "--clear-groups"])
            .args(["sh"]);
        Self::of(command)
    }

    /// The shell that `command` is, or starts.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn of(mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a shell")?;
        let stdin = child.stdin.take().context("no stdin")?;
        let stdout = BufReader::new(child.stdout.take().context("no stdout")?);
        let mut shell = Self {
            child,
            stdin,
            stdout,
        };
        // It is what it will be when it answers, and not nsenter any more.
        shell.run("true")?;
        Ok(shell)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it run `command`; returns the exit status and what it printed.
    ///
    /// # Errors
    /// When the shell is gone.
    pub fn run(&mut self, command: &str) -> Result<(i32, String)> {
        self.begin(command)?;
        self.end()
    }

    /// Tells it to run `command`.
    ///
    /// # Errors
    /// When the shell is gone.
    pub fn begin(&mut self, command: &str) -> Result<()> {
        writeln!(
            self.stdin,
            "{{ {command}\n}} </dev/null 2>&1; echo \"$? =end=\""
        )?;
        Ok(())
    }

    /// Has it start another shell, which runs what is told from now on, until [`Shell::leave`].
    ///
    /// # Errors
    /// When the shell is gone.
    pub fn enter_child(&mut self) -> Result<()> {
        // A shell reads ahead what there is to read, so each waits for the other.
        writeln!(self.stdin, "sh -c 'echo up; exec sh'; echo down")?;
        self.expect("up\n")
    }

    /// Ends the innermost shell that [`Shell::enter_child`] has started.
    ///
    /// # Errors
    /// When the shell is gone.
    pub fn leave(&mut self) -> Result<()> {
        writeln!(self.stdin, "exit")?;
        self.expect("down\n")
    }

    fn expect(&mut self, expected: &str) -> Result<()> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        ensure!(line == expected, "the shell said {line:?}");
        Ok(())
    }

    /// Waits until it has run what it was told last.
    ///
    /// # Errors
    /// When the shell is gone.
    pub fn end(&mut self) -> Result<(i32, String)> {
        let mut printed = String::new();
        loop {
            let mut line = String::new();
            ensure!(
                self.stdout.read_line(&mut line)? > 0,
                "the shell is gone: {printed}"
            );
            if let Some(status) = line.strip_suffix(" =end=\n") {
                // What is printed without an end of line stands before it.
                let digits = status
                    .rfind(|c: char| !c.is_ascii_digit())
                    .map_or(0, |at| at + 1);
                printed.push_str(&status[..digits]);
                return Ok((status[digits..].parse()?, printed));
            }
            printed.push_str(&line);
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // It may have been killed with its job.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
