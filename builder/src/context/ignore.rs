//! `.dockerignore`: its lines, and which paths they exclude, as moby/patternmatcher decides it.
//!
//! Invariant: the last pattern that matches a path or one of its parents decides. No file is read here.
//! <https://docs.docker.com/build/concepts/context/#dockerignore-files>

use super::error::{BadPattern, IgnoreError};
use super::glob::{Class, Glob, first_character};
use crate::paths::go_clean;

/// No path that the kernel takes is longer (PATH_MAX), so no longer pattern can be meant.
const LONGEST_PATTERN_BYTES: usize = 4096;

/// An ordered list of patterns, `!` taking back what earlier ones excluded. Also what `COPY --exclude` is made of.
#[derive(Debug, Clone, Default)]
pub struct Patterns {
    patterns: Vec<Pattern>,
}

/// Which patterns match a path or its parents; the root's is empty. Children continue it.
#[derive(Debug, Clone, Default)]
pub struct Matched {
    by_pattern: Vec<bool>,
    is_excluded: bool,
}

impl Matched {
    /// Whether the path is excluded.
    #[must_use]
    pub fn is_excluded(&self) -> bool {
        self.is_excluded
    }
}

#[derive(Debug, Clone)]
struct Pattern {
    takes_back: bool,
    form: Form,
}

/// The special forms are moby's own: `**x` also matches `ax`, where the general form would not.
#[derive(Debug, Clone)]
enum Form {
    Exact(String),
    /// `x/**`, without the asterisks.
    Prefix(String),
    /// `**x`, without the asterisks.
    Suffix(String),
    General(Vec<Token>),
}

#[derive(Debug, Clone)]
enum Token {
    /// `*`: anything but a slash.
    Run,
    /// `**` or `**/` before something: nothing, or anything up to a slash.
    Directories,
    /// `**` at the end.
    Everything,
    /// `?`
    One,
    Class(Class),
    Character(char),
}

impl Patterns {
    /// Reads an ignore file; `file` names it in errors.
    ///
    /// # Errors
    /// A pattern that makes no sense, or a line that is not UTF-8.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, IgnoreError> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let mut patterns = Vec::new();
        for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let error = |what: String| IgnoreError { file: file.to_owned(), line: index + 1, what };
            // Only a hash in the first column begins a comment.
            if line.starts_with(b"#") {
                continue;
            }
            let line =
                std::str::from_utf8(line).map_err(|_| error("the pattern is not valid UTF-8".to_owned()))?.trim();
            let (bang, text) = line.strip_prefix('!').map_or(("", line), |text| ("!", text.trim()));
            if line.is_empty() {
                continue;
            }
            if text.is_empty() {
                return Err(error("illegal exclusion pattern: \"!\"".to_owned()));
            }
            let cleaned = go_clean(text);
            let relative = cleaned.strip_prefix('/').filter(|rest| !rest.is_empty()).unwrap_or(&cleaned);
            patterns.extend(Pattern::new(&format!("{bang}{relative}")).map_err(|bad| error(bad.to_string()))?);
        }
        Ok(Self { patterns })
    }

    /// Compiles patterns given one by one.
    ///
    /// # Errors
    /// The first pattern that makes no sense.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, BadPattern> {
        let compiled = patterns.into_iter().map(Pattern::new).filter_map(Result::transpose);
        Ok(Self { patterns: compiled.collect::<Result<_, _>>()? })
    }

    /// Whether any pattern takes back what another excluded.
    #[must_use]
    pub fn takes_back(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.takes_back)
    }

    /// Whether there is no pattern.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// What matches `path`, a child of the path that `parent` is about.
    #[must_use]
    pub fn child(&self, parent: &Matched, path: &[u8]) -> Matched {
        let inherited = |index: usize| parent.by_pattern.get(index).copied().unwrap_or(false);
        let mut matched = Matched { by_pattern: Vec::with_capacity(self.patterns.len()), is_excluded: false };
        for (index, pattern) in self.patterns.iter().enumerate() {
            // As in moby, a pattern that would change nothing here is not looked at, and so not known below either: of
            // `a/b` and `!a`, the second takes nothing back.
            let is_match = inherited(index) || (pattern.takes_back == matched.is_excluded && pattern.matches(path));
            matched.by_pattern.push(is_match);
            if is_match {
                matched.is_excluded = !pattern.takes_back;
            }
        }
        matched
    }

    /// What matches a path of which nothing is known yet; its parents are looked at, too.
    #[must_use]
    pub fn path(&self, path: &[u8]) -> Matched {
        let mut matched = Matched::default();
        let mut parents: Vec<&[u8]> = Vec::new();
        for (at, _) in path.iter().enumerate().filter(|(at, byte)| **byte == b'/' && *at > 0 && path[at - 1] != b'/') {
            parents.push(&path[..at]);
        }
        if !path.ends_with(b"/") || parents.is_empty() {
            parents.push(path);
        }
        for path in parents {
            matched = self.child(&matched, path);
        }
        matched
    }

    /// Whether a pattern without `!` can match something below a directory that none matches.
    #[must_use]
    pub fn can_match_below(&self, directory: &[u8]) -> bool {
        let below = [directory, b"/"].concat();
        self.patterns.iter().any(|pattern| !pattern.takes_back && pattern.can_match_below(&below))
    }

    /// Whether a `!` pattern can still take back something below an excluded directory: if not, nobody needs to look.
    #[must_use]
    pub fn can_take_back_below(&self, directory: &[u8], matched: &Matched) -> bool {
        let below = [directory, b"/"].concat();
        let has_matched = |index: usize| matched.by_pattern.get(index).copied().unwrap_or(false);
        let takes_back = |(index, pattern): (usize, &Pattern)| {
            pattern.takes_back && !has_matched(index) && pattern.can_match_below(&below)
        };
        self.patterns.iter().enumerate().any(takes_back)
    }
}

