//! The kernel's side of a mount: its requests become calls of a [`Union`](crate::union::Union), its errnos become replies.
//!
//! Invariant: what the kernel sends is bytes until [`request`] has made requests of them, and nothing behind [`dispatch`]
//! knows of FUSE. Nothing here mounts.
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
//! ```

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
