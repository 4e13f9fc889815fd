//! Where signatures lie: beside the image, as the layers of an image of their own under the tag `sha256-<hex>.sig`
//! (<https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md>), and as referrers.
//!
//! Invariant: signatures that are there stay as they are when one is added. What is read is bounded, and not to be
//! trusted before it is verified.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Read as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oci_spec::image::{Descriptor, Digest, MediaType};
use serde_json::{Value, json};

use super::bundle::{self, Bundle};
use super::certificate::Certificate;
use super::key::PrivateKey;
use super::payload::{Form, Payload};
use super::trust::TrustedKeys;
use crate::artifact::Artifact;
use crate::digest::digest_of;
use crate::error::{Cause, Error};
use crate::manifest::{MANIFEST_LIMIT_BYTES, Manifest, ManifestContent, OCI_MANIFEST};
use crate::place::{Content, Destination, Source};
use crate::progress::Silent;
use crate::referrers::fallback_tag;
use crate::retry::twice_if_damaged;

/// The media type of a payload.
pub(super) const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The annotation that holds the signature of a payload.
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// The annotations of those who sign without a key of their own: the certificate, those above it, the log's entry.
const CERTIFICATE: &str = "dev.sigstore.cosign/certificate";
const CHAIN: &str = "dev.sigstore.cosign/chain";
const LOG_ENTRY: &str = "dev.sigstore.cosign/bundle";
/// The artifact type of signatures that are referrers.
const ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
/// How the artifact types of cosign 3's bundles begin, whatever their version.
const BUNDLES: &str = "application/vnd.dev.sigstore.bundle.";
/// As cosign has it. Each one may cost a request and a check.
pub(super) const SIGNATURES_LIMIT: usize = 1000;
/// Payloads have some hundred bytes. All of them are held in memory while they are checked.
const PAYLOAD_LIMIT_BYTES: u64 = 64 << 10;
/// A bundle holds a statement, a certificate and an entry of a log with its proof.
const BUNDLE_LIMIT_BYTES: u64 = 64 << 10;
/// A signature of RSA with 8192 bits has 1024 bytes, in base64; nothing longer is looked at.
const SIGNATURE_LIMIT_BYTES: usize = 4 << 10;
/// Of a certificate, those above it or an entry of a log: each has some KiB.
const PROOF_LIMIT_BYTES: usize = 16 << 10;
/// Of the digest of a payload, as text: longer than that of any algorithm that is checked.
const DIGEST_LIMIT_BYTES: usize = 256;
/// Two writers take turns quickly.
pub(super) const UPDATE_TRIES: usize = 10;

/// What cosign keeps beside a manifest, each under a tag of this ending: signatures, attestations, bills of material.
const COMPANIONS: [&str; 3] = ["sig", "att", "sbom"];

/// The tags of these for a manifest.
pub(crate) fn companion_tags(digest: &Digest) -> [String; 3] {
    COMPANIONS.map(|kind| format!("{}.{kind}", fallback_tag(digest)))
}

/// The manifest that something lies beside under one of these tags.
pub fn companion_subject(tag: &str) -> Option<Digest> {
    let (hex, kind) = tag.strip_prefix("sha256-")?.split_once('.')?;
    Digest::try_from(format!("sha256:{hex}")).ok().filter(|_| COMPANIONS.contains(&kind))
}

fn signature_tag(digest: &Digest) -> String {
    let [tag, ..] = companion_tags(digest);
    tag
}

/// A signature as it lies beside an image; of anyone.
#[derive(Debug, Clone)]
pub(super) struct Attached {
    payload: Descriptor,
    signature: Vec<u8>,
    /// What is said of it: who signed, and that a log has it.
    proof: Proof,
}

/// Texts that lie beside a signature.
#[derive(Debug, Clone, Default)]
struct Proof {
    certificate: Option<String>,
    chain: Option<String>,
    log_entry: Option<String>,
}

