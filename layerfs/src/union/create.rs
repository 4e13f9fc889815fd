//! New names: files, directories, links and special files.
//!
//! Invariant: a new file appears under its name in one step, with its owner and mode, and a new directory
//! over a name of the tree is opaque before it appears. Where nothing has to be replaced and the owner is the
//! one the file system gives anyway, it is made in place, which is one system call fewer.

use std::{os::fd::AsFd, sync::Arc};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat},
    io::{Errno, Result},
};

use super::{
    Metadata, NodeId, Union,
    acl::Inherited,
    copy_up::link_handle,
    handles::Handle,
    names::{Names, Origin, UpperName},
    node::{Node, State},
    upper::{Upper, open_at},
};
use crate::tree::{FileKind, Tree};

/// Who creates a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User of the new file.
    pub uid: u32,
    /// Group of the new file, unless the directory passes on its own.
    pub gid: u32,
}

/// What to create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Making<'a> {
    /// An empty file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link with this target.
    Symlink(&'a [u8]),
    /// A device, pipe or socket, with major and minor number of a device.
    Special(FileKind, (u32, u32)),
}

impl Making<'_> {
    fn kind(&self) -> FileKind {
        match self {
            Self::File => FileKind::File,
            Self::Directory => FileKind::Directory,
            Self::Symlink(_) => FileKind::Symlink,
            Self::Special(kind, _) => *kind,
        }
    }
}

impl<T: Tree> Union<T> {
    /// Creates `name` in a directory and takes a reference to it. `mode` has the permission, set-id and sticky bits,
    /// with the umask applied; group and set-group-id bit come from a set-group-id directory.
    pub fn create(
        &self,
        directory: NodeId,
        name: &[u8],
        owner: Owner,
        mode: u32,
        making: Making<'_>,
    ) -> Result<Metadata> {
        let upper = self.writable()?;
        upper.check_new_name(name)?;
        if matches!(making, Making::Special(FileKind::CharacterDevice, (0, 0))) {
            // It would be a whiteout. The kernel's overlayfs refuses it in the same way.
            return Err(Errno::PERM);
        }
        let parent = self.node(directory)?;
        self.copy_up_directory(&parent)?;
        let handle = self.upper_handle(&parent)?;
        let mut names = parent.names()?;
        let is_free = self.check_free(&parent, &mut names, name)?;

        let in_tree = !is_free && self.tree_child(&parent, name)?.is_some();
        // A directory that is marked as opaque by a name in it.
        let mut has_mark = false;
        let (made, stat) = if is_free && owner == upper.owner && self.default_acl(&parent)?.is_none() {
            let wanted = Wanted { uid: owner.uid, gid: owner.gid, mode, making, acls: None };
            let made = make(&*handle, name, &wanted)?;
            let settled = match made.0.stat() {
                // Nothing was passed on by the directory, or nothing that differs.
                Ok(stat) if wanted.is_met(&stat) => Ok(stat),
                other => {
                    let directory = other.and_then(|_| handle.stat());
                    directory.and_then(|directory| made.settle(&wanted.in_directory(&directory)))
                }
            };
            let stat = settled.inspect_err(|_| remove_again(&*handle, name, &wanted))?;
            (made, stat)
        } else {
            let wanted = self.wanted_in(upper, &parent, &handle, owner, mode, making)?;
            let temporary = upper.temporary_name();
            let made = make(&upper.temporary, temporary.as_bytes(), &wanted)?;
            let installed = made.settle(&wanted).and_then(|_| {
                if in_tree && making.kind() == FileKind::Directory {
                    has_mark = upper.set_opaque(&made.0)?;
                }
                upper.install(&temporary, making.kind(), &handle, name, is_free)
            });
            installed.inspect_err(|_| upper.discard(&temporary))?;
            let stat = made.0.stat()?;
            (made, stat)
        };
        names.set(name, UpperName::Present(Origin::Upper), in_tree);
        self.enter_made(&parent, &mut names, name, (made.0, has_mark), &stat)
    }

    /// Creates a file that has no name, and takes a reference to it: [`Union::link`] gives it one. `mode` and group are
    /// as for [`Union::create`] in that directory.
    pub fn create_unnamed(&self, directory: NodeId, owner: Owner, mode: u32) -> Result<Metadata> {
        let upper = self.writable()?;
        let parent = self.node(directory)?;
        if parent.state().removed {
            return Err(Errno::NOENT);
        }
        self.copy_up_directory(&parent)?;
        let wanted = self.wanted_in(upper, &parent, &*self.upper_handle(&parent)?, owner, mode, Making::File)?;
        let made = Made(upper.file_without_name(wanted.mode)?);
        let stat = made.settle(&wanted)?;
        let id = self.upper_id(stat.st_ino)?;
        let state = State {
            upper: Some(stat.st_ino),
            pinned: Some(Arc::new(made.0)),
            is_unnamed: true,
            lacks_capability: true,
            ..State::default()
        };
        self.table.acquire(id, || Node::new(id, FileKind::File, None, state));
        Ok(Metadata::of_upper(id, &stat))
    }

