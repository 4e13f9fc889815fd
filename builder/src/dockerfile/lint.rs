//! The documented build checks that the text alone decides, and the options of `# check=`.
//!
//! Invariant: a warning never changes the build; only `error=true` makes it one, and that is the caller's to do.
//! Not here: the rules that need variables, base images or the context (UndefinedVar, UndefinedArgInFrom,
//! InvalidDefaultArgInFrom, WorkdirRelativePath, InvalidBaseImagePlatform, CopyIgnoredFile).
//! <https://docs.docker.com/reference/build-checks/>

use super::directives::name_and_value;
use super::error::DockerfileError;
use super::instructions::{Command, Instruction, Placed};
use super::parser::{self, Arguments, Statement};
use super::rules::Rule;
use super::source::{Span, Word};
use super::stages::{Dockerfile, Stage};
use super::words::is_blank;
use crate::fields::truth;

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The rule.
    pub rule: Rule,
    /// The token it is about.
    pub span: Span,
    /// The first and the last line of the instruction it is about, here-documents included.
    pub lines: (usize, usize),
    /// BuildKit's words.
    pub message: String,
}

/// What `# check=skip=A,B;error=true` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// Names of rules to leave out.
    pub skip: Vec<String>,
    /// `skip=all`
    pub skips_all: bool,
    /// Names of experimental rules to check as well.
    pub experimental: Vec<String>,
    /// `experimental=all`
    pub is_all_experimental: bool,
    /// `error=true`: warnings fail the build.
    pub is_error: bool,
}

impl CheckOptions {
    /// Reads the directive's value; the error is a message.
    ///
    /// # Errors
    /// An option that does not exist, or a value that is none of its own.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut options = Self::default();
        let names = |value: &str| value.split(',').map(|rule| rule.trim().to_owned()).collect::<Vec<_>>();
        let text = text.trim();
        for option in text.splitn(3, ';').filter(|_| !text.is_empty()) {
            let invalid = || format!("invalid check option {option:?}");
            let (name, value) = option.split_once('=').ok_or_else(invalid)?;
            match (name.trim(), value.trim()) {
                ("skip", "all") => options.skips_all = true,
                ("skip", value) => options.skip = names(value),
                ("experimental", "all") => options.is_all_experimental = true,
                ("experimental", value) => options.experimental = names(value),
                ("error", value) => options.is_error = truth(value).ok_or_else(invalid)?,
                _ => return Err(invalid()),
            }
        }
        Ok(options)
    }

    /// Whether a rule is checked.
    pub(crate) fn allows(&self, rule: Rule) -> bool {
        let has = |names: &[String]| names.iter().any(|name| name == rule.name());
        if rule.is_experimental() {
            return self.is_all_experimental || has(&self.experimental);
        }
        !self.skips_all && !has(&self.skip)
    }

    /// Reads the value of a directive, which ends at the first blank: why it says so may follow.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub(crate) fn of_directive(value: &str) -> Result<Self, String> {
        Self::parse(value.split(' ').next().unwrap_or_default())
    }

    /// With what a comment above one instruction says: the first `check=`, if it can be read.
    fn with_comments(&self, comments: &[String]) -> Self {
        let value = |comment: &String| name_and_value(comment).filter(|(name, _)| name == "check");
        let mut options = self.clone();
        let Some((_, text)) = comments.iter().find_map(value) else { return options };
        if let Ok(more) = Self::of_directive(&text) {
            options.skip.extend(more.skip);
            options.skips_all |= more.skips_all;
            options.experimental.extend(more.experimental);
            options.is_all_experimental |= more.is_all_experimental;
        }
        options
    }
}

/// What a stage stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Below {
    /// An earlier stage.
    Stage(usize),
    /// Anything else, which may have a SHELL of its own.
    Other {
        /// Whether it has one, as far as is known.
        has_shell: bool,
    },
}

/// What the text alone tells, nothing left out: [`finish`] does that. `below` is what each stage stands on.
///
/// # Errors
/// None for a Dockerfile that was parsed: its syntax tree is made again here, which is cheaper than keeping it.
pub(crate) fn lint(file: &Dockerfile, below: &[Below]) -> Result<Vec<Warning>, DockerfileError> {
    let (_, statements) = parser::parse(&file.source)?;
    let mut warnings = Vec::new();
    statements.iter().for_each(|statement| check_statement(statement, &mut warnings));
    check_casing(&statements, &mut warnings);
    check_stage_names(&file.stages, &mut warnings);
    check_stages(&file.stages, below, &mut warnings);
    check_descriptions(file, &mut warnings);
    Ok(warnings)
}

