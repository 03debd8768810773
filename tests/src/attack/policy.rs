//! The policy: mistakes in it, changes to it, and names that only look like its own.

use super::{Attack, Expect, How, Layer, Proof, attack, v4};
use crate::addresses::BLOCKED;

const NAME: Expect = Expect::Violation("name");
const NO_RULE: Expect = Expect::Violation("no-rule");

const TCP: How = How::Python("tcp(BLOCKED, 443)");
const TO_BLOCKED: Proof = Proof::To(v4(BLOCKED), 443);

/// A policy that must not be taken for another, and runs nothing.
const fn invalid(name: &'static str, policy: &'static str) -> Attack {
    attack(name, Layer::Policy, TCP, TO_BLOCKED, Expect::Exit(112)).policy(policy)
}

/// A policy of which a part does not work, which turns nothing off.
const fn partial(name: &'static str, policy: &'static str) -> Attack {
    attack(name, Layer::Connect, TCP, TO_BLOCKED, NO_RULE).policy(policy)
}

/// A name that only looks as one that is allowed.
const fn resembles(name: &'static str, how: How, asked: &'static str) -> Attack {
    attack(name, Layer::Resolver, how, Proof::Question(asked), NAME)
}

const WILDCARD: &str = "
version: 1
jobs: {default: {allow: [{host: '*.wild.test'}]}}
";

pub(super) const ATTACKS: &[Attack] = &[
    invalid("a_misspelt_key", "version: 1\njobs: {default: {alow: []}}"),
    invalid(
        "a_misspelt_mode",
        "version: 1\nmode: enforced\njobs: {default: {allow: []}}",
    ),
    invalid(
        "a_key_that_is_given_twice",
        "
version: 1
mode: enforce
mode: audit
jobs: {default: {allow: []}}
",
    ),
    invalid(
        "a_job_that_is_given_twice",
        "
version: 1
jobs:
  default: {allow: []}
  default: {allow: [{cidr: 198.51.100.20/32}]}
",
    ),
    invalid(
        "a_rule_that_cannot_be_read",
        "version: 1\njobs: {default: {allow: [{cidr: 198.51.100.20/33}]}}",
    ),
    invalid(
        "a_cidr_with_bits_of_the_host",
        "version: 1\njobs: {default: {allow: [{cidr: 198.51.100.20/8}]}}",
    ),
    invalid(
        "a_wildcard_for_everything",
        "version: 1\njobs: {default: {allow: [{host: '*'}]}}",
    ),
    invalid(
        "a_wildcard_inside_a_name",
        "version: 1\njobs: {default: {allow: [{host: 'a.*.test'}]}}",
    ),
    invalid(
        "a_port_out_of_range",
        "version: 1\njobs: {default: {allow: [{host: a.test, ports: [65979]}]}}",
    ),
    invalid(
        "an_alias_bomb",
        "
version: 1
a: &a [x, x, x, x, x, x, x, x, x]
b: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]
c: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b]
d: &d [*c, *c, *c, *c, *c, *c, *c, *c, *c]
e: &e [*d, *d, *d, *d, *d, *d, *d, *d, *d]
f: &f [*e, *e, *e, *e, *e, *e, *e, *e, *e]
jobs: {default: {allow: []}}
",
    ),
    invalid(
        "a_job_that_extends_itself",
        "
version: 1
jobs: {default: {extends: other}, other: {extends: default}}
",
    ),
    invalid("an_empty_policy", ""),
    invalid(
        "a_second_document",
        "
version: 1
jobs: {default: {allow: []}}
---
version: 1
jobs: {default: {allow: [{cidr: 198.51.100.20/32}]}}
",
    ),
    partial("a_job_without_rules", "version: 1\njobs: {default: {}}"),
    partial(
        "a_name_that_does_not_resolve",
        "
version: 1
jobs: {default: {allow: [{host: servfail.test}, {host: nowhere.test}]}}
",
    ),
    partial(
        "a_rule_for_another_protocol",
        "
version: 1
jobs: {default: {allow: [{host: blocked.test, ports: [443/udp], tls: off}]}}
",
    ),
    attack(
        "a_denied_name_under_an_allowed_wildcard",
        Layer::Resolver,
        How::Words(&["curl", "-sS", "-m", "5", "https://a.wild.test/"]),
        Proof::Question("a.wild.test"),
        Expect::Violation("denied"),
    )
    .policy(
        "
version: 1
jobs: {default: {allow: [{host: '*.wild.test'}], deny: [{host: a.wild.test}]}}
",
    ),
    attack(
        "a_policy_that_the_job_widens",
        Layer::Resolver,
        How::Shell(
            "
printf 'version: 1\\njobs: {default: {allow: [{host: blocked.test}]}}' > .jobfence.yml
for file in ../policy-*.yml; do cp .jobfence.yml \"$file\"; done
curl -sS -m 5 https://blocked.test/
",
        ),
        Proof::Question("blocked.test"),
        NAME,
    ),
    attack(
        "a_mode_in_the_environment",
        Layer::Connect,
        TCP,
        TO_BLOCKED,
        NO_RULE,
    )
    .through(&[
        "env",
        "JOBFENCE_MODE=audit",
        "JOBFENCE_POLICY=/dev/null",
        "MODE=audit",
    ]),
    resembles(
        "a_longer_name",
        How::Words(&["curl", "-sS", "-m", "5", "https://notallowed.test/"]),
        "notallowed.test",
    ),
    resembles(
        "a_name_below",
        How::Words(&["curl", "-sS", "-m", "5", "https://secret.allowed.test/"]),
        "secret.allowed.test",
    ),
    resembles(
        "a_name_that_an_allowed_name_begins",
        How::Words(&[
            "curl",
            "-sS",
            "-m",
            "5",
            "https://allowed.test.blocked.test/",
        ]),
        "allowed.test.blocked.test",
    ),
    resembles(
        "letters_of_another_alphabet",
        // The first one is Cyrillic.
        How::Python(
            "
try: socket.getaddrinfo('\\u0430llowed.test'.encode('idna').decode(), 443)
except OSError: pass
",
        ),
        "xn--llowed-2nf.test",
    ),
    resembles(
        "a_wildcards_own_name",
        How::Words(&["curl", "-sS", "-m", "5", "https://wild.test/"]),
        "wild.test",
    )
    .policy(WILDCARD),
    resembles(
        "a_name_that_ends_as_a_wildcard",
        How::Words(&["curl", "-sS", "-m", "5", "https://evilwild.test/"]),
        "evilwild.test",
    )
    .policy(WILDCARD),
];
