//! The only unsafe code of the crate: system interfaces that have no safe wrapper.
//!
//! Each function here is safe to call; the argument why stands at its unsafe block.
#![expect(unsafe_code, reason = "this module exists to hold the unsafe code of the crate, with its arguments")]

mod mapping;

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};

pub(crate) use mapping::Mapping;

/// Has the kernel begin to write a range of a file to its disk, and does not wait for it. An empty range is all of what
/// follows its start.
pub(crate) fn begin_writing(file: &impl AsFd, range: Range<u64>) -> io::Result<()> {
    let offset = |bytes: u64| i64::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge));
    let (start, length) = (offset(range.start)?, offset(range.end.saturating_sub(range.start))?);
    // SAFETY: the descriptor is open as long as `file` is borrowed; the call reads and writes no memory of ours.
    let result = unsafe { libc::sync_file_range(file.as_fd().as_raw_fd(), start, length, libc::SYNC_FILE_RANGE_WRITE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
