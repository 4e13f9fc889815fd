//! Errors from below and kills: an error arrives as itself and the mount lives on, and a kill leaves the old or the new
//! state.
//!
//! Invariant: every fault is made where it is wanted, by a full file system, a bounded process or a tree that fails or
//! stops; nothing here depends on luck or time.

use std::{
    io::{Error, Result},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use layerfs::{MountOptions, Tree, Union, mount};
use rustix::io::Errno;

use crate::{
    bench::{Bench, OPTIONS, listing, open_directory, shell},
    memory_tree::MemoryTree,
};

/// How a tree's content cannot be read behind a position: with an error, by ending the process, or by a panic.
#[derive(Clone)]
struct Faults {
    good_bytes: Arc<AtomicU64>,
    is_fatal: Arc<AtomicBool>,
    panics: Arc<AtomicBool>,
    reads: Arc<AtomicU64>,
}

impl Faults {
    fn behind(good_bytes: u64) -> Self {
        Self {
            good_bytes: Arc::new(AtomicU64::new(good_bytes)),
            is_fatal: Arc::default(),
            panics: Arc::default(),
            reads: Arc::default(),
        }
    }

    /// A tree with these faults, also with those that it is given later.
    fn in_tree(&self, tree: &MemoryTree) -> MemoryTree {
        let faults = self.clone();
        tree.with_reads(move |_, offset, length| faults.before_read(offset, length))
    }

    fn before_read(&self, offset: u64, length: usize) -> Result<()> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        if offset + length as u64 <= self.good_bytes.load(Ordering::SeqCst) {
            return Ok(());
        }
        if self.is_fatal.load(Ordering::SeqCst) {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)?;
        }
        assert!(!self.panics.load(Ordering::SeqCst), "a fault of ours");
        Err(Error::from(Errno::IO))
    }
}

const BIG: &str = "head -c 3000000 /dev/zero | tr '\\0' x > big; ln big big2; cp big other; mkdir d; echo small > d/s";

#[test]
fn an_error_from_below_arrives_as_itself_and_the_mount_lives_on() {
    let mut bench = Bench::new(BIG);
    bench.unmount_ours();
    let faults = Faults::behind(1 << 20);
    let (upper, work) = (open_directory(&bench.path("upper")), open_directory(&bench.path("work")));
    let union = Union::open(faults.in_tree(&bench.tree), upper, work, OPTIONS).expect("opens");
    let mounted = mount(union, &bench.path("ours"), MountOptions::default()).expect("mounts");
    for script in ["truncate -s 2900000 big", "cat other", "chmod 600 other && fallocate -l 10 -o 5000000 other"] {
        let (done, output) = shell(&bench.path("ours"), &format!("{script} > /dev/null"));
        assert!(!done && output.contains("Input/output error"), "{script}: {output}");
    }
    faults.panics.store(true, Ordering::SeqCst);
    let (done, output) = shell(&bench.path("ours"), "cat other > /dev/null");
    assert!(!done && output.contains("Input/output error"), "a panic costs one answer: {output}");
    // Nothing is half done, and what failed works once the fault is gone.
    assert_eq!(std::fs::read_dir(bench.path("work/nacre/tmp")).expect("lists").count(), 0);
    faults.good_bytes.store(u64::MAX, Ordering::SeqCst);
    bench.both("chmod 600 other; echo more >> big; cat d/s; md5sum big2 other; fallocate -l 10 -o 5000000 other");
    mounted.unmount().expect("unmounts");
    bench.mount_ours();
    assert_eq!(listing(&bench.path("ours")), listing(&bench.path("overlay")));
}

