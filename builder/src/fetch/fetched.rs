//! Files from elsewhere as a tree: a git repository, an archive, a file of the web.
//!
//! Invariant: what was fetched lies in the store as a layer, so that it is read, kept and collected as every other
//! layer; a commit that was fetched once is not fetched again. Nothing depends on when it was fetched. Each source is
//! asked once in a build, so that all steps see the same. The file of an ADD is a blob.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use layerfs::{DiffId, Digest, Digester, FileKind, Store, Time, Tree, TreeInode};
use oci_spec::image::{Descriptor, MediaType};
use registry_client::Client;

use super::git::{self, Git, GitAccess, GitReference, Resolved};
use crate::cache;
use crate::changeset::unpack;
use crate::changeset::{ChangeSet, Content, Node, Owner};
use crate::commit::commit_changeset;
use crate::context::{ContextError, ContextTree, Directory, Patterns};
use crate::error::BuildError;
use crate::fields::truth;
use crate::flights::Flights;
use crate::materials::{Material, Materials};
use crate::paths::{clean, join};
use crate::schedule::Schedule;
use crate::secret::Secret;

/// A larger file of the web is refused: registries take no layer beyond this (GitHub's 10 GB, Amazon's 52 GB).
pub(crate) const MOST_FETCHED_BYTES: u64 = 10 << 30;

/// A larger file in a context is no Dockerfile.
pub const MOST_TEXT_BYTES: u64 = 64 << 20;

/// The name of a single file that is a context, as BuildKit has it.
const SINGLE_FILE: &str = "context";

/// Where files come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemotePlace {
    /// A git repository.
    Git(GitReference),
    /// An archive, or else a single file, at a web server.
    Web(String),
    /// An archive, or else a single file, on this machine.
    File(PathBuf),
}

impl FetchAccess {
    /// With what the build argument `BUILDKIT_CONTEXT_KEEP_GIT_DIR` says; as in BuildKit, what is no truth value says
    /// nothing.
    #[must_use]
    pub fn keeping_git_dir(self, argument: Option<&str>) -> Self {
        Self { keep_git_dir: argument.and_then(truth).unwrap_or(false), ..self }
    }
}

impl RemotePlace {
    /// What a text names by its form; `None` for a path of this machine.
    ///
    /// # Errors
    /// A git URL that makes no sense.
    pub fn parse(text: &str) -> Result<Option<Self>, git::GitUrlError> {
        let is_web = |scheme: &str| text.get(..scheme.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(scheme));
        Ok(match GitReference::parse(text)? {
            Some(reference) => Some(Self::Git(reference)),
            None if is_web("http://") || is_web("https://") => Some(Self::Web(text.to_owned())),
            None => None,
        })
    }
}

/// What fetching may use of the caller's.
#[derive(Clone, Default)]
pub struct FetchAccess {
    /// Where programs are looked for, as in `PATH`; the usual places if it is empty.
    pub search_path: OsString,
    /// Proxy variables for git.
    pub proxies: Vec<(String, OsString)>,
    /// Keep `.git` of a git context.
    pub keep_git_dir: bool,
}

/// Fetches, each source once.
pub struct Fetcher<'a> {
    store: &'a Store,
    client: &'a Client,
    access: &'a FetchAccess,
    secrets: &'a BTreeMap<String, Secret>,
    agents: &'a BTreeMap<String, PathBuf>,
    known: Flights<String, Fetched>,
    blobs: Flights<String, FetchedBlob>,
    /// The build that it is for; what serves none goes on to its end.
    schedule: Option<&'a Schedule>,
    /// Where that notes what it took.
    materials: Option<&'a Materials>,
}

/// Files that were fetched.
#[derive(Clone)]
pub struct Fetched {
    /// The files.
    pub(crate) tree: Arc<dyn Tree>,
    /// What they depend on, where that is shorter than their content; empty where it is not.
    pub(crate) key_words: String,
    /// The time of the commit, of the file at its server, or of the newest file in the archive.
    pub time_seconds: Option<i64>,
    /// Whether it is one file that is no archive: a Dockerfile, for a main context.
    pub is_single_file: bool,
    /// What it is to who asks later of what an image was made; `None` for files of this machine.
    pub(crate) material: Option<Material>,
}

