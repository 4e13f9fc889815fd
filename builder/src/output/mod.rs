//! Where the result of a build goes: `-o type=...`.
//!
//! Invariant: an output changes neither the store's layers nor what another output of the same build writes.

mod annotations;
mod form;
mod parse;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use layerfs::{Store, Tree};
use registry_client::{
    Client, CopyOptions, Destination, DockerArchiveDestination, EntryChange, Error, OciArchiveDestination, OciLayout,
    Platform, PlatformChoice, Progress, Reference, RegistryDestination, copy,
};

pub use self::annotations::{Annotation, AnnotationPlace};
pub use self::form::ImageForm;
use crate::attestation;
use crate::built::{Built, BuiltImage};
use crate::error::BuildError;
use crate::export::{self, Ownership};
use crate::frontend::FrontendArguments;
use crate::names;
use crate::place::StorePlace;
use crate::request::BuildRequest;

/// The annotation that holds an image's whole name in containerd and in what BuildKit writes.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// One output of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Where it goes.
    pub target: OutputTarget,
    /// How an image is written; of no meaning for files.
    pub form: ImageForm,
    /// Whether it was asked for that no file is newer than the build's time, which is so unless real times are kept.
    pub rewrites_times: bool,
}

/// Where an output goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputTarget {
    /// A name in the store, and if asked for at its registry.
    Image(Naming),
    /// An OCI layout, in a tar file or a directory.
    Oci(Archive),
    /// What `docker load` reads.
    Docker(Archive),
    /// The root file system in a directory.
    Local {
        /// The directory.
        directory: PathBuf,
        /// Whether what is there and not in the result is removed.
        removes_others: bool,
        /// Whether each platform has a directory of its own; `None` is one for several platforms only.
        is_split: Option<bool>,
    },
    /// The root file system in a tar file.
    Tar(PathBuf),
    /// Nowhere: what the build made stays in the cache.
    CacheOnly,
}

/// Under which names an image is kept and pushed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Naming {
    /// The names; none takes those of the build.
    pub names: Vec<String>,
    /// Whether it is pushed.
    pub is_pushed: bool,
    /// Whether it is pushed and kept under its digest alone, without a tag.
    pub by_digest: bool,
    /// Whether it is kept as `name@digest`, too.
    pub is_canonical: bool,
    /// What an image without a name is kept as, with `@digest` behind it.
    pub dangling_prefix: Option<String>,
    /// Whether the store forgets it when it was pushed.
    pub is_not_kept: bool,
}

/// An image in files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// The names in it; none takes those of the build.
    pub names: Vec<String>,
    /// The file or directory.
    pub path: PathBuf,
    /// Whether it is a directory.
    pub is_directory: bool,
}

/// What all outputs of a build are written with.
#[derive(Clone, Copy)]
pub struct Delivery<'a> {
    /// Where the result lies.
    pub store: &'a Store,
    /// For registries.
    pub client: &'a Client,
    /// Told of transfers.
    pub progress: &'a dyn Progress,
    /// The names of the build.
    pub tags: &'a [String],
    /// Threads that compress; no effect on the bytes.
    pub threads: usize,
}

impl From<OutputTarget> for Output {
    fn from(target: OutputTarget) -> Self {
        Self { target, form: ImageForm::default(), rewrites_times: false }
    }
}

impl Output {
    /// The file that it is written to, if it is one.
    pub fn file_mut(&mut self) -> Option<&mut PathBuf> {
        match &mut self.target {
            OutputTarget::Oci(archive) | OutputTarget::Docker(archive) if !archive.is_directory => {
                Some(&mut archive.path)
            }
            OutputTarget::Tar(path) => Some(path),
            _ => None,
        }
    }

    /// Whether it writes documents that annotations can be on.
    pub fn takes_annotations(&self) -> bool {
        matches!(self.target, OutputTarget::Image(_) | OutputTarget::Oci(_))
    }

    /// The names that it gives the image whatever the build is called.
    pub fn names(&self) -> &[String] {
        match &self.target {
            OutputTarget::Image(naming) => &naming.names,
            OutputTarget::Oci(archive) | OutputTarget::Docker(archive) => &archive.names,
            _ => &[],
        }
    }

    /// Whether it can hold what is built for some platforms under these names, found out before anything is built.
    ///
    /// # Errors
    /// What it has no place for, or lacks.
    pub fn check(&self, tags: &[String], request: &BuildRequest) -> Result<(), BuildError> {
        let platforms = request.platforms.as_slice();
        let arguments = FrontendArguments::of(&request.build_args, platforms.len())?;
        let makes_index = platforms.len() > 1 || arguments.makes_index;
        let one_image = |kind: &str| match platforms {
            [_] => Ok(()),
            several => Err(BuildError::Request(several_images(kind, several.len()))),
        };
        match &self.target {
            OutputTarget::Image(naming) => {
                naming.check(tags)?;
                self.form.check(platforms, makes_index, false)
            }
            OutputTarget::Oci(_) => self.form.check(platforms, makes_index, true),
            OutputTarget::Docker(_) => one_image("type=docker"),
            OutputTarget::Local { is_split: Some(false), removes_others: true, .. } => {
                one_image("type=local,mode=delete,platform-split=false")
            }
            OutputTarget::Local { .. } | OutputTarget::Tar(_) | OutputTarget::CacheOnly => Ok(()),
        }
    }

