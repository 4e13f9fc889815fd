//! Copies an image from one place to another.
//!
//! Invariant: nothing is changed on the way: manifests go byte for byte, blobs as they are, each once. Only signatures
//! that both places have of an image are joined under their tag.

use std::collections::{HashSet, VecDeque};
use std::io::{self, Read};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use oci_spec::image::{Descriptor, Digest};

use crate::draft::Draft;
use crate::error::{Cause, Error};
use crate::manifest::{MANIFEST_LIMIT_BYTES, Manifest, ManifestContent};
use crate::place::{Content, Destination, Origin, Source, Stored};
use crate::platform::Platform;
use crate::progress::Progress;
use crate::retry::twice_if_damaged;
use crate::signature::{check_companion, companion_tags, has_companion_to_join, put_companion};

/// Which images of an index are copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlatformChoice {
    /// The one that fits; an image that is no index is taken as it is.
    One(Platform),
    /// The index with all its images.
    All,
}

/// How to copy.
#[derive(Debug, Clone)]
pub struct CopyOptions {
    /// Which images of an index.
    pub platforms: PlatformChoice,
    /// Blobs in flight at once.
    pub jobs: usize,
    /// Whether what refers to the copied images (signatures, bills of material) is copied too, with what refers to
    /// that; also what cosign keeps under tags made from their digests, joined with what the destination has there.
    pub referrers: bool,
    /// Whether the GPG signatures of the copied images are copied too.
    pub gpg_signatures: bool,
}

impl CopyOptions {
    /// Whether an index is copied with all its images.
    pub fn is_whole(&self) -> bool {
        self.platforms == PlatformChoice::All
    }
}

impl Default for CopyOptions {
    /// This machine's platform, four blobs at once: what crane does, and what registries allow without throttling.
    fn default() -> Self {
        Self { platforms: PlatformChoice::One(Platform::host()), jobs: 4, referrers: false, gpg_signatures: false }
    }
}

/// What was copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// The manifest (or index) that the destination names now.
    pub manifest: Manifest,
    /// The digest of what the source names: that, or the index that it was chosen from.
    pub named: Digest,
    /// Blobs whose content was sent.
    pub sent: usize,
    /// Blobs that were there, or that the registry took from another repository.
    pub skipped: usize,
}

/// Indexes in indexes: deeper than any tool makes them.
pub(crate) const INDEX_DEPTH_LIMIT: usize = 4;
/// A signature of a bill of material of an image is two deep.
const REFERRERS_DEPTH_LIMIT: usize = 16;
/// Manifests in one copy; more than any index of platforms holds.
const MANIFESTS_LIMIT: usize = 10_000;
/// What they may take together: they are held in memory, with what they point to. Real ones have some KiB each.
const MANIFESTS_LIMIT_BYTES: usize = 64 << 20;

/// Counts what is held of the manifests below one.
#[derive(Debug, Default)]
pub(crate) struct Held {
    manifests: usize,
    bytes: usize,
}

impl Held {
    /// One more.
    ///
    /// # Errors
    /// If these are more than any image has.
    pub(crate) fn add(&mut self, source: &dyn Source, manifest: &Manifest) -> Result<(), Error> {
        self.manifests += 1;
        self.add_bytes(source, manifest.bytes().len())
    }

    fn add_bytes(&mut self, source: &dyn Source, bytes: usize) -> Result<(), Error> {
        self.bytes += bytes;
        if self.manifests <= MANIFESTS_LIMIT && self.bytes <= MANIFESTS_LIMIT_BYTES {
            return Ok(());
        }
        let limit = MANIFESTS_LIMIT_BYTES >> 20;
        let what = format!("it has more than {MANIFESTS_LIMIT} manifests, or {limit} MiB of them");
        Err(Error::new(format!("read {}", source.name()), Cause::Malformed(what)))
    }
}

