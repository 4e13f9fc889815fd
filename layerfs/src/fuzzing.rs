//! What a fuzzer feeds: one function a reader of bytes that strangers or a failing disk send. The fuzzer's programs lie
//! in `fuzz/`; without a fuzzer the tests here drive the same functions with bytes that are almost right.
//!
//! Invariant: a function panics where the reader breaks its promise, and else says whether it understood the bytes.

use crate::digest::Digester;
use crate::index::{IndexFile, Subject, TreeIndex, index_tar, merge};
use crate::tar::{EntryPath, Mark, TarReader};
use crate::tree::{FileKind, Tree, TreeInode};

/// Names that are looked at in one tree: directories that lie in several places make a walk exponential.
const NAMES_MAX: usize = 10_000;

/// A tar from a registry, through both indexes: every name is where it is listed and leads to what it says.
pub fn tar(bytes: &[u8]) -> bool {
    let Ok(builder) = index_tar(&mut TarReader::new(bytes)) else { return false };
    let index = builder.finish(Digester::new().diff_id()).expect("small").concat();
    let layer = IndexFile::from_bytes(index, Subject::Layer).expect("made by us");
    let merged = merge(&[&layer, &layer]).expect("made by us").concat();
    let tree = TreeIndex::new(IndexFile::from_bytes(merged, Subject::Tree).expect("made by us"), Vec::new(), None);
    walk(&tree, true);
    true
}

/// The index of a layer, of any bytes.
pub fn layer_index(bytes: &[u8]) -> bool {
    let Ok(layer) = IndexFile::from_bytes(bytes.to_vec(), Subject::Layer) else { return false };
    let Ok(merged) = merge(&[&layer, &layer]) else { return true };
    let tree = IndexFile::from_bytes(merged.concat(), Subject::Tree).expect("made by us");
    walk(&TreeIndex::new(tree, Vec::new(), None), false);
    true
}

/// The index of a tree, of any bytes.
pub fn tree_index(bytes: &[u8]) -> bool {
    let Ok(file) = IndexFile::from_bytes(bytes.to_vec(), Subject::Tree) else { return false };
    walk(&TreeIndex::new(file, Vec::new(), None), false);
    true
}

/// A name in a tar, which may be a deletion mark: what comes out stays below the root, and is no mark itself.
pub fn mark(bytes: &[u8]) -> bool {
    let Ok(path) = EntryPath::parse(bytes) else { return false };
    let Ok(mark) = Mark::of(path) else { return false };
    let (Mark::Plain(path) | Mark::Whiteout(path) | Mark::Opaque(path)) = mark else { return true };
    assert!(!path.as_bytes().starts_with(b"/"));
    assert!(path.components().all(|name| !matches!(name, b"" | b"." | b"..") && name.len() <= 255));
    assert!(path.components().all(|name| !name.contains(&0)));
    assert_eq!(EntryPath::parse(path.as_bytes()).expect("it is one"), path);
    true
}

