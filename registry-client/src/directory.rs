//! skopeo's `dir:`: one image as plain files, for looking at and for tools that know no layout.
//!
//! ```text
//! version                        the version of this form
//! manifest.json                  the manifest, byte for byte
//! <hex>                          a blob
//! <hex>.manifest.json            a manifest that an index points to
//! [<hex>.]signature-<number>     a signature of the manifest, or of one that an index points to
//! ```
//!
//! Invariant: every file appears whole, `manifest.json` last. What was there of another image goes after that; a
//! directory of other things is left alone. (containers-transports(5); the form has no digests but SHA-256.)

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use oci_spec::image::{Descriptor, Digest};

use crate::digest::VerifyingReader;
use crate::draft::Draft;
use crate::error::{Cause, Error};
use crate::layout::{Directory, Files, missing_or, read_small, replace};
use crate::manifest::Manifest;
use crate::place::{Content, Destination, Source, Stored};
use crate::signature;

const VERSION_FILE: &str = "version";
const VERSION: &str = "Directory Transport Version: 1.1\n";
const MANIFEST_FILE: &str = "manifest.json";

/// A directory that holds one image, in skopeo's form.
#[derive(Debug)]
pub struct ImageDirectory {
    path: PathBuf,
    /// The files of the image that is being put.
    put: Mutex<HashSet<String>>,
}