/// Copies what `source` names to `destination`.
///
/// # Errors
/// The first failure of the source, the destination or the content; what the destination names is then unchanged.
pub fn copy(
    source: &dyn Source,
    destination: &dyn Destination,
    options: &CopyOptions,
    progress: &dyn Progress,
) -> Result<Copied, Error> {
    let named = source.manifest(None)?;
    let named_digest = named.digest().clone();
    let top = match &options.platforms {
        PlatformChoice::One(platform) => chosen(source, named, platform)?,
        PlatformChoice::All => named,
    };
    let mut plan =
        Plan { with_referrers: options.referrers, with_signatures: options.gpg_signatures, ..Plan::default() };
    plan.seen.insert(top.digest().clone());
    plan.add(source, &top, 0)?;
    // The largest first: begun last, it would keep one lane busy while the others are idle.
    plan.blobs.make_contiguous().sort_by_key(|descriptor| std::cmp::Reverse(descriptor.size()));
    let blobs = Vec::from(plan.blobs);
    // What the destination does not take is told before anything is moved.
    let there = plan.has_more.then(|| destination.beside()).transpose()?;
    if let Some(there) = &there {
        plan.companions.iter().try_for_each(|(tag, companion)| check_companion(there.as_ref(), tag, companion))?;
    }
    if !plan.signatures.is_empty() {
        destination.keeps_gpg_signatures()?;
    }
    progress.planned(&blobs);
    let results = Transfer::new(source, destination, progress, blobs.clone().into()).run(options.jobs);
    let results = results.inspect_err(|_| progress.abandoned(&blobs))?;
    // First what may still be refused: another client may have put something else under the tag.
    if let Some(there) = &there {
        for (tag, companion) in &plan.companions {
            put_companion(destination, there.as_ref(), tag, companion)?;
        }
    }
    for (subject, signatures) in &plan.signatures {
        destination.put_gpg_signatures(subject, subject == top.digest(), signatures)?;
    }
    for manifest in &plan.children {
        destination.put_manifest(manifest, false)?;
    }
    destination.put_manifest(&top, true)?;
    Ok(Copied { manifest: top, named: named_digest, sent: results.sent, skipped: results.skipped })
}

/// Copies signatures or attestations of an image, as `source` names them, to those that `destination` has under `tag`:
/// false if it has no others there, or something that they cannot be joined with. Then nothing is moved.
///
/// # Errors
/// As [`copy`].
pub fn join_companion(
    source: &dyn Source,
    destination: &dyn Destination,
    tag: &str,
    options: &CopyOptions,
    progress: &dyn Progress,
) -> Result<bool, Error> {
    let companion = source.manifest(None)?;
    let ManifestContent::Image { config, layers } = companion.content() else { return Ok(false) };
    let there = match destination.beside() {
        // It holds one image.
        Err(error) if matches!(error.cause(), Cause::Input(_)) => return Ok(false),
        there => there?,
    };
    if !has_companion_to_join(there.as_ref(), tag, &companion)? {
        return Ok(false);
    }
    let mut plan = Plan::default();
    plan.add_blobs(source, *config, layers)?;
    let blobs = Vec::from(plan.blobs);
    progress.planned(&blobs);
    let results = Transfer::new(source, destination, progress, blobs.clone().into()).run(options.jobs);
    results.inspect_err(|_| progress.abandoned(&blobs))?;
    put_companion(destination, there.as_ref(), tag, &companion)?;
    Ok(true)
}

/// Copies one blob ahead of the image that it belongs to; false if it needed no moving.
///
/// # Errors
/// As [`copy`].
pub fn copy_blob(
    source: &dyn Source,
    destination: &dyn Destination,
    descriptor: &Descriptor,
    progress: &dyn Progress,
) -> Result<bool, Error> {
    Transfer::new(source, destination, progress, VecDeque::new()).transfer(descriptor)
}

/// The manifest of the image that fits a platform; an image that is no index is taken as it is.
///
/// # Errors
/// If the source cannot be read, or has no image for the platform.
pub fn choose_image(source: &dyn Source, platform: &Platform) -> Result<Manifest, Error> {
    chosen(source, source.manifest(None)?, platform)
}

fn chosen(source: &dyn Source, mut manifest: Manifest, platform: &Platform) -> Result<Manifest, Error> {
    for _ in 0..INDEX_DEPTH_LIMIT {
        let ManifestContent::Index(manifests) = manifest.content() else { return Ok(manifest) };
        let Some(chosen) = platform.choose(&manifests, &manifest.os_versions()) else {
            // Nothing failed at a registry: somebody asked for what there is not.
            let what = format!("it has no image for {platform}, {}", offered(&manifests));
            return Err(Error::local(format!("choose an image of {}", source.name()), Cause::Missing(what)));
        };
        manifest = source.manifest(Some(chosen.digest()))?;
    }
    Err(too_deep(source))
}

