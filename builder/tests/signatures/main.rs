//! Signing, checking and policies, as a person uses them, against Debian's registry; openssl and podman look at what was
//! made.
//!
//! Invariant: a test has a store, a home and a registry of its own.

mod desk;
mod gpg;

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use serde_json::{Value, json};

use desk::Desk;
use fixtures::Ended;

/// What else lies in a repository.
fn tags(desk: &Desk, repository: &str) -> Vec<String> {
    desk.run(&["tags", &desk.at(repository)]).success().lines().map(str::to_owned).collect()
}

#[test]
fn an_image_is_signed_once_and_openssl_verifies_it() {
    let desk = Desk::new();
    let digest = desk.push("app:1", "linux/amd64", "one");
    desk.run(&["verify", "--key", "release.pub", &desk.at("app:1")]).failure(1, "there is no signature of sha256:");
    for _ in 0..2 {
        assert_eq!(desk.sign("app:1", &["--annotation", "commit=abc"]).success(), digest);
    }
    let tag = format!("sha256-{}.sig", &digest[7..]);
    assert_eq!(tags(&desk, "app"), ["1".to_owned(), tag.clone()]);
    desk.run(&["copy", &format!("docker://{}", desk.at(&format!("app:{tag}"))), "dir:signature"]).success();
    let manifest = fs::read(desk.path("signature/manifest.json")).expect("written");
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    let layers = manifest["layers"].as_array().expect("a list");
    assert_eq!(
        (layers.len(), &layers[0]["mediaType"]),
        (1, &"application/vnd.dev.cosign.simplesigning.v1+json".into())
    );
    let signature = layers[0]["annotations"]["dev.cosignproject.cosign/signature"].as_str().expect("text");
    desk.write("base64", signature);
    let payload = format!("signature/{}", &layers[0]["digest"].as_str().expect("text")[7..]);
    let script = format!("base64 -d base64 > raw && openssl dgst -sha256 -verify release.pub -signature raw {payload}");
    assert_eq!(desk.shell(&script).success(), "Verified OK");
    let payload: Value = serde_json::from_slice(&fs::read(desk.path(&payload)).expect("written")).expect("JSON");
    assert_eq!(payload["critical"]["identity"]["docker-reference"], desk.at("app:1"));
    assert_eq!(payload["critical"]["image"]["docker-manifest-digest"], digest);
    let rows = desk.run(&["verify", "--key", "release.pub", "--format", "json", &desk.at("app:1")]).json();
    assert_eq!((&rows[0]["digest"], &rows[0]["annotations"]["commit"]), (&digest.into(), &"abc".into()));
}

#[test]
fn what_was_signed_must_be_what_is_asked_for() {
    let desk = Desk::new();
    let digest = desk.push("app:1", "linux/amd64", "one");
    desk.sign("app:1", &["--annotation", "commit=abc"]).success();
    desk.run(&["key", "generate", "other", "--no-password"]).success();
    let name = desk.at("app:1");
    let verify = |more: &[&str]| desk.run(&[&["verify", &name], more].concat());
    verify(&["--key", "other.pub", "--key", "release.pub", "--annotation", "commit=abc"]).success();
    verify(&["--key", "other.pub"]).failure(1, "another key");
    verify(&["--key", "release.pub", "--annotation", "commit=def"]).failure(1, "commit=def");
    verify(&["--key", "release.pub", "--identity", "r.example/app"]).failure(1, "another name");
    verify(&["--key", "release.pub", "--identity", &desk.at("app:2")]).failure(1, "another name");
    verify(&["--key", "release.pub", "--identity", &name]).success();
    verify(&["--key", "release.key"]).failure(1, "private key");
    verify(&["--key", "."]).failure(1, "directory");
    verify(&["--key", "none"]).failure(1, "none: No such file");
    // Beside a copy under another name lies nothing, and what is carried there is of another name.
    desk.run(&["copy", "--referrers", &format!("docker://{name}"), &format!("docker://{}", desk.at("moved:1"))])
        .success();
    assert_eq!(tags(&desk, "moved").len(), 2);
    let moved = desk.at(&format!("moved@{digest}"));
    desk.run(&["verify", "--key", "release.pub", &moved]).failure(1, "another name");
    desk.run(&["verify", "--key", "release.pub", "--identity", &desk.at("app"), &moved]).success();
}

