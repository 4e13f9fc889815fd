//! The files of a union that the kernel or a running operation refers to, by number.
//!
//! Invariant: a number is in the table while the kernel has looked it up or a node below it is in the
//! table, so a file has one [`Node`] at most, and the way from a node up to the root is always there.
//! A node knows names, never paths; its metadata and content stay where they are, in tree or upper.
//!
//! A walk makes the kernel refer to everything there is. So a file that is as the tree has it is a few bytes in the
//! table until an operation needs a [`Node`] of it, and again some time later.

use std::{
    collections::{HashMap, VecDeque, hash_map},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{NodeId, handles::Handle, names::Names};
use crate::tree::{FileKind, TreeInode};

/// Shards of the node table: enough that two threads rarely meet, few enough to cost nothing.
const SHARDS: usize = 16;
/// So many files of the tree that were used stay nodes: more than are in use at a time, at 400 bytes each.
const RECENT: usize = 1024;

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
    /// Held while the file is copied up, and while its metadata change in more than one step. Nothing else waits for it.
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
    /// The path of the directory that it shows from the root of the tree, where that is not the one its name leads to.
    pub(super) redirect: Option<Vec<u8>>,
    /// It was made without a file capability and has been given none, so that the file system need not be asked, as the
    /// kernel does before the first write to a file and with every change of its owner.
    pub(super) lacks_capability: bool,
    /// A directory that has no access control list for new files.
    pub(super) lacks_default_acl: bool,
    /// A file that was made without a name and has been given none yet.
    pub(super) is_unnamed: bool,
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

    /// What stands for it in the table if it is no directory, and as the tree has it.
    fn as_plain(&self) -> Option<SlotFile> {
        let state = self.state();
        let [Link { parent, name, in_upper: false }] = &state.links[..] else { return None };
        let is_plain = !self.is_directory()
            && self.lower == Some(TreeInode(self.id.0))
            && state.upper.is_none()
            && state.pinned.is_none()
            && state.redirect.is_none()
            && !(state.is_split || state.indexed || state.removed);
        is_plain.then(|| SlotFile::Plain { parent: parent.id, name: (**name).into(), kind: self.kind })
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

/// What the table holds under a number.
#[derive(Debug)]
struct Slot {
    file: SlotFile,
    /// Lookups that the kernel has not forgotten, plus links of other nodes that lead through this one.
    references: u64,
}

#[derive(Debug)]
enum SlotFile {
    Node(Arc<Node>),
    /// No directory, and as the tree has it, under this one name. The slot has a reference to the parent, as a link
    /// has.
    Plain {
        parent: NodeId,
        name: Box<[u8]>,
        kind: FileKind,
    },
}

/// All nodes by number.
#[derive(Debug)]
pub(super) struct Table {
    shards: [Mutex<HashMap<NodeId, Slot>>; SHARDS],
    /// Files of the tree that became nodes for an operation, the oldest first. Let go before a shard is locked.
    recent: Mutex<VecDeque<NodeId>>,
}

impl Drop for Table {
    /// Nodes hold those above them, which would fall away one within the other.
    fn drop(&mut self) {
        for shard in &self.shards {
            for slot in lock(shard).values() {
                if let SlotFile::Node(node) = &slot.file {
                    node.state().links.clear();
                }
            }
        }
    }
}

impl Table {
    /// A table that holds `root`, for ever.
    pub(super) fn new(root: Arc<Node>) -> Self {
        let table = Self { shards: std::array::from_fn(|_| Mutex::default()), recent: Mutex::default() };
        lock(table.shard(root.id)).insert(root.id, Slot { file: SlotFile::Node(root), references: 1 });
        table
    }

    fn shard(&self, id: NodeId) -> &Mutex<HashMap<NodeId, Slot>> {
        &self.shards[usize::try_from(id.0 % SHARDS as u64).expect("the remainder is below the number of shards")]
    }

    /// The node with this number.
    pub(super) fn find(&self, id: NodeId) -> Option<Arc<Node>> {
        loop {
            let above = match &lock(self.shard(id)).get(&id)?.file {
                SlotFile::Node(node) => return Some(Arc::clone(node)),
                SlotFile::Plain { parent, .. } => *parent,
            };
            // Directories are never plain, and this one is there as long as the slot refers to it.
            let above = match &lock(self.shard(above)).get(&above)?.file {
                SlotFile::Node(node) => Arc::clone(node),
                SlotFile::Plain { .. } => return None,
            };
            let mut shard = lock(self.shard(id));
            let file = &mut shard.get_mut(&id)?.file;
            let SlotFile::Plain { parent, name, kind } = file else { continue };
            if *parent != above.id {
                continue;
            }
            let link = Link { parent: above, name: Arc::from(&**name), in_upper: false };
            let state = State { links: vec![link], ..State::default() };
            let node = Arc::new(Node::new(id, *kind, Some(TreeInode(id.0)), state));
            *file = SlotFile::Node(Arc::clone(&node));
            drop(shard);
            self.remember(id);
            return Some(node);
        }
    }

    /// Makes the file that was used longest ago plain again.
    fn remember(&self, id: NodeId) {
        let mut recent = lock(&self.recent);
        recent.push_back(id);
        let oldest = if recent.len() > RECENT { recent.pop_front() } else { None };
        drop(recent);
        if let Some(oldest) = oldest {
            self.make_plain(oldest);
        }
    }

    fn make_plain(&self, id: NodeId) {
        let mut shard = lock(self.shard(id));
        let Some(Slot { file, .. }) = shard.get_mut(&id) else { return };
        let SlotFile::Node(node) = file else { return };
        // Under this lock nobody can come by the node who does not have it already.
        if Arc::strong_count(node) > 1 {
            return;
        }
        if let Some(plain) = node.as_plain() {
            *file = plain;
        }
    }

    /// One more reference to a file of the tree that is as it was and has this one name; `false` where more is known.
    pub(super) fn acquire_plain(&self, id: NodeId, kind: FileKind, parent: &Node, name: &[u8]) -> bool {
        let mut shard = lock(self.shard(id));
        match shard.entry(id) {
            hash_map::Entry::Occupied(slot) => {
                let slot = slot.into_mut();
                let is_same = matches!(&slot.file, SlotFile::Plain { parent: other, name: other_name, kind: other_kind }
                    if *other == parent.id && **other_name == *name && *other_kind == kind);
                slot.references += u64::from(is_same);
                return is_same;
            }
            hash_map::Entry::Vacant(slot) => {
                let file = SlotFile::Plain { parent: parent.id, name: name.into(), kind };
                slot.insert(Slot { file, references: 1 });
            }
        }
        drop(shard);
        // As with a link: the caller uses the parent, so that it is there.
        if let Some(slot) = lock(self.shard(parent.id)).get_mut(&parent.id) {
            slot.references += 1;
        }
        true
    }

    /// The node with this number, made where it is not there, with one more reference to it.
    pub(super) fn acquire(&self, id: NodeId, make: impl FnOnce() -> Node) -> Arc<Node> {
        loop {
            let mut shard = lock(self.shard(id));
            let slot = match shard.entry(id) {
                hash_map::Entry::Occupied(slot) => slot.into_mut(),
                hash_map::Entry::Vacant(slot) => {
                    let node = Arc::new(make());
                    slot.insert(Slot { file: SlotFile::Node(Arc::clone(&node)), references: 1 });
                    return node;
                }
            };
            if let SlotFile::Node(node) = &slot.file {
                slot.references += 1;
                return Arc::clone(node);
            }
            drop(shard);
            self.find(id);
        }
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
        // Nearly all files have one name; a vector's own first choice is room for four.
        state.links.reserve_exact(1);
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
            match slot.file {
                SlotFile::Node(node) => {
                    pending.extend(node.state().links.drain(..).map(|link| (link.parent.id, 1)));
                }
                SlotFile::Plain { parent, .. } => pending.push((parent, 1)),
            }
        }
        gone
    }

    /// How many nodes there are.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_tree_are_nodes_only_while_they_are_used_and_all_references_are_given_back() {
        let root = Arc::new(Node::new(NodeId::ROOT, FileKind::Directory, Some(TreeInode::ROOT), State::default()));
        let table = Table::new(Arc::clone(&root));
        let last = 2 * RECENT as u64;
        for id in 2..=last {
            assert!(table.acquire_plain(NodeId(id), FileKind::File, &root, format!("f{id}").as_bytes()));
        }
        assert!(!table.acquire_plain(NodeId(2), FileKind::File, &root, b"other"));
        assert!(table.acquire_plain(NodeId(2), FileKind::File, &root, b"f2"));
        let used = table.find(NodeId(2)).expect("it was acquired");
        for id in 3..=last {
            let node = table.find(NodeId(id)).expect("it was acquired");
            assert_eq!(*node.state().links[0].name, *format!("f{id}").as_bytes());
        }
        let is_node = |id| matches!(lock(table.shard(id)).get(&id), Some(Slot { file: SlotFile::Node(_), .. }));
        assert_eq!((3..=last).filter(|&id| is_node(NodeId(id))).count(), RECENT);
        assert!(Arc::ptr_eq(&used, &table.find(NodeId(2)).expect("it is in use")));
        drop(used);
        assert_eq!(table.release(NodeId(2), 2), [NodeId(2)]);
        for id in 3..=last {
            assert_eq!(table.release(NodeId(id), 1), [NodeId(id)]);
        }
        let root = NodeId::ROOT;
        assert_eq!((table.len(), lock(table.shard(root))[&root].references), (1, 1));
    }
}
