//! What refers to a manifest: signatures, bills of material and other artifacts with a `subject`.
//!
//! Registries with the referrers API keep the list themselves; for the others it is an index under the tag
//! `sha256-<hex>`, which clients read and write
//! (<https://github.com/opencontainers/distribution-spec/blob/main/spec.md#referrers-tag-schema>).
//!
//! Invariant: entries of others in such an index stay as they are.

use oci_spec::image::{Descriptor, Digest};
use serde_json::{Value, json};

use crate::error::{Answer, Cause, Error};
use crate::manifest::{Manifest, ManifestContent, OCI_INDEX};
use crate::pages;
use crate::repository::{Repository, Selector};

/// More than those of any real subject take; they are held in memory.
const REFERRERS_LIMIT_BYTES: usize = 32 << 20;
/// What a map takes for an annotation beside its text.
const ANNOTATION_BYTES: usize = 64;
/// Two writers take turns quickly; who loses this often competes with a flood.
const UPDATE_TRIES: usize = 10;

impl Repository {
    /// The manifests that refer to `subject`, of one artifact type or all, with their annotations as the registry tells
    /// them. A subject that nothing refers to, or that is not there, has none.
    ///
    /// # Errors
    /// If the registry refuses, or its list is none, or one of more than some 32 MiB.
    pub fn referrers(&self, subject: &Digest, artifact_type: Option<&str>) -> Result<Vec<Descriptor>, Error> {
        self.referrers_as(subject, artifact_type, |referrer| referrer)
    }

    /// All of them as [`bare`] has them, of which far more may be.
    pub(crate) fn bare_referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, Error> {
        self.referrers_as(subject, None, |referrer| bare(&referrer))
    }

    fn referrers_as(
        &self,
        subject: &Digest,
        artifact_type: Option<&str>,
        kept: fn(Descriptor) -> Descriptor,
    ) -> Result<Vec<Descriptor>, Error> {
        let doing = format!("list what refers to {}", self.show(&Selector::Digest(subject.clone())));
        let listed =
            self.listed_referrers(&doing, subject, artifact_type, kept).map_err(|cause| Error::new(&doing, cause))?;
        let mut referrers = match listed {
            Some(referrers) => referrers,
            None => self.tagged_referrers(subject)?.into_iter().map(kept).collect(),
        };
        // Registries filter where they like to.
        let is_wanted = |referrer: &Descriptor| {
            artifact_type.is_none_or(|wanted| {
                referrer.artifact_type().as_ref().is_some_and(|actual| actual.to_string() == wanted)
            })
        };
        referrers.retain(is_wanted);
        Ok(referrers)
    }

    /// By the referrers API; `None` where there is none.
    fn listed_referrers(
        &self,
        doing: &str,
        subject: &Digest,
        artifact_type: Option<&str>,
        kept: fn(Descriptor) -> Descriptor,
    ) -> Result<Option<Vec<Descriptor>>, Cause> {
        let mut url = self.url(&format!("referrers/{subject}"));
        if let Some(artifact_type) = artifact_type {
            url = url.with_parameter("artifactType", artifact_type);
        }
        let (mut referrers, mut is_first, mut knows_them) = (Vec::new(), true, true);
        let mut held_bytes = 0;
        let outcome = pages::follow(self, doing, url, &[("Accept", OCI_INDEX.to_owned())], |url, page| {
            let index = Manifest::new(Some(OCI_INDEX), page).map(|page| page.content());
            match index {
                Ok(ManifestContent::Index(entries)) => {
                    for entry in entries.into_iter().map(kept) {
                        held_bytes += weight_bytes(&entry);
                        referrers.push(entry);
                    }
                }
                // Some registries answer every path with a web page.
                _ if is_first => knows_them = false,
                _ => return Err(Cause::Malformed(format!("{url} did not answer with an index"))),
            }
            is_first = false;
            if held_bytes > REFERRERS_LIMIT_BYTES {
                let what = format!("the list of referrers is larger than {} MiB", REFERRERS_LIMIT_BYTES >> 20);
                return Err(Cause::Malformed(what));
            }
            Ok(knows_them)
        });
        match outcome {
            Ok(()) => Ok(knows_them.then_some(referrers)),
            Err(Cause::Answer(Answer { status: 400 | 404 | 405 | 406 | 501, .. })) => Ok(None),
            Err(cause) => Err(cause),
        }
    }

    fn tagged_referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, Error> {
        match self.fallback_index(subject)? {
            Some((index, _)) => match index.content() {
                ManifestContent::Index(entries) => Ok(entries),
                ManifestContent::Image { .. } => Err(self.not_an_index(subject)),
            },
            None => Ok(Vec::new()),
        }
    }

