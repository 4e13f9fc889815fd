//! What a Dockerfile offers and asks for: its targets, and the arguments, secrets and agents of one target.
//!
//! Invariant: nothing is built, fetched or read but the text. The shapes are those of BuildKit's subrequests `outline`
//! and `targets`, whose JSON people's programs read: <https://docs.docker.com/reference/cli/docker/buildx/build/#call>.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::dockerfile::{BuildArgument, Dockerfile, Expander, Instruction, MountKind, Placed, Run, Span};
use crate::error::BuildError;
use crate::plan::{Origin, Plan};
use crate::request::BuildRequest;

/// What one target takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outline {
    /// The stage's name, empty if it has none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The comment above it, if that begins with its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Build arguments that the target, or a stage that it needs, uses; by place.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Argument>,
    /// Secrets that RUN steps mount; by place.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<Needed>,
    /// Agents that RUN steps mount; by place.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ssh: Vec<Needed>,
}

/// A build argument.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Argument {
    /// Its name.
    pub name: String,
    /// The comment above it, if that begins with its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// What it was given, or its default; empty for none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// The lines of its ARG.
    pub location: Lines,
}

/// A secret or an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Needed {
    /// Its id.
    pub name: String,
    /// Whether the step fails without it.
    #[serde(skip_serializing_if = "is_false")]
    pub required: bool,
    /// The lines of its RUN.
    pub location: Lines,
}

/// A stage as a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Target {
    /// The name, empty if it has none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Whether it is what is built if no target is named.
    #[serde(skip_serializing_if = "is_false")]
    pub default: bool,
    /// The comment above it, if that begins with its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// What it begins with, as it is written.
    pub base: String,
    /// `--platform`, as it is written.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub platform: String,
    /// The lines of its FROM.
    pub location: Lines,
}

