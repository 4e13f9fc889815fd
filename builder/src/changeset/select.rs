//! The sources that a COPY or ADD names, found in a tree: wildcards, symbolic links, `/./` pivots.

use std::io;
use std::sync::Arc;

use layerfs::{FileKind, Tree, TreeInode};

use crate::changeset::{ChangeSet, clean, components, join};
use crate::context::Glob;

/// A tree to copy from.
pub(crate) struct Source {
    /// The tree without changes; a change set knows how to follow links inside a root.
    view: ChangeSet,
}

/// One source, found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Selected {
    /// The clean path as it was named or matched, before symbolic links were followed.
    pub(crate) path: Vec<u8>,
    /// What it leads to, links followed.
    pub(crate) inode: TreeInode,
    /// How much of `path` lies before the pivot of `--parents`.
    pub(crate) pivot: usize,
    /// The directory at the pivot.
    pub(crate) pivot_inode: TreeInode,
}

impl Selected {
    /// All of a tree.
    pub(crate) fn root() -> Self {
        Self { path: Vec::new(), inode: TreeInode::ROOT, pivot: 0, pivot_inode: TreeInode::ROOT }
    }
}

impl Source {
    /// Copies come from `tree`.
    pub(crate) fn new(tree: Arc<dyn Tree>) -> Self {
        Self { view: ChangeSet::new(tree) }
    }

    pub(crate) fn tree(&self) -> &Arc<dyn Tree> {
        self.view.below()
    }

    /// What `pattern` names: component by component, so that a backslash escapes in those with wildcards and those
    /// behind them, and is a part of the name in those before. A path without wildcards that is not there is `Ok(None)`, one before them too; a pattern
    /// that matches nothing is an empty list, which is no error in a Dockerfile.
    ///
    /// Under `--parents`, `**` stands for any number of directories behind the pivot. Everywhere else it is a `*`:
    /// BuildKit matches there with Go's `filepath.Match`, and with `patternmatcher` here.
    pub(crate) fn select(&self, pattern: &[u8], has_parents: bool) -> io::Result<Option<Vec<Selected>>> {
        let (before_pivot, after_pivot) = split_pivot(pattern);
        let (before_pivot, after_pivot) = (clean(before_pivot), clean(after_pivot));
        let whole = match (before_pivot.is_empty(), after_pivot.is_empty()) {
            (_, true) => before_pivot.clone(),
            _ => join(&before_pivot, &after_pivot),
        };
        let depth = components(&before_pivot).count();
        // Behind the pivot of `--parents` no link is followed: it is copied itself.
        let followed = if has_parents { depth } else { usize::MAX };
        if !has_wildcard(&whole) {
            return match self.find_following(&whole, followed)? {
                None => Ok(None),
                Some(inode) => Ok(Some(vec![self.selected(whole, inode, depth)?])),
            };
        }
        // Where nothing matches, the directory to look in has to be there all the same: Go's `filepath.Walk` wants it.
        let walked = if has_parents { &before_pivot } else { &whole };
        if has_wildcard(walked) && self.find(&self.view.resolve(&literal_part(walked))?)?.is_none() {
            return Ok(None);
        }
        let mut found = Vec::new();
        for path in self.matches(&whole, if has_parents { depth } else { usize::MAX })? {
            if let Some(inode) = self.find_following(&path, followed)? {
                found.push(self.selected(path, inode, depth)?);
            }
        }
        Ok(Some(found))
    }

    /// Whether the directory before the pivot is named as it is, and is there.
    pub(crate) fn has_pivot(&self, pattern: &[u8]) -> io::Result<bool> {
        let before_pivot = clean(split_pivot(pattern).0);
        Ok(!has_wildcard(&before_pivot) && self.find(&self.view.resolve(&before_pivot)?)?.is_some())
    }

    /// The path that one source without wildcards leads to, links followed, and what is there.
    pub(crate) fn select_literal(&self, path: &[u8]) -> io::Result<Option<(Vec<u8>, TreeInode)>> {
        let resolved = self.view.resolve(&clean(path))?;
        Ok(self.find(&resolved)?.map(|inode| (resolved, inode)))
    }

