//! The verbs that work at registries, as a person uses them, against Debian's registry.
//!
//! Invariant: a test has a store and a registry of its own. It needs docker-registry and skopeo.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use fixtures::fault::{FaultServer, Reply};
use fixtures::{Desk, Ended, SmallDisk, run};
use serde_json::{Value, json};

fn desk() -> Desk {
    Desk::new(env!("CARGO_BIN_EXE_nacre")).with_registry()
}

#[test]
fn tags_are_listed_and_deleted_without_the_image_that_they_lead_to() {
    let desk = desk();
    let digest = desk.push("app:1.0", "linux/amd64", "one");
    for tag in ["1.1", "2.0"] {
        desk.run(&["copy", &desk.place("app:1.0"), &desk.place(&format!("app:{tag}"))]).success();
    }
    let tags = |more: &[&str]| desk.run(&[&["tags", &desk.at("app")], more].concat()).success();
    assert_eq!(tags(&[]), "1.0\n1.1\n2.0");
    assert_eq!(tags(&["--filter", "1.*"]), "1.0\n1.1");
    assert_eq!(tags(&["--last", "1.0", "--limit", "1"]), "1.1");
    assert_eq!(desk.run(&["catalog", desk.address()]).success(), "app");
    desk.run(&["delete", &desk.at("app")]).failure(2, "which tag");
    desk.run(&["delete", &desk.at("app:1.1")]).success();
    assert_eq!(tags(&["--format", "json"]), "[\n  \"1.0\",\n  \"2.0\"\n]");
    desk.run(&["delete", &desk.at(&format!("app@{digest}"))]).success();
    assert_eq!(tags(&[]), "");
    desk.run(&["delete", &desk.at("app:1.0")]).failure(3, "404");
    let way = format!("hint: `nacre tags {}` lists the tags there are", desk.at("app"));
    for verb in [&["pull"][..], &["manifest", "inspect"]] {
        desk.run(&[verb, &[&desk.at("app:nosuch")]].concat()).failure(3, &way);
    }
    desk.run(&["tags", &desk.at("nope")]).failure(3, &format!("`nacre catalog {}`", desk.address()));
    desk.run(&["tags", &desk.at("app:1.0")]).failure(2, "leave its tag");
}

#[test]
fn an_index_is_made_at_a_registry_from_what_lies_there_and_changed() {
    let desk = desk();
    let [one, two] = ["linux/amd64", "linux/arm64"]
        .map(|platform| desk.push(&format!("app:{}", &platform[6..]), platform, platform));
    let (list, amd, arm) = (desk.place("app:1"), desk.place("app:amd64"), desk.place("app:arm64"));
    let made = desk.run(&["manifest", "create", &list, &amd, &arm, "-t", "latest"]).success();
    assert_eq!(desk.run(&["manifest", "create", &desk.place("app:again"), &amd, &arm]).success(), made);
    let raw = run("skopeo", &["inspect", "--raw", "--tls-verify=false", &desk.place("app:latest")]);
    let raw: Value = serde_json::from_str(&raw).expect("JSON");
    let platform = |entry: usize| raw["manifests"][entry]["platform"]["architecture"].as_str().map(str::to_owned);
    assert_eq!((platform(0).as_deref(), platform(1).as_deref()), (Some("amd64"), Some("arm64")));
    let shown = desk.run(&["manifest", "inspect", &list]).success();
    assert!(shown.contains(&made) && shown.contains("linux/arm64") && shown.contains(&two), "{shown}");
    let shown = desk.run(&["manifest", "inspect", "--raw", &list]).success();
    assert_eq!(serde_json::from_str::<Value>(&shown).expect("JSON"), raw);
    desk.run(&["manifest", "create", &desk.place("app:2"), &amd, &amd]).success();
    desk.push("app:other", "linux/amd64", "other");
    desk.run(&["manifest", "create", &list, &amd, &desk.place("app:other")]).failure(1, "linux/amd64 too");
    let other = desk.run(&["manifest", "add", &list, &desk.place("app:other")]).success();
    assert_ne!(other, made);
    let shown = desk.run(&["manifest", "inspect", &list]).success();
    assert!(!shown.contains(&one) && shown.contains(&two), "{shown}");
    desk.run(&["manifest", "annotate", &list, "linux/arm64", "--annotation", "a=b", "--os-version", "7"]).success();
    let entry =
        desk.run(&["manifest", "inspect", "--format", "json", &list]).json()["manifest"]["manifests"][1].clone();
    assert_eq!((&entry["annotations"]["a"], &entry["platform"]["os.version"]), (&"b".into(), &"7".into()));
    desk.run(&["manifest", "remove", &list, &two]).success();
    assert!(!desk.run(&["manifest", "inspect", &list]).success().contains("arm64"));
    desk.run(&["manifest", "remove", &list, "linux/arm64"]).failure(1, "no image for linux/arm64");
}

