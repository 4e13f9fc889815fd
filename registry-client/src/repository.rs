//! One repository at a registry: manifests, blobs and tags.
//!
//! Invariant: a manifest that is returned has the digest that was asked for, or the one its registry named.

use std::io::{self, Read};
use std::sync::Arc;

use oci_spec::image::{Descriptor, Digest, MediaType};
use serde::Deserialize;

use crate::auth::{Purpose, Scopes};
use crate::client::{Call, Client, MakeBody};
use crate::digest::{self, VerifyingReader};
use crate::draft::{Draft, pour_watched};
use crate::error::{Answer, Cause, Error};
use crate::growing::GrowingBlob;
use crate::hosts::{Host, Route, Way};
use crate::limits::Limits;
use crate::manifest::{MANIFEST_LIMIT_BYTES, MANIFEST_MEDIA_TYPES, Manifest};
use crate::pages;
use crate::place::{Content, Origin, Stored};
use crate::progress::Progress;
use crate::pull::BlobReader;
use crate::ranges::{Arriving, RangedReader};
use crate::retry::{Patience, twice_if_damaged};
use crate::stream::Stream;
use crate::transport::{Body, Method, Response};
use crate::upload::Upload;
use crate::url::Url;
use crate::ways::WaysReader;

/// A repository at a registry, reached through a client.
#[derive(Debug, Clone)]
pub struct Repository {
    client: Client,
    host: Host,
    name: String,
    /// What tokens allow: one for a whole push, pulling included.
    scopes: Scopes,
    /// Where it is read, in order: its mirrors, then itself; each without ways of its own.
    ways: Vec<Self>,
    /// What these answer for.
    takes_tags: bool,
    takes_digests: bool,
    /// Where it is written to, if not here.
    push: Option<Box<Self>>,
    /// How patiently it is asked.
    patience: Patience,
}

/// A tag or a digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// A tag, which may move.
    Tag(String),
    /// A digest, which is verified.
    Digest(Digest),
}

impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => write!(f, "{digest}"),
        }
    }
}

/// Tags per page; registries give fewer where they want to.
const TAGS_PER_PAGE: usize = 1000;

impl Repository {
    pub(crate) fn new(client: &Client, route: Route) -> Self {
        let at = |way: Way| Self {
            scopes: Scopes::pull(&way.repository),
            host: client.settled(way.host),
            client: client.clone(),
            name: way.repository,
            ways: Vec::new(),
            takes_tags: way.takes_tags,
            takes_digests: way.takes_digests,
            push: None,
            patience: Patience::new(*client.retry(), false),
        };
        let mut ways: Vec<Self> = route.pulls.into_iter().map(at).collect();
        if let Some((_, mirrors)) = ways.split_last_mut() {
            mirrors.iter_mut().for_each(|mirror| mirror.patience = Patience::new(*client.retry(), true));
        }
        let push = Box::new(at(route.push));
        // The last way is the registry itself, unless it serves no reads.
        let own = ways.last().filter(|last| last.host.name == push.host.name).cloned().unwrap_or((*push).clone());
        Self { ways, push: Some(push), ..own }
    }

    /// The same where it is written to, asking for the right to push with every token.
    pub(crate) fn for_push(self) -> Self {
        let writer = self.push.clone().map_or(self, |push| *push);
        Self { scopes: Scopes::push(&writer.name), ways: Vec::new(), push: None, ..writer }
    }

    /// Reads from the first way that can serve it.
    fn read<T>(&self, is_tag: bool, read: impl Fn(&Self) -> Result<T, Error>) -> Result<T, Error> {
        let may = |way: &&Self| if is_tag { way.takes_tags } else { way.takes_digests };
        let ways: Vec<&Self> = self.ways.iter().filter(may).collect();
        let Some((last, mirrors)) = ways.split_last() else { return read(self) };
        for mirror in mirrors.iter().filter(|mirror| self.client.is_up(&mirror.host)) {
            match read(mirror) {
                Ok(value) => return Ok(value),
                Err(error) => self.client.note_mirror_failure(&mirror.host, &error),
            }
        }
        read(last)
    }

