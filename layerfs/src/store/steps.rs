//! Records of the build cache: small JSON documents by key.
//!
//! Invariant: what a record names by digest is leased when the record is read. What a record means is
//! the builder's business; here only the digests in it count. A record that cannot be read is none.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::{Result, StoreError};
use super::files::{Draft, check_file_name, read_if_present};
use super::{Store, prune};

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

    /// Records a step, in place of what was recorded under the key.
    ///
    /// # Errors
    /// A key that is no file name, or what writing gives.
    pub fn put_step<T: Serialize>(&self, key: &str, record: &T) -> Result<()> {
        let path = self.step_path(key)?;
        let bytes = serde_json::to_vec(record).map_err(|source| StoreError::Json { path: path.clone(), source })?;
        self.lease.with([], || Draft::publish_bytes(self.lease.directory(), &bytes, &path))
    }

    fn step_path(&self, key: &str) -> Result<std::path::PathBuf> {
        let file_name = key.replace(':', "-");
        check_file_name(&file_name, "the key of a step")?;
        Ok(self.root.join("steps").join(file_name))
    }
}
