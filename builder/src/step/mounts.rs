//! `RUN --mount`: what each mount shows, prepared before the step and taken away after it.
//!
//! Invariant: whatever is prepared here lies in the step's scratch directory or in the store's
//! cache mounts, never in the step's layer; secrets lie in memory only.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use layerfs::{FileKind, MountOptions, Tree, Union, UpperLife, mount};
use rustix::fs::{CWD, FlockOperation, RenameFlags};

use super::agent::Agent;
use super::mount_keys::identity;
use crate::building::Builder;
use crate::cache_mounts::Claimed;
use crate::changeset::ChangeSet;
use crate::changeset::select::SourceTree;
use crate::dockerfile::{CacheMount, FileOwnership, MountFlag, MountKind, Sharing};
use crate::error::{BuildError, Site};
use crate::export;
use crate::input::Input;
use crate::paths::go_clean;
use crate::paths::{base_name, clean};
use crate::plan::SourceName;
use crate::sandbox;
use crate::stage::StageState;

/// The mode of a new cache's directory.
const CACHE_MODE: u32 = 0o755;

/// All mounts of one RUN.
pub(crate) struct StepMounts {
    pub(super) kinds: Vec<(MountKind, Site)>,
}

/// Mounts that are ready; dropping them takes them away.
#[derive(Default)]
pub(crate) struct Prepared {
    /// For the sandbox, in order.
    pub(crate) mounts: Vec<sandbox::Mount>,
    /// Variables that hold secrets.
    pub(crate) env: Vec<String>,
    served: Vec<layerfs::Mount>,
    /// Caches, by what they are called.
    claimed: BTreeMap<String, Claimed>,
    agents: Vec<Agent>,
    memory: Option<Mounted>,
    /// Parts of caches.
    parts: Vec<Mounted>,
}

/// A mount point in this process's namespace, unmounted when dropped.
struct Mounted(PathBuf);

