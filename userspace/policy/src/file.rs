//! The keys of a policy file, and what each may hold; of a host's policy and of a preset, too.
//!
//! This is the grammar: it builds [`Rule`]s with their places and knows nothing of what they
//! mean together. `policies/schema.json` says the same to editors; a test compares the keys.

use std::sync::Arc;

use jobfence_abi::{MAX_RANGES, PortRange, proto};
use time::Date;

use crate::error::{At, Fault, Pos, Problem, Source, is_deceptive, nearest, quote};
use crate::limits::{self, Settings};
use crate::mode::{Mode, OnViolation};
use crate::ports;
use crate::presets::{Preset, Presets};
use crate::target::{self, Layer, Rule, Target};
use crate::yaml::{Kind, Node, Reader};

/// Keys at the top of the file.
pub(crate) const TOP_KEYS: &[&str] = &["version", "mode", "on_violation", "limits", "jobs"];
/// Keys of a job.
pub(crate) const JOB_KEYS: &[&str] = &["extends", "allow", "deny", "limits"];
/// Keys of an `allow` rule.
pub(crate) const ALLOW_KEYS: &[&str] = &[
    "host", "cidr", "use", "ports", "tls", "http", "reason", "owner", "private", "expires",
];
/// Keys of a `deny` rule.
pub(crate) const DENY_KEYS: &[&str] = &["host", "cidr", "use", "ports", "reason", "owner", "fail"];
/// Keys at the top of a host's own policy.
pub(crate) const HOST_KEYS: &[&str] = &[
    "version",
    "mode",
    "on_violation",
    "limits",
    "ceiling",
    "baseline",
    "deny",
];
/// Keys at the top of a preset.
pub(crate) const PRESET_KEYS: &[&str] = &["version", "allow", "deny"];
/// Keys of the language that this version does not know how to honour yet.
const LATER_KEYS: &[&str] = &["dns_types", "log", "protocol"];

/// A place in a file, and the keys that may stand there.
type Place = (&'static str, &'static [&'static str]);

const TOP: Place = ("at the top of the file", TOP_KEYS);
const HOST: Place = ("at the top of a host's policy", HOST_KEYS);
const PRESET: Place = ("at the top of a preset", PRESET_KEYS);
const JOB: Place = ("in a job", JOB_KEYS);
const ALLOW: Place = ("in an `allow` rule", ALLOW_KEYS);
const DENY: Place = ("in a `deny` rule", DENY_KEYS);
const LIMITS: Place = ("in `limits`", limits::KEYS);

/// Where a key that stands in the wrong place may belong.
const PLACES: [Place; 6] = [TOP, JOB, ALLOW, DENY, LIMITS, HOST];

/// A file's content.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) mode: Mode,
    pub(crate) on_violation: OnViolation,
    pub(crate) limits: Settings,
    /// In the file's order; their names are distinct.
    pub(crate) jobs: Vec<JobEntry>,
    /// The key `jobs`.
    pub(crate) jobs_at: At,
}

/// An entry of `jobs`, without what it inherits.
#[derive(Debug, Default)]
pub(crate) struct JobEntry {
    pub(crate) name: String,
    pub(crate) extends: Option<(String, At)>,
    pub(crate) allow: Vec<Item>,
    pub(crate) deny: Vec<Item>,
    pub(crate) limits: Settings,
}

/// An item of a list of rules.
#[derive(Debug)]
pub(crate) enum Item {
    /// A rule.
    Rule(Rule),
    /// The rules of a preset.
    Use(Arc<Preset>),
}

/// The content of a host's policy, every key of it optional.
#[derive(Debug, Default)]
pub(crate) struct HostFile {
    pub(crate) mode: Option<Mode>,
    pub(crate) on_violation: Option<OnViolation>,
    pub(crate) limits: Settings,
    pub(crate) ceiling: Option<Vec<Item>>,
    pub(crate) baseline: Vec<Item>,
    pub(crate) deny: Vec<Item>,
}

/// The two kinds of rules.
#[derive(Clone, Copy, PartialEq)]
enum List {
    Allow,
    Deny,
}

/// What is known while a file is read.
#[derive(Clone, Copy)]
struct Context<'a> {
    source: &'a Source,
    /// `None` where none may be used.
    presets: Option<&'a Presets>,
}

