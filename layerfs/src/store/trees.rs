//! Indexes on disk: made when missing, made again when damaged.
//!
//! Invariant: an index is derived: whatever lies under its name, what comes back is right for the tars.

use std::path::Path;
use std::sync::Arc;

use super::Store;
use super::error::{Result, StoreError};
use super::files::Draft;
use super::ingest::finish_index;
use crate::digest::{ChainId, DiffId};
use crate::index::{IndexBytes, IndexError, IndexFile, Subject, TreeIndex, index_tar, merge};
use crate::tar::TarReader;

impl Store {
    /// The merged tree of a stack of layers, lowest first. It stays usable whatever is pruned.
    ///
    /// # Errors
    /// A layer that is not in the store, or whose tar is damaged.
    pub fn tree(&self, stack: &[DiffId]) -> Result<Arc<TreeIndex>> {
        let tars = stack.iter().map(|layer| self.open_layer(layer)).collect::<Result<Vec<_>>>()?;
        let index = match ChainId::of_stack(stack) {
            None => merged(&[], "the tree of no layers")?,
            Some(chain_id) => self.tree_index(&chain_id, stack)?,
        };
        Ok(Arc::new(TreeIndex::new(index, tars, Some(self.lease.clone()))))
    }

    fn tree_index(&self, chain_id: &ChainId, stack: &[DiffId]) -> Result<IndexFile> {
        let path = self.root.join("trees").join(format!("{}.idx", chain_id.hex()));
        let opened = self.lease.with([chain_id.hex().as_str()], || Ok(IndexFile::open(&path, Subject::Tree)));
        if let Some(index) = opened?.ok().filter(|index| index.layers() == stack) {
            return Ok(index);
        }
        let bytes = self.merged_layers(stack)?;
        self.publish_index(&bytes, &path, &chain_id.hex())?;
        let what = format!("tree {chain_id}");
        IndexFile::open(&path, Subject::Tree).map_err(|source| StoreError::Index { what, source })
    }

    /// The bytes that the index of a tree should have, from its layers' indexes.
    pub(super) fn merged_layers(&self, stack: &[DiffId]) -> Result<IndexBytes> {
        let layers = stack.iter().map(|layer| self.layer_index(layer)).collect::<Result<Vec<_>>>()?;
        let bytes = match merge(&layers.iter().collect::<Vec<_>>()) {
            Err(IndexError::Damaged(_)) => {
                let rebuilt = stack.iter().map(|layer| self.rebuild_layer_index(layer)).collect::<Result<Vec<_>>>()?;
                merge(&rebuilt.iter().collect::<Vec<_>>())
            }
            merged => merged,
        };
        let what = || format!("the tree of {} layers", stack.len());
        bytes.map_err(|source| StoreError::Index { what: what(), source })
    }

    /// The index of one layer.
    pub(super) fn layer_index(&self, diff_id: &DiffId) -> Result<IndexFile> {
        match IndexFile::open(&self.layer_path(diff_id, "idx"), Subject::Layer) {
            Ok(index) if index.layers() == [*diff_id] => Ok(index),
            _ => self.rebuild_layer_index(diff_id),
        }
    }

    fn rebuild_layer_index(&self, diff_id: &DiffId) -> Result<IndexFile> {
        let bytes = self.indexed_layer(diff_id)?;
        let path = self.layer_path(diff_id, "idx");
        self.publish_index(&bytes, &path, &diff_id.hex())?;
        let opened = IndexFile::open(&path, Subject::Layer);
        opened.map_err(|source| StoreError::Index { what: format!("layer {diff_id}"), source })
    }

    /// The bytes that the index of a layer should have, from its tar.
    pub(super) fn indexed_layer(&self, diff_id: &DiffId) -> Result<IndexBytes> {
        let what = format!("layer {diff_id}");
        let mut reader = TarReader::of_file(self.open_layer(diff_id)?);
        let builder = index_tar(&mut reader).map_err(|source| StoreError::Layer { what: what.clone(), source })?;
        finish_index(&what, builder, *diff_id)
    }

    fn publish_index(&self, bytes: &IndexBytes, path: &Path, leased: &str) -> Result<()> {
        self.lease.with([leased], || Draft::publish_derived(self.lease.directory(), bytes.pieces(), path))
    }
}

fn merged(layers: &[&IndexFile], what: &str) -> Result<IndexFile> {
    let index = merge(layers).and_then(|bytes| IndexFile::from_bytes(bytes.concat(), Subject::Tree));
    index.map_err(|source| StoreError::Index { what: what.to_owned(), source })
}
