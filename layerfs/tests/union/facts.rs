//! What must be true of a mounted union, most of it what fuse-overlayfs 2.0 gets wrong, and that it shows what
//! kernel overlayfs shows.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    sync::{Condvar, Mutex},
};

use layerfs::{
    AttributeChange, Attributes, DirectoryEntry, Making, MarkNamespace, NodeId, Owner, SetTime, Time, Tree, TreeInode,
    Union,
};

use crate::{
    bench::{Bench, OPTIONS, listing, open_directory, shell},
    memory_tree::MemoryTree,
};

const LOWER: &str = r"
    mkdir -p d/e/f etc empty; echo one > a; echo two > d/b; echo three > d/e/c; ln -s ../a d/link
    echo hard > h1; ln h1 h2; ln h1 d/h3; mkfifo pipe; mknod dev c 1 3; chmod 4755 a; chown 7:8 d/b
    truncate -s 1M sparse; echo end >> sparse; touch -h -d 2001-02-03 d/link";

const SCRIPTS: &[&str] = &[
    "cat a d/b d/e/c h1 && readlink d/link",
    "echo more >> a; cat a; stat -c %a a",
    "rm d/b; ls d; cat d/b",
    "mkdir new; echo n > new/n; cat new/n; rmdir new; rm -r new; ls",
    "echo x > h2; cat h1 h2 d/h3; stat -c %h h1",
    "mv d moved; ls moved moved/e; cat moved/e/c",
    "mv moved d; ls d",
    "rm -r d; ls d; mkdir d; ls -A d",
    "ln a a2; stat -c %h a a2; rm a; cat a2",
    "chmod 600 pipe; chown 3:4 dev; stat -c '%a %u:%g %t,%T' pipe dev",
    "touch -d 2005-01-01 a2; stat -c %Y a2",
    "mkdir sg; chgrp 99 sg; chmod 2775 sg; touch sg/f; mkdir sg/d; stat -c '%g %a' sg/f sg/d",
    "printf xyz | dd of=sparse bs=1 seek=5000 conv=notrunc status=none; md5sum sparse",
    "rmdir empty; touch empty; rm empty; mkdir empty; touch empty/x; rmdir empty",
];

#[test]
fn every_kind_of_change_shows_what_overlayfs_shows() {
    let bench = Bench::new(LOWER);
    for script in SCRIPTS {
        bench.both(script);
    }
}

#[test]
fn remount_keeps_everything() {
    let mut bench = Bench::new(LOWER);
    for script in SCRIPTS {
        bench.both(script);
        bench.remount();
        assert_eq!(listing(&bench.path("ours")), listing(&bench.path("overlay")), "after {script} and a remount");
    }
}

