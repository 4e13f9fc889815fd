//! `nacre inspect`.

use std::io::Read;
use std::process::ExitCode;

use anyhow::Context;
use builder::ImageConfig;
use layerfs::DOCUMENT_MAX_BYTES;
use oci_spec::image::Descriptor;
use registry_client::{Cause, Error, ImageName, Manifest, ManifestContent, Platform, Source, choose_image};
use serde::Serialize;

use crate::format::{Format, Table};
use crate::session::{self, Session, print_bytes};
use crate::transfer::Places;
use crate::units::human_size;

/// Show what an image consists of
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The image of the store: a name, a digest, or the beginning of one; elsewhere: docker://NAME, oci:DIR:TAG
    #[arg(value_name = "NAME")]
    name: ImageName,
    /// Which image of an index [default: this machine's]
    #[arg(long)]
    platform: Option<Platform>,
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
    let places = Places::new(session);
    let (source, names) = match &args.name {
        ImageName::Store(name) => {
            let store = places.store()?;
            let named = session::lookup(store, name)?;
            let same = store.images()?.into_iter().filter(|other| other.descriptor.digest() == named.digest());
            (places.source(&args.name)?, same.map(|image| image.name).collect())
        }
        elsewhere => (places.source(elsewhere)?, vec![elsewhere.to_string()]),
    };
    if let Some(Document::Manifest) = args.raw {
        print_bytes(source.manifest(None)?.bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    let host = Platform::host();
    let manifest = choose_image(source.as_ref(), args.platform.as_ref().unwrap_or(&host))?;
    let ManifestContent::Image { config, layers } = manifest.content() else {
        unreachable!("what was chosen is no index")
    };
    let config_bytes = read_config(source.as_ref(), &config)?;
    if let Some(Document::Config) = args.raw {
        print_bytes(&config_bytes)?;
        return Ok(ExitCode::SUCCESS);
    }
    let inspected = inspected(names, &manifest, &config, &config_bytes, &layers)?;
    match args.format {
        Format::Json => session.print(&serde_json::to_string_pretty(&inspected)?)?,
        Format::Table => session.print(&described(&inspected))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn read_config(source: &dyn Source, config: &Descriptor) -> anyhow::Result<Vec<u8>> {
    let doing = || format!("read the configuration of {}", source.name());
    if config.size() > DOCUMENT_MAX_BYTES {
        let what = format!("it is larger than {}", human_size(DOCUMENT_MAX_BYTES));
        return Err(Error::new(doing(), Cause::Malformed(what)).into());
    }
    let mut bytes = Vec::new();
    let read = source.open_blob(config)?.read_to_end(&mut bytes);
    read.map_err(|error| Error::from_io(doing(), config.digest().as_ref(), error))?;
    Ok(bytes)
}

fn inspected(
    names: Vec<String>,
    manifest: &Manifest,
    config: &Descriptor,
    config_bytes: &[u8],
    layers: &[Descriptor],
) -> anyhow::Result<Inspected> {
    let config_digest = config.digest().to_string();
    let config: ImageConfig = serde_json::from_slice(config_bytes)
        .with_context(|| format!("{config_digest} is no configuration of an image; --raw prints it"))?;
    let diff_ids = config.rootfs.diff_ids.iter().map(String::as_str).chain(std::iter::repeat(""));
    let layers = layers.iter().zip(diff_ids).map(|(layer, diff_id)| LayerRow {
        digest: layer.digest().to_string(),
        diff_id: diff_id.to_owned(),
        media_type: layer.media_type().to_string(),
        size_bytes: layer.size(),
    });
    Ok(Inspected {
        names,
        digest: manifest.digest().to_string(),
        media_type: manifest.media_type().to_owned(),
        layers: layers.collect(),
        manifest: serde_json::from_slice(manifest.bytes())?,
        config_digest,
        config,
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
