//! What a build took from elsewhere: images, repositories, files of the web.
//!
//! Invariant: each is noted once, whichever stage took it first, and lists of them are sorted: they do not depend on
//! which stage was faster.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use registry_client::{Platform, Reference};
use serde::Serialize;

/// One thing that a build took.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Material {
    /// Where from.
    pub(crate) uri: String,
    /// What exactly, by the name of a digest's algorithm.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) digest: BTreeMap<String, String>,
}

impl Material {
    pub(crate) fn new(uri: String, algorithm: &str, digest: &str) -> Self {
        Self { uri, digest: BTreeMap::from([(algorithm.to_owned(), digest.to_owned())]) }
    }

    /// A commit, by its id.
    pub(crate) fn commit(uri: String, id: &str) -> Self {
        // https://git-scm.com/docs/hash-function-transition
        Self::new(uri, if id.len() == 64 { "sha256" } else { "sha1" }, id)
    }
}

/// All that a build took.
#[derive(Debug, Default)]
pub(crate) struct Materials(Mutex<BTreeSet<Material>>);

impl Materials {
    pub(crate) fn note(&self, material: Material) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(material);
    }

    /// In the order of their places.
    pub(crate) fn list(&self) -> Vec<Material> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// The package URL of an image, as BuildKit writes it
/// (<https://github.com/package-url/purl-spec/blob/main/types-doc/docker-definition.md>).
pub(crate) fn image_uri(reference: &Reference, platform: &Platform) -> String {
    let familiar = reference.familiar();
    let (name, digest) =
        familiar.split_once('@').map_or((familiar.as_str(), None), |(name, digest)| (name, Some(digest)));
    // A colon before the last slash is that of a port.
    let (name, tag) = match name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) {
        Some((name, tag)) => (name, Some(tag)),
        None => (name, None),
    };
    let version = format!("@{}", escaped(tag.or(digest).unwrap_or("latest")));
    let pinned = digest.filter(|_| tag.is_some()).map(|digest| format!("digest={}&", escaped(digest)));
    let path: Vec<_> = name.split('/').map(escaped).collect();
    format!(
        "pkg:docker/{}{version}?{}platform={}",
        path.join("/"),
        pinned.unwrap_or_default(),
        escaped(&platform.to_string())
    )
}

/// What a package URL has to escape (<https://github.com/package-url/purl-spec/blob/main/docs/how-to-build.md>).
pub(crate) fn escaped(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_~:".contains(&byte);
    text.bytes()
        .map(|byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_have_the_package_urls_that_buildkit_gives_them() {
        let digest = "8914eb54f968791faf6a8638949e480fef81e697984fba772b3976835194c6d4";
        let pinned = format!("alpine:3.17@sha256:{digest}");
        let bare = format!("alpine@sha256:{digest}");
        let cases = [
            ("alpine:3.17", "pkg:docker/alpine@3.17?platform=linux%2Famd64".to_owned()),
            ("alpine", "pkg:docker/alpine@latest?platform=linux%2Famd64".to_owned()),
            ("docker.io/me/app:1", "pkg:docker/me/app@1?platform=linux%2Famd64".to_owned()),
            ("localhost:5000/a/b:v1", "pkg:docker/localhost:5000/a/b@v1?platform=linux%2Famd64".to_owned()),
            (&pinned, format!("pkg:docker/alpine@3.17?digest=sha256:{digest}&platform=linux%2Famd64")),
            (&bare, format!("pkg:docker/alpine@sha256:{digest}?platform=linux%2Famd64")),
        ];
        let platform: Platform = "linux/amd64".parse().expect("a platform");
        for (name, uri) in cases {
            assert_eq!(image_uri(&name.parse().expect("a reference"), &platform), uri);
        }
    }

    #[test]
    fn materials_are_noted_once_and_listed_in_order() {
        let materials = Materials::default();
        for (uri, id) in [("b", "3"), ("a", "1"), ("b", "2"), ("b", "3")] {
            materials.note(Material::commit(uri.to_owned(), id));
        }
        let listed = materials.list();
        let listed: Vec<_> = listed.iter().map(|found| (found.uri.as_str(), found.digest["sha1"].as_str())).collect();
        assert_eq!(listed, [("a", "1"), ("b", "2"), ("b", "3")], "one place may have had two contents");
    }
}
