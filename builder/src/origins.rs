//! What a build begins with or copies from: images of the store, a registry or an OCI layout, and ignore files.

use std::io::Read as _;
use std::path::Path;

use layerfs::Store;
use oci_spec::image::Descriptor;
use registry_client::{
    Cause, CopyOptions, Error, ImageName, ManifestContent, OciLayout, Platform, PlatformChoice, Progress, Reference,
    Source, choose_image, copy,
};

use crate::context::{Patterns, ignore_file_names};
use crate::error::{BuildError, Site};
use crate::image::ImageConfig;
use crate::materials::{Material, image_uri};
use crate::place::{MOST_CONFIG_BYTES, StorePlace, StoredImage, described};
use crate::plan::Origin;
use crate::pulled::pull;
use crate::request::{BuildRequest, NamedContext};
use crate::shared::Shared;

/// The image of an origin, brought into the store if it is not there.
pub(crate) fn image(
    shared: &Shared<'_>,
    origin: &Origin,
    platform: &Platform,
    site: Option<&Site>,
) -> Result<StoredImage, BuildError> {
    let progress = shared.events.transfers();
    let key = (format!("{origin:?}"), platform.to_string());
    let found = shared.images.once(&key, || match origin {
        Origin::Image(name) => named(shared, name, platform, progress),
        Origin::Context(NamedContext::Image(name)) => named(shared, name, platform, progress),
        Origin::Context(NamedContext::OciLayout(directory, name)) => {
            let place = ImageName::OciLayout { directory: directory.clone(), tag: name.clone() };
            let source = Box::new(OciLayout::new(directory, name.clone()));
            let source = shared.request.trust.guard(source, &place, false)?;
            fetch_to(shared, source.as_ref(), platform, progress)
        }
        Origin::Scratch | Origin::Stage(_) | Origin::Context(NamedContext::Directory(_) | NamedContext::Remote(_)) => {
            unreachable!("the callers deal with what is no image")
        }
    });
    let found =
        found.map_err(|source| BuildError::Image { at: site.map(|site| Box::new(site.error("FROM"))), source })?;
    shared.fetcher.note(material(origin, platform, &found.manifest)?);
    Ok(found)
}

/// What an image is to who asks later of what another one was made.
fn material(origin: &Origin, platform: &Platform, manifest: &Descriptor) -> Result<Material, Error> {
    let uri = match origin {
        Origin::Image(name) | Origin::Context(NamedContext::Image(name)) => image_uri(&name.parse()?, platform),
        // Where it lies here means nothing elsewhere.
        _ => format!("pkg:oci/image@{}?platform={}", manifest.digest(), platform.to_string().replace('/', "%2F")),
    };
    Ok(Material::new(uri, manifest.digest().algorithm().as_ref(), manifest.digest().digest()))
}

fn named(shared: &Shared<'_>, name: &str, platform: &Platform, progress: &dyn Progress) -> Result<StoredImage, Error> {
    let reference: Reference = name.parse()?;
    if !shared.request.pull
        && let Some(image) = stored_image(shared.store, &reference, platform)?
    {
        return Ok(image);
    }
    let place = StorePlace::new(shared.store, Some(&reference.familiar())).until(shared.schedule.stop());
    let policy = &shared.request.trust;
    let pulled = pull(&place, shared.client, &reference, policy, &one(platform), progress)?;
    StoredImage::open(shared.store, &pulled.manifest)
}

fn one(platform: &Platform) -> CopyOptions {
    CopyOptions { platforms: PlatformChoice::One(platform.clone()), ..CopyOptions::default() }
}

/// An image that the store has under a name, if it is one for the platform.
pub fn stored_image(store: &Store, reference: &Reference, platform: &Platform) -> Result<Option<StoredImage>, Error> {
    let found = fitting(store, reference, platform)?;
    found.map(|(manifest, _)| StoredImage::open(store, &manifest)).transpose()
}

