//! A blob on its way, on disk: what a killed process fetched is there for the next one.
//!
//! ```text
//! DIRECTORY/sha256-<hex>.partial
//!   0 ..           the content, each piece at its place; what is missing is a hole
//!   size ..        MAGIC, then the piece size (8 bytes, little-endian)
//!   size + 16 ..   8 bytes a piece: DONE and the CRC-32 of the piece, or zeros
//! ```
//!
//! Invariant: a piece counts as done only if its bytes are the ones that were written, also after a loss of power (the
//! CRC-32 is checked when the file is opened, so nothing is ever synced). Whether they are the *right* bytes is for the
//! digest of the whole to say. One process at a time holds the lock of a file. It may be deleted at any moment.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub(crate) use crc32fast::Hasher as PieceSum;
use oci_spec::image::Descriptor;

use crate::error::Error;

/// The partial file of one blob, locked.
pub(crate) struct Spool {
    file: File,
    path: PathBuf,
    size_bytes: u64,
    piece_bytes: u64,
}

/// Changes with the format above: a file of another format is begun anew.
const MAGIC: [u8; 8] = *b"nacrepb1";
const HEADER_BYTES: u64 = 16;
const DONE: [u8; 4] = *b"done";
const RECORD_BYTES: u64 = 8;
/// A file that is deleted while it is opened is opened again; more often than this somebody plays tricks.
const OPEN_TRIES: usize = 5;

impl Spool {
    /// Opens or begins the partial file of a blob, and tells which pieces it has. `None` while another holds it.
    ///
    /// # Errors
    /// If the directory or the file cannot be made, read or written.
    pub(crate) fn open(
        directory: &Path,
        descriptor: &Descriptor,
        piece_bytes: u64,
    ) -> Result<Option<(Self, Vec<bool>)>, Error> {
        let doing = || format!("keep the part of the blob {} that is fetched", descriptor.digest());
        let digest = descriptor.digest();
        let path = directory.join(format!("{}-{}.partial", digest.algorithm(), digest.digest()));
        let open = || {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            let Some(file) = open_locked(&path)? else { return Ok(None) };
            let spool = Self { file, path: path.clone(), size_bytes: descriptor.size(), piece_bytes };
            let done = if spool.is_ours()? { spool.verified_pieces()? } else { spool.begin()? };
            Ok(Some((spool, done)))
        };
        open().map_err(|error: io::Error| Error::disk(doing(), &path, error))
    }

    /// The number of pieces; the last may be short.
    pub(crate) fn pieces(&self) -> usize {
        pieces(self.size_bytes, self.piece_bytes)
    }

    /// Reads what was written there before.
    pub(crate) fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset_bytes)
    }

    pub(crate) fn write_at(&self, bytes: &[u8], offset_bytes: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset_bytes)
    }

    /// Records that all of a piece is written.
    pub(crate) fn mark_done(&self, piece: usize, crc: u32) -> io::Result<()> {
        let mut record = [0; RECORD_BYTES as usize];
        record[..4].copy_from_slice(&DONE);
        record[4..].copy_from_slice(&crc.to_le_bytes());
        self.file.write_all_at(&record, self.record_offset(piece))
    }

    /// Lets another process have the file. Whoever still writes to it writes the same bytes as that one.
    pub(crate) fn release(&self) {
        // Closing the file unlocks it too, only later.
        let _ = self.file.unlock();
    }

    /// Deletes the file: its content arrived, or is wrong. One that stays behind is only a waste.
    pub(crate) fn remove(&self) {
        let _ = std::fs::remove_file(&self.path);
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn record_offset(&self, piece: usize) -> u64 {
        self.size_bytes + HEADER_BYTES + piece as u64 * RECORD_BYTES
    }

    fn header(&self) -> [u8; HEADER_BYTES as usize] {
        let mut header = [0; HEADER_BYTES as usize];
        header[..8].copy_from_slice(&MAGIC);
        header[8..].copy_from_slice(&self.piece_bytes.to_le_bytes());
        header
    }

    fn is_ours(&self) -> io::Result<bool> {
        if self.file.metadata()?.len() != self.record_offset(self.pieces()) {
            return Ok(false);
        }
        let mut header = [0; HEADER_BYTES as usize];
        self.file.read_exact_at(&mut header, self.size_bytes)?;
        Ok(header == self.header())
    }

    fn begin(&self) -> io::Result<Vec<bool>> {
        self.file.set_len(0)?;
        self.file.set_len(self.record_offset(self.pieces()))?;
        self.file.write_all_at(&self.header(), self.size_bytes)?;
        Ok(vec![false; self.pieces()])
    }

    fn verified_pieces(&self) -> io::Result<Vec<bool>> {
        let mut buffer = vec![0; 256 << 10];
        (0..self.pieces()).map(|piece| self.is_done(piece, &mut buffer)).collect()
    }

    fn is_done(&self, piece: usize, buffer: &mut [u8]) -> io::Result<bool> {
        let mut record = [0; RECORD_BYTES as usize];
        self.file.read_exact_at(&mut record, self.record_offset(piece))?;
        if record[..4] != DONE {
            return Ok(false);
        }
        let mut crc = PieceSum::default();
        let mut offset = piece as u64 * self.piece_bytes;
        let end = (offset + self.piece_bytes).min(self.size_bytes);
        while offset < end {
            let length = buffer.len().min((end - offset) as usize);
            self.file.read_exact_at(&mut buffer[..length], offset)?;
            crc.update(&buffer[..length]);
            offset += length as u64;
        }
        Ok(record[4..] == crc.finalize().to_le_bytes())
    }
}

