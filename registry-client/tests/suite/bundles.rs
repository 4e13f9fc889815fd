//! Signatures in cosign 3's form: what openssl signed for us, put together as cosign does it, and what we sign.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oci_spec::image::{Descriptor, Digest, MediaType};
use registry_client::*;
use serde_json::{Value, json};

use crate::keyless::Office;
use crate::support::*;

const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";

fn top(image: &MemoryImage) -> Manifest {
    image.top().expect("it has a manifest")
}

/// One of these keys, for any name or none.
fn demands(keys: Vec<PublicKey>) -> Demands {
    let name = "docker://r.example/app:1".parse().expect("a name");
    Demands::of_keys(&name, keys, SignedIdentity::MatchRepository {}, BTreeMap::new()).expect("sound").or_nameless()
}

fn check(demands: &Demands, image: &MemoryImage) -> Result<Vec<Accepted>, Error> {
    demands.check(image, &top(image))
}

#[track_caller]
fn refused<T>(outcome: Result<T, Error>, words: &str) {
    let error = outcome.map(drop).expect_err(words);
    assert!(matches!(error.cause(), Cause::Untrusted(_)) && error.to_string().contains(words), "{words:?} in {error}");
}

/// Lists a bundle among the referrers, with the predicate type that its manifest tells.
fn put(image: &MemoryImage, bundle: &[u8], predicate: &str) {
    let content = bundle.to_vec();
    let layer = Descriptor::new(MediaType::from(BUNDLE), content.len() as u64, digest_of(&content));
    let artifact = Artifact {
        artifact_type: BUNDLE.to_owned(),
        subject: Some(top(image).descriptor()),
        layers: vec![(layer, &content)],
        annotations: [("dev.sigstore.bundle.predicateType".to_owned(), predicate.to_owned())].into(),
    };
    artifact.put(image).expect("put");
}

fn statement(digest: &Digest) -> Value {
    json!({"_type": "https://in-toto.io/Statement/v1", "predicateType": PREDICATE, "predicate": {},
        "subject": [{"digest": {"sha256": digest.digest()}, "annotations": {"commit": "abc"}}]})
}

/// What DSSE signs of a statement.
fn envelope_text(statement: &str) -> String {
    format!("DSSEv1 28 application/vnd.in-toto+json {} {statement}", statement.len())
}

/// A bundle of a statement as cosign writes it, without an entry of a log.
fn bundle(office: &Office, key: &str, statement: &Value, material: Value) -> Value {
    let statement = statement.to_string();
    let signature = office.sign(key, envelope_text(&statement).as_bytes());
    json!({"mediaType": BUNDLE, "verificationMaterial": material, "dsseEnvelope": {
        "payload": STANDARD.encode(statement), "payloadType": "application/vnd.in-toto+json",
        "signatures": [{"sig": STANDARD.encode(signature)}]}})
}

