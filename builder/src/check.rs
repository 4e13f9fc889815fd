//! All build checks of a request: those of the text alone, and those that need the variables or the build context.
//!
//! Invariant: nothing is built or fetched. A base image that the caller does not know is not asked for: its variables
//! are unknown, so nothing on top of it is called undefined. <https://docs.docker.com/reference/build-checks/>

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use registry_client::{Platform, Reference};

use crate::context::Patterns;
use crate::dockerfile::{
    CheckOptions, Dockerfile, DockerfileError, Expander, FileSource, Files, Instruction, Rule, Span, Stage, Warning,
    Word, finish, lint, lint_before,
};
use crate::error::BuildError;
use crate::image::ImageConfig;
use crate::origins;
use crate::plan::{PLATFORM_ARGUMENTS, Plan, globals};
use crate::request::BuildRequest;
use crate::step::config::PROXY_ARGUMENTS;

/// What the checks found.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The findings, by place.
    pub warnings: Vec<Warning>,
    /// What makes it impossible to build the Dockerfile as it stands: a mistake, or findings if `# check=error=true`
    /// says so.
    pub error: Option<DockerfileError>,
}

/// Looks up the configuration of a base image, by its name in FROM; `None` if it is not at hand.
pub type Bases<'a> = &'a dyn Fn(&str) -> Result<Option<ImageConfig>, BuildError>;

/// Checks a Dockerfile without building it: all stages, or those that the target needs.
///
/// # Errors
/// A Dockerfile whose syntax is wrong, or an ignore file that cannot be read.
pub fn check(request: &BuildRequest, bases: Bases<'_>) -> Result<Checked, BuildError> {
    let (file, mistake) = Dockerfile::parse_as_far_as_possible(request.dockerfile.name(), request.dockerfile.bytes())?;
    if let Some(mistake) = mistake {
        return before_mistake(&file, mistake, request);
    }
    let plan = Plan::of_text(&file, request, request.platforms.first().unwrap_or(&request.build_platform));
    let (built, impossible) = match plan {
        Ok(plan) => (request.target.as_ref().map(|_| plan.needed()), None),
        Err(BuildError::Dockerfile(error)) => (None, Some(error)),
        Err(other) => return Err(other),
    };
    let checked = check_stages(&file, request, bases, built.as_ref())?;
    Ok(Checked { error: checked.error.or(impossible), ..checked })
}

/// Checks a Dockerfile that is about to be built, and parses it.
pub(crate) fn check_file(request: &BuildRequest, bases: Bases<'_>) -> Result<(Dockerfile, Checked), BuildError> {
    let (file, mistake) = Dockerfile::parse_as_far_as_possible(request.dockerfile.name(), request.dockerfile.bytes())?;
    let checked = match mistake {
        Some(mistake) => before_mistake(&file, mistake, request)?,
        None => check_stages(&file, request, bases, built_stages(&file, request).as_ref())?,
    };
    Ok((file, checked))
}

/// What was found before the mistake; it is told together with that.
fn before_mistake(file: &Dockerfile, mistake: DockerfileError, request: &BuildRequest) -> Result<Checked, BuildError> {
    let warnings = finish(file, &options(file, request)?, lint_before(file, &mistake)?)?;
    Ok(Checked { warnings, error: Some(mistake) })
}

fn check_stages(
    file: &Dockerfile,
    request: &BuildRequest,
    bases: Bases<'_>,
    built: Option<&BTreeSet<usize>>,
) -> Result<Checked, BuildError> {
    let options = options(file, request)?;
    let mut checker = Checker { file, request, bases, warnings: lint(file)? };
    checker.global_arguments();
    checker.default_arguments();
    checker.stages()?;
    checker.ignored_files()?;
    let mut warnings = finish(file, &options, checker.warnings)?;
    // Stages follow each other: the one that a place is in is the last that begins before it.
    let stage_at = |at| file.stages.iter().rposition(|stage| stage.from.span.start <= at);
    let is_built = |warning: &Warning| match (built, stage_at(warning.span.start)) {
        (Some(built), Some(stage)) => built.contains(&stage),
        _ => true,
    };
    warnings.retain(|warning| !warning.rule.is_about_built_stages() || is_built(warning));
    let error = warnings.first().filter(|_| options.is_error).map(|first| violation(file, first, &warnings));
    Ok(Checked { warnings, error })
}

