//! The build cache: what makes two steps the same step, and what the step made.
//!
//! Invariant: a key is a function of content alone. No name, time, owner or path of this machine
//! goes into it, and no secret.

use layerfs::{DiffId, Store, StoreError};
use serde::{Deserialize, Serialize};

use crate::key::Key;

/// Changes whenever steps of an older version would be carried out differently now, or keys are written otherwise.
const KEY_VERSION: u32 = 4;

/// All that a step's result depends on.
#[derive(Debug)]
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
#[derive(Debug)]
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
#[derive(Debug, Clone)]
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
        let Self { below, platform, epoch, work } = self;
        let key = Key::of("step").value(KEY_VERSION).bytes(below).bytes(platform).list(epoch);
        let named = |key: Key, list: &[NamedContent]| {
            let key = key.value(list.len());
            list.iter().fold(key, |key, NamedContent { name, content }| key.bytes(name).bytes(content))
        };
        let key = match work {
            Work::Run { argv, env, cwd, user, network, security, mounts, sandbox } => {
                let key = key.bytes("run").list(argv).list(env).bytes(cwd).bytes(user).bytes(network).bytes(security);
                named(key, mounts).list(sandbox)
            }
            Work::Files { inputs, options } => named(key.bytes("files"), inputs).list(options),
        };
        key.digest()
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A golden key: whoever changes it gives up everybody's build cache, and raises [`KEY_VERSION`].
    #[test]
    fn steps_have_the_keys_that_they_had() {
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let input = NamedContent { name: "a".to_owned(), content: "sha256:b".to_owned() };
        let run = Work::Run {
            argv: texts(&["/bin/sh", "-c", "make"]),
            env: texts(&["PATH=/bin"]),
            cwd: "/src".to_owned(),
            user: "app".to_owned(),
            network: "default".to_owned(),
            security: "sandbox".to_owned(),
            mounts: vec![input.clone()],
            sandbox: texts(&["shm 5"]),
        };
        let files = Work::Files { inputs: vec![input], options: texts(&["to /x"]) };
        let key = |work, epoch| StepKey { below: "sha256:c", platform: "linux/amd64", epoch, work }.digest();
        assert_eq!(
            [key(&run, Some(7)), key(&files, None)].map(|key| key[..16].to_owned()),
            ["7efa2f16dc796be8", "158987f007483925"]
        );
    }
}
