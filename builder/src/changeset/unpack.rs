//! Archives, of ADD or as a context: found out by their bytes, whatever their name, and unpacked into a change set.
//!
//! As in Docker, a member's name can lead nowhere but below the destination: `..` and symbolic
//! links are resolved as if the destination's root were the root.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use layerfs::{Attributes, FileKind, Time};
use tar::EntryType;

use super::copy::{Copier, CopyError, CopyOptions};
use super::select::SourceTree;
use crate::changeset::{ChangeSet, Content, Node, Owner};
use crate::paths::{base_name, clean, components, join, parent};

/// More members are refused: they are kept in memory, some 300 bytes each, until the layer is written.
const MOST_MEMBERS: usize = 4 << 20;

/// What all headers before a member may take, its long names, PAX records and map of holes together. Libraries read
/// them into memory; Linux has neither paths nor attributes beyond 64 KiB.
const MOST_HEADER_BYTES: u64 = 16 << 20;

/// The begin of a tar, and the reader of the rest.
type Begun<'a> = (Vec<u8>, Box<dyn Read + 'a>);

/// An archive whose tar lies in a file, ready to be read in place.
struct Unpacked<'a> {
    tar: Arc<File>,
    spool: &'a Path,
    /// What its sparse members may still expand to.
    left_bytes: Cell<u64>,
}

/// Unpacks a file below `destination` if it is an archive, and says whether it was one. `shown` is the file's path;
/// what its members refer to lies in `spool`, without names.
pub(crate) fn unpack(
    changes: &mut ChangeSet,
    source: &SourceTree,
    (content, shown): (&Content, &[u8]),
    destination: &[u8],
    options: &CopyOptions,
    spool: &Path,
) -> Result<bool, CopyError> {
    let read = |cause| CopyError::Read { path: String::from_utf8_lossy(shown).into_owned(), cause };
    let Some(archive) = Unpacked::open(content, spool).map_err(read)? else { return Ok(false) };
    let mut top = destination.to_vec();
    top.push(b'/');
    // Of the flags only --chown is for archives.
    let made = CopyOptions { owner: options.owner, ..CopyOptions::keeping_all(options.made) };
    Copier::new(changes, &made, source).make_destination(&top)?;
    let top = changes.resolve(&top).map_err(read)?;
    archive.put_all(changes, &top, options).map_err(read)?;
    Ok(true)
}

/// Unpacks an archive that is a whole context; a copy without compression lies in `spool` meanwhile. Gives the newest
/// time of its files, or nothing if it is no archive.
pub(crate) fn unpack_whole(
    changes: &mut ChangeSet,
    content: &Content,
    spool: &Path,
) -> io::Result<Option<Option<i64>>> {
    let Some(archive) = Unpacked::open(content, spool)? else { return Ok(None) };
    let made = Time { seconds: 0, nanoseconds: 0 };
    archive.put_all(changes, b"", &CopyOptions::keeping_all(made))?;
    let files = changes.entries().filter(|(_, _, node)| node.attributes.kind == FileKind::File);
    Ok(Some(files.map(|(_, _, node)| node.attributes.modified.seconds).max()))
}

/// Whether bytes begin an archive with members.
pub(crate) fn is_archive(content: &Content) -> bool {
    Unpacked::head(content).is_ok_and(|head| head.is_some())
}

/// What an archive may expand to. gzip makes at most a thousandfold of it, and no honest archive much more with any
/// other method; small ones may be mostly empty.
fn most_unpacked_bytes(packed_bytes: u64) -> u64 {
    packed_bytes.saturating_mul(1100).saturating_add(256 << 20)
}

impl<'a> Unpacked<'a> {
    /// The tar in `content`, decompressed into `spool`; `None` if there is none, or one without members.
    fn open(content: &Content, spool: &'a Path) -> io::Result<Option<Self>> {
        let Some((head, decoder)) = Self::head(content)? else { return Ok(None) };
        let mut file = tempfile::tempfile_in(spool)?;
        let most = most_unpacked_bytes(content.size_bytes()?);
        let written = io::copy(&mut head.as_slice().chain(decoder).take(most), &mut file)?;
        if written == most {
            return Err(io::Error::other(format!("the archive expands to more than {most} bytes")));
        }
        file.seek(SeekFrom::Start(0))?;
        Ok(Some(Self { tar: Arc::new(file), spool, left_bytes: Cell::new(most) }))
    }

