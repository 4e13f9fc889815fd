//! Small files that a reader will want next, given to the kernel before it asks for them.
//!
//! Invariant: what is given is what a read would be answered, of files that never change, so that it matters neither when
//! it comes nor whether. Who answers requests never waits for it. Not for a tree under a union: what was written there
//! and has not been sent yet would be lost.

use std::{
    io::IoSlice,
    os::fd::OwnedFd,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use rustix::io::{Errno, Result};

use super::reply::notice;
use crate::{
    tree::{FileKind, Tree, TreeInode},
    union::Union,
};

/// Between two files that are read after each other lie directories, links and large files, but no more than so many.
const NEAR: u64 = 16;

/// How many inodes are looked at first, and at most: as with the kernel's own reading ahead within a file, twice as many
/// each time.
const FIRST: u64 = 16;
const MOST: u64 = 512;

/// Larger files are not given: within them the kernel reads ahead itself.
const SMALL_BYTES: u64 = 128 << 10;

/// Reads of a tree in the order of its inodes, which is that of its directories, and the thread that goes before them.
pub(super) struct Ahead<T: Tree + 'static> {
    giver: Arc<Giver<T>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the thread has.
struct Giver<T> {
    union: Arc<Union<T>>,
    device: OwnedFd,
    course: Mutex<Course>,
    changed: Condvar,
}

/// How far a reader is, and how far the kernel has what comes next.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Course {
    /// The file that was asked for last.
    last: u64,
    /// How many were asked for in order.
    run: u32,
    /// The next one to give, and where to stop.
    next: u64,
    end: u64,
    /// How many were looked at for the last request.
    window: u64,
    is_over: bool,
}

impl Course {
    /// Notes that a file was asked for; true where there is something to give now.
    fn note(&mut self, inode: u64) -> bool {
        let follows = |start: u64| (start..start.saturating_add(NEAR)).contains(&inode);
        let is_next = follows(self.last.saturating_add(1)) || self.end > 0 && follows(self.end);
        if !is_next {
            *self = Self { last: inode, is_over: self.is_over, ..Self::default() };
            return false;
        }
        self.last = inode;
        self.run = self.run.saturating_add(1);
        if self.run < 2 || inode.saturating_add(1) < self.end {
            return false;
        }
        self.window = (self.window * 2).clamp(FIRST, MOST);
        self.next = inode.saturating_add(1);
        self.end = self.next.saturating_add(self.window);
        true
    }

    /// The next inode to look at.
    fn take(&mut self) -> Option<u64> {
        // Whoever reads may have come further than we.
        let next = self.next.max(self.last.saturating_add(1));
        (next < self.end).then(|| {
            self.next = next + 1;
            next
        })
    }

    /// Nothing behind that is known to the kernel yet.
    fn stop(&mut self) {
        (self.end, self.window) = (self.next, 0);
    }
}

impl<T: Tree + 'static> Ahead<T> {
    /// `device` is another handle of the device whose requests are answered.
    pub(super) fn new(union: Arc<Union<T>>, device: OwnedFd) -> Self {
        let giver = Giver { union, device, course: Mutex::default(), changed: Condvar::new() };
        Self { giver: Arc::new(giver), thread: Mutex::new(None) }
    }

    /// Notes that a file is read from its beginning.
    pub(super) fn note(&self, inode: TreeInode) {
        if !self.giver.course().note(inode.0) {
            return;
        }
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let giver = Arc::clone(&self.giver);
            // Without it everything is asked for.
            *thread = std::thread::Builder::new().name("fuse-ahead".into()).spawn(move || giver.work()).ok();
        }
        self.giver.changed.notify_one();
    }
}

impl<T: Tree + 'static> Drop for Ahead<T> {
    fn drop(&mut self) {
        self.giver.course().is_over = true;
        self.giver.changed.notify_one();
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::debug!("the thread that gives files before they are read has panicked");
        }
    }
}

impl<T: Tree> Giver<T> {
    fn course(&self) -> MutexGuard<'_, Course> {
        self.course.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut content = Vec::new();
        let mut course = self.course();
        while !course.is_over {
            let Some(inode) = course.take() else {
                course = self.changed.wait(course).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(course);
            let given = self.give(inode, &mut content);
            course = self.course();
            if given.is_err() {
                course.stop();
            }
        }
    }

    /// Gives a small file to the kernel whole, and nothing of others; `ENOENT` where it does not know the inode.
    fn give(&self, inode: u64, content: &mut Vec<u8>) -> Result<()> {
        let tree = self.union.tree();
        let failed = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        let file = tree.attributes(TreeInode(inode)).map_err(failed)?;
        if file.kind != FileKind::File || !(1..=SMALL_BYTES).contains(&file.size_bytes) {
            return Ok(());
        }
        content.resize(usize::try_from(file.size_bytes).expect("a small file"), 0);
        if tree.read_at(TreeInode(inode), 0, content).map_err(failed)? < content.len() {
            return Err(Errno::IO);
        }
        /// `FUSE_NOTIFY_STORE`: 32 bits of size, and as many of nothing.
        const STORE: i32 = 4;
        let mut size = [0; 8];
        size[..4].copy_from_slice(&u32::try_from(content.len()).expect("a small file").to_ne_bytes());
        let message = notice(STORE, inode, 0, size, content.len());
        rustix::io::writev(&self.device, &[IoSlice::new(&message), IoSlice::new(content)]).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(course: &mut Course) -> Vec<u64> {
        std::iter::from_fn(|| course.take()).collect()
    }

    #[test]
    fn files_that_are_read_in_order_are_gone_before_in_growing_steps() {
        let mut course = Course::default();
        assert!(!course.note(100));
        assert!(!course.note(101));
        // A directory lies between.
        assert!(course.note(103));
        assert_eq!(taken(&mut course), (104..104 + FIRST).collect::<Vec<_>>());
        assert!(course.note(104 + FIRST), "what follows what was given is in order");
        assert_eq!(taken(&mut course).len() as u64, 2 * FIRST);
        let mut end = course.end;
        for _ in 0..10 {
            assert!(course.note(end));
            end = course.end;
        }
        assert_eq!(taken(&mut course).len() as u64, MOST);
    }

    #[test]
    fn files_that_are_read_in_no_order_are_not_gone_before() {
        let mut course = Course::default();
        for inode in [100, 101, 200, 201, 50, 51, 500, u64::MAX, u64::MAX - 1] {
            assert!(!course.note(inode));
            assert_eq!(course.take(), None);
        }
    }

    #[test]
    fn a_reader_that_is_faster_is_given_what_lies_before_it() {
        let mut course = Course::default();
        let _ = (course.note(100), course.note(101), course.note(102));
        assert_eq!(course.take(), Some(103));
        assert!(!course.note(110), "the step is not over");
        assert_eq!(course.take(), Some(111));
    }

    #[test]
    fn what_the_kernel_does_not_know_ends_the_step() {
        let mut course = Course::default();
        let _ = (course.note(100), course.note(101), course.note(102));
        assert_eq!(course.take(), Some(103));
        course.stop();
        assert_eq!(course.take(), None);
        assert!(course.note(104), "and the next one is a small one again");
        assert_eq!(course.take(), Some(105));
        assert_eq!(course.window, FIRST);
    }
}