/// Reads a policy.
pub(crate) fn read(source: &Source, presets: &Presets) -> Result<File, Problem> {
    let context = Context {
        source,
        presets: Some(presets),
    };
    let mut mode = Mode::default();
    let mut on_violation = OnViolation::default();
    let mut limits = Settings::default();
    let mut jobs = None;
    let empty =
        "the smallest policy is `version: 1` and `jobs: {default: {}}`, which allows nothing";
    read_top(source, TOP, empty, |reader, at, key, value| {
        match key {
            "mode" => mode = read_mode(value)?,
            "on_violation" => on_violation = read_on_violation(value)?,
            "limits" => limits = read_limits(reader, &value)?,
            _ => jobs = Some((read_jobs(reader, context, &value)?, at)),
        }
        Ok(())
    })?;
    let (jobs, jobs_at) = jobs.ok_or_else(|| {
        Fault::new("the key `jobs` is missing")
            .hint("`jobs: {default: {}}` is a policy that allows nothing")
            .at(Pos::START)
    })?;
    // Only now: jobs that are not indented are keys beside `jobs`, and say more.
    if jobs.is_empty() {
        return Err(Fault::new("no job is described")
            .hint("`default` is the job without an entry of its own; `jobs: {default: {}}` allows nothing")
            .at(jobs_at));
    }
    Ok(File {
        mode,
        on_violation,
        limits,
        jobs,
        jobs_at,
    })
}

/// Reads a host's policy.
pub(crate) fn read_host(source: &Source, presets: &Presets) -> Result<HostFile, Problem> {
    let context = Context {
        source,
        presets: Some(presets),
    };
    let mut host = HostFile::default();
    let empty =
        "the smallest policy of a host is `version: 1`, which leaves all to the repositories";
    read_top(source, HOST, empty, |reader, _, key, value| {
        match key {
            "mode" => host.mode = Some(read_mode(value)?),
            "on_violation" => host.on_violation = Some(read_on_violation(value)?),
            "limits" => host.limits = read_limits(reader, &value)?,
            "ceiling" => host.ceiling = Some(read_rules(reader, context, List::Allow, &value)?),
            "baseline" => host.baseline = read_rules(reader, context, List::Allow, &value)?,
            _ => host.deny = read_rules(reader, context, List::Deny, &value)?,
        }
        Ok(())
    })?;
    Ok(host)
}

/// Reads a preset: its `allow` and `deny` rules.
pub(crate) fn read_preset(source: &Source) -> Result<(Vec<Rule>, Vec<Rule>), Problem> {
    let context = Context {
        source,
        presets: None,
    };
    let (mut allow, mut deny) = (Vec::new(), Vec::new());
    let empty = "the smallest preset is `version: 1` and a list of rules, `allow` or `deny`";
    read_top(source, PRESET, empty, |reader, _, key, value| {
        match key {
            "allow" => allow = read_rules(reader, context, List::Allow, &value)?,
            _ => deny = read_rules(reader, context, List::Deny, &value)?,
        }
        Ok(())
    })?;
    let rules = |items: Vec<Item>| {
        let rule = |item| match item {
            Item::Rule(rule) => Some(rule),
            // Refused where it was read: the context has no presets.
            Item::Use(_) => None,
        };
        items.into_iter().filter_map(rule).collect::<Vec<_>>()
    };
    let (allow, deny) = (rules(allow), rules(deny));
    if allow.is_empty() && deny.is_empty() {
        return Err(Fault::new("the preset has no rules")
            .hint(empty)
            .at(Pos::START));
    }
    Ok((allow, deny))
}

/// Reads the keys at the top of a file, all of `place`. `version` must be among them; the others
/// go to `entry`. An empty file is told the hint `empty`.
fn read_top<'t>(
    source: &'t Source,
    place: Place,
    empty: &str,
    mut entry: impl FnMut(&mut Reader<'t>, At, &str, Node<'t>) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let mut reader = Reader::new(source.text());
    let root = reader.begin()?;
    if root.is_null() {
        return Err(Fault::new("the policy is empty").hint(empty).at(Pos::START));
    }
    let mut version = false;
    let last = place.1.last().copied().unwrap_or_default();
    let expected = format!("a map of keys such as `version` and `{last}`");
    check_space(&root, &expected, place)?;
    reader.map(&root, &expected, |reader, at, key, value| {
        if key == "version" {
            version = true;
            return check_version(value);
        }
        if !place.1.contains(&key) {
            let fault = unknown_key(key, place);
            return Err(if place == TOP && is_job(reader, key, &value) {
                let hint = "it looks like a job: indent it, below `jobs`";
                fault.hint(hint).at(at)
            } else {
                fault.at(at)
            });
        }
        entry(reader, at, key, value)
    })?;
    reader.finish()?;
    if version {
        return Ok(());
    }
    Err(Fault::new("the key `version` is missing")
        .hint("begin the file with `version: 1`")
        .at(Pos::START))
}

