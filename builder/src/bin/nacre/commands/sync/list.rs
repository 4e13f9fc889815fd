//! The list of `nacre sync`: `SOURCE DESTINATION [!PATTERN...]` a line.
//!
//! Invariant: a list is understood whole before anything is moved; an error names the file and the line.

use std::fmt;

use builder::context::Glob;
use registry_client::{ImageName, Reference, Selector};

use crate::commands::tags::pattern;
use crate::report::Usage;
use crate::transfer::{has_tag_or_digest, with_tag};

/// One line.
#[derive(Debug)]
pub(super) struct Line {
    /// Where its images are; for several of them without tag.
    pub(super) source: ImageName,
    /// Which of the images there.
    pub(super) names: Names,
    /// Where they go.
    pub(super) destination: Target,
}

/// Which images of a repository or layout.
#[derive(Debug)]
pub(super) enum Names {
    /// The one that the source names.
    One,
    /// Those whose tag fits a pattern, and none of others.
    Fitting(Patterns),
}

/// A pattern and its exceptions.
#[derive(Debug)]
pub(super) struct Patterns {
    wanted: Glob,
    excepted: Vec<Glob>,
}

impl Names {
    /// Whether a tag is meant.
    pub(super) fn fits(&self, tag: &str) -> bool {
        match self {
            Self::One => true,
            Self::Fitting(Patterns { wanted, excepted }) => {
                wanted.matches(tag.as_bytes()) && !excepted.iter().any(|pattern| pattern.matches(tag.as_bytes()))
            }
        }
    }
}

/// A destination, which takes the tags of its images, or their digests where those name them, if it has none of its own.
#[derive(Debug)]
pub(super) struct Target {
    name: ImageName,
    has_tag: bool,
}

impl Target {
    /// The place of an image that is named so at its source.
    pub(super) fn named(&self, image: Option<&Selector>) -> anyhow::Result<ImageName> {
        let (Some(image), false) = (image, self.has_tag) else { return Ok(self.name.clone()) };
        Ok(match &self.name {
            ImageName::Registry(repository) => ImageName::Registry(selected(repository, image)?),
            ImageName::OciLayout { directory, .. } => {
                ImageName::OciLayout { directory: directory.clone(), tag: Some(image.to_string()) }
            }
            ImageName::Store(name) => ImageName::Store(selected(&name.parse()?, image)?.familiar()),
            other => other.clone(),
        })
    }
}

/// An image of a repository.
fn selected(repository: &Reference, image: &Selector) -> anyhow::Result<Reference> {
    match image {
        Selector::Tag(tag) => with_tag(repository, tag),
        Selector::Digest(digest) => {
            Ok(format!("{}/{}@{digest}", repository.registry(), repository.repository()).parse()?)
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

/// Reads a list.
pub(super) fn parse(file: &str, text: &str) -> Result<Vec<Line>, Usage> {
    let mut lines = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let words: Vec<&str> = line.split_whitespace().take_while(|word| !word.starts_with('#')).collect();
        let wrong = |what: &dyn fmt::Display| Usage(format!("{file}:{}: {what}", number + 1));
        match words.as_slice() {
            [] => {}
            [only] => return Err(wrong(&format!("{only} has no destination: a line is SOURCE DESTINATION"))),
            [source, destination, exceptions @ ..] => {
                lines.push(read_line(source, destination, exceptions).map_err(|error| wrong(&error))?);
            }
        }
    }
    Ok(lines)
}

fn read_line(source: &str, destination: &str, exceptions: &[&str]) -> anyhow::Result<Line> {
    let wrong = |what: String| anyhow::Error::from(Usage(what));
    let excepted = exceptions
        .iter()
        .map(|word| match word.strip_prefix('!') {
            Some(text) => Ok(pattern(text)?),
            None => Err(wrong(format!("{word:?} is not understood: exceptions are written !PATTERN"))),
        })
        .collect::<anyhow::Result<Vec<Glob>>>()?;
    let (place, tag) = split_tag(source);
    let wanted = match (tag, source.starts_with("oci:")) {
        (Some(tag), _) if Glob::is_pattern(tag) => Some(pattern(tag)?),
        (None, true) => Some(pattern("*")?),
        _ => None,
    };
    let name: ImageName = if wanted.is_some() { place } else { source }.parse()?;
    let names = match wanted {
        None if !excepted.is_empty() => {
            return Err(wrong(format!("{source} names one image, of which nothing can be excepted")));
        }
        None => Names::One,
        Some(_) if !matches!(name, ImageName::Registry(_) | ImageName::OciLayout { .. }) => {
            return Err(wrong(format!("{source}: patterns are for docker:// and oci: only")));
        }
        Some(wanted) => Names::Fitting(Patterns { wanted, excepted }),
    };
    let (target, has_tag): (ImageName, bool) = (destination.parse()?, split_tag(destination).1.is_some());
    let is_single =
        matches!(target, ImageName::OciArchive { .. } | ImageName::DockerArchive { .. } | ImageName::Directory(_));
    if matches!(names, Names::Fitting(_)) && (has_tag || is_single) {
        return Err(wrong(format!("{destination} is for one image, and {source} for several")));
    }
    Ok(Line { source: name, names, destination: Target { name: target, has_tag } })
}

/// A place and its tag, or digest, where it is written with one.
fn split_tag(text: &str) -> (&str, Option<&str>) {
    if let Some(rest) = text.strip_prefix("oci:") {
        let tag = rest.split_once(':');
        return tag.map_or((text, None), |(path, tag)| (&text[..4 + path.len()], Some(tag)));
    }
    let start = text.rfind('/').map_or(0, |slash| slash + 1);
    match text[start..].split_once([':', '@']) {
        Some((name, tag)) if has_tag_or_digest(text) => (&text[..start + name.len()], Some(tag)),
        _ => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_one_image_or_all_that_fit() {
        let text = "# a comment\n\ndocker://debian:12  docker://r.example/debian  # the tag stays\n\
            docker://alpine:3.* oci:mirror !*rc* !3.1\noci:backup docker://r.example/all\n";
        let lines = parse("list", text).expect("a list");
        assert_eq!(lines.len(), 3);
        assert!(matches!(lines[0].names, Names::One));
        let tag = |tag: &str| Selector::Tag(tag.to_owned());
        let target = lines[0].destination.named(Some(&tag("12"))).expect("a name").to_string();
        assert_eq!(target, "docker://r.example/debian:12");
        assert!(lines[1].names.fits("3.20") && !lines[1].names.fits("3.1") && !lines[1].names.fits("3.2rc1"));
        assert!(!lines[1].names.fits("edge"));
        assert_eq!(lines[1].destination.named(Some(&tag("3.20"))).expect("a name").to_string(), "oci:mirror:3.20");
        assert!(lines[2].names.fits("anything"));
    }

    #[test]
    fn a_line_that_is_not_understood_is_named() {
        for (line, words) in [
            ("docker://a", "has no destination"),
            ("docker://a:* docker://r.example/b:1", "for one image"),
            ("docker://a:* docker-archive:b.tar", "for one image"),
            ("app:* docker://r.example/b", "patterns are for"),
            ("docker://a docker://b except", "exceptions are written"),
            ("docker://a docker://b !x", "nothing can be excepted"),
            ("docker://A docker://b", "lowercase"),
            ("docker://a:[ docker://b", "not a pattern"),
        ] {
            let error = parse("list", &format!("\n{line}\n")).expect_err(line).to_string();
            assert!(error.starts_with("list:2: ") && error.contains(words), "{line}: {error}");
        }
    }
}