impl Drop for Mounted {
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
        mounts: &[MountFlag],
        site: &Site,
    ) -> Result<Self, BuildError> {
        let lookup = |name: &str| stage.variable(name);
        let expander = crate::dockerfile::Expander::new(builder.evaluation.escape, &lookup);
        let kinds = mounts
            .iter()
            .map(|mount| {
                let site = site.at(mount.span);
                let kind = mount.evaluate(&expander).map_err(site.because())?;
                let kind = absolute(kind, &stage.working_dir());
                match kind.target() {
                    Some("/") => Err(site.error("a mount cannot be at the root: give a target, or set WORKDIR").into()),
                    _ => Ok((kind, site)),
                }
            })
            .collect::<Result<_, BuildError>>()?;
        Ok(Self { kinds })
    }

    /// Whether the step finds what an earlier build left.
    pub(crate) fn has_cache(&self) -> bool {
        self.kinds.iter().any(|(kind, _)| matches!(kind, MountKind::Cache(_)))
    }

    /// Makes everything ready, with `scratch` as a directory for mount points and sockets.
    pub(crate) fn prepare(&self, builder: &Builder<'_>, scratch: &Path) -> Result<Prepared, BuildError> {
        let mut prepared = Prepared::default();
        prepared.claimed = self.claim_caches(builder)?;
        for (number, (kind, site)) in self.kinds.iter().enumerate() {
            let place = scratch.join(format!("mount-{number}"));
            match kind {
                MountKind::Bind { from, source, target, is_writable } => {
                    let input = match from {
                        Some(from) if self.has_cache() => builder.dated_input(SourceName::Mount(from), site)?,
                        _ => input(builder, from.as_deref(), site)?,
                    };
                    prepared.bind(&input, source.as_deref(), target, *is_writable, &place, site)?;
                }
                MountKind::Cache(cache) => prepared.cache(builder, cache, &place, site)?,
                MountKind::Tmpfs { target, size_bytes, is_read_only } => prepared.mounts.push(sandbox::Mount {
                    target: target.into(),
                    source: sandbox::MountSource::Tmpfs {
                        size_bytes: *size_bytes,
                        mode: None,
                        read_only: *is_read_only,
                    },
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
        // As BuildKit has it: what is mounted inside another mount is not covered by it.
        prepared.mounts.sort_by(|one, other| one.target.cmp(&other.target));
        Ok(prepared)
    }

    /// Locks the caches that steps may have to wait for: all of them before anything else, each once and in one order,
    /// so that neither two steps nor two mounts of one step wait for each other.
    fn claim_caches(&self, builder: &Builder<'_>) -> Result<BTreeMap<String, Claimed>, BuildError> {
        let mut wanted = BTreeMap::new();
        for (kind, site) in &self.kinds {
            let MountKind::Cache(cache) = kind else { continue };
            let operation = match cache.sharing {
                Sharing::Shared => FlockOperation::NonBlockingLockShared,
                Sharing::Locked => FlockOperation::NonBlockingLockExclusive,
                Sharing::Private => continue,
            };
            let (held, _) = wanted.entry(cache_name(builder, cache, site)?).or_insert((operation, site));
            if matches!(cache.sharing, Sharing::Locked) {
                *held = operation;
            }
        }
        let mut claimed = BTreeMap::new();
        for (name, (operation, site)) in wanted {
            renew(builder, &name, site)?;
            let found = loop {
                match claim(builder, &name, operation, site)? {
                    Some(found) => break found,
                    None => builder.shared.schedule.pause()?,
                }
            };
            claimed.insert(name, found);
        }
        Ok(claimed)
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
            source: sandbox::MountSource::Bind { path: shown, read_only: !is_writable },
        });
        Ok(())
    }

    fn cache(
        &mut self,
        builder: &Builder<'_>,
        cache: &CacheMount,
        place: &Path,
        site: &Site,
    ) -> Result<(), BuildError> {
        let mut name = cache_name(builder, cache, site)?;
        if matches!(cache.sharing, Sharing::Private) {
            name = self.claim_copy(builder, &name, site)?;
        }
        let seed = cache.from.as_ref().map(|from| {
            let input = builder.input(SourceName::Mount(from), site)?;
            let path = resolved(&input, cache.source.as_deref(), site)?;
            Ok::<_, BuildError>((input, path))
        });
        let seed = seed.transpose()?;
        let (part, is_file) = match (&seed, &cache.source) {
            // A cache that begins with a file is that file, which lies alone in the directory.
            (Some((input, path)), _) if !is_directory(&input.tree, path).map_err(site.because())? => {
                (base_name(path), true)
            }
            (None, Some(part)) => (part.as_bytes(), false),
            _ => (b"".as_slice(), false),
        };
        let content = self.claimed[&name].content();
        let path = loop {
            if !content.exists() {
                begin(&self.claimed[&name], cache, seed.as_ref(), site)?;
            }
            match self.part(&content, (part, is_file), place) {
                // A build without the cache has it begin anew at this very moment.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && !content.exists() => {}
                found => {
                    break found.map_err(|error| {
                        let part = String::from_utf8_lossy(part);
                        site.error(format!("cannot mount the directory {part:?} of the cache {name}: {error}"))
                    })?;
                }
            }
        };
        self.mounts.push(sandbox::Mount {
            target: PathBuf::from(&cache.target),
            source: sandbox::MountSource::Bind { path, read_only: cache.is_read_only },
        });
        Ok(())
    }

    /// Locks a cache that nobody uses now, and gives its name: the cache itself, or a copy of it.
    fn claim_copy(&mut self, builder: &Builder<'_>, name: &str, site: &Site) -> Result<String, BuildError> {
        let copies = (1..).map(|copy| format!("{name}#{copy}"));
        for name in std::iter::once(name.to_owned()).chain(copies) {
            renew(builder, &name, site)?;
            if let Some(claimed) = claim(builder, &name, FlockOperation::NonBlockingLockExclusive, site)? {
                self.claimed.insert(name.clone(), claimed);
                return Ok(name);
            }
        }
        unreachable!("one of the copies is free")
    }

    /// A directory or file of a cache, or all of it, mounted at `place`. Other steps may change the cache at this moment:
    /// the kernel finds the way, which never leads out of the cache, and what was found is mounted whatever stands at its
    /// path then.
    fn part(&mut self, content: &Path, (part, is_file): (&[u8], bool), place: &Path) -> std::io::Result<PathBuf> {
        use rustix::fs::{Mode, OFlags, ResolveFlags};
        let part = bytes_path(&clean(part));
        let top = rustix::fs::open(content, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let name = if part.as_os_str().is_empty() { Path::new(".") } else { &part };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let mut flags = OFlags::PATH | OFlags::CLOEXEC;
        flags.set(OFlags::DIRECTORY, !is_file);
        let found = rustix::fs::openat2(&top, name, flags, Mode::empty(), resolve)?;
        match is_file {
            true => fs::write(place, "")?,
            false => fs::create_dir(place)?,
        }
        rustix::mount::mount_bind(format!("/proc/self/fd/{}", found.as_raw_fd()), place)?;
        self.parts.push(Mounted(place.to_owned()));
        Ok(place.to_owned())
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
                self.memory = Some(Mounted(directory.clone()));
                directory
            }
        };
        let path = memory.join(number.to_string());
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(bytes)?;
        own(&path, ownership, 0o400)?;
        self.mounts.push(sandbox::Mount {
            target: target.into(),
            source: sandbox::MountSource::Bind { path, read_only: true },
        });
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
            source: sandbox::MountSource::Bind { path: place.to_owned(), read_only: false },
        });
        Ok(())
    }
}

/// What a mount is of: the context, or what `from` names.
pub(super) fn input(builder: &Builder<'_>, from: Option<&str>, site: &Site) -> Result<Input, BuildError> {
    match from {
        Some(from) => builder.input(SourceName::Mount(from), site),
        None => builder.context(),
    }
}

