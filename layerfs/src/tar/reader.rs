//! Reads a layer tar as a stream of entries.
//!
//! Invariant: memory is bounded by the limits here whatever the tar says, and every entry that comes
//! out has been validated. It never touches a file system and follows no link.
//!
//! Decisions where tools differ: global extended headers apply to what follows (POSIX), a tar may end
//! without its blocks of zeros (docker accepts that), unknown extended keys are ignored (POSIX),
//! owner names are ignored as containers have only numbers.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

use super::entry::{Entry, EntryKind};
use super::error::{EntryFault, TarError};
use super::fields::{Extended, Fields};
use super::header::{BLOCK_BYTES, Header, SIZE, TYPE, until_nul};
use super::pax::Records;
use super::sparse::{self, PaxSparse, SparseMap};

/// The largest extended header: as Go's `archive/tar`, which docker reads with.
const PAX_MAX_BYTES: u64 = 1 << 20;
/// What all global headers say, as far as it applies to entries: each one to come is read together with it, and a few
/// kilobytes of zeros deflated are thousands of entries.
const GLOBAL_MAX_BYTES: u64 = 8192;
/// A path and its NUL, with room for the `./` and slashes that fall away.
const LONG_NAME_MAX_BYTES: u64 = 8192;

/// A part of a file that is stored in the tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Where it is in the file.
    pub offset: u64,
    /// How long it is; never 0.
    pub size_bytes: u64,
    /// Where it is in the tar.
    pub position: u64,
}

/// An entry and where its content lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Located {
    /// The entry.
    pub entry: Entry,
    /// The stored parts of a file's content, ascending; the rest are holes.
    pub extents: Vec<Extent>,
}

/// Reads entries from a tar.
#[derive(Debug)]
pub(crate) struct TarReader<R> {
    source: R,
    skip: fn(&mut R, u64) -> io::Result<u64>,
    position: u64,
    entry_position: u64,
    /// The content of the last entry that is not yet read, and the padding behind it.
    content: Content,
    global: Records,
    is_finished: bool,
}

/// What is left of an entry's content.
#[derive(Debug, Default)]
struct Content {
    end: u64,
    padding: u64,
    offset: u64,
    size_bytes: u64,
    extents: Vec<Extent>,
    /// How many of the extents are read.
    passed: usize,
}

impl<R: BufRead> TarReader<R> {
    /// Reads a stream from its start.
    pub(crate) fn new(source: R) -> Self {
        Self::with_skip(source, consume)
    }

    fn with_skip(source: R, skip: fn(&mut R, u64) -> io::Result<u64>) -> Self {
        let (position, entry_position) = (0, 0);
        let (content, global) = (Content::default(), Records::default());
        Self { source, skip, position, entry_position, content, global, is_finished: false }
    }

