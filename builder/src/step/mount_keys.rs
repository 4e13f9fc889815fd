//! What of the mounts of a RUN goes into its key: what they show, but neither secrets nor what caches hold by now.

use std::sync::Arc;

use layerfs::TreeInode;

use super::content::{self, ContentRules};
use super::mounts::{StepMounts, input, resolved};
use crate::building::Builder;
use crate::cache::NamedContent;
use crate::changeset::select::{Filter, SourceTree};
use crate::dockerfile::{CacheMount, FileOwnership, MountKind, Sharing};
use crate::error::{BuildError, Site};
use crate::input::{Input, KnownBy};
use crate::key::Key;
use crate::plan::SourceName;

impl StepMounts {
    /// What of the mounts goes into the step's key. All stages that they need are built then: a step that runs has a
    /// turn, and may wait for no other.
    pub(crate) fn key_words(&self, builder: &Builder<'_>) -> Result<Vec<NamedContent>, BuildError> {
        let mut words = Vec::new();
        for (kind, site) in &self.kinds {
            match kind {
                MountKind::Bind { from, source, target, is_writable } => {
                    let shown = input(builder, from.as_deref(), site)?;
                    // The content alone in its place: its files are listed under it.
                    let content = identity(builder, &shown, source.as_deref(), site)?;
                    let name = format!("the {} mount {target}", if *is_writable { "writable" } else { "bind" });
                    words.push(NamedContent { name, content });
                }
                MountKind::Cache(cache) => {
                    if let Some(from) = &cache.from {
                        let begun = builder.input(SourceName::Mount(from), site)?;
                        let content = identity(builder, &begun, cache.source.as_deref(), site)?;
                        let name = format!("what the cache mount {} begins with", cache.target);
                        words.push(NamedContent { name, content });
                    }
                    let name = builder.shared.frontend.cache_id(&cache.target);
                    words.push(a_mount(&key_of_cache(cache, &name)));
                }
                other => words.push(a_mount(&key_of_other(other))),
            }
        }
        Ok(words)
    }
}

fn a_mount(key: &Key) -> NamedContent {
    NamedContent { name: "a mount".to_owned(), content: key.digest() }
}

/// As in BuildKit, which cache it is and who else may use it change no result; of the usual one the name counts, in which
/// the frontend's namespace is.
fn key_of_cache(cache: &CacheMount, usual_name: &str) -> Key {
    let CacheMount { id, target, from, source, sharing, is_read_only, ownership } = cache;
    let is_usual = *sharing == Sharing::Shared && id.as_ref() == Some(target);
    let key = Key::of("cache").list(is_usual.then_some(usual_name)).bytes(target).list(from).list(source);
    with_ownership(key.value(is_read_only), *ownership)
}

/// Of all mounts that show nothing of a tree.
fn key_of_other(kind: &MountKind) -> Key {
    match kind {
        MountKind::Bind { .. } | MountKind::Cache(_) => unreachable!("what they show is in the key"),
        MountKind::Tmpfs { target, size_bytes, is_read_only } => {
            Key::of("tmpfs").bytes(target).list(size_bytes).value(is_read_only)
        }
        MountKind::Secret { id, target, env, is_required, ownership } => {
            with_ownership(Key::of("secret").bytes(id).list(target).list(env).value(is_required), *ownership)
        }
        MountKind::Ssh { id, target, is_required, ownership } => {
            with_ownership(Key::of("ssh").bytes(id).list(target).value(is_required), *ownership)
        }
    }
}

fn with_ownership(key: Key, ownership: FileOwnership) -> Key {
    let FileOwnership { mode, uid, gid } = ownership;
    key.list(mode).list(uid).list(gid)
}

/// What names the content that a mount shows.
pub(super) fn identity(
    builder: &Builder<'_>,
    input: &Input,
    source: Option<&str>,
    site: &Site,
) -> Result<String, BuildError> {
    let path = resolved(input, source, site)?;
    let view = SourceTree::new(Arc::clone(&input.tree));
    let found = view.select_literal(&path).map_err(site.because())?;
    let inode = found.map_or(TreeInode::ROOT, |(_, inode)| inode);
    match &input.known_by {
        // A whole image is known by its layers: digesting all of it would take longer than most steps.
        KnownBy::Chain(chain) if inode == TreeInode::ROOT => Ok(chain.clone()),
        _ => {
            let rules = ContentRules {
                keeps_times: false,
                counts_top: true,
                threads: builder.request().threads,
                filter: Filter::default(),
                filter_words: &[],
            };
            content::identify(builder.store, input, inode, rules).map_err(site.because())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_have_the_keys_that_they_had() {
        let ownership = FileOwnership { mode: Some(0o600), uid: None, gid: Some(5) };
        let cache = CacheMount {
            id: Some("/c".to_owned()),
            target: "/c".to_owned(),
            from: None,
            source: None,
            sharing: Sharing::Shared,
            is_read_only: false,
            ownership,
        };
        let named = CacheMount { id: Some("x".to_owned()), ..cache.clone() };
        assert_ne!(key_of_cache(&cache, "/c").digest(), key_of_cache(&named, "/c").digest());
        assert_ne!(key_of_cache(&cache, "/c").digest(), key_of_cache(&cache, "ns//c").digest());
        let other = CacheMount { id: Some("y".to_owned()), sharing: Sharing::Locked, ..cache.clone() };
        assert_eq!(key_of_cache(&named, "/c").digest(), key_of_cache(&other, "/c").digest(), "which cache is no input");
        let tmpfs = MountKind::Tmpfs { target: "/t".to_owned(), size_bytes: Some(7), is_read_only: true };
        let (id, target) = ("i".to_owned(), Some("/s".to_owned()));
        let secret =
            MountKind::Secret { id: id.clone(), target: target.clone(), env: None, is_required: true, ownership };
        let ssh = MountKind::Ssh { id, target, is_required: false, ownership };
        let keys = [key_of_cache(&cache, "/c"), key_of_other(&tmpfs), key_of_other(&secret), key_of_other(&ssh)];
        // Whoever changes one of these gives up everybody's build cache, and raises `KEY_VERSION`.
        assert_eq!(
            keys.map(|key| key.digest()[..16].to_owned()),
            ["c5b46edef3649df7", "eb149546f5e825c4", "274c5965f540a163", "1922202ec6cefef9"]
        );
    }
}
