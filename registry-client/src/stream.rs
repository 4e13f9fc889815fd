//! A blob on its way into a repository while it is being made: its digest is known last.
//!
//! A registry that was sent what the same recipe gave is not sent it again: it is asked for the blob when that is whole.
//!
//! Invariant: the attempt fails nothing. Where the registry does not take a stream, or breaks it, the blob goes the
//! usual way ([`crate::upload`]) once it is whole; where the blob comes to nothing, so does the session.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use oci_spec::image::Descriptor;

use crate::client::MakeBody;
use crate::digest::VerifyingReader;
use crate::error::{Cause, Error};
use crate::growing::{Following, GrowingBlob};
use crate::place::{Content, Stored};
use crate::progress::Progress;
use crate::repository::Repository;
use crate::session::{Session, check_created, range_end, request_once};
use crate::transport::{Body, Method};
use crate::upload::Upload;

/// The upload of one blob that grows.
pub(crate) struct Stream<'a> {
    repository: &'a Repository,
    blob: &'a Arc<GrowingBlob>,
    progress: &'a dyn Progress,
    /// Whether the progress knows of the blob, which it does by its digest.
    is_told: AtomicBool,
    doing: String,
}

impl<'a> Stream<'a> {
    pub(crate) fn new(repository: &'a Repository, blob: &'a Arc<GrowingBlob>, progress: &'a dyn Progress) -> Self {
        let origin = repository.origin();
        let doing = format!("push a blob to {}/{} while it is made", origin.registry, origin.repository);
        Self { repository, blob, progress, is_told: AtomicBool::new(false), doing }
    }

    /// Uploads, and tells what the blob became.
    pub(crate) fn run(&self) -> Result<(Descriptor, Stored), Error> {
        let (descriptor, stored) = self.upload()?;
        match stored {
            Stored::Sent => {
                self.tell(&descriptor, descriptor.size());
                self.progress.blob_done(descriptor.digest());
            }
            Stored::Unsent => self.progress.blob_skipped(&descriptor),
        }
        Ok((descriptor, stored))
    }

    fn upload(&self) -> Result<(Descriptor, Stored), Error> {
        let mut open = None;
        let client = self.repository.client();
        let listed = client.open_streams().list(self.blob).map_err(|cause| Error::new(&self.doing, cause))?;
        let (here, recipe) = (self.repository.origin(), self.blob.recipe());
        let has_it = !client.known_blobs().repositories(&here.registry, recipe).is_empty();
        if !has_it && client.takes_streams(self.repository.host()) {
            match self.send(&mut open) {
                Ok(descriptor) => return Ok((descriptor, Stored::Sent)),
                // What was ended here is nobody's fault there.
                Err(Cause::Stopped) => {}
                Err(cause) => {
                    tracing::debug!(doing = self.doing, %cause, "the blob is sent when it is whole");
                    client.note_no_streams(self.repository.host());
                }
            }
        }
        let descriptor = match self.blob.wait() {
            Ok(descriptor) => descriptor,
            Err(cause) => {
                self.abandon(open);
                return Err(Error::new(&self.doing, cause));
            }
        };
        // The last answer may have been lost, not the upload.
        if self.repository.has_blob(&descriptor)? {
            self.abandon(open);
            return Ok((descriptor, Stored::Unsent));
        }
        // From here on it is an upload like any other, which the next push can go on with.
        drop(listed);
        let stored = Upload::new(self.repository, &descriptor, self).begun_with(open).run()?;
        Ok((descriptor, stored))
    }

    /// POST, one PATCH of unknown length, PUT: what Docker and skopeo do with every registry. A session that may be
    /// gone on with is left in `open`.
    fn send(&self, open: &mut Option<Session>) -> Result<Descriptor, Cause> {
        let url = self.repository.url("blobs/uploads/");
        let begun = request_once(self.repository, &self.doing, Method::Post, &url)?;
        let mut session = Session::opened(self.repository, &url, &begun)?;
        let sent = self.patch(&mut session).and_then(|()| self.end(&session));
        match &sent {
            Ok(_) => {}
            Err(cause) if cause.is_transient() => *open = Some(session),
            Err(_) => session.abandon(self.repository, &self.doing),
        }
        sent
    }

