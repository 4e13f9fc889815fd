//! What the file-system bench does inside a mount: each workload is a function of the mount's root.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, lchown};
use std::path::Path;

use anyhow::Context;

use crate::peers;

/// Files that the small-file workloads make.
const SMALL_FILES: usize = 3000;

/// Bytes of the large-file workloads.
const LARGE_BYTES: usize = 256 << 20;

/// One workload.
pub(crate) struct Workload {
    /// What the table calls it.
    pub(crate) name: &'static str,
    /// Done before the clock starts.
    pub(crate) prepare: fn(&Path) -> anyhow::Result<()>,
    /// Whether everything is forgotten after `prepare`: dentries, inodes, pages.
    pub(crate) is_cold: bool,
    /// What is measured.
    pub(crate) work: fn(&Path) -> anyhow::Result<()>,
}

/// All of them, in the order of the table.
pub(crate) const WORKLOADS: &[Workload] = &[
    Workload { name: "find, cold", prepare: nothing, is_cold: true, work: find },
    Workload { name: "find, warm", prepare: find, is_cold: false, work: find },
    Workload { name: "stat walk, cold", prepare: nothing, is_cold: true, work: stat_walk },
    Workload { name: "stat walk, warm", prepare: stat_walk, is_cold: false, work: stat_walk },
    Workload { name: "tar of the tree, cold", prepare: nothing, is_cold: true, work: read_tree },
    Workload { name: "tar of the tree, warm", prepare: read_tree, is_cold: false, work: read_tree },
    Workload { name: "ls -lR, cold", prepare: nothing, is_cold: true, work: list_long },
    Workload { name: "ls -lR, warm", prepare: list_long, is_cold: false, work: list_long },
    Workload { name: "stat of what is not there", prepare: stat_missing, is_cold: false, work: stat_missing },
    Workload { name: "exec of /bin/true, 200 times", prepare: exec, is_cold: false, work: exec },
    Workload { name: "untar of the tree", prepare: nothing, is_cold: false, work: untar },
    Workload { name: "rm -rf of an upper tree", prepare: untar, is_cold: false, work: remove_upper },
    Workload { name: "rm -rf of a lower tree", prepare: nothing, is_cold: false, work: remove_lower },
    Workload { name: "create 3,000 small files", prepare: make_directory, is_cold: false, work: create },
    Workload { name: "stat 3,000 small files", prepare: created, is_cold: false, work: stat_small },
    Workload { name: "open and read 3,000 small files", prepare: created, is_cold: false, work: read_small },
    Workload { name: "rename 3,000 small files", prepare: created, is_cold: false, work: rename },
    Workload { name: "unlink 3,000 small files", prepare: created, is_cold: false, work: unlink },
    Workload { name: "append to every file of /usr/bin", prepare: nothing, is_cold: false, work: append },
    Workload { name: "chown -R of a lower tree", prepare: nothing, is_cold: false, work: chown },
    Workload { name: "chmod -R of a lower tree", prepare: nothing, is_cold: false, work: chmod },
    Workload { name: "write 256 MB", prepare: nothing, is_cold: false, work: write_large },
    Workload { name: "write 16 MB, 1,000 bytes at once", prepare: nothing, is_cold: false, work: write_little },
    Workload { name: "random writes of 4 KiB", prepare: write_large, is_cold: false, work: random_writes },
    Workload { name: "read 256 MB, warm", prepare: written_and_read, is_cold: false, work: read_large },
    Workload { name: "read 256 MB, cold", prepare: write_large, is_cold: true, work: read_large },
    Workload { name: "random reads of 4 KiB, warm", prepare: written_and_read, is_cold: false, work: random_reads },
];

fn nothing(_: &Path) -> anyhow::Result<()> {
    Ok(())
}

/// Calls `each` with everything below a directory, children before their directory.
fn walk(directory: &Path, each: &mut dyn FnMut(&Path, &fs::DirEntry) -> anyhow::Result<()>) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            walk(&path, each)?;
        }
        each(&path, &entry)?;
    }
    Ok(())
}

fn find(root: &Path) -> anyhow::Result<()> {
    walk(root, &mut |_, _| Ok(()))
}

fn stat_walk(root: &Path) -> anyhow::Result<()> {
    walk(root, &mut |_, entry| entry.metadata().map(drop).map_err(Into::into))
}

fn read_tree(root: &Path) -> anyhow::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    walk(root, &mut |path, entry| {
        if entry.metadata()?.is_file() {
            let mut file = File::open(path)?;
            while file.read(&mut buffer)? > 0 {}
        }
        Ok(())
    })
}

fn stat_missing(root: &Path) -> anyhow::Result<()> {
    for _ in 0..50 {
        for number in 0..200 {
            _ = fs::symlink_metadata(root.join(format!("usr/bin/missing-{number}")));
        }
    }
    Ok(())
}

