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
//! digest of the whole to say. One process at a time holds the lock of a file, and only its holder writes to it. It may
//! be deleted at any moment.
//!
//! A file that is whole can be given away, to be published where it is: then it ends behind the content. It may be found
//! so after a kill, and with its other name, which makes it somebody else's.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

pub(crate) use crc32fast::Hasher as PieceSum;
use oci_spec::image::Descriptor;

use crate::digest::VerifyingReader;
use crate::draft::{Draft, is_at, unname};
use crate::error::Error;

/// The partial file of one blob, locked, until it is let go.
pub(crate) struct Spool {
    held: RwLock<Option<PartialFile>>,
    path: PathBuf,
}

struct PartialFile {
    file: File,
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
            let partial = PartialFile { file, size_bytes: descriptor.size(), piece_bytes };
            let done = if partial.is_whole(descriptor)? {
                vec![true; partial.pieces()]
            } else if partial.is_ours()? {
                partial.verified_pieces()?
            } else {
                partial.begin()?
            };
            Ok(Some((Self { held: RwLock::new(Some(partial)), path: path.clone() }, done)))
        };
        open().map_err(|error: io::Error| Error::disk(doing(), &path, error))
    }

    /// Reads what was written there before.
    pub(crate) fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<usize> {
        self.with(|partial| partial.file.read_at(buffer, offset_bytes))
    }

    pub(crate) fn write_at(&self, bytes: &[u8], offset_bytes: u64) -> io::Result<()> {
        self.with(|partial| partial.file.write_all_at(bytes, offset_bytes))
    }

    /// Records that all of a piece is written.
    pub(crate) fn mark_done(&self, piece: usize, crc: u32) -> io::Result<()> {
        let mut record = [0; RECORD_BYTES as usize];
        record[..4].copy_from_slice(&DONE);
        record[4..].copy_from_slice(&crc.to_le_bytes());
        self.with(|partial| partial.file.write_all_at(&record, partial.record_offset(piece)))
    }

    /// Lets another process have the file; from here on nobody writes to it through this value.
    pub(crate) fn release(&self) {
        drop(self.let_go());
    }

    /// Deletes the file: its content arrived, or is wrong. One that stays behind is only a waste.
    pub(crate) fn remove(&self) {
        if let Some(partial) = self.let_go() {
            unname(&partial.file, &self.path);
        }
    }

    /// Whether a draft could take the file over.
    pub(crate) fn is_near(&self, draft: &Draft) -> bool {
        self.with(|partial| Ok(draft.can_take(&partial.file))).unwrap_or(false)
    }

    /// The file and its path, with nothing in it but the content, which is whole. It stays locked as long as it is open.
    ///
    /// # Errors
    /// If it was let go, or cannot be made shorter.
    pub(crate) fn take(&self) -> io::Result<(File, PathBuf)> {
        let partial = self.let_go().ok_or_else(let_go)?;
        partial.file.set_len(partial.size_bytes)?;
        Ok((partial.file, self.path.clone()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for those who use it at the moment.
    fn let_go(&self) -> Option<PartialFile> {
        self.held.write().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn with<T>(&self, act: impl FnOnce(&PartialFile) -> io::Result<T>) -> io::Result<T> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        act(held.as_ref().ok_or_else(let_go)?)
    }
}

fn let_go() -> io::Error {
    io::Error::other("it was let go")
}

impl PartialFile {
    fn pieces(&self) -> usize {
        pieces(self.size_bytes, self.piece_bytes)
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

    /// Whether it is as [`Spool::take`] leaves it. What a loss of power emptied has another digest.
    fn is_whole(&self, descriptor: &Descriptor) -> io::Result<bool> {
        if self.file.metadata()?.len() != self.size_bytes {
            return Ok(false);
        }
        let content = VerifyingReader::new(&self.file, descriptor);
        Ok(content.is_ok_and(|mut content| io::copy(&mut content, &mut io::sink()).is_ok()))
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

/// Opens a file and locks it, so that the path still means it: its last holder may have deleted it in between, or given
/// it another name. One that has a second name is somebody's else, and loses this one.
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
        match is_at(&file, path) {
            Ok(true) if file.metadata()?.nlink() == 1 => return Ok(Some(file)),
            Ok(true) => std::fs::remove_file(path)?,
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
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
        assert!(spool.write_at(b"late", 0).is_err(), "it is the next one's now");
        let (next, _) = again().expect("free");
        spool.remove();
        assert!(next.path().exists());
        next.remove();
        assert!(!next.path().exists());
    }

    #[test]
    fn what_was_taken_is_the_content_alone_and_stays_locked() {
        let directory = tempfile::tempdir().expect("a directory");
        let content = [7; 2500];
        let descriptor = Descriptor::new(MediaType::ImageLayer, 2500, crate::digest::digest_of(&content));
        let open = || Spool::open(directory.path(), &descriptor, PIECE_BYTES).expect("opened");
        let (spool, _) = open().expect("free");
        spool.write_at(&content, 0).expect("written");
        let (file, path) = spool.take().expect("held");
        assert_eq!(std::fs::read(&path).expect("read"), content);
        assert!(spool.mark_done(0, 0).is_err() && open().is_none());
        drop(file);
        // As after a kill: it is whole, and nobody else's.
        let (spool, done) = open().expect("free");
        assert_eq!(done, [true; 3]);
        spool.release();
        std::fs::hard_link(&path, directory.path().join("published")).expect("linked");
        let (_, done) = open().expect("free");
        assert_eq!(done, [false; 3], "another file");
        assert_eq!(std::fs::read(directory.path().join("published")).expect("read"), content);
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