#[test]
fn an_index_of_the_store_is_pushed_with_all_its_images() {
    let desk = desk();
    let digests =
        ["linux/amd64", "linux/arm/v6"].map(|platform| desk.push(&format!("one:{}", platform.len()), platform, "x"));
    let (one, two) = (desk.at("one:11"), desk.at("one:12"));
    let made = desk.run(&["manifest", "create", "app", &one, &two, "--annotation", "k=v"]).success();
    assert_eq!(desk.run(&["manifest", "push", "app", &desk.at("all:1")]).success(), made);
    assert_eq!(desk.run(&["push", "app", &desk.at("all:2")]).success(), made);
    let pulled = desk.run(&["pull", "--platform", "linux/arm/v6", &desk.at("all:1")]).success();
    assert_eq!(pulled, digests[1]);
    // Nothing failed at the registry.
    let copy = ["copy", "--platform", "linux/s390x", &desk.place("all:1"), "oci:x"];
    desk.run(&copy).failure(1, "no image for linux/s390x, only for linux/amd64, linux/arm/v6");
    let target = format!("oci:{}:all", desk.text("layout"));
    run("skopeo", &["copy", "-q", "--all", "--src-tls-verify=false", &desk.place("all:1"), &target]);
    assert_eq!(
        desk.run(&["manifest", "create", &desk.place("back:1"), &target, "--annotation", "k=v"]).success(),
        made
    );
}

#[test]
fn what_is_attached_is_listed_and_travels_with_its_image() {
    let desk = desk();
    desk.push("app:1", "linux/amd64", "x");
    desk.write("sbom.json", "{}");
    let name = desk.at("app:1");
    let attach = |name: &str, kind: &str| {
        desk.run(&["attach", name, "sbom.json:application/json", "--artifact-type", kind, "--annotation", "by=me"])
    };
    let sbom = attach(&name, "application/spdx+json").success();
    assert_eq!(attach(&name, "application/spdx+json").success(), sbom, "the same again is the same");
    let signature = attach(&desk.at(&format!("app@{sbom}")), "text/x-signature").success();
    attach(&name, "nonsense").failure(1, "no media type");
    desk.run(&["attach", &name, "--artifact-type", "a/b"]).failure(2, "nothing to attach");
    let list = desk.run(&["referrers", &name, "--format", "json"]).json();
    assert_eq!((&list[0]["digest"], &list[0]["annotations"]["by"]), (&sbom.as_str().into(), &"me".into()));
    assert_eq!(desk.run(&["referrers", &name, "--artifact-type", "a/b", "--format", "json"]).success(), "[]");
    let all = desk.run(&["referrers", &name, "--all"]).success();
    assert!(all.contains(&sbom) && all.contains(&format!("  {signature}")), "{all}");
    let layout = format!("oci:{}:app", desk.text("layout"));
    let copied = desk.run(&["copy", "--referrers", &desk.place("app:1"), &layout]).success();
    desk.run(&["copy", "--referrers", &layout, &desk.place("other:1")]).success();
    let all = desk.run(&["referrers", &desk.at("other:1"), "--all"]).success();
    assert!(all.contains(&sbom) && all.contains(&signature), "{all}");
    // A layout without names still holds one image.
    let unnamed = format!("oci:{}", desk.text("unnamed"));
    assert_eq!(desk.run(&["copy", "--referrers", &layout, &unnamed]).success(), copied);
    assert_eq!(desk.run(&["copy", "--referrers", &layout, &unnamed]).success(), copied);
    assert_eq!(desk.run(&["copy", &unnamed, &desk.place("third:1")]).success(), copied);
    let plain = format!("dir:{}", desk.text("plain"));
    desk.run(&["copy", "--referrers", &layout, &plain]).failure(1, "it holds one image");
    desk.run(&["copy", &layout, &plain]).success();
    desk.run(&["copy", "--referrers", &plain, "oci:nowhere"]).failure(1, "keeps no list");
}