    /// The first block of the tar, and what decompresses the rest.
    fn head(content: &Content) -> io::Result<Option<Begun<'_>>> {
        let mut magic = Vec::new();
        content.reader().take(6).read_to_end(&mut magic)?;
        let reader = BufReader::with_capacity(1 << 18, content.reader());
        let decoder: Box<dyn Read + '_> = match magic.as_slice() {
            [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(reader)),
            [b'B', b'Z', b'h', ..] => Box::new(bzip2::read::MultiBzDecoder::new(reader)),
            [0xfd, b'7', b'z', b'X', b'Z', 0] => Box::new(xz2::read::XzDecoder::new_multi_decoder(reader)),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::Decoder::with_buffer(reader)?),
            _ => Box::new(reader),
        };
        let mut decoder = decoder;
        // The first member's headers tell whether this is a tar, before anything is written. Broken compression is some
        // other file that happens to begin like one.
        let mut head = Kept { reader: decoder.by_ref().take(MOST_HEADER_BYTES), bytes: Vec::new() };
        let is_tar = tar::Archive::new(&mut head).entries()?.next().is_some_and(|entry| entry.is_ok());
        let head = head.bytes;
        Ok(is_tar.then_some((head, decoder)))
    }

    fn put_all(&self, changes: &mut ChangeSet, top: &[u8], options: &CopyOptions) -> io::Result<()> {
        let budget = Cell::new(MOST_HEADER_BYTES);
        let size_bytes = self.tar.metadata()?.len();
        let tar = BufReader::with_capacity(1 << 13, self.tar.as_ref());
        let mut archive = tar::Archive::new(Budgeted { reader: tar, left_bytes: &budget });
        for (number, entry) in archive.entries_with_seek()?.enumerate() {
            if number == MOST_MEMBERS {
                return Err(io::Error::other(format!("the archive has more than {MOST_MEMBERS} members")));
            }
            let mut entry = entry?;
            // Content is passed over, and so is its end.
            let is_sparse = entry.header().entry_type() == EntryType::GNUSparse;
            if !is_sparse && entry.raw_file_position().saturating_add(entry.size()) > size_bytes {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends within a member"));
            }
            // What the member itself reads is bounded elsewhere.
            budget.set(u64::MAX);
            self.put(changes, top, options, &mut entry)?;
            budget.set(MOST_HEADER_BYTES);
        }
        Ok(())
    }

    fn put<R: Read>(
        &self,
        changes: &mut ChangeSet,
        top: &[u8],
        options: &CopyOptions,
        entry: &mut tar::Entry<'_, R>,
    ) -> io::Result<()> {
        let wanted = clean(&entry.path_bytes());
        // The destination stays what it is, whatever the archive says that it is.
        if wanted.is_empty() {
            return Ok(());
        }
        let is_link = entry.header().entry_type() == EntryType::Link;
        let node = if is_link { None } else { self.node(entry, options)? };
        // Comments of archives have names, too, such as /tmp/GlobalHead.1: they make no directory.
        if node.is_none() && !is_link {
            return Ok(());
        }
        let path = below(changes, top, &wanted)?;
        make_parents(changes, &path, options)?;
        let Some(node) = node else { return link(changes, top, &path, entry, options) };
        let is_directory = node.attributes.kind == FileKind::Directory;
        let was = changes.stat(&path)?.map(|attributes| attributes.kind);
        if !is_directory && was == Some(FileKind::Directory) {
            changes.remove_directory(&path);
        }
        changes.put(&path, node).map(drop)
    }

    fn node<R: Read>(&self, entry: &mut tar::Entry<'_, R>, options: &CopyOptions) -> io::Result<Option<Node>> {
        let header = entry.header();
        let kind = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => FileKind::File,
            EntryType::Directory => FileKind::Directory,
            EntryType::Symlink => FileKind::Symlink,
            EntryType::Char => FileKind::CharacterDevice,
            EntryType::Block => FileKind::BlockDevice,
            EntryType::Fifo => FileKind::Fifo,
            // Comments and labels of archives are no files.
            _ => return Ok(None),
        };
        // Other kinds may hold anything in these fields.
        let device = match kind {
            FileKind::CharacterDevice | FileKind::BlockDevice => {
                (header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0))
            }
            _ => (0, 0),
        };
        let Stamp { owner, mode, mut modified } = Stamp::of_header(header, options)?;
        let is_sparse = header.entry_type() == EntryType::GNUSparse;
        let target = entry.link_name_bytes().filter(|_| kind == FileKind::Symlink).map(|name| name.into_owned());
        let mut xattrs = Vec::new();
        for extension in entry.pax_extensions()?.into_iter().flatten() {
            let extension = extension?;
            modified = extended_time(&extension).unwrap_or(modified);
            if let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") {
                xattrs.push((name.to_vec(), extension.value_bytes().to_vec()));
            }
            // Its data begins with a map of the holes: taken as content it would be another file.
            if extension.key_bytes().starts_with(b"GNU.sparse.") {
                return Err(io::Error::other(
                    "sparse files in an archive of POSIX form are not supported: tar --format=gnu",
                ));
            }
        }
        xattrs.sort();
        let size = if kind == FileKind::File { entry.size() } else { 0 };
        let content = match kind {
            FileKind::File if is_sparse => Some(self.spooled(entry)?),
            FileKind::File => Some(Content::Range(Arc::clone(&self.tar), entry.raw_file_position(), size)),
            _ => None,
        };
        let attributes = Attributes {
            kind,
            mode: if kind == FileKind::Symlink { 0o777 } else { mode },
            uid: owner.uid,
            gid: owner.gid,
            links: 1,
            size_bytes: size,
            data_bytes: size,
            modified,
            device,
        };
        Ok(Some(Node { attributes, content, target: target.unwrap_or_default(), xattrs, is_opaque: false }))
    }

    /// The content of a member whose bytes do not lie in the tar as they are: holes cost an archive nothing.
    fn spooled<R: Read>(&self, entry: &mut tar::Entry<'_, R>) -> io::Result<Content> {
        let size_bytes = entry.size();
        let left = self.left_bytes.get().checked_sub(size_bytes);
        let too_large =
            || io::Error::other(format!("a sparse member of {size_bytes} bytes is too large for its archive"));
        self.left_bytes.set(left.ok_or_else(too_large)?);
        let mut file = tempfile::tempfile_in(self.spool)?;
        let size_bytes = io::copy(entry, &mut file)?;
        Ok(Content::Range(Arc::new(file), 0, size_bytes))
    }
}

