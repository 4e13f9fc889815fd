//! Upper directories: where the changes of a mounted tree are kept.
//!
//! Invariant: an upper is locked by at most one process. A kept one stays until it is removed, and
//! keeps its layers; a temporary one ends with the process that made it.
//!
//! ```text
//! uppers/<id>/upper    the upper directory of the union
//! uppers/<id>/work     its work directory, on the same file system
//! uppers/<id>/scratch  mount points and sockets of its user
//! uppers/<id>/stack    diff ids of the layers below, lowest first, one a line
//! uppers/<id>/lock     locked while it is in use
//! uppers/<id>/temporary   in place of `stack` if it is not to be kept
//! ```

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::Store;
use super::error::{AtPath, Result, StoreError};
use super::files::{check_file_name, read_if_present};
use super::lease::new_directory;
use super::lock::Lock;
use crate::digest::DiffId;

/// How long an upper is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpperLife {
    /// Until it is removed.
    Kept,
    /// As long as this process; for the steps of a build.
    Temporary,
}

/// An upper that this process holds.
#[derive(Debug)]
pub struct Upper {
    path: PathBuf,
    stack: Vec<DiffId>,
    life: UpperLife,
    _lock: Lock,
}

impl Store {
    /// Makes an upper over a stack of layers, lowest first.
    ///
    /// # Errors
    /// What writing gives.
    pub fn create_upper(&self, stack: &[DiffId], life: UpperLife) -> Result<Upper> {
        let leased: Vec<String> = stack.iter().map(DiffId::hex).collect();
        self.lease.with(leased.iter().map(String::as_str), || {
            let path = new_directory(&self.root.join("uppers"))?;
            let lock = Lock::exclusive(&path.join("lock"))?;
            let text = stack.iter().map(|layer| format!("{layer}\n")).collect::<String>();
            match life {
                UpperLife::Kept => write(&path.join("stack"), &text)?,
                UpperLife::Temporary => {
                    let marker = path.join("temporary");
                    fs::write(&marker, text).at("writing", &marker)?;
                }
            }
            for name in ["upper", "work"] {
                let directory = path.join(name);
                fs::create_dir(&directory).at("creating the directory", &directory)?;
            }
            Ok(Upper { path, stack: stack.to_vec(), life, _lock: lock })
        })
    }

    /// Takes an upper that nobody uses now.
    ///
    /// # Errors
    /// If there is none of that id, or another process holds it.
    pub fn open_upper(&self, id: &str) -> Result<Upper> {
        check_file_name(id, "the id of an upper")?;
        let path = self.root.join("uppers").join(id);
        let stack = stack_of(&path)?.ok_or_else(|| self.not_found(format!("upper {id}")))?;
        let leased: Vec<String> = stack.iter().map(DiffId::hex).collect();
        self.lease.with(leased.iter().map(String::as_str), || {
            let lock = Lock::try_exclusive(&path.join("lock"))?;
            let lock = lock.ok_or_else(|| StoreError::InUse { path: path.clone() })?;
            Ok(Upper { path, stack, life: UpperLife::Kept, _lock: lock })
        })
    }

    /// The ids of the uppers that are kept, sorted.
    ///
    /// # Errors
    /// What reading gives.
    pub fn uppers(&self) -> Result<Vec<String>> {
        let mut ids = Vec::new();
        for path in directories(&self.root)? {
            if let Some(id) = path.file_name().and_then(|name| name.to_str()).filter(|_| is_kept(&path)) {
                ids.push(id.to_owned());
            }
        }
        ids.sort();
        Ok(ids)
    }
}

impl Upper {
    /// Its name in the store.
    pub fn id(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// The upper directory of the union.
    pub fn upper(&self) -> PathBuf {
        self.path.join("upper")
    }

    /// The work directory of the union.
    pub fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    /// A directory that ends with the upper, for what its user needs beside it: mount points, sockets.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn scratch(&self) -> Result<PathBuf> {
        let path = self.path.join("scratch");
        fs::create_dir_all(&path).at("creating the directory", &path)?;
        Ok(path)
    }

    /// The layers below, lowest first.
    pub fn stack(&self) -> &[DiffId] {
        &self.stack
    }

    /// Removes it with all changes in it.
    ///
    /// # Errors
    /// What the system gives.
    pub fn remove(mut self) -> Result<()> {
        self.life = UpperLife::Kept; // removed here, and not again
        // Without it the upper is abandoned: whoever is killed below leaves nothing that mounts half.
        super::files::remove_if_present(&self.path.join("stack"))?;
        remove_forced(&self.path)
    }
}

impl Drop for Upper {
    fn drop(&mut self) {
        if self.life == UpperLife::Temporary {
            let _ = remove_forced(&self.path); // what remains is pruned
        }
    }
}

/// Writes one of an upper's small files to the disk: after a crash an upper must not find itself above
/// other layers.
fn write(path: &Path, text: &str) -> Result<()> {
    let written = fs::File::create_new(path).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.at("writing", path)
}

/// Whether the upper was made completely, and to be kept.
fn is_kept(path: &Path) -> bool {
    path.join("stack").exists() && path.join("upper").exists() && !path.join("temporary").exists()
}

pub(super) fn directories(root: &Path) -> Result<Vec<PathBuf>> {
    let parent = root.join("uppers");
    let entries = fs::read_dir(&parent).at("listing", &parent)?;
    entries.map(|entry| entry.map(|entry| entry.path()).at("listing", &parent)).collect()
}

/// The layers below an upper; `None` if it is incomplete.
pub(super) fn stack_of(path: &Path) -> Result<Option<Vec<DiffId>>> {
    let Some(text) = read_if_present(&path.join("stack"))?.and_then(|bytes| String::from_utf8(bytes).ok()) else {
        return Ok(None);
    };
    Ok(text.lines().map(|line| line.parse().ok()).collect())
}

/// Whether nobody needs the upper: it is temporary or incomplete, and no process holds it. The caller
/// holds the store's lock exclusively.
pub(super) fn is_abandoned(path: &Path) -> Result<bool> {
    Ok(!is_kept(path) && Lock::is_free(&path.join("lock"))?)
}

/// Removes a directory, also one whose directories do not permit it.
pub(super) fn remove_forced(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_directories(path)?;
            super::lease::remove_tree(path)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.at("removing", path),
    }
}

/// Permits the owner everything in all directories below; links are not followed.
fn open_directories(path: &Path) -> Result<()> {
    let mut pending = vec![path.to_owned()];
    while let Some(directory) = pending.pop() {
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).at("opening up", &directory)?;
        for entry in fs::read_dir(&directory).at("listing", &directory)? {
            let entry = entry.at("listing", &directory)?;
            if entry.file_type().at("looking at", &entry.path())?.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    Ok(())
}
