//! What this host permits: found by trying it, not by reading version numbers.
//!
//! Invariant: nothing that is tried outlives the trial: mounts end, files and processes are removed. A [`Finding`] says
//! what was found, what a lack costs, and what to do about it; it never fails itself.
//!
//! ```text
//! outside   as the caller: devices, programs, ids, interpreters, the file system of the store
//! inside    where builds run, as root of some kind: mounts and the sandbox
//! ```

mod inside;
mod outside;

use serde::{Deserialize, Serialize};

pub use self::inside::inside;
pub use self::outside::outside;

/// Whether something is there, and whether builds need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It works.
    Works,
    /// It does not, and something is slower or missing without.
    Limited,
    /// It does not, and builds cannot work without.
    Missing,
}

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What it is about: a few words.
    pub what: String,
    /// How it went.
    pub state: State,
    /// What was seen.
    pub found: String,
    /// What does not work, or works worse; nothing where it works.
    pub cost: Option<String>,
    /// The next step for whoever wants it.
    pub next: Option<String>,
}

impl Finding {
    /// Something that works.
    #[must_use]
    pub fn works(what: &str, found: impl Into<String>) -> Self {
        Self { what: what.to_owned(), state: State::Works, found: found.into(), cost: None, next: None }
    }

    /// Something that does not, and that builds can do without.
    #[must_use]
    pub fn limited(what: &str, found: impl Into<String>, cost: &str, next: impl Into<String>) -> Self {
        let (what, found, cost, next) = (what.to_owned(), found.into(), Some(cost.to_owned()), Some(next.into()));
        Self { what, state: State::Limited, found, cost, next }
    }

    /// Something that does not, and that builds need.
    #[must_use]
    pub fn missing(what: &str, found: impl Into<String>, cost: &str, next: impl Into<String>) -> Self {
        Self { state: State::Missing, ..Self::limited(what, found, cost, next) }
    }
}