/// The variables that a stage uses and nobody set, once it is known what the stage begins with: its variables are
/// `set`.
pub(crate) fn undefined_variables<'n>(
    file: &Dockerfile,
    request: &BuildRequest,
    index: usize,
    set: impl Iterator<Item = &'n str>,
) -> Result<Checked, BuildError> {
    let options = options(file, request)?;
    let mut checker = Checker { file, request, bases: &|_| Ok(None), warnings: Vec::new() };
    let mut names: Names = set.chain(PROXY_ARGUMENTS).chain(["PATH"]).map(str::to_owned).collect();
    // Arguments without a value count, too.
    let mut at = index;
    while let Some(base) = checker.base_stage(&file.stages[at], at) {
        let arguments = file.stages[base].instructions.iter().filter_map(|placed| match &placed.value {
            Instruction::Arg(arguments) => Some(arguments),
            _ => None,
        });
        names.extend(arguments.flatten().map(|argument| argument.name.text.clone()));
        at = base;
    }
    checker.stage(&file.stages[index], names, true);
    let warnings = finish(file, &options, checker.warnings)?;
    let error = warnings.first().filter(|_| options.is_error).map(|first| violation(file, first, &warnings));
    Ok(Checked { warnings, error })
}

/// The error that findings are if the Dockerfile says so.
fn violation(file: &Dockerfile, first: &Warning, warnings: &[Warning]) -> DockerfileError {
    let rules: BTreeSet<&str> = warnings.iter().map(|warning| warning.rule.name()).collect();
    let rules: Vec<&str> = rules.into_iter().collect();
    file.source.error(first.span, format!("lint violation found for rules: {}", rules.join(", ")))
}

/// The stages that the target needs; unknown if the file cannot be built at all, which is told elsewhere.
fn built_stages(file: &Dockerfile, request: &BuildRequest) -> Option<BTreeSet<usize>> {
    let plan = Plan::of_text(file, request, request.platforms.first()?).ok()?;
    Some(plan.needed())
}

/// What the build argument says, else `# check=`.
fn options(file: &Dockerfile, request: &BuildRequest) -> Result<CheckOptions, BuildError> {
    /// <https://docs.docker.com/reference/dockerfile/#buildkit-built-in-build-args>
    const ARGUMENT: &str = "BUILDKIT_DOCKERFILE_CHECK";
    if let Some(text) = request.build_args.get(ARGUMENT) {
        return CheckOptions::parse(text).map_err(|error| BuildError::Request(format!("{ARGUMENT}: {error}")));
    }
    let Some(word) = &file.directives.check else { return Ok(CheckOptions::default()) };
    Ok(CheckOptions::parse(&word.text).map_err(|message| file.source.error(word.span, message))?)
}

/// The finding that only a build can make: a base image for another machine than the stage is for.
pub(crate) fn base_platform(
    file: &Dockerfile,
    request: &BuildRequest,
    image: &str,
    config: &ImageConfig,
    wanted: &Platform,
) -> Option<String> {
    const RULE: Rule = Rule::InvalidBaseImagePlatform;
    let found = Platform::new(&config.os, &config.architecture, config.variant.as_deref());
    let is_fitting = found.os() == wanted.os() && found.architecture() == wanted.architecture();
    let is_skipped = options(file, request).is_ok_and(|options| !options.allows(RULE));
    (!is_fitting && !is_skipped).then(|| {
        format!(
            "{RULE}: Base image {image} was pulled with platform \"{found}\", expected \"{wanted}\" for current build"
        )
    })
}

struct Checker<'a> {
    file: &'a Dockerfile,
    request: &'a BuildRequest,
    bases: Bases<'a>,
    warnings: Vec<Warning>,
}

