//! A request to a call of the union, and its result to a reply; nothing is decided here but caching.
//!
//! Invariant: the union has one writer, the kernel of this mount, so whatever it learned stays true: entries,
//! attributes, absent names, links and directories are valid for ever, and files and directories are opened without
//! asking. There is no union semantics here.
//! Ids are translated here and nowhere else.

use std::{os::fd::OwnedFd, sync::Arc};

use rustix::{
    fs::{FallocateFlags, FileType as RawType, RenameFlags, XattrFlags},
    io::{Errno, Result},
};

use super::{
    channel::DATA_BYTES,
    reply::{Attributes, DirectoryEntry, Reply},
    request::{Header, Moment, Operation, SetAttributes, WRITE_KILL_SUIDGID, flag},
    session::Server,
    unsent::Unsent,
};
use crate::{
    caller::is_member,
    ids::IdMapping,
    tree::{FileKind, Time, Tree},
    union::{ACCESS_ACL, AttributeChange, Listed, Making, Metadata, NodeId, RenameMode, SetTime, Union},
};

/// For ever: about thirty years, in seconds.
pub(super) const FOR_EVER: u64 = 1_000_000_000;

/// Names that are read at once for one reply: about what a 32 KiB buffer of the kernel's holds with attributes.
pub(super) const LISTED_NAMES: usize = 128;

/// Pages of an open file that the kernel has stay right.
const KEEP_CACHE: u32 = 1 << 1;
/// Listings of a directory as well.
const CACHE_DIRECTORY: u32 = 1 << 3;

/// How long the kernel may believe attributes: for ever, but for set-id bits, which it does not take from its own copy
/// of the mode when a write takes them from the file.
fn valid(metadata: &Metadata) -> u64 {
    const SET_ID: u32 = 0o6000;
    if metadata.kind == FileKind::File && metadata.mode & SET_ID != 0 { 0 } else { FOR_EVER }
}

/// A union as the kernel's counterpart.
#[derive(Debug)]
pub(crate) struct Served<T> {
    union: Arc<Union<T>>,
    ids: IdMapping,
    /// What was agreed on with the kernel.
    agreed: u64,
    unsent: Unsent,
}

impl<T: Tree> Served<T> {
    /// `device` is another handle of the device whose requests are answered.
    pub(crate) fn new(union: Arc<Union<T>>, ids: IdMapping, device: OwnedFd) -> Self {
        Self { union, ids, agreed: 0, unsent: Unsent::new(device) }
    }

    /// Requests about the content of one file, and its xattrs.
    fn answer_content(&self, header: &Header, operation: Operation<'_>, reply: &mut Reply) -> Result<()> {
        let node = NodeId(header.node);
        match operation {
            Operation::Read { offset, size } => {
                reply.filled((size as usize).min(DATA_BYTES), |buffer| self.union.read(node, offset, buffer))
            }
            Operation::Write { offset, flags, data } => {
                self.drop_set_id(header, node, flags & WRITE_KILL_SUIDGID != 0)?;
                if self.agreed & flag::WRITEBACK_CACHE != 0 {
                    self.union.write_back(node, offset, data)?;
                } else {
                    self.union.write(node, offset, data)?;
                }
                written(data.len() as u64, reply)
            }
            Operation::Sync { data_only } => self.union.sync_node(node, data_only),
            Operation::Allocate { offset, length, mode } => {
                self.drop_set_id(header, node, header.uid != 0)?;
                self.union.allocate(node, offset, length, FallocateFlags::from_bits_retain(mode))
            }
            Operation::Seek { offset, whence } => {
                reply.u64(self.seek(node, offset, is_hole(whence)?)?);
                Ok(())
            }
            Operation::CopyRange { offset, to, to_offset, length } => {
                let to = NodeId(to);
                self.drop_set_id(header, to, header.uid != 0)?;
                // The reply carries 32 bits; the caller asks again for the rest.
                written(self.union.copy_range(node, offset, to, to_offset, length.min(1 << 30))?, reply)
            }
            Operation::Xattr { name, size } => {
                let value = self.union.xattr(node, name)?.ok_or(Errno::NODATA)?;
                sized(&self.ids.xattr_outside(name, value), size, reply)
            }
            Operation::XattrNames { size } => {
                let names = self.union.xattr_names(node)?;
                let list: Vec<u8> = names.into_iter().flat_map(|name| name.into_iter().chain([0])).collect();
                sized(&list, size, reply)
            }
            Operation::SetXattr { name, value, flags } => {
                let value = self.ids.xattr_inside(name, value)?;
                self.union.set_xattr(node, name, &value, XattrFlags::from_bits_retain(flags))?;
                self.after_change(header, node, name)
            }
            Operation::RemoveXattr { name } => {
                self.union.remove_xattr(node, name)?;
                self.after_change(header, node, name)
            }
            // FLUSH among them: nothing is left to do at close, and the kernel asks once.
            _ => Err(Errno::NOSYS),
        }
    }

