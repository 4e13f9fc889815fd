//! `nacre limits`.

use std::process::ExitCode;

use registry_client::{Limits, Reference, Selector};
use serde::Serialize;

use super::login::registry;
use crate::format::Format;
use crate::session::Session;

/// Docker Hub tells its limits for images only, and names this one in its documentation
/// (<https://docs.docker.com/docker-hub/usage/pulls/>).
const DOCKER_HUB_EXAMPLE: &str = "docker.io/ratelimitpreview/test:latest";

/// Show how much a registry still lets you pull
#[derive(clap::Args)]
#[command(after_help = "It is asked for without pulling, so nothing is counted.")]
pub(crate) struct Args {
    /// The registry, or an image at it [default: docker.io]
    #[arg(value_name = "REGISTRY")]
    registry: Option<String>,
    /// How to print it
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

#[derive(Serialize)]
struct Row {
    registry: String,
    limit: Option<u64>,
    remaining: Option<u64>,
    window_seconds: Option<u64>,
    source: Option<String>,
}

/// Shows how much a registry still lets this account or address pull.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let typed = args.registry.as_deref();
    let (host, limits) = match typed.filter(|typed| typed.contains('/') && !typed.contains("://")) {
        Some(image) => of_image(session, &image.parse()?)?,
        None => match registry(typed)? {
            hub if hub == "docker.io" => of_image(session, &DOCKER_HUB_EXAMPLE.parse()?)?,
            host => {
                let limits = session.client.limits(&host)?;
                (host, limits)
            }
        },
    };
    match args.format {
        Format::Json => session.print(&serde_json::to_string_pretty(&row(host, limits))?)?,
        Format::Table => session.print(&in_words(&host, limits))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn of_image(session: &Session, image: &Reference) -> anyhow::Result<(String, Option<Limits>)> {
    let selector = match (image.digest(), image.tag()) {
        (Some(digest), _) => Selector::Digest(digest.clone()),
        (None, tag) => Selector::Tag(tag.unwrap_or("latest").to_owned()),
    };
    let limits = session.client.repository(image)?.limits(&selector)?;
    Ok((image.registry().to_owned(), limits))
}

fn row(registry: String, limits: Option<Limits>) -> Row {
    let (limit, limits) = (limits.as_ref().map(|limits| limits.limit), limits);
    let (remaining, window, source) =
        limits.map_or((None, None, None), |limits| (limits.remaining, limits.window, limits.source));
    Row { registry, limit, remaining, window_seconds: window.map(|window| window.as_secs()), source }
}

fn in_words(registry: &str, limits: Option<Limits>) -> String {
    match limits {
        None => format!("{registry} tells of no limits"),
        Some(limits) => {
            let source = limits.source.as_ref().map(|source| format!(", counted for {source}")).unwrap_or_default();
            format!("{registry}: {limits}{source}")
        }
    }
}
