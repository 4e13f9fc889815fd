//! Where a RUN step runs: its own namespaces on a root file system that is already mounted, with Docker's defaults.
//!
//! ```text
//! caller (any number of threads; may serve the root over FUSE)
//!   └─ starter          /proc/self/exe sandbox-init: forks a helper for each step (starter.rs)
//!        └─ helper      makes mount points, waits, removes them again (helper.rs)
//!             └─ init   PID 1 of new pid, mount, ipc and uts namespaces: mounts, pivot_root, reaps (init.rs)
//!                  └─ command   capabilities, seccomp, user, limits, exec (command.rs)
//! ```
//!
//! Invariant: nothing of a step outlives it. The end of init ends every process of its namespace, the end of the helper
//! ends init, and the end of the caller closes a pipe on which the helper waits. Mounts live in init's namespace only.
//! It is not the root file system's owner (who mounts it unmounts it) and knows no names of users: ids are numbers.

mod bundle;
mod cgroup;
mod cgroup_files;
mod command;
mod devices;
mod helper;
mod init;
mod limits;
mod mounts;
mod privileges;
mod root;
mod runtime;
mod seccomp;
mod starter;
mod stubs;
mod syscalls;

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions};
use serde::{Deserialize, Serialize};

pub use limits::{Limits, SwapLimit, Ulimit};
pub use runtime::Runtime;
pub use starter::{Starter, init_main};

/// The first argument with which this program is started as the starter; `main` then calls [`init_main`] before all
/// else.
pub const HELPER_VERB: &str = "sandbox-init";

/// Docker's default size of /dev/shm.
pub const DEFAULT_SHM_SIZE_BYTES: u64 = 64 << 20;

/// One step to run: the whole description, nothing is inherited.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Process {
    /// The directory that becomes `/`, in the mount namespace of the caller.
    pub root: PathBuf,
    /// The program and its arguments. A program without a slash is looked up in `PATH` of `env`, inside the root.
    pub argv: Vec<String>,
    /// The exact environment, `NAME=value` in order.
    pub env: Vec<String>,
    /// The working directory, absolute, inside the root. It must exist.
    pub cwd: PathBuf,
    /// Whom the program runs as.
    pub user: User,
    /// The host name it sees.
    pub hostname: String,
    /// Further mounts, made in this order.
    pub mounts: Vec<Mount>,
    /// Which network it sees.
    pub network: Network,
    /// How confined it is.
    pub security: Security,
    /// The size of /dev/shm.
    pub shm_size_bytes: u64,
    /// Resource limits of the process.
    pub ulimits: Vec<Ulimit>,
    /// Lines for /etc/hosts: address, name.
    pub extra_hosts: Vec<(String, String)>,
    /// The content of /etc/resolv.conf; `None` leaves the root's own file in place.
    pub resolv_conf: Option<String>,
    /// What these two files are like.
    pub etc_files: EtcFiles,
    /// Limits of the step as a whole, through cgroups.
    pub limits: Limits,
    /// Writing to the root fails with EROFS; mounts on it are as they say.
    pub read_only_root: bool,
    /// The OCI runtime that runs the step, in place of our own sandbox.
    pub runtime: Option<Runtime>,
    /// Standard input is the slave side of a pseudo terminal, and becomes the controlling terminal and /dev/console.
    pub terminal: bool,
}

impl Process {
    /// `argv` as root in `root`, with everything else as `docker run` has it without a flag.
    pub fn new(root: impl Into<PathBuf>, argv: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            root: root.into(),
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            cwd: "/".into(),
            user: User::default(),
            hostname: "buildkitsandbox".into(),
            mounts: Vec::new(),
            network: Network::Default,
            security: Security::Sandbox,
            shm_size_bytes: DEFAULT_SHM_SIZE_BYTES,
            ulimits: Vec::new(),
            extra_hosts: Vec::new(),
            resolv_conf: None,
            etc_files: EtcFiles::default(),
            limits: Limits::default(),
            read_only_root: false,
            runtime: None,
            terminal: false,
        }
    }
}

/// What /etc/hosts and /etc/resolv.conf are like while a program runs; neither is ever in a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum EtcFiles {
    /// As in a container of Docker's: what is written to them is gone afterwards.
    #[default]
    Container,
    /// As in a RUN of BuildKit's: writing to them fails, and the host name is one of localhost's.
    Step,
}

