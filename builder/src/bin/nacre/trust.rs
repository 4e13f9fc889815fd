//! Which images are let in from elsewhere: the flag, and the files of containers' tools.
//!
//! Invariant: what lies in the store is in: it was checked when it came.

use std::path::PathBuf;

use registry_client::{ImageName, Policy, Source};

use crate::session;

/// Flags of the verbs that bring images in.
#[derive(clap::Args)]
pub(crate) struct TrustFlags {
    /// Which images are let in, and signed by whom: a policy.json
    /// [default: ~/.config/containers/policy.json, else /etc/containers/policy.json, else all are]
    #[arg(long, value_name = "FILE")]
    signature_policy: Option<PathBuf>,
}

impl TrustFlags {
    /// Whether the flag is there.
    pub(crate) fn is_given(&self) -> bool {
        self.signature_policy.is_some()
    }

    /// What they say.
    pub(crate) fn policy(&self) -> anyhow::Result<Policy> {
        let file = match &self.signature_policy {
            Some(file) => Some(file.clone()),
            None => session::signature_policy()?,
        };
        Ok(file.map(|file| Policy::load(&file, &session::path())).transpose()?.unwrap_or_default())
    }

    /// A place that gives out only what is let in.
    pub(crate) fn guard<'a>(
        &self,
        source: Box<dyn Source + 'a>,
        name: &ImageName,
        whole: bool,
    ) -> anyhow::Result<Box<dyn Source + 'a>> {
        guard(&self.policy()?, source, name, whole)
    }
}

/// The same with a policy that was read before.
pub(crate) fn guard<'a>(
    policy: &Policy,
    source: Box<dyn Source + 'a>,
    name: &ImageName,
    whole: bool,
) -> anyhow::Result<Box<dyn Source + 'a>> {
    match name {
        ImageName::Store(_) => Ok(source),
        _ => Ok(policy.guard(source, name, whole)?),
    }
}
