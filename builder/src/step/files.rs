//! COPY, ADD and WORKDIR: words to selected sources, sources to a change set, a change set to a layer.

use std::sync::Arc;

use layerfs::{FileKind, Time};

use super::content::{self, ContentRules};
use super::copy::{Copier, CopyError, CopyOptions};
use super::remote::{self, Remote, SourceKind};
use super::select::{Selected, Source};
use super::unpack;
use crate::accounts::Accounts;
use crate::build::{Builder, Identity, Input};
use crate::cache::Work;
use crate::changeset::{ChangeSet, Content, Node, Owner, clean, join};
use crate::commit::commit_changeset;
use crate::context::Patterns;
use crate::dockerfile::{Add, Copy, FileSource, Files, Heredoc, ModeChange, Word};
use crate::error::{BuildError, Site};
use crate::stage::StageState;

/// passwd and group files of images are small; what is larger is no such file.
const MOST_ACCOUNT_BYTES: u64 = 16 << 20;

/// COPY.
pub(crate) fn copy(
    builder: &Builder<'_>,
    stage: &mut StageState,
    copy: &Copy,
    text: &str,
    site: &Site,
) -> Result<(), BuildError> {
    let input = match &copy.from {
        Some(from) => builder.input(&from.text, &site.at(from.span))?,
        None => builder.context()?,
    };
    let job = Job::new(builder, stage, &copy.files, input, None, site)?;
    Job { parents: copy.parents, ..job }.carry_out(builder, stage, text, site)
}

/// ADD.
pub(crate) fn add(
    builder: &Builder<'_>,
    stage: &mut StageState,
    add: &Add,
    text: &str,
    site: &Site,
) -> Result<(), BuildError> {
    let kinds = source_kinds(builder, stage, add, site)?;
    let checksum = match &add.checksum {
        None => None,
        Some(word) => {
            let site = site.at(word.span);
            match kinds.as_slice() {
                [SourceKind::Web] => Some(remote::checksum(&builder.evaluation.expand(stage, word, &site)?, &site)?),
                [_] => return Err(site.error("checksum can't be specified for local sources").into()),
                _ => return Err(site.error("checksum can't be specified for multiple sources").into()),
            }
        }
    };
    let epoch = stage.epoch;
    let fetch = |url: &str, at: &Site| Remote::fetch(builder, url, checksum.as_ref(), epoch, at);
    let job = Job::new(builder, stage, &add.files, builder.context()?, Some(&fetch), site)?;
    let unpacks = Unpacks { local: add.unpack.unwrap_or(true), remote: add.unpack.unwrap_or(false) };
    Job { unpacks, ..job }.carry_out(builder, stage, text, site)
}

/// What the sources of an ADD are; those that are not supported are refused.
fn source_kinds(
    builder: &Builder<'_>,
    stage: &StageState,
    add: &Add,
    site: &Site,
) -> Result<Vec<SourceKind>, BuildError> {
    if add.keep_git_dir {
        return Err(site.error("--keep-git-dir is for git sources, which are not supported yet").into());
    }
    let mut kinds = Vec::new();
    for source in &add.files.sources {
        let FileSource::Path(word) = source else {
            kinds.push(SourceKind::Local);
            continue;
        };
        let source = builder.evaluation.expand(stage, word, site)?;
        let kind = SourceKind::of(&source);
        if kind == SourceKind::Git {
            let message = format!("ADD of a git repository is not supported yet: {}", remote::shown(&source));
            return Err(site.at(word.span).error(message).into());
        }
        kinds.push(kind);
    }
    Ok(kinds)
}

/// WORKDIR: a directory that belongs to the stage's user, and a layer even where it was there already.
pub(crate) fn workdir(
    builder: &Builder<'_>,
    stage: &mut StageState,
    word: &Word,
    text: &str,
    site: &Site,
) -> Result<(), BuildError> {
    let given = builder.evaluation.expand(stage, word, site)?;
    let directory = from_root(stage, given.as_bytes());
    let path = clean(&directory);
    let shown = String::from_utf8_lossy(&path).into_owned();
    stage.config.config.working_dir = format!("/{shown}");
    if path.is_empty() {
        stage.add_empty_history(text);
        return Ok(());
    }
    let mut changes = ChangeSet::new(builder.tree(stage)?);
    let accounts = accounts(&changes).map_err(site.because())?;
    // A user that is not known yet owns nothing: BuildKit falls back to root, too.
    let owner = accounts.identity(&stage.config.config.user).map(|identity| identity.owner).unwrap_or_default();
    let options = vec!["workdir".to_owned(), shown, format!("{}:{}", owner.uid, owner.gid)];
    builder.cached(stage, text, text, Work::Files { inputs: Vec::new(), options }, |stage, _| {
        let made = Node::directory(0o755, owner, made_time(stage));
        let resolved = changes.resolve(&path).map_err(site.because())?;
        changes.make_directories(&resolved, &made).map_err(site.because())?;
        Ok(commit_changeset(builder.store, &changes, builder.commit_options(stage))?)
    })
}

