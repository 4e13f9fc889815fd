//! One blob on its way into a repository: mounted, sent in one request, or in chunks where only these pass.
//!
//! Invariant: the blob counts as stored only after the registry confirmed its digest. A session that broke is gone on
//! with where the registry still has it, else abandoned.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use oci_spec::image::Descriptor;

use crate::client::{MakeBody, check_move};
use crate::error::{Cause, Error};
use crate::kept::KeptSession;
use crate::place::{Content, Origin, Stored};
use crate::pull::PROGRESS_BYTES;
use crate::repository::Repository;
use crate::session::{CHUNK_BYTES, Session, check_created, range_end, request_once};
use crate::transport::{Body, Method, Response};
use crate::url::Url;

/// The upload of one blob.
pub(crate) struct Upload<'a> {
    repository: &'a Repository,
    descriptor: &'a Descriptor,
    content: &'a dyn Content,
    doing: String,
    /// Set when the content itself failed: then no other try helps.
    content_failed: AtomicBool,
    /// Tries so far that failed.
    failures: AtomicU32,
    /// How far it had come when it was gone on with.
    reached: AtomicU64,
    /// The registry keeps nothing of a request that broke: in chunks all but the last one stays.
    only_chunks_stay: AtomicBool,
    /// Where the session is kept for a process after this one.
    kept: Option<KeptSession>,
    /// A session that a stream left open.
    begun: Option<Session>,
}

/// What came of asking the registry to take the blob from its origin.
enum Mount {
    Done,
    Session(Session),
}

impl<'a> Upload<'a> {
    pub(crate) fn new(repository: &'a Repository, descriptor: &'a Descriptor, content: &'a dyn Content) -> Self {
        let origin = repository.origin();
        let doing = format!("push the blob {} to {}/{}", descriptor.digest(), origin.registry, origin.repository);
        // A smaller blob is sent again as quickly as its session is asked about.
        let spool = repository.client().options().spool.as_ref().filter(|_| descriptor.size() > CHUNK_BYTES);
        let kept = spool.and_then(|directory| KeptSession::open(directory, &origin, descriptor));
        Self {
            repository,
            descriptor,
            content,
            doing,
            kept,
            content_failed: AtomicBool::new(false),
            failures: AtomicU32::new(0),
            reached: AtomicU64::new(0),
            only_chunks_stay: AtomicBool::new(false),
            begun: None,
        }
    }

    /// The same, going on with a session that has a part of the blob already.
    pub(crate) fn begun_with(self, session: Option<Session>) -> Self {
        Self { begun: session, ..self }
    }

    /// Uploads, with new tries where the connection or the registry failed. What a broken try, or a killed process,
    /// brought to the registry is not sent again, if the registry kept it.
    pub(crate) fn run(mut self) -> Result<Stored, Error> {
        let begun = self.begun.take();
        let mut open = begun.or_else(|| self.kept.as_ref().and_then(|kept| self.kept_session(kept)));
        let mut is_first = true;
        loop {
            let cause = match self.attempt(is_first, &mut open) {
                Ok(stored) => {
                    self.forget_session();
                    return Ok(stored);
                }
                Err(cause) => cause,
            };
            if let Err(cause) = self.pause(cause) {
                if open.is_none() {
                    self.forget_session();
                }
                return Err(Error::new(&self.doing, cause));
            }
            is_first = false;
            // The answer may have been lost, not the upload.
            if self.repository.has_blob(self.descriptor).unwrap_or(false) {
                self.forget_session();
                return Ok(Stored::Sent);
            }
        }
    }

    /// Waits before another try; gives the cause back where there is none.
    fn pause(&self, cause: Cause) -> Result<(), Cause> {
        let tries = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        match self.content_failed.load(Ordering::Relaxed) {
            true => Err(cause),
            false => self.repository.wait_to_retry(&self.doing, tries, cause).map(drop),
        }
    }

    /// Repeats a single request that a rate limit refused: it has touched nothing, and to begin the whole upload again
    /// would only be more requests for the limit to count.
    fn patiently<T>(&self, request: impl Fn() -> Result<T, Cause>) -> Result<T, Cause> {
        loop {
            match request() {
                Err(cause) if matches!(&cause, Cause::Answer(answer) if answer.status == 429) => self.pause(cause)?,
                outcome => return outcome,
            }
        }
    }

