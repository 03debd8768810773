//! Layers: a repository's policy, under what its host says and under review.
//!
//! A host's own policy bounds what repositories may say (`ceiling`, `limits`, `mode`,
//! `on_violation`), adds what all jobs get (`baseline`) and takes away what none may have
//! (`deny`):
//!
//! > (repository ∩ ceiling) ∪ baseline − deny
//!
//! A repository's own `deny` rules take from the baseline, too: less is always for the repository
//! to choose. A change under review has the same say as any repository under a ceiling, which here
//! is the reviewed policy: it may narrow it, and no more.

use std::sync::Arc;

use time::Date;

use crate::error::{Error, Fault, Source};
use crate::file;
use crate::intersect::{Cause, Clipped, Common, MAX_PAIRS};
use crate::job::{Job, Parts};
use crate::limits::Limits;
use crate::mode::{Mode, OnViolation};
use crate::presets::{Presets, Rules};
use crate::target::{Layer, Rule};

/// What a host says of all its jobs.
#[derive(Debug)]
pub struct HostPolicy {
    mode: Mode,
    on_violation: OnViolation,
    limits: Limits,
    /// `None`: repositories may allow whatever they like.
    ceiling: Option<Vec<Rule>>,
    baseline: Vec<Rule>,
    deny: Vec<Rule>,
    sources: Vec<Arc<Source>>,
}

impl Default for HostPolicy {
    /// Leaves everything to the repositories.
    fn default() -> Self {
        Self {
            mode: Mode::Audit,
            on_violation: OnViolation::Warn,
            limits: Limits::HIGHEST,
            ceiling: None,
            baseline: Vec::new(),
            deny: Vec::new(),
            sources: Vec::new(),
        }
    }
}

impl HostPolicy {
    /// Parses the content of a host's policy. `file` is its name as messages and rule locations
    /// show it; nothing is opened.
    ///
    /// # Errors
    ///
    /// The first thing in the file that is wrong, with its place.
    pub fn parse(file: &str, bytes: &[u8], presets: &Presets) -> Result<Self, Error> {
        let source = Source::read(file, bytes)?;
        let read = file::read_host(&source, presets);
        let read = read.map_err(|problem| source.error(problem))?;
        let mut ceiling = Rules::default();
        ceiling.allow(read.ceiling.as_deref().unwrap_or_default(), Layer::Ceiling);
        let mut baseline = Rules::default();
        baseline.allow(&read.baseline, Layer::Baseline);
        let mut deny = Rules::default();
        deny.deny(&read.deny, Layer::HostDeny);
        let mut sources = vec![Arc::new(source)];
        for rules in [&ceiling, &baseline, &deny] {
            sources.extend(rules.sources());
        }
        let none = Self::default();
        Ok(Self {
            mode: read.mode.unwrap_or(none.mode),
            on_violation: read.on_violation.unwrap_or(none.on_violation),
            limits: read.limits.over(none.limits),
            ceiling: read.ceiling.map(|_| ceiling.allow),
            baseline: baseline.allow,
            deny: [deny.deny, ceiling.deny, baseline.deny].concat(),
            sources,
        })
    }

    /// A job that is allowed what the ceiling holds, and nothing where there is none: the most
    /// that a policy may say which nobody has reviewed, see [`Job::narrowed_by`].
    #[must_use]
    pub fn job(&self, name: &str) -> Job {
        Job::new(Parts {
            name: name.into(),
            mode: Mode::Enforce,
            on_violation: OnViolation::Fail.stricter(self.on_violation),
            limits: Limits::default().lower(self.limits),
            allow: self.ceiling.clone().unwrap_or_default(),
            deny: Vec::new(),
            clipped: Vec::new(),
            sources: self.sources.clone(),
        })
    }
}

impl Job {
    /// This job with no more than what `change` allows, too: the same job in a version of the
    /// policy that nobody has reviewed. It can forbid more, be stricter about it and lower the
    /// limits. It cannot excuse: what its `deny` rules refuse is a violation whatever they say.
    ///
    /// # Errors
    ///
    /// When the two speak of the same destinations in so many rules that they must be meant to
    /// fill the memory.
    pub fn narrowed_by(&self, change: &Self) -> Result<Self, Error> {
        let change_allow: Vec<Rule> = reviewed(&change.allow).collect();
        let common = self.common(&change_allow)?;
        let mut clipped = self.clipped.clone();
        clipped.extend(common.clipped_of_a(Cause::Change));
        clipped.extend(common.clipped_of_b(Cause::Base));
        let change_deny = reviewed(&change.deny).map(|rule| Rule { fail: true, ..rule });
        Ok(Self::new(Parts {
            name: self.name.clone(),
            mode: self.mode.stricter(change.mode),
            on_violation: self.on_violation.stricter(change.on_violation),
            limits: self.limits.lower(change.limits),
            allow: common.into_rules(),
            deny: self.deny.iter().cloned().chain(change_deny).collect(),
            clipped,
            sources: [&*self.sources, &*change.sources].concat(),
        }))
    }

    /// This job on a host: with no more than the host's ceiling, with its baseline, without what
    /// it denies, and within its limits. To be called once, behind [`Self::narrowed_by`].
    ///
    /// # Errors
    ///
    /// When the rules and the ceiling speak of the same destinations in so many rules that they
    /// must be meant to fill the memory.
    pub fn under(&self, host: &HostPolicy) -> Result<Self, Error> {
        let mut clipped = self.clipped.clone();
        let mut allow = match &host.ceiling {
            None => self.allow.clone(),
            Some(ceiling) => {
                let common = self.common(ceiling)?;
                clipped.extend(common.clipped_of_a(Cause::Ceiling));
                common.into_rules()
            }
        };
        allow.extend_from_slice(&host.baseline);
        Ok(Self::new(Parts {
            name: self.name.clone(),
            mode: self.mode.stricter(host.mode),
            on_violation: self.on_violation.stricter(host.on_violation),
            limits: self.limits.lower(host.limits),
            allow,
            deny: [&*host.deny, &*self.deny].concat(),
            clipped,
            sources: [&*self.sources, &*host.sources].concat(),
        }))
    }

    /// This job without the rules whose last day is before `today`. To be called last: a rule
    /// expires with the ceiling's rule that permits it, if that is earlier.
    #[must_use]
    pub fn retire(self, today: Date) -> Self {
        let is_over = |rule: &Rule| rule.expires.is_some_and(|last| last < today);
        let (over, allow) = self.allow.into_iter().partition(is_over);
        let over: Vec<Rule> = over;
        let over = over.into_iter().map(|rule| Clipped {
            rule,
            by: Cause::Expired,
            wholly: true,
        });
        Self::new(Parts {
            name: self.name,
            mode: self.mode,
            on_violation: self.on_violation,
            limits: self.limits,
            allow,
            deny: self.deny,
            clipped: self.clipped.into_iter().chain(over).collect(),
            sources: self.sources,
        })
    }

    fn common<'a>(&'a self, other: &'a [Rule]) -> Result<Common<'a>, Error> {
        Common::of(&self.allow, other).map_err(|rule| {
            let fault = Fault::new(format!(
                "up to here, the rules and those that bound them overlap in more than {MAX_PAIRS} ways"
            ))
            .hint("remove rules that say the same again");
            self.error(Some(rule), fault)
        })
    }
}

/// Rules of a change under review.
fn reviewed(rules: &[Rule]) -> impl Iterator<Item = Rule> {
    rules.iter().map(|rule| Rule {
        layer: Layer::Review,
        ..rule.clone()
    })
}
