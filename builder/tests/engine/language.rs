//! What BuildKit's own tests say of the language, where a build has to be run for it.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;

use fixtures::fault::{FaultServer, Reply};
use fixtures::{names, run};

use crate::support::{Bench, SHELL};

/// What a file of the result holds.
fn result(bench: &Bench, arguments: &[&str], name: &str) -> String {
    fs::read_to_string(bench.tree(arguments).join(name)).expect("it is in the result")
}

#[test]
fn the_last_stage_goes_by_its_name_as_the_target_does() {
    let bench = Bench::new();
    let text = "FROM scratch AS one\nARG TARGETSTAGE\nCOPY <<E /f\n$TARGETSTAGE\nE\n";
    bench.dockerfile(&format!("{text}FROM one\n"));
    assert_eq!(result(&bench, &[], "f"), "default\n");
    assert_eq!(result(&bench, &["--target", "one"], "f"), "one\n");
    bench.dockerfile(&format!("{text}FROM one AS Final\n"));
    assert_eq!(result(&bench, &[], "f"), "final\n");
}

#[test]
fn a_proxy_is_given_in_any_case_and_set_in_both() {
    let bench = Bench::with_busybox();
    bench.dockerfile(&format!("{SHELL}RUN echo $http_proxy,$HTTP_PROXY,$NO_PROXY,$no_proxy,$ftp_proxy > /f\n"));
    let arguments = ["--build-arg", "http_proxy=a", "--build-arg", "NO_PROXY=b"];
    assert_eq!(result(&bench, &arguments, "f"), "a,a,b,b,\n");
    // It is no part of the key.
    assert_eq!(result(&bench, &["--build-arg", "HTTPS_PROXY=c"], "f"), "a,a,b,b,\n");
}

#[test]
fn a_here_document_is_a_program_also_if_its_first_line_is_indented() {
    let bench = Bench::with_busybox();
    bench.dockerfile(&format!("{SHELL}RUN <<-E\n\t#!/bin/awk -f\n\tBEGIN {{ print \"x\" > \"/f\" }}\n\tE\n"));
    assert_eq!(result(&bench, &[], "f"), "x\n");
}

#[test]
fn a_stage_that_cannot_be_used_ends_the_build_before_its_first_step() {
    let bench = Bench::with_busybox();
    bench.dockerfile(&format!("{SHELL}RUN exit 7\nCOPY --from=later / /\nFROM scratch AS later\nFROM shell\n"));
    let error = bench.build(&[]).fails(1);
    assert!(error.contains("cannot copy from stage \"later\"") && !error.contains("exit code"), "{error}");
    let error = bench.build(&["--target", "latre"]).fails(1);
    assert!(error.contains("target stage \"latre\" could not be found (did you mean later?)"), "{error}");
}

#[test]
fn an_image_for_windows_has_the_shell_of_windows_and_no_path() {
    let bench = Bench::new();
    bench.dockerfile("FROM scratch\nENTRYPOINT foo bar\nCOPY Dockerfile /\n");
    let config = bench.build(&["--platform", "windows/amd64", "-t", "app"]).config();
    assert_eq!(config["config"]["Entrypoint"], serde_json::json!(["cmd", "/S", "/C", "foo bar"]));
    assert_eq!(config["config"].get("Env"), None);
    bench.dockerfile(
        "FROM scratch\nARG TARGETPLATFORM\nARG TARGETOSVERSION\nLABEL a=$TARGETPLATFORM b=$TARGETOSVERSION\n",
    );
    let config = bench.build(&["--platform", "windows(10.0.17763)/amd64", "-t", "app"]).config();
    assert_eq!((&config["os"], &config["os.version"]), (&"windows".into(), &"10.0.17763".into()));
    assert_eq!(config["config"]["Labels"], serde_json::json!({"a": "windows(10.0.17763)/amd64", "b": "10.0.17763"}));
    let done = bench.build(&["--platform", "windows(10.0.17763)/amd64,linux/amd64"]).succeeds();
    let index = done.document(&done.stdout);
    let platforms = [0, 1].map(|number| index["manifests"][number]["platform"].clone());
    assert_eq!(platforms[0], serde_json::json!({"architecture": "amd64", "os": "windows", "os.version": "10.0.17763"}));
    assert_eq!(platforms[1], serde_json::json!({"architecture": "amd64", "os": "linux"}));
}

#[test]
fn caches_of_one_id_that_begin_differently_are_kept_apart() {
    let bench = Bench::with_busybox();
    let mount = "RUN --mount=type=cache,id=c,target=/c";
    bench.dockerfile(&format!(
        "{SHELL}FROM shell\n{mount} touch /c/plain\n{mount},uid=7 [ ! -e /c/plain ] && [ $(stat -c %u /c) = 7 ] && touch /c/seven\n\
         {mount},from=shell [ ! -e /c/plain ] && [ -e /c/bin ]\n{mount},mode=0755 [ -e /c/plain ]\n\
         {mount},uid=7,gid=0 [ -e /c/seven ]\n"
    ));
    bench.build(&[]).succeeds();
    assert_eq!(names(&bench.store().join("cache-mounts")).len(), 3);
}

#[test]
fn a_tar_of_several_platforms_has_a_directory_for_each() {
    let bench = Bench::new();
    bench.dockerfile("FROM scratch\nARG TARGETARCH\nCOPY Dockerfile /d/$TARGETARCH\n");
    bench.build(&["--platform", "linux/arm64,linux/amd64", "-o", "type=tar,dest=out.tar"]).succeeds();
    let listed = run("tar", &["-tf", bench.path("out.tar").to_str().expect("text")]);
    let expected = ["linux_amd64/", "linux_amd64/d/", "linux_amd64/d/amd64"];
    assert_eq!(listed.lines().collect::<Vec<_>>()[..3], expected);
    assert!(listed.ends_with("linux_arm64/d/arm64\n"), "{listed}");
}

