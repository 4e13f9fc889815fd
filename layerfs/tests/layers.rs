//! The store from outside: layers that GNU tar made, layers that we make, images that skopeo and umoci
//! read, hostile blobs, several sessions at once, and damage.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Cursor, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use layerfs::{
    Compression, DiffId, Encoder, Entry, EntryKind, EntryPath, FileKind, Layer, Packing, PruneOptions, Store,
    StoreError, TarWriter, Tree, TreeIndex, TreeInode, UpperLife, digest_of,
};
use oci_spec::image::{Descriptor, Digest, MediaType};
use tempfile::TempDir;

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

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
    run(Command::new("mkfifo").arg(root.join("fifo")));
    run(Command::new("mknod").arg(root.join("null")).args(["c", "1", "3"]));
    run(Command::new("chmod").arg("4751").arg(root.join("empty")));
    run(Command::new("chown").arg("1234:99999").arg(root.join("etc/big")));
    run(Command::new("touch").args(["-d", "@1234567890"]).arg(root.join("etc/hello")));
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
    run(Command::new("tar").arg("-C").arg(directory).args(arguments).args(["-c", "."]))
}

#[test]
fn layers_of_every_gnu_tar_format_become_the_tree_they_were_made_of() {
    for (format, long_names) in [("v7", false), ("ustar", false), ("oldgnu", true), ("gnu", true), ("pax", true)] {
        let source = sample_directory(long_names);
        if format == "v7" {
            // It knows files, directories and links only.
            fs::remove_file(source.path().join("fifo")).unwrap();
            fs::remove_file(source.path().join("null")).unwrap();
        }
        let tar = gnu_tar(source.path(), &[&format!("--format={format}")]);
        let (_directory, store) = new_store();
        for compression in [Compression::Gzip, Compression::Zstd, Compression::None] {
            let layer = ingest(&store, &packed(&tar, compression)).unwrap();
            assert_eq!(layer.diff_id.to_string(), digest_of(&tar).to_string());
            let tree = store.tree(&[layer.diff_id]).unwrap();
            assert_eq!(seen_in_tree(&tree), seen_on_disk(source.path()), "{format} {compression:?}");
        }
    }
}

