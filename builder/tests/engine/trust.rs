//! What the cache may be trusted with: content that changed is seen, content that did not is not done again, and both
//! are explained.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use fixtures::{SmallDisk, names, run};

use crate::support::{Bench, SHELL};

fn write_at(path: &Path, content: &str, seconds: u64) {
    fs::write(path, content).expect("written");
    let time = UNIX_EPOCH + Duration::from_secs(seconds);
    File::options().write(true).open(path).and_then(|file| file.set_modified(time)).expect("touched");
}

#[test]
fn other_content_of_the_same_size_and_time_is_seen() {
    let bench = Bench::new();
    bench.dockerfile("FROM scratch\nCOPY file /");
    let path = bench.path("context/file");
    let mut seen = std::collections::BTreeSet::new();
    // Some of these follow each other within a tick of the file system's clock, some do not.
    for number in 0..20 {
        write_at(&path, &format!("content {number:02}"), 1_000_000_000);
        assert!(seen.insert(bench.build(&[]).digest()), "round {number}");
        assert!(!seen.insert(bench.build(&[]).digest()), "round {number}, nothing changed");
    }
}

#[test]
fn an_attribute_that_is_set_later_is_seen() {
    let bench = Bench::new();
    bench.dockerfile("FROM scratch\nCOPY file /").file("file", "x");
    let path = bench.path("context/file");
    write_at(&path, "x", 1_000_000_000);
    let first = bench.build(&[]).digest();
    assert_eq!(bench.build(&[]).digest(), first);
    // Attributes of the namespace `user` are the builder's own, and stay out of layers.
    run("setcap", &["cap_net_raw+ep", path.to_str().expect("text")]);
    assert_ne!(bench.build(&[]).digest(), first);
}

#[test]
fn an_unchanged_file_of_a_stage_that_changed_is_a_hit() {
    let bench = Bench::with_busybox();
    bench.dockerfile(&format!(
        "{SHELL}FROM shell AS made\nARG X\nRUN echo $X > /other; mkdir /out; echo same > /out/same\n\
         FROM shell\nCOPY --from=made /out /out\nRUN --mount=from=made,source=/out,target=/in cat /in/same > /copy\n"
    ));
    bench.build(&["--build-arg", "X=1"]).succeeds();
    let again = bench.build(&["--build-arg", "X=2"]);
    // Of the steps of `shell`, `made` and the result only that of `made` runs.
    assert_eq!(again.cached(), 2 + 2);
}

#[test]
fn links_and_directories_on_the_way_are_inputs_too() {
    let bench = Bench::new();
    bench.dockerfile("FROM scratch\nCOPY links /links\nCOPY --parents above/./dir/file /");
    bench.file("above/dir/file", "x");
    let links = bench.path("context/links");
    fs::create_dir(&links).expect("a directory");
    let link = |from: &str, to: &str| {
        _ = fs::remove_file(links.join(to));
        fs::hard_link(links.join(from), links.join(to)).expect("a link");
    };
    for name in ["a", "b"] {
        fs::write(links.join(name), "same").expect("written");
    }
    link("a", "c");
    link("b", "d");
    let first = bench.build(&[]).digest();
    link("b", "c");
    link("a", "d");
    let linked = bench.build(&[]).digest();
    assert_ne!(linked, first);
    run("chmod", &["700", bench.path("context/above/dir").to_str().expect("text")]);
    assert_ne!(bench.build(&[]).digest(), linked);
}

#[test]
fn explain_names_the_first_input_that_differs() {
    let bench = Bench::with_busybox();
    bench.dockerfile(&format!(
        "{SHELL}ARG X=1\nCOPY src /src\nRUN echo $X > /x\nRUN cat /src/a > /y\nFROM shell\nCOPY --from=shell /x /x\n"
    ));
    bench.file("src/a", "1").file("src/b", "1");
    let explained = |arguments: &[&str]| -> Vec<String> {
        let done = bench.build(&[&["--explain", "--jobs", "1"], arguments].concat()).succeeds();
        let is_reason = |line: &&str| line.starts_with('#') && !line.contains('[') && !line.contains("DONE");
        let reasons = done.stderr.lines().filter(is_reason).filter(|line| !line.ends_with("CACHED"));
        reasons.map(|line| line.split_once(' ').expect("a number").1.to_owned()).collect()
    };
    assert!(explained(&[]).iter().all(|reason| reason == "it is the first build of this step"));
    assert_eq!(explained(&[]), [""; 0]);
    bench.file("src/b", "2");
    let below = "the step before gave other bytes";
    assert_eq!(explained(&[]), ["src/b changed", below, below, below]);
    fs::remove_file(bench.path("context/src/b")).expect("removed");
    assert_eq!(explained(&[])[0], "src/b is gone");
    bench.file("src/c", "2");
    assert_eq!(explained(&[])[0], "src/c is new");
    let argument = ["--build-arg", "X=2"];
    assert_eq!(explained(&argument), ["the environment variable X changed", below, below]);
    assert_eq!(explained(&["--build-arg", "X=2", "--no-cache-filter", "shell"]), ["the cache is not to be used"; 5]);
}

#[test]
fn a_stage_is_built_without_the_cache_where_that_is_asked_for() {
    let bench = Bench::with_busybox();
    bench.dockerfile(&format!(
        "{SHELL}FROM shell AS one\nRUN echo 1 > /1\nFROM shell\nCOPY --from=one /1 /\nRUN echo 2\n"
    ));
    bench.build(&[]).succeeds();
    assert_eq!(bench.build(&["--no-cache-filter", "ONE"]).cached(), 2 + 2);
    assert_eq!(bench.build(&["--no-cache-filter", "one,stage-2"]).cached(), 2);
    assert!(bench.build(&["--no-cache-filter", "none"]).fails(1).contains("no stage \"none\""));
}

#[test]
fn a_full_disk_is_told_and_the_next_build_goes_on_from_what_was_finished() {
    let bench = Bench::with_busybox();
    let store = bench.store();
    let disk = SmallDisk::mount(&store, "8m");
    bench.file("large", vec![1; 9 << 20]);
    bench.dockerfile(&format!("{SHELL}RUN echo 1 > /1\nCOPY large /\n"));
    let said = bench.build(&[]).fails(1);
    assert!(said.contains("No space left on device") && said.contains(store.to_str().expect("text")), "{said}");
    assert!(said.contains("hint: "), "{said}");
    // A step that fills the disk is told what it did by the system.
    bench.dockerfile(&format!("{SHELL}RUN echo 1 > /1\nRUN dd if=/dev/zero of=/large bs=1M count=9\n"));
    let said = bench.build(&[]).fails(1);
    assert!(said.contains("No space left on device"), "{said}");
    disk.grow("64m");
    bench.dockerfile(&format!("{SHELL}RUN echo 1 > /1\nCOPY large /\n"));
    assert_eq!(bench.build(&[]).cached(), 3);
    assert_eq!(layerfs::Store::open(&store).expect("opened").verify().expect("read"), []);
    assert_eq!(names(&store.join("tmp")), [""; 0]);
}
