//! A lower directory with our union and kernel overlayfs mounted over it side by side.
//!
//! Invariant: nothing outlives the [`Bench`]: mounts are ended and directories removed, whatever fails. No tests here.

use std::path::{Path, PathBuf};

use layerfs::{MarkNamespace, Mount, MountOptions, Union, UpperOptions, mount};

use crate::memory_tree::MemoryTree;

/// A lower directory with both kinds of union over it.
pub(crate) struct Bench {
    directory: tempfile::TempDir,
    pub(crate) tree: MemoryTree,
    ours: Option<Mount>,
    overlay: bool,
}

pub(crate) const OPTIONS: UpperOptions = UpperOptions {
    marks: MarkNamespace::Trusted,
    open_files: 64,
    renames_directories: true,
    durable: true,
    splits_metadata: true,
    adopts_root: true,
    has_aufs_marks: false,
    has_overrides: false,
};

pub(crate) fn open_directory(path: &Path) -> std::os::fd::OwnedFd {
    std::fs::File::open(path).expect("the directory is there").into()
}

/// Whether a script went well, and all that it said: what two mounts are compared by.
pub(crate) fn shell(directory: &Path, script: &str) -> (bool, String) {
    let ended = fixtures::shell(directory, script);
    (ended.code == Some(0), ended.stdout + &ended.stderr)
}

impl Bench {
    /// Prepares a lower directory with a shell script and mounts our union over it, and kernel overlayfs beside it.
    pub(crate) fn new(lower: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("union").tempdir().expect("a temporary directory");
        for name in ["lower", "upper", "work", "ours", "overlay.upper", "overlay.work", "overlay"] {
            std::fs::create_dir(directory.path().join(name)).expect("fresh");
        }
        let (prepared, output) = shell(&directory.path().join("lower"), &format!("set -e; {lower}"));
        assert!(prepared, "{output}");
        let tree = MemoryTree::from_directory(&directory.path().join("lower"));
        let mut bench = Self { directory, tree, ours: None, overlay: false };
        bench.mount_ours();
        bench.mount_overlay("overlay.upper", "overlay.work");
        bench
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn mount_ours(&mut self) {
        self.mount_ours_with(OPTIONS);
    }

    pub(crate) fn mount_ours_with(&mut self, options: UpperOptions) {
        let (upper, work) = (open_directory(&self.path("upper")), open_directory(&self.path("work")));
        let union = Union::open(self.tree.clone(), upper, work, options).expect("the upper opens");
        self.ours = Some(mount(union, &self.path("ours"), MountOptions::default()).expect("it mounts"));
    }

    pub(crate) fn unmount_ours(&mut self) {
        self.ours.take().expect("mounted").unmount().expect("it unmounts");
    }

    pub(crate) fn remount(&mut self) {
        self.unmount_ours();
        self.mount_ours();
    }

    pub(crate) fn mount_overlay(&mut self, upper: &str, work: &str) {
        self.mount_overlay_with(upper, work, "redirect_dir=on,index=on,xino=off");
    }

    pub(crate) fn mount_overlay_with(&mut self, upper: &str, work: &str, options: &str) {
        let options = format!("lowerdir=lower,upperdir={upper},workdir={work},{options}");
        let (mounted, output) = shell(self.directory.path(), &format!("mount -t overlay -o {options} overlay overlay"));
        assert!(mounted, "{output}");
        self.overlay = true;
    }

    pub(crate) fn unmount_overlay(&mut self) {
        let (unmounted, output) = shell(self.directory.path(), "umount overlay");
        assert!(unmounted, "{output}");
        self.overlay = false;
    }

    /// Runs a script in both mounts and compares its output and everything that is visible afterwards.
    pub(crate) fn both(&self, script: &str) {
        let ours = shell(&self.path("ours"), script);
        let overlay = shell(&self.path("overlay"), script);
        assert_eq!(ours, overlay, "ours | overlay: {script}");
        assert_eq!(listing(&self.path("ours")), listing(&self.path("overlay")), "ours | overlay after: {script}");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.ours = None;
        // What a child process of a failed test left.
        drop(layerfs::unmount(&self.path("ours")));
        if self.overlay {
            self.unmount_overlay();
        }
    }
}

/// Everything that is visible in a directory but what differs by nature (numbers, sizes of directories, now).
pub(crate) fn listing(directory: &Path) -> String {
    let script = r#"find . -mindepth 1 -printf '%P|%y|%m|%U:%G|%l|' \( -type d -printf '\n' -o -printf '%n|%s\n' \) | LC_ALL=C sort
        find . -type f -exec md5sum {} + | LC_ALL=C sort -k2"#;
    let (listed, output) = shell(directory, script);
    assert!(listed, "{output}");
    output
}
