//! Contexts that are no directory: git, archives, the web, standard input; and ADD of git repositories.

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fixtures::fault::{FaultServer, Reply};
use fixtures::{Ended, names, read, run};

use crate::support::{Bench, SHELL};

/// `git daemon` for the repositories in a directory, one process a connection.
struct GitServer {
    address: String,
}

impl GitServer {
    fn start(base: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let base = base.to_owned();
        // The thread ends with the process: nothing is left of a connection that is closed.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let output = stream.try_clone().expect("a socket is cloned");
                let mut daemon = Command::new("git");
                daemon.args(["daemon", "--inetd", "--export-all"]).arg(format!("--base-path={}", base.display()));
                daemon.arg(&base).stdin(std::os::fd::OwnedFd::from(stream)).stdout(std::os::fd::OwnedFd::from(output));
                daemon.stderr(Stdio::null()).status().expect("git-daemon is installed");
            }
        });
        Self { address }
    }

    fn url(&self, rest: &str) -> String {
        format!("git://{}/{rest}", self.address)
    }
}

/// A repository in the bench's directory: `repositories/NAME`.
struct Repository(PathBuf);

impl Repository {
    fn new(bench: &Bench, name: &str) -> Self {
        let path = bench.path("repositories").join(name);
        std::fs::create_dir_all(&path).expect("a directory");
        let repository = Self(path);
        repository.git(&["init", "-q", "-b", "master"]);
        repository
    }

    fn git(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("git");
        command.arg("-C").arg(&self.0).args(["-c", "user.name=A", "-c", "user.email=a@example.test"]).args(arguments);
        command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
        command.env("GIT_AUTHOR_DATE", "1600000000 +0000").env("GIT_COMMITTER_DATE", "1600000000 +0000");
        let output = command.output().expect("git is installed");
        assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn file(&self, name: &str, content: &str) -> &Self {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().expect("below the repository")).expect("directories");
        std::fs::write(path, content).expect("written");
        self
    }

    fn commit(&self) -> String {
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "-m", "change"]);
        self.git(&["rev-parse", "HEAD"])
    }
}

fn build(bench: &Bench, arguments: &[&str]) -> Ended {
    bench.run(&[&["build", "--progress", "plain"], arguments].concat())
}

/// Builds to a directory.
fn tree(bench: &Bench, arguments: &[&str]) -> PathBuf {
    _ = std::fs::remove_dir_all(bench.path("out"));
    build(bench, &[&["-o", "type=local,dest=out"], arguments].concat()).succeeds();
    bench.path("out")
}

#[test]
fn a_directory_its_repository_and_its_archive_give_one_digest() {
    let bench = Bench::new();
    let repository = Repository::new(&bench, "app");
    repository.file("Dockerfile", "FROM scratch\nCOPY . /\n").file("dir/file", "content").file("run", "x");
    run("chmod", &["755", repository.0.join("run").to_str().expect("text")]);
    std::os::unix::fs::symlink("dir/file", repository.0.join("link")).expect("a link");
    let commit = repository.commit();
    let server = GitServer::start(&bench.path("repositories"));
    let plain = bench.path("plain");
    run("git", &["clone", "-q", repository.0.to_str().expect("text"), plain.to_str().expect("text")]);
    std::fs::remove_dir_all(plain.join(".git")).expect("removed");
    run("chmod", &["-R", "u=rwX,go=rX", plain.to_str().expect("text")]);
    let expected = build(&bench, &["plain"]).digest();
    for url in [server.url("app"), server.url("app#master"), server.url(&format!("app#{commit}"))] {
        assert_eq!(build(&bench, &[&url]).digest(), expected, "{url}");
    }
    for method in ["--gzip", "--bzip2", "--xz", "--zstd", "--no-auto-compress"] {
        let (plain, archive) = (plain.to_str().expect("text"), bench.path("a.tar"));
        let archive = archive.to_str().expect("text");
        run("tar", &["-C", plain, "--owner=0", "--group=0", method, "-cf", archive, "."]);
        assert_eq!(build(&bench, &["a.tar"]).digest(), expected, "{method}");
        let mut command = bench.command(&["build", "-"]);
        let output = command.stdin(std::fs::File::open(archive).expect("opened")).output().expect("it runs");
        assert_eq!(bench.done(output).digest(), expected, "{method}");
    }
    let bytes = std::fs::read(bench.path("a.tar")).expect("an archive");
    let web = FaultServer::start(move |_| Reply::new(200).body(bytes.clone()));
    assert_eq!(build(&bench, &[&format!("http://{}/a.tar", web.address())]).digest(), expected);
    bench.assert_clean();
}