/// Looks at everything in a tree that can be asked for; `is_sound` where it must all be there.
fn walk(tree: &TreeIndex, is_sound: bool) {
    let (mut pending, mut seen) = (vec![TreeInode::ROOT], 0);
    while let Some(inode) = pending.pop() {
        let _ = (tree.read_link(inode), tree.xattrs(inode), tree.data_extents(inode));
        let _ = (tree.attributes(inode), tree.read_at(inode, 5, &mut [0; 70]));
        let entries = tree.entries(inode, 0, NAMES_MAX);
        assert!(
            !is_sound || tree.attributes(inode).is_ok_and(|found| found.kind != FileKind::Directory) || entries.is_ok()
        );
        for entry in entries.unwrap_or_default() {
            let found = tree.lookup(inode, &entry.name);
            assert!(!is_sound || found.is_ok_and(|found| found == Some(entry.inode)));
            pending.push(entry.inode);
            seen += 1;
            if seen > NAMES_MAX {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A layer of everything, as GNU tar would write it.
    fn seed() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |kind: tar::EntryType, name: &str, target: &str, data: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(0o644);
            header.set_size(data.len() as u64);
            if target.is_empty() {
                builder.append_data(&mut header, name, data).expect("memory");
            } else {
                builder.append_link(&mut header, name, target).expect("memory");
            }
        };
        add(tar::EntryType::Directory, "a/b/", "", b"");
        add(tar::EntryType::Regular, "a/b/c", "", b"some content");
        add(tar::EntryType::Link, "a/again", "a/b/c", b"");
        add(tar::EntryType::Symlink, "link", "a/b", b"");
        add(tar::EntryType::Regular, "link/through", "", b"x");
        add(tar::EntryType::Regular, "a/.wh.gone", "", b"");
        add(tar::EntryType::Regular, "a/b/.wh..wh..opq", "", b"");
        add(tar::EntryType::Fifo, &format!("long/{}", "n".repeat(150)), "", b"");
        let mut extend = |records: &[(&str, &str)], data: &[u8]| {
            let records = records.iter().map(|(key, value)| (*key, value.as_bytes()));
            builder.append_pax_extensions(records).expect("memory");
            let mut header = tar::Header::new_ustar();
            header.set_size(data.len() as u64);
            builder.append_data(&mut header, "extended", data).expect("memory");
        };
        extend(&[("path", "a/longer"), ("mtime", "-1.5"), ("uid", "70000"), ("SCHILY.xattr.user.a", "value")], b"x");
        let sparse = [("GNU.sparse.major", "0"), ("GNU.sparse.minor", "1"), ("GNU.sparse.size", "900")];
        extend(&[sparse.as_slice(), &[("GNU.sparse.map", "0,2,100,3")]].concat(), b"hello");
        let sparse = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "900")];
        let mut data = b"2\n0\n2\n100\n3\n".to_vec();
        data.resize(512, 0);
        data.extend(b"hello");
        extend(&[sparse.as_slice(), &[("GNU.sparse.name", "sparse")]].concat(), &data);
        builder.into_inner().expect("memory")
    }

    /// The same sequence in each run.
    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as usize % limit.max(1)
        }
    }

    /// Drives a target with bytes in which a few places are changed; that enough was understood shows that the changes
    /// go deep. `repair` makes right again what every change would break.
    fn drive(target: fn(&[u8]) -> bool, seed: &[u8], repair: impl Fn(&mut [u8])) {
        assert!(target(seed));
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let understood = (0..5_000).filter(|_| {
            let mut bytes = seed.to_vec();
            for _ in 0..=random.below(4) {
                let at = random.below(bytes.len());
                match random.below(4) {
                    0 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff, b'/', b'.', b'7'][random.below(8)],
                    1 => bytes[at] ^= 1 << random.below(8),
                    2 => bytes[at] = bytes[at].wrapping_add(1),
                    _ => {
                        let from = random.below(bytes.len());
                        let length = random.below(16).min(bytes.len() - from.max(at));
                        bytes.copy_within(from..from + length, at);
                    }
                }
            }
            repair(&mut bytes);
            target(&bytes)
        });
        let count = understood.count();
        assert!(count > 50, "only {count}");
        assert!(!target(b"\0"));
    }

    /// Makes the sums of all headers right, so that readers look further.
    fn repair_sums(bytes: &mut [u8]) {
        for header in bytes.as_chunks_mut::<512>().0 {
            if &header[257..262] == b"ustar" {
                header[148..156].fill(b' ');
                let sum = header.iter().map(|&byte| u32::from(byte)).sum::<u32>();
                header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
    }

    /// Names that lead out, through links, to the root, to marks and nowhere.
    const NAMES: &[&str] = &[
        "",
        "/",
        ".",
        "..",
        "../x",
        "a",
        "b",
        "a/b",
        "a/../b",
        "/a/b/",
        "a/b/../../..",
        "link/x",
        "up/x",
        "self/x",
        "link/..",
        ".wh.a",
        ".wh.",
        ".wh..",
        ".wh...",
        "a/.wh.b",
        ".wh.a/b",
        "link/.wh.b",
        ".wh..wh..opq",
        "a/.wh..wh..opq",
        "link/.wh..wh..opq",
        "a/.wh..wh..opq/b",
        ".wh..wh.plnk",
        "link",
        "up",
        "self",
        "a\nb",
        "\u{7f}/\u{1}",
    ];

    /// What extended headers may say, and mostly should not.
    const RECORDS: &[(&str, &str)] = &[
        ("path", "../../x"),
        ("path", "a"),
        ("path", "link/deep/x"),
        ("path", "nul\0"),
        ("linkpath", "a"),
        ("linkpath", ".."),
        ("size", "3"),
        ("size", "18446744073709551615"),
        ("size", "-1"),
        ("mtime", "-9223372036854775808.999999999"),
        ("mtime", "9223372036854775807"),
        ("uid", "4294967294"),
        ("gid", "-1"),
        ("SCHILY.xattr.trusted.overlay.opaque", "y"),
        ("SCHILY.xattr.security.capability", "x"),
        ("SCHILY.xattr.", ""),
        ("LIBARCHIVE.xattr.user.%00", "AA=="),
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.realsize", "9223372036854775807"),
        ("GNU.sparse.size", "100"),
        ("GNU.sparse.map", "0,3"),
        ("GNU.sparse.map", "50,1,0,2"),
        ("GNU.sparse.name", "../x"),
        ("GNU.sparse.offset", "0"),
        ("GNU.sparse.numbytes", "3"),
    ];

    /// A header, its content, and what fills its last block.
    fn block(kind: u8, name: &str, target: &str, data: &[u8]) -> Vec<u8> {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_size(data.len() as u64);
        let bytes = header.as_mut_bytes();
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        bytes[157..157 + target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        let mut block = [header.as_bytes().as_slice(), data].concat();
        block.resize(block.len().next_multiple_of(512), 0);
        block
    }

    #[test]
    fn layers_that_lie_give_a_sound_tree_or_an_error() {
        let mut random = Random(7);
        let mut understood = 0;
        for _ in 0..20_000 {
            let mut layer = Vec::new();
            for link in [("link", "a"), ("up", "../../.."), ("self", "self/self")] {
                layer.extend(block(b'2', link.0, link.1, b""));
            }
            for _ in 0..random.below(7) {
                if random.below(4) == 0 {
                    let mut records = String::new();
                    for _ in 0..=random.below(4) {
                        let (key, value) = RECORDS[random.below(RECORDS.len())];
                        let length = key.len() + value.len() + 5; // two digits, the space, `=` and the newline
                        records += &format!("{length} {key}={value}\n");
                    }
                    layer.extend(block([b'x', b'x', b'x', b'g'][random.below(4)], "x", "", records.as_bytes()));
                }
                let kind = b"00112345566SL"[random.below(13)];
                let data: &[u8] = if b"0SL".contains(&kind) { b"abc" } else { b"" };
                layer.extend(block(kind, NAMES[random.below(NAMES.len())], NAMES[random.below(NAMES.len())], data));
            }
            understood += usize::from(tar(&layer));
        }
        assert!(understood > 2_000, "only {understood}");
    }

    fn seed_index() -> Vec<u8> {
        let builder = index_tar(&mut TarReader::new(&seed()[..])).expect("right");
        builder.finish(Digester::new().diff_id()).expect("small").concat()
    }

    #[test]
    fn tars_that_are_almost_right_give_a_sound_tree_or_an_error() {
        drive(tar, &seed(), repair_sums);
    }

    #[test]
    fn layer_indexes_that_are_almost_right_give_answers_or_errors() {
        drive(layer_index, &seed_index(), |_| {});
    }

    #[test]
    fn tree_indexes_that_are_almost_right_give_answers_or_errors() {
        let layer = IndexFile::from_bytes(seed_index(), Subject::Layer).expect("right");
        drive(tree_index, &merge(&[&layer]).expect("right").concat(), |_| {});
    }

    #[test]
    fn names_that_are_almost_marks_stay_below_the_root() {
        for seed in [&b"a/.wh.b"[..], b"./a/../.wh..wh..opq", b"/x//y/.wh.z/.."] {
            let _ = mark(seed);
        }
        drive(mark, b"./usr/lib/.wh.some.name", |_| {});
    }
}
