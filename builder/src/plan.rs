//! A Dockerfile to the stages that have to be built: global arguments, bases, and which stage needs which.
//!
//! Invariant: a stage needs only stages before it, so that building on demand ends.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use registry_client::{Platform, Reference};

use crate::dockerfile::{Dockerfile, Expander, Instruction, Placed, Span, Stage, Word, closest};
use crate::error::{BuildError, Site};
use crate::machine;
use crate::request::{BuildRequest, NamedContext};

/// What to build.
pub(crate) struct Plan<'d> {
    /// All stages of the file, in order.
    pub(crate) stages: Vec<PlannedStage<'d>>,
    /// The last stage of each name, which is in lower case.
    names: BTreeMap<&'d str, usize>,
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
    /// Whether a context of the stage's name takes its place: the base is that then.
    pub(crate) is_replaced: bool,
    /// What progress and errors call it: its name, or `stage-1`.
    pub(crate) label: String,
    /// What its FROM names, with variables expanded.
    image: String,
    /// What it begins with.
    pub(crate) base: Origin,
    /// What it is built for.
    pub(crate) platform: Platform,
}

/// How an instruction names a place of files.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SourceName<'a> {
    /// `COPY --from`: the number of a stage, else a name.
    Copy(&'a str),
    /// `from=` of a mount: a name.
    Mount(&'a str),
}

impl<'a> SourceName<'a> {
    /// What is written there.
    pub(crate) fn text(self) -> &'a str {
        match self {
            Self::Copy(text) | Self::Mount(text) => text,
        }
    }
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
        let mut plan =
            Self { stages: Vec::new(), names: BTreeMap::new(), target: 0, globals, platform: platform.clone() };
        for (index, stage) in dockerfile.stages.iter().enumerate() {
            let planned = plan.stage(dockerfile, request, index, stage)?;
            plan.stages.push(planned);
            plan.names.extend(stage.from.value.name.as_ref().map(|name| (name.text.as_str(), index)));
        }
        plan.target = plan.find_target(dockerfile, request)?;
        plan.check_all(dockerfile)?;
        plan.check_needed(dockerfile, request)?;
        Ok(plan)
    }

    /// What BuildKit refuses in any stage, needed or not: a number that no stage has, a circle of copies and mounts, a
    /// name that is none.
    fn check_all(&self, dockerfile: &Dockerfile) -> Result<(), BuildError> {
        let mut from_stages = vec![Vec::new(); self.stages.len()];
        for (index, planned) in self.stages.iter().enumerate() {
            for (placed, span, from) in planned.stage.instructions.iter().flat_map(sources) {
                let site = Site { source: dockerfile.source.clone(), span };
                let stage = self.stage_of(from).map_err(|message| site.error(message))?;
                from_stages[index].extend(stage.map(|stage| (stage, placed.span)));
            }
        }
        if let Some((index, span)) = circle(&from_stages) {
            let message = format!("circular dependency detected on stage: {}", self.stages[index].label);
            return Err(Site { source: dockerfile.source.clone(), span }.error(message).into());
        }
        for planned in &self.stages {
            let from = &planned.stage.from;
            let base = (!matches!(planned.base, Origin::Stage(_))).then_some((from.value.image.span, &*planned.image));
            let named = planned.stage.instructions.iter().flat_map(sources);
            let named = named.filter(|(.., from)| matches!(self.stage_of(*from), Ok(None)));
            for (span, name) in base.into_iter().chain(named.map(|(_, span, from)| (span, from.text()))) {
                let site = Site { source: dockerfile.source.clone(), span };
                let checked = if name == "scratch" { Ok(()) } else { name.parse::<Reference>().map(drop) };
                checked.map_err(|error| site.error(format!("failed to parse stage name {name:?}: {error}")))?;
            }
        }
        Ok(())
    }

    /// What only the stages that the target needs have to be right in. It ends the build before its first step, and not
    /// after an hour.
    fn check_needed(&self, dockerfile: &Dockerfile, request: &BuildRequest) -> Result<(), BuildError> {
        for index in self.needed() {
            for placed in self.stages[index].instructions {
                for (_, span, from) in sources(placed) {
                    self.origin(request, index, from, &Site { source: dockerfile.source.clone(), span })?;
                }
                placed.check_constants(&dockerfile.source)?;
            }
        }
        Ok(())
    }

    /// The stage that an instruction of any other names, if it is one: as in BuildKit the last of that name, wherever the
    /// instruction stands.
    fn stage_of(&self, from: SourceName<'_>) -> Result<Option<usize>, String> {
        match (from, from.text().parse::<i64>()) {
            (SourceName::Copy(_), Ok(number)) => match usize::try_from(number) {
                Ok(stage) if stage < self.stages.len() => Ok(Some(stage)),
                _ => Err(format!("invalid stage index {number}")),
            },
            _ => Ok(self.stage_named(from.text())),
        }
    }

    /// What `from` means in an instruction of the stage with number `index`.
    pub(crate) fn origin(
        &self,
        request: &BuildRequest,
        index: usize,
        from: SourceName<'_>,
        site: &Site,
    ) -> Result<Origin, BuildError> {
        let name = from.text();
        match self.stage_of(from).map_err(|message| site.error(message))? {
            Some(stage) if self.stages[stage].is_replaced => Ok(self.stages[stage].base.clone()),
            Some(earlier) if earlier < index => Ok(Origin::Stage(earlier)),
            Some(_) => {
                let current = &self.stages[index].label;
                let what = if let SourceName::Copy(_) = from { "copy" } else { "mount" };
                let message = format!(
                    "cannot {what} from stage {name:?}, it needs to be defined before current stage {current:?}"
                );
                Err(site.error(message).into())
            }
            None => Ok(Self::outside(request, name, &self.platform)),
        }
    }

    /// What a name means that is no stage's.
    fn outside(request: &BuildRequest, name: &str, platform: &Platform) -> Origin {
        match request.named_context(name, platform) {
            Some(context) => Origin::of_context(context),
            None if name == "scratch" => Origin::Scratch,
            None => Origin::Image(name.to_owned()),
        }
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
        let lookup = |name: &str| self.globals.get(name).cloned();
        let expander = Expander::new(dockerfile.directives.escape, &lookup);
        let image = expander.expand(&from.image.text).map_err(site.at(from.image.span).because())?;
        if image.is_empty() {
            let message = format!("base name ({}) should not be blank", from.image.text);
            return Err(site.at(from.image.span).error(message).into());
        }
        let given = from.platform.as_ref().map(|word| self.given_platform(dockerfile, word, &site.at(word.span)));
        let platform = given.transpose()?.unwrap_or_else(|| self.platform.clone());
        let own_context = match &from.name {
            // As in BuildKit, which looks for a context of that name: `x.` names a stage, but never an image.
            Some(name) => {
                let wrong = |error| site.at(name.span).error(format!("invalid context name {}: {error}", name.text));
                name.text.parse::<Reference>().map_err(wrong)?;
                request.named_context(&name.text, &platform)
            }
            None => None,
        };
        let is_replaced = own_context.is_some();
        let (base, instructions) = match own_context {
            // A context of the stage's own name takes the place of all of it.
            Some(context) => (Origin::of_context(context), &[][..]),
            None => (self.base(request, &image, &platform), stage.instructions.as_slice()),
        };
        // As in BuildKit `--platform` says nothing where there is a choice no more: a stage was built for its own, and
        // nothing is for all.
        let platform = match &base {
            Origin::Stage(base) => self.stages[*base].platform.clone(),
            Origin::Scratch if image == "scratch" && !is_replaced => self.platform.clone(),
            _ => platform,
        };
        let label = stage_label(dockerfile, index);
        Ok(PlannedStage { stage, instructions, is_replaced, label, image, base, platform })
    }

    /// What `FROM --platform` says.
    fn given_platform(&self, dockerfile: &Dockerfile, word: &Word, site: &Site) -> Result<Platform, BuildError> {
        let unset = RefCell::new(Vec::new());
        let lookup = |name: &str| {
            let value = self.globals.get(name).cloned();
            unset.borrow_mut().extend(value.is_none().then(|| name.to_owned()));
            value
        };
        let text = Expander::new(dockerfile.directives.escape, &lookup).expand(&word.text).map_err(site.because())?;
        let names: Vec<&str> = self.globals.keys().map(String::as_str).collect();
        let near = unset.borrow().iter().find_map(|name| closest(name, &names));
        let meant = near.map(|near| format!(" (did you mean {near}?)")).unwrap_or_default();
        if text.is_empty() {
            return Err(site.error(format!("empty platform value from expression {}{meant}", word.text)).into());
        }
        let wrong = |error| site.error(format!("failed to parse platform {}: {error}{meant}", word.text));
        Ok(text.parse().map_err(|error: registry_client::Error| wrong(error))?)
    }

    /// FROM takes a stage by its lower-case name only, and never by number; of one name the last before it.
    fn base(&self, request: &BuildRequest, image: &str, platform: &Platform) -> Origin {
        let stage = self.names.get(image).map(|stage| Origin::Stage(*stage));
        stage.unwrap_or_else(|| Self::outside(request, image, platform))
    }

    /// The last stage of that name, in any case.
    fn stage_named(&self, name: &str) -> Option<usize> {
        self.names.get(name.to_lowercase().as_str()).copied()
    }

    /// Refuses RUN steps for a machine that this one cannot play, before anything runs. What a base image's triggers
    /// run is not known yet: RUN asks again.
    fn check_machine(&self, dockerfile: &Dockerfile, request: &BuildRequest) -> Result<(), BuildError> {
        for index in self.needed() {
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
    pub(crate) fn needed(&self) -> BTreeSet<usize> {
        let mut needed = BTreeSet::new();
        let mut pending = vec![self.target];
        while let Some(index) = pending.pop() {
            if !needed.insert(index) {
                continue;
            }
            if let Origin::Stage(base) = self.stages[index].base {
                pending.push(base);
            }
            let named = self.stages[index].instructions.iter().flat_map(sources);
            let stages = named.filter_map(|(.., from)| self.stage_of(from).ok().flatten());
            pending.extend(stages.filter(|stage| !self.stages[*stage].is_replaced));
        }
        needed
    }

    fn find_target(&self, dockerfile: &Dockerfile, request: &BuildRequest) -> Result<usize, BuildError> {
        let Some(target) = &request.target else { return Ok(self.stages.len() - 1) };
        self.stage_named(target).ok_or_else(|| {
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

/// What an instruction names as places of files, and where it does.
fn sources(placed: &Placed<Instruction>) -> Vec<(&Placed<Instruction>, Span, SourceName<'_>)> {
    match &placed.value {
        Instruction::Copy(copy) => {
            copy.from.iter().map(|word| (placed, word.span, SourceName::Copy(&word.text))).collect()
        }
        Instruction::Run(run) => {
            let mounts = run.mounts.iter();
            mounts.filter_map(|mount| Some((placed, mount.span, SourceName::Mount(mount.from()?)))).collect()
        }
        _ => Vec::new(),
    }
}

/// A stage from which its own files are reached, and the instruction that closes the circle: `edges` are the stages that
/// each copies or mounts from. As in BuildKit, what a stage begins with is no part of a circle.
fn circle(edges: &[Vec<(usize, Span)>]) -> Option<(usize, Span)> {
    let (mut is_seen, mut is_on_way) = (vec![false; edges.len()], vec![false; edges.len()]);
    for start in 0..edges.len() {
        // The stages on the way, each with the edges that it has left.
        let mut way = vec![];
        let mut next = Some(start).filter(|start| !is_seen[*start]);
        loop {
            if let Some(stage) = next {
                (is_seen[stage], is_on_way[stage]) = (true, true);
                way.push((stage, edges[stage].iter()));
            }
            let Some((stage, rest)) = way.last_mut() else { break };
            next = match rest.next() {
                Some(&(to, span)) if is_on_way[to] => return Some((start, span)),
                Some(&(to, _)) => Some(to).filter(|to| !is_seen[*to]),
                None => {
                    is_on_way[*stage] = false;
                    way.pop();
                    None
                }
            };
        }
    }
    None
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dockerfile::Source;

    /// Plans for a platform that this machine is not.
    fn planned(text: &str, contexts: &[(&str, &str)]) -> Result<Vec<(Origin, String)>, String> {
        let mut request = BuildRequest::new(Source::new("D", text.as_bytes()), "/");
        let context = |(name, image): &(&str, &str)| ((*name).to_owned(), NamedContext::Image((*image).to_owned()));
        request.named_contexts = contexts.iter().map(context).collect();
        let file = Dockerfile::parse("D", text.as_bytes()).map_err(|error| error.to_string())?;
        let plan = Plan::of_text(&file, &request, &"linux/riscv64".parse().expect("valid"));
        let plan = plan.map_err(|error| error.to_string())?;
        // Where they are needed, all places of files have a meaning.
        Ok(plan.stages.into_iter().map(|stage| (stage.base, stage.platform.to_string())).collect())
    }

    fn error(text: &str) -> String {
        planned(text, &[]).expect_err(text)
    }

    fn platforms(text: &str, contexts: &[(&str, &str)]) -> Vec<String> {
        planned(text, contexts).expect(text).into_iter().map(|(_, platform)| platform).collect()
    }

    #[test]
    fn a_stage_is_for_the_platform_of_the_stage_that_it_stands_on() {
        let text = "FROM --platform=linux/s390x img AS a\nFROM a AS b\nFROM --platform=linux/arm64 b AS c\nFROM img\n";
        assert_eq!(platforms(text, &[]), ["linux/s390x", "linux/s390x", "linux/s390x", "linux/riscv64"]);
    }

    #[test]
    fn a_stage_on_nothing_is_for_the_platform_of_the_build() {
        assert_eq!(platforms("FROM --platform=linux/arm64 scratch AS s\nFROM s", &[]), ["linux/riscv64"; 2]);
        let replaced = platforms("FROM --platform=linux/arm64 scratch AS s\nFROM s", &[("s", "img")]);
        assert_eq!(replaced, ["linux/arm64"; 2]);
    }

    #[test]
    fn numbers_and_names_of_any_stage_have_to_make_sense() {
        for (instruction, expected) in [
            ("COPY --from=99 / /", "invalid stage index 99"),
            ("COPY --from=-1 / /", "invalid stage index -1"),
            ("COPY --from=Foo / /", "failed to parse stage name \"Foo\""),
            ("RUN --mount=from=Foo x", "failed to parse stage name \"Foo\""),
            ("COPY --from=unused / /", "circular dependency detected on stage: unused"),
            ("COPY --from=0 / /", "circular dependency detected on stage: unused"),
            ("RUN --mount=from=unused x", "circular dependency detected on stage: unused"),
        ] {
            let text = format!("FROM scratch AS unused\n{instruction}\nFROM scratch\n");
            assert!(error(&text).contains(expected), "{instruction}: {}", error(&text));
        }
        assert!(error("FROM Foo AS unused\nFROM scratch").contains("failed to parse stage name \"Foo\""));
        let circle = "FROM scratch AS a\nCOPY --from=b / /\nFROM scratch AS b\nRUN --mount=from=a x\nFROM scratch";
        assert!(error(circle).contains("circular dependency detected on stage: a"));
    }

    #[test]
    fn a_stage_that_nobody_needs_may_name_a_later_one_and_have_any_mount_and_mode() {
        for instruction in [
            "COPY --from=later / /",
            "COPY --from=1 / /",
            "RUN --mount=from=later x",
            "RUN --mount=colour=red x",
            "RUN --mount=type=disk x",
            "RUN --mount=target x",
            "COPY --chmod=999 a b",
            "ADD --chmod=u+q a b",
        ] {
            let text = format!("FROM scratch AS early\n{instruction}\nFROM scratch AS later\n");
            assert_eq!(planned(&text, &[]).err(), None, "{instruction}");
            error(&format!("{text}FROM early\n"));
        }
    }

    #[test]
    fn the_last_stage_of_a_name_is_copied_from_and_the_one_before_is_stood_on() {
        let text = "FROM scratch AS x\nCOPY f /f\nFROM scratch AS x\nCOPY --from=x /f /g\n";
        assert!(error(text).contains("circular dependency detected on stage: x"));
        let text = "FROM scratch AS x\nFROM scratch AS y\nCOPY --from=x / /\nFROM scratch AS x\nFROM y\n";
        assert!(
            error(text).contains("cannot copy from stage \"x\", it needs to be defined before current stage \"y\"")
        );
        let bases = planned("FROM img AS x\nFROM x AS x\nFROM x\n", &[]).expect("valid");
        let bases: Vec<_> = bases.into_iter().map(|(base, _)| base).collect();
        assert_eq!(bases, [Origin::Image("img".to_owned()), Origin::Stage(0), Origin::Stage(1)]);
    }

    #[test]
    fn a_number_is_a_stage_to_a_copy_before_it_is_a_context_and_never_to_a_mount() {
        let text = "FROM scratch\nFROM scratch\nCOPY --from=0 / /\nRUN --mount=from=0 x";
        let mut request = BuildRequest::new(Source::new("D", text.as_bytes()), "/");
        let file = Dockerfile::parse("D", text.as_bytes()).expect("valid");
        let meant = |request: &BuildRequest| {
            let plan = Plan::of_text(&file, request, &Platform::host()).expect("valid");
            let site = Site { source: file.source.clone(), span: Span::default() };
            let origin = |from| plan.origin(request, 1, from, &site).expect("it means something");
            (origin(SourceName::Copy("0")), origin(SourceName::Mount("0")))
        };
        assert_eq!(meant(&request), (Origin::Stage(0), Origin::Image("0".to_owned())));
        let context = NamedContext::Directory("/".into());
        request.named_contexts.insert("0".to_owned(), context.clone());
        assert_eq!(meant(&request), (Origin::Stage(0), Origin::Context(context)));
    }

    #[test]
    fn the_name_of_a_stage_has_to_be_one_of_an_image() {
        for name in ["build-", "a._b", "x."] {
            assert!(
                error(&format!("FROM scratch AS {name}")).contains(&format!("invalid context name {name}")),
                "{name}"
            );
        }
        assert_eq!(planned("FROM scratch AS a__b--c.d", &[]).err(), None);
    }

    #[test]
    fn a_circle_is_found_on_a_long_way_and_from_every_side() {
        let span = Span::default();
        let mut edges: Vec<_> = (0..100_000).map(|at| vec![(at + 1, span), (at + 1, span)]).collect();
        edges.push(Vec::new());
        assert_eq!(circle(&edges), None);
        edges[100_000].push((7, span));
        assert_eq!(circle(&edges), Some((0, span)));
    }
}
