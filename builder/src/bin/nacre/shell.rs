//! `--on-failure=shell`: a shell exactly where a RUN step failed, on the terminal of the caller.
//!
//! Invariant: the terminal and the display are ours again, as they were, when the shell has ended or this program was
//! interrupted.

use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use builder::sandbox::Streams;
use builder::{FailedStep, OnFailure};

use crate::interrupt::Interrupts;
use crate::progress::Display;
use crate::report::{self, Hinted};
use crate::session::Session;
use crate::terminal::{self, Pair, RawMode};

/// What happens when a RUN step fails.
#[derive(clap::Args)]
pub(crate) struct FailureFlags {
    /// When a RUN step fails: open a shell on its state, with all its changes, before the build ends
    #[arg(long, value_enum, default_value = "none", value_name = "none|shell")]
    on_failure: Action,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Action {
    None,
    Shell,
}

impl FailureFlags {
    /// Who is told of a failed step.
    pub(crate) fn on_failure(&self, session: &Session) -> anyhow::Result<Option<Arc<dyn OnFailure>>> {
        if self.on_failure == Action::None {
            return Ok(None);
        }
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            let message = "--on-failure=shell needs a terminal on standard input and standard error, and there is none";
            return Err(Hinted::error(message, "run it on a terminal, or leave --on-failure out"));
        }
        Ok(Some(Arc::new(Shell {
            display: Arc::clone(&session.display),
            interrupts: session.interrupts.clone(),
            is_opened: Mutex::new(false),
        })))
    }
}

struct Shell {
    display: Arc<Display>,
    interrupts: Interrupts,
    /// Whether there was a shell: the first failure is the one that ends the build. Others wait for its end.
    is_opened: Mutex<bool>,
}

impl OnFailure for Shell {
    fn step_failed(&self, failed: &FailedStep<'_>) {
        let mut is_opened = self.is_opened.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *is_opened, true) {
            return;
        }
        self.display.close();
        if let Err(error) = self.open(failed) {
            report::show(&format!("cannot open a shell: {error:#}\n"));
        }
        self.display.resume();
    }
}

impl Shell {
    fn open(&self, failed: &FailedStep<'_>) -> anyhow::Result<()> {
        let (text, _) = report::describe_failure(failed.error);
        let shell = failed.shell();
        report::show(&format!("{text}\n{shell} in the state of the failed step; leaving it ends the build.\n"));
        let Pair { master, slave } = terminal::open()?;
        let side = Some(slave.as_fd());
        let term = std::env::var("TERM").ok();
        let step = failed.start_shell(term.as_deref(), Streams { stdin: side, stdout: side, stderr: side })?;
        // Ours would keep the terminal open after the shell's end.
        drop(slave);
        let raw = RawMode::enter()?;
        let handed_over = self.interrupts.hand_over(raw.before(), Some(&master))?;
        // Standard output is for results.
        let shown = terminal::show_output(&master, io::stderr())?;
        let input = terminal::forward_input_until_closed(&master)?;
        let exit = step.wait();
        input.close();
        _ = shown.join();
        drop((handed_over, raw));
        exit.context("the shell was lost")?;
        Ok(())
    }
}
