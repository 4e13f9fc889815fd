//! Requests from the kernel's bytes.
//!
//! Invariant: a request that is shorter than its kind demands is an error, never a panic, whatever the bytes are;
//! nothing is read but through slices. The layouts are those of <linux/fuse.h>, in the byte order of this machine:
//! <https://github.com/torvalds/linux/blob/master/include/uapi/linux/fuse.h>. There is no meaning here.

use rustix::io::Errno;

use super::channel::DATA_BYTES;

/// What comes before every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(super) unique: u64,
    pub(super) node: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) process: u32,
}

/// A request. Names are without their final NUL.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Operation<'a> {
    Init {
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u64,
    },
    Lookup {
        name: &'a [u8],
    },
    /// So many lookups of the node are given back. Nothing is answered.
    Forget {
        count: u64,
    },
    /// The same for several nodes.
    ForgetMany(Forgets<'a>),
    GetAttributes,
    SetAttributes(SetAttributes),
    ReadLink,
    Symlink {
        name: &'a [u8],
        target: &'a [u8],
    },
    MakeNode {
        mode: u32,
        umask: u32,
        device: u32,
        name: &'a [u8],
    },
    MakeDirectory {
        mode: u32,
        umask: u32,
        name: &'a [u8],
    },
    Unlink {
        name: &'a [u8],
    },
    RemoveDirectory {
        name: &'a [u8],
    },
    Rename {
        name: &'a [u8],
        new_directory: u64,
        new_name: &'a [u8],
        flags: u32,
    },
    Link {
        node: u64,
        name: &'a [u8],
    },
    Open,
    OpenDirectory,
    Read {
        offset: u64,
        size: u32,
    },
    Write {
        offset: u64,
        flags: u32,
        data: &'a [u8],
    },
    StatFs,
    /// Of a file or directory that was opened where nothing is remembered of it.
    Release,
    Sync {
        data_only: bool,
    },
    SetXattr {
        name: &'a [u8],
        value: &'a [u8],
        flags: u32,
    },
    Xattr {
        name: &'a [u8],
        size: u32,
    },
    XattrNames {
        size: u32,
    },
    RemoveXattr {
        name: &'a [u8],
    },
    ReadDirectory {
        offset: u64,
        size: u32,
        with_attributes: bool,
    },
    Create {
        mode: u32,
        umask: u32,
        name: &'a [u8],
    },
    CreateUnnamed {
        mode: u32,
        umask: u32,
    },
    Allocate {
        offset: u64,
        length: u64,
        mode: u32,
    },
    Seek {
        offset: u64,
        whence: u32,
    },
    CopyRange {
        offset: u64,
        to: u64,
        to_offset: u64,
        length: u64,
    },
    SyncAll,
    /// What is not served, and what asks for nothing.
    Other,
}

impl Operation<'_> {
    /// Whether the answer has to wait for the disk, for more data to be moved there than a WRITE brings, or for the
    /// kernel.
    pub(super) fn waits(&self) -> bool {
        match self {
            Self::Sync { .. } | Self::SyncAll | Self::Seek { .. } => true,
            Self::Allocate { length, .. } | Self::CopyRange { length, .. } => *length > DATA_BYTES as u64,
            _ => false,
        }
    }
}

/// The numbers of the requests.
mod opcode {
    pub(super) const LOOKUP: u32 = 1;
    pub(super) const FORGET: u32 = 2;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const SETATTR: u32 = 4;
    pub(super) const READLINK: u32 = 5;
    pub(super) const SYMLINK: u32 = 6;
    pub(super) const MKNOD: u32 = 8;
    pub(super) const MKDIR: u32 = 9;
    pub(super) const UNLINK: u32 = 10;
    pub(super) const RMDIR: u32 = 11;
    pub(super) const RENAME: u32 = 12;
    pub(super) const LINK: u32 = 13;
    pub(super) const OPEN: u32 = 14;
    pub(super) const READ: u32 = 15;
    pub(super) const WRITE: u32 = 16;
    pub(super) const STATFS: u32 = 17;
    pub(super) const RELEASE: u32 = 18;
    pub(super) const FSYNC: u32 = 20;
    pub(super) const SETXATTR: u32 = 21;
    pub(super) const GETXATTR: u32 = 22;
    pub(super) const LISTXATTR: u32 = 23;
    pub(super) const REMOVEXATTR: u32 = 24;
    pub(super) const INIT: u32 = 26;
    pub(super) const OPENDIR: u32 = 27;
    pub(super) const READDIR: u32 = 28;
    pub(super) const RELEASEDIR: u32 = 29;
    pub(super) const FSYNCDIR: u32 = 30;
    pub(super) const CREATE: u32 = 35;
    pub(super) const BATCH_FORGET: u32 = 42;
    pub(super) const FALLOCATE: u32 = 43;
    pub(super) const READDIRPLUS: u32 = 44;
    pub(super) const RENAME2: u32 = 45;
    pub(super) const LSEEK: u32 = 46;
    pub(super) const COPY_FILE_RANGE: u32 = 47;
    pub(super) const SYNCFS: u32 = 50;
    pub(super) const TMPFILE: u32 = 51;
}