/// A reader that keeps what was read from it.
struct Kept<R> {
    reader: R,
    bytes: Vec<u8>,
}

impl<R: Read> Read for Kept<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.bytes.extend_from_slice(&buffer[..read]);
        Ok(read)
    }
}

/// A reader that fails once more was read than is left: what claims to be a header would be read into memory.
struct Budgeted<'a, R> {
    reader: R,
    left_bytes: &'a Cell<u64>,
}

impl<R: Read> Read for Budgeted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        let left = self.left_bytes.get().checked_sub(read as u64);
        let too_large =
            || io::Error::other(format!("the headers of a member take more than {MOST_HEADER_BYTES} bytes"));
        self.left_bytes.set(left.ok_or_else(too_large)?);
        Ok(read)
    }
}

impl<R: Seek> Seek for Budgeted<'_, R> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.reader.seek(position)
    }
}

/// What every member says of its file, a hard link as well.
struct Stamp {
    owner: Owner,
    mode: u32,
    modified: Time,
}

impl Stamp {
    fn of_header(header: &tar::Header, options: &CopyOptions) -> io::Result<Self> {
        let old = header.as_old();
        let seconds = i64::try_from(number(header.mtime(), &old.mtime)?).unwrap_or(i64::MAX);
        let id = |id: u64| u32::try_from(id).map_err(|_| io::Error::other("an owner is no 32-bit number"));
        let owner = match options.owner {
            Some(owner) => owner,
            None => Owner { uid: id(number(header.uid(), &old.uid)?)?, gid: id(number(header.gid(), &old.gid)?)? },
        };
        let mode = number(header.mode(), &old.mode)? & 0o7777;
        Ok(Self { owner, mode, modified: Time { seconds, nanoseconds: 0 } })
    }
}

