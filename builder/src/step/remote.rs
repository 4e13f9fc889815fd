//! ADD of a URL: the file is fetched into the store as a blob, so that what a layer takes from it was digested; a git
//! repository is fetched as a layer.
//!
//! Invariant: a layer depends on the bytes that came and on nothing that a server says of them. ETags are not trusted;
//! `Last-Modified` counts only where a build keeps real times.

use std::io;
use std::sync::Arc;

use layerfs::{Digest, Time};
use oci_spec::image::{Descriptor, DigestAlgorithm, MediaType};
use registry_client::{VerifyingReader, percent_decode};

use crate::building::Builder;
use crate::changeset::{Content, Node, Owner};
use crate::error::{BuildError, Site};
use crate::fetch::{Fetched, GitReference, shown};

/// The name of a file whose URL has none, as in BuildKit.
const UNNAMED: &str = "__unnamed__";
/// The name of one whose own leads elsewhere or cannot be shown.
const UNSAFE: &str = "download";

/// How the sources of one ADD are fetched.
pub(crate) struct Sources<'a> {
    pub(crate) builder: &'a Builder<'a>,
    /// `--checksum`, expanded.
    pub(crate) checksum: Option<(String, Site)>,
    /// `--keep-git-dir`.
    pub(crate) keep_git_dir: Option<bool>,
    /// The newest time in the layer.
    pub(crate) epoch: Option<i64>,
}

