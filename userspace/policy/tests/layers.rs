//! What a job may reach under its host's policy, and what a change under review may make of it.
#![expect(clippy::unwrap_used, reason = "what the helpers unwrap fails the test")]

mod common;

use std::net::IpAddr;

use jobfence_abi::{Checks, PortRange, proto};
use jobfence_policy::{
    AddrRule, Cause, Date, HostPolicy, Job, Layer, Limits, Mode, Name, NameVerdict, OnViolation,
    Policy, Presets, Rule, Target,
};
use proptest::prelude::*;

use self::common::lookup;

/// The job `default` with these lines as its content.
fn job(lines: &str) -> Job {
    job_of(&format!("version: 1\njobs:\n  default:\n{lines}"))
}

fn job_of(text: &str) -> Job {
    Policy::parse("policy.yml", text.as_bytes())
        .and_then(|policy| policy.job(None))
        .unwrap_or_else(|error| panic!("{error}"))
}

fn host(lines: &str) -> HostPolicy {
    let text = format!("version: 1\n{lines}");
    HostPolicy::parse("host.yml", text.as_bytes(), &platform())
        .unwrap_or_else(|error| panic!("{error}"))
}

/// A host's presets.
fn platform() -> Presets {
    let mut presets = Presets::built_in();
    let text = "version: 1\nallow:\n  - host: api.platform.test\n  - host: '*.blob.platform.test'\n\
                deny:\n  - {host: noise.platform.test, fail: false}\n";
    presets
        .insert("platform", "presets/platform.yml", text.as_bytes())
        .unwrap();
    presets
}

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn date(text: &str) -> Date {
    // The language's own parser, by way of a rule.
    let job = job(&format!("    allow: [{{host: a.test, expires: {text}}}]\n"));
    job.allow[0].expires.unwrap()
}

/// The rules, as `layer target ports`; ports with what is checked, as bits.
fn shown(rules: &[Rule]) -> Vec<String> {
    let range = |range: &PortRange| {
        let udp = if range.proto == proto::UDP {
            "/udp"
        } else {
            ""
        };
        format!(" {}-{}{udp}:{}", range.first, range.last, range.checks.0)
    };
    rules
        .iter()
        .map(|rule| {
            let ports: String = rule.ports.iter().map(range).collect();
            format!("{} {}{ports}", rule.layer, rule.target)
        })
        .collect()
}

fn clipped(job: &Job) -> Vec<String> {
    job.clipped.iter().map(ToString::to_string).collect()
}

#[test]
fn a_host_without_a_word_leaves_a_job_as_it_is() {
    let job = job_of(
        "version: 1\nmode: audit\non_violation: warn\nlimits: {names: 16384, events: 1000000}\n\
         jobs: {default: {allow: [{host: a.test}], deny: [{host: b.test, fail: false}]}}\n",
    );
    for host in [HostPolicy::default(), host("")] {
        let under = job.under(&host).unwrap();
        assert_eq!((&under.allow, &under.deny), (&job.allow, &job.deny));
        assert_eq!(
            (under.mode, under.on_violation, under.limits),
            (Mode::Audit, OnViolation::Warn, job.limits)
        );
        assert_eq!(under.clipped, []);
    }
}

#[test]
fn a_rule_keeps_what_the_ceiling_has_of_it() {
    let job = job(
        "    allow:\n      - {host: '*.a.test', ports: [80, 443, 8443]}\n      - host: b.test\n      \
         - {host: c.test, ports: [1-10], tls: off}\n      - {cidr: 198.51.100.0/24, ports: [22, 123/udp]}\n      \
         - {host: '*.d.test'}\n      - {host: e.test, private: true}\n",
    );
    let host = host(
        "ceiling:\n  - {host: x.a.test, ports: [1-443]}\n  - {host: '*.y.a.test', tls: off}\n  - {host: c.test, ports: [5-20]}\n  \
         - {cidr: 198.51.100.128/25, ports: [1-100, 123/tcp]}\n  - {cidr: 198.51.100.7/32, ports: [123/udp]}\n  \
         - host: d.test\n  - host: e.test\n",
    );
    let under = job.under(&host).unwrap();
    assert_eq!(
        shown(&under.allow),
        [
            "repository x.a.test 80-80:2 443-443:1",
            "repository *.y.a.test 443-443:1",
            "repository c.test 5-10:1",
            "repository 198.51.100.128/25 22-22:0",
            "repository 198.51.100.7/32 123-123/udp:0",
            "repository e.test 443-443:1",
        ]
    );
    assert!(under.allow.iter().all(|rule| !rule.private));
    assert_eq!(under.allow[2].location.to_string(), "policy.yml:7");
    assert_eq!(
        clipped(&under),
        [
            "policy.yml:5 allows more of *.a.test than this host's ceiling does",
            "policy.yml:6 allows b.test, which this host's ceiling does not",
            "policy.yml:7 allows more of c.test than this host's ceiling does",
            "policy.yml:8 allows more of 198.51.100.0/24 than this host's ceiling does",
            "policy.yml:9 allows *.d.test, which this host's ceiling does not",
            "policy.yml:10 allows more of e.test than this host's ceiling does",
        ]
    );
}

