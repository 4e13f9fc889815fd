//! The contexts on the command line of a build, and the Dockerfile, which may lie in one.
//!
//! Invariant: standard input is read once and for one thing. What a text names is told by its form, except that a
//! directory of this machine comes first.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::Context;
use builder::dockerfile::Source;
use builder::fetch::{FetchAccess, Fetched, Fetcher, MOST_TEXT_BYTES, RemotePlace, is_archive};
use builder::{BuildError, MainContext, NamedContext, Secret};

use crate::report::{Hinted, Usage};
use crate::session::Session;

/// What a build takes its files from.
#[derive(clap::Args)]
pub(crate) struct ContextArgs {
    /// The build context: a directory, a git repository (URL#REF:DIRECTORY), an archive or its URL, the URL of a
    /// Dockerfile, or `-` for an archive or a Dockerfile from standard input
    #[arg(value_name = "CONTEXT")]
    context: String,
    /// The Dockerfile: a file, a URL, or `-` for standard input; in the context if that is no directory
    /// [default: CONTEXT/Dockerfile]
    #[arg(short, long, value_name = "FILE")]
    file: Option<String>,
    /// One more build context: a directory, oci-layout://DIR[:TAG], docker-image://NAME, a git repository or a URL;
    /// NAME::PLATFORM=PLACE is for one platform only
    #[arg(long, value_name = "NAME=PLACE")]
    build_context: Vec<String>,
}

/// The Dockerfile and the main context.
pub(crate) struct Opened {
    pub(crate) dockerfile: Source,
    /// Where the Dockerfile lies, for the ignore file beside it.
    pub(crate) dockerfile_path: Option<PathBuf>,
    pub(crate) context: MainContext,
}

/// A Dockerfile, without a directory beside it if it was fetched.
type FoundDockerfile = (Source, Option<PathBuf>);

/// Names of Dockerfiles in a context, as BuildKit looks for them.
const DOCKERFILES: [&str; 2] = ["Dockerfile", "dockerfile"];

impl ContextArgs {
    /// Fetches what is not here, and reads the Dockerfile.
    pub(crate) fn open(
        &self,
        session: &Session,
        access: &FetchAccess,
        secrets: &BTreeMap<String, Secret>,
        agents: &BTreeMap<String, PathBuf>,
    ) -> anyhow::Result<Opened> {
        let text = self.context.as_str();
        let place = match RemotePlace::parse(text) {
            _ if text == "-" || Path::new(text).is_dir() => None,
            Ok(None) if Path::new(text).is_file() => Some(RemotePlace::File(text.into())),
            place => place.map_err(|error| Usage(error.to_string()))?,
        };
        let file_url = self.file.as_deref().filter(|file| file.contains("://"));
        if text != "-" && place.is_none() && file_url.is_none() {
            let (dockerfile, dockerfile_path) = self.local_dockerfile(Path::new(text))?;
            return Ok(Opened { dockerfile, dockerfile_path, context: MainContext::Directory(text.into()) });
        }
        let store = session.store()?;
        let fetcher = Fetcher::new(&store, &session.client, access, secrets, agents);
        if text == "-" {
            return self.standard_input(&fetcher);
        }
        let context = place.map(|place| fetcher.open(&place)).transpose()?;
        let (dockerfile, dockerfile_path) = match (file_url, &context) {
            (Some(url), _) => (remote_dockerfile(&fetcher, url)?, None),
            (None, Some(fetched)) => (self.dockerfile_in(fetched)?, None),
            (None, None) => unreachable!("such a context was dealt with above"),
        };
        let context = context.map_or_else(|| MainContext::Directory(text.into()), MainContext::Fetched);
        Ok(Opened { dockerfile, dockerfile_path, context })
    }

    /// The further contexts by name.
    pub(crate) fn named(&self) -> Result<BTreeMap<String, NamedContext>, Usage> {
        self.build_context.iter().map(|text| named_context(text)).collect()
    }

