//! Statements about images: attached beside them, the same each time, and true.

use std::fs;

use fixtures::registry::Registry;
use fixtures::{names, run};
use serde_json::{Value, json};

use crate::support::Bench;

const PROVENANCE: &str = "https://slsa.dev/provenance/v1";
const PACKAGES: &str = "https://spdx.dev/Document";

fn bench(registry: &Registry) -> Bench {
    let bench = Bench::with_busybox();
    bench.dockerfile("FROM scratch\nCOPY busybox /bin/busybox\n");
    bench.build(&["-t", &format!("{}/base:1", registry.address()), "--push"]).succeeds();
    // What dpkg says of this machine, it is to say of the image.
    fs::copy("/var/lib/dpkg/status", bench.path("context/status")).expect("a Debian machine");
    fs::copy("/etc/os-release", bench.path("context/os-release")).expect("a Debian machine");
    bench.dockerfile(&format!(
        "FROM {}/base:1\nARG TOKEN\nCOPY os-release /etc/\nCOPY status /var/lib/dpkg/status\n\
         RUN --mount=type=secret,id=key [\"/bin/busybox\", \"true\"]\n",
        registry.address()
    ));
    fs::write(bench.path("key"), "unspoken").expect("written");
    bench
}

/// The statement of a kind about an image at a registry, by way of what a user would do.
fn statement(bench: &Bench, name: &str, kind: &str) -> Value {
    let listed = bench.run(&["referrers", name, "--format", "json"]).succeeds().stdout;
    let listed: Vec<Value> = serde_json::from_str(&listed).expect("JSON");
    let found: Vec<_> =
        listed.iter().filter(|entry| entry["annotations"]["in-toto.io/predicate-type"] == kind).collect();
    assert_eq!(found.len(), 1, "{listed:?}");
    assert_eq!(found[0]["artifactType"], "application/vnd.in-toto+json");
    let manifest =
        bench.run(&["manifest", "inspect", "--raw", &format!("{name}@{}", found[0]["digest"].as_str().expect("text"))]);
    let manifest: Value = serde_json::from_str(&manifest.succeeds().stdout).expect("JSON");
    let layer = &manifest["layers"][0];
    assert_eq!(layer["annotations"]["in-toto.io/predicate-type"], kind);
    let (registry, repository) = name.split_once('/').expect("a registry");
    let url = format!("http://{registry}/v2/{repository}/blobs/{}", layer["digest"].as_str().expect("text"));
    serde_json::from_str(&run("curl", &["-sSfL", &url])).expect("JSON")
}

#[test]
fn statements_are_pushed_beside_an_image_whose_digest_they_do_not_change() {
    let registry = Registry::open();
    let (bench, name) = (bench(&registry), format!("{}/app", registry.address()));
    let secret = format!("id=key,src={}", bench.path("key").display());
    let plain = ["--build-arg", "TOKEN=spoken", "--secret", &secret, "-t", &name, "--push"];
    let digest = bench.build(&plain).digest();
    assert_eq!(bench.run(&["referrers", &name, "--format", "json"]).succeeds().stdout.trim(), "[]");
    for _ in 0..2 {
        let said = bench
            .build(&[&plain[..], &["--provenance=mode=max,builder-id=https://example.com/ci", "--sbom=true"]].concat());
        assert_eq!(said.digest(), digest);
    }

    let provenance = statement(&bench, &name, PROVENANCE);
    assert_eq!(provenance["_type"], "https://in-toto.io/Statement/v1");
    let subject = &provenance["subject"][0];
    assert_eq!(format!("sha256:{}", subject["digest"]["sha256"].as_str().expect("text")), digest);
    assert!(
        subject["name"].as_str().expect("text").starts_with(&format!("pkg:docker/{name}@latest?platform=linux%2F"))
    );
    let definition = &provenance["predicate"]["buildDefinition"];
    let base = &definition["resolvedDependencies"][0];
    assert!(base["uri"].as_str().expect("text").starts_with(&format!("pkg:docker/{}/base@1?", registry.address())));
    let raw =
        run("skopeo", &["inspect", "--raw", "--tls-verify=false", &format!("docker://{}/base:1", registry.address())]);
    assert_eq!(base["digest"]["sha256"], layerfs::digest_of(raw.as_bytes()).digest());
    let request = &definition["externalParameters"]["request"];
    assert_eq!((&request["args"]["build-arg:TOKEN"], &request["secrets"]), (&json!("spoken"), &json!([{"id": "key"}])));
    assert_eq!(provenance["predicate"]["runDetails"]["builder"]["id"], "https://example.com/ci");
    assert!(!provenance.to_string().contains("unspoken"));

    let bill = statement(&bench, &name, PACKAGES)["predicate"].clone();
    let mut found: Vec<String> = bill["packages"].as_array().expect("packages")[1..].iter().map(described).collect();
    let query = ["-W", "-f", "${db:Status-Status} ${Package} ${Version} ${Architecture}\n"];
    let installed = run("dpkg-query", &query);
    let mut expected: Vec<_> = installed.lines().filter_map(|line| line.strip_prefix("installed ")).collect();
    found.sort();
    expected.sort_unstable();
    assert!(expected.len() > 50);
    assert_eq!(found, expected);
}