    /// One try; a session that may be gone on with is left in `open`.
    fn attempt(&self, is_first: bool, open: &mut Option<Session>) -> Result<Stored, Cause> {
        if let Some(session) = open.take()
            && let Some(sent) = self.resume(session, open)
        {
            return sent.map(|()| Stored::Sent);
        }
        let mut session = match is_first.then(|| self.mount()).flatten() {
            Some(Mount::Done) => return Ok(Stored::Unsent),
            Some(Mount::Session(session)) => session,
            None => self.begin()?,
        };
        self.keep_session(&session);
        let in_chunks = self.only_chunks_stay.load(Ordering::Relaxed);
        let mut sent = match in_chunks {
            true => self.send_in_chunks(&mut session, 0),
            false => self.patiently(|| self.send_whole(&session)),
        };
        if let Err(Cause::Answer(answer)) = &sent
            && answer.status == 413
            && self.repository.host().allows_chunks()
        {
            self.abandon(&session);
            session = self.begin()?;
            self.keep_session(&session);
            sent = self.send_in_chunks(&mut session, 0);
        }
        let sent = sent.map_err(|cause| match cause {
            Cause::Answer(answer) if answer.status == 404 => Cause::UploadLost(answer),
            other => other,
        });
        match &sent {
            Ok(()) => {}
            Err(cause) if cause.is_transient() => *open = Some(session),
            Err(_) => self.abandon(&session),
        }
        sent.map(|()| Stored::Sent)
    }

    /// Goes on with a session where the registry says that it is; `None` if it is gone or empty, or led to nothing.
    fn resume(&self, mut session: Session, open: &mut Option<Session>) -> Option<Result<(), Cause>> {
        if !self.repository.host().allows_chunks() {
            self.abandon(&session);
            return None;
        }
        let position = self.status(&mut session).ok()?;
        if position == 0 && self.descriptor.size() > session.chunk_bytes && self.failures.load(Ordering::Relaxed) > 0 {
            self.only_chunks_stay.store(true, Ordering::Relaxed);
        }
        if position == 0 || position > self.descriptor.size() {
            self.abandon(&session);
            return None;
        }
        if position >= self.reached.swap(position, Ordering::Relaxed) + PROGRESS_BYTES {
            self.failures.store(0, Ordering::Relaxed);
        }
        tracing::debug!(position, digest = %self.descriptor.digest(), "an upload goes on");
        match self.send_in_chunks(&mut session, position) {
            Ok(()) => Some(Ok(())),
            Err(cause) if self.content_failed.load(Ordering::Relaxed) => Some(Err(cause)),
            Err(cause) if cause.is_transient() => {
                *open = Some(session);
                Some(Err(cause))
            }
            // The parts may not fit together: all of it is sent once more.
            Err(cause) => {
                tracing::debug!(%cause, "an upload begins anew");
                self.abandon(&session);
                None
            }
        }
    }

    fn kept_session(&self, kept: &KeptSession) -> Option<Session> {
        let location = kept.url()?;
        check_move(self.repository.host().endpoint.origin(), &location).ok()?;
        Some(Session { location, chunk_bytes: CHUNK_BYTES })
    }

    /// A session at another host is not kept: its URL is signed, and whoever reads it may do what we may.
    fn keep_session(&self, session: &Session) {
        let is_ours = session.location.origin() == self.repository.host().endpoint.origin();
        if let Some(kept) = self.kept.as_ref().filter(|_| is_ours) {
            kept.keep(&session.location);
        }
    }

    fn forget_session(&self) {
        if let Some(kept) = &self.kept {
            kept.forget();
        }
    }

    fn begin(&self) -> Result<Session, Cause> {
        let url = self.repository.url("blobs/uploads/");
        let response = self.patiently(|| self.request_once(Method::Post, &url))?;
        Session::opened(self.repository, &url, &response)
    }

    /// Tries to mount from a repository that has it; `None` where none is known, and a plain start is due.
    fn mount(&self) -> Option<Mount> {
        let here = self.repository.origin();
        let known = self.repository.client().known_blobs();
        // Docker Hub answers 400 to a repository of another registry.
        let is_near = |from: &Origin| from.registry == here.registry && from.repository != here.repository;
        let (registry, digest) = (&here.registry, self.descriptor.digest());
        let remembered = known.repositories(registry, digest).into_iter();
        let remembered = remembered.map(|repository| Origin { registry: registry.clone(), repository });
        let from = self.content.origin().into_iter().chain(remembered).find(is_near)?;
        let url = self.repository.url("blobs/uploads/");
        let mount_url = url.clone().with_parameter("mount", digest.as_ref());
        let mount_url = mount_url.with_parameter("from", &from.repository);
        let scopes = self.repository.scopes().with(&format!("repository:{}:pull", from.repository));
        let body: &MakeBody<'_> = &|| Ok(Body::Empty);
        let mut call = self.repository.call_with_scopes(Method::Post, mount_url, Vec::new(), body, &scopes);
        call.may_repeat = false;
        let answer = self.repository.client().call(&self.doing, &call);
        if matches!(&answer, Ok(response) if response.status == 201) {
            return Some(Mount::Done);
        }
        // Whatever the reason, it would be in vain the next time too.
        known.forget(&from, digest);
        match answer {
            Ok(response) if response.status == 202 => {
                Session::opened(self.repository, &url, &response).ok().map(Mount::Session)
            }
            // A refused mount is no failure: the blob is sent instead.
            _ => None,
        }
    }