    /// Writes what was built. If it is an image, it is returned as it was written.
    ///
    /// # Errors
    /// If it cannot be written or pushed.
    pub fn write(&self, built: &Built, delivery: Delivery<'_>) -> Result<Option<Built>, BuildError> {
        let Delivery { store, threads, .. } = delivery;
        match &self.target {
            OutputTarget::Image(naming) => {
                let mut built = self.form.apply(store, built, threads)?;
                attestation::attach(store, &mut built, names_of(&naming.names, delivery))?;
                naming.write(&built, delivery)?;
                Ok(Some(built))
            }
            OutputTarget::Oci(archive) => {
                let mut shaped = self.form.apply(store, built, threads)?;
                attestation::attach(store, &mut shaped, names_of(&archive.names, delivery))?;
                archive.write_layout(&shaped, &self.form.entry(&shaped), delivery)?;
                Ok(Some(shaped))
            }
            OutputTarget::Docker(archive) => {
                only_image(built, "type=docker")?;
                archive.write_docker(built, delivery)?;
                Ok(Some(built.clone()))
            }
            OutputTarget::Local { directory, removes_others, is_split } => {
                write_directories(store, built, directory, *removes_others, *is_split)?;
                Ok(None)
            }
            OutputTarget::Tar(path) => {
                write_tar(store, built, path)?;
                Ok(None)
            }
            OutputTarget::CacheOnly => Ok(None),
        }
    }
}

impl Naming {
    fn check(&self, tags: &[String]) -> Result<(), BuildError> {
        let names = if self.names.is_empty() { tags } else { &self.names };
        if self.is_pushed && names.is_empty() {
            let why = "an image that is pushed needs a name: -t REGISTRY/NAME, or name= in the output";
            return Err(BuildError::Request(why.to_owned()));
        }
        for name in names {
            let has_tag = name.rsplit('/').next().is_some_and(|last| last.contains([':', '@']));
            if self.by_digest && has_tag {
                let why = format!("{name:?} has a tag, but push-by-digest=true pushes without one");
                return Err(BuildError::Request(why));
            }
        }
        Ok(())
    }

    fn write(&self, built: &Built, delivery: Delivery<'_>) -> Result<(), BuildError> {
        let names = names_of(&self.names, delivery);
        let digest = built.manifest.digest();
        if let (true, Some(prefix)) = (names.is_empty(), &self.dangling_prefix) {
            names::set(delivery.store, &format!("{prefix}@{digest}"), &built.manifest)?;
        }
        for name in names {
            let canonical = canonical(name, built)?;
            if !self.is_not_kept && !self.by_digest {
                names::set(delivery.store, name, &built.manifest)?;
            }
            if !self.is_not_kept && (self.is_canonical || self.by_digest) {
                names::set(delivery.store, &canonical.familiar(), &built.manifest)?;
            }
            if self.is_pushed {
                let reference = if self.by_digest { canonical } else { name.parse()? };
                copy_to(built, &RegistryDestination::new(delivery.client, &reference)?, delivery)?;
            }
        }
        Ok(())
    }
}

/// The names of an output, or else those of the build.
fn names_of<'a>(own: &'a [String], delivery: Delivery<'a>) -> &'a [String] {
    if own.is_empty() { delivery.tags } else { own }
}

/// `repository@digest` of a name.
fn canonical(name: &str, built: &Built) -> Result<Reference, Error> {
    let reference: Reference = name.parse()?;
    format!("{}/{}@{}", reference.registry(), reference.repository(), built.manifest.digest()).parse()
}

impl Archive {
    fn references(&self, delivery: Delivery<'_>) -> Result<Vec<Reference>, BuildError> {
        let names = names_of(&self.names, delivery);
        Ok(names.iter().map(|name| name.parse()).collect::<Result<_, Error>>()?)
    }

