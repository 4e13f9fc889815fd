//! Statements to typed instructions: which arguments and flags each takes.
//!
//! Invariant: nothing of a statement is ignored. The messages are BuildKit's where it has some.

use super::flags::Flags;
use super::healthcheck::healthcheck;
use super::mount::{MountFlag, has_variable};
use super::{
    Add, BaseImage, BuildArgument, Command, Copy, FileSource, Files, Instruction, Network, Placed, Run, Security,
};
use crate::dockerfile::error::{DockerfileError, closest};
use crate::dockerfile::heredoc::{self, Heredoc, Opening};
use crate::dockerfile::parser::{self, Arguments, Pair, Statement};
use crate::dockerfile::source::{Source, Word};

/// BuildKit's words for a variable where a stage is named.
const FROM_IS_CONSTANT: &str = "variable expansion is not supported for --from, \
    define a new stage with FROM using ARG from global scope as a workaround";

const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// An ONBUILD trigger of a base image, read from the image's config.
#[derive(Debug, Clone)]
pub struct ParsedTrigger {
    /// The trigger's text under the name that errors shall show; the spans point into it.
    pub source: Source,
    /// The instruction.
    pub instruction: Placed<Instruction>,
}

/// Reads one ONBUILD trigger; `name` says for errors where it comes from.
///
/// # Errors
/// Broken syntax, more or less than one instruction, or one that cannot be a trigger.
pub fn parse_trigger(name: &str, text: &str) -> Result<ParsedTrigger, DockerfileError> {
    let source = Source::new(name, text.as_bytes());
    let (_, statements) = parser::parse(&source)?;
    let [statement] = statements.as_slice() else {
        let more = statements[1].span;
        return Err(source.error(more, "an ONBUILD trigger is one instruction, this is another"));
    };
    refuse_trigger(&source, statement)?;
    let instruction = instruction(&source, statement)?;
    Ok(ParsedTrigger { source, instruction })
}

/// Types a statement.
pub(in crate::dockerfile) fn instruction(
    source: &Source,
    statement: &Statement,
) -> Result<Placed<Instruction>, DockerfileError> {
    let first_line = source.position(statement.span.start).line;
    let value = Typing { source, statement, keyword: statement.keyword.text.to_ascii_uppercase() }
        .instruction()
        .map_err(|error| error.within_instruction(first_line))?;
    Ok(Placed { value, span: statement.span, text: statement.text.clone(), comments: statement.comments.clone() })
}

fn refuse_trigger(source: &Source, statement: &Statement) -> Result<(), DockerfileError> {
    match statement.keyword.text.to_ascii_uppercase().as_str() {
        "ONBUILD" => Err(source.error(statement.keyword.span, "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")),
        keyword @ ("FROM" | "MAINTAINER") => {
            Err(source.error(statement.keyword.span, format!("{keyword} isn't allowed as an ONBUILD trigger")))
        }
        _ => Ok(()),
    }
}

struct Typing<'a> {
    source: &'a Source,
    statement: &'a Statement,
    keyword: String,
}

impl<'a> Typing<'a> {
    fn instruction(&self) -> Result<Instruction, DockerfileError> {
        match self.keyword.as_str() {
            "FROM" => self.from(),
            "RUN" => self.run(),
            "COPY" => self.copy(),
            "ADD" => self.add(),
            "HEALTHCHECK" => healthcheck(self.source, self.statement).map(Instruction::Healthcheck),
            _ => {
                let instruction = self.without_flags()?;
                // As in BuildKit, whose parser does not look at the flags of these.
                if !matches!(instruction, Instruction::Arg(_) | Instruction::StopSignal(_)) {
                    Flags::new(self.source, self.statement).finish()?;
                }
                Ok(instruction)
            }
        }
    }

    fn without_flags(&self) -> Result<Instruction, DockerfileError> {
        Ok(match self.keyword.as_str() {
            "ARG" => Instruction::Arg(self.build_arguments()?),
            "ENV" => Instruction::Env(self.pairs()?),
            "LABEL" => Instruction::Label(self.pairs()?),
            "WORKDIR" => Instruction::Workdir(self.text()?),
            "USER" => Instruction::User(self.text()?),
            "STOPSIGNAL" => Instruction::StopSignal(self.text()?),
            "MAINTAINER" => Instruction::Maintainer(self.text()?),
            "EXPOSE" => Instruction::Expose(self.words()?),
            "VOLUME" => Instruction::Volume(self.volumes()?),
            "ENTRYPOINT" => Instruction::Entrypoint(self.command()),
            "CMD" => Instruction::Cmd(self.command()),
            "SHELL" => Instruction::Shell(self.shell()?),
            "ONBUILD" => Instruction::Onbuild(self.onbuild()?),
            _ => {
                let keyword = &self.statement.keyword;
                let hint = closest(&keyword.text, &KEYWORDS).map(|near| format!("did you mean {near}?"));
                return Err(self
                    .source
                    .error(keyword.span, format!("unknown instruction: {}", keyword.text))
                    .with_hint(hint));
            }
        })
    }

