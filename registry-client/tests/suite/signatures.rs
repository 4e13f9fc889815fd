//! Signatures beside images: who signed what counts, and what somebody who can write there may try.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oci_spec::image::{Descriptor, Digest, MediaType};
use registry_client::*;
use serde_json::{Value, json};

use crate::support::*;

const NAME: &str = "docker://r.example/app:1";
const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

fn name() -> ImageName {
    NAME.parse().expect("a name")
}

fn payload(digest: &Digest, name: &str) -> Payload {
    Payload::new(digest.clone(), name, BTreeMap::new()).expect("a payload")
}

fn signed_by(image: &MemoryImage, manifest: &Manifest, key: &PrivateKey) -> bool {
    sign(image, image, manifest, &payload(manifest.digest(), "r.example/app:1"), key, false).expect("signed")
}

fn top(image: &MemoryImage) -> Manifest {
    image.top().expect("it has a manifest")
}

fn tag_of(digest: &Digest) -> String {
    format!("sha256-{}.sig", digest.digest())
}

/// What cosign's default is here: the repository counts.
fn demands(keys: &[&PrivateKey]) -> Demands {
    let keys: Vec<_> = keys.iter().map(|key| key.public()).collect();
    Demands::of_keys(&name(), keys, SignedIdentity::MatchRepository {}, BTreeMap::new()).expect("sound")
}

/// A policy of one key, as a file has it.
fn policy(key: &PrivateKey) -> Policy {
    let requirement = json!({"type": "sigstoreSigned", "keyData": STANDARD.encode(key.public().to_pem())});
    let rules = json!({"default": [{"type": "reject"}], "transports": {"docker": {"r.example": [requirement]}}});
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), rules.to_string()).expect("written");
    Policy::load(file.path(), &[]).expect("a policy")
}

#[track_caller]
fn refused<T>(outcome: Result<T, Error>, words: &str) {
    let error = outcome.map(drop).expect_err(words);
    assert!(matches!(error.cause(), Cause::Untrusted(_)) && error.kind() == ErrorKind::User, "{error:?}");
    assert!(error.to_string().contains(words), "{words:?} in {error}");
}

