//! Under which name an image must be signed
//! (<https://github.com/containers/image/blob/main/docs/containers-policy.json.5.md#sigstoresigned>).
//!
//! Invariant: a name is compared in its full form, `docker.io/library/app`, and a tag is never made up: a name without
//! tag is another one than that with `:latest`.

use serde::Deserialize;

use crate::error::{Cause, Error};
use crate::reference::Reference;

/// A name in its full form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    /// Registry and repository.
    pub(super) repository: String,
    /// The digest or, without one, the tag, with the sign that is before it. Beside a digest a tag says nothing of the
    /// image: podman drops it too.
    pub(super) tail: String,
}

impl Name {
    /// The name of an image that is asked for, which is never without a tag or digest.
    pub(super) fn of(reference: &Reference) -> Self {
        let digest = reference.digest().map(|digest| format!("@{digest}"));
        let tag = || reference.tag().map(|tag| format!(":{tag}"));
        let repository = format!("{}/{}", reference.registry(), reference.repository());
        Self { repository, tail: digest.or_else(tag).unwrap_or_default() }
    }

    /// A name as somebody wrote it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let reference: Reference = text.parse().map_err(|error: crate::Error| error.cause().to_string())?;
        let name = Self::of(&reference);
        let is_bare = reference.digest().is_none() && !text.ends_with(&name.tail);
        Ok(if is_bare { Self { tail: String::new(), ..name } } else { name })
    }

    /// The scopes that it is in, as settings name them, the narrowest first: itself, the repository and what that is
    /// in, the registry, and its domains with a wildcard.
    pub(super) fn scopes(&self) -> Vec<String> {
        let mut scopes = vec![format!("{}{}", self.repository, self.tail)];
        let mut rest = self.repository.as_str();
        scopes.push(rest.to_owned());
        while let Some((before, _)) = rest.rsplit_once('/') {
            scopes.push(before.to_owned());
            rest = before;
        }
        let mut host = rest.split(':').next().unwrap_or_default();
        while let Some((_, domain)) = host.split_once('.') {
            scopes.push(format!("*.{domain}"));
            host = domain;
        }
        scopes
    }

    fn is_pinned(&self) -> bool {
        self.tail.starts_with('@')
    }
}

/// How the name that was signed and the one that is asked for must agree.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum SignedIdentity {
    /// Wholly.
    MatchExact {},
    /// Wholly, or in the repository where a digest is asked for.
    MatchRepoDigestOrExact {},
    /// In the repository.
    MatchRepository {},
    /// The signed one is this one, whatever is asked for.
    ExactReference {
        /// A name with a tag or digest.
        docker_reference: String,
    },
    /// The signed one is of this repository, whatever is asked for.
    ExactRepository {
        /// A name; its tag does not count.
        docker_repository: String,
    },
    /// As by `matchRepoDigestOrExact`, after the beginning of the name that is asked for was replaced.
    RemapIdentity {
        /// A registry, or one with the beginning of repositories.
        prefix: String,
        /// What it is replaced with.
        signed_prefix: String,
    },
}

impl SignedIdentity {
    /// That what was signed is this name or, where it has neither tag nor digest, any of that repository.
    ///
    /// # Errors
    /// If it is no name.
    pub fn exactly(name: &str) -> Result<Self, Error> {
        let parsed = Name::parse(name).map_err(|what| Error::local("check signatures", Cause::Input(what)))?;
        Ok(match parsed.tail.is_empty() {
            true => Self::ExactRepository { docker_repository: name.to_owned() },
            false => Self::ExactReference { docker_reference: name.to_owned() },
        })
    }

    /// Whether it is well formed.
    pub(super) fn check(&self) -> Result<(), String> {
        match self {
            Self::ExactReference { docker_reference } => match Name::parse(docker_reference)?.tail.as_str() {
                "" => Err(format!("dockerReference {docker_reference:?} has neither tag nor digest")),
                _ => Ok(()),
            },
            Self::ExactRepository { docker_repository } => Name::parse(docker_repository).map(drop),
            Self::RemapIdentity { prefix, signed_prefix } => {
                for prefix in [prefix, signed_prefix] {
                    // With more parts it must be a repository at that registry; two, since Docker Hub's of one are
                    // in library/.
                    let name = Name::parse(&format!("{prefix}/part/part"))?;
                    let is_whole = name.repository == format!("{prefix}/part/part") && name.tail.is_empty();
                    is_whole.then_some(()).ok_or_else(|| format!("{prefix:?} is no beginning of full names"))?;
                }
                Ok(())
            }
            Self::MatchExact {} | Self::MatchRepoDigestOrExact {} | Self::MatchRepository {} => Ok(()),
        }
    }

