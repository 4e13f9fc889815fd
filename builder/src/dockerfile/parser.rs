//! Logical lines to statements: the syntax tree, before any instruction is understood.
//!
//! Invariant: a statement's form follows from its keyword alone, as BuildKit's parser has it.
//! Not here: which flags and arguments an instruction takes; see `instructions`.

use std::ops::Range;

use super::directives::Directives;
use super::error::DockerfileError;
use super::heredoc::{self, Heredoc};
use super::lexer::{Lexer, LogicalLine};
use super::source::{Source, Span, Word};
use super::words::{self, Flag, NotJson};

/// One instruction as syntax.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// The instruction's name as written.
    pub keyword: Word,
    /// Flags in order.
    pub flags: Vec<Flag>,
    /// What follows the flags.
    pub arguments: Arguments,
    /// Here-documents in order; those of an ONBUILD belong to its inner statement.
    pub heredocs: Vec<Heredoc>,
    /// The whole instruction, continuation lines joined, without here-documents.
    pub text: String,
    /// Where the instruction stands, without here-documents.
    pub span: Span,
    /// The comment lines above, over empty lines too.
    pub comments: Vec<String>,
    /// Whether empty lines stand inside the continuation (lint rule NoEmptyContinuation).
    pub has_empty_continuation: bool,
}

/// A name and a value of ENV or LABEL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The name.
    pub name: Word,
    /// The value, quotes in place.
    pub value: Word,
}

/// The arguments of a statement, by the form that its keyword asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arguments {
    /// Nothing follows.
    None,
    /// Separate words.
    Words(Vec<Word>),
    /// One text to the end of the instruction.
    Text(Word),
    /// The JSON form.
    Json(Vec<Word>),
    /// `name=value` pairs.
    Pairs(Vec<Pair>),
    /// One pair in the old form `name value`.
    OldPair(Pair),
    /// HEALTHCHECK: a word and the arguments behind it.
    Health(Word, Box<Arguments>),
    /// ONBUILD: the instruction that is kept for later, and its text with the blanks at its end.
    Trigger(Box<Statement>, String),
}

/// Reads all statements of a file.
///
/// # Errors
/// The first mistake of syntax; a file without statements is one.
pub fn parse(source: &Source) -> Result<(Directives, Vec<Statement>), DockerfileError> {
    let mut lexer = Lexer::new(source);
    let mut statements = Vec::new();
    while let Some(line) = lexer.next_instruction()? {
        let escape = lexer.directives().escape;
        let first_line = source.position(line.span.start).line;
        let statement = LineParser { source, line: &line, escape }
            .statement(0..line.text.len(), false)
            .and_then(|mut statement| {
                read_heredocs(&mut lexer, &mut statement)?;
                Ok(statement)
            })
            .map_err(|error| error.within_instruction(first_line))?;
        statements.push(statement);
    }
    if statements.is_empty() {
        let is_empty = source.bytes().is_empty();
        let message = if is_empty { "the Dockerfile cannot be empty" } else { "file with no instructions" };
        return Err(source.error(Span::default(), message));
    }
    Ok((lexer.directives().clone(), statements))
}

fn read_heredocs(lexer: &mut Lexer<'_>, statement: &mut Statement) -> Result<(), DockerfileError> {
    if let Arguments::Trigger(inner, _) = &mut statement.arguments {
        return read_heredocs(lexer, inner);
    }
    let takes_heredocs = ["add", "copy", "run"].iter().any(|name| statement.keyword.text.eq_ignore_ascii_case(name));
    if !takes_heredocs || matches!(statement.arguments, Arguments::Json(_)) {
        return Ok(());
    }
    for opening in heredoc::openings(&statement.text) {
        let body = lexer.heredoc_body(&opening.delimiter, opening.strips_tabs, statement.span)?;
        statement.heredocs.push(Heredoc {
            delimiter: opening.delimiter,
            content: body.text,
            expands: opening.expands,
            strips_tabs: opening.strips_tabs,
            span: body.span,
        });
    }
    Ok(())
}

struct LineParser<'a> {
    source: &'a Source,
    line: &'a LogicalLine,
    escape: char,
}

