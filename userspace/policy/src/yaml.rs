//! YAML, as far as a policy needs it: maps, lists and scalars, each with its position.
//!
//! One parser reads the file once and gives every node with the place where it begins, so the
//! line that a report names is the line that the parser saw. Nodes come one after the other and
//! are never held as a tree: nesting costs no stack, and a file that is wrong is refused at its
//! first wrong node.
//!
//! Anchors, aliases and tags are refused. They are what makes a small file large ("billion
//! laughs"), a policy has `extends` for what they do, and a reviewer should not have to look
//! elsewhere for what a rule says.

use std::borrow::Cow;
use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, StrInput};

use crate::error::{Fault, Pos, Problem, quote};

/// A node, of a list or map only its beginning.
#[derive(Debug)]
pub(crate) struct Node<'t> {
    pub(crate) at: Pos,
    pub(crate) kind: Kind<'t>,
}

/// What a node is.
#[derive(Debug)]
pub(crate) enum Kind<'t> {
    /// Text; `plain` when it stands without quotes and may therefore be a number and so on.
    Scalar { text: Cow<'t, str>, plain: bool },
    /// A list begins.
    List,
    /// A map begins.
    Map,
    /// The innermost list, map or document ends.
    End,
}

impl<'t> Node<'t> {
    /// Whether there is no value, as after `key:`.
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, plain: true }
            if matches!(&**text, "" | "~" | "null" | "Null" | "NULL"))
    }

    /// The text of a scalar.
    pub(crate) fn text(self, what: &str) -> Result<Cow<'t, str>, Problem> {
        match self.kind {
            Kind::Scalar { text, .. } if !text.is_empty() => Ok(text),
            _ => Err(self.unexpected(what).at(self.at)),
        }
    }

    /// `true` or `false`.
    pub(crate) fn boolean(&self) -> Result<bool, Problem> {
        match &self.kind {
            Kind::Scalar { text, plain: true } if text == "true" => Ok(true),
            Kind::Scalar { text, plain: true } if text == "false" => Ok(false),
            _ => Err(self.unexpected("`true` or `false`").at(self.at)),
        }
    }

    /// The fault of being something else than `what`.
    pub(crate) fn unexpected(&self, what: &str) -> Fault {
        let found = match &self.kind {
            _ if self.is_null() => "nothing".into(),
            Kind::Scalar { text, .. } if text.is_empty() => "empty text".into(),
            Kind::Scalar { text, plain: true } => quote(text),
            Kind::Scalar { text, .. } => format!("the text {}", quote(text)),
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
    parser: Parser<'t, StrInput<'t>>,
}

impl<'t> Reader<'t> {
    pub(crate) fn new(text: &'t str) -> Self {
        Self {
            text,
            parser: Parser::new_from_str(text),
        }
    }

    /// The document's outermost node; `None` when the file says nothing.
    pub(crate) fn begin(&mut self) -> Result<Option<Node<'t>>, Problem> {
        loop {
            match self.event()?.0 {
                Event::StreamStart => {}
                Event::DocumentStart(_) => return self.next().map(Some),
                _ => return Ok(None),
            }
        }
    }

    /// Makes sure that the file says nothing more.
    pub(crate) fn finish(&mut self) -> Result<(), Problem> {
        loop {
            match self.event()? {
                (Event::StreamEnd, _) => return Ok(()),
                (Event::DocumentStart(_), at) => {
                    return Err(Fault::new("a second YAML document begins here")
                        .hint("a policy is one document; describe several jobs under `jobs`")
                        .at(at));
                }
                _ => {}
            }
        }
    }

    /// Reads the map that `node` begins; `entry` is given every key with its place and value.
    pub(crate) fn map(
        &mut self,
        node: &Node<'_>,
        what: &str,
        mut entry: impl FnMut(&mut Self, Pos, &str, Node<'t>) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        if !matches!(node.kind, Kind::Map) {
            return Err(node.unexpected(what).at(node.at));
        }
        let mut seen: HashMap<Cow<'t, str>, usize> = HashMap::new();
        loop {
            let key = self.next()?;
            let at = key.at;
            if matches!(key.kind, Kind::End) {
                return Ok(());
            }
            let key = key.text("a key")?;
            if let Some(line) = seen.get(&key) {
                return Err(Fault::new(format!("duplicate key {}", quote(&key)))
                    .hint(format!("it is on line {line} already; keep one of the two"))
                    .at(at));
            }
            let value = self.next()?;
            entry(self, at, &key, value)?;
            seen.insert(key, at.line);
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

    fn next(&mut self) -> Result<Node<'t>, Problem> {
        let (event, at) = self.event()?;
        let (kind, anchor, tag) = match event {
            Event::Scalar(text, style, anchor, tag) => (
                Kind::Scalar {
                    text,
                    plain: style == ScalarStyle::Plain,
                },
                anchor,
                tag,
            ),
            Event::SequenceStart(anchor, tag) => (Kind::List, anchor, tag),
            Event::MappingStart(anchor, tag) => (Kind::Map, anchor, tag),
            Event::Alias(_) => return Err(alias(at)),
            _ => (Kind::End, 0, None),
        };
        if anchor != 0 {
            return Err(alias(at));
        }
        if tag.is_some() {
            return Err(Fault::new("YAML tags (`!...`) are not supported")
                .hint("remove the tag; quotes make text of a number")
                .at(at));
        }
        Ok(Node { at, kind })
    }

    fn event(&mut self) -> Result<(Event<'t>, Pos), Problem> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, pos(&span.start))),
            Some(Err(error)) => Err(self.syntax(&error)),
            None => Ok((Event::StreamEnd, Pos::after(self.text))),
        }
    }

    /// Says what is wrong with the YAML itself, in the writer's terms where one knows them.
    fn syntax(&self, error: &ScanError) -> Problem {
        let rest = self.text.chars().skip(error.marker().index());
        let word: String = rest
            .take_while(|c| !c.is_whitespace() && !",]}".contains(*c))
            .collect();
        let fault = if word == "*" || word.starts_with("*.") {
            Fault::new("text that begins with `*` must be quoted")
                .hint("write a wildcard as \"*.example.com\"")
        } else if word.starts_with('*') {
            return alias(pos(error.marker()));
        } else {
            let fault = Fault::new(format!("not valid YAML: {}", error.info()));
            if error.info().starts_with("tab") || error.info().contains(" tab") {
                fault.hint("indent with spaces")
            } else if error.info().starts_with("mapping values are not allowed") {
                fault.hint(
                    "is the line indented like its neighbours? text with `: ` in it must be quoted",
                )
            } else {
                fault
            }
        };
        fault.at(pos(error.marker()))
    }
}

fn alias(at: Pos) -> Problem {
    Fault::new("YAML anchors (`&`) and aliases (`*`) are not supported")
        .hint("write the rules out; `extends` lets one job have the rules of another")
        .at(at)
}

fn pos(mark: &Marker) -> Pos {
    Pos {
        line: mark.line(),
        column: mark.col() + 1,
    }
}