/// Puts any layers under the tag for signatures.
fn put_signatures(image: &MemoryImage, subject: &Digest, layers: &[(Descriptor, Option<String>)]) {
    let config = image.add_blob(MediaType::ImageConfig, br#"{"rootfs":{"type":"layers","diff_ids":[]}}"#.to_vec());
    let layer = |(descriptor, signature): &(Descriptor, Option<String>)| {
        let mut descriptor = descriptor.clone();
        let annotations = signature.iter().map(|text| (SIGNATURE.to_owned(), text.clone()));
        descriptor.set_annotations(Some(annotations.collect::<HashMap<_, _>>()));
        descriptor
    };
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": layers.iter().map(layer).collect::<Vec<_>>()});
    let manifest = Manifest::new(None, manifest.to_string().into_bytes()).expect("a manifest");
    image.put_tagged(&manifest, &tag_of(subject)).expect("put");
}

/// The layers of an image's signatures, each with its signature.
fn signatures(image: &MemoryImage, subject: &Digest) -> Vec<(Descriptor, Option<String>)> {
    let ManifestContent::Image { layers, .. } = image.tag(&tag_of(subject)).expect("signed").content() else {
        panic!("an image")
    };
    let signature = |layer: &Descriptor| layer.annotations().as_ref()?.get(SIGNATURE).cloned();
    layers.into_iter().map(|layer| (layer.clone(), signature(&layer))).collect()
}

#[test]
fn a_signature_is_added_once_and_leaves_others_alone() {
    let (image, one, two) =
        (MemoryImage::sample("a"), PrivateKey::generate().expect("made"), PrivateKey::generate().expect("made"));
    refused(demands(&[&one]).check(&image, &top(&image)), "there is no signature of sha256:");
    assert!(signed_by(&image, &top(&image), &one));
    let first = image.tag(&tag_of(&image.digest())).expect("signed");
    assert!(!signed_by(&image, &top(&image), &one), "nothing to do");
    assert!(signed_by(&image, &top(&image), &two));
    let second = image.tag(&tag_of(&image.digest())).expect("signed");
    let layers = |manifest: &Manifest| {
        serde_json::from_slice::<Value>(manifest.bytes()).expect("JSON")["layers"].as_array().expect("a list").clone()
    };
    assert_eq!((layers(&first).len(), layers(&second).len()), (1, 2));
    assert_eq!(layers(&first)[0], layers(&second)[0]);
    let accepted = demands(&[&one, &two]).check(&image, &top(&image)).expect("both count");
    assert_eq!(
        accepted.iter().map(|one| one.signer.to_string()).collect::<Vec<_>>(),
        [one.public().digest().to_string(), two.public().digest().to_string()]
    );
    assert_eq!(accepted[0].payload.identity.as_deref(), Some("r.example/app:1"));
}

#[test]
fn annotations_are_signed_and_can_be_demanded() {
    let (image, key) = (MemoryImage::sample("a"), PrivateKey::generate().expect("made"));
    let said = BTreeMap::from([("commit".to_owned(), "abc".to_owned())]);
    let payload = Payload::new(image.digest(), "r.example/app:1", said.clone()).expect("sound");
    sign(&image, &image, &top(&image), &payload, &key, false).expect("signed");
    let demands =
        |said| Demands::of_keys(&name(), vec![key.public()], SignedIdentity::MatchExact {}, said).expect("sound");
    assert_eq!(demands(said.clone()).check(&image, &top(&image)).expect("counts")[0].payload.annotations, said);
    let other = BTreeMap::from([("commit".to_owned(), "def".to_owned())]);
    refused(demands(other).check(&image, &top(&image)), "does not say commit=def");
    assert!(Payload::new(image.digest(), "app", BTreeMap::from([("timestamp".to_owned(), "1".to_owned())])).is_err());
    assert!(Payload::new(image.digest(), "APP", BTreeMap::new()).is_err());
}

#[test]
fn a_signature_counts_as_a_referrer_alone() {
    let (image, key) = (MemoryImage::sample("a"), PrivateKey::generate().expect("made"));
    let payload = payload(&image.digest(), "r.example/app:1");
    assert!(sign(&image, &image, &top(&image), &payload, &key, true).expect("signed"));
    assert!(!sign(&image, &image, &top(&image), &payload, &key, true).expect("nothing to do"));
    let referrers = image.referrers(&image.digest()).expect("listed");
    assert_eq!(referrers.len(), 1);
    put_signatures(&image, &image.digest(), &[]);
    assert_eq!(demands(&[&key]).check(&image, &top(&image)).expect("counts").len(), 1);
}

#[test]
fn a_bundle_of_another_version_is_named_as_what_is_not_supported() {
    let (image, key) = (MemoryImage::sample("a"), PrivateKey::generate().expect("made"));
    let artifact_type = "application/vnd.dev.sigstore.bundle.v0.9+json".to_owned();
    let subject = Some(top(&image).descriptor());
    Artifact { artifact_type, subject, ..Artifact::default() }.put(&image).expect("put");
    refused(demands(&[&key]).check(&image, &top(&image)), "v0.3 is");
    signed_by(&image, &top(&image), &key);
    demands(&[&key]).check(&image, &top(&image)).expect("the other one counts");
}

#[test]
fn what_is_signed_for_another_image_name_or_by_another_key_does_not_count() {
    let (image, other, key) =
        (MemoryImage::sample("a"), MemoryImage::sample("b"), PrivateKey::generate().expect("made"));
    let stranger = PrivateKey::generate().expect("made");
    signed_by(&image, &top(&image), &stranger);
    refused(demands(&[&key]).check(&image, &top(&image)), "another key");
    // A good signature, moved to an image that it is not of.
    signed_by(&other, &top(&other), &key);
    for (_, bytes) in other.blobs() {
        image.add_blob(MediaType::ImageConfig, bytes);
    }
    put_signatures(&image, &image.digest(), &signatures(&other, &other.digest()));
    refused(demands(&[&key]).check(&image, &top(&image)), "another image");
    let image = MemoryImage::sample("a");
    sign(&image, &image, &top(&image), &payload(&image.digest(), "r.example/other:1"), &key, false).expect("signed");
    refused(demands(&[&key]).check(&image, &top(&image)), "another name, \"r.example/other:1\"");
    sign(&image, &image, &top(&image), &payload(&image.digest(), "r.example/app:2"), &key, false).expect("signed");
    demands(&[&key]).check(&image, &top(&image)).expect("the repository counts");
    refused(policy(&key).demands(&name()).expect("demanded").check(&image, &top(&image)), "another name");
}

#[test]
fn odd_and_huge_payloads_and_signatures_do_not_count_and_stop_no_good_one() {
    let (image, key) = (MemoryImage::sample("a"), PrivateKey::generate().expect("made"));
    signed_by(&image, &top(&image), &key);
    let good = signatures(&image, &image.digest());
    let blob = |bytes: &[u8]| image.add_blob(MediaType::from(PAYLOAD), bytes.to_vec());
    let huge = Descriptor::new(MediaType::from(PAYLOAD), 1 << 40, image.digest());
    let missing = Descriptor::new(MediaType::from(PAYLOAD), 3, digest_of(b"abc"));
    let lie = Descriptor::new(MediaType::from(PAYLOAD), 1, blob(b"long enough").digest().clone());
    let other_type = Descriptor::new(MediaType::ImageLayer, good[0].0.size(), good[0].0.digest().clone());
    let any = || good[0].1.clone();
    let mut bad = vec![
        (huge, any()),
        (missing, any()),
        (lie, any()),
        (blob(b"{}"), any()),
        (blob(&b"[".repeat(1 << 20)), any()),
        (good[0].0.clone(), None),
        (good[0].0.clone(), Some("!".to_owned())),
        (good[0].0.clone(), Some(String::new())),
        (good[0].0.clone(), Some(STANDARD.encode(noise("signature", 100_000)))),
        (other_type, any()),
    ];
    put_signatures(&image, &image.digest(), &bad);
    refused(demands(&[&key]).check(&image, &top(&image)), "counts: ");
    bad.extend(good);
    put_signatures(&image, &image.digest(), &bad);
    assert_eq!(demands(&[&key]).check(&image, &top(&image)).expect("one counts").len(), 1);
}

#[test]
fn thousands_of_signatures_are_bounded() {
    let (image, key) = (MemoryImage::sample("a"), PrivateKey::generate().expect("made"));
    signed_by(&image, &top(&image), &key);
    let good = signatures(&image, &image.digest());
    let wrong = |number: usize| (good[0].0.clone(), Some(STANDARD.encode(noise(&number.to_string(), 70))));
    let mut many: Vec<_> = (0..999).map(wrong).chain(good.clone()).collect();
    put_signatures(&image, &image.digest(), &many);
    demands(&[&key]).check(&image, &top(&image)).expect("the last of a thousand");
    many.pop();
    put_signatures(&image, &image.digest(), &many);
    let error = demands(&[&key]).check(&image, &top(&image)).expect_err("none").to_string();
    assert!(error.len() < 500 && error.contains("(999 of them)"), "{error}");
    many.extend((0..5000).map(wrong));
    put_signatures(&image, &image.digest(), &many);
    let error = demands(&[&key]).check(&image, &top(&image)).expect_err("too many").to_string();
    assert!(error.contains("more than 1000"), "{error}");
}

#[test]
fn nothing_is_added_to_what_is_no_image_of_signatures() {
    let (image, key) = (MemoryImage::sample("a"), PrivateKey::generate().expect("made"));
    let index = MemoryImage::index(&["linux/amd64"]);
    image.put_tagged(&top(&index), &tag_of(&image.digest())).expect("put");
    let try_it = || sign(&image, &image, &top(&image), &payload(&image.digest(), "app"), &key, false);
    assert!(try_it().expect_err("an index").to_string().contains("no image of signatures"));
    for config in [&b"[]"[..], b"{}", br#"{"rootfs":{"diff_ids":7}}"#, b"nothing"] {
        let config = image.add_blob(MediaType::ImageConfig, config.to_vec());
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": []});
        let manifest = Manifest::new(None, manifest.to_string().into_bytes()).expect("a manifest");
        image.put_tagged(&manifest, &tag_of(&image.digest())).expect("put");
        assert!(try_it().is_err());
    }
}

fn pulled(policy: &Policy, image: Box<dyn Source + '_>, all: bool) -> Result<Digest, Error> {
    let host = Platform::host();
    let platforms = if all { PlatformChoice::All } else { PlatformChoice::One(host) };
    let options = CopyOptions { platforms, ..CopyOptions::default() };
    let guarded = policy.guard(image, &name(), options.is_whole())?;
    let here = MemoryImage::empty();
    let copied = copy(guarded.as_ref(), &here, &options, &Silent);
    assert_eq!(copied.is_ok(), here.top().is_some(), "nothing is kept of what is refused");
    Ok(copied?.manifest.digest().clone())
}

/// A place as somebody who can write there may leave it: with tags or without, and these come first in lists of
/// referrers, or the list fails.
struct Altered<'a> {
    place: &'a dyn Source,
    has_tags: bool,
    listed: Result<Vec<Descriptor>, u16>,
}

