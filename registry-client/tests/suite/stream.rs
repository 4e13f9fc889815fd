//! Blobs that go out while they are made, and what becomes of them where a registry does not want that.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};

use fixtures::fault::{FaultServer, Reading, Reply, Request};
use fixtures::registry::{Nginx, PASSWORD, Registry, USER};
use oci_spec::image::{Descriptor, MediaType};
use registry_client::*;

use crate::support::*;

/// Larger than GHCR's chunks and any socket's buffer.
const BLOB_BYTES: usize = 9_000_000;

fn blob() -> (Vec<u8>, Descriptor) {
    let bytes = noise("streamed", BLOB_BYTES);
    let descriptor = Descriptor::new(MediaType::ImageLayerGzip, bytes.len() as u64, digest_of(&bytes));
    (bytes, descriptor)
}

fn repository(address: &str) -> Repository {
    let reference: Reference = format!("{address}/a:1").parse().expect("a reference");
    Client::new(quick()).repository(&reference).expect("a host")
}

fn begun(recipe: &str) -> (File, BlobMaker) {
    let file = tempfile::tempfile().expect("a file");
    (file.try_clone().expect("a handle"), BlobMaker::new(file, recipe))
}

/// Makes the blob in pieces while it is put; before each piece but the first, `go_on` is asked with what is written.
fn put(repository: &Repository, go_on: impl Fn(usize) -> bool + Send) -> Result<(Descriptor, Stored), Error> {
    put_of("any", repository, go_on)
}

fn put_of(
    recipe: &str,
    repository: &Repository,
    go_on: impl Fn(usize) -> bool + Send,
) -> Result<(Descriptor, Stored), Error> {
    let (bytes, descriptor) = blob();
    let (mut file, maker) = begun(recipe);
    let growing = maker.blob();
    std::thread::scope(|scope| {
        let putting = scope.spawn(|| repository.put_growing_blob(growing, &Silent));
        let mut written = 0;
        for piece in bytes.chunks(1_000_000) {
            if written > 0 && !go_on(written) {
                growing.abandon();
                return putting.join().expect("no panic");
            }
            file.write_all(piece).expect("written");
            written += piece.len();
            maker.grew(written as u64);
        }
        maker.finish(&descriptor);
        putting.join().expect("no panic")
    })
}

/// A registry that keeps what it is sent, with one quirk.
#[derive(Default)]
struct Keeping {
    parts: Mutex<Vec<u8>>,
    blobs: Mutex<Vec<Vec<u8>>>,
}

impl Keeping {
    fn answer(&self, request: &Request) -> Reply {
        let located = |status| Reply::new(status).header("Location", "/v2/a/blobs/uploads/id?state=1");
        let mut parts = self.parts.lock().expect("no panic");
        match request.method.as_str() {
            "POST" => {
                parts.clear();
                located(202)
            }
            "PATCH" => {
                parts.extend(&request.body);
                located(202).header("Range", format!("0-{}", parts.len() - 1))
            }
            "GET" => located(204).header("Range", format!("0-{}", parts.len().saturating_sub(1))),
            "PUT" => {
                parts.extend(&request.body);
                let digest = digest_of(&parts);
                if !request.path.contains(digest.digest()) {
                    return Reply::new(400);
                }
                self.blobs.lock().expect("no panic").push(std::mem::take(&mut parts));
                Reply::new(201).header("Docker-Content-Digest", digest.to_string())
            }
            "DELETE" => Reply::new(204),
            "HEAD" => match self.blobs.lock().expect("no panic").last() {
                Some(blob) => Reply::new(200).header("Content-Length", blob.len().to_string()),
                None => Reply::new(404),
            },
            _ => Reply::new(404),
        }
    }

    fn has(&self, bytes: &[u8]) -> bool {
        self.blobs.lock().expect("no panic").iter().any(|blob| blob == bytes)
    }
}

fn is_stream(request: &Request) -> bool {
    request.method == "PATCH" && request.header("transfer-encoding") == Some("chunked")
}

fn methods(server: &FaultServer) -> Vec<String> {
    server.requests().into_iter().map(|request| request.method).collect()
}

