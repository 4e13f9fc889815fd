//! The command line: one subcommand a verb, each with its own arguments in `commands/`.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::commands;
use crate::progress::Mode;

/// Builds, ships and mounts container images: no daemon, no root.
#[derive(Parser)]
#[command(name = "nacre", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Names of images are those of docker: `app`, `app:1.0`, `ghcr.io/me/app@sha256:...`.\n\
    The store lies at --root, else $NACRE_ROOT, else /var/lib/nacre (root) or ~/.local/share/nacre.")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// What every verb takes.
#[derive(clap::Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Where the store lies
    #[arg(long, global = true, env = "NACRE_ROOT", value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// How to show progress
    #[arg(long, global = true, value_enum, default_value = "auto", env = "NACRE_PROGRESS", value_name = "MODE")]
    pub(crate) progress: Mode,
    /// Log what happens inside, to standard error
    #[arg(long, global = true)]
    pub(crate) debug: bool,
}

/// The hidden verb with which the program starts itself as the server of a mount.
pub(crate) const SERVER_VERB: &str = "mount-server";

/// What to do.
#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Build an image from a Dockerfile
    #[command(visible_alias = "b")]
    Build(Box<commands::build::Args>),
    /// Run a command in an image
    Run(Box<commands::run::Args>),
    /// Push an image of the store to a registry
    Push(commands::push::Args),
    /// Pull an image from a registry into the store
    Pull(commands::pull::Args),
    /// Copy an image between registries, layouts, archives and the store
    Copy(commands::copy::Args),
    /// Write an image of the store to a file
    Save(commands::save::Args),
    /// Read images from a file into the store
    Load(commands::load::Args),
    /// Write the files of an image as one tar
    Export(commands::export::Args),
    /// Copy many images, as a list file says
    Sync(commands::sync::Args),
    /// List the tags of a repository
    Tags(commands::tags::Args),
    /// List the repositories of a registry
    Catalog(commands::catalog::Args),
    /// Delete an image or a tag at a registry
    Delete(commands::delete::Args),
    /// List what refers to an image: signatures, bills of material
    Referrers(commands::referrers::Args),
    /// Attach files to an image at its registry
    Attach(commands::attach::Args),
    /// Sign an image with a key
    Sign(commands::sign::Args),
    /// Make keys for signatures
    Key(commands::key::Args),
    /// Push and pull files that are no image
    Artifact(commands::artifact::Args),
    /// Make, change, show and push indexes of several platforms
    Manifest(commands::manifest::Args),
    /// Show how much a registry still lets you pull
    Limits(commands::limits::Args),
    /// Log in to a registry
    Login(commands::login::Args),
    /// Forget the credentials for a registry
    Logout(commands::logout::Args),
    /// Mount an image on a directory, or list what is mounted
    Mount(commands::mount::Args),
    /// Unmount a directory
    Unmount(commands::unmount::Args),
    /// Make an image of what was changed in a mount
    Commit(commands::commit::Args),
    /// List the images of the store
    #[command(visible_alias = "ls")]
    Images(commands::images::Args),
    /// Show what an image consists of
    Inspect(commands::inspect::Args),
    /// Print the digest that a name leads to
    Digest(commands::digest::Args),
    /// List the steps that made an image
    History(commands::history::Args),
    /// List what a mount or a layer changed, or what two images have not in common
    Diff(commands::diff::Args),
    /// Give an image further names
    Tag(commands::tag::Args),
    /// Remove names of images
    #[command(visible_alias = "rmi")]
    Remove(commands::remove::Args),
    /// Remove what no name leads to
    Prune(commands::prune::Args),
    /// The verbs for images, as docker groups them
    #[command(subcommand, hide = true)]
    Image(ImageVerb),
    /// Check the signatures of an image; without one, read the whole store and tell what is damaged
    Verify(commands::verify::Args),
    /// Try out what this host permits
    Doctor(commands::doctor::Args),
    /// Carry the directories of RUN --mount=type=cache from machine to machine
    CacheMount(commands::cache_mount::Args),
    /// Run a command where builds run: in the user namespace, as its root
    Unshare(commands::unshare::Args),
    /// Print a script that completes command lines
    Completions(commands::completions::Args),
    #[command(name = SERVER_VERB, hide = true)]
    MountServer(commands::mount::ServerArgs),
}

/// What docker and podman have below `image`, which all stands alone here too.
#[derive(Subcommand)]
pub(crate) enum ImageVerb {
    /// Build an image from a Dockerfile
    Build(Box<commands::build::Args>),
    /// Push an image of the store to a registry
    Push(commands::push::Args),
    /// Pull an image from a registry into the store
    Pull(commands::pull::Args),
    /// List the images of the store
    #[command(visible_alias = "list")]
    Ls(commands::images::Args),
    /// Show what an image consists of
    Inspect(commands::inspect::Args),
    /// List the steps that made an image
    History(commands::history::Args),
    /// Give an image further names
    Tag(commands::tag::Args),
    /// Remove names of images
    #[command(visible_alias = "remove")]
    Rm(commands::remove::Args),
    /// Remove what no name leads to
    Prune(commands::prune::Args),
    /// Write an image of the store to a file
    Save(commands::save::Args),
    /// Read images from a file into the store
    Load(commands::load::Args),
}

impl From<ImageVerb> for Verb {
    fn from(verb: ImageVerb) -> Self {
        match verb {
            ImageVerb::Build(args) => Self::Build(args),
            ImageVerb::Push(args) => Self::Push(args),
            ImageVerb::Pull(args) => Self::Pull(args),
            ImageVerb::Ls(args) => Self::Images(args),
            ImageVerb::Inspect(args) => Self::Inspect(args),
            ImageVerb::History(args) => Self::History(args),
            ImageVerb::Tag(args) => Self::Tag(args),
            ImageVerb::Rm(args) => Self::Remove(args),
            ImageVerb::Prune(args) => Self::Prune(args),
            ImageVerb::Save(args) => Self::Save(args),
            ImageVerb::Load(args) => Self::Load(args),
        }
    }
}
