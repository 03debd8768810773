//! Finds the rules of a list by name and by address, at a cost that does not grow with the list.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

use ipnet::IpNet;

use crate::name::{HostPattern, Name};
use crate::target::{Rule, Target};

/// Rules are their numbers in the list.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// Rules for one name.
    exact: HashMap<Name, Vec<usize>>,
    /// Rules for all names below one.
    below: HashMap<Name, Vec<usize>>,
    /// Rules for networks.
    nets: HashMap<IpNet, Vec<usize>>,
    /// The lengths of their prefixes, the longest first.
    lengths: BTreeSet<Reverse<u8>>,
}

impl Index {
    pub(crate) fn new<'a>(rules: impl IntoIterator<Item = &'a Rule>) -> Self {
        let mut index = Self::default();
        for (number, rule) in rules.into_iter().enumerate() {
            if let Target::Host(host) = &rule.target {
                let map = if host.is_wildcard() {
                    &mut index.below
                } else {
                    &mut index.exact
                };
                map.entry(host.base().clone()).or_default().push(number);
            }
            for net in rule.target.nets() {
                index.nets.entry(*net).or_default().push(number);
                index.lengths.insert(Reverse(net.prefix_len()));
            }
        }
        index
    }

    /// The rules that match `name`, the most specific first, equals in the list's order.
    pub(crate) fn of_name(&self, name: &Name) -> impl Iterator<Item = usize> + use<'_> {
        self.with_parents(&self.exact, name)
    }

    /// The rules that match every name that `pattern` matches.
    pub(crate) fn of_pattern(
        &self,
        pattern: &HostPattern,
    ) -> impl Iterator<Item = usize> + use<'_> {
        let own = if pattern.is_wildcard() {
            &self.below
        } else {
            &self.exact
        };
        self.with_parents(own, pattern.base())
    }

    /// The rules of `own` for `name`, and those for all names below one of its parents.
    fn with_parents<'a>(
        &'a self,
        own: &'a HashMap<Name, Vec<usize>>,
        name: &Name,
    ) -> impl Iterator<Item = usize> + use<'a> {
        let below: Vec<&Vec<usize>> = name
            .parents()
            .filter_map(|parent| self.below.get(parent))
            .collect();
        own.get(name).into_iter().chain(below).flatten().copied()
    }

    /// The rules for networks that hold `net`, with these networks, the longest prefix first.
    pub(crate) fn of_net(&self, net: IpNet) -> impl Iterator<Item = (IpNet, usize)> {
        self.lengths
            .iter()
            .filter(move |Reverse(length)| *length <= net.prefix_len())
            .filter_map(move |Reverse(length)| Some(IpNet::new(net.addr(), *length).ok()?.trunc()))
            .filter_map(|outer| Some((outer, self.nets.get(&outer)?)))
            .flat_map(|(outer, numbers)| numbers.iter().map(move |&number| (outer, number)))
    }

    /// The rules that speak of all that `target` does, or of one of its networks, the most specific
    /// first.
    pub(crate) fn of_target(&self, target: &Target) -> impl Iterator<Item = usize> {
        let host = match target {
            Target::Host(host) => Some(host),
            Target::Cidr(_) | Target::Localhost => None,
        };
        let by_net = target.nets().iter().flat_map(|net| self.of_net(*net));
        host.into_iter()
            .flat_map(|host| self.of_pattern(host))
            .chain(by_net.map(|(_, number)| number))
    }
}
