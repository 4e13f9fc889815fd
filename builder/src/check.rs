//! All build checks of a request: those of the text alone, and those that need the variables or the build context.
//!
//! Invariant: nothing is built or fetched. What a base image from a registry would tell is not asked: its variables are
//! unknown, so nothing on top of it is called undefined. <https://docs.docker.com/reference/build-checks/>

use std::cell::RefCell;
use std::collections::BTreeSet;

use registry_client::Platform;

use crate::context::Patterns;
use crate::dockerfile::{
    CheckOptions, Dockerfile, DockerfileError, Expander, FileSource, Files, Instruction, Span, Stage, Warning, Word,
    lint,
};
use crate::error::BuildError;
use crate::image::ImageConfig;
use crate::origins;
use crate::plan::PLATFORM_ARGUMENTS;
use crate::request::BuildRequest;
use crate::step::config::PROXY_ARGUMENTS;

/// What the checks found.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The findings, by place.
    pub warnings: Vec<Warning>,
    /// Whether the Dockerfile says that any warning fails the build: `# check=error=true`.
    pub is_error: bool,
}

/// Checks a Dockerfile without building it.
///
/// # Errors
/// A Dockerfile or ignore file that cannot be read.
pub fn check(request: &BuildRequest) -> Result<Checked, BuildError> {
    check_file(&Dockerfile::parse(request.dockerfile.name(), request.dockerfile.bytes())?, request)
}

/// Checks a parsed Dockerfile.
pub(crate) fn check_file(file: &Dockerfile, request: &BuildRequest) -> Result<Checked, BuildError> {
    let options = options(file)?;
    let mut checker = Checker { file, request, warnings: lint(file, &options)? };
    checker.global_arguments();
    checker.stages();
    checker.ignored_files()?;
    let mut warnings = checker.warnings;
    warnings.retain(|warning| !skips(&options, warning.rule));
    warnings.sort_by_key(|warning| (warning.span.start, warning.rule));
    Ok(Checked { warnings, is_error: options.is_error })
}

/// What `# check=` says.
fn options(file: &Dockerfile) -> Result<CheckOptions, DockerfileError> {
    match &file.directives.check {
        None => Ok(CheckOptions::default()),
        Some(word) => CheckOptions::parse(&word.text).map_err(|message| file.source.error(word.span, message)),
    }
}

fn skips(options: &CheckOptions, rule: &str) -> bool {
    options.skips_all || options.skip.iter().any(|skipped| skipped == rule)
}

/// The finding that only a build can make: a base image for another machine than the stage is for.
pub(crate) fn base_platform(file: &Dockerfile, image: &str, config: &ImageConfig, wanted: &Platform) -> Option<String> {
    const RULE: &str = "InvalidBaseImagePlatform";
    let found = Platform::new(&config.os, &config.architecture, config.variant.as_deref());
    let is_fitting = found.os() == wanted.os() && found.architecture() == wanted.architecture();
    let is_skipped = options(file).is_ok_and(|options| skips(&options, RULE));
    (!is_fitting && !is_skipped).then(|| {
        format!(
            "{RULE}: Base image {image} was pulled with platform \"{found}\", expected \"{wanted}\" for current build"
        )
    })
}

impl Checked {
    /// The error that the findings are if the Dockerfile says so.
    pub(crate) fn error(&self, file: &Dockerfile) -> Option<DockerfileError> {
        let first = self.warnings.first().filter(|_| self.is_error)?;
        let rules: BTreeSet<&str> = self.warnings.iter().map(|warning| warning.rule).collect();
        let rules: Vec<&str> = rules.into_iter().collect();
        Some(file.source.error(first.span, format!("lint violation found for rules: {}", rules.join(", "))))
    }
}

struct Checker<'a> {
    file: &'a Dockerfile,
    request: &'a BuildRequest,
    warnings: Vec<Warning>,
}

/// Names that are set at a place.
type Names = BTreeSet<String>;

