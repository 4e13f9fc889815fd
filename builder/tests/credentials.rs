//! Where credentials are looked for, each place and each precedence a fact: a server asks for a password, and tells
//! whose came.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use fixtures::fault::{FaultServer, Reply};
use fixtures::{Desk, Ended};
use serde_json::{Value, json};

/// A home with files of credentials, and a registry that wants one of them.
struct Home {
    desk: Desk,
    server: FaultServer,
}

impl Home {
    fn new() -> Self {
        let server = FaultServer::start(|request| match request.header("authorization") {
            None => Reply::new(401).header("WWW-Authenticate", "Basic realm=x"),
            Some(_) => Reply::new(200).body(r#"{"tags": ["there"]}"#),
        });
        let desk = Desk::new(env!("CARGO_BIN_EXE_nacre"));
        let path = format!("{}:/usr/bin:/bin", desk.text("bin"));
        Self { desk: desk.with("PATH", path).with("NACRE_PROGRESS", "plain"), server }
    }

    /// With an environment variable that leads to a path of this home.
    fn with_variable(self, name: &'static str, path: &str) -> Self {
        let path = self.desk.path(path);
        Self { desk: self.desk.with(name, path), ..self }
    }

    fn write(self, file: &str, document: Value) -> Self {
        // R stands for the registry, whose port nobody knows before it runs.
        self.desk.write(file, document.to_string().replace("\"R", &format!("\"{}", self.server.address())));
        self
    }

    /// With a credential of `user` for the registry.
    fn with_user(self, file: &str, user: &str) -> Self {
        self.write(file, json!({"auths": {"R": {"auth": auth(user)}}}))
    }

    /// With a helper that knows `user` for every registry, or none.
    fn with_helper(self, name: &str, user: Option<&str>) -> Self {
        let path = format!("bin/docker-credential-{name}");
        let answer = match user {
            Some(user) => format!("cat > /dev/null; echo '{{\"Username\": \"{user}\", \"Secret\": \"pw\"}}'"),
            None => "echo 'credentials not found in native keychain'; exit 1".to_owned(),
        };
        self.desk.write(&path, format!("#!/bin/sh\n{answer}\n"));
        fs::set_permissions(self.desk.path(&path), fs::Permissions::from_mode(0o755)).expect("made executable");
        self
    }

    fn run(&self, repository: &str) -> Ended {
        self.desk.run(&["tags", &format!("{}/{repository}", self.server.address())])
    }

    /// The user whose password came for a repository.
    #[track_caller]
    fn user_for(&self, repository: &str) -> String {
        self.run(repository).success();
        let requests = self.server.requests();
        let header =
            requests.iter().rev().find_map(|request| request.header("authorization")).expect("it was asked for");
        let known = ["a", "b", "c", "d"].into_iter().find(|user| header == format!("Basic {}", auth(user)));
        known.expect("one of the test's users").to_owned()
    }

    #[track_caller]
    fn user(&self) -> String {
        self.user_for("app")
    }
}

/// Base64 of `<user>:pw` for users of one letter.
fn auth(user: &str) -> &'static str {
    match user {
        "a" => "YTpwdw==",
        "b" => "Yjpwdw==",
        "c" => "Yzpwdw==",
        "d" => "ZDpwdw==",
        other => panic!("no user {other}"),
    }
}

#[test]
fn the_file_of_registry_auth_file_stands_for_all_others() {
    let home = Home::new().with_user("own.json", "a").with_user(".docker/config.json", "b");
    assert_eq!(home.with_variable("REGISTRY_AUTH_FILE", "own.json").user(), "a");
    let home = Home::new().with_user("run/containers/auth.json", "b").with_user(".docker/config.json", "b");
    let home = home.with_variable("XDG_RUNTIME_DIR", "run").with_variable("REGISTRY_AUTH_FILE", "own.json");
    let home = home.write("own.json", json!({"auths": {"other.example": {"auth": auth("a")}}}));
    assert_ne!(home.run("app").code, Some(0));
}

