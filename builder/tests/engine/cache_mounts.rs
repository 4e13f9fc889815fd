//! Cache mounts that go from one machine to another: each machine is a store of its own.

use std::fs;
use std::path::Path;

use fixtures::registry::Registry;
use serde_json::Value;

use fixtures::names;
use fixtures::user::User;

use crate::support::{Bench, SHELL};

/// The id is the target, with what else the mount begins with.
const ID: &str = "/cache#uid=7#mode=711";

fn machine(step: &str) -> Bench {
    let bench = Bench::with_busybox();
    bench.dockerfile(&format!("{SHELL}RUN --mount=type=cache,target=/cache,uid=7,mode=0711 {step}\n"));
    bench
}

const FILL: &str = "cd /cache && echo kept > file && mkdir -p d/e && ln file d/e/link && ln -s ../file d/symlink && \
    chown 12:34 d && chmod 4750 file && touch -d @1000000000 file";
const CHECK: &str = "cd /cache && [ \"$(cat d/symlink)\" = kept ] && [ \"$(stat -c %u:%g:%h:%a:%Y file)\" = 0:0:2:4750:1000000000 ] && \
    [ \"$(stat -c %u:%g d)\" = 12:34 ] && [ \"$(stat -c %u:%a .)\" = 7:711 ]";

#[test]
fn a_cache_mount_arrives_as_it_was_on_another_machine() {
    let registry = Registry::open();
    let places = [format!("docker://{}/app:cache", registry.address()), "oci-archive:cache.tar".to_owned()];
    let first = machine(FILL);
    first.build(&[]).succeeds();
    for place in places {
        first.run(&["cache-mount", "export", ID, &place]).succeeds();
        let second = machine(CHECK);
        assert!(second.build(&[]).stderr.contains("exit code"), "nothing is there yet");
        if place.starts_with("oci-archive") {
            fs::copy(first.path("cache.tar"), second.path("cache.tar")).expect("copied");
        }
        // Of an import that was killed.
        let mounts = second.store().join("cache-mounts");
        let draft = mounts.join(&names(&mounts)[0]).join("draft-killed");
        fs::create_dir_all(draft.join("content")).expect("directories");
        second.run(&["cache-mount", "import", ID, &place]).succeeds();
        assert!(!draft.exists());
        second.build(&[]).succeeds();
        second.assert_clean();
        // What was imported gives the same export.
        second.run(&["cache-mount", "export", ID, "oci-archive:again.tar"]).succeeds();
        first.run(&["cache-mount", "export", ID, "oci-archive:again.tar"]).succeeds();
        let read = |bench: &Bench| fs::read(bench.path("again.tar")).expect("written");
        assert!(read(&first) == read(&second), "{place}");
    }
}

#[test]
fn an_ordinary_user_carries_files_of_many_owners() {
    let user = User::new();
    let first = machine(FILL).owned_by(&user);
    first.build(&[]).succeeds();
    first.run(&["cache-mount", "export", ID, "oci:layout:cache"]).succeeds();
    let second = machine(CHECK);
    let place = format!("oci:{}:cache", first.path("layout").display());
    second.run(&["cache-mount", "import", ID, &place]).succeeds();
    second.build(&[]).succeeds();
}

#[test]
fn cache_mounts_are_listed_emptied_and_pruned() {
    let bench = machine(FILL);
    bench.build(&["-t", "app"]).succeeds();
    let listed = || -> Value {
        let done = bench.run(&["cache-mount", "list", "--format", "json"]).succeeds();
        serde_json::from_str(&done.stdout).expect("JSON")
    };
    assert_eq!(listed()[0]["id"], ID);
    assert!(listed()[0]["size_bytes"].as_u64().is_some_and(|size| size > 0));
    bench.run(&["cache-mount", "remove", ID]).succeeds();
    assert_eq!(listed(), serde_json::json!([]));
    assert!(bench.run(&["cache-mount", "remove", ID]).fails(1).contains(ID));
    assert!(bench.run(&["cache-mount", "export", ID, "oci:layout"]).fails(1).contains(ID));
    bench.build(&["--no-cache"]).succeeds();
    bench.run(&["prune", "--cache-mounts"]).succeeds();
    assert_eq!(listed(), serde_json::json!([]));
    // The build cache is not what was pruned.
    assert_eq!(bench.build(&[]).cached(), 3);
}