impl Fetched {
    /// The bytes of a file, links followed inside the root; `None` if it is not there.
    ///
    /// # Errors
    /// What reading gives; a file that is too large for a text.
    pub fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        let changes = ChangeSet::new(Arc::clone(&self.tree));
        changes.read_file(&changes.resolve(&clean(path.as_bytes()))?, MOST_TEXT_BYTES)
    }

    /// The bytes of the single file that it is.
    ///
    /// # Errors
    /// What reading gives.
    pub fn read_single(&self) -> io::Result<Option<Vec<u8>>> {
        self.read(SINGLE_FILE)
    }
}

/// A file of the web, in the store's temporary directory without a name.
struct Download {
    file: File,
    size_bytes: u64,
    modified_seconds: Option<i64>,
}

/// A file of the web, in the store.
#[derive(Debug, Clone)]
pub(crate) struct FetchedBlob {
    pub(crate) digest: Digest,
    pub(crate) modified_seconds: Option<i64>,
}

/// A URL without its query, which may hold a signature.
pub(crate) fn shown(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or_default()
}

/// A file of the web, without what its URL holds of secrets.
fn of_web(url: &str, digest: &Digest) -> Material {
    Material::new(git::redacted(shown(url)), digest.algorithm().as_ref(), digest.digest())
}

impl<'a> Fetcher<'a> {
    /// Fetches into a store.
    pub fn new(
        store: &'a Store,
        client: &'a Client,
        access: &'a FetchAccess,
        secrets: &'a BTreeMap<String, Secret>,
        agents: &'a BTreeMap<String, PathBuf>,
    ) -> Self {
        let (known, blobs) = (Flights::new(), Flights::new());
        Self { store, client, access, secrets, agents, known, blobs, schedule: None, materials: None }
    }

    /// The same for a build, whose failure ends what is on its way.
    pub(crate) fn stopped_by(self, schedule: &'a Schedule) -> Self {
        Self { schedule: Some(schedule), ..self }
    }

    /// The same where it is noted what was fetched.
    pub(crate) fn noting(self, materials: &'a Materials) -> Self {
        Self { materials: Some(materials), ..self }
    }

    /// Notes what a build took.
    pub(crate) fn note(&self, material: Material) -> Material {
        self.materials.inspect(|materials| materials.note(material.clone()));
        material
    }

    /// The files of a place.
    ///
    /// # Errors
    /// If they cannot be had, or a program that is needed is missing.
    pub fn open(&self, place: &RemotePlace) -> Result<Fetched, BuildError> {
        match place {
            RemotePlace::Git(reference) => {
                let keeps_git_dir = reference.keep_git_dir.unwrap_or(false) || self.access.keep_git_dir;
                self.repository(reference, keeps_git_dir)
            }
            RemotePlace::Web(url) => self.known.once(&format!("web {url}"), || {
                let mut download = self.download(url)?;
                let shown = shown(url);
                let material = self.note(of_web(url, &self.digest(&mut download.file)?));
                let fetched = self.file(download.file, download.modified_seconds, shown)?;
                Ok(Fetched { material: Some(material), ..fetched })
            }),
            RemotePlace::File(path) => {
                let shown = path.display().to_string();
                self.known.once(&format!("file {shown}"), || {
                    let file = File::open(path).map_err(BuildError::file("open", path))?;
                    self.file(file, None, &shown)
                })
            }
        }
    }

