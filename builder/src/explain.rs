//! Why a step was carried out: the first input that differs from the last build of the same Dockerfile.
//!
//! Invariant: nothing here decides what is built. Inputs are noted as digests, under names that a person reads; values
//! of variables and arguments never reach the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use layerfs::{Store, StoreError, digest_of};
use serde::{Deserialize, Serialize};

use crate::cache::{StepKey, Work};
use crate::listing::{Difference, Listing};

/// The steps of the last build, by their place in the Dockerfile.
pub(crate) struct LastBuild {
    note: String,
    before: BTreeMap<String, Inputs>,
    now: Mutex<BTreeMap<String, Inputs>>,
}

/// The inputs of a step by name, in the order in which a person would look at them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Inputs(Vec<(String, String)>);

const BELOW: &str = "the step before";
const INSTRUCTION: &str = "the instruction";

impl LastBuild {
    /// What is known of the last build of a Dockerfile.
    pub(crate) fn open(store: &Store, dockerfile: &str) -> Result<Self, StoreError> {
        let note = format!("build-{}", digest_of(dockerfile.as_bytes()).digest());
        let before = store.note(&note)?.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Ok(Self { note, before, now: Mutex::default() })
    }

    /// The step at a place was finished, or found, with these inputs.
    pub(crate) fn finished(&self, place: String, inputs: Inputs) {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).insert(place, inputs);
    }

    /// Keeps what was finished for the next build; what was not reached stays as it was.
    pub(crate) fn note(&self, store: &Store) -> Result<(), StoreError> {
        let mut steps = self.before.clone();
        steps.append(&mut self.now.lock().unwrap_or_else(PoisonError::into_inner));
        if steps == self.before {
            return Ok(());
        }
        let contents = |steps: &BTreeMap<String, Inputs>| -> BTreeSet<String> {
            steps.values().flat_map(|inputs| &inputs.0).map(|(_, content)| content.clone()).collect()
        };
        // Or each change of a large context would leave a list of all its files behind.
        for content in contents(&self.before).difference(&contents(&steps)) {
            Listing::forget(store, content)?;
        }
        let bytes = serde_json::to_vec(&steps).expect("texts by text");
        store.put_note(&self.note, &bytes)
    }

    /// Why the step at a place misses, in words.
    pub(crate) fn reason(&self, store: &Store, place: &str, inputs: &Inputs) -> String {
        let Some(before) = self.before.get(place) else {
            return "it is the first build of this step".to_owned();
        };
        match inputs.first_difference(before) {
            None => "no input differs: its result was not finished, or is not in the store any more".to_owned(),
            Some((name, Some(old), Some(new))) => differing_content(store, name, old, new),
            Some((name, None, _)) => format!("{name} is new"),
            Some((name, _, None)) => format!("{name} is gone"),
        }
    }
}

impl Inputs {
    /// What a key is made of.
    pub(crate) fn of(key: &StepKey<'_>, shown: &str) -> Self {
        let mut inputs = Vec::new();
        // Paths are shown as they are; every value as its digest.
        let mut add = |name: String, value: &str| inputs.push((name, digest_of(value.as_bytes()).to_string()));
        add(INSTRUCTION.to_owned(), shown);
        add(BELOW.to_owned(), key.below);
        add("the platform".to_owned(), key.platform);
        add("the time of the layers".to_owned(), &format!("{:?}", key.epoch));
        match key.work {
            Work::Run { argv, env, cwd, user, network, security, mounts, sandbox } => {
                add("the command".to_owned(), &format!("{argv:?}"));
                for entry in env {
                    let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
                    add(format!("the environment variable {name}"), value);
                }
                add("the working directory".to_owned(), cwd);
                add("the user".to_owned(), user);
                add("the network".to_owned(), network);
                add("the security mode".to_owned(), security);
                add("the sandbox".to_owned(), &format!("{sandbox:?}"));
                inputs.extend(mounts.iter().map(|mount| (mount.name.clone(), mount.content.clone())));
            }
            Work::Files { inputs: files, options } => {
                add("an option of the instruction".to_owned(), &format!("{options:?}"));
                inputs.extend(files.iter().map(|file| (file.name.clone(), file.content.clone())));
            }
        }
        Self(inputs)
    }

    /// The first input that an earlier list has not, or has otherwise, with its old and its new content.
    fn first_difference<'i>(&'i self, before: &'i Self) -> Option<(&'i str, Option<&'i str>, Option<&'i str>)> {
        let find = |list: &'i Self, name: &str| list.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
        let changed = self.0.iter().find_map(|(name, new)| {
            let old = find(before, name);
            (old != Some(new.as_str())).then_some((name.as_str(), old, Some(new.as_str())))
        });
        let gone = || before.0.iter().find(|(name, _)| find(self, name).is_none());
        changed.or_else(|| gone().map(|(name, old)| (name.as_str(), Some(old.as_str()), None)))
    }
}

fn differing_content(store: &Store, name: &str, old: &str, new: &str) -> String {
    if name == BELOW {
        return "the step before gave other bytes".to_owned();
    }
    let listing = |digest| Listing::find(store, digest).ok().flatten();
    let difference = listing(new).zip(listing(old)).and_then(|(new, old)| new.first_difference(&old));
    let at = |path: &[u8]| match (name, path) {
        (_, b"") => name.to_owned(),
        ("." | "/", path) => path.escape_ascii().to_string(),
        (name, path) => format!("{}/{}", name.trim_end_matches('/'), path.escape_ascii()),
    };
    match difference {
        Some(Difference::Changed(path)) => format!("{} changed", at(&path)),
        Some(Difference::New(path)) => format!("{} is new", at(&path)),
        Some(Difference::Gone(path)) => format!("{} is gone", at(&path)),
        None => format!("{name} changed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(list: &[(&str, &str)]) -> Inputs {
        Inputs(list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn the_first_input_that_differs_is_named_with_what_became_of_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("a store");
        let first = LastBuild::open(&store, "Dockerfile").expect("readable");
        let old = inputs(&[(BELOW, "1"), ("src", "2"), ("the user", "3")]);
        assert_eq!(first.reason(&store, "a", &old), "it is the first build of this step");
        first.finished("a".to_owned(), old.clone());
        first.note(&store).expect("written");
        let last = LastBuild::open(&store, "Dockerfile").expect("readable");
        let reason = |list: &[(&str, &str)]| last.reason(&store, "a", &inputs(list));
        assert_eq!(reason(&[(BELOW, "4"), ("src", "5"), ("the user", "3")]), "the step before gave other bytes");
        assert_eq!(reason(&[(BELOW, "1"), ("src", "5"), ("the user", "6")]), "src changed");
        assert_eq!(reason(&[(BELOW, "1"), ("src", "2")]), "the user is gone");
        assert_eq!(reason(&[(BELOW, "1"), ("src", "2"), ("the user", "3"), ("x", "1")]), "x is new");
        assert!(last.reason(&store, "a", &old).starts_with("no input differs"));
    }
}
