//! Keeping secrets out of the record.
//!
//! A command line or a name can hold a credential, and the record is read by more people than
//! the credential is meant for. Two things are masked: the values of environment variables whose
//! names say that they are secret, and what looks like a well-known kind of token.

use std::borrow::Cow;

/// What a masked part is replaced by.
const MASK: &str = "***";

/// A value shorter than this is not searched for: it would be found everywhere.
const SHORTEST: usize = 8;

/// Parts of a variable's name, in upper case, that say that its value is secret.
const SECRET_NAMES: [&str; 6] = ["TOKEN", "SECRET", "PASS", "CREDENTIAL", "_KEY", "AUTH"];

/// Beginnings of tokens that name themselves, each with the least number of characters that
/// follow.
const TOKENS: [(&str, usize); 14] = [
    ("ghp_", 20),
    ("gho_", 20),
    ("ghu_", 20),
    ("ghs_", 20),
    ("ghr_", 20),
    ("github_pat_", 20),
    ("glpat-", 16),
    ("npm_", 20),
    ("pypi-", 20),
    ("xoxb-", 16),
    ("xoxp-", 16),
    ("AKIA", 16),
    ("ASIA", 16),
    ("eyJ", 30),
];

/// The secrets of one job.
#[derive(Default)]
pub struct Mask {
    values: Vec<String>,
}

impl Mask {
    /// From the variables of the job's environment.
    pub fn new(environment: impl Iterator<Item = (String, String)>) -> Self {
        let mut values: Vec<_> = environment
            .filter(|(name, value)| {
                let name = name.to_uppercase();
                value.len() >= SHORTEST && SECRET_NAMES.iter().any(|part| name.contains(part))
            })
            .map(|(_, value)| value)
            .collect();
        // The longest first: one can hold another.
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        values.dedup();
        Self { values }
    }

    /// `text` without secrets. A borrowed answer is the text itself.
    #[must_use]
    pub fn apply<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = Cow::from(text);
        for value in &self.values {
            // Names come in lower case, whatever they held.
            for value in [value.as_str(), &value.to_lowercase()] {
                if text.contains(value) {
                    text = text.replace(value, MASK).into();
                }
            }
        }
        for (prefix, least) in TOKENS {
            if text.contains(prefix) {
                text = mask_tokens(&text, prefix, least).into();
            }
        }
        text
    }
}

/// Masks every word that begins with `prefix` and goes on for at least `least` characters.
fn mask_tokens(text: &str, prefix: &str, least: usize) -> String {
    let of_token = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(prefix) {
        let (before, from) = rest.split_at(at);
        let end = from.find(|c| !of_token(c)).unwrap_or(from.len());
        masked.push_str(before);
        let begins_word = !masked.ends_with(|c: char| c.is_ascii_alphanumeric());
        if begins_word && end >= prefix.len() + least {
            masked.push_str(prefix);
            masked.push_str(MASK);
        } else {
            masked.push_str(&from[..end]);
        }
        rest = &from[end..];
    }
    masked.push_str(rest);
    masked
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask() -> Mask {
        let environment = [
            ("DEPLOY_TOKEN", "correct-horse"),
            ("db_password", "battery-staple"),
            ("PASSWORD", "short"),
            ("HOME", "/home/runner"),
        ];
        Mask::new(
            environment
                .map(|(name, value)| (name.into(), value.into()))
                .into_iter(),
        )
    }

    #[test]
    fn secret_variables_are_masked_and_others_are_not() {
        assert_eq!(
            mask().apply("curl -H 'X: correct-horse' --user a:battery-staple /home/runner short"),
            "curl -H 'X: ***' --user a:*** /home/runner short"
        );
    }

    #[test]
    fn a_secret_in_a_name_is_masked_in_lower_case() {
        let mask = Mask::new([("DB_PASS".to_owned(), "AbCdEfGh1234".to_owned())].into_iter());
        assert_eq!(mask.apply("abcdefgh1234.x.test"), "***.x.test");
    }

    #[test]
    fn tokens_are_masked_by_their_shape() {
        let token = format!("ghp_{}", "a1".repeat(18));
        assert_eq!(
            mask().apply(&format!("git clone https://x:{token}@git.example.com/a")),
            "git clone https://x:ghp_***@git.example.com/a"
        );
        for innocent in ["npm_config_cache=/tmp", "pypi-server", "eyJ", "AKIA"] {
            assert_eq!(mask().apply(innocent), innocent);
        }
    }
}
