//! What a fuzzer feeds: one function a parser of what strangers send. The fuzzer's programs lie in `fuzz/`; without a
//! fuzzer the tests here drive the same functions with texts that are almost right.
//!
//! Invariant: a function panics where the parser breaks its promise, and else says whether it understood the bytes.

use oci_spec::image::Digest;

use crate::auth::challenge;
use crate::manifest::{Manifest, ManifestContent};
use crate::pages::next_link;
use crate::pull::check_content_range;
use crate::reference::{ImageName, Reference};
use crate::signature::{Bundle, Form, KeyFile, Payload, PublicKey, said_by};

/// What a person types: it is read the same again, and never leads out of the path of a URL.
pub fn reference(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let _ = text.parse::<ImageName>();
    let Ok(reference) = text.parse::<Reference>() else { return false };
    assert_eq!(reference.to_string().parse::<Reference>().expect("its own form"), reference, "{text}");
    let path = reference.repository();
    assert!(path.split('/').all(|part| !part.is_empty() && !part.starts_with('.')), "{text}");
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"/._-".contains(&byte);
    assert!(path.bytes().all(is_plain), "{text}");
    true
}

/// `WWW-Authenticate`: no more challenges than there are bytes.
pub fn www_authenticate(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let challenges = challenge::parse(text);
    assert!(challenges.len() <= text.len());
    !challenges.is_empty()
}

/// `Link`: the next page is one that the header holds.
pub fn link(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let target = next_link(text);
    assert!(target.is_none_or(|target| text.contains(&format!("<{target}>"))), "{text}");
    target.is_some()
}

/// `Content-Range` of an answer to a request for 80 of 100 bytes: only those are taken.
pub fn content_range(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let is_taken = check_content_range(Some(text), 10..90, 100).is_ok();
    assert!(!is_taken || (text.contains("10") && text.contains('-') && text.contains('/')), "{text}");
    is_taken
}

/// A manifest: its bytes stay, its digest is theirs, and what it points to is named by digests that are safe in paths.
pub fn manifest(bytes: &[u8]) -> bool {
    let Ok(manifest) = Manifest::new(None, bytes.to_vec()) else { return false };
    assert_eq!(manifest.bytes(), bytes);
    let pointed = match manifest.content() {
        ManifestContent::Image { config, layers } => layers.into_iter().chain([*config]).collect(),
        ManifestContent::Index(manifests) => manifests,
    };
    let is_safe = |digest: &Digest| !digest.digest().contains(['/', '.', '\\']) && !digest.digest().is_empty();
    assert!(pointed.iter().all(|descriptor| is_safe(descriptor.digest())));
    let _ = (manifest.subject(), manifest.artifact_type(), manifest.annotations());
    true
}

/// What somebody signed: it is the same when it is written and read again.
pub fn payload(bytes: &[u8]) -> bool {
    let read = |form| Payload::parse(form, bytes).map(|payload| (form, payload));
    let Ok((form, payload)) = read(Form::Sigstore).or_else(|_| read(Form::Gpg)) else { return false };
    assert_eq!(Payload::parse(form, &payload.to_bytes(form)).as_ref(), Ok(&payload));
    true
}

/// A bundle, or the statement in one: about one image, and for no name.
pub fn bundle(bytes: &[u8]) -> bool {
    let said = match Bundle::parse(bytes) {
        Ok(bundle) => {
            let _ = (bundle.noted().is_ok(), bundle.certificate().is_ok());
            bundle.payload()
        }
        Err(_) => said_by(bytes),
    };
    assert!(said.as_ref().is_ok_and(|payload| payload.identity.is_none()) || said.is_err());
    said.is_ok()
}