#[test]
fn kernel_overlayfs_mounts_our_upper_and_shows_the_same() {
    let mut bench = Bench::new(LOWER);
    for script in SCRIPTS {
        bench.both(script);
    }
    let shown = listing(&bench.path("ours"));
    bench.unmount_ours();
    bench.unmount_overlay();
    bench.mount_overlay("upper", "work");
    let by_kernel = listing(&bench.path("overlay"));
    // The kernel does not know our index of hard links: their number and names in the tree alone may differ.
    let without_links = |text: &str| {
        text.lines()
            .filter(|line| !line.contains("h1") && !line.contains("h2") && !line.contains("h3"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(without_links(&shown), without_links(&by_kernel));
}

#[test]
fn an_upper_of_kernel_overlayfs_shows_the_same() {
    let mut bench = Bench::new("mkdir -p d/e; echo a > d/e/a; echo b > d/b; echo c > c; mkdir x; echo y > x/y");
    let script = "rm c; mv d m; echo n > m/e/n; rm m/b; rm -r x; mkdir x; touch x/z; ln x/z x/w; chmod 700 m/e";
    let (done, output) = shell(&bench.path("overlay"), script);
    assert!(done, "{output}");
    let shown = listing(&bench.path("overlay"));
    bench.unmount_overlay();
    bench.unmount_ours();
    let (moved, output) = shell(&bench.path(""), "rm -r upper && mv overlay.upper upper");
    assert!(moved, "{output}");
    bench.mount_ours();
    assert_eq!(listing(&bench.path("ours")), shown);
}

#[test]
fn writing_while_open_for_reading_leaves_the_lower_file_alone() {
    let bench = Bench::new("echo lower > f");
    let mut reader = File::open(bench.path("ours/f")).expect("opens");
    OpenOptions::new().write(true).open(bench.path("ours/f")).expect("opens").write_all(b"UPPER").expect("writes");
    let mut seen = String::new();
    reader.read_to_string(&mut seen).expect("reads");
    assert_eq!(seen, "UPPER\n");
    assert_eq!(std::fs::read(bench.path("lower/f")).expect("reads"), b"lower\n");
}

#[test]
fn unlinked_open_file_can_be_changed_and_has_no_links() {
    let bench = Bench::new("echo lower > f");
    for name in ["ours/f", "ours/new"] {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(bench.path(name))
            .expect("opens");
        std::fs::remove_file(bench.path(name)).expect("unlinks");
        assert_eq!(file.metadata().expect("stat").nlink(), 0);
        file.set_len(3).expect("truncates");
        file.set_permissions(PermissionsExt::from_mode(0o600)).expect("chmod");
        file.write_all_at(b"xyz", 0).expect("writes");
        let mut content = [0; 3];
        file.read_exact_at(&mut content, 0).expect("reads");
        assert_eq!((&content, file.metadata().expect("stat").mode() & 0o777), (b"xyz", 0o600));
        assert!(!bench.path(name).exists());
    }
}

#[test]
fn leftovers_in_the_work_directory_do_no_harm() {
    let mut bench = Bench::new("echo lower > f; mkdir d; echo x > d/x");
    bench.unmount_ours();
    let (made, output) = shell(
        &bench.path("work/nacre/tmp"),
        "for i in 0 1 2 3; do echo STALESTALESTALE > $i; done; mkdir -p 4/5; touch 4/5/6",
    );
    assert!(made, "{output}");
    bench.mount_ours();
    bench.both("echo more >> f; cat f; mkdir n; mv d e; cat e/x; chmod 600 f; mkdir d");
    assert_eq!(std::fs::read_dir(bench.path("work/nacre/tmp")).expect("lists").count(), 0);
}

#[test]
fn unlink_of_a_large_lower_file_copies_nothing() {
    let bench = Bench::new("dd if=/dev/urandom of=big bs=1M count=64 status=none; mkdir d; ln big d/big");
    bench.both("rm big; ls");
    bench.both("rm -r d; ls");
    let (_, used) = shell(&bench.path("upper"), "du -sk . | cut -f1");
    assert!(used.trim().parse::<u64>().expect("a number") < 64, "{used} KiB in the upper");
}

#[test]
fn holes_stay_holes_in_copy_up() {
    let bench = Bench::new("truncate -s 64M sparse; echo end >> sparse");
    bench.both("chmod 600 sparse; stat -c %s sparse");
    let blocks = std::fs::metadata(bench.path("upper/sparse")).expect("copied up").blocks();
    assert!(blocks * 512 < 1 << 20, "{blocks} blocks");
}

#[test]
fn symlink_keeps_its_time_over_copy_up() {
    let bench = Bench::new("ln -s target link; touch -h -d 2001-02-03 link");
    bench.both("mv link moved; stat -c %Y moved");
    bench.both("chown -h 5:6 moved; stat -c '%Y %u' moved");
}

#[test]
fn names_have_255_bytes() {
    let name = "n".repeat(255);
    let bench = Bench::new(&format!("echo x > {name}"));
    bench.both(&format!(
        "rm {name}; touch {name}; mv {name} x{}; ls; touch x{name} 2>/dev/null || echo too long",
        &name[1..]
    ));
}

#[test]
fn hard_links_and_inode_numbers_survive_copy_up_and_remount() {
    let mut bench = Bench::new("echo x > h1; ln h1 h2; echo y > f");
    let number = |bench: &Bench, name: &str| std::fs::metadata(bench.path("ours").join(name)).expect("stat").ino();
    let before = ["h1", "h2", "f"].map(|name| number(&bench, name));
    bench.both("echo more >> h2; echo more >> f; cat h1 h2; stat -c %h h1 h2");
    for _ in 0..2 {
        assert_eq!(["h1", "h2", "f"].map(|name| number(&bench, name)), before);
        bench.remount();
        bench.both("cat h1 h2; stat -c %h h1 h2");
    }
    bench.both("rm h1; stat -c %h h2; echo again >> h2; rm h2; ls");
}

#[test]
fn listing_a_directory_while_it_changes_shows_what_stays_exactly_once() {
    let bench = Bench::new("for i in $(seq 1000); do echo $i > f$i; done");
    bench.both(
        "find . -name 'f*' -exec chmod 600 {} + ; for f in *; do echo x >> $f; done; ls | wc -l; rm f1*; ls | wc -l",
    );
}

#[test]
fn references_of_listings_are_given_back() {
    let bench = Bench::new("mkdir d; touch d/a d/b d/c");
    let union = Union::read_only(bench.tree.clone());
    let directory = union.lookup(NodeId::ROOT, b"d").expect("looks up").expect("is there");
    let listed = union.read_directory_plus(directory.id, 0, 100).expect("lists");
    assert_eq!((listed.len(), union.node_count()), (5, 5));
    for (entry, _) in listed.iter().skip(2) {
        union.forget(entry.id, 1);
    }
    union.forget(directory.id, 1);
    assert_eq!(union.node_count(), 1);
}

#[test]
fn a_second_opening_of_the_same_upper_is_refused() {
    let bench = Bench::new("true");
    let (upper, work) = (open_directory(&bench.path("upper")), open_directory(&bench.path("work")));
    let error = Union::open(bench.tree.clone(), upper, work, OPTIONS).expect_err("it is mounted");
    assert!(matches!(error, layerfs::OpenError::InUse), "{error}");
}

/// A tree in which reading content waits until it is let.
struct Slow {
    tree: MemoryTree,
    /// How many readings wait, and whether they may go on.
    gate: std::sync::Arc<(Mutex<(usize, bool)>, Condvar)>,
}

impl Tree for Slow {
    fn lookup(&self, directory: TreeInode, name: &[u8]) -> std::io::Result<Option<TreeInode>> {
        self.tree.lookup(directory, name)
    }
    fn attributes(&self, inode: TreeInode) -> std::io::Result<Attributes> {
        self.tree.attributes(inode)
    }
    fn entries(&self, directory: TreeInode, start: u64, limit: usize) -> std::io::Result<Vec<DirectoryEntry>> {
        self.tree.entries(directory, start, limit)
    }
    fn read_at(&self, inode: TreeInode, offset: u64, buffer: &mut [u8]) -> std::io::Result<usize> {
        let (state, changed) = &*self.gate;
        let mut state = state.lock().expect("not poisoned");
        state.0 += 1;
        changed.notify_all();
        drop(changed.wait_while(state, |(_, open)| !*open).expect("not poisoned"));
        self.tree.read_at(inode, offset, buffer)
    }
    fn data_extents(&self, inode: TreeInode) -> std::io::Result<Vec<(u64, u64)>> {
        self.tree.data_extents(inode)
    }
    fn read_link(&self, inode: TreeInode) -> std::io::Result<Vec<u8>> {
        self.tree.read_link(inode)
    }
    fn xattrs(&self, inode: TreeInode) -> std::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        self.tree.xattrs(inode)
    }
    fn last_inode(&self) -> TreeInode {
        self.tree.last_inode()
    }
}

#[test]
fn copy_up_stalls_nothing_and_follows_a_renaming() {
    let mut bench = Bench::new("echo content > f; mkdir d");
    bench.unmount_ours();
    let gate = std::sync::Arc::new((Mutex::new((0, false)), Condvar::new()));
    let tree = Slow { tree: bench.tree.clone(), gate: std::sync::Arc::clone(&gate) };
    let (upper, work) = (open_directory(&bench.path("upper")), open_directory(&bench.path("work")));
    let union = Union::open(tree, upper, work, OPTIONS).expect("opens");
    let file = union.lookup(NodeId::ROOT, b"f").expect("looks up").expect("is there").id;
    let owner = Owner { uid: 0, gid: 0 };
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| union.write(file, 0, b"CON"));
        let (state, changed) = &*gate;
        drop(
            changed
                .wait_while(state.lock().expect("not poisoned"), |(reading, _)| *reading == 0)
                .expect("not poisoned"),
        );
        // In the same directory, while the copy is under way.
        let made = union.create(NodeId::ROOT, b"new", owner, 0o644, Making::File).expect("creates");
        union.write(made.id, 0, b"new").expect("writes");
        assert_eq!(union.metadata(file).expect("stat").size_bytes, 8);
        union.unlink(NodeId::ROOT, b"f").expect("unlinks");
        state.lock().expect("not poisoned").1 = true;
        changed.notify_all();
        writer.join().expect("no panic").expect("writes");
    });
    let mut content = [0; 16];
    let length = union.read(file, 0, &mut content).expect("reads");
    assert_eq!(&content[..length], b"CONtent\n");
    assert_eq!(union.metadata(file).expect("stat").links, 0);
    assert!(union.lookup(NodeId::ROOT, b"f").expect("looks up").is_none());
}

