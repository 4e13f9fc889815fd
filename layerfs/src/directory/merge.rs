//! One directory of the tree, from the directories of the layers that it is merged from.
//!
//! Invariant: a name shows what the topmost layer that has it shows; below a whiteout, a file or an opaque directory
//! nothing of that name is seen. Directories below are found but not read.

use std::{
    collections::{BTreeMap, VecDeque, btree_map},
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use rustix::{
    fs::{OFlags, Stat},
    io::Errno,
};

use super::{
    Directory, DirectoryStack, Inode,
    marks::{self, Mark},
    numbers::{self, Identity},
    places::PlaceId,
};
use crate::{
    tree::{FileKind, TreeInode},
    union::{Override, open_quietly},
};

/// The names of a directory.
#[derive(Debug)]
pub(super) struct Merged {
    /// By name.
    pub(super) children: Vec<Child>,
    /// The directories of layers that are merged in it, topmost first.
    sources: Vec<PlaceId>,
}

/// A name in a directory.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) name: Arc<[u8]>,
    pub(super) inode: TreeInode,
    pub(super) kind: FileKind,
}

impl Merged {
    pub(super) fn find(&self, name: &[u8]) -> Option<&Child> {
        self.children.binary_search_by(|child| (*child.name).cmp(name)).ok().map(|at| &self.children[at])
    }
}

/// What was found under a name so far.
enum Found {
    Hidden,
    File(PlaceId, Stat),
    Directory { place: PlaceId, stat: Stat, sources: Vec<PlaceId>, is_closed: bool },
}

/// What one layer has below the root under a path.
struct Reached {
    directory: Option<PlaceId>,
    /// Where to go on in the layers below; nowhere if this layer hides them.
    path_below: Option<Vec<u8>>,
}

impl DirectoryStack {
    /// Reads a directory of the tree.
    pub(super) fn merge(&self, number: TreeInode, directory: &Directory) -> io::Result<Merged> {
        let mut found = BTreeMap::new();
        let mut sources = Vec::new();
        let mut candidates: VecDeque<PlaceId> = directory.candidates.iter().copied().collect();
        while let Some(place) = candidates.pop_front() {
            sources.push(place);
            let open = self.open_to_read(place)?;
            let marks = marks::read(&open)?;
            let is_opaque = self.add_names(place, &open, marks.has_xattr_whiteouts, &mut found)?;
            if is_opaque || marks.is_opaque {
                break;
            }
            // The root of a layer was never renamed.
            if let Some(redirect) = marks.redirect.filter(|_| number != TreeInode::ROOT) {
                candidates = self.redirected(directory.parent, place, redirect)?.into();
            }
        }
        let mut children = Vec::with_capacity(found.len());
        for (name, found) in found {
            children.extend(self.child(number, name, found)?);
        }
        Ok(Merged { children, sources })
    }

