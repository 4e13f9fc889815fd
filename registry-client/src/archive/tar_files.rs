//! The files of a tar: found by name, read at their offsets, written in order.
//!
//! Invariant: memory is bounded by the number of entries, which is limited.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Cause, Error};
use crate::layout::Files;

/// An image has a few files a layer; this many make no image.
const ENTRIES_LIMIT: usize = 100_000;
/// A chain of links in an archive of an old Docker has one step.
const LINKS_LIMIT: usize = 8;

/// Where the files of a tar lie.
#[derive(Debug)]
pub(crate) struct TarFiles {
    file: Arc<File>,
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
enum Entry {
    File {
        offset: u64,
        size_bytes: u64,
    },
    /// To another name of the same archive.
    Link(String),
}

impl TarFiles {
    /// Reads the headers of an archive; one that is compressed with gzip or zstd is first decompressed to a file that
    /// nobody else sees.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let doing = || format!("read the archive {}", path.display());
        let metadata = std::fs::metadata(path).map_err(|error| Error::disk(doing(), path, error))?;
        if !metadata.is_file() {
            return Err(Error::local(doing(), Cause::Input("it is not a regular file".to_owned())));
        }
        let file = File::open(path).map_err(|error| Error::disk(doing(), path, error))?;
        let mut magic = [0; 4];
        let read = file.read_at(&mut magic, 0).map_err(|error| Error::disk(doing(), path, error))?;
        let kind = compression(&magic[..read]);
        let file = match kind {
            Compression::None => file,
            _ => decompressed(file, kind, path, most_unpacked_bytes(metadata.len()))?,
        };
        let size_bytes = file.metadata().map_err(|error| Error::disk(doing(), path, error))?.len();
        let malformed = |error: io::Error| Error::local(doing(), Cause::Malformed(format!("it is not a tar: {error}")));
        let mut archive = tar::Archive::new(&file);
        let mut entries = BTreeMap::new();
        for entry in archive.entries_with_seek().map_err(malformed)? {
            let entry = entry.map_err(malformed)?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
            let (offset, entry_bytes) = (entry.raw_file_position(), entry.size());
            let kind = entry.header().entry_type();
            if kind.is_file() {
                if offset.checked_add(entry_bytes).is_none_or(|end| end > size_bytes) {
                    return Err(Error::local(doing(), Cause::Malformed(format!("it ends within {name}"))));
                }
                entries.insert(name, Entry::File { offset, size_bytes: entry_bytes });
            } else if let Some(target) = entry.link_name_bytes().filter(|_| kind.is_symlink() || kind.is_hard_link()) {
                let target = String::from_utf8_lossy(&target).into_owned();
                let target = if kind.is_symlink() { resolve(&name, &target) } else { target };
                entries.insert(name, Entry::Link(target));
            }
            if entries.len() > ENTRIES_LIMIT {
                let what = format!("it has more than {ENTRIES_LIMIT} entries");
                return Err(Error::local(doing(), Cause::Malformed(what)));
            }
        }
        Ok(Self { file: Arc::new(file), entries })
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }
}

impl Files for TarFiles {
    fn open(&self, name: &str) -> io::Result<(Box<dyn Read + Send>, u64)> {
        let mut name = name;
        for _ in 0..LINKS_LIMIT {
            match self.entries.get(name) {
                Some(Entry::File { offset, size_bytes }) => {
                    let file = Arc::clone(&self.file);
                    let slice = Slice { file, position: *offset, end: offset + size_bytes };
                    return Ok((Box::new(slice), *size_bytes));
                }
                Some(Entry::Link(target)) => name = target,
                None => return Err(io::ErrorKind::NotFound.into()),
            }
        }
        Err(io::Error::other("it is a link that leads nowhere"))
    }
}

/// Where large temporary files belong: on a disk, unlike `/tmp` on many systems.
const LARGE_TEMPORARY_FILES: &str = "/var/tmp";

/// What an archive may expand to: gzip makes at most a thousandfold of it, and no honest archive much more with zstd.
fn most_unpacked_bytes(packed_bytes: u64) -> u64 {
    packed_bytes.saturating_mul(1100).saturating_add(256 << 20)
}

/// What a layer may expand to: no more than a store takes either.
pub(crate) fn most_layer_bytes(packed_bytes: u64) -> u64 {
    most_unpacked_bytes(packed_bytes).min(128 << 30)
}

/// What is wrong with content that expands to more than that.
pub(crate) fn too_much(most_bytes: u64) -> Cause {
    Cause::Malformed(format!("it expands to more than {most_bytes} bytes"))
}

/// The content of a compressed archive in a file without a name.
fn decompressed(file: File, kind: Compression, path: &Path, most_bytes: u64) -> Result<File, Error> {
    let doing = || format!("decompress the archive {}", path.display());
    let source = io::BufReader::with_capacity(1 << 16, file);
    let broken = |error: io::Error| Error::local(doing(), Cause::Malformed(error.to_string()));
    let mut content: Box<dyn Read> = match kind {
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
        _ => Box::new(zstd::stream::read::Decoder::with_buffer(source).map_err(broken)?),
    };
    let on_disk = |error| Error::disk(doing(), LARGE_TEMPORARY_FILES, error);
    let mut out = tempfile::tempfile_in(LARGE_TEMPORARY_FILES).map_err(on_disk)?;
    let mut buffer = vec![0; 128 << 10];
    let mut left = most_bytes;
    loop {
        match content.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) if count as u64 > left => {
                return Err(Error::local(doing(), too_much(most_bytes)));
            }
            Ok(count) => {
                left -= count as u64;
                out.write_all(&buffer[..count]).map_err(on_disk)?;
            }
            Err(error) => return Err(broken(error)),
        }
    }
    out.seek(SeekFrom::Start(0)).map_err(on_disk)?;
    Ok(out)
}

