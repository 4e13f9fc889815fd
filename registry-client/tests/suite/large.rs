//! Blobs of any size pass within bounded memory: pulled as one stream, pulled in parallel pieces, and pushed.
//!
//! Invariant: nothing of a blob lies on a disk but its partial file, and that has holes for what is not there yet.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use oci_spec::image::{Descriptor, Digest, MediaType};
use registry_client::*;

use crate::support::*;

/// More than a process may take, and little enough for a test; another size can be given, 10 GB say.
const SIZE_BYTES: u64 = 256 << 20;
/// For one blob; four at once stay far below what a whole pull may take.
const MEMORY_LIMIT_KIB: u64 = 100 << 10;

/// A registry whose one blob is zeros, made while they are sent, and which forgets what it is sent.
fn serve_zeros(size_bytes: u64) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // It ends with its client, the acceptor with the test.
            std::thread::spawn(move || drop(answer(&stream, size_bytes)));
        }
    });
    address
}

fn answer(stream: &TcpStream, size_bytes: u64) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut out = stream;
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line.trim_end().is_empty() {
                break;
            }
            head.push(line.trim_end().to_ascii_lowercase());
        }
        let header = |name: &str| head.iter().find_map(|line| line.strip_prefix(name));
        let method = head[0].split(' ').next().unwrap_or_default().to_owned();
        if header("expect: ").is_some() {
            out.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let length: u64 = header("content-length: ").and_then(|text| text.parse().ok()).unwrap_or(0);
        io::copy(&mut (&mut reader).take(length), &mut io::sink())?;
        match method.as_str() {
            "get" => {
                let range = header("range: bytes=").and_then(|text| text.split_once('-'));
                let start: u64 = range.and_then(|(start, _)| start.parse().ok()).unwrap_or(0);
                let end = range.and_then(|(_, last)| last.parse::<u64>().ok()).map_or(size_bytes, |last| last + 1);
                let status = if range.is_some() { "206 Partial" } else { "200 OK" };
                let (last, length) = (end - 1, end - start);
                write!(out, "HTTP/1.1 {status}\r\nContent-Range: bytes {start}-{last}/{size_bytes}\r\n")?;
                write!(out, "Content-Length: {length}\r\n\r\n")?;
                io::copy(&mut io::repeat(0).take(length), &mut out)?;
            }
            "post" => {
                out.write_all(b"HTTP/1.1 202 Go\r\nLocation: /v2/a/blobs/uploads/id\r\nContent-Length: 0\r\n\r\n")?
            }
            "put" => out.write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")?,
            _ => out.write_all(b"HTTP/1.1 404 None\r\nContent-Length: 0\r\n\r\n")?,
        }
    }
}

/// Run as a process of its own by the test below; alone it has nothing to do.
#[test]
fn a_process_that_moves_a_large_blob() {
    let Ok(task) = std::env::var("NACRE_TEST_LARGE") else { return };
    let [what, address, path, digest, size] = task.split(' ').collect::<Vec<_>>()[..] else { panic!("{task}") };
    let digest = Digest::try_from(digest).expect("a digest");
    let descriptor = Descriptor::new(MediaType::ImageLayer, size.parse().expect("a number"), digest);
    let path = Path::new(path);
    let spool = (what == "pieces").then(|| path.parent().expect("a directory").join("spool"));
    let reference: Reference = format!("{address}/a:1").parse().expect("a reference");
    let client = Client::new(ClientOptions { spool, ..quick() });
    let repository = client.repository(&reference).expect("a host");
    if what == "push" {
        let content = FileContent::new(path, "a/b").expect("a file");
        repository.put_blob(&descriptor, &content).expect("pushed");
    } else {
        let mut content = repository.open_blob(&descriptor).expect("opened");
        assert_eq!(io::copy(&mut content, &mut io::sink()).expect("pulled"), descriptor.size());
    }
    let status = std::fs::read_to_string("/proc/self/status").expect("this is Linux");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    let peak_kib: u64 = peak.expect("a number of kibibytes");
    assert!(peak_kib < MEMORY_LIMIT_KIB, "{what} took {peak_kib} KiB");
}

#[test]
fn a_blob_of_any_size_passes_within_bounded_memory() {
    let given = std::env::var("NACRE_TEST_LARGE_BYTES").ok().and_then(|text| text.parse().ok());
    let size_bytes = given.unwrap_or(SIZE_BYTES);
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("zeros");
    File::create(&path).and_then(|file| file.set_len(size_bytes)).expect("a file with a hole");
    let digest = FileContent::new(&path, "a/b").expect("a file").descriptor().digest().clone();
    let address = serve_zeros(size_bytes);
    for what in ["stream", "pieces", "push"] {
        let task = format!("{what} {address} {} {digest} {size_bytes}", path.display());
        let mut command = this_test("large::a_process_that_moves_a_large_blob");
        command.env("NACRE_TEST_LARGE", task);
        let output = command.output().expect("started");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}
