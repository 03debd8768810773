//! What a good policy means.
#![expect(clippy::unwrap_used, reason = "what the helpers unwrap fails the test")]

mod common;

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;
use jobfence_abi::{Addr, Checks, PortRange, proto};
use jobfence_policy::{
    AddrRule, HostPattern, Job, Mode, Name, NameVerdict, OnViolation, Policy, Rule, Target,
};
use proptest::prelude::*;

use self::common::lookup;

fn policy(text: &str) -> Policy {
    Policy::parse("policy.yml", text.as_bytes()).unwrap_or_else(|error| panic!("{error}"))
}

/// The job `default` with these lines as its content.
fn job(lines: &str) -> Job {
    policy(&format!("version: 1\njobs:\n  default:\n{lines}"))
        .job(None)
        .unwrap()
}

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn tcp(first: u16, last: u16) -> PortRange {
    PortRange::new(proto::TCP, first, last)
}

/// With TLS checked.
fn tls(first: u16, last: u16) -> PortRange {
    tcp(first, last).checked(Checks::TLS)
}

/// With HTTP checked.
fn http(port: u16) -> PortRange {
    tcp(port, port).checked(Checks::HTTP)
}

fn udp(first: u16, last: u16) -> PortRange {
    PortRange::new(proto::UDP, first, last)
}

fn targets(rules: &[Rule]) -> Vec<String> {
    rules.iter().map(|rule| rule.target.to_string()).collect()
}

#[test]
fn everything_that_a_rule_says_is_kept_with_its_place() {
    let job = policy(
        "version: 1\nmode: audit\non_violation: kill\njobs:\n  default:\n    allow:\n      - host: Git.Example.com.\n      \
         - {host: \"*.cdn.example.com\", ports: [8443]}\n      - host: db.example.com\n        \
         ports: [8000-8010, 5432, 123/udp, 8011, \"443/udp\", 443/tcp]\n        reason: integration database\n        \
         owner: team-data\n        private: true\n        tls: off\n      - host: localhost\n    deny:\n      - cidr: 2001:db8::/32\n        fail: false\n",
    )
    .job(None)
    .unwrap();
    assert_eq!(
        (job.mode, job.on_violation, job.name.as_str()),
        (Mode::Audit, OnViolation::Kill, "default")
    );
    assert_eq!(
        targets(&job.allow),
        [
            "git.example.com",
            "*.cdn.example.com",
            "db.example.com",
            "localhost"
        ]
    );
    let places: Vec<String> = job
        .allow
        .iter()
        .chain(&job.deny)
        .map(|rule| format!("{}:{}", rule.location, rule.location.column))
        .collect();
    assert_eq!(
        places,
        [
            "policy.yml:7:9",
            "policy.yml:8:10",
            "policy.yml:9:9",
            "policy.yml:15:9",
            "policy.yml:17:9"
        ]
    );
    assert_eq!(job.allow[0].ports, [tls(443, 443)]);
    let db = &job.allow[2];
    assert_eq!(
        db.ports,
        [
            tcp(443, 443),
            tcp(5432, 5432),
            tcp(8000, 8011),
            udp(123, 123),
            udp(443, 443)
        ]
    );
    assert_eq!(
        (db.reason.as_deref(), db.owner.as_deref()),
        (Some("integration database"), Some("team-data"))
    );
    assert!(db.private && db.fail && !job.allow[0].private);
    assert_eq!(job.allow[3].target, Target::Localhost);
    assert_eq!(
        job.deny[0].ports,
        [],
        "a deny rule without ports is for every port"
    );
    assert!(!job.deny[0].fail);
}

#[test]
fn yaml_is_taken_as_it_means() {
    let policy = policy(
        "version: !!int 1\njobs:\n  3.10: {}\n  a:\n    extends: \"3.10\"\n    allow:\n      - host: \"a\\x2eexample.com\"\n        \
         'ports': [!!str 443, 0x50]\n        reason: >\n          R&D needs it\n          & so do we\n      \
         - { \"host\": \"b.example.com\" }\n",
    );
    assert_eq!(policy.job_names().collect::<Vec<_>>(), ["3.10", "a"]);
    let job = policy.job(Some("a")).unwrap();
    assert_eq!(targets(&job.allow), ["a.example.com", "b.example.com"]);
    assert_eq!(job.allow[0].ports, [http(80), tls(443, 443)]);
    assert_eq!(
        job.allow[0].reason.as_deref(),
        Some("R&D needs it & so do we")
    );
    assert_eq!(job.allow[1].location.to_string(), "policy.yml:12");
}

