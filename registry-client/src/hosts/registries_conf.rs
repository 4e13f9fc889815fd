//! containers' `registries.conf`, version 2
//! (<https://github.com/containers/image/blob/main/docs/containers-registries.conf.5.md>).
//!
//! Invariant: a key that is not known is an error, never ignored; short names are Docker's, whatever the file says of
//! them.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Cause, Error};

/// What the files say of registries and repositories.
#[derive(Debug, Clone, Default)]
pub(crate) struct RegistriesConf {
    registries: Vec<Registry>,
}

/// Where a repository really lies, and what may be asked before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Located {
    pub(crate) mirrors: Vec<Location>,
    pub(crate) location: Location,
}

/// A repository at a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) registry: String,
    pub(crate) repository: String,
    /// Plain http and any certificate will do.
    pub(crate) is_insecure: bool,
    pub(crate) takes: Takes,
}

/// For which references a mirror is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Takes {
    #[default]
    All,
    DigestOnly,
    TagOnly,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct File {
    #[serde(default)]
    registry: Vec<Registry>,
    /// Where credentials are: in the files that the caller names, so only that answer is understood.
    credential_helpers: Option<Vec<String>>,
    // What follows is about short names, which are Docker's here, and about layer stores, of which there are none:
    // known, and of no meaning.
    #[serde(rename = "unqualified-search-registries")]
    _search: Option<toml::Value>,
    #[serde(rename = "short-name-mode")]
    _short_name_mode: Option<toml::Value>,
    #[serde(rename = "aliases")]
    _aliases: Option<toml::Value>,
    #[serde(rename = "additional-layer-store-auth-helper")]
    _layer_store_helper: Option<toml::Value>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Registry {
    prefix: Option<String>,
    location: Option<String>,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<Mirror>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Mirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    pull_from_mirror: Option<Takes>,
}

impl RegistriesConf {
    /// Reads files, and the `*.conf` files of directories in alphabetical order; what comes later replaces what came
    /// before with the same prefix. What does not exist is empty.
    pub(crate) fn load(paths: &[PathBuf]) -> Result<Self, Error> {
        let mut all = Self::default();
        for path in paths {
            if path.is_dir() {
                let entries = std::fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
                let entries = entries.map_err(|error| Error::disk("list the registries' settings", path, error))?;
                let mut files: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
                files.retain(|file| file.extension().is_some_and(|extension| extension == "conf"));
                files.sort();
                files.iter().try_for_each(|file| all.add(file))?;
            } else {
                all.add(path)?;
            }
        }
        Ok(all)
    }

    fn add(&mut self, path: &Path) -> Result<(), Error> {
        match super::read_optional(path)? {
            Some(text) => self.add_text(path, &text),
            None => Ok(()),
        }
    }

    fn add_text(&mut self, path: &Path, text: &str) -> Result<(), Error> {
        let wrong = |what: String| {
            Error::local("read the registries' settings", Cause::Input(format!("{}: {what}", path.display())))
        };
        let file: File = toml::from_str(text).map_err(|error| wrong(super::words_of(&error, text)))?;
        let helpers = file.credential_helpers.unwrap_or_default();
        if let Some(helper) = helpers.iter().find(|helper| *helper != "containers-auth.json") {
            return Err(wrong(format!("the credential helper {helper:?} is not supported here; name it in auth.json")));
        }
        for registry in file.registry {
            let prefix = registry.prefix.as_deref().or(registry.location.as_deref()).unwrap_or_default();
            if prefix.is_empty() {
                return Err(wrong("a registry has neither prefix nor location".to_owned()));
            }
            if prefix.starts_with("*.") && prefix.contains(['/', ':', '@']) {
                return Err(wrong(format!("the prefix {prefix:?} mixes a wildcard and a port, path or digest")));
            }
            let last = prefix.split_once('/').map_or("", |(_, path)| path);
            if last.contains([':', '@']) {
                return Err(wrong(format!("the prefix {prefix:?} has a tag or digest, which is not supported")));
            }
            self.registries.retain(|known| known.prefix() != prefix);
            self.registries.push(registry);
        }
        Ok(())
    }

    /// Where a repository lies; by the registry with the longest prefix that it begins with.
    pub(crate) fn locate(&self, registry: &str, repository: &str) -> Result<Located, Cause> {
        let name = format!("{registry}/{repository}");
        let found = self.registries.iter().filter_map(|known| Some((known.matches(&name)?, known)));
        // By what is written: a host that is named outweighs a wildcard that it fits.
        let found = found.max_by_key(|(_, known)| known.prefix().len());
        let here = Location {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            is_insecure: false,
            takes: Takes::All,
        };
        let Some((length, found)) = found else {
            return Ok(Located { mirrors: Vec::new(), location: here });
        };
        if found.blocked {
            return Err(Cause::Input(format!("registries.conf blocks {}", found.prefix())));
        }
        let rest = &name[length..];
        let mirrors = found.mirror.iter().map(|mirror| {
            let takes = if found.mirror_by_digest_only { Takes::DigestOnly } else { Takes::All };
            rewritten(&mirror.location, rest, mirror.insecure, mirror.pull_from_mirror.unwrap_or(takes))
        });
        let location = match &found.location {
            Some(location) => rewritten(location, rest, found.insecure, Takes::All)?,
            None => Location { is_insecure: found.insecure, ..here },
        };
        Ok(Located { mirrors: mirrors.collect::<Result<_, _>>()?, location })
    }
}

impl Registry {
    fn prefix(&self) -> &str {
        self.prefix.as_deref().or(self.location.as_deref()).unwrap_or_default()
    }

    /// How many characters of a name its prefix stands for, if the name begins with it.
    fn matches(&self, name: &str) -> Option<usize> {
        let prefix = self.prefix();
        if let Some(domain) = prefix.strip_prefix('*') {
            // The port goes on behind the location.
            let host = name.split(['/', ':']).next().unwrap_or_default();
            return host.ends_with(domain).then_some(host.len());
        }
        let rest = name.strip_prefix(prefix)?;
        (rest.is_empty() || rest.starts_with('/')).then_some(prefix.len())
    }
}

/// A name whose begin is replaced by `location`.
fn rewritten(location: &str, rest: &str, is_insecure: bool, takes: Takes) -> Result<Location, Cause> {
    let name = format!("{}{rest}", location.trim_end_matches('/'));
    let Some((registry, repository)) = name.split_once('/') else {
        return Err(Cause::Input(format!("registries.conf leads to {name:?}, which is no repository")));
    };
    let reference: crate::Reference = format!("{registry}/{repository}")
        .parse()
        .map_err(|_| Cause::Input(format!("registries.conf leads to {name:?}, which is no repository")))?;
    let (registry, repository) = (reference.registry().to_owned(), reference.repository().to_owned());
    Ok(Location { registry, repository, is_insecure, takes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<RegistriesConf, Error> {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("registries.conf");
        std::fs::write(&file, text).expect("written");
        RegistriesConf::load(&[file])
    }

    fn located(text: &str, name: &str) -> Located {
        let (registry, repository) = name.split_once('/').expect("a name");
        load(text).expect("valid").locate(registry, repository).expect("located")
    }

    fn show(location: &Location) -> String {
        format!("{}/{}", location.registry, location.repository)
    }

    #[test]
    fn the_longest_prefix_rewrites_a_name() {
        let text = r#"
            unqualified-search-registries = ["example.com"]
            [[registry]]
            location = "example.com"
            [[registry]]
            prefix = "example.com/foo"
            location = "internal.example:5000/bar/baz"
            insecure = true
            [[registry.mirror]]
            location = "mirror.example/x"
            pull-from-mirror = "digest-only"
            "#;
        let found = located(text, "example.com/foo/image");
        assert_eq!(show(&found.location), "internal.example:5000/bar/baz/image");
        assert!(found.location.is_insecure);
        assert_eq!(show(&found.mirrors[0]), "mirror.example/x/image");
        assert_eq!((found.mirrors[0].takes, found.mirrors[0].is_insecure), (Takes::DigestOnly, false));
        assert_eq!(show(&located(text, "example.com/foobar").location), "example.com/foobar");
        assert_eq!(show(&located(text, "other.example/a").location), "other.example/a");
    }

    #[test]
    fn docker_hub_is_known_by_its_short_name() {
        let text = "[[registry]]\nprefix = \"docker.io\"\n[[registry.mirror]]\nlocation = \"mirror.example/hub\"";
        let found = located(text, "docker.io/library/alpine");
        assert_eq!(show(&found.mirrors[0]), "mirror.example/hub/library/alpine");
        assert_eq!(show(&found.location), "docker.io/library/alpine");
    }

    #[test]
    fn wildcards_stand_for_subdomains() {
        let text = "[[registry]]\nprefix = \"*.example.com\"\nblocked = true";
        let conf = load(text).expect("valid");
        assert!(conf.locate("a.b.example.com:5000", "x").is_err());
        assert!(conf.locate("example.com", "x").is_ok());
    }

    #[test]
    fn a_host_outweighs_a_wildcard_wherever_they_stand_and_a_port_stays() {
        let wildcard = "[[registry]]\nprefix = \"*.example.com\"\nlocation = \"mirror.example/all\"\n";
        let host = "[[registry]]\nprefix = \"long.name.example.com\"\nlocation = \"own.example\"\n";
        for text in [format!("{wildcard}{host}"), format!("{host}{wildcard}")] {
            assert_eq!(show(&located(&text, "long.name.example.com/a").location), "own.example/a");
            assert_eq!(show(&located(&text, "x.example.com/a").location), "mirror.example/all/a");
        }
        let text = "[[registry]]\nprefix = \"*.example.com\"\nlocation = \"mirror.example\"\n";
        assert_eq!(show(&located(text, "x.example.com:5000/a").location), "mirror.example:5000/a");
        for prefix in ["example.com/a:1", "example.com/a@sha256:0", "*.example.com:5000", "*.example.com/a"] {
            assert!(load(&format!("[[registry]]\nprefix = \"{prefix}\"\nblocked = true")).is_err(), "{prefix}");
        }
        assert!(load("[[registry]]\nprefix = \"example.com:5000/a\"\nblocked = true").is_ok());
    }

    #[test]
    fn what_is_blocked_or_not_understood_is_an_error_that_says_so() {
        let blocked = load("[[registry]]\nlocation = \"bad.example\"\nblocked = true").expect("valid");
        assert!(blocked.locate("bad.example", "a").unwrap_err().to_string().contains("blocks bad.example"));
        for text in [
            "[registries.search]\nregistries = []",
            "[[registry]]\ninsecure = true",
            "[[registry]",
            "x = 1",
            "credential-helpers = [\"pass\"]",
        ] {
            let error = load(text).expect_err(text).to_string();
            assert!(error.contains("registries.conf"), "{error}");
        }
        assert!(RegistriesConf::load(&["/nonexistent/registries.conf".into()]).is_ok());
    }

    #[test]
    fn later_files_replace_what_earlier_ones_say_of_the_same_prefix() {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |name: &str, location: &str| {
            let text = format!("[[registry]]\nprefix = \"a.example\"\nlocation = \"{location}\"");
            std::fs::write(directory.path().join(name), text).expect("written");
        };
        write("2.conf", "two.example");
        write("1.conf", "one.example");
        write("3.ignored", "three.example");
        let conf = RegistriesConf::load(&[directory.path().to_owned()]).expect("valid");
        assert_eq!(show(&conf.locate("a.example", "x").expect("located").location), "two.example/x");
    }

    #[test]
    fn files_that_are_almost_right_are_read_without_panic() {
        let seeds = [
            "unqualified-search-registries = [\"example.com\"]\n[[registry]]\nprefix = \"*.example.com\"\nblocked = true",
            "[[registry]]\nprefix = \"a.b/c\"\nlocation = \"d.e:5000/f\"\ninsecure = true\n[[registry.mirror]]\nlocation = \"m.n\"\npull-from-mirror = \"tag-only\"",
        ];
        let mut located = 0;
        for text in crate::mutations::mutations(&seeds, 3_000) {
            let mut conf = RegistriesConf::default();
            if conf.add_text(Path::new("registries.conf"), &text).is_ok() {
                located += usize::from(conf.locate("a.b", "c/d").is_ok());
            }
        }
        assert!(located > 10, "the mutations go deep: {located}");
    }
}
