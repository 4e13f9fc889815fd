//! The flags of `nacre build` that say where its result goes, and its cache; and the writing of them.
//!
//! Invariant: everything is checked before the build begins. Standard output has a tar or the digest, never both.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use builder::{
    Annotation, BuildRequest, Built, CacheExport, CacheImport, CacheRequest, Delivery, Events, Naming, Output,
    OutputTarget, Times,
};
use layerfs::{Packing, Store};
use registry_client::Reference;

use crate::piped::Piped;
use crate::report::Usage;
use crate::session::Session;

/// Where the result and the cache of a build go.
#[derive(clap::Args)]
pub(crate) struct OutputArgs {
    /// Push the image to the registries that its names tell
    #[arg(long)]
    push: bool,
    /// Keep the image in the store, whatever other outputs there are
    #[arg(long)]
    load: bool,
    /// Where the result goes: type=image|registry|oci|docker|tar|local|cacheonly[,dest=PATH][,name=NAME][,push=true]
    /// [,compression=gzip|zstd|uncompressed][,compression-level=N][,...] [default: the store]
    #[arg(short, long, value_name = "SPEC")]
    output: Vec<Output>,
    /// Annotate the image: [TYPE[[PLATFORM]],...:]KEY=VALUE, where TYPE is manifest, index, manifest-descriptor or
    /// index-descriptor [default: manifest]
    #[arg(long, value_name = "SPEC", value_parser = Annotation::parse)]
    annotation: Vec<Vec<Annotation>>,
    /// Write the image's id to a file: the digest of its configuration, or that of the index of several platforms
    #[arg(long, value_name = "FILE")]
    iidfile: Option<PathBuf>,
    /// Write the result as JSON to a file
    #[arg(long, value_name = "FILE")]
    metadata_file: Option<PathBuf>,
    /// Take steps from another machine's cache: REFERENCE, type=registry,ref=REFERENCE or type=local,src=DIRECTORY
    #[arg(long, value_name = "SPEC")]
    cache_from: Vec<CacheImport>,
    /// Give the steps to other machines: type=registry,ref=REFERENCE, type=local,dest=DIRECTORY or type=inline
    /// [,mode=min|max][,ignore-error=true]
    #[arg(long, value_name = "SPEC")]
    cache_to: Vec<CacheExport>,
}

/// Outputs that fit together.
pub(crate) struct Outputs {
    outputs: Vec<Output>,
    exports: Vec<CacheExport>,
    tags: Vec<String>,
    iidfile: Option<PathBuf>,
    metadata_file: Option<PathBuf>,
}

impl OutputArgs {
    /// The first of those flags that was given which asks for something to be written.
    pub(crate) fn first_given(&self) -> Option<&'static str> {
        let given = [
            ("--push", self.push),
            ("--load", self.load),
            ("--output", !self.output.is_empty()),
            ("--annotation", !self.annotation.is_empty()),
            ("--iidfile", self.iidfile.is_some()),
            ("--metadata-file", self.metadata_file.is_some()),
            ("--cache-to", !self.cache_to.is_empty()),
        ];
        given.into_iter().find_map(|(flag, is_given)| is_given.then_some(flag))
    }

    /// What the build has to know of remote caches.
    pub(crate) fn cache_request(&self, build_args: &[String]) -> CacheRequest {
        // As BuildKit has it: the older way to ask for an inline cache.
        let is_asked = |arg: &String| matches!(arg.as_str(), "BUILDKIT_INLINE_CACHE=1" | "BUILDKIT_INLINE_CACHE=true");
        let is_inline = self.cache_to.contains(&CacheExport::Inline) || build_args.iter().any(is_asked);
        CacheRequest { imports: self.cache_from.clone(), is_inline }
    }

    /// Checks what is asked for, before anything is built, and tells the build what to do ahead of the outputs.
    pub(crate) fn plan(self, tags: &[String], request: &mut BuildRequest) -> anyhow::Result<Outputs> {
        let mut outputs = self.output;
        if outputs.is_empty() || self.push || self.load {
            if self.push && tags.is_empty() {
                return Err(Usage("--push needs a name: -t REGISTRY/NAME".to_owned()).into());
            }
            outputs.push(OutputTarget::Image(Naming { is_pushed: self.push, ..Naming::default() }).into());
        }
        for name in tags {
            name.parse::<Reference>().map_err(|error| Usage(error.to_string()))?;
        }
        annotate(&mut outputs, &self.annotation.concat())?;
        if !request.attestations.is_empty() && !outputs.iter().any(Output::takes_annotations) {
            return Err(Usage("attestations need an output of type image, registry or oci".to_owned()).into());
        }
        check(&mut outputs, request)?;
        outputs.iter().try_for_each(|output| output.check(tags, &request.platforms))?;
        request.packing = packing(&outputs).unwrap_or_default();
        request.engine.upload_to = pushed(&outputs, tags, request.packing)?;
        Ok(Outputs {
            outputs,
            exports: self.cache_to,
            tags: tags.to_vec(),
            iidfile: self.iidfile,
            metadata_file: self.metadata_file,
        })
    }
}

