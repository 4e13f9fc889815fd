//! One stage while it is built, and what its steps may use of the build.
//!
//! Invariant: a step is carried out only if neither this store nor a remote cache has the result of an equal one.

use std::cell::Cell;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use layerfs::{DiffId, Layer, StepClaim, Store, Tree, TreeIndex};
use registry_client::Platform;

use crate::cache::{self, StepKey, Work};
use crate::check::{self, Checked};
use crate::commit::commit_changeset;
use crate::context::{ContextTree, Directory};
use crate::dockerfile::{Dockerfile, DockerfileError, Instruction, Placed, parse_trigger};
use crate::error::{BuildError, Site};
use crate::events::{Events, StepEnd, StepNumber};
use crate::explain::Inputs;
use crate::graph::ImageBuild;
use crate::image::ImageConfig;
use crate::input::{Input, KnownBy};
use crate::key::Key;
use crate::manifest;
use crate::origins;
use crate::packing::{Age, Order};
use crate::plan::{Origin, PlannedStage, SourceName};
use crate::request::{BuildRequest, MainContext, NamedContext, Times};
use crate::shared::Shared;
use crate::stage::StageState;
use crate::step::config::ConfigStep;
use crate::step::dated::Dated;
use crate::step::{Evaluation, files, run};

/// One stage while it is built: what every step of it may use.
pub(crate) struct Builder<'a> {
    pub(crate) store: &'a Store,
    pub(crate) events: &'a dyn Events,
    pub(crate) evaluation: Evaluation<'a>,
    pub(crate) shared: &'a Shared<'a>,
    image: &'a ImageBuild<'a>,
    /// The number of the stage.
    index: usize,
    /// Its steps begun so far, FROM included.
    begun: Cell<usize>,
}

impl<'a> Builder<'a> {
    /// The stage with number `index` of an image.
    pub(crate) fn new(image: &'a ImageBuild<'a>, index: usize) -> Self {
        let shared = image.shared;
        let Shared { store, events, request, dockerfile, .. } = *shared;
        let evaluation = Evaluation { request, escape: dockerfile.directives.escape, globals: &image.plan.globals };
        Self { store, events, evaluation, shared, image, index, begun: Cell::new(0) }
    }

    /// Carries out all instructions.
    pub(crate) fn build(&self) -> Result<StageState, BuildError> {
        let mut stage = self.begin_stage()?;
        let planned = self.planned();
        // What lies on nothing was checked before; what else a stage begins with is known only now.
        if !matches!(planned.base, Origin::Scratch) && !planned.instructions.is_empty() {
            let (file, set) = (self.shared.dockerfile, &stage.variables);
            let checked = check::undefined_variables(file, self.request(), self.index, set)?;
            tell(checked, self.shared.dockerfile, self.events)?;
        }
        for placed in planned.instructions {
            self.instruction(&mut stage, placed, &self.site(placed.span))?;
        }
        Ok(stage)
    }