/// The manifest and the configuration of such an image.
fn fitting(
    store: &Store,
    reference: &Reference,
    platform: &Platform,
) -> Result<Option<(Descriptor, ImageConfig)>, Error> {
    let Some(manifest) = crate::names::find(store, reference)? else { return Ok(None) };
    let place = StorePlace::existing(store, &reference.familiar(), manifest);
    let manifest = match choose_image(&place, platform) {
        Err(error) if matches!(error.cause(), Cause::Missing(_)) => return Ok(None),
        chosen => chosen?.descriptor(),
    };
    let (config, _) = described(store, &manifest)?;
    let is_fitting = config.architecture == platform.architecture() && config.os == platform.os();
    Ok(is_fitting.then_some((manifest, config)))
}

/// The configuration of a base that is on this machine, by its name in FROM; for checks, which fetch nothing. A name that
/// is none is told about by the build itself.
///
/// # Errors
/// If the image is there, and what is there is damaged.
pub fn base_at_hand(
    store: Option<&Store>,
    request: &BuildRequest,
    name: &str,
) -> Result<Option<ImageConfig>, BuildError> {
    let Some(platform) = request.platforms.first() else { return Ok(None) };
    let name = match request.named_context(name, platform) {
        Some(NamedContext::Image(other)) => other,
        Some(NamedContext::OciLayout(directory, tag)) => return Ok(in_layout(directory, tag.as_ref(), platform)?),
        Some(NamedContext::Directory(_) | NamedContext::Remote(_)) => return Ok(Some(ImageConfig::scratch(platform))),
        None => name,
    };
    let (Ok(reference), Some(store)) = (name.parse::<Reference>(), store) else { return Ok(None) };
    Ok(fitting(store, &reference, platform)?.map(|(_, config)| config))
}

/// The configuration of an image in a layout; one that is not there is told about by the build itself.
fn in_layout(directory: &Path, tag: Option<&String>, platform: &Platform) -> Result<Option<ImageConfig>, Error> {
    let layout = OciLayout::new(directory, tag.cloned());
    let manifest = match choose_image(&layout, platform) {
        Err(error) if matches!(error.cause(), Cause::Missing(_)) => return Ok(None),
        chosen => chosen?,
    };
    let ManifestContent::Image { config, .. } = manifest.content() else { return Ok(None) };
    let mut bytes = Vec::new();
    let malformed = |what: String| Error::new("read the image's configuration", Cause::Malformed(what));
    let mut blob = layout.open_blob(&config)?.take(MOST_CONFIG_BYTES);
    blob.read_to_end(&mut bytes).map_err(|error| malformed(error.to_string()))?;
    serde_json::from_slice(&bytes).map(Some).map_err(|error| malformed(error.to_string()))
}

/// Copies one image into the store, for a build, whose end is that of the copy.
fn fetch_to(
    shared: &Shared<'_>,
    source: &dyn Source,
    platform: &Platform,
    progress: &dyn Progress,
) -> Result<StoredImage, Error> {
    let place = StorePlace::new(shared.store, None).until(shared.schedule.stop());
    let copied = copy(source, &place, &one(platform), progress)?;
    StoredImage::open(shared.store, &copied.manifest.descriptor())
}

/// What the ignore file of a context leaves out: the Dockerfile's own, else the context's.
pub(crate) fn ignore_patterns(context: &Path, dockerfile: Option<&Path>) -> Result<Patterns, BuildError> {
    let names = match dockerfile {
        Some(dockerfile) => ignore_file_names(dockerfile, context).to_vec(),
        None => vec![context.join(".dockerignore")],
    };
    for name in names {
        match std::fs::read(&name) {
            Ok(bytes) => {
                let parsed = Patterns::parse(&name.to_string_lossy(), &bytes);
                return parsed.map_err(|error| BuildError::Request(error.to_string()));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(BuildError::file("read", name)(error)),
        }
    }
    Ok(Patterns::default())
}
