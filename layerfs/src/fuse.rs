//! Kernel requests become calls of a [`Union`], and its errnos become replies; nothing is decided here but caching.
//!
//! Invariant: the union has one writer, the kernel of this mount, so whatever it learned stays true: entries,
//! attributes, absent names, links and directories are valid for ever, and files and directories are opened without
//! asking. There is no union semantics here.
//! Ids are translated here and nowhere else.

use std::{
    cell::RefCell,
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use fuser::{
    CopyFileRangeFlags, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};
use rustix::{
    fs::{FallocateFlags, FileType as RawType, XattrFlags},
    io::Errno,
};

use crate::{
    ids::IdMapping,
    tree::{FileKind, Time, Tree},
    union::{AttributeChange, Making, Metadata, NodeId, RenameMode, SetTime, Union},
};

/// For ever: about thirty years.
const VALID: Duration = Duration::from_secs(1_000_000_000);

/// Names that are read at once for one reply: about what a 32 KiB buffer of the kernel's holds with attributes.
const LISTED_NAMES: usize = 128;

/// How long the kernel may believe an answer: for ever, but for set-id bits, which it does not take from its own copy
/// of the mode when a write takes them from the file.
fn valid(metadata: &Metadata) -> &'static Duration {
    const SET_ID: u32 = 0o6000;
    if metadata.kind == FileKind::File && metadata.mode & SET_ID != 0 { &Duration::ZERO } else { &VALID }
}

/// The generation of every node: a number is not used again while the kernel holds it.
const GENERATION: Generation = Generation(0);

const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

thread_local! {
    /// What was read for a reply: at most the 1 MiB that the kernel asks for at once, for each serving thread.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A union as the kernel's counterpart.
pub(crate) struct Served<T> {
    union: Arc<Union<T>>,
    ids: IdMapping,
    has_no_open: bool,
    has_no_opendir: bool,
    /// The kernel keeps the times of files and sends them when it has to.
    has_writeback: bool,
}

impl<T: Tree> Served<T> {
    pub(crate) fn new(union: Arc<Union<T>>, ids: IdMapping) -> Self {
        Self { union, ids, has_no_open: false, has_no_opendir: false, has_writeback: false }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        making: Making<'_>,
    ) -> rustix::io::Result<Metadata> {
        let owner = self.ids.owner_inside(request.uid(), request.gid())?;
        self.union.create(node(parent), name.as_bytes(), owner, mode & 0o7777, making)
    }

    fn attr(&self, metadata: &Metadata) -> FileAttr {
        FileAttr {
            uid: self.ids.user_outside(metadata.uid),
            gid: self.ids.group_outside(metadata.gid),
            ..attr(metadata)
        }
    }

    /// Takes the set-id bits from a file that is about to change, unless its caller may keep them. The kernel says so
    /// for writes; for the rest its flag does not reach us, and every user but root is taken for one without
    /// `CAP_FSETID`.
    fn drop_set_id(&self, inode: INodeNo, is_wanted: bool) -> rustix::io::Result<()> {
        if is_wanted { self.union.drop_set_id(node(inode)) } else { Ok(()) }
    }

    fn entry(&self, found: rustix::io::Result<Metadata>, reply: ReplyEntry) {
        match found {
            Ok(metadata) => reply.entry(valid(&metadata), &self.attr(&metadata), GENERATION),
            Err(error) => reply.error(code(error)),
        }
    }
}

fn code(error: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(error.raw_os_error())
}

fn empty(result: rustix::io::Result<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(code(error)),
    }
}

fn node(number: INodeNo) -> NodeId {
    NodeId(number.0)
}

fn system_time(time: Time) -> SystemTime {
    let whole = Duration::from_secs(time.seconds.unsigned_abs());
    let base = if time.seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(whole)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(whole)
    };
    let base = base.unwrap_or(SystemTime::UNIX_EPOCH);
    base.checked_add(Duration::from_nanos(time.nanoseconds.into())).unwrap_or(base)
}

