//! Advisory locks on files, held until dropped, and by the kernel no longer than their process lives.
//!
//! Invariant: dropping unlocks at once, even while a child between fork and exec has a copy of the file.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

use super::error::{AtPath, Result};

/// A lock that is held.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
}

impl Lock {
    /// Waits until nobody else holds a lock on the file.
    pub(super) fn exclusive(path: &Path) -> Result<Self> {
        let file = open(path)?;
        file.lock().at("locking", path)?;
        Ok(Self { file })
    }

    /// Waits until nobody holds an exclusive lock on the file.
    pub(super) fn shared(path: &Path) -> Result<Self> {
        let file = open(path)?;
        file.lock_shared().at("locking", path)?;
        Ok(Self { file })
    }

    /// The same of a file that need not be writable, and is never made.
    pub(super) fn shared_of_existing(path: &Path) -> Result<Self> {
        let file = File::open(path).at("opening the lock", path)?;
        file.lock_shared().at("locking", path)?;
        Ok(Self { file })
    }

    /// An exclusive lock if nobody holds any.
    pub(super) fn try_exclusive(path: &Path) -> Result<Option<Self>> {
        let file = open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error).at("locking", path),
        }
    }

    /// Whether nobody holds a lock on the file; one that is not there, nobody holds.
    pub(super) fn is_free(path: &Path) -> Result<bool> {
        // Never made here: its directory may be on its way out, and would stay.
        match File::options().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error).at("opening the lock", path),
            Ok(file) => match file.try_lock() {
                Ok(()) => Ok(true),
                Err(TryLockError::WouldBlock) => Ok(false),
                Err(TryLockError::Error(error)) => Err(error).at("locking", path),
            },
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = self.file.unlock(); // closing the file would do, if no child had a copy
    }
}

fn open(path: &Path) -> Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).open(path).at("opening the lock", path)
}
