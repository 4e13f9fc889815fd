//! Large blobs pulled to files: the partial file becomes the blob, so that nothing is written twice.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use fixtures::fault::{FaultServer, Reply, Request};
use oci_spec::image::{Descriptor, Digest, MediaType};
use registry_client::*;
use tempfile::TempDir;

use crate::support::*;

const PIECE: usize = 64 << 10;
const PIECES: usize = 8;

fn blob() -> (Vec<u8>, Descriptor) {
    let bytes = noise("taken", PIECE * PIECES - 1000);
    let descriptor = Descriptor::new(MediaType::ImageLayer, bytes.len() as u64, digest_of(&bytes));
    (bytes, descriptor)
}

/// A directory for partial files and a layout, which are on one file system.
struct Place {
    directory: TempDir,
    spool: PathBuf,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let spool = directory.path().join("spool");
        Self { directory, spool }
    }

    fn layout(&self) -> PathBuf {
        self.directory.path().join("layout")
    }

    fn partial(&self, descriptor: &Descriptor) -> PathBuf {
        self.spool.join(format!("sha256-{}.partial", descriptor.digest().digest()))
    }

    fn options(&self, lanes: usize) -> ClientOptions {
        let ranges = RangePolicy { piece_bytes: PIECE as u64, parallel_from_bytes: 2 * PIECE as u64, lanes };
        ClientOptions { spool: Some(self.spool.clone()), ranges, ..quick() }
    }

    fn pull(&self, address: &str, layout: &Path, descriptor: &Descriptor) -> Result<bool, Error> {
        pull(self.options(3), address, layout, descriptor, &Silent)
    }

    fn partials(&self) -> usize {
        fs::read_dir(&self.spool).expect("listed").count()
    }
}

fn pull(
    options: ClientOptions,
    address: &str,
    layout: &Path,
    descriptor: &Descriptor,
    progress: &dyn Progress,
) -> Result<bool, Error> {
    let reference: Reference = format!("{address}/a:1").parse().expect("a reference");
    let source = RegistrySource::new(&Client::new(options), &reference).expect("a host");
    copy_blob(&source, &OciLayout::new(layout, None), descriptor, progress)
}

fn stored(layout: &Path, descriptor: &Descriptor) -> PathBuf {
    layout.join("blobs/sha256").join(descriptor.digest().digest())
}

fn files_in(layout: &Path) -> usize {
    fs::read_dir(layout.join("blobs/sha256")).expect("listed").count()
}

fn range(request: &Request) -> Option<(&str, &str)> {
    request.header("range").and_then(|text| text.strip_prefix("bytes=")?.split_once('-'))
}

fn starts(server: &FaultServer) -> Vec<usize> {
    let start = |request: &Request| range(request).map_or(0, |(first, _)| first.parse().expect("a number"));
    server.requests().iter().map(start).collect()
}

/// Where a range begins, and the answer to it.
fn serve(request: &Request, content: &[u8]) -> (usize, Reply) {
    let Some((first, last)) = range(request) else { return (0, Reply::new(200).body(content)) };
    let first: usize = first.parse().expect("a number");
    let end = last.parse::<usize>().map_or(content.len(), |last| last + 1);
    let header = format!("bytes {first}-{}/{}", end - 1, content.len());
    (first, Reply::new(206).header("Content-Range", header).body(&content[first..end]))
}

#[test]
fn a_large_blob_is_written_once_and_looks_like_any_other() {
    let ((content, descriptor), place) = (blob(), Place::new());
    let (partial, served, inode) = (place.partial(&descriptor), content.clone(), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&inode);
    let server = FaultServer::start(move |request| {
        if let Ok(metadata) = fs::metadata(&partial) {
            seen.store(metadata.ino() as usize, Ordering::SeqCst);
        }
        serve(request, &served).1
    });
    assert!(place.pull(server.address(), &place.layout(), &descriptor).expect("pulled"));
    let blob = stored(&place.layout(), &descriptor);
    let metadata = fs::metadata(&blob).expect("it is there");
    assert!(fs::read(&blob).expect("read") == content);
    assert_eq!(metadata.ino() as usize, inode.load(Ordering::SeqCst), "the partial file itself");
    assert_eq!((metadata.nlink(), place.partials(), files_in(&place.layout())), (1, 0, 1));
    fs::write(place.directory.path().join("any"), "").expect("written");
    let any = fs::metadata(place.directory.path().join("any")).expect("it is there");
    assert_eq!(metadata.permissions().mode(), any.permissions().mode());
}

#[test]
fn what_a_kill_left_in_the_moment_of_publishing_is_fetched_by_nobody_again() {
    let ((content, descriptor), place) = (blob(), Place::new());
    let served = content.clone();
    let server = FaultServer::start(move |request| serve(request, &served).1);
    fs::create_dir(&place.spool).expect("made");
    fs::write(place.partial(&descriptor), &content).expect("written");
    place.pull(server.address(), &place.layout(), &descriptor).expect("pulled");
    assert!(fs::read(stored(&place.layout(), &descriptor)).expect("read") == content);
    assert_eq!((server.requests().len(), place.partials()), (0, 0));
}

