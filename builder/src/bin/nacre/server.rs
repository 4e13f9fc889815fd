//! Serving a mount: in this process where it may mount, else in a user namespace with a keeper outside.
//!
//! ```text
//! root, also of a user namespace       an ordinary user
//! server   mounts, serves, unmounts    keeper   has fusermount3 mount, and unmount when it is told to
//!                                        └─ waiter   outside of the user namespace (rootless.rs)
//!                                             └─ server   root inside; serves the device that fusermount3 sends
//! ```
//!
//! Invariant: SIGTERM, SIGINT and SIGHUP unmount, and what was written is stored before the program ends. The end of
//! the keeper ends waiter and server. A mount is announced when it works.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;

use anyhow::{Context, bail};
use builder::rootless::{self, Entered, Mapping};
use builder::signals::Signals;
use builder::{StoredImage, open_union};
use layerfs::{IdMapping, Mount, MountOptions, Plane, Store, Tree, Union, Upper, UpperLife};
use rustix::io::Errno;
use rustix::process::Signal;
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use crate::record::{self, Record, Server};
use crate::report::{self, Hinted};
use crate::session::{open_image, open_store, print};

/// What to mount where.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// The store.
    pub(crate) root: PathBuf,
    /// The image; an upper knows its own.
    pub(crate) image: Option<String>,
    /// Where to mount, absolute.
    pub(crate) directory: PathBuf,
    /// Nothing can be changed.
    pub(crate) read_only: bool,
    /// Who serves it.
    pub(crate) plane: Plane,
    /// An upper that was kept.
    pub(crate) upper: Option<String>,
    /// Log what happens inside, beside the upper.
    pub(crate) debug: bool,
}

/// What a server in another process says, as a line of JSON on its standard output.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// The mount is there, on the upper of this id.
    Mounted(String),
    /// It is not: an error in words, and its exit code.
    Failed(String, u8),
}

impl Answer {
    /// Waits for the answer of a server that was started.
    pub(crate) fn read(from: impl Read) -> anyhow::Result<Self> {
        let mut line = String::new();
        BufReader::new(from).read_line(&mut line).context("cannot read the answer of the mount's server")?;
        serde_json::from_str(&line).context("the mount's server ended without a word")
    }

    /// The id of the upper, or the error that is then shown as it came.
    pub(crate) fn mounted(self) -> Result<String, Foreign> {
        match self {
            Self::Mounted(id) => Ok(id),
            Self::Failed(text, code) => Err(Foreign { text, code }),
        }
    }
}

/// An error that another process of this program has put into words.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Foreign {
    /// What it would have shown.
    pub(crate) text: String,
    /// Its exit code.
    pub(crate) code: u8,
}

