//! Where files of COPY, ADD and WORKDIR land and whose they are: what the tests of other builders found here. What is
//! right is what BuildKit's `solver/llbsolver/file` and `fsutil/copy` do.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use fixtures::{names, run};

use crate::support::{Bench, SHELL};

/// Packs members into a tar of the context with Python, which writes any name.
fn archive(bench: &Bench, name: &str, members: &str) {
    let path = bench.path("context").join(name);
    let program = "import io, sys, tarfile\nwith tarfile.open(sys.argv[1], 'w') as t:\n  for name, link, data in eval(sys.argv[2]):\n    m = tarfile.TarInfo(name); m.linkname = link; m.size = len(data)\n    m.type = tarfile.SYMTYPE if link else tarfile.REGTYPE\n    t.addfile(m, io.BytesIO(data))\n";
    run("python3", &["-c", program, path.to_str().expect("text"), members]);
}

#[test]
fn links_of_an_archive_lead_nowhere_but_below_the_destination() {
    let bench = Bench::new();
    archive(&bench, "a.tar", "[('up', '..', b''), ('up/etc/f', '', b'1'), ('abs', '/etc', b''), ('abs/g', '', b'2')]");
    bench.dockerfile("FROM scratch\nADD a.tar /sub\n");
    let tree = bench.tree(&[]);
    assert_eq!(names(&tree), ["sub"]);
    assert_eq!(names(&tree.join("sub/etc")), ["f", "g"]);
    // Nor do those that were there before.
    bench.dockerfile("FROM scratch\nADD a.tar /sub\nCOPY a.tar /etc/\nADD b.tar /sub\n");
    archive(&bench, "b.tar", "[('abs/h', '', b'3')]");
    assert_eq!(names(&bench.tree(&[]).join("sub/etc")), ["f", "g", "h"]);
    assert_eq!(names(&bench.tree(&[]).join("etc")), ["a.tar"]);
}

#[test]
fn a_link_to_nothing_in_an_archive_is_no_directory() {
    let bench = Bench::new();
    bench.dockerfile("FROM scratch\nCOPY Dockerfile /etc/\nADD a.tar /sub/\n");
    for way in ["('l', '/etc', b''), ('l/f', '', b'1')", "('l', '../etc', b''), ('l/d/f', '', b'1')"] {
        archive(&bench, "a.tar", &format!("[{way}]"));
        let said = bench.build(&[]).fails(1);
        assert!(said.contains("the link /sub/l leads to nothing in the destination"), "{said}");
        assert!(said.contains("Dockerfile:3"), "{said}");
        // With the directory there it is one.
        archive(&bench, "a.tar", &format!("[('etc/x', '', b''), {way}]"));
        assert!(names(&bench.tree(&[]).join("sub/etc")).len() == 2);
    }
}

#[test]
fn a_member_without_a_name_is_the_destination_and_passed_over() {
    let bench = Bench::new();
    archive(&bench, "a.tar", "[('', '', b''), ('f', '', b'1'), ('./', '', b'')]");
    bench.dockerfile("FROM scratch\nADD a.tar /\n");
    assert_eq!(names(&bench.tree(&[])), ["f"]);
}

#[test]
fn two_dots_in_a_destination_are_taken_away_before_links_are_followed() {
    let bench = Bench::new();
    bench.file("f", "1").file("links/keep", "");
    std::os::unix::fs::symlink("/deep/target", bench.path("context/links/link")).expect("a link");
    bench.dockerfile("FROM scratch\nCOPY links /\nCOPY f /link/../one/\nWORKDIR /w\nCOPY f ../link/../two\n");
    let tree = bench.tree(&[]);
    assert_eq!(names(&tree), ["keep", "link", "one", "two", "w"]);
    assert!(tree.join("two").is_file() && tree.join("one/f").is_file());
}

#[test]
fn a_file_copied_into_a_directory_replaces_a_link_of_its_name() {
    let bench = Bench::new();
    bench.file("f", "new").file("links/keep", "");
    std::os::unix::fs::symlink("/victim", bench.path("context/links/f")).expect("a link");
    let below = "FROM scratch\nCOPY links /d\nCOPY <<E /victim\nold\nE\n";
    for copy in ["COPY f /d/", "COPY f /d", "COPY <<f /d/\nnew\nf"] {
        bench.dockerfile(&format!("{below}{copy}\n"));
        let tree = bench.tree(&[]);
        assert!(tree.join("d/f").symlink_metadata().expect("there").is_file(), "{copy}");
        assert_eq!(fs::read_to_string(tree.join("victim")).expect("there"), "old\n", "{copy}");
    }
    // A link that is itself the destination is written through.
    bench.dockerfile(&format!("{below}COPY f /d/f\n"));
    assert_eq!(fs::read_to_string(bench.tree(&[]).join("victim")).expect("there"), "new");
}