    /// The registry and repository as in references.
    pub fn origin(&self) -> Origin {
        Origin { registry: self.host.name.clone(), repository: self.name.clone() }
    }

    /// Fetches a manifest and verifies it where it is selected by digest.
    ///
    /// # Errors
    /// If it is missing, refused, too large, not a manifest, or does not have its digest.
    pub fn manifest(&self, selector: &Selector) -> Result<Manifest, Error> {
        self.read(matches!(selector, Selector::Tag(_)), |way| way.manifest_here(selector))
    }

    pub(crate) fn manifest_here(&self, selector: &Selector) -> Result<Manifest, Error> {
        self.manifest_with_etag(selector).map(|(manifest, _)| manifest)
    }

    /// Fetches a manifest from here, with its `ETag` where there is one.
    pub(crate) fn manifest_with_etag(&self, selector: &Selector) -> Result<(Manifest, Option<String>), Error> {
        let doing = format!("fetch the manifest of {}", self.show(selector));
        let fetch = || {
            let mut call =
                self.call(Method::Get, self.manifest_url(selector), vec![accept_manifests()], &|| Ok(Body::Empty));
            // Tried again below, together with its body.
            call.may_repeat = false;
            let response = self.answer(&doing, &call)?;
            let content_type = response.header("content-type").map(|value| media_type(value).to_owned());
            let etag = response.header("etag").map(str::to_owned);
            let named = response.header("docker-content-digest").and_then(|value| Digest::try_from(value).ok());
            let too_large = || Cause::Malformed(format!("the manifest is larger than {MANIFEST_LIMIT_BYTES} bytes"));
            let bytes = response.read_up_to(MANIFEST_LIMIT_BYTES, &self.host.name)?.ok_or_else(too_large)?;
            let manifest = match (selector, named) {
                (Selector::Digest(digest), _) => Manifest::known_as(digest, content_type.as_deref(), bytes)?,
                (Selector::Tag(_), named) => {
                    named.map_or(Ok(()), |named| digest::check(&bytes, &named))?;
                    Manifest::new(content_type.as_deref(), bytes)?
                }
            };
            Ok((manifest, etag))
        };
        let patiently =
            |_| self.client.retrying(&self.patience, &doing, fetch).map_err(|cause| Error::new(&doing, cause));
        twice_if_damaged(&doing, self.client.progress(), patiently)
    }

    /// What a tag points to now, without fetching it (Docker Hub counts only fetches).
    ///
    /// # Errors
    /// If it is missing or refused.
    pub fn resolve(&self, selector: &Selector) -> Result<Descriptor, Error> {
        self.read(matches!(selector, Selector::Tag(_)), |way| way.resolve_here(selector))
    }

    fn resolve_here(&self, selector: &Selector) -> Result<Descriptor, Error> {
        let doing = format!("look up {}", self.show(selector));
        let asked = self.request(&doing, Method::Head, self.manifest_url(selector), vec![accept_manifests()]);
        let response = match asked {
            Ok(response) => response,
            // There are registries, and proxies before them, that know no HEAD, or not for manifests.
            Err(Cause::Answer(Answer { status: 400 | 404 | 405 | 501, .. })) => {
                return Ok(self.manifest_here(selector)?.descriptor());
            }
            Err(cause) => return Err(Error::new(&doing, cause)),
        };
        let digest = response.header("docker-content-digest").and_then(|value| Digest::try_from(value).ok());
        let size_bytes = response.header("content-length").and_then(|value| value.parse::<u64>().ok());
        let content_type = response.header("content-type").map(media_type);
        if let (Some(digest), Some(size_bytes), Some(content_type)) = (digest, size_bytes, content_type) {
            return Ok(Descriptor::new(MediaType::from(content_type), size_bytes, digest));
        }
        Ok(self.manifest_here(selector)?.descriptor())
    }

