//! Writes the canonical layer tar of format version 1.
//!
//! Invariant: the bytes are a function of the entries and their content alone, and entries come
//! sorted by name, each once. Sparse files are written with their zeros, as every builder does: which
//! parts are holes depends on the file system, and must not show in a digest.

use std::io::{self, Read, Write};

use super::entry::{Entry, EntryKind, WHITEOUT_PREFIX};
use super::error::{EntryFault, TarError};
use super::header::{
    BLOCK_BYTES, DEVICE_MAJOR, DEVICE_MINOR, GID, Header, LINK_NAME, MODE, MODIFIED, NAME, PREFIX, SIZE, TYPE, UID,
};
use super::path::PathFault;
use super::pax::{Records, SCHILY_XATTR};

/// How content is copied: few calls, and small beside any cache.
const COPY_BYTES: usize = 64 * 1024;

/// Writes entries as a tar.
#[derive(Debug)]
pub struct TarWriter<W> {
    sink: W,
    position: u64,
    last_name: Option<Vec<u8>>,
    buffer: Vec<u8>,
    limit_bytes: u64,
}

impl<W: Write> TarWriter<W> {
    /// A writer that has written nothing.
    pub fn new(sink: W) -> Self {
        Self { sink, position: 0, last_name: None, buffer: vec![0; COPY_BYTES], limit_bytes: u64::MAX }
    }

    /// The same writer for a tar of at most `limit_bytes`: a file that would make it longer is refused before its
    /// content is read. A sparse one of a terabyte takes no room where it lies.
    #[must_use]
    pub fn limited(self, limit_bytes: u64) -> Self {
        Self { limit_bytes, ..self }
    }

    /// Writes an entry; `content` is read to its end for a file, and not at all for anything else.
    /// Times are written in whole seconds.
    ///
    /// # Errors
    /// An entry whose [`Entry::tar_name`] does not come after the last one's, content of another
    /// length than the entry says, or what reading and writing give. The tar is of no use then.
    pub fn append(&mut self, entry: &Entry, content: &mut dyn Read) -> Result<(), TarError> {
        let name = entry.tar_name();
        let start = self.position;
        self.append_named(entry, &name, content).map_err(|error| match error {
            WriteError::Entry(fault) => {
                TarError::Entry { name: name.escape_ascii().to_string(), position: start, fault }
            }
            WriteError::Io(source) => TarError::Io { verb: "writing", position: self.position, source },
        })?;
        self.last_name = Some(name);
        Ok(())
    }

    /// Ends the tar with two blocks of zeros.
    ///
    /// # Errors
    /// What writing gives.
    pub fn finish(mut self) -> Result<W, TarError> {
        let position = self.position;
        let end = self.write(&[0; 2 * BLOCK_BYTES]).and_then(|()| self.sink.flush());
        end.map_err(|source| TarError::Io { verb: "writing", position, source })?;
        Ok(self.sink)
    }

    fn append_named(&mut self, entry: &Entry, name: &[u8], content: &mut dyn Read) -> Result<(), WriteError> {
        if self.last_name.as_deref().is_some_and(|last| last >= name) {
            return Err(EntryFault::Order.into());
        }
        if entry.path.is_root() && !matches!(entry.kind, EntryKind::Directory | EntryKind::Opaque) {
            return Err(EntryFault::Root.into());
        }
        if entry.path.components().any(|component| component.starts_with(WHITEOUT_PREFIX)) {
            // Written, such a file would remove another one.
            return Err(EntryFault::Path(PathFault::Whiteout).into());
        }
        // A record ends its key at the first `=`: such a name would come back as another one.
        if let Some((xattr, _)) = entry.xattrs.iter().find(|(xattr, _)| xattr.is_empty() || xattr.contains(&b'=')) {
            return Err(EntryFault::Xattr(xattr.escape_ascii().to_string()).into());
        }
        if let EntryKind::File { size_bytes } = entry.kind
            && size_bytes > self.limit_bytes.saturating_sub(self.position)
        {
            let (what, limit_bytes) = ("content, with what comes before it in the layer,", self.limit_bytes);
            let size_bytes = self.position.saturating_add(size_bytes);
            return Err(EntryFault::Oversized { what, size_bytes, limit_bytes }.into());
        }
        let (header, records) = headers(entry, name);
        if !records.0.is_empty() {
            let body = records.to_bytes();
            self.write(&extended_header(name, body.len()).0)?;
            self.write(&body)?;
            self.pad()?;
        }
        self.write(&header.0)?;
        if let EntryKind::File { size_bytes } = entry.kind {
            self.copy(content, size_bytes)?;
            self.pad()?;
        }
        Ok(())
    }