/// Refuses text such as `version:1` where the map of a `place` is `expected`.
fn check_space(node: &Node<'_>, expected: &str, (_, keys): Place) -> Result<(), Problem> {
    let Kind::Text(text) = &node.kind else {
        return Ok(());
    };
    match text.split_once(':') {
        Some((key, _)) if keys.contains(&key) => Err(node
            .unexpected(expected)
            .hint(format!("put a space behind `{key}:`"))
            .at(node.at)),
        _ => Ok(()),
    }
}

/// Whether an unknown key has what a job has. Its value cannot be read then.
fn is_job(reader: &mut Reader<'_>, key: &str, value: &Node<'_>) -> bool {
    let known = PLACES.iter().any(|(_, keys)| keys.contains(&key));
    let first = reader.first_key(value);
    !known && (key == "default" || first.is_some_and(|first| JOB_KEYS.contains(&&*first)))
}

fn read_mode(value: Node<'_>) -> Result<Mode, Problem> {
    word(value, &[("enforce", Mode::Enforce), ("audit", Mode::Audit)])
}

fn read_on_violation(value: Node<'_>) -> Result<OnViolation, Problem> {
    let words = [
        ("fail", OnViolation::Fail),
        ("kill", OnViolation::Kill),
        ("warn", OnViolation::Warn),
    ];
    word(value, &words)
}

fn check_version(value: Node<'_>) -> Result<(), Problem> {
    let at = value.at;
    let text = value
        .text_or_number("the number 1")
        .map_err(|problem| problem.or_hint("write `version: 1`"))?;
    match &*text {
        "1" => Ok(()),
        other => Err(
            Fault::new(format!("version {} is not supported", quote(other)))
                .hint("this version of jobfence reads `version: 1`")
                .at(at),
        ),
    }
}

/// One of a few words.
fn word<T: Copy>(value: Node<'_>, words: &[(&str, T)]) -> Result<T, Problem> {
    let at = value.at;
    let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
    let expected = format!("one of `{}`", names.join("`, `"));
    if let Kind::Text(text) = &value.kind
        && let Some((_, found)) = words.iter().find(|(name, _)| name == text)
    {
        return Ok(*found);
    }
    let fault = value.unexpected(&expected);
    let switch = match value.switch() {
        Some(true) => "verify",
        Some(false) => "off",
        None => "",
    };
    let switch = names.iter().copied().find(|name| *name == switch);
    let text = value.text("").ok();
    Err(match switch.or_else(|| nearest(&text?, names)) {
        Some(name) => fault.hint(format!("did you mean `{name}`?")),
        None => fault,
    }
    .at(at))
}

fn read_jobs(
    reader: &mut Reader<'_>,
    context: Context<'_>,
    value: &Node<'_>,
) -> Result<Vec<JobEntry>, Problem> {
    let mut jobs = Vec::new();
    if value.is_null() {
        return Ok(jobs);
    }
    let expected = "a map of jobs";
    if !matches!(value.kind, Kind::Map) {
        return Err(value
            .unexpected(expected)
            .hint("write each job as a key: `default:`, and what it may reach below")
            .at(value.at));
    }
    reader.map(value, expected, |reader, at, name, value| {
        check_text(name).map_err(|fault| fault.at(at))?;
        jobs.push(read_job(reader, context, name, &value)?);
        Ok(())
    })?;
    Ok(jobs)
}

