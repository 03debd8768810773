//! Errors with a place in the file, and how they are shown.
//!
//! Inside the crate an error grows in three steps, each where its knowledge is: a [`Fault`] says
//! what is wrong with a value, a [`Problem`] where that value stands, and an [`Error`] adds the
//! file and the line's text.

use std::fmt;
use std::sync::Arc;

use crate::yaml;

/// Longest piece of a source line that is shown, in characters.
const SHOWN: usize = 120;

/// Longest piece of the file that a message quotes, in characters.
const QUOTED: usize = 80;

/// Most names that a message lists.
const LISTED: usize = 12;

/// A place in a policy file. It is displayed as `file:line`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The file's name, as given to [`Policy::parse`](crate::Policy::parse).
    pub file: Arc<str>,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", printable(&self.file), self.line)
    }
}

/// What is wrong with a policy, and where.
///
/// It is displayed over several lines, with the line of the file and a caret under the place:
///
/// ```text
/// policy.yml:7:13: port 70000 is out of range
///    |
///  7 |     ports: [70000]
///    |             ^
///    = hint: ports are 1 to 65535
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    location: Location,
    message: String,
    hint: Option<String>,
    /// The line's text as shown, and the caret's offset in it. `None` for an empty file.
    excerpt: Option<(String, usize)>,
}

impl Error {
    /// Where the error is.
    #[must_use]
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// What is wrong, on one line.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}: {}",
            self.location, self.location.column, self.message
        )?;
        let number = self.location.line.to_string();
        let width = number.len();
        if let Some((text, caret)) = &self.excerpt {
            write!(
                f,
                "\n {:width$} |\n {number} | {text}\n {:width$} | {:caret$}^",
                "", "", ""
            )?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n {:width$} = hint: {hint}", "")?;
        }
        Ok(())
    }
}

/// A place in the text: line and column in characters, both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pos {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

impl Pos {
    /// The first character.
    pub(crate) const START: Self = Self { line: 1, column: 1 };

    /// The place behind `text`, which begins here.
    pub(crate) fn after(self, text: &str) -> Self {
        let Self {
            mut line,
            mut column,
        } = self;
        let mut rest = text.chars().peekable();
        while let Some(c) = rest.next() {
            match c {
                '\r' if rest.peek() == Some(&'\n') => {}
                '\r' | '\n' => (line, column) = (line + 1, 1),
                _ => column += 1,
            }
        }
        Self { line, column }
    }
}

/// Where a problem is. Only one that is shown needs lines and columns.
#[derive(Clone, Copy, Debug)]
pub(crate) enum At {
    /// There.
    Pos(Pos),
    /// At a node of the file, by its number in the file's order.
    Node(usize),
}

impl At {
    /// The place in the file's `text`.
    pub(crate) fn pos(self, text: &str) -> Pos {
        match self {
            Self::Pos(pos) => pos,
            Self::Node(number) => yaml::locate(text, number),
        }
    }
}

impl From<Pos> for At {
    fn from(pos: Pos) -> Self {
        Self::Pos(pos)
    }
}

/// What is wrong with a value.
#[derive(Debug, PartialEq)]
pub(crate) struct Fault {
    message: String,
    hint: Option<String>,
}

impl Fault {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
        }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn at(self, at: impl Into<At>) -> Problem {
        Problem {
            at: at.into(),
            fault: self,
        }
    }
}

/// What is wrong with a value, and where it stands.
#[derive(Debug)]
pub(crate) struct Problem {
    at: At,
    fault: Fault,
}

impl Problem {
    /// Adds a hint where there is none.
    pub(crate) fn or_hint(mut self, hint: &str) -> Self {
        self.fault.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// The place in the file's `text`.
    pub(crate) fn pos(&self, text: &str) -> Pos {
        self.at.pos(text)
    }
}

/// Largest policy file, in bytes. A rule takes some thirty; this is for tens of thousands.
pub const MAX_BYTES: usize = 1 << 20;

/// A policy file's name and text: what turns a [`Problem`] into an [`Error`].
#[derive(Debug)]
pub(crate) struct Source {
    file: Arc<str>,
    text: String,
}

impl Source {
    pub(crate) fn new(file: &str, text: String) -> Self {
        Self {
            file: file.into(),
            text,
        }
    }

