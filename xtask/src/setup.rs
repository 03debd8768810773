//! Bringing a machine to what the build and the tests need.
//!
//! What is there already and right is used, whoever put it there. The rest
//! comes from apt first; the eBPF compiler from rustup where apt's are too old
//! or would push out something installed; bpf-linker, cargo-deb and cargo-deny from
//! `cargo install`, at the versions below. The CI runners that tests run come into `target/`
//! ([`runners`]).
//!
//! The plan is made anew after each step, since only an installed compiler
//! tells which LLVM its linker has to have.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{
    apt::Apt,
    runners, sh,
    toolchain::{OLDEST_RUST, Survey},
};

/// What [`run`] is asked to do.
#[derive(Clone, Copy, Default)]
pub(crate) struct Options {
    /// Report only.
    pub(crate) check: bool,
    /// Also what only `lint` needs.
    pub(crate) ci: bool,
    /// Also what only `bench` needs.
    pub(crate) bench: bool,
    /// Also what only `vm` needs.
    pub(crate) vm: bool,
    /// Also the CI runners and containers, which only `test` needs.
    pub(crate) runners: bool,
    /// Also what `test` and `dist` make packages with.
    pub(crate) dist: bool,
}

const BPF_LINKER: &str = "0.13.0";
const CARGO_DEB: &str = "3.8.0";
const CARGO_DENY: &str = "0.20.2";

/// The compiler releases to get from rustup, newest first, with their LLVM.
///
/// Releases, not nightlies: the next nightly's LLVM may be newer than any that
/// apt has.
const RUSTUP_RELEASES: [(&str, u32); 2] = [("1.96.0", 22), ("1.94.0", 21)];

/// What is missing when its file is, and the package that brings it.
struct Tool {
    name: &'static str,
    present: fn(&Tool) -> bool,
    package: &'static str,
}

impl Tool {
    const fn command(name: &'static str, package: &'static str) -> Self {
        let present = |tool: &Tool| sh::which(tool.name).is_some();
        Self {
            name,
            present,
            package,
        }
    }

    const fn file(name: &'static str, package: &'static str) -> Self {
        let present = |tool: &Tool| Path::new(tool.name).exists();
        Self {
            name,
            present,
            package,
        }
    }
}

/// The linker and headers for Rust, and the clients and tools that the tests drive.
const TOOLS: [Tool; 26] = [
    Tool::command("cc", "gcc"),
    Tool::file("/usr/include/stdio.h", "libc6-dev"),
    Tool::file("/etc/ssl/certs/ca-certificates.crt", "ca-certificates"),
    Tool::command("git", "git"),
    Tool::command("ip", "iproute2"),
    Tool::command("nsenter", "util-linux"),
    Tool::command("unshare", "util-linux"),
    Tool::command("ps", "procps"),
    Tool::command("curl", "curl"),
    Tool::command("wget", "wget"),
    Tool::command("python3", "python3"),
    Tool::file(
        "/usr/lib/python3/dist-packages/pip/__main__.py",
        "python3-pip",
    ),
    Tool::command("node", "nodejs"),
    Tool::command("openssl", "openssl"),
    Tool::command("dig", "bind9-dnsutils"),
    Tool::command("socat", "socat"),
    Tool::command("rsync", "rsync"),
    // What attacks are made with.
    Tool::command("ncat", "ncat"),
    Tool::command("nmap", "nmap"),
    Tool::command("ping", "iputils-ping"),
    Tool::file("/usr/sbin/hping3", "hping3"),
    Tool::file("/usr/sbin/iodine", "iodine"),
    Tool::command("proxychains4", "proxychains4"),
    Tool::command("microsocks", "microsocks"),
    Tool::command("gtlsclient", "ngtcp2-client"),
    Tool {
        name: "bpftool",
        // Ubuntu's is a script that fails without the package for the running kernel.
        present: |tool| {
            sh::ask(Command::new(sh::which(tool.name).unwrap_or_default()).arg("version")).is_some()
        },
        package: "bpftool",
    },
];

