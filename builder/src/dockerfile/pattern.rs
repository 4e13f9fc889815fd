//! The patterns of `${name#pattern}`, `%` and `/`: `*` and `?` are special, everything else stands for itself.
//!
//! Invariant: matching costs at most [`MOST_STEPS`], whatever the pattern. Character classes do not exist here, as in
//! BuildKit. Not the patterns of file names: those are in `context::glob`.

/// Character comparisons that one substitution may cost; about a tenth of a second.
const MOST_STEPS: usize = 20_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Run,
    One,
    Literal(char),
}

/// A compiled pattern.
#[derive(Debug)]
pub(super) struct Pattern {
    pieces: Vec<Piece>,
    steps_left: usize,
}

/// The pattern and the value are so long that matching would stop the build.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooCostly;

impl Pattern {
    /// Compiles. A backslash stands before what is special in a pattern or in what is around it, and makes that
    /// literal; `None` if it stands elsewhere.
    pub(super) fn new(text: &str) -> Option<Self> {
        let mut pieces = Vec::new();
        let mut characters = text.chars();
        while let Some(c) = characters.next() {
            pieces.push(match c {
                '*' => Piece::Run,
                '?' => Piece::One,
                '\\' => Piece::Literal(characters.next().filter(|next| matches!(next, '*' | '?' | '\\' | '}' | '/'))?),
                _ => Piece::Literal(c),
            });
        }
        pieces.dedup_by(|a, b| *a == Piece::Run && *b == Piece::Run);
        Some(Self { pieces, steps_left: MOST_STEPS })
    }

    /// `value` without the matching prefix, the longest one if `greedy`.
    pub(super) fn without_prefix(&mut self, value: &str, greedy: bool) -> Result<String, TooCostly> {
        let value: Vec<char> = value.chars().collect();
        let length = self.match_length(&value, greedy)?.unwrap_or(0);
        Ok(value[length..].iter().collect())
    }

    /// `value` without the matching suffix, the longest one if `greedy`.
    pub(super) fn without_suffix(&mut self, value: &str, greedy: bool) -> Result<String, TooCostly> {
        let reversed: Vec<char> = value.chars().rev().collect();
        self.pieces.reverse();
        let length = self.match_length(&reversed, greedy);
        self.pieces.reverse();
        Ok(reversed[length?.unwrap_or(0)..].iter().rev().collect())
    }

    /// `value` with the first match, or every one, replaced. Of every one, `$0` in the replacement is the match, as Go's
    /// `ReplaceAllString` has it. Matches are as long as can be; an empty one counts, but not
    /// right after another, as in Go's regular expressions.
    pub(super) fn replaced(&mut self, value: &str, replacement: &str, every: bool) -> Result<String, TooCostly> {
        let value: Vec<char> = value.chars().collect();
        let parts = if every { template(replacement) } else { vec![Some(replacement.to_owned())] };
        let mut result = String::new();
        let (mut done, mut at) = (0, 0);
        while at <= value.len() {
            let Some(length) = self.match_length(&value[at..], true)? else {
                at += 1;
                continue;
            };
            result.extend(&value[done..at]);
            if at + length > done || at == 0 {
                let matched = &value[at..at + length];
                parts.iter().for_each(|part| match part {
                    Some(text) => result.push_str(text),
                    None => result.extend(matched),
                });
            }
            done = at + length;
            if !every {
                break;
            }
            at = done.max(at + 1);
        }
        result.extend(&value[done..]);
        Ok(result)
    }

    /// Length of the shortest or longest match at the beginning of `value`, by following all ways to match at once.
    fn match_length(&mut self, value: &[char], greedy: bool) -> Result<Option<usize>, TooCostly> {
        let end = self.pieces.len();
        // `is_at[i]`: some way to match has used up the first `i` pieces.
        let mut is_at = vec![false; end + 1];
        is_at[0] = true;
        self.skip_runs(&mut is_at);
        let mut found = None;
        for (length, c) in value.iter().map(Some).chain([None]).enumerate() {
            if is_at[end] {
                found = Some(length);
                if !greedy {
                    break;
                }
            }
            let Some(c) = c else { break };
            self.steps_left = self.steps_left.checked_sub(end + 1).ok_or(TooCostly)?;
            let mut next = vec![false; end + 1];
            for (i, piece) in self.pieces.iter().enumerate().filter(|(i, _)| is_at[*i]) {
                match piece {
                    // As a dot of Go's.
                    Piece::Run => next[i] |= *c != '\n',
                    Piece::One => next[i + 1] |= *c != '\n',
                    Piece::Literal(literal) => next[i + 1] |= literal == c,
                }
            }
            self.skip_runs(&mut next);
            if !next.contains(&true) {
                break;
            }
            is_at = next;
        }
        Ok(found)
    }

