//! One mount that is worked on for minutes: walked, written, read and emptied, over and over; what its server's memory
//! does meanwhile.
//!
//! It is no comparison: the figure to look at is the last line beside the first.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::peers::drop_caches;

/// Files that each round makes and removes, and files of the tree that it reads.
const FILES: usize = 2000;

/// Arguments of `benches soak`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A store with the image
    #[arg(long)]
    store: PathBuf,
    /// The image that is mounted
    #[arg(long)]
    image: String,
    /// How long
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// How often the memory is reported
    #[arg(long, default_value_t = 30)]
    every_seconds: u64,
}

/// A mount whose server is a child of this process, unmounted and thrown away when dropped.
struct Mount {
    server: Child,
    directory: tempfile::TempDir,
    nacre: PathBuf,
    store: PathBuf,
}

impl Mount {
    fn new(nacre: &Path, args: &Args) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("nacre-soak-").tempdir()?;
        let mut command = Command::new(nacre);
        command.arg("--root").arg(&args.store).args(["mount", "--foreground", &args.image]).arg(directory.path());
        let server = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("cannot start the server")?;
        let mut mount = Self { server, directory, nacre: nacre.to_owned(), store: args.store.clone() };
        let start = Instant::now();
        while fs::read_dir(mount.directory.path())?.next().is_none() {
            ensure!(mount.server.try_wait()?.is_none(), "the server has ended");
            ensure!(start.elapsed() < Duration::from_secs(30), "the mount does not come");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(mount)
    }

    /// Lines of `/proc/PID/status` in KiB.
    fn memory(&self) -> anyhow::Result<[u64; 3]> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.server.id()))?;
        let line = |name: &str| {
            let found = status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
            found.and_then(|text| text.parse().ok()).with_context(|| format!("{name} is missing"))
        };
        Ok([line("RssAnon:")?, line("VmRSS:")?, line("VmHWM:")?])
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let mut command = Command::new(&self.nacre);
        command.arg("--root").arg(&self.store).args(["unmount", "--discard"]).arg(self.directory.path());
        _ = command.stdout(Stdio::null()).status();
        _ = self.server.wait();
    }
}

/// Works on a mount until the time is over.
pub(crate) fn run(nacre: &Path, args: &Args) -> anyhow::Result<()> {
    let mount = Mount::new(nacre, args)?;
    let root = mount.directory.path();
    let (start, mut rounds, mut next) = (Instant::now(), 0_u64, Duration::ZERO);
    let mut out = std::io::stdout().lock();
    writeln!(out, "| seconds | rounds | files seen | anonymous KiB | resident KiB | at most KiB |")?;
    writeln!(out, "|---:|---:|---:|---:|---:|---:|")?;
    loop {
        let seen = round(root)?;
        rounds += 1;
        let elapsed = start.elapsed();
        if elapsed >= next {
            let [anonymous, resident, most] = mount.memory()?;
            let seconds = elapsed.as_secs();
            writeln!(out, "| {seconds} | {rounds} | {seen} | {anonymous} | {resident} | {most} |")?;
            next = elapsed + Duration::from_secs(args.every_seconds);
        }
        if elapsed.as_secs_f64() >= args.minutes * 60.0 {
            return Ok(());
        }
        // Every fourth round the kernel forgets what it knows.
        if rounds.is_multiple_of(4) {
            drop_caches()?;
        }
    }
}

/// Walks over all files and reads some, makes some, changes and renames them, and removes them.
fn round(root: &Path) -> anyhow::Result<usize> {
    let (mut pending, mut seen, mut buffer) = (vec![root.to_owned()], 0, [0; 512]);
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                pending.push(entry.path());
            } else if metadata.is_file() && seen % FILES < FILES / 10 {
                _ = File::open(entry.path())?.read(&mut buffer)?;
            }
            seen += 1;
        }
    }
    if seen == 0 {
        bail!("the image is empty");
    }
    let made = root.join("nacre-soak");
    fs::create_dir(&made)?;
    for number in 0..FILES {
        let path = made.join(format!("file-{number}"));
        fs::write(&path, b"some bytes")?;
        fs::rename(&path, made.join(format!("renamed-{number}")))?;
    }
    fs::remove_dir_all(&made)?;
    Ok(seen)
}
