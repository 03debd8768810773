//! YAML, as far as a policy needs it: maps, lists and scalars, each with its position.
//!
//! `serde_yaml` reads the file and decides what every node is. It gives positions only with its
//! errors, so a node carries its number in the file's order instead, and [`locate`] finds the
//! place of a number when an error is about to be shown: it reads the file once more with the
//! same code and stops at that node with an error, which has the node's position. A rule needs
//! its place without an error; [`Reader::place`] tells it from where in the text its first key
//! was borrowed.
//!
//! Anchors and aliases are refused. They are what makes a small file large ("billion laughs"), a
//! policy has `extends` for what they do, and a reviewer should not have to look elsewhere for
//! what a rule says. Tags are refused, too, except those of YAML's own types such as `!!str`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use serde::de::{self, DeserializeSeed, EnumAccess, MapAccess, SeqAccess, Visitor};
use serde_yaml::Deserializer;

use crate::error::{At, Fault, Pos, Problem, lines, quote, shown};

/// Most lists and maps in each other. A policy has six.
const DEPTH: usize = 16;

/// How much may be read before its depth is checked, in bytes times brackets that may be open.
const UNCHECKED: usize = 1 << 25;

/// A node, of a list or map only its beginning.
#[derive(Debug)]
pub(crate) struct Node<'t> {
    pub(crate) at: At,
    pub(crate) kind: Kind<'t>,
}

/// What a node is, by the rules of YAML 1.2's core schema.
#[derive(Debug)]
pub(crate) enum Kind<'t> {
    /// No value, as after `key:`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number, in decimal. A fraction need not be spelled as in the file.
    Number(String),
    /// Text; borrowed from the file where it stands there unchanged.
    Text(Cow<'t, str>),
    /// A list begins.
    List,
    /// A map begins.
    Map,
    /// The innermost list or map ends.
    End,
}

impl<'t> Node<'t> {
    /// Whether there is no value, as after `key:`.
    pub(crate) fn is_null(&self) -> bool {
        matches!(self.kind, Kind::Null)
    }

    /// The text of a scalar.
    pub(crate) fn text(self, what: &str) -> Result<Cow<'t, str>, Problem> {
        match self.kind {
            Kind::Text(text) if !text.is_empty() => Ok(text),
            Kind::Bool(_) | Kind::Number(_) => Err(self
                .unexpected(what)
                .hint("put it in quotes: YAML takes it for something else than text")
                .at(self.at)),
            _ => Err(self.unexpected(what).at(self.at)),
        }
    }

    /// The text of a scalar that may look like a number.
    pub(crate) fn text_or_number(self, what: &str) -> Result<Cow<'t, str>, Problem> {
        match self.kind {
            Kind::Number(digits) => Ok(digits.into()),
            Kind::Text(text) if !text.is_empty() => Ok(text),
            _ => Err(self.unexpected(what).at(self.at)),
        }
    }

    /// `true` or `false`.
    pub(crate) fn boolean(&self) -> Result<bool, Problem> {
        let expected = "`true` or `false`";
        match &self.kind {
            Kind::Bool(value) => Ok(*value),
            Kind::Text(text) if matches!(&**text, "true" | "false") => Err(Fault::new(format!(
                "expected {expected}, found the text `{text}`"
            ))
            .hint("remove the quotes")
            .at(self.at)),
            _ => {
                let fault = self.unexpected(expected);
                Err(match self.switch() {
                    Some(meant) => fault.hint(format!("did you mean `{meant}`?")),
                    None => fault,
                }
                .at(self.at))
            }
        }
    }

    /// Whether there is no value, or empty text.
    pub(crate) fn is_empty(&self) -> bool {
        match &self.kind {
            Kind::Null => true,
            Kind::Text(text) => text.is_empty(),
            _ => false,
        }
    }

    /// What is meant by a word that switches something on or off elsewhere, for a hint.
    pub(crate) fn switch(&self) -> Option<bool> {
        match &self.kind {
            Kind::Bool(value) => Some(*value),
            Kind::Text(text) => match &*text.to_lowercase() {
                "true" | "yes" | "on" | "enable" | "enabled" => Some(true),
                "false" | "no" | "off" | "disable" | "disabled" | "none" => Some(false),
                _ => None,
            },
            _ => None,
        }
    }

    /// The fault of being something else than `what`.
    pub(crate) fn unexpected(&self, what: &str) -> Fault {
        let found = match &self.kind {
            Kind::Null => "nothing".into(),
            Kind::Bool(value) => format!("`{value}`"),
            Kind::Number(digits) => quote(digits),
            Kind::Text(text) if text.is_empty() => "empty text".into(),
            Kind::Text(text) => quote(text),
            Kind::List => "a list".into(),
            Kind::Map => "a map".into(),
            Kind::End => "the end".into(),
        };
        Fault::new(format!("expected {what}, found {found}"))
    }
}