fn exec(root: &Path) -> anyhow::Result<()> {
    let program = root.join("bin/true");
    for _ in 0..200 {
        peers::run::<&str>(&program, &[])?;
    }
    Ok(())
}

/// Where the bench keeps the tar that [`untar`] unpacks.
pub(crate) const TAR: &str = "/var/tmp/nacre-bench.tar";

fn untar(root: &Path) -> anyhow::Result<()> {
    let to = root.join("untarred");
    fs::create_dir_all(&to)?;
    peers::run("tar", &["-xf", TAR, "-C", &to.to_string_lossy()])
}

fn remove_upper(root: &Path) -> anyhow::Result<()> {
    Ok(fs::remove_dir_all(root.join("untarred"))?)
}

fn remove_lower(root: &Path) -> anyhow::Result<()> {
    Ok(fs::remove_dir_all(root.join("usr/share"))?)
}

fn make_directory(root: &Path) -> anyhow::Result<()> {
    Ok(fs::create_dir(root.join("small"))?)
}

fn small(root: &Path, number: usize) -> std::path::PathBuf {
    root.join(format!("small/file-{number}"))
}

fn create(root: &Path) -> anyhow::Result<()> {
    for number in 0..SMALL_FILES {
        fs::write(small(root, number), [b'x'; 2048])?;
    }
    Ok(())
}

fn created(root: &Path) -> anyhow::Result<()> {
    make_directory(root)?;
    create(root)
}

fn stat_small(root: &Path) -> anyhow::Result<()> {
    for number in 0..SMALL_FILES {
        fs::symlink_metadata(small(root, number))?;
    }
    Ok(())
}

fn read_small(root: &Path) -> anyhow::Result<()> {
    for number in 0..SMALL_FILES {
        fs::read(small(root, number))?;
    }
    Ok(())
}

fn rename(root: &Path) -> anyhow::Result<()> {
    for number in 0..SMALL_FILES {
        fs::rename(small(root, number), root.join(format!("small/renamed-{number}")))?;
    }
    Ok(())
}

fn unlink(root: &Path) -> anyhow::Result<()> {
    for number in 0..SMALL_FILES {
        fs::remove_file(small(root, number))?;
    }
    Ok(())
}

fn append(root: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(root.join("usr/bin"))? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            OpenOptions::new().append(true).open(entry.path())?.write_all(b"x")?;
        }
    }
    Ok(())
}

fn chown(root: &Path) -> anyhow::Result<()> {
    walk(&root.join("usr"), &mut |path, _| Ok(lchown(path, Some(1234), Some(1234))?))
}

fn chmod(root: &Path) -> anyhow::Result<()> {
    walk(&root.join("usr"), &mut |path, entry| {
        if !entry.file_type()?.is_symlink() {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    })
}

fn list_long(root: &Path) -> anyhow::Result<()> {
    peers::run("ls", &["-lR", &root.to_string_lossy()])
}

/// As programs do that write lines.
fn write_little(root: &Path) -> anyhow::Result<()> {
    let mut file = File::create(root.join("lines"))?;
    for _ in 0..16_000 {
        file.write_all(&[b'x'; 1000])?;
    }
    Ok(())
}

fn random_writes(root: &Path) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).open(root.join("large"))?;
    let blocks = file.metadata()?.size() / 4096;
    for block in positions().take(20_000) {
        file.write_all_at(&[b'y'; 4096], block % blocks * 4096)?;
    }
    Ok(file.sync_all()?)
}

/// A fixed sequence that visits blocks all over a file (Knuth's multiplier).
fn positions() -> impl Iterator<Item = u64> {
    let next =
        |position: &u64| Some(position.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407));
    std::iter::successors(next(&1), next).map(|position| position >> 33)
}

fn write_large(root: &Path) -> anyhow::Result<()> {
    let block = vec![b'x'; 1 << 20];
    let mut file = File::create(root.join("large"))?;
    for _ in 0..LARGE_BYTES / block.len() {
        file.write_all(&block)?;
    }
    Ok(file.sync_all()?)
}

/// Gives back the space of the large file, and frees no inode.
pub(crate) fn forget_large(root: &Path) -> anyhow::Result<()> {
    match OpenOptions::new().write(true).open(root.join("large")) {
        Ok(file) => Ok(file.set_len(0)?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn written_and_read(root: &Path) -> anyhow::Result<()> {
    write_large(root)?;
    read_large(root)
}

fn read_large(root: &Path) -> anyhow::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut file = File::open(root.join("large"))?;
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}

fn random_reads(root: &Path) -> anyhow::Result<()> {
    let mut file = File::open(root.join("large"))?;
    let blocks = file.metadata()?.size() / 4096;
    let mut buffer = [0; 4096];
    for block in positions().take(20_000) {
        file.seek(SeekFrom::Start(block % blocks * 4096))?;
        file.read_exact(&mut buffer)?;
    }
    Ok(())
}
