//! ADD of a URL: the file is fetched into the store as a blob, so that what a layer takes from it was digested.
//!
//! Invariant: a layer depends on the bytes that came and on nothing that a server says of them. ETags are not trusted;
//! `Last-Modified` counts only where a build keeps real times. Not here: git sources, which are refused with a reason.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;

use layerfs::{Digest, Digester, Time};
use oci_spec::image::{Descriptor, DigestAlgorithm, MediaType};

use crate::build::Builder;
use crate::changeset::{Content, Node, Owner};
use crate::error::{BuildError, Site};

/// A larger file is refused: registries take no layer beyond this (GitHub's 10 GB, Amazon's 52 GB).
const MOST_BYTES: u64 = 10 << 30;

/// The name of a file whose URL has none, as in BuildKit.
const UNNAMED: &str = "__unnamed__";

/// What a source of ADD is, by its text alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SourceKind {
    /// A path of the build context.
    Local,
    /// A file at a web server.
    Web,
    /// A git repository.
    Git,
}

impl SourceKind {
    /// As BuildKit tells them apart (its `util/gitutil`).
    pub(crate) fn of(text: &str) -> Self {
        let lower = text.to_ascii_lowercase();
        let begins = |schemes: &[&str]| schemes.iter().any(|scheme| lower.starts_with(scheme));
        if begins(&["git://", "ssh://", "git@"]) {
            return Self::Git;
        }
        if !begins(&["http://", "https://"]) {
            return Self::Local;
        }
        let path = lower.split(['?', '#']).next().unwrap_or_default();
        if path.ends_with(".git") { Self::Git } else { Self::Web }
    }
}

/// A file that was fetched.
pub(crate) struct Remote {
    /// What it is called where the destination is a directory.
    pub(crate) name: String,
    /// Of its bytes.
    pub(crate) digest: Digest,
    content: Content,
    size_bytes: u64,
    modified: Time,
}

impl Remote {
    /// Fetches a URL, unless the build is told the digest of a blob that the store has.
    pub(crate) fn fetch(
        builder: &Builder<'_>,
        url: &str,
        expected: Option<&Digest>,
        epoch: Option<i64>,
        site: &Site,
    ) -> Result<Self, BuildError> {
        let at = |seconds| Time { seconds, nanoseconds: 0 };
        // Where real times count, the server has to be asked for its own.
        if let (Some(digest), Some(epoch)) = (expected, epoch)
            && builder.store.has_blob(digest)?
        {
            return Self::of_blob(builder, url, digest.clone(), at(epoch));
        }
        let temporary = builder.store.root().join("tmp");
        let mut file = tempfile::tempfile_in(&temporary).map_err(BuildError::file("create a file in", &temporary))?;
        let fetched = builder
            .client
            .fetch(url, MOST_BYTES, &mut file)
            .map_err(|source| BuildError::Image { at: Some(Box::new(site.error("ADD"))), source })?;
        let digest = digest_of_file(&mut file).map_err(BuildError::file("read a file in", &temporary))?;
        if let Some(expected) = expected.filter(|expected| **expected != digest) {
            let message = format!("digest mismatch: {} has the digest {digest}, not {expected}", shown(url));
            return Err(site.error(message).into());
        }
        let media_type = MediaType::Other("application/octet-stream".to_owned());
        builder.store.put_blob(file, &Descriptor::new(media_type, fetched.size_bytes, digest.clone()))?;
        Self::of_blob(builder, url, digest, at(epoch.or(fetched.modified_seconds).unwrap_or(0)))
    }

    fn of_blob(builder: &Builder<'_>, url: &str, digest: Digest, modified: Time) -> Result<Self, BuildError> {
        let blob = builder.store.open_blob(&digest)?;
        let size_bytes = blob.size_bytes;
        let content = Content::Range(Arc::new(blob.file), 0, size_bytes);
        Ok(Self { name: file_name(url), digest, content, size_bytes, modified })
    }

    /// Its bytes.
    pub(crate) fn content(&self) -> &Content {
        &self.content
    }

    /// The file as it lies in a layer before any flag: mode 0600, as in Docker.
    pub(crate) fn node(&self, owner: Owner) -> Node {
        let mut node = Node::file(Arc::from([]), 0o600, owner, self.modified);
        node.attributes.size_bytes = self.size_bytes;
        node.attributes.data_bytes = self.size_bytes;
        node.content = Some(self.content.clone());
        node
    }

    /// What of it makes a difference for a layer.
    pub(crate) fn key_word(&self) -> String {
        format!("remote {} {} {}", self.name, self.digest, self.modified.seconds)
    }
}

/// Reads the value of `--checksum`.
pub(crate) fn checksum(text: &str, site: &Site) -> Result<Digest, BuildError> {
    let digest: Digest =
        text.parse().map_err(|_| site.error(format!("invalid checksum {text:?}: it is no digest as sha256:<hex>")))?;
    match digest.algorithm() {
        DigestAlgorithm::Sha256 => Ok(digest),
        other => Err(site.error(format!("checksum algorithm {other} is not supported: only sha256")).into()),
    }
}

/// A URL without its query, which may hold a signature.
pub(crate) fn shown(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or_default()
}

fn digest_of_file(file: &mut File) -> io::Result<Digest> {
    let mut digester = Digester::new();
    let mut buffer = vec![0; 1 << 17];
    file.seek(SeekFrom::Start(0))?;
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => digester.update(&buffer[..count]),
        }
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(digester.digest())
}

/// The last part of the URL's path, percent-decoded; never one that leads elsewhere.
fn file_name(url: &str) -> String {
    let after_scheme = shown(url).split_once("://").map_or("", |(_, rest)| rest);
    let path = after_scheme.split_once('/').map_or("", |(_, path)| path);
    let decoded = percent_decode(path);
    let name = decoded.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    match name {
        "" | "." | ".." => UNNAMED.to_owned(),
        name if name.contains('\0') => UNNAMED.to_owned(),
        name => name.to_owned(),
    }
}

fn percent_decode(text: &str) -> String {
    let hex =
        |digits: Option<&[u8]>| digits.and_then(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok());
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        match hex(bytes.get(at + 1..at + 3)).filter(|_| bytes[at] == b'%') {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_called_by_the_end_of_its_path_and_never_leads_elsewhere() {
        for (url, name) in [
            ("https://h/dir/a.tar.gz?x=/y#z", "a.tar.gz"),
            ("https://h/a%20b", "a b"),
            ("https://h/dir/", "dir"),
            ("https://h/x%2F..", UNNAMED),
            ("https://h/x%2Fy", "y"),
            ("https://h/%00", UNNAMED),
            ("https://h/100%", "100%"),
            ("https://h", UNNAMED),
            ("https://h?x/y", UNNAMED),
        ] {
            assert_eq!(file_name(url), name, "{url}");
        }
    }

    #[test]
    fn sources_are_told_apart_as_buildkit_does() {
        for (text, kind) in [
            ("HTTP://h/x", SourceKind::Web),
            ("https://h/x.git#main", SourceKind::Git),
            ("https://h/x.git.tar", SourceKind::Web),
            ("git@h:x", SourceKind::Git),
            ("dir/http:", SourceKind::Local),
        ] {
            assert_eq!(SourceKind::of(text), kind, "{text}");
        }
    }
}
