//! The build argument `SOURCE_DATE_EPOCH`: a number, or the name of something that has a time.
//!
//! Invariant: after [`resolve`] the argument is a number or not given. As in BuildKit a time comes from a commit, from
//! a server's `Last-Modified` or from the newest file of an archive; other places have none, and then nothing is given.

use std::borrow::Cow;

use crate::dockerfile::{Add, Dockerfile, Expander, FileSource, Instruction, Stage};
use crate::error::{BuildError, Site};
use crate::fetch::{Fetcher, GitReference, RemotePlace};
use crate::request::{BuildRequest, MainContext, NamedContext, Times};

/// The argument's name. <https://reproducible-builds.org/specs/source-date-epoch/>
const NAME: &str = "SOURCE_DATE_EPOCH";

/// The request with the argument as a number, and with what follows from it for the times of layers: a caller who said
/// which times they get has the last word.
pub(crate) fn resolve<'a>(
    request: &'a BuildRequest,
    dockerfile: &Dockerfile,
    fetcher: &Fetcher<'_>,
) -> Result<Cow<'a, BuildRequest>, BuildError> {
    let Some(value) = value(request, dockerfile)? else { return Ok(Cow::Borrowed(request)) };
    let seconds = match value.parse::<i64>() {
        Ok(seconds) => Some(seconds),
        Err(_) if value.is_empty() => None,
        Err(_) => named(request, dockerfile, fetcher, &value)?,
    };
    let mut request = request.clone();
    let Some(seconds) = seconds else {
        request.build_args.remove(NAME);
        return Ok(Cow::Owned(request));
    };
    request.build_args.insert(NAME.to_owned(), seconds.to_string());
    request.times = match request.times {
        Times::Base => Times::Epoch(seconds),
        Times::Real => Times::RealFiles(seconds),
        told => told,
    };
    Ok(Cow::Owned(request))
}

/// What is given, or else what a global ARG has as its default.
fn value(request: &BuildRequest, dockerfile: &Dockerfile) -> Result<Option<String>, BuildError> {
    if let Some(given) = request.build_args.get(NAME) {
        return Ok(Some(given.clone()));
    }
    for placed in &dockerfile.global_arguments {
        for argument in placed.value.iter().filter(|argument| argument.name.text == NAME) {
            let Some(word) = &argument.default else { continue };
            let site = Site { source: dockerfile.source.clone(), span: word.span };
            let value = expand(request, dockerfile, &word.text).map_err(site.because())?;
            return Ok(Some(value).filter(|value| !value.is_empty()));
        }
    }
    Ok(None)
}

/// Expands a word with what is given to the build, and with nothing else.
fn expand(
    request: &BuildRequest,
    dockerfile: &Dockerfile,
    text: &str,
) -> Result<String, crate::dockerfile::ExpansionError> {
    let lookup = |name: &str| request.build_args.get(name).cloned();
    Expander::new(dockerfile.directives.escape, &lookup).expand(text)
}

fn named(
    request: &BuildRequest,
    dockerfile: &Dockerfile,
    fetcher: &Fetcher<'_>,
    name: &str,
) -> Result<Option<i64>, BuildError> {
    if name == "context" {
        return Ok(match &request.context {
            MainContext::Directory(_) => None,
            MainContext::Fetched(fetched) => fetched.time_seconds,
        });
    }
    if let Some(context) = request.named_context(name, &request.platforms[0]) {
        return match context {
            NamedContext::Remote(place) => Ok(fetcher.open(place)?.time_seconds),
            NamedContext::Directory(_) | NamedContext::Image(_) | NamedContext::OciLayout(..) => Ok(None),
        };
    }
    let is_named =
        |stage: &&Stage| stage.from.value.name.as_ref().is_some_and(|word| word.text.eq_ignore_ascii_case(name));
    match dockerfile.stages.iter().find(is_named) {
        Some(stage) => of_stage(request, dockerfile, fetcher, stage),
        None => Err(BuildError::Request(format!("invalid {NAME}: {name} (no number, and no stage or context)"))),
    }
}

/// A stage that only fetches: FROM scratch, any ARG, and exactly one remote ADD.
fn of_stage(
    request: &BuildRequest,
    dockerfile: &Dockerfile,
    fetcher: &Fetcher<'_>,
    stage: &Stage,
) -> Result<Option<i64>, BuildError> {
    let site = |span| Site { source: dockerfile.source.clone(), span };
    let from = site(stage.from.span);
    if stage.from.value.image.text != "scratch" {
        return Err(from.error(format!("{NAME} stage must use FROM scratch")).into());
    }
    let mut adds = Vec::new();
    let mut arguments = request.clone();
    for placed in &stage.instructions {
        match &placed.value {
            Instruction::Arg(list) => {
                for argument in list {
                    let Some(word) = &argument.default else { continue };
                    let value = expand(&arguments, dockerfile, &word.text).map_err(site(word.span).because())?;
                    arguments.build_args.entry(argument.name.text.clone()).or_insert(value);
                }
            }
            Instruction::Add(add) => adds.push((add, site(placed.span))),
            _ => {
                let message = format!("{NAME} stage does not meet source-only requirements: only ARG and one ADD");
                return Err(site(placed.span).error(message).into());
            }
        }
    }
    let [(add, site)] = adds.as_slice() else {
        return Err(from.error(format!("{NAME} stage must contain exactly one remote ADD")).into());
    };
    let expand = |text: &str| expand(&arguments, dockerfile, text).map_err(site.because());
    match source(add, &expand)? {
        Some(RemotePlace::Git(mut reference)) => {
            if let Some(checksum) = &add.checksum {
                reference.checksum = Some(expand(&checksum.text)?);
            }
            Ok(time_of_repository(fetcher, &reference, add).map_err(site.of())?)
        }
        Some(place @ RemotePlace::Web(_)) => Ok(fetcher.open(&place).map_err(site.of())?.time_seconds),
        _ => Err(site.error(format!("{NAME} stage source must be a single HTTP(S) or Git ADD")).into()),
    }
}

fn source(add: &Add, expand: &dyn Fn(&str) -> Result<String, BuildError>) -> Result<Option<RemotePlace>, BuildError> {
    let [FileSource::Path(word)] = add.files.sources.as_slice() else { return Ok(None) };
    RemotePlace::parse(&expand(&word.text)?).map_err(|error| BuildError::Request(error.to_string()))
}

fn time_of_repository(fetcher: &Fetcher<'_>, reference: &GitReference, add: &Add) -> Result<Option<i64>, BuildError> {
    let keeps_git_dir = add.keep_git_dir.or(reference.keep_git_dir).unwrap_or(false);
    Ok(fetcher.repository(reference, keeps_git_dir)?.time_seconds)
}
