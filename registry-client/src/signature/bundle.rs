//! Signatures in the form of cosign 3: a document of its own among the referrers, which holds a statement of in-toto about
//! the image, signed as DSSE has it, and who signed
//! (<https://github.com/sigstore/protobuf-specs/blob/main/protos/sigstore_bundle.proto>,
//! <https://github.com/secure-systems-lab/dsse/blob/master/protocol.md>).
//!
//! Invariant: what is read has exactly the parts that we know, one signature and one subject, so that no two tools read it
//! differently. It names a digest and no image's name. Whether it is to be trusted is for others to say.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oci_spec::image::Digest;
use serde_json::{Map, Value, json};

use super::certificate::Certificate;
use super::key::{PrivateKey, PublicKey};
use super::log::Noted;
use super::payload::{Payload, exactly, shown, strict};
use crate::error::Error;

/// The media type of the document, and the artifact type of who refers to the image with it.
pub(super) const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// What the statement is: a signature, and not a bill of material or a provenance, which lie in bundles too.
pub(super) const PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";
/// The annotation of the manifest that says the same.
pub(super) const PREDICATE_TYPE: &str = "dev.sigstore.bundle.predicateType";
/// The one that says in which way it is signed, and what it says of these.
const CONTENT: [&str; 2] = ["dev.sigstore.bundle.content", "dsse-envelope"];
const STATEMENT: &str = "https://in-toto.io/Statement/v1";
const STATEMENT_TYPE: &str = "application/vnd.in-toto+json";

/// A signed statement.
pub(crate) struct Bundle {
    statement: Vec<u8>,
    signature: Vec<u8>,
    /// In DER; `None` where a key signed.
    certificate: Option<Vec<u8>>,
    /// What logs say of it, one each.
    entries: Vec<Value>,
}

impl Bundle {
    /// Reads a document.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let odd = |what: &str| format!("its bundle is odd: {what}");
        let document = strict(bytes).map_err(|what| odd(&what))?;
        let parts = ["mediaType", "verificationMaterial", "dsseEnvelope"];
        let [media_type, material, envelope] = exactly(&document, "it", parts).map_err(|what| odd(&what))?;
        if media_type != BUNDLE {
            return Err(odd("it is of another version"));
        }
        let parts = ["payload", "payloadType", "signatures"];
        let [payload, payload_type, signatures] =
            exactly(envelope, "the envelope", parts).map_err(|what| odd(&what))?;
        if payload_type != STATEMENT_TYPE {
            return Err(odd("what is signed is no statement of in-toto"));
        }
        let [signature] = signatures.as_array().map(Vec::as_slice).unwrap_or_default() else {
            return Err(odd("there is not one signature"));
        };
        let certificate = match (material.get("publicKey"), material.get("certificate")) {
            (Some(_), None) => None,
            (None, Some(certificate)) => Some(bytes_in(certificate, "rawBytes").ok_or_else(|| odd("no certificate"))?),
            _ => return Err(odd("it names neither a key nor a certificate")),
        };
        let entries = material.get("tlogEntries").and_then(Value::as_array).cloned().unwrap_or_default();
        let statement = payload.as_str().and_then(|text| STANDARD.decode(text).ok());
        Ok(Self {
            statement: statement.ok_or_else(|| odd("the statement is none"))?,
            signature: bytes_in(signature, "sig").ok_or_else(|| odd("the signature is none"))?,
            certificate,
            entries,
        })
    }

    /// What is signed: the statement and its type, each with its length.
    pub(super) fn signed_text(&self) -> Vec<u8> {
        envelope_text(&self.statement)
    }

    pub(super) fn statement(&self) -> &[u8] {
        &self.statement
    }

    pub(super) fn signature(&self) -> &[u8] {
        &self.signature
    }

    /// The certificate of who signed.
    pub(crate) fn certificate(&self) -> Result<Certificate, String> {
        let own = self.certificate.clone().ok_or("no certificate lies in its bundle")?;
        Ok(Certificate::alone(own))
    }

    /// What a log says of it.
    pub(crate) fn noted(&self) -> Result<Noted, String> {
        match self.entries.as_slice() {
            [entry] => noted(entry).ok_or_else(|| {
                "its log entry is odd, or has no signature of its log, as Rekor 2 makes it; these are not supported"
                    .to_owned()
            }),
            [] => Err("no log entry lies in its bundle".to_owned()),
            _ => Err("more than one log entry lies in its bundle".to_owned()),
        }
    }

    /// What the statement says.
    pub(crate) fn payload(&self) -> Result<Payload, String> {
        said_by(&self.statement)
    }
}

