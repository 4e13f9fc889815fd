//! `nacre tags`.

use std::process::ExitCode;

use builder::context::Glob;

use crate::format::Format;
use crate::report::Usage;
use crate::session::Session;
use crate::transfer::RepositoryName;

/// List the tags of a repository
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The repository, such as debian or ghcr.io/me/app
    #[arg(value_name = "REPOSITORY")]
    repository: RepositoryName,
    /// Only tags that fit this pattern, such as '3.*'
    #[arg(long, value_name = "PATTERN")]
    filter: Option<String>,
    /// Only tags behind this one
    #[arg(long, value_name = "TAG")]
    last: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// How to print the list: a tag a line, or one JSON list
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// Lists the tags of a repository at its registry, sorted.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let repository = session.client.repository(&args.repository.0)?;
    let filter = args.filter.as_deref().map(pattern).transpose()?;
    let mut tags = repository.tags_after(args.last.as_deref(), usize::MAX)?;
    // Not every registry knows `last` or keeps the order of the specification.
    tags.retain(|tag| {
        args.last.as_ref().is_none_or(|last| tag > last)
            && filter.as_ref().is_none_or(|filter| filter.matches(tag.as_bytes()))
    });
    tags.sort();
    tags.truncate(args.limit.map_or(usize::MAX, |limit| limit as usize));
    match args.format {
        Format::Json => session.print(&serde_json::to_string_pretty(&tags)?)?,
        Format::Table if tags.is_empty() => {}
        Format::Table => session.print(&tags.join("\n"))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A pattern of tags as shells have it: `*`, `?`, `[a-z]`.
pub(crate) fn pattern(text: &str) -> Result<Glob, Usage> {
    Glob::new(text).map_err(|_| Usage(format!("{text:?} is not a pattern such as '3.*'")))
}
