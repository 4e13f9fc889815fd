//! Shell words: variables, modifiers, quotes and the escape character, as BuildKit's own lexer has them.
//!
//! Invariant: an expansion ends, in bounded memory and stack, whatever the text and the variables.
//! No commands, no `~`, no file names: this is no shell.
//! <https://docs.docker.com/reference/dockerfile/#environment-replacement>

use std::iter::Peekable;
use std::str::Chars;

use super::pattern::{Pattern, TooCostly};

/// Values double when a variable holds itself twice; the kernel takes no environment string over 128 KiB anyway.
const LARGEST_EXPANSION_BYTES: usize = 16 << 20;

/// How deep `${a:-${b:-...}}` may nest: more than any author does, little enough for a thread's stack.
const DEEPEST_NESTING: usize = 64;

/// Looks a variable up; `None` if it is not set.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Why a word cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpansionError {
    /// `'` without its end.
    #[error("unexpected end of statement while looking for matching single-quote")]
    SingleQuote,
    /// `"` without its end.
    #[error("unexpected end of statement while looking for matching double-quote")]
    DoubleQuote,
    /// `${` without `}`, or the `/` between pattern and replacement.
    #[error("syntax error: missing '{0}' of '${{{1}'")]
    MissingEnd(char, String),
    /// `${}` or a character that begins no name.
    #[error("syntax error: bad name in substitution '${{{0}'")]
    BadName(String),
    /// A character behind the name that is no modifier.
    #[error("unsupported modifier ({1}) in substitution of '{0}'")]
    Modifier(String, String),
    /// `${name?message}` of an unset variable, `${name:?message}` also of an empty one.
    #[error("{0}: {1}")]
    Required(String, String),
    /// A pattern that ends with a lone backslash.
    #[error("invalid pattern {0:?}: nothing follows the backslash")]
    Pattern(String),
    /// See [`LARGEST_EXPANSION_BYTES`].
    #[error("the expansion is larger than {LARGEST_EXPANSION_BYTES} bytes")]
    TooLarge,
    /// See [`DEEPEST_NESTING`].
    #[error("substitutions are nested more than {DEEPEST_NESTING} deep")]
    TooDeep,
    /// A pattern and a value whose matching would take very long.
    #[error("matching the pattern {0:?} takes too long")]
    PatternTooCostly(String),
}

/// What an expansion leaves as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Raw {
    Nothing,
    QuotesAndEscapes,
}

/// Expands words under one set of variables.
#[derive(Clone, Copy)]
pub struct Expander<'a> {
    escape: char,
    /// `None`: references to variables are not replaced.
    lookup: Option<Lookup<'a>>,
    raw: Raw,
    reads_quotes: bool,
}

impl<'a> Expander<'a> {
    /// `escape` is the Dockerfile's escape character.
    #[must_use]
    pub fn new(escape: char, lookup: Lookup<'a>) -> Self {
        Self { escape, lookup: Some(lookup), raw: Raw::Nothing, reads_quotes: true }
    }

    /// For the body of a here-document: quotes are plain characters, and the backslash is the escape character
    /// whatever that of the Dockerfile is.
    #[must_use]
    pub fn heredoc(lookup: Lookup<'a>) -> Self {
        Self { escape: '\\', lookup: Some(lookup), raw: Raw::Nothing, reads_quotes: false }
    }

    /// Splits like a shell but leaves references to variables standing.
    pub(super) fn raw(raw: Raw) -> Self {
        Self { escape: '\\', lookup: None, raw, reads_quotes: true }
    }

    /// One text, never split.
    ///
    /// # Errors
    /// Broken syntax, a required variable that is not set, or a result beyond all reason.
    pub fn expand(&self, text: &str) -> Result<String, ExpansionError> {
        self.lex(text).map(|(text, _)| text)
    }

    /// The words of a text, split at blanks outside quotes, also at those that come out of variables.
    ///
    /// # Errors
    /// As [`Self::expand`].
    pub fn expand_words(&self, text: &str) -> Result<Vec<String>, ExpansionError> {
        self.lex(text).map(|(_, words)| words)
    }

