//! Signatures of people without keys: certificates of an authority and entries of a log, both made here by openssl.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fixtures::output;
use oci_spec::image::MediaType;
use registry_client::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::*;

const PERSON: &str = "me@r.example";
const ISSUER: &str = "https://issuer.example";

/// An authority, one below it, a log, and what they made.
pub(crate) struct Office(TempDir);

impl Office {
    pub(crate) fn new() -> Self {
        let office = Self(tempfile::tempdir().expect("a directory"));
        for name in ["root", "middle", "other", "log", "person", "key"] {
            office.openssl(&[
                "genpkey",
                "-algorithm",
                "EC",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-out",
                &format!("{name}.key"),
            ]);
            office.openssl(&["pkey", "-in", &format!("{name}.key"), "-pubout", "-out", &format!("{name}.pub")]);
        }
        for name in ["root", "other"] {
            let (key, pem, subject) = (format!("{name}.key"), format!("{name}.pem"), format!("/CN={name}"));
            office.openssl(&["req", "-x509", "-new", "-key", &key, "-subj", &subject, "-days", "9", "-out", &pem]);
        }
        office.certify(
            "middle",
            "/CN=middle",
            "root",
            "basicConstraints=critical,CA:TRUE\nextendedKeyUsage=codeSigning",
        );
        office.person("extendedKeyUsage=codeSigning", "middle");
        office
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn openssl(&self, arguments: &[&str]) {
        output(Command::new("openssl").args(arguments).current_dir(self.0.path()));
    }

    fn certify(&self, name: &str, subject: &str, by: &str, extensions: &str) {
        std::fs::write(self.path("extensions"), extensions).expect("written");
        let (key, pem) = (format!("{name}.key"), format!("{name}.pem"));
        self.openssl(&["req", "-new", "-key", &key, "-subj", subject, "-out", "request"]);
        let (by_pem, by_key) = (format!("{by}.pem"), format!("{by}.key"));
        let by = ["-CA", &by_pem, "-CAkey", &by_key, "-CAcreateserial", "-days", "1"];
        self.openssl(&[&["x509", "-req", "-in", "request", "-extfile", "extensions", "-out", &pem][..], &by].concat());
    }

    /// A certificate as Fulcio makes it.
    fn person(&self, usage: &str, by: &str) {
        let plain: String = ISSUER.bytes().map(|byte| format!("{byte:02x}")).collect();
        let extensions = format!(
            "{usage}\nkeyUsage=critical,digitalSignature\nsubjectAltName=critical,email:{PERSON}\n\
             1.3.6.1.4.1.57264.1.1=DER:{plain}\n1.3.6.1.4.1.57264.1.8=ASN1:UTF8String:{ISSUER}\n"
        );
        self.certify("person", "/", by, &extensions);
    }

    pub(crate) fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).expect("text")
    }

    pub(crate) fn sign(&self, key: &str, text: &[u8]) -> Vec<u8> {
        std::fs::write(self.path("text"), text).expect("written");
        self.openssl(&["dgst", "-sha256", "-sign", key, "-out", "signature", "text"]);
        std::fs::read(self.path("signature")).expect("signed")
    }

    /// What a log says of a signature; its parts may be others before it signs.
    fn entry(&self, log: &str, seconds: u64, body: &Value) -> String {
        let body = STANDARD.encode(body.to_string());
        let signed = format!(r#"{{"body":"{body}","integratedTime":{seconds},"logID":"c0d2","logIndex":7}}"#);
        let promise = STANDARD.encode(self.sign(log, signed.as_bytes()));
        let payload: Value = serde_json::from_str(&signed).expect("JSON");
        json!({"SignedEntryTimestamp": promise, "Payload": payload}).to_string()
    }

    /// An image that is signed, as `change` would have it.
    fn signed(&self, change: impl Fn(&mut Signed)) -> MemoryImage {
        let image = MemoryImage::sample("signed");
        let payload = json!({"critical": {"identity": {"docker-reference": "r.example/app:1"},
            "image": {"docker-manifest-digest": image.digest()}, "type": "cosign container image signature"}, "optional": null});
        let mut signed = Signed::of(&payload.to_string());
        change(&mut signed);
        let signature = self.sign(&signed.key, signed.payload.as_bytes());
        let noted = |text: &str| STANDARD.encode(text);
        let body = json!({"apiVersion": "0.0.1", "kind": signed.kind, "spec": {
            "data": {"hash": {"algorithm": "sha256", "value": digest_of(signed.noted_payload.as_bytes()).digest()}},
            "signature": {"content": STANDARD.encode(signed.noted_signature.as_ref().unwrap_or(&signature)),
                "publicKey": {"content": noted(&self.text(&signed.noted_key))}}}});
        let mut annotations = HashMap::new();
        let mut add = |key: &str, value: Option<String>| annotations.extend(value.map(|value| (key.to_owned(), value)));
        add("dev.cosignproject.cosign/signature", Some(STANDARD.encode(&signature)));
        add("dev.sigstore.cosign/bundle", signed.log.as_ref().map(|log| self.entry(log, signed.seconds, &body)));
        add("dev.sigstore.cosign/certificate", signed.certificate.as_ref().map(|name| self.text(name)));
        add("dev.sigstore.cosign/chain", signed.chain.as_ref().map(|name| self.text(name) + &self.text("root.pem")));
        let media_type = MediaType::from("application/vnd.dev.cosign.simplesigning.v1+json");
        let mut layer = image.add_blob(media_type, signed.payload.into_bytes());
        layer.set_annotations(Some(annotations));
        let config = image.add_blob(MediaType::ImageConfig, b"{}".to_vec());
        let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": [layer]});
        let manifest = Manifest::new(None, manifest.to_string().into_bytes()).expect("a manifest");
        image.put_tagged(&manifest, &format!("sha256-{}.sig", image.digest().digest())).expect("put");
        image
    }

    pub(crate) fn policy(&self, requirement: &Value) -> Result<Demands, Error> {
        let mut whole = json!({"type": "sigstoreSigned", "rekorPublicKeyPath": self.path("log.pub")});
        whole.as_object_mut().expect("an object").extend(requirement.as_object().expect("an object").clone());
        let policy = json!({"default": [{"type": "reject"}], "transports": {"docker": {"": [whole]}}});
        std::fs::write(self.path("policy.json"), policy.to_string()).expect("written");
        Policy::load(&self.path("policy.json"), &[])?.demands(&"docker://r.example/app:1".parse().expect("a name"))
    }

    pub(crate) fn usual(&self) -> Value {
        json!({"fulcio": {"caPath": self.path("root.pem"), "oidcIssuer": ISSUER, "subjectEmail": PERSON}})
    }

    fn check(&self, requirement: &Value, change: impl Fn(&mut Signed)) -> Result<Vec<Accepted>, Error> {
        let image = self.signed(change);
        self.policy(requirement)?.check(&image, &image.top().expect("it has a manifest"))
    }

    #[track_caller]
    fn refused(&self, requirement: &Value, words: &str, change: impl Fn(&mut Signed)) {
        let error = self.check(requirement, change).map(drop).expect_err(words);
        assert!(
            matches!(error.cause(), Cause::Untrusted(_)) && error.to_string().contains(words),
            "{words:?} in {error}"
        );
    }
}

