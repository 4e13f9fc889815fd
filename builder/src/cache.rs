//! The build cache: what makes two steps the same step, and what the step made.
//!
//! Invariant: a key is a function of content alone. No name, time, owner or path of this machine
//! goes into it, and no secret.

use layerfs::{Layer, Store, StoreError, digest_of};
use oci_spec::image::Descriptor;
use serde::{Deserialize, Serialize};

/// Changes whenever steps of an older version would be carried out differently now.
const KEY_VERSION: u32 = 1;

/// All that a step's result depends on.
#[derive(Debug, Serialize)]
pub(crate) struct StepKey<'a, W> {
    /// The stack that it begins with; empty for nothing.
    pub(crate) below: &'a str,
    /// `os/architecture[/variant]`.
    pub(crate) platform: &'a str,
    /// The newest time in the layer.
    pub(crate) epoch: Option<i64>,
    /// What it does: a [`Work`], or its JSON.
    pub(crate) work: W,
}

/// The work of a step, with everything expanded and every input named by its content.
#[derive(Debug, Serialize)]
pub(crate) enum Work<'a> {
    /// RUN.
    Run {
        argv: &'a [String],
        env: &'a [String],
        cwd: &'a str,
        user: &'a str,
        network: String,
        security: String,
        /// Each `--mount` with what it shows.
        mounts: Vec<String>,
        /// Anything else of the sandbox that a process can see.
        sandbox: Vec<String>,
    },
    /// COPY, ADD and WORKDIR: the digests of what is put, and how.
    Files { inputs: Vec<String>, options: Vec<String> },
}

/// What a step made.
#[derive(Debug, Serialize, Deserialize)]
struct StepRecord {
    diff_id: String,
    descriptor: Descriptor,
}

impl<W: Serialize> StepKey<'_, W> {
    /// The key as the store takes it.
    pub(crate) fn digest(&self) -> String {
        let bytes = serde_json::to_vec(&(KEY_VERSION, self)).expect("a key has no maps with other keys than strings");
        digest_of(&bytes).digest().to_owned()
    }
}

/// The layer that an equal step made before, if it is still there.
pub(crate) fn find(store: &Store, key: &str) -> Result<Option<Layer>, StoreError> {
    let Some(StepRecord { diff_id, descriptor }) = store.step(key)? else { return Ok(None) };
    let found = store.layer_of_blob(descriptor.digest())?;
    Ok(found.filter(|layer| layer.diff_id.to_string() == diff_id).map(|layer| Layer { descriptor, ..layer }))
}

/// Records what a step made.
pub(crate) fn record(store: &Store, key: &str, layer: &Layer) -> Result<(), StoreError> {
    let record = StepRecord { diff_id: layer.diff_id.to_string(), descriptor: layer.descriptor.clone() };
    store.put_step(key, &record)
}
