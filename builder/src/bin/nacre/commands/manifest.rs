//! `nacre manifest`: indexes of images for several platforms, in the store or straight at a registry.

use std::process::ExitCode;

use clap::Subcommand;
use oci_spec::image::Digest;
use registry_client::{
    CopyOptions, EntryChange, EntryChoice, ImageName, IndexDraft, Manifest, ManifestContent, Platform, PlatformChoice,
    Policy, Reference, Source, copy,
};
use serde::Serialize;

use super::push;
use crate::flags;
use crate::format::{Format, Table};
use crate::report::Usage;
use crate::session::{Session, print_bytes};
use crate::transfer::Places;
use crate::trust::{self, TrustFlags};
use crate::units::human_size;

/// Make, change, show and push indexes of several platforms
#[derive(clap::Args)]
#[command(disable_help_subcommand = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make an index of images
    #[command(
        after_help = "A bare LIST is made in the store, with its images; docker://LIST is made at its registry, \
        and images that lie there are not moved. An IMAGE without prefix is the store's, else its registry's; of an \
        index all images are taken.\n\n\
        Example:\n  nacre manifest create docker://ghcr.io/me/app:1.0 ghcr.io/me/app:1.0-amd64 ghcr.io/me/app:1.0-arm64"
    )]
    Create(Create),
    /// Add images to an index; one for the same platform replaces its predecessor
    Add(Add),
    /// Change what an index says of one of its images
    Annotate(Annotate),
    /// Take an image out of an index
    Remove(Remove),
    /// Show an index or image, of the store or of a registry
    Inspect(Inspect),
    /// Push an index of the store with all its images
    Push(push::Args),
}

#[derive(clap::Args)]
struct Create {
    /// The name of the index
    #[arg(value_name = "LIST")]
    list: ImageName,
    /// What goes into it
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<ImageName>,
    /// A further tag in the same repository
    #[arg(short, long, value_name = "TAG")]
    tag: Vec<String>,
    /// An annotation of the index
    #[arg(long, value_name = "KEY=VALUE")]
    annotation: Vec<String>,
    #[command(flatten)]
    trust: TrustFlags,
}

#[derive(clap::Args)]
struct Add {
    /// The index: of the store, or docker://NAME
    #[arg(value_name = "LIST")]
    list: ImageName,
    /// What is added: of the store, else of its registry
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<ImageName>,
    #[command(flatten)]
    change: Change,
    #[command(flatten)]
    trust: TrustFlags,
}

#[derive(clap::Args)]
struct Annotate {
    /// The index: of the store, or docker://NAME
    #[arg(value_name = "LIST")]
    list: ImageName,
    /// Which image: its digest or its platform; left out, the index itself is annotated
    #[arg(value_name = "DIGEST|PLATFORM")]
    entry: Option<String>,
    #[command(flatten)]
    change: Change,
}

#[derive(clap::Args)]
struct Remove {
    /// The index: of the store, or docker://NAME
    #[arg(value_name = "LIST")]
    list: ImageName,
    /// Which images: their digests or platforms
    #[arg(required = true, value_name = "DIGEST|PLATFORM")]
    entries: Vec<String>,
}

#[derive(clap::Args)]
struct Inspect {
    /// The image: of the store, else of its registry
    #[arg(value_name = "NAME")]
    name: ImageName,
    /// Print the document byte for byte
    #[arg(long, conflicts_with = "format")]
    raw: bool,
    /// How to print it
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// What is to be said of an entry.
#[derive(clap::Args)]
struct Change {
    /// The platform that it is for, if not the one in its configuration
    #[arg(long)]
    platform: Option<Platform>,
    /// The version of the system (Windows)
    #[arg(long, value_name = "VERSION")]
    os_version: Option<String>,
    /// What the system must have (Windows)
    #[arg(long, value_name = "FEATURE")]
    os_features: Vec<String>,
    /// An annotation of it in the index
    #[arg(long, value_name = "KEY=VALUE")]
    annotation: Vec<String>,
}

impl Change {
    fn of_entry(&self) -> anyhow::Result<EntryChange> {
        Ok(EntryChange {
            platform: self.platform.clone(),
            os_version: self.os_version.clone(),
            os_features: self.os_features.clone(),
            annotations: flags::annotations(&self.annotation)?,
        })
    }
}

/// Carries out one of the verbs.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let places = Places::new(session);
    match &args.verb {
        Verb::Create(args) => {
            let mut draft = IndexDraft::default();
            let policy = args.trust.policy()?;
            for image in &args.images {
                draft.add(let_in(&places, &policy, image)?, &EntryChange::default(), false)?;
            }
            draft.annotate(&flags::annotations(&args.annotation)?);
            finish(session, &places, draft, &args.list, &args.tag)
        }
        Verb::Add(args) => {
            let mut draft = IndexDraft::from_index(places.source(&args.list)?)?;
            let change = args.change.of_entry()?;
            let policy = args.trust.policy()?;
            for image in &args.images {
                draft.add(let_in(&places, &policy, image)?, &change, true)?;
            }
            finish(session, &places, draft, &args.list, &[])
        }
        Verb::Annotate(args) => {
            let mut draft = IndexDraft::from_index(places.source(&args.list)?)?;
            let change = args.change.of_entry()?;
            let is_of_entry =
                change.platform.is_some() || change.os_version.is_some() || !change.os_features.is_empty();
            match &args.entry {
                Some(entry) => draft.change(&choice(entry)?, &change)?,
                None if is_of_entry => {
                    return Err(Usage("say which image of the index this is about".to_owned()).into());
                }
                None => draft.annotate(&change.annotations),
            }
            finish(session, &places, draft, &args.list, &[])
        }
        Verb::Remove(args) => {
            let mut draft = IndexDraft::from_index(places.source(&args.list)?)?;
            for entry in &args.entries {
                draft.remove(&choice(entry)?)?;
            }
            finish(session, &places, draft, &args.list, &[])
        }
        Verb::Inspect(args) => inspect(session, &places, args),
        Verb::Push(args) => push::run(session, args),
    }
}

