//! `nacre build --call`: what a Dockerfile offers, asks for, and does questionably, without building it.
//!
//! The JSON documents are those of BuildKit's subrequests, field by field; so are the texts.

use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use builder::dockerfile::{DockerfileError, Source, Warning};
use builder::outline::{Argument, Lines, Outline, Target};
use builder::{BuildError, BuildRequest, Checked};
use serde::Serialize;

use crate::format::{Format, Table};
use crate::outputs::OutputArgs;
use crate::report::{self, Usage};
use crate::session::Session;

/// What is asked for in place of a build.
#[derive(clap::Args)]
pub(crate) struct CallFlags {
    /// Only check the Dockerfile, and build nothing: --call=check
    #[arg(long, conflicts_with = "call")]
    check: bool,
    /// In place of a build: check it, outline its arguments, or list its targets; `,format=json` for programs
    #[arg(long, default_value = "build", value_name = "build|check|outline|targets")]
    call: Call,
    /// How to show what --check and --call find
    #[arg(long, value_enum, value_name = "table|json")]
    format: Option<Format>,
}

/// `METHOD[,format=text|json][,ignorestatus[=true]]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Call {
    method: Method,
    format: Option<Format>,
    ignores_status: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Build,
    Check,
    Outline,
    Targets,
}

impl std::str::FromStr for Call {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut fields = text.split(',');
        let method = match fields.next().unwrap_or_default() {
            "build" => Method::Build,
            "check" | "lint" => Method::Check,
            "outline" => Method::Outline,
            "targets" => Method::Targets,
            other => return Err(format!("{other:?} is not supported: build, check, outline or targets")),
        };
        let mut call = Self { method, format: None, ignores_status: false };
        for field in fields {
            match field.split_once('=').unwrap_or((field, "true")) {
                ("format", "json") => call.format = Some(Format::Json),
                ("format", "text") => call.format = Some(Format::Table),
                ("ignorestatus", "true") => call.ignores_status = true,
                ("ignorestatus", "false") => call.ignores_status = false,
                _ => return Err(format!("{field:?} is not supported: format=text|json, ignorestatus=true|false")),
            }
        }
        Ok(call)
    }
}

impl CallFlags {
    fn call(&self) -> Call {
        if self.check { Call { method: Method::Check, ..self.call } } else { self.call }
    }

    /// Refuses to promise a result where none is made.
    pub(crate) fn refuse_outputs(&self, outputs: &OutputArgs) -> Result<(), Usage> {
        match outputs.first_given() {
            Some(flag) if self.call().method != Method::Build => {
                Err(Usage(format!("{flag}: --check and --call build nothing, and write no result")))
            }
            _ => Ok(()),
        }
    }

    /// Answers what is asked for; `None` for a build.
    pub(crate) fn answer(&self, session: &Session, request: &BuildRequest) -> anyhow::Result<Option<ExitCode>> {
        let call = self.call();
        let format = self.format.or(call.format).unwrap_or(Format::Table);
        let source = &request.dockerfile;
        match call.method {
            Method::Build if self.format.is_some() => {
                Err(Usage("--format is for --check and --call: a build has no such output".to_owned()).into())
            }
            Method::Build => Ok(None),
            Method::Outline => {
                let outline = builder::outline::outline(request)?;
                session.print(&shown(format, &WithSources { value: &outline, sources: [data(source)] }, || {
                    text_of(&outline)
                })?)?;
                Ok(Some(ExitCode::SUCCESS))
            }
            Method::Targets => {
                let targets = builder::outline::targets(request)?;
                let document = WithSources { value: &TargetList { targets: &targets }, sources: [data(source)] };
                session.print(&shown(format, &document, || text_of_targets(&targets))?)?;
                Ok(Some(ExitCode::SUCCESS))
            }
            Method::Check => check(session, request, format, call.ignores_status).map(Some),
        }
    }
}

/// The JSON document, or the text without its last line break.
fn shown(format: Format, document: &impl Serialize, text: impl FnOnce() -> String) -> anyhow::Result<String> {
    Ok(match format {
        Format::Json => serde_json::to_string_pretty(document)?,
        Format::Table => text().trim_end_matches('\n').to_owned(),
    })
}

fn data(source: &Source) -> String {
    BASE64.encode(source.bytes())
}

#[derive(Serialize)]
struct WithSources<'a, T> {
    #[serde(flatten)]
    value: &'a T,
    sources: [String; 1],
}

#[derive(Serialize)]
struct TargetList<'a> {
    targets: &'a [Target],
}

fn text_of(outline: &Outline) -> String {
    let mut parts = Vec::new();
    if !outline.name.is_empty() || !outline.description.is_empty() {
        let name = if outline.name.is_empty() { "(default)" } else { &outline.name };
        let mut head = Table::new(["TARGET:", name]).with_gap(1);
        if !outline.description.is_empty() {
            head.push(["DESCRIPTION:".to_owned(), outline.description.clone()]);
        }
        parts.push(head.to_string());
    }
    if !outline.args.is_empty() {
        let mut table = Table::new(["BUILD ARG", "VALUE", "DESCRIPTION"]);
        for Argument { name, value, description, .. } in &outline.args {
            table.push([name.clone(), value.clone(), description.clone()]);
        }
        parts.push(table.to_string());
    }
    for (title, list) in [("SECRET", &outline.secrets), ("SSH", &outline.ssh)] {
        if !list.is_empty() {
            let mut table = Table::new([title, "REQUIRED"]);
            list.iter()
                .for_each(|one| table.push([one.name.clone(), if one.required { "true" } else { "" }.to_owned()]));
            parts.push(table.to_string());
        }
    }
    parts.join("\n\n")
}

