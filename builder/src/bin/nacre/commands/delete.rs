//! `nacre delete`.

use std::process::ExitCode;

use registry_client::{Reference, Selector};

use crate::report::Usage;
use crate::session::Session;
use crate::transfer::has_tag_or_digest;

/// Delete an image or a tag at a registry
#[derive(clap::Args)]
#[command(after_help = "NAME:TAG deletes the tag alone: the image stays under its digest and its other tags. \
    NAME@DIGEST deletes the image, and with it every tag that leads there. `nacre remove` is for the store.")]
pub(crate) struct Args {
    /// Images at registries, each with its tag or digest
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Delete the image that a tag leads to, with all its tags
    #[arg(long)]
    image: bool,
}

/// Deletes at registries and prints what was deleted.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let references = args.names.iter().map(|name| explicit(name)).collect::<anyhow::Result<Vec<Reference>>>()?;
    for reference in &references {
        let repository = session.client.repository(reference)?;
        let deleted = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => {
                repository.delete_manifest(&Selector::Digest(digest.clone()))?;
                reference.familiar()
            }
            (None, tag) => {
                let tag = tag.unwrap_or_default();
                if args.image {
                    let digest = repository.resolve(&Selector::Tag(tag.to_owned()))?.digest().clone();
                    repository.delete_manifest(&Selector::Digest(digest.clone()))?;
                    format!("{}@{digest}", reference.familiar())
                } else {
                    repository.delete_tag(tag)?;
                    reference.familiar()
                }
            }
        };
        session.print(&deleted)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Nobody loses `latest` because a tag was forgotten.
fn explicit(name: &str) -> anyhow::Result<Reference> {
    let reference = name.parse()?;
    if !has_tag_or_digest(name) {
        return Err(Usage(format!("{name}: say which tag or digest is to be deleted")).into());
    }
    Ok(reference)
}