    /// Puts a manifest under a tag, or under its digest alone.
    ///
    /// # Errors
    /// If the registry refuses it or stores it under another digest.
    pub fn put_manifest(&self, manifest: &Manifest, selector: &Selector) -> Result<(), Error> {
        self.clone().for_push().put_manifest_here(manifest, selector)
    }

    fn put_manifest_here(&self, manifest: &Manifest, selector: &Selector) -> Result<(), Error> {
        let doing = format!("push the manifest of {}", self.show(selector));
        let knows_subjects =
            self.put_manifest_if(manifest, selector, None).map_err(|cause| Error::new(&doing, cause))?;
        match manifest.subject().filter(|_| !knows_subjects) {
            Some(subject) => self.add_referrer(subject.digest(), manifest),
            None => Ok(()),
        }
    }

    /// Puts a manifest in place of the one with an `ETag`; whether the registry lists it among the referrers of its
    /// subject
    /// (<https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pushing-manifests-with-subject>).
    pub(crate) fn put_manifest_if(
        &self,
        manifest: &Manifest,
        selector: &Selector,
        etag: Option<&str>,
    ) -> Result<bool, Cause> {
        let body: &MakeBody<'_> = &|| Ok(Body::Bytes(manifest.bytes()));
        let mut headers = vec![("Content-Type", manifest.media_type().to_owned())];
        headers.extend(etag.map(|etag| ("If-Match", etag.to_owned())));
        let call = self.call(Method::Put, self.manifest_url(selector), headers, body);
        let doing = format!("push the manifest of {}", self.show(selector));
        let response = self.answer(&doing, &call)?;
        check_stored(&response, manifest.digest())?;
        Ok(response.header("oci-subject").is_some())
    }

    /// All tags, in the registry's order (alphabetical by the specification).
    ///
    /// # Errors
    /// If the repository is missing or refused, or a page is not a list of tags.
    pub fn tags(&self) -> Result<Vec<String>, Error> {
        self.tags_after(None, usize::MAX)
    }

    /// At most `limit` tags in the registry's order, those behind `last` where it is given.
    ///
    /// # Errors
    /// As [`Self::tags`].
    pub fn tags_after(&self, last: Option<&str>, limit: usize) -> Result<Vec<String>, Error> {
        let doing = format!("list the tags of {}/{}", self.host.name, self.name);
        let per_page = limit.clamp(1, TAGS_PER_PAGE);
        let mut url = self.url("tags/list").with_parameter("n", &per_page.to_string());
        if let Some(last) = last {
            url = url.with_parameter("last", last);
        }
        let tags = |page: &[u8]| serde_json::from_slice::<TagPage>(page).ok().map(|page| page.tags.unwrap_or_default());
        pages::names(self, &doing, url, limit, tags).map_err(|cause| Error::new(doing, cause))
    }

    /// What the registry still lets us pull, if it says so: asked for with a `HEAD`, which Docker Hub does not count
    /// (its own example is `ratelimitpreview/test:latest`).
    ///
    /// # Errors
    /// If the registry refuses, or the quota is used up: then the error says what is known of it.
    pub fn limits(&self, selector: &Selector) -> Result<Option<Limits>, Error> {
        let doing = format!("ask {} for its limits", self.host.name);
        let response = self.request(&doing, Method::Head, self.manifest_url(selector), vec![accept_manifests()]);
        response.map(|response| Limits::of(&response)).map_err(|cause| Error::new(doing, cause))
    }

    /// Whether the repository has a blob of this digest and size.
    ///
    /// # Errors
    /// If the registry cannot be reached or refuses access.
    pub fn has_blob(&self, descriptor: &Descriptor) -> Result<bool, Error> {
        let doing = format!("look for the blob {} in {}/{}", descriptor.digest(), self.host.name, self.name);
        let look = || {
            let call = self.call(Method::Head, self.blob_url(descriptor.digest()), Vec::new(), &|| Ok(Body::Empty));
            let response = self.client.call(&doing, &call)?;
            match response.status {
                200..=299 => {
                    let size = response.header("content-length").and_then(|text| text.parse::<u64>().ok());
                    let is_whole = size.is_none_or(|size| size == descriptor.size());
                    if is_whole {
                        self.client.known_blobs().note(&self.origin(), descriptor.digest());
                    }
                    Ok(is_whole)
                }
                404 => Ok(false),
                _ => Err(self.client.refusal(&call, response)),
            }
        };
        look().map_err(|cause| Error::new(&doing, cause))
    }

