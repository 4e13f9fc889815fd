//! Images of registries in the store, under their names.
//!
//! Invariant: what the store has as the registry has it now is not asked for again, which Docker Hub would count: it is
//! looked up with a `HEAD`. Where a policy demands signatures all is read and checked anew.

use oci_spec::image::Descriptor;
use registry_client::{
    Client, Copied, CopyOptions, Error, ImageName, PlatformChoice, Policy, Progress, Reference, RegistrySource, Source,
    copy,
};

use crate::names;
use crate::place::StorePlace;

/// Of a named image that was chosen from an index: the index, and the platform that it was chosen for.
const INDEX: &str = "io.nacre.index.digest";
const PLATFORM: &str = "io.nacre.index.platform";

/// An image that came, or was there.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// Its manifest, or the index if that was wanted.
    pub manifest: Descriptor,
    /// What was moved; `None` if the registry has what was there.
    pub copied: Option<Copied>,
}

/// Brings what a registry has under a name into the store; the place there has that name.
///
/// # Errors
/// If the registry has it not, the policy does not let it in, or as [`copy`].
pub fn pull(
    place: &StorePlace<'_>,
    client: &Client,
    reference: &Reference,
    policy: &Policy,
    options: &CopyOptions,
    progress: &dyn Progress,
) -> Result<Pulled, Error> {
    let (store, spelled) = (place.store(), reference.familiar());
    let name = ImageName::Registry(reference.clone());
    let source = RegistrySource::new(client, reference)?;
    if !options.referrers
        && policy.demands(&name)?.is_empty()
        && let Some(kept) = names::find(store, reference)?
        && is_current(place, &kept, &source, &options.platforms)?
    {
        names::set(store, &spelled, &kept)?;
        return Ok(Pulled { manifest: kept, copied: None });
    }
    let source = policy.guard(Box::new(source), &name, options.is_whole())?;
    let copied = copy(source.as_ref(), place, options, progress)?;
    let mut manifest = copied.manifest.descriptor();
    if let PlatformChoice::One(platform) = &options.platforms
        && copied.named != *manifest.digest()
    {
        let chosen = [(INDEX, copied.named.to_string()), (PLATFORM, platform.to_string())];
        manifest.set_annotations(Some(chosen.map(|(key, value)| (key.to_owned(), value)).into()));
        names::set(store, &spelled, &manifest)?;
    }
    Ok(Pulled { manifest, copied: Some(copied) })
}

/// Whether an image of the store, whole, is what a copy would bring.
fn is_current(
    place: &StorePlace<'_>,
    kept: &Descriptor,
    source: &dyn Source,
    platforms: &PlatformChoice,
) -> Result<bool, Error> {
    if !place.is_whole(kept) {
        return Ok(false);
    }
    let note = |key| kept.annotations().as_ref().and_then(|notes| notes.get(key)).map(String::as_str);
    let there = source.digest()?;
    Ok(match platforms {
        PlatformChoice::All => there == *kept.digest(),
        PlatformChoice::One(_) if there == *kept.digest() => !place.is_index(kept),
        PlatformChoice::One(platform) => {
            note(INDEX) == Some(there.as_ref()) && note(PLATFORM) == Some(platform.to_string().as_str())
        }
    })
}
