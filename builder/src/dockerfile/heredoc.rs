//! Here-documents: which words of a line open one, and under which delimiter.
//!
//! Invariant: a word opens a here-document exactly if BuildKit's expression `^\d*<<-?\s*[^<]+$` takes it and its
//! delimiter is one word. Not here: the body, which the lexer reads.

use super::expansion::{Expander, Raw};
use super::source::Span;
use crate::paths::{clean, components};

/// A here-document of RUN, COPY or ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    /// The word that ends the body, without quotes.
    pub delimiter: String,
    /// The body as written: tabs and line ends as in the file.
    pub content: String,
    /// Whether the delimiter was without quotes, so that COPY and ADD expand variables in the body.
    pub expands: bool,
    /// Whether it was opened with `<<-`: tabs at the beginning of lines are not part of the body.
    pub strips_tabs: bool,
    /// Where the body stands.
    pub span: Span,
}

impl Heredoc {
    /// The body without the leading tabs that `<<-` removes.
    #[must_use]
    pub fn text(&self) -> String {
        if !self.strips_tabs {
            return self.content.clone();
        }
        self.content.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }

    /// The name of the file that the body becomes: the delimiter, as in BuildKit a path in an empty root directory, where
    /// no other directory is. It is one component, whatever the delimiter says.
    ///
    /// # Errors
    /// If the path leads to the root itself, or through a directory.
    pub fn file_name(&self) -> Result<String, FileNameError> {
        let path = clean(self.delimiter.as_bytes());
        match components(&path).count() {
            1 => Ok(String::from_utf8_lossy(&path).into_owned()),
            _ => Err(FileNameError(self.delimiter.clone())),
        }
    }
}

/// The delimiter of a here-document that is to be a file, and cannot be the name of one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the delimiter {0:?} of a heredoc cannot be the name of a file")]
pub struct FileNameError(String);

/// What opens a here-document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Opening {
    pub(super) delimiter: String,
    pub(super) expands: bool,
    pub(super) strips_tabs: bool,
}

/// The here-documents that a line opens, in order. A line that is no valid shell (an open quote) opens none.
pub(super) fn openings(text: &str) -> Vec<Opening> {
    if !text.contains("<<") {
        return Vec::new();
    }
    let words = Expander::raw(Raw::QuotesAndEscapes).expand_words(text).unwrap_or_default();
    words.iter().filter_map(|word| opening(word)).collect()
}

/// The here-document that one word opens.
pub(super) fn opening(word: &str) -> Option<Opening> {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
    let (strips_tabs, rest) = rest.strip_prefix('-').map_or((false, rest), |rest| (true, rest));
    let rest = rest.trim_start();
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    let one_word = |expander: Expander<'_>| {
        let words = expander.expand_words(rest).ok()?;
        <[String; 1]>::try_from(words).ok().map(|[word]| word)
    };
    let delimiter = one_word(Expander::raw(Raw::Nothing))?;
    // As in BuildKit, no quote was taken away; an escape character alone quotes nothing.
    let quotes = |word: &str| word.matches(['\'', '"']).count();
    let expands = quotes(&one_word(Expander::raw(Raw::QuotesAndEscapes))?) == quotes(&delimiter);
    Some(Opening { delimiter, expands, strips_tabs })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delimiters(text: &str) -> Vec<String> {
        openings(text).into_iter().map(|opening| opening.delimiter).collect()
    }

    #[test]
    fn several_words_of_a_line_open_several_documents() {
        assert_eq!(delimiters("cat <<A > /a && cat 3<<-'B C' | x<<D"), ["A", "B C"]);
    }

    #[test]
    fn a_shift_is_a_document_only_as_a_word_of_its_own() {
        assert_eq!(delimiters("echo $((1<<3))"), [""; 0]);
        assert_eq!(delimiters("echo $(( 1<<3 ))"), ["3"]);
        assert_eq!(delimiters("echo $((1 << 3))"), ["3))"]);
        assert_eq!(delimiters("cat << EOF > /x; echo <<\t'A B'"), ["EOF", "A B"]);
        assert_eq!(delimiters("echo << <"), [""; 0]);
        assert_eq!(delimiters("echo <<<word"), [""; 0]);
    }

    #[test]
    fn quotes_hide_openings_and_an_open_quote_hides_all() {
        assert_eq!(delimiters("echo '<<EOF' \"<<EOF\""), [""; 0]);
        assert_eq!(delimiters("echo it's <<EOF"), [""; 0]);
    }

    #[test]
    fn any_quote_around_the_delimiter_stops_expansion_and_a_backslash_does_not() {
        for (word, delimiter, expands) in [
            ("<<EOF", "EOF", true),
            ("<<\"EOF\"", "EOF", false),
            ("<<E'O'F", "EOF", false),
            ("<<E\\OF", "EOF", true),
            ("<<eo\\'f", "eo'f", true),
            ("<<'eo\"f'", "eo\"f", false),
        ] {
            let opening = opening(word).expect(word);
            assert_eq!((opening.delimiter.as_str(), opening.expands), (delimiter, expands), "{word}");
        }
        assert!(opening("<<-EOF").expect("dash").strips_tabs);
    }

    #[test]
    fn the_file_of_a_document_has_a_name_of_one_component() {
        let name = |delimiter: &str| {
            let delimiter = delimiter.to_owned();
            Heredoc { delimiter, content: String::new(), expands: true, strips_tabs: false, span: Span::default() }
                .file_name()
                .ok()
        };
        for delimiter in ["x", "/x", "../x", "./x/", "//a/../../x/."] {
            assert_eq!(name(delimiter).as_deref(), Some("x"), "{delimiter}");
        }
        for delimiter in ["", "/", ".", "..", "x/..", "a/b", "/root/x", "../etc/x"] {
            assert_eq!(name(delimiter), None, "{delimiter}");
        }
    }

    #[test]
    fn a_dash_strips_leading_tabs_only() {
        let heredoc = Heredoc {
            delimiter: "E".into(),
            content: "\tone\n\t\ttwo\n\t  three\n  \tfour\n".into(),
            expands: true,
            strips_tabs: true,
            span: Span::default(),
        };
        assert_eq!(heredoc.text(), "one\ntwo\n  three\n  \tfour\n");
    }
}
