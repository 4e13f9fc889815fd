//! Layers that GNU tar made, layers that we make, and images that skopeo and umoci read.

use super::*;

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
        output(Command::new("tar").args(["--numeric-owner", "-p", "-x", "-C"]).arg(unpacked.path()).arg("-f").arg(tar));
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
    // Nor one that an older version of this program made, under the name that it had for such.
    let link = other.root().join("layers").join(format!("{}.gzip", ours.diff_id.hex()));
    fs::write(link, foreign.descriptor.digest().to_string()).unwrap();
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

/// A layer of files, the third of which has this content.
fn layer_with(store: &Store, third: &str) -> DiffId {
    let others = |number: u32| {
        let mut state = number.wrapping_add(1);
        let mut line = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            format!("let value = {};\n", state >> 12)
        };
        (0..50_000).map(|_| line()).collect::<String>()
    };
    let created = store.create_layer(|tar| {
        for number in 0..10 {
            let text = if number == 3 { third.to_owned() } else { others(number) };
            let (entry, content) = file(&format!("file{number}"), &text);
            tar.append(&entry, &mut Cursor::new(content)).map_err(StoreError::from)?;
        }
        Ok::<_, StoreError>(())
    });
    created.unwrap()
}

#[test]
fn a_layer_like_an_earlier_one_gets_the_blob_that_it_would_get_alone_whatever_became_of_the_earlier_one() {
    let alone = |third: &str| {
        let (_directory, store) = new_store();
        store.pack_layer(&layer_with(&store, third), Compression::Gzip, 2).unwrap()
    };
    let expected = [alone("one"), alone(&"two".repeat(10_000))];
    for damage in [None, Some(0), Some(1)] {
        let (directory, store) = new_store();
        let first = store.pack_layer(&layer_with(&store, "one"), Compression::Gzip, 2).unwrap();
        assert_eq!(first, expected[0]);
        let hex = first.descriptor.digest().digest().to_owned();
        let list = directory.path().join("layers").join(format!("{hex}.blocks"));
        assert!(list.exists());
        match damage {
            // A blob whose every block is damaged, and a list that is cut off.
            Some(0) => {
                let blob = store.blob_path(first.descriptor.digest());
                let damaged: Vec<u8> = fs::read(&blob).unwrap().iter().map(|byte| byte ^ 1).collect();
                fs::write(blob, damaged).unwrap();
            }
            Some(_) => fs::write(&list, &fs::read(&list).unwrap()[..100]).unwrap(),
            None => {}
        }
        let second = store.pack_layer(&layer_with(&store, &"two".repeat(10_000)), Compression::Gzip, 2).unwrap();
        assert_eq!(second, expected[1], "{damage:?}");
        drop(store);
        let store = Store::open(directory.path()).unwrap();
        store.prune(PruneOptions::default()).unwrap();
        assert!(!list.exists(), "a list lives as long as its blob");
    }
}

/// Reads a blob as it grows, and ends it at a size.
struct Following {
    blob: Mutex<Option<(fs::File, Vec<u8>)>>,
    ends_at: u64,
}

impl PackingWatch for Following {
    fn began(&self, blob: fs::File, tar_bytes: u64) {
        assert!(tar_bytes > 800_000, "it is the tar's size: {tar_bytes}");
        *self.blob.lock().unwrap() = Some((blob, Vec::new()));
    }

    fn grew(&self, blob_bytes: u64) -> std::io::Result<()> {
        let mut blob = self.blob.lock().unwrap();
        let (file, read) = blob.as_mut().unwrap();
        file.read_to_end(read)?;
        assert_eq!(read.len() as u64, blob_bytes, "what was told of is there to be read");
        if blob_bytes > self.ends_at { Err(std::io::Error::other("nobody wants it")) } else { Ok(()) }
    }
}

#[test]
fn a_blob_can_be_followed_while_it_is_compressed_and_is_not_kept_where_its_watch_ends_it() {
    let (directory, store) = new_store();
    let layer = created(&store, Compression::Gzip, 1);
    let packing: Packing = "zstd:5".parse().unwrap();
    let following = |ends_at| Following { blob: Mutex::new(None), ends_at };
    let ended = following(0);
    let error = store.pack_layer_watched(&layer.diff_id, packing, 2, &ended).unwrap_err();
    assert!(whole(&error).contains("nobody wants it"), "{error}");
    assert_eq!(store.packed_layer(&layer.diff_id, packing).unwrap(), None);
    let to_the_end = following(u64::MAX);
    let packed = store.pack_layer_watched(&layer.diff_id, packing, 2, &to_the_end).unwrap();
    let (_, read) = to_the_end.blob.lock().unwrap().take().unwrap();
    assert_eq!(digest_of(&read), *packed.descriptor.digest());
    let again = following(0);
    assert_eq!(store.pack_layer_watched(&layer.diff_id, packing, 2, &again).unwrap(), packed);
    assert!(again.blob.lock().unwrap().is_none(), "nothing had to be compressed");
    drop(store);
    assert!(files_below(directory.path()).iter().all(|path| !path.to_string_lossy().contains("draft")));
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
    run("skopeo", &["copy", &from, &to]);

    let bundle = copy.path().join("bundle");
    let image = format!("{}:app", directory.path().display());
    output(Command::new("umoci").args(["unpack", "--image", &image]).arg(&bundle));
    let tree = store.tree(&layers.map(|layer| layer.diff_id)).unwrap();
    assert_eq!(seen_in_tree(&tree), seen_on_disk(&bundle.join("rootfs")));
}