/// Reads the nodes of one document.
pub(crate) struct Reader<'t> {
    text: &'t str,
    nodes: std::iter::Enumerate<std::vec::IntoIter<Kind<'t>>>,
    /// What is wrong behind the last node.
    broken: Option<Problem>,
    /// How far [`Self::place`] has counted: bytes, and the place there.
    counted: (usize, Pos),
}

impl<'t> Reader<'t> {
    pub(crate) fn new(text: &'t str) -> Self {
        let (nodes, end) = match check_characters(text).and_then(|()| check_anchors(text)) {
            Ok(()) => Recorder::read(text, usize::MAX),
            Err(problem) => (Vec::new(), Err(problem)),
        };
        Self {
            text,
            nodes: nodes.into_iter().enumerate(),
            broken: end.err(),
            counted: (0, Pos::START),
        }
    }

    /// The document's outermost node.
    pub(crate) fn begin(&mut self) -> Result<Node<'t>, Problem> {
        self.next()
    }

    /// Makes sure that the file says nothing more.
    pub(crate) fn finish(&mut self) -> Result<(), Problem> {
        self.broken.take().map_or(Ok(()), Err)
    }

    /// Reads the map that `node` begins; `entry` is given every key with its place and value.
    pub(crate) fn map(
        &mut self,
        node: &Node<'_>,
        what: &str,
        mut entry: impl FnMut(&mut Self, At, &str, Node<'t>) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        if !matches!(node.kind, Kind::Map) {
            return Err(node.unexpected(what).at(node.at));
        }
        let mut seen: HashMap<Cow<'t, str>, At> = HashMap::new();
        loop {
            let key = self.next()?;
            let at = key.at;
            if matches!(key.kind, Kind::End) {
                return Ok(());
            }
            let key = key.text("a key")?;
            if let Some(first) = seen.get(&key) {
                let line = first.pos(self.text).line;
                return Err(Fault::new(format!("duplicate key {}", quote(&key)))
                    .hint(format!("it is on line {line} already; keep one of the two"))
                    .at(at));
            }
            let value = self.next()?;
            let empty = value.is_empty();
            entry(self, at, &key, value).map_err(|problem| {
                if empty {
                    problem.or_hint("write its value, or remove the key")
                } else {
                    problem
                }
            })?;
            seen.insert(key, at);
        }
    }

    /// Reads the list that `node` begins; `item` is given every item.
    pub(crate) fn list(
        &mut self,
        node: &Node<'_>,
        what: &str,
        mut item: impl FnMut(&mut Self, Node<'t>) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        if !matches!(node.kind, Kind::List) {
            return Err(node.unexpected(what).at(node.at));
        }
        loop {
            let node = self.next()?;
            if matches!(node.kind, Kind::End) {
                return Ok(());
            }
            item(self, node)?;
        }
    }

    /// The first key of the map that `node` begins, for a message. The map cannot be read then.
    pub(crate) fn first_key(&mut self, node: &Node<'_>) -> Option<Cow<'t, str>> {
        if !matches!(node.kind, Kind::Map) {
            return None;
        }
        match self.next().ok()?.kind {
            Kind::Text(key) => Some(key),
            _ => None,
        }
    }

    /// Where a scalar's text begins (after its quote); `None` when the file spells it otherwise,
    /// with escapes or over several lines, so that it is no part of the file. To be asked in the
    /// file's order: the count goes on from the last answer.
    pub(crate) fn place(&mut self, scalar: &str) -> Option<Pos> {
        let (from, pos) = self.counted;
        let offset = (scalar.as_ptr() as usize).checked_sub(self.text.as_ptr() as usize)?;
        if !self.text.get(offset..)?.starts_with(scalar) {
            return None;
        }
        let pos = pos.after(self.text.get(from..offset)?);
        self.counted = (offset, pos);
        Some(pos)
    }

    fn next(&mut self) -> Result<Node<'t>, Problem> {
        match self.nodes.next() {
            Some((number, kind)) => Ok(Node {
                at: At::Node(number),
                kind,
            }),
            None => Err(self.broken.take().unwrap_or_else(|| {
                Fault::new("the file ends too early").at(Pos::START.after(self.text))
            })),
        }
    }
}

