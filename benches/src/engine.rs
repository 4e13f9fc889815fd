//! What the build engine costs by itself: a step that does nothing, a context of very many files, a large layer.
//!
//! The first build of the large context is the peer of the second one; fork and exec is the peer of the step.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::peers::{finish, run as run_program, timed};
use crate::table::{Table, median};

/// Steps in the build of steps that do nothing.
const STEPS: u32 = 50;

/// Arguments of `benches engine`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A tar of the base image's root, for example `mmdebstrap --variant=apt bookworm base.tar`
    #[arg(long)]
    base: PathBuf,
    /// Files in the large context
    #[arg(long, default_value_t = 200_000)]
    files: usize,
    /// Bytes of the large layer
    #[arg(long, default_value_t = 500 << 20)]
    bytes: usize,
}

/// Runs all three.
pub(crate) fn run(nacre: &Path, rounds: usize, args: &Args) -> anyhow::Result<Table> {
    let scratch = tempfile::Builder::new().prefix("nacre-bench-").tempdir_in("/var/tmp")?;
    let mut table = Table::new(&["peer", "nacre"]);
    let nacre = Nacre { program: nacre, store: scratch.path().join("store") };
    let mut compare = |name: &str, measure: &mut dyn FnMut() -> anyhow::Result<[Duration; 2]>| -> anyhow::Result<()> {
        let times = (0..rounds).map(|_| measure()).collect::<anyhow::Result<Vec<_>>>()?;
        let column = |column: usize| median(times.iter().map(|times| times[column]).collect());
        table.push(name, vec![column(0), column(1)]);
        Ok(())
    };

    let context = scratch.path().join("base");
    fs::create_dir(&context)?;
    fs::copy(&args.base, context.join("base.tar"))?;
    fs::write(context.join("Dockerfile"), "FROM scratch\nADD base.tar /\n")?;
    nacre.build(&context, &["-t", "base"])?;
    let mut round = 0;
    compare("a RUN that does nothing (fork and exec)", &mut || {
        round += 1;
        Ok([fork_and_exec()?, nacre.idle_step(scratch.path(), round)?])
    })?;

    let context = scratch.path().join("many");
    fill(&context, args.files)?;
    compare(&format!("second build of {} files (first build)", args.files), &mut || {
        let build = || nacre.build(&context, &["-t", "many"]);
        let times = [timed(build)?, timed(build)?];
        // The next one is a first one again.
        fs::remove_dir_all(&nacre.store)?;
        Ok(times)
    })?;

    let layout = scratch.path().join("large");
    let tar = large_layer(&nacre, scratch.path(), args, &layout)?;
    let out = scratch.path().join("out");
    let [from, to] = [&layout, &out].map(|path| format!("oci:{}:latest", path.display()));
    let copy = ["copy", "--compression", "gzip", "--force-compression"];
    for peer in ["pigz", "gzip"] {
        compare(&format!("gzip of a layer of {} MB ({peer} -6)", args.bytes >> 20), &mut || {
            let theirs = timed(|| compress(peer, &tar, &out))?;
            fs::remove_file(&out)?;
            let ours = timed(|| nacre.watched(&copy, &[&from, &to]))?;
            fs::remove_dir_all(&out)?;
            Ok([theirs, ours])
        })?;
    }
    Ok(table)
}

struct Nacre<'a> {
    program: &'a Path,
    store: PathBuf,
}

impl Nacre<'_> {
    fn build(&self, context: &Path, flags: &[&str]) -> anyhow::Result<()> {
        self.watched(&[&["build"], flags].concat(), &[&context.to_string_lossy()])
    }

    /// Runs to the end, and says how much memory the process had.
    fn watched(&self, verb: &[&str], arguments: &[&str]) -> anyhow::Result<()> {
        let mut command = Command::new(self.program);
        command.arg("--root").arg(&self.store).args(verb).args(arguments);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let status = format!("/proc/{}/status", child.id());
        let mut most = String::new();
        let ended = loop {
            if let Some(ended) = child.try_wait()? {
                break ended;
            }
            // It only grows, so what is read last before the end is it.
            let text = fs::read_to_string(&status).unwrap_or_default();
            if let Some(line) = text.lines().find_map(|line| line.strip_prefix("VmHWM:")) {
                line.trim().clone_into(&mut most);
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        ensure!(ended.success(), "{command:?} failed");
        _ = writeln!(std::io::stderr(), "  {}: at most {most}", verb.join(" "));
        Ok(())
    }

    /// The time that one more step takes which does nothing.
    fn idle_step(&self, scratch: &Path, round: u32) -> anyhow::Result<Duration> {
        let context = scratch.join("idle");
        fs::create_dir_all(&context)?;
        let build = |steps: u32| {
            let step = |number| format!("RUN [\"/bin/true\", \"{round} of {steps}: {number}\"]\n");
            let text = "FROM base\n".to_owned() + &(0..steps).map(step).collect::<String>();
            fs::write(context.join("Dockerfile"), text)?;
            let mut command = Command::new(self.program);
            command.arg("--root").arg(&self.store).args(["build", "--output", "type=cacheonly"]).arg(&context);
            // Not watched: a look every two milliseconds is felt by a step that takes fifteen.
            timed(|| finish(&mut command))
        };
        let few = build(1)?;
        Ok(build(STEPS + 1)?.saturating_sub(few) / STEPS)
    }
}

/// The time of starting the same program.
fn fork_and_exec() -> anyhow::Result<Duration> {
    let time = timed(|| (0..STEPS).try_for_each(|_| run_program::<&str>("/bin/true", &[])))?;
    Ok(time / STEPS)
}

/// Small files, a hundred in a directory.
fn fill(context: &Path, files: usize) -> anyhow::Result<()> {
    for number in 0..files {
        let directory = context.join(format!("d{}", number / 100));
        if number % 100 == 0 {
            fs::create_dir_all(&directory)?;
        }
        fs::write(directory.join(format!("f{number}")), format!("{number}"))?;
    }
    Ok(fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY . /\n")?)
}

/// A layout whose layer is a tar of at least so many bytes, many times the base; gives that tar.
fn large_layer(nacre: &Nacre<'_>, scratch: &Path, args: &Args, layout: &Path) -> anyhow::Result<PathBuf> {
    let context = scratch.join("large-context");
    fs::create_dir(&context)?;
    let (base, mut copied) = (fs::metadata(&args.base)?.len(), 0);
    while copied < args.bytes as u64 {
        fs::copy(&args.base, context.join(format!("part-{copied}")))?;
        copied += base;
    }
    fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY part* /\n")?;
    let output = format!("type=oci,tar=false,compression=uncompressed,name=x,dest={}", layout.display());
    nacre.build(&context, &["--output", &output])?;
    let blobs = fs::read_dir(layout.join("blobs/sha256"))?.collect::<Result<Vec<_>, _>>()?;
    let largest = blobs.iter().max_by_key(|blob| blob.metadata().map_or(0, |metadata| metadata.len()));
    Ok(largest.context("the layout is empty")?.path())
}

fn compress(program: &str, tar: &Path, out: &Path) -> anyhow::Result<()> {
    let (from, to) = (File::open(tar)?, File::create(out)?);
    let status = Command::new(program).arg("-6").stdin(from).stdout(to).status()?;
    ensure!(status.success(), "{program} failed");
    Ok(())
}