/// What fences are measured with and against.
const BENCH_TOOLS: [Tool; 2] = [
    Tool::command("iperf3", "iperf3"),
    Tool::command("dnsmasq", "dnsmasq-base"),
];

/// What virtual machines are made with.
const VM_TOOLS: [Tool; 5] = [
    Tool::command("qemu-system-x86_64", "qemu-system-x86"),
    Tool::command("mmdebstrap", "mmdebstrap"),
    Tool::command("mkfs.ext4", "e2fsprogs"),
    Tool::command("depmod", "kmod"),
    Tool::file(
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "debian-archive-keyring",
    ),
];

/// What containers with systemd are made with.
const CONTAINER_TOOLS: [Tool; 2] = [
    Tool::command("mmdebstrap", "mmdebstrap"),
    Tool::command("systemd-nspawn", "systemd-container"),
];

/// What packages are made with.
const DIST_TOOLS: [Tool; 2] = [
    Tool::command("objdump", "binutils"),
    Tool::command("dpkg-shlibdeps", "dpkg-dev"),
];

/// The packages with what tests need of the machine that they run on.
pub(crate) fn test_packages() -> impl Iterator<Item = &'static str> {
    TOOLS.iter().map(|tool| tool.package)
}

/// One step of a plan.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Packages(Vec<String>),
    /// A release of Rust with its library source.
    Rustup(&'static str),
    /// bpf-linker with this LLVM.
    Linker(u32),
    CargoDeb,
    CargoDeny,
    /// rustfmt and clippy for the toolchain that builds the rest.
    Components,
    Runners(runners::Step),
}

/// What this machine has and lacks.
struct Machine {
    survey: Survey,
    tools: Vec<&'static Tool>,
    /// Of what `--ci` asks for.
    deny: bool,
    components: bool,
    cargo_deb: bool,
    /// Whether the eBPF compiler could have clippy from a package, and has none.
    ebpf_clippy: bool,
    rustup: bool,
    /// What is left to do for the CI runners.
    runners: Vec<runners::Step>,
}

/// Reports what is missing and, unless only asked to check, installs it.
pub(crate) fn run(options: Options) -> Result<()> {
    let mut machine = Machine::look(options);
    machine.report();
    if machine.complete() {
        eprintln!("setup: nothing is missing");
        return Ok(());
    }

    let mut plan = machine.plan(&Apt::ask());
    let wants_apt = plan.as_ref().map_or(true, |steps| takes_packages(steps));
    if wants_apt && sh::which("apt-get").is_none() {
        bail!("setup knows only apt-get, and it is not here: install what is missing by hand");
    }
    if !options.check && wants_apt && sh::is_root() {
        // That plan may rest on old package lists, or on none.
        sh::run(Command::new("apt-get").arg("update")).context("refresh apt's package lists")?;
        plan = machine.plan(&Apt::ask());
    }
    let mut plan = plan?;
    if options.check && !plan.is_empty() {
        show(&plan);
        let ci = if options.ci { " --ci" } else { "" };
        let bench = if options.bench { " --bench" } else { "" };
        let vm = if options.vm { " --vm" } else { "" };
        bail!("something is missing: run `cargo xtask setup{ci}{bench}{vm}`");
    }
    if takes_packages(&plan) && !sh::is_root() {
        show(&plan);
        bail!("packages are missing, and installing them takes root");
    }

    while let Some(step) = plan.first() {
        sh::run(&mut step.command())?;
        machine = Machine::look(options);
        let next = machine.plan(&Apt::ask())?;
        if next.first() == Some(step) {
            machine.report();
            bail!("what the last command should have installed is still missing");
        }
        plan = next;
    }
    machine.report();
    eprintln!("setup: done");
    Ok(())
}

fn takes_packages(plan: &[Step]) -> bool {
    plan.iter().any(|step| matches!(step, Step::Packages(_)))
}

/// Prints what a plan would run.
fn show(plan: &[Step]) {
    eprintln!("to install what is missing (apt-get as root):");
    if takes_packages(plan) {
        eprintln!("  apt-get update");
    }
    for step in plan {
        eprintln!("  {}", sh::render(&step.command()));
    }
}

