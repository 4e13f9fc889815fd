//! Errors for people: what happened, where, why, and what to do next, on one screen. The kind of
//! error sets the exit code: 1 user or build, 2 usage, 3 registry or network, 125 internal.

use std::io::Write;
use std::process::ExitCode;

use builder::BuildError;
use builder::dockerfile::{DockerfileError, Place};
use registry_client::ErrorKind;

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
        Some(error) => describe_build(error, &mut text),
        None => describe(error, &mut text),
    };
    (text, code)
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
            hint(source.hint().as_deref(), text);
            registry_code(source)
        }
        other => {
            headline(other, text);
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
        hint(error.hint().as_deref(), text);
        return registry_code(error);
    }
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

/// The error and all its causes on one line; a cause that the message already tells is not told twice.
fn headline(error: &dyn std::error::Error, text: &mut String) {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !line.contains(&words) {
            line = format!("{line}: {words}");
        }
        cause = inner.source();
    }
    text.push_str(&format!("error: {line}\n"));
}

/// The line of the Dockerfile with a mark under what is wrong.
fn located(error: &DockerfileError, text: &mut String) {
    let Place { file, line, column, width, line_text, .. } = &*error.place;
    text.push_str(&format!("error: {file}:{line}:{column}: {}\n", error.message));
    let number = line.to_string();
    let margin = " ".repeat(number.len());
    let before: String = line_text.chars().take(column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
    let marks = "^".repeat((*width).max(1));
    text.push_str(&format!(" {margin} |\n {number} | {line_text}\n {margin} | {before}{marks}\n"));
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
    fn registry_failures_have_their_own_exit_code() {
        let cause = registry_client::Cause::Malformed("not JSON".to_owned());
        let error = anyhow::Error::new(registry_client::Error::new("read a manifest", cause));
        let mut text = String::new();
        assert_eq!(describe(&error, &mut text), 3);
        assert_eq!(text, "error: cannot read a manifest: not JSON\n");
    }
}
