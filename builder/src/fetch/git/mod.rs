//! Git repositories as sources of files.
//!
//! Invariant: git runs as a process of its own with a clean environment (`command`); what comes of it depends on the
//! commit alone (`checkout`). Not here: keeping a checkout, which is a layer of the store (`fetched`).

mod checkout;
mod command;
mod url;

pub(crate) use checkout::{Resolved, check_out, make_repeatable, resolve};
pub(crate) use command::{Git, GitAccess};
pub use url::{GitReference, GitUrlError};
pub(crate) use url::{redacted, without_passwords};