    fn open_to_read(&self, place: PlaceId) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(open_quietly(&*self.places.open(place)?, b".", flags)?)
    }

    /// Adds what one layer has, and says whether it hides all layers below.
    fn add_names(
        &self,
        place: PlaceId,
        directory: &OwnedFd,
        has_xattr_whiteouts: bool,
        found: &mut BTreeMap<Arc<[u8]>, Found>,
    ) -> io::Result<bool> {
        let mut is_opaque = false;
        // A file and an AUFS whiteout of one name may stand side by side: the whiteout is for the layers below.
        let mut whiteouts = Vec::new();
        for entry in rustix::fs::Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let Some(stat) = marks::stat(directory, name)? else { continue };
            match marks::of(directory, name, &stat, has_xattr_whiteouts)? {
                Mark::File => self.add_file(place, name, stat, found)?,
                Mark::Whiteout(hidden) => whiteouts.push(hidden),
                Mark::Opaque => is_opaque = true,
                Mark::Foreign => {}
            }
        }
        for hidden in whiteouts {
            match found.entry(hidden.into()) {
                btree_map::Entry::Vacant(free) => drop(free.insert(Found::Hidden)),
                btree_map::Entry::Occupied(mut taken) => close(taken.get_mut()),
            }
        }
        Ok(is_opaque)
    }

    fn add_file(
        &self,
        place: PlaceId,
        name: &[u8],
        stat: Stat,
        found: &mut BTreeMap<Arc<[u8]>, Found>,
    ) -> io::Result<()> {
        let is_directory = crate::union::kind_of(&stat) == FileKind::Directory;
        match found.get_mut(name) {
            None => {
                let name: Arc<[u8]> = name.into();
                let new = if is_directory {
                    let sources = vec![self.places.add(place, &name)?];
                    Found::Directory { place, stat, sources, is_closed: false }
                } else {
                    Found::File(place, stat)
                };
                found.insert(name, new);
            }
            Some(Found::Directory { sources, is_closed: false, .. }) if is_directory => {
                sources.push(self.places.add(place, &name.into())?);
            }
            Some(taken) => close(taken),
        }
        Ok(())
    }

    /// Makes what was found an inode.
    fn child(&self, parent: TreeInode, name: Arc<[u8]>, found: Found) -> io::Result<Option<Child>> {
        let (place, stat, directory) = match found {
            Found::Hidden => return Ok(None),
            Found::File(place, stat) => (place, stat, None),
            Found::Directory { place, stat, sources, .. } => {
                (place, stat, Some(Directory { parent, candidates: sources, merged: Mutex::default() }))
            }
        };
        let mut attributes = numbers::attributes_of(&stat);
        if directory.as_ref().is_some_and(|directory| directory.candidates.len() > 1) {
            attributes.links = 1;
        }
        let layer = self.places.layer(place);
        if self.overridden[layer]
            && let Some(wanted) = Override::of(&*self.places.open(place)?, &name)?
        {
            attributes = wanted.over(attributes);
        }
        let kind = attributes.kind;
        let identity = Identity::of(layer, &stat);
        let inode = Inode { identity, attributes, place, name: Arc::clone(&name), directory, xattrs: OnceLock::new() };
        let mut inodes = self.inodes.write().unwrap_or_else(PoisonError::into_inner);
        for number in identity.numbers(self.places.numbering(layer)) {
            match inodes.get(&number) {
                Some(other) if other.identity != identity => {}
                // Another name of the same file.
                Some(_) => return Ok(Some(Child { name, inode: number, kind })),
                None => {
                    inodes.insert(number, Arc::new(inode));
                    return Ok(Some(Child { name, inode: number, kind }));
                }
            }
        }
        Err(Errno::OVERFLOW.into())
    }

    /// The directories in the layers below `from` that its redirect leads to.
    fn redirected(&self, parent: TreeInode, from: PlaceId, redirect: Vec<u8>) -> io::Result<Vec<PlaceId>> {
        let layer = self.places.layer(from);
        let mut places = Vec::new();
        if !redirect.starts_with(b"/") {
            let name: Arc<[u8]> = redirect.into();
            let beside = self.merged(parent)?;
            for above in beside.sources.iter().filter(|place| self.places.layer(**place) > layer) {
                match self.step(*above, &name)? {
                    Step::Directory(place) => places.push(place),
                    Step::Missing => {}
                    Step::Hidden => break,
                }
            }
            return Ok(places);
        }
        let mut path = redirect;
        for layer in layer + 1..self.places.layer_count() {
            let reached = self.walk(layer, &path)?;
            places.extend(reached.directory);
            match reached.path_below {
                Some(below) => path = below,
                None => break,
            }
        }
        Ok(places)
    }

    /// Goes down a path in one layer. A redirect on the way is for the layers below only.
    fn walk(&self, layer: usize, path: &[u8]) -> io::Result<Reached> {
        let names: Vec<Arc<[u8]>> = path.split(|byte| *byte == b'/').skip(1).map(Arc::from).collect();
        let mut at = super::Places::root(layer);
        let mut path_below = Some(Vec::new());
        for (position, name) in names.iter().enumerate() {
            match self.step(at, name)? {
                Step::Directory(place) => at = place,
                Step::Hidden => return Ok(Reached { directory: None, path_below: None }),
                Step::Missing => {
                    let rest = names[position..].iter();
                    return Ok(Reached { directory: None, path_below: path_below.map(|path| join(path, rest)) });
                }
            }
            if position + 1 == names.len() {
                // Its own marks are read when it is merged.
                path_below = path_below.map(|path| join(path, [name].into_iter()));
                break;
            }
            let open = self.open_to_read(at)?;
            let marks = marks::read(&open)?;
            let is_opaque = marks.is_opaque || marks::stat(&open, crate::tar::OPAQUE_NAME)?.is_some();
            path_below = path_below.filter(|_| !is_opaque).map(|path| match marks.redirect {
                Some(redirect) if redirect.starts_with(b"/") => redirect,
                Some(redirect) => join(path, [&Arc::from(redirect)].into_iter()),
                None => join(path, [name].into_iter()),
            });
        }
        Ok(Reached { directory: Some(at), path_below: path_below.filter(|path| path.len() <= marks::REDIRECT_BYTES) })
    }

    /// What one layer has under one name.
    fn step(&self, directory: PlaceId, name: &Arc<[u8]>) -> io::Result<Step> {
        let open = self.places.open(directory)?;
        if marks::stat(&*open, &[crate::tar::WHITEOUT_PREFIX, name].concat())?.is_some() {
            return Ok(Step::Hidden);
        }
        match marks::stat(open.as_fd(), name)? {
            None => Ok(Step::Missing),
            Some(stat) if crate::union::kind_of(&stat) == FileKind::Directory => {
                self.places.add(directory, name).map(Step::Directory)
            }
            Some(_) => Ok(Step::Hidden),
        }
    }
}

enum Step {
    Directory(PlaceId),
    Missing,
    Hidden,
}

/// Nothing below is merged any more.
fn close(found: &mut Found) {
    if let Found::Directory { is_closed, .. } = found {
        *is_closed = true;
    }
}

fn join<'a>(mut path: Vec<u8>, names: impl Iterator<Item = &'a Arc<[u8]>>) -> Vec<u8> {
    for name in names {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    path
}
