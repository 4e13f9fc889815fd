//! Every `-o type=...` and its options, seen by other tools.

use std::fs;
use std::process::{Command, Stdio};

use fixtures::registry::Registry;
use fixtures::{names, run};
use serde_json::Value;

use crate::support::Bench;

/// A build of two layers on nothing.
fn bench() -> Bench {
    let bench = Bench::new();
    bench
        .file("a", "content of a\n".repeat(10_000))
        .file("d/b", "b")
        .dockerfile("FROM scratch\nCOPY a /a\nCOPY d /d\n");
    bench
}

fn skopeo(arguments: &[&str]) -> Value {
    serde_json::from_str(&run("skopeo", arguments)).expect("JSON")
}

fn media_types(manifest: &Value) -> Vec<&str> {
    manifest["layers"]
        .as_array()
        .expect("layers")
        .iter()
        .map(|layer| layer["mediaType"].as_str().expect("text"))
        .collect()
}

#[test]
fn layers_of_each_compression_are_read_by_other_tools_and_have_one_diff_id() {
    let (bench, registry) = (bench(), Registry::open());
    let plain = bench.build(&[]).config();
    for (options, media_type) in [
        ("compression=zstd", "application/vnd.oci.image.layer.v1.tar+zstd"),
        ("compression=zstd,compression-level=19", "application/vnd.oci.image.layer.v1.tar+zstd"),
        ("compression=gzip,compression-level=9", "application/vnd.oci.image.layer.v1.tar+gzip"),
        ("compression=uncompressed", "application/vnd.oci.image.layer.v1.tar"),
        ("oci-mediatypes=false", "application/vnd.docker.image.rootfs.diff.tar.gzip"),
    ] {
        let name = format!("{}/app:1", registry.address());
        let digest = bench.build(&["-o", &format!("type=registry,name={name},{options}")]).digest();
        let raw = run("skopeo", &["inspect", "--raw", "--tls-verify=false", &format!("docker://{name}")]);
        assert_eq!(layerfs::digest_of(raw.as_bytes()).to_string(), digest, "{options}");
        let manifest: Value = serde_json::from_str(&raw).expect("JSON");
        assert_eq!(media_types(&manifest), [media_type; 2], "{options}");
        let config = skopeo(&["inspect", "--config", "--tls-verify=false", &format!("docker://{name}")]);
        assert_eq!(config["rootfs"], plain["rootfs"], "{options}");
        // What skopeo unpacks has the diff ids for digests.
        let to = format!("dir:{}", bench.text("unpacked"));
        run("skopeo", &["copy", "-q", "--src-tls-verify=false", "--dest-decompress", &format!("docker://{name}"), &to]);
        for diff_id in plain["rootfs"]["diff_ids"].as_array().expect("diff ids") {
            let file = diff_id.as_str().expect("text").trim_start_matches("sha256:");
            let bytes = fs::read(bench.path("unpacked").join(file)).expect("unpacked");
            assert_eq!(layerfs::digest_of(&bytes).to_string(), *diff_id, "{options}");
        }
        // The same for any number of threads, in another store.
        let other = self::bench();
        let again = other.build(&["--threads", "3", "-o", &format!("type=registry,name={name},{options}")]);
        assert_eq!(again.digest(), digest, "{options}");
    }
}