    fn error(&self, word: &Word, message: impl Into<String>) -> DockerfileError {
        self.source.error(word.span, message)
    }

    /// An error about the instruction as a whole: `KEYWORD what`.
    fn wrong(&self, what: &str) -> DockerfileError {
        self.error(&self.statement.keyword, format!("{} {what}", self.keyword))
    }

    /// The one argument that goes to the end of the instruction.
    fn text(&self) -> Result<Word, DockerfileError> {
        match &self.statement.arguments {
            Arguments::Text(text) => Ok(text.clone()),
            _ => Err(self.wrong("requires exactly one argument")),
        }
    }

    fn words(&self) -> Result<Vec<Word>, DockerfileError> {
        match &self.statement.arguments {
            Arguments::Words(words) | Arguments::Json(words) if !words.is_empty() => Ok(words.clone()),
            _ => Err(self.wrong("requires at least one argument")),
        }
    }

    fn volumes(&self) -> Result<Vec<Word>, DockerfileError> {
        let mut volumes = self.words()?;
        for volume in &mut volumes {
            volume.text = volume.text.trim().to_owned();
            if volume.text.is_empty() {
                return Err(self.error(volume, "VOLUME specified can not be an empty string"));
            }
        }
        Ok(volumes)
    }

    fn pairs(&self) -> Result<Vec<Pair>, DockerfileError> {
        let pairs = match &self.statement.arguments {
            Arguments::Pairs(pairs) => pairs.clone(),
            Arguments::OldPair(pair) => vec![pair.clone()],
            _ => return Err(self.wrong("requires at least one argument")),
        };
        match pairs.iter().find(|pair| pair.name.text.is_empty()) {
            Some(pair) => Err(self.error(&pair.name, format!("{} names can not be blank", self.keyword))),
            None => Ok(pairs),
        }
    }

    fn build_arguments(&self) -> Result<Vec<BuildArgument>, DockerfileError> {
        let argument = |word: Word| {
            let Some((name, default)) = word.text.split_once('=') else {
                return Ok(BuildArgument { name: word, default: None });
            };
            if name.is_empty() {
                return Err(self.error(&word, "ARG names can not be blank"));
            }
            let part = |text: &str| Word { text: text.to_owned(), span: word.span };
            Ok(BuildArgument { name: part(name), default: Some(part(default)) })
        };
        self.words()?.into_iter().map(argument).collect()
    }

    fn command(&self) -> Command {
        match &self.statement.arguments {
            Arguments::Json(words) => Command::Exec(words.clone()),
            Arguments::Text(text) => Command::Shell(text.clone()),
            _ => Command::Shell(Word { text: String::new(), span: self.statement.span }),
        }
    }

    fn shell(&self) -> Result<Vec<Word>, DockerfileError> {
        match &self.statement.arguments {
            Arguments::Json(words) if !words.is_empty() => Ok(words.clone()),
            Arguments::Text(text) => Err(self.error(text, "SHELL requires the arguments to be in JSON form")),
            _ => Err(self.wrong("requires at least one argument")),
        }
    }

    fn from(&self) -> Result<Instruction, DockerfileError> {
        let mut flags = Flags::new(self.source, self.statement);
        let platform = flags.string("platform")?;
        flags.finish()?;
        let words = match &self.statement.arguments {
            Arguments::Words(words) => words.as_slice(),
            _ => &[],
        };
        let (image, name) = match words {
            [image] => (image, None),
            [image, keyword, name] if keyword.text.eq_ignore_ascii_case("as") => (image, Some(self.stage_name(name)?)),
            _ => return Err(self.wrong("requires either one or three arguments")),
        };
        Ok(Instruction::From(BaseImage { platform, image: image.clone(), name }))
    }

    fn stage_name(&self, name: &Word) -> Result<Word, DockerfileError> {
        let lower = name.text.to_lowercase();
        let is_valid = lower.starts_with(|c: char| c.is_ascii_lowercase())
            && lower.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.'));
        if is_valid {
            return Ok(Word { text: lower, span: name.span });
        }
        let rule = "name can't start with a number or contain symbols";
        Err(self.error(name, format!("invalid name for build stage: {:?}, {rule}", name.text)))
    }

