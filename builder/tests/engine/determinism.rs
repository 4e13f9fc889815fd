//! One build, one digest: whatever the time, the user, the order of files, the threads and the cache.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::Path;

use fixtures::user::User;
use fixtures::{BUSYBOX, run};

use crate::support::{Bench, SHELL};

/// Everything that goes into a layer: files, modes, links, archives, steps, whiteouts.
fn dockerfile() -> String {
    format!(
        "{SHELL}RUN mkdir /made && for n in 3 1 2; do echo $n > /made/$n; done && ln /made/1 /made/hard && mkfifo /p\n\
         FROM shell\nWORKDIR /work\nCOPY a /a\nADD a.tar /tar/\nCOPY --chmod=600 --chown=5:6 a/x /x\n\
         RUN rm /made/2 /bin/cat; date > /dev/null; echo $SOURCE_DATE_EPOCH > /epoch; touch -d @0 /made/3"
    )
}

/// A context, made with its names in an order and at a time.
fn fill(context: &Path, names: &[&str], seconds: u64) {
    fs::copy(BUSYBOX, context.join("busybox")).expect("busybox-static is installed");
    fs::set_permissions(context.join("busybox"), fs::Permissions::from_mode(0o755)).expect("chmod");
    fs::create_dir_all(context.join("a/sub")).expect("directories");
    for name in names {
        let path = context.join("a").join(name);
        fs::write(&path, format!("content of {name}")).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        fs::File::options().write(true).open(&path).and_then(|file| file.set_modified(time)).expect("touched");
    }
    for directory in ["a", "a/sub"] {
        fs::set_permissions(context.join(directory), fs::Permissions::from_mode(0o755)).expect("chmod");
    }
    symlink("sub/y", context.join("a/link")).expect("symlink");
    fs::hard_link(context.join("a/x"), context.join("a/hard")).expect("a hard link");
    // The same members in the same order, whatever the directory says.
    let at = |name: &str| context.join(name).to_str().expect("text").to_owned();
    let stable = ["--sort=name", "--mtime=@1000", "--owner=7", "--group=8", "--numeric-owner", "--mode=u+rw,go=r"];
    run("tar", &[&["-C", &at("a"), "-cf", &at("a.tar")], &stable[..], &["x", "sub/y"]].concat());
}

fn bench(names: &[&str], seconds: u64) -> Bench {
    let bench = Bench::new();
    fill(&bench.path("context"), names, seconds);
    bench.dockerfile(&dockerfile());
    bench
}

const NAMES: [&str; 3] = ["x", "sub/y", "z"];

#[test]
fn cold_cached_repeated_and_threaded_builds_give_one_digest() {
    let bench = bench(&NAMES, 1_000_000_000);
    let first = bench.build(&["--threads", "1"]).digest();
    assert_eq!(bench.build(&[]).digest(), first, "cached");
    assert_eq!(bench.build(&["--no-cache", "--threads", "2"]).digest(), first, "again, on two threads");
}

#[test]
fn times_owners_and_the_order_of_names_make_no_difference() {
    let first = bench(&NAMES, 1_000_000_000).build(&[]).digest();
    let mut names = NAMES;
    names.reverse();
    let other = bench(&names, 1_700_000_000);
    for name in ["a/x", "a/sub", "busybox"] {
        chown(other.path("context").join(name), Some(1234), Some(5678)).expect("chown");
    }
    assert_eq!(other.build(&[]).digest(), first);
}

#[test]
fn root_and_an_ordinary_user_build_the_same_image() {
    let user = User::new();
    let first = bench(&NAMES, 1_000_000_000).build(&[]).digest();
    let other = bench(&NAMES, 1_000_000_000).owned_by(&user);
    let done = other.build(&[]);
    assert_eq!(done.digest(), first);
    other.assert_clean();
}

#[test]
fn the_epoch_is_the_newest_time_in_an_image() {
    let bench = bench(&NAMES, 1_700_000_000);
    let config = bench.build(&["--source-date-epoch", "1000000000"]).config();
    assert_eq!(config["created"], "2001-09-09T01:46:40Z");
    for entry in config["history"].as_array().expect("a history") {
        assert_eq!(entry["created"], "2001-09-09T01:46:40Z");
    }
    let out = bench.tree(&["--source-date-epoch", "1000000000"]);
    assert_eq!(fs::read_to_string(out.join("epoch")).expect("written by RUN"), "1000000000\n");
    let found = run("find", &[out.to_str().expect("text"), "-mindepth", "1", "-newermt", "@1000000000"]);
    assert_eq!(found, "", "these are newer than the epoch");
}

/// The digests of these formats. A change here is a change of the format: images that were built before get
/// another digest when they are built again.
#[test]
fn two_fixed_images_have_their_golden_digests() {
    let bench = Bench::new();
    fill(&bench.path("context"), &NAMES, 1_000_000_000);
    fs::remove_file(bench.path("context/busybox")).expect("removed");
    bench.dockerfile("FROM scratch\nCOPY a /a\nWORKDIR /work\nADD a.tar /tar/\nENV A=b\nLABEL l=m\nCMD [\"/a/x\"]");
    let amd64 = ["--platform", "linux/amd64"];
    assert_eq!(bench.build(&amd64).digest(), "sha256:df4f683542eb80a03bbbf05f69d841069f7e6929690b5fdc497c2d50ee895a78");
    bench.dockerfile(
        "FROM scratch AS one\nCOPY --chmod=4750 --chown=1:2 a/x /deep/x\nCOPY <<END /deep/text\n$TARGETARCH\nEND\n\
         FROM one\nCOPY --link --from=one /deep /linked/\nUSER 3:4\nEXPOSE 80\nVOLUME /v\nENTRYPOINT [\"/e\"]",
    );
    let epoch = ["--source-date-epoch", "1234567890"];
    assert_eq!(
        bench.build(&[amd64, epoch].concat()).digest(),
        "sha256:5fe8e6a252d1b2de9f02840215d7acf88905ee9f7bfe669038040fb492b76cea"
    );
}