#[test]
fn a_policy_keeps_out_what_is_not_signed_on_every_way_in() {
    let desk = Desk::new();
    desk.push("app:1", "linux/amd64", "one");
    let name = desk.at("app:1");
    desk.policy(None);
    fs::create_dir_all(desk.path("on")).expect("a directory");
    desk.write("on/Dockerfile", format!("FROM {name}\nLABEL a=b\n"));
    desk.write("from", format!("FROM scratch\nCOPY --from={name} /file /\n"));
    desk.write("list", format!("docker://{name} oci:synced\n"));
    let place = format!("docker://{name}");
    let ways: [&[&str]; 6] = [
        &["pull", "--platform", "linux/amd64", &name],
        &["copy", &place, "oci:copied:app"],
        &["sync", "list"],
        &["build", "--platform", "linux/amd64", "on"],
        &["build", "--platform", "linux/amd64", "-f", "from", "on"],
        &["run", "--platform", "linux/amd64", &name, "/nothing"],
    ];
    const POLICY: &[&str] = &["--signature-policy", "policy.json"];
    fn with_policy<'a>(way: &[&'a str]) -> Vec<&'a str> {
        [&way[..1], POLICY, &way[1..]].concat()
    }
    for way in &ways {
        let ended = desk.run_afresh(&with_policy(way));
        let code = if way[0] == "run" { 125 } else { 1 };
        assert_eq!(ended.code, Some(code), "{way:?}: {}", ended.stderr);
        assert!(ended.stderr.contains("there is no signature of sha256:"), "{way:?}: {}", ended.stderr);
    }
    assert!(!desk.path("copied/index.json").exists());
    desk.run(&["copy", &place, "oci:layout:app"]).success();
    let layout = "base=oci-layout://layout:app";
    let on_layout = ["build", "--platform", "linux/amd64", "--build-context", layout, "-f", "named", "on"];
    desk.write("named", "FROM base\n");
    desk.run_afresh(&with_policy(&on_layout)).failure(1, "policy.json lets no image in from there");
    desk.run_afresh(&on_layout).success();
    desk.sign("app:1", &[]).success();
    for way in &ways[..5] {
        desk.run_afresh(&with_policy(way)).success();
    }
    // The file is started, so that it was let in; it is none.
    assert_eq!(desk.run_afresh(&with_policy(ways[5])).code, Some(127));
    // Where podman has it, it counts without a flag.
    fs::create_dir_all(desk.path(".config/containers")).expect("a directory");
    desk.write(".config/containers/policy.json", r#"{"default":[{"type":"reject"}]}"#);
    desk.run_afresh(&["pull", &name]).failure(1, ".config/containers/policy.json lets no image in");
    desk.run_afresh(&["pull", "--signature-policy", "policy.json", &name]).success();
    desk.run_afresh(&["verify", &name]).failure(1, "lets no image in");
    assert!(desk.run_afresh(&["verify", "--signature-policy", "policy.json", &name]).success().contains(&name));
    desk.write("policy.json", "{");
    desk.run_afresh(&["pull", "--signature-policy", "policy.json", &name])
        .failure(1, "policy.json: it is not valid JSON");
}