impl Machine {
    fn look(options: Options) -> Self {
        let Options {
            ci,
            bench,
            vm,
            dist,
            ..
        } = options;
        let survey = Survey::take();
        let answers = |args: [&str; 2]| sh::ask(sh::cargo().args(args)).is_some();
        let ebpf_clippy = ci
            && survey.pick().is_some_and(|found| {
                found.compiler.rustc == Path::new("/usr/bin/rustc")
                    && !found
                        .compiler
                        .rustc
                        .with_file_name("clippy-driver")
                        .exists()
            });
        Self {
            tools: TOOLS
                .iter()
                .chain(bench.then_some(&BENCH_TOOLS).into_iter().flatten())
                .chain(vm.then_some(&VM_TOOLS).into_iter().flatten())
                .chain(dist.then_some(&DIST_TOOLS).into_iter().flatten())
                .chain((options.runners.then_some(&CONTAINER_TOOLS).into_iter()).flatten())
                .filter(|tool| !(tool.present)(tool))
                .collect(),
            deny: ci && !answers(["deny", "--version"]),
            components: ci && !(answers(["fmt", "--version"]) && answers(["clippy", "--version"])),
            cargo_deb: dist && !answers(["deb", "--version"]),
            ebpf_clippy,
            rustup: sh::which("rustup").is_some(),
            runners: match options.runners {
                true => runners::missing(),
                false => Vec::new(),
            },
            survey,
        }
    }

    fn complete(&self) -> bool {
        self.tools.is_empty()
            && self.survey.pick().is_some()
            && !self.deny
            && !self.cargo_deb
            && !self.components
            && !self.ebpf_clippy
            && self.runners.is_empty()
    }

    fn report(&self) {
        let os = fs::read_to_string("/etc/os-release").unwrap_or_default();
        eprintln!("system: {}", pretty_name(&os).unwrap_or("unknown"));
        match self.survey.pick() {
            Some(found) => {
                eprintln!("eBPF compiler: {}", found.compiler);
                eprintln!("bpf-linker: {}", found.linker);
            }
            None => {
                match self.survey.compilers.first() {
                    Some(compiler) => eprintln!("eBPF compiler: {compiler}"),
                    None => eprintln!(
                        "missing: a Rust compiler from 1.{OLDEST_RUST} on with library source"
                    ),
                }
                for linker in &self.survey.linkers {
                    eprintln!("too old for the compiler: {linker}");
                }
                eprintln!("missing: bpf-linker with the compiler's LLVM or a newer one");
            }
        }
        for tool in &self.tools {
            eprintln!("missing: {}", tool.name);
        }
        for (missing, name) in [
            (self.deny, "cargo-deny"),
            (self.cargo_deb, "cargo-deb"),
            (self.components, "rustfmt or clippy"),
            (self.ebpf_clippy, "clippy for the eBPF compiler"),
            (!self.runners.is_empty(), "CI runners to test with"),
        ] {
            if missing {
                eprintln!("missing: {name}");
            }
        }
    }