impl Pattern {
    /// `None` for a blank line.
    fn new(text: &str) -> Result<Option<Self>, BadPattern> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        let bad = || BadPattern { pattern: text.to_owned() };
        let cleaned = go_clean(text);
        if text.len() > LONGEST_PATTERN_BYTES {
            return Err(bad());
        }
        let (takes_back, body) = cleaned.strip_prefix('!').map_or((false, cleaned.as_str()), |body| (true, body));
        if body.is_empty() {
            return Err(bad());
        }
        Glob::new(body)?;
        Ok(Some(Self { takes_back, form: Form::new(body).ok_or_else(bad)? }))
    }

    fn matches(&self, path: &[u8]) -> bool {
        match &self.form {
            Form::Exact(text) => path == text.as_bytes(),
            Form::Prefix(prefix) => path.starts_with(prefix.as_bytes()),
            Form::Suffix(suffix) => {
                let is_whole = suffix.strip_prefix('/').is_some_and(|name| path == name.as_bytes());
                is_whole || path.ends_with(suffix.as_bytes())
            }
            Form::General(tokens) => run(tokens, path).contains(&tokens.len()),
        }
    }

    /// `below` ends with a slash.
    fn can_match_below(&self, below: &[u8]) -> bool {
        match &self.form {
            Form::Exact(text) => text.as_bytes().starts_with(below),
            Form::Prefix(prefix) => prefix.as_bytes().starts_with(below) || below.starts_with(prefix.as_bytes()),
            Form::Suffix(_) => true,
            Form::General(tokens) => !run(tokens, below).is_empty(),
        }
    }
}

impl Form {
    fn new(pattern: &str) -> Option<Self> {
        let mut tokens = Vec::new();
        let mut rest = pattern;
        while let Some(c) = rest.chars().next() {
            rest = &rest[c.len_utf8()..];
            tokens.push(match c {
                '*' => match rest.strip_prefix('*') {
                    None => Token::Run,
                    Some(behind) => {
                        rest = behind.strip_prefix('/').unwrap_or(behind);
                        if rest.is_empty() { Token::Everything } else { Token::Directories }
                    }
                },
                '?' => Token::One,
                '[' => {
                    let (class, behind) = Class::parse(rest)?;
                    rest = behind;
                    Token::Class(class)
                }
                '\\' => {
                    let escaped = rest.chars().next()?;
                    rest = &rest[escaped.len_utf8()..];
                    Token::Character(escaped)
                }
                c => Token::Character(c),
            });
        }
        tokens.dedup_by(|a, b| matches!((a, b), (Token::Directories, Token::Directories)));
        let is_plain = |tokens: &[Token]| tokens.iter().all(|token| matches!(token, Token::Character(_)));
        Some(match tokens.as_slice() {
            // An escaped character makes moby compile the pattern, to the same effect.
            plain if is_plain(plain) => Self::Exact(plain.iter().filter_map(Token::character).collect()),
            [plain @ .., Token::Everything] if is_plain(plain) => {
                Self::Prefix(plain.iter().filter_map(Token::character).collect())
            }
            [Token::Directories, plain @ ..] if is_plain(plain) && !pattern[2..].contains(['*', '\\']) => {
                Self::Suffix(pattern[2..].to_owned())
            }
            _ => Self::General(tokens),
        })
    }
}

impl Token {
    fn character(&self) -> Option<char> {
        match self {
            Self::Character(c) => Some(*c),
            _ => None,
        }
    }
}

/// The ways in which tokens may be used up so far, each once.
struct States {
    list: Vec<usize>,
    is_listed: Vec<bool>,
}

impl States {
    fn new(tokens: &[Token]) -> Self {
        Self { list: Vec::new(), is_listed: vec![false; tokens.len() + 1] }
    }

    fn push(&mut self, state: usize) {
        if !std::mem::replace(&mut self.is_listed[state], true) {
            self.list.push(state);
        }
    }

    /// Adds a state and those that need no further character; patterns never have more than a few of them in a row.
    fn enter(&mut self, tokens: &[Token], state: usize) {
        for state in state..=tokens.len() {
            self.push(state);
            if !matches!(tokens.get(state), Some(Token::Run | Token::Directories | Token::Everything)) {
                break;
            }
        }
    }

    fn clear(&mut self) {
        for state in self.list.drain(..) {
            self.is_listed[state] = false;
        }
    }
}