#[test]
fn a_rule_that_several_of_the_ceiling_allow_together_is_whole() {
    let job = job(
        "    allow:\n      - {host: a.test, ports: [80-90], private: true}\n      - host: localhost\n      - cidr: 198.51.100.0/24\n",
    );
    let host = host(
        "ceiling:\n  - {host: a.test, ports: [80-85], private: true}\n  - {host: '*.b.test'}\n  \
         - {host: a.test, ports: [86-100], private: true}\n  - cidr: 127.0.0.0/8\n  - cidr: ::/0\n  - cidr: 198.51.0.0/16\n",
    );
    assert_eq!(clipped(&job.under(&host).unwrap()), [""; 0]);
}

#[test]
fn the_ceiling_says_what_is_checked_at_least() {
    let ports = |ours: &str, ceiling: &str| {
        let job = job(&format!(
            "    allow: [{{host: a.test, ports: [80, 443], {ours}}}]\n"
        ));
        let host = host(&format!(
            "ceiling: [{{host: a.test, ports: [80, 443], {ceiling}}}]\n"
        ));
        let under = job.under(&host).unwrap();
        let ports = under.allow.iter().flat_map(|rule| &rule.ports);
        let checks = ports.map(|range| (range.first, range.checks));
        (checks.collect::<Vec<_>>(), under.clipped.len())
    };
    let verified = vec![(80, Checks::HTTP), (443, Checks::TLS)];
    assert_eq!(ports("tls: off, http: off", ""), (verified.clone(), 1));
    assert_eq!(ports("", "tls: off, http: off"), (verified.clone(), 0));
    let off = vec![(80, Checks::NONE), (443, Checks::NONE)];
    assert_eq!(
        ports("tls: off, http: off", "tls: off, http: off"),
        (off, 0)
    );
    assert_eq!(ports("tls: off", "http: off"), (verified.clone(), 1));
    // Either will do, says the repository.
    assert_eq!(ports("tls: verify, http: verify", ""), (verified, 1));
    // No connection begins with both.
    let none = ports("tls: off, http: verify", "tls: verify, http: off");
    assert_eq!(none, (vec![], 1));
}

#[test]
fn what_the_ceiling_takes_is_named_in_the_answers() {
    let job = job(
        "    allow:\n      - {host: '*.a.test', ports: [443, 8443]}\n      - {cidr: 198.51.100.0/24}\n",
    );
    let host = host("ceiling: [{host: x.a.test}]\n");
    let under = job.under(&host).unwrap();
    let by_name = |text| under.explain_name(&name(text), 443);
    assert!(matches!(by_name("x.a.test"), AddrRule::Allowed(_)));
    assert_eq!(by_name("y.a.test"), AddrRule::Clipped(&under.clipped[0]));
    assert_eq!(by_name("a.test"), AddrRule::None);
    assert_eq!(
        under.explain_name(&name("x.a.test"), 8443),
        AddrRule::Clipped(&under.clipped[0])
    );
    let by_addr = |text, names: &[Name]| under.explain_addr(ip(text), names, proto::TCP, 443);
    assert_eq!(
        by_addr("198.51.100.1", &[]),
        AddrRule::Clipped(&under.clipped[1])
    );
    assert_eq!(by_addr("192.0.2.1", &[]), AddrRule::None);
    assert_eq!(
        by_addr("192.0.2.1", &[name("y.a.test")]),
        AddrRule::Clipped(&under.clipped[0])
    );
    assert_eq!(under.name_verdict(&name("y.a.test")), NameVerdict::Unknown);
    let clip = under.clipped_name(&name("y.a.test")).unwrap();
    assert_eq!((clip.by, clip.layer()), (Cause::Ceiling, Layer::Ceiling));
    assert_eq!(under.clipped_name(&name("a.test")), None);
}

#[test]
fn a_metadata_service_needs_a_rule_of_both_for_exactly_its_address() {
    let service = "169.254.169.254/32";
    for (ours, ceiling, reached) in [
        (service, service, true),
        (service, "0.0.0.0/0", false),
        ("169.254.0.0/16", service, false),
    ] {
        let job = job(&format!("    allow: [{{cidr: {ours}}}]\n"));
        let under = job.under(&host(&format!("ceiling: [{{cidr: {ceiling}}}]\n")));
        let rule = under.unwrap();
        let rule = rule.explain_addr(ip("169.254.169.254"), &[], proto::TCP, 443);
        let allowed = matches!(rule, AddrRule::Allowed(_));
        assert_eq!(allowed, reached, "{ours} under {ceiling}");
    }
}

