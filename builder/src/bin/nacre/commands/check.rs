//! `nacre build --check`: what the build checks find, as docker shows it, or as JSON.
//!
//! The JSON has the fields of BuildKit's `lint` subrequest that it documents.

use std::process::ExitCode;

use builder::BuildRequest;
use builder::dockerfile::{Source, Warning};
use serde_json::json;

use crate::format::Format;
use crate::session::Session;

/// Lines shown before and after the one that is meant.
const PADDING: usize = 2;

/// Checks, and says so in its exit code if the Dockerfile wants that.
pub(crate) fn run(session: &Session, request: &BuildRequest, format: Format) -> anyhow::Result<ExitCode> {
    let checked = builder::check(request)?;
    let source = &request.dockerfile;
    match format {
        Format::Json => session.print(&document(source, &checked.warnings).to_string())?,
        Format::Table => {
            session.print(&headline(checked.warnings.len()))?;
            for warning in &checked.warnings {
                session.print(&shown(source, warning))?;
            }
        }
    }
    let fails = checked.is_error && !checked.warnings.is_empty();
    Ok(if fails { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn headline(count: usize) -> String {
    match count {
        0 => "Check complete, no warnings found.".to_owned(),
        1 => "Check complete, 1 warning has been found!".to_owned(),
        count => format!("Check complete, {count} warnings have been found!"),
    }
}

fn shown(source: &Source, warning: &Warning) -> String {
    let line = source.position(warning.span.start).line;
    let count = source.position(source.bytes().len()).line;
    let mut text = format!(
        "\nWARNING: {} - {}\n{}\n{}:{line}\n--------------------\n",
        warning.rule,
        url(warning.rule),
        warning.message,
        source.name()
    );
    for number in line.saturating_sub(PADDING).max(1)..=(line + PADDING).min(count) {
        let mark = if number == line { ">>>" } else { "   " };
        text.push_str(format!("{number:4} | {mark} {}", source.line_text(number)).trim_end());
        text.push('\n');
    }
    text + "--------------------"
}

fn document(source: &Source, warnings: &[Warning]) -> serde_json::Value {
    let one = |warning: &Warning| {
        let (start, end) = (source.position(warning.span.start), source.position(warning.span.end));
        let place = |at: builder::dockerfile::Position| json!({ "line": at.line, "character": at.column - 1 });
        json!({
            "ruleName": warning.rule,
            "url": url(warning.rule),
            "detail": warning.message,
            "location": { "sourceIndex": 0, "ranges": [{ "start": place(start), "end": place(end) }] },
        })
    };
    json!({
        "warnings": warnings.iter().map(one).collect::<Vec<_>>(),
        "sources": [{ "filename": source.name(), "language": "Dockerfile" }],
    })
}

/// Where a rule is documented.
fn url(rule: &str) -> String {
    format!("https://docs.docker.com/go/dockerfile/rule/{}/", kebab(rule))
}

/// `JSONArgsRecommended` to `json-args-recommended`.
fn kebab(rule: &str) -> String {
    let letters: Vec<char> = rule.chars().collect();
    let mut out = String::new();
    for (at, letter) in letters.iter().enumerate() {
        let is_upper = |index: Option<usize>| {
            index.and_then(|index| letters.get(index)).is_some_and(|letter| letter.is_ascii_uppercase())
        };
        let begins_word = letter.is_ascii_uppercase()
            && at > 0
            && (!is_upper(at.checked_sub(1)) || (at + 1 < letters.len() && !is_upper(Some(at + 1))));
        if begins_word {
            out.push('-');
        }
        out.push(letter.to_ascii_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_documented_under_their_words() {
        assert_eq!(kebab("JSONArgsRecommended"), "json-args-recommended");
        assert_eq!(kebab("UndefinedVar"), "undefined-var");
        assert_eq!(kebab("SecretsUsedInArgOrEnv"), "secrets-used-in-arg-or-env");
    }
}
