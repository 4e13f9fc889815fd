//! A whole Dockerfile: global arguments, then stages of typed instructions.
//!
//! Invariant: there is at least one stage, and before the first one stand only ARGs. Names of stages and sources are
//! not resolved here: they may hold variables.

use super::directives::Directives;
use super::error::DockerfileError;
use super::instructions::{BaseImage, BuildArgument, Instruction, Placed, instruction};
use super::parser::{self, Statement};
use super::source::{Source, Span};

/// A Dockerfile that BuildKit's parser would accept.
#[derive(Debug, Clone)]
pub struct Dockerfile {
    /// The text, for messages about spans.
    pub source: Source,
    /// Parser directives.
    pub directives: Directives,
    /// The ARGs before the first FROM, each instruction on its own.
    pub global_arguments: Vec<Placed<Vec<BuildArgument>>>,
    /// The stages, in order.
    pub stages: Vec<Stage>,
}

/// One FROM and what follows it.
#[derive(Debug, Clone)]
pub struct Stage {
    /// The FROM.
    pub from: Placed<BaseImage>,
    /// The rest, without further FROMs.
    pub instructions: Vec<Placed<Instruction>>,
}

impl Dockerfile {
    /// Reads a Dockerfile; `name` is what errors call it.
    ///
    /// # Errors
    /// The first mistake: all of the syntax before any of the instructions, as BuildKit does it.
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self, DockerfileError> {
        let (file, mistake) = Self::parse_as_far_as_possible(name, bytes)?;
        mistake.map_or(Ok(file), Err)
    }

    /// What stands before the first instruction that is wrong, and what is wrong with that; there may be no stage then.
    ///
    /// # Errors
    /// The first mistake of the syntax.
    pub(crate) fn parse_as_far_as_possible(
        name: &str,
        bytes: &[u8],
    ) -> Result<(Self, Option<DockerfileError>), DockerfileError> {
        let source = Source::new(name, bytes);
        let (directives, statements) = parser::parse(&source)?;
        if let Some(syntax) = directives.foreign_syntax() {
            let message =
                format!("the frontend {:?} is not supported: only docker/dockerfile is built in", syntax.text);
            return Err(source.error(syntax.span, message));
        }
        let mut file = Self { source, directives, global_arguments: Vec::new(), stages: Vec::new() };
        let mistake = statements.iter().try_for_each(|statement| file.take(statement)).err();
        let has_none = file.stages.is_empty() && mistake.is_none();
        let mistake = mistake.or_else(|| {
            let end = file.source.bytes().len();
            has_none.then(|| file.source.error(Span { start: end, end }, "dockerfile contains no stages to build"))
        });
        Ok((file, mistake))
    }

    fn take(&mut self, statement: &Statement) -> Result<(), DockerfileError> {
        let Placed { value, span, text, comments } = instruction(&self.source, statement)?;
        match (value, self.stages.last_mut()) {
            (Instruction::From(value), _) => {
                let from = Placed { value, span, text, comments };
                self.stages.push(Stage { from, instructions: Vec::new() });
            }
            (value, Some(stage)) => stage.instructions.push(Placed { value, span, text, comments }),
            (Instruction::Arg(value), None) => self.global_arguments.push(Placed { value, span, text, comments }),
            (other, None) => {
                let message = format!(
                    "no build stage in current context: only ARG may stand before FROM, not {}",
                    other.keyword()
                );
                return Err(self.source.error(statement.keyword.span, message));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_before_from_are_global_and_the_rest_belongs_to_its_stage() {
        let file = Dockerfile::parse("D", b"ARG A=1\nFROM a AS One\nARG B\nRUN x\nFROM one\nCMD y").expect("valid");
        assert_eq!(file.global_arguments.len(), 1);
        assert_eq!(file.stages.iter().map(|stage| stage.instructions.len()).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(file.stages[0].from.value.name.as_ref().map(|name| name.text.as_str()), Some("one"));
    }

    #[test]
    fn another_frontend_is_refused() {
        for own in [
            "docker/dockerfile",
            "docker/dockerfile:1.7-labs",
            "docker.io/docker/dockerfile@sha256:00",
            "dockerfile.v0",
            "docker.io/docker/dockerfile-upstream:master",
            "localhost:5000/docker/dockerfile",
            "mirror.example.com:5000/hub/docker/dockerfile:1@sha256:00",
        ] {
            assert!(Dockerfile::parse("D", format!("# syntax={own}\nFROM a").as_bytes()).is_ok(), "{own}");
        }
        for other in ["example.com/dockerfile:1", "docker/dockerfile-x", "notdocker/dockerfile", "docker/dockerfile/x"]
        {
            assert!(Dockerfile::parse("D", format!("# syntax={other}\nFROM a").as_bytes()).is_err(), "{other}");
        }
        let error = Dockerfile::parse("D", b"#check=skip=all\n# syntax=example.com/x:1\nFROM a").expect_err("foreign");
        assert_eq!((error.place.line, error.message.contains("example.com/x:1")), (2, true));
    }

    #[test]
    fn a_file_without_a_stage_is_an_error() {
        assert!(Dockerfile::parse("D", b"ARG A=1\n").expect_err("none").message.contains("no stages"));
        assert!(Dockerfile::parse("D", b"").expect_err("empty").message.contains("empty"));
        let error = Dockerfile::parse("D", b"LABEL a=1\nFROM scratch").expect_err("LABEL first");
        assert_eq!((error.place.line, error.message.contains("LABEL")), (1, true));
    }
}