    /// The next data or hole. Where a hole is seen, which may be behind the end, the kernel may hold data that it has
    /// not sent yet.
    fn seek(&self, node: NodeId, offset: u64, hole: bool) -> Result<u64> {
        let seen = self.union.seek(node, offset, hole);
        let hole_at = match seen {
            Ok(at) if hole => at,
            Ok(at) if at == offset => return seen,
            Ok(_) | Err(Errno::NXIO) => offset,
            Err(_) => return seen,
        };
        if self.union.is_read_only() {
            return seen;
        }
        // Of EINVAL programs learn that holes cannot be looked for, and read everything.
        self.unsent.fetch(node.0, hole_at).map_err(|error| if error == Errno::BUSY { Errno::INVAL } else { error })?;
        self.union.seek(node, offset, hole)
    }

    fn lookup(&self, directory: NodeId, name: &[u8], reply: &mut Reply) -> Result<()> {
        match self.union.lookup(directory, name)? {
            Some(metadata) => self.entry(Ok(metadata), reply),
            None => {
                // Lets the kernel remember that there is no such name.
                reply.entry(0, FOR_EVER, FOR_EVER, &Attributes::default());
                Ok(())
            }
        }
    }

    fn create(&self, header: &Header, name: &[u8], mode: (u32, u32), making: Making<'_>) -> Result<Metadata> {
        let owner = self.ids.owner_inside(header.uid, header.gid)?;
        let directory = NodeId(header.node);
        self.union.create(directory, name, owner, self.masked(directory, mode)?, making)
    }

    /// A mode without what the umask takes, whose place a directory's list for new files takes.
    fn masked(&self, directory: NodeId, (mode, umask): (u32, u32)) -> Result<u32> {
        let has_list = self.union.has_acls() && self.union.has_default_acl(directory)?;
        let mode = if has_list || self.agreed & flag::DONT_MASK == 0 { mode } else { mode & !umask };
        Ok(mode & 0o7777)
    }

    fn entry(&self, found: Result<Metadata>, reply: &mut Reply) -> Result<()> {
        let metadata = found?;
        reply.entry(metadata.id.0, FOR_EVER, valid(&metadata), &self.shown(&metadata));
        Ok(())
    }

    fn attributes(&self, metadata: Result<Metadata>, reply: &mut Reply) -> Result<()> {
        let metadata = metadata?;
        reply.attributes(valid(&metadata), &self.shown(&metadata));
        Ok(())
    }

    fn set_attributes(&self, header: &Header, wanted: &SetAttributes, reply: &mut Reply) -> Result<()> {
        let node = NodeId(header.node);
        let change = AttributeChange {
            mode: wanted.mode,
            uid: wanted.uid.map(|uid| self.ids.user_inside(uid)).transpose()?,
            gid: wanted.gid.map(|gid| self.ids.group_inside(gid)).transpose()?,
            size_bytes: wanted.size,
            accessed: wanted.accessed.map(set_time),
            modified: wanted.modified.map(set_time),
        };
        let is_time_alone = AttributeChange { modified: change.modified, ..AttributeChange::default() } == change;
        if self.agreed & flag::WRITEBACK_CACHE != 0 && is_time_alone && self.union.is_removed(node)? {
            // Sent with the last use of a file that has no name any more, for which a file of the tree would be copied
            // up. Whoever has it open still sees the kernel's times.
            return self.attributes(self.union.metadata(node), reply);
        }
        self.drop_set_id(header, node, wanted.kills_set_id)?;
        self.attributes(self.union.set_attributes(node, change), reply)
    }

