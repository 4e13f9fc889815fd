//! COPY and ADD of what is already a tree: the build context, a stage, an image, an archive.
//!
//! The rules are BuildKit's (its `solver/llbsolver/file` and `fsutil/copy`): where a source lands,
//! which directories are made, and whose metadata wins. Nothing here touches a disk: entries go
//! from a [`Tree`] into a [`ChangeSet`].

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use layerfs::{FileKind, Time, Tree, TreeInode};

use super::select::{Filter, Selected, SourceTree};
use crate::changeset::{ChangeSet, Node, NodeId, Owner};
use crate::context::Patterns;
use crate::dockerfile::ModeChange;
use crate::paths::{base_name, clean, join, parent};

/// What the flags of a COPY or ADD ask for.
pub(crate) struct CopyOptions {
    /// `--chown`.
    pub(crate) owner: Option<Owner>,
    /// `--chmod`.
    pub(crate) mode: Option<ModeChange>,
    /// `--exclude`, matched against paths below a copied directory.
    pub(crate) exclude: Option<Patterns>,
    /// The time that everything copied gets; `None` keeps the source's.
    pub(crate) modified: Option<Time>,
    /// The time of directories made on the way.
    pub(crate) made: Time,
}

impl CopyOptions {
    /// Nothing is asked for; `made` is the time of directories that no source has.
    pub(crate) fn keeping_all(made: Time) -> Self {
        Self { owner: None, mode: None, exclude: None, modified: None, made }
    }

    fn owner_of(&self, source: Owner) -> Owner {
        self.owner.unwrap_or(source)
    }

    /// A directory made on the way to the destination.
    fn made_directory(&self) -> Node {
        let octal = self.mode.as_ref().filter(|mode| mode.is_octal());
        let mode = octal.map_or(0o755, |mode| mode.apply(0, true) & 0o777);
        Node::directory(mode, self.owner.unwrap_or_default(), self.made)
    }
}

/// Why a copy failed; the caller adds the instruction and its place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    #[error("cannot copy a directory onto /{path}, which is not a directory")]
    DirectoryOntoFile { path: String },
    #[error("cannot replace the directory /{path} with a file")]
    FileOntoDirectory { path: String },
    #[error("cannot make the directory /{path}: something else is there")]
    NotADirectory { path: String },
    #[error("cannot read /{path} of the source: {cause}")]
    Read { path: String, cause: io::Error },
    #[error("cannot reach the destination /{path}: {cause}")]
    Destination { path: String, cause: io::Error },
}

/// Copies entries of one source tree into a change set. Names that are hard links of one file in
/// the source stay so in the destination as long as one `Copier` copies them.
pub(crate) struct Copier<'a> {
    changes: &'a mut ChangeSet,
    options: &'a CopyOptions,
    tree: &'a Arc<dyn Tree>,
    links: HashMap<TreeInode, NodeId>,
    filter: Filter<'a>,
    /// The directories around what is looked at now that are not copied themselves, the outermost first.
    passed: Vec<Passed>,
}

/// A directory that is not copied itself, which is made once something below it is copied.
struct Passed {
    inode: TreeInode,
    source: Vec<u8>,
    target: Vec<u8>,
    is_made: bool,
}

impl<'a> Copier<'a> {
    pub(crate) fn new(changes: &'a mut ChangeSet, options: &'a CopyOptions, source: &'a SourceTree) -> Self {
        let filter = Filter { include: None, exclude: options.exclude.as_ref() };
        Self { changes, options, tree: source.tree(), links: HashMap::new(), filter, passed: Vec::new() }
    }

    /// With this, only what `pattern` matches below a source is copied, and the directories on the way to it: `--parents`.
    pub(crate) fn including(mut self, pattern: Option<&'a Patterns>) -> Self {
        self.filter.include = pattern;
        self
    }