/// What reading the text alone tells, up to a mistake that ends it; nothing left out: [`finish`] does that.
///
/// # Errors
/// As for [`lint`].
pub(crate) fn lint_before(file: &Dockerfile, mistake: &DockerfileError) -> Result<Vec<Warning>, DockerfileError> {
    let (_, statements) = parser::parse(&file.source)?;
    let is_before = |at| file.source.position(at).line < mistake.place.instruction_line;
    let mut warnings = Vec::new();
    statements.iter().for_each(|statement| check_statement(statement, &mut warnings));
    check_descriptions(file, &mut warnings);
    warnings.retain(|warning| match warning.rule {
        // Lines are put together before any instruction is understood.
        Rule::NoEmptyContinuation => true,
        rule => rule.is_about_reading() && is_before(warning.span.start),
    });
    Ok(warnings)
}

/// Leaves out what options and comments skip, finds the lines of the rest, and sorts it by place.
///
/// # Errors
/// As for [`lint`].
pub(crate) fn finish(
    file: &Dockerfile,
    options: &CheckOptions,
    mut warnings: Vec<Warning>,
) -> Result<Vec<Warning>, DockerfileError> {
    let (_, statements) = parser::parse(&file.source)?;
    let line = |at| file.source.position(at).line;
    warnings.retain_mut(|warning| {
        let holds = |statement: &&Statement| {
            statement.span.start <= warning.span.start && warning.span.start <= statement.span.end
        };
        let Some(statement) = statements.iter().find(holds) else { return options.allows(warning.rule) };
        let end = statement.heredocs.last().map_or(statement.span.end, |heredoc| heredoc.span.end);
        warning.lines = (line(statement.span.start), line(end));
        if warning.rule == Rule::NoEmptyContinuation {
            warning.lines.0 = warning.lines.1;
        }
        match warning.rule.is_about_one_instruction() {
            true => options.with_comments(&statement.comments).allows(warning.rule),
            false => options.allows(warning.rule),
        }
    });
    warnings.sort_by_key(|warning| (warning.lines, warning.span.start, warning.rule));
    Ok(warnings)
}

fn warn(warnings: &mut Vec<Warning>, rule: Rule, span: Span, message: String) {
    warnings.push(Warning { rule, span, lines: (0, 0), message });
}

fn check_statement(statement: &Statement, warnings: &mut Vec<Warning>) {
    let Statement { keyword, arguments, .. } = statement;
    if statement.has_empty_continuation {
        warn(warnings, Rule::NoEmptyContinuation, statement.span, "Empty continuation line".to_owned());
    }
    match arguments {
        Arguments::OldPair(pair) => {
            let name = &keyword.text;
            let message = format!("\"{name} key=value\" should be used instead of legacy \"{name} key value\" format");
            warn(warnings, Rule::LegacyKeyValueFormat, pair.name.span, message);
        }
        Arguments::Words(words) if keyword.text.eq_ignore_ascii_case("from") => {
            check_from_words(keyword, words, warnings);
        }
        _ if keyword.text.eq_ignore_ascii_case("maintainer") => {
            let message = "Maintainer instruction is deprecated in favor of using label";
            warn(warnings, Rule::MaintainerDeprecated, keyword.span, message.to_owned());
        }
        _ => {}
    }
}

fn check_from_words(keyword: &Word, words: &[Word], warnings: &mut Vec<Warning>) {
    let [_, separator, name] = words else { return };
    let is_lower = |word: &Word| word.text == word.text.to_lowercase();
    let is_upper = |word: &Word| word.text == word.text.to_uppercase();
    // A keyword that is neither is told about by itself.
    let differs = match (is_lower(keyword), is_upper(keyword)) {
        (true, _) => !is_lower(separator),
        (_, true) => !is_upper(separator),
        _ => false,
    };
    if differs {
        let message = format!("'{}' and '{}' keywords' casing do not match", separator.text, keyword.text);
        warn(warnings, Rule::FromAsCasing, separator.span, message);
    }
    if !is_lower(name) {
        warn(warnings, Rule::StageNameCasing, name.span, format!("Stage name '{}' should be lowercase", name.text));
    }
}

