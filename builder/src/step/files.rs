//! COPY, ADD and WORKDIR: words to selected sources, sources to a change set, a change set to a layer.

use std::path::PathBuf;
use std::sync::Arc;

use layerfs::{FileKind, Time, Tree};

use super::content::{self, ContentRules};
use super::remote::{self, Remote};
use crate::accounts::Accounts;
use crate::building::Builder;
use crate::cache::{NamedContent, Work};
use crate::changeset::copy::{Copier, CopyError, CopyOptions};
use crate::changeset::select::{Filter, Include, SelectError, Selected, SourceTree};
use crate::changeset::unpack;
use crate::changeset::{ChangeSet, Content, Node, Owner};
use crate::commit::commit_changeset;
use crate::context::Patterns;
use crate::dockerfile::{Add, Copy, Expander, FileSource, Files, Heredoc, InvalidMode, ModeChange, Word};
use crate::error::{BuildError, Site};
use crate::fetch::SourceKind;
use crate::fetch::without_passwords;
use crate::input::{Input, KnownBy};
use crate::paths::{clean, join};
use crate::plan::SourceName;
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
        Some(from) => builder.input(SourceName::Copy(&from.text), &site.at(from.span))?,
        None => builder.context()?,
    };
    FilesStep::new(builder, stage, (&copy.files, copy.parents), input, None, site)?
        .carry_out(builder, stage, text, site)
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
    let checksum = add.checksum.as_ref().map(|word| {
        let site = site.at(word.span);
        Ok::<_, BuildError>((builder.evaluation.expand(stage, word, &site)?, site))
    });
    let checksum = checksum.transpose()?.filter(|(text, _)| !text.is_empty());
    if let Some((_, site)) = &checksum {
        match kinds.as_slice() {
            [SourceKind::Local] => return Err(site.error("checksum requires HTTP(S) or Git sources").into()),
            [_] => {}
            _ => return Err(site.error("checksum can't be specified for multiple sources").into()),
        }
    }
    let sources = remote::Sources { builder, checksum, keep_git_dir: add.keep_git_dir, epoch: stage.epoch };
    let job = FilesStep::new(builder, stage, (&add.files, false), builder.context()?, Some(&sources), site)?;
    let unpacks = Unpacks { local: add.unpack.unwrap_or(true), remote: add.unpack.unwrap_or(false) };
    // Neither the progress nor the history says what only a server is to know.
    let text = without_passwords(text);
    FilesStep { unpacks, ..job }.carry_out(builder, stage, &text, site)
}