    fn local_dockerfile(&self, context: &Path) -> anyhow::Result<FoundDockerfile> {
        let mut candidates: Vec<PathBuf> = DOCKERFILES.iter().map(|name| context.join(name)).collect();
        if let Some(file) = &self.file {
            if file == "-" {
                return Ok((dockerfile_from_standard_input()?, None));
            }
            // Relative to this directory as docker buildx has it, else to the context as docker's documentation has it.
            candidates = vec![file.into(), context.join(file)];
        }
        let path = candidates.iter().find(|path| path.is_file()).unwrap_or(&candidates[0]);
        let opened = File::open(path).and_then(bounded);
        let bytes = opened.map_err(|error| self.unreadable(context, path, error))?;
        Ok((Source::new(&path.to_string_lossy(), &bytes), Some(path.clone())))
    }

    /// What is most likely meant, if the Dockerfile is not where it should be.
    fn unreadable(&self, context: &Path, path: &Path, error: io::Error) -> anyhow::Error {
        let is_missing = error.kind() == io::ErrorKind::NotFound;
        let error = BuildError::File { action: "read the Dockerfile", path: path.into(), source: error };
        if is_missing && !context.exists() {
            let message = format!("cannot find the build context {}: there is no such directory", context.display());
            return Hinted::error(
                message,
                "the last argument is the directory with the files for COPY: `nacre build .`",
            );
        }
        if is_missing && self.file.is_none() {
            let hint = match context.join("Containerfile").is_file() {
                true => format!("there is a Containerfile: `-f {}`", context.join("Containerfile").display()),
                false => "`-f FILE` names a Dockerfile that lies elsewhere".to_owned(),
            };
            return Hinted::error(format!("{error}: there is no such file"), hint);
        }
        error.into()
    }

    fn standard_input(&self, fetcher: &Fetcher<'_>) -> anyhow::Result<Opened> {
        if self.file.as_deref() == Some("-") {
            let message = "standard input cannot be both the build context and the Dockerfile";
            return Err(Usage(message.to_owned()).into());
        }
        let mut spool = tempfile::tempfile().context("cannot make a temporary file")?;
        let mut input = io::stdin().lock();
        // As much as a Dockerfile may have; only an archive is more.
        io::copy(&mut (&mut input).take(MOST_TEXT_BYTES), &mut spool).context("cannot read standard input")?;
        if is_archive(&spool) {
            io::copy(&mut input, &mut spool).context("cannot read standard input")?;
            spool.seek(SeekFrom::Start(0)).context("cannot read a temporary file")?;
            let fetched = fetcher.open_file(spool, "standard input")?;
            let dockerfile = match self.file.as_deref().filter(|file| file.contains("://")) {
                Some(url) => remote_dockerfile(fetcher, url)?,
                None => self.dockerfile_in(&fetched)?,
            };
            return Ok(Opened { dockerfile, dockerfile_path: None, context: MainContext::Fetched(fetched) });
        }
        if self.file.is_some() {
            let message = "standard input is no archive, and --file names another Dockerfile: which one is meant?";
            return Err(Usage(message.to_owned()).into());
        }
        spool.seek(SeekFrom::Start(0)).context("cannot read a temporary file")?;
        let bytes = bounded(spool.chain(input)).context("cannot read the Dockerfile from standard input")?;
        let context = MainContext::Fetched(fetcher.nothing()?);
        Ok(Opened { dockerfile: Source::new("-", &bytes), dockerfile_path: None, context })
    }

    fn dockerfile_in(&self, context: &Fetched) -> anyhow::Result<Source> {
        if self.file.as_deref() == Some("-") {
            return dockerfile_from_standard_input();
        }
        // As in BuildKit, a URL that is no archive is the Dockerfile, whatever it is called.
        if context.is_single_file {
            let bytes = context.read_single().with_context(|| format!("cannot read {}", self.context))?;
            return Ok(Source::new("Dockerfile", &bytes.unwrap_or_default()));
        }
        let names = self.file.as_deref().map_or(DOCKERFILES.to_vec(), |file| vec![file]);
        for name in &names {
            if let Some(bytes) = context.read(name).with_context(|| format!("cannot read {name} of the context"))? {
                return Ok(Source::new(name, &bytes));
            }
        }
        Err(anyhow::anyhow!("cannot read the Dockerfile: the build context has no {}", names[0]))
    }
}