impl Sources<'_> {
    /// Fetches a file.
    pub(crate) fn file(&self, url: &str, site: &Site) -> Result<Remote, BuildError> {
        let expected = self.checksum.as_ref().map(|(text, site)| checksum(text, site)).transpose()?;
        Remote::fetch(self.builder, url, expected.as_ref(), self.epoch, site)
    }

    /// Fetches a repository. What the flags say and what the URL says may not contradict each other.
    pub(crate) fn repository(&self, mut reference: GitReference, site: &Site) -> Result<Fetched, BuildError> {
        if let (Some(flag), Some(query)) = (self.keep_git_dir, reference.keep_git_dir)
            && flag != query
        {
            return Err(site.error("inconsistent keep-git-dir configuration").into());
        }
        if let Some((checksum, site)) = &self.checksum {
            if reference.checksum.as_ref().is_some_and(|query| query != checksum) {
                let query = reference.checksum.unwrap_or_default();
                return Err(site.error(format!("checksum mismatch {checksum:?} != {query:?}")).into());
            }
            if checksum.is_empty() || !checksum.bytes().all(|c| c.is_ascii_hexdigit()) {
                let message = format!("invalid checksum {checksum:?} for a git URL, expected hex commit hash");
                return Err(site.error(message).into());
            }
            reference.checksum = Some(checksum.clone());
        }
        let keeps_git_dir = self.keep_git_dir.or(reference.keep_git_dir).unwrap_or(false);
        self.builder.shared.fetcher.repository(&reference, keeps_git_dir).map_err(site.of())
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
    fn fetch(
        builder: &Builder<'_>,
        url: &str,
        expected: Option<&Digest>,
        epoch: Option<i64>,
        site: &Site,
    ) -> Result<Self, BuildError> {
        let at = |seconds| Time { seconds, nanoseconds: 0 };
        // Where real times count, the server has to be asked for its own.
        if let (Some(digest), Some(epoch)) = (expected, epoch)
            && *digest.algorithm() == DigestAlgorithm::Sha256
            && builder.store.has_blob(digest)?
        {
            return Self::of_blob(builder, url, digest.clone(), at(epoch));
        }
        let blob = builder.shared.fetcher.blob(url).map_err(site.of())?;
        let digest = blob.digest;
        let file = Self::of_blob(builder, url, digest, at(epoch.or(blob.modified_seconds).unwrap_or(0)))?;
        if let Some(expected) = expected {
            file.verify(expected, url, site)?;
        }
        Ok(file)
    }

    fn of_blob(builder: &Builder<'_>, url: &str, digest: Digest, modified: Time) -> Result<Self, BuildError> {
        let blob = builder.store.open_blob(&digest)?;
        let size_bytes = blob.size_bytes;
        let content = Content::Range(Arc::new(blob.file), 0, size_bytes);
        Ok(Self { name: file_name(url), digest, content, size_bytes, modified })
    }

    /// Compares the bytes with a digest of any kind that there is.
    fn verify(&self, expected: &Digest, url: &str, site: &Site) -> Result<(), BuildError> {
        let mismatch = |found: &dyn std::fmt::Display| {
            site.error(format!("digest mismatch: {} has the digest {found}, not {expected}", shown(url)))
        };
        if *expected.algorithm() == DigestAlgorithm::Sha256 {
            return if *expected == self.digest { Ok(()) } else { Err(mismatch(&self.digest).into()) };
        }
        let media_type = MediaType::Other("application/octet-stream".to_owned());
        let descriptor = Descriptor::new(media_type, self.size_bytes, expected.clone());
        let mut reader = VerifyingReader::new(self.content.reader(), &descriptor).map_err(site.because())?;
        // The file came as a whole and was digested: only the other digest can fail.
        io::copy(&mut reader, &mut io::sink()).map_err(|_| mismatch(&self.digest))?;
        Ok(())
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
fn checksum(text: &str, site: &Site) -> Result<Digest, BuildError> {
    let wrong = |_| site.error(format!("invalid checksum digest format {text:?}: it is none as sha256:<hex>"));
    let digest: Digest = text.parse().map_err(wrong)?;
    match digest.algorithm() {
        DigestAlgorithm::Sha256 | DigestAlgorithm::Sha384 | DigestAlgorithm::Sha512 => Ok(digest),
        other => {
            let known = "sha256, sha384 or sha512";
            Err(site.error(format!("unsupported digest algorithm {other} in checksum: it can be {known}")).into())
        }
    }
}

/// The last part of the URL's path, percent-decoded; never one that leads elsewhere.
fn file_name(url: &str) -> String {
    let after_scheme = shown(url).split_once("://").map_or("", |(_, rest)| rest);
    let path = after_scheme.split_once('/').map_or("", |(_, path)| path);
    let decoded = String::from_utf8_lossy(&percent_decode(path)).into_owned();
    let name = decoded.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    match name {
        "" | "." => UNNAMED.to_owned(),
        ".." => UNSAFE.to_owned(),
        name if name.contains(char::is_control) => UNSAFE.to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::SourceKind;

    #[test]
    fn a_file_is_called_by_the_end_of_its_path_and_never_leads_elsewhere() {
        for (url, name) in [
            ("https://h/dir/a.tar.gz?x=/y#z", "a.tar.gz"),
            ("https://h/a%20b", "a b"),
            ("https://h/dir/", "dir"),
            ("https://h/x%2F..", UNSAFE),
            ("https://h/x%2Fy", "y"),
            ("https://h/%00", UNSAFE),
            ("https://h/100%", "100%"),
            ("https://h/a%+f", "a%+f"),
            ("https://h", UNNAMED),
            ("https://h?x/y", UNNAMED),
        ] {
            assert_eq!(file_name(url), name, "{url}");
        }
    }

    #[test]
    fn sources_are_told_apart_as_buildkit_does() {
        for (text, kind) in [
            ("HTTP://h/x", "web"),
            ("https://h/x.git#main", "git"),
            ("https://h/x.git.tar", "web"),
            ("git@h:x", "git"),
            ("dir/http:", "local"),
            ("github.com/o/x", "local"),
        ] {
            let found = match SourceKind::of(text).expect("valid") {
                SourceKind::Local => "local",
                SourceKind::Web => "web",
                SourceKind::Git(_) => "git",
            };
            assert_eq!(found, kind, "{text}");
        }
    }
}