impl Proof {
    fn of(layer: &Descriptor) -> Self {
        let said = |key: &str| {
            let text = layer.annotations().as_ref()?.get(key)?;
            (text.len() <= PROOF_LIMIT_BYTES).then(|| text.clone())
        };
        Self { certificate: said(CERTIFICATE), chain: said(CHAIN), log_entry: said(LOG_ENTRY) }
    }
}

impl Attached {
    pub(super) fn payload(&self) -> &Descriptor {
        &self.payload
    }

    pub(super) fn signature(&self) -> &[u8] {
        &self.signature
    }

    /// What a log says of it.
    pub(super) fn log_entry(&self) -> Result<&str, String> {
        self.proof.log_entry.as_deref().ok_or_else(|| "no log entry lies beside it".to_owned())
    }

    /// The certificate of who signed.
    pub(super) fn certificate(&self) -> Result<Certificate, String> {
        let own = self.proof.certificate.as_deref().ok_or("no certificate lies beside it")?;
        Certificate::of(own, self.proof.chain.as_deref())
    }
}

/// The payloads of one place, each read once: many signatures have the same.
pub(super) struct Payloads<'a> {
    source: &'a dyn Source,
    read: HashMap<Digest, Result<Vec<u8>, String>>,
}

impl<'a> Payloads<'a> {
    pub(super) fn of(source: &'a dyn Source) -> Self {
        Self { source, read: HashMap::new() }
    }

    pub(super) fn bytes(&mut self, descriptor: &Descriptor) -> Result<&[u8], String> {
        let source = self.source;
        let read = self.read.entry(descriptor.digest().clone());
        let bytes = read.or_insert_with(|| blob(source, descriptor, PAYLOAD_LIMIT_BYTES).map_err(|e| e.to_string()));
        bytes.as_deref().map_err(Clone::clone)
    }
}

/// A small blob, whole and verified.
fn blob(source: &dyn Source, descriptor: &Descriptor, limit_bytes: u64) -> Result<Vec<u8>, Error> {
    let doing = || format!("read the blob {} of {}", descriptor.digest(), source.name());
    if descriptor.size() > limit_bytes {
        return Err(Error::new(doing(), Cause::Malformed(format!("it is larger than {limit_bytes} bytes"))));
    }
    let fetch = |is_second| {
        if is_second {
            source.distrust(descriptor);
        }
        let mut bytes = Vec::new();
        let read = source.open_blob(descriptor)?.take(limit_bytes + 1).read_to_end(&mut bytes);
        read.map_err(|error| Error::from_io(doing(), source.name(), error))?;
        Ok(bytes)
    };
    twice_if_damaged(&doing(), &Silent, fetch)
}

/// What was found beside a manifest so far; good signatures stay what they are, whatever else is found.
#[derive(Default)]
pub(super) struct Found {
    pub(super) signatures: Vec<Attached>,
    /// Messages that hold a payload and its signature, GPG's.
    pub(super) of_gpg: Vec<Vec<u8>>,
    /// Cosign 3's.
    pub(super) bundles: Vec<Bundle>,
    /// Whether there are bundles of another version, which are not read.
    pub(super) has_other_bundles: bool,
    /// Why a referrer that is listed as a signature is none.
    pub(super) unread: Vec<String>,
}

impl Found {
    /// Looks where GPG's lie.
    pub(super) fn add_gpg(&mut self, source: &dyn Source, subject: &Digest) -> Result<(), Error> {
        self.of_gpg = source.gpg_signatures(subject)?;
        Ok(())
    }

    /// Looks under the tag.
    pub(super) fn add_tagged(&mut self, source: &dyn Source, subject: &Digest) -> Result<(), Error> {
        match source.tagged(&signature_tag(subject))? {
            Some(manifest) => collect(source, &manifest, &mut self.signatures),
            None => Ok(()),
        }
    }