fn read_job(
    reader: &mut Reader<'_>,
    context: Context<'_>,
    name: &str,
    value: &Node<'_>,
) -> Result<JobEntry, Problem> {
    let mut job = JobEntry {
        name: name.into(),
        ..JobEntry::default()
    };
    if value.is_null() {
        return Ok(job);
    }
    let expected = "a map with `extends`, `allow`, `deny` or `limits`";
    check_space(value, expected, JOB)?;
    if !matches!(value.kind, Kind::Map) && JOB_KEYS.contains(&name) {
        return Err(value
            .unexpected(expected)
            .hint(format!(
                "`{name}` is read as the name of a job here: indent it, below a job such as `default`"
            ))
            .at(value.at));
    }
    reader.map(value, expected, |reader, at, key, value| {
        match key {
            "extends" => {
                let at = value.at;
                job.extends = Some((value.text("the name of a job")?.into_owned(), at));
            }
            "allow" => job.allow = read_rules(reader, context, List::Allow, &value)?,
            "deny" => job.deny = read_rules(reader, context, List::Deny, &value)?,
            "limits" => job.limits = read_limits(reader, &value)?,
            _ => return Err(unknown_key(key, JOB).at(at)),
        }
        Ok(())
    })?;
    Ok(job)
}

fn read_limits(reader: &mut Reader<'_>, value: &Node<'_>) -> Result<Settings, Problem> {
    let mut limits = Settings::default();
    if !value.is_null() {
        let expected = "a map of limits";
        check_space(value, expected, LIMITS)?;
        reader.map(value, expected, |_, at, key, value| {
            if !limits::KEYS.contains(&key) {
                return Err(unknown_key(key, LIMITS).at(at));
            }
            parsed(value, "a number", |text| limits.set(key, text))
        })?;
    }
    Ok(limits)
}

fn read_rules(
    reader: &mut Reader<'_>,
    context: Context<'_>,
    list: List,
    value: &Node<'_>,
) -> Result<Vec<Item>, Problem> {
    let mut rules = Vec::new();
    // What is left of a list whose rules are all commented out.
    if value.is_null() {
        return Ok(rules);
    }
    let expected = "a list of rules";
    if !matches!(value.kind, Kind::List) {
        let hint = match reader.first_key(value) {
            Some(key) if key.starts_with('-') => {
                format!("put a space behind the `-` of {}", quote(&key))
            }
            _ => "write each rule as an item of a list: `- host: git.example.com`".into(),
        };
        return Err(value.unexpected(expected).hint(hint).at(value.at));
    }
    reader.list(value, expected, |reader, item| {
        rules.push(read_rule(reader, context, list, &item)?);
        Ok(())
    })?;
    Ok(rules)
}

/// What to do about an item of a list of rules that is no map.
fn rule_hint(context: Context<'_>, item: &Node<'_>) -> String {
    let whole = "write a rule as `- host: git.example.com`";
    let Kind::Text(text) = &item.kind else {
        return whole.into();
    };
    if context
        .presets
        .is_some_and(|presets| presets.get(text).is_ok())
    {
        return format!("write `- use: {text}`");
    }
    match target::guess(text) {
        Some(key) => format!("write `- {}", key.trim_start_matches('`')),
        None => whole.into(),
    }
}