/// How many tokens may be used up when all of `path` is: every way to match is followed at once, so that the time is
/// bounded by path times tokens. Empty as soon as nothing can match any more.
fn run(tokens: &[Token], path: &[u8]) -> Vec<usize> {
    let (mut states, mut next) = (States::new(tokens), States::new(tokens));
    states.enter(tokens, 0);
    let mut at = 0;
    while let Some((c, length)) = first_character(&path[at..]).filter(|_| !states.list.is_empty()) {
        at += length;
        for &state in &states.list {
            match tokens.get(state) {
                Some(Token::Run) if c != '/' => next.enter(tokens, state),
                Some(Token::Everything) => next.enter(tokens, state),
                Some(Token::Directories) => {
                    // Stays without what follows: only a slash ends the directories.
                    next.push(state);
                    if c == '/' {
                        next.enter(tokens, state + 1);
                    }
                }
                Some(Token::One) if c != '/' => next.enter(tokens, state + 1),
                Some(Token::Class(class)) if class.contains(c) => next.enter(tokens, state + 1),
                Some(Token::Character(literal)) if *literal == c => next.enter(tokens, state + 1),
                _ => {}
            }
        }
        std::mem::swap(&mut states, &mut next);
        next.clear();
    }
    states.list
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pruning_loses_nothing(
            file in prop::collection::vec("!?[*?ab/]{1,6}", 1..5), directory in "[ab]{1,2}(/[ab]){0,2}", below in "[ab]{1,2}(/[ab]){0,2}",
        ) {
            let Ok(patterns) = Patterns::parse("i", file.join("\n").as_bytes()) else { return Ok(()) };
            let matched = patterns.path(directory.as_bytes());
            if matched.is_excluded() && !patterns.can_take_back_below(directory.as_bytes(), &matched) {
                let path = format!("{directory}/{below}");
                prop_assert!(patterns.path(path.as_bytes()).is_excluded(), "{path}");
            }
        }

        #[test]
        fn any_file_is_read_or_refused(file in "([!*?a#/\\\\\\[\\]^é. -]{0,12}\n?){0,4}", path in prop::collection::vec(any::<u8>(), 0..12)) {
            if let Ok(patterns) = Patterns::parse("i", file.as_bytes()) {
                let matched = patterns.path(&path);
                let _ = patterns.can_take_back_below(&path, &matched);
            }
        }
    }

    fn is_excluded(file: &str, path: &str) -> bool {
        Patterns::parse(".dockerignore", file.as_bytes()).expect(file).path(path.as_bytes()).is_excluded()
    }

    #[test]
    fn slashes_dots_blanks_and_line_ends_around_a_pattern_make_no_difference() {
        for file in ["/dir", "dir/", "./dir", "  dir  ", "x/../dir", "dir\r\n", "\u{feff}dir", "! dir\ndir"] {
            assert!(is_excluded(file, "dir/a") && is_excluded(file, "dir"), "{file:?}");
        }
    }

    #[test]
    fn only_a_hash_in_the_first_column_is_a_comment() {
        assert!(!is_excluded("#a", "#a") && is_excluded(" #a", "#a"));
    }

    #[test]
    fn the_last_match_decides_and_an_exception_reaches_below_excluded_directories() {
        assert!(!is_excluded("*.txt\n!a.txt", "a.txt") && is_excluded("b\n!b\nb", "b"));
        assert!(!is_excluded("dir\n!dir/sub/c", "dir/sub/c") && is_excluded("dir\n!dir/sub/c", "dir/sub"));
    }

    #[test]
    fn an_exception_above_what_is_excluded_takes_nothing_back() {
        assert!(is_excluded("dir/sub\n!dir", "dir/sub") && is_excluded("dir/sub\n!dir", "dir/sub/a"));
        assert!(!is_excluded("dir\n!dir", "dir/sub") && !is_excluded("*\n!dir", "dir/sub"));
    }

    #[test]
    fn mistakes_name_their_line() {
        let error = Patterns::parse(".dockerignore", b"a\n\n[x").expect_err("open class");
        assert_eq!(error.line, 3);
        assert!(Patterns::parse(".dockerignore", b"!").is_err());
        assert_eq!(Patterns::parse(".dockerignore", b"a\n\xff").expect_err("bytes").line, 2);
    }

    #[test]
    fn a_directory_is_pruned_exactly_where_no_exception_can_reach() {
        let can = |file: &str, directory: &str| {
            let patterns = Patterns::parse("i", file.as_bytes()).expect(file);
            patterns.can_take_back_below(directory.as_bytes(), &patterns.path(directory.as_bytes()))
        };
        assert!(
            !can("dir", "dir") && !can("*\n!src/**", "dir") && !can("*\n!a.txt", "dir") && !can("*\n!*.txt", "dir")
        );
        assert!(can("dir\n!dir/sub/c", "dir") && can("dir\n!dir/sub/c", "dir/sub") && can("*\n!**/x", "dir"));
        assert!(can("*\n!*/x", "dir") && !can("*\n!*/x", "dir/sub") && can("*\n!src/**", "src"));
    }
}
