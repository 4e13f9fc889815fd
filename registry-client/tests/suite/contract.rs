//! What every place promises, checked for each of them.

use std::io::{Cursor, Read};
use std::path::Path;

use fixtures::fault::{FaultServer, Reply};
use fixtures::registry::Registry;
use oci_spec::image::{Descriptor, Digest};
use registry_client::*;

use crate::support::*;

/// Content that is not what its descriptor says.
struct Lie<'a>(&'a Descriptor, Vec<u8>);

impl Content for Lie<'_> {
    fn open(&self) -> Result<Box<dyn Read + Send + '_>, Error> {
        Ok(Box::new(VerifyingReader::new(Cursor::new(&self.1), self.0)?))
    }
}

/// Makes the two faces of a place that is empty at first.
struct Place<'a> {
    destination: &'a dyn Fn() -> Box<dyn Destination>,
    source: &'a dyn Fn() -> Result<Box<dyn Source>, Error>,
}

fn check(place: &Place<'_>) {
    nothing_is_there_before_something_is_put(place);
    wrong_content_is_not_published(place);
    what_is_put_comes_back(place);
    what_is_missing_is_an_error(place);
}

fn nothing_is_there_before_something_is_put(place: &Place<'_>) {
    let found = (place.source)().and_then(|source| source.manifest(None));
    assert!(found.is_err(), "an empty place has a manifest");
}

fn wrong_content_is_not_published(place: &Place<'_>) {
    let image = MemoryImage::of_tars("lies");
    let descriptor = image.layers().remove(0);
    let good = image.blobs()[descriptor.digest().as_ref()].clone();
    let destination = (place.destination)();
    let mut flipped = good.clone();
    flipped[20] ^= 1;
    let mut longer = good.clone();
    longer.push(0);
    for bad in [flipped, longer, good[..good.len() - 1].to_vec(), Vec::new()] {
        let error = destination.put_blob(&descriptor, &Lie(&descriptor, bad)).expect_err("a lie was stored");
        assert!(matches!(error.cause(), Cause::DigestMismatch { .. } | Cause::SizeMismatch { .. }), "{error}");
        assert!(!destination.has_blob(&descriptor).expect("looked up"), "a lie was published");
    }
    assert_eq!(destination.put_blob(&descriptor, &Lie(&descriptor, good.clone())).expect("stored"), Stored::Sent);
    assert!(destination.has_blob(&descriptor).expect("looked up"));
    destination.put_blob(&descriptor, &Lie(&descriptor, good)).expect("storing it again is harmless");
}

fn what_is_put_comes_back(place: &Place<'_>) {
    for seed in ["first", "second"] {
        let image = MemoryImage::of_tars(seed);
        let copied = copy(&image, &*(place.destination)(), &CopyOptions::default(), &Silent).expect("stored");
        assert_eq!(*copied.manifest.digest(), image.digest());
        let back = MemoryImage::empty();
        copy(&*(place.source)().expect("opened"), &back, &CopyOptions::default(), &Silent).expect("read");
        assert!(back.plain_layers() == image.plain_layers());
    }
}

fn what_is_missing_is_an_error(place: &Place<'_>) {
    let source = (place.source)().expect("opened");
    let absent = MemoryImage::sample("absent");
    assert!(
        source
            .open_blob(&absent.layers()[0])
            .and_then(|mut content| {
                content.read_to_end(&mut Vec::new()).map_err(|error| Error::from_io("read", "x", error))
            })
            .is_err()
    );
    let digest: Digest = absent.digest();
    let error = source.manifest(Some(&digest)).expect_err("an absent manifest was found");
    assert!(error.to_string().contains("cannot "), "{error}");
}

#[test]
fn a_layout_keeps_the_contract() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("layout");
    let layout = || OciLayout::new(&path, Some("app:1".to_owned()));
    check(&Place { destination: &|| Box::new(layout()), source: &|| Ok(Box::new(layout())) });
}

