//! Builds the index of one layer from its entries.
//!
//! Invariant: the result is what unpacking the entries in order into an empty root would give, as
//! docker and containerd unpack: later entries replace earlier ones, a link in the way of an entry is
//! followed within the root of the layer, directories that no entry describes are implied. Whiteouts
//! apply to the layers below only; a directory that is also whited out is opaque.
//!
//! A layer of a million files takes about 130 bytes of memory a file: what the index holds is collected in the sections
//! it goes to, and put in order in place.
//!
//! Links of *lower* layers are not followed: there a directory of this layer replaces the link, which
//! is what the overlay drivers of docker, podman and containerd make of it.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::io::BufRead;

use hashbrown::HashTable;

use super::format::{
    FLAG_NEW, FLAG_OPAQUE, IndexBytes, InodeRecord, Output, Subject, TooLarge, WHITEOUT_CODE, kind_code, xattr_blob,
};
use crate::digest::DiffId;
use crate::tar::{Entry, EntryFault, EntryKind, EntryPath, Extent, Located, TarError, TarReader};
use crate::tree::FileKind;

/// As many links as Linux follows in one path.
const SYMLINKS_MAX: usize = 40;
/// As many names on the way to an entry: the longest path and the longest link have about 2048 each.
/// Without it links to links to long paths would make every entry cost a hundred thousand steps.
const STEPS_MAX: usize = 4096;
/// What the metadata of one layer may take in memory: 4 million files and more, while a small archive
/// that expands to headers without end is stopped.
const MEMORY_MAX_BYTES: usize = 1 << 30;
/// About what a node and an inode take, with their share of the table and what putting them in order needs.
const NODE_COST_BYTES: usize = 120;

const ROOT: u32 = 0;
const NONE: u32 = u32::MAX;

/// A name in the layer.
struct Node {
    parent: u32,
    name_start: u32,
    name_length: u8,
    is_removed: bool,
    /// The number of its inode before they are put in order, from 1; `NONE` for a whiteout.
    inode: u32,
}

impl Node {
    fn name<'a>(&self, output: &'a Output) -> &'a [u8] {
        &output.names()[self.name_start as usize..][..usize::from(self.name_length)]
    }

    fn sum(&self, sums: &RandomState, output: &Output) -> u64 {
        sums.hash_one((self.parent, self.name(output)))
    }
}

/// Collects the entries of one layer.
pub(crate) struct LayerBuilder {
    nodes: Vec<Node>,
    /// Nodes by parent and name.
    by_name: HashTable<u32>,
    sums: RandomState,
    /// Everything but the entries, the inodes in the order in which they came.
    output: Output,
    side_bytes: usize,
    last_directory: Option<(Vec<u8>, u32)>,
}

/// Reads a whole tar into the index of its layer.
pub(crate) fn index_tar<R: BufRead>(reader: &mut TarReader<R>) -> Result<LayerBuilder, TarError> {
    let mut builder = LayerBuilder::new();
    while let Some(located) = reader.next_entry()? {
        builder.add(&located).map_err(|fault| reader.refuse(&located.entry, fault))?;
    }
    Ok(builder)
}

impl LayerBuilder {
    /// A layer with nothing but an implied root.
    pub(crate) fn new() -> Self {
        let root = Node { parent: ROOT, name_start: 0, name_length: 0, is_removed: false, inode: 1 };
        let mut output = Output::default();
        output.add_inode(InodeRecord::implied_directory()).expect("the first of 32 bits of numbers");
        Self {
            nodes: vec![root],
            by_name: HashTable::new(),
            sums: RandomState::new(),
            output,
            side_bytes: 0,
            last_directory: None,
        }
    }

    /// Adds the next entry.
    pub(crate) fn add(&mut self, located: &Located) -> Result<(), EntryFault> {
        let entry = &located.entry;
        match &entry.kind {
            EntryKind::Opaque => {
                let directory = self.directory(entry.path.as_bytes())?;
                self.add_flags(directory, FLAG_OPAQUE);
            }
            EntryKind::Whiteout => self.add_whiteout(&entry.path)?,
            EntryKind::HardLink { target } => {
                let inode = self.link_target(target, &entry.path)?;
                self.put(&entry.path, inode)?;
            }
            EntryKind::Directory => self.add_directory(entry)?,
            _ => {
                let record = self.record(entry, &located.extents)?;
                let inode = self.push_inode(record)?;
                self.put(&entry.path, inode)?;
            }
        }
        let count = self.nodes.len().max(self.output.inode_count() as usize);
        let used = count * NODE_COST_BYTES + self.output.names().len() + self.side_bytes;
        if used > MEMORY_MAX_BYTES { Err(EntryFault::TooLarge) } else { Ok(()) }
    }

