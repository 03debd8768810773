//! Presets: rules that are written once, for many policies to `use`.
//!
//! Some come with jobfence. A host has others in files of its own, since which names a platform or
//! a registry goes by is for whoever runs the host to know.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::{Error, Fault, Pos, Source, listed, nearest, quote};
use crate::file::{self, Item};
use crate::target::{Layer, Rule};

/// The presets that come with jobfence: name, file, content.
const BUILT_IN: [(&str, &str, &str); 2] = [
    (
        "github-actions",
        "github-actions.yml",
        include_str!("../../../policies/presets/github-actions.yml"),
    ),
    (
        "localhost-services",
        "localhost-services.yml",
        include_str!("../../../policies/presets/localhost-services.yml"),
    ),
];

/// The presets that a policy may use, by name.
#[derive(Debug)]
pub struct Presets(BTreeMap<String, Arc<Preset>>);

/// One preset. At least one of its lists has rules.
#[derive(Debug)]
pub(crate) struct Preset {
    pub(crate) source: Arc<Source>,
    pub(crate) allow: Vec<Rule>,
    pub(crate) deny: Vec<Rule>,
}

impl Presets {
    /// Those that come with jobfence.
    #[must_use]
    pub fn built_in() -> Self {
        let mut presets = Self(BTreeMap::new());
        for (name, file, text) in BUILT_IN {
            let added = presets.insert(name, file, text.as_bytes());
            debug_assert!(added.is_ok(), "{added:?}");
        }
        presets
    }

    /// Adds the preset `name`, in place of one that has that name already. `bytes` is the content
    /// of `file`, whose name is only shown: nothing is opened.
    ///
    /// # Errors
    ///
    /// The first thing in the file that is wrong, with its place; or that `name` has characters
    /// other than letters, digits, hyphens and underscores.
    pub fn insert(&mut self, name: &str, file: &str, bytes: &[u8]) -> Result<(), Error> {
        let source = Source::read(file, bytes)?;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if name.is_empty() || !name.chars().all(is_plain) {
            let fault = Fault::new(format!("{} is no name for a preset", quote(name)))
                .hint("its names have letters, digits, `-` and `_`; rename the file");
            return Err(source.error(fault.at(Pos::START)));
        }
        let read = file::read_preset(&source);
        let (allow, deny) = read.map_err(|problem| source.error(problem))?;
        let preset = Preset {
            source: Arc::new(source),
            allow,
            deny,
        };
        self.0.insert(name.to_owned(), Arc::new(preset));
        Ok(())
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub(crate) fn get(&self, name: &str) -> Result<&Arc<Preset>, Fault> {
        self.0.get(name).ok_or_else(|| {
            let fault = Fault::new(format!("no preset {} on this host", quote(name)));
            match nearest(name, self.names()) {
                Some(near) => fault.hint(format!("did you mean `{near}`?")),
                None if self.0.is_empty() => fault.hint("it has none; write the rules out"),
                None => fault.hint(format!("presets here are {}", listed(self.names()))),
            }
        })
    }
}

/// Rules that come together from lists of a file and from the presets that these use. A preset
/// counts once, however often it is used.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    pub(crate) allow: Vec<Rule>,
    pub(crate) deny: Vec<Rule>,
    allowing: Vec<Arc<Preset>>,
    denying: Vec<Arc<Preset>>,
}

impl Rules {
    /// Adds an `allow` list. A preset in it brings what it denies, too.
    pub(crate) fn allow(&mut self, items: &[Item], layer: Layer) {
        for item in items {
            match item {
                Item::Rule(rule) => self.allow.push(of(layer, rule)),
                Item::Use(preset) => {
                    if is_new(&mut self.allowing, preset) {
                        let layer = of_preset(layer);
                        let rules = preset.allow.iter();
                        self.allow.extend(rules.map(|rule| of(layer, rule)));
                    }
                    self.deny_preset(preset, layer);
                }
            }
        }
    }

    /// Adds a `deny` list.
    pub(crate) fn deny(&mut self, items: &[Item], layer: Layer) {
        for item in items {
            match item {
                Item::Rule(rule) => self.deny.push(of(layer, rule)),
                Item::Use(preset) => self.deny_preset(preset, layer),
            }
        }
    }

    fn deny_preset(&mut self, preset: &Arc<Preset>, layer: Layer) {
        if is_new(&mut self.denying, preset) {
            let layer = of_preset(layer);
            let rules = preset.deny.iter();
            self.deny.extend(rules.map(|rule| of(layer, rule)));
        }
    }

    /// The files of the presets.
    pub(crate) fn sources(&self) -> impl Iterator<Item = Arc<Source>> {
        let presets = self.allowing.iter().chain(&self.denying);
        presets.map(|preset| Arc::clone(&preset.source))
    }
}

fn of(layer: Layer, rule: &Rule) -> Rule {
    Rule {
        layer,
        ..rule.clone()
    }
}

/// Whose the rules of a preset are that is used in a list of `layer`.
fn of_preset(layer: Layer) -> Layer {
    match layer {
        Layer::Repository => Layer::Preset,
        host => host,
    }
}

fn is_new(used: &mut Vec<Arc<Preset>>, preset: &Arc<Preset>) -> bool {
    let is_new = !used.iter().any(|used| Arc::ptr_eq(used, preset));
    if is_new {
        used.push(Arc::clone(preset));
    }
    is_new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_that_comes_with_jobfence_is_valid() {
        let names: Vec<&str> = BUILT_IN.iter().map(|(name, ..)| *name).collect();
        assert_eq!(Presets::built_in().names().collect::<Vec<_>>(), names);
        for (name, file, text) in BUILT_IN {
            let added = Presets(BTreeMap::new()).insert(name, file, text.as_bytes());
            added.unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(file, format!("{name}.yml"));
        }
    }
}