/// A place whose tags were forgotten.
fn untagged(place: &dyn Source) -> Altered<'_> {
    Altered { place, has_tags: false, listed: Ok(Vec::new()) }
}

fn answered(status: u16) -> Error {
    let answer = Answer { status, request: "GET x".into(), code: None, message: None, retry_after: None };
    Error::new("list", Cause::Answer(answer))
}

impl Source for Altered<'_> {
    fn name(&self) -> String {
        self.place.name()
    }

    fn manifest(&self, digest: Option<&Digest>) -> Result<Manifest, Error> {
        self.place.manifest(digest)
    }

    fn open_blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>, Error> {
        self.place.open_blob(descriptor)
    }

    fn distrust(&self, descriptor: &Descriptor) {
        self.place.distrust(descriptor);
    }

    fn tagged(&self, tag: &str) -> Result<Option<Manifest>, Error> {
        if self.has_tags { self.place.tagged(tag) } else { Ok(None) }
    }

    fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, Error> {
        let first = self.listed.clone().map_err(answered)?;
        Ok(first.into_iter().chain(self.place.referrers(subject)?).collect())
    }
}

#[test]
fn what_is_listed_as_a_referrer_keeps_no_signed_image_out() {
    let (image, key) = (MemoryImage::sample("a"), PrivateKey::generate().expect("made"));
    let mut gone = Descriptor::new(MediaType::ImageManifest, 3, digest_of(b"abc"));
    gone.set_artifact_type(Some(MediaType::from("application/vnd.dev.cosign.artifact.sig.v1+json")));
    let (many, few) = (vec![gone.clone(); 5000], vec![gone]);
    let check = |source: &dyn Source| demands(&[&key]).check(source, &top(&image)).map(|accepted| accepted.len());
    let altered = |has_tags, listed| check(&Altered { place: &image, has_tags, listed });
    refused(altered(true, Ok(few.clone())), "counts: cannot read memory: no such manifest");
    for status in [401, 403, 500] {
        let error = altered(true, Err(status)).expect_err("nothing counts");
        assert!(matches!(error.cause(), Cause::Answer(answer) if answer.status == status), "{error}");
    }
    sign(&image, &image, &top(&image), &payload(&image.digest(), "r.example/app:1"), &key, true).expect("signed");
    assert_eq!(altered(false, Ok(few)).expect("the other referrer counts"), 1);
    for listed in [Ok(many), Err(401), Err(403), Err(500)] {
        assert_eq!(altered(true, listed).expect("the one under the tag counts"), 1);
    }
}

