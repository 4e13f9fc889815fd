//! Changes of metadata alone: the content stays in the tree until the first write, and nobody can tell.
//!
//! Invariant: each test compares with kernel overlayfs, which copies. What is in the upper is looked at beside it.

use std::os::unix::fs::MetadataExt;

use layerfs::UpperOptions;

use crate::bench::{Bench, OPTIONS, listing, shell};

const LOWER: &str = "head -c 3000000 /dev/zero | tr '\\0' x > big; ln big big2; head -c 200000 /dev/zero | tr '\\0' y > f
    mkdir d; echo small > d/s; chmod 4755 f; echo cap > cap; setcap cap_net_raw+ep cap; truncate -s 2M hole; echo end >> hole";

/// KiB that the upper's files take.
fn used(bench: &Bench) -> u64 {
    let (_, used) = shell(&bench.path("upper"), "find . -type f -printf '%b\n' | awk '{s+=$1} END {print int(s/2)}'");
    used.trim().parse().expect("a number")
}

#[test]
fn a_change_of_metadata_copies_no_content_and_survives_a_remount() {
    let mut bench = Bench::new(LOWER);
    bench.both("chmod 4711 f; chown 3:4 big d/s hole; touch -d 2001-02-03 d/s; python3 -c 'import os; os.setxattr(\"big2\", \"user.k\", b\"v\")'");
    bench.both(
        "python3 -c 'import os; print(os.getxattr(\"big\", \"user.k\"))'; stat -c '%a %u %s %Y %h' d/s hole; md5sum f big2 hole; wc -c hole",
    );
    assert!(used(&bench) < 100, "{} KiB in the upper", used(&bench));
    bench.remount();
    assert_eq!(listing(&bench.path("ours")), listing(&bench.path("overlay")));
    bench.both("python3 -c 'import os; print(os.getxattr(\"big2\", \"user.k\"))'; ls -l --time-style=full-iso d/s | cut -d' ' -f1-8");
    assert!(used(&bench) < 100, "{} KiB in the upper", used(&bench));
}

#[test]
fn the_first_write_brings_the_content() {
    let mut bench = Bench::new(LOWER);
    bench.both("chmod 600 big f d/s hole; chown 9 cap");
    bench.both(
        "echo more >> big2; printf abc | dd of=f bs=1 seek=5 conv=notrunc status=none; truncate -s 3 d/s; md5sum *",
    );
    bench.both("fallocate -p -o 0 -l 8192 hole; md5sum hole; echo new > cap; cat cap; getcap cap; stat -c '%a %s' *");
    bench.remount();
    assert_eq!(listing(&bench.path("ours")), listing(&bench.path("overlay")));
    bench.both("md5sum * d/*; echo more >> big; cat big2 | md5sum");
}

#[test]
fn files_with_their_metadata_only_can_be_renamed_linked_and_removed() {
    let mut bench = Bench::new(LOWER);
    bench.both("chmod 600 big f d/s cap; mv f d/f2; ln d/s s2; ln big2 b3; rm big; mv d e; chmod 640 e/s; cat e/s s2");
    bench.both("exec 3<cap; chmod 644 cap; rm cap; cat <&3; stat -L -c '%a %h %s' /dev/fd/3");
    bench.remount();
    assert_eq!(listing(&bench.path("ours")), listing(&bench.path("overlay")));
    bench.both("cmp big2 b3; echo t > big2; cat b3; md5sum e/*; rm -r e; ls");
}

#[test]
fn copying_from_such_a_file_and_seeking_in_it_use_the_content() {
    let bench = Bench::new(LOWER);
    bench.both("chmod 600 hole f; cp --sparse=always hole copy; cp f copy2; md5sum copy copy2 hole; stat -c %s copy");
    let blocks = std::fs::metadata(bench.path("ours/f")).expect("stat").blocks();
    assert!(blocks * 512 >= 200_000, "{blocks} blocks");
}

#[test]
fn kernel_overlayfs_reads_such_an_upper_with_metacopy() {
    let mut bench = Bench::new(LOWER);
    bench.both("chmod 600 big f hole; chown 7 d/s; mv d e");
    let shown = listing(&bench.path("ours"));
    bench.unmount_ours();
    bench.unmount_overlay();
    bench.mount_overlay_with("upper", "work", "redirect_dir=on,metacopy=on,xino=off");
    let without_links =
        |text: &str| -> Vec<String> { text.lines().filter(|line| !line.contains("big")).map(str::to_owned).collect() };
    assert_eq!(without_links(&listing(&bench.path("overlay"))), without_links(&shown));
}

#[test]
fn an_upper_of_kernel_overlayfs_with_metacopy_shows_the_same() {
    let mut bench =
        Bench::new("mkdir d; for i in a b c d/d; do head -c 5000 /dev/zero | tr '\\0' $(basename $i) > $i; done");
    bench.unmount_overlay();
    bench.mount_overlay_with("overlay.upper", "overlay.work", "redirect_dir=on,metacopy=on,xino=off");
    let (done, output) = shell(&bench.path("overlay"), "chmod 600 a b c d/d; mv b d/b2; mv d e; echo x >> c");
    assert!(done, "{output}");
    let shown = listing(&bench.path("overlay"));
    bench.unmount_overlay();
    bench.unmount_ours();
    let (moved, output) = shell(&bench.path(""), "rm -r upper work && mv overlay.upper upper && mkdir work");
    assert!(moved, "{output}");
    bench.mount_ours();
    assert_eq!(listing(&bench.path("ours")), shown);
    bench.remount();
    assert_eq!(listing(&bench.path("ours")), shown);
    let (done, output) = shell(
        &bench.path("ours"),
        "echo y >> a; tail -c 3 a; head -c 3 a; cmp -n 5000 a e/d && exit 1; chmod 644 e/b2",
    );
    assert!(done || output.contains("a\ny\naaa"), "{output}");
}

#[test]
fn an_upper_that_others_read_gets_the_content_with_the_metadata() {
    let mut bench = Bench::new(LOWER);
    bench.unmount_ours();
    bench.mount_ours_with(UpperOptions { splits_metadata: false, ..OPTIONS });
    bench.both("chmod 600 f");
    assert!(used(&bench) >= 195, "{} KiB in the upper", used(&bench));
}

#[test]
fn files_that_the_kernel_split_after_us_have_their_content() {
    for work in ["work", "overlay.work"] {
        let mut bench = Bench::new("echo one > f1; echo two > f2; mkdir d; echo x > d/x");
        bench.both("echo new > new");
        bench.unmount_ours();
        bench.unmount_overlay();
        bench.mount_overlay_with("upper", work, "redirect_dir=on,metacopy=on");
        let (done, output) = shell(&bench.path("overlay"), "chmod 600 f1 d/x && mv f2 g2 && chmod 640 g2");
        assert!(done, "{output}");
        let shown = listing(&bench.path("overlay"));
        bench.unmount_overlay();
        bench.mount_ours();
        assert_eq!(listing(&bench.path("ours")), shown, "{work}");
        let (read, output) = shell(&bench.path("ours"), "cat f1 g2 d/x; echo more >> f1; cat f1");
        assert!(read, "{output}");
        assert_eq!(output, "one\ntwo\nx\none\nmore\n", "{work}");
    }
}
