//! Policy files that were damaged, and what those that are still accepted allow.

use std::{
    fs,
    net::IpAddr,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use jobfence_abi::{Addr, DNS_PORT, MAX_RANGES, PortRange, proto};
use jobfence_policy::{AddrRule, Job, Name, NameVerdict, Policy, Target};
use proptest::{prelude::*, sample::Index};

/// How long the parser may take for a file of a few kilobytes, unoptimised, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(5);

const SEEDS: [&str; 3] = [
    "version: 1
mode: enforce
on_violation: fail
limits: {names: 10, upload: 500MB}
jobs:
  default:
    allow:
      - use: localhost-services
      - host: git.example.com # a comment
      - host: \"*.cdn.example.com\"
        ports: [443, 8000-8010, 123/udp]
        reason: 'mirrors'
        owner: team
        private: true
        expires: 2027-03-31
      - cidr: 198.51.100.0/24
        ports: [80]
      - {cidr: 2001:db8::/32, ports: [22]}
      - cidr: 169.254.169.254/32
      - host: localhost
        ports: [5432]
    deny:
      - host: bad.cdn.example.com
        fail: false
      - cidr: 198.51.100.7/32
      - host: \"*.x.cdn.example.com\"
        ports: [8005]
  release:
    extends: default
    limits: {events: 500, upload: none}
    allow: [{host: upload.example.com}, {host: b\u{fc}cher.example}]
",
    "version: 1\r\nmode: audit\r\njobs:\r\n  default: {allow: [{host: a.example.com, ports: [1-65535]}]}\r\n",
    "\u{feff}{\"version\": 1, \"jobs\": {\"default\": {\"allow\": [{\"cidr\": \"0.0.0.0/0\", \"ports\": [\"1-65535/tcp\"]}, {\"cidr\": \"::/0\"}], \"deny\": []}}}",
];

/// What YAML and the policy language are made of.
const WORDS: [&str; 62] = [
    "version: 1\n",
    "jobs:\n",
    "  default:\n",
    "    allow:\n",
    "    deny:\n",
    "      - host: ",
    "      - cidr: ",
    "        ports: ",
    "        private: true\n",
    "        fail: false\n",
    "        expires: 2027-02-29\n",
    "      - use: localhost-services\n",
    "    limits:\n",
    "      upload: 16777216TiB\n",
    "      names: 16384\n",
    "    extends: ",
    "default",
    "release",
    "a.example.com\n",
    "*.a.example.com\n",
    "*.",
    "com",
    "localhost\n",
    "198.51.100.0/24\n",
    "::/0\n",
    "::ffff:0:0/96\n",
    "2001:db8::1/128\n",
    "169.254.169.254/32\n",
    "[443, 53]\n",
    "[1-65535]\n",
    "[1-65535/udp]\n",
    "[",
    "]",
    "{",
    "}",
    ", ",
    ": ",
    "- ",
    "? ",
    "&a ",
    "*a ",
    "!!str ",
    "!x ",
    "| \n",
    ">-\n",
    "'",
    "\"",
    "\\u202e",
    "\\",
    "# ",
    "%YAML 1.1\n",
    "---\n",
    "...\n",
    "\n",
    "\t",
    "\r",
    "\u{85}",
    "\u{2028}",
    "\u{202e}",
    "\u{1b}[31m",
    "\0",
    "<<: ",
];

#[derive(Clone, Debug)]
enum Edit {
    Insert(Index, &'static str),
    Byte(Index, u8),
    Remove(Index, u8),
    Repeat(Index, u8, u8),
    Swap(Index, Index),
}

fn some_edit() -> impl Strategy<Value = Edit> {
    let at = any::<Index>;
    prop_oneof![
        4 => (at(), prop::sample::select(WORDS.to_vec())).prop_map(|(at, word)| Edit::Insert(at, word)),
        2 => (at(), any::<u8>()).prop_map(|(at, byte)| Edit::Byte(at, byte)),
        2 => (at(), 1..40_u8).prop_map(|(at, length)| Edit::Remove(at, length)),
        2 => (at(), 1..60_u8, 1..60_u8).prop_map(|(at, length, times)| Edit::Repeat(at, length, times)),
        2 => (at(), at()).prop_map(|(a, b)| Edit::Swap(a, b)),
    ]
}

/// A policy with some edits; by bytes, so that it need not be UTF-8 any more.
fn some_file() -> impl Strategy<Value = Vec<u8>> {
    let seed = prop::sample::select(SEEDS.to_vec());
    let words = prop::collection::vec(prop::sample::select(WORDS.to_vec()), 0..60);
    let start = prop_oneof![
        5 => seed.prop_map(str::to_owned),
        1 => words.prop_map(|words| words.concat()),
    ];
    (start, prop::collection::vec(some_edit(), 0..5)).prop_map(|(start, edits)| {
        let mut text = start.into_bytes();
        for edit in edits {
            let length = text.len();
            let part = |at: Index, more: u8| {
                let from = at.index(length + 1);
                from..length.min(from + usize::from(more))
            };
            match edit {
                Edit::Insert(at, word) => {
                    let at = at.index(length + 1);
                    text.splice(at..at, word.bytes());
                }
                Edit::Byte(at, byte) if length > 0 => text[at.index(length)] = byte,
                Edit::Remove(at, more) => drop(text.drain(part(at, more))),
                Edit::Repeat(at, more, times) => {
                    let part = part(at, more);
                    let repeated = text[part.clone()].repeat(times.into());
                    text.splice(part, repeated);
                }
                Edit::Swap(a, b) if length > 0 => {
                    // Lines, which are what people move about.
                    let mut lines: Vec<&[u8]> =
                        text.split_inclusive(|&byte| byte == b'\n').collect();
                    let (a, b) = (a.index(lines.len()), b.index(lines.len()));
                    lines.swap(a, b);
                    text = lines.concat();
                }
                Edit::Byte(..) | Edit::Swap(..) => {}
            }
        }
        text
    })
}

fn some_addr() -> impl Strategy<Value = IpAddr> {
    let fixed = [
        "198.51.100.7",
        "198.51.100.8",
        "2001:db8::1",
        "169.254.169.254",
        "fd00:ec2::254",
        "::ffff:198.51.100.7",
        "127.0.0.1",
        "::1",
        "0.0.0.0",
        "255.255.255.255",
    ];
    let fixed = fixed.map(|text| text.parse::<IpAddr>().unwrap());
    prop_oneof![
        4 => prop::sample::select(fixed.to_vec()),
        1 => any::<u32>().prop_map(|word| IpAddr::from(word.to_be_bytes())),
        1 => any::<u128>().prop_map(|word| IpAddr::from(word.to_be_bytes())),
    ]
}

/// What the kernel's map would hold for `addr`: of the longest prefix that holds it.
fn lookup(prefixes: &[(IpNet, Vec<PortRange>)], addr: IpAddr) -> Vec<PortRange> {
    let bits = |net: &IpNet| match net {
        IpNet::V4(net) => 96 + net.prefix_len(),
        IpNet::V6(net) => net.prefix_len(),
    };
    // The map keeps IPv4 in the mapped form, inside what IPv6 prefixes hold.
    let mapped = match addr {
        IpAddr::V4(v4) => IpAddr::from(v4.to_ipv6_mapped()),
        IpAddr::V6(_) => addr,
    };
    prefixes
        .iter()
        .filter(|(net, _)| net.contains(&addr.to_canonical()) || net.contains(&mapped))
        .max_by_key(|(net, _)| bits(net))
        .map_or_else(Vec::new, |(_, ranges)| ranges.clone())
}

/// What holds for every policy that is accepted.
fn check(job: &Job, addr: IpAddr, name: &Name) -> Result<(), TestCaseError> {
    for rule in &job.allow {
        prop_assert!(!rule.ports.is_empty(), "an allow rule without ports");
    }
    for rule in job.allow.iter().chain(&job.deny) {
        prop_assert!(rule.location.line > 0 && rule.location.column > 0);
        if let Target::Host(pattern) = &rule.target {
            prop_assert_eq!(
                pattern.chosen(name).is_some(),
                pattern.to_string().starts_with("*.") && pattern.matches(name)
            );
        }
    }
    match job.name_verdict(name) {
        NameVerdict::Allowed(rules) => {
            prop_assert!(!rules.is_empty());
            for rule in rules {
                prop_assert!(matches!(&rule.target, Target::Host(host) if host.matches(name)));
            }
        }
        NameVerdict::Denied(rule) => prop_assert!(rule.ports.is_empty()),
        NameVerdict::Unknown => {}
    }
    for names in [&[][..], std::slice::from_ref(name)] {
        let Ok(ranges) = job.grants(addr, names) else {
            continue;
        };
        prop_assert!(ranges.len() <= MAX_RANGES);
        let ports = [0, 1, 22, 52, 53, 54, 80, 123, 443, 5432, 8005, 8010, 65_535];
        for (proto, port) in [proto::TCP, proto::UDP, proto::ICMP]
            .into_iter()
            .flat_map(|proto| ports.map(|port| (proto, port)))
        {
            let granted = ranges.iter().any(|range| range.contains(proto, port));
            prop_assert!(!granted || port != DNS_PORT, "DNS is granted");
            let explained = job.explain_addr(addr, names, proto, port);
            prop_assert_eq!(
                granted,
                matches!(explained, AddrRule::Allowed(_)),
                "{} {}/{}: {:?}",
                addr,
                port,
                proto,
                explained
            );
            let named = job.allow.iter().any(|rule| {
                let speaks = match &rule.target {
                    Target::Host(host) => names.iter().any(|name| host.matches(name)),
                    Target::Cidr(net) => net.contains(&addr.to_canonical()),
                    Target::Localhost => Addr::from(addr).is_loopback(),
                };
                speaks && rule.ports.iter().any(|range| range.contains(proto, port))
            });
            prop_assert!(
                !granted || named,
                "{} {}/{}: no rule allows it",
                addr,
                port,
                proto
            );
        }
    }
    if let Ok(prefixes) = job.prefixes() {
        prop_assert_eq!(
            Ok(lookup(&prefixes, addr)),
            job.grants(addr, &[]),
            "{}",
            addr
        );
    }
    Ok(())
}

/// What holds for every two policies, here twice the same.
fn check_intersection(job: &Job, addr: IpAddr, name: &Name) -> Result<(), TestCaseError> {
    let Ok(narrowed) = job.narrowed_by(job) else {
        return Ok(());
    };
    prop_assert!(narrowed.clipped.is_empty(), "{:?}", narrowed.clipped);
    prop_assert_eq!(narrowed.limits, job.limits);
    for names in [&[][..], std::slice::from_ref(name)] {
        prop_assert_eq!(narrowed.grants(addr, names), job.grants(addr, names));
    }
    Ok(())
}

/// The most memory that this process has had at once, in bytes.
fn peak() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.unwrap().trim().strip_suffix(" kB").unwrap();
    kibibytes.parse::<usize>().unwrap() << 10
}

proptest! {
    #![proptest_config(crate::config())]

    #[test]
    fn a_damaged_policy_is_refused_with_a_place_in_it_or_means_what_it_says(
        bytes in some_file(), addr in some_addr(),
        name in "(x\\.|y\\.)?(bad|a|x)\\.(cdn\\.)?example\\.com|git\\.example\\.com",
    ) {
        let name = Name::parse(&name).unwrap();
        let start = Instant::now();
        let parsed = Policy::parse("p.yml", &bytes);
        let shown = parsed.as_ref().err().map(ToString::to_string);
        prop_assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
        match parsed {
            Err(error) => {
                let place = error.location();
                let text = String::from_utf8_lossy(&bytes);
                // As editors count: YAML's line ends, and the end of the file.
                let lines: Vec<&str> = text.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).collect();
                prop_assert!((1..=lines.len() + 1).contains(&place.line), "line {} of {}", place.line, lines.len());
                prop_assert!((1..=text.chars().count() + 1).contains(&place.column), "column {}", place.column);
                let shown = shown.unwrap_or_default();
                let hidden = |c: char| c != '\n' && jobfence_agent::job::process::is_hidden(c);
                prop_assert!(!shown.contains(hidden), "{:?}", shown);
                prop_assert!(shown.len() < 4096, "a message of {} bytes", shown.len());
            }
            Ok(policy) => {
                for job in policy.job_names() {
                    let job = policy.job(Some(job)).unwrap();
                    check(&job, addr, &name)?;
                    check_intersection(&job, addr, &name)?;
                }
            }
        }
    }
}

