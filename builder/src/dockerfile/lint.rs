//! The documented build checks that the text alone decides, and the options of `# check=`.
//!
//! Invariant: a warning never changes the build; only `error=true` makes it one, and that is the caller's to do.
//! Not here: the rules that need variables, base images or the context (UndefinedVar, UndefinedArgInFrom,
//! InvalidDefaultArgInFrom, WorkdirRelativePath, InvalidBaseImagePlatform, CopyIgnoredFile).
//! <https://docs.docker.com/reference/build-checks/>

use super::error::DockerfileError;
use super::instructions::{Command, Instruction};
use super::parser::{self, Arguments, Statement};
use super::source::{Span, Word};
use super::stages::{Dockerfile, Stage};

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The rule's documented name.
    pub rule: &'static str,
    /// The token it is about.
    pub span: Span,
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
        for option in text.split(';').map(str::trim).filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').ok_or_else(|| format!("invalid check option {option:?}"))?;
            match (name.trim(), value.trim()) {
                ("skip", value) if value.eq_ignore_ascii_case("all") => options.skips_all = true,
                ("skip", value) => options.skip.extend(value.split(',').map(|rule| rule.trim().to_owned())),
                // Experimental rules are not run, so asking for them asks for nothing.
                ("experimental", _) => {}
                ("error", "true") => options.is_error = true,
                ("error", "false") => options.is_error = false,
                _ => return Err(format!("invalid check option {option:?}")),
            }
        }
        Ok(options)
    }

    fn skips(&self, rule: &str) -> bool {
        self.skips_all || self.skip.iter().any(|skipped| skipped == rule)
    }
}

/// Checks a Dockerfile and leaves out what `options` skip; sorted by place.
///
/// # Errors
/// None for a Dockerfile that was parsed: its syntax tree is made again here, which is cheaper than keeping it.
pub fn lint(file: &Dockerfile, options: &CheckOptions) -> Result<Vec<Warning>, DockerfileError> {
    let (_, statements) = parser::parse(&file.source)?;
    let mut warnings = Vec::new();
    statements.iter().for_each(|statement| check_statement(statement, &mut warnings));
    check_casing(&statements, &mut warnings);
    check_stage_names(&file.stages, &mut warnings);
    file.stages.iter().for_each(|stage| check_stage(stage, &mut warnings));
    warnings.retain(|warning| !options.skips(warning.rule));
    warnings.sort_by_key(|warning| (warning.span.start, warning.rule));
    Ok(warnings)
}

fn warn(warnings: &mut Vec<Warning>, rule: &'static str, span: Span, message: String) {
    warnings.push(Warning { rule, span, message });
}

fn check_statement(statement: &Statement, warnings: &mut Vec<Warning>) {
    let Statement { keyword, arguments, .. } = statement;
    if statement.has_empty_continuation {
        warn(warnings, "NoEmptyContinuation", statement.span, "Empty continuation line".to_owned());
    }
    match arguments {
        Arguments::OldPair(pair) => {
            let name = keyword.text.to_uppercase();
            let message = format!("\"{name} key=value\" should be used instead of legacy \"{name} key value\" format");
            warn(warnings, "LegacyKeyValueFormat", pair.name.span, message);
        }
        Arguments::Words(words) if keyword.text.eq_ignore_ascii_case("from") => {
            check_from_words(keyword, words, warnings);
        }
        _ if keyword.text.eq_ignore_ascii_case("maintainer") => {
            let message = "Maintainer instruction is deprecated in favor of using label";
            warn(warnings, "MaintainerDeprecated", keyword.span, message.to_owned());
        }
        _ => {}
    }
}

fn check_from_words(keyword: &Word, words: &[Word], warnings: &mut Vec<Warning>) {
    let [_, separator, name] = words else { return };
    let is_lower = |word: &Word| word.text == word.text.to_lowercase();
    let is_upper = |word: &Word| word.text == word.text.to_uppercase();
    let differs = (is_lower(keyword) && is_upper(separator)) || (is_upper(keyword) && is_lower(separator));
    if differs {
        let message = format!("'{}' and '{}' keywords' casing do not match", separator.text, keyword.text);
        warn(warnings, "FromAsCasing", separator.span, message);
    }
    if !is_lower(name) {
        warn(warnings, "StageNameCasing", name.span, format!("Stage name '{}' should be lowercase", name.text));
    }
}

/// All keywords should be written as most are: in capitals, or in small letters where these prevail.
fn check_casing(statements: &[Statement], warnings: &mut Vec<Warning>) {
    let keywords = || statements.iter().map(|statement| &statement.keyword);
    let lower = keywords().filter(|word| word.text == word.text.to_lowercase()).count();
    let upper = keywords().filter(|word| word.text == word.text.to_uppercase()).count();
    let (case, wanted): (_, fn(&str) -> String) =
        if lower > upper { ("lowercase", str::to_lowercase) } else { ("uppercase", str::to_uppercase) };
    for keyword in keywords().filter(|word| word.text != wanted(&word.text)) {
        let message = format!("Command '{}' should match the case of the command majority ({case})", keyword.text);
        warn(warnings, "ConsistentInstructionCasing", keyword.span, message);
    }
}

