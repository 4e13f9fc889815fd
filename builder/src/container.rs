//! An image in use: a command that runs on a copy-on-write mount of it, and a new image from what changed.
//!
//! Invariant: what a container runs with is Docker's rule on the image's configuration and the request, nothing else; a
//! container that is over leaves nothing in the store. Builds run their steps elsewhere (`step/run.rs`): those run
//! on a stage, and know no entrypoint.

use std::path::Path;
use std::sync::Arc;

use layerfs::{
    ChangesError, Compression, DiffId, Layer, MountError, MountOptions, Store, StoreError, Tree, Upper, UpperLife,
};
use registry_client::{Error as ImageError, Platform, choose_image};
use rustix::io::Errno;

use crate::changeset::ChangeSet;
use crate::commit::{CommitError, Removed, commit_upper};
use crate::error::BuildError;
use crate::image::{DEFAULT_PATH, History, ImageConfig, RunConfig};
use crate::manifest::{store_image, timestamp};
use crate::place::{StorePlace, StoredImage};
use crate::request::SandboxRequest;
use crate::sandbox::{self, Process, Step, Streams};
use crate::step::files::accounts;
use crate::upper::{UpperError, make_directory, open_union, read_changes};

/// What a command is run with, besides what the image says. The default changes nothing.
#[derive(Debug, Clone, Default)]
pub struct RunRequest {
    /// In place of the image's CMD; empty takes that.
    pub command: Vec<String>,
    /// In place of the image's ENTRYPOINT, and then its CMD does not count; an empty one is none.
    pub entrypoint: Option<Vec<String>>,
    /// Variables, over those of the image.
    pub env: Vec<(String, String)>,
    /// In place of the image's; made if it is missing.
    pub working_dir: Option<String>,
    /// In place of the image's `user[:group]`.
    pub user: Option<String>,
    /// What else is mounted.
    pub mounts: Vec<sandbox::Mount>,
    /// The host name; the beginning of the image's digest if none is given.
    pub hostname: Option<String>,
    /// Nothing of the image can be changed.
    pub read_only: bool,
    /// Where it runs.
    pub sandbox: SandboxRequest,
    /// Standard input is a pseudo terminal.
    pub terminal: bool,
}

