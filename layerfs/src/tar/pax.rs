//! Extended headers: `LENGTH KEY=VALUE\n` records, read and written.
//!
//! Invariant: [`Records`] are well-formed but not yet interpreted; later records win.
//! <https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html#tag_20_94_13_03>

use super::entry::Xattr;
use super::error::EntryFault;
use super::fields::KEYS;
use crate::tree::Time;

/// How star and GNU tar name extended attributes.
pub(super) const SCHILY_XATTR: &[u8] = b"SCHILY.xattr.";
/// How libarchive names them: percent-encoded name, base64 value.
const LIBARCHIVE_XATTR: &[u8] = b"LIBARCHIVE.xattr.";
/// `XATTR_NAME_MAX` of Linux.
const XATTR_NAME_MAX_BYTES: usize = 255;
/// `XATTR_SIZE_MAX` of Linux.
const XATTR_VALUE_MAX_BYTES: usize = 65536;

/// The records of one extended header, in order.
#[derive(Debug, Default, Clone)]
pub(super) struct Records(pub(super) Vec<(Vec<u8>, Vec<u8>)>);

impl Records {
    /// Takes the content of an extended header apart.
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, EntryFault> {
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let (record, rest) = split_record(bytes)?;
            let equals = record.iter().position(|&b| b == b'=').ok_or(EntryFault::Pax("a record has no `=`"))?;
            if equals == 0 {
                return Err(EntryFault::Pax("a record has no key"));
            }
            records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
            bytes = rest;
        }
        Ok(Self(records))
    }

    /// Adds a record.
    pub(super) fn push(&mut self, key: &[u8], value: &[u8]) {
        self.0.push((key.to_vec(), value.to_vec()));
    }

    /// The records as the content of an extended header, sorted by key.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut sorted: Vec<_> = self.0.iter().collect();
        sorted.sort();
        let mut bytes = Vec::new();
        for (key, value) in sorted {
            let body = key.len() + value.len() + 3; // space, `=` and newline
            // The length counts its own digits, so a carry may add one.
            let mut length = body + decimal_digits(body);
            length = body + decimal_digits(length);
            bytes.extend_from_slice(length.to_string().as_bytes());
            bytes.push(b' ');
            bytes.extend_from_slice(key);
            bytes.push(b'=');
            bytes.extend_from_slice(value);
            bytes.push(b'\n');
        }
        bytes
    }

    /// The value of a key: the last one; an empty value takes the key back.
    pub(super) fn value(&self, key: &[u8]) -> Option<&[u8]> {
        self.0.iter().rev().find(|(k, _)| k == key).map(|(_, value)| value.as_slice()).filter(|value| !value.is_empty())
    }

    /// Takes over what later records say about the entries to come; what says nothing about any falls away.
    pub(super) fn update(&mut self, later: Self) {
        let is_xattr = |key: &[u8]| key.starts_with(SCHILY_XATTR) || key.starts_with(LIBARCHIVE_XATTR);
        self.0.extend(later.0.into_iter().filter(|(key, _)| KEYS.contains(&key.as_slice()) || is_xattr(key)));
        self.0.reverse();
        self.0.sort_by(|(a, _), (b, _)| a.cmp(b));
        self.0.dedup_by(|next, kept| next.0 == kept.0);
    }

    /// Bytes held, for a limit.
    pub(super) fn size_bytes(&self) -> usize {
        self.0.iter().map(|(key, value)| key.len() + value.len()).sum()
    }

    /// The extended attributes, in order of their records.
    pub(super) fn xattrs(&self) -> Result<Vec<Xattr>, EntryFault> {
        let mut xattrs = Vec::new();
        for (key, value) in &self.0 {
            let (name, value) = if let Some(name) = key.strip_prefix(SCHILY_XATTR) {
                (name.to_vec(), value.clone())
            } else if let Some(name) = key.strip_prefix(LIBARCHIVE_XATTR) {
                let fault = || EntryFault::Xattr(name.escape_ascii().to_string());
                (percent_decode(name).ok_or_else(fault)?, base64_decode(value).ok_or_else(fault)?)
            } else {
                continue;
            };
            let is_valid_name = (1..=XATTR_NAME_MAX_BYTES).contains(&name.len()) && !name.contains(&0);
            if !is_valid_name || value.len() > XATTR_VALUE_MAX_BYTES {
                return Err(EntryFault::Xattr(name.escape_ascii().to_string()));
            }
            xattrs.push((name, value));
        }
        Ok(xattrs)
    }
}