fn read_rule(
    reader: &mut Reader<'_>,
    context: Context<'_>,
    list: List,
    node: &Node<'_>,
) -> Result<Item, Problem> {
    let place = match list {
        List::Allow => ALLOW,
        List::Deny => DENY,
    };
    let mut preset = None;
    let mut other_key = None;
    let mut expires = None;
    let mut location = None;
    let mut target = None;
    let mut ports = None;
    let mut reason = None;
    let mut owner = None;
    let mut private = None;
    let mut tls = None;
    let mut http = None;
    let mut fail = true;
    let expected = "a rule such as `host: git.example.com`";
    check_space(node, expected, place)?;
    if !matches!(node.kind, Kind::Map) {
        let hint = rule_hint(context, node);
        return Err(node.unexpected(expected).hint(hint).at(node.at));
    }
    reader.map(node, expected, |reader, at, key, value| {
        if !place.1.contains(&key) {
            return Err(unknown_key(key, place).at(at));
        }
        if location.is_none() {
            let begin = reader.place(key).ok_or_else(|| {
                Fault::new("a rule's keys must stand in the file as they are, without escapes")
                    .hint(format!("write `{key}`"))
                    .at(at)
            })?;
            location = Some(context.source.location(begin));
        }
        if matches!(key, "host" | "cidr" | "use") && value.is_empty() {
            return Err(value
                .unexpected("what the rule is about")
                .hint(format!("write it behind `{key}:`"))
                .at(value.at));
        }
        if key == "use" {
            preset = Some(read_use(context, list, value)?);
            return Ok(());
        }
        other_key = Some(at);
        match key {
            "host" | "cidr" if target.is_some() => {
                return Err(Fault::new("a rule has either `host` or `cidr`, not both")
                    .hint("make two rules of it")
                    .at(at));
            }
            "host" | "cidr" if matches!(value.kind, Kind::List) => {
                return Err(value
                    .unexpected("one host or network")
                    .hint("make a rule for each")
                    .at(value.at));
            }
            "host" => target = Some(parsed(value, "a host name", target::host)?),
            "cidr" => {
                target = Some(parsed(
                    value,
                    "a network such as 198.51.100.0/24",
                    target::cidr,
                )?)
            }
            "ports" => ports = Some((read_ports(reader, at, &value)?, at)),
            "reason" => reason = Some(prose(value)?),
            "owner" => owner = Some(prose(value)?),
            "private" => private = Some((value.boolean()?, at)),
            "tls" => tls = Some((read_check(value)?, at)),
            "http" => http = Some((read_check(value)?, at)),
            "expires" => expires = Some(read_date(value)?),
            _ => fail = value.boolean()?,
        }
        Ok(())
    })?;
    if let Some(preset) = preset {
        return match other_key {
            None => Ok(Item::Use(preset)),
            Some(at) => Err(Fault::new("`use` takes a preset as it is")
                .hint("`use` is the only key of its item; write a rule of your own beside it")
                .at(at)),
        };
    }
    let (target, location) = target.zip(location).ok_or_else(|| {
        let keys = "`host: git.example.com` or `cidr: 198.51.100.0/24`";
        match context.presets {
            Some(_) => Fault::new("the rule has none of `host`, `cidr` and `use`")
                .hint(format!("say what it is about: {keys}; or `use` a preset")),
            None => Fault::new("the rule has neither `host` nor `cidr`")
                .hint(format!("say what it is about: {keys}")),
        }
        .at(node.at)
    })?;
    if let Some((true, at)) = private
        && !matches!(target, Target::Host(_))
    {
        return Err(Fault::new(
            "`private` says what a name may resolve to, and this rule has no name",
        )
        .hint("remove it")
        .at(at));
    }
    let ports = match list {
        List::Allow => allowed_ports(&target, ports, tls, http, node.at)?,
        List::Deny => ports.map_or_else(Vec::new, |(ports, _)| ports),
    };
    Ok(Item::Rule(Rule {
        target,
        ports,
        reason,
        owner,
        private: private.is_some_and(|(private, _)| private),
        expires,
        fail,
        layer: Layer::Repository,
        location,
    }))
}

/// The preset that `use` names.
fn read_use(context: Context<'_>, list: List, value: Node<'_>) -> Result<Arc<Preset>, Problem> {
    let at = value.at;
    let expected = "the name of a preset";
    if matches!(value.kind, Kind::List) {
        let fault = value.unexpected(expected);
        return Err(fault.hint("write an item with `use` for each").at(at));
    }
    let name = value.text_or_number(expected)?;
    let Some(presets) = context.presets else {
        return Err(Fault::new("a preset cannot use another one")
            .hint("write the rules out")
            .at(at));
    };
    let preset = presets.get(&name).map_err(|fault| fault.at(at))?;
    let (rules, verb, other) = match list {
        List::Allow => (&preset.allow, "allows", "deny"),
        List::Deny => (&preset.deny, "denies", "allow"),
    };
    if rules.is_empty() {
        return Err(
            Fault::new(format!("the preset {} {verb} nothing", quote(&name)))
                .hint(format!("use it under `{other}`"))
                .at(at),
        );
    }
    Ok(Arc::clone(preset))
}

/// A day, as `2027-03-31`.
fn read_date(value: Node<'_>) -> Result<Date, Problem> {
    let expected = "a date such as 2027-03-31";
    parsed(value, expected, |text| {
        date(text).ok_or_else(|| {
            Fault::new(format!("{} is not a date", quote(text)))
                .hint("write year, month and day of the calendar as in 2027-03-31")
        })
    })
}

fn date(text: &str) -> Option<Date> {
    let digits = |text: &str, length: usize| {
        let fits = text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|_: &u16| fits)
    };
    let (year, rest) = text.split_once('-')?;
    let (month, day) = rest.split_once('-')?;
    let month = u8::try_from(digits(month, 2)?).ok()?;
    let day = u8::try_from(digits(day, 2)?).ok()?;
    let year = digits(year, 4)?.into();
    Date::from_calendar_date(year, month.try_into().ok()?, day).ok()
}

