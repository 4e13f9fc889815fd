//! One instruction carried out: configuration, files, commands.

pub(crate) mod agent;
pub(crate) mod config;
pub(crate) mod content;
pub(crate) mod dated;
pub(crate) mod files;
mod mount_keys;
pub(crate) mod mounts;
pub(crate) mod remote;
pub(crate) mod run;

use std::collections::BTreeMap;

use crate::dockerfile::{Expander, Word};
use crate::error::{BuildError, Site};
use crate::request::BuildRequest;
use crate::stage::StageState;

/// What the words of an instruction are expanded with, besides the stage's own variables.
pub(crate) struct Evaluation<'a> {
    /// What was asked for.
    pub(crate) request: &'a BuildRequest,
    /// The Dockerfile's escape character.
    pub(crate) escape: char,
    /// Global ARGs and platform arguments, which a stage sees after its own ARG.
    pub(crate) globals: &'a BTreeMap<String, String>,
}

impl Evaluation<'_> {
    /// Expands a word to one text.
    pub(crate) fn expand(&self, stage: &StageState, word: &Word, site: &Site) -> Result<String, BuildError> {
        stage.expand(self.escape, word, site)
    }

    /// Expands a word and splits it at blanks.
    pub(crate) fn expand_words(&self, stage: &StageState, word: &Word, site: &Site) -> Result<Vec<String>, BuildError> {
        let lookup = |name: &str| stage.variable(name);
        let expander = Expander::new(self.escape, &lookup);
        expander.expand_words(&word.text).map_err(site.at(word.span).because())
    }

    /// The value of a declared ARG: given to the build, its default, or that of a global ARG.
    pub(crate) fn argument(&self, name: &str, default: Option<String>) -> Option<String> {
        let given = self.request.build_args.get(name).cloned();
        given.or(default).or_else(|| self.globals.get(name).cloned())
    }
}