/// `a/b` with a link to `../c/d` -> `c/d`, all within the archive.
fn resolve(name: &str, target: &str) -> String {
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// A part of a file, read without moving the position that others use.
pub(crate) struct Slice {
    pub(crate) file: Arc<File>,
    pub(crate) position: u64,
    pub(crate) end: u64,
}

impl Read for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
        let length = left.min(buffer.len());
        let count = self.file.read_at(&mut buffer[..length], self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

/// How a stream of bytes is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Told by the first bytes (RFC 1952 section 2.3.1, RFC 8878 section 3.1.1).
pub(crate) fn compression(start: &[u8]) -> Compression {
    match start {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        _ => Compression::None,
    }
}

/// Writes a tar whose bytes depend on names and content alone: mode 0644, owner 0, time 0.
pub(crate) struct TarWriter<W: Write>(tar::Builder<W>);

impl<W: Write> TarWriter<W> {
    pub(crate) fn new(out: W) -> Self {
        Self(tar::Builder::new(out))
    }

    pub(crate) fn directory(&mut self, name: &str) -> io::Result<()> {
        self.0.append_data(&mut header(tar::EntryType::Directory, 0o755, 0), format!("{name}/"), io::empty())
    }

    pub(crate) fn file(&mut self, name: &str, size_bytes: u64, content: impl Read) -> io::Result<()> {
        self.0.append_data(&mut header(tar::EntryType::Regular, 0o644, size_bytes), name, content)
    }

    pub(crate) fn finish(self) -> io::Result<W> {
        self.0.into_inner()
    }
}

fn header(kind: tar::EntryType, mode: u32, size_bytes: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size_bytes);
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn links_stay_within_the_archive() {
        assert_eq!(resolve("a/layer.tar", "../b/layer.tar"), "b/layer.tar");
        assert_eq!(resolve("a/layer.tar", "../../../etc/passwd"), "etc/passwd");
        assert_eq!(resolve("x", "/y"), "y");
    }

    fn open(bytes: &[u8]) -> Result<TarFiles, Error> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), bytes).expect("written");
        TarFiles::open(file.path())
    }

    #[test]
    fn links_in_a_circle_end() {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, target) in [("a", "b"), ("b", "a")] {
            let mut header = header(tar::EntryType::Symlink, 0o777, 0);
            builder.append_link(&mut header, name, target).expect("appended");
        }
        let files = open(&builder.into_inner().expect("finished")).expect("a tar");
        assert!(Files::open(&files, "a").is_err());
    }

    #[test]
    fn a_compressed_archive_expands_to_no_more_than_its_bound() {
        let unpacked = |most_bytes| {
            let mut file = tempfile::tempfile().expect("a file");
            file.write_all(&zstd::encode_all(&[0; 3000][..], 1).expect("compressed")).expect("written");
            file.seek(SeekFrom::Start(0)).expect("sought");
            decompressed(file, Compression::Zstd, Path::new("a.tar"), most_bytes)
        };
        assert_eq!(unpacked(3000).expect("small enough").metadata().expect("a file").len(), 3000);
        assert!(unpacked(2999).expect_err("too large").to_string().contains("2999 bytes"));
    }

    #[test]
    fn a_cut_archive_is_an_error_compressed_or_not() {
        let mut writer = TarWriter::new(Vec::new());
        writer.file("manifest.json", 3000, &[b'x'; 3000][..]).expect("written");
        let bytes = writer.finish().expect("finished");
        assert!(open(&bytes).is_ok());
        assert!(open(&bytes[..2000]).is_err());
        assert!(open(b"\x1f\x8b\x08\x00").unwrap_err().to_string().contains("cannot decompress"));
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&bytes).expect("compressed");
        let gzip = gzip.finish().expect("compressed");
        for whole in [gzip, zstd::encode_all(&bytes[..], 1).expect("compressed")] {
            let files = open(&whole).expect("a tar");
            let (mut content, size_bytes) = Files::open(&files, "manifest.json").expect("there");
            let mut read = Vec::new();
            content.read_to_end(&mut read).expect("read");
            assert!(read == [b'x'; 3000] && size_bytes == 3000);
            assert!(open(&whole[..whole.len() / 2]).is_err());
        }
    }

    proptest! {
        #[test]
        fn a_damaged_archive_is_read_without_panic(at in 0usize..1500, byte in any::<u8>()) {
            let mut writer = TarWriter::new(Vec::new());
            writer.file("manifest.json", 100, &[b'x'; 100][..]).expect("written");
            let mut bytes = writer.finish().expect("finished");
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(files) = open(&bytes) {
                let _ = Files::open(&files, "manifest.json").map(|(mut content, _)| io::copy(&mut content, &mut io::sink()));
            }
        }
    }
}