#[test]
fn an_index_speaks_for_its_images_and_an_image_for_itself_alone() {
    let host = Platform::host().to_string();
    let other = if host == "linux/arm64" { "linux/amd64" } else { "linux/arm64" };
    let key = PrivateKey::generate().expect("made");
    let policy = policy(&key);
    let index = || MemoryImage::index(&[other, &host]);
    let image = index();
    for all in [false, true] {
        refused(pulled(&policy, Box::new(Borrowed(&image)), all), "there is no signature");
    }
    signed_by(&image, &top(&image), &key);
    assert_eq!(pulled(&policy, Box::new(Borrowed(&image)), true).expect("signed"), image.digest());
    pulled(&policy, Box::new(Borrowed(&image)), false).expect("its index is signed");
    let image = index();
    let of = |number: usize| image.manifest(Some(image.layers()[number].digest())).expect("there");
    signed_by(&image, &of(0), &key);
    refused(pulled(&policy, Box::new(Borrowed(&image)), false), "there is no signature");
    signed_by(&image, &of(1), &key);
    assert_eq!(&pulled(&policy, Box::new(Borrowed(&image)), false).expect("signed itself"), of(1).digest());
    // All of its images are, but who knows which are missing.
    refused(pulled(&policy, Box::new(Borrowed(&image)), true), "there is no signature");
}

