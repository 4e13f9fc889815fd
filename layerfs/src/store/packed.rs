//! Blocks that layers were compressed to: a layer that differs little from an earlier one is compressed in that part only.
//!
//! Invariant: what is found here has the digest that was noted when it was made, so that a damaged blob does not spread.
//! All of it is derived: without it layers are compressed whole, to the same bytes.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::Store;
use super::files::read_if_present;
use crate::compression::{BlockKey, KnownBlocks, MadeBlock};
use crate::digest::{Digest, sum_of};

/// Smaller layers are compressed sooner than lists are read.
pub(super) const FROM_TAR_BYTES: u64 = 4 << 20;
/// So many blobs are looked at, those that were made last.
const MOST_BLOBS: usize = 64;
/// Of the lists beside layers.
const EXTENSION: &str = "blocks";
const MAGIC: &[u8; 8] = b"nacreblk";
/// Key, offset, length and sum.
const RECORD_BYTES: usize = 32 + 8 + 4 + 32;
const SUM_BYTES: usize = 32;

/// The blocks of some blobs.
#[derive(Debug, Default)]
pub(super) struct PackedBlocks {
    blobs: Vec<File>,
    places: HashMap<BlockKey, Place>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    blob: usize,
    offset: u64,
    size_bytes: u32,
    sum: [u8; 32],
}

impl Store {
    /// Where the list of a blob's blocks lies.
    pub(super) fn blocks_path(&self, blob: &Digest) -> PathBuf {
        self.root.join("layers").join(format!("{}.{EXTENSION}", blob.digest()))
    }

    /// The blocks of the blobs that were made last. What cannot be read is not known.
    pub(super) fn packed_blocks(&self) -> PackedBlocks {
        let mut found = PackedBlocks::default();
        for list in newest_lists(&self.root.join("layers")).unwrap_or_default() {
            let blob = list.file_stem().map(|name| self.root.join("blobs/sha256").join(name));
            let bytes = read_if_present(&list).ok().flatten().unwrap_or_default();
            if let (Some(Ok(blob)), Some(blocks)) = (blob.map(File::open), decode(&bytes)) {
                found.add(blob, blocks);
            }
        }
        found
    }
}

fn newest_lists(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut lists: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == EXTENSION)
            && let Ok(modified) = fs::metadata(&path).and_then(|found| found.modified())
        {
            lists.push((modified, path));
        }
    }
    lists.sort_unstable_by(|a, b| b.cmp(a));
    Ok(lists.into_iter().take(MOST_BLOBS).map(|(_, path)| path).collect())
}

impl PackedBlocks {
    fn add(&mut self, blob: File, blocks: Vec<MadeBlock>) {
        for MadeBlock { key, offset, size_bytes, sum } in blocks {
            self.places.entry(key).or_insert(Place { blob: self.blobs.len(), offset, size_bytes, sum });
        }
        self.blobs.push(blob);
    }
}

impl KnownBlocks for PackedBlocks {
    fn find(&self, key: &BlockKey) -> Option<(Vec<u8>, [u8; 32])> {
        let Place { blob, offset, size_bytes, sum } = *self.places.get(key)?;
        let mut bytes = vec![0; size_bytes as usize];
        self.blobs[blob].read_exact_at(&mut bytes, offset).ok()?;
        (sum_of(&bytes) == sum).then_some((bytes, sum))
    }
}

/// The list of a blob's blocks.
pub(super) fn encode(blocks: &[MadeBlock]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    for MadeBlock { key, offset, size_bytes, sum } in blocks {
        bytes.extend(key);
        bytes.extend(offset.to_le_bytes());
        bytes.extend(size_bytes.to_le_bytes());
        bytes.extend(sum);
    }
    bytes.extend(sum_of(&bytes));
    bytes
}

/// `None` for what [`encode`] has not written.
fn decode(bytes: &[u8]) -> Option<Vec<MadeBlock>> {
    let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(SUM_BYTES)?)?;
    let (records, rest) = body.strip_prefix(MAGIC)?.as_chunks::<RECORD_BYTES>();
    let record = |record: &[u8; RECORD_BYTES]| {
        let (key, rest) = record.split_first_chunk().expect("a record holds a key");
        let (offset, rest) = rest.split_first_chunk().expect("a record holds an offset");
        let (size, rest) = rest.split_first_chunk().expect("a record holds a length");
        let sum = *rest.first_chunk().expect("a record holds a sum");
        MadeBlock { key: *key, offset: u64::from_le_bytes(*offset), size_bytes: u32::from_le_bytes(*size), sum }
    };
    (rest.is_empty() && sum_of(body) == *sum).then(|| records.iter().map(record).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_comes_back_as_it_was_and_a_damaged_one_not_at_all() {
        let blocks: Vec<_> = (1..4)
            .map(|n| MadeBlock { key: [n; 32], offset: u64::from(n) << 40, size_bytes: 7, sum: [n + 9; 32] })
            .collect();
        let bytes = encode(&blocks);
        assert_eq!(decode(&bytes), Some(blocks));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!((decode(&damaged), decode(&bytes[..at])), (None, None), "{at}");
        }
    }
}
