//! What a writer sees when a policy is wrong: the whole text, place, caret and hint.

use jobfence_policy::{MAX_BYTES, Policy};

fn error(policy: impl AsRef<[u8]>) -> String {
    match Policy::parse("policy.yml", policy.as_ref()) {
        Ok(_) => panic!(
            "this was accepted:\n{}",
            String::from_utf8_lossy(policy.as_ref())
        ),
        Err(error) => error.to_string(),
    }
}

#[test]
fn every_mistake_is_shown_with_its_place() {
    let mut wrong = String::new();
    for (case, policy, expected) in CASES {
        let shown = error(policy);
        if shown != expected.trim_start_matches('\n') {
            wrong += &format!("@@{case}@@\n{shown}\n\n");
        }
    }
    assert!(wrong.is_empty(), "not as expected:\n{wrong}");
}

#[test]
fn a_tab_in_the_indentation_is_shown_under_the_caret() {
    assert_eq!(
        error("version: 1\njobs:\n\tdefault: {}\n"),
        "policy.yml:3:1: not valid YAML: found character that cannot start any token, while scanning for the next token\n   \
         |\n 3 |  default: {}\n   | ^\n   = hint: indent with spaces",
    );
}

#[test]
fn nothing_of_the_file_reaches_the_terminal_as_a_control_character() {
    for policy in [
        "version: 1\n\0jobs: {a: {}}\n",
        "version: 1\n\u{1b}[2J: {a: {}}\n",
        "version: 1\n\"\\e[2J\u{7f}\": 1\n",
        "version: 1\n\"\\e]0;title\\a\": 1\n",
        "version: 1\n\u{202e}x\u{200b}: 1\n",
        "version: 1\njobs: {default: {allow: [{host: \"a\\r\\u202eb.example.com\"}]}}\n",
        "version: 1\njobs: {default: {extends: \"\\e[1m\"}}\n",
    ] {
        let shown = error(policy);
        let bad = |c: char| (c.is_control() && c != '\n') || ('\u{200b}'..='\u{202e}').contains(&c);
        assert!(!shown.contains(bad), "{shown:?}");
        assert_eq!(
            shown.matches('\n').count() - usize::from(shown.contains("hint")),
            3,
            "{shown:?}"
        );
    }
    let file = Policy::parse("a\u{1b}[2J.yml", b"").unwrap_err();
    assert!(!file.to_string().contains('\u{1b}'));
}

#[test]
fn a_byte_that_is_not_utf8_is_pointed_at() {
    assert_eq!(
        error(b"version: 1\njobs: {\xc3\xa9\xff: {}}\n"),
        "policy.yml:2:9: byte 0xff is not UTF-8\n   |\n 2 | jobs: {\u{e9}\u{fffd}: {}}\n   |         ^\n   \
         = hint: save the file as UTF-8",
    );
    assert!(error("\u{feff}v\0e\0r\0".as_bytes()).starts_with("policy.yml:1:2: not valid YAML"));
    assert!(error(b"\xff\xfev\0e\0r\0").starts_with("policy.yml:1:1: byte 0xff is not UTF-8\n"));
}

#[test]
fn a_byte_order_mark_and_other_line_ends_move_no_place() {
    assert!(Policy::parse("p", "\u{feff}version: 1\njobs: {a: {}}\n".as_bytes()).is_ok());
    assert!(error("\u{feff}vresion: 1\n").starts_with("policy.yml:1:1: unknown key `vresion`"));
    for end in ["\n", "\r\n", "\r"] {
        let policy = ["version: 1", "", "jobs:", "  a: {alow: []}", ""].join(end);
        assert!(
            error(&policy).starts_with("policy.yml:4:7: unknown key `alow`"),
            "{end:?}"
        );
        assert!(error(&policy).contains("4 |   a: {alow: []}\n"), "{end:?}");
    }
}

#[test]
fn a_file_that_is_too_large_is_not_read() {
    let mut policy = b"version: 1\njobs: {a: {}}\n".to_vec();
    policy.resize(MAX_BYTES, b'\n');
    assert!(Policy::parse("p", &policy).is_ok());
    policy.push(b'\n');
    assert_eq!(
        error(&policy),
        "policy.yml:1:1: the policy has 1048577 bytes, at most 1048576 are read\n   \
         = hint: wildcards and networks make long lists short",
    );
}

#[test]
fn what_is_nested_deeply_is_refused_without_deep_recursion() {
    let fakes = ["{\"}\": ", "{'}': ", "{ #}\n", "[ !<tag:]]> "];
    for open in ["[", "{", "- ", "? ", "[{", "{a: ", "a:\n "]
        .into_iter()
        .chain(fakes)
    {
        error(open.repeat(MAX_BYTES / open.len()));
        error(format!("version: 1\njobs: {}", open.repeat(100_000)));
        error(format!("version: 1\n---\n{}", open.repeat(100_000)));
    }
}

#[test]
fn a_line_that_is_too_long_is_cut_around_the_caret() {
    let rules = "{host: a.example.com}, ".repeat(1000);
    let shown = error(format!(
        "version: 1\njobs: {{default: {{allow: [{rules}{{hots: a}}, {rules}]}}}}"
    ));
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[2].len() < 140, "{shown}");
    let caret = lines[3].find('^').unwrap();
    assert!(lines[2][caret..].starts_with("hots: a"), "{shown}");
}

#[test]
fn a_rule_with_more_ranges_than_the_kernel_holds_is_refused() {
    let policy = |ports: Vec<String>| {
        format!(
            "version: 1\njobs: {{a: {{allow: [{{host: a.example.com, ports: [{}]}}]}}}}",
            ports.join(", ")
        )
    };
    let odd = |count: u16| (0..count).map(|i| (1001 + 2 * i).to_string());
    assert!(Policy::parse("p", policy(odd(16).collect()).as_bytes()).is_ok());
    assert!(error(policy(odd(17).collect())).contains("the rule has 17 separate port ranges"));
    let around_dns = odd(15).chain(["50-60".into()]).collect();
    assert!(error(policy(around_dns)).contains("the rule has 17 separate port ranges"));
    let neighbours = (1000..2000).map(|port| port.to_string()).collect();
    assert!(Policy::parse("p", policy(neighbours).as_bytes()).is_ok());
}

#[test]
fn a_job_that_is_not_there_is_named_with_those_that_are() {
    let policy = b"version: 1\njobs:\n  build: {}\n  release: {}\n";
    let policy = Policy::parse("policy.yml", policy).unwrap();
    assert_eq!(
        policy.job(Some("relaese")).unwrap_err().to_string(),
        "policy.yml:2:1: no job `relaese` in this policy, only build, release\n   |\n 2 | jobs:\n   | ^\n   \
         = hint: did you mean `release`?",
    );
    let none = policy.job(None).unwrap_err();
    assert_eq!(
        none.message(),
        "no job `default` in this policy, only build, release"
    );
    assert_eq!(
        none.hint(),
        Some("add `default` under `jobs`, or name one of the others")
    );
    assert_eq!(none.location().to_string(), "policy.yml:2");
}