    /// Takes the set-id bits from a file that is about to change, where the kernel asks for it. For what it does not
    /// say so, every user but root is taken for one without `CAP_FSETID`.
    fn drop_set_id(&self, caller: &Header, node: NodeId, is_wanted: bool) -> Result<()> {
        if !is_wanted {
            return Ok(());
        }
        // Root is asked for when it changes the owner, and keeps as much as a member then.
        let is_member = |gid| caller.uid == 0 || is_member(caller.process, caller.gid, self.ids.group_outside(gid));
        self.union.drop_set_id(node, is_member)
    }

    /// Who changes the list of a file as its owner, but is not in its group, takes its set-group-id bit. The file system
    /// below would do so by itself, if it were not for us that it sees.
    fn after_change(&self, caller: &Header, node: NodeId, xattr: &[u8]) -> Result<()> {
        const SET_GROUP_ID: u32 = 0o2000;
        if xattr != ACCESS_ACL || caller.uid == 0 {
            return Ok(());
        }
        let Metadata { mode, gid, .. } = self.union.metadata(node)?;
        if mode & SET_GROUP_ID == 0 || is_member(caller.process, caller.gid, self.ids.group_outside(gid)) {
            return Ok(());
        }
        let change = AttributeChange { mode: Some(mode & !SET_GROUP_ID), ..AttributeChange::default() };
        self.union.set_attributes(node, change).map(drop)
    }

    /// "Never ask again", with which the kernel opens by itself and keeps its cache, where it knows that answer.
    fn open(&self, support: u64, flags: u32, reply: &mut Reply) -> Result<()> {
        if self.agreed & support != 0 {
            return Err(Errno::NOSYS);
        }
        reply.opened(flags);
        Ok(())
    }

    fn read_directory(&self, node: NodeId, offset: u64, limit: usize, reply: &mut Reply) -> Result<()> {
        for listed in self.union.read_directory(node, offset, LISTED_NAMES)? {
            if !reply.directory_entry(limit, &directory_entry(&listed, None)) {
                break;
            }
        }
        Ok(())
    }

    fn read_directory_plus(&self, node: NodeId, offset: u64, limit: usize, reply: &mut Reply) -> Result<()> {
        let mut is_full = false;
        for (listed, metadata) in self.union.read_directory_plus(node, offset, LISTED_NAMES)? {
            let attributes = Some((FOR_EVER, valid(&metadata), self.shown(&metadata)));
            is_full = is_full || !reply.directory_entry(limit, &directory_entry(&listed, attributes));
            // The kernel counts a lookup for what it was sent, and none for the two dots.
            if is_full && !matches!(listed.name.as_slice(), b"." | b"..") {
                self.union.forget(listed.id, 1);
            }
        }
        Ok(())
    }

    fn space(&self, reply: &mut Reply) -> Result<()> {
        let space = self.union.space()?;
        let block_bytes = u32::try_from(space.block_bytes).unwrap_or(4096);
        reply.space([space.blocks, space.free, space.available, space.files, space.free_files], block_bytes);
        Ok(())
    }

    fn shown(&self, metadata: &Metadata) -> Attributes {
        Attributes {
            uid: self.ids.user_outside(metadata.uid),
            gid: self.ids.group_outside(metadata.gid),
            ..attributes(metadata)
        }
    }
}

