//! Where the result of a build goes: `-o type=...`.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use layerfs::{Store, Tree};
use registry_client::{
    Client, CopyOptions, Destination, DockerArchiveDestination, Error, OciArchiveDestination, OciLayout,
    PlatformChoice, Progress, Reference, RegistryDestination, copy,
};

use crate::build::{Built, BuiltImage};
use crate::error::BuildError;
use crate::export::{self, Ownership};
use crate::names;
use crate::place::StorePlace;

/// One output of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// An OCI layout in a tar file.
    OciArchive(PathBuf),
    /// An OCI layout in a directory.
    OciDirectory(PathBuf),
    /// What `docker load` reads.
    DockerArchive(PathBuf),
    /// The root file system in a directory.
    Local(PathBuf),
    /// The root file system in a tar file.
    Tar(PathBuf),
    /// A name in the store, and if asked for at its registry.
    Image {
        /// The names; none takes those of the build.
        names: Vec<String>,
        /// Whether it is pushed, too.
        push: bool,
    },
}

impl Output {
    /// The file that it is written to, if it is one.
    pub fn file_mut(&mut self) -> Option<&mut PathBuf> {
        match self {
            Self::OciArchive(path) | Self::DockerArchive(path) | Self::Tar(path) => Some(path),
            Self::OciDirectory(_) | Self::Local(_) | Self::Image { .. } => None,
        }
    }

    /// Writes what was built; `tags` are the names that the build was given.
    ///
    /// # Errors
    /// If it cannot be written or pushed.
    pub fn write(
        &self,
        built: &Built,
        tags: &[String],
        store: &Store,
        client: &Client,
        progress: &dyn Progress,
    ) -> Result<(), BuildError> {
        let tag = tags.first().map(|tag| tag.parse::<Reference>()).transpose()?;
        let to = |destination: &dyn Destination| copy_to(store, built, destination, progress);
        match self {
            Self::OciArchive(path) => to(&OciArchiveDestination::create(path, layout_tag(tag.as_ref()))?),
            Self::OciDirectory(path) => to(&OciLayout::new(path, layout_tag(tag.as_ref()))),
            Self::DockerArchive(path) => {
                only_image(built, "type=docker")?;
                to(&DockerArchiveDestination::create(path, tag)?)
            }
            Self::Local(path) => write_directories(store, built, path),
            Self::Tar(path) => {
                let image = only_image(built, "type=tar")?;
                let file = std::fs::File::create(path).map_err(BuildError::file("create", path))?;
                let writer = std::io::BufWriter::with_capacity(1 << 20, file);
                export::to_tar(&tree(store, image)?, writer).map_err(BuildError::file("write", path))
            }
            Self::Image { names, push } => {
                for name in if names.is_empty() { tags } else { names } {
                    names::set(store, name, &built.manifest)?;
                    if *push {
                        to(&RegistryDestination::new(client, &name.parse()?)?)?;
                    }
                }
                Ok(())
            }
        }
    }
}

fn tree(store: &Store, built: &BuiltImage) -> Result<Arc<dyn Tree>, BuildError> {
    Ok(store.tree(&built.image.diff_ids())?)
}

/// The image of an output that holds one.
fn only_image<'b>(built: &'b Built, kind: &str) -> Result<&'b BuiltImage, BuildError> {
    match built.images.as_slice() {
        [one] => Ok(one),
        several => Err(BuildError::Request(format!(
            "an output of {kind} holds one image, not one for each of {} platforms: use type=oci, or build one platform",
            several.len()
        ))),
    }
}

/// One directory, or below it one for each platform, called `linux_amd64` as BuildKit does.
fn write_directories(store: &Store, built: &Built, path: &Path) -> Result<(), BuildError> {
    for image in &built.images {
        let path = match built.images.len() {
            1 => path.to_owned(),
            _ => path.join(image.platform.to_string().replace('/', "_")),
        };
        std::fs::create_dir_all(&path).map_err(BuildError::file("create", &path))?;
        export::to_directory(&tree(store, image)?, b"", &path, Ownership::Own)?;
    }
    Ok(())
}