/// How something is signed: with which files, and what the log has of it.
struct Signed {
    key: String,
    payload: String,
    certificate: Option<String>,
    chain: Option<String>,
    log: Option<String>,
    seconds: u64,
    kind: String,
    noted_key: String,
    noted_payload: String,
    noted_signature: Option<Vec<u8>>,
}

impl Signed {
    fn of(payload: &str) -> Self {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        Self {
            key: "person.key".into(),
            payload: payload.into(),
            certificate: Some("person.pem".into()),
            chain: Some("middle.pem".into()),
            log: Some("log.key".into()),
            seconds,
            kind: "hashedrekord".into(),
            noted_key: "person.pem".into(),
            noted_payload: payload.into(),
            noted_signature: None,
        }
    }

    fn with_key(&mut self) {
        (self.key, self.noted_key) = ("key.key".into(), "key.pub".into());
        (self.certificate, self.chain) = (None, None);
    }
}

#[test]
fn a_person_counts_whose_certificate_was_good_when_the_log_noted_the_signature() {
    let office = Office::new();
    let usual = office.usual();
    let accepted = office.check(&usual, |_| {}).expect("it counts");
    assert_eq!(
        (accepted[0].signer.to_string().as_str(), accepted[0].payload.identity.as_deref().expect("named")),
        (PERSON, "r.example/app:1")
    );
    let data = |name: &str| STANDARD.encode(office.text(name));
    let mut as_data = usual.clone();
    as_data["fulcio"] = json!({"caData": data("root.pem"), "oidcIssuer": ISSUER, "subjectEmail": PERSON});
    office.check(&as_data, |_| {}).expect("it counts");
    let day = 24 * 60 * 60;
    office.refused(&usual, "certificate is not good", |signed| signed.seconds -= 2 * day);
    office.refused(&usual, "certificate is not good", |signed| signed.seconds += 2 * day);
    office.refused(&usual, "certificate is not good", |signed| signed.chain = None);
    office.refused(&usual, "no certificate lies beside it", |signed| signed.certificate = None);
    office.refused(&usual, "no log entry lies beside it", |signed| signed.log = None);
    office.refused(&usual, "of another log", |signed| signed.log = Some("other.key".into()));
    office.refused(&usual, "of another key or certificate", |signed| signed.noted_key = "middle.pem".into());
    office.refused(&usual, "of something else", |signed| signed.noted_payload.push(' '));
    office.refused(&usual, "of another signature", |signed| signed.noted_signature = Some(b"other".to_vec()));
    office.refused(&usual, "none of the kind hashedrekord", |signed| signed.kind = "dsse".into());
    // Somebody else's key under the person's certificate.
    office.refused(&usual, "not of the key of its certificate", |signed| signed.key = "key.key".into());
    office.refused(&usual, "there is not one", |signed| {
        std::fs::write(office.path("two.pem"), office.text("person.pem") + &office.text("middle.pem"))
            .expect("written");
        signed.certificate = Some("two.pem".into());
    });
    for (field, value, words) in [
        ("subjectEmail", "you@r.example", "its certificate is for \"me@r.example\", not for you@r.example"),
        ("oidcIssuer", "https://other.example", "not \"https://other.example\""),
    ] {
        let mut other = usual.clone();
        other["fulcio"][field] = value.into();
        office.refused(&other, words, |_| {});
    }
    let mut other = usual.clone();
    other["fulcio"]["caPath"] = office.path("other.pem").to_str().into();
    office.refused(&other, "certificate is not good", |_| {});
    office.person("extendedKeyUsage=serverAuth", "middle");
    office.refused(&usual, "certificate is not good", |_| {});
    // The authority above it makes certificates for authorities only; one of a person is not made by a person.
    office.person("extendedKeyUsage=codeSigning", "middle");
    for name in ["pem", "key"] {
        std::fs::copy(office.path(&format!("person.{name}")), office.path(&format!("first.{name}"))).expect("copied");
    }
    office.person("extendedKeyUsage=codeSigning", "first");
    office.refused(&usual, "certificate is not good", |signed| signed.chain = Some("first.pem".into()));
}