/// The time that a record of POSIX form gives: its whole seconds, as layers have them, and none before 1970.
/// <https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html>
fn extended_time(extension: &tar::PaxExtension<'_>) -> Option<Time> {
    let text = extension.value().ok().filter(|_| extension.key_bytes() == b"mtime")?;
    let whole = text.split_once('.').map_or(text, |(whole, _)| whole);
    let seconds = whole.parse::<i64>().ok()?.max(0);
    Some(Time { seconds, nanoseconds: 0 })
}

/// A number of a header. A blank field is 0, as Go reads it; there are archivers that write it so.
fn number<N: Default>(read: io::Result<N>, field: &[u8]) -> io::Result<N> {
    let is_blank = field.iter().all(|byte| matches!(byte, 0 | b' '));
    if is_blank { Ok(N::default()) } else { read }
}

/// Where a member goes: links in its directories are followed inside the destination, its last name is kept. As in
/// Docker, a link that leads to nothing there is no directory: none is made where an archive's author meant another.
fn below(changes: &ChangeSet, top: &[u8], wanted: &[u8]) -> io::Result<Vec<u8>> {
    let directory = changes.resolve_below(top, parent(wanted))?;
    if changes.stat(&directory)?.is_none() {
        refuse_dangling(changes, top, parent(wanted))?;
    }
    Ok(join(&directory, base_name(wanted)))
}

/// Fails if a link on the way to a directory leads to nothing.
fn refuse_dangling(changes: &ChangeSet, top: &[u8], directory: &[u8]) -> io::Result<()> {
    let mut way = Vec::new();
    for name in components(directory) {
        let at = join(&changes.resolve_below(top, &way)?, name);
        way = join(&way, name);
        let is_link = changes.stat(&at)?.is_some_and(|there| there.kind == FileKind::Symlink);
        if is_link && changes.stat(&changes.resolve_below(top, &way)?)?.is_none() {
            let words = format!("the link /{} leads to nothing in the destination", at.escape_ascii());
            return Err(io::Error::new(io::ErrorKind::NotFound, words));
        }
    }
    Ok(())
}

/// Directories that no member names are root's, whatever --chown says.
fn make_parents(changes: &mut ChangeSet, path: &[u8], options: &CopyOptions) -> io::Result<()> {
    let directory = parent(path).to_vec();
    let like = Node::directory(0o755, Owner::default(), options.made);
    changes.make_directories(&directory, &like).map(drop)
}

