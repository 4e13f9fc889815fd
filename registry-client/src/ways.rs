//! A blob that goes on at another host where one fails.
//!
//! Invariant: bytes that were handed out are not fetched again. That hosts agree on the content is for its digest to
//! say, not for this file.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, Read};
use std::sync::{Mutex, MutexGuard, PoisonError};

use oci_spec::image::{Descriptor, Digest};

use crate::client::Client;
use crate::draft::Draft;
use crate::error::{Cause, Error};
use crate::hosts::Host;
use crate::ranges::Arriving;
use crate::repository::Repository;
use crate::url::Origin;

/// Which mirrors a blob came from, so that those that damage it are not asked for it again.
#[derive(Debug, Default)]
pub(crate) struct Deliveries(Mutex<Delivered>);

#[derive(Debug, Default)]
struct Delivered {
    from: HashMap<Digest, HashSet<Origin>>,
    damaged: HashSet<(Digest, Origin)>,
}

impl Deliveries {
    fn note(&self, digest: &Digest, from: &Origin) {
        self.lock().from.entry(digest.clone()).or_default().insert(from.clone());
    }

    /// What came last of a blob was not what it should be.
    pub(crate) fn distrust(&self, digest: &Digest) {
        let mut delivered = self.lock();
        let from = delivered.from.remove(digest).unwrap_or_default();
        delivered.damaged.extend(from.into_iter().map(|from| (digest.clone(), from)));
    }

    /// Whether a blob of this host was damaged.
    pub(crate) fn was_damaged(&self, digest: &Digest, from: &Origin) -> bool {
        let delivered = self.lock();
        !delivered.damaged.is_empty() && delivered.damaged.contains(&(digest.clone(), from.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, Delivered> {
        // Whole between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A blob from the first of several hosts that has it.
pub(crate) struct WaysReader {
    /// The host in use, and those that are left.
    ways: VecDeque<Repository>,
    descriptor: Descriptor,
    /// `None` between two of them.
    inner: Option<Arriving>,
    position_bytes: u64,
}

impl WaysReader {
    /// Opens the blob at the first of these hosts, of which there is one at least.
    ///
    /// # Errors
    /// That of the last host, if none has it.
    pub(crate) fn open(ways: Vec<Repository>, descriptor: &Descriptor) -> Result<Self, Error> {
        let mut reader = Self { ways: ways.into(), descriptor: descriptor.clone(), inner: None, position_bytes: 0 };
        reader.connect()?;
        Ok(reader)
    }

    /// Whether the content lies in a file that a draft could take over in place of a copy.
    pub(crate) fn is_near(&self, draft: &Draft) -> bool {
        matches!(&self.inner, Some(Arriving::InPieces(pieces)) if pieces.is_near(draft))
    }

    /// Lets a draft take over the file of the content, after all of it was read and had the right digest; false where
    /// the last host's part lies in none.
    ///
    /// # Errors
    /// If the file holds something else, or for the disk.
    pub(crate) fn give_to(self, draft: &mut Draft) -> io::Result<bool> {
        match self.inner {
            Some(Arriving::InPieces(pieces)) if pieces.is_near(draft) => pieces.give_to(draft).map(|()| true),
            _ => Ok(false),
        }
    }

    /// Opens the rest of the blob at the first host that can.
    fn connect(&mut self) -> Result<(), Error> {
        // Before the next one opens the partial file, the last one has to let go of it.
        self.inner = None;
        loop {
            match self.ways[0].open_blob_at(&self.descriptor, self.position_bytes) {
                Ok(inner) => {
                    self.inner = Some(inner);
                    // For the last one, the registry itself, nobody stands in.
                    if self.ways.len() > 1 {
                        let from = self.ways[0].host().endpoint.origin();
                        self.ways[0].client().deliveries().note(self.descriptor.digest(), from);
                    }
                    return Ok(());
                }
                Err(error) => self.give_up(error, Client::note_mirror_failure)?,
            }
        }
    }

    /// Turns to the next host; gives the error back where there is none.
    fn give_up(&mut self, error: Error, note: fn(&Client, &Host, &Error)) -> Result<(), Error> {
        // A full disk is nobody's fault but ours.
        if self.ways.len() == 1 || matches!(error.cause(), Cause::Disk { .. }) {
            return Err(error);
        }
        if let Some(failed) = self.ways.pop_front() {
            note(failed.client(), failed.host(), &error);
        }
        Ok(())
    }
}

impl Read for WaysReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.inner.as_mut().map_or(Ok(0), |inner| inner.read(buffer)) {
                Ok(count) => {
                    self.position_bytes += count as u64;
                    return Ok(count);
                }
                Err(error) => {
                    let doing = format!("fetch the blob {}", self.descriptor.digest());
                    self.give_up(Error::from_io(doing, "the connection", error), Client::note_mirror_break)?;
                    self.connect()?;
                }
            }
        }
    }
}
