//! `nacre history`.

use std::process::ExitCode;

use builder::StoredImage;
use serde::Serialize;

use crate::format::{Format, Table};
use crate::session::{self, Session};
use crate::units::human_size;

/// What of an instruction the table shows, as docker does.
const SHOWN_CHARACTERS: usize = 60;

/// List the steps that made an image
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The image of the store
    #[arg(value_name = "NAME")]
    name: String,
    /// Show instructions whole
    #[arg(long)]
    no_trunc: bool,
    /// How to print the list
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

#[derive(Serialize)]
struct Row {
    created: Option<String>,
    created_by: String,
    /// Of the layer as it is sent; 0 where the step made none.
    size_bytes: u64,
    diff_id: Option<String>,
    comment: String,
}

/// Lists the steps that made an image, the last one first.
pub(crate) fn run(session: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    let store = session.store()?;
    let image = session::open_image(&store, &args.name)?;
    let rows = rows(&image);
    if args.format == Format::Json {
        session.print(&serde_json::to_string_pretty(&rows)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["CREATED", "CREATED BY", "SIZE", "COMMENT"]);
    for row in rows {
        // Instructions may have several lines, a row has one.
        let mut words = row.created_by.split_whitespace().collect::<Vec<_>>().join(" ");
        if !args.no_trunc && words.chars().count() > SHOWN_CHARACTERS {
            words = words.chars().take(SHOWN_CHARACTERS - 1).chain(['…']).collect();
        }
        table.push([row.created.unwrap_or_else(|| "-".to_owned()), words, human_size(row.size_bytes), row.comment]);
    }
    session.print(&table.to_string())?;
    Ok(ExitCode::SUCCESS)
}

fn rows(image: &StoredImage) -> Vec<Row> {
    let mut layers = image.layers.iter();
    let mut rows: Vec<Row> = image
        .config
        .history
        .iter()
        .map(|step| {
            let layer = if step.empty_layer { None } else { layers.next() };
            Row {
                created: step.created.clone(),
                created_by: step.created_by.clone(),
                size_bytes: layer.map_or(0, |layer| layer.descriptor.size()),
                diff_id: layer.map(|layer| layer.diff_id.to_string()),
                comment: step.comment.clone(),
            }
        })
        .collect();
    // Images made without a history have layers all the same.
    rows.extend(layers.map(|layer| Row {
        created: None,
        created_by: String::new(),
        size_bytes: layer.descriptor.size(),
        diff_id: Some(layer.diff_id.to_string()),
        comment: String::new(),
    }));
    rows.reverse();
    rows
}
