//! The end of a job.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    task::{spawn_blocking, yield_now},
    time::sleep,
};

use super::{ENDED, Host, Leaving, job::Job, lock};
use crate::control::protocol::{Code, Finished, Phase, Refusal};

/// How long to wait for room in a log.
const PAUSE: Duration = Duration::from_millis(500);

impl Host {
    /// Ends the job `id`: kills what is left of it, and says what it did. A job that has ended
    /// already says the same again.
    pub(super) async fn finish(&self, id: &str) -> Result<Finished, Refusal> {
        let job = lock(&self.jobs).by_id.get(id).cloned();
        match job {
            Some(job) => Ok(self.end(&job).await),
            None => self.ended(id).ok_or_else(|| unknown(id)),
        }
    }

    /// Ends a job. Whoever calls it meanwhile gets the same answer.
    pub(super) async fn end(&self, job: &Arc<Job>) -> Finished {
        // A task of its own: a caller who goes away must not leave it half done.
        let (host, ending) = (self.this(), Arc::clone(job));
        let ended = job.ended.get_or_init(|| async move {
            let task = tokio::spawn(async move { host.end_now(&ending).await });
            match task.await {
                Ok(finished) => finished,
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
        });
        ended.await.clone()
    }

    async fn end_now(&self, job: &Job) -> Finished {
        let id = &job.id;
        // Its policy does not change any more.
        let _turn = job.narrowing.lock().await;
        let cgroup = job.cgroup.clone();
        let ended = spawn_blocking(move || cgroup.end()).await;
        // The questions and attempts that it had still time for.
        job.parts().resolver.settle().await;
        while self.drain() {
            yield_now().await;
        }
        let counted = lock(&self.kernel).counters(job.slot);
        let faults = [
            ended
                .map_err(|error| error.to_string())
                .and_then(|ended| ended.map_err(|error| error.to_string()))
                .err(),
            counted.as_ref().err().map(ToString::to_string),
            job.live
                .recorder()
                .log_fault()
                .map(|fault| fault.to_string()),
        ];
        let failure = {
            let mut failure = lock(&job.failure);
            *failure = failure.take().or(faults.into_iter().flatten().next());
            failure.clone()
        };
        let recorded = counted.as_ref().map_or(0, |counters| counters.recorded);
        let summary = loop {
            // A log that cannot be written is waited for: nothing of the job goes on meanwhile.
            let written = counted
                .as_ref()
                .map_or(Ok(()), |counters| job.note(counters))
                .and_then(|()| {
                    let mut recorder = job.live.recorder();
                    recorder.reconcile(recorded)?;
                    recorder.finish(failure.as_deref())
                });
            match written {
                Ok(summary) => break summary,
                Err(error) => {
                    tracing::warn!(job = id, %error, "the end waits for the log");
                    sleep(PAUSE).await;
                    while self.drain() {
                        yield_now().await;
                    }
                }
            }
        };
        let mut status = job.full_status(Phase::Finished);
        status.violations = summary.violations;
        let mut report = (self.render)(&summary);
        if let Some(closed) = &job.parts().record.closed {
            report = format!("{report}{closed}\n");
        }
        let finished = Finished {
            exit: job.exit(summary.violations),
            status,
            report,
        };
        tracing::info!(
            job = id,
            exit = finished.exit,
            violations = summary.violations,
            "ended"
        );
        let counters = counted.unwrap_or_default();
        self.totals.end(&finished, &counters);
        self.keep(&finished);
        if let Some(fence) = &*lock(&job.fence)
            && let Err(error) = lock(&self.kernel).close(fence)
        {
            tracing::warn!(job = id, %error, "sockets of the job that others hold are not closed off");
        }
        job.journal.remove();
        let slot = job.slot;
        let mut jobs = lock(&self.jobs);
        jobs.by_id.remove(id);
        jobs.by_slot.remove(&slot);
        match lock(&job.fence).take() {
            Some(fence) => jobs.leaving.push(Leaving {
                id: id.clone(),
                fence,
                slot,
                cgroup: job.cgroup.clone(),
            }),
            None => self.free(slot),
        }
        drop(jobs);
        finished
    }

    /// Keeps the report of a job that has ended for whoever asks for it.
    pub(super) fn keep(&self, finished: &Finished) {
        let path = self.report_path(&finished.status.id);
        let kept = serde_json::to_vec(finished)
            .map_err(std::io::Error::from)
            .and_then(|bytes| {
                fs::create_dir_all(self.config.state.join(ENDED))?;
                fs::write(&path, bytes)
            });
        if let Err(error) = kept {
            tracing::warn!(%error, path = %path.display(), "the report of a job is not kept");
        }
    }

    /// The report of a job that has ended.
    pub(super) fn ended(&self, id: &str) -> Option<Finished> {
        let bytes = fs::read(self.report_path(id)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    pub(super) fn report_path(&self, id: &str) -> PathBuf {
        self.config.state.join(ENDED).join(format!("{id}.json"))
    }
}

pub(super) fn unknown(id: &str) -> Refusal {
    Refusal {
        code: Code::Unknown,
        message: format!("there is no job {id}, or it ended more than an hour ago"),
    }
}
