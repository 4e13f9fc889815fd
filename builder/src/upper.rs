//! Uppers of the store as the builder uses them: opened as a union, read as changes.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use layerfs::{Changes, ChangesError, MarkNamespace, OpenError, Tree, Union, UpperLife, UpperOptions, changes};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::rootless::is_first_namespace;

/// Files of an upper that stay open for the next operation: a quarter of the usual limit of 1024.
const OPEN_FILES: usize = 256;

/// An upper that could not be used.
#[derive(Debug, thiserror::Error)]
pub enum UpperError {
    /// Its directories could not be opened.
    #[error("cannot open the copy-on-write layer: {0}")]
    Open(#[from] io::Error),
    /// The union refused it.
    #[error(transparent)]
    Union(#[from] OpenError),
    /// Its changes could not be read.
    #[error(transparent)]
    Changes(#[from] ChangesError),
}

/// Opens the union of a tree and the directories of an upper. One that does not outlive this process is never written
/// to the disk on purpose: a crash throws it away anyway. Raises the limit of open files of this process, which is about
/// to serve it; steps get back the one before.
///
/// # Errors
/// If the directories cannot be opened, or are in use.
pub fn open_union(
    tree: Arc<dyn Tree>,
    upper: &Path,
    work: &Path,
    life: UpperLife,
) -> Result<Union<Arc<dyn Tree>>, UpperError> {
    crate::open_files::raise();
    let options = UpperOptions {
        marks: marks(),
        open_files: OPEN_FILES,
        renames_directories: true,
        durable: life == UpperLife::Kept,
        splits_metadata: true,
        has_aufs_marks: false,
        has_overrides: false,
        adopts_root: true,
    };
    Ok(Union::open(tree, directory(upper)?, directory(work)?, options)?)
}

/// Makes a directory and those above it, inside a mounted root whose links cannot lead out: an image may name a working
/// directory that it does not have.
pub(crate) fn make_directory(root: &Path, directory: &Path) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::open(root, flags, Mode::empty())?;
    let mut above = rustix::io::dup(&top)?;
    let mut path = PathBuf::from("/");
    for name in directory.components().skip(1) {
        path.push(name);
        let open = || rustix::fs::openat2(top.as_fd(), &path, flags, Mode::empty(), ResolveFlags::IN_ROOT);
        above = match open() {
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(&above, name.as_os_str(), Mode::from_raw_mode(0o755))?;
                open()?
            }
            opened => opened?,
        };
    }
    Ok(())
}

/// What an upper that is not mounted any more changed in its tree.
///
/// # Errors
/// If it cannot be read, or holds what no layer can.
pub fn read_changes(tree: &Arc<dyn Tree>, upper: &Path, work: &Path) -> Result<Changes, UpperError> {
    Ok(changes(tree, directory(upper)?, &directory(work)?, marks())?)
}

fn directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(File::open(path)?.into())
}

/// Root of the machine writes the marks that its kernel reads by default; root of a user namespace
/// may not, and writes those that `userxattr` reads.
fn marks() -> MarkNamespace {
    if has_trusted_marks() { MarkNamespace::Trusted } else { MarkNamespace::User }
}

/// Whether this is the user namespace of the machine.
pub(crate) fn has_trusted_marks() -> bool {
    std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| is_first_namespace(&map))
}
