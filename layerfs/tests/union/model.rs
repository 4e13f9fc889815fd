//! The union's functions without a mount, against a plain directory with the same content.
//!
//! Invariant: whatever is done, both show the same, and once every reference is given back no node is left.

use std::{
    collections::BTreeMap,
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
};

use layerfs::{FileKind, Making, NodeId, Owner, RenameMode, Union};
use proptest::prelude::*;
use rustix::io::Errno;

use crate::{
    bench::{OPTIONS, open_directory, shell},
    memory_tree::MemoryTree,
};

const PATHS: &[&str] = &["a", "b", "d", "d/x", "d/y", "d/e", "d/e/z", "g", "g/x", "new", "d/new", "h1", "d/h2"];

const LOWER: &str = "echo a > a; echo bbb > b; mkdir -p d/e g; echo x > d/x; echo y > d/y; echo z > d/e/z;
    echo hard > h1; ln h1 d/h2";

#[derive(Debug, Clone)]
enum Operation {
    Create(usize),
    MakeDirectory(usize),
    Write(usize, u64),
    Unlink(usize),
    RemoveDirectory(usize),
    Rename(usize, usize),
    Link(usize, usize),
    Reopen,
}

fn operation() -> impl Strategy<Value = Operation> {
    let path = || 0..PATHS.len();
    prop_oneof![
        2 => path().prop_map(Operation::Create),
        2 => path().prop_map(Operation::MakeDirectory),
        3 => (path(), 0..200_u64).prop_map(|(path, at)| Operation::Write(path, at)),
        4 => path().prop_map(Operation::Unlink),
        2 => path().prop_map(Operation::RemoveDirectory),
        6 => (path(), path()).prop_map(|(from, to)| Operation::Rename(from, to)),
        3 => (path(), path()).prop_map(|(from, to)| Operation::Link(from, to)),
        1 => Just(Operation::Reopen),
    ]
}

/// The kernel's part: walks a path as it would, and counts what it looks up.
struct Kernel<'a> {
    union: &'a Union<MemoryTree>,
    held: Vec<NodeId>,
}

impl Kernel<'_> {
    fn find(&mut self, path: &str) -> Result<(NodeId, FileKind), Errno> {
        let mut at = (NodeId::ROOT, FileKind::Directory);
        for name in path.split('/').filter(|name| !name.is_empty()) {
            if at.1 != FileKind::Directory {
                return Err(Errno::NOTDIR);
            }
            let found = self.union.lookup(at.0, name.as_bytes())?.ok_or(Errno::NOENT)?;
            self.held.push(found.id);
            at = (found.id, found.kind);
        }
        Ok(at)
    }

    fn parent<'p>(&mut self, path: &'p str) -> Result<(NodeId, &'p [u8]), Errno> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        match self.find(parent)? {
            (node, FileKind::Directory) => Ok((node, name.as_bytes())),
            _ => Err(Errno::NOTDIR),
        }
    }

    fn apply(&mut self, operation: &Operation) -> Result<(), Errno> {
        let owner = Owner { uid: 0, gid: 0 };
        match operation {
            Operation::Create(path) => {
                let (parent, name) = self.parent(PATHS[*path])?;
                self.held.push(self.union.create(parent, name, owner, 0o644, Making::File)?.id);
            }
            Operation::MakeDirectory(path) => {
                let (parent, name) = self.parent(PATHS[*path])?;
                self.held.push(self.union.create(parent, name, owner, 0o755, Making::Directory)?.id);
            }
            Operation::Write(path, at) => {
                let node = self.find(PATHS[*path])?.0;
                self.union.write(node, *at, b"written")?;
            }
            Operation::Unlink(path) => {
                let (parent, name) = self.parent(PATHS[*path])?;
                self.union.unlink(parent, name)?;
            }
            Operation::RemoveDirectory(path) => {
                let (parent, name) = self.parent(PATHS[*path])?;
                self.union.rmdir(parent, name)?;
            }
            Operation::Rename(from, to) => {
                let (from, name) = self.parent(PATHS[*from])?;
                let (to, new_name) = self.parent(PATHS[*to])?;
                self.union.rename(from, name, to, new_name, RenameMode::Replace)?;
            }
            Operation::Link(from, to) => {
                let node = self.find(PATHS[*from])?.0;
                let (to, name) = self.parent(PATHS[*to])?;
                self.held.push(self.union.link(node, to, name)?.id);
            }
            Operation::Reopen => {}
        }
        Ok(())
    }

    /// Everything below a directory: kind, links and content by path.
    fn show(&mut self, path: &str, into: &mut BTreeMap<String, String>) {
        let node = self.find(path).expect("it is there").0;
        // Few at a time, so that listings are taken up again.
        let mut after = 0;
        loop {
            let listed = self.union.read_directory_plus(node, after, 2).expect("lists");
            let Some((last, _)) = listed.last() else { break };
            after = last.position;
            for (entry, metadata) in listed {
                let name = String::from_utf8(entry.name).expect("the names are text");
                if name == "." || name == ".." {
                    continue;
                }
                self.held.push(entry.id);
                let path = if path.is_empty() { name } else { format!("{path}/{name}") };
                let shown = if metadata.kind == FileKind::Directory {
                    self.show(&path, into);
                    String::new()
                } else {
                    let mut content = vec![0; 1000];
                    let length = self.union.read(entry.id, 0, &mut content).expect("reads");
                    format!("{} {}", metadata.links, content[..length].escape_ascii())
                };
                assert_eq!(into.insert(path, shown), None, "a name is listed once");
            }
        }
    }

    fn forget(&mut self) {
        for node in self.held.drain(..) {
            self.union.forget(node, 1);
        }
    }
}