#[test]
fn what_refers_to_an_image_of_the_store_stays_as_long_as_that_does() {
    let desk = desk();
    let image = desk.push("app:1", "linux/amd64", "x");
    desk.write("sbom.json", "{}");
    let attach = |name: &str| desk.run(&["attach", name, "sbom.json:application/json", "--artifact-type", "a/b"]);
    let sbom = attach(&desk.at("app:1")).success();
    let signature = attach(&desk.at(&format!("app@{sbom}"))).success();
    desk.run(&["remove", &desk.at("app:1")]).success();
    desk.run(&["prune"]).success();
    for _ in 0..2 {
        assert_eq!(desk.run(&["copy", "--referrers", &desk.place("app:1"), "here"]).success(), image);
    }
    desk.run(&["prune"]).success();
    desk.run(&["copy", "--referrers", "here", &desk.place("back:1")]).success();
    let all = desk.run(&["referrers", &desk.at("back:1"), "--all"]).success();
    assert!(all.contains(&sbom) && all.contains(&signature), "{all}");
    assert_eq!(desk.run(&["images", "--quiet"]).success(), image, "they are no images");
    desk.run(&["remove", "here"]).success();
    desk.run(&["prune", "--all"]).success();
    let blobs = fs::read_dir(desk.path("store/blobs/sha256")).expect("readable").count();
    assert_eq!(blobs, 0, "the image is gone, and with it what referred to it");
    let index = fs::read_to_string(desk.path("store/index.json")).expect("text");
    assert!(!index.contains(&sbom) && !index.contains(&signature), "{index}");
}

#[test]
fn a_list_of_images_is_copied_but_for_what_is_there_or_fails() {
    let desk = desk();
    for tag in ["1.0", "1.1", "1.2-rc1", "2.0"] {
        desk.push(&format!("app:{tag}"), "linux/amd64", tag);
    }
    let list = format!(
        "# the main thing\n{} {} !*-rc*\n{} {}\n{} {}\n{} oci:{}\n",
        desk.place("app:1.*"),
        desk.place("mirror/app"),
        desk.place("app:2.0"),
        desk.place("mirror/app"),
        desk.place("app:9"),
        desk.place("mirror/app:9"),
        desk.place("app:*"),
        desk.text("layout"),
    );
    desk.write("list", list);
    let dry = desk.run(&["sync", "list", "--dry-run"]);
    assert!(dry.stdout.contains("7 to copy, 0 unchanged, 1 failed"), "{}", dry.stdout);
    let first = desk.run(&["sync", "list"]);
    assert!(first.stdout.contains("7 copied, 0 unchanged, 1 failed"), "{}", first.stdout);
    first.failure(3, "app:9");
    assert_eq!(desk.run(&["tags", &desk.at("mirror/app")]).success(), "1.0\n1.1\n2.0");
    let again = desk.run(&["sync", "list"]).stdout;
    assert!(again.contains("0 copied, 7 unchanged, 1 failed"), "{again}");
    let back = format!("oci:{} {}\n", desk.text("layout"), desk.place("back"));
    desk.write("back", back);
    let outcomes = desk.run(&["--root", "unused", "sync", "back", "--format", "json"]).json();
    assert_eq!(outcomes.as_array().map(Vec::len), Some(4));
    assert_eq!(outcomes[0]["result"], "copied");
    assert_eq!(desk.run(&["tags", &desk.at("back")]).success(), "1.0\n1.1\n1.2-rc1\n2.0");
    assert!(!desk.path("unused/oci-layout").exists(), "a store that nothing was asked of is not made");
}

#[test]
fn an_image_that_is_named_by_digest_moves_no_tag() {
    let desk = desk();
    let (old, new) = (desk.push("app:1", "linux/amd64", "old"), desk.push("copy:latest", "linux/amd64", "new"));
    let (app, copy, layout) = (desk.place(&format!("app@{old}")), desk.place("copy"), desk.text("layout"));
    desk.write("list", format!("{app} {copy}\n{app} oci:{layout}\n{app} {}\n", desk.at("copy")));
    let done = desk.run(&["sync", &desk.text("list")]).success();
    assert!(done.contains(&format!("{copy}@{old}")) && done.contains(&format!("oci:{layout}:{old}")), "{done}");
    assert_eq!(desk.run(&["copy", &desk.place("copy:latest"), "oci:latest"]).success(), new);
    assert_eq!(desk.run(&["copy", &desk.place(&format!("copy@{old}")), "oci:old"]).success(), old);
    let names = desk.run(&["images", "--format", "json"]).success();
    assert!(names.contains(&format!("copy@{old}")), "{names}");
    // What the store has is not moved again either.
    assert!(desk.run(&["sync", &desk.text("list")]).success().ends_with("0 copied, 3 unchanged, 0 failed"));
}

