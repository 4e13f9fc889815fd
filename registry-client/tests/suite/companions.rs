//! What lies beside an image when the image is copied to where it lies already, with things beside it that are that
//! place's own.

use std::collections::{BTreeMap, HashMap};

use oci_spec::image::{Descriptor, MediaType};
use registry_client::*;
use serde_json::json;

use crate::support::*;

const ENVELOPE: &str = "application/vnd.dsse.envelope.v1+json";

fn with_referrers() -> CopyOptions {
    CopyOptions { platforms: PlatformChoice::All, referrers: true, ..CopyOptions::default() }
}

fn key() -> PrivateKey {
    PrivateKey::generate().expect("made")
}

fn signed(source: &dyn Source, destination: &dyn Destination, key: &PrivateKey) {
    let manifest = source.manifest(None).expect("there");
    let payload = Payload::new(manifest.digest().clone(), "r.example/app:1", BTreeMap::new()).expect("a payload");
    assert!(sign(source, destination, &manifest, &payload, key, false).expect("signed"));
}

/// How many signatures of these keys count.
fn counting(source: &dyn Source, keys: &[&PrivateKey]) -> usize {
    let place = "docker://r.example/app:1".parse().expect("a name");
    let keys: Vec<_> = keys.iter().map(|key| key.public()).collect();
    let demands = Demands::of_keys(&place, keys, SignedIdentity::MatchRepository {}, BTreeMap::new()).expect("sound");
    demands.check(source, &source.manifest(None).expect("there")).expect("counts").len()
}

/// The tag for a kind of companion of an image.
fn tag(image: &MemoryImage, kind: &str) -> String {
    format!("sha256-{}.{kind}", image.digest().digest())
}

/// Puts an image of these layers under a tag.
fn put(image: &MemoryImage, tag: &str, media_type: &str, contents: &[&str]) {
    put_with(image, tag, media_type, contents, |diff_ids| json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}}));
}

fn put_with(
    image: &MemoryImage,
    tag: &str,
    media_type: &str,
    contents: &[&str],
    config: impl Fn(&[&str]) -> serde_json::Value,
) {
    let layer = |text: &&str| {
        let mut layer = image.add_blob(MediaType::from(media_type), text.as_bytes().to_vec());
        layer.set_annotations(Some(HashMap::from([("predicateType".to_owned(), format!("type of {text}"))])));
        layer
    };
    let layers: Vec<Descriptor> = contents.iter().map(layer).collect();
    let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.digest().as_ref()).collect();
    let config = image.add_blob(MediaType::ImageConfig, config(&diff_ids).to_string().into_bytes());
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": layers});
    let manifest = Manifest::new(None, manifest.to_string().into_bytes()).expect("a manifest");
    image.put_tagged(&manifest, tag).expect("put");
}

#[test]
fn signatures_of_the_destination_stay_when_others_come() {
    let (image, upstream, ours) = (MemoryImage::sample("a"), key(), key());
    let directory = tempfile::tempdir().expect("a directory");
    let layout = |name: &str| OciLayout::new(directory.path().join(name), Some("1".to_owned()));
    let registry = fixtures::registry::Registry::open();
    let reference: Reference = format!("{}/mine:1", registry.address()).parse().expect("a reference");
    let client = Client::new(quick());
    let (up, mine) = (layout("up"), layout("mine"));
    let pushed = RegistryDestination::new(&client, &reference).expect("a host");
    let pulled = RegistrySource::new(&client, &reference).expect("a host");
    copy(&image, &up, &with_referrers(), &Silent).expect("copied");
    signed(&up, &up, &upstream);
    for (destination, source) in [(&mine as &dyn Destination, &mine as &dyn Source), (&pushed, &pulled)] {
        copy(&image, destination, &with_referrers(), &Silent).expect("copied");
        signed(source, destination, &ours);
        let tag = tag(&image, "sig");
        copy(&up, destination, &with_referrers(), &Silent).expect("copied");
        assert_eq!(counting(source, &[&ours, &upstream]), 2, "{}", source.name());
        let joined = source.tagged(&tag).expect("read");
        copy(&up, destination, &with_referrers(), &Silent).expect("copied again");
        assert_eq!(source.tagged(&tag).expect("read"), joined, "nothing new came");
    }
    // The way back: the place that has fewer gets the rest.
    copy(&pulled, &up, &with_referrers(), &Silent).expect("copied");
    assert_eq!(counting(&up, &[&ours, &upstream]), 2);
}