#[test]
fn what_is_let_in_is_what_was_verified_wherever_the_tag_moves() {
    /// A tag that names the signed image once, and then another one.
    struct Moving<'a>(&'a MemoryImage, Manifest, AtomicUsize);
    impl Source for Moving<'_> {
        fn name(&self) -> String {
            "moving".to_owned()
        }
        fn manifest(&self, digest: Option<&Digest>) -> Result<Manifest, Error> {
            match digest {
                None if self.2.fetch_add(1, Ordering::Relaxed) > 0 => Ok(self.1.clone()),
                digest => self.0.manifest(digest),
            }
        }
        fn open_blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>, Error> {
            self.0.open_blob(descriptor)
        }

        fn distrust(&self, descriptor: &Descriptor) {
            self.0.distrust(descriptor);
        }
        fn tagged(&self, tag: &str) -> Result<Option<Manifest>, Error> {
            self.0.tagged(tag)
        }
    }
    let (image, evil, key) =
        (MemoryImage::sample("a"), MemoryImage::sample("evil"), PrivateKey::generate().expect("made"));
    signed_by(&image, &top(&image), &key);
    let moving = Moving(&image, top(&evil), AtomicUsize::new(0));
    assert_eq!(pulled(&policy(&key), Box::new(moving), false).expect("signed"), image.digest());
    let moved = Moving(&image, top(&evil), AtomicUsize::new(1));
    refused(pulled(&policy(&key), Box::new(moved), false), "there is no signature");
}

#[test]
fn a_policy_decides_before_anything_is_asked() {
    /// A place that nobody may look at.
    struct Closed;
    impl Source for Closed {
        fn name(&self) -> String {
            "closed".to_owned()
        }
        fn manifest(&self, _: Option<&Digest>) -> Result<Manifest, Error> {
            unreachable!("it is asked for a manifest")
        }
        fn open_blob(&self, _: &Descriptor) -> Result<Box<dyn Read + Send + '_>, Error> {
            unreachable!("it is asked for a blob")
        }

        fn distrust(&self, _: &Descriptor) {}
    }
    let policy = policy(&PrivateKey::generate().expect("made"));
    let elsewhere = "docker://other.example/app".parse().expect("a name");
    refused(policy.guard(Box::new(Closed), &elsewhere, true), "lets no image in from there");
    let image = MemoryImage::sample("a");
    let open = Policy::default().guard(Box::new(Borrowed(&image)), &elsewhere, true).expect("open");
    assert_eq!(open.manifest(None).expect("there").digest(), &image.digest());
}

