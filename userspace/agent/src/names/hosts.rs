//! The host's own `/etc/hosts`.
//!
//! A process that asks the C library for a name of that file gets the address without a DNS
//! question, so the agent grants these addresses before the job starts.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jobfence_policy::{Job, Name, NameVerdict};

use super::answer::{classify, furthest_class};
use super::message;

/// The names of a hosts file (hosts(5)) that `job` may ask for, with the addresses that it may
/// reach by them: what holds for an answer of a resolver holds here too.
///
/// Lines that do not parse are passed over, as the C library does.
#[must_use]
pub fn hosts(text: &str, job: &Job) -> Vec<(Name, Vec<IpAddr>)> {
    let mut found: BTreeMap<String, (Name, Vec<IpAddr>)> = BTreeMap::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        let Some(ip) = words.next().and_then(|word| word.parse().ok()) else {
            continue;
        };
        for name in words.filter_map(message::host_name) {
            let NameVerdict::Allowed(rules) = job.name_verdict(&name) else {
                continue;
            };
            if classify(ip) > furthest_class(&rules) {
                continue;
            }
            let key = name.as_str().to_owned();
            let (_, addresses) = found.entry(key).or_insert_with(|| (name, Vec::new()));
            if !addresses.contains(&ip) {
                addresses.push(ip);
            }
        }
    }
    found.into_values().collect()
}
