//! Rules, and the hosts and networks that they speak of.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use jobfence_abi::{Addr, PortRange, proto};
use time::Date;

use crate::error::{Fault, Location, quote};
use crate::name::HostPattern;
use crate::ports;

/// The networks of [`Target::Localhost`].
pub(crate) const LOOPBACK: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
];

/// One rule of a job's `allow` or `deny` list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What the rule speaks of.
    pub target: Target,
    /// The ports, sorted by protocol and port, disjoint and merged; host byte order. Never empty
    /// in an `allow` rule; empty in a `deny` rule that holds for every port and protocol.
    pub ports: Vec<PortRange>,
    /// Why the rule is there, for those who read the policy.
    pub reason: Option<Arc<str>>,
    /// Who answers for the rule, for those who read the policy.
    pub owner: Option<Arc<str>>,
    /// Whether the names of an `allow` rule may resolve to private addresses.
    pub private: bool,
    /// The last day on which an `allow` rule holds, see [`Job::retire`](crate::Job::retire).
    pub expires: Option<Date>,
    /// Whether an attempt that a `deny` rule refuses is a violation.
    pub fail: bool,
    /// Who said it.
    pub layer: Layer,
    /// Where the rule begins, with its first key.
    pub location: Location,
}

impl fmt::Display for Rule {
    /// What it speaks of, for people: `db.example.com on 5432, 8000-8010, 123/udp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.target.fmt(f)?;
        for (index, range) in self.ports.iter().enumerate() {
            f.write_str(if index == 0 { " on " } else { ", " })?;
            match (range.first, range.last) {
                (0, u16::MAX) => f.write_str("every port")?,
                (first, last) if first == last => first.fmt(f)?,
                (first, last) => write!(f, "{first}-{last}")?,
            }
            match range.proto {
                proto::TCP => {}
                proto::UDP => f.write_str("/udp")?,
                other => write!(f, "/{other}")?,
            }
        }
        Ok(())
    }
}

/// Who said a [`Rule`]: the repository, or one of those who have a say in what it may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layer {
    /// The policy of the job's repository.
    Repository,
    /// A preset that the repository's policy uses.
    Preset,
    /// The repository's policy as a change under review has it.
    Review,
    /// The host: what any of its jobs may reach at most.
    Ceiling,
    /// The host: what all of its jobs may reach.
    Baseline,
    /// The host: what none of its jobs may reach.
    HostDeny,
}

impl Layer {
    /// Its word in logs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Repository => "repository",
            Self::Preset => "preset",
            Self::Review => "review",
            Self::Ceiling => "ceiling",
            Self::Baseline => "baseline",
            Self::HostDeny => "host-deny",
        }
    }

    /// Whether it is the host's.
    pub(crate) fn is_host(self) -> bool {
        matches!(self, Self::Ceiling | Self::Baseline | Self::HostDeny)
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What a [`Rule`] speaks of. It is displayed in canonical form, as the policy would have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `host`: a name or the names below one.
    Host(HostPattern),
    /// `cidr`: a network.
    Cidr(IpNet),
    /// `host: localhost`: the loopback addresses, `127.0.0.0/8` and `::1`.
    Localhost,
}

impl Target {
    /// The fixed networks that it speaks of; none for a host.
    pub(crate) fn nets(&self) -> &[IpNet] {
        match self {
            Self::Host(_) => &[],
            Self::Cidr(net) => std::slice::from_ref(net),
            Self::Localhost => &LOOPBACK,
        }
    }

    /// Whether this speaks of everything that `other` speaks of.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Host(a), Self::Host(b)) => a.covers(b),
            (Self::Host(_), _) | (_, Self::Host(_)) => false,
            _ => {
                let ours = self.nets();
                let held = |net: &IpNet| ours.iter().any(|ours| holds(ours, net));
                other.nets().iter().all(held)
            }
        }
    }

    /// What both speak of. A name and an address never meet: which names lead to an address is
    /// not for the policy to say.
    pub(crate) fn intersect(&self, other: &Self) -> Vec<Self> {
        if self == other {
            return vec![self.clone()];
        }
        if let (Self::Host(_), Self::Host(_)) = (self, other) {
            let narrower = [(self, other), (other, self)];
            let narrower = narrower
                .into_iter()
                .find(|(wide, narrow)| wide.covers(narrow));
            return narrower
                .map(|(_, narrow)| narrow.clone())
                .into_iter()
                .collect();
        }
        let pairs = self
            .nets()
            .iter()
            .flat_map(|a| other.nets().iter().map(move |b| (a, b)));
        pairs
            .filter_map(|(a, b)| match (holds(a, b), holds(b, a)) {
                (true, _) => Some(Self::Cidr(*b)),
                (_, true) => Some(Self::Cidr(*a)),
                _ => None,
            })
            .collect()
    }
}