#[test]
fn sparse_files_of_every_gnu_form_read_as_they_were_and_keep_their_holes() {
    let source = tempfile::tempdir().unwrap();
    let (name, pieces) = (source.path().join("sparse"), [(0_u64, 1), (1 << 20, 5000), (3 << 20, 1)]);
    let mut sparse = fs::File::create(&name).unwrap();
    for at in 0..30_u64 {
        let many =
            fs::File::options().create(true).append(false).write(true).truncate(false).open(source.path().join("many"));
        std::os::unix::fs::FileExt::write_all_at(&many.unwrap(), b"x", at * 65_536 + 4096).unwrap();
    }
    for (offset, length) in pieces {
        std::os::unix::fs::FileExt::write_all_at(&sparse, &vec![b'a'; length], offset).unwrap();
    }
    sparse.set_len(5 << 20).unwrap();
    sparse.flush().unwrap();
    fs::File::create(source.path().join("hole")).unwrap().set_len(1 << 30).unwrap();
    for arguments in [
        ["--format=gnu", "-S", "--sparse-version=1.0"],
        ["--format=oldgnu", "-S", "--sparse-version=1.0"],
        ["--format=pax", "-S", "--sparse-version=0.0"],
        ["--format=pax", "-S", "--sparse-version=0.1"],
        ["--format=pax", "-S", "--sparse-version=1.0"],
    ] {
        let tar = gnu_tar(source.path(), &arguments);
        assert!(tar.len() < 1 << 20, "GNU tar found the holes");
        let (_directory, store) = new_store();
        let tree = store.tree(&[ingest(&store, &tar).unwrap().diff_id]).unwrap();
        for name in ["sparse", "many"] {
            let inode = find(tree.as_ref(), name).unwrap();
            assert!(
                content(tree.as_ref(), inode) == fs::read(source.path().join(name)).unwrap(),
                "{name} {arguments:?}"
            );
            assert!(tree.attributes(inode).unwrap().data_bytes < 1 << 20);
            let extents = tree.data_extents(inode).unwrap();
            assert!(extents.len() > 1 && extents.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
        }
        let hole = find(tree.as_ref(), "hole").unwrap();
        assert_eq!(tree.data_extents(hole).unwrap(), []);
        let mut buffer = [1; 10];
        assert_eq!(tree.read_at(hole, (1 << 30) - 4, &mut buffer).unwrap(), 4);
        assert_eq!(buffer, [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]);
        assert_eq!(tree.read_at(hole, u64::MAX, &mut buffer).unwrap(), 0);
    }
}

#[test]
fn xattrs_that_gnu_tar_stored_are_those_of_the_file() {
    let source = tempfile::tempdir().unwrap();
    let name = source.path().join("file");
    fs::write(&name, "x").unwrap();
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    rustix::fs::setxattr(&name, "security.capability", &capability, rustix::fs::XattrFlags::empty()).unwrap();
    rustix::fs::setxattr(&name, "trusted.empty", b"", rustix::fs::XattrFlags::empty()).unwrap();
    let tar = gnu_tar(source.path(), &["--xattrs", "--xattrs-include=*", "--format=pax"]);
    let (_directory, store) = new_store();
    let tree = store.tree(&[ingest(&store, &tar).unwrap().diff_id]).unwrap();
    let inode = find(tree.as_ref(), "file").unwrap();
    let expected =
        vec![(b"security.capability".to_vec(), capability.to_vec()), (b"trusted.empty".to_vec(), Vec::new())];
    assert_eq!(tree.xattrs(inode).unwrap(), expected);
    assert_eq!(tree.xattr(inode, b"user.none").unwrap(), None);
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

#[test]
fn created_layer_is_the_same_everywhere_and_gnu_tar_unpacks_it() {
    for compression in [Compression::Gzip, Compression::Zstd, Compression::None] {
        let (directory, store) = new_store();
        let layer = created(&store, compression, 1);
        let (_other_directory, other) = new_store();
        assert_eq!(created(&other, compression, 4), layer);
        assert_eq!(store.layer_of_blob(layer.descriptor.digest()).unwrap().as_ref(), Some(&layer));
        assert_eq!(store.blob_of_layer(&layer.diff_id).unwrap().as_ref(), Some(&layer));
        assert_eq!(store.packed_layer(&layer.diff_id, compression).unwrap().as_ref(), Some(&layer));
        let blob = store.read_blob(layer.descriptor.digest(), 1 << 30).unwrap();
        assert_eq!(layer.descriptor.size(), blob.len() as u64);
        let (_third_directory, third) = new_store();
        assert_eq!(ingest(&third, &blob).unwrap().diff_id, layer.diff_id);

        let unpacked = tempfile::tempdir().unwrap();
        let tar = directory.path().join("layers").join(format!("{}.tar", layer.diff_id.hex()));
        run(Command::new("tar").args(["--numeric-owner", "-p", "-x", "-C"]).arg(unpacked.path()).arg("-f").arg(tar));
        let tree = store.tree(&[layer.diff_id]).unwrap();
        assert_eq!(seen_in_tree(&tree), seen_on_disk(unpacked.path()));
    }
}

#[test]
fn packing_never_takes_a_blob_of_somebody_else() {
    let (_directory, store) = new_store();
    let ours = created(&store, Compression::Gzip, 1);
    let tar = fs::read(store.root().join("layers").join(format!("{}.tar", ours.diff_id.hex()))).unwrap();
    let (_other_directory, other) = new_store();
    let foreign = ingest(&other, &tar).unwrap();
    assert_eq!(foreign.diff_id, ours.diff_id);
    assert_ne!(foreign.descriptor, ours.descriptor);
    assert_eq!(other.pack_layer(&ours.diff_id, Compression::Gzip, 2).unwrap(), ours);
    assert_eq!(
        other.pack_layer(&ours.diff_id, Compression::None, 2).unwrap().descriptor.digest(),
        &ours.diff_id.into()
    );
    assert_eq!(other.verify().unwrap(), []);
}

#[test]
fn a_layer_has_one_blob_for_each_packing() {
    let (directory, store) = new_store();
    let layer = created(&store, Compression::Gzip, 1);
    for name in ["gzip:9", "zstd:3", "zstd:19", "uncompressed"] {
        let packing: Packing = name.parse().unwrap();
        let packed = store.pack_layer(&layer.diff_id, packing, 3).unwrap();
        assert_eq!(store.packed_layer(&layer.diff_id, packing).unwrap().as_ref(), Some(&packed));
        assert_eq!(store.layer_of_blob(packed.descriptor.digest()).unwrap().as_ref(), Some(&packed));
        // A link to a blob that is gone counts for nothing, and the number of threads does not show.
        fs::remove_file(store.blob_path(packed.descriptor.digest())).unwrap();
        assert_eq!(store.pack_layer(&layer.diff_id, packing, 1).unwrap(), packed, "{name}");
    }
    assert_eq!(store.verify().unwrap(), []);
    put_image(&store, "image", &[layer]);
    drop(store);
    let store = Store::open(directory.path()).unwrap();
    assert_eq!(store.prune(PruneOptions::default()).unwrap().blobs, 2, "those of levels that nothing names");
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

#[test]
fn skopeo_and_umoci_read_the_store_as_an_image_layout() {
    let (directory, store) = new_store();
    let base = created(&store, Compression::Gzip, 2);
    let middle = [
        entry("dir", EntryKind::Directory),
        entry("dir/gone", EntryKind::Directory),
        file("dir/gone/old", "old"),
        file("dir/kept", "kept"),
        file("dir/turned", "file"),
        file("linked", "one file"),
        entry("linked2", EntryKind::HardLink { target: path("linked") }),
        entry("linked3", EntryKind::HardLink { target: path("linked") }),
    ];
    let middle = layer_of(&store, &middle);
    let upper = [
        entry("", EntryKind::Directory),
        entry("pipe", EntryKind::Whiteout),
        entry("dir", EntryKind::Directory),
        entry("dir/gone", EntryKind::Directory),
        entry("dir/gone", EntryKind::Opaque),
        file("dir/gone/new", "new"),
        entry("dir/turned", EntryKind::Directory),
        file("dir/turned/inner", "inner"),
        file("linked", "replaced"),
        entry("long", EntryKind::Symlink { target: b"nowhere".to_vec() }),
        file("top", "top"),
    ];
    let mut upper = upper.to_vec();
    upper.sort_by_key(|(entry, _)| entry.tar_name());
    let layers = [base, middle, layer_of(&store, &upper)];
    put_image(&store, "localhost/app:1.0", &layers);
    put_image(&store, "app", &layers);

    let copy = tempfile::tempdir().unwrap();
    let from = format!("oci:{}:localhost/app:1.0", directory.path().display());
    let to = format!("oci:{}:copied", copy.path().join("layout").display());
    run(Command::new("skopeo").args(["--insecure-policy", "copy", &from, &to]));

    let bundle = copy.path().join("bundle");
    let image = format!("{}:app", directory.path().display());
    run(Command::new("umoci").args(["unpack", "--image", &image]).arg(&bundle));
    let tree = store.tree(&layers.map(|layer| layer.diff_id)).unwrap();
    assert_eq!(seen_in_tree(&tree), seen_on_disk(&bundle.join("rootfs")));
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let below = ["blobs/sha256", "layers", "trees"].map(|name| directory.join(name));
    below.iter().flat_map(|directory| fs::read_dir(directory).unwrap()).map(|entry| entry.unwrap().path()).collect()
}

/// Ingests a blob that must be refused, and checks that nothing of it stays.
fn refused(blob: &[u8], descriptor: &Descriptor, expected: Option<&DiffId>) -> String {
    let (directory, store) = new_store();
    let store = store.with_layer_limit(10 << 20);
    let error = store.ingest_layer(Cursor::new(blob), descriptor, expected).unwrap_err();
    assert_eq!(files_below(directory.path()), [] as [PathBuf; 0]);
    let drafts: Vec<_> = fs::read_dir(directory.path().join("tmp")).unwrap().collect();
    assert_eq!(drafts.len(), 1, "only the session's own directory");
    whole(&error)
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

#[test]
fn blobs_that_are_not_what_was_promised_are_refused() {
    let blob = packed(&tar_of(&sample_layer()), Compression::Gzip);
    let right = descriptor(&blob);
    let other = digest_of(b"other");
    let wrong = Descriptor::new(MediaType::ImageLayerGzip, blob.len() as u64, other.clone());
    assert!(refused(&blob, &wrong, None).contains("was expected"));
    let other: DiffId = other.to_string().parse().unwrap();
    assert!(refused(&blob, &right, Some(&other)).contains("uncompressed layer"));
    let short = Descriptor::new(MediaType::ImageLayerGzip, blob.len() as u64 - 1, digest_of(&blob));
    assert!(refused(&blob, &short, None).contains("bytes where"));
    let long = Descriptor::new(MediaType::ImageLayerGzip, blob.len() as u64 + 1, digest_of(&blob));
    assert!(refused(&blob, &long, None).contains("bytes where"));
}

#[test]
fn truncated_and_damaged_blobs_are_refused_even_where_the_digest_is_right() {
    let tar = tar_of(&sample_layer());
    for compression in [Compression::Gzip, Compression::Zstd] {
        let mut blob = packed(&tar, compression);
        blob.truncate(blob.len() - 5);
        assert!(refused(&blob, &descriptor(&blob), None).contains("decompressing"), "{compression:?}");
    }
    let cut = &tar[..tar.len() - 5000];
    assert!(refused(cut, &descriptor(cut), None).contains("ends in the middle"));
    assert!(refused(b"no tar at all", &descriptor(b"no tar at all"), None).contains("ends in the middle"));
}

#[test]
fn a_blob_that_was_damaged_on_its_way_has_the_wrong_digest_wherever_the_damage_is() {
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let blob = packed(&tar_of(&sample_layer()), compression);
        // The magic number tells the compression: without it the rest is a tar, and no good one.
        for at in (4..blob.len()).step_by(blob.len() / 40 + 1).chain([blob.len() - 6]) {
            let mut damaged = blob.clone();
            damaged[at] ^= 0x10;
            let text = refused(&damaged, &descriptor(&blob), None);
            assert!(text.contains("was expected"), "{compression:?}, byte {at}: {text}");
        }
    }
}

#[test]
fn bomb_is_stopped_at_the_limit() {
    for compression in [Compression::Gzip, Compression::Zstd] {
        let blob = packed(&vec![0; 50 << 20], compression);
        assert!(blob.len() < 100_000);
        assert!(refused(&blob, &descriptor(&blob), None).contains("expands to more than"), "{compression:?}");
    }
}

#[test]
fn hostile_entries_are_refused() {
    let mut tar = tar_of(&[file("aa/etc/passwd", "x")]);
    tar[..2].copy_from_slice(b"..");
    let sum = tar[..512].iter().enumerate().map(|(at, &b)| if (148..156).contains(&at) { 32 } else { u32::from(b) });
    let sum = format!("{:06o}\0 ", sum.sum::<u32>());
    tar[148..156].copy_from_slice(sum.as_bytes());
    assert!(refused(&tar, &descriptor(&tar), None).contains("leads out of the root"));
    let link = tar_of(&[entry("a", EntryKind::HardLink { target: path("etc/shadow") })]);
    assert!(refused(&link, &descriptor(&link), None).contains("hard link"));
    let below = tar_of(&[file("a", ""), file("a/b", "")]);
    assert!(refused(&below, &descriptor(&below), None).contains("not a directory"));
}

#[test]
fn failing_source_is_reported_as_such() {
    struct Broken(Cursor<Vec<u8>>);
    impl Read for Broken {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(io::ErrorKind::ConnectionReset.into()),
                count => Ok(count),
            }
        }
    }
    let blob = packed(&tar_of(&sample_layer()), Compression::Gzip);
    let (_directory, store) = new_store();
    let half = Broken(Cursor::new(blob[..blob.len() / 2].to_vec()));
    let error = store.ingest_layer(half, &descriptor(&blob), None).unwrap_err();
    assert!(matches!(error, StoreError::Receive { .. }), "{error:?}");
    let half = Broken(Cursor::new(blob[..blob.len() / 2].to_vec()));
    assert!(matches!(store.put_blob(half, &descriptor(&blob)), Err(StoreError::Receive { .. })));
}

#[test]
fn bytes_behind_the_end_of_a_tar_belong_to_the_diff_id() {
    let mut tar = tar_of(&[file("a", "a")]);
    tar.extend_from_slice(&[0; 10_000]);
    tar.extend_from_slice(b"and more");
    let (_directory, store) = new_store();
    assert_eq!(
        ingest(&store, &packed(&tar, Compression::Gzip)).unwrap().diff_id.to_string(),
        digest_of(&tar).to_string()
    );
}

#[test]
fn layer_that_is_there_is_not_read_again() {
    let (_directory, store) = new_store();
    let blob = packed(&tar_of(&sample_layer()), Compression::Gzip);
    let layer = ingest(&store, &blob).unwrap();
    assert_eq!(store.ingest_layer(io::empty(), &descriptor(&blob), Some(&layer.diff_id)).unwrap(), layer);
    let other: DiffId = digest_of(b"other").to_string().parse().unwrap();
    assert!(store.ingest_layer(io::empty(), &descriptor(&blob), Some(&other)).is_err());
}

#[test]
fn blob_in_the_store_becomes_a_layer_without_being_sent_again() {
    let (_directory, store) = new_store();
    let blob = packed(&tar_of(&sample_layer()), Compression::Zstd);
    store.put_blob(Cursor::new(&blob), &descriptor(&blob)).unwrap();
    assert_eq!(store.layer_of_blob(&digest_of(&blob)).unwrap(), None);
    let layer = store.ingest_stored_layer(&descriptor(&blob), None).unwrap();
    assert_eq!(store.layer_of_blob(&digest_of(&blob)).unwrap().unwrap().diff_id, layer.diff_id);
    assert_eq!(store.read_blob(&digest_of(&blob), 1 << 20).unwrap(), blob);
}

#[test]
fn many_sessions_ingest_and_name_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let blobs: Vec<_> = (0..3).map(|at| packed(&tar_of(&[file("a", &at.to_string())]), Compression::Gzip)).collect();
    std::thread::scope(|scope| {
        for number in 0..6 {
            let (root, blobs) = (directory.path(), &blobs);
            scope.spawn(move || {
                let store = Store::open(root).unwrap();
                let layers: Vec<_> = blobs.iter().map(|blob| ingest(&store, blob).unwrap()).collect();
                put_image(&store, &format!("image{number}"), &layers);
                store.prune(PruneOptions::default()).unwrap();
                let stack: Vec<_> = layers.iter().map(|layer| layer.diff_id).collect();
                let tree = store.tree(&stack).unwrap();
                assert_eq!(content(tree.as_ref(), find(tree.as_ref(), "a").unwrap()), b"2");
            });
        }
    });
    let store = Store::open(directory.path()).unwrap();
    assert_eq!(store.images().unwrap().len(), 6);
    assert_eq!(store.verify().unwrap(), []);
}

