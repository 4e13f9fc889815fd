//! What each instruction, flag and output of a build does, seen from outside.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::process::Stdio;

use fixtures::fault::{FaultServer, Reply};
use fixtures::{read, run};

use crate::support::{Bench, SHELL};

#[test]
fn instructions_of_the_configuration_are_in_the_image() {
    let bench = Bench::new();
    bench.dockerfile(
        "FROM scratch\nARG who=me\nENV A=1 B=\"$A-${who}\"\nLABEL l=\"$A\"\nUSER 7:8\nEXPOSE 80 90-91/udp\nVOLUME /v\n\
         WORKDIR /w/x\nENTRYPOINT [\"/e\"]\nCMD [\"c\"]\nSTOPSIGNAL SIGINT\nSHELL [\"/s\", \"-c\"]\n\
         HEALTHCHECK --interval=5s CMD [\"/h\"]\nONBUILD RUN x\nMAINTAINER m",
    );
    let config = bench.build(&["--build-arg", "who=you", "--label", "m=2"]).config();
    let run = &config["config"];
    assert_eq!(run["Env"].as_array().expect("a list")[1..], ["A=1", "B=-you"]);
    assert_eq!(run["Labels"], serde_json::json!({"l": "1", "m": "2"}));
    assert_eq!((&run["User"], &run["WorkingDir"]), (&"7:8".into(), &"/w/x".into()));
    assert_eq!(run["ExposedPorts"], serde_json::json!({"80/tcp": {}, "90/udp": {}, "91/udp": {}}));
    assert_eq!((&run["Volumes"], &run["Entrypoint"]), (&serde_json::json!({"/v": {}}), &serde_json::json!(["/e"])));
    assert_eq!((&run["Cmd"], &run["StopSignal"]), (&serde_json::json!(["c"]), &"SIGINT".into()));
    assert_eq!((&run["Shell"], &run["OnBuild"]), (&serde_json::json!(["/s", "-c"]), &serde_json::json!(["RUN x"])));
    assert_eq!((&run["Healthcheck"]["Interval"], &config["author"]), (&5_000_000_000_i64.into(), &"m".into()));
    assert_eq!(config["rootfs"]["diff_ids"].as_array().expect("a list").len(), 1);
}

#[test]
fn run_sees_its_environment_and_its_changes_are_a_layer_with_whiteouts() {
    let bench = Bench::with_busybox();
    bench.dockerfile(&format!(
        "{SHELL}RUN mkdir /d && echo a > /d/gone && echo b > /d/kept && ln /d/kept /d/link\n\
         FROM shell\nENV X=env\nARG Y=arg\nWORKDIR /work\nUSER 12:34\nRUN [ \"$X$Y\" = envarg ]\nUSER 0\n\
         RUN rm /d/gone && echo c >> /d/kept && rm -r /bin/cat && echo $X$Y > here && chown 5:6 here && chmod 4750 here"
    ));
    let out = bench.tree(&[]);
    assert!(!out.join("d/gone").exists() && !out.join("bin/cat").exists());
    assert_eq!((read(out.join("d/kept")).as_str(), read(out.join("d/link")).as_str()), ("b\nc\n", "b\nc\n"));
    let here = fs::metadata(out.join("work/here")).expect("made in the working directory");
    assert_eq!((here.uid(), here.gid(), here.mode() & 0o7777), (5, 6, 0o4750));
    assert_eq!(read(out.join("work/here")), "envarg\n");
    bench.assert_clean();
}

#[test]
fn copy_and_add_keep_modes_links_and_unpack_archives() {
    let bench = Bench::new();
    bench.file("a/x", "x").file("a/sub/y", "y").file("t/in", "tar").dockerfile(
        "FROM scratch\nCOPY --chmod=640 --chown=3:4 a/x /x\nCOPY a /a\nADD t.tar.gz /t/\nCOPY --exclude=sub a /e\n\
         COPY <<one <<two /h/\n1\none\n2\ntwo",
    );
    fs::set_permissions(bench.path("context/a/sub/y"), fs::Permissions::from_mode(0o751)).expect("chmod");
    symlink("sub/y", bench.path("context/a/link")).expect("symlink");
    let (context, archive) = (bench.path("context"), bench.path("context/t.tar.gz"));
    run("tar", &["-C", context.to_str().expect("text"), "-czf", archive.to_str().expect("text"), "t/in"]);
    let out = bench.tree(&[]);
    let x = fs::metadata(out.join("x")).expect("copied");
    assert_eq!((x.uid(), x.gid(), x.mode() & 0o7777), (3, 4, 0o640));
    assert_eq!(fs::metadata(out.join("a/sub/y")).expect("copied").mode() & 0o7777, 0o751);
    assert_eq!(fs::read_link(out.join("a/link")).expect("a link"), std::path::Path::new("sub/y"));
    assert_eq!(read(out.join("t/t/in")), "tar");
    assert!(out.join("e/x").exists() && !out.join("e/sub").exists());
    assert_eq!((read(out.join("h/one")).as_str(), read(out.join("h/two")).as_str()), ("1\n", "2\n"));
}

