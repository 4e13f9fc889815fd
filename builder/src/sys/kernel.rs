//! Namespaces, mount attributes, the seccomp filter, and the loopback device: single calls without policy.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::mount::MountAttrFlags;
use rustix::net::{AddressFamily, SocketType};
use rustix::thread::UnshareFlags;
use seccompiler::sock_filter;

/// Moves this process into new namespaces.
pub(crate) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    debug_assert!(!flags.contains(UnshareFlags::FILES));
    // SAFETY: only UnshareFlags::FILES can break what other code relies on, and no caller passes it.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// Gives the mount behind `mount`, and all mounts below it, further attributes. Those that they have stay.
pub(crate) fn set_attributes(mount: BorrowedFd<'_>, attributes: MountAttrFlags) -> io::Result<()> {
    let attr_set = attributes.bits().into();
    let attributes = libc::mount_attr { attr_set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the path is an empty C string, and the attributes are read with the size that is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Installs a seccomp filter for this process and all it starts. Does not set no-new-privileges, so it needs
/// CAP_SYS_ADMIN.
pub(crate) fn install_seccomp_filter(program: &[sock_filter]) -> io::Result<()> {
    let length =
        program.len().try_into().map_err(|_| io::Error::other("the filter has more than 65535 instructions"))?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel reads `len` instructions, of the same layout in both crates, and writes nothing.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Writes what is changed of a file's content to its disk, and waits for that; its pages are clean then, and the next
/// change of one, through a mapping too, shows in the file's times. Nothing is flushed for good.
pub(crate) fn write_back(file: BorrowedFd<'_>) -> io::Result<()> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: the call takes an open descriptor and numbers; no bytes means to the end of the file.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The first byte of a file, to be written as other programs write through their mappings. Never unmapped.
#[cfg(test)]
pub(crate) struct SharedByte(*mut u8);

#[cfg(test)]
impl SharedByte {
    pub(crate) fn of(file: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: a new mapping, at an address that the kernel chooses, is nobody else's memory.
        let address = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), 1, access, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self(address.cast())) }
    }

    pub(crate) fn write(&mut self, byte: u8) {
        // SAFETY: it is mapped for writing; the tests that use it cut no file short.
        unsafe { self.0.write_volatile(byte) }
    }
}

/// Brings up the device `lo` of the current network namespace; the kernel adds 127.0.0.1 and ::1 by itself.
pub(crate) fn bring_loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = (*from).cast_signed() as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request is a whole ifreq with a terminated name, as SIOCSIFFLAGS reads it.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
