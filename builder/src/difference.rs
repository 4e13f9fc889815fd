//! What differs: between the files of two images, between their configurations, between a mount and its image.
//!
//! Invariant: files come in the order of a walk through directories by name; content is read only of files of equal
//! length. What a path holds that was added is listed whole, what it held that was removed is not, as docker does.

use std::cmp::Ordering;
use std::io;
use std::path::Path;
use std::sync::Arc;

use layerfs::{Attributes, ChangeKind, DiffId, FileKind, Store, Tree, TreeInode};
use serde::Serialize;
use serde_json::Value;

use crate::changeset::{ChangeSet, Content};
use crate::commit::same_bytes;
use crate::container::ContainerError;
use crate::paths::join;
use crate::place::StoredImage;
use crate::upper::read_changes;

/// A path that is not the same on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// From the root, without a slash at either end; empty for the root directory itself.
    pub path: Vec<u8>,
    /// What became of it.
    pub kind: DifferenceKind,
    /// What of it is not the same; empty where the path is on one side only, and for the changes of a mount.
    pub aspects: Vec<Aspect>,
}

/// What became of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DifferenceKind {
    /// It was not there before.
    Added,
    /// It was there before, and is not the same.
    Changed,
    /// It is not there any more.
    Removed,
}

/// What of a path can differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Aspect {
    /// What is there: a file, a directory, ...
    Kind,
    /// The bytes of a file, the target of a link, the numbers of a device.
    Content,
    /// Permission, set-id and sticky bits.
    Mode,
    /// Owner or group.
    Owner,
    /// The time of the last change of content.
    Time,
    /// Extended attributes.
    Xattrs,
    /// How many names a file has.
    Links,
}

/// What the files of two images of a store have not in common.
///
/// # Errors
/// If a layer cannot be read.
pub fn between_images(store: &Store, before: &[DiffId], after: &[DiffId]) -> Result<Vec<Difference>, ContainerError> {
    let (before, after) = (store.tree(before)?, store.tree(after)?);
    between_trees(before, after).map_err(ContainerError::Compare)
}

/// What a mount, live or over, changed in its image: the directories are those of its upper.
///
/// # Errors
/// If the upper or a layer cannot be read.
pub fn in_upper(
    store: &Store,
    image: &StoredImage,
    upper: &Path,
    work: &Path,
) -> Result<Vec<Difference>, ContainerError> {
    let tree: Arc<dyn Tree> = store.tree(&image.diff_ids())?;
    let changes = read_changes(&tree, upper, work)?;
    let below = ChangeSet::new(tree);
    let difference = |change: &layerfs::Change| {
        let kind = match &change.kind {
            ChangeKind::Whiteout => DifferenceKind::Removed,
            _ if below.below_at(&change.path)?.is_some() => DifferenceKind::Changed,
            _ => DifferenceKind::Added,
        };
        Ok(Difference { path: change.path.clone(), kind, aspects: Vec::new() })
    };
    changes.entries().iter().map(difference).collect::<io::Result<_>>().map_err(ContainerError::Compare)
}

/// Where two JSON documents differ, as pointers (<https://www.rfc-editor.org/rfc/rfc6901>), in order.
pub fn between_documents(before: &Value, after: &Value) -> Vec<String> {
    let mut found = Vec::new();
    documents(before, after, &mut String::new(), &mut found);
    found
}

fn documents(before: &Value, after: &Value, at: &mut String, found: &mut Vec<String>) {
    let mut below = |name: &str, before: Option<&Value>, after: Option<&Value>| {
        let length = at.len();
        at.push('/');
        at.push_str(&name.replace('~', "~0").replace('/', "~1"));
        documents(before.unwrap_or(&Value::Null), after.unwrap_or(&Value::Null), at, found);
        at.truncate(length);
    };
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            let names: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            names.into_iter().for_each(|name| below(name, before.get(name), after.get(name)));
        }
        (Value::Array(before), Value::Array(after)) => {
            let longest = before.len().max(after.len());
            (0..longest).for_each(|number| below(&number.to_string(), before.get(number), after.get(number)));
        }
        _ if before != after => found.push(at.clone()),
        _ => {}
    }
}