fn set_time(time: TimeOrNow) -> SetTime {
    let time = match time {
        TimeOrNow::Now => return SetTime::Now,
        TimeOrNow::SpecificTime(time) => time,
    };
    SetTime::At(match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => Time { seconds: after.as_secs().cast_signed(), nanoseconds: after.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            let borrow = i64::from(before.subsec_nanos() > 0);
            let nanoseconds = (1_000_000_000 - before.subsec_nanos()) % 1_000_000_000;
            Time { seconds: -before.as_secs().cast_signed() - borrow, nanoseconds }
        }
    })
}

fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::CharacterDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
    }
}

/// The encoding of device numbers in FUSE: `new_encode_dev` of the kernel.
fn encode_device((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & !0xff) << 12
}

fn decode_device(device: u32) -> (u32, u32) {
    ((device & 0xfff00) >> 8, (device & 0xff) | (device >> 12 & 0xfff00))
}

fn attr(metadata: &Metadata) -> FileAttr {
    FileAttr {
        ino: INodeNo(metadata.id.0),
        size: metadata.size_bytes,
        blocks: metadata.blocks,
        atime: system_time(metadata.accessed),
        mtime: system_time(metadata.modified),
        ctime: system_time(metadata.changed),
        crtime: SystemTime::UNIX_EPOCH,
        kind: file_type(metadata.kind),
        perm: u16::try_from(metadata.mode & 0o7777).expect("twelve bits"),
        nlink: metadata.links,
        uid: metadata.uid,
        gid: metadata.gid,
        rdev: encode_device(metadata.device),
        blksize: 4096,
        flags: 0,
    }
}