/// All keywords should be written as most are: in capitals, or in small letters where these prevail. What stands
/// before the first stage is in none, and does not count.
fn check_casing(statements: &[Statement], warnings: &mut Vec<Warning>) {
    let is_global = |word: &&Word| !word.text.eq_ignore_ascii_case("from");
    let keywords = || statements.iter().map(|statement| &statement.keyword).skip_while(is_global);
    let lower = keywords().filter(|word| word.text == word.text.to_lowercase()).count();
    let upper = keywords().filter(|word| word.text == word.text.to_uppercase()).count();
    let (case, wanted): (_, fn(&str) -> String) =
        if lower > upper { ("lowercase", str::to_lowercase) } else { ("uppercase", str::to_uppercase) };
    for keyword in keywords().filter(|word| word.text != wanted(&word.text)) {
        let message = format!("Command '{}' should match the case of the command majority ({case})", keyword.text);
        warn(warnings, Rule::ConsistentInstructionCasing, keyword.span, message);
    }
}

fn check_stage_names(stages: &[Stage], warnings: &mut Vec<Warning>) {
    let mut seen = std::collections::HashSet::new();
    for stage in stages {
        let from = &stage.from.value;
        if let Some(name) = &from.name {
            if matches!(name.text.as_str(), "scratch" | "context") {
                let message = format!("Stage name should not use the same name as reserved stage {:?}", name.text);
                warn(warnings, Rule::ReservedStageName, name.span, message);
            }
            if !seen.insert(&name.text) {
                let message = format!("Duplicate stage name {:?}, stage names should be unique", name.text);
                warn(warnings, Rule::DuplicateStageName, name.span, message);
            }
        }
        let Some(platform) = &from.platform else { continue };
        if matches!(platform.text.as_str(), "$TARGETPLATFORM" | "${TARGETPLATFORM}") {
            let message = format!(
                "Setting platform to predefined {} in FROM is redundant as this is the default behavior",
                platform.text
            );
            warn(warnings, Rule::RedundantTargetPlatform, platform.span, message);
        }
        // A stage that carries the system or the architecture in its name is meant for that one alone.
        let is_named_so = |name: &Word| platform.text.split('/').any(|part| name.text.contains(part));
        if !platform.text.contains('$') && !from.name.as_ref().is_some_and(is_named_so) {
            let message = format!("FROM --platform flag should not use constant value {:?}", platform.text);
            warn(warnings, Rule::FromPlatformFlagConstDisallowed, platform.span, message);
        }
    }
}

/// A stage on another one has that one's SHELL.
fn check_stages(stages: &[Stage], below: &[Below], warnings: &mut Vec<Warning>) {
    let mut shells = Vec::new();
    for (stage, below) in stages.iter().zip(below) {
        let inherited = match *below {
            Below::Stage(index) => shells.get(index).copied().unwrap_or(false),
            Below::Other { has_shell } => has_shell,
        };
        shells.push(check_stage(stage, inherited, warnings));
    }
}

fn check_stage(stage: &Stage, mut has_shell: bool, warnings: &mut Vec<Warning>) -> bool {
    for (index, placed) in stage.instructions.iter().enumerate() {
        let keyword = placed.value.keyword();
        match &placed.value {
            Instruction::Shell(_) => has_shell = true,
            Instruction::Cmd(Command::Shell(_)) | Instruction::Entrypoint(Command::Shell(_)) if !has_shell => {
                let message = format!(
                    "JSON arguments recommended for {} to prevent unintended behavior related to OS signals",
                    written_keyword(placed)
                );
                warn(warnings, Rule::JSONArgsRecommended, placed.span, message);
            }
            Instruction::Expose(ports) => ports.iter().for_each(|port| check_port(port, warnings)),
            Instruction::Arg(arguments) => {
                arguments.iter().for_each(|argument| check_secret(keyword, &argument.name, warnings));
            }
            Instruction::Env(pairs) => pairs.iter().for_each(|pair| check_secret(keyword, &pair.name, warnings)),
            _ => {}
        }
        let counts_once = matches!(keyword, "CMD" | "ENTRYPOINT" | "HEALTHCHECK");
        let mut later = stage.instructions[index + 1..].iter();
        if let Some(next) = later.find(|later| counts_once && later.value.keyword() == keyword) {
            let message = format!(
                "Multiple {} instructions should not be used in the same stage because only the last one will be used",
                written_keyword(next)
            );
            warn(warnings, Rule::MultipleInstructionsDisallowed, placed.span, message);
        }
    }
    has_shell
}

/// The name of an instruction as the author wrote it.
fn written_keyword(placed: &Placed<Instruction>) -> &str {
    placed.text.split(is_blank).next().unwrap_or_default()
}