#[test]
fn undefined_variables_are_told_once_the_base_image_is_known() {
    let bench = Bench::new();
    bench
        .dockerfile("FROM scratch\nENV SET=1\nCOPY Dockerfile /\n")
        .build(&["-o", "type=oci,dest=base,tar=false"])
        .succeeds();
    bench.dockerfile("FROM base AS a\nARG one\nENV TWO=2$SET\nFROM a\nLABEL x=$one$TWO$SETT y=$SET\n");
    let arguments = ["--build-context", "base=oci-layout://base"];
    let said = bench.build(&arguments).succeeds().stderr;
    let warning = "UndefinedVar: Usage of undefined variable '$SETT' (did you mean $SET?)";
    assert_eq!((said.matches("UndefinedVar").count(), said.contains(warning)), (1, true), "{said}");
    bench.dockerfile("# check=error=true\nFROM base\nLABEL x=$SETT\n");
    assert!(bench.build(&arguments).fails(1).contains("lint violation found for rules: UndefinedVar"));
}

#[test]
fn what_is_excluded_from_a_copy_is_no_reason_to_copy_again() {
    let bench = Bench::new();
    bench.file("d/kept", "1").file("d/out/b", "1").file("d/out/back", "1").file("d/x.log", "1");
    bench.dockerfile("FROM scratch\nCOPY --exclude=out --exclude=!out/back --exclude=*.log d /d\n");
    bench.build(&[]).succeeds();
    bench.file("d/out/b", "2").file("d/y.log", "2");
    assert_eq!(bench.build(&[]).cached(), 1);
    bench.file("d/out/back", "2");
    assert_eq!(bench.build(&[]).cached(), 0);
    assert_eq!(result(&bench, &[], "d/out/back"), "2");
    bench.file("d/kept", "2");
    assert_eq!(bench.build(&[]).cached(), 0);
}

#[test]
fn a_url_of_several_adds_is_fetched_once_in_a_build() {
    let bench = Bench::new();
    let server = FaultServer::start(|_| Reply::new(200).body("x"));
    let url = format!("http://{}/f", server.address());
    bench.dockerfile(&format!(
        "FROM scratch AS a\nADD {url} /one\nFROM scratch AS b\nADD {url} /two\n\
         FROM scratch\nCOPY --from=a / /\nCOPY --from=b / /\n"
    ));
    assert_eq!(result(&bench, &[], "two"), "x");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_build_that_failed_does_not_wait_for_what_is_on_its_way() {
    /// More than an hour, byte by byte.
    const BYTES: u32 = u32::MAX;
    let bench = Bench::with_busybox();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("bound");
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the build comes");
        _ = stream.read(&mut [0; 4096]);
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n");
        stream.write_all(head.as_bytes()).expect("the build reads");
        (0..BYTES).take_while(|_| stream.write_all(b"x").is_ok()).count()
    });
    bench.dockerfile(&format!(
        "FROM scratch AS slow\nADD http://{address}/f /f\n{SHELL}RUN exit 7\n\
         FROM scratch\nCOPY --from=shell /bin /bin\nCOPY --from=slow / /\n"
    ));
    assert!(bench.build(&["--jobs", "4"]).fails(1).contains("exit code: 7"));
    assert!(server.join().expect("no panic") < BYTES as usize);
    bench.assert_clean();
}

#[test]
fn a_build_that_failed_does_not_wait_for_servers_that_say_nothing() {
    let bench = Bench::with_busybox();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("bound");
    let server = std::thread::spawn(move || {
        // One for the file, one for the base image: nothing is asked for twice.
        [(), ()].map(|()| {
            let (mut stream, _) = listener.accept().expect("the build comes");
            std::thread::spawn(move || while stream.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {})
        })
    });
    bench.dockerfile(&format!(
        "FROM scratch AS file\nADD http://{address}/f /f\nFROM {address}/base AS base\n{SHELL}RUN sleep 1; exit 7\n\
         FROM scratch\nCOPY --from=shell /bin /bin\nCOPY --from=file / /\nCOPY --from=base / /\n"
    ));
    let said = bench.build(&["--jobs", "4"]).fails(1);
    assert!(said.contains("exit code: 7") && !said.contains("again"), "{said}");
    server.join().expect("no panic").into_iter().for_each(|one| one.join().expect("no panic"));
    bench.assert_clean();
}

#[test]
fn a_step_sees_its_mounts_and_its_user_as_in_buildkit() {
    let bench = Bench::with_busybox();
    bench.dockerfile(&format!(
        "{SHELL}RUN mkdir -m 0750 /covered\n\
         RUN --mount=type=tmpfs,target=/covered --mount=type=tmpfs,target=/made \
         [ \"$(stat -c %a /covered)\" = 750 ] && [ \"$(stat -c %a /made)\" = 1777 ]\n\
         RUN --mount=type=cache,target=/cache,mode=04711 --mount=type=secret,id=word,mode=04440 \
         [ \"$(stat -c %a /cache)\" = 711 ] && [ \"$(stat -c %a /run/secrets/word)\" = 440 ]\n\
         ENV HOME=\n\
         RUN [ \"$HOME\" = / ]\n\
         USER 5:6:7\n\
         RUN [ \"$(id -u):$(id -g)\" = 5:6 ]\n"
    ));
    bench.file("word", "of mouth");
    bench.build(&["--secret", "id=word,src=context/word"]).succeeds();
}
