//! The helper process: between the caller, which it must not outlive, and init, which must not outlive it.
//!
//! Invariant: single-threaded, in the mount namespace of the caller. It makes the missing mount points before the step
//! and removes them after it, however the step ended.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
use rustix::thread::UnshareFlags;

use super::cgroup::Cgroup;
use super::stubs::Stubs;
use super::{During as _, Exit, Failure, Process, Report, init, root, runtime};
use crate::open_files;
use crate::sys::{self, Forked};

/// The whole life of the helper but for its last word: reads the step from `spec`, runs it, and reports how it ended.
pub(super) fn supervise(spec: OwnedFd, report: BorrowedFd<'_>, lifeline: OwnedFd) -> Result<(), Failure> {
    let mut text = String::new();
    File::from(spec).read_to_string(&mut text).during(|| "read the description of the step".into())?;
    let (process, limit): (Process, Option<u64>) =
        serde_json::from_str(&text).map_err(|e| Failure::new("read the description of the step", e.to_string()))?;
    open_files::lower(limit);
    // A terminal that the step gets is its own.
    rustix::process::setsid().during(|| "start a session".into())?;
    let root = root::open(&process.root)?;
    let stubs = Stubs::make(root.as_fd(), &process)?;
    let outcome = match &process.runtime {
        Some(runtime) => runtime::run(&process, runtime, &lifeline),
        None => run_limited(&process, report, lifeline),
    };
    let removed = stubs.remove();
    Report::Exited(outcome?).send(report);
    removed
}

/// Runs init in a group of its own, if there are limits.
fn run_limited(process: &Process, report: BorrowedFd<'_>, lifeline: OwnedFd) -> Result<Exit, Failure> {
    Cgroup::make(&process.limits).and_then(|cgroup| {
        let mut outcome = run_init(process, report, lifeline, cgroup.as_ref());
        if let (Ok(exit), Some(cgroup)) = (&mut outcome, &cgroup)
            && exit.code() != 0
            && cgroup.is_out_of_memory()
        {
            *exit = Exit::OutOfMemory(exit.code());
        }
        cgroup.map_or(Ok(()), Cgroup::remove).and(outcome)
    })
}

/// Runs init and waits for its end, passing on what comes over the lifeline.
fn run_init(
    process: &Process,
    report: BorrowedFd<'_>,
    lifeline: OwnedFd,
    cgroup: Option<&Cgroup>,
) -> Result<Exit, Failure> {
    let (go, go_writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).during(|| "make a pipe".into())?;
    let (status, status_writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).during(|| "make a pipe".into())?;
    sys::unshare(UnshareFlags::NEWPID).during(|| "make a pid namespace".into())?;
    let pid = match sys::fork().during(|| "start process 1 of the step".into())? {
        Forked::Child => {
            drop((go_writer, status, lifeline));
            init::main(process, &go, report, status_writer)
        }
        Forked::Parent(pid) => pid,
    };
    drop((go, status_writer));
    let started = cgroup.map_or(Ok(()), |cgroup| cgroup.add(pid)).and_then(|()| {
        rustix::io::write(&go_writer, b"g").during(|| "start process 1 of the step".into())?;
        rustix::process::pidfd_open(pid, PidfdFlags::empty()).during(|| "watch process 1 of the step".into())
    });
    let watched = started.and_then(|pidfd| {
        forward(&lifeline, &pidfd, &|signal| {
            // It may have ended meanwhile.
            _ = rustix::process::pidfd_send_signal(&pidfd, signal);
        })
    });
    if watched.is_err() {
        _ = rustix::process::kill_process(pid, Signal::KILL);
    }
    let exit = reap(pid, status)?;
    watched.and(Ok(exit))
}

/// Until a process has ended: passes on signals from the caller with `send`, and KILL when the caller is gone.
pub(super) fn forward(lifeline: &OwnedFd, pidfd: &OwnedFd, send: &dyn Fn(Signal)) -> Result<(), Failure> {
    let mut caller_is_there = true;
    loop {
        let mut fds = [PollFd::new(pidfd, PollFlags::IN), PollFd::new(lifeline, PollFlags::IN)];
        let watched = if caller_is_there { &mut fds[..] } else { &mut fds[..1] };
        match rustix::event::poll(watched, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error).during(|| "wait for the step".into()),
        }
        if !fds[0].revents().is_empty() {
            return Ok(());
        }
        let mut number = [0];
        if fds[1].revents().is_empty() {
            continue;
        }
        let signal = match rustix::io::read(lifeline, &mut number) {
            Ok(1) => Signal::from_named_raw(i32::from(number[0])),
            _ => {
                caller_is_there = false;
                Some(Signal::KILL)
            }
        };
        if let Some(signal) = signal {
            send(signal);
        }
    }
}

/// Reaps process 1. It leaves the status of the program in the pipe, unless something killed it.
fn reap(pid: Pid, status: OwnedFd) -> Result<Exit, Failure> {
    let init_status = loop {
        match rustix::process::waitpid(Some(pid), WaitOptions::empty()) {
            Err(Errno::INTR) => {}
            other => break other.during(|| "wait for process 1 of the step".into())?,
        }
    };
    let mut left = Vec::new();
    File::from(status).read_to_end(&mut left).during(|| "read how the step ended".into())?;
    if let Ok(exit) = serde_json::from_slice(&left) {
        return Ok(exit);
    }
    Ok(match init_status {
        Some((_, status)) => match status.terminating_signal() {
            Some(number) => Exit::Signal(number),
            None => Exit::Code(status.exit_status().unwrap_or(125)),
        },
        None => Exit::Code(125),
    })
}
