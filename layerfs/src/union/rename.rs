//! Renaming, with `RENAME_NOREPLACE` and `RENAME_EXCHANGE`, of files and of directories.
//!
//! Invariant: one system call changes what is seen; what is prepared before it shows nothing new and what is cleaned
//! after it shows nothing either. A directory of the tree moves as a redirect: its content stays where it is.

use std::sync::{Arc, MutexGuard, atomic::Ordering};

use rustix::{
    fs::{AtFlags, Mode, RenameFlags},
    io::{Errno, Result},
};

use super::{
    NodeId, Union,
    handles::Handle,
    lookup::check_name,
    names::{Names, UpperName},
    node::{Link, Node},
    upper::{Upper, open_at},
};
use crate::{
    tar::OPAQUE_NAME,
    tree::{FileKind, Tree},
};

/// What may happen to the target of a renaming.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// A target is replaced, in one step.
    Replace,
    /// A target is an error, `EEXIST`.
    KeepTarget,
    /// Source and target change places.
    Exchange,
}

/// One of the two places of a renaming.
struct Place<'a> {
    parent: &'a Arc<Node>,
    handle: Arc<Handle>,
    name: &'a [u8],
    in_tree: bool,
}

/// The names of the directories of a renaming, locked: of both, or of the one that is both.
struct LockedNames<'a> {
    from: MutexGuard<'a, Names>,
    to: Option<MutexGuard<'a, Names>>,
}

impl<'a> LockedNames<'a> {
    fn lock(from: &'a Node, to: &'a Node) -> Result<Self> {
        if from.id == to.id {
            return Ok(Self { from: from.names()?, to: None });
        }
        // By number, so that two renamings never wait for each other.
        if from.id < to.id {
            let from = from.names()?;
            return Ok(Self { from, to: Some(to.names()?) });
        }
        let to = to.names()?;
        Ok(Self { from: from.names()?, to: Some(to) })
    }

    fn to(&mut self) -> &mut Names {
        self.to.as_deref_mut().unwrap_or(&mut *self.from)
    }
}

/// What is at the target of a renaming.
enum Replaced {
    Nothing,
    /// What the tree has there, and the upper neither has nor hides.
    OfTree,
    /// A file of the upper, which may be a whiteout.
    InUpper(FileKind),
}

impl<T: Tree> Union<T> {
    /// Renames `name` in `directory` to `new_name` in `new_directory`.
    pub fn rename(
        &self,
        directory: NodeId,
        name: &[u8],
        new_directory: NodeId,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        check_name(name)?;
        self.writable()?.check_new_name(new_name)?;
        let (from, to) = (self.node(directory)?, self.node(new_directory)?);
        let source = self.find_node(&from, name)?.ok_or(Errno::NOENT)?;
        let target = self.find_node(&to, new_name).inspect_err(|_| self.forget(source.id, 1))?;
        let renamed = self.rename_nodes(&source, &target, (&from, name), (&to, new_name), mode);
        self.forget(source.id, 1);
        if let Some(target) = target {
            self.forget(target.id, 1);
        }
        renamed
    }

    fn find_node(&self, directory: &Arc<Node>, name: &[u8]) -> Result<Option<Arc<Node>>> {
        let mut names = directory.names()?;
        let child = self.resolve(directory, &mut names, name)?;
        child.map(|child| self.acquire(directory, name, child)).transpose()
    }

