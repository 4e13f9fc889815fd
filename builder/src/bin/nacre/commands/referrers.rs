//! `nacre referrers`.

use std::collections::HashSet;
use std::process::ExitCode;

use oci_spec::image::{Descriptor, Digest};
use registry_client::{Platform, Reference, RegistrySource, Repository, Selector, choose_image};
use serde::Serialize;

use crate::format::{Format, Table};
use crate::session::Session;
use crate::transfer::at_registry;
use crate::units::human_size;

/// Arguments of `nacre referrers`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The image at its registry
    #[arg(value_name = "NAME", value_parser = at_registry)]
    name: Reference,
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
    let repository = session.client.repository(&args.name)?;
    let subject = subject(session, &repository, &args.name, args.platform.as_ref())?;
    let mut seen = HashSet::from([subject.digest().clone()]);
    let nodes = listed(&repository, subject.digest(), args, &mut seen)?;
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

/// What refers to a manifest; each once, since a hostile list could lead in a circle.
fn listed(
    repository: &Repository,
    subject: &Digest,
    args: &Args,
    seen: &mut HashSet<Digest>,
) -> anyhow::Result<Vec<Node>> {
    let mut nodes = Vec::new();
    for descriptor in repository.referrers(subject, args.artifact_type.as_deref())? {
        if !seen.insert(descriptor.digest().clone()) {
            continue;
        }
        let referrers = match args.all {
            true => listed(repository, descriptor.digest(), args, seen)?,
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