    fn run(&self) -> Result<Instruction, DockerfileError> {
        let mut flags = Flags::new(self.source, self.statement);
        // It is in no stable release of the language; BuildKit's own parser knows it only where it was built for that.
        if let Some(device) = self.statement.flags.iter().find(|flag| flag.name.text == "device") {
            let message =
                "RUN --device is not supported: it is of docker/dockerfile:1-labs, and not of the stable language";
            return Err(self.error(&device.name, message));
        }
        let mounts =
            flags.strings("mount")?.iter().map(|word| MountFlag::parse(self.source, word)).collect::<Result<_, _>>()?;
        let network = match flags.choice("network")? {
            None => None,
            Some(word) => Some(match word.text.as_str() {
                "default" => Network::Default,
                "none" => Network::None,
                "host" => Network::Host,
                other => return Err(self.error(&word, format!("unsupported network mode: {other:?}"))),
            }),
        };
        let security = match flags.choice("security")? {
            None => Security::default(),
            Some(word) => match word.text.as_str() {
                "sandbox" => Security::Sandbox,
                "insecure" => Security::Insecure,
                other => return Err(self.error(&word, format!("security {other:?} is not valid"))),
            },
        };
        flags.finish()?;
        let (command, heredocs) = (self.command(), self.statement.heredocs.clone());
        Ok(Instruction::Run(Run { command, mounts, network, security, heredocs }))
    }

    fn copy(&self) -> Result<Instruction, DockerfileError> {
        let mut flags = Flags::new(self.source, self.statement);
        let from = flags.string("from")?;
        let parents = flags.boolean("parents")?.unwrap_or(false);
        let files = self.files(&mut flags)?;
        flags.finish()?;
        if let Some(from) = from.as_ref().filter(|from| has_variable(&from.text)) {
            return Err(self.error(from, FROM_IS_CONSTANT));
        }
        Ok(Instruction::Copy(Copy { files, from, parents }))
    }

    fn add(&self) -> Result<Instruction, DockerfileError> {
        let mut flags = Flags::new(self.source, self.statement);
        let checksum = flags.string("checksum")?;
        let unpack = flags.boolean("unpack")?;
        let keep_git_dir = flags.boolean("keep-git-dir")?;
        let files = self.files(&mut flags)?;
        flags.finish()?;
        Ok(Instruction::Add(Add { files, checksum, unpack, keep_git_dir }))
    }

    /// Common flags, sources and destination. An unknown flag is told before a missing argument.
    fn files(&self, flags: &mut Flags<'a>) -> Result<Files, DockerfileError> {
        let chown = flags.string("chown")?;
        let chmod = flags.string("chmod")?;
        let link = flags.boolean("link")?.unwrap_or(false);
        let excludes = flags.strings("exclude")?;
        let words = match &self.statement.arguments {
            Arguments::Words(words) | Arguments::Json(words) => words.as_slice(),
            _ => &[][..],
        };
        let [sources @ .., destination] = words else {
            return Err(self.wrong("requires at least two arguments"));
        };
        if sources.is_empty() {
            return Err(self.wrong(
                "requires at least two arguments, but only one was provided. Destination could not be determined",
            ));
        }
        if heredoc::opening(&destination.text).is_some() {
            return Err(self.error(destination, format!("{} cannot accept a heredoc as a destination", self.keyword)));
        }
        let mut heredocs = self.statement.heredocs.iter();
        let source = |word: &Word| match heredoc::opening(&word.text) {
            None => Ok(FileSource::Path(word.clone())),
            // As in BuildKit, in the JSON form too, where it has no body.
            Some(opening) if matches!(self.statement.arguments, Arguments::Json(_)) => {
                let Opening { delimiter, expands, strips_tabs } = opening;
                let (content, span) = (String::new(), word.span);
                Ok(FileSource::Heredoc(Heredoc { delimiter, content, expands, strips_tabs, span }))
            }
            Some(opening) => {
                self.heredoc_source(word, heredocs.next().filter(|next| next.delimiter == opening.delimiter))
            }
        };
        let sources = sources.iter().map(source).collect::<Result<Vec<_>, _>>()?;
        if heredocs.next().is_some() {
            return Err(self.wrong("has a heredoc that is no source"));
        }
        Ok(Files { sources, destination: destination.clone(), chown, chmod, link, excludes })
    }

    fn heredoc_source(&self, word: &Word, heredoc: Option<&Heredoc>) -> Result<FileSource, DockerfileError> {
        match heredoc {
            Some(heredoc) => Ok(FileSource::Heredoc(heredoc.clone())),
            None => {
                Err(self.error(word, format!("the heredoc {} has no body: its delimiter must be one word", word.text)))
            }
        }
    }

    /// As in BuildKit a trigger is an instruction only once it triggers: it is kept as it is written.
    fn onbuild(&self) -> Result<String, DockerfileError> {
        let Arguments::Trigger(inner, text) = &self.statement.arguments else {
            return Err(self.wrong("requires at least one argument"));
        };
        refuse_trigger(self.source, inner)?;
        let bodies = inner.heredocs.iter().map(|body| format!("\n{}{}", body.content, body.delimiter));
        Ok(text.clone() + &bodies.collect::<String>())
    }
}
