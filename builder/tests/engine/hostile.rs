//! Inputs that mean harm: each ends with a clear error or does no harm, publishes nothing, and leaves nothing behind.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use oci_spec::image::Digest;
use serde_json::json;

use fixtures::names;

use crate::support::{Bench, SHELL};

/// A member of a tar: kind, name, link target, content.
type Member<'a> = (tar::EntryType, &'a str, &'a str, &'a [u8]);

/// A tar with names as they are given, which libraries would refuse to write.
fn tar_of(members: &[Member<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, name, target, content) in members {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        if matches!(kind, tar::EntryType::Char | tar::EntryType::Block) {
            header.set_device_major(1).expect("ustar has devices");
            header.set_device_minor(3).expect("ustar has devices");
        }
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory takes all");
    encoder.finish().expect("memory takes all")
}

fn digest_of(bytes: &[u8]) -> String {
    let digest: Digest = layerfs::digest_of(bytes);
    digest.to_string()
}

/// An OCI layout with one image of one layer; what it says of the layer may be a lie.
struct Layout {
    blob: Vec<u8>,
    layer_digest: String,
    diff_id: String,
}

impl Layout {
    /// An honest image with this layer.
    fn of(members: &[Member<'_>]) -> Self {
        let tar = tar_of(members);
        let blob = gzip(&tar);
        Self { layer_digest: digest_of(&blob), diff_id: digest_of(&tar), blob }
    }

    fn write(&self, directory: &Path) {
        let blobs = directory.join("blobs/sha256");
        fs::create_dir_all(&blobs).expect("directories");
        let put = |digest: &str, bytes: &[u8]| {
            fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes).expect("written");
        };
        let put_json = |value: &serde_json::Value| {
            let bytes = value.to_string().into_bytes();
            put(&digest_of(&bytes), &bytes);
            (digest_of(&bytes), bytes.len())
        };
        put(&self.layer_digest, &self.blob);
        let (config, config_size) = put_json(&json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": { "type": "layers", "diff_ids": [self.diff_id] },
        }));
        let (manifest, manifest_size) = put_json(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": self.layer_digest, "size": self.blob.len(),
            }],
        }));
        fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("written");
        let index = json!({ "schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": manifest_size,
        }] });
        fs::write(directory.join("index.json"), index.to_string()).expect("written");
    }
}

/// A bench with a base image called `base`, and a file outside of everything that must stay as it is.
fn on_base(layout: &Layout) -> Bench {
    let bench = Bench::with_busybox();
    layout.write(&bench.path("layout"));
    bench.file("../victim/file", "unharmed").file("input", "input");
    bench
}

const BASE: [&str; 2] = ["--build-context", "base=oci-layout://layout"];

fn assert_unharmed(bench: &Bench) {
    assert_eq!(names(&bench.path("victim")), ["file"]);
    assert_eq!(fs::read(bench.path("victim/file")).expect("there"), b"unharmed");
    assert!(!Path::new("/nacre-was-here").exists());
    bench.assert_clean();
}

/// Asserts that a build says `words`, names nothing, and harms nothing.
#[track_caller]
fn assert_refused(bench: &Bench, words: &str) {
    let error = bench.build(&[&BASE[..], &["-t", "bad"]].concat());
    assert!(matches!(error.code, Some(1 | 3)), "{error:?}");
    assert!(error.stderr.contains(words), "{words}: {}", error.stderr);
    assert!(!error.stderr.contains("panicked"), "{}", error.stderr);
    assert!(!fs::read_to_string(bench.store().join("index.json")).expect("a store").contains("bad"));
    assert_unharmed(bench);
}

#[test]
fn names_of_a_base_layer_never_lead_out_of_it() {
    use tar::EntryType::{Link, Regular};
    for (members, words) in [
        (vec![(Regular, "../victim/file", "", &b"harm"[..])], "leads out of the root"),
        (vec![(Regular, "a/../../victim/file", "", b"harm")], "leads out of the root"),
        (vec![(Link, "here", "../../../etc/passwd", b"")], "leads out of the root"),
        (vec![(Link, "here", "nowhere", b"")], "nowhere"),
    ] {
        let bench = on_base(&Layout::of(&members));
        bench.dockerfile("FROM base\nCOPY input /input");
        assert_refused(&bench, words);
    }
}

#[test]
fn an_absolute_name_of_a_base_layer_is_one_below_its_root() {
    let bench = on_base(&Layout::of(&[(tar::EntryType::Regular, "/nacre-was-here", "", b"x")]));
    bench.dockerfile("FROM base\nCOPY input /input");
    assert!(bench.tree(&BASE).join("nacre-was-here").exists());
    assert_unharmed(&bench);
}