#[test]
fn many_operations_that_wait_hold_up_no_other() {
    const WAITING: usize = 20;
    let mut bench = Bench::new(&format!("for n in $(seq {WAITING}); do echo $n > f$n; done"));
    bench.unmount_ours();
    let gate = std::sync::Arc::new((Mutex::new((0, false)), Condvar::new()));
    let tree = Slow { tree: bench.tree.clone(), gate: std::sync::Arc::clone(&gate) };
    let (upper, work) = (open_directory(&bench.path("upper")), open_directory(&bench.path("work")));
    let union = Union::open(tree, upper, work, OPTIONS).expect("opens");
    let mounted = layerfs::mount(union, &bench.path("ours"), layerfs::MountOptions::default()).expect("mounts");
    let (all_wait, made) = std::thread::scope(|scope| {
        for number in 1..=WAITING {
            let file = bench.path(&format!("ours/f{number}"));
            scope.spawn(move || std::fs::read(file).expect("reads"));
        }
        let (state, changed) = &*gate;
        let patience = std::time::Duration::from_secs(60);
        let some_are_missing = |state: &mut (usize, bool)| state.0 < WAITING;
        let waited = changed.wait_timeout_while(state.lock().expect("not poisoned"), patience, some_are_missing);
        let all_wait = !waited.expect("not poisoned").1.timed_out();
        let made = all_wait.then(|| std::fs::create_dir(bench.path("ours/made")));
        state.lock().expect("not poisoned").1 = true;
        changed.notify_all();
        (all_wait, made)
    });
    mounted.unmount().expect("unmounts");
    assert!(all_wait, "some readings were not even begun");
    assert!(matches!(made, Some(Ok(()))), "{made:?}");
}