#[test]
fn what_is_not_said_is_the_strict_choice() {
    for empty in ["{}", "", "{allow: , deny: }", "{allow: []}"] {
        let job = policy(&format!("version: 1\njobs: {{default: {empty} }}"))
            .job(None)
            .unwrap();
        assert_eq!(
            (job.mode, job.on_violation),
            (Mode::Enforce, OnViolation::Fail)
        );
        assert_eq!(
            job.name_verdict(&name("git.example.com")),
            NameVerdict::Unknown
        );
        assert_eq!(job.prefixes().unwrap(), []);
        assert_eq!(
            job.grants(ip("198.51.100.1"), &[name("git.example.com")]),
            Ok(vec![])
        );
    }
}

#[test]
fn a_job_has_its_ancestors_rules_first() {
    let policy = policy(
        "version: 1\njobs:\n  c: {extends: b, allow: [{host: c.example.com}]}\n  \
         a: {allow: [{host: a.example.com}], deny: [{host: x.example.com}]}\n  \
         b: {extends: a, allow: [{host: b.example.com}], deny: [{host: y.example.com}]}\n",
    );
    assert_eq!(policy.job_names().collect::<Vec<_>>(), ["c", "a", "b"]);
    let c = policy.job(Some("c")).unwrap();
    assert_eq!(
        targets(&c.allow),
        ["a.example.com", "b.example.com", "c.example.com"]
    );
    assert_eq!(targets(&c.deny), ["x.example.com", "y.example.com"]);
    assert_eq!(
        targets(&policy.job(Some("a")).unwrap().allow),
        ["a.example.com"]
    );
}

#[test]
fn a_name_has_all_rules_that_match_it_and_the_most_specific_first() {
    let job = job(
        "    allow:\n      - host: \"*.example.com\"\n      - host: \"*.b.example.com\"\n        ports: [1]\n      \
         - host: a.b.example.com\n        ports: [2]\n",
    );
    let verdict = |text| match job.name_verdict(&name(text)) {
        NameVerdict::Allowed(rules) => rules.iter().map(|rule| rule.target.to_string()).collect(),
        NameVerdict::Denied(_) => vec!["denied".into()],
        NameVerdict::Unknown => vec![],
    };
    assert_eq!(
        verdict("A.b.example.com"),
        ["a.b.example.com", "*.b.example.com", "*.example.com"]
    );
    assert_eq!(verdict("b.example.com"), ["*.example.com"]);
    assert_eq!(verdict("example.com"), [""; 0]);
    assert_eq!(verdict("example.com.evil.test"), [""; 0]);
}

#[test]
fn a_denied_name_is_denied_whatever_allows_it() {
    let job = job(
        "    allow:\n      - host: \"*.example.com\"\n      - host: a.example.com\n      - host: p.example.com\n        \
         ports: [80, 443]\n    deny:\n      - host: \"*.example.com\"\n      - host: a.example.com\n        fail: false\n      \
         - host: q.example.test\n        ports: [80]\n",
    );
    let NameVerdict::Denied(rule) = job.name_verdict(&name("a.example.com")) else {
        panic!("not denied")
    };
    assert!(
        !rule.fail,
        "the most specific rule decides whether it is a violation"
    );
    assert!(
        matches!(job.name_verdict(&name("p.example.com")), NameVerdict::Denied(rule) if rule.fail)
    );
    assert_eq!(
        job.name_verdict(&name("q.example.test")),
        NameVerdict::Unknown
    );
    assert_eq!(
        job.grants(ip("198.51.100.1"), &[name("a.example.com")]),
        Ok(vec![])
    );
}