#[test]
fn who_has_a_certificate_of_an_authority_of_ones_own_counts_without_a_log() {
    let office = Office::new();
    let names = "subjectAltName=email:me@r.example,DNS:build.r.example";
    let made = |by: &str| office.certify("person", "/CN=me", by, &format!("{names}\nextendedKeyUsage=codeSigning"));
    made("middle");
    let pki = |more: Value| {
        let mut pki = json!({"caRootsPath": office.path("root.pem")});
        pki.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        json!({"pki": pki, "rekorPublicKeyPath": null})
    };
    let without_log = |signed: &mut Signed| signed.log = None;
    for (names, holder) in [
        (json!({"subjectEmail": PERSON}), PERSON),
        (json!({"subjectHostname": "build.r.example"}), "build.r.example"),
        (json!({"subjectEmail": PERSON, "subjectHostname": "build.r.example"}), "me@r.example build.r.example"),
    ] {
        assert_eq!(office.check(&pki(names), without_log).expect("it counts")[0].signer.to_string(), holder);
    }
    let usual = pki(json!({"subjectEmail": PERSON}));
    let known = pki(json!({"subjectEmail": PERSON, "caIntermediatesPath": office.path("middle.pem")}));
    let alone = |signed: &mut Signed| (signed.log, signed.chain) = (None, None);
    office.check(&known, alone).expect("the one between is known");
    office.refused(&usual, "certificate is not good", alone);
    office.refused(&usual, "not of the key of its certificate", |signed| signed.key = "key.key".into());
    office.refused(&pki(json!({"subjectHostname": "r.example"})), "not for r.example", without_log);
    office.refused(
        &pki(json!({"subjectHostname": "build.r.example", "subjectEmail": "you@r.example"})),
        "not for you",
        without_log,
    );
    made("other");
    office.refused(&usual, "certificate is not good", without_log);
    office.certify("person", "/CN=me", "middle", &format!("{names}\nextendedKeyUsage=serverAuth"));
    office.refused(&usual, "certificate is not good", without_log);
    // Made for no use in particular; and then one whose time is over.
    office.certify("person", "/CN=me", "middle", names);
    office.check(&usual, without_log).expect("it counts");
    let settings = "[ca]\ndefault_ca=c\n[c]\ndatabase=index\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\n\
                    [p]\ncommonName=optional\n";
    for (name, text) in [("settings", settings), ("index", ""), ("serial", "01\n")] {
        std::fs::write(office.path(name), text).expect("written");
    }
    let times =
        ["-startdate", "20240101000000Z", "-enddate", "20240102000000Z", "-in", "request", "-out", "person.pem"];
    let by = ["ca", "-batch", "-notext", "-config", "settings", "-cert", "middle.pem", "-keyfile", "middle.key"];
    office.openssl(&[&by[..], &["-extfile", "extensions"], &times].concat());
    office.refused(&usual, "certificate is not good", without_log);
}

