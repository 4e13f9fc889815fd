//! containers' `registries.d`: at which store the GPG signatures of a repository lie
//! (<https://github.com/containers/image/blob/main/docs/containers-registries.d.5.md>).
//!
//! Invariant: a key that is not known is an error, never ignored. It says where; what lies there is [`super::lookaside`]'s.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;

use serde::Deserialize;

use super::identity::Name;
use super::yaml;
use crate::error::{Cause, Error};

const DOING: &str = "read the settings of signature stores";

/// What the files of a directory say together.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct RegistriesD {
    default_docker: Option<Stores>,
    /// By scope: a name, a repository, or what these are in.
    #[serde(default)]
    docker: Option<BTreeMap<String, Stores>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Stores {
    lookaside: Option<String>,
    lookaside_staging: Option<String>,
    // Their names of before.
    sigstore: Option<String>,
    sigstore_staging: Option<String>,
    // Whether cosign's are looked for: here they are where a policy demands them.
    #[serde(rename = "use-sigstore-attachments")]
    _use_sigstore_attachments: Option<bool>,
}

/// What is to be done with a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Read,
    Write,
}

impl RegistriesD {
    /// Reads the `*.yaml` files of a directory; where there is none, they say nothing.
    pub(super) fn load(directory: &Path) -> Result<Self, Error> {
        let entries = match std::fs::read_dir(directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            entries => entries.and_then(Iterator::collect::<Result<Vec<_>, _>>),
        };
        let entries = entries.map_err(|error| Error::disk(DOING, directory, error))?;
        let mut files: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
        files.sort();
        let mut all = Self::default();
        for file in files {
            let text = std::fs::read_to_string(&file).map_err(|error| Error::disk(DOING, &file, error))?;
            let added = Self::parse(&text).and_then(|one| all.add(one));
            added.map_err(|what| Error::local(DOING, Cause::Input(format!("{}: {what}", file.display()))))?;
        }
        Ok(all)
    }

    fn parse(text: &str) -> Result<Self, String> {
        match yaml::parse(text)? {
            serde_json::Value::Null => Ok(Self::default()),
            document => serde_json::from_value(document).map_err(|error| error.to_string()),
        }
    }

    /// Two files that speak of the same are an error: which one counts would be chance.
    fn add(&mut self, other: Self) -> Result<(), String> {
        if self.default_docker.is_some() && other.default_docker.is_some() {
            return Err("default-docker is in another file too".to_owned());
        }
        self.default_docker = self.default_docker.take().or(other.default_docker);
        for (scope, stores) in other.docker.unwrap_or_default() {
            match self.docker.get_or_insert_default().entry(scope) {
                Entry::Occupied(there) => return Err(format!("{:?} is in another file too", there.key())),
                Entry::Vacant(free) => free.insert(stores),
            };
        }
        Ok(())
    }

    /// The store for a name as it is written: of the narrowest scope that names one.
    pub(super) fn store(&self, name: &Name, wanted: Use) -> Option<&str> {
        let scopes = name.scopes();
        let docker = self.docker.as_ref();
        let scoped = scopes.iter().filter_map(|scope| docker?.get(scope));
        scoped.chain(&self.default_docker).find_map(|stores| stores.of(wanted))
    }
}

impl Stores {
    fn of(&self, wanted: Use) -> Option<&str> {
        let staging =
            [&self.lookaside_staging, &self.sigstore_staging].map(|one| one.as_ref().filter(|_| wanted == Use::Write));
        let [first, second] = staging;
        let in_order = [first, second, self.lookaside.as_ref(), self.sigstore.as_ref()];
        in_order.into_iter().flatten().map(String::as_str).find(|store| !store.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store<'a>(settings: &'a RegistriesD, name: &str, wanted: Use) -> Option<&'a str> {
        settings.store(&Name::of(&name.parse().expect("a reference")), wanted)
    }

    #[test]
    fn the_narrowest_scope_that_names_a_store_counts() {
        let settings = RegistriesD::parse(
            "default-docker:\n  sigstore: file:///usual\n  lookaside-staging: file:///usual-staging\n\
             docker:\n  r.example:\n    lookaside: https://r\n    sigstore: https://old\n\
             \x20 r.example/team: {sigstore-staging: file:///team}\n\
             \x20 r.example/team/app:1: {lookaside: https://one, use-sigstore-attachments: true}\n  '*.wild.example': {lookaside: https://wild}\n",
        )
        .expect("settings");
        for (name, read, write) in [
            ("app", "file:///usual", "file:///usual-staging"),
            ("r.example/x", "https://r", "https://r"),
            ("r.example/team/other", "https://r", "file:///team"),
            ("r.example/team/app:1", "https://one", "https://one"),
            ("a.wild.example:5000/app", "https://wild", "https://wild"),
        ] {
            assert_eq!(
                (store(&settings, name, Use::Read), store(&settings, name, Use::Write)),
                (Some(read), Some(write)),
                "{name}"
            );
        }
        assert_eq!(store(&RegistriesD::parse("docker: {}\n").expect("settings"), "app", Use::Read), None);
        assert_eq!(store(&RegistriesD::parse("docker:\n").expect("settings"), "app", Use::Write), None);
    }

    #[test]
    fn what_is_not_understood_or_said_twice_is_an_error_that_names_its_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).expect("written");
        let fails = |words: &str| {
            let error = RegistriesD::load(directory.path()).expect_err(words).to_string();
            assert!(error.contains("b.yaml: ") && error.contains(words), "{error}");
        };
        write("ignored.yml", "[");
        write("a.yaml", "docker: {r.example: {lookaside: https://r}}\ndefault-docker: {lookaside: https://r}\n");
        assert!(RegistriesD::load(directory.path()).is_ok());
        for (text, words) in [
            ("docker: {r.example: {lookaside: https://other}}", "\"r.example\" is in another file too"),
            ("default-docker: {}", "default-docker is in another file too"),
            ("docker: {x: {look-aside: https://r}}", "look-aside"),
            ("more: 1", "more"),
            ("docker: [1]", "sequence"),
            ("a: b: c", "line 1"),
        ] {
            write("b.yaml", text);
            fails(words);
        }
        assert!(RegistriesD::load(&directory.path().join("none")).is_ok());
        assert!(RegistriesD::load(&directory.path().join("a.yaml")).is_err());
    }
}