    fn add_whiteout(&mut self, path: &EntryPath) -> Result<(), EntryFault> {
        let parent = self.directory(path.parent_bytes())?;
        match self.find(parent, path.name()) {
            None => {
                self.push_node(parent, path.name(), NONE)?;
            }
            Some(node) if self.is_directory(node) => self.add_flags(node, FLAG_OPAQUE | FLAG_NEW),
            Some(_) => {}
        }
        Ok(())
    }

    fn add_directory(&mut self, entry: &Entry) -> Result<(), EntryFault> {
        let mut record = self.record(entry, &[])?;
        let existing = match entry.path.is_root() {
            true => Some(ROOT),
            false => {
                let parent = self.directory(entry.path.parent_bytes())?;
                self.find(parent, entry.path.name())
            }
        };
        match existing {
            Some(node) if self.is_directory(node) => {
                record.flags = self.inode_of(node).flags & (FLAG_OPAQUE | FLAG_NEW);
                self.output.set_inode(self.nodes[node as usize].inode, record);
            }
            _ => {
                if existing.is_some_and(|node| self.nodes[node as usize].inode == NONE) {
                    record.flags = FLAG_OPAQUE | FLAG_NEW;
                }
                let inode = self.push_inode(record)?;
                self.put(&entry.path, inode)?;
            }
        }
        Ok(())
    }

    fn record(&mut self, entry: &Entry, extents: &[Extent]) -> Result<InodeRecord, EntryFault> {
        let blob = xattr_blob(&entry.xattrs);
        self.side_bytes += 2 * blob.as_ref().map_or(0, Vec::len) + size_of_val(extents);
        let xattrs = self.output.add_xattrs(blob.as_deref()).map_err(|_| EntryFault::TooLarge)?;
        let (kind, size_bytes, first) = match &entry.kind {
            EntryKind::File { size_bytes } => (FileKind::File, *size_bytes, 0),
            EntryKind::Symlink { target } => (FileKind::Symlink, target.len() as u64, self.output.add_name(target)),
            EntryKind::CharacterDevice { major, minor } => (FileKind::CharacterDevice, 0, device(*major, *minor)),
            EntryKind::BlockDevice { major, minor } => (FileKind::BlockDevice, 0, device(*major, *minor)),
            EntryKind::Fifo => (FileKind::Fifo, 0, 0),
            EntryKind::Directory | EntryKind::HardLink { .. } | EntryKind::Whiteout | EntryKind::Opaque => {
                (FileKind::Directory, 0, 0)
            }
        };
        let mut record = InodeRecord {
            kind,
            flags: 0,
            mode: (entry.mode & 0o7777) as u16,
            uid: entry.uid,
            gid: entry.gid,
            links: 0,
            size_bytes,
            modified: entry.modified,
            layer: 0,
            first,
            count: 0,
            xattrs,
            data_bytes: extents.iter().map(|extent| extent.size_bytes).sum(),
        };
        match extents {
            [whole] if whole.size_bytes == size_bytes => record.first = whole.position,
            pieces => {
                record.count = u32::try_from(pieces.len()).map_err(|_| EntryFault::TooLarge)?;
                if record.count > 0 {
                    let pieces = pieces.iter().map(|extent| (extent.offset, extent.size_bytes, extent.position));
                    record.first = self.output.add_extents(pieces);
                }
            }
        }
        Ok(record)
    }

    /// The inode of a hard link's target.
    fn link_target(&mut self, target: &EntryPath, link: &EntryPath) -> Result<u32, EntryFault> {
        let missing = || EntryFault::LinkTargetMissing(target.to_string());
        if target.is_root() || target == link {
            return Err(missing());
        }
        let parent = self.directory(target.parent_bytes())?;
        let node = self.find(parent, target.name()).ok_or_else(missing)?;
        let inode = self.nodes[node as usize].inode;
        if inode == NONE || self.is_directory(node) { Err(missing()) } else { Ok(inode) }
    }

    /// Makes a path lead to an inode, in place of what was there.
    fn put(&mut self, path: &EntryPath, inode: u32) -> Result<(), EntryFault> {
        let parent = self.directory(path.parent_bytes())?;
        match self.find(parent, path.name()) {
            // What lies in a replaced directory goes with it.
            Some(node) if self.is_directory(node) => {
                self.remove(node);
                self.push_node(parent, path.name(), inode)?;
            }
            Some(node) => {
                self.nodes[node as usize].inode = inode;
                self.last_directory = None;
            }
            None => {
                self.push_node(parent, path.name(), inode)?;
            }
        }
        Ok(())
    }