#[test]
fn a_reference_a_tag_and_a_directory_choose_what_is_built() {
    let bench = Bench::new();
    let repository = Repository::new(&bench, "app");
    repository.file("sub/Dockerfile", "FROM scratch\nCOPY . /\n").file("sub/name", "one").commit();
    repository.git(&["tag", "-a", "-m", "first", "v1"]);
    let tag = repository.git(&["rev-parse", "v1"]);
    repository.git(&["checkout", "-q", "-b", "other/branch"]);
    repository.file("sub/name", "two").file("other.Dockerfile", "FROM scratch\nCOPY sub/name /renamed\n").commit();
    repository.git(&["checkout", "-q", "master"]);
    let server = GitServer::start(&bench.path("repositories"));
    let name = |rest: &str| read(tree(&bench, &[&server.url(rest)]).join("name"));
    assert_eq!(name("app#v1:sub"), "one");
    assert_eq!(name("app#:sub"), "one");
    assert_eq!(name("app?branch=other/branch&subdir=sub"), "two");
    assert_eq!(name(&format!("app?tag=v1&checksum={}#:/sub", &tag[..9])), "one");
    let renamed = tree(&bench, &["-f", "other.Dockerfile", &server.url("app#other/branch")]);
    assert_eq!(read(renamed.join("renamed")), "two");
    for (rest, said) in [
        ("app#missing", "repository does not contain ref missing"),
        ("app#v1:nowhere", "no directory of the repository"),
        ("app?tag=v1&checksum=0123", "expected checksum to match 0123"),
        ("none", "git ls-remote failed"),
    ] {
        let error = build(&bench, &[&server.url(rest)]);
        assert!(error.code != Some(0) && error.stderr.contains(said), "{rest}: {}", error.stderr);
    }
    let error = build(&bench, &[&server.url("app?what=ever")]).fails(2);
    assert!(error.contains("unexpected query \"what\""), "{error}");
}

#[test]
fn a_branch_is_asked_for_in_each_build_and_a_commit_is_fetched_once() {
    let bench = Bench::new();
    let repository = Repository::new(&bench, "app");
    let first = repository.file("Dockerfile", "FROM scratch\nCOPY name /\n").file("name", "one").commit();
    let server = GitServer::start(&bench.path("repositories"));
    assert_eq!(read(tree(&bench, &[&server.url("app")]).join("name")), "one");
    repository.file("name", "two").commit();
    assert_eq!(read(tree(&bench, &[&server.url("app")]).join("name")), "two");
    // The commit is not at the tip of any branch any more, and the repository is gone.
    std::fs::remove_dir_all(&repository.0).expect("removed");
    assert_eq!(read(tree(&bench, &[&server.url(&format!("app#{first}"))]).join("name")), "one");
}

