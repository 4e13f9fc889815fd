//! What all stages of a build share.
//!
//! Invariant: all of it may be used from several threads; what is done once is done once for the whole build.

use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};

use layerfs::{DiffId, Store, Tree};
use registry_client::Client;

use crate::clearing::Clearing;
use crate::context::ContextTree;
use crate::dockerfile::Dockerfile;
use crate::error::BuildError;
use crate::events::Events;
use crate::explain::LastBuild;
use crate::fetch::Fetcher;
use crate::flights::Flights;
use crate::frontend::FrontendArguments;
use crate::packing::{Ordered, Packer};
use crate::place::StoredImage;
use crate::plan::stage_label;
use crate::remote_cache::RemoteCaches;
use crate::request::BuildRequest;
use crate::sandbox::Starter;
use crate::schedule::Schedule;

/// What all stages of a build share.
pub(crate) struct Shared<'a> {
    pub(crate) store: &'a Store,
    pub(crate) client: &'a Client,
    pub(crate) events: &'a dyn Events,
    pub(crate) request: &'a BuildRequest,
    pub(crate) dockerfile: &'a Dockerfile,
    pub(crate) caches: &'a RemoteCaches<'a>,
    pub(crate) fetcher: &'a Fetcher<'a>,
    pub(crate) frontend: FrontendArguments,
    pub(crate) schedule: &'a Schedule,
    /// Starts what RUN runs.
    pub(crate) starter: Starter,
    /// Removes what that leaves.
    pub(crate) clearing: Clearing,
    pub(crate) packer: Packer<'a>,
    /// Steps by key.
    pub(crate) steps: Flights<String, DiffId>,
    /// Cache mounts that began anew in this build, by name.
    pub(crate) renewed: Flights<String, ()>,
    /// Images by origin and platform.
    pub(crate) images: Flights<(String, String), StoredImage>,
    /// Directories that were walked, each with the Dockerfile whose ignore file counts.
    pub(crate) directories: Flights<(PathBuf, Option<PathBuf>), Arc<dyn Tree>>,
    /// What the steps were made of last time.
    pub(crate) last_build: LastBuild,
    /// Context directories, each with the name of the note about it.
    contexts: Mutex<Vec<(String, Arc<ContextTree>)>>,
    pub(crate) ordered: Mutex<Option<Ordered>>,
    /// Numbers of steps that the plan does not know: triggers of base images.
    pub(crate) unplanned: AtomicUsize,
}

impl<'a> Shared<'a> {
    pub(crate) fn new(
        request: &'a BuildRequest,
        store: &'a Store,
        client: &'a Client,
        events: &'a dyn Events,
        dockerfile: &'a Dockerfile,
        caches: &'a RemoteCaches<'a>,
        (fetcher, schedule): (&'a Fetcher<'a>, &'a Schedule),
    ) -> Result<Self, BuildError> {
        let frontend = FrontendArguments::of(&request.build_args, request.platforms.len())?;
        for stage in &request.engine.no_cache_stages {
            let is_named = |label: String| label.eq_ignore_ascii_case(stage);
            if !(0..dockerfile.stages.len()).map(|index| stage_label(dockerfile, index)).any(is_named) {
                return Err(BuildError::Request(format!("there is no stage {stage:?} to build without the cache")));
            }
        }
        let (packer, ordered) = Packer::new(store, request.packing, request.threads, schedule.stop());
        let place = request.dockerfile_path.as_ref().map(|path| path.canonicalize().unwrap_or_else(|_| path.clone()));
        let last_build = LastBuild::open(store, &format!("{place:?} {}", dockerfile.source.name()))?;
        Ok(Self {
            store,
            client,
            events,
            request,
            dockerfile,
            caches,
            fetcher,
            frontend,
            schedule,
            starter: Starter::default(),
            clearing: Clearing::default(),
            packer,
            steps: Flights::new(),
            renewed: Flights::new(),
            images: Flights::new(),
            directories: Flights::new(),
            last_build,
            contexts: Mutex::default(),
            ordered: Mutex::new(Some(ordered)),
            unplanned: AtomicUsize::new(0),
        })
    }

    /// Has what is learned about a directory's files noted in the end.
    pub(crate) fn learned(&self, note: String, tree: &Arc<ContextTree>) {
        self.contexts.lock().unwrap_or_else(PoisonError::into_inner).push((note, Arc::clone(tree)));
    }

    /// Also after a failure: the files need not be read again because of it.
    pub(crate) fn note_facts(&self) {
        if let Err(error) = self.last_build.note(self.store) {
            tracing::debug!("cannot note what the steps were made of: {error}");
        }
        for (note, tree) in self.contexts.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if let Some(facts) = tree.facts()
                && let Err(error) = self.store.put_note(&note, &facts)
            {
                // The next build reads the files again: no reason to fail this one.
                tracing::debug!("cannot note what is known about a context: {error}");
            }
        }
    }
}
