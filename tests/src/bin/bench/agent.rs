//! What `jobfence agent` costs a host with many jobs.

use std::{fmt::Write as _, fs, process::Child, time::Instant};

use anyhow::{Context as _, Result, ensure};
use jobfence_tests::Agent;
use serde_json::json;

use crate::{
    cases::{Bench, Budget, CONNECT, Row, SAME, Unit, policy, to},
    measure::{Spread, alternate, resident},
};

/// Rules of each job.
const RULES: usize = 100;

/// Processes of jobs that are measured for nothing else than that they are there.
struct Jobs(Vec<Child>);

impl Drop for Jobs {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // The agent may have killed it.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Bench {
    pub(crate) fn agent(&self) -> Result<Vec<Row>> {
        let agent = Agent::start(&self.internet, "")?;
        let work = ["connect", &to(CONNECT)];
        let (mut fenced, mut bare) = (self.bare(&work)?, self.bare(&work)?);
        let file = self.internet.dir().join("bench.yml");
        fs::write(&file, policy(0)).context("cannot write a policy")?;
        let (pid, file) = (fenced.pid().to_string(), file.to_string_lossy());
        let started = agent.job(&["start", "--id=bench", "--pid", &pid, "--policy", &file])?;
        ensure!(started.status.success(), "{started:?}");

        let few = alternate(self.effort, 50, &mut fenced, &mut bare)?;
        let (jobs, times) = self.start_jobs(&agent)?;
        let many = alternate(self.effort, 50, &mut fenced, &mut bare)?;
        let memory = resident(agent.pid()?)?;
        fenced.end()?;
        bare.end()?;
        let count = jobs.0.len();
        for number in 0..count {
            let answer = agent.ask(&json!({"finish": {"id": format!("bench-{number}")}}))?;
            ensure!(answer.get("finished").is_some(), "{answer}");
        }

        let side = |spread: Spread| format!("{:.1} us", spread.median * 1e6);
        let ratio = many.ratio.map(|ratio| ratio / few.ratio.median);
        Ok(vec![
            Row {
                what: format!("TCP connect beside {count} jobs (alone)"),
                sides: [side(many.first), side(few.first)],
                result: ratio,
                unit: Unit::Ratio,
                budget: Some(Budget::AtMost(1.0 + SAME)),
            },
            Row::plain(
                &format!("agent: a job's start, {RULES} rules"),
                times,
                Unit::Milliseconds,
                Some(Budget::AtMost(10.0)),
            ),
            Row::plain(
                &format!("agent: resident memory, {count} jobs"),
                Spread::of([memory]),
                Unit::Mebibytes,
                Some(Budget::AtMost(40.0)),
            ),
        ])
    }

    /// Starts many jobs; returns them, and the milliseconds that the start of each took.
    fn start_jobs(&self, agent: &Agent) -> Result<(Jobs, Spread)> {
        let count = self.effort.rounds * 100;
        let mut policy = "version: 1\njobs:\n  default:\n    allow:\n".to_owned();
        for rule in 0..RULES {
            // Writing to a string does not fail.
            let _ = writeln!(policy, "      - host: host{rule}.test");
        }
        let (mut jobs, mut times) = (Jobs(Vec::new()), Vec::new());
        for _ in 0..count {
            let mut sleep = self.internet.command("sleep");
            jobs.0
                .push(sleep.arg("3600").spawn().context("cannot start sleep")?);
        }
        for (number, job) in jobs.0.iter().enumerate() {
            let order = json!({"start": {
                "id": format!("bench-{number}"),
                "pid": job.id(),
                "policy": {"file": "policy.yml", "text": policy},
            }});
            let start = Instant::now();
            let answer = agent.ask(&order)?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
            ensure!(answer.get("started").is_some(), "{answer}");
        }
        Ok((jobs, Spread::of(times)))
    }
}