#[test]
fn add_takes_a_repository_and_its_kept_directory_is_the_same_every_time() {
    let digests: Vec<String> = (0..2)
        .map(|_| {
            let bench = Bench::new();
            let repository = Repository::new(&bench, "app");
            repository.file("file", "one").file("dir/deep", "x").commit();
            repository.git(&["tag", "v1"]);
            repository.file("file", "two").commit();
            let server = GitServer::start(&bench.path("repositories"));
            // The address is in what is kept, and differs from run to run: the same name for all.
            let url = server.url("app#v1");
            bench.dockerfile(&format!("FROM scratch\nADD --keep-git-dir=true {url} /src/\nADD {url} /plain\n"));
            let out = bench.tree(&[]);
            assert_eq!(names(&out.join("plain")), ["dir", "file"]);
            assert_eq!(read(out.join("src/file")), "one");
            let src = out.join("src");
            let git = |arguments: &[&str]| {
                run("git", &[&["-c", "safe.directory=*", "-C", src.to_str().expect("text")], arguments].concat())
            };
            assert_eq!(git(&["status", "--porcelain"]), "");
            assert_eq!(git(&["describe", "--tags"]).trim(), "v1");
            run("chmod", &["-R", "u+w", src.to_str().expect("text")]);
            let config = read(src.join(".git/config")).replace(&server.address, "HOST");
            std::fs::write(src.join(".git/config"), config).expect("written");
            std::fs::remove_file(src.join(".git/index")).expect("git refreshed it");
            let sum = format!("cd {} && find . -type f -print0 | sort -z | xargs -0 sha256sum", src.display());
            run("sh", &["-c", &sum])
        })
        .collect();
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn flags_of_add_agree_with_the_url_or_fail() {
    let bench = Bench::new();
    let repository = Repository::new(&bench, "app");
    let commit = repository.file("file", "one").commit();
    let server = GitServer::start(&bench.path("repositories"));
    let add = |flags: &str, rest: &str| {
        bench.dockerfile(&format!("FROM scratch\nADD {flags} {} /src\n", server.url(rest)));
        bench.build(&[])
    };
    add(&format!("--checksum={}", &commit[..12]), "app").succeeds();
    add("--chmod=600 --chown=1:2 --keep-git-dir=true", "app?keep-git-dir=1").succeeds();
    add("--chmod=go=", "app").succeeds();
    // A directory that COPY makes for a symbolic mode is 0755.
    let made = std::fs::metadata(bench.tree(&[]).join("src")).expect("made").permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&made) & 0o7777, 0o700);
    for (flags, rest, said) in [
        ("--checksum=0123", "app", "expected checksum to match 0123"),
        ("--checksum=xyz", "app", "hex commit hash"),
        ("--checksum=0123", "app?checksum=4567", "checksum mismatch"),
        ("--keep-git-dir=false", "app?keep-git-dir=true", "inconsistent keep-git-dir"),
        ("", "app?x=y", "unexpected query"),
    ] {
        let done = add(flags, rest);
        assert!(done.code != Some(0) && done.stderr.contains(said), "{flags} {rest}: {}", done.stderr);
        assert!(done.stderr.contains("Dockerfile:2"), "{}", done.stderr);
    }
    bench.dockerfile(&format!("FROM scratch\nCOPY {} /src\n", server.url("app")));
    assert!(bench.build(&[]).fails(1).contains("source can't be a git ref for COPY"));
}

#[test]
fn submodules_come_along_but_not_those_of_the_own_file_system() {
    let bench = Bench::new();
    let inner = Repository::new(&bench, "inner");
    inner.file("inside", "x").commit();
    let outer = Repository::new(&bench, "outer");
    outer.file("Dockerfile", "FROM scratch\nCOPY . /\n").commit();
    let server = GitServer::start(&bench.path("repositories"));
    outer.git(&["submodule", "--quiet", "add", &server.url("inner"), "sub"]);
    outer.commit();
    let out = tree(&bench, &[&server.url("outer")]);
    assert_eq!(
        (names(&out), names(&out.join("sub"))),
        (vec![".gitmodules".into(), "Dockerfile".into(), "sub".into()], vec!["inside".to_owned()])
    );
    let out = tree(&bench, &[&server.url("outer?submodules=false")]);
    assert_eq!(names(&out.join("sub")), [""; 0]);
    // With all that git keeps, and twice the same.
    bench.dockerfile(&format!("FROM scratch\nADD --keep-git-dir=true {} /\n", server.url("outer")));
    let kept = bench.build(&[]).digest();
    std::fs::remove_dir_all(bench.store()).expect("removed");
    assert_eq!(bench.build(&[]).digest(), kept);
    // A repository that names one of this machine.
    let path = inner.0.to_str().expect("text").to_owned();
    outer.git(&["config", "-f", ".gitmodules", "submodule.sub.url", &path]);
    outer.commit();
    let done = build(&bench, &[&server.url("outer")]);
    assert!(done.code != Some(0) && done.stderr.contains("transport 'file' not allowed"), "{}", done.stderr);
}

