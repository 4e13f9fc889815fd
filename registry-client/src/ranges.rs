//! A large blob in pieces: lanes fetch ranges into the blob's partial file, and the reader follows behind them.
//!
//! Invariant: what the reader hands out is contiguous and was written before; memory is one buffer a lane. The earliest
//! missing piece is always fetched next, so the reader never waits for a piece that nobody fetches.

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use oci_spec::image::Descriptor;

use crate::digest::VerifyingReader;
use crate::draft::{Draft, unname};
use crate::error::{Cause, Error};
use crate::pull::BlobReader;
use crate::repository::Repository;
use crate::spool::{self, PieceSum, Spool};

/// How large blobs are cut into pieces. Only where the client has a directory for partial blobs.
#[derive(Debug, Clone, Copy)]
pub struct RangePolicy {
    /// One request fetches this much; a killed process fetches at most this again for each lane.
    pub piece_bytes: u64,
    /// Smaller blobs come in one stream: another connection costs more than it brings.
    pub parallel_from_bytes: u64,
    /// Connections for one blob at once.
    pub lanes: usize,
}

impl Default for RangePolicy {
    /// Three lanes are what containerd and SOCI begin with; 8 MiB keeps the requests few and a killed process's loss
    /// small.
    fn default() -> Self {
        Self { piece_bytes: 8 << 20, parallel_from_bytes: 32 << 20, lanes: 3 }
    }
}

/// Lanes beyond the first of each blob, over all blobs of a client: registries throttle who opens more connections.
const EXTRA_LANES_LIMIT: usize = 6;
/// What a lane holds in memory.
const BUFFER_BYTES: usize = 128 << 10;

/// Counts the extra lanes of a client.
#[derive(Debug, Clone, Default)]
pub(crate) struct LaneBudget(Arc<AtomicUsize>);

/// The right to one extra lane.
struct ExtraLane(LaneBudget);

impl LaneBudget {
    fn take(&self) -> Option<ExtraLane> {
        let more = |used| (used < EXTRA_LANES_LIMIT).then_some(used + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok().then(|| ExtraLane(self.clone()))
    }
}

impl Drop for ExtraLane {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A blob as a stream of its pieces.
pub(crate) struct RangedReader {
    download: Arc<Download>,
    /// Where it began to read.
    begin_bytes: u64,
    position_bytes: u64,
}

/// What the lanes of a blob and its reader share.
struct Download {
    repository: Repository,
    descriptor: Descriptor,
    policy: RangePolicy,
    spool: Spool,
    state: Mutex<State>,
    /// Something was written, or a lane ended.
    moved: Condvar,
}

struct State {
    pieces: Vec<Piece>,
    lanes: usize,
    /// The reader is gone.
    is_over: bool,
    /// Why the last lane that failed did.
    failure: Option<io::Error>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Missing,
    /// A lane fetches it and has written so many bytes.
    Taken(u64),
    Done,
}

impl RangedReader {
    /// Opens a blob in pieces, to be read from a position on; `None` where it is small, or its partial file is not to
    /// be had: then it is streamed.
    ///
    /// # Errors
    /// If the blob is missing or refused, or the partial file cannot be used.
    pub(crate) fn open(
        repository: &Repository,
        descriptor: &Descriptor,
        directory: Option<&PathBuf>,
        policy: RangePolicy,
        position_bytes: u64,
    ) -> Result<Option<Self>, Error> {
        // A piece is at least 64 KiB, so that the record of a hostile size stays small against the blob.
        let policy = RangePolicy { piece_bytes: policy.piece_bytes.max(64 << 10), ..policy };
        let Some(directory) = directory.filter(|_| descriptor.size() > policy.piece_bytes) else { return Ok(None) };
        if spool::pieces(descriptor.size(), policy.piece_bytes) > PIECES_LIMIT {
            return Ok(None);
        }
        let Some((spool, done)) = Spool::open(directory, descriptor, policy.piece_bytes)? else { return Ok(None) };
        let pieces = done.into_iter().map(|is_done| if is_done { Piece::Done } else { Piece::Missing }).collect();
        let download = Arc::new(Download {
            repository: repository.clone(),
            descriptor: descriptor.clone(),
            policy,
            spool,
            state: Mutex::new(State { pieces, lanes: 0, is_over: false, failure: None }),
            moved: Condvar::new(),
        });
        // The first request is made here: its failure is the caller's, and its answer tells whether ranges are known.
        if let Some(run) = download.claim() {
            let reader = download.connect(&run)?;
            download.start_lane(Some((reader, run)), None);
        }
        Ok(Some(Self { download, begin_bytes: position_bytes, position_bytes }))
    }