#[test]
fn the_settings_of_a_user_may_lie_elsewhere() {
    let home =
        Home::new().with_user("settings/containers/auth.json", "a").with_user(".config/containers/auth.json", "b");
    assert_eq!(home.user(), "b");
    assert_eq!(home.with_variable("XDG_CONFIG_HOME", "settings").user(), "a");
}

#[test]
fn the_directory_of_docker_config_takes_the_place_of_the_one_in_the_home() {
    let home = Home::new().with_user("docker/config.json", "a").with_user(".docker/config.json", "b");
    assert_eq!(home.user(), "b");
    assert_eq!(home.with_variable("DOCKER_CONFIG", "docker").user(), "a");
}

#[test]
fn dockers_file_comes_before_the_ones_of_containers_and_the_runtime_directory_before_the_home() {
    let home = Home::new().with_user(".config/containers/auth.json", "c");
    assert_eq!(home.user(), "c");
    let home = home.with_user("run/containers/auth.json", "b").with_variable("XDG_RUNTIME_DIR", "run");
    assert_eq!(home.user(), "b");
    assert_eq!(home.with_user(".docker/config.json", "a").user(), "a");
}

#[test]
fn a_file_that_knows_nothing_of_the_registry_leaves_it_to_the_next() {
    let home = Home::new().write(".docker/config.json", json!({"auths": {"other.example": {"auth": auth("a")}}}));
    assert_eq!(home.with_user(".config/containers/auth.json", "b").user(), "b");
}

#[test]
fn the_longest_path_of_a_repository_wins_and_the_registry_serves_the_rest() {
    let auths = json!({"auths": {
        "R": {"auth": auth("a")}, "R/team": {"auth": auth("b")}, "R/team/app": {"auth": auth("c")}}});
    let home = Home::new().write(".config/containers/auth.json", auths);
    for (repository, user) in [("team/app", "c"), ("team/app/part", "c"), ("team/other", "b"), ("teams", "a")] {
        assert_eq!(home.user_for(repository), user, "{repository}");
    }
}

#[test]
fn a_key_may_be_a_url_as_old_dockers_wrote_it() {
    let home = Home::new();
    let key = format!("http://{}/v2/", home.server.address());
    assert_eq!(home.write(".docker/config.json", json!({"auths": {key: {"auth": auth("a")}}})).user(), "a");
}

#[test]
fn the_helper_of_a_registry_comes_before_the_store_and_the_store_before_the_file() {
    let config = json!({"credHelpers": {"R": "one"}, "credsStore": "two", "auths": {"R": {"auth": auth("c")}}});
    let home = Home::new().with_helper("one", Some("a")).with_helper("two", Some("b"));
    assert_eq!(home.write(".docker/config.json", config).user(), "a");
    let config = json!({"credsStore": "two", "auths": {"R": {"auth": auth("c")}}});
    let home = Home::new().with_helper("two", Some("b")).write(".docker/config.json", config.clone());
    assert_eq!(home.user(), "b");
    let home = Home::new().with_helper("two", None).write(".docker/config.json", config);
    assert_eq!(home.user(), "c", "a store that knows nothing leaves it to the file");
}

