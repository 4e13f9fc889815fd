//! Pulling: a blob as a stream that survives broken connections, and a registry as a source.
//!
//! Invariant: what a [`BlobReader`] yields is contiguous: after a break it continues at the byte where it stopped.

use std::io::{self, Read};
use std::ops::Range;

use oci_spec::image::{Descriptor, Digest};

use crate::client::Client;
use crate::draft::Draft;
use crate::error::{Answer, Cause, Error};
use crate::manifest::Manifest;
use crate::place::{Origin, Source};
use crate::reference::Reference;
use crate::repository::{Repository, Selector};
use crate::transport::{Body, Method, Response, read_cause};
use crate::url::Url;

/// An image at a registry, to be copied from.
#[derive(Debug, Clone)]
pub struct RegistrySource {
    repository: Repository,
    selector: Selector,
    reference: Reference,
}

impl RegistrySource {
    /// The image of a reference; its digest counts where it has one, else its tag.
    ///
    /// # Errors
    /// If the registry's name is no host.
    pub fn new(client: &Client, reference: &Reference) -> Result<Self, Error> {
        let repository = client.repository(reference)?;
        Ok(Self { repository, selector: selector(reference), reference: reference.clone() })
    }

    pub(crate) fn at(repository: Repository, selector: Selector, reference: Reference) -> Self {
        Self { repository, selector, reference }
    }

    /// The same, read where it is written to and not from a mirror, which may not have yet what was pushed.
    #[must_use]
    pub fn without_mirrors(self) -> Self {
        Self { repository: self.repository.for_push(), ..self }
    }
}

/// What a reference selects in its repository.
pub(crate) fn selector(reference: &Reference) -> Selector {
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => Selector::Digest(digest.clone()),
        (None, tag) => Selector::Tag(tag.unwrap_or("latest").to_owned()),
    }
}

impl Source for RegistrySource {
    fn name(&self) -> String {
        format!("docker://{}", self.reference)
    }

    fn manifest(&self, digest: Option<&Digest>) -> Result<Manifest, Error> {
        match digest {
            Some(digest) => self.repository.manifest(&Selector::Digest(digest.clone())),
            None => self.repository.manifest(&self.selector),
        }
    }

    fn digest(&self) -> Result<Digest, Error> {
        Ok(self.repository.resolve(&self.selector)?.digest().clone())
    }

    fn open_blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>, Error> {
        self.repository.open_blob(descriptor)
    }

    fn open_unverified_blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>, Error> {
        Ok(Box::new(self.repository.open_unverified_blob(descriptor)?))
    }

    fn fill_draft(
        &self,
        descriptor: &Descriptor,
        draft: &mut Draft,
        watch: &mut dyn FnMut(u64) -> io::Result<()>,
    ) -> io::Result<()> {
        self.repository.fill_draft(descriptor, draft, watch)
    }

    fn distrust(&self, descriptor: &Descriptor) {
        self.repository.client().deliveries().distrust(descriptor.digest());
    }

    fn origin(&self, _: &Descriptor) -> Option<Origin> {
        Some(self.repository.origin())
    }