#[test]
fn bytes_arrive_before_the_blob_is_made() {
    let (keeping, (arrive, arrived)) = (Arc::new(Keeping::default()), mpsc::channel());
    let answering = Arc::clone(&keeping);
    let watch = move |request: &Request| {
        if is_stream(request) {
            arrive.send(request.body.len()).expect("the test listens");
        }
        Reading::On
    };
    let server = FaultServer::watching(watch, move |request| answering.answer(request));
    // No piece is made before all of those before it have arrived.
    let go_on = move |written| arrived.iter().any(|length| length >= written);
    let (descriptor, stored) = put(&repository(server.address()), go_on).expect("pushed");
    assert_eq!((descriptor, stored), (blob().1, Stored::Sent));
    assert!(keeping.has(&blob().0));
    assert_eq!(methods(&server), ["POST", "PATCH", "PUT"]);
}

#[test]
fn what_a_registry_was_sent_of_a_recipe_is_looked_for_and_not_streamed_again() {
    let keeping = Keeping::default();
    let server = FaultServer::start(move |request| keeping.answer(request));
    let repository = repository(server.address());
    put(&repository, |_| true).expect("pushed");
    assert_eq!(put(&repository, |_| true).expect("it is there").1, Stored::Unsent);
    assert_eq!(methods(&server), ["POST", "PATCH", "PUT", "HEAD"]);
    put_of("other", &repository, |_| true).expect("pushed");
    assert_eq!(server.count("PATCH", ""), 2);
}

/// What a registry does to a stream instead of taking it.
type Quirk = fn(&Request) -> Reading;

/// The blob arrives although the registry treats streams so, and no second stream is tried there.
fn falls_back(name: &str, watch: Quirk) -> FaultServer {
    let keeping = Arc::new(Keeping::default());
    let answering = Arc::clone(&keeping);
    let server = FaultServer::watching(watch, move |request| answering.answer(request));
    let repository = repository(server.address());
    let (descriptor, _) = put(&repository, |_| true).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(descriptor, blob().1, "{name}");
    assert!(keeping.has(&blob().0), "{name}");
    let before = server.requests().iter().filter(|request| is_stream(request)).count();
    put_of("other", &repository, |_| true).unwrap_or_else(|error| panic!("{name}, again: {error}"));
    assert_eq!(server.requests().iter().filter(|request| is_stream(request)).count(), before, "{name}");
    server
}

#[test]
fn a_registry_that_takes_no_stream_gets_the_blob_when_it_is_whole() {
    let quirks: [(&str, Quirk); 7] = [
        ("GHCR: chunks of 4 MiB", |request| match request.method == "PATCH" && request.body.len() > 4 << 20 {
            true => Reading::Answer(Reply::new(416)),
            false => Reading::On,
        }),
        ("no PATCH", |request| match request.method.as_str() {
            "PATCH" => Reading::Answer(Reply::new(405)),
            _ => Reading::On,
        }),
        ("a length is wanted", |request| match is_stream(request) {
            true => Reading::Answer(Reply::new(411)),
            false => Reading::On,
        }),
        ("a proxy's limit", |request| match is_stream(request) && request.body.len() > 1 << 20 {
            true => Reading::Answer(Reply::new(413)),
            false => Reading::On,
        }),
        ("a reset in the middle", |request| match is_stream(request) && request.body.len() > 3_000_000 {
            true => Reading::Break,
            false => Reading::On,
        }),
        ("a reset at once", |request| if is_stream(request) { Reading::Break } else { Reading::On }),
        ("it keeps a part only", |request| match is_stream(request) && request.body.len() > 2_000_000 {
            true => {
                let reply = Reply::new(202).header("Location", "/v2/a/blobs/uploads/id?state=2");
                Reading::Answer(reply.header("Range", "0-99"))
            }
            false => Reading::On,
        }),
    ];
    for (name, watch) in quirks {
        falls_back(name, watch);
    }
}

#[test]
fn a_wrong_digest_or_a_refusal_at_the_end_of_a_stream_sends_the_blob_anew() {
    for end in [Reply::new(201).header("Docker-Content-Digest", format!("sha256:{}", "0".repeat(64))), Reply::new(400)]
    {
        let (keeping, is_first) = (Arc::new(Keeping::default()), AtomicBool::new(true));
        let answering = Arc::clone(&keeping);
        let server = FaultServer::start(move |request| {
            if request.method == "PUT" && is_first.swap(false, Ordering::SeqCst) {
                return end.clone();
            }
            answering.answer(request)
        });
        put(&repository(server.address()), |_| true).expect("pushed");
        assert!(keeping.has(&blob().0));
        assert_eq!(methods(&server), ["POST", "PATCH", "PUT", "DELETE", "HEAD", "POST", "PUT"]);
    }
}