/// `verify` or `off`.
fn read_check(value: Node<'_>) -> Result<bool, Problem> {
    word(value, &[("verify", true), ("off", false)])
}

/// The ports of an `allow` rule, with what the rule asks of connections to them.
fn allowed_ports(
    target: &Target,
    ports: Option<(Vec<PortRange>, At)>,
    tls: Option<(bool, At)>,
    http: Option<(bool, At)>,
    rule: At,
) -> Result<Vec<PortRange>, Problem> {
    let (ports, at) = ports.unwrap_or_else(|| (vec![ports::HTTPS], rule));
    if !matches!(target, Target::Host(_)) {
        let verify = [("tls", tls), ("http", http)]
            .into_iter()
            .find_map(|(key, value)| Some((key, value.filter(|(verify, _)| *verify)?.1)));
        return match verify {
            None => Ok(ports),
            Some((key, at)) => Err(Fault::new(format!(
                "`{key}: verify` looks for an allowed name, and this rule allows an address whatever the name"
            ))
            .hint("remove it, or allow the host by its name")
            .at(at)),
        };
    }
    let [tls, http] = [tls, http].map(|key| key.map(|(verify, _)| verify));
    let quic = |range: &PortRange| range.contains(proto::UDP, 443);
    if tls != Some(false) && ports.iter().any(quic) {
        return Err(
            Fault::new("443/udp is QUIC, in which the server name cannot be verified")
                .hint("remove it, clients go on with TCP; or add `tls: off` to a rule of its own for it, which lets every host at the same addresses be reached")
                .at(at),
        );
    }
    let ports = ports::checked(&ports, tls, http);
    count_ranges(&ports, at)?;
    Ok(ports)
}

/// Refuses more ranges than one address can hold in the kernel.
fn count_ranges(ranges: &[PortRange], at: At) -> Result<(), Problem> {
    // Counted as the kernel gets them: a range across DNS is two.
    let count = ports::subtract(ranges, &ports::DNS).len();
    if count <= MAX_RANGES {
        return Ok(());
    }
    Err(Fault::new(format!(
        "the rule has {count} separate port ranges, at most {MAX_RANGES} are possible"
    ))
    .hint("join some of them to wider ranges")
    .at(at))
}

fn read_ports(
    reader: &mut Reader<'_>,
    at: At,
    value: &Node<'_>,
) -> Result<Vec<PortRange>, Problem> {
    let expected = "a list of ports";
    let one = match &value.kind {
        Kind::Number(digits) => Some(quote(digits)),
        Kind::Text(text) => Some(quote(text)),
        _ => None,
    };
    if let Some(one) = one {
        return Err(value
            .unexpected(expected)
            .hint(format!("write `ports: [{}]`", one.trim_matches('`')))
            .at(value.at));
    }
    let mut ranges = Vec::new();
    reader.list(value, expected, |_, item| {
        ranges.push(parsed(item, "a port", ports::parse)?);
        Ok(())
    })?;
    if ranges.is_empty() {
        return Err(Fault::new("the list of ports is empty")
            .hint(
                "without `ports`, an `allow` rule is for 443/tcp and a `deny` rule for everything",
            )
            .at(value.at));
    }
    let ranges = ports::normalise(ranges);
    count_ranges(&ranges, at)?;
    Ok(ranges)
}

/// Parses the text of `value`, or the number that it is.
fn parsed<T>(
    value: Node<'_>,
    what: &str,
    parse: impl FnOnce(&str) -> Result<T, Fault>,
) -> Result<T, Problem> {
    let at = value.at;
    let text = value.text_or_number(what)?;
    parse(&text).map_err(|fault| fault.at(at))
}

/// Text for people. It ends on terminals and in reports, and must not be able to play with them.
fn prose(value: Node<'_>) -> Result<Arc<str>, Problem> {
    let at = value.at;
    let text = value.text("text")?;
    // Block scalars end with a line break.
    let text = text.trim();
    check_text(text).map_err(|fault| fault.at(at))?;
    Ok(text.into())
}

fn check_text(text: &str) -> Result<(), Fault> {
    if text.is_empty() {
        return Err(Fault::new("the text is empty"));
    }
    match text.chars().find(|&c| is_deceptive(c)) {
        None => Ok(()),
        Some(c) => Err(Fault::new(format!(
            "the text holds a character that does not show ({})",
            c.escape_unicode()
        ))
        .hint("write it on one line, in printable characters")),
    }
}