    /// The steps, in order, that bring what is missing; an error when nothing does.
    fn plan(&self, apt: &Apt) -> Result<Vec<Step>> {
        let mut packages: Vec<String> = Vec::new();
        for tool in &self.tools {
            if tool.package == "bpftool" && !apt.offers("bpftool") {
                packages.extend(["linux-tools-common".into(), running_kernel_tools()]);
            } else {
                packages.push(tool.package.into());
            }
        }
        let mut steps = Vec::new();
        if self.survey.pick().is_none() {
            // rustup's newest release is often ahead of every LLVM that apt has.
            let compilers = &self.survey.compilers;
            let usable = compilers
                .iter()
                .find(|compiler| self.linkable(apt, compiler.version.llvm));
            let compiler = match usable {
                Some(compiler) => compiler.version.llvm,
                None => {
                    for compiler in compilers {
                        eprintln!("not usable: {compiler}, as apt offers no LLVM for its linker");
                    }
                    self.plan_compiler(apt, &mut packages, &mut steps)?
                }
            };
            if !self.has_linker(compiler) {
                let Some(llvm) = apt.llvm(compiler) else {
                    bail!(
                        "apt offers no llvm-NN-dev from {compiler} on that bpf-linker \
                         {BPF_LINKER} builds with (old package lists? `apt-get update`): \
                         install a bpf-linker with LLVM {compiler} or newer by hand"
                    );
                };
                packages.extend(apt.missing_for_linker(llvm));
                steps.push(Step::Linker(llvm));
            }
        }
        if self.ebpf_clippy && apt.has("rustc-web") && apt.offers("rust-web-clippy") {
            packages.push("rust-web-clippy".into());
        }
        if self.components {
            if !self.rustup {
                bail!(
                    "cargo fmt or cargo clippy is missing and there is no rustup to add them: \
                     install rustfmt and clippy for the cargo in use"
                );
            }
            steps.push(Step::Components);
        }
        if self.cargo_deb {
            steps.push(Step::CargoDeb);
        }
        if self.deny {
            steps.push(Step::CargoDeny);
        }
        steps.extend(self.runners.iter().copied().map(Step::Runners));
        packages.dedup();
        if !packages.is_empty() {
            steps.insert(0, Step::Packages(packages));
        }
        Ok(steps)
    }

    /// Whether a linker for a compiler with this LLVM is there.
    fn has_linker(&self, compiler: u32) -> bool {
        let fits = |llvm: Option<u32>| llvm.is_none_or(|llvm| llvm >= compiler);
        self.survey.linkers.iter().any(|linker| fits(linker.llvm))
    }

    /// Whether a linker for a compiler with this LLVM is there or can be built.
    fn linkable(&self, apt: &Apt, compiler: u32) -> bool {
        self.has_linker(compiler) || apt.llvm(compiler).is_some()
    }

    /// Plans the eBPF compiler and returns the LLVM that it will have.
    fn plan_compiler(
        &self,
        apt: &Apt,
        packages: &mut Vec<String>,
        steps: &mut Vec<Step>,
    ) -> Result<u32> {
        if let Some(compiler) = apt.compiler() {
            packages.extend(compiler.names);
            return Ok(expected_llvm(compiler.minor));
        }
        if let Some(package) = apt.conflict() {
            eprintln!(
                "not usable: Debian's rustc-web, which conflicts with the installed {package}"
            );
        }
        if !self.rustup {
            bail!(
                "apt offers no Rust compiler from 1.{OLDEST_RUST} on with its source (old package \
                 lists? `apt-get update`), and there is no rustup: install rustup"
            );
        }
        match RUSTUP_RELEASES
            .into_iter()
            .find(|(_, llvm)| self.linkable(apt, *llvm))
        {
            Some((release, llvm)) => {
                steps.push(Step::Rustup(release));
                Ok(llvm)
            }
            None => bail!(
                "apt offers no LLVM that bpf-linker {BPF_LINKER} builds with (old package lists? \
                 `apt-get update`): install a bpf-linker with LLVM 22 or newer by hand"
            ),
        }
    }
}

impl Step {
    fn command(&self) -> Command {
        match self {
            Self::Packages(names) => {
                let mut apt = Command::new("apt-get");
                // --no-remove: what is installed stays, or apt-get says why it cannot.
                apt.args(["install", "-y", "--no-install-recommends", "--no-remove"])
                    .args(["-o", "DPkg::Lock::Timeout=120"])
                    .args(names)
                    .env("DEBIAN_FRONTEND", "noninteractive");
                apt
            }
            Self::Rustup(release) => {
                let mut rustup = Command::new("rustup");
                rustup
                    .args(["toolchain", "install", release, "--profile", "minimal"])
                    .args(["--component", "rust-src"]);
                rustup
            }
            Self::Linker(llvm) => {
                let mut cargo = cargo_install("bpf-linker", BPF_LINKER);
                cargo
                    // One with an older LLVM may be there.
                    .args(["--force", "--no-default-features"])
                    .arg("--features")
                    .arg(format!("llvm-{llvm}"))
                    .env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}"));
                cargo
            }
            Self::CargoDeb => cargo_install("cargo-deb", CARGO_DEB),
            Self::CargoDeny => cargo_install("cargo-deny", CARGO_DENY),
            Self::Components => {
                let mut rustup = Command::new("rustup");
                rustup.args(["component", "add", "rustfmt", "clippy"]);
                rustup
            }
            Self::Runners(step) => step.command(),
        }
    }
}

