//! The instructions of the language, typed: every flag parsed and checked, every value still unexpanded.
//!
//! Invariant: an `Instruction` is one that BuildKit's parser accepts too; what depends on variables is checked when
//! they are known. Not here: what an instruction does.
//! <https://docs.docker.com/reference/dockerfile/>

mod chmod;
mod flags;
mod healthcheck;
mod mount;
mod parse;
mod script;

pub use chmod::ModeChange;
pub use healthcheck::Healthcheck;
pub use mount::{CacheMount, FileOwnership, MountError, MountFlag, MountKind, MountOption, Sharing};
pub(super) use parse::instruction;
pub use parse::{ParsedTrigger, parse_trigger};
pub use script::Script;

use super::error::DockerfileError;
use super::heredoc::Heredoc;
use super::parser::Pair;
use super::source::{Source, Span, Word};

/// An instruction or a part of one, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed<T> {
    /// What stands there.
    pub value: T,
    /// The whole instruction in the source, without here-documents.
    pub span: Span,
    /// The instruction's text, continuation lines joined; the image's history shows it.
    pub text: String,
    /// The comment lines above it, over empty lines too.
    pub comments: Vec<String>,
}

impl<T> Placed<T> {
    /// An error about a part of this instruction, found while it was evaluated.
    #[must_use]
    pub fn error(&self, source: &Source, span: Span, message: impl Into<String>) -> DockerfileError {
        source.error(span, message).within_instruction(source.position(self.span.start).line)
    }
}

impl Placed<Instruction> {
    /// Checks what BuildKit checks in stages that are needed only, as far as it names no variable: mounts, modes, and
    /// whether there is something to run.
    ///
    /// # Errors
    /// The first of them that makes no sense.
    pub fn check_constants(&self, source: &Source) -> Result<(), DockerfileError> {
        let chmod = match &self.value {
            Instruction::Run(Run { command: Command::Exec(words), .. }) if words.is_empty() => {
                return Err(self.error(source, self.span, "RUN requires at least one argument"));
            }
            Instruction::Run(run) => {
                let wrong =
                    |mount: &MountFlag| mount.check_constants().err().map(|error| (mount.span, error.to_string()));
                return run.mounts.iter().find_map(wrong).map_or(Ok(()), |(at, why)| Err(self.error(source, at, why)));
            }
            Instruction::Copy(copy) => copy.files.chmod.as_ref(),
            Instruction::Add(add) => add.files.chmod.as_ref(),
            _ => None,
        };
        let is_wrong = |mode: &&Word| !mode.text.contains('$') && ModeChange::parse(&mode.text).is_none();
        let wrong = |mode: &Word| Err(self.error(source, mode.span, InvalidMode(mode.text.clone()).to_string()));
        chmod.filter(is_wrong).map_or(Ok(()), wrong)
    }
}

/// A `--chmod` that is no mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid chmod parameter: '{0}'. it should be octal string and between 0 and 07777")]
pub struct InvalidMode(pub String);

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instruction {
    /// FROM: begins a stage.
    From(BaseImage),
    /// ARG: build arguments, in order; later defaults see earlier names.
    Arg(Vec<BuildArgument>),
    /// ENV; all values are expanded with the state before the instruction.
    Env(Vec<Pair>),
    /// LABEL.
    Label(Vec<Pair>),
    /// RUN.
    Run(Run),
    /// COPY.
    Copy(Copy),
    /// ADD.
    Add(Add),
    /// WORKDIR.
    Workdir(Word),
    /// USER: `user`, `user:group` or `:group`.
    User(Word),
    /// EXPOSE: ports, as words to be split again after expansion.
    Expose(Vec<Word>),
    /// VOLUME.
    Volume(Vec<Word>),
    /// ENTRYPOINT; never expanded.
    Entrypoint(Command),
    /// CMD; never expanded.
    Cmd(Command),
    /// SHELL; never expanded.
    Shell(Vec<Word>),
    /// STOPSIGNAL.
    StopSignal(Word),
    /// HEALTHCHECK; never expanded.
    Healthcheck(Healthcheck),
    /// ONBUILD: the text of an instruction with its here-documents, as the image's config keeps it.
    Onbuild(String),
    /// MAINTAINER.
    Maintainer(Word),
}