    /// Whether a draft could take over the partial file in place of a copy.
    pub(crate) fn is_near(&self, draft: &Draft) -> bool {
        self.download.spool.is_near(draft)
    }

    /// Lets a draft take over the partial file, after all of it was read and had the right digest.
    ///
    /// # Errors
    /// If what lies there is not what was read, and not right either; or for the disk.
    pub(crate) fn give_to(self, draft: &mut Draft) -> io::Result<()> {
        let download = &self.download;
        let (file, path) = download.spool.take().map_err(|error| download.disk_error(error))?;
        // Nobody writes any more. What a lane before gave back half done was fetched again, perhaps after it was read.
        if self.begin_bytes > 0 || download.lock().failure.is_some() {
            let content = VerifyingReader::new(&file, &download.descriptor);
            if let Err(error) = content.map_err(io::Error::from).and_then(|mut all| io::copy(&mut all, &mut io::sink()))
            {
                unname(&file, &path);
                return Err(error);
            }
        }
        draft.take_over(file, path)
    }
}

/// More than a blob of 8 TiB has; the list of pieces is held in memory.
const PIECES_LIMIT: usize = 1 << 20;

impl Read for RangedReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let download = &self.download;
        if buffer.is_empty() || self.position_bytes == download.descriptor.size() {
            return Ok(0);
        }
        let available_bytes = download.wait_for(self.position_bytes)?;
        let length = usize::try_from(available_bytes).unwrap_or(usize::MAX).min(buffer.len());
        let read = download.spool.read_at(&mut buffer[..length], self.position_bytes);
        let count = read.map_err(|error| io::Error::from(download.disk_error(error)))?;
        if count == 0 {
            let shrunk = io::Error::new(io::ErrorKind::UnexpectedEof, "somebody made it shorter");
            return Err(download.disk_error(shrunk).into());
        }
        self.position_bytes += count as u64;
        Ok(count)
    }
}

impl Drop for RangedReader {
    fn drop(&mut self) {
        self.download.lock().is_over = true;
        // Read to its end, it arrived or is not what it should be, unless it was given away; else it is kept for the next
        // time.
        if self.position_bytes == self.download.descriptor.size() {
            self.download.spool.remove();
        }
        self.download.spool.release();
    }
}

/// A blob on its way: in pieces that lie in a file, or as it comes.
pub(crate) enum Arriving {
    InPieces(RangedReader),
    InARow(Box<BlobReader>),
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::InPieces(reader) => reader.read(buffer),
            Self::InARow(reader) => reader.read(buffer),
        }
    }
}

impl Download {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change of the state is one statement: it is whole even after a panic.
        self.state.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Waits until there are bytes at a position, and tells how many.
    fn wait_for(&self, position_bytes: u64) -> io::Result<u64> {
        let mut state = self.lock();
        loop {
            let piece = (position_bytes / self.policy.piece_bytes) as usize;
            let end = match state.pieces[piece] {
                Piece::Done => self.end_of(piece),
                Piece::Taken(written_bytes) => self.start_of(piece) + written_bytes,
                Piece::Missing => 0,
            };
            if end > position_bytes {
                return Ok(end - position_bytes);
            }
            if state.lanes == 0 {
                return Err(state.failure.take().unwrap_or_else(|| self.ended("its lanes ended early")));
            }
            state = self.moved.wait(state).unwrap_or_else(|poison| poison.into_inner());
        }
    }

    fn pieces(&self) -> usize {
        spool::pieces(self.descriptor.size(), self.policy.piece_bytes)
    }

    fn start_of(&self, piece: usize) -> u64 {
        piece as u64 * self.policy.piece_bytes
    }

    fn end_of(&self, piece: usize) -> u64 {
        (self.start_of(piece) + self.policy.piece_bytes).min(self.descriptor.size())
    }