impl ImageDirectory {
    /// Names a directory; as a destination it is made when something is put there.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), put: Mutex::default() }
    }

    fn words(&self) -> String {
        format!("dir:{}", self.path.display())
    }

    fn files(&self) -> Directory<'_> {
        Directory(&self.path)
    }

    fn disk(&self, path: &Path, source: io::Error) -> Error {
        Error::from_io(format!("write to {}", self.words()), path, source)
    }

    /// Makes the directory, unless it holds other things.
    fn prepare(&self) -> Result<(), Error> {
        // One thread at a time: what another one put there since is no other thing.
        let _one = self.put.lock().unwrap_or_else(PoisonError::into_inner);
        let version = self.path.join(VERSION_FILE);
        match std::fs::read_to_string(&version) {
            Ok(found) if found.starts_with("Directory Transport Version: 1.") => return Ok(()),
            Ok(_) => return Err(self.taken("its version is not known")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(self.disk(&version, error)),
        }
        std::fs::create_dir_all(&self.path).map_err(|error| self.disk(&self.path, error))?;
        let mut entries = std::fs::read_dir(&self.path).map_err(|error| self.disk(&self.path, error))?;
        // Of another process that is here at the same time.
        let is_ours = |name: &str| name == VERSION_FILE || name.starts_with(".new-");
        if entries.any(|entry| entry.is_ok_and(|entry| entry.file_name().to_str().is_none_or(|name| !is_ours(name)))) {
            return Err(self.taken("it holds files that are none of an image"));
        }
        replace(&version, VERSION.as_bytes()).map_err(|error| self.disk(&version, error))
    }

    fn taken(&self, why: &str) -> Error {
        Error::local(format!("write to {}", self.words()), Cause::Input(format!("{why}; name another directory")))
    }

    fn write(&self, name: String, fill: impl FnOnce(&mut Draft) -> io::Result<()>) -> Result<(), Error> {
        self.prepare()?;
        let path = self.path.join(&name);
        let write = || {
            let mut draft = Draft::new_in(&self.path)?;
            fill(&mut draft)?;
            draft.publish(&path)
        };
        write().map_err(|error| self.disk(&path, error))?;
        self.note(name);
        Ok(())
    }

    fn note(&self, name: String) {
        self.put.lock().unwrap_or_else(PoisonError::into_inner).insert(name);
    }

    /// Removes the files of the image that was here before.
    fn sweep(&self) -> io::Result<()> {
        let put = self.put.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name();
            let is_stale = name.to_str().is_some_and(|name| is_of_image(name) && !put.contains(name));
            if is_stale {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

/// Whether a file is a blob, a manifest below an index or a signature.
fn is_of_image(name: &str) -> bool {
    let is_digest =
        |hex: &str| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    let is_signature = |name: &str| {
        let number = name.strip_prefix("signature-").unwrap_or_default();
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    };
    match name.split_once('.') {
        Some((hex, kind)) => is_digest(hex) && (kind == "manifest.json" || is_signature(kind)),
        None => is_digest(name) || is_signature(name),
    }
}

/// The name of a blob.
fn hex(digest: &Digest, doing: impl Fn() -> String) -> Result<&str, Error> {
    match digest.algorithm().as_ref() {
        "sha256" => Ok(digest.digest()),
        other => Err(Error::local(doing(), Cause::Input(format!("a dir: has no names for digests of {other}")))),
    }
}

impl Source for ImageDirectory {
    fn name(&self) -> String {
        self.words()
    }

    fn manifest(&self, digest: Option<&Digest>) -> Result<Manifest, Error> {
        let doing = || format!("read a manifest of {}", self.words());
        let named = || read_small(&self.files(), &self.words(), MANIFEST_FILE);
        let manifest = match digest {
            None => Manifest::new(None, named()?),
            Some(digest) => {
                let own = read_small(&self.files(), &self.words(), &format!("{}.manifest.json", hex(digest, doing)?));
                Manifest::known_as(digest, None, own.or_else(|error| named().map_err(|_| error))?)
            }
        };
        manifest.map_err(|cause| Error::local(doing(), cause))
    }

    fn open_blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>, Error> {
        let doing = || format!("open the blob {} of {}", descriptor.digest(), self.words());
        let name = hex(descriptor.digest(), doing)?;
        let (content, _) = self.files().open(name).map_err(|error| missing_or(doing(), name, error))?;
        Ok(Box::new(VerifyingReader::new(content, descriptor)?))
    }

    fn distrust(&self, _: &Descriptor) {}

    fn gpg_signatures(&self, subject: &Digest) -> Result<Vec<Vec<u8>>, Error> {
        let is_top = self.manifest(None)?.digest() == subject;
        let prefix = if is_top { String::new() } else { format!("{}.", subject.digest()) };
        let mut found = signature::files(&self.path, &prefix)?;
        // What begins so is cosign's.
        found.retain(|signature| signature.first() != Some(&0));
        Ok(found)
    }
}

impl Destination for ImageDirectory {
    fn name(&self) -> String {
        self.words()
    }

    fn has_blob(&self, descriptor: &Descriptor) -> Result<bool, Error> {
        let name = hex(descriptor.digest(), || format!("write to {}", self.words()))?;
        let path = self.path.join(name);
        match std::fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_file() && metadata.len() == descriptor.size() => {
                self.note(name.to_owned());
                Ok(true)
            }
            Ok(_) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.disk(&path, error)),
        }
    }

    fn put_blob(&self, descriptor: &Descriptor, content: &dyn Content) -> Result<Stored, Error> {
        let name = hex(descriptor.digest(), || format!("write to {}", self.words()))?;
        self.write(name.to_owned(), |draft| content.fill(draft))?;
        Ok(Stored::Sent)
    }

    fn keeps_gpg_signatures(&self) -> Result<(), Error> {
        Ok(())
    }

    fn put_gpg_signatures(&self, subject: &Digest, is_top: bool, signatures: &[Vec<u8>]) -> Result<(), Error> {
        let of = match is_top {
            true => String::new(),
            false => format!("{}.", hex(subject, || format!("write to {}", self.words()))?),
        };
        signatures.iter().enumerate().try_for_each(|(number, signature)| {
            self.write(format!("{of}signature-{}", number + 1), |draft| draft.write_all(signature))
        })
    }

    fn put_manifest(&self, manifest: &Manifest, is_top: bool) -> Result<(), Error> {
        if !is_top {
            let name = hex(manifest.digest(), || format!("write to {}", self.words()))?;
            return self.write(format!("{name}.manifest.json"), |draft| draft.write_all(manifest.bytes()));
        }
        self.write(MANIFEST_FILE.to_owned(), |draft| draft.write_all(manifest.bytes()))?;
        self.sweep().map_err(|error| self.disk(&self.path, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_an_image_are_swept() {
        let hex = "0123456789abcdef".repeat(4);
        assert!(is_of_image(&hex) && is_of_image(&format!("{hex}.manifest.json")) && is_of_image("signature-1"));
        assert!(is_of_image(&format!("{hex}.signature-12")));
        for other in ["manifest.json", "version", "signature-", "signature-x", &hex[1..], &hex.to_uppercase(), ""] {
            assert!(!is_of_image(other), "{other}");
        }
    }
}