fn unknown_key(key: &str, (place, keys): Place) -> Fault {
    if LATER_KEYS.contains(&key) {
        return Fault::new(format!(
            "{} is not supported by this version of jobfence",
            quote(key)
        ))
        .hint(
            "remove it: a key is never ignored, since the fence would not do what the file says",
        );
    }
    let fault = Fault::new(format!("unknown key {} {place}", quote(key)));
    if key == "<<" {
        return fault.hint("`extends` lets one job have the rules of another");
    }
    if let Some(&(elsewhere, _)) = PLACES.iter().find(|(_, keys)| keys.contains(&key)) {
        let elsewhere = if elsewhere == TOP.0 && [HOST.0, PRESET.0].contains(&place) {
            "at the top of a repository's policy"
        } else {
            elsewhere
        };
        return fault.hint(format!("`{key}` stands {elsewhere}"));
    }
    match nearest(key, keys.iter().copied()) {
        Some(near) => fault.hint(format!("did you mean `{near}`?")),
        None => fault.hint(format!("keys here are `{}`", keys.join("`, `"))),
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use serde_json::Value;

    use super::*;
    use crate::{HostPolicy, Policy};

    fn policies() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies")
    }

    #[test]
    fn the_schema_for_editors_has_the_keys_of_the_parser() {
        let schema = std::fs::read_to_string(policies().join("schema.json")).unwrap();
        let schema: Value = serde_json::from_str(&schema).unwrap();
        for (object, keys) in [
            ("", TOP_KEYS),
            ("/$defs/job", JOB_KEYS),
            ("/$defs/allow", ALLOW_KEYS),
            ("/$defs/deny", DENY_KEYS),
            ("/$defs/limits", limits::KEYS),
        ] {
            let object = schema.pointer(object).unwrap();
            let mut properties: Vec<&str> = object["properties"]
                .as_object()
                .unwrap()
                .keys()
                .map(String::as_str)
                .collect();
            let mut keys = keys.to_vec();
            properties.sort_unstable();
            keys.sort_unstable();
            assert_eq!(properties, keys);
            assert_eq!(object["additionalProperties"], false);
        }
    }

    #[test]
    fn every_example_is_a_valid_policy() {
        let mut examples = 0;
        for entry in std::fs::read_dir(policies().join("examples")).unwrap() {
            let path = entry.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            let policy = Policy::parse(&path.display().to_string(), &bytes)
                .unwrap_or_else(|error| panic!("{error}"));
            for name in policy.job_names() {
                policy.job(Some(name)).unwrap().prefixes().unwrap();
            }
            examples += 1;
        }
        assert!(examples >= 3, "the examples have moved");
    }

    #[test]
    fn the_policies_of_the_manual_are_valid() {
        let manual = std::fs::read_to_string(policies().join("README.md")).unwrap();
        let blocks = manual
            .split("```yaml\n")
            .skip(1)
            .map(|rest| rest.split("```").next().unwrap());
        let is_preset = |block: &&str| block.starts_with("# platform.yml");
        let (preset, blocks): (Vec<&str>, Vec<&str>) = blocks.partition(is_preset);
        let mut presets = Presets::built_in();
        let [preset] = preset[..] else {
            panic!("the preset of the manual has moved")
        };
        presets
            .insert("platform", "README.md", preset.as_bytes())
            .unwrap_or_else(|error| panic!("{error}"));
        let mut kinds = [0; 3];
        for block in blocks {
            let (kind, result) = if block.starts_with("# a host's policy") {
                let policy = HostPolicy::parse("README.md", block.as_bytes(), &presets);
                (0, policy.map(drop))
            } else if block.starts_with("version") {
                let policy = Policy::parse_with("README.md", block.as_bytes(), &presets);
                (1, policy.map(drop))
            } else {
                let rules: String = block.lines().map(|line| format!("    {line}\n")).collect();
                let policy = format!("version: 1\njobs:\n  default:\n{rules}");
                let policy = Policy::parse_with("README.md", policy.as_bytes(), &presets);
                (2, policy.map(drop))
            };
            result.unwrap_or_else(|error| panic!("{error}"));
            kinds[kind] += 1;
        }
        assert_eq!(kinds, [1, 4, 1]);
    }
}
