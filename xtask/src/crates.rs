//! What a release is made of: the crates that are in the binary and in the kernel object that it
//! embeds, and those that made code for them; as an SBOM (CycloneDX), and with their licences.
//!
//! Cargo is asked for each of the two by itself, with its target: which features a crate has, and so
//! what it depends on, differs between them, and from what a build of the whole workspace with its
//! tests would have. No tool was found that describes two builds of one workspace as one product.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::{object, sh, toolchain::Toolchain};

/// The target of the binary.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";

/// How files are called in which crates have their licences.
const LICENCE_FILES: [&str; 6] = [
    "LICENSE",
    "LICENCE",
    "COPYING",
    "COPYRIGHT",
    "NOTICE",
    "UNLICENSE",
];

/// Name and version.
type Id = (String, String);

/// The crates of a release.
pub(crate) struct Crates {
    version: String,
    crates: BTreeMap<Id, Crate>,
}

/// One of them.
#[derive(Default)]
struct Crate {
    /// Whether code of it is in what is released; else it made some, as a macro or build script.
    is_linked: bool,
    depends_on: BTreeSet<Id>,
    /// An SPDX expression, as far as its author wrote one.
    licence: Option<String>,
    authors: Vec<String>,
    /// SHA-256 of the archive that it came in; none for the workspace's own.
    checksum: Option<String>,
    folder: PathBuf,
}

