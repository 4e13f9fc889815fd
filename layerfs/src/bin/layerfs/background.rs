//! Serving in the background: the program starts itself again, and returns when the mount is there.
//!
//! Invariant: the caller's standard streams are closed on both sides when the caller sees the program end, and what
//! went wrong before was said on standard error. A process is started rather than forked: threads are of no concern.

use std::{
    ffi::OsString,
    io::Read,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

/// The first argument of the process that serves.
pub(crate) const CHILD: &str = "--serve-in-background";

/// What the serving process says on its standard output once the mount is there.
const READY: &[u8] = b"mounted\n";

/// Starts the serving process with the same command line, and waits until its mount is there.
pub(crate) fn start(program: &OsString, words: &[OsString]) -> anyhow::Result<()> {
    let executable = std::env::current_exe().context("cannot find this program to start it in the background")?;
    let mut command = Command::new(executable);
    command.arg0(program).arg(CHILD).args(words).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start this program in the background")?;
    let mut said = Vec::new();
    let mut output = child.stdout.take().expect("its standard output is a pipe");
    output.read_to_end(&mut said).context("cannot hear from the program in the background")?;
    if said == READY {
        return Ok(());
    }
    let status = child.wait().context("cannot wait for the program in the background")?;
    if status.code() == Some(1) {
        // It has said why.
        bail!("not mounted");
    }
    bail!("the program in the background ended before the mount was there: {status}");
}

/// Leaves the caller: its session, its directory, and its standard streams, on which it may wait for an end.
pub(crate) fn detach() -> anyhow::Result<()> {
    rustix::process::setsid().context("cannot start a session")?;
    std::env::set_current_dir("/").context("cannot leave the current directory")?;
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").context("cannot open /dev/null")?;
    rustix::stdio::dup2_stdin(&null).context("cannot close standard input")?;
    rustix::stdio::dup2_stderr(&null).context("cannot close standard error")?;
    rustix::io::write(rustix::stdio::stdout(), READY).context("cannot tell that the mount is there")?;
    rustix::stdio::dup2_stdout(&null).context("cannot close standard output")
}
