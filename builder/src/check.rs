//! All build checks of a request: those of the text alone, and those that need the variables or the build context.
//!
//! Invariant: nothing is built or fetched. A base image that the caller does not know is not asked for: its variables
//! are unknown, so nothing on top of it is called undefined. <https://docs.docker.com/reference/build-checks/>

use std::collections::{BTreeMap, BTreeSet};

use registry_client::{Platform, Reference};

use crate::context::Patterns;
use crate::dockerfile::{
    Below, CheckOptions, Dockerfile, DockerfileError, Expander, ExpansionError, FileSource, Files, Instruction, Rule,
    Span, Stage, Warning, Word, finish, lint, lint_before,
};
use crate::error::BuildError;
use crate::fetch::SourceKind;
use crate::image::ImageConfig;
use crate::origins;
use crate::plan::{Plan, globals};
use crate::request::BuildRequest;
use crate::surroundings::{Names, Surroundings, Text, texts};

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
    let mut checker = Checker::new(file, request);
    checker.ignored = ignored_files(request)?;
    checker.global_arguments();
    checker.default_arguments();
    let configs = checker.configs(bases)?;
    let below: Vec<Below> = checker.below.iter().zip(&configs).map(with_shell).collect();
    checker.warnings.extend(lint(file, &below)?);
    checker.stages(&configs)?;
    let Checker { warnings, mistakes, .. } = checker;
    // Stages follow each other: the one that a place is in is the last that begins before it.
    let stage_at = |at| file.stages.iter().rposition(|stage| stage.from.span.start <= at);
    let is_built = |span: Span| match (built, stage_at(span.start)) {
        (Some(built), Some(stage)) => built.contains(&stage),
        _ => true,
    };
    let counts = |warning: &Warning| !warning.rule.is_about_built_stages() || is_built(warning.span);
    let checked = checked(file, request, warnings.into_iter().filter(counts).collect())?;
    let mistake = mistakes.into_iter().find(|(span, _)| is_built(*span));
    let mistake = mistake.map(|(span, mistake)| file.source.error(span, mistake.to_string()));
    Ok(Checked { error: mistake.or(checked.error), ..checked })
}

/// What is left of findings, and the error that they are if the Dockerfile says so.
fn checked(file: &Dockerfile, request: &BuildRequest, warnings: Vec<Warning>) -> Result<Checked, BuildError> {
    let options = options(file, request)?;
    let warnings = finish(file, &options, warnings)?;
    let error = warnings.first().filter(|_| options.is_error).map(|first| violation(file, first, &warnings));
    Ok(Checked { warnings, error })
}

fn with_shell((below, config): (&Below, &Option<ImageConfig>)) -> Below {
    match (below, config) {
        (Below::Other { .. }, Some(config)) => Below::Other { has_shell: !config.config.shell.is_empty() },
        _ => *below,
    }
}

/// The variables that a stage uses and nobody set, once it is known what the stage begins with: its variables are
/// `set`.
pub(crate) fn undefined_variables(
    file: &Dockerfile,
    request: &BuildRequest,
    index: usize,
    set: &[(String, String)],
) -> Result<Checked, BuildError> {
    let mut checker = Checker::new(file, request);
    checker.is_only_about_variables = true;
    let set = set.iter().map(|(name, value)| (name.clone(), Some(value.as_str().into()))).collect();
    let mut found = Surroundings { set, is_known: true, ..Surroundings::default() };
    // Arguments without a value count, too.
    let mut at = index;
    while let Below::Stage(base) = checker.below[at] {
        let arguments = file.stages[base].instructions.iter().filter_map(|placed| match &placed.value {
            Instruction::Arg(arguments) => Some(arguments),
            _ => None,
        });
        found.declared.extend(arguments.flatten().map(|argument| argument.name.text.clone()));
        at = base;
    }
    checker.stage(&file.stages[index], &mut found)?;
    checked(file, request, checker.warnings)
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
    Ok(CheckOptions::of_directive(&word.text).map_err(|message| file.source.error(word.span, message))?)
}

