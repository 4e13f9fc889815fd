//! `nacre referrers`.

use std::collections::HashSet;
use std::process::ExitCode;

use oci_spec::image::{Descriptor, Digest};
use registry_client::{Error, ImageName, Platform, Reference, RegistrySource, Repository, Selector, choose_image};
use serde::Serialize;

use crate::format::{Format, Table};
use crate::session::Session;
use crate::transfer::{Place, Places};
use crate::units::human_size;

/// List what refers to an image: signatures, bills of material
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    /// Only those of this artifact type, such as application/spdx+json
    #[arg(long, value_name = "TYPE")]
    artifact_type: Option<String>,
    /// What refers to this image of an index, not to the index
    #[arg(long)]
    platform: Option<Platform>,
    /// Also what refers to the referrers, and so on
    #[arg(long)]
    all: bool,
    /// How to print the list
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// A referrer as it is listed, with what refers to it where that was asked for.
#[derive(Serialize)]
struct Node {
    #[serde(flatten)]
    descriptor: Descriptor,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    referrers: Vec<Self>,
}

/// Lists signatures, bills of material and whatever else refers to an image.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let nodes = match args.place.image()? {
        ImageName::Registry(name) => {
            let repository = session.client.repository(&name)?;
            let subject = subject(session, &repository, &name, args.platform.as_ref())?;
            let referring = |subject: &Digest| repository.referrers(subject, args.artifact_type.as_deref());
            tree(subject.digest(), args.all, &referring)?
        }
        name => {
            let places = Places::new(session);
            let source = places.source(&name)?;
            let subject = match &args.platform {
                Some(platform) => choose_image(source.as_ref(), platform)?,
                None => source.manifest(None)?,
            };
            let is_wanted = |one: &Descriptor| {
                let own = one.artifact_type().as_ref().map(ToString::to_string);
                args.artifact_type.is_none() || own == args.artifact_type
            };
            let referring = |subject: &Digest| {
                let found = source.referrers(subject)?;
                Ok(found.into_iter().filter(is_wanted).collect())
            };
            tree(subject.digest(), args.all, &referring)?
        }
    };
    match args.format {
        Format::Json => session.print(&serde_json::to_string_pretty(&nodes)?)?,
        Format::Table => {
            let mut table = Table::new(["DIGEST", "TYPE", "SIZE", "ANNOTATIONS"]);
            nodes.iter().for_each(|node| add_rows(&mut table, node, 0));
            session.print(&table.to_string())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The manifest that something refers to: what the name leads to, or an image of the index there.
pub(super) fn subject(
    session: &Session,
    repository: &Repository,
    name: &Reference,
    platform: Option<&Platform>,
) -> anyhow::Result<Descriptor> {
    if let Some(platform) = platform {
        let source = RegistrySource::new(&session.client, name)?;
        return Ok(choose_image(&source, platform)?.descriptor());
    }
    Ok(match (name.digest(), name.tag()) {
        (Some(digest), _) => repository.resolve(&Selector::Digest(digest.clone()))?,
        (None, tag) => repository.resolve(&Selector::Tag(tag.unwrap_or("latest").to_owned()))?,
    })
}

/// What refers to a manifest, and with `all` what refers to that; each once, since a hostile list could lead in a circle.
fn tree(
    subject: &Digest,
    all: bool,
    referring: &dyn Fn(&Digest) -> Result<Vec<Descriptor>, Error>,
) -> anyhow::Result<Vec<Node>> {
    let mut seen = HashSet::from([subject.clone()]);
    below(subject, all, referring, &mut seen)
}

fn below(
    subject: &Digest,
    all: bool,
    referring: &dyn Fn(&Digest) -> Result<Vec<Descriptor>, Error>,
    seen: &mut HashSet<Digest>,
) -> anyhow::Result<Vec<Node>> {
    let mut nodes = Vec::new();
    for descriptor in referring(subject)? {
        if !seen.insert(descriptor.digest().clone()) {
            continue;
        }
        let referrers = match all {
            true => below(descriptor.digest(), all, referring, seen)?,
            false => Vec::new(),
        };
        nodes.push(Node { descriptor, referrers });
    }
    Ok(nodes)
}

fn add_rows(table: &mut Table<4>, node: &Node, depth: usize) {
    let descriptor = &node.descriptor;
    let artifact_type = descriptor.artifact_type().as_ref().map_or("-".to_owned(), ToString::to_string);
    let mut annotations: Vec<String> =
        descriptor.annotations().iter().flatten().map(|(k, v)| format!("{k}={v}")).collect();
    annotations.sort();
    let digest = format!("{}{}", "  ".repeat(depth), descriptor.digest());
    table.push([digest, artifact_type, human_size(descriptor.size()), annotations.join(" ")]);
    node.referrers.iter().for_each(|child| add_rows(table, child, depth + 1));
}