/// Whom a program runs as: numbers of the namespace that the caller is in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
}

/// A mount inside the root. A mount point that is missing is made, and removed after the step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mount {
    /// Where, absolute, inside the root. Symbolic links are followed inside the root.
    pub target: PathBuf,
    /// What.
    pub source: MountSource,
}

/// What is mounted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum MountSource {
    /// A directory or file of the caller's mount namespace, with all mounts below it.
    Bind {
        /// Its path.
        path: PathBuf,
        /// Writing fails with EROFS.
        read_only: bool,
    },
    /// An empty file system in memory.
    Tmpfs {
        /// Its largest size; `None` is the kernel's default, half of the memory.
        size_bytes: Option<u64>,
        /// The mode of its root directory; `None` is that of the directory there, 1777 where there was none.
        mode: Option<u32>,
        /// Writing fails with EROFS.
        read_only: bool,
    },
}

/// Which network a step sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// The network of the caller, as rootless BuildKit has it.
    #[default]
    Default,
    /// The network of the caller.
    Host,
    /// Only a loopback device.
    None,
}

impl Network {
    /// What the key of a step has of it; another word is another key.
    pub(crate) fn key_word(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Host => "host",
            Self::None => "none",
        }
    }
}

/// How confined a step is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Security {
    /// Docker's default capabilities, seccomp filter, masked and read-only paths.
    #[default]
    Sandbox,
    /// All capabilities of the caller, no filter, nothing masked (`RUN --security=insecure`).
    Insecure,
}

impl Security {
    /// What the key of a step has of it; another word is another key.
    pub(crate) fn key_word(self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::Insecure => "insecure",
        }
    }
}

/// The standard streams of a step.
#[derive(Clone, Copy, Debug)]
pub struct Streams<'fd> {
    /// Standard input; `None` is /dev/null.
    pub stdin: Option<BorrowedFd<'fd>>,
    /// Standard output; `None` is /dev/null.
    pub stdout: Option<BorrowedFd<'fd>>,
    /// Standard error; `None` is /dev/null.
    pub stderr: Option<BorrowedFd<'fd>>,
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// It returned this code; 127: no such program; 126: it cannot be executed.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
    /// It ended with this code, which is not 0, and the kernel had killed a process of it because a memory limit was
    /// reached.
    OutOfMemory(i32),
}

impl Exit {
    /// The code a shell would show: 128 + n for signal n.
    pub fn code(self) -> i32 {
        match self {
            Exit::Code(code) | Exit::OutOfMemory(code) => code,
            Exit::Signal(number) => 128 + number,
        }
    }
}

