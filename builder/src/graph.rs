//! The stages of a build, side by side, and each of them built once.
//!
//! Invariant: a stage waits for stages before it only, and holds no turn while it waits, so that a build always goes
//! on. What is built does not depend on how many go on at once.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;

use layerfs::Layer;
use registry_client::RegistryDestination;

use crate::building::Builder;
use crate::built::BuiltImage;
use crate::error::BuildError;
use crate::events::StepNumber;
use crate::flights::Flights;
use crate::manifest;
use crate::packing::Ordered;
use crate::plan::Plan;
use crate::shared::Shared;
use crate::stage::{StageLayer, StageState};

/// Threads that stages get at most; the stages beyond are built one after the other.
const MOST_STAGE_THREADS: usize = 256;

/// The build of one image: one platform of what is asked for.
pub(crate) struct ImageBuild<'a> {
    pub(crate) shared: &'a Shared<'a>,
    pub(crate) plan: &'a Plan<'a>,
    stages: Flights<usize, StageState>,
    /// For each stage the number before that of its first step.
    numbers: Vec<usize>,
}

/// Builds the images of some plans, in their order. What they shared ends with them.
pub(crate) fn build_all<'a>(shared: Shared<'a>, plans: &[Plan<'a>]) -> Result<Vec<BuiltImage>, BuildError> {
    let shared = &shared;
    let registry = |name| RegistryDestination::new(shared.client, name);
    let registries = shared.request.engine.upload_to.iter().map(registry).collect::<Result<Vec<_>, _>>()?;
    let built = std::thread::scope(|scope| {
        let ordered = shared.ordered.lock().unwrap_or_else(PoisonError::into_inner).take();
        let _closing = shared.packer.closing();
        if let Some(Ordered { orders, uploads }) = ordered {
            scope.spawn(|| shared.packer.work(orders));
            scope.spawn(|| shared.packer.upload(uploads, &registries, shared.events.transfers(), shared.schedule));
        }
        images(shared, plans)
    });
    shared.note_facts();
    built.map_err(|error| shared.schedule.take_failure().unwrap_or(error))
}

fn images(shared: &Shared<'_>, plans: &[Plan<'_>]) -> Result<Vec<BuiltImage>, BuildError> {
    let mut images = Vec::new();
    let mut next = 0;
    for plan in plans {
        let mut numbers = vec![0; plan.stages.len()];
        for index in plan.needed() {
            numbers[index] = next;
            next += plan.step_count(index);
        }
        images.push(ImageBuild { shared, plan, stages: Flights::new(), numbers });
    }
    shared.unplanned.store(next, Ordering::Relaxed);
    let stages = images.iter().flat_map(|image| image.plan.needed().into_iter().map(move |at| (image, at)));
    let stages: Vec<_> = stages.collect();
    std::thread::scope(|scope| {
        if shared.request.engine.jobs > 1 {
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
        images.iter().map(|image| image.finish().map_err(|error| shared.schedule.fail(error))).collect()
    })
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