    /// Streams a blob. The reader verifies size and digest, and by itself resumes where a connection broke, or at the
    /// next host where a mirror failed. With [`crate::ClientOptions::spool`] it also goes on where an earlier process
    /// was killed, and large blobs come in parallel ranges.
    ///
    /// # Errors
    /// If it is missing or refused.
    pub fn open_blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>, Error> {
        Ok(Box::new(VerifyingReader::new(self.open_unverified_blob(descriptor)?, descriptor)?))
    }

    pub(crate) fn open_unverified_blob(&self, descriptor: &Descriptor) -> Result<WaysReader, Error> {
        let damages =
            |way: &Self| self.client.deliveries().was_damaged(descriptor.digest(), way.host.endpoint.origin());
        let may = |way: &&Self| way.takes_digests && self.client.is_up(&way.host) && !damages(way);
        let mut ways: Vec<Self> = self.ways.iter().filter(may).cloned().collect();
        if ways.is_empty() {
            ways.push(self.clone());
        }
        let reader = WaysReader::open(ways, descriptor)?;
        // A push to the same registry, of what was built on this, need not send it.
        self.client.known_blobs().note(&self.origin(), descriptor.digest());
        Ok(reader)
    }

    /// A blob from here, from a position on, not verified.
    pub(crate) fn open_blob_at(&self, descriptor: &Descriptor, position: u64) -> Result<Arriving, Error> {
        let options = self.client.options();
        if let Some(reader) = RangedReader::open(self, descriptor, options.spool.as_ref(), options.ranges, position)? {
            return Ok(Arriving::InPieces(reader));
        }
        let rest = position..descriptor.size();
        Ok(Arriving::InARow(Box::new(BlobReader::open(self.clone(), descriptor.clone(), rest)?)))
    }

