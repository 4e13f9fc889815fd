//! What BuildKit does with stages, platforms and places of files, where a build has to be run for it.

use std::fs;

use serde_json::json;

use fixtures::names;

use crate::support::{Bench, SHELL};

/// A base image in the OCI layout `base`, of what a Dockerfile says.
fn with_base(bench: Bench, text: &str, platform: &str) -> Bench {
    let arguments = ["--platform", platform, "-o", "type=oci,dest=base,tar=false"];
    bench.dockerfile(text).build(&arguments).succeeds();
    bench
}

const ON_BASE: [&str; 2] = ["--build-context", "base=oci-layout://base"];

#[test]
fn a_here_document_is_never_a_file_anywhere_else() {
    let bench = Bench::with_busybox();
    let outside = bench.path("outside");
    let delimiters = [outside.to_str().expect("text"), "../../../outside", "a/b", "..", "."];
    for delimiter in delimiters {
        for instruction in [format!("RUN <<\"{delimiter}\""), format!("COPY <<\"{delimiter}\" /x/")] {
            bench.dockerfile(&format!("{SHELL}{instruction}\n#!/bin/sh\ntrue\n{delimiter}\n"));
            let said = bench.build(&[]);
            if delimiter == "../../../outside" {
                said.succeeds();
            } else {
                let error = said.fails(1);
                assert!(error.contains("cannot be the name of a file"), "{instruction}: {error}");
            }
            assert!(!outside.exists(), "{instruction}");
        }
    }
    bench.dockerfile("FROM scratch\nCOPY <<\"/etc/../x\" <<../y /d/\n1\n/etc/../x\n2\n../y\n");
    let out = bench.tree(&[]);
    assert_eq!((names(&out), names(&out.join("d"))), (vec!["d".to_owned()], vec!["x".to_owned(), "y".to_owned()]));
    // What the program of a base image's trigger is called is checked, too.
    let text = format!("{SHELL}ONBUILD RUN <<\"{0}\"\n#!/bin/sh\n{0}\n", delimiters[0]);
    let bench = with_base(bench, &text, "linux/amd64");
    bench.dockerfile("FROM base\n");
    assert!(bench.build(&ON_BASE).fails(1).contains("cannot be the name of a file"));
    assert!(!outside.exists());
    bench.assert_clean();
}

#[test]
fn a_base_image_without_a_path_has_one_before_the_first_instruction() {
    let bench = with_base(Bench::new(), "FROM scratch\nCOPY Dockerfile /\n", "windows/amd64");
    // A base that sets no PATH: that of Windows, called one of Linux.
    let blobs = bench.path("base/blobs/sha256");
    let digest = |bytes: &[u8]| layerfs::digest_of(bytes).digest().to_owned();
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(bench.path("base/index.json")).expect("read")).expect("JSON");
    let read = |descriptor: &serde_json::Value| {
        let name = descriptor["digest"].as_str().expect("a digest").trim_start_matches("sha256:").to_owned();
        let document: serde_json::Value =
            serde_json::from_slice(&fs::read(blobs.join(name)).expect("read")).expect("JSON");
        document
    };
    let write = |document: &serde_json::Value, descriptor: &mut serde_json::Value| {
        let bytes = serde_json::to_vec(document).expect("JSON");
        fs::write(blobs.join(digest(&bytes)), &bytes).expect("written");
        descriptor["digest"] = format!("sha256:{}", digest(&bytes)).into();
        descriptor["size"] = bytes.len().into();
    };
    let mut index = index;
    let mut manifest = read(&index["manifests"][0]);
    let mut config = read(&manifest["config"]);
    config["os"] = "linux".into();
    config["config"]["Env"] = json!(["A=1"]);
    write(&config, &mut manifest["config"]);
    write(&manifest, &mut index["manifests"][0]);
    index["manifests"][0].as_object_mut().expect("an object").remove("platform");
    fs::write(bench.path("base/index.json"), index.to_string()).expect("written");
    bench.dockerfile("FROM base\nENV PATH=$PATH:/x\n");
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let env = |bench: &Bench, arguments: &[&str]| {
        bench.build(&[&["--platform", "linux/amd64"], arguments].concat()).config()["config"]["Env"].clone()
    };
    assert_eq!(env(&bench, &ON_BASE), json!(["A=1", format!("{path}:/x")]));
    bench.dockerfile("FROM base\n");
    assert_eq!(env(&bench, &ON_BASE), json!(["A=1", path]));
    // A context in the place of a stage stays as it is.
    bench.dockerfile("FROM scratch AS one\n");
    assert_eq!(env(&bench, &["--build-context", "one=oci-layout://base"]), json!(["A=1"]));
}

