//! What every verb that moves an image shares: its flags, and the places that names mean.
//!
//! Invariant: the store is opened, and made, only by a verb that is told to use it.

use std::cell::OnceCell;
use std::str::FromStr;

use builder::StorePlace;
use layerfs::Store;
use registry_client::{
    CopyOptions, Destination, ImageName, OciLayout, Platform, PlatformChoice, Reference, RegistryDestination, Source,
    open_destination, open_source,
};

use crate::report::Usage;
use crate::session::{self, Session};

/// Flags of `pull` and `copy`.
#[derive(clap::Args)]
pub(crate) struct Transfer {
    /// Which image of an index [default: this machine's]
    #[arg(long, conflicts_with = "all_platforms")]
    platform: Option<Platform>,
    /// The index with the images of all platforms
    #[arg(long, visible_alias = "all")]
    all_platforms: bool,
    /// Blobs in flight at once
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: u16,
    /// Also what refers to the image: signatures, bills of material; what cosign keeps under tags too
    #[arg(long)]
    pub(crate) referrers: bool,
}

impl Transfer {
    /// What they say to a copy.
    pub(crate) fn options(&self) -> CopyOptions {
        let platforms = match (&self.platform, self.all_platforms) {
            (_, true) => PlatformChoice::All,
            (Some(platform), false) => PlatformChoice::One(platform.clone()),
            (None, false) => PlatformChoice::One(Platform::host()),
        };
        CopyOptions { platforms, jobs: usize::from(self.jobs), referrers: self.referrers, ..CopyOptions::default() }
    }
}

/// Places, opened by their names.
pub(crate) struct Places<'a> {
    session: &'a Session,
    store: OnceCell<Store>,
}

impl<'a> Places<'a> {
    /// Nothing is opened yet.
    pub(crate) fn new(session: &'a Session) -> Self {
        Self { session, store: OnceCell::new() }
    }

    /// The store.
    pub(crate) fn store(&self) -> anyhow::Result<&Store> {
        if let Some(store) = self.store.get() {
            return Ok(store);
        }
        let store = self.session.store()?;
        Ok(self.store.get_or_init(|| store))
    }

    /// Where an image is read from; a bare name is the store's.
    pub(crate) fn source(&self, name: &ImageName) -> anyhow::Result<Box<dyn Source + '_>> {
        match (open_source(&self.session.client, name)?, name) {
            (Some(opened), _) => Ok(opened),
            (None, name) => self.stored(&name.to_string()),
        }
    }

    /// What a name means where a bare one that the store does not hold is a registry's.
    pub(crate) fn anywhere(&self, name: &ImageName) -> anyhow::Result<ImageName> {
        let ImageName::Store(typed) = name else { return Ok(name.clone()) };
        // A store that is not there yet holds nothing, and is not made for that.
        let is_here =
            self.session.root.join("oci-layout").exists() && builder::names::lookup(self.store()?, typed).is_ok();
        Ok(if is_here { name.clone() } else { ImageName::Registry(typed.parse()?) })
    }

    /// Where an image goes to; a bare name is the store's.
    pub(crate) fn destination(&self, name: &ImageName) -> anyhow::Result<Box<dyn Destination + '_>> {
        match (open_destination(&self.session.client, name)?, name) {
            (Some(opened), _) => Ok(opened),
            (None, name) => {
                let name = name.to_string();
                // Under another name no verb would find it again.
                name.parse::<Reference>()?;
                Ok(Box::new(StorePlace::new(self.store()?, Some(&name))))
            }
        }
    }

    fn stored(&self, name: &str) -> anyhow::Result<Box<dyn Source + '_>> {
        let store = self.store()?;
        Ok(Box::new(StorePlace::existing(store, name, session::lookup(store, name)?)))
    }

    /// The same place under another tag.
    pub(crate) fn tagged(&self, name: &ImageName, tag: &str) -> anyhow::Result<Box<dyn Destination + '_>> {
        match name {
            ImageName::Registry(reference) => {
                let reference = with_tag(reference, tag)?;
                Ok(Box::new(RegistryDestination::new(&self.session.client, &reference)?))
            }
            ImageName::OciLayout { directory, .. } => Ok(Box::new(OciLayout::new(directory, Some(tag.to_owned())))),
            ImageName::Store(typed) => {
                let name = with_tag(&typed.parse()?, tag)?.familiar();
                Ok(Box::new(StorePlace::new(self.store()?, Some(&name))))
            }
            other => Err(Usage(format!("{other}: it holds one image; it takes no further tag")).into()),
        }
    }
}

/// A repository's image of a tag.
pub(crate) fn with_tag(repository: &Reference, tag: &str) -> anyhow::Result<Reference> {
    Ok(format!("{}/{}:{tag}", repository.registry(), repository.repository()).parse()?)
}

/// An image at a registry, with or without skopeo's `docker://`.
pub(crate) fn at_registry(text: &str) -> Result<Reference, registry_client::Error> {
    text.strip_prefix("docker://").unwrap_or(text).parse()
}

/// An image at a registry, in a layout or, with a flag of its own, in the store.
#[derive(clap::Args)]
pub(crate) struct Place {
    /// The image: at a registry, or in a layout as oci:DIR[:TAG]
    #[arg(value_name = "NAME", value_parser = place_name)]
    name: String,
    /// Take the name for one of the store
    #[arg(long)]
    store: bool,
}

impl Place {
    /// What it means.
    pub(crate) fn image(&self) -> anyhow::Result<ImageName> {
        image_of(&self.name, self.store)
    }
}

/// A name that is one, of whatever place.
pub(crate) fn place_name(text: &str) -> anyhow::Result<String> {
    image_of(text, false).map(|_| text.to_owned())
}

/// A place by its name; a bare one is a registry's unless it is said to be the store's.
pub(crate) fn image_of(name: &str, in_store: bool) -> anyhow::Result<ImageName> {
    match name.parse()? {
        ImageName::Store(name) if !in_store => Ok(ImageName::Registry(name.parse()?)),
        ImageName::Store(name) => Ok(ImageName::Store(name)),
        other if in_store => Err(Usage(format!("{other}: it is no name of the store; leave --store away")).into()),
        other => Ok(other),
    }
}

/// A repository, typed without tag.
#[derive(Debug, Clone)]
pub(crate) struct RepositoryName(pub(crate) Reference);

impl FromStr for RepositoryName {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let reference: Reference = text.parse()?;
        match has_tag_or_digest(text) {
            true => Err(Usage(format!("{text}: this is about a repository; leave its tag or digest away")).into()),
            false => Ok(Self(reference)),
        }
    }
}

/// Whether a reference was typed with a tag or digest, and does not just have the default one.
pub(crate) fn has_tag_or_digest(text: &str) -> bool {
    text.contains('@') || text.rsplit('/').next().is_some_and(|last| last.contains(':'))
}