    fn rename_nodes(
        &self,
        source: &Arc<Node>,
        target: &Option<Arc<Node>>,
        from: (&Arc<Node>, &[u8]),
        to: (&Arc<Node>, &[u8]),
        mode: RenameMode,
    ) -> Result<()> {
        check_kinds(source, target.as_deref(), mode)?;
        if target.as_ref().is_some_and(|target| target.id == source.id) {
            return Ok(());
        }
        let is_fixed = |node: &Node| node.is_directory() && node.lower.is_some();
        if !self.writable()?.renames_directories
            && (is_fixed(source) || mode == RenameMode::Exchange && target.as_deref().is_some_and(is_fixed))
        {
            return Err(Errno::XDEV);
        }
        if source.is_directory() && self.is_below(to.0, source) {
            return Err(Errno::INVAL);
        }
        // A target above the source: the kernel finds this before us, and we must not lock a directory twice.
        if target.as_ref().is_some_and(|target| target.is_directory() && self.is_below(from.0, target)) {
            return Err(if mode == RenameMode::Exchange { Errno::INVAL } else { Errno::NOTEMPTY });
        }
        self.copy_up(source)?;
        if let (Some(target), RenameMode::Exchange) = (target, mode) {
            self.copy_up(target)?;
        }
        self.copy_up_directory(from.0)?;
        self.copy_up_directory(to.0)?;

        let mut names = LockedNames::lock(from.0, to.0)?;
        let from = self.rename_place(from, &mut names.from, source)?;
        let to = match target {
            Some(target) if mode == RenameMode::Exchange => self.rename_place(to, names.to(), target)?,
            _ => self.target_place(to, names.to())?,
        };
        self.prepare_directory(source, &to)?;
        match target {
            Some(target) if mode == RenameMode::Exchange => {
                self.prepare_directory(target, &from)?;
                self.exchange(&mut names, (source, &from), (target, &to))
            }
            _ => self.replace(&mut names, (source, &from), (target.as_ref(), &to)),
        }
    }

    fn is_below(&self, directory: &Arc<Node>, ancestor: &Node) -> bool {
        let mut at = Some(Arc::clone(directory));
        while let Some(node) = at {
            if node.id == ancestor.id {
                return true;
            }
            at = node.state().links.first().map(|link| Arc::clone(&link.parent));
        }
        false
    }

