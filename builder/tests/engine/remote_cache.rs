//! Caches that one machine writes and another reads: each machine is a store of its own.

use std::fs;
use std::path::Path;

use fixtures::registry::Registry;
use fixtures::{Ended, names};

use crate::support::{Bench, SHELL};

/// Two stages; the second takes one file of the first, and a file of the context last.
fn dockerfile() -> String {
    format!(
        "{SHELL}FROM shell AS maker\nRUN --mount=type=secret,id=token cat /run/secrets/token > /dev/null; echo made > /made; echo x > /other\n\
         FROM scratch\nCOPY --from=maker /made /made\nCOPY file /file\n"
    )
}

/// A machine with the build's files and an empty store.
fn machine(file: &str) -> Bench {
    let bench = Bench::with_busybox();
    bench.file("file", file).dockerfile(&dockerfile());
    fs::write(bench.path("token"), "a-very-secret-token").expect("written");
    bench
}

fn build(bench: &Bench, arguments: &[&str]) -> Ended {
    bench.build(&[&["--secret", "id=token,src=token"], arguments].concat()).succeeds()
}

#[test]
fn another_machine_carries_no_step_out_and_gets_the_same_digest() {
    let registry = Registry::open();
    let reference = format!("{}/app:cache", registry.address());
    for options in ["", ",compression=zstd", ",compression=gzip,compression-level=9", ",compression=uncompressed"] {
        let first = machine("one");
        let to = format!("type=registry,ref={reference},mode=max{options}");
        let digest = build(&first, &["--cache-to", &to]).digest();
        let second = machine("one");
        let from = format!("type=registry,ref={reference}");
        let done = build(&second, &["--cache-from", &from]);
        assert!(!done.stderr.contains(" DONE"), "{options}: {}", done.stderr);
        assert_eq!(done.digest(), digest, "{options}");
        // What was found there is here now: without the cache, too, nothing is carried out.
        assert_eq!(build(&second, &[]).cached(), 5, "{options}");
        second.assert_clean();
    }
}

#[test]
fn one_changed_file_carries_out_only_the_steps_after_it() {
    let registry = Registry::open();
    let reference = format!("{}/app:cache", registry.address());
    build(&machine("one"), &["--cache-to", &reference]);
    // `mode=min` has the steps of the result only.
    let second = machine("two");
    assert_eq!(build(&second, &["--cache-from", &reference]).cached(), 1);
    let digest = build(&machine("two"), &[]).digest();
    assert_eq!(build(&second, &[]).digest(), digest);
}

#[test]
fn the_cache_holds_the_blobs_of_the_image_and_no_secret() {
    let bench = machine("one");
    let digest = build(&bench, &["--cache-to", "type=local,dest=cache,mode=max"]).digest();
    let cached = blobs(&bench.path("cache"));
    for (name, bytes) in &cached {
        assert!(!String::from_utf8_lossy(bytes).contains("a-very-secret-token"), "{name}");
        assert!(bench.store().join("blobs/sha256").join(name).exists(), "{name} is nothing of its own");
    }
    let manifest = bench.build(&[]).document(&digest);
    for layer in manifest["layers"].as_array().expect("layers") {
        let digest = layer["digest"].as_str().expect("a digest").trim_start_matches("sha256:");
        assert!(cached.iter().any(|(name, _)| name == digest), "{digest}");
    }
    // Five steps, a configuration and a manifest; the same again gives the same.
    assert_eq!(cached.len(), 7);
    build(&machine("one"), &["--cache-to", &format!("type=local,dest={},mode=max", bench.path("cache").display())]);
    assert_eq!(blobs(&bench.path("cache")).len(), 7);
    let second = machine("one");
    let from = format!("type=local,src={}", bench.path("cache").display());
    assert_eq!(build(&second, &["--cache-from", &from]).cached(), 5);
}

fn blobs(layout: &Path) -> Vec<(String, Vec<u8>)> {
    let directory = layout.join("blobs/sha256");
    let names = names(&directory);
    names.into_iter().map(|name| (name.clone(), fs::read(directory.join(name)).expect("a blob"))).collect()
}

