//! Merges the indexes of a stack of layers into that of its tree.
//!
//! Invariant: the result has no whiteouts and depends on the layers alone, and has at
//! most as many entries as the layers together, even where a layer index is damaged.
//!
//! Rules: <https://github.com/opencontainers/image-spec/blob/main/layer.md#applying-changesets>. Names
//! of one file in one layer stay one file, whichever of them upper layers replace. A directory that a
//! layer only implies has the attributes of the one below.

use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};

use super::file::{EntryRecord, IndexError, IndexFile};
use super::format::{
    FLAG_IMPLIED, FLAG_NEW, FLAG_OPAQUE, IndexBytes, InodeRecord, Output, Subject, TooLarge, kind_code,
};
use crate::digest::DiffId;
use crate::tree::FileKind;

/// A directory of one layer: (number of the layer, number of the inode, the inode).
type Part = (u32, u64, InodeRecord);

/// The tree index of a stack, lowest layer first. A stack of no layers is an empty root.
///
/// # Errors
/// A damaged layer index, or a tree of more than 32 bits of inodes or names.
pub(crate) fn merge(layers: &[&IndexFile]) -> Result<IndexBytes, IndexError> {
    let mut merge = Merge { layers, output: Output::default(), linked: HashMap::new() };
    let entries_max = layers.iter().map(|layer| layer.entry_count()).sum::<u64>();
    let mut root = Directory::default();
    for (number, layer) in layers.iter().enumerate().rev() {
        root.add((u32::try_from(number).map_err(|_| TooLarge)?, 1, layer.inode(1)?));
    }
    let mut queue = VecDeque::from([(merge.add_directory(&root)?, root.parts)]);
    while let Some((number, parts)) = queue.pop_front() {
        merge.fill_directory(number, &parts, &mut queue)?;
        if merge.output.entry_count() > entries_max {
            return Err(IndexError::Damaged("a directory has several names"));
        }
    }
    let ids: Vec<DiffId> = layers.iter().flat_map(|layer| layer.layers()).collect();
    Ok(merge.output.into_bytes(Subject::Tree, &ids))
}

/// A directory of the tree, put together from the highest layer downwards.
#[derive(Default)]
struct Directory {
    /// Those whose names show.
    parts: Vec<Part>,
    /// The highest that an entry describes: its attributes show.
    described: Option<Part>,
    is_opaque: bool,
    is_complete: bool,
}

impl Directory {
    /// Adds the part of the next lower layer, as far as anything of it shows.
    fn add(&mut self, part: Part) {
        let flags = part.2.flags;
        if self.is_complete {
            return;
        }
        if !self.is_opaque {
            self.parts.push(part);
        }
        if flags & FLAG_IMPLIED == 0 {
            self.described.get_or_insert(part);
        }
        self.is_opaque |= flags & FLAG_OPAQUE != 0;
        // An opaque directory that no entry describes has the attributes of the one below, unless it is new.
        self.is_complete = self.is_opaque && (self.described.is_some() || flags & FLAG_NEW != 0);
    }
}

struct Merge<'a> {
    layers: &'a [&'a IndexFile],
    output: Output,
    /// Numbers of inodes with several names, by layer and number there.
    linked: HashMap<(u32, u32), u32>,
}