#[test]
fn links_of_a_base_image_are_followed_inside_of_it_only() {
    use tar::EntryType::{Directory, Symlink};
    let bench = Bench::new();
    let victim = bench.path("victim");
    let victim = victim.to_str().expect("text");
    let layout = Layout::of(&[
        (Symlink, "etc", "/../../../../../..", b""),
        (Symlink, "out", victim, b""),
        (Symlink, "up", "../../../..", b""),
        (Directory, "bin", "", b""),
    ]);
    let bench = on_base(&layout);
    bench.dockerfile(
        "FROM base\nCOPY input /etc/file\nCOPY input /out/file\nCOPY input /up/nacre-was-here\nWORKDIR /out/w\n\
         COPY busybox /bin/sh\nRUN echo harm > /out/w/file; echo harm > /etc/nacre-was-here",
    );
    bench.build(&BASE).succeeds();
    assert_unharmed(&bench);
    assert!(!Path::new(victim).join("w").exists());
}

#[test]
fn devices_of_a_base_image_are_data_and_cannot_be_opened() {
    let members = [(tar::EntryType::Char, "null", "", &b""[..]), (tar::EntryType::Block, "disk", "", b"")];
    let bench = on_base(&Layout::of(&members));
    bench.dockerfile(
        "FROM base\nCOPY busybox /bin/sh\n\
         RUN [ -c /null ] && [ -b /disk ] && ! (echo x > /null) && ! (read x < /disk)",
    );
    bench.build(&BASE).succeeds();
    assert_unharmed(&bench);
}

#[test]
fn a_base_image_for_another_machine_is_told() {
    let bench = on_base(&Layout::of(&[]));
    let arguments = [&BASE[..], &["--platform", "linux/s390x"]].concat();
    let words = "InvalidBaseImagePlatform: Base image base was pulled with platform \"linux/amd64\"";
    let stderr = bench.dockerfile("FROM base\nCOPY input /input").build(&arguments).succeeds().stderr;
    assert!(stderr.contains(words), "{stderr}");
    let skipped = "# check=skip=InvalidBaseImagePlatform\nFROM base\nCOPY input /input";
    let stderr = bench.dockerfile(skipped).build(&arguments).succeeds().stderr;
    assert!(!stderr.contains("InvalidBaseImagePlatform"), "{stderr}");
}

#[test]
fn layers_that_are_not_what_they_say_are_refused() {
    let honest = || Layout::of(&[(tar::EntryType::Regular, "f", "", b"content")]);
    let other = digest_of(b"something else");
    let mut truncated = honest();
    truncated.blob.truncate(truncated.blob.len() / 2);
    truncated.layer_digest = digest_of(&truncated.blob);
    let flipped = Layout { blob: gzip(&tar_of(&[])), ..honest() };
    let lying = Layout { diff_id: other, ..honest() };
    let garbage = Layout { blob: b"no layer".to_vec(), layer_digest: digest_of(b"no layer"), ..honest() };
    for (layout, words) in
        [(truncated, "incomplete deflate stream"), (flipped, "digest"), (lying, "diff id"), (garbage, "layer")]
    {
        let bench = on_base(&layout);
        bench.dockerfile("FROM base\nCOPY input /input");
        assert_refused(&bench, words);
    }
}

#[test]
fn a_layer_that_expands_without_end_meets_a_limit() {
    // 64 MiB of nothing become some tens of kilobytes.
    let tar = tar_of(&[(tar::EntryType::Regular, "zeros", "", &vec![0; 64 << 20])]);
    let blob = gzip(&tar);
    assert!(blob.len() < 1 << 20);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = layerfs::Store::open(directory.path()).expect("a store").with_layer_limit(16 << 20);
    let digest: Digest = digest_of(&blob).parse().expect("a digest");
    let media_type = oci_spec::image::MediaType::ImageLayerGzip;
    let descriptor = oci_spec::image::Descriptor::new(media_type, blob.len() as u64, digest);
    let error = store.ingest_layer(blob.as_slice(), &descriptor, None).expect_err("over the limit");
    assert!(error.to_string().contains("16777216"), "{error}");
    assert_eq!(names(&directory.path().join("layers")), [""; 0]);
}

#[test]
fn archives_of_add_stay_below_their_destination() {
    use tar::EntryType::{Link, Regular, Symlink};
    let bench = on_base(&Layout::of(&[]));
    let victim = bench.path("victim");
    let victim = victim.to_str().expect("text");
    let archive = tar_of(&[
        (Regular, "../../../../../../nacre-was-here", "", b"harm"),
        (Regular, "/nacre-was-here", "", b"harm"),
        (Symlink, "out", victim, b""),
        (Regular, "out/file", "", b"harm"),
        (Symlink, "up", "../../..", b""),
        (Regular, "up/nacre-was-here", "", b"harm"),
    ]);
    bench.file("a.tar", archive).dockerfile("FROM scratch\nADD a.tar /d/");
    bench.build(&[]).succeeds();
    assert_unharmed(&bench);
    bench.file("a.tar", tar_of(&[(Link, "here", "../../../../etc/passwd", b"")]));
    let error = bench.build(&[]).fails(1);
    assert!(error.contains("hard link to /d/etc/passwd, which is not there"), "{error}");
    // Cut in the middle of a member.
    let cut = tar_of(&[(Regular, "f", "", &[1; 4096])])[..2048].to_vec();
    assert!(bench.file("a.tar", cut).build(&[]).fails(1).contains("Dockerfile:2"));
    assert_unharmed(&bench);
}

