//! Signals taken one by one with sigwait, instead of handlers that interrupt code.

use std::io;
use std::mem::MaybeUninit;

/// One signal taken from the queue.
pub(crate) struct Received {
    /// Its number.
    pub(crate) number: i32,
    /// The kernel sent it of its own (Ctrl-C on the terminal goes to the whole process group that way), not a process.
    pub(crate) from_kernel: bool,
}

/// Blocks every signal but those that report a fault of our own and those that stop the process for job control.
pub(crate) fn block_all_signals() -> io::Result<()> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the set is filled before use; the previous mask is not asked for.
    let result = unsafe {
        libc::sigfillset(set.as_mut_ptr());
        for number in
            [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU]
        {
            libc::sigdelset(set.as_mut_ptr(), number);
        }
        libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Blocks nothing. Programs inherit what is blocked, and few of them look.
pub(crate) fn unblock_all_signals() -> io::Result<()> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the set is filled before use; the previous mask is not asked for.
    let result = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Waits for the next blocked signal and takes it.
pub(crate) fn wait_for_signal() -> io::Result<Received> {
    let mut set = MaybeUninit::uninit();
    let mut info = MaybeUninit::<libc::siginfo_t>::uninit();
    loop {
        // SAFETY: the set is filled before use, and `info` is written by the kernel when the call succeeds.
        let number = unsafe {
            libc::sigfillset(set.as_mut_ptr());
            libc::sigwaitinfo(set.as_ptr(), info.as_mut_ptr())
        };
        if number > 0 {
            // SAFETY: the call succeeded, so `info` is initialised.
            let code = unsafe { info.assume_init() }.si_code;
            return Ok(Received { number, from_kernel: code > 0 });
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Gives back the state every program expects at its start: nothing blocked, nothing ignored (Rust ignores SIGPIPE).
pub(crate) fn reset_signals() {
    /// The size of a set of signals to the kernel.
    const SIGNAL_SET_BYTES: usize = 8;
    // Larger than the kernel's structure on any machine; all zeros is the default action.
    let default = [0_u64; 8];
    let mut set = MaybeUninit::uninit();
    // SAFETY: restoring the default action has no preconditions; numbers that may not be changed are refused, which is
    // fine. The set is filled before use.
    unsafe {
        for number in 1..=libc::SIGRTMAX() {
            libc::signal(number, libc::SIG_DFL);
        }
        // The C library keeps its own two to itself, and its posix_spawn starts programs that ignore them.
        for number in 32..libc::SIGRTMIN() {
            libc::syscall(libc::SYS_rt_sigaction, number, default.as_ptr(), std::ptr::null::<u8>(), SIGNAL_SET_BYTES);
        }
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut());
    }
}