/// A comment above an ARG or a named stage is its description, and begins with the name.
fn check_descriptions(file: &Dockerfile, warnings: &mut Vec<Warning>) {
    let mut check = |keyword: &str, names: Vec<&str>, comments: &[String], span: Span| {
        let Some(first) = comments.last().map(|comment| comment.split(' ').next().unwrap_or_default()) else { return };
        if names.is_empty() || names.contains(&first) {
            return;
        }
        let example = if let [only] = names[..] { only } else { "<arg_key>" };
        let message = format!("Comment for {keyword} should follow the format: `# {example} <description>`");
        warn(warnings, Rule::InvalidDefinitionDescription, span, message);
    };
    for placed in &file.global_arguments {
        let names = placed.value.iter().map(|argument| argument.name.text.as_str()).collect();
        check("ARG", names, &placed.comments, placed.span);
    }
    for stage in &file.stages {
        let name = stage.from.value.name.iter().map(|name| name.text.as_str()).collect();
        check("FROM", name, &stage.from.comments, stage.from.span);
        for placed in &stage.instructions {
            if let Instruction::Arg(arguments) = &placed.value {
                let names = arguments.iter().map(|argument| argument.name.text.as_str()).collect();
                check("ARG", names, &placed.comments, placed.span);
            }
        }
    }
}

fn check_port(port: &Word, warnings: &mut Vec<Warning>) {
    let (number, protocol) = port.text.split_once('/').unwrap_or((&port.text, ""));
    if protocol != protocol.to_lowercase() && !protocol.contains('$') {
        let message = format!("Defined protocol '{}' in EXPOSE instruction should be lowercase", port.text);
        warn(warnings, Rule::ExposeProtoCasing, port.span, message);
    }
    if number.contains(':') && !number.contains('$') {
        let message =
            format!("EXPOSE instruction should not define an IP address or host-port mapping, found '{}'", port.text);
        warn(warnings, Rule::ExposeInvalidFormat, port.span, message);
    }
}