#[test]
fn two_stars_are_many_directories_only_under_parents() {
    let bench = Bench::new();
    bench.file("a.txt", "").file("x/b.txt", "").file("x/y/c.txt", "").file("z/d.md", "");
    let found = |line: &str| {
        bench.dockerfile(&format!("FROM scratch\n{line}\n"));
        names(&bench.tree(&[]).join("o"))
    };
    assert_eq!(found("COPY **/*.txt /o/"), ["b.txt"]);
    assert_eq!(found("COPY **/**/*.txt /o/"), ["c.txt"]);
    assert_eq!(found("COPY x/** /o/"), ["b.txt", "c.txt"]);
    assert_eq!(found("COPY --parents **/*.txt /o/"), ["a.txt", "x"]);
    assert_eq!(found("COPY --parents **/./*.txt /o/"), ["a.txt", "b.txt"]);
    assert_eq!(found("COPY --parents */./*.txt /o/"), ["b.txt"]);
    assert_eq!(found("COPY --parents x/./**/*.txt /o/"), ["b.txt", "y"]);
}

#[test]
fn links_under_parents_are_copied_and_never_followed() {
    let bench = Bench::new();
    bench.file("d/f", "1");
    for (name, target) in [("dangling", "nowhere"), ("to", "d"), ("d/g", "f")] {
        std::os::unix::fs::symlink(target, bench.path("context").join(name)).expect("a link");
    }
    bench.dockerfile("FROM scratch\nCOPY --parents dangling to d/g /o/\nCOPY --parents to/./f /p/\n");
    let tree = bench.tree(&[]);
    for (name, target) in [("o/dangling", "nowhere"), ("o/to", "d"), ("o/d/g", "f")] {
        assert_eq!(fs::read_link(tree.join(name)).expect("a link").to_str(), Some(target));
    }
    assert_eq!(names(&tree.join("p")), ["f"]);
    bench.dockerfile("FROM scratch\nCOPY --parents to/f /o/\n");
    assert!(bench.build(&[]).fails(1).contains("not found"));
}

#[test]
fn a_mode_makes_a_link_an_ordinary_copy() {
    let bench = Bench::new();
    bench.file("f", "1");
    let below =
        "FROM scratch AS base\nCOPY --chmod=1777 <<E /tmp/old\nE\nCOPY <<E /etc/passwd\nme:x:7:8::/:\nE\nFROM base\n";
    bench.dockerfile(&format!("{below}COPY --link --chmod=600 --chown=me f /tmp/f\n"));
    let tree = bench.tree(&[]);
    let status = fs::metadata(tree.join("tmp/f")).expect("there");
    assert_eq!((status.mode() & 0o7777, status.uid(), status.gid()), (0o600, 7, 8));
    assert_eq!(fs::metadata(tree.join("tmp")).expect("there").mode() & 0o777, 0o777);
    // Without a mode there is nobody to be looked up, but root is root.
    bench.dockerfile(&format!("{below}COPY --link --chown=me f /tmp/f\n"));
    bench.build(&[]).fails(1);
    bench.dockerfile(&format!("{below}COPY --link --chown=root:root f /tmp/f\n"));
    bench.build(&[]).succeeds();
}

#[test]
fn a_flag_whose_value_expands_to_nothing_is_none() {
    let bench = Bench::new();
    bench.file("f", "1");
    bench.dockerfile("FROM scratch\nARG NONE\nCOPY --chmod=$NONE --chown=$NONE f /f\nADD --checksum=$NONE f /g\n");
    let tree = bench.tree(&[]);
    assert_eq!(names(&tree), ["f", "g"]);
    assert_eq!(fs::metadata(tree.join("f")).expect("there").mode() & 0o777, 0o644);
}

#[test]
fn a_working_directory_belongs_to_its_user_as_with_chown() {
    let bench = Bench::with_busybox();
    let accounts = "RUN mkdir -p /etc; echo me:x:7:8::/: > /etc/passwd; echo us:x:9: > /etc/group\n";
    let users = ["7", "4242", "me", "nobody", "nobody:us", "me:nothere", "root"];
    let mut text = format!("{SHELL}{accounts}");
    for user in users {
        text += &format!("USER {user}\nWORKDIR /made/{}\n", user.replace(':', "-"));
    }
    bench.dockerfile(&text);
    let tree = bench.tree(&[]);
    let owner = |user: &str| {
        let status = fs::metadata(tree.join("made").join(user.replace(':', "-"))).expect("there");
        (status.uid(), status.gid())
    };
    let expected = [(7, 7), (4242, 4242), (7, 8), (0, 0), (0, 9), (7, 8), (0, 0)];
    assert_eq!(users.map(owner), expected);
}

