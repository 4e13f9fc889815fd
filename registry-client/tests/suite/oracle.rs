//! skopeo (Debian package skopeo) and oci-client (`.ci/peers`) as other opinions: they read what we write, and we read
//! what they write.

use std::collections::BTreeMap;
use std::path::Path;

use fixtures::registry::Registry;
use fixtures::run;
use oci_spec::image::MediaType;
use registry_client::*;

use crate::support::*;

/// Copies with us to `to`, with skopeo from there to a layout, and compares the layers.
fn skopeo_reads(image: &MemoryImage, destination: &dyn Destination, name: &str) {
    copy(image, destination, &CopyOptions::default(), &Silent).expect("written");
    let directory = tempfile::tempdir().expect("a directory");
    let target = format!("oci:{}:x", directory.path().display());
    run("skopeo", &["copy", "--quiet", "--src-tls-verify=false", name, &target]);
    let back = MemoryImage::empty();
    let layout = OciLayout::new(directory.path(), Some("x".to_owned()));
    copy(&layout, &back, &CopyOptions::default(), &Silent).expect("read");
    assert!(back.plain_layers() == image.plain_layers());
}

#[test]
fn skopeo_reads_what_we_write() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name);
    let show = |path: &Path| path.display().to_string();
    let image = MemoryImage::of_tars("ours");
    let name: Reference = "app:1".parse().expect("a reference");
    let layout = OciLayout::new(at("layout"), Some("t".to_owned()));
    skopeo_reads(&image, &layout, &format!("oci:{}:t", show(&at("layout"))));
    skopeo_reads(&image, &ImageDirectory::new(at("dir")), &format!("dir:{}", show(&at("dir"))));
    let archive = OciArchiveDestination::create(&at("o.tar"), None).expect("created");
    skopeo_reads(&image, &archive, &format!("oci-archive:{}", show(&at("o.tar"))));
    let archive = DockerArchiveDestination::create(&at("d.tar"), Some(name)).expect("created");
    skopeo_reads(&image, &archive, &format!("docker-archive:{}:app:1", show(&at("d.tar"))));
    let registry = Registry::open();
    let reference: Reference = format!("{}/app:1", registry.address()).parse().expect("a reference");
    let destination = RegistryDestination::new(&Client::new(quick()), &reference).expect("a host");
    skopeo_reads(&image, &destination, &format!("docker://{reference}"));
    let raw = run("skopeo", &["inspect", "--raw", "--tls-verify=false", &format!("docker://{reference}")]);
    assert_eq!(digest_of(raw.as_bytes()), image.digest());
}

#[test]
fn we_read_what_skopeo_writes() {
    let directory = tempfile::tempdir().expect("a directory");
    let image = MemoryImage::of_layers("theirs", &[MediaType::ImageLayerGzip, MediaType::ImageLayer]);
    let layout = OciLayout::new(directory.path().join("layout"), Some("t".to_owned()));
    copy(&image, &layout, &CopyOptions::default(), &Silent).expect("written");
    let from = Source::name(&layout);
    let registry = Registry::open();
    let archive = directory.path().join("d.tar");
    let read = |source: &dyn Source| {
        let back = MemoryImage::empty();
        copy(source, &back, &CopyOptions::default(), &Silent).expect("read");
        assert!(back.plain_layers() == image.plain_layers());
        back.top().expect("it has a manifest").media_type().to_owned()
    };
    for (number, (format, compression)) in [("v2s2", "gzip"), ("oci", "zstd")].into_iter().enumerate() {
        let reference: Reference = format!("{}/a:{number}", registry.address()).parse().expect("a reference");
        let to = format!("docker://{reference}");
        let options = ["--quiet", "--dest-tls-verify=false", "--format", format, "--dest-compress-format", compression];
        run("skopeo", &[&["copy"][..], &options, &[&from, &to]].concat());
        let media_type = read(&RegistrySource::new(&Client::new(quick()), &reference).expect("a host"));
        assert_eq!(media_type.contains("docker"), format == "v2s2");
    }
    run("skopeo", &["copy", "--quiet", &from, &format!("docker-archive:{}:app:1", archive.display())]);
    read(&DockerArchiveSource::open(&archive, Some(&"app:1".parse().expect("a reference"))).expect("opened"));
    read(&DockerArchiveSource::open(&archive, None).expect("opened"));
    let archive = directory.path().join("o.tar");
    run("skopeo", &["copy", "--quiet", &from, &format!("oci-archive:{}:x", archive.display())]);
    read(&OciArchiveSource::open(&archive, Some("x".to_owned())).expect("opened"));
}

