//! One job's rules, and the questions that they answer.
//!
//! Three places ask: the resolver about names, the agent about what to write into the kernel's
//! address map, the audit log about the rule behind a verdict. All answers come from the same
//! two lists, [`Job::allowing`] and [`Job::denying`], so that they cannot contradict each other.
//!
//! The kernel sees only the longest prefix that holds an address. Each entry of the map must
//! therefore hold everything that is allowed there, whatever number of rules say so, less
//! everything that is denied; a `deny` beats an `allow` however narrow either of them is.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use jobfence_abi::{Addr, Checks, DNS_PORT, MAX_RANGES, PortRange, proto};

use crate::error::{Error, Fault, Pos, Source};
use crate::index::Index;
use crate::intersect::Clipped;
use crate::limits::Limits;
use crate::mode::{Mode, OnViolation};
use crate::name::{HostPattern, Name};
use crate::ports;
use crate::target::{Rule, Target, is_metadata};

/// A job of a policy, with the rules that it inherits.
#[derive(Debug)]
pub struct Job {
    /// Its name in the policy.
    pub name: String,
    /// What the fence does with what is not allowed.
    pub mode: Mode,
    /// What a violation does to the job.
    pub on_violation: OnViolation,
    /// How much it may do of what it may do.
    pub limits: Limits,
    /// What it may reach; inherited rules first.
    pub allow: Vec<Rule>,
    /// What it may not reach even if `allow` says so; inherited rules first.
    pub deny: Vec<Rule>,
    /// The rules of its policy that do not hold, wholly or in part, since somebody else has a say
    /// in it or their time is over.
    pub clipped: Vec<Clipped>,
    allow_index: Index,
    deny_index: Index,
    clipped_index: Index,
    /// The files in which the rules are.
    pub(crate) sources: Vec<Arc<Source>>,
}

/// What a [`Job`] is made of; see there.
pub(crate) struct Parts {
    pub(crate) name: String,
    pub(crate) mode: Mode,
    pub(crate) on_violation: OnViolation,
    pub(crate) limits: Limits,
    pub(crate) allow: Vec<Rule>,
    pub(crate) deny: Vec<Rule>,
    pub(crate) clipped: Vec<Clipped>,
    pub(crate) sources: Vec<Arc<Source>>,
}