    /// The directory at a path, following links within the layer; what is missing is implied.
    fn directory(&mut self, path: &[u8]) -> Result<u32, EntryFault> {
        if let Some((last, node)) = self.last_directory.as_ref().filter(|(last, _)| last == path) {
            debug_assert_eq!(last, path);
            return Ok(*node);
        }
        let mut rest: Vec<Vec<u8>> = components(path).rev().map(<[u8]>::to_vec).collect();
        let (mut current, mut links, mut steps) = (ROOT, 0, 0);
        while let Some(name) = rest.pop() {
            steps += 1;
            if steps > STEPS_MAX {
                return Err(EntryFault::SymlinkLoop);
            }
            if name == b".." {
                current = self.nodes[current as usize].parent;
                continue;
            }
            let found = self.find(current, &name);
            let Some(node) = found.filter(|&node| self.nodes[node as usize].inode != NONE) else {
                current = self.imply_directory(current, &name, found)?;
                continue;
            };
            let inode = self.inode_of(node);
            match inode.kind {
                FileKind::Directory => current = node,
                FileKind::Symlink => {
                    links += 1;
                    if links > SYMLINKS_MAX {
                        return Err(EntryFault::SymlinkLoop);
                    }
                    // Both were taken from the names when the link was added.
                    let target = &self.output.names()[inode.first as usize..][..inode.size_bytes as usize];
                    if target.starts_with(b"/") {
                        current = ROOT;
                    }
                    rest.extend(components(target).rev().map(<[u8]>::to_vec));
                }
                _ => return Err(EntryFault::ParentNotDirectory(name.escape_ascii().to_string())),
            }
        }
        self.last_directory = Some((path.to_vec(), current));
        Ok(current)
    }

    fn imply_directory(&mut self, parent: u32, name: &[u8], whiteout: Option<u32>) -> Result<u32, EntryFault> {
        if name.len() > 255 {
            return Err(EntryFault::Path(crate::tar::PathFault::Long));
        }
        let mut record = InodeRecord::implied_directory();
        if whiteout.is_some() {
            record.flags |= FLAG_OPAQUE | FLAG_NEW;
        }
        let inode = self.push_inode(record)?;
        match whiteout {
            Some(node) => {
                self.nodes[node as usize].inode = inode;
                Ok(node)
            }
            None => self.push_node(parent, name, inode),
        }
    }

    fn is_directory(&self, node: u32) -> bool {
        self.nodes[node as usize].inode != NONE && self.inode_of(node).kind == FileKind::Directory
    }

    /// The inode of a node that is no whiteout.
    fn inode_of(&self, node: u32) -> InodeRecord {
        self.output.inode(self.nodes[node as usize].inode)
    }

    /// Adds flags to a node that is no whiteout.
    fn add_flags(&mut self, node: u32, flags: u8) {
        let mut record = self.inode_of(node);
        record.flags |= flags;
        self.output.set_inode(self.nodes[node as usize].inode, record);
    }

    fn find(&self, parent: u32, name: &[u8]) -> Option<u32> {
        let Self { nodes, output, by_name, sums, .. } = self;
        let is_it = |&at: &u32| {
            let node = &nodes[at as usize];
            node.parent == parent && node.name(output) == name
        };
        by_name.find(sums.hash_one((parent, name)), is_it).copied()
    }

    fn push_inode(&mut self, record: InodeRecord) -> Result<u32, EntryFault> {
        self.output.add_inode(record).map_err(|_| EntryFault::TooLarge)
    }

    fn push_node(&mut self, parent: u32, name: &[u8], inode: u32) -> Result<u32, EntryFault> {
        let name_length = u8::try_from(name.len()).map_err(|_| EntryFault::Path(crate::tar::PathFault::Long))?;
        let name_start = u32::try_from(self.output.add_name(name)).map_err(|_| EntryFault::TooLarge)?;
        let at = self.nodes.len() as u32; // far below 32 bits by the limit on memory
        self.nodes.push(Node { parent, name_start, name_length, is_removed: false, inode });
        let Self { nodes, output, by_name, sums, .. } = self;
        let sum = |&at: &u32| nodes[at as usize].sum(sums, output);
        by_name.insert_unique(sum(&at), at, sum);
        Ok(at)
    }

