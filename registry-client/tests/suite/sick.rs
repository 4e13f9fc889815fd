//! Peers that lie about sizes or never end: what they cost has a bound.
//!
//! Invariant: a test of this file takes seconds and little memory; what it proves is that an end comes.

use std::io::{self, Read, Write};

use fixtures::fault::{FaultServer, Reply};
use oci_spec::image::MediaType;
use registry_client::*;

use crate::support::*;

fn repository(server: &FaultServer) -> Repository {
    let reference: Reference = format!("{}/app", server.address()).parse().expect("a reference");
    Client::new(quick()).repository(&reference).expect("a host")
}

#[test]
fn endless_lists_of_names_have_a_bound() {
    let page = format!(r#"{{"tags": [{0}""], "repositories": [{0}""]}}"#, r#""","#.repeat(400_000));
    let server = FaultServer::start(move |request| {
        let number: usize = request.path.rsplit('=').next().and_then(|text| text.parse().ok()).unwrap_or(0);
        Reply::new(200).header("Link", format!("<?page={}>; rel=\"next\"", number + 1)).body(page.clone())
    });
    let error = repository(&server).tags().expect_err("no end");
    assert!(error.to_string().contains("larger than 64 MiB"), "{error}");
    let error = Client::new(quick()).repositories(server.address()).expect_err("no end");
    assert!(error.to_string().contains("larger than 64 MiB"), "{error}");
    assert!(server.requests().len() < 20, "{}", server.requests().len());
    assert_eq!(repository(&server).tags_after(None, 3).expect("the first ones").len(), 3);
}

#[test]
fn pages_in_a_circle_end() {
    let server = FaultServer::start(|request| {
        let next = if request.path.contains("at=b") { "c" } else { "b" };
        Reply::new(200).header("Link", format!("<?at={next}>; rel=\"next\"")).body(r#"{"tags": ["x"]}"#)
    });
    let error = repository(&server).tags().expect_err("a circle");
    assert!(error.to_string().contains("was there before"), "{error}");
    assert_eq!(server.requests().len(), 3);
}

/// Layers as they are.
struct Plain;

impl Repacker for Plain {
    fn compression(&self) -> LayerCompression {
        LayerCompression::None
    }

    fn name(&self) -> String {
        "plain".to_owned()
    }

    fn repack(&self, layer: &mut (dyn Read + Send), out: &mut (dyn Write + Send)) -> io::Result<()> {
        io::copy(&mut zstd::stream::read::Decoder::new(layer)?, out).map(drop)
    }
}

fn repacked(image: &MemoryImage, directory: &std::path::Path) -> Result<(), Error> {
    let platforms = PlatformChoice::All;
    let options = RepackOptions { repacker: &Plain, is_forced: false, platforms, jobs: 1, directory, ahead: None };
    RepackedSource::new(image, &options, &Silent).map(drop)
}

#[test]
fn manifests_that_would_fill_the_memory_are_refused() {
    let image = MemoryImage::sample("large");
    let mut entries = Vec::new();
    for number in 0..10 {
        let mut manifest: serde_json::Value =
            serde_json::from_slice(image.top().expect("a manifest").bytes()).expect("JSON");
        manifest["annotations"]["padding"] = format!("{number}{}", "x".repeat(7 << 20)).into();
        let child = Manifest::new(None, manifest.to_string().into_bytes()).expect("a manifest");
        entries.push(child.descriptor());
        image.add_manifest(child);
    }
    let index = serde_json::json!({"schemaVersion": 2, "manifests": entries,
        "mediaType": "application/vnd.oci.image.index.v1+json"});
    image.set_top(Manifest::new(None, index.to_string().into_bytes()).expect("an index"));
    let all = CopyOptions { platforms: PlatformChoice::All, ..CopyOptions::default() };
    let error = copy(&image, &MemoryImage::empty(), &all, &Silent).expect_err("too much");
    assert!(error.to_string().contains("64 MiB"), "{error}");
    let directory = tempfile::tempdir().expect("a directory");
    let error = repacked(&image, directory.path()).expect_err("too much");
    assert!(error.to_string().contains("64 MiB"), "{error}");
}

#[test]
fn a_layer_that_expands_without_end_fills_no_disk() {
    let image = MemoryImage::sample("bomb");
    let mut bomb = zstd::Encoder::new(Vec::new(), 1).expect("an encoder");
    io::copy(&mut io::repeat(0).take(300 << 20), &mut bomb).expect("compressed");
    let layer = image.add_blob(MediaType::ImageLayerZstd, bomb.finish().expect("compressed"));
    let mut manifest: serde_json::Value =
        serde_json::from_slice(image.top().expect("a manifest").bytes()).expect("JSON");
    manifest["layers"] = serde_json::json!([layer]);
    image.set_top(Manifest::new(None, manifest.to_string().into_bytes()).expect("a manifest"));
    let directory = tempfile::tempdir().expect("a directory");
    let archive = DockerArchiveDestination::create(&directory.path().join("a.tar"), None).expect("prepared");
    let error = copy(&image, &archive, &CopyOptions::default(), &Silent).expect_err("too much");
    assert!(error.to_string().contains("expands to more than"), "{error}");
    drop(archive);
    let error = repacked(&image, directory.path()).expect_err("too much");
    assert!(error.to_string().contains("expands to more than"), "{error}");
    assert_eq!(std::fs::read_dir(directory.path()).expect("listed").count(), 0);
}
