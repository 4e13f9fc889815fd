//! `RUN --mount`: what each mount shows, prepared before the step and taken away after it.
//!
//! Invariant: whatever is prepared here lies in the step's scratch directory or in the store's
//! cache mounts, never in the step's layer; secrets lie in memory only.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use layerfs::{MountOptions, Tree, Union, UpperLife, mount};
use rustix::fs::FlockOperation;

use super::agent::Agent;
use super::content::{self, ContentRules};
use super::select::Source;
use crate::build::{Builder, Identity, Input};
use crate::changeset::clean;
use crate::dockerfile::{CacheMount, FileOwnership, Mount, MountKind, Sharing};
use crate::error::{BuildError, Site};
use crate::export;
use crate::sandbox;
use crate::stage::StageState;

/// All mounts of one RUN.
pub(crate) struct StepMounts {
    kinds: Vec<(MountKind, Site)>,
}

/// Mounts that are ready; dropping them takes them away.
#[derive(Default)]
pub(crate) struct Prepared {
    /// For the sandbox, in order.
    pub(crate) mounts: Vec<sandbox::Mount>,
    /// Variables that hold secrets.
    pub(crate) env: Vec<String>,
    served: Vec<layerfs::Mount>,
    locks: Vec<File>,
    agents: Vec<Agent>,
    memory: Option<MemoryDirectory>,
}

/// A directory in memory, unmounted when dropped.
struct MemoryDirectory(PathBuf);

impl Drop for MemoryDirectory {
    fn drop(&mut self) {
        if let Err(error) = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH) {
            tracing::warn!("cannot unmount {}: {error}", self.0.display());
        }
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        for mount in self.served.drain(..) {
            if let Err(error) = mount.unmount() {
                tracing::warn!("cannot take a mount away: {error}");
            }
        }
    }
}

impl StepMounts {
    /// Evaluates the mounts of an instruction.
    pub(crate) fn new(
        builder: &Builder<'_>,
        stage: &StageState,
        mounts: &[Mount],
        site: &Site,
    ) -> Result<Self, BuildError> {
        let lookup = |name: &str| stage.variable(name);
        let expander = crate::dockerfile::Expander::new(builder.evaluation.escape, &lookup);
        let kinds = mounts
            .iter()
            .map(|mount| {
                let site = site.at(mount.span);
                let kind = mount.evaluate(&expander).map_err(site.because())?;
                Ok((absolute(kind, stage.working_dir()), site))
            })
            .collect::<Result<_, BuildError>>()?;
        Ok(Self { kinds })
    }

    /// What of the mounts goes into the step's key: what they show, but neither secrets nor caches.
    pub(crate) fn key_words(&self, builder: &Builder<'_>) -> Result<Vec<String>, BuildError> {
        let mut words = Vec::new();
        for (kind, site) in &self.kinds {
            words.push(match kind {
                MountKind::Bind { from, source, target, is_writable } => {
                    let input = input(builder, from.as_deref(), site)?;
                    let shown = identity(builder, &input, source.as_deref(), site)?;
                    format!("bind {shown} {target} {is_writable}")
                }
                other => format!("{other:?}"),
            });
        }
        Ok(words)
    }

    /// Makes everything ready, with `scratch` as a directory for mount points and sockets.
    pub(crate) fn prepare(&self, builder: &Builder<'_>, scratch: &Path) -> Result<Prepared, BuildError> {
        let mut prepared = Prepared::default();
        for (number, (kind, site)) in self.kinds.iter().enumerate() {
            let place = scratch.join(format!("mount-{number}"));
            match kind {
                MountKind::Bind { from, source, target, is_writable } => {
                    let input = input(builder, from.as_deref(), site)?;
                    prepared.bind(&input, source.as_deref(), target, *is_writable, &place, site)?;
                }
                MountKind::Cache(cache) => prepared.cache(builder, cache, site)?,
                MountKind::Tmpfs { target, size_bytes } => prepared.mounts.push(sandbox::Mount {
                    target: target.into(),
                    source: sandbox::Source::Tmpfs { size_bytes: *size_bytes, mode: 0o1777 },
                }),
                MountKind::Secret { id, target, env, is_required, ownership } => {
                    let Some(secret) = builder.request().secrets.get(id) else {
                        if *is_required {
                            return Err(site.error(format!("secret {id}: not found")).into());
                        }
                        prepared.env.extend(env.iter().map(|name| format!("{name}=")));
                        continue;
                    };
                    if let Some(name) = env {
                        prepared.env.push(format!("{name}={}", String::from_utf8_lossy(&secret.0)));
                    }
                    if let Some(target) = target {
                        prepared.secret(&secret.0, target, *ownership, scratch, number).map_err(site.because())?;
                    }
                }
                MountKind::Ssh { id, target, is_required, ownership } => match builder.request().ssh.get(id) {
                    Some(socket) => {
                        prepared.ssh(socket, target.as_deref(), *ownership, &place).map_err(site.because())?;
                    }
                    None if *is_required => return Err(site.error(format!("ssh agent {id}: not found")).into()),
                    None => {}
                },
            }
        }
        Ok(prepared)
    }
}

