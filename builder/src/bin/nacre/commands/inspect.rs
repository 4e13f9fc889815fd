//! `nacre inspect`.

use std::process::ExitCode;

use builder::{ImageConfig, StoredImage};
use layerfs::{DOCUMENT_MAX_BYTES, Store};
use serde::Serialize;

use crate::format::{Format, Table};
use crate::session::{self, Session, print_bytes};
use crate::units::human_size;

/// Arguments of `nacre inspect`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The image of the store: a name, a digest, or the beginning of one
    #[arg(value_name = "NAME")]
    name: String,
    /// How to print it
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Print one document byte for byte instead
    #[arg(long, value_enum, conflicts_with = "format", value_name = "DOCUMENT")]
    raw: Option<Document>,
}

/// A document that has a digest.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Document {
    /// The manifest, or the index of several.
    Manifest,
    /// The configuration.
    Config,
}

#[derive(Serialize)]
struct Inspected {
    names: Vec<String>,
    digest: String,
    media_type: String,
    manifest: serde_json::Value,
    config_digest: String,
    config: ImageConfig,
    layers: Vec<LayerRow>,
}

#[derive(Serialize)]
struct LayerRow {
    digest: String,
    diff_id: String,
    media_type: String,
    size_bytes: u64,
}

/// Shows what an image consists of.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let store = session.store()?;
    let named = session::lookup(&store, &args.name)?;
    if let Some(Document::Manifest) = args.raw {
        print_bytes(&store.read_blob(named.digest(), DOCUMENT_MAX_BYTES)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let image = session::open_image(&store, &args.name)?;
    let manifest: serde_json::Value =
        serde_json::from_slice(&store.read_blob(image.manifest.digest(), DOCUMENT_MAX_BYTES)?)?;
    let config_digest = manifest["config"]["digest"].as_str().unwrap_or_default().to_owned();
    if let Some(Document::Config) = args.raw {
        print_bytes(&store.read_blob(&config_digest.parse()?, DOCUMENT_MAX_BYTES)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let inspected = inspected(&store, &named, image, manifest, config_digest)?;
    match args.format {
        Format::Json => session.print(&serde_json::to_string_pretty(&inspected)?)?,
        Format::Table => session.print(&described(&inspected))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn inspected(
    store: &Store,
    named: &oci_spec::image::Descriptor,
    image: StoredImage,
    manifest: serde_json::Value,
    config_digest: String,
) -> anyhow::Result<Inspected> {
    let same = store.images()?.into_iter().filter(|other| other.descriptor.digest() == named.digest());
    let layers = image.layers.iter().map(|layer| LayerRow {
        digest: layer.descriptor.digest().to_string(),
        diff_id: layer.diff_id.to_string(),
        media_type: layer.descriptor.media_type().to_string(),
        size_bytes: layer.descriptor.size(),
    });
    Ok(Inspected {
        names: same.map(|image| image.name).collect(),
        digest: image.manifest.digest().to_string(),
        media_type: image.manifest.media_type().to_string(),
        layers: layers.collect(),
        manifest,
        config_digest,
        config: image.config,
    })
}

/// The same for people: what a container does, then the layers.
fn described(image: &Inspected) -> String {
    let config = &image.config;
    let run = &config.config;
    let mut lines = Vec::new();
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            lines.push(format!("{:<12}{value}", format!("{name}:")));
        }
    };
    let quoted = |words: &[String]| if words.is_empty() { String::new() } else { format!("{words:?}") };
    let list = |names: &mut dyn Iterator<Item = &String>| names.cloned().collect::<Vec<_>>().join(" ");
    line("Names", image.names.join(", "));
    line("Digest", image.digest.clone());
    line("Config", image.config_digest.clone());
    line("Platform", format!("{}/{}", config.os, config.architecture));
    line("Created", config.created.clone().unwrap_or_default());
    line("Author", config.author.clone().unwrap_or_default());
    line("Entrypoint", quoted(&run.entrypoint));
    line("Command", quoted(&run.cmd));
    line("User", run.user.clone());
    line("Directory", run.working_dir.clone());
    line("Ports", list(&mut run.exposed_ports.keys()));
    line("Volumes", list(&mut run.volumes.keys()));
    line("Stop", run.stop_signal.clone());
    run.env.iter().for_each(|entry| line("Env", entry.clone()));
    run.labels.iter().for_each(|(name, value)| line("Label", format!("{name}={value}")));
    let mut table = Table::new(["LAYER", "DIFF ID", "SIZE"]);
    for layer in &image.layers {
        table.push([layer.digest.clone(), layer.diff_id.clone(), human_size(layer.size_bytes)]);
    }
    format!("{}\n\n{table}", lines.join("\n"))
}
