//! What outside suites found that ours had not: each is named after the fact, with the suite's own name behind it.

use std::os::unix::fs::FileExt;

use layerfs::{Making, NodeId, Owner, RenameMode, Union};
use rustix::fs::SeekFrom;

use crate::{
    bench::{Bench, OPTIONS, listing, open_directory, shell},
    memory_tree::MemoryTree,
};

/// xfstests generic/736.
#[test]
fn listing_a_directory_ends_while_names_move_away_and_come_back() {
    const NAMES: usize = 300;
    let mut bench = Bench::new("true");
    bench.unmount_ours();
    let (upper, work) = (open_directory(&bench.path("upper")), open_directory(&bench.path("work")));
    let union = Union::open(bench.tree.clone(), upper, work, OPTIONS).expect("opens");
    for number in 0..NAMES {
        let (name, owner) = (format!("f{number}"), Owner { uid: 0, gid: 0 });
        union.create(NodeId::ROOT, name.as_bytes(), owner, 0o600, Making::File).expect("creates");
    }
    let rename = |from: &[u8], to: &[u8]| union.rename(NodeId::ROOT, from, NodeId::ROOT, to, RenameMode::Replace);
    let (mut after, mut seen) = (0, Vec::new());
    while let Some(entry) = union.read_directory(NodeId::ROOT, after, 1).expect("lists").into_iter().last() {
        after = entry.position;
        if entry.name.starts_with(b"f") {
            rename(&entry.name, b"away").expect("renames");
            rename(b"away", &entry.name).expect("renames back");
            seen.push(entry.name);
        }
        assert!(seen.len() <= NAMES, "names come again");
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), NAMES);
}

/// xfstests generic/003.
#[test]
fn the_time_of_a_write_is_the_same_after_a_remount() {
    let mut bench = Bench::new("for i in $(seq 50); do echo $i > old$i; done");
    let script = "for i in $(seq 50); do echo $i > new$i; echo $i >> old$i; echo $i >> new$i; done";
    let (written, output) = shell(&bench.path("ours"), script);
    assert!(written, "{output}");
    let before = shell(&bench.path("ours"), "stat -c '%n %y' *");
    bench.remount();
    assert_eq!(before, shell(&bench.path("ours"), "stat -c '%n %y' *"));
}

/// xfstests generic/003: the mount is `noatime`, and so are the directories that it is made of.
#[test]
fn reading_changes_no_time_of_access() {
    let mut bench = Bench::new("mkdir d; echo x > d/old; echo x > f");
    let long_ago = "touch -a -d 2001-01-01 d f d/old d/new; stat -c '%n %x' d f d/old d/new";
    let (done, before) = shell(&bench.path("ours"), &format!("echo new > d/new; {long_ago}"));
    assert!(done, "{before}");
    for round in 0..2 {
        let read = "cat d/* f > /dev/null; ls d . > /dev/null; stat -c '%n %x' d f d/old d/new";
        assert_eq!(shell(&bench.path("ours"), read).1, before, "round {round}");
        bench.remount();
    }
}

/// xfstests generic/193, generic/355.
#[test]
fn a_member_of_the_group_keeps_a_set_group_id_bit_that_executes_nothing() {
    let bench = Bench::new(
        "for f in a b c d; do echo $f > $f; chown 65534:77 $f; chmod 6666 $f; done; chmod 6676 d; chmod 777 .",
    );
    for (groups, script) in
        [("--groups 77", ": > a; fallocate -l 9 b; truncate -s 1 d"), ("--clear-groups", ": > a; truncate -s 1 c")]
    {
        bench.both(&format!("setpriv --reuid 65534 --regid 65534 {groups} bash -c '{script}'; stat -c '%n %a' *"));
    }
    bench.both("chmod 6666 a b; chown 1 a; chgrp 5 b; chmod 6676 c; chown 1:5 c; stat -c '%n %a' *");
}

/// containers/storage `import-layer`, fuse-overlayfs `test-dir-ops`.
#[test]
fn marks_of_aufs_in_an_upper_that_others_filled_become_those_of_overlayfs() {
    let mut bench = Bench::new("mkdir d e g; touch a b c d/x d/y e/x g/x g/y");
    bench.unmount_ours();
    bench.unmount_overlay();
    let fill = "mkdir d e g g/.wh.x; touch .wh.a .wh.b b d/.wh..wh..opq d/.wh.y d/z .wh.e e/n; touch -d 2001-01-01 d g";
    let (filled, output) = shell(&bench.path("upper"), fill);
    assert!(filled, "{output}");
    bench.mount_ours_with(layerfs::UpperOptions { has_aufs_marks: true, ..OPTIONS });
    let show = "find . -mindepth 1 -printf '%P\n' | LC_ALL=C sort | tr '\n' ' '; stat -c %Y d g | uniq";
    let wanted = "b c d d/z e e/n g g/y 978307200\n";
    assert_eq!(shell(&bench.path("ours"), show).1, wanted);
    let (done, output) =
        shell(&bench.path("ours"), "touch g/x a; rm g/x a b; mkdir a; rmdir a; rm -r e; mkdir e; ls -A e");
    assert_eq!((done, output.as_str()), (true, ""));
    bench.remount();
    let shown = listing(&bench.path("ours"));
    bench.unmount_ours();
    bench.mount_overlay("upper", "work");
    assert_eq!(shown, listing(&bench.path("overlay")));
}

