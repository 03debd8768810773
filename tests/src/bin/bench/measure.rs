//! How it is measured: two loops that take turns, and what their times say.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use jobfence_tests::Fence;
use serde_json::Value;

/// A median, and the least and the greatest of what was measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Of at least one value.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            0 => f64::midpoint(values[middle - 1], values[middle]),
            _ => values[middle],
        };
        Self {
            median,
            min: values[0],
            max: values[values.len() - 1],
        }
    }

    pub(crate) fn map(self, convert: impl Fn(f64) -> f64) -> Self {
        Self::of([self.min, self.median, self.max].map(convert))
    }
}

/// How much is measured.
#[derive(Clone, Copy)]
pub(crate) struct Effort {
    /// Ratios that each median is of.
    pub(crate) rounds: usize,
    /// Turns of each side that one ratio is of: their median, so that those which something else
    /// interrupted do not count.
    pub(crate) turns: usize,
}

/// What two loops took, as seconds for one step.
pub(crate) struct Pair {
    pub(crate) first: Spread,
    pub(crate) second: Spread,
    /// The first's time in proportion to the second's.
    pub(crate) ratio: Spread,
}

/// Lets two loops take turns of `steps` steps.
pub(crate) fn alternate(
    effort: Effort,
    steps: usize,
    first: &mut Loop,
    second: &mut Loop,
) -> Result<Pair> {
    // What is done once only, such as asking for a name that is not known yet, is not measured.
    first.go(steps)?;
    second.go(steps)?;
    let (mut firsts, mut seconds) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for turn in 0..effort.turns {
            // In turn about: neither is always the one that comes after the other.
            if turn % 2 == 0 {
                a.push(first.go(steps)?);
                b.push(second.go(steps)?);
            } else {
                b.push(second.go(steps)?);
                a.push(first.go(steps)?);
            }
        }
        firsts.push(Spread::of(a).median);
        seconds.push(Spread::of(b).median);
    }
    let ratios = firsts.iter().zip(&seconds).map(|(a, b)| a / b);
    let steps = steps as f64;
    Ok(Pair {
        ratio: Spread::of(ratios),
        first: Spread::of(firsts.iter().map(|time| time / steps)),
        second: Spread::of(seconds.iter().map(|time| time / steps)),
    })
}

/// A running loop of [`crate::client`].
pub(crate) struct Loop {
    process: Child,
    steps: Option<ChildStdin>,
    times: BufReader<ChildStdout>,
    /// The log, if it runs in the fence.
    log: Option<PathBuf>,
}

impl Loop {
    /// Starts it without a fence.
    pub(crate) fn bare(mut command: Command, arguments: &[&str]) -> Result<Self> {
        command.args(["__client"]).args(arguments);
        Self::start(command, None)
    }

    /// Starts it in a fence.
    pub(crate) fn fenced(fence: Fence, program: &Path, arguments: &[&str]) -> Result<Self> {
        let program = program.to_string_lossy();
        let words = [&[&*program, "__client"], arguments].concat();
        let (command, log) = fence.command(&words)?;
        Self::start(command, Some(log))
    }

    fn start(mut command: Command, log: Option<PathBuf>) -> Result<Self> {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let steps = process.stdin.take();
        let times = process.stdout.take().context("no pipe")?;
        Ok(Self {
            process,
            steps,
            times: BufReader::new(times),
            log,
        })
    }

    /// Does `steps` steps; returns the seconds that they took.
    pub(crate) fn go(&mut self, steps: usize) -> Result<f64> {
        let mut pipe = self.steps.as_ref().context("it has been ended")?;
        writeln!(pipe, "{steps}")?;
        let mut line = String::new();
        self.times.read_line(&mut line)?;
        if line.is_empty() {
            return Err(self.wait());
        }
        let nanoseconds: u64 = line.trim().parse()?;
        Ok(Duration::from_nanos(nanoseconds).as_secs_f64())
    }

    /// The process that was started: in a fence, the agent.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The job's id, by its log.
    fn job(&self) -> Result<String> {
        let log = self.log.as_ref().context("not in a fence")?;
        let text = fs::read_to_string(log)?;
        let line = text.lines().next().context("an empty log")?;
        let event: Value = serde_json::from_str(line)?;
        let id = event["job"]["id"].as_str().context("no job in the log")?;
        Ok(id.to_owned())
    }

    /// The egress program of its fence.
    pub(crate) fn egress(&self) -> Result<Program> {
        let job = self.job()?;
        let pin = jobfence_tests::pins().join(job).join("egress");
        let link = bpftool(&["link", "show", "pinned", &pin.to_string_lossy()])?;
        let id = link["prog_id"].as_u64().context("no program in the link")?;
        Ok(Program { id })
    }

    /// Ends it, and checks that all went well: an attempt that was refused was not measured.
    pub(crate) fn end(mut self) -> Result<()> {
        drop(self.steps.take());
        let status = self.process.wait()?;
        if status.success() {
            Ok(())
        } else {
            Err(self.wait())
        }
    }

    /// Waits for its end, and makes an error of what it said.
    fn wait(&mut self) -> anyhow::Error {
        let mut said = String::new();
        if let Some(mut stderr) = self.process.stderr.take() {
            // The status says enough if this cannot be read.
            let _ = stderr.read_to_string(&mut said);
        }
        anyhow!("what was measured ended: {:?}\n{said}", self.process.wait())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // After `end` there is nothing to kill and nothing to wait for.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A loaded program.
pub(crate) struct Program {
    id: u64,
}

impl Program {
    /// How long it has run, in nanoseconds, and how often, while statistics were on
    /// (`BPF_ENABLE_STATS` of bpf(2)).
    pub(crate) fn runs(&self) -> Result<(f64, f64)> {
        let program = bpftool(&["prog", "show", "id", &self.id.to_string()])?;
        let number = |key: &str| program[key].as_f64().unwrap_or(0.0);
        Ok((number("run_time_ns"), number("run_cnt")))
    }
}

fn bpftool(arguments: &[&str]) -> Result<Value> {
    let output = Command::new("bpftool").arg("-j").args(arguments).output();
    let output = output.context("cannot start bpftool")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "bpftool {arguments:?}: {text}");
    Ok(serde_json::from_str(&text)?)
}

/// The processor time that a process has used, in seconds (proc_pid_stat(5)).
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The command's name, in parentheses, may hold anything.
    let (_, fields) = stat.rsplit_once(") ").context("not a stat file")?;
    let ticks = |n: usize| -> Result<f64> {
        let field = fields.split(' ').nth(n).context("a short stat file")?;
        Ok(field.parse()?)
    };
    let per_second = rustix::param::clock_ticks_per_second() as f64;
    Ok((ticks(11)? + ticks(12)?) / per_second)
}

/// The resident memory of a process, in MiB (proc_pid_status(5)).
pub(crate) fn resident(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kib.context("no VmRSS")? / 1024.0)
}

/// A server, killed when it is dropped.
pub(crate) struct Server(Child);

impl Server {
    /// Starts it, and waits for a line of its output that holds `ready`.
    pub(crate) fn start(command: &mut Command, ready: &str) -> Result<Self> {
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let stdout = child.stdout.take().context("no pipe")?;
        let server = Self(child);
        let start = Instant::now();
        let mut lines = BufReader::new(stdout).lines();
        let found = lines.any(|line| line.is_ok_and(|line| line.contains(ready)));
        ensure!(found, "{command:?} ended after {:?}", start.elapsed());
        // Nobody reads on: it must not block, nor be ended by a closed pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
