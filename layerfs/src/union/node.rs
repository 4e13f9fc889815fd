//! The files of a union that the kernel or a running operation refers to, by number.
//!
//! Invariant: a number is in the table while the kernel has looked it up or a node below it is in the
//! table, so a file has one [`Node`] at most, and the way from a node up to the root is always there.
//! A node knows names, never paths; its metadata and content stay where they are, in tree or upper.

use std::{
    collections::{HashMap, hash_map},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{NodeId, handles::Handle, names::Names};
use crate::tree::{FileKind, TreeInode};

/// Shards of the node table: enough that two threads rarely meet, few enough to cost nothing.
const SHARDS: usize = 16;

/// Locks, and goes on after a panic elsewhere: every update under these locks is a single assignment or insertion.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One file of the union, whatever number of names it has.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) kind: FileKind,
    /// The file of the tree that this is or was copied from; for a directory, the one it is merged with.
    pub(super) lower: Option<TreeInode>,
    /// Held while the file is copied up. Nothing else waits for it.
    pub(super) copying: Mutex<()>,
    state: Mutex<State>,
    names: Option<Box<Mutex<Names>>>,
}

/// What changes about a node.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The names by which it was looked up and that it still has.
    pub(super) links: Vec<Link>,
    /// Its inode number in the upper file system, once it is there.
    pub(super) upper: Option<u64>,
    /// Its file in the upper has the metadata only: the content is still the tree's.
    pub(super) is_split: bool,
    /// Its content is in the index of copied-up hard links, whatever names it has.
    pub(super) indexed: bool,
    /// What keeps an upper file alive that lost its last known name.
    pub(super) pinned: Option<Arc<Handle>>,
    /// The lower directory that it shows, from the root of the tree, where that is not the one its name leads to.
    pub(super) redirect: Option<Vec<u8>>,
    /// A removed directory.
    pub(super) removed: bool,
}

/// A name of a node.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) parent: Arc<Node>,
    pub(super) name: Arc<[u8]>,
    /// The name exists in the upper; otherwise it is the tree's.
    pub(super) in_upper: bool,
}

impl Link {
    pub(super) fn is(&self, parent: &Node, name: &[u8]) -> bool {
        self.parent.id == parent.id && *self.name == *name
    }
}

impl Node {
    pub(super) fn new(id: NodeId, kind: FileKind, lower: Option<TreeInode>, state: State) -> Self {
        let names = (kind == FileKind::Directory).then(Box::default);
        Self { id, kind, lower, copying: Mutex::new(()), state: Mutex::new(state), names }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(super) fn is_directory(&self) -> bool {
        self.kind == FileKind::Directory
    }

    /// The names in a directory. Locked before any state, and after no state.
    pub(super) fn names(&self) -> rustix::io::Result<MutexGuard<'_, Names>> {
        self.names.as_deref().map(lock).ok_or(rustix::io::Errno::NOTDIR)
    }

    pub(super) fn in_upper(&self) -> bool {
        self.state().upper.is_some()
    }

    /// Whether its content is in the upper.
    pub(super) fn is_complete(&self) -> bool {
        let state = self.state();
        state.upper.is_some() && !state.is_split
    }
}

#[derive(Debug)]
struct Slot {
    node: Arc<Node>,
    /// Lookups that the kernel has not forgotten, plus links of other nodes that lead through this one.
    references: u64,
}

/// All nodes by number.
#[derive(Debug)]
pub(super) struct Table {
    shards: [Mutex<HashMap<NodeId, Slot>>; SHARDS],
}

impl Table {
    /// A table that holds `root`, for ever.
    pub(super) fn new(root: Arc<Node>) -> Self {
        let table = Self { shards: std::array::from_fn(|_| Mutex::default()) };
        lock(table.shard(root.id)).insert(root.id, Slot { node: root, references: 1 });
        table
    }

    fn shard(&self, id: NodeId) -> &Mutex<HashMap<NodeId, Slot>> {
        &self.shards[usize::try_from(id.0 % SHARDS as u64).expect("the remainder is below the number of shards")]
    }

    pub(super) fn find(&self, id: NodeId) -> Option<Arc<Node>> {
        lock(self.shard(id)).get(&id).map(|slot| Arc::clone(&slot.node))
    }

    /// The node with this number, made where it is not there, with one more reference to it.
    pub(super) fn acquire(&self, id: NodeId, make: impl FnOnce() -> Node) -> Arc<Node> {
        let mut shard = lock(self.shard(id));
        let slot = match shard.entry(id) {
            hash_map::Entry::Occupied(slot) => slot.into_mut(),
            hash_map::Entry::Vacant(slot) => slot.insert(Slot { node: Arc::new(make()), references: 0 }),
        };
        slot.references += 1;
        Arc::clone(&slot.node)
    }

    /// One more reference to a node that is in use.
    pub(super) fn retain(&self, id: NodeId) -> rustix::io::Result<()> {
        let mut shard = lock(self.shard(id));
        shard.get_mut(&id).ok_or(rustix::io::Errno::STALE)?.references += 1;
        Ok(())
    }

    /// Records that `node` can be reached as `name` in `parent`.
    pub(super) fn add_link(&self, node: &Node, parent: &Arc<Node>, name: &[u8], in_upper: bool) {
        let mut state = node.state();
        if let Some(link) = state.links.iter_mut().find(|link| link.is(parent, name)) {
            link.in_upper |= in_upper;
            return;
        }
        if let Some(slot) = lock(self.shard(parent.id)).get_mut(&parent.id) {
            slot.references += 1;
        }
        state.links.push(Link { parent: Arc::clone(parent), name: name.into(), in_upper });
    }

    /// Records that `node` is no longer `name` in `parent`.
    pub(super) fn remove_link(&self, node: &Node, parent: &Node, name: &[u8]) {
        let removed = {
            let mut state = node.state();
            let at = state.links.iter().position(|link| link.is(parent, name));
            at.map(|at| state.links.swap_remove(at))
        };
        if let Some(link) = removed {
            self.release(link.parent.id, 1);
        }
    }

    /// Takes back `count` references; nodes without any fall away. Returns their numbers.
    pub(super) fn release(&self, id: NodeId, count: u64) -> Vec<NodeId> {
        let mut gone = Vec::new();
        let mut pending = vec![(id, count)];
        while let Some((id, count)) = pending.pop() {
            let mut shard = lock(self.shard(id));
            let Some(slot) = shard.get_mut(&id) else { continue };
            slot.references = slot.references.saturating_sub(count);
            if slot.references > 0 || id == NodeId::ROOT {
                continue;
            }
            let slot = shard.remove(&id).expect("the slot was found under this lock");
            drop(shard);
            gone.push(id);
            pending.extend(slot.node.state().links.drain(..).map(|link| (link.parent.id, 1)));
        }
        gone
    }

    /// How many nodes there are.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }
}
