//! What was learned about the files of a context when they were last read: their digests, and that they have no
//! extended attributes. A build that finds a file's status unchanged needs not open it.
//!
//! Invariant: facts are kept only for a status that a later change of the file cannot leave as it is. The kernel sets
//! ctime at every change by a system call, and nobody can set it back. Two changes could deceive: one within the same
//! tick of the clock, so a file whose times were not clearly older than its reading is not remembered (git calls it
//! racily clean: <https://git-scm.com/docs/racy-git>); and one through a mapping of the file to a page that is dirty
//! already, which sets no time (mmap(2)), so files that changed just now are written back before they are read, up to
//! [`MOST_WRITTEN_BACK`] of them, and on file systems that write nothing back nothing is remembered. What is left is
//! a mapping that is written to while an image is built of a fresh checkout; there and on overlayfs, which passes no
//! writing back on, times are believed. Nothing here is ever trusted without its checksum.

use std::fs::File;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::directory::{Entry, EntryKind, FileId};

/// Changes with the form of the records.
const MAGIC: &[u8; 8] = b"nacrefs3";
/// Numbers of a status.
const STATUS_NUMBERS: usize = 8;
/// Behind them the digest, and whether there are extended attributes.
const DIGEST_AT: usize = 8 * STATUS_NUMBERS;
const XATTRS_AT: usize = DIGEST_AT + 32;
const RECORD_BYTES: usize = XATTRS_AT + 8;
const CHECKSUM_BYTES: usize = 71;
/// Kernels stamp files by a clock that ticks every 1 to 10 ms.
const TICK: Duration = Duration::from_millis(50);
/// File systems that keep no nanoseconds keep whole seconds, or pairs of them.
const COARSE_TICK: Duration = Duration::from_millis(2100);
/// A page is written to its disk when it has been dirty for 30 seconds, and Linux looks every 5
/// (vm.dirty_expire_centisecs, vm.dirty_writeback_centisecs): what changed earlier than this is clean.
const WRITTEN_BACK: Duration = Duration::from_secs(60);
/// File systems whose pages are never clean, as statfs(2) has their types: tmpfs, ramfs, hugetlbfs.
const NEVER_CLEAN: [u64; 3] = [0x0102_1994, 0x8584_58f6, 0x9584_58f6];
/// So many files a build has written back: a person changes fewer within a minute. More are a checkout, whose program has
/// ended, and waiting for the disk at each would take longer than all the rest of the build.
pub(crate) const MOST_WRITTEN_BACK: usize = 256;

/// The status of a file: what changes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status {
    identity: FileId,
    size_bytes: u64,
    modified: (i64, u32),
    changed: (i64, u32),
    mode: u32,
}

/// What does not change while the status does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The SHA-256 of the content.
    pub(crate) content: [u8; 32],
    /// Whether there is any extended attribute.
    pub(crate) has_xattrs: bool,
}

/// Facts by status: records, sorted by the identity of the files, behind a [`MAGIC`].
#[derive(Debug)]
pub(crate) struct KnownFacts(Vec<u8>);

impl Status {
    /// The status of a regular file; others have no facts.
    pub(crate) fn of(entry: &Entry) -> Option<Self> {
        let EntryKind::File { size_bytes } = entry.kind else { return None };
        Some(Self {
            identity: entry.identity,
            size_bytes,
            modified: (entry.mtime_seconds, entry.mtime_nanoseconds),
            changed: (entry.ctime_seconds, entry.ctime_nanoseconds),
            mode: entry.mode,
        })
    }

    /// The number of the file system.
    pub(crate) fn device(&self) -> u64 {
        self.identity.device
    }

    /// The length of the content.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Whether a change after `reading` began would show in the status.
    pub(crate) fn is_settled(&self, reading: SystemTime) -> bool {
        let tick = if (self.modified.1, self.changed.1) == (0, 0) { COARSE_TICK } else { TICK };
        is_older(self.modified, tick, reading) && is_older(self.changed, tick, reading)
    }

    /// Whether the content has been written to its disk since its last change by a system call, so that the next change
    /// shows even if it comes through a mapping that was written before.
    pub(crate) fn is_long_past(&self, reading: SystemTime) -> bool {
        is_older(self.changed, WRITTEN_BACK, reading)
    }

    fn numbers(&self) -> [u64; STATUS_NUMBERS] {
        let Self { identity, size_bytes, modified, changed, mode } = *self;
        let nanoseconds = u64::from(modified.1) << 32 | u64::from(changed.1);
        let (modified, changed) = (modified.0 as u64, changed.0 as u64);
        [identity.device, identity.inode, size_bytes, modified, changed, nanoseconds, u64::from(mode), 0]
    }
}

