//! `nacre remove`.

use std::collections::BTreeSet;
use std::process::ExitCode;

use layerfs::{NamedImage, Store};
use registry_client::{Cause, Reference};

use crate::session::{self, Session};

/// Remove names of images
#[derive(clap::Args)]
#[command(after_help = "The layers of an image without a name stay until `nacre prune`.")]
pub(crate) struct Args {
    /// Names of images; a digest, or the beginning of one, stands for all names that lead there
    #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "NAME")]
    names: Vec<String>,
    /// All names of the store
    #[arg(short, long)]
    all: bool,
    /// What is not there is no error
    #[arg(short, long)]
    force: bool,
}

/// Takes names away and prints them. One that is not there fails before anything is removed.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let store = session.store()?;
    let mut removed = BTreeSet::new();
    if args.all {
        removed.extend(store.images()?.into_iter().map(|image| image.name));
    }
    for name in &args.names {
        match builder::names::lookup(&store, name) {
            Err(error) if args.force && matches!(error.cause(), Cause::Missing(_)) => {}
            _ => removed.extend(names_of(&store, name)?),
        }
    }
    for name in removed {
        store.remove_name(&name)?;
        session.print(&name)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The names that an argument stands for: itself however it is spelled, or those of a digest.
fn names_of(store: &Store, typed: &str) -> anyhow::Result<Vec<String>> {
    let digest = session::lookup_own(store, typed)?.digest().clone();
    let reference = typed.parse::<Reference>().ok().filter(|reference| reference.digest().is_none());
    let images = store.images()?;
    let is_typed = |image: &&NamedImage| {
        let named = image.name.parse::<Reference>().ok();
        image.name == typed
            || (named.is_some() && named.map(|name| name.familiar()) == reference.as_ref().map(Reference::familiar))
    };
    let typed: Vec<String> = images.iter().filter(is_typed).map(|image| image.name.clone()).collect();
    if !typed.is_empty() {
        return Ok(typed);
    }
    Ok(images.into_iter().filter(|image| *image.descriptor.digest() == digest).map(|image| image.name).collect())
}
