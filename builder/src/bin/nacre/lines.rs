//! The output of a step, cut into lines as it comes.
//!
//! Invariant: every byte is looked at once, and no more than [`LONGEST_BYTES`] are kept, whatever a step writes.

/// A line that is longer is shown in parts: no terminal and no log shows more at once, and a step may write without
/// end.
const LONGEST_BYTES: usize = 64 << 10;

/// The beginning of a line whose end has not come yet.
#[derive(Default)]
pub(crate) struct Lines {
    partial: Vec<u8>,
    /// The line that was shown last ended with a carriage return: a line feed that follows ends no other one.
    is_returned: bool,
}

impl Lines {
    /// Takes more output, and hands on each line that it ends. A carriage return, with which programs write over
    /// their own line to show how far they are, ends one too; where it leaves an empty line there is nothing to show.
    pub(crate) fn push(&mut self, mut bytes: &[u8], mut line: impl FnMut(&[u8])) {
        while !bytes.is_empty() {
            let end = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let (text, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            self.add(text, &mut line);
            let Some((end, rest)) = rest.split_first() else { return };
            let has_text = !self.partial.is_empty();
            if has_text || (*end == b'\n' && !self.is_returned) {
                line(&self.partial);
                self.partial.clear();
            }
            self.is_returned = *end == b'\r' && (has_text || self.is_returned);
            bytes = rest;
        }
    }

    /// What came behind the last end of a line.
    pub(crate) fn finish(self) -> Option<Vec<u8>> {
        Some(self.partial).filter(|partial| !partial.is_empty())
    }

    fn add(&mut self, mut text: &[u8], line: &mut impl FnMut(&[u8])) {
        self.is_returned &= text.is_empty();
        while self.partial.len() + text.len() > LONGEST_BYTES {
            let (part, rest) = text.split_at(LONGEST_BYTES - self.partial.len());
            self.partial.extend_from_slice(part);
            // A letter stays whole.
            let whole = self.partial.len() - unfinished_letter(&self.partial);
            line(&self.partial[..whole]);
            self.partial.drain(..whole);
            text = rest;
        }
        self.partial.extend_from_slice(text);
    }
}

/// How many bytes at the end begin a letter of UTF-8 that has more.
fn unfinished_letter(bytes: &[u8]) -> usize {
    let lengths = bytes.iter().rev().zip(1..=3).find(|(byte, _)| **byte & 0xc0 != 0x80);
    match lengths {
        Some((first, length)) if first.leading_ones() as usize > length && first.leading_ones() <= 4 => length,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(chunks: &[&[u8]]) -> Vec<String> {
        let (mut lines, mut shown) = (Lines::default(), Vec::new());
        chunks.iter().for_each(|chunk| lines.push(chunk, |line| shown.push(line.to_vec())));
        shown.extend(lines.finish());
        shown.iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect()
    }

    #[test]
    fn a_line_ends_at_its_end_and_where_it_is_written_over() {
        assert_eq!(lines(&[b"a\n\nb", b"c\r\nd\r", b"\ne"]), ["a", "", "bc", "d", "e"]);
        assert_eq!(lines(&[b"\r 10%\r 20%", b"\r100%\n\ndone"]), [" 10%", " 20%", "100%", "", "done"]);
        assert_eq!(lines(&[b"\r\n", b"\n\r", b"x\r\r\n\r\ny"]), ["", "", "x", "", "y"]);
    }

    #[test]
    fn a_line_without_end_is_shown_in_parts_that_keep_letters_whole() {
        let text = "ä€😀".repeat(LONGEST_BYTES);
        let parts = lines(&text.as_bytes().chunks(8191).collect::<Vec<_>>());
        assert!(parts.iter().all(|part| part.len() <= LONGEST_BYTES && !part.contains('\u{fffd}')));
        assert_eq!(parts.concat(), text);
        let binary = vec![0x80; 3 * LONGEST_BYTES];
        assert_eq!(lines(&[&binary]).len(), 3);
    }

    proptest! {
        #[test]
        fn where_output_is_cut_changes_no_line(text in "[ab\r\n]{0,40}", at in 0usize..40) {
            let at = at.min(text.len());
            let (one, two) = text.as_bytes().split_at(at);
            prop_assert_eq!(lines(&[one, two]), lines(&[text.as_bytes()]));
        }
    }
}