#[test]
fn the_host_gives_to_all_jobs_and_takes_from_all() {
    let job = job(
        "    allow: [{host: '*.a.test'}]\n    deny: [{host: x.bad.test, fail: false}, {host: c.base.test}]\n",
    );
    let host = host(
        "ceiling: []\nbaseline: [{host: '*.base.test'}]\n\
         deny: [{host: '*.bad.test'}, {host: d.base.test, fail: false}, {cidr: 198.51.100.7/32}]\n",
    );
    let under = job.under(&host).unwrap();
    let NameVerdict::Allowed(rules) = under.name_verdict(&name("a.base.test")) else {
        panic!("the baseline is missing")
    };
    assert_eq!(rules[0].layer, Layer::Baseline);
    assert_eq!(rules[0].location.to_string(), "host.yml:3");
    assert_eq!(under.name_verdict(&name("x.a.test")), NameVerdict::Unknown);
    let denied = |text| match under.name_verdict(&name(text)) {
        NameVerdict::Denied(rule) => Some((rule.layer, rule.fail)),
        _ => None,
    };
    // The repository's rule is the more specific one, and would excuse it.
    assert_eq!(denied("x.bad.test"), Some((Layer::HostDeny, true)));
    assert_eq!(
        under.explain_name(&name("x.bad.test"), 443),
        AddrRule::Denied(&under.deny[0])
    );
    assert_eq!(denied("c.base.test"), Some((Layer::Repository, true)));
    assert_eq!(denied("d.base.test"), Some((Layer::HostDeny, false)));
    let addr = ip("198.51.100.7");
    let names = [name("a.base.test")];
    assert_eq!(under.grants(addr, &names), Ok(vec![]));
    let rule = under.explain_addr(addr, &names, proto::TCP, 443);
    assert!(matches!(rule, AddrRule::Denied(rule) if rule.layer == Layer::HostDeny));
}

#[test]
fn a_host_can_insist_on_strictness() {
    let lax = job_of(
        "version: 1\nmode: audit\non_violation: warn\nlimits: {names: 300, events: 200, upload: 5GB}\njobs: {default: }\n",
    );
    let strict =
        host("mode: enforce\non_violation: fail\nlimits: {names: 100, upload: 1GB, events: 500}\n");
    let under = lax.under(&strict).unwrap();
    assert_eq!(
        (under.mode, under.on_violation),
        (Mode::Enforce, OnViolation::Fail)
    );
    let limits = Limits {
        names: 100,
        events: 200,
        upload: Some(1_000_000_000),
        ..Limits::default()
    };
    assert_eq!(under.limits, limits);
    let kill = job_of("version: 1\non_violation: kill\njobs: {default: }\n");
    let under = kill.under(&strict).unwrap();
    assert_eq!(under.on_violation, OnViolation::Kill);
    assert_eq!(under.limits.upload, Some(1_000_000_000));
    let under = kill.under(&host("on_violation: warn\nmode: audit\n"));
    assert_eq!(under.unwrap().mode, Mode::Enforce);
}

#[test]
fn limits_are_inherited_key_by_key() {
    let text = "version: 1\nlimits: {names: 10, upload: 2GiB}\njobs:\n  a: {limits: {names: 20, events: 500}}\n  \
                b: {extends: a, limits: {events: 600, upload: none}}\n  c: {limits: {name_bytes: 0, addresses: 1}}\n";
    let policy = Policy::parse("policy.yml", text.as_bytes()).unwrap();
    let limits = |name| policy.job(Some(name)).unwrap().limits;
    let default = Limits::default();
    let a = Limits {
        names: 20,
        events: 500,
        upload: Some(2 << 30),
        ..default
    };
    assert_eq!(limits("a"), a);
    let b = Limits {
        events: 600,
        upload: None,
        ..a
    };
    assert_eq!(limits("b"), b);
    let c = Limits {
        names: 10,
        name_bytes: 0,
        addresses: 1,
        upload: Some(2 << 30),
        ..default
    };
    assert_eq!(limits("c"), c);
}

#[test]
fn a_change_under_review_can_only_narrow() {
    let reviewed = job_of(
        "version: 1\nlimits: {names: 50}\njobs:\n  default:\n    allow: [{host: a.test}, {host: b.test}]\n    \
         deny: [{host: noise.test, fail: false}]\n",
    );
    let change = job_of(
        "version: 1\nmode: audit\non_violation: warn\nlimits: {names: 5000, upload: 1MB}\njobs:\n  default:\n    \
         allow: [{host: b.test}, {host: new.test}]\n    deny: [{host: noise.test}, {host: c.test, fail: false}]\n",
    );
    let narrowed = reviewed.narrowed_by(&change).unwrap();
    assert_eq!(shown(&narrowed.allow), ["repository b.test 443-443:1"]);
    assert_eq!(
        (narrowed.mode, narrowed.on_violation),
        (Mode::Enforce, OnViolation::Fail)
    );
    assert_eq!(
        (narrowed.limits.names, narrowed.limits.upload),
        (50, Some(1_000_000))
    );
    assert_eq!(
        clipped(&narrowed),
        [
            "policy.yml:5 allows a.test, which the policy that narrows it does not",
            "policy.yml:7 allows new.test, which the policy that it can only narrow does not",
        ]
    );
    let denied = |text| match narrowed.name_verdict(&name(text)) {
        NameVerdict::Denied(rule) => (rule.layer, rule.fail),
        other => panic!("{other:?}"),
    };
    // What has been reviewed may excuse, what has not may not.
    assert_eq!(denied("noise.test"), (Layer::Repository, false));
    assert_eq!(denied("c.test"), (Layer::Review, true));
}

