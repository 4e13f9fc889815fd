//! What is asked of a build: everything that is not in the Dockerfile or its context.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use registry_client::Platform;

use crate::dockerfile::Source;
use crate::sandbox::{Network, Ulimit};

/// A build.
#[derive(Clone)]
pub struct BuildRequest {
    /// The Dockerfile.
    pub dockerfile: Source,
    /// Where it lies, for the ignore file beside it; `None` for standard input.
    pub dockerfile_path: Option<PathBuf>,
    /// The directory with the files of the build.
    pub context: PathBuf,
    /// Further contexts by name; a name replaces a stage or an image of the same name.
    pub named_contexts: BTreeMap<String, NamedContext>,
    /// The stage to build; `None` is the last one.
    pub target: Option<String>,
    /// Values of ARG.
    pub build_args: BTreeMap<String, String>,
    /// Labels that the image gets besides those of the Dockerfile.
    pub labels: BTreeMap<String, String>,
    /// What to build for, one image each; never empty. Several give an index in this order.
    pub platforms: Vec<Platform>,
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
    /// Secrets by id.
    pub secrets: BTreeMap<String, Secret>,
    /// Agent sockets by id.
    pub ssh: BTreeMap<String, PathBuf>,
    /// What was allowed.
    pub allow: BTreeSet<Entitlement>,
    /// Threads that compress; no effect on the bytes.
    pub threads: usize,
}

impl BuildRequest {
    /// A build of `dockerfile` with the files of a directory, for this machine, with nothing else asked for.
    #[must_use]
    pub fn new(dockerfile: Source, context: impl Into<PathBuf>) -> Self {
        Self {
            dockerfile,
            dockerfile_path: None,
            context: context.into(),
            named_contexts: BTreeMap::new(),
            target: None,
            build_args: BTreeMap::new(),
            labels: BTreeMap::new(),
            platforms: vec![Platform::host()],
            build_platform: Platform::host(),
            no_cache: false,
            pull: false,
            times: Times::Base,
            sandbox: SandboxRequest::default(),
            secrets: BTreeMap::new(),
            ssh: BTreeMap::new(),
            allow: BTreeSet::new(),
            threads: 1,
        }
    }
}

/// What every RUN step of a build gets.
#[derive(Clone, Default)]
pub struct SandboxRequest {
    /// The network where the instruction names none.
    pub network: Network,
    /// Lines of /etc/hosts: address and name.
    pub extra_hosts: Vec<(String, String)>,
    /// The size of /dev/shm; `None` is Docker's 64 MiB.
    pub shm_size_bytes: Option<u64>,
    /// Resource limits.
    pub ulimits: Vec<Ulimit>,
    /// The content of /etc/resolv.conf; `None` leaves the image's own.
    pub resolv_conf: Option<String>,
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
}

/// A secret's bytes. Neither printed nor logged.
#[derive(Clone)]
pub struct Secret(pub Arc<[u8]>);

/// Something that a Dockerfile may do only if the caller allows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entitlement {
    /// `RUN --network=host`.
    NetworkHost,
    /// `RUN --security=insecure`.
    SecurityInsecure,
}
