//! What every verb that moves an image lets its user choose.

use registry_client::{CopyOptions, Platform, PlatformChoice};

/// Flags of `pull` and `copy`.
#[derive(clap::Args)]
pub(crate) struct Transfer {
    /// Which image of an index [default: this machine's]
    #[arg(long, conflicts_with = "all_platforms")]
    platform: Option<Platform>,
    /// The index with the images of all platforms
    #[arg(long)]
    all_platforms: bool,
    /// Blobs in flight at once
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: u16,
}

impl Transfer {
    /// What they say to a copy.
    pub(crate) fn options(&self) -> CopyOptions {
        let platforms = match (&self.platform, self.all_platforms) {
            (_, true) => PlatformChoice::All,
            (Some(platform), false) => PlatformChoice::One(platform.clone()),
            (None, false) => PlatformChoice::One(Platform::host()),
        };
        CopyOptions { platforms, jobs: usize::from(self.jobs) }
    }
}
