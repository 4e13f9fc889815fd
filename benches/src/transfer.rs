//! Pushing and pulling against a registry on the loopback: skopeo or podman, and nacre; also over a slow and over an
//! unreliable network.
//!
//! Invariant: what is pushed is new each time, so that no contender can have it mounted from another repository.

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use fixtures::registry::Registry;

use crate::link::{Link, Weather};
use crate::peers::{drop_caches, finish, timed};
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
    /// Random content beside the root, in nine layers
    #[arg(long, default_value_t = 400, value_name = "MB")]
    megabytes: u64,
    /// Random content of an image that crosses the slow and the unreliable network
    #[arg(long, default_value_t = 60, value_name = "MB")]
    far_megabytes: u64,
    /// Only over this network
    #[arg(long, value_enum)]
    only: Option<Network>,
}

/// What lies between a contender and the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Network {
    /// The loopback.
    Near,
    /// 50 ms and 100 Mbit/s.
    Slow,
    /// Connections that are reset.
    Unreliable,
}

/// Layers of random content in an image.
const LAYERS: u64 = 9;
/// 100 Mbit/s and a round trip of 50 ms.
const SLOW: Weather =
    Weather { delay: Duration::from_millis(25), bytes_per_second: Some(12_500_000), resets_percent: 0 };
/// A connection lives for a hundred mebibytes on average.
const UNRELIABLE: Weather = Weather { delay: Duration::ZERO, bytes_per_second: None, resets_percent: 1 };

/// Moves images with both, in turns.
pub(crate) fn run(nacre: &Path, rounds: usize, args: &Args) -> anyhow::Result<Table> {
    let scratch = tempfile::Builder::new().prefix("nacre-bench-").tempdir_in("/var/tmp")?;
    let registry = Registry::open();
    let address = registry.address().parse().context("where the registry listens")?;
    let bench = Bench { nacre, args, scratch: scratch.path(), registry: address };
    let mut table = Table::new(&["peer", "nacre"]);
    let is_wanted = |network| args.only.is_none_or(|only| only == network);
    if is_wanted(Network::Near) {
        bench.near(rounds, &mut table)?;
    }
    if is_wanted(Network::Slow) {
        bench.far(rounds, "50 ms, 100 Mbit/s", SLOW, &mut table)?;
    }
    if is_wanted(Network::Unreliable) {
        bench.far(rounds, "1 % resets", UNRELIABLE, &mut table)?;
    }
    Ok(table)
}

struct Bench<'a> {
    nacre: &'a Path,
    args: &'a Args,
    scratch: &'a Path,
    registry: SocketAddr,
}

/// Who moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Peer,
    Nacre,
}

const BOTH: [Who; 2] = [Who::Peer, Who::Nacre];