#[test]
fn a_directory_keeps_the_contract_and_holds_one_image() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("a/b");
    let place = || ImageDirectory::new(&path);
    check(&Place { destination: &|| Box::new(place()), source: &|| Ok(Box::new(place())) });
    let image = MemoryImage::of_tars("last");
    copy(&image, &place(), &CopyOptions::default(), &Silent).expect("stored");
    let files = std::fs::read_dir(&path).expect("there").count();
    assert_eq!(files, image.blobs().len() + 2, "the image before it left files");
    std::fs::write(directory.path().join("mine"), "mine").expect("written");
    let error = copy(&image, &ImageDirectory::new(directory.path()), &CopyOptions::default(), &Silent);
    assert!(error.expect_err("it is not empty").to_string().contains("none of an image"));
    assert!(directory.path().join("mine").exists());
}

#[test]
fn an_oci_archive_keeps_the_contract() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("image.tar");
    check(&Place {
        destination: &|| Box::new(OciArchiveDestination::create(&file, None).expect("created")),
        source: &|| Ok(Box::new(OciArchiveSource::open(&file, None)?)),
    });
    assert_only(directory.path(), "image.tar");
}

#[test]
fn a_docker_archive_keeps_the_contract() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("image.tar");
    let name: Reference = "app:1".parse().expect("a reference");
    check(&Place {
        destination: &|| Box::new(DockerArchiveDestination::create(&file, Some(name.clone())).expect("created")),
        source: &|| Ok(Box::new(DockerArchiveSource::open(&file, Some(&name))?)),
    });
    assert_only(directory.path(), "image.tar");
}

#[test]
fn a_registry_keeps_the_contract() {
    let registry = Registry::open();
    let client = Client::new(quick());
    let name: Reference = format!("{}/team/app:1", registry.address()).parse().expect("a reference");
    check(&Place {
        destination: &|| Box::new(RegistryDestination::new(&client, &name).expect("a host")),
        source: &|| Ok(Box::new(RegistrySource::new(&client, &name)?)),
    });
}

#[test]
fn written_archives_are_the_same_bytes_each_time() {
    let directory = tempfile::tempdir().expect("a directory");
    let write = |number: u32| {
        let (oci, docker) = (directory.path().join(format!("o{number}")), directory.path().join(format!("d{number}")));
        let name: Reference = "app:1".parse().expect("a reference");
        let image = MemoryImage::of_tars("same");
        let options = CopyOptions { jobs: 1 + number as usize * 3, ..CopyOptions::default() };
        let destination = OciArchiveDestination::create(&oci, Some("1".to_owned())).expect("created");
        copy(&image, &destination, &options, &Silent).expect("written");
        let destination = DockerArchiveDestination::create(&docker, Some(name)).expect("created");
        copy(&image, &destination, &options, &Silent).expect("written");
        (std::fs::read(oci).expect("read"), std::fs::read(docker).expect("read"))
    };
    assert!(write(0) == write(1));
}

#[test]
fn several_images_live_in_one_layout_and_one_replaces_its_namesake() {
    let directory = tempfile::tempdir().expect("a directory");
    let layout = |tag: &str| OciLayout::new(directory.path(), Some(tag.to_owned()));
    let put = |tag: &str, seed: &str| {
        let image = MemoryImage::sample(seed);
        copy(&image, &layout(tag), &CopyOptions::default(), &Silent).expect("stored");
        image.digest()
    };
    let digest_of = |tag: &str| layout(tag).manifest(None).expect("there").digest().clone();
    let (_, b) = (put("a", "1"), put("b", "2"));
    let a = put("a", "3");
    assert_eq!((digest_of("a"), digest_of("b")), (a, b));
    let error = OciLayout::new(directory.path(), None).manifest(None).expect_err("two images, no name").to_string();
    assert!(error.contains("name one of: b, a"), "{error}");
}

#[test]
fn one_platform_of_an_index_or_all_of_it_is_copied() {
    let image = MemoryImage::index(&["linux/amd64", "linux/arm64/v8", "linux/s390x"]);
    let arm = PlatformChoice::One("linux/arm64".parse().expect("a platform"));
    let one = MemoryImage::empty();
    copy(&image, &one, &CopyOptions { platforms: arm, ..CopyOptions::default() }, &Silent).expect("copied");
    assert_eq!(one.blobs().len(), 3);
    assert_ne!(one.digest(), image.digest());
    let all = MemoryImage::empty();
    let options = CopyOptions { platforms: PlatformChoice::All, ..CopyOptions::default() };
    let copied = copy(&image, &all, &options, &Silent).expect("copied");
    assert_eq!(all.digest(), image.digest());
    assert!(all.blobs() == image.blobs());
    assert_eq!(copied.sent, 9);
    let none = PlatformChoice::One("windows/amd64".parse().expect("a platform"));
    let options = CopyOptions { platforms: none, ..CopyOptions::default() };
    let error = copy(&image, &one, &options, &Silent).expect_err("no such platform").to_string();
    assert!(error.contains("no image for windows/amd64, only for linux/amd64, linux/arm64, linux/s390x"), "{error}");
}