/// What a statement says.
pub(crate) fn said_by(statement: &[u8]) -> Result<Payload, String> {
    let odd = |what: &str| format!("what is signed is odd: {what}");
    let document = strict(statement).map_err(|what| odd(&what))?;
    let parts = ["_type", "subject", "predicateType", "predicate"];
    let [kind, subject, predicate, said] = exactly(&document, "it", parts).map_err(|what| odd(&what))?;
    if kind != STATEMENT || predicate != PREDICATE || !said.is_object() {
        return Err("what is signed is no word of an image, but something else about it".to_owned());
    }
    let [subject] = subject.as_array().map(Vec::as_slice).unwrap_or_default() else {
        return Err(odd("it is not about one image"));
    };
    let digests = subject.get("digest").and_then(Value::as_object).filter(|digests| digests.len() == 1);
    let digest = digests.and_then(|digests| digests.iter().next());
    let digest = digest.and_then(|(algorithm, hex)| Digest::try_from(format!("{algorithm}:{}", hex.as_str()?)).ok());
    let annotations = match subject.get("annotations") {
        None => BTreeMap::new(),
        Some(Value::Object(map)) => map.iter().map(|(key, value)| (key.clone(), shown(value))).collect(),
        Some(_) => return Err(odd("its annotations are none")),
    };
    let known = 1 + usize::from(subject.get("annotations").is_some());
    if subject.as_object().map(Map::len) != Some(known) {
        return Err(odd("its subject has parts that are not known"));
    }
    Ok(Payload { digest: digest.ok_or_else(|| odd("its digest is none"))?, identity: None, annotations })
}

/// The document for what a key signs, of which the name is left out.
pub(super) fn made(payload: &Payload, key: &PrivateKey) -> Result<Vec<u8>, Error> {
    let (digest, public) = (&payload.digest, key.public());
    let subject = json!({"digest": {digest.algorithm().as_ref(): digest.digest()}, "annotations": payload.annotations});
    let statement =
        json!({"_type": STATEMENT, "subject": [subject], "predicateType": PREDICATE, "predicate": {}}).to_string();
    let signature = key.sign(&envelope_text(statement.as_bytes()))?;
    let document = json!({
        "mediaType": BUNDLE,
        // Some readers want the list, also where it is empty.
        "verificationMaterial": {"publicKey": {"hint": hint(&public)}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": STANDARD.encode(&statement),
            "payloadType": STATEMENT_TYPE,
            "signatures": [{"sig": STANDARD.encode(signature)}],
        },
    });
    Ok(document.to_string().into_bytes())
}

/// What is said of the document where it lies.
pub(super) fn annotations() -> BTreeMap<String, String> {
    [CONTENT, [PREDICATE_TYPE, PREDICATE]].map(|[key, value]| (key.to_owned(), value.to_owned())).into()
}

/// How cosign names a key: the digest of its DER form in base64.
fn hint(key: &PublicKey) -> String {
    let hex = key.digest();
    let byte = |at: usize| u8::from_str_radix(&hex.digest()[at..at + 2], 16).expect("a digest is in hex");
    STANDARD.encode((0..hex.digest().len()).step_by(2).map(byte).collect::<Vec<_>>())
}

fn envelope_text(statement: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {STATEMENT_TYPE} {} ", STATEMENT_TYPE.len(), statement.len());
    [head.as_bytes(), statement].concat()
}

/// An entry of a log as it lies in a bundle: the same parts as elsewhere, under other names.
fn noted(entry: &Value) -> Option<Noted> {
    let number = |key: &str| entry.get(key)?.as_str()?.parse().ok();
    let id = bytes_in(entry.get("logId")?, "keyId")?;
    Some(Noted {
        promise: bytes_in(entry.get("inclusionPromise")?, "signedEntryTimestamp")?,
        body: entry.get("canonicalizedBody")?.as_str()?.to_owned(),
        seconds: number("integratedTime")?,
        log_id: id.iter().map(|byte| format!("{byte:02x}")).collect(),
        index: number("logIndex")?,
    })
}

fn bytes_in(value: &Value, key: &str) -> Option<Vec<u8>> {
    STANDARD.decode(value.get(key)?.as_str()?).ok()
}