#[test]
fn a_policy_that_nobody_has_reviewed_is_bounded_by_the_host() {
    let change = job_of(
        "version: 1\nmode: audit\nlimits: {names: 5000}\njobs: {default: {allow: [{host: a.test}, {host: b.test}]}}\n",
    );
    let with = host("ceiling: [{host: '*.a.test'}, {host: a.test}]\nbaseline: [{host: c.test}]\n");
    let most = with.job("default").narrowed_by(&change).unwrap();
    let under = most.under(&with).unwrap();
    assert_eq!(
        shown(&under.allow),
        ["ceiling a.test 443-443:1", "baseline c.test 443-443:1"]
    );
    assert_eq!(under.mode, Mode::Enforce);
    assert_eq!(under.limits, Limits::default());
    let without = host("baseline: [{host: c.test}]\n");
    let most = without.job("default").narrowed_by(&change).unwrap();
    let under = most.under(&without).unwrap();
    assert_eq!(shown(&under.allow), ["baseline c.test 443-443:1"]);
    let rule = under.explain_name(&name("a.test"), 443);
    assert!(
        matches!(rule, AddrRule::Clipped(clipped) if clipped.by == Cause::Base && clipped.layer() == Layer::Review)
    );
}

#[test]
fn a_rule_holds_up_to_its_last_day() {
    let job = || {
        job(
            "    allow:\n      - {host: a.test, expires: 2027-03-31}\n      - {host: b.test, expires: 2026-12-31}\n      - host: c.test\n",
        )
    };
    let last = job().retire(date("2026-12-31"));
    assert_eq!(last.allow, job().allow);
    let after = job().retire(date("2027-01-01"));
    assert_eq!(
        shown(&after.allow),
        ["repository a.test 443-443:1", "repository c.test 443-443:1"]
    );
    assert_eq!(
        clipped(&after),
        ["policy.yml:6 allowed b.test until 2026-12-31, which is past"]
    );
    assert_eq!(
        after.explain_name(&name("b.test"), 443),
        AddrRule::Clipped(&after.clipped[0])
    );
    assert_eq!(after.name_verdict(&name("b.test")), NameVerdict::Unknown);
    // A rule ends with what permits it.
    let host = host("ceiling: [{host: a.test, expires: 2026-06-30}, {host: c.test}]\n");
    let under = job().under(&host).unwrap().retire(date("2026-07-01"));
    assert_eq!(shown(&under.allow), ["repository c.test 443-443:1"]);
    assert_eq!(under.clipped.last().unwrap().by, Cause::Expired);
}

#[test]
fn a_preset_brings_its_rules_with_their_places() {
    let text = "version: 1\njobs:\n  base: {allow: [{use: platform}]}\n  default:\n    extends: base\n    \
                allow: [{use: platform}, {use: localhost-services}, {host: a.test}]\n  quiet: {deny: [{use: platform}]}\n";
    let policy = Policy::parse_with("policy.yml", text.as_bytes(), &platform()).unwrap();
    let job = policy.job(None).unwrap();
    assert_eq!(
        shown(&job.allow),
        [
            "preset api.platform.test 443-443:1",
            "preset *.blob.platform.test 443-443:1",
            "preset localhost 3306-3306:0 5432-5432:0 6379-6379:0 11211-11211:0 27017-27017:0",
            "repository a.test 443-443:1",
        ]
    );
    assert_eq!(job.allow[1].location.to_string(), "presets/platform.yml:4");
    assert_eq!(shown(&job.deny), ["preset noise.platform.test"]);
    assert!(!job.deny[0].fail);
    let quiet = policy.job(Some("quiet")).unwrap();
    assert_eq!(shown(&quiet.allow), [""; 0]);
    assert_eq!(shown(&quiet.deny), ["preset noise.platform.test"]);

    let host = host("ceiling: [{use: platform}, {host: a.test}]\nbaseline: [{use: platform}]\n");
    let under = quiet.under(&host).unwrap();
    assert_eq!(
        shown(&under.allow),
        [
            "baseline api.platform.test 443-443:1",
            "baseline *.blob.platform.test 443-443:1"
        ]
    );
    let NameVerdict::Denied(noise) = under.name_verdict(&name("noise.platform.test")) else {
        panic!("the preset's noise is missing")
    };
    assert!(!noise.fail && noise.layer == Layer::Ceiling);
    assert_eq!(
        job.under(&host).unwrap().clipped[0].to_string(),
        "localhost-services.yml:4 allows localhost, which this host's ceiling does not"
    );
}