#[test]
fn touched_but_equal_files_hit_and_changed_bytes_miss() {
    let bench = Bench::new();
    bench.file("f", "one").dockerfile("FROM scratch\nCOPY f /f\nWORKDIR /w");
    assert_eq!(bench.build(&[]).cached(), 0);
    assert_eq!(bench.build(&[]).cached(), 2);
    let modified = fs::metadata(bench.path("context/f")).expect("there").modified().expect("a time");
    bench.file("f", "one");
    let touched = fs::File::options().write(true).open(bench.path("context/f")).expect("opened");
    touched.set_modified(std::time::UNIX_EPOCH).expect("touched");
    assert_eq!(bench.build(&[]).cached(), 2);
    bench.file("f", "two");
    let same_time = fs::File::options().write(true).open(bench.path("context/f")).expect("opened");
    same_time.set_modified(modified).expect("touched");
    assert_eq!(bench.build(&[]).cached(), 0);
    assert_eq!(bench.build(&["--no-cache"]).cached(), 0);
}

#[test]
fn a_step_is_run_again_for_what_its_mounts_show_and_not_for_which_cache_it_has_or_for_times() {
    let bench = Bench::with_busybox();
    let dockerfile = |cache: &str| {
        let step = format!("RUN --mount=target=/m,source=d --mount=type=cache,{cache} cat /m/f");
        bench.dockerfile(&format!("{SHELL}{step}\nCOPY d /d"));
    };
    bench.file("d/f", "one");
    dockerfile("target=/c,id=x");
    bench.build(&[]).succeeds();
    let all = bench.build(&[]).cached();
    let file = fs::File::options().write(true).open(bench.path("context/d/f")).expect("opened");
    file.set_modified(std::time::UNIX_EPOCH).expect("touched");
    assert_eq!(bench.build(&[]).cached(), all);
    dockerfile("target=/c,id=y,sharing=private");
    assert_eq!(bench.build(&[]).cached(), all);
    dockerfile("target=/c,mode=0700");
    assert_eq!(bench.build(&[]).cached(), all - 1);
}

#[test]
fn the_mode_of_a_directory_whose_files_are_copied_is_no_input() {
    let bench = Bench::new();
    bench.file("d/f", "one").dockerfile("FROM scratch\nCOPY d /d\nCOPY --parents d /e/");
    bench.build(&[]).succeeds();
    fs::set_permissions(bench.path("context/d"), fs::Permissions::from_mode(0o700)).expect("chmod");
    assert_eq!(bench.build(&[]).cached(), 1);
    assert_eq!(fs::metadata(bench.tree(&[]).join("d")).expect("copied").mode() & 0o7777, 0o755);
}

#[test]
fn a_build_argument_misses_only_where_it_is_declared() {
    let bench = Bench::with_busybox();
    bench.dockerfile(&format!("{SHELL}RUN echo before\nARG V\nRUN echo $V > /v"));
    bench.build(&["--build-arg", "V=1"]).succeeds();
    assert_eq!(bench.build(&["--build-arg", "V=1", "--build-arg", "UNUSED=1"]).cached(), 4);
    assert_eq!(bench.build(&["--build-arg", "V=2"]).cached(), 3);
}

#[test]
fn a_proxy_is_seen_by_steps_and_another_one_is_no_miss() {
    let bench = Bench::with_busybox();
    bench.dockerfile(&format!("{SHELL}RUN [ \"$HTTP_PROXY\" = http://one ]"));
    let one = ["--build-arg", "HTTP_PROXY=http://one"];
    bench.build(&one).succeeds();
    let all = bench.build(&one).succeeds().cached();
    assert_eq!(bench.build(&["--build-arg", "HTTP_PROXY=http://two"]).succeeds().cached(), all);
}