fn check_stage_names(stages: &[Stage], warnings: &mut Vec<Warning>) {
    let mut seen = std::collections::HashSet::new();
    for stage in stages {
        let from = &stage.from.value;
        if let Some(name) = &from.name {
            if matches!(name.text.as_str(), "scratch" | "context") {
                let message = format!("Stage name should not use the same name as reserved stage {:?}", name.text);
                warn(warnings, "ReservedStageName", name.span, message);
            }
            if !seen.insert(&name.text) {
                let message = format!("Duplicate stage name '{}', stage names should be unique", name.text);
                warn(warnings, "DuplicateStageName", name.span, message);
            }
        }
        let Some(platform) = &from.platform else { continue };
        if matches!(platform.text.as_str(), "$TARGETPLATFORM" | "${TARGETPLATFORM}") {
            let message = format!(
                "Setting platform to predefined {} in FROM is redundant as this is the default behavior",
                platform.text
            );
            warn(warnings, "RedundantTargetPlatform", platform.span, message);
        }
        // A stage that carries the system or the architecture in its name is meant for that one alone.
        let is_named_so = |name: &Word| platform.text.split('/').any(|part| name.text.contains(part));
        if !platform.text.contains('$') && !from.name.as_ref().is_some_and(is_named_so) {
            let message = format!("FROM --platform flag should not use constant value {:?}", platform.text);
            warn(warnings, "FromPlatformFlagConstDisallowed", platform.span, message);
        }
    }
}

fn check_stage(stage: &Stage, warnings: &mut Vec<Warning>) {
    let mut has_shell = false;
    for (index, placed) in stage.instructions.iter().enumerate() {
        let keyword = placed.value.keyword();
        match &placed.value {
            Instruction::Shell(_) => has_shell = true,
            Instruction::Cmd(Command::Shell(_)) | Instruction::Entrypoint(Command::Shell(_)) if !has_shell => {
                let message = format!(
                    "JSON arguments recommended for {keyword} to prevent unintended behavior related to OS signals"
                );
                warn(warnings, "JSONArgsRecommended", placed.span, message);
            }
            Instruction::Expose(ports) => ports.iter().for_each(|port| check_port(port, warnings)),
            Instruction::Arg(arguments) => {
                arguments.iter().for_each(|argument| check_secret(keyword, &argument.name, warnings));
            }
            Instruction::Env(pairs) => pairs.iter().for_each(|pair| check_secret(keyword, &pair.name, warnings)),
            _ => {}
        }
        let counts_once = matches!(keyword, "CMD" | "ENTRYPOINT" | "HEALTHCHECK");
        if counts_once && stage.instructions[index + 1..].iter().any(|later| later.value.keyword() == keyword) {
            let message = format!(
                "Multiple {keyword} instructions should not be used in the same stage because only the last one will be used"
            );
            warn(warnings, "MultipleInstructionsDisallowed", placed.span, message);
        }
    }
}

fn check_port(port: &Word, warnings: &mut Vec<Warning>) {
    let (number, protocol) = port.text.split_once('/').unwrap_or((&port.text, ""));
    if protocol != protocol.to_lowercase() && !protocol.contains('$') {
        let message = format!("Defined protocol '{}' in EXPOSE instruction should be lowercase", port.text);
        warn(warnings, "ExposeProtoCasing", port.span, message);
    }
    if number.contains(':') && !number.contains('$') {
        let message =
            format!("EXPOSE instruction should not define an IP address or host-port mapping, found '{}'", port.text);
        warn(warnings, "ExposeInvalidFormat", port.span, message);
    }
}

fn check_secret(keyword: &str, name: &Word, warnings: &mut Vec<Warning>) {
    const SECRETS: [&str; 10] =
        ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
    let lower = name.text.to_lowercase();
    let has = |words: &[&str]| lower.split('_').any(|part| words.contains(&part));
    if has(&SECRETS) && !has(&["public"]) {
        let message = format!("Do not use ARG or ENV instructions for sensitive data ({keyword} {:?})", name.text);
        warn(warnings, "SecretsUsedInArgOrEnv", name.span, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Vec<&'static str> {
        let file = Dockerfile::parse("D", text.as_bytes()).expect(text);
        let options =
            CheckOptions::parse(file.directives.check.as_ref().map_or("", |check| &check.text)).expect("valid options");
        lint(&file, &options).expect("parsed before").into_iter().map(|warning| warning.rule).collect()
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
    fn the_check_directive_skips_rules() {
        assert_eq!(
            rules("# check=skip=JSONArgsRecommended;error=true\nFROM a\nCMD x\nMAINTAINER y"),
            ["MaintainerDeprecated"]
        );
        assert_eq!(rules("# check=skip=all\nFROM a\nCMD x"), [""; 0]);
        assert!(CheckOptions::parse("skip=A;error=true").expect("valid").is_error);
        assert!(CheckOptions::parse("erorr=true").is_err() && CheckOptions::parse("error=maybe").is_err());
    }
}