/// The answer that lets the kernel remember that there is no such name: an entry for node 0.
fn absent() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl<T: Tree + 'static> Filesystem for Served<T> {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // HANDLE_KILLPRIV_V2 saves a request for security.capability with every write(2), and leaves clearing set-id
        // bits to us: see `drop_set_id`. Capabilities are dropped by the file system of the upper.
        // Not POSIX_ACL: it costs a request per path component for everyone but the owner.
        let wanted = [
            InitFlags::FUSE_WRITEBACK_CACHE,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ];
        for flag in wanted {
            if let Err(missing) = config.add_capabilities(flag) {
                tracing::debug!(?missing, "the kernel's FUSE lacks a capability");
            }
        }
        self.has_writeback = config.capabilities().contains(InitFlags::FUSE_WRITEBACK_CACHE);
        self.has_no_open = config.capabilities().contains(InitFlags::FUSE_NO_OPEN_SUPPORT);
        self.has_no_opendir = config.capabilities().contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.union.lookup(node(parent), name.as_bytes()) {
            Ok(None) => reply.entry(&VALID, &absent(), GENERATION),
            Ok(Some(metadata)) => self.entry(Ok(metadata), reply),
            Err(error) => reply.error(code(error)),
        }
    }

    fn forget(&self, _request: &Request, inode: INodeNo, count: u64) {
        self.union.forget(node(inode), count);
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.union.metadata(node(inode)) {
            Ok(metadata) => reply.attr(valid(&metadata), &self.attr(&metadata)),
            Err(error) => reply.error(code(error)),
        }
    }

    fn setattr(
        &self,
        request: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _changed: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _created: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let uid = uid.map(|uid| self.ids.user_inside(uid)).transpose();
        let gid = gid.map(|gid| self.ids.group_inside(gid)).transpose();
        let (uid, gid) = match (uid, gid) {
            (Ok(uid), Ok(gid)) => (uid, gid),
            (Err(error), _) | (_, Err(error)) => return reply.error(code(error)),
        };
        let change = AttributeChange {
            mode,
            uid,
            gid,
            size_bytes: size,
            accessed: accessed.map(set_time),
            modified: modified.map(set_time),
        };
        let is_time_alone = AttributeChange { modified: change.modified, ..AttributeChange::default() } == change;
        if self.has_writeback
            && is_time_alone
            && let Ok(metadata) = self.union.metadata(node(inode))
            && (metadata.links, metadata.kind) == (0, FileKind::File)
        {
            // Sent with the last use of a file that has no name any more, for which a file of the tree would be copied
            // up. Whoever has it open still sees the kernel's times.
            return reply.attr(valid(&metadata), &self.attr(&metadata));
        }
        let is_cut = size.is_some() && mode.is_none() && request.uid() != 0;
        let changed = self.drop_set_id(inode, is_cut).and_then(|()| self.union.set_attributes(node(inode), change));
        match changed {
            Ok(metadata) => reply.attr(valid(&metadata), &self.attr(&metadata)),
            Err(error) => reply.error(code(error)),
        }
    }

    fn readlink(&self, _request: &Request, inode: INodeNo, reply: ReplyData) {
        match self.union.read_link(node(inode)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(code(error)),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        device: u32,
        reply: ReplyEntry,
    ) {
        let device = decode_device(device);
        let making = match RawType::from_raw_mode(mode) {
            RawType::RegularFile | RawType::Unknown => Making::File,
            RawType::CharacterDevice => Making::Special(FileKind::CharacterDevice, device),
            RawType::BlockDevice => Making::Special(FileKind::BlockDevice, device),
            RawType::Fifo => Making::Special(FileKind::Fifo, (0, 0)),
            RawType::Socket => Making::Special(FileKind::Socket, (0, 0)),
            RawType::Directory | RawType::Symlink => return reply.error(fuser::Errno::EINVAL),
        };
        let made = Served::create(self, request, parent, name, mode, making);
        self.entry(made, reply);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        self.entry(Served::create(self, request, parent, name, mode, Making::Directory), reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let making = Making::Symlink(target.as_os_str().as_bytes());
        self.entry(Served::create(self, request, parent, name, 0o777, making), reply);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        match Served::create(self, request, parent, name, mode, Making::File) {
            Ok(made) => {
                reply.created(valid(&made), &self.attr(&made), GENERATION, FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE)
            }
            Err(error) => reply.error(code(error)),
        }
    }

    fn link(&self, _request: &Request, inode: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.entry(self.union.link(node(inode), node(parent), name.as_bytes()), reply);
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.union.unlink(node(parent), name.as_bytes()), reply);
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.union.rmdir(node(parent), name.as_bytes()), reply);
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            RenameFlags::RENAME_NOREPLACE => RenameMode::KeepTarget,
            RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
            none if none.is_empty() => RenameMode::Replace,
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        let (from, to) = (node(parent), node(new_parent));
        empty(self.union.rename(from, name.as_bytes(), to, new_name.as_bytes(), mode), reply);
    }

    fn open(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.has_no_open {
            // "Never ask again": the kernel then opens by itself and keeps its cache.
            return reply.error(fuser::Errno::ENOSYS);
        }
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn opendir(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.has_no_opendir {
            return reply.error(fuser::Errno::ENOSYS);
        }
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR);
    }

    fn flush(&self, _request: &Request, _inode: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        // Nothing is left to do at close; the kernel asks once.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn read(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        READ_BUFFER.with_borrow_mut(|buffer| {
            // Bytes that an earlier request left are overwritten or not sent.
            if buffer.len() < size as usize {
                buffer.resize(size as usize, 0);
            }
            match self.union.read(node(inode), offset, &mut buffer[..size as usize]) {
                Ok(read) => reply.data(&buffer[..read]),
                Err(error) => reply.error(code(error)),
            }
        });
    }

    fn write(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let is_killing = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        match self.drop_set_id(inode, is_killing).and_then(|()| self.union.write(node(inode), offset, data)) {
            Ok(()) => reply.written(u32::try_from(data.len()).expect("a request is shorter than 4 GiB")),
            Err(error) => reply.error(code(error)),
        }
    }

    fn fsync(&self, _request: &Request, inode: INodeNo, _handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        empty(self.union.sync_node(node(inode), data_only), reply);
    }

    fn fsyncdir(&self, _request: &Request, inode: INodeNo, _handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        empty(self.union.sync_node(node(inode), data_only), reply);
    }

    fn readdir(&self, _request: &Request, inode: INodeNo, _handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match self.union.read_directory(node(inode), offset, LISTED_NAMES) {
            Ok(listed) => {
                for entry in listed {
                    let (number, name) = (INodeNo(entry.id.0), OsStr::from_bytes(&entry.name));
                    if reply.add(number, entry.position, file_type(entry.kind), name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(code(error)),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let listed = match self.union.read_directory_plus(node(inode), offset, LISTED_NAMES) {
            Ok(listed) => listed,
            Err(error) => return reply.error(code(error)),
        };
        let mut is_full = false;
        for (entry, metadata) in listed {
            let name = OsStr::from_bytes(&entry.name);
            is_full = is_full
                || reply.add(
                    INodeNo(entry.id.0),
                    entry.position,
                    name,
                    valid(&metadata),
                    &self.attr(&metadata),
                    GENERATION,
                );
            // The kernel counts a lookup for what it was sent, and none for the two dots.
            if is_full && !matches!(entry.name.as_slice(), b"." | b"..") {
                self.union.forget(entry.id, 1);
            }
        }
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        /// `NAME_MAX` of Linux.
        const NAME_BYTES: u32 = 255;
        match self.union.space() {
            Ok(space) => {
                let block = u32::try_from(space.block_bytes).unwrap_or(4096);
                let (files, free_files) = (space.files, space.free_files);
                reply.statfs(space.blocks, space.free, space.available, files, free_files, block, NAME_BYTES, block);
            }
            Err(error) => reply.error(code(error)),
        }
    }

    fn setxattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let flags = XattrFlags::from_bits_retain(flags.cast_unsigned());
        empty(self.union.set_xattr(node(inode), name.as_bytes(), value, flags), reply);
    }

    fn getxattr(&self, _request: &Request, inode: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.union.xattr(node(inode), name.as_bytes()) {
            Ok(Some(value)) => sized(&value, size, reply),
            Ok(None) => reply.error(fuser::Errno::ENODATA),
            Err(error) => reply.error(code(error)),
        }
    }

    fn listxattr(&self, _request: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        match self.union.xattr_names(node(inode)) {
            Ok(names) => {
                let list: Vec<u8> = names.into_iter().flat_map(|name| name.into_iter().chain([0])).collect();
                sized(&list, size, reply);
            }
            Err(error) => reply.error(code(error)),
        }
    }

    fn removexattr(&self, _request: &Request, inode: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.union.remove_xattr(node(inode), name.as_bytes()), reply);
    }

    fn fallocate(
        &self,
        request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
        let dropped = self.drop_set_id(inode, request.uid() != 0);
        empty(dropped.and_then(|()| self.union.allocate(node(inode), offset, length, mode)), reply);
    }

    fn lseek(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let hole = match whence {
            SEEK_DATA => false,
            SEEK_HOLE => true,
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(fuser::Errno::ENXIO) };
        match self.union.seek(node(inode), offset, hole) {
            Ok(position) => reply.offset(position.cast_signed()),
            Err(error) => reply.error(code(error)),
        }
    }

    fn copy_file_range(
        &self,
        request: &Request,
        from: INodeNo,
        _from_handle: FileHandle,
        from_offset: u64,
        to: INodeNo,
        _to_handle: FileHandle,
        to_offset: u64,
        length: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The reply carries 32 bits; the caller asks again for the rest.
        let length = length.min(1 << 30);
        let dropped = self.drop_set_id(to, request.uid() != 0);
        match dropped.and_then(|()| self.union.copy_range(node(from), from_offset, node(to), to_offset, length)) {
            Ok(copied) => reply.written(u32::try_from(copied).expect("no more than was asked for")),
            Err(error) => reply.error(code(error)),
        }
    }
}

/// Answers a request for a value with it, with its size where that is what was asked for, or with `ERANGE`.
fn sized(value: &[u8], size: u32, reply: ReplyXattr) {
    match u32::try_from(value.len()) {
        Ok(length) if size == 0 => reply.size(length),
        Ok(length) if length <= size => reply.data(value),
        _ => reply.error(fuser::Errno::ERANGE),
    }
}