#[test]
fn a_deny_with_ports_takes_those_ports_only() {
    let job = job(
        "    allow:\n      - {host: a.example.com, ports: [80-90]}\n    deny:\n      - {host: a.example.com, ports: [85]}\n      \
         - {cidr: 198.51.100.0/24, ports: [80]}\n      - {cidr: 198.51.100.9/32}\n",
    );
    let names = [name("a.example.com")];
    assert_eq!(
        job.grants(ip("192.0.2.1"), &names),
        Ok(vec![http(80), tls(81, 84), tls(86, 90)])
    );
    assert_eq!(
        job.grants(ip("198.51.100.1"), &names),
        Ok(vec![tls(81, 84), tls(86, 90)])
    );
    assert_eq!(job.grants(ip("198.51.100.9"), &names), Ok(vec![]));
    let explained = job.explain_addr(ip("192.0.2.1"), &names, proto::TCP, 85);
    assert_eq!(explained, AddrRule::Denied(&job.deny[0]));
    assert_eq!(
        job.explain_addr(ip("192.0.2.1"), &names, proto::TCP, 84),
        AddrRule::Allowed(&job.allow[0])
    );
    assert_eq!(
        job.explain_addr(ip("192.0.2.1"), &names, proto::UDP, 84),
        AddrRule::None
    );
    assert_eq!(
        job.explain_addr(ip("198.51.100.9"), &[], proto::ICMP, 0),
        AddrRule::Denied(&job.deny[2])
    );
}

#[test]
fn dns_is_never_granted() {
    let job = job(
        "    allow:\n      - {host: a.example.com, ports: [1-65535, 1-65535/udp], tls: off, http: off}\n      \
         - {cidr: 198.51.100.0/24, ports: [50-60]}\n",
    );
    let everything = vec![tcp(1, 52), tcp(54, u16::MAX), udp(1, 52), udp(54, u16::MAX)];
    assert_eq!(
        job.grants(ip("192.0.2.1"), &[name("a.example.com")]),
        Ok(everything)
    );
    assert_eq!(
        job.prefixes().unwrap(),
        [(
            "198.51.100.0/24".parse().unwrap(),
            vec![tcp(50, 52), tcp(54, 60)]
        )]
    );
    assert_eq!(
        job.explain_addr(ip("198.51.100.1"), &[], proto::TCP, 53),
        AddrRule::None
    );
}

#[test]
fn an_address_of_a_name_keeps_what_its_network_has() {
    let job = job(
        "    allow:\n      - host: a.example.com\n      - {cidr: 198.51.100.0/24, ports: [22]}\n",
    );
    let names = [name("a.example.com"), name("other.example.com")];
    assert_eq!(
        job.grants(ip("198.51.100.1"), &names),
        Ok(vec![tcp(22, 22), tls(443, 443)])
    );
    assert_eq!(
        job.grants(ip("::ffff:198.51.100.1"), &names),
        Ok(vec![tcp(22, 22), tls(443, 443)])
    );
    assert_eq!(
        job.grants(ip("198.51.101.1"), &names),
        Ok(vec![tls(443, 443)])
    );
    assert_eq!(
        job.grants(ip("198.51.100.1"), &names[1..]),
        Ok(vec![tcp(22, 22)])
    );
}

#[test]
fn a_metadata_service_is_reached_only_by_a_rule_for_exactly_its_address() {
    let wide = job(
        "    allow:\n      - cidr: 0.0.0.0/0\n      - cidr: ::/0\n      - cidr: 169.254.169.254/31\n      - host: a.example.com\n",
    );
    let prefixes = wide.prefixes().unwrap();
    for service in Addr::METADATA {
        assert!(prefixes.contains(&(service.into(), vec![])), "{service}");
        assert_eq!(
            wide.grants(service, &[name("a.example.com")]),
            Ok(vec![]),
            "{service}"
        );
        assert_eq!(
            wide.explain_addr(service, &[name("a.example.com")], proto::TCP, 443),
            AddrRule::None
        );
    }
    assert_eq!(lookup(&prefixes, ip("169.254.169.255")), [tcp(443, 443)]);
    let exact = job(
        "    allow:\n      - {cidr: 169.254.0.0/16, ports: [22]}\n      - {cidr: 169.254.169.254/32, ports: [80]}\n      - host: a.example.com\n",
    );
    let service = ip("169.254.169.254");
    assert_eq!(lookup(&exact.prefixes().unwrap(), service), [tcp(80, 80)]);
    assert_eq!(
        exact.grants(service, &[name("a.example.com")]),
        Ok(vec![tcp(80, 80)])
    );
}

#[test]
fn an_ipv6_network_does_not_let_ipv4_through() {
    let job = job("    allow:\n      - cidr: ::/0\n");
    let prefixes = job.prefixes().unwrap();
    assert_eq!(lookup(&prefixes, ip("2001:db8::1")), [tcp(443, 443)]);
    assert_eq!(lookup(&prefixes, ip("198.51.100.1")), []);
}