impl Merge<'_> {
    /// Adds a directory, without its entries yet.
    fn add_directory(&mut self, directory: &Directory) -> Result<u32, IndexError> {
        let record = match directory.described {
            Some((layer, _, inode)) => {
                let xattrs = self.layers[layer as usize].xattr_blob(&inode)?;
                InodeRecord { xattrs: self.output.add_xattrs(xattrs)?, ..inode }
            }
            None => InodeRecord::implied_directory(),
        };
        Ok(self.output.add_inode(InodeRecord { flags: 0, links: 2, first: 0, count: 0, ..record })?)
    }

    /// Writes the entries of a directory, and puts the directories among them into the queue.
    fn fill_directory(
        &mut self,
        number: u32,
        parts: &[Part],
        queue: &mut VecDeque<(u32, Vec<Part>)>,
    ) -> Result<(), IndexError> {
        let layers = self.layers;
        let mut directory = self.output.inode(number);
        directory.first = self.output.entry_count();
        let mut positions = vec![0_u32; parts.len()];
        let mut found = Vec::new();
        while next_name(layers, parts, &mut positions, &mut found)? {
            let Some((kind, child)) = self.resolve(&found, queue)? else { continue };
            let name = self.output.add_entry_name(found[0].1.name)?;
            self.output.add_entry(name, child, kind_code(kind));
            directory.count += 1;
            if kind == FileKind::Directory {
                directory.links += 1;
            } else {
                self.output.add_link(child);
            }
        }
        self.output.set_inode(number, directory);
        Ok(())
    }

    /// What the entries of one name, highest layer first, come to; `None` if it is removed.
    fn resolve(
        &mut self,
        found: &[(u32, EntryRecord<'_>)],
        queue: &mut VecDeque<(u32, Vec<Part>)>,
    ) -> Result<Option<(FileKind, u32)>, IndexError> {
        let mut directory = Directory::default();
        for &(layer, entry) in found {
            let Some(kind) = entry.kind else { break };
            let inode = self.layers[layer as usize].inode(u64::from(entry.inode))?;
            if inode.kind != kind {
                return Err(IndexError::Damaged("an entry is of another kind than its inode"));
            }
            if kind != FileKind::Directory {
                if directory.parts.is_empty() {
                    return self.add_file(layer, entry.inode, &inode).map(|number| Some((kind, number)));
                }
                break;
            }
            directory.add((layer, u64::from(entry.inode), inode));
        }
        if directory.parts.is_empty() {
            return Ok(None);
        }
        let number = self.add_directory(&directory)?;
        queue.push_back((number, directory.parts));
        Ok(Some((FileKind::Directory, number)))
    }

    /// Adds what is no directory, once for all of its names.
    fn add_file(&mut self, layer: u32, inode: u32, record: &InodeRecord) -> Result<u32, IndexError> {
        if let Some(&number) = self.linked.get(&(layer, inode)) {
            return Ok(number);
        }
        let index = self.layers[layer as usize];
        let mut copy = InodeRecord { flags: 0, links: 0, layer, ..*record };
        copy.xattrs = self.output.add_xattrs(index.xattr_blob(record)?)?;
        if record.kind == FileKind::Symlink {
            copy.first = self.output.add_name(index.name(record.first, record.size_bytes)?);
        }
        if record.kind == FileKind::File && record.count > 0 {
            let extents: Result<Vec<_>, _> = (0..record.count).map(|number| index.extent(record, number)).collect();
            copy.first = self.output.add_extents(extents?);
        }
        let number = self.output.add_inode(copy)?;
        if record.links > 1 {
            self.linked.insert((layer, inode), number);
        }
        Ok(number)
    }
}

/// Puts the entries of the next name in byte order, highest layer first, into `found`, and moves the
/// positions behind it; `false` at the end.
fn next_name<'a>(
    layers: &[&'a IndexFile],
    parts: &[Part],
    positions: &mut [u32],
    found: &mut Vec<(u32, EntryRecord<'a>)>,
) -> Result<bool, IndexError> {
    found.clear();
    for ((layer, number, inode), &position) in parts.iter().zip(&*positions) {
        if position >= inode.count {
            continue;
        }
        let entry = layers[*layer as usize].entry(*number, inode, position)?;
        match found.first().map(|(_, least)| entry.name.cmp(least.name)) {
            Some(Ordering::Greater) => continue,
            Some(Ordering::Less) => found.clear(),
            Some(Ordering::Equal) | None => {}
        }
        found.push((*layer, entry));
    }
    // Both have the order of the layers, so one walk finds the parts that took part.
    let mut taken = found.iter().map(|(layer, _)| *layer).peekable();
    for ((layer, ..), position) in parts.iter().zip(positions) {
        if taken.next_if_eq(layer).is_some() {
            *position += 1;
        }
    }
    Ok(!found.is_empty())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::{LayerBuilder, TreeIndex};
    use super::*;
    use crate::digest::Digester;
    use crate::tar::{Entry, EntryKind, EntryPath, Extent, Located};
    use crate::tree::{Tree, TreeInode};

    /// Made of nothing but maps: what applying layers one after the other to a directory gives.
    /// Files have an identity (`uid`, unique per described file), which hard links share.
    #[derive(Debug, Clone, PartialEq, Eq)]
    enum Model {
        Directory { uid: u32, names: BTreeMap<Vec<u8>, Model> },
        Leaf { uid: u32 },
    }

    impl Model {
        fn directory(uid: u32) -> Self {
            Self::Directory { uid, names: BTreeMap::new() }
        }

        fn names(&mut self) -> Option<&mut BTreeMap<Vec<u8>, Model>> {
            match self {
                Self::Directory { names, .. } => Some(names),
                Self::Leaf { .. } => None,
            }
        }

        /// The directory at a path, with what is missing, or in its way, replaced by directories.
        fn implied(&mut self, path: &EntryPath) -> &mut BTreeMap<Vec<u8>, Model> {
            let mut at = self;
            for name in path.components() {
                let child = at.names().unwrap().entry(name.to_vec()).or_insert_with(|| Model::directory(0));
                if child.names().is_none() {
                    *child = Model::directory(0);
                }
                at = child;
            }
            at.names().unwrap()
        }

        fn find(&self, path: &EntryPath) -> Option<&Model> {
            path.components().try_fold(self, |at, name| match at {
                Model::Directory { names, .. } => names.get(name),
                Model::Leaf { .. } => None,
            })
        }

        fn remove(&mut self, path: &EntryPath) {
            self.implied(&path.parent()).remove(path.name());
        }

        /// Applies a layer: its deletions first, as they concern what was below, then its entries.
        fn apply(&mut self, layer: &[Entry]) {
            for entry in layer {
                match entry.kind {
                    EntryKind::Whiteout => self.remove(&entry.path),
                    EntryKind::Opaque => self.implied(&entry.path).clear(),
                    _ => {}
                }
            }
            for entry in layer {
                let uid = entry.uid;
                match &entry.kind {
                    EntryKind::Whiteout | EntryKind::Opaque => {}
                    EntryKind::Directory => {
                        let names = std::mem::take(self.implied(&entry.path));
                        let parent = self.implied(&entry.path.parent());
                        parent.insert(entry.path.name().to_vec(), Model::Directory { uid, names });
                    }
                    EntryKind::HardLink { target } => {
                        let Some(Model::Leaf { uid }) = self.find(target).cloned() else { panic!("{target}") };
                        self.implied(&entry.path.parent()).insert(entry.path.name().to_vec(), Model::Leaf { uid });
                    }
                    _ => {
                        self.implied(&entry.path.parent()).insert(entry.path.name().to_vec(), Model::Leaf { uid });
                    }
                }
            }
        }

        /// How many names each identity has.
        fn count_links(&self, links: &mut BTreeMap<u32, u32>) {
            match self {
                Self::Leaf { uid } => *links.entry(*uid).or_default() += 1,
                Self::Directory { names, .. } => names.values().for_each(|child| child.count_links(links)),
            }
        }
    }

    fn index(layer: &[Entry]) -> IndexFile {
        let mut builder = LayerBuilder::new();
        for entry in layer {
            builder.add(&Located { entry: entry.clone(), extents: Vec::new() }).unwrap();
        }
        IndexFile::from_bytes(builder.finish(Digester::new().diff_id()).unwrap().concat(), Subject::Layer).unwrap()
    }

    pub(super) fn tree(stack: &[Vec<Entry>]) -> TreeIndex {
        let layers: Vec<_> = stack.iter().map(|layer| index(layer)).collect();
        let bytes = merge(&layers.iter().collect::<Vec<_>>()).unwrap().concat();
        TreeIndex::new(IndexFile::from_bytes(bytes, Subject::Tree).unwrap(), Vec::new(), None)
    }

    fn compare(tree: &TreeIndex, inode: TreeInode, model: &Model, links: &BTreeMap<u32, u32>) {
        let attributes = tree.attributes(inode).unwrap();
        match model {
            Model::Leaf { uid } => {
                assert_eq!(attributes.uid, *uid);
                assert_eq!(attributes.links, links[uid]);
                assert_ne!(attributes.kind, FileKind::Directory);
            }
            Model::Directory { uid, names } => {
                assert_eq!(attributes.uid, *uid);
                assert_eq!(attributes.kind, FileKind::Directory);
                let entries = tree.entries(inode, 0, usize::MAX).unwrap();
                assert_eq!(
                    entries.iter().map(|entry| &entry.name).collect::<Vec<_>>(),
                    names.keys().collect::<Vec<_>>()
                );
                let directories = names.values().filter(|child| matches!(child, Model::Directory { .. })).count();
                assert_eq!(attributes.links as usize, 2 + directories);
                for entry in entries {
                    assert_eq!(tree.lookup(inode, &entry.name).unwrap(), Some(entry.inode));
                    assert_eq!(tree.attributes(entry.inode).unwrap().kind, entry.kind);
                    compare(tree, entry.inode, &names[&entry.name], links);
                }
            }
        }
    }

    fn path(text: &str) -> EntryPath {
        EntryPath::parse(text.as_bytes()).unwrap()
    }

    fn entry(text: &str, kind: EntryKind, uid: u32) -> Entry {
        Entry { uid, ..Entry::new(path(text), kind) }
    }

    fn any_entry() -> impl Strategy<Value = (String, u8)> {
        ("[abc](/[abc]){0,3}", 0_u8..10)
    }

    /// Makes a layer that real tools could make: no path twice, nothing below a file, links to what is there.
    fn layer(raw: Vec<(String, u8)>, next_uid: &mut u32) -> Vec<Entry> {
        let mut raw: Vec<_> = raw.into_iter().collect();
        raw.sort();
        raw.dedup_by(|a, b| a.0 == b.0);
        let mut layer: Vec<Entry> = Vec::new();
        for (text, choice) in raw {
            *next_uid += 1;
            let is_below_leaf = layer.iter().any(|other| {
                let is_leaf = !matches!(other.kind, EntryKind::Directory | EntryKind::Opaque | EntryKind::Whiteout);
                is_leaf && text.as_bytes().starts_with(&[other.path.as_bytes(), b"/"].concat())
            });
            if is_below_leaf {
                continue;
            }
            let files = layer.iter().filter(|other| matches!(other.kind, EntryKind::Fifo));
            let target = files.max_by_key(|file| file.uid).map(|file| file.path.clone());
            let kind = match (choice, target) {
                (0..=5, _) => EntryKind::Directory,
                (6, Some(target)) => EntryKind::HardLink { target },
                _ => EntryKind::Fifo,
            };
            if choice <= 2 {
                layer.push(entry(&text, if choice == 0 { EntryKind::Whiteout } else { EntryKind::Opaque }, 0));
            }
            if choice >= 2 {
                layer.push(entry(&text, kind, *next_uid));
            }
        }
        layer
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn merged_layers_are_what_applying_them_one_by_one_gives(
            raw in proptest::collection::vec(proptest::collection::vec(any_entry(), 0..14), 0..5),
        ) {
            let mut next_uid = 0;
            let stack: Vec<_> = raw.into_iter().map(|raw| layer(raw, &mut next_uid)).collect();
            let mut model = Model::directory(0);
            stack.iter().for_each(|layer| model.apply(layer));
            let mut links = BTreeMap::new();
            model.count_links(&mut links);
            compare(&tree(&stack), TreeInode::ROOT, &model, &links);
        }

        #[test]
        fn damaged_index_gives_errors_and_never_a_panic_or_a_circle(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            cut in any::<prop::sample::Index>(),
            is_cut in proptest::bool::weighted(0.1),
            is_tree: bool,
        ) {
            let layer_index = rich_layer();
            let (mut bytes, subject) = match is_tree {
                false => (layer_index, Subject::Layer),
                true => {
                    let layer = IndexFile::from_bytes(layer_index, Subject::Layer).unwrap();
                    (merge(&[&layer, &layer]).unwrap().concat(), Subject::Tree)
                }
            };
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if is_cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            let Ok(file) = IndexFile::from_bytes(bytes, subject) else { return Ok(()) };
            if is_tree {
                walk(&TreeIndex::new(file, Vec::new(), None));
            } else {
                let _ = merge(&[&file, &file]);
            }
        }
    }

    /// The index of a layer that uses every section.
    fn rich_layer() -> Vec<u8> {
        let mut builder = LayerBuilder::new();
        let mut add = |mut entry: Entry, extents: &[(u64, u64, u64)]| {
            entry.xattrs = vec![(b"user.a".to_vec(), entry.path.as_bytes().to_vec())];
            let extents = extents.iter().map(|&(offset, size_bytes, position)| Extent { offset, size_bytes, position });
            builder.add(&Located { entry, extents: extents.collect() }).unwrap();
        };
        add(entry("a/b/c", EntryKind::File { size_bytes: 100 }, 1), &[(0, 100, 512)]);
        add(entry("a/b/sparse", EntryKind::File { size_bytes: 100 }, 1), &[(0, 10, 512), (50, 10, 522)]);
        add(entry("a/link", EntryKind::Symlink { target: b"b/c".to_vec() }, 1), &[]);
        add(entry("a/again", EntryKind::HardLink { target: path("a/b/c") }, 1), &[]);
        add(entry("z", EntryKind::CharacterDevice { major: 1, minor: 3 }, 1), &[]);
        add(entry("a/gone", EntryKind::Whiteout, 1), &[]);
        add(entry("a/b", EntryKind::Opaque, 1), &[]);
        builder.finish(Digester::new().diff_id()).unwrap().concat()
    }

    fn walk(tree: &TreeIndex) {
        let mut pending = vec![TreeInode::ROOT];
        while let Some(inode) = pending.pop() {
            let _ = (tree.read_link(inode), tree.xattrs(inode), tree.data_extents(inode), tree.lookup(inode, b"b"));
            let _ = (tree.attributes(inode), tree.read_at(inode, 5, &mut [0; 70]));
            for entry in tree.entries(inode, 0, usize::MAX).unwrap_or_default() {
                pending.push(entry.inode);
            }
        }
    }

    #[test]
    fn whiteout_and_new_directory_in_one_layer_hide_what_was_below() {
        let below = vec![entry("a/old", EntryKind::Fifo, 1)];
        let above = vec![entry("a/new", EntryKind::Fifo, 2), entry("a", EntryKind::Whiteout, 0)];
        let tree = tree(&[below, above]);
        let a = tree.lookup(TreeInode::ROOT, b"a").unwrap().unwrap();
        assert_eq!(tree.lookup(a, b"old").unwrap(), None);
        assert!(tree.lookup(a, b"new").unwrap().is_some());
    }

    #[test]
    fn implied_directory_keeps_the_attributes_of_the_one_below() {
        let below = vec![Entry { mode: 0o1777, ..entry("tmp", EntryKind::Directory, 7) }];
        let tree = tree(&[below, vec![entry("tmp/file", EntryKind::Fifo, 1)]]);
        let tmp = tree.attributes(tree.lookup(TreeInode::ROOT, b"tmp").unwrap().unwrap()).unwrap();
        assert_eq!((tmp.mode, tmp.uid), (0o1777, 7));
    }

    #[test]
    fn opaque_directory_that_no_entry_describes_keeps_the_attributes_of_the_one_below() {
        let below = vec![entry("tmp", EntryKind::Directory, 7), entry("tmp/old", EntryKind::Fifo, 1)];
        let tmp = |above| {
            let tree = tree(&[below.clone(), vec![entry("tmp", above, 0), entry("tmp/new", EntryKind::Fifo, 2)]]);
            let inode = tree.lookup(TreeInode::ROOT, b"tmp").unwrap().unwrap();
            (tree.attributes(inode).unwrap().uid, tree.entries(inode, 0, 9).unwrap().len())
        };
        assert_eq!(tmp(EntryKind::Opaque), (7, 1));
        assert_eq!(tmp(EntryKind::Whiteout), (0, 1));
    }

    #[test]
    fn hard_links_stay_one_file_when_an_upper_layer_replaces_one_of_them() {
        let link = |name| entry(name, EntryKind::HardLink { target: path("a") }, 0);
        let below = vec![entry("a", EntryKind::Fifo, 1), link("b"), link("c")];
        let tree = tree(&[below, vec![entry("a", EntryKind::Fifo, 2)]]);
        let of = |name: &[u8]| tree.lookup(TreeInode::ROOT, name).unwrap().unwrap();
        assert_eq!(of(b"b"), of(b"c"));
        assert_ne!(of(b"a"), of(b"b"));
        assert_eq!(tree.attributes(of(b"b")).unwrap().links, 2);
        assert_eq!(tree.attributes(of(b"a")).unwrap().links, 1);
    }

    #[test]
    fn stack_of_no_layers_is_an_empty_root() {
        let tree = tree(&[]);
        assert_eq!(tree.entries(TreeInode::ROOT, 0, 10).unwrap(), []);
        assert_eq!(tree.attributes(TreeInode::ROOT).unwrap().mode, 0o755);
        assert_eq!(
            tree.attributes(TreeInode(2)).unwrap_err().raw_os_error(),
            Some(rustix::io::Errno::STALE.raw_os_error())
        );
    }

    #[test]
    fn tree_is_shared_between_threads() {
        fn is_shared<T: Send + Sync>(_: &T) {}
        is_shared(&Arc::new(tree(&[])));
    }
}
