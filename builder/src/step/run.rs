//! RUN: a command in the sandbox, on a copy-on-write mount of the stage, and its changes as a layer.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use layerfs::{DiffId, MountOptions, Plane, Tree, UpperLife, mount};

use super::config::PROXY_ARGUMENTS;
use super::files::accounts;
use super::mounts::StepMounts;
use crate::accounts::Account;
use crate::building::Builder;
use crate::cache::Work;
use crate::changeset::ChangeSet;
use crate::commit::{Removed, commit_upper};
use crate::dockerfile::{self, Run, Script, Security};
use crate::error::{BuildError, Site};
use crate::events::StepNumber;
use crate::failure::FailedStep;
use crate::machine;
use crate::request::Entitlement;
use crate::sandbox::{self, Process, Streams};
use crate::shared::Shared;
use crate::stage::StageState;
use crate::upper::{has_trusted_marks, make_directory, open_union, read_changes};

/// How much of a failed step's output its error keeps: about one screen.
const TAIL_LINES: usize = 40;

/// Where here-documents that begin with `#!` lie, as in BuildKit.
const SCRIPT_DIRECTORY: &str = "/dev/pipes";

/// A RUN with everything expanded.
struct RunStep {
    argv: Vec<String>,
    env: Vec<String>,
    /// Variables for proxies that no ARG declares: they change no result, so that they are not in the step's key.
    proxies: Vec<String>,
    mounts: StepMounts,
    network: sandbox::Network,
    security: sandbox::Security,
    /// A script that the command runs: its name and text.
    script: Option<(String, String)>,
}

/// RUN.
pub(crate) fn run(
    builder: &Builder<'_>,
    stage: &mut StageState,
    run: &Run,
    text: &str,
    site: &Site,
) -> Result<(), BuildError> {
    let job = RunStep::new(builder, stage, run, site)?;
    let created_by = job.created_by(stage, text);
    let work = Work::Run {
        argv: job.argv.clone(),
        env: job.env.clone(),
        cwd: stage.working_dir(),
        user: stage.config.config.user.clone(),
        network: job.network.key_word().to_owned(),
        security: job.security.key_word().to_owned(),
        mounts: job.mounts.key_words(builder)?,
        sandbox: job.sandbox_words(builder),
    };
    builder.cached(stage, text, &created_by, &work, |stage, number| job.carry_out(builder, stage, number, site))
}

impl RunStep {
    fn new(builder: &Builder<'_>, stage: &StageState, run: &Run, site: &Site) -> Result<Self, BuildError> {
        let (argv, script) = command(stage, run.script().map_err(site.because())?);
        let request = builder.request();
        let network = match run.network {
            None | Some(dockerfile::Network::Default) => request.sandbox.network,
            Some(dockerfile::Network::Host) => sandbox::Network::Host,
            Some(dockerfile::Network::None) => sandbox::Network::None,
        };
        let is_allowed = |entitlement| request.allow.contains(&entitlement);
        if network == sandbox::Network::Host && !is_allowed(Entitlement::NetworkHost) {
            let message = "network.host is not allowed: RUN --network=host needs `--allow network.host`";
            return Err(site.error(message).into());
        }
        if run.security == Security::Insecure && !is_allowed(Entitlement::SecurityInsecure) {
            let message = "security.insecure is not allowed: RUN --security=insecure needs `--allow security.insecure`";
            return Err(site.error(message).into());
        }
        Ok(Self {
            argv,
            env: environment(stage),
            proxies: proxies(builder, stage),
            mounts: StepMounts::new(builder, stage, &run.mounts, site)?,
            network,
            security: match run.security {
                Security::Sandbox => sandbox::Security::Sandbox,
                Security::Insecure => sandbox::Security::Insecure,
            },
            script,
        })
    }

