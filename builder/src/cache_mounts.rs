//! The directories behind `RUN --mount=type=cache`: locked while they are used, carried from machine to machine as
//! images of one layer.
//!
//! ```text
//! cache-mounts/<digest of the id>/id        the id as text, with #uid=, #gid=, #mode= and #from= if it begins so
//!                                /lock      held by the steps and commands that use it
//!                                /content   what the step sees; appears whole
//!                                /draft-*   a content that is not yet whole
//! ```
//!
//! Invariant: whoever holds the lock exclusively is alone with the content. An export is a function of the content:
//! names, bytes, owners, modes, times and attributes, in one order.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use layerfs::{Compression, DirectoryStack, EntryPath, Layer, Packing, Store, StoreError, Tree, WHITEOUT_PREFIX};
use oci_spec::image::MediaType;
use registry_client::{CopyOptions, Destination, ManifestContent, PlatformChoice, Progress, Source, copy};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::error::BuildError;
use crate::export::{self, Ownership};
use crate::image::RootFs;
use crate::manifest::store_manifest;
use crate::media::Types;
use crate::place::{MOST_CONFIG_BYTES, StorePlace};

/// What an exported cache mount has in the place of an image's configuration.
const MEDIA_TYPE: &str = "application/vnd.nacre.cachemount.v1+json";
/// Files of a cache that are kept open while it is read.
const OPEN_FILES: usize = 256;

/// A cache mount of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheMount {
    /// The id that a RUN gives it.
    pub id: String,
    /// Disk space of its files.
    pub size_bytes: u64,
}

/// What an exported cache mount says of itself; its files are in the one layer.
#[derive(Debug, Serialize, Deserialize)]
struct Description {
    id: String,
    uid: u32,
    gid: u32,
    mode: u32,
    rootfs: RootFs,
}

/// A cache mount's directory, locked.
pub(crate) struct Claimed {
    directory: PathBuf,
    _lock: File,
}

/// Names of drafts begin so.
const DRAFT: &str = "draft-";

impl Claimed {
    /// Waits for the lock, unless the operation says otherwise.
    pub(crate) fn new(store: &Store, id: &str, operation: FlockOperation) -> Result<Self, ClaimError> {
        loop {
            let directory = store.cache_mount(id)?;
            let path = directory.join("lock");
            let lock = File::options().write(true).create(true).truncate(false).open(&path)?;
            rustix::fs::flock(&lock, operation).map_err(io::Error::from)?;
            // Garbage collection may have removed the directory while this waited.
            let (held, there) = (lock.metadata()?, fs::metadata(&path));
            if there.is_ok_and(|there| (there.dev(), there.ino()) == (held.dev(), held.ino())) {
                return Ok(Self { directory, _lock: lock });
            }
        }
    }

    /// What the step sees, or will.
    pub(crate) fn content(&self) -> PathBuf {
        self.directory.join("content")
    }

    /// An empty directory to make a content in; two steps that share the mount may both do so.
    pub(crate) fn draft(&self) -> io::Result<TempDir> {
        tempfile::Builder::new().prefix(DRAFT).tempdir_in(&self.directory)
    }

