//! What is asked of a build: everything that is not in the Dockerfile or its context.

mod cache;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use layerfs::{Packing, Plane};
use registry_client::{Platform, Policy, Reference};

use crate::dockerfile::Source;
use crate::failure::OnFailure;
use crate::fetch::{FetchAccess, Fetched, RemotePlace};
use crate::sandbox::{self, Limits, Network, Process, Ulimit};
use crate::secret::Secret;

pub use self::cache::{CacheExport, CacheImport, CachePlace, CacheRequest, CacheScope};

/// A build.
#[derive(Clone)]
pub struct BuildRequest {
    /// The Dockerfile.
    pub dockerfile: Source,
    /// Where it lies, for the ignore file beside it; `None` for standard input.
    pub dockerfile_path: Option<PathBuf>,
    /// The files of the build.
    pub context: MainContext,
    /// Further contexts by name, or by `name::platform`; a name replaces a stage or an image of the same name.
    pub named_contexts: BTreeMap<String, NamedContext>,
    /// What fetching may use of the caller's.
    pub fetch: FetchAccess,
    /// The stage to build; `None` is the last one.
    pub target: Option<String>,
    /// Values of ARG.
    pub build_args: BTreeMap<String, String>,
    /// Labels that the image gets besides those of the Dockerfile.
    pub labels: BTreeMap<String, String>,
    /// What to build for, one image each; never empty. Several give an index in this order.
    pub platforms: Vec<Platform>,
    /// Whether the caller named them. Images say that they are for them then; for this machine by default, an image says
    /// what its base does.
    pub are_platforms_given: bool,
    /// What this machine is.
    pub build_platform: Platform,
    /// Carry out every step, whatever was recorded.
    pub no_cache: bool,
    /// Ask the registry for base images that the store has.
    pub pull: bool,
    /// Which times the layers get.
    pub times: Times,
    /// How RUN steps run.
    pub sandbox: SandboxRequest,
    /// Who is told of a failed step while its state is still there.
    pub on_failure: Option<Arc<dyn OnFailure>>,
    /// Secrets by id.
    pub secrets: BTreeMap<String, Secret>,
    /// Agent sockets by id.
    pub ssh: BTreeMap<String, PathBuf>,
    /// What was allowed.
    pub allow: BTreeSet<Entitlement>,
    /// How the layers of the image are packed.
    pub packing: Packing,
    /// Caches of other machines.
    pub cache: CacheRequest,
    /// What is to be said about the images.
    pub attestations: Attestations,
    /// Threads that compress; no effect on the bytes.
    pub threads: usize,
    /// How the build goes on; no effect on the bytes.
    pub engine: EngineRequest,
    /// Which images are let in from registries and layouts; what the store has is in.
    pub trust: Policy,
}

impl BuildRequest {
    /// A build of `dockerfile` with the files of a directory, for this machine, with nothing else asked for.
    #[must_use]
    pub fn new(dockerfile: Source, context: impl Into<PathBuf>) -> Self {
        Self {
            dockerfile,
            dockerfile_path: None,
            context: MainContext::Directory(context.into()),
            named_contexts: BTreeMap::new(),
            fetch: FetchAccess::default(),
            target: None,
            build_args: BTreeMap::new(),
            labels: BTreeMap::new(),
            platforms: vec![Platform::host()],
            are_platforms_given: false,
            build_platform: Platform::host(),
            no_cache: false,
            pull: false,
            times: Times::Base,
            sandbox: SandboxRequest::default(),
            on_failure: None,
            secrets: BTreeMap::new(),
            ssh: BTreeMap::new(),
            allow: BTreeSet::new(),
            packing: Packing::default(),
            cache: CacheRequest::default(),
            attestations: Attestations::default(),
            threads: 1,
            engine: EngineRequest::default(),
            trust: Policy::default(),
        }
    }

    /// The context that stands for a name in a Dockerfile, if the caller gave one: that for the platform, else that for
    /// all. As in BuildKit, `alpine` and `docker.io/library/alpine:latest` are one name.
    pub(crate) fn named_context(&self, name: &str, platform: &Platform) -> Option<&NamedContext> {
        /// Names with a meaning of their own.
        const RESERVED: [&str; 2] = ["scratch", "context"];
        if self.named_contexts.is_empty() || RESERVED.iter().any(|reserved| name.eq_ignore_ascii_case(reserved)) {
            return None;
        }
        let (name, platform) = (familiar(name), platform.to_string());
        let of = |wanted: Option<&str>| {
            self.named_contexts.iter().find(|(key, _)| match key.split_once("::") {
                Some((key, for_platform)) => wanted == Some(for_platform) && familiar(key) == name,
                None => wanted.is_none() && familiar(key) == name,
            })
        };
        of(Some(&platform)).or_else(|| of(None)).map(|(_, context)| context)
    }
}

