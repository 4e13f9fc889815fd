//! `nacre images`.

use std::process::ExitCode;

use builder::StoredImage;
use layerfs::{NamedImage, Store};
use registry_client::{Cause, Error, Reference};
use serde::Serialize;

use crate::format::{Format, Table};
use crate::session::Session;
use crate::transfer::has_tag_or_digest;
use crate::units::human_size;

/// List the images of the store
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only images of this repository, or of this tag or digest of it
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// How to print the list
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Print digests only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Serialize)]
struct Row {
    name: String,
    digest: String,
    created: Option<String>,
    platform: Option<String>,
    size_bytes: Option<u64>,
    /// Something of it is missing or not what its digest says.
    damaged: bool,
}

/// Lists the images of the store.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let store = session.store()?;
    let mut images = store.images()?;
    if let Some(typed) = &args.name {
        let wanted: Reference = typed.parse()?;
        images.retain(|image| is_meant(image, &wanted, has_tag_or_digest(typed)));
    }
    let rows: Vec<Row> = images.into_iter().map(|image| row(&store, image)).collect();
    if args.quiet {
        for row in &rows {
            session.print(&row.digest)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if args.format == Format::Json {
        session.print(&serde_json::to_string_pretty(&rows)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["NAME", "DIGEST", "PLATFORM", "CREATED", "SIZE"]);
    for row in rows {
        let digest = row.digest.strip_prefix("sha256:").unwrap_or(&row.digest).chars().take(12).collect();
        let size = row.size_bytes.map_or("-".to_owned(), human_size);
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let platform = if row.damaged { Some("damaged".to_owned()) } else { row.platform };
        table.push([row.name, digest, or_dash(platform), or_dash(row.created), size]);
    }
    session.print(&table.to_string())?;
    Ok(ExitCode::SUCCESS)
}

/// The names of the images of which something is missing or not what its digest says.
pub(super) fn damaged(store: &Store) -> anyhow::Result<Vec<String>> {
    let images = store.images()?.into_iter();
    Ok(images.filter(|image| opened(store, image).is_err()).map(|image| image.name).collect())
}

fn is_meant(image: &NamedImage, wanted: &Reference, is_one: bool) -> bool {
    image.name.parse::<Reference>().is_ok_and(|named| {
        let is_of_digest = || wanted.digest() == Some(image.descriptor.digest());
        named.registry() == wanted.registry()
            && named.repository() == wanted.repository()
            && (!is_one || is_of_digest() || (wanted.digest().is_none() && named.tag() == wanted.tag()))
    })
}

/// The image; `None` for an index, or what else is there whole but no image of one platform.
fn opened(store: &Store, image: &NamedImage) -> Result<Option<StoredImage>, Error> {
    match StoredImage::open(store, &image.descriptor) {
        Err(error) if matches!(error.cause(), Cause::Malformed(_)) => Ok(None),
        opened => opened.map(Some),
    }
}

/// What is known of an image; an index of several is told by its name and digest only.
fn row(store: &Store, image: NamedImage) -> Row {
    let opened = opened(store, &image);
    let (opened, damaged) = (opened.as_ref().ok().and_then(Option::as_ref), opened.is_err());
    let platform = opened.map(|image| {
        let config = &image.config;
        let variant = config.variant.as_ref().map(|variant| format!("/{variant}")).unwrap_or_default();
        format!("{}/{}{variant}", config.os, config.architecture)
    });
    Row {
        name: image.name,
        digest: image.descriptor.digest().to_string(),
        created: opened.and_then(|image| image.config.created.clone()),
        platform,
        size_bytes: opened.map(|image| image.layers.iter().map(|layer| layer.descriptor.size()).sum()),
        damaged,
    }
}
