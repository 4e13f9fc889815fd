//! The 512-byte header block of a tar: where its fields lie, how numbers are written in it.
//!
//! <https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html#tag_20_94_13_06> (ustar) and
//! <https://www.gnu.org/software/tar/manual/html_node/Standard.html> (GNU). It interprets no entry.

use std::ops::Range;

/// Everything in a tar is a multiple of this.
pub(super) const BLOCK_BYTES: usize = 512;

pub(super) const NAME: Range<usize> = 0..100;
pub(super) const MODE: Range<usize> = 100..108;
pub(super) const UID: Range<usize> = 108..116;
pub(super) const GID: Range<usize> = 116..124;
pub(super) const SIZE: Range<usize> = 124..136;
pub(super) const MODIFIED: Range<usize> = 136..148;
pub(super) const CHECKSUM: Range<usize> = 148..156;
pub(super) const TYPE: usize = 156;
pub(super) const LINK_NAME: Range<usize> = 157..257;
pub(super) const MAGIC: Range<usize> = 257..265;
pub(super) const DEVICE_MAJOR: Range<usize> = 329..337;
pub(super) const DEVICE_MINOR: Range<usize> = 337..345;
pub(super) const PREFIX: Range<usize> = 345..500;
/// In star's variant of ustar the last bytes of the prefix are times.
const STAR_PREFIX: Range<usize> = 345..476;
const STAR_TRAILER: Range<usize> = 508..512;

/// Magic and version of ustar.
pub(super) const USTAR: &[u8; 8] = b"ustar\x0000";

/// One header block.
pub(super) struct Header(pub(super) [u8; BLOCK_BYTES]);

impl Header {
    /// A block of zeros with the magic of ustar.
    pub(super) fn ustar() -> Self {
        let mut block = [0; BLOCK_BYTES];
        block[MAGIC].copy_from_slice(USTAR);
        Self(block)
    }

    /// Whether the block is one of those that end a tar.
    pub(super) fn is_zero(&self) -> bool {
        self.0.iter().all(|&b| b == 0)
    }

    /// Whether the sum in the block is that of its bytes; old tars summed signed bytes.
    pub(super) fn has_valid_checksum(&self) -> bool {
        let Some(recorded) = parse_number(&self.0[CHECKSUM]) else { return false };
        let signed: i64 = self.summed_bytes().map(|b| i64::from(b.cast_signed())).sum();
        recorded == self.checksum() || recorded == signed
    }

    fn summed_bytes(&self) -> impl Iterator<Item = u8> {
        self.0.iter().enumerate().map(|(at, &b)| if CHECKSUM.contains(&at) { b' ' } else { b })
    }

    fn checksum(&self) -> i64 {
        self.summed_bytes().map(i64::from).sum()
    }

    /// Writes the sum; the last step of making a header.
    pub(super) fn seal(&mut self) {
        let sum = format!("{:06o}\0 ", self.checksum());
        self.0[CHECKSUM].copy_from_slice(sum.as_bytes());
    }

    /// A text field up to its first NUL.
    pub(super) fn text(&self, field: Range<usize>) -> &[u8] {
        until_nul(&self.0[field])
    }

    /// The name with the prefix where the variant of the header has one.
    pub(super) fn full_name(&self) -> Vec<u8> {
        let is_star = &self.0[STAR_TRAILER] == b"tar\0";
        let prefix = match &self.0[MAGIC] {
            magic if magic.starts_with(b"ustar\0") && is_star => self.text(STAR_PREFIX),
            magic if magic.starts_with(b"ustar\0") => self.text(PREFIX),
            _ => b"",
        };
        let name = self.text(NAME);
        if prefix.is_empty() { name.to_vec() } else { [prefix, name].join(&b'/') }
    }

    /// A number field.
    pub(super) fn number(&self, field: Range<usize>) -> Option<i64> {
        parse_number(&self.0[field])
    }

    /// Writes a number in octal if it fits its field; `false` leaves the field zero.
    pub(super) fn set_number(&mut self, field: Range<usize>, value: i64) -> bool {
        let digits = field.len() - 1;
        // 3 bits a digit; the fields are 7 or 11 digits wide, far below 63 bits.
        let fits = (0..1_i64 << (3 * digits)).contains(&value);
        let text = format!("{:0digits$o}\0", if fits { value } else { 0 });
        self.0[field].copy_from_slice(text.as_bytes());
        fits
    }

    /// Writes a text if it fits its field; `false` writes as much as fits.
    pub(super) fn set_text(&mut self, field: Range<usize>, text: &[u8]) -> bool {
        let count = text.len().min(field.len());
        self.0[field.start..field.start + count].copy_from_slice(&text[..count]);
        count == text.len()
    }
}

/// The bytes before the first NUL.
pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&b| b == 0).next().unwrap_or_default()
}

/// A number as headers have them: octal text among spaces and NULs, or big-endian with the top bit set.
pub(super) fn parse_number(field: &[u8]) -> Option<i64> {
    match *field.first()? {
        0x80 | 0xff => parse_base_256(field),
        first if first & 0x80 != 0 => parse_base_256(field),
        _ => parse_octal(field),
    }
}

fn parse_octal(field: &[u8]) -> Option<i64> {
    let is_blank = |b: &u8| matches!(b, b' ' | 0);
    let start = field.iter().position(|b| !is_blank(b)).unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(is_blank).unwrap_or(digits.len());
    digits[..end].iter().try_fold(0_i64, |value, &digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

fn parse_base_256(field: &[u8]) -> Option<i64> {
    // The bit below the marker is the sign; the marker bit itself is no part of the number.
    let is_negative = field[0] & 0x40 != 0;
    let first = if is_negative { i128::from(field[0].cast_signed()) } else { i128::from(field[0] & 0x7f) };
    let value =
        field[1..].iter().try_fold(first, |value, &byte| value.checked_mul(256)?.checked_add(i128::from(byte)))?;
    i64::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_in_octal_and_base_256() {
        assert_eq!(parse_number(b"0000644\0"), Some(0o644));
        assert_eq!(parse_number(b"   644 \0"), Some(0o644));
        assert_eq!(parse_number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(parse_number(b"00000x4\0"), None);
        assert_eq!(parse_number(&[0x80, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(parse_number(&[0xff; 12]), Some(-1));
        assert_eq!(parse_number(&[0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), None);
    }

    #[test]
    fn numbers_that_do_not_fit_a_field_are_refused_not_cut() {
        let mut header = Header::ustar();
        assert!(header.set_number(UID, 0o7_777_777));
        assert!(!header.set_number(UID, 0o10_000_000));
        assert!(!header.set_number(MODIFIED, -1));
        header.seal();
        assert!(header.has_valid_checksum());
        header.0[0] ^= 1;
        assert!(!header.has_valid_checksum());
    }
}