#[test]
fn a_partial_file_that_is_a_published_blob_too_is_left_alone() {
    let ((content, descriptor), place) = (blob(), Place::new());
    let served = content.clone();
    let server = FaultServer::start(move |request| serve(request, &served).1);
    place.pull(server.address(), &place.layout(), &descriptor).expect("pulled");
    // As a kill between the blob's name and the end of the partial file's leaves it.
    let blob = stored(&place.layout(), &descriptor);
    fs::hard_link(&blob, place.partial(&descriptor)).expect("linked");
    let other = place.directory.path().join("other");
    place.pull(server.address(), &other, &descriptor).expect("pulled");
    for layout in [place.layout(), other.clone()] {
        let blob = stored(&layout, &descriptor);
        assert!(fs::read(&blob).expect("read") == content);
        assert_eq!(fs::metadata(&blob).expect("there").nlink(), 1);
    }
    assert_eq!(place.partials(), 0);
}

#[test]
fn a_partial_file_that_is_deleted_or_replaced_on_the_way_does_no_harm() {
    for is_replaced in [false, true] {
        let ((content, descriptor), place) = (blob(), Place::new());
        let (partial, served) = (place.partial(&descriptor), content.clone());
        let server = FaultServer::start(move |request| {
            let (start, reply) = serve(request, &served);
            if start == (PIECES - 1) * PIECE {
                fs::remove_file(&partial).expect("removed");
                if is_replaced {
                    fs::write(&partial, "another process begins").expect("written");
                }
            }
            reply
        });
        place.pull(server.address(), &place.layout(), &descriptor).expect("pulled");
        assert!(fs::read(stored(&place.layout(), &descriptor)).expect("read") == content);
        assert_eq!((place.partials(), files_in(&place.layout())), (usize::from(is_replaced), 1));
    }
}

#[test]
fn a_layout_on_another_file_system_gets_a_copy() {
    let ((content, descriptor), place) = (blob(), Place::new());
    let Ok(elsewhere) = tempfile::tempdir_in("/dev/shm") else { return };
    let served = content.clone();
    let server = FaultServer::start(move |request| serve(request, &served).1);
    place.pull(server.address(), elsewhere.path(), &descriptor).expect("pulled");
    assert!(fs::read(stored(elsewhere.path(), &descriptor)).expect("read") == content);
    assert_eq!((place.partials(), files_in(elsewhere.path())), (0, 1));
}

#[test]
fn wrong_content_is_not_published_and_not_kept() {
    let ((mut content, descriptor), place) = (blob(), Place::new());
    content[3 * PIECE] ^= 1;
    let server = FaultServer::start(move |request| serve(request, &content).1);
    let error = place.pull(server.address(), &place.layout(), &descriptor).expect_err("wrong");
    assert!(matches!(error.cause(), Cause::DigestMismatch { .. }), "{error}");
    assert_eq!((place.partials(), files_in(&place.layout())), (0, 0));
}

/// How far a blob is, for those who wait for it.
#[derive(Default)]
struct Reached(Mutex<u64>, Condvar);

impl Progress for Reached {
    fn blob_moved(&self, _: &Digest, position_bytes: u64) {
        *self.0.lock().expect("no panic") = position_bytes;
        self.1.notify_all();
    }
}

impl Reached {
    fn wait_for(&self, position_bytes: usize) {
        let reached = self.0.lock().expect("no panic");
        drop(self.1.wait_while(reached, |reached| *reached < position_bytes as u64).expect("no panic"));
    }
}

/// The digest is that of what was read; what lies in the file may have come later.
#[test]
fn a_piece_that_comes_again_and_otherwise_is_not_published() {
    let ((content, descriptor), place, reached) = (blob(), Place::new(), Arc::new(Reached::default()));
    let (begin, middle) = (3 * PIECE, 3 * PIECE + PIECE / 2);
    let (served, watched) = (content.clone(), Arc::clone(&reached));
    let mirror = FaultServer::start(move |request| match serve(request, &served) {
        (0, reply) => reply.cut_after(middle),
        // What came is read before the rest of its piece is refused.
        _ => {
            watched.wait_for(middle);
            Reply::new(410)
        }
    });
    let (served, asked) = (content.clone(), AtomicUsize::new(0));
    let registry = FaultServer::start(move |request| {
        let mut sent = served.clone();
        if asked.fetch_add(1, Ordering::SeqCst) == 0 {
            sent[begin..middle].fill(0);
        }
        serve(request, &sent).1
    });
    let conf = place.directory.path().join("registries.conf");
    let (address, at_mirror) = (registry.address(), mirror.address());
    let text = format!("[[registry]]\nprefix = \"{address}\"\n[[registry.mirror]]\nlocation = \"{at_mirror}\"");
    fs::write(&conf, text).expect("written");
    let hosts = Hosts::load(&[conf], &[]).expect("understood");
    let options = ClientOptions { hosts, ..place.options(1) };
    pull(options, address, &place.layout(), &descriptor, reached.as_ref()).expect("pulled");
    assert_eq!(starts(&registry), [begin, 0], "what was wrong is fetched anew");
    assert!(fs::read(stored(&place.layout(), &descriptor)).expect("read") == content);
    assert_eq!((place.partials(), files_in(&place.layout())), (0, 1));
}
