//! Random sequences of operations on our union and on kernel overlayfs, over the same layers.
//!
//! Invariant: every call gives the same result or errno on both, and everything visible is equal at the end.

use std::{
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::Path,
};

use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, FallocateFlags, RenameFlags};

use crate::bench::{Bench, listing};

/// Names are few, so that operations meet; some are in the lower layer, some not.
const PATHS: &[&str] =
    &["a", "b", "d", "d/x", "d/y", "d/e", "d/e/z", "g", "g/x", "g/e", "new", "d/new", "h1", "d/h2", "l"];

pub(crate) const LOWER: &str = "echo a > a; echo bbb > b; mkdir -p d/e g; echo x > d/x; echo y > d/y; echo z > d/e/z;
    echo hard > h1; ln h1 d/h2; ln -s d l";

#[derive(Debug, Clone)]
pub(crate) enum Operation {
    Write(usize, u64, usize),
    Read(usize),
    Truncate(usize, u64),
    Punch(usize),
    Create(usize),
    CreateNew(usize),
    MakeDirectory(usize),
    Remove(usize),
    RemoveDirectory(usize),
    RemoveAll(usize),
    Rename(usize, usize, u8),
    Link(usize, usize),
    Symlink(usize),
    Mode(usize, u32),
    Owner(usize, u32),
    Time(usize, i64),
    SetXattr(usize),
    RemoveXattr(usize),
    CopyRange(usize, usize),
    List(usize),
    Links(usize),
    Remount,
}

fn path() -> impl Strategy<Value = usize> {
    0..PATHS.len()
}

pub(crate) fn operation() -> impl Strategy<Value = Operation> {
    use Operation::*;
    prop_oneof![
        3 => (path(), 0..9000_u64, 1..3000_usize).prop_map(|(path, at, length)| Write(path, at, length)),
        1 => path().prop_map(Read),
        1 => (path(), 0..6000_u64).prop_map(|(path, size)| Truncate(path, size)),
        1 => path().prop_map(Punch),
        2 => path().prop_map(Create),
        1 => path().prop_map(CreateNew),
        3 => path().prop_map(MakeDirectory),
        3 => path().prop_map(Remove),
        2 => path().prop_map(RemoveDirectory),
        1 => path().prop_map(RemoveAll),
        8 => (path(), path(), 0..5_u8).prop_map(|(from, to, flags)| Rename(from, to, flags)),
        3 => (path(), path()).prop_map(|(from, to)| Link(from, to)),
        1 => path().prop_map(Symlink),
        1 => (path(), 0..0o10000_u32).prop_map(|(path, mode)| Mode(path, mode)),
        1 => (path(), 0..5_u32).prop_map(|(path, owner)| Owner(path, owner)),
        1 => (path(), 0..2_000_000_000_i64).prop_map(|(path, time)| Time(path, time)),
        1 => path().prop_map(SetXattr),
        1 => path().prop_map(RemoveXattr),
        1 => (path(), path()).prop_map(|(from, to)| CopyRange(from, to)),
        1 => path().prop_map(List),
        1 => path().prop_map(Links),
        1 => Just(Remount),
    ]
}

/// Does one operation below a mount; what it returns must be the same on both.
pub(crate) fn apply(root: &Path, operation: &Operation) -> std::io::Result<String> {
    use Operation::*;
    let at = |path: &usize| root.join(PATHS[*path]);
    let writable = |path: &usize| std::fs::OpenOptions::new().write(true).open(at(path));
    let done = |()| String::new();
    match operation {
        Write(path, offset, length) => writable(path)?.write_all_at(&vec![b'w'; *length], *offset).map(done),
        Read(path) => std::fs::read(at(path)).map(|content| format!("{content:?}")),
        Truncate(path, size) => writable(path)?.set_len(*size).map(done),
        Punch(path) => {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            Ok(rustix::fs::fallocate(writable(path)?, flags, 1, 4096).map(done)?)
        }
        Create(path) => std::fs::write(at(path), "created").map(done),
        CreateNew(path) => {
            std::fs::OpenOptions::new().write(true).create_new(true).open(at(path)).map(|_| String::new())
        }
        MakeDirectory(path) => std::fs::create_dir(at(path)).map(done),
        Remove(path) => std::fs::remove_file(at(path)).map(done),
        RemoveDirectory(path) => std::fs::remove_dir(at(path)).map(done),
        RemoveAll(path) => std::fs::remove_dir_all(at(path)).map(done),
        Rename(from, to, flags) => {
            let flags = match flags {
                0 => RenameFlags::NOREPLACE,
                1 => RenameFlags::EXCHANGE,
                _ => RenameFlags::empty(),
            };
            Ok(rustix::fs::renameat_with(CWD, at(from), CWD, at(to), flags).map(done)?)
        }
        Link(from, to) => Ok(rustix::fs::linkat(CWD, at(from), CWD, at(to), AtFlags::empty()).map(done)?),
        Symlink(path) => std::os::unix::fs::symlink("d/x", at(path)).map(done),
        Mode(path, mode) => std::fs::set_permissions(at(path), PermissionsExt::from_mode(*mode)).map(done),
        Owner(path, owner) => std::os::unix::fs::lchown(at(path), Some(*owner), Some(*owner)).map(done),
        Time(path, seconds) => {
            let time = rustix::fs::Timespec { tv_sec: *seconds, tv_nsec: 5 };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(CWD, at(path), &times, AtFlags::SYMLINK_NOFOLLOW)?;
            Ok(at(path).symlink_metadata()?.mtime().to_string())
        }
        SetXattr(path) => {
            Ok(rustix::fs::setxattr(at(path), "user.key", b"value", rustix::fs::XattrFlags::CREATE).map(done)?)
        }
        RemoveXattr(path) => Ok(rustix::fs::removexattr(at(path), "user.key").map(done)?),
        CopyRange(from, to) => {
            let source = std::fs::File::open(at(from))?;
            let copied = rustix::fs::copy_file_range(source, None, writable(to)?, None, 100)?;
            Ok(copied.to_string())
        }
        List(path) => {
            let mut names = std::fs::read_dir(at(path))?
                .map(|entry| Ok(entry?.file_name()))
                .collect::<std::io::Result<Vec<_>>>()?;
            names.sort();
            Ok(format!("{names:?}"))
        }
        Links(path) => {
            let metadata = at(path).symlink_metadata()?;
            Ok(if metadata.is_dir() { String::new() } else { format!("{} {}", metadata.nlink(), metadata.size()) })
        }
        Remount => Ok(String::new()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_operations_does_what_overlayfs_does(operations in prop::collection::vec(operation(), 1..40)) {
        let mut bench = Bench::new(LOWER);
        for (number, operation) in operations.iter().enumerate() {
            if matches!(operation, Operation::Remount) {
                bench.remount();
            }
            let outcome = |name: &str| apply(&bench.path(name), operation).map_err(|error| error.raw_os_error());
            prop_assert_eq!(outcome("ours"), outcome("overlay"), "{}: {:?}", number, operation);
        }
        let seen = listing(&bench.path("ours"));
        prop_assert_eq!(&seen, &listing(&bench.path("overlay")));
        bench.remount();
        prop_assert_eq!(seen, listing(&bench.path("ours")), "after a remount");
    }
}