    fn lex(&self, text: &str) -> Result<(String, Vec<String>), ExpansionError> {
        let mut lexer = Lexer {
            rules: *self,
            rest: text.chars().peekable(),
            keeps_escapes: false,
            operands: 0,
            depth: 0,
            bytes_left: LARGEST_EXPANSION_BYTES,
        };
        let (text, words) = lexer.until(None, self.raw == Raw::QuotesAndEscapes)?;
        Ok((text, words.finish()))
    }
}

/// Collects words while a text is read.
#[derive(Default)]
struct Words {
    words: Vec<String>,
    word: String,
}

impl Words {
    fn push_raw(&mut self, text: &str) {
        self.word.push_str(text);
    }

    /// Blanks in `text` separate words.
    fn push_splitting(&mut self, text: &str) {
        for c in text.chars() {
            if !c.is_whitespace() {
                self.word.push(c);
            } else if !self.word.is_empty() {
                self.words.push(std::mem::take(&mut self.word));
            }
        }
    }

    /// As in BuildKit, where a word and the operands of the references in it share one buffer: what stands before
    /// such a reference is lost.
    fn forget_half_read(&mut self, has_read_operand: bool) {
        if has_read_operand {
            self.word.clear();
        }
    }

    fn finish(mut self) -> Vec<String> {
        if !self.word.is_empty() {
            self.words.push(self.word);
        }
        self.words
    }
}

struct Lexer<'a> {
    rules: Expander<'a>,
    rest: Peekable<Chars<'a>>,
    /// Whether escape characters stay in what is read, as in patterns.
    keeps_escapes: bool,
    /// How many operands of references were read so far.
    operands: usize,
    depth: usize,
    bytes_left: usize,
}

/// A variable that may be missing.
type Value = Option<String>;

