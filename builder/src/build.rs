//! A build from begin to end: plan the stages, carry out their steps, make an image of the last one.

use std::cell::{OnceCell, RefCell};
use std::path::Path;
use std::sync::Arc;

use layerfs::{Layer, Store, Tree};
use oci_spec::image::Descriptor;
use registry_client::{Client, Platform};
use serde::Serialize;

use crate::cache::{self, StepKey};
use crate::check;
use crate::commit::CommitOptions;
use crate::context::{ContextTree, Directory};
use crate::dockerfile::{Dockerfile, Instruction, Placed, parse_trigger};
use crate::error::{BuildError, Site};
use crate::events::{Events, StepEnd, StepNumber};
use crate::image::ImageConfig;
use crate::manifest;
use crate::origins;
use crate::place::StoredImage;
use crate::plan::{Origin, Plan};
use crate::request::{BuildRequest, Times};
use crate::stage::StageState;
use crate::step::{Evaluation, config, files, run};

/// What a build made.
#[derive(Debug, Clone)]
pub struct Built {
    /// The manifest, or for several platforms the index, which is in the store without a name yet.
    pub manifest: Descriptor,
    /// The images, in the order in which their platforms were asked for; at least one.
    pub images: Vec<BuiltImage>,
}

/// One image of a build.
#[derive(Debug, Clone)]
pub struct BuiltImage {
    /// What it was asked for; its configuration may say otherwise if its base does.
    pub platform: Platform,
    /// The configuration's descriptor.
    pub config: Descriptor,
    /// The image.
    pub image: StoredImage,
}

/// Builds what is asked for into the store.
///
/// # Errors
/// The first thing that fails; what was finished before it is kept for the next build.
pub fn build(request: &BuildRequest, store: &Store, client: &Client, events: &dyn Events) -> Result<Built, BuildError> {
    let dockerfile = Dockerfile::parse(request.dockerfile.name(), request.dockerfile.bytes())?;
    report_checks(&dockerfile, request, events)?;
    // All are planned before any runs: a mistake in one of them costs no time.
    let plan = |platform| Plan::new(&dockerfile, request, platform);
    let plans = request.platforms.iter().map(plan).collect::<Result<Vec<_>, _>>()?;
    let (mut images, mut begun) = (Vec::new(), 0);
    let context = OnceCell::new();
    for plan in &plans {
        let builder = Builder {
            store,
            client,
            events,
            dockerfile: &dockerfile,
            plan,
            evaluation: Evaluation { request, escape: dockerfile.directives.escape, globals: &plan.globals },
            context: &context,
            stages: RefCell::new(vec![None; plan.stages.len()]),
            step: RefCell::new(Progress { begun, ..Progress::default() }),
        };
        let mut stage = builder.stage(plan.target)?;
        stage.config.config.labels.extend(request.labels.clone());
        stage.config.created = Some(stage.created.clone());
        images.push(manifest::store_image(store, plan.platform.clone(), stage.config, stage.layers)?);
        begun = builder.step.borrow().begun;
    }
    let manifest = match images.as_slice() {
        [one] => one.image.manifest.clone(),
        several => manifest::store_index(store, several)?,
    };
    Ok(Built { manifest, images })
}

/// Tells what the build checks find; an error if the Dockerfile says that they are one.
fn report_checks(dockerfile: &Dockerfile, request: &BuildRequest, events: &dyn Events) -> Result<(), BuildError> {
    let checked = check::check_file(dockerfile, request)?;
    for warning in &checked.warnings {
        let (name, at) = (dockerfile.source.name(), dockerfile.source.position(warning.span.start));
        events.warning(&format!("{}: {} ({name}:{})", warning.rule, warning.message, at.line));
    }
    checked.error(dockerfile).map_or(Ok(()), |error| Err(error.into()))
}

/// A build while it runs: what every step may use.
pub(crate) struct Builder<'a> {
    pub(crate) store: &'a Store,
    pub(crate) client: &'a Client,
    pub(crate) events: &'a dyn Events,
    pub(crate) evaluation: Evaluation<'a>,
    dockerfile: &'a Dockerfile,
    plan: &'a Plan<'a>,
    context: &'a OnceCell<Input>,
    stages: RefCell<Vec<Option<StageState>>>,
    step: RefCell<Progress>,
}

/// Where the build is, for the names of steps.
#[derive(Clone, Default)]
struct Progress {
    /// Steps begun so far, of all stages.
    begun: usize,
    /// The stage that is built now.
    stage: usize,
    /// Its steps begun so far, FROM included.
    of_stage: usize,
}

/// Files to copy from or to mount.
#[derive(Clone)]
pub(crate) struct Input {
    pub(crate) tree: Arc<dyn Tree>,
    /// What makes it the same input in another build.
    pub(crate) identity: Identity,
    /// What messages call it.
    pub(crate) label: String,
}

