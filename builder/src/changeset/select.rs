//! The sources that a COPY or ADD names, found in a tree: wildcards, symbolic links, `/./` pivots, and what of
//! it `--parents` and `--exclude` leave.

use std::io;
use std::sync::Arc;

use layerfs::{FileKind, Tree, TreeInode};

use crate::changeset::ChangeSet;
use crate::context::{BadPattern, Glob, Patterns};
use crate::paths::{clean, components, join};

/// A tree to copy from.
pub(crate) struct SourceTree {
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
}

impl Selected {
    /// All of a tree.
    pub(crate) fn root() -> Self {
        Self { path: Vec::new(), inode: TreeInode::ROOT }
    }
}

/// Why nothing was selected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SelectError {
    /// The caller says in what.
    #[error("\"/{0}\": not found")]
    NotFound(String),
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error(transparent)]
    Pattern(#[from] BadPattern),
}

impl SelectError {
    fn not_found(path: &[u8]) -> Self {
        Self::NotFound(String::from_utf8_lossy(path).into_owned())
    }
}

/// The pattern of `--parents`, and its text.
pub(crate) struct Include {
    pub(crate) patterns: Patterns,
    pub(crate) text: String,
}

/// What of a source is copied: paths below it that one of `include` matches and none of `exclude`. What is named itself
/// is no concern of theirs.
#[derive(Clone, Copy, Default)]
pub(crate) struct Filter<'a> {
    /// The pattern of `--parents`; without it everything is meant.
    pub(crate) include: Option<&'a Patterns>,
    pub(crate) exclude: Option<&'a Patterns>,
}

impl Filter<'_> {
    /// Whether the entry at `relative`, below the source, is copied.
    pub(crate) fn takes(&self, relative: &[u8]) -> bool {
        let is_match = |patterns: &Patterns| patterns.path(relative).is_excluded();
        self.include.is_none_or(is_match) && !self.exclude.is_some_and(is_match)
    }

    /// Whether something below a directory that is not copied itself may be.
    pub(crate) fn may_take_below(&self, relative: &[u8]) -> bool {
        let includes =
            |patterns: &Patterns| patterns.path(relative).is_excluded() || patterns.can_match_below(relative);
        let excludes_all = |patterns: &Patterns| {
            let matched = patterns.path(relative);
            matched.is_excluded() && !patterns.can_take_back_below(relative, &matched)
        };
        self.include.is_none_or(includes) && !self.exclude.is_some_and(excludes_all)
    }
}

impl SourceTree {
    /// Copies come from `tree`.
    pub(crate) fn new(tree: Arc<dyn Tree>) -> Self {
        Self { view: ChangeSet::new(tree) }
    }

    pub(crate) fn tree(&self) -> &Arc<dyn Tree> {
        self.view.below()
    }

    /// What `pattern` names: component by component, so that a backslash escapes in those with wildcards and those
    /// behind them, and is a part of the name in those before. A pattern that matches nothing is an empty list, which is
    /// no error in a Dockerfile.
    ///
    /// # Errors
    /// A path that is not there: without wildcards, the directories before them, or a link that matches and leads nowhere.
    pub(crate) fn select(&self, pattern: &[u8]) -> Result<Vec<Selected>, SelectError> {
        let whole = clean(pattern);
        if !has_wildcard(&whole) {
            return Ok(vec![self.selected(whole)?]);
        }
        // Where nothing matches, the directory to look in has to be there all the same: Go's `filepath.Walk` wants it.
        if self.find(&self.view.resolve(&literal_part(&whole))?)?.is_none() {
            return Err(SelectError::not_found(&whole));
        }
        self.matches(&whole)?.into_iter().map(|path| self.selected(path)).collect()
    }