/// The finding that only a build can make: a base image for another machine than the stage is for.
pub(crate) fn base_platform(
    file: &Dockerfile,
    request: &BuildRequest,
    stage: &Stage,
    config: &ImageConfig,
    wanted: &Platform,
) -> Result<Checked, BuildError> {
    let found = Platform::new(&config.os, &config.architecture, config.variant.as_deref());
    let is_fitting = found.os() == wanted.os() && found.architecture() == wanted.architecture();
    let image = &stage.from.value.image;
    let warning = || Warning {
        rule: Rule::InvalidBaseImagePlatform,
        span: image.span,
        lines: (0, 0),
        message: format!(
            "Base image {} was pulled with platform \"{found}\", expected \"{wanted}\" for current build",
            image.text
        ),
    };
    checked(file, request, (!is_fitting).then(warning).into_iter().collect())
}

struct Checker<'a> {
    file: &'a Dockerfile,
    request: &'a BuildRequest,
    /// What FROM sees; `None` if that cannot be expanded, which fails the build by itself.
    globals: Option<BTreeMap<String, String>>,
    /// What FROM names, expanded, by stage.
    images: Vec<String>,
    below: Vec<Below>,
    /// What the ignore file excludes, where that is certain.
    ignored: Option<Patterns>,
    is_only_about_variables: bool,
    warnings: Vec<Warning>,
    /// What cannot be expanded.
    mistakes: Vec<(Span, ExpansionError)>,
}

impl<'a> Checker<'a> {
    fn new(file: &'a Dockerfile, request: &'a BuildRequest) -> Self {
        let globals = globals(file, request, target(request)).ok();
        let lookup = |name: &str| globals.as_ref()?.get(name).cloned();
        let expander = Expander::new(file.directives.escape, &lookup);
        let image = |stage: &Stage| {
            let text = &stage.from.value.image.text;
            expander.expand(text).unwrap_or_else(|_| text.clone())
        };
        let images: Vec<String> = file.stages.iter().map(image).collect();
        let below = |(index, image): (usize, &String)| {
            let is_base = |other: &Stage| other.from.value.name.as_ref().is_some_and(|name| name.text == *image);
            let stage = file.stages[..index].iter().rposition(is_base);
            stage.map_or(Below::Other { has_shell: false }, Below::Stage)
        };
        let below = images.iter().enumerate().map(below).collect();
        let (ignored, is_only_about_variables, warnings, mistakes) = (None, false, Vec::new(), Vec::new());
        Self { file, request, globals, images, below, ignored, is_only_about_variables, warnings, mistakes }
    }

    fn warn(&mut self, rule: Rule, span: Span, message: String) {
        self.warnings.push(Warning { rule, span, lines: (0, 0), message });
    }

    /// FROM sees the global ARGs and the platform arguments, and nothing else.
    fn global_arguments(&mut self) {
        let Some(globals) = &self.globals else { return };
        let arguments = self.file.global_arguments.iter().flat_map(|placed| &placed.value);
        let seen = Surroundings {
            set: globals.iter().map(|(name, value)| (name.clone(), Some(value.as_str().into()))).collect(),
            declared: arguments.map(|argument| argument.name.text.clone()).collect(),
            is_known: true,
            ..Surroundings::default()
        };
        for stage in &self.file.stages {
            let from = &stage.from.value;
            for word in from.platform.iter().chain([&from.image]) {
                for name in seen.expand(self.file.directives.escape, Text::Word(&word.text)).unset {
                    let near = nearest(&name, seen.set.keys().chain(&seen.declared));
                    let hint = near.map(|near| format!(" (did you mean {near}?)")).unwrap_or_default();
                    let message = format!("FROM argument '{name}' is not declared{hint}");
                    self.warn(Rule::UndefinedArgInFrom, word.span, message);
                }
            }
        }
    }