#[test]
fn a_key_counts_with_a_log_only_where_that_noted_it() {
    let office = Office::new();
    let with_log = json!({"keyPath": office.path("key.pub")});
    let accepted = office.check(&with_log, Signed::with_key).expect("it counts");
    let key = PublicKey::open(Path::new(&office.path("key.pub"))).expect("a key");
    assert_eq!(accepted[0].signer.to_string(), key.digest().to_string());
    let without = |signed: &mut Signed| {
        signed.with_key();
        signed.log = None;
    };
    office.refused(&with_log, "no log entry lies beside it", without);
    office.refused(&with_log, "of another log", |signed| {
        signed.with_key();
        signed.log = Some("other.key".into());
    });
    office.refused(&with_log, "of another key or certificate", |signed| {
        signed.with_key();
        signed.noted_key = "other.pub".into();
    });
    let two =
        json!({"rekorPublicKeyPath": null, "rekorPublicKeyPaths": [office.path("other.pub"), office.path("log.pub")]});
    let mut either = with_log.clone();
    either.as_object_mut().expect("an object").extend(two.as_object().expect("an object").clone());
    office.check(&either, Signed::with_key).expect("one of the log's keys");
    // Who trusts the key alone takes it with an entry or without.
    let image = office.signed(without);
    let name: ImageName = "docker://r.example/app:1".parse().expect("a name");
    let alone = Demands::of_keys(&name, vec![key], SignedIdentity::MatchExact {}, BTreeMap::new()).expect("sound");
    alone.check(&image, &image.top().expect("it has a manifest")).expect("it counts");
    let rsa = ["genpkey", "-algorithm", "RSA", "-out", "rsa.key"];
    office.openssl(&rsa);
    office.openssl(&["pkey", "-in", "rsa.key", "-pubout", "-out", "rsa.pub"]);
    let of_rsa = json!({"keyPath": office.path("key.pub"), "rekorPublicKeyPath": office.path("rsa.pub")});
    assert!(office.policy(&of_rsa).expect_err("RSA").to_string().contains("none for ECDSA"));
}

#[test]
fn entries_and_certificates_that_are_almost_right_are_read_without_panic() {
    let office = Office::new();
    let image = office.signed(|_| {});
    let demands = office.policy(&office.usual()).expect("sound");
    let tag = format!("sha256-{}.sig", image.digest().digest());
    let manifest: Value = serde_json::from_slice(image.tag(&tag).expect("signed").bytes()).expect("JSON");
    let mut counted = 0;
    for number in 0..600 {
        let mut changed = manifest.clone();
        let keys = ["bundle", "certificate", "chain"];
        let key = format!("dev.sigstore.cosign/{}", keys[number % 3]);
        let text = &mut changed["layers"][0]["annotations"][&key];
        let mut bytes = text.as_str().expect("text").as_bytes().to_vec();
        let at = (number * 7919) % bytes.len();
        bytes[at] = b"A=9/\"{}-\n1"[number % 10];
        *text = String::from_utf8(bytes).expect("ASCII").into();
        let changed = Manifest::new(None, changed.to_string().into_bytes()).expect("a manifest");
        image.put_tagged(&changed, &tag).expect("put");
        counted += usize::from(demands.check(&image, &image.top().expect("it has a manifest")).is_ok());
    }
    assert!((1..500).contains(&counted), "some bytes mean nothing, and most do: {counted}");
}