impl Instruction {
    /// The instruction's name in capitals.
    #[must_use]
    pub fn keyword(&self) -> &'static str {
        match self {
            Self::From(_) => "FROM",
            Self::Arg(_) => "ARG",
            Self::Env(_) => "ENV",
            Self::Label(_) => "LABEL",
            Self::Run(_) => "RUN",
            Self::Copy(_) => "COPY",
            Self::Add(_) => "ADD",
            Self::Workdir(_) => "WORKDIR",
            Self::User(_) => "USER",
            Self::Expose(_) => "EXPOSE",
            Self::Volume(_) => "VOLUME",
            Self::Entrypoint(_) => "ENTRYPOINT",
            Self::Cmd(_) => "CMD",
            Self::Shell(_) => "SHELL",
            Self::StopSignal(_) => "STOPSIGNAL",
            Self::Healthcheck(_) => "HEALTHCHECK",
            Self::Onbuild(_) => "ONBUILD",
            Self::Maintainer(_) => "MAINTAINER",
        }
    }
}

/// What FROM says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseImage {
    /// `--platform`; expanded with the global arguments.
    pub platform: Option<Word>,
    /// An image, an earlier stage, a named context or `scratch`; expanded with the global arguments.
    pub image: Word,
    /// The stage's name in lower case.
    pub name: Option<Word>,
}

/// One name of ARG.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildArgument {
    /// The name; as BuildKit has it, neither expanded nor freed of quotes.
    pub name: Word,
    /// The default; expanded. `Some("")` for `ARG name=`.
    pub default: Option<Word>,
}

/// A command in one of its two forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// One text for the shell; empty where nothing is said, which the shell is started with all the same.
    Shell(Word),
    /// The program and its arguments.
    Exec(Vec<Word>),
}

/// `RUN --network`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Network {
    /// The build's network.
    #[default]
    Default,
    /// No network.
    None,
    /// The host's network; needs the entitlement `network.host`.
    Host,
}

/// `RUN --security`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Security {
    /// The usual sandbox.
    #[default]
    Sandbox,
    /// Elevated privileges; needs the entitlement `security.insecure`.
    Insecure,
}

/// What RUN says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The command.
    pub command: Command,
    /// `--mount`, in order.
    pub mounts: Vec<MountFlag>,
    /// `--network`; `None` where the flag is absent.
    pub network: Option<Network>,
    /// `--security`.
    pub security: Security,
    /// Here-documents; only in shell form.
    pub heredocs: Vec<Heredoc>,
}

/// A source of COPY or ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileSource {
    /// A path, a pattern, or for ADD a URL.
    Path(Word),
    /// A here-document; its delimiter is the file's name.
    Heredoc(Heredoc),
}

/// What COPY and ADD have in common. Words are expanded, but for excludes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// At least one.
    pub sources: Vec<FileSource>,
    /// Where they go.
    pub destination: Word,
    /// `--chown`.
    pub chown: Option<Word>,
    /// `--chmod`; a [`ModeChange`] once expanded.
    pub chmod: Option<Word>,
    /// `--link`.
    pub link: bool,
    /// `--exclude`, in order; never expanded.
    pub excludes: Vec<Word>,
}

/// What COPY says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// Sources, destination and common flags.
    pub files: Files,
    /// `--from`: a stage, an image or a named context; never expanded.
    pub from: Option<Word>,
    /// `--parents`.
    pub parents: bool,
}

/// What ADD says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Add {
    /// Sources, destination and common flags.
    pub files: Files,
    /// `--checksum`; expanded.
    pub checksum: Option<Word>,
    /// `--unpack`; `None` where the flag is absent: local archives are unpacked, remote ones are not.
    pub unpack: Option<bool>,
    /// `--keep-git-dir`.
    pub keep_git_dir: Option<bool>,
}
