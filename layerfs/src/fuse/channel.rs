//! The FUSE device of one mount: requests come out of it, replies go into it.
//!
//! Invariant: a read takes a whole request and a write gives a whole reply, as the kernel demands. What is in them is
//! not known here.

use std::os::fd::OwnedFd;

use rustix::{
    event::{PollFd, PollFlags},
    fs::OFlags,
    io::{Errno, Result},
};

/// The most data in one request or reply: the kernel's own limit where nobody raised it (`fs.fuse.max_pages_limit`).
pub(super) const DATA_BYTES: usize = 1 << 20;

/// Room for any request: the data and what comes before it.
pub(super) const REQUEST_BYTES: usize = DATA_BYTES + 4096;

/// What a read gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    /// A request of so many bytes.
    Request(usize),
    /// Nobody wants anything.
    Nothing,
    /// The mount is gone.
    End,
}

/// An open FUSE device.
#[derive(Debug)]
pub(super) struct Channel(OwnedFd);

impl Channel {
    /// A device of which reads do not wait from now on.
    pub(super) fn new(device: OwnedFd) -> Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&device)?;
        rustix::fs::fcntl_setfl(&device, flags | OFlags::NONBLOCK)?;
        Ok(Self(device))
    }

    /// Takes a request, if there is one.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> Result<Received> {
        match rustix::io::read(&self.0, buffer) {
            Ok(length) => Ok(Received::Request(length)),
            // ENOENT: the caller went away before we came. INTR: a signal.
            Err(Errno::AGAIN | Errno::INTR | Errno::NOENT) => Ok(Received::Nothing),
            Err(Errno::NODEV) => Ok(Received::End),
            Err(error) => Err(error),
        }
    }

    /// Sleeps until there is a request, or the mount is gone.
    pub(super) fn wait(&self) -> Result<()> {
        match rustix::event::poll(&mut [PollFd::new(&self.0, PollFlags::IN)], None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Gives a reply. Where its caller is gone, nobody misses it.
    pub(super) fn send(&self, reply: &[u8]) -> Result<()> {
        match rustix::io::write(&self.0, reply) {
            Ok(_) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