    fn selected(&self, path: Vec<u8>, inode: TreeInode, depth: usize) -> io::Result<Selected> {
        let before = components(&path).take(depth).fold(Vec::new(), |at, name| join(&at, name));
        let resolved = self.view.resolve(&before)?;
        let pivot_inode = self.find(&resolved)?.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(Selected { pivot: before.len(), path, inode, pivot_inode })
    }

    /// What is at a path in whose first components, this many, links are followed.
    fn find_following(&self, path: &[u8], followed: usize) -> io::Result<Option<TreeInode>> {
        let names: Vec<&[u8]> = components(path).collect();
        let (followed, rest) = names.split_at(followed.min(names.len()));
        let top = self.view.resolve(&followed.join(&b'/'))?;
        self.find(&rest.iter().fold(top, |path, name| join(&path, name)))
    }

    fn find(&self, path: &[u8]) -> io::Result<Option<TreeInode>> {
        self.view.below_at(path)
    }

    /// All paths that match, in byte order of their components. The part before the first
    /// wildcard may pass through links; a wildcard never matches through one. From the component `deep_from` on, `**`
    /// is any number of directories.
    fn matches(&self, pattern: &[u8], deep_from: usize) -> io::Result<Vec<Vec<u8>>> {
        let names: Vec<&[u8]> = components(pattern).collect();
        let start = literal_part(pattern);
        let literal = components(&start).count();
        let mut found = Vec::new();
        let resolved = self.view.resolve(&start)?;
        if let Some(inode) = self.find(&resolved)? {
            self.match_below(inode, &start, &names[literal..], deep_from.saturating_sub(literal), &mut found)?;
        }
        Ok(found)
    }

    fn match_below(
        &self,
        directory: TreeInode,
        path: &[u8],
        names: &[&[u8]],
        deep_from: usize,
        found: &mut Vec<Vec<u8>>,
    ) -> io::Result<()> {
        let Some((name, rest)) = names.split_first() else { return Ok(()) };
        if self.tree().attributes(directory)?.kind != FileKind::Directory {
            return Ok(());
        }
        let (is_deep, deeper) = (deep_from == 0 && *name == b"**", deep_from.saturating_sub(1));
        for entry in self.tree().entries(directory, 0, usize::MAX)? {
            let at = join(path, &entry.name);
            if is_deep {
                // Any number of directories, none included.
                if rest.is_empty() {
                    found.push(at.clone());
                }
                if entry.kind == FileKind::Directory {
                    self.match_below(entry.inode, &at, names, deep_from, found)?;
                }
            } else if Glob::new(&String::from_utf8_lossy(name)).map_err(io::Error::other)?.matches(&entry.name) {
                if rest.is_empty() {
                    found.push(at.clone());
                } else if entry.kind == FileKind::Directory {
                    self.match_below(entry.inode, &at, rest, deeper, found)?;
                }
            }
        }
        if is_deep && !rest.is_empty() {
            self.match_below(directory, path, rest, deeper, found)?;
            found.sort();
            found.dedup();
        }
        Ok(())
    }
}

/// `lib/./inc/x` is `lib` before the pivot and `inc/x` after it. A leading `./` is no pivot.
fn split_pivot(pattern: &[u8]) -> (&[u8], &[u8]) {
    let skip = if pattern.starts_with(b"./") { 2 } else { 0 };
    match pattern[skip..].windows(3).position(|three| three == b"/./") {
        Some(at) => (&pattern[..skip + at], &pattern[skip + at + 3..]),
        None => (b"", pattern),
    }
}

/// The directories of a pattern before the first wildcard.
fn literal_part(pattern: &[u8]) -> Vec<u8> {
    components(pattern).take_while(|name| !has_wildcard(name)).fold(Vec::new(), |path, name| join(&path, name))
}

fn has_wildcard(text: &[u8]) -> bool {
    Glob::is_pattern(&String::from_utf8_lossy(text))
}