#[test]
fn an_image_is_the_one_that_came_last_however_its_name_was_spelled() {
    let desk = desk();
    let old = desk.push("app:latest", "linux/amd64", "old");
    desk.push("other:1", "linux/amd64", "new");
    let new = desk.run(&["copy", &desk.place("other:1"), &desk.place("app:latest")]).success();
    assert_ne!(old, new);
    let images = || desk.run(&["images", "--quiet"]).success();
    let (full, short) = (desk.at("app:latest"), desk.at("app"));
    assert_eq!(desk.run(&["pull", &full]).success(), new);
    let spelled = |name: &str| desk.run(&["inspect", "--format", "json", name]).json();
    for name in [&full, &short] {
        assert_eq!(spelled(name)["digest"], new);
    }
    assert_eq!(spelled(&short)["names"].as_array().map(Vec::len), Some(2), "{}", images());
    assert_eq!(desk.run(&["push", &full]).success(), new);
    desk.run(&["copy", &format!("docker://{}", desk.at("other:1")), &full]).success();
    assert_eq!(spelled(&short)["names"].as_array().map(Vec::len), Some(2), "{}", images());
    // Its own digest makes another name of it.
    desk.run(&["pull", &desk.at(&format!("app@{new}"))]).success();
    assert_eq!(spelled(&short)["names"].as_array().map(Vec::len), Some(3), "{}", images());
}

/// A registry of an index under any tag, with an image without layers, that can become another one.
fn registry_of_an_index(is_other: &'static AtomicBool) -> FaultServer {
    FaultServer::start(move |request| {
        let digest = |text: &str| layerfs::digest_of(text.as_bytes()).to_string();
        let platform = registry_client::Platform::host();
        let config = json!({"architecture": platform.architecture(), "os": "linux", "created": "2020-01-01T00:00:00Z",
            "author": is_other.load(Ordering::SeqCst).to_string(), "rootfs": {"type": "layers", "diff_ids": []}});
        let config = config.to_string();
        let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&config),
                "size": config.len()}, "layers": []});
        let manifest = manifest.to_string();
        let entry = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(&manifest),
            "size": manifest.len(), "platform": {"os": "linux", "architecture": platform.architecture()}});
        let mut arm = entry.clone();
        arm["platform"] = json!({"os": "linux", "architecture": "riscv64"});
        let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [entry, arm]});
        let index = index.to_string();
        let documents = [
            (digest(&config), &config, "application/octet-stream"),
            (digest(&manifest), &manifest, "application/vnd.oci.image.manifest.v1+json"),
            ("manifests/".to_owned(), &index, "application/vnd.oci.image.index.v1+json"),
        ];
        match documents.iter().find(|(part, ..)| request.path.contains(part)) {
            Some((_, text, media_type)) => Reply::new(200)
                .header("Content-Type", *media_type)
                .header("Docker-Content-Digest", digest(text))
                .body(text.as_str()),
            None => Reply::new(404),
        }
    })
}

#[test]
fn what_did_not_change_is_only_looked_up_and_not_pulled_again() {
    static IS_OTHER: AtomicBool = AtomicBool::new(false);
    let (desk, server) = (desk(), registry_of_an_index(&IS_OTHER));
    let name = format!("{}/app", server.address());
    desk.write("Dockerfile", format!("FROM {name}\nLABEL a=b\n"));
    let old = desk.run(&["pull", &name]).success();
    let fetched = || server.count("GET", "/manifests/");
    assert_eq!((fetched(), server.count("HEAD", "/manifests/")), (2, 0));
    assert_eq!(desk.run(&["pull", &name]).success(), old);
    assert_eq!(desk.run(&["pull", "-q", &format!("{name}:latest")]).success(), old);
    desk.run(&["build", "--pull", "."]).success();
    assert_eq!(desk.run(&["run", "--pull", "always", &name, "x"]).code, Some(127), "it has no such program");
    assert_eq!((fetched(), server.count("HEAD", "/manifests/")), (2, 4));
    // Another platform, the whole index, or another image under the tag is fetched.
    assert_eq!(desk.run(&["pull", "--platform", "linux/riscv64", &name]).success(), old);
    assert_eq!(fetched(), 4);
    assert_ne!(desk.run(&["pull", "--all-platforms", &name]).success(), old);
    assert_eq!(fetched(), 6);
    desk.run(&["pull", "--all-platforms", &name]).success();
    assert_eq!(fetched(), 6);
    assert_eq!(desk.run(&["pull", &name]).success(), old);
    IS_OTHER.store(true, Ordering::SeqCst);
    assert_ne!(desk.run(&["pull", &name]).success(), old);
    // Where signatures are demanded, what is there does not count.
    let policy = r#"{"default": [{"type": "reject"}]}"#;
    desk.write("policy.json", policy);
    desk.run(&["pull", "--signature-policy", "policy.json", &name]).failure(1, "");
}