    /// The next entry; `None` at the end. Content of the last one that was not read is skipped.
    ///
    /// # Errors
    /// What is wrong with the entry; the reader can not be used after an error.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Located>, TarError> {
        if self.is_finished {
            return Ok(None);
        }
        self.skip_content()?;
        let mut extended = Extended::default();
        let mut is_first = true;
        loop {
            if is_first {
                self.entry_position = self.position;
            }
            let Some(header) = self.read_header(is_first)? else {
                self.is_finished = true;
                return Ok(None);
            };
            is_first = false;
            match header.0[TYPE] {
                b'x' => extended.records = self.read_records(&header)?,
                b'g' => self.read_global(&header)?,
                b'L' => extended.long_name = Some(self.read_long(&header, "long name")?),
                b'K' => extended.long_link = Some(self.read_long(&header, "long link target")?),
                _ => match self.read_entry(&header, std::mem::take(&mut extended))? {
                    Some(located) => return Ok(Some(located)),
                    None => {
                        // Nothing of a layer, such as AUFS' own files.
                        self.skip_content()?;
                        is_first = true;
                    }
                },
            }
        }
    }

    /// What was read from, at its present position.
    pub(crate) fn into_inner(self) -> R {
        self.source
    }

    /// An error about the entry that was read last, for a caller that refuses it.
    pub(crate) fn refuse(&self, entry: &Entry, fault: EntryFault) -> TarError {
        self.fault(&entry.tar_name(), fault)
    }

    fn fault(&self, name: &[u8], fault: EntryFault) -> TarError {
        TarError::Entry { name: name.escape_ascii().to_string(), position: self.entry_position, fault }
    }

    fn read_error(&self, source: io::Error) -> TarError {
        TarError::Io { verb: "reading", position: self.position, source }
    }

    /// Fills the buffer as far as the stream goes.
    fn read_up_to(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.source.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.read_error(error)),
            }
        }
        self.position += filled as u64;
        Ok(filled)
    }

    fn read_exactly(&mut self, name: &[u8], buffer: &mut [u8]) -> Result<(), TarError> {
        if self.read_up_to(buffer)? == buffer.len() { Ok(()) } else { Err(self.fault(name, EntryFault::Truncated)) }
    }

    fn skip_content(&mut self) -> Result<(), TarError> {
        let content = std::mem::take(&mut self.content);
        let left = content.end.saturating_sub(self.position);
        if left > 0 {
            let skipped = (self.skip)(&mut self.source, left).map_err(|error| self.read_error(error))?;
            self.position += skipped;
            if skipped < left {
                return Err(self.fault(b"", EntryFault::Truncated));
            }
        }
        // The padding of the last entry may be missing: docker accepts that.
        let skipped = consume(&mut self.source, content.padding).map_err(|error| self.read_error(error))?;
        self.position += skipped;
        Ok(())
    }

    /// The next header block; `None` at the end of the tar.
    fn read_header(&mut self, may_end: bool) -> Result<Option<Header>, TarError> {
        let mut block = [0; BLOCK_BYTES];
        match self.read_up_to(&mut block)? {
            0 if may_end => return Ok(None),
            BLOCK_BYTES => {}
            _ => return Err(self.fault(b"", EntryFault::Truncated)),
        }
        let header = Header(block);
        if header.is_zero() {
            if !may_end {
                return Err(self.fault(b"", EntryFault::Truncated));
            }
            // Two zero blocks end a tar; the end of the stream may stand for the second.
            let count = self.read_up_to(&mut block)?;
            return match Header(block).is_zero() || count < BLOCK_BYTES {
                true => Ok(None),
                false => Err(self.fault(b"", EntryFault::LoneZeroBlock)),
            };
        }
        if !header.has_valid_checksum() {
            return Err(self.fault(&header.full_name(), EntryFault::Checksum));
        }
        Ok(Some(header))
    }

    /// The content of a header that describes another one.
    fn read_described(&mut self, header: &Header, what: &'static str, limit_bytes: u64) -> Result<Vec<u8>, TarError> {
        let name = header.full_name();
        let size = header.number(SIZE).and_then(|n| u64::try_from(n).ok());
        let size_bytes = size.ok_or_else(|| self.fault(&name, EntryFault::Number("size")))?;
        if size_bytes > limit_bytes {
            return Err(self.fault(&name, EntryFault::Oversized { what, size_bytes, limit_bytes }));
        }
        let padded = size_bytes.next_multiple_of(BLOCK_BYTES as u64);
        let mut bytes = vec![0; padded as usize]; // below the limit
        self.read_exactly(&name, &mut bytes)?;
        bytes.truncate(size_bytes as usize);
        Ok(bytes)
    }

    fn read_records(&mut self, header: &Header) -> Result<Records, TarError> {
        let bytes = self.read_described(header, "extended header", PAX_MAX_BYTES)?;
        Records::parse(&bytes).map_err(|fault| self.fault(&header.full_name(), fault))
    }

    fn read_global(&mut self, header: &Header) -> Result<(), TarError> {
        let records = self.read_records(header)?;
        self.global.update(records);
        let size_bytes = self.global.size_bytes() as u64;
        if size_bytes > GLOBAL_MAX_BYTES {
            let (what, limit_bytes) = ("global extended headers", GLOBAL_MAX_BYTES);
            return Err(self.fault(&header.full_name(), EntryFault::Oversized { what, size_bytes, limit_bytes }));
        }
        Ok(())
    }

    fn read_long(&mut self, header: &Header, what: &'static str) -> Result<Vec<u8>, TarError> {
        let bytes = self.read_described(header, what, LONG_NAME_MAX_BYTES)?;
        Ok(until_nul(&bytes).to_vec())
    }

    /// Reads the entry of an ordinary header; `None` for one without meaning for a layer.
    fn read_entry(&mut self, header: &Header, extended: Extended) -> Result<Option<Located>, TarError> {
        let fields = Fields { header, extended: &extended, global: &self.global };
        let name = fields.name();
        let entry = fields.entry(&name).map_err(|fault| self.fault(&name, fault))?;
        let stored = fields.stored_bytes().map_err(|fault| self.fault(&name, fault))?;
        // Old tars repeat the size of its target at a hard link: like GNU tar and docker, only files are
        // taken to have content.
        let has_content = matches!(header.0[TYPE], b'0' | 0 | b'7' | b'S');
        let stored = if has_content { stored } else { 0 };
        let padding = stored.next_multiple_of(BLOCK_BYTES as u64) - stored;
        let map = if has_content { self.read_map(&name, header, &extended, stored)? } else { None };
        let taken = map.as_ref().map_or(0, |(_, taken)| *taken);
        let left = stored - taken; // the map was read from what is stored
        let mut content = Content { end: self.position + left, padding, ..Content::default() };
        let Some(mut entry) = entry else {
            self.content = content;
            return Ok(None);
        };
        if let EntryKind::File { size_bytes } = &mut entry.kind {
            content.extents = extents(map.as_ref().map(|(map, _)| map), self.position, left);
            *size_bytes = map.map_or(left, |(map, _)| map.size_bytes);
            content.size_bytes = *size_bytes;
        }
        let extents = content.extents.clone();
        self.content = content;
        Ok(Some(Located { entry, extents }))
    }

    /// The sparse map of an entry and how many of its stored bytes it took.
    fn read_map(
        &mut self,
        name: &[u8],
        header: &Header,
        extended: &Extended,
        stored: u64,
    ) -> Result<Option<(SparseMap, u64)>, TarError> {
        // An old map comes before what is stored, a new one is part of it.
        let mut left = if header.0[TYPE] == b'S' { u64::MAX } else { stored };
        let mut more = |reader: &mut Self| {
            let mut block = [0; BLOCK_BYTES];
            left =
                left.checked_sub(BLOCK_BYTES as u64).ok_or(Fault::Entry(EntryFault::Sparse("the map does not end")))?;
            reader.read_exactly(name, &mut block).map_err(Fault::Tar)?;
            Ok::<_, Fault>(block)
        };
        let map = if header.0[TYPE] == b'S' {
            sparse::from_old_header(header, || more(self)).map(|map| Some((map, 0)))
        } else {
            match sparse::from_records(&extended.records) {
                Ok(Some(PaxSparse::Map(map))) => Ok(Some((map, 0))),
                Ok(Some(PaxSparse::InData(size))) => sparse::from_data(size, || more(self)).map(Some),
                Ok(None) => Ok(None),
                Err(fault) => Err(Fault::Entry(fault)),
            }
        };
        let map = map.map_err(|fault| fault.into_tar_error(self, name))?;
        if let Some((map, taken)) = &map {
            map.check(stored - taken).map_err(|fault| self.fault(name, fault))?;
        }
        Ok(map)
    }
}

