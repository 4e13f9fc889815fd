//! A step that an OCI runtime runs: crun, runc, or what else understands `run --bundle` and `delete --force`.
//!
//! Invariant: as with our own sandbox, nothing of the step outlives it or the caller. The runtime keeps its state in
//! the step's directory, so that it knows no other container.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};

use super::cgroup::Cgroup;
use super::helper::forward;
use super::{During as _, Exit, Failure, Limits, Process, bundle};
use crate::image::DEFAULT_PATH;
use crate::rootless::is_first_namespace;
use crate::sys;

/// The runtime of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    /// The program.
    pub program: PathBuf,
    /// A directory for the bundle and the runtime's state. It is made, and removed after the step.
    pub directory: PathBuf,
}

/// Runs the step, passing on what comes over the lifeline.
pub(super) fn run(process: &Process, runtime: &Runtime, lifeline: &OwnedFd) -> Result<Exit, Failure> {
    let Runtime { directory, .. } = runtime;
    let bundle = directory.join("bundle");
    std::fs::create_dir_all(&bundle).during(|| format!("create {}", bundle.display()))?;
    let outcome = bundle::write(process, &bundle).and_then(|()| run_bundle(process, runtime, &bundle, lifeline));
    let removed = std::fs::remove_dir_all(directory).during(|| format!("remove {}", directory.display()));
    let exit = outcome?;
    removed.map(|()| exit)
}

fn run_bundle(process: &Process, runtime: &Runtime, bundle: &Path, lifeline: &OwnedFd) -> Result<Exit, Failure> {
    let id = format!("nacre-{}", std::process::id());
    let action = || format!("run the step with {}", runtime.program.display());
    // The builder blocks signals, and a runtime hands on to the step what it finds.
    sys::unblock_all_signals().during(|| "unblock signals".into())?;
    // Whether memory ran out is written in the container's group, as long as that is there.
    let keeps = process.limits.memory_bytes.is_some() && runtime.can_keep();
    let mut command = runtime.command(&process.limits);
    command.arg("run").args(keeps.then_some("--keep")).arg("--bundle").arg(bundle).arg(&id);
    let mut child = command.spawn().during(action)?;
    // Also what is left of a container whose runtime was killed.
    let delete = || {
        let mut command = runtime.command(&process.limits);
        _ = command
            .args(["delete", "--force", &id])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    };
    let watched = watch(&child, lifeline, &delete);
    if watched.is_err() {
        delete();
        _ = child.kill();
    }
    let status = child.wait().during(action)?;
    let is_out_of_memory = keeps && Cgroup::of_runtime(&process.limits, &id).is_some_and(|it| it.is_out_of_memory());
    delete();
    watched?;
    let code = status.code().unwrap_or(125);
    match runtime.failure(process) {
        Some(failure) if code != 0 => failure.map(Exit::Code),
        _ if is_out_of_memory && code != 0 => Ok(Exit::OutOfMemory(code)),
        _ => Ok(match std::os::unix::process::ExitStatusExt::signal(&status) {
            Some(number) => Exit::Signal(number),
            None => Exit::Code(code),
        }),
    }
}

fn watch(child: &Child, lifeline: &OwnedFd, delete: &dyn Fn()) -> Result<(), Failure> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a child has a positive id");
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).during(|| "watch the runtime".into())?;
    forward(lifeline, &pidfd, &|signal| {
        // The runtime hands on signals, but cannot hand on this one.
        if signal == Signal::KILL {
            delete();
        } else {
            // It may have ended meanwhile.
            _ = rustix::process::pidfd_send_signal(&pidfd, signal);
        }
    })
}

impl Runtime {
    fn command(&self, limits: &Limits) -> Command {
        let mut command = Command::new(&self.program);
        // A step's helper has no environment, and a wrapper around a runtime may call programs.
        command.env_clear().env("PATH", DEFAULT_PATH).env("HOME", "/").current_dir("/");
        command.arg("--root").arg(self.directory.join("state"));
        command.arg("--log").arg(self.log()).args(["--log-format", "json"]);
        let is_crun = self.program.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"crun"));
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        if is_crun && *limits == Limits::default() && !is_first_namespace(&map) {
            // As with our own sandbox: a step without limits needs no group, and works where none can be made. Of
            // root's, a group keeps it from the machine's disks.
            command.arg("--cgroup-manager=disabled");
        }
        command
    }

    /// Whether it can leave a container that has ended as it is: runc can since 1.1.
    fn can_keep(&self) -> bool {
        let mut command = Command::new(&self.program);
        command.env_clear().env("PATH", DEFAULT_PATH).args(["run", "--help"]).stdin(Stdio::null());
        command.output().is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("--keep "))
    }

    fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// What went wrong in the runtime itself: a program that cannot be run has the code that a shell gives it.
    fn failure(&self, process: &Process) -> Option<Result<i32, Failure>> {
        #[derive(Deserialize)]
        struct Entry {
            level: String,
            msg: String,
        }
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let mut entries = log.lines().filter_map(|line| serde_json::from_str::<Entry>(line).ok());
        let message = entries.rfind(|entry| matches!(entry.level.as_str(), "error" | "fatal"))?.msg;
        let lower = message.to_lowercase();
        let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
        let name = process.argv.first().map(|name| name.to_lowercase()).unwrap_or_default();
        let is_of_program = has(&["executable file", "exec format"])
            || (!name.is_empty() && lower.contains(&format!("{name}\"")))
            || lower.contains(&format!("`{name}`"));
        Some(match is_of_program {
            true if has(&["not found", "no such file"]) => Ok(127),
            true if has(&["permission denied", "exec format"]) => Ok(126),
            _ => Err(Failure::new(format!("run the step with {}", self.program.display()), message)),
        })
    }
}