#[test]
fn a_repository_on_a_plain_web_server_is_fetched_with_the_token_that_is_a_secret() {
    let bench = Bench::new();
    let repository = Repository::new(&bench, "app");
    repository.file("Dockerfile", "FROM scratch\nCOPY name /\n").file("name", "one").commit();
    repository.file("name", "two").commit();
    repository.git(&["update-server-info"]);
    let root = repository.0.join(".git");
    let server = FaultServer::start(move |request| {
        // base64 of x-access-token:hidden
        if request.header("authorization") != Some("basic eC1hY2Nlc3MtdG9rZW46aGlkZGVu") {
            return Reply::new(401).header("WWW-Authenticate", "Basic realm=x");
        }
        let path = request.path.split('?').next().unwrap_or_default();
        match std::fs::read(root.join(path.trim_start_matches("/app.git/"))) {
            Ok(bytes) => Reply::new(200).body(bytes),
            Err(_) => Reply::new(404),
        }
    });
    let url = format!("http://{}/app.git#master", server.address());
    std::fs::write(bench.path("token"), "hidden\n").expect("written");
    let out = tree(&bench, &["--secret", "id=GIT_AUTH_TOKEN,src=token", &url]);
    assert_eq!(read(out.join("name")), "two");
    std::fs::write(bench.path("token"), "wrong").expect("written");
    let error = build(&bench, &["--secret", "id=GIT_AUTH_TOKEN,src=token", &url]).fails(3);
    assert!(error.contains("hint: give a token") && !error.contains("wrong"), "{error}");
}

#[test]
fn standard_input_is_an_archive_or_a_dockerfile() {
    let bench = Bench::new();
    bench.file("name", "one");
    let with_input = |arguments: &[&str], input: &[u8]| {
        let mut child =
            bench.command(&[&["build", "--progress", "plain", "-o", "type=local,dest=out"], arguments].concat());
        child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = child.spawn().expect("the program runs");
        // A program that refuses its arguments reads nothing.
        _ = child.stdin.take().expect("it is piped").write_all(input);
        bench.done(child.wait_with_output().expect("it ends"))
    };
    with_input(&["-"], b"FROM scratch\nCOPY <<E /a\nx\nE\n").succeeds();
    assert_eq!(read(bench.path("out/a")), "x\n");
    with_input(&["-f", "-", "context"], b"FROM scratch\nCOPY name /b\n").succeeds();
    assert_eq!(read(bench.path("out/b")), "one");
    let error = with_input(&["-"], b"FROM scratch\nCOPY name /b\n");
    assert!(error.stderr.contains("\"/name\": not found"), "{}", error.stderr);
    assert!(with_input(&["-f", "-", "-"], b"").fails(2).contains("both"));
    assert!(with_input(&["-f", "x", "-"], b"FROM scratch").fails(2).contains("no archive"));
    let context = bench.path("context");
    let tar = run("tar", &["-C", context.to_str().expect("text"), "-cf", "-", "name"]);
    with_input(&["-f", "https://127.0.0.1:1/x", "-"], tar.as_bytes()).fails(3);
    assert!(with_input(&["-"], tar.as_bytes()).fails(1).contains("has no Dockerfile"));
}