#[test]
fn what_is_no_cache_mount_changes_none() {
    let bench = machine(FILL);
    bench.build(&["-o", "type=oci,dest=image,tar=false"]).succeeds();
    assert!(bench.run(&["cache-mount", "import", ID, "oci:image"]).fails(1).contains("no cache mount"));
    assert!(bench.run(&["cache-mount", "import", ID, "app"]).fails(2).contains("app"));
    bench.dockerfile(&format!("{SHELL}RUN --mount=type=cache,target=/cache,uid=7,mode=0711 {CHECK}\n"));
    bench.build(&[]).succeeds();
    // A name that would remove others from a layer is no reason to lose it silently.
    bench
        .dockerfile(&format!("{SHELL}RUN --mount=type=cache,target=/cache,uid=7,mode=0711 echo > /cache/d/.wh.a\n"))
        .build(&[])
        .succeeds();
    assert!(bench.run(&["cache-mount", "export", ID, "oci:layout"]).fails(1).contains("d/.wh.a"));
    assert!(!Path::new(&bench.path("layout")).exists());
}

/// Compiles what is newer than what it made before, as make and cargo do; busybox' own `-nt` looks at whole seconds.
const MAKE: &str = "time() { stat -c %y $1; }; for name in a b c; do \
        if [ -e /cache/$name ] && [ \"$(time /cache/$name)\" \\> \"$(time /src/$name/in)\" ]; then echo kept $name; \
        else cp /src/$name/in /cache/$name; echo made $name; fi; \
    done; cp -r /cache /out";

#[test]
fn what_a_cache_holds_of_a_source_that_changed_since_is_older_than_the_source() {
    let bench = Bench::with_busybox();
    let mounts = "--mount=type=cache,target=/cache --mount=type=bind,from=c,target=/src/c";
    let dockerfile = format!("FROM scratch AS c\nCOPY c /\n{SHELL}COPY a /src/a\nCOPY b /src/b\nRUN {mounts} {MAKE}\n");
    bench.dockerfile(&dockerfile);
    let write = |name: &str, text: &str| _ = bench.file(&format!("{name}/in"), text);
    let made = |what: [&str; 3]| {
        let stderr = bench.build(&["-t", "app"]).succeeds().stderr;
        assert!(what.iter().all(|word| stderr.contains(word)), "{what:?}: {stderr}");
    };
    for name in ["a", "b", "c"] {
        write(name, "one");
    }
    made(["made a", "made b", "made c"]);
    write("b", "two");
    made(["kept a", "made b", "kept c"]);
    // A step that fails changes nothing of that: what is new stays new until it was compiled.
    write("b", "three");
    write("c", "three");
    bench.dockerfile(&dockerfile.replace("for name", "exit 3; for name"));
    assert!(bench.build(&[]).stderr.contains("exit code: 3"));
    bench.dockerfile(&dockerfile);
    made(["kept a", "made b", "made c"]);
    // No time of an arrival is in a layer.
    let out = bench.tree(&[]);
    assert_eq!(fs::read_to_string(out.join("out/b")).expect("built"), "three");
    let time = |path: &str| fs::metadata(out.join(path)).expect("built").modified().expect("a time");
    assert_eq!(time("src/b/in"), time("src/a/in"));
    assert_eq!(time("out/b"), time("src/a/in"));
}

#[test]
fn builds_at_once_that_begin_a_cache_anew_do_not_take_it_from_each_other() {
    let bench = Bench::with_busybox();
    let step = |number| format!("RUN --mount=type=cache,target=/m,sharing=private echo {number} > /m/file\n");
    bench.dockerfile(&format!("{SHELL}{}", (0..8).map(step).collect::<String>()));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| (0..4).for_each(|_| drop(bench.build(&["--no-cache"]).succeeds())));
        }
    });
    bench.assert_clean();
}
