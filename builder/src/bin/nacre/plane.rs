//! `--plane`: who serves a mount.

use layerfs::Plane;

/// The flag of `nacre mount`.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct PlaneArgs {
    /// Who serves the mount: `fuse` works wherever /dev/fuse does, `overlay` writes through the kernel's overlayfs,
    /// `auto` takes the faster one that works here
    #[arg(long, value_enum, default_value = "fuse", value_name = "fuse|overlay|auto", hide_possible_values = true)]
    plane: PlaneName,
}

/// A plane as it is named on the command line.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum PlaneName {
    Fuse,
    Overlay,
    Auto,
}

impl PlaneArgs {
    pub(crate) fn plane(self) -> Plane {
        self.plane.into()
    }
}

impl From<PlaneName> for Plane {
    fn from(name: PlaneName) -> Self {
        match name {
            PlaneName::Fuse => Self::Fuse,
            PlaneName::Overlay => Self::Overlay,
            PlaneName::Auto => Self::Auto,
        }
    }
}
