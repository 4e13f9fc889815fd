//! Parser directives: the `# name=value` comments before everything else.
//!
//! Invariant: after the first line that is no directive, every comment is only a comment.
//! <https://docs.docker.com/reference/dockerfile/#parser-directives>

use super::source::{Span, Word};

/// The directives of one Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directives {
    /// `# escape=`: the continuation and escape character, `\` or a backtick.
    pub escape: char,
    /// `# syntax=`: the frontend image that the author asks for.
    pub syntax: Option<Word>,
    /// `# check=`: options of the lint, as written.
    pub check: Option<Word>,
}

impl Default for Directives {
    fn default() -> Self {
        Self { escape: '\\', syntax: None, check: None }
    }
}

impl Directives {
    /// The frontend that `# syntax=` asks for, where it is another than Dockerfile's own: its language is unknown here.
    pub(super) fn foreign_syntax(&self) -> Option<&Word> {
        self.syntax.as_ref().filter(|word| !is_own_frontend(&word.text))
    }
}

/// Whether a frontend, as `# syntax=` names it, is Dockerfile's own. A mirror has the same under a registry's or a
/// project's name: it is not asked what it holds.
pub(crate) fn is_own_frontend(text: &str) -> bool {
    let image = text.split_whitespace().next().unwrap_or_default();
    // The port of a registry is no tag.
    let name = image.split('@').next().unwrap_or_default();
    let name = name.rfind(':').filter(|colon| !name[*colon..].contains('/')).map_or(name, |colon| &name[..colon]);
    let (place, image) = name.rsplit_once('/').unwrap_or(("", name));
    match image {
        "dockerfile" | "dockerfile-upstream" => place.rsplit('/').next() == Some("docker"),
        "dockerfile.v0" => place.is_empty(),
        _ => false,
    }
}

/// Reads directives line by line until they end.
#[derive(Debug, Default)]
pub(super) struct DirectiveReader {
    pub(super) directives: Directives,
    has_escape: bool,
    is_done: bool,
}

impl DirectiveReader {
    /// Takes the next line of the file, without blanks before it, and its place; says whether it is a directive. The
    /// error is a message.
    pub(super) fn line(&mut self, line: &[u8], span: Span) -> Result<bool, String> {
        if self.is_done {
            return Ok(false);
        }
        let text = std::str::from_utf8(line).ok().and_then(|text| text.strip_prefix('#'));
        let Some((name, value)) = text.and_then(name_and_value) else {
            self.is_done = true;
            return Ok(false);
        };
        let is_twice = match name.as_str() {
            "escape" => {
                let is_twice = std::mem::replace(&mut self.has_escape, true);
                self.directives.escape = match value.as_str() {
                    "\\" => '\\',
                    "`" => '`',
                    _ => return Err(format!("invalid escape token {value:?}: must be ` or \\")),
                };
                is_twice
            }
            "syntax" => self.directives.syntax.replace(Word { text: value, span }).is_some(),
            "check" => self.directives.check.replace(Word { text: value, span }).is_some(),
            // An unknown name is a comment, and ends them as every comment does.
            _ => {
                self.is_done = true;
                return Ok(false);
            }
        };
        if is_twice { Err(format!("only one {name} parser directive can be used")) } else { Ok(true) }
    }
}

/// What a comment says if it is written as a directive is: the name in small letters, and the value.
pub(super) fn name_and_value(comment: &str) -> Option<(String, String)> {
    let (name, value) = comment.split_once('=')?;
    let (name, value) = (name.trim(), value.trim());
    let is_name =
        name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(|c| c.is_ascii_alphanumeric());
    (is_name && !value.is_empty()).then(|| (name.to_ascii_lowercase(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Result<Directives, String> {
        let mut reader = DirectiveReader::default();
        lines.iter().try_for_each(|line| reader.line(line.as_bytes(), Span::default()).map(drop))?;
        Ok(reader.directives)
    }

    #[test]
    fn names_ignore_case_and_blanks() {
        assert_eq!(read(&["#  EsCaPe =  ` "]).expect("valid").escape, '`');
    }

    #[test]
    fn a_comment_or_an_empty_line_ends_the_directives() {
        for first in ["# words", "", "FROM x", "# a b=c", "# other=1"] {
            assert_eq!(read(&[first, "# escape=`"]).expect("valid").escape, '\\', "{first:?}");
        }
    }

    #[test]
    fn the_same_directive_twice_is_an_error() {
        assert!(read(&["# escape=`", "# escape=\\"]).expect_err("twice").contains("escape parser directive"));
        assert!(read(&["# syntax=a", "# syntax=b"]).is_err());
        assert!(read(&["# escape=x"]).expect_err("bad").contains("escape"));
    }
}
