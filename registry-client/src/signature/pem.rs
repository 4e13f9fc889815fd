//! Keys as text (RFC 7468), and the few pieces of DER that a public key is made of.
//!
//! Invariant: no text makes it panic, and what is read is not longer than the text. It knows no key.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The block of a text, which has but one: its label and its bytes.
pub(super) fn decode(text: &[u8]) -> Result<(String, Vec<u8>), String> {
    let text = std::str::from_utf8(text).map_err(|_| "it is no text".to_owned())?;
    if text.trim().is_empty() {
        return Err("it is empty".to_owned());
    }
    let begin = |line: &str| Some(line.strip_prefix("-----BEGIN ")?.strip_suffix("-----")?.to_owned());
    let mut lines = text.lines().map(str::trim);
    let label = lines.by_ref().find_map(begin).ok_or("it has no line -----BEGIN ...-----")?;
    let end = format!("-----END {label}-----");
    let mut body = String::new();
    while let Some(line) = lines.next() {
        if line == end {
            let bytes = decoded(&body)?;
            // Who names a file of two keys means both.
            return match lines.find_map(begin) {
                Some(second) => {
                    Err(format!("it holds more than one thing: {second} too; each needs a file of its own"))
                }
                None => Ok((label, bytes)),
            };
        }
        body.push_str(line);
    }
    Err(format!("it has no line {end}"))
}

/// What all blocks of OpenPGP's text form hold, which are of one label; the checksums at their ends count for nothing
/// (RFC 9580 section 6).
pub(super) fn armored(label: &str, text: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    for lines in blocks(label, text)? {
        // Between headers and body there is an empty line.
        let body = lines.iter().skip_while(|line| !line.is_empty()).filter(|line| !line.starts_with('='));
        bytes.extend(decoded(&body.copied().collect::<String>())?);
    }
    Ok(bytes)
}

/// The bytes of each block of a label, of which there is one at least.
pub(super) fn all(label: &str, text: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    blocks(label, text)?.iter().map(|lines| decoded(&lines.concat())).collect()
}

/// The lines within each block of a label, of which there is one at least.
fn blocks<'a>(label: &str, text: &'a [u8]) -> Result<Vec<Vec<&'a str>>, String> {
    let text = std::str::from_utf8(text).map_err(|_| "it is no text".to_owned())?;
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let mut lines = text.lines().map(str::trim);
    let mut blocks = Vec::new();
    while lines.by_ref().any(|line| line == begin) {
        let mut block = Vec::new();
        loop {
            match lines.next().ok_or_else(|| format!("it has no line {end}"))? {
                line if line == end => break,
                line => block.push(line),
            }
        }
        blocks.push(block);
    }
    if blocks.is_empty() { Err(format!("it has no line {begin}")) } else { Ok(blocks) }
}

fn decoded(body: &str) -> Result<Vec<u8>, String> {
    STANDARD.decode(body).map_err(|error| format!("what it holds is not base64: {error}"))
}

/// Bytes under a label, 64 characters a line.
pub(super) fn encode(label: &str, bytes: &[u8]) -> String {
    let body = STANDARD.encode(bytes);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        text.extend(line.iter().map(|byte| char::from(*byte)));
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

/// The content of a DER value with this tag, and what follows it.
pub(super) fn value(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    first(der).filter(|(found, ..)| *found == tag).map(|(_, content, rest)| (content, rest))
}

/// The tag and the content of a DER value, and what follows it.
pub(super) fn first(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&short, rest) = rest.split_first()?;
    let (length, rest) = match short {
        0..=0x7f => (usize::from(short), rest),
        // Longer than any key and certificate that is read here.
        0x81 | 0x82 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(short & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_read() {
        let bytes: Vec<u8> = (0..100).collect();
        let text = encode("SOME KEY", &bytes);
        assert!(text.lines().all(|line| line.len() <= 64));
        assert_eq!(decode(text.as_bytes()), Ok(("SOME KEY".to_owned(), bytes.clone())));
        let framed = format!("a comment\r\n{}more", text.replace('\n', "\r\n"));
        assert_eq!(decode(framed.as_bytes()), Ok(("SOME KEY".to_owned(), bytes)));
    }

    #[test]
    fn blocks_of_openpgp_are_joined_without_headers_and_checksums() {
        let one = "-----BEGIN A-----\nVersion: 1\nComment: x\n\nAAEC\nAw==\n=abcd\n-----END A-----\n";
        let two = "-----BEGIN A-----\r\n\r\nBAU=\r\n-----END A-----\r\n";
        let other = "-----BEGIN B-----\n\n!\n-----END B-----\n";
        let all = format!("words\n{one}between\n{other}{two}");
        assert_eq!(armored("A", all.as_bytes()), Ok(vec![0, 1, 2, 3, 4, 5]));
        for (text, why) in [
            ("", "no line -----BEGIN A-----"),
            (other, "no line -----BEGIN A-----"),
            (&one[..40], "no line -----END A-----"),
            (&one.replace("AAEC", "A!EC"), "not base64"),
        ] {
            assert!(armored("A", text.as_bytes()).expect_err(text).contains(why), "{text}");
        }
    }

    #[test]
    fn what_is_no_key_says_why() {
        for (text, why) in [
            ("", "empty"),
            (" \n", "empty"),
            ("x", "no line -----BEGIN"),
            ("-----BEGIN A-----\nAAAA\n", "no line -----END A-----"),
            ("-----BEGIN A-----\n!\n-----END A-----\n", "not base64"),
            ("-----BEGIN A-----\nAAAA\n-----END B-----\n", "no line -----END A-----"),
            ("-----BEGIN A-----\nAAAA\n-----END A-----\n-----BEGIN B-----\n", "more than one thing: B"),
        ] {
            assert!(decode(text.as_bytes()).expect_err(text).contains(why), "{text}");
        }
        assert!(decode(b"\xff\xfe").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), tag in any::<u8>()) {
            let _ = (decode(&bytes), armored("A", &[&b"-----BEGIN A-----\n"[..], &bytes].concat()));
            if let Some((content, rest)) = value(tag, &bytes) {
                prop_assert!(content.len() + rest.len() <= bytes.len());
            }
        }
    }
}