fn check_secret(keyword: &str, name: &Word, warnings: &mut Vec<Warning>) {
    const SECRETS: [&str; 10] =
        ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
    let lower = name.text.to_lowercase();
    let has = |words: &[&str]| lower.split('_').any(|part| words.contains(&part));
    if has(&SECRETS) && !has(&["public", "file", "version"]) {
        let message = format!("Do not use ARG or ENV instructions for sensitive data ({keyword} {:?})", name.text);
        warn(warnings, Rule::SecretsUsedInArgOrEnv, name.span, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warnings(text: &str) -> Vec<Warning> {
        let file = Dockerfile::parse("D", text.as_bytes()).expect(text);
        let options =
            CheckOptions::of_directive(file.directives.check.as_ref().map_or("", |check| &check.text)).expect("valid");
        let below = vec![Below::Other { has_shell: false }; file.stages.len()];
        finish(&file, &options, lint(&file, &below).expect("parsed before")).expect("parsed before")
    }

    fn rules(text: &str) -> Vec<&'static str> {
        warnings(text).into_iter().map(|warning| warning.rule.name()).collect()
    }

    #[test]
    fn each_rule_finds_its_mistake() {
        for (text, rule) in [
            ("FROM a AS Build", "StageNameCasing"),
            ("FROM a as build", "FromAsCasing"),
            ("FROM a\nRUN x \\\n\n y", "NoEmptyContinuation"),
            ("FROM a\nRUN x\nrun y", "ConsistentInstructionCasing"),
            ("FROM a AS b\nFROM a AS b", "DuplicateStageName"),
            ("FROM a AS scratch", "ReservedStageName"),
            ("FROM a\nCMD x", "JSONArgsRecommended"),
            ("FROM a\nMAINTAINER x", "MaintainerDeprecated"),
            ("FROM a\nCMD [\"x\"]\nCMD [\"y\"]", "MultipleInstructionsDisallowed"),
            ("FROM a\nENV b c", "LegacyKeyValueFormat"),
            ("FROM --platform=$TARGETPLATFORM a", "RedundantTargetPlatform"),
            ("FROM a\nARG API_TOKEN", "SecretsUsedInArgOrEnv"),
            ("FROM --platform=linux/amd64 a", "FromPlatformFlagConstDisallowed"),
            ("FROM a\nEXPOSE 80/TCP", "ExposeProtoCasing"),
            ("FROM a\nEXPOSE 127.0.0.1:80:80", "ExposeInvalidFormat"),
        ] {
            assert_eq!(rules(text), [rule], "{text}");
        }
    }

    #[test]
    fn a_clean_file_has_no_warnings() {
        let text = "FROM --platform=$BUILDPLATFORM a AS b\nSHELL [\"/bin/sh\", \"-c\"]\nCMD x\nARG PUBLIC_KEY\n\
                    FROM --platform=linux/amd64 a AS build-amd64\nEXPOSE 80/tcp";
        assert_eq!(rules(text), [""; 0]);
    }

    #[test]
    fn a_comment_above_an_instruction_skips_rules_for_it_alone() {
        let text =
            "FROM a\n# check=skip=SecretsUsedInArgOrEnv // for a test\nENV TOKEN=a\n#check=skip=all\nARG KEY\nARG KEY";
        assert_eq!(warnings(text).iter().map(|warning| warning.lines).collect::<Vec<_>>(), [(6, 6)]);
        assert_eq!(rules("# check=skip=MaintainerDeprecated\nFROM a\nMAINTAINER x"), [""; 0]);
        // This one looks at the whole file.
        assert_eq!(rules("FROM a\nRUN x\n# check=skip=all\nrun y"), ["ConsistentInstructionCasing"]);
    }

    #[test]
    fn names_of_secrets_that_are_none_are_fine() {
        assert_eq!(rules("FROM a\nARG PASSWORD_FILE\nARG AUTH_MODULE_VERSION\nARG public_token"), [""; 0]);
    }

    #[test]
    fn messages_have_keywords_as_they_are_written() {
        let messages = |text| warnings(text).into_iter().map(|warning| warning.message).collect::<Vec<_>>().join("\n");
        let text = messages("from a\nenv a b\ncmd x\nCmd y\nhealthcheck none\nhealthcheck none");
        for part in ["\"env key=value\"", "legacy \"env key value\"", "for cmd to", "for Cmd to", "Multiple Cmd in"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(text.contains("Multiple healthcheck in") && !text.contains("Multiple cmd in"), "{text}");
    }

    #[test]
    fn arguments_before_the_first_stage_have_any_case() {
        assert_eq!(rules("arg A\narg B\narg C\nFROM a\nRUN b"), [""; 0]);
    }

    #[test]
    fn as_follows_the_case_of_from() {
        assert_eq!(rules("FROM a As b"), ["FromAsCasing"]);
        assert_eq!(rules("from a AS b"), ["FromAsCasing"]);
        assert_eq!(rules("From a as b"), ["ConsistentInstructionCasing"]);
    }

    #[test]
    fn descriptions_are_checked_where_that_is_asked_for() {
        let text = "# bar this\n\nARG foo=bar\n# one\n#\nARG x\n# BasE this\nFROM scratch AS base\n# bad\nARG version=1\n# bad\nARG a=1 b=2\n\
                    # version this\nARG version=2\n# some comment\nCOPY a b";
        assert_eq!(rules(text), [""; 0]);
        let found = warnings(&format!("# check=skip=all;experimental=InvalidDefinitionDescription\n{text}"));
        let expected = ["ARG|foo|4", "FROM|base|9", "ARG|version|11", "ARG|<arg_key>|13"];
        for (warning, expected) in found.iter().zip(expected) {
            let [keyword, name, line] = expected.split('|').collect::<Vec<_>>()[..] else { unreachable!() };
            let message = format!("Comment for {keyword} should follow the format: `# {name} <description>`");
            assert_eq!((&warning.message, warning.lines.0.to_string()), (&message, line.to_owned()));
        }
        assert_eq!(found.len(), expected.len());
    }

    #[test]
    fn lines_are_those_of_the_whole_instruction() {
        let text = "FROM a\nMAINTAINER x \\\n y\nENV TOKEN=1 \\\n\n A=2\n";
        assert_eq!(warnings(text).iter().map(|w| w.lines).collect::<Vec<_>>(), [(2, 3), (4, 6), (6, 6)]);
    }

    #[test]
    fn the_check_directive_skips_rules() {
        assert_eq!(
            rules("# check=skip=JSONArgsRecommended;error=true\nFROM a\nCMD x\nMAINTAINER y"),
            ["MaintainerDeprecated"]
        );
        assert_eq!(rules("# check=skip=all\nFROM a\nCMD x"), [""; 0]);
        assert_eq!(rules("# check=skip=JSONArgsRecommended // it is a test\nFROM a\nCMD x"), [""; 0]);
        for text in ["skip=A;error=true", "error=1", "error=T"] {
            assert!(CheckOptions::parse(text).expect(text).is_error, "{text}");
        }
        for text in ["erorr=true", "error=maybe", "skip=A;", "skip", ";"] {
            assert!(CheckOptions::parse(text).is_err(), "{text}");
        }
        let options = CheckOptions::parse("skip=A,B;skip=C, D").expect("valid");
        assert_eq!((options.skip, options.skips_all), (vec!["C".to_owned(), "D".to_owned()], false));
        assert!(!CheckOptions::parse("skip=ALL").expect("a rule of that name").skips_all);
    }
}
