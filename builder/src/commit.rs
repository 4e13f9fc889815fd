//! Changes to a layer: sorted, stripped of what equals the tree below, stamped, streamed into the store.
//!
//! Invariant: the bytes of a layer are a function of the changes and the epoch alone.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use layerfs::{
    Attributes, Change, ChangeKind, Changes, ChangesError, DiffId, Entry, EntryKind, EntryPath, FileKind, PathFault,
    Store, StoreError, TarError, Time, Tree,
};

use rustix::io::Errno;

use crate::changeset::{ChangeSet, Content, Node, NodeId};

/// Why a layer could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An entry cannot be in a layer.
    #[error("writing a layer: {0}")]
    Tar(#[from] TarError),
    /// The upper cannot be read.
    #[error(transparent)]
    Changes(#[from] ChangesError),
    /// A path cannot be in a layer.
    #[error("/{}: {fault}", path.escape_ascii())]
    Path {
        /// The path.
        path: Vec<u8>,
        /// Why not.
        fault: PathFault,
    },
    /// A file of the build cannot be read.
    #[error("reading the content of a layer: {0}")]
    Read(#[from] io::Error),
}

/// Commits what COPY, ADD or WORKDIR put. Nothing in the layer is newer than `epoch`, in seconds since 1970; `None`
/// keeps real times.
pub(crate) fn commit_changeset(store: &Store, changes: &ChangeSet, epoch: Option<i64>) -> Result<DiffId, CommitError> {
    let mut names: HashMap<NodeId, usize> = HashMap::new();
    for (_, id, _) in changes.entries() {
        *names.entry(id).or_default() += 1;
    }
    let mut first_names: HashMap<NodeId, EntryPath> = HashMap::new();
    let mut pending: Vec<(Entry, Option<&Content>)> = Vec::new();
    for (path, id, node) in changes.entries() {
        let entry_path = entry_path(path)?;
        if let Some(first) = first_names.get(&id) {
            pending.push((entry_of(entry_path, EntryKind::HardLink { target: first.clone() }, node), None));
            continue;
        }
        first_names.insert(id, entry_path.clone());
        // A hard link to an entry that is left out would have nothing to point to in this layer.
        if !node.is_opaque && names[&id] == 1 && equals_below(changes, path, node)? {
            continue;
        }
        pending.push((entry_of(entry_path.clone(), kind_of(node), node), node.content.as_ref()));
        if node.is_opaque {
            pending.push((Entry::new(entry_path, EntryKind::Opaque), None));
        }
    }
    write(store, pending, epoch, |content| Ok(Some(content.reader())))
}

/// What becomes of a file that was removed since the changes were listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Removed {
    /// It is an error: nobody may write any more.
    Refused,
    /// It is not in the layer, as if it had gone before: programs still run.
    LeftOut,
}

/// Commits what a union's upper changed in its tree. Nothing in the layer is newer than `epoch`, in seconds since 1970;
/// `None` keeps real times.
///
/// # Errors
/// If the changes cannot be read, or cannot be in a layer.
pub(crate) fn commit_upper(
    store: &Store,
    tree: &Arc<dyn Tree>,
    changes: &Changes,
    epoch: Option<i64>,
    removed: Removed,
) -> Result<DiffId, CommitError> {
    let entry = |change| -> Result<_, CommitError> {
        let entry = changed_entry(change)?;
        let is_file = matches!(entry.kind, EntryKind::File { .. });
        Ok((entry, is_file.then_some(change)))
    };
    let pending = changes.entries().iter().map(entry).collect::<Result<Vec<_>, _>>()?;
    write(store, pending, epoch, |change| match &change.kind {
        ChangeKind::File { content: layerfs::ChangeContent::Tree(inode), .. } => {
            Ok(Some(UpperReader::Tree(Content::Tree(Arc::clone(tree), *inode), 0)))
        }
        _ => match changes.open(change) {
            // Other names that it may have are still to be found.
            Err(ChangesError::System { source: Errno::NOENT, .. })
                if removed == Removed::LeftOut && !has_links(changes, change) =>
            {
                Ok(None)
            }
            opened => Ok(Some(opened?.map_or(UpperReader::Nothing, UpperReader::File))),
        },
    })
}

/// Whether a file has other names in the layer.
fn has_links(changes: &Changes, file: &Change) -> bool {
    changes.entries().iter().any(|change| matches!(&change.kind, ChangeKind::HardLink(target) if *target == file.path))
}

/// The content of a changed file.
enum UpperReader {
    File(File),
    /// A file of the tree, and how much of it was read.
    Tree(Content, u64),
    Nothing,
}

impl Read for UpperReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read(buffer),
            Self::Tree(content, offset) => {
                let read = content.read_at(*offset, buffer)?;
                *offset += read as u64;
                Ok(read)
            }
            Self::Nothing => Ok(0),
        }
    }
}

fn write<C, R: Read>(
    store: &Store,
    mut pending: Vec<(Entry, Option<C>)>,
    epoch: Option<i64>,
    // `None` for a file that is there no longer.
    open: impl Fn(C) -> Result<Option<R>, CommitError>,
) -> Result<DiffId, CommitError> {
    pending.sort_by_cached_key(|(entry, _)| entry.tar_name());
    store.create_layer(|writer| {
        for (mut entry, content) in pending {
            stamp(&mut entry, epoch);
            match content.map(&open).transpose()? {
                Some(Some(mut content)) => writer.append(&entry, &mut content)?,
                Some(None) => {}
                None => writer.append(&entry, &mut io::empty())?,
            }
        }
        Ok(())
    })
}

