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

/// ARG: the value given to the build, else the default, else that of a global ARG of the same name.
pub(crate) fn arg(
    evaluation: &Evaluation<'_>,
    stage: &mut StageState,
    arguments: &[BuildArgument],
    site: &Site,
) -> Result<(), BuildError> {
    let mut shown = Vec::new();
    for argument in arguments {
        let name = &argument.name.text;
        // A default that is not needed may be an error: `${NAME:?}`.
        let is_given = evaluation.request.build_args.contains_key(name);
        let default = argument.default.as_ref().filter(|_| !is_given);
        let default = default.map(|word| evaluation.expand(stage, word, site)).transpose()?;
        let value = evaluation.argument(name, default);
        shown.push(match &value {
            Some(value) => format!("{name}={value}"),
            None => name.clone(),
        });
        if let Some(value) = value {
            if !SCAN_ARGUMENTS.contains(&name.as_str()) {
                stage.set_variable(name, &value);
            }
            if !PROXY_ARGUMENTS.contains(&name.as_str()) {
                stage.set_argument(name, &value);
            }
        }
    }
    stage.add_empty_history(&format!("ARG {}", shown.join(" ")));
    Ok(())
}

/// ENV: all values see the variables as they were before the instruction.
pub(crate) fn env(
    evaluation: &Evaluation<'_>,
    stage: &mut StageState,
    pairs: &[Pair],
    site: &Site,
) -> Result<(), BuildError> {
    let expanded = expand_pairs(evaluation, stage, pairs, site)?;
    for (name, value) in &expanded {
        stage.config.config.set_env(name, value);
        stage.set_variable(name, value);
    }
    stage.add_empty_history(&format!("ENV {}", joined(&expanded)));
    Ok(())
}

/// LABEL.
pub(crate) fn label(
    evaluation: &Evaluation<'_>,
    stage: &mut StageState,
    pairs: &[Pair],
    site: &Site,
) -> Result<(), BuildError> {
    let expanded = expand_pairs(evaluation, stage, pairs, site)?;
    stage.add_empty_history(&format!("LABEL {}", joined(&expanded)));
    stage.config.config.labels.extend(expanded);
    Ok(())
}

/// USER, kept as it is written: names are looked up when something runs.
pub(crate) fn user(
    evaluation: &Evaluation<'_>,
    stage: &mut StageState,
    user: &Word,
    site: &Site,
) -> Result<(), BuildError> {
    stage.config.config.user = evaluation.expand(stage, user, site)?;
    stage.add_empty_history(&format!("USER {}", stage.config.config.user));
    Ok(())
}

/// EXPOSE: ports and ranges, with a protocol.
pub(crate) fn expose(
    evaluation: &Evaluation<'_>,
    stage: &mut StageState,
    words: &[Word],
    site: &Site,
) -> Result<(), BuildError> {
    let mut ports = Vec::new();
    for word in words {
        for text in evaluation.expand_words(stage, word, site)? {
            ports.extend(exposed_ports(&text).map_err(site.at(word.span).because())?);
        }
    }
    stage.add_empty_history(&format!("EXPOSE {}", ports.join(" ")));
    stage.config.config.exposed_ports.extend(ports.into_iter().map(|port| (port, json!({}))));
    Ok(())
}

/// VOLUME.
pub(crate) fn volume(
    evaluation: &Evaluation<'_>,
    stage: &mut StageState,
    words: &[Word],
    site: &Site,
) -> Result<(), BuildError> {
    let mut volumes = Vec::new();
    for word in words {
        let volume = evaluation.expand(stage, word, site)?;
        if volume.trim().is_empty() {
            return Err(site.at(word.span).error("VOLUME specified can not be an empty string").into());
        }
        volumes.push(volume);
    }
    stage.add_empty_history(&format!("VOLUME {}", exec_form(&volumes)));
    stage.config.config.volumes.extend(volumes.into_iter().map(|volume| (volume, json!({}))));
    Ok(())
}

/// CMD.
pub(crate) fn cmd(stage: &mut StageState, command: &Command) {
    let (argv, shown) = argv(stage, command);
    stage.config.config.cmd = argv;
    stage.config.config.args_escaped = true;
    stage.has_own_cmd = true;
    stage.add_empty_history(&format!("CMD {shown}"));
}

/// ENTRYPOINT, which takes the base image's CMD away.
pub(crate) fn entrypoint(stage: &mut StageState, command: &Command) {
    let (argv, shown) = argv(stage, command);
    stage.config.config.entrypoint = argv;
    if !stage.has_own_cmd {
        stage.config.config.cmd = Vec::new();
    }
    stage.add_empty_history(&format!("ENTRYPOINT {shown}"));
}

/// SHELL.
pub(crate) fn shell(stage: &mut StageState, words: &[Word]) {
    stage.config.config.shell = texts(words);
    stage.add_empty_history(&format!("SHELL {}", exec_form(&stage.config.config.shell)));
}

/// STOPSIGNAL: a name with or without SIG, or a number.
pub(crate) fn stop_signal(
    evaluation: &Evaluation<'_>,
    stage: &mut StageState,
    signal: &Word,
    site: &Site,
) -> Result<(), BuildError> {
    let text = evaluation.expand(stage, signal, site)?;
    check_signal(&text).map_err(site.at(signal.span).because())?;
    stage.add_empty_history(&format!("STOPSIGNAL {text}"));
    stage.config.config.stop_signal = text;
    Ok(())
}

/// HEALTHCHECK.
pub(crate) fn healthcheck(stage: &mut StageState, check: &Healthcheck) {
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
    stage.add_empty_history(&format!("HEALTHCHECK {}", exec_form(&config.test)));
    stage.config.config.healthcheck = Some(config);
}

/// ONBUILD, which as in BuildKit leaves no trace in the history.
pub(crate) fn onbuild(stage: &mut StageState, text: &str) {
    stage.config.config.on_build.push(text.to_owned());
}

/// MAINTAINER.
pub(crate) fn maintainer(stage: &mut StageState, name: &str) {
    stage.config.author = Some(name.to_owned());
    stage.add_empty_history(&format!("MAINTAINER {name}"));
}

/// A JSON list, as the exec form of an instruction is written.
pub(crate) fn exec_form(words: &[String]) -> String {
    serde_json::to_string(words).expect("a list of strings is JSON")
}

/// The texts of words that are never expanded.
pub(crate) fn texts(words: &[Word]) -> Vec<String> {
    words.iter().map(|word| word.text.clone()).collect()
}

fn argv(stage: &StageState, command: &Command) -> (Vec<String>, String) {
    let argv = match command {
        Command::Shell(text) => {
            let mut argv = stage.shell();
            argv.push(text.text.clone());
            argv
        }
        Command::Exec(words) => texts(words),
    };
    let shown = exec_form(&argv);
    (argv, shown)
}

fn expand_pairs(
    evaluation: &Evaluation<'_>,
    stage: &StageState,
    pairs: &[Pair],
    site: &Site,
) -> Result<Vec<(String, String)>, BuildError> {
    let expand = |word| evaluation.expand(stage, word, site);
    pairs.iter().map(|pair| Ok((expand(&pair.name)?, expand(&pair.value)?))).collect()
}

fn joined(pairs: &[(String, String)]) -> String {
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}