#[test]
fn a_dockerfile_comes_from_the_web_with_the_secret_of_its_host() {
    let bench = Bench::new();
    bench.file("name", "one");
    let server = FaultServer::start(|request| match request.header("authorization") {
        Some("Bearer hidden") => Reply::new(200).body("FROM scratch\nCOPY name /b\n"),
        _ => Reply::new(401),
    });
    let url = format!("http://{}/Dockerfile", server.address());
    std::fs::write(bench.path("token"), "hidden").expect("written");
    let secret = format!("id=HTTP_AUTH_TOKEN_{},src=token", server.address());
    assert_eq!(read(tree(&bench, &["--secret", &secret, "-f", &url, "context"]).join("b")), "one");
    let only = FaultServer::start(|_| Reply::new(200).body("FROM scratch\nCOPY context /c\n"));
    let out = tree(&bench, &[&format!("http://{}/any", only.address())]);
    assert_eq!(read(out.join("c")), "FROM scratch\nCOPY context /c\n");
    // Such a context is the Dockerfile, whatever --file calls it.
    tree(&bench, &["-f", "any.Dockerfile", &format!("http://{}/any", only.address())]);
    build(&bench, &["-f", &url, "context"]).fails(3);
}

#[test]
fn named_contexts_are_repositories_archives_and_files_and_may_be_for_one_platform() {
    let bench = Bench::new();
    let repository = Repository::new(&bench, "app");
    repository.file("name", "of git").commit();
    let git = GitServer::start(&bench.path("repositories"));
    bench.file("archive/name", "of the archive");
    let directory = bench.path("context/archive");
    let tar = run("tar", &["-C", directory.to_str().expect("text"), "-cf", "-", "name"]);
    let server = FaultServer::start(move |request| match request.path.as_str() {
        "/a.tar" => Reply::new(200).body(tar.clone()),
        _ => Reply::new(200).body("single"),
    });
    bench.dockerfile(
        "FROM scratch\nCOPY --from=git name /git\nCOPY --from=tar name /tar\nCOPY --from=one context /one\n\
         COPY --from=alpine name /dir\n",
    );
    let web = |path: &str| format!("http://{}/{path}", server.address());
    let contexts = [
        format!("git={}", git.url("app")),
        format!("tar={}", web("a.tar")),
        format!("one={}", web("x")),
        "docker.io/library/alpine:latest=nowhere".to_owned(),
        format!(
            "alpine::{}=context/archive",
            run("uname", &["-m"]).trim().replace("x86_64", "linux/amd64").replace("aarch64", "linux/arm64")
        ),
    ];
    let arguments: Vec<&str> = contexts.iter().flat_map(|text| ["--build-context", text.as_str()]).collect();
    let out = tree(&bench, &[arguments.as_slice(), &["context"]].concat());
    assert_eq!(read(out.join("git")), "of git");
    assert_eq!(read(out.join("tar")), "of the archive");
    assert_eq!(read(out.join("one")), "single");
    assert_eq!(read(out.join("dir")), "of the archive");
    // A stage can begin with any of them.
    bench.dockerfile("FROM git\nCOPY archive/name /copied\n");
    let out = tree(&bench, &[arguments.as_slice(), &["context"]].concat());
    assert_eq!([read(out.join("name")), read(out.join("copied"))], ["of git", "of the archive"]);
}

#[test]
fn hostile_archives_and_repositories_stay_in_their_place() {
    let bench = Bench::new();
    let outside = bench.path("outside");
    std::fs::write(&outside, "secret").expect("written");
    let evil = bench.path("evil");
    std::fs::create_dir_all(evil.join("d")).expect("made");
    std::os::unix::fs::symlink(bench.path(""), evil.join("out")).expect("a link");
    std::os::unix::fs::symlink(&outside, evil.join("Dockerfile.link")).expect("a link");
    std::fs::write(evil.join("d/Dockerfile"), "FROM scratch\nCOPY up /\n").expect("written");
    let evil = evil.to_str().expect("text");
    let archive = bench.path("evil.tar");
    let archive = archive.to_str().expect("text");
    run(
        "tar",
        &[
            "-C",
            evil,
            "-P",
            "--transform",
            "s,^d/Dockerfile,../../up,",
            "-cf",
            archive,
            "d/Dockerfile",
            "out",
            "Dockerfile.link",
        ],
    );
    assert!(build(&bench, &["-f", "Dockerfile.link", "evil.tar"]).fails(1).contains("has no Dockerfile.link"));
    assert!(build(&bench, &["-f", "out/outside", "evil.tar"]).fails(1).contains("has no out/outside"));
    let out = tree(&bench, &["-f", "up", "evil.tar"]);
    assert_eq!(names(&out), ["up"]);
    let repository = Repository::new(&bench, "app");
    repository.file("Dockerfile", "FROM scratch\nCOPY out/outside /\n");
    std::os::unix::fs::symlink(bench.path(""), repository.0.join("out")).expect("a link");
    repository.commit();
    let server = GitServer::start(&bench.path("repositories"));
    assert!(build(&bench, &[&server.url("app")]).fails(1).contains("not found"));
    assert!(build(&bench, &[&server.url("app#master:out")]).fails(1).contains("no directory of the repository"));
    for text in ["-u@host:x", "ssh://-oProxyCommand=touch%20x/a", "git://h/a?ref=--upload-pack=touch%20x"] {
        build(&bench, &["--", text]);
        assert!(!bench.path("x").exists() && !bench.path("context/x").exists(), "{text}");
    }
    bench.assert_clean();
}

