//! What a RUN step has to start, with here-documents put where they belong.
//!
//! Invariant: the body of a here-document reaches the program as it was written; only a body that is the whole
//! instruction loses the tabs that `<<-` strips, as no shell sees its `<<-`.

use super::{Command, Run};
use crate::dockerfile::heredoc::{self, FileNameError};

/// What to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Script {
    /// A program and its arguments.
    Exec(Vec<String>),
    /// A text, as one more argument behind those of SHELL.
    Shell(String),
    /// A here-document that begins with `#!`: a file to be made executable under this name and run.
    Program {
        /// The file's name, one component.
        name: String,
        /// Its content.
        content: String,
    },
}

impl Run {
    /// Puts the command together.
    ///
    /// # Errors
    /// If a program cannot have the name that its here-document has.
    pub fn script(&self) -> Result<Script, FileNameError> {
        let text = match &self.command {
            Command::Exec(words) => return Ok(Script::Exec(words.iter().map(|word| word.text.clone()).collect())),
            Command::Shell(text) => &text.text,
        };
        Ok(match self.heredocs.as_slice() {
            [] => Script::Shell(text.clone()),
            [body] if heredoc::opening(text).is_some() && body.text().starts_with("#!") => {
                Script::Program { name: body.file_name()?, content: body.text() }
            }
            [body] if heredoc::opening(text).is_some() => Script::Shell(body.text()),
            bodies => {
                let bodies = bodies.iter().map(|body| format!("\n{}{}", body.content, body.delimiter));
                Script::Shell(text.clone() + &bodies.collect::<String>())
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dockerfile::{Dockerfile, Instruction};

    fn script(text: &str) -> Script {
        let file = Dockerfile::parse("D", format!("FROM a\n{text}").as_bytes()).expect(text);
        match &file.stages[0].instructions[0].value {
            Instruction::Run(run) => run.script().expect("its name is one"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_body_alone_is_the_script() {
        assert_eq!(script("RUN <<EOF\necho $A\nEOF\n"), Script::Shell("echo $A\n".into()));
        assert_eq!(script("RUN <<-EOF\n\techo\n\tEOF\n"), Script::Shell("echo\n".into()));
    }

    #[test]
    fn a_body_with_a_shebang_is_a_program() {
        let program = Script::Program { name: "EOF".into(), content: "#!/bin/awk -f\nBEGIN {}\n".into() };
        assert_eq!(script("RUN <<EOF\n#!/bin/awk -f\nBEGIN {}\nEOF\n"), program);
        assert_eq!(script("RUN <<-EOF\n\t#!/bin/awk -f\n\tBEGIN {}\n\tEOF\n"), program);
    }

    #[test]
    fn bodies_beside_a_command_are_left_to_the_shell() {
        let expected = "cat <<A && cat <<-B\none\nA\n\ttwo\nB";
        assert_eq!(script("RUN cat <<A && cat <<-B\none\nA\n\ttwo\n\tB\n"), Script::Shell(expected.into()));
        assert_eq!(script("RUN <<EOF cat > /x\nl\nEOF"), Script::Shell("<<EOF cat > /x\nl\nEOF".into()));
        assert_eq!(script("RUN [\"a\", \"<<EOF\"]"), Script::Exec(vec!["a".into(), "<<EOF".into()]));
    }
}