/// Why an image could not be run or committed.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The upper cannot be used.
    #[error(transparent)]
    Upper(#[from] UpperError),
    /// The mount failed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The layer cannot be made.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The new image cannot be stored.
    #[error(transparent)]
    Image(#[from] BuildError),
    /// The sandbox failed.
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    /// Neither the image nor the request has a command.
    #[error("the image has no command, and none is given")]
    NoCommand,
    /// The image does not know the user.
    #[error("cannot run as {user:?}: {reason}")]
    User {
        /// What was asked for.
        user: String,
        /// Why not.
        reason: String,
    },
    /// A path that is no absolute one.
    #[error("the working directory {0:?} is not absolute")]
    RelativeDirectory(String),
    /// The files of two trees cannot be compared.
    #[error("cannot compare the files of an image")]
    Compare(#[source] std::io::Error),
    /// Something of the container's root cannot be read or made.
    #[error("cannot {action} in the image")]
    Root {
        /// Verb and object.
        action: String,
        /// Why.
        source: std::io::Error,
    },
}

impl From<ChangesError> for ContainerError {
    fn from(error: ChangesError) -> Self {
        UpperError::from(error).into()
    }
}

/// Finds an image of the store by a name, a digest or the beginning of one; of an index, the one for this machine.
///
/// # Errors
/// If there is none, or something of it is missing or damaged.
pub fn open_image(store: &Store, name: &str) -> Result<StoredImage, ImageError> {
    let named = crate::names::lookup(store, name)?;
    let chosen = choose_image(&StorePlace::existing(store, name, named), &Platform::host())?;
    StoredImage::open(store, &chosen.descriptor())
}

/// An image, mounted and ready to run one command. Dropping it takes mount and changes away.
#[derive(Debug)]
pub struct Container {
    // Dropped in this order: the mount uses the upper.
    mount: layerfs::Mount,
    process: Process,
    _upper: Upper,
}

impl Container {
    /// Mounts an image on an upper of its own, in the mount namespace of this process.
    ///
    /// # Errors
    /// If the request does not fit the image, or mounting fails.
    pub fn new(store: &Store, image: &StoredImage, request: &RunRequest) -> Result<Self, ContainerError> {
        let tree: Arc<dyn Tree> = store.tree(&image.diff_ids())?;
        let upper = store.create_upper(&image.diff_ids(), UpperLife::Temporary)?;
        let scratch = upper.scratch()?;
        let root = scratch.join("merged");
        let in_root = |action: String| move |source| ContainerError::Root { action, source };
        std::fs::create_dir(&root).map_err(in_root("make the mount point".to_owned()))?;
        let mut process = process(&tree, image, request, &root)?;
        request.sandbox.apply(&mut process, &scratch);
        let union = open_union(Arc::clone(&tree), &upper.upper(), &upper.work(), UpperLife::Temporary)?;
        let mount =
            layerfs::mount(union, &root, MountOptions { plane: request.sandbox.plane, ..MountOptions::default() })?;
        let made = make_directory(&root, &process.cwd);
        made.map_err(in_root(format!("make the working directory {}", process.cwd.display())))?;
        process.mounts.clone_from(&request.mounts);
        Ok(Self { mount, process, _upper: upper })
    }

    /// Starts the command.
    ///
    /// # Errors
    /// If the sandbox cannot be started.
    pub fn start(&self, streams: Streams<'_>) -> Result<Step, ContainerError> {
        Ok(sandbox::run(&self.process, streams)?)
    }

    /// Unmounts, and forgets the changes.
    ///
    /// # Errors
    /// If the mount cannot be ended.
    pub fn end(self) -> Result<(), ContainerError> {
        Ok(self.mount.unmount()?)
    }
}

/// What runs: the request over the image's configuration.
fn process(
    tree: &Arc<dyn Tree>,
    image: &StoredImage,
    request: &RunRequest,
    root: &Path,
) -> Result<Process, ContainerError> {
    let config = &image.config.config;
    let user = request.user.as_ref().unwrap_or(&config.user);
    let accounts = accounts(&ChangeSet::new(Arc::clone(tree)));
    let accounts =
        accounts.map_err(|source| ContainerError::Root { action: "read the accounts".to_owned(), source })?;
    let identity = accounts
        .identity(user)
        .map_err(|error| ContainerError::User { user: user.clone(), reason: error.to_string() })?;
    let hostname =
        request.hostname.clone().unwrap_or_else(|| image.manifest.digest().digest().chars().take(12).collect());
    let home = identity.home.as_deref().filter(|home| !home.is_empty()).unwrap_or("/");
    let mut process = Process::new(root, arguments(config, request)?);
    process.env = environment(config, request, &hostname, home);
    process.cwd = working_directory(config, request)?.into();
    process.user = sandbox::User { uid: identity.owner.uid, gid: identity.owner.gid, groups: identity.groups.clone() };
    process.hostname = hostname;
    process.read_only_root = request.read_only;
    process.terminal = request.terminal;
    Ok(process)
}

/// <https://docs.docker.com/reference/dockerfile/#understand-how-cmd-and-entrypoint-interact>
fn arguments(config: &RunConfig, request: &RunRequest) -> Result<Vec<String>, ContainerError> {
    let entrypoint = request.entrypoint.as_ref().unwrap_or(&config.entrypoint);
    let command = match request.command.is_empty() && request.entrypoint.is_none() {
        true => &config.cmd,
        false => &request.command,
    };
    let argv: Vec<String> = entrypoint.iter().chain(command).cloned().collect();
    if argv.is_empty() { Err(ContainerError::NoCommand) } else { Ok(argv) }
}

/// What Docker sets comes first, then the image's, then the request's.
fn environment(config: &RunConfig, request: &RunRequest, hostname: &str, home: &str) -> Vec<String> {
    let mut result = RunConfig::default();
    result.set_env("PATH", DEFAULT_PATH);
    result.set_env("HOSTNAME", hostname);
    if request.terminal {
        result.set_env("TERM", "xterm");
    }
    for entry in &config.env {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        result.set_env(name, value);
    }
    for (name, value) in &request.env {
        result.set_env(name, value);
    }
    if result.env("HOME").is_none() {
        result.set_env("HOME", home);
    }
    result.env
}

fn working_directory(config: &RunConfig, request: &RunRequest) -> Result<String, ContainerError> {
    let directory = request.working_dir.as_ref().unwrap_or(&config.working_dir);
    match directory.as_str() {
        "" => Ok("/".to_owned()),
        absolute if absolute.starts_with('/') => Ok(absolute.to_owned()),
        relative => Err(ContainerError::RelativeDirectory(relative.to_owned())),
    }
}

/// How a committed image is described.
#[derive(Debug, Clone, Default)]
pub struct CommitRequest {
    /// Who made it.
    pub author: Option<String>,
    /// What it is; the comment of its history entry.
    pub message: Option<String>,
    /// The time of the image and the newest time in its layer, in seconds since 1970; `None` is now, and real times.
    pub epoch: Option<i64>,
    /// Threads that compress; no effect on the bytes.
    pub threads: usize,
}

/// Makes an image with one layer more, of what an upper over another image changed. Without changes there is no new
/// layer. The upper should be quiet and must have been synced.
///
/// # Errors
/// If the changes cannot be read, or cannot be in a layer.
pub fn commit_image(
    store: &Store,
    image: &StoredImage,
    upper: &Path,
    work: &Path,
    request: &CommitRequest,
) -> Result<StoredImage, ContainerError> {
    let tree: Arc<dyn Tree> = store.tree(&image.diff_ids())?;
    let diff_id = commit_live(store, &tree, upper, work, request.epoch)?;
    let StoredImage { mut config, mut layers, .. } = image.clone();
    let is_changed = diff_id.is_some();
    if let Some(diff_id) = diff_id {
        layers.push(store.pack_layer(&diff_id, Compression::Gzip, request.threads)?);
    }
    describe(&mut config, &layers, !is_changed, request);
    let platform = Platform::new(&config.os, &config.architecture, config.variant.as_deref());
    let base_layers = layers.len();
    Ok(store_image(store, platform, config, &layers, base_layers)?.image)
}

/// The layer of an upper that may be mounted: where a file with several names lost one between the look at it and the
/// reading of its content, looks again. `None` if nothing was changed.
fn commit_live(
    store: &Store,
    tree: &Arc<dyn Tree>,
    upper: &Path,
    work: &Path,
    epoch: Option<i64>,
) -> Result<Option<DiffId>, ContainerError> {
    /// A program that does so all the time hinders every other look.
    const MOST_LOOKS: usize = 30;
    let mut looks = 1;
    loop {
        let changes = read_changes(tree, upper, work)?;
        if changes.entries().is_empty() {
            return Ok(None);
        }
        match commit_upper(store, tree, &changes, epoch, Removed::LeftOut) {
            Err(CommitError::Changes(ChangesError::System { source: Errno::NOENT, .. })) if looks < MOST_LOOKS => {
                looks += 1;
            }
            committed => return Ok(Some(committed?)),
        }
    }
}

fn describe(config: &mut ImageConfig, layers: &[Layer], empty_layer: bool, request: &CommitRequest) {
    let created = timestamp(request.epoch);
    config.created = Some(created.clone());
    if let Some(author) = &request.author {
        config.author = Some(author.clone());
    }
    config.rootfs.diff_ids = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
    config.history.push(History {
        created: Some(created),
        created_by: "nacre commit".to_owned(),
        author: request.author.clone().unwrap_or_default(),
        comment: request.message.clone().unwrap_or_default(),
        empty_layer,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn image() -> RunConfig {
        RunConfig {
            entrypoint: words(&["sh"]),
            cmd: words(&["-c", "true"]),
            env: words(&["A=1", "PATH=/x"]),
            ..RunConfig::default()
        }
    }

    #[test]
    fn a_command_replaces_cmd_and_an_entrypoint_replaces_both() {
        let run = |request: RunRequest| arguments(&image(), &request).ok();
        assert_eq!(run(RunRequest::default()), Some(words(&["sh", "-c", "true"])));
        assert_eq!(run(RunRequest { command: words(&["x"]), ..RunRequest::default() }), Some(words(&["sh", "x"])));
        let entrypoint = Some(words(&["ls"]));
        assert_eq!(run(RunRequest { entrypoint, ..RunRequest::default() }), Some(words(&["ls"])));
        let none = RunRequest { entrypoint: Some(Vec::new()), ..RunRequest::default() };
        assert_eq!(run(none), None);
    }

    #[test]
    fn variables_of_the_request_win_over_the_image_and_those_over_the_defaults() {
        let request =
            RunRequest { env: vec![("A".into(), "2".into()), ("B".into(), String::new())], ..RunRequest::default() };
        let env = environment(&image(), &request, "box", "/root");
        assert_eq!(env, words(&["PATH=/x", "HOSTNAME=box", "A=2", "B=", "HOME=/root"]));
    }

    #[test]
    fn a_working_directory_is_made_inside_the_root_whatever_links_say() {
        let outside = tempfile::tempdir().expect("a directory");
        let root = tempfile::tempdir().expect("a directory");
        std::os::unix::fs::symlink(outside.path(), root.path().join("link")).expect("a link");
        // Inside the root, the link's target does not exist.
        assert!(make_directory(root.path(), Path::new("/link/new")).is_err());
        make_directory(root.path(), Path::new("/a/b/../c")).expect("made");
        assert!(root.path().join("a/c").is_dir());
        assert_eq!(std::fs::read_dir(outside.path()).expect("readable").count(), 0);
    }
}
