//! `nacre verify`.

use std::process::ExitCode;

use serde::Serialize;

use crate::format::{Format, Table};
use crate::session::Session;

/// Arguments of `nacre verify`.
#[derive(clap::Args)]
#[command(
    after_help = "Everything is read: each blob and layer is digested, each index compared with its layers, and each \
    image's manifests, configs and layers are looked for. The exit code is 0 if all is as it was written, else 1.\n\n\
    A file that is damaged may be removed: what can be made again is, and `nacre pull` brings the rest."
)]
pub(crate) struct Args {
    /// How to print what is damaged
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

#[derive(Serialize)]
struct Row {
    path: String,
    problem: String,
}

/// Reads the whole store, and prints which files are not what their names say.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let damage = session.store()?.verify()?.into_iter();
    let rows: Vec<Row> =
        damage.map(|damage| Row { path: damage.path.display().to_string(), problem: damage.problem }).collect();
    let code = if rows.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    match args.format {
        Format::Json => session.print(&serde_json::to_string_pretty(&rows)?)?,
        Format::Table if rows.is_empty() => session.print("nothing is damaged")?,
        Format::Table => {
            let mut table = Table::new(["FILE", "PROBLEM"]);
            rows.into_iter().for_each(|row| table.push([row.path, row.problem]));
            session.print(&table.to_string())?;
        }
    }
    Ok(code)
}