#[test]
fn here_documents_come_after_all_other_sources() {
    let bench = Bench::new();
    bench.file("f", "file");
    bench.dockerfile("FROM scratch\nCOPY <<E f /one\ndocument\nE\nCOPY <<f f /d/\ndocument\nf\n");
    let tree = bench.tree(&[]);
    for name in ["one", "d/f"] {
        assert_eq!(fs::read_to_string(tree.join(name)).expect("there"), "document\n", "{name}");
    }
}

#[test]
fn an_absolute_working_directory_stays_as_it_is_written() {
    let bench = Bench::with_busybox();
    for (written, kept, real) in [
        ("WORKDIR /a/", "/a/", "/a"),
        ("WORKDIR /a//b/../c", "/a//b/../c", "/a/c"),
        ("WORKDIR /a/\nWORKDIR b/../c/", "/a/c", "/a/c"),
        ("WORKDIR a\nWORKDIR ..", "/", "/"),
    ] {
        bench.dockerfile(&format!("{SHELL}{written}\nRUN pwd > pwd\nCOPY busybox .\n"));
        let config = bench.build(&["-t", "app"]).config();
        assert_eq!(config["config"]["WorkingDir"], kept);
        let tree = bench.tree(&[]);
        let there = tree.join(real.trim_start_matches('/'));
        assert_eq!(fs::read_to_string(there.join("pwd")).expect("there").trim_end(), real);
        assert!(there.join("busybox").is_file());
    }
}

#[test]
fn only_the_owner_of_a_copy_is_for_archives_and_not_for_directories_that_they_leave_out() {
    let bench = Bench::new();
    archive(&bench, "a.tar", "[('dir/f', '', b'1')]");
    bench.dockerfile("FROM scratch\nADD --chown=7:8 --chmod=700 a.tar /new/\n");
    let tree = bench.tree(&[]);
    let facts = |name: &str| {
        let status = fs::metadata(tree.join(name)).expect("there");
        (status.mode() & 0o7777, status.uid(), status.gid())
    };
    assert_eq!(facts("new"), (0o755, 7, 8));
    assert_eq!(facts("new/dir"), (0o755, 0, 0));
    assert_eq!(facts("new/dir/f"), (0o644, 7, 8));
}

#[test]
fn directories_on_the_way_are_copied_where_they_are_new_and_take_a_mode_where_they_are_there() {
    let bench = Bench::with_busybox();
    let source = "RUN mkdir -p /s/a/b/c && touch /s/a/b/c/f && chown -R 3:4 /s && chmod 700 /s/a && chmod 710 /s/a/b\n";
    let facts = |copy: &str| {
        bench.dockerfile(&format!(
            "{SHELL}{source}RUN mkdir -p /d/a && chown 5:6 /d/a\nFROM scratch\nCOPY --from=shell /d /d\n{copy}\n"
        ));
        let tree = bench.tree(&[]);
        ["d/a", "d/a/b", "d/a/b/c"].map(|name| {
            let status = fs::metadata(tree.join(name)).expect("there");
            (status.mode() & 0o7777, status.uid(), status.gid())
        })
    };
    let expected = [(0o700, 5, 6), (0o710, 3, 4), (0o755, 3, 4)];
    assert_eq!(facts("COPY --from=shell --parents /s/./a/b/c/f /d/"), expected);
    assert_eq!(facts("COPY --from=shell --exclude=a --exclude=!a/b/c /s /d"), expected);
    let expected = [(0o700, 5, 6), (0o711, 7, 7), (0o711, 7, 7)];
    assert_eq!(facts("COPY --from=shell --parents --chmod=711 --chown=7 /s/./a/b/c/f /d/"), expected);
}

#[test]
fn a_wildcard_may_match_nothing_but_not_in_a_directory_that_is_missing() {
    let bench = Bench::new();
    bench.file("d/f", "");
    for (line, is_good) in [
        ("COPY d/*.none no*/x* /o/", true),
        ("COPY d/f/* /o/", true),
        ("COPY nowhere/* /o/", false),
        ("COPY d/nowhere/*/x /o/", false),
        ("COPY --parents nowhere/* /o/", true),
        ("COPY --parents nowhere/*/./x /o/", false),
    ] {
        bench.dockerfile(&format!("FROM scratch\n{line}\n"));
        let done = bench.build(&[]);
        assert_eq!(done.code, Some(if is_good { 0 } else { 1 }), "{line}: {}", done.stderr);
    }
}

