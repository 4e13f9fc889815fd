//! Deleting manifests and tags.
//!
//! Invariant: a deletion that fails leaves every tag as it was.

use crate::artifact::Artifact;
use crate::error::{Answer, Cause, Error};
use crate::repository::{Repository, Selector};
use crate::transport::Method;

/// What a tag points to in the moment before it is deleted.
const DELETED_TAG_TYPE: &str = "application/vnd.nacre.deleted-tag";

impl Repository {
    /// Deletes a manifest and with it every tag that points to it; selected by a tag, the tag alone, where the registry
    /// can ([`Self::delete_tag`] knows another way). A referrer is taken off the list that a registry without the
    /// referrers API has of them.
    ///
    /// # Errors
    /// If it is missing, or the registry does not allow deletion.
    pub fn delete_manifest(&self, selector: &Selector) -> Result<(), Error> {
        let writer = self.clone().for_push();
        let subject = match selector {
            // One that cannot be read, such as an obsolete one, can still be deleted.
            Selector::Digest(_) => writer.manifest_here(selector).ok().and_then(|manifest| manifest.subject()),
            Selector::Tag(_) => None,
        };
        writer.delete_here(selector)?;
        match (subject, selector) {
            (Some(subject), Selector::Digest(digest)) => writer.remove_referrer(subject.digest(), digest),
            _ => Ok(()),
        }
    }

    pub(crate) fn delete_here(&self, selector: &Selector) -> Result<(), Error> {
        let doing = format!("delete {}", self.show(selector));
        let response = self.for_delete().request(&doing, Method::Delete, self.manifest_url(selector), Vec::new());
        response.map(|_| ()).map_err(|cause| Error::new(doing, cause))
    }

    /// Deletes a tag and keeps the manifest that it points to, with its other tags.
    ///
    /// Many registries delete only by digest. For these the tag is first pointed to a small artifact of its own, which
    /// is then deleted with it.
    ///
    /// # Errors
    /// If the tag is missing, or the registry allows no deletion; it then points to what it did.
    pub fn delete_tag(&self, tag: &str) -> Result<(), Error> {
        let writer = self.clone().for_push();
        let selector = Selector::Tag(tag.to_owned());
        let refusal = match writer.delete_here(&selector) {
            Err(refusal) if matches!(refusal.cause(), Cause::Answer(Answer { status: 400 | 405 | 501, .. })) => refusal,
            outcome => return outcome,
        };
        let original = writer.manifest_here(&selector)?;
        let names = [("org.nacre.tag", tag), ("org.nacre.digest", original.digest().as_ref())];
        let annotations = names.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let artifact = Artifact { artifact_type: DELETED_TAG_TYPE.to_owned(), annotations, ..Artifact::default() };
        let stand_in = writer.attach(&artifact, Some(tag))?;
        match writer.delete_here(&Selector::Digest(stand_in.digest().clone())) {
            Ok(()) => Ok(()),
            Err(_) => writer.put_manifest(&original, &selector).and(Err(refusal)),
        }
    }
}
