//! Unusual text, where a build has to be run to show what it means. What is right is what BuildKit's parser and its
//! `fsutil/copy` make of it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use fixtures::{names, run};

use crate::support::{Bench, SHELL};

#[test]
fn the_name_of_an_argument_is_taken_as_it_is_written() {
    let bench = Bench::new();
    bench.dockerfile(
        "ARG P=A\nARG ${P}G=global\nFROM scratch\nARG AG\nARG \"Q\"=v\nARG P=N\nARG ${P}=w\nLABEL a=$AG q=$Q n=$N\n",
    );
    let config = bench.build(&["--build-arg", "Q=given", "-t", "app"]).config();
    assert_eq!(config["config"]["Labels"], serde_json::json!({"a": "", "q": "", "n": ""}));
    let history: Vec<_> =
        config["history"].as_array().expect("a list").iter().map(|step| &step["created_by"]).collect();
    assert!(history.contains(&&"ARG \"Q\"=v".into()) && history.contains(&&"ARG ${P}=w".into()), "{history:?}");
}

#[test]
fn excludes_are_taken_as_they_are_written() {
    let bench = Bench::new();
    bench.file("d/$X", "").file("d/x", "").file("d/*", "");
    bench.dockerfile("FROM scratch\nARG X=x\nCOPY --exclude=$X --exclude=\\\\* d /d/\n");
    assert_eq!(names(&bench.tree(&[]).join("d")), ["x"]);
}

#[test]
fn a_here_document_knows_the_backslash_alone() {
    let bench = Bench::new();
    bench.dockerfile(
        "# escape=`\nFROM scratch\nARG V=val\nCOPY <<E <<E\\OF <<'F' /\na`b \\$V c:\\\\dir $V\nE\n$V\nEOF\n$V\nF\n",
    );
    let tree = bench.tree(&[]);
    let read = |name: &str| fs::read_to_string(tree.join(name)).expect("it is there");
    assert_eq!((read("E"), read("EOF"), read("F")), ("a`b $V c:\\dir val\n".into(), "val\n".into(), "$V\n".into()));
}

#[test]
fn flags_have_the_escape_character_of_the_file_until_a_comment_ends_the_directives() {
    let bench = Bench::new();
    bench.file("d/a b", "").file("d/a\\ b", "").file("d/c", "");
    let text = "FROM scratch\nCOPY --exclude=a` b d /d/\n";
    bench.dockerfile(&format!("# escape=`\n{text}"));
    assert_eq!(names(&bench.tree(&[]).join("d")), ["a\\ b", "c"]);
    // Here the flag ends at the blank.
    bench.dockerfile(&format!("# other=1\n# escape=`\n{text}"));
    assert!(bench.build(&[]).fails(1).contains("\"/b\": not found"));
}

#[test]
fn a_symbolic_mode_is_that_of_setmode() {
    let bench = Bench::new();
    bench.file("d/f", "");
    fs::set_permissions(bench.path("context/d"), fs::Permissions::from_mode(0o2775)).expect("a mode");
    fs::set_permissions(bench.path("context/d/f"), fs::Permissions::from_mode(0o644)).expect("a mode");
    bench.dockerfile("FROM scratch\nCOPY --chmod=u=rwX,go=rX --parents d /x/\nCOPY --chmod=u+t d/f /f\n");
    let tree = bench.tree(&[]);
    let mode = |name: &str| tree.join(name).metadata().expect("it is there").permissions().mode() & 0o7777;
    assert_eq!((mode("x/d"), mode("x/d/f"), mode("f")), (0o755, 0o644, 0o1644));
}

#[test]
fn a_backslash_escapes_only_where_a_wildcard_makes_a_pattern() {
    let bench = Bench::new();
    bench
        .file("a\\b", "1")
        .file("a*b", "2")
        .file("p\\*/x1", "3")
        .file("p\\*/x2", "4")
        .file("q1/*", "5")
        .file("q1/y", "6");
    bench.dockerfile(
        "FROM scratch\nCOPY [\"a\\\\\\\\b\", \"/one\"]\nCOPY [\"p\\\\\\\\*/x?\", \"q?/\\\\\\\\*\", \"/two/\"]\n",
    );
    let tree = bench.tree(&[]);
    assert_eq!(fs::read_to_string(tree.join("one")).expect("it is there"), "1");
    assert_eq!(names(&tree.join("two")), ["*", "x1", "x2"]);
    for absent in ["a\\\\*b", "a\\\\c"] {
        bench.dockerfile(&format!("FROM scratch\nCOPY {absent} /x\n"));
        assert!(bench.build(&[]).fails(1).contains("not found in the build context"), "{absent}");
    }
}

#[test]
fn a_port_loses_what_stands_before_a_default() {
    let bench = Bench::new();
    bench.dockerfile("FROM scratch\nEXPOSE ${LO:-8000}-${HI:-8010} 1${P:-234}/udp\n");
    let config = bench.build(&["-t", "app"]).config();
    assert_eq!(config["config"]["ExposedPorts"], serde_json::json!({"234/udp": {}, "8010/tcp": {}}));
}

#[test]
fn a_here_document_of_the_json_form_is_an_empty_file() {
    let bench = Bench::new();
    bench.dockerfile("FROM scratch\nCOPY [\"<<EOF\", \"/x/\"]\n");
    assert_eq!(fs::read(bench.tree(&[]).join("x/EOF")).expect("it is there"), b"");
}

#[test]
fn memory_can_be_read_only_and_what_is_for_the_scanner_is_no_variable() {
    let bench = Bench::with_busybox();
    bench.dockerfile(&format!(
        "{SHELL}ARG BUILDKIT_SBOM_SCAN_STAGE=true\nRUN --mount=type=tmpfs,target=/m,ro \
         ! touch /m/f && [ -d /m ] && [ -z \"$BUILDKIT_SBOM_SCAN_STAGE\" ]\n"
    ));
    let config = bench.build(&["-t", "app"]).config();
    let last = config["history"].as_array().and_then(|steps| steps.last()).expect("a step");
    let shown = last["created_by"].as_str().expect("text");
    assert!(shown.starts_with("RUN |1 BUILDKIT_SBOM_SCAN_STAGE=true /bin/sh -c "), "{shown}");
}

#[test]
fn a_directory_that_others_are_copied_to_gets_the_time_of_the_last() {
    let bench = Bench::new();
    bench.file("d/f", "").file("there/g", "");
    for name in ["d", "d/f"] {
        run("touch", &["-d", "@1000", bench.path("context").join(name).to_str().expect("text")]);
    }
    bench.dockerfile("FROM scratch\nCOPY there d /t/\nCOPY d /n/\n");
    let tree = bench.tree(&["--source-date-epoch=none"]);
    let time = |name: &str| tree.join(name).metadata().expect("it is there").mtime();
    assert_eq!((time("t"), time("t/f"), time("n")), (1000, 1000, 1000));
    assert_eq!(names(&tree.join("t")), ["f", "g"]);
}

#[test]
fn half_a_pair_of_units_in_json_is_the_replacement_character() {
    let bench = Bench::new();
    bench.dockerfile("FROM scratch\nCMD [\"\\ud83d\\ude00\", \"\\ud83d\", \"\\\\ud83d\"]\n");
    let config = bench.build(&["-t", "app"]).config();
    assert_eq!(config["config"]["Cmd"], serde_json::json!(["\u{1f600}", "\u{fffd}", "\\ud83d"]));
}