impl Checker<'_> {
    fn warn(&mut self, rule: &'static str, span: Span, message: String) {
        self.warnings.push(Warning { rule, span, message });
    }

    /// FROM sees the global ARGs and the platform arguments, and nothing else.
    fn global_arguments(&mut self) {
        let mut names: Names = PLATFORM_ARGUMENTS.iter().map(|name| (*name).to_owned()).collect();
        let arguments = self.file.global_arguments.iter().flat_map(|placed| &placed.value);
        names.extend(arguments.map(|argument| argument.name.text.clone()));
        for stage in &self.file.stages {
            let from = &stage.from.value;
            for word in from.platform.iter().chain([&from.image]) {
                for name in self.unset(word, &names) {
                    self.warn("UndefinedArgInFrom", word.span, format!("FROM argument '{name}' is not declared"));
                }
            }
        }
    }

    fn stages(&mut self) {
        // What a stage that stands on an earlier one inherits; `None` where an unknown image lies below.
        let mut known: Vec<Option<Names>> = Vec::new();
        for stage in &self.file.stages {
            let inherited = self.inherited(stage, &known);
            let is_known = inherited.is_some();
            let names = self.stage(stage, inherited.unwrap_or_default(), is_known);
            known.push(is_known.then_some(names));
        }
    }

    fn inherited(&self, stage: &Stage, known: &[Option<Names>]) -> Option<Names> {
        let base = &stage.from.value.image.text;
        if self.request.named_contexts.contains_key(base) {
            return None;
        }
        let earlier = &self.file.stages[..known.len()];
        let is_base = |other: &Stage| other.from.value.name.as_ref().is_some_and(|name| name.text == *base);
        match earlier.iter().rposition(is_base) {
            Some(index) => known[index].clone(),
            None if base == "scratch" => {
                let set = PROXY_ARGUMENTS.iter().map(|name| (*name).to_owned());
                Some(set.chain(["PATH".to_owned()]).collect())
            }
            None => None,
        }
    }

    /// Walks the instructions of a stage, and gives the names that are set at its end.
    fn stage(&mut self, stage: &Stage, mut names: Names, is_known: bool) -> Names {
        let mut has_absolute_directory = false;
        for placed in &stage.instructions {
            if is_known {
                for word in words(&placed.value) {
                    for name in self.unset(word, &names) {
                        self.warn("UndefinedVar", word.span, format!("Usage of undefined variable '${name}'"));
                    }
                }
            }
            match &placed.value {
                Instruction::Arg(arguments) => names.extend(arguments.iter().map(|one| one.name.text.clone())),
                Instruction::Env(pairs) => names.extend(pairs.iter().map(|pair| pair.name.text.clone())),
                Instruction::Workdir(word) if word.text.starts_with('/') => has_absolute_directory = true,
                Instruction::Workdir(word) if !has_absolute_directory && !word.text.starts_with('$') => {
                    let message = format!(
                        "Relative workdir \"{}\" can have unexpected results if the base image changes",
                        word.text
                    );
                    self.warn("WorkdirRelativePath", word.span, message);
                }
                _ => {}
            }
        }
        names
    }

    /// The variables that a word uses and nobody set; those with a default of their own are meant so.
    fn unset(&self, word: &Word, names: &Names) -> Names {
        let unset = RefCell::new(Names::new());
        let lookup = |name: &str| {
            let has_operator = [":-", "-", ":+", "+", ":?", "?"]
                .iter()
                .any(|operator| word.text.contains(&format!("{{{name}{operator}")));
            if !has_operator && !names.contains(name) {
                unset.borrow_mut().insert(name.to_owned());
            }
            Some(String::new())
        };
        // A word that is malformed fails the build by itself.
        _ = Expander::new(self.file.directives.escape, &lookup).expand(&word.text);
        unset.into_inner()
    }

    fn ignored_files(&mut self) -> Result<(), BuildError> {
        let patterns = origins::ignore_patterns(&self.request.context, self.request.dockerfile_path.as_deref())?;
        let instructions = self.file.stages.iter().flat_map(|stage| &stage.instructions);
        for placed in instructions {
            match &placed.value {
                Instruction::Copy(copy) if copy.from.is_none() => self.ignored(&copy.files, "Copy", &patterns),
                Instruction::Add(add) => self.ignored(&add.files, "Add", &patterns),
                _ => {}
            }
        }
        Ok(())
    }

    fn ignored(&mut self, files: &Files, action: &str, patterns: &Patterns) {
        for source in &files.sources {
            let FileSource::Path(word) = source else { continue };
            let path = crate::changeset::clean(word.text.as_bytes());
            let is_plain = !word.text.contains(['$', '*', '?', '[', '"', '\'', '\\']) && !word.text.contains("://");
            if is_plain && !path.is_empty() && is_hidden(patterns, &path) {
                let message =
                    format!("Attempting to {action} file \"{}\" that is excluded by .dockerignore", word.text);
                self.warn("CopyIgnoredFile", word.span, message);
            }
        }
    }
}