fn dockerfile_from_standard_input() -> anyhow::Result<Source> {
    let bytes = bounded(io::stdin().lock()).context("cannot read the Dockerfile from standard input")?;
    Ok(Source::new("-", &bytes))
}

/// All bytes of a Dockerfile, which could be a device or a pipe without end.
fn bounded(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(MOST_TEXT_BYTES + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > MOST_TEXT_BYTES {
        true => Err(io::ErrorKind::FileTooLarge.into()),
        false => Ok(bytes),
    }
}

fn remote_dockerfile(fetcher: &Fetcher<'_>, url: &str) -> anyhow::Result<Source> {
    let place = RemotePlace::parse(url).map_err(|error| Usage(error.to_string()))?;
    let Some(place @ RemotePlace::Web(_)) = place else {
        return Err(Usage(format!("--file {url:?}: a Dockerfile comes from a file, http:// or https://")).into());
    };
    let fetched = fetcher.open(&place)?;
    match fetched.read_single()? {
        Some(bytes) if fetched.is_single_file => Ok(Source::new("Dockerfile", &bytes)),
        _ => Err(anyhow::anyhow!("--file {url:?} leads to an archive, not to a Dockerfile")),
    }
}

fn named_context(text: &str) -> Result<(String, NamedContext), Usage> {
    let wrong = |what: &str| Usage(format!("--build-context {text:?}: {what}"));
    let (name, place) = text.split_once('=').ok_or_else(|| wrong("it is not NAME=PLACE"))?;
    if name.is_empty() {
        return Err(wrong("the name is missing"));
    }
    let context = if let Some(layout) = place.strip_prefix("oci-layout://") {
        let (directory, digest) = layout.split_once('@').map_or((layout, None), |(d, digest)| (d, Some(digest)));
        let after_slash = directory.rfind('/').map_or(0, |slash| slash + 1);
        let (directory, tag) = match directory[after_slash..].find(':') {
            Some(colon) => (&directory[..after_slash + colon], Some(&directory[after_slash + colon + 1..])),
            None => (directory, None),
        };
        NamedContext::OciLayout(directory.into(), digest.or(tag).map(str::to_owned))
    } else if let Some(image) = place.strip_prefix("docker-image://") {
        NamedContext::Image(image.to_owned())
    } else if Path::new(place).is_dir() {
        NamedContext::Directory(place.into())
    } else {
        match RemotePlace::parse(place).map_err(|error| wrong(&error.to_string()))? {
            Some(place) => NamedContext::Remote(place),
            None if place.contains("://") => return Err(wrong("this kind of place is not supported")),
            None => NamedContext::Directory(place.into()),
        }
    };
    Ok((name.to_owned(), context))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_context_is_told_by_its_form() {
        let kind = |text: &str| match named_context(text).map(|(_, context)| context) {
            Ok(NamedContext::Directory(_)) => "directory",
            Ok(NamedContext::Image(_)) => "image",
            Ok(NamedContext::OciLayout(..)) => "layout",
            Ok(NamedContext::Remote(RemotePlace::Git(_))) => "git",
            Ok(NamedContext::Remote(_)) => "web",
            Err(_) => "error",
        };
        for (text, expected) in [
            ("n=/tmp", "directory"),
            ("n=some/where", "directory"),
            ("n::linux/arm64=docker-image://a", "image"),
            ("n=oci-layout://dir:tag", "layout"),
            ("n=https://h/a.git#main", "git"),
            ("n=git@h:a", "git"),
            ("n=https://h/a.tar", "web"),
            ("n=ftp://h/a", "error"),
            ("n=https://h/a.git?x=y", "error"),
            ("n", "error"),
            ("=x", "error"),
        ] {
            assert_eq!(kind(text), expected, "{text}");
        }
    }
}
