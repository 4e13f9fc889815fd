//! The only unsafe code of the crate: system calls that rustix has no safe form for.
//!
//! Invariant: every function here is safe to call from any safe code of the crate; what a call needs (one thread, a
//! valid pointer) is checked or built here. No policy lives here: what to mount, allow or drop is decided in `sandbox`.
#![expect(unsafe_code, reason = "fork, exec, unshare and seccomp have no safe form in rustix")]

mod kernel;
mod process;
mod signals;

#[cfg(test)]
pub(crate) use kernel::SharedByte;
pub(crate) use kernel::{bring_loopback_up, install_seccomp_filter, set_attributes, unshare, write_back};
pub(crate) use process::{Forked, close_on_exec_from, execute, exit_now, fork, inherited, spawn};
pub(crate) use signals::{block_all_signals, reset_signals, unblock_all_signals, wait_for_signal};
