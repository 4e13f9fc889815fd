//! Maps of sparse files, in the four forms that GNU tar has had.
//!
//! Invariant: a [`SparseMap`] that was checked is ascending, does not overlap, lies within the file
//! and accounts for every stored byte. <https://www.gnu.org/software/tar/manual/html_node/Sparse-Formats.html>

use std::ops::Range;

use super::error::EntryFault;
use super::header::{BLOCK_BYTES, Header, parse_number};
use super::pax::{Records, parse_decimal};

/// More pieces than any real file has; 16 MiB of map.
pub(super) const PIECES_MAX: usize = 1 << 20;

const OLD_MAP: Range<usize> = 386..482;
const OLD_CONTINUES: usize = 482;
const OLD_REAL_SIZE: Range<usize> = 483..495;
const CONTINUATION_MAP: Range<usize> = 0..504;
const CONTINUATION_CONTINUES: usize = 504;

/// The parts of a file that are stored: (offset, length).
#[derive(Debug, Default)]
pub(super) struct SparseMap {
    pub(super) size_bytes: u64,
    pub(super) pieces: Vec<(u64, u64)>,
}

/// Where the map of an entry with an extended header is found.
pub(super) enum PaxSparse {
    /// In the records themselves (versions 0.0 and 0.1).
    Map(SparseMap),
    /// At the start of the stored data (version 1.0); the file has this size.
    InData(u64),
}

/// The map in the extended header, if there is one.
pub(super) fn from_records(records: &Records) -> Result<Option<PaxSparse>, EntryFault> {
    let number = |key: &[u8]| match records.value(key) {
        Some(text) => parse_decimal(text).map(Some).ok_or(EntryFault::Number("sparse file size")),
        None => Ok(None),
    };
    let size = number(b"GNU.sparse.realsize")?.or(number(b"GNU.sparse.size")?);
    let version = (records.value(b"GNU.sparse.major"), records.value(b"GNU.sparse.minor"));
    match (version, size) {
        ((Some(b"1"), Some(b"0")), Some(size)) => return Ok(Some(PaxSparse::InData(size))),
        ((None, None) | (Some(b"0"), Some(b"0" | b"1")), Some(_)) => {}
        ((None, None), None) => return Ok(None),
        _ => return Err(EntryFault::Sparse("unknown version")),
    }
    let mut numbers = Vec::new();
    if let Some(map) = records.value(b"GNU.sparse.map") {
        for text in map.split(|&b| b == b',') {
            numbers.push(parse_decimal(text).ok_or(EntryFault::Sparse("not a number"))?);
        }
    } else {
        for (key, value) in &records.0 {
            let is_offset = numbers.len() % 2 == 0;
            match key.as_slice() {
                b"GNU.sparse.offset" if is_offset => {}
                b"GNU.sparse.numbytes" if !is_offset => {}
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => return Err(EntryFault::Sparse("out of order")),
                _ => continue,
            }
            numbers.push(parse_decimal(value).ok_or(EntryFault::Sparse("not a number"))?);
        }
    }
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(EntryFault::Sparse("an offset without length"));
    }
    let pieces = pairs.iter().map(|&[offset, length]| (offset, length)).collect();
    Ok(Some(PaxSparse::Map(SparseMap { size_bytes: size.unwrap_or_default(), pieces })))
}

/// The map in an old GNU header; `more` gives the blocks that continue it.
pub(super) fn from_old_header<E: From<EntryFault>>(
    header: &Header,
    mut more: impl FnMut() -> Result<[u8; BLOCK_BYTES], E>,
) -> Result<SparseMap, E> {
    let size = parse_number(&header.0[OLD_REAL_SIZE]).and_then(|n| u64::try_from(n).ok());
    let size_bytes = size.ok_or(EntryFault::Number("sparse file size"))?;
    let mut map = SparseMap { size_bytes, pieces: Vec::new() };
    let mut continues = push_old_pieces(&mut map, &header.0[OLD_MAP])? && header.0[OLD_CONTINUES] != 0;
    while continues {
        let block = more()?;
        continues = push_old_pieces(&mut map, &block[CONTINUATION_MAP])? && block[CONTINUATION_CONTINUES] != 0;
    }
    Ok(map)
}

/// Adds the 24-byte pieces of a block; `false` if an empty field ended the map.
fn push_old_pieces(map: &mut SparseMap, fields: &[u8]) -> Result<bool, EntryFault> {
    for piece in fields.chunks_exact(24) {
        if piece[0] == 0 || piece[12] == 0 {
            return Ok(false);
        }
        let number =
            |field| parse_number(field).and_then(|n| u64::try_from(n).ok()).ok_or(EntryFault::Sparse("not a number"));
        map.pieces.push((number(&piece[..12])?, number(&piece[12..])?));
    }
    if map.pieces.len() > PIECES_MAX {
        return Err(EntryFault::Sparse("too many pieces"));
    }
    Ok(true)
}

/// Reads the map at the start of the data (version 1.0): decimal numbers in lines, padded to a block.
/// `more` gives the data's blocks. Returns the map and the bytes that it took.
pub(super) fn from_data<E: From<EntryFault>>(
    size_bytes: u64,
    mut more: impl FnMut() -> Result<[u8; BLOCK_BYTES], E>,
) -> Result<(SparseMap, u64), E> {
    let mut lines = Vec::new();
    let mut digits = Vec::new();
    let mut blocks = 0;
    loop {
        blocks += 1;
        for byte in more()? {
            if byte != b'\n' {
                // 20 digits hold any 64-bit number: more is an attack.
                if digits.len() > 20 && is_incomplete(&lines) {
                    return Err(EntryFault::Sparse("a line is too long").into());
                }
                digits.push(byte);
                continue;
            }
            if is_incomplete(&lines) {
                lines.push(parse_decimal(&digits).ok_or(EntryFault::Sparse("not a number"))?);
                digits.clear();
            }
        }
        if lines.first().is_some_and(|&count| count > PIECES_MAX as u64) {
            return Err(EntryFault::Sparse("too many pieces").into());
        }
        if !is_incomplete(&lines) {
            break;
        }
    }
    let pieces = lines[1..].as_chunks::<2>().0.iter().map(|&[offset, length]| (offset, length)).collect();
    Ok((SparseMap { size_bytes, pieces }, blocks * BLOCK_BYTES as u64))
}

/// Whether lines are missing: the first says how many pairs follow.
fn is_incomplete(lines: &[u64]) -> bool {
    lines.first().is_none_or(|&count| (lines.len() as u64) < count.saturating_mul(2).saturating_add(1))
}

impl SparseMap {
    /// Checks the map against the number of bytes that are stored.
    pub(super) fn check(&self, stored_bytes: u64) -> Result<(), EntryFault> {
        // Positions in files are signed in every system call.
        if i64::try_from(self.size_bytes).is_err() {
            return Err(EntryFault::Number("sparse file size"));
        }
        let (mut end, mut total) = (0_u64, 0_u64);
        for &(offset, length) in &self.pieces {
            let next = offset.checked_add(length).ok_or(EntryFault::Sparse("a piece is too long"))?;
            if offset < end {
                return Err(EntryFault::Sparse("pieces overlap or are out of order"));
            }
            if next > self.size_bytes {
                return Err(EntryFault::Sparse("a piece lies behind the end of the file"));
            }
            end = next;
            total += length; // not above `end`, as pieces do not overlap
        }
        if total == stored_bytes { Ok(()) } else { Err(EntryFault::Sparse("the pieces are not what is stored")) }
    }
}