impl LineParser<'_> {
    /// `is_trigger` stops ONBUILD from nesting, which would recurse as deep as the file likes.
    fn statement(&self, range: Range<usize>, is_trigger: bool) -> Result<Statement, DockerfileError> {
        let line = self.line;
        let range = words::trimmed(line, range);
        let text = &line.text[range.clone()];
        let keyword_end = range.start + text.find(words::is_blank).unwrap_or(text.len());
        let keyword = line.word(range.start..keyword_end);
        let (flags, rest) = words::flags(line, keyword_end..range.end, self.escape);
        let arguments = if rest.is_empty() { Arguments::None } else { self.arguments(&keyword, rest, is_trigger)? };
        Ok(Statement {
            keyword,
            flags,
            arguments,
            heredocs: Vec::new(),
            text: text.to_owned(),
            span: line.span_of(range),
            comments: line.comments.clone(),
            has_empty_continuation: line.has_empty_continuation,
        })
    }

    fn arguments(&self, keyword: &Word, rest: Range<usize>, is_trigger: bool) -> Result<Arguments, DockerfileError> {
        match keyword.text.to_ascii_lowercase().as_str() {
            "add" | "copy" | "volume" => {
                self.json_or(rest, |rest| Arguments::Words(words::blank_separated(self.line, rest)))
            }
            "expose" | "from" => Ok(Arguments::Words(words::blank_separated(self.line, rest))),
            "arg" => Ok(Arguments::Words(words::quoted(self.line, rest, self.escape))),
            "cmd" | "entrypoint" | "run" | "shell" => self.json_or(rest, |rest| Arguments::Text(self.line.word(rest))),
            "env" | "label" => self.pairs(&keyword.text.to_ascii_uppercase(), rest),
            "healthcheck" => self.health(rest),
            "onbuild" if is_trigger => {
                Err(self.source.error(keyword.span, "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"))
            }
            "onbuild" => {
                let text = format!("{}{}", &self.line.text[rest.start..], self.line.tail);
                Ok(Arguments::Trigger(Box::new(self.statement(rest, true)?), text))
            }
            _ => Ok(Arguments::Text(self.line.word(rest))),
        }
    }

    fn json_or(
        &self,
        rest: Range<usize>,
        otherwise: impl FnOnce(Range<usize>) -> Arguments,
    ) -> Result<Arguments, DockerfileError> {
        match words::json(self.line, rest.clone()) {
            Ok(strings) => Ok(Arguments::Json(strings)),
            Err(NotJson::ShellForm) => Ok(otherwise(rest)),
            Err(NotJson::NotStrings) => {
                let message = "when using JSON array syntax, arrays must be comprised of strings only";
                Err(self.source.error(self.line.span_of(rest), message))
            }
        }
    }

    /// `a=1 b=2`, or the old form `a everything else`.
    fn pairs(&self, keyword: &str, rest: Range<usize>) -> Result<Arguments, DockerfileError> {
        let words = words::quoted(self.line, rest.clone(), self.escape);
        if words.first().is_some_and(|first| !first.text.contains('=')) {
            let text = &self.line.text[rest.clone()];
            let Some(blank) = text.find(words::is_blank) else {
                return Err(self.source.error(self.line.span_of(rest), format!("{keyword} must have two arguments")));
            };
            let name = self.line.word(rest.start..rest.start + blank);
            let value = self.line.word(words::trimmed(self.line, rest.start + blank..rest.end));
            return Ok(Arguments::OldPair(Pair { name, value }));
        }
        words.into_iter().map(|word| self.pair(keyword, word)).collect::<Result<_, _>>().map(Arguments::Pairs)
    }

    fn pair(&self, keyword: &str, word: Word) -> Result<Pair, DockerfileError> {
        let Some((name, value)) = word.text.split_once('=') else {
            let message = format!(
                "Syntax error - can't find = in {:?}. Must be of the form: name=value, in {keyword}",
                word.text
            );
            return Err(self.source.error(word.span, message));
        };
        // Exact where the word stands on one line; on several the value's place is taken to start with the word's.
        let is_on_one_line = word.span.end - word.span.start == word.text.len();
        let behind_name = word.span.start + name.len();
        let (name_end, value_start) =
            if is_on_one_line { (behind_name, behind_name + 1) } else { (word.span.end, word.span.start) };
        Ok(Pair {
            name: Word { text: name.to_owned(), span: Span { start: word.span.start, end: name_end } },
            value: Word { text: value.to_owned(), span: Span { start: value_start, end: word.span.end } },
        })
    }

    fn health(&self, rest: Range<usize>) -> Result<Arguments, DockerfileError> {
        let text = &self.line.text[rest.clone()];
        let end = rest.start + text.find(char::is_whitespace).unwrap_or(text.len());
        let behind = words::trimmed(self.line, end..rest.end);
        let command = if behind.is_empty() {
            Arguments::None
        } else {
            self.json_or(behind, |rest| Arguments::Text(self.line.word(rest)))?
        };
        Ok(Arguments::Health(self.line.word(rest.start..end), Box::new(command)))
    }
}
