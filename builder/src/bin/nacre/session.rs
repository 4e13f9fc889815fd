//! What the verbs share: the store, the registry client, the display. Here, and only here, the environment is read.

use std::env;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use builder::StoredImage;
use builder::fetch::FetchAccess;
use layerfs::Store;
use oci_spec::image::Descriptor;
use registry_client::{
    Cause, Client, ClientOptions, Credentials, Error, Hosts, ImageName, Progress, Secret, SignatureStores,
    TransportOptions,
};

use crate::args::Global;
use crate::interrupt::Interrupts;
use crate::progress::Display;
use crate::report::{Hinted, OutputClosed};

/// One run of the program.
pub(crate) struct Session {
    /// Where the store lies.
    pub(crate) root: PathBuf,
    /// Where progress is shown.
    pub(crate) display: Arc<Display>,
    /// Where credentials are looked up, kept and forgotten.
    pub(crate) credentials: Credentials,
    /// Registries, with the caller's credentials.
    pub(crate) client: Client,
    /// Who takes the signals, once they are taken.
    pub(crate) interrupts: Interrupts,
}

impl Session {
    /// Reads the environment.
    pub(crate) fn new(global: &Global) -> anyhow::Result<Self> {
        let root = root(global)?;
        let display = Arc::new(Display::new(global.progress));
        let transport = TransportOptions {
            https_proxy: variable("https_proxy").map(Secret::new),
            http_proxy: http_proxy().map(Secret::new),
            no_proxy: variable("no_proxy"),
            ..TransportOptions::default()
        };
        let credentials =
            Credentials { files: credential_files(), helper_directories: path(), ..Credentials::default() };
        let progress: Arc<dyn Progress> = Arc::clone(&display) as Arc<dyn Progress>;
        let hosts = Hosts::load(&registries_conf(), &certs_directories())?;
        // Beside the store's own files: what a killed pull had fetched is there for the next one.
        let spool = Some(root.join("partial"));
        let client = Client::new(ClientOptions {
            hosts,
            spool,
            known_blobs: Some(root.join("known")),
            credentials: credentials.clone(),
            transport,
            progress,
            signature_stores: signature_stores(),
            ..ClientOptions::default()
        });
        Ok(Self { root, display, credentials, client, interrupts: Interrupts::default() })
    }

    /// From here on a signal that ends the program leaves nothing behind.
    /// `has_mounts`: the process makes mounts, in a mount namespace of its own.
    pub(crate) fn catch_signals(&mut self, has_mounts: bool) -> anyhow::Result<()> {
        self.interrupts = Interrupts::catch(&self.root, &self.display, Some(&self.client), has_mounts)?;
        Ok(())
    }

    /// Prints a line of the result.
    pub(crate) fn print(&self, line: &str) -> anyhow::Result<()> {
        print(line)
    }

    /// Opens the store.
    pub(crate) fn store(&self) -> anyhow::Result<Store> {
        open_store(&self.root)
    }
}

/// Opens the store in a directory.
pub(crate) fn open_store(root: &Path) -> anyhow::Result<Store> {
    std::fs::create_dir_all(root).with_context(|| format!("cannot create the store {}", root.display()))?;
    Ok(Store::open(root)?)
}

/// Prints a line of the result.
pub(crate) fn print(line: &str) -> anyhow::Result<()> {
    print_bytes(format!("{line}\n").as_bytes())
}

/// Prints bytes as they are.
pub(crate) fn print_bytes(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(OutputClosed.into()),
        written => written.context("cannot write to standard output"),
    }
}

/// Where the store lies, absolute: background servers work in another directory.
pub(crate) fn root(global: &Global) -> anyhow::Result<PathBuf> {
    let root = match &global.root {
        Some(root) => root.clone(),
        None => default_root()?,
    };
    std::path::absolute(&root).with_context(|| format!("cannot find the store {}", root.display()))
}