#[test]
fn an_image_is_inspected_wherever_it_lies() {
    let desk = desk();
    let digest = desk.push("app:1", "linux/amd64", "one");
    let (there, stored) = (desk.place("app:1"), desk.at("app:1"));
    desk.run(&["copy", &stored, "oci:layout:x"]).success();
    desk.run(&["copy", &stored, "docker-archive:app.tar:app:1"]).success();
    let whole = desk.run(&["inspect", "--format", "json", &stored]).json();
    for place in [&there, "oci:layout:x", "oci:layout:@0"] {
        let shown = desk.run(&["inspect", "--platform", "linux/amd64", "--format", "json", place]).json();
        assert_eq!(shown["names"], json!([place]), "{shown}");
        for key in ["digest", "config", "config_digest", "layers", "manifest"] {
            assert_eq!(shown[key], whole[key], "{place} {key}");
        }
    }
    assert!(desk.run(&["inspect", "docker-archive:app.tar"]).success().contains("linux/amd64"));
    let raw = desk.run(&["inspect", "--raw", "manifest", &there]).success();
    assert_eq!(layerfs::digest_of(raw.as_bytes()).to_string(), digest);
    desk.run(&["inspect", &desk.place("nope")]).failure(3, "404");
    desk.run(&["copy", &stored, "oci:layout:@1"]).failure(1, "give it a name");
    desk.run(&["copy", "oci:layout:@7", "x"]).failure(1, "counted from @0");
    desk.run(&["copy", "oci:layout:@x", "x"]).failure(2, "no number");
}

