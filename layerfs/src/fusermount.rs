//! Mounts in the namespace of an ordinary user, served from inside a user namespace: `fusermount3` mounts, and hands
//! the device over a socket to whoever serves it.
//!
//! Invariant: nothing is mounted here but by `fusermount3`, which decides what an ordinary user may. The protocol is
//! the one of libfuse: `_FUSE_COMMFD` names a socket, over which one byte comes with the descriptor.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
    process::{Command, Stdio},
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::mount::MountError;

const PROGRAM: &str = "fusermount3";

/// Has `fusermount3` mount on a directory, and send the device to the process at the other end of `socket`.
///
/// `for_others` lets other users in, which /etc/fuse.conf must permit. The kernel checks permissions.
///
/// # Errors
/// If the program is missing or refuses.
pub fn mount_for_server(
    socket: OwnedFd,
    directory: &Path,
    read_only: bool,
    for_others: bool,
) -> Result<(), MountError> {
    let mut options = "default_permissions,fsname=nacre,subtype=nacre,noatime".to_owned();
    options.push_str(if read_only { ",ro" } else { ",rw" });
    if for_others {
        options.push_str(",allow_other");
    }
    let mut command = Command::new(PROGRAM);
    // Standard input is the socket: the one descriptor that needs no trick to be passed on.
    command.args(["-o", &options, "--"]).arg(directory).env("_FUSE_COMMFD", "0").stdin(Stdio::from(socket));
    finish(command, directory)
}

/// Has `fusermount3` unmount; `is_lazy` also if it is in use, or dead.
///
/// # Errors
/// If the program is missing or refuses: mostly, because the mount is in use.
pub fn unmount_as_user(directory: &Path, is_lazy: bool) -> Result<(), MountError> {
    let mut command = Command::new(PROGRAM);
    command.arg(if is_lazy { "-uz" } else { "-u" }).arg("--").arg(directory).stdin(Stdio::null());
    finish(command, directory)
}

fn finish(mut command: Command, directory: &Path) -> Result<(), MountError> {
    let failed = |source| MountError::Fusermount { directory: directory.to_owned(), source };
    let output = command.stdout(Stdio::null()).stderr(Stdio::piped()).output();
    let output =
        output.map_err(|error| failed(io::Error::new(error.kind(), format!("cannot run {PROGRAM}: {error}"))))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned())))
}

/// Waits for the device of a mount that [`mount_for_server`] makes.
///
/// # Errors
/// If the other end closes the socket without sending one.
pub fn receive_device(socket: BorrowedFd<'_>) -> Result<OwnedFd, MountError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut bytes = [IoSliceMut::new(&mut byte)];
    let received =
        rustix::io::retry_on_intr(|| rustix::net::recvmsg(socket, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC));
    received.map_err(|error| MountError::Device(error.into()))?;
    let device = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    device.ok_or_else(|| MountError::Device(io::Error::other("fusermount3 sent none")))
}