    /// Adds `name` in a directory to a file that exists, and takes a reference to it.
    pub fn link(&self, node: NodeId, directory: NodeId, name: &[u8]) -> Result<Metadata> {
        let upper = self.writable()?;
        upper.check_new_name(name)?;
        let (node, parent) = (self.node(node)?, self.node(directory)?);
        if node.is_directory() {
            return Err(Errno::PERM);
        }
        self.copy_up(&node)?;
        self.copy_up_directory(&parent)?;
        let (file, handle) = (self.upper_handle(&node)?, self.upper_handle(&parent)?);
        let mut names = parent.names()?;
        let is_free = self.check_free(&parent, &mut names, name)?;
        if is_free {
            link_handle(&file, &*handle, name)?;
        } else {
            let temporary = upper.temporary_name();
            link_handle(&file, &upper.temporary, temporary.as_bytes())?;
            let installed = upper.install(&temporary, node.kind, &handle, name, false);
            installed.inspect_err(|_| upper.discard(&temporary))?;
        }
        let in_tree = !is_free && self.tree_child(&parent, name)?.is_some();
        let origin = if node.id.0 <= self.tree.last_inode().0 { node.lower } else { None };
        names.set(name, UpperName::Present(origin.map_or(Origin::Upper, Origin::Tree)), in_tree);
        self.table.retain(node.id)?;
        self.table.add_link(&node, &parent, name, true);
        {
            // It can be found by its name again.
            let mut state = node.state();
            (state.pinned, state.is_unnamed) = (None, false);
        }
        self.metadata_of(&node)
    }

    /// What a new file is to be, with what its directory passes on.
    fn wanted_in<'a>(
        &self,
        upper: &Upper,
        directory: &Arc<Node>,
        handle: &Handle,
        owner: Owner,
        mode: u32,
        making: Making<'a>,
    ) -> Result<Wanted<'a>> {
        let wanted = Wanted { uid: owner.uid, gid: owner.gid, mode, making, acls: None };
        let wanted = wanted.in_directory(&handle.stat()?);
        let acls = self.inherited_acls(upper, directory, wanted.mode, making)?;
        Ok(Wanted { mode: acls.as_ref().map_or(wanted.mode, |acls| acls.mode), acls, ..wanted })
    }

    /// What a new file gets from the access control list of its directory, if that has one for new files.
    fn inherited_acls(
        &self,
        upper: &Upper,
        directory: &Arc<Node>,
        mode: u32,
        making: Making<'_>,
    ) -> Result<Option<Inherited>> {
        if matches!(making, Making::Symlink(_)) {
            return Ok(None);
        }
        let inherited = self.default_acl(directory)?.and_then(|list| Inherited::new(&list, mode));
        if inherited.is_some() {
            upper.note_acls()?;
        }
        Ok(inherited)
    }

    /// Whether nothing at all is in the upper under a name that is about to be created; `EEXIST` where a file is seen.
    fn check_free(&self, parent: &Arc<Node>, names: &mut Names, name: &[u8]) -> Result<bool> {
        self.load(parent, names)?;
        if parent.state().removed {
            return Err(Errno::NOENT);
        }
        match names.find(name) {
            Some(UpperName::Whiteout) => Ok(false),
            Some(UpperName::Present(_)) => Err(Errno::EXIST),
            None if self.tree_child(parent, name)?.is_some() => Err(Errno::EXIST),
            None => Ok(true),
        }
    }

    fn enter_made(
        &self,
        parent: &Arc<Node>,
        names: &mut Names,
        name: &[u8],
        (handle, has_mark): (Handle, bool),
        stat: &Stat,
    ) -> Result<Metadata> {
        let id = self.upper_id(stat.st_ino)?;
        let kind = super::kind_of(stat);
        let state = State { upper: Some(stat.st_ino), lacks_capability: kind == FileKind::File, ..State::default() };
        let node = self.table.acquire(id, || Node::new(id, kind, None, state));
        self.table.add_link(&node, parent, name, true);
        if kind == FileKind::Directory {
            // Nothing is in it, so nothing need be read.
            node.names()?.is_loaded = !has_mark;
        }
        names.set_node(name, id);
        if matches!(kind, FileKind::File | FileKind::Directory) {
            self.writable()?.handles.insert(id, &Arc::new(handle));
        }
        Ok(Metadata::of_upper(id, stat))
    }
}