/// The platforms of an index, in words; what is for no platform, as an attestation, is none.
fn offered(manifests: &[Descriptor]) -> String {
    let mut platforms: Vec<String> = manifests.iter().filter_map(Platform::of).map(|p| p.to_string()).collect();
    platforms.retain(|platform| !platform.starts_with("unknown"));
    platforms.sort();
    platforms.dedup();
    if platforms.is_empty() {
        "and tells of no platform".to_owned()
    } else {
        format!("only for {}", platforms.join(", "))
    }
}

pub(crate) fn too_deep(source: &dyn Source) -> Error {
    let what = format!("its indexes are nested more than {INDEX_DEPTH_LIMIT} deep");
    Error::new(format!("read {}", source.name()), Cause::Malformed(what))
}

/// What is to be moved: blobs once each, and manifests in an order in which each comes after what it points to.
#[derive(Default)]
struct Plan {
    blobs: VecDeque<Descriptor>,
    seen: HashSet<Digest>,
    children: Vec<Manifest>,
    held: Held,
    /// What lies beside an image under a tag of its own.
    companions: Vec<(String, Manifest)>,
    /// Whether there is more than the image: companions or referrers.
    has_more: bool,
    with_referrers: bool,
    /// What GPG signed, with its signatures.
    signatures: Vec<(Digest, Vec<Vec<u8>>)>,
    with_signatures: bool,
}

impl Plan {
    fn add(&mut self, source: &dyn Source, manifest: &Manifest, depth: usize) -> Result<(), Error> {
        match manifest.content() {
            ManifestContent::Image { config, layers } => self.add_blobs(source, *config, layers)?,
            ManifestContent::Index(manifests) => {
                if depth >= INDEX_DEPTH_LIMIT {
                    return Err(too_deep(source));
                }
                self.add_children(source, manifests, depth)?;
            }
        }
        if self.with_signatures {
            let signatures = source.gpg_signatures(manifest.digest())?;
            self.held.add_bytes(source, signatures.iter().map(Vec::len).sum())?;
            if !signatures.is_empty() {
                self.signatures.push((manifest.digest().clone(), signatures));
            }
        }
        if self.with_referrers {
            let referrers = source.referrers(manifest.digest())?;
            if !referrers.is_empty() && depth >= REFERRERS_DEPTH_LIMIT {
                return Err(too_deep(source));
            }
            self.has_more |= !referrers.is_empty();
            // Before what they refer to has its tag: whoever checks signatures finds them from the first moment on.
            self.add_children(source, referrers, depth)?;
            self.add_companions(source, manifest.digest())?;
        }
        Ok(())
    }

    fn add_blobs(&mut self, source: &dyn Source, config: Descriptor, layers: Vec<Descriptor>) -> Result<(), Error> {
        // Whoever runs or shows the image reads its config whole.
        if config.size() > MANIFEST_LIMIT_BYTES {
            let what = format!("its config is larger than {MANIFEST_LIMIT_BYTES} bytes");
            return Err(Error::new(format!("read {}", source.name()), Cause::Malformed(what)));
        }
        for descriptor in layers.into_iter().chain([config]) {
            if self.seen.insert(descriptor.digest().clone()) {
                self.blobs.push_back(descriptor);
            }
        }
        Ok(())
    }

    /// What cosign keeps beside a manifest. An index there would be none of cosign's, and stays behind.
    fn add_companions(&mut self, source: &dyn Source, subject: &Digest) -> Result<(), Error> {
        for tag in companion_tags(subject) {
            let Some(companion) = source.tagged(&tag)? else { continue };
            self.held.add(source, &companion)?;
            if let ManifestContent::Image { config, layers } = companion.content() {
                self.add_blobs(source, *config, layers)?;
                self.companions.push((tag, companion));
                self.has_more = true;
            }
        }
        Ok(())
    }

    fn add_children(&mut self, source: &dyn Source, manifests: Vec<Descriptor>, depth: usize) -> Result<(), Error> {
        for descriptor in manifests {
            if self.seen.insert(descriptor.digest().clone()) {
                let child = source.manifest(Some(descriptor.digest()))?;
                self.held.add(source, &child)?;
                self.add(source, &child, depth + 1)?;
                self.children.push(child);
            }
        }
        Ok(())
    }
}

/// The blobs of a copy while they move.
struct Transfer<'a> {
    source: &'a dyn Source,
    destination: &'a dyn Destination,
    progress: &'a dyn Progress,
    queue: Mutex<VecDeque<Descriptor>>,
    results: Mutex<Results>,
    stop: AtomicBool,
}

