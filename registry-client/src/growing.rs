//! A blob that is still being made: a file that grows, and readers that follow it.
//!
//! Invariant: a reader hands out only what was written, and comes to an end only when the maker has said that this was
//! all of it. Nothing is held in memory: who makes it never waits for who reads it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use oci_spec::image::Descriptor;

use crate::error::{Cause, Error};

/// A blob in a file that another thread writes.
#[derive(Debug)]
pub struct GrowingBlob {
    file: File,
    state: Mutex<State>,
    /// More was written, or it ended.
    moved: Condvar,
}

#[derive(Debug)]
enum State {
    /// So many bytes are written.
    Grows(u64),
    Whole(Descriptor),
    /// It will not be finished, or nobody wants it any more.
    Abandoned,
}

impl GrowingBlob {
    /// A blob of which nothing is written yet, and a handle of its file to read it with.
    pub fn new(file: File) -> Self {
        Self { file, state: Mutex::new(State::Grows(0)), moved: Condvar::new() }
    }

    /// `written_bytes` are in the file now.
    pub fn grew(&self, written_bytes: u64) {
        self.change(|state| match state {
            State::Grows(_) => State::Grows(written_bytes),
            ended => ended,
        });
    }

    /// The file is written, and holds this.
    pub fn finish(&self, descriptor: &Descriptor) {
        self.change(|state| match state {
            State::Grows(_) => State::Whole(descriptor.clone()),
            ended => ended,
        });
    }

    /// It will not be finished, or is not needed any more: whoever reads it fails.
    pub fn abandon(&self) {
        self.change(|_| State::Abandoned);
    }

    /// Whether more of it may come.
    pub fn is_growing(&self) -> bool {
        matches!(*self.lock(), State::Grows(_))
    }

    /// What it became, if it is whole.
    pub(crate) fn descriptor(&self) -> Option<Descriptor> {
        match &*self.lock() {
            State::Whole(descriptor) => Some(descriptor.clone()),
            _ => None,
        }
    }

    /// Waits until it is whole.
    pub(crate) fn wait(&self) -> Result<Descriptor, Cause> {
        let mut state = self.lock();
        loop {
            match &*state {
                State::Whole(descriptor) => return Ok(descriptor.clone()),
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

    fn change(&self, next: impl FnOnce(State) -> State) {
        let mut state = self.lock();
        let now = std::mem::replace(&mut *state, State::Abandoned);
        *state = next(now);
        self.moved.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in the middle of a change leaves it abandoned.
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
    use crate::digest::digest_of;

    fn blob() -> (File, GrowingBlob) {
        let file = tempfile::tempfile().expect("a file");
        (file.try_clone().expect("a handle"), GrowingBlob::new(file))
    }

    #[test]
    fn a_reader_waits_for_what_is_not_written_and_ends_with_the_blob() {
        let (mut file, blob) = blob();
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| {
                let mut read = Vec::new();
                blob.follow().read_to_end(&mut read).map(|_| read)
            });
            for written in 1..=3 {
                file.write_all(b"abc").expect("written");
                blob.grew(3 * written);
            }
            assert!(blob.is_growing());
            blob.finish(&Descriptor::new(MediaType::ImageLayer, 9, digest_of(b"abcabcabc")));
            assert_eq!(reading.join().expect("no panic").expect("read"), b"abcabcabc");
        });
        assert_eq!(blob.wait().expect("whole").size(), 9);
    }

    #[test]
    fn a_blob_that_is_abandoned_fails_its_readers_and_stays_so() {
        let (_, blob) = blob();
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| blob.follow().read(&mut [0]).map_err(|error| error.to_string()));
            blob.abandon();
            assert!(reading.join().expect("no panic").expect_err("abandoned").contains("stopped"));
        });
        blob.finish(&Descriptor::new(MediaType::ImageLayer, 0, digest_of(b"")));
        assert!(blob.wait().is_err() && blob.descriptor().is_none());
    }
}