/// The place of a node, by its number in the file's order.
pub(crate) fn locate(text: &str, number: usize) -> Pos {
    match Recorder::read(text, number).1 {
        Err(stop) => stop.pos(text),
        Ok(()) => Pos::START.after(text),
    }
}

/// Places in the text that are near enough to each other, whatever is between them.
fn checkpoints(text: &str) -> impl Iterator<Item = usize> {
    let mut from = 0;
    let mut brackets = 0;
    // Those of the `brackets` whose end will be seen: behind a bracket that opens something, all
    // brackets count until a quote, a comment or a tag may hold one that does not.
    let mut certain = 0;
    text.char_indices().filter_map(move |(offset, c)| {
        match c {
            '[' | '{' => (brackets, certain) = (brackets + 1, certain + 1),
            ']' | '}' if certain > 0 => (brackets, certain) = (brackets - 1, certain - 1),
            '"' | '\'' | '#' | '!' => certain = 0,
            _ => {}
        }
        // What follows `---` decides whether it ends a document, so that is no place to stop.
        let end = (offset - from) * brackets > UNCHECKED && !matches!(c, '-' | '.');
        if end {
            (from, brackets, certain) = (offset, 0, 0);
        }
        end.then_some(offset + c.len_utf8())
    })
}

/// Where `serde_yaml` saw an error. Only its byte offset counts: libyaml has more line breaks
/// than editors have.
fn pos(text: &str, error: &serde_yaml::Error) -> Pos {
    let offset = error
        .location()
        .map_or(text.len(), |location| location.index());
    Pos::START.after(text.get(..offset).unwrap_or(text))
}

/// Why reading ends before the file does.
enum End {
    /// We refuse a node, whatever follows it.
    Refused(Problem),
    /// It is no YAML, or no more than the beginning of some.
    Broken(Problem),
}

/// Writes down the nodes of a document, in its order.
struct Recorder<'t> {
    nodes: Vec<Kind<'t>>,
    /// The number of the node that is not read any more: it is an error.
    until: usize,
    /// How many lists and maps are open.
    depth: usize,
    /// What is wrong with the node at which we, not `serde_yaml`, made an error.
    fault: Option<Fault>,
}

impl<'t> Recorder<'t> {
    fn until(until: usize) -> Self {
        Self {
            nodes: Vec::new(),
            until,
            depth: 0,
            fault: None,
        }
    }

    /// The nodes of the file, up to the one with the number `until`, and what is wrong behind
    /// them.
    fn read(text: &'t str, until: usize) -> (Vec<Kind<'t>>, Result<(), Problem>) {
        // libyaml scans a document to its end before anything here can limit the depth, and its
        // time for each token grows with the number of open brackets. So where that could take
        // long, the file is first read up to there: if it is nested too deeply so far, we stop.
        for end in checkpoints(text) {
            let mut recorder = Self::until(until);
            if let Err(End::Refused(problem)) = recorder.file(&text[..end]) {
                return (recorder.nodes, Err(problem));
            }
        }
        let mut recorder = Self::until(until);
        let end = recorder.file(text).map_err(|end| match end {
            End::Refused(problem) | End::Broken(problem) => problem,
        });
        (recorder.nodes, end)
    }

    /// Reads a file of one document.
    fn file(&mut self, text: &'t str) -> Result<(), End> {
        let mut documents = Deserializer::from_str(text);
        if let Some(first) = documents.next() {
            self.document(text, first)?;
        }
        let Some(second) = documents.next() else {
            return Ok(());
        };
        // It is stopped at its first node, to have the place.
        match Recorder::until(0).document(text, second) {
            Err(End::Refused(stop)) => Err(End::Refused(
                Fault::new("a second YAML document begins here")
                    .hint("a policy is one document; describe several jobs under `jobs`")
                    .at(stop.pos(text)),
            )),
            broken => broken,
        }
    }