#[test]
fn base_layers_keep_their_packing_unless_it_is_forced() {
    let bench = bench();
    bench.build(&["-t", "base"]).succeeds();
    bench.file("c", "c").dockerfile("FROM base\nCOPY c /c\n");
    let types = |options: &str| {
        bench.build(&["-o", &format!("type=oci,dest=out,tar=false,compression=zstd{options}")]).succeeds();
        let manifest = skopeo(&["inspect", "--raw", &format!("oci:{}", bench.text("out"))]);
        fs::remove_dir_all(bench.path("out")).expect("removed");
        media_types(&manifest)
            .iter()
            .map(|kind| kind.rsplit('+').next().expect("a part").to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(types(""), ["gzip", "gzip", "zstd"]);
    assert_eq!(types(",force-compression=true"), ["zstd", "zstd", "zstd"]);
}

#[test]
fn archives_and_layouts_are_read_by_other_tools() {
    let bench = bench();
    let outputs =
        ["type=oci,dest=oci.tar,compression=zstd", "type=oci,dest=layout,tar=false", "type=docker,dest=docker.tar"];
    let mut arguments = vec!["-t", "app:1", "-t", "other:2"];
    arguments.extend(outputs.iter().flat_map(|output| ["-o", output]));
    bench.build(&arguments).succeeds();
    for (place, tag) in [("oci-archive:oci.tar", "1"), ("oci-archive:oci.tar", "2"), ("oci:layout", "2")] {
        let (kind, path) = place.split_once(':').expect("a place");
        skopeo(&["inspect", &format!("{kind}:{}:{tag}", bench.text(path))]);
    }
    let index = skopeo_index(&bench);
    let entry = &index["manifests"][0];
    assert_eq!(entry["annotations"]["io.containerd.image.name"], "docker.io/library/app:1");
    assert_eq!(entry["annotations"]["org.opencontainers.image.created"], "1970-01-01T00:00:00Z");
    assert_eq!(entry["platform"]["os"], "linux");
    let bundle = bench.text("bundle");
    run("umoci", &["unpack", "--rootless", "--image", &format!("{}:1", bench.text("layout")), &bundle]);
    assert_eq!(fs::read(bench.path("bundle/rootfs/d/b")).expect("unpacked"), b"b");
    for name in ["app:1", "other:2"] {
        skopeo(&["inspect", &format!("docker-archive:{}:{name}", bench.text("docker.tar"))]);
    }
    bench.build(&["-t", "app:1", "-o", "type=docker,dest=parts,tar=false"]).succeeds();
    assert!(names(&bench.path("parts")).contains(&"manifest.json".to_owned()));
}

fn skopeo_index(bench: &Bench) -> Value {
    serde_json::from_slice(&fs::read(bench.path("layout/index.json")).expect("an index")).expect("JSON")
}

#[test]
fn a_tar_on_standard_output_is_all_that_is_there() {
    let bench = bench();
    for kind in ["oci", "docker", "tar"] {
        let output = bench.command(&["build", "-t", "app", "-o", &format!("type={kind}"), "context"]).output();
        let output = output.expect("the program runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut tar = Command::new("tar")
            .args(["-x", "-O", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("tar runs");
        std::io::Write::write_all(tar.stdin.as_mut().expect("piped"), &output.stdout).expect("read by tar");
        assert!(tar.wait().expect("waited").success(), "{kind}");
        assert!(output.stdout.ends_with(&[0; 512]), "{kind}: a tar ends with zeros");
    }
    assert!(bench.build(&["-o", "type=oci", "-o", "type=tar"]).fails(2).contains("standard output"));
}

#[test]
fn a_tar_replaces_a_file_and_is_written_to_a_pipe() {
    let bench = bench();
    let (file, pipe) = (bench.path("out.tar"), bench.path("pipe"));
    std::fs::write(&file, "older").expect("written");
    std::os::unix::fs::symlink("out.tar", bench.path("link")).expect("linked");
    bench.build(&["-o", &format!("type=tar,dest={}", bench.path("link").display())]).succeeds();
    assert!(bench.path("link").is_symlink());
    let tar = std::fs::read(&file).expect("there");
    assert!(tar.ends_with(&[0; 512]));
    run("mkfifo", &[pipe.to_str().expect("text")]);
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::read(pipe).expect("read")
    });
    bench.build(&["-o", &format!("type=tar,dest={}", pipe.display())]).succeeds();
    assert!(reader.join().expect("no panic") == tar, "the same bytes");
}

#[test]
fn several_names_digests_and_forms_of_one_build_go_out_at_once() {
    let (bench, registry) = (bench(), Registry::open());
    let address = registry.address();
    let named = format!("type=registry,\"name={address}/a:1,{address}/b:2\"");
    let by_digest = format!("type=image,name={address}/c,push=true,push-by-digest=true,compression=zstd");
    let done = bench.build(&["-o", &named, "-o", &by_digest, "-o", "type=cacheonly", "--metadata-file", "meta"]);
    let digest = done.digest();
    for name in ["a:1", "b:2"] {
        let found = skopeo(&["inspect", "--tls-verify=false", &format!("docker://{address}/{name}")]);
        assert_eq!(found["Digest"], digest.as_str());
    }
    let metadata: Value = serde_json::from_slice(&fs::read(bench.path("meta")).expect("written")).expect("JSON");
    assert_eq!(metadata["containerimage.digest"], digest.as_str());
    assert_eq!(metadata["image.name"], format!("{address}/a:1,{address}/b:2"));
    assert!(metadata["containerimage.config.digest"].as_str().is_some_and(|text| text.starts_with("sha256:")));
    // The one without a tag is found by the digest under which the store has it.
    let images = bench.run(&["images", "--format", "json"]).succeeds().stdout;
    let other = images.split(&format!("{address}/c@")).nth(1).expect("it is listed").split('"').next().expect("a name");
    skopeo(&["inspect", "--no-tags", "--tls-verify=false", &format!("docker://{address}/c@{other}")]);
    let tagged = format!("type=registry,name={address}/c:1,push-by-digest=true");
    assert!(bench.build(&["-o", &tagged]).fails(1).contains("push-by-digest"));
}

#[test]
fn annotations_are_on_the_documents_that_they_name() {
    let bench = bench();
    let arguments = [
        "--platform",
        "linux/amd64,linux/arm64",
        "-o",
        "type=oci,dest=layout,tar=false,annotation.b=field",
        "--annotation",
        "a=manifest",
        "--annotation",
        "manifest[linux/arm64]:a=arm",
        "--annotation",
        "index,index-descriptor:i=index",
        "--annotation",
        "manifest-descriptor[linux/amd64]:d=amd",
    ];
    bench.build(&arguments).succeeds();
    let layout = skopeo_index(&bench);
    let created = "1970-01-01T00:00:00Z";
    let of_entry = serde_json::json!({"i": "index", "org.opencontainers.image.created": created});
    assert_eq!(layout["manifests"][0]["annotations"], of_entry);
    assert_eq!(layout["manifests"][0].get("platform"), None);
    let document = |descriptor: &Value| -> Value {
        let digest = descriptor["digest"].as_str().expect("a digest").trim_start_matches("sha256:");
        let path = bench.path("layout/blobs/sha256").join(digest);
        serde_json::from_slice(&fs::read(path).expect("there")).expect("JSON")
    };
    let index = document(&layout["manifests"][0]);
    assert_eq!(index["annotations"], serde_json::json!({"i": "index"}));
    assert_eq!(index["manifests"][0]["annotations"], serde_json::json!({"d": "amd"}));
    assert_eq!(index["manifests"][1].get("annotations"), None);
    let of_images = [0, 1].map(|number| document(&index["manifests"][number])["annotations"].clone());
    assert_eq!(of_images[0], serde_json::json!({"a": "manifest", "b": "field"}));
    assert_eq!(of_images[1], serde_json::json!({"a": "arm", "b": "field"}));
    // What has no place is an error.
    for annotation in ["index:a=b", "manifest[linux/s390x]:a=b"] {
        assert!(bench.build(&["--annotation", annotation]).fails(1).contains("no place"), "{annotation}");
    }
    assert!(bench.build(&["--annotation", "a=b", "-o", "out"]).fails(2).contains("--annotation"));
}

#[test]
fn mode_delete_makes_a_directory_equal_to_the_result() {
    let bench = bench();
    for file in ["out/stale/deep/file", "out/a/was-a-directory", "out/d/stale", "outside"] {
        let path = bench.path(file);
        fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
        fs::write(path, "").expect("written");
    }
    std::os::unix::fs::symlink(bench.path("outside"), bench.path("out/link")).expect("a link");
    bench.build(&["-o", "type=local,dest=out,mode=delete"]).succeeds();
    assert_eq!(
        (names(&bench.path("out")), names(&bench.path("out/d"))),
        (vec!["a".into(), "d".into()], vec!["b".into()])
    );
    assert!(bench.path("outside").exists());
    bench.build(&["-o", "type=local,dest=split,platform-split=true", "--platform", "linux/arm64"]).succeeds();
    assert!(bench.path("split/linux_arm64/d/b").exists());
}

#[test]
fn an_index_of_one_image_is_an_index_in_every_output() {
    let bench = bench();
    let oci = "type=oci,dest=layout,tar=false,name=app:1,compression=zstd,annotation-index.a=b";
    let outputs = ["-o", oci, "-o", "type=local,dest=out", "-o", "type=tar,dest=out.tar", "--metadata-file", "meta"];
    let flags = [&outputs[..], &["--build-arg", "BUILDKIT_MULTI_PLATFORM=1", "--platform", "linux/arm64"]].concat();
    let digest = bench.build(&flags).succeeds().digest();
    let blob = bench.path("layout/blobs/sha256").join(digest.split(':').nth(1).expect("a digest"));
    let index: Value = serde_json::from_slice(&fs::read(blob).expect("written")).expect("JSON");
    assert_eq!((&index["annotations"]["a"], &index["manifests"][0]["platform"]["os"]), (&"b".into(), &"linux".into()));
    assert!(bench.path("out/linux_arm64/d/b").exists());
    assert!(run("tar", &["-tf", bench.path("out.tar").to_str().expect("text")]).starts_with("linux_arm64/"));
    let metadata: Value = serde_json::from_slice(&fs::read(bench.path("meta")).expect("written")).expect("JSON");
    assert_eq!(metadata["image.name"], "docker.io/library/app:1");
    assert!(metadata.get("containerimage.config.digest").is_none());
}

#[test]
fn images_of_several_platforms_share_a_directory_where_their_files_have_other_names() {
    let bench = Bench::new();
    bench.file("f", "x").dockerfile("FROM scratch\nARG TARGETARCH\nCOPY f /bin/tool-$TARGETARCH\n");
    let build = |out: &str| bench.build(&["-o", out, "--platform", "linux/amd64,linux/arm64"]);
    build("type=local,dest=out,platform-split=false").succeeds();
    assert_eq!(names(&bench.path("out/bin")), ["tool-amd64", "tool-arm64"]);
    bench.dockerfile("FROM scratch\nCOPY f /bin/tool\n");
    let told = build("type=local,dest=other,platform-split=false").fails(1);
    assert!(told.contains("\"bin/tool\" is in the images for linux/amd64 and for linux/arm64"), "{told}");
    assert!(!bench.path("other").exists());
}

#[test]
fn a_local_output_takes_the_place_of_other_kinds_and_a_failed_one_leaves_what_was_there() {
    let bench = Bench::new();
    bench
        .file("files/dir/f", "new")
        .file("files/file", "new")
        .file("files/link", "new")
        .dockerfile("FROM scratch\nCOPY files /\n");
    let old = || {
        _ = fs::remove_dir_all(bench.path("out"));
        fs::create_dir_all(bench.path("out/file/deep")).expect("directories");
        fs::write(bench.path("out/dir"), "old").expect("written");
        fs::write(bench.path("elsewhere"), "old").expect("written");
        std::os::unix::fs::symlink("../elsewhere", bench.path("out/link")).expect("a link");
    };
    old();
    bench.build(&["-o", "out"]).succeeds();
    for name in ["dir/f", "file", "link"] {
        assert_eq!(fs::read_to_string(bench.path("out").join(name)).expect("there"), "new", "{name}");
    }
    assert_eq!(
        (names(&bench.path("out")).len(), fs::read_to_string(bench.path("elsewhere")).expect("there")),
        (3, "old".into())
    );
    // A file that does not fit leaves the old one, and no part of itself.
    bench.file("files/file", vec![b'x'; 1 << 20]).file("files/link", "");
    let small = bench.path("small");
    fs::create_dir(&small).expect("a directory");
    run("mount", &["-t", "tmpfs", "-o", "size=256k", "tmpfs", small.to_str().expect("text")]);
    fs::write(small.join("file"), "old").expect("written");
    let failed = bench.build(&["-o", "small"]);
    let left = (names(&small), fs::read_to_string(small.join("file")));
    run("umount", &[small.to_str().expect("text")]);
    assert!(failed.fails(1).contains("No space left"));
    assert_eq!((left.0, left.1.expect("there")), (vec!["dir".into(), "file".into()], "old".into()));
    // A build that fails exports nothing.
    bench.dockerfile("FROM scratch\nCOPY nowhere /\n");
    bench.build(&["-o", "never"]).fails(1);
    assert!(!bench.path("never").exists());
}

#[test]
fn podman_runs_an_image_that_was_pushed_with_zstd_layers() {
    let registry = Registry::open();
    let bench = Bench::with_busybox();
    bench.dockerfile("FROM scratch\nCOPY busybox /bin/busybox\nCMD [\"/bin/busybox\", \"echo\", \"it runs\"]\n");
    let name = format!("{}/app:zstd", registry.address());
    bench.build(&["-o", &format!("type=registry,name={name},compression=zstd")]).succeeds();
    let (root, state) = (bench.text("podman"), bench.text("podman-run"));
    let podman = ["--storage-driver", "vfs", "--root", &root, "--runroot", &state];
    run("podman", &[&podman[..], &["pull", "-q", "--tls-verify=false", &name]].concat());
    let listed = run("podman", &[&podman[..], &["images", "-q"]].concat());
    assert_eq!(listed.lines().count(), 1);
    run("podman", &[&podman[..], &["rmi", "-a", "-f"]].concat());
}
