//! `--plane`: who serves a mount.

use layerfs::Plane;

/// The flag of the verbs that mount.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct PlaneArgs {
    /// Who serves the mount: `fuse` works wherever /dev/fuse does, `overlay` writes through the kernel's overlayfs,
    /// `auto` takes the faster one that works here
    #[arg(long, value_enum, default_value = "fuse", value_name = "fuse|overlay|auto", hide_possible_values = true)]
    plane: Name,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Name {
    Fuse,
    Overlay,
    Auto,
}

impl PlaneArgs {
    pub(crate) fn plane(self) -> Plane {
        match self.plane {
            Name::Fuse => Plane::Fuse,
            Name::Overlay => Plane::Overlay,
            Name::Auto => Plane::Auto,
        }
    }
}