#[test]
fn ranges_that_are_too_many_are_shown_in_the_file_that_has_them() {
    let ports = |from: u16| {
        let ports = (0..9).map(|i| (from + 2 * i).to_string());
        ports.collect::<Vec<_>>().join(", ")
    };
    let job = job(&format!(
        "    allow: [{{cidr: 198.51.100.0/24, ports: [{}]}}]\n",
        ports(100)
    ));
    let host = host(&format!(
        "baseline:\n  - {{cidr: 198.51.100.0/24, ports: [{}]}}\n",
        ports(200)
    ));
    let error = job.under(&host).unwrap().prefixes().unwrap_err();
    assert_eq!(error.location().to_string(), "host.yml:3");
    assert!(
        error.to_string().contains("3 |   - {cidr: 198.51"),
        "{error}"
    );
}

#[test]
fn a_rule_that_is_wholly_within_another_keeps_its_place() {
    let job = job(
        "    allow:\n      - host: '*.a.test'\n      - host: x.a.test\n      - host: '*.y.a.test'\n      \
         - {host: z.a.test, ports: [443, 8443], private: true}\n      - {host: v.a.test, ports: [8443]}\n      \
         - {host: w.a.test, expires: 2027-01-01}\n      - cidr: 198.51.100.0/24\n      - cidr: 198.51.100.0/25\n      \
         - host: localhost\n",
    );
    let under = |ceiling: &str| {
        let rules = job.under(&host(ceiling)).unwrap().allow;
        let places = rules
            .iter()
            .map(|rule| format!("{} {}", rule.location.line, rule.target));
        places.collect::<Vec<_>>()
    };
    let narrowed = job.narrowed_by(&job).unwrap();
    assert_eq!(narrowed.clipped, []);
    let other: Vec<&Rule> = narrowed
        .allow
        .iter()
        .filter(|rule| !job.allow.contains(rule))
        .collect();
    // The wider rule allows another port, or for longer.
    assert!(
        other.iter().all(|rule| rule.location.line == 5),
        "{other:?}"
    );
    assert_eq!(
        under(
            "ceiling: [{host: x.a.test}, {host: q.y.a.test}, {cidr: 198.51.100.7/32}, {cidr: 127.0.0.1/32}]\n"
        ),
        [
            "6 x.a.test",
            "7 q.y.a.test",
            "12 198.51.100.7/32",
            "13 127.0.0.1/32"
        ]
    );
}

#[test]
fn a_rule_that_ends_takes_nothing_from_a_wider_one_that_does_not() {
    let job = job(
        "    allow: [{host: '*.a.test'}, {host: x.a.test, expires: 2027-01-01}, {host: y.a.test, private: true, expires: 2027-01-01}]\n",
    );
    let host = host("ceiling: [{host: x.a.test}, {host: y.a.test, private: true}]\n");
    let later = job.under(&host).unwrap().retire(date("2027-01-02"));
    assert_eq!(
        shown(&later.allow),
        [
            "repository x.a.test 443-443:1",
            "repository y.a.test 443-443:1"
        ]
    );
    assert!(
        later
            .allow
            .iter()
            .all(|rule| !rule.private && rule.location.column == 14)
    );
}

#[test]
fn rules_that_multiply_are_refused_and_many_rules_are_not() {
    let list = |count: usize, rule: &dyn Fn(usize) -> String| -> String {
        (0..count)
            .map(|i| format!("      - {}\n", rule(i)))
            .collect()
    };
    let same = |count| list(count, &|_| "host: '*.a.test'".to_owned());
    let many = job(&format!("    allow:\n{}", same(1000)));
    let error = many.narrowed_by(&many).unwrap_err();
    assert_eq!(error.location().to_string(), "policy.yml:70");
    assert!(
        error.message().contains("overlap in more than 65536 ways"),
        "{error}"
    );
    let nets = job(&format!(
        "    allow:\n{}",
        list(1000, &|_| "cidr: 198.51.100.0/24".to_owned())
    ));
    assert!(nets.narrowed_by(&nets).is_err());

    let mixed = |i: usize| match i % 3 {
        0 => format!("host: n{i}.a.test"),
        1 => format!("host: '*.n{i}.a.test'"),
        _ => format!("cidr: 10.{}.{}.0/24", i >> 8, i & 255),
    };
    let many = job(&format!("    allow:\n{}", list(20_000, &mixed)));
    let narrowed = many.narrowed_by(&many).unwrap();
    assert_eq!(narrowed.allow, many.allow);
    assert_eq!(narrowed.clipped, []);
    let wide = job("    allow: [{host: '*.a.test'}, {cidr: 10.0.0.0/8}]\n");
    for narrowed in [many.narrowed_by(&wide), wide.narrowed_by(&many)] {
        assert_eq!(narrowed.unwrap().allow.len(), many.allow.len());
    }
}