    /// Where a blob has only one lane, a request may as well fetch all that is missing in a row.
    fn is_parallel(&self) -> bool {
        self.policy.lanes > 1 && self.descriptor.size() >= self.policy.parallel_from_bytes
    }

    /// Takes the earliest missing piece, and tells how far one request should go from there (a piece, exclusive).
    fn claim(&self) -> Option<Run> {
        let mut state = self.lock();
        let first = state.pieces.iter().position(|piece| *piece == Piece::Missing).filter(|_| !state.is_over)?;
        state.pieces[first] = Piece::Taken(0);
        let in_a_row = state.pieces[first + 1..].iter().take_while(|piece| **piece == Piece::Missing).count();
        let ahead = if self.is_parallel() { 0 } else { in_a_row };
        Some(Run { piece: first, end: first + 1 + ahead })
    }

    /// Takes one piece, if it is missing.
    fn claim_next(&self, piece: usize) -> bool {
        let mut state = self.lock();
        let is_missing = !state.is_over && state.pieces.get(piece) == Some(&Piece::Missing);
        if is_missing {
            state.pieces[piece] = Piece::Taken(0);
        }
        is_missing
    }

    fn connect(&self, run: &Run) -> Result<BlobReader, Error> {
        let range = self.start_of(run.piece)..self.end_of(run.end - 1);
        BlobReader::open(self.repository.clone(), self.descriptor.clone(), range)
    }

    /// Starts a lane, with what it begins with where that is known.
    fn start_lane(self: &Arc<Self>, first: Option<(BlobReader, Run)>, right: Option<ExtraLane>) {
        let download = Arc::clone(self);
        self.lock().lanes += 1;
        let lane = Lane(download);
        let started = std::thread::Builder::new().name("blob lane".to_owned()).spawn(move || {
            let _right = right;
            lane.run(first);
        });
        if let Err(error) = started {
            // The closure is gone, and with it the lane, which is counted down; its piece stays taken, so give up.
            self.lock().failure = Some(self.ended(&format!("no thread could be started: {error}")));
        }
    }

    /// More lanes, as far as there is work for them and the client allows it; none where one has failed.
    fn grow(self: &Arc<Self>) {
        for _ in 1..self.policy.lanes {
            let wants_more = {
                let state = self.lock();
                let may = self.is_parallel() && state.lanes < self.policy.lanes && !state.is_over;
                may && state.failure.is_none() && state.pieces.contains(&Piece::Missing)
            };
            let Some(right) = wants_more.then(|| self.repository.client().lane_budget().take()).flatten() else {
                return;
            };
            self.start_lane(None, Some(right));
        }
    }

    fn ended(&self, why: &str) -> io::Error {
        let source = io::Error::new(io::ErrorKind::UnexpectedEof, why.to_owned());
        let cause = Cause::Broken { host: self.repository.host().name.clone(), source };
        Error::new(format!("fetch the blob {}", self.descriptor.digest()), cause).into()
    }

    fn disk_error(&self, error: io::Error) -> Error {
        let doing = format!("keep the part of the blob {} that is fetched", self.descriptor.digest());
        Error::disk(doing, self.spool.path(), error)
    }
}

/// A piece to be fetched, and the piece before which its request ends.
struct Run {
    piece: usize,
    end: usize,
}

/// One connection of a blob; counted as long as it lives, whatever ends it.
struct Lane(Arc<Download>);

impl Drop for Lane {
    fn drop(&mut self) {
        self.0.lock().lanes -= 1;
        self.0.moved.notify_all();
    }
}

