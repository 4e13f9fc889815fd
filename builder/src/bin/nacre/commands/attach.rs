//! `nacre attach`.

use std::collections::HashMap;
use std::path::Path;
use std::process::ExitCode;

use oci_spec::image::Descriptor;
use registry_client::{Artifact, Content, FileContent, Platform, Reference};

use super::referrers::subject;
use crate::flags;
use crate::report::Usage;
use crate::session::Session;
use crate::transfer::at_registry;

/// By this annotation oras and others name the file that a blob was.
pub(super) const TITLE: &str = "org.opencontainers.image.title";
/// Of a file whose type is not said.
const DEFAULT_FILE_TYPE: &str = "application/octet-stream";

/// Attach files to an image at its registry
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  nacre attach ghcr.io/me/app:1.0 sbom.json:application/spdx+json \
    --artifact-type application/spdx+json\n  nacre artifact pull ghcr.io/me/app@DIGEST      # brings the files back")]
pub(crate) struct Args {
    /// The image at its registry
    #[arg(value_name = "NAME", value_parser = at_registry)]
    name: Reference,
    /// Files, each with its media type if it has one
    #[arg(value_name = "FILE[:TYPE]")]
    files: Vec<String>,
    /// What the whole is, as a media type
    #[arg(long, value_name = "TYPE")]
    artifact_type: String,
    /// An annotation of the whole; registries show it in the list of referrers
    #[arg(long, value_name = "KEY=VALUE")]
    annotation: Vec<String>,
    /// Attach to this image of an index, not to the index
    #[arg(long)]
    platform: Option<Platform>,
}

/// Attaches files to an image at its registry and prints the digest of what was made.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let annotations = flags::annotations(&args.annotation)?;
    if args.files.is_empty() && annotations.is_empty() {
        return Err(Usage("there is nothing to attach: name a file or an annotation".to_owned()).into());
    }
    let files = args.files.iter().map(|file| described(file)).collect::<anyhow::Result<Vec<_>>>()?;
    let repository = session.client.repository(&args.name)?;
    let subject = subject(session, &repository, &args.name, args.platform.as_ref())?;
    let layers = files.iter().map(|(descriptor, file)| (descriptor.clone(), file as &dyn Content)).collect();
    let artifact_type = args.artifact_type.clone();
    let artifact = Artifact { artifact_type, subject: Some(subject), layers, annotations };
    let manifest = repository.attach(&artifact, None)?;
    session.print(manifest.digest().as_ref())?;
    Ok(ExitCode::SUCCESS)
}

/// A file under its own name, without the directories that it lies in here.
pub(super) fn described(typed: &str) -> anyhow::Result<(Descriptor, FileContent)> {
    let (path, media_type) = match typed.rsplit_once(':') {
        Some((path, media_type)) if media_type.contains('/') && !Path::new(typed).exists() => (path, media_type),
        _ => (typed, DEFAULT_FILE_TYPE),
    };
    let file = FileContent::new(Path::new(path), media_type)?;
    let name = Path::new(path).file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| Usage(format!("{path:?} names no file")))?;
    let mut descriptor = file.descriptor().clone();
    descriptor.set_annotations(Some(HashMap::from([(TITLE.to_owned(), name.to_owned())])));
    Ok((descriptor, file))
}
