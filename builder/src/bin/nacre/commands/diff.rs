//! `nacre diff`.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use builder::difference::{Aspect, Difference, DifferenceKind, between_documents, between_images, in_upper};
use layerfs::Store;
use serde::Serialize;

use crate::format::Format;
use crate::record::{self, Mounted};
use crate::report::Usage;
use crate::session::{self, Session};

/// List what a mount or a layer changed, or what two images have not in common
#[derive(clap::Args)]
#[command(after_help = "A is added, C is changed, D is deleted. Of an image alone it is what its last layer changed.")]
pub(crate) struct Args {
    /// The directory of a mount, the id of an upper that was kept, or an image of the store
    #[arg(value_name = "DIR|IMAGE")]
    target: String,
    /// The image of the store to compare that one with
    #[arg(value_name = "IMAGE")]
    other: Option<String>,
    /// Of images, tell what of a file differs, and where the configurations do
    #[arg(short, long)]
    long: bool,
    /// Exit with 1 if there is a difference
    #[arg(long)]
    exit_code: bool,
    /// How to print it
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// What is not the same.
struct Differences {
    files: Vec<Difference>,
    /// Pointers into the configurations; none if only one image was named.
    config: Vec<String>,
}

#[derive(Serialize)]
struct Document<'a> {
    files: Vec<Row<'a>>,
    config: &'a [String],
}

#[derive(Serialize)]
struct Row<'a> {
    path: String,
    change: DifferenceKind,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    differs: &'a [Aspect],
}

/// Lists what a mount or a layer changed, or what two images have not in common.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let store = session.store()?;
    let found = match &args.other {
        Some(other) => of_two(&store, &args.target, other)?,
        None => match record::find(store.root(), Path::new(&args.target)) {
            Ok(_) if args.long => {
                return Err(Usage("--long is for images: `nacre commit` makes one of a mount".to_owned()).into());
            }
            Ok(mounted) => of_mount(&store, &mounted)?,
            Err(error) if args.target.starts_with(['/', '.']) => return Err(error),
            Err(_) => of_last_layer(&store, &args.target)?,
        },
    };
    match args.format {
        Format::Table => session::print_bytes(text(&found, args.long).as_bytes())?,
        Format::Json => session.print(&serde_json::to_string_pretty(&document(&found))?)?,
    }
    let is_equal = found.files.is_empty() && found.config.is_empty();
    Ok(if args.exit_code && !is_equal { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn of_mount(store: &Store, mounted: &Mounted) -> anyhow::Result<Differences> {
    let mut files = Vec::new();
    if !mounted.has_no_changes() {
        if mounted.is_live {
            mounted.flush()?;
        }
        let (upper, work) = (mounted.place.join("upper"), mounted.place.join("work"));
        files = in_upper(store, &mounted.record.stored_image()?, &upper, &work)?;
    }
    Ok(Differences { files, config: Vec::new() })
}

fn of_two(store: &Store, before: &str, after: &str) -> anyhow::Result<Differences> {
    let (before, after) = (session::open_image(store, before)?, session::open_image(store, after)?);
    let files = between_images(store, &before.diff_ids(), &after.diff_ids())?;
    let [old, new] = [&before, &after].map(|image| serde_json::to_value(&image.config));
    Ok(Differences { files, config: between_documents(&old?, &new?) })
}

fn of_last_layer(store: &Store, name: &str) -> anyhow::Result<Differences> {
    let diff_ids = session::open_image(store, name)?.diff_ids();
    let below = &diff_ids[..diff_ids.len().saturating_sub(1)];
    Ok(Differences { files: between_images(store, below, &diff_ids)?, config: Vec::new() })
}

/// As docker and podman print it, and behind it, if that is asked for, what differs.
fn text(found: &Differences, long: bool) -> String {
    let mut text = String::new();
    for file in &found.files {
        let letter = match file.kind {
            DifferenceKind::Added => 'A',
            DifferenceKind::Changed => 'C',
            DifferenceKind::Removed => 'D',
        };
        let aspects = match &*file.aspects {
            aspects if long && !aspects.is_empty() => format!("  ({})", words(aspects)),
            _ => String::new(),
        };
        writeln!(text, "{letter} {}{aspects}", shown(&file.path)).expect("a text");
    }
    for pointer in found.config.iter().filter(|_| long) {
        writeln!(text, "config {pointer}").expect("a text");
    }
    text
}

fn words(aspects: &[Aspect]) -> String {
    aspects.iter().map(|aspect| format!("{aspect:?}").to_lowercase()).collect::<Vec<_>>().join(", ")
}

fn document(found: &Differences) -> Document<'_> {
    let files = found.files.iter().map(|file| {
        let Difference { path, kind, aspects } = file;
        Row { path: shown(path), change: *kind, differs: aspects }
    });
    Document { files: files.collect(), config: &found.config }
}

/// A path that nothing in it can make two lines of, or a command of the terminal's.
fn shown(path: &[u8]) -> String {
    match std::str::from_utf8(path) {
        Ok(text) if !text.contains(char::is_control) => format!("/{text}"),
        _ => format!("/{}", path.escape_ascii()),
    }
}