    fn tagged(&self, tag: &str) -> Result<Option<Manifest>, Error> {
        match self.repository.manifest(&Selector::Tag(tag.to_owned())) {
            Ok(manifest) => Ok(Some(manifest)),
            Err(error) if matches!(error.cause(), Cause::Answer(Answer { status: 404, .. })) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn gpg_signatures(&self, subject: &Digest) -> Result<Vec<Vec<u8>>, Error> {
        self.repository.client().gpg_signatures(&self.reference, subject)
    }

    fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, Error> {
        self.repository.referrers(subject, None)
    }

    fn bare_referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, Error> {
        self.repository.bare_referrers(subject)
    }
}

/// A blob, or a range of it, being downloaded.
pub(crate) struct BlobReader {
    repository: Repository,
    descriptor: Descriptor,
    doing: String,
    /// Where the bytes come from: the registry, or one of the descriptor's foreign URLs.
    foreign: Option<Url>,
    position_bytes: u64,
    /// Nothing is yielded from here on.
    end_bytes: u64,
    /// Whether the answer holds only what was asked for, and not the whole blob.
    knows_ranges: bool,
    /// Where the last break was: only a connection that gets further than this earns new tries.
    last_break_bytes: u64,
    failures: u32,
    response: Option<Response>,
}

/// Progress that counts as such: a peer that breaks after every few bytes is broken.
pub(crate) const PROGRESS_BYTES: u64 = 1 << 20;

impl BlobReader {
    /// Opens a range of the blob, which may be all of it.
    pub(crate) fn open(repository: Repository, descriptor: Descriptor, range: Range<u64>) -> Result<Self, Error> {
        let doing = format!("fetch the blob {} of {}", descriptor.digest(), repository.origin().repository);
        let mut reader = Self {
            repository,
            descriptor,
            doing,
            foreign: None,
            position_bytes: range.start,
            end_bytes: range.end,
            knows_ranges: false,
            last_break_bytes: range.start,
            failures: 0,
            response: None,
        };
        reader.connect().map_err(|cause| Error::new(&reader.doing, cause))?;
        Ok(reader)
    }

    /// Whether the peer sends ranges when it is asked for them.
    pub(crate) fn knows_ranges(&self) -> bool {
        self.knows_ranges
    }

    /// Goes on to a later end, where the answer that is being read holds more than was asked for.
    pub(crate) fn extend_to(&mut self, end_bytes: u64) {
        self.end_bytes = self.end_bytes.max(end_bytes);
    }

    /// Sees the end of the answer, without which its connection could not serve the next request.
    pub(crate) fn finish(&mut self) {
        let is_all = self.knows_ranges || self.end_bytes == self.descriptor.size();
        if let Some(mut response) = self.response.take().filter(|_| is_all) {
            // All that was wanted is here; a failure now costs the connection and nothing else.
            let _ = response.body.read(&mut [0]);
        }
    }

    /// Opens the response for the bytes from the current position on.
    fn connect(&mut self) -> Result<(), Cause> {
        let from_registry = match self.foreign {
            None => self.ask_registry(),
            Some(_) => Err(Cause::Missing("the registry does not hold this foreign layer".to_owned())),
        };
        let urls = self.descriptor.urls().clone();
        let mut response = match (from_registry, urls.as_deref()) {
            (Ok(response), _) => response,
            (Err(cause), Some(urls)) if !urls.is_empty() && is_missing(&cause) => self.ask_foreign(urls)?,
            (Err(cause), _) => return Err(cause),
        };
        let skip_bytes = match response.status {
            206 => {
                let range = self.position_bytes..self.end_bytes;
                check_content_range(response.header("content-range"), range, self.descriptor.size())?;
                0
            }
            // The registry knows no ranges: it sends all again.
            200 => self.position_bytes,
            status => return Err(Cause::Malformed(format!("the registry answered {status} to a request for content"))),
        };
        self.knows_ranges = response.status == 206;
        let host = self.repository.host().name.clone();
        let skipped = io::copy(&mut (&mut response.body).take(skip_bytes), &mut io::sink());
        if skipped.map_err(|error| read_cause(error, &host))? < skip_bytes {
            return Err(broken(&host, "it ended early"));
        }
        self.response = Some(response);
        Ok(())
    }

    fn ask_registry(&self) -> Result<Response, Cause> {
        let url = self.repository.blob_url(self.descriptor.digest());
        let mut call = self.repository.call(Method::Get, url, self.range(), &|| Ok(Body::Empty));
        // After a break this reader counts the tries itself, over the whole of the blob.
        call.may_repeat = self.failures == 0;
        self.repository.answer(&self.doing, &call)
    }

    /// Layers that may not be distributed lie at their owner's: fetched without any credential.
    fn ask_foreign(&mut self, urls: &[String]) -> Result<Response, Cause> {
        let mut last = Cause::Missing("none of its URLs could be used".to_owned());
        for text in urls {
            let answer = Url::parse(text).map_err(Cause::Malformed).and_then(|url| {
                let client = self.repository.client();
                let response = client.fetch_foreign(&url, self.repository.host(), self.range())?;
                match response.status {
                    200 | 206 => Ok((url, response)),
                    status => Err(Cause::Missing(format!("{url} answered {status}"))),
                }
            });
            match answer {
                Ok((url, response)) => {
                    self.foreign = Some(url);
                    return Ok(response);
                }
                Err(cause) => last = cause,
            }
        }
        Err(last)
    }

    fn range(&self) -> Vec<(&'static str, String)> {
        let range = match (self.position_bytes, self.end_bytes == self.descriptor.size()) {
            (0, true) => return Vec::new(),
            (position, true) => format!("bytes={position}-"),
            (position, false) => format!("bytes={position}-{}", self.end_bytes.saturating_sub(1)),
        };
        vec![("Range", range)]
    }

    /// Waits after a break; an error when the tries are used up.
    fn recover(&mut self, cause: Cause) -> Result<(), Cause> {
        if self.position_bytes >= self.last_break_bytes + PROGRESS_BYTES {
            self.failures = 0;
        }
        self.last_break_bytes = self.position_bytes;
        self.failures += 1;
        self.repository.wait_to_retry(&self.doing, self.failures, cause).map(drop)
    }

    fn read_once(&mut self, buffer: &mut [u8]) -> Result<usize, Cause> {
        if self.response.is_none() {
            self.connect()?;
        }
        let response = self.response.as_mut().expect("connect leaves a response");
        let host = &self.repository.host().name;
        // At the end of the blob one more byte would be a lie to be found out; at the end of a range it is not ours.
        let left = self.end_bytes.saturating_sub(self.position_bytes);
        let wanted = if self.end_bytes == self.descriptor.size() { u64::MAX } else { left };
        let length = usize::try_from(wanted).unwrap_or(usize::MAX).min(buffer.len());
        let count = response.body.read(&mut buffer[..length]).map_err(|error| read_cause(error, host))?;
        if count == 0 && left > 0 && length > 0 {
            return Err(broken(host, "it ended early"));
        }
        Ok(count)
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match self.read_once(buffer) {
                Ok(count) => {
                    self.position_bytes += count as u64;
                    return Ok(count);
                }
                Err(cause) => {
                    self.response = None;
                    self.recover(cause).map_err(|cause| io::Error::from(Error::new(&self.doing, cause)))?;
                }
            }
        }
    }
}

fn is_missing(cause: &Cause) -> bool {
    matches!(cause, Cause::Missing(_)) || matches!(cause, Cause::Answer(answer) if answer.status == 404)
}

fn broken(host: &str, what: &str) -> Cause {
    let source = io::Error::new(io::ErrorKind::UnexpectedEof, what.to_owned());
    Cause::Broken { host: host.to_owned(), source }
}

/// Checks `bytes <from>-<to>/<size or *>` (RFC 9110 section 14.4) against what was asked for; less is allowed, since
/// the rest is asked for when it is due.
pub(crate) fn check_content_range(header: Option<&str>, asked: Range<u64>, size: u64) -> Result<(), Cause> {
    let parsed = header.and_then(|text| {
        let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last) = (first.trim().parse::<u64>().ok()?, last.trim().parse::<u64>().ok()?);
        let is_right = first == asked.start && last < asked.end && last >= first;
        (is_right && (total == "*" || total.parse() == Ok(size))).then_some(())
    });
    let shown = header.unwrap_or("nothing");
    let (start, end) = (asked.start, asked.end);
    parsed.ok_or_else(|| Cause::Malformed(format!("asked for byte {start} to {end}, the registry sent {shown:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_the_range_that_was_asked_for_is_taken() {
        let check = |text: &str| check_content_range(Some(text), 10..90, 100).is_ok();
        assert!(check("bytes 10-89/100") && check("bytes 10-89/*") && check("bytes 10-50/100"));
        assert!(!check("bytes 0-89/100") && !check("bytes 10-90/100") && !check("bytes 10-89/101"));
        assert!(!check("bytes */100") && !check("items 10-89/100") && !check(""));
        assert!(check_content_range(None, 10..90, 100).is_err());
    }

    proptest! {
        #[test]
        fn any_content_range_is_read_without_panic(header in ".{0,40}", digits in "bytes [0-9-]{0,50}/[0-9*]{0,30}") {
            let _ = (check_content_range(Some(&header), 1..2, 2), check_content_range(Some(&digits), 1..2, 2));
        }
    }
}