/// What a mount and its server may agree on.
pub(super) mod flag {
    pub(in crate::fuse) const ASYNC_READ: u64 = 1;
    pub(in crate::fuse) const BIG_WRITES: u64 = 1 << 5;
    pub(in crate::fuse) const DONT_MASK: u64 = 1 << 6;
    pub(in crate::fuse) const DO_READDIRPLUS: u64 = 1 << 13;
    pub(in crate::fuse) const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub(in crate::fuse) const ASYNC_DIO: u64 = 1 << 15;
    pub(in crate::fuse) const WRITEBACK_CACHE: u64 = 1 << 16;
    pub(in crate::fuse) const NO_OPEN_SUPPORT: u64 = 1 << 17;
    pub(in crate::fuse) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(in crate::fuse) const POSIX_ACL: u64 = 1 << 20;
    pub(in crate::fuse) const MAX_PAGES: u64 = 1 << 22;
    pub(in crate::fuse) const CACHE_SYMLINKS: u64 = 1 << 23;
    pub(in crate::fuse) const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    pub(in crate::fuse) const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub(in crate::fuse) const NO_EXPORT_SUPPORT: u64 = 1 << 38;
    pub(in crate::fuse) const INIT_EXT: u64 = 1 << 30;
}

/// The request wants the set-id bits of the file gone: for a write, and for a change of attributes.
pub(super) const WRITE_KILL_SUIDGID: u32 = 1 << 2;

/// What to change, as far as it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SetAttributes {
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) size: Option<u64>,
    pub(super) accessed: Option<Moment>,
    pub(super) modified: Option<Moment>,
    /// The set-id bits are to go.
    pub(super) kills_set_id: bool,
}

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    Now,
    At { seconds: i64, nanoseconds: u32 },
}

/// Takes values from the front of a request.
#[derive(Debug, Clone, Copy)]
struct Fields<'a>(&'a [u8]);

type Parsed<T> = std::result::Result<T, Errno>;

impl<'a> Fields<'a> {
    fn bytes(&mut self, length: usize) -> Parsed<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u32(&mut self) -> Parsed<u32> {
        let bytes = self.bytes(4)?;
        Ok(u32::from_ne_bytes(bytes.try_into().expect("four bytes were taken")))
    }

    fn u64(&mut self) -> Parsed<u64> {
        let bytes = self.bytes(8)?;
        Ok(u64::from_ne_bytes(bytes.try_into().expect("eight bytes were taken")))
    }

    /// What is before the next NUL.
    fn name(&mut self) -> Parsed<&'a [u8]> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or(Errno::INVAL)?;
        let name = self.bytes(end)?;
        self.bytes(1)?;
        Ok(name)
    }
}

/// Nodes that the kernel no longer knows, each with a count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Forgets<'a>(&'a [u8]);

impl Iterator for Forgets<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<(u64, u64)> {
        let mut fields = Fields(self.0);
        let pair = (fields.u64().ok()?, fields.u64().ok()?);
        self.0 = fields.0;
        Some(pair)
    }
}

/// One request from what was read: its header, then what it is. Where the second is an error, it is the answer.
/// `None` where not even the header is there.
pub(super) fn parse(request: &[u8]) -> Option<(Header, Parsed<Operation<'_>>)> {
    let mut fields = Fields(request);
    let length = fields.u32().ok()? as usize;
    let opcode = fields.u32().ok()?;
    let unique = fields.u64().ok()?;
    let (node, uid, gid, process) = (fields.u64().ok()?, fields.u32().ok()?, fields.u32().ok()?, fields.u32().ok()?);
    let header = Header { unique, node, uid, gid, process };
    // The length of extensions, which were not agreed on, and padding.
    fields.bytes(4).ok()?;
    let operation = if length == request.len() { operation(opcode, fields) } else { Err(Errno::INVAL) };
    Some((header, operation))
}