/// A manifest that is known by its SHA-512 digest.
fn known_by_sha512(manifest: &Manifest) -> Manifest {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), manifest.bytes()).expect("written");
    let said = std::process::Command::new("sha512sum").arg(file.path()).output().expect("coreutils are there").stdout;
    let hex = String::from_utf8(said).expect("a sum").split(' ').next().expect("a sum").to_owned();
    let digest = Digest::try_from(format!("sha512:{hex}")).expect("a digest");
    Manifest::known_as(&digest, None, manifest.bytes().to_vec()).expect("it has this digest")
}

#[test]
fn an_image_is_kept_under_the_digest_that_leads_to_it() {
    let image = MemoryImage::sample("sha512");
    let child = known_by_sha512(&image.top().expect("a manifest"));
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [child.descriptor()],
        "mediaType": "application/vnd.oci.image.index.v1+json"});
    image.add_manifest(child.clone());
    image.set_top(Manifest::new(None, index.to_string().into_bytes()).expect("an index"));
    let all = CopyOptions { platforms: PlatformChoice::All, ..CopyOptions::default() };
    let directory = tempfile::tempdir().expect("a directory");
    let layout = OciLayout::new(directory.path(), Some("x".to_owned()));
    copy(&image, &layout, &all, &Silent).expect("copied");
    let again = MemoryImage::empty();
    copy(&layout, &again, &all, &Silent).expect("what was written is whole");
    assert_eq!(Source::manifest(&again, Some(child.digest())).expect("it is there"), child);
    assert!(Manifest::known_as(child.digest(), None, image.top().expect("an index").bytes().to_vec()).is_err());
}

#[test]
fn an_image_is_put_under_a_digest_of_whatever_algorithm() {
    let server = FaultServer::start(|request| match request.method.as_str() {
        "HEAD" => Reply::new(200),
        _ => Reply::new(201),
    });
    let image = MemoryImage::sample("sha512");
    let digest = known_by_sha512(&image.top().expect("a manifest")).digest().clone();
    let reference: Reference = format!("{}/app@{digest}", server.address()).parse().expect("a name");
    let destination = RegistryDestination::new(&Client::new(quick()), &reference).expect("a place");
    destination.put_manifest(&image.top().expect("a manifest"), true).expect("put");
    assert_eq!(server.count("PUT", &format!("/manifests/{digest}")), 1);
    let other = MemoryImage::sample("other").top().expect("a manifest");
    let error = destination.put_manifest(&other, true).expect_err("another manifest");
    assert!(matches!(error.cause(), Cause::DigestMismatch { .. }), "{error}");
}

#[test]
fn many_writers_of_one_layout_lose_no_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let tags: Vec<String> = (0..12).map(|number| format!("t{number}")).collect();
    std::thread::scope(|scope| {
        for tag in &tags {
            let layout = OciLayout::new(directory.path(), Some(tag.clone()));
            scope.spawn(move || {
                copy(&MemoryImage::of_tars(tag), &layout, &CopyOptions::default(), &Silent).expect("put")
            });
        }
    });
    for tag in &tags {
        let found = OciLayout::new(directory.path(), Some(tag.clone())).manifest(None).expect("named");
        assert_eq!(*found.digest(), MemoryImage::of_tars(tag).digest());
    }
}

/// Writes a tar of these files (and links, as `>target`) and opens it as a docker-archive.
fn docker_archive(entries: &[(&str, &[u8])]) -> Result<DockerArchiveSource, Error> {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let mut builder = tar::Builder::new(file.as_file());
    for (name, content) in entries {
        let mut header = tar::Header::new_gnu();
        match content.strip_prefix(b">") {
            Some(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                let target = std::str::from_utf8(target).expect("a name");
                builder.append_link(&mut header, name, target).expect("appended");
            }
            None => {
                header.set_size(content.len() as u64);
                builder.append_data(&mut header, name, *content).expect("appended");
            }
        }
    }
    builder.finish().expect("finished");
    DockerArchiveSource::open(file.path(), None)
}

