//! What a build that pushes sends to its registry while it goes on, and what becomes of that when it fails.

use std::sync::{Arc, Condvar, Mutex};

use fixtures::fault::{FaultServer, Reading, Reply, Request};
use fixtures::registry::Registry;
use fixtures::{noise, run};
use layerfs::digest_of;

use crate::support::Bench;

/// Far more than is compressed before a registry on loopback answers.
const FILE_BYTES: usize = 48 << 20;

/// A registry in memory that takes everything, and a file server whose only file waits for the first stream.
#[derive(Default)]
struct Playing {
    /// Digests and sizes.
    blobs: Mutex<Vec<(String, usize)>>,
    parts: Mutex<Vec<u8>>,
    has_stream: Mutex<bool>,
    began: Condvar,
}

impl Playing {
    fn watch(&self, request: &Request) -> Reading {
        if is_stream(request) && !request.body.is_empty() {
            *self.has_stream.lock().expect("no panic") = true;
            self.began.notify_all();
        }
        Reading::On
    }

    fn answer(&self, request: &Request) -> Reply {
        let located = |status| Reply::new(status).header("Location", "/v2/app/blobs/uploads/id?state=1");
        let size = |digest: &str| {
            let blobs = self.blobs.lock().expect("no panic");
            blobs.iter().find(|(known, _)| known == digest).map(|(_, size)| size.to_string())
        };
        match (request.method.as_str(), request.path.rsplit(['/', '=']).next().unwrap_or_default()) {
            ("GET", "gate") => {
                let began = self.has_stream.lock().expect("no panic");
                drop(self.began.wait_while(began, |has_stream| !*has_stream).expect("no panic"));
                Reply::new(404)
            }
            ("POST", _) => located(202),
            ("PATCH", _) => {
                *self.parts.lock().expect("no panic") = request.body.clone();
                located(202)
            }
            ("PUT", _) if request.path.contains("/manifests/") => Reply::new(201),
            ("PUT", digest) => {
                let streamed = std::mem::take(&mut *self.parts.lock().expect("no panic"));
                let content = if request.body.is_empty() { streamed } else { request.body.clone() };
                self.blobs.lock().expect("no panic").push((digest_of(&content).to_string(), content.len()));
                Reply::new(if size(&digest.replace("%3A", ":")).is_some() { 201 } else { 400 })
            }
            ("HEAD", digest) => match size(digest) {
                Some(size) => Reply::new(200).header("Content-Length", size),
                None => Reply::new(404),
            },
            ("DELETE", _) => Reply::new(204),
            _ => Reply::new(404),
        }
    }
}

fn is_stream(request: &Request) -> bool {
    request.method == "PATCH" && request.header("transfer-encoding") == Some("chunked")
}

fn play() -> FaultServer {
    let playing = Arc::new(Playing::default());
    let watching = Arc::clone(&playing);
    FaultServer::watching(move |request| watching.watch(request), move |request| playing.answer(request))
}

#[test]
fn a_layer_is_sent_once_and_while_it_is_compressed() {
    let server = play();
    let bench = Bench::new();
    bench.file("noise", noise("pushed", FILE_BYTES)).dockerfile("FROM scratch\nCOPY noise /");
    let names = ["app:1", "app:2"].map(|name| format!("{}/{name}", server.address()));
    let digest = bench.build(&["-t", &names[0], "-t", &names[1], "--push"]).digest();
    let uploads: Vec<String> = (server.requests().iter())
        .filter(|request| request.path.contains("/blobs/uploads/"))
        .map(|request| format!("{} {}", request.method, if is_stream(request) { "streamed" } else { "" }))
        .collect();
    // The layer, then the configuration.
    assert_eq!(uploads, ["POST ", "PATCH streamed", "PUT ", "POST ", "PUT "]);
    let stream = server.requests().into_iter().find(is_stream).expect("one");
    let manifest = bench.run(&["inspect", "--raw", "manifest", &names[0]]).succeeds().stdout;
    assert!(manifest.contains(digest_of(&stream.body).as_ref()), "{manifest}");
    // What is in the store already has a digest to ask for.
    bench.build(&["-t", &names[0], "--push", "--no-cache"]).succeeds();
    assert_eq!(server.requests().iter().filter(|request| is_stream(request)).count(), 1);
    let apart = Bench::new();
    apart.file("noise", noise("pushed", FILE_BYTES)).dockerfile("FROM scratch\nCOPY noise /");
    assert_eq!(apart.build(&[]).digest(), digest, "how it was sent does not show");
}

#[test]
fn a_build_that_fails_ends_the_upload_that_is_open() {
    let server = play();
    let bench = Bench::new();
    bench.file("noise", noise("pushed", FILE_BYTES));
    bench.dockerfile(&format!("FROM scratch\nCOPY noise /\nADD http://{}/gate /", server.address()));
    let error = bench.build(&["-t", &format!("{}/app:1", server.address()), "--push"]).fails(3);
    assert!(error.contains("404"), "{error}");
    assert_eq!((server.count("DELETE", "/uploads/id"), server.count("PUT", "")), (1, 0));
    bench.assert_clean();
}

#[test]
fn a_real_registry_has_what_was_streamed_to_it() {
    let registry = Registry::open();
    let bench = Bench::new();
    bench.file("noise", noise("pushed", FILE_BYTES)).dockerfile("FROM scratch\nCOPY noise /\nCOPY noise /other");
    for compression in ["gzip", "zstd", "uncompressed"] {
        let name = format!("{}/app:{compression}", registry.address());
        let output = format!("type=image,name={name},push=true,compression={compression},force-compression=true");
        let digest = bench.build(&["-o", &output]).digest();
        let copied = bench.path(compression).display().to_string();
        run("skopeo", &["copy", "--src-tls-verify=false", &format!("docker://{name}"), &format!("dir:{copied}")]);
        let manifest = std::fs::read(bench.path(compression).join("manifest.json")).expect("copied");
        assert_eq!(digest_of(&manifest).to_string(), digest);
    }
}
