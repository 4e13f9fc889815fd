//! The flags of one statement, taken by name and type.
//!
//! Invariant: a flag that nobody takes is an error, and so is one given twice: nothing is ignored. Only where BuildKit
//! does not look at flags at all (ARG, STOPSIGNAL, HEALTHCHECK NONE), nor is this asked.

use crate::dockerfile::error::{DockerfileError, closest};
use crate::dockerfile::parser::Statement;
use crate::dockerfile::source::{Source, Word};
use crate::dockerfile::words::Flag;

/// Flags not taken yet.
pub(super) struct Flags<'a> {
    source: &'a Source,
    rest: Vec<&'a Flag>,
    known: Vec<&'static str>,
}

impl<'a> Flags<'a> {
    pub(super) fn new(source: &'a Source, statement: &'a Statement) -> Self {
        Self { source, rest: statement.flags.iter().collect(), known: Vec::new() }
    }

    fn take(&mut self, name: &'static str) -> Vec<&'a Flag> {
        self.known.push(name);
        let (taken, rest) = std::mem::take(&mut self.rest).into_iter().partition(|flag| flag.name.text == name);
        self.rest = rest;
        taken
    }

    fn take_one(&mut self, name: &'static str) -> Result<Option<&'a Flag>, DockerfileError> {
        match self.take(name).as_slice() {
            [_, again, ..] => Err(self.source.error(again.name.span, format!("duplicate flag specified: --{name}"))),
            taken => Ok(taken.first().copied()),
        }
    }

    /// `--name=value`, any number of times.
    pub(super) fn strings(&mut self, name: &'static str) -> Result<Vec<Word>, DockerfileError> {
        self.take(name).into_iter().map(|flag| self.value(flag)).collect()
    }

    /// `--name=value`, at most once; an empty value is none, as in BuildKit.
    pub(super) fn string(&mut self, name: &'static str) -> Result<Option<Word>, DockerfileError> {
        Ok(self.choice(name)?.filter(|value| !value.text.is_empty()))
    }

    /// `--name=value`, at most once, where an empty value is one, and none of those that there are.
    pub(super) fn choice(&mut self, name: &'static str) -> Result<Option<Word>, DockerfileError> {
        self.take_one(name)?.map(|flag| self.value(flag)).transpose()
    }

    fn value(&self, flag: &Flag) -> Result<Word, DockerfileError> {
        let missing = || self.source.error(flag.name.span, format!("missing a value on flag: --{}", flag.name.text));
        flag.value.clone().ok_or_else(missing)
    }

    /// `--name`, `--name=true` or `--name=false`, at most once.
    pub(super) fn boolean(&mut self, name: &'static str) -> Result<Option<bool>, DockerfileError> {
        let Some(flag) = self.take_one(name)? else { return Ok(None) };
        let Some(value) = &flag.value else { return Ok(Some(true)) };
        match value.text.to_ascii_lowercase().as_str() {
            "true" => Ok(Some(true)),
            "false" => Ok(Some(false)),
            "" => Err(self.source.error(flag.name.span, format!("missing a value on flag: --{name}"))),
            _ => {
                let message = format!("expecting boolean value for flag --{name}, not: {}", value.text);
                Err(self.source.error(value.span, message))
            }
        }
    }

    /// Refuses what is left.
    pub(super) fn finish(self) -> Result<(), DockerfileError> {
        let Some(unknown) = self.rest.first() else { return Ok(()) };
        let hint = closest(&unknown.name.text, &self.known).map(|near| format!("did you mean {near}?"));
        Err(self.source.error(unknown.name.span, format!("unknown flag: --{}", unknown.name.text)).with_hint(hint))
    }
}