#[test]
fn prune_keeps_what_is_named_leased_or_below_an_upper_and_removes_the_rest() {
    let (directory, store) = new_store();
    let layers: Vec<_> =
        ["named", "leased", "upper", "step", "loose"].map(|name| layer_of(&store, &[file(name, name)])).into();
    put_image(&store, "image", &layers[..1]);
    store.put_step("key", &serde_json::json!({"layer": layers[3].diff_id})).unwrap();
    let kept = store.create_upper(&[layers[2].diff_id], UpperLife::Kept).unwrap();
    let id = kept.id().to_owned();
    drop(kept);
    drop(store);

    let leasing = Store::open(directory.path()).unwrap();
    leasing.open_layer(&layers[1].diff_id).unwrap();
    let pruning = Store::open(directory.path()).unwrap();
    let pruned = pruning.prune(PruneOptions { keep_steps: true, ..PruneOptions::default() }).unwrap();
    assert_eq!((pruned.blobs, pruned.layers, pruned.uppers), (1, 1, 0));
    assert!(pruned.freed_bytes > 0);
    for layer in &layers[..4] {
        pruning.open_layer(&layer.diff_id).unwrap();
        assert_eq!(pruning.blob_of_layer(&layer.diff_id).unwrap().as_ref(), Some(layer));
    }
    assert!(matches!(pruning.open_layer(&layers[4].diff_id), Err(StoreError::NotFound { .. })));

    drop((leasing, pruning));
    let store = Store::open(directory.path()).unwrap();
    assert!(store.remove_name("image").unwrap());
    store.open_upper(&id).unwrap().remove().unwrap();
    drop(store);
    let store = Store::open(directory.path()).unwrap();
    let pruned = store.prune(PruneOptions::default()).unwrap();
    assert_eq!((pruned.layers, pruned.steps), (4, 1));
    assert_eq!(files_below(directory.path()), [] as [PathBuf; 0]);
}