#[test]
fn missing_git_is_an_error_with_a_hint() {
    let bench = Bench::new();
    let mut command = bench.command(&["build", "git://127.0.0.1:1/a"]);
    let output = command.env("PATH", bench.path("")).output().expect("it runs");
    let error = bench.done(output).fails(1);
    assert!(error.contains("git was not found") && error.contains("hint: install"), "{error}");
}

#[test]
fn the_time_of_a_build_comes_from_a_number_a_commit_a_server_or_an_archive() {
    let bench = Bench::new();
    let repository = Repository::new(&bench, "app");
    let dockerfile =
        "ARG EPOCH_SOURCE=\nFROM scratch AS remote\nARG URL\nADD $URL /\nFROM scratch\nCOPY <<E /a\nx\nE\n";
    repository.file("Dockerfile", dockerfile).commit();
    let git = GitServer::start(&bench.path("repositories"));
    let archived = bench.path("repositories/app");
    let directory = archived.to_str().expect("text");
    let tar = run("tar", &["-C", directory, "--mtime=@1500000000", "-cf", "-", "Dockerfile"]);
    let server = FaultServer::start(move |request| match request.path.as_str() {
        "/a.tar" => Reply::new(200).body(tar.clone()),
        _ => Reply::new(200).header("Last-Modified", "Thu, 04 Mar 2021 05:06:07 GMT").body("x"),
    });
    let web = |path: &str| format!("http://{}/{path}", server.address());
    let created = |arguments: &[&str]| build(&bench, arguments).config()["created"].as_str().expect("text").to_owned();
    let with = |value: &str, more: &[&str], context: &str| {
        let argument = format!("SOURCE_DATE_EPOCH={value}");
        created(&[&["--build-arg", &argument], more, &[context]].concat())
    };
    assert_eq!(with("1600000001", &[], directory), "2020-09-13T12:26:41Z");
    assert_eq!(with("context", &[], &git.url("app")), "2020-09-13T12:26:40Z");
    assert_eq!(with("context", &[], &web("a.tar")), "2017-07-14T02:40:00Z");
    assert_eq!(with("n", &["--build-context", &format!("n={}", web("x"))], directory), "2021-03-04T05:06:07Z");
    let url = format!("URL={}", git.url("app"));
    assert_eq!(with("remote", &["--build-arg", &url], directory), "2020-09-13T12:26:40Z");
    let url = format!("URL={}", web("x"));
    assert_eq!(with("remote", &["--build-arg", &url], directory), "2021-03-04T05:06:07Z");
    // A directory has no time of its own.
    assert_eq!(with("context", &[], directory), "1970-01-01T00:00:00Z");
    let error = build(&bench, &["--build-arg", "SOURCE_DATE_EPOCH=nothing", directory]).fails(1);
    assert!(error.contains("invalid SOURCE_DATE_EPOCH: nothing"), "{error}");
    repository.file("Dockerfile", "ARG SOURCE_DATE_EPOCH=1600000002\nFROM scratch\nCOPY Dockerfile /\n");
    assert_eq!(created(&[directory]), "2020-09-13T12:26:42Z");
}

