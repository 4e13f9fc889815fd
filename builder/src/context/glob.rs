//! Patterns of file names as Go's `filepath.Match` reads them: the wildcards of COPY and ADD.
//!
//! Invariant: a pattern that Go refuses is refused, also where no name would reach the mistake; matching takes time in
//! the product of pattern and name. `**` is nothing special here; see `ignore` for that.
//! <https://pkg.go.dev/path/filepath#Match>

use super::error::BadPattern;

/// A compiled pattern.
#[derive(Debug, Clone)]
pub struct Glob {
    tokens: Vec<Token>,
}

#[derive(Debug, Clone)]
enum Token {
    /// `*`: anything but a slash.
    Run,
    /// `?`: one character but a slash.
    One,
    Class(Class),
    Byte(u8),
}

/// `[...]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Class {
    is_negated: bool,
    ranges: Vec<(char, char)>,
}

impl Class {
    /// Reads a class behind its `[`; the rest behind its `]` comes back with it.
    pub(super) fn parse(text: &str) -> Option<(Self, &str)> {
        let (is_negated, mut rest) = text.strip_prefix('^').map_or((false, text), |rest| (true, rest));
        let mut ranges = Vec::new();
        loop {
            if let Some(behind) = rest.strip_prefix(']').filter(|_| !ranges.is_empty()) {
                return Some((Self { is_negated, ranges }, behind));
            }
            let (low, behind) = class_character(rest)?;
            let (high, behind) = match behind.strip_prefix('-') {
                Some(behind) => class_character(behind)?,
                None => (low, behind),
            };
            ranges.push((low, high));
            rest = behind;
        }
    }

    pub(super) fn contains(&self, c: char) -> bool {
        self.ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != self.is_negated
    }
}

/// One character of a class; `-` and `]` must be escaped.
fn class_character(text: &str) -> Option<(char, &str)> {
    let mut characters = text.chars();
    let c = match characters.next()? {
        '-' | ']' => return None,
        '\\' => characters.next()?,
        c => c,
    };
    Some((c, characters.as_str()))
}

/// The first character of a name, which may be any bytes: a byte that is no UTF-8 counts as U+FFFD, as in Go.
pub(super) fn first_character(name: &[u8]) -> Option<(char, usize)> {
    let head = &name[..name.len().min(4)];
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or_default(),
    };
    match text.chars().next() {
        Some(c) => Some((c, c.len_utf8())),
        None => (!name.is_empty()).then_some((char::REPLACEMENT_CHARACTER, 1)),
    }
}

impl Glob {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// A class that is empty, open or unordered by an unescaped `-`, or a backslash at the end.
    pub fn new(pattern: &str) -> Result<Self, BadPattern> {
        let bad = || BadPattern { pattern: pattern.to_owned() };
        let mut tokens = Vec::new();
        let mut rest = pattern;
        while let Some(c) = rest.chars().next() {
            rest = &rest[c.len_utf8()..];
            match c {
                '*' if matches!(tokens.last(), Some(Token::Run)) => {}
                '*' => tokens.push(Token::Run),
                '?' => tokens.push(Token::One),
                '[' => {
                    let (class, behind) = Class::parse(rest).ok_or_else(bad)?;
                    tokens.push(Token::Class(class));
                    rest = behind;
                }
                _ => {
                    let literal = if c == '\\' { rest.chars().next().ok_or_else(bad)? } else { c };
                    rest = if c == '\\' { &rest[literal.len_utf8()..] } else { rest };
                    tokens.extend(literal.encode_utf8(&mut [0; 4]).bytes().map(Token::Byte));
                }
            }
        }
        Ok(Self { tokens })
    }

    /// Whether a text has wildcards that no backslash stands before, so that it is a pattern and not a name. In a name
    /// a backslash is a character as others.
    #[must_use]
    pub fn is_pattern(text: &str) -> bool {
        let mut bytes = text.bytes();
        while let Some(byte) = bytes.next() {
            match byte {
                b'*' | b'?' | b'[' => return true,
                b'\\' => _ = bytes.next(),
                _ => {}
            }
        }
        false
    }