#[test]
fn what_a_killed_process_left_is_swept() {
    let (directory, store) = new_store();
    let left = directory.path().join("tmp/999999-0");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("lease"), "").unwrap();
    fs::write(left.join("draft-0"), "half").unwrap();
    let upper = directory.path().join("uppers/999999-0");
    fs::create_dir_all(upper.join("upper/closed/inner")).unwrap();
    fs::write(upper.join("stack"), "").unwrap();
    fs::write(upper.join("temporary"), "").unwrap();
    let living = store.create_upper(&[], UpperLife::Temporary).unwrap();
    let reopened = Store::open(directory.path()).unwrap();
    assert!(!left.exists() && !upper.exists() && living.upper().exists());
    assert_eq!(reopened.prune(PruneOptions::default()).unwrap().uppers, 0);
    assert!(living.upper().exists());
    let path = living.upper();
    drop(living);
    assert!(!path.exists());
}

#[test]
fn sessions_and_uppers_that_come_and_go_disturb_nobody() {
    let (directory, _store) = new_store();
    let come_and_go = || {
        for _ in 0..200 {
            let store = Store::open(directory.path()).unwrap();
            store.create_upper(&[], UpperLife::Temporary).unwrap();
            store.prune(PruneOptions::default()).unwrap();
        }
    };
    std::thread::scope(|scope| (0..3).for_each(|_| drop(scope.spawn(come_and_go))));
    assert_eq!(fs::read_dir(directory.path().join("uppers")).unwrap().count(), 0);
}