/// `cargo install` of one version, with the dependencies that it was released with.
fn cargo_install(name: &str, version: &str) -> Command {
    let mut cargo = sh::cargo();
    // Its build is not this workspace's, nor does it use the outer compiler's libraries.
    cargo
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("LD_LIBRARY_PATH");
    cargo.args(["install", name, "--version", version, "--locked"]);
    cargo
}

/// The LLVM of Rust 1.`minor`, for plans made before it is installed.
fn expected_llvm(minor: u32) -> u32 {
    match minor {
        ..=90 => 20,
        91..=94 => 21,
        _ => 22,
    }
}

/// Ubuntu's package of bpftool for the running kernel.
fn running_kernel_tools() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("linux-tools-{}", release.trim_end())
}

/// The name that `/etc/os-release` has for people, `Debian GNU/Linux 12 (bookworm)`.
fn pretty_name(os_release: &str) -> Option<&str> {
    let value = os_release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim_matches(['"', '\'']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::toolchain::{Compiler, Linker, Version};

    /// A machine that lacks nothing but what the test takes away.
    fn machine(compilers: &[(u32, u32)], linkers: &[u32], rustup: bool) -> Machine {
        Machine {
            survey: Survey {
                compilers: compilers
                    .iter()
                    .map(|&(minor, llvm)| Compiler {
                        rustc: "/usr/bin/rustc".into(),
                        version: Version {
                            release: format!("1.{minor}.0"),
                            minor,
                            llvm,
                        },
                    })
                    .collect(),
                linkers: linkers
                    .iter()
                    .map(|&llvm| Linker {
                        path: "/bpf-linker".into(),
                        llvm: Some(llvm),
                    })
                    .collect(),
            },
            tools: Vec::new(),
            deny: false,
            components: false,
            cargo_deb: false,
            ebpf_clippy: false,
            rustup,
            runners: Vec::new(),
        }
    }

    fn apt(installed: &[&str], offered: &[(&str, &str)]) -> Apt {
        let installed = installed.iter().map(|name| (*name, "1.0", "1.0"));
        let offered = offered
            .iter()
            .map(|(name, version)| (*name, "(none)", *version));
        let text: String = installed
            .chain(offered)
            .map(|(name, has, offers)| {
                format!("{name}:\n  Installed: {has}\n  Candidate: {offers}\n")
            })
            .collect();
        Apt::parse(&text)
    }

    const DEBIAN_12: [(&str, &str); 4] = [
        ("rustc-web", "1.96.0+dfsg1-1~deb12u2"),
        ("rust-web-src", "1.96.0+dfsg1-1~deb12u2"),
        ("llvm-22-dev", "1:22.1.8-1~deb12u1"),
        ("bpftool", "7.1.0+6.1.192-2"),
    ];

    fn commands(plan: &[Step]) -> Vec<String> {
        plan.iter()
            .map(|step| sh::render(&step.command()))
            .collect()
    }

    #[test]
    fn a_complete_machine_needs_nothing() {
        let machine = machine(&[(96, 22)], &[22], false);
        assert!(machine.complete());
        assert_eq!(machine.plan(&Apt::default()).unwrap(), []);
    }

    #[test]
    fn a_bare_debian_gets_compiler_llvm_and_linker_in_this_order() {
        let mut machine = machine(&[], &[], false);
        machine.tools = TOOLS.iter().filter(|tool| tool.name == "bpftool").collect();
        let plan = machine.plan(&apt(&[], &DEBIAN_12)).unwrap();
        let names = [
            "bpftool",
            "rustc-web",
            "rust-web-src",
            "llvm-22-dev",
            "libpolly-22-dev",
        ];
        let names = names
            .into_iter()
            .chain(["zlib1g-dev", "libzstd-dev"])
            .map(str::to_owned);
        assert_eq!(plan, [Step::Packages(names.collect()), Step::Linker(22)]);
        let linker = &commands(&plan)[1];
        assert!(
            linker.starts_with("LLVM_PREFIX=/usr/lib/llvm-22 "),
            "{linker}"
        );
        let options = "--locked --force --no-default-features --features llvm-22";
        let install = format!("cargo install bpf-linker --version {BPF_LINKER} {options}");
        assert!(linker.ends_with(&install), "{linker}");
    }

    #[test]
    fn a_linker_that_is_too_old_is_built_anew_with_the_compilers_llvm() {
        let machine = machine(&[(96, 22)], &[21], false);
        let installed = [
            "llvm-22-dev",
            "libpolly-22-dev",
            "zlib1g-dev",
            "libzstd-dev",
        ];
        assert_eq!(
            machine.plan(&apt(&installed, &[])).unwrap(),
            [Step::Linker(22)]
        );
    }

    #[test]
    fn rustup_is_used_when_the_package_would_push_something_out() {
        let machine = machine(&[], &[22], true);
        let plan = machine.plan(&apt(&["rustup"], &DEBIAN_12)).unwrap();
        assert_eq!(plan, [Step::Rustup("1.96.0")]);
        assert_eq!(
            commands(&plan),
            ["rustup toolchain install 1.96.0 --profile minimal --component rust-src"]
        );
    }

    #[test]
    fn rustups_release_is_one_whose_llvm_apt_has() {
        let plan = machine(&[], &[], true).plan(&apt(&[], &[("llvm-21-dev", "1:21.1")]));
        assert_eq!(plan.unwrap().get(1), Some(&Step::Rustup("1.94.0")));
    }

    #[test]
    fn without_compiler_package_and_rustup_the_error_says_what_to_do() {
        let error = machine(&[], &[22], false)
            .plan(&Apt::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("install rustup"), "{error}");
        assert!(error.contains("apt-get update"), "{error}");
    }

    #[test]
    fn a_compiler_that_is_too_new_for_apts_llvm_is_not_waited_for() {
        let machine = machine(&[(99, 23)], &[], true);
        let plan = machine.plan(&apt(&["rustup"], &DEBIAN_12)).unwrap();
        let [Step::Packages(_), rest @ ..] = plan.as_slice() else {
            panic!("no LLVM for the linker: {plan:?}");
        };
        assert_eq!(rest, [Step::Rustup("1.96.0"), Step::Linker(22)]);
    }

    #[test]
    fn of_two_compilers_the_one_with_a_linker_is_used() {
        let machine = machine(&[(99, 23), (96, 22)], &[], true);
        let plan = machine.plan(&apt(&["rustup"], &DEBIAN_12)).unwrap();
        assert_eq!(plan.last(), Some(&Step::Linker(22)));
        assert!(!plan.iter().any(|step| matches!(step, Step::Rustup(_))));
    }

    #[test]
    fn without_a_fitting_llvm_the_error_names_the_version() {
        let web = &DEBIAN_12[..2];
        let error = machine(&[], &[], false).plan(&apt(&[], web)).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("LLVM 22 or newer"), "{error}");
    }

    #[test]
    fn ubuntus_bpftool_comes_with_the_running_kernel() {
        let mut machine = machine(&[(96, 22)], &[22], false);
        machine.tools = TOOLS.iter().filter(|tool| tool.name == "bpftool").collect();
        let plan = machine.plan(&Apt::default()).unwrap();
        let names = vec!["linux-tools-common".to_owned(), running_kernel_tools()];
        assert_eq!(plan, [Step::Packages(names)]);
    }

    #[test]
    fn the_system_is_named_as_people_name_it() {
        let debian = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\n";
        assert_eq!(pretty_name(debian), Some("Debian GNU/Linux 12 (bookworm)"));
        assert_eq!(
            pretty_name("ID=alpine\nPRETTY_NAME='Alpine'\n"),
            Some("Alpine")
        );
        assert_eq!(pretty_name("ID=arch\n"), None);
    }
}