/// Why a step could not be run; how the program itself ended is an [`Exit`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The sandbox could not be made.
    #[error("cannot set up the sandbox: {0}")]
    Setup(#[from] Failure),
    /// The helper process could not be started.
    #[error("cannot start the sandbox helper {}", program.display())]
    Start {
        /// The program that is the helper.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The description has a path that is not UTF-8, or a NUL.
    #[error("cannot pass the step to the sandbox helper: {0}")]
    Describe(String),
    /// The helper process ended without saying how the step ended: it was killed, or is not this program.
    #[error("the sandbox helper ended unexpectedly (wait status {status:#x})")]
    Lost {
        /// The raw wait status of the helper; 0 where nobody was left to tell it.
        status: i32,
    },
}

/// One thing that failed inside the helper: what was tried, on which object, and why it failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{action}: {cause}")]
pub struct Failure {
    /// Verb and object, as in "mount tmpfs on /dev/shm".
    pub action: String,
    /// The cause in words.
    pub cause: String,
    /// The error number of the system call, where one failed.
    pub errno: Option<i32>,
}

impl Failure {
    fn new(action: impl Into<String>, cause: impl Into<String>) -> Self {
        Self { action: action.into(), cause: cause.into(), errno: None }
    }
}

/// Says what was tried when a system call fails.
trait During<T> {
    fn during(self, action: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: Into<std::io::Error>> During<T> for Result<T, E> {
    fn during(self, action: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| {
            let error = error.into();
            Failure { action: action(), cause: error.to_string(), errno: error.raw_os_error() }
        })
    }
}

/// What the helper and its children write to the caller, one JSON value a line.
#[derive(Debug, Serialize, Deserialize)]
enum Report {
    /// The sandbox could not be made, or the mount points not removed.
    Failed(Failure),
    /// The program ended.
    Exited(Exit),
    /// The helper ended, with this raw wait status: the last word, from the starter.
    Reaped(i32),
}

impl Report {
    /// Writes the line at once; a caller that is gone is no error here, because everything ends with it.
    fn send(&self, to: BorrowedFd<'_>) {
        let mut line = serde_json::to_vec(self).expect("a report holds only strings and numbers");
        line.push(b'\n');
        _ = rustix::io::write(to, &line);
    }
}

/// Starts `process` with the program that is running now, and a [`Starter`] for it alone. Returns at once; see
/// [`Step::wait`].
///
/// # Errors
/// As [`Starter::run`].
pub fn run(process: &Process, streams: Streams<'_>) -> Result<Step, Error> {
    run_with(Path::new("/proc/self/exe"), process, streams)
}

/// The same with another program: one whose `main` calls [`init_main`] when its first argument is [`HELPER_VERB`].
///
/// # Errors
/// As [`Starter::run`].
pub fn run_with(program: &Path, process: &Process, streams: Streams<'_>) -> Result<Step, Error> {
    let starter = Starter::new(program);
    let mut step = starter.run(process, streams)?;
    step._starter = Some(starter);
    Ok(step)
}

/// Waits for a child, and gives its raw wait status.
fn reap(pid: Pid) -> i32 {
    loop {
        match rustix::process::waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => return status.as_raw(),
            Err(Errno::INTR) => {}
            // Someone else reaped it: no status, but it is gone.
            _ => return 0,
        }
    }
}

/// A step that was started. Dropping it kills the step and waits for its end.
#[derive(Debug)]
pub struct Step {
    /// Ends when the step, its processes and its helper have.
    report: BufReader<File>,
    killer: Killer,
    /// Of a step alone.
    _starter: Option<Starter>,
}

impl Step {
    fn new(report: OwnedFd, lifeline: OwnedFd) -> Self {
        let killer = Killer(Arc::new(Mutex::new(Some(lifeline))));
        Self { report: BufReader::new(report.into()), killer, _starter: None }
    }

    /// A handle that ends the step from any thread.
    pub fn killer(&self) -> Killer {
        self.killer.clone()
    }

    /// Waits until the step has ended, all its processes are gone and its mount points are removed.
    pub fn wait(mut self) -> Result<Exit, Error> {
        self.outcome()
    }

    fn outcome(&mut self) -> Result<Exit, Error> {
        let mut outcome = None;
        let mut status = 0;
        let mut line = String::new();
        while self.report.read_line(&mut line).is_ok_and(|length| length > 0) {
            match serde_json::from_str(&line) {
                // The first report says it all, but mount points that stay behind spoil a success as well.
                Ok(Report::Failed(failure)) if !matches!(outcome, Some(Err(_))) => outcome = Some(Err(failure.into())),
                Ok(Report::Exited(exit)) if outcome.is_none() => outcome = Some(Ok(exit)),
                Ok(Report::Reaped(raw)) => status = raw,
                _ => {}
            }
            line.clear();
        }
        outcome.unwrap_or(Err(Error::Lost { status }))
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.killer.kill();
        // Nobody asks any more. After the end there is nothing to read.
        _ = self.outcome();
    }
}

/// Ends a running step, or sends it signals. Does nothing once the step has ended.
#[derive(Clone, Debug)]
pub struct Killer(Arc<Mutex<Option<OwnedFd>>>);

impl Killer {
    /// Kills every process of the step. [`Step::wait`] then returns `Exit::Signal(9)`.
    pub fn kill(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Sends `signal` to the program of the step (not to its children).
    pub fn signal(&self, signal: Signal) {
        if let Some(lifeline) = self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            // One byte is one signal number. A step that has ended needs none.
            let number = u8::try_from(signal.as_raw()).expect("signal numbers end at 64");
            _ = rustix::io::write(lifeline, &[number]);
        }
    }
}