#[test]
fn extended_attributes_are_copied_up_and_marks_hidden() {
    let bench = Bench::new("echo x > f");
    let file = bench.path("ours/f");
    rustix::fs::setxattr(&file, "user.key", b"value", rustix::fs::XattrFlags::empty()).expect("sets");
    std::fs::write(&file, b"new").expect("writes");
    let mut list = [0; 256];
    let length = rustix::fs::listxattr(&file, &mut list[..]).expect("lists");
    assert_eq!(&list[..length], b"user.key\0");
}

#[test]
fn attributes_that_look_like_marks_are_the_users() {
    let mut bench = Bench::new("echo x > f; mkdir -p e; touch e/f");
    let marked =
        "for f in f g d e; do setfattr -n trusted.overlay.opaque -v y $f; done; getfattr -d -m - f g d e; ls e";
    bench.both(&format!("touch g; mkdir d; {marked}; setfattr -x trusted.overlay.opaque g; getfattr -d -m - g"));
    bench.remount();
    bench.both("getfattr -d -m - f g d e; ls e");
}

#[test]
fn user_marks_serve_as_well() {
    let mut bench = Bench::new(LOWER);
    bench.unmount_ours();
    let options = layerfs::UpperOptions { marks: MarkNamespace::User, ..OPTIONS };
    bench.mount_ours_with(options);
    for script in SCRIPTS {
        bench.both(script);
    }
    bench.unmount_ours();
    bench.mount_ours_with(options);
    assert_eq!(listing(&bench.path("ours")), listing(&bench.path("overlay")));
}

