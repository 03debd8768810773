//! What two lists of rules both allow.
//!
//! A rule of one list and a rule of the other make a rule for what they have in common: names,
//! networks, ports, and what is asked of connections. All such rules together allow exactly what
//! both lists allow, by name and by address each; a name in one list and the addresses that it
//! leads to in the other have nothing in common.

use std::fmt;

use crate::index::Index;
use crate::ports;
use crate::target::{Layer, Rule, Target};

/// Most pairs of rules that may have something in common. Lists of different people that speak of
/// the same destinations have about as many as rules; a hundred rules for the same name, in both
/// lists, are no policy but an attempt to fill the memory.
pub(crate) const MAX_PAIRS: usize = 1 << 16;

/// Most rules that are looked at to see whether a part repeats what another says. It is of no
/// consequence but for which place is shown.
const MAX_LOOKED_AT: usize = 16;

/// A rule that does not hold, or not for all that it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clipped {
    /// The rule, as its file has it.
    pub rule: Rule,
    /// Whose word stands against it.
    pub by: Cause,
    /// Whether nothing is left of it.
    pub wholly: bool,
}

/// Why a rule is [`Clipped`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The host's ceiling does not allow it.
    Ceiling,
    /// A policy that can only narrow another has the rule, and the other has not.
    Base,
    /// The policy that narrows this one does not have the rule.
    Change,
    /// The last day on which it held is past.
    Expired,
}

impl Clipped {
    /// The layer that stands against the rule; of one that expired, its own.
    #[must_use]
    pub fn layer(&self) -> Layer {
        match self.by {
            Cause::Ceiling => Layer::Ceiling,
            Cause::Base | Cause::Change => Layer::Review,
            Cause::Expired => self.rule.layer,
        }
    }
}

impl fmt::Display for Clipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rule {
            target, location, ..
        } = &self.rule;
        let (does_not, does) = match self.by {
            Cause::Ceiling => ("this host's ceiling does not", "this host's ceiling does"),
            Cause::Base => (
                "the policy that it can only narrow does not",
                "the policy that it can only narrow does",
            ),
            Cause::Change => (
                "the policy that narrows it does not",
                "the policy that narrows it does",
            ),
            Cause::Expired => {
                let date = self.rule.expires.map(|date| date.to_string());
                let date = date.unwrap_or_default();
                return write!(f, "{location} allowed {target} until {date}, which is past");
            }
        };
        if self.wholly {
            write!(f, "{location} allows {target}, which {does_not}")
        } else {
            write!(f, "{location} allows more of {target} than {does}")
        }
    }
}

/// What two lists have in common.
#[derive(Debug)]
pub(crate) struct Common<'a> {
    a: &'a [Rule],
    b: &'a [Rule],
    /// By the rule of `a`, then of `b`.
    parts: Vec<Part>,
}

/// What two rules have in common.
#[derive(Debug)]
struct Part {
    /// The number of the one in `a`.
    a: usize,
    /// The number of the one in `b`.
    b: usize,
    /// The rule for it.
    rule: Rule,
    /// Whether another part says as much of the same.
    repeats: bool,
}

impl<'a> Common<'a> {
    /// # Errors
    ///
    /// The rule of `a` at which they come to more than [`MAX_PAIRS`] pairs.
    pub(crate) fn of(a: &'a [Rule], b: &'a [Rule]) -> Result<Self, &'a Rule> {
        let (a_index, b_index) = (Index::new(a), Index::new(b));
        let mut parts = Vec::new();
        for (i, j) in pairs((a, &a_index), (b, &b_index))? {
            let ports = ports::intersect(&a[i].ports, &b[j].ports);
            if ports.is_empty() {
                continue;
            }
            for target in a[i].target.intersect(&b[j].target) {
                let repeats =
                    is_repeated(i, &target, a, &a_index) || is_repeated(j, &target, b, &b_index);
                let rule = Rule {
                    target,
                    ports: ports.clone(),
                    private: a[i].private && b[j].private,
                    expires: [a[i].expires, b[j].expires].into_iter().flatten().min(),
                    ..a[i].clone()
                };
                parts.push(Part {
                    a: i,
                    b: j,
                    rule,
                    repeats,
                });
            }
        }
        Ok(Self { a, b, parts })
    }

    /// Rules of the first list that are not wholly in the second.
    pub(crate) fn clipped_of_a(&self, by: Cause) -> Vec<Clipped> {
        clipped(self.a, by, self.parts.iter().map(|part| (part.a, part)))
    }

    /// Rules of the second list that are not wholly in the first.
    pub(crate) fn clipped_of_b(&self, by: Cause) -> Vec<Clipped> {
        clipped(self.b, by, self.parts.iter().map(|part| (part.b, part)))
    }

    /// Rules for all that is common, with the places, reasons and layers of the first list, in its
    /// order.
    pub(crate) fn into_rules(self) -> Vec<Rule> {
        let parts = self.parts.into_iter().filter(|part| !part.repeats);
        parts.map(|part| part.rule).collect()
    }
}