fn text_of_targets(targets: &[Target]) -> String {
    let mut table = Table::new(["TARGET", "DESCRIPTION"]).with_gap(1);
    for Target { name, default, description, .. } in targets {
        let shown = match (name.as_str(), default) {
            ("", true) => "(default)".to_owned(),
            (name, true) => format!("{name} (default)"),
            (name, false) => name.to_owned(),
        };
        table.push([shown, description.clone()]);
    }
    table.to_string()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LintDocument<'a> {
    warnings: Vec<WarningDocument<'a>>,
    sources: [SourceDocument<'a>; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    build_error: Option<ErrorDocument<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WarningDocument<'a> {
    rule_name: &'a str,
    description: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    detail: &'a str,
    location: Lines,
}

#[derive(Serialize)]
struct SourceDocument<'a> {
    filename: &'a str,
    language: &'a str,
    data: String,
}

#[derive(Serialize)]
struct ErrorDocument<'a> {
    message: &'a str,
    location: Lines,
}

/// Fails if anything was found, as docker does, unless the status is not wanted.
fn check(session: &Session, request: &BuildRequest, format: Format, ignores_status: bool) -> anyhow::Result<ExitCode> {
    let store = session.root.join("oci-layout").exists().then(|| session.store()).transpose()?;
    let base = |name: &str| builder::base_at_hand(store.as_ref(), request, name);
    let source = &request.dockerfile;
    let (warnings, error) = match builder::check(request, &base) {
        Ok(Checked { warnings, error }) => (warnings, error),
        Err(BuildError::Dockerfile(error)) if error.place.file == source.name() => (Vec::new(), Some(error)),
        Err(other) => return Err(other.into()),
    };
    match format {
        Format::Json => session.print(&serde_json::to_string_pretty(&document(source, &warnings, error.as_ref()))?)?,
        Format::Table => {
            if error.is_none() {
                session.print(&headline(warnings.len()))?;
            }
            for warning in &warnings {
                session.print(&explained(source, warning))?;
            }
        }
    }
    if let Some(error) = error {
        let told_in_document = format == Format::Json;
        let error = BuildError::Dockerfile(error).into();
        return Ok(if told_in_document { ExitCode::FAILURE } else { report::report(&error) });
    }
    let is_clean = warnings.is_empty() || ignores_status;
    Ok(if is_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn headline(count: usize) -> String {
    match count {
        0 => "Check complete, no warnings found.".to_owned(),
        1 => "Check complete, 1 warning has been found!".to_owned(),
        count => format!("Check complete, {count} warnings have been found!"),
    }
}

fn explained(source: &Source, warning: &Warning) -> String {
    let url = warning.rule.url().map(|url| format!(" - {url}")).unwrap_or_default();
    format!("\nWARNING: {}{url}\n{}\n{}", warning.rule, warning.message, excerpt(source, warning.lines))
}

/// The lines that are meant, with some around them: two, or four around a single one, shared between both sides.
fn excerpt(source: &Source, (first, last): (usize, usize)) -> String {
    let count = source.position(source.bytes().len()).line;
    let (mut start, mut end, mut added) = (first, last.min(count), 0);
    let padding = if first == last { 4 } else { 2 };
    while added < padding {
        if start > 1 {
            start -= 1;
            added += 1;
        }
        if end < count {
            end += 1;
            added += 1;
        }
        added += 1;
    }
    let mut text = format!("{}:{first}\n--------------------\n", source.name());
    for number in start..=end {
        let mark = if (first..=last).contains(&number) { ">>>" } else { "   " };
        text.push_str(format!(" {number:3} | {mark} {}", source.line_text(number)).trim_end());
        text.push('\n');
    }
    text + "--------------------"
}

fn document<'a>(source: &'a Source, warnings: &'a [Warning], error: Option<&'a DockerfileError>) -> LintDocument<'a> {
    let one = |warning: &'a Warning| WarningDocument {
        rule_name: warning.rule.name(),
        description: warning.rule.description(),
        url: warning.rule.url(),
        detail: &warning.message,
        location: Lines::new(warning.lines),
    };
    LintDocument {
        warnings: warnings.iter().map(one).collect(),
        sources: [SourceDocument { filename: source.name(), language: "Dockerfile", data: data(source) }],
        build_error: error.map(|error| ErrorDocument {
            message: &error.message,
            location: Lines::new((error.place.line, error.place.line)),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_written_as_docker_has_them() {
        let call: Call = "lint,format=json,ignorestatus".parse().expect("valid");
        assert_eq!(call, Call { method: Method::Check, format: Some(Format::Json), ignores_status: true });
        for wrong in ["", "frontend", "check,format=xml", "check,foo=bar"] {
            assert!(wrong.parse::<Call>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn excerpts_have_some_lines_around_theirs() {
        let source = Source::new("D", b"1\n2\n3\n4\n5\n6\n7");
        let text = excerpt(&source, (3, 3));
        assert_eq!(text.lines().filter(|line| line.contains(" | ")).count(), 5);
        assert!(text.starts_with("D:3\n--") && text.contains("   3 | >>> 3\n"), "{text}");
        let text = excerpt(&source, (1, 1));
        assert!(text.contains("   3 |     3\n") && !text.contains("   4 |"), "{text}");
    }
}