#[test]
fn an_index_is_made_of_what_the_policy_lets_in() {
    let desk = Desk::new();
    desk.push("app:1", "linux/amd64", "one");
    desk.push("app:2", "linux/arm64", "two");
    let place = |name: &str| format!("docker://{}", desk.at(name));
    desk.run(&["copy", &place("app:1"), "oci:uns:1"]).success();
    desk.write("none.json", r#"{"default":[{"type":"reject"}]}"#);
    desk.run_afresh(&["manifest", "create", "--signature-policy", "none.json", "stolen:1", "oci:uns:1"])
        .failure(1, "none.json lets no image in from there");
    desk.policy(None);
    // The store holds the images of `desk` already: what is there is in.
    let fresh =
        |line: &[&str]| desk.run_afresh(&[&["manifest"], line, &["--signature-policy", "policy.json"]].concat());
    let (one, two) = (desk.at("app:1"), desk.at("app:2"));
    for list in ["mine:1", &place("app:list")] {
        fresh(&["create", list, &one]).failure(1, "there is no signature of sha256:");
    }
    desk.sign("app:1", &[]).success();
    for list in ["mine:1", &place("app:list")] {
        fresh(&["create", list, &one]).success();
        fresh(&["create", list, &one, &two]).failure(1, "there is no signature of sha256:");
    }
    fresh(&["add", &place("app:list"), &two]).failure(1, "there is no signature of sha256:");
    desk.sign("app:2", &[]).success();
    fresh(&["add", &place("app:list"), &two]).success();
    fresh(&["create", "mine:1", &place("app:list")]).failure(1, "there is no signature of sha256:");
    desk.sign("app:list", &[]).success();
    fresh(&["create", "mine:1", &place("app:list")]).success();
}

#[test]
fn a_cache_that_the_policy_does_not_let_in_is_not_used() {
    let desk = Desk::new();
    let context = desk.path("context");
    fs::create_dir_all(&context).expect("a directory");
    fs::write(context.join("file"), "one").expect("written");
    fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY file /\n").expect("written");
    let cache = desk.at("app:cache");
    let build = ["build", "--progress", "plain", "--platform", "linux/amd64", "context"];
    let with = |more: &[&str]| desk.run_afresh(&[&build[..], more].concat());
    for to in [&format!("type=registry,ref={cache}"), "type=local,dest=cache"] {
        with(&["--cache-to", to]).success();
    }
    desk.policy(None);
    for (from, why) in [
        (format!("type=registry,ref={cache}"), "there is no signature of sha256:"),
        ("type=local,src=cache".to_owned(), "policy.json lets no image in from there"),
    ] {
        let ended = with(&["--cache-from", &from, "--signature-policy", "policy.json"]);
        assert!(ended.stderr.contains("is not used: ") && ended.stderr.contains(why), "{}", ended.stderr);
        ended.success();
        assert!(!with(&["--cache-from", &from]).stderr.contains("is not used"));
    }
    desk.sign("app:cache", &[]).success();
    let ended = with(&["--cache-from", &cache, "--signature-policy", "policy.json"]);
    assert!(!ended.stderr.contains("is not used"), "{}", ended.stderr);
    ended.success();
}

#[test]
fn a_whole_repository_is_synced_under_a_policy_and_a_dry_run_asks_it_too() {
    let desk = Desk::new();
    desk.push("app:1", "linux/amd64", "one");
    desk.push("app:2", "linux/amd64", "two");
    desk.policy(None);
    desk.write("list", format!("docker://{} oci:synced\n", desk.at("app:*")));
    let sync =
        |more: &[&str]| desk.run_afresh(&[&["sync", "--signature-policy", "policy.json", "list"], more].concat());
    desk.sign("app:1", &[]).success();
    let ended = sync(&["--dry-run"]);
    assert!(ended.stdout.contains("1 to copy, 0 unchanged, 1 failed"), "{}", ended.stdout);
    ended.failure(1, "there is no signature of sha256:");
    desk.sign("app:2", &[]).success();
    assert!(sync(&["--dry-run"]).success().ends_with("2 to copy, 0 unchanged, 0 failed"));
    assert!(sync(&[]).success().ends_with("2 copied, 0 unchanged, 0 failed"));
    assert!(sync(&[]).success().ends_with("0 copied, 2 unchanged, 0 failed"));
    // Without one they are images like others.
    assert!(desk.run_afresh(&["sync", "list"]).success().ends_with("2 copied, 2 unchanged, 0 failed"));
}

#[test]
fn a_repository_that_is_synced_keeps_the_signatures_that_others_made_there() {
    let desk = Desk::new();
    desk.push("app:1", "linux/amd64", "one");
    desk.sign("app:1", &[]).success();
    let mirror = desk.at("mirror");
    desk.write("list", format!("docker://{} docker://{mirror}\n", desk.at("app:*")));
    let sync = || desk.run_afresh(&["sync", "list"]).success();
    assert!(sync().ends_with("2 copied, 0 unchanged, 0 failed"));
    desk.run(&["key", "generate", "other", "--no-password"]).success();
    desk.run(&["sign", "--key", "other.key", &format!("{mirror}:1")]).success();
    assert!(sync().ends_with("0 copied, 2 unchanged, 0 failed"));
    desk.sign("app:1", &["--annotation", "commit=abc"]).success();
    assert!(sync().ends_with("1 copied, 1 unchanged, 0 failed"));
    assert!(sync().ends_with("0 copied, 2 unchanged, 0 failed"));
    let verify = |key: &str| desk.run(&["verify", "--key", key, "--identity", &desk.at("app"), &format!("{mirror}:1")]);
    assert!(verify("release.pub").success().contains("commit=abc"));
    desk.run(&["verify", "--key", "other.pub", &format!("{mirror}:1")]).success();
}

#[test]
fn a_policy_that_cannot_be_read_is_not_taken_for_none() {
    let desk = Desk::new();
    desk.push("app:1", "linux/amd64", "one");
    let settings = desk.path(".config/containers");
    fs::create_dir_all(&settings).expect("a directory");
    std::os::unix::fs::symlink("gone", settings.join("policy.json")).expect("linked");
    desk.run_afresh(&["pull", &desk.at("app:1")]).failure(1, "policy.json: No such file");
}

#[test]
fn what_is_odd_about_keys_and_passwords_is_told() {
    let desk = Desk::new();
    desk.push("app:1", "linux/amd64", "one");
    let name = desk.at("app:1");
    desk.write("long", "x".repeat((64 << 10) + 1));
    desk.run(&["key", "public", "release.key", "--password-file", "long"]).failure(1, "longer than 65536 bytes");
    for variable in ["NACRE_KEY_PASSWORD", "COSIGN_PASSWORD"] {
        let mut command = desk.command(&["key", "public", "release.key"]);
        command.env(variable, OsStr::from_bytes(b"hunter2-\xff"));
        let ended = Ended::from(command.output().expect("the program starts"));
        assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
        ended.failure(1, &format!("${variable} is not UTF-8"));
    }
    desk.run(&["key", "generate", "other", "--no-password"]).success();
    let both = ["other.pub", "release.pub"].map(|name| fs::read_to_string(desk.path(name)).expect("text")).concat();
    desk.write("both.pub", both);
    desk.run(&["verify", "--key", "both.pub", &name]).failure(1, "both.pub: it holds more than one thing");
    for place in ["oci-archive:app.tar", "dir:app", "docker-archive:docker.tar:app:1"] {
        desk.run(&["copy", &format!("docker://{name}"), place]).success();
        desk.run(&["verify", "--key", "release.pub", place]).failure(2, "--identity NAME");
        desk.run(&["verify", "--key", "release.pub", "--identity", &name, place]).failure(1, "there is no signature");
    }
    // A full disk, as far as a file sees it.
    let script = "trap '' XFSZ; ulimit -f 0; exec $PROGRAM key generate full --no-password";
    desk.shell(script).failure(1, "full.key: File too large");
    assert!(!desk.path("full.key").exists() && !desk.path("full.pub").exists(), "a part of a key");
}

#[test]
fn names_are_those_of_the_policy() {
    let desk = Desk::new();
    let digest = desk.push("app:1", "linux/amd64", "one");
    desk.run(&["copy", &format!("docker://{}", desk.at("app:1")), &format!("docker://{}", desk.at("app:2"))]).success();
    desk.sign("app:1", &[]).success();
    let pull = |name: &str| desk.run_afresh(&["pull", "--signature-policy", "policy.json", &desk.at(name)]);
    desk.policy(None);
    pull("app:1").success();
    pull(&format!("app@{digest}")).success();
    pull("app:2").failure(1, "another name");
    // Of a tag and a digest the digest counts, and the tag is what is signed.
    pull(&format!("app:2@{digest}")).success();
    let both = desk.push("both:1", "linux/amd64", "both");
    desk.sign(&format!("both:1@{both}"), &[]).success();
    pull("both:1").success();
    desk.policy(Some(json!({"type": "matchRepository"})));
    pull("app:2").success();
    desk.policy(Some(json!({"type": "exactReference", "dockerReference": desk.at("app:3")})));
    pull("app:1").failure(1, "another name");
    desk.policy(Some(json!({"type": "remapIdentity", "prefix": desk.at("app"), "signedPrefix": "r.example/app"})));
    pull("app:1").failure(1, "another name");
    desk.sign("app:1", &["--identity", "r.example/app:1"]).success();
    pull("app:1").success();
}

#[test]
fn podman_takes_what_we_signed_and_its_images_of_an_index() {
    let desk = Desk::new();
    for arch in ["amd64", "arm64"] {
        desk.push(&format!("app:{arch}"), &format!("linux/{arch}"), arch);
    }
    let place = |name: &str| format!("docker://{}", desk.at(name));
    desk.run(&["manifest", "create", &place("app:1"), &place("app:amd64"), &place("app:arm64")]).success();
    assert_eq!(desk.sign("app:1", &["--recursive"]).success().lines().count(), 3);
    assert_eq!(tags(&desk, "app").len(), 6);
    desk.policy(None);
    let settings = desk.path(".config/containers/registries.d");
    fs::create_dir_all(&settings).expect("a directory");
    fs::write(settings.join("all.yaml"), "default-docker: {use-sigstore-attachments: true}\n").expect("written");
    let ended = desk.shell(&format!(
        "podman --storage-driver vfs --root podman --runroot state \
         pull -q --tls-verify=false --signature-policy policy.json {}",
        desk.at("app:1")
    ));
    // Debian's podman of bookworm knows the type, and was built to check none.
    if ended.stderr.contains("Debian-local change: sigstore disabled") {
        fixtures::left_out("whether podman takes our signatures: this one was built without sigstore");
    } else {
        ended.success();
    }
    let other = if cfg!(target_arch = "aarch64") { "linux/amd64" } else { "linux/arm64" };
    for more in [&["--platform", other][..], &["--all"]] {
        desk.run_afresh(&[&["pull", "--signature-policy", "policy.json", &desk.at("app:1")], more].concat()).success();
    }
}

#[test]
fn passwords_come_from_a_file_the_environment_or_a_pipe_and_are_never_shown() {
    let desk = Desk::new();
    let mode = |name: &str| fs::metadata(desk.path(name)).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode("release.key"), mode("release.pub")), (0o600, 0o644));
    let public = fs::read_to_string(desk.path("release.pub")).expect("text");
    let tell = |more: &[&str], variable: Option<(&str, &str)>, piped: &str| -> Ended {
        let mut command = desk.command(&[&["key", "public", "release.key"], more].concat());
        command.envs(variable).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        // What asks for no password leaves the pipe unread.
        let _ = child.stdin.take().expect("piped").write_all(piped.as_bytes());
        child.wait_with_output().expect("it ends").into()
    };
    assert_eq!(tell(&["--password-file", "password"], None, "").success(), public.trim_end());
    assert_eq!(tell(&["--password-file", "-"], None, "hunter2-key\n").success(), public.trim_end());
    for name in ["NACRE_KEY_PASSWORD", "COSIGN_PASSWORD"] {
        tell(&[], Some((name, "hunter2-key")), "").success();
    }
    let wrong = tell(&[], Some(("COSIGN_PASSWORD", "hunter2-wrong")), "");
    assert!(!wrong.stderr.contains("hunter2"), "{}", wrong.stderr);
    wrong.failure(1, "the password is wrong");
    tell(&[], None, "hunter2-key\n").failure(2, "--password-file");
    desk.run(&["key", "generate", "release", "--no-password"]).failure(1, "is there already");
    fs::remove_file(desk.path("release.key")).expect("removed");
    desk.run(&["key", "generate", "release", "--no-password"]).failure(1, "release.pub is there already");
    assert!(!desk.path("release.key").exists(), "half a pair");
    desk.run(&["key", "generate", "open", "--no-password"]).success();
    desk.run(&["key", "public", "open.key", "--password-file", "password"]).failure(2, "no password");
    desk.write("empty", "");
    for (key, words) in [("empty", "it is empty"), (".", "directory"), ("open.pub", "public key")] {
        desk.run(&["key", "public", key]).failure(1, words);
    }
    desk.run(&["sign", "--key", "open.key", "oci:layout"]).failure(2, "--identity NAME");
}

