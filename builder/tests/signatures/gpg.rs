//! GPG's signatures: what skopeo signs is taken here, and what is signed here skopeo takes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};

use crate::desk::Desk;
use fixtures::Ended;
use fixtures::fault::{FaultServer, Reply};

const OWNER: &str = "release@r.example";

/// A desk with a key of GPG, and settings that name a signature store.
struct Office {
    desk: Desk,
}

impl Drop for Office {
    fn drop(&mut self) {
        // Its agent would stay for a minute.
        _ = self.tool("gpgconf", &["--kill", "gpg-agent"]);
    }
}

impl Office {
    fn new() -> Self {
        let office = Self { desk: Desk::new() };
        for directory in [".gnupg", ".config/containers/registries.d"] {
            fs::create_dir_all(office.desk.path(directory)).expect("a directory");
        }
        office.ran("chmod", &["700", ".gnupg"]);
        office.key(OWNER, "", "never");
        office.lookaside(&format!("lookaside: file://{}", office.store().display()));
        office
    }

    fn store(&self) -> PathBuf {
        self.desk.path("signatures")
    }

    fn settings(&self) -> PathBuf {
        self.desk.path(".config/containers/registries.d")
    }

    fn lookaside(&self, what: &str) {
        let text = format!("# where signatures lie\ndocker:\n  {}:\n    {what}\n", self.desk.address());
        fs::write(self.settings().join("registry.yaml"), text).expect("written");
    }

    fn tool(&self, program: &str, arguments: &[&str]) -> Output {
        self.desk.command_of(program).args(arguments).output().expect("the program starts")
    }

    #[track_caller]
    fn ran(&self, program: &str, arguments: &[&str]) -> String {
        Ended::from(self.tool(program, arguments)).success()
    }

    /// Makes a key, and writes its public half to `OWNER.gpg`.
    fn key(&self, owner: &str, password: &str, expires: &str) {
        let make = ["--batch", "--passphrase", password, "--quick-generate-key", owner, "ed25519", "sign", expires];
        self.ran("gpg", &make);
        let key = self.tool("gpg", &["--armor", "--export", owner]).stdout;
        fs::write(self.desk.path(&format!("{owner}.gpg")), key).expect("written");
    }

    /// A policy that demands a signature of the key in a file, and takes nothing else.
    fn policy(&self, more: &Value) {
        let mut signed = json!({"type": "signedBy", "keyType": "GPGKeys"});
        signed.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let registries = json!({self.desk.address(): [signed]});
        let policy = json!({"default": [{"type": "reject"}],
            "transports": {"docker": registries, "dir": {"": [signed]}, "oci": {"": [signed]}}});
        self.desk.write("policy.json", policy.to_string());
    }

    fn usual_policy(&self) {
        self.policy(&json!({"keyPath": self.desk.path(&format!("{OWNER}.gpg"))}));
    }

    fn skopeo(&self, arguments: &[&str]) -> Ended {
        let settings = self.settings();
        let first = ["--registries.d", settings.to_str().expect("UTF-8"), "--policy", "policy.json"];
        self.tool("skopeo", &[&first[..], arguments].concat()).into()
    }

    fn pull(&self, name: &str) -> Ended {
        self.desk.run_afresh(&["pull", "--signature-policy", "policy.json", &self.desk.at(name)])
    }