#[test]
fn localhost_is_the_loopback_addresses() {
    let job = job(
        "    allow:\n      - {host: LocalHost., ports: [5432]}\n    deny:\n      - cidr: 127.0.0.53/32\n",
    );
    assert_eq!(
        job.prefixes().unwrap(),
        [
            ("127.0.0.0/8".parse().unwrap(), vec![tcp(5432, 5432)]),
            ("127.0.0.53/32".parse().unwrap(), vec![]),
            ("::1/128".parse().unwrap(), vec![tcp(5432, 5432)]),
        ]
    );
    assert_eq!(job.name_verdict(&name("localhost")), NameVerdict::Unknown);
}

#[test]
fn off_changes_nothing_where_nothing_is_checked() {
    for (rule, off) in [
        ("host: a.example.com, ports: [443, 8443]", "http: off"),
        ("host: a.example.com, ports: [80]", "tls: off"),
        ("host: a.example.com, ports: [123/udp]", "tls: off"),
        (
            "cidr: 198.51.100.0/24, ports: [80, 443]",
            "tls: off, http: off",
        ),
        ("host: localhost, ports: [80, 443]", "tls: off, http: off"),
    ] {
        let ports = |keys: &str| {
            job(&format!("    allow: [{{{keys}}}]\n")).allow[0]
                .ports
                .clone()
        };
        assert_eq!(ports(&format!("{rule}, {off}")), ports(rule), "{rule}");
    }
}

#[test]
fn ranges_that_only_together_are_too_many_are_an_error_with_a_place() {
    let ports = |from: u16| {
        (0..16)
            .map(|i| (from + 2 * i).to_string())
            .collect::<Vec<_>>()
            .join(", ")
    };
    let job = job(&format!(
        "    allow:\n      - {{cidr: 10.0.0.0/8, ports: [{}]}}\n      - {{cidr: 10.1.0.0/16, ports: [{}]}}\n      \
         - {{host: a.example.com, ports: [{}]}}\n",
        ports(1000),
        ports(2000),
        ports(3000)
    ));
    let error = job.prefixes().unwrap_err();
    assert_eq!(error.location().to_string(), "policy.yml:6");
    assert_eq!(
        error.message(),
        "the rules for 10.1.0.0/16 come to 32 separate port ranges, at most 16 are possible"
    );
    let error = job
        .grants(ip("10.0.0.1"), &[name("a.example.com")])
        .unwrap_err();
    assert_eq!((error.addr, error.ranges), (ip("10.0.0.1"), 32));
}

/// Few networks and addresses, so that they hold each other; IPv4, IPv6 and metadata.
fn any_net() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (any_addr(), 24_u8..=32).prop_map(|(addr, length)| (addr, length, length + 96)),
        (any_addr(), prop_oneof![Just(0_u8), 110_u8..=128]).prop_map(|(addr, length)| (
            addr,
            length.min(32),
            length
        )),
    ]
    .prop_map(|(addr, v4, v6)| {
        IpNet::new(addr, if addr.is_ipv4() { v4 } else { v6 })
            .unwrap()
            .trunc()
    })
}

fn any_addr() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0_u8..16).prop_map(|last| IpAddr::from([198, 51, 100, last])),
        (0_u16..16).prop_map(|last| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last])),
        (250_u8..).prop_map(|last| IpAddr::from([169, 254, 169, last])),
        prop::sample::select(Addr::METADATA.to_vec()),
    ]
}

fn any_ports() -> impl Strategy<Value = Vec<(u16, u16, bool)>> {
    prop::collection::vec(
        (50_u16..60, 0_u16..4, any::<bool>()).prop_map(|(a, more, udp)| (a, a + more, udp)),
        1..4,
    )
    .prop_filter("port 53 alone is an error", |ports| {
        ports.iter().all(|&(a, b, _)| (a, b) != (53, 53))
    })
}

/// A rule in the making: what it is about, and its ports with whether they are UDP.
type Draft = (Kind, Option<Vec<(u16, u16, bool)>>);

#[derive(Clone, Debug)]
enum Kind {
    Net(IpNet),
    Host(String),
}

