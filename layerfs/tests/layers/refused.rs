//! Blobs that lie, are damaged, expand without end or do not come.

use super::*;

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