#[test]
fn a_full_upper_is_said_and_freed_space_is_used() {
    let mut bench = Bench::new(BIG);
    bench.unmount_ours();
    let (made, output) =
        shell(&bench.path(""), "mkdir small && mount -t tmpfs -o size=2M small small && mkdir small/u small/w");
    assert!(made, "{output}");
    let (upper, work) = (open_directory(&bench.path("small/u")), open_directory(&bench.path("small/w")));
    let union = Union::open(bench.tree.clone(), upper, work, OPTIONS).expect("opens");
    let mounted = mount(union, &bench.path("ours"), MountOptions::default()).expect("mounts");
    let results = [
        "truncate -s 2900000 big",
        "head -c 3000000 /dev/zero > new && sync new",
        "chmod 600 other && truncate -s 2900000 other",
    ]
    .map(|script| (script, shell(&bench.path("ours"), script)));
    let lives = shell(
        &bench.path("ours"),
        "rm -f new; md5sum < big; md5sum < other; stat -c '%s %a' big other; echo fits > d/new && sync d/new && cat d/new",
    );
    let wanted = shell(&bench.path("lower"), "md5sum < big; md5sum < other; stat -c '%s' big; echo fits");
    let unmounted = mounted.unmount();
    let (ended, output) = shell(&bench.path(""), "umount small");
    for (script, (done, output)) in results {
        assert!(!done && output.contains("No space left"), "{script}: {output}");
    }
    let seen = lives.1.replace("3000000 644\n3000000 600", "3000000");
    assert_eq!((lives.0, seen), wanted);
    unmounted.expect("unmounts");
    assert!(ended, "{output}");
}

/// The count of names that are left finds no room when the name is gone already.
#[test]
fn names_of_a_hard_link_that_went_on_a_full_disk_are_gone_and_counted_later() {
    let mut bench = Bench::new("echo x > g; for n in 1 2 3 4 5; do ln g g$n; done");
    bench.unmount_ours();
    let (made, output) = shell(
        &bench.path(""),
        "mkdir small && mount -t tmpfs -o nr_inodes=100 small small && mkdir small/u small/w small/fill",
    );
    assert!(made, "{output}");
    let open = || {
        let (upper, work) = (open_directory(&bench.path("small/u")), open_directory(&bench.path("small/w")));
        let union = Union::open(bench.tree.clone(), upper, work, OPTIONS).expect("opens");
        mount(union, &bench.path("ours"), MountOptions::default()).expect("mounts")
    };
    let fill = |free: u32| {
        let script = format!("cd small/fill; n=0; while : > $n; do n=$((n + 1)); done; seq {free} | xargs -r rm");
        shell(&bench.path(""), &script)
    };
    let ours = |script: &str| shell(&bench.path("ours"), script);
    let mounted = open();
    let before = ours("rm g1; echo new > n; echo other > m");
    fill(1);
    // The one file that still fits is the whiteout.
    let removed = ours("rm g2; ls");
    fill(0);
    let replaced = ours("mv n g3; ls; cat g3");
    shell(&bench.path(""), "rm -r small/fill");
    let after = ours("rm m; echo again > g2; cat g2; stat -c %h g4");
    let unmounted = mounted.unmount();
    let mounted = open();
    let remounted = ours("ls; stat -c %h g g4 g5 g3; cat g2 g3");
    let unmounted = unmounted.and_then(|()| mounted.unmount());
    let (ended, output) = shell(&bench.path(""), "umount small");
    assert_eq!(before, (true, String::new()));
    assert_eq!(removed, (true, "g\ng3\ng4\ng5\nm\nn\n".to_owned()));
    assert_eq!(replaced, (true, "g\ng3\ng4\ng5\nm\nnew\n".to_owned()));
    assert_eq!(after, (true, "again\n3\n".to_owned()));
    assert_eq!(remounted, (true, "g\ng2\ng3\ng4\ng5\n3\n3\n3\n1\nagain\nnew\n".to_owned()));
    unmounted.expect("unmounts");
    assert!(ended, "{output}");
}

#[test]
fn removing_files_of_the_tree_reads_no_content() {
    let mut bench = Bench::new(BIG);
    bench.unmount_ours();
    let faults = Faults::behind(u64::MAX);
    let (upper, work) = (open_directory(&bench.path("upper")), open_directory(&bench.path("work")));
    let options = layerfs::UpperOptions { splits_metadata: false, ..OPTIONS };
    let union = Union::open(faults.in_tree(&bench.tree), upper, work, options).expect("opens");
    let mounted = mount(union, &bench.path("ours"), MountOptions::default()).expect("mounts");
    bench.both("rm other big; rm -r d; ls");
    mounted.unmount().expect("unmounts");
    // The comparison reads what is left, `big2`, in one piece of 128 KiB to 1 MiB each.
    let most = 3_000_000_u64.div_ceil(128 << 10);
    let reads = faults.reads.load(Ordering::SeqCst);
    assert!((1..=most).contains(&reads), "{reads} reads");
    bench.mount_ours();
    bench.both("ls");
}