impl Prepared {
    fn bind(
        &mut self,
        input: &Input,
        source: Option<&str>,
        target: &str,
        is_writable: bool,
        place: &Path,
        site: &Site,
    ) -> Result<(), BuildError> {
        let path = resolved(input, source, site)?;
        let mounted = serve(&input.tree, is_writable, place).map_err(site.because())?;
        let shown = match path.as_slice() {
            b"" => mounted.directory().to_owned(),
            path => mounted.directory().join(bytes_path(path)),
        };
        self.served.push(mounted);
        self.mounts.push(sandbox::Mount {
            target: target.into(),
            source: sandbox::Source::Bind { path: shown, read_only: !is_writable },
        });
        Ok(())
    }

    fn cache(&mut self, builder: &Builder<'_>, cache: &CacheMount, site: &Site) -> Result<(), BuildError> {
        let id = cache.id.as_deref().unwrap_or(&cache.target);
        let (directory, lock) = claim(builder, id, cache.sharing, site)?;
        let content = directory.join("content");
        let is_new = !content.exists();
        if is_new {
            let draft = directory.join("draft");
            _ = fs::remove_dir_all(&draft);
            make_directory(&draft, cache.ownership, 0o755).map_err(site.because())?;
            if let Some(from) = &cache.from {
                let input = builder.input(from, site)?;
                let path = resolved(&input, cache.source.as_deref(), site)?;
                export::to_directory(&input.tree, &path, &draft, export::Ownership::Kept)?;
            }
            fs::rename(&draft, &content).map_err(site.because())?;
        }
        self.locks.extend(lock);
        self.mounts.push(sandbox::Mount {
            target: PathBuf::from(&cache.target),
            source: sandbox::Source::Bind { path: content, read_only: cache.is_read_only },
        });
        Ok(())
    }

    fn secret(
        &mut self,
        bytes: &[u8],
        target: &str,
        ownership: FileOwnership,
        scratch: &Path,
        number: usize,
    ) -> std::io::Result<()> {
        let memory = match &self.memory {
            Some(memory) => memory.0.clone(),
            None => {
                let directory = scratch.join("secrets");
                fs::create_dir(&directory)?;
                let flags = rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV;
                rustix::mount::mount("secrets", &directory, "tmpfs", flags, c"mode=0700,size=16m")?;
                self.memory = Some(MemoryDirectory(directory.clone()));
                directory
            }
        };
        let path = memory.join(number.to_string());
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(bytes)?;
        own(&path, ownership, 0o400)?;
        self.mounts
            .push(sandbox::Mount { target: target.into(), source: sandbox::Source::Bind { path, read_only: true } });
        Ok(())
    }

    fn ssh(
        &mut self,
        socket: &Path,
        target: Option<&str>,
        ownership: FileOwnership,
        place: &Path,
    ) -> std::io::Result<()> {
        let target = target.map_or_else(|| format!("/run/buildkit/ssh_agent.{}", self.agents.len()), str::to_owned);
        self.agents.push(Agent::serve(socket, place)?);
        own(place, ownership, 0o600)?;
        if !self.env.iter().any(|entry| entry.starts_with("SSH_AUTH_SOCK=")) {
            self.env.push(format!("SSH_AUTH_SOCK={target}"));
        }
        self.mounts.push(sandbox::Mount {
            target: target.into(),
            source: sandbox::Source::Bind { path: place.to_owned(), read_only: false },
        });
        Ok(())
    }
}

fn input(builder: &Builder<'_>, from: Option<&str>, site: &Site) -> Result<Input, BuildError> {
    match from {
        Some(from) => builder.input(from, site),
        None => builder.context(),
    }
}

/// The path that a mount's `source` leads to, links followed inside the input.
fn resolved(input: &Input, source: Option<&str>, site: &Site) -> Result<Vec<u8>, BuildError> {
    let given = source.unwrap_or_default();
    let view = Source::new(Arc::clone(&input.tree));
    let found = view.select_literal(given.as_bytes()).map_err(site.because())?;
    found.map(|(path, _)| path).ok_or_else(|| {
        let path = String::from_utf8_lossy(&clean(given.as_bytes())).into_owned();
        site.error(format!("\"/{path}\" not found in {}", input.label)).into()
    })
}

