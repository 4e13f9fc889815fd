//! Transfers that get a signal in the middle: they say so, and no unfinished file is left, in the store or outside.
//!
//! Invariant: a test has a store, a home and a registry of its own, which sends a part of a layer and then nothing.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc;

use fixtures::Desk;
use fixtures::fault::{FaultServer, Reading, Reply, Request};
use rustix::process::{Pid, Signal, kill_process};

const LAYER_BYTES: usize = 4 << 20;

/// A registry of one image whose layer never comes to its end.
fn slow_registry() -> FaultServer {
    let hex = "a".repeat(64);
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json", "size": 2,
            "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar", "size": LAYER_BYTES, "digest": format!("sha256:{hex}"),
        }],
    });
    let manifest = manifest.to_string();
    FaultServer::start(move |request| match request.path.as_str() {
        path if path.contains("/manifests/") => {
            Reply::new(200).header("content-type", "application/vnd.oci.image.manifest.v1+json").body(manifest.clone())
        }
        path if path.contains(&hex) => Reply::new(200).body(vec![0; LAYER_BYTES]).silent_after(LAYER_BYTES / 2),
        path if path.contains("/blobs/") => Reply::new(200).body("{}"),
        _ => Reply::new(200),
    })
}

struct Slow {
    desk: Desk,
    registry: FaultServer,
}

impl Slow {
    fn new() -> Self {
        let desk = Desk::new(env!("CARGO_BIN_EXE_nacre")).with("NACRE_PROGRESS", "plain");
        fs::create_dir(desk.path("out")).expect("a directory");
        Self { desk, registry: slow_registry() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.desk.path(name)
    }

    fn name(&self) -> String {
        format!("docker://{}/app:1", self.registry.address())
    }

    fn start(&self, arguments: &[&str]) -> Child {
        let mut command = self.desk.command(arguments);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("runs")
    }

    fn wait_for_draft(&self, child: &mut Child) {
        wait_for_draft(child, &self.path("out"));
    }

    /// Ends the process, without a word, when it has written a part of the layer to `out`.
    fn kill(&self, mut child: Child) {
        self.wait_for_draft(&mut child);
        child.kill().expect("killed");
        child.wait().expect("ended");
    }

    /// Sends the signal when a part of the layer is written below a directory, and gives what was said then.
    fn interrupt(&self, mut child: Child, signal: Signal, below: &Path) -> String {
        wait_for_draft(&mut child, below);
        kill_process(Pid::from_child(&child), signal).expect("it is there");
        let mut said = String::new();
        child.stderr.take().expect("piped").read_to_string(&mut said).expect("read");
        assert_eq!(child.wait().expect("ended").code(), Some(128 + signal.as_raw()), "{said}");
        said
    }
}

fn wait_for_draft(child: &mut Child, below: &Path) {
    let below = below.canonicalize().expect("it is there");
    while !has_draft(child, &below) {
        assert_eq!(child.try_wait().expect("asked"), None, "it goes on");
        std::thread::yield_now();
    }
}

/// Whether the process has a file open below a directory that is not empty, named or not.
fn has_draft(child: &Child, below: &Path) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{}/fd", child.id())) else { return false };
    open.flatten().any(|file| {
        let is_below = fs::read_link(file.path()).is_ok_and(|target| target.starts_with(below));
        is_below && fs::metadata(file.path()).is_ok_and(|found| found.is_file() && found.len() > 1 << 16)
    })
}