    /// PUT with the whole content, opened anew if the registry wants another token first.
    fn send_whole(&self, session: &Session) -> Result<(), Cause> {
        let size_bytes = self.descriptor.size();
        let body: &MakeBody<'_> = &|| {
            let content = self.open()?;
            Ok(Body::Stream { content: Box::new(content), size_bytes: Some(size_bytes) })
        };
        let headers = vec![("Content-Type", "application/octet-stream".to_owned())];
        let mut call = self.repository.call(Method::Put, session.final_url(self.descriptor.digest()), headers, body);
        // The session is used up by the first try, but for a rate limit, whatever came of it.
        call.may_repeat = false;
        let response = self.repository.answer(&self.doing, &call)?;
        check_created(&response, self.descriptor.digest())
    }

    /// PATCHes what lies behind `start`, then ends the upload.
    fn send_in_chunks(&self, session: &mut Session, start: u64) -> Result<(), Cause> {
        let mut content = self.open()?;
        let read_cause = |error| Error::from_io(&self.doing, "the content", error).into_cause();
        let skipped = io::copy(&mut (&mut content).take(start), &mut io::sink()).map_err(read_cause)?;
        let mut start = skipped;
        while start < self.descriptor.size() {
            let mut chunk = Vec::new();
            let read = (&mut content).take(session.chunk_bytes).read_to_end(&mut chunk);
            read.map_err(read_cause)?;
            if chunk.is_empty() {
                return Err(Cause::Malformed("the content ended early".to_owned()));
            }
            self.send_chunk(session, start, &chunk)?;
            self.keep_session(session);
            start += chunk.len() as u64;
        }
        let response =
            self.patiently(|| self.request_once(Method::Put, &session.final_url(self.descriptor.digest())))?;
        check_created(&response, self.descriptor.digest())
    }

    /// Sends one chunk, after a break only what the registry does not have of it.
    fn send_chunk(&self, session: &mut Session, start: u64, chunk: &[u8]) -> Result<(), Cause> {
        let end = start + chunk.len() as u64;
        let (mut tries, mut position) = (1, start);
        while position < end {
            match self.patch(session, position, &chunk[(position - start) as usize..]) {
                Ok(reached) if reached == end => position = end,
                Ok(reached) => {
                    return Err(Cause::Malformed(format!("the registry has {reached} of {end} bytes after a chunk")));
                }
                Err(cause) => {
                    let cause = self.repository.wait_to_retry(&self.doing, tries, cause)?;
                    tries += 1;
                    // A session that is gone ends this try, and not the upload.
                    let Ok(reached) = self.status(session) else { return Err(cause) };
                    position = reached;
                    if position < start || position > end {
                        return Err(Cause::Malformed(format!("the registry lost bytes: it has {position} of {start}")));
                    }
                }
            }
        }
        Ok(())
    }

    /// PATCH; yields the number of bytes that the registry has now.
    fn patch(&self, session: &mut Session, from: u64, bytes: &[u8]) -> Result<u64, Cause> {
        let body: &MakeBody<'_> = &|| Ok(Body::Bytes(bytes));
        let to = from + bytes.len() as u64 - 1;
        let headers =
            vec![("Content-Type", "application/octet-stream".to_owned()), ("Content-Range", format!("{from}-{to}"))];
        let mut call = self.repository.call(Method::Patch, session.location.clone(), headers, body);
        call.may_repeat = false;
        let response = self.repository.answer(&self.doing, &call)?;
        if response.status != 202 {
            // Amazon's registry answers 201 and drops what follows.
            let status = response.status;
            return Err(Cause::Malformed(format!("the registry answered {status} instead of 202 to a chunk")));
        }
        let has = response.header("range").map_or(Some(to + 1), range_end);
        session.follow(self.repository, &response)?;
        has.ok_or_else(|| Cause::Malformed("the registry sent an unreadable Range".to_owned()))
    }

    /// Asks how many bytes a session has (distribution-spec, "Pushing a blob in chunks").
    fn status(&self, session: &mut Session) -> Result<u64, Cause> {
        let response = self.patiently(|| self.request_once(Method::Get, &session.location))?;
        if response.header("location").is_some() {
            session.follow(self.repository, &response)?;
        }
        Ok(response.header("range").and_then(range_end).unwrap_or(0))
    }

    /// A request without body; the loop over the whole upload is what tries again.
    fn request_once(&self, method: Method, url: &Url) -> Result<Response, Cause> {
        request_once(self.repository, &self.doing, method, url)
    }

    fn abandon(&self, session: &Session) {
        if let Some(kept) = &self.kept {
            kept.clear();
        }
        session.abandon(self.repository, &self.doing);
    }

    fn open(&self) -> Result<Watched<'_>, Cause> {
        let content = self.content.open().map_err(|error| {
            self.content_failed.store(true, Ordering::Relaxed);
            error.into_cause()
        })?;
        Ok(Watched { content, failed: &self.content_failed })
    }
}

/// Content that remembers whether it was what failed.
struct Watched<'a> {
    content: Box<dyn Read + Send + 'a>,
    failed: &'a AtomicBool,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.content.read(buffer).inspect_err(|_| self.failed.store(true, Ordering::Relaxed))
    }
}
