//! The two planes beside each other: the same operations, the same sight, the same changes.
//!
//! Invariant: what is compared is what a layer would be made of: every field of every change, and all content.

use std::path::PathBuf;

use layerfs::{
    Change, ChangeContent, ChangeKind, MarkNamespace, Mount, MountOptions, Plane, PlaneFault, Time, Tree, Union,
    changes, mount,
};
use proptest::prelude::*;
use rustix::{fs::XattrFlags, io::Errno};

use crate::{
    bench::{OPTIONS, listing, open_directory, shell},
    memory_tree::MemoryTree,
    random::{self, Operation},
};

/// A lower directory as a tree with an upper on each plane.
struct Planes {
    // Before the directory that they are in: fields are dropped in this order.
    mounts: Vec<Mount>,
    directory: tempfile::TempDir,
    tree: MemoryTree,
}

const BOTH: [(&str, Plane); 2] = [("fuse", Plane::Fuse), ("overlay", Plane::Overlay)];

impl Planes {
    fn new(lower: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("planes").tempdir().expect("a temporary directory");
        std::fs::create_dir(directory.path().join("lower")).expect("fresh");
        for (name, _) in BOTH {
            for part in ["", "upper", "work", "merged"] {
                std::fs::create_dir(directory.path().join(name).join(part)).expect("fresh");
            }
        }
        let (made, output) = shell(&directory.path().join("lower"), &format!("set -e; {lower}"));
        assert!(made, "{output}");
        let tree = MemoryTree::from_directory(&directory.path().join("lower"));
        let mut planes = Self { directory, tree, mounts: Vec::new() };
        planes.mount();
        planes
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn open(&self, name: &str) -> Union<MemoryTree> {
        let directory = |part: &str| open_directory(&self.path(name).join(part));
        Union::open(self.tree.clone(), directory("upper"), directory("work"), OPTIONS).expect("the upper opens")
    }

    fn mount_on(&self, name: &str, plane: Plane) -> Result<Mount, layerfs::MountError> {
        mount(self.open(name), &self.path(name).join("merged"), MountOptions { plane, ..MountOptions::default() })
    }

    fn mount(&mut self) {
        for (name, plane) in BOTH {
            let mounted = self.mount_on(name, plane).unwrap_or_else(|error| panic!("{name}: {error:?}"));
            assert_eq!(mounted.plane(), plane);
            self.mounts.push(mounted);
        }
    }

    /// Mounts again, where the kernel can.
    fn remount(&mut self) {
        self.unmount();
        for (name, plane) in [("fuse", Plane::Fuse), ("overlay", Plane::Auto)] {
            self.mounts.push(self.mount_on(name, plane).unwrap_or_else(|error| panic!("{name}: {error:?}")));
        }
    }

    /// Mounts the overlay alone, as for a step of a build; yields its directory.
    fn remount_forgoing(&mut self) -> PathBuf {
        self.unmount();
        let options = MountOptions { plane: Plane::Overlay, forgoes_xattrs: true, ..MountOptions::default() };
        let merged = self.path("overlay/merged");
        self.mounts.push(mount(self.open("overlay"), &merged, options).expect("mounts"));
        merged
    }

    fn unmount(&mut self) {
        for mount in self.mounts.drain(..) {
            mount.unmount().expect("unmounts");
        }
    }

    fn both(&self, script: &str) {
        let [fuse, overlay] = BOTH.map(|(name, _)| shell(&self.path(name).join("merged"), script));
        assert_eq!(fuse, overlay, "fuse | overlay: {script}");
        let [fuse, overlay] = BOTH.map(|(name, _)| listing(&self.path(name).join("merged")));
        assert_eq!(fuse, overlay, "fuse | overlay after: {script}");
    }

    /// The changes of an upper that is not mounted, with their content, times to come left out.
    fn changes(&self, name: &str) -> Vec<(Change, Vec<u8>)> {
        let directory = |part: &str| open_directory(&self.path(name).join(part));
        let found = changes(&self.tree, directory("upper"), &directory("work"), MarkNamespace::Trusted);
        let found = found.unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let described = found.entries().iter().map(|change| {
            let mut content = Vec::new();
            let mut change = change.clone();
            match found.open(&change).expect("opens") {
                Some(mut file) => drop(std::io::Read::read_to_end(&mut file, &mut content).expect("reads")),
                None => {
                    if let ChangeKind::File { content: ChangeContent::Tree(inode), size_bytes } = change.kind {
                        content.resize(usize::try_from(size_bytes).expect("small"), 0);
                        assert_eq!(self.tree.read_at(inode, 0, &mut content).expect("reads"), content.len());
                    }
                }
            }
            if let ChangeKind::File { content, .. } = &mut change.kind {
                // Where it is differs: only the kernel's overlayfs copies up what is only moved.
                *content = ChangeContent::Upper;
            }
            // What happened now happened a moment later on the other plane.
            if change.modified.seconds > recently() {
                change.modified = Time::default();
            }
            (change, content)
        });
        described.collect()
    }

    fn same_changes(&mut self) -> Vec<(Change, Vec<u8>)> {
        self.unmount();
        let [fuse, overlay] = BOTH.map(|(name, _)| self.changes(name));
        assert_eq!(fuse, overlay, "fuse | overlay");
        fuse
    }
}

/// A day ago: later than every time that a test sets on purpose, nearly always.
fn recently() -> i64 {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("after 1970");
    now.as_secs().cast_signed() - 86_400
}

const LOWER: &str = "echo a > a; echo bbb > b; mkdir -p d/e g; echo x > d/x; echo y > d/y; echo z > d/e/z; ln -s d l
    echo hard > h1; ln h1 d/h2; ln h1 g/h3; mkfifo p; mknod n c 5 1; setfattr -n user.k -v v d/x; head -c 300000 /dev/zero > big
    find . -exec touch -h -d @1000000 {} +; touch -d @1000000 .";

#[test]
fn both_planes_leave_the_same_changes() {
    for script in [
        "true",
        "echo more >> a; chmod 600 b; chown 3:4 d/x; mkdir n2; echo n > n2/f; ln a a2; rm p; touch -d @5 d/y",
        "mv d m; echo more >> m/x; rm m/e/z; mkdir d; mv m/e d/e",
        "echo more >> d/h2; cat h1 g/h3; rm h1; stat -c %h g/h3",
        "chmod 600 h1; mv g/h3 h3; mv d q; cat q/h2 h3",
        "rm -r d; mkdir d; echo n > d/x; rmdir g/x 2>&1; rm -r g; ln -s a g",
        "chmod 600 big; mv big big2; truncate -s 100 big2; mkdir o; mv b o/; mv o o2; rm n l; mknod n b 7 8; mkfifo pp",
        "setfattr -n user.k -v w d/x; setfattr -x user.k d/x; setfattr -n trusted.overlay.x -v y a; setfattr -n trusted.overlay.overlay.x -v z a; getfattr -d -m - a",
        "mv d d1; mv d1 d2; mv d2 d; mv g/h3 g/h4; mv g g5; chmod 700 g5; touch -d @77 g5",
    ] {
        let mut planes = Planes::new(LOWER);
        planes.both(script);
        planes.same_changes();
        // An upper of each plane is mounted again, and then on the other one.
        planes.remount();
        planes.both("true");
        let before = planes.same_changes();
        let mounted = planes.mount_on("overlay", Plane::Fuse).expect("what the kernel wrote is taken over");
        let seen = listing(&planes.path("overlay/merged"));
        mounted.unmount().expect("unmounts");
        planes.mounts.push(planes.mount_on("fuse", Plane::Fuse).expect("mounts"));
        assert_eq!(listing(&planes.path("fuse/merged")), seen, "{script}");
        assert_eq!(planes.same_changes(), before, "{script}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, failure_persistence: None, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_operations_leaves_the_same_changes(operations in prop::collection::vec(random::operation(), 1..40)) {
        let mut planes = Planes::new(random::LOWER);
        for (number, operation) in operations.iter().enumerate() {
            match operation {
                Operation::Remount => planes.remount(),
                // `EXDEV` from a file of the tree on the overlay plane, where it lies on another file system.
                Operation::CopyRange(..) => continue,
                _ => {}
            }
            let [fuse, overlay] = BOTH.map(|(name, _)| {
                random::apply(&planes.path(name).join("merged"), operation).map_err(|error| error.raw_os_error())
            });
            prop_assert_eq!(fuse, overlay, "{}: {:?}", number, operation);
        }
        let [fuse, overlay] = BOTH.map(|(name, _)| listing(&planes.path(name).join("merged")));
        prop_assert_eq!(&fuse, &overlay);
        planes.unmount();
        let [left, right] = BOTH.map(|(name, _)| planes.changes(name));
        prop_assert_eq!(&left, &right);
        let mounted = planes.mount_on("overlay", Plane::Fuse).expect("what the kernel wrote is taken over");
        let seen = listing(&planes.path("overlay/merged"));
        mounted.unmount().expect("unmounts");
        prop_assert_eq!(overlay, seen, "taken over");
        prop_assert_eq!(right, planes.changes("overlay"), "taken over");
    }
}

#[test]
fn numbers_and_device_are_the_same_over_copy_up() {
    let planes = Planes::new(LOWER);
    let merged = planes.path("overlay/merged");
    let numbers = || {
        let (listed, output) = shell(&merged, "find . ! -name n2 -printf '%D %P %i\\n' | sort");
        assert!(listed, "{output}");
        output
    };
    let before = numbers();
    let device = |line: &str| line.split_once(' ').map(|(device, _)| device.to_owned());
    assert!(before.lines().all(|line| device(line) == device(&before)), "{before}");
    assert!(
        shell(&merged, "echo x >> a; chmod 600 d/h2; mv d d2; mv d2 d; echo y >> h1; mv l n2; mv n2 l; touch n2").0
    );
    assert_eq!(numbers(), before);
}

#[test]
fn hard_links_of_an_earlier_overlay_are_for_the_fuse_plane() {
    let mut planes = Planes::new(LOWER);
    planes.both("echo more >> h1; echo b >> b");
    planes.unmount();
    let refused = planes.mount_on("overlay", Plane::Overlay).expect_err("the kernel would not find them");
    assert!(matches!(refused, layerfs::MountError::Plane { source: PlaneFault::HardLinks, .. }), "{refused:?}");
    planes.remount();
    planes
        .both("stat -c '%h %s' h1 d/h2 g/h3; rm d/h2; echo more >> g/h3; cat h1; stat -c %h h1; ln h1 x; stat -c %h x");
    planes.same_changes();
}

#[test]
fn what_the_fuse_plane_wrote_is_not_given_to_the_kernel() {
    let mut planes = Planes::new(LOWER);
    planes.both("chmod 600 big");
    planes.unmount();
    let refused = planes.mount_on("fuse", Plane::Overlay).expect_err("it would show something else");
    assert!(matches!(refused, layerfs::MountError::Plane { source: PlaneFault::WrittenByFuse, .. }), "{refused:?}");
    let taken = planes.mount_on("fuse", Plane::Auto).expect("mounts");
    assert_eq!(taken.plane(), Plane::Fuse);
    drop(taken);
    assert_eq!(planes.mount_on("overlay", Plane::Auto).expect("mounts").plane(), Plane::Overlay);
}

#[test]
fn a_mount_that_is_in_use_is_detached_and_nothing_stays() {
    let mut planes = Planes::new(LOWER);
    let held = std::fs::File::open(planes.path("overlay/merged/big")).expect("opens");
    planes.unmount();
    assert_eq!(std::io::copy(&mut &held, &mut std::io::sink()).expect("it is still served"), 300_000);
    drop(held);
    let table = std::fs::read_to_string("/proc/self/mounts").expect("readable");
    assert!(!table.contains(planes.directory.path().to_str().expect("text")), "{table}");
}

#[test]
fn a_tree_alone_has_no_overlay() {
    let mut planes = Planes::new("echo a > a");
    planes.unmount();
    let options = |plane| MountOptions { plane, ..MountOptions::default() };
    let alone = || Union::read_only(planes.tree.clone());
    let at = planes.path("fuse/merged");
    let refused = mount(alone(), &at, options(Plane::Overlay)).expect_err("there is nothing to lay over it");
    assert!(matches!(refused, layerfs::MountError::Plane { source: PlaneFault::NoUpper, .. }), "{refused:?}");
    assert_eq!(mount(alone(), &at, options(Plane::Auto)).expect("mounts").plane(), Plane::Fuse);
}

#[test]
fn a_directory_that_the_kernel_renamed_keeps_its_content_when_it_is_renamed_again() {
    let mut planes = Planes::new("mkdir -p d/e d/k p/q; echo x > d/x; echo y > d/e/y; echo k > d/k/k; echo q > p/q/q");
    // Within one directory, for which the kernel writes a redirect without a slash.
    planes.both("mv d m; mv m/k m/l; mv p/q p/r");
    planes.unmount();
    for name in ["fuse", "overlay"] {
        planes.mounts.push(planes.mount_on(name, Plane::Fuse).expect("mounts"));
    }
    planes.both("mv m/e z; mv m n; mkdir o; mv n o/n; mv o/n/l .; mv p p2; mv p2/r r; find . | sort");
    let before = planes.same_changes();
    for name in ["fuse", "overlay"] {
        planes.mounts.push(planes.mount_on(name, Plane::Fuse).expect("mounts"));
    }
    planes.both("cat z/y o/n/x l/k r/q");
    assert_eq!(planes.same_changes(), before);
}

#[test]
fn files_below_an_overlay_that_forgoes_attributes_know_none_until_they_are_changed() {
    let mut planes = Planes::new("echo a > a; echo b > b; mkdir d");
    let merged = planes.remount_forgoing();
    let names = |file: &str| rustix::fs::listxattr(merged.join(file), &mut [0_u8; 64][..]);
    let value = |file: &str| rustix::fs::getxattr(merged.join(file), "user.x", &mut [0_u8; 8][..]);
    let set = |file: &str| rustix::fs::setxattr(merged.join(file), "user.x", b"new", XattrFlags::empty());
    for file in ["a", "d"] {
        assert_eq!((names(file), value(file)), (Err(Errno::OPNOTSUPP), Err(Errno::OPNOTSUPP)), "{file}");
        assert_eq!(rustix::fs::removexattr(merged.join(file), "user.x"), Err(Errno::OPNOTSUPP), "{file}");
        set(file).expect("an attribute can be set");
        assert_eq!((names(file), value(file)), (Ok("user.x".len() + 1), Ok(3)), "{file}");
    }
    let (works, output) = shell(&merged, "chmod 600 b; setfacl -m u:4242:r b; getfacl -pc b; mv d e; cp -a a c; ls e");
    assert!(works && output.contains("user:4242:r--"), "{output}");
    planes.unmount();
    let changed: Vec<_> = planes.changes("overlay").into_iter().map(|(change, _)| change.path).collect();
    let changed: Vec<_> = changed.iter().map(|path| String::from_utf8_lossy(path).into_owned()).collect();
    assert_eq!(changed, ["a", "b", "c", "d", "e"]);
}

#[test]
fn an_overlay_that_forgoes_attributes_shows_those_that_there_are() {
    let mut planes = Planes::new("echo a > a; echo b > b; setfattr -n user.x -v old a");
    let merged = planes.remount_forgoing();
    let (works, output) = shell(&merged, "getfattr --only-values -n user.x a; getfattr -d b; echo end");
    assert!(works, "{output}");
    assert_eq!(output, "oldend\n");
}
