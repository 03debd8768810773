//! `jobfence report`: what a log says happened, and whether it is whole.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, BufReader, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Result, anyhow, bail};
use clap::{Args, ValueEnum};
use jobfence_agent::{
    audit::history::{self, Chain, Fault, History, VerifyError},
    job::process::is_hidden,
};
use serde_json::json;

use crate::report::{self, Style};

/// Bad lines of a log that are told of one by one.
const MOST: usize = 5;

/// Tell what happened, from a log.
///
/// Prints for each job in the log what was printed at its end. With --verify, checks instead that
/// the log is whole: that each line has the hash of the same job's line before it, that no line is
/// missing, and that each job has its end. Who can write the log can make another that is whole,
/// so the last hash of each job is printed, to be compared with one kept elsewhere.
///
/// Exit status: 0; 1 when the log cannot be read, is not whole, or has nothing of the job.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct ReportArguments {
    /// The log
    #[arg(value_name = "LOG")]
    log: PathBuf,
    /// Only the job of this id
    #[arg(long, value_name = "ID")]
    job: Option<String>,
    /// How to print it
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
    /// Check that the log is whole, and print nothing else
    #[arg(long)]
    verify: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// One JSON object
    Json,
}

pub(crate) fn report(arguments: &ReportArguments) -> ExitCode {
    let told = if arguments.verify {
        verify(arguments)
    } else {
        tell(arguments)
    };
    let is_whole = match told {
        Ok(is_whole) => is_whole,
        Err(error) => {
            report::error(&error);
            false
        }
    };
    if is_whole { 0 } else { 1 }.into()
}

/// What the log says; false when some of it could not be read.
fn tell(arguments: &ReportArguments) -> Result<bool> {
    let name = name(arguments);
    let mut bad = 0_usize;
    let jobs = history::read(open(arguments)?, arguments.job.as_deref(), |line, fault| {
        bad += 1;
        if bad <= MOST {
            report::error(&anyhow!("{name}:{line}: {fault}; left out"));
        }
    });
    let jobs = jobs.map_err(|error| anyhow!("cannot read {name}: {error}"))?;
    if bad > MOST {
        report::error(&anyhow!("{name}: {bad} lines were left out"));
    }
    if jobs.is_empty() {
        bail!(nothing(arguments));
    }
    print(match arguments.format {
        Format::Text => text(&jobs, Style::of(&io::stdout())),
        Format::Json => serde_json::to_string_pretty(&json!({ "jobs": jobs }))? + "\n",
    })?;
    Ok(bad == 0)
}

fn text(jobs: &[History], style: Style) -> String {
    let mut text = String::new();
    for job in jobs {
        if jobs.len() > 1 {
            let line = format!("job {} ({})", job.job.id, job.job.name);
            _ = writeln!(text, "{}", style.paint("1", line));
        }
        text.push_str(&report::render_summary(&job.summary, style));
        if job.ended.is_none() {
            _ = writeln!(
                text,
                "  its end is not in the log: it goes on, or was cut off"
            );
        }
    }
    text
}

/// Whether the log is whole.
fn verify(arguments: &ReportArguments) -> Result<bool> {
    let name = name(arguments);
    let verified = history::verify(open(arguments)?, arguments.job.as_deref());
    let verified = match verified {
        Ok(chains) if chains.is_empty() => bail!(nothing(arguments)),
        Ok(chains) => Ok(chains),
        Err(VerifyError::Line { line, fault }) => Err((line, fault)),
        Err(VerifyError::Read(error)) => bail!("cannot read {name}: {error}"),
    };
    if arguments.format == Format::Json {
        print(serde_json::to_string_pretty(&as_json(&verified))? + "\n")?;
        return Ok(verified.is_ok());
    }
    let chains = verified.map_err(|(line, fault)| anyhow!("{name}:{line}: {fault}"))?;
    let mut text = format!("{name} is whole\n");
    for (id, chain) in chains {
        _ = writeln!(
            text,
            "  job {id}: {} lines, the last {}",
            chain.seq, chain.head
        );
    }
    print(text)?;
    Ok(true)
}

fn as_json(verified: &Result<Vec<(String, Chain)>, (u64, Fault)>) -> serde_json::Value {
    match verified {
        Ok(chains) => {
            let jobs = chains
                .iter()
                .map(|(id, chain)| json!({ "id": id, "lines": chain.seq, "last": chain.head }));
            json!({ "whole": true, "jobs": jobs.collect::<Vec<_>>() })
        }
        Err((line, fault)) => {
            json!({ "whole": false, "line": line, "fault": fault.to_string() })
        }
    }
}

fn open(arguments: &ReportArguments) -> Result<BufReader<File>> {
    let file = File::open(&arguments.log);
    let file = file.map_err(|error| anyhow!("cannot read {}: {error}", name(arguments)))?;
    Ok(BufReader::new(file))
}

/// The log as it is shown: its name is as little trusted as what is in it.
fn name(arguments: &ReportArguments) -> String {
    arguments.log.to_string_lossy().replace(is_hidden, " ")
}

fn nothing(arguments: &ReportArguments) -> String {
    let name = name(arguments);
    match &arguments.job {
        Some(id) => format!("{name} has nothing of job {}", id.replace(is_hidden, " ")),
        None => format!("{name} has nothing of any job"),
    }
}

/// Prints to standard output. Who closes the pipe, as `head` does, has what they wanted.
fn print(text: String) -> Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(anyhow!("cannot print: {error}"))
        }
        _ => Ok(()),
    }
}