#[test]
fn what_a_registry_kept_of_a_broken_stream_is_not_sent_again() {
    let keeping = Arc::new(Keeping::default());
    let (answering, kept) = (Arc::clone(&keeping), Arc::clone(&keeping));
    let watch = move |request: &Request| {
        if is_stream(request) && request.body.len() > 5_000_000 {
            *kept.parts.lock().expect("no panic") = request.body[..5_000_000].to_vec();
            return Reading::Break;
        }
        Reading::On
    };
    let server = FaultServer::watching(watch, move |request| answering.answer(request));
    put(&repository(server.address()), |_| true).expect("pushed");
    assert!(keeping.has(&blob().0));
    let first = server.requests().into_iter().find_map(|request| request.header("content-range").map(str::to_owned));
    assert!(first.is_some_and(|range| range.starts_with("5000000-")), "{:?}", methods(&server));
}

#[test]
fn a_blob_that_comes_to_nothing_ends_its_session() {
    let keeping = Arc::new(Keeping::default());
    let (answering, (arrive, arrived)) = (Arc::clone(&keeping), mpsc::channel());
    let watch = move |request: &Request| {
        if is_stream(request) && request.body.len() >= 1_000_000 {
            _ = arrive.send(()); // of interest once
        }
        Reading::On
    };
    let server = FaultServer::watching(watch, move |request| answering.answer(request));
    let stop = move |_| arrived.recv().is_err();
    let error = put(&repository(server.address()), stop).expect_err("it was abandoned");
    assert!(matches!(error.cause(), Cause::Stopped), "{error}");
    assert_eq!(server.count("DELETE", "/uploads/id"), 1, "{:?}", methods(&server));
    assert!(keeping.blobs.lock().expect("no panic").is_empty());
}

/// docker-registry signs how far an upload is, and ends none that was cut.
#[test]
fn a_stream_that_is_given_up_leaves_no_upload_open_at_a_real_registry() {
    let registry = Registry::open();
    let give_up = |_| {
        while registry.open_uploads().iter().all(|size| *size == 0) {
            std::thread::yield_now();
        }
        false
    };
    let error = put(&repository(registry.address()), give_up).expect_err("it was abandoned");
    assert!(matches!(error.cause(), Cause::Stopped), "{error}");
    assert_eq!(registry.open_uploads(), [0; 0]);
}

fn pushed_to(address: &str, options: ClientOptions) {
    let reference: Reference = format!("{address}/streamed:1").parse().expect("a reference");
    let repository = Client::new(options).repository(&reference).expect("a host");
    let (bytes, descriptor) = blob();
    assert_eq!(put(&repository, |_| true).expect("pushed").0, descriptor);
    let mut read = Vec::new();
    std::io::copy(&mut repository.open_blob(&descriptor).expect("there"), &mut read).expect("read");
    assert!(read == bytes);
}

#[test]
fn a_real_registry_takes_streams_also_behind_a_proxy_that_limits_bodies() {
    let registry = Registry::open();
    pushed_to(registry.address(), quick());
    let unlimited = Nginx::before(&registry, "", "client_max_body_size 0;", "");
    pushed_to(unlimited.address(), quick());
    let limited = Nginx::before(&registry, "", "client_max_body_size 5m;", "");
    pushed_to(limited.address(), quick());
}

#[test]
fn a_token_that_expires_in_a_stream_is_fetched_anew() {
    let Some(registry) = Registry::with_tokens(1) else { return };
    let credential = Credential::Password { user: USER.to_owned(), password: Secret::new(PASSWORD) };
    let given = [(registry.address().to_owned(), credential)].into();
    let credentials = Credentials { given, ..Credentials::default() };
    pushed_to(registry.address(), ClientOptions { credentials, ..quick() });
}

/// A registry whose tokens end when it says so.
struct Expiring {
    keeping: Keeping,
    valid: AtomicUsize,
}

impl Expiring {
    fn expire(&self) {
        self.valid.fetch_add(1, Ordering::SeqCst);
    }

    fn refuses(&self, request: &Request) -> bool {
        let valid = format!("Bearer token-{}", self.valid.load(Ordering::SeqCst));
        !request.path.starts_with("/token") && request.header("authorization") != Some(valid.as_str())
    }