    /// The files of standard input, or of any other file without a name.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn open_file(&self, file: File, shown: &str) -> Result<Fetched, BuildError> {
        self.file(file, None, shown)
    }

    /// No files at all.
    ///
    /// # Errors
    /// If the store fails.
    pub fn nothing(&self) -> Result<Fetched, BuildError> {
        let tree = self.store.tree(&[])?;
        Ok(Fetched { tree, key_words: String::new(), time_seconds: None, is_single_file: false, material: None })
    }

    /// The files of a commit.
    pub(crate) fn repository(&self, reference: &GitReference, keeps_git_dir: bool) -> Result<Fetched, BuildError> {
        // As in BuildKit, a part of a repository is no repository.
        let keeps_git_dir = keeps_git_dir && reference.directory.is_empty();
        self.known.once(&format!("git {reference:?} {keeps_git_dir}"), || {
            let access = self.git_access(reference)?;
            let temporary = self.store.temporary();
            let place = tempfile::Builder::new().prefix("git-").tempdir_in(temporary);
            let place = place.map_err(BuildError::file("make a directory in", temporary))?;
            let git = Git::new(&access, reference.shown(), place.path(), self.schedule);
            let resolved = git::resolve(&git, reference, keeps_git_dir)?;
            let words = key_words(reference, &resolved, keeps_git_dir);
            let layer = self.kept_layer(&words, || self.check_out(&git, reference, &resolved, keeps_git_dir))?;
            let tree: Arc<dyn Tree> = self.store.tree(&[layer])?;
            let time = commit_time(&tree).map_err(BuildError::file("read the checkout in", temporary))?;
            let at = resolved.full_ref.as_ref().map(|full_ref| format!("#{full_ref}")).unwrap_or_default();
            let material = Some(self.note(Material::commit(format!("{}{at}", reference.shown()), &resolved.id)));
            Ok(Fetched { tree, key_words: words, time_seconds: time, is_single_file: false, material })
        })
    }

    fn check_out(
        &self,
        git: &Git<'_>,
        reference: &GitReference,
        resolved: &Resolved,
        keeps_git_dir: bool,
    ) -> Result<DiffId, BuildError> {
        let temporary = self.store.temporary();
        let place = tempfile::Builder::new().prefix("tree-").tempdir_in(temporary);
        let place = place.map_err(BuildError::file("make a directory in", temporary))?;
        let top = place.path().join("tree");
        let time = git::check_out(git, reference, resolved, &top)?;
        if keeps_git_dir {
            git::make_repeatable(git, &top)?;
        }
        let mut root = top.clone();
        for name in reference.directory.split('/').filter(|name| !name.is_empty()) {
            root.push(name);
            let is_directory = std::fs::symlink_metadata(&root).is_ok_and(|found| found.is_dir());
            if !is_directory || name == ".git" {
                return Err(git.wrong(format!("{:?} is no directory of the repository", reference.directory)).into());
            }
        }
        let failed = |error: ContextError| BuildError::Request(format!("{}: cannot {error}", git.repository));
        let directory = Directory::open(&root, Patterns::default()).map_err(failed)?;
        let tree: Arc<dyn Tree> = Arc::new(ContextTree::new(directory, Vec::new(), 1).map_err(failed)?);
        let modified = (!reference.checkout_times).then_some(Time { seconds: time, nanoseconds: 0 });
        let mut changes = ChangeSet::new(self.store.tree(&[])?);
        take_directory(&mut changes, &tree, (TreeInode::ROOT, b""), modified, keeps_git_dir)
            .map_err(BuildError::file("read", &root))?;
        Ok(commit_changeset(self.store, &changes, None)?)
    }

    /// A file of the web as it is, whatever it holds.
    pub(crate) fn blob(&self, url: &str) -> Result<FetchedBlob, BuildError> {
        self.blobs.once(&url.to_owned(), || {
            let mut download = self.download(url)?;
            let digest = self.digest(&mut download.file)?;
            self.note(of_web(url, &digest));
            let media_type = MediaType::Other("application/octet-stream".to_owned());
            let descriptor = Descriptor::new(media_type, download.size_bytes, digest.clone());
            self.store.put_blob(download.file, &descriptor)?;
            Ok(FetchedBlob { digest, modified_seconds: download.modified_seconds })
        })
    }

    /// Of a file that is then at its begin again.
    fn digest(&self, file: &mut File) -> Result<Digest, BuildError> {
        digest_of_file(file).map_err(BuildError::file("read a file in", self.store.temporary()))
    }

    fn download(&self, url: &str) -> Result<Download, BuildError> {
        let temporary = self.store.temporary();
        let file = tempfile::tempfile_in(temporary).map_err(BuildError::file("create a file in", temporary))?;
        let mut file = self.schedule.map(Schedule::stop).unwrap_or_default().ends(file);
        let authorization = self.web_authorization(url);
        let fetched = self
            .client
            .fetch(url, authorization.as_ref(), MOST_FETCHED_BYTES, &mut file)
            .map_err(|source| BuildError::Image { at: None, source })?;
        let mut file = file.into_inner();
        file.seek(SeekFrom::Start(0)).map_err(BuildError::file("read a file in", temporary))?;
        Ok(Download { file, size_bytes: fetched.size_bytes, modified_seconds: fetched.modified_seconds })
    }

    /// What the secrets say for a host: `HTTP_AUTH_HEADER_<host>` whole, `HTTP_AUTH_TOKEN_<host>` as a bearer's.
    fn web_authorization(&self, url: &str) -> Option<registry_client::Secret> {
        let host = host(url)?;
        let secret = |kind: &str| {
            let bytes = &self.secrets.get(&format!("HTTP_AUTH_{kind}_{host}"))?.0;
            Some(String::from_utf8_lossy(bytes.trim_ascii_end()).into_owned())
        };
        let value = secret("HEADER").or_else(|| secret("TOKEN").map(|token| format!("Bearer {token}")));
        value.map(registry_client::Secret::new)
    }

    fn git_access(&self, reference: &GitReference) -> Result<GitAccess, BuildError> {
        let address = reference.address();
        let is_web = address.starts_with("http://") || address.starts_with("https://");
        let is_ssh = !is_web && !address.starts_with("git://");
        let agent = self.agents.get("default").cloned();
        if is_ssh && agent.is_none() {
            let message = format!("{}: git over ssh needs an agent: --ssh default", reference.shown());
            return Err(BuildError::Request(message));
        }
        let known = self.store.root().join("known");
        if is_ssh {
            std::fs::create_dir_all(&known).map_err(BuildError::file("create", &known))?;
        }
        Ok(GitAccess {
            known_hosts: known.join("ssh-hosts"),
            search_path: self.access.search_path.clone(),
            proxies: self.access.proxies.clone(),
            agent: agent.filter(|_| is_ssh),
            authorization: self.git_authorization(&address).filter(|_| is_web),
        })
    }

    /// The secrets that BuildKit documents, those for one host before those for all.
    fn git_authorization(&self, address: &str) -> Option<(String, Secret)> {
        let of_host = host(address).map(|host| format!(".{host}")).unwrap_or_default();
        let names = [("HEADER", of_host.as_str()), ("TOKEN", &of_host), ("HEADER", ""), ("TOKEN", "")];
        let found = names
            .iter()
            .find_map(|(kind, suffix)| Some((*kind, &self.secrets.get(&format!("GIT_AUTH_{kind}{suffix}"))?.0)));
        let (kind, bytes) = found?;
        let value = bytes.trim_ascii_end();
        let header = match kind {
            "TOKEN" => format!("basic {}", BASE64.encode([b"x-access-token:", value].concat())).into_bytes(),
            _ => value.to_vec(),
        };
        // One token for all of GitHub, as its own checkout action has it: submodules mostly lie there, too.
        let github = ["https://github.com/", "https://www.github.com/"];
        let scope = github.into_iter().find(|begin| address.starts_with(begin)).unwrap_or(address);
        Some((scope.to_owned(), Secret(header.into())))
    }

    /// An archive's files, or the file itself.
    fn file(&self, file: File, time_seconds: Option<i64>, shown: &str) -> Result<Fetched, BuildError> {
        let failed = |source| BuildError::File { action: "read", path: shown.into(), source };
        let size_bytes = file.metadata().map_err(failed)?.len();
        let content = Content::Range(Arc::new(file), 0, size_bytes);
        let mut changes = ChangeSet::new(self.store.tree(&[])?);
        let newest = unpack::unpack_whole(&mut changes, &content, self.store.temporary()).map_err(failed)?;
        if newest.is_none() {
            let modified = Time { seconds: time_seconds.unwrap_or(0), nanoseconds: 0 };
            let mut node = Node::file(Arc::from([]), 0o600, Owner::default(), modified);
            (node.attributes.size_bytes, node.attributes.data_bytes) = (size_bytes, size_bytes);
            node.content = Some(content);
            changes.put(SINGLE_FILE.as_bytes(), node).map_err(failed)?;
        }
        let layer = commit_changeset(self.store, &changes, None)?;
        Ok(Fetched {
            tree: self.store.tree(&[layer])?,
            key_words: String::new(),
            time_seconds: time_seconds.or(newest.flatten()),
            is_single_file: newest.is_none(),
            material: None,
        })
    }

    /// The layer that was made for a key before, or is made now.
    fn kept_layer(&self, words: &str, make: impl FnOnce() -> Result<DiffId, BuildError>) -> Result<DiffId, BuildError> {
        let key = layerfs::digest_of(format!("fetched {words}").as_bytes()).digest().to_owned();
        if let Some(layer) = cache::find(self.store, &key)? {
            return Ok(layer);
        }
        let layer = make()?;
        cache::record(self.store, &key, layer)?;
        Ok(layer)
    }
}

