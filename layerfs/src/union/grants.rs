//! Files whose mode is changed for a moment, written down, so that a kill in that moment leaves no mode behind that nobody
//! set.
//!
//! Invariant: at most one thread has files whose modes are not their own, each within the moment of another, and while
//! one has, its number and its mode are in the work directory of the upper that it is in. What is found there at the next
//! opening gets its mode back.

use std::{
    cell::Cell,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak},
};

use rustix::{
    fs::{AtFlags, FileType, OFlags, Stat},
    io::{Errno, Result},
};

use super::{
    handles::Handle,
    node::lock,
    upper::{open_at, open_directory},
};
use crate::tree::FileKind;

/// Bits that the owner of a file is granted.
const OWNER: u32 = 0o700;

/// Held by who changes a mode, and alone by who changes some for a moment only.
static MODES: RwLock<()> = RwLock::new(());

/// The work directory of the upper that this process writes. A build writes several, of which the last one counts: a kill
/// takes all of its uppers with it.
static WORK: Mutex<Weak<OwnedFd>> = Mutex::new(Weak::new());

thread_local! {
    /// How many moments this thread is in.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Keeps others from changing a mode for a moment.
pub(super) fn others() -> Option<RwLockReadGuard<'static, ()>> {
    (DEPTH.get() == 0).then(|| MODES.read().unwrap_or_else(PoisonError::into_inner))
}

/// A file whose mode is about to change for a moment; it is forgotten when this is dropped.
pub(super) struct Moment {
    depth: usize,
    noted: Option<Arc<OwnedFd>>,
    _alone: Option<RwLockWriteGuard<'static, ()>>,
}

impl Moment {
    /// Waits until no other thread changes a mode.
    pub(super) fn begin() -> Self {
        let depth = DEPTH.get();
        let alone = (depth == 0).then(|| MODES.write().unwrap_or_else(PoisonError::into_inner));
        DEPTH.set(depth + 1);
        Self { depth, noted: None, _alone: alone }
    }

    /// Writes down which file it is. That cannot fail the operation: without it only a kill would leave a trace.
    pub(super) fn note(&mut self, stat: &Stat) {
        let text = format!("{} {:o}", stat.st_ino, stat.st_mode & 0o7777);
        let Some(work) = lock(&WORK).upgrade() else { return };
        match rustix::fs::symlinkat(text, &*work, note(self.depth)) {
            Ok(()) => self.noted = Some(work),
            Err(error) => tracing::debug!(%error, "noting a file whose mode changes for a moment failed"),
        }
    }
}

impl Drop for Moment {
    fn drop(&mut self) {
        DEPTH.set(self.depth);
        if let Some(work) = &self.noted
            && let Err(error) = rustix::fs::unlinkat(&**work, note(self.depth), AtFlags::empty())
        {
            tracing::debug!(%error, "forgetting a file whose mode changed for a moment failed");
        }
    }
}

/// In the work directory: a symbolic link, which is made in one step, to the number and the mode of a file.
fn note(depth: usize) -> String {
    format!("granted.{depth}")
}

/// Gives the files that are noted in a work directory their modes back, wherever they are in the upper or the index, and
/// has what follows noted there as long as what is returned lives.
pub(super) fn restore(work: &OwnedFd, upper: &OwnedFd, index: &OwnedFd) -> Result<Arc<OwnedFd>> {
    // Not a copy, which would share the lock.
    let directory = Arc::new(open_directory(work, b".")?);
    let mut noted = Vec::new();
    loop {
        match rustix::fs::readlinkat(work, note(noted.len()), Vec::new()) {
            Ok(text) => noted.push(text.to_str().ok().and_then(parse)),
            Err(Errno::NOENT) => break,
            Err(error) => return Err(error),
        }
    }
    // The last one first: it may be the reason of those before it.
    for (depth, file) in noted.into_iter().enumerate().rev() {
        if let Some((inode, mode)) = file {
            for root in [upper, index] {
                restore_below(root, inode, mode)?;
            }
        }
        rustix::fs::unlinkat(work, note(depth), AtFlags::empty())?;
    }
    *lock(&WORK) = Arc::downgrade(&directory);
    Ok(directory)
}

fn parse(text: &str) -> Option<(u64, u32)> {
    let (inode, mode) = text.split_once(' ')?;
    Some((inode.parse().ok()?, u32::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o7777)?))
}

/// Looks for a file below a directory, with one open directory a level. This happens after a kill in that moment only.
fn restore_below(root: &OwnedFd, inode: u64, mode: u32) -> Result<()> {
    let mut levels = vec![level(Handle::new(open_directory(root, b".")?))?];
    while let Some((directory, names)) = levels.last_mut() {
        let Some(name) = names.pop() else {
            levels.pop();
            continue;
        };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(&*directory, &name[..], flags, rustix::fs::Mode::empty());
        let file = Handle::path_only(directory.granted(0o100, open)?);
        let stat = file.stat()?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if stat.st_ino == inode && kind != FileType::Symlink {
            let now = stat.st_mode & 0o7777;
            // Anything else was set by somebody since.
            return if now & !OWNER == mode & !OWNER && now & mode == mode { file.set_mode(mode) } else { Ok(()) };
        }
        if kind == FileType::Directory {
            let below = directory.granted(0o100, || open_at(&*directory, &name, FileKind::Directory))?;
            levels.push(level(below)?);
        }
    }
    Ok(())
}

fn level(directory: Handle) -> Result<(Handle, Vec<Vec<u8>>)> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(&directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if !matches!(&name[..], b"." | b"..") {
            names.push(name);
        }
    }
    Ok((directory, names))
}