impl<T: Tree + 'static> Server for Served<T> {
    fn agree(&mut self, offered: u64) -> u64 {
        // HANDLE_KILLPRIV_V2 leaves clearing set-id bits to us where the caller may not keep them: see `drop_set_id`.
        // Capabilities are dropped by the file system of the upper.
        // POSIX_ACL only where there are lists: it costs a request per path component for everyone but the owner. Lists
        // are stored in any case, and enforced by the next mount if this one began without.
        // Not ASYNC_DIO: the kernel does not take the old bytes from its cache after such a write.
        // NO_EXPORT_SUPPORT: a handle of a file that the kernel forgot cannot be opened.
        const WANTED: u64 = flag::ASYNC_READ
            | flag::BIG_WRITES
            | flag::MAX_PAGES
            | flag::WRITEBACK_CACHE
            | flag::PARALLEL_DIROPS
            | flag::DO_READDIRPLUS
            | flag::READDIRPLUS_AUTO
            | flag::CACHE_SYMLINKS
            | flag::DONT_MASK
            | flag::INIT_EXT
            | flag::NO_EXPORT_SUPPORT
            | flag::HANDLE_KILLPRIV_V2
            | flag::NO_OPEN_SUPPORT
            | flag::NO_OPENDIR_SUPPORT;
        let lists = if self.union.has_acls() { flag::POSIX_ACL } else { 0 };
        if lists & !offered != 0 {
            tracing::warn!("the kernel's FUSE cannot enforce access control lists");
        }
        self.agreed = offered & (WANTED | lists);
        self.agreed
    }

    fn answer(&self, header: &Header, operation: Operation<'_>, reply: &mut Reply) -> Result<()> {
        let node = NodeId(header.node);
        match operation {
            Operation::Lookup { name } => self.lookup(node, name, reply),
            Operation::GetAttributes => self.attributes(self.union.metadata(node), reply),
            Operation::SetAttributes(wanted) => self.set_attributes(header, &wanted, reply),
            Operation::ReadLink => self.union.read_link(node).map(|target| reply.bytes(&target)),
            Operation::Symlink { name, target } => {
                self.entry(self.create(header, name, (0o777, 0), Making::Symlink(target)), reply)
            }
            Operation::MakeNode { mode, umask, device, name } => {
                self.entry(self.create(header, name, (mode, umask), making(mode, device)?), reply)
            }
            Operation::MakeDirectory { mode, umask, name } => {
                self.entry(self.create(header, name, (mode, umask), Making::Directory), reply)
            }
            // "Make it, then open it": the second then costs no request, and the kernel learns so with the first file,
            // rather than sending a release for each until something is opened for reading.
            Operation::Create { .. } if self.agreed & flag::NO_OPEN_SUPPORT != 0 => Err(Errno::NOSYS),
            Operation::Create { mode, umask, name } => {
                self.entry(self.create(header, name, (mode, umask), Making::File), reply)?;
                reply.opened(KEEP_CACHE);
                Ok(())
            }
            Operation::CreateUnnamed { mode, umask } => {
                let owner = self.ids.owner_inside(header.uid, header.gid)?;
                let mode = self.masked(node, (mode, umask))?;
                self.entry(self.union.create_unnamed(node, owner, mode), reply)?;
                reply.opened(KEEP_CACHE);
                Ok(())
            }
            Operation::Link { node: file, name } => self.entry(self.union.link(NodeId(file), node, name), reply),
            Operation::Unlink { name } => self.union.unlink(node, name),
            Operation::RemoveDirectory { name } => self.union.rmdir(node, name),
            Operation::Rename { name, new_directory, new_name, flags } => {
                self.union.rename(node, name, NodeId(new_directory), new_name, rename_mode(flags)?)
            }
            Operation::Open => self.open(flag::NO_OPEN_SUPPORT, KEEP_CACHE, reply),
            Operation::OpenDirectory => self.open(flag::NO_OPENDIR_SUPPORT, KEEP_CACHE | CACHE_DIRECTORY, reply),
            Operation::Release => Ok(()),
            Operation::ReadDirectory { offset, size, with_attributes: true } => {
                self.read_directory_plus(node, offset, size as usize, reply)
            }
            Operation::ReadDirectory { offset, size, with_attributes: false } => {
                self.read_directory(node, offset, size as usize, reply)
            }
            Operation::StatFs => self.space(reply),
            Operation::SyncAll => self.union.sync(),
            other => self.answer_content(header, other, reply),
        }
    }

    fn forget(&self, node: u64, count: u64) {
        self.union.forget(NodeId(node), count);
    }
}

fn directory_entry(listed: &Listed, attributes: Option<(u64, u64, Attributes)>) -> DirectoryEntry<'_> {
    let kind = directory_kind(listed.kind);
    DirectoryEntry { node: listed.id.0, position: listed.position, kind, name: &listed.name, attributes }
}