/// Layers carry whole seconds, nothing newer than the epoch, and no attributes of the builder's user.
fn stamp(entry: &mut Entry, epoch: Option<i64>) {
    entry.modified.nanoseconds = 0;
    if let Some(epoch) = epoch {
        entry.modified = entry.modified.min(Time { seconds: epoch, nanoseconds: 0 });
    }
    entry.xattrs.retain(|(name, _)| !name.starts_with(b"user."));
}

fn entry_path(path: &[u8]) -> Result<EntryPath, CommitError> {
    EntryPath::parse(path).map_err(|fault| CommitError::Path { path: path.to_vec(), fault })
}

fn changed_entry(change: &Change) -> Result<Entry, CommitError> {
    let path = entry_path(&change.path)?;
    let kind = match &change.kind {
        ChangeKind::Whiteout => return Ok(Entry::new(path, EntryKind::Whiteout)),
        ChangeKind::File { size_bytes, .. } => EntryKind::File { size_bytes: *size_bytes },
        ChangeKind::HardLink(target) => EntryKind::HardLink { target: entry_path(target)? },
        ChangeKind::Directory => EntryKind::Directory,
        ChangeKind::Symlink(target) => EntryKind::Symlink { target: target.clone() },
        ChangeKind::CharacterDevice(major, minor) => EntryKind::CharacterDevice { major: *major, minor: *minor },
        ChangeKind::BlockDevice(major, minor) => EntryKind::BlockDevice { major: *major, minor: *minor },
        ChangeKind::Fifo => EntryKind::Fifo,
    };
    let Change { mode, uid, gid, modified, xattrs, .. } = change.clone();
    Ok(Entry { path, kind, mode, uid, gid, modified, xattrs })
}

fn entry_of(path: EntryPath, kind: EntryKind, node: &Node) -> Entry {
    let Attributes { mode, uid, gid, modified, .. } = node.attributes;
    Entry { path, kind, mode, uid, gid, modified, xattrs: node.xattrs.clone() }
}

fn kind_of(node: &Node) -> EntryKind {
    let (major, minor) = node.attributes.device;
    match node.attributes.kind {
        FileKind::File => EntryKind::File { size_bytes: node.attributes.size_bytes },
        FileKind::Directory => EntryKind::Directory,
        FileKind::Symlink => EntryKind::Symlink { target: node.target.clone() },
        FileKind::CharacterDevice => EntryKind::CharacterDevice { major, minor },
        FileKind::BlockDevice => EntryKind::BlockDevice { major, minor },
        // A tar cannot hold a socket; the change set never has one.
        FileKind::Fifo | FileKind::Socket => EntryKind::Fifo,
    }
}

/// Whether the tree below has the same at this path: type, mode, owner, content, attributes, target. Not the time.
fn equals_below(changes: &ChangeSet, path: &[u8], node: &Node) -> io::Result<bool> {
    let tree = changes.below();
    let Some(inode) = changes.below_at(path)? else { return Ok(false) };
    let below = tree.attributes(inode)?;
    let key = |a: &Attributes| (a.kind, a.mode, a.uid, a.gid, a.device);
    if key(&below) != key(&node.attributes) {
        return Ok(false);
    }
    let visible = |xattrs: Vec<(Vec<u8>, Vec<u8>)>| -> Vec<(Vec<u8>, Vec<u8>)> {
        xattrs.into_iter().filter(|(name, _)| !name.starts_with(b"user.")).collect()
    };
    if visible(tree.xattrs(inode)?) != visible(node.xattrs.clone()) {
        return Ok(false);
    }
    match below.kind {
        FileKind::Symlink => Ok(tree.read_link(inode)? == node.target),
        FileKind::File if below.size_bytes != node.attributes.size_bytes || below.links > 1 => Ok(false),
        FileKind::File => {
            let Some(content) = &node.content else { return Ok(false) };
            same_bytes(&mut content.reader(), &mut Content::Tree(Arc::clone(tree), inode).reader())
        }
        _ => Ok(true),
    }
}

/// Whether two readers yield the same.
pub(crate) fn same_bytes(a: &mut impl Read, b: &mut impl Read) -> io::Result<bool> {
    /// Read at a time.
    const BLOCK: u64 = 64 << 10;
    loop {
        let (mut left, mut right) = (Vec::new(), Vec::new());
        a.by_ref().take(BLOCK).read_to_end(&mut left)?;
        b.by_ref().take(BLOCK).read_to_end(&mut right)?;
        if left != right {
            return Ok(false);
        }
        if left.is_empty() {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upper::read_changes;

    #[test]
    fn a_file_that_went_away_is_left_out_of_a_live_commit_and_refused_by_a_step() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        let store = Store::open(&at("store")).expect("opens");
        let tree: Arc<dyn Tree> = store.tree(&[]).expect("an empty tree");
        for name in ["upper", "work"] {
            std::fs::create_dir(at(name)).expect("fresh");
        }
        std::fs::write(at("upper/kept"), "kept").expect("written");
        let kept = read_changes(&tree, &at("upper"), &at("work")).expect("read");
        std::fs::write(at("upper/gone"), "gone").expect("written");
        let both = read_changes(&tree, &at("upper"), &at("work")).expect("read");
        std::fs::remove_file(at("upper/gone")).expect("there");
        let commit = |changes, removed| commit_upper(&store, &tree, changes, Some(0), removed);
        let error = commit(&both, Removed::Refused).expect_err("it is gone").to_string();
        assert!(error.contains("/gone"), "{error}");
        let expected = commit(&kept, Removed::Refused).expect("all is there");
        assert_eq!(commit(&both, Removed::LeftOut).expect("left out"), expected);
    }
}
