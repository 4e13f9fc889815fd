//! Errors for people: what happened, where, why, and what to do next, on one screen. The kind of
//! error sets the exit code: 1 user or build, 2 usage, 3 registry or network. `nacre run` has its own, for all of them.

use std::io::Write;
use std::process::ExitCode;

use builder::BuildError;
use builder::dockerfile::{DockerfileError, Place};
use builder::full_disk;
use registry_client::{ErrorKind, in_full, without_credentials};

use crate::server::Foreign;

/// A command line that makes no sense, found after it was parsed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// Whoever read the results wants no more of them, as `head` does: nobody is told.
#[derive(Debug, thiserror::Error)]
#[error("standard output is closed")]
pub(crate) struct OutputClosed;

/// An error with the next step for a person.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Hinted {
    /// What happened.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) hint: String,
}

impl Hinted {
    pub(crate) fn error(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
        Self { message: message.into(), hint: hint.into() }.into()
    }
}

/// Shows an error and gives its exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let (text, code) = render(error);
    show(&text);
    ExitCode::from(code)
}

/// Writes to standard error; one that is closed cannot be told so.
pub(crate) fn show(text: &str) {
    _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// An error in words, and its exit code.
/// Passwords that were typed into names and URLs, where they may be quoted, are not shown.
pub(crate) fn render(error: &anyhow::Error) -> (String, u8) {
    /// What a shell shows for a program that SIGPIPE ended.
    const CLOSED_CODE: u8 = 128 + 13;
    let mut text = String::new();
    if error.is::<OutputClosed>() {
        return (text, CLOSED_CODE);
    }
    if let Some(Foreign { text, code }) = error.downcast_ref::<Foreign>() {
        return (text.clone(), *code);
    }
    let code = match error.downcast_ref::<BuildError>() {
        Some(error) => return describe_failure(error),
        None => describe(error, &mut text),
    };
    (without_credentials(&text), code)
}

/// A failed build in words, and its exit code.
pub(crate) fn describe_failure(error: &BuildError) -> (String, u8) {
    let mut text = String::new();
    let code = describe_build(error, &mut text);
    (without_credentials(&text), code)
}

fn describe_build(error: &BuildError, text: &mut String) -> u8 {
    match error {
        BuildError::Dockerfile(error) => {
            located(error, text);
            1
        }
        BuildError::Step { at, tail, .. } => {
            for line in tail {
                text.push_str(&format!("  | {line}\n"));
            }
            located(at, text);
            1
        }
        BuildError::Image { at, source } => {
            match at {
                Some(at) => located(&DockerfileError { message: source.to_string(), ..(**at).clone() }, text),
                None => headline(source, text),
            }
            hint(source.hint().as_deref().or(full_disk(source)), text);
            registry_code(source)
        }
        BuildError::Git { at, source } => {
            match at {
                Some(at) => located(&DockerfileError { message: source.to_string(), ..(**at).clone() }, text),
                None => headline(source, text),
            }
            hint(source.hint(), text);
            if source.is_remote() { 3 } else { 1 }
        }
        other => {
            headline(other, text);
            hint(full_disk(other), text);
            1
        }
    }
}

fn describe(error: &anyhow::Error, text: &mut String) -> u8 {
    headline(error.as_ref(), text);
    if error.downcast_ref::<Usage>().is_some() {
        return 2;
    }
    if let Some(error) = error.downcast_ref::<registry_client::Error>() {
        hint(error.hint().as_deref().or(full_disk(error)), text);
        return registry_code(error);
    }
    hint(full_disk(error.as_ref()), text);
    if let Some(error) = error.downcast_ref::<Hinted>() {
        hint(Some(&error.hint), text);
    }
    if let Some(error) = error.downcast_ref::<builder::rootless::Error>() {
        hint(error.hint().as_deref(), text);
    }
    1
}

fn registry_code(error: &registry_client::Error) -> u8 {
    match error.kind() {
        ErrorKind::User => 1,
        ErrorKind::Registry => 3,
    }
}

fn headline(error: &(dyn std::error::Error + 'static), text: &mut String) {
    text.push_str(&format!("error: {}\n", in_full(error)));
}

/// The line of the Dockerfile with a mark under what is wrong. Of a line that is too long for a screen, what is around
/// that.
fn located(error: &DockerfileError, text: &mut String) {
    /// Wider than most terminals' 80, because CI logs have no end; a mark under a wrapped line says nothing.
    const WIDEST: usize = 120;
    let Place { file, line, column, width, line_text, .. } = &*error.place;
    text.push_str(&format!("error: {file}:{line}:{column}: {}\n", error.message));
    let number = line.to_string();
    let margin = " ".repeat(number.len());
    let letters: Vec<char> = line_text.chars().collect();
    let at = (column - 1).min(letters.len());
    // A mark that begins far to the right is shown with a third of the room before it.
    let first = if at < WIDEST * 2 / 3 { 0 } else { at - WIDEST / 3 };
    let last = letters.len().min(first + WIDEST);
    let part: String = letters[first..last].iter().collect();
    let (cut_before, cut_after) = (if first > 0 { "…" } else { "" }, if last < letters.len() { "…" } else { "" });
    let before = letters[first..at].iter().map(|c| if *c == '\t' { '\t' } else { ' ' });
    let before: String = cut_before.chars().map(|_| ' ').chain(before).collect();
    let marks = "^".repeat((*width).min(last.saturating_sub(at)).max(1));
    text.push_str(&format!(" {margin} |\n {number} | {cut_before}{part}{cut_after}\n {margin} | {before}{marks}\n"));
    hint(error.hint.as_deref(), text);
}

fn hint(words: Option<&str>, text: &mut String) {
    if let Some(words) = words {
        text.push_str(&format!("hint: {words}\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use builder::dockerfile::Dockerfile;

    #[test]
    fn a_dockerfile_error_shows_its_line_with_a_mark() {
        let error = Dockerfile::parse("Dockerfile", b"FROM a\nRUN --foo x\n").expect_err("no such flag");
        let mut text = String::new();
        located(&error, &mut text);
        assert!(text.contains("Dockerfile:2:"), "{text}");
        assert!(text.contains(" 2 | RUN --foo x"), "{text}");
        assert!(text.contains('^'), "{text}");
    }

    #[test]
    fn a_long_line_is_shown_around_its_mark() {
        let long = format!("FROM a\nRUN {} --x\nCOPY --{}=1 a b", "x".repeat(500), "y".repeat(300));
        let error = Dockerfile::parse("D", long.as_bytes()).expect_err("no such flag");
        let mut text = String::new();
        located(&error, &mut text);
        assert!(text.lines().skip(1).all(|line| line.chars().count() < 140), "{text}");
        let place = Box::new(Place { column: 300, width: 3, line_text: "z".repeat(500), ..*error.place });
        let mut text = String::new();
        located(&DockerfileError { place, ..error }, &mut text);
        let lines: Vec<&str> = text.lines().collect();
        let column = |line: &str, letter| line.chars().position(|c| c == letter);
        assert_eq!(column(lines[3], '^'), column(lines[2], '…').map(|start| start + 1 + 40));
        assert!(lines[2].ends_with("z…"));
    }

    #[test]
    fn registry_failures_have_their_own_exit_code() {
        let cause = registry_client::Cause::Malformed("not JSON".to_owned());
        let error = anyhow::Error::new(registry_client::Error::new("read a manifest", cause));
        let mut text = String::new();
        assert_eq!(describe(&error, &mut text), 3);
        assert_eq!(text, "error: cannot read a manifest: not JSON\n");
    }
}
