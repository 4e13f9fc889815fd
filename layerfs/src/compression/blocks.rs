//! Blocks of a stream: where it is cut, and what was compressed before by what went in.
//!
//! Invariant: a cut depends on the bytes around it alone, so that two streams that are alike again after a difference are
//! cut alike again soon; tars differ by whole sectors. A key says all that a compressed block depends on.

use std::sync::Arc;

use super::{Compression, version};
use crate::digest::Digester;

/// Tars consist of these: what comes behind a changed file is moved by a multiple of them.
pub(super) const SECTOR_BYTES: usize = 512;
/// No block but the last is smaller: large enough that cutting costs 0.01% of size.
pub(super) const LEAST_BLOCK_BYTES: usize = 512 << 10;
/// No block is larger: small enough to keep two cores busy and memory low.
pub(super) const MOST_BLOCK_BYTES: usize = 2 << 20;
/// One sector in 1,024 ends a block that is large enough, so that blocks have one mebibyte on average.
const CUT_BITS: u32 = 10;

/// Of everything that the bytes of a compressed block depend on.
pub(crate) type BlockKey = [u8; 32];

/// Compressed blocks from before.
pub(crate) trait KnownBlocks: Send + Sync {
    /// The bytes that compressing what the key is of gave, undamaged, and their SHA-256.
    fn find(&self, key: &BlockKey) -> Option<(Vec<u8>, [u8; 32])>;
}

/// Where compressed blocks are looked up; `None` compresses all.
pub(super) type Known = Option<Arc<dyn KnownBlocks>>;

/// A block of a compressed stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MadeBlock {
    pub(crate) key: BlockKey,
    /// Where it begins in the stream.
    pub(crate) offset: u64,
    /// How many bytes it has there.
    pub(crate) size_bytes: u32,
    /// Their SHA-256.
    pub(crate) sum: [u8; 32],
}

/// Whether a block ends behind a sector.
pub(super) fn is_cut(sector: &[u8]) -> bool {
    // A multiplicative hash: https://en.wikipedia.org/wiki/Hash_function#Fibonacci_hashing
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let (words, _) = sector.as_chunks::<8>();
    let hash =
        words.iter().fold(FACTOR, |hash, word| (hash ^ u64::from_le_bytes(*word)).wrapping_mul(FACTOR).rotate_left(23));
    hash.wrapping_mul(FACTOR) >> (u64::BITS - CUT_BITS) == 0
}

/// The key of a block of gzip. `bytes` begin with the window before it, which is `window` long.
pub(super) fn key(bytes: &[u8], window: usize, is_last: bool, level: u32) -> BlockKey {
    let mut digester = Digester::new();
    digester.update(b"nacre gzip block");
    digester.update(&version(Compression::Gzip).to_le_bytes());
    digester.update(&[level as u8, u8::from(is_last)]);
    digester.update(&(window as u64).to_le_bytes());
    digester.update(bytes);
    digester.sum()
}
