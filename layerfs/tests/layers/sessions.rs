//! Several sessions at once, what is pruned and swept, kills, full disks and damage.

use super::*;

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
fn what_lies_beside_an_image_has_no_name_and_goes_with_it() {
    let (directory, store) = new_store();
    put_image(&store, "image", &[layer_of(&store, &[file("a", "a")])]);
    let image = store.images().unwrap().remove(0).descriptor;
    let put = |text: &str| store.put_blob_bytes(MediaType::ImageManifest, text.as_bytes()).unwrap();
    // It names the image, as signatures do, and holds it for all that no longer than a name does.
    let [old, new] = ["old", "new"].map(|text| put(&format!("{{\"{text}\":\"{}\"}}", image.digest())));
    for beside in [&old, &new, &new] {
        store.set_beside(image.digest(), "tag.sig", beside).unwrap();
    }
    assert_eq!(store.images().unwrap().len(), 1);
    assert_eq!(store.beside("tag.sig").unwrap().unwrap().digest(), new.digest());
    assert_eq!(store.beside("other.sig").unwrap(), None);
    drop(store);
    let store = Store::open(directory.path()).unwrap();
    assert_eq!(store.prune(PruneOptions::default()).unwrap().blobs, 1, "what was there before");
    assert!(store.beside("tag.sig").unwrap().is_some() && store.remove_name("image").unwrap());
    drop(store);
    let store = Store::open(directory.path()).unwrap();
    store.prune(PruneOptions::default()).unwrap();
    assert_eq!(store.beside("tag.sig").unwrap(), None);
    assert_eq!(files_below(directory.path()), [] as [PathBuf; 0]);
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
    let mut child = this_test("sessions::child_that_is_killed_while_it_ingests")
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
fn a_document_of_any_permitted_size_is_followed_and_one_that_cannot_be_ends_a_collection() {
    let (directory, store) = new_store();
    let layer = layer_of(&store, &[file("a", "x")]);
    let padding = "x".repeat(DOCUMENT_MAX_BYTES as usize - (1 << 20));
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": manifest_type, "layers": [layer.descriptor],
        "config": descriptor(b"{}"), "annotations": {"padding": padding}});
    let large = store.put_blob_bytes(MediaType::ImageManifest, manifest.to_string().as_bytes()).expect("stored");
    store.set_name("large", &large).expect("named");
    drop(store);
    let store = Store::open(directory.path()).expect("a store");
    store.prune(PruneOptions::default()).expect("pruned");
    store.open_layer(&layer.diff_id).expect("it is still there");
    assert!(store.has_blob(layer.descriptor.digest()).expect("looked for"));

    // Whatever holds it up: a name, or an index that has one.
    let blob = |of: &Descriptor| directory.path().join("blobs/sha256").join(of.digest().digest());
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [large]});
    let index = store.put_blob_bytes(MediaType::ImageIndex, index.to_string().as_bytes()).expect("stored");
    store.set_name("large", &index).expect("named");
    drop(store);
    let whole = fs::read(blob(&large)).expect("readable");
    for damaged in [&whole[..whole.len() / 2], &vec![b' '; DOCUMENT_MAX_BYTES as usize + 1]] {
        fs::set_permissions(blob(&large), fs::Permissions::from_mode(0o644)).expect("changed");
        fs::write(blob(&large), damaged).expect("written");
        let store = Store::open(directory.path()).expect("a store");
        let error = store.prune(PruneOptions::default()).unwrap_err();
        assert!(format!("{error}").contains(large.digest().digest()), "{error}");
        store.open_layer(&layer.diff_id).expect("it is still there");
    }
}

#[test]
fn a_name_takes_the_place_of_its_other_spellings_in_one_change() {
    let (_directory, store) = new_store();
    let layer = layer_of(&store, &[file("a", "x")]);
    let (one, two) = (put_image(&store, "app:latest", &[]), put_image(&store, "other", &[layer]));
    assert_ne!(one, two);
    store.set_name_over("app", &two, |other| other == "app:latest").expect("named");
    assert_eq!(
        store.images().expect("listed").iter().map(|image| image.name.as_str()).collect::<Vec<_>>(),
        ["app", "other"]
    );
    assert_eq!(store.resolve("app").expect("found"), Some(two));
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