#[test]
fn without_credentials_nobody_is_made_up_and_the_next_step_is_told() {
    let home = Home::new();
    let text = home.run("app").fails(3);
    assert!(text.contains("hint: log in first: nacre login 127.0.0.1"), "{text}");
    assert!(home.server.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[test]
fn logging_out_leaves_the_files_of_other_tools_alone_and_says_so() {
    let home = Home::new().with_user(".docker/config.json", "a").with_user("run/containers/auth.json", "b");
    let home = home.with_variable("XDG_RUNTIME_DIR", "run");
    let Ended { stdout, stderr, .. } = home.desk.run(&["logout", home.server.address()]);
    assert!(stdout.starts_with("logged out of 127.0.0.1"), "{stdout}");
    assert!(stderr.contains("run/containers/auth.json still holds credentials"), "{stderr}");
    assert_eq!(home.user(), "b");
}

#[test]
fn a_file_or_helper_that_is_broken_is_named_and_nothing_of_it_is_shown() {
    let home = Home::new().write(".docker/config.json", json!({"auths": {"R": {"auth": "c2VjcmV0"}}}));
    let text = home.run("app").stderr;
    assert!(text.contains(".docker/config.json") && !text.contains("c2VjcmV0") && !text.contains("secret"), "{text}");
    let home = Home::new().write(".docker/config.json", json!({"credHelpers": {"R": "nothere"}}));
    let text = home.run("app").stderr;
    assert!(text.contains("docker-credential-nothere get cannot be run"), "{text}");
}

/// Nothing that a program shows, and no file that it leaves, but those that are meant to keep them, holds a secret.
struct Search(Home);

/// Passwords, tokens and signatures, plain and as they travel.
const SECRETS: [&str; 5] = ["hunter2", "bWU6aHVudGVyMg", "T0ken", "S1gnature", "St0red"];

impl Search {
    /// A registry where pulls are redirected to signed URLs that fail, uploads are refused where they are signed, and
    /// whatever was sent is quoted.
    fn new() -> Self {
        let mut home = Home::new().write("auth.json", json!({"auths": {"R": {"auth": "bWU6aHVudGVyMg=="}}}));
        home.server = FaultServer::start(answer_with_secrets);
        let home = home.write("auth.json", json!({"auths": {"R": {"auth": "bWU6aHVudGVyMg=="}}}));
        let mut home = home.with_variable("REGISTRY_AUTH_FILE", "auth.json");
        home.desk = home.desk.with("RUST_LOG", "trace").with("RUST_BACKTRACE", "1");
        home.desk.write("context/file", vec![7; 9_000_000]).write("context/Dockerfile", "FROM scratch\nCOPY file /\n");
        Self(home)
    }

    /// Runs a command line in which R is the registry, and looks for secrets.
    #[track_caller]
    fn run(&self, line: &str) -> String {
        let address = self.0.server.address();
        let word = |word: &str| word.replace("R/", &format!("{address}/")).replace("//R", &format!("//{address}"));
        let words: Vec<String> = line.split(' ').map(word).collect();
        let ended = self.0.desk.run(&words.iter().map(String::as_str).collect::<Vec<_>>());
        let shown = ended.stdout + &ended.stderr;
        for secret in SECRETS {
            assert!(!shown.contains(secret), "{line} shows {secret}: {shown}");
        }
        self.check_files(line);
        shown
    }

    #[track_caller]
    fn check_files(&self, line: &str) {
        for entry in walkdir::WalkDir::new(self.0.desk.store()) {
            // There may be no store yet.
            let Ok(Ok(bytes)) = entry.as_ref().map(|entry| fs::read(entry.path())) else { continue };
            let text = String::from_utf8_lossy(&bytes);
            assert!(!SECRETS.iter().any(|secret| text.contains(secret)), "{line} leaves {entry:?}");
        }
    }
}

fn answer_with_secrets(request: &fixtures::fault::Request) -> Reply {
    let host = request.header("host").expect("every request has a host").to_owned();
    let path = request.path.split('?').next().unwrap_or_default();
    let signed = format!("http://{host}/storage/x?X-Amz-Signature=S1gnature&sig=S1gnature");
    match request.header("authorization") {
        _ if path == "/token" => Reply::new(200).body(r#"{"token":"T0ken","refresh_token":"St0red"}"#),
        _ if path == "/storage/x" => {
            Reply::new(403).body(format!(r#"{{"errors":[{{"code":"DENIED","message":"{signed}"}}]}}"#))
        }
        None => Reply::new(401)
            .header("WWW-Authenticate", format!(r#"Bearer realm="http://{host}/token?c=St0red",service="s""#)),
        Some(_) if path.contains("/blobs/uploads/") => Reply::new(202).header("Location", signed),
        Some(_) if request.method == "HEAD" && path.contains("/blobs/") => Reply::new(404),
        Some(_) if path.contains("/blobs/") => Reply::new(307).header("Location", signed),
        Some(_) if path.contains("/app/manifests/") && request.method != "PUT" => {
            let blob = json!({"mediaType": "application/vnd.oci.image.config.v1+json", "size": 2,
                "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"});
            let manifest = json!({"schemaVersion": 2, "config": blob, "layers": []});
            Reply::new(200)
                .header("Content-Type", "application/vnd.oci.image.manifest.v1+json")
                .body(manifest.to_string())
        }
        Some(header) => {
            let errors = json!({"errors": [{"code": "NO", "message": format!("not with {header}")}]});
            Reply::new(400).header("Warning", format!("299 - \"seen: {header}\"")).body(errors.to_string())
        }
    }
}

#[test]
fn no_verb_shows_a_credential_or_leaves_one_on_disk() {
    let search = Search::new();
    search.run("build --debug -t R/app -t plain context");
    for line in [
        "pull R/app",
        "pull R/other",
        "push plain docker://R/app",
        "push R/app",
        "copy docker://R/app oci:layout",
        "copy plain docker://R/other:2",
        "tags R/app",
        "catalog R/",
        "limits R/app",
        "delete R/other:1",
        "referrers R/app",
        "attach R/other context/file --artifact-type a/b",
        "manifest inspect docker://R/other",
        "manifest create docker://R/app:list docker://R/app",
        "build --push -t R/app context",
        "login R/ -u me -p hunter2",
        "login R/ -u me -p hunter2-wrong",
        "run R/app true",
        "copy docker://R/app dir:copied",
    ] {
        for mode in ["plain", "rawjson"] {
            search.run(&format!("{line} --debug --progress {mode}"));
        }
    }
    assert!(search.run("pull R/app --progress plain").contains("403"), "the way of the secrets was gone");
}

#[test]
fn a_password_that_was_typed_into_a_name_is_not_shown_again() {
    let search = Search::new();
    let desk = &search.0.desk;
    desk.write("context/from", "FROM me:hunter2@r.invalid/app\n");
    desk.write("context/add", "FROM scratch\nADD http://me:hunter2@r.invalid/app?sig=S1gnature /x\n");
    desk.write("list", "docker://me:hunter2@r.invalid/app docker://R/app\n");
    for line in [
        "pull me:hunter2@R/app",
        "push me:hunter2@R/app",
        "copy docker://me:hunter2@R/app oci:x",
        "copy oci:x docker://me:hunter2@R/app",
        "copy http://me:hunter2@R/app oci:x",
        "tags me:hunter2@R/app",
        "catalog me:hunter2@R/",
        "limits me:hunter2@R/",
        "delete me:hunter2@R/app:1",
        "login http://me:hunter2@R/",
        "login me:hunter2@R/ -u me",
        "logout me:hunter2@R/",
        "inspect me:hunter2@R/app",
        "history me:hunter2@R/app",
        "tag me:hunter2@R/app x",
        "remove me:hunter2@R/app",
        "run me:hunter2@R/app true",
        "mount me:hunter2@R/app x",
        "referrers me:hunter2@R/app",
        "attach me:hunter2@R/app context/file",
        "manifest inspect me:hunter2@R/app",
        "sync list",
        "build -t me:hunter2@R/app context",
        "build --cache-from me:hunter2@R/app context",
        "build -f context/from context",
        "build http://me:hunter2@R/context.tar",
    ] {
        let shown = search.run(&format!("{line} --progress plain"));
        assert!(!shown.is_empty(), "{line} says nothing");
    }
}