    /// A run may match nothing.
    fn skip_runs(&self, is_at: &mut [bool]) {
        for (i, piece) in self.pieces.iter().enumerate() {
            is_at[i + 1] |= is_at[i] && *piece == Piece::Run;
        }
    }
}

/// The parts of a replacement, `None` being the match: `$0` or `${0}`. `$$` is a dollar, every other name is nothing.
/// <https://pkg.go.dev/regexp#Regexp.Expand>
fn template(text: &str) -> Vec<Option<String>> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('$') {
        parts.push(Some(before.to_owned()));
        let in_braces = behind.strip_prefix('{');
        let start = in_braces.unwrap_or(behind);
        let (name, after) =
            start.split_at(start.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(start.len()));
        let end = if in_braces.is_some() { after.strip_prefix('}') } else { Some(after) };
        (rest, _) = match (behind.strip_prefix('$'), end.filter(|_| !name.is_empty())) {
            (Some(behind), _) => (behind, parts.push(Some("$".to_owned()))),
            (None, Some(end)) => (end, parts.extend((name == "0").then_some(None))),
            (None, None) => (behind, parts.push(Some("$".to_owned()))),
        };
    }
    parts.push(Some(rest.to_owned()));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::new(text).expect("no trailing backslash")
    }

    #[test]
    fn prefix_and_suffix_take_the_shortest_or_the_longest_match() {
        assert_eq!(pattern("b*n").without_prefix("banana-split", false), Ok("ana-split".into()));
        assert_eq!(pattern("b*n").without_prefix("banana-split", true), Ok("a-split".into()));
        assert_eq!(pattern(".*").without_suffix("archive.tar.gz", false), Ok("archive.tar".into()));
        assert_eq!(pattern(".*").without_suffix("archive.tar.gz", true), Ok("archive".into()));
        assert_eq!(pattern("x*").without_prefix("banana", true), Ok("banana".into()));
        assert_eq!(pattern("*").without_suffix("한국어", false), Ok("한국어".into()));
    }

    #[test]
    fn replacement_is_greedy_and_literal() {
        assert_eq!(pattern("s*").replaced("mississippi", "X", false), Ok("miX".into()));
        assert_eq!(pattern("ss").replaced("mississippi", "$1", true), Ok("miiippi".into()));
        assert_eq!(pattern("ss").replaced("mississippi", "$1", false), Ok("mi$1issippi".into()));
        assert_eq!(pattern("?").replaced("한국", ".", true), Ok("..".into()));
        assert_eq!(pattern("").replaced("abc", "X", true), Ok("XaXbXcX".into()));
        assert_eq!(pattern("").replaced("abc", "X", false), Ok("Xabc".into()));
        assert_eq!(pattern("*").replaced("abc", "X", true), Ok("X".into()));
        assert_eq!(pattern("*").replaced("", "X", true), Ok("X".into()));
        assert_eq!(pattern("*").replaced("a\nb", "X", true), Ok("X\nX".into()));
    }

    #[test]
    fn a_backslash_makes_the_next_character_literal() {
        assert_eq!(pattern("a\\*").without_prefix("a*b", false), Ok("b".into()));
        assert_eq!(pattern("\\/\\}").without_prefix("/}b", false), Ok("b".into()));
        assert!(["a\\", "\\x", "\\\\\\"].into_iter().all(|text| Pattern::new(text).is_none()));
    }

    #[test]
    fn a_hostile_pattern_ends_with_an_error() {
        let value = "a".repeat(60_000);
        let mut hostile = pattern(&format!("{}b", "*a".repeat(2_000)));
        assert_eq!(hostile.replaced(&value, "x", true), Err(TooCostly));
    }
}