    fn patch(&self, session: &mut Session) -> Result<(), Cause> {
        // What comes to nothing ends like what is whole: docker-registry signs how far an upload is, and could end none
        // that was cut.
        let body: &MakeBody<'_> =
            &|| Ok(Body::Stream { content: Box::new(EndedIfAbandoned(self.reader())), size_bytes: None });
        let headers = vec![("Content-Type", "application/octet-stream".to_owned())];
        let mut call = self.repository.call(Method::Patch, session.location.clone(), headers, body);
        call.may_repeat = false;
        let response = self.repository.answer(&self.doing, &call)?;
        if response.header("location").is_some() {
            session.follow(self.repository, &response)?;
        }
        let size_bytes = self.blob.wait()?.size();
        if let Some(has) =
            response.header("range").and_then(range_end).filter(|has| *has != size_bytes && size_bytes > 1)
        {
            return Err(Cause::Malformed(format!("the registry has {has} of {size_bytes} bytes after a stream")));
        }
        Ok(())
    }

    fn end(&self, session: &Session) -> Result<Descriptor, Cause> {
        let descriptor = self.blob.wait()?;
        let url = session.final_url(descriptor.digest());
        let response = request_once(self.repository, &self.doing, Method::Put, &url)?;
        check_created(&response, descriptor.digest())?;
        Ok(descriptor)
    }

    fn reader(&self) -> Told<'_> {
        Told { stream: self, content: self.blob.follow(), position_bytes: 0 }
    }

    fn tell(&self, descriptor: &Descriptor, position_bytes: u64) {
        if !self.is_told.swap(true, Ordering::Relaxed) {
            self.progress.blob_started(descriptor);
        }
        self.progress.blob_moved(descriptor.digest(), position_bytes);
    }

    fn abandon(&self, session: Option<Session>) {
        if let Some(session) = session {
            session.abandon(self.repository, &self.doing);
        }
    }
}

/// The whole blob.
impl Content for Stream<'_> {
    fn open(&self) -> Result<Box<dyn Read + Send + '_>, Error> {
        let descriptor = self.blob.wait().map_err(|cause| Error::new(&self.doing, cause))?;
        Ok(Box::new(VerifyingReader::new(self.reader(), &descriptor)?))
    }
}

/// The blob as it grows, of which the progress hears once its name is known.
struct Told<'a> {
    stream: &'a Stream<'a>,
    content: Following<'a>,
    position_bytes: u64,
}

impl Read for Told<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.content.read(buffer)?;
        self.position_bytes += count as u64;
        if let Some(descriptor) = self.stream.blob.descriptor() {
            self.stream.tell(&descriptor, self.position_bytes);
        }
        Ok(count)
    }
}

/// The same, which comes to an end where the blob comes to nothing.
struct EndedIfAbandoned<'a>(Told<'a>);

impl Read for EndedIfAbandoned<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer) {
            Err(_) if self.0.stream.blob.is_abandoned() => Ok(0),
            read => read,
        }
    }
}

/// The streams of a client that are open, for who ends while they are.
#[derive(Debug, Default)]
pub(crate) struct OpenStreams {
    state: Mutex<Streams>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Streams {
    open: Vec<Arc<GrowingBlob>>,
    is_over: bool,
}

/// One of them; dropped when its session is ended.
struct Listed<'a>(&'a OpenStreams, &'a Arc<GrowingBlob>);

impl OpenStreams {
    /// Gives all of them up, and waits until their sessions are ended, but no longer than `wait`. No more are begun.
    pub(crate) fn end(&self, wait: Duration) {
        let mut state = self.lock();
        state.is_over = true;
        state.open.iter().for_each(|blob| blob.abandon());
        // A registry that takes longer forgets them some day.
        drop(self.ended.wait_timeout_while(state, wait, |state| !state.open.is_empty()));
    }

    fn list<'a>(&'a self, blob: &'a Arc<GrowingBlob>) -> Result<Listed<'a>, Cause> {
        let mut state = self.lock();
        if state.is_over {
            return Err(Cause::Stopped);
        }
        state.open.push(Arc::clone(blob));
        Ok(Listed(self, blob))
    }

    fn lock(&self) -> MutexGuard<'_, Streams> {
        // Whole between any two statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        let Self(streams, blob) = self;
        let mut state = streams.lock();
        if let Some(position) = state.open.iter().position(|open| Arc::ptr_eq(open, blob)) {
            state.open.swap_remove(position);
        }
        streams.ended.notify_all();
    }
}