/// Whether a rule that goes before the one numbered `number`, being narrower or earlier in the list,
/// says as much of `target`. It is the one to show then, as without other lists; and the common part
/// of a list and itself is the list, not a rule for each two that overlap.
fn is_repeated(number: usize, target: &Target, rules: &[Rule], index: &Index) -> bool {
    let rule = &rules[number];
    index
        .of_target(target)
        .take_while(|before| *before != number)
        .take(MAX_LOOKED_AT)
        .map(|before| &rules[before])
        .any(|before| {
            before.target.covers(target)
                && (before.private || !rule.private)
                && lasts(before, rule)
                && ports::intersect(&before.ports, &rule.ports) == rule.ports
        })
}

/// Whether `rule` holds for as long as `other`.
fn lasts(rule: &Rule, other: &Rule) -> bool {
    rule.expires
        .is_none_or(|last| other.expires.is_some_and(|other| other <= last))
}

/// Those of `rules` of which something is not in the `parts`, which have the numbers of the rules.
fn clipped<'p>(
    rules: &[Rule],
    by: Cause,
    parts: impl Iterator<Item = (usize, &'p Part)>,
) -> Vec<Clipped> {
    let mut left: Vec<Vec<&Rule>> = vec![Vec::new(); rules.len()];
    for (number, part) in parts {
        left[number].push(&part.rule);
    }
    let clipped = rules
        .iter()
        .zip(left)
        .filter(|(rule, left)| !is_whole(rule, left));
    clipped
        .map(|(rule, left)| Clipped {
            rule: rule.clone(),
            by,
            wholly: left.is_empty(),
        })
        .collect()
}

/// Whether all of `rule` is in `left`. Several parts of its names or networks are not added up: who
/// lists two halves of a network means them.
fn is_whole(rule: &Rule, left: &[&Rule]) -> bool {
    let units = match &rule.target {
        Target::Localhost => rule
            .target
            .nets()
            .iter()
            .copied()
            .map(Target::Cidr)
            .collect(),
        other => vec![other.clone()],
    };
    units.iter().all(|unit| {
        let left = left
            .iter()
            .filter(|part| part.target.covers(unit) && (part.private || !rule.private));
        let ports = left.flat_map(|part| part.ports.iter().copied());
        ports::normalise(ports.collect()) == rule.ports
    })
}

/// The numbers of the rules whose targets may have something in common: where one of them speaks
/// of all that the other does, or of one of its networks. Sorted.
fn pairs<'a>(
    (a, a_index): (&'a [Rule], &Index),
    (b, b_index): (&[Rule], &Index),
) -> Result<Vec<(usize, usize)>, &'a Rule> {
    let mut pairs = Vec::new();
    for (i, rule) in a.iter().enumerate() {
        pairs.extend(b_index.of_target(&rule.target).map(|j| (i, j)));
        if pairs.len() > MAX_PAIRS {
            return Err(rule);
        }
    }
    // Those that are equal are found in both ways.
    let room = 2 * MAX_PAIRS;
    for (j, rule) in b.iter().enumerate() {
        pairs.extend(a_index.of_target(&rule.target).map(|i| (i, j)));
        if let Some(&(i, _)) = pairs.get(room) {
            return Err(&a[i]);
        }
    }
    pairs.sort_unstable();
    pairs.dedup();
    Ok(pairs)
}
