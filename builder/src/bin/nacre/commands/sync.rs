//! `nacre sync`: many images by a list, from registries and layouts to others.
//!
//! Invariant: one image that fails stops no other; the exit code tells of it.

mod list;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;

use anyhow::Context;
use registry_client::{
    CopyOptions, ImageName, OciLayout, Platform, PlatformChoice, Policy, Reference, Selector, choose_image,
    companion_subject, copy, join_companion,
};
use serde::Serialize;

use self::list::{Line, Names};
use crate::format::Format;
use crate::report::{self, Usage};
use crate::session::Session;
use crate::transfer::{Places, with_tag};
use crate::trust::{self, TrustFlags};
use crate::units::human_size;

/// A list of images is text that people write; what is longer is something else.
const MOST_LIST_BYTES: u64 = 16_000_000;
/// Images at work at once: enough to hide the waits of small ones, and polite to registries.
const WORKERS: usize = 4;

/// Copy many images, as a list file says
#[derive(clap::Args)]
#[command(after_help = "A line of the list is `SOURCE DESTINATION [!PATTERN...]`; `#` begins a comment. Places are \
    written as for `nacre copy`. A SOURCE whose tag is a pattern stands for all tags that fit it but none of the \
    `!PATTERN`s; `oci:DIR` stands for all images of a layout. A DESTINATION without tag keeps the tags, \
    or the digest of a SOURCE that has no tag.\n\n\
    Example:\n  docker://debian:bookworm   docker://registry.example/debian:12\n  \
    docker://alpine:3.*        docker://registry.example/alpine   !*-rc* !3.?\n  \
    docker://ghcr.io/me/app:*  oci:backup/app\n\n\
    What is there already is not moved. All platforms are copied, so digests stay. Where a policy demands signatures, \
    a pattern leaves out the tags of cosign's beside the images, which --referrers copies with them.")]
pub(crate) struct Args {
    /// The list; - is standard input
    #[arg(value_name = "FILE")]
    list: PathBuf,
    /// Only this platform of each index
    #[arg(long)]
    platform: Option<Platform>,
    /// Also what refers to the images: signatures, bills of material; what cosign keeps under tags too
    #[arg(long)]
    referrers: bool,
    #[command(flatten)]
    trust: TrustFlags,
    /// Copy nothing; tell what would be copied
    #[arg(long)]
    dry_run: bool,
    /// Blobs in flight at once, in all
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: u16,
    /// How to print what was done
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// One image on its way.
struct Job {
    source: ImageName,
    destination: ImageName,
}

/// What became of one.
#[derive(Serialize)]
struct Outcome {
    source: String,
    destination: String,
    #[serde(rename = "result")]
    fate: Fate,
    digest: Option<String>,
    error: Option<String>,
    #[serde(skip)]
    code: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Fate {
    Copied,
    WouldCopy,
    Unchanged,
    Failed,
}

/// Copies what the list names, and prints a line for each image and a sum.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let lines = list::parse(&args.list.display().to_string(), &read(&args.list)?)?;
    let (mut jobs, mut outcomes) = (VecDeque::new(), Vec::new());
    let policy = args.trust.policy()?;
    for line in &lines {
        match expanded(session, line, args.referrers, &policy) {
            Ok(more) => jobs.extend(more),
            Err(error) => outcomes.push(failed(&line.source.to_string(), &line.destination.to_string(), &error)),
        }
    }
    let workers = WORKERS.min(usize::from(args.jobs)).min(jobs.len().max(1));
    let options = CopyOptions {
        platforms: args.platform.clone().map_or(PlatformChoice::All, PlatformChoice::One),
        jobs: usize::from(args.jobs) / workers,
        referrers: args.referrers,
        ..CopyOptions::default()
    };
    let (queue, done) = (Mutex::new(jobs), Mutex::new(outcomes));
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(job) = locked(&queue).pop_front() {
                    let outcome = outcome(session, &job, &options, &policy, args.dry_run);
                    locked(&done).push(outcome);
                }
            });
        }
    });
    finish(session, done.into_inner().unwrap_or_else(|poison| poison.into_inner()), args.format)
}

fn read(path: &std::path::Path) -> anyhow::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    let context = || format!("cannot read the list {}", path.display());
    let mut source: Box<dyn Read> = match path.as_os_str() == "-" {
        true => Box::new(std::io::stdin()),
        false => Box::new(std::fs::File::open(path).with_context(context)?),
    };
    // A byte more than permitted, to tell a list that is cut from one that ends.
    source.as_mut().take(MOST_LIST_BYTES + 1).read_to_string(&mut text).with_context(context)?;
    if text.len() as u64 > MOST_LIST_BYTES {
        let what = format!("the list {} is longer than {}", path.display(), human_size(MOST_LIST_BYTES));
        return Err(Usage(what).into());
    }
    Ok(text)
}