fn digest_of_file(file: &mut File) -> io::Result<Digest> {
    let mut digester = Digester::new();
    let mut buffer = vec![0; 1 << 17];
    file.seek(SeekFrom::Start(0))?;
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => digester.update(&buffer[..count]),
        }
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(digester.digest())
}

/// All that the files of a checkout depend on. The remote is part of it: submodules may be named relative to it; a
/// password in it is not.
fn key_words(reference: &GitReference, resolved: &Resolved, keeps_git_dir: bool) -> String {
    let name = resolved.full_ref.as_deref().filter(|_| keeps_git_dir).unwrap_or_default();
    let GitReference { directory, skip_submodules, checkout_times, .. } = reference;
    let (remote, id) = (reference.shown(), &resolved.id);
    // The only field that may hold the end of a line is the last one.
    format!("{remote}\n{id}\n{name}\n{skip_submodules} {keeps_git_dir} {checkout_times}\n{directory}")
}

/// Puts what a directory of a checkout holds, with the modes and owners that git knows of, and without git's own files
/// unless they are wanted.
fn take_directory(
    changes: &mut ChangeSet,
    tree: &Arc<dyn Tree>,
    (directory, path): (TreeInode, &[u8]),
    modified: Option<Time>,
    keeps_git_dir: bool,
) -> io::Result<()> {
    for entry in tree.entries(directory, 0, usize::MAX)? {
        if !keeps_git_dir && entry.name == b".git" {
            continue;
        }
        let path = join(path, &entry.name);
        let mut node = Node::of_tree(tree, entry.inode)?;
        let attributes = &mut node.attributes;
        attributes.mode = match attributes.kind {
            FileKind::Symlink => 0o777,
            FileKind::Directory => 0o755,
            _ if attributes.mode & 0o100 != 0 => 0o755,
            _ => 0o644,
        };
        attributes.modified = modified.unwrap_or(attributes.modified);
        node.xattrs.clear();
        changes.put(&path, node)?;
        if entry.kind == FileKind::Directory {
            take_directory(changes, tree, (entry.inode, &path), modified, keeps_git_dir)?;
        }
    }
    Ok(())
}

