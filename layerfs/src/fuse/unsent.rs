//! What the kernel holds of a file and has not sent yet: it is asked for it.
//!
//! Invariant: while some threads of a mount wait here, others are left to take what the kernel sends. Which questions
//! need it is not known here.

use std::{
    os::fd::OwnedFd,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use rustix::io::{Errno, Result};

use super::{reply::notice, turns::THREADS};

/// How many threads may wait at once: those that are left take the writes.
pub(super) const WAITING_MAX: usize = THREADS / 2;

/// The device of a mount, for what it tells the kernel unasked.
#[derive(Debug)]
pub(super) struct Unsent {
    device: OwnedFd,
    waiting: AtomicUsize,
}

impl Unsent {
    pub(super) fn new(device: OwnedFd) -> Self {
        Self { device, waiting: AtomicUsize::new(0) }
    }

    /// Has the kernel send what it holds of a file from `offset` on, and waits for it; `EBUSY` where too many wait.
    /// Pages there are read again when they are needed.
    pub(super) fn fetch(&self, node: u64, offset: u64) -> Result<()> {
        /// `FUSE_NOTIFY_INVAL_INODE`: the kernel writes pages before it drops them.
        const INVALIDATE: i32 = 2;
        // A length of 0 means up to the end.
        let message = notice(INVALIDATE, node, offset, [0; 8], 0);
        let sent = match self.waiting.fetch_add(1, Relaxed) {
            0..WAITING_MAX => rustix::io::write(&self.device, &message).map(drop),
            _ => Err(Errno::BUSY),
        };
        self.waiting.fetch_sub(1, Relaxed);
        match sent {
            // It holds nothing.
            Err(Errno::NOENT) => Ok(()),
            sent => sent,
        }
    }
}