/// Mounts and serves until someone unmounts; `ready` is told the id of the upper when the mount is there.
pub(crate) fn serve(job: &Job, ready: &dyn Fn(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
    if may_mount()? { serve_directly(job, ready) } else { keep(job, ready) }
}

/// Root with the right to mount: of the machine, or of a user namespace that someone else made.
pub(crate) fn may_mount() -> anyhow::Result<bool> {
    let sets = rustix::thread::capabilities(None).context("cannot read the capabilities")?;
    Ok(rustix::process::geteuid().is_root() && sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

fn serve_directly(job: &Job, ready: &dyn Fn(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let signals = Signals::block().context("cannot block signals")?;
    let store = open_store(&job.root)?;
    let prepared = Prepared::new(&store, job)?;
    let own = i32::try_from(std::process::id()).context("the number of this process is too large")?;
    let started = prepared.start(job, Server::of(own)?, |union| {
        Ok(layerfs::mount(
            union,
            &job.directory,
            MountOptions { read_only: job.read_only, plane: job.plane, ..MountOptions::default() },
        )?)
    });
    let (mount, record) = match started {
        Ok(started) => started,
        Err(error) => return Err(prepared.abandon(job, error)),
    };
    ready(prepared.upper.id())?;
    let directory = job.directory.clone();
    std::thread::spawn(move || {
        while let Ok(signal) = signals.wait() {
            if ends(signal)
                && let Err(error) = layerfs::unmount(&directory)
            {
                report::report(&error.into());
            }
        }
    });
    prepared.finish(&store, mount, record)
}

/// Signals that ask a program to end.
fn ends(signal: Signal) -> bool {
    matches!(signal, Signal::TERM | Signal::INT | Signal::HUP)
}

/// The keeper: starts a server in a user namespace, has the mount made for it, and unmounts when it is told to.
fn keep(job: &Job, ready: &dyn Fn(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
    if job.plane == Plane::Overlay {
        let what = format!("cannot mount an overlay on {} as an ordinary user", job.directory.display());
        let hint = "fusermount3 mounts, and makes no overlay: take --plane fuse, or mount inside of `nacre unshare`";
        return Err(Hinted::error(what, hint));
    }
    let signals = Signals::block().context("cannot block signals")?;
    let (mut socket, other_end) = UnixStream::pair().context("cannot make a pair of sockets")?;
    let mut command = server_command(job, Some(std::process::id()));
    command.stdin(Stdio::from(OwnedFd::from(other_end))).stdout(Stdio::piped());
    let mut server = command.spawn().context("cannot start the mount's server")?;
    drop(command);
    let answers = server.stdout.take().context("the mount's server has no standard output")?;
    // One byte says that the server waits for the device; without it, it has failed, and says why.
    let is_waiting = socket.read(&mut [0]).context("cannot wait for the mount's server")? == 1;
    let asked = if is_waiting { mount_for(job, &socket) } else { Ok(()) };
    drop(socket);
    let announced = asked.and_then(|()| {
        let id = Answer::read(answers)?.mounted()?;
        // The mount is there, but nobody wants to know of it.
        ready(&id).inspect_err(|_| _ = layerfs::unmount_as_user(&job.directory, true))
    });
    if announced.is_err() {
        // Its device, or the socket, is at its end. It puts the upper back; our end would be its own.
        server.wait().context("cannot wait for the mount's server")?;
        return announced;
    }
    attend(&mut server, &signals, job)
}

/// Has the mount made, and its device sent to the server at the other end of the socket.
fn mount_for(job: &Job, socket: &UnixStream) -> anyhow::Result<()> {
    let socket = OwnedFd::from(socket.try_clone().context("cannot duplicate a socket")?);
    Ok(layerfs::mount_for_server(socket, &job.directory, job.read_only, others_may_look())?)
}

/// Until the server ends: unmounts when it is asked to.
fn attend(server: &mut Child, signals: &Signals, job: &Job) -> anyhow::Result<()> {
    loop {
        if let Some(status) = server.try_wait().context("cannot wait for the mount's server")? {
            clear_dead_mount(&job.directory);
            if status.success() {
                return Ok(());
            }
            bail!("the server of {} failed, its log is beside its upper: {status}", job.directory.display());
        }
        if ends(signals.wait().context("cannot wait for a signal")?)
            && layerfs::unmount_as_user(&job.directory, false).is_err()
        {
            layerfs::unmount_as_user(&job.directory, true)?;
        }
    }
}

/// Whether other users may be let in, which the users that a container makes are.
fn others_may_look() -> bool {
    let text = std::fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    text.lines().any(|line| line.trim() == "user_allow_other")
}

/// Unmounts what nobody serves any more, and nothing else.
fn clear_dead_mount(directory: &Path) {
    if rustix::fs::stat(directory).err() == Some(Errno::NOTCONN)
        && let Err(error) = layerfs::unmount_as_user(directory, true)
    {
        report::report(&error.into());
    }
}

/// The command that serves a job in another process; inside a user namespace if it has a keeper.
pub(crate) fn server_command(job: &Job, keeper: Option<u32>) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("nacre");
    command.arg("--root").arg(&job.root).arg(crate::args::SERVER_VERB).arg(&job.directory);
    if let Some(image) = &job.image {
        command.arg("--image").arg(image);
    }
    if let Some(upper) = &job.upper {
        command.arg("--upper").arg(upper);
    }
    for (is_set, flag) in [(job.read_only, "--read-only"), (job.debug, "--debug")] {
        if is_set {
            command.arg(flag);
        }
    }
    if job.plane != Plane::Fuse && keeper.is_none() {
        command.arg("--plane").arg(job.plane.to_string());
    }
    if let Some(keeper) = keeper {
        command.arg("--keeper").arg(keeper.to_string());
    }
    command
}

/// Serves inside a user namespace: the device comes over standard input, the answer goes to standard output.
pub(crate) fn serve_inside(job: &Job, keeper: i32) -> anyhow::Result<ExitCode> {
    // Who is told to end is the keeper; its end is ours, however it comes.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context("cannot tie the server to its keeper")?;
    let options = rootless::Options { private_mounts: true, mapping: Mapping::Ranges };
    if let Entered::Finished(code) = rootless::enter(options)? {
        return Ok(ExitCode::from(code));
    }
    // Ctrl-C goes to all processes of a terminal; the keeper deals with it.
    let _signals = Signals::block().context("cannot block signals")?;
    let store = open_store(&job.root)?;
    let prepared = Prepared::new(&store, job)?;
    let (mount, record) = match prepared.start(job, Server::of(keeper)?, |union| serve_device(union, job)) {
        Ok(started) => started,
        Err(error) => return Err(prepared.abandon(job, error)),
    };
    print(&serde_json::to_string(&Answer::Mounted(prepared.upper.id().to_owned()))?)?;
    log_beside(&job.root, prepared.upper.id())?;
    prepared.finish(&store, mount, record)?;
    Ok(ExitCode::SUCCESS)
}

/// Takes the device over standard input, after a word to the keeper, and serves it.
fn serve_device(union: Union<Arc<dyn Tree>>, job: &Job) -> anyhow::Result<Mount> {
    // Above the standard streams.
    let socket = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3).context("cannot take over the socket")?;
    let null = std::fs::File::open("/dev/null").context("cannot open /dev/null")?;
    rustix::stdio::dup2_stdin(&null).context("cannot close standard input")?;
    rustix::io::write(&socket, b"r").context("cannot tell the keeper")?;
    let device = layerfs::receive_device(socket.as_fd())?;
    Ok(layerfs::serve(union, device, &job.directory, id_mapping()?)?)
}

fn id_mapping() -> anyhow::Result<IdMapping> {
    let read = |path: &str| std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
    let mapping = IdMapping::parse(&read("/proc/self/uid_map")?, &read("/proc/self/gid_map")?);
    mapping.context("the maps of the user namespace are not understood")
}

/// An image and an upper, about to be mounted.
struct Prepared {
    image: StoredImage,
    name: String,
    tree: Arc<dyn Tree>,
    upper: Upper,
}

impl Prepared {
    fn new(store: &Store, job: &Job) -> anyhow::Result<Self> {
        let (name, image) = match (&job.upper, &job.image) {
            (Some(id), _) => {
                let record = record::find(store.root(), Path::new(id))?.record;
                (record.image.clone(), record.stored_image()?)
            }
            (None, Some(name)) => (name.clone(), open_image(store, name)?),
            (None, None) => bail!("neither an image nor an upper is named"),
        };
        let upper = match &job.upper {
            Some(id) => store.open_upper(id)?,
            // Nothing will be in it, but the record and the log.
            None if job.read_only => store.create_upper(&image.diff_ids(), UpperLife::Temporary)?,
            None => store.create_upper(&image.diff_ids(), UpperLife::Kept)?,
        };
        let tree = store.tree(&image.diff_ids())?;
        Ok(Self { image, name, tree, upper })
    }

    /// With an upper that was kept, also what is read-only shows its changes.
    fn union(&self, job: &Job) -> anyhow::Result<Union<Arc<dyn Tree>>> {
        if job.read_only && job.upper.is_none() {
            return Ok(Union::read_only(Arc::clone(&self.tree)));
        }
        Ok(open_union(Arc::clone(&self.tree), &self.upper.upper(), &self.upper.work(), UpperLife::Kept)?)
    }

    /// Mounts. The record comes first, so that whoever is killed leaves nothing that no other run finds.
    fn start(
        &self,
        job: &Job,
        server: Server,
        mount: impl FnOnce(Union<Arc<dyn Tree>>) -> anyhow::Result<Mount>,
    ) -> anyhow::Result<(Mount, Record)> {
        let union = self.union(job)?;
        let mut record = Record::new(&self.image, &self.name, &job.directory, job.read_only, Some(server));
        record.write(&self.upper.scratch()?)?;
        let mount = mount(union)?;
        record.plane = mount.plane();
        record.write(&self.upper.scratch()?)?;
        Ok((mount, record))
    }

    /// After a start that failed: an upper that was made for it goes, an older one stays. Gives back the error.
    fn abandon(self, job: &Job, error: anyhow::Error) -> anyhow::Error {
        let cleared = match &job.upper {
            None => self.upper.remove().map_err(anyhow::Error::from),
            Some(_) => {
                let record = Record::new(&self.image, &self.name, &job.directory, job.read_only, None);
                self.upper.scratch().map_err(anyhow::Error::from).and_then(|scratch| record.write(&scratch))
            }
        };
        if let Err(other) = cleared {
            report::report(&other);
        }
        error
    }

    /// Serves to the end. An upper without changes is then removed.
    fn finish(self, store: &Store, mount: Mount, record: Record) -> anyhow::Result<()> {
        mount.wait()?;
        Record { server: None, ..record }.write(&self.upper.scratch()?)?;
        settle(store, self.upper, false)?;
        Ok(())
    }
}

/// What becomes of an upper that is not mounted any more: its id if it is kept, because it has changes.
pub(crate) fn settle(store: &Store, upper: Upper, is_discarded: bool) -> anyhow::Result<Option<String>> {
    let tree: Arc<dyn Tree> = store.tree(upper.stack())?;
    if is_discarded || builder::read_changes(&tree, &upper.upper(), &upper.work())?.entries().is_empty() {
        upper.remove()?;
        return Ok(None);
    }
    Ok(Some(upper.id().to_owned()))
}

/// From here on standard error is a file beside the upper: whoever started us may be gone.
pub(crate) fn log_beside(root: &Path, id: &str) -> anyhow::Result<()> {
    let path = root.join("uppers").join(id).join("scratch/log");
    let log = std::fs::File::options().create(true).append(true).open(&path);
    let log = log.with_context(|| format!("cannot open the log {}", path.display()))?;
    rustix::stdio::dup2_stderr(&log).context("cannot redirect standard error")?;
    let null = std::fs::File::options().write(true).open("/dev/null").context("cannot open /dev/null")?;
    std::io::stdout().flush().context("cannot write to standard output")?;
    rustix::stdio::dup2_stdout(&null).context("cannot close standard output")
}