/// Whether `outer` lets everything be reached that `inner` does. A metadata service needs a rule
/// for exactly its address.
fn holds(outer: &IpNet, inner: &IpNet) -> bool {
    outer.contains(inner) && (outer == inner || !is_metadata(inner))
}

/// Whether `net` is exactly the address of a cloud metadata service.
pub(crate) fn is_metadata(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len() && Addr::from(net.addr()).is_metadata()
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(host) => host.fmt(f),
            Self::Cidr(net) => net.fmt(f),
            Self::Localhost => f.write_str("localhost"),
        }
    }
}

/// Parses the value of `host`.
pub(crate) fn host(text: &str) -> Result<Target, Fault> {
    if let Some(address) = address(text) {
        return Err(address_as_host(text, address));
    }
    if let Ok(net) = text.parse::<IpNet>() {
        return Err(
            Fault::new(format!("{} is a network, not a host name", quote(text)))
                .hint(format!("use `cidr: {}`", net.trunc())),
        );
    }
    let alone = "give the host name alone";
    if let Some((scheme, rest)) = text.split_once("://") {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (_, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (host, port) = split_port(host);
        let port = port.or(match scheme {
            "http" => Some("80"),
            "ssh" => Some(SSH),
            _ => None,
        });
        let has_path = rest.len() > authority.len() + 1;
        let fault = Fault::new(format!("{} is a URL, not a host name", quote(text)));
        return Err(match keys(host, port, scheme == "ssh") {
            Some(keys) if has_path => fault.hint(format!("use {keys}; paths cannot be told apart")),
            Some(keys) => fault.hint(format!("use {keys}")),
            None => fault.hint(alone),
        });
    }
    let (authority, path) = match text.split_once('/') {
        Some((authority, path)) => (authority, Some(path)),
        None => (text, None),
    };
    if let Some((_, rest)) = authority.split_once('@') {
        let (host, port) = match rest.split_once(':') {
            // `git@git.example.com:repo.git`, as SSH clients have it.
            Some((host, path)) if !is_number(path) => (host, Some(SSH)),
            _ => split_port(rest),
        };
        let message = format!("{} is not a host name: it holds a user", quote(text));
        return Err(
            Fault::new(message).hint(match keys(host, port, port == Some(SSH)) {
                Some(keys) => format!("use {keys}"),
                None => alone.into(),
            }),
        );
    }
    let (host, port) = split_port(authority);
    let hint = || match keys(host, port, false) {
        Some(keys) => format!("use {keys}"),
        None => alone.into(),
    };
    match (path, port) {
        (None, None) => name(text),
        (None, Some(_)) => {
            let message = format!("{} is not a host name: it holds a port", quote(text));
            Err(Fault::new(message).hint(hint()))
        }
        // A network whose prefix length is none.
        (Some(path), _)
            if address(host).is_some() && path.starts_with(|c: char| c.is_ascii_digit()) =>
        {
            cidr(text)
        }
        (Some(path), _) => {
            let message = format!(
                "{} has a path ({}), which is no part of a host name",
                quote(text),
                quote(path)
            );
            Err(Fault::new(message).hint(format!("{}; paths cannot be told apart", hint())))
        }
    }
}

/// The port of SSH, in whose addresses it is not said.
const SSH: &str = "22";

/// A name, a wildcard or `localhost`.
fn name(text: &str) -> Result<Target, Fault> {
    let pattern = HostPattern::parse(text)?;
    let base = pattern.base().as_str();
    let last = base.rsplit('.').next().unwrap_or_default();
    if last == "localhost" {
        return match (pattern.is_wildcard(), base) {
            (false, "localhost") => Ok(Target::Localhost),
            _ => Err(Fault::new(format!(
                "{}: names below localhost are not looked up",
                quote(text)
            ))
            .hint("use `host: localhost`, which is the loopback addresses")),
        };
    }
    // As URLs have it: a name that ends in a number is meant to be an IPv4 address.
    if last.bytes().all(|b| b.is_ascii_digit())
        || last
            .strip_prefix("0x")
            .is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
    {
        return Err(match base.parse() {
            Ok(address) if !pattern.is_wildcard() => address_as_host(text, IpAddr::V4(address)),
            _ => Fault::new(format!(
                "{} is not a host name: no top-level domain is a number",
                quote(text)
            ))
            .hint("write a range of addresses as `cidr: 198.51.100.0/24`"),
        });
    }
    Ok(Target::Host(pattern))
}

fn address_as_host(text: &str, address: IpAddr) -> Fault {
    Fault::new(format!("{} is an address, not a host name", quote(text)))
        .hint(format!("use {}", key(&one_address(address))))
}

/// An address, also as URLs have it: `[2001:db8::1]`.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text);
    bare.parse().ok()
}