#[test]
fn attestations_are_joined_with_all_that_is_said_of_them() {
    let (from, to) = (MemoryImage::sample("a"), MemoryImage::sample("a"));
    put(&from, &tag(&from, "att"), ENVELOPE, &["one", "two"]);
    put(&to, &tag(&to, "att"), ENVELOPE, &["two", "three"]);
    copy(&from, &to, &with_referrers(), &Silent).expect("copied");
    let ManifestContent::Image { config, layers } = to.tag(&tag(&to, "att")).expect("there").content() else {
        panic!("an image")
    };
    let said = |layer: &Descriptor| layer.annotations().as_ref().expect("some")["predicateType"].clone();
    assert_eq!(layers.iter().map(said).collect::<Vec<_>>(), ["type of two", "type of three", "type of one"]);
    let config: serde_json::Value = serde_json::from_slice(&to.blobs()[config.digest().as_ref()]).expect("JSON");
    assert_eq!(config["rootfs"]["diff_ids"], json!(layers.iter().map(Descriptor::digest).collect::<Vec<_>>()));
}

#[test]
fn what_cannot_be_joined_is_an_error_and_stays() {
    for (kind, theirs, ours) in [
        ("sbom", "text/spdx+json", "text/spdx+json"),
        ("att", ENVELOPE, "application/json"),
        ("sig", "application/json", ENVELOPE),
    ] {
        let (from, to) = (MemoryImage::sample("a"), MemoryImage::empty());
        let tag = tag(&from, kind);
        put(&from, &tag, theirs, &["theirs"]);
        put(&to, &tag, ours, &["ours"]);
        let before = to.tag(&tag);
        let error = copy(&from, &to, &with_referrers(), &Silent).expect_err(kind).to_string();
        assert!(error.contains(&tag) && error.contains("nothing was replaced"), "{error}");
        assert_eq!(to.tag(&tag), before);
        assert!(!to.has_blob(&from.layers()[0]).expect("asked"), "nothing was moved");
        // The same on both sides is nothing to be joined.
        put(&to, &tag, theirs, &["theirs"]);
        copy(&from, &to, &with_referrers(), &Silent).expect("nothing to do");
    }
}

#[test]
fn nothing_is_joined_with_an_image_of_attestations_that_is_odd() {
    for config in [json!({}), json!([]), json!({"rootfs": {"diff_ids": 7}})] {
        let (from, to) = (MemoryImage::sample("a"), MemoryImage::empty());
        let tag = tag(&from, "att");
        put(&from, &tag, ENVELOPE, &["theirs"]);
        put_with(&to, &tag, ENVELOPE, &["ours"], |_| config.clone());
        let before = to.tag(&tag);
        let error = copy(&from, &to, &with_referrers(), &Silent).expect_err("odd").to_string();
        assert!(error.contains(&tag) && error.contains("nothing was replaced"), "{error}");
        assert!(to.tag(&tag) == before && to.top().is_none());
    }
}

#[test]
fn a_place_of_one_image_is_asked_before_anything_is_moved() {
    let (tagged, referred) = (MemoryImage::sample("a"), MemoryImage::sample("a"));
    put(&tagged, &tag(&tagged, "att"), ENVELOPE, &["one"]);
    let subject = Some(tagged.top().expect("it has a manifest").descriptor());
    Artifact { artifact_type: "text/x-one".to_owned(), subject, ..Artifact::default() }.put(&referred).expect("put");
    let directory = tempfile::tempdir().expect("a directory");
    let plain = directory.path().join("plain");
    for image in [&tagged, &referred] {
        let archive = DockerArchiveDestination::create(&directory.path().join("app.tar"), None).expect("made");
        for destination in [&ImageDirectory::new(&plain) as &dyn Destination, &archive] {
            let error = copy(image, destination, &with_referrers(), &Silent).expect_err("one image only").to_string();
            assert!(error.contains("holds one image"), "{error}");
            assert!(!destination.has_blob(&image.layers()[0]).expect("asked"), "{error}");
        }
        assert!(!plain.exists());
    }
    copy(&MemoryImage::sample("b"), &ImageDirectory::new(&plain), &with_referrers(), &Silent)
        .expect("nothing beside it");
}