/// Names that are set at a place.
type Names = BTreeSet<String>;

impl Checker<'_> {
    fn warn(&mut self, rule: Rule, span: Span, message: String) {
        self.warnings.push(Warning { rule, span, lines: (0, 0), message });
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
                    let hint =
                        nearest(&name, &names).map(|near| format!(" (did you mean {near}?)")).unwrap_or_default();
                    let message = format!("FROM argument '{name}' is not declared{hint}");
                    self.warn(Rule::UndefinedArgInFrom, word.span, message);
                }
            }
        }
    }

    /// FROM should name an image also when no build argument is given.
    fn default_arguments(&mut self) {
        let plain = BuildRequest { build_args: BTreeMap::new(), ..self.request.clone() };
        let Some(platform) = plain.platforms.first() else { return };
        // What cannot be expanded fails the build by itself.
        let Ok(values) = globals(self.file, &plain, platform) else { return };
        let lookup = |name: &str| values.get(name).cloned();
        let expander = Expander::new(self.file.directives.escape, &lookup);
        for stage in &self.file.stages {
            let image = &stage.from.value.image;
            let Ok(name) = expander.expand(&image.text) else { return };
            if name.parse::<Reference>().is_err() {
                let message =
                    format!("Default value for ARG {} results in empty or invalid base image name", image.text);
                self.warn(Rule::InvalidDefaultArgInFrom, image.span, message);
            }
        }
    }

    fn stages(&mut self) -> Result<(), BuildError> {
        // What a stage that stands on an earlier one inherits; `None` where an unknown image lies below.
        let mut known: Vec<Option<Names>> = Vec::new();
        // Those in which the working directory no longer depends on the base image.
        let mut with_directory = BTreeSet::new();
        for (index, stage) in self.file.stages.iter().enumerate() {
            let inherited = self.inherited(stage, &known)?;
            let is_known = inherited.is_some();
            let names = self.stage(stage, inherited.unwrap_or_default(), is_known);
            known.push(is_known.then_some(names));
            let has_directory = self.base_stage(stage, index).is_some_and(|base| with_directory.contains(&base));
            if self.working_directory(stage, has_directory) {
                with_directory.insert(index);
            }
        }
        Ok(())
    }

    /// The stage among the first `count` that another stands on.
    fn base_stage(&self, stage: &Stage, count: usize) -> Option<usize> {
        let base = &stage.from.value.image.text;
        let is_base = |other: &Stage| other.from.value.name.as_ref().is_some_and(|name| name.text == *base);
        self.file.stages[..count].iter().rposition(is_base)
    }

    /// Only the first WORKDIR is told about: with it the others are mended.
    fn working_directory(&mut self, stage: &Stage, has_directory: bool) -> bool {
        let mut words = stage.instructions.iter().filter_map(|placed| match &placed.value {
            Instruction::Workdir(word) => Some(word),
            _ => None,
        });
        let Some(first) = words.next() else { return has_directory };
        if !has_directory && !first.text.starts_with(['/', '$']) {
            let message =
                format!("Relative workdir \"{}\" can have unexpected results if the base image changes", first.text);
            self.warn(Rule::WorkdirRelativePath, first.span, message);
        }
        true
    }

    fn inherited(&self, stage: &Stage, known: &[Option<Names>]) -> Result<Option<Names>, BuildError> {
        let base = &stage.from.value.image.text;
        if self.request.platforms.first().is_some_and(|target| self.request.named_context(base, target).is_some()) {
            return Ok(None);
        }
        let always = || PROXY_ARGUMENTS.into_iter().chain(["PATH"]).map(str::to_owned);
        Ok(match self.base_stage(stage, known.len()) {
            Some(index) => known[index].clone(),
            None if base == "scratch" => Some(always().collect()),
            None => (self.bases)(base)?.map(|config| {
                let set = config.config.env.iter().map(|entry| entry.split('=').next().unwrap_or_default().to_owned());
                set.chain(always()).collect()
            }),
        })
    }

    /// Walks the instructions of a stage, and gives the names that are set at its end.
    fn stage(&mut self, stage: &Stage, mut names: Names, is_known: bool) -> Names {
        for placed in &stage.instructions {
            if is_known {
                for word in words(&placed.value) {
                    for name in self.unset(word, &names) {
                        let hint =
                            nearest(&name, &names).map(|near| format!(" (did you mean ${near}?)")).unwrap_or_default();
                        let message = format!("Usage of undefined variable '${name}'{hint}");
                        self.warn(Rule::UndefinedVar, word.span, message);
                    }
                }
            }
            match &placed.value {
                Instruction::Arg(arguments) => names.extend(arguments.iter().map(|one| one.name.text.clone())),
                Instruction::Env(pairs) => names.extend(pairs.iter().map(|pair| pair.name.text.clone())),
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

    /// Only where the ignore file takes nothing back: what is below an excluded directory may be there otherwise.
    fn ignored_files(&mut self) -> Result<(), BuildError> {
        // As in BuildKit, what was fetched has no ignore file.
        let Some(context) = self.request.context.directory() else { return Ok(()) };
        let patterns = origins::ignore_patterns(context, self.request.dockerfile_path.as_deref())?;
        if patterns.is_empty() || patterns.takes_back() {
            return Ok(());
        }
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
            if word.text.contains(['$', '"', '\'', '\\']) || word.text.contains("://") {
                continue;
            }
            let path = crate::changeset::clean(word.text.as_bytes());
            // The context itself is excluded only by a pattern that excludes all of it.
            let probe = if path.is_empty() { b"\0" } else { path.as_slice() };
            if patterns.path(probe).is_excluded() {
                let shown = if path.is_empty() { ".".into() } else { String::from_utf8_lossy(&path) };
                let message = format!("Attempting to {action} file {shown:?} that is excluded by .dockerignore");
                self.warn(Rule::CopyIgnoredFile, word.span, message);
            }
        }
    }
}

/// The name that was probably meant: fewer than three letters are to be changed, put in or left out.
fn nearest<'n>(name: &str, names: &'n Names) -> Option<&'n str> {
    names
        .iter()
        .map(|other| (distance(name, other), other.as_str()))
        .filter(|(far, _)| *far < 3)
        .min()
        .map(|near| near.1)
}