/// What makes an input the same in another build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Identity {
    /// The files that are used, by their content.
    Content,
    /// The stack of layers.
    Chain(String),
}

impl Builder<'_> {
    /// What was asked for.
    pub(crate) fn request(&self) -> &BuildRequest {
        self.evaluation.request
    }

    /// The build context.
    pub(crate) fn context(&self) -> Result<Input, BuildError> {
        if self.context.get().is_none() {
            let request = self.request();
            let input = self.directory(&request.context, request.dockerfile_path.as_deref(), "the build context")?;
            _ = self.context.set(input);
        }
        Ok(self.context.get().expect("set above").clone())
    }

    /// What `--from` or `from=` names.
    pub(crate) fn input(&self, from: &str, site: &Site) -> Result<Input, BuildError> {
        let origin = self.plan.origin(self.request(), self.step.borrow().stage, from, site)?;
        let label = format!("\"{from}\"");
        match origin {
            Origin::Scratch => Err(site.error("there is nothing to take from scratch").into()),
            Origin::Stage(index) => {
                let stage = self.stage(index)?;
                Ok(Input { tree: self.tree(&stage)?, identity: Identity::Chain(stage.chain()), label })
            }
            Origin::Context(crate::request::NamedContext::Directory(path)) => self.directory(&path, None, &label),
            origin => {
                let platform = &self.plan.platform;
                let image = origins::image(self, &origin, platform, Some(site))?;
                let stage = StageState::on_image(image.config, image.layers);
                Ok(Input { tree: self.tree(&stage)?, identity: Identity::Chain(stage.chain()), label })
            }
        }
    }

    fn directory(&self, path: &Path, dockerfile: Option<&Path>, label: &str) -> Result<Input, BuildError> {
        let patterns = origins::ignore_patterns(path, dockerfile)?;
        let failed = |error: crate::context::ContextError| BuildError::Request(format!("cannot {error}"));
        let directory = Directory::open(path, patterns).map_err(failed)?;
        let tree = Arc::new(ContextTree::new(directory).map_err(failed)?);
        Ok(Input { tree, identity: Identity::Content, label: label.to_owned() })
    }

    /// The merged tree of a stage as far as it is built.
    pub(crate) fn tree(&self, stage: &StageState) -> Result<Arc<dyn Tree>, BuildError> {
        Ok(self.store.tree(&stage.diff_ids())?)
    }

    /// The tree with nothing in it.
    pub(crate) fn empty_tree(&self) -> Result<Arc<dyn Tree>, BuildError> {
        Ok(self.store.tree(&[])?)
    }

    /// How layers of a stage are written.
    pub(crate) fn commit_options(&self, stage: &StageState) -> CommitOptions {
        CommitOptions { epoch: stage.epoch, threads: self.request().threads }
    }

    /// Carries out a step that makes a layer, unless an equal one was carried out before. `shown` is
    /// what progress calls it, `created_by` what the history does.
    pub(crate) fn cached(
        &self,
        stage: &mut StageState,
        shown: &str,
        created_by: &str,
        work: impl Serialize,
        carry_out: impl FnOnce(&StageState, StepNumber) -> Result<Layer, BuildError>,
    ) -> Result<(), BuildError> {
        let platform = self.platform().to_string();
        let key = StepKey { below: &stage.chain(), platform: &platform, epoch: stage.epoch, work }.digest();
        let recorded = if self.request().no_cache { None } else { cache::find(self.store, &key)? };
        let number = self.begin_step(shown);
        let (result, end) = match recorded {
            Some(layer) => (Ok(layer), StepEnd::Cached),
            None => match carry_out(stage, number) {
                Ok(layer) => {
                    (cache::record(self.store, &key, &layer).map(|()| layer).map_err(Into::into), StepEnd::Done)
                }
                Err(error) => (Err(error), StepEnd::Failed),
            },
        };
        self.events.step_ended(number, end);
        stage.add_layer(result?, created_by);
        Ok(())
    }

    fn begin_step(&self, shown: &str) -> StepNumber {
        let mut step = self.step.borrow_mut();
        step.begun += 1;
        step.of_stage += 1;
        let label = &self.plan.stages[step.stage].label;
        let first_line = shown.lines().next().unwrap_or_default();
        let platform = match self.request().platforms.len() {
            0 | 1 => String::new(),
            _ => format!("{} ", self.plan.platform),
        };
        let name = format!("[{platform}{label} {}/{}] {first_line}", step.of_stage, self.plan.step_count(step.stage));
        self.events.step_started(StepNumber(step.begun), &name);
        StepNumber(step.begun)
    }

    /// What the stage of this moment is built for.
    pub(crate) fn platform(&self) -> &Platform {
        &self.plan.stages[self.step.borrow().stage].platform
    }

    /// A stage with all its instructions carried out, once.
    fn stage(&self, index: usize) -> Result<StageState, BuildError> {
        if let Some(built) = &self.stages.borrow()[index] {
            return Ok(built.clone());
        }
        let outer = self.step.borrow().clone();
        let begun = outer.begun;
        *self.step.borrow_mut() = Progress { begun, stage: index, of_stage: 0 };
        let mut stage = self.begin_stage(index)?;
        for placed in &self.plan.stages[index].stage.instructions {
            self.instruction(&mut stage, placed, &self.site(placed.span))?;
        }
        let begun = self.step.borrow().begun;
        *self.step.borrow_mut() = Progress { begun, ..outer };
        self.stages.borrow_mut()[index] = Some(stage.clone());
        Ok(stage)
    }

    fn site(&self, span: crate::dockerfile::Span) -> Site {
        Site { source: self.dockerfile.source.clone(), span }
    }

    fn begin_stage(&self, index: usize) -> Result<StageState, BuildError> {
        let planned = &self.plan.stages[index];
        let site = self.site(planned.stage.from.span);
        let mut stage = match &planned.base {
            Origin::Scratch => {
                let platform = &planned.platform;
                StageState::scratch(ImageConfig::scratch(platform.os(), platform.architecture(), platform.variant()))
            }
            Origin::Stage(base) => {
                // A stage on a stage goes on with its build arguments, too.
                StageState { has_own_cmd: false, ..self.stage(*base)? }
            }
            Origin::Context(crate::request::NamedContext::Directory(path)) => {
                return Err(site.error(format!("the directory {} is no image to build on", path.display())).into());
            }
            origin => {
                let number = self.begin_step(&planned.stage.from.text);
                let image = origins::image(self, origin, &planned.platform, Some(&site));
                self.events.step_ended(number, if image.is_ok() { StepEnd::Done } else { StepEnd::Failed });
                let image = image?;
                let name = &planned.stage.from.value.image.text;
                let warning = check::base_platform(self.dockerfile, name, &image.config, &planned.platform);
                warning.iter().for_each(|warning| self.events.warning(warning));
                StageState::on_image(image.config, image.layers)
            }
        };
        if let Origin::Stage(_) = planned.base {
            self.triggers(&mut stage, &site)?;
            return Ok(stage);
        }
        let epoch = match self.request().times {
            Times::Real => None,
            Times::Epoch(seconds) => Some(seconds),
            Times::Base => Some(manifest::seconds_of(stage.config.created.as_deref()).unwrap_or(0)),
        };
        stage.created = manifest::timestamp(epoch);
        stage.epoch = epoch;
        self.triggers(&mut stage, &site)?;
        Ok(stage)
    }

    /// Carries out what the base image has for its children.
    fn triggers(&self, stage: &mut StageState, site: &Site) -> Result<(), BuildError> {
        for text in std::mem::take(&mut stage.config.config.on_build) {
            let in_trigger = |message: &str| site.error(format!("ONBUILD {text}: {message}"));
            let trigger = parse_trigger("ONBUILD", &text).map_err(|error| in_trigger(&error.message))?;
            let at = Site { source: trigger.source.clone(), span: trigger.instruction.span };
            self.instruction(stage, &trigger.instruction, &at).map_err(|error| match error {
                BuildError::Dockerfile(error) => in_trigger(&error.message).into(),
                other => other,
            })?;
        }
        Ok(())
    }

    fn instruction(&self, stage: &mut StageState, placed: &Placed<Instruction>, site: &Site) -> Result<(), BuildError> {
        let text = placed.text.as_str();
        let evaluation = &self.evaluation;
        match &placed.value {
            Instruction::From(_) => return Err(site.error("FROM begins a stage").into()),
            Instruction::Arg(arguments) => config::arg(evaluation, stage, arguments, site)?,
            Instruction::Env(pairs) => config::env(evaluation, stage, pairs, site)?,
            Instruction::Label(pairs) => config::label(evaluation, stage, pairs, site)?,
            Instruction::Run(command) => run::run(self, stage, command, text, site)?,
            Instruction::Copy(copy) => files::copy(self, stage, copy, text, site)?,
            Instruction::Add(add) => files::add(self, stage, add, text, site)?,
            Instruction::Workdir(word) => files::workdir(self, stage, word, text, site)?,
            Instruction::User(word) => config::user(evaluation, stage, word, site)?,
            Instruction::Expose(words) => config::expose(evaluation, stage, words, site)?,
            Instruction::Volume(words) => config::volume(evaluation, stage, words, site)?,
            Instruction::Entrypoint(command) => config::entrypoint(stage, command),
            Instruction::Cmd(command) => config::cmd(stage, command),
            Instruction::Shell(words) => config::shell(stage, words),
            Instruction::StopSignal(word) => config::stop_signal(evaluation, stage, word, site)?,
            Instruction::Healthcheck(check) => config::healthcheck(stage, check),
            Instruction::Onbuild(onbuild) => config::onbuild(stage, &onbuild.text),
            Instruction::Maintainer(word) => config::maintainer(stage, &word.text),
        }
        Ok(())
    }
}