/// Set for the child of the kill test: the store that it works in. Its blob comes on standard input.
const KILLED_CHILD: &str = "LAYERFS_TEST_KILLED_CHILD";

/// Not a test of its own: what the child of the next test runs.
#[test]
fn child_that_is_killed_while_it_ingests() {
    let Some(root) = std::env::var_os(KILLED_CHILD) else { return };
    let store = Store::open(Path::new(&root)).unwrap();
    let announced = Descriptor::new(MediaType::ImageLayerGzip, 1 << 40, digest_of(b"never complete"));
    store.ingest_layer(io::stdin(), &announced, None).unwrap();
}

#[test]
fn process_that_is_killed_during_import_leaves_nothing_in_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_is_killed_while_it_ingests", "--nocapture"])
        .env(KILLED_CHILD, directory.path())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // More than a pipe holds: when all of it is written, the child has read most and waits for the rest.
    let (entry, content) = file("a", &"x".repeat(2 << 20));
    let mut tar = tar_of(&[(entry, content)]);
    tar.truncate(1 << 20);
    stdin.write_all(&tar).unwrap();
    let sessions = || fs::read_dir(directory.path().join("tmp")).unwrap().count();
    assert_eq!(sessions(), 1);
    let other = Store::open(directory.path()).unwrap();
    assert_eq!(sessions(), 2, "a living session is not swept");
    child.kill().unwrap();
    child.wait().unwrap();
    drop(other);
    let store = Store::open(directory.path()).unwrap();
    assert_eq!(sessions(), 1, "a dead one is");
    assert_eq!(files_below(directory.path()), [] as [PathBuf; 0]);
    assert_eq!(store.verify().unwrap(), []);
}