#[test]
fn the_builders_own_arguments_do_what_they_say() {
    let bench = Bench::with_busybox();
    bench.dockerfile(&format!("{}RUN hostname > /name\n", SHELL));
    let out = bench.tree(&["--build-arg", "BUILDKIT_SANDBOX_HOSTNAME=elsewhere"]);
    assert_eq!(read(out.join("name")), "elsewhere\n");
    bench.dockerfile("FROM scratch AS A\nCOPY <<E /a\nx\nE\n");
    let done = bench.build(&["--build-arg", "BUILDKIT_MULTI_PLATFORM=1"]).succeeds();
    assert_eq!(done.document(&done.stdout)["manifests"].as_array().map(Vec::len), Some(1));
    let error = bench.build(&["--build-arg", "BUILDKIT_DOCKERFILE_CHECK=error=true"]).fails(1);
    assert!(error.contains("StageNameCasing"), "{error}");
    bench.build(&["--build-arg", "BUILDKIT_DOCKERFILE_CHECK=skip=all;error=true"]).succeeds();
    assert!(bench.build(&["--build-arg", "BUILDKIT_SYNTAX=other/frontend"]).fails(1).contains("other/frontend"));
    let repository = Repository::new(&bench, "app");
    repository.file("Dockerfile", "FROM scratch\nCOPY .git/HEAD /\n").commit();
    let server = GitServer::start(&bench.path("repositories"));
    let keep = ["--build-arg", "BUILDKIT_CONTEXT_KEEP_GIT_DIR=1"];
    assert_eq!(names(&tree(&bench, &[keep.as_slice(), &[&server.url("app")]].concat())), ["HEAD"]);
}

/// An ssh server for root with one key, ended when dropped.
struct SshServer(std::process::Child);

impl SshServer {
    /// Whoever has the key `user` in the bench's directory may come; the server's own key is made anew.
    fn start(bench: &Bench, port: u16) -> Self {
        let at = |name: &str| bench.path(name).to_str().expect("text").to_owned();
        let key = |name: &str| {
            _ = std::fs::remove_file(at(name));
            run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &at(name)]);
        };
        key("host");
        if !bench.path("user").exists() {
            key("user");
        }
        std::fs::create_dir_all("/run/sshd").expect("where the server wants to be");
        let options = format!("AuthorizedKeysFile={}.pub", at("user"));
        let mut server = Command::new("/usr/sbin/sshd");
        server.args(["-D", "-q", "-f", "/dev/null", "-h", &at("host"), "-o", &options, "-o", "StrictModes=no"]);
        server.args([
            "-o",
            "PidFile=none",
            "-o",
            "PermitRootLogin=yes",
            "-o",
            &format!("ListenAddress=127.0.0.1:{port}"),
        ]);
        let mut server = Self(server.spawn().expect("openssh-server is installed"));
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(server.0.try_wait().expect("it is ours").is_none(), "the server ended");
            std::thread::yield_now();
        }
        server
    }
}

impl Drop for SshServer {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

#[test]
fn hosts_of_ssh_are_noted_in_the_store_and_refused_once_their_key_has_changed() {
    let bench = Bench::new();
    let repository = Repository::new(&bench, "app");
    repository.file("file", "one").commit();
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = free.local_addr().expect("bound").port();
    drop(free);
    bench.dockerfile(&format!("FROM scratch\nADD ssh://root@127.0.0.1:{port}{} /src\n", repository.0.display()));
    let build = || bench.build(&["--no-cache", "--ssh", &format!("default={}", bench.path("user").display())]);
    let known = || std::fs::read_to_string("/root/.ssh/known_hosts").unwrap_or_default();
    let before = known();
    let server = SshServer::start(&bench, port);
    build().succeeds();
    build().succeeds();
    drop(server);
    let noted = std::fs::read_to_string(bench.store().join("known/ssh-hosts")).expect("noted");
    assert_eq!((noted.lines().count(), known()), (1, before));
    let _other = SshServer::start(&bench, port);
    assert!(build().fails(3).contains("REMOTE HOST IDENTIFICATION HAS CHANGED"));
}
