//! The files of an input that was digested for a key, kept so that a miss can be told with the file that differs.
//!
//! Invariant: no key depends on it.

use std::collections::BTreeMap;

use layerfs::{DiffId, Store, StoreError};

/// The files of an input by path, with the beginning of a digest of all that counts of each.
#[derive(Default)]
pub(crate) struct Listing(Vec<u8>);

/// How a file of an input differs from an earlier input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Difference {
    Changed(Vec<u8>),
    New(Vec<u8>),
    Gone(Vec<u8>),
}

impl Listing {
    /// Enough to tell two versions of one file apart; a key never depends on it.
    const SUM_BYTES: usize = 8;

    pub(crate) fn push(&mut self, path: &[u8], sum: [u8; 32]) {
        self.0.extend((path.len() as u32).to_le_bytes());
        self.0.extend(path);
        self.0.extend(&sum[..Self::SUM_BYTES]);
    }

    pub(crate) fn note(&self, store: &Store, digest: &str) -> Result<(), StoreError> {
        let name = Self::note_name(digest);
        if store.has_note(&name)? { Ok(()) } else { store.put_note(&name, &self.0) }
    }

    /// The listing of an input that was digested once.
    pub(crate) fn find(store: &Store, digest: &str) -> Result<Option<Self>, StoreError> {
        match digest.parse::<DiffId>() {
            Ok(_) => Ok(store.note(&Self::note_name(digest))?.map(Self)),
            Err(_) => Ok(None),
        }
    }

    /// Removes the listing of an input, if there is one.
    pub(crate) fn forget(store: &Store, digest: &str) -> Result<(), StoreError> {
        match digest.parse::<DiffId>() {
            Ok(_) => store.remove_note(&Self::note_name(digest)),
            // What names no input by its digest has no listing.
            Err(_) => Ok(()),
        }
    }

    fn note_name(digest: &str) -> String {
        format!("listing-{}", digest.replace(':', "-"))
    }

    /// The files, as far as the bytes make sense.
    fn files(&self) -> BTreeMap<&[u8], &[u8]> {
        let mut files = BTreeMap::new();
        let mut rest = self.0.as_slice();
        while let Some((length, after)) = rest.split_first_chunk::<4>()
            && let Some((path, after)) = after.split_at_checked(u32::from_le_bytes(*length) as usize)
            && let Some((sum, after)) = after.split_at_checked(Self::SUM_BYTES)
        {
            files.insert(path, sum);
            rest = after;
        }
        files
    }

    /// The first file, by path, that is not the same in an earlier listing.
    pub(crate) fn first_difference(&self, earlier: &Self) -> Option<Difference> {
        let (new, old) = (self.files(), earlier.files());
        let changed = new.iter().find(|(path, sum)| old.get(*path) != Some(sum));
        let gone = old.keys().find(|path| !new.contains_key(*path));
        match (changed, gone) {
            (Some((path, _)), Some(gone)) if gone < path => Some(Difference::Gone(gone.to_vec())),
            (Some((path, _)), _) if old.contains_key(path) => Some(Difference::Changed(path.to_vec())),
            (Some((path, _)), _) => Some(Difference::New(path.to_vec())),
            (None, gone) => gone.map(|path| Difference::Gone(path.to_vec())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_of_two_listings_is_the_first_by_path() {
        let listing = |files: &[(&str, u8)]| {
            let mut listing = Listing::default();
            files.iter().for_each(|(path, sum)| listing.push(path.as_bytes(), [*sum; 32]));
            listing
        };
        let old = listing(&[("", 0), ("a", 1), ("c", 1)]);
        let difference = |files: &[(&str, u8)]| listing(files).first_difference(&old);
        assert_eq!(difference(&[("", 0), ("a", 1), ("c", 1)]), None);
        assert_eq!(difference(&[("", 0), ("a", 2), ("c", 2)]), Some(Difference::Changed(b"a".to_vec())));
        assert_eq!(difference(&[("", 0), ("a", 1), ("b", 1), ("c", 1)]), Some(Difference::New(b"b".to_vec())));
        assert_eq!(difference(&[("", 0), ("c", 2)]), Some(Difference::Gone(b"a".to_vec())));
        let cut = Listing(old.0[..old.0.len() - 3].to_vec());
        assert_eq!(old.first_difference(&cut), Some(Difference::New(b"c".to_vec())));
    }
}