#[test]
fn mistakes_in_the_files_of_a_host_are_shown_with_their_place() {
    let policy = |text: &str| {
        let policy = HostPolicy::parse("host.yml", text.as_bytes(), &platform());
        policy.unwrap_err().to_string()
    };
    assert_eq!(
        policy("version: 1\njobs: {}\n"),
        "host.yml:2:1: unknown key `jobs` at the top of a host's policy\n   |\n 2 | jobs: {}\n   | ^\n   \
         = hint: `jobs` stands at the top of a repository's policy",
    );
    assert_eq!(
        policy("version: 1\nceiling:\n  - {host: a.test, fail: false}\n"),
        "host.yml:3:20: unknown key `fail` in an `allow` rule\n   |\n 3 |   - {host: a.test, fail: false}\n   |                    ^\n   \
         = hint: `fail` stands in a `deny` rule",
    );
    assert_eq!(
        policy("ceiling: []\n"),
        "host.yml:1:1: the key `version` is missing\n   |\n 1 | ceiling: []\n   | ^\n   = hint: begin the file with `version: 1`",
    );
    assert!(policy("").starts_with("host.yml:1:1: the policy is empty\n"));
    assert!(
        policy("version: 1\nbaseline: [{use: platfrom}]\n").contains("did you mean `platform`?")
    );

    let mut presets = Presets::built_in();
    let mut preset = |name: &str, text: &str| {
        let added = presets.insert(name, "presets/p.yml", text.as_bytes());
        added.unwrap_err().to_string()
    };
    assert_eq!(
        preset("p", "version: 1\nallow:\n  - use: localhost-services\n"),
        "presets/p.yml:3:10: a preset cannot use another one\n   |\n 3 |   - use: localhost-services\n   |          ^\n   = hint: write the rules out",
    );
    assert!(preset("p", "version: 1\nallow: []\n").contains("the preset has no rules"));
    assert!(
        preset("../p", "version: 1\nallow: [{host: a.test}]\n").contains("no name for a preset")
    );
    assert_eq!(
        presets.names().collect::<Vec<_>>(),
        ["github-actions", "localhost-services"]
    );
}

const TARGETS: [&str; 18] = [
    "host: x.test",
    "host: a.x.test",
    "host: b.x.test",
    "host: c.a.x.test",
    "host: '*.x.test'",
    "host: '*.a.x.test'",
    "host: '*.c.a.x.test'",
    "host: localhost",
    "cidr: 198.51.100.0/24",
    "cidr: 198.51.100.0/28",
    "cidr: 198.51.100.7/32",
    "cidr: 127.0.0.0/8",
    "cidr: 0.0.0.0/0",
    "cidr: 2001:db8::/64",
    "cidr: 2001:db8::7/128",
    "cidr: '::/1'",
    "cidr: 169.254.0.0/16",
    "cidr: 169.254.169.254/32",
];
const PORTS: [&str; 7] = [
    "[443]",
    "[80]",
    "[22, 443, 8000-8010]",
    "[1-443]",
    "[1-65535]",
    "[100-200/udp]",
    "[80, 123/udp]",
];
const CHECKS: [&str; 5] = [
    "",
    ", tls: off",
    ", http: off",
    ", tls: off, http: off",
    ", tls: verify, http: verify",
];
const NAMES: [&str; 5] = ["x.test", "a.x.test", "b.x.test", "c.a.x.test", "other.test"];
/// The last one is in no network.
const ADDRS: [&str; 11] = [
    "198.51.100.7",
    "198.51.100.8",
    "198.51.100.200",
    "192.0.2.1",
    "127.0.0.1",
    "::1",
    "2001:db8::7",
    "2001:db8::8",
    "169.254.169.254",
    "169.254.169.253",
    "fd00:db8::1",
];
const FLOWS: [(u8, u16); 10] = [
    (proto::TCP, 22),
    (proto::TCP, 53),
    (proto::TCP, 79),
    (proto::TCP, 80),
    (proto::TCP, 443),
    (proto::TCP, 444),
    (proto::TCP, 8005),
    (proto::UDP, 123),
    (proto::UDP, 200),
    (proto::UDP, 443),
];

fn any_allow() -> impl Strategy<Value = String> {
    let rule = (
        prop::sample::select(TARGETS.to_vec()),
        prop::sample::select(PORTS.to_vec()),
        prop::sample::select(CHECKS.to_vec()),
        any::<bool>(),
        prop::sample::select(vec!["", ", expires: 2027-01-01"]),
    );
    let rule = rule.prop_map(|(target, ports, checks, private, expires)| {
        let is_host = target.starts_with("host") && !target.ends_with("localhost");
        let options = if is_host {
            format!("{checks}, private: {private}")
        } else {
            String::new()
        };
        format!("{{{target}, ports: {ports}{options}{expires}}}")
    });
    prop::collection::vec(rule, 0..7).prop_map(|rules| format!("[{}]", rules.join(", ")))
}