/// Finds an image of the store by a name, a digest or the beginning of one.
pub(crate) fn lookup(store: &Store, name: &str) -> anyhow::Result<Descriptor> {
    builder::names::lookup(store, name).map_err(|error| not_here(error, name))
}

/// The same for what works with the store's own names, so that one from elsewhere would not help.
pub(crate) fn lookup_own(store: &Store, name: &str) -> anyhow::Result<Descriptor> {
    builder::names::lookup(store, name).map_err(|error| match error.cause() {
        Cause::Missing(_) => Hinted::error(error.to_string(), "`nacre images` lists what is there"),
        _ => error.into(),
    })
}

/// The same, opened; of an index, the image for this machine.
pub(crate) fn open_image(store: &Store, name: &str) -> anyhow::Result<StoredImage> {
    builder::open_image(store, name).map_err(|error| not_here(error, name))
}

/// What is missing here is no failure of a registry, and may be had from one.
fn not_here(error: Error, name: &str) -> anyhow::Error {
    match error.cause() {
        Cause::Missing(_) => {
            let way = match name.parse() {
                Ok(ImageName::Store(name)) if name.starts_with("store:") => {
                    let bare = name.trim_start_matches("store:");
                    format!("an image of the store is named without a prefix: {bare}; `nacre images` lists them")
                }
                Ok(ImageName::Store(_)) => format!("`nacre pull {name}` brings it from its registry"),
                _ => format!("`nacre copy {name} NAME` brings it into the store"),
            };
            Hinted::error(error.to_string(), way)
        }
        _ => error.into(),
    }
}

/// Docker reads both cases of proxy variables; the lower case counts first.
fn variable(name: &str) -> Option<String> {
    let read = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    read(name).or_else(|| read(&name.to_ascii_uppercase()))
}

/// A CGI program can be given the upper case by a header of a request, so that Go does not believe it there.
fn http_proxy() -> Option<String> {
    match env::var_os("REQUEST_METHOD") {
        Some(_) => env::var("http_proxy").ok().filter(|proxy| !proxy.is_empty()),
        None => variable("http_proxy"),
    }
}

fn default_root() -> anyhow::Result<PathBuf> {
    if let Some(data) = env::var_os("XDG_DATA_HOME").filter(|_| !is_root()) {
        return Ok(PathBuf::from(data).join("nacre"));
    }
    if is_root() {
        return Ok(PathBuf::from("/var/lib/nacre"));
    }
    let home = env::var_os("HOME").context("HOME is not set; name the store with --root")?;
    Ok(PathBuf::from(home).join(".local/share/nacre"))
}

/// Root of the machine, not of a user namespace that stands for an ordinary user.
fn is_root() -> bool {
    let in_user_namespace = builder::rootless::identity().is_ok_and(|identity| identity.in_user_namespace);
    rustix::process::geteuid().is_root() && !in_user_namespace
}

fn home(path: &str) -> Option<PathBuf> {
    env::var_os("HOME").map(|home| Path::new(&home).join(path))
}

/// Docker's file, which login writes.
pub(crate) fn docker_config() -> Option<PathBuf> {
    match env::var_os("DOCKER_CONFIG") {
        Some(directory) => Some(Path::new(&directory).join("config.json")),
        None => home(".docker/config.json"),
    }
}

/// The settings of containers' tools, the user's after the system's; a file of the user stands for all of the system's.
fn registries_conf() -> Vec<PathBuf> {
    if let Some(file) = env::var_os("CONTAINERS_REGISTRIES_CONF") {
        return vec![file.into()];
    }
    let system = ["/etc/containers/registries.conf", "/etc/containers/registries.conf.d"].map(PathBuf::from);
    let own = home(".config/containers/registries.conf");
    let has_own = own.as_ref().is_some_and(|file| file.exists());
    let first = if has_own { own.into_iter().collect() } else { system.to_vec() };
    first.into_iter().chain(home(".config/containers/registries.conf.d")).collect()
}