    /// What the tag for a subject's referrers points to, and its `ETag`.
    fn fallback_index(&self, subject: &Digest) -> Result<Option<(Manifest, Option<String>)>, Error> {
        match self.manifest_with_etag(&Selector::Tag(fallback_tag(subject))) {
            Ok(found) => Ok(Some(found)),
            Err(error) if matches!(error.cause(), Cause::Answer(Answer { status: 404, .. })) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lists a referrer of `subject` in the index under its tag, for a registry that does not do so itself.
    pub(crate) fn add_referrer(&self, subject: &Digest, referrer: &Manifest) -> Result<(), Error> {
        let entry = entry_of(referrer);
        self.change_referrers(subject, |entries| {
            let is_listed = entries.iter().any(|entry| names(entry, referrer.digest()));
            if !is_listed {
                entries.push(entry.clone());
            }
            !is_listed
        })
    }

    /// Takes a deleted referrer off the index again.
    pub(crate) fn remove_referrer(&self, subject: &Digest, referrer: &Digest) -> Result<(), Error> {
        self.change_referrers(subject, |entries| {
            let before = entries.len();
            entries.retain(|entry| !names(entry, referrer));
            entries.len() != before
        })
    }

    /// Applies a change until it is there to stay: another client's change may come in between, since few registries
    /// heed `If-Match` (go-containerregistry 2205). `change` tells whether there was something to do.
    fn change_referrers(&self, subject: &Digest, change: impl Fn(&mut Vec<Value>) -> bool) -> Result<(), Error> {
        let _one_of_ours_at_a_time = self.client().referrers_lock();
        let selector = Selector::Tag(fallback_tag(subject));
        for _ in 0..UPDATE_TRIES {
            let (mut index, known) = match self.fallback_index(subject)? {
                Some((index, etag)) => {
                    let value: Value = serde_json::from_slice(index.bytes()).map_err(|_| self.not_an_index(subject))?;
                    (value, Some((index, etag)))
                }
                None => (json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}), None),
            };
            let entries = index.get_mut("manifests").and_then(Value::as_array_mut);
            let entries = entries.ok_or_else(|| self.not_an_index(subject))?;
            if !change(entries) {
                return Ok(());
            }
            if let Some((known, _)) = known.as_ref().filter(|_| entries.is_empty()) {
                return self.delete_here(&Selector::Digest(known.digest().clone()));
            }
            let wrong = |cause| Error::new(format!("list a referrer under {}", self.show(&selector)), cause);
            let changed = Manifest::new(Some(OCI_INDEX), index.to_string().into_bytes()).map_err(wrong)?;
            let etag = known.and_then(|(_, etag)| etag);
            match self.put_manifest_if(&changed, &selector, etag.as_deref()) {
                // Somebody was faster, and the registry noticed.
                Err(Cause::Answer(Answer { status: 412, .. })) | Ok(_) => {}
                Err(cause) => return Err(wrong(cause)),
            }
        }
        let cause = Cause::Malformed("other clients changed it again and again".to_owned());
        Err(Error::new(format!("list a referrer under {}", self.show(&selector)), cause))
    }

    fn not_an_index(&self, subject: &Digest) -> Error {
        let tag = self.show(&Selector::Tag(fallback_tag(subject)));
        Error::new(format!("read the referrers under {tag}"), Cause::Malformed("it is not an index".to_owned()))
    }
}

/// A referrer with nothing but its digest, size and types.
pub(crate) fn bare(referrer: &Descriptor) -> Descriptor {
    let mut bare = Descriptor::new(referrer.media_type().clone(), referrer.size(), referrer.digest().clone());
    bare.set_artifact_type(referrer.artifact_type().clone());
    bare
}

/// About what a referrer takes in memory.
fn weight_bytes(referrer: &Descriptor) -> usize {
    let annotations = referrer.annotations().as_ref().map_or(0, |all| all.len());
    let text = serde_json::to_string(referrer).map_or(0, |text| text.len());
    size_of::<Descriptor>() + text + annotations * ANNOTATION_BYTES
}

/// The tag under which the referrers of a subject are listed: algorithm and digest, cut to 32 and 64 characters.
pub(crate) fn fallback_tag(subject: &Digest) -> String {
    let safe = |text: &str, length: usize| -> String {
        let is_safe = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        text.chars().take(length).map(|c| if is_safe(c) { c } else { '-' }).collect()
    };
    format!("{}-{}", safe(subject.algorithm().as_ref(), 32), safe(subject.digest(), 64))
}

/// A referrer as the index lists it.
pub(crate) fn entry_of(referrer: &Manifest) -> Value {
    let mut entry = json!({
        "mediaType": referrer.media_type(), "digest": referrer.digest().as_ref(), "size": referrer.bytes().len(),
    });
    if let Some(artifact_type) = referrer.artifact_type() {
        entry["artifactType"] = artifact_type.into();
    }
    let annotations = referrer.annotations();
    if !annotations.is_empty() {
        entry["annotations"] = json!(annotations);
    }
    entry
}

fn names(entry: &Value, digest: &Digest) -> bool {
    entry.get("digest").and_then(Value::as_str) == Some(digest.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_of_a_subject_is_the_one_of_the_specification() {
        let digest = |text: String| Digest::try_from(text).expect("a digest");
        let hex = "ab".repeat(32);
        assert_eq!(fallback_tag(&digest(format!("sha256:{hex}"))), format!("sha256-{hex}"));
        assert_eq!(fallback_tag(&digest(format!("sha512:{}", hex.repeat(2)))), format!("sha512-{hex}"));
        assert_eq!(fallback_tag(&digest("test+algorithm+using+algorithm+separators+and+lots+of+characters+to+excercise+overall+truncation:alsoSome=InTheEncodedSectionToShowHyphenReplacementAndLotsAndLotsOfCharactersToExcerciseEncodedTruncation".to_owned())),
            "test-algorithm-using-algorithm-s-alsoSome-InTheEncodedSectionToShowHyphenReplacementAndLotsAndLot");
    }
}