/// The images that a line means.
fn expanded(session: &Session, line: &Line, with_referrers: bool, policy: &Policy) -> anyhow::Result<Vec<Job>> {
    let names = match (&line.names, &line.source) {
        (Names::One, source) => {
            let destination = match source {
                ImageName::Registry(reference) => line.destination.named(Some(&selector(reference)))?,
                _ => line.destination.named(None)?,
            };
            return Ok(vec![Job { source: source.clone(), destination }]);
        }
        (Names::Fitting(_), ImageName::Registry(reference)) => session.client.repository(reference)?.tags()?,
        (Names::Fitting(_), ImageName::OciLayout { directory, .. }) => OciLayout::new(directory, None).names()?,
        (Names::Fitting(_), other) => unreachable!("the parser takes no patterns of {other}"),
    };
    let mut jobs = Vec::new();
    for name in names {
        // A layout may name its images in full.
        let tag = name.parse::<Reference>().ok().and_then(|full| full.tag().map(str::to_owned));
        let tag = tag.filter(|_| name.contains(':')).unwrap_or_else(|| name.clone());
        if line.names.fits(&tag) {
            let source = match &line.source {
                ImageName::Registry(reference) => ImageName::Registry(with_tag(reference, &name)?),
                ImageName::OciLayout { directory, .. } => {
                    ImageName::OciLayout { directory: directory.clone(), tag: Some(name) }
                }
                other => other.clone(),
            };
            // What lies beside an image comes with it, if that was asked for; signatures are not signed themselves.
            let is_companion = companion_subject(&tag).is_some();
            if !is_companion || !(with_referrers || demands_anything(policy, &source)) {
                jobs.push(Job { source, destination: line.destination.named(Some(&Selector::Tag(tag)))? });
            }
        }
    }
    if jobs.is_empty() {
        anyhow::bail!("{}: nothing there fits", line.source);
    }
    Ok(jobs)
}

/// How a reference names its image: by the tag, even where a digest pins what that is.
fn selector(reference: &Reference) -> Selector {
    match (reference.tag(), reference.digest()) {
        (None, Some(digest)) => Selector::Digest(digest.clone()),
        (tag, _) => Selector::Tag(tag.unwrap_or("latest").to_owned()),
    }
}

/// Whether a policy does not take all that comes from there.
fn demands_anything(policy: &Policy, source: &ImageName) -> bool {
    policy.demands(source).map_or(true, |demands| !demands.is_empty())
}

fn outcome(session: &Session, job: &Job, options: &CopyOptions, policy: &Policy, is_dry: bool) -> Outcome {
    match moved(session, job, options, policy, is_dry) {
        Ok((fate, digest)) => Outcome {
            source: job.source.to_string(),
            destination: job.destination.to_string(),
            fate,
            digest: Some(digest),
            error: None,
            code: 0,
        },
        Err(error) => failed(&job.source.to_string(), &job.destination.to_string(), &error),
    }
}

fn moved(
    session: &Session,
    job: &Job,
    options: &CopyOptions,
    policy: &Policy,
    is_dry: bool,
) -> anyhow::Result<(Fate, String)> {
    let places = Places::new(session);
    let source = trust::guard(policy, places.source(&job.source)?, &job.source, options.is_whole())?;
    let destination = places.destination(&job.destination)?;
    let wanted = match &options.platforms {
        PlatformChoice::All => source.digest()?,
        PlatformChoice::One(platform) => choose_image(source.as_ref(), platform)?.digest().clone(),
    };
    // New referrers may have come to an image that stayed.
    if !options.referrers && destination.named()?.as_ref() == Some(&wanted) {
        return Ok((Fate::Unchanged, wanted.to_string()));
    }
    if is_dry {
        return Ok((Fate::WouldCopy, wanted.to_string()));
    }
    if let Some(tag) = companion_tag(&job.destination) {
        let before = destination.named()?;
        // What others signed at the destination stays.
        if join_companion(source.as_ref(), destination.as_ref(), tag, options, session.display.as_ref())? {
            let after = destination.named()?;
            let fate = if before == after { Fate::Unchanged } else { Fate::Copied };
            return Ok((fate, after.unwrap_or(wanted).to_string()));
        }
    }
    let copied = copy(source.as_ref(), destination.as_ref(), options, session.display.as_ref())?;
    Ok((Fate::Copied, copied.manifest.digest().to_string()))
}

/// The tag of a place, if signatures or the like of another image lie there.
fn companion_tag(place: &ImageName) -> Option<&str> {
    let tag = match place {
        ImageName::Registry(reference) => reference.tag()?,
        ImageName::OciLayout { tag, .. } => tag.as_deref()?,
        _ => return None,
    };
    companion_subject(tag).map(|_| tag)
}

/// An error is shown when it happens, and again in the sum.
fn failed(source: &str, destination: &str, error: &anyhow::Error) -> Outcome {
    let (text, code) = report::render(error);
    report::show(&text);
    let words = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    let (source, destination) = (source.to_owned(), destination.to_owned());
    Outcome { source, destination, fate: Fate::Failed, digest: None, error: Some(words), code }
}

fn finish(session: &Session, mut outcomes: Vec<Outcome>, format: Format) -> anyhow::Result<ExitCode> {
    outcomes.sort_by(|a, b| (&a.source, &a.destination).cmp(&(&b.source, &b.destination)));
    let count = |fate| outcomes.iter().filter(|outcome| outcome.fate == fate).count();
    if format == Format::Json {
        session.print(&serde_json::to_string_pretty(&outcomes)?)?;
    } else {
        for outcome in &outcomes {
            let word = match outcome.fate {
                Fate::Copied => "copied",
                Fate::WouldCopy => "would copy",
                Fate::Unchanged => "unchanged",
                Fate::Failed => "failed",
            };
            let detail = outcome.digest.as_ref().or(outcome.error.as_ref()).map(String::as_str).unwrap_or_default();
            session.print(&format!("{word:<10} {} {} {detail}", outcome.source, outcome.destination))?;
        }
        let copied = count(Fate::Copied) + count(Fate::WouldCopy);
        let verb = if count(Fate::WouldCopy) > 0 { "to copy" } else { "copied" };
        let (unchanged, failed) = (count(Fate::Unchanged), count(Fate::Failed));
        session.print(&format!("{copied} {verb}, {unchanged} unchanged, {failed} failed"))?;
    }
    // The registries' failures weigh more: they may be gone at the next try.
    Ok(ExitCode::from(outcomes.iter().map(|outcome| outcome.code).max().unwrap_or(0)))
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Whole between any two statements that change it.
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}
