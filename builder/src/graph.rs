//! The stages of a build, side by side: what they share, and each of them built once.
//!
//! Invariant: a stage waits for stages before it only, and holds no turn while it waits, so that a build always goes
//! on. What is built does not depend on how many go on at once.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Mutex, PoisonError};

use layerfs::{DiffId, Layer, Store, Tree};
use registry_client::{Client, RegistryDestination};

use crate::build::{Builder, BuiltImage};
use crate::context::{ContextTree, Fetcher};
use crate::dockerfile::Dockerfile;
use crate::error::BuildError;
use crate::events::{Events, StepNumber};
use crate::explain::LastBuild;
use crate::flights::Flights;
use crate::frontend::FrontendArguments;
use crate::manifest;
use crate::packing::{Ordered, Packer};
use crate::place::StoredImage;
use crate::plan::{Plan, stage_label};
use crate::remote_cache::RemoteCaches;
use crate::request::BuildRequest;
use crate::sandbox::Starter;
use crate::schedule::Schedule;
use crate::stage::{StageLayer, StageState};

/// Threads that stages get at most; the stages beyond are built one after the other.
const MOST_STAGE_THREADS: usize = 256;

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
    ordered: Mutex<Option<Ordered>>,
    /// Numbers of steps that the plan does not know: triggers of base images.
    unplanned: AtomicUsize,
}

/// The build of one image: one platform of what is asked for.
pub(crate) struct ImageBuild<'a> {
    pub(crate) shared: &'a Shared<'a>,
    pub(crate) plan: &'a Plan<'a>,
    stages: Flights<usize, StageState>,
    /// For each stage the number before that of its first step.
    numbers: Vec<usize>,
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

    /// Builds the images of some plans, in their order.
    pub(crate) fn build(self, plans: &'a [Plan<'a>]) -> Result<Vec<BuiltImage>, BuildError> {
        let registry = |name| RegistryDestination::new(self.client, name);
        let registries = self.request.engine.upload_to.iter().map(registry).collect::<Result<Vec<_>, _>>()?;
        let built = std::thread::scope(|scope| {
            let ordered = self.ordered.lock().unwrap_or_else(PoisonError::into_inner).take();
            let _closing = self.packer.closing();
            if let Some(Ordered { orders, uploads }) = ordered {
                scope.spawn(|| self.packer.work(orders));
                scope.spawn(|| self.packer.upload(uploads, &registries, self.events.transfers(), self.schedule));
            }
            self.images(plans)
        });
        self.note_facts();
        built.map_err(|error| self.schedule.take_failure().unwrap_or(error))
    }

    /// Has what is learned about a directory's files noted in the end.
    pub(crate) fn learned(&self, note: String, tree: &Arc<ContextTree>) {
        self.contexts.lock().unwrap_or_else(PoisonError::into_inner).push((note, Arc::clone(tree)));
    }

    /// Also after a failure: the files need not be read again because of it.
    fn note_facts(&self) {
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

    fn images(&self, plans: &[Plan<'_>]) -> Result<Vec<BuiltImage>, BuildError> {
        let mut images = Vec::new();
        let mut next = 0;
        for plan in plans {
            let mut numbers = vec![0; plan.stages.len()];
            for index in plan.needed() {
                numbers[index] = next;
                next += plan.step_count(index);
            }
            images.push(ImageBuild { shared: self, plan, stages: Flights::new(), numbers });
        }
        self.unplanned.store(next, Ordering::Relaxed);
        let stages = images.iter().flat_map(|image| image.plan.needed().into_iter().map(move |at| (image, at)));
        let stages: Vec<_> = stages.collect();
        std::thread::scope(|scope| {
            if self.request.engine.jobs > 1 {
                for &(image, index) in stages.iter().take(MOST_STAGE_THREADS) {
                    let (begun, has_begun) = channel::<()>();
                    // Its failure is the build's, and stays with the schedule.
                    let stage = move || drop(image.begin_stage(index, begun));
                    _ = std::thread::Builder::new().name("stage".to_owned()).spawn_scoped(scope, stage);
                    // Each finds those before it begun: one that begins them itself, and they those before them, would
                    // need a stack for a long chain of stages.
                    _ = has_begun.recv();
                }
            }
            // From the first on: a long chain of stages, begun at its end, would be as deep a recursion.
            stages.iter().try_for_each(|(image, index)| image.stage(*index).map(drop))?;
            images.iter().map(|image| image.finish().map_err(|error| self.schedule.fail(error))).collect()
        })
    }
}

impl ImageBuild<'_> {
    /// A stage with all its instructions carried out, once.
    pub(crate) fn stage(&self, index: usize) -> Result<StageState, BuildError> {
        self.begin_stage(index, ())
    }

    /// The same; `begun` is dropped as soon as others wait for it.
    fn begin_stage(&self, index: usize, begun: impl Sized) -> Result<StageState, BuildError> {
        self.stages.once(&index, || {
            drop(begun);
            self.shared.schedule.check()?;
            Builder::new(self, index).build().map_err(|error| self.shared.schedule.fail(error))
        })
    }

    /// The number of a stage's step, 1 for the first: the same in each build of a Dockerfile.
    pub(crate) fn step_number(&self, index: usize, step: usize) -> StepNumber {
        StepNumber(match step <= self.plan.step_count(index) {
            true => self.numbers[index] + step,
            false => self.shared.unplanned.fetch_add(1, Ordering::Relaxed) + 1,
        })
    }

    fn finish(&self) -> Result<BuiltImage, BuildError> {
        let mut stage = self.stage(self.plan.target)?;
        stage.complete_history();
        stage.config.config.labels.extend(self.shared.request.labels.clone());
        if self.shared.request.are_platforms_given {
            stage.config.set_platform(&self.plan.platform);
        }
        stage.config.normalize_platform();
        stage.config.created = Some(stage.created.clone());
        let base_layers = stage.layers.iter().filter(|layer| layer.blob.is_some()).count();
        let layer = |StageLayer { diff_id, blob }| match blob {
            Some(descriptor) => Ok(Layer { diff_id, descriptor }),
            None => self.shared.packer.pack(diff_id),
        };
        let layers = stage.layers.into_iter().map(layer).collect::<Result<Vec<_>, _>>()?;
        self.shared.caches.describe(&mut stage.config, &layers);
        manifest::store_image(self.shared.store, self.plan.platform.clone(), stage.config, &layers, base_layers)
    }
}