impl TarReader<BufReader<File>> {
    /// Reads a tar in a file; content that is not asked for is not read.
    pub(crate) fn of_file(file: File) -> Self {
        Self::with_skip(BufReader::with_capacity(8192, file), seek_over)
    }
}

/// The content of the last entry, holes as zeros.
impl<R: BufRead> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let content = &mut self.content;
        let left = content.size_bytes - content.offset;
        let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let is_passed = |extent: &Extent| extent.offset + extent.size_bytes <= content.offset;
        while content.extents.get(content.passed).is_some_and(is_passed) {
            content.passed += 1;
        }
        let extent = content.extents.get(content.passed);
        let hole = extent.map_or(left, |extent| extent.offset.saturating_sub(content.offset));
        let count = if hole > 0 {
            let count = wanted.min(usize::try_from(hole).unwrap_or(usize::MAX));
            buffer[..count].fill(0);
            count
        } else {
            let in_extent = extent.map_or(0, |extent| extent.offset + extent.size_bytes - content.offset);
            let count = wanted.min(usize::try_from(in_extent).unwrap_or(usize::MAX));
            let count = self.source.read(&mut buffer[..count])?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.position += count as u64;
            count
        };
        self.content.offset += count as u64;
        Ok(count)
    }
}

/// A fault in an entry, or an error that already names it.
enum Fault {
    Entry(EntryFault),
    Tar(TarError),
}

