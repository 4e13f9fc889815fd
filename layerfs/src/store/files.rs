//! Files that appear whole or not at all.
//!
//! Invariant: a [`Draft`] is born in a session's directory in `tmp/`, written, synced, renamed to its
//! final name, and the directory of that name synced; dropped before, it is removed.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::{AtPath, Result, StoreError};

/// Makes the temporary names of one process differ.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A file that is not yet published.
#[derive(Debug)]
pub(super) struct Draft {
    path: PathBuf,
    file: File,
    early: Option<Early>,
}

/// How far a draft is on its way to the disk.
#[derive(Debug, Default)]
struct Early {
    written_bytes: u64,
    begun_bytes: u64,
}

/// The disk is told of so much at a time: large against the cost of telling, small against a layer.
const EARLY_BYTES: u64 = 4 << 20;

impl Draft {
    /// A new empty file in a directory that belongs to this session.
    pub(super) fn new(directory: &Path) -> Result<Self> {
        let path = directory.join(format!("draft-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        let file = File::options().read(true).write(true).create_new(true).open(&path).at("creating", &path)?;
        Ok(Self { path, file, early: None })
    }

    /// A new file that is written to the disk while it grows, so that [`Self::sync`] finds little left to wait for.
    pub(super) fn written_early(directory: &Path) -> Result<Self> {
        let mut draft = Self::new(directory)?;
        draft.early = Some(Early::default());
        Ok(draft)
    }

    /// Another handle of the file, at its start.
    pub(super) fn reopen(&self) -> Result<File> {
        File::open(&self.path).at("opening", &self.path)
    }

    /// Where it is now.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Brings the content to the disk, and permits nobody to change it any more.
    pub(super) fn sync(&self) -> Result<()> {
        self.make_read_only()?;
        self.file.sync_data().at("syncing", &self.path)
    }

    /// Gives a synced file its final name, in place of what has it.
    pub(super) fn publish(self, path: &Path) -> Result<()> {
        fs::rename(&self.path, path).at("publishing", path)
    }

    fn make_read_only(&self) -> Result<()> {
        let read_only = std::os::unix::fs::PermissionsExt::from_mode(0o444);
        self.file.set_permissions(read_only).at("making read-only", &self.path)
    }

    /// Gives a synced file a second final name.
    pub(super) fn publish_also(&self, path: &Path) -> Result<()> {
        link(&self.path, path)
    }

    /// Writes and publishes bytes that can be made again. They are not synced: after a crash they may be
    /// missing or cut short, which whoever reads them must notice.
    pub(super) fn publish_derived<'a>(
        directory: &Path,
        pieces: impl IntoIterator<Item = &'a [u8]>,
        path: &Path,
    ) -> Result<()> {
        let mut draft = Self::new(directory)?;
        pieces.into_iter().try_for_each(|piece| draft.write_all(piece)).at("writing", &draft.path)?;
        draft.make_read_only()?;
        draft.publish(path)
    }

    /// Writes, syncs and publishes some bytes.
    pub(super) fn publish_bytes(directory: &Path, bytes: &[u8], path: &Path) -> Result<()> {
        let mut draft = Self::new(directory)?;
        draft.write_all(bytes).at("writing", &draft.path)?;
        draft.sync()?;
        draft.publish(path)?;
        sync_directory_of(path)
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        if let Some(Early { written_bytes, begun_bytes }) = &mut self.early {
            *written_bytes += count as u64;
            if *written_bytes - *begun_bytes >= EARLY_BYTES {
                // What it does not begin now, the sync does.
                let _ = crate::sys::begin_writing(&self.file, *begun_bytes..*written_bytes);
                *begun_bytes = *written_bytes;
            }
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After publishing there is nothing under this name.
        let _ = fs::remove_file(&self.path);
    }
}

/// Gives a file that is never changed a second name, unless that name is taken.
pub(super) fn link(from: &Path, to: &Path) -> Result<()> {
    match fs::hard_link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result.at("publishing", to),
    }
}

/// Brings the names in the directory of a path to the disk.
pub(super) fn sync_directory_of(path: &Path) -> Result<()> {
    let directory = path.parent().unwrap_or(path);
    File::open(directory).and_then(|file| file.sync_all()).at("syncing", directory)
}

/// Makes one of the small files of a new store, whole or not at all; the caller holds a lock.
pub(super) fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let draft = path.with_extension("new");
    let written = File::create(&draft).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.at("writing", &draft)?;
    fs::rename(&draft, path).at("publishing", path)?;
    sync_directory_of(path)
}

/// Removes a file if it is there, and returns the bytes that this freed.
pub(super) fn remove_if_present(path: &Path) -> Result<u64> {
    let freed = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        // A file with another name stays on the disk.
        found => found.at("looking at", path).map(|metadata| freed_bytes(&metadata))?,
    };
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        removed => removed.at("removing", path).map(|()| freed),
    }
}

fn freed_bytes(metadata: &fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    if metadata.nlink() > 1 { 0 } else { metadata.blocks() * 512 }
}

/// What a directory with all that is in it takes of the disk; what cannot be looked at does not count.
pub(super) fn taken_bytes(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let (mut pending, mut linked, mut taken) = (vec![directory.to_owned()], HashSet::new(), 0);
    while let Some(path) = pending.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.is_dir() {
            pending.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        } else if metadata.nlink() > 1 && !linked.insert((metadata.dev(), metadata.ino())) {
            continue;
        }
        taken += metadata.blocks() * 512;
    }
    taken
}

/// Reads a small file; `None` if there is none.
pub(super) fn read_if_present(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).at("reading", path),
    }
}

/// Checks that a text can be the name of a file, and is no temporary or hidden one.
pub(super) fn check_file_name(name: &str, role: &'static str) -> Result<()> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    // 200 leaves room for extensions below the 255 of Linux.
    let is_valid = (1..=200).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(is_plain);
    if is_valid { Ok(()) } else { Err(StoreError::Name { name: name.to_owned(), role }) }
}
