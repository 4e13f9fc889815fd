//! The Dockerfile language: text to typed instructions, and the expansion of their words.
//!
//! ```text
//! bytes -> lexer (lines) -> parser (statements) -> instructions (typed) -> stages (a Dockerfile)
//!                                     words with spans, unexpanded -> expansion (with variables)
//! ```
//!
//! Invariant: whatever the bytes, the answer is a Dockerfile or an error with file, line and column: no panic, and
//! time in proportion to the input. Nothing here reads a file, an image or the environment.

mod directives;
mod error;
mod expansion;
mod heredoc;
mod instructions;
mod lexer;
mod lint;
mod parser;
mod pattern;
mod rules;
mod source;
mod stages;
mod values;
mod words;

pub use directives::Directives;
pub(crate) use directives::is_own_frontend;
pub(crate) use error::closest;
pub use error::{DockerfileError, Place};
pub use expansion::{Expander, ExpansionError, Lookup};
pub use heredoc::{FileNameError, Heredoc};
pub use instructions::{
    Add, BaseImage, BuildArgument, CacheMount, Command, Copy, FileOwnership, FileSource, Files, Healthcheck,
    Instruction, InvalidMode, ModeChange, MountError, MountFlag, MountKind, MountOption, Network, ParsedTrigger,
    Placed, Run, Script, Security, Sharing, parse_trigger,
};
pub(crate) use lint::{Below, finish, lint, lint_before};
pub use lint::{CheckOptions, Warning};
pub use parser::{Arguments, Pair, Statement, parse};
pub use rules::Rule;
pub use source::{Position, Source, Span, Word};
pub use stages::{Dockerfile, Stage};
pub use values::{ValueError, check_signal, exposed_ports};
pub use words::Flag;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Text in which every rule of the language is a few random steps away.
    fn nearly_a_dockerfile() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "FROM ",
            "RUN ",
            "COPY ",
            "ENV ",
            "ONBUILD ",
            "HEALTHCHECK ",
            "ADD ",
            "ARG ",
            "LABEL ",
            "SHELL ",
            "CMD",
            "a",
            "é",
            "=",
            " ",
            "\t",
            "\n",
            "\r\n",
            "\\\n",
            "\\",
            "`",
            "'",
            "\"",
            "$",
            "{",
            "}",
            ":-",
            "#",
            "%",
            "/",
            "<<",
            "EOF",
            "\nEOF\n",
            "<<-",
            "[",
            "]",
            ",",
            "--",
            "--mount=",
            "--chmod=",
            "type=cache",
            "target=",
            "\u{feff}",
            "# escape=`\n",
            "\u{0}",
        ]);
        prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
    }

    fn evaluate_everything(file: &Dockerfile) {
        let lookup = |name: &str| (name.len() % 2 == 1).then(|| format!("<{name}>"));
        let expander = Expander::new(file.directives.escape, &lookup);
        for placed in file.stages.iter().flat_map(|stage| &stage.instructions) {
            let _ = expander.expand(&placed.text);
            let _ = expander.expand_words(&placed.text);
            let _ = Expander::heredoc(&lookup).expand(&placed.text);
            if let Instruction::Run(run) = &placed.value {
                let _ = run.script();
                run.mounts.iter().for_each(|mount| drop(mount.evaluate(&expander)));
            }
        }
    }

    fn parse_anything(bytes: &[u8]) {
        match Dockerfile::parse("Dockerfile", bytes) {
            Ok(file) => evaluate_everything(&file),
            Err(error) => {
                let Place { line, column, width, line_text, instruction_line, .. } = *error.place;
                assert!(line >= instruction_line && instruction_line >= 1 && width >= 1);
                assert!(column <= line_text.chars().count() + 2, "column {column} of {line_text:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_gives_a_dockerfile_or_an_error_with_a_place(text in nearly_a_dockerfile()) {
            parse_anything(text.as_bytes());
            parse_anything(format!("FROM a\nRUN {text}").as_bytes());
        }

        #[test]
        fn any_bytes_give_a_dockerfile_or_an_error_with_a_place(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            parse_anything(&bytes);
            parse_anything(&[b"FROM a\nCOPY <<E /\n", bytes.as_slice()].concat());
        }
    }

    #[test]
    fn a_mistake_in_a_continued_instruction_names_its_own_line_and_where_the_instruction_begins() {
        let error = Dockerfile::parse("D", b"FROM a\nCOPY --link \\\n   --chwon=1 \\\n  b c\n").expect_err("a typo");
        assert_eq!((error.place.line, error.place.column, error.place.width), (3, 4, 7));
        assert_eq!(error.place.instruction_line, 2);
        assert_eq!(error.hint.as_deref(), Some("did you mean chown?"));
        assert_eq!(error.to_string(), "D:3:4: unknown flag: --chwon (in the instruction of line 2)");
    }

    #[test]
    fn a_long_hostile_file_takes_time_in_proportion_to_its_size() {
        // Each would take minutes if any step were quadratic.
        for piece in [
            "RUN a \\\n",
            "RUN <<A <<B\nA\nB\n",
            "ENV a=\"$b\" \\\n",
            "# c\n",
            "--x=",
            "[\"a\",",
            "${a:-",
            "'\"",
            "<<E ",
        ] {
            parse_anything(format!("FROM a\n{}", piece.repeat(200_000 / piece.len())).as_bytes());
            parse_anything(format!("FROM a\nRUN {}", piece.replace('\n', "").repeat(60_000 / piece.len())).as_bytes());
        }
    }

    #[test]
    fn flags_are_typed_and_checked() {
        let message =
            |text: &str| Dockerfile::parse("D", format!("FROM a\n{text}").as_bytes()).expect_err(text).message;
        assert!(message("COPY --link=maybe a b").contains("expecting boolean value"));
        assert!(message("COPY --link= a b").contains("missing a value"));
        assert!(message("COPY --from=a --from=b a b").contains("duplicate flag"));
        assert!(message("CMD --x y").contains("unknown flag: --x"));
        assert!(message("ONBUILD --x RUN y").contains("unknown flag"));
        assert!(message("HEALTHCHECK --retries=-1 CMD x").contains("negative"));
        assert!(message("HEALTHCHECK --timeout=1us CMD x").contains("less than 1ms"));
        assert!(message("RUN --security=none x").contains("not valid"));
        assert!(message("RUN --security= x").contains("not valid"));
        assert!(message("RUN --network= x").contains("unsupported network mode"));
        assert!(message("COPY ----chown=1 a b").contains("unknown flag: ----chown"));
        assert!(message("COPY [\"a\", \"<<E\"]").contains("heredoc as a destination"));
        assert_eq!(
            (message("# c\n\\\n # d\n\n").as_str(), message("\\").as_str()),
            ("unknown instruction: ", "unknown instruction: ")
        );
    }

    #[test]
    fn flags_are_not_looked_at_where_buildkit_does_not() {
        for text in ["HEALTHCHECK --interval=5s NONE", "HEALTHCHECK --x --x NONE", "ARG --x A=1", "STOPSIGNAL --x 9"] {
            assert!(Dockerfile::parse("D", format!("FROM a\n{text}").as_bytes()).is_ok(), "{text}");
        }
        assert!(Dockerfile::parse("D", b"FROM a\nSTOPSIGNAL --x").is_err());
    }

    #[test]
    fn a_trigger_is_one_instruction_and_keeps_its_text() {
        let file = Dockerfile::parse("D", b"FROM a\nONBUILD copy <<E /x\nhi\nE\n").expect("valid");
        let Instruction::Onbuild(text) = &file.stages[0].instructions[0].value else { panic!("{file:?}") };
        assert_eq!(text, "copy <<E /x\nhi\nE");
        let trigger = parse_trigger("ONBUILD of base", text).expect("valid");
        let Instruction::Copy(copy) = &trigger.instruction.value else { panic!("{trigger:?}") };
        assert!(matches!(&copy.files.sources[0], FileSource::Heredoc(body) if body.content == "hi\n"));
        assert!(parse_trigger("t", "# a").expect_err("none").message.contains("no instructions"));
        assert!(parse_trigger("t", "RUN a\nRUN b").expect_err("two").message.contains("one instruction"));
        assert!(parse_trigger("t", "FROM a").expect_err("FROM").message.contains("FROM"));
    }

    #[test]
    fn a_trigger_is_kept_as_it_is_written_and_no_instruction_yet() {
        for text in
            ["FOO bar", "COPY a", "RUN --mount=type=x y", "RUN x \t ", "ADD --chmod=999 a b", "# x", "stopsignal 0"]
        {
            let file = Dockerfile::parse("D", format!("FROM a\nonbuild \t{text}\r\n").as_bytes()).expect(text);
            assert_eq!(file.stages[0].instructions[0].value, Instruction::Onbuild(text.to_owned()), "{text}");
        }
        for text in ["", "ONBUILD RUN x", "onbuild", "MAINTAINER x", "FROM x", "ENV a", "RUN [1]", "--x RUN y"] {
            assert!(Dockerfile::parse("D", format!("FROM a\nONBUILD {text}").as_bytes()).is_err(), "{text}");
        }
    }
}
