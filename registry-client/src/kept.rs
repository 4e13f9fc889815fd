//! An upload session that is open at a registry, on disk: after a kill the next push asks how far it came, and goes on.
//!
//! ```text
//! DIRECTORY/sha256-<hex>-<registry and repository, digested>.upload      the session's URL
//! ```
//!
//! Invariant: one process at a time holds the lock of a file, and only its holder uses the session. The URL may carry a
//! registry's secret state, so the file is its owner's alone. It may be deleted at any moment.

use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

use oci_spec::image::Descriptor;

use crate::digest::digest_of;
use crate::place::Origin;
use crate::spool::open_locked;
use crate::url::Url;

/// The place of one session's URL, locked.
#[derive(Debug)]
pub(crate) struct KeptSession {
    file: File,
    path: PathBuf,
}

/// No registry's URL is longer.
const URL_LIMIT_BYTES: u64 = 64 << 10;

impl KeptSession {
    /// The place for a blob on its way to a repository; `None` while another process pushes it there. A session that
    /// cannot be kept costs an upload after a kill and nothing else, so a failure is none of the push.
    pub(crate) fn open(directory: &Path, to: &Origin, descriptor: &Descriptor) -> Option<Self> {
        let path = path(directory, to, descriptor);
        let open = || {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            open_locked(&path)
        };
        let file = open().unwrap_or_else(|error: io::Error| {
            tracing::debug!(path = %path.display(), %error, "an upload session is not kept");
            None
        });
        file.map(|file| Self { file, path })
    }

    /// Forgets what a process that was killed kept of a blob that the repository has by now.
    pub(crate) fn forget_of_stored(directory: &Path, to: &Origin, descriptor: &Descriptor) {
        let path = path(directory, to, descriptor);
        if let Some(kept) = path.exists().then(|| Self::open(directory, to, descriptor)).flatten() {
            kept.forget();
        }
    }

    /// What was kept there by a process that is gone.
    pub(crate) fn url(&self) -> Option<Url> {
        let mut text = String::new();
        (&self.file).take(URL_LIMIT_BYTES).read_to_string(&mut text).ok()?;
        Url::parse(text.strip_suffix('\n')?).ok()
    }

    /// Keeps the URL where the session goes on.
    pub(crate) fn keep(&self, url: &Url) {
        // What is written in part has no end of line, and is not read.
        let text = format!("{}\n", url.to_wire());
        let written = self.file.set_len(0).and_then(|()| self.file.write_all_at(text.as_bytes(), 0));
        if let Err(error) = written {
            tracing::debug!(path = %self.path.display(), %error, "an upload session is not kept");
        }
    }

    /// There is no session now, but there may be another one.
    pub(crate) fn clear(&self) {
        // What stays is asked about once, in vain.
        let _ = self.file.set_len(0);
    }

    /// Forgets the session: it ended.
    pub(crate) fn forget(&self) {
        // One that stays behind is asked about once, in vain.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn path(directory: &Path, to: &Origin, descriptor: &Descriptor) -> PathBuf {
    let digest = descriptor.digest();
    let repository = digest_of(format!("{}/{}", to.registry, to.repository).as_bytes());
    directory.join(format!("{}-{}-{}.upload", digest.algorithm(), digest.digest(), &repository.digest()[..16]))
}

#[cfg(test)]
mod tests {
    use oci_spec::image::MediaType;

    use super::*;

    #[test]
    fn the_session_of_a_blob_that_is_there_is_forgotten_unless_somebody_uses_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let to = Origin { registry: "r.example".to_owned(), repository: "a".to_owned() };
        let blob = Descriptor::new(MediaType::ImageLayer, 1, digest_of(b"x"));
        let files = || std::fs::read_dir(directory.path()).expect("readable").count();
        KeptSession::forget_of_stored(directory.path(), &to, &blob);
        assert_eq!(files(), 0, "nothing is made to be forgotten");
        let kept = KeptSession::open(directory.path(), &to, &blob).expect("free");
        KeptSession::forget_of_stored(directory.path(), &to, &blob);
        assert_eq!(files(), 1, "it is in use");
        drop(kept);
        KeptSession::forget_of_stored(directory.path(), &to, &blob);
        assert_eq!(files(), 0);
    }
}