#[test]
fn a_damaged_name_in_the_upper_hides_no_other() {
    let mut bench = Bench::new("mkdir d; touch d/x; touch f");
    bench.unmount_ours();
    for (name, redirect) in
        [("up", "/../../etc"), ("gone", "/nowhere"), ("long", "a/b/c"), ("twice1", "/d"), ("twice2", "/d")]
    {
        std::fs::create_dir(bench.path("upper").join(name)).expect("fresh");
        let (path, flags) = (bench.path("upper").join(name), rustix::fs::XattrFlags::empty());
        rustix::fs::setxattr(path, "trusted.overlay.redirect", redirect.as_bytes(), flags).expect("sets");
    }
    bench.mount_ours();
    let (listed, output) =
        shell(&bench.path("ours"), "ls -A; cat f; ls -A gone; touch new; ls up/..; rm -r gone; ls new");
    assert!(listed || output.contains("Input/output error"), "{output}");
    for name in ["f", "d", "gone", "long"] {
        assert!(output.lines().any(|line| line == name), "{name} in {output}");
    }
}

#[test]
fn a_tree_alone_is_mounted_read_only() {
    let mut bench = Bench::new("mkdir d; echo x > d/x; ln -s d/x l");
    bench.unmount_ours();
    let mount =
        layerfs::mount(Union::read_only(bench.tree.clone()), &bench.path("ours"), layerfs::MountOptions::default());
    let mount = mount.expect("mounts");
    assert_eq!(listing(&bench.path("ours")), listing(&bench.path("overlay")));
    let error = std::fs::write(bench.path("ours/d/x"), "y").expect_err("read-only");
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::ROFS.raw_os_error()));
    mount.unmount().expect("unmounts");
}

#[test]
fn processes_that_change_the_same_directories_at_once_lose_nothing() {
    let bench = Bench::new("mkdir -p d/e; for i in $(seq 40); do echo $i > d/e/f$i; ln d/e/f$i d/h$i; done; touch log");
    bench.both(
        "for p in 1 2 3 4 5 6; do (
            mkdir d/p$p; for i in $(seq 30); do
                echo $p.$i > d/p$p/$i; mv d/p$p/$i d/e/$p.$i; ln d/e/$p.$i d/$p.$i; rm d/e/$p.$i
                echo $p.$i >> log; chmod 600 d/e/f$i; echo $p >> d/h$i; mv d/p$p d/e/p$p; mv d/e/p$p d/p$p
            done
        ) & done; wait; sort log | md5sum; for i in $(seq 30); do sort d/e/f$i; done; sort -o log log
        for i in $(seq 30); do sort -o d/h$i d/h$i; done; cat d/e/f1; rm -r d/p*; ls d d/e",
    );
}