impl From<EntryFault> for Fault {
    fn from(fault: EntryFault) -> Self {
        Self::Entry(fault)
    }
}

impl Fault {
    fn into_tar_error<R: BufRead>(self, reader: &TarReader<R>, name: &[u8]) -> TarError {
        match self {
            Self::Entry(fault) => reader.fault(name, fault),
            Self::Tar(error) => error,
        }
    }
}

fn consume<R: BufRead>(source: &mut R, mut count: u64) -> io::Result<u64> {
    let wanted = count;
    while count > 0 {
        let available = match source.fill_buf() {
            Ok([]) => break,
            Ok(bytes) => bytes.len() as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let step = available.min(count);
        source.consume(step as usize); // not above `available`
        count -= step;
    }
    Ok(wanted - count)
}

fn seek_over(source: &mut BufReader<File>, count: u64) -> io::Result<u64> {
    // A seek beyond the end succeeds, so all but the last byte is skipped, and that one is read.
    let Ok(distance) = i64::try_from(count) else { return Ok(0) };
    source.seek_relative(distance - 1)?;
    Ok(count - 1 + consume(source, 1)?)
}

fn extents(map: Option<&SparseMap>, start: u64, stored: u64) -> Vec<Extent> {
    let whole = [(0, stored)];
    let pieces = map.map_or(whole.as_slice(), |map| &map.pieces);
    let mut position = start;
    let mut extents = Vec::new();
    for &(offset, size_bytes) in pieces.iter().filter(|(_, size)| *size > 0) {
        extents.push(Extent { offset, size_bytes, position });
        position += size_bytes;
    }
    extents
}

#[cfg(test)]
mod tests {
    use super::super::header::{DEVICE_MAJOR, DEVICE_MINOR, LINK_NAME};
    use super::super::path::EntryPath;
    use super::super::writer::TarWriter;
    use super::*;
    use crate::tree::Time;

    /// A tar of one header with some fields set, sealed, and what follows it.
    fn raw(type_flag: u8, name: &[u8], link: &[u8], size: i64, follows: &[u8]) -> Vec<u8> {
        let mut header = Header::ustar();
        header.set_text(0..100, name);
        header.set_text(LINK_NAME, link);
        header.set_number(SIZE, size);
        header.0[TYPE] = type_flag;
        header.seal();
        let mut tar = header.0.to_vec();
        tar.extend_from_slice(follows);
        tar.resize(tar.len().next_multiple_of(BLOCK_BYTES), 0);
        tar
    }

    /// An extended header of some records.
    fn pax(type_flag: u8, records: &[(&str, &str)]) -> Vec<u8> {
        let mut held = Records::default();
        records.iter().for_each(|(key, value)| held.push(key.as_bytes(), value.as_bytes()));
        let body = held.to_bytes();
        raw(type_flag, b"x", b"", body.len() as i64, &body)
    }

    fn entries(tar: &[u8]) -> Result<Vec<Located>, TarError> {
        let mut reader = TarReader::new(tar);
        let mut entries = Vec::new();
        while let Some(located) = reader.next_entry()? {
            entries.push(located);
        }
        Ok(entries)
    }

    fn refused(tar: &[u8]) -> String {
        entries(tar).unwrap_err().to_string()
    }

    #[test]
    fn names_that_lead_out_of_the_root_are_refused() {
        assert!(refused(&raw(b'0', b"../etc/passwd", b"", 0, b"")).contains("leads out of the root"));
        assert!(refused(&raw(b'1', b"a", b"../../etc/shadow", 0, b"")).contains("link target is refused"));
        let long = [pax(b'x', &[("path", "a/../../b")]), raw(b'0', b"a", b"", 0, b"")].concat();
        assert!(refused(&long).contains("leads out of the root"));
    }

    #[test]
    fn absolute_names_lie_in_the_root_of_the_image() {
        let located = entries(&raw(b'0', b"/etc/passwd", b"", 0, b"")).unwrap();
        assert_eq!(located[0].entry.path.as_bytes(), b"etc/passwd");
        let link = entries(&raw(b'2', b"a", b"/../../etc", 0, b"")).unwrap();
        assert_eq!(link[0].entry.kind, EntryKind::Symlink { target: b"/../../etc".to_vec() });
    }

    #[test]
    fn damaged_sums_and_truncated_tars_are_refused() {
        let tar = raw(b'0', b"file", b"", 600, &[7; 600]);
        assert_eq!(entries(&tar).unwrap().len(), 1);
        let mut damaged = tar.clone();
        damaged[3] ^= 1;
        assert!(refused(&damaged).contains("sum does not match"));
        for length in [1, 511, 513, 1000, 1111] {
            assert!(refused(&tar[..length]).contains("ends in the middle"), "{length}");
        }
    }

    #[test]
    fn tar_may_end_without_zeros_but_not_go_on_after_one_block() {
        let file = raw(b'0', b"file", b"", 0, b"");
        assert_eq!(entries(b"").unwrap().len(), 0);
        assert_eq!(entries(&[file.clone(), vec![0; 512]].concat()).unwrap().len(), 1);
        assert!(refused(&[vec![0; 512], file.clone()].concat()).contains("block of zeros"));
        assert_eq!(entries(&[vec![0; 1024], file].concat()).unwrap().len(), 0);
    }

    #[test]
    fn sizes_that_no_tar_can_have_are_refused() {
        let mut header = Header(raw(b'0', b"a", b"", 0, b"").try_into().unwrap());
        header.0[SIZE].copy_from_slice(&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        header.seal();
        assert!(refused(&header.0).contains("size is not a valid number"));
        header.0[SIZE].fill(0xff);
        header.seal();
        assert!(refused(&header.0).contains("size is not a valid number"));
        assert!(refused(&raw(b'x', b"x", b"", 1 << 30, b"")).contains("more than the limit"));
        assert!(refused(&raw(b'L', b"x", b"", 1 << 30, b"")).contains("more than the limit"));
    }

    #[test]
    fn global_headers_cannot_grow_without_end() {
        let long = "v".repeat(5000);
        let tar: Vec<_> = ["a", "b"].map(|name| pax(b'g', &[(&format!("SCHILY.xattr.user.{name}"), &long)])).concat();
        assert!(refused(&tar).contains("more than the limit"));
    }

    #[test]
    fn what_global_headers_say_of_no_entry_is_not_kept() {
        let long = "v".repeat(500_000);
        let tar = [
            pax(b'g', &[("comment", &long), ("mtime", &format!("{}7", "0".repeat(5000)))]).repeat(3),
            raw(b'0', b"a", b"", 0, b""),
        ];
        assert_eq!(entries(&tar.concat()).unwrap()[0].entry.modified.seconds, 7);
    }

    #[test]
    fn numbers_that_linux_has_not_are_refused() {
        let device = |major: &[u8], minor: &[u8]| {
            let mut header = Header(raw(b'3', b"a", b"", 0, b"").try_into().unwrap());
            header.0[DEVICE_MAJOR][..7].copy_from_slice(major);
            header.0[DEVICE_MINOR][..7].copy_from_slice(minor);
            header.seal();
            header.0
        };
        assert_eq!(entries(&device(b"0007777", b"3777777")).unwrap().len(), 1);
        assert!(refused(&device(b"0010001", b"0000003")).contains("device"));
        assert!(refused(&device(b"0000001", b"4000003")).contains("device"));
        let nobody = [pax(b'x', &[("uid", "4294967295")]), raw(b'0', b"a", b"", 0, b"")].concat();
        assert!(refused(&nobody).contains("uid"));
        let huge =
            [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "9223372036854775808")];
        let tar = [pax(b'x', &huge), raw(b'0', b"a", b"", 512, b"0\n")].concat();
        assert!(refused(&tar).contains("sparse file size"));
    }

    #[test]
    fn local_extended_headers_win_over_global_ones() {
        let tar = [
            pax(b'g', &[("uid", "7"), ("mtime", "5.5")]),
            pax(b'x', &[("uid", "8")]),
            raw(b'0', b"a", b"", 0, b""),
            raw(b'0', b"b", b"", 0, b""),
        ];
        let located = entries(&tar.concat()).unwrap();
        assert_eq!((located[0].entry.uid, located[1].entry.uid), (8, 7));
        assert_eq!(located[0].entry.modified, Time { seconds: 5, nanoseconds: 500_000_000 });
    }

    #[test]
    fn extended_nonsense_is_refused() {
        for (record, says) in [
            (("size", "-1"), "size"),
            (("uid", "4294967296"), "uid"),
            (("mtime", "yesterday"), "time"),
            (("path", "a\0b"), "NUL"),
            (("linkpath", "a\0b"), "target"),
            (("GNU.sparse.major", "9"), "unknown version"),
            (("GNU.sparse.map", "0,1"), "unknown version"),
            (("SCHILY.xattr.", "x"), "attribute"),
            (("LIBARCHIVE.xattr.a%zz", "x"), "attribute"),
        ] {
            let type_flag = if record.0 == "linkpath" { b'2' } else { b'0' };
            let tar = [pax(b'x', &[record]), raw(type_flag, b"a", b"t", 0, b"")].concat();
            if record.0 == "GNU.sparse.map" {
                assert_eq!(entries(&tar).unwrap().len(), 1, "a map without size is no sparse file");
            } else {
                assert!(refused(&tar).contains(says), "{record:?}: {}", refused(&tar));
            }
        }
    }

    #[test]
    fn sparse_maps_that_lie_are_refused() {
        for (map, size) in [
            ("0,4,2,4", "8"),
            ("4,4,0,4", "8"),
            ("0,9", "8"),
            ("0,4", "8"),
            ("0,x", "8"),
            ("0", "8"),
            ("18446744073709551615,8", "8"),
        ] {
            let records = [
                ("GNU.sparse.major", "0"),
                ("GNU.sparse.minor", "1"),
                ("GNU.sparse.map", map),
                ("GNU.sparse.size", size),
            ];
            let tar = [pax(b'x', &records), raw(b'0', b"a", b"", 8, b"12345678")].concat();
            assert!(refused(&tar).contains("sparse map is malformed"), "{map}");
        }
        let endless =
            [pax(b'x', &[("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "8")])];
        for body in ["9999999\n", "2\n1\n", "x\n", "99999999999999999999999999999\n"] {
            let tar = [endless.concat(), raw(b'0', b"a", b"", 512, body.as_bytes())].concat();
            assert!(refused(&tar).contains("sparse map"), "{body}");
        }
    }

    #[test]
    fn kinds_that_layers_do_not_have_are_refused() {
        for type_flag in [b'V', b'D', b'M', b'Z', 0xff] {
            assert!(refused(&raw(type_flag, b"a", b"", 0, b"")).contains("not supported"), "{type_flag}");
        }
        assert!(refused(&raw(b'0', b".", b"", 0, b"")).contains("root"));
        assert!(refused(&raw(b'2', b"a", b"", 0, b"")).contains("symbolic link needs"));
    }

    #[test]
    fn file_reader_skips_content_and_finds_a_cut() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tar");
        let mut writer = TarWriter::new(Vec::new());
        for name in [b"a", b"b"] {
            let path = EntryPath::parse(name).unwrap();
            writer
                .append(&Entry::new(path, EntryKind::File { size_bytes: 100_000 }), &mut io::repeat(1).take(100_000))
                .unwrap();
        }
        let tar = writer.finish().unwrap();
        for (length, is_whole) in [(tar.len(), true), (150_000, false), (90_000, false)] {
            std::fs::write(&path, &tar[..length]).unwrap();
            let mut reader = TarReader::of_file(File::open(&path).unwrap());
            let first = reader.next_entry();
            let second = reader.next_entry();
            let end = reader.next_entry();
            assert_eq!(first.is_ok() && second.is_ok() && end.is_ok(), is_whole, "{length}");
            if is_whole {
                assert_eq!(second.unwrap().unwrap().extents[0].position, 512 + 100_352 + 512);
            }
        }
    }
}