/// What a COPY or ADD comes to once everything is expanded and found.
struct Job {
    input: Input,
    source: Source,
    items: Vec<Item>,
    destination: Vec<u8>,
    is_link: bool,
    parents: bool,
    /// Which archives are unpacked: those of ADD only.
    unpacks: Unpacks,
    options: CopyOptions,
    excludes: Vec<String>,
}

/// Which archives are unpacked.
#[derive(Debug, Clone, Copy)]
struct Unpacks {
    local: bool,
    remote: bool,
}

/// One source.
enum Item {
    Files(Vec<Selected>),
    Inline { name: String, bytes: Arc<[u8]> },
    Remote(Box<Remote>),
}

/// Fetches what a URL leads to.
type Fetch<'a> = &'a dyn Fn(&str, &Site) -> Result<Remote, BuildError>;

impl Job {
    fn new(
        builder: &Builder<'_>,
        stage: &StageState,
        files: &Files,
        input: Input,
        fetch: Option<Fetch<'_>>,
        site: &Site,
    ) -> Result<Self, BuildError> {
        let expand = |word: &Word| builder.evaluation.expand(stage, word, site);
        let source = Source::new(Arc::clone(&input.tree));
        let items = files
            .sources
            .iter()
            .map(|item| match item {
                FileSource::Path(word) => {
                    let (text, site) = (expand(word)?, site.at(word.span));
                    match fetch.filter(|_| SourceKind::of(&text) == SourceKind::Web) {
                        Some(fetch) => Ok(Item::Remote(Box::new(fetch(&text, &site)?))),
                        None => select(&source, &input, &text, &site),
                    }
                }
                FileSource::Heredoc(heredoc) => inline(builder, stage, heredoc, site),
            })
            .collect::<Result<_, _>>()?;
        let mode = match &files.chmod {
            None => None,
            Some(word) => Some(mode(&expand(word)?, &site.at(word.span))?),
        };
        let owner = match &files.chown {
            None => None,
            Some(word) => Some(owner(builder, stage, &expand(word)?, files.link).map_err(|error| match error {
                BuildError::Request(message) => site.at(word.span).error(message).into(),
                other => other,
            })?),
        };
        let excludes = files.excludes.iter().map(expand).collect::<Result<Vec<_>, _>>()?;
        let is_context = input.identity == Identity::Content;
        let epoch = stage.epoch.map(|seconds| Time { seconds, nanoseconds: 0 });
        let options = CopyOptions {
            owner,
            mode,
            exclude: patterns(&excludes).map_err(site.because())?,
            modified: epoch.filter(|_| is_context),
            made: made_time(stage),
            default_owner: is_context.then(Owner::default),
        };
        let destination = from_root(stage, expand(&files.destination)?.as_bytes());
        Ok(Self {
            input,
            source,
            items,
            destination,
            is_link: files.link,
            parents: false,
            unpacks: Unpacks { local: false, remote: false },
            options,
            excludes,
        })
    }

    fn carry_out(
        self,
        builder: &Builder<'_>,
        stage: &mut StageState,
        text: &str,
        site: &Site,
    ) -> Result<(), BuildError> {
        let inputs = self.inputs(builder).map_err(site.because())?;
        let work = Work::Files { inputs, options: self.option_words() };
        builder.cached(stage, text, text, work, |stage, _| {
            let below = if self.is_link { builder.empty_tree()? } else { builder.tree(stage)? };
            let mut changes = ChangeSet::new(below);
            self.put(&mut changes, site)?;
            Ok(commit_changeset(builder.store, &changes, builder.commit_options(stage))?)
        })
    }

    /// Everything of the sources that makes a difference for the layer.
    fn inputs(&self, builder: &Builder<'_>) -> std::io::Result<Vec<String>> {
        let rules = ContentRules { keeps_times: self.options.modified.is_none(), threads: builder.request().threads };
        let mut inputs = Vec::new();
        for item in &self.items {
            match item {
                Item::Inline { name, bytes } => inputs.push(format!("inline {name} {}", layerfs::digest_of(bytes))),
                Item::Remote(remote) => inputs.push(remote.key_word()),
                Item::Files(selected) => {
                    for one in selected {
                        let path = one.path.escape_ascii();
                        inputs.push(match &self.input.identity {
                            Identity::Chain(chain) => format!("{chain} {path} {}", one.pivot),
                            Identity::Content => {
                                let digest = content::digest(&self.input.tree, one.inode, rules)?;
                                format!("{digest} {path} {}", one.pivot)
                            }
                        });
                    }
                }
            }
        }
        Ok(inputs)
    }

    fn option_words(&self) -> Vec<String> {
        let mut words = vec![
            format!("to {}", self.destination.escape_ascii()),
            format!("owner {:?}", self.options.owner),
            format!("mode {:?}", self.options.mode),
            format!("link {} parents {} unpack {:?}", self.is_link, self.parents, self.unpacks),
        ];
        words.extend(self.excludes.iter().map(|pattern| format!("exclude {pattern}")));
        words
    }

