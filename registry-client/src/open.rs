//! From a name to the place that it means.
//!
//! Invariant: a bare name means the store, which this crate does not know: it yields `None`.

use crate::archive::docker::{DockerArchiveDestination, DockerArchiveSource};
use crate::archive::oci::{OciArchiveDestination, OciArchiveSource};
use crate::client::Client;
use crate::directory::ImageDirectory;
use crate::error::Error;
use crate::layout::{OciLayout, check_name};
use crate::place::{Destination, Source};
use crate::pull::RegistrySource;
use crate::push::RegistryDestination;
use crate::reference::ImageName;

/// The place to read an image from; `None` for a name of the store.
///
/// # Errors
/// If an archive cannot be read. Registries and layouts are looked at when they are used.
pub fn open_source(client: &Client, name: &ImageName) -> Result<Option<Box<dyn Source>>, Error> {
    Ok(Some(match name {
        ImageName::Registry(reference) => Box::new(RegistrySource::new(client, reference)?),
        ImageName::OciLayout { directory, tag } => Box::new(OciLayout::new(directory, tag.clone())),
        ImageName::Directory(path) => Box::new(ImageDirectory::new(path)),
        ImageName::OciArchive { file, tag } => Box::new(OciArchiveSource::open(file, tag.clone())?),
        ImageName::DockerArchive { file, reference } => Box::new(DockerArchiveSource::open(file, reference.as_ref())?),
        ImageName::Store(_) => return Ok(None),
    }))
}

/// The place to write an image to; `None` for a name of the store.
///
/// # Errors
/// If nothing can be written where an archive is to be.
pub fn open_destination(client: &Client, name: &ImageName) -> Result<Option<Box<dyn Destination>>, Error> {
    if let ImageName::OciLayout { tag, .. } | ImageName::OciArchive { tag, .. } = name {
        check_name(tag.as_deref(), &name.to_string())?;
    }
    Ok(Some(match name {
        ImageName::Registry(reference) => Box::new(RegistryDestination::new(client, reference)?),
        ImageName::OciLayout { directory, tag } => Box::new(OciLayout::new(directory, tag.clone())),
        ImageName::Directory(path) => Box::new(ImageDirectory::new(path)),
        ImageName::OciArchive { file, tag } => Box::new(OciArchiveDestination::create(file, tag.clone())?),
        ImageName::DockerArchive { file, reference } => {
            Box::new(DockerArchiveDestination::create(file, reference.clone())?)
        }
        ImageName::Store(_) => return Ok(None),
    }))
}