    fn copy(&mut self, content: &mut dyn Read, expected_bytes: u64) -> Result<(), WriteError> {
        let mut left = expected_bytes;
        loop {
            let count = match content.read(&mut self.buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(EntryFault::Content(error).into()),
            };
            let ended_early = count == 0 && left > 0;
            let Some(rest) = left.checked_sub(count as u64).filter(|_| !ended_early) else {
                return Err(EntryFault::ContentLength { expected_bytes }.into());
            };
            if count == 0 {
                return Ok(());
            }
            self.sink.write_all(&self.buffer[..count])?;
            self.position += count as u64;
            left = rest;
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sink.write_all(bytes)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn pad(&mut self) -> io::Result<()> {
        let padding = self.position.next_multiple_of(BLOCK_BYTES as u64) - self.position;
        self.write(&[0; BLOCK_BYTES][..padding as usize]) // below one block
    }
}

/// A fault of the entry, or of the sink.
enum WriteError {
    Entry(EntryFault),
    Io(io::Error),
}

impl From<EntryFault> for WriteError {
    fn from(fault: EntryFault) -> Self {
        Self::Entry(fault)
    }
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The header of an entry, and the records for what does not fit in it.
fn headers(entry: &Entry, name: &[u8]) -> (Header, Records) {
    let mut header = Header::ustar();
    let mut records = Records::default();
    set_name(&mut header, &mut records, &written_name(entry, name));
    let (type_flag, size_bytes, link, device) = match &entry.kind {
        EntryKind::File { size_bytes } => (b'0', *size_bytes, None, (0, 0)),
        EntryKind::Whiteout | EntryKind::Opaque => (b'0', 0, None, (0, 0)),
        EntryKind::HardLink { target } => (b'1', 0, Some(target.as_bytes()), (0, 0)),
        EntryKind::Symlink { target } => (b'2', 0, Some(target.as_slice()), (0, 0)),
        EntryKind::CharacterDevice { major, minor } => (b'3', 0, None, (*major, *minor)),
        EntryKind::BlockDevice { major, minor } => (b'4', 0, None, (*major, *minor)),
        EntryKind::Directory => (b'5', 0, None, (0, 0)),
        EntryKind::Fifo => (b'6', 0, None, (0, 0)),
    };
    header.0[TYPE] = type_flag;
    if let Some(target) = link.filter(|target| !header.set_text(LINK_NAME, target)) {
        records.push(b"linkpath", target);
    }
    let mut number = |key: &str, field, value: i64| {
        if !header.set_number(field, value) {
            records.push(key.as_bytes(), value.to_string().as_bytes());
        }
    };
    number("size", SIZE, i64::try_from(size_bytes).unwrap_or(i64::MAX));
    number("uid", UID, i64::from(entry.uid));
    number("gid", GID, i64::from(entry.gid));
    number("mtime", MODIFIED, entry.modified.seconds);
    header.set_number(MODE, i64::from(entry.mode & 0o7777));
    // Linux has 12 and 20 bits, the fields 21.
    header.set_number(DEVICE_MAJOR, i64::from(device.0));
    header.set_number(DEVICE_MINOR, i64::from(device.1));
    for (xattr, value) in &entry.xattrs {
        records.push(&[SCHILY_XATTR, xattr].concat(), value);
    }
    header.seal();
    (header, records)
}

/// The name with the slash that ends a directory's; the root is `./`.
fn written_name(entry: &Entry, name: &[u8]) -> Vec<u8> {
    match entry.kind {
        EntryKind::Directory if entry.path.is_root() => b"./".to_vec(),
        EntryKind::Directory => [name, b"/"].concat(),
        _ => name.to_vec(),
    }
}

/// Puts the name into the header, split in prefix and name if need be, else into the records.
fn set_name(header: &mut Header, records: &mut Records, name: &[u8]) {
    if header.set_text(NAME, name) {
        return;
    }
    let longest_prefix = name.len().min(PREFIX.len() + 1);
    // The slash between the two is not stored; a trailing one belongs to the name.
    let slash = name[..longest_prefix].iter().rposition(|&b| b == b'/').filter(|&at| at > 0 && at + 1 < name.len());
    match slash {
        Some(at) if name.len() - at - 1 <= NAME.len() => {
            header.0[NAME].fill(0);
            header.set_text(PREFIX, &name[..at]);
            header.set_text(NAME, &name[at + 1..]);
        }
        _ => records.push(b"path", name),
    }
}

/// The header of the extended header of an entry.
fn extended_header(name: &[u8], size: usize) -> Header {
    let mut header = Header::ustar();
    header.set_text(NAME, &[b"PaxHeaders.0/", name].concat());
    for field in [MODE, UID, GID, MODIFIED, DEVICE_MAJOR, DEVICE_MINOR] {
        header.set_number(field, 0);
    }
    header.set_number(SIZE, size as i64); // names and xattrs of one file, far below 8 GiB
    header.0[TYPE] = b'x';
    header.seal();
    header
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::super::path::EntryPath;
    use super::super::reader::TarReader;
    use super::*;
    use crate::digest::digest_of;
    use crate::tree::Time;

    fn entry(path: &str, kind: EntryKind) -> Entry {
        Entry::new(EntryPath::parse(path.as_bytes()).unwrap(), kind)
    }

    fn written(entries: &[(Entry, Vec<u8>)]) -> Result<Vec<u8>, TarError> {
        let mut writer = TarWriter::new(Vec::new());
        for (entry, content) in entries {
            writer.append(entry, &mut Cursor::new(content))?;
        }
        writer.finish()
    }

    fn read(tar: &[u8]) -> Vec<(Entry, Vec<u8>)> {
        let mut reader = TarReader::new(tar);
        let mut entries = Vec::new();
        while let Some(located) = reader.next_entry().unwrap() {
            let mut content = Vec::new();
            reader.read_to_end(&mut content).unwrap();
            entries.push((located.entry, content));
        }
        entries
    }

    fn any_name() -> impl Strategy<Value = Vec<u8>> {
        let byte = any::<u8>().prop_filter("no slash or NUL", |&b| b != b'/' && b != 0);
        prop_oneof![
            4 => proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'b'), Just(b'-'), byte.clone()], 1..4),
            1 => proptest::collection::vec(byte, 90..255),
        ]
        .prop_filter("a plain name", |name| name != b"." && name != b".." && !name.starts_with(b".wh."))
    }