impl Lane {
    fn run(&self, mut first: Option<(BlobReader, Run)>) {
        let download = &self.0;
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let (reader, mut run) = match first.take() {
                Some((reader, run)) => (Ok(reader), run),
                None => {
                    let Some(run) = download.claim() else { return };
                    (download.connect(&run), run)
                }
            };
            let outcome =
                reader.map_err(io::Error::from).and_then(|mut reader| self.fetch(&mut reader, &mut run, &mut buffer));
            if let Err(error) = outcome {
                // The piece goes back: other lanes may fare better, and the last one's failure is the blob's.
                let mut state = download.lock();
                state.pieces[run.piece] = Piece::Missing;
                state.failure = Some(error);
                return;
            }
        }
    }

    /// Fetches a piece, and those behind it that the same answer brings.
    fn fetch(&self, reader: &mut BlobReader, run: &mut Run, buffer: &mut [u8]) -> io::Result<()> {
        let download = &self.0;
        loop {
            if !reader.knows_ranges() {
                // It sends everything anyway: take from it as much as nobody else fetches.
                run.end = run.end.max(run.piece + 2).min(download.pieces());
                reader.extend_to(download.end_of(run.end - 1));
            } else {
                download.grow();
            }
            if !self.fetch_piece(reader, run.piece, buffer)? {
                return Ok(());
            }
            if run.piece + 1 >= run.end || !download.claim_next(run.piece + 1) {
                reader.finish();
                return Ok(());
            }
            run.piece += 1;
        }
    }

    /// Fetches one piece; false if nobody wants it any more.
    fn fetch_piece(&self, reader: &mut BlobReader, piece: usize, buffer: &mut [u8]) -> io::Result<bool> {
        let download = &self.0;
        let (start, end) = (download.start_of(piece), download.end_of(piece));
        let mut crc = PieceSum::default();
        let mut position = start;
        while position < end {
            let length = buffer.len().min((end - position) as usize);
            let count = reader.read(&mut buffer[..length])?;
            if count == 0 {
                let cause = Cause::SizeMismatch {
                    expected_bytes: download.descriptor.size(),
                    actual: format!("{position} bytes"),
                };
                return Err(Error::new(format!("read the blob {}", download.descriptor.digest()), cause).into());
            }
            let bytes = &buffer[..count];
            download.spool.write_at(bytes, position).map_err(|error| download.disk_error(error))?;
            crc.update(bytes);
            position += count as u64;
            let mut state = download.lock();
            if state.is_over {
                return Ok(false);
            }
            state.pieces[piece] = Piece::Taken(position - start);
            drop(state);
            download.moved.notify_all();
        }
        download.spool.mark_done(piece, crc.finalize()).map_err(|error| download.disk_error(error))?;
        download.lock().pieces[piece] = Piece::Done;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::image::MediaType;

    use super::*;
    use crate::client::{Client, ClientOptions};
    use crate::digest::digest_of;

    /// A reader that has read all of a blob, of which a partial file holds these bytes.
    fn at_the_end(
        directory: &std::path::Path,
        descriptor: &Descriptor,
        bytes: &[u8],
        failure: Option<io::Error>,
    ) -> RangedReader {
        let policy = RangePolicy { piece_bytes: 64 << 10, ..RangePolicy::default() };
        let (spool, pieces) = Spool::open(directory, descriptor, policy.piece_bytes).expect("opened").expect("free");
        spool.write_at(bytes, 0).expect("written");
        let state = State { pieces: vec![Piece::Done; pieces.len()], lanes: 0, is_over: false, failure };
        let reference = "r.example/a:1".parse().expect("a reference");
        let repository = Client::new(ClientOptions::default()).repository(&reference).expect("a host");
        let (descriptor, state, moved) = (descriptor.clone(), Mutex::new(state), Condvar::new());
        let position_bytes = descriptor.size();
        let download = Arc::new(Download { repository, descriptor, policy, spool, state, moved });
        RangedReader { download, begin_bytes: 0, position_bytes }
    }

    #[test]
    fn what_was_not_read_in_one_go_is_digested_again_before_it_is_given_away() {
        let directory = tempfile::tempdir().expect("a directory");
        let good = vec![7; 100_000];
        let descriptor = Descriptor::new(MediaType::ImageLayer, 100_000, digest_of(&good));
        let published = directory.path().join("published");
        for (bytes, fits) in [(vec![8; 100_000], false), (good, true)] {
            let failure = Some(io::Error::other("a lane failed"));
            let reader = at_the_end(&directory.path().join("spool"), &descriptor, &bytes, failure);
            let mut draft = Draft::new_in(directory.path()).expect("a draft");
            assert!(reader.is_near(&draft));
            assert_eq!(reader.give_to(&mut draft).is_ok(), fits);
            assert_eq!(directory.path().join("spool").read_dir().expect("listed").count(), usize::from(fits));
            draft.publish(&published).expect("published");
            assert_eq!(std::fs::metadata(&published).expect("there").len() == 100_000, fits);
        }
    }
}