    /// The instruction as `docker history` shows it.
    fn created_by(&self, stage: &StageState, text: &str) -> String {
        let arguments: Vec<String> = stage.arguments.iter().map(|(name, value)| format!("{name}={value}")).collect();
        match (arguments.len(), self.argv.split_last()) {
            (_, None) => text.to_owned(),
            (0, _) => format!("RUN {}", self.argv.join(" ")),
            (count, _) => format!("RUN |{count} {} {}", arguments.join(" "), self.argv.join(" ")),
        }
    }

    fn sandbox_words(&self, builder: &Builder<'_>) -> Vec<String> {
        let sandbox = &builder.request().sandbox;
        let mut words: Vec<String> = sandbox.extra_hosts.iter().map(|(at, name)| format!("host {name} {at}")).collect();
        words.extend(sandbox.ulimits.iter().map(sandbox::Ulimit::key_word));
        words.extend(sandbox.shm_size_bytes.map(|size| format!("shm {size}")));
        words.extend(builder.shared.frontend.hostname.iter().map(|name| format!("hostname {name}")));
        words.extend(self.script.iter().map(|(_, text)| format!("script {text}")));
        words
    }

    fn carry_out(
        &self,
        builder: &Builder<'_>,
        stage: &StageState,
        number: StepNumber,
        site: &Site,
    ) -> Result<DiffId, BuildError> {
        machine::check(builder.platform(), &builder.request().build_platform).map_err(site.because())?;
        let index = builder.tree(stage)?;
        let shown = if self.mounts.has_cache() { builder.dated(stage, Arc::clone(&index))? } else { index.clone() };
        let tree: Arc<dyn Tree> = index;
        let identity = accounts(&ChangeSet::new(Arc::clone(&tree)))
            .map_err(site.because())?
            .identity(&stage.config.config.user)
            .map_err(site.because())?;
        let upper = builder.store.create_upper(&stage.diff_ids(), UpperLife::Temporary)?;
        let scratch = upper.scratch()?;
        let merged = scratch.join("merged");
        std::fs::create_dir(&merged).map_err(BuildError::file("create", &merged))?;
        let mut prepared = self.mounts.prepare(builder, &scratch)?;
        self.add_script(&mut prepared.mounts, &scratch).map_err(site.because())?;
        let union = open_union(shown, &upper.upper(), &upper.work(), UpperLife::Temporary).map_err(site.because())?;
        if builder.request().sandbox.plane == Plane::Overlay && !has_trusted_marks() {
            let message = "the overlay plane is not for builds in a user namespace: the kernel splits hard links there, \
                and the image would depend on the plane";
            return Err(site.error(message).into());
        }
        let plane = builder.request().sandbox.plane;
        let options = MountOptions { plane, forgoes_xattrs: true, ..MountOptions::default() };
        let mounted = mount(union, &merged, options).map_err(site.because())?;
        without_devices(&merged).map_err(site.because())?;
        make_directory(&merged, Path::new(&stage.working_dir())).map_err(site.because())?;
        let mut process = self.process(builder, stage, &merged, &scratch, &identity);
        process.mounts = std::mem::take(&mut prepared.mounts);
        process.env.append(&mut prepared.env);
        let ended = self.execute(builder, stage, number, &process, site);
        let unmounted = mounted.unmount();
        drop(prepared);
        ended?;
        unmounted.map_err(site.because())?;
        let changes = read_changes(&tree, &upper.upper(), &upper.work()).map_err(site.because())?;
        let layer = commit_upper(builder.store, &tree, &changes, stage.epoch, Removed::Refused)?;
        drop(changes);
        builder.shared.clearing.put(upper);
        Ok(layer)
    }

