//! `nacre doctor`: what this host permits, tried out.
//!
//! What builds need is tried by a child of the program, in the namespaces of a build; its findings come as JSON.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::Context;
use builder::host::{self, Finding, State};
use builder::rootless::{self, Entered, Mapping};
use layerfs::Store;
use serde::{Deserialize, Serialize};

use crate::args::Global;
use crate::format::Format;
use crate::session::{self, print};

/// Try out what this host permits
#[derive(clap::Args)]
#[command(after_help = "Each line is the result of a trial: `works`; `limited`, which builds can do without; or \
    `missing`, which they cannot. The exit code is 0 if builds can work, else 1.")]
pub(crate) struct Args {
    /// How to print the findings
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Only what is tried where builds run, as JSON for the process that started this one.
    #[arg(long, hide = true)]
    inside: bool,
}

#[derive(Serialize, Deserialize)]
struct Report {
    /// Whether builds can work.
    builds: bool,
    findings: Vec<Finding>,
}

/// Tries everything, and prints what was found.
pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<ExitCode> {
    let root = session::root(global)?;
    if args.inside {
        return run_inside(&root);
    }
    let mut findings = match std::fs::create_dir_all(&root) {
        Ok(()) => host::outside(&root, &session::path()),
        Err(error) => {
            let found = format!("{} cannot be made: {error}", root.display());
            vec![Finding::missing("store", found, "nothing works", "name another place with --root")]
        }
    };
    findings.extend(ask_inside(&root)?);
    let report = Report { builds: findings.iter().all(|finding| finding.state != State::Missing), findings };
    match args.format {
        Format::Json => print(&serde_json::to_string_pretty(&report)?)?,
        Format::Table => print(&text(&report))?,
    }
    Ok(if report.builds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(report: &Report) -> String {
    let width = report.findings.iter().map(|finding| finding.what.chars().count()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for finding in &report.findings {
        let state = match finding.state {
            State::Works => "works  ",
            State::Limited => "limited",
            State::Missing => "missing",
        };
        lines.push(format!("{state}   {:width$}   {}", finding.what, finding.found));
        lines.extend(finding.cost.iter().map(|cost| format!("{:10}{:width$}   costs: {cost}", "", "")));
        lines.extend(finding.next.iter().map(|next| format!("{:10}{:width$}   next: {next}", "", "")));
    }
    lines.push(format!("\nbuilds {} work here", if report.builds { "can" } else { "cannot" }));
    lines.join("\n")
}

/// Has a child of the program enter the namespaces of a build and try what works there.
fn ask_inside(root: &Path) -> anyhow::Result<Vec<Finding>> {
    let mut command = Command::new("/proc/self/exe");
    command.arg("--root").arg(root).args(["doctor", "--inside"]).stdin(Stdio::null());
    let output = command.output().context("cannot start the program again")?;
    serde_json::from_slice(&output.stdout).or_else(|_| {
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let next = "`nacre --debug doctor` may tell more";
        Ok(vec![Finding::missing("namespaces of a build", words, "builds cannot work", next)])
    })
}

/// How many user ids exist here: the third number of each line.
fn mapped_ids() -> u64 {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok()).sum()
}

fn images(store: &Store) -> anyhow::Result<Finding> {
    let (count, damaged) = (store.images()?.len(), super::images::damaged(store)?);
    let plural = if count == 1 { "" } else { "s" };
    if damaged.is_empty() {
        return Ok(Finding::works("images", format!("{count} image{plural} of the store can be opened")));
    }
    let found = format!("of {count} image{plural} these are damaged: {}", damaged.join(", "));
    let next = "`nacre verify` tells which files; pull or build these images again";
    Ok(Finding::limited("images", found, "they cannot be used", next))
}

fn run_inside(root: &Path) -> anyhow::Result<ExitCode> {
    let options = rootless::Options { private_mounts: true, mapping: Mapping::Ranges };
    let is_root = rustix::process::geteuid().is_root();
    let findings = match rootless::enter(options) {
        Ok(Entered::Finished(code)) => return Ok(ExitCode::from(code)),
        Ok(Entered::Inside(identity)) => {
            let found = match (identity.in_user_namespace, is_root) {
                (false, _) => "root of the machine, in a mount namespace of its own".to_owned(),
                (true, true) => "root of a user namespace that someone else made".to_owned(),
                (true, false) => {
                    format!("user {} is root of a user namespace with {} ids", identity.uid, mapped_ids())
                }
            };
            let mut findings = vec![Finding::works("namespaces of a build", found)];
            match session::open_store(root) {
                Ok(store) => {
                    findings.extend(host::inside(&store));
                    findings.push(images(&store)?);
                }
                Err(error) => {
                    let next = "name another place with --root";
                    findings.push(Finding::missing("store", format!("{error:#}"), "nothing works", next));
                }
            }
            findings
        }
        Err(error) => {
            let next = error.hint().unwrap_or_else(|| "run as root".to_owned());
            let found = format!("{:#}", anyhow::Error::from(error));
            vec![Finding::missing("namespaces of a build", found, "builds cannot work", next)]
        }
    };
    print(&serde_json::to_string(&findings)?)?;
    Ok(ExitCode::SUCCESS)
}
