//! What BuildKit's own frontend tests pin, where the builder once did something else.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;

use fixtures::{names, read};

use crate::support::{Bench, SHELL};

#[test]
fn a_directory_made_for_a_copy_has_nothing_of_its_source() {
    let bench = Bench::with_busybox();
    bench.file("dir/sub/file", "x").dockerfile(&format!(
        "{SHELL}RUN mkdir -p /dir/sub && chown 100:200 /dir && chmod 700 /dir && chown 101:201 /dir/sub\n\
         FROM scratch\nCOPY --from=shell /dir /new\nCOPY --chown=3:4 --from=shell /dir /owned\nCOPY dir /context/deep\n"
    ));
    std::fs::set_permissions(bench.path("context/dir"), std::fs::Permissions::from_mode(0o700)).expect("changed");
    let out = bench.tree(&[]);
    let of = |name: &str| {
        let found = std::fs::metadata(out.join(name)).expect("a directory");
        (found.mode() & 0o7777, found.uid(), found.gid())
    };
    assert_eq!(of("new"), (0o755, 0, 0));
    assert_eq!(of("new/sub"), (0o755, 101, 201));
    assert_eq!(of("owned"), (0o755, 3, 4));
    assert_eq!(of("context/deep"), (0o755, 0, 0));
}

#[test]
fn parents_make_their_destination_even_if_nothing_matches() {
    let bench = Bench::new();
    bench.file("a/b/file", "x").dockerfile(
        "FROM scratch\nCOPY --parents a/none* /one/\nCOPY --parents a/./none* /two\nCOPY --parents x*/./none* /three/\n",
    );
    assert_eq!(names(&bench.tree(&[])), ["one", "two"]);
    bench.dockerfile("FROM scratch\nCOPY --parents none/./x* /one/\n");
    assert!(bench.build(&[]).fails(1).contains("not found"));
}

#[test]
fn a_socket_of_the_context_becomes_an_empty_file() {
    let bench = Bench::new();
    bench.dockerfile("FROM scratch\nCOPY . /\n");
    let _socket = UnixListener::bind(bench.path("context/socket")).expect("bound");
    let found = std::fs::symlink_metadata(bench.tree(&[]).join("socket")).expect("copied");
    assert!(found.is_file() && found.len() == 0);
}

#[test]
fn the_default_of_an_argument_that_is_given_is_not_expanded() {
    let bench = Bench::new();
    bench.dockerfile("ARG A=${A:?not given}\nFROM scratch\nARG B=${C:?missing}\nARG A\nLABEL x=$A$B\n");
    let config = bench.build(&["--build-arg", "A=1", "--build-arg", "B=2"]).config();
    assert_eq!(config["config"]["Labels"]["x"], "12");
    assert!(bench.build(&["--build-arg", "B=2"]).fails(1).contains("not given"));
}

#[test]
fn a_named_context_takes_the_place_of_a_whole_stage() {
    let bench = Bench::new();
    bench.file("other/name", "x").file("other/left", "out").file("other/.dockerignore", "left\n").dockerfile(
        "FROM missing.example.test/nothing AS base\nCOPY nowhere /\nFROM base AS child\nCOPY --from=base name /copy\n",
    );
    let contexts = ["--build-context", "base=context/other"];
    assert_eq!(names(&bench.tree(&contexts)), [".dockerignore", "copy", "name"]);
    assert_eq!(names(&bench.tree(&[contexts.as_slice(), &["--target", "base"]].concat())), [".dockerignore", "name"]);
    bench.dockerfile("FROM busybox\nCOPY other/name /\n");
    let scratch = ["--build-context", "docker.io/library/busybox:latest=docker-image://scratch"];
    assert_eq!(names(&bench.tree(&scratch)), ["name"]);
}

#[test]
fn a_here_document_may_have_blanks_before_its_delimiter() {
    let bench = Bench::with_busybox();
    bench.dockerfile(&format!("{SHELL}RUN cat << EOT > /x && \\\n  cat /x\nhello\nEOT\nRUN <<  'E'\necho y > /y\nE\n"));
    let out = bench.tree(&[]);
    assert_eq!((read(out.join("x")).as_str(), read(out.join("y")).as_str()), ("hello\n", "y\n"));
    bench.dockerfile("FROM scratch\nRUN echo $((1 << 3))\n");
    assert!(bench.build(&[]).fails(1).contains("unterminated heredoc"));
}

#[test]
fn the_source_of_a_cache_without_from_is_a_part_of_the_cache() {
    let bench = Bench::with_busybox();
    let mount = "--mount=type=cache,id=c";
    bench.dockerfile(&format!(
        "{SHELL}RUN {mount},target=/c mkdir -p /c/part/deep && ln -s part /c/link && ln -s /etc /c/out\n\
         RUN {mount},source=part/deep,target=/t echo 1 > /t/file\n\
         RUN {mount},source=/link,target=/t cat /t/deep/file > /seen\n"
    ));
    assert_eq!(read(bench.tree(&[]).join("seen")), "1\n");
    for part in ["out", "missing", "part/deep/file"] {
        bench.dockerfile(&format!("{SHELL}RUN {mount},source={part},target=/t true\n"));
        assert!(bench.build(&[]).fails(1).contains("cannot mount the directory"), "{part}");
    }
    bench.assert_clean();
}

#[test]
fn a_cache_may_begin_with_a_file() {
    let bench = Bench::with_busybox();
    bench.file("seed/file", "one\n");
    bench.dockerfile(&format!(
        "FROM scratch AS seed\nCOPY --chmod=640 seed /\n{SHELL}\
         RUN --mount=type=cache,id=n,from=seed,source=file,target=/counts/n cat /counts/n > /seen && echo two >> /counts/n\n\
         RUN --mount=type=cache,id=n,from=seed,source=file,target=/n cat /n > /then && stat -c %a /n >> /then\n"
    ));
    let tree = bench.tree(&[]);
    assert_eq!(read(tree.join("seen")), "one\n");
    assert_eq!(read(tree.join("then")), "one\ntwo\n640\n");
}

#[test]
fn a_secret_without_a_name_for_its_variable_is_an_error() {
    let bench = Bench::with_busybox();
    bench.file("word", "x").dockerfile(&format!("{SHELL}RUN --mount=type=secret,id=word,env= true\n"));
    let said = bench.build(&["--secret", "id=word,src=context/word"]).fails(1);
    assert!(said.contains("env of a secret mount needs the name of a variable"), "{said}");
}
