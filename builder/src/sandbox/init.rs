//! Process 1 of the step: makes its world, starts the command, reaps, forwards signals, and ends with the command.
//!
//! Invariant: single-threaded, and dies with the helper (parent-death signal). It opens nothing of the root as a
//! program, and holds no descriptor that the command could inherit.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::mount::{MountAttrFlags, MountPropagationFlags};
use rustix::process::{Pid, Signal, WaitOptions};
use rustix::thread::UnshareFlags;

use super::{During as _, Exit, Failure, Network, Process, Report, command, mounts, root};
use crate::sys::{self, Forked};

/// Runs as process 1, and never returns. `go` carries one byte when the helper is ready; `status` takes the [`Exit`].
pub(super) fn main(process: &Process, go: &OwnedFd, report: BorrowedFd<'_>, status: OwnedFd) -> ! {
    match live(process, go, report) {
        Ok(exit) => {
            let exit_json = serde_json::to_vec(&exit).expect("an exit is a number");
            _ = rustix::io::write(&status, &exit_json);
            sys::exit_now(exit.code())
        }
        Err(failure) => {
            Report::Failed(failure).send(report);
            sys::exit_now(125)
        }
    }
}

fn live(process: &Process, go: &OwnedFd, report: BorrowedFd<'_>) -> Result<Exit, Failure> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .during(|| "tie process 1 to the helper".into())?;
    // Also closes the gap in which the helper may have died before the line above: then the pipe is closed and empty.
    if rustix::io::read(go, &mut [0]).during(|| "wait for the helper".into())? != 1 {
        return Err(Failure::new("wait for the helper", "it has ended"));
    }
    sys::block_all_signals().during(|| "block signals".into())?;

    let mut namespaces = UnshareFlags::NEWNS | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC | UnshareFlags::NEWCGROUP;
    if process.network == Network::None {
        namespaces |= UnshareFlags::NEWNET;
    }
    sys::unshare(namespaces).during(|| "make mount, uts, ipc and cgroup namespaces".into())?;
    if process.network == Network::None {
        sys::bring_loopback_up().during(|| "bring up the loopback device".into())?;
    }
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .during(|| "make all mounts private".into())?;
    let new_root = root::attach(&process.root)?;
    if process.read_only_root {
        // Before anything is mounted on it; the helper has made the mount points.
        let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY;
        sys::set_attributes(new_root.as_fd(), read_only).during(|| "make the root read-only".into())?;
    }
    mounts::make_all(new_root.as_fd(), process)?;
    root::pivot(new_root)?;
    rustix::system::sethostname(process.hostname.as_bytes())
        .during(|| format!("set the host name {:?}", process.hostname))?;

    match sys::fork().during(|| "start the command of the step".into())? {
        Forked::Child => command::main(process, report),
        Forked::Parent(pid) => wait_for(pid),
    }
}

/// Reaps every orphan until the command itself ends; every other signal is for the command.
fn wait_for(command: Pid) -> Result<Exit, Failure> {
    loop {
        let received = sys::wait_for_signal().during(|| "wait for a signal".into())?;
        if received.number != Signal::CHILD.as_raw() {
            if let Some(signal) = Signal::from_named_raw(received.number) {
                _ = rustix::process::kill_process(command, signal);
            }
            continue;
        }
        // One signal may stand for several children.
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if pid != command {
                continue;
            }
            if let Some(code) = status.exit_status() {
                return Ok(Exit::Code(code));
            }
            if let Some(number) = status.terminating_signal() {
                return Ok(Exit::Signal(number));
            }
        }
    }
}