#[test]
fn what_refers_to_an_image_travels_through_the_store_and_layouts() {
    let desk = Desk::new();
    desk.push("app:1", "linux/amd64", "one");
    let name = desk.at("app:1");
    desk.write("note", "a note");
    let note = desk.run(&["attach", &name, "note", "--artifact-type", "text/x-note"]).success();
    desk.sign("app:1", &["--referrer"]).success();
    let types = |line: &[&str]| -> Vec<String> {
        let rows = desk.run(&[&["referrers", "--format", "json"], line].concat()).json();
        let kind = |row: &Value| row["artifactType"].as_str().expect("a type").to_owned();
        let mut types: Vec<String> = rows.as_array().expect("a list").iter().map(kind).collect();
        types.sort();
        types
    };
    let both = ["application/vnd.dev.cosign.artifact.sig.v1+json", "text/x-note"];
    assert_eq!(types(&[&name]), both);
    assert_eq!(types(&["--store", &name]), [""; 0]);
    desk.run(&["remove", &name]).success();
    desk.run(&["pull", "--referrers", &name]).success();
    assert_eq!(types(&["--store", &name]), both);
    assert_eq!(types(&["--store", &name, "--artifact-type", "text/x-note"]), ["text/x-note"]);
    desk.run(&["verify", "--store", "--key", "release.pub", &name]).success();
    assert_eq!(desk.run(&["verify"]).success(), "nothing is damaged");
    desk.run(&["copy", "--referrers", &name, "oci:layout:app"]).success();
    assert_eq!(types(&["oci:layout:app"]), both);
    assert_eq!(types(&["oci:layout"]), both, "what lies beside it is not taken for an image");
    let identity = desk.at("app");
    desk.run(&["verify", "--key", "release.pub", "--identity", &identity, "oci:layout:app"]).success();
    desk.run(&["verify", "--key", "release.pub", "oci:layout:app"]).failure(2, "--identity NAME");
    let moved = desk.at("moved:1");
    desk.run(&["push", "--referrers", &name, &moved]).success();
    assert_eq!(types(&[&moved]), both);
    assert!(desk.run(&["referrers", &moved]).success().contains(&note));
    assert_eq!(tags(&desk, "moved").iter().filter(|tag| tag.ends_with(".sig")).count(), 1);
    // In a layout and in the store an image is signed as at a registry.
    desk.run(&["key", "generate", "other", "--no-password"]).success();
    for place in [&["oci:layout:app", "--identity", &name][..], &["--store", &name]] {
        desk.run(&[&["sign", "--key", "other.key"], place].concat()).success();
    }
    desk.run(&["verify", "--key", "other.pub", "--identity", &identity, "oci:layout:app"]).success();
    desk.run(&["verify", "--key", "other.pub", "--store", &name]).success();
    // It has no name there, and goes with its image.
    let names = |desk: &Desk| desk.run(&["images", "--format", "json"]).json().as_array().map_or(0, Vec::len);
    assert_eq!(names(&desk), 1);
    desk.run(&["prune", "--all"]).success();
    desk.run(&["verify", "--key", "other.pub", "--store", &name]).success();
    desk.run(&["remove", &name]).success();
    desk.run(&["prune", "--all"]).success();
    let left = fs::read_dir(desk.path("store/blobs/sha256")).expect("a directory").count();
    let index = fs::read_to_string(desk.path("store/index.json")).expect("text");
    assert!(left == 0 && !index.contains(".sig"), "{left} blobs, {index}");
    desk.run(&["referrers", "--store", "oci:layout"]).failure(2, "leave --store away");
    desk.run(&["push", "--referrers", "--compression", "zstd", &name]).failure(2, "--compression");
    desk.run(&["verify", "--signature-policy", "none"]).failure(2, "give its name");
    desk.run(&["verify", "--key", "release.pub"]).failure(2, "required");
}

