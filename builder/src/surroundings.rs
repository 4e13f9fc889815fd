//! What an instruction finds when its turn comes, as far as that is known without building: the variables that are set.
//!
//! Invariant: a variable is called unset only where it is known what the base image sets. Not here: the build itself,
//! which has a `StageState`.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::dockerfile::{BuildArgument, Expander, ExpansionError, FileSource, Files, Instruction, Pair, Span, Word};
use crate::frontend::SCAN_ARGUMENTS;
use crate::image::{DEFAULT_PATH, ImageConfig};

/// Larger values are not kept, and so not known: values double, and no environment of a process takes such a one.
const LARGEST_VALUE_BYTES: usize = 128 << 10;

/// Names of variables.
pub(crate) type Names = BTreeSet<String>;

/// The value of a variable that is set, unless it depends on what is not known.
pub(crate) type Value = Option<Rc<str>>;

/// What is set before an instruction.
#[derive(Debug, Clone, Default)]
pub(crate) struct Surroundings {
    /// Variables and their values.
    pub(crate) set: BTreeMap<String, Value>,
    /// Names of ARG, also those without a value.
    pub(crate) declared: Names,
    /// Whether nothing else is set: it is known what the base image sets.
    pub(crate) is_known: bool,
    /// Whether a WORKDIR stood before in this file.
    pub(crate) has_directory: bool,
}

/// What a text expands to.
pub(crate) struct Expanded {
    /// `None` if it depends on what is not known, or cannot be expanded.
    pub(crate) text: Option<String>,
    /// Why it cannot be expanded, if that is certain.
    pub(crate) mistake: Option<ExpansionError>,
    /// The variables that nobody set, also those for which a default stands beside.
    pub(crate) unset: Names,
}

/// A text in which variables are expanded.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Text<'a> {
    Word(&'a str),
    Heredoc(&'a str),
}

impl Expanded {
    /// As the value of a variable.
    fn value(&self) -> Value {
        self.text.as_deref().filter(|text| text.len() <= LARGEST_VALUE_BYTES).map(Rc::from)
    }
}

impl Surroundings {
    /// At the beginning of a stage on an image; `None` is one that is not known.
    pub(crate) fn on_image(config: Option<&ImageConfig>) -> Self {
        let mut found = Self { is_known: config.is_some(), ..Self::default() };
        found.set.insert("PATH".to_owned(), config.map(|_| DEFAULT_PATH.into()));
        for entry in config.iter().flat_map(|config| &config.config.env) {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            found.set.insert(name.to_owned(), Some(value.into()));
        }
        found
    }

    /// Expands a text.
    pub(crate) fn expand(&self, escape: char, text: Text<'_>) -> Expanded {
        let (unset, is_certain) = (RefCell::new(Names::new()), Cell::new(true));
        let lookup = |name: &str| match self.set.get(name) {
            Some(Some(value)) => Some(value.to_string()),
            None if self.is_known => {
                if !self.declared.contains(name) && !SCAN_ARGUMENTS.contains(&name) {
                    unset.borrow_mut().insert(name.to_owned());
                }
                None
            }
            _ => {
                is_certain.set(false);
                Some(String::new())
            }
        };
        let expanded = match text {
            Text::Word(text) => Expander::new(escape, &lookup).expand(text),
            Text::Heredoc(text) => Expander::heredoc(&lookup).expand(text),
        };
        let (text, mistake) = match expanded {
            _ if !is_certain.get() => (None, None),
            Ok(text) => (Some(text), None),
            Err(mistake) => (None, Some(mistake)),
        };
        Expanded { text, mistake, unset: unset.into_inner() }
    }

    /// Goes past an ENV.
    pub(crate) fn set_all(&mut self, escape: char, pairs: &[Pair]) {
        let expand = |word: &Word| self.expand(escape, Text::Word(&word.text));
        let pair = |pair: &Pair| Some((expand(&pair.name).text?, expand(&pair.value).value()));
        let expanded: Vec<(String, Value)> = pairs.iter().filter_map(pair).collect();
        self.set.extend(expanded);
    }

    /// Goes past one name of an ARG, which was `given` a value or has one in the global scope; says what its default
    /// uses and nobody set.
    pub(crate) fn declare(
        &mut self,
        escape: char,
        argument: &BuildArgument,
        given: Option<&String>,
        global: Option<&String>,
    ) -> Names {
        let name = &argument.name.text;
        let (value, unset) = match (given, &argument.default) {
            (Some(given), _) => (Some(Some(given.as_str().into())), Names::new()),
            (None, Some(default)) => {
                let expanded = self.expand(escape, Text::Word(&default.text));
                (Some(expanded.value()), expanded.unset)
            }
            (None, None) => (global.map(|global| Some(global.as_str().into())), Names::new()),
        };
        if let Some(value) = value.filter(|_| !SCAN_ARGUMENTS.contains(&name.as_str())) {
            self.set.insert(name.clone(), value);
        }
        self.declared.insert(name.clone());
        unset
    }
}

/// The texts of an instruction in which BuildKit tells of variables that nobody set, and their places. ARG is not among
/// them: its defaults see each other.
pub(crate) fn texts(instruction: &Instruction, whole: Span) -> Vec<(Span, Text<'_>)> {
    match instruction {
        Instruction::Env(pairs) | Instruction::Label(pairs) => {
            words(pairs.iter().flat_map(|pair| [&pair.name, &pair.value])).collect()
        }
        Instruction::Copy(copy) => file_texts(&copy.files, None, whole),
        Instruction::Add(add) => file_texts(&add.files, add.checksum.as_ref(), whole),
        Instruction::Workdir(word) | Instruction::User(word) | Instruction::StopSignal(word) => {
            vec![(word.span, Text::Word(&word.text))]
        }
        Instruction::Volume(volumes) => words(volumes).collect(),
        Instruction::Run(run) => {
            let options = run.mounts.iter().flat_map(|mount| &mount.options);
            options.filter_map(|option| Some((whole, Text::Word(option.value.as_deref()?)))).collect()
        }
        _ => Vec::new(),
    }
}

fn words<'a>(words: impl IntoIterator<Item = &'a Word>) -> impl Iterator<Item = (Span, Text<'a>)> {
    words.into_iter().map(|word| (word.span, Text::Word(word.text.as_str())))
}

fn file_texts<'a>(files: &'a Files, checksum: Option<&'a Word>, whole: Span) -> Vec<(Span, Text<'a>)> {
    let flags = files.chown.iter().chain(&files.chmod).chain(checksum);
    let (mut paths, mut bodies) = (Vec::new(), Vec::new());
    for source in &files.sources {
        match source {
            FileSource::Path(word) => paths.push(word),
            FileSource::Heredoc(heredoc) if heredoc.expands => bodies.push((whole, Text::Heredoc(&heredoc.content))),
            FileSource::Heredoc(_) => {}
        }
    }
    words(flags.chain(paths).chain([&files.destination])).chain(bodies).collect()
}
