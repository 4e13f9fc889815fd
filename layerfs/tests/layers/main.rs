//! The store from outside: layers that GNU tar made, layers that we make, images that skopeo and umoci
//! read, hostile blobs, several sessions at once, and damage.

mod made;
mod refused;
mod sessions;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Cursor, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use fixtures::{output, run, shell, this_test};
use layerfs::{
    Compression, DOCUMENT_MAX_BYTES, DiffId, Encoder, Entry, EntryKind, EntryPath, FileKind, Layer, Packing,
    PackingWatch, PruneOptions, Store, StoreError, TarWriter, Tree, TreeIndex, TreeInode, UpperLife, digest_of,
};
use oci_spec::image::{Descriptor, Digest, MediaType};
use tempfile::TempDir;

fn new_store() -> (TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    (directory, store)
}

fn descriptor(blob: &[u8]) -> Descriptor {
    Descriptor::new(MediaType::ImageLayerGzip, blob.len() as u64, digest_of(blob))
}

fn ingest(store: &Store, blob: &[u8]) -> Result<Layer, StoreError> {
    store.ingest_layer(Cursor::new(blob), &descriptor(blob), None)
}

fn packed(tar: &[u8], compression: Compression) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), compression, 1).unwrap();
    encoder.write_all(tar).unwrap();
    encoder.finish().unwrap()
}

fn path(text: &str) -> EntryPath {
    EntryPath::parse(text.as_bytes()).unwrap()
}

fn file(text: &str, content: &str) -> (Entry, Vec<u8>) {
    (Entry::new(path(text), EntryKind::File { size_bytes: content.len() as u64 }), content.as_bytes().to_vec())
}

fn entry(text: &str, kind: EntryKind) -> (Entry, Vec<u8>) {
    (Entry::new(path(text), kind), Vec::new())
}

fn tar_of(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
    let mut writer = TarWriter::new(Vec::new());
    for (entry, content) in entries {
        writer.append(entry, &mut Cursor::new(content)).unwrap();
    }
    writer.finish().unwrap()
}

fn layer_of(store: &Store, entries: &[(Entry, Vec<u8>)]) -> Layer {
    ingest(store, &packed(&tar_of(entries), Compression::Gzip)).unwrap()
}

fn find(tree: &dyn Tree, path: &str) -> Option<TreeInode> {
    let mut names = path.split('/').filter(|name| !name.is_empty());
    names.try_fold(TreeInode::ROOT, |at, name| tree.lookup(at, name.as_bytes()).unwrap())
}

fn content(tree: &dyn Tree, inode: TreeInode) -> Vec<u8> {
    let mut bytes = vec![0xaa; tree.attributes(inode).unwrap().size_bytes as usize];
    assert_eq!(tree.read_at(inode, 0, &mut bytes).unwrap(), bytes.len());
    bytes
}

/// Everything below a directory that a layer can say, by path; and how many names each file has.
fn seen_on_disk(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut seen = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(at) = pending.pop() {
        let found = fs::symlink_metadata(&at).unwrap();
        let kind = found.file_type();
        let what = if kind.is_dir() {
            pending.extend(fs::read_dir(&at).unwrap().map(|entry| entry.unwrap().path()));
            "directory".to_owned()
        } else if kind.is_symlink() {
            format!("symlink {:?}", fs::read_link(&at).unwrap())
        } else if kind.is_file() {
            format!("file {} links {}", digest_of(&fs::read(&at).unwrap()), found.nlink())
        } else if kind.is_char_device() {
            format!("device {} {}", rustix::fs::major(found.rdev()), rustix::fs::minor(found.rdev()))
        } else {
            "fifo".to_owned()
        };
        let mode = found.mode() & 0o7777;
        let line = format!("{what} {mode:o} {}:{} {}", found.uid(), found.gid(), found.mtime());
        seen.insert(at.strip_prefix(root).unwrap().to_owned(), line);
    }
    seen
}