/// Adds what a log says of it.
fn note(office: &Office, bundle: &mut Value, log: &str, signer: &str, change: impl Fn(&mut Value)) {
    let statement = STANDARD.decode(bundle["dsseEnvelope"]["payload"].as_str().expect("text")).expect("base64");
    let mut body = json!({"apiVersion": "0.0.1", "kind": "dsse", "spec": {
        "envelopeHash": {"algorithm": "sha256", "value": "00"},
        "payloadHash": {"algorithm": "sha256", "value": digest_of(&statement).digest()},
        "signatures": [{"signature": bundle["dsseEnvelope"]["signatures"][0]["sig"],
            "verifier": STANDARD.encode(office.text(signer))}]}});
    change(&mut body);
    let body = STANDARD.encode(body.to_string());
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let signed = format!(r#"{{"body":"{body}","integratedTime":{seconds},"logID":"c0d2","logIndex":7}}"#);
    bundle["verificationMaterial"]["tlogEntries"] = json!([{
        "logIndex": "7", "integratedTime": seconds.to_string(), "canonicalizedBody": body,
        "logId": {"keyId": STANDARD.encode([0xc0, 0xd2])}, "kindVersion": {"kind": "dsse", "version": "0.0.1"},
        "inclusionPromise": {"signedEntryTimestamp": STANDARD.encode(office.sign(log, signed.as_bytes()))}}]);
}

#[test]
fn what_we_sign_as_a_bundle_counts_and_is_there_once() {
    let (image, key) = (MemoryImage::of_layers("a", &[]), PrivateKey::generate().expect("made"));
    let annotations = BTreeMap::from([("commit".to_owned(), "abc".to_owned())]);
    let payload = Payload::nameless(image.digest(), annotations.clone());
    assert!(sign_bundle(&image, &image, &top(&image), &payload, &key).expect("signed"));
    assert!(!sign_bundle(&image, &image, &top(&image), &payload, &key).expect("nothing to do"));
    let referrers = image.referrers(&image.digest()).expect("listed");
    assert_eq!(
        (referrers.len(), referrers[0].artifact_type().as_ref().map(ToString::to_string)),
        (1, Some(BUNDLE.into()))
    );
    assert_eq!(referrers[0].annotations().as_ref().expect("some")["dev.sigstore.bundle.predicateType"], PREDICATE);
    let accepted = check(&demands(vec![key.public()]), &image).expect("it counts");
    assert_eq!((&accepted[0].payload.identity, &accepted[0].payload.annotations), (&None, &annotations));
    let other = PrivateKey::generate().expect("made");
    refused(check(&demands(vec![other.public()]), &image), "of another key");
    let name = "docker://r.example/app:1".parse().expect("a name");
    let named = Demands::of_keys(&name, vec![key.public()], SignedIdentity::MatchRepository {}, BTreeMap::new());
    refused(check(&named.expect("sound"), &image), "for no name, and one is demanded");
}

#[test]
fn what_others_sign_as_a_bundle_counts_and_nothing_odd() {
    let (office, image) = (Office::new(), MemoryImage::of_layers("a", &[]));
    let key = || json!({"publicKey": {"hint": "any"}});
    let trusted = demands(vec![PublicKey::open(&office.path("key.pub")).expect("a key")]);
    let good = bundle(&office, "key.key", &statement(&image.digest()), key());
    let outcome = |bundle: &Value| {
        let image = MemoryImage::of_layers("a", &[]);
        put(&image, bundle.to_string().as_bytes(), PREDICATE);
        check(&trusted, &image)
    };
    assert_eq!(outcome(&good).expect("it counts")[0].payload.annotations["commit"], "abc");
    for (pointer, value, words) in [
        ("/mediaType", json!("application/vnd.dev.sigstore.bundle+json;version=0.1"), "of another version"),
        ("/verificationMaterial", json!({}), "neither a key nor a certificate"),
        ("/verificationMaterial", json!([]), "neither a key nor a certificate"),
        ("/dsseEnvelope/payload", json!("AAAA"), "of another key, or damaged"),
        ("/dsseEnvelope/payload", json!("-"), "the statement is none"),
        ("/dsseEnvelope/payloadType", json!("text/plain"), "no statement of in-toto"),
        ("/dsseEnvelope/signatures", json!([]), "not one signature"),
        ("/dsseEnvelope/signatures/0", json!(7), "the signature is none"),
        ("/dsseEnvelope", json!({}), "has not exactly the parts"),
    ] {
        let mut odd = good.clone();
        *odd.pointer_mut(pointer).expect("there") = value;
        refused(outcome(&odd), words);
    }
    for (pointer, value, words) in [
        ("/subject/0/digest/sha256", json!("a".repeat(64)), "of another image"),
        ("/subject/0/digest", json!({"sha256": "a".repeat(64), "sha512": "b".repeat(128)}), "its digest is none"),
        ("/subject/0/annotations", json!(["abc"]), "its annotations are none"),
        ("/subject/0", json!({"digest": {"sha256": image.digest().digest()}, "name": "x"}), "not known"),
        ("/subject", json!([]), "not about one image"),
        ("/predicateType", json!("https://slsa.dev/provenance/v1"), "something else about it"),
        ("/_type", json!("https://in-toto.io/Statement/v0.1"), "something else about it"),
        ("/predicate", json!(null), "something else about it"),
    ] {
        let mut odd = statement(&image.digest());
        *odd.pointer_mut(pointer).expect("there") = value;
        refused(outcome(&bundle(&office, "key.key", &odd, key())), words);
    }
    // What is said of it elsewhere does not make a bill of material a signature, and a large one is not read.
    let image = MemoryImage::of_layers("a", &[]);
    put(&image, &vec![b' '; 1 << 20], PREDICATE);
    refused(check(&trusted, &image), "larger than 65536 bytes");
    put(&image, &vec![b' '; 1 << 20], "https://spdx.dev/Document");
    put(&image, good.to_string().as_bytes(), PREDICATE);
    assert_eq!(check(&trusted, &image).expect("odd ones keep no good one out").len(), 1);
}

#[test]
fn a_person_counts_by_a_bundle_whose_entry_a_log_signed() {
    let (office, image) = (Office::new(), MemoryImage::of_layers("a", &[]));
    std::fs::write(office.path("anchors.pem"), office.text("root.pem") + &office.text("middle.pem")).expect("written");
    let mut requirement = office.usual();
    requirement["fulcio"]["caPath"] = office.path("anchors.pem").to_str().into();
    let demands = office.policy(&requirement).expect("sound");
    office.openssl(&["x509", "-in", "person.pem", "-outform", "DER", "-out", "person.der"]);
    let der = STANDARD.encode(std::fs::read(office.path("person.der")).expect("there"));
    let material = || json!({"certificate": {"rawBytes": der}});
    let outcome = |key: &str, log: &str, signer: &str, change: &dyn Fn(&mut Value)| {
        let image = MemoryImage::of_layers("a", &[]);
        let mut bundle = bundle(&office, key, &statement(&image.digest()), material());
        note(&office, &mut bundle, log, signer, change);
        put(&image, bundle.to_string().as_bytes(), PREDICATE);
        check(&demands.clone().or_nameless(), &image)
    };
    let same = |_: &mut Value| {};
    let accepted = outcome("person.key", "log.key", "person.pem", &same).expect("it counts");
    assert_eq!(accepted[0].signer.to_string(), "me@r.example");
    refused(outcome("person.key", "other.key", "person.pem", &same), "of another log");
    refused(outcome("person.key", "log.key", "middle.pem", &same), "of another key or certificate");
    refused(outcome("key.key", "log.key", "person.pem", &same), "not of the key of its certificate");
    let noted = |change: &dyn Fn(&mut Value)| outcome("person.key", "log.key", "person.pem", change);
    refused(noted(&|body| body["kind"] = "hashedrekord".into()), "none of the kind dsse");
    refused(noted(&|body| body["spec"]["payloadHash"]["value"] = "00".into()), "of something else");
    refused(noted(&|body| body["spec"]["signatures"][0]["signature"] = "AAAA".into()), "of another signature");
    refused(
        noted(&|body| {
            let first = body["spec"]["signatures"][0].clone();
            body["spec"]["signatures"].as_array_mut().expect("a list").push(first);
        }),
        "has not one signature",
    );
    put(
        &image,
        bundle(&office, "person.key", &statement(&image.digest()), material()).to_string().as_bytes(),
        PREDICATE,
    );
    refused(check(&demands.clone().or_nameless(), &image), "no log entry lies in its bundle");
}

#[test]
fn bundles_that_are_almost_right_are_read_without_panic() {
    let (office, trusted) =
        (Office::new(), |office: &Office| demands(vec![PublicKey::open(&office.path("key.pub")).expect("a key")]));
    let trusted = trusted(&office);
    let digest = MemoryImage::of_layers("a", &[]).digest();
    let mut good = bundle(&office, "key.key", &statement(&digest), json!({"publicKey": {"hint": "any"}}));
    note(&office, &mut good, "log.key", "key.pub", |_| {});
    let good = good.to_string().into_bytes();
    let mut counted = 0;
    for number in 0..400 {
        let mut bytes = good.clone();
        let at = (number * 7919) % bytes.len();
        bytes[at] = b"A=9/\"{}-\n1"[number % 10];
        let image = MemoryImage::of_layers("a", &[]);
        put(&image, &bytes, PREDICATE);
        counted += usize::from(check(&trusted, &image).is_ok());
    }
    assert!((1..350).contains(&counted), "some bytes mean nothing, and most do: {counted}");
}