    fn put(&self, changes: &mut ChangeSet, site: &Site) -> Result<(), BuildError> {
        for item in &self.items {
            match item {
                Item::Inline { name, bytes } => {
                    let owner = self.options.owner.unwrap_or_default();
                    let node = Node::file(Arc::clone(bytes), 0o644, owner, self.options.made);
                    self.copier(changes).copy_file(name, node, &self.destination).map_err(site.because())?;
                }
                Item::Remote(remote) => self.put_remote(changes, remote).map_err(site.because())?,
                Item::Files(selected) => {
                    for one in selected {
                        self.put_one(changes, one).map_err(site.because())?;
                    }
                }
            }
        }
        Ok(())
    }

    fn put_one(&self, changes: &mut ChangeSet, selected: &Selected) -> Result<(), CopyError> {
        let tree = self.source.tree();
        let read = |cause| CopyError::Read { path: String::from_utf8_lossy(&selected.path).into_owned(), cause };
        if self.unpacks.local && tree.attributes(selected.inode).map_err(read)?.kind == FileKind::File {
            let content = Content::Tree(Arc::clone(tree), selected.inode);
            if self.unpack(changes, (&content, &selected.path))? {
                return Ok(());
            }
        }
        if self.parents {
            self.copier(changes).copy_with_parents(selected, &self.destination)
        } else {
            self.copier(changes).copy(selected, &self.destination)
        }
    }

    fn put_remote(&self, changes: &mut ChangeSet, remote: &Remote) -> Result<(), CopyError> {
        if self.unpacks.remote && self.unpack(changes, (remote.content(), remote.name.as_bytes()))? {
            return Ok(());
        }
        let node = remote.node(self.options.owner.unwrap_or_default());
        self.copier(changes).copy_file(&remote.name, node, &self.destination)
    }

    fn unpack(&self, changes: &mut ChangeSet, archive: (&Content, &[u8])) -> Result<bool, CopyError> {
        unpack::unpack(changes, &self.source, archive, &self.destination, &self.options)
    }

    fn copier<'a>(&'a self, changes: &'a mut ChangeSet) -> Copier<'a> {
        Copier::new(changes, &self.options, &self.source)
    }
}

fn select(source: &Source, input: &Input, pattern: &str, site: &Site) -> Result<Item, BuildError> {
    match source.select(pattern.as_bytes()).map_err(site.because())? {
        Some(selected) => Ok(Item::Files(selected)),
        None => {
            let path = String::from_utf8_lossy(&clean(pattern.as_bytes())).into_owned();
            Err(site.error(format!("\"/{path}\" not found in {}", input.label)).into())
        }
    }
}

fn patterns(excludes: &[String]) -> Result<Option<Patterns>, crate::context::BadPattern> {
    (!excludes.is_empty()).then(|| Patterns::new(excludes.iter().map(String::as_str))).transpose()
}

fn inline(builder: &Builder<'_>, stage: &StageState, heredoc: &Heredoc, site: &Site) -> Result<Item, BuildError> {
    let mut text = heredoc.text();
    if heredoc.expands {
        let lookup = |name: &str| stage.variable(name);
        let expander = crate::dockerfile::Expander::new(builder.evaluation.escape, &lookup);
        text = expander.expand_heredoc(&text).map_err(site.at(heredoc.span).because())?;
    }
    Ok(Item::Inline { name: heredoc.delimiter.clone(), bytes: text.into_bytes().into() })
}

fn mode(text: &str, site: &Site) -> Result<ModeChange, BuildError> {
    let wrong = || site.error(format!("invalid chmod parameter: '{text}' is neither an octal nor a symbolic mode"));
    ModeChange::parse(text).ok_or_else(|| wrong().into())
}

fn owner(builder: &Builder<'_>, stage: &StageState, text: &str, is_link: bool) -> Result<Owner, BuildError> {
    let accounts = match is_link {
        true => Accounts::default(),
        false => {
            accounts(&ChangeSet::new(builder.tree(stage)?)).map_err(|error| BuildError::Request(error.to_string()))?
        }
    };
    accounts.owner(text, is_link).map_err(|unknown| BuildError::Request(unknown.to_string()))
}

/// The accounts of an image.
pub(crate) fn accounts(changes: &ChangeSet) -> std::io::Result<Accounts> {
    let read = |path: &[u8]| Ok::<_, std::io::Error>(changes.read_file(path, MOST_ACCOUNT_BYTES)?.unwrap_or_default());
    Ok(Accounts::parse(&read(b"etc/passwd")?, &read(b"etc/group")?))
}

/// The time of what a step makes by itself.
fn made_time(stage: &StageState) -> Time {
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Time { seconds: stage.epoch.unwrap_or_else(|| i64::try_from(now()).unwrap_or(i64::MAX)), nanoseconds: 0 }
}

/// A path of an instruction, from the root; a slash at its end stays.
fn from_root(stage: &StageState, path: &[u8]) -> Vec<u8> {
    if path.starts_with(b"/") {
        return path.to_vec();
    }
    let mut whole = join(stage.working_dir().as_bytes(), path);
    // Nothing, `.` and `..` name the directory itself.
    if matches!(path, b"" | b"." | b"..") || path.ends_with(b"/..") {
        whole.push(b'/');
    }
    whole
}
