//! Images in one tar file: `oci-archive:` and `docker-archive:`.
//!
//! Invariant: an archive is never unpacked: reading uses offsets, so no name in it leads anywhere. A written archive is
//! the same bytes for the same image, and appears whole under its name.

pub(crate) mod docker;
pub(crate) mod oci;
pub(crate) mod tar_files;

use std::path::Path;

use self::tar_files::TarFiles;
use crate::error::Error;
use crate::reference::{ImageName, Reference};

/// The images of an archive, of docker's form if it has both, that have full names there: as places, and by these.
///
/// # Errors
/// If it cannot be read, or is no archive of images.
pub fn archived(file: &Path) -> Result<Vec<(ImageName, Reference)>, Error> {
    let files = TarFiles::open(file)?;
    let place = file.to_owned();
    if files.has("manifest.json") {
        let names = docker::names(&files, &format!("docker-archive:{}", file.display()))?;
        let archive =
            |name: Reference| (ImageName::DockerArchive { file: place.clone(), reference: Some(name.clone()) }, name);
        return Ok(names.into_iter().map(archive).collect());
    }
    let names = crate::layout::full_names(&files, &format!("oci-archive:{}", file.display()))?;
    let archive = |(tag, name)| (ImageName::OciArchive { file: place.clone(), tag: Some(tag) }, name);
    Ok(names.into_iter().map(archive).collect())
}
