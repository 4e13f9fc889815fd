//! Everything Nacre keeps on disk: an OCI image layout, and layers that are never unpacked.
//!
//! Invariant: a file under its final name is complete and is what its name says; a kill at any moment
//! leaves nothing but files in `tmp/`. Several processes share a store without a daemon.
//!
//! ```text
//! oci-layout, index.json        an OCI image layout; index.json holds the names        names.rs
//! nacre-store                   the version of all else
//! blobs/sha256/<hex>            blobs as they were sent                                 blobs.rs
//! layers/<diff id>.tar          the uncompressed layer                                  ingest.rs, create.rs
//! layers/<diff id>.idx          its index; derived                                      trees.rs
//! layers/<diff id>.blob         digest of the blob it was last read from or written to; derived
//! layers/<diff id>.gzip2, ...   digest of the blob that we made of it; derived         create.rs
//! layers/<blob>.diff            diff id of a layer blob; derived
//! layers/<blob>.blocks          what a blob of ours was compressed from, block by block; derived      packed.rs
//! trees/<chain id>.idx          merged index of a stack; derived                        trees.rs
//! steps/<key>, <key>.lock       build-cache records, and who carries a step out         steps.rs
//! notes/<name>                  what a build learned and a later one can do without     steps.rs
//! cache-mounts/<id>/            RUN --mount=type=cache                                  (the builder's)
//! uppers/<id>/{upper,work}      live copy-on-write layers                               uppers.rs
//! partial/                      blobs that came in part, for the next try             (the registry client's)
//! known/                        which repositories have which blobs; hints             (the registry client's)
//! tmp/<session>/                what is not yet published, and the session's lease      lease.rs
//! lock, index.lock              advisory locks                                          lock.rs
//! ```
//!
//! An open [`Store`] is a session: what it has put or found stays until it is dropped, whatever
//! [`Store::prune`] does in another process, even if no name leads there yet. A session belongs to the
//! process that opened it: a child that goes on by itself after a fork opens the store again.

mod blobs;
mod create;
mod error;
mod files;
mod ingest;
mod lease;
mod lock;
mod names;
mod packed;
mod prune;
mod steps;
mod trees;
mod uppers;
mod verify;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::image::Descriptor;
use rustix::fs::IFlags;

use crate::digest::{DiffId, Digest};
pub use blobs::BlobSource;
pub use create::{LayerSink, PackingWatch};
pub use error::StoreError;
use error::{AtPath, Result};
use files::write_new;
use lease::Lease;
use lock::Lock;
pub use names::NamedImage;
pub use prune::{DOCUMENT_MAX_BYTES, PruneOptions, Pruned};
pub use steps::StepClaim;
pub use uppers::{Upper, UpperLife};
pub use verify::Damage;

/// The version of the layout of the directories beside the OCI image layout.
const LAYOUT_VERSION: &str = "1";
const OCI_LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
const EMPTY_INDEX: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
const DIRECTORIES: [&str; 9] =
    ["blobs/sha256", "layers", "trees", "steps", "notes", "cache-mounts", "uppers", "partial", "tmp"];

/// A layer in the store: its content, and the blob that carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Of the uncompressed tar.
    pub diff_id: DiffId,
    /// Of the blob, as a manifest names it.
    pub descriptor: Descriptor,
}

/// A store, and this process's session with it.
#[derive(Debug, Clone)]
pub struct Store {
    root: Arc<Path>,
    lease: Arc<Lease>,
    layer_max_bytes: u64,
}

impl Store {
    /// Opens the store in a directory, and makes it if there is none. One that this process may not write can be
    /// read: garbage collection of others then waits until this session ends.
    ///
    /// # Errors
    /// If there is no store and none can be made, or one of another layout version.
    pub fn open(root: &Path) -> Result<Self> {
        let lease = match Self::start(root) {
            Err(error) if error.is_read_only() && root.join("nacre-store").exists() => {
                let root = root.canonicalize().at("opening the store", root)?;
                check_version(&root)?;
                Lease::of_read_only(&root)?
            }
            started => started?,
        };
        let root = root.canonicalize().at("opening the store", root)?.into();
        // A tar of a layer has no limit of its own; this one keeps a bomb from filling most disks.
        Ok(Self { root, lease: Arc::new(lease), layer_max_bytes: 128 << 30 })
    }