#[test]
fn the_policies_that_are_damaged_are_good_ones() {
    for seed in SEEDS {
        let policy = Policy::parse("p.yml", seed.as_bytes());
        policy.unwrap_or_else(|error| panic!("{error}"));
    }
}

/// The worst that is known, at the size at which files are no longer read.
#[test]
fn large_policies_take_bounded_time_and_memory() {
    let fill = |head: &str, unit: &str| {
        let mut text = head.to_owned();
        while text.len() + unit.len() < jobfence_policy::MAX_BYTES {
            text += unit;
        }
        text
    };
    let rules = "version: 1\njobs:\n  default:\n    allow:\n";
    for (what, text) in [
        ("hosts", fill(rules, "      - host: a.example.com\n")),
        ("networks", fill(rules, "      - cidr: 198.51.100.0/24\n")),
        ("list brackets", fill("", "[")),
        ("map brackets", fill("version: 1\njobs: ", "{a: ")),
        ("lists", fill("", "- ")),
        ("keys", fill("", "a: ")),
        ("question marks", fill("", "? ")),
        ("anchors", fill("version: 1\njobs:\n", " &a [*a]\n")),
        ("quotes", fill("version: 1\njobs: ", "\"\\u0041")),
        ("one line", fill("version: 1\n# ", "x")),
        ("documents", fill("", "---\n")),
        ("comments", fill("", "#\n")),
        ("escapes", fill("\"", "\\n")),
        ("no UTF-8", fill("", "\u{7f}\u{80}")),
    ] {
        let start = Instant::now();
        let message = Policy::parse("p.yml", text.as_bytes())
            .err()
            .map(|error| error.to_string());
        let took = start.elapsed();
        assert!(took < Duration::from_secs(30), "{what}: {took:?}");
        assert!(message.is_none_or(|message| message.len() < 4096), "{what}");
    }
    assert!(peak() < 1 << 30, "{} MiB at once", peak() >> 20);
}