    /// Runs the command; one that fails is an error, and shown to whoever asked for that before its state goes.
    fn execute(
        &self,
        builder: &Builder<'_>,
        stage: &StageState,
        number: StepNumber,
        process: &Process,
        site: &Site,
    ) -> Result<(), BuildError> {
        let ended = execute(process, builder.shared, |bytes| builder.events.step_output(number, bytes));
        let (exit, tail) = ended.map_err(|error| step_error(site, &error))?;
        if exit.code() == 0 {
            return Ok(());
        }
        // Killed because another step failed: that one is shown, not this.
        builder.shared.schedule.check()?;
        let mut at = site.error(format!(
            "process \"{}\" did not complete successfully: exit code: {}",
            self.argv.join(" "),
            exit.code()
        ));
        if let sandbox::Exit::OutOfMemory(_) = exit {
            at.message.push_str(": the kernel killed a process because the step's memory limit was reached");
        }
        at.hint = hint(exit).map(str::to_owned);
        let error = BuildError::Step { at: Box::new(at), exit_code: exit.code(), tail };
        if let Some(on_failure) = &builder.request().on_failure {
            let shell = stage.shell().into_iter().next().unwrap_or_default();
            on_failure.step_failed(&FailedStep { error: &error, process, shell });
        }
        Err(error)
    }

    fn process(
        &self,
        builder: &Builder<'_>,
        stage: &StageState,
        root: &Path,
        scratch: &Path,
        identity: &Account,
    ) -> Process {
        let mut process = Process::new(root, self.argv.iter().cloned());
        builder.request().sandbox.apply(&mut process, scratch);
        process.env.clone_from(&self.env);
        process.env.extend_from_slice(&self.proxies);
        // An empty one is none, as runc has it.
        process.env.retain(|entry| entry != "HOME=");
        if !process.env.iter().any(|entry| entry.starts_with("HOME=")) {
            let home = identity.home.as_deref().filter(|home| !home.is_empty()).unwrap_or("/");
            process.env.push(format!("HOME={home}"));
        }
        process.cwd = stage.working_dir().into();
        process.user =
            sandbox::User { uid: identity.owner.uid, gid: identity.owner.gid, groups: identity.groups.clone() };
        process.etc_files = sandbox::EtcFiles::Step;
        process.network = self.network;
        process.security = self.security;
        if let Some(hostname) = &builder.shared.frontend.hostname {
            process.hostname.clone_from(hostname);
        }
        process
    }

    fn add_script(&self, mounts: &mut Vec<sandbox::Mount>, scratch: &Path) -> io::Result<()> {
        use std::io::Write;
        use std::os::unix::fs::PermissionsExt;
        let Some((name, text)) = &self.script else { return Ok(()) };
        let directory = scratch.join("script");
        std::fs::create_dir(&directory)?;
        // A new one: no link is followed.
        let mut file = std::fs::File::create_new(directory.join(name))?;
        file.write_all(text.as_bytes())?;
        // Whatever the umask.
        file.set_permissions(std::fs::Permissions::from_mode(0o755))?;
        let source = sandbox::MountSource::Bind { path: directory, read_only: true };
        mounts.push(sandbox::Mount { target: SCRIPT_DIRECTORY.into(), source });
        Ok(())
    }
}

/// What mostly lies behind an exit code that shells and kernels have a meaning for.
fn hint(exit: sandbox::Exit) -> Option<&'static str> {
    match exit {
        sandbox::Exit::OutOfMemory(_) => Some("a larger --memory, or less at the same time in the step"),
        exit => match exit.code() {
            126 => {
                Some("the program is there but cannot be executed: its mode, its architecture, or the line after #!")
            }
            127 => Some("the program is not in the image, or not in its PATH: an earlier step has to install it"),
            137 => Some("SIGKILL: mostly the machine ran out of memory"),
            _ => None,
        },
    }
}

/// What runs, and the script it runs, if it is one.
fn command(stage: &StageState, script: Script) -> (Vec<String>, Option<(String, String)>) {
    let with_shell = |text: String| stage.shell().into_iter().chain([text]).collect();
    match script {
        Script::Exec(argv) => (argv, None),
        Script::Shell(text) => (with_shell(text), None),
        Script::Program { name, content } => (with_shell(format!("{SCRIPT_DIRECTORY}/{name}")), Some((name, content))),
    }
}