#[test]
fn upper_is_held_by_one_process_and_found_again() {
    let (_directory, store) = new_store();
    let layer = layer_of(&store, &[file("a", "a")]);
    let upper = store.create_upper(&[layer.diff_id], UpperLife::Kept).unwrap();
    fs::write(upper.upper().join("file"), "mine").unwrap();
    let id = upper.id().to_owned();
    assert!(matches!(store.open_upper(&id), Err(StoreError::InUse { .. })));
    drop(upper);
    assert_eq!(store.uppers().unwrap(), std::slice::from_ref(&id));
    let again = store.open_upper(&id).unwrap();
    assert_eq!(again.stack(), [layer.diff_id]);
    assert_eq!(fs::read(again.upper().join("file")).unwrap(), b"mine");
    again.remove().unwrap();
    assert!(matches!(store.open_upper(&id), Err(StoreError::NotFound { .. })));
    assert!(matches!(store.open_upper("../layers"), Err(StoreError::Name { .. })));
}

#[test]
fn missing_and_damaged_indexes_are_made_again() {
    let (directory, store) = new_store();
    let below = layer_of(&store, &sample_layer());
    let above = layer_of(&store, &[file("top", "top")]);
    let stack = [below.diff_id, above.diff_id];
    let seen = seen_in_tree(&store.tree(&stack).unwrap());
    let indexes =
        || files_below(directory.path()).into_iter().filter(|path| path.extension().is_some_and(|e| e == "idx"));
    assert_eq!(indexes().count(), 3);
    for damage in ["", "NACREIDX and no more", "removed"] {
        for path in indexes().collect::<Vec<_>>() {
            fs::remove_file(&path).unwrap();
            if damage != "removed" {
                fs::write(&path, damage).unwrap();
            }
        }
        assert_eq!(seen_in_tree(&store.tree(&stack).unwrap()), seen, "{damage}");
    }
    assert_eq!(store.verify().unwrap(), []);
}

