//! Physical lines to logical lines: continuations, comments, empty lines, the byte order mark, directives; and the
//! bodies of here-documents.
//!
//! Invariant: every byte of a [`LogicalLine`] maps back to the byte of the source it came from.
//! Not here: what the words of a line mean.

use std::ops::Range;

use super::directives::{DirectiveReader, Directives};
use super::error::DockerfileError;
use super::source::{Source, Span, Word};

/// The longest line that BuildKit's scanner takes, without the newline.
const LONGEST_LINE_BYTES: usize = 65_535;

/// One instruction's text over all its lines.
#[derive(Debug)]
pub(super) struct LogicalLine {
    /// Joined text, no blanks at its end.
    pub(super) text: String,
    /// The blanks that stood at its end.
    pub(super) tail: String,
    /// (offset in `text`, offset in the source) where each physical line's part begins; sorted, starting at 0.
    parts: Vec<(usize, usize)>,
    /// The instruction in the source, without here-documents.
    pub(super) span: Span,
    /// The comment lines above, over empty lines too, without `#`.
    pub(super) comments: Vec<String>,
    /// Whether empty lines stand inside the continuation, which the language wants to forbid one day.
    pub(super) has_empty_continuation: bool,
}

impl LogicalLine {
    fn source_offset(&self, offset: usize) -> usize {
        let part = self.parts.partition_point(|(start, _)| *start <= offset).saturating_sub(1);
        let (start, source_start) = self.parts[part];
        source_start + (offset - start)
    }

    /// The place of a range of `text`.
    pub(super) fn span_of(&self, range: Range<usize>) -> Span {
        let start = self.source_offset(range.start);
        // The end is taken from the last byte: the byte behind it may stand on another physical line.
        let end = if range.is_empty() { start } else { self.source_offset(range.end - 1) + 1 };
        Span { start, end }
    }

    /// A range of `text` as it is.
    pub(super) fn word(&self, range: Range<usize>) -> Word {
        Word { text: self.text[range.clone()].to_owned(), span: self.span_of(range) }
    }
}

/// Reads a [`Source`] from front to back.
#[derive(Debug)]
pub(super) struct Lexer<'a> {
    source: &'a Source,
    offset: usize,
    directives: DirectiveReader,
}

/// One physical line: its bytes without the line end, and where they begin.
struct Line<'a> {
    bytes: &'a [u8],
    start: usize,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(source: &'a Source) -> Self {
        let offset = if source.bytes().starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        Self { source, offset, directives: DirectiveReader::default() }
    }

    pub(super) fn directives(&self) -> &Directives {
        &self.directives.directives
    }

    /// The next instruction, or `None` at the end of the file.
    pub(super) fn next_instruction(&mut self) -> Result<Option<LogicalLine>, DockerfileError> {
        let mut comments = Vec::new();
        while let Some(line) = self.next_line()? {
            let trimmed = without_indentation(line.bytes);
            let start = line.start + (line.bytes.len() - trimmed.len());
            let span = Span { start, end: start + trimmed.len() };
            if self.directives.line(trimmed, span).map_err(|message| self.source.error(span, message))? {
                continue;
            }
            match trimmed.first() {
                Some(b'#') => {
                    // As in BuildKit, the hash of an indented comment is a part of what it says.
                    let said = String::from_utf8_lossy(&line.bytes[1..]).trim().to_owned();
                    // An empty comment, unlike an empty line, parts those above it from the instruction.
                    if said.is_empty() { comments.clear() } else { comments.push(said) }
                }
                Some(_) => return self.instruction(start, trimmed, comments).map(Some),
                None => {}
            }
        }
        Ok(None)
    }

    fn instruction(
        &mut self,
        start: usize,
        first: &[u8],
        comments: Vec<String>,
    ) -> Result<LogicalLine, DockerfileError> {
        let mut joined = LogicalLine {
            text: String::new(),
            tail: String::new(),
            parts: Vec::new(),
            span: Span::default(),
            comments,
            has_empty_continuation: false,
        };
        let mut end = start;
        let mut current = Some((first, start));
        while let Some((bytes, at)) = current.take() {
            let kept = self.without_continuation(bytes);
            let text = kept.unwrap_or(bytes);
            end = at + text.trim_ascii_end().len();
            joined.parts.push((joined.text.len(), at));
            joined.text.push_str(self.decode(text, at)?);
            while kept.is_some() && current.is_none() {
                let Some(line) = self.next_line()? else { break };
                match without_indentation(line.bytes).first() {
                    Some(b'#') => {}
                    None => joined.has_empty_continuation = true,
                    Some(_) => current = Some((line.bytes, line.start)),
                }
            }
        }
        let length = joined.text.trim_end().len();
        joined.tail = joined.text.split_off(length);
        joined.span = Span { start, end };
        Ok(joined)
    }

    /// The line before its continuation character, or `None` if the line ends the instruction. An escape character
    /// that is itself escaped continues nothing.
    fn without_continuation<'b>(&self, line: &'b [u8]) -> Option<&'b [u8]> {
        let escape = self.directives().escape as u8;
        let blanks = line.iter().rev().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        let kept = line[..line.len() - blanks].strip_suffix(&[escape])?;
        (kept.last() != Some(&escape)).then_some(kept)
    }

    /// The body of a here-document up to its delimiter, raw, with every line ended as it was written.
    pub(super) fn heredoc_body(
        &mut self,
        delimiter: &str,
        strip_tabs: bool,
        opened: Span,
    ) -> Result<Word, DockerfileError> {
        let start = self.offset;
        loop {
            let end = self.offset;
            let Some(line) = self.next_line()? else {
                let message = format!("unterminated heredoc: no line {delimiter:?} ends it");
                return Err(self.source.error(opened, message));
            };
            let tabs = if strip_tabs { line.bytes.iter().take_while(|byte| **byte == b'\t').count() } else { 0 };
            if &line.bytes[tabs..] == delimiter.as_bytes() {
                let text = self.decode(&self.source.bytes()[start..end], start)?.to_owned();
                return Ok(Word { text, span: Span { start, end } });
            }
        }
    }

    fn next_line(&mut self) -> Result<Option<Line<'a>>, DockerfileError> {
        let start = self.offset;
        let rest = &self.source.bytes()[start..];
        if rest.is_empty() {
            return Ok(None);
        }
        let length = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        if length > LONGEST_LINE_BYTES {
            let message = format!("dockerfile line greater than maximum allowed size of {LONGEST_LINE_BYTES} bytes");
            return Err(self.source.error(Span { start, end: start + 1 }, message));
        }
        self.offset = (start + length + 1).min(self.source.bytes().len());
        let mut bytes = &rest[..length];
        while let Some(shorter) = bytes.strip_suffix(b"\r") {
            bytes = shorter;
        }
        Ok(Some(Line { bytes, start }))
    }

    fn decode<'b>(&self, bytes: &'b [u8], start: usize) -> Result<&'b str, DockerfileError> {
        std::str::from_utf8(bytes).map_err(|error| {
            let at = start + error.valid_up_to();
            self.source.error(Span { start: at, end: at + 1 }, "this byte is not valid UTF-8")
        })
    }
}