fn identity(builder: &Builder<'_>, input: &Input, source: Option<&str>, site: &Site) -> Result<String, BuildError> {
    let path = resolved(input, source, site)?;
    match &input.identity {
        Identity::Chain(chain) => Ok(format!("{chain} {}", path.escape_ascii())),
        Identity::Content => {
            let view = Source::new(Arc::clone(&input.tree));
            let found = view.select_literal(&path).map_err(site.because())?;
            let inode = found.map_or(layerfs::TreeInode::ROOT, |(_, inode)| inode);
            let rules = ContentRules { keeps_times: true, threads: builder.request().threads };
            content::digest(&input.tree, inode, rules).map_err(site.because())
        }
    }
}

/// Mounts a tree on a new directory; what a step writes goes to an upper beside it and is dropped.
fn serve(tree: &Arc<dyn Tree>, is_writable: bool, place: &Path) -> Result<layerfs::Mount, Box<dyn std::error::Error>> {
    fs::create_dir(place)?;
    let directory = place.join("merged");
    fs::create_dir(&directory)?;
    if !is_writable {
        let mounted = mount(Union::read_only(Arc::clone(tree)), &directory, MountOptions { read_only: true })?;
        super::run::without_devices(&directory)?;
        return Ok(mounted);
    }
    let (upper, work) = (place.join("upper"), place.join("work"));
    fs::create_dir(&upper)?;
    fs::create_dir(&work)?;
    let union = crate::upper::open_union(Arc::clone(tree), &upper, &work, UpperLife::Temporary)?;
    let mounted = mount(union, &directory, MountOptions::default())?;
    super::run::without_devices(&directory)?;
    Ok(mounted)
}

/// The directory of a cache, locked as its sharing asks.
fn claim(
    builder: &Builder<'_>,
    id: &str,
    sharing: Sharing,
    site: &Site,
) -> Result<(PathBuf, Option<File>), BuildError> {
    for copy in 0.. {
        let name = if copy == 0 { id.to_owned() } else { format!("{id}#{copy}") };
        let directory = builder.store.cache_mount(&name)?;
        let lock = File::create(directory.join("lock")).map_err(site.because())?;
        let operation = match sharing {
            Sharing::Shared => FlockOperation::LockShared,
            Sharing::Locked => FlockOperation::LockExclusive,
            Sharing::Private => FlockOperation::NonBlockingLockExclusive,
        };
        match rustix::fs::flock(&lock, operation) {
            Ok(()) => return Ok((directory, Some(lock))),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(site.error(format!("cannot lock the cache {id}: {error}")).into()),
        }
    }
    unreachable!("one of the copies is free")
}

fn make_directory(path: &Path, ownership: FileOwnership, default_mode: u32) -> std::io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(path)?;
    own(path, ownership, default_mode)
}

fn own(path: &Path, ownership: FileOwnership, default_mode: u32) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    chown(path, Some(ownership.uid.unwrap_or(0)), Some(ownership.gid.unwrap_or(0)))?;
    fs::set_permissions(path, fs::Permissions::from_mode(ownership.mode.unwrap_or(default_mode)))
}

/// Targets are relative to the working directory.
fn absolute(kind: MountKind, working_dir: &str) -> MountKind {
    let absolute = |target: String| {
        let whole = if target.starts_with('/') { target } else { format!("{working_dir}/{target}") };
        format!("/{}", String::from_utf8_lossy(&clean(whole.as_bytes())))
    };
    match kind {
        MountKind::Bind { from, source, target, is_writable } => {
            MountKind::Bind { from, source, target: absolute(target), is_writable }
        }
        MountKind::Cache(cache) => {
            let id = cache.id.clone().unwrap_or_else(|| cache.target.clone());
            MountKind::Cache(CacheMount { target: absolute(cache.target), id: Some(id), ..cache })
        }
        MountKind::Tmpfs { target, size_bytes } => MountKind::Tmpfs { target: absolute(target), size_bytes },
        MountKind::Secret { id, target, env, is_required, ownership } => {
            MountKind::Secret { id, target: target.map(absolute), env, is_required, ownership }
        }
        MountKind::Ssh { id, target, is_required, ownership } => {
            MountKind::Ssh { id, target: target.map(absolute), is_required, ownership }
        }
    }
}

fn bytes_path(path: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(std::ffi::OsStr::from_bytes(path))
}
