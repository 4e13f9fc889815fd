//! Pushes that go on where they were: after a break, after a kill, and without sending what the registry has elsewhere.

use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Arc, Condvar, Mutex, mpsc};

use fixtures::fault::{FaultServer, Reading, Reply, Request};
use fixtures::registry::Registry;
use oci_spec::image::{Descriptor, MediaType};
use registry_client::*;

use crate::support::*;

/// A registry that keeps what came of an upload, whatever breaks.
#[derive(Default)]
struct Keeping {
    stored: Mutex<Vec<u8>>,
    /// So many bytes of a whole upload arrive, then it breaks.
    breaks_at: Option<usize>,
    /// Parts are refused at the end.
    refuses_parts: bool,
}

impl Keeping {
    fn answer(&self, request: &Request) -> Reply {
        let mut stored = self.stored.lock().expect("no panic");
        let located = |status| Reply::new(status).header("Location", "/v2/a/blobs/uploads/id?state=1");
        let range = |stored: &[u8]| format!("0-{}", stored.len().saturating_sub(1));
        match request.method.as_str() {
            "POST" => {
                stored.clear();
                located(202)
            }
            "PUT" if request.body.is_empty() && self.refuses_parts => Reply::new(400),
            "PUT" => {
                let is_cut = !request.body.is_empty() && stored.is_empty();
                match self.breaks_at.filter(|_| is_cut) {
                    Some(length) => {
                        stored.extend(&request.body[..length]);
                        Reply::new(502)
                    }
                    None => {
                        stored.extend(&request.body);
                        Reply::new(201)
                    }
                }
            }
            "PATCH" => {
                stored.extend(&request.body);
                located(202).header("Range", range(&stored))
            }
            "GET" if request.path.contains("/uploads/") => located(204).header("Range", range(&stored)),
            "DELETE" => Reply::new(204),
            _ => Reply::new(404),
        }
    }
}

fn layer() -> (Vec<u8>, Descriptor) {
    let bytes = noise("layer", 9_000_000);
    let descriptor = Descriptor::new(MediaType::ImageLayer, bytes.len() as u64, digest_of(&bytes));
    (bytes, descriptor)
}

fn repository(address: &str, options: ClientOptions) -> Repository {
    let reference: Reference = format!("{address}/a:1").parse().expect("a reference");
    Client::new(options).repository(&reference).expect("a host")
}

fn ranges(server: &FaultServer) -> Vec<String> {
    let header = |request: &Request| request.header("content-range").map(str::to_owned);
    server.requests().iter().filter_map(header).collect()
}

#[test]
fn a_broken_upload_goes_on_where_the_registry_says() {
    let (bytes, descriptor) = layer();
    let keeping = Arc::new(Keeping { breaks_at: Some(5_000_000), ..Keeping::default() });
    let answering = Arc::clone(&keeping);
    let server = FaultServer::start(move |request| answering.answer(request));
    repository(server.address(), quick()).put_blob(&descriptor, &bytes).expect("pushed");
    assert!(*keeping.stored.lock().expect("no panic") == bytes);
    assert_eq!(ranges(&server), ["5000000-8999999"]);
}

#[test]
fn an_upload_whose_parts_are_refused_is_sent_once_more() {
    let (bytes, descriptor) = layer();
    let keeping = Keeping { breaks_at: Some(5_000_000), refuses_parts: true, ..Keeping::default() };
    let whole = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&whole);
    let server = FaultServer::start(move |request| {
        let mut whole = counted.lock().expect("no panic");
        *whole += usize::from(request.method == "PUT" && request.body.len() == 9_000_000);
        if *whole == 2 { Reply::new(201) } else { keeping.answer(request) }
    });
    repository(server.address(), quick()).put_blob(&descriptor, &bytes).expect("pushed");
    assert_eq!(*whole.lock().expect("no panic"), 2);
}

/// Run as a process of its own by the test below; alone it has nothing to do.
#[test]
fn a_process_that_pushes_until_it_is_killed() {
    let Ok(task) = std::env::var("NACRE_TEST_PUSH") else { return };
    let (address, directory) = task.split_once(' ').expect("two words");
    push_from(address, Path::new(directory));
}

fn push_from(address: &str, directory: &Path) {
    let (bytes, descriptor) = layer();
    let options = ClientOptions { spool: Some(directory.to_owned()), ..quick() };
    repository(address, options).put_blob(&descriptor, &bytes).expect("pushed");
}

fn start_push(address: &str, directory: &Path) -> Child {
    let mut command = this_test("resume::a_process_that_pushes_until_it_is_killed");
    command.env("NACRE_TEST_PUSH", format!("{address} {}", directory.display()));
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("started")
}

/// A push of the layer that was killed when so many bytes of it had arrived, and the registry, which goes on.
fn killed_push(arrived: usize, directory: &Path) -> (FaultServer, Arc<Keeping>) {
    let keeping = Arc::new(Keeping::default());
    let (answering, (stuck, is_stuck)) = (Arc::clone(&keeping), mpsc::channel());
    let killed = Arc::new((Mutex::new(false), Condvar::new()));
    let waiting = Arc::clone(&killed);
    let server = FaultServer::start(move |request| {
        if request.method != "PUT" || *waiting.0.lock().expect("no panic") {
            return answering.answer(request);
        }
        answering.stored.lock().expect("no panic").extend(&request.body[..arrived]);
        stuck.send(()).expect("the test waits");
        let guard = waiting.0.lock().expect("no panic");
        drop(waiting.1.wait_while(guard, |killed| !*killed).expect("no panic"));
        Reply::new(500)
    });
    let mut child = start_push(server.address(), directory);
    is_stuck.recv().expect("the upload arrives");
    child.kill().expect("killed");
    child.wait().expect("it ended");
    *killed.0.lock().expect("no panic") = true;
    killed.1.notify_all();
    (server, keeping)
}

