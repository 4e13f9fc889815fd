//! A Dockerfile to the stages that have to be built: global arguments, bases, and which stage needs which.
//!
//! Invariant: a stage needs only stages before it, so that building on demand ends.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use registry_client::{Platform, Reference};

use crate::dockerfile::{Dockerfile, Expander, Instruction, Placed, Stage, closest};
use crate::error::{BuildError, Site};
use crate::machine;
use crate::request::{BuildRequest, NamedContext};

/// What to build.
pub(crate) struct Plan<'d> {
    /// All stages of the file, in order.
    pub(crate) stages: Vec<PlannedStage<'d>>,
    /// The one that the result is made of.
    pub(crate) target: usize,
    /// The values of the global ARGs and of the platform arguments.
    pub(crate) globals: BTreeMap<String, String>,
    /// What the target is built for.
    pub(crate) platform: Platform,
}

/// One stage.
pub(crate) struct PlannedStage<'d> {
    /// The stage as it is written.
    pub(crate) stage: &'d Stage,
    /// What is carried out: all its instructions, or none if a context takes its place.
    pub(crate) instructions: &'d [Placed<Instruction>],
    /// What progress and errors call it: its name, or `stage-1`.
    pub(crate) label: String,
    /// What it begins with.
    pub(crate) base: Origin,
    /// What it is built for.
    pub(crate) platform: Platform,
}

/// Where files come from: what FROM, `--from` and `from=` can name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Nothing.
    Scratch,
    /// A stage of the file, by its number.
    Stage(usize),
    /// A context that the caller named.
    Context(NamedContext),
    /// An image.
    Image(String),
}

impl Origin {
    /// What a context is that stands for an image: as in BuildKit, the image `scratch` is nothing.
    fn of_context(context: &NamedContext) -> Self {
        match context {
            NamedContext::Image(name) if name == "scratch" => Self::Scratch,
            context => Self::Context(context.clone()),
        }
    }

    /// The repository of an image, if it is one of a registry.
    pub(crate) fn repository(&self) -> Option<registry_client::Origin> {
        let (Self::Image(name) | Self::Context(NamedContext::Image(name))) = self else { return None };
        let reference: Reference = name.parse().ok()?;
        let (registry, repository) = (reference.registry().to_owned(), reference.repository().to_owned());
        Some(registry_client::Origin { registry, repository })
    }
}

impl<'d> Plan<'d> {
    /// Plans a build for one of the platforms that are asked for.
    ///
    /// # Errors
    /// If a name or platform makes no sense, or a stage has RUN steps that this machine cannot carry out.
    pub(crate) fn new(
        dockerfile: &'d Dockerfile,
        request: &BuildRequest,
        platform: &Platform,
    ) -> Result<Self, BuildError> {
        let plan = Self::of_text(dockerfile, request, platform)?;
        plan.check_machine(dockerfile, request)?;
        Ok(plan)
    }

    /// Plans a build without regard to what this machine can do.
    ///
    /// # Errors
    /// If a name or platform makes no sense.
    pub(crate) fn of_text(
        dockerfile: &'d Dockerfile,
        request: &BuildRequest,
        platform: &Platform,
    ) -> Result<Self, BuildError> {
        let globals = globals(dockerfile, request, platform)?;
        let mut plan = Self { stages: Vec::new(), target: 0, globals, platform: platform.clone() };
        for (index, stage) in dockerfile.stages.iter().enumerate() {
            let planned = plan.stage(dockerfile, request, index, stage)?;
            plan.stages.push(planned);
        }
        plan.target = plan.find_target(dockerfile, request)?;
        plan.check_sources(dockerfile, request)?;
        Ok(plan)
    }