/// Whether nothing of a path can be seen.
fn is_hidden(patterns: &Patterns, path: &[u8]) -> bool {
    let matched = patterns.path(path);
    matched.is_excluded() && !patterns.can_take_back_below(path, &matched)
}

/// The words of an instruction in which variables are expanded.
fn words(instruction: &Instruction) -> Vec<&Word> {
    match instruction {
        Instruction::Env(pairs) | Instruction::Label(pairs) => pairs.iter().map(|pair| &pair.value).collect(),
        Instruction::Arg(arguments) => arguments.iter().filter_map(|argument| argument.default.as_ref()).collect(),
        Instruction::Copy(copy) => file_words(&copy.files),
        Instruction::Add(add) => file_words(&add.files),
        Instruction::Workdir(word) | Instruction::User(word) | Instruction::StopSignal(word) => vec![word],
        Instruction::Expose(words) | Instruction::Volume(words) => words.iter().collect(),
        _ => Vec::new(),
    }
}

fn file_words(files: &Files) -> Vec<&Word> {
    let sources = files.sources.iter().filter_map(|source| match source {
        FileSource::Path(word) => Some(word),
        FileSource::Heredoc(_) => None,
    });
    sources.chain([&files.destination]).chain(&files.chown).chain(&files.chmod).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dockerfile::Source;

    fn rules(text: &str, ignore: &str) -> Vec<&'static str> {
        let context = tempfile::tempdir().expect("a directory");
        std::fs::write(context.path().join(".dockerignore"), ignore).expect("written");
        let request = BuildRequest::new(Source::new("D", text.as_bytes()), context.path());
        check(&request).expect(text).warnings.into_iter().map(|warning| warning.rule).collect()
    }

    #[test]
    fn variables_that_nobody_set_are_found() {
        assert_eq!(rules("FROM scratch\nCOPY $a b", ""), ["UndefinedVar"]);
        assert_eq!(rules("FROM scratch AS x\nENV a=1\nFROM x\nCOPY $a $PATH", ""), [""; 0]);
        assert_eq!(rules("FROM scratch\nARG a\nLABEL x=$a y=${b:-1} z='$c' w=$HTTP_PROXY", ""), [""; 0]);
        assert_eq!(rules("FROM scratch\nENV a=$a", ""), ["UndefinedVar"]);
        assert_eq!(rules("FROM other\nCOPY $a b", ""), [""; 0]);
        assert_eq!(rules("# check=skip=UndefinedVar\nFROM scratch\nCOPY $a b", ""), [""; 0]);
    }

    #[test]
    fn from_knows_only_global_arguments() {
        assert_eq!(rules("FROM x:$TAG", ""), ["UndefinedArgInFrom"]);
        assert_eq!(rules("ARG TAG=1\nFROM --platform=$BUILDPLATFORM x:$TAG", ""), [""; 0]);
    }

    #[test]
    fn a_relative_directory_needs_an_absolute_one_first() {
        assert_eq!(rules("FROM a\nWORKDIR b", ""), ["WorkdirRelativePath"]);
        assert_eq!(rules("FROM a\nWORKDIR /b\nWORKDIR c", ""), [""; 0]);
    }

    #[test]
    fn copying_what_is_ignored_is_found() {
        assert_eq!(rules("FROM scratch\nCOPY a/b b\nADD c d", "a\nc"), ["CopyIgnoredFile"; 2]);
        assert_eq!(rules("FROM scratch\nCOPY a b\nADD http://h/c d", "a\n!a/x\nhttp*"), [""; 0]);
    }

    #[test]
    fn an_error_names_all_rules_at_the_first_place() {
        let text = b"# check=error=true\nFROM scratch AS A\nMAINTAINER x";
        let file = Dockerfile::parse("D", text).expect("valid");
        let context = tempfile::tempdir().expect("a directory");
        let checked = check_file(&file, &BuildRequest::new(file.source.clone(), context.path())).expect("checked");
        let error = checked.error(&file).expect("an error");
        assert_eq!(error.place.line, 2);
        assert!(error.message.ends_with("MaintainerDeprecated, StageNameCasing"), "{}", error.message);
    }
}