    /// Copies one selected source to `destination`, an absolute path as it was written: one that
    /// ends in a slash names a directory.
    pub(crate) fn copy(&mut self, selected: &Selected, destination: &[u8]) -> Result<(), CopyError> {
        self.make_destination(destination)?;
        let mut target = self.resolve(destination)?;
        let kind = self.attributes(selected.inode, &selected.path)?.kind;
        if kind != FileKind::Directory && self.is_directory(&target)? {
            // A link of that name in the directory is not followed, but replaced.
            target = join(&target, base_name(&selected.path));
        }
        // Only what is in a directory is copied: the one that it goes to has nothing of the source but its time.
        let made = if kind == FileKind::Directory { target.as_slice() } else { parent(&target) };
        if !made.is_empty() {
            self.make_directories(made)?;
        }
        if kind != FileKind::Directory {
            return self.copy_entry(selected.inode, &selected.path, &target);
        }
        let modified = self.node(selected.inode, &selected.path)?.attributes.modified;
        if self.stat(&target)?.is_some_and(|there| !target.is_empty() && there.modified != modified) {
            self.changes.set_modified(&target, modified).map_err(|cause| self::destination(&target, cause))?;
        }
        self.copy_tree(selected.inode, &selected.path, b"", &target, false)
    }

    /// Copies all of a repository. As in BuildKit, but for no other source, a symbolic `--chmod` is also for a new
    /// destination whose name does not end in a slash.
    pub(crate) fn copy_repository(&mut self, destination: &[u8]) -> Result<(), CopyError> {
        let top = self.resolve(&clean(destination))?;
        let is_new = !destination.ends_with(b"/") && self.stat(&top)?.is_none();
        self.copy(&Selected::root(), destination)?;
        match self.options.mode.as_ref().filter(|mode| is_new && !mode.is_octal()) {
            Some(mode) => {
                let changed = self.changes.set_mode(&top, mode.apply(0o755, true));
                changed.map(drop).map_err(|cause| self::destination(&top, cause))
            }
            None => Ok(()),
        }
    }

    /// A file that comes from no tree: a here-document, a download. It is called `name` in a directory.
    pub(crate) fn copy_file(&mut self, name: &str, mut node: Node, destination: &[u8]) -> Result<(), CopyError> {
        self.make_destination(destination)?;
        let mut target = self.resolve(destination)?;
        if self.is_directory(&target)? {
            target = join(&target, name.as_bytes());
        }
        if self.is_directory(&target)? {
            return Err(CopyError::FileOntoDirectory { path: lossy(&target) });
        }
        if let Some(mode) = &self.options.mode {
            node.attributes.mode = mode.apply(node.attributes.mode, false);
        }
        self.changes.put(&target, node).map(drop).map_err(|cause| self::destination(&target, cause))
    }

    /// As `fsutil` has it, everything up to the last slash must exist before the rest is resolved.
    pub(crate) fn make_destination(&mut self, destination: &[u8]) -> Result<(), CopyError> {
        let last = base_name(destination);
        let directory = if last.is_empty() || last == b"." {
            destination.to_vec()
        } else {
            destination[..destination.len() - last.len()].to_vec()
        };
        let directory = self.resolve(&directory)?;
        self.make_directories(&directory)
    }

    /// Copies what is at `inode`. `relative` is its path below the source, for `--exclude`;
    /// `overwrite` is whether an existing directory takes the source's metadata.
    fn copy_tree(
        &mut self,
        inode: TreeInode,
        source: &[u8],
        relative: &[u8],
        target: &[u8],
        overwrite: bool,
    ) -> Result<(), CopyError> {
        if self.attributes(inode, source)?.kind != FileKind::Directory {
            return self.copy_entry(inode, source, target);
        }
        self.copy_directory_itself(inode, source, target, overwrite)?;
        self.copy_children(inode, source, relative, target)
    }

    fn copy_children(
        &mut self,
        directory: TreeInode,
        source: &[u8],
        relative: &[u8],
        target: &[u8],
    ) -> Result<(), CopyError> {
        /// Names read at a time: bounds the memory of a directory with a million of them.
        const BATCH: usize = 4096;
        let mut start = 0;
        loop {
            let entries = self
                .tree
                .entries(directory, start, BATCH)
                .map_err(|cause| CopyError::Read { path: lossy(source), cause })?;
            for entry in &entries {
                let below = join(relative, &entry.name);
                let from = join(source, &entry.name);
                let to = join(target, &entry.name);
                if self.filter.takes(&below) {
                    self.make_passed()?;
                    self.copy_tree(entry.inode, &from, &below, &to, true)?;
                } else if entry.kind == FileKind::Directory && self.filter.may_take_below(&below) {
                    let (inode, is_made) = (entry.inode, false);
                    self.passed.push(Passed { inode, source: from.clone(), target: to.clone(), is_made });
                    self.copy_children(entry.inode, &from, &below, &to)?;
                    self.passed.pop();
                }
            }
            if entries.len() < BATCH {
                return Ok(());
            }
            start += entries.len() as u64;
        }
    }

