//! DNS names in one form, and the patterns of them that rules hold.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::sync::Arc;

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};
use psl::Type;

use crate::error::{Fault, quote};

/// Longest name in presentation form without the final dot: 255 octets on the wire (RFC 1035
/// section 2.3.4) less the first length octet and the root label.
const MAX_NAME: usize = 253;

/// Longest label, RFC 1035 section 2.3.4.
const MAX_LABEL: usize = 63;

/// A DNS name in canonical form: lower case, A-labels (RFC 5890), no final dot.
///
/// Two names are equal exactly when DNS takes them for the same one. Labels hold letters,
/// digits, hyphens inside, and underscores (`_sip._tcp.example.com`, RFC 8552); other octets
/// are legal in DNS but not in the name of anything that a policy allows.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<str>);

impl Name {
    /// Parses the presentation form of a name, with or without the final dot, in any case, with
    /// U-labels or A-labels.
    ///
    /// # Errors
    ///
    /// When it is not a name, see [`NameError`].
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let ascii = if text.is_ascii() {
            Cow::Borrowed(text)
        } else {
            // The longest name has no more characters than this; do not convert what is no name.
            if text.chars().count() > MAX_NAME + 1 {
                return Err(NameError::TooLong { length: text.len() });
            }
            Uts46::new()
                .to_ascii(
                    text.as_bytes(),
                    AsciiDenyList::EMPTY,
                    Hyphens::Allow,
                    DnsLength::Ignore,
                )
                .map_err(|_| NameError::Idna)?
        };
        let name = ascii.strip_suffix('.').unwrap_or(&ascii);
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        if name.len() > MAX_NAME {
            return Err(NameError::TooLong { length: name.len() });
        }
        for label in name.split('.') {
            if label.is_empty() {
                return Err(NameError::EmptyLabel);
            }
            if let Some(character) = label
                .chars()
                .find(|c| !matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_'))
            {
                return Err(NameError::Character { character });
            }
            if label.len() > MAX_LABEL {
                return Err(NameError::LabelTooLong {
                    length: label.len(),
                });
            }
            if label.starts_with('-') || label.ends_with('-') {
                return Err(NameError::Hyphen {
                    label: label.into(),
                });
            }
        }
        Ok(Self(name.to_ascii_lowercase().into()))
    }

    /// The name's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The names above this one, nearest first: `b.c` and `c` of `a.b.c`.
    pub(crate) fn parents(&self) -> impl Iterator<Item = &str> {
        self.0.match_indices('.').map(|(dot, _)| &self.0[dot + 1..])
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is not a [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// There is nothing, or the root only.
    #[error("the name is empty")]
    Empty,
    /// Two dots in a row, or one at the beginning.
    #[error("the name has an empty label: a dot too many")]
    EmptyLabel,
    /// A label of more than 63 octets.
    #[error("a label of the name has {length} characters, at most {MAX_LABEL} are possible")]
    LabelTooLong {
        /// Its length in octets.
        length: usize,
    },
    /// More than 253 octets.
    #[error("the name has {length} characters, at most {MAX_NAME} are possible")]
    TooLong {
        /// Its length in octets.
        length: usize,
    },
    /// A character that is none of letters, digits, hyphen and underscore.
    #[error("a name cannot hold {character:?}")]
    Character {
        /// The character.
        character: char,
    },
    /// A hyphen at the edge of a label.
    #[error("the label `{label}` begins or ends with a hyphen")]
    Hyphen {
        /// The label.
        label: String,
    },
    /// Characters that internationalised names do not allow, or not in this order (RFC 5891,
    /// Unicode's UTS 46).
    #[error("it is not a valid internationalised name")]
    Idna,
}

/// One name (`git.example.com`), or all names below one (`*.cdn.example.com`).
///
/// It is displayed in canonical form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPattern {
    base: Name,
    below: bool,
}

impl HostPattern {
    /// Whether the pattern speaks of `name`. A wildcard does at any depth below its base, not of
    /// the base itself.
    #[must_use]
    pub fn matches(&self, name: &Name) -> bool {
        if self.below {
            name.parents().any(|parent| parent == self.base.as_str())
        } else {
            *name == self.base
        }
    }

    /// Whether it matches every name that `other` matches.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        // Below a wildcard, everything is: the names that `other` matches as well as its base.
        self == other || self.below && self.matches(&other.base)
    }