/// Runs a test of this program in a process of its own, where it may die; the directory to work in is its variable.
fn in_own_process(test: &str, directory: &std::path::Path) -> std::process::ExitStatus {
    let test = fixtures::this_test(test);
    let mut command = std::process::Command::new("prlimit");
    command.arg("--nofile=48").arg(test.get_program()).args(test.get_args()).arg("--test-threads=1");
    command.env("FAULT_DIRECTORY", directory).stdout(std::process::Stdio::null());
    command.status().expect("it runs")
}

/// The directory of a fault, where this process was started for one.
fn fault_directory() -> Option<std::path::PathBuf> {
    std::env::var_os("FAULT_DIRECTORY").map(Into::into)
}

fn open_union<T: Tree>(directory: &std::path::Path, tree: T) -> Union<T> {
    let (upper, work) = (open_directory(&directory.join("upper")), open_directory(&directory.join("work")));
    Union::open(tree, upper, work, OPTIONS).expect("opens")
}

fn find<T: Tree>(union: &Union<T>, name: &str) -> layerfs::NodeId {
    union.lookup(layerfs::NodeId::ROOT, name.as_bytes()).expect("looks up").expect("is there").id
}

#[test]
fn a_kill_while_content_is_copied_leaves_the_old_state() {
    const NAME: &str = "faults::a_kill_while_content_is_copied_leaves_the_old_state";
    if let Some(directory) = fault_directory() {
        let faults = Faults::behind(2 << 20);
        faults.is_fatal.store(true, Ordering::SeqCst);
        let tree = faults.in_tree(&MemoryTree::from_directory(&directory.join("lower")));
        let union = open_union(&directory, tree);
        // In place in `other`, which has its metadata in the upper; beside its name in `big`.
        let first = if directory.join("second").exists() { "big" } else { "other" };
        let error = union.write(find(&union, first), 0, b"new");
        panic!("the process lives: {error:?}");
    }
    let mut bench = Bench::new(BIG);
    bench.both("chmod 600 other");
    bench.unmount_ours();
    assert!(!in_own_process(NAME, &bench.path("")).success());
    std::fs::write(bench.path("second"), "").expect("writes");
    assert!(!in_own_process(NAME, &bench.path("")).success());
    bench.mount_ours();
    assert_eq!(listing(&bench.path("ours")), listing(&bench.path("overlay")));
    bench.both("echo more >> other; echo more >> big; md5sum *2 o*");
}

#[test]
fn many_files_are_served_with_few_descriptors() {
    const NAME: &str = "faults::many_files_are_served_with_few_descriptors";
    if let Some(directory) = fault_directory() {
        let union = open_union(&directory, MemoryTree::from_directory(&directory.join("lower")));
        let owner = layerfs::Owner { uid: 0, gid: 0 };
        let make = |name: &str| {
            union
                .create(layerfs::NodeId::ROOT, name.as_bytes(), owner, 0o644, layerfs::Making::File)
                .map(|made| made.id)
        };
        // More than this process may have open: the cache of handles is larger than that.
        let made: Vec<_> = (0..40).map(|number| make(&format!("f{number}"))).collect();
        let refused = made.iter().filter(|made| **made == Err(Errno::MFILE)).count();
        assert!(made.iter().all(|made| made.is_ok() || *made == Err(Errno::MFILE)), "{made:?}");
        assert!(refused < made.len(), "{made:?}");
        for id in made.iter().flatten() {
            union.forget(*id, 1);
        }
        let last = make("last").expect("descriptors are free again");
        union.write(last, 0, b"content").expect("writes");
        return;
    }
    let bench = {
        let mut bench = Bench::new("touch a");
        bench.unmount_ours();
        bench
    };
    assert!(in_own_process(NAME, &bench.path("")).success());
    assert_eq!(std::fs::read(bench.path("upper/last")).expect("reads"), b"content");
}