fn seen_in_tree(tree: &TreeIndex) -> BTreeMap<PathBuf, String> {
    use std::os::unix::ffi::OsStringExt;
    let mut seen = BTreeMap::new();
    let mut pending = vec![(PathBuf::new(), TreeInode::ROOT)];
    while let Some((at, inode)) = pending.pop() {
        let found = tree.attributes(inode).unwrap();
        let what = match found.kind {
            FileKind::Directory => {
                for child in tree.entries(inode, 0, usize::MAX).unwrap() {
                    pending.push((at.join(std::ffi::OsString::from_vec(child.name)), child.inode));
                }
                "directory".to_owned()
            }
            FileKind::Symlink => {
                let target = std::ffi::OsString::from_vec(tree.read_link(inode).unwrap());
                format!("symlink {:?}", PathBuf::from(target))
            }
            FileKind::File => format!("file {} links {}", digest_of(&content(tree, inode)), found.links),
            FileKind::CharacterDevice => format!("device {} {}", found.device.0, found.device.1),
            _ => "fifo".to_owned(),
        };
        seen.insert(at, format!("{what} {:o} {}:{} {}", found.mode, found.uid, found.gid, found.modified.seconds));
    }
    seen
}

/// A directory with what the format can carry.
fn sample_directory(long_names: bool) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    fs::create_dir_all(root.join("etc/conf.d")).unwrap();
    fs::write(root.join("etc/hello"), "hello").unwrap();
    fs::write(root.join("empty"), "").unwrap();
    fs::write(root.join("etc/big"), vec![7; 100_000]).unwrap();
    fs::hard_link(root.join("etc/hello"), root.join("etc/conf.d/again")).unwrap();
    symlink("../hello", root.join("etc/conf.d/link")).unwrap();
    let script =
        "mkfifo fifo; mknod null c 1 3; chmod 4751 empty; chown 1234:99999 etc/big; touch -d @1234567890 etc/hello";
    shell(root, &format!("set -e; {script}")).success();
    if long_names {
        let deep = root.join(format!("{}/{}", "d".repeat(250), "e".repeat(200)));
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("f".repeat(255)), "long").unwrap();
        symlink("t".repeat(300), deep.join("link")).unwrap();
        fs::write(root.join("caf\u{e9} \u{1f41a}"), "name").unwrap();
        fs::hard_link(deep.join("f".repeat(255)), root.join("short")).unwrap();
    }
    directory
}

fn gnu_tar(directory: &Path, arguments: &[&str]) -> Vec<u8> {
    output(Command::new("tar").arg("-C").arg(directory).args(arguments).args(["-c", "."]))
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let below = ["blobs/sha256", "layers", "trees"].map(|name| directory.join(name));
    below.iter().flat_map(|directory| fs::read_dir(directory).unwrap()).map(|entry| entry.unwrap().path()).collect()
}

fn sample_layer() -> Vec<(Entry, Vec<u8>)> {
    let mut long = file(&format!("long/{}", "n".repeat(200)), "long");
    long.0.xattrs = vec![(b"user.a".to_vec(), b"b".to_vec())];
    let mut owned = file("owned", &"content ".repeat(100_000));
    (owned.0.uid, owned.0.gid, owned.0.mode) = (1000, 5_000_000, 0o4755);
    owned.0.modified.seconds = 1_600_000_000;
    let link = entry("zlink", EntryKind::HardLink { target: path("owned") });
    vec![
        entry("", EntryKind::Directory),
        entry("long", EntryKind::Directory),
        long,
        owned,
        entry("pipe", EntryKind::Fifo),
        link,
    ]
}

fn created(store: &Store, compression: Compression, threads: usize) -> Layer {
    let write = |writer: &mut TarWriter<_>| {
        for (entry, content) in sample_layer() {
            writer.append(&entry, &mut Cursor::new(content))?;
        }
        Ok::<_, StoreError>(())
    };
    let diff_id = store.create_layer(write).unwrap();
    assert_eq!(store.packed_layer(&diff_id, compression).unwrap(), None);
    store.pack_layer(&diff_id, compression, threads).unwrap()
}

/// Puts an image of some layers into a store under a name.
fn put_image(store: &Store, name: &str, layers: &[Layer]) -> Descriptor {
    let diff_ids: Vec<DiffId> = layers.iter().map(|layer| layer.diff_id).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = store.put_blob_bytes(MediaType::ImageConfig, config.to_string().as_bytes()).unwrap();
    let layers: Vec<_> = layers.iter().map(|layer| &layer.descriptor).collect();
    let media_type = MediaType::ImageManifest.to_string();
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
    let manifest = store.put_blob_bytes(MediaType::ImageManifest, manifest.to_string().as_bytes()).unwrap();
    store.set_name(name, &manifest).unwrap();
    manifest
}

/// An error with its causes.
fn whole(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
