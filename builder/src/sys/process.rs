//! Making and replacing processes: fork, exec, spawn, and taking over descriptors that a parent passed on.
//!
//! Invariant: `fork` happens only in a process with a single thread, so that the child may run any code.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::Pid;

/// Which side of a fork we are on.
pub(crate) enum Forked {
    /// The new process.
    Child,
    /// The calling process, with the id of the new one.
    Parent(Pid),
}

/// Forks this process, which must have one thread only: the child of a process with several could find any lock taken.
pub(crate) fn fork() -> io::Result<Forked> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!("the process has {threads} threads, a fork needs exactly one")));
    }
    // SAFETY: with a single thread no lock can be held by another, so the child may go on as any program would.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(Pid::from_raw(pid).expect("fork gave the parent a positive id"))),
    }
}

/// Ends this process at once: no destructors, no flushing of buffers that a forked parent shares.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` has no preconditions and does not return.
    unsafe { libc::_exit(code) }
}

/// Replaces this process by the program at `path`. Returns only if that failed.
pub(crate) fn execute(path: &CStr, argv: &[CString], env: &[CString]) -> io::Error {
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end in a null pointer, and the strings they point to outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Starts `program` with an empty environment; safe in a program with many threads, and cheap in one with much memory
/// (posix_spawn shares it until the exec). Descriptor `fds[n]` becomes number `n` there; no other is passed on, apart
/// from those that were opened without close-on-exec.
pub(crate) fn spawn(program: &CStr, argv: &[CString], fds: &[BorrowedFd<'_>]) -> io::Result<Pid> {
    // Copies above every target number, so that no dup2 overwrites a source that a later one needs.
    let first_free = RawFd::try_from(fds.len()).expect("a handful of descriptors");
    let sources =
        fds.iter().map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, first_free)).collect::<Result<Vec<OwnedFd>, _>>()?;
    let argv = pointers(argv);
    let env = pointers(&[]);
    let mut actions = std::mem::MaybeUninit::uninit();
    let mut pid = 0;
    // SAFETY: the actions are initialised before use and destroyed after it; the arrays end in a null pointer and, like
    // the descriptors, outlive the call.
    let result = unsafe {
        check(libc::posix_spawn_file_actions_init(actions.as_mut_ptr()))?;
        let result = (0..)
            .zip(&sources)
            .try_for_each(|(target, source)| {
                check(libc::posix_spawn_file_actions_adddup2(actions.as_mut_ptr(), source.as_raw_fd(), target))
            })
            .and_then(|()| {
                check(libc::posix_spawn(
                    &mut pid,
                    program.as_ptr(),
                    actions.as_ptr(),
                    std::ptr::null(),
                    argv.as_ptr().cast(),
                    env.as_ptr().cast(),
                ))
            });
        libc::posix_spawn_file_actions_destroy(actions.as_mut_ptr());
        result
    };
    result?;
    Ok(Pid::from_raw(pid).expect("posix_spawn gave a positive id"))
}

/// Takes over descriptor `number`, which the parent passed on at exec.
pub(crate) fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl takes any number and fails on one that is not open.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, as just seen. It came with the exec, so nothing in this process owns it: the
    // caller is the start of the helper program, which takes over each number once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Marks every descriptor from `first` on close-on-exec, whoever opened it.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: the call only sets a flag; it closes nothing now.
    match unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
}

/// posix_spawn and its kin return the error number.
fn check(errno: i32) -> io::Result<()> {
    if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
}
