//! `oci-archive:` a tar of an OCI layout.
//!
//! Invariant: see the module above; the archive is made from a layout beside it when its last manifest comes.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use oci_spec::image::{Descriptor, Digest};

use super::tar_files::{TarFiles, TarWriter};
use crate::draft::{Draft, Staging, parent};
use crate::error::{Cause, Error};
use crate::index::EntryChange;
use crate::layout::{self, OciLayout};
use crate::manifest::Manifest;
use crate::place::{Content, Destination, Source, Stored};

/// An image in an `oci-archive:` that exists.
#[derive(Debug)]
pub struct OciArchiveSource {
    files: TarFiles,
    words: String,
    tag: Option<String>,
}

impl OciArchiveSource {
    /// Reads the headers of the archive.
    ///
    /// # Errors
    /// If it cannot be read or is not a tar.
    pub fn open(file: &Path, tag: Option<String>) -> Result<Self, Error> {
        Ok(Self { files: TarFiles::open(file)?, words: words(file, tag.as_deref()), tag })
    }
}

impl Source for OciArchiveSource {
    fn name(&self) -> String {
        self.words.clone()
    }

    fn manifest(&self, digest: Option<&Digest>) -> Result<Manifest, Error> {
        layout::read_manifest(&self.files, &self.words, self.tag.as_deref(), digest)
    }

    fn open_blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>, Error> {
        layout::open_blob(&self.files, &self.words, descriptor)
    }

    fn distrust(&self, _: &Descriptor) {}

    fn tagged(&self, tag: &str) -> Result<Option<Manifest>, Error> {
        layout::read_tagged(&self.files, &self.words, tag)
    }

    fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, Error> {
        layout::read_referrers(&self.files, &self.words, subject)
    }
}

/// An `oci-archive:` to be made, or replaced, with one image.
#[derive(Debug)]
pub struct OciArchiveDestination {
    file: PathBuf,
    words: String,
    staging: Staging,
    layout: OciLayout,
    /// The same image under further names.
    also: Vec<OciLayout>,
}

impl OciArchiveDestination {
    /// Prepares the archive beside its place; it appears there with its last manifest.
    ///
    /// # Errors
    /// If nothing can be written there.
    pub fn create(file: &Path, tag: Option<String>) -> Result<Self, Error> {
        let words = words(file, tag.as_deref());
        // On the file system of the archive, so that nothing else fills up.
        let staging = Staging::new_in(parent(file))
            .map_err(|error| Error::disk(format!("write {words}"), parent(file), error))?;
        let layout = OciLayout::new(staging.path(), tag);
        Ok(Self { file: file.to_owned(), words, staging, layout, also: Vec::new() })
    }

    /// Also writes this beside the image's name in `index.json`.
    #[must_use]
    pub fn described(mut self, entry: EntryChange) -> Self {
        self.layout = self.layout.described(entry);
        self
    }

    /// Gives the image one more entry in `index.json`.
    #[must_use]
    pub fn also_named(mut self, tag: String, entry: EntryChange) -> Self {
        self.also.push(OciLayout::new(self.staging.path(), Some(tag)).described(entry));
        self
    }

    /// Nobody knows the layout that the archive is made of. What failed elsewhere stays as it is.
    fn of_archive(&self, error: Error) -> Error {
        match error.cause() {
            Cause::Disk { path, .. } if path.starts_with(self.staging.path()) => {
                error.while_doing(format!("write {}", self.words))
            }
            _ => error,
        }
    }

    fn pack(&self) -> io::Result<()> {
        let out = Draft::beside(&self.file)?;
        let mut tar = TarWriter::new(io::BufWriter::new(out));
        add_directory(&mut tar, self.staging.path(), "")?;
        tar.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?.publish(&self.file)
    }
}

impl Destination for OciArchiveDestination {
    fn name(&self) -> String {
        self.words.clone()
    }

    fn has_blob(&self, descriptor: &Descriptor) -> Result<bool, Error> {
        self.layout.has_blob(descriptor)
    }

    fn put_blob(&self, descriptor: &Descriptor, content: &dyn Content) -> Result<Stored, Error> {
        self.layout.put_blob(descriptor, content).map_err(|error| self.of_archive(error))
    }

    fn put_manifest(&self, manifest: &Manifest, is_top: bool) -> Result<(), Error> {
        self.layout.put_manifest(manifest, is_top).map_err(|error| self.of_archive(error))?;
        if !is_top {
            return Ok(());
        }
        for name in &self.also {
            name.put_manifest(manifest, true)?;
        }
        self.pack().map_err(|error| Error::disk(format!("write {}", self.words), &self.file, error))
    }

    fn beside(&self) -> Result<Box<dyn Source + '_>, Error> {
        self.layout.beside()
    }

    fn put_tagged(&self, manifest: &Manifest, tag: &str) -> Result<(), Error> {
        self.layout.put_tagged(manifest, tag).map_err(|error| self.of_archive(error))
    }
}

fn words(file: &Path, tag: Option<&str>) -> String {
    let tag = tag.map_or(String::new(), |tag| format!(":{tag}"));
    format!("oci-archive:{}{tag}", file.display())
}

/// Adds what lies in a directory, in the order of the names' bytes.
fn add_directory<W: io::Write>(tar: &mut TarWriter<W>, directory: &Path, prefix: &str) -> io::Result<()> {
    let mut names = std::fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<Vec<String>>>()?;
    names.sort();
    for name in names {
        let (path, entry_name) = (directory.join(&name), format!("{prefix}{name}"));
        if path.is_dir() {
            tar.directory(&entry_name)?;
            add_directory(tar, &path, &format!("{entry_name}/"))?;
        } else {
            let file = File::open(&path)?;
            tar.file(&entry_name, file.metadata()?.len(), file)?;
        }
    }
    Ok(())
}