    fn any_path() -> impl Strategy<Value = EntryPath> {
        proptest::collection::vec(any_name(), 1..5).prop_map(|names| EntryPath::parse(&names.join(&b'/')).unwrap())
    }

    fn any_kind() -> impl Strategy<Value = EntryKind> {
        let target = proptest::collection::vec(1_u8.., 1..200);
        prop_oneof![
            Just(EntryKind::File { size_bytes: 0 }),
            Just(EntryKind::Directory),
            target.prop_map(|target| EntryKind::Symlink { target }),
            any_path().prop_map(|target| EntryKind::HardLink { target }),
            (0_u32..4096, 0_u32..1 << 20).prop_map(|(major, minor)| EntryKind::CharacterDevice { major, minor }),
            (0_u32..4096, 0_u32..1 << 20).prop_map(|(major, minor)| EntryKind::BlockDevice { major, minor }),
            Just(EntryKind::Fifo),
            Just(EntryKind::Whiteout),
            Just(EntryKind::Opaque),
        ]
    }

    prop_compose! {
        fn any_entry()(
            path in any_path(), kind in any_kind(), mode in 0_u32..0o10000, uid: u32, gid: u32,
            seconds in prop_oneof![any::<i32>().prop_map(i64::from), -(1_i64 << 60)..1 << 60],
            xattrs in proptest::collection::btree_map("[a-z.]{1,20}", proptest::collection::vec(any::<u8>(), 0..40), 0..3),
            content in proptest::collection::vec(any::<u8>(), 0..1500),
        ) -> (Entry, Vec<u8>) {
            let xattrs = xattrs.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect();
            let (kind, content) = match kind {
                EntryKind::File { .. } => (EntryKind::File { size_bytes: content.len() as u64 }, content),
                other => (other, Vec::new()),
            };
            (Entry { path, kind, mode, uid, gid, modified: Time { seconds, nanoseconds: 0 }, xattrs }, content)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn what_is_written_is_read_back(mut entries in proptest::collection::vec(any_entry(), 0..12)) {
            entries.sort_by_key(|(entry, _)| entry.tar_name());
            entries.dedup_by_key(|(entry, _)| entry.tar_name());
            let tar = written(&entries).unwrap();
            prop_assert_eq!(tar.len() % BLOCK_BYTES, 0);
            prop_assert_eq!(read(&tar), entries);
        }

        #[test]
        fn any_bytes_are_read_or_refused(
            mut entries in proptest::collection::vec(any_entry(), 1..4),
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            entries.sort_by_key(|(entry, _)| entry.tar_name());
            entries.dedup_by_key(|(entry, _)| entry.tar_name());
            let mut tar = written(&entries).unwrap();
            for (at, byte, reseal) in changes {
                let at = at.index(tar.len());
                tar[at] = byte;
                // With a right sum the damage gets past the first check.
                let start = at / BLOCK_BYTES * BLOCK_BYTES;
                let mut header = Header(tar[start..start + BLOCK_BYTES].try_into().unwrap());
                if reseal {
                    header.seal();
                    tar[start..start + BLOCK_BYTES].copy_from_slice(&header.0);
                }
            }
            tar.truncate(cut.index(tar.len() * 2).min(tar.len()));
            let mut reader = TarReader::new(tar.as_slice());
            while let Ok(Some(_)) = reader.next_entry() {
                let _ = io::copy(&mut (&mut reader).take(1 << 20), &mut io::sink());
            }
        }
    }

    #[test]
    fn written_bytes_are_those_of_format_version_1() {
        let mut directory = entry("etc", EntryKind::Directory);
        directory.mode = 0o1755;
        let mut file = entry("etc/hello", EntryKind::File { size_bytes: 5 });
        (file.uid, file.gid) = (1000, 3_000_000);
        file.modified.seconds = 1_700_000_000;
        file.xattrs = vec![(b"security.capability".to_vec(), vec![1, 0, 0, 2]), (b"user.a".to_vec(), b"b".to_vec())];
        let long = "d/".repeat(120) + "f";
        let entries = [
            (entry(&long, EntryKind::Fifo), Vec::new()),
            (directory, Vec::new()),
            (entry("etc/gone", EntryKind::Whiteout), Vec::new()),
            (entry("etc", EntryKind::Opaque), Vec::new()),
            (file, b"hello".to_vec()),
            (entry("etc/link", EntryKind::HardLink { target: EntryPath::parse(b"etc/hello").unwrap() }), Vec::new()),
        ];
        let mut entries = entries.to_vec();
        entries.sort_by_key(|(entry, _)| entry.tar_name());
        let tar = written(&entries).unwrap();
        assert_eq!(digest_of(&tar).to_string(), GOLDEN);
        assert_eq!(written(&[]).unwrap(), [0; 1024]);
    }

    const GOLDEN: &str = "sha256:18c6848a3f435197e2d4660c10086b8e2814b80bcf5b7eaff1b0326664460149";

    #[test]
    fn unsorted_or_repeated_names_are_refused() {
        for names in [["b", "a"], ["a", "a"]] {
            let entries = names.map(|name| (entry(name, EntryKind::Fifo), Vec::new()));
            assert!(written(&entries).unwrap_err().to_string().contains("sorted"), "{names:?}");
        }
    }

    #[test]
    fn file_whose_name_looks_like_a_deletion_is_refused() {
        for name in [".wh.a", "d/.wh..wh..opq", ".wh.d/file"] {
            assert!(written(&[(entry(name, EntryKind::Fifo), Vec::new())]).is_err(), "{name}");
        }
    }

    #[test]
    fn whiteout_of_the_longest_name_is_read_back() {
        let entries = [(entry(&"n".repeat(255), EntryKind::Whiteout), Vec::new())].to_vec();
        assert_eq!(read(&written(&entries).unwrap()), entries);
    }

    #[test]
    fn content_of_another_length_than_announced_is_refused() {
        for content in [b"four".to_vec(), b"sixsix".to_vec(), Vec::new()] {
            let entries = [(entry("a", EntryKind::File { size_bytes: 5 }), content)];
            assert!(written(&entries).unwrap_err().to_string().contains("not 5 bytes long"));
        }
    }
}
