//! A blob that is still being made: a file that grows, and readers that follow it.
//!
//! Invariant: a reader hands out only what was written, and comes to an end only when the maker has said that this was
//! all of it. Nothing is held in memory: who makes it never waits for who reads it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use oci_spec::image::{Descriptor, Digest};

use crate::digest::digest_of;
use crate::error::{Cause, Error};

/// A blob in a file that another thread writes.
#[derive(Debug)]
pub struct GrowingBlob {
    file: File,
    recipe: Digest,
    state: Mutex<State>,
    /// More was written, or it ended.
    moved: Condvar,
}

#[derive(Debug)]
enum State {
    /// So many bytes are written.
    Grows(u64),
    Whole(Box<Descriptor>),
    /// It will not be finished, or nobody wants it any more.
    Abandoned,
}

/// Says how far a blob is. If it is dropped before the end, the blob is abandoned.
#[derive(Debug)]
pub struct BlobMaker(Arc<GrowingBlob>);

impl BlobMaker {
    /// Begins a blob, of which nothing is written yet, with a handle of its file to read it by. What its bytes depend
    /// on is said by `recipe`: a registry that was sent the outcome of it once has the blob already.
    pub fn new(file: File, recipe: &str) -> Self {
        let recipe = digest_of(recipe.as_bytes());
        Self(Arc::new(GrowingBlob { file, recipe, state: Mutex::new(State::Grows(0)), moved: Condvar::new() }))
    }

    /// The blob, for those who follow it.
    pub fn blob(&self) -> &Arc<GrowingBlob> {
        &self.0
    }

    /// `written_bytes` are in the file now.
    pub fn grew(&self, written_bytes: u64) {
        self.0.unless_ended(State::Grows(written_bytes));
    }

    /// The file is written, and holds this.
    pub fn finish(&self, descriptor: &Descriptor) {
        self.0.unless_ended(State::Whole(Box::new(descriptor.clone())));
    }
}

impl Drop for BlobMaker {
    fn drop(&mut self) {
        self.0.unless_ended(State::Abandoned);
    }
}

impl GrowingBlob {
    /// It will not be finished, or is not needed any more: whoever reads it fails.
    pub fn abandon(&self) {
        *self.lock() = State::Abandoned;
        self.moved.notify_all();
    }

    /// Whether more of it may come.
    pub fn is_growing(&self) -> bool {
        matches!(*self.lock(), State::Grows(_))
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        matches!(*self.lock(), State::Abandoned)
    }

    /// Stands for what its bytes depend on.
    pub(crate) fn recipe(&self) -> &Digest {
        &self.recipe
    }

    /// What it became, if it is whole.
    pub(crate) fn descriptor(&self) -> Option<Descriptor> {
        match &*self.lock() {
            State::Whole(descriptor) => Some((**descriptor).clone()),
            _ => None,
        }
    }

    /// Waits until it is whole.
    pub(crate) fn wait(&self) -> Result<Descriptor, Cause> {
        let mut state = self.lock();
        loop {
            match &*state {
                State::Whole(descriptor) => return Ok((**descriptor).clone()),
                State::Abandoned => return Err(Cause::Stopped),
                State::Grows(_) => state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Its bytes from the begin on, not verified: its digest is not known yet.
    pub(crate) fn follow(&self) -> Following<'_> {
        Following { blob: self, position_bytes: 0 }
    }

    /// Waits for bytes behind a position, and tells where they end; the position itself at the end of the blob.
    fn wait_behind(&self, position_bytes: u64) -> Result<u64, Cause> {
        let mut state = self.lock();
        loop {
            match &*state {
                State::Whole(descriptor) => return Ok(descriptor.size()),
                State::Abandoned => return Err(Cause::Stopped),
                State::Grows(written_bytes) if *written_bytes > position_bytes => return Ok(*written_bytes),
                State::Grows(_) => state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn unless_ended(&self, next: State) {
        let mut state = self.lock();
        if matches!(*state, State::Grows(_)) {
            *state = next;
            self.moved.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is one statement: it is whole even after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A blob as it grows.
pub(crate) struct Following<'a> {
    blob: &'a GrowingBlob,
    position_bytes: u64,
}

impl Read for Following<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let end_bytes = self.blob.wait_behind(self.position_bytes);
        let end_bytes = end_bytes.map_err(|cause| Error::new("read a blob that is being made", cause))?;
        let left = usize::try_from(end_bytes.saturating_sub(self.position_bytes)).unwrap_or(usize::MAX);
        let length = left.min(buffer.len());
        let count = self.blob.file.read_at(&mut buffer[..length], self.position_bytes)?;
        if count == 0 && length > 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file of a blob that is being made got shorter",
            ));
        }
        self.position_bytes += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use oci_spec::image::MediaType;

    use super::*;

    fn begun() -> (File, BlobMaker) {
        let file = tempfile::tempfile().expect("a file");
        (file.try_clone().expect("a handle"), BlobMaker::new(file, "any"))
    }

    #[test]
    fn a_reader_waits_for_what_is_not_written_and_ends_with_the_blob() {
        let (mut file, maker) = begun();
        let blob = maker.blob();
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| {
                let mut read = Vec::new();
                blob.follow().read_to_end(&mut read).map(|_| read)
            });
            for written in 1..=3 {
                file.write_all(b"abc").expect("written");
                maker.grew(3 * written);
            }
            assert!(blob.is_growing());
            maker.finish(&Descriptor::new(MediaType::ImageLayer, 9, digest_of(b"abcabcabc")));
            assert_eq!(reading.join().expect("no panic").expect("read"), b"abcabcabc");
        });
        assert_eq!(blob.wait().expect("whole").size(), 9);
    }

    #[test]
    fn a_blob_that_comes_to_nothing_fails_its_readers_and_stays_so() {
        let (_, maker) = begun();
        let blob = Arc::clone(maker.blob());
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| blob.follow().read(&mut [0]).map_err(|error| error.to_string()));
            drop(maker);
            assert!(reading.join().expect("no panic").expect_err("abandoned").contains("stopped"));
        });
        let (_, maker) = begun();
        maker.blob().abandon();
        maker.finish(&Descriptor::new(MediaType::ImageLayer, 0, digest_of(b"")));
        assert!(maker.blob().wait().is_err() && maker.blob().descriptor().is_none());
    }
}