#[test]
fn signatures_of_the_place_an_image_comes_to_stay_there() {
    let desk = Desk::new();
    desk.push("app:1", "linux/amd64", "one");
    let (name, identity) = (desk.at("app:1"), desk.at("app"));
    desk.run(&["key", "generate", "other", "--no-password"]).success();
    // The same image in a layout and in the store, signed there by another key before the registry's signature comes.
    desk.run(&["copy", "--all", &name, "oci:mine:1"]).success();
    for place in [&["oci:mine:1", "--identity", &name][..], &["--store", &name]] {
        desk.run(&[&["sign", "--key", "other.key"], place].concat()).success();
    }
    desk.sign("app:1", &[]).success();
    let verified = |place: &[&str]| {
        for key in ["release.pub", "other.pub"] {
            desk.run(&[&["verify", "--key", key], place].concat()).success();
        }
    };
    desk.run(&["copy", "--all", "--referrers", &format!("docker://{name}"), "oci:mine:1"]).success();
    verified(&["oci:mine:1", "--identity", &identity]);
    desk.run(&["pull", "--referrers", &name]).success();
    verified(&["--store", &name]);
    desk.run(&["push", "--referrers", &name]).success();
    verified(&[&name]);
    desk.run(&["copy", "--referrers", &name, "dir:plain"]).failure(1, "it holds one image");
    assert!(!desk.path("plain").exists());
}

