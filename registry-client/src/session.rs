//! An upload session at a registry: where its next request goes.
//!
//! Invariant: a session lies at the registry itself or at a host that it may send us to; how content is cut into
//! requests, and what becomes of a failure, is for [`crate::upload`] and [`crate::stream`] to say.

use oci_spec::image::Digest;

use crate::client::{MakeBody, check_move};
use crate::error::Cause;
use crate::repository::{Repository, check_stored};
use crate::transport::{Body, Method, Response};
use crate::url::Url;

/// GHCR refuses larger chunks, and no registry asks for more by default.
pub(crate) const CHUNK_BYTES: u64 = 4 << 20;
/// A registry that wants larger chunks than this is not obeyed: they are held in memory.
const CHUNK_LIMIT_BYTES: u64 = 64 << 20;

/// An upload that is open at the registry.
pub(crate) struct Session {
    pub(crate) location: Url,
    pub(crate) chunk_bytes: u64,
}

impl Session {
    /// What an answer to `POST .../blobs/uploads/` opened.
    pub(crate) fn opened(repository: &Repository, asked: &Url, response: &Response) -> Result<Self, Cause> {
        let least_bytes = response.header("oci-chunk-min-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        let chunk_bytes = CHUNK_BYTES.max(least_bytes).min(CHUNK_LIMIT_BYTES);
        Ok(Self { location: located(repository, asked, response)?, chunk_bytes })
    }

    /// Goes on where an answer says.
    pub(crate) fn follow(&mut self, repository: &Repository, response: &Response) -> Result<(), Cause> {
        self.location = located(repository, &self.location, response)?;
        Ok(())
    }

    /// Where the request goes that ends the upload.
    pub(crate) fn final_url(&self, digest: &Digest) -> Url {
        self.location.clone().with_parameter("digest", digest.as_ref())
    }

    /// Frees it; registries forget it anyway some day, so a failure is none.
    pub(crate) fn abandon(&self, repository: &Repository, doing: &str) {
        let _ = repository.client().call(doing, &bare_call(repository, Method::Delete, &self.location));
    }
}

/// A request without body, made once: whoever knows the upload as a whole tries again.
pub(crate) fn request_once(repository: &Repository, doing: &str, method: Method, url: &Url) -> Result<Response, Cause> {
    repository.answer(doing, &bare_call(repository, method, url))
}

fn bare_call<'a>(repository: &'a Repository, method: Method, url: &Url) -> crate::client::Call<'a> {
    let body: &MakeBody<'_> = &|| Ok(Body::Empty);
    let mut call = repository.call(method, url.clone(), Vec::new(), body);
    call.may_repeat = false;
    call
}

/// An upload ended with this answer: the blob is stored, under its digest.
pub(crate) fn check_created(response: &Response, digest: &Digest) -> Result<(), Cause> {
    if !matches!(response.status, 201 | 204) {
        let status = response.status;
        return Err(Cause::Malformed(format!("the registry ended the upload with {status} instead of 201")));
    }
    check_stored(response, digest)
}

/// The end of `0-1023` as a count: 1024.
pub(crate) fn range_end(text: &str) -> Option<u64> {
    let text = text.trim();
    let (first, last) = text.strip_prefix("bytes=").unwrap_or(text).split_once('-')?;
    let last: u64 = last.parse().ok()?;
    // docker-registry says 0-0 for nothing and for one byte; nothing is the safe reading, the byte is sent again.
    (first == "0").then(|| if last == 0 { 0 } else { last.saturating_add(1) })
}

fn located(repository: &Repository, asked: &Url, response: &Response) -> Result<Url, Cause> {
    let missing = || Cause::Malformed(format!("{asked} started an upload without saying where"));
    let location = response.header("location").ok_or_else(missing)?;
    let location = asked.join(location).map_err(Cause::Malformed)?;
    check_move(repository.host().endpoint.origin(), &location)?;
    Ok(location)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_of_a_session_is_read() {
        assert_eq!(range_end("0-1023"), Some(1024));
        assert_eq!(range_end("bytes=0-9"), Some(10));
        assert_eq!(range_end("0-0"), Some(0));
        assert_eq!(range_end("5-9"), None);
        assert_eq!(range_end(""), None);
        assert_eq!(range_end("0-18446744073709551615"), Some(u64::MAX));
    }
}
