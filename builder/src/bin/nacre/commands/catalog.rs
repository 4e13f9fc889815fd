//! `nacre catalog`.

use std::process::ExitCode;

use super::login::registry;
use crate::format::Format;
use crate::session::Session;

/// List the repositories of a registry
#[derive(clap::Args)]
#[command(after_help = "Many registries, Docker Hub and GHCR among them, list their repositories to nobody.")]
pub(crate) struct Args {
    /// The registry, such as registry.example:5000
    #[arg(value_name = "REGISTRY")]
    registry: String,
    /// How to print the list: a repository a line, or one JSON list
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// Lists the repositories of a registry.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let repositories = session.client.repositories(&registry(Some(&args.registry))?)?;
    match args.format {
        Format::Json => session.print(&serde_json::to_string_pretty(&repositories)?)?,
        Format::Table if repositories.is_empty() => {}
        Format::Table => session.print(&repositories.join("\n"))?,
    }
    Ok(ExitCode::SUCCESS)
}