/// What a policy says of a name.
#[derive(Debug, PartialEq)]
pub enum NameVerdict<'a> {
    /// These `allow` rules match, the most specific first; never empty.
    Allowed(Vec<&'a Rule>),
    /// This `deny` rule matches, on all ports; the most specific one.
    Denied(&'a Rule),
    /// No rule that holds speaks of it; see [`Job::clipped_name`].
    Unknown,
}

/// The rule behind the kernel's verdict about an address, a protocol and a port.
#[derive(Debug, PartialEq)]
pub enum AddrRule<'a> {
    /// This `allow` rule lets it through.
    Allowed(&'a Rule),
    /// This `deny` rule refuses it.
    Denied(&'a Rule),
    /// This rule would let it through, but that part of it does not hold.
    Clipped(&'a Clipped),
    /// No rule allows it.
    None,
}

/// More port ranges come together at one address than its entry in the kernel's map can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the rules for {addr} come to {ranges} separate port ranges, at most {MAX_RANGES} are \
     possible; join ports to wider ranges in the rules for it"
)]
pub struct TooManyRanges {
    /// The address.
    pub addr: IpAddr,
    /// How many ranges there are, after merging.
    pub ranges: usize,
}

impl Job {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            allow_index: Index::new(&parts.allow),
            deny_index: Index::new(&parts.deny),
            clipped_index: Index::new(parts.clipped.iter().map(|clipped| &clipped.rule)),
            name: parts.name,
            mode: parts.mode,
            on_violation: parts.on_violation,
            limits: parts.limits,
            allow: parts.allow,
            deny: parts.deny,
            clipped: parts.clipped,
            sources: parts.sources,
        }
    }

    /// The name of the file that its own rules are in: where what is missing could be added.
    #[must_use]
    pub fn file(&self) -> &str {
        self.sources.first().map_or("", |source| source.file())
    }

    /// What the policy says of `name`. The cost is a look-up for each of its labels, whatever
    /// the number of rules.
    ///
    /// `deny` rules with `ports` do not make a name denied: it may be looked up, and
    /// [`grants`](Self::grants) leaves the ports out. `localhost` is no name here but the
    /// addresses of [`Target::Localhost`].
    #[must_use]
    pub fn name_verdict(&self, name: &Name) -> NameVerdict<'_> {
        let denied = self.denying_name(name).filter(|rule| rule.ports.is_empty());
        if let Some(rule) = foremost(denied) {
            return NameVerdict::Denied(rule);
        }
        let rules: Vec<&Rule> = self.allowing_name(name).collect();
        if rules.is_empty() {
            NameVerdict::Unknown
        } else {
            NameVerdict::Allowed(rules)
        }
    }

    /// The rule that would allow `name`, if it held: for a name that is
    /// [`Unknown`](NameVerdict::Unknown).
    #[must_use]
    pub fn clipped_name(&self, name: &Name) -> Option<&Clipped> {
        let number = self.clipped_index.of_name(name).next()?;
        self.clipped.get(number)
    }

    /// What the job gets at addresses that the policy itself names, for a longest-prefix-match
    /// map: each prefix with everything that is allowed there.
    ///
    /// Prefixes without ranges are there to take addresses out of a wider prefix: what is
    /// denied, the cloud metadata services (which only a rule for exactly that address allows),
    /// and `0.0.0.0/0` beside an IPv6 prefix that holds `::ffff:0:0/96`, as which the kernel's
    /// map keeps IPv4. Sorted, IPv4 first.
    ///
    /// # Errors
    ///
    /// When more than [`MAX_RANGES`] ranges come together at a prefix, at the place of a rule
    /// for it.
    pub fn prefixes(&self) -> Result<Vec<(IpNet, Vec<PortRange>)>, Error> {
        let mut layers: BTreeMap<IpNet, AtPrefix<'_>> = BTreeMap::new();
        for rule in &self.allow {
            for net in rule.target.nets() {
                layers.entry(*net).or_default().allow.push(rule);
                let services = Addr::METADATA
                    .into_iter()
                    .filter(|service| net.contains(service));
                for service in services {
                    layers.entry(service.into()).or_default();
                }
                if let IpNet::V6(v6) = net
                    && v6.contains(&Ipv4Addr::UNSPECIFIED.to_ipv6_mapped())
                {
                    layers.entry(IpNet::V4(Ipv4Net::default())).or_default();
                }
            }
        }
        for rule in &self.deny {
            for net in rule.target.nets() {
                layers.entry(*net).or_default().deny.push(rule);
            }
        }
        // The order of networks puts each behind all that hold it, nearest last.
        let mut above: Vec<(IpNet, Sums<'_>)> = Vec::new();
        let mut prefixes = Vec::with_capacity(layers.len());
        for (net, layer) in layers {
            while above.pop_if(|(outer, _)| !outer.contains(&net)).is_some() {}
            let outer = above.last().map(|(_, sums)| sums);
            let inherits_allow = !is_metadata(&net);
            let sums = Sums::new(outer, inherits_allow, &layer);
            let ranges = ports::subtract(&sums.allow, &sums.deny);
            if ranges.len() > MAX_RANGES {
                return Err(self.overflow(net, ranges.len(), sums.last));
            }
            prefixes.push((net, ranges));
            above.push((net, sums));
        }
        Ok(prefixes)
    }

    /// The names that the job's connections may be for, each with the ports, for a
    /// longest-prefix-match map over names read from their end: each pattern with everything that
    /// is allowed for all its names. Patterns without ranges are there to take names out of a wider
    /// pattern. What is checked on the ports is said by the address, not here.
    ///
    /// # Errors
    ///
    /// When more than [`MAX_RANGES`] ranges come together at a name, at the place of a rule for it.
    pub fn names(&self) -> Result<Vec<(&HostPattern, Vec<PortRange>)>, Error> {
        let mut names: HashMap<&HostPattern, Vec<PortRange>> = HashMap::new();
        for rule in self.allow.iter().chain(&self.deny) {
            let Target::Host(host) = &rule.target else {
                continue;
            };
            if names.contains_key(host) {
                continue;
            }
            let ranges = |rules: &[Rule], index: &Index, ports: fn(&Rule) -> &[PortRange]| {
                let tcp = index
                    .of_pattern(host)
                    .flat_map(|number| ports(&rules[number]).iter().copied())
                    .filter(|range| range.proto == proto::TCP)
                    .map(|range| range.checked(Checks::NONE));
                ports::normalise(tcp.collect())
            };
            let ranges = ports::subtract(
                &ranges(&self.allow, &self.allow_index, |rule| &rule.ports),
                &ranges(&self.deny, &self.deny_index, denied_ports),
            );
            if ranges.len() > MAX_RANGES {
                return Err(self.overflow(host, ranges.len(), Some(rule)));
            }
            names.insert(host, ranges);
        }
        Ok(names.into_iter().collect())
    }

    fn overflow(&self, what: impl fmt::Display, count: usize, rule: Option<&Rule>) -> Error {
        self.error(
            rule,
            Fault::new(format!(
                "the rules for {what} come to {count} separate port ranges, at most {MAX_RANGES} are possible"
            ))
            .hint("join ports to wider ranges in the rules for it and for what holds it"),
        )
    }

    /// An error at the place of `rule`.
    pub(crate) fn error(&self, rule: Option<&Rule>, fault: Fault) -> Error {
        let source = match rule {
            Some(rule) => self
                .sources
                .iter()
                .find(|source| source.holds(&rule.location)),
            None => self.sources.first(),
        };
        let at = rule.map_or(Pos::START, |rule| Pos {
            line: rule.location.line,
            column: rule.location.column,
        });
        match source {
            Some(source) => source.error(fault.at(at)),
            None => Source::new(&self.name, String::new()).error(fault.at(at)),
        }
    }

    /// Everything that the job gets at `addr` when the allowed `names` have resolved to it: what
    /// the names' rules allow, and every `cidr` rule that holds the address, less everything
    /// that is denied there or for the names. Sorted by protocol and port, disjoint, merged;
    /// DNS is never in it.
    ///
    /// Names that are not allowed count for nothing, and none does at a cloud metadata service.
    ///
    /// # Errors
    ///
    /// When there are more than [`MAX_RANGES`] ranges.
    pub fn grants(&self, addr: IpAddr, names: &[Name]) -> Result<Vec<PortRange>, TooManyRanges> {
        let addr = addr.to_canonical();
        let allowed = self
            .allowing(addr, names)
            .flat_map(|rule| &rule.ports)
            .copied();
        let denied = self
            .denying(addr, names)
            .flat_map(denied_ports)
            .chain(&ports::DNS)
            .copied();
        let ranges = ports::subtract(
            &ports::normalise(allowed.collect()),
            &ports::normalise(denied.collect()),
        );
        if ranges.len() > MAX_RANGES {
            return Err(TooManyRanges {
                addr,
                ranges: ranges.len(),
            });
        }
        Ok(ranges)
    }

    /// The rule behind the verdict on `port` (host byte order) of `proto` at `addr`, to which
    /// `names` have resolved. It agrees with [`grants`](Self::grants) and, for an address
    /// without names, with [`prefixes`](Self::prefixes).
    #[must_use]
    pub fn explain_addr(&self, addr: IpAddr, names: &[Name], proto: u8, port: u16) -> AddrRule<'_> {
        let addr = addr.to_canonical();
        if port == DNS_PORT && (proto == proto::TCP || proto == proto::UDP) {
            return AddrRule::None;
        }
        let speaks = |rule: &&Rule| rule.ports.iter().any(|range| range.contains(proto, port));
        let denied = self
            .denying(addr, names)
            .filter(|rule| rule.ports.is_empty() || speaks(rule));
        if let Some(rule) = foremost(denied) {
            return AddrRule::Denied(rule);
        }
        if let Some(rule) = self.allowing(addr, names).find(speaks) {
            return AddrRule::Allowed(rule);
        }
        let by_name = names
            .iter()
            .filter(|name| !matches!(self.name_verdict(name), NameVerdict::Denied(_)))
            .flat_map(|name| self.clipped_index.of_name(name));
        by_name
            .chain(at_addr(&self.clipped_index, addr))
            .map(|number| &self.clipped[number])
            .find(|clipped| speaks(&&clipped.rule))
            .map_or(AddrRule::None, AddrRule::Clipped)
    }

    /// The rule behind the kernel's verdict about a connection to `port` (host byte order) that
    /// says that it is for `name`. It agrees with [`names`](Self::names).
    #[must_use]
    pub fn explain_name(&self, name: &Name, port: u16) -> AddrRule<'_> {
        let speaks = |rule: &&Rule| {
            let mut ranges = rule.ports.iter();
            ranges.any(|range| range.contains(proto::TCP, port))
        };
        let denied = self
            .denying_name(name)
            .filter(|rule| rule.ports.is_empty() || speaks(rule));
        if let Some(rule) = foremost(denied) {
            return AddrRule::Denied(rule);
        }
        if let Some(rule) = self.allowing_name(name).find(speaks) {
            return AddrRule::Allowed(rule);
        }
        self.clipped_index
            .of_name(name)
            .map(|number| &self.clipped[number])
            .find(|clipped| speaks(&&clipped.rule))
            .map_or(AddrRule::None, AddrRule::Clipped)
    }

    fn allowing_name(&self, name: &Name) -> impl Iterator<Item = &Rule> + use<'_> {
        self.allow_index
            .of_name(name)
            .map(|number| &self.allow[number])
    }

    fn denying_name(&self, name: &Name) -> impl Iterator<Item = &Rule> + use<'_> {
        self.deny_index
            .of_name(name)
            .map(|number| &self.deny[number])
    }

    /// The `allow` rules that speak of `addr`.
    fn allowing(&self, addr: IpAddr, names: &[Name]) -> impl Iterator<Item = &Rule> {
        let metadata = Addr::from(addr).is_metadata();
        let names = if metadata { &[] } else { names };
        let by_name = names.iter().flat_map(|name| match self.name_verdict(name) {
            NameVerdict::Allowed(rules) => rules,
            NameVerdict::Denied(_) | NameVerdict::Unknown => Vec::new(),
        });
        let by_net = at_addr(&self.allow_index, addr).map(|number| &self.allow[number]);
        by_name.chain(by_net)
    }

    /// The `deny` rules that speak of `addr`: those for its network, and those for some ports of
    /// its names.
    fn denying(&self, addr: IpAddr, names: &[Name]) -> impl Iterator<Item = &Rule> {
        let by_name = names.iter().flat_map(|name| self.denying_name(name));
        let by_net = self
            .deny_index
            .of_net(addr.into())
            .map(|(_, number)| &self.deny[number]);
        by_name.filter(|rule| !rule.ports.is_empty()).chain(by_net)
    }
}

