//! How much a job may say in names of its own choosing.
//!
//! Under an allowed wildcard the job chooses the name, and whoever serves the zone reads it: that
//! is all that a DNS tunnel needs. What is limited is the number of distinct names and the bytes in
//! them.
//!
//! A name that was counted is free from then on, and that leaves a slower tunnel open, without a
//! limit: which of its names a job asks for again, and when. Each such question that reaches the
//! zone says a byte or so. The cache keeps most of them back, as every answer stays in it for a
//! second at least, so that a name and type say something once a second. It does not keep failures:
//! who serves the zone can fail on purpose, and then each question gets through to him. A policy
//! that names its hosts one by one leaves nothing of this.
//!
//! The default limits are far from what builds do and near to nothing for text: a host name has 38
//! different characters, 5.2 bits each, so no more than 2.7 kB leave in 4,096 bytes of names. Which
//! of the two address types is asked for, and in which order, adds some hundred bytes for the first
//! question of each. Below a wildcard,
//! builds find what somebody else has named: the mirrors and edges of a delivery network, an
//! account or a bucket with its service and region before an object store's domain, the services
//! of a cluster. That is a handful of names in a build and some dozens in a large one, up to five
//! labels deep; the longest hold a digest, 32 to 63 bytes. Names that a rule spells out are not
//! counted, so a job with more has two ways: its policy lists them, or raises `limits`.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use jobfence_policy::{Limits, Name, Rule, Target};

/// Labels that such a name may have below its wildcard.
pub(super) const MAX_DEPTH: usize = 8;

/// What one job may say in names, and has said so far.
#[derive(Debug)]
pub(super) struct Allowance {
    /// [`Limits::names`].
    names: usize,
    /// [`Limits::name_bytes`].
    bytes: usize,
    spent: Mutex<Spent>,
}

#[derive(Debug, Default)]
struct Spent {
    names: HashSet<Name>,
    bytes: usize,
}

/// A name is one too many. It is displayed as the reason, for whoever asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Exceeded {
    #[error("this job has asked for {0} names below wildcards, the limit")]
    Names(usize),
    #[error("the names below wildcards of this job would exceed {0} bytes, the limit")]
    Bytes(usize),
    #[error("the name is more than {MAX_DEPTH} labels below its wildcard, the limit")]
    Depth,
}

impl Allowance {
    /// The allowance of a job that has said nothing yet.
    pub(super) fn new(limits: &Limits) -> Self {
        let count = |limit| usize::try_from(limit).unwrap_or(usize::MAX);
        Self {
            names: count(limits.names),
            bytes: count(limits.name_bytes),
            spent: Mutex::default(),
        }
    }

    /// Counts `name`, which `rule` allows, before it is asked for. One that was counted before is
    /// free, and so is one that the rule spells out.
    pub(super) fn admit(&self, name: &Name, rule: &Rule) -> Result<(), Exceeded> {
        let Target::Host(pattern) = &rule.target else {
            return Ok(());
        };
        let Some(chosen) = pattern.chosen(name) else {
            return Ok(());
        };
        if chosen.split('.').count() > MAX_DEPTH {
            return Err(Exceeded::Depth);
        }
        // A set of names and a sum cannot be left half changed in a way that matters.
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        if spent.names.contains(name) {
            return Ok(());
        }
        if spent.names.len() >= self.names {
            return Err(Exceeded::Names(self.names));
        }
        if spent.bytes + chosen.len() > self.bytes {
            return Err(Exceeded::Bytes(self.bytes));
        }
        spent.bytes += chosen.len();
        spent.names.insert(name.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use jobfence_policy::{Job, NameVerdict, Policy};

    use super::*;

    /// A job with other limits than the default ones.
    fn job() -> Job {
        let text = "version: 1\nlimits: {names: 20, name_bytes: 1000}\njobs:\n  default:\n    allow:\n\
                    \x20     - host: '*.wild.test'\n\
                    \x20     - host: exact.wild.test\n\
                    \x20     - host: '*.inner.wild.test'\n";
        Policy::parse("policy.yml", text.as_bytes())
            .and_then(|policy| policy.job(None))
            .unwrap_or_else(|error| panic!("{error}"))
    }

    fn start() -> (Job, Allowance) {
        let job = job();
        let allowance = Allowance::new(&job.limits);
        (job, allowance)
    }

    fn admit(allowance: &Allowance, job: &Job, text: &str) -> Result<(), Exceeded> {
        let name = Name::parse(text).unwrap();
        let NameVerdict::Allowed(rules) = job.name_verdict(&name) else {
            panic!("{text} is not allowed");
        };
        allowance.admit(&name, rules[0])
    }

    #[test]
    fn names_are_counted_once_and_up_to_the_limit() {
        let (job, allowance) = start();
        for round in 0..2 {
            for i in 0..20 {
                let name = format!("n{i}.wild.test");
                assert_eq!(admit(&allowance, &job, &name), Ok(()), "{name}, {round}");
            }
        }
        let late = admit(&allowance, &job, "late.wild.test");
        assert_eq!(late, Err(Exceeded::Names(20)));
        assert_eq!(admit(&allowance, &job, "exact.wild.test"), Ok(()));
        assert_eq!(admit(&allowance, &job, "n7.wild.test"), Ok(()));
    }

    #[test]
    fn bytes_of_all_names_are_summed_without_what_the_rule_says() {
        let (job, allowance) = start();
        let longest = |i: usize| format!("{i:02}{}.inner.wild.test", "x".repeat(61));
        let fit = 1000 / 63;
        for i in 0..fit {
            assert_eq!(admit(&allowance, &job, &longest(i)), Ok(()), "{i}");
        }
        let over = admit(&allowance, &job, &longest(fit));
        assert_eq!(over, Err(Exceeded::Bytes(1000)));
        let left = format!("{}.wild.test", "y".repeat(1000 % 63));
        assert_eq!(admit(&allowance, &job, &left), Ok(()));
        let over = admit(&allowance, &job, "z.wild.test");
        assert_eq!(over, Err(Exceeded::Bytes(1000)));
        for known in [longest(0), left, "exact.wild.test".to_owned()] {
            assert_eq!(admit(&allowance, &job, &known), Ok(()), "{known}");
        }
    }

    #[test]
    fn a_name_too_deep_is_refused_and_costs_nothing() {
        let (job, allowance) = start();
        let below = |labels: usize| format!("{}wild.test", "a.".repeat(labels));
        assert_eq!(admit(&allowance, &job, &below(MAX_DEPTH)), Ok(()));
        for labels in MAX_DEPTH + 1..100 {
            let got = admit(&allowance, &job, &below(labels));
            assert_eq!(got, Err(Exceeded::Depth), "{labels} labels");
        }
        assert_eq!(allowance.spent.lock().unwrap().names.len(), 1);
    }
}