#[test]
fn a_bundle_is_signed_and_verified_as_cosign_3_has_it() {
    let desk = Desk::new();
    let digest = desk.push("app:1", "linux/amd64", "one");
    let name = desk.at("app:1");
    for _ in 0..2 {
        assert_eq!(desk.sign("app:1", &["--bundle", "--annotation", "commit=abc"]).success(), digest);
    }
    let kind = "application/vnd.dev.sigstore.bundle.v0.3+json";
    let listed = desk.run(&["referrers", "--artifact-type", kind, "--format", "json", &name]).json();
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    let rows = desk.run(&["verify", "--key", "release.pub", "--format", "json", &name]).json();
    assert_eq!((&rows[0]["identity"], &rows[0]["annotations"]["commit"]), (&Value::Null, &json!("abc")));
    let named = ["verify", "--key", "release.pub", "--identity", &name, &name];
    desk.run(&named).failure(1, "it is a bundle, which is for no name");
    // A policy demands a name; who only wants to know may do without.
    desk.policy(None);
    let under = ["--signature-policy", "policy.json", &name];
    desk.run_afresh(&[&["pull"][..], &under].concat()).failure(1, "it is a bundle, which is for no name");
    desk.run(&[&["verify"][..], &under].concat()).failure(1, "it is a bundle, which is for no name");
    desk.run(&[&["verify", "--nameless"][..], &under].concat()).success();
    desk.sign("app:1", &["--bundle", "--identity", &name]).failure(2, "--identity");
}
