//! ADD of a local archive: found out by its bytes, whatever its name, and unpacked into the change set.
//!
//! As in Docker, a member's name can lead nowhere but below the destination: `..` and symbolic
//! links are resolved as if the destination's root were the root.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::sync::Arc;

use layerfs::{Attributes, FileKind, Time};
use tar::EntryType;

use super::copy::{Copier, CopyError, CopyOptions};
use super::select::Source;
use crate::changeset::{ChangeSet, Content, Node, clean, join, parent};

/// An archive whose tar lies in a file, ready to be read in place.
struct Unpacked {
    tar: Arc<File>,
}

/// Unpacks a file below `destination` if it is an archive, and says whether it was one. `shown` is the file's path.
pub(crate) fn unpack(
    changes: &mut ChangeSet,
    source: &Source,
    (content, shown): (&Content, &[u8]),
    destination: &[u8],
    options: &CopyOptions,
) -> Result<bool, CopyError> {
    let read = |cause| CopyError::Read { path: String::from_utf8_lossy(shown).into_owned(), cause };
    let Some(archive) = Unpacked::open(content).map_err(read)? else { return Ok(false) };
    let mut top = destination.to_vec();
    top.push(b'/');
    Copier::new(changes, options, source).make_destination(&top)?;
    let top = changes.resolve(&top).map_err(read)?;
    archive.put_all(changes, &top, options).map_err(read)?;
    Ok(true)
}

impl Unpacked {
    /// The tar in `content`, decompressed; `None` if there is none, or one without members.
    fn open(content: &Content) -> io::Result<Option<Self>> {
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
        // The first header tells whether this is a tar, before anything is written.
        let mut head = Vec::new();
        match decoder.by_ref().take(512).read_to_end(&mut head) {
            Ok(512) => {}
            // Broken compression is some other file that happens to begin like one.
            _ => return Ok(None),
        }
        let is_tar = tar::Archive::new(head.as_slice()).entries()?.next().is_some_and(|entry| entry.is_ok());
        if !is_tar {
            return Ok(None);
        }
        let mut file = tempfile::tempfile()?;
        io::copy(&mut head.as_slice().chain(decoder), &mut file)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(Some(Self { tar: Arc::new(file) }))
    }

    fn put_all(&self, changes: &mut ChangeSet, top: &[u8], options: &CopyOptions) -> io::Result<()> {
        let mut archive = tar::Archive::new(BufReader::with_capacity(1 << 18, self.tar.as_ref()));
        for entry in archive.entries()? {
            let mut entry = entry?;
            let name = entry.path_bytes().into_owned();
            let wanted = clean(&name);
            if wanted.is_empty() && entry.header().entry_type() == EntryType::Directory {
                continue;
            }
            let path = below(changes, top, &wanted)?;
            make_parents(changes, &path, options)?;
            if entry.header().entry_type() == EntryType::Link {
                link(changes, top, &path, &entry)?;
                continue;
            }
            let Some(node) = self.node(&mut entry, options)? else { continue };
            let is_directory = node.attributes.kind == FileKind::Directory;
            let was = changes.stat(&path)?.map(|attributes| attributes.kind);
            if !is_directory && was == Some(FileKind::Directory) {
                changes.remove_directory(&path);
            }
            changes.put(&path, node)?;
        }
        Ok(())
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
        let modified = Time { seconds: i64::try_from(header.mtime()?).unwrap_or(i64::MAX), nanoseconds: 0 };
        let id = |id: u64| u32::try_from(id).map_err(|_| io::Error::other("an owner is no 32-bit number"));
        let owner = match options.owner {
            Some(owner) => owner,
            None => crate::changeset::Owner { uid: id(header.uid()?)?, gid: id(header.gid()?)? },
        };
        let mode = header.mode()? & 0o7777;
        let is_sparse = header.entry_type() == EntryType::GNUSparse;
        let target = entry.link_name_bytes().filter(|_| kind == FileKind::Symlink).map(|name| name.into_owned());
        let mut xattrs = Vec::new();
        for extension in entry.pax_extensions()?.into_iter().flatten() {
            let extension = extension?;
            if let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") {
                xattrs.push((name.to_vec(), extension.value_bytes().to_vec()));
            }
        }
        xattrs.sort();
        let size = if kind == FileKind::File { entry.size() } else { 0 };
        let content = match kind {
            FileKind::File if is_sparse => Some(spooled(entry)?),
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
}

/// Where a member goes: links in its directories are followed inside the root, its last name is kept.
fn below(changes: &ChangeSet, top: &[u8], wanted: &[u8]) -> io::Result<Vec<u8>> {
    let whole = join(top, wanted);
    let directory = changes.resolve(parent(&whole))?;
    Ok(join(&directory, crate::changeset::base_name(&whole)))
}

fn make_parents(changes: &mut ChangeSet, path: &[u8], options: &CopyOptions) -> io::Result<()> {
    let directory = parent(path).to_vec();
    let like = Node::directory(0o755, options.owner.unwrap_or_default(), options.made);
    changes.make_directories(&directory, &like).map(drop)
}

fn link<R: Read>(changes: &mut ChangeSet, top: &[u8], path: &[u8], entry: &tar::Entry<'_, R>) -> io::Result<()> {
    let missing = |what: &[u8]| {
        io::Error::new(io::ErrorKind::NotFound, format!("hard link to /{}, which is not there", what.escape_ascii()))
    };
    let target = entry.link_name_bytes().map(|name| clean(&name)).unwrap_or_default();
    let target = below(changes, top, &target)?;
    let id = changes.node_id(&target)?.ok_or_else(|| missing(&target))?;
    if target != path {
        changes.link(path, id);
    }
    Ok(())
}

/// The content of a file whose bytes do not lie in the tar as they are.
fn spooled<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<Content> {
    let mut file = tempfile::tempfile()?;
    let size = io::copy(entry, &mut file)?;
    Ok(Content::Range(Arc::new(file), 0, size))
}