    /// A stage that is named and cannot be used ends the build before its first step, and not after an hour.
    fn check_sources(&self, dockerfile: &Dockerfile, request: &BuildRequest) -> Result<(), BuildError> {
        for index in self.needed(request) {
            for placed in self.stages[index].instructions {
                let span = match &placed.value {
                    Instruction::Copy(copy) => copy.from.as_ref().map_or(placed.span, |word| word.span),
                    _ => placed.span,
                };
                for from in sources(&placed.value) {
                    self.origin(request, index, from, &Site { source: dockerfile.source.clone(), span })?;
                }
            }
        }
        Ok(())
    }

    /// What `from` means in an instruction of the stage with number `index`.
    pub(crate) fn origin(
        &self,
        request: &BuildRequest,
        index: usize,
        from: &str,
        site: &Site,
    ) -> Result<Origin, BuildError> {
        if let Some(context) = request.named_context(from, &self.platform) {
            return Ok(Origin::of_context(context));
        }
        if let Some(number) = self.stage_named(from, index).or_else(|| self.stage_named(from, self.stages.len())) {
            return match number {
                earlier if earlier < index => Ok(Origin::Stage(earlier)),
                later if self.leads_to(later, index) => {
                    let current = &self.stages[index].label;
                    Err(site.error(format!("circular dependency detected on stage: {current}")).into())
                }
                _ => {
                    let current = &self.stages[index].label;
                    let message = format!(
                        "cannot copy from stage {from:?}, it needs to be defined before current stage {current:?}"
                    );
                    Err(site.error(message).into())
                }
            };
        }
        match from.parse::<usize>() {
            Ok(number) if number < index => Ok(Origin::Stage(number)),
            Ok(number) => {
                let message =
                    format!("invalid from flag value {number}: there is no stage of that index before this one");
                Err(site.error(message).into())
            }
            Err(_) if from == "scratch" => Ok(Origin::Scratch),
            Err(_) => Ok(Origin::Image(from.to_owned())),
        }
    }

    /// Whether what a stage is made of includes another, or is it.
    fn leads_to(&self, from: usize, to: usize) -> bool {
        let (mut seen, mut pending) = (BTreeSet::new(), vec![from]);
        while let Some(index) = pending.pop() {
            if index == to {
                return true;
            }
            if let Some(stage) = self.stages.get(index)
                && seen.insert(index)
            {
                pending.extend(if let Origin::Stage(base) = stage.base { Some(base) } else { None });
                let named = stage.instructions.iter().flat_map(|placed| sources(&placed.value));
                pending.extend(named.filter_map(|name| self.stage_named(name, self.stages.len())));
            }
        }
        false
    }

    /// How many steps of the stages that the target needs make a layer, for `[2/7]`.
    pub(crate) fn step_count(&self, index: usize) -> usize {
        let makes_layer = |instruction: &Instruction| {
            matches!(
                instruction,
                Instruction::Run(_) | Instruction::Copy(_) | Instruction::Add(_) | Instruction::Workdir(_)
            )
        };
        // Beginning on nothing or on another stage is no step.
        let begins = usize::from(!matches!(self.stages[index].base, Origin::Scratch | Origin::Stage(_)));
        begins + self.stages[index].instructions.iter().filter(|placed| makes_layer(&placed.value)).count()
    }

    /// Whether the layers of a stage are layers of the image that is built.
    pub(crate) fn is_in_result(&self, index: usize) -> bool {
        let mut at = self.target;
        loop {
            match self.stages[at].base {
                _ if at == index => return true,
                Origin::Stage(base) => at = base,
                _ => return false,
            }
        }
    }