/// Where GPG signatures lie, as containers' tools have it.
fn signature_stores() -> SignatureStores {
    let own = home(".config/containers/registries.d").filter(|directory| directory.exists());
    let usual =
        if is_root() { Some("/var/lib/containers/sigstore".into()) } else { home(".local/share/containers/sigstore") };
    SignatureStores { settings: own.or(Some("/etc/containers/registries.d".into())), usual }
}

/// Certificates and hosts by registry, as containers' tools, docker and containerd keep them; the user's first.
fn certs_directories() -> Vec<PathBuf> {
    let own = [home(".config/containers/certs.d"), home(".config/docker/certs.d")];
    let system = ["/etc/containers/certs.d", "/etc/docker/certs.d", "/etc/containerd/certs.d"].map(PathBuf::from);
    own.into_iter().flatten().chain(system).collect()
}

/// The variable of that name, which is the default of --source-date-epoch.
pub(crate) fn epoch() -> Option<String> {
    env::var("SOURCE_DATE_EPOCH").ok()
}

/// The file that says which images are let in, where podman and skopeo have it; `None` if there is none. One that
/// cannot be looked at is none that is not there: it may keep out what would come in without it.
pub(crate) fn signature_policy() -> anyhow::Result<Option<PathBuf>> {
    let files = [home(".config/containers/policy.json"), Some("/etc/containers/policy.json".into())];
    for file in files.into_iter().flatten() {
        match file.symlink_metadata() {
            Ok(_) => return Ok(Some(file)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot look for the signature policy {}", file.display()));
            }
        }
    }
    Ok(None)
}

/// The password of a key from the environment: ours, else cosign's. It may be empty.
pub(crate) fn key_password() -> anyhow::Result<Option<Secret>> {
    for name in ["NACRE_KEY_PASSWORD", "COSIGN_PASSWORD"] {
        match env::var(name) {
            Ok(password) => return Ok(Some(Secret::new(password))),
            Err(env::VarError::NotPresent) => {}
            // Without what it holds, which the error has.
            Err(env::VarError::NotUnicode(_)) => anyhow::bail!("the password in ${name} is not UTF-8"),
        }
    }
    Ok(None)
}

/// What fetching contexts may use.
pub(crate) fn fetch_access() -> FetchAccess {
    let names = ["http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"];
    FetchAccess {
        search_path: env::var_os("PATH").unwrap_or_default(),
        proxies: names.iter().filter_map(|name| Some(((*name).to_owned(), env::var_os(name)?))).collect(),
        keep_git_dir: false,
    }
}

/// Where programs lie.
pub(crate) fn path() -> Vec<PathBuf> {
    env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default()
}

/// The files that hold credentials, the first to be asked first. One that is named stands for all, as in podman.
fn credential_files() -> Vec<PathBuf> {
    if let Some(own) = env::var_os("REGISTRY_AUTH_FILE") {
        return vec![own.into()];
    }
    let settings = env::var_os("XDG_CONFIG_HOME").filter(|directory| !directory.is_empty()).map(PathBuf::from);
    let kept = settings.or_else(|| home(".config")).map(|directory| directory.join("containers/auth.json"));
    [docker_config(), runtime_auth_file(), kept].into_iter().flatten().collect()
}

/// Where `podman login` keeps credentials until the machine stops (containers-auth.json(5)).
fn runtime_auth_file() -> Option<PathBuf> {
    let directory = env::var_os("XDG_RUNTIME_DIR").filter(|directory| !directory.is_empty()).map(PathBuf::from);
    let uid = builder::rootless::identity().ok()?.uid;
    Some(directory.unwrap_or_else(|| format!("/run/containers/{uid}").into()).join("containers/auth.json"))
}

/// The file that login and logout change.
pub(crate) fn login_file() -> anyhow::Result<PathBuf> {
    let own = env::var_os("REGISTRY_AUTH_FILE").map(PathBuf::from);
    own.or_else(docker_config).context("HOME is not set; name the file with REGISTRY_AUTH_FILE")
}
