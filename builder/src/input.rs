//! Files that a step takes from somewhere: a stage, an image, a context.

use std::sync::Arc;

use layerfs::Tree;

use crate::fetch::Fetched;

/// Files to copy from or to mount.
#[derive(Clone)]
pub(crate) struct Input {
    pub(crate) tree: Arc<dyn Tree>,
    /// What makes it the same input in another build.
    pub(crate) known_by: KnownBy,
    /// What messages call it.
    pub(crate) label: String,
}

/// What makes an input the same in another build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KnownBy {
    /// The files that are used, by their content.
    Content,
    /// The stack of layers.
    Chain(String),
}

impl Input {
    pub(crate) fn fetched(fetched: &Fetched, label: &str) -> Self {
        Self { tree: Arc::clone(&fetched.tree), known_by: KnownBy::Content, label: label.to_owned() }
    }
}
