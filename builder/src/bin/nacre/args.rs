//! The command line: one subcommand a verb, each with its own arguments in `commands/`.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::commands;
use crate::progress::Mode;

/// Builds, ships and mounts container images: no daemon, no root.
#[derive(Parser)]
#[command(name = "nacre", version, propagate_version = true, max_term_width = 100)]
// As docker has it, the last of a flag counts: a script adds to a line that it was given.
#[command(args_override_self = true)]
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

/// What to do. What each verb is for, as the help has it, stands at its arguments.
#[derive(Subcommand)]
pub(crate) enum Verb {
    #[command(visible_alias = "b")]
    Build(Box<commands::build::Args>),
    Run(Box<commands::run::Args>),
    Push(commands::push::Args),
    Pull(commands::pull::Args),
    Copy(commands::copy::Args),
    Save(commands::save::Args),
    Load(commands::load::Args),
    Export(commands::export::Args),
    Sync(commands::sync::Args),
    Tags(commands::tags::Args),
    Catalog(commands::catalog::Args),
    Delete(commands::delete::Args),
    Referrers(commands::referrers::Args),
    Attach(commands::attach::Args),
    Sign(commands::sign::Args),
    Key(commands::key::Args),
    Artifact(commands::artifact::Args),
    Manifest(commands::manifest::Args),
    Limits(commands::limits::Args),
    Login(commands::login::Args),
    Logout(commands::logout::Args),
    Mount(commands::mount::Args),
    Unmount(commands::unmount::Args),
    Commit(commands::commit::Args),
    #[command(visible_alias = "ls")]
    Images(commands::images::Args),
    Inspect(commands::inspect::Args),
    Digest(commands::digest::Args),
    History(commands::history::Args),
    Diff(commands::diff::Args),
    Tag(commands::tag::Args),
    #[command(visible_alias = "rmi")]
    Remove(commands::remove::Args),
    Prune(commands::prune::Args),
    /// The verbs for images, as docker groups them
    #[command(subcommand, hide = true)]
    Image(ImageVerb),
    Verify(commands::verify::Args),
    Doctor(commands::doctor::Args),
    CacheMount(commands::cache_mount::Args),
    Unshare(commands::unshare::Args),
    Completions(commands::completions::Args),
    #[command(name = SERVER_VERB, hide = true)]
    MountServer(commands::mount::ServerArgs),
}

/// What docker and podman have below `image`, which all stands alone here too.
#[derive(Subcommand)]
pub(crate) enum ImageVerb {
    Build(Box<commands::build::Args>),
    Push(commands::push::Args),
    Pull(commands::pull::Args),
    #[command(visible_alias = "list")]
    Ls(commands::images::Args),
    Inspect(commands::inspect::Args),
    History(commands::history::Args),
    Tag(commands::tag::Args),
    #[command(visible_alias = "remove")]
    Rm(commands::remove::Args),
    Prune(commands::prune::Args),
    Save(commands::save::Args),
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
