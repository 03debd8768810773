//! Manual pages and shell completions, from the definition of the command line that also parses it.
//! `cargo xtask dist` runs this role of the program.

use std::{env, ffi::OsString, fs, path::Path};

use anyhow::{Context as _, Result};
use clap::{Command, ValueEnum as _};
use clap_complete::Shell;
use clap_mangen::{
    Man,
    roff::{Roff, bold, italic, roman},
};
use jobfence_agent::control::client::SOCKET;
use time::OffsetDateTime;

/// How a paragraph of a command's help begins that becomes a section of its page.
const EXIT_STATUS: &str = "Exit status: ";

/// What every page names below FILES.
const FILES: [(&str, &str); 8] = [
    (
        ".jobfence.yml, .github/jobfence.yml",
        "The policy of a repository.",
    ),
    (
        "/etc/jobfence/agent.yml",
        "Configuration of the agent; what each key means stands in it.",
    ),
    (
        "/etc/jobfence/policies/",
        "The host's policies for repositories, where the agent is configured to use them.",
    ),
    (SOCKET, "The agent's control socket."),
    ("/var/log/jobfence/", "Logs of the agent's jobs."),
    (
        "/var/lib/jobfence/",
        "What the agent has to know after a restart.",
    ),
    (
        "/usr/share/jobfence/",
        "Presets for policies, and the JSON Schema of the policy language.",
    ),
    ("/usr/share/doc/jobfence/", "Documentation, with examples."),
];

/// The word that begins this role: `jobfence __generate SHARE`.
///
/// No subcommand, since completions would show it.
pub(crate) const ENTRY: &str = "__generate";

/// Writes the manual pages and completions of `command`, where programs look for them below the
/// folder that `arguments` name, which is or becomes `/usr/share`.
pub(crate) fn generate(
    mut arguments: impl Iterator<Item = OsString>,
    command: Command,
) -> Result<()> {
    let share = arguments.next().context("no folder given")?;
    let share = Path::new(&share);
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let status =
        "Exit status: 0; 1 when it failed; 2 for wrong usage. Commands that fence have more.";
    pages(&command, None, status, &share.join("man/man1"))?;
    for shell in Shell::value_variants() {
        let place = match shell {
            Shell::Bash => "bash-completion/completions/jobfence",
            Shell::Zsh => "zsh/vendor-completions/_jobfence",
            Shell::Fish => "fish/vendor_completions.d/jobfence.fish",
            // Shells that no package of Debian looks for.
            _ => continue,
        };
        let mut script = Vec::new();
        clap_complete::generate(*shell, &mut command, "jobfence", &mut script);
        write(&share.join(place), &script)?;
    }
    Ok(())
}

/// Writes the page of `command`, and those of its subcommands. `parent` is the name of the page
/// above; `status` is what that one says of exit codes, which counts where `command` says nothing.
fn pages(command: &Command, parent: Option<&str>, status: &str, folder: &Path) -> Result<()> {
    let name = command.get_display_name().unwrap_or("jobfence").to_owned();
    let help = command.get_long_about().or_else(|| command.get_about());
    let help = help.map(ToString::to_string).unwrap_or_default();
    let (own, description): (Vec<&str>, Vec<&str>) = help
        .split("\n\n")
        .partition(|paragraph| paragraph.starts_with(EXIT_STATUS));
    let status = own.first().copied().unwrap_or(status);
    for below in command.get_subcommands().filter(|one| !one.is_hide_set()) {
        pages(below, Some(&name), status, folder)?;
    }

    let version = env!("CARGO_PKG_VERSION");
    let shown = command.clone().long_about(description.join("\n\n"));
    let page = Man::new(shown)
        .date(date()?)
        .source(format!("jobfence {version}"))
        .manual("jobfence manual");
    let mut roff = Vec::new();
    page.render_title(&mut roff)?;
    page.render_name_section(&mut roff)?;
    page.render_synopsis_section(&mut roff)?;
    page.render_description_section(&mut roff)?;
    page.render_options_section(&mut roff)?;
    if command.get_subcommands().any(|one| !one.is_hide_set()) {
        page.render_subcommands_section(&mut roff)?;
    }
    more(parent, status).to_writer(&mut roff)?;
    write(&folder.join(page.get_filename()), &roff)
}

/// The sections that follow what the command line's definition tells.
fn more(parent: Option<&str>, status: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    let mut status = status.trim_start_matches(EXIT_STATUS).chars();
    let first: String = status
        .next()
        .into_iter()
        .flat_map(char::to_uppercase)
        .collect();
    roff.text([roman(first + status.as_str())]);
    roff.control("SH", ["FILES"]);
    for (file, what) in FILES {
        roff.control("TP", []);
        roff.text([italic(file)]);
        roff.text([roman(what)]);
    }
    roff.control("SH", ["SEE ALSO"]);
    match parent {
        Some("jobfence") => roff.text([bold("jobfence"), roman("(1)")]),
        Some(parent) => roff.text([bold("jobfence"), roman("(1), "), bold(parent), roman("(1)")]),
        None => roff.text([roman(
            "The manual of each command, and the documentation below /usr/share/doc/jobfence.",
        )]),
    };
    roff
}

/// The date on the pages: SOURCE_DATE_EPOCH, else today.
fn date() -> Result<String> {
    let now = match env::var("SOURCE_DATE_EPOCH") {
        Ok(set) => set
            .parse()
            .ok()
            .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
            .with_context(|| format!("SOURCE_DATE_EPOCH is no time: {set:?}"))?,
        Err(_) => OffsetDateTime::now_utc(),
    };
    Ok(now.date().to_string())
}

fn write(file: &Path, text: &[u8]) -> Result<()> {
    if let Some(parent) = file.parent() {
        fs::create_dir_all(parent)
            .with_context(|| format!("could not make {}", parent.display()))?;
    }
    fs::write(file, text).with_context(|| format!("could not write {}", file.display()))
}