    /// Fills a draft with a blob, as [`Source::fill_draft`](crate::Source::fill_draft) says. A partial file that lies
    /// near is taken over: its bytes pass only by the digest, and are written once.
    pub(crate) fn fill_draft(
        &self,
        descriptor: &Descriptor,
        draft: &mut Draft,
        watch: &mut dyn FnMut(u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut content = VerifyingReader::new(self.open_unverified_blob(descriptor)?, descriptor)?;
        if content.inner().is_near(draft) {
            pour_watched(&mut content, &mut io::sink(), watch)?;
            if content.into_inner().give_to(draft)? {
                return Ok(());
            }
            // A mirror failed in the middle, and meanwhile somebody else took hold of the partial file.
            content = VerifyingReader::new(self.open_unverified_blob(descriptor)?, descriptor)?;
        }
        pour_watched(&mut content, draft, watch)
    }

    /// Puts a blob: from the content's origin if the registry can take it from there, else by sending it.
    ///
    /// # Errors
    /// If the content fails, or the registry refuses it or stores something else.
    pub fn put_blob(&self, descriptor: &Descriptor, content: &dyn Content) -> Result<Stored, Error> {
        let writer = self.clone().for_push();
        let stored = Upload::new(&writer, descriptor, content).run()?;
        self.client.known_blobs().note(&writer.origin(), descriptor.digest());
        Ok(stored)
    }

    /// Puts a blob that is still being made, and tells what it became: sent meanwhile if the registry permits that,
    /// else when it is whole.
    ///
    /// # Errors
    /// If the blob is abandoned, or as [`Self::put_blob`].
    pub fn put_growing_blob(
        &self,
        blob: &Arc<GrowingBlob>,
        progress: &dyn Progress,
    ) -> Result<(Descriptor, Stored), Error> {
        let writer = self.clone().for_push();
        let (descriptor, stored) = Stream::new(&writer, blob, progress).run()?;
        for known in [descriptor.digest(), blob.recipe()] {
            self.client.known_blobs().note(&writer.origin(), known);
        }
        Ok((descriptor, stored))
    }

    /// Waits before the next try after `tries`, as patiently as this is asked.
    pub(crate) fn wait_to_retry(&self, doing: &str, tries: u32, cause: Cause) -> Result<Cause, Cause> {
        self.client.wait_to_retry(&self.patience, doing, tries, cause)
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    pub(crate) fn show(&self, selector: &Selector) -> String {
        let separator = if matches!(selector, Selector::Tag(_)) { ':' } else { '@' };
        format!("{}/{}{separator}{selector}", self.host.name, self.name)
    }

    pub(crate) fn blob_url(&self, digest: &Digest) -> Url {
        self.url(&format!("blobs/{digest}"))
    }

    /// `/v2/<name>/<rest>` at the registry.
    pub(crate) fn url(&self, rest: &str) -> Url {
        let url = self.host.endpoint.at(&format!("{}/{}/{rest}", self.host.api_path, self.name));
        match &self.host.namespace {
            Some(namespace) => url.with_parameter("ns", namespace),
            None => url,
        }
    }

    pub(crate) fn manifest_url(&self, selector: &Selector) -> Url {
        self.url(&format!("manifests/{selector}"))
    }

    pub(crate) fn call<'a>(
        &'a self,
        method: Method,
        url: Url,
        headers: Vec<(&'static str, String)>,
        body: &'a MakeBody<'a>,
    ) -> Call<'a> {
        self.call_with_scopes(method, url, headers, body, &self.scopes)
    }

    pub(crate) fn call_with_scopes<'a>(
        &'a self,
        method: Method,
        url: Url,
        headers: Vec<(&'static str, String)>,
        body: &'a MakeBody<'a>,
        scopes: &'a Scopes,
    ) -> Call<'a> {
        let purpose = Purpose { host: &self.host, repository: &self.name, scopes };
        Call { method, url, headers, body, purpose, patience: self.patience, may_repeat: true }
    }

    /// The same, asking for the right to delete.
    pub(crate) fn for_delete(&self) -> Self {
        Self { scopes: Scopes::delete(&self.name), ..self.clone() }
    }

    /// The same, asking for the right to list repositories.
    pub(crate) fn for_catalog(&self) -> Self {
        Self { scopes: Scopes::default().with("registry:catalog:*"), ..self.clone() }
    }

    pub(crate) fn scopes(&self) -> &Scopes {
        &self.scopes
    }

    /// Sends a request without body and takes only success for an answer.
    pub(crate) fn request(
        &self,
        doing: &str,
        method: Method,
        url: Url,
        headers: Vec<(&'static str, String)>,
    ) -> Result<Response, Cause> {
        self.answer(doing, &self.call(method, url, headers, &|| Ok(Body::Empty)))
    }

    /// Carries out a call and takes only success for an answer.
    pub(crate) fn answer(&self, doing: &str, call: &Call<'_>) -> Result<Response, Cause> {
        let response = self.client.call(doing, call)?;
        match response.status {
            200..=299 => Ok(response),
            _ => Err(self.client.refusal(call, response)),
        }
    }
}

/// The registry's word on what it stored must be ours, where it gives one.
pub(crate) fn check_stored(response: &Response, expected: &Digest) -> Result<(), Cause> {
    match response.header("docker-content-digest") {
        Some(actual) if actual.starts_with(expected.algorithm().as_ref()) && actual != expected.as_ref() => {
            Err(Cause::DigestMismatch { expected: expected.clone(), actual: actual.to_owned() })
        }
        _ => Ok(()),
    }
}

fn accept_manifests() -> (&'static str, String) {
    ("Accept", MANIFEST_MEDIA_TYPES.join(", "))
}

/// A content type without its parameters.
fn media_type(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

#[derive(Deserialize)]
struct TagPage {
    tags: Option<Vec<String>>,
}
