//! How many files this process may have open, and the steps that it starts.
//!
//! Invariant: a step begins with the limit that this program was started with, which programs take for how far they
//! have to look for open descriptors. Nothing here is about the limits that a user asks for (`sandbox/limits.rs`).

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limit that this process was started with, where it has another one now.
static FOUND: OnceLock<Option<u64>> = OnceLock::new();

/// Raises the limit as far as it goes. Who serves a mount holds every file open that has no name any more: with the
/// usual 1024 one program in the mount could take from all others what they need.
pub(crate) fn raise() {
    FOUND.get_or_init(|| {
        let found = getrlimit(Resource::Nofile);
        // As it was is enough to work with.
        let is_raised = found.current != found.maximum
            && setrlimit(Resource::Nofile, Rlimit { current: found.maximum, ..found }).is_ok();
        found.current.filter(|_| is_raised)
    });
}

/// The limit that a step is to begin with; `None` for that of this process.
pub(crate) fn of_steps() -> Option<u64> {
    FOUND.get().copied().flatten()
}

/// Makes [`of_steps`] of the process that started this one the limit.
pub(crate) fn lower(limit: Option<u64>) {
    let Some(limit) = limit else { return };
    let found = getrlimit(Resource::Nofile);
    // Lowering is always allowed.
    _ = setrlimit(Resource::Nofile, Rlimit { current: Some(limit), ..found });
}