    /// Makes what is missing, and starts a session that writes.
    fn start(root: &Path) -> Result<Lease> {
        for directory in DIRECTORIES {
            let path = root.join(directory);
            fs::create_dir_all(&path).at("creating the directory", &path)?;
        }
        spread(&root.join("uppers"));
        let root = root.canonicalize().at("opening the store", root)?;
        {
            let _lock = Lock::exclusive(&root.join("index.lock"))?;
            check_layout(&root)?;
        }
        lease::sweep_if_idle(&root)?;
        Lease::new(&root)
    }

    /// The same store, with another limit on what one layer may expand to, be it received or made.
    #[must_use]
    pub fn with_layer_limit(mut self, max_bytes: u64) -> Self {
        self.layer_max_bytes = max_bytes;
        self
    }

    /// Its directory, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where this session may make files of its own. Nobody else removes them while it lives; they end with it.
    pub fn temporary(&self) -> &Path {
        self.lease.directory()
    }

    /// The directory of a cache mount, with its id in the file `id`; the id is text of the user, and is digested into a
    /// name.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn cache_mount(&self, id: &str) -> Result<PathBuf> {
        let path = self.root.join("cache-mounts").join(crate::digest::digest_of(id.as_bytes()).digest());
        fs::create_dir_all(&path).at("creating the cache mount", &path)?;
        let name = path.join("id");
        if files::read_if_present(&name)?.as_deref() != Some(id.as_bytes()) {
            files::Draft::publish_derived(self.lease.directory(), [id.as_bytes()], &name)?;
        }
        Ok(path)
    }

    /// The directories of all cache mounts, with their ids, by id.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn cache_mounts(&self) -> Result<Vec<(String, PathBuf)>> {
        let mut found = Vec::new();
        for path in prune::files_in(&self.root.join("cache-mounts"))? {
            let id = files::read_if_present(&path.join("id"))?;
            found.extend(id.and_then(|id| String::from_utf8(id).ok()).map(|id| (id, path)));
        }
        found.sort();
        Ok(found)
    }

    /// Where a blob lies, or would.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        // Both parts of a digest are checked when it is parsed: no slash, no dot.
        self.root.join("blobs").join(digest.algorithm().as_ref()).join(digest.digest())
    }

    fn layer_path(&self, diff_id: &DiffId, extension: &str) -> PathBuf {
        self.root.join("layers").join(format!("{}.{extension}", diff_id.hex()))
    }
}

/// Asks ext4 to put each directory in here elsewhere on the disk (`chattr +T`). A step makes and removes thousands of
/// files, and where files were removed within the last minutes ext4 makes new ones slowly: it passes over each inode
/// that it freed (`recently_deleted` in its ialloc.c). Other file systems refuse, and need it not.
fn spread(directory: &Path) {
    let set = |file: fs::File| match rustix::fs::ioctl_getflags(&file) {
        Ok(flags) if !flags.contains(IFlags::TOPDIR) => rustix::fs::ioctl_setflags(&file, flags | IFlags::TOPDIR),
        other => other.map(drop),
    };
    let _ = fs::File::open(directory).map(set); // a wish, not a need
}

/// Checks the layout files, and makes them in a new store.
fn check_layout(root: &Path) -> Result<()> {
    for (name, content) in [("oci-layout", OCI_LAYOUT), ("index.json", EMPTY_INDEX), ("nacre-store", LAYOUT_VERSION)] {
        let path = root.join(name);
        if !path.try_exists().at("looking for", &path)? {
            write_new(&path, content.as_bytes())?;
        }
    }
    check_version(root)
}

fn check_version(root: &Path) -> Result<()> {
    let path = root.join("nacre-store");
    let found = fs::read_to_string(&path).at("reading", &path)?;
    if found.trim() == LAYOUT_VERSION {
        return Ok(());
    }
    Err(StoreError::LayoutVersion { path: root.to_owned(), found: found.trim().to_owned() })
}
