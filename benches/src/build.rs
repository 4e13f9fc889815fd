//! The build of DESIGN section 12: a context of many files, two RUNs, two stages, a push.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use fixtures::registry::Registry;

use crate::peers::{finish, run as run_program, spread, timed};
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
    /// A directory with `buildctl` and `buildkitd`, to have BuildKit build as well; its daemon needs runc
    #[arg(long)]
    buildkit: Option<PathBuf>,
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
    let mut names = vec!["buildah", "nacre, fuse", "nacre, overlay"];
    names.extend(args.buildkit.iter().map(|_| "buildkit"));
    let mut times: Vec<[Vec<Duration>; 3]> = names.iter().map(|_| Default::default()).collect();
    for round in 0..rounds {
        // Where nobody built before: the first build is one, and finds a part of the disk where nothing was removed.
        let place = |name: &str| scratch.path().join(format!("{name}-{round}"));
        let nacre = |plane| Contender::Nacre { program: nacre.to_owned(), store: place(plane), plane };
        let mut contenders = vec![Contender::Buildah { root: place("buildah") }, nacre("fuse"), nacre("overlay")];
        if let Some(programs) = &args.buildkit {
            contenders.push(Contender::BuildKit(BuildKit::start(programs, &place("buildkit"), &registry)?));
        }
        for (column, contender) in contenders.iter().enumerate() {
            let target = format!("{}/result-{column}", registry.address());
            let mut build = |row: usize| -> anyhow::Result<()> {
                times[column][row].push(timed(|| contender.build(&context, &base, &target))?);
                Ok(())
            };
            build(0)?;
            build(1)?;
            fs::write(context.join("d0/f0"), format!("changed in round {round} for {column}"))?;
            build(2)?;
        }
    }
    let mut table = Table::new(&names);
    let jobs = ["cold, with push", "nothing changed, with push", "one file changed, with push"];
    for (row, job) in jobs.iter().enumerate() {
        table.push(job, times.iter_mut().map(|times| median(std::mem::take(&mut times[row]))).collect());
    }
    Ok(table)
}

enum Contender {
    Buildah { root: PathBuf },
    BuildKit(BuildKit),
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
            Self::BuildKit(daemon) => daemon.build(context, &argument, target),
            Self::Nacre { program, store, plane } => {
                let mut command = Command::new(program);
                command.arg("--root").arg(store).args(["build", "--plane", plane, "--build-arg", &argument]);
                finish(command.args(["-t", target, "--push"]).arg(context))
            }
        }
    }
}

/// A BuildKit daemon, with nothing in its cache; it ends with the value.
struct BuildKit {
    client: PathBuf,
    address: String,
    daemon: Child,
}

impl BuildKit {
    fn start(programs: &Path, root: &Path, registry: &Registry) -> anyhow::Result<Self> {
        fs::create_dir(root)?;
        let (settings, address) = (root.join("buildkitd.toml"), format!("unix://{}", root.join("socket").display()));
        fs::write(&settings, format!("[registry.\"{}\"]\nhttp = true\n", registry.address()))?;
        let log = fs::File::create(root.join("log"))?;
        let mut command = Command::new(programs.join("buildkitd"));
        command.arg("--config").arg(&settings).arg("--root").arg(root.join("data")).args(["--addr", &address]);
        command.args(["--oci-worker-net", "host"]).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let daemon = command.spawn().context("cannot start buildkitd")?;
        let started = Self { client: programs.join("buildctl"), address, daemon };
        finish(started.client().args(["--wait", "--timeout", "30", "debug", "workers"])).context("buildkitd")?;
        Ok(started)
    }

    fn client(&self) -> Command {
        let mut command = Command::new(&self.client);
        command.args(["--addr", &self.address]);
        command
    }

    fn build(&self, context: &Path, argument: &str, target: &str) -> anyhow::Result<()> {
        let mut command = self.client();
        command.args(["build", "--frontend", "dockerfile.v0", "--opt", &format!("build-arg:{argument}")]);
        for name in ["context", "dockerfile"] {
            command.arg("--local").arg(format!("{name}={}", context.display()));
        }
        finish(command.arg("--output").arg(format!("type=image,name={target},push=true")))
    }
}

impl Drop for BuildKit {
    fn drop(&mut self) {
        // It ends what it runs and unmounts what it mounted when it is asked to.
        _ = run_program("kill", &[self.daemon.id().to_string()]);
        _ = self.daemon.wait();
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
