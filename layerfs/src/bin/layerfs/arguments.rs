//! The command line, in the forms that runtimes, `mount(8)` and `mount.fuse` use.
//!
//! Invariant: a word that is not understood is an error. What the `-o` options mean is not decided here.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
};

use anyhow::{Context as _, bail};

use crate::background::CHILD;

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Help,
    Version,
    Mount {
        /// What /proc/mounts shows as mounted.
        source: Option<OsString>,
        target: PathBuf,
        /// All `-o` options, joined with commas.
        options: Vec<u8>,
        foreground: bool,
        debug: bool,
    },
}

/// The whole command line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Arguments {
    pub(crate) request: Request,
    /// This process was started by one with the same command line, to serve in the background.
    pub(crate) is_child: bool,
}

impl Arguments {
    /// Reads the words after the program's name.
    pub(crate) fn parse(words: &[OsString]) -> anyhow::Result<Self> {
        let is_child = words.first().is_some_and(|word| word == CHILD);
        let mut words = words.iter().skip(usize::from(is_child));
        let mut places: Vec<&OsStr> = Vec::new();
        let mut options = Vec::new();
        let (mut foreground, mut debug, mut only_places) = (false, false, false);
        while let Some(word) = words.next() {
            let bytes = word.as_bytes();
            if only_places || !bytes.starts_with(b"-") || bytes == b"-" {
                places.push(word);
                continue;
            }
            match bytes {
                b"--" => only_places = true,
                b"-h" | b"--help" => return Ok(Self { request: Request::Help, is_child }),
                b"-V" | b"--version" => return Ok(Self { request: Request::Version, is_child }),
                b"-f" | b"--foreground" => foreground = true,
                b"-d" | b"--debug" => (foreground, debug) = (true, true),
                // From `mount(8)`: be sloppy about options, leave /etc/mtab alone. From libfuse: one thread.
                b"-s" | b"-n" => {}
                b"-r" => add(&mut options, b"ro"),
                b"-w" => add(&mut options, b"rw"),
                // From `mount(8)`: the type, which is what this program is.
                b"-t" => drop(words.next().context("-t needs a type")?),
                b"-o" | b"--options" => add(&mut options, words.next().context("-o needs options")?.as_bytes()),
                _ if bytes.starts_with(b"-o") => add(&mut options, &bytes[2..]),
                _ => bail!("unknown option {}: see layerfs --help", word.display()),
            }
        }
        let (source, target) = match places[..] {
            [target] => (None, PathBuf::from(target)),
            [source, target] => (Some(source.to_owned()), PathBuf::from(target)),
            [] => bail!("no directory to mount on: see layerfs --help"),
            _ => bail!("{} directories to mount on; one is possible", places.len() - 1),
        };
        Ok(Self { request: Request::Mount { source, target, options, foreground, debug }, is_child })
    }
}

fn add(options: &mut Vec<u8>, more: &[u8]) {
    if !options.is_empty() {
        options.push(b',');
    }
    options.extend_from_slice(more);
}

/// A path from an option's bytes.
pub(crate) fn path(bytes: Vec<u8>) -> PathBuf {
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> anyhow::Result<Arguments> {
        Arguments::parse(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    fn mounted(words: &[&str]) -> (String, String, bool) {
        match parse(words).expect("a command line").request {
            Request::Mount { target, options, foreground, .. } => {
                (target.display().to_string(), String::from_utf8(options).expect("text"), foreground)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_caller_s_form_is_understood() {
        let wanted = ("/m".to_owned(), "lowerdir=a".to_owned(), false);
        assert_eq!(mounted(&["-o", "lowerdir=a", "/m"]), wanted);
        assert_eq!(mounted(&["overlay", "/m", "-o", "lowerdir=a"]), wanted);
        assert_eq!(mounted(&["-olowerdir=a", "/m"]), wanted);
        assert_eq!(mounted(&["-t", "fuse.layerfs", "-n", "-s", "/m", "-olowerdir=a"]), wanted);
        assert_eq!(mounted(&["-orw", "-olowerdir=a", "-f", "/m"]), ("/m".into(), "rw,lowerdir=a".into(), true));
        assert_eq!(mounted(&["-o", "lowerdir=a", "--", "-m"]), ("-m".into(), "lowerdir=a".into(), false));
    }

    #[test]
    fn the_first_of_two_places_is_the_source() {
        let source = |words: &[&str]| match parse(words).expect("a command line").request {
            Request::Mount { source, .. } => source,
            other => panic!("{other:?}"),
        };
        assert_eq!(source(&["overlay", "/m", "-olowerdir=a"]), Some("overlay".into()));
        assert_eq!(source(&["/m", "-olowerdir=a"]), None);
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for words in [&[][..], &["-o"], &["-x", "/m"], &["a", "b", "c"], &["-t"], &["--plugin", "/m"]] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn help_and_version_win() {
        assert_eq!(parse(&["-V"]).expect("fine").request, Request::Version);
        assert_eq!(parse(&["-o", "x", "--help"]).expect("fine").request, Request::Help);
    }
}