/// How many pieces a blob has.
pub(crate) fn pieces(size_bytes: u64, piece_bytes: u64) -> usize {
    usize::try_from(size_bytes.div_ceil(piece_bytes)).unwrap_or(usize::MAX)
}

/// Opens a file and locks it, so that the path still means it: its last holder may have deleted it in between.
pub(crate) fn open_locked(path: &Path) -> io::Result<Option<File>> {
    // Without following links: in a directory that others can write to, one could lead to any file of ours.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags.bits() as i32);
    for _ in 0..OPEN_TRIES {
        let file = options.open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        if file.metadata()?.nlink() > 0 {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::image::MediaType;

    const PIECE_BYTES: u64 = 1000;

    fn descriptor() -> Descriptor {
        Descriptor::new(MediaType::ImageLayer, 2500, crate::digest::digest_of(b"any"))
    }

    fn open(directory: &Path) -> (Spool, Vec<bool>) {
        Spool::open(directory, &descriptor(), PIECE_BYTES).expect("opened").expect("nobody holds it")
    }

    fn write(spool: &Spool, piece: usize, length: usize) {
        let bytes = vec![piece as u8 + 1; length];
        let mut crc = PieceSum::default();
        crc.update(&bytes);
        spool.write_at(&bytes, piece as u64 * PIECE_BYTES).expect("written");
        spool.mark_done(piece, crc.finalize()).expect("marked");
    }

    #[test]
    fn pieces_that_were_written_are_there_when_it_is_opened_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let (spool, done) = open(&directory.path().join("new"));
        assert_eq!(done, [false, false, false]);
        write(&spool, 2, 500);
        write(&spool, 0, 1000);
        drop(spool);
        let (spool, done) = open(&directory.path().join("new"));
        assert_eq!(done, [true, false, true]);
        let mut buffer = [0; 500];
        spool.read_at(&mut buffer, 2000).expect("read");
        assert_eq!(buffer, [3; 500]);
    }

    #[test]
    fn a_piece_that_was_damaged_is_missing() {
        let directory = tempfile::tempdir().expect("a directory");
        let (spool, _) = open(directory.path());
        (0..3).for_each(|piece| write(&spool, piece, if piece == 2 { 500 } else { 1000 }));
        spool.write_at(b"x", 1500).expect("written");
        drop(spool);
        assert_eq!(open(directory.path()).1, [true, false, true]);
    }

    #[test]
    fn what_is_no_partial_file_of_ours_is_begun_anew() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = open(directory.path()).0.path().to_owned();
        for content in [vec![], vec![7; 2500], vec![7; 2500 + 16 + 3 * 8], vec![0; 9000]] {
            std::fs::write(&path, content).expect("written");
            assert_eq!(open(directory.path()).1, [false, false, false]);
        }
        let (spool, _) = open(directory.path());
        write(&spool, 0, 1000);
        drop(spool);
        let other = Spool::open(directory.path(), &descriptor(), 500).expect("opened").expect("free");
        assert_eq!(other.1, [false; 5], "pieces of another size");
    }

    #[test]
    fn one_holds_a_file_and_the_next_after_it_is_released() {
        let directory = tempfile::tempdir().expect("a directory");
        let (spool, _) = open(directory.path());
        let again = || Spool::open(directory.path(), &descriptor(), PIECE_BYTES).expect("opened");
        assert!(again().is_none());
        spool.release();
        assert!(again().is_some());
        spool.remove();
        assert!(!spool.path().exists());
    }

    #[test]
    fn links_and_pipes_in_its_place_are_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = open(directory.path()).0.path().to_owned();
        std::fs::remove_file(&path).expect("removed");
        let victim = directory.path().join("victim");
        std::fs::write(&victim, b"mine").expect("written");
        std::os::unix::fs::symlink(&victim, &path).expect("linked");
        assert!(Spool::open(directory.path(), &descriptor(), PIECE_BYTES).is_err());
        assert_eq!(std::fs::read(&victim).expect("read"), b"mine");
        std::fs::remove_file(&path).expect("removed");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).expect("a pipe");
        assert!(Spool::open(directory.path(), &descriptor(), PIECE_BYTES).is_err());
    }
}
