//! What a person sees, on standard error: standard output is the command's own.

use std::{
    collections::{BTreeMap, HashSet},
    env,
    fmt::{self, Write as _},
    io::{self, IsTerminal, Write as _},
    net::IpAddr,
};

use anyhow::Error;
use jobfence_agent::{
    audit::{
        event::{Event, Kind, ProcessInfo, Verdict},
        ledger::{Summary, Tally},
        refused::{MOST, destination, lineage, meaning, suggestion},
    },
    job::{State, run::Outcome},
};
use rustix::fs::fstat;
use tracing::{Level, Metadata};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// Sends diagnostics of `level` and above to standard error. `JOBFENCE_LOG` sets another level
/// (`debug`, …).
pub(crate) fn init_diagnostics(level: &str) {
    let filter = EnvFilter::try_from_env("JOBFENCE_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let format = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        // The journal adds its own.
        .without_time();
    if is_journal() {
        format
            .with_level(false)
            .with_ansi(false)
            .with_writer(Journal)
            .init();
    } else {
        format
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .init();
    }
}

/// Whether standard error is the journal: systemd says which file that is (systemd.exec(5)), and what a
/// service starts can write elsewhere.
fn is_journal() -> bool {
    let said = env::var("JOURNAL_STREAM").ok();
    let is = fstat(io::stderr()).ok();
    said.zip(is)
        .is_some_and(|(said, is)| said == format!("{}:{}", is.st_dev, is.st_ino))
}

/// Standard error, each line with its level as the journal reads it (sd-daemon(3)).
struct Journal;

/// A line of that.
struct Line(&'static [u8]);

impl<'a> MakeWriter<'a> for Journal {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(b"<6>")
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line {
        Line(match *meta.level() {
            Level::ERROR => b"<3>",
            Level::WARN => b"<4>",
            Level::INFO => b"<6>",
            Level::DEBUG | Level::TRACE => b"<7>",
        })
    }
}

impl io::Write for Line {
    /// Called once an event, with the whole of it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        io::stderr().write_all(&[self.0, line].concat())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Prints an error. Its text holds its causes.
pub(crate) fn error(error: &Error) {
    emit(&format!("jobfence: {error}\n"));
}

/// Prints the report of a job.
pub(crate) fn print(outcome: &Outcome) {
    emit(&render(outcome, Style::of(&io::stderr())));
}

/// A report that cannot be written changes nothing of the verdict.
pub(crate) fn emit(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// How text is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    Plain,
    Colour,
}

impl Style {
    /// Colour on a terminal only, and there unless `NO_COLOR` is set.
    pub(crate) fn of(stream: &impl IsTerminal) -> Self {
        if stream.is_terminal() && env::var_os("NO_COLOR").is_none() {
            Self::Colour
        } else {
            Self::Plain
        }
    }

    pub(crate) fn paint(self, code: &str, text: impl fmt::Display) -> String {
        match self {
            Self::Plain => text.to_string(),
            Self::Colour => format!("\x1b[{code}m{text}\x1b[0m"),
        }
    }

    pub(crate) fn red(self, text: impl fmt::Display) -> String {
        self.paint("1;31", text)
    }

    pub(crate) fn green(self, text: impl fmt::Display) -> String {
        self.paint("32", text)
    }

    pub(crate) fn dim(self, text: impl fmt::Display) -> String {
        self.paint("2", text)
    }
}

/// Attempts at one destination, for one reason.
struct Group<'a> {
    first: &'a Event,
    violation: bool,
    count: u64,
    processes: Vec<(&'a ProcessInfo, u64)>,
}

/// Attempts that belong together are shown together: what they were after, and why not.
fn group(summary: &Summary, verdict: Verdict) -> Vec<Group<'_>> {
    // A connection that said which name it was for is not told of twice.
    let told: HashSet<_> = summary
        .tallies
        .iter()
        .filter(|tally| matches!(tally.event.kind, Kind::Tls | Kind::Http))
        .filter_map(|tally| address(&tally.event))
        .collect();
    let mut places: BTreeMap<(String, &str), usize> = BTreeMap::new();
    let mut groups: Vec<Group<'_>> = Vec::new();
    for Tally { event, count, .. } in &summary.tallies {
        if event.verdict != verdict || event.kind == Kind::Job {
            continue;
        }
        // The question for an allowed name is only the way to it, and so is a connection.
        let is_way = event.kind == Kind::Dns
            || event.kind == Kind::Connect
                && address(event).is_some_and(|address| told.contains(&address));
        if verdict == Verdict::Allow && is_way {
            continue;
        }
        let place = *places
            .entry((destination(event), &*event.reason))
            .or_insert_with(|| {
                groups.push(Group {
                    first: event,
                    violation: false,
                    count: 0,
                    processes: Vec::new(),
                });
                groups.len() - 1
            });
        let group = &mut groups[place];
        group.count = group.count.saturating_add(*count);
        group.violation |= event.violation;
        if let Some(process) = &event.process {
            let same = |(known, _): &&mut (&ProcessInfo, u64)| known.label() == process.label();
            match group.processes.iter_mut().find(same) {
                Some((_, times)) => *times = times.saturating_add(*count),
                None => group.processes.push((process, *count)),
            }
        }
    }
    groups
}

/// The address and port of an attempt.
fn address(event: &Event) -> Option<(IpAddr, u16)> {
    let dst = event.dst.as_ref()?;
    dst.ip.zip(dst.port)
}

fn render(outcome: &Outcome, style: Style) -> String {
    let mut text = String::new();
    if let Some(error) = &outcome.not_executed {
        _ = writeln!(text, "jobfence: {error}");
    }
    text + &render_summary(&outcome.summary, style)
}

/// The report of a job of the agent, which is printed elsewhere.
pub(crate) fn plain(summary: &Summary) -> String {
    render_summary(summary, Style::Plain)
}

/// What a job did, in the words that its end is told in.
pub(crate) fn render_summary(summary: &Summary, style: Style) -> String {
    let mut text = String::new();
    let refused = group(summary, Verdict::Deny);
    let allowed = group(summary, Verdict::Allow);
    let (violations, excused): (Vec<_>, Vec<_>) = refused.iter().partition(|group| group.violation);
    headline(&mut text, summary, &violations, &refused, style);

    for group in violations.iter().take(MOST) {
        refusal(&mut text, group, style);
    }
    rest(&mut text, violations.len());
    for group in excused.iter().take(MOST) {
        let mark = match summary.state {
            State::Auditing => "would be refused:",
            _ => "refused, not a violation:",
        };
        let what = destination(group.first);
        let line = format!(
            "  {mark} {what} — {}{}",
            meaning(group.first),
            times(group.count)
        );
        _ = writeln!(text, "{}", style.dim(line));
        if summary.state == State::Auditing {
            processes(&mut text, group, style);
            if let Some(line) = suggestion(group.first) {
                _ = writeln!(text, "      to allow it: {line}");
            }
        }
    }
    rest(&mut text, excused.len());
    if let (Some(policy), false) = (&summary.policy, refused.is_empty()) {
        _ = writeln!(text, "  policy: {policy}");
    }
    for group in allowed.iter().take(MOST) {
        let rule = group.first.rule.as_deref().unwrap_or("-");
        let what = destination(group.first);
        let line = format!("allowed: {what}{}  ({rule})", times(group.count));
        _ = writeln!(text, "  {}", style.green(line));
    }
    rest(&mut text, allowed.len());
    if let State::Advisory(reasons) = &summary.state {
        for reason in reasons {
            _ = writeln!(text, "  advisory, not a guarantee: {reason}");
        }
    }
    text
}

/// The one line that says what happened.
fn headline(
    text: &mut String,
    summary: &Summary,
    violations: &[&Group<'_>],
    refused: &[Group<'_>],
    style: Style,
) {
    let state = match &summary.state {
        State::Enforcing => "enforcing",
        State::Auditing => "auditing",
        State::Advisory(_) => "advisory",
        State::Failed(reason) => {
            _ = writeln!(
                text,
                "jobfence: {} {reason}",
                style.red("the fence failed:")
            );
            "failed"
        }
    };
    let verdict = if !violations.is_empty() {
        let attempts = summary.violations;
        let places = violations.len();
        style.red(format!(
            "{places} destination{} refused ({attempts} attempt{})",
            plural(places as u64),
            plural(attempts)
        ))
    } else if summary.state == State::Auditing && !refused.is_empty() {
        format!("{} would be refused; nothing was", refused.len())
    } else {
        if matches!(summary.state, State::Failed(_)) {
            "nothing was refused until then".to_owned()
        } else {
            let counts = if refused.is_empty() {
                ""
            } else {
                " that counts"
            };
            style.green(format!("nothing was refused{counts}"))
        }
    };
    _ = writeln!(text, "jobfence: {verdict} · {state}");
}

fn refusal(text: &mut String, group: &Group<'_>, style: Style) {
    let what = style.red(format!("✗ {}", destination(group.first)));
    let name = match (&group.first.dst, &group.first.dns) {
        (Some(dst), None) if dst.name.is_some() => {
            dst.ip.map(|ip| format!(" [{ip}]")).unwrap_or_default()
        }
        _ => String::new(),
    };
    let why = meaning(group.first);
    let rule = match &group.first.rule {
        Some(rule) if !why.contains(&**rule) => format!(" ({rule})"),
        _ => String::new(),
    };
    let count = times(group.count);
    _ = writeln!(text, "  {what}{name} — {why}{rule}{count}");
    processes(text, group, style);
    if let Some(line) = suggestion(group.first) {
        _ = writeln!(text, "      to allow it: {line}");
    }
}

/// Who tried, each with the chain of processes that led to it.
fn processes(text: &mut String, group: &Group<'_>, style: Style) {
    for (process, _) in group.processes.iter().take(3) {
        _ = writeln!(text, "      by {}", lineage(process));
    }
    if group.processes.len() > 3 {
        let more = format!("and {} other processes", group.processes.len() - 3);
        _ = writeln!(text, "      {}", style.dim(more));
    }
}

fn rest(text: &mut String, count: usize) {
    if count > MOST {
        _ = writeln!(text, "  … and {} more; the log has them all", count - MOST);
    }
}

fn times(count: u64) -> String {
    if count == 1 {
        String::new()
    } else {
        format!(", {count}×")
    }
}

fn plural(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}