fn operation(code: u32, mut body: Fields<'_>) -> Parsed<Operation<'_>> {
    Ok(match code {
        opcode::INIT => init(body)?,
        opcode::LOOKUP => Operation::Lookup { name: body.name()? },
        opcode::FORGET => Operation::Forget { count: body.u64()? },
        opcode::BATCH_FORGET => {
            // How many there are, and padding: the rest of the request is as long as it is.
            body.bytes(8)?;
            Operation::ForgetMany(Forgets(body.0))
        }
        opcode::GETATTR => Operation::GetAttributes,
        opcode::SETATTR => Operation::SetAttributes(set_attributes(body)?),
        opcode::READLINK => Operation::ReadLink,
        opcode::STATFS => Operation::StatFs,
        opcode::RELEASE | opcode::RELEASEDIR => Operation::Release,
        opcode::OPEN => Operation::Open,
        opcode::OPENDIR => Operation::OpenDirectory,
        opcode::SYNCFS => Operation::SyncAll,
        _ => name_operation(code, body)?,
    })
}

fn init(mut body: Fields<'_>) -> Parsed<Operation<'_>> {
    let (major, minor, max_readahead, low) = (body.u32()?, body.u32()?, body.u32()?, u64::from(body.u32()?));
    let high = if low & flag::INIT_EXT == 0 { 0 } else { u64::from(body.u32()?) };
    Ok(Operation::Init { major, minor, max_readahead, flags: low | high << 32 })
}

/// What makes, moves and removes names.
fn name_operation(code: u32, mut body: Fields<'_>) -> Parsed<Operation<'_>> {
    Ok(match code {
        opcode::SYMLINK => Operation::Symlink { name: body.name()?, target: body.name()? },
        opcode::MKNOD => {
            let (mode, device, umask) = (body.u32()?, body.u32()?, body.u32()?);
            body.bytes(4)?;
            Operation::MakeNode { mode, umask, device, name: body.name()? }
        }
        opcode::MKDIR => {
            let (mode, umask) = (body.u32()?, body.u32()?);
            Operation::MakeDirectory { mode, umask, name: body.name()? }
        }
        opcode::UNLINK => Operation::Unlink { name: body.name()? },
        opcode::RMDIR => Operation::RemoveDirectory { name: body.name()? },
        opcode::RENAME => {
            let new_directory = body.u64()?;
            Operation::Rename { name: body.name()?, new_directory, new_name: body.name()?, flags: 0 }
        }
        opcode::RENAME2 => {
            let (new_directory, flags) = (body.u64()?, body.u32()?);
            body.bytes(4)?;
            Operation::Rename { name: body.name()?, new_directory, new_name: body.name()?, flags }
        }
        opcode::LINK => Operation::Link { node: body.u64()?, name: body.name()? },
        opcode::CREATE | opcode::TMPFILE => {
            // The flags of open(2), which concern the kernel alone.
            body.bytes(4)?;
            let (mode, umask) = (body.u32()?, body.u32()?);
            body.bytes(4)?;
            if code == opcode::CREATE {
                Operation::Create { mode, umask, name: body.name()? }
            } else {
                Operation::CreateUnnamed { mode, umask }
            }
        }
        _ => xattr_operation(code, body)?,
    })
}

fn xattr_operation(code: u32, mut body: Fields<'_>) -> Parsed<Operation<'_>> {
    Ok(match code {
        opcode::SETXATTR => {
            let (size, flags) = (body.u32()? as usize, body.u32()?);
            Operation::SetXattr { name: body.name()?, value: body.bytes(size)?, flags }
        }
        opcode::GETXATTR => {
            let size = body.u32()?;
            body.bytes(4)?;
            Operation::Xattr { name: body.name()?, size }
        }
        opcode::LISTXATTR => Operation::XattrNames { size: body.u32()? },
        opcode::REMOVEXATTR => Operation::RemoveXattr { name: body.name()? },
        _ => content_operation(code, body)?,
    })
}

/// What reads and writes the content of files and directories. Each begins with the number of an open file, of which
/// none is ever given out.
fn content_operation(code: u32, mut body: Fields<'_>) -> Parsed<Operation<'_>> {
    const DATA_ONLY: u32 = 1;
    Ok(match code {
        opcode::READ => {
            body.bytes(8)?;
            Operation::Read { offset: body.u64()?, size: body.u32()? }
        }
        opcode::WRITE => {
            body.bytes(8)?;
            let (offset, size, flags) = (body.u64()?, body.u32()? as usize, body.u32()?);
            // The owner of locks, the flags of open(2), padding.
            body.bytes(16)?;
            Operation::Write { offset, flags, data: body.bytes(size)? }
        }
        opcode::FSYNC | opcode::FSYNCDIR => {
            body.bytes(8)?;
            Operation::Sync { data_only: body.u32()? & DATA_ONLY != 0 }
        }
        opcode::READDIR | opcode::READDIRPLUS => {
            body.bytes(8)?;
            let (offset, size) = (body.u64()?, body.u32()?);
            Operation::ReadDirectory { offset, size, with_attributes: code == opcode::READDIRPLUS }
        }
        opcode::FALLOCATE => {
            body.bytes(8)?;
            Operation::Allocate { offset: body.u64()?, length: body.u64()?, mode: body.u32()? }
        }
        opcode::LSEEK => {
            body.bytes(8)?;
            Operation::Seek { offset: body.u64()?, whence: body.u32()? }
        }
        opcode::COPY_FILE_RANGE => {
            body.bytes(8)?;
            let (offset, to) = (body.u64()?, body.u64()?);
            body.bytes(8)?;
            Operation::CopyRange { offset, to, to_offset: body.u64()?, length: body.u64()? }
        }
        _ => Operation::Other,
    })
}

fn set_attributes(mut body: Fields<'_>) -> Parsed<SetAttributes> {
    const MODE: u32 = 1;
    const UID: u32 = 1 << 1;
    const GID: u32 = 1 << 2;
    const SIZE: u32 = 1 << 3;
    const ATIME: u32 = 1 << 4;
    const MTIME: u32 = 1 << 5;
    const ATIME_NOW: u32 = 1 << 7;
    const MTIME_NOW: u32 = 1 << 8;
    const KILL_SUIDGID: u32 = 1 << 11;
    let valid = body.u32()?;
    // Padding and the open file.
    body.bytes(12)?;
    let size = body.u64()?;
    body.bytes(8)?;
    let (accessed, modified) = (body.u64()?.cast_signed(), body.u64()?.cast_signed());
    body.bytes(8)?;
    let (accessed_part, modified_part) = (body.u32()?, body.u32()?);
    body.bytes(4)?;
    let mode = body.u32()?;
    body.bytes(4)?;
    let (uid, gid) = (body.u32()?, body.u32()?);
    let has = |flag: u32| valid & flag != 0;
    let moment = |is_now, seconds, nanoseconds| {
        if is_now { Moment::Now } else { Moment::At { seconds, nanoseconds } }
    };
    Ok(SetAttributes {
        mode: has(MODE).then_some(mode),
        uid: has(UID).then_some(uid),
        gid: has(GID).then_some(gid),
        size: has(SIZE).then_some(size),
        accessed: has(ATIME).then(|| moment(has(ATIME_NOW), accessed, accessed_part)),
        modified: has(MTIME).then(|| moment(has(MTIME_NOW), modified, modified_part)),
        kills_set_id: has(KILL_SUIDGID),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(40 + body.len()).expect("tests are short");
        let mut bytes = [length, opcode].map(u32::to_ne_bytes).concat();
        bytes.extend([7, node].map(u64::to_ne_bytes).concat());
        bytes.extend([1000, 1001, 1, 0].map(u32::to_ne_bytes).concat());
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn a_request_is_read_with_its_header() {
        let bytes =
            request(opcode::RENAME2, 5, &[&6_u64.to_ne_bytes()[..], &[1, 0, 0, 0, 0, 0, 0, 0], b"a\0b\0"].concat());
        let (header, operation) = parse(&bytes).expect("there is a header");
        assert_eq!(header, Header { unique: 7, node: 5, uid: 1000, gid: 1001, process: 1 });
        let flags = u32::from_ne_bytes([1, 0, 0, 0]);
        assert_eq!(operation, Ok(Operation::Rename { name: b"a", new_directory: 6, new_name: b"b", flags }));
    }

    #[test]
    fn forgotten_nodes_are_listed_with_their_counts() {
        let body: Vec<u8> = [2, 10, 1, 11, 3].into_iter().flat_map(u64::to_ne_bytes).collect();
        let bytes = request(opcode::BATCH_FORGET, 0, &body);
        let (_, operation) = parse(&bytes).expect("there is a header");
        let Ok(Operation::ForgetMany(forgets)) = operation else { panic!("{operation:?}") };
        assert_eq!(forgets.collect::<Vec<_>>(), [(10, 1), (11, 3)]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(opcode in 0..60_u32, body in prop::collection::vec(any::<u8>(), 0..200), cut in 0..240_usize) {
            let bytes = request(opcode, 1, &body);
            if let Some((_, Ok(Operation::ForgetMany(forgets)))) = parse(&bytes) {
                prop_assert!(forgets.count() <= body.len());
            }
            let cut = &bytes[..cut.min(bytes.len())];
            if cut.len() < bytes.len() {
                prop_assert!(parse(cut).is_none_or(|(_, operation)| operation.is_err()));
            }
        }
    }
}
