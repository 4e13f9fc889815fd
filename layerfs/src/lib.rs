//! Layers of container images: stored, indexed and mounted as a copy-on-write union.
//!
//! Invariant: a layer is never unpacked, and what a mount changes lies in its upper alone. This crate knows nothing of
//! registries, nor of Dockerfiles.
//!
//! A [`Store`] takes layers in and gives their stack as a [`Tree`]; a [`Union`] lays an upper over a tree; [`mount()`] serves it.
//!
//! ```no_run
//! use layerfs::{MountOptions, Store, Tree, Union};
//! use oci_spec::image::{Descriptor, MediaType};
//! use std::{path::Path, sync::Arc};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let blob = std::fs::read("layer.tar.gz")?;
//! let descriptor = Descriptor::new(MediaType::ImageLayerGzip, blob.len() as u64, layerfs::digest_of(&blob));
//! let store = Store::open(Path::new("store"))?;
//! let layer = store.ingest_layer(&blob[..], &descriptor, None)?;
//! let tree: Arc<dyn Tree> = store.tree(&[layer.diff_id])?;
//! let mounted = layerfs::mount(Union::read_only(tree), Path::new("merged"), MountOptions::default())?;
//! println!("{}", std::fs::read_to_string("merged/etc/os-release")?);
//! mounted.unmount()?;
//! # Ok(())
//! # }
//! ```

mod caller;
mod changes;
mod compression;
mod digest;
mod directory;
mod fuse;
mod fusermount;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod ids;
mod index;
mod mount;
mod plane;
mod store;
mod sys;
mod tar;
mod tree;
mod union;

pub use changes::{Change, ChangeKind, Changes, ChangesError, Content as ChangeContent, changes};
pub use compression::{Compression, Decoder, Encoder, Packing, PackingError};
pub use digest::{ChainId, DiffId, Digest, DigestError, Digester, Digesting, digest_of, sum_of};
pub use directory::DirectoryStack;
pub use fusermount::{mount_for_server, receive_device, unmount_as_user};
pub use ids::{IdMapping, IdRange};
pub use index::{IndexError, TreeIndex};
pub use mount::{Mount, MountError, MountOptions, mount, serve, unmount};
pub use plane::{Plane, PlaneFault};
pub use store::{
    BlobSource, DOCUMENT_MAX_BYTES, Damage, Layer, LayerSink, NamedImage, PackingWatch, PruneOptions, Pruned,
    StepClaim, Store, StoreError, Upper, UpperLife,
};
pub use tar::{Entry, EntryFault, EntryKind, EntryPath, PathFault, TarError, TarWriter, WHITEOUT_PREFIX, Xattr};
pub use tree::{Attributes, DirectoryEntry, FileKind, Time, Tree, TreeInode, XattrUse};
pub use union::{
    AttributeChange, Listed, Making, MarkNamespace, Metadata, NodeId, OpenError, Owner, RenameMode, SetTime, Space,
    Union, UpperOptions,
};