fn split_record(bytes: &[u8]) -> Result<(&[u8], &[u8]), EntryFault> {
    let malformed = EntryFault::Pax("a record's length is wrong");
    let Some(space) = bytes.iter().take(8).position(|&b| b == b' ') else { return Err(malformed) };
    let Some(length) = parse_decimal(&bytes[..space]).and_then(|n| usize::try_from(n).ok()) else {
        return Err(malformed);
    };
    if length > bytes.len() || length < space + 2 || bytes[length - 1] != b'\n' {
        return Err(malformed);
    }
    Ok((&bytes[space + 1..length - 1], &bytes[length..]))
}

fn decimal_digits(number: usize) -> usize {
    number.to_string().len()
}

/// An unsigned decimal number: digits only.
pub(super) fn parse_decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |value, &digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// A time as extended headers have it: `[-]SECONDS[.FRACTION]`; digits below nanoseconds fall away.
pub(super) fn parse_time(text: &[u8]) -> Option<Time> {
    let (is_negative, text) = text.strip_prefix(b"-").map_or((false, text), |rest| (true, rest));
    let point = text.iter().position(|&b| b == b'.').unwrap_or(text.len());
    let seconds = i64::try_from(parse_decimal(&text[..point])?).ok()?;
    let fraction = text.get(point + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = digits.fold(0_u32, |value, digit| value * 10 + u32::from(digit - b'0'));
    Some(match (is_negative, nanoseconds) {
        (false, _) => Time { seconds, nanoseconds },
        (true, 0) => Time { seconds: -seconds, nanoseconds: 0 },
        (true, _) => Time { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

fn percent_decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'%' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    Some(bytes)
}

fn base64_decode(text: &[u8]) -> Option<Vec<u8>> {
    let digits = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    let (mut bits, mut count) = (0_u32, 0);
    for &digit in digits {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
        }
    }
    (count < 6).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_sorted_with_lengths_that_count_themselves() {
        let mut records = Records::default();
        records.push(b"size", b"12345678901");
        records.push(b"path", &[b'a'; 93]); // 93 + 7 + digits crosses from 2 to 3 digits
        let bytes = records.to_bytes();
        assert!(bytes.starts_with(b"103 path="), "{}", bytes.escape_ascii());
        let read = Records::parse(&bytes).unwrap();
        assert_eq!(read.value(b"size"), Some(b"12345678901".as_slice()));
        assert_eq!(read.value(b"path").unwrap().len(), 93);
    }

    #[test]
    fn nonsense_records_are_refused() {
        for text in [
            "x",
            "5 a=b",
            "6 a=bX",
            "0 a=b\n",
            "99 a=b\n",
            "6 aab\n",
            "6 =aa\n",
            "99999999999999999999 a=b\n",
            " \n",
            "2 \n",
        ] {
            assert!(Records::parse(text.as_bytes()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn times_have_fractions_and_signs() {
        assert_eq!(parse_time(b"1.5"), Some(Time { seconds: 1, nanoseconds: 500_000_000 }));
        assert_eq!(parse_time(b"-1.5"), Some(Time { seconds: -2, nanoseconds: 500_000_000 }));
        assert_eq!(parse_time(b"-3"), Some(Time { seconds: -3, nanoseconds: 0 }));
        assert_eq!(parse_time(b"1.0000000019"), Some(Time { seconds: 1, nanoseconds: 1 }));
        for bad in ["", "-", "a", "1.x", "1e3", "99999999999999999999", "--1", "1.-5"] {
            assert_eq!(parse_time(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn xattrs_of_star_and_libarchive_are_read() {
        let mut records = Records::default();
        records.push(b"SCHILY.xattr.user.a=b", b"x");
        records.push(b"LIBARCHIVE.xattr.user.%61%3d", b"AAEC/w==");
        let parsed = Records::parse(&records.to_bytes()).unwrap().xattrs().unwrap();
        assert_eq!(parsed[0], (b"user.a=".to_vec(), vec![0, 1, 2, 255]));
        let mut bad = Records::default();
        bad.push(b"LIBARCHIVE.xattr.user.a", b"A");
        assert!(bad.xattrs().is_err());
    }
}