/// What is to go into an index. One of which images are taken must be signed itself: afterwards nobody knows any more
/// that they came out of it.
fn let_in<'a>(places: &'a Places<'_>, policy: &Policy, image: &ImageName) -> anyhow::Result<Box<dyn Source + 'a>> {
    let image = places.anywhere(image)?;
    trust::guard(policy, places.source(&image)?, &image, true)
}

fn choice(typed: &str) -> anyhow::Result<EntryChoice> {
    match Digest::try_from(typed) {
        Ok(digest) => Ok(EntryChoice::Digest(digest)),
        Err(_) => Ok(EntryChoice::Platform(typed.parse()?)),
    }
}

/// Puts the index where it belongs, brings its images there, and prints its digest.
fn finish(
    session: &Session,
    places: &Places<'_>,
    draft: IndexDraft<'_>,
    list: &ImageName,
    tags: &[String],
) -> anyhow::Result<ExitCode> {
    if let ImageName::Store(name) = list {
        // The store takes any text for a name; a list is to be pushed one day.
        name.parse::<Reference>()?;
    }
    let index = draft.finish()?;
    let options = CopyOptions { platforms: PlatformChoice::All, ..CopyOptions::default() };
    let mut destinations = vec![places.destination(list)?];
    for tag in tags {
        destinations.push(places.tagged(list, tag)?);
    }
    let mut digest = None;
    for destination in &destinations {
        let copied = copy(&index, &**destination, &options, session.display.as_ref())?;
        digest = Some(copied.manifest.digest().clone());
    }
    let digest = digest.expect("there is one destination at least");
    session.print(digest.as_ref())?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct Inspected {
    digest: String,
    media_type: String,
    size_bytes: usize,
    manifest: serde_json::Value,
}

fn inspect(session: &Session, places: &Places<'_>, args: &Inspect) -> anyhow::Result<ExitCode> {
    let manifest = places.source(&places.anywhere(&args.name)?)?.manifest(None)?;
    if args.raw {
        print_bytes(manifest.bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    match args.format {
        Format::Json => {
            let inspected = Inspected {
                digest: manifest.digest().to_string(),
                media_type: manifest.media_type().to_owned(),
                size_bytes: manifest.bytes().len(),
                manifest: serde_json::from_slice(manifest.bytes())?,
            };
            session.print(&serde_json::to_string_pretty(&inspected)?)?;
        }
        Format::Table => session.print(&described(&manifest))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The head of a document for people, then what it points to.
fn described(manifest: &Manifest) -> String {
    let mut lines = vec![format!("Digest:    {}", manifest.digest()), format!("Type:      {}", manifest.media_type())];
    if let Some(subject) = manifest.subject() {
        lines.push(format!("Subject:   {}", subject.digest()));
    }
    lines.extend(manifest.annotations().iter().map(|(key, value)| format!("Annotation: {key}={value}")));
    let table = match manifest.content() {
        ManifestContent::Index(entries) => {
            let mut table = Table::new(["PLATFORM", "DIGEST", "SIZE", "TYPE"]);
            for entry in entries {
                let platform = Platform::of(&entry).map_or("-".to_owned(), |platform| platform.to_string());
                let media_type = entry.media_type().to_string();
                table.push([platform, entry.digest().to_string(), human_size(entry.size()), media_type]);
            }
            table.to_string()
        }
        ManifestContent::Image { config, layers } => {
            let mut table = Table::new(["BLOB", "SIZE", "TYPE"]);
            for blob in std::iter::once(&*config).chain(&layers) {
                table.push([blob.digest().to_string(), human_size(blob.size()), blob.media_type().to_string()]);
            }
            table.to_string()
        }
    };
    format!("{}\n\n{table}", lines.join("\n"))
}