    /// Signs as skopeo does it, in copying from one name to another.
    fn skopeo_signs(&self, from: &str, to: &str, key: &str) {
        let place = |name: &str| format!("docker://{}", self.desk.at(name));
        let flags = ["copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false", "--remove-signatures"];
        self.desk.write("policy.json", r#"{"default":[{"type":"insecureAcceptAnything"}]}"#);
        self.skopeo(&[&flags[..], &["--sign-by", key, &place(from), &place(to)]].concat()).success();
    }

    /// Where the first signature of an image lies.
    fn signature(&self, repository: &str, digest: &str, number: usize) -> PathBuf {
        self.store().join(format!("{repository}@{}/signature-{number}", digest.replace(':', "=")))
    }
}

#[test]
fn what_gpg_signs_for_us_skopeo_takes_and_we_take() {
    let office = Office::new();
    let desk = &office.desk;
    let digest = desk.push("team/app:1", "linux/amd64", "one");
    office.usual_policy();
    office.pull("team/app:1").failure(1, "there is no signature of sha256:");
    let sign = |more: &[&str]| desk.run(&[&["sign", "--gpg-key", OWNER, &desk.at("team/app:1")], more].concat());
    for _ in 0..2 {
        assert_eq!(sign(&[]).success(), digest);
    }
    assert!(office.signature("team/app", &digest, 1).is_file() && !office.signature("team/app", &digest, 2).exists());
    office.pull("team/app:1").success();
    let copy = ["copy", "-q", "--src-tls-verify=false"];
    let place = |name: &str| format!("docker://{}", desk.at(name));
    office.skopeo(&[&copy[..], &[&place("team/app:1"), "dir:copied"]].concat()).success();
    let fingerprint = office.ran("gpg", &["--with-colons", "--list-keys", OWNER]);
    let fingerprint = fingerprint.lines().find(|line| line.starts_with("fpr:")).expect("one").split(':').nth(9);
    let signature = office.signature("team/app", &digest, 1);
    let verify = [
        "standalone-verify",
        "copied/manifest.json",
        &desk.at("team/app:1"),
        fingerprint.expect("one"),
        signature.to_str().expect("UTF-8"),
    ];
    assert!(office.skopeo(&verify).success().contains(&digest));
    // It went with the copy; and for another name it counts for neither.
    desk.run(&["copy", "--signature-policy", "policy.json", "dir:copied", "oci:out"]).failure(1, "another name");
    desk.run(&["copy", &place("team/app:1"), &place("team/app:2")]).success();
    office.pull("team/app:2").failure(1, "it is for another name");
    let refused = office.skopeo(&[&copy[..], &[&place("team/app:2"), "dir:other"]].concat());
    assert!(refused.code != Some(0) && refused.stderr.contains("is not accepted"), "{}", refused.stderr);
    office.pull(&format!("team/app@{digest}")).success();
    sign(&["--identity", &desk.at("team/app:2"), "--annotation", "commit=abc"]).success();
    office.pull("team/app:2").success();
    office.skopeo(&[&copy[..], &[&place("team/app:2"), "dir:other"]].concat()).success();
    let verified = ["verify", "--gpg-key", &format!("{OWNER}.gpg"), "--format", "json", &desk.at("team/app:1")];
    let rows = desk.run(&verified).json();
    assert_eq!((&rows[0]["key"], &rows[0]["identity"]), (&json!(fingerprint), &json!(desk.at("team/app:1"))));
    assert_eq!(rows[1]["annotations"]["commit"], "abc");
    desk.run(&["verify", "--gpg-key", "policy.json", &desk.at("team/app:1")]).failure(1, "policy.json: it has no line");
}

#[test]
fn what_skopeo_signs_we_take_of_keys_in_every_form() {
    let office = Office::new();
    let desk = &office.desk;
    let digest = desk.push("app:source", "linux/amd64", "one");
    office.skopeo_signs("app:source", "app:1", OWNER);
    office.key("other@r.example", "", "never");
    office.ran("gpg", &["--output", "binary.gpg", "--export", OWNER]);
    let (ours, other) = (desk.path(&format!("{OWNER}.gpg")), desk.path("other@r.example.gpg"));
    let data = |path: &Path| {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(fs::read(path).expect("there"))
    };
    for keys in [
        json!({"keyPath": ours}),
        json!({"keyPath": desk.path("binary.gpg")}),
        json!({"keyPaths": [other, ours]}),
        json!({"keyData": data(&ours)}),
        json!({"keyData": data(&desk.path("binary.gpg")), "signedIdentity": {"type": "matchExact"}}),
    ] {
        office.policy(&keys);
        office.pull("app:1").success();
        office.pull("app:source").failure(1, "another name");
    }
    office.policy(&json!({"keyPath": other}));
    office.pull("app:1").failure(1, "it is of another key");
    office.policy(&json!({"keyPath": desk.path("none")}));
    office.pull("app:1").failure(1, "demands signedBy, and cannot read a GPG key");
    office.policy(&json!({"keyPath": ours, "signedIdentity": {"type": "matchRepository"}}));
    office.pull("app:source").success();
    // A signature of something else, and one that is none, do not keep a good one out.
    let first = office.signature("app", &digest, 1);
    fs::copy(&first, office.signature("app", &digest, 3)).expect("copied");
    fs::write(office.signature("app", &digest, 2), "nothing").expect("written");
    let mut damaged = fs::read(&first).expect("there");
    let last = damaged.len() - 9;
    damaged[last] ^= 1;
    fs::write(&first, damaged).expect("written");
    office.pull("app:1").success();
    fs::remove_file(office.signature("app", &digest, 3)).expect("removed");
    office.pull("app:1").failure(1, "no signature of sha256:");
}

#[test]
fn a_key_that_has_expired_or_was_revoked_counts_no_more() {
    let office = Office::new();
    let desk = &office.desk;
    let digest = desk.push("app:1", "linux/amd64", "one");
    // Its life, and what it signed in that, are over before it is looked at.
    let make = ["--faked-system-time", "20240101T000000!", "--batch", "--passphrase", "", "--quick-generate-key"];
    office.ran("gpg", &[&make[..], &["old@r.example", "ed25519", "sign", "1d"]].concat());
    office.ran("gpg", &["--output", "old.gpg", "--export", "old@r.example"]);
    let payload = json!({"critical": {"type": "atomic container signature", "image": {"docker-manifest-digest": digest},
        "identity": {"docker-reference": desk.at("app:1")}}, "optional": {"timestamp": 1_704_070_000, "creator": "a person"}});
    desk.write("payload", payload.to_string());
    let store = office.signature("app", &digest, 1);
    fs::create_dir_all(store.parent().expect("a directory")).expect("made");
    let then = ["--faked-system-time", "20240101T010000!", "--yes", "--local-user", "old@r.example", "--output"];
    office.ran("gpg", &[&then[..], &[store.to_str().expect("UTF-8"), "--sign", "payload"]].concat());
    office.policy(&json!({"keyPath": desk.path("old.gpg")}));
    office.pull("app:1").failure(1, "has expired");
    fs::remove_file(&store).expect("removed");
    let refused = desk.run(&["sign", "--gpg-key", "old@r.example", &desk.at("app:1")]);
    assert!(refused.code == Some(1) && refused.stderr.contains("cannot sign"), "{}", refused.stderr);
    office.key("gone@r.example", "", "never");
    desk.run(&["sign", "--gpg-key", "gone@r.example", &desk.at("app:1")]).success();
    office.policy(&json!({"keyPath": desk.path("gone@r.example.gpg")}));
    office.pull("app:1").success();
    let revocation =
        fs::read_dir(desk.path(".gnupg/openpgp-revocs.d")).expect("there").map(|entry| entry.expect("read").path());
    let listed = office.ran("gpg", &["--with-colons", "--list-keys", "gone@r.example"]);
    let own = |path: &PathBuf| listed.contains(path.file_stem().and_then(|stem| stem.to_str()).expect("text"));
    let revocation = revocation.into_iter().find(own).expect("made with the key");
    let text = fs::read_to_string(revocation).expect("text").replace(":-----BEGIN", "-----BEGIN");
    desk.write("revocation", text);
    office.ran("gpg", &["--batch", "--import", "revocation"]);
    office.ran("gpg", &["--yes", "--output", "gone.gpg", "--export", "gone@r.example"]);
    office.policy(&json!({"keyPath": desk.path("gone.gpg")}));
    office.pull("app:1").failure(1, "was revoked");
}

/// Serves the files below a directory.
fn serve(directory: PathBuf) -> FaultServer {
    FaultServer::start(move |request| match fs::read(directory.join(request.path.trim_start_matches('/'))) {
        Ok(body) => Reply::new(200).body(body),
        Err(_) => Reply::new(404),
    })
}

#[test]
fn stores_are_read_from_the_web_and_written_where_staging_is() {
    let office = Office::new();
    let desk = &office.desk;
    desk.push("app:1", "linux/amd64", "one");
    let server = serve(office.store());
    let address = server.address();
    office.usual_policy();
    let sign = || desk.run(&["sign", "--gpg-key", OWNER, &desk.at("app:1")]);
    office.lookaside(&format!("lookaside: http://{address}/"));
    sign().failure(1, "lookaside-staging names where it is written");
    office.pull("app:1").failure(1, "there is no signature");
    office.lookaside(&format!(
        "{{lookaside: 'http://{address}/', lookaside-staging: 'file://{}'}}",
        office.store().display()
    ));
    sign().success();
    office.pull("app:1").success();
    desk.run(&["verify", "--gpg-key", &format!("{OWNER}.gpg"), &desk.at("app:1")]).success();
    let flags = ["copy", "-q", "--src-tls-verify=false", &format!("docker://{}", desk.at("app:1")), "dir:copied"];
    office.skopeo(&flags).success();
    // Settings that are not understood, a store that does not answer and one of another kind are told where they matter.
    office.lookaside("sigstore: https://127.0.0.1:1/");
    office.pull("app:1").failure(3, "127.0.0.1:1");
    office.lookaside("lookaside: ftp://r.example");
    office.pull("app:1").failure(1, "is no URL of file, http or https");
    office.lookaside("look-aside: file:///x");
    office.pull("app:1").failure(1, "registry.yaml: ");
    desk.run_afresh(&["pull", &desk.at("app:1")]).success();
    // Without any settings the store is the one of skopeo's: below the home of a person, or the machine's.
    fs::remove_dir_all(office.settings()).expect("removed");
    office.pull("app:1").failure(1, "there is no signature");
}

#[test]
fn passwords_come_from_a_file_and_a_key_must_be_one() {
    let office = Office::new();
    let desk = &office.desk;
    desk.push("app:1", "linux/amd64", "one");
    office.key("sealed@r.example", "hunter2-gpg", "never");
    office.ran("gpgconf", &["--kill", "gpg-agent"]);
    let name = desk.at("app:1");
    let sign = |key: &str, more: &[&str]| desk.run(&[&["sign", "--gpg-key", key, &name], more].concat());
    desk.write("wrong", "hunter2-wrong\n");
    desk.write("right", "hunter2-gpg\n");
    let wrong = sign("sealed@r.example", &["--password-file", "wrong"]);
    assert!(!wrong.stderr.contains("hunter2"), "{}", wrong.stderr);
    wrong.failure(1, "cannot sign with the key");
    sign("sealed@r.example", &["--password-file", "right"]).success();
    sign("nobody@r.example", &[]).failure(1, "cannot find the GPG key: \"nobody@r.example\"");
    sign("r.example", &[]).failure(1, "more than one key has it");
    sign(OWNER, &["--referrer"]).failure(2, "--referrer");
    sign(OWNER, &["--key", "release.key"]).failure(2, "--key");
    desk.run(&["sign", &name]).failure(2, "--key");
    desk.run(&["sign", "--gpg-key", OWNER, "--identity", &name, "oci:layout"])
        .failure(2, "GPG signs what lies at a registry");
    desk.run(&["verify", "--identity", &name, &name]).failure(2, "--key");
}

#[test]
fn a_signature_that_unpacks_without_end_is_given_up() {
    let office = Office::new();
    let desk = &office.desk;
    let digest = desk.push("app:1", "linux/amd64", "one");
    desk.run(&["sign", "--gpg-key", OWNER, &desk.at("app:1")]).success();
    office.usual_policy();
    let (first, second) = (office.signature("app", &digest, 1), office.signature("app", &digest, 2));
    fs::rename(&first, &second).expect("moved");
    let zeros = [
        "-c",
        "head -c 60M /dev/zero | gpg --batch --compress-algo bzip2 --local-user release@r.example --sign > bomb",
    ];
    office.ran("sh", &zeros);
    let bomb = fs::read(desk.path("bomb")).expect("there");
    assert!(bomb.len() < 60_000, "{}", bomb.len());
    fs::write(&first, bomb).expect("written");
    office.pull("app:1").success();
    fs::remove_file(&second).expect("removed");
    office.pull("app:1").failure(1, "larger than 65536 bytes");
    fs::write(&first, vec![0x99; 70_000]).expect("written");
    office.pull("app:1").failure(1, "signature-1: it is larger");
}

#[test]
fn gpg_signatures_go_with_a_copy_as_with_skopeos() {
    let office = Office::new();
    let desk = &office.desk;
    let digest = desk.push("team/app:1", "linux/amd64", "one");
    office.policy(&json!({"keyPath": desk.path(&format!("{OWNER}.gpg")),
        "signedIdentity": {"type": "exactRepository", "dockerRepository": desk.at("team/app")}}));
    desk.run(&["sign", "--gpg-key", OWNER, &desk.at("team/app:1")]).success();
    let place = |name: &str| format!("docker://{}", desk.at(name));
    let signatures = |repository: &str| {
        let read = |number| fs::read(office.signature(repository, &digest, number)).ok();
        (1..).map_while(read).collect::<Vec<_>>()
    };
    let original = signatures("team/app");
    assert_eq!(original.len(), 1);
    let skopeo = |more: &[&str]| {
        let flags = ["copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false"];
        office.skopeo(&[&flags[..], more].concat())
    };
    // From one registry to another, each once, and beside those that are there.
    skopeo(&[&place("team/app:1"), &place("theirs:1")]).success();
    fs::create_dir_all(office.signature("ours", &digest, 1).parent().expect("it has one")).expect("made");
    fs::write(office.signature("ours", &digest, 1), "another's").expect("written");
    for _ in 0..2 {
        assert_eq!(desk.run(&["copy", &place("team/app:1"), &place("ours:1")]).success(), digest);
    }
    assert_eq!(signatures("theirs"), original);
    assert_eq!(signatures("ours"), [b"another's".to_vec(), original[0].clone()]);
    // Under a policy too, and by way of a directory.
    let checked = ["copy", "--signature-policy", "policy.json"];
    desk.run(&[&checked[..], &[&place("ours:1"), "dir:here"]].concat()).success();
    desk.run(&["copy", &place("team/app:1"), "dir:here"]).success();
    assert_eq!(fs::read(desk.path("here/signature-1")).expect("there"), original[0]);
    assert!(!desk.path("here/signature-2").exists(), "what was another image's");
    desk.run(&[&checked[..], &["dir:here", &place("back:1")]].concat()).success();
    office.pull("back:1").success();
    assert_eq!(signatures("back"), original);
    skopeo(&["dir:here", &place("forth:1")]).success();
    assert_eq!(signatures("forth"), original);
    // What cannot keep them says so before anything is moved, and the store keeps none.
    let refused = skopeo(&[&place("team/app:1"), "oci:theirs"]);
    assert!(refused.code != Some(0) && refused.stderr.contains("Can not copy signatures"), "{}", refused.stderr);
    for destination in ["oci:ours", "oci-archive:ours.tar", "docker-archive:ours.tar"] {
        desk.run(&["copy", &place("team/app:1"), destination]).failure(1, "--remove-signatures leaves them behind");
        assert!(!desk.path("ours").exists() && !desk.path("ours.tar").exists());
    }
    let anew = ["copy", "--compression", "zstd", "--force-compression", &place("team/app:1"), &place("anew:1")];
    desk.run(&anew).failure(1, "--remove-signatures leaves them behind");
    desk.run(&[&anew[..], &["--remove-signatures"]].concat()).success();
    desk.run(&["copy", "--remove-signatures", &place("team/app:1"), "oci:ours"]).success();
    desk.run(&["copy", "--remove-signatures", &place("team/app:1"), &place("bare:1")]).success();
    assert_eq!(signatures("bare"), Vec::<Vec<u8>>::new());
    desk.run(&["copy", &place("team/app:1"), "stored:1"]).success();
}

#[test]
fn signatures_of_every_image_of_an_index_go_with_it() {
    let office = Office::new();
    let desk = &office.desk;
    let digests = ["amd64", "arm64"].map(|cpu| desk.push(&format!("app:{cpu}"), &format!("linux/{cpu}"), cpu));
    let names = ["all", "amd64", "arm64"].map(|tag| desk.at(&format!("app:{tag}")));
    desk.run(&["manifest", "create", &names[0], &names[1], &names[2]]).success();
    desk.run(&["manifest", "push", &names[0]]).success();
    desk.run(&["sign", "--recursive", "--gpg-key", OWNER, &names[0]]).success();
    fs::write(desk.path("policy.json"), r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).expect("written");
    let all = format!("docker://{}", names[0]);
    desk.run(&["copy", "--all", &all, "dir:ours"]).success();
    office.skopeo(&["copy", "-q", "--all", "--src-tls-verify=false", &all, "dir:theirs"]).success();
    let files = |directory: &str| {
        let entries = fs::read_dir(desk.path(directory)).expect("listed").flatten();
        let mut found: Vec<_> =
            entries.map(|entry| (entry.file_name(), fs::read(entry.path()).expect("read"))).collect();
        found.sort();
        found
    };
    assert!(files("ours") == files("theirs"), "{:?}", files("ours").iter().map(|(name, _)| name).collect::<Vec<_>>());
    desk.run(&["copy", "--all", "dir:ours", &format!("docker://{}", desk.at("copied:all"))]).success();
    for digest in &digests {
        assert!(office.signature("copied", digest, 1).is_file());
    }
}