    fn write_layout(&self, built: &Built, entry: &EntryChange, delivery: Delivery<'_>) -> Result<(), BuildError> {
        let mut entries = Vec::new();
        for reference in self.references(delivery)? {
            let mut entry = entry.clone();
            entry.annotations.insert(CONTAINERD_NAME.to_owned(), reference.to_string());
            entries.push((reference.tag().map(str::to_owned), entry));
        }
        if entries.is_empty() {
            entries.push((None, entry.clone()));
        }
        if self.is_directory {
            for (tag, entry) in entries {
                copy_to(built, &OciLayout::new(&self.path, tag).described(entry), delivery)?;
            }
            return Ok(());
        }
        let (tag, entry) = entries.remove(0);
        let mut archive = OciArchiveDestination::create(&self.path, tag)?.described(entry);
        for (tag, entry) in entries {
            archive = archive.also_named(tag.unwrap_or_default(), entry);
        }
        copy_to(built, &archive, delivery)
    }

    fn write_docker(&self, built: &Built, delivery: Delivery<'_>) -> Result<(), BuildError> {
        let mut archive = DockerArchiveDestination::create(&self.path, None)?;
        for reference in self.references(delivery)? {
            archive = archive.also_named(reference);
        }
        copy_to(built, &if self.is_directory { archive.as_directory() } else { archive }, delivery)
    }
}

fn tree(store: &Store, built: &BuiltImage) -> Result<Arc<dyn Tree>, BuildError> {
    Ok(store.tree(&built.image.diff_ids())?)
}

/// The image of an output that holds one.
fn only_image<'b>(built: &'b Built, kind: &str) -> Result<&'b BuiltImage, BuildError> {
    match built.images.as_slice() {
        [one] => Ok(one),
        several => Err(BuildError::Request(several_images(kind, several.len()))),
    }
}

fn several_images(kind: &str, count: usize) -> String {
    format!(
        "an output of {kind} holds one image, not one for each of {count} platforms: use type=oci, or build one platform"
    )
}

/// What the files for a platform lie below where there are several, as BuildKit calls it: `linux_amd64`.
fn directory_name(platform: &Platform) -> String {
    platform.to_string().replace('/', "_")
}

/// One root file system, or one for each platform below a directory of its own.
fn write_tar(store: &Store, built: &Built, path: &Path) -> Result<(), BuildError> {
    let mut trees = Vec::new();
    let is_split = built.is_index();
    for image in &built.images {
        trees.push((directory_name(&image.platform), tree(store, image)?));
    }
    trees.sort_by(|(one, _), (other, _)| one.cmp(other));
    export::write_whole(path, |writer| match trees.as_slice() {
        [(_, tree)] if !is_split => export::to_tar(tree, writer),
        several => export::to_tar_of_several(several, writer),
    })
    .map_err(BuildError::file("write", path))
}

/// Refuses images of several platforms that have a file of the same name: one directory cannot hold both.
fn check_apart(store: &Store, built: &Built) -> Result<(), BuildError> {
    let mut taken: BTreeMap<Vec<u8>, &Platform> = BTreeMap::new();
    for image in built.images.iter().filter(|_| built.images.len() > 1) {
        for path in export::files(&tree(store, image)?).map_err(BuildError::file("list", "the image"))? {
            if let Some(other) = taken.get(&path) {
                return Err(BuildError::Request(format!(
                    "an output of type=local,platform-split=false holds one file of a name: {:?} is in the images for \
                     {other} and for {}",
                    String::from_utf8_lossy(&path),
                    image.platform
                )));
            }
            taken.insert(path, &image.platform);
        }
    }
    Ok(())
}

/// One directory, or below it one for each platform.
fn write_directories(
    store: &Store,
    built: &Built,
    path: &Path,
    removes_others: bool,
    is_split: Option<bool>,
) -> Result<(), BuildError> {
    let is_split = is_split.unwrap_or(built.is_index());
    if !is_split {
        check_apart(store, built)?;
    }
    for image in &built.images {
        let path = match is_split {
            false => path.to_owned(),
            true => path.join(directory_name(&image.platform)),
        };
        std::fs::create_dir_all(&path).map_err(BuildError::file("create", &path))?;
        let tree = tree(store, image)?;
        if removes_others {
            export::remove_others(&tree, &path)?;
        }
        export::to_directory(&tree, b"", &path, Ownership::Own)?;
    }
    Ok(())
}

fn copy_to(built: &Built, destination: &dyn Destination, delivery: Delivery<'_>) -> Result<(), BuildError> {
    let has_statements = !built.attached.is_empty();
    // A registry takes a manifest only when it has what that points to: one question instead of one a blob.
    if !has_statements && destination.named()?.as_ref() == Some(built.manifest.digest()) {
        return Ok(());
    }
    let source = StorePlace::existing(delivery.store, built.manifest.digest().as_ref(), built.manifest.clone());
    let source = source.with_no_referrers_but(built.attached.clone());
    let options = CopyOptions { platforms: PlatformChoice::All, referrers: has_statements, ..CopyOptions::default() };
    copy(&source, destination, &options, delivery.progress)?;
    Ok(())
}

impl From<Error> for BuildError {
    fn from(source: Error) -> Self {
        Self::Image { at: None, source }
    }
}
