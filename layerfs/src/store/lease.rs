//! What a session uses, so that garbage collection in another process leaves it alone.
//!
//! Invariant: a digest is written to the lease under the shared lock of the store *before* its file is
//! looked for or published, and collection holds that lock exclusively: what a session has seen is
//! leased. A lease counts while its file is locked, so it ends with its process. A session that cannot
//! write holds that lock shared instead, from begin to end.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::error::{AtPath, Result};
use super::files::read_if_present;
use super::lock::Lock;
use super::uppers;

/// The lease of one session, and its directory for what is not yet published.
#[derive(Debug)]
pub(super) struct Lease {
    root: PathBuf,
    directory: PathBuf,
    hold: Hold,
}

/// How collection is kept away from what a session has seen.
#[derive(Debug)]
enum Hold {
    /// By its digests.
    Digests {
        /// Locked exclusively as long as the session lives; one digest in hexadecimal a line.
        file: Mutex<File>,
        held: Mutex<HashSet<String>>,
    },
    /// Where no lease can be written: the lock of the store is held shared for all of the session.
    All { _lock: Lock },
}

impl Lease {
    /// Starts a session.
    pub(super) fn new(root: &Path) -> Result<Self> {
        let _lock = Lock::shared(&root.join("lock"))?;
        let directory = new_directory(&root.join("tmp"))?;
        let path = directory.join("lease");
        let file = File::options().append(true).create_new(true).open(&path).at("creating the lease", &path)?;
        file.lock().at("locking the lease", &path)?;
        let hold = Hold::Digests { file: Mutex::new(file), held: Mutex::default() };
        Ok(Self { root: root.to_owned(), directory, hold })
    }

    /// Starts a session with a store that cannot be written: what it would write fails, with the system's reason.
    pub(super) fn of_read_only(root: &Path) -> Result<Self> {
        let hold = Hold::All { _lock: Lock::shared_of_existing(&root.join("lock"))? };
        Ok(Self { root: root.to_owned(), directory: root.join("tmp"), hold })
    }

    /// Whether nothing can be written.
    pub(super) fn is_read_only(&self) -> bool {
        matches!(self.hold, Hold::All { .. })
    }

    /// Where drafts of this session are born.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Leases some digests (their hexadecimal part, of blobs, layers or trees alike), then does something
    /// that garbage collection must not come in between.
    pub(super) fn with<'a, T>(
        &self,
        digests: impl IntoIterator<Item = &'a str>,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let Hold::Digests { file, held } = &self.hold else { return work() };
        let _lock = Lock::shared(&self.root.join("lock"))?;
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        let new: Vec<&str> = digests.into_iter().filter(|digest| !held.contains(*digest)).collect();
        if !new.is_empty() {
            let lines = new.iter().flat_map(|digest| [digest, "\n"]).collect::<String>();
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            file.write_all(lines.as_bytes()).at("writing the lease", &self.directory)?;
            held.extend(new.into_iter().map(str::to_owned));
        }
        drop(held);
        work()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Hold::Digests { file, .. } = &mut self.hold else { return };
        let file = file.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = file.unlock(); // closing the file would do, if no child had a copy
        // What remains is swept with the next opening.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Makes a directory of a name that is not taken, and that this process never gives again: whoever still removes the
/// directory that had it would take the new one along.
pub(super) fn new_directory(parent: &Path) -> Result<PathBuf> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let process = std::process::id();
    // Numbers of processes come again, in containers all the time: the name that is free wins.
    loop {
        let path = parent.join(format!("{process}-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            created => return created.at("creating the directory", &path).map(|()| path),
        }
    }
}

/// The digests of all live sessions; removes what dead ones left. The caller holds the store's lock exclusively.
pub(super) fn live(root: &Path) -> Result<HashSet<String>> {
    let mut digests = HashSet::new();
    let parent = root.join("tmp");
    for entry in fs::read_dir(&parent).at("listing", &parent)? {
        let directory = entry.at("listing", &parent)?.path();
        let lease = directory.join("lease");
        if Lock::is_free(&lease)? {
            // What another user left is not ours to remove.
            let _ = uppers::remove_forced(&directory);
            continue;
        }
        // A session may end at any moment, and takes its lease with it.
        let text = read_if_present(&lease)?.unwrap_or_default();
        digests.extend(String::from_utf8_lossy(&text).lines().map(str::to_owned));
    }
    Ok(digests)
}

/// Removes what dead sessions left, unless the store is busy.
pub(super) fn sweep_if_idle(root: &Path) -> Result<()> {
    if let Some(_lock) = Lock::try_exclusive(&root.join("lock"))? {
        // What cannot be read hinders nobody but garbage collection, which says so.
        let _ = live(root);
        for path in uppers::directories(root)? {
            if uppers::is_abandoned(&path)? {
                // Outside of their user namespace some files cannot be removed; inside, the next opening does it.
                let _ = uppers::remove_forced(&path);
            }
        }
    }
    Ok(())
}

/// Removes a file or a directory with all that is in it; none is fine.
pub(super) fn remove_tree(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.at("removing", path),
    }
}