/// What the sources of an ADD are, in order.
fn source_kinds(
    builder: &Builder<'_>,
    stage: &StageState,
    add: &Add,
    site: &Site,
) -> Result<Vec<SourceKind>, BuildError> {
    let mut kinds = Vec::new();
    for source in &add.files.sources {
        let FileSource::Path(word) = source else {
            kinds.push(SourceKind::Local);
            continue;
        };
        let source = builder.evaluation.expand(stage, word, site)?;
        kinds.push(SourceKind::of(&source).map_err(site.at(word.span).because())?);
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
    // As in BuildKit, what is absolute stays as it is written.
    let directory = match given.starts_with('/') {
        true => given,
        false => format!("/{}", String::from_utf8_lossy(&clean(format!("{}/{given}", stage.working_dir()).as_bytes()))),
    };
    let path = clean(directory.as_bytes());
    let name = String::from_utf8_lossy(&path).into_owned();
    let is_root = directory == "/";
    stage.config.config.working_dir = directory;
    if is_root {
        stage.add_empty_history(text);
        return Ok(());
    }
    let mut changes = ChangeSet::new(builder.tree(stage)?);
    let accounts = accounts(&changes).map_err(site.because())?;
    let owner = match stage.config.config.user.as_str() {
        "" => Owner::default(),
        user => accounts.owner(user, stage.diff_ids().is_empty()).map_err(site.because())?,
    };
    let options = vec!["workdir".to_owned(), name, format!("{}:{}", owner.uid, owner.gid)];
    builder.cached(stage, text, text, &Work::Files { inputs: Vec::new(), options }, |stage, _| {
        let made = Node::directory(0o755, owner, made_time(stage));
        let resolved = changes.resolve(&path).map_err(site.because())?;
        changes.make_directories(&resolved, &made).map_err(site.because())?;
        Ok(commit_changeset(builder.store, &changes, stage.epoch)?)
    })
}

/// What a COPY or ADD comes to once everything is expanded and found.
struct FilesStep {
    input: Input,
    source: SourceTree,
    items: Vec<Item>,
    destination: Vec<u8>,
    is_link: bool,
    parents: bool,
    /// Which archives are unpacked: those of ADD only.
    unpacks: Unpacks,
    options: CopyOptions,
    excludes: Vec<String>,
    /// Where archives are unpacked: a disk, unlike many a /tmp.
    spool: PathBuf,
}

/// Which archives are unpacked.
#[derive(Debug, Clone, Copy)]
struct Unpacks {
    local: bool,
    remote: bool,
}

/// One source.
enum Item {
    Files {
        found: Vec<Selected>,
        /// What `--parents` takes below those.
        include: Option<Include>,
    },
    Inline {
        name: String,
        bytes: Arc<[u8]>,
    },
    Remote(Box<Remote>),
    /// All files of a repository.
    Repository(SourceTree, NamedContent),
}

impl FilesStep {
    fn new(
        builder: &Builder<'_>,
        stage: &StageState,
        (files, parents): (&Files, bool),
        input: Input,
        remote: Option<&remote::Sources<'_>>,
        site: &Site,
    ) -> Result<Self, BuildError> {
        let expand = |word: &Word| builder.evaluation.expand(stage, word, site);
        let source = SourceTree::new(Arc::clone(&input.tree));
        // As in BuildKit, here-documents come after all other sources: they win where several go to one file.
        let (paths, documents): (Vec<_>, Vec<_>) =
            files.sources.iter().partition(|source| matches!(source, FileSource::Path(_)));
        let excludes: Vec<String> = files.excludes.iter().map(|word| word.text.clone()).collect();
        let exclude = patterns(&excludes).map_err(site.because())?;
        let items = paths
            .into_iter()
            .chain(documents)
            .map(|item| match item {
                FileSource::Path(word) => {
                    let taken = parents.then_some(exclude.as_ref());
                    named(&expand(word)?, (&input, &source), taken, remote, &site.at(word.span))
                }
                FileSource::Heredoc(heredoc) => inline(stage, heredoc, site),
            })
            .collect::<Result<_, _>>()?;
        // A flag whose value expands to nothing is none.
        let flag = |word: &Option<Word>| {
            let text = word.as_ref().map(|word| Ok::<_, BuildError>((expand(word)?, word.span))).transpose()?;
            Ok::<_, BuildError>(text.filter(|(text, _)| !text.is_empty()))
        };
        let mode = flag(&files.chmod)?.map(|(text, span)| mode(&text, &site.at(span))).transpose()?;
        // BuildKit leaves `--link` out where there is a `--chmod`.
        let is_link = files.link && mode.is_none();
        let owner = match flag(&files.chown)? {
            None => None,
            Some((text, span)) => Some(owner(builder, stage, &text, is_link).map_err(|error| match error {
                BuildError::Request(message) => site.at(span).error(message).into(),
                other => other,
            })?),
        };
        let is_context = input.known_by == KnownBy::Content;
        let epoch = stage.epoch.map(|seconds| Time { seconds, nanoseconds: 0 });
        let options =
            CopyOptions { owner, mode, exclude, modified: epoch.filter(|_| is_context), made: made_time(stage) };
        let destination = from_root(stage, expand(&files.destination)?.as_bytes());
        Ok(Self {
            input,
            source,
            items,
            destination,
            is_link,
            parents,
            unpacks: Unpacks { local: false, remote: false },
            options,
            excludes,
            spool: builder.store.temporary().to_owned(),
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
        builder.cached(stage, text, text, &work, |stage, _| {
            let below = if self.is_link { builder.empty_tree()? } else { builder.tree(stage)? };
            let mut changes = ChangeSet::new(below);
            self.put(&mut changes, site)?;
            Ok(commit_changeset(builder.store, &changes, stage.epoch)?)
        })
    }

    /// Everything of the sources that makes a difference for the layer.
    fn inputs(&self, builder: &Builder<'_>) -> Result<Vec<NamedContent>, Box<dyn std::error::Error>> {
        let mut inputs = Vec::new();
        for item in &self.items {
            match item {
                Item::Inline { name, bytes } => {
                    inputs.push(NamedContent {
                        name: format!("<<{name}"),
                        content: layerfs::digest_of(bytes).to_string(),
                    });
                }
                Item::Remote(remote) => {
                    inputs.push(NamedContent { name: remote.name.clone(), content: remote.key_word() });
                }
                Item::Repository(_, known) => inputs.push(known.clone()),
                Item::Files { found, include } => {
                    let words: Vec<String> = include
                        .iter()
                        .map(|include| format!("only {}", include.text))
                        .chain(self.excludes.clone())
                        .collect();
                    let exclude = self.options.exclude.as_ref();
                    let filter = Filter { include: include.as_ref().map(|include| &include.patterns), exclude };
                    let rules = ContentRules {
                        keeps_times: self.options.modified.is_none(),
                        counts_top: include.is_some(),
                        threads: builder.request().threads,
                        filter,
                        filter_words: &words,
                    };
                    for one in found {
                        let content = content::identify(builder.store, &self.input, one.inode, rules)?;
                        inputs.push(NamedContent { name: shown(&one.path), content });
                    }
                    if let Some(include) = include {
                        inputs.push(NamedContent { name: "the pattern".to_owned(), content: include.text.clone() });
                    }
                }
            }
        }
        Ok(inputs)
    }

    fn option_words(&self) -> Vec<String> {
        let Unpacks { local, remote } = self.unpacks;
        let mut words = vec![format!("to {}", self.destination.escape_ascii())];
        words.extend(self.options.owner.map(|Owner { uid, gid }| format!("owner {uid}:{gid}")));
        words.extend(self.options.mode.as_ref().map(|mode| format!("mode {}", mode.key_word())));
        words.push(format!("link {} parents {} unpack {local} {remote}", self.is_link, self.parents));
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
                Item::Repository(source, _) => {
                    let copied = Copier::new(changes, &self.options, source).copy_repository(&self.destination);
                    copied.map_err(site.because())?;
                }
                Item::Files { found, include } => {
                    let include = include.as_ref().map(|include| &include.patterns);
                    for one in found {
                        self.put_one(changes, one, include).map_err(site.because())?;
                    }
                }
            }
        }
        Ok(())
    }

    fn put_one(
        &self,
        changes: &mut ChangeSet,
        selected: &Selected,
        include: Option<&Patterns>,
    ) -> Result<(), CopyError> {
        let tree = self.source.tree();
        let read = |cause| CopyError::Read { path: String::from_utf8_lossy(&selected.path).into_owned(), cause };
        if self.unpacks.local && tree.attributes(selected.inode).map_err(read)?.kind == FileKind::File {
            let content = Content::Tree(Arc::clone(tree), selected.inode);
            if self.unpack(changes, (&content, &selected.path))? {
                return Ok(());
            }
        }
        self.copier(changes).including(include).copy(selected, &self.destination)
    }

    fn put_remote(&self, changes: &mut ChangeSet, remote: &Remote) -> Result<(), CopyError> {
        if self.unpacks.remote && self.unpack(changes, (remote.content(), remote.name.as_bytes()))? {
            return Ok(());
        }
        let node = remote.node(self.options.owner.unwrap_or_default());
        self.copier(changes).copy_file(&remote.name, node, &self.destination)
    }

    fn unpack(&self, changes: &mut ChangeSet, archive: (&Content, &[u8])) -> Result<bool, CopyError> {
        unpack::unpack(changes, &self.source, archive, &self.destination, &self.options, &self.spool)
    }

    fn copier<'a>(&'a self, changes: &'a mut ChangeSet) -> Copier<'a> {
        Copier::new(changes, &self.options, &self.source)
    }
}

/// A path as a key and a person read it.
fn shown(path: &[u8]) -> String {
    match path {
        b"" => ".".to_owned(),
        path => path.escape_ascii().to_string(),
    }
}

/// What a word of COPY or ADD names; only ADD has other places than the input.
fn named(
    text: &str,
    (input, source): (&Input, &SourceTree),
    parents: Option<Option<&Patterns>>,
    remote: Option<&remote::Sources<'_>>,
    site: &Site,
) -> Result<Item, BuildError> {
    match (SourceKind::of(text).map_err(site.because())?, remote) {
        (SourceKind::Local, _) => select(source, text, parents, (input, site)),
        (SourceKind::Web, Some(remote)) => Ok(Item::Remote(Box::new(remote.file(text, site)?))),
        (SourceKind::Git(reference), Some(remote)) => {
            let name = reference.to_string();
            let fetched = remote.repository(reference, site)?;
            let known = NamedContent { name, content: format!("repository {}", fetched.key_words) };
            Ok(Item::Repository(SourceTree::new(fetched.tree), known))
        }
        (SourceKind::Web, None) => Err(site.error("source can't be a URL for COPY").into()),
        (SourceKind::Git(_), None) => Err(site.error("source can't be a git ref for COPY").into()),
    }
}

/// The files of one source; `exclude` is what a path that is named under `--parents` must not be.
fn select(
    source: &SourceTree,
    pattern: &str,
    parents: Option<Option<&Patterns>>,
    (input, site): (&Input, &Site),
) -> Result<Item, BuildError> {
    let found = match parents {
        None => source.select(pattern.as_bytes()).map(|found| Item::Files { found, include: None }),
        Some(exclude) => source
            .select_parents(pattern.as_bytes(), exclude)
            .map(|(found, include)| Item::Files { found, include: Some(include) }),
    };
    found.map_err(|error| match error {
        SelectError::NotFound(_) => site.error(format!("{error} in {}", input.label)).into(),
        other => site.because()(other),
    })
}

fn patterns(excludes: &[String]) -> Result<Option<Patterns>, crate::context::BadPattern> {
    (!excludes.is_empty()).then(|| Patterns::new(excludes.iter().map(String::as_str))).transpose()
}

fn inline(stage: &StageState, heredoc: &Heredoc, site: &Site) -> Result<Item, BuildError> {
    let mut text = heredoc.text();
    if heredoc.expands {
        let lookup = |name: &str| stage.variable(name);
        text = Expander::heredoc(&lookup).expand(&text).map_err(site.at(heredoc.span).because())?;
    }
    let name = heredoc.file_name().map_err(site.because())?;
    Ok(Item::Inline { name, bytes: text.into_bytes().into() })
}

fn mode(text: &str, site: &Site) -> Result<ModeChange, BuildError> {
    ModeChange::parse(text).ok_or_else(|| site.error(InvalidMode(text.to_owned()).to_string()).into())
}

fn owner(builder: &Builder<'_>, stage: &StageState, text: &str, is_link: bool) -> Result<Owner, BuildError> {
    // As in BuildKit, what has no layer yet has no accounts to look in; what has one but no files of them knows root.
    let is_link = is_link || stage.diff_ids().is_empty();
    let accounts = match is_link {
        true => Accounts::default(),
        false => {
            accounts(&ChangeSet::new(builder.tree(stage)?)).map_err(|error| BuildError::Request(error.to_string()))?
        }
    };
    accounts.owner(text, is_link).map_err(|unknown| BuildError::Request(unknown.to_string()))
}

/// Everything that a tree of no image holds, to be a layer of its own.
pub(crate) fn whole(tree: &Arc<dyn Tree>, epoch: Option<i64>, empty: Arc<dyn Tree>) -> std::io::Result<ChangeSet> {
    let time = |seconds| Time { seconds, nanoseconds: 0 };
    let mut options = CopyOptions::keeping_all(time(epoch.unwrap_or(0)));
    options.modified = epoch.map(time);
    let (mut changes, source) = (ChangeSet::new(empty), SourceTree::new(Arc::clone(tree)));
    Copier::new(&mut changes, &options, &source).copy(&Selected::root(), b"/").map_err(std::io::Error::other)?;
    Ok(changes)
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

/// A path of an instruction, from the root, as Go's `path.Clean` leaves it: a link before `..` is never followed. A
/// slash at its end stays, and is what `.` at its end comes to.
fn from_root(stage: &StageState, path: &[u8]) -> Vec<u8> {
    let is_directory = matches!(path, b"" | b".") || path.ends_with(b"/") || path.ends_with(b"/.");
    let cleaned = match path.starts_with(b"/") {
        true => clean(path),
        false => clean(&join(stage.working_dir().as_bytes(), path)),
    };
    let end: &[u8] = if is_directory && !cleaned.is_empty() { b"/" } else { b"" };
    [b"/", cleaned.as_slice(), end].concat()
}