fn between_trees(before: Arc<dyn Tree>, after: Arc<dyn Tree>) -> io::Result<Vec<Difference>> {
    let mut comparison = Comparison { before, after, found: Vec::new() };
    comparison.both(TreeInode::ROOT, TreeInode::ROOT, Vec::new())?;
    Ok(comparison.found)
}

struct Comparison {
    before: Arc<dyn Tree>,
    after: Arc<dyn Tree>,
    found: Vec<Difference>,
}

impl Comparison {
    fn note(&mut self, path: &[u8], kind: DifferenceKind, aspects: Vec<Aspect>) {
        self.found.push(Difference { path: path.to_vec(), kind, aspects });
    }

    /// A path that is on both sides, and what lies below it.
    fn both(&mut self, before: TreeInode, after: TreeInode, path: Vec<u8>) -> io::Result<()> {
        let kinds = [self.before.attributes(before)?.kind, self.after.attributes(after)?.kind];
        let aspects = self.aspects(before, after)?;
        if !aspects.is_empty() {
            self.note(&path, DifferenceKind::Changed, aspects);
        }
        match kinds {
            [FileKind::Directory, FileKind::Directory] => self.directories(before, after, &path),
            [_, FileKind::Directory] => self.added_below(after, &path),
            _ => Ok(()),
        }
    }

