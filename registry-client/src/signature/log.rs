//! A public log of signatures, as Rekor keeps it, asked for nothing: what it promised lies beside the signature
//! (<https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md>, "dev.sigstore.cosign/bundle").
//!
//! Invariant: what an entry says counts after the log's own signature of it was verified, and only if it is about this
//! signature, of this key and text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::key::PublicKey;
use super::payload::{exactly, strict};
use super::pem;
use crate::digest::digest_of;

/// The keys of a log, of which one signed an entry.
#[derive(Debug, Clone)]
pub(super) struct PublicLog(Vec<PublicKey>);

impl PublicLog {
    /// Of keys for ECDSA, which is what logs have.
    pub(super) fn of(keys: Vec<PublicKey>) -> Result<Self, String> {
        match keys.iter().all(PublicKey::is_ecdsa) {
            true => Ok(Self(keys)),
            false => Err("has a rekorPublicKey that is none for ECDSA".to_owned()),
        }
    }

    /// When the log noted this signature of a text by a key or certificate (its DER form): seconds since 1970.
    pub(super) fn noted_at(&self, entry: &str, signer: &[u8], signature: &[u8], text: &[u8]) -> Result<u64, String> {
        let odd = |what: &str| format!("its log entry is odd: {what}");
        let entry = strict(entry.as_bytes()).map_err(|what| odd(&what))?;
        let [promise, payload] =
            exactly(&entry, "it", ["SignedEntryTimestamp", "Payload"]).map_err(|what| odd(&what))?;
        let promise = bytes_of(promise).ok_or_else(|| odd("its signature is none"))?;
        let (signed, body, seconds) = canonical(payload).ok_or_else(|| odd("its payload is none"))?;
        if !self.0.iter().any(|key| key.verifies(signed.as_bytes(), &promise)) {
            return Err("its log entry is of another log, or damaged".to_owned());
        }
        let body = STANDARD.decode(body).ok().and_then(|body| strict(&body).ok()).ok_or_else(|| odd("no body"))?;
        let is = |pointer: &str, text: &str| body.pointer(pointer).and_then(Value::as_str) == Some(text);
        if !is("/kind", "hashedrekord") || !is("/apiVersion", "0.0.1") || !is("/spec/data/hash/algorithm", "sha256") {
            return Err(odd("it is none of the kind hashedrekord with SHA-256"));
        }
        let part = |pointer: &str| body.pointer(pointer).and_then(bytes_of);
        let noted = part("/spec/signature/publicKey/content").and_then(|text| pem::decode(&text).ok());
        if noted.is_none_or(|(_, der)| der != signer) {
            return Err("its log entry is of another key or certificate".to_owned());
        }
        if part("/spec/signature/content").is_none_or(|noted| noted != signature) {
            return Err("its log entry is of another signature".to_owned());
        }
        match is("/spec/data/hash/value", digest_of(text).digest()) {
            true => Ok(seconds),
            false => Err("its log entry is of something else".to_owned()),
        }
    }
}

fn bytes_of(value: &Value) -> Option<Vec<u8>> {
    STANDARD.decode(value.as_str()?).ok()
}

/// What a log signs of its entry (RFC 8785), with the body and the time in it. The texts of a good one need no escapes.
fn canonical(payload: &Value) -> Option<(String, &str, u64)> {
    let [body, time, id, index] =
        exactly(payload, "the payload", ["body", "integratedTime", "logID", "logIndex"]).ok()?;
    let (body, id) = (body.as_str()?, id.as_str()?);
    let (time, index) = (time.as_u64()?, index.as_u64()?);
    // Above, JSON has no whole numbers.
    let is_exact = time < 1 << 53 && index < 1 << 53;
    let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte));
    let signed = format!(r#"{{"body":"{body}","integratedTime":{time},"logID":"{id}","logIndex":{index}}}"#);
    (is_exact && is_plain(body) && is_plain(id)).then_some((signed, body, time))
}
