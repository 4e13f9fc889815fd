//! Files that are read in order, on the overlay plane: the kernel has the next ones before they are asked for.
//!
//! Invariant: who reads what is told from the names of the threads that ask the tree.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use layerfs::{Mount, MountOptions, Plane, Union, mount};

use crate::{
    bench::{OPTIONS, open_directory},
    memory_tree::MemoryTree,
};

type Reads = Arc<Mutex<BTreeMap<u64, Vec<String>>>>;

/// What is in file `number`: of every size around those of pages and of what is given, and different everywhere.
fn content(number: usize) -> Vec<u8> {
    const SIZES: [usize; 12] = [1, 100, 4095, 4096, 4097, 0, 14_000, 65_536, 131_071, 131_072, 131_073, 300_000];
    (0..SIZES[number % SIZES.len()])
        .map(|at| u8::try_from((at * 31 + number * 7 + at / 4096) % 251).expect("small"))
        .collect()
}

/// A directory of so many files, as an overlay over its tree.
struct Mounted {
    _directory: tempfile::TempDir,
    mount: Mount,
    merged: PathBuf,
    /// By the number of a file, the threads that read it from the tree.
    reads: Reads,
}

fn mounted(files: usize) -> Mounted {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| directory.path().join(name);
    for part in ["lower", "upper", "work", "merged"] {
        std::fs::create_dir(at(part)).expect("fresh");
    }
    for number in 0..files {
        std::fs::write(at(&format!("lower/{number:04}")), content(number)).expect("writes");
    }
    let reads = Reads::default();
    let noted = Arc::clone(&reads);
    let tree = MemoryTree::from_directory(&at("lower")).with_reads(move |inode, _, _| {
        let reader = std::thread::current().name().unwrap_or_default().to_owned();
        noted.lock().expect("nobody panics").entry(inode.0).or_default().push(reader);
        Ok(())
    });
    let part = |name: &str| open_directory(&at(name));
    let union = Union::open(tree, part("upper"), part("work"), OPTIONS).expect("the upper opens");
    let options = MountOptions { plane: Plane::Overlay, ..MountOptions::default() };
    let merged = at("merged");
    Mounted { mount: mount(union, &merged, options).expect("mounts"), _directory: directory, merged, reads }
}

fn read(merged: &Path, number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::open(merged.join(format!("{number:04}"))).expect("opens").read_to_end(&mut bytes).expect("reads");
    bytes
}

#[test]
fn files_that_are_read_in_order_are_there_before_they_are_asked_for() {
    const AHEAD: &str = "fuse-ahead";
    const ASKED: usize = 4;
    let Mounted { mount, merged, reads, _directory } = mounted(40);
    // The kernel takes what is given only of files that it has seen.
    for entry in merged.read_dir().expect("lists") {
        entry.expect("lists").metadata().expect("is there");
    }
    for number in 0..ASKED {
        assert_eq!(read(&merged, number), content(number));
    }
    // The root is inode 1, and its files follow in order. Whoever gave two has been told that the kernel took the first.
    let next = ASKED as u64 + 2;
    let given = || -> Vec<u64> {
        let reads = reads.lock().expect("nobody panics");
        let ahead = reads.range(next..).filter(|(_, readers)| readers.iter().any(|name| name == AHEAD));
        ahead.map(|(inode, _)| *inode).collect()
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while given().len() < 2 {
        assert!(Instant::now() < deadline, "nothing is given: {:?}", reads.lock());
        std::thread::yield_now();
    }
    let first = given()[0];
    let number = usize::try_from(first).expect("small") - 2;
    assert_eq!(read(&merged, number), content(number));
    assert_eq!(reads.lock().expect("nobody panics")[&first], [AHEAD], "nobody had to ask for it");
    mount.unmount().expect("unmounts");
}

#[test]
fn many_readers_in_and_out_of_order_read_what_is_there() {
    const FILES: usize = 600;
    let Mounted { mount, merged, _directory, .. } = mounted(FILES);
    let merged = &merged;
    std::thread::scope(|scope| {
        for reader in 0..4 {
            scope.spawn(move || {
                for step in 0..FILES {
                    // From the beginning, from the middle, backwards, and in leaps.
                    let number = match reader {
                        0 => step,
                        1 => (step + FILES / 2) % FILES,
                        2 => FILES - 1 - step,
                        _ => step * 7 % FILES,
                    };
                    assert!(read(merged, number) == content(number), "file {number}");
                }
            });
        }
    });
    mount.unmount().expect("unmounts");
}

#[test]
fn what_was_changed_stays_changed_while_the_files_beside_it_are_given() {
    const FILES: usize = 200;
    let Mounted { mount, merged, _directory, .. } = mounted(FILES);
    let merged = &merged;
    std::thread::scope(|scope| {
        scope.spawn(move || (0..FILES).for_each(|number| drop(read(merged, number))));
        scope.spawn(move || {
            for number in (0..FILES).rev() {
                std::fs::write(merged.join(format!("{number:04}")), format!("changed {number}")).expect("writes");
            }
        });
    });
    for number in 0..FILES {
        assert_eq!(read(merged, number), format!("changed {number}").into_bytes());
    }
    mount.unmount().expect("unmounts");
}