fn any_deny() -> impl Strategy<Value = String> {
    let ports = prop::sample::select(PORTS.to_vec());
    let rule = (
        prop::sample::select(TARGETS.to_vec()),
        prop::option::of(ports),
        any::<bool>(),
    );
    let rule = rule.prop_map(|(target, ports, fail)| {
        let ports = ports.map_or_else(String::new, |ports| format!(", ports: {ports}"));
        format!("{{{target}{ports}, fail: {fail}}}")
    });
    prop::collection::vec(rule, 0..3).prop_map(|rules| format!("[{}]", rules.join(", ")))
}

fn rules(allow: &str, deny: &str) -> Job {
    job(&format!("    allow: {allow}\n    deny: {deny}\n"))
}

/// Whether a connection is let through that begins with neither, with TLS or with HTTP.
fn passes(job: &Job, addr: IpAddr, names: &[Name], (proto, port): (u8, u16)) -> [bool; 3] {
    let ranges = job.grants(addr, names).unwrap();
    let range = ranges.iter().find(|range| range.contains(proto, port));
    [Checks::NONE, Checks::TLS, Checks::HTTP]
        .map(|begins| range.is_some_and(|range| range.checks.is_none() || range.checks.has(begins)))
}

/// As [`passes`], by those `allow` rules for a name alone that are as `keep` says.
fn passes_by(
    job: &Job,
    name: &Name,
    (proto, port): (u8, u16),
    keep: fn(&Rule) -> bool,
) -> [bool; 3] {
    let rules = job.allow.iter().filter(|rule| {
        matches!(&rule.target, Target::Host(host) if host.matches(name)) && keep(rule)
    });
    let ranges = rules.flat_map(|rule| &rule.ports);
    let checks = ranges
        .filter(|range| range.contains(proto, port))
        .map(|range| range.checks)
        .reduce(Checks::or);
    [Checks::NONE, Checks::TLS, Checks::HTTP]
        .map(|begins| checks.is_some_and(|checks| checks.is_none() || checks.has(begins)))
}

fn is_denied(job: &Job, addr: IpAddr, names: &[Name], (proto, port): (u8, u16)) -> bool {
    let rule = job.explain_addr(addr, names, proto, port);
    matches!(rule, AddrRule::Denied(_)) || names.iter().any(|name| is_name_denied(job, name))
}

fn is_name_denied(job: &Job, name: &Name) -> bool {
    matches!(job.name_verdict(name), NameVerdict::Denied(_))
}

/// Every address by itself, and every name by itself: at an address of which no rule speaks.
fn keys() -> impl Iterator<Item = (IpAddr, Vec<Name>)> {
    let addrs = ADDRS.iter().map(|addr| (ip(addr), Vec::new()));
    let names = NAMES.iter().map(|text| (ip(ADDRS[10]), vec![name(text)]));
    addrs.chain(names)
}

/// Whether the rules by which the resolver goes for `name` let it lead to private addresses.
fn is_private(job: &Job, name: &Name) -> bool {
    match job.name_verdict(name) {
        NameVerdict::Allowed(rules) => rules.iter().any(|rule| rule.private),
        _ => false,
    }
}