    fn refusal(request: &Request) -> Reply {
        let host = request.header("host").expect("HTTP/1.1");
        let challenge = format!(r#"Bearer realm="http://{host}/token",service="test",scope="repository:a:pull,push""#);
        Reply::new(401).header("WWW-Authenticate", challenge)
    }

    fn answer(&self, request: &Request) -> Reply {
        if request.path.starts_with("/token") {
            return Reply::new(200).body(format!(r#"{{"token": "token-{}"}}"#, self.valid.load(Ordering::SeqCst)));
        }
        if self.refuses(request) { Self::refusal(request) } else { self.keeping.answer(request) }
    }
}

#[test]
fn tokens_that_end_before_within_or_after_a_stream_are_no_failure() {
    for (expires_at, expected) in [(0, "PATCH PATCH PUT"), (2_000_000, "PATCH"), (BLOB_BYTES, "PATCH PUT PUT")] {
        let registry = Arc::new(Expiring { keeping: Keeping::default(), valid: AtomicUsize::new(1) });
        let (watching, answering, is_first) = (Arc::clone(&registry), Arc::clone(&registry), AtomicBool::new(true));
        let watch = move |request: &Request| {
            let is_due = is_stream(request) && request.body.len() >= expires_at;
            if is_due && is_first.swap(false, Ordering::SeqCst) {
                watching.expire();
            }
            match request.method == "PATCH" && request.body.len() < BLOB_BYTES && watching.refuses(request) {
                true => Reading::Answer(Expiring::refusal(request)),
                false => Reading::On,
            }
        };
        let server = FaultServer::watching(watch, move |request| {
            // What was let in when it began is not refused at its end.
            if is_stream(request) { answering.keeping.answer(request) } else { answering.answer(request) }
        });
        put(&repository(server.address()), |_| true).expect("pushed");
        assert!(registry.keeping.has(&blob().0), "{expires_at}");
        let mut sent = methods(&server);
        sent.retain(|method| matches!(method.as_str(), "PATCH" | "PUT"));
        assert!(sent.join(" ").starts_with(expected), "{expires_at}: {sent:?}");
    }
}

#[test]
fn layers_that_are_compressed_anew_go_out_meanwhile() {
    /// Writes a layer as it is, in two halves; the second when the first has arrived.
    struct Halves(Mutex<mpsc::Receiver<usize>>);

    impl Repacker for Halves {
        fn compression(&self) -> LayerCompression {
            LayerCompression::Zstd
        }

        fn name(&self) -> String {
            "halves".to_owned()
        }

        fn repack(&self, layer: &mut (dyn Read + Send), out: &mut (dyn Write + Send)) -> std::io::Result<()> {
            std::io::copy(&mut layer.take(4_000_000), out)?;
            let arrived = self.0.lock().expect("no panic");
            assert!(arrived.iter().any(|length| length >= 4_000_000), "it goes out");
            std::io::copy(layer, out).map(drop)
        }
    }
    let (image, (arrive, arrived)) = (MemoryImage::empty(), mpsc::channel());
    let layer = image.add_blob(MediaType::ImageLayer, blob().0);
    let config = image.add_blob(MediaType::ImageConfig, b"{}".to_vec());
    let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": [layer],
        "mediaType": "application/vnd.oci.image.manifest.v1+json"});
    image.set_top(Manifest::new(None, manifest.to_string().into_bytes()).expect("a manifest"));
    let keeping = Keeping::default();
    let watch = move |request: &Request| {
        if is_stream(request) {
            _ = arrive.send(request.body.len()); // of interest until it is compressed
        }
        Reading::On
    };
    let server = FaultServer::watching(watch, move |request| keeping.answer(request));
    let reference: Reference = format!("{}/a:1", server.address()).parse().expect("a reference");
    let destination = RegistryDestination::new(&Client::new(quick()), &reference).expect("a host");
    let directory = tempfile::tempdir().expect("a directory");
    let options = RepackOptions {
        repacker: &Halves(Mutex::new(arrived)),
        is_forced: false,
        platforms: PlatformChoice::All,
        jobs: 2,
        directory: directory.path(),
        ahead: Some(&destination),
    };
    let repacked = RepackedSource::new(&image, &options, &Silent).expect("compressed");
    assert!(repacked.changed().is_some(), "its media type is another one");
    assert_eq!(repacked.sent_ahead(), 1);
    assert_eq!(methods(&server), ["POST", "PATCH", "PUT"]);
}