    /// The text of a policy file. A byte order mark is no part of it.
    ///
    /// # Errors
    /// When it is too long, or not UTF-8.
    pub(crate) fn read(file: &str, bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > MAX_BYTES {
            let size = bytes.len();
            return Err(Self::new(file, String::new()).error(
                Fault::new(format!(
                    "the policy has {size} bytes, at most {MAX_BYTES} are read"
                ))
                .hint("wildcards and networks make long lists short")
                .at(Pos::START),
            ));
        }
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let text = str::from_utf8(bytes).map_err(|error| {
            let (good, bad) = bytes.split_at(error.valid_up_to());
            let at = Pos::START.after(&String::from_utf8_lossy(good));
            Self::new(file, String::from_utf8_lossy(bytes).into_owned()).error(
                Fault::new(format!(
                    "byte 0x{:02x} is not UTF-8",
                    bad.first().copied().unwrap_or_default()
                ))
                .hint("save the file as UTF-8")
                .at(at),
            )
        })?;
        Ok(Self::new(file, text.to_owned()))
    }

    /// Its name.
    pub(crate) fn file(&self) -> &str {
        &self.file
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Whether `location` is in this file, not just in one of that name.
    pub(crate) fn holds(&self, location: &Location) -> bool {
        Arc::ptr_eq(&self.file, &location.file)
    }

    pub(crate) fn location(&self, at: Pos) -> Location {
        Location {
            file: Arc::clone(&self.file),
            line: at.line,
            column: at.column,
        }
    }

    pub(crate) fn error(&self, problem: Problem) -> Error {
        let Problem {
            at,
            fault: Fault { message, hint },
        } = problem;
        let at = at.pos(&self.text);
        let (at, excerpt) = match lines(&self.text).nth(at.line - 1) {
            Some(line) => (at, Some(excerpt(line, at.column))),
            // The text ended too early: point behind the last thing that it says.
            None => match lines(&self.text)
                .enumerate()
                .filter(|(_, line)| !line.trim().is_empty())
                .last()
            {
                Some((index, line)) => {
                    let column = line.trim_end().chars().count() + 1;
                    (
                        Pos {
                            line: index + 1,
                            column,
                        },
                        Some(excerpt(line, column)),
                    )
                }
                None => (Pos::START, None),
            },
        };
        Error {
            location: self.location(at),
            message,
            hint,
            excerpt,
        }
    }
}

/// The lines of `text`, as YAML counts them: a break is a line feed, a carriage return, or both.
pub(crate) fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text).filter(|text| !text.is_empty());
    std::iter::from_fn(move || {
        let text = rest?;
        let end = text.find(['\n', '\r']).unwrap_or(text.len());
        let (line, tail) = text.split_at(end);
        let tail = tail
            .strip_prefix("\r\n")
            .or_else(|| tail.get(1..))
            .unwrap_or_default();
        rest = Some(tail).filter(|tail| !tail.is_empty());
        Some(line)
    })
}

/// The part of `line` around `column`, and the offset of the caret in it.
fn excerpt(line: &str, column: usize) -> (String, usize) {
    let length = line.chars().count();
    let caret = column.saturating_sub(1).min(length);
    if length <= SHOWN {
        return (printable(line.trim_end()), caret);
    }
    let from = caret.saturating_sub(SHOWN / 2).min(length - SHOWN);
    let part: String = line.chars().skip(from).take(SHOWN).collect();
    let before = if from > 0 { "..." } else { "" };
    let after = if from + SHOWN < length { "..." } else { "" };
    (
        format!("{before}{}{after}", printable(&part)),
        caret - from + before.len(),
    )
}