/// A line without the blanks before it: all of Unicode's, as text copied from a web page is indented with no-break
/// spaces.
fn without_indentation(line: &[u8]) -> &[u8] {
    std::str::from_utf8(line).map_or_else(|_| line.trim_ascii_start(), |text| text.trim_start().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        let source = Source::new("Dockerfile", text.as_bytes());
        let mut lexer = Lexer::new(&source);
        std::iter::from_fn(|| lexer.next_instruction().expect("valid")).map(|line| line.text).collect()
    }

    #[test]
    fn an_escaped_escape_continues_nothing() {
        assert_eq!(lines("ENV A b\\\\\nENV C d"), ["ENV A b\\\\", "ENV C d"]);
    }

    #[test]
    fn directives_and_what_stands_above_an_empty_comment_are_no_comments_of_an_instruction() {
        let text = "# check=skip=all\n# one\n\n  # two\nFROM a\n# two\n#\nARG b\n# check=skip=x\nARG c\n";
        let source = Source::new("D", text.as_bytes());
        let mut lexer = Lexer::new(&source);
        let mut comments = || lexer.next_instruction().expect("valid").expect("an instruction").comments;
        assert_eq!(comments(), ["one", "# two"]);
        assert_eq!(comments(), [""; 0]);
        assert_eq!(comments(), ["check=skip=x"]);
    }

    #[test]
    fn comments_and_empty_lines_inside_a_continuation_vanish() {
        assert_eq!(lines("RUN a \\\n  # no\n\n \t\n b \\\n"), ["RUN a  b"]);
    }

    #[test]
    fn a_lone_continuation_inside_joins_on() {
        assert_eq!(lines("ENV E hello\\\n \\\nworld"), ["ENV E hello world"]);
        assert_eq!(lines("\\\nRUN x"), ["RUN x"]);
    }

    #[test]
    fn no_break_spaces_indent_but_do_not_separate() {
        assert_eq!(lines("\u{a0} RUN a \\\n\u{a0}# c\n b"), ["RUN a  b"]);
        let (_, statements) = super::super::parse(&Source::new("D", "COPY a\u{a0}b c".as_bytes())).expect("valid");
        assert!(matches!(&statements[0].arguments, super::super::Arguments::Words(words) if words.len() == 2));
    }

    #[test]
    fn a_line_of_65535_bytes_is_the_longest() {
        let longest = format!("RUN {}", "x".repeat(LONGEST_LINE_BYTES - 4));
        assert_eq!(lines(&longest).len(), 1);
        let source = Source::new("D", format!("FROM a\n{longest}y\n").as_bytes());
        let mut lexer = Lexer::new(&source);
        lexer.next_instruction().expect("FROM is short");
        let error = lexer.next_instruction().expect_err("too long");
        assert_eq!(error.place.line, 2);
        assert!(error.message.contains("65535"), "{error}");
    }

    #[test]
    fn a_word_knows_its_place_behind_a_continuation() {
        let source = Source::new("D", b"RUN a \\\n   bc");
        let line = Lexer::new(&source).next_instruction().expect("valid").expect("one");
        let at = line.text.find("bc").expect("joined");
        let span = line.span_of(at..at + 2);
        assert_eq!(source.position(span.start), super::super::source::Position { line: 2, column: 4 });
        assert_eq!(&source.bytes()[span.start..span.end], b"bc");
    }

    #[test]
    fn other_encodings_are_welcome_in_comments_only() {
        let source = Source::new("D", b"# J\xf6rg\nRUN a \\\n# J\xf6rg\n b\nRUN J\xf6rg");
        let mut lexer = Lexer::new(&source);
        assert_eq!(lexer.next_instruction().expect("valid").expect("one").text, "RUN a  b");
        let error = lexer.next_instruction().expect_err("latin 1");
        assert_eq!((error.place.line, error.place.column), (5, 6));
    }
}
