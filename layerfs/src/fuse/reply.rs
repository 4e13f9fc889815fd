//! Replies as bytes for the kernel.
//!
//! Invariant: a reply says its own length, and one that is an error is nothing but its header. The layouts are those of
//! <linux/fuse.h>: <https://github.com/torvalds/linux/blob/master/include/uapi/linux/fuse.h>. There is no meaning here.

use rustix::io::Errno;

use super::{turns::THREADS, unsent};

/// The protocol's version that these layouts are of: its major number, and the minor one that is told to the kernel.
pub(super) const VERSION: (u32, u32) = (7, 38);

const OUT_HEADER_BYTES: usize = 16;

/// The header and three numbers.
const NOTICE_BYTES: usize = OUT_HEADER_BYTES + 24;

/// Requests of the page cache that may wait here at once; three quarters of them make it hold back more. All may wait
/// for one large file that is copied up, so threads are left for everyone else. One such request carries up to 1 MiB:
/// more of them are no faster.
const BACKGROUND: u16 = 24;
const _: () = assert!(BACKGROUND as usize + unsent::WAITING_MAX < THREADS);

/// The attributes of a file, as replies carry them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Attributes {
    pub(super) inode: u64,
    pub(super) size: u64,
    pub(super) blocks: u64,
    /// Last access, last change of content, last change of metadata: seconds and nanoseconds.
    pub(super) times: [(i64, u32); 3],
    pub(super) mode: u32,
    pub(super) links: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) device: u32,
}

/// What the kernel is told unasked about a file: the head of the message, before `data_bytes` of content. The layouts of
/// all that we tell differ in their last eight bytes only.
pub(super) fn notice(code: i32, node: u64, offset: u64, last: [u8; 8], data_bytes: usize) -> [u8; NOTICE_BYTES] {
    let mut message = [0; NOTICE_BYTES];
    let length = u32::try_from(NOTICE_BYTES + data_bytes).expect("what is told is small");
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message[4..8].copy_from_slice(&code.to_ne_bytes());
    message[OUT_HEADER_BYTES..24].copy_from_slice(&node.to_ne_bytes());
    message[24..32].copy_from_slice(&offset.to_ne_bytes());
    message[32..].copy_from_slice(&last);
    message
}

/// A reply in the making. The buffer is used again for the next one; it grows to what one request can ask for.
#[derive(Debug)]
pub(crate) struct Reply {
    bytes: Vec<u8>,
    /// Of `bytes`, what belongs to this reply.
    length: usize,
}