impl Crates {
    /// Asks cargo.
    pub(crate) fn find(toolchain: &Toolchain) -> Result<Self> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let mut crates = BTreeMap::new();
        for (package, target) in [("jobfence", TARGET), ("jobfence-ebpf", object::TARGET)] {
            for (edges, is_linked) in [("normal,build", false), ("normal,no-proc-macro", true)] {
                let tree = sh::cargo_output(&[
                    "tree", "--locked", "-p", package, "--target", target, "-e", edges, "--prefix",
                    "depth",
                ])?;
                read_tree(&tree, is_linked, &mut crates)
                    .with_context(|| format!("read what cargo tree says of {package}"))?;
            }
        }
        // The object is a file in the binary, no dependency that cargo knows of.
        let own = |name: &str| (name.to_owned(), version.clone());
        if let Some(agent) = crates.get_mut(&own("jobfence-agent")) {
            agent.depends_on.insert(own("jobfence-ebpf"));
        }
        let mut found = Self { version, crates };
        found.describe()?;
        found.add_library("std", &release_of(&mut Command::new("rustc"))?, "jobfence");
        found.add_library("core", &toolchain.compiler.version.release, "jobfence-ebpf");
        Ok(found)
    }

    /// Adds what the manifests and the lock file say.
    fn describe(&mut self) -> Result<()> {
        let metadata = sh::cargo_output(&["metadata", "--locked", "--format-version", "1"])?;
        let metadata: Value = serde_json::from_str(&metadata).context("read cargo's metadata")?;
        let lock = sh::workspace().join("Cargo.lock");
        let lock = fs::read_to_string(&lock).with_context(|| format!("read {}", lock.display()))?;
        let checksums = read_lock(&lock);
        for package in metadata["packages"].as_array().into_iter().flatten() {
            let text = |key: &str| package[key].as_str().map(str::to_owned);
            let id = (
                text("name").unwrap_or_default(),
                text("version").unwrap_or_default(),
            );
            let Some(one) = self.crates.get_mut(&id) else {
                continue;
            };
            one.licence = text("license").map(|licence| licence.replace('/', " OR "));
            let authors = package["authors"].as_array().into_iter().flatten();
            one.authors = authors
                .filter_map(|author| author.as_str().map(str::to_owned))
                .collect();
            one.checksum = checksums.get(&id).cloned();
            let manifest = PathBuf::from(text("manifest_path").unwrap_or_default());
            one.folder = manifest.parent().map(Path::to_owned).unwrap_or_default();
        }
        let unknown = self
            .crates
            .iter()
            .find(|(_, one)| one.folder == Path::new(""));
        if let Some(((name, version), _)) = unknown {
            bail!("cargo tree has {name} {version}, and cargo metadata does not");
        }
        Ok(())
    }

    /// Adds a library that comes with the compiler.
    fn add_library(&mut self, name: &str, version: &str, user: &str) {
        let id = (name.to_owned(), version.to_owned());
        let library = Crate {
            is_linked: true,
            licence: Some("MIT OR Apache-2.0".to_owned()),
            authors: vec!["The Rust Project Developers".to_owned()],
            ..Crate::default()
        };
        self.crates.insert(id.clone(), library);
        if let Some(user) = self
            .crates
            .get_mut(&(user.to_owned(), self.version.clone()))
        {
            user.depends_on.insert(id);
        }
    }

    /// The bill of materials: CycloneDX 1.5, JSON. `sha256` is the binary's; `time` is of RFC 3339.
    pub(crate) fn sbom(&self, sha256: &str, time: &str) -> Result<String> {
        let root = ("jobfence".to_owned(), self.version.clone());
        let component = |(id, one): (&Id, &Crate)| {
            let (name, version) = id;
            let mut component = json!({
                "type": "library",
                "bom-ref": reference(id),
                "name": name,
                "version": version,
                // What only made code is in no released file.
                "scope": if one.is_linked { "required" } else { "excluded" },
            });
            if let Some(licence) = &one.licence {
                component["licenses"] = json!([{ "expression": licence }]);
            }
            if let Some(checksum) = &one.checksum {
                component["purl"] = json!(format!("pkg:cargo/{name}@{version}"));
                component["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
            }
            component
        };
        let components = self.crates.iter().filter(|(id, _)| **id != root);
        let dependencies = self.crates.iter().map(|(id, one)| {
            let on: Vec<String> = one.depends_on.iter().map(reference).collect();
            json!({ "ref": reference(id), "dependsOn": on })
        });
        let sbom = json!({
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "version": 1,
            "metadata": {
                "timestamp": time,
                "component": {
                    "type": "application",
                    "bom-ref": reference(&root),
                    "name": "jobfence",
                    "version": self.version,
                    "licenses": [{ "expression": "MIT OR Apache-2.0" }],
                    "hashes": [{ "alg": "SHA-256", "content": sha256 }],
                },
            },
            "components": components.map(component).collect::<Vec<_>>(),
            "dependencies": dependencies.collect::<Vec<_>>(),
        });
        Ok(serde_json::to_string_pretty(&sbom)? + "\n")
    }

    /// The licences of what is linked and not the workspace's own: each text once, below the names
    /// of the crates that came with it.
    pub(crate) fn licences(&self) -> Result<String> {
        let mut list = String::new();
        let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let is_others = |one: &Crate| one.checksum.is_some() || one.folder == Path::new("");
        let linked = |(_, one): &(&Id, &Crate)| one.is_linked && is_others(one);
        for ((name, version), one) in self.crates.iter().filter(linked) {
            let licence = one.licence.as_deref().unwrap_or("see its text below");
            let authors = match one.authors.as_slice() {
                [] => String::new(),
                authors => format!(", by {}", authors.join(", ")),
            };
            writeln!(list, "{name} {version}: {licence}{authors}")?;
            for text in licence_texts(&one.folder)? {
                let crates = texts.entry(text).or_default();
                crates.insert(format!("{name} {version}"));
            }
        }
        for (text, crates) in texts {
            let crates: Vec<_> = crates.into_iter().collect();
            write!(
                list,
                "\n{}\n{}:\n\n{text}\n",
                "-".repeat(72),
                crates.join(", ")
            )?;
        }
        Ok(list)
    }
}

/// What the licence files in the folder of a crate say.
fn licence_texts(folder: &Path) -> Result<BTreeSet<String>> {
    let mut texts = BTreeSet::new();
    if folder == Path::new("") {
        return Ok(texts);
    }
    let failed = || format!("read the licences in {}", folder.display());
    for file in fs::read_dir(folder).with_context(failed)? {
        let file = file.with_context(failed)?;
        let name = file.file_name().to_string_lossy().to_uppercase();
        let is_licence = LICENCE_FILES.iter().any(|start| name.starts_with(start));
        if is_licence && file.file_type().with_context(failed)?.is_file() {
            let text = fs::read(file.path()).with_context(failed)?;
            let text = String::from_utf8_lossy(&text).replace('\r', "");
            texts.insert(text.trim_matches('\n').trim_end().to_owned());
        }
    }
    Ok(texts)
}