    /// FROM should name an image also when no build argument is given.
    fn default_arguments(&mut self) {
        let plain = BuildRequest { build_args: BTreeMap::new(), ..self.request.clone() };
        // What cannot be expanded fails the build by itself.
        let Ok(values) = globals(self.file, &plain, target(&plain)) else { return };
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

    /// The configurations of the images that stages begin with; `None` for another stage, and for one not at hand.
    fn configs(&self, bases: Bases<'_>) -> Result<Vec<Option<ImageConfig>>, BuildError> {
        let config = |(image, below): (&String, &Below)| match below {
            Below::Stage(_) => Ok(None),
            Below::Other { .. } if image == "scratch" => Ok(Some(ImageConfig::scratch(target(self.request)))),
            Below::Other { .. } => bases(image),
        };
        self.images.iter().zip(&self.below).map(config).collect()
    }

    fn stages(&mut self, configs: &[Option<ImageConfig>]) -> Result<(), BuildError> {
        let mut ends: Vec<Surroundings> = Vec::new();
        for (stage, (below, config)) in self.file.stages.iter().zip(self.below.clone().iter().zip(configs)) {
            let mut surroundings = match *below {
                Below::Stage(index) => ends[index].clone(),
                Below::Other { .. } => Surroundings::on_image(config.as_ref()),
            };
            self.stage(stage, &mut surroundings)?;
            ends.push(surroundings);
        }
        Ok(())
    }

    /// Walks the instructions of a stage, and leaves what is set at its end.
    fn stage(&mut self, stage: &Stage, surroundings: &mut Surroundings) -> Result<(), BuildError> {
        let escape = self.file.directives.escape;
        for placed in &stage.instructions {
            for (span, text) in texts(&placed.value, placed.span) {
                let expanded = surroundings.expand(escape, text);
                self.mistakes.extend(expanded.mistake.map(|mistake| (span, mistake)));
                self.undefined(expanded.unset, span, surroundings);
            }
            match &placed.value {
                Instruction::Arg(arguments) => {
                    for argument in arguments {
                        let name = &argument.name.text;
                        let global = self.globals.as_ref().and_then(|globals| globals.get(name));
                        let unset = surroundings.declare(escape, argument, self.request.build_args.get(name), global);
                        self.undefined(unset, argument.name.span, surroundings);
                    }
                }
                Instruction::Env(pairs) => surroundings.set_all(escape, pairs),
                _ if self.is_only_about_variables => {}
                Instruction::Workdir(word) => self.working_directory(word, surroundings),
                Instruction::Copy(copy) if copy.from.is_none() => self.ignored(&copy.files, "Copy", surroundings),
                Instruction::Add(add) => self.ignored(&add.files, "Add", surroundings),
                _ => {}
            }
        }
        Ok(())
    }

    fn undefined(&mut self, unset: Names, span: Span, surroundings: &Surroundings) {
        for name in unset {
            let near = nearest(&name, surroundings.set.keys());
            let hint = near.map(|near| format!(" (did you mean ${near}?)")).unwrap_or_default();
            self.warn(Rule::UndefinedVar, span, format!("Usage of undefined variable '${name}'{hint}"));
        }
    }

    /// Only the first WORKDIR is told about: with it the others are mended.
    fn working_directory(&mut self, word: &Word, surroundings: &mut Surroundings) {
        let path = surroundings.expand(self.file.directives.escape, Text::Word(&word.text)).text;
        let is_first = !std::mem::replace(&mut surroundings.has_directory, true);
        if let Some(path) = path.filter(|path| is_first && !path.starts_with('/')) {
            let message = format!("Relative workdir {path:?} can have unexpected results if the base image changes");
            self.warn(Rule::WorkdirRelativePath, word.span, message);
        }
    }

    fn ignored(&mut self, files: &Files, action: &str, surroundings: &Surroundings) {
        let Some(patterns) = self.ignored.take() else { return };
        for source in &files.sources {
            let FileSource::Path(word) = source else { continue };
            let text = surroundings.expand(self.file.directives.escape, Text::Word(&word.text)).text;
            let Some(text) = text.filter(|text| matches!(SourceKind::of(text), Ok(SourceKind::Local))) else {
                continue;
            };
            // One from the root is the same to COPY, but as in BuildKit not to the patterns.
            let root = if text.starts_with('/') { "/" } else { "" };
            let path = [root.as_bytes(), &crate::paths::clean(text.as_bytes())].concat();
            // The context itself is excluded only by a pattern that excludes all of it.
            let is_context = path.is_empty() || path == b"/";
            let probe = if is_context { b"\0" } else { path.as_slice() };
            if patterns.path(probe).is_excluded() {
                let shown = if path.is_empty() { ".".into() } else { String::from_utf8_lossy(&path) };
                let message = format!("Attempting to {action} file {shown:?} that is excluded by .dockerignore");
                self.warn(Rule::CopyIgnoredFile, word.span, message);
            }
        }
        self.ignored = Some(patterns);
    }
}

/// What the first image is built for.
fn target(request: &BuildRequest) -> &Platform {
    request.platforms.first().unwrap_or(&request.build_platform)
}

/// What the context's ignore file excludes; only where it takes nothing back: what is below an excluded directory may
/// be there otherwise.
fn ignored_files(request: &BuildRequest) -> Result<Option<Patterns>, BuildError> {
    // As in BuildKit, what was fetched has no ignore file.
    let Some(context) = request.context.directory() else { return Ok(None) };
    let patterns = origins::ignore_patterns(context, request.dockerfile_path.as_deref())?;
    Ok(Some(patterns).filter(|patterns| !patterns.is_empty() && !patterns.takes_back()))
}

/// The name that was probably meant: fewer than three letters are to be changed, put in or left out.
fn nearest<'n>(name: &str, names: impl Iterator<Item = &'n String>) -> Option<&'n str> {
    let near = names.map(|other| (distance(name, other), other.as_str())).filter(|(far, _)| *far < 3);
    near.min().map(|near| near.1)
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
        assert_eq!(rules("ARG VERSION=1 V=\nFROM busybox:${VERSION}$V\nFROM x:${V:-1}", ""), [""; 0]);
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
        assert_eq!(rules("FROM scratch\nARG a\nLABEL x=$a y=${a:-1} z='$c' w=$PATH", ""), [""; 0]);
        assert_eq!(rules("FROM scratch\nARG a=1 b=$a\nENV c=$b\nARG BUILDKIT_SBOM_SCAN_STAGE\nUSER $c", ""), [""; 0]);
        // Neither a default nor that the name is one of a proxy says that it is set.
        assert_eq!(rules("FROM scratch\nLABEL y=${b:-1} w=$HTTP_PROXY $z=1", ""), ["UndefinedVar"; 3]);
        assert_eq!(rules("FROM scratch\nENV a=$a", ""), ["UndefinedVar"]);
        assert_eq!(rules("FROM other\nCOPY $a b", ""), [""; 0]);
        assert_eq!(rules("# check=skip=UndefinedVar\nFROM scratch\nCOPY $a b", ""), [""; 0]);
    }

    #[test]
    fn variables_are_looked_for_where_buildkit_tells_of_them() {
        for text in ["COPY <<E /\n$a\nE", "RUN --mount=target=/x,source=$a true", "ADD --checksum=$a http://h/f /"] {
            assert_eq!(rules(&format!("FROM scratch\n{text}"), ""), ["UndefinedVar"], "{text}");
        }
        for text in [
            "EXPOSE $a",
            "COPY <<E /\n$(a)\nE",
            "LABEL a='$(b) $'",
            "COPY <<'E' /\n$a\nE",
            "COPY --exclude=$a b c",
            "RUN $a",
            "STOPSIGNAL '$a'",
        ] {
            assert_eq!(rules(&format!("FROM scratch\n{text}"), ""), [""; 0], "{text}");
        }
        // A default that is not needed is not looked at.
        let mut request = BuildRequest::new(Source::new("D", b"FROM scratch\nARG A=$b"), "/nowhere");
        request.build_args.insert("A".into(), "1".into());
        assert_eq!(check(&request, &|_| Ok(None)).expect("checked").warnings, []);
    }

    #[test]
    fn what_cannot_be_expanded_is_told_where_it_is_certain() {
        let error = |text: &str, target: Option<&str>| {
            let mut request = BuildRequest::new(Source::new("D", text.as_bytes()), "/nowhere");
            request.target = target.map(str::to_owned);
            check(&request, &|_| Ok(None)).expect("checked").error.map(|error| (error.place.line, error.message))
        };
        let unset = (3, "A: is not allowed to be unset".to_owned());
        assert_eq!(error("FROM scratch AS a\nARG A\nENV B=${A?}\nFROM a", None), Some(unset));
        assert_eq!(error("FROM scratch AS a\nFROM scratch\nUSER ${A?}", Some("a")), None);
        assert_eq!(error("FROM other\nUSER ${A?}", None), None);
    }

    #[test]
    fn values_that_double_are_forgotten() {
        let text = format!("FROM scratch\nENV a=aaaaaaaa b=b\n{}WORKDIR $a", "ENV a=$a$a b=$b\n".repeat(300));
        assert_eq!(rules(&text, ""), [""; 0]);
    }

    #[test]
    fn a_shell_is_inherited_from_another_stage_and_from_an_image() {
        assert_eq!(rules("FROM a AS b\nSHELL [\"/x\"]\nFROM b\nCMD c", ""), [""; 0]);
        assert_eq!(rules("FROM a AS b\nSHELL [\"/x\"]\nFROM a\nCMD c", ""), ["JSONArgsRecommended"]);
        let request = BuildRequest::new(Source::new("D", b"ARG I=base\nFROM $I AS b\nFROM b\nCMD c"), "/nowhere");
        let base = |name: &str| {
            let mut config = ImageConfig::scratch(&"linux/amd64".parse().expect("a platform"));
            config.config.shell = vec!["/x".to_owned()];
            Ok((name == "base").then_some(config))
        };
        assert_eq!(check(&request, &base).expect("checked").warnings, []);
    }

    #[test]
    fn an_image_for_another_machine_is_an_error_where_findings_are() {
        let checked = |text: &str| {
            let request = BuildRequest::new(Source::new("D", text.as_bytes()), "/nowhere");
            let file = Dockerfile::parse("D", text.as_bytes()).expect(text);
            let [found, wanted] = ["linux/arm64", "linux/amd64"].map(|name| name.parse().expect("a platform"));
            base_platform(&file, &request, &file.stages[0], &ImageConfig::scratch(&found), &wanted).expect("checked")
        };
        let found = checked("# check=error=true\nFROM base");
        assert!(found.error.expect("an error").message.ends_with("InvalidBaseImagePlatform"));
        assert!(found.warnings[0].message.contains("pulled with platform \"linux/arm64\", expected \"linux/amd64\""));
        assert_eq!(checked("# check=error=true;skip=InvalidBaseImagePlatform\nFROM base").warnings, []);
    }

    #[test]
    fn from_knows_only_global_arguments() {
        assert_eq!(rules("FROM x${TAG}", ""), ["UndefinedArgInFrom"]);
        assert_eq!(rules("FROM x:${TAG:-1}", ""), ["UndefinedArgInFrom"]);
        assert_eq!(rules("FROM x:$TAG", ""), ["UndefinedArgInFrom", "InvalidDefaultArgInFrom"]);
        assert_eq!(rules("ARG TAG=1\nFROM --platform=$BUILDPLATFORM x:$TAG", ""), [""; 0]);
    }

    #[test]
    fn a_relative_directory_needs_an_absolute_one_first() {
        assert_eq!(rules("FROM a\nWORKDIR b", ""), ["WorkdirRelativePath"]);
        assert_eq!(rules("FROM a\nWORKDIR /b\nWORKDIR c", ""), [""; 0]);
        assert_eq!(rules("FROM a\nWORKDIR \"/b\"\nWORKDIR c", ""), [""; 0]);
        assert_eq!(rules("FROM scratch\nARG R=/r\nWORKDIR ${R}/b", ""), [""; 0]);
        assert_eq!(
            messages("FROM scratch\nARG R=r\nWORKDIR $R"),
            ["Relative workdir \"r\" can have unexpected results if the base image changes"]
        );
        // What the base image sets is not known.
        assert_eq!(rules("FROM a\nWORKDIR $R\nENV S=$R\nWORKDIR $S", ""), [""; 0]);
    }

    #[test]
    fn copying_what_is_ignored_is_found() {
        assert_eq!(rules("FROM scratch\nCOPY a/b b\nADD c d", "a\nc"), ["CopyIgnoredFile"; 2]);
        assert_eq!(rules("FROM scratch\nCOPY a b\nADD http://h/c d", "a\n!a/x\nhttp*"), [""; 0]);
        assert_eq!(rules("FROM scratch\nCOPY . .", ".*"), [""; 0]);
        assert_eq!(rules("FROM scratch\nCOPY . .", "*"), ["CopyIgnoredFile"]);
        // As BuildKit has it, a path from the root is another to the patterns, and variables are expanded first.
        assert_eq!(rules("FROM scratch\nCOPY /a /b/../a b", "a"), [""; 0]);
        assert_eq!(rules("FROM scratch\nCOPY /a b", "**/a"), ["CopyIgnoredFile"]);
        assert_eq!(rules("FROM scratch\nARG X=a\nCOPY \"$X\" b", "a"), ["CopyIgnoredFile"]);
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