    fn document(&mut self, text: &str, document: Deserializer<'t>) -> Result<(), End> {
        Value(self)
            .deserialize(document)
            .map_err(|error| match self.fault.take() {
                Some(fault) => End::Refused(fault.at(pos(text, &error))),
                None => End::Broken(syntax(text, &error)),
            })
    }

    fn push<E: de::Error>(&mut self, kind: Kind<'t>) -> Result<(), E> {
        if self.nodes.len() == self.until {
            return Err(self.refuse(Fault::new("stop")));
        }
        self.nodes.push(kind);
        Ok(())
    }

    /// Begins a list or map.
    fn open<E: de::Error>(&mut self, kind: Kind<'t>) -> Result<(), E> {
        self.push(kind)?;
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(self.refuse(Fault::new("lists and maps are nested too deeply")));
        }
        Ok(())
    }

    /// Ends the innermost list or map.
    fn close<E: de::Error>(&mut self) -> Result<(), E> {
        self.depth -= 1;
        self.push(Kind::End)
    }

    /// An error at the node that is being read. `serde_yaml` adds the position to it.
    fn refuse<E: de::Error>(&mut self, fault: Fault) -> E {
        self.fault = Some(fault);
        E::custom("refused")
    }
}

/// Records a node with all that is in it.
struct Value<'r, 't>(&'r mut Recorder<'t>);

impl<'t> DeserializeSeed<'t> for Value<'_, 't> {
    type Value = ();

    fn deserialize<D: de::Deserializer<'t>>(self, node: D) -> Result<(), D::Error> {
        node.deserialize_any(self)
    }
}

