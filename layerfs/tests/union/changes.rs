//! The changes that a mount leaves behind, as facts and against the tree that they make of the lower one.

use layerfs::{Change, ChangeContent as Content, ChangeKind, Changes, MarkNamespace, Tree, TreeInode, changes};

use crate::bench::{Bench, open_directory, shell};

fn changes_after(bench: &mut Bench, script: &str) -> Changes {
    let (done, output) = shell(&bench.path("ours"), &format!("set -e; {script}"));
    assert!(done, "{output}");
    bench.unmount_ours();
    let (upper, work) = (open_directory(&bench.path("upper")), open_directory(&bench.path("work")));
    changes(&bench.tree, upper, &work, MarkNamespace::Trusted).expect("compares")
}

/// The changes of a script over a lower directory, one line each.
fn lines(lower: &str, script: &str) -> Vec<String> {
    let mut bench = Bench::new(lower);
    changes_after(&mut bench, script).entries().iter().map(line).collect()
}

fn line(change: &Change) -> String {
    let path = change.path.escape_ascii();
    match &change.kind {
        ChangeKind::Whiteout => format!("- {path}"),
        ChangeKind::File { size_bytes, .. } => format!("f {path} {size_bytes}"),
        ChangeKind::HardLink(to) => format!("l {path} {}", to.escape_ascii()),
        ChangeKind::Directory => format!("d {path}"),
        ChangeKind::Symlink(to) => format!("s {path} {}", to.escape_ascii()),
        other => format!("{other:?} {path}"),
    }
}

#[test]
fn touched_but_equal_files_add_nothing() {
    let same = "touch a d/x d; chmod 600 a; chmod 644 a; cp -p d/x t; rm d/x; mv t d/x; echo a > a; rm -r e; mkdir e; ln -sf x d/l";
    assert_eq!(lines("echo a > a; mkdir d e; echo x > d/x; ln -s x d/l; chmod 644 a", same), [""; 0]);
}

#[test]
fn every_change_is_listed_once_in_the_order_of_paths() {
    let found = lines(
        "echo a > a; mkdir -p d/e f; echo x > d/x; echo y > d/y; echo z > f/z",
        "echo b > b; rm d/x; chmod 700 d/e; mkfifo p; mkdir n; echo q > n/q; ln -s a n/s; echo more >> d/y; rm -r f; touch f",
    );
    let wanted = ["f b 2", "d d/e", "- d/x", "f d/y 7", "f f 0", "d n", "f n/q 2", "s n/s a", "Fifo p"];
    assert_eq!(found, wanted);
}

#[test]
fn a_changed_root_directory_is_listed_with_an_empty_path() {
    assert_eq!(lines("chmod 755 .", "chmod 700 .; chmod 755 ."), [""; 0]);
    assert_eq!(lines("chmod 755 .", "chmod 1777 .; touch a"), ["d ", "f a 0"]);
}

#[test]
fn opaque_directory_becomes_whiteouts_of_what_it_hides() {
    let found =
        lines("mkdir -p d/e; echo x > d/x; echo y > d/y; touch d/e/f", "rm -r d; mkdir d; echo x > d/x; touch d/new");
    assert_eq!(found, ["- d/e", "f d/new 0", "- d/y"]);
}

#[test]
fn renamed_directory_is_listed_whole() {
    let found = lines("mkdir -p d/e; echo x > d/x; touch d/e/f; ln d/x d/y", "mv d m; echo n > m/n; rm m/e/f");
    assert_eq!(found, ["- d", "d m", "d m/e", "f m/n 2", "f m/x 2", "l m/y m/x"]);
}

#[test]
fn all_names_of_a_changed_hard_link_are_listed() {
    let lower = "echo x > a; mkdir d; ln a d/b; ln a c; ln a e";
    assert_eq!(lines(lower, "echo more >> d/b; rm e"), ["f a 7", "l c a", "l d/b a", "- e"]);
    assert_eq!(lines(lower, "chmod 600 a; chmod 644 a"), [""; 0]);
    assert_eq!(lines("echo x > a", "ln a z"), ["f a 2", "l z a"]);
}

#[test]
fn files_of_which_only_the_metadata_changed_have_their_content_in_the_tree() {
    let mut bench = Bench::new("echo aaa > a; echo bbb > b; echo ccc > c; ln c d; mkdir m; echo e > m/e");
    let script = "chmod 600 a; chmod 600 b; chmod 644 b; chown 5:5 d; chmod 600 m/e; echo more >> m/e; mv a a2";
    let changes = changes_after(&mut bench, script);
    let lines: Vec<_> = changes.entries().iter().map(line).collect();
    assert_eq!(lines, ["- a", "f a2 4", "f c 4", "l d c", "f m/e 7"]);
    let contents = changes.entries().iter().filter_map(|change| match &change.kind {
        ChangeKind::File { content, .. } => Some(content.clone()),
        _ => None,
    });
    let c = Tree::lookup(&bench.tree, TreeInode::ROOT, b"c").expect("looks up").expect("is there");
    assert_eq!(contents.collect::<Vec<_>>(), [Content::Upper, Content::Tree(c), Content::Upper]);
}

#[test]
fn sockets_are_left_out() {
    let socket = "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"s\")'";
    assert_eq!(lines("touch a", &format!("{socket}; rm a; ln s a; touch t")), ["- a", "f t 0"]);
}

#[test]
fn names_that_mean_whiteouts_are_an_error() {
    let mut bench = Bench::new("true");
    let (done, output) = shell(&bench.path("ours"), "touch .wh.x");
    assert!(done, "{output}");
    bench.unmount_ours();
    let (upper, work) = (open_directory(&bench.path("upper")), open_directory(&bench.path("work")));
    let error = changes(&bench.tree, upper, &work, MarkNamespace::Trusted).expect_err("it cannot be stored");
    assert!(error.to_string().contains("/.wh.x"), "{error}");
}

#[test]
fn content_can_be_opened_wherever_it_is() {
    let mut bench = Bench::new("echo old > a; ln a b; mkdir d; echo tree > d/f");
    let changes = changes_after(&mut bench, "mkdir n; echo upper > n/f; echo more >> b; mv d m");
    let mut seen = Vec::new();
    for change in changes.entries() {
        let ChangeKind::File { content, .. } = &change.kind else { continue };
        let text = match (changes.open(change).expect("opens"), content) {
            (Some(mut file), Content::Upper | Content::Index(_)) => std::io::read_to_string(&mut file).expect("reads"),
            (None, Content::Tree(_)) => "in the tree".into(),
            other => panic!("{other:?}"),
        };
        seen.push(format!("{} {text}", change.path.escape_ascii()));
    }
    assert_eq!(seen, ["a old\nmore\n", "m/f in the tree", "n/f upper\n"]);
}