#[test]
fn whiteouts_in_their_xattr_form_hide_what_they_name() {
    let mut bench = Bench::new("mkdir d; touch d/x d/y");
    bench.unmount_ours();
    bench.unmount_overlay();
    for upper in ["upper", "overlay.upper"] {
        let directory = bench.path(upper).join("d");
        std::fs::create_dir(&directory).expect("fresh");
        std::fs::write(directory.join("x"), "").expect("writes");
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&directory, "trusted.overlay.opaque", b"x", flags).expect("sets");
        rustix::fs::setxattr(directory.join("x"), "trusted.overlay.whiteout", b"y", flags).expect("sets");
    }
    bench.mount_ours();
    bench.mount_overlay("overlay.upper", "overlay.work");
    // The kernel lists such a mark of an upper, though it cannot be opened; we do not.
    let (_, listed) = shell(&bench.path("ours"), "ls d");
    assert_eq!(listed, "y\n");
    bench.both("cat d/x; touch d/x; ls d; rm d/y; ls d; rm -r d; ls");
}

#[test]
fn writes_of_other_users_clear_set_id_bits_and_those_of_root_do_not() {
    let bench =
        Bench::new("for f in a b c d e g h; do echo $f$f$f > $f; chmod 6777 $f; done; chmod 2766 h; chmod 777 .");
    let other = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    for script in [
        "echo x >> a",
        "truncate -s 1 b",
        ": > c",
        "fallocate -l 100 d",
        "dd if=a of=e conv=notrunc status=none",
        "python3 -c 'import os; a=os.open(\"a\",0); g=os.open(\"g\",1); os.copy_file_range(a,g,3)'",
        "echo x >> h",
    ] {
        bench.both(&format!("{other} bash -c '{}'; stat -c '%n %a' *", script.replace('\'', "'\\''")));
    }
    bench.both("chmod 6777 *; echo x >> a; truncate -s 1 b; fallocate -l 100 d; stat -c '%n %a' *");
    bench.both("chown 65534 a; chown 0:7 b; chgrp 5 h; stat -c '%n %a' *");
    bench.both("setcap cap_net_raw+ep a b c d; echo x >> a; truncate -s 0 b; chown 7 c; getcap *");
}

/// `O_TMPFILE`: what programs use that publish a file in one step.
#[test]
fn a_file_made_without_a_name_can_get_one() {
    use rustix::fs::{AtFlags, CWD, Mode, OFlags};
    let mut bench = Bench::new("mkdir -m 2775 d; chgrp 99 d");
    let shown = |root: std::path::PathBuf| {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::open(root.join("d"), flags, Mode::from_raw_mode(0o640)).expect("opens"));
        file.write_all(b"content").expect("writes");
        assert_eq!(file.metadata().expect("stats").nlink(), 0);
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        rustix::fs::linkat(CWD, path, CWD, root.join("d/named"), AtFlags::SYMLINK_FOLLOW).expect("links");
        let linked = file.metadata().expect("stats");
        (linked.nlink(), linked.mode(), linked.uid(), linked.gid())
    };
    assert_eq!(shown(bench.path("ours")), shown(bench.path("overlay")));
    bench.both("cat d/named; ls d");
    bench.remount();
    bench.both("cat d/named; ls d");
}

/// Names of which the node is known are not looked at again: what happens to them must be noticed all the same.
#[test]
fn a_name_leads_to_what_it_was_last_given() {
    let bench = Bench::new("mkdir d; echo one > d/a");
    let script = "for n in 1 2 3; do
        echo $n > d/x; cat d/x; mv d/x d/y; echo other > d/x; cat d/x d/y; rm d/y; mkdir d/y; mv d/x d/y/x; cat d/y/x
        ln d/y/x d/x; rm d/y/x; rmdir d/y; cat d/x; mv d/x d/a; cat d/a; stat -c %h d/a; rm d/a; mkdir d/a; rmdir d/a
    done";
    bench.both(script);
}