    /// Takes a node, and with it all that lies below, out of the layer.
    fn remove(&mut self, node: u32) {
        let sum = self.nodes[node as usize].sum(&self.sums, &self.output);
        self.nodes[node as usize].is_removed = true;
        self.last_directory = None;
        if let Ok(found) = self.by_name.find_entry(sum, |&at| at == node) {
            found.remove();
        }
    }

    /// The index file of the layer with this diff id.
    pub(crate) fn finish(mut self, layer: DiffId) -> Result<IndexBytes, TooLarge> {
        self.by_name = HashTable::new();
        let (children, starts) = self.children();
        let Self { nodes, mut output, .. } = self;
        // The final number of each inode: breadth first in byte order.
        let mut numbers = vec![0_u32; output.inode_count() as usize];
        let mut count = 1; // no more than there are inodes
        numbers[0] = count;
        let mut directories = VecDeque::from([ROOT]);
        while let Some(node) = directories.pop_front() {
            let number = nodes[node as usize].inode;
            let mut directory = output.inode(number);
            directory.first = output.entry_count();
            directory.links = 2;
            for &child in &children[starts[node as usize] as usize..starts[node as usize + 1] as usize] {
                let Node { inode, name_start, name_length, .. } = nodes[child as usize];
                directory.count += 1;
                if inode == NONE {
                    output.add_entry((name_start, name_length.into()), 0, WHITEOUT_CODE);
                    continue;
                }
                let child_number = &mut numbers[inode as usize - 1];
                if *child_number == 0 {
                    count += 1;
                    *child_number = count;
                }
                let kind = output.inode(inode).kind;
                output.add_entry((name_start, name_length.into()), *child_number, kind_code(kind));
                if kind == FileKind::Directory {
                    directory.links += 1;
                    directories.push_back(child);
                } else {
                    output.add_link(inode);
                }
            }
            output.set_inode(number, directory);
        }
        output.number_inodes(numbers, count);
        Ok(output.into_bytes(Subject::Layer, &[layer]))
    }

    /// All nodes that are left, by parent and name, and where each parent's start.
    fn children(&mut self) -> (Vec<u32>, Vec<u32>) {
        // A parent comes before what lies in it, so removal spreads downwards in one pass.
        for at in 1..self.nodes.len() {
            self.nodes[at].is_removed |= self.nodes[self.nodes[at].parent as usize].is_removed;
        }
        let mut children: Vec<u32> =
            (1..self.nodes.len() as u32).filter(|&at| !self.nodes[at as usize].is_removed).collect();
        children.sort_unstable_by(|&a, &b| {
            let (a, b) = (&self.nodes[a as usize], &self.nodes[b as usize]);
            a.parent.cmp(&b.parent).then_with(|| a.name(&self.output).cmp(b.name(&self.output)))
        });
        let mut starts = vec![0_u32; self.nodes.len() + 1];
        for &child in &children {
            starts[self.nodes[child as usize].parent as usize + 1] += 1;
        }
        for at in 1..starts.len() {
            starts[at] += starts[at - 1];
        }
        (children, starts)
    }
}

fn device(major: u32, minor: u32) -> u64 {
    u64::from(major) << 32 | u64::from(minor)
}

/// The names of a path; `..` stays, for it means something behind a link.
fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|&b| b == b'/').filter(|name| !matches!(*name, b"" | b"."))
}

#[cfg(test)]
mod tests {
    use super::super::{IndexFile, TreeIndex, merge};
    use super::*;
    use crate::digest::Digester;
    use crate::tree::{Tree, TreeInode};

    fn path(text: &str) -> EntryPath {
        EntryPath::parse(text.as_bytes()).unwrap()
    }

    fn fifo(text: &str) -> Entry {
        Entry::new(path(text), EntryKind::Fifo)
    }

    fn directory(text: &str) -> Entry {
        Entry::new(path(text), EntryKind::Directory)
    }

    fn symlink(text: &str, target: &str) -> Entry {
        Entry::new(path(text), EntryKind::Symlink { target: target.as_bytes().to_vec() })
    }

    fn hard_link(text: &str, target: &str) -> Entry {
        Entry::new(path(text), EntryKind::HardLink { target: path(target) })
    }

    fn built(entries: &[Entry]) -> Result<LayerBuilder, EntryFault> {
        let mut builder = LayerBuilder::new();
        for entry in entries {
            builder.add(&Located { entry: entry.clone(), extents: Vec::new() })?;
        }
        Ok(builder)
    }