const CASES: &[(&str, &str, &str)] = &[
    (
        "an empty file",
        r#""#,
        r#"
policy.yml:1:1: the policy is empty
   = hint: the smallest policy is `version: 1` and `jobs: {default: {}}`, which allows nothing"#,
    ),
    (
        "comments only",
        r#"# nothing
"#,
        r#"
policy.yml:1:1: the policy is empty
   |
 1 | # nothing
   | ^
   = hint: the smallest policy is `version: 1` and `jobs: {default: {}}`, which allows nothing"#,
    ),
    (
        "null document",
        r#"---
~
"#,
        r#"
policy.yml:1:1: the policy is empty
   |
 1 | ---
   | ^
   = hint: the smallest policy is `version: 1` and `jobs: {default: {}}`, which allows nothing"#,
    ),
    (
        "text for a policy",
        r#"allow everything
"#,
        r#"
policy.yml:1:1: expected a map of keys such as `version` and `jobs`, found `allow everything`
   |
 1 | allow everything
   | ^"#,
    ),
    (
        "a list for a policy",
        r#"- host: a
"#,
        r#"
policy.yml:1:1: expected a map of keys such as `version` and `jobs`, found a list
   |
 1 | - host: a
   | ^"#,
    ),
    (
        "no version",
        r#"mode: audit
jobs: {default: {}}
"#,
        r#"
policy.yml:1:1: the key `version` is missing
   |
 1 | mode: audit
   | ^
   = hint: begin the file with `version: 1`"#,
    ),
    (
        "another version",
        r#"version: 2
jobs: {default: {}}
"#,
        r#"
policy.yml:1:10: version `2` is not supported
   |
 1 | version: 2
   |          ^
   = hint: this version of jobfence reads `version: 1`"#,
    ),
    (
        "version as text",
        r#"version: "1.0"
jobs: {default: {}}
"#,
        r#"
policy.yml:1:10: version `1.0` is not supported
   |
 1 | version: "1.0"
   |          ^
   = hint: this version of jobfence reads `version: 1`"#,
    ),
    (
        "version null",
        r#"version:
jobs: {default: {}}
"#,
        r#"
policy.yml:1:9: expected the number 1, found nothing
   |
 1 | version:
   |         ^
   = hint: write `version: 1`"#,
    ),
    (
        "no jobs key",
        r#"version: 1
"#,
        r#"
policy.yml:1:1: the key `jobs` is missing
   |
 1 | version: 1
   | ^
   = hint: `jobs: {default: {}}` is a policy that allows nothing"#,
    ),
    (
        "jobs null",
        r#"version: 1
jobs:
"#,
        r#"
policy.yml:2:1: no job is described
   |
 2 | jobs:
   | ^
   = hint: `default` is the job without an entry of its own; `jobs: {default: {}}` allows nothing"#,
    ),
    (
        "jobs empty",
        r#"version: 1
jobs: {}
"#,
        r#"
policy.yml:2:1: no job is described
   |
 2 | jobs: {}
   | ^
   = hint: `default` is the job without an entry of its own; `jobs: {default: {}}` allows nothing"#,
    ),
    (
        "jobs a list",
        r#"version: 1
jobs:
  - default
"#,
        r#"
policy.yml:3:3: expected a map of jobs, found a list
   |
 3 |   - default
   |   ^
   = hint: write each job as a key: `default:`, and what it may reach below"#,
    ),
    (
        "jobs text",
        r#"version: 1
jobs: default
"#,
        r#"
policy.yml:2:7: expected a map of jobs, found `default`
   |
 2 | jobs: default
   |       ^
   = hint: write each job as a key: `default:`, and what it may reach below"#,
    ),
    (
        "mode misspelt",
        r#"version: 1
mode: enforced
jobs: {default: {}}
"#,
        r#"
policy.yml:2:7: expected one of `enforce`, `audit`, found `enforced`
   |
 2 | mode: enforced
   |       ^
   = hint: did you mean `enforce`?"#,
    ),
    (
        "mode unknown",
        r#"version: 1
mode: off
jobs: {default: {}}
"#,
        r#"
policy.yml:2:7: expected one of `enforce`, `audit`, found `off`
   |
 2 | mode: off
   |       ^"#,
    ),
    (
        "on_violation list",
        r#"version: 1
on_violation: [fail]
jobs: {default: {}}
"#,
        r#"
policy.yml:2:15: expected one of `fail`, `kill`, `warn`, found a list
   |
 2 | on_violation: [fail]
   |               ^"#,
    ),
    (
        "unknown top key",
        r#"version: 1
job:
  default: {}
"#,
        r#"
policy.yml:2:1: unknown key `job` at the top of the file
   |
 2 | job:
   | ^
   = hint: did you mean `jobs`?"#,
    ),
    (
        "unknown job key",
        r#"version: 1
jobs:
  default:
    alow: []
"#,
        r#"
policy.yml:4:5: unknown key `alow` in a job
   |
 4 |     alow: []
   |     ^
   = hint: did you mean `allow`?"#,
    ),
    (
        "mode in a job",
        r#"version: 1
jobs:
  default:
    mode: audit
"#,
        r#"
policy.yml:4:5: unknown key `mode` in a job
   |
 4 |     mode: audit
   |     ^
   = hint: `mode` stands at the top of the file"#,
    ),
    (
        "strange key",
        r#"version: 1
network: {}
"#,
        r#"
policy.yml:2:1: unknown key `network` at the top of the file
   |
 2 | network: {}
   | ^
   = hint: keys here are `version`, `mode`, `on_violation`, `limits`, `jobs`"#,
    ),
    (
        "duplicate top key",
        r#"version: 1
mode: audit
mode: enforce
jobs: {default: {}}
"#,
        r#"
policy.yml:3:1: duplicate key `mode`
   |
 3 | mode: enforce
   | ^
   = hint: it is on line 2 already; keep one of the two"#,
    ),
    (
        "duplicate job",
        r#"version: 1
jobs:
  a: {}
  b: {}
  a: {}
"#,
        r#"
policy.yml:5:3: duplicate key `a`
   |
 5 |   a: {}
   |   ^
   = hint: it is on line 3 already; keep one of the two"#,
    ),
    (
        "duplicate rule key",
        r#"version: 1
jobs:
  default:
    allow:
      - host: a.example.com
        host: b.example.com
"#,
        r#"
policy.yml:6:9: duplicate key `host`
   |
 6 |         host: b.example.com
   |         ^
   = hint: it is on line 5 already; keep one of the two"#,
    ),
    (
        "job name with control character",
        r#"version: 1
jobs:
  "a\nb": {}
"#,
        r#"
policy.yml:3:3: the text holds a character that does not show (\u{a})
   |
 3 |   "a\nb": {}
   |   ^
   = hint: write it on one line, in printable characters"#,
    ),
    (
        "rule is text",
        r#"version: 1
jobs:
  default:
    allow:
      - git.example.com
"#,
        r#"
policy.yml:5:9: expected a rule such as `host: git.example.com`, found `git.example.com`
   |
 5 |       - git.example.com
   |         ^
   = hint: write `- host: git.example.com`"#,
    ),
    (
        "rule empty",
        r#"version: 1
jobs:
  default:
    allow:
      - {}
"#,
        r#"
policy.yml:5:9: the rule has none of `host`, `cidr` and `use`
   |
 5 |       - {}
   |         ^
   = hint: say what it is about: `host: git.example.com` or `cidr: 198.51.100.0/24`; or `use` a preset"#,
    ),
    (
        "rule null",
        r#"version: 1
jobs:
  default:
    allow:
      -
"#,
        r#"
policy.yml:5:8: expected a rule such as `host: git.example.com`, found nothing
   |
 5 |       -
   |        ^
   = hint: write a rule as `- host: git.example.com`"#,
    ),
    (
        "rule without target",
        r#"version: 1
jobs:
  default:
    allow:
      - reason: because
        ports: [443]
"#,
        r#"
policy.yml:5:9: the rule has none of `host`, `cidr` and `use`
   |
 5 |       - reason: because
   |         ^
   = hint: say what it is about: `host: git.example.com` or `cidr: 198.51.100.0/24`; or `use` a preset"#,
    ),
    (
        "both",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        cidr: 198.51.100.0/24
"#,
        r#"
policy.yml:6:9: a rule has either `host` or `cidr`, not both
   |
 6 |         cidr: 198.51.100.0/24
   |         ^
   = hint: make two rules of it"#,
    ),
    (
        "allow is a map",
        r#"version: 1
jobs:
  default:
    allow: {host: git.example.com}
"#,
        r#"
policy.yml:4:12: expected a list of rules, found a map
   |
 4 |     allow: {host: git.example.com}
   |            ^
   = hint: write each rule as an item of a list: `- host: git.example.com`"#,
    ),
    (
        "tls of a cidr rule",
        r#"version: 1
jobs:
  default:
    allow:
      - cidr: 198.51.100.0/24
        tls: verify
"#,
        r#"
policy.yml:6:9: `tls: verify` looks for an allowed name, and this rule allows an address whatever the name
   |
 6 |         tls: verify
   |         ^
   = hint: remove it, or allow the host by its name"#,
    ),
    (
        "a word that tls does not have",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        tls: on
"#,
        r#"
policy.yml:6:14: expected one of `verify`, `off`, found `on`
   |
 6 |         tls: on
   |              ^
   = hint: did you mean `verify`?"#,
    ),
    (
        "quic without tls off",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        ports: [443, 443/udp]
"#,
        r#"
policy.yml:6:9: 443/udp is QUIC, in which the server name cannot be verified
   |
 6 |         ports: [443, 443/udp]
   |         ^
   = hint: remove it, clients go on with TCP; or add `tls: off` to a rule of its own for it, which lets every host at the same addresses be reached"#,
    ),
    (
        "a preset that is not there",
        r#"version: 1
jobs:
  default:
    allow:
      - use: localhost-service
"#,
        r#"
policy.yml:5:14: no preset `localhost-service` on this host
   |
 5 |       - use: localhost-service
   |              ^
   = hint: did you mean `localhost-services`?"#,
    ),
    (
        "a preset that is not there and like none",
        r#"version: 1
jobs:
  default:
    allow:
      - use: presets
"#,
        r#"
policy.yml:5:14: no preset `presets` on this host
   |
 5 |       - use: presets
   |              ^
   = hint: presets here are github-actions, localhost-services"#,
    ),
    (
        "a preset with other keys",
        r#"version: 1
jobs:
  default:
    allow:
      - use: localhost-services
        ports: [5432]
"#,
        r#"
policy.yml:6:9: `use` takes a preset as it is
   |
 6 |         ports: [5432]
   |         ^
   = hint: `use` is the only key of its item; write a rule of your own beside it"#,
    ),
    (
        "a host and a preset",
        r#"version: 1
jobs:
  default:
    allow:
      - host: a.example.com
        use: localhost-services
"#,
        r#"
policy.yml:5:9: `use` takes a preset as it is
   |
 5 |       - host: a.example.com
   |         ^
   = hint: `use` is the only key of its item; write a rule of your own beside it"#,
    ),
    (
        "a preset in the wrong list",
        r#"version: 1
jobs: {default: {deny: [{use: localhost-services}]}}
"#,
        r#"
policy.yml:2:31: the preset `localhost-services` denies nothing
   |
 2 | jobs: {default: {deny: [{use: localhost-services}]}}
   |                               ^
   = hint: use it under `allow`"#,
    ),
    (
        "a list of presets",
        r#"version: 1
jobs:
  default:
    allow:
      - use: [localhost-services]
"#,
        r#"
policy.yml:5:14: expected the name of a preset, found a list
   |
 5 |       - use: [localhost-services]
   |              ^
   = hint: write an item with `use` for each"#,
    ),
    (
        "a date in another form",
        r#"version: 1
jobs:
  default:
    allow:
      - host: a.example.com
        expires: 31.3.2027
"#,
        r#"
policy.yml:6:18: `31.3.2027` is not a date
   |
 6 |         expires: 31.3.2027
   |                  ^
   = hint: write year, month and day of the calendar as in 2027-03-31"#,
    ),
    (
        "a day that is not in the calendar",
        r#"version: 1
jobs:
  default:
    allow:
      - host: a.example.com
        expires: 2027-02-29
"#,
        r#"
policy.yml:6:18: `2027-02-29` is not a date
   |
 6 |         expires: 2027-02-29
   |                  ^
   = hint: write year, month and day of the calendar as in 2027-03-31"#,
    ),
    (
        "a year for a date",
        r#"version: 1
jobs:
  default:
    allow:
      - host: a.example.com
        expires: 2027
"#,
        r#"
policy.yml:6:18: `2027` is not a date
   |
 6 |         expires: 2027
   |                  ^
   = hint: write year, month and day of the calendar as in 2027-03-31"#,
    ),
    (
        "expires in deny",
        r#"version: 1
jobs: {default: {deny: [{host: a.example.com, expires: 2027-01-01}]}}
"#,
        r#"
policy.yml:2:47: unknown key `expires` in a `deny` rule
   |
 2 | jobs: {default: {deny: [{host: a.example.com, expires: 2027-01-01}]}}
   |                                               ^
   = hint: `expires` stands in an `allow` rule"#,
    ),
    (
        "an unknown limit",
        r#"version: 1
limits:
  name: 10
jobs: {default: {}}
"#,
        r#"
policy.yml:3:3: unknown key `name` in `limits`
   |
 3 |   name: 10
   |   ^
   = hint: did you mean `names`?"#,
    ),
    (
        "a limit outside limits",
        r#"version: 1
jobs:
  default:
    upload: 1GB
"#,
        r#"
policy.yml:4:5: unknown key `upload` in a job
   |
 4 |     upload: 1GB
   |     ^
   = hint: `upload` stands in `limits`"#,
    ),
    (
        "limits that are no map",
        r#"version: 1
limits: 10
jobs: {default: {}}
"#,
        r#"
policy.yml:2:9: expected a map of limits, found `10`
   |
 2 | limits: 10
   |         ^"#,
    ),
    (
        "a limit that is no number",
        r#"version: 1
limits: {events: many}
jobs: {default: {}}
"#,
        r#"
policy.yml:2:18: `many` is not a whole number
   |
 2 | limits: {events: many}
   |                  ^
   = hint: it is a number from 100 to 1000000"#,
    ),
    (
        "a limit below zero",
        r#"version: 1
limits: {names: -1}
jobs: {default: {}}
"#,
        r#"
policy.yml:2:17: `-1` is not a whole number
   |
 2 | limits: {names: -1}
   |                 ^
   = hint: it is a number from 0 to 16384"#,
    ),
    (
        "a limit out of range",
        r#"version: 1
limits: {addresses: 65537}
jobs: {default: {}}
"#,
        r#"
policy.yml:2:21: `65537` is out of range
   |
 2 | limits: {addresses: 65537}
   |                     ^
   = hint: it is a number from 1 to 65536"#,
    ),
    (
        "too few events",
        r#"version: 1
limits: {events: 99}
jobs: {default: {}}
"#,
        r#"
policy.yml:2:18: `99` is out of range
   |
 2 | limits: {events: 99}
   |                  ^
   = hint: it is a number from 100 to 1000000"#,
    ),
    (
        "a limit without a value",
        r#"version: 1
limits: {names: }
jobs: {default: {}}
"#,
        r#"
policy.yml:2:17: expected a number, found nothing
   |
 2 | limits: {names: }
   |                 ^
   = hint: write its value, or remove the key"#,
    ),
    (
        "a size with an unknown unit",
        r#"version: 1
limits: {upload: 5mb}
jobs: {default: {}}
"#,
        r#"
policy.yml:2:18: `5mb` is not a size
   |
 2 | limits: {upload: 5mb}
   |                  ^
   = hint: did you mean 5MB?"#,
    ),
    (
        "a size that is too large",
        r#"version: 1
limits: {upload: 9000000TiB}
jobs: {default: {}}
"#,
        r#"
policy.yml:2:18: `9000000TiB` is out of range
   |
 2 | limits: {upload: 9000000TiB}
   |                  ^
   = hint: sizes are bytes, or written as 500MB or 2GiB; `none` is no limit"#,
    ),
    (
        "no upload at all",
        r#"version: 1
limits: {upload: 0}
jobs: {default: {}}
"#,
        r#"
policy.yml:2:18: `0` is out of range
   |
 2 | limits: {upload: 0}
   |                  ^
   = hint: it is at least 1; `none` is no limit"#,
    ),
    (
        "the same limit twice",
        r#"version: 1
limits: {names: 1, names: 2}
jobs: {default: {}}
"#,
        r#"
policy.yml:2:20: duplicate key `names`
   |
 2 | limits: {names: 1, names: 2}
   |                    ^
   = hint: it is on line 2 already; keep one of the two"#,
    ),
    (
        "later key in deny",
        r#"version: 1
jobs: {default: {deny: [{host: a.example.com, log: all}]}}
"#,
        r#"
policy.yml:2:47: `log` is not supported by this version of jobfence
   |
 2 | jobs: {default: {deny: [{host: a.example.com, log: all}]}}
   |                                               ^
   = hint: remove it: a key is never ignored, since the fence would not do what the file says"#,
    ),
    (
        "misspelt rule key",
        r#"version: 1
jobs:
  default:
    allow:
      - hots: git.example.com
"#,
        r#"
policy.yml:5:9: unknown key `hots` in an `allow` rule
   |
 5 |       - hots: git.example.com
   |         ^
   = hint: did you mean `host`?"#,
    ),
    (
        "fail in allow",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        fail: false
"#,
        r#"
policy.yml:6:9: unknown key `fail` in an `allow` rule
   |
 6 |         fail: false
   |         ^
   = hint: `fail` stands in a `deny` rule"#,
    ),
    (
        "private in deny",
        r#"version: 1
jobs: {default: {deny: [{host: a.example.com, private: true}]}}
"#,
        r#"
policy.yml:2:47: unknown key `private` in a `deny` rule
   |
 2 | jobs: {default: {deny: [{host: a.example.com, private: true}]}}
   |                                               ^
   = hint: `private` stands in an `allow` rule"#,
    ),
    (
        "merge key",
        r#"version: 1
jobs:
  default:
    allow:
      - <<: {host: a.example.com}
"#,
        r#"
policy.yml:5:9: unknown key `<<` in an `allow` rule
   |
 5 |       - <<: {host: a.example.com}
   |         ^
   = hint: `extends` lets one job have the rules of another"#,
    ),
    (
        "private with cidr",
        r#"version: 1
jobs:
  default:
    allow:
      - cidr: 198.51.100.0/24
        private: true
"#,
        r#"
policy.yml:6:9: `private` says what a name may resolve to, and this rule has no name
   |
 6 |         private: true
   |         ^
   = hint: remove it"#,
    ),
    (
        "private localhost",
        r#"version: 1
jobs:
  default:
    allow:
      - {host: localhost, private: true}
"#,
        r#"
policy.yml:5:27: `private` says what a name may resolve to, and this rule has no name
   |
 5 |       - {host: localhost, private: true}
   |                           ^
   = hint: remove it"#,
    ),
    (
        "private yes",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        private: yes
"#,
        r#"
policy.yml:6:18: expected `true` or `false`, found `yes`
   |
 6 |         private: yes
   |                  ^
   = hint: did you mean `true`?"#,
    ),
    (
        "private quoted",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        private: "true"
"#,
        r#"
policy.yml:6:18: expected `true` or `false`, found the text `true`
   |
 6 |         private: "true"
   |                  ^
   = hint: remove the quotes"#,
    ),
    (
        "reason null",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        reason:
"#,
        r#"
policy.yml:6:16: expected text, found nothing
   |
 6 |         reason:
   |                ^
   = hint: write its value, or remove the key"#,
    ),
    (
        "reason list",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        reason: [a]
"#,
        r#"
policy.yml:6:17: expected text, found a list
   |
 6 |         reason: [a]
   |                 ^"#,
    ),
    (
        "reason escape",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        reason: "a\u001b[2Jb"
"#,
        r#"
policy.yml:6:17: the text holds a character that does not show (\u{1b})
   |
 6 |         reason: "a\u001b[2Jb"
   |                 ^
   = hint: write it on one line, in printable characters"#,
    ),
    (
        "owner empty",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        owner: ""
"#,
        r#"
policy.yml:6:16: expected text, found empty text
   |
 6 |         owner: ""
   |                ^
   = hint: write its value, or remove the key"#,
    ),
    (
        "host null",
        r#"version: 1
jobs:
  default:
    allow:
      - host: 
"#,
        r#"
policy.yml:5:14: expected what the rule is about, found nothing
   |
 5 |       - host:
   |              ^
   = hint: write it behind `host:`"#,
    ),
    (
        "host empty",
        r#"version: 1
jobs:
  default:
    allow:
      - host: ""
"#,
        r#"
policy.yml:5:15: expected what the rule is about, found empty text
   |
 5 |       - host: ""
   |               ^
   = hint: write it behind `host:`"#,
    ),
    (
        "host list",
        r#"version: 1
jobs:
  default:
    allow:
      - host: [a.example.com, b.example.com]
"#,
        r#"
policy.yml:5:15: expected one host or network, found a list
   |
 5 |       - host: [a.example.com, b.example.com]
   |               ^
   = hint: make a rule for each"#,
    ),
    (
        "host star",
        r#"version: 1
jobs:
  default:
    allow:
      - host: "*"
"#,
        r#"
policy.yml:5:15: `*` would allow every name
   |
 5 |       - host: "*"
   |               ^
   = hint: name the domains that the job needs"#,
    ),
    (
        "host bare star",
        r#"version: 1
jobs:
  default:
    allow:
      - host: *
"#,
        r#"
policy.yml:5:15: text that begins with `*` must be quoted
   |
 5 |       - host: *
   |               ^
   = hint: write a wildcard as "*.example.com""#,
    ),
    (
        "host unquoted wildcard",
        r#"version: 1
jobs:
  default:
    allow:
      - host: *.cdn.example.com
"#,
        r#"
policy.yml:5:15: text that begins with `*` must be quoted
   |
 5 |       - host: *.cdn.example.com
   |               ^
   = hint: write a wildcard as "*.example.com""#,
    ),
    (
        "host star inside",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.*.example.com
"#,
        r#"
policy.yml:5:15: `git.*.example.com`: `*` stands only for the whole first label
   |
 5 |       - host: git.*.example.com
   |               ^
   = hint: `*.example.com` is every name below example.com, at any depth"#,
    ),
    (
        "host star part",
        r#"version: 1
jobs:
  default:
    allow:
      - host: "*cdn.example.com"
"#,
        r#"
policy.yml:5:15: `*cdn.example.com`: `*` stands only for the whole first label
   |
 5 |       - host: "*cdn.example.com"
   |               ^
   = hint: `*.example.com` is every name below example.com, at any depth"#,
    ),
    (
        "host two stars",
        r#"version: 1
jobs:
  default:
    allow:
      - host: "*.*.example.com"
"#,
        r#"
policy.yml:5:15: `*.*.example.com`: `*` stands only for the whole first label
   |
 5 |       - host: "*.*.example.com"
   |               ^
   = hint: `*.example.com` is every name below example.com, at any depth"#,
    ),
    (
        "tld wildcard",
        r#"version: 1
jobs:
  default:
    allow:
      - host: "*.com"
"#,
        r#"
policy.yml:5:15: the wildcard `*.com` covers a whole top-level domain
   |
 5 |       - host: "*.com"
   |               ^
   = hint: name a domain below it, such as `*.example.com`"#,
    ),
    (
        "test wildcard",
        r#"version: 1
jobs:
  default:
    allow:
      - host: "*.test"
"#,
        r#"
policy.yml:5:15: the wildcard `*.test` covers a whole top-level domain
   |
 5 |       - host: "*.test"
   |               ^
   = hint: name a domain below it, such as `*.example.test`"#,
    ),
    (
        "public suffix",
        r#"version: 1
jobs:
  default:
    allow:
      - host: "*.co.uk"
"#,
        r#"
policy.yml:5:15: the wildcard `*.co.uk` covers a public suffix
   |
 5 |       - host: "*.co.uk"
   |               ^
   = hint: anybody can register a name under co.uk; name a domain below it"#,
    ),
    (
        "rented",
        r#"version: 1
jobs:
  default:
    allow:
      - host: "*.com.de"
"#,
        r#"
policy.yml:5:15: the wildcard `*.com.de` covers a hosting provider's customers
   |
 5 |       - host: "*.com.de"
   |               ^
   = hint: anybody can rent a name under com.de; list the names that the job needs"#,
    ),
    (
        "wild localhost",
        r#"version: 1
jobs:
  default:
    allow:
      - host: "*.localhost"
"#,
        r#"
policy.yml:5:15: the wildcard `*.localhost` covers a whole top-level domain
   |
 5 |       - host: "*.localhost"
   |               ^
   = hint: name a domain below it, such as `*.example.localhost`"#,
    ),
    (
        "sub localhost",
        r#"version: 1
jobs:
  default:
    allow:
      - host: db.localhost
"#,
        r#"
policy.yml:5:15: `db.localhost`: names below localhost are not looked up
   |
 5 |       - host: db.localhost
   |               ^
   = hint: use `host: localhost`, which is the loopback addresses"#,
    ),
    (
        "ipv4",
        r#"version: 1
jobs:
  default:
    allow:
      - host: 198.51.100.7
"#,
        r#"
policy.yml:5:15: `198.51.100.7` is an address, not a host name
   |
 5 |       - host: 198.51.100.7
   |               ^
   = hint: use `cidr: 198.51.100.7/32`"#,
    ),
    (
        "ipv6",
        r#"version: 1
jobs:
  default:
    allow:
      - host: "2001:db8::1"
"#,
        r#"
policy.yml:5:15: `2001:db8::1` is an address, not a host name
   |
 5 |       - host: "2001:db8::1"
   |               ^
   = hint: use `cidr: 2001:db8::1/128`"#,
    ),
    (
        "ipv6 brackets",
        r#"version: 1
jobs:
  default:
    allow:
      - host: "[2001:db8::1]"
"#,
        r#"
policy.yml:5:15: `[2001:db8::1]` is an address, not a host name
   |
 5 |       - host: "[2001:db8::1]"
   |               ^
   = hint: use `cidr: 2001:db8::1/128`"#,
    ),
    (
        "fullwidth ip",
        r#"version: 1
jobs:
  default:
    allow:
      - host: １９８.51.100.7
"#,
        r#"
policy.yml:5:15: `１９８.51.100.7` is an address, not a host name
   |
 5 |       - host: １９８.51.100.7
   |               ^
   = hint: use `cidr: 198.51.100.7/32`"#,
    ),
    (
        "short ip",
        r#"version: 1
jobs:
  default:
    allow:
      - host: 127.1
"#,
        r#"
policy.yml:5:15: `127.1` is not a host name: no top-level domain is a number
   |
 5 |       - host: 127.1
   |               ^
   = hint: write a range of addresses as `cidr: 198.51.100.0/24`"#,
    ),
    (
        "hex ip",
        r#"version: 1
jobs:
  default:
    allow:
      - host: 0x7f.1
"#,
        r#"
policy.yml:5:15: `0x7f.1` is not a host name: no top-level domain is a number
   |
 5 |       - host: 0x7f.1
   |               ^
   = hint: write a range of addresses as `cidr: 198.51.100.0/24`"#,
    ),
    (
        "net as host",
        r#"version: 1
jobs:
  default:
    allow:
      - host: 198.51.100.7/24
"#,
        r#"
policy.yml:5:15: `198.51.100.7/24` is a network, not a host name
   |
 5 |       - host: 198.51.100.7/24
   |               ^
   = hint: use `cidr: 198.51.100.0/24`"#,
    ),
    (
        "wild ip",
        r#"version: 1
jobs:
  default:
    allow:
      - host: "*.100.7"
"#,
        r#"
policy.yml:5:15: `*.100.7` is not a host name: no top-level domain is a number
   |
 5 |       - host: "*.100.7"
   |               ^
   = hint: write a range of addresses as `cidr: 198.51.100.0/24`"#,
    ),
    (
        "url",
        r#"version: 1
jobs:
  default:
    allow:
      - host: https://git.example.com/repo?x=1
"#,
        r#"
policy.yml:5:15: `https://git.example.com/repo?x=1` is a URL, not a host name
   |
 5 |       - host: https://git.example.com/repo?x=1
   |               ^
   = hint: use `host: git.example.com`; paths cannot be told apart"#,
    ),
    (
        "url port",
        r#"version: 1
jobs:
  default:
    allow:
      - host: https://user:pw@git.example.com:8443/
"#,
        r#"
policy.yml:5:15: `https://user:pw@git.example.com:8443/` is a URL, not a host name
   |
 5 |       - host: https://user:pw@git.example.com:8443/
   |               ^
   = hint: use `host: git.example.com` and `ports: [8443]`"#,
    ),
    (
        "bad url",
        r#"version: 1
jobs:
  default:
    allow:
      - host: https:///x
"#,
        r#"
policy.yml:5:15: `https:///x` is a URL, not a host name
   |
 5 |       - host: https:///x
   |               ^
   = hint: give the host name alone"#,
    ),
    (
        "path",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com/repo
"#,
        r#"
policy.yml:5:15: `git.example.com/repo` has a path (`repo`), which is no part of a host name
   |
 5 |       - host: git.example.com/repo
   |               ^
   = hint: use `host: git.example.com`; paths cannot be told apart"#,
    ),
    (
        "host port",
        r#"version: 1
jobs:
  default:
    allow:
      - host: db.example.com:5432
"#,
        r#"
policy.yml:5:15: `db.example.com:5432` is not a host name: it holds a port
   |
 5 |       - host: db.example.com:5432
   |               ^
   = hint: use `host: db.example.com` and `ports: [5432]`"#,
    ),
    (
        "space",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git example.com
"#,
        r#"
policy.yml:5:15: `git example.com` is not a host name: a name cannot hold ' '
   |
 5 |       - host: git example.com
   |               ^
   = hint: is the next line indented too far? YAML joins such lines"#,
    ),
    (
        "hyphen",
        r#"version: 1
jobs:
  default:
    allow:
      - host: -git.example.com
"#,
        r#"
policy.yml:5:15: `-git.example.com` is not a host name: the label `-git` begins or ends with a hyphen
   |
 5 |       - host: -git.example.com
   |               ^"#,
    ),
    (
        "dots",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git..example.com
"#,
        r#"
policy.yml:5:15: `git..example.com` is not a host name: the name has an empty label: a dot too many
   |
 5 |       - host: git..example.com
   |               ^"#,
    ),
    (
        "leading dot",
        r#"version: 1
jobs:
  default:
    allow:
      - host: .example.com
"#,
        r#"
policy.yml:5:15: `.example.com` is not a host name: the name has an empty label: a dot too many
   |
 5 |       - host: .example.com
   |               ^
   = hint: `*.example.com` is every name below example.com"#,
    ),
    (
        "idna",
        r#"version: 1
jobs:
  default:
    allow:
      - host: "\u00ad.example.com"
"#,
        r#"
policy.yml:5:15: `�.example.com` is not a host name: the name has an empty label: a dot too many
   |
 5 |       - host: "\u00ad.example.com"
   |               ^"#,
    ),
    (
        "cidr bare",
        r#"version: 1
jobs:
  default:
    allow:
      - cidr: 198.51.100.7
"#,
        r#"
policy.yml:5:15: `198.51.100.7` has no prefix length
   |
 5 |       - cidr: 198.51.100.7
   |               ^
   = hint: use `cidr: 198.51.100.7/32` for this one address"#,
    ),
    (
        "cidr bare 6",
        r#"version: 1
jobs:
  default:
    allow:
      - cidr: 2001:db8::1
"#,
        r#"
policy.yml:5:15: `2001:db8::1` has no prefix length
   |
 5 |       - cidr: 2001:db8::1
   |               ^
   = hint: use `cidr: 2001:db8::1/128` for this one address"#,
    ),
    (
        "host bits",
        r#"version: 1
jobs:
  default:
    allow:
      - cidr: 198.51.100.7/24
"#,
        r#"
policy.yml:5:15: `198.51.100.7/24` has bits set behind the prefix
   |
 5 |       - cidr: 198.51.100.7/24
   |               ^
   = hint: did you mean 198.51.100.0/24 or 198.51.100.7/32?"#,
    ),
    (
        "host bits 6",
        r#"version: 1
jobs:
  default:
    allow:
      - cidr: 2001:db8::1/32
"#,
        r#"
policy.yml:5:15: `2001:db8::1/32` has bits set behind the prefix
   |
 5 |       - cidr: 2001:db8::1/32
   |               ^
   = hint: did you mean 2001:db8::/32 or 2001:db8::1/128?"#,
    ),
    (
        "mapped",
        r#"version: 1
jobs:
  default:
    allow:
      - cidr: ::ffff:198.51.100.0/120
"#,
        r#"
policy.yml:5:15: `::ffff:198.51.100.0/120` is an IPv4 network in IPv6 clothes
   |
 5 |       - cidr: ::ffff:198.51.100.0/120
   |               ^
   = hint: use `cidr: 198.51.100.0/24`; it holds for IPv6 sockets, too"#,
    ),
    (
        "cidr long",
        r#"version: 1
jobs:
  default:
    allow:
      - cidr: 198.51.100.0/33
"#,
        r#"
policy.yml:5:15: `198.51.100.0/33` is not a network
   |
 5 |       - cidr: 198.51.100.0/33
   |               ^
   = hint: write networks as 198.51.100.0/24 or 2001:db8::/32"#,
    ),
    (
        "cidr host",
        r#"version: 1
jobs:
  default:
    allow:
      - cidr: git.example.com
"#,
        r#"
policy.yml:5:15: `git.example.com` is not a network
   |
 5 |       - cidr: git.example.com
   |               ^
   = hint: use `host: git.example.com`"#,
    ),
    (
        "cidr star",
        r#"version: 1
jobs:
  default:
    allow:
      - cidr: "*"
"#,
        r#"
policy.yml:5:15: `*` is not a network
   |
 5 |       - cidr: "*"
   |               ^
   = hint: write networks as 198.51.100.0/24 or 2001:db8::/32"#,
    ),
    (
        "cidr mask",
        r#"version: 1
jobs:
  default:
    allow:
      - cidr: 198.51.100.0/255.255.255.0
"#,
        r#"
policy.yml:5:15: `198.51.100.0/255.255.255.0` is not a network
   |
 5 |       - cidr: 198.51.100.0/255.255.255.0
   |               ^
   = hint: write networks as 198.51.100.0/24 or 2001:db8::/32"#,
    ),
    (
        "port range",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        ports: [70000]
"#,
        r#"
policy.yml:6:17: port 70000 is out of range
   |
 6 |         ports: [70000]
   |                 ^
   = hint: ports are 1 to 65535"#,
    ),
    (
        "port zero",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        ports: [0]
"#,
        r#"
policy.yml:6:17: port 0 is out of range
   |
 6 |         ports: [0]
   |                 ^
   = hint: ports are 1 to 65535"#,
    ),
    (
        "port huge",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        ports: [443, 99999999999999999999]
"#,
        r#"
policy.yml:6:22: port 99999999999999999999 is out of range
   |
 6 |         ports: [443, 99999999999999999999]
   |                      ^
   = hint: ports are 1 to 65535"#,
    ),
    (
        "port word",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        ports: [https]
"#,
        r#"
policy.yml:6:17: `https` is not a port
   |
 6 |         ports: [https]
   |                 ^
   = hint: ports are written as 443, 8000-8010, 123/udp or 8000-8010/udp"#,
    ),
    (
        "port neg",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        ports: [-1]
"#,
        r#"
policy.yml:6:17: `-1` is not a port
   |
 6 |         ports: [-1]
   |                 ^
   = hint: ports are written as 443, 8000-8010, 123/udp or 8000-8010/udp"#,
    ),
    (
        "port float",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        ports: [443.0]
"#,
        r#"
policy.yml:6:17: `443.0` is not a port
   |
 6 |         ports: [443.0]
   |                 ^
   = hint: ports are written as 443, 8000-8010, 123/udp or 8000-8010/udp"#,
    ),
    (
        "port octal",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        ports: [0443]
"#,
        r#"
policy.yml:6:17: `0443` is not a port
   |
 6 |         ports: [0443]
   |                 ^
   = hint: ports are written as 443, 8000-8010, 123/udp or 8000-8010/udp"#,
    ),
    (
        "port backwards",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        ports: [8010-8000]
"#,
        r#"
policy.yml:6:17: the range `8010-8000` ends before it begins
   |
 6 |         ports: [8010-8000]
   |                 ^
   = hint: did you mean 8000-8010?"#,
    ),
    (
        "port spaces",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        ports: [8000 - 8010]
"#,
        r#"
policy.yml:6:17: `8000 - 8010` is not a port
   |
 6 |         ports: [8000 - 8010]
   |                 ^
   = hint: ports are written as 443, 8000-8010, 123/udp or 8000-8010/udp"#,
    ),
    (
        "port proto",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        ports: [443/sctp]
"#,
        r#"
policy.yml:6:17: unknown protocol `sctp`
   |
 6 |         ports: [443/sctp]
   |                 ^
   = hint: `tcp` and `udp` have ports"#,
    ),
    (
        "port icmp",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        ports: [8/icmp]
"#,
        r#"
policy.yml:6:17: ICMP is not supported by this version of jobfence
   |
 6 |         ports: [8/icmp]
   |                 ^"#,
    ),
    (
        "port dns",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        ports: [443, 53/udp]
"#,
        r#"
policy.yml:6:22: port 53 cannot be allowed or denied
   |
 6 |         ports: [443, 53/udp]
   |                      ^
   = hint: DNS always goes to the job's own resolver, which answers for allowed names"#,
    ),
    (
        "port scalar",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        ports: 443
"#,
        r#"
policy.yml:6:16: expected a list of ports, found `443`
   |
 6 |         ports: 443
   |                ^
   = hint: write `ports: [443]`"#,
    ),
    (
        "port empty",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        ports: []
"#,
        r#"
policy.yml:6:16: the list of ports is empty
   |
 6 |         ports: []
   |                ^
   = hint: without `ports`, an `allow` rule is for 443/tcp and a `deny` rule for everything"#,
    ),
    (
        "port null",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        ports: 
"#,
        r#"
policy.yml:6:15: expected a list of ports, found nothing
   |
 6 |         ports:
   |               ^
   = hint: write its value, or remove the key"#,
    ),
    (
        "port map",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        ports: [{a: 1}]
"#,
        r#"
policy.yml:6:17: expected a port, found a map
   |
 6 |         ports: [{a: 1}]
   |                 ^"#,
    ),
    (
        "port item null",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        ports: [443, ]
        owner: 
"#,
        r#"
policy.yml:7:15: expected text, found nothing
   |
 7 |         owner:
   |               ^
   = hint: write its value, or remove the key"#,
    ),
    (
        "many by dns",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        ports: [50-60, 1000, 1002, 1004, 1006, 1008, 1010, 1012, 1014, 1016, 1018, 1020, 1022, 1024, 1026, 1028]
"#,
        r#"
policy.yml:6:9: the rule has 17 separate port ranges, at most 16 are possible
   |
 6 |         ports: [50-60, 1000, 1002, 1004, 1006, 1008, 1010, 1012, 1014, 1016, 1018, 1020, 1022, 1024, 1026, 1028]
   |         ^
   = hint: join some of them to wider ranges"#,
    ),
    (
        "extends unknown",
        r#"version: 1
jobs:
  default: {}
  release:
    extends: defualt
"#,
        r#"
policy.yml:5:14: `release` extends `defualt`, which is no job of this policy
   |
 5 |     extends: defualt
   |              ^
   = hint: did you mean `default`?"#,
    ),
    (
        "extends self",
        r#"version: 1
jobs:
  a: {extends: a}
"#,
        r#"
policy.yml:3:16: `extends` goes in a circle: a -> a
   |
 3 |   a: {extends: a}
   |                ^
   = hint: the rules that both need go into a third job, which both extend"#,
    ),
    (
        "extends circle",
        r#"version: 1
jobs:
  x: {extends: a}
  a: {extends: b}
  b: {extends: c}
  c: {extends: a}
"#,
        r#"
policy.yml:6:16: `extends` goes in a circle: a -> b -> c -> a
   |
 6 |   c: {extends: a}
   |                ^
   = hint: the rules that both need go into a third job, which both extend"#,
    ),
    (
        "extends list",
        r#"version: 1
jobs:
  a: {extends: [b]}
"#,
        r#"
policy.yml:3:16: expected the name of a job, found a list
   |
 3 |   a: {extends: [b]}
   |                ^"#,
    ),
    (
        "anchor",
        r#"version: 1
jobs:
  a: &a {}
  b: *a
"#,
        r#"
policy.yml:3:6: YAML anchors (`&`) and aliases (`*`) are not supported
   |
 3 |   a: &a {}
   |      ^
   = hint: write the rules out, or, in text, put a space behind the `&`"#,
    ),
    (
        "alias",
        r#"version: 1
jobs:
  b: *a
"#,
        r#"
policy.yml:3:6: YAML anchors (`&`) and aliases (`*`) are not supported
   |
 3 |   b: *a
   |      ^
   = hint: write the rules out; `extends` lets one job have the rules of another"#,
    ),
    (
        "tag",
        r#"version: 1
jobs:
  b: !job {}
"#,
        r#"
policy.yml:3:6: YAML tags (`!...`) are not supported
   |
 3 |   b: !job {}
   |      ^
   = hint: remove the tag; quotes make text of a number"#,
    ),
    (
        "two documents",
        r#"version: 1
jobs: {a: {}}
---
version: 1
"#,
        r#"
policy.yml:4:1: a second YAML document begins here
   |
 4 | version: 1
   | ^
   = hint: a policy is one document; describe several jobs under `jobs`"#,
    ),
    (
        "document end text",
        r#"version: 1
jobs: {a: {}}
...
more
"#,
        r#"
policy.yml:4:1: not valid YAML: did not find expected <document start>
   |
 4 | more
   | ^"#,
    ),
    (
        "unclosed",
        r#"version: 1
jobs: {a: {
"#,
        r#"
policy.yml:2:12: not valid YAML: did not find expected node content, while parsing a flow node
   |
 2 | jobs: {a: {
   |            ^"#,
    ),
    (
        "unclosed quote",
        r#"version: 1
jobs: {"a: {}}
"#,
        r#"
policy.yml:2:15: not valid YAML: found unexpected end of stream, while scanning a quoted scalar at line 2 column 8
   |
 2 | jobs: {"a: {}}
   |               ^"#,
    ),
    (
        "indent",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
         ports: [443]
"#,
        r#"
policy.yml:5:15: `git.example.com ports` is not a host name: a name cannot hold ' '
   |
 5 |       - host: git.example.com
   |               ^
   = hint: is the next line indented too far? YAML joins such lines"#,
    ),
    (
        "colon",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        reason: see: the wiki
"#,
        r#"
policy.yml:6:20: not valid YAML: mapping values are not allowed in this context
   |
 6 |         reason: see: the wiki
   |                    ^
   = hint: is the line indented like its neighbours? text with `: ` in it must be quoted"#,
    ),
    (
        "key is a list",
        r#"version: 1
? [a]
: b
"#,
        r#"
policy.yml:2:3: expected a key, found a list or a map
   |
 2 | ? [a]
   |   ^"#,
    ),
    (
        "tag of another type",
        r#"version: !!bool 1
jobs: {default: {}}
"#,
        r#"
policy.yml:1:10: not valid YAML: version: invalid value: string "1", expected a boolean
   |
 1 | version: !!bool 1
   |          ^"#,
    ),
    (
        "extends a number",
        r#"version: 1
jobs:
  3.10: {}
  a: {extends: 3.10}
"#,
        r#"
policy.yml:4:16: expected the name of a job, found `3.1`
   |
 4 |   a: {extends: 3.10}
   |                ^
   = hint: put it in quotes: YAML takes it for something else than text"#,
    ),
    (
        "reason a boolean",
        r#"version: 1
jobs: {default: {deny: [{host: a.example.com, reason: true}]}}
"#,
        r#"
policy.yml:2:55: expected text, found `true`
   |
 2 | jobs: {default: {deny: [{host: a.example.com, reason: true}]}}
   |                                                       ^
   = hint: put it in quotes: YAML takes it for something else than text"#,
    ),
    (
        "ampersand in text",
        r#"version: 1
jobs: {default: {deny: [{host: a.example.com, reason: "this &that"}]}}
"#,
        r#"
policy.yml:2:61: YAML anchors (`&`) and aliases (`*`) are not supported
   |
 2 | jobs: {default: {deny: [{host: a.example.com, reason: "this &that"}]}}
   |                                                             ^
   = hint: write the rules out, or, in text, put a space behind the `&`"#,
    ),
    (
        "ampersand, anchor in flow",
        r#"version: 1
jobs: {"default":&a {}}
"#,
        r#"
policy.yml:2:18: YAML anchors (`&`) and aliases (`*`) are not supported
   |
 2 | jobs: {"default":&a {}}
   |                  ^
   = hint: write the rules out, or, in text, put a space behind the `&`"#,
    ),
    (
        "escaped key",
        r#"version: 1
jobs:
  default:
    allow:
      - "\x68ost": a.example.com
"#,
        r#"
policy.yml:5:9: a rule's keys must stand in the file as they are, without escapes
   |
 5 |       - "\x68ost": a.example.com
   |         ^
   = hint: write `host`"#,
    ),
    (
        "first mistake of several",
        r#"version: 1
jobs:
  default:
    alow: []
 *: [
"#,
        r#"
policy.yml:4:5: unknown key `alow` in a job
   |
 4 |     alow: []
   |     ^
   = hint: did you mean `allow`?"#,
    ),
    (
        "a line break that editors do not know",
        "version: 1 # \u{85} \u{2028}\njobs: {default: {alow: []}}\n",
        r#"
policy.yml:2:18: unknown key `alow` in a job
   |
 2 | jobs: {default: {alow: []}}
   |                  ^
   = hint: did you mean `allow`?"#,
    ),
    (
        "wrong map without a key",
        r#"version: 1
jobs:
  default:
    allow:
      - {host: a.example.com}
      - {}
"#,
        r#"
policy.yml:6:9: the rule has none of `host`, `cidr` and `use`
   |
 6 |       - {}
   |         ^
   = hint: say what it is about: `host: git.example.com` or `cidr: 198.51.100.0/24`; or `use` a preset"#,
    ),
    (
        "a key that is aligned with the list",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
      ports: [443]
"#,
        r#"
policy.yml:6:7: not valid YAML: did not find expected '-' indicator, while parsing a block collection at line 5 column 7
   |
 6 |       ports: [443]
   |       ^
   = hint: if it belongs to the item in line 5, align it with `host` there"#,
    ),
    (
        "a key that is aligned with nothing",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
       ports: [443]
"#,
        r#"
policy.yml:6:8: not valid YAML: did not find expected '-' indicator, while parsing a block collection at line 5 column 7
   |
 6 |        ports: [443]
   |        ^
   = hint: if it belongs to the item in line 5, align it with `host` there"#,
    ),
    (
        "a key of a job in its list",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
      deny: []
"#,
        r#"
policy.yml:6:7: not valid YAML: did not find expected '-' indicator, while parsing a block collection at line 5 column 7
   |
 6 |       deny: []
   |       ^
   = hint: if it belongs to the item in line 5, align it with `host` there"#,
    ),
    (
        "a list that is aligned with nothing",
        r#"version: 1
jobs:
  default:
    allow:
      - host: a.example.com
     - host: b.example.com
"#,
        r#"
policy.yml:6:6: not valid YAML: did not find expected key, while parsing a block mapping at line 4 column 5
   |
 6 |      - host: b.example.com
   |      ^
   = hint: is the line indented like its neighbours?"#,
    ),
    (
        "a job's key that is aligned with nothing",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
   deny: []
"#,
        r#"
policy.yml:6:4: not valid YAML: did not find expected key, while parsing a block mapping at line 3 column 3
   |
 6 |    deny: []
   |    ^
   = hint: is the line indented like its neighbours?"#,
    ),
    (
        "a key after a wildcard that is aligned with the list",
        r#"version: 1
jobs:
  default:
    allow:
      - host: "*.cdn.example.com"
        reason: files
      # and
      ports: [443]
"#,
        r#"
policy.yml:8:7: not valid YAML: did not find expected '-' indicator, while parsing a block collection at line 5 column 7
   |
 8 |       ports: [443]
   |       ^
   = hint: if it belongs to the item in line 5, align it with `host` there"#,
    ),
    (
        "text behind a quoted value",
        r#"version: 1
jobs:
  default:
    allow:
      - host: "git.example.com" it
"#,
        r#"
policy.yml:5:33: not valid YAML: did not find expected key, while parsing a block mapping at line 5 column 9
   |
 5 |       - host: "git.example.com" it
   |                                 ^"#,
    ),
    (
        "jobs that are not indented",
        r#"version: 1
jobs:
default:
  allow:
    - host: git.example.com
"#,
        r#"
policy.yml:3:1: unknown key `default` at the top of the file
   |
 3 | default:
   | ^
   = hint: it looks like a job: indent it, below `jobs`"#,
    ),
    (
        "another job that is not indented",
        r#"version: 1
jobs:
  default: {}
release:
  extends: default
"#,
        r#"
policy.yml:4:1: unknown key `release` at the top of the file
   |
 4 | release:
   | ^
   = hint: it looks like a job: indent it, below `jobs`"#,
    ),
    (
        "a job without jobs",
        r#"version: 1
default:
"#,
        r#"
policy.yml:2:1: unknown key `default` at the top of the file
   |
 2 | default:
   | ^
   = hint: it looks like a job: indent it, below `jobs`"#,
    ),
    (
        "a strange key that is no job",
        r#"version: 1
networks: {default: {}}
jobs: {default: {}}
"#,
        r#"
policy.yml:2:1: unknown key `networks` at the top of the file
   |
 2 | networks: {default: {}}
   | ^
   = hint: keys here are `version`, `mode`, `on_violation`, `limits`, `jobs`"#,
    ),
    (
        "rules beside their job",
        r#"version: 1
jobs:
  default:
  allow:
    - host: git.example.com
"#,
        r#"
policy.yml:5:5: expected a map with `extends`, `allow`, `deny` or `limits`, found a list
   |
 5 |     - host: git.example.com
   |     ^
   = hint: `allow` is read as the name of a job here: indent it, below a job such as `default`"#,
    ),
    (
        "extends beside its job",
        r#"version: 1
jobs:
  default:
  release:
  extends: default
"#,
        r#"
policy.yml:5:12: expected a map with `extends`, `allow`, `deny` or `limits`, found `default`
   |
 5 |   extends: default
   |            ^
   = hint: `extends` is read as the name of a job here: indent it, below a job such as `default`"#,
    ),
    (
        "rules without a job",
        r#"version: 1
allow:
  - host: git.example.com
jobs: {default: {}}
"#,
        r#"
policy.yml:2:1: unknown key `allow` at the top of the file
   |
 2 | allow:
   | ^
   = hint: `allow` stands in a job"#,
    ),
    (
        "tls false",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        tls: false
"#,
        r#"
policy.yml:6:14: expected one of `verify`, `off`, found `false`
   |
 6 |         tls: false
   |              ^
   = hint: did you mean `off`?"#,
    ),
    (
        "tls disabled",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        tls: Disabled
"#,
        r#"
policy.yml:6:14: expected one of `verify`, `off`, found `Disabled`
   |
 6 |         tls: Disabled
   |              ^
   = hint: did you mean `off`?"#,
    ),
    (
        "http yes",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        http: yes
"#,
        r#"
policy.yml:6:15: expected one of `verify`, `off`, found `yes`
   |
 6 |         http: yes
   |               ^
   = hint: did you mean `verify`?"#,
    ),
    (
        "tls misspelt",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        tls: verfy
"#,
        r#"
policy.yml:6:14: expected one of `verify`, `off`, found `verfy`
   |
 6 |         tls: verfy
   |              ^
   = hint: did you mean `verify`?"#,
    ),
    (
        "private on",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        private: on
"#,
        r#"
policy.yml:6:18: expected `true` or `false`, found `on`
   |
 6 |         private: on
   |                  ^
   = hint: did you mean `true`?"#,
    ),
    (
        "private maybe",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        private: maybe
"#,
        r#"
policy.yml:6:18: expected `true` or `false`, found `maybe`
   |
 6 |         private: maybe
   |                  ^"#,
    ),
    (
        "mode true",
        r#"version: 1
mode: true
jobs: {default: {}}
"#,
        r#"
policy.yml:2:7: expected one of `enforce`, `audit`, found `true`
   |
 2 | mode: true
   |       ^"#,
    ),
    (
        "a rule without a space behind its key",
        r#"version: 1
jobs:
  default:
    allow:
      - host:git.example.com
"#,
        r#"
policy.yml:5:9: expected a rule such as `host: git.example.com`, found `host:git.example.com`
   |
 5 |       - host:git.example.com
   |         ^
   = hint: put a space behind `host:`"#,
    ),
    (
        "a rule without a space behind its key, with another",
        r#"version: 1
jobs:
  default:
    allow:
      - host:git.example.com
        ports: [443]
"#,
        r#"
policy.yml:5:9: expected a rule such as `host: git.example.com`, found `host:git.example.com ports`
   |
 5 |       - host:git.example.com
   |         ^
   = hint: put a space behind `host:`"#,
    ),
    (
        "a key without a space behind it",
        r#"version: 1
jobs:
  default:
    allow:
      - ports: [443]
        host:git.example.com
"#,
        r#"
policy.yml:6:29: not valid YAML: could not find expected ':', while scanning a simple key at line 6 column 9
   |
 6 |         host:git.example.com
   |                             ^
   = hint: a key ends with a colon and a space"#,
    ),
    (
        "a rule without a space behind its dash",
        r#"version: 1
jobs:
  default:
    allow:
      -host: git.example.com
"#,
        r#"
policy.yml:5:7: expected a list of rules, found a map
   |
 5 |       -host: git.example.com
   |       ^
   = hint: put a space behind the `-` of `-host`"#,
    ),
    (
        "a second rule without a space behind its dash",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
      -host: b.example.com
"#,
        r#"
policy.yml:6:7: not valid YAML: did not find expected '-' indicator, while parsing a block collection at line 5 column 7
   |
 6 |       -host: b.example.com
   |       ^
   = hint: put a space behind the `-`"#,
    ),
    (
        "rules that are no list",
        r#"version: 1
jobs:
  default:
    allow:
      host: git.example.com
"#,
        r#"
policy.yml:5:7: expected a list of rules, found a map
   |
 5 |       host: git.example.com
   |       ^
   = hint: write each rule as an item of a list: `- host: git.example.com`"#,
    ),
    (
        "a network for a rule",
        r#"version: 1
jobs:
  default:
    allow:
      - 198.51.100.0/24
"#,
        r#"
policy.yml:5:9: expected a rule such as `host: git.example.com`, found `198.51.100.0/24`
   |
 5 |       - 198.51.100.0/24
   |         ^
   = hint: write `- cidr: 198.51.100.0/24`"#,
    ),
    (
        "an address for a rule",
        r#"version: 1
jobs:
  default:
    allow:
      - 198.51.100.7
"#,
        r#"
policy.yml:5:9: expected a rule such as `host: git.example.com`, found `198.51.100.7`
   |
 5 |       - 198.51.100.7
   |         ^
   = hint: write `- cidr: 198.51.100.7/32`"#,
    ),
    (
        "a wildcard for a rule",
        r#"version: 1
jobs:
  default:
    allow:
      - "*.cdn.example.com"
"#,
        r#"
policy.yml:5:9: expected a rule such as `host: git.example.com`, found `*.cdn.example.com`
   |
 5 |       - "*.cdn.example.com"
   |         ^
   = hint: write `- host: "*.cdn.example.com"`"#,
    ),
    (
        "a preset for a rule",
        r#"version: 1
jobs:
  default:
    allow:
      - localhost-services
"#,
        r#"
policy.yml:5:9: expected a rule such as `host: git.example.com`, found `localhost-services`
   |
 5 |       - localhost-services
   |         ^
   = hint: write `- use: localhost-services`"#,
    ),
    (
        "a URL for a rule",
        r#"version: 1
jobs:
  default:
    allow:
      - https://git.example.com/
"#,
        r#"
policy.yml:5:9: expected a rule such as `host: git.example.com`, found `https://git.example.com/`
   |
 5 |       - https://git.example.com/
   |         ^
   = hint: write a rule as `- host: git.example.com`"#,
    ),
    (
        "a list for a rule",
        r#"version: 1
jobs:
  default:
    allow:
      - [git.example.com]
"#,
        r#"
policy.yml:5:9: expected a rule such as `host: git.example.com`, found a list
   |
 5 |       - [git.example.com]
   |         ^
   = hint: write a rule as `- host: git.example.com`"#,
    ),
    (
        "a key without a colon",
        r#"version: 1
jobs
  default: {}
"#,
        r#"
policy.yml:3:10: not valid YAML: could not find expected ':', while scanning a simple key at line 2 column 1
   |
 3 |   default: {}
   |          ^
   = hint: a key ends with a colon and a space"#,
    ),
    (
        "a last key without a colon",
        r#"version: 1
jobs: {default: {}}
mode
"#,
        r#"
policy.yml:3:5: not valid YAML: could not find expected ':', while scanning a simple key at line 3 column 1
   |
 3 | mode
   |     ^
   = hint: a key ends with a colon and a space"#,
    ),
    (
        "version without a space",
        r#"version:1
jobs: {default: {}}
"#,
        r#"
policy.yml:1:1: expected a map of keys such as `version` and `jobs`, found `version:1 jobs`
   |
 1 | version:1
   | ^
   = hint: put a space behind `version:`"#,
    ),
    (
        "no time in expires",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com
        expires:
"#,
        r#"
policy.yml:6:17: expected a date such as 2027-03-31, found nothing
   |
 6 |         expires:
   |                 ^
   = hint: write its value, or remove the key"#,
    ),
    (
        "mode null",
        r#"version: 1
mode:
jobs: {default: {}}
"#,
        r#"
policy.yml:2:6: expected one of `enforce`, `audit`, found nothing
   |
 2 | mode:
   |      ^
   = hint: write its value, or remove the key"#,
    ),
    (
        "a preset without a name",
        r#"version: 1
jobs:
  default:
    allow:
      - use:
"#,
        r#"
policy.yml:5:13: expected what the rule is about, found nothing
   |
 5 |       - use:
   |             ^
   = hint: write it behind `use:`"#,
    ),
    (
        "kilobytes",
        r#"version: 1
limits: {upload: 64KB}
jobs: {default: {}}
"#,
        r#"
policy.yml:2:18: `64KB` is not a size
   |
 2 | limits: {upload: 64KB}
   |                  ^
   = hint: did you mean 64kB?"#,
    ),
    (
        "megabytes",
        r#"version: 1
limits: {upload: 500M}
jobs: {default: {}}
"#,
        r#"
policy.yml:2:18: `500M` is not a size
   |
 2 | limits: {upload: 500M}
   |                  ^
   = hint: did you mean 500MB?"#,
    ),
    (
        "an unknown unit",
        r#"version: 1
limits: {upload: 5 pieces}
jobs: {default: {}}
"#,
        r#"
policy.yml:2:18: `5 pieces` is not a size
   |
 2 | limits: {upload: 5 pieces}
   |                  ^
   = hint: sizes are bytes, or written as 500MB or 2GiB; `none` is no limit"#,
    ),
    (
        "a remote of git",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git@git.test:foo/bar.git
"#,
        r#"
policy.yml:5:15: `git@git.test:foo/bar.git` is not a host name: it holds a user
   |
 5 |       - host: git@git.test:foo/bar.git
   |               ^
   = hint: use `host: git.test`, `ports: [22]` and, under `allow`, `tls: off`"#,
    ),
    (
        "a remote of git as a URL",
        r#"version: 1
jobs:
  default:
    allow:
      - host: ssh://git@git.test:2222/foo/bar.git
"#,
        r#"
policy.yml:5:15: `ssh://git@git.test:2222/foo/bar.git` is a URL, not a host name
   |
 5 |       - host: ssh://git@git.test:2222/foo/bar.git
   |               ^
   = hint: use `host: git.test`, `ports: [2222]` and, under `allow`, `tls: off`; paths cannot be told apart"#,
    ),
    (
        "a remote of git as a URL without a port",
        r#"version: 1
jobs:
  default:
    allow:
      - host: ssh://git@git.test/foo
"#,
        r#"
policy.yml:5:15: `ssh://git@git.test/foo` is a URL, not a host name
   |
 5 |       - host: ssh://git@git.test/foo
   |               ^
   = hint: use `host: git.test`, `ports: [22]` and, under `allow`, `tls: off`; paths cannot be told apart"#,
    ),
    (
        "a user",
        r#"version: 1
jobs:
  default:
    allow:
      - host: me@git.test
"#,
        r#"
policy.yml:5:15: `me@git.test` is not a host name: it holds a user
   |
 5 |       - host: me@git.test
   |               ^
   = hint: use `host: git.test`"#,
    ),
    (
        "a user and a port",
        r#"version: 1
jobs:
  default:
    allow:
      - host: me@git.test:8443
"#,
        r#"
policy.yml:5:15: `me@git.test:8443` is not a host name: it holds a user
   |
 5 |       - host: me@git.test:8443
   |               ^
   = hint: use `host: git.test` and `ports: [8443]`"#,
    ),
    (
        "a user and no host",
        r#"version: 1
jobs:
  default:
    allow:
      - host: me@
"#,
        r#"
policy.yml:5:15: `me@` is not a host name: it holds a user
   |
 5 |       - host: me@
   |               ^
   = hint: give the host name alone"#,
    ),
    (
        "loopback",
        r#"version: 1
jobs:
  default:
    allow:
      - host: 127.0.0.1
"#,
        r#"
policy.yml:5:15: `127.0.0.1` is an address, not a host name
   |
 5 |       - host: 127.0.0.1
   |               ^
   = hint: use `host: localhost`"#,
    ),
    (
        "loopback 6",
        r#"version: 1
jobs:
  default:
    allow:
      - host: "::1"
"#,
        r#"
policy.yml:5:15: `::1` is an address, not a host name
   |
 5 |       - host: "::1"
   |               ^
   = hint: use `host: localhost`"#,
    ),
    (
        "another loopback",
        r#"version: 1
jobs:
  default:
    allow:
      - host: 127.0.0.53
"#,
        r#"
policy.yml:5:15: `127.0.0.53` is an address, not a host name
   |
 5 |       - host: 127.0.0.53
   |               ^
   = hint: use `cidr: 127.0.0.53/32`"#,
    ),
    (
        "loopback and a port",
        r#"version: 1
jobs:
  default:
    allow:
      - host: 127.0.0.1:5432
"#,
        r#"
policy.yml:5:15: `127.0.0.1:5432` is not a host name: it holds a port
   |
 5 |       - host: 127.0.0.1:5432
   |               ^
   = hint: use `host: localhost` and `ports: [5432]`"#,
    ),
    (
        "an address and a port",
        r#"version: 1
jobs:
  default:
    allow:
      - host: "[2001:db8::1]:8443"
"#,
        r#"
policy.yml:5:15: `[2001:db8::1]:8443` is not a host name: it holds a port
   |
 5 |       - host: "[2001:db8::1]:8443"
   |               ^
   = hint: use `cidr: 2001:db8::1/128` and `ports: [8443]`"#,
    ),
    (
        "a port that no rule can have",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com:53
"#,
        r#"
policy.yml:5:15: `git.example.com:53` is not a host name: it holds a port
   |
 5 |       - host: git.example.com:53
   |               ^
   = hint: use `host: git.example.com`"#,
    ),
    (
        "a port and a path",
        r#"version: 1
jobs:
  default:
    allow:
      - host: git.example.com:8443/repo
"#,
        r#"
policy.yml:5:15: `git.example.com:8443/repo` has a path (`repo`), which is no part of a host name
   |
 5 |       - host: git.example.com:8443/repo
   |               ^
   = hint: use `host: git.example.com` and `ports: [8443]`; paths cannot be told apart"#,
    ),
    (
        "a URL of plain HTTP",
        r#"version: 1
jobs:
  default:
    allow:
      - host: http://files.example.com
"#,
        r#"
policy.yml:5:15: `http://files.example.com` is a URL, not a host name
   |
 5 |       - host: http://files.example.com
   |               ^
   = hint: use `host: files.example.com` and `ports: [80]`"#,
    ),
    (
        "a URL of an address",
        r#"version: 1
jobs:
  default:
    allow:
      - host: https://198.51.100.7/repo
"#,
        r#"
policy.yml:5:15: `https://198.51.100.7/repo` is a URL, not a host name
   |
 5 |       - host: https://198.51.100.7/repo
   |               ^
   = hint: use `cidr: 198.51.100.7/32`; paths cannot be told apart"#,
    ),
    (
        "a URL of a wildcard",
        r#"version: 1
jobs:
  default:
    allow:
      - host: https://*.example.com/
"#,
        r#"
policy.yml:5:15: `https://*.example.com/` is a URL, not a host name
   |
 5 |       - host: https://*.example.com/
   |               ^
   = hint: use `host: "*.example.com"`"#,
    ),
    (
        "an address and a path",
        r#"version: 1
jobs:
  default:
    allow:
      - host: 198.51.100.7/repo
"#,
        r#"
policy.yml:5:15: `198.51.100.7/repo` has a path (`repo`), which is no part of a host name
   |
 5 |       - host: 198.51.100.7/repo
   |               ^
   = hint: use `cidr: 198.51.100.7/32`; paths cannot be told apart"#,
    ),
    (
        "a wildcard for a network",
        r#"version: 1
jobs:
  default:
    allow:
      - cidr: "*.example.com"
"#,
        r#"
policy.yml:5:15: `*.example.com` is not a network
   |
 5 |       - cidr: "*.example.com"
   |               ^
   = hint: use `host: "*.example.com"`"#,
    ),
    (
        "a limit without a space",
        r#"version: 1
limits:
  upload:1GB
jobs: {default: {}}
"#,
        r#"
policy.yml:3:3: expected a map of limits, found `upload:1GB`
   |
 3 |   upload:1GB
   |   ^
   = hint: put a space behind `upload:`"#,
    ),
    (
        "a key that is aligned with a list of short rules",
        r#"version: 1
jobs:
  default:
    allow:
      - host: a.example.com
      - {host: b.example.com}
      ports: [443]
"#,
        r#"
policy.yml:7:7: not valid YAML: did not find expected '-' indicator, while parsing a block collection at line 5 column 7
   |
 7 |       ports: [443]
   |       ^
   = hint: is the line indented like its neighbours?"#,
    ),
    (
        "a path of no host",
        r#"version: 1
jobs:
  default:
    allow:
      - host: /repo
"#,
        r#"
policy.yml:5:15: `/repo` has a path (`repo`), which is no part of a host name
   |
 5 |       - host: /repo
   |               ^
   = hint: give the host name alone; paths cannot be told apart"#,
    ),
    (
        "a port of no host",
        r#"version: 1
jobs:
  default:
    allow:
      - host: a b:80
"#,
        r#"
policy.yml:5:15: `a b:80` is not a host name: it holds a port
   |
 5 |       - host: a b:80
   |               ^
   = hint: give the host name alone"#,
    ),
    (
        "no network for a host",
        r#"version: 1
jobs:
  default:
    allow:
      - host: 198.51.100.0/33
"#,
        r#"
policy.yml:5:15: `198.51.100.0/33` is not a network
   |
 5 |       - host: 198.51.100.0/33
   |               ^
   = hint: write networks as 198.51.100.0/24 or 2001:db8::/32"#,
    ),
    (
        "a mask for a host",
        r#"version: 1
jobs:
  default:
    allow:
      - host: 198.51.100.0/255.255.255.0
"#,
        r#"
policy.yml:5:15: `198.51.100.0/255.255.255.0` is not a network
   |
 5 |       - host: 198.51.100.0/255.255.255.0
   |               ^
   = hint: write networks as 198.51.100.0/24 or 2001:db8::/32"#,
    ),
    (
        "a path with an at sign",
        r#"version: 1
jobs:
  default:
    allow:
      - host: registry.example.com/@scope/pkg
"#,
        r#"
policy.yml:5:15: `registry.example.com/@scope/pkg` has a path (`@scope/pkg`), which is no part of a host name
   |
 5 |       - host: registry.example.com/@scope/pkg
   |               ^
   = hint: use `host: registry.example.com`; paths cannot be told apart"#,
    ),
];