/// The environment of a step, before proxies, secrets and HOME.
fn environment(stage: &StageState) -> Vec<String> {
    let mut env: Vec<String> = stage.variables.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if let Some(epoch) = stage.epoch
        && stage.variable("SOURCE_DATE_EPOCH").is_none()
    {
        env.push(format!("SOURCE_DATE_EPOCH={epoch}"));
    }
    env
}

/// What the build was given for proxies, where the stage says nothing of its own. As in BuildKit a variable is given in
/// any case, and set in both that programs look for; the one that sorts last counts.
fn proxies(builder: &Builder<'_>, stage: &StageState) -> Vec<String> {
    let given = |name: &str| {
        let mut arguments = builder.request().build_args.iter().rev();
        arguments.find(|(other, value)| other.eq_ignore_ascii_case(name) && !value.is_empty()).map(|(_, value)| value)
    };
    let unset = PROXY_ARGUMENTS.into_iter().filter(|name| stage.variable(name).is_none());
    unset.filter_map(|name| Some(format!("{name}={}", given(name)?))).collect()
}

/// Makes the device files below a mount point data only. Where we are root, an image or a step could open the disks of
/// the machine otherwise; a user namespace never lets it. The devices of a step come from its own /dev.
pub(crate) fn without_devices(mount_point: &Path) -> io::Result<()> {
    use rustix::mount::{MountFlags, mount_remount};
    Ok(mount_remount(mount_point, MountFlags::BIND | MountFlags::NODEV | MountFlags::NOATIME, "")?)
}

/// Runs the process, passing on what it writes, and keeps the last lines.
fn execute(
    process: &Process,
    shared: &Shared<'_>,
    mut output: impl FnMut(&[u8]),
) -> Result<(sandbox::Exit, Vec<String>), sandbox::Error> {
    let setup = |cause: io::Error| sandbox::Error::Describe(format!("cannot make a pipe: {cause}"));
    let (mut reader, writer) = io::pipe().map_err(setup)?;
    let streams = Streams { stdin: None, stdout: Some(writer.as_fd()), stderr: Some(writer.as_fd()) };
    let step = shared.starter.run(process, streams)?;
    let killer = step.killer();
    let _watched = shared.schedule.watch(move || killer.kill());
    drop(writer);
    let mut tail = Tail::default();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                output(&buffer[..read]);
                tail.push(&buffer[..read]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    Ok((step.wait()?, tail.finish()))
}

fn step_error(site: &Site, error: &sandbox::Error) -> BuildError {
    site.error(error.to_string()).into()
}

/// The last lines of a stream.
#[derive(Default)]
struct Tail {
    lines: VecDeque<String>,
    partial: Vec<u8>,
}

impl Tail {
    /// Longer lines are cut: an error is one screen.
    const MOST_LINE_BYTES: usize = 2000;

    fn push(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = Self::MOST_LINE_BYTES.saturating_sub(self.partial.len());
            self.partial.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&self.partial).trim_end().to_owned();
        self.partial.clear();
        self.lines.push_back(line);
        if self.lines.len() > TAIL_LINES {
            self.lines.pop_front();
        }
    }

    fn finish(mut self) -> Vec<String> {
        if !self.partial.is_empty() {
            self.end_line();
        }
        self.lines.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_keeps_the_last_lines_and_the_beginning_of_a_long_one() {
        let mut tail = Tail::default();
        for number in 0..100 {
            tail.push(format!("line {number}\n").as_bytes());
        }
        tail.push(&[b'x'; 5000]);
        let lines = tail.finish();
        assert_eq!(lines.len(), TAIL_LINES);
        assert_eq!(lines[TAIL_LINES - 2], "line 99");
        assert_eq!(lines[TAIL_LINES - 1].len(), Tail::MOST_LINE_BYTES);
    }
}