/// Refuses outputs that do not fit together, or not to the build.
fn check(outputs: &mut [Output], request: &BuildRequest) -> Result<(), Usage> {
    let to_stdout = outputs.iter_mut().filter_map(Output::file_mut).filter(|path| *path == Path::new("-")).count();
    if to_stdout > 1 {
        return Err(Usage("two outputs go to standard output: give one of them a dest=".to_owned()));
    }
    if to_stdout == 1 && std::io::stdout().is_terminal() {
        return Err(Usage("a tar would go to the terminal: name a file with dest=, or pipe it".to_owned()));
    }
    if request.times == Times::Real && outputs.iter().any(|output| output.rewrites_times) {
        return Err(Usage("rewrite-timestamp=true and --source-date-epoch=none exclude each other".to_owned()));
    }
    if request.cache.is_inline && packing(outputs).is_none() {
        let why = "it describes the blobs of one image";
        return Err(Usage(format!("an inline cache and outputs of several compressions exclude each other: {why}")));
    }
    Ok(())
}

/// How all images among the outputs are packed; `None` if they differ.
fn packing(outputs: &[Output]) -> Option<Packing> {
    let mut packings = outputs.iter().filter(|output| output.takes_annotations()).map(|output| output.form.packing);
    let first = packings.next().unwrap_or_default();
    packings.all(|packing| packing == first).then_some(first)
}

/// The images whose blobs go to registries as the build packs them.
fn pushed(outputs: &[Output], tags: &[String], packed: Packing) -> Result<Vec<Reference>, Usage> {
    let mut pushed = Vec::new();
    for output in outputs.iter().filter(|output| output.form.packing == packed) {
        if let OutputTarget::Image(Naming { names, is_pushed: true, .. }) = &output.target {
            for name in if names.is_empty() { tags } else { names } {
                pushed.push(name.parse().map_err(|error: registry_client::Error| Usage(error.to_string()))?);
            }
        }
    }
    Ok(pushed)
}

/// Puts the annotations of the command line on all outputs that take them.
fn annotate(outputs: &mut [Output], annotations: &[Annotation]) -> Result<(), Usage> {
    if annotations.is_empty() {
        return Ok(());
    }
    let mut takers: Vec<&mut Output> = outputs.iter_mut().filter(|output| output.takes_annotations()).collect();
    if takers.is_empty() {
        return Err(Usage("--annotation needs an output of type image, registry or oci".to_owned()));
    }
    for output in &mut takers {
        output.form.annotations.extend_from_slice(annotations);
    }
    Ok(())
}

impl Outputs {
    /// Writes all of them, then the caches, then what tells of them.
    pub(crate) fn write(
        self,
        built: &Built,
        session: &Session,
        store: &Store,
        threads: usize,
    ) -> anyhow::Result<ExitCode> {
        let display = session.display.as_ref();
        let progress = display.transfers();
        let delivery = Delivery { store, client: &session.client, progress, tags: &self.tags, threads };
        let (mut written, mut names, mut has_printed) = (None, self.tags.clone(), false);
        for output in self.outputs {
            if let OutputTarget::Image(naming) = &output.target
                && written.is_none()
                && !naming.names.is_empty()
            {
                names.clone_from(&naming.names);
            }
            let (image, went_to_stdout) = write_one(output, built, delivery)?;
            has_printed |= went_to_stdout;
            written = written.or(image);
        }
        for export in &self.exports {
            export_one(built, export, delivery, display)?;
        }
        let image = written.as_ref().unwrap_or(built);
        let digest = image.manifest.digest().to_string();
        if let Some(path) = &self.iidfile {
            let id = config_digest(image).unwrap_or_else(|| digest.clone());
            std::fs::write(path, id).with_context(|| format!("cannot write {}", path.display()))?;
        }
        if let Some(path) = &self.metadata_file {
            write_metadata(path, image, &names)?;
        }
        if !has_printed {
            session.print(&digest)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn export_one(
    built: &Built,
    export: &CacheExport,
    delivery: Delivery<'_>,
    display: &dyn Events,
) -> Result<(), builder::BuildError> {
    match (builder::export_cache(built, export, delivery), export) {
        (Err(error), CacheExport::To { place, ignores_errors: true, .. }) => {
            display.warning(&format!("the cache was not written to {place}: {error}"));
            Ok(())
        }
        (result, _) => result,
    }
}

/// Whether it went to standard output comes second.
fn write_one(mut output: Output, built: &Built, delivery: Delivery<'_>) -> anyhow::Result<(Option<Built>, bool)> {
    let piped = match output.file_mut() {
        Some(path) if path == Path::new("-") => {
            let piped = Piped::new(delivery.store)?;
            *path = piped.path();
            Some(piped)
        }
        _ => None,
    };
    let image = output.write(built, delivery)?;
    piped.as_ref().map(Piped::write).transpose()?;
    Ok((image, piped.is_some()))
}

/// The id of an image in docker; an index has no configuration of its own.
fn config_digest(built: &Built) -> Option<String> {
    let [only] = built.images.as_slice() else { return None };
    Some(only.config.digest().to_string())
}

/// What buildx writes, under its names.
fn write_metadata(path: &Path, built: &Built, names: &[String]) -> anyhow::Result<()> {
    let names = names.iter().map(|name| name.parse::<Reference>().map(|reference| reference.to_string()));
    let names = names.collect::<Result<Vec<_>, _>>()?;
    let mut metadata = serde_json::json!({
        "containerimage.descriptor": built.manifest,
        "containerimage.digest": built.manifest.digest().to_string(),
        "image.name": names.join(","),
    });
    if let Some(digest) = config_digest(built) {
        metadata["containerimage.config.digest"] = digest.into();
    }
    let mut text = serde_json::to_string_pretty(&metadata)?;
    text.push('\n');
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