#[test]
fn what_is_left_out_under_parents_is_seen_from_the_pivot_and_may_be_what_was_named() {
    let bench = Bench::new();
    bench.file("d/x.txt", "").file("d/s/y.md", "").file("d/s/z/q.txt", "");
    let found = |line: &str| {
        bench.dockerfile(&format!("FROM scratch\n{line}\n"));
        bench.tree(&[])
    };
    assert_eq!(names(&found("COPY --parents --exclude=d/s d /o/").join("o/d")), ["x.txt"]);
    assert_eq!(names(&found("COPY --parents --exclude=s d /o/").join("o/d")), ["s", "x.txt"]);
    assert_eq!(names(&found("COPY --parents --exclude=s/*.md d/./s /o/").join("o/s")), ["z"]);
    assert_eq!(names(&found("COPY --parents --exclude=d --exclude=!d/s d /o/").join("o/d")), ["s"]);
    assert_eq!(names(&found("COPY --parents --exclude=**/y.md d/*/y.md /o/").join("o")), [""; 0]);
    for line in ["--exclude=d/x.txt d/x.txt", "--exclude=** d", ".", "d/./", "d/./nowhere", "nowhere/./x"] {
        bench.dockerfile(&format!("FROM scratch\nCOPY --parents {line} /o/\n"));
        assert!(bench.build(&[]).fails(1).contains("not found in the build context"), "{line}");
    }
}

#[test]
fn a_wildcard_that_matches_a_link_to_nowhere_fails_as_its_name_would() {
    let bench = Bench::new();
    bench.file("d/f", "");
    std::os::unix::fs::symlink("nowhere", bench.path("context/d/link")).expect("a link");
    for line in ["COPY d/link /o/", "COPY d/l* /o/", "COPY d/* /o/"] {
        bench.dockerfile(&format!("FROM scratch\n{line}\n"));
        assert!(bench.build(&[]).fails(1).contains("\"/d/link\": not found"), "{line}");
    }
    bench.dockerfile("FROM scratch\nCOPY d* /o/\n");
    assert_eq!(names(&bench.tree(&[]).join("o")), ["f", "link"]);
}

#[test]
fn links_between_files_last_within_one_copy_of_parents() {
    let bench = Bench::with_busybox();
    bench.dockerfile(&format!("{SHELL}RUN touch /h1 && ln h1 /h2\nFROM scratch\nCOPY --from=shell --parents /h* /\n"));
    assert_eq!(fs::metadata(bench.tree(&[]).join("h1")).expect("there").nlink(), 2);
}

#[test]
fn the_last_member_that_names_a_file_says_whose_it_is_and_pax_records_when_it_was_changed() {
    let bench = Bench::new();
    let program = "import sys, tarfile, io\nwith tarfile.open(sys.argv[1], 'w', format=tarfile.PAX_FORMAT) as t:\n  m = tarfile.TarInfo('a'); m.mtime = 1600000000.75; t.addfile(m)\n  m = tarfile.TarInfo('b'); m.type = tarfile.LNKTYPE; m.linkname = 'a'; m.mode = 0o751; m.uid = 9; m.mtime = 1500000000.9; t.addfile(m)\n  m = tarfile.TarInfo('c'); m.mtime = 1600000000.75; t.addfile(m)\n";
    run("python3", &["-c", program, bench.path("context/a.tar").to_str().expect("text")]);
    bench.dockerfile("FROM scratch\nADD a.tar /\n");
    let tree = bench.tree(&["--source-date-epoch", "none"]);
    let facts = |name: &str| {
        let status = fs::metadata(tree.join(name)).expect("there");
        (status.mode() & 0o7777, status.uid(), status.mtime())
    };
    assert_eq!((facts("a"), facts("b")), ((0o751, 9, 1_500_000_000), (0o751, 9, 1_500_000_000)));
    assert_eq!(facts("c").2, 1_600_000_000);
}

#[test]
fn names_are_unknown_where_no_layer_is_yet() {
    let bench = Bench::new();
    bench.file("f", "1");
    for line in ["COPY --chown=app f /", "USER app\nWORKDIR /x"] {
        bench.dockerfile(&format!("FROM scratch\n{line}\n"));
        assert!(bench.build(&[]).fails(1).contains("unable to find user app"), "{line}");
        bench.dockerfile(&format!("FROM scratch\nCOPY f /g\n{line}\n"));
        bench.build(&[]).succeeds();
    }
}
