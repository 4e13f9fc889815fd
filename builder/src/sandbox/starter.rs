//! The starter: a process that became this program once, and forks a helper for each step of a build. Starting a program
//! costs some milliseconds, much of what a small step takes.
//!
//! Invariant: single-threaded, and away from the caller's terminal. A helper inherits nothing of other steps. The
//! starter keeps the pipe to the caller open until it has reaped the helper, so that the end of that pipe is the end of
//! all; it ends when the caller and the last helper have.

use std::ffi::CString;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Seek as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, Shutdown, SocketFlags, SocketType,
};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags};

use super::{During as _, Error, Failure, HELPER_VERB, Process, Report, Step, Streams, helper};
use crate::open_files;
use crate::sys::{self, Forked};

/// The number of the socket that [`Starter`] passes on, after the standard streams.
const SOCKET: i32 = 3;

/// Starts the steps of a build. Its process starts with the first one, and ends with the value.
#[derive(Debug)]
pub struct Starter {
    program: PathBuf,
    process: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    pid: Pid,
    socket: OwnedFd,
}

impl Default for Starter {
    fn default() -> Self {
        Self::new(Path::new("/proc/self/exe"))
    }
}

impl Starter {
    /// With `program`: one whose `main` calls [`init_main`] when its first argument is [`HELPER_VERB`].
    pub fn new(program: &Path) -> Self {
        Self { program: program.to_owned(), process: Mutex::new(None) }
    }

    /// Starts `process`. Returns at once; see [`Step::wait`].
    ///
    /// # Errors
    /// If the program cannot be started, or the step not be described.
    pub fn run(&self, process: &Process, streams: Streams<'_>) -> Result<Step, Error> {
        let failed = |source| Error::Start { program: self.program.clone(), source };
        let spec = describe(process)?;
        let (report, report_writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        let (lifeline_reader, lifeline) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        let null = File::options().read(true).write(true).open("/dev/null").map_err(failed)?;
        let or_null = |stream: Option<_>| stream.unwrap_or(null.as_fd());
        let job: Job<BorrowedFd<'_>> = [
            or_null(streams.stdin),
            or_null(streams.stdout),
            or_null(streams.stderr),
            spec.as_fd(),
            report_writer.as_fd(),
            lifeline_reader.as_fd(),
        ];
        let mut running = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        // One that was killed is replaced.
        if running.as_ref().is_none_or(|running| running.send(job).is_err()) {
            *running = None;
            let started = Running::new(&self.program, null.as_fd()).map_err(failed)?;
            match running.insert(started).send(job) {
                // It has ended already, which the end of the pipe for reports will tell.
                Ok(()) | Err(Errno::PIPE | Errno::CONNRESET) => {}
                Err(error) => return Err(failed(error.into())),
            }
        }
        Ok(Step::new(report, lifeline))
    }
}

/// The standard streams of a step; its description, the pipe for reports, and the lifeline.
type Job<D> = [D; JOB];
const JOB: usize = 6;

fn describe(process: &Process) -> Result<File, Error> {
    let describe = |error: &dyn std::fmt::Display| Error::Describe(error.to_string());
    let spec = rustix::fs::memfd_create("nacre-step", MemfdFlags::CLOEXEC).map_err(|e| describe(&e))?;
    let mut spec = File::from(spec);
    let json = serde_json::to_vec(&(process, open_files::of_steps())).map_err(|e| describe(&e))?;
    spec.write_all(&json).and_then(|()| spec.rewind()).map_err(|e| describe(&e))?;
    Ok(spec)
}

impl Running {
    fn new(program: &Path, null: BorrowedFd<'_>) -> std::io::Result<Self> {
        // One message is one job.
        let kind = SocketType::SEQPACKET;
        let (socket, theirs) = rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        let path = CString::new(program.as_os_str().as_bytes())?;
        // The step can see these arguments: no path of the host.
        let argv = ["nacre", HELPER_VERB].map(|word| CString::new(word).expect("no NUL"));
        Ok(Self { pid: sys::spawn(&path, &argv, &[null, null, null, theirs.as_fd()])?, socket })
    }