fn copy_to(
    store: &Store,
    built: &Built,
    destination: &dyn Destination,
    progress: &dyn Progress,
) -> Result<(), BuildError> {
    let source = StorePlace::existing(store, built.manifest.digest().as_ref(), built.manifest.clone());
    let options = CopyOptions { platforms: PlatformChoice::All, ..CopyOptions::default() };
    copy(&source, destination, &options, progress)?;
    Ok(())
}

/// The name in a layout: the whole reference, as BuildKit and skopeo tell images of one layout apart.
fn layout_tag(reference: Option<&Reference>) -> Option<String> {
    reference.and_then(Reference::tag).map(str::to_owned)
}

impl From<Error> for BuildError {
    fn from(source: Error) -> Self {
        Self::Image { at: None, source }
    }
}

impl FromStr for Output {
    type Err = String;

    /// `type=oci,dest=out.tar`, or a bare directory for `type=local`, or `-` for a tar on standard output.
    fn from_str(text: &str) -> Result<Self, String> {
        if !text.contains('=') {
            return Ok(if text == "-" { Self::Tar("-".into()) } else { Self::Local(text.into()) });
        }
        let mut fields = Fields::parse(text)?;
        let kind = fields.take("type").ok_or("it has no type=")?;
        let destination = fields.take("dest");
        let needs = || destination.clone().map(PathBuf::from).ok_or(format!("type={kind} needs dest="));
        let output = match kind.as_str() {
            "oci" if fields.boolean("tar", true)? => Self::OciArchive(needs()?),
            "oci" => Self::OciDirectory(needs()?),
            "docker" => {
                if !fields.boolean("tar", true)? {
                    return Err("type=docker is always a tar".to_owned());
                }
                Self::DockerArchive(needs()?)
            }
            "local" => Self::Local(needs()?),
            "tar" => Self::Tar(needs()?),
            "image" | "registry" => {
                let names = fields.take("name").map(|names| names.split(',').map(str::to_owned).collect());
                let push = fields.boolean("push", kind == "registry")?;
                Self::Image { names: names.unwrap_or_default(), push }
            }
            other => return Err(format!("type={other} is not supported: oci, docker, local, tar, image or registry")),
        };
        fields.finish(&kind)?;
        Ok(output)
    }
}

/// `key=value` fields of a comma-separated list.
struct Fields(Vec<(String, String)>);

impl Fields {
    fn parse(text: &str) -> Result<Self, String> {
        let field = |field: &str| {
            let (key, value) = field.split_once('=').ok_or(format!("{field:?} is not key=value"))?;
            Ok((key.trim().to_owned(), value.to_owned()))
        };
        text.split(',').map(field).collect::<Result<_, String>>().map(Self)
    }

    fn take(&mut self, key: &str) -> Option<String> {
        let position = self.0.iter().position(|(name, _)| name == key)?;
        Some(self.0.remove(position).1)
    }

    fn boolean(&mut self, key: &str, default: bool) -> Result<bool, String> {
        match self.take(key).as_deref() {
            None => Ok(default),
            Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(other) => Err(format!("{key}={other} is neither true nor false")),
        }
    }

    fn finish(self, kind: &str) -> Result<(), String> {
        match self.0.first() {
            None => Ok(()),
            Some((key, _)) => Err(format!("{key}= is not supported with type={kind}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_written_as_docker_writes_them() {
        assert_eq!("type=oci,dest=a.tar".parse(), Ok(Output::OciArchive("a.tar".into())));
        assert_eq!("type=oci,tar=false,dest=d".parse(), Ok(Output::OciDirectory("d".into())));
        assert_eq!("out".parse(), Ok(Output::Local("out".into())));
        assert_eq!("-".parse(), Ok(Output::Tar("-".into())));
        assert_eq!("type=image".parse(), Ok(Output::Image { names: vec![], push: false }));
        assert_eq!("type=registry".parse(), Ok(Output::Image { names: vec![], push: true }));
    }

    #[test]
    fn what_is_not_supported_names_itself() {
        let error = |text: &str| text.parse::<Output>().expect_err("not supported");
        assert!(error("type=oci,dest=x,compression=zstd").contains("compression"));
        assert!(error("type=cacheonly").contains("cacheonly"));
        assert!(error("type=oci").contains("dest="));
    }
}