#[test]
fn an_image_with_an_inline_cache_gives_its_own_steps() {
    let registry = Registry::open();
    let name = format!("{}/app:1", registry.address());
    for packing in ["gzip", "zstd"] {
        let output = format!("type=registry,name={name},compression={packing}");
        let digest = build(&machine("one"), &["-o", &output, "--cache-to", "type=inline"]).digest();
        let second = machine("one");
        let done = build(&second, &["--cache-from", &name, "-o", &output, "--build-arg", "BUILDKIT_INLINE_CACHE=1"]);
        assert_eq!(done.stderr.lines().filter(|line| line.ends_with(" CACHED")).count(), 2, "{}", done.stderr);
        assert_eq!(done.digest(), digest, "{packing}");
    }
    // A child of the image does not inherit what its base says of itself.
    let child = Bench::new();
    child.dockerfile(&format!("FROM {name}\nLABEL a=b\n"));
    let config = child.build(&[]).config();
    assert!(!config.to_string().contains("buildcache"), "{config}");
}

#[test]
fn a_cache_that_cannot_be_read_is_a_warning_and_one_that_cannot_be_written_an_error() {
    let bench = machine("one");
    fs::create_dir(bench.path("empty")).expect("a directory");
    let done = build(&bench, &["--cache-from", "127.0.0.1:1/none", "--cache-from", "type=local,src=empty"]);
    assert_eq!(done.stderr.matches("is not used").count(), 2, "{}", done.stderr);
    let to = "type=registry,ref=127.0.0.1:1/none";
    let said = bench.build(&["--secret", "id=token,src=token", "--cache-to", to]);
    assert_eq!(said.code, Some(3), "{}", said.stderr);
    let done = build(&bench, &["--cache-to", &format!("{to},ignore-error=true")]);
    assert!(done.stderr.contains("the cache was not written"), "{}", done.stderr);
    assert!(bench.build(&["--cache-to", "type=gha"]).fails(2).contains("type=gha"));
}

#[test]
fn a_cache_that_lies_changes_nothing() {
    let bench = machine("one");
    let digest = build(&bench, &["--cache-to", "type=local,dest=cache,mode=max"]).digest();
    // Every layer's bytes are replaced by those of another file of the same size.
    for (name, bytes) in blobs(&bench.path("cache")) {
        if !bytes.starts_with(b"{") {
            let path = bench.path("cache/blobs/sha256").join(&name);
            fs::write(path, vec![0; bytes.len()]).expect("written");
        }
    }
    let from = format!("type=local,src={}", bench.path("cache").display());
    let second = machine("one");
    let done = build(&second, &["--cache-from", &from]);
    assert_eq!(done.stderr.matches("is not used").count(), 1, "told once: {}", done.stderr);
    assert_eq!((done.digest(), build(&second, &[]).cached()), (digest, 5));
    second.assert_clean();
}

#[test]
fn a_cache_that_gives_the_wrong_diff_ids_changes_nothing() {
    let bench = machine("one");
    let digest = build(&bench, &["--cache-to", "type=local,dest=cache,mode=max"]).digest();
    let cache = bench.path("cache");
    // Two layers change places in the configuration, as a liar with valid digests would write it.
    let index: serde_json::Value = json(&cache.join("index.json"));
    let at = |digest: &serde_json::Value| {
        let digest = digest.as_str().expect("a digest").trim_start_matches("sha256:").to_owned();
        cache.join("blobs/sha256").join(digest)
    };
    let mut manifest = json(&at(&index["manifests"][0]["digest"]));
    let mut config = json(&at(&manifest["config"]["digest"]));
    config["rootfs"]["diff_ids"].as_array_mut().expect("diff ids").rotate_left(1);
    let put = |value: &serde_json::Value| {
        let bytes = value.to_string().into_bytes();
        let digest = layerfs::digest_of(&bytes);
        fs::write(cache.join("blobs/sha256").join(digest.digest()), &bytes).expect("written");
        (digest.to_string(), bytes.len())
    };
    let (config, size) = put(&config);
    (manifest["config"]["digest"], manifest["config"]["size"]) = (config.into(), size.into());
    let (manifest, _) = put(&manifest);
    let from = format!("type=local,src={},digest={manifest}", cache.display());
    let done = build(&machine("one"), &["--cache-from", &from]);
    assert_eq!(done.stderr.matches("is not used").count(), 1, "{}", done.stderr);
    assert_eq!(done.digest(), digest);
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).expect("there")).expect("JSON")
}
