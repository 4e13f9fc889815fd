//! The build of DESIGN section 12: a context of many files, two RUNs, two stages, a push.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use fixtures::registry::Registry;

use crate::peers::{finish, spread, timed};
use crate::table::{Table, median};

/// Arguments of `benches build`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A tar of the base image's root, for example `mmdebstrap --variant=apt bookworm base.tar`
    #[arg(long)]
    base: PathBuf,
    /// Files in the context
    #[arg(long, default_value_t = 12_000)]
    files: usize,
    /// Bytes in all of them
    #[arg(long, default_value_t = 170 << 20)]
    bytes: usize,
}

const DOCKERFILE: &str = "\
ARG BASE
FROM ${BASE} AS build
COPY . /src
RUN cp -a /src /copy && rm -r /copy
FROM ${BASE}
COPY --from=build /src /src
RUN find /src -type f | xargs sha256sum > /sums
";

/// Builds with both, in turns: cold, with nothing changed, with one file changed.
pub(crate) fn run(nacre: &Path, rounds: usize, args: &Args) -> anyhow::Result<Table> {
    let scratch = tempfile::Builder::new().prefix("nacre-bench-").tempdir_in("/var/tmp")?;
    spread(scratch.path());
    let registry = Registry::open();
    let context = scratch.path().join("context");
    fill(&context, args)?;
    let base = format!("{}/base", registry.address());
    push_base(nacre, scratch.path(), &args.base, &base)?;
    let mut table = Table::new(&["buildah", "nacre, fuse", "nacre, overlay"]);
    let mut times: [[Vec<Duration>; 3]; 3] = Default::default();
    for round in 0..rounds {
        // Where nobody built before: the first build is one, and finds a part of the disk where nothing was removed.
        let place = |name: &str| scratch.path().join(format!("{name}-{round}"));
        let contenders = [
            Contender::Buildah { root: place("buildah") },
            Contender::Nacre { program: nacre.to_owned(), store: place("fuse"), plane: "fuse" },
            Contender::Nacre { program: nacre.to_owned(), store: place("overlay"), plane: "overlay" },
        ];
        for (column, contender) in contenders.iter().enumerate() {
            let target = format!("{}/result-{column}", registry.address());
            let mut build = |row: usize| -> anyhow::Result<()> {
                times[row][column].push(timed(|| contender.build(&context, &base, &target))?);
                Ok(())
            };
            build(0)?;
            build(1)?;
            fs::write(context.join("d0/f0"), format!("changed in round {round} for {column}"))?;
            build(2)?;
        }
    }
    for (name, times) in
        ["cold, with push", "nothing changed, with push", "one file changed, with push"].iter().zip(times)
    {
        table.push(name, times.into_iter().map(median).collect());
    }
    Ok(table)
}

enum Contender {
    Buildah { root: PathBuf },
    Nacre { program: PathBuf, store: PathBuf, plane: &'static str },
}

impl Contender {
    fn build(&self, context: &Path, base: &str, target: &str) -> anyhow::Result<()> {
        let argument = format!("BASE={base}");
        match self {
            Self::Buildah { root } => {
                let flags =
                    ["build", "--layers", "--isolation", "chroot", "--tls-verify=false", "--build-arg", &argument];
                finish(buildah(root).args(flags).args(["-t", target]).arg(context))?;
                finish(buildah(root).args(["push", "--tls-verify=false", target]))
            }
            Self::Nacre { program, store, plane } => {
                let mut command = Command::new(program);
                command.arg("--root").arg(store).args(["build", "--plane", plane, "--build-arg", &argument]);
                finish(command.args(["-t", target, "--push"]).arg(context))
            }
        }
    }
}

fn buildah(root: &Path) -> Command {
    let mut command = Command::new("buildah");
    command.arg("--root").arg(root.join("root")).arg("--runroot").arg(root.join("run"));
    command.args(["--storage-driver", "overlay"]);
    command
}

/// Text that compresses about as source code does, another one in each file.
fn fill(context: &Path, args: &Args) -> anyhow::Result<()> {
    let size = args.bytes / args.files;
    for number in 0..args.files {
        let directory = context.join(format!("d{}", number % 100));
        fs::create_dir_all(&directory)?;
        let mut text = String::new();
        let mut state = number as u64 + 1;
        while text.len() < size {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            text.push_str(&format!("let value_{} = compute({:x}, \"{number}\");\n", state >> 52, state >> 40));
        }
        fs::write(directory.join(format!("f{number}")), text)?;
    }
    fs::write(context.join("Dockerfile"), DOCKERFILE)?;
    Ok(())
}

fn push_base(nacre: &Path, scratch: &Path, base: &Path, target: &str) -> anyhow::Result<()> {
    let context = scratch.join("base-context");
    fs::create_dir(&context)?;
    fs::copy(base, context.join("base.tar"))?;
    fs::write(context.join("Dockerfile"), "FROM scratch\nADD base.tar /\nCMD [\"/bin/sh\"]\n")?;
    let mut command = Command::new(nacre);
    command.arg("--root").arg(scratch.join("base-store")).args(["build", "-t", target, "--push"]);
    finish(command.arg(&context))
}
