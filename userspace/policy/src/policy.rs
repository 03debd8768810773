//! A policy file as a whole: its settings, its jobs, and what jobs inherit from each other.

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::{At, Error, Fault, Pos, Problem, Source, listed, nearest, quote};
use crate::file::{self, File, JobEntry};
use crate::job::{Job, Parts};
use crate::limits::Limits;
use crate::presets::{Presets, Rules};
use crate::target::Layer;

/// The job that is meant when none is named.
const DEFAULT: &str = "default";

/// Most jobs of a circle that a message lists.
const LISTED: usize = 12;

/// A parsed policy file, all of it checked.
#[derive(Debug)]
pub struct Policy {
    source: Arc<Source>,
    file: File,
    /// For each job the index of the one that it extends.
    parents: Vec<Option<usize>>,
}

impl Policy {
    /// Parses the content of a policy file, with the presets that come with jobfence. `file` is its
    /// name as messages and rule locations show it; nothing is opened.
    ///
    /// # Errors
    ///
    /// The first thing in the file that is wrong, with its place.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, Error> {
        Self::parse_with(file, bytes, &Presets::built_in())
    }

    /// As [`parse`](Self::parse), with other presets.
    ///
    /// # Errors
    ///
    /// The first thing in the file that is wrong, with its place.
    pub fn parse_with(file: &str, bytes: &[u8], presets: &Presets) -> Result<Self, Error> {
        let source = Source::read(file, bytes)?;
        match file::read(&source, presets).and_then(|file| Ok((parents(&file.jobs)?, file))) {
            Ok((parents, file)) => Ok(Self {
                source: Arc::new(source),
                file,
                parents,
            }),
            Err(problem) => Err(source.error(problem)),
        }
    }

    /// The job `name` with all that it inherits; without a name the job `default`.
    ///
    /// # Errors
    ///
    /// When the policy has no such job. The place is that of the key `jobs`.
    pub fn job(&self, name: Option<&str>) -> Result<Job, Error> {
        let name = name.unwrap_or(DEFAULT);
        let Some(index) = self.file.jobs.iter().position(|job| job.name == name) else {
            return Err(self.source.error(self.no_job(name)));
        };
        let mut line = vec![index];
        let mut last = index;
        while let Some(parent) = self.parents[last] {
            line.push(parent);
            last = parent;
        }
        let mut rules = Rules::default();
        let mut limits = self.file.limits;
        for &index in line.iter().rev() {
            let job = &self.file.jobs[index];
            rules.allow(&job.allow, Layer::Repository);
            rules.deny(&job.deny, Layer::Repository);
            limits = job.limits.or(limits);
        }
        let sources = [Arc::clone(&self.source)]
            .into_iter()
            .chain(rules.sources());
        Ok(Job::new(Parts {
            name: name.into(),
            mode: self.file.mode,
            on_violation: self.file.on_violation,
            limits: limits.over(Limits::default()),
            sources: sources.collect(),
            allow: rules.allow,
            deny: rules.deny,
            clipped: Vec::new(),
        }))
    }

    /// The names of the jobs, in the file's order.
    pub fn job_names(&self) -> impl Iterator<Item = &str> {
        self.file.jobs.iter().map(|job| job.name.as_str())
    }

    fn no_job(&self, name: &str) -> Problem {
        let fault = Fault::new(format!(
            "no job {} in this policy, only {}",
            quote(name),
            listed(self.job_names())
        ));
        match nearest(name, self.job_names()) {
            Some(near) => fault.hint(format!("did you mean `{near}`?")),
            None => fault.hint(format!(
                "add {} under `jobs`, or name one of the others",
                quote(name)
            )),
        }
        .at(self.file.jobs_at)
    }
}

/// Resolves `extends`: the parent of each job, without circles.
fn parents(jobs: &[JobEntry]) -> Result<Vec<Option<usize>>, Problem> {
    let by_name: HashMap<&str, usize> = jobs
        .iter()
        .enumerate()
        .map(|(i, job)| (job.name.as_str(), i))
        .collect();
    let mut parents = Vec::with_capacity(jobs.len());
    for job in jobs {
        parents.push(match &job.extends {
            None => None,
            Some((name, at)) => Some(*by_name.get(name.as_str()).ok_or_else(|| {
                let fault = Fault::new(format!(
                    "{} extends {}, which is no job of this policy",
                    quote(&job.name),
                    quote(name)
                ));
                match nearest(name, jobs.iter().map(|job| job.name.as_str())) {
                    Some(near) => fault.hint(format!("did you mean `{near}`?")),
                    None => fault.hint("`extends` names another entry of `jobs`"),
                }
                .at(*at)
            })?),
        });
    }
    // Follow every job upwards until a job that is known to lead to an end.
    let mut ends = vec![false; jobs.len()];
    for start in 0..jobs.len() {
        let mut walked = Vec::new();
        let mut on_walk = HashMap::new();
        let mut next = Some(start);
        while let Some(job) = next.filter(|&job| !ends[job]) {
            if let Some(&first) = on_walk.get(&job) {
                return Err(circle(jobs, &walked[first..]));
            }
            on_walk.insert(job, walked.len());
            walked.push(job);
            next = parents[job];
        }
        for job in walked {
            ends[job] = true;
        }
    }
    Ok(parents)
}

/// `circle` holds the jobs in the order in which they extend each other; the last extends the
/// first.
fn circle(jobs: &[JobEntry], circle: &[usize]) -> Problem {
    let first = &jobs[circle[0]].name;
    let chain: Vec<&str> = circle
        .iter()
        .take(LISTED)
        .map(|&job| jobs[job].name.as_str())
        .collect();
    let more = if circle.len() > LISTED { " -> ..." } else { "" };
    let at = jobs[circle[circle.len() - 1]]
        .extends
        .as_ref()
        .map_or(At::Pos(Pos::START), |(_, at)| *at);
    Fault::new(format!(
        "`extends` goes in a circle: {}{more} -> {first}",
        chain.join(" -> ")
    ))
    .hint("the rules that both need go into a third job, which both extend")
    .at(at)
}