#[test]
fn what_lies_beside_an_image_travels_with_it_and_still_counts() {
    let (image, key) = (MemoryImage::sample("a"), PrivateKey::generate().expect("made"));
    sign(&image, &image, &top(&image), &payload(&image.digest(), "r.example/app:1"), &key, true).expect("signed");
    let directory = tempfile::tempdir().expect("a directory");
    let options = CopyOptions { referrers: true, ..CopyOptions::default() };
    let at = |name: &str| directory.path().join(name);
    let layout = OciLayout::new(at("layout"), Some("app".to_owned()));
    copy(&image, &layout, &options, &Silent).expect("copied");
    let registry = fixtures::registry::Registry::open();
    let reference: Reference = format!("{}/moved:1", registry.address()).parse().expect("a reference");
    let client = Client::new(quick());
    let there = RegistryDestination::new(&client, &reference).expect("a host");
    copy(&layout, &there, &options, &Silent).expect("copied");
    let from = RegistrySource::new(&client, &reference).expect("a host");
    {
        let archive = OciArchiveDestination::create(&at("app.tar"), None).expect("made");
        copy(&from, &archive, &options, &Silent).expect("copied");
    }
    let archive = OciArchiveSource::open(&at("app.tar"), None).expect("read");
    let unnamed = OciLayout::new(at("layout"), None);
    let identity = SignedIdentity::exactly("r.example/app").expect("a name");
    for (place, source) in [
        ("oci:layout", &unnamed as &dyn Source),
        (&format!("docker://{reference}"), &from),
        ("oci-archive:app.tar", &archive),
    ] {
        let manifest = source.manifest(None).expect("there");
        assert_eq!(manifest.digest(), &image.digest(), "{place}");
        let place = place.parse().expect("a place");
        let demands = Demands::of_keys(&place, vec![key.public()], identity.clone(), BTreeMap::new()).expect("sound");
        assert_eq!(demands.check(source, &manifest).expect("counts").len(), 1, "{place}: by tag");
        let untagged = untagged(source);
        assert_eq!(demands.check(&untagged, &manifest).expect("counts").len(), 1, "{place}: as referrer");
    }
    let plain = ImageDirectory::new(at("plain"));
    let error = copy(&Borrowed(&image), &plain, &options, &Silent).expect_err("one image only").to_string();
    assert!(error.contains("holds one image"), "{error}");
}

#[test]
fn signers_at_a_registry_take_turns() {
    let registry = fixtures::registry::Registry::open();
    let reference: Reference = format!("{}/app:1", registry.address()).parse().expect("a reference");
    let client = Client::new(quick());
    let destination = RegistryDestination::new(&client, &reference).expect("a host");
    let image = MemoryImage::sample("a");
    copy(&image, &destination, &CopyOptions::default(), &Silent).expect("pushed");
    let source = RegistrySource::new(&client, &reference).expect("a host").without_mirrors();
    let keys: Vec<PrivateKey> = (0..3).map(|_| PrivateKey::generate().expect("made")).collect();
    for key in &keys {
        let payload = payload(&image.digest(), &reference.to_string());
        assert!(sign(&source, &destination, &top(&image), &payload, key, true).expect("signed"));
        assert!(!sign(&source, &destination, &top(&image), &payload, key, true).expect("nothing to do"));
    }
    let place = ImageName::Registry(reference);
    let all: Vec<_> = keys.iter().map(PrivateKey::public).collect();
    let demands = Demands::of_keys(&place, all, SignedIdentity::MatchExact {}, BTreeMap::new()).expect("sound");
    assert_eq!(demands.check(&source, &top(&image)).expect("all count").len(), 3);
    assert_eq!(demands.check(&untagged(&source), &top(&image)).expect("all count").len(), 3, "as referrers too");
}