    /// The place of a file that exists, with its name in the upper.
    fn rename_place<'a>(
        &self,
        at: (&'a Arc<Node>, &'a [u8]),
        names: &mut Names,
        node: &Arc<Node>,
    ) -> Result<Place<'a>> {
        let place = self.target_place(at, names)?;
        if !node.is_directory() {
            self.link_up(node, place.parent, names, place.name)?;
        }
        if node.state().links.iter().any(|link| link.is(place.parent, place.name)) {
            Ok(place)
        } else {
            Err(Errno::NOENT)
        }
    }

    fn target_place<'a>(&self, at: (&'a Arc<Node>, &'a [u8]), names: &mut Names) -> Result<Place<'a>> {
        let (parent, name) = at;
        self.load(parent, names)?;
        if parent.state().removed {
            return Err(Errno::NOENT);
        }
        let in_tree = self.tree_child(parent, name)?.is_some();
        Ok(Place { parent, handle: self.upper_handle(parent)?, name, in_tree })
    }

    /// Marks a directory for its new place: with a redirect where it shows one of the tree, and as
    /// opaque where it does not and the tree has its new name. At its old place neither changes what is seen.
    fn prepare_directory(&self, node: &Arc<Node>, to: &Place<'_>) -> Result<()> {
        if !node.is_directory() {
            return Ok(());
        }
        let upper = self.writable()?;
        let handle = self.upper_handle(node)?;
        if node.lower.is_none() {
            if to.in_tree && upper.set_opaque(&handle)? {
                node.names()?.set(OPAQUE_NAME, UpperName::Whiteout, false);
            }
            return Ok(());
        }
        let path = tree_path(node);
        // Also where it is marked already: a redirect of the kernel's may hold for its old place only.
        upper.marks.set_redirect(&handle, &path).map_err(|error| match error {
            // No room for it here, or none for one so long. As the kernel's overlayfs says it, so that it is copied.
            Errno::OPNOTSUPP | Errno::NOSPC | Errno::TOOBIG | Errno::RANGE | Errno::NAMETOOLONG => Errno::XDEV,
            other => other,
        })?;
        node.state().redirect = Some(path);
        Ok(())
    }

    fn replace(
        &self,
        names: &mut LockedNames<'_>,
        (source, from): (&Arc<Node>, &Place<'_>),
        (target, to): (Option<&Arc<Node>>, &Place<'_>),
    ) -> Result<()> {
        let upper = self.writable()?;
        let found = names.from.find(from.name).ok_or(Errno::NOENT)?;
        if let Some(target) = target {
            self.clear_target(upper, target, to, names)?;
        }
        let occupant = names.to().find(to.name);
        let in_upper = matches!(occupant, Some(UpperName::Present(_)));
        // A whiteout makes way for a directory by changing places with it: it is then where one is needed.
        if occupant == Some(UpperName::Whiteout) && source.is_directory() {
            if names.to().has_xattr_whiteouts {
                upper.expect_xattr_whiteouts(&mut names.from, &from.handle)?;
            }
            rename_at(from, to, RenameFlags::EXCHANGE)?;
            if !from.in_tree {
                ignore(rustix::fs::unlinkat(&*from.handle, from.name, AtFlags::empty()));
            }
        } else if from.in_tree {
            let replaced = match (occupant, target) {
                (Some(_), target) => Replaced::InUpper(target.map_or(FileKind::CharacterDevice, |target| target.kind)),
                (None, Some(_)) => Replaced::OfTree,
                (None, None) => Replaced::Nothing,
            };
            leave_whiteout(upper, &mut names.from, from, to, replaced)?;
        } else {
            rename_at(from, to, RenameFlags::empty())?;
        }
        if from.in_tree {
            names.from.set(from.name, UpperName::Whiteout, true);
        } else {
            names.from.clear(from.name);
        }
        names.to().set(to.name, found, to.in_tree);
        if let Some(target) = target {
            if target.is_directory() {
                target.state().removed = true;
                self.table.remove_link(target, to.parent, to.name);
            } else {
                self.after_losing(upper, target, to.parent, to.name, in_upper);
            }
        }
        self.move_link(source, from, to);
        Ok(())
    }

    /// Prepares for being replaced: files stay open, directories must be empty and lose their whiteouts.
    fn clear_target(
        &self,
        upper: &Upper,
        target: &Arc<Node>,
        to: &Place<'_>,
        names: &mut LockedNames<'_>,
    ) -> Result<()> {
        if !target.is_directory() {
            return self.before_losing(target, to.parent, to.name);
        }
        let mut own = target.names()?;
        if !self.is_empty(target, &mut own)? {
            return Err(Errno::NOTEMPTY);
        }
        self.pin(target)?;
        if names.to().find(to.name).is_none() || own.is_empty() {
            return Ok(());
        }
        // An empty opaque directory takes the place of one that has whiteouts: neither shows anything.
        let temporary = upper.temporary_name();
        rustix::fs::mkdirat(&upper.temporary, &*temporary, Mode::RWXU)?;
        let cleared = open_at(&upper.temporary, temporary.as_bytes(), FileKind::Directory).and_then(|empty| {
            let stat = self.upper_handle(target)?.stat()?;
            empty.set_owner(Some(stat.st_uid), Some(stat.st_gid))?;
            empty.set_mode(stat.st_mode & 0o7777)?;
            // Marked by a name it would not be empty.
            upper
                .marks
                .set_opaque(&empty)
                .map_err(|error| if error == Errno::OPNOTSUPP { Errno::XDEV } else { error })?;
            rustix::fs::renameat_with(&upper.temporary, &*temporary, &*to.handle, to.name, RenameFlags::EXCHANGE)
        });
        upper.discard(&temporary);
        cleared
    }

    fn exchange(
        &self,
        names: &mut LockedNames<'_>,
        (source, from): (&Arc<Node>, &Place<'_>),
        (target, to): (&Arc<Node>, &Place<'_>),
    ) -> Result<()> {
        let first = names.from.find(from.name).ok_or(Errno::NOENT)?;
        let second = names.to().find(to.name).ok_or(Errno::NOENT)?;
        rename_at(from, to, RenameFlags::EXCHANGE)?;
        names.from.set(from.name, second, from.in_tree);
        names.to().set(to.name, first, to.in_tree);
        self.move_link(source, from, to);
        self.move_link(target, to, from);
        Ok(())
    }

    fn move_link(&self, node: &Arc<Node>, from: &Place<'_>, to: &Place<'_>) {
        // First the new name: a node is never without a way to the root.
        self.table.add_link(node, to.parent, to.name, true);
        self.table.remove_link(node, from.parent, from.name);
    }
}

/// The path from the root of the tree to the directory that one of the union shows.
pub(super) fn tree_path(directory: &Node) -> Vec<u8> {
    /// The redirect of a directory, or its name and what is above it.
    fn step(at: &Node) -> std::result::Result<Vec<u8>, Link> {
        let state = at.state();
        match (&state.redirect, state.links.first()) {
            (Some(redirect), _) => Ok(redirect.clone()),
            (None, Some(link)) => Err(link.clone()),
            (None, None) => Ok(Vec::new()),
        }
    }
    let mut names = Vec::new();
    let mut found = step(directory);
    let mut path = loop {
        match found {
            Ok(path) => break path,
            Err(Link { parent, name, .. }) => {
                names.push(name);
                found = step(&parent);
            }
        }
    };
    for name in names.iter().rev() {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    path
}

fn check_kinds(source: &Node, target: Option<&Node>, mode: RenameMode) -> Result<()> {
    match (target, mode) {
        (Some(_), RenameMode::KeepTarget) => Err(Errno::EXIST),
        (None, RenameMode::Exchange) => Err(Errno::NOENT),
        (Some(target), RenameMode::Replace) if target.is_directory() && !source.is_directory() => Err(Errno::ISDIR),
        (Some(target), RenameMode::Replace) if !target.is_directory() && source.is_directory() => Err(Errno::NOTDIR),
        _ => Ok(()),
    }
}

/// Renames and leaves a whiteout behind, in one step where the file system can. Otherwise the whiteout is the second one:
/// what was at the target changes places with the source, so that the first can be taken back.
fn leave_whiteout(
    upper: &Upper,
    names: &mut Names,
    from: &Place<'_>,
    to: &Place<'_>,
    replaced: Replaced,
) -> Result<()> {
    if !upper.without_devices.load(Ordering::Relaxed) {
        match rename_at(from, to, RenameFlags::WHITEOUT) {
            Err(Errno::INVAL | Errno::PERM | Errno::OPNOTSUPP) => {}
            other => return other,
        }
    }
    let (flags, taken) = match replaced {
        Replaced::Nothing => {
            // A whiteout shows nothing there either, and changing places is one step.
            upper.make_whiteout(names, &from.handle, &*to.handle, to.name)?;
            return rename_at(from, to, RenameFlags::EXCHANGE)
                .inspect_err(|_| ignore(rustix::fs::unlinkat(&*to.handle, to.name, AtFlags::empty())));
        }
        Replaced::OfTree => (RenameFlags::empty(), None),
        Replaced::InUpper(kind) => (RenameFlags::EXCHANGE, Some(kind)),
    };
    rename_at(from, to, flags)?;
    let left = upper.put_whiteout(names, &from.handle, from.name, taken);
    left.inspect_err(|_| ignore(rename_at(to, from, flags)))
}

fn rename_at(from: &Place<'_>, to: &Place<'_>, flags: RenameFlags) -> Result<()> {
    rustix::fs::renameat_with(&*from.handle, from.name, &*to.handle, to.name, flags)
}

/// What is left behind shows nothing; the next opening of the upper meets it as well.
fn ignore(result: Result<()>) {
    if let Err(error) = result {
        tracing::debug!(%error, "cleaning up after a renaming failed");
    }
}