#[test]
fn a_push_that_was_killed_anywhere_goes_on_where_the_registry_says() {
    let (bytes, _) = layer();
    for arrived in (1..9).map(|mebibytes| mebibytes << 20) {
        let directory = tempfile::tempdir().expect("a directory");
        let (server, keeping) = killed_push(arrived, directory.path());
        push_from(server.address(), directory.path());
        assert!(*keeping.stored.lock().expect("no panic") == bytes);
        assert!(ranges(&server)[0].starts_with(&format!("{arrived}-")), "{:?}", ranges(&server));
        assert_eq!(server.count("POST", "/uploads/"), 1, "the session is the first one's");
        assert_eq!(std::fs::read_dir(directory.path()).expect("readable").count(), 0);
    }
}

#[test]
fn a_session_that_is_gone_or_not_understood_costs_nothing_but_a_question() {
    let (bytes, _) = layer();
    for kept in ["http://{}/v2/other/blobs/nothing\n", "http://{}/v2/cut", "rubbish\n", ""] {
        let directory = tempfile::tempdir().expect("a directory");
        let (server, keeping) = killed_push(1 << 20, directory.path());
        let files: Vec<_> = std::fs::read_dir(directory.path()).expect("readable").flatten().collect();
        assert_eq!(files.len(), 1, "the session was kept");
        std::fs::write(files[0].path(), kept.replace("{}", server.address())).expect("written");
        push_from(server.address(), directory.path());
        assert!(*keeping.stored.lock().expect("no panic") == bytes);
        assert_eq!(server.count("POST", "/uploads/"), 2, "{kept}");
        assert_eq!(std::fs::read_dir(directory.path()).expect("readable").count(), 0);
    }
}

#[test]
fn a_blob_that_the_registry_has_in_another_repository_is_taken_from_there() {
    let (registry, directory) = (Registry::open(), tempfile::tempdir().expect("a directory"));
    let (image, layer) = (MemoryImage::sample("known"), MemoryImage::sample("known").layers().remove(1));
    let to = |name: &str| format!("{}/{name}:1", registry.address()).parse::<Reference>().expect("a reference");
    let client =
        || Client::new(ClientOptions { known_blobs: Some(directory.path().to_owned()), ..ClientOptions::default() });
    let push = |client: &Client, name: &str| {
        let destination = RegistryDestination::new(client, &to(name)).expect("a host");
        copy(&image, &destination, &CopyOptions::default(), &Silent).expect("pushed")
    };
    assert_eq!(push(&client(), "first").sent, 3);
    let second = push(&client(), "second");
    assert_eq!((second.sent, second.skipped), (0, 3), "another process knows it too");
    // What was pulled is known as well.
    std::fs::remove_dir_all(directory.path()).expect("removed");
    let pulling = client();
    let source = RegistrySource::new(&pulling, &to("second")).expect("a host");
    copy(&source, &MemoryImage::empty(), &CopyOptions::default(), &Silent).expect("pulled");
    assert_eq!(push(&client(), "third").sent, 0);
    // A hint that is wrong costs a request.
    let name = format!("{}.blobs", registry.address());
    std::fs::write(directory.path().join(name), format!("{} not/there\n", layer.digest())).expect("written");
    assert_eq!(push(&client(), "fourth").sent, 3);
}

#[test]
fn an_upload_that_the_registry_lost_begins_anew() {
    let (bytes, descriptor) = layer();
    let keeping = Arc::new(Keeping::default());
    let answering = Arc::clone(&keeping);
    let puts = Mutex::new(0);
    let server = FaultServer::start(move |request| {
        let mut puts = puts.lock().expect("no panic");
        let is_put = request.method == "PUT";
        *puts += usize::from(is_put);
        match *puts {
            1 if is_put => Reply::new(404).body(r#"{"errors": [{"code": "BLOB_UPLOAD_UNKNOWN"}]}"#),
            _ => answering.answer(request),
        }
    });
    repository(server.address(), quick()).put_blob(&descriptor, &bytes).expect("pushed");
    assert!(*keeping.stored.lock().expect("no panic") == bytes);
}

#[test]
fn an_upload_that_is_lost_each_time_ends() {
    let (bytes, descriptor) = layer();
    let server = FaultServer::start(|request| match request.method.as_str() {
        "POST" => Reply::new(202).header("Location", "/v2/a/blobs/uploads/id"),
        _ => Reply::new(404),
    });
    let error = repository(server.address(), quick()).put_blob(&descriptor, &bytes).expect_err("it never succeeds");
    assert!(matches!(error.cause(), Cause::UploadLost(_)), "{error}");
    assert_eq!(server.count("PUT", "/uploads/"), 4, "as often as any other failure");
}

#[test]
fn what_breaks_and_leaves_nothing_goes_on_in_chunks() {
    let (bytes, descriptor) = layer();
    let keeping = Arc::new(Keeping::default());
    let answering = Arc::clone(&keeping);
    let watch = |request: &Request| match request.method == "PUT" && request.body.len() > 1_000_000 {
        true => Reading::Break,
        false => Reading::On,
    };
    let server = FaultServer::watching(watch, move |request| answering.answer(request));
    repository(server.address(), quick()).put_blob(&descriptor, &bytes).expect("pushed");
    assert!(*keeping.stored.lock().expect("no panic") == bytes);
    assert_eq!(ranges(&server).len(), 3, "of 4 MiB at most");
}