fn any_rules(hosts: bool) -> impl Strategy<Value = Vec<Draft>> {
    let host = "(\\*\\.)?([ab]\\.){0,2}x\\.example\\.com".prop_map(Kind::Host);
    let net = any_net().prop_map(Kind::Net);
    let kind = if hosts {
        prop_oneof![host, net].boxed()
    } else {
        net.boxed()
    };
    prop::collection::vec((kind, prop::option::of(any_ports())), 0..8)
}

fn list(rules: &[Draft]) -> String {
    let mut text = String::new();
    for (kind, ports) in rules {
        text += &match kind {
            Kind::Net(net) => format!("      - cidr: {net}\n"),
            Kind::Host(host) => format!("      - host: \"{host}\"\n"),
        };
        if let Some(ports) = ports {
            let ports: Vec<String> = ports
                .iter()
                .map(|(first, last, udp)| {
                    format!("{first}-{last}/{}", if *udp { "udp" } else { "tcp" })
                })
                .collect();
            text += &format!("        ports: [{}]\n", ports.join(", "));
        }
    }
    text
}

/// Whether the rules let a flow through, said as simply as it can be: one rule after the other.
fn naive(job: &Job, addr: IpAddr, names: &[Name], proto: u8, port: u16) -> bool {
    let metadata = Addr::METADATA.contains(&addr);
    let on_name =
        |rule: &Rule, name: &Name| matches!(&rule.target, Target::Host(host) if host.matches(name));
    let on_net = |rule: &Rule, exact: bool| matches!(&rule.target, Target::Cidr(net) if net.contains(&addr) && (!exact || *net == IpNet::from(addr)));
    let on_port = |rule: &Rule| rule.ports.iter().any(|range| range.contains(proto, port));
    let live: Vec<&Name> = names
        .iter()
        .filter(|name| {
            !job.deny
                .iter()
                .any(|rule| rule.ports.is_empty() && on_name(rule, name))
        })
        .collect();
    let allowed = job.allow.iter().any(|rule| {
        on_port(rule)
            && (on_net(rule, metadata)
                || (!metadata && live.iter().any(|name| on_name(rule, name))))
    });
    let denied = job.deny.iter().any(|rule| {
        (rule.ports.is_empty() && on_net(rule, false))
            || (on_port(rule)
                && (on_net(rule, false) || names.iter().any(|name| on_name(rule, name))))
    });
    allowed && !denied && port != 53
}

fn holds(ranges: &[PortRange], proto: u8, port: u16) -> bool {
    ranges.iter().any(|range| range.contains(proto, port))
}