/// Adds what `cargo tree --prefix depth` says: a crate a line, its depth in front, what it depends on
/// in the lines that follow, or where it was seen first.
fn read_tree(text: &str, is_linked: bool, crates: &mut BTreeMap<Id, Crate>) -> Result<()> {
    let mut above: Vec<Id> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let digits = line.find(|c: char| !c.is_ascii_digit()).unwrap_or(0);
        let (depth, rest) = line.split_at(digits);
        let mut words = rest.split(' ');
        let id = match (
            words.next(),
            words.next().and_then(|word| word.strip_prefix('v')),
        ) {
            (Some(name), Some(version)) => (name.to_owned(), version.to_owned()),
            _ => bail!("not understood: {line:?}"),
        };
        let depth: usize = depth
            .parse()
            .with_context(|| format!("not understood: {line:?}"))?;
        above.truncate(depth);
        if let Some(user) = above.last().and_then(|user| crates.get_mut(user)) {
            user.depends_on.insert(id.clone());
        }
        crates.entry(id.clone()).or_default().is_linked |= is_linked;
        above.push(id);
    }
    Ok(())
}

/// The checksums in a Cargo.lock.
fn read_lock(text: &str) -> BTreeMap<Id, String> {
    let value = |block: &str, key: &str| {
        let line = block
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "))?;
        Some(line.trim_matches('"').to_owned())
    };
    let packages = text.split("[[package]]").skip(1).filter_map(|block| {
        let id = (value(block, "name")?, value(block, "version")?);
        Some((id, value(block, "checksum")?))
    });
    packages.collect()
}

fn reference((name, version): &Id) -> String {
    format!("{name}@{version}")
}

/// The release of a compiler.
fn release_of(rustc: &mut Command) -> Result<String> {
    let version = sh::ask(rustc.arg("-vV").current_dir(sh::workspace())).unwrap_or_default();
    let release = version
        .lines()
        .find_map(|line| line.strip_prefix("release: "));
    release
        .map(str::to_owned)
        .context("ask rustc for its version")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str, version: &str) -> Id {
        (name.to_owned(), version.to_owned())
    }

    #[test]
    fn a_crates_dependencies_are_those_one_step_deeper() {
        let mut crates = BTreeMap::new();
        let all =
            "0a v1.0.0 (/src/a)\n1b v2.0.0\n2c v3.0.0\n1m v4.0.0 (proc-macro)\n2c v3.0.0 (*)\n";
        read_tree(all, false, &mut crates).unwrap();
        read_tree("0a v1.0.0 (/src/a)\n1b v2.0.0\n", true, &mut crates).unwrap();
        let on = |name: &Id| crates[name].depends_on.iter().cloned().collect::<Vec<_>>();
        assert_eq!(on(&id("a", "1.0.0")), [id("b", "2.0.0"), id("m", "4.0.0")]);
        assert_eq!(on(&id("b", "2.0.0")), [id("c", "3.0.0")]);
        assert_eq!(on(&id("m", "4.0.0")), [id("c", "3.0.0")]);
        assert!(crates[&id("b", "2.0.0")].is_linked);
        assert!(!crates[&id("m", "4.0.0")].is_linked);
    }

    #[test]
    fn a_line_that_is_no_crate_is_not_passed_over() {
        assert!(read_tree("[build-dependencies]\n", false, &mut BTreeMap::new()).is_err());
    }

    #[test]
    fn the_lock_file_has_checksums_of_what_was_downloaded_only() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\n\n\
                    [[package]]\nname = \"b\"\nversion = \"2.0.0\"\nsource = \"registry\"\n\
                    checksum = \"00ff\"\n";
        let expected = BTreeMap::from([(id("b", "2.0.0"), "00ff".to_owned())]);
        assert_eq!(read_lock(lock), expected);
    }
}
