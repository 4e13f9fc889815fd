//! What a person types to name an image, in Docker's normal form, and the places that skopeo's prefixes name.
//!
//! Invariant: a [`Reference`] holds only what the grammar of
//! <https://github.com/distribution/reference/blob/main/reference.go> allows, so it is safe in URLs and paths.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use oci_spec::image::Digest;

use crate::error::{Cause, Error};
use crate::secret::without_credentials;

/// An image at a registry: `[registry/]repository[:tag][@digest]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// A place that holds images, as skopeo writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageName {
    /// `docker://REFERENCE`.
    Registry(Reference),
    /// `oci:DIRECTORY[:TAG]`.
    OciLayout {
        /// The layout directory.
        directory: PathBuf,
        /// The name of the image in it.
        tag: Option<String>,
    },
    /// `dir:DIRECTORY`, of one image.
    Directory(PathBuf),
    /// `oci-archive:FILE[:TAG]`.
    OciArchive {
        /// The tar file.
        file: PathBuf,
        /// The name of the image in it.
        tag: Option<String>,
    },
    /// `docker-archive:FILE[:REFERENCE]`.
    DockerArchive {
        /// The tar file.
        file: PathBuf,
        /// The name of the image in it.
        reference: Option<Reference>,
    },
    /// A bare name: the store, which knows it in its own way.
    Store(String),
}

const DOCKER_HUB: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";
/// Repository names are at most this long in Docker's grammar.
const NAME_LIMIT: usize = 255;
/// Those that are.
const TRANSPORTS: &str = "docker://, oci:, oci-archive:, docker-archive: and dir:";
/// skopeo's other prefixes: to be refused by name instead of taken for a repository.
const OTHER_TRANSPORTS: [&str; 7] =
    ["containers-storage", "docker-daemon", "ostree", "sif", "tarball", "atomic", "docker-tar"];

impl Reference {
    /// The registry, `host[:port]`; `docker.io` for Docker Hub.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository at the registry, such as `library/app`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, where one was given or, without a digest, `latest`.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest that pins it.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// As people write it: without Docker Hub's defaults, without `:latest`.
    pub fn familiar(&self) -> String {
        let name = match (self.registry.as_str(), self.repository.strip_prefix("library/")) {
            (DOCKER_HUB, Some(short)) if !short.contains('/') => short.to_owned(),
            (DOCKER_HUB, _) => self.repository.clone(),
            _ => format!("{}/{}", self.registry, self.repository),
        };
        let tag = self.tag.as_deref().filter(|tag| *tag != DEFAULT_TAG || self.digest.is_some());
        let tag = tag.map_or(String::new(), |tag| format!(":{tag}"));
        let digest = self.digest.as_ref().map_or(String::new(), |digest| format!("@{digest}"));
        format!("{name}{tag}{digest}")
    }

