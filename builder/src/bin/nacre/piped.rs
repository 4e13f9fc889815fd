//! Archives that come or go through a pipe.
//!
//! Invariant: one that is written is whole before its first byte goes out, and one that is read is whole before anything
//! is taken from it. Meanwhile it lies among the store's temporary files: whoever is interrupted leaves it to the
//! sweeper.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::PathBuf;

use anyhow::Context;
use layerfs::Store;
use tempfile::TempDir;

use crate::report::OutputClosed;

/// A place for one archive; it ends with this value.
pub(crate) struct Piped {
    directory: TempDir,
}

impl Piped {
    pub(crate) fn new(store: &Store) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("pipe-").tempdir_in(store.temporary());
        Ok(Self { directory: directory.context("cannot make room for the archive in the store")? })
    }

    /// Where it lies.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("archive.tar")
    }

    /// Takes it from standard input.
    pub(crate) fn read(&self) -> anyhow::Result<()> {
        let copied = File::create(self.path()).and_then(|mut file| io::copy(&mut io::stdin().lock(), &mut file));
        copied.map(drop).context("cannot keep what comes from standard input")
    }

    /// Sends it to standard output.
    pub(crate) fn write(&self) -> anyhow::Result<()> {
        let file = File::open(self.path()).with_context(|| format!("cannot read {}", self.path().display()));
        match io::copy(&mut file?, &mut io::stdout().lock()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(OutputClosed.into()),
            copied => copied.map(drop).context("cannot write to standard output"),
        }
    }
}
