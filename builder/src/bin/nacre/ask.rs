//! Questions to a person at the terminal.
//!
//! Invariant: the terminal is left as it was, and a secret is never shown on it.

use std::io::{BufRead, Write};

use anyhow::Context;
use rustix::termios::{LocalModes, OptionalActions};

use crate::report::Usage;
use crate::session::Session;

/// Whether an answer is shown while it is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    /// It may be read by whoever stands by.
    Yes,
    /// It is a secret.
    No,
}

/// Asks a person on the terminal; where there is none, the error says what to do `instead`.
pub(crate) fn ask(session: &Session, question: &str, shown: Shown, instead: &str) -> anyhow::Result<String> {
    let is_secret = shown == Shown::No;
    let stdin = std::io::stdin();
    if !rustix::termios::isatty(&stdin) {
        return Err(Usage(format!("there is no terminal to ask on: {instead}")).into());
    }
    let mut stderr = std::io::stderr();
    write!(stderr, "{question}").and_then(|()| stderr.flush()).context("cannot write to the terminal")?;
    let settings = rustix::termios::tcgetattr(&stdin).context("cannot read the settings of the terminal")?;
    let mut hidden = settings.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    // Ctrl-C shows again what is typed.
    let _handed_over = session.interrupts.hand_over(&settings, None)?;
    if is_secret {
        rustix::termios::tcsetattr(&stdin, OptionalActions::Flush, &hidden)
            .context("cannot switch the terminal's echo off")?;
    }
    let mut line = String::new();
    let read = stdin.lock().read_line(&mut line);
    if is_secret {
        rustix::termios::tcsetattr(&stdin, OptionalActions::Flush, &settings)
            .context("cannot switch the terminal's echo on")?;
        writeln!(stderr).context("cannot write to the terminal")?;
    }
    read.context("cannot read from the terminal")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
