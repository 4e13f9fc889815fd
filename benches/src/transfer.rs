//! Pushing and pulling against a registry on the loopback: skopeo or podman, and nacre.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::peers::{Registry, drop_caches, finish, timed};
use crate::table::{Table, median};

/// Arguments of `benches transfer`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A tar of the image's root, for example `mmdebstrap --variant=apt bookworm base.tar`
    #[arg(long)]
    base: PathBuf,
    /// podman's runtime, where its own does not work
    #[arg(long)]
    runtime: Option<PathBuf>,
}

/// Moves one image with both, in turns.
pub(crate) fn run(nacre: &Path, rounds: usize, args: &Args) -> anyhow::Result<Table> {
    let scratch = tempfile::Builder::new().prefix("nacre-bench-").tempdir_in("/var/tmp")?;
    let bench = Bench { nacre, args, scratch: scratch.path(), registry: Registry::start(scratch.path())? };
    bench.prepare()?;
    let mut rows: [[Vec<Duration>; 2]; 3] = Default::default();
    for round in 0..rounds {
        rows[0][0].push(timed(|| bench.skopeo_push(round))?);
        rows[0][1].push(timed(|| bench.nacre_push(round))?);
        rows[1][0].push(timed(|| bench.skopeo_pull(round))?);
        rows[1][1].push(timed(|| bench.nacre_pull(round))?);
        drop_caches()?;
        rows[2][0].push(timed(|| bench.podman_run(round))?);
        drop_caches()?;
        rows[2][1].push(timed(|| bench.nacre_run(round))?);
    }
    let mut table = Table::new(&["peer", "nacre"]);
    let names =
        ["push (skopeo)", "pull to disk (skopeo to a layout, nacre to its store)", "pull to first exec (podman)"];
    for (name, times) in names.iter().zip(rows) {
        table.push(name, times.into_iter().map(median).collect());
    }
    Ok(table)
}

struct Bench<'a> {
    nacre: &'a Path,
    args: &'a Args,
    scratch: &'a Path,
    registry: Registry,
}

impl Bench<'_> {
    fn image(&self) -> String {
        format!("{}/bench", self.registry.address)
    }

    fn nacre(&self, store: &str) -> Command {
        let mut command = Command::new(self.nacre);
        command.arg("--root").arg(self.scratch.join(store));
        command
    }

    /// The image, in a store, in a layout and at the registry.
    fn prepare(&self) -> anyhow::Result<()> {
        let context = self.scratch.join("context");
        fs::create_dir(&context)?;
        fs::copy(&self.args.base, context.join("base.tar"))?;
        fs::write(context.join("Dockerfile"), "FROM scratch\nADD base.tar /\nCMD [\"/bin/true\"]\n")?;
        finish(self.nacre("source").args(["build", "-t", &self.image(), "--push"]).arg(&context))?;
        let layout = format!("oci:{}:bench", self.scratch.join("layout").display());
        finish(self.nacre("source").args(["copy", &self.image(), &layout]))
    }

    fn skopeo_push(&self, round: usize) -> anyhow::Result<()> {
        let layout = format!("oci:{}:bench", self.scratch.join("layout").display());
        let target = format!("docker://{}/skopeo-{round}", self.registry.address);
        finish(Command::new("skopeo").args(["copy", "-q", "--dest-tls-verify=false", &layout, &target]))
    }

    fn nacre_push(&self, round: usize) -> anyhow::Result<()> {
        let target = format!("{}/nacre-{round}", self.registry.address);
        finish(self.nacre("source").args(["push", &self.image(), &target]))
    }

    fn skopeo_pull(&self, round: usize) -> anyhow::Result<()> {
        let target = format!("oci:{}:bench", self.scratch.join(format!("pulled-{round}")).display());
        let source = format!("docker://{}", self.image());
        finish(Command::new("skopeo").args(["copy", "-q", "--src-tls-verify=false", &source, &target]))
    }

    fn nacre_pull(&self, round: usize) -> anyhow::Result<()> {
        finish(self.nacre(&format!("pull-{round}")).args(["pull", &self.image()]))
    }

    fn podman_run(&self, round: usize) -> anyhow::Result<()> {
        let root = self.scratch.join(format!("podman-{round}"));
        let mut command = Command::new("podman");
        if let Some(runtime) = &self.args.runtime {
            command.arg("--runtime").arg(runtime);
        }
        command.args(["--storage-driver", "overlay", "--root"]).arg(root.join("root"));
        command.arg("--runroot").arg(root.join("run"));
        finish(command.args(["run", "--rm", "--network", "host", "--tls-verify=false", &self.image()]))
    }

    fn nacre_run(&self, round: usize) -> anyhow::Result<()> {
        finish(self.nacre(&format!("run-{round}")).args(["run", &self.image()]))
    }
}
