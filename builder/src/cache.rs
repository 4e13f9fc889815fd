//! The build cache: what makes two steps the same step, and what the step made.
//!
//! Invariant: a key is a function of content alone. No name, time, owner or path of this machine
//! goes into it, and no secret.

use layerfs::{DiffId, Store, StoreError, digest_of};
use serde::{Deserialize, Serialize};

/// Changes whenever steps of an older version would be carried out differently now.
const KEY_VERSION: u32 = 3;

/// All that a step's result depends on.
#[derive(Debug, Serialize)]
pub(crate) struct StepKey<'a> {
    /// The stack that it begins with; empty for nothing.
    pub(crate) below: &'a str,
    /// `os/architecture[/variant]`.
    pub(crate) platform: &'a str,
    /// The newest time in the layer.
    pub(crate) epoch: Option<i64>,
    /// What it does.
    pub(crate) work: &'a Work,
}

/// The work of a step, with everything expanded and every input named by its content.
#[derive(Debug, Serialize)]
pub(crate) enum Work {
    /// RUN.
    Run {
        argv: Vec<String>,
        env: Vec<String>,
        cwd: String,
        user: String,
        network: String,
        security: String,
        /// Each `--mount` with what it shows.
        mounts: Vec<NamedContent>,
        /// Anything else of the sandbox that a process can see.
        sandbox: Vec<String>,
    },
    /// COPY, ADD and WORKDIR: what is put, and how.
    Files { inputs: Vec<NamedContent>, options: Vec<String> },
}

/// An input of a step: what the instruction calls it, and what names its content.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct NamedContent {
    pub(crate) name: String,
    pub(crate) content: String,
}

/// What a step made.
#[derive(Debug, Serialize, Deserialize)]
struct StepRecord {
    diff_id: DiffId,
}

impl StepKey<'_> {
    /// The key as the store takes it.
    pub(crate) fn digest(&self) -> String {
        let bytes = serde_json::to_vec(&(KEY_VERSION, self)).expect("a key has no maps with other keys than strings");
        digest_of(&bytes).digest().to_owned()
    }
}

/// The layer that an equal step made before, if it is still there.
pub(crate) fn find(store: &Store, key: &str) -> Result<Option<DiffId>, StoreError> {
    let Some(StepRecord { diff_id }) = store.step(key)? else { return Ok(None) };
    Ok(store.has_layer(&diff_id)?.then_some(diff_id))
}

/// Records what a step made.
pub(crate) fn record(store: &Store, key: &str, diff_id: DiffId) -> Result<(), StoreError> {
    store.put_step(key, &StepRecord { diff_id })
}