fn apply_to_directory(root: &Path, operation: &Operation) -> std::io::Result<()> {
    let at = |path: &usize| root.join(PATHS[*path]);
    match operation {
        Operation::Create(path) => std::fs::File::create_new(at(path)).map(drop),
        Operation::MakeDirectory(path) => std::fs::create_dir(at(path)),
        Operation::Write(path, offset) => {
            std::fs::OpenOptions::new().write(true).open(at(path))?.write_all_at(b"written", *offset)
        }
        Operation::Unlink(path) => std::fs::remove_file(at(path)),
        Operation::RemoveDirectory(path) => std::fs::remove_dir(at(path)),
        Operation::Rename(from, to) => std::fs::rename(at(from), at(to)),
        Operation::Link(from, to) => std::fs::hard_link(at(from), at(to)),
        Operation::Reopen => Ok(()),
    }
}

fn show_directory(root: &Path, path: &str, into: &mut BTreeMap<String, String>) {
    use std::os::unix::fs::MetadataExt;
    for entry in root.join(path).read_dir().expect("lists") {
        let entry = entry.expect("lists");
        let name = entry.file_name().into_string().expect("the names are text");
        let path = if path.is_empty() { name } else { format!("{path}/{name}") };
        let metadata = entry.metadata().expect("stat");
        let shown = if metadata.is_dir() {
            show_directory(root, &path, into);
            String::new()
        } else {
            let content = std::fs::read(entry.path()).expect("reads");
            format!("{} {}", metadata.nlink(), content.escape_ascii())
        };
        into.insert(path, shown);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, max_shrink_iters: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_calls_does_what_a_plain_directory_does(operations in prop::collection::vec(operation(), 1..60)) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for name in ["lower", "upper", "work"] {
            std::fs::create_dir(directory.path().join(name)).expect("fresh");
        }
        let lower = directory.path().join("lower");
        let (made, output) = shell(&lower, &format!("umask 022; {LOWER}; cp -a . ../plain"));
        prop_assert!(made, "{}", output);
        std::fs::set_permissions(&lower, PermissionsExt::from_mode(0o755)).expect("chmod");
        let tree = MemoryTree::from_directory(&lower);
        let open = || {
            let descriptor = |name| open_directory(&directory.path().join(name));
            Union::open(tree.clone(), descriptor("upper"), descriptor("work"), OPTIONS).expect("opens")
        };
        let mut union = open();
        for operation in &operations {
            if matches!(operation, Operation::Reopen) {
                drop(union);
                union = open();
            }
            let mut kernel = Kernel { union: &union, held: Vec::new() };
            let ours = kernel.apply(operation);
            let plain = apply_to_directory(&directory.path().join("plain"), operation);
            prop_assert_eq!(ours.is_ok(), plain.is_ok(), "{:?}: {:?} {:?}", operation, ours, plain);
            kernel.forget();
            prop_assert_eq!(union.node_count(), 1, "after {:?}", operation);
        }
        let (mut ours, mut plain) = (BTreeMap::new(), BTreeMap::new());
        let mut kernel = Kernel { union: &union, held: Vec::new() };
        kernel.show("", &mut ours);
        kernel.forget();
        show_directory(&directory.path().join("plain"), "", &mut plain);
        prop_assert_eq!(ours, plain);
        prop_assert_eq!(union.node_count(), 1);
    }
}
