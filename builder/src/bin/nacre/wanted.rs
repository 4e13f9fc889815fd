//! The image that a command runs in: of the store, else of its registry, as `--platform` and `--pull` want it.
//!
//! Invariant: what is run is an image for the platform that was asked for, or an error says that there is none.

use builder::{StorePlace, StoredImage};
use layerfs::Store;
use registry_client::{Cause, CopyOptions, Platform, PlatformChoice, Reference};

use crate::report::Hinted;
use crate::session::Session;
use crate::trust::TrustFlags;

/// Which image.
#[derive(clap::Args)]
pub(crate) struct Wanted {
    /// Which image of an index [default: this machine's]
    #[arg(long)]
    platform: Option<Platform>,
    /// When the registry is asked
    #[arg(long, value_enum, default_value = "missing", value_name = "WHEN")]
    pull: Pull,
    #[command(flatten)]
    trust: TrustFlags,
    /// The image: of the store, or else of its registry
    #[arg(value_name = "IMAGE")]
    image: String,
}

/// When the registry is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Pull {
    /// Each time; what did not change is not fetched again.
    Always,
    /// If the store lacks it.
    Missing,
    /// Not at all.
    Never,
}

impl Wanted {
    /// The image, brought into the store if need be.
    pub(crate) fn open(&self, session: &Session, store: &Store) -> anyhow::Result<StoredImage> {
        let at_hand = match self.pull {
            Pull::Always => None,
            Pull::Missing | Pull::Never => self.at_hand(store)?,
        };
        if let Some(image) = at_hand {
            return Ok(image);
        }
        let host = Platform::host();
        let platform = self.platform.as_ref().unwrap_or(&host);
        if self.pull == Pull::Never {
            let what = format!("the image {} for {platform} is not in the store", self.image);
            return Err(Hinted::error(what, "--pull missing brings it from its registry"));
        }
        let reference: Reference = self.image.parse()?;
        let options = CopyOptions { platforms: PlatformChoice::One(platform.clone()), ..CopyOptions::default() };
        let (policy, display) = (self.trust.policy()?, session.display.as_ref());
        let place = StorePlace::new(store, Some(&reference.familiar()));
        let pulled = builder::pull(&place, &session.client, &reference, &policy, &options, display)?;
        let image = StoredImage::open(store, &pulled.manifest)?;
        let config = &image.config;
        match &self.platform {
            // An image that is no index is one for its own platform, and came whatever was asked for.
            Some(wanted)
                if (config.os.as_str(), config.architecture.as_str()) != (wanted.os(), wanted.architecture()) =>
            {
                let what = format!("{} is an image for {}/{}", self.image, config.os, config.architecture);
                Err(Hinted::error(what, format!("its registry has none for {wanted}")))
            }
            _ => Ok(image),
        }
    }

    /// What the store has: without a platform under any name or digest, as `nacre inspect` finds it.
    fn at_hand(&self, store: &Store) -> anyhow::Result<Option<StoredImage>> {
        if let Some(platform) = &self.platform {
            return Ok(builder::stored_image(store, &self.image.parse()?, platform)?);
        }
        match builder::open_image(store, &self.image) {
            Err(error) if matches!(error.cause(), Cause::Missing(_)) => Ok(None),
            opened => Ok(Some(opened?)),
        }
    }
}
