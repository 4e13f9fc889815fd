//! What a pull makes of a registry whose bytes are not what they should be.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fixtures::fault::{FaultServer, Reply, Request};
use fixtures::names;
use serde_json::Value;

use crate::support::Bench;

/// An OCI layout behind the protocol of registries, with ranges; a bit of the layer is flipped for the first so many
/// requests that it is in.
struct Flipping {
    layout: std::path::PathBuf,
    manifest: String,
    layer: String,
    at: usize,
    lies: usize,
    asked: AtomicUsize,
}

impl Flipping {
    /// The image of a bench, flipped at a position in thousandths of its layer.
    fn of(bench: &Bench, thousandths: usize, lies: usize) -> Self {
        let layout = bench.path("layout");
        let document = |digest: &str| -> Value {
            let bytes = fs::read(layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:")));
            serde_json::from_slice(&bytes.expect("a blob")).expect("a document")
        };
        let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).expect("there")).expect("JSON");
        let manifest = index["manifests"][0]["digest"].as_str().expect("a digest").to_owned();
        let layer = document(&manifest)["layers"][0].clone();
        let size_bytes = layer["size"].as_u64().expect("a size") as usize;
        let at = (size_bytes * thousandths / 1000).min(size_bytes - 1);
        let layer = layer["digest"].as_str().expect("a digest").to_owned();
        Self { layout, manifest, layer, at, lies, asked: AtomicUsize::new(0) }
    }

    fn answer(&self, request: &Request) -> Reply {
        let name = request.path.rsplit('/').next().unwrap_or_default();
        let is_manifest = request.path.contains("/manifests/");
        let digest = if is_manifest && !name.contains(':') { &self.manifest } else { name };
        let path = self.layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
        let Ok(mut bytes) = fs::read(path) else { return Reply::new(404) };
        if is_manifest {
            let reply = Reply::new(200).header("Docker-Content-Digest", digest);
            return reply.header("Content-Type", "application/vnd.oci.image.manifest.v1+json").body(bytes);
        }
        let range = request.header("range").and_then(|text| text.strip_prefix("bytes=")?.split_once('-'));
        let (start, end) = range.map_or((0, bytes.len()), |(first, last)| {
            let end = last.parse().map_or(bytes.len(), |last: usize| last + 1);
            (first.parse().expect("a position"), end)
        });
        let is_hit = digest == self.layer && (start..end).contains(&self.at);
        if is_hit && self.asked.fetch_add(1, Ordering::SeqCst) < self.lies {
            bytes[self.at] ^= 4;
        }
        let reply = match range {
            None => Reply::new(200),
            Some(_) => {
                let words = format!("bytes {start}-{}/{}", end - 1, bytes.len());
                Reply::new(206).header("Content-Range", words)
            }
        };
        reply.body(&bytes[start..end])
    }
}

/// Bytes that hardly compress, so that the layer comes in several pieces at once.
fn large() -> Vec<u8> {
    let mut state = 1_u32;
    let mut step = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..40 << 20).map(|_| step()).collect()
}

#[test]
fn a_layer_that_came_damaged_is_pulled_anew_once_and_never_kept() {
    let made = Bench::new();
    for (content, positions) in [(b"small".repeat(1000), vec![20, 500, 999]), (large(), vec![400])] {
        made.file("file", content).dockerfile("FROM scratch\nCOPY file /");
        _ = fs::remove_dir_all(made.path("layout"));
        made.build(&["-o", "type=oci,dest=layout,tar=false"]).succeeds();
        for (position, lies) in positions.into_iter().flat_map(|position| [(position, 1), (position, usize::MAX)]) {
            let flipping = Arc::new(Flipping::of(&made, position, lies));
            let answering = Arc::clone(&flipping);
            let server = FaultServer::start(move |request| answering.answer(request));
            let bench = Bench::new();
            let pulled = bench.run(&["pull", "--progress", "plain", &format!("{}/app:1", server.address())]);
            assert_eq!(flipping.asked.load(Ordering::SeqCst), 2, "at {position}: {}", pulled.stderr);
            assert!(pulled.stderr.contains("the content has the digest"), "at {position}: {}", pulled.stderr);
            if lies == 1 {
                pulled.succeeds();
                bench.run(&["verify"]).succeeds();
            } else {
                let error = pulled.fails(3);
                assert!(error.contains(&format!("not {}", flipping.layer)), "{error}");
                let blobs = names(&bench.store().join("blobs/sha256"));
                assert!(blobs.iter().all(|blob| !flipping.layer.contains(blob.as_str())), "{blobs:?}");
                assert_eq!(names(&bench.store().join("layers")), [""; 0]);
            }
        }
    }
}