    fn stage(
        &self,
        dockerfile: &'d Dockerfile,
        request: &BuildRequest,
        index: usize,
        stage: &'d Stage,
    ) -> Result<PlannedStage<'d>, BuildError> {
        let site = Site { source: dockerfile.source.clone(), span: stage.from.span };
        let from = &stage.from.value;
        let unset = RefCell::new(Vec::new());
        let lookup = |name: &str| {
            let value = self.globals.get(name).cloned();
            unset.borrow_mut().extend(value.is_none().then(|| name.to_owned()));
            value
        };
        let expander = Expander::new(dockerfile.directives.escape, &lookup);
        let image = expander.expand(&from.image.text).map_err(site.at(from.image.span).because())?;
        if image.is_empty() {
            let message = format!("base name ({}) should not be blank", from.image.text);
            return Err(site.at(from.image.span).error(message).into());
        }
        let platform = match &from.platform {
            None => self.platform.clone(),
            Some(word) => {
                unset.borrow_mut().clear();
                let text = expander.expand(&word.text).map_err(site.at(word.span).because())?;
                let names: Vec<&str> = self.globals.keys().map(String::as_str).collect();
                let near = unset.borrow().iter().find_map(|name| closest(name, &names));
                let meant = near.map(|near| format!(" (did you mean {near}?)")).unwrap_or_default();
                if text.is_empty() {
                    let message = format!("empty platform value from expression {}{meant}", word.text);
                    return Err(site.at(word.span).error(message).into());
                }
                let wrong = |error: registry_client::Error| {
                    site.at(word.span).error(format!("failed to parse platform {}: {error}{meant}", word.text))
                };
                text.parse().map_err(wrong)?
            }
        };
        let own_context = from.name.as_ref().and_then(|name| request.named_context(&name.text, &platform));
        let (base, instructions) = match own_context {
            // A context of the stage's own name takes the place of all of it.
            Some(context) => (Origin::of_context(context), &[][..]),
            None => (self.base(request, index, &image, &platform), stage.instructions.as_slice()),
        };
        let label = stage_label(dockerfile, index);
        Ok(PlannedStage { stage, instructions, label, base, platform })
    }

    /// FROM takes a stage by its lower-case name only, and never by number.
    fn base(&self, request: &BuildRequest, index: usize, image: &str, platform: &Platform) -> Origin {
        if let Some(context) = request.named_context(image, platform) {
            return Origin::of_context(context);
        }
        let is_named =
            |planned: &PlannedStage<'_>| planned.stage.from.value.name.as_ref().is_some_and(|name| name.text == image);
        match self.stages[..index].iter().rposition(is_named) {
            Some(stage) => Origin::Stage(stage),
            None if image == "scratch" => Origin::Scratch,
            None => Origin::Image(image.to_owned()),
        }
    }

    /// The last stage of that name, in any case, among the first `end`.
    fn stage_named(&self, name: &str, end: usize) -> Option<usize> {
        let is_named = |planned: &PlannedStage<'_>| {
            planned.stage.from.value.name.as_ref().is_some_and(|word| word.text.eq_ignore_ascii_case(name))
        };
        self.stages[..end].iter().rposition(is_named)
    }

    /// Refuses RUN steps for a machine that this one cannot play, before anything runs. What a base image's triggers
    /// run is not known yet: RUN asks again.
    fn check_machine(&self, dockerfile: &Dockerfile, request: &BuildRequest) -> Result<(), BuildError> {
        for index in self.needed(request) {
            let PlannedStage { instructions, platform, .. } = &self.stages[index];
            let is_run = |placed: &&Placed<Instruction>| matches!(placed.value, Instruction::Run(_));
            if let Some(run) = instructions.iter().find(is_run) {
                let site = Site { source: dockerfile.source.clone(), span: run.span };
                machine::check(platform, &request.build_platform).map_err(site.because())?;
            }
        }
        Ok(())
    }

    /// The stages that the target needs, itself included, as far as the text tells.
    pub(crate) fn needed(&self, request: &BuildRequest) -> BTreeSet<usize> {
        let mut needed = BTreeSet::new();
        let mut pending = vec![self.target];
        while let Some(index) = pending.pop() {
            if !needed.insert(index) {
                continue;
            }
            if let Origin::Stage(base) = self.stages[index].base {
                pending.push(base);
            }
            for placed in self.stages[index].instructions {
                let is_context = |name: &&str| request.named_context(name, &self.platform).is_some();
                let number = |name: &str| name.parse().ok().filter(|number| *number < index);
                let stage = |name| self.stage_named(name, index).or_else(|| number(name));
                pending.extend(sources(&placed.value).into_iter().filter(|name| !is_context(name)).filter_map(stage));
            }
        }
        needed
    }

    fn find_target(&self, dockerfile: &Dockerfile, request: &BuildRequest) -> Result<usize, BuildError> {
        let Some(target) = &request.target else { return Ok(self.stages.len() - 1) };
        self.stage_named(target, self.stages.len()).ok_or_else(|| {
            let names: Vec<&str> = self.stages.iter().map(|stage| stage.label.as_str()).collect();
            let meant = closest(target, &names).map(|near| format!(" (did you mean {near}?)")).unwrap_or_default();
            let (name, all) = (dockerfile.source.name(), names.join(", "));
            BuildError::Request(format!("target stage {target:?} could not be found{meant}; {name} has: {all}"))
        })
    }
}

