//! What a stack of directories shows, against the kernel's overlayfs over the same directories where that has the
//! marks, and by name where it has not. Needs root.

use std::{fmt::Write as _, path::Path, process::Command};

use super::*;

/// Layers made by a script each, topmost first.
struct Layers {
    directory: tempfile::TempDir,
    count: usize,
}

fn shell(directory: &Path, script: &str) -> String {
    let output = Command::new("bash").args(["-ec", script]).current_dir(directory).output().expect("bash runs");
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Sets an extended attribute in a script: `xattr NAME VALUE FILE`.
const XATTR: &str = r#"xattr() { python3 -c 'import os,sys; os.setxattr(sys.argv[3],sys.argv[1],sys.argv[2].encode(),follow_symlinks=False)' "$@"; }; "#;

impl Layers {
    fn new(scripts: &[&str]) -> Self {
        let directory = tempfile::Builder::new().prefix("layers").tempdir().expect("a temporary directory");
        for (number, script) in scripts.iter().enumerate() {
            let layer = directory.path().join(number.to_string());
            std::fs::create_dir(&layer).expect("fresh");
            shell(&layer, &format!("{XATTR}{script}"));
        }
        Self { directory, count: scripts.len() }
    }

    fn stack(&self) -> DirectoryStack {
        let open = |number: usize| {
            let path = self.directory.path().join(number.to_string());
            OwnedFd::from(std::fs::File::open(path).expect("the layer is there"))
        };
        DirectoryStack::new((0..self.count).map(open).collect(), 16).expect("a stack")
    }

    fn listing(&self) -> String {
        listing(&self.stack())
    }

    /// What the kernel shows. It needs two layers, so an empty one comes last.
    fn kernel_listing(&self) -> String {
        let numbers: Vec<String> = (0..self.count).map(|number| number.to_string()).collect();
        let options = format!("lowerdir={}:none,redirect_dir=follow", numbers.join(":"));
        shell(
            self.directory.path(),
            &format!(
                r"mkdir -p none mnt
                unshare -m bash -ec 'mount -t overlay overlay mnt -o {options}
                    cd mnt; find . -mindepth 1 -printf \
                    '\''%P|%y|%m|%U:%G|%l|'\'' -a \( -type d -printf '\''\n'\'' -o -printf '\''%n|%s\n'\'' \) | LC_ALL=C sort'"
            ),
        )
    }

    fn agrees_with_the_kernel(&self) {
        assert_eq!(self.listing(), self.kernel_listing(), "ours | the kernel's");
    }
}

fn letter(kind: FileKind) -> char {
    match kind {
        FileKind::File => 'f',
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::CharacterDevice => 'c',
        FileKind::BlockDevice => 'b',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
    }
}

/// Every path with its metadata, as `find` prints it above.
fn listing(stack: &DirectoryStack) -> String {
    let mut lines = Vec::new();
    let mut pending = vec![(String::new(), TreeInode::ROOT)];
    while let Some((path, directory)) = pending.pop() {
        for entry in stack.entries(directory, 0, usize::MAX).expect("a directory") {
            let name = String::from_utf8(entry.name.clone()).expect("text");
            let path = if path.is_empty() { name } else { format!("{path}/{name}") };
            assert_eq!(stack.lookup(directory, &entry.name).expect("listed"), Some(entry.inode));
            let attributes = stack.attributes(entry.inode).expect("listed");
            assert_eq!(attributes.kind, entry.kind);
            let target = if entry.kind == FileKind::Symlink {
                String::from_utf8(stack.read_link(entry.inode).expect("a link")).expect("text")
            } else {
                String::new()
            };
            let Attributes { mode, uid, gid, links, size_bytes, .. } = attributes;
            let mut line = format!("{path}|{}|{mode:o}|{uid}:{gid}|{target}|", letter(entry.kind));
            if entry.kind == FileKind::Directory {
                pending.push((path, entry.inode));
            } else {
                write!(line, "{links}|{size_bytes}").expect("to a string");
            }
            lines.push(line + "\n");
        }
    }
    lines.sort();
    lines.concat()
}

fn names(stack: &DirectoryStack, path: &str) -> Vec<String> {
    let directory = at(stack, path);
    let entries = stack.entries(directory, 0, usize::MAX).expect("a directory");
    entries.into_iter().map(|entry| String::from_utf8(entry.name).expect("text")).collect()
}

fn at(stack: &DirectoryStack, path: &str) -> TreeInode {
    path.split('/').filter(|name| !name.is_empty()).fold(TreeInode::ROOT, |directory, name| {
        stack.lookup(directory, name.as_bytes()).expect("a directory").unwrap_or_else(|| panic!("{name} of {path}"))
    })
}

fn content(stack: &DirectoryStack, path: &str) -> String {
    let mut buffer = [0; 256];
    let read = stack.read_at(at(stack, path), 0, &mut buffer).expect("a file");
    String::from_utf8(buffer[..read].to_vec()).expect("text")
}

#[test]
fn layers_merge_as_the_kernel_merges_them() {
    let layers = Layers::new(&[
        "mkdir -p d/deep e; echo top > d/both; ln -s /etc/passwd d/link; mknod gone c 0 0; chown 3:4 d; chmod 2750 d
         echo f > was-directory; mkdir was-file; echo in > was-file/in",
        "mkdir -p d/deep/er f; echo middle > d/both; echo m > d/middle; echo x > gone; mkfifo f/p; ln d/middle d/hard
         mknod d/deep/er c 0 0 2>/dev/null || true; touch was-file; mkdir was-directory; touch was-directory/hidden",
        "mkdir -p d/deep/er/est f g; echo low > d/low; touch d/deep/er/x; mkdir gone; touch gone/child f/q
         mknod g/dev c 1 3; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"g/s\")'; chmod 4711 d/low",
    ]);
    layers.agrees_with_the_kernel();
    let stack = layers.stack();
    assert_eq!(content(&stack, "d/both"), "top\n");
    assert_eq!(content(&stack, "was-file/in"), "in\n");
    assert_eq!(at(&stack, "d/middle"), at(&stack, "d/hard"), "names of one file are one inode");
}

#[test]
fn opaque_directories_hide_what_is_below() {
    let kernel = Layers::new(&[
        "mkdir -p d e; touch d/top e/top; xattr trusted.overlay.opaque y d",
        "mkdir -p d/sub e; touch d/below e/below",
    ]);
    kernel.agrees_with_the_kernel();
    for mark in [
        "xattr user.overlay.opaque y d",
        "xattr user.fuseoverlayfs.opaque y d",
        "touch d/.wh..wh..opq",
        // An AUFS whiteout beside a directory of that name is for the layers below.
        "touch .wh.d",
    ] {
        let layers = Layers::new(&[&format!("mkdir d; touch d/top; {mark}"), "mkdir d; touch d/below"]);
        assert_eq!(names(&layers.stack(), "d"), ["top"], "{mark}");
        assert_eq!(names(&layers.stack(), ""), ["d"], "{mark}");
    }
}

#[test]
fn whiteouts_of_every_kind_hide_their_name_and_are_not_shown() {
    for mark in [
        "mknod d/x c 0 0",
        "touch d/.wh.x",
        "mkdir d/.wh.x",
        "touch d/x; xattr trusted.overlay.whiteout y d/x; xattr trusted.overlay.opaque x d",
        "touch d/x; xattr user.overlay.whiteout y d/x; xattr user.overlay.opaque x d",
    ] {
        let layers =
            Layers::new(&[&format!("mkdir d; {mark}; touch d/.wh..wh.plnk d/.wh."), "mkdir -p d/x; touch d/y d/x/z"]);
        let stack = layers.stack();
        assert_eq!(names(&stack, "d"), ["y"], "{mark}");
        assert_eq!(stack.lookup(at(&stack, "d"), b"x").expect("a directory"), None, "{mark}");
    }
}

#[test]
fn renamed_directories_are_followed_as_the_kernel_follows_them() {
    let layers = Layers::new(&[
        "mkdir -p a/empty/x; mknod a/old c 0 0; xattr trusted.overlay.redirect /a/old a/empty/x; touch a/empty/x/new
         mkdir b; xattr trusted.overlay.redirect c b; mknod c c 0 0",
        "mkdir -p a/old c; touch a/old/middle c/one; xattr trusted.overlay.redirect /z/deep a/old; mkdir c/two",
        "mkdir -p a/old z/deep/er c/two; touch a/old/hidden z/deep/low z/deep/er/lowest c/three c/two/four",
    ]);
    layers.agrees_with_the_kernel();
    assert_eq!(names(&layers.stack(), "a/empty/x"), ["er", "low", "middle", "new"]);
    assert_eq!(names(&layers.stack(), "b"), ["one", "three", "two"]);
}

#[test]
fn a_redirect_through_a_renamed_directory_is_followed() {
    let layers = Layers::new(&[
        "mkdir d; xattr trusted.overlay.redirect /a/c d; mkdir a; mknod a/c c 0 0",
        "mkdir a; xattr trusted.overlay.redirect /b a; mknod b c 0 0",
        "mkdir -p b/c; touch b/c/found b/beside",
    ]);
    layers.agrees_with_the_kernel();
    assert_eq!(names(&layers.stack(), "d"), ["found"]);
}

#[test]
fn a_hostile_redirect_is_an_error_of_its_directory_alone() {
    for path in ["..", "/../secret", "a/b", "/", "/a//b"] {
        let layers = Layers::new(&[
            &format!("mkdir d; xattr user.overlay.redirect '{path}' d; touch fine"),
            "mkdir d a; ln -s / a/b; touch secret",
        ]);
        let stack = layers.stack();
        let error = stack.entries(at(&stack, "d"), 0, 10).expect_err(path);
        assert_eq!(Errno::from_io_error(&error), Some(Errno::IO), "{path}");
        assert_eq!(names(&stack, ""), ["a", "d", "fine", "secret"]);
    }
    // Links are not followed, and the root cannot lead to itself.
    let layers = Layers::new(&[
        "mkdir d; touch d/own; xattr user.overlay.redirect /link/etc d; xattr user.overlay.redirect d .",
        "ln -s / link",
    ]);
    assert_eq!(names(&layers.stack(), "d"), ["own"]);
}

#[test]
fn marks_of_unions_are_not_shown_among_extended_attributes() {
    let layers = Layers::new(&[
        "mkdir d; for m in trusted.overlay.origin user.overlay.x user.fuseoverlayfs.y user.plain security.foo trusted.z
         do xattr $m value d; done; mkfifo p; xattr trusted.of-pipe v p; ln -s x l; xattr trusted.of-link v l; touch f",
    ]);
    let stack = layers.stack();
    let xattr_names = |path| -> Vec<String> {
        let xattrs = stack.xattrs(at(&stack, path)).expect("there");
        xattrs.into_iter().map(|(name, _)| String::from_utf8(name).expect("text")).collect()
    };
    assert_eq!(xattr_names("d"), ["security.foo", "trusted.z", "user.plain"]);
    assert_eq!(xattr_names("p"), ["trusted.of-pipe"]);
    assert_eq!(xattr_names("l"), ["trusted.of-link"]);
    assert_eq!(xattr_names("f"), [""; 0]);
    let value = |path, name: &[u8]| stack.xattr(at(&stack, path), name).expect("there");
    assert_eq!(value("d", b"user.plain"), Some(b"value".to_vec()));
    assert_eq!(value("d", b"user.overlay.x"), None);
}

#[test]
fn holes_are_told_from_data() {
    let layers = Layers::new(&["truncate -s 10M f; printf x | dd of=f bs=1 seek=4194304 conv=notrunc status=none"]);
    let stack = layers.stack();
    let inode = at(&stack, "f");
    let extents = stack.data_extents(inode).expect("a file");
    assert_eq!(extents.len(), 1, "{extents:?}");
    assert!(extents[0].0 <= 4 << 20 && extents[0].1 <= 64 << 10, "{extents:?}");
    assert!(stack.attributes(inode).expect("there").data_bytes <= 64 << 10);
}

#[test]
fn numbers_are_the_same_in_every_mount_of_the_same_layers() {
    let layers = Layers::new(&["mkdir d; touch d/a", "mkdir -p d/e; touch d/b d/e/c"]);
    let (first, second) = (layers.stack(), layers.stack());
    let deep = at(&first, "d/e/c");
    for path in ["d/b", "d", "d/e/c", "d/a"] {
        assert_eq!(at(&first, path), at(&second, path), "{path}");
        assert!(at(&first, path) <= first.last_inode());
    }
    let unread = layers.stack().attributes(deep).expect_err("nothing was read yet");
    assert_eq!(Errno::from_io_error(&unread), Some(Errno::STALE));
}

#[test]
fn numbers_stay_when_a_layer_is_put_on_top() {
    let layers = Layers::new(&["touch new", "mkdir d; touch d/a", "mkdir d; touch d/b"]);
    let below = (1..3).map(|number| {
        let path = layers.directory.path().join(number.to_string());
        OwnedFd::from(std::fs::File::open(path).expect("the layer is there"))
    });
    let (below, all) = (DirectoryStack::new(below.collect(), 16).expect("a stack"), layers.stack());
    for path in ["d", "d/a", "d/b"] {
        assert_eq!(at(&below, path), at(&all, path), "{path}");
    }
}

#[test]
fn a_file_that_was_replaced_underneath_is_stale_and_not_another() {
    let layers = Layers::new(&["echo old > f; mkdir d; echo x > d/x"]);
    let stack = layers.stack();
    let (file, directory) = (at(&stack, "f"), at(&stack, "d"));
    shell(layers.directory.path(), "echo new > 0/g; mv 0/g 0/f; mv 0/d 0/e; ln -s / 0/d");
    let stale = stack.read_at(file, 0, &mut [0; 8]).expect_err("another file");
    assert_eq!(Errno::from_io_error(&stale), Some(Errno::STALE));
    assert!(stack.entries(directory, 0, 10).is_err(), "a link is not followed");
}

#[test]
fn a_file_without_its_content_is_an_error_rather_than_zeros() {
    let layers = Layers::new(&["truncate -s 4 f; xattr trusted.overlay.metacopy '' f", "echo abc > f"]);
    let stack = layers.stack();
    let error = stack.read_at(at(&stack, "f"), 0, &mut [0; 4]).expect_err("metacopy");
    assert_eq!(Errno::from_io_error(&error), Some(Errno::IO));
}

#[test]
fn deep_directories_and_few_descriptors_go_together() {
    let layers = Layers::new(&[
        "p=.; for i in $(seq 300); do p=$p/d; done; mkdir -p $p; touch $p/end; for i in $(seq 100); do mkdir w$i; touch w$i/f; done",
    ]);
    let stack = layers.stack();
    let path = "d/".repeat(300) + "end";
    assert_eq!(content(&stack, &path), "");
    for number in 1..=100 {
        assert_eq!(names(&stack, &format!("w{number}")), ["f"]);
    }
    assert_eq!(content(&stack, &path), "");
}

#[test]
fn the_wrong_kind_is_the_errno_that_says_so() {
    let layers = Layers::new(&["mkdir d; touch f; ln -s x l"]);
    let stack = layers.stack();
    let (directory, file, link) = (at(&stack, "d"), at(&stack, "f"), at(&stack, "l"));
    let errno = |error: io::Error| Errno::from_io_error(&error).expect("an errno");
    assert_eq!(errno(stack.lookup(file, b"x").expect_err("a file")), Errno::NOTDIR);
    assert_eq!(errno(stack.read_at(directory, 0, &mut [0]).expect_err("a directory")), Errno::ISDIR);
    assert_eq!(errno(stack.read_at(link, 0, &mut [0]).expect_err("a link")), Errno::INVAL);
    assert_eq!(errno(stack.read_link(file).expect_err("a file")), Errno::INVAL);
    assert_eq!(errno(stack.attributes(TreeInode(99)).expect_err("nothing")), Errno::STALE);
    assert!(DirectoryStack::new(Vec::new(), 1).is_err());
}
