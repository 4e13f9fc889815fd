//! The state of a stage while its instructions are carried out: configuration, layers, variables.
//!
//! Invariant: `config.rootfs` and `layers` have the same length and the same order.

use layerfs::{ChainId, DiffId, Layer};
use oci_spec::image::Descriptor;

use crate::dockerfile::{Expander, ExpansionError, Word};
use crate::error::{BuildError, Site};
use crate::image::{DEFAULT_PATH, History, ImageConfig};
use crate::paths::clean;

/// The system whose images have another shell: their files and settings can be built here, though no RUN.
const WINDOWS: &str = "windows";

/// A layer of a stage.
#[derive(Debug, Clone)]
pub(crate) struct StageLayer {
    /// The uncompressed layer.
    pub(crate) diff_id: DiffId,
    /// The blob that the base image has for it. A step's layer has none before it becomes a part of an image.
    pub(crate) blob: Option<Descriptor>,
}

/// A stage as far as it is built.
#[derive(Clone)]
pub(crate) struct StageState {
    /// The configuration of the image that it becomes.
    pub(crate) config: ImageConfig,
    /// Its layers, the lowest first.
    pub(crate) layers: Vec<StageLayer>,
    /// What `$NAME` means: ENV and ARG in the order in which they were set.
    pub(crate) variables: Vec<(String, String)>,
    /// ARGs that have a value, for the history of RUN.
    pub(crate) arguments: Vec<(String, String)>,
    /// Whether this stage set CMD itself, so that ENTRYPOINT leaves it alone.
    pub(crate) has_own_cmd: bool,
    /// What `created` is in the image's history, as RFC 3339.
    pub(crate) created: String,
    /// The newest time in a layer, in seconds since 1970; `None` keeps real times.
    pub(crate) epoch: Option<i64>,
}

impl StageState {
    /// A stage on nothing.
    pub(crate) fn scratch(mut config: ImageConfig) -> Self {
        config.config.working_dir = "/".to_owned();
        Self::on_image(config, Vec::new())
    }

    /// A stage on an image, just as it is.
    pub(crate) fn on_image(config: ImageConfig, layers: Vec<Layer>) -> Self {
        let split = |entry: &String| {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            (name.to_owned(), value.to_owned())
        };
        let layer = |layer: Layer| StageLayer { diff_id: layer.diff_id, blob: Some(layer.descriptor) };
        Self {
            variables: config.config.env.iter().map(split).collect(),
            config,
            layers: layers.into_iter().map(layer).collect(),
            arguments: Vec::new(),
            has_own_cmd: false,
            created: String::new(),
            epoch: None,
        }
    }

    /// Sets PATH if nothing below did, before the first instruction: `PATH=$PATH:/x` means something then. Windows knows
    /// its own, as BuildKit leaves it to the system.
    pub(crate) fn with_path(mut self) -> Self {
        if self.config.os != WINDOWS && self.config.config.env("PATH").is_none() {
            self.config.config.set_env("PATH", DEFAULT_PATH);
            self.set_variable("PATH", DEFAULT_PATH);
        }
        self
    }