    fn parse(text: &str) -> Result<Self, String> {
        if without_credentials(text) != text {
            return Err("a name holds no user and password; `nacre login` keeps them".to_owned());
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(parse_digest(digest)?)),
            None => (text, None),
        };
        // A colon after the last slash begins a tag; one before belongs to a port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(parse_tag(tag)?)),
            _ => (rest, None),
        };
        let (registry, path) = match name.split_once('/') {
            Some((first, rest)) if is_registry(first) => (first, rest),
            _ => (DOCKER_HUB, name),
        };
        let registry = match registry {
            "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB,
            other => other,
        };
        if !is_host(registry) {
            return Err(format!("{registry:?} is not a host name"));
        }
        check_repository(path)?;
        let is_official = registry == DOCKER_HUB && !path.contains('/');
        let repository = if is_official { format!("library/{path}") } else { path.to_owned() };
        if registry.len() + 1 + repository.len() > NAME_LIMIT {
            return Err(format!("the name is longer than {NAME_LIMIT} characters"));
        }
        let tag = tag.or_else(|| digest.is_none().then(|| DEFAULT_TAG.to_owned()));
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text).map_err(|what| Error::new(format!("understand the image name {text:?}"), Cause::Input(what)))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for ImageName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let fail = |what: String| Error::new(format!("understand the image name {text:?}"), Cause::Input(what));
        let Some((transport, rest)) = text.split_once(':') else { return Ok(Self::Store(text.to_owned())) };
        // As skopeo: the path ends at the first colon.
        let path_and_tag = || match rest.split_once(':') {
            Some((path, tag)) => (PathBuf::from(path), Some(tag).filter(|tag| !tag.is_empty())),
            None => (PathBuf::from(rest), None),
        };
        let name = match transport {
            "docker" => {
                let reference = rest.strip_prefix("//").ok_or_else(|| fail("docker: is followed by //".to_owned()))?;
                return Ok(Self::Registry(Reference::parse(reference).map_err(fail)?));
            }
            "oci" => {
                let (directory, tag) = path_and_tag();
                Self::OciLayout { directory, tag: tag.map(str::to_owned) }
            }
            // Colons belong to the path: nothing follows it.
            "dir" if !rest.is_empty() => return Ok(Self::Directory(PathBuf::from(rest))),
            "dir" => return Err(fail("dir: is followed by a path".to_owned())),
            "oci-archive" => {
                let (file, tag) = path_and_tag();
                Self::OciArchive { file, tag: tag.map(str::to_owned) }
            }
            "docker-archive" => {
                let (file, reference) = path_and_tag();
                if reference.is_some_and(|reference| reference.starts_with('@')) {
                    return Err(fail("an image of an archive is named, not numbered".to_owned()));
                }
                Self::DockerArchive { file, reference: reference.map(Reference::parse).transpose().map_err(fail)? }
            }
            other if OTHER_TRANSPORTS.contains(&other) => {
                let way = match other {
                    "docker-daemon" => "; `docker save -o FILE NAME` writes a docker-archive:FILE",
                    "containers-storage" => {
                        "; `podman save --format oci-archive -o FILE NAME` writes an oci-archive:FILE"
                    }
                    _ => "",
                };
                return Err(fail(format!("the transport {other}: is not supported, but {TRANSPORTS} are{way}")));
            }
            _ => return Ok(Self::Store(text.to_owned())),
        };
        if rest.is_empty() || rest.starts_with(':') {
            return Err(fail(format!("{transport}: is followed by a path")));
        }
        if let Self::OciLayout { tag: Some(tag), .. } | Self::OciArchive { tag: Some(tag), .. } = &name
            && tag.starts_with('@')
            && position_of(tag).is_none()
        {
            return Err(fail(format!("{tag} is no number of an image, such as @0")));
        }
        Ok(name)
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tail = |tag: Option<String>| tag.map_or(String::new(), |tag| format!(":{tag}"));
        match self {
            Self::Registry(reference) => write!(f, "docker://{reference}"),
            Self::OciLayout { directory, tag } => write!(f, "oci:{}{}", directory.display(), tail(tag.clone())),
            Self::Directory(path) => write!(f, "dir:{}", path.display()),
            Self::OciArchive { file, tag } => write!(f, "oci-archive:{}{}", file.display(), tail(tag.clone())),
            Self::DockerArchive { file, reference } => {
                let reference = reference.as_ref().map(ToString::to_string);
                write!(f, "docker-archive:{}{}", file.display(), tail(reference))
            }
            Self::Store(name) => f.write_str(name),
        }
    }
}

/// The place of an image in the list of a layout, where it is named by that: `@0` (containers-transports(5)).
pub(crate) fn position_of(tag: &str) -> Option<usize> {
    tag.strip_prefix('@')?.parse().ok()
}

/// Docker's rule: the first part is a registry if it has a dot, a port or an uppercase letter, or is `localhost`.
fn is_registry(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let has_good_port = port.is_none_or(|port| port.parse::<u16>().is_ok() && port.bytes().all(|b| b.is_ascii_digit()));
    let is_ipv6 = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok());
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    has_good_port && (is_ipv6 || host.split('.').all(is_label))
}

fn check_repository(path: &str) -> Result<(), String> {
    if path.is_empty() {
        return Err("the repository is missing".to_owned());
    }
    if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("a repository name is lowercase".to_owned());
    }
    match path.split('/').find(|component| !is_component(component)) {
        Some(component) => Err(format!("{component:?} is not a part of a repository name")),
        None => Ok(()),
    }
}

/// Runs of `[a-z0-9]+` with one of `.`, `_`, `__` or any number of `-` between them.
fn is_component(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    is_word(*first)
        && is_word(*last)
        && text
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-'))
}