impl Bench<'_> {
    fn near(&self, rounds: usize, table: &mut Table) -> anyhow::Result<()> {
        let mut rows: [[Vec<Duration>; 2]; 4] = Default::default();
        for round in 0..rounds {
            for who in BOTH {
                let name = format!("near-{who:?}-{round}").to_lowercase();
                let layout = self.fresh(&name, self.args.megabytes)?;
                let times = |row: usize, rows: &mut [[Vec<Duration>; 2]; 4], time| rows[row][who as usize].push(time);
                times(0, &mut rows, settled(|| self.push(who, &layout, self.registry, &name))?);
                times(1, &mut rows, settled(|| self.pull(who, self.registry, &name))?);
                times(2, &mut rows, settled(|| self.push_again(who, &name))?);
                fs::remove_dir_all(&layout)?;
                drop_caches()?;
                times(3, &mut rows, settled(|| self.first_exec(who, &name))?);
                self.clear(&name)?;
            }
        }
        let names = [
            "push of a fresh image (skopeo, from a layout)",
            "pull to a layout (skopeo)",
            "copy to another repository of the registry (skopeo)",
            "pull to first exec (podman)",
        ];
        for (name, times) in names.iter().zip(rows) {
            table.push(name, times.into_iter().map(median).collect());
        }
        Ok(())
    }

    fn far(&self, rounds: usize, words: &str, weather: Weather, table: &mut Table) -> anyhow::Result<()> {
        let mut rows: [[Vec<Option<Duration>>; 2]; 2] = Default::default();
        for round in 0..rounds {
            for who in BOTH {
                // Each has a link of its own, with the same resets.
                let link = Link::to(self.registry, weather)?;
                let name = format!("far-{}-{who:?}-{round}", words.len()).to_lowercase();
                let layout = self.fresh(&name, self.args.far_megabytes)?;
                rows[0][who as usize].push(survived(settled(|| self.push(who, &layout, link.address, &name))));
                // What a contender could not push it can pull all the same.
                self.push(Who::Nacre, &layout, self.registry, &name)?;
                rows[1][who as usize].push(survived(settled(|| self.pull(who, link.address, &name))));
                fs::remove_dir_all(&layout)?;
                self.clear(&name)?;
            }
        }
        for (name, times) in ["push", "pull to a layout"].iter().zip(rows) {
            // One failure is a failure: nobody counts on what works sometimes.
            let times = times.into_iter().map(|times| times.into_iter().collect::<Option<Vec<_>>>().and_then(median));
            table.push(&format!("{name} over {words} (skopeo)"), times.collect());
        }
        Ok(())
    }

    fn nacre(&self, store: &str) -> Command {
        let mut command = Command::new(self.nacre);
        command.arg("--root").arg(self.scratch.join(store));
        command
    }

    /// A layout with an image that nobody has seen, made where its layers leave no trace.
    fn fresh(&self, name: &str, megabytes: u64) -> anyhow::Result<PathBuf> {
        let context = self.scratch.join(format!("context-{name}"));
        fs::create_dir(&context)?;
        fs::copy(&self.args.base, context.join("base.tar"))?;
        let mut dockerfile = "FROM scratch\nADD base.tar /\n".to_owned();
        for number in 0..LAYERS {
            let mut random = fs::File::open("/dev/urandom")?.take(megabytes * 1_000_000 / LAYERS);
            std::io::copy(&mut random, &mut fs::File::create(context.join(number.to_string()))?)?;
            dockerfile.push_str(&format!("COPY {number} /random/{number}\n"));
        }
        fs::write(context.join("Dockerfile"), dockerfile + "CMD [\"/bin/true\"]\n")?;
        let store = format!("maker-{name}");
        finish(self.nacre(&store).args(["build", "-t", "made"]).arg(&context))?;
        let layout = self.scratch.join(format!("layout-{name}"));
        finish(self.nacre(&store).args(["copy", "made", &format!("oci:{}:made", layout.display())]))?;
        fs::remove_dir_all(context)?;
        fs::remove_dir_all(self.scratch.join(store))?;
        Ok(layout)
    }

    fn push(&self, who: Who, layout: &Path, to: SocketAddr, name: &str) -> anyhow::Result<()> {
        self.copy(who, &format!("oci:{}:made", layout.display()), &format!("docker://{to}/{name}"))
    }

    fn pull(&self, who: Who, from: SocketAddr, name: &str) -> anyhow::Result<()> {
        let target = format!("oci:{}:made", self.scratch.join(format!("pulled-{name}")).display());
        self.copy(who, &format!("docker://{from}/{name}"), &target)
    }

    fn push_again(&self, who: Who, name: &str) -> anyhow::Result<()> {
        let at = self.registry;
        self.copy(who, &format!("docker://{at}/{name}"), &format!("docker://{at}/again-{name}"))
    }

    fn copy(&self, who: Who, source: &str, destination: &str) -> anyhow::Result<()> {
        match who {
            Who::Nacre => finish(self.nacre("copies").args(["copy", source, destination])),
            Who::Peer => {
                let mut skopeo = Command::new("skopeo");
                skopeo.args(["copy", "-q", "--retry-times=5", "--src-tls-verify=false", "--dest-tls-verify=false"]);
                finish(skopeo.args([source, destination]))
            }
        }
    }

    fn first_exec(&self, who: Who, name: &str) -> anyhow::Result<()> {
        let image = format!("{}/{name}", self.registry);
        let root = self.scratch.join(format!("run-{name}"));
        if who == Who::Nacre {
            return finish(self.nacre(&format!("run-{name}")).args(["run", &image]));
        }
        let mut command = Command::new("podman");
        if let Some(runtime) = &self.args.runtime {
            command.arg("--runtime").arg(runtime);
        }
        command.args(["--storage-driver", "overlay", "--root"]).arg(root.join("root"));
        command.arg("--runroot").arg(root.join("run"));
        finish(command.args(["run", "--rm", "--network", "host", "--tls-verify=false", &image]))
    }

    /// Frees the disk of what a contender pulled.
    fn clear(&self, name: &str) -> anyhow::Result<()> {
        // podman leaves its storage mounted on itself; where it does not, there is nothing to unmount.
        _ = finish(Command::new("umount").arg(self.scratch.join(format!("run-{name}/root/overlay"))));
        for kind in ["pulled", "run"] {
            let directory = self.scratch.join(format!("{kind}-{name}"));
            if directory.exists() {
                fs::remove_dir_all(directory)?;
            }
        }
        Ok(())
    }
}

/// How long something takes on a disk that is not busy with what was written before.
fn settled(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Duration> {
    rustix::fs::sync();
    timed(work)
}

/// How long it took, if it came to an end; why it did not is told where long runs show where they are.
fn survived(time: anyhow::Result<Duration>) -> Option<Duration> {
    time.inspect_err(|error| _ = writeln!(std::io::stderr(), "failed: {error}")).ok()
}