#[test]
fn a_secret_is_seen_by_its_step_only_and_another_one_is_no_miss() {
    let bench = Bench::with_busybox();
    bench.dockerfile(&format!(
        "{SHELL}RUN --mount=type=secret,id=s,env=S,target=/run/secrets/s [ \"$(cat /run/secrets/s)\" = $(echo hush)-42 ] || [ \"$S\" = other ]\n\
         RUN [ ! -e /run/secrets/s ]"
    ));
    bench.file("../secret", "hush-42").file("../other", "other");
    let done = bench.build(&["--secret", "id=s,src=secret"]).succeeds();
    assert!(!done.stderr.contains("hush-42"), "{}", done.stderr);
    assert_eq!(bench.build(&["--secret", "id=s,src=other"]).cached(), 4);
    let found = run("sh", &["-c", &format!("grep -rl hush-42 {} || true", bench.store().display())]);
    assert_eq!(found, "", "a secret is in the store");
}

#[test]
fn a_cache_mount_stays_and_leaves_no_trace_in_the_layer() {
    let bench = Bench::with_busybox();
    let count = |number: &str, more: &[&str]| {
        let run = "RUN --mount=type=cache,target=/c echo x >> /c/n && wc -l < /c/n > /count";
        bench.dockerfile(&format!("{SHELL}{run} # {number}\n{run}"));
        let out = bench.tree(more);
        assert!(!out.join("c/n").exists());
        read(out.join("count")).trim().to_owned()
    };
    assert_eq!(count("one", &[]), "2");
    assert_eq!(count("two", &[]), "4");
    // Without the cache the first step that has it finds it empty.
    assert_eq!(count("two", &["--no-cache"]), "2");
    assert_eq!(count("three", &[]), "4");
}

#[test]
fn stages_are_built_where_they_are_needed_and_copied_from() {
    let bench = Bench::new();
    bench.file("f", "f").file("../other/f", "other").dockerfile(
        "FROM scratch AS one\nCOPY f /one\nFROM scratch AS unused\nCOPY missing /\nFROM scratch AS last\n\
         COPY --from=one /one /two\nCOPY --from=named f /named",
    );
    let out = bench.tree(&["--build-context", "named=other"]);
    assert_eq!((read(out.join("two")).as_str(), read(out.join("named")).as_str()), ("f", "other"));
    let out = bench.tree(&["--target", "one"]);
    assert!(out.join("one").exists() && !out.join("two").exists());
    let error = bench.build(&["--target", "none"]).fails(1);
    assert!(error.contains("\"none\"") && error.contains("one, unused, last"), "{error}");
}

#[test]
fn every_output_holds_the_same_image() {
    let bench = Bench::new();
    bench.file("f", "content").dockerfile("FROM scratch\nCOPY f /f");
    let outputs = [
        ["-o", "type=oci,dest=oci.tar"],
        ["-o", "type=oci,tar=false,dest=layout"],
        ["-o", "type=docker,dest=docker.tar"],
        ["-o", "type=tar,dest=root.tar"],
        ["-o", "type=image"],
    ];
    let arguments =
        [&["-t", "app:1", "--iidfile", "iid", "--metadata-file", "meta.json"], &outputs.concat()[..]].concat();
    let digest = bench.build(&arguments).digest();
    let at = |name: &str| bench.path(name).to_str().expect("text").to_owned();
    let inspected = |place: String| run("skopeo", &["inspect", "--format", "{{.Digest}}", &place]).trim().to_owned();
    assert_eq!(inspected(format!("oci-archive:{}", at("oci.tar"))), digest);
    assert_eq!(inspected(format!("oci:{}:1", at("layout"))), digest);
    assert_eq!(inspected(format!("oci:{}:app:1", at("store"))), digest);
    let layers = run(
        "skopeo",
        &["inspect", "--config", "--format", "{{.RootFS.DiffIDs}}", &format!("docker-archive:{}", at("docker.tar"))],
    );
    let own = run(
        "skopeo",
        &["inspect", "--config", "--format", "{{.RootFS.DiffIDs}}", &format!("oci-archive:{}", at("oci.tar"))],
    );
    assert_eq!(layers, own);
    assert_eq!(run("tar", &["-xOf", &at("root.tar"), "f"]), "content");
    let metadata: serde_json::Value = serde_json::from_str(&read(bench.path("meta.json"))).expect("JSON");
    assert_eq!(metadata["containerimage.config.digest"], read(bench.path("iid")));
    assert_eq!(
        (&metadata["containerimage.digest"], &metadata["image.name"]),
        (&digest.into(), &"docker.io/library/app:1".into())
    );
}

