//! Large blobs in parallel ranges, and partial blobs on disk: what was fetched is not fetched again.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use fixtures::fault::{FaultServer, Reply, Request};
use fixtures::registry::Registry;
use oci_spec::image::{Descriptor, Digest, MediaType};
use registry_client::*;

use crate::support::*;

const PIECE: usize = 64 << 10;
const PIECES: usize = 16;

fn blob() -> (Vec<u8>, Descriptor) {
    // The last piece is short.
    let bytes = noise("ranges", PIECE * PIECES - 1000);
    let descriptor = Descriptor::new(MediaType::ImageLayer, bytes.len() as u64, digest_of(&bytes));
    (bytes, descriptor)
}

fn options(directory: &Path, lanes: usize) -> ClientOptions {
    let ranges = RangePolicy { piece_bytes: PIECE as u64, parallel_from_bytes: 2 * PIECE as u64, lanes };
    ClientOptions { spool: Some(directory.to_owned()), ranges, ..quick() }
}

fn open(address: &str, options: ClientOptions, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>, Error> {
    let reference: Reference = format!("{address}/a:1").parse().expect("a reference");
    Client::new(options).repository(&reference).expect("a host").open_blob(descriptor)
}

fn pull(address: &str, options: ClientOptions, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let mut content = open(address, options, descriptor)?;
    content.read_to_end(&mut bytes).map_err(|error| Error::from_io("read", "x", error))?;
    Ok(bytes)
}

/// The bytes that a request asks for: the first, and the one behind the last.
fn range(request: &Request, size: usize) -> (usize, usize) {
    let parsed = request.header("range").and_then(|text| text.strip_prefix("bytes=")?.split_once('-'));
    let Some((first, last)) = parsed else { return (0, size) };
    (first.parse().expect("a number"), last.parse::<usize>().map_or(size, |last| last + 1))
}

fn serve(request: &Request, content: &[u8]) -> Reply {
    if request.header("range").is_none() {
        return Reply::new(200).body(content);
    }
    let (start, end) = range(request, content.len());
    let header = format!("bytes {start}-{}/{}", end - 1, content.len());
    Reply::new(206).header("Content-Range", header).body(&content[start..end])
}

fn starts(server: &FaultServer, size: usize) -> Vec<usize> {
    let mut starts: Vec<usize> = server.requests().iter().map(|request| range(request, size).0).collect();
    starts.sort_unstable();
    starts
}

fn files_in(directory: &Path) -> usize {
    std::fs::read_dir(directory).expect("listed").count()
}

#[test]
fn a_large_blob_comes_in_pieces_over_several_connections_each_piece_once() {
    let ((content, descriptor), directory) = (blob(), tempfile::tempdir().expect("a directory"));
    let served = content.clone();
    // No answer before three requests are there: with fewer lanes this would never end.
    let (together, first) = (std::sync::Barrier::new(3), AtomicUsize::new(0));
    let server = FaultServer::start(move |request| {
        // The first request is alone: the others follow when its answer shows that ranges are known.
        if (1..=3).contains(&first.fetch_add(1, Ordering::SeqCst)) {
            together.wait();
        }
        serve(request, &served)
    });
    let options = options(&directory.path().join("spool"), 3);
    assert!(pull(server.address(), options, &descriptor).expect("pulled") == content);
    assert_eq!(starts(&server, content.len()), (0..PIECES).map(|piece| piece * PIECE).collect::<Vec<_>>());
    assert_eq!(files_in(&directory.path().join("spool")), 0, "nothing is left over");
}

#[test]
fn small_blobs_and_clients_without_a_directory_ask_once_for_all() {
    let ((content, descriptor), directory) = (blob(), tempfile::tempdir().expect("a directory"));
    let served = content.clone();
    let server = FaultServer::start(move |request| serve(request, &served));
    let without = ClientOptions { spool: None, ..options(directory.path(), 3) };
    assert!(pull(server.address(), without, &descriptor).expect("pulled") == content);
    let large = RangePolicy { piece_bytes: 1 << 20, ..RangePolicy::default() };
    let small = ClientOptions { ranges: large, ..options(directory.path(), 3) };
    assert!(pull(server.address(), small, &descriptor).expect("pulled") == content);
    assert!(server.requests().iter().all(|request| request.header("range").is_none()));
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_peer_without_ranges_sends_a_large_blob_once() {
    let ((content, descriptor), directory) = (blob(), tempfile::tempdir().expect("a directory"));
    let served = content.clone();
    let server = FaultServer::start(move |_| Reply::new(200).body(served.clone()));
    assert!(pull(server.address(), options(directory.path(), 3), &descriptor).expect("pulled") == content);
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_lane_that_breaks_goes_on_where_it_broke() {
    let ((content, descriptor), directory) = (blob(), tempfile::tempdir().expect("a directory"));
    let (served, seen) = (content.clone(), Mutex::new(BTreeMap::<usize, usize>::new()));
    let server = FaultServer::start(move |request| {
        let piece = range(request, served.len()).0 / PIECE;
        let mut seen = seen.lock().expect("no panic");
        let tries = seen.entry(piece).or_default();
        *tries += 1;
        let reply = serve(request, &served);
        if *tries == 1 { reply.cut_after(10_000) } else { reply }
    });
    assert!(pull(server.address(), options(directory.path(), 3), &descriptor).expect("pulled") == content);
    let requests = server.requests();
    let asked: usize = requests.iter().map(|request| range(request, content.len())).map(|(a, b)| b - a).sum();
    assert_eq!(asked - PIECES * 10_000, content.len() - PIECES * 10_000 + PIECES * (PIECE - 10_000) - 1000);
    assert_eq!(requests.len(), 2 * PIECES);
}

#[test]
fn a_peer_that_refuses_some_connections_is_asked_by_the_others() {
    let ((content, descriptor), directory) = (blob(), tempfile::tempdir().expect("a directory"));
    let (served, refused) = (content.clone(), AtomicUsize::new(0));
    let server = FaultServer::start(move |request| {
        let is_later = range(request, served.len()).0 > 0;
        if is_later && refused.fetch_add(1, Ordering::SeqCst) < 2 {
            return Reply::new(403);
        }
        serve(request, &served)
    });
    assert!(pull(server.address(), options(directory.path(), 3), &descriptor).expect("pulled") == content);
}

#[test]
fn a_blob_that_stops_being_there_is_an_error_that_names_the_cause() {
    let ((content, descriptor), directory) = (blob(), tempfile::tempdir().expect("a directory"));
    let server = FaultServer::start(move |request| {
        if range(request, content.len()).0 > 5 * PIECE { Reply::new(410) } else { serve(request, &content) }
    });
    let error = pull(server.address(), options(directory.path(), 3), &descriptor).expect_err("gone");
    assert!(error.to_string().contains("410"), "{error}");
    let missing = FaultServer::start(|_| Reply::new(404));
    let error = open(missing.address(), options(directory.path(), 3), &descriptor).err().expect("missing");
    assert!(error.to_string().contains("404"), "{error}");
}

#[test]
fn wrong_content_is_found_out_and_not_kept() {
    let ((mut content, descriptor), directory) = (blob(), tempfile::tempdir().expect("a directory"));
    content[7 * PIECE] ^= 1;
    let server = FaultServer::start(move |request| serve(request, &content));
    let error = pull(server.address(), options(directory.path(), 3), &descriptor).expect_err("wrong");
    assert!(matches!(error.cause(), Cause::DigestMismatch { .. }), "{error}");
    assert_eq!(files_in(directory.path()), 0);
}

#[test]
fn ranges_that_were_not_asked_for_are_refused() {
    let ((content, descriptor), directory) = (blob(), tempfile::tempdir().expect("a directory"));
    let server = FaultServer::start(move |request| {
        let (start, end) = range(request, content.len());
        let header = format!("bytes {}-{}/{}", start, end, content.len());
        Reply::new(206).header("Content-Range", header).body(&content[start..=end.min(content.len() - 1)])
    });
    let error = pull(server.address(), options(directory.path(), 3), &descriptor).expect_err("more than asked for");
    assert!(matches!(error.cause(), Cause::Malformed(_)), "{error}");
}

#[test]
fn a_second_pull_of_the_same_blob_leaves_the_first_ones_file_alone() {
    let ((content, descriptor), directory) = (blob(), tempfile::tempdir().expect("a directory"));
    let served = content.clone();
    let server = FaultServer::start(move |request| serve(request, &served));
    let mut first = open(server.address(), options(directory.path(), 3), &descriptor).expect("opened");
    let mut begin = vec![0; 3 * PIECE];
    first.read_exact(&mut begin).expect("read");
    assert!(pull(server.address(), options(directory.path(), 3), &descriptor).expect("pulled") == content);
    assert_eq!(files_in(directory.path()), 1, "the first one's file");
    first.read_to_end(&mut begin).expect("read on");
    assert!(begin == content);
    drop(first);
    assert_eq!(files_in(directory.path()), 0);
}

/// Run as a process of its own by the test below; alone it has nothing to do.
#[test]
fn a_process_that_pulls_until_it_is_killed() {
    let Ok(task) = std::env::var("NACRE_TEST_PULL") else { return };
    let [address, directory, digest, size, lanes] = task.split(' ').collect::<Vec<_>>()[..] else { panic!("{task}") };
    let digest = Digest::try_from(digest).expect("a digest");
    let descriptor = Descriptor::new(MediaType::ImageLayer, size.parse().expect("a number"), digest);
    let lanes = lanes.parse().expect("a number");
    pull(address, options(Path::new(directory), lanes), &descriptor).expect("pulled");
}

fn start_pull(address: &str, directory: &Path, descriptor: &Descriptor, lanes: usize) -> Child {
    let task = format!("{address} {} {} {} {lanes}", directory.display(), descriptor.digest(), descriptor.size());
    let mut command = this_test("ranges::a_process_that_pulls_until_it_is_killed");
    command.env("NACRE_TEST_PULL", task);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("started")
}

#[test]
fn a_pull_that_was_killed_anywhere_fetches_less_than_a_piece_a_lane_again() {
    let (content, descriptor) = blob();
    for (lanes, alive) in [(3, 1), (3, 6), (3, 12), (1, 0), (1, 5), (1, PIECES - 1)] {
        let directory = tempfile::tempdir().expect("a directory");
        let (served, (stuck, is_stuck)) = (content.clone(), mpsc::channel());
        // The pieces from `alive` on come only by half, so the lanes get stuck in them: at a place that is known.
        let server = FaultServer::start(move |request| {
            let (start, end) = range(request, served.len());
            let limit = alive * PIECE + PIECE / 2;
            if end <= alive * PIECE {
                return serve(request, &served);
            }
            // The test may have killed already.
            let _ = stuck.send(());
            let length = if start < limit { limit - start } else { PIECE / 2 };
            serve(request, &served).silent_after(length)
        });
        let mut child = start_pull(server.address(), directory.path(), &descriptor, lanes);
        (0..lanes).for_each(|_| is_stuck.recv().expect("a lane gets stuck"));
        wait_for_pieces(directory.path(), &descriptor, alive);
        child.kill().expect("killed");
        child.wait().expect("it ended");
        drop(server);
        let served = content.clone();
        let server = FaultServer::start(move |request| serve(request, &served));
        assert!(pull(server.address(), options(directory.path(), lanes), &descriptor).expect("pulled") == content);
        assert!(starts(&server, content.len()).iter().all(|start| *start >= alive * PIECE), "{lanes} lanes, {alive}");
        assert_eq!(files_in(directory.path()), 0);
    }
}

/// Waits until so many pieces are recorded: a lane that has bytes of the next piece in flight may still write.
fn wait_for_pieces(directory: &Path, descriptor: &Descriptor, count: usize) {
    let name = format!("sha256-{}.partial", descriptor.digest().digest());
    loop {
        let bytes = std::fs::read(directory.join(&name)).unwrap_or_default();
        let records = bytes.get(descriptor.size() as usize + 16..).unwrap_or_default();
        if records.chunks(8).filter(|record| record.starts_with(b"done")).count() >= count {
            return;
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_real_registry_serves_pieces() {
    let (registry, directory) = (Registry::open(), tempfile::tempdir().expect("a directory"));
    let image = MemoryImage::sample("ranges");
    let reference: Reference = format!("{}/a:1", registry.address()).parse().expect("a reference");
    let client = Client::new(options(directory.path(), 3));
    let destination = RegistryDestination::new(&client, &reference).expect("a host");
    copy(&image, &destination, &CopyOptions::default(), &Silent).expect("pushed");
    let pulled = MemoryImage::empty();
    let source = RegistrySource::new(&client, &reference).expect("a host");
    copy(&source, &pulled, &CopyOptions::default(), &Silent).expect("pulled");
    assert!(pulled.blobs() == image.blobs());
    assert_eq!(files_in(directory.path()), 0);
}