#[test]
fn an_index_in_a_registry_goes_through_skopeo_and_back_unchanged() {
    let registry = Registry::open();
    let client = Client::new(quick());
    let at = |name: &str| -> Reference { format!("{}/{name}", registry.address()).parse().expect("a reference") };
    let image = MemoryImage::index(&["linux/amd64", "linux/arm64/v8"]);
    let all = CopyOptions { platforms: PlatformChoice::All, ..CopyOptions::default() };
    let destination = RegistryDestination::new(&client, &at("ours:1")).expect("a host");
    copy(&image, &destination, &all, &Silent).expect("pushed");
    let (from, to) = (format!("docker://{}", at("ours:1")), format!("docker://{}", at("theirs:1")));
    run(
        "skopeo",
        &[
            "copy",
            "--quiet",
            "--all",
            "--preserve-digests",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
            &from,
            &to,
        ],
    );
    let back = MemoryImage::empty();
    copy(&RegistrySource::new(&client, &at("theirs:1")).expect("a host"), &back, &all, &Silent).expect("pulled");
    assert_eq!(back.digest(), image.digest());
    assert!(back.blobs() == image.blobs());
}

/// The files of a directory.
fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("read"));
    let name = |entry: &std::fs::DirEntry| entry.file_name().into_string().expect("UTF-8");
    entries.map(|entry| (name(&entry), std::fs::read(entry.path()).expect("a file"))).collect()
}

#[test]
fn oci_client_skopeo_and_we_move_the_same_bytes() {
    let Some(peer) = fixtures::peer("oci-client-peer") else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_owned();
    let oci_client = |arguments: &[&str]| run(&peer, arguments);
    let registry = Registry::open();
    let client = Client::new(quick());
    let all = CopyOptions { platforms: PlatformChoice::All, ..CopyOptions::default() };
    let images =
        [("one", MemoryImage::sample("peer")), ("many", MemoryImage::index(&["linux/amd64", "linux/arm64/v8"]))];
    for (kind, image) in images {
        let at = |name: &str| format!("{}/{kind}:{name}", registry.address());
        let push = |name: &str, source: &dyn Source| {
            let destination =
                RegistryDestination::new(&client, &at(name).parse().expect("a reference")).expect("a host");
            copy(source, &destination, &all, &Silent).expect("pushed");
        };
        let pull = |name: &str, destination: &dyn Destination| {
            let source = RegistrySource::new(&client, &at(name).parse().expect("a reference")).expect("a host");
            copy(&source, destination, &all, &Silent).expect("pulled");
        };
        push("ours", &image);
        let [ours, theirs, third] = ["ours", "theirs", "third"].map(|name| path(&format!("{kind}-{name}")));
        pull("ours", &ImageDirectory::new(&ours));
        oci_client(&["pull", &at("ours"), &theirs]);
        let from = format!("docker://{}", at("ours"));
        run(
            "skopeo",
            &["copy", "-q", "--all", "--preserve-digests", "--src-tls-verify=false", &from, &format!("dir:{third}")],
        );
        assert!(files(Path::new(&ours)) == files(Path::new(&theirs)), "{kind}: ours and oci-client's");
        assert!(files(Path::new(&ours)) == files(Path::new(&third)), "{kind}: ours and skopeo's");
        for way in ["chunked", "whole"] {
            oci_client(&["push", &theirs, &at(way), way]);
            let back = MemoryImage::empty();
            pull(way, &back);
            assert!(back.digest() == image.digest() && back.blobs() == image.blobs(), "{kind}: pushed {way}");
        }
    }
}
