//! Keeping secrets out of the record.
//!
//! A command line or a name can hold a credential, and the record is read by more people than the
//! credential is meant for. What is masked, wherever it stands:
//!
//! - the values of variables whose names say that they are secret ([`Mask::new`]),
//! - tokens that name themselves by how they begin (`tokens::TOKENS`), and private keys in PEM;
//!
//! and in command lines, where a name cannot have it:
//!
//! - what follows a key that says that it is secret, as an option, an assignment, a header or a
//!   field of JSON (`line::secrecy`),
//! - the password of a URL, and of options that take `user:password`.
//!
//! It is a help against accidents: a job that wants its secret in the record can encode it. And a job
//! must not hide where it goes by a name that looks like a token, so in a name's last two labels
//! nothing is masked for its looks.
//!
//! Masking is idempotent, and takes time in proportion to the length of the text.

mod line;
#[cfg(test)]
mod tests;
mod tokens;

use std::{borrow::Cow, cmp::Reverse};

use line::{Line, Secrecy, is_place, secrecy};
use tokens::{tokens, without_keys};

/// What a masked part is replaced by.
const MASK: &str = "***";

/// A value shorter than this is not searched for: it would be found everywhere.
const SHORTEST: usize = 8;

/// A value of letters alone that is shorter than this is not searched for in names: it may be a
/// word, such as the name of a database, and then of its host.
const SHORTEST_WORD: usize = 12;

/// The secrets of one job.
#[derive(Default)]
pub struct Mask {
    /// Each as it is and in lower case, the longest first.
    values: Vec<String>,
}

impl Mask {
    /// From the variables of the job's environment.
    pub fn new(environment: impl Iterator<Item = (String, String)>) -> Self {
        let mut values = Vec::new();
        for (name, value) in environment {
            // Values that begin, end or are divided by a mask would be found in what is masked.
            let value = value.trim().trim_matches('*');
            if value.len() >= SHORTEST && !value.contains(MASK) && is_secret(&name, value) {
                // Names come in lower case, whatever they held.
                values.extend([value.to_owned(), value.to_lowercase()]);
            }
        }
        // One can hold another.
        values.sort_unstable_by(|a, b| (Reverse(a.len()), a).cmp(&(Reverse(b.len()), b)));
        values.dedup();
        Self { values }
    }

    /// A name without secrets: of a host, of whatever asks for it. What is borrowed has none.
    #[must_use]
    pub fn name<'a>(&self, name: &'a str) -> Cow<'a, str> {
        let is_word = |value: &str| {
            value.len() < SHORTEST_WORD && value.bytes().all(|byte| byte.is_ascii_alphabetic())
        };
        let name = self.without_values(name, |value| !is_word(value));
        // Whoever registers a domain chooses what it looks like.
        let Some((end, _)) = name.rmatch_indices('.').nth(1) else {
            return name;
        };
        let mut masked = String::new();
        if tokens(&name[..end], true, &mut masked) {
            masked.push_str(&name[end..]);
            return masked.into();
        }
        name
    }

    /// A text without the secrets that need nothing around them to be known.
    #[must_use]
    pub fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let text = self.without_values(text, |_| true);
        let mut masked = String::new();
        match tokens(&text, false, &mut masked) {
            true => masked.into(),
            false => text,
        }
    }

    /// The arguments of a process, its program's name first, without secrets.
    pub fn arguments<'a>(
        &'a self,
        arguments: impl IntoIterator<Item = &'a String>,
    ) -> impl Iterator<Item = Cow<'a, str>> {
        let mut line = Line::default();
        arguments.into_iter().map(move |argument| {
            let text = without_keys(self.without_values(argument, |_| true));
            let mut masked = String::with_capacity(text.len());
            line.argument(&text, &mut masked);
            match masked == *argument {
                true => Cow::Borrowed(argument.as_str()),
                false => masked.into(),
            }
        })
    }

    fn without_values<'a>(&self, text: &'a str, counts: impl Fn(&str) -> bool) -> Cow<'a, str> {
        let mut text = Cow::from(text);
        for value in self.values.iter().filter(|value| counts(value)) {
            if text.len() >= value.len() && text.contains(value.as_str()) {
                text = text.replace(value.as_str(), MASK).into();
            }
        }
        text
    }
}

/// Whether the value of a variable is secret.
fn is_secret(name: &str, value: &str) -> bool {
    /// What a name ends with that only speaks of a secret.
    const ABOUT: [&str; 19] = [
        "url", "uri", "host", "hostname", "server", "endpoint", "issuer", "audience", "path",
        "file", "dir", "sock", "port", "name", "user", "username", "type", "mode", "method",
    ];
    /// Words that end like `DBPASS`.
    const WORDS: [&str; 3] = ["bypass", "compass", "trespass"];
    /// What makes a key none that is secret.
    const OPEN: [&str; 4] = ["public", "pub", "cache", "step"];
    /// No name that a person gives is longer, in characters.
    const LONGEST: usize = 128;
    let name: String = name.chars().take(LONGEST).collect();
    let name = name.to_ascii_lowercase();
    let parts = || name.split(['_', '-', '.']);
    if parts()
        .next_back()
        .is_some_and(|last| ABOUT.contains(&last))
    {
        return false;
    }
    let ends = name.match_indices(['_', '-', '.']).map(|(at, _)| at);
    let found = ends.chain([name.len()]).find_map(|end| {
        let key = &name[..end];
        secrecy(key).or_else(|| secrecy(key.strip_suffix('s')?))
    });
    // As in `SSHPASS`.
    let is_pass = |part: &str| part.ends_with("pass") && !WORDS.contains(&part);
    let is_key = || parts().next_back() == Some("key") && !parts().any(|part| OPEN.contains(&part));
    match found.or_else(|| (is_key() || parts().any(is_pass)).then_some(Secrecy::Likely)) {
        Some(Secrecy::Sure) => true,
        Some(Secrecy::Likely) => !is_place(value),
        None => false,
    }
}