struct Results {
    sent: usize,
    skipped: usize,
    failure: Option<Error>,
}

impl<'a> Transfer<'a> {
    fn new(
        source: &'a dyn Source,
        destination: &'a dyn Destination,
        progress: &'a dyn Progress,
        blobs: VecDeque<Descriptor>,
    ) -> Self {
        let results = Mutex::new(Results { sent: 0, skipped: 0, failure: None });
        Self { source, destination, progress, queue: Mutex::new(blobs), results, stop: AtomicBool::new(false) }
    }

    fn run(self, jobs: usize) -> Result<Results, Error> {
        let lanes = jobs.clamp(1, 64).min(lock(&self.queue).len().max(1));
        std::thread::scope(|scope| {
            for _ in 0..lanes {
                scope.spawn(|| self.work());
            }
        });
        let mut results = self.results.into_inner().unwrap_or_else(|poison| poison.into_inner());
        match results.failure.take() {
            Some(failure) => Err(failure),
            None => Ok(results),
        }
    }

    fn work(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let Some(descriptor) = lock(&self.queue).pop_front() else { return };
            let outcome = self.transfer(&descriptor);
            let mut results = lock(&self.results);
            match outcome {
                Ok(true) => results.sent += 1,
                Ok(false) => results.skipped += 1,
                Err(error) => {
                    self.stop.store(true, Ordering::Relaxed);
                    results.failure.get_or_insert(error);
                }
            }
        }
    }

    /// Moves one blob; false if it needed no moving.
    fn transfer(&self, descriptor: &Descriptor) -> Result<bool, Error> {
        if self.destination.has_blob(descriptor)? {
            self.progress.blob_skipped(descriptor);
            return Ok(false);
        }
        self.progress.blob_started(descriptor);
        let what = format!("copy the blob {}", descriptor.digest());
        let put = |is_second| {
            if is_second {
                self.source.distrust(descriptor);
            }
            self.destination.put_blob(descriptor, &Moving { transfer: self, descriptor })
        };
        match twice_if_damaged(&what, self.progress, put)? {
            Stored::Sent => {
                self.progress.blob_done(descriptor.digest());
                Ok(true)
            }
            Stored::Unsent => {
                self.progress.blob_skipped(descriptor);
                Ok(false)
            }
        }
    }
}

/// A blob of the source as the destination sees it.
struct Moving<'a> {
    transfer: &'a Transfer<'a>,
    descriptor: &'a Descriptor,
}

impl Content for Moving<'_> {
    fn open(&self) -> Result<Box<dyn Read + Send + '_>, Error> {
        let content = self.transfer.source.open_blob(self.descriptor)?;
        Ok(Box::new(Counted { moving: self, content, position_bytes: 0 }))
    }

    fn open_unverified(&self) -> Result<Box<dyn Read + Send + '_>, Error> {
        let content = self.transfer.source.open_unverified_blob(self.descriptor)?;
        Ok(Box::new(Counted { moving: self, content, position_bytes: 0 }))
    }

    fn fill(&self, draft: &mut Draft) -> io::Result<()> {
        self.check()?;
        self.transfer.source.fill_draft(self.descriptor, draft, &mut |position_bytes| self.moved(position_bytes))
    }

    fn origin(&self) -> Option<Origin> {
        self.transfer.source.origin(self.descriptor)
    }
}

impl Moving<'_> {
    /// Breaks off when another blob failed.
    fn check(&self) -> io::Result<()> {
        if self.transfer.stop.load(Ordering::Relaxed) {
            return Err(Error::new(format!("copy the blob {}", self.descriptor.digest()), Cause::Stopped).into());
        }
        Ok(())
    }

    fn moved(&self, position_bytes: u64) -> io::Result<()> {
        self.transfer.progress.blob_moved(self.descriptor.digest(), position_bytes);
        self.check()
    }
}

/// Tells the progress, and breaks off when another blob failed.
struct Counted<'a> {
    moving: &'a Moving<'a>,
    content: Box<dyn Read + Send + 'a>,
    position_bytes: u64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.moving.check()?;
        let count = self.content.read(buffer)?;
        self.position_bytes += count as u64;
        self.moving.moved(self.position_bytes)?;
        Ok(count)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Queue and results are whole between any two statements that change them.
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}