    fn send(&self, job: Job<BorrowedFd<'_>>) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(JOB))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&job)), "there is space for them");
        // A peer that is gone is an error here, and no signal.
        rustix::net::sendmsg(&self.socket, &[IoSlice::new(b"j")], &mut control, SendFlags::NOSIGNAL).map(drop)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
        super::reap(self.pid);
    }
}

/// A helper that was forked.
struct Child {
    pid: Pid,
    pidfd: OwnedFd,
    report: OwnedFd,
}

/// The whole life of the starter, and in a fork of it that of a helper; returns the exit code of the process.
///
/// Call it first thing in `main`, before any thread is started, when the first argument is [`HELPER_VERB`].
pub fn init_main() -> u8 {
    let Ok(socket) = sys::inherited(SOCKET) else { return 125 };
    // Away from the caller's terminal: Ctrl-C is the caller's to handle.
    _ = rustix::process::setsid();
    let mut children: Vec<Child> = Vec::new();
    let mut is_over = false;
    while !(is_over && children.is_empty()) {
        match wait(&socket, &children, is_over) {
            // From the last on, since the place of one that is taken out is taken by the last.
            Ok(ended) => ended.into_iter().rev().for_each(|number| children.swap_remove(number).reap()),
            Err(Errno::INTR) => continue,
            Err(_) => return 125,
        }
        match receive(&socket) {
            Ok(Some(job)) => match fork(&job) {
                Ok(Some(child)) => children.push(child),
                Ok(None) => {
                    drop((children, socket));
                    return carry_out(job);
                }
                Err(failure) => Report::Failed(failure).send(job[REPORT].as_fd()),
            },
            Ok(None) => is_over = true,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return 125,
        }
    }
    0
}

/// The place of the pipe for reports in a [`Job`].
const REPORT: usize = 4;

impl Child {
    fn reap(self) {
        Report::Reaped(super::reap(self.pid)).send(self.report.as_fd());
    }
}

/// Until there is something to do: the numbers of the children that have ended, ascending.
fn wait(socket: &OwnedFd, children: &[Child], is_over: bool) -> Result<Vec<usize>, Errno> {
    let mut fds: Vec<PollFd<'_>> = children.iter().map(|child| PollFd::new(&child.pidfd, PollFlags::IN)).collect();
    if !is_over {
        fds.push(PollFd::new(socket, PollFlags::IN));
    }
    rustix::event::poll(&mut fds, None)?;
    Ok((0..children.len()).filter(|number| !fds[*number].revents().is_empty()).collect())
}

/// The next job, `EAGAIN` if there is none yet; `None` when the caller is gone.
fn receive(socket: &OwnedFd) -> Result<Option<Job<OwnedFd>>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(JOB))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 1];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let descriptors = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors.collect::<Vec<OwnedFd>>()),
        _ => None,
    });
    // Where some are missing this process may have no more of them; the caller hears nothing then but the end of its pipe.
    descriptors.and_then(|descriptors| descriptors.try_into().ok()).ok_or(Errno::AGAIN).map(Some)
}

/// `None` in the new process.
fn fork(job: &Job<OwnedFd>) -> Result<Option<Child>, Failure> {
    let report = job[REPORT].try_clone().during(|| "keep the pipe to the caller".into())?;
    match sys::fork().during(|| "start the helper of the step".into())? {
        Forked::Child => Ok(None),
        Forked::Parent(pid) => {
            let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty());
            Ok(Some(Child { pid, pidfd: pidfd.during(|| "watch the helper of the step".into())?, report }))
        }
    }
}

/// The life of a helper.
fn carry_out(job: Job<OwnedFd>) -> u8 {
    let [stdin, stdout, stderr, spec, report, lifeline] = job;
    let streams = rustix::stdio::dup2_stdin(&stdin)
        .and_then(|()| rustix::stdio::dup2_stdout(&stdout))
        .and_then(|()| rustix::stdio::dup2_stderr(&stderr))
        .during(|| "take over the streams of the step".into());
    drop((stdin, stdout, stderr));
    match streams.and_then(|()| helper::supervise(spec, report.as_fd(), lifeline)) {
        Ok(()) => 0,
        Err(failure) => {
            Report::Failed(failure).send(report.as_fd());
            125
        }
    }
}