/// The `allow` rules for networks that hold `addr`, of a list with this index.
fn at_addr(index: &Index, addr: IpAddr) -> impl Iterator<Item = usize> {
    let metadata = Addr::from(addr).is_metadata();
    index
        .of_net(addr.into())
        .filter(move |(net, _)| !metadata || is_metadata(net))
        .map(|(_, number)| number)
}

/// The first of these `deny` rules, or the first of the host's, which a repository cannot excuse
/// with `fail: false`.
fn foremost<'a>(denied: impl Iterator<Item = &'a Rule>) -> Option<&'a Rule> {
    denied.min_by_key(|rule| !rule.layer.is_host())
}

/// The ports that a `deny` rule takes away.
fn denied_ports(rule: &Rule) -> &[PortRange] {
    if rule.ports.is_empty() {
        &ports::EVERY
    } else {
        &rule.ports
    }
}

/// The rules for exactly one prefix.
#[derive(Default)]
struct AtPrefix<'a> {
    allow: Vec<&'a Rule>,
    deny: Vec<&'a Rule>,
}

/// The sets of a prefix and all prefixes around it, normalised.
struct Sums<'a> {
    allow: Vec<PortRange>,
    deny: Vec<PortRange>,
    /// The rule of the innermost layer that has one.
    last: Option<&'a Rule>,
}

impl<'a> Sums<'a> {
    fn new(outer: Option<&Self>, inherits_allow: bool, layer: &AtPrefix<'a>) -> Self {
        let mut allow = outer
            .filter(|_| inherits_allow)
            .map_or_else(Vec::new, |outer| outer.allow.clone());
        allow.extend(layer.allow.iter().flat_map(|rule| &rule.ports));
        let mut deny = outer.map_or_else(|| ports::DNS.to_vec(), |outer| outer.deny.clone());
        deny.extend(layer.deny.iter().flat_map(|rule| denied_ports(rule)));
        Self {
            allow: ports::normalise(allow),
            deny: ports::normalise(deny),
            last: layer
                .allow
                .last()
                .or(layer.deny.last())
                .copied()
                .or(outer.and_then(|outer| outer.last)),
        }
    }
}
