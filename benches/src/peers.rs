//! Starting programs, and things that are measured in a directory of their own.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// Runs a program to its end; what it says is shown only if it fails.
pub(crate) fn run<A: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: &[A]) -> anyhow::Result<()> {
    let mut command = Command::new(program);
    command.args(arguments);
    finish(&mut command)
}

/// Runs a command to its end.
pub(crate) fn finish(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(())
}

/// How long something takes.
pub(crate) fn timed(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

/// Everything read before is read from the disk again.
pub(crate) fn drop_caches() -> anyhow::Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop the caches")
}

/// Has ext4 put each directory in here elsewhere on the disk (`chattr +T`), as our store does: next to what the
/// contender before has just removed it makes new files slowly, and nobody's speed but the disk's would show. Elsewhere
/// than on ext4 it does nothing.
pub(crate) fn spread(scratch: &Path) {
    _ = run("chattr", &[OsStr::new("+T"), scratch.as_os_str()]);
}