impl<'t> Visitor<'t> for Value<'_, 't> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_none<E: de::Error>(self) -> Result<(), E> {
        self.0.push(Kind::Null)
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        self.0.push(Kind::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<(), E> {
        self.0.push(Kind::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<(), E> {
        self.0.push(Kind::Number(value.to_string()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<(), E> {
        self.0.push(Kind::Number(value.to_string()))
    }

    fn visit_i128<E: de::Error>(self, value: i128) -> Result<(), E> {
        self.0.push(Kind::Number(value.to_string()))
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<(), E> {
        self.0.push(Kind::Number(value.to_string()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<(), E> {
        // The debug format keeps the `.0` of a whole number.
        self.0.push(Kind::Number(format!("{value:?}")))
    }

    fn visit_borrowed_str<E: de::Error>(self, text: &'t str) -> Result<(), E> {
        self.0.push(Kind::Text(text.into()))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<(), E> {
        self.0.push(Kind::Text(text.to_owned().into()))
    }

    fn visit_seq<A: SeqAccess<'t>>(self, mut items: A) -> Result<(), A::Error> {
        self.0.open(Kind::List)?;
        while items.next_element_seed(Value(self.0))?.is_some() {}
        self.0.close()
    }

    fn visit_map<A: MapAccess<'t>>(self, mut entries: A) -> Result<(), A::Error> {
        self.0.open(Kind::Map)?;
        while entries.next_key_seed(Key(self.0))?.is_some() {
            entries.next_value_seed(Value(self.0))?;
        }
        self.0.close()
    }

    /// A tag that is not one of YAML's own.
    fn visit_enum<A: EnumAccess<'t>>(self, _: A) -> Result<(), A::Error> {
        Err(self.0.refuse(
            Fault::new("YAML tags (`!...`) are not supported")
                .hint("remove the tag; quotes make text of a number"),
        ))
    }
}

/// Records a key. It is text even where a value would be a number: `3.10` names a job.
struct Key<'r, 't>(&'r mut Recorder<'t>);

impl<'t> Key<'_, 't> {
    fn record<E: de::Error>(self, text: Cow<'t, str>) -> Result<(), E> {
        self.0.fault = None;
        self.0.push(Kind::Text(text))
    }
}

impl<'t> DeserializeSeed<'t> for Key<'_, 't> {
    type Value = ();

    fn deserialize<D: de::Deserializer<'t>>(self, key: D) -> Result<(), D::Error> {
        // Of a key that is not a scalar, the visitor hears nothing.
        self.0.fault = Some(Fault::new("expected a key, found a list or a map"));
        key.deserialize_str(self)
    }
}

impl<'t> Visitor<'t> for Key<'_, 't> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E: de::Error>(self, text: &'t str) -> Result<(), E> {
        self.record(text.into())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<(), E> {
        self.record(text.to_owned().into())
    }
}

/// Refuses what libyaml would refuse, but without a place.
fn check_characters(text: &str) -> Result<(), Problem> {
    let allowed = |c: char| match c {
        '\t' | '\n' | '\r' | '\u{85}' => true,
        '\u{fffe}' | '\u{ffff}' => false,
        c => !c.is_control(),
    };
    match text.char_indices().find(|&(_, c)| !allowed(c)) {
        None => Ok(()),
        Some((offset, c)) => Err(Fault::new(format!(
            "not valid YAML: the character {} is not allowed",
            c.escape_unicode()
        ))
        .at(Pos::START.after(&text[..offset]))),
    }
}

/// Refuses every `&` that could begin an anchor, since `serde_yaml` follows aliases without a
/// word. Where an anchor can begin is more than where one does: text and comments are not told
/// apart, so that no quoting trick gets one through. Without an anchor, an alias is an error.
fn check_anchors(text: &str) -> Result<(), Problem> {
    let begins = |offset: usize| {
        let before = text[..offset].chars().next_back();
        let after = text[offset + 1..].chars().next();
        // A token follows white space or an indicator, a name begins with one of these.
        before.is_none_or(|c| c.is_whitespace() || "[{,:?".contains(c))
            && after.is_some_and(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    match text.match_indices('&').find(|&(offset, _)| begins(offset)) {
        None => Ok(()),
        Some((offset, _)) => Err(alias()
            .hint("write the rules out, or, in text, put a space behind the `&`")
            .at(Pos::START.after(&text[..offset]))),
    }
}

fn alias() -> Fault {
    Fault::new("YAML anchors (`&`) and aliases (`*`) are not supported")
        .hint("write the rules out; `extends` lets one job have the rules of another")
}

/// Says what is wrong with the YAML itself, in the writer's terms where one knows them.
fn syntax(text: &str, error: &serde_yaml::Error) -> Problem {
    let mut message = error.to_string();
    let mut offset = text.len();
    if let Some(location) = error.location() {
        offset = location.index();
        // It is shown with the message.
        let place = format!(" at line {} column {}", location.line(), location.column());
        message = message.replacen(&place, "", 1);
    }
    let (before, rest) = text.split_at_checked(offset).unwrap_or((text, ""));
    // An alias without a proper name is noticed behind its `*`.
    let (before, rest) = match before.strip_suffix('*') {
        Some(before) => (before, &text[before.len()..]),
        None => (before, rest),
    };
    let fault = match rest.strip_prefix('*') {
        Some(name) if name.starts_with(|c: char| c.is_ascii_alphanumeric()) => alias(),
        Some(_) => Fault::new("text that begins with `*` must be quoted")
            .hint("write a wildcard as \"*.example.com\""),
        None => {
            let fault = Fault::new(format!("not valid YAML: {}", shown(&message)));
            if rest.starts_with('\t') {
                fault.hint("indent with spaces")
            } else {
                match layout(&message, before, rest) {
                    Some(hint) => fault.hint(hint),
                    None => fault,
                }
            }
        }
    };
    fault.at(Pos::START.after(before))
}

/// What may be wrong with spaces where libyaml gives up with `message`, between `before` and
/// `rest`.
fn layout(message: &str, before: &str, rest: &str) -> Option<String> {
    let is = |start| message.starts_with(start);
    if is("mapping values are not allowed") {
        let hint = "is the line indented like its neighbours? text with `: ` in it must be quoted";
        return Some(hint.into());
    }
    if is("could not find expected ':'") {
        return Some("a key ends with a colon and a space".into());
    }
    let (above, indentation) = match before.rfind(['\n', '\r']) {
        Some(end) => before.split_at(end + 1),
        None => ("", before),
    };
    let in_list = is("did not find expected '-' indicator");
    let misplaced =
        in_list || is("did not find expected key") || is("block sequence entries are not allowed");
    if !misplaced || !indentation.trim().is_empty() {
        return None;
    }
    if let Some(item) = rest.strip_prefix('-')
        && item.starts_with(|c: char| c.is_ascii_alphanumeric())
    {
        return Some("put a space behind the `-`".into());
    }
    let items = (1..).zip(lines(above)).filter_map(|(number, line)| {
        let item = line.trim_start().strip_prefix("- ")?;
        Some((number, item))
    });
    let key = items.last().and_then(|(number, item)| {
        let (key, _) = item.split_once(':')?;
        let is_plain = key
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        is_plain.then_some((number, key))
    });
    Some(match key {
        Some((number, key)) if in_list => format!(
            "if it belongs to the item in line {number}, align it with {} there",
            quote(key)
        ),
        _ => "is the line indented like its neighbours?".into(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_yaml::Value as Tree;

    use super::*;

    #[test]
    fn every_node_is_found_where_it_stands() {
        let text = "a: 1 # [\n\"b\": [x, 'y', {}]\nc:\n  - \u{e9}: null\n    d:\n  - |\n   e\n";
        let expected = [
            (1, 1, "Map"),
            (1, 1, "Text(\"a\")"),
            (1, 4, "Number(\"1\")"),
            (2, 1, "Text(\"b\")"),
            (2, 6, "List"),
            (2, 7, "Text(\"x\")"),
            (2, 10, "Text(\"y\")"),
            (2, 15, "Map"),
            (3, 1, "Text(\"c\")"),
            (4, 3, "List"),
            (4, 5, "Map"),
            (4, 5, "Text(\"\u{e9}\")"),
            (4, 8, "Null"),
            (5, 5, "Text(\"d\")"),
            (5, 7, "Null"),
            (6, 5, "Text(\"e\\n\")"),
        ];
        let (nodes, end) = Recorder::read(text, usize::MAX);
        end.unwrap();
        let found: Vec<(usize, usize, String)> = nodes
            .iter()
            .enumerate()
            .filter(|(_, kind)| !matches!(kind, Kind::End))
            .map(|(number, kind)| {
                let pos = locate(text, number);
                (pos.line, pos.column, format!("{kind:?}"))
            })
            .collect();
        let found: Vec<(usize, usize, &str)> =
            found.iter().map(|(l, c, k)| (*l, *c, &**k)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_libyaml_takes_for_a_character_we_do() {
        let planes = ('\0'..='\u{2fff}').chain('\u{d700}'..='\u{10010}');
        for c in planes.chain(['\u{1fffe}', '\u{e0001}', char::MAX]) {
            let text = format!("# {c}\n");
            assert_eq!(
                serde_yaml::from_str::<Tree>(&text).is_ok(),
                check_characters(&text).is_ok(),
                "{c:?}"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5000))]

        #[test]
        fn no_anchor_gets_through(
            parts in prop::collection::vec(prop::sample::select(PARTS), 1..12),
        ) {
            let text = parts.concat();
            // An alias that means something does not any more under another name.
            if check_anchors(&text).is_ok() && serde_yaml::from_str::<Tree>(&text).is_ok() {
                let renamed = text.replace("*a", "*b");
                prop_assert!(serde_yaml::from_str::<Tree>(&renamed).is_ok(), "{text:?}");
            }
        }

        #[test]
        fn a_text_that_the_file_holds_has_the_place_of_its_node(
            parts in prop::collection::vec(prop::sample::select(PARTS), 1..12),
        ) {
            let text = parts.concat();
            let mut reader = Reader::new(&text);
            while let Ok(node) = reader.next() {
                if let Kind::Text(Cow::Borrowed(scalar)) = node.kind
                    && let Some(place) = reader.place(scalar)
                    && !text.contains(['"', '\'', '!'])
                {
                    prop_assert_eq!(place, node.at.pos(&text), "{:?}", text);
                }
            }
        }
    }

    const PARTS: &[&str] = &[
        "&a", "&a ", "*a", "*a ", " ", "\n", "\n ", "- ", "? ", ": ", ":", ",", "[", "]", "{", "}",
        "\"", "'", "# ", "!<t> ", "!!str ", "|\n ", "x", "\u{e9}", "\u{85}", "a: ", "[&a x, ",
        "*a]",
    ];
}