impl Lexer<'_> {
    /// Reads up to `stop`, which is consumed, or to the end of the text. `Err(MissingEnd)` if `stop` never comes.
    fn until(&mut self, stop: Option<char>, keeps_escapes: bool) -> Result<(String, Words), ExpansionError> {
        let around = std::mem::replace(&mut self.keeps_escapes, keeps_escapes);
        let read = self.until_in_mode(stop);
        self.keeps_escapes = around;
        read
    }

    fn until_in_mode(&mut self, stop: Option<char>) -> Result<(String, Words), ExpansionError> {
        let mut text = String::new();
        let mut words = Words::default();
        while let Some(c) = self.rest.next() {
            let operands = self.operands;
            match c {
                _ if Some(c) == stop => return Ok((text, words)),
                '$' => {
                    let value = self.reference()?;
                    words.forget_half_read(self.operands > operands);
                    text.push_str(&value);
                    words.push_splitting(&value);
                }
                '\'' | '"' if self.rules.reads_quotes => {
                    let quoted = if c == '"' { self.double_quoted()? } else { self.single_quoted()? };
                    words.forget_half_read(self.operands > operands);
                    text.push_str(&quoted);
                    words.push_raw(&quoted);
                }
                '<' if self.rest.next_if_eq(&'<').is_some() => {
                    // The opening of a here-document may have blanks before its delimiter: they belong to the word.
                    let mut opening = String::from("<<");
                    while let Some(blank) = self.rest.next_if(|next| matches!(next, ' ' | '\t' | '\r')) {
                        opening.push(blank);
                    }
                    text.push_str(&opening);
                    words.push_raw(&opening);
                }
                _ if c == self.rules.escape => {
                    let mut kept = if self.keeps_escapes { String::from(c) } else { String::new() };
                    kept.extend(self.rest.next());
                    text.push_str(&kept);
                    words.push_raw(&kept);
                }
                _ => {
                    text.push(c);
                    words.push_splitting(c.encode_utf8(&mut [0; 4]));
                }
            }
            if text.len() > LARGEST_EXPANSION_BYTES {
                return Err(ExpansionError::TooLarge);
            }
        }
        match stop {
            Some(stop) => Err(ExpansionError::MissingEnd(stop, String::new())),
            None => Ok((text, words)),
        }
    }

    fn keeps_quotes(&self) -> bool {
        self.rules.raw == Raw::QuotesAndEscapes
    }

    fn single_quoted(&mut self) -> Result<String, ExpansionError> {
        let mut text = String::from(if self.keeps_quotes() { "'" } else { "" });
        loop {
            match self.rest.next().ok_or(ExpansionError::SingleQuote)? {
                '\'' => break,
                c => text.push(c),
            }
        }
        text.push_str(if self.keeps_quotes() { "'" } else { "" });
        Ok(text)
    }

    fn double_quoted(&mut self) -> Result<String, ExpansionError> {
        let mut text = String::from(if self.keeps_quotes() { "\"" } else { "" });
        let escape = self.rules.escape;
        loop {
            match self.rest.next().ok_or(ExpansionError::DoubleQuote)? {
                '"' => break,
                '$' => text.push_str(&self.reference()?),
                c if c == escape => {
                    // As in BuildKit one that escapes nothing is then there twice.
                    text.extend(self.keeps_escapes.then_some(c));
                    // Only these can be escaped between double quotes; elsewhere the escape character stays.
                    let escaped = |next: &char| *next == '"' || *next == '$' || *next == escape;
                    text.push(self.rest.next_if(escaped).unwrap_or(c));
                }
                c => text.push(c),
            }
            if text.len() > LARGEST_EXPANSION_BYTES {
                return Err(ExpansionError::TooLarge);
            }
        }
        text.push_str(if self.keeps_quotes() { "\"" } else { "" });
        Ok(text)
    }

    /// Behind a `$`.
    fn reference(&mut self) -> Result<String, ExpansionError> {
        let braced = self.rest.next_if_eq(&'{').is_some();
        let name = self.name();
        if braced {
            if self.depth == DEEPEST_NESTING {
                return Err(ExpansionError::TooDeep);
            }
            self.depth += 1;
            let value = self.braced(&name);
            self.depth -= 1;
            return self.spend(value?);
        }
        if name.is_empty() {
            return self.spend(String::from("$"));
        }
        let value = match self.value(&name) {
            Some(value) => value,
            None if self.rules.lookup.is_none() => format!("${name}"),
            None => String::new(),
        };
        self.spend(value)
    }

    /// Values count against the limit as they come, also those that a pattern or a modifier throws away.
    fn spend(&mut self, value: String) -> Result<String, ExpansionError> {
        self.bytes_left = self.bytes_left.checked_sub(value.len()).ok_or(ExpansionError::TooLarge)?;
        Ok(value)
    }

    fn value(&self, name: &str) -> Value {
        self.rules.lookup.and_then(|lookup| lookup(name))
    }

    /// A name; digits alone, or one special parameter of the shell, which is never set.
    fn name(&mut self) -> String {
        let mut name = String::new();
        match self.rest.peek() {
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => name.extend(self.rest.next()),
            Some(c) if c.is_ascii_digit() => {
                while let Some(c) = self.rest.next_if(char::is_ascii_digit) {
                    name.push(c);
                }
            }
            _ => {
                while let Some(c) = self.rest.next_if(|c| c.is_alphanumeric() || *c == '_') {
                    name.push(c);
                }
            }
        }
        name
    }

    /// Behind `${name`.
    fn braced(&mut self, name: &str) -> Result<String, ExpansionError> {
        let missing = || ExpansionError::MissingEnd('}', name.to_owned());
        let first = self.rest.next().ok_or_else(missing)?;
        match first {
            // Nothing has no name, either, but with these it is unset, and no mistake.
            _ if name.is_empty() && !matches!(first, '+' | '%' | '/') => {
                Err(ExpansionError::BadName(first.to_string()))
            }
            '}' => {
                let unset = if self.rules.lookup.is_none() { format!("${{{name}}}") } else { String::new() };
                Ok(self.value(name).unwrap_or(unset))
            }
            ':' => match self.rest.next().ok_or_else(missing)? {
                pattern @ ('#' | '%') => Err(ExpansionError::Modifier(name.to_owned(), format!(":{pattern}"))),
                modifier => self.conditional(name, modifier, true),
            },
            '-' | '+' | '?' => self.conditional(name, first, false),
            '#' | '%' => self.trimmed(name, first),
            '/' => self.replaced(name),
            other => Err(ExpansionError::Modifier(name.to_owned(), other.to_string())),
        }
    }

    /// The rest of a braced reference up to `stop`.
    fn operand(&mut self, name: &str, stop: char, keeps_escapes: bool) -> Result<String, ExpansionError> {
        self.operands += 1;
        match self.until(Some(stop), keeps_escapes) {
            Err(ExpansionError::MissingEnd(missing, _)) => Err(ExpansionError::MissingEnd(missing, name.to_owned())),
            other => other.map(|(text, _)| text),
        }
    }

    /// `-`, `+` and `?`; with a colon before them an empty value counts as unset.
    fn conditional(&mut self, name: &str, modifier: char, empty_is_unset: bool) -> Result<String, ExpansionError> {
        let word = self.operand(name, '}', false)?;
        if self.rules.lookup.is_none() {
            let colon = if empty_is_unset { ":" } else { "" };
            return Ok(format!("${{{name}{colon}{modifier}{word}}}"));
        }
        let value = self.value(name);
        let was_set = value.is_some();
        let value = value.filter(|value| !(empty_is_unset && value.is_empty()));
        match (modifier, value) {
            (other, _) if !matches!(other, '-' | '+' | '?') => {
                Err(ExpansionError::Modifier(name.to_owned(), format!(":{other}")))
            }
            ('+', Some(_)) | ('-', None) => Ok(word),
            ('+', None) => Ok(String::new()),
            (_, Some(value)) => Ok(value),
            (_, None) => {
                let default = if was_set { "is not allowed to be empty" } else { "is not allowed to be unset" };
                let message = if word.is_empty() { default.to_owned() } else { word };
                Err(ExpansionError::Required(name.to_owned(), message))
            }
        }
    }

    /// `#` and `##` cut a prefix, `%` and `%%` a suffix; doubled they cut the longest.
    fn trimmed(&mut self, name: &str, modifier: char) -> Result<String, ExpansionError> {
        let word = self.operand(name, '}', true)?;
        if self.rules.lookup.is_none() {
            return Ok(format!("${{{name}{modifier}{word}}}"));
        }
        let (greedy, word) = word.strip_prefix(modifier).map_or((false, word.as_str()), |rest| (true, rest));
        let mut pattern = Pattern::new(word).ok_or_else(|| ExpansionError::Pattern(word.to_owned()))?;
        let value = self.value(name).unwrap_or_default();
        let cut = if modifier == '#' {
            pattern.without_prefix(&value, greedy)
        } else {
            pattern.without_suffix(&value, greedy)
        };
        cut.map_err(|TooCostly| ExpansionError::PatternTooCostly(word.to_owned()))
    }

    /// `/pattern/replacement`; with a doubled slash every match is replaced.
    fn replaced(&mut self, name: &str) -> Result<String, ExpansionError> {
        let every = self.rest.next_if_eq(&'/').is_some();
        let word = self.operand(name, '/', true)?;
        // Backslashes stay, as in BuildKit.
        let replacement = self.operand(name, '}', true)?;
        if self.rules.lookup.is_none() {
            return Ok(format!("${{{name}/{word}/{replacement}}}"));
        }
        let mut pattern = Pattern::new(&word).ok_or_else(|| ExpansionError::Pattern(word.clone()))?;
        let value = self.value(name).unwrap_or_default();
        pattern.replaced(&value, &replacement, every).map_err(|TooCostly| ExpansionError::PatternTooCostly(word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(text: &str) -> Result<String, ExpansionError> {
        let lookup = |name: &str| match name {
            "P" => Some("a/b/c.tar.gz".to_owned()),
            "EMPTY" => Some(String::new()),
            "Q" => Some("a\\bc".to_owned()),
            "BIG" => Some("x".repeat(1 << 20)),
            _ => None,
        };
        Expander::new('\\', &lookup).expand(text)
    }

    #[test]
    fn an_escaped_brace_or_slash_is_part_of_a_pattern() {
        assert_eq!(expand("${P//\\//-}").as_deref(), Ok("a-b-c.tar.gz"));
        assert_eq!(expand("${P##*/}").as_deref(), Ok("c.tar.gz"));
        assert_eq!(expand("${P/b\\/c/x\\}y}").as_deref(), Ok("a/x\\}y.tar.gz"));
    }

    #[test]
    fn quotes_in_a_pattern_keep_escapes_and_every_match_has_a_name_in_its_replacement() {
        assert_eq!(expand("${P%\".tar\\*\"}").as_deref(), Ok("a/b/c.tar.gz"));
        assert_eq!(expand("${Q#\"a\\$\"}"), Err(ExpansionError::Pattern("a\\$".to_owned())));
        assert_eq!(expand("${Q#\"a\\b\"}").as_deref(), Ok("c"));
        assert_eq!(expand("${Q:-\"a\\\"b\"}${no:-\"a\\\"b\"}").as_deref(), Ok("a\\bca\"b"));
        assert_eq!(expand("${P//[/x}${P//\\//'<$0>'}").as_deref(), Ok("a/b/c.tar.gza</>b</>c.tar.gz"));
        assert_eq!(expand("${P//\\//'$$${0}$1$x$0x${0'}").as_deref(), Ok("a$/${0b$/${0c.tar.gz"));
        assert_eq!(expand("${P/\\//'<$0>'}").as_deref(), Ok("a<$0>b/c.tar.gz"));
    }

    #[test]
    fn what_has_no_name_is_unset_and_what_is_unset_is_empty() {
        assert_eq!(expand("[${+x}${%x}${/a/b}${no//*/x}]").as_deref(), Ok("[x]"));
        for wrong in ["${}", "${:-x}", "${{x}", "${ x}", "${-x}", "${?x}", "${#x}"] {
            assert!(expand(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_word_loses_what_stands_before_an_operand() {
        let lookup = |name: &str| (name == "V").then(|| "v".to_owned());
        let words = |text: &str| Expander::new('\\', &lookup).expand_words(text).expect(text);
        assert_eq!(words("${LO:-8000}-${HI:-8010}"), ["8010"]);
        assert_eq!(words("1${P:-234} 2$V 3${V}"), ["234", "2v", "3v"]);
        assert_eq!(words("a b\"c${V+d}e\"f"), ["a", "cdef"]);
    }

    #[test]
    fn a_required_variable_names_itself_and_the_message() {
        assert_eq!(expand("${no:?please give it}").expect_err("unset").to_string(), "no: please give it");
        assert_eq!(expand("${EMPTY:?}").expect_err("empty").to_string(), "EMPTY: is not allowed to be empty");
        assert_eq!(expand("[${EMPTY?}]").as_deref(), Ok("[]"));
    }

    #[test]
    fn errors_show_what_was_written() {
        assert!(expand("${A").expect_err("brace").to_string().contains("${A"));
        assert!(expand("${A!b}").expect_err("modifier").to_string().contains("modifier (!)"));
        assert!(expand("\"open").expect_err("quote").to_string().contains("quote"));
    }

    #[test]
    fn a_heredoc_keeps_quotes_and_loses_backslashes() {
        let lookup = |_: &str| Some("v".to_owned());
        let expander = Expander::heredoc(&lookup);
        assert_eq!(expander.expand("it's \"$x\" \\$x back\\slash").as_deref(), Ok("it's \"v\" $x backslash"));
    }

    #[test]
    fn the_backtick_can_be_the_escape_character() {
        let lookup = |_: &str| Some("v".to_owned());
        assert_eq!(Expander::new('`', &lookup).expand("`$x c:\\$x").as_deref(), Ok("$x c:\\v"));
    }

    #[test]
    fn hostile_nesting_and_growth_end_with_an_error() {
        assert_eq!(expand(&"${a:-".repeat(100_000)), Err(ExpansionError::TooDeep));
        assert_eq!(expand(&"\"${a:-".repeat(100_000)), Err(ExpansionError::TooDeep));
        assert_eq!(expand(&"$BIG".repeat(17)), Err(ExpansionError::TooLarge));
        assert_eq!(expand(&"${BIG#x}".repeat(17)), Err(ExpansionError::TooLarge));
    }
}