/// Lines of the Dockerfile, as BuildKit writes them: one range a line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Lines {
    ranges: Vec<LineRange>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct LineRange {
    start: Line,
    end: Line,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Line {
    line: usize,
}

impl Lines {
    /// From the first to the last line, counted from 1.
    #[must_use]
    pub fn new((first, last): (usize, usize)) -> Self {
        Self { ranges: (first..=last).map(|line| LineRange { start: Line { line }, end: Line { line } }).collect() }
    }

    fn of(file: &Dockerfile, span: Span) -> Self {
        let line = |at| file.source.position(at).line;
        Self::new((line(span.start), line(span.end)))
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_false(value: &bool) -> bool {
    !value
}

/// Every stage, in order.
///
/// # Errors
/// A Dockerfile that cannot be read.
pub fn targets(request: &BuildRequest) -> Result<Vec<Target>, BuildError> {
    let file = Dockerfile::parse(request.dockerfile.name(), request.dockerfile.bytes())?;
    let count = file.stages.len();
    let one = |(index, stage): (usize, &crate::dockerfile::Stage)| {
        let from = &stage.from.value;
        let text = |word: &Option<crate::dockerfile::Word>| word.as_ref().map_or_else(String::new, |w| w.text.clone());
        let name = text(&from.name);
        Target {
            description: description(&stage.from.comments, &name),
            name,
            default: index + 1 == count,
            base: from.image.text.clone(),
            platform: text(&from.platform),
            location: Lines::of(&file, stage.from.span),
        }
    };
    Ok(file.stages.iter().enumerate().map(one).collect())
}

/// What the target takes.
///
/// # Errors
/// A Dockerfile that cannot be built because of what it says.
pub fn outline(request: &BuildRequest) -> Result<Outline, BuildError> {
    let file = Dockerfile::parse(request.dockerfile.name(), request.dockerfile.bytes())?;
    let platform = request.platforms.first().ok_or_else(|| BuildError::Request("no platform is named".to_owned()))?;
    let plan = Plan::of_text(&file, request, platform)?;
    let mut survey = Survey { file: &file, request, globals: &plan.globals, stages: Vec::new() };
    let global = survey.global_arguments();
    for (index, planned) in plan.stages.iter().enumerate() {
        let base = if let Origin::Stage(base) = planned.base { Some(base) } else { None };
        let stage = survey.stage(index, base, &global);
        survey.stages.push(stage);
    }
    let mut outline = survey.collect(&plan.needed());
    let target = &file.stages[plan.target];
    outline.name = target.from.value.name.as_ref().map_or_else(String::new, |name| name.text.clone());
    outline.description = description(&target.from.comments, &outline.name);
    Ok(outline)
}

/// The comment lines above describe what they name first.
fn description(comments: &[String], name: &str) -> String {
    let after = |comment: &String| Some(comment.strip_prefix(name)?.strip_prefix(' ')?.to_owned());
    comments.iter().filter(|_| !name.is_empty()).find_map(after).unwrap_or_default()
}

struct Survey<'a> {
    file: &'a Dockerfile,
    request: &'a BuildRequest,
    globals: &'a BTreeMap<String, String>,
    stages: Vec<Surveyed>,
}

/// One stage, or what stands before the first.
#[derive(Default, Clone)]
struct Surveyed {
    arguments: BTreeMap<String, (Argument, BTreeSet<String>)>,
    used: BTreeSet<String>,
    variables: BTreeMap<String, String>,
    secrets: Vec<Needed>,
    ssh: Vec<Needed>,
}

impl Survey<'_> {
    fn global_arguments(&self) -> Surveyed {
        let mut found = Surveyed::default();
        for placed in &self.file.global_arguments {
            for argument in &placed.value {
                let name = argument.name.text.clone();
                let given = self.request.build_args.get(&name);
                // One of the platform has a value without being told any, which as in BuildKit is not shown.
                let default = argument.default.as_ref().and_then(|_| self.globals.get(&name));
                let value = given.or(default).cloned();
                let default = argument.default.iter().filter(|_| given.is_none());
                let uses = default.flat_map(|word| self.set_names_in(&word.text)).collect();
                let argument = self.argument(placed, &name, value);
                found.arguments.insert(name, (argument, uses));
            }
        }
        found
    }

    fn argument(&self, placed: &Placed<impl Sized>, name: &str, value: Option<String>) -> Argument {
        Argument {
            name: name.to_owned(),
            description: description(&placed.comments, name),
            value: value.unwrap_or_default(),
            location: Lines::of(self.file, placed.span),
        }
    }

    fn stage(&self, index: usize, base: Option<usize>, global: &Surveyed) -> Surveyed {
        let stage = &self.file.stages[index];
        let mut found = global.clone();
        if let Some(base) = base {
            found.variables = self.stages[base].variables.clone();
        }
        let from = &stage.from.value;
        found.used = from.platform.iter().chain([&from.image]).flat_map(|word| self.set_names_in(&word.text)).collect();
        for placed in &stage.instructions {
            match &placed.value {
                Instruction::Arg(arguments) => {
                    arguments.iter().for_each(|argument| self.stage_argument(placed, argument, &mut found));
                }
                Instruction::Env(pairs) => {
                    for pair in pairs {
                        let value = self.expand(&found.variables, &pair.value.text);
                        found.variables.insert(pair.name.text.clone(), value);
                    }
                }
                Instruction::Run(run) => self.mounts(placed, run, &mut found),
                _ => {}
            }
        }
        found
    }

    /// One without a default and a value of its own is the global one.
    fn stage_argument(&self, placed: &Placed<impl Sized>, argument: &BuildArgument, found: &mut Surveyed) {
        let name = &argument.name.text;
        let given = self.request.build_args.get(name).cloned();
        let is_global = given.is_none() && argument.default.is_none() && self.globals.contains_key(name);
        let default = argument.default.as_ref().map(|word| self.expand(&found.variables, &word.text));
        let value = given.or(default).or_else(|| self.globals.get(name).cloned());
        if let Some(value) = &value {
            found.variables.insert(name.clone(), value.clone());
        }
        if !is_global {
            let argument = self.argument(placed, name, value);
            found.arguments.insert(name.clone(), (argument, BTreeSet::new()));
        }
        found.used.insert(name.clone());
    }

    fn mounts(&self, placed: &Placed<impl Sized>, run: &Run, found: &mut Surveyed) {
        let lookup = |name: &str| found.variables.get(name).cloned();
        let expander = Expander::new(self.file.directives.escape, &lookup);
        let location = Lines::of(self.file, placed.span);
        // A mount that makes no sense fails the build by itself.
        let kinds: Vec<MountKind> = run.mounts.iter().filter_map(|mount| mount.evaluate(&expander).ok()).collect();
        for kind in kinds {
            let (list, name, required) = match kind {
                MountKind::Secret { id, is_required, .. } => (&mut found.secrets, id, is_required),
                MountKind::Ssh { id, is_required, .. } => (&mut found.ssh, id, is_required),
                _ => continue,
            };
            if list.iter().all(|needed| needed.name != name) {
                list.push(Needed { name, required, location: location.clone() });
            }
        }
    }

    fn expand(&self, variables: &BTreeMap<String, String>, text: &str) -> String {
        let lookup = |name: &str| variables.get(name).cloned();
        Expander::new(self.file.directives.escape, &lookup).expand(text).unwrap_or_default()
    }

    /// The global arguments that a word names and that have a value.
    fn set_names_in(&self, text: &str) -> BTreeSet<String> {
        let names = RefCell::new(BTreeSet::new());
        let lookup = |name: &str| {
            let value = self.globals.get(name)?;
            names.borrow_mut().insert(name.to_owned());
            Some(value.clone())
        };
        // What cannot be expanded fails the build by itself.
        _ = Expander::new(self.file.directives.escape, &lookup).expand(text);
        names.into_inner()
    }

    /// What the stages use together; the later stage's word counts.
    fn collect(&self, needed: &BTreeSet<usize>) -> Outline {
        let (mut args, mut secrets, mut ssh) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for stage in needed.iter().rev().map(|index| &self.stages[*index]) {
            let mut pending: Vec<&String> = stage.used.iter().collect();
            let mut seen = BTreeSet::new();
            while let Some(name) = pending.pop() {
                if let Some((argument, uses)) = stage.arguments.get(name).filter(|_| seen.insert(name)) {
                    args.entry(name).or_insert(argument);
                    pending.extend(uses);
                }
            }
            stage.secrets.iter().for_each(|one| _ = secrets.entry(&one.name).or_insert(one));
            stage.ssh.iter().for_each(|one| _ = ssh.entry(&one.name).or_insert(one));
        }
        fn sorted<T: Clone>(found: BTreeMap<&String, &T>, place: impl Fn(&T) -> Lines) -> Vec<T> {
            let mut list: Vec<T> = found.into_values().cloned().collect();
            list.sort_by_key(place);
            list
        }
        Outline {
            name: String::new(),
            description: String::new(),
            args: sorted(args, |argument| argument.location.clone()),
            secrets: sorted(secrets, |needed| needed.location.clone()),
            ssh: sorted(ssh, |needed| needed.location.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dockerfile::Source;

    const TEXT: &str = "ARG inherited=box\nARG inherited2=box2\nARG unused=abc${inherited2}\n# sfx is a suffix\n\
        ARG sfx=\"usy${inherited}\"\nFROM b${sfx} AS first\n# this is not assigned\nARG FOO=123\n# BAR is a number\n\
        ARG BAR=456\nRUN --mount=type=secret,id=second,required=true \\\n --mount=type=ssh true\n\
        FROM alpine${unused} AS second\nARG BAZ\nFROM scratch AS third\nARG ABC=a\n\
        # target defines build target\nFROM third AS target\nCOPY --from=first /etc/passwd /\nFROM second\n";

    fn request(target: Option<&str>) -> BuildRequest {
        let mut request = BuildRequest::new(Source::new("Dockerfile", TEXT.as_bytes()), "/nowhere");
        request.target = target.map(str::to_owned);
        request.build_args.insert("BAR".into(), "678".into());
        request
    }

    #[test]
    fn outline_is_what_the_target_and_its_stages_use() {
        let outline = outline(&request(Some("target"))).expect("valid");
        assert_eq!((outline.name.as_str(), outline.description.as_str()), ("target", "defines build target"));
        let args: Vec<_> =
            outline.args.iter().map(|a| (a.name.as_str(), a.value.as_str(), a.description.as_str())).collect();
        assert_eq!(
            args,
            [
                ("inherited", "box", ""),
                ("sfx", "usybox", "is a suffix"),
                ("FOO", "123", ""),
                ("BAR", "678", "is a number"),
                ("ABC", "a", ""),
            ]
        );
        assert_eq!((outline.secrets[0].name.as_str(), outline.secrets[0].required), ("second", true));
        assert_eq!((outline.ssh[0].name.as_str(), outline.ssh[0].required), ("default", false));
        let json = serde_json::to_value(&outline.secrets[0]).expect("JSON");
        let lines = serde_json::json!([{"start": {"line": 11}, "end": {"line": 11}}, {"start": {"line": 12}, "end": {"line": 12}}]);
        assert_eq!(json, serde_json::json!({"name": "second", "required": true, "location": {"ranges": lines}}));
    }

    #[test]
    fn an_argument_without_a_value_is_used_only_where_a_stage_asks_for_it() {
        let text = "ARG PREFIX\nARG BUILDPLATFORM\nFROM --platform=$BUILDPLATFORM ${PREFIX}box\nARG OTHER";
        let request = BuildRequest::new(Source::new("Dockerfile", text.as_bytes()), "/nowhere");
        let outline = outline(&request).expect("valid");
        let args: Vec<_> = outline.args.iter().map(|a| (a.name.as_str(), a.value.as_str())).collect();
        assert_eq!(args, [("BUILDPLATFORM", ""), ("OTHER", "")]);
    }

    #[test]
    fn targets_are_all_stages_and_the_last_is_the_default() {
        let targets = targets(&request(None)).expect("valid");
        let shown: Vec<_> = targets.iter().map(|t| (t.name.as_str(), t.base.as_str(), t.default)).collect();
        assert_eq!(
            shown,
            [
                ("first", "b${sfx}", false),
                ("second", "alpine${unused}", false),
                ("third", "scratch", false),
                ("target", "third", false),
                ("", "second", true)
            ]
        );
        assert_eq!(targets[3].description, "defines build target");
    }
}
