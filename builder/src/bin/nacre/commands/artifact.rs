//! `nacre artifact`: files at a registry that belong to no image, as `oras push` and `oras pull` have them.
//!
//! Invariant: a file appears whole and verified, under a plain name in the directory that was asked for.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;
use oci_spec::image::Descriptor;
use registry_client::{
    Artifact, Content, Draft, Error, ManifestContent, Progress, Reference, RegistrySource, Source, twice_if_damaged,
};

use super::attach::{TITLE, described};
use crate::flags;
use crate::report::{Hinted, Usage};
use crate::session::Session;
use crate::transfer::at_registry;

/// Push and pull files that are no image
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Push files under a name of their own
    Push(PushArgs),
    /// Write the files of an artifact into a directory
    Pull(PullArgs),
}

#[derive(clap::Args)]
struct PushArgs {
    /// The name at a registry, with a tag
    #[arg(value_name = "NAME", value_parser = at_registry)]
    name: Reference,
    /// Files, each with its media type if it has one
    #[arg(value_name = "FILE[:TYPE]", required = true)]
    files: Vec<String>,
    /// What the whole is, as a media type
    #[arg(long, value_name = "TYPE")]
    artifact_type: String,
    /// An annotation of the whole
    #[arg(long, value_name = "KEY=VALUE")]
    annotation: Vec<String>,
}

#[derive(clap::Args)]
struct PullArgs {
    /// The artifact at a registry
    #[arg(value_name = "NAME", value_parser = at_registry)]
    name: Reference,
    /// The directory for its files; made if it is missing
    #[arg(short, long, default_value = ".", value_name = "DIR")]
    output: PathBuf,
}

/// Pushes or pulls files.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    match &args.verb {
        Verb::Push(args) => push(session, args)?,
        Verb::Pull(args) => pull(session, args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn push(session: &Session, args: &PushArgs) -> anyhow::Result<()> {
    let Some(tag) = args.name.tag().filter(|_| args.name.digest().is_none()) else {
        return Err(Usage(format!("{}: an artifact is pushed under a tag", args.name)).into());
    };
    let annotations = flags::annotations(&args.annotation)?;
    let files = args.files.iter().map(|file| described(file)).collect::<anyhow::Result<Vec<_>>>()?;
    let layers = files.iter().map(|(descriptor, file)| (descriptor.clone(), file as &dyn Content)).collect();
    let artifact = Artifact { artifact_type: args.artifact_type.clone(), subject: None, layers, annotations };
    let manifest = session.client.repository(&args.name)?.attach(&artifact, Some(tag))?;
    session.print(manifest.digest().as_ref())
}

fn pull(session: &Session, args: &PullArgs) -> anyhow::Result<()> {
    let source = RegistrySource::new(&session.client, &args.name)?;
    let ManifestContent::Image { layers, .. } = source.manifest(None)?.content() else {
        let what = format!("{} is an index", args.name);
        return Err(Hinted::error(
            what,
            "name the digest of one of its manifests: `nacre manifest inspect` lists them",
        ));
    };
    let files = named(&layers).with_context(|| format!("cannot write the files of {}", args.name))?;
    if files.is_empty() {
        let what = format!("{} holds no files with names", args.name);
        return Err(Hinted::error(what, "an image is pulled with `nacre pull`"));
    }
    std::fs::create_dir_all(&args.output).with_context(|| format!("cannot make {}", args.output.display()))?;
    let mut written = Vec::new();
    session.display.planned(&layers);
    for (name, descriptor) in files {
        let what = format!("fetch {name}");
        let fetch = |is_second| {
            if is_second {
                source.distrust(descriptor);
            }
            fetched(session, &source, descriptor, &args.output)
        };
        written.push((name, twice_if_damaged(&what, session.display.as_ref(), fetch)?));
    }
    // All of them came: until now none of them had its name.
    for (name, file) in written {
        let path = args.output.join(name);
        file.publish(&path).with_context(|| format!("cannot write {}", path.display()))?;
        session.print(name)?;
    }
    Ok(())
}

/// The layers that are files, by their names; a name that leads elsewhere is an error.
fn named(layers: &[Descriptor]) -> anyhow::Result<Vec<(&str, &Descriptor)>> {
    /// By this annotation oras marks a directory that it packed.
    const UNPACK: &str = "io.deis.oras.content.unpack";
    let mut files = Vec::new();
    let mut names = HashSet::new();
    for layer in layers {
        let annotation = |key: &str| layer.annotations().as_ref()?.get(key).map(String::as_str);
        let Some(name) = annotation(TITLE) else { continue };
        let is_plain = !matches!(name, "" | "." | "..") && !name.contains('/') && !name.chars().any(char::is_control);
        anyhow::ensure!(is_plain, "{name:?} is no plain name of a file");
        anyhow::ensure!(annotation(UNPACK) != Some("true"), "{name:?} is a packed directory, which is not supported");
        anyhow::ensure!(names.insert(name), "{name:?} is there twice");
        files.push((name, layer));
    }
    Ok(files)
}

/// A file that came whole, without a name yet.
fn fetched(
    session: &Session,
    source: &RegistrySource,
    descriptor: &Descriptor,
    directory: &Path,
) -> Result<Draft, Error> {
    let display = session.display.as_ref();
    let failed = |error| Error::from_io(format!("write a file of {}", Source::name(source)), directory, error);
    let mut file = Draft::new_in(directory).map_err(failed)?;
    let mut content = source.open_blob(descriptor)?;
    let (mut buffer, mut moved_bytes) = (vec![0; 128 << 10], 0);
    display.blob_started(descriptor);
    loop {
        let count = content.read(&mut buffer).map_err(failed)?;
        if count == 0 {
            break;
        }
        file.write_all(&buffer[..count]).map_err(failed)?;
        moved_bytes += count as u64;
        display.blob_moved(descriptor.digest(), moved_bytes);
    }
    display.blob_done(descriptor.digest());
    Ok(file)
}