/// The path that a mount's `source` leads to, links followed inside the input.
pub(super) fn resolved(input: &Input, source: Option<&str>, site: &Site) -> Result<Vec<u8>, BuildError> {
    let given = source.unwrap_or_default();
    let view = SourceTree::new(Arc::clone(&input.tree));
    let found = view.select_literal(given.as_bytes()).map_err(site.because())?;
    found.map(|(path, _)| path).ok_or_else(|| {
        let path = String::from_utf8_lossy(&clean(given.as_bytes())).into_owned();
        site.error(format!("\"/{path}\": not found in {}", input.label)).into()
    })
}

/// Whether a directory lies at a path that is there.
fn is_directory(tree: &Arc<dyn Tree>, path: &[u8]) -> std::io::Result<bool> {
    let kind = ChangeSet::new(Arc::clone(tree)).stat(path)?.map(|attributes| attributes.kind);
    Ok(kind == Some(FileKind::Directory))
}

/// Mounts a tree on a new directory; what a step writes goes to an upper beside it and is dropped.
fn serve(tree: &Arc<dyn Tree>, is_writable: bool, place: &Path) -> Result<layerfs::Mount, Box<dyn std::error::Error>> {
    fs::create_dir(place)?;
    let directory = place.join("merged");
    fs::create_dir(&directory)?;
    if !is_writable {
        let mounted = mount(
            Union::read_only(Arc::clone(tree)),
            &directory,
            MountOptions { read_only: true, ..MountOptions::default() },
        )?;
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

/// What a cache is called in the store. As in BuildKit, caches of one id that begin with something else are not the
/// same: one of another owner or mode, which their users could not write to, and one that begins with other files.
fn cache_name(builder: &Builder<'_>, cache: &CacheMount, site: &Site) -> Result<String, BuildError> {
    let mut name = builder.shared.frontend.cache_id(cache.id.as_deref().unwrap_or(&cache.target));
    let ownership = &cache.ownership;
    // A part of a cache has the owner that it has.
    let is_part = cache.source.as_ref().is_some_and(|source| !clean(source.as_bytes()).is_empty());
    if !is_part || cache.from.is_some() {
        for (key, id) in [("uid", ownership.uid), ("gid", ownership.gid)] {
            name.extend(id.filter(|id| *id != 0).map(|id| format!("#{key}={id}")));
        }
        name.extend(ownership.mode.filter(|mode| *mode != CACHE_MODE).map(|mode| format!("#mode={mode:o}")));
    }
    if let Some(from) = &cache.from {
        let begin = identity(builder, &builder.input(SourceName::Mount(from), site)?, cache.source.as_deref(), site)?;
        // So many digits tell the contents of one machine's caches apart.
        name.push_str(&format!("#from={:.16}", layerfs::digest_of(begin.as_bytes()).digest()));
    }
    Ok(name)
}

/// As in BuildKit, a cache begins anew for a stage that is built without the cache: once in a build.
fn renew(builder: &Builder<'_>, name: &str, site: &Site) -> Result<(), BuildError> {
    if !builder.is_without_cache() {
        return Ok(());
    }
    let name = name.to_owned();
    builder.shared.renewed.once(&name, || Claimed::renew(builder.store, &name)).map_err(site.because())
}

/// Makes the content that a cache begins with, unless another step is faster.
fn begin(
    claimed: &Claimed,
    cache: &CacheMount,
    seed: Option<&(Input, Vec<u8>)>,
    site: &Site,
) -> Result<(), BuildError> {
    let draft = claimed.draft().map_err(site.because())?;
    own(draft.path(), cache.ownership, CACHE_MODE).map_err(site.because())?;
    if let Some((input, path)) = seed {
        export::to_directory(&input.tree, path, draft.path(), export::Ownership::Kept)?;
    }
    match rustix::fs::renameat_with(CWD, draft.path(), CWD, claimed.content(), RenameFlags::NOREPLACE) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(site.because()(error)),
    }
}

/// The directory of a cache, locked; `None` while others have it.
fn claim(
    builder: &Builder<'_>,
    name: &str,
    operation: FlockOperation,
    site: &Site,
) -> Result<Option<Claimed>, BuildError> {
    match Claimed::new(builder.store, name, operation) {
        Ok(claimed) => Ok(Some(claimed)),
        Err(error) if error.is_busy() => Ok(None),
        Err(error) => Err(site.error(format!("cannot lock the cache {name}: {error}")).into()),
    }
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
            let id = cache.id.clone().unwrap_or_else(|| go_clean(&cache.target));
            MountKind::Cache(CacheMount { target: absolute(cache.target), id: Some(id), ..cache })
        }
        MountKind::Tmpfs { target, size_bytes, is_read_only } => {
            MountKind::Tmpfs { target: absolute(target), size_bytes, is_read_only }
        }
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
