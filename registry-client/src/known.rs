//! Which repositories of a registry have a blob, as far as we saw it: from one of them the registry may take it by
//! itself, and nothing is sent.
//!
//! ```text
//! DIRECTORY/<registry>       lines "<digest> <repository>", the newest last; "-" in front takes one back
//! ```
//!
//! Invariant: what is known here is a hint. A wrong or lost line costs a request or an upload, never a wrong image, so
//! nothing is locked or synced: lines are appended whole.

use std::collections::HashMap;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use oci_spec::image::Digest;

use crate::draft::{Draft, parent};
use crate::place::Origin;

/// What is known of all registries.
#[derive(Debug, Default)]
pub(crate) struct KnownBlobs {
    directory: Option<PathBuf>,
    registries: Mutex<HashMap<String, Registry>>,
}

/// Digests with their repositories, the newest last.
type Registry = HashMap<String, Vec<String>>;

/// Of one blob; the first that is tried mostly serves.
const REPOSITORIES_LIMIT: usize = 4;
/// A file that has grown beyond this is halved: thirty thousand blobs.
const FILE_LIMIT_BYTES: u64 = 4 << 20;

impl KnownBlobs {
    /// Kept in a directory, or only as long as this value.
    pub(crate) fn new(directory: Option<PathBuf>) -> Self {
        Self { directory, registries: Mutex::default() }
    }

    /// The repositories of a registry that have a blob, the newest first.
    pub(crate) fn repositories(&self, registry: &str, digest: &Digest) -> Vec<String> {
        let mut registries = self.lock();
        let known = self.registry(&mut registries, registry);
        known.get(digest.as_ref()).into_iter().flatten().rev().cloned().collect()
    }

    /// A repository has a blob.
    pub(crate) fn note(&self, at: &Origin, digest: &Digest) {
        self.change(at, digest, true);
    }

    /// A repository does not have it after all.
    pub(crate) fn forget(&self, at: &Origin, digest: &Digest) {
        self.change(at, digest, false);
    }

    fn change(&self, at: &Origin, digest: &Digest, is_there: bool) {
        let mut registries = self.lock();
        let known = self.registry(&mut registries, &at.registry);
        if known.get(digest.as_ref()).is_some_and(|all| all.contains(&at.repository)) == is_there {
            return;
        }
        let sign = if is_there { "" } else { "-" };
        let line = format!("{sign}{digest} {}\n", at.repository);
        apply(known, &line);
        let Some(directory) = &self.directory else { return };
        let append = || {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            let path = directory.join(file_name(&at.registry));
            let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
            file.write_all(line.as_bytes())
        };
        if let Err(error) = append() {
            tracing::debug!(directory = %directory.display(), %error, "where a blob lies is not kept");
        }
    }

    fn registry<'a>(&self, registries: &'a mut HashMap<String, Registry>, registry: &str) -> &'a mut Registry {
        registries.entry(registry.to_owned()).or_insert_with(|| {
            let path = self.directory.as_ref().map(|directory| directory.join(file_name(registry)));
            path.and_then(|path| read(&path).ok()).unwrap_or_default()
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Registry>> {
        // A map of hints is good enough whoever panicked.
        self.registries.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

/// A registry's name has letters, digits, `.`, `-`, `:` and brackets.
fn file_name(registry: &str) -> String {
    format!("{registry}.blobs")
}

fn read(path: &Path) -> io::Result<Registry> {
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    let size_bytes = file.metadata()?.len();
    file.take(2 * FILE_LIMIT_BYTES).read_to_string(&mut text)?;
    if size_bytes > FILE_LIMIT_BYTES {
        let half = text[text.len() / 2..].find('\n').map_or(text.len(), |end| text.len() / 2 + end + 1);
        text.drain(..half);
        let mut draft = Draft::with_mode(parent(path), 0o600)?;
        draft.write_all(text.as_bytes())?;
        draft.publish(path)?;
    }
    let mut registry = Registry::new();
    text.split_inclusive('\n').for_each(|line| apply(&mut registry, line));
    Ok(registry)
}

/// What a line says; one that is cut or not understood says nothing.
fn apply(registry: &mut Registry, line: &str) {
    let Some((digest, repository)) = line.strip_suffix('\n').and_then(|line| line.split_once(' ')) else { return };
    let (is_there, digest) = digest.strip_prefix('-').map_or((true, digest), |digest| (false, digest));
    let repositories = registry.entry(digest.to_owned()).or_default();
    repositories.retain(|known| known != repository);
    if is_there {
        repositories.push(repository.to_owned());
        if repositories.len() > REPOSITORIES_LIMIT {
            repositories.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::digest_of;

    fn at(repository: &str) -> Origin {
        Origin { registry: "r.example:5000".to_owned(), repository: repository.to_owned() }
    }

    #[test]
    fn what_one_process_saw_the_next_one_knows_the_newest_first() {
        let directory = tempfile::tempdir().expect("a directory");
        let digest = digest_of(b"x");
        let open = || KnownBlobs::new(Some(directory.path().to_owned()));
        let known = open();
        ["a", "b", "a", "c/d"].iter().for_each(|repository| known.note(&at(repository), &digest));
        known.forget(&at("b"), &digest);
        for known in [known, open()] {
            assert_eq!(known.repositories("r.example:5000", &digest), ["c/d", "a"]);
            assert!(known.repositories("other.example", &digest).is_empty());
            assert!(known.repositories("r.example:5000", &digest_of(b"y")).is_empty());
        }
    }

    #[test]
    fn a_file_that_is_damaged_or_too_long_is_read_as_far_as_it_goes() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("r.example:5000.blobs");
        let digest = digest_of(b"x");
        let line = format!("{digest} new\n");
        let text = format!("rubbish\n{}{line}{digest} cut", format!("{} old\n", digest_of(b"y")).repeat(60_000));
        std::fs::write(&path, text).expect("written");
        let known = KnownBlobs::new(Some(directory.path().to_owned()));
        assert_eq!(known.repositories("r.example:5000", &digest), ["new"]);
        let size_bytes = std::fs::metadata(&path).expect("there").len();
        assert!(size_bytes < FILE_LIMIT_BYTES, "{size_bytes}");
    }
}