proptest! {
    #[test]
    fn the_longest_prefix_gives_what_the_rules_say(
        allow in any_rules(false), deny in any_rules(false), addrs in prop::collection::vec(any_addr(), 8),
    ) {
        let job = job(&format!("    allow:\n{}    deny:\n{}", list(&allow), list(&deny)));
        let prefixes = job.prefixes().unwrap();
        prop_assert_eq!(prefixes.iter().map(|(net, _)| net).collect::<HashSet<_>>().len(), prefixes.len());
        for addr in addrs {
            let ranges = lookup(&prefixes, addr);
            prop_assert_eq!(&ranges, &job.grants(addr, &[]).unwrap(), "{}", addr);
            for proto in [proto::TCP, proto::UDP] {
                for port in (48..66).chain([443]) {
                    prop_assert_eq!(
                        holds(&ranges, proto, port), naive(&job, addr, &[], proto, port), "{} {} {}", addr, proto, port
                    );
                }
            }
        }
    }

    #[test]
    fn grants_and_explanations_are_what_the_rules_say(
        allow in any_rules(true), deny in any_rules(true), addr in any_addr(),
        names in prop::collection::vec("([abc]\\.){0,3}x\\.example\\.com", 0..3),
    ) {
        let job = job(&format!("    allow:\n{}    deny:\n{}", list(&allow), list(&deny)));
        let names: Vec<Name> = names.iter().map(|text| name(text)).collect();
        let ranges = job.grants(addr, &names).unwrap();
        for proto in [proto::TCP, proto::UDP, proto::ICMP] {
            for port in (48..66).chain([443]) {
                let granted = holds(&ranges, proto, port);
                prop_assert_eq!(granted, naive(&job, addr, &names, proto, port), "{} {}", proto, port);
                let explained = job.explain_addr(addr, &names, proto, port);
                prop_assert_eq!(granted, matches!(explained, AddrRule::Allowed(_)), "{:?}", explained);
            }
        }
    }

    #[test]
    fn name_verdicts_are_what_the_rules_say(
        allow in any_rules(true), deny in any_rules(true), asked in "([abcAB]\\.){0,3}x\\.example\\.com\\.?",
    ) {
        let job = job(&format!("    allow:\n{}    deny:\n{}", list(&allow), list(&deny)));
        let asked = name(&asked);
        let matches = |rule: &&Rule| matches!(&rule.target, Target::Host(host) if HostPattern::matches(host, &asked));
        let denied = job.deny.iter().filter(|rule| rule.ports.is_empty()).any(|rule| matches(&rule));
        let allowed = job.allow.iter().filter(matches).count();
        match job.name_verdict(&asked) {
            NameVerdict::Denied(rule) => prop_assert!(denied && matches(&rule)),
            NameVerdict::Allowed(rules) => {
                prop_assert!(!denied, "deny beats allow");
                prop_assert_eq!(rules.len(), allowed);
                prop_assert!(rules.iter().all(matches));
            }
            NameVerdict::Unknown => prop_assert!(!denied && allowed == 0),
        }
    }

    #[test]
    fn the_most_specific_pattern_gives_what_the_rules_say(
        allow in any_rules(true), deny in any_rules(true), asked in "([abc]\\.){0,3}x\\.example\\.com",
    ) {
        let job = job(&format!("    allow:\n{}    deny:\n{}", list(&allow), list(&deny)));
        let patterns = job.names().unwrap();
        let asked = name(&asked);
        // A name itself before what it is below of, and of those the longest.
        let found = patterns
            .iter()
            .filter(|(pattern, _)| pattern.matches(&asked))
            .max_by_key(|(pattern, _)| (!pattern.is_wildcard(), pattern.base().as_str().len()));
        for port in (48..66).chain([443]) {
            let holds = found.is_some_and(|(_, ranges)| holds(ranges, proto::TCP, port));
            let on = |rule: &Rule| {
                matches!(&rule.target, Target::Host(host) if host.matches(&asked))
                    && rule.ports.iter().any(|range| range.contains(proto::TCP, port))
            };
            let denies = |rule: &Rule| {
                on(rule) || rule.ports.is_empty() && matches!(&rule.target, Target::Host(host) if host.matches(&asked))
            };
            let allowed = job.allow.iter().any(on) && !job.deny.iter().any(denies);
            // Port 53 is never reached, whatever name is said there.
            prop_assert_eq!(holds, allowed, "{}", port);
            let explained = job.explain_name(&asked, port);
            prop_assert_eq!(allowed, matches!(explained, AddrRule::Allowed(_)), "{:?}", explained);
        }
    }

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Policy::parse("p", &bytes);
    }

    #[test]
    fn nothing_like_a_policy_makes_the_parser_panic(
        words in prop::collection::vec(prop::sample::select(vec![
            "version", "jobs", "default", "allow", "deny", "host", "cidr", "ports", "extends", ": ", ":", "- ", "\n",
            "\n  ", "\n    ", "[", "]", "{", "}", ",", "1", "443", "a.example.com", "*.", "*", "&", "!", "|", ">", "'",
            "\"", "\\", "#", "?", "%", "---\n", "...\n", "\t", "\r", "\u{85}", "\u{2028}", "é", "\0", "::/0", "127.1",
        ]), 0..60),
        head in any::<bool>(),
    ) {
        let head = if head { "version: 1\njobs:\n  default:\n    allow:\n      - host: " } else { "" };
        if let Err(error) = Policy::parse("p", format!("{head}{}", words.concat()).as_bytes()) {
            // Showing it must not panic either.
            prop_assert!(error.location().line > 0 && !error.to_string().is_empty());
        }
    }

    #[test]
    fn no_host_makes_the_parser_panic(text in "\\PC{0,30}") {
        let text = text.replace(['\\', '"'], "");
        let _ = Policy::parse("p", format!("version: 1\njobs: {{a: {{allow: [{{host: \"{text}\"}}, {{cidr: \"{text}\"}}]}}}}").as_bytes());
    }
}

#[test]
fn a_rule_is_shown_with_its_ports() {
    let job = job("    allow:
      - host: a.example.com
      - {cidr: 2001:db8::/32, ports: [5432, 8000-8010, 123/udp]}
");
    let shown: Vec<_> = job.allow.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "a.example.com on 443",
            "2001:db8::/32 on 5432, 8000-8010, 123/udp"
        ]
    );
}
