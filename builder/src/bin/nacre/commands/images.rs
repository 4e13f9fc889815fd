//! `nacre images`.

use std::process::ExitCode;

use builder::StoredImage;
use layerfs::NamedImage;
use serde::Serialize;

use crate::format::{Format, Table};
use crate::session::Session;
use crate::units::human_size;

/// Arguments of `nacre images`.
#[derive(clap::Args)]
pub(crate) struct Args {
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
}

/// Lists the images of the store.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let store = session.store()?;
    let rows: Vec<Row> = store.images()?.into_iter().map(|image| row(&store, image)).collect();
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
        table.push([row.name, digest, or_dash(row.platform), or_dash(row.created), size]);
    }
    session.print(&table.to_string())?;
    Ok(ExitCode::SUCCESS)
}

/// What is known of an image; an index of several is told by its name and digest only.
fn row(store: &layerfs::Store, image: NamedImage) -> Row {
    let opened = StoredImage::open(store, &image.descriptor).ok();
    let platform = opened.as_ref().map(|image| {
        let config = &image.config;
        let variant = config.variant.as_ref().map(|variant| format!("/{variant}")).unwrap_or_default();
        format!("{}/{}{variant}", config.os, config.architecture)
    });
    Row {
        name: image.name,
        digest: image.descriptor.digest().to_string(),
        created: opened.as_ref().and_then(|image| image.config.created.clone()),
        platform,
        size_bytes: opened.map(|image| image.layers.iter().map(|layer| layer.descriptor.size()).sum()),
    }
}
