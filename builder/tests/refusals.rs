//! Command lines that are refused, each with the flag or the word that is wrong, and with the way where there is one;
//! and those of docker's users that are not.
//!
//! Invariant: nothing is built, mounted or fetched here; a test has a store and a home of its own.

use std::fs;

use fixtures::{Desk, Ended};

struct Shell(Desk);

impl Shell {
    fn new() -> Self {
        let desk = Desk::new(env!("CARGO_BIN_EXE_nacre"));
        desk.write("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
        Self(desk)
    }

    /// A line as a person types it; no word of it has blanks.
    #[track_caller]
    fn run(&self, line: &str) -> Ended {
        self.0.run(&line.split_whitespace().collect::<Vec<_>>())
    }
}

#[test]
fn a_flag_without_effect_is_refused_and_named() {
    let shell = Shell::new();
    for flag in
        ["--push", "--load", "--output=out", "--annotation=a=b", "--iidfile=x", "--metadata-file=x", "--cache-to=x/y"]
    {
        let (name, _) = flag.split_once('=').unwrap_or((flag, ""));
        for call in ["--check", "--call=outline", "--call=targets", "--call=check"] {
            shell.run(&format!("build {call} -t a/b {flag} .")).failure(2, &format!("error: {name}"));
        }
    }
    assert!(shell.run("build --call=build -t app --iidfile x .").success().starts_with("sha256:"));
    shell.run("mount --plane overlay").failure(2, "IMAGE DIR");
    for flag in ["--plane fuse", "--read-only", "--foreground", "--upper x"] {
        shell.run(&format!("mount {flag} --all")).failure(2, "cannot be used with");
        shell.run(&format!("mount {flag} --format json")).failure(2, "cannot be used with");
    }
    shell.run("build --secret id=x,type=bogus,src=Dockerfile .").failure(2, "type=bogus");
    shell.run("build --secret id=x,type=file,env=HOME .").failure(2, "env=");
    shell.run("build --secret id=x,type=env,env=HOME .").success();
}

#[test]
fn what_dockers_users_type_is_taken_or_refused_with_the_way() {
    let shell = Shell::new();
    shell.run("build -q=true --nothing .").failure(2, "error:");
    shell.run("build -t app --no-cache=true --pull=false --progress none --net none .").success();
    let rows = |line: &str| shell.run(line).success().lines().count();
    assert_eq!(
        (rows("images app"), rows("images app:latest"), rows("images app:2"), rows("images other")),
        (2, 2, 1, 1)
    );
    shell.run("images A").failure(1, "\"A\"");
    shell.run("prune --force").success();
    shell.run("prune -f --all=false").success();
    shell.run("build --compress .").failure(2, "compression=zstd");
    assert_eq!(shell.run("doctor --format json").json()["builds"], true);
    shell.run("doctor --format text").success();
    for verb in ["pull", "push", "copy", "login", "build", "run", "tags"] {
        let code = if verb == "run" { 125 } else { 2 };
        shell.run(&format!("{verb} --tls-verify=false x")).failure(code, "`insecure = true`");
        shell.run(&format!("{verb} --creds=a:b x")).failure(code, "`nacre login`");
    }
    for (transport, way) in
        [("docker-daemon", "`docker save"), ("containers-storage", "`podman save"), ("sif", "oci-archive:")]
    {
        shell.run(&format!("copy {transport}:x y")).failure(2, way);
    }
    shell.run("builder prune").failure(2, "`nacre prune --all` empties its cache");
}

#[test]
fn the_host_name_of_a_run_is_written_as_docker_has_it() {
    let shell = Shell::new();
    shell.run("run -h").failure(125, "--hostname");
    // What follows the host name is the image.
    shell.run("run -h box 127.0.0.1:1/app").failure(125, "127.0.0.1:1");
    assert!(shell.run("run --help").success().contains("-h, --hostname <NAME>"));
    assert!(shell.run("build -h").success().contains("Usage: nacre build"));
}

#[test]
fn a_hint_does_what_was_wanted() {
    let shell = Shell::new();
    for line in ["rmi nope", "push nope"] {
        let ended = shell.run(line);
        assert!(!ended.stderr.contains("nacre pull"), "{}", ended.stderr);
        ended.failure(1, "`nacre images` lists what is there");
    }
    shell.run("inspect nope").failure(1, "`nacre pull nope`");
    shell.run("copy store:x oci:y").failure(1, "without a prefix: x");
}

#[test]
fn what_scripts_of_dockers_users_say_is_understood() {
    let shell = Shell::new();
    shell.run("rmi -f nope nope:2").success();
    shell.run("rmi").failure(2, "NAME");
    shell.run("build -t app:1 -t app:2 .").success();
    shell.run("image rm -f app:1 nope").success();
    assert_eq!(shell.run("image ls").success(), shell.run("images").success());
    assert!(shell.run("image ls").success().contains("app:2"));
    shell.run("image prune -f").success();
    assert_eq!(shell.run("rmi --all").success(), "app:2");
    assert_eq!(shell.run("rmi --all").success(), "");
    shell.run("image push nope").failure(1, "nope");
    shell.run("image ls -a").failure(2, "every name of the store is listed");
    assert!(shell.run("help").success().contains("Usage: nacre"));
    assert!(shell.run("help run").success().contains("Usage: nacre run"));
    assert!(shell.run("help manifest create").success().contains("Usage: nacre manifest create"));
    shell.run("help nope").failure(2, "nope");
    let ended = shell.run("images -x");
    assert!(!ended.stderr.contains("as a value"), "{}", ended.stderr);
    ended.failure(2, "-x");
}

#[test]
fn nothing_is_cleared_up_below_a_manifest_that_is_damaged() {
    let shell = Shell::new();
    let digest = shell.run("build -t app .").success();
    let blobs = shell.0.path("store/blobs/sha256");
    let count = || fs::read_dir(&blobs).expect("listed").count();
    let before = count();
    fs::write(blobs.join(digest.trim_start_matches("sha256:")), "{").expect("written");
    shell.run("prune --all").failure(1, "`nacre verify` tells");
    assert_eq!(count(), before);
    assert_ne!(shell.run("verify").code, Some(0));
    shell.run("rmi app").success();
    shell.run("prune --all").success();
    assert_eq!(count(), 0);
}

#[test]
fn a_list_that_is_too_long_is_refused_and_not_cut() {
    let shell = Shell::new();
    fs::write(shell.0.path("list"), "# a comment\n".repeat(1_500_000)).expect("written");
    shell.run("sync list").failure(2, "the list list is longer than 16.0 MB");
}

#[test]
fn options_of_every_verb_have_a_heading_of_their_own() {
    let shell = Shell::new();
    for verb in ["tags", "build", "run", "mount", "manifest create"] {
        let help = shell.run(&format!("{verb} --help")).success();
        let (own, global) = help.split_once("Global options:\n").expect("the heading");
        for flag in ["--root <DIR>", "--progress <MODE>", "--debug"] {
            assert!(global.contains(flag) && !own.contains(flag), "{verb}: {help}");
        }
        if let Some((_, limits)) = own.split_once("Limits of the commands") {
            assert!(limits.contains("--cgroup-parent") && !limits.contains("--add-host"), "{verb}: {help}");
        }
    }
}
