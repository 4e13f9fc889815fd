//! The bytes of one Dockerfile, and places in them: [`Source`], [`Span`], [`Word`].
//!
//! Invariant: a span made by this crate lies inside its source. A `Source` knows nothing of the language.

use std::borrow::Cow;
use std::sync::Arc;

use super::error::{DockerfileError, Place};

/// A byte range of a [`Source`]; `end` is exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// Offset of the first byte.
    pub start: usize,
    /// Offset behind the last byte.
    pub end: usize,
}

/// A piece of an instruction as it was written, unexpanded: joined over continuation lines, quotes still in place
/// (flags excepted: they lose their quotes while they are split), with the place it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// The text; for a continued word without the escape character and the newline.
    pub text: String,
    /// Where it stands.
    pub span: Span,
}

/// A line and a column, both counted from 1; the column counts characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

/// A Dockerfile's name as the user gave it, and its bytes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Source {
    name: Arc<str>,
    bytes: Arc<[u8]>,
    line_starts: Arc<[usize]>,
}

impl Source {
    /// Keeps `bytes` under `name`, which error messages will show.
    #[must_use]
    pub fn new(name: &str, bytes: &[u8]) -> Self {
        let after_newlines = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
        let line_starts = std::iter::once(0).chain(after_newlines).collect();
        Self { name: name.into(), bytes: bytes.into(), line_starts }
    }

    /// The name as given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Line and column of a byte offset; an offset behind the end counts as the end.
    #[must_use]
    pub fn position(&self, offset: usize) -> Position {
        let offset = offset.min(self.bytes.len());
        let line = self.line_starts.partition_point(|start| *start <= offset);
        let before = String::from_utf8_lossy(&self.bytes[self.line_starts[line - 1]..offset]);
        Position { line, column: before.chars().count() + 1 }
    }

    /// The text of a line (from 1) without its line end; empty for a line that is not there.
    #[must_use]
    pub fn line_text(&self, line: usize) -> Cow<'_, str> {
        let Some(start) = line.checked_sub(1).and_then(|index| self.line_starts.get(index)) else {
            return Cow::Borrowed("");
        };
        let end = self.line_starts.get(line).copied().unwrap_or(self.bytes.len());
        let text = &self.bytes[*start..end];
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        String::from_utf8_lossy(text.strip_suffix(b"\r").unwrap_or(text))
    }

    /// An error about the token at `span`.
    #[must_use]
    pub fn error(&self, span: Span, message: impl Into<String>) -> DockerfileError {
        let at = self.position(span.start);
        let line_text = self.line_text(at.line).into_owned();
        let in_line = self.position(span.end);
        let end_column = if in_line.line == at.line { in_line.column } else { line_text.chars().count() + 1 };
        let place = Place {
            file: self.name.to_string(),
            line: at.line,
            column: at.column,
            width: end_column.saturating_sub(at.column).max(1),
            line_text,
            instruction_line: at.line,
        };
        DockerfileError { place: Box::new(place), message: message.into(), hint: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_counts_characters_and_a_line_ends_before_crlf() {
        let source = Source::new("Dockerfile", "FROM é x\r\nRUN y".as_bytes());
        assert_eq!(source.position("FROM é ".len()), Position { line: 1, column: 8 });
        assert_eq!(source.line_text(1), "FROM é x");
        assert_eq!(source.position(1000), Position { line: 2, column: 6 });
        assert_eq!(source.line_text(7), "");
    }

    #[test]
    fn an_error_underlines_its_token_but_never_past_its_line() {
        let source = Source::new("D", b"FROM a\nRUN b");
        let place = source.error(Span { start: 5, end: 12 }, "m").place;
        assert_eq!((place.line, place.column, place.width), (1, 6, 1));
        assert_eq!(source.error(Span { start: 7, end: 10 }, "m").place.width, 3);
    }
}