/// Levenshtein's distance. Names of variables are short, and longer ones are no misspelling.
fn distance(a: &str, b: &str) -> usize {
    if a.len().max(b.len()) > 128 {
        return usize::MAX;
    }
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, right) in b.iter().enumerate() {
            let changed = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
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
        check(&request, &|_| Ok(None)).expect(text).warnings.into_iter().map(|warning| warning.rule.name()).collect()
    }

    fn messages(text: &str) -> Vec<String> {
        let context = tempfile::tempdir().expect("a directory");
        let request = BuildRequest::new(Source::new("D", text.as_bytes()), context.path());
        check(&request, &|_| Ok(None)).expect(text).warnings.into_iter().map(|warning| warning.message).collect()
    }

    #[test]
    fn a_name_that_is_nearly_right_is_suggested() {
        assert_eq!(
            messages("FROM --platform=$BULIDPLATFORM scratch"),
            ["FROM argument 'BULIDPLATFORM' is not declared (did you mean BUILDPLATFORM?)"]
        );
        assert_eq!(
            messages("FROM scratch\nARG DIR_ASSETS=a\nCOPY $DIR_ASSET ."),
            ["Usage of undefined variable '$DIR_ASSET' (did you mean $DIR_ASSETS?)"]
        );
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn a_base_without_its_argument_is_no_image() {
        assert_eq!(rules("ARG VERSION\nFROM busybox:$VERSION", ""), ["InvalidDefaultArgInFrom"]);
        assert_eq!(rules("ARG IMAGE\nFROM $IMAGE", ""), ["InvalidDefaultArgInFrom"]);
        assert_eq!(rules("ARG SFX=\"box:\"\nFROM busy${SFX}", ""), ["InvalidDefaultArgInFrom"]);
        assert_eq!(rules("ARG VERSION=1 V=\nFROM busybox:${VERSION}$V\nFROM x:${W:-1}", ""), [""; 0]);
    }

    #[test]
    fn what_is_not_built_is_checked_only_without_a_target() {
        let text = "FROM scratch AS a\nCOPY $x .\nFROM scratch AS b\nCOPY $y .";
        assert_eq!(rules(text, ""), ["UndefinedVar"; 2]);
        let mut request = BuildRequest::new(Source::new("D", text.as_bytes()), "/nowhere");
        request.target = Some("a".to_owned());
        let found = check(&request, &|_| Ok(None)).expect("checked").warnings;
        assert_eq!(found.iter().map(|warning| warning.lines.0).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn variables_of_a_base_at_hand_are_known() {
        let request = BuildRequest::new(Source::new("D", b"FROM base\nCOPY $A $B"), "/nowhere");
        let base = |_: &str| {
            let mut config = ImageConfig::scratch(&"linux/amd64".parse().expect("a platform"));
            config.config.env = vec!["A=1".to_owned()];
            Ok(Some(config))
        };
        let found = check(&request, &base).expect("checked").warnings;
        assert_eq!(
            found.iter().map(|warning| warning.message.as_str()).collect::<Vec<_>>(),
            ["Usage of undefined variable '$B' (did you mean $A?)"]
        );
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
        assert_eq!(rules("FROM x${TAG}", ""), ["UndefinedArgInFrom"]);
        assert_eq!(rules("FROM x:$TAG", ""), ["UndefinedArgInFrom", "InvalidDefaultArgInFrom"]);
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
        assert_eq!(rules("FROM scratch\nCOPY . .", ".*"), [""; 0]);
        assert_eq!(rules("FROM scratch\nCOPY . .", "*"), ["CopyIgnoredFile"]);
    }

    #[test]
    fn what_is_found_before_a_mistake_is_told_with_it() {
        let text = "FROM scratch AS Bad\nMAINTAINER x\nworkdir a\nBADCMD\nMAINTAINER y";
        let context = tempfile::tempdir().expect("a directory");
        let request = BuildRequest::new(Source::new("D", text.as_bytes()), context.path());
        let checked = check(&request, &|_| Ok(None)).expect("checked");
        let found: Vec<_> = checked.warnings.iter().map(|warning| warning.rule.name()).collect();
        assert_eq!(found, ["StageNameCasing", "MaintainerDeprecated"]);
        assert_eq!(checked.error.expect("a mistake").message, "unknown instruction: BADCMD");
        // What makes a build impossible is told as well.
        let request = BuildRequest::new(Source::new("D", b"FROM --platform=$BULIDPLATFORM scratch"), context.path());
        let error = check(&request, &|_| Ok(None)).expect("checked").error.expect("a mistake");
        let expected = "empty platform value from expression $BULIDPLATFORM (did you mean BUILDPLATFORM?)";
        assert_eq!(error.message, expected);
    }

    #[test]
    fn only_the_first_relative_directory_is_told_about_and_a_stage_inherits_it() {
        assert_eq!(rules("FROM scratch\nWORKDIR a\nWORKDIR b", ""), ["WorkdirRelativePath"]);
        assert_eq!(rules("FROM scratch AS a\nWORKDIR /a\nFROM a AS b\nWORKDIR b\nFROM b\nWORKDIR c", ""), [""; 0]);
    }

    #[test]
    fn an_error_names_all_rules_at_the_first_place() {
        let text = b"# check=error=true\nFROM scratch AS A\nMAINTAINER x";
        let context = tempfile::tempdir().expect("a directory");
        let request = BuildRequest::new(Source::new("D", text), context.path());
        let (_, checked) = check_file(&request, &|_| Ok(None)).expect("checked");
        let error = checked.error.expect("an error");
        assert_eq!(error.place.line, 2);
        assert!(error.message.ends_with("MaintainerDeprecated, StageNameCasing"), "{}", error.message);
    }
}
