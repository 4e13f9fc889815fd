//! The instructions that change only the image's configuration: ARG, ENV, LABEL, USER, CMD and so on.

use std::time::Duration;

use serde_json::json;

use super::Evaluation;
use crate::dockerfile::{BuildArgument, Command, Healthcheck, Pair, Word, check_signal, exposed_ports};
use crate::error::{BuildError, Site};
use crate::frontend::SCAN_ARGUMENTS;
use crate::image::Healthcheck as ConfigHealthcheck;
use crate::stage::StageState;

/// Build arguments that need no ARG and appear in no history: what a proxy needs.
/// <https://docs.docker.com/build/building/variables/#proxy-arguments>
pub(crate) const PROXY_ARGUMENTS: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// An instruction that changes the configuration, about to be carried out.
pub(crate) struct ConfigStep<'a> {
    pub(crate) evaluation: &'a Evaluation<'a>,
    pub(crate) stage: &'a mut StageState,
    /// Where the instruction stands.
    pub(crate) site: &'a Site,
}

impl ConfigStep<'_> {
    /// ARG: the value given to the build, else the default, else that of a global ARG of the same name.
    pub(crate) fn arg(self, arguments: &[BuildArgument]) -> Result<(), BuildError> {
        let mut shown = Vec::new();
        for argument in arguments {
            let name = &argument.name.text;
            // A default that is not needed may be an error: `${NAME:?}`.
            let is_given = self.evaluation.request.build_args.contains_key(name);
            let default = argument.default.as_ref().filter(|_| !is_given);
            let default = default.map(|word| self.expand(word)).transpose()?;
            let value = self.evaluation.argument(name, default);
            shown.push(match &value {
                Some(value) => format!("{name}={value}"),
                None => name.clone(),
            });
            if let Some(value) = value {
                if !SCAN_ARGUMENTS.contains(&name.as_str()) {
                    self.stage.set_variable(name, &value);
                }
                if !PROXY_ARGUMENTS.contains(&name.as_str()) {
                    self.stage.set_argument(name, &value);
                }
            }
        }
        self.stage.add_empty_history(&format!("ARG {}", shown.join(" ")));
        Ok(())
    }

    /// ENV: all values see the variables as they were before the instruction.
    pub(crate) fn env(self, pairs: &[Pair]) -> Result<(), BuildError> {
        let expanded = self.expand_pairs(pairs)?;
        for (name, value) in &expanded {
            self.stage.config.config.set_env(name, value);
            self.stage.set_variable(name, value);
        }
        self.stage.add_empty_history(&format!("ENV {}", joined(&expanded)));
        Ok(())
    }

    /// LABEL.
    pub(crate) fn label(self, pairs: &[Pair]) -> Result<(), BuildError> {
        let expanded = self.expand_pairs(pairs)?;
        self.stage.add_empty_history(&format!("LABEL {}", joined(&expanded)));
        self.stage.config.config.labels.extend(expanded);
        Ok(())
    }

    /// USER, kept as it is written: names are looked up when something runs.
    pub(crate) fn user(self, user: &Word) -> Result<(), BuildError> {
        self.stage.config.config.user = self.expand(user)?;
        self.stage.add_empty_history(&format!("USER {}", self.stage.config.config.user));
        Ok(())
    }

    /// EXPOSE: ports and ranges, with a protocol.
    pub(crate) fn expose(self, words: &[Word]) -> Result<(), BuildError> {
        let mut ports = Vec::new();
        for word in words {
            for text in self.evaluation.expand_words(self.stage, word, self.site)? {
                ports.extend(exposed_ports(&text).map_err(self.site.at(word.span).because())?);
            }
        }
        self.stage.add_empty_history(&format!("EXPOSE {}", ports.join(" ")));
        self.stage.config.config.exposed_ports.extend(ports.into_iter().map(|port| (port, json!({}))));
        Ok(())
    }

    /// VOLUME.
    pub(crate) fn volume(self, words: &[Word]) -> Result<(), BuildError> {
        let mut volumes = Vec::new();
        for word in words {
            let volume = self.expand(word)?;
            if volume.trim().is_empty() {
                return Err(self.site.at(word.span).error("VOLUME specified can not be an empty string").into());
            }
            volumes.push(volume);
        }
        self.stage.add_empty_history(&format!("VOLUME {}", exec_form(&volumes)));
        self.stage.config.config.volumes.extend(volumes.into_iter().map(|volume| (volume, json!({}))));
        Ok(())
    }

    /// CMD.
    pub(crate) fn cmd(self, command: &Command) {
        let (argv, shown) = self.argv(command);
        self.stage.config.config.cmd = argv;
        self.stage.config.config.args_escaped = true;
        self.stage.has_own_cmd = true;
        self.stage.add_empty_history(&format!("CMD {shown}"));
    }

    /// ENTRYPOINT, which takes the base image's CMD away.
    pub(crate) fn entrypoint(self, command: &Command) {
        let (argv, shown) = self.argv(command);
        self.stage.config.config.entrypoint = argv;
        if !self.stage.has_own_cmd {
            self.stage.config.config.cmd = Vec::new();
        }
        self.stage.add_empty_history(&format!("ENTRYPOINT {shown}"));
    }

    /// SHELL.
    pub(crate) fn shell(self, words: &[Word]) {
        self.stage.config.config.shell = texts(words);
        self.stage.add_empty_history(&format!("SHELL {}", exec_form(&self.stage.config.config.shell)));
    }

    /// STOPSIGNAL: a name with or without SIG, or a number.
    pub(crate) fn stop_signal(self, signal: &Word) -> Result<(), BuildError> {
        let text = self.expand(signal)?;
        check_signal(&text).map_err(self.site.at(signal.span).because())?;
        self.stage.add_empty_history(&format!("STOPSIGNAL {text}"));
        self.stage.config.config.stop_signal = text;
        Ok(())
    }

    /// HEALTHCHECK.
    pub(crate) fn healthcheck(self, check: &Healthcheck) {
        let nanoseconds = |duration: &Option<Duration>| {
            duration.map_or(0, |duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
        };
        let config = match check {
            Healthcheck::None => ConfigHealthcheck { test: vec!["NONE".to_owned()], ..ConfigHealthcheck::default() },
            Healthcheck::Command { command, interval, timeout, start_period, start_interval, retries } => {
                let test = match command {
                    Command::Shell(text) => vec!["CMD-SHELL".to_owned(), text.text.clone()],
                    Command::Exec(words) => std::iter::once("CMD".to_owned()).chain(texts(words)).collect(),
                };
                ConfigHealthcheck {
                    test,
                    interval: nanoseconds(interval),
                    timeout: nanoseconds(timeout),
                    start_period: nanoseconds(start_period),
                    start_interval: nanoseconds(start_interval),
                    retries: retries.map_or(0, i64::from),
                }
            }
        };
        self.stage.add_empty_history(&format!("HEALTHCHECK {}", exec_form(&config.test)));
        self.stage.config.config.healthcheck = Some(config);
    }

    /// ONBUILD, which as in BuildKit leaves no trace in the history.
    pub(crate) fn onbuild(self, text: &str) {
        self.stage.config.config.on_build.push(text.to_owned());
    }

    /// MAINTAINER.
    pub(crate) fn maintainer(self, name: &str) {
        self.stage.config.author = Some(name.to_owned());
        self.stage.add_empty_history(&format!("MAINTAINER {name}"));
    }

    fn argv(&self, command: &Command) -> (Vec<String>, String) {
        let argv = match command {
            Command::Shell(text) => {
                let mut argv = self.stage.shell();
                argv.push(text.text.clone());
                argv
            }
            Command::Exec(words) => texts(words),
        };
        let shown = exec_form(&argv);
        (argv, shown)
    }

    fn expand_pairs(&self, pairs: &[Pair]) -> Result<Vec<(String, String)>, BuildError> {
        pairs.iter().map(|pair| Ok((self.expand(&pair.name)?, self.expand(&pair.value)?))).collect()
    }

    fn expand(&self, word: &Word) -> Result<String, BuildError> {
        self.evaluation.expand(self.stage, word, self.site)
    }
}

/// A JSON list, as the exec form of an instruction is written.
fn exec_form(words: &[String]) -> String {
    serde_json::to_string(words).expect("a list of strings is JSON")
}

/// The texts of words that are never expanded.
fn texts(words: &[Word]) -> Vec<String> {
    words.iter().map(|word| word.text.clone()).collect()
}

fn joined(pairs: &[(String, String)]) -> String {
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}