    /// The value of a variable.
    pub(crate) fn variable(&self, name: &str) -> Option<String> {
        self.variables.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone())
    }

    /// Sets a variable; the order is that of the first setting.
    pub(crate) fn set_variable(&mut self, name: &str, value: &str) {
        set(&mut self.variables, name, value);
    }

    /// Notes the value of a build argument.
    pub(crate) fn set_argument(&mut self, name: &str, value: &str) {
        set(&mut self.arguments, name, value);
    }

    /// Expands a word with the variables as they are now.
    pub(crate) fn expand(&self, escape: char, word: &Word, site: &Site) -> Result<String, BuildError> {
        self.expand_text(escape, &word.text).map_err(site.at(word.span).because())
    }

    /// Expands a text with the variables as they are now.
    pub(crate) fn expand_text(&self, escape: char, text: &str) -> Result<String, ExpansionError> {
        Expander::new(escape, &|name| self.variable(name)).expand(text)
    }

    /// The stack of layers.
    pub(crate) fn diff_ids(&self) -> Vec<DiffId> {
        self.layers.iter().map(|layer| layer.diff_id).collect()
    }

    /// How many of the layers are the base image's: those that were a part of an image before.
    pub(crate) fn base_layers(&self) -> usize {
        self.layers.iter().take_while(|layer| layer.blob.is_some()).count()
    }

    /// The identity of the stack; empty for a stage without layers.
    pub(crate) fn chain(&self) -> String {
        ChainId::of_stack(&self.diff_ids()).map(|chain| chain.to_string()).unwrap_or_default()
    }

    /// Puts a layer on top, made by an instruction that the history shows as `created_by`.
    pub(crate) fn add_layer(&mut self, diff_id: DiffId, created_by: &str) {
        self.add_unrecorded_layer(diff_id);
        self.add_history(created_by, false);
    }

    /// Puts a layer on top that no instruction made: the history does not say where it came in.
    pub(crate) fn add_unrecorded_layer(&mut self, diff_id: DiffId) {
        self.config.rootfs.diff_ids.push(diff_id.to_string());
        self.layers.push(StageLayer { diff_id, blob: None });
    }

    /// Makes the history one of as many layers as there are, as BuildKit does it: entries that are missing come last, and
    /// of those that are too many the last have no layer.
    pub(crate) fn complete_history(&mut self) {
        let mut missing = self.layers.len();
        for entry in &mut self.config.history {
            entry.empty_layer |= missing == 0;
            missing -= usize::from(!entry.empty_layer);
        }
        (0..missing).for_each(|_| self.add_history("", false));
    }

    /// Records an instruction that made no layer.
    pub(crate) fn add_empty_history(&mut self, created_by: &str) {
        self.add_history(created_by, true);
    }

    fn add_history(&mut self, created_by: &str, empty_layer: bool) {
        self.config.history.push(History {
            created: Some(self.created.clone()),
            created_by: created_by.to_owned(),
            comment: HISTORY_COMMENT.to_owned(),
            empty_layer,
            ..History::default()
        });
    }

    /// The working directory as a path from the root.
    pub(crate) fn working_dir(&self) -> String {
        format!("/{}", String::from_utf8_lossy(&clean(self.config.config.working_dir.as_bytes())))
    }

    /// What runs the shell form of an instruction.
    pub(crate) fn shell(&self) -> Vec<String> {
        match self.config.config.shell.as_slice() {
            [] if self.config.os == WINDOWS => ["cmd", "/S", "/C"].map(str::to_owned).to_vec(),
            [] => ["/bin/sh", "-c"].map(str::to_owned).to_vec(),
            shell => shell.to_vec(),
        }
    }
}

/// Who made a step, in the history: the builder and the version of its formats.
const HISTORY_COMMENT: &str = "nacre.dockerfile.v1";

fn set(list: &mut Vec<(String, String)>, name: &str, value: &str) {
    match list.iter_mut().find(|(other, _)| other == name) {
        Some(entry) => value.clone_into(&mut entry.1),
        None => list.push((name.to_owned(), value.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIFF_ID: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_history_has_as_many_layers_as_the_image() {
        let entries = |layers: usize, history: &[bool]| {
            let mut stage = StageState::on_image(ImageConfig::default(), Vec::new());
            (0..layers).for_each(|_| stage.add_unrecorded_layer(DIFF_ID.parse().expect("a digest")));
            history.iter().for_each(|empty| stage.add_history("x", *empty));
            stage.complete_history();
            stage.config.history.iter().map(|entry| entry.empty_layer).collect::<Vec<_>>()
        };
        assert_eq!(entries(2, &[true, false]), [true, false, false]);
        assert_eq!(entries(1, &[false, true, false]), [false, true, true]);
        assert_eq!(entries(1, &[true, false]), [true, false]);
        assert_eq!(entries(1, &[]), [false]);
    }
}