#[test]
fn an_image_is_saved_and_loaded_as_docker_does_it() {
    let desk = desk();
    desk.push("team/app:1", "linux/amd64", "one");
    let name = desk.at("team/app:1");
    let diff_ids = |name: &str| desk.run(&["inspect", "--format", "json", name]).json()["config"]["rootfs"].clone();
    let whole = diff_ids(&name);
    for format in ["docker-archive", "oci-archive"] {
        desk.run(&["save", "-q", "-o", "app.tar", "--format", format, &name]).success();
        desk.run(&["rmi", &name]).success();
        assert_eq!(desk.run(&["load", "-i", "app.tar"]).success(), name);
        assert_eq!(diff_ids(&name), whole, "{format}");
    }
    let skopeo = |to: &str| run("skopeo", &["copy", "--src-tls-verify=false", &desk.place("team/app:1"), to]);
    skopeo(&format!("docker-archive:{}:other:2", desk.text("other.tar")));
    assert_eq!(desk.run(&["image", "load", "--input", "other.tar"]).success(), "other:2");
    skopeo(&format!("oci-archive:{}:1", desk.text("unnamed.tar")));
    desk.run(&["load", "-i", "unnamed.tar"]).failure(1, "gives the only one a name");
    desk.run(&["load", "-i", "nope.tar"]).failure(1, "nope.tar");
    desk.run(&["save", "-o", "x.tar", "nope"]).failure(1, "nope");
    assert!(!desk.path("x.tar").exists());
    // Through pipes; what ends too early is no image, and changes nothing.
    let piped = |script: &str| {
        desk.shell(&format!(
            "set -- nacre {name}
{script}"
        ))
    };
    assert_eq!(
        piped(r#""$PROGRAM" save "$2" > out.tar && "$PROGRAM" rmi "$2" > gone && "$PROGRAM" load < out.tar"#).success(),
        name
    );
    assert_eq!(diff_ids(&name), whole);
    assert_eq!(
        piped(r#""$PROGRAM" save --format oci-archive -o - "$2" | gzip | "$PROGRAM" load -q -i -"#).success(),
        name
    );
    piped(r#"head -c 700 out.tar | "$PROGRAM" load"#).failure(1, "");
    assert_eq!(diff_ids(&name), whole);
    piped(r#""$PROGRAM" save "$2" | true"#).success();
    let left: Vec<_> = fs::read_dir(desk.path("store/tmp")).expect("a directory").flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_store_is_no_layout_to_write_to() {
    let desk = desk();
    desk.push("app:1", "linux/amd64", "one");
    let store = format!("oci:{}:x", desk.text("store"));
    desk.run(&["copy", &desk.place("app:1"), &store]).failure(1, "named without a prefix");
    desk.run(&["copy", &desk.at("app:1"), "oci:out:x"]).success();
    run("skopeo", &["inspect", &format!("oci:{}:{}", desk.text("store"), desk.at("app:1"))]);
}

#[test]
fn limits_are_told_and_their_absence_too() {
    let desk = desk();
    let words = desk.run(&["limits", desk.address()]).success();
    assert!(words.ends_with("tells of no limits"), "{words}");
    let server = FaultServer::start(|_| {
        let reply = Reply::new(200).header("ratelimit-limit", "100;w=21600");
        reply.header("ratelimit-remaining", "7;w=21600").header("docker-ratelimit-source", "10.0.0.1")
    });
    let words = desk.run(&["limits", server.address()]).success();
    assert!(words.ends_with("7 of 100 pulls left in 6 hours, counted for 10.0.0.1"), "{words}");
    assert_eq!(desk.run(&["limits", server.address(), "--format", "json"]).json()["remaining"], 7);
}

#[test]
fn layers_are_compressed_otherwise_only_if_that_is_asked_for() {
    let desk = desk();
    let one = desk.push("app:1", "linux/amd64", &"many words ".repeat(10_000));
    let two = desk.push("app:2", "linux/arm64", "few words");
    desk.run(&["manifest", "create", &desk.place("app:all"), &desk.place("app:1"), &desk.place("app:2")]).success();
    let raw = |name: &str| desk.run(&["manifest", "inspect", "--raw", name]).json();
    let types = |name: &str| raw(name)["layers"][0]["mediaType"].as_str().map(str::to_owned).expect("a layer");
    let diff_ids = |name: &str| {
        desk.run(&["pull", name]).success();
        desk.run(&["inspect", name, "--format", "json"]).json()["config"]["rootfs"]["diff_ids"].clone()
    };
    assert_eq!(
        desk.run(&["copy", "--compression", "gzip", &desk.place("app:1"), &desk.place("same:1")]).success(),
        one
    );
    let (from, to) = (desk.place("app:1"), desk.place("zstd:1"));
    let recompress = ["--progress", "plain", "copy", "--compression", "zstd", "--compression-level", "9", &from, &to];
    let ended = desk.run(&recompress);
    assert!(ended.stderr.contains(&format!("{one} is now sha256:")), "{ended:?}");
    let made = ended.success();
    let again =
        desk.run(&["push", &desk.at("app:1"), &desk.at("zstd:2"), "--compression", "zstd", "--compression-level", "9"]);
    assert_eq!(again.success(), made, "the same bytes wherever it is made");
    assert_eq!(types(&to), "application/vnd.oci.image.layer.v1.tar+zstd");
    assert_eq!(diff_ids(&desk.at("zstd:1")), diff_ids(&desk.at("app:1")));
    let plain = desk.place("plain:1");
    desk.run(&["copy", "--compression", "none", &to, &plain]).success();
    assert_eq!(types(&plain), "application/vnd.oci.image.layer.v1.tar");
    // Back again they are the bytes that a build makes.
    let back = desk.place("gzip:1");
    desk.run(&["copy", "--compression", "gzip", &plain, &back]).success();
    assert_eq!(raw(&back)["layers"], raw(&from)["layers"]);
    let all = desk.place("zstd:all");
    desk.run(&["copy", "--all", "--compression", "zstd", &desk.place("app:all"), &all]).success();
    let entries = raw(&all)["manifests"].as_array().cloned().expect("a list");
    assert!(entries.iter().all(|entry| entry["digest"] != *one && entry["digest"] != *two), "{entries:?}");
    // Docker's media types have no zstd: the image becomes one of OCI.
    let docker = desk.place("docker:1");
    let insecure = ["--src-tls-verify=false", "--dest-tls-verify=false"];
    run("skopeo", &[&["copy", "-q", "--format", "v2s2"][..], &insecure, &[&from, &docker]].concat());
    desk.run(&["copy", "--compression", "none", &docker, &plain]).success();
    assert_eq!(types(&plain), "application/vnd.docker.image.rootfs.diff.tar");
    desk.run(&["copy", "--compression", "zstd", &docker, &plain]).success();
    assert_eq!(raw(&plain)["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(raw(&plain)["config"]["mediaType"], "application/vnd.oci.image.config.v1+json");
    run("skopeo", &["inspect", "--tls-verify=false", &plain]);
    desk.run(&["copy", "--compression", "lzma", &docker, &plain]).failure(2, "lzma");
    desk.run(&["copy", "--compression", "gzip", "--compression-level", "99", &docker, &plain]).failure(2, "99");
    desk.run(&["copy", "--compression-level", "1", &docker, &plain]).failure(2, "--compression");
}

#[test]
fn compressed_archives_are_read() {
    let desk = desk();
    let digest = desk.push("app:1", "linux/amd64", "x");
    for (transport, program, ending) in [("oci-archive", "gzip", "gz"), ("docker-archive", "zstd", "zst")] {
        let plain = format!("{transport}:{}", desk.text("image.tar"));
        desk.run(&["copy", &desk.place("app:1"), &plain]).success();
        run(program, &["-q", "-f", "-k", &desk.text("image.tar")]);
        let packed = desk.run(&["copy", &format!("{plain}.{ending}"), &desk.place("back:1")]).success();
        assert_eq!(packed, desk.run(&["copy", &plain, &desk.place("plain:1")]).success());
        assert!(transport == "docker-archive" || packed == digest);
    }
}

#[test]
fn an_image_that_was_copied_is_told_with_both_places() {
    let desk = desk();
    desk.push("app:1", "linux/amd64", "x");
    let said = |arguments: &[&str]| desk.run(&[&["--progress", "plain"], arguments].concat()).stderr;
    let told = said(&["pull", &desk.at("app:1")]);
    let words = format!("{} -> {} in the store: ", desk.place("app:1"), desk.at("app:1"));
    assert!(told.contains(&format!("{words}unchanged")), "{told}");
    desk.run(&["rmi", &desk.at("app:1")]).success();
    let told = said(&["pull", &desk.at("app:1")]);
    assert!(told.contains(&format!("{words}0 blobs moved, 2 already there")), "{told}");
    let told = said(&["copy", &desk.place("app:1"), "oci:out:app"]);
    assert!(told.contains(&format!("{} -> oci:out:app: 2 blobs moved", desk.place("app:1"))), "{told}");
    let told = said(&["push", &desk.at("app:1"), &desk.at("other:1")]);
    assert!(told.contains(&format!("{} -> {}: ", desk.at("app:1"), desk.place("other:1"))), "{told}");
}

#[test]
fn an_image_that_is_damaged_is_no_index() {
    let desk = desk();
    let digest = desk.push("app:1", "linux/amd64", "x");
    desk.push("app:2", "linux/arm64", "y");
    desk.run(&["manifest", "create", "all", &desk.at("app:1"), &desk.at("app:2")]).success();
    assert_eq!(desk.run(&["verify"]).success(), "nothing is damaged");
    let blob = desk.path("store/blobs/sha256").join(&digest["sha256:".len()..]);
    fs::remove_file(&blob).expect("removed");
    let rows = desk.run(&["images", "--format", "json"]).json();
    let damaged = |name: &str| {
        let mut rows = rows.as_array().expect("a list").iter();
        rows.find(|row| row["name"] == name).map(|row| row["damaged"].clone())
    };
    assert_eq!(damaged(&desk.at("app:1")), Some(true.into()));
    assert_eq!((damaged(&desk.at("app:2")), damaged("all")), (Some(false.into()), Some(false.into())));
    let listed = desk.run(&["images", &desk.at("app")]).success();
    assert_eq!((listed.lines().count(), listed.matches("damaged").count()), (3, 1), "{listed}");
    assert_eq!(desk.run(&["images", "--quiet", &desk.at("app:1")]).success(), digest);
    let verified = desk.run(&["verify", "--format", "json"]);
    assert_eq!(verified.code, Some(1));
    let damage: Value = serde_json::from_str(&verified.stdout).expect("JSON");
    assert_eq!(damage[0]["path"].as_str(), blob.to_str());
    assert!(desk.run(&["doctor"]).stdout.contains(&format!("these are damaged: {}", desk.at("app:1"))));
}

#[test]
fn a_full_disk_is_told_with_the_file_and_the_way_out() {
    let desk = desk();
    // A layer of 9 MB whose blob is small: its tar fills the disk, and not the blob.
    desk.push("app:1", "linux/amd64", &"x".repeat(9 << 20));
    desk.run(&["copy", "--compression", "none", &desk.place("app:1"), &desk.place("app:plain")]).success();
    let disk = SmallDisk::mount(desk.path("small"), "3m");
    let store = desk.text("small/store");
    for name in ["app:1", "app:plain"] {
        let ended = desk.run(&["--root", &store, "pull", &desk.at(name)]);
        assert!(ended.stderr.contains("hint: the disk is full"), "{}", ended.stderr);
        assert!(ended.stderr.contains(&store), "{}", ended.stderr);
        ended.failure(1, "No space left on device");
    }
    for place in ["oci", "oci-archive", "docker-archive"] {
        let ended = desk.run(&["copy", &desk.place("app:plain"), &format!("{place}:{}/image", desk.text("small"))]);
        assert!(ended.stderr.contains("hint: the disk is full"), "{}", ended.stderr);
        ended.failure(1, &format!("{place}:{}/image", desk.text("small")));
    }
    drop(disk);
}

#[test]
fn a_store_that_cannot_be_written_is_read() {
    let desk = desk();
    let digest = desk.push("app:1", "linux/amd64", "content");
    let (name, store) = (desk.at("app:1"), desk.text("store"));
    // A mount namespace of its own, in which the store is read-only.
    let run = |arguments: &[&str]| -> Ended {
        let mut command = desk.command_of("unshare");
        command.args(["--mount", "sh", "-ec", "mount --bind -o ro \"$0\" \"$0\"; exec \"$@\"", &store]);
        Ended::of(command.arg(env!("CARGO_BIN_EXE_nacre")).args(arguments))
    };
    assert_eq!(run(&["images", "--quiet"]).success(), digest);
    assert!(run(&["inspect", &name]).success().contains(&digest));
    run(&["history", &name]).success();
    assert_eq!(run(&["push", &name, &desk.place("again:1")]).success(), digest);
    run(&["copy", &name, &format!("oci:{}", desk.text("layout"))]).success();
    run(&["tag", &name, "other"]).failure(1, "Read-only file system");
    run(&["prune"]).failure(1, "ead-only file");
    run(&["pull", &desk.at("again:1")]).failure(1, "Read-only file system");
}

#[test]
fn a_command_runs_in_the_image_of_its_platform_pulled_as_it_is_asked_for() {
    let desk = desk();
    let dockerfile = "FROM scratch\nARG TARGETARCH\nCOPY sh /bin/sh\nENV BUILT_FOR=$TARGETARCH\n";
    desk.busybox("context/sh").write("context/Dockerfile", dockerfile);
    let places = ["amd64", "arm64"].map(|architecture| {
        let name = desk.at(&format!("app:{architecture}"));
        let platform = format!("linux/{architecture}");
        desk.run(&["build", "--platform", &platform, "-t", &name, &desk.text("context")]).success();
        desk.run(&["push", &name]).success();
        format!("docker://{name}")
    });
    let image = desk.at("app:1");
    desk.run(&["manifest", "create", &desk.place("app:1"), &places[0], &places[1]]).success();
    let run = |flags: &[&str]| desk.run(&[&["run"], flags, &[&image, "sh", "-c", "echo $BUILT_FOR"]].concat());
    run(&["--pull", "never", "--platform", "linux/amd64"]).failure(125, "is not in the store");
    assert_eq!(run(&["--platform", "linux/amd64"]).success(), "amd64");
    assert_eq!(run(&["--pull", "never", "--platform", "linux/amd64"]).success(), "amd64");
    run(&["--pull", "never", "--platform", "linux/arm64"]).failure(125, "linux/arm64 is not in the store");
    assert_eq!(run(&["--platform", "linux/arm64"]).success(), "arm64");
    desk.run(&["manifest", "remove", &desk.place("app:1"), "linux/arm64"]).success();
    assert_eq!(run(&["--platform", "linux/arm64"]).success(), "arm64", "what the store has is not asked for");
    run(&["--pull", "always", "--platform", "linux/arm64"]).failure(125, "no image for linux/arm64");
}

#[test]
fn files_are_pushed_as_an_artifact_and_come_back_under_plain_names_only() {
    let desk = desk();
    let contents = [("one.txt", vec![1; 100]), ("two.bin", vec![2; 6_000_000])];
    contents.iter().for_each(|(name, bytes)| fs::write(desk.path(name), bytes).expect("written"));
    let name = desk.at("files:1");
    let push =
        |name: &str| desk.run(&["artifact", "push", name, "one.txt:text/plain", "two.bin", "--artifact-type", "a/b"]);
    let digest = push(&name).success();
    assert_eq!(push(&name).success(), digest, "the same files are the same artifact");
    push(&desk.at(&format!("files@{digest}"))).failure(2, "under a tag");
    for source in [name.clone(), desk.place(&format!("files@{digest}"))] {
        let target = desk.text("back");
        assert_eq!(desk.run(&["artifact", "pull", &source, "-o", &target]).success(), "one.txt\ntwo.bin");
        for (name, bytes) in &contents {
            assert!(fs::read(desk.path("back").join(name)).expect("there") == *bytes, "{name}");
        }
        assert_eq!(fs::read_dir(&target).expect("readable").count(), 2);
        fs::remove_dir_all(target).expect("removed");
    }
    desk.push("image:1", "linux/amd64", "x");
    desk.run(&["artifact", "pull", &desk.at("image:1")]).failure(1, "no files with names");
    desk.run(&["artifact", "pull", &desk.at("nothing:1")]).failure(3, "404");
}

#[test]
fn names_of_files_in_an_artifact_never_lead_out_of_the_directory() {
    let digest = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
    for titles in [&["../x"][..], &["/tmp/x"], &["a/b"], &[".."], &[""], &["a\nb"], &["a", "a"]] {
        let blob = |title: Option<&str>| {
            serde_json::json!({"mediaType": "a/b", "digest": digest, "size": 2,
                "annotations": title.map(|title| serde_json::json!({"org.opencontainers.image.title": title}))})
        };
        let layers: Vec<Value> = titles.iter().map(|title| blob(Some(title))).collect();
        let config = serde_json::json!({"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest, "size": 2});
        let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string();
        let server = FaultServer::start(move |request| match request.path.contains("/manifests/") {
            true => {
                Reply::new(200).header("Content-Type", "application/vnd.oci.image.manifest.v1+json").body(&*manifest)
            }
            false => Reply::new(200).body("{}"),
        });
        let desk = desk();
        let name = format!("{}/a:1", server.address());
        desk.run(&["artifact", "pull", &name, "-o", &desk.text("out")]).failure(1, "cannot write the files of");
        assert!(!desk.path("out").exists() && !desk.path("x").exists(), "{titles:?}");
    }
}
