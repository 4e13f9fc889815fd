//! The kernel's side of a mount: its requests become calls of a [`Union`](crate::union::Union), its errnos become
//! replies.
//!
//! Invariant: what the kernel sends is bytes until [`request`] has made requests of them, and nothing behind
//! [`dispatch`] knows of FUSE. Nothing here mounts.
//!
//! ```text
//! channel     the device: one request in, one reply out
//! request     requests from bytes
//! reply       replies to bytes
//! dispatch    a request to a call of the union, its result to a reply; what the kernel may cache
//! lower       the same for a tree alone, under a kernel overlay
//! session     the first handshake, and the threads that read and answer
//! turns       which of these threads read, and which sleep
//! unsent      what the kernel holds of a file is asked for
//! ahead       small files of a tree alone are given before they are asked for
//! ```
//!
//! To add a request: its number, its `Operation` and its layout in [`request`] (the functions there pass on what they
//! do not know; what the last one does not know is answered ENOSYS, which the kernel remembers); whether it waits for
//! the disk (`Operation::waits`); its answer in [`dispatch`], and in [`lower`] if it reads; the flag that allows it, if
//! it has one, in `agree` of both. What it does is a function of the union, whose order is: names of the directory,
//! copy-up of the directory and the file, the one change on the disk, then names and links in memory, which cannot
//! fail.

mod ahead;
mod channel;
mod dispatch;
mod lower;
mod reply;
mod request;
mod session;
mod turns;
mod unsent;

pub(crate) use self::{
    dispatch::Served,
    lower::Lower,
    session::{Server, Session},
};