fn parse_tag(text: &str) -> Result<String, String> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let is_good = text.len() <= 128
        && text.bytes().next().is_some_and(is_word)
        && text.bytes().all(|byte| is_word(byte) || byte == b'.' || byte == b'-');
    if is_good { Ok(text.to_owned()) } else { Err(format!("{text:?} is not a tag")) }
}

fn parse_digest(text: &str) -> Result<Digest, String> {
    Digest::try_from(text).map_err(|error| format!("{text:?} is not a digest: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn full(text: &str) -> String {
        text.parse::<Reference>().expect("valid").to_string()
    }

    #[test]
    fn short_names_get_dockers_defaults() {
        assert_eq!(full("app"), "docker.io/library/app:latest");
        assert_eq!(full("me/app:1"), "docker.io/me/app:1");
        assert_eq!(full("index.docker.io/app"), "docker.io/library/app:latest");
        assert_eq!(full("localhost/app"), "localhost/app:latest");
        assert_eq!(full("127.0.0.1:5000/a/b:c"), "127.0.0.1:5000/a/b:c");
        assert_eq!(full("[::1]:5000/a"), "[::1]:5000/a:latest");
        assert_eq!(full("app:5000"), "docker.io/library/app:5000");
        assert_eq!(full(&format!("ghcr.io/a/b:t@{DIGEST}")), format!("ghcr.io/a/b:t@{DIGEST}"));
        assert_eq!(full(&format!("app@{DIGEST}")), format!("docker.io/library/app@{DIGEST}"));
    }

    #[test]
    fn familiar_names_are_short_again() {
        for name in ["app", "me/app:1", "ghcr.io/a/b", "localhost:5000/x:y", &format!("app@{DIGEST}")] {
            assert_eq!(name.parse::<Reference>().expect("valid").familiar(), *name);
        }
        assert_eq!("docker.io/library/app:latest".parse::<Reference>().expect("valid").familiar(), "app");
    }

    #[test]
    fn what_docker_refuses_is_refused() {
        let long = "a/".repeat(130) + "a";
        for bad in [
            "",
            ":tag",
            "App",
            "a/B",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a:-x",
            "a@sha256:12",
            "a@",
            "-a",
            "a-",
            "a___b",
            "a..b",
            "http://r/a",
            "r.example:99999/a",
            "r.example:/a",
            "a b",
            "../etc",
            "r.example/../x",
            "a:b:c",
            &long,
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
        for good in ["a--b", "a__b", "a.b_c-d", "a.b/c", "R.example/a"] {
            assert!(good.parse::<Reference>().is_ok(), "{good:?}");
        }
    }

    #[test]
    fn places_are_named_as_skopeo_does() {
        let parse = |text: &str| text.parse::<ImageName>().expect("valid");
        assert_eq!(parse("docker://app").to_string(), "docker://docker.io/library/app:latest");
        let tag = Some("docker.io/library/app:1".to_owned());
        assert_eq!(parse("oci:dir:docker.io/library/app:1"), ImageName::OciLayout { directory: "dir".into(), tag });
        assert_eq!(parse("oci-archive:/x/a.tar"), ImageName::OciArchive { file: "/x/a.tar".into(), tag: None });
        assert_eq!(parse("docker-archive:a.tar:app:2").to_string(), "docker-archive:a.tar:docker.io/library/app:2");
        assert_eq!(parse("app:1"), ImageName::Store("app:1".to_owned()));
        assert_eq!(parse("dir:/x:y"), ImageName::Directory("/x:y".into()));
        for bad in
            ["docker:app", "oci:", "oci::tag", "docker-archive:", "dir:", "sif:/x", "docker://A", "docker-archive:a:@1"]
        {
            assert!(bad.parse::<ImageName>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_fails_and_its_full_form_is_stable(text in "[a-zA-Z0-9./:@_\\[\\]-]{0,40}", wild in ".{0,30}") {
            let _ = wild.parse::<ImageName>();
            if let Ok(reference) = text.parse::<Reference>() {
                let full = reference.to_string();
                prop_assert_eq!(full.parse::<Reference>().expect("its own form"), reference.clone());
                prop_assert_eq!(reference.familiar().parse::<Reference>().expect("its own form"), reference);
            }
        }
    }
}