/// That all answers of a job say the same.
fn is_consistent(job: &Job) -> Result<(), TestCaseError> {
    let prefixes = job.prefixes().unwrap();
    for (addr, names) in keys() {
        if names.is_empty() {
            let ranges = lookup(&prefixes, addr);
            prop_assert_eq!(&ranges, &job.grants(addr, &[]).unwrap(), "{}", addr);
        }
        for flow in FLOWS {
            let passes = passes(job, addr, &names, flow).contains(&true);
            let explained = job.explain_addr(addr, &names, flow.0, flow.1);
            let allowed = matches!(explained, AddrRule::Allowed(_));
            prop_assert_eq!(passes, allowed, "{} {:?}: {:?}", addr, flow, explained);
        }
    }
    let patterns = job.names().unwrap();
    for name in NAMES.map(name) {
        let found = patterns
            .iter()
            .filter(|(pattern, _)| pattern.matches(&name))
            .max_by_key(|(pattern, _)| (!pattern.is_wildcard(), pattern.base().as_str().len()));
        for (_, port) in FLOWS {
            let holds = found.is_some_and(|(_, ranges)| {
                ranges.iter().any(|range| range.contains(proto::TCP, port))
            });
            let explained = job.explain_name(&name, port);
            let allowed = matches!(explained, AddrRule::Allowed(_));
            prop_assert_eq!(holds, allowed, "{} {}: {:?}", name, port, explained);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn under_a_host_a_job_has_what_both_allow_and_the_baseline_less_what_either_denies(
        ours in (any_allow(), any_deny()), ceiling in any_allow(), baseline in any_allow(), deny in any_deny(),
        crowd in prop::collection::vec(prop::sample::select(NAMES.to_vec()), 0..3),
    ) {
        let repository = rules(&ours.0, &ours.1);
        let most = rules(&ceiling, "");
        let least = rules(&baseline, "");
        let none = rules("", &deny);
        let under = repository
            .under(&host(&format!("ceiling: {ceiling}\nbaseline: {baseline}\ndeny: {deny}\n")))
            .unwrap();
        is_consistent(&under)?;
        let expected = |addr, names: &[Name], flow| {
            let [a, b, c] = [&repository, &most, &least].map(|job| passes(job, addr, names, flow));
            let denied = [&repository, &none].iter().any(|job| is_denied(job, addr, names, flow));
            // The baseline does without the repository, but for what that denies.
            [0, 1, 2].map(|i| !denied && (a[i] && b[i] || c[i]))
        };
        for (addr, names) in keys() {
            for flow in FLOWS {
                let found = passes(&under, addr, &names, flow);
                prop_assert_eq!(found, expected(addr, &names, flow), "{} {:?} {:?}", addr, names, flow);
                let explained = under.explain_addr(addr, &names, flow.0, flow.1);
                if matches!(explained, AddrRule::Clipped(_)) {
                    prop_assert!(!is_denied(&under, addr, &names, flow), "{:?}", explained);
                }
                // Who would have allowed it is told who did not.
                if found == [false; 3] && passes(&repository, addr, &names, flow) != [false; 3] {
                    let clipped = matches!(explained, AddrRule::Clipped(_));
                    prop_assert!(clipped || is_denied(&none, addr, &names, flow), "{:?}", explained);
                }
            }
        }
        // Names that lead to one of the networks: nothing more, at least.
        let mut crowd: Vec<Name> = crowd.into_iter().map(name).collect();
        crowd.retain(|name| ![&repository, &none].iter().any(|job| is_name_denied(job, name)));
        for addr in ADDRS.map(ip) {
            for flow in FLOWS {
                let found = passes(&under, addr, &crowd, flow);
                let most = expected(addr, &crowd, flow);
                prop_assert!((0..3).all(|i| !found[i] || most[i]), "{} {:?}", addr, flow);
            }
        }
        for name in NAMES.map(name) {
            let [a, b, c, all] = [&repository, &most, &least, &under].map(|job| is_private(job, &name));
            prop_assert!(!all || a && b || c, "{}", name);
            let verdicts = [&repository, &most, &least].map(|job| matches!(job.name_verdict(&name), NameVerdict::Allowed(_)));
            match under.name_verdict(&name) {
                NameVerdict::Allowed(_) => prop_assert!(verdicts[0] && verdicts[1] || verdicts[2]),
                NameVerdict::Denied(rule) => {
                    prop_assert_eq!(is_name_denied(&none, &name), rule.layer == Layer::HostDeny);
                }
                NameVerdict::Unknown => {}
            }
        }
        if under.clipped.is_empty() {
            let no_ceiling = host(&format!("baseline: {baseline}\ndeny: {deny}\n"));
            let free = repository.under(&no_ceiling).unwrap();
            for (addr, names) in keys() {
                prop_assert_eq!(under.grants(addr, &names), free.grants(addr, &names), "{}", addr);
            }
        }
    }

    #[test]
    fn a_change_has_what_both_versions_allow(
        old in (any_allow(), any_deny()), new in (any_allow(), any_deny()),
    ) {
        let (old, new) = (rules(&old.0, &old.1), rules(&new.0, &new.1));
        let narrowed = old.narrowed_by(&new).unwrap();
        is_consistent(&narrowed)?;
        for (addr, names) in keys() {
            for flow in FLOWS {
                let [a, b] = [&old, &new].map(|job| passes(job, addr, &names, flow));
                let both = [0, 1, 2].map(|i| a[i] && b[i]);
                prop_assert_eq!(passes(&narrowed, addr, &names, flow), both, "{} {:?} {:?}", addr, names, flow);
                // What is refused is excused only by the version that has been reviewed.
                if let AddrRule::Denied(rule) = narrowed.explain_addr(addr, &names, flow.0, flow.1) {
                    prop_assert!(rule.fail || rule.layer == Layer::Repository);
                }
            }
        }
        let keeps: [fn(&Rule) -> bool; 3] = [
            |rule| rule.private,
            |rule| rule.expires.is_none(),
            |rule| rule.private && rule.expires.is_none(),
        ];
        for name in NAMES.map(name) {
            for (flow, keep) in FLOWS.iter().flat_map(|flow| keeps.map(|keep| (*flow, keep))) {
                let [a, b, common] = [&old, &new, &narrowed].map(|job| passes_by(job, &name, flow, keep));
                prop_assert_eq!(common, [0, 1, 2].map(|i| a[i] && b[i]), "{} {:?}", name, flow);
            }
        }
        let same = old.narrowed_by(&old).unwrap();
        prop_assert_eq!(&same.clipped, &[], "of itself, something is left out");
        for (addr, names) in keys() {
            prop_assert_eq!(same.grants(addr, &names), old.grants(addr, &names), "{}", addr);
        }
        for name in NAMES.map(name) {
            prop_assert_eq!(is_private(&same, &name), is_private(&old, &name), "{}", name);
        }
    }
}