/// All files below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.path().is_dir() {
            true => found.extend(files(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found
}

#[test]
fn an_interrupted_copy_leaves_no_unfinished_file_beside_its_place() {
    let desk = Slow::new();
    let config = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
    for (place, left) in [
        ("oci:out", &["oci-layout", config][..]),
        ("oci-archive:out/image.tar", &[]),
        ("docker-archive:out/image.tar", &[]),
    ] {
        for signal in [Signal::TERM, Signal::INT] {
            fs::remove_dir_all(desk.path("out")).expect("removed");
            fs::create_dir(desk.path("out")).expect("a directory");
            let child = desk.start(&["copy", &desk.name(), place]);
            let said = desk.interrupt(child, signal, &desk.path("out"));
            assert!(said.ends_with("interrupted\n"), "{said}");
            let found = files(&desk.path("out"));
            let is_left = |path: &PathBuf| left.iter().any(|name| path.ends_with(name));
            assert!(found.iter().all(is_left), "{place}: {found:?}");
        }
    }
    desk.kill(desk.start(&["copy", &desk.name(), "oci:out"]));
    assert!(files(&desk.path("out")).iter().all(|path| !path.to_string_lossy().contains(".new-")));
}

#[test]
fn what_a_killed_copy_left_beside_an_archive_goes_with_the_next_one() {
    let desk = Slow::new();
    for kind in ["oci-archive", "docker-archive"] {
        let place = |name: &str| format!("{kind}:out/{name}.tar");
        desk.kill(desk.start(&["copy", &desk.name(), &place("first")]));
        let directories = || fs::read_dir(desk.path("out")).expect("listed").count();
        assert_eq!(directories(), 1, "what has a name of its own goes only when somebody removes it");
        let mut living = desk.start(&["copy", &desk.name(), &place("second")]);
        desk.wait_for_draft(&mut living);
        assert_eq!(directories(), 1, "that of the living one");
        let said =
            desk.interrupt(desk.start(&["copy", &desk.name(), &place("third")]), Signal::TERM, &desk.path("out"));
        assert_eq!(directories(), 1, "{said}");
        kill_process(Pid::from_child(&living), Signal::TERM).expect("it is there");
        living.wait().expect("ended");
        assert_eq!(directories(), 0, "it had what is its own to the end");
    }
}

#[test]
fn every_verb_that_moves_an_image_says_that_it_was_interrupted_and_leaves_a_swept_store() {
    let desk = Slow::new();
    fs::create_dir_all(desk.path("store/tmp")).expect("a directory");
    fs::write(desk.path("list"), format!("{} app\n", desk.name())).expect("written");
    let (name, store) = (desk.name(), desk.path("store"));
    for arguments in
        [&["sync", "list"][..], &["pull", &name["docker://".len()..]], &["manifest", "create", "all", &name]]
    {
        let child = desk.start(arguments);
        let said = desk.interrupt(child, Signal::TERM, &store);
        assert!(said.ends_with("interrupted\n"), "{arguments:?}: {said}");
        assert_eq!(fs::read_dir(store.join("tmp")).expect("listed").count(), 0, "{arguments:?}");
    }
}

/// Tells of the first bytes that are streamed to it.
fn registry_that_is_streamed_to() -> (FaultServer, mpsc::Receiver<()>) {
    let (begun, has_begun) = mpsc::channel();
    let watch = move |request: &Request| {
        if request.method == "PATCH" && !request.body.is_empty() {
            // Told again until it ends; nobody listens by then.
            _ = begun.send(());
        }
        Reading::On
    };
    let server = FaultServer::watching(watch, |request| match request.method.as_str() {
        "POST" | "PATCH" => Reply::new(202).header("Location", "/v2/app/blobs/uploads/id?state=1"),
        "DELETE" => Reply::new(204),
        _ => Reply::new(404),
    });
    (server, has_begun)
}

#[test]
fn an_interrupted_push_ends_the_upload_of_what_is_still_being_made() {
    let desk = Slow::new();
    // Far more than is compressed before the signal comes.
    let mut noise = fs::File::open("/dev/urandom").expect("opened").take(64 << 20);
    io::copy(&mut noise, &mut fs::File::create(desk.path("out/noise")).expect("made")).expect("written");
    fs::write(desk.path("out/Dockerfile"), "FROM scratch\nCOPY noise /\n").expect("written");
    for signal in [Signal::TERM, Signal::INT] {
        let (registry, has_begun) = registry_that_is_streamed_to();
        let name = format!("{}/app:1", registry.address());
        let mut child = desk.start(&["build", "--no-cache", "-t", &name, "--push", "out"]);
        has_begun.recv().expect("it is streamed");
        kill_process(Pid::from_child(&child), signal).expect("it is there");
        let mut said = String::new();
        child.stderr.take().expect("piped").read_to_string(&mut said).expect("read");
        assert_eq!(child.wait().expect("ended").code(), Some(128 + signal.as_raw()), "{said}");
        assert!(said.ends_with("interrupted\n"), "{said}");
        assert_eq!((registry.count("DELETE", "/uploads/id"), registry.count("PUT", "")), (1, 0), "{said}");
    }
}
