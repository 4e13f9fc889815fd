//! The last steps of the process that becomes the command: session, limits, directory, privileges, exec.
//!
//! Invariant: what it runs sees the exact arguments and environment of the description, and of ours nothing.

use std::ffi::CString;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::Mode;

use super::{During as _, Failure, Process, Report, privileges};
use crate::{image::DEFAULT_PATH, sys};

/// A shell's code for a program that cannot be executed.
const NOT_EXECUTABLE: i32 = 126;
/// A shell's code for a program that is not there.
const NOT_FOUND: i32 = 127;

/// Becomes the command, and never returns: a failure goes to `report`, a program that cannot run is a code and a line.
pub(super) fn main(process: &Process, report: BorrowedFd<'_>) -> ! {
    let (code, words) = match prepare(process) {
        Ok((argv, env)) => execute(process, &argv, &env),
        Err(failure) => {
            Report::Failed(failure).send(report);
            sys::exit_now(125)
        }
    };
    _ = rustix::io::write(rustix::stdio::stderr(), words.as_bytes());
    sys::exit_now(code)
}

fn prepare(process: &Process) -> Result<(Vec<CString>, Vec<CString>), Failure> {
    rustix::process::setsid().during(|| "start a session".into())?;
    if process.terminal {
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()).during(|| "take the terminal".into())?;
    }
    sys::reset_signals();
    // What Docker gives a process, and nearly every distribution.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    process.ulimits.iter().try_for_each(super::Ulimit::apply)?;
    rustix::process::chdir(&process.cwd)
        .during(|| format!("change to the working directory {}", process.cwd.display()))?;
    let argv = c_strings(&process.argv, "argument")?;
    let env = c_strings(&process.env, "environment variable")?;
    privileges::drop_to(process)?;
    privileges::keep_only_standard_streams()?;
    Ok((argv, env))
}

fn c_strings(texts: &[String], what: &str) -> Result<Vec<CString>, Failure> {
    let convert = |text: &String| {
        CString::new(text.as_str()).map_err(|_| Failure::new(format!("pass the {what} {text:?}"), "it holds a NUL"))
    };
    texts.iter().map(convert).collect()
}

/// Tries each place where the program may be. Returns the code and the line for the user.
fn execute(process: &Process, argv: &[CString], env: &[CString]) -> (i32, String) {
    let Some(name) = process.argv.first() else {
        return (NOT_FOUND, "exec: no command\n".into());
    };
    if name.contains('/') {
        let error = sys::execute(&argv[0], argv, env);
        return (code(&error), format!("exec: {name:?}: {}\n", words(&error)));
    }
    let mut seen = None;
    for directory in search_path(&process.env).split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let Ok(path) = CString::new(format!("{directory}/{name}")) else { continue };
        let error = sys::execute(&path, argv, env);
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {}
            // As a shell does: remember it, but a later directory may have one that runs.
            io::ErrorKind::PermissionDenied => seen = Some(error),
            _ => return (code(&error), format!("exec: {name:?}: {}\n", words(&error))),
        }
    }
    match seen {
        Some(error) => (code(&error), format!("exec: {name:?}: {}\n", words(&error))),
        None => (NOT_FOUND, format!("exec: {name:?}: executable file not found in $PATH\n")),
    }
}

fn search_path(env: &[String]) -> &str {
    env.iter().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH)
}

fn code(error: &io::Error) -> i32 {
    if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE }
}

fn words(error: &io::Error) -> String {
    match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::NOENT) => "no such file or directory (or its interpreter is missing)".into(),
        Some(rustix::io::Errno::NOEXEC) => "exec format error (another architecture, or a script without #!)".into(),
        _ => error.to_string(),
    }
}