#[test]
fn an_image_is_for_the_platform_that_was_asked_for() {
    let bench = with_base(Bench::new(), "FROM scratch\nCOPY Dockerfile /\n", "linux/arm/v6");
    let platform = |arguments: &[&str]| {
        let config = bench.build(&[&ON_BASE, arguments].concat()).config();
        json!([config["os"], config["architecture"], config["variant"]])
    };
    bench.dockerfile("FROM --platform=linux/arm/v6 base\n");
    assert_eq!(platform(&[]), json!(["linux", "arm", "v6"]));
    assert_eq!(platform(&["--platform", "linux/arm64/v8"]), json!(["linux", "arm64", null]));
    assert_eq!(platform(&["--platform", "linux/s390x"]), json!(["linux", "s390x", null]));
    bench.dockerfile("FROM --platform=linux/s390x scratch\nCOPY Dockerfile /\n");
    assert_eq!(platform(&["--platform", "linux/arm/v7"]), json!(["linux", "arm", "v7"]));
    assert_ne!(platform(&[])[1], "s390x");
}

#[test]
fn a_directory_as_the_base_has_its_place_in_the_history_at_the_end() {
    let bench = Bench::new();
    bench.file("f", "").dockerfile("FROM files\nENV A=1\nCOPY f /g\n");
    fs::create_dir(bench.path("files")).expect("a directory");
    let config = bench.build(&["--build-context", "files=files"]).config();
    let history = config["history"].as_array().expect("a list");
    let empty: Vec<bool> = history.iter().map(|entry| entry["empty_layer"] == true).collect();
    assert_eq!((empty, config["rootfs"]["diff_ids"].as_array().map(Vec::len)), (vec![true, false, false], Some(2)));
    assert_eq!((&history[1]["created_by"], history[2].get("created_by")), (&"COPY f /g".into(), None));
}

#[test]
fn the_default_network_of_a_step_is_that_of_the_build() {
    let bench = Bench::with_busybox();
    bench.dockerfile(&format!("{SHELL}RUN --network=default ip -o link > /f\n"));
    let links = fs::read_to_string(bench.tree(&["--network", "none"]).join("f")).expect("it is in the result");
    assert_eq!(links.lines().count(), 1, "{links}");
}

#[test]
fn scratch_is_a_place_with_nothing_in_it() {
    let bench = Bench::with_busybox();
    bench.dockerfile(&format!(
        "{SHELL}COPY --from=scratch / /e/\nRUN --mount=from=scratch,target=/m ls -A /m > /f\n\
         RUN --mount=type=cache,from=scratch,target=/c ls -A /c >> /f\n"
    ));
    let out = bench.tree(&[]);
    assert_eq!(names(&out.join("e")), [""; 0]);
    assert_eq!(fs::read(out.join("f")).expect("it is in the result"), b"");
    bench.dockerfile("FROM scratch\nCOPY --from=scratch /x /\n");
    assert!(bench.build(&[]).fails(1).contains("not found"));
}

#[test]
fn the_shell_is_started_with_nothing_where_nothing_is_said() {
    let bench = Bench::with_busybox();
    bench.dockerfile(&format!("{SHELL}RUN\nENTRYPOINT\nCMD\n"));
    let config = bench.build(&[]).config();
    assert_eq!(config["config"]["Entrypoint"], json!(["/bin/sh", "-c", ""]));
    assert_eq!(config["config"]["Cmd"], json!(["/bin/sh", "-c", ""]));
    bench.dockerfile("FROM scratch AS empty\nRUN []\nFROM scratch\nENTRYPOINT []\nCMD []\n");
    let config = bench.build(&[]).config();
    assert_eq!((config["config"].get("Entrypoint"), config["config"].get("Cmd")), (None, None));
    assert!(bench.build(&["--target", "empty"]).fails(1).contains("RUN requires at least one argument"));
}

#[test]
fn a_trigger_is_an_instruction_once_it_triggers() {
    let bench = Bench::with_busybox();
    for (trigger, expected) in [
        ("FOO bar", "unknown instruction: FOO"),
        ("COPY a", "requires at least two arguments"),
        ("RUN --mount=type=x y", "unsupported mount type"),
        ("RUN []", "RUN requires at least one argument"),
        ("# x", "no instructions"),
    ] {
        bench.dockerfile(&format!("FROM scratch AS base\nONBUILD {trigger}  \nFROM base\n"));
        let config = bench.build(&["--target", "base"]).config();
        assert_eq!(config["config"]["OnBuild"], json!([format!("{trigger}  ")]));
        let error = bench.build(&[]).fails(1);
        assert!(error.contains(expected), "{trigger}: {error}");
    }
}