    /// Whether a signature of `signed` counts for `asked`, which is `None` for a place whose images have no name.
    pub(super) fn accepts(&self, asked: Option<&Name>, signed: &str) -> bool {
        let Ok(signed) = Name::parse(signed) else { return false };
        let same = |wanted: &Name| !wanted.tail.is_empty() && *wanted == signed;
        let same_or_pinned = |asked: &Name| match asked.is_pinned() {
            // The digest that was signed is compared with the image anyway.
            true => !signed.tail.is_empty() && asked.repository == signed.repository,
            false => same(asked),
        };
        match self {
            Self::MatchExact {} => asked.is_some_and(same),
            Self::MatchRepoDigestOrExact {} => asked.is_some_and(same_or_pinned),
            Self::MatchRepository {} => asked.is_some_and(|asked| asked.repository == signed.repository),
            Self::ExactReference { docker_reference } => Name::parse(docker_reference).is_ok_and(|name| same(&name)),
            Self::ExactRepository { docker_repository } => {
                Name::parse(docker_repository).is_ok_and(|name| name.repository == signed.repository)
            }
            Self::RemapIdentity { prefix, signed_prefix } => asked.is_some_and(|asked| {
                let rest = asked.repository.strip_prefix(prefix.as_str());
                let rest = rest.filter(|rest| rest.is_empty() || rest.starts_with('/'));
                let repository = rest.map_or(asked.repository.clone(), |rest| format!("{signed_prefix}{rest}"));
                same_or_pinned(&Name { repository, tail: asked.tail.clone() })
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const OTHER: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

    fn identity(json: &str) -> SignedIdentity {
        serde_json::from_str(json).expect("an identity")
    }

    fn accepts(identity: &SignedIdentity, asked: &str, signed: &str) -> bool {
        let asked: Reference = asked.parse().expect("a reference");
        identity.accepts(Some(&Name::of(&asked)), signed)
    }

    /// As containers-policy.json(5) has them, and the tables of containers/image's tests.
    #[test]
    fn names_agree_as_their_kind_says() {
        let (digest, other) = (format!("r.example/app@{DIGEST}"), format!("r.example/app@{OTHER}"));
        let both = format!("r.example/app:1@{DIGEST}");
        let (exact, or_digest, repository) = (
            SignedIdentity::MatchExact {},
            SignedIdentity::MatchRepoDigestOrExact {},
            SignedIdentity::MatchRepository {},
        );
        for (asked, signed, expected) in [
            ("app:1", "docker.io/library/app:1", [true, true, true]),
            ("app", "app:latest", [true, true, true]),
            ("app", "app", [false, false, true]),
            ("r.example/app:1", "r.example/app:2", [false, false, true]),
            ("r.example/app:1", "r.example/other:1", [false, false, false]),
            ("r.example/app:1", "other.example/app:1", [false, false, false]),
            ("r.example/app:1", &digest, [false, false, true]),
            (&digest, &digest, [true, true, true]),
            (&digest, &other, [false, true, true]),
            (&digest, "r.example/app:1", [false, true, true]),
            (&digest, "r.example/app", [false, false, true]),
            (&digest, "r.example/other:1", [false, false, false]),
            (&both, &digest, [true, true, true]),
            (&both, &both, [true, true, true]),
            (&both, "r.example/app:1", [false, true, true]),
            (&both, "r.example/app:2", [false, true, true]),
            ("r.example/app:1", &both, [false, false, true]),
            ("r.example/app:1", "UPPER/bad:1", [false, false, false]),
            ("r.example/app:1", "", [false, false, false]),
        ] {
            for (kind, expected) in [&exact, &or_digest, &repository].into_iter().zip(expected) {
                assert_eq!(accepts(kind, asked, signed), expected, "{kind:?}: {asked} signed as {signed}");
                assert!(!kind.accepts(None, signed), "an image without name");
            }
        }
    }

    #[test]
    fn a_name_that_is_written_down_counts_whatever_is_asked_for() {
        let reference = identity(r#"{"type":"exactReference","dockerReference":"r.example/app:1"}"#);
        assert!(
            accepts(&reference, "mirror.example/x:9", "r.example/app:1") && reference.accepts(None, "r.example/app:1")
        );
        assert!(!accepts(&reference, "r.example/app:2", "r.example/app:2"));
        let repository = identity(r#"{"type":"exactRepository","dockerRepository":"r.example/app"}"#);
        assert!(
            accepts(&repository, "mirror.example/x:9", "r.example/app:7") && repository.accepts(None, "r.example/app")
        );
        assert!(!accepts(&repository, "r.example/other:1", "r.example/other:1"));
        let remap = identity(r#"{"type":"remapIdentity","prefix":"mirror.example","signedPrefix":"r.example/team"}"#);
        assert!(accepts(&remap, "mirror.example/app:1", "r.example/team/app:1"));
        assert!(accepts(&remap, "r.example/app:1", "r.example/app:1"), "what has another prefix stays");
        assert!(!accepts(&remap, "mirror.example/app:1", "mirror.example/app:1"));
        assert!(!accepts(&remap, "mirror.example.com/app:1", "r.example/team.com/app:1"));
        let hub = identity(r#"{"type":"remapIdentity","prefix":"docker.io","signedPrefix":"r.example/hub"}"#);
        assert_eq!(hub.check(), Ok(()));
        assert!(accepts(&hub, "app:1", "r.example/hub/library/app:1"));
        let official =
            identity(r#"{"type":"remapIdentity","prefix":"docker.io/library","signedPrefix":"docker.io/me"}"#);
        assert_eq!(official.check(), Ok(()));
        assert!(accepts(&official, "app:1", "me/app:1"));
    }

    #[test]
    fn what_is_no_identity_is_refused() {
        for bad in [
            r#"{"type":"matchAll"}"#,
            r#"{"type":"matchExact","more":1}"#,
            r#"{"type":"exactReference"}"#,
            r#"{"type":"exactReference","dockerReference":"app"}"#,
            r#"{"type":"exactRepository","dockerRepository":"APP"}"#,
            r#"{"type":"remapIdentity","prefix":"app","signedPrefix":"r.example"}"#,
            r#"{"type":"remapIdentity","prefix":"r.example","signedPrefix":"r.example/"}"#,
            r#"{"type":"remapIdentity","prefix":"r.example"}"#,
        ] {
            let parsed = serde_json::from_str::<SignedIdentity>(bad).map_err(|error| error.to_string());
            assert!(parsed.and_then(|identity| identity.check()).is_err(), "{bad}");
        }
    }
}