    fn directories(&mut self, before: TreeInode, after: TreeInode, path: &[u8]) -> io::Result<()> {
        let mut old = self.before.entries(before, 0, usize::MAX)?.into_iter().peekable();
        let mut new = self.after.entries(after, 0, usize::MAX)?.into_iter().peekable();
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => return Ok(()),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(old), Some(new)) => old.name.cmp(&new.name),
            };
            let removed = if order.is_le() { old.next() } else { None };
            let added = if order.is_ge() { new.next() } else { None };
            match (removed, added) {
                (Some(old), Some(new)) => self.both(old.inode, new.inode, join(path, &new.name))?,
                (Some(old), None) => self.note(&join(path, &old.name), DifferenceKind::Removed, Vec::new()),
                (None, Some(new)) => self.added(new.inode, &join(path, &new.name))?,
                (None, None) => unreachable!("one of both is next"),
            }
        }
    }

    fn added(&mut self, inode: TreeInode, path: &[u8]) -> io::Result<()> {
        self.note(path, DifferenceKind::Added, Vec::new());
        match self.after.attributes(inode)?.kind {
            FileKind::Directory => self.added_below(inode, path),
            _ => Ok(()),
        }
    }

    fn added_below(&mut self, directory: TreeInode, path: &[u8]) -> io::Result<()> {
        let entries = self.after.entries(directory, 0, usize::MAX)?;
        entries.iter().try_for_each(|entry| self.added(entry.inode, &join(path, &entry.name)))
    }

    fn aspects(&self, before: TreeInode, after: TreeInode) -> io::Result<Vec<Aspect>> {
        let [old, new] = [self.before.attributes(before)?, self.after.attributes(after)?];
        let owner = |attributes: &Attributes| (attributes.uid, attributes.gid);
        // Those of a directory follow from what lies in it.
        let links = |attributes: &Attributes| if old.kind == FileKind::Directory { 0 } else { attributes.links };
        let is_other = old.kind != new.kind;
        let differs = [
            (Aspect::Kind, is_other),
            (Aspect::Content, !is_other && !self.has_same_content((before, &old), (after, &new))?),
            (Aspect::Mode, old.mode != new.mode),
            (Aspect::Owner, owner(&old) != owner(&new)),
            (Aspect::Time, old.modified != new.modified),
            (Aspect::Xattrs, self.before.xattrs(before)? != self.after.xattrs(after)?),
            (Aspect::Links, !is_other && links(&old) != links(&new)),
        ];
        Ok(differs.into_iter().filter(|(_, differs)| *differs).map(|(aspect, _)| aspect).collect())
    }

    /// Of two inodes of one kind.
    fn has_same_content(&self, old: (TreeInode, &Attributes), new: (TreeInode, &Attributes)) -> io::Result<bool> {
        match old.1.kind {
            FileKind::File if old.1.size_bytes != new.1.size_bytes => Ok(false),
            FileKind::File => {
                let old = Content::Tree(Arc::clone(&self.before), old.0);
                let new = Content::Tree(Arc::clone(&self.after), new.0);
                same_bytes(&mut old.reader(), &mut new.reader())
            }
            FileKind::Symlink => Ok(self.before.read_link(old.0)? == self.after.read_link(new.0)?),
            FileKind::CharacterDevice | FileKind::BlockDevice => Ok(old.1.device == new.1.device),
            FileKind::Directory | FileKind::Fifo | FileKind::Socket => Ok(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Two directories as a shell leaves them, every time in them set to the same.
    fn differences(before: &str, after: &str) -> Vec<(String, DifferenceKind, Vec<Aspect>)> {
        let directories = [before, after].map(|script| {
            let directory = tempfile::tempdir().expect("made");
            let script = format!("set -e; {script}; find . ! -name late -exec touch -hcd @0 {{}} +");
            let made = std::process::Command::new("sh").args(["-c", &script]).current_dir(directory.path()).status();
            assert!(made.expect("sh runs").success());
            directory
        });
        let [before, after] = directories.each_ref().map(|directory| -> Arc<dyn Tree> {
            let opened = std::fs::File::open(directory.path()).expect("opened");
            Arc::new(layerfs::DirectoryStack::new(vec![opened.into()], 16).expect("a tree"))
        });
        let found = between_trees(before, after).expect("compared");
        let text = |path: Vec<u8>| String::from_utf8(path).expect("text");
        found.into_iter().map(|found| (text(found.path), found.kind, found.aspects)).collect()
    }

    #[test]
    fn what_was_added_is_listed_whole_and_what_was_removed_is_not() {
        use DifferenceKind::{Added, Changed, Removed};
        let found = differences(
            "mkdir -p gone/deep same; touch gone/deep/file same/a same/file; mkdir same/turned; touch same/turned/x",
            "mkdir -p new/deep same/file; touch new/deep/file same/a same/b same/file/below same/turned",
        );
        let expected = [
            ("gone", Removed, vec![]),
            ("new", Added, vec![]),
            ("new/deep", Added, vec![]),
            ("new/deep/file", Added, vec![]),
            ("same/b", Added, vec![]),
            ("same/file", Changed, vec![Aspect::Kind, Aspect::Mode]),
            ("same/file/below", Added, vec![]),
            ("same/turned", Changed, vec![Aspect::Kind, Aspect::Mode]),
        ];
        assert_eq!(found, expected.map(|(path, kind, aspects)| (path.to_owned(), kind, aspects)));
    }

    #[test]
    fn each_aspect_of_a_file_is_told_apart() {
        let before = "echo one > content; echo 1 > length; touch equal links mode owner; touch -d @0 late; ln -s a link; \
            touch xattrs";
        let after = "echo two > content; echo 10 > length; touch equal links mode owner; touch -d @9 late; ln -s b link; \
            touch xattrs; chmod 600 mode; chown 7:0 owner; ln links more; setfattr -n user.a -v b xattrs";
        let found = differences(before, after);
        let changed = |path: &str, aspect| (path.to_owned(), DifferenceKind::Changed, vec![aspect]);
        let expected = [
            changed("content", Aspect::Content),
            changed("late", Aspect::Time),
            changed("length", Aspect::Content),
            changed("link", Aspect::Content),
            changed("links", Aspect::Links),
            changed("mode", Aspect::Mode),
            ("more".to_owned(), DifferenceKind::Added, vec![]),
            changed("owner", Aspect::Owner),
            changed("xattrs", Aspect::Xattrs),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn documents_differ_where_their_values_do() {
        let before = json!({"a": [1, 2, 3], "b": {"x/y": 1, "same": true}, "gone": null, "d": 1});
        let after = json!({"a": [1, 4], "b": {"x/y": 2, "same": true}, "d": {"e": 1}});
        assert_eq!(between_documents(&before, &after), ["/a/1", "/a/2", "/b/x~1y", "/d"]);
        assert_eq!(between_documents(&before, &before), [""; 0]);
    }
}