/// A public or a private key; what is no key verifies nothing.
pub fn key(bytes: &[u8]) -> bool {
    let public = PublicKey::from_pem(bytes);
    assert!(!public.as_ref().is_ok_and(|key| key.verifies(b"message", bytes)));
    KeyFile::parse(bytes).is_ok() || public.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{OCI_INDEX, OCI_MANIFEST};
    use crate::mutations::mutations;

    /// Drives a target; that enough was understood shows that the mutations go deep.
    fn drive(target: fn(&[u8]) -> bool, seeds: &[&str]) {
        let understood = mutations(seeds, 20_000).filter(|text| target(text.as_bytes())).count();
        assert!(understood > 50, "only {understood}");
        assert!(!target(b"\xff\xfe"));
    }

    #[test]
    fn names_that_are_almost_right_are_read_without_panic_and_never_lead_elsewhere() {
        let digest = format!("sha256:{}", "a1".repeat(32));
        let full = format!("registry.example:5000/team/app__x.y-z:v1.2@{digest}");
        drive(reference, &["docker://alpine", "[::1]:5000/a/b", "oci:dir/x:tag", "docker-archive:a.tar:b:1", &full]);
    }

    #[test]
    fn challenges_that_are_almost_right_are_read_without_panic() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let both = r#"Basic realm="x, y", Bearer realm=https://t/token , service = "s\"q""#;
        drive(www_authenticate, &[hub, both, r#"Digest qop="auth", nonce=abc== , Negotiate YII="#]);
    }

    #[test]
    fn links_that_are_almost_right_are_read_without_panic_and_lead_to_what_they_hold() {
        let one = r#"</v2/a/tags/list?last=x&n=2>; rel="next""#;
        let two = r#"</x,y>; rel="prev", </z>; title="a;b"; rel=next"#;
        drive(link, &[one, two, r#"<https://h/x>;title=y;rel=next"#]);
    }

    #[test]
    fn ranges_that_are_almost_right_are_read_without_panic_and_taken_only_if_they_are_right() {
        let seeds = ["bytes 10-89/100", "bytes 10-89/*", "bytes 0-18446744073709551615/18446744073709551615"];
        drive(content_range, &seeds);
    }

    #[test]
    fn documents_that_are_almost_right_are_read_without_panic() {
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let one = format!(r#"{{"mediaType":"m","digest":"{digest}","size":0}}"#);
        let image = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","artifactType":"a/b","config":{one},"layers":[{one},{one}],"subject":{one},"annotations":{{"a":"b"}}}}"#
        );
        let index = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{{"mediaType":"{OCI_MANIFEST}","digest":"{digest}","size":1,"platform":{{"os":"linux","architecture":"arm","variant":"v7"}}}}]}}"#
        );
        drive(manifest, &[&image, &index]);
    }

    #[test]
    fn payloads_that_are_almost_right_are_read_without_panic_and_the_same_again() {
        let digest = format!("sha256:{}", "a1".repeat(32));
        let with = |optional: &str| {
            let critical = format!(
                r#""identity":{{"docker-reference":"r.example/app:1"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature""#
            );
            format!(r#"{{"critical":{{{critical}}},"optional":{optional}}}"#)
        };
        drive(
            payload,
            &[&with("null"), &with(r#"{"creator":"me","timestamp":1700000000,"more":[true,null,{"a":-1.5}]}"#)],
        );
    }

    #[test]
    fn bundles_and_statements_that_are_almost_right_are_read_without_panic() {
        let statement = format!(
            r#"{{"_type":"https://in-toto.io/Statement/v1","subject":[{{"digest":{{"sha256":"{}"}},"annotations":{{"a":"b","c":1}}}}],"predicateType":"https://sigstore.dev/cosign/sign/v1","predicate":{{}}}}"#,
            "a1".repeat(32)
        );
        let base64 = |text: &str| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text);
        let entry = r#"{"logIndex":"7","logId":{"keyId":"wNI="},"integratedTime":"1700000000","inclusionPromise":{"signedEntryTimestamp":"AAAA"},"canonicalizedBody":"e30="}"#;
        let whole = format!(
            r#"{{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{{"certificate":{{"rawBytes":"AAAA"}},"tlogEntries":[{entry}]}},"dsseEnvelope":{{"payload":"{}","payloadType":"application/vnd.in-toto+json","signatures":[{{"sig":"AAAA"}}]}}}}"#,
            base64(&statement)
        );
        drive(bundle, &[&statement, &whole]);
    }

    #[test]
    fn keys_that_are_almost_right_are_read_without_panic() {
        let seeds =
            [include_str!("../tests/suite/signed/sealed.key"), include_str!("../tests/suite/signed/sealed.pub")];
        // Most changes are seen by the outermost form; what is below it has tests of its own.
        let understood = mutations(&seeds, 20_000).filter(|text| key(text.as_bytes())).count();
        assert!(understood > 10, "only {understood}");
    }
}