struct Wanted<'a> {
    uid: u32,
    gid: u32,
    mode: u32,
    making: Making<'a>,
    acls: Option<Inherited>,
}

impl<'a> Wanted<'a> {
    /// The same with what a directory passes on: its group, and to directories that they do so as well.
    fn in_directory(&self, directory: &Stat) -> Wanted<'a> {
        const SET_GROUP: u32 = Mode::SGID.as_raw_mode();
        let Self { uid, gid, mode, making, .. } = *self;
        if directory.st_mode & SET_GROUP == 0 {
            return Self { uid, gid, mode, making, acls: None };
        }
        let set_group = if making.kind() == FileKind::Directory { SET_GROUP } else { 0 };
        Self { uid, gid: directory.st_gid, mode: mode | set_group, making, acls: None }
    }

    fn is_met(&self, stat: &Stat) -> bool {
        (stat.st_uid, stat.st_gid) == (self.uid, self.gid)
            && (stat.st_mode & 0o7777 == self.mode || matches!(self.making, Making::Symlink(_)))
    }
}

/// A file that was just made.
struct Made(Handle);

impl Made {
    /// Corrects what the umask, the file system or a default ACL made of owner and mode.
    fn settle(&self, wanted: &Wanted<'_>) -> Result<Stat> {
        let stat = self.0.stat()?;
        if wanted.is_met(&stat) && wanted.acls.is_none() {
            return Ok(stat);
        }
        if (stat.st_uid, stat.st_gid) != (wanted.uid, wanted.gid) {
            self.0.set_owner(Some(wanted.uid), Some(wanted.gid))?;
        }
        if !matches!(wanted.making, Making::Symlink(_)) {
            self.0.set_mode(wanted.mode)?;
        }
        if let Some(acls) = &wanted.acls {
            acls.give(&self.0, wanted.making.kind() == FileKind::Directory)?;
        }
        self.0.stat()
    }
}

fn make(directory: impl AsFd, name: &[u8], wanted: &Wanted<'_>) -> Result<Made> {
    let mode = Mode::from_raw_mode(wanted.mode & 0o777);
    match wanted.making {
        Making::File => {
            // What is read back leaves the time of access alone.
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let flags = flags | OFlags::NOATIME;
            return rustix::fs::openat(directory, name, flags, mode).map(|fd| Made(Handle::new(fd)));
        }
        Making::Directory => rustix::fs::mkdirat(&directory, name, mode)?,
        Making::Symlink(target) => make_special(&directory, name, FileKind::Symlink, target, (0, 0))?,
        Making::Special(kind, device) => make_special(&directory, name, kind, b"", device)?,
    }
    open_at(&directory, name, wanted.making.kind()).map(Made).inspect_err(|_| remove_again(&directory, name, wanted))
}

fn remove_again(directory: impl AsFd, name: &[u8], wanted: &Wanted<'_>) {
    let flags = if wanted.making == Making::Directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    if let Err(error) = rustix::fs::unlinkat(directory, name, flags) {
        tracing::debug!(%error, "removing a file that could not be given its owner failed");
    }
}

/// Makes a symbolic link, device, pipe or socket.
pub(super) fn make_special(
    directory: impl AsFd,
    name: &[u8],
    kind: FileKind,
    target: &[u8],
    device: (u32, u32),
) -> Result<()> {
    let file_type = match kind {
        FileKind::Symlink => return rustix::fs::symlinkat(target, directory, name),
        FileKind::CharacterDevice => FileType::CharacterDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Fifo => FileType::Fifo,
        FileKind::Socket => FileType::Socket,
        FileKind::File | FileKind::Directory => return Err(Errno::INVAL),
    };
    let device = rustix::fs::makedev(device.0, device.1);
    rustix::fs::mknodat(directory, name, file_type, Mode::RUSR | Mode::WUSR, device)
}

impl Upper {
    /// Moves a file from `tmp` to its name, over a whiteout or over nothing.
    pub(super) fn install(
        &self,
        temporary: &str,
        kind: FileKind,
        directory: &Arc<Handle>,
        name: &[u8],
        is_free: bool,
    ) -> Result<()> {
        if is_free {
            return rustix::fs::renameat_with(&self.temporary, temporary, &**directory, name, RenameFlags::NOREPLACE);
        }
        if kind == FileKind::Directory {
            rustix::fs::renameat_with(&self.temporary, temporary, &**directory, name, RenameFlags::EXCHANGE)?;
            self.discard(temporary);
            return Ok(());
        }
        rustix::fs::renameat(&self.temporary, temporary, &**directory, name)
    }
}
