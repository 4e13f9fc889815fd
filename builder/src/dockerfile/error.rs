//! What is wrong with a Dockerfile, and where: all that a report needs to show the line with a caret under the token.
//!
//! Not the report itself: the binary renders it.

/// One mistake in a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerfileError {
    /// Where. Boxed, as every parsing function returns this error.
    pub place: Box<Place>,
    /// What is wrong, in BuildKit's words where it has some.
    pub message: String,
    /// What the author probably meant.
    pub hint: Option<String>,
}

/// The token at fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The Dockerfile's name as the user gave it.
    pub file: String,
    /// Line of the token, from 1.
    pub line: usize,
    /// Column of the token in characters, from 1.
    pub column: usize,
    /// How many characters of the line the token takes; at least 1.
    pub width: usize,
    /// The text of that line.
    pub line_text: String,
    /// Line where the instruction begins that holds the token; less than `line` for a continued one.
    pub instruction_line: usize,
}

impl DockerfileError {
    pub(super) fn with_hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint;
        self
    }

    pub(super) fn within_instruction(mut self, instruction_line: usize) -> Self {
        self.place.instruction_line = instruction_line.min(self.place.line);
        self
    }
}

impl std::fmt::Display for DockerfileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Place { file, line, column, instruction_line, .. } = &*self.place;
        write!(f, "{file}:{line}:{column}: {}", self.message)?;
        if instruction_line != line {
            write!(f, " (in the instruction of line {instruction_line})")?;
        }
        Ok(())
    }
}

impl std::error::Error for DockerfileError {}

/// The candidate closest to a misspelt name, for a hint; `None` when none is close.
pub(crate) fn closest<'a>(given: &str, candidates: &[&'a str]) -> Option<&'a str> {
    // Longer names are no misspelling of any of ours, and the distance below is quadratic.
    if given.chars().count() > 32 {
        return None;
    }
    let nearest = candidates.iter().map(|candidate| (edit_distance(given, candidate), *candidate)).min()?;
    // Two slips in a name of four letters or more, or where the end is missing; one in a shorter one.
    let most = if given.len() < 4 && !nearest.1.starts_with(given) { 1 } else { 2 };
    (nearest.0 <= most).then_some(nearest.1)
}

/// Insertions, deletions, substitutions and swaps of neighbours that make `b` of `a`, upper and lower case being equal.
fn edit_distance(a: &str, b: &str) -> usize {
    let letters = |text: &str| text.to_lowercase().chars().collect::<Vec<char>>();
    let (a, b) = (letters(a), letters(b));
    let mut table = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            table[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let substituted = table[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let is_swap = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                let swapped = if is_swap { table[i - 2][j - 2] + 1 } else { usize::MAX };
                substituted.min(swapped).min(table[i - 1][j] + 1).min(table[i][j - 1] + 1)
            };
        }
    }
    table[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_miss_is_suggested_and_a_stranger_is_not() {
        assert_eq!(closest("FRMO", &["FROM", "RUN"]), Some("FROM"));
        assert_eq!(closest("chwon", &["chown", "chmod"]), Some("chown"));
        assert_eq!(closest("tmp", &["bind", "tmpfs"]), Some("tmpfs"));
        assert_eq!(closest("colour", &["source", "target"]), None);
    }
}