    /// Has a cache mount begin anew: its content goes, but not from under those who use it at this moment.
    pub(crate) fn renew(store: &Store, id: &str) -> Result<(), ClaimError> {
        let alone = match Self::new(store, id, FlockOperation::NonBlockingLockExclusive) {
            Ok(claimed) => Some(claimed),
            Err(error) if error.is_busy() => None,
            Err(error) => return Err(error),
        };
        let directory = store.cache_mount(id)?;
        let aside = tempfile::Builder::new().prefix(DRAFT).tempdir_in(&directory)?.keep();
        match fs::rename(directory.join("content"), &aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        if let Some(claimed) = alone {
            claimed.sweep()?;
        }
        Ok(())
    }

    /// Removes the drafts of whoever was killed; the caller holds the lock alone.
    fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(DRAFT.as_bytes()) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// Why a cache mount could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClaimError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0}")]
    Lock(#[from] io::Error),
}

impl ClaimError {
    /// Whether somebody else has it, and waiting was not asked for.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self, Self::Lock(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// All cache mounts that have a content, by id.
///
/// # Errors
/// If the store cannot be read.
pub fn cache_mounts(store: &Store) -> Result<Vec<CacheMount>, BuildError> {
    let mut found = Vec::new();
    for (id, directory) in store.cache_mounts()? {
        let content = directory.join("content");
        if content.is_dir() {
            let size_bytes = size_of(&content).map_err(BuildError::file("measure the cache mount", &content))?;
            found.push(CacheMount { id, size_bytes });
        }
    }
    Ok(found)
}

/// Copies a cache mount to a place for images. Steps that use it are waited for, and wait.
///
/// # Errors
/// If there is none, or it cannot be read or written.
pub fn export_cache_mount(
    store: &Store,
    id: &str,
    destination: &dyn Destination,
    threads: usize,
    progress: &dyn Progress,
) -> Result<(), BuildError> {
    let claimed = claim(store, id, FlockOperation::LockExclusive)?;
    let content = claimed.content();
    let failed = || BuildError::file("export the cache mount", &content);
    let top = fs::metadata(&content).map_err(|error| missing(id, &content, error))?;
    refuse_marks(&content).map_err(failed())?;
    let descriptor: OwnedFd = File::open(&content).map_err(failed())?.into();
    let tree: Arc<dyn Tree> = Arc::new(DirectoryStack::new(vec![descriptor], OPEN_FILES).map_err(failed())?);
    let diff_id =
        store.create_layer(|writer| export::append_tree(&tree, &EntryPath::root(), writer).map_err(failed()))?;
    let layer = store.pack_layer(&diff_id, Packing::from(Compression::Zstd), threads)?;
    let description = Description {
        id: id.to_owned(),
        uid: top.uid(),
        gid: top.gid(),
        mode: top.mode() & 0o7777,
        rootfs: RootFs { diff_ids: vec![diff_id.to_string()], ..RootFs::default() },
    };
    let bytes = serde_json::to_vec(&description).expect("keys are strings");
    let config = store.put_blob_bytes(MediaType::from(MEDIA_TYPE), &bytes)?;
    let manifest = store_manifest(store, &config, &[layer], Types::Cache, &BTreeMap::new())?.manifest;
    let source = StorePlace::existing(store, &format!("the cache mount {id}"), manifest);
    let options = CopyOptions { platforms: PlatformChoice::All, ..CopyOptions::default() };
    copy(&source, destination, &options, progress)?;
    Ok(())
}

/// Makes what [`export_cache_mount`] wrote the content of a cache mount, in place of what it holds.
///
/// # Errors
/// If there is nothing of that kind, or it cannot be read or written; the content is then what it was.
pub fn import_cache_mount(
    store: &Store,
    id: &str,
    source: &dyn Source,
    progress: &dyn Progress,
) -> Result<(), BuildError> {
    let options = CopyOptions { platforms: PlatformChoice::All, ..CopyOptions::default() };
    let copied = copy(source, &StorePlace::new(store, None), &options, progress)?;
    let no_cache = || BuildError::Request(format!("{} holds no cache mount", source.name()));
    let ManifestContent::Image { config, layers } = copied.manifest.content() else { return Err(no_cache()) };
    let [layer] = layers.as_slice() else { return Err(no_cache()) };
    if config.media_type().to_string() != MEDIA_TYPE {
        return Err(no_cache());
    }
    let description = store.read_blob(config.digest(), MOST_CONFIG_BYTES)?;
    let description: Description = serde_json::from_slice(&description).map_err(|_| no_cache())?;
    let Layer { diff_id, .. } = store.ingest_stored_layer(layer, None)?;
    let tree: Arc<dyn Tree> = store.tree(&[diff_id])?;
    let claimed = claim(store, id, FlockOperation::LockExclusive)?;
    let failed = || BuildError::file("import the cache mount", &claimed.directory);
    claimed.sweep().map_err(failed())?;
    let draft = claimed.draft().map_err(failed())?;
    export::to_directory(&tree, b"", draft.path(), Ownership::Kept)?;
    own(draft.path(), &description).map_err(failed())?;
    let (content, old) = (claimed.content(), claimed.directory.join("old"));
    let replace = || {
        remove(&old)?;
        match fs::rename(&content, &old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::rename(draft.path(), &content)?,
        }
        remove(&old)
    };
    replace().map_err(failed())
}

/// Empties a cache mount.
///
/// # Errors
/// If there is none, a step uses it, or it cannot be removed.
pub fn remove_cache_mount(store: &Store, id: &str) -> Result<(), BuildError> {
    let claimed = claim(store, id, FlockOperation::NonBlockingLockExclusive)?;
    let content = claimed.content();
    fs::metadata(&content).map_err(|error| missing(id, &content, error))?;
    remove(&content).map_err(BuildError::file("remove the cache mount", &content))
}

fn claim(store: &Store, id: &str, operation: FlockOperation) -> Result<Claimed, BuildError> {
    Claimed::new(store, id, operation).map_err(|error| match error {
        ClaimError::Store(error) => error.into(),
        error if error.is_busy() => BuildError::Request(format!("the cache mount {id} is in use")),
        ClaimError::Lock(error) => BuildError::Request(format!("cannot lock the cache mount {id}: {error}")),
    })
}

fn missing(id: &str, content: &Path, error: io::Error) -> BuildError {
    match error.kind() {
        io::ErrorKind::NotFound => BuildError::Request(format!("there is no cache mount {id:?}")),
        _ => BuildError::file("look at the cache mount", content)(error),
    }
}

fn own(directory: &Path, description: &Description) -> io::Result<()> {
    chown(directory, Some(description.uid), Some(description.gid))?;
    fs::set_permissions(directory, fs::Permissions::from_mode(description.mode & 0o7777))
}

fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Names that a layer cannot have: there they would remove other files.
fn refuse_marks(directory: &Path) -> io::Result<()> {
    for entry in walkdir::WalkDir::new(directory) {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(WHITEOUT_PREFIX) {
            let path = entry.path().strip_prefix(directory).unwrap_or(entry.path());
            return Err(io::Error::other(format!("it holds {}, and a layer can hold no such name", path.display())));
        }
    }
    Ok(())
}

/// What the files below a directory take on the disk.
fn size_of(directory: &Path) -> io::Result<u64> {
    let mut size_bytes = 0;
    for entry in walkdir::WalkDir::new(directory) {
        let metadata = entry?.metadata()?;
        // A file with several names counts once for all of them.
        size_bytes += metadata.blocks() * 512 / if metadata.is_dir() { 1 } else { metadata.nlink().max(1) };
    }
    Ok(size_bytes)
}