/// The kind of a file in the encoding of directory entries.
pub(super) fn directory_kind(kind: FileKind) -> u32 {
    /// Where the type is in a mode.
    const TYPE_SHIFT: u32 = 12;
    raw_type(kind).as_raw_mode() >> TYPE_SHIFT
}

/// What `stat` shows, as it is carried to the kernel.
pub(super) fn attributes(metadata: &Metadata) -> Attributes {
    let time = |time: Time| (time.seconds, time.nanoseconds);
    Attributes {
        inode: metadata.id.0,
        size: metadata.size_bytes,
        blocks: metadata.blocks,
        times: [time(metadata.accessed), time(metadata.modified), time(metadata.changed)],
        mode: raw_type(metadata.kind).as_raw_mode() | metadata.mode & 0o7777,
        links: metadata.links,
        uid: metadata.uid,
        gid: metadata.gid,
        device: encode_device(metadata.device),
    }
}

fn set_time(moment: Moment) -> SetTime {
    match moment {
        Moment::Now => SetTime::Now,
        Moment::At { seconds, nanoseconds } => SetTime::At(Time { seconds, nanoseconds }),
    }
}

fn raw_type(kind: FileKind) -> RawType {
    match kind {
        FileKind::File => RawType::RegularFile,
        FileKind::Directory => RawType::Directory,
        FileKind::Symlink => RawType::Symlink,
        FileKind::CharacterDevice => RawType::CharacterDevice,
        FileKind::BlockDevice => RawType::BlockDevice,
        FileKind::Fifo => RawType::Fifo,
        FileKind::Socket => RawType::Socket,
    }
}

/// What `mknod` is to make.
fn making(mode: u32, device: u32) -> Result<Making<'static>> {
    let device = decode_device(device);
    match RawType::from_raw_mode(mode) {
        RawType::RegularFile | RawType::Unknown => Ok(Making::File),
        RawType::CharacterDevice => Ok(Making::Special(FileKind::CharacterDevice, device)),
        RawType::BlockDevice => Ok(Making::Special(FileKind::BlockDevice, device)),
        RawType::Fifo => Ok(Making::Special(FileKind::Fifo, (0, 0))),
        RawType::Socket => Ok(Making::Special(FileKind::Socket, (0, 0))),
        RawType::Directory | RawType::Symlink => Err(Errno::INVAL),
    }
}

fn rename_mode(flags: u32) -> Result<RenameMode> {
    match RenameFlags::from_bits_retain(flags) {
        RenameFlags::NOREPLACE => Ok(RenameMode::KeepTarget),
        RenameFlags::EXCHANGE => Ok(RenameMode::Exchange),
        none if none.is_empty() => Ok(RenameMode::Replace),
        _ => Err(Errno::INVAL),
    }
}

/// Whether a hole is looked for, rather than data.
pub(super) fn is_hole(whence: u32) -> Result<bool> {
    const SEEK_DATA: u32 = 3;
    const SEEK_HOLE: u32 = 4;
    match whence {
        SEEK_DATA => Ok(false),
        SEEK_HOLE => Ok(true),
        _ => Err(Errno::INVAL),
    }
}

/// The encoding of device numbers in FUSE: `new_encode_dev` of the kernel.
fn encode_device((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & !0xff) << 12
}

fn decode_device(device: u32) -> (u32, u32) {
    ((device & 0xfff00) >> 8, (device & 0xff) | (device >> 12 & 0xfff00))
}

fn written(length: u64, reply: &mut Reply) -> Result<()> {
    reply.u32(u32::try_from(length).map_err(|_| Errno::OVERFLOW)?);
    reply.u32(0);
    Ok(())
}

/// Answers a request for a value with it, with its size where that is what was asked for, or with `ERANGE`.
pub(super) fn sized(value: &[u8], size: u32, reply: &mut Reply) -> Result<()> {
    match u32::try_from(value.len()) {
        Ok(length) if size == 0 => {
            reply.u32(length);
            reply.u32(0);
            Ok(())
        }
        Ok(length) if length <= size => {
            reply.bytes(value);
            Ok(())
        }
        _ => Err(Errno::RANGE),
    }
}