/// As dpkg-query says it.
fn described(package: &Value) -> String {
    let uri = package["externalRefs"][0]["referenceLocator"].as_str().expect("a package URL");
    assert!(uri.starts_with("pkg:deb/debian/") && uri.contains("&distro=debian-"), "{uri}");
    let architecture = uri.split_once("arch=").and_then(|(_, rest)| rest.split_once('&')).expect("an architecture").0;
    let text = |field: &str| package[field].as_str().expect("text").to_owned();
    format!("{} {} {architecture}", text("name"), text("versionInfo"))
}

#[test]
fn a_layout_and_the_store_hold_the_statements_and_the_same_build_says_the_same() {
    let written = [0, 1].map(|_| {
        let bench = Bench::new();
        bench.file("a", "a").dockerfile("FROM scratch\nCOPY a /a\n");
        let outputs = ["-o", "type=oci,dest=layout,tar=false", "-o", "type=image,name=app:1"];
        let platforms =
            ["--platform", "linux/amd64,linux/arm64", "--attest", "type=provenance", "--attest", "type=sbom"];
        bench.build(&[&outputs[..], &platforms].concat()).succeeds();
        let index: Value =
            serde_json::from_slice(&fs::read(bench.path("layout/index.json")).expect("written")).expect("JSON");
        let index = index["manifests"].as_array().expect("entries").clone();
        // One for each image and kind.
        assert_eq!(index.iter().filter(|entry| entry["artifactType"] == "application/vnd.in-toto+json").count(), 4);
        let pruned = bench.run(&["prune", "--all"]);
        pruned.succeeds();
        bench.run(&["verify"]).succeeds();
        index
    });
    assert_eq!(written[0], written[1]);
}

#[test]
fn statements_have_no_place_in_an_output_of_files() {
    let bench = Bench::new();
    bench.dockerfile("FROM scratch\n");
    let said = bench.build(&["--sbom=true", "-o", "type=local,dest=out"]).fails(2);
    assert!(said.contains("attestations need an output of type image, registry or oci"), "{said}");
    assert!(!bench.path("out").exists());
}

#[test]
fn what_an_earlier_build_said_of_the_same_image_goes_nowhere_with_a_later_one() {
    let bench = Bench::new();
    // The argument counts in no layer of the image.
    bench.file("a", "a").dockerfile("FROM scratch AS other\nARG TOKEN\nFROM scratch\nCOPY a /a\n");
    let image = ["-o", "type=image,name=app:1"];
    let told = ["--build-arg", "TOKEN=spoken", "--provenance=mode=max"];
    let digest = bench.build(&[&image[..], &told].concat()).digest();
    let brief = ["--provenance=mode=min", "-o", "type=oci,dest=layout,tar=false"];
    assert_eq!(bench.build(&brief).digest(), digest);
    let blobs = names(&bench.path("layout/blobs/sha256"));
    let text = |name: &String| {
        let bytes = fs::read(bench.path("layout/blobs/sha256").join(name)).expect("a blob");
        String::from_utf8_lossy(&bytes).into_owned()
    };
    assert_eq!(blobs.iter().filter(|name| text(name).contains(PROVENANCE) && text(name).contains("_type")).count(), 1);
    assert!(blobs.iter().all(|name| !text(name).contains("spoken")));
}

#[test]
fn an_image_whose_packages_cannot_be_listed_is_not_said_to_have_none() {
    let bench = Bench::new();
    bench.file("rpmdb.sqlite", "x").dockerfile("FROM scratch\nCOPY rpmdb.sqlite /var/lib/rpm/\n");
    let said = bench.build(&["--sbom=true"]).fails(1);
    assert!(said.contains("its packages of rpm cannot be listed"), "{said}");
    bench.file("status", "Package: a\nVersion: 1\nStatus: install ok installed\n\n".repeat(700_000));
    bench.dockerfile("FROM scratch\nCOPY status /var/lib/dpkg/\n");
    let said = bench.build(&["--sbom=true"]).fails(1);
    assert!(said.contains("lists of packages have more than"), "{said}");
}