    /// What whoever asks for `name` chose of it, when this is a wildcard that matches: `a.b` of
    /// `a.b.example.com` for `*.example.com`. `None` when the pattern spells the name out, or does
    /// not match.
    #[must_use]
    pub fn chosen<'a>(&self, name: &'a Name) -> Option<&'a str> {
        self.below
            .then(|| name.as_str().strip_suffix(self.base.as_str()))
            .flatten()?
            .strip_suffix('.')
    }

    /// The name, or the one that all names are below of.
    pub fn base(&self) -> &Name {
        &self.base
    }

    /// Whether it is a wildcard.
    pub fn is_wildcard(&self) -> bool {
        self.below
    }

    pub(crate) fn parse(text: &str) -> Result<Self, Fault> {
        let (below, rest) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        if text == "*" || rest.is_empty() {
            return Err(
                Fault::new(format!("{} would allow every name", quote(text)))
                    .hint("name the domains that the job needs"),
            );
        }
        if rest.contains('*') {
            return Err(Fault::new(format!(
                "{}: `*` stands only for the whole first label",
                quote(text)
            ))
            .hint("`*.example.com` is every name below example.com, at any depth"));
        }
        let base = Name::parse(rest).map_err(|error| {
            let fault = Fault::new(format!("{} is not a host name: {error}", quote(text)));
            match error {
                NameError::EmptyLabel if text.starts_with('.') => {
                    fault.hint("`*.example.com` is every name below example.com")
                }
                NameError::Character { character: ' ' } => {
                    fault.hint("is the next line indented too far? YAML joins such lines")
                }
                NameError::Empty => fault.hint("give a name such as git.example.com"),
                _ => fault,
            }
        })?;
        let pattern = Self { base, below };
        if below {
            pattern.check_breadth(text)?;
        }
        Ok(pattern)
    }

    /// Refuses wildcards under which strangers can have names.
    fn check_breadth(&self, text: &str) -> Result<(), Fault> {
        let base = self.base.as_str();
        if !base.contains('.') {
            return Err(Fault::new(format!(
                "the wildcard {} covers a whole top-level domain",
                quote(text)
            ))
            .hint(format!(
                "name a domain below it, such as `*.example.{base}`"
            )));
        }
        let suffix =
            psl::suffix(base.as_bytes()).filter(|suffix| suffix.as_bytes() == base.as_bytes());
        match suffix.and_then(|suffix| suffix.typ()) {
            Some(Type::Icann) => Err(Fault::new(format!(
                "the wildcard {} covers a public suffix",
                quote(text)
            ))
            .hint(format!(
                "anybody can register a name under {base}; name a domain below it"
            ))),
            Some(Type::Private) => Err(Fault::new(format!(
                "the wildcard {} covers a hosting provider's customers",
                quote(text)
            ))
            .hint(format!(
                "anybody can rent a name under {base}; list the names that the job needs"
            ))),
            None => Ok(()),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.below { "*." } else { "" }, self.base)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    #[test]
    fn names_that_dns_takes_for_the_same_are_equal() {
        for same in [
            "git.example.com",
            "GIT.Example.COM",
            "git.example.com.",
            "git。example。com",
        ] {
            assert_eq!(name(same).as_str(), "git.example.com", "{same}");
        }
        for same in [
            "bücher.example",
            "BÜCHER.example",
            "bu\u{308}cher.example",
            "XN--BCHER-KVA.example.",
        ] {
            assert_eq!(name(same).as_str(), "xn--bcher-kva.example", "{same}");
        }
        assert_eq!(
            name("_sip._tcp.example.com").as_str(),
            "_sip._tcp.example.com"
        );
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long_label = "a".repeat(64);
        let long_name = ["a".repeat(63).as_str(); 4].join(".");
        for (text, error) in [
            ("", NameError::Empty),
            (".", NameError::Empty),
            ("..", NameError::EmptyLabel),
            (".a", NameError::EmptyLabel),
            ("a..b", NameError::EmptyLabel),
            ("a b", NameError::Character { character: ' ' }),
            ("a\0.example", NameError::Character { character: '\0' }),
            ("a\\046b", NameError::Character { character: '\\' }),
            ("a%b.é", NameError::Character { character: '%' }),
            ("-a.example", NameError::Hyphen { label: "-a".into() }),
            ("a-.example", NameError::Hyphen { label: "a-".into() }),
            (&long_label, NameError::LabelTooLong { length: 64 }),
            (&long_name, NameError::TooLong { length: 255 }),
            ("\u{202e}a.example", NameError::Idna),
        ] {
            assert_eq!(Name::parse(text), Err(error), "{text:?}");
        }
        assert_eq!(name(&long_name[..253]).as_str().len(), 253);
    }

    #[test]
    fn a_wildcard_is_refused_where_strangers_can_have_names() {
        for broad in [
            "*.com",
            "*.test",
            "*.COM.",
            "*.localhost",
            "*.co.uk",
            "*.公司.cn",
            "*.xn--55qx5d.cn",
            "*.anything.ck",
        ] {
            assert!(HostPattern::parse(broad).is_err(), "{broad}");
        }
        let rented = HostPattern::parse("*.com.de").unwrap_err();
        assert!(
            format!("{rented:?}").contains("hosting provider"),
            "{rented:?}"
        );
        for fine in [
            "*.allowed.test",
            "*.example.com",
            "*.example.co.uk",
            "*.www.ck",
            "*.公司.example",
        ] {
            assert!(HostPattern::parse(fine).is_ok(), "{fine}");
        }
    }

    #[test]
    fn a_wildcard_matches_at_label_boundaries_only() {
        let pattern = HostPattern::parse("*.Example.com.").unwrap();
        assert_eq!(pattern.to_string(), "*.example.com");
        for (text, expected) in [
            ("a.example.com", true),
            ("a.b.example.com", true),
            ("example.com", false),
            ("notexample.com", false),
            ("a.example.com.evil.test", false),
        ] {
            assert_eq!(pattern.matches(&name(text)), expected, "{text}");
            assert_eq!(pattern.chosen(&name(text)).is_some(), expected, "{text}");
        }
    }

    #[test]
    fn a_pattern_covers_what_matches_no_other_names() {
        let pattern = |text| HostPattern::parse(text).unwrap();
        for (wide, narrow, expected) in [
            ("*.example.com", "*.example.com", true),
            ("*.example.com", "a.example.com", true),
            ("*.example.com", "*.a.example.com", true),
            ("*.example.com", "example.com", false),
            ("example.com", "example.com", true),
            ("example.com", "*.example.com", false),
            ("*.a.example.com", "*.example.com", false),
            ("a.example.com", "*.example.com", false),
            ("*.example.com", "*.notexample.com", false),
        ] {
            let covers = pattern(wide).covers(&pattern(narrow));
            assert_eq!(covers, expected, "{wide} {narrow}");
        }
    }

    #[test]
    fn what_was_chosen_of_a_name_is_what_the_pattern_does_not_say() {
        let chosen = |pattern: &str, text| {
            let pattern = HostPattern::parse(pattern).unwrap();
            pattern.chosen(&name(text)).map(str::to_owned)
        };
        let name = "A.b.example.com";
        assert_eq!(chosen("*.example.com", name).as_deref(), Some("a.b"));
        assert_eq!(chosen("*.b.example.com", name).as_deref(), Some("a"));
        assert_eq!(chosen("a.b.example.com", name), None);
        assert_eq!(chosen("*.ample.com", name), None);
    }

    proptest! {
        #[test]
        fn canonicalisation_is_idempotent(text in "\\PC{0,40}|[a-zA-ZßüÉ。._-]{1,30}") {
            if let Ok(name) = Name::parse(&text) {
                prop_assert_eq!(Name::parse(name.as_str()), Ok(name.clone()));
                prop_assert_eq!(Name::parse(&format!("{name}.")), Ok(name));
            }
        }

        #[test]
        fn matching_ignores_case(text in "[a-z0-9]{1,8}(\\.[a-z0-9]{1,8}){1,3}") {
            let upper = name(&text.to_uppercase());
            let exact = HostPattern { base: name(&text), below: false };
            let below = HostPattern { base: upper.clone(), below: true };
            let child = name(&format!("x.{text}"));
            let sibling = name(&format!("x{text}"));
            prop_assert!(exact.matches(&upper));
            prop_assert!(below.matches(&child));
            prop_assert!(!below.matches(&upper), "a wildcard matched its own base");
            prop_assert!(!below.matches(&sibling));
        }
    }
}
