//! Running other programs: every one that changes something is printed before
//! it runs, in a form that can be pasted into a shell.

use std::{
    env,
    ffi::OsStr,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Prints `command` and runs it with this process's output; an error when it
/// cannot be started or does not succeed.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    announce(command);
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("start `{}`", render(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", render(command));
    }
    Ok(())
}

/// Prints `command` the way [`run`] does, for callers that start it themselves.
pub(crate) fn announce(command: &Command) {
    eprintln!("$ {}", render(command));
}

/// The standard output of `command` if it succeeds; its standard error is dropped.
///
/// For questions ("which version are you?"), where every failure means "not
/// usable" and changes nothing.
pub(crate) fn ask(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `command` as a line for a POSIX shell, with the variables that it sets.
pub(crate) fn render(command: &Command) -> String {
    let set = command.get_envs().filter_map(|(name, value)| {
        Some(format!(
            "{}={}",
            name.to_string_lossy(),
            quote(&value?.to_string_lossy())
        ))
    });
    let words = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| quote(&word.to_string_lossy()));
    set.chain(words).collect::<Vec<_>>().join(" ")
}

/// `word` quoted for a POSIX shell if it needs to be.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%~".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// The cargo that runs this xtask, started in the workspace.
///
/// Cargo describes the package that it runs, here xtask, in variables; they
/// would reach the inner cargo's build scripts, so they are removed.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace());
    scrub(&mut cargo, |name| {
        name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
    });
    cargo
}

/// What cargo prints; an error when it does not succeed.
pub(crate) fn cargo_output(arguments: &[&str]) -> Result<String> {
    let mut command = cargo();
    let command = command.args(arguments).stderr(Stdio::inherit());
    let output = command
        .output()
        .with_context(|| format!("start `{}`", render(command)))?;
    if !output.status.success() {
        bail!("`{}` failed: {}", render(command), output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{}`", render(command)))
}

/// Removes from `command`'s environment every variable whose name `matches`.
pub(crate) fn scrub(command: &mut Command, matches: impl Fn(&str) -> bool) {
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(&matches) {
            command.env_remove(name);
        }
    }
}

/// The root of the workspace.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("/"))
        .to_path_buf()
}

/// Where the jobfence binary of a release build is.
pub(crate) fn release_binary() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    // A relative CARGO_TARGET_DIR counts from cargo's working folder, which is the workspace.
    workspace().join(target).join("release/jobfence")
}

/// The file that a shell would run for `name`, also looking where only root's PATH looks.
pub(crate) fn which(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|file| is_executable(file))
}

/// Whether `file` is a regular file with an execute permission.
pub(crate) fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Whether this process runs with effective user id 0.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// `name` in the user's home folder, or the folder that the variable `home` names.
///
/// Both cargo and rustup find their folders this way (`CARGO_HOME` or `~/.cargo`).
pub(crate) fn home(variable: &str, name: &str) -> PathBuf {
    let set = |variable: &str| env::var_os(variable).filter(|value| value != OsStr::new(""));
    set(variable)
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| Path::new(&home).join(name)))
        .unwrap_or_else(|| Path::new("/root").join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rendered_command_can_be_pasted_into_a_shell() {
        let mut command = Command::new("cargo");
        command
            .args(["install", "it's", "a b", ""])
            .env("LLVM_PREFIX", "/usr/lib/llvm-22")
            .env_remove("RUSTFLAGS");
        assert_eq!(
            render(&command),
            r"LLVM_PREFIX=/usr/lib/llvm-22 cargo install 'it'\''s' 'a b' ''"
        );
    }

    #[test]
    fn a_failing_question_is_no_answer() {
        assert_eq!(ask(&mut Command::new("false")), None);
        assert_eq!(ask(&mut Command::new("no such program")), None);
        assert_eq!(
            ask(Command::new("echo").arg("yes")).as_deref(),
            Some("yes\n")
        );
    }

    #[test]
    fn which_finds_programs_and_only_programs() {
        assert!(which("sh").is_some_and(|file| file.ends_with("sh")));
        assert_eq!(which("no-such-program"), None);
    }
}