    /// What was asked for.
    pub(crate) fn request(&self) -> &'a BuildRequest {
        self.evaluation.request
    }

    /// The build context.
    pub(crate) fn context(&self) -> Result<Input, BuildError> {
        let (request, label) = (self.request(), "the build context");
        match &request.context {
            MainContext::Directory(path) => self.directory(path, request.dockerfile_path.as_deref(), label),
            MainContext::Fetched(fetched) => Ok(Input::fetched(fetched, label)),
        }
    }

    /// What `--from` or `from=` names.
    pub(crate) fn input(&self, from: SourceName<'_>, site: &Site) -> Result<Input, BuildError> {
        self.input_as(from, site, |_, tree| Ok(tree))
    }

    /// As [`Self::input`], of a stage as [`Self::dated`].
    pub(crate) fn dated_input(&self, from: SourceName<'_>, site: &Site) -> Result<Input, BuildError> {
        self.input_as(from, site, |stage, tree| self.dated(stage, tree))
    }

    fn input_as(
        &self,
        from: SourceName<'_>,
        site: &Site,
        shown: impl Fn(&StageState, Arc<TreeIndex>) -> Result<Arc<dyn Tree>, BuildError>,
    ) -> Result<Input, BuildError> {
        let origin = self.image.plan.origin(self.request(), self.index, from, site)?;
        let label = format!("\"{}\"", from.text());
        match origin {
            Origin::Scratch => Ok(Input { tree: self.empty_tree()?, known_by: KnownBy::Chain(String::new()), label }),
            Origin::Stage(index) => {
                let stage = self.image.stage(index)?;
                let tree = shown(&stage, self.tree(&stage)?)?;
                Ok(Input { tree, known_by: KnownBy::Chain(stage.chain()), label })
            }
            Origin::Context(context @ (NamedContext::Directory(_) | NamedContext::Remote(_))) => {
                self.files(&context, &label).map_err(site.of())
            }
            origin => {
                let platform = &self.image.plan.platform;
                let image = origins::image(self.shared, &origin, platform, Some(site))?;
                let stage = StageState::on_image(image.config, image.layers);
                Ok(Input { tree: self.tree(&stage)?, known_by: KnownBy::Chain(stage.chain()), label })
            }
        }
    }

    /// A context that is no image.
    fn files(&self, context: &NamedContext, label: &str) -> Result<Input, BuildError> {
        match context {
            NamedContext::Directory(path) => self.directory(path, None, label),
            NamedContext::Remote(place) => Ok(Input::fetched(&self.shared.fetcher.open(place)?, label)),
            NamedContext::Image(_) | NamedContext::OciLayout(..) => unreachable!("the callers deal with images"),
        }
    }

    /// A stage that begins with files of no image: they are its first layer.
    fn stage_on_files(&self, stage: &mut StageState, context: &NamedContext, from: &str) -> Result<(), BuildError> {
        let input = self.files(context, "the named context")?;
        let changes = files::whole(&input.tree, stage.epoch, self.empty_tree()?);
        let changes = changes.map_err(BuildError::file("read", from))?;
        let diff_id = commit_changeset(self.store, &changes, stage.epoch)?;
        stage.add_unrecorded_layer(diff_id);
        if self.image.plan.is_in_result(self.index) {
            self.shared.packer.order(Order::Pack(diff_id, Age::Old));
        }
        Ok(())
    }

    /// A directory, walked once in a build.
    fn directory(&self, path: &Path, dockerfile: Option<&Path>, label: &str) -> Result<Input, BuildError> {
        let key = (path.to_owned(), dockerfile.map(Path::to_owned));
        let tree = self.shared.directories.once(&key, || {
            let patterns = origins::ignore_patterns(path, dockerfile)?;
            let failed = |error: crate::context::ContextError| BuildError::Request(format!("cannot {error}"));
            let directory = Directory::open(path, patterns).map_err(failed)?;
            let note = facts_note(path, dockerfile);
            let facts = self.store.note(&note)?.unwrap_or_default();
            let tree = Arc::new(ContextTree::new(directory, facts, self.request().threads).map_err(failed)?);
            self.shared.learned(note, &tree);
            Ok::<Arc<dyn Tree>, BuildError>(tree)
        })?;
        Ok(Input { tree, known_by: KnownBy::Content, label: label.to_owned() })
    }

    /// The merged tree of a stage as far as it is built.
    pub(crate) fn tree(&self, stage: &StageState) -> Result<Arc<TreeIndex>, BuildError> {
        Ok(self.store.tree(&stage.diff_ids())?)
    }

    /// The tree of a stage for a step that keeps something from build to build: there it matters which files are new.
    pub(crate) fn dated(&self, stage: &StageState, tree: Arc<TreeIndex>) -> Result<Arc<dyn Tree>, BuildError> {
        let Some(epoch_seconds) = stage.epoch else { return Ok(tree) };
        let dated = Dated::new(tree, stage.base_layers(), epoch_seconds);
        Ok(Arc::new(dated.map_err(BuildError::file("look at the layers of", self.store.root()))?))
    }

    /// The tree with nothing in it.
    pub(crate) fn empty_tree(&self) -> Result<Arc<dyn Tree>, BuildError> {
        Ok(self.store.tree(&[])?)
    }

    /// Carries out a step that makes a layer, unless an equal one was carried out before. `shown` is
    /// what progress calls it, `created_by` what the history does.
    pub(crate) fn cached(
        &self,
        stage: &mut StageState,
        shown: &str,
        created_by: &str,
        work: &Work,
        carry_out: impl FnOnce(&StageState, StepNumber) -> Result<DiffId, BuildError>,
    ) -> Result<(), BuildError> {
        self.shared.schedule.check()?;
        let platform = self.platform().to_string();
        let below = stage.chain();
        let key = StepKey { below: &below, platform: &platform, epoch: stage.epoch, work };
        let inputs = Inputs::of(&key, shown);
        let key = key.digest();
        let number = self.begin_step(shown);
        let place = format!("{} {} {}", self.image.plan.platform, self.planned().label, self.begun.get());
        let mut end = StepEnd::Cached;
        let made: Result<_, BuildError> = self.shared.steps.once(&key, || {
            if let Some(found) = self.recorded(&key)? {
                return Ok(found);
            }
            let _claim = self.claim(&key)?;
            // Another process may have done it meanwhile.
            if let Some(found) = self.recorded(&key)? {
                return Ok(found);
            }
            if self.request().engine.explain {
                self.events.step_missed(number, &self.why(&place, &inputs));
            }
            let _turn = self.shared.schedule.turn()?;
            end = StepEnd::Done;
            let diff_id = carry_out(stage, number)?;
            cache::record(self.store, &key, diff_id)?;
            Ok(diff_id)
        });
        self.events.step_ended(number, if made.is_ok() { end } else { StepEnd::Failed });
        let diff_id = made?;
        self.shared.caches.note(&key, diff_id);
        self.shared.last_build.finished(place, inputs);
        stage.add_layer(diff_id, created_by);
        if self.image.plan.is_in_result(self.index) {
            let age = if end == StepEnd::Done { Age::New } else { Age::Old };
            self.shared.packer.order(Order::Pack(diff_id, age));
        }
        Ok(())
    }

    /// What an earlier build recorded for a key, unless it does not count here.
    fn recorded(&self, key: &str) -> Result<Option<DiffId>, BuildError> {
        if self.is_without_cache() {
            return Ok(None);
        }
        match cache::find(self.store, key)? {
            None => self.shared.caches.find(key),
            found => Ok(found),
        }
    }

    /// Waits until no other process carries out the same step; where its result would not count, there is no need to.
    fn claim(&self, key: &str) -> Result<Option<StepClaim>, BuildError> {
        while !self.is_without_cache() {
            if let Some(claim) = self.store.claim_step(key)? {
                return Ok(Some(claim));
            }
            self.shared.schedule.pause()?;
        }
        Ok(None)
    }

    /// Whether the steps of this stage run whatever was built before.
    pub(crate) fn is_without_cache(&self) -> bool {
        let (request, label) = (self.request(), &self.planned().label);
        request.no_cache || request.engine.no_cache_stages.iter().any(|stage| stage.eq_ignore_ascii_case(label))
    }

    fn why(&self, place: &str, inputs: &Inputs) -> String {
        if self.is_without_cache() {
            return "the cache is not to be used".to_owned();
        }
        self.shared.last_build.reason(self.store, place, inputs)
    }

    fn begin_step(&self, shown: &str) -> StepNumber {
        self.begun.set(self.begun.get() + 1);
        let number = self.image.step_number(self.index, self.begun.get());
        let first_line = shown.lines().next().unwrap_or_default();
        let platform = match self.request().platforms.len() {
            0 | 1 => String::new(),
            _ => format!("{} ", self.image.plan.platform),
        };
        let (label, begun) = (&self.planned().label, self.begun.get());
        let name = format!("[{platform}{label} {begun}/{}] {first_line}", self.image.plan.step_count(self.index));
        self.events.step_started(number, &name);
        number
    }

    fn planned(&self) -> &'a PlannedStage<'a> {
        &self.image.plan.stages[self.index]
    }

    /// What the stage is built for.
    pub(crate) fn platform(&self) -> &Platform {
        &self.planned().platform
    }

    fn site(&self, span: crate::dockerfile::Span) -> Site {
        Site { source: self.shared.dockerfile.source.clone(), span }
    }

    fn begin_stage(&self) -> Result<StageState, BuildError> {
        let planned = self.planned();
        let site = self.site(planned.stage.from.span);
        let platform = &planned.platform;
        let scratch = || StageState::scratch(ImageConfig::scratch(platform));
        let mut stage = match &planned.base {
            Origin::Scratch => scratch(),
            Origin::Stage(base) => {
                // A stage on a stage goes on with its build arguments, too.
                StageState { has_own_cmd: false, ..self.image.stage(*base)? }
            }
            // Its files are put where the times of layers are known.
            Origin::Context(NamedContext::Directory(_) | NamedContext::Remote(_)) => scratch(),
            origin => {
                let number = self.begin_step(&planned.stage.from.text);
                let image = origins::image(self.shared, origin, &planned.platform, Some(&site));
                self.events.step_ended(number, if image.is_ok() { StepEnd::Done } else { StepEnd::Failed });
                let image = image?;
                let file = self.shared.dockerfile;
                let checked =
                    check::base_platform(file, self.request(), planned.stage, &image.config, &planned.platform)?;
                tell(checked, file, self.events)?;
                if self.image.plan.is_in_result(self.index) {
                    let came_from = origin.repository();
                    let order = |layer: &Layer| Order::Upload(Box::new(layer.descriptor.clone()), came_from.clone());
                    image.layers.iter().for_each(|layer| self.shared.packer.order(order(layer)));
                }
                StageState::on_image(image.config, image.layers)
            }
        };
        // A context in the place of a stage is as it is.
        if !planned.is_replaced {
            stage = stage.with_path();
        }
        if let Origin::Stage(_) = planned.base {
            self.triggers(&mut stage, &site)?;
            return Ok(stage);
        }
        let epoch = match self.request().times {
            Times::Real | Times::RealFiles(_) => None,
            Times::Epoch(seconds) => Some(seconds),
            Times::Base => Some(manifest::seconds_of(stage.config.created.as_deref()).unwrap_or(0)),
        };
        stage.created = match self.request().times {
            Times::RealFiles(seconds) => manifest::timestamp(Some(seconds)),
            _ => manifest::timestamp(epoch),
        };
        stage.epoch = epoch;
        if let Origin::Context(context @ (NamedContext::Directory(_) | NamedContext::Remote(_))) = &planned.base {
            self.stage_on_files(&mut stage, context, &planned.stage.from.text).map_err(site.of())?;
        }
        self.triggers(&mut stage, &site)?;
        Ok(stage)
    }

    /// Carries out what the base image has for its children.
    fn triggers(&self, stage: &mut StageState, site: &Site) -> Result<(), BuildError> {
        for text in std::mem::take(&mut stage.config.config.on_build) {
            let in_trigger = |message: &str| site.error(format!("ONBUILD {text}: {message}"));
            let trigger = parse_trigger("ONBUILD", &text)
                .and_then(|trigger| trigger.instruction.check_constants(&trigger.source).map(|()| trigger))
                .map_err(|error| in_trigger(&error.message))?;
            let at = Site { source: trigger.source.clone(), span: trigger.instruction.span };
            self.instruction(stage, &trigger.instruction, &at).map_err(|error| match error {
                BuildError::Dockerfile(error) => in_trigger(&error.message).into(),
                BuildError::Step { at, exit_code, tail } => {
                    let at = Box::new(DockerfileError { hint: at.hint.clone(), ..in_trigger(&at.message) });
                    BuildError::Step { at, exit_code, tail }
                }
                other => other,
            })?;
        }
        Ok(())
    }

    fn instruction(&self, stage: &mut StageState, placed: &Placed<Instruction>, site: &Site) -> Result<(), BuildError> {
        let text = placed.text.as_str();
        let config = ConfigStep { evaluation: &self.evaluation, stage: &mut *stage, site };
        match &placed.value {
            Instruction::From(_) => return Err(site.error("FROM begins a stage").into()),
            Instruction::Arg(arguments) => config.arg(arguments)?,
            Instruction::Env(pairs) => config.env(pairs)?,
            Instruction::Label(pairs) => config.label(pairs)?,
            Instruction::Run(command) => run::run(self, stage, command, text, site)?,
            Instruction::Copy(copy) => files::copy(self, stage, copy, text, site)?,
            Instruction::Add(add) => files::add(self, stage, add, text, site)?,
            Instruction::Workdir(word) => files::workdir(self, stage, word, text, site)?,
            Instruction::User(word) => config.user(word)?,
            Instruction::Expose(words) => config.expose(words)?,
            Instruction::Volume(words) => config.volume(words)?,
            Instruction::Entrypoint(command) => config.entrypoint(command),
            Instruction::Cmd(command) => config.cmd(command),
            Instruction::Shell(words) => config.shell(words),
            Instruction::StopSignal(word) => config.stop_signal(word)?,
            Instruction::Healthcheck(check) => config.healthcheck(check),
            Instruction::Onbuild(text) => config.onbuild(text),
            Instruction::Maintainer(word) => config.maintainer(&word.text),
        }
        Ok(())
    }
}

/// Tells of warnings; an error if the Dockerfile says that they are one.
pub(crate) fn tell(checked: Checked, dockerfile: &Dockerfile, events: &dyn Events) -> Result<(), BuildError> {
    for warning in &checked.warnings {
        let (name, at) = (dockerfile.source.name(), dockerfile.source.position(warning.span.start));
        events.warning(&format!("{}: {} ({name}:{})", warning.rule, warning.message, at.line));
    }
    checked.error.map_or(Ok(()), |error| Err(error.into()))
}

/// The name of what is known about the files of a directory, of which ignore files show different parts.
fn facts_note(path: &Path, dockerfile: Option<&Path>) -> String {
    let absolute = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let key = Key::of("files").bytes(absolute(path).as_os_str().as_bytes());
    let key = dockerfile.map(absolute).iter().fold(key, |key, path| key.bytes(path.as_os_str().as_bytes()));
    format!("files-{}", key.digest())
}