#[test]
fn dockerfiles_that_mean_harm_end_with_an_error() {
    let bench = Bench::new();
    let deep = format!("FROM scratch\nLABEL a={}x{}", "${b:-".repeat(5000), "}".repeat(5000));
    // Each variable is the last one ten times over.
    let growing: String = (1..40).map(|at| format!("ENV v{at}={}\n", format!("$v{}", at - 1).repeat(10))).collect();
    let cases: [(Vec<u8>, &str); 9] = [
        (deep.into_bytes(), "Dockerfile:2"),
        (format!("FROM scratch\nENV v0=xxxxxxxxxx\n{growing}").into_bytes(), "Dockerfile:"),
        (b"FROM scratch\nCOPY <<END /\nnever".to_vec(), "END"),
        (vec![0xff; 100], "Dockerfile:1"),
        (b"FROM scratch AS a\nFROM a AS b\nCOPY --from=b / /".to_vec(), "circular"),
        (b"FROM scratch\nCOPY [\"\", \"/x\"".to_vec(), "Dockerfile:2"),
        (b"FROM ../../etc/passwd\nCOPY a b".to_vec(), "Dockerfile:1"),
        (b"FROM scratch\nUSER 99999999999\nRUN [\"x\"]".to_vec(), "99999999999"),
        (b"FROM scratch\nCOPY Dockerfile /a\nCOPY Dockerfile /a/b".to_vec(), "something else is there"),
    ];
    for (text, words) in cases {
        let error = bench.file("Dockerfile", &text).build(&["-t", "bad"]);
        let start = String::from_utf8_lossy(&text[..text.len().min(60)]).into_owned();
        assert_eq!(error.code, Some(1), "{start}: {}", error.stderr);
        assert!(error.stderr.contains(words) && !error.stderr.contains("panicked"), "{start}: {}", error.stderr);
        let index = fs::read_to_string(bench.store().join("index.json")).unwrap_or_default();
        assert!(!index.contains("bad"));
    }
    bench.assert_clean();
}

#[test]
fn ignore_files_and_contexts_that_mean_harm_do_none() {
    let bench = Bench::new();
    bench.file("f", "f").file("../victim/file", "unharmed").dockerfile("FROM scratch\nCOPY . /");
    // Patterns that take exponential time where wildcards are tried one after the other.
    let stars = format!("{}b\n", "*a".repeat(60)).repeat(200);
    bench.file(".dockerignore", &stars).file("a".repeat(200).as_str(), "x");
    bench.build(&[]).succeeds();
    bench.file(".dockerignore", "[a-\n");
    assert!(bench.build(&[]).fails(1).contains(".dockerignore"));
    fs::remove_file(bench.path("context/.dockerignore")).expect("removed");
    std::os::unix::fs::symlink("../victim", bench.path("context/out")).expect("a link");
    std::os::unix::fs::symlink("loop", bench.path("context/loop")).expect("a link");
    bench.dockerfile("FROM scratch\nCOPY out/file /");
    bench.build(&[]).fails(1);
    bench.dockerfile("FROM scratch\nCOPY loop /");
    assert!(bench.build(&[]).fails(1).contains("Dockerfile:2"));
    assert_unharmed(&bench);
}

#[test]
fn a_step_cannot_reach_the_store_or_the_machine() {
    let bench = Bench::with_busybox();
    let store = bench.store();
    bench.dockerfile(&format!(
        "{SHELL}RUN ! ls {} && ! mount -t proc p /mnt && mknod /null c 1 3 && ! (echo x > /null) && echo x > /dev/null",
        store.display()
    ));
    bench.build(&[]).succeeds();
    bench.assert_clean();
}

#[test]
fn thousands_of_stages_one_on_another_are_built() {
    let bench = Bench::new();
    let mut text = "FROM scratch AS s0\nCOPY Dockerfile /\n".to_owned();
    for stage in 1..5000 {
        text.push_str(&format!("FROM s{} AS s{stage}\n", stage - 1));
    }
    bench.dockerfile(&text);
    assert_eq!(bench.build(&[]).succeeds().digest(), bench.build(&["--jobs=1"]).succeeds().digest());
}

#[test]
fn paths_that_no_system_call_takes_are_refused_at_once() {
    let bench = Bench::new();
    let long = "/a".repeat(20_000);
    for step in [format!("WORKDIR {long}"), format!("COPY Dockerfile {long}/")] {
        bench.dockerfile(&format!("FROM scratch\n{step}\n"));
        assert!(bench.build(&[]).fails(1).contains("too long"), "{step}");
    }
}

#[test]
fn a_dockerfile_without_end_is_refused() {
    let bench = Bench::new();
    assert!(bench.build(&["-f", "/dev/zero"]).fails(1).contains("too large"));
    for arguments in [&["build", "-f", "-", "context"][..], &["build", "-"]] {
        let mut command = bench.command(arguments);
        let endless = std::fs::File::open("/dev/zero").expect("a device");
        let done = bench.done(command.stdin(endless).output().expect("runs"));
        assert!(done.fails(1).contains("too large"), "{arguments:?}");
    }
}
