//! The same tree below kernel overlayfs, fuse-overlayfs and both planes of layerfs, the same work on each.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use crate::peers::{drop_caches, finish, run as run_program, spread, timed};
use crate::table::{Table, median};
use crate::workloads::{TAR, WORKLOADS, Workload, forget_large};

/// Arguments of `benches filesystem`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A tar of the tree that lies below, for example `mmdebstrap --variant=apt bookworm base.tar`
    #[arg(long)]
    base: PathBuf,
    /// The peer
    #[arg(long, default_value = "fuse-overlayfs")]
    fuse_overlayfs: PathBuf,
    /// Where the lower tree, the store and the uppers lie: on a disk its noise is measured, too
    #[arg(long, default_value = "/var/tmp")]
    scratch: PathBuf,
    /// Only workloads whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// No workloads whose name contains this
    #[arg(long)]
    except: Option<String>,
}

/// Something that mounts the tree copy-on-write.
enum Contender {
    Kernel,
    FuseOverlayfs(PathBuf),
    Nacre { program: PathBuf, store: PathBuf, plane: &'static str },
}

/// A place for one measurement: every one begins with an empty upper. It stays until the bench ends: ext4 steps over inodes
/// that were freed within the last minutes, one by one, and whoever comes next would pay for what others removed.
struct Place {
    directory: PathBuf,
}

impl Place {
    fn new(root: &Path) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("bench-").tempdir_in(root)?.keep();
        for name in ["upper", "work", "merged"] {
            fs::create_dir(directory.join(name))?;
        }
        Ok(Self { directory })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

impl Contender {
    fn mount(&self, place: &Place, lower: &Path) -> anyhow::Result<()> {
        let merged = place.path("merged");
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            place.path("upper").display(),
            place.path("work").display()
        );
        match self {
            Self::Kernel => {
                finish(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(merged))
            }
            Self::FuseOverlayfs(program) => finish(Command::new(program).args(["-o", &options]).arg(merged)),
            Self::Nacre { program, store, plane } => {
                let mut command = Command::new(program);
                finish(command.arg("--root").arg(store).args(["mount", "--plane", plane, "base"]).arg(merged))
            }
        }
    }

    fn unmount(&self, place: &Place) -> anyhow::Result<()> {
        let merged: OsString = place.path("merged").into();
        match self {
            Self::Kernel | Self::FuseOverlayfs(_) => run_program("umount", &[merged]),
            Self::Nacre { program, store, .. } => {
                let mut command = Command::new(program);
                finish(command.arg("--root").arg(store).arg("unmount").arg(merged))
            }
        }
    }

    fn measure(&self, workload: &Workload, root: &Path, lower: &Path) -> anyhow::Result<Duration> {
        let place = Place::new(root)?;
        self.mount(&place, lower)?;
        let merged = place.path("merged");
        let measured = (|| {
            (workload.prepare)(&merged)?;
            // What was written before is not to be written while the clock runs.
            if workload.is_cold {
                drop_caches()?
            } else {
                rustix::fs::sync()
            }
            timed(|| (workload.work)(&merged))
        })();
        forget_large(&merged)?;
        self.unmount(&place)?;
        measured.with_context(|| format!("{:?} failed", workload.name))
    }
}

/// Runs all workloads on all contenders.
pub(crate) fn run(nacre: &Path, rounds: usize, args: &Args) -> anyhow::Result<Table> {
    let scratch = tempfile::Builder::new().prefix("nacre-bench-").tempdir_in(&args.scratch)?;
    spread(scratch.path());
    let lower = scratch.path().join("lower");
    fs::create_dir(&lower)?;
    run_program("tar", &[OsString::from("-xf"), args.base.clone().into(), "-C".into(), lower.clone().into()])?;
    fs::copy(&args.base, TAR)?;
    let store = import(nacre, scratch.path(), &args.base)?;
    let contenders = [
        Contender::Kernel,
        Contender::FuseOverlayfs(args.fuse_overlayfs.clone()),
        Contender::Nacre { program: nacre.to_owned(), store: store.clone(), plane: "fuse" },
        Contender::Nacre { program: nacre.to_owned(), store, plane: "overlay" },
    ];
    let mut table = Table::new(&["kernel", "fuse-overlayfs", "layerfs", "layerfs, overlay plane"]);
    let is_wanted = |workload: &&Workload| {
        let is_excepted = args.except.as_ref().is_some_and(|except| workload.name.contains(except));
        workload.name.contains(&args.only) && !is_excepted
    };
    for workload in WORKLOADS.iter().filter(is_wanted) {
        let mut times: [Vec<Duration>; 4] = Default::default();
        // In turns, so that a slow spell of the machine meets all of them.
        for _ in 0..rounds {
            for (contender, times) in contenders.iter().zip(&mut times) {
                match contender.measure(workload, scratch.path(), &lower) {
                    Ok(time) => times.push(time),
                    Err(error) => eprintln_failure(workload, &error),
                }
            }
        }
        table.push(workload.name, times.into_iter().map(median).collect());
    }
    fs::remove_file(TAR)?;
    Ok(table)
}

#[expect(clippy::print_stderr, reason = "a peer that cannot do something is a dash in the table and a line here")]
fn eprintln_failure(workload: &Workload, error: &anyhow::Error) {
    eprintln!("{}: {error:#}", workload.name);
}

/// The base as an image named `base` in a store of its own.
fn import(nacre: &Path, scratch: &Path, base: &Path) -> anyhow::Result<PathBuf> {
    let (store, context) = (scratch.join("store"), scratch.join("context"));
    fs::create_dir(&context)?;
    fs::copy(base, context.join("base.tar"))?;
    fs::write(context.join("Dockerfile"), "FROM scratch\nADD base.tar /\n")?;
    let mut command = Command::new(nacre);
    finish(command.arg("--root").arg(&store).args(["build", "-t", "base"]).arg(&context))?;
    fs::remove_dir_all(&context)?;
    Ok(store)
}