    /// Looks among the referrers.
    pub(super) fn add_referrers(&mut self, source: &dyn Source, subject: &Digest) -> Result<(), Error> {
        let listed = match source.bare_referrers(subject) {
            // A place without such lists has none.
            Err(error) if matches!(error.cause(), Cause::Input(_)) => Vec::new(),
            listed => listed?,
        };
        let kind_of = |one: &Descriptor| one.artifact_type().as_ref().map(ToString::to_string).unwrap_or_default();
        let is_other = |kind: &str| kind.starts_with(BUNDLES) && kind != bundle::BUNDLE;
        self.has_other_bundles |= listed.iter().any(|one| is_other(&kind_of(one)));
        let is_signature = |one: &&Descriptor| [ARTIFACT, bundle::BUNDLE].contains(&kind_of(one).as_str());
        for (number, referrer) in listed.iter().filter(is_signature).enumerate() {
            if number >= SIGNATURES_LIMIT {
                return Err(too_many(source));
            }
            match source.manifest(Some(referrer.digest())) {
                Ok(manifest) if kind_of(referrer) == bundle::BUNDLE => self.add_bundles(source, &manifest)?,
                Ok(manifest) => collect(source, &manifest, &mut self.signatures)?,
                Err(error) if is_not_there(error.cause()) => self.unread.push(error.to_string()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn add_bundles(&mut self, source: &dyn Source, manifest: &Manifest) -> Result<(), Error> {
        let ManifestContent::Image { layers, .. } = manifest.content() else { return Ok(()) };
        // Bills of material and the like lie in bundles too, and may be large.
        if manifest.annotations().get(bundle::PREDICATE_TYPE).is_some_and(|kind| kind != bundle::PREDICATE) {
            return Ok(());
        }
        // One manifest has one.
        let Some(layer) = layers.iter().find(|layer| layer.media_type().to_string() == bundle::BUNDLE) else {
            return Ok(());
        };
        match blob(source, layer, BUNDLE_LIMIT_BYTES) {
            Ok(bytes) => match Bundle::parse(&bytes) {
                Ok(bundle) => self.bundles.push(bundle),
                Err(why) => self.unread.push(why),
            },
            Err(error) if is_not_there(error.cause()) => self.unread.push(error.to_string()),
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// Whether something is missing or damaged, as anyone may leave it who lists referrers; not whether a place fails.
fn is_not_there(cause: &Cause) -> bool {
    match cause {
        Cause::Answer(answer) => answer.status == 404,
        Cause::Missing(_) | Cause::Malformed(_) | Cause::DigestMismatch { .. } | Cause::SizeMismatch { .. } => true,
        _ => false,
    }
}

fn collect(source: &dyn Source, manifest: &Manifest, found: &mut Vec<Attached>) -> Result<(), Error> {
    let ManifestContent::Image { layers, .. } = manifest.content() else { return Ok(()) };
    for layer in layers {
        let text = layer.annotations().as_ref().and_then(|annotations| annotations.get(SIGNATURE));
        let is_payload =
            layer.media_type().to_string() == PAYLOAD && layer.digest().as_ref().len() < DIGEST_LIMIT_BYTES;
        let text = text.filter(|text| is_payload && text.len() <= SIGNATURE_LIMIT_BYTES);
        let Some(signature) = text.and_then(|text| STANDARD.decode(text).ok()) else { continue };
        if found.len() >= SIGNATURES_LIMIT {
            return Err(too_many(source));
        }
        // Without what else is said of it, which may be much.
        let payload = Descriptor::new(layer.media_type().clone(), layer.size(), layer.digest().clone());
        found.push(Attached { payload, signature, proof: Proof::of(&layer) });
    }
    Ok(())
}

pub(super) fn too_many(source: &dyn Source) -> Error {
    let what = format!("there are more than {SIGNATURES_LIMIT} of them");
    Error::new(format!("read the signatures of {}", source.name()), Cause::Malformed(what))
}

/// Signs what a payload names, beside it: under its tag, and if it is asked for also as a referrer. Signing the same
/// again with the same key changes nothing; false if there was nothing to change.
///
/// `source` and `destination` are the same place; `subject` is the manifest there.
///
/// # Errors
/// If the place keeps no tags beside an image, or fails; if other clients change the tag again and again.
pub fn sign(
    source: &dyn Source,
    destination: &dyn Destination,
    subject: &Manifest,
    payload: &Payload,
    key: &PrivateKey,
    as_referrer: bool,
) -> Result<bool, Error> {
    let public = TrustedKeys::from(vec![key.public()]);
    let is_signed = |found: &Found| {
        let mut payloads = Payloads::of(source);
        let verified = public.verified(found, &mut payloads).unwrap_or_default();
        verified.into_iter().any(|one| one.is_ok_and(|one| one.payload == *payload))
    };
    let tag = signature_tag(subject.digest());
    let bytes = payload.to_bytes(Form::Sigstore);
    let mut has_changed = false;
    for _ in 0..UPDATE_TRIES {
        let existing = source.tagged(&tag)?;
        let mut found = Found::default();
        if let Some(existing) = &existing {
            collect(source, existing, &mut found.signatures)?;
        }
        if is_signed(&found) {
            let mut referrers = Found::default();
            if as_referrer {
                referrers.add_referrers(source, subject.digest())?;
            }
            if as_referrer && !is_signed(&referrers) {
                attach(destination, subject, &bytes, &key.sign(&bytes)?)?;
                has_changed = true;
            }
            return Ok(has_changed);
        }
        // What another client puts there at the same time is found the next time round.
        let mut drawer = Drawer::of(source, existing.as_ref())?;
        drawer.add(&bytes, &key.sign(&bytes)?);
        put_blob(destination, &payload_descriptor(&bytes), &bytes)?;
        has_changed |= drawer.put(source, destination, &tag, existing.as_ref())?;
    }
    let cause = Cause::Malformed("other clients changed its signatures again and again".to_owned());
    Err(Error::new(format!("sign {}", source.name()), cause))
}

fn attach(destination: &dyn Destination, subject: &Manifest, payload: &[u8], signature: &[u8]) -> Result<(), Error> {
    let mut layer = payload_descriptor(payload);
    layer.set_annotations(Some(HashMap::from([(SIGNATURE.to_owned(), STANDARD.encode(signature))])));
    let content = payload.to_vec();
    let artifact = Artifact {
        artifact_type: ARTIFACT.to_owned(),
        subject: Some(subject.descriptor()),
        layers: vec![(layer, &content)],
        annotations: BTreeMap::new(),
    };
    artifact.put(destination)?;
    Ok(())
}

/// Signs what a payload names as cosign 3 does it, with a bundle among its referrers, which names no image's name. Signing
/// the same again with the same key changes nothing; false if there was nothing to change.
///
/// `source` and `destination` are the same place; `subject` is the manifest there.
///
/// # Errors
/// If the place keeps no referrers, or fails.
pub fn sign_bundle(
    source: &dyn Source,
    destination: &dyn Destination,
    subject: &Manifest,
    payload: &Payload,
    key: &PrivateKey,
) -> Result<bool, Error> {
    let mut found = Found::default();
    found.add_referrers(source, subject.digest())?;
    let keys = TrustedKeys::from(vec![key.public()]);
    let there = keys.verified(&found, &mut Payloads::of(source)).unwrap_or_default();
    if there.into_iter().any(|one| one.is_ok_and(|one| one.payload == *payload)) {
        return Ok(false);
    }
    let content = bundle::made(payload, key)?;
    let layer = Descriptor::new(MediaType::from(bundle::BUNDLE), content.len() as u64, digest_of(&content));
    let artifact = Artifact {
        artifact_type: bundle::BUNDLE.to_owned(),
        subject: Some(subject.descriptor()),
        layers: vec![(layer, &content)],
        annotations: bundle::annotations(),
    };
    artifact.put(destination)?;
    Ok(true)
}

fn payload_descriptor(payload: &[u8]) -> Descriptor {
    Descriptor::new(MediaType::from(PAYLOAD), payload.len() as u64, digest_of(payload))
}

fn put_blob(destination: &dyn Destination, descriptor: &Descriptor, bytes: &[u8]) -> Result<(), Error> {
    if !destination.has_blob(descriptor)? {
        destination.put_blob(descriptor, &bytes.to_vec() as &dyn Content)?;
    }
    Ok(())
}

/// The image that holds signatures or attestations, as documents to be added to: all that is in them stays.
pub(super) struct Drawer {
    manifest: Value,
    config: Value,
}

impl Drawer {
    pub(super) fn of(source: &dyn Source, existing: Option<&Manifest>) -> Result<Self, Error> {
        let Some(existing) = existing else {
            return Ok(Self {
                manifest: json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []}),
                config: json!({"architecture": "", "os": "", "config": {}, "rootfs": {"type": "layers", "diff_ids": []}}),
            });
        };
        let odd = || {
            let what = "what is under their tag is no image of signatures".to_owned();
            Error::new(format!("add to the signatures of {}", source.name()), Cause::Malformed(what))
        };
        let ManifestContent::Image { config, .. } = existing.content() else { return Err(odd()) };
        let config = serde_json::from_slice::<Value>(&blob(source, &config, MANIFEST_LIMIT_BYTES)?);
        let manifest = serde_json::from_slice::<Value>(existing.bytes());
        let (Ok(manifest), Ok(config)) = (manifest, config) else { return Err(odd()) };
        let has_lists =
            manifest["layers"].is_array() && config.pointer("/rootfs/diff_ids").is_some_and(Value::is_array);
        if has_lists { Ok(Self { manifest, config }) } else { Err(odd()) }
    }

    fn add(&mut self, payload: &[u8], signature: &[u8]) {
        let mut layer = json!(payload_descriptor(payload));
        layer["annotations"] = json!({SIGNATURE: STANDARD.encode(signature)});
        self.push(layer);
    }

    /// Adds what another drawer has and this one has not, as it is: the same content may be signed many times.
    pub(super) fn add_all(&mut self, other: &Self) {
        let identity = |layer: &Value| {
            (layer["digest"].clone(), layer.pointer("/annotations").and_then(|said| said.get(SIGNATURE)).cloned())
        };
        let mut known: HashSet<_> = self.layers().iter().map(identity).collect();
        for layer in other.layers() {
            if known.insert(identity(layer)) {
                self.push(layer.clone());
            }
        }
    }

    pub(super) fn layers(&self) -> &[Value] {
        self.manifest["layers"].as_array().expect("the list was looked for when this was made")
    }

    fn push(&mut self, layer: Value) {
        let digest = layer["digest"].clone();
        let lists = [self.manifest.get_mut("layers"), self.config.pointer_mut("/rootfs/diff_ids")];
        for (list, entry) in lists.into_iter().zip([layer, digest]) {
            list.and_then(Value::as_array_mut).expect("the lists were looked for when this was made").push(entry);
        }
    }

    /// Puts it under a tag in place of `existing`; its layers are there. False if another client has been there since
    /// that was read: then nothing is replaced.
    ///
    /// `source` and `destination` are the same place.
    pub(super) fn put(
        mut self,
        source: &dyn Source,
        destination: &dyn Destination,
        tag: &str,
        existing: Option<&Manifest>,
    ) -> Result<bool, Error> {
        let config = self.config.to_string().into_bytes();
        let described = Descriptor::new(MediaType::ImageConfig, config.len() as u64, digest_of(&config));
        put_blob(destination, &described, &config)?;
        self.manifest["config"] = json!(described);
        let manifest = Manifest::new(None, self.manifest.to_string().into_bytes())
            .map_err(|cause| Error::new(format!("put {tag} beside {}", source.name()), cause))?;
        if source.tagged(tag)?.as_ref().map(Manifest::digest) != existing.map(Manifest::digest) {
            return Ok(false);
        }
        destination.put_tagged(&manifest, tag)?;
        Ok(true)
    }
}