/// The config that a manifest of the store names.
fn config_of(store: &Store, manifest: &Descriptor) -> Digest {
    let document: serde_json::Value =
        serde_json::from_slice(&store.read_blob(manifest.digest(), 1 << 20).unwrap()).unwrap();
    Digest::try_from(document["config"]["digest"].as_str().unwrap()).unwrap()
}

#[test]
fn cache_mounts_and_abandoned_uppers_count_among_what_is_freed() {
    let (directory, store) = new_store();
    let mount = store.cache_mount("cache").unwrap();
    fs::create_dir(mount.join("content")).unwrap();
    fs::write(mount.join("content/large"), vec![1; 1 << 20]).unwrap();
    fs::hard_link(mount.join("content/large"), mount.join("content/again")).unwrap();
    let upper = directory.path().join("uppers/abandoned");
    fs::create_dir(&upper).unwrap();
    fs::write(upper.join("large"), vec![1; 1 << 20]).unwrap();
    let pruned = store.prune(PruneOptions::default()).unwrap();
    assert_eq!((pruned.cache_mounts, pruned.uppers), (1, 1));
    assert!((2 << 20..3 << 20).contains(&pruned.freed_bytes), "{pruned:?}");
}

#[test]
fn damage_of_the_disk_is_found() {
    let (directory, store) = new_store();
    let layer = layer_of(&store, &sample_layer());
    let manifest = put_image(&store, "image", std::slice::from_ref(&layer));
    assert_eq!(store.verify().unwrap(), []);
    let tar = directory.path().join("layers").join(format!("{}.tar", layer.diff_id.hex()));
    let mut bytes = fs::read(&tar).unwrap();
    bytes[5000] ^= 1;
    fs::remove_file(&tar).unwrap();
    fs::write(&tar, bytes).unwrap();
    let blob = store.blob_path(layer.descriptor.digest());
    let config = store.blob_path(&config_of(&store, &manifest));
    for path in [&blob, &config] {
        fs::remove_file(path).unwrap();
    }
    let is_missing = |path: &Path| {
        let damage = store.verify().unwrap();
        damage.iter().any(|found| found.path == path && found.problem.contains("missing"))
    };
    assert!(store.verify().unwrap().iter().any(|found| found.path == tar && found.problem.contains("digest")));
    assert!(is_missing(&blob) && is_missing(&config), "what a manifest names is looked for");
    fs::remove_file(store.blob_path(manifest.digest())).unwrap();
    assert!(is_missing(&store.blob_path(manifest.digest())));
    assert!(matches!(store.read_blob(manifest.digest(), 100), Err(StoreError::NotFound { .. })));
}

#[test]
fn tree_stays_usable_when_its_layers_are_pruned() {
    let (directory, store) = new_store();
    let layer = layer_of(&store, &[file("a", "still here")]);
    let tree = store.tree(&[layer.diff_id]).unwrap();
    drop(store);
    let other = Store::open(directory.path()).unwrap();
    assert_eq!(other.prune(PruneOptions::default()).unwrap().layers, 0, "the tree holds a lease");
    assert_eq!(content(tree.as_ref(), find(tree.as_ref(), "a").unwrap()), b"still here");
    drop(tree);
    assert_eq!(other.prune(PruneOptions::default()).unwrap().layers, 1);
}