/// One more name of a file, which takes what this member says of it: as Docker has it, the last one counts.
fn link<R: Read>(
    changes: &mut ChangeSet,
    top: &[u8],
    path: &[u8],
    entry: &mut tar::Entry<'_, R>,
    options: &CopyOptions,
) -> io::Result<()> {
    let missing = |what: &[u8]| {
        io::Error::new(io::ErrorKind::NotFound, format!("hard link to /{}, which is not there", what.escape_ascii()))
    };
    let target = entry.link_name_bytes().map(|name| clean(&name)).unwrap_or_default();
    let target = below(changes, top, &target)?;
    let id = changes.node_id(&target)?.ok_or_else(|| missing(&target))?;
    if target != path {
        changes.link(path, id);
    }
    let Stamp { owner, mode, mut modified } = Stamp::of_header(entry.header(), options)?;
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        modified = extended_time(&extension?).unwrap_or(modified);
    }
    changes.set_owner(path, owner)?;
    if changes.stat(path)?.is_some_and(|there| there.kind != FileKind::Symlink) {
        changes.set_mode(path, mode)?;
        changes.set_modified(path, modified)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Unpacks what GNU tar makes of two files that are all hole, of this length each.
    fn unpacked(length_bytes: u64) -> io::Result<bool> {
        let directory = tempfile::tempdir()?;
        for name in ["a", "b"] {
            File::create(directory.path().join(name))?.set_len(length_bytes)?;
        }
        let path = directory.path().join("archive");
        let mut tar = std::process::Command::new("tar");
        tar.args(["--sparse", "--format=gnu", "-cf"]).arg(&path).arg("-C").arg(directory.path()).args(["a", "b"]);
        assert!(tar.status()?.success(), "GNU tar is installed");
        let file = File::open(&path)?;
        let size_bytes = file.metadata()?.len();
        let store = layerfs::Store::open(&directory.path().join("store")).expect("a store");
        let mut changes = ChangeSet::new(store.tree(&[]).expect("nothing"));
        let content = Content::Range(Arc::new(file), 0, size_bytes);
        Ok(unpack_whole(&mut changes, &content, directory.path())?.is_some())
    }

    #[test]
    fn an_archive_is_known_also_if_it_begins_with_records_about_its_first_member() {
        for (format, name) in [("pax", "a".repeat(90)), ("gnu", "b".repeat(250)), ("pax", "c".repeat(250))] {
            let mut archive = tar::Builder::new(Vec::new());
            if format == "pax" {
                archive.append_pax_extensions([("mtime", b"1.5".as_slice())]).expect("written");
            }
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            archive.append_data(&mut header, &name, io::empty()).expect("written");
            let bytes = archive.into_inner().expect("written");
            assert!(is_archive(&Content::Bytes(bytes.into())), "{format} {}", name.len());
        }
    }

    #[test]
    fn the_comment_of_an_archive_makes_no_directory() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut archive = tar::Builder::new(Vec::new());
        let mut comment = tar::Header::new_ustar();
        comment.set_entry_type(EntryType::XGlobalHeader);
        comment.set_size(13);
        archive.append_data(&mut comment, "tmp/GlobalHead.1", b"13 comment=x\n".as_slice()).expect("written");
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        archive.append_data(&mut header, "file", io::empty()).expect("written");
        let store = layerfs::Store::open(&directory.path().join("store")).expect("a store");
        let mut changes = ChangeSet::new(store.tree(&[]).expect("nothing"));
        let content = Content::Bytes(archive.into_inner().expect("written").into());
        unpack_whole(&mut changes, &content, directory.path()).expect("unpacked");
        assert!(changes.stat(b"file").expect("read").is_some() && changes.stat(b"tmp").expect("read").is_none());
    }

    #[test]
    fn a_header_that_would_fill_the_memory_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        archive.append_data(&mut header, "first", io::empty()).expect("written");
        let mut bytes = archive.into_inner().expect("written");
        bytes.truncate(512);
        let mut record = tar::Header::new_ustar();
        record.set_entry_type(EntryType::XHeader);
        record.set_size(1 << 40);
        record.set_cksum();
        bytes.extend_from_slice(record.as_bytes());
        bytes.resize(bytes.len() + (MOST_HEADER_BYTES as usize) + 1024, b'x');
        let store = layerfs::Store::open(&directory.path().join("store")).expect("a store");
        let mut changes = ChangeSet::new(store.tree(&[]).expect("nothing"));
        let content = Content::Bytes(bytes.into());
        let error = unpack_whole(&mut changes, &content, directory.path()).expect_err("too large");
        assert!(error.to_string().contains("headers of a member"), "{error}");
    }

    #[test]
    fn holes_in_an_archive_fill_no_disk() {
        assert!(unpacked(1 << 20).expect("a sparse file is a file"));
        let said = unpacked(1 << 40).expect_err("a thousand gigabytes in a few blocks").to_string();
        assert!(said.contains("too large"), "{said}");
    }
}