/// An image's name as short as it can be; any other text as it is.
fn familiar(name: &str) -> String {
    let name = name.parse::<Reference>().map_or_else(|_| name.to_owned(), |reference| reference.familiar());
    name.strip_suffix(":latest").map_or(name.clone(), str::to_owned)
}

/// The files that COPY and ADD take if no other place is named.
#[derive(Clone)]
pub enum MainContext {
    /// A directory, less what its ignore file excludes.
    Directory(PathBuf),
    /// Files that were fetched.
    Fetched(Fetched),
}

impl MainContext {
    /// The directory that it is, if it is one.
    #[must_use]
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Self::Directory(path) => Some(path),
            Self::Fetched(_) => None,
        }
    }
}

/// Which statements are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attestations {
    /// How the image was built.
    pub provenance: Option<Provenance>,
    /// Which packages it holds.
    pub packages: bool,
}

/// What is said of a build.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Provenance {
    /// The values of build arguments, labels, the ids of secrets and the Dockerfile, too.
    pub is_whole: bool,
    /// Who says that it was built: a URI.
    pub builder: String,
}

impl Attestations {
    /// Whether nothing is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.provenance.is_none() && !self.packages
    }
}

/// How a build goes on.
#[derive(Debug, Clone, Default)]
pub struct EngineRequest {
    /// Steps that are carried out at once; up to 1 builds one stage after the other.
    pub jobs: usize,
    /// Images that will be pushed: their registries get the blobs of finished layers while the build goes on.
    pub upload_to: Vec<Reference>,
    /// Stages whose steps are carried out whatever was recorded, by name or as `stage-1`.
    pub no_cache_stages: Vec<String>,
    /// Tell why steps are carried out ([`crate::Events::step_missed`]).
    pub explain: bool,
}

/// Where a command runs: every RUN step of a build, or the one of a container.
#[derive(Debug, Clone, Default)]
pub struct SandboxRequest {
    /// The network, where the instruction names none.
    pub network: Network,
    /// Lines of /etc/hosts: address and name.
    pub extra_hosts: Vec<(String, String)>,
    /// The size of /dev/shm; `None` is Docker's 64 MiB.
    pub shm_size_bytes: Option<u64>,
    /// Resource limits.
    pub ulimits: Vec<Ulimit>,
    /// The content of /etc/resolv.conf; `None` leaves the image's own.
    pub resolv_conf: Option<String>,
    /// Who serves the root directory; no effect on what a step leaves.
    pub plane: Plane,
    /// Limits of a step as a whole. They change no result, so that they are not in a step's key.
    pub limits: Limits,
    /// An OCI runtime that runs the steps, in place of our own sandbox.
    pub runtime: Option<PathBuf>,
}

impl SandboxRequest {
    /// Has a process run so; a runtime keeps its files in `scratch`.
    pub(crate) fn apply(&self, process: &mut Process, scratch: &Path) {
        process.network = self.network;
        process.extra_hosts.clone_from(&self.extra_hosts);
        process.shm_size_bytes = self.shm_size_bytes.unwrap_or(sandbox::DEFAULT_SHM_SIZE_BYTES);
        process.ulimits.clone_from(&self.ulimits);
        process.resolv_conf.clone_from(&self.resolv_conf);
        process.limits.clone_from(&self.limits);
        let runtime = |program| sandbox::Runtime { program, directory: scratch.join("runtime") };
        process.runtime = self.runtime.clone().map(runtime);
    }
}

/// A context besides the main one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedContext {
    /// A directory.
    Directory(PathBuf),
    /// An image, at a registry or in the store.
    Image(String),
    /// An image in an OCI layout: the directory, and a tag or a digest.
    OciLayout(PathBuf, Option<String>),
    /// A git repository, an archive or a file of the web.
    Remote(RemotePlace),
}

/// Which times the files of a layer get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// Nothing is newer than the stage's base image; what comes from the context is as old.
    Base,
    /// Nothing is newer than this time, in seconds since 1970; what comes from the context is as old.
    Epoch(i64),
    /// Files keep their real times.
    Real,
    /// Files keep their real times, and the image says that it was made at this time.
    RealFiles(i64),
}

/// Something that a Dockerfile may do only if the caller allows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entitlement {
    /// `RUN --network=host`.
    NetworkHost,
    /// `RUN --security=insecure`.
    SecurityInsecure,
}