/// xfstests generic/611: mounted again while the last server still writes to the disk.
#[test]
fn an_upper_is_free_once_its_union_is_closed() {
    let mut bench = Bench::new("echo lower > f");
    bench.unmount_ours();
    let open = || {
        let (upper, work) = (open_directory(&bench.path("upper")), open_directory(&bench.path("work")));
        Union::<MemoryTree>::open(bench.tree.clone(), upper, work, OPTIONS)
    };
    let first = open().expect("opens");
    assert!(open().is_err());
    first.close().expect("writes");
    open().expect("opens beside the first");
}

/// xfstests generic/285, generic/436: what a program that has not closed its file wrote is still with the kernel.
#[test]
fn data_that_the_kernel_has_not_sent_yet_is_no_hole() {
    let bench = Bench::new("truncate -s 1M holes; yes | head -c 5000 > full; touch empty");
    let sought = |root: &str| {
        let mut options = std::fs::File::options();
        options.read(true).write(true).create(true).truncate(false);
        let mut found = Vec::new();
        for (name, offset) in
            [("holes", 500_000), ("full", 5000), ("full", 90_000), ("empty", 3), ("new", 0), ("new", 1 << 20)]
        {
            let file = options.open(bench.path(root).join(name)).expect("opens");
            file.write_all_at(&[b'x'; 9000], offset).expect("writes");
            for at in [0, 4096, 8192, offset, offset + 5000, offset + 20_000] {
                found.push((
                    name,
                    at,
                    rustix::fs::seek(&file, SeekFrom::Data(at)),
                    rustix::fs::seek(&file, SeekFrom::Hole(at)),
                ));
            }
        }
        found
    };
    assert_eq!(sought("ours"), sought("overlay"));
}

/// Who waits for the kernel to send data holds a thread; the others must be enough to take it.
#[test]
fn many_files_are_sought_in_at_once_while_they_are_written() {
    let bench = Bench::new("true");
    std::thread::scope(|scope| {
        for number in 0..24 {
            let file = bench.path("ours").join(format!("f{number}"));
            scope.spawn(move || {
                let file = std::fs::File::create_new(file).expect("makes");
                for round in 0..20 {
                    file.write_all_at(&[b'x'; 30_000], round << 20).expect("writes");
                    match rustix::fs::seek(&file, SeekFrom::Data(round << 20)) {
                        Ok(found) => assert_eq!(found, round << 20),
                        // Too many at once: a program reads everything then.
                        Err(error) => assert_eq!(error, rustix::io::Errno::INVAL),
                    }
                }
            });
        }
    });
}

/// Layers may have it, where a directory would have a whiteout.
#[test]
fn a_device_with_the_numbers_of_a_whiteout_can_be_removed_but_not_changed() {
    let mut bench = Bench::new("mknod zero c 0 0; mknod gone c 0 0; mkdir d; mknod d/zero c 0 0");
    let script = "for change in 'chmod 600 zero' 'mv zero new' 'ln zero new' 'touch zero' 'rm gone' 'mv d e'; do
        $change 2> /dev/null; echo $change: $?; done; find . | sort";
    let wanted = "chmod 600 zero: 1\nmv zero new: 1\nln zero new: 1\ntouch zero: 1\nrm gone: 0\nmv d e: 0\n\
        .\n./e\n./e/zero\n./zero\n";
    assert_eq!(shell(&bench.path("ours"), script).1, wanted);
    bench.remount();
    assert_eq!(shell(&bench.path("ours"), "find . | sort").1, ".\n./e\n./e/zero\n./zero\n");
}

/// Kernel overlayfs refuses it too: what is in the making in the work directory would be seen in the mount.
#[test]
fn an_upper_and_a_work_directory_in_one_another_are_refused() {
    let bench = Bench::new("mkdir d");
    std::fs::create_dir_all(bench.path("upper/within/work")).expect("makes");
    let open = |upper, work| {
        let directories = (open_directory(&bench.path(upper)), open_directory(&bench.path(work)));
        Union::<MemoryTree>::open(bench.tree.clone(), directories.0, directories.1, OPTIONS)
    };
    for (upper, work) in [("lower", "lower"), ("upper", "upper/within/work"), ("upper/within/work", "upper")] {
        let refused = open(upper, work).expect_err("nested");
        assert!(matches!(refused, layerfs::OpenError::Nested), "{upper} {work}: {refused}");
    }
}