#[test]
fn what_cosign_and_containers_image_signed_counts() {
    let image = MemoryImage::empty();
    image.set_top(Manifest::new(None, include_bytes!("signed/manifest.json").to_vec()).expect("a manifest"));
    let mut layers = Vec::new();
    for text in [include_str!("signed/by-cosign.json"), include_str!("signed/by-containers-image.json")] {
        let document: Value = serde_json::from_str(text).expect("JSON");
        let payload = STANDARD.decode(document["payload"].as_str().expect("text")).expect("base64");
        let signature = document["annotations"][SIGNATURE].as_str().map(str::to_owned);
        layers.push((image.add_blob(MediaType::from(PAYLOAD), payload), signature));
    }
    put_signatures(&image, &image.digest(), &layers);
    let key = PublicKey::from_pem(include_bytes!("signed/cosign.pub")).expect("a key");
    let check = |place: &str, identity| {
        let place = format!("docker://192.168.64.2:5000/{place}").parse().expect("a place");
        let demands = Demands::of_keys(&place, vec![key.clone()], identity, BTreeMap::new()).expect("sound");
        demands.check(&image, &top(&image)).map(|accepted| accepted.len())
    };
    assert_eq!(check("skopeo-signed:tag", SignedIdentity::MatchRepoDigestOrExact {}).expect("counts"), 1);
    refused(check("skopeo-signed:other", SignedIdentity::MatchRepoDigestOrExact {}), "another name");
    assert_eq!(check("cosign-signed-single-sample:tag", SignedIdentity::MatchRepository {}).expect("counts"), 1);
    // cosign leaves the tag away: containers/image's default does not take that.
    refused(check("cosign-signed-single-sample:tag", SignedIdentity::MatchRepoDigestOrExact {}), "another name");
}

#[test]
fn a_key_that_cosigns_library_sealed_opens() {
    let KeyFile::Sealed(sealed) = KeyFile::parse(include_bytes!("signed/sealed.key")).expect("a key") else {
        panic!("it is sealed")
    };
    let key = sealed.open(&Secret::new("gopw")).expect("opened");
    assert_eq!(key.public().to_pem(), include_str!("signed/sealed.pub"));
    assert!(sealed.open(&Secret::new("")).is_err());
}

#[test]
fn a_signature_that_came_while_another_was_made_stays() {
    /// A place where another signer comes in between whenever it is looked at under a tag, a few times.
    struct Busy<'a>(&'a MemoryImage, Vec<PrivateKey>, AtomicUsize);
    impl Source for Busy<'_> {
        fn name(&self) -> String {
            "busy".to_owned()
        }
        fn manifest(&self, digest: Option<&Digest>) -> Result<Manifest, Error> {
            self.0.manifest(digest)
        }
        fn open_blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>, Error> {
            self.0.open_blob(descriptor)
        }

        fn distrust(&self, descriptor: &Descriptor) {
            self.0.distrust(descriptor);
        }
        fn tagged(&self, tag: &str) -> Result<Option<Manifest>, Error> {
            let found = self.0.tagged(tag);
            if let Some(key) = self.1.get(self.2.fetch_add(1, Ordering::Relaxed)) {
                signed_by(self.0, &top(self.0), key);
            }
            found
        }
    }
    let image = MemoryImage::sample("a");
    let make = |_| PrivateKey::generate().expect("made");
    let (ours, others): (PrivateKey, Vec<PrivateKey>) = (make(0), (1..4).map(make).collect());
    let busy = Busy(&image, others, AtomicUsize::new(0));
    let payload = payload(&image.digest(), "r.example/app:1");
    // Each time that somebody was there between our two looks we begin anew.
    assert!(sign(&busy, &image, &top(&image), &payload, &ours, false).expect("signed"));
    let keys: Vec<&PrivateKey> = busy.1.iter().chain([&ours]).collect();
    assert_eq!(demands(&keys).check(&image, &top(&image)).expect("they count").len(), 4);
}
