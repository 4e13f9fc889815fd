//! How the text behind a keyword falls into words: flags, blank-separated words, quoted words, the JSON form.
//!
//! Invariant: nothing is expanded, and quotes stay in the words (flags lose theirs, as in BuildKit).
//! Not the shell's rules: those are in `expansion`.

use std::ops::Range;

use serde_json::Value;

use super::lexer::LogicalLine;
use super::source::Word;

/// A flag as written: `--name` or `--name=value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// The name without the dashes.
    pub name: Word,
    /// What follows the `=`; `Some("")` for `--name=`.
    pub value: Option<Word>,
}

/// Why a JSON form cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotJson {
    /// No JSON array: the text is in shell form.
    ShellForm,
    /// An array, but not of strings: a mistake.
    NotStrings,
}

/// What separates plain words: unlike quoted ones, a no-break space does not.
pub(super) fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\x0b' | '\x0c' | '\r')
}

/// `range` without the blanks at its ends.
pub(super) fn trimmed(line: &LogicalLine, range: Range<usize>) -> Range<usize> {
    let text = &line.text[range.clone()];
    let start = range.start + (text.len() - text.trim_start().len());
    start..start + text.trim().len()
}

/// Words between blanks; quotes mean nothing.
pub(super) fn blank_separated(line: &LogicalLine, range: Range<usize>) -> Vec<Word> {
    let text = &line.text[range.clone()];
    text.split(is_blank)
        .filter(|word| !word.is_empty())
        .map(|word| {
            // The word is a slice of `text`, so the difference of the addresses is its offset.
            let start = range.start + (word.as_ptr() as usize - text.as_ptr() as usize);
            line.word(start..start + word.len())
        })
        .collect()
}

/// Words between blanks, where quotes and the escape character keep blanks inside a word. All characters are kept,
/// but an escape character at the very end is dropped.
pub(super) fn quoted(line: &LogicalLine, range: Range<usize>, escape: char) -> Vec<Word> {
    let mut words = Vec::new();
    let mut characters = line.text[range.clone()].char_indices().map(|(at, c)| (range.start + at, c)).peekable();
    loop {
        while characters.next_if(|(_, c)| c.is_whitespace()).is_some() {}
        let Some(&(start, _)) = characters.peek() else { break };
        let mut text = String::new();
        let mut end = start;
        let mut quote = None;
        while let Some((at, c)) = characters.next_if(|(_, c)| quote.is_some() || !c.is_whitespace()) {
            end = at + c.len_utf8();
            match quote {
                Some(open) if open == c => quote = None,
                None if c == '\'' || c == '"' => quote = Some(c),
                // Nothing is special between single quotes.
                _ if c == escape && quote != Some('\'') => {
                    let Some((at, escaped)) = characters.next() else { break };
                    text.push(c);
                    text.push(escaped);
                    end = at + escaped.len_utf8();
                    continue;
                }
                _ => {}
            }
            text.push(c);
        }
        if !text.is_empty() {
            words.push(Word { text, span: line.span_of(start..end) });
        }
    }
    words
}

/// The flags at the beginning of `range`, and the rest. A lone `--` ends the flags. Quotes are removed, and so
/// is the escape character.
pub(super) fn flags(line: &LogicalLine, range: Range<usize>, escape: char) -> (Vec<Flag>, Range<usize>) {
    let mut found = Vec::new();
    let mut rest = trimmed(line, range);
    while line.text[rest.clone()].starts_with("--") {
        let (flag, end) = flag(line, rest.clone(), escape);
        rest = trimmed(line, end..rest.end);
        match flag {
            Some(flag) => found.push(flag),
            None => break,
        }
    }
    (found, rest)
}

/// The flag that `range` starts with, `None` for `--`; and the offset behind it.
fn flag(line: &LogicalLine, range: Range<usize>, escape: char) -> (Option<Flag>, usize) {
    let mut text = String::new();
    // Where the `=` stands: in the line, and in `text`.
    let mut equals = None;
    let mut quote = None;
    let mut end = range.end;
    let mut characters = line.text[range.clone()].char_indices();
    while let Some((at, c)) = characters.next() {
        match quote {
            None if c.is_whitespace() => {
                end = range.start + at;
                break;
            }
            None if c == '\'' || c == '"' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ if c == escape => text.extend(characters.next().map(|(_, escaped)| escaped)),
            _ => {
                if c == '=' && equals.is_none() {
                    equals = Some((range.start + at, text.len()));
                }
                text.push(c);
            }
        }
    }
    if text == "--" {
        return (None, end);
    }
    let name_end = equals.map_or(end, |(at, _)| at);
    let name_length = equals.map_or(text.len(), |(_, at)| at);
    let name = &text[..name_length];
    let name =
        Word { text: name.strip_prefix("--").unwrap_or(name).to_owned(), span: line.span_of(range.start..name_end) };
    let value =
        equals.map(|(at, in_text)| Word { text: text[in_text + 1..].to_owned(), span: line.span_of(at + 1..end) });
    (Some(Flag { name, value }), end)
}

/// The strings of a JSON array.
pub(super) fn json(line: &LogicalLine, range: Range<usize>) -> Result<Vec<Word>, NotJson> {
    let text = &line.text[range.clone()];
    if !text.starts_with('[') {
        return Err(NotJson::ShellForm);
    }
    let values: Vec<Value> = serde_json::from_str(&without_halves(text)).map_err(|_| NotJson::ShellForm)?;
    let mut places = json_string_places(text).into_iter();
    let to_word = |value| match value {
        Value::String(text) => {
            let place = places.next().unwrap_or(0..0);
            let span = line.span_of(range.start + place.start..range.start + place.end);
            Ok(Word { text, span })
        }
        _ => Err(NotJson::NotStrings),
    };
    values.into_iter().map(to_word).collect()
}

/// JSON in which half of a pair of UTF-16 units is U+FFFD, as Go reads it; nothing else stands elsewhere.
fn without_halves(json: &str) -> String {
    let unit = |at: usize| {
        let digits = json.get(at..).and_then(|rest| rest.strip_prefix("\\u")).and_then(|rest| rest.get(..4));
        digits.and_then(|digits| u16::from_str_radix(digits, 16).ok())
    };
    let (mut whole, mut at) = (json.to_owned(), 0);
    while let Some(found) = json[at..].find('\\') {
        at += found;
        match (unit(at), unit(at + 6)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => at += 12,
            (Some(0xd800..=0xdfff), _) => {
                whole.replace_range(at + 2..at + 6, "fffd");
                at += 6;
            }
            _ => at += 1 + json[at + 1..].chars().next().map_or(0, char::len_utf8),
        }
    }
    whole
}

/// Where the string literals of valid JSON stand, quotes included.
fn json_string_places(json: &str) -> Vec<Range<usize>> {
    let mut places = Vec::new();
    let mut open = None;
    let mut bytes = json.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match (byte, open) {
            (b'\\', Some(_)) => {
                bytes.next();
            }
            (b'"', None) => open = Some(at),
            (b'"', Some(start)) => {
                places.push(start..at + 1);
                open = None;
            }
            _ => {}
        }
    }
    places
}