/// The time of a commit is that of all files in its checkout; a checkout of nothing has none.
fn commit_time(tree: &Arc<dyn Tree>) -> io::Result<Option<i64>> {
    let first = tree.entries(TreeInode::ROOT, 0, 1)?.first().map(|entry| tree.attributes(entry.inode)).transpose()?;
    Ok(first.map(|attributes| attributes.modified.seconds))
}

/// The host of a URL, with its port.
fn host(url: &str) -> Option<&str> {
    let authority = url.split_once("://")?.1.split(['/', '?', '#']).next()?;
    Some(authority.rsplit_once('@').map_or(authority, |(_, host)| host))
}

/// Whether a file is an archive that a context can be.
#[must_use]
pub fn is_archive(file: &File) -> bool {
    let content = || Ok::<_, io::Error>(Content::Range(Arc::new(file.try_clone()?), 0, file.metadata()?.len()));
    content().is_ok_and(|content| unpack::is_archive(&content))
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use registry_client::ClientOptions;

    use super::*;

    #[test]
    fn a_source_is_asked_once_however_many_ask_at_the_same_time() {
        const ASKING: usize = 8;
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(&directory.path().join("store")).expect("a store");
        let client = Client::new(ClientOptions::default());
        let (access, secrets, agents) = (FetchAccess::default(), BTreeMap::new(), BTreeMap::new());
        let fetcher = Fetcher::new(&store, &client, &access, &secrets, &agents);
        let path = directory.path().join("file");
        std::fs::write(&path, "content").expect("written");
        let (place, barrier) = (RemotePlace::File(path), Barrier::new(ASKING));
        let ask = || {
            barrier.wait();
            fetcher.open(&place).expect("fetched").tree
        };
        let trees: Vec<_> = std::thread::scope(|scope| {
            let asking: Vec<_> = (0..ASKING).map(|_| scope.spawn(ask)).collect();
            asking.into_iter().map(|one| one.join().expect("no panic")).collect()
        });
        assert!(trees.iter().all(|tree| Arc::ptr_eq(tree, &trees[0])));
    }

    #[test]
    fn a_password_is_no_part_of_what_a_checkout_depends_on() {
        let words = |url: &str| {
            let reference = GitReference::parse(url).expect("valid").expect("a repository");
            let resolved = Resolved { id: "0".repeat(40), full_ref: None };
            key_words(&reference, &resolved, false)
        };
        assert_eq!(words("https://u:one@h/a.git"), words("https://u:two@h/a.git"));
        assert!(!words("https://token@h/a.git").contains("token"));
    }
}