    fn make_passed(&mut self) -> Result<(), CopyError> {
        let mut passed = std::mem::take(&mut self.passed);
        for one in passed.iter_mut().filter(|one| !one.is_made) {
            self.pass_directory(one.inode, &one.source, &one.target)?;
            one.is_made = true;
        }
        self.passed = passed;
        Ok(())
    }

    /// A directory on the way to what is copied: a new one is copied, one that is there takes only the source's mode.
    fn pass_directory(&mut self, inode: TreeInode, source: &[u8], target: &[u8]) -> Result<(), CopyError> {
        match self.stat(target)? {
            Some(there) if there.kind == FileKind::Directory => {
                let mode = self.attributes(inode, source)?.mode;
                if mode != there.mode {
                    self.changes.set_mode(target, mode).map_err(|cause| destination(target, cause))?;
                }
                Ok(())
            }
            _ => self.copy_directory_itself(inode, source, target, true),
        }
    }

    fn copy_directory_itself(
        &mut self,
        inode: TreeInode,
        source: &[u8],
        target: &[u8],
        overwrite: bool,
    ) -> Result<(), CopyError> {
        let existing = self.stat(target)?;
        match existing {
            Some(there) if there.kind != FileKind::Directory => {
                return Err(CopyError::DirectoryOntoFile { path: lossy(target) });
            }
            // Under --parents the directories on the way may be missing.
            None => self.make_directories(parent(target))?,
            Some(_) if !overwrite => return Ok(()),
            Some(_) => {}
        }
        if target.is_empty() {
            return Ok(());
        }
        let node = self.node(inode, source)?;
        self.changes.put(target, node).map(drop).map_err(|cause| destination(target, cause))
    }

    fn copy_entry(&mut self, inode: TreeInode, source: &[u8], target: &[u8]) -> Result<(), CopyError> {
        if self.is_directory(target)? {
            return Err(CopyError::FileOntoDirectory { path: lossy(target) });
        }
        if let Some(id) = self.links.get(&inode) {
            self.changes.link(target, *id);
            return Ok(());
        }
        let links = self.attributes(inode, source)?.links;
        let node = self.node(inode, source)?;
        let id = self.changes.put(target, node).map_err(|cause| destination(target, cause))?;
        if links > 1 {
            self.links.insert(inode, id);
        }
        Ok(())
    }

    /// The node of a source with what the flags change.
    fn node(&self, inode: TreeInode, source: &[u8]) -> Result<Node, CopyError> {
        let mut node =
            Node::of_tree(self.tree, inode).map_err(|cause| CopyError::Read { path: lossy(source), cause })?;
        let attributes = &mut node.attributes;
        let owner = self.options.owner_of(Owner { uid: attributes.uid, gid: attributes.gid });
        (attributes.uid, attributes.gid) = (owner.uid, owner.gid);
        if let Some(mode) = &self.options.mode
            && attributes.kind != FileKind::Symlink
        {
            attributes.mode = mode.apply(attributes.mode, attributes.kind == FileKind::Directory);
        }
        if let Some(modified) = self.options.modified {
            attributes.modified = modified;
        }
        Ok(node)
    }

    fn make_directories(&mut self, path: &[u8]) -> Result<(), CopyError> {
        match self.changes.make_directories(path, &self.options.made_directory()) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                Err(CopyError::NotADirectory { path: lossy(path) })
            }
            Err(cause) => Err(destination(path, cause)),
        }
    }

    fn resolve(&self, path: &[u8]) -> Result<Vec<u8>, CopyError> {
        self.changes.resolve(path).map_err(|cause| destination(path, cause))
    }

    fn stat(&self, path: &[u8]) -> Result<Option<layerfs::Attributes>, CopyError> {
        self.changes.stat(path).map_err(|cause| destination(path, cause))
    }

    fn is_directory(&self, path: &[u8]) -> Result<bool, CopyError> {
        Ok(self.stat(path)?.is_some_and(|attributes| attributes.kind == FileKind::Directory))
    }

    fn attributes(&self, inode: TreeInode, source: &[u8]) -> Result<layerfs::Attributes, CopyError> {
        self.tree.attributes(inode).map_err(|cause| CopyError::Read { path: lossy(source), cause })
    }
}

fn destination(path: &[u8], cause: io::Error) -> CopyError {
    CopyError::Destination { path: lossy(path.strip_prefix(b"/").unwrap_or(path)), cause }
}

fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