    /// What `--parents` takes paths from, and the pattern of those that it takes. As in BuildKit, no link behind the
    /// pivot is followed: it is copied itself.
    ///
    /// # Errors
    /// As [`SourceTree::select`], and a pattern without wildcards that nothing matches which `exclude` leaves.
    pub(crate) fn select_parents(
        &self,
        source: &[u8],
        exclude: Option<&Patterns>,
    ) -> Result<(Vec<Selected>, Include), SelectError> {
        let (pivot, pattern) = split_pivot(source);
        let text = String::from_utf8_lossy(&pattern).into_owned();
        let include = Include { patterns: Patterns::new([text.as_str()])?, text };
        let is_literal = !has_wildcard(&pivot) && !has_wildcard(&pattern);
        let missing =
            || SelectError::not_found(&if pattern.is_empty() { pivot.clone() } else { join(&pivot, &pattern) });
        let mut found = match self.select(&pivot) {
            Err(SelectError::NotFound(_)) if is_literal => return Err(missing()),
            found => found?,
        };
        if has_wildcard(&pivot) {
            // A file is no pivot. BuildKit copies one all the same if the whole pattern means it.
            let whole = Patterns::new([String::from_utf8_lossy(&join(&pivot, &pattern)).as_ref()])?;
            let is_directory =
                |one: &Selected| io::Result::Ok(self.tree().attributes(one.inode)?.kind == FileKind::Directory);
            let mut kept = Vec::new();
            for one in found {
                if is_directory(&one)? || whole.path(&one.path).is_excluded() {
                    kept.push(one);
                }
            }
            found = kept;
        }
        if is_literal {
            let filter = Filter { include: Some(&include.patterns), exclude };
            let mut takes = false;
            for one in &found {
                takes |= self.takes_any(one.inode, b"", filter)?;
            }
            if !takes {
                return Err(missing());
            }
        }
        Ok((found, include))
    }

    /// Whether anything below a directory is taken.
    fn takes_any(&self, directory: TreeInode, relative: &[u8], filter: Filter<'_>) -> io::Result<bool> {
        if self.tree().attributes(directory)?.kind != FileKind::Directory {
            return Ok(false);
        }
        for entry in self.tree().entries(directory, 0, usize::MAX)? {
            let below = join(relative, &entry.name);
            let is_there = filter.takes(&below)
                || (entry.kind == FileKind::Directory
                    && filter.may_take_below(&below)
                    && self.takes_any(entry.inode, &below, filter)?);
            if is_there {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The path that one source without wildcards leads to, links followed, and what is there.
    pub(crate) fn select_literal(&self, path: &[u8]) -> io::Result<Option<(Vec<u8>, TreeInode)>> {
        let resolved = self.view.resolve(&clean(path))?;
        Ok(self.find(&resolved)?.map(|inode| (resolved, inode)))
    }

    fn selected(&self, path: Vec<u8>) -> Result<Selected, SelectError> {
        match self.find(&self.view.resolve(&path)?)? {
            Some(inode) => Ok(Selected { path, inode }),
            None => Err(SelectError::not_found(&path)),
        }
    }

    fn find(&self, path: &[u8]) -> io::Result<Option<TreeInode>> {
        self.view.below_at(path)
    }

    /// All paths that match, in byte order of their components. The part before the first
    /// wildcard may pass through links; a wildcard never matches through one.
    fn matches(&self, pattern: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let names: Vec<&[u8]> = components(pattern).collect();
        let start = literal_part(pattern);
        let mut found = Vec::new();
        if let Some(inode) = self.find(&self.view.resolve(&start)?)? {
            self.match_below(inode, &start, &names[components(&start).count()..], &mut found)?;
        }
        Ok(found)
    }

    fn match_below(
        &self,
        directory: TreeInode,
        path: &[u8],
        names: &[&[u8]],
        found: &mut Vec<Vec<u8>>,
    ) -> io::Result<()> {
        let Some((name, rest)) = names.split_first() else { return Ok(()) };
        if self.tree().attributes(directory)?.kind != FileKind::Directory {
            return Ok(());
        }
        let glob = Glob::new(&String::from_utf8_lossy(name)).map_err(io::Error::other)?;
        for entry in self.tree().entries(directory, 0, usize::MAX)? {
            if !glob.matches(&entry.name) {
                continue;
            }
            let at = join(path, &entry.name);
            if rest.is_empty() {
                found.push(at);
            } else if entry.kind == FileKind::Directory {
                self.match_below(entry.inode, &at, rest, found)?;
            }
        }
        Ok(())
    }
}

/// The two halves of a source of `--parents`: where paths begin, and the pattern of those below. As in BuildKit, the
/// first `/./` divides them, and without one they begin at the root.
fn split_pivot(pattern: &[u8]) -> (Vec<u8>, Vec<u8>) {
    match pattern.windows(3).position(|three| three == b"/./") {
        Some(at) => (clean(&pattern[..at]), clean(&pattern[at + 3..])),
        None => (Vec::new(), clean(pattern)),
    }
}

/// The directories of a pattern before the first wildcard.
fn literal_part(pattern: &[u8]) -> Vec<u8> {
    components(pattern).take_while(|name| !has_wildcard(name)).fold(Vec::new(), |path, name| join(&path, name))
}

fn has_wildcard(text: &[u8]) -> bool {
    Glob::is_pattern(&String::from_utf8_lossy(text))
}