/// Whether the pages of a file can be clean at all.
pub(crate) fn has_clean_pages(file: &File) -> bool {
    // As wide as the kernel has it, whatever the sign of the type here.
    rustix::fs::fstatfs(file).is_ok_and(|found| !NEVER_CLEAN.contains(&(found.f_type as u64 & 0xffff_ffff)))
}

fn is_older((seconds, nanoseconds): (i64, u32), age: Duration, reading: SystemTime) -> bool {
    // A time before 1970 is old enough; one that the clock cannot hold is not.
    let Ok(seconds) = u64::try_from(seconds) else { return true };
    let time = UNIX_EPOCH.checked_add(Duration::new(seconds, nanoseconds));
    time.and_then(|time| time.checked_add(age)).is_some_and(|time| time < reading)
}

impl KnownFacts {
    /// Takes what [`encode`] wrote; anything else is nothing known.
    pub(crate) fn decode(mut bytes: Vec<u8>) -> Self {
        let body = bytes.len().saturating_sub(CHECKSUM_BYTES);
        let (records, checksum) = bytes.split_at(body);
        if !records.starts_with(MAGIC) || layerfs::digest_of(records).to_string().as_bytes() != checksum {
            return Self(Vec::new());
        }
        bytes.truncate(body);
        Self(bytes)
    }

    /// What is known about a file of this status.
    pub(crate) fn find(&self, status: &Status) -> Option<Facts> {
        let (records, _) = self.0.get(MAGIC.len()..)?.as_chunks::<RECORD_BYTES>();
        let wanted = status.numbers();
        let record = &records[records.binary_search_by_key(&[wanted[0], wanted[1]], identity).ok()?];
        let is_same = (0..wanted.len()).all(|at| number(record, at) == wanted[at]);
        let content = record[DIGEST_AT..][..32].try_into().expect("32 bytes");
        is_same.then(|| Facts { content, has_xattrs: number(record, XATTRS_AT / 8) != 0 })
    }
}

fn number(record: &[u8; RECORD_BYTES], at: usize) -> u64 {
    u64::from_le_bytes(record[at * 8..][..8].try_into().expect("eight bytes"))
}

/// What records are sorted by: the device and the inode.
fn identity(record: &[u8; RECORD_BYTES]) -> [u64; 2] {
    [number(record, 0), number(record, 1)]
}

/// The bytes of some facts, for [`KnownFacts::decode`].
pub(crate) fn encode(facts: impl Iterator<Item = (Status, Facts)>) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    for (status, facts) in facts {
        status.numbers().iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        bytes.extend(facts.content);
        bytes.extend(u64::from(facts.has_xattrs).to_le_bytes());
    }
    // Where they lie: there may be hundreds of thousands.
    let (records, _) = bytes[MAGIC.len()..].as_chunks_mut::<RECORD_BYTES>();
    records.sort_unstable_by_key(identity);
    bytes.extend(layerfs::digest_of(&bytes).to_string().as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(seconds: i64, nanoseconds: u32) -> Status {
        let identity = FileId { device: 1, inode: u64::MAX };
        let time = (seconds, nanoseconds);
        Status { identity, size_bytes: 7, modified: (-5, 3), changed: time, mode: 0o644 }
    }

    #[test]
    fn facts_come_back_as_they_were_and_damaged_ones_not_at_all() {
        let facts = Facts { content: [9; 32], has_xattrs: true };
        let bytes = encode([(status(-1, 999_999_999), facts)].into_iter());
        assert_eq!(KnownFacts::decode(bytes.clone()).find(&status(-1, 999_999_999)), Some(facts));
        assert_eq!(KnownFacts::decode(bytes.clone()).find(&status(-1, 999_999_998)), None);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(KnownFacts::decode(damaged).0.is_empty(), "byte {at}");
            assert!(KnownFacts::decode(bytes[..at].to_vec()).0.is_empty(), "cut at {at}");
        }
    }

    #[test]
    fn a_file_that_changed_just_before_it_was_read_is_not_settled() {
        let at = |millis: u64| UNIX_EPOCH + Duration::from_millis(millis);
        assert!(!status(100, 5_000_000).is_settled(at(100_005)));
        assert!(!status(100, 5_000_000).is_settled(at(100_055)));
        assert!(status(100, 5_000_000).is_settled(at(100_056)));
        assert!(!status(101, 0).is_settled(at(100_000)), "a time in the future");
        let whole_seconds = Status { modified: (100, 0), ..status(100, 0) };
        assert!(!whole_seconds.is_settled(at(101_999)));
        assert!(whole_seconds.is_settled(at(102_101)));
        assert!(!status(i64::MAX, 0).is_settled(at(0)));
    }
}