/// A whiteout is a link of one file, which makes way when it has as many as it can have, and is never handed out.
#[test]
fn whiteouts_are_links_of_one_file_and_hide_what_they_name() {
    let mut bench = Bench::new("mkdir d; for n in $(seq 50); do echo $n > d/$n; done");
    bench.both("rm d/[1-4]*; ls d; rm -r d; mkdir d; ls d; echo new > d/7; cat d/7");
    bench.remount();
    bench.both("ls d; cat d/7");
}

#[test]
fn directories_may_lie_deeper_than_a_thread_can_call() {
    const DEEP: usize = 8000;
    let mut bench = Bench::new("true");
    bench.unmount_ours();
    let (upper, work) = (open_directory(&bench.path("upper")), open_directory(&bench.path("work")));
    let union = Union::open(bench.tree.clone(), upper, work, OPTIONS).expect("opens");
    let owner = Owner { uid: 0, gid: 0 };
    let make = |at, name: &[u8], making| union.create(at, name, owner, 0o755, making).expect("creates").id;
    let deepest = (0..DEEP).fold(NodeId::ROOT, |at, _| make(at, b"d", Making::Directory));
    // Their handles make way for others.
    for number in 0..2 * OPTIONS.open_files {
        make(NodeId::ROOT, format!("f{number}").as_bytes(), Making::File);
    }
    let leaf = make(deepest, b"leaf", Making::File);
    assert_eq!(union.metadata(leaf).expect("stat").links, 1);
    drop(union);
    let (upper, work) = (open_directory(&bench.path("upper")), open_directory(&bench.path("work")));
    let found = layerfs::changes(&bench.tree, upper, &work, OPTIONS.marks).expect("compares");
    assert_eq!(found.entries().len(), DEEP + 2 * OPTIONS.open_files + 1);
    // Not by the library's function, which calls itself.
    let (removed, output) = shell(&bench.path(""), "rm -rf upper");
    assert!(removed, "{output}");
}

#[test]
fn a_time_that_was_set_stays_while_others_write_and_copy() {
    const TIMES: i64 = 2000;
    let mut bench = Bench::new(&format!("mkdir d; for n in $(seq {TIMES}); do echo $n > d/f$n; done"));
    bench.unmount_ours();
    let (upper, work) = (open_directory(&bench.path("upper")), open_directory(&bench.path("work")));
    let union = Union::open(bench.tree.clone(), upper, work, OPTIONS).expect("opens");
    let find = |at, name: &str| union.lookup(at, name.as_bytes()).expect("looks up").expect("is there").id;
    let directory = find(NodeId::ROOT, "d");
    let file = union.create(NodeId::ROOT, b"f", Owner { uid: 0, gid: 0 }, 0o644, Making::File).expect("creates").id;
    let set = |node, seconds| {
        let modified = Some(SetTime::At(Time { seconds, nanoseconds: 0 }));
        let change = AttributeChange { modified, ..AttributeChange::default() };
        union.set_attributes(node, change).expect("sets");
    };
    let change_mode = |node| {
        let change = AttributeChange { mode: Some(0o600), ..AttributeChange::default() };
        union.set_attributes(node, change).expect("changes");
    };
    set(file, 77);
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let union = &union;
            scope.spawn(move || {
                for number in 0..100 {
                    union.write_back(file, (writer * 100 + number) << 16, &[1; 1 << 16]).expect("writes");
                }
            });
        }
        scope.spawn(|| (1..=TIMES).for_each(|number| change_mode(find(directory, &format!("f{number}")))));
        for seconds in 1..=TIMES {
            set(directory, seconds);
            // For a moment a copy that gets its name moves the time, which it then puts back.
            let mut seen = std::iter::repeat_with(|| union.metadata(directory).expect("stat").modified.seconds);
            assert_eq!(seen.find(|seen| *seen <= TIMES), Some(seconds));
        }
    });
    assert_eq!(union.metadata(file).expect("stat").modified, Time { seconds: 77, nanoseconds: 0 });
}