impl Reply {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; 4096], length: OUT_HEADER_BYTES }
    }

    /// Forgets what was put in.
    pub(super) fn clear(&mut self) {
        self.length = OUT_HEADER_BYTES;
    }

    /// The bytes of the reply; of an error, they are its header alone.
    pub(super) fn finish(&mut self, unique: u64, result: std::result::Result<(), Errno>) -> &[u8] {
        let error = result.map_or_else(|error| -error.raw_os_error(), |()| 0);
        if error != 0 {
            self.clear();
        }
        let length = u32::try_from(self.length).expect("no reply is longer than what one request can ask for");
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[4..8].copy_from_slice(&error.to_ne_bytes());
        self.bytes[8..16].copy_from_slice(&unique.to_ne_bytes());
        &self.bytes[..self.length]
    }

    /// The next `size` bytes, which hold what an earlier reply left there.
    fn room(&mut self, size: usize) -> &mut [u8] {
        let end = self.length + size;
        if end > self.bytes.len() {
            self.bytes.resize(end.next_power_of_two(), 0);
        }
        &mut self.bytes[self.length..end]
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
        self.length += bytes.len();
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.bytes(&value.to_ne_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_ne_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_ne_bytes());
    }

    /// Bytes that `fill` writes: it is given room for `size`, and returns how many there are.
    pub(super) fn filled<E>(
        &mut self,
        size: usize,
        fill: impl FnOnce(&mut [u8]) -> std::result::Result<usize, E>,
    ) -> std::result::Result<(), E> {
        self.length += fill(self.room(size))?;
        Ok(())
    }

    /// How long attributes are valid, and they themselves.
    pub(super) fn attributes(&mut self, valid_seconds: u64, attributes: &Attributes) {
        self.u64(valid_seconds);
        self.u64(0);
        self.raw_attributes(attributes);
    }

    fn raw_attributes(&mut self, attributes: &Attributes) {
        /// What programs are told to read and write at once: a page.
        const BLOCK_BYTES: u32 = 4096;
        let Attributes { inode, size, blocks, times, mode, links, uid, gid, device } = *attributes;
        for value in [inode, size, blocks].into_iter().chain(times.map(|(seconds, _)| seconds.cast_unsigned())) {
            self.u64(value);
        }
        for value in times.map(|(_, nanoseconds)| nanoseconds).into_iter().chain([mode, links, uid, gid, device]) {
            self.u32(value);
        }
        self.u32(BLOCK_BYTES);
        self.u32(0);
    }

    /// What a name leads to: a node, and how long name and attributes are valid. Node 0 is "nothing".
    pub(super) fn entry(&mut self, node: u64, name_seconds: u64, valid_seconds: u64, attributes: &Attributes) {
        // The second is the generation: a number is not used again while the kernel holds it.
        for value in [node, 0, name_seconds, valid_seconds, 0] {
            self.u64(value);
        }
        self.raw_attributes(attributes);
    }

    /// What stands for an open file, of which nothing is remembered.
    pub(super) fn opened(&mut self, flags: u32) {
        self.u64(0);
        self.u32(flags);
        self.u32(0);
    }

    /// One name of a directory; false where it would make the reply longer than `limit`, and was left out.
    pub(super) fn directory_entry(&mut self, limit: usize, entry: &DirectoryEntry<'_>) -> bool {
        const ALIGNMENT: usize = 8;
        let start = self.length;
        if let Some((name_seconds, valid_seconds, attributes)) = &entry.attributes {
            self.entry(entry.node, *name_seconds, *valid_seconds, attributes);
        }
        self.u64(entry.node);
        self.u64(entry.position);
        self.u32(u32::try_from(entry.name.len()).expect("names have 255 bytes at most"));
        self.u32(entry.kind);
        self.bytes(entry.name);
        let length = self.length - start;
        self.bytes(&[0; ALIGNMENT][..length.next_multiple_of(ALIGNMENT) - length]);
        let fits = self.length <= OUT_HEADER_BYTES + limit;
        if !fits {
            self.length = start;
        }
        fits
    }

    /// The space of a file system: all blocks, the free ones, those that an ordinary user may use, all inodes, the free
    /// ones.
    pub(super) fn space(&mut self, counts: [u64; 5], block_bytes: u32) {
        /// `NAME_MAX` of Linux.
        const NAME_BYTES: u32 = 255;
        counts.into_iter().for_each(|count| self.u64(count));
        [block_bytes, NAME_BYTES, block_bytes].into_iter().for_each(|value| self.u32(value));
        self.bytes(&[0; 28]);
    }

    /// The answer to the first request: what both sides agree on.
    pub(super) fn agreed(&mut self, max_readahead: u32, flags: u64, data_bytes: u32) {
        const PAGE_BYTES: u32 = 4096;
        self.u32(VERSION.0);
        self.u32(VERSION.1);
        self.u32(max_readahead);
        self.u32((flags & u64::from(u32::MAX)) as u32);
        self.u16(BACKGROUND);
        self.u16(BACKGROUND / 4 * 3);
        self.u32(data_bytes);
        // The unit of times in nanoseconds.
        self.u32(1);
        self.u16(u16::try_from(data_bytes / PAGE_BYTES).unwrap_or(u16::MAX));
        self.u16(0);
        self.u32((flags >> 32) as u32);
        self.bytes(&[0; 28]);
    }
}

/// One name of a directory, as replies carry it.
#[derive(Debug)]
pub(crate) struct DirectoryEntry<'a> {
    pub(super) node: u64,
    pub(super) position: u64,
    /// The type in `d_type`'s encoding.
    pub(super) kind: u32,
    pub(super) name: &'a [u8],
    /// How long name and attributes are valid, and the attributes, where they were asked for.
    pub(super) attributes: Option<(u64, u64, Attributes)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_has_its_length_and_an_error_has_no_body() {
        let mut reply = Reply::new();
        reply.u64(1);
        assert_eq!(reply.finish(9, Ok(())).len(), 24);
        let error = reply.finish(9, Err(Errno::NOENT));
        assert_eq!(error.len(), 16);
        assert_eq!(error[..4], 16_u32.to_ne_bytes());
        assert_eq!(error[4..8], (-2_i32).to_ne_bytes());
        assert_eq!(error[8..], 9_u64.to_ne_bytes());
    }

    #[test]
    fn entries_of_a_directory_fill_what_was_asked_for_and_no_more() {
        let entry = DirectoryEntry { node: 1, position: 1, kind: 4, name: b"name", attributes: None };
        let mut reply = Reply::new();
        // 24 bytes and the name, aligned to 8.
        assert_eq!((0..9).filter(|_| reply.directory_entry(100, &entry)).count(), 3);
        assert_eq!(reply.finish(1, Ok(())).len(), 16 + 3 * 32);
        let with = DirectoryEntry { attributes: Some((1, 1, Attributes::default())), ..entry };
        reply.clear();
        assert!(reply.directory_entry(160, &with), "128 bytes of an entry, and 32");
        assert!(!reply.directory_entry(160, &with));
    }
}