/// `text` from the file, in backticks, for a message.
pub(crate) fn quote(text: &str) -> String {
    format!("`{}`", cut(text, QUOTED))
}

/// Some names of the file, for a message.
pub(crate) fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut names = names.into_iter().map(|name| cut(name, QUOTED));
    let mut list: Vec<String> = names.by_ref().take(LISTED).collect();
    if names.next().is_some() {
        list.push("...".to_owned());
    }
    list.join(", ")
}

/// `text` that may hold some of the file, for a message.
pub(crate) fn shown(text: &str) -> String {
    cut(text, 2 * QUOTED)
}

fn cut(text: &str, length: usize) -> String {
    let short: String = text.chars().take(length).collect();
    let more = if short.len() < text.len() { "..." } else { "" };
    format!("{}{more}", printable(&short))
}

/// `text` without what a terminal would obey or what would hide or reorder the rest of it; each
/// such character becomes one that is shown, so that columns stay what they are.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\t' => ' ',
            c if is_deceptive(c) => char::REPLACEMENT_CHARACTER,
            c => c,
        })
        .collect()
}

/// Whether a character is a control character, does not show, or reorders what does: line and
/// paragraph separators, zero-width and tag characters, variation selectors, and the
/// bidirectional controls of Unicode's UAX 9.
pub(crate) fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{e0000}'..='\u{e0fff}')
}

/// The one of `known` that a writer of `word` most likely meant.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Nobody mistypes a word of this length into another one, and the distance is quadratic.
    if word.len() > QUOTED {
        return None;
    }
    let allowed = (word.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|candidate| (distance(word, candidate, allowed), candidate))
        .filter(|&(distance, _)| distance <= allowed)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// Characters to insert, delete, replace or swap with their neighbour to make `b` of `a`
/// ("optimal string alignment"), ignoring case; anything above `limit` when it is more.
fn distance(a: &str, b: &str, limit: usize) -> usize {
    let a: Vec<char> = a.to_lowercase().chars().collect();
    let b: Vec<char> = b.to_lowercase().chars().collect();
    if a.len().abs_diff(b.len()) > limit {
        return limit + 1;
    }
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut row = vec![i + 1];
        for j in 0..b.len() {
            let replaced = above[j] + usize::from(a[i] != b[j]);
            let mut best = replaced.min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_as_yaml_counts_them() {
        assert_eq!(
            lines("a\nb\r\nc\rd\n\ne\n").collect::<Vec<_>>(),
            ["a", "b", "c", "d", "", "e"]
        );
        assert_eq!(lines("").count(), 0);
        assert_eq!(Pos::START.after("a\nbcd"), Pos { line: 2, column: 4 });
        assert_eq!(Pos::START.after("a\r\nb\r"), Pos { line: 3, column: 1 });
    }

    #[test]
    fn a_long_line_is_shown_around_the_caret() {
        let line = format!("{}X{}", "a".repeat(500), "b".repeat(500));
        let (text, caret) = excerpt(&line, 501);
        assert_eq!(text.chars().nth(caret), Some('X'));
        assert_eq!(text.len(), SHOWN + 6);
    }

    #[test]
    fn what_a_terminal_would_obey_is_not_shown() {
        assert_eq!(
            printable("a\u{1b}[31m\tb\u{202e}c"),
            "a\u{fffd}[31m b\u{fffd}c"
        );
        assert_eq!(quote(&"x".repeat(500)).len(), QUOTED + 5);
    }

    #[test]
    fn the_nearest_word_is_found_only_when_it_is_near() {
        let known = ["host", "cidr", "ports", "reason"];
        assert_eq!(nearest("hots", known), Some("host"));
        assert_eq!(nearest("Host", known), Some("host"));
        assert_eq!(nearest("port", known), Some("ports"));
        assert_eq!(nearest("address", known), None);
    }
}