#[test]
fn layers_of_an_old_docker_that_are_links_are_followed_within_the_archive() {
    let config = format!(r#"{{"rootfs":{{"diff_ids":["{0}","{0}"]}}}}"#, digest_of(b"layer"));
    let manifest = br#"[{"Config":"c.json","RepoTags":null,"Layers":["a/layer.tar","b/layer.tar"]}]"#;
    let source = docker_archive(&[
        ("a/layer.tar", b"layer"),
        ("b/layer.tar", b">../a/layer.tar"),
        ("c.json", config.as_bytes()),
        ("manifest.json", manifest),
    ]);
    let source = source.expect("an archive");
    let image = MemoryImage::empty();
    copy(&source, &image, &CopyOptions::default(), &Silent).expect("read");
    assert!(image.plain_layers() == [b"layer".to_vec(), b"layer".to_vec()]);
}

#[test]
fn hostile_docker_archives_are_errors() {
    let manifest = br#"[{"Config":"c.json","RepoTags":["a:1"],"Layers":["l.tar"]}]"#;
    let outside = br#"[{"Config":"../../etc/passwd","RepoTags":["a:1"],"Layers":["/etc/passwd"]}]"#;
    let config = format!(r#"{{"rootfs":{{"diff_ids":["{}"]}}}}"#, digest_of(b"layer"));
    for entries in [
        vec![],
        vec![("manifest.json", &b"[]"[..])],
        vec![("manifest.json", &b"{"[..])],
        vec![("manifest.json", &manifest[..])],
        vec![("manifest.json", &outside[..])],
        vec![("manifest.json", &manifest[..]), ("c.json", &b">/etc/passwd"[..])],
        vec![("manifest.json", &manifest[..]), ("c.json", &b"{}"[..]), ("l.tar", &b"layer"[..])],
        vec![("manifest.json", &manifest[..]), ("c.json", config.as_bytes())],
        vec![("manifest.json", &manifest[..]), ("c.json", config.as_bytes()), ("l.tar", &b">/etc/passwd"[..])],
    ] {
        let error = docker_archive(&entries).expect_err("it was taken");
        assert_eq!(error.kind(), ErrorKind::User, "{error}");
    }
    let lie = [("manifest.json", &manifest[..]), ("c.json", config.as_bytes()), ("l.tar", &b"other"[..])];
    let lie = docker_archive(&lie).expect("only reading the layer shows it");
    let error = copy(&lie, &MemoryImage::empty(), &CopyOptions::default(), &Silent).expect_err("a lie");
    assert!(matches!(error.cause(), Cause::DigestMismatch { .. }), "{error}");
}

#[test]
fn hostile_layouts_are_errors() {
    let directory = tempfile::tempdir().expect("a directory");
    let read = || OciLayout::new(directory.path(), None).manifest(None);
    let write = |text: &str| std::fs::write(directory.path().join("index.json"), text).expect("written");
    assert!(read().is_err());
    for text in [
        "",
        "{",
        "[]",
        r#"{"manifests":{}}"#,
        r#"{"manifests":[{"mediaType":"m","size":1,"digest":"sha256:../../../etc/passwd"}]}"#,
        r#"{"manifests":[{"mediaType":"m","size":1,"digest":"../x:abc"}]}"#,
        r#"{"manifests":[{"mediaType":"m","size":1,"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}]}"#,
    ] {
        write(text);
        assert!(read().is_err(), "{text}");
    }
    write(&"[".repeat(100_000));
    assert!(read().is_err());
}

/// Nothing but this is in the directory, and it is readable as new files are.
fn assert_only(directory: &Path, name: &str) {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode();
    let archive = mode(&directory.join(name));
    let names: Vec<_> =
        std::fs::read_dir(directory).expect("listed").map(|entry| entry.expect("read").file_name()).collect();
    assert_eq!(names, [name], "something was left behind");
    std::fs::write(directory.join("usual"), "").expect("written");
    assert_eq!(archive, mode(&directory.join("usual")));
}