    /// All paths of the layer alone, sorted; directories end in a slash.
    fn paths(entries: &[Entry]) -> Vec<String> {
        let bytes = built(entries).unwrap().finish(Digester::new().diff_id()).unwrap().concat();
        let layer = IndexFile::from_bytes(bytes, Subject::Layer).unwrap();
        let bytes = merge(&[&layer]).unwrap().concat();
        let tree = TreeIndex::new(IndexFile::from_bytes(bytes, Subject::Tree).unwrap(), Vec::new(), None);
        let mut paths = Vec::new();
        let mut pending = vec![(String::new(), TreeInode::ROOT)];
        while let Some((parent, inode)) = pending.pop() {
            for entry in tree.entries(inode, 0, usize::MAX).unwrap() {
                let name = format!("{parent}{}", String::from_utf8(entry.name).unwrap());
                if entry.kind == FileKind::Directory {
                    pending.push((format!("{name}/"), entry.inode));
                    paths.push(format!("{name}/"));
                } else {
                    paths.push(name);
                }
            }
        }
        paths.sort();
        paths
    }

    fn refused(entries: &[Entry]) -> String {
        built(entries).err().unwrap().to_string()
    }

    #[test]
    fn entries_below_a_link_land_where_it_leads_within_the_root() {
        assert_eq!(
            paths(&[directory("usr/lib"), symlink("lib", "usr/lib"), fifo("lib/a")]),
            ["lib", "usr/", "usr/lib/", "usr/lib/a"]
        );
        assert_eq!(paths(&[symlink("out", "/../../etc"), fifo("out/a")]), ["etc/", "etc/a", "out"]);
        assert_eq!(paths(&[symlink("d/up", "../../.."), fifo("d/up/a")]), ["a", "d/", "d/up"]);
    }

    #[test]
    fn links_that_go_in_circles_are_refused() {
        assert!(refused(&[symlink("a", "b"), symlink("b", "a"), fifo("a/c")]).contains("too many symbolic links"));
        assert!(refused(&[symlink("a", "a/a"), fifo("a/c")]).contains("too many symbolic links"));
    }

    #[test]
    fn links_that_multiply_the_way_to_an_entry_are_refused() {
        let mut entries = vec![symlink("l0", &"d/../".repeat(800))];
        entries.extend((1..20).map(|at| symlink(&format!("l{at}"), &format!("l{}/l{}", at - 1, at - 1))));
        assert_eq!(paths(&[entries[0].clone(), directory("d"), fifo("l0/a")]), ["a", "d/", "l0"]);
        entries.push(fifo("l19/a"));
        assert!(refused(&entries).contains("too many symbolic links"));
    }

    #[test]
    fn later_entries_replace_earlier_ones_with_all_below_them() {
        assert_eq!(paths(&[fifo("a/b"), fifo("a"), directory("a"), fifo("a/c")]), ["a/", "a/c"]);
        assert_eq!(paths(&[fifo("a/b"), directory("a"), fifo("a/c")]), ["a/", "a/b", "a/c"]);
        assert_eq!(paths(&[symlink("a", "b"), directory("a"), fifo("a/c")]), ["a/", "a/c"]);
    }

    #[test]
    fn entries_below_a_file_are_refused() {
        assert!(refused(&[fifo("a"), fifo("a/b")]).contains("not a directory"));
    }

    #[test]
    fn hard_links_to_nothing_to_directories_and_to_themselves_are_refused() {
        for entries in [
            vec![hard_link("a", "b")],
            vec![directory("b"), hard_link("a", "b")],
            vec![fifo("a"), hard_link("a", "a")],
            vec![hard_link("a", "/")],
            vec![Entry::new(path("b"), EntryKind::Whiteout), hard_link("a", "b")],
        ] {
            assert!(refused(&entries).contains("hard link"), "{entries:?}");
        }
        assert_eq!(paths(&[fifo("a"), hard_link("b", "a"), fifo("a")]), ["a", "b"]);
    }

    #[test]
    fn name_that_is_replaced_over_and_over_costs_no_more_each_time() {
        let mut builder = LayerBuilder::new();
        for _ in 0..20_000 {
            for entry in [fifo("a/b"), fifo("a")] {
                builder.add(&Located { entry: directory("a"), extents: Vec::new() }).unwrap();
                builder.add(&Located { entry, extents: Vec::new() }).unwrap();
            }
        }
        let names = builder.by_name.len();
        assert!(names <= 40_001, "{names}");
    }

    #[test]
    fn metadata_without_end_is_refused_before_it_fills_the_memory() {
        let mut builder = LayerBuilder::new();
        builder.side_bytes = MEMORY_MAX_BYTES;
        let refused = builder.add(&Located { entry: fifo("a"), extents: Vec::new() });
        assert!(refused.unwrap_err().to_string().contains("too many files"));
    }
}