#[test]
fn tar_that_is_shorter_than_its_index_says_is_an_input_output_error() {
    let (directory, store) = new_store();
    let layer = layer_of(&store, &[file("a", &"x".repeat(5000))]);
    let tree = store.tree(&[layer.diff_id]).unwrap();
    let tar = directory.path().join("layers").join(format!("{}.tar", layer.diff_id.hex()));
    fs::File::options().write(true).open(&tar).unwrap().set_len(1000).unwrap();
    let inode = find(tree.as_ref(), "a").unwrap();
    let error = tree.read_at(inode, 0, &mut [0; 5000]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    let root = TreeInode::ROOT;
    let errno = |error: io::Error| error.raw_os_error().unwrap();
    assert_eq!(errno(tree.read_at(root, 0, &mut [0]).unwrap_err()), rustix::io::Errno::ISDIR.raw_os_error());
    assert_eq!(errno(tree.lookup(inode, b"x").unwrap_err()), rustix::io::Errno::NOTDIR.raw_os_error());
    assert_eq!(errno(tree.read_link(inode).unwrap_err()), rustix::io::Errno::INVAL.raw_os_error());
}

#[test]
fn names_and_steps_are_found_again_and_bad_ones_refused() {
    let (directory, store) = new_store();
    let manifest = put_image(&store, "one", &[]);
    store.set_name("two", &manifest).unwrap();
    store.set_name("two", &manifest).unwrap();
    assert_eq!(store.images().unwrap().iter().map(|image| image.name.as_str()).collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!(store.resolve("two").unwrap(), Some(manifest.clone()));
    assert!(store.remove_name("two").unwrap() && !store.remove_name("two").unwrap());
    assert_eq!(store.resolve("two").unwrap(), None);
    assert!(matches!(store.set_name("", &manifest), Err(StoreError::Name { .. })));
    let missing = descriptor(b"nowhere");
    assert!(matches!(store.set_name("three", &missing), Err(StoreError::NotFound { .. })));

    let key = digest_of(b"step").to_string();
    assert_eq!(store.step::<Vec<u32>>(&key).unwrap(), None);
    store.put_step(&key, &vec![1, 2]).unwrap();
    assert_eq!(store.step::<Vec<u32>>(&key).unwrap(), Some(vec![1, 2]));
    assert_eq!(store.step::<String>(&key).unwrap(), None, "of another form");
    assert!(matches!(store.put_step("../escape", &1), Err(StoreError::Name { .. })));
    assert!(store.cache_mount("../../escape").unwrap().starts_with(directory.path().canonicalize().unwrap()));
}

#[test]
fn store_of_another_layout_version_is_refused() {
    let (directory, store) = new_store();
    drop(store);
    let path = directory.path().join("nacre-store");
    fs::remove_file(&path).unwrap();
    fs::write(&path, "2").unwrap();
    assert!(matches!(Store::open(directory.path()), Err(StoreError::LayoutVersion { .. })));
}

#[test]
fn failed_write_of_a_new_layer_leaves_nothing() {
    let (directory, store) = new_store();
    let result = store.create_layer(|writer| {
        let (entry, _) = file("a", "announced");
        Ok::<_, StoreError>(writer.append(&entry, &mut io::empty())?)
    });
    assert!(result.is_err());
    assert_eq!(files_below(directory.path()), [] as [PathBuf; 0]);
}

#[test]
fn a_file_beyond_the_limit_is_refused_before_a_byte_of_it_is_read() {
    let (directory, store) = new_store();
    let store = store.with_layer_limit(1 << 20);
    for size_bytes in [(1 << 20) + 1, 1 << 60, u64::MAX] {
        let huge = Entry::new(path("huge"), EntryKind::File { size_bytes });
        let made = store.create_layer(|writer| Ok::<_, StoreError>(writer.append(&huge, &mut io::repeat(0))?));
        let said = whole(&made.unwrap_err());
        assert!(said.contains("more than the limit of 1048576"), "{said}");
    }
    assert_eq!(files_below(directory.path()), [] as [PathBuf; 0]);
}

#[test]
fn files_of_a_session_outlive_another_opening_and_end_with_it() {
    let (directory, store) = new_store();
    let file = store.temporary().join("file");
    fs::write(&file, "of the session").unwrap();
    drop(Store::open(directory.path()).unwrap());
    assert!(file.exists());
    drop(store);
    assert!(!file.exists());
}

#[test]
fn a_store_opens_though_what_a_dead_session_left_cannot_be_removed() {
    use rustix::fs::IFlags;
    let (directory, store) = new_store();
    drop(store);
    let left = directory.path().join("tmp/99-9");
    fs::create_dir(&left).unwrap();
    let file = fs::File::open(&left).unwrap();
    let flags = rustix::fs::ioctl_getflags(&file).unwrap();
    rustix::fs::ioctl_setflags(&file, flags | IFlags::IMMUTABLE).unwrap();
    let opened = Store::open(directory.path()).map(drop);
    rustix::fs::ioctl_setflags(&file, flags).unwrap();
    opened.unwrap();
    assert!(left.exists());
    drop(Store::open(directory.path()).unwrap());
    assert!(!left.exists());
}
