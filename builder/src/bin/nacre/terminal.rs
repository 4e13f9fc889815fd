//! A pseudo terminal for a command, joined to the terminal of the caller.
//!
//! Invariant: the caller's terminal is as it was when [`RawMode`] is dropped.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::thread::JoinHandle;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Termios};

/// Both sides of a new pseudo terminal.
pub(crate) struct Pair {
    /// Our side.
    pub(crate) master: File,
    /// The command's side.
    pub(crate) slave: OwnedFd,
}

/// Makes a pseudo terminal of the size of the caller's, if that has one.
pub(crate) fn open() -> anyhow::Result<Pair> {
    let open = || {
        let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        rustix::pty::grantpt(&master)?;
        rustix::pty::unlockpt(&master)?;
        let name = rustix::pty::ptsname(&master, Vec::new())?;
        let slave = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
        Ok::<_, rustix::io::Errno>((master, slave))
    };
    let (master, slave) = open().context("cannot make a pseudo terminal")?;
    let pair = Pair { master: master.into(), slave };
    resize(&pair.master);
    Ok(pair)
}

/// Gives a pseudo terminal the size of the caller's terminal; without one, it keeps its own.
pub(crate) fn resize(master: &File) {
    if let Ok(size) =
        rustix::termios::tcgetwinsize(io::stdout()).or_else(|_| rustix::termios::tcgetwinsize(io::stdin()))
    {
        // A command that has ended needs none.
        _ = rustix::termios::tcsetwinsize(master, size);
    }
}

/// The caller's terminal hands on each key, Ctrl-C too, to the command.
pub(crate) struct RawMode(Termios);

impl RawMode {
    /// Switches the terminal on standard input.
    pub(crate) fn enter() -> anyhow::Result<Self> {
        let before = rustix::termios::tcgetattr(io::stdin()).context("cannot read the settings of the terminal")?;
        let mut raw = before.clone();
        raw.make_raw();
        let set = rustix::termios::tcsetattr(io::stdin(), OptionalActions::Drain, &raw);
        set.context("cannot switch the terminal to raw mode")?;
        Ok(Self(before))
    }
}

impl RawMode {
    /// The settings that come back in the end.
    pub(crate) fn before(&self) -> &Termios {
        &self.0
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        _ = rustix::termios::tcsetattr(io::stdin(), OptionalActions::Drain, &self.0);
    }
}

/// Hands on what is typed, until the command or the input ends; nobody waits for it, because reading cannot be ended.
pub(crate) fn forward_input(master: &File) -> anyhow::Result<()> {
    let mut master = master.try_clone().context("cannot duplicate the pseudo terminal")?;
    std::thread::spawn(move || io::copy(&mut io::stdin().lock(), &mut master));
    Ok(())
}

/// What is typed goes to a command until this is closed; what is typed later is not swallowed.
pub(crate) struct Input {
    closer: OwnedFd,
    thread: JoinHandle<()>,
}

impl Input {
    /// Stops handing on.
    pub(crate) fn close(self) {
        drop(self.closer);
        _ = self.thread.join();
    }
}

/// As [`forward_input`], but it can be ended before the input does.
pub(crate) fn forward_input_until_closed(master: &File) -> anyhow::Result<Input> {
    let mut master = master.try_clone().context("cannot duplicate the pseudo terminal")?;
    let (closed, closer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")?;
    let thread = std::thread::spawn(move || {
        let stdin = io::stdin();
        let mut buffer = [0; 4096];
        loop {
            let mut fds = [PollFd::new(&stdin, PollFlags::IN), PollFd::new(&closed, PollFlags::IN)];
            match rustix::event::poll(&mut fds, None) {
                Ok(_) if !fds[1].revents().is_empty() => return,
                // Read without the buffer of `Stdin`: what it takes too much would be lost.
                Ok(_) => match rustix::io::read(&stdin, &mut buffer) {
                    Ok(read @ 1..) if master.write_all(&buffer[..read]).is_ok() => {}
                    Err(rustix::io::Errno::INTR) => {}
                    _ => return,
                },
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    });
    Ok(Input { closer, thread })
}

/// Shows on `out` what the command writes; ends when all its processes have closed their side.
pub(crate) fn show_output(master: &File, mut out: impl Write + Send + 'static) -> anyhow::Result<JoinHandle<()>> {
    let mut master = master.try_clone().context("cannot duplicate the pseudo terminal")?;
    Ok(std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        // The last close of the other side is an error here, EIO.
        while let Ok(read @ 1..) = master.read(&mut buffer) {
            if out.write_all(&buffer[..read]).and_then(|()| out.flush()).is_err() {
                return;
            }
        }
    }))
}
