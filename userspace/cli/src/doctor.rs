//! `jobfence doctor`: what this host can enforce, what not, and the mend.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::Args;
use jobfence_agent::{
    control::client::SOCKET,
    doctor::{Check, Report, Status, Worth, examine},
};

use crate::report::Style;

/// Tell what this host can enforce, what not, and how to mend it.
///
/// Looks at everything that `jobfence run` stands on, by trying where that tells, and changes
/// nothing. Run it as the job will be run: `sudo jobfence doctor` from the account that builds.
///
/// Where the agent of this host refuses that user's sockets outside its jobs (`guard` in agent.yml),
/// what is tried is a job of the agent, which keeps its log (doctor-…) as it does those of others.
///
/// Exit status: 0 when a job's policy is enforced, 1 when that is advisory, since the job has means
/// to get around it, 2 when no job can be fenced.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct DoctorArguments {
    /// User whose jobs are meant, by login name or id [default: who called sudo, else root]
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Socket of the agent of this host
    #[arg(long, value_name = "SOCKET", default_value = SOCKET)]
    agent: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn doctor(arguments: &DoctorArguments) -> ExitCode {
    let report = examine(arguments.user.as_deref(), &arguments.agent);
    let text = if arguments.json {
        serde_json::to_string_pretty(&report).map(|text| text + "\n")
    } else {
        Ok(render(&report, Style::of(&io::stdout())))
    };
    let written = text
        .map_err(io::Error::from)
        .and_then(|text| io::stdout().write_all(text.as_bytes()));
    if let Err(error) = written {
        // Who closes the pipe, as `head` does, has what they wanted.
        if error.kind() != io::ErrorKind::BrokenPipe {
            crate::report::error(&error.into());
            return 2.into();
        }
    }
    match report.state {
        Worth::Enforcing => 0,
        Worth::Advisory => 1,
        Worth::Cannot => 2,
    }
    .into()
}

fn render(report: &Report, style: Style) -> String {
    let mut text = String::new();
    for check in &report.checks {
        line(&mut text, check, style);
    }
    _ = writeln!(text);
    summary(&mut text, report, style);
    let never = report.not_covered.join("; ");
    _ = writeln!(
        text,
        "{}",
        style.dim(format!("No fence of this kind covers: {never}."))
    );
    text
}

fn line(text: &mut String, check: &Check, style: Style) {
    let mark = match check.status {
        Status::Ok => style.green("ok      "),
        Status::Note => style.paint("36", "note    "),
        Status::Unknown => style.dim("unknown "),
        Status::Advisory => style.paint("1;33", "advisory"),
        Status::Cannot => style.red("cannot  "),
    };
    _ = writeln!(text, "{mark} {:<16} {}", check.id, check.found);
    if let Some(means) = &check.means {
        let mut label = "means:";
        for part in wrap(means) {
            _ = writeln!(text, "{:26}{} {part}", "", style.dim(format!("{label:6}")));
            label = "";
        }
    }
    if let Some(mend) = &check.mend {
        // In one line, since it may be a command to copy.
        _ = writeln!(text, "{:26}{} {mend}", "", style.dim("mend: "));
    }
}

/// Breaks a sentence into lines, so that it stays in its column.
fn wrap(text: &str) -> Vec<String> {
    /// Characters of a line.
    const WIDTH: usize = 66;
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// The one line that says what it comes to.
fn summary(text: &mut String, report: &Report, style: Style) {
    let ids = |status| {
        let with = report.checks.iter().filter(|check| check.status == status);
        with.map(|check| check.id).collect::<Vec<_>>().join(", ")
    };
    let user = report.user.as_deref().unwrap_or("nobody");
    _ = match report.state {
        Worth::Enforcing => writeln!(
            text,
            "{}: what a policy does not allow does not leave, for jobs of {user}",
            style.green("enforcing")
        ),
        Worth::Advisory => writeln!(
            text,
            "{}: what a policy does not allow is refused, but jobs of {user} have means to get \
             around that ({})",
            style.paint("1;33", "advisory"),
            ids(Status::Advisory)
        ),
        Worth::Cannot => writeln!(
            text,
            "{}: no job can be fenced here as it is ({})",
            style.red("cannot enforce"),
            ids(Status::Cannot)
        ),
    };
}

#[cfg(test)]
mod tests {
    use jobfence_agent::doctor::NOT_COVERED;

    use super::*;

    fn check(id: &'static str, status: Status, mend: Option<&str>) -> Check {
        Check {
            id,
            status,
            found: format!("found {id}"),
            means: mend.map(|_| "what it means".to_owned()),
            mend: mend.map(str::to_owned),
        }
    }

    fn report(state: Worth) -> Report {
        Report {
            version: "1.2.3",
            state,
            user: Some("ci".to_owned()),
            checks: vec![
                check("kernel", Status::Ok, None),
                check("user", Status::Advisory, Some("mend it")),
                check("cgroup", Status::Cannot, Some("mount it")),
            ],
            not_covered: NOT_COVERED,
        }
    }

    #[test]
    fn a_check_that_is_well_has_one_line_and_another_has_its_mend() {
        let text = render(&report(Worth::Advisory), Style::Plain);
        let lines: Vec<_> = text.lines().take(4).collect();
        assert_eq!(
            lines,
            [
                "ok       kernel           found kernel",
                "advisory user             found user",
                "                          means: what it means",
                "                          mend:  mend it",
            ]
        );
    }

    #[test]
    fn what_a_finding_means_stays_in_its_column_and_loses_no_word() {
        let long = "word ".repeat(40);
        let lines = wrap(&long);
        assert!(lines.len() > 1);
        assert!(lines.iter().all(|line| line.len() <= 66), "{lines:?}");
        assert_eq!(lines.join(" "), long.trim());
        assert!(wrap("").is_empty());
    }

    #[test]
    fn the_summary_names_what_decided() {
        for (state, said) in [
            (
                Worth::Enforcing,
                "\nenforcing: what a policy does not allow does not leave",
            ),
            (Worth::Advisory, "around that (user)\n"),
            (
                Worth::Cannot,
                "\ncannot enforce: no job can be fenced here as it is (cgroup)\n",
            ),
        ] {
            let text = render(&report(state), Style::Plain);
            assert!(text.contains(said), "{text}");
        }
    }

    #[test]
    fn plain_text_has_no_escape_sequences() {
        assert!(!render(&report(Worth::Cannot), Style::Plain).contains('\x1b'));
        assert!(render(&report(Worth::Cannot), Style::Colour).contains("\x1b["));
    }
}