#[test]
fn a_tar_goes_to_standard_output_and_a_dockerfile_comes_from_standard_input() {
    let bench = Bench::new();
    bench.file("f", "content");
    let mut command = bench.command(&["build", "-f", "-", "-o", "-", "context"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("runs");
    child.stdin.take().expect("piped").write_all(b"FROM scratch\nCOPY f /f\n").expect("written");
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success());
    let tar = bench.path("out.tar");
    // The digest follows only where standard output is not the tar.
    fs::write(&tar, &output.stdout).expect("written");
    assert_eq!(run("tar", &["-xOf", tar.to_str().expect("text"), "f"]), "content");
}

/// Answers every request with these bytes, and gives its URL.
fn serve(content: &'static str) -> (String, FaultServer) {
    let server = FaultServer::start(move |_| Reply::new(200).body(content));
    (format!("http://{}", server.address()), server)
}

#[test]
fn a_fetched_file_is_known_by_its_bytes_and_a_known_digest_needs_no_network() {
    let bench = Bench::new();
    let digest = layerfs::digest_of(b"from the web");
    let (url, server) = serve("from the web");
    let plain = format!("FROM scratch\nADD {url}/dir/file?token=1 /d/\n");
    let out = bench.dockerfile(&plain).tree(&[]);
    let file = fs::metadata(out.join("d/file")).expect("named as in the URL");
    assert_eq!((read(out.join("d/file")).as_str(), file.mode() & 0o7777), ("from the web", 0o600));
    assert_eq!(bench.build(&[]).cached(), 1, "the bytes were the same");
    assert_eq!(server.requests().len(), 2);
    drop(server);
    let checked = format!("FROM scratch\nADD --checksum={digest} {url}/dir/file /e\n");
    assert_eq!(read(bench.dockerfile(&checked).tree(&[]).join("e")), "from the web");
    assert!(bench.dockerfile(&plain).build(&[]).fails(3).contains("refused"));
    let (url, server) = serve("other bytes");
    let wrong = layerfs::digest_of(b"");
    let error = bench.dockerfile(&format!("FROM scratch\nADD --checksum={wrong} {url}/f /f")).build(&[]).fails(1);
    let found = layerfs::digest_of(b"other bytes");
    assert!(error.contains(&wrong.to_string()) && error.contains(&found.to_string()), "{error}");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_fetched_file_is_checked_against_a_longer_digest_too() {
    let bench = Bench::new();
    fs::write(bench.path("f"), "from the web").expect("written");
    for kind in ["sha384", "sha512"] {
        let sum = run(format!("{kind}sum"), &[bench.path("f").to_str().expect("text")]);
        let sum = sum.split(' ').next().expect("a digest").to_owned();
        for (sum, is_right) in [(&sum, true), (&sum.replace(|c: char| c.is_ascii_digit(), "0"), false)] {
            let (url, server) = serve("from the web");
            bench.dockerfile(&format!("FROM scratch\nADD --checksum={kind}:{sum} {url}/f /f\n"));
            match is_right {
                true => assert_eq!(read(bench.tree(&[]).join("f")), "from the web"),
                false => assert!(bench.build(&[]).fails(1).contains("digest mismatch")),
            }
            assert_eq!(server.requests().len(), 1);
        }
    }
    bench.dockerfile(&format!("FROM scratch\nADD --checksum=md5:{} http://127.0.0.1:1/f /f\n", "0".repeat(32)));
    assert!(bench.build(&[]).fails(1).contains("md5"));
}

#[test]
fn several_platforms_are_one_index_in_the_order_asked_for() {
    let bench = Bench::new();
    bench.dockerfile("FROM scratch\nARG TARGETARCH\nLABEL arch=$TARGETARCH\nCOPY Dockerfile /");
    let done = bench.build(&["--platform", "linux/arm64,linux/amd64", "-t", "app", "-o", "type=image"]).succeeds();
    let index = done.document(&done.stdout);
    let architectures: Vec<&str> = index["manifests"]
        .as_array()
        .expect("an index")
        .iter()
        .map(|entry| entry["platform"]["architecture"].as_str().expect("text"))
        .collect();
    assert_eq!(architectures, ["arm64", "amd64"]);
    let place = format!("oci:{}:app", bench.store().display());
    for architecture in architectures {
        let arguments = ["--override-arch", architecture, "inspect", "--format", "{{.Labels.arch}}", &place];
        assert_eq!(run("skopeo", &arguments).trim(), architecture);
    }
    let error = bench.build(&["--platform", "linux/arm64,linux/amd64", "-o", "type=docker,dest=x"]).fails(1);
    assert!(error.contains("2 platforms"), "{error}");
}

#[test]
fn push_sends_the_image_or_the_whole_index_and_keeps_the_name() {
    let registry = fixtures::registry::Registry::open();
    let bench = Bench::new();
    bench.dockerfile("FROM scratch\nARG TARGETARCH\nLABEL arch=$TARGETARCH\nCOPY Dockerfile /");
    for (tag, platforms) in [("one", "linux/amd64"), ("two", "linux/amd64,linux/arm64")] {
        let name = format!("{}/dir/app:{tag}", registry.address());
        let digest = bench.build(&["--platform", platforms, "-t", &name, "--push"]).digest();
        let raw = run("skopeo", &["inspect", "--raw", "--tls-verify=false", &format!("docker://{name}")]);
        assert_eq!(layerfs::digest_of(raw.as_bytes()).to_string(), digest);
        assert!(read(bench.store().join("index.json")).contains(&name));
    }
}

#[test]
fn a_step_for_a_foreign_machine_is_refused_before_anything_runs() {
    let bench = Bench::with_busybox();
    bench.dockerfile("FROM scratch\nCOPY busybox /bin/sh\nRUN echo x");
    let error = bench.build(&["--platform", "linux/s390x"]).fails(1);
    assert!(error.contains("Dockerfile:3") && error.contains("cannot run programs for linux/s390x"), "{error}");
    assert!(!error.contains("#1"), "{error}");
}

#[test]
fn a_failing_step_shows_its_line_its_output_and_its_exit_code() {
    let bench = Bench::with_busybox();
    bench.dockerfile(&format!("{SHELL}RUN echo out; echo err >&2; \\\n  exit 7"));
    let error = bench.build(&[]).fails(1);
    for words in ["Dockerfile:4:1:", "exit code: 7", "  | out\n", "  | err\n", " 4 | RUN echo out"] {
        assert!(error.contains(words), "{words}: {error}");
    }
    bench.assert_clean();
}

#[test]
fn mistakes_name_their_place_and_cost_exit_code_1() {
    let bench = Bench::new();
    for (text, words) in [
        ("FROM scratch\nRUN --foo x", "Dockerfile:2:5:"),
        ("FROM scratch\nCOPPY a b", "Dockerfile:2:1:"),
        ("FROM scratch\nCOPY missing /", "\"/missing\": not found in the build context"),
        ("FROM scratch\nCOPY ../../etc/passwd /", "not found in the build context"),
        (
            "FROM scratch AS a\nCOPY --from=later / /\nFROM scratch AS later\nCOPY --from=a / /",
            "circular dependency detected on stage: a",
        ),
        ("FROM scratch\nUSER nobody\nRUN x", "nobody"),
        ("FROM scratch\nADD git@h.example:x /", "git over ssh needs an agent"),
        ("FROM scratch\nRUN --network=host x", "network.host"),
        ("# check=error=true\nFROM scratch AS A", "lint violation found for rules: StageNameCasing"),
    ] {
        let done = bench.dockerfile(text).build(&[]);
        assert_eq!(done.code, Some(1), "{text:?}");
        let error = done.fails(1);
        assert!(error.contains(words), "{text:?}: {error}");
    }
    fs::remove_file(bench.path("context/Dockerfile")).expect("removed");
    assert!(bench.build(&[]).fails(1).contains("cannot read the Dockerfile context/Dockerfile"));
    assert!(bench.run(&["build", "nowhere"]).fails(1).contains("nowhere"));
}

#[test]
fn wrong_usage_costs_exit_code_2_and_an_unreachable_registry_3() {
    let bench = Bench::new();
    bench.dockerfile("FROM scratch\nCOPY Dockerfile /");
    assert!(bench.build(&["--push"]).fails(2).contains("-t"));
    assert!(bench.build(&["--platform", "linux/amd64,linux/amd64"]).fails(2).contains("twice"));
    assert!(bench.build(&["-o", "type=oci,dest=x,compression=estargz"]).fails(2).contains("estargz"));
    // Nothing listens on a port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
    bench.dockerfile(&format!("FROM 127.0.0.1:{port}/base\nCOPY Dockerfile /"));
    let error = bench.build(&[]).fails(3);
    assert!(error.contains("refused") && error.contains("Dockerfile:1"), "{error}");
}

#[test]
fn checks_are_shown_alone_or_with_a_build() {
    let bench = Bench::new();
    bench.dockerfile("FROM scratch AS A\nCOPY $nothing Dockerfile /");
    let done = bench.build(&["--check"]);
    assert_eq!(done.code, Some(1));
    assert!(done.stdout.contains("2 warnings have been found!"), "{}", done.stdout);
    assert!(done.stdout.contains("WARNING: UndefinedVar - https://docs.docker.com/go/dockerfile/rule/undefined-var/"));
    let json = bench.build(&["--call", "check,format=json,ignorestatus=true"]).succeeds().stdout;
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["warnings"][0]["ruleName"], "StageNameCasing");
    let place = serde_json::json!({"ranges": [{"start": {"line": 2}, "end": {"line": 2}}]});
    assert_eq!(json["warnings"][1]["location"], place);
    assert_eq!(json["sources"][0]["language"], "Dockerfile");
    bench.dockerfile("FROM scratch\nBAD x");
    let json = bench.build(&["--check", "--format", "json"]);
    assert_eq!(json.code, Some(1));
    let json: serde_json::Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!(json["buildError"]["location"]["ranges"][0]["start"]["line"], 2);
    bench.dockerfile("# check=error=true\nFROM scratch AS A");
    assert_eq!(bench.build(&["--check"]).code, Some(1));
    bench.build(&["--build-arg", "BUILDKIT_DOCKERFILE_CHECK=skip=StageNameCasing", "--check"]).succeeds();
    bench.dockerfile("FROM scratch AS A\nCOPY Dockerfile /");
    assert!(bench.build(&[]).succeeds().stderr.contains("warning: StageNameCasing"));
}

#[test]
fn outline_and_targets_are_told_without_a_build() {
    let bench = Bench::new();
    let text = "ARG V=1\nFROM scratch AS base\n# out is what is shipped\nFROM base AS out\n# V is the version\nARG V=2\n\
                RUN --mount=type=secret,id=key,required=true true\nFROM absent";
    bench.dockerfile(text);
    let outline = bench.build(&["--call=outline", "--target=out", "--build-arg=V=3"]).succeeds().stdout;
    let expected = "TARGET:      out\nDESCRIPTION: is what is shipped\n\nBUILD ARG   VALUE   DESCRIPTION\n\
                    V           3       is the version\n\nSECRET   REQUIRED\nkey      true\n";
    assert_eq!(outline, expected);
    let targets = bench.build(&["--call", "targets"]).succeeds().stdout;
    assert_eq!(targets, "TARGET    DESCRIPTION\nbase\nout       is what is shipped\n(default)\n");
    let json = bench.build(&["--call", "targets,format=json"]).succeeds().stdout;
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(
        json["targets"][2],
        serde_json::json!({
            "default": true, "base": "absent", "location": {"ranges": [{"start": {"line": 8}, "end": {"line": 8}}]}
        })
    );
    assert!(bench.build(&["--call", "frontend.x"]).fails(2).contains("frontend.x"));
}

#[test]
fn two_builds_at_once_share_a_store() {
    let bench = Bench::with_busybox();
    bench.dockerfile(&format!("{SHELL}RUN echo $RANDOM > /dev/null; echo x > /x"));
    let builds: Vec<_> = (0..2)
        .map(|_| {
            let mut command = bench.command(&["build", "context"]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs")
        })
        .collect();
    let digests: Vec<String> =
        builds.into_iter().map(|build| bench.done(build.wait_with_output().expect("ends")).digest()).collect();
    assert_eq!(digests[0], digests[1]);
    bench.build(&[]).succeeds();
    bench.assert_clean();
}
