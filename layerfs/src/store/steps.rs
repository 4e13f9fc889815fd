//! Records of the build cache: small JSON documents by key; and notes, bytes of the builder that it can do without.
//!
//! Invariant: what a record names by digest is leased when the record is read. What a record means is
//! the builder's business; here only the digests in it count. A record that cannot be read is none.

use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::{AtPath, Result, StoreError};
use super::files::{Draft, check_file_name, read_if_present};
use super::lock::Lock;
use super::{Store, prune};

/// The right to carry out a step, given back when dropped or when its process ends.
#[derive(Debug)]
pub struct StepClaim {
    path: PathBuf,
    _lock: Lock,
}

impl Drop for StepClaim {
    fn drop(&mut self) {
        // Before the lock goes: who waits for it looks for a new file.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Store {
    /// The record of a step; `None` if there is none of that key and form.
    ///
    /// # Errors
    /// A key that is no file name, or what reading gives.
    pub fn step<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        let path = self.step_path(key)?;
        let Some(bytes) = read_if_present(&path)? else { return Ok(None) };
        let mut digests = Vec::new();
        prune::collect_digests(&bytes, &mut digests);
        // Between reading and leasing it may have been pruned, with all that it names.
        let bytes = self.lease.with(digests.iter().map(String::as_str), || read_if_present(&path))?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    /// Records a step, in place of what was recorded under the key. After a crash of the machine it may be missing: a
    /// part of a record is none.
    ///
    /// # Errors
    /// A key that is no file name, or what writing gives.
    pub fn put_step<T: Serialize>(&self, key: &str, record: &T) -> Result<()> {
        let path = self.step_path(key)?;
        let bytes = serde_json::to_vec(record).map_err(|source| StoreError::Json { path: path.clone(), source })?;
        self.lease.with([], || Draft::publish_derived(self.lease.directory(), [&bytes[..]], &path))
    }

    /// The right to carry out a step, which one process has at a time; `None` while another has it. It is about work
    /// done twice, not about what is right: two that carry out one step record the same.
    ///
    /// # Errors
    /// A key that is no file name, or what locking gives.
    pub fn claim_step(&self, key: &str) -> Result<Option<StepClaim>> {
        let path = self.step_path(&format!("{key}.lock"))?;
        let lock = Lock::try_exclusive(&path)?;
        Ok(lock.map(|lock| StepClaim { path, _lock: lock }))
    }

    /// Bytes that the builder noted for a later build and can do without; `None` if there are none of that name.
    ///
    /// # Errors
    /// A name that is no file name, or what reading gives.
    pub fn note(&self, name: &str) -> Result<Option<Vec<u8>>> {
        read_if_present(&self.note_path(name)?)
    }

    /// Whether there is a note of that name.
    ///
    /// # Errors
    /// As [`Store::note`].
    pub fn has_note(&self, name: &str) -> Result<bool> {
        let path = self.note_path(name)?;
        path.try_exists().at("looking for", &path)
    }

    /// Notes some bytes, in place of those that had the name. After a crash they may be missing or cut short; no digest
    /// in them keeps anything from being pruned.
    ///
    /// # Errors
    /// A name that is no file name, or what writing gives.
    pub fn put_note(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.note_path(name)?;
        self.lease.with([], || Draft::publish_derived(self.lease.directory(), [bytes], &path))
    }

    /// Removes a note, if there is one.
    ///
    /// # Errors
    /// What removing gives.
    pub fn remove_note(&self, name: &str) -> Result<()> {
        super::files::remove_if_present(&self.note_path(name)?).map(drop)
    }

    fn note_path(&self, name: &str) -> Result<PathBuf> {
        check_file_name(name, "the name of a note")?;
        Ok(self.root.join("notes").join(name))
    }

    fn step_path(&self, key: &str) -> Result<PathBuf> {
        let file_name = key.replace(':', "-");
        check_file_name(&file_name, "the key of a step")?;
        Ok(self.root.join("steps").join(file_name))
    }
}