    /// Whether the pattern matches the whole name or path.
    #[must_use]
    pub fn matches(&self, name: &[u8]) -> bool {
        let (mut token, mut at) = (0, 0);
        // Where to go on after a mismatch: behind the last `*`, which takes one more byte. Earlier ones never need
        // to: what is between two `*` matches best as early as it can.
        let mut retry = None;
        loop {
            let step = match self.tokens.get(token) {
                None if at == name.len() => return true,
                Some(Token::Run) => {
                    retry = Some((token + 1, at));
                    token += 1;
                    continue;
                }
                None => None,
                Some(Token::Byte(byte)) => (name.get(at) == Some(byte)).then_some(1),
                Some(Token::One) => first_character(&name[at..]).filter(|(c, _)| *c != '/').map(|(_, length)| length),
                Some(Token::Class(class)) => {
                    first_character(&name[at..]).filter(|(c, _)| class.contains(*c)).map(|(_, length)| length)
                }
            };
            match (step, retry) {
                (Some(length), _) => {
                    at += length;
                    token += 1;
                }
                (None, Some((behind, from))) if from < name.len() && name[from] != b'/' => {
                    retry = Some((behind, from + 1));
                    (token, at) = (behind, from + 1);
                }
                (None, _) => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, tried out in every way.
    fn reference(pattern: &[char], name: &[char]) -> bool {
        match (pattern, name) {
            ([], []) => true,
            (['*', rest @ ..], _) if reference(rest, name) => true,
            (['*', ..], [c, behind @ ..]) => *c != '/' && reference(pattern, behind),
            (['?', rest @ ..], [c, behind @ ..]) => *c != '/' && reference(rest, behind),
            ([p, rest @ ..], [c, behind @ ..]) => p == c && reference(rest, behind),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matching_follows_the_definition(pattern in "[*?ab/é]{0,8}", name in "[ab/é]{0,8}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(matches(&pattern, &name), reference(&chars(&pattern), &chars(&name)));
        }

        #[test]
        fn any_pattern_is_compiled_or_refused(pattern in "[*?a\\\\\\[\\]^é-]{0,12}", name in prop::collection::vec(any::<u8>(), 0..12)) {
            if let Ok(glob) = Glob::new(&pattern) {
                let _ = glob.matches(&name);
            }
        }
    }

    fn matches(pattern: &str, name: &str) -> bool {
        Glob::new(pattern).expect(pattern).matches(name.as_bytes())
    }

    #[test]
    fn wildcards_stop_at_a_slash() {
        assert!(matches("*.txt", ".txt") && matches("a*b*c", "aXbYbZc") && matches("*/conf/*.cfg", "x/conf/.cfg"));
        assert!(!matches("*", "a/b") && !matches("a?b", "a/b") && !matches("*x", "a/x") && !matches("a", "ab"));
    }

    #[test]
    fn a_character_may_have_several_bytes_and_a_name_may_be_any_bytes() {
        assert!(matches("a?b", "a☺b") && matches("[a-ζ]*", "α") && !matches("a???b", "a☺b"));
        assert!(Glob::new("a?b").expect("valid").matches(b"a\xffb"));
    }

    #[test]
    fn mistakes_are_found_even_behind_a_mismatch() {
        for bad in ["[]a]", "[-]", "[x-]", "[-x]", "\\", "[a-b-c]", "[", "[^", "[^bc", "a["] {
            assert!(Glob::new(bad).is_err(), "{bad}");
        }
        assert!(matches("[\\-x]", "-") && matches("star[*].txt", "star*.txt") && matches("list[[]1]", "list[1]"));
    }

    #[test]
    fn a_backslash_alone_makes_no_pattern() {
        assert!(["a*", "[", "\\\\?", "\\a*"].into_iter().all(Glob::is_pattern));
        assert!(!["a", "a\\b", "\\*", "a\\[b", "\\"].into_iter().any(Glob::is_pattern));
    }

    #[test]
    fn many_runs_do_not_take_exponential_time() {
        assert!(!matches(&"a*".repeat(50), &format!("{}b/", "a".repeat(2000))));
    }
}
