//! Signals of the program, taken one by one by a thread that waits for them.
//!
//! Invariant: a program that takes its signals blocks them before it starts a thread, so that no thread is ended by
//! one.

use std::io;

use rustix::process::Signal;

use crate::sys;

/// The signals of this process, blocked.
#[derive(Debug)]
pub struct Signals(());

impl Signals {
    /// Blocks all signals, but those that report a fault or stop the process. Call it before any thread is started.
    ///
    /// # Errors
    /// What the system gives.
    pub fn block() -> io::Result<Self> {
        sys::block_all_signals().map(Self)
    }

    /// Waits for the next signal; one that has no name here is passed over.
    ///
    /// # Errors
    /// What the system gives.
    pub fn wait(&self) -> io::Result<Signal> {
        loop {
            if let Some(signal) = Signal::from_named_raw(sys::wait_for_signal()?.number) {
                return Ok(signal);
            }
        }
    }
}