/// What a person calls a stage: its name, or `stage-1`.
pub(crate) fn stage_label(dockerfile: &Dockerfile, index: usize) -> String {
    let name = &dockerfile.stages[index].from.value.name;
    name.as_ref().map_or_else(|| format!("stage-{index}"), |word| word.text.clone())
}

/// What an instruction names as a place of files, as it is written.
fn sources(instruction: &Instruction) -> Vec<&str> {
    match instruction {
        Instruction::Copy(copy) => copy.from.iter().map(|word| word.text.as_str()).collect(),
        Instruction::Run(run) => {
            let options = run.mounts.iter().flat_map(|mount| &mount.options);
            options.filter(|option| option.key == "from").filter_map(|option| option.value.as_deref()).collect()
        }
        _ => Vec::new(),
    }
}

/// The platform arguments, and the global ARGs on top of them.
/// <https://docs.docker.com/reference/dockerfile/#automatic-platform-args-in-the-global-scope>
pub(crate) fn globals(
    dockerfile: &Dockerfile,
    request: &BuildRequest,
    platform: &Platform,
) -> Result<BTreeMap<String, String>, BuildError> {
    let mut values = BTreeMap::new();
    for (prefix, platform) in [("TARGET", platform), ("BUILD", &request.build_platform)] {
        values.insert(format!("{prefix}PLATFORM"), platform.to_string());
        values.insert(format!("{prefix}OS"), platform.os().to_owned());
        values.insert(format!("{prefix}OSVERSION"), platform.os_version().unwrap_or_default().to_owned());
        values.insert(format!("{prefix}ARCH"), platform.architecture().to_owned());
        values.insert(format!("{prefix}VARIANT"), platform.variant().unwrap_or_default().to_owned());
    }
    // As in BuildKit the last stage goes by its name even if nobody asked for it.
    let last = dockerfile.stages.last().and_then(|stage| stage.from.value.name.as_ref());
    let target = request.target.clone().or_else(|| last.map(|name| name.text.to_ascii_lowercase()));
    values.insert("TARGETSTAGE".to_owned(), target.unwrap_or_else(|| "default".to_owned()));
    for (name, value) in &mut values {
        if let Some(given) = request.build_args.get(name) {
            value.clone_from(given);
        }
    }
    for placed in &dockerfile.global_arguments {
        let site = Site { source: dockerfile.source.clone(), span: placed.span };
        for argument in &placed.value {
            let lookup = |name: &str| values.get(name).cloned();
            let expander = Expander::new(dockerfile.directives.escape, &lookup);
            let name = &argument.name.text;
            let value = match (request.build_args.get(name), &argument.default) {
                (Some(given), _) => given.clone(),
                (None, Some(word)) => expander.expand(&word.text).map_err(site.at(word.span).because())?,
                (None, None) => continue,
            };
            values.insert(name.clone(), value);
        }
    }
    Ok(values)
}