/// What a rule for one address speaks of: of the usual loopback addresses, whatever listens there.
fn one_address(address: IpAddr) -> Target {
    let address = address.to_canonical();
    if [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()].contains(&address) {
        Target::Localhost
    } else {
        Target::Cidr(address.into())
    }
}

/// `host:port` in its parts.
fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if is_number(port) => (host, Some(port)),
        _ => (authority, None),
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The keys of a rule for `host`, for a hint. A port that no rule can have is left out.
fn keys(host: &str, port: Option<&str>, ssh: bool) -> Option<String> {
    let host = guess(host)?;
    let port = port.filter(|port| *port != "443" && ports::parse(port).is_ok());
    Some(match port {
        Some(port) if ssh => {
            format!("{host}, `ports: [{port}]` and, under `allow`, `tls: off`")
        }
        Some(port) => format!("{host} and `ports: [{port}]`"),
        None => host,
    })
}

/// The key, with its value, for what `text` seems to mean, for a hint.
pub(crate) fn guess(text: &str) -> Option<String> {
    let target = match address(text) {
        Some(address) => one_address(address),
        None => cidr(text).or_else(|_| name(text)).ok()?,
    };
    Some(key(&target))
}

/// The key for `target`, with its value, as the file would have it, for a hint.
fn key(target: &Target) -> String {
    match target {
        Target::Host(host) if host.is_wildcard() => format!("`host: \"{host}\"`"),
        Target::Cidr(net) => format!("`cidr: {net}`"),
        _ => format!("`host: {target}`"),
    }
}

/// Parses the value of `cidr`.
pub(crate) fn cidr(text: &str) -> Result<Target, Fault> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Err(
            Fault::new(format!("{} has no prefix length", quote(text))).hint(format!(
                "use `cidr: {}` for this one address",
                IpNet::from(address.to_canonical())
            )),
        );
    }
    let Ok(net) = text.parse::<IpNet>() else {
        let fault = Fault::new(format!("{} is not a network", quote(text)));
        return Err(match HostPattern::parse(text) {
            Ok(host)
                if text.contains('.')
                    && !text.contains('/')
                    && !text.ends_with(|c: char| c.is_ascii_digit()) =>
            {
                fault.hint(format!("use {}", key(&Target::Host(host))))
            }
            _ => fault.hint("write networks as 198.51.100.0/24 or 2001:db8::/32"),
        });
    };
    if let IpNet::V6(v6) = net
        && v6.prefix_len() >= 96
        && let Some(v4) = v6.addr().to_ipv4_mapped()
    {
        let fault = Fault::new(format!(
            "{} is an IPv4 network in IPv6 clothes",
            quote(text)
        ));
        return Err(match Ipv4Net::new(v4, v6.prefix_len() - 96) {
            Ok(net) => fault.hint(format!(
                "use `cidr: {}`; it holds for IPv6 sockets, too",
                net.trunc()
            )),
            Err(_) => fault,
        });
    }
    if net.trunc() != net {
        return Err(
            Fault::new(format!("{} has bits set behind the prefix", quote(text))).hint(format!(
                "did you mean {} or {}?",
                net.trunc(),
                IpNet::from(net.addr())
            )),
        );
    }
    Ok(Target::Cidr(net))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::{Pos, Source};

    proptest! {
        #[test]
        fn what_a_hint_proposes_is_accepted(
            text in r"(https?://|ssh://|git@|\*\.)?([a-c0-9.:*/@\[\]-]{0,12}|[0-9.]{1,4}\.0\.0\.1)(:[0-9]{1,6})?(/[0-9a-c@]{0,3})?",
        ) {
            let Err(fault) = host(&text) else {
                return Ok(());
            };
            // Backticks are around each key with its value.
            let error = Source::new("policy.yml", String::new()).error(fault.at(Pos::START));
            for proposal in error.hint().unwrap_or_default().split('`').skip(1).step_by(2) {
                let value = |key| proposal.strip_prefix(key);
                let accepted = if let Some(value) = value("host: ") {
                    host(value.trim_matches('"')).is_ok()
                } else if let Some(value) = value("cidr: ") {
                    cidr(value).is_ok()
                } else if let Some(value) = value("ports: [") {
                    ports::parse(value.trim_end_matches(']')).is_ok()
                } else {
                    true
                };
                prop_assert!(accepted, "{} is told: {}", text, proposal);
            }
        }
    }
}
