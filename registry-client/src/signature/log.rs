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

/// What a log noted, as it says.
pub(crate) struct Noted {
    /// Its signature of the rest.
    pub(super) promise: Vec<u8>,
    /// In base64.
    pub(super) body: String,
    /// Since 1970.
    pub(super) seconds: u64,
    pub(super) log_id: String,
    pub(super) index: u64,
}

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
        let noted = Noted::of(promise, payload).ok_or_else(|| odd("its payload is none"))?;
        self.check(&noted, &SIGNATURE, signer, signature, text)
    }

    /// The same of a signed statement, whose signature stands for more than its text.
    pub(super) fn noted_statement_at(
        &self,
        noted: &Noted,
        signer: &[u8],
        signature: &[u8],
        statement: &[u8],
    ) -> Result<u64, String> {
        self.check(noted, &ENVELOPE, signer, signature, statement)
    }

    fn check(&self, noted: &Noted, kind: &Kind, signer: &[u8], signature: &[u8], text: &[u8]) -> Result<u64, String> {
        let odd = |what: &str| format!("its log entry is odd: {what}");
        let signed = noted.canonical().ok_or_else(|| odd("its payload is none"))?;
        if !self.0.iter().any(|key| key.verifies(signed.as_bytes(), &noted.promise)) {
            return Err("its log entry is of another log, or damaged".to_owned());
        }
        let body = STANDARD.decode(&noted.body).ok().and_then(|body| strict(&body).ok());
        let body = body.ok_or_else(|| odd("no body"))?;
        let is = |pointer: &str, text: &str| body.pointer(pointer).and_then(Value::as_str) == Some(text);
        let (algorithm, value) = (format!("{}/algorithm", kind.hash), format!("{}/value", kind.hash));
        if !is("/kind", kind.name) || !is("/apiVersion", "0.0.1") || !is(&algorithm, "sha256") {
            return Err(odd(&format!("it is none of the kind {} with SHA-256", kind.name)));
        }
        let is_one =
            kind.list.is_none_or(|list| body.pointer(list).and_then(Value::as_array).is_some_and(|all| all.len() == 1));
        if !is_one {
            return Err(odd("it has not one signature"));
        }
        let part = |pointer: &str| body.pointer(pointer).and_then(bytes_of);
        let by = part(kind.signer).and_then(|text| pem::decode(&text).ok());
        if by.is_none_or(|(_, der)| der != signer) {
            return Err("its log entry is of another key or certificate".to_owned());
        }
        if part(kind.signature).is_none_or(|noted| noted != signature) {
            return Err("its log entry is of another signature".to_owned());
        }
        match is(&value, digest_of(text).digest()) {
            true => Ok(noted.seconds),
            false => Err("its log entry is of something else".to_owned()),
        }
    }
}

/// Where a kind of entry has what.
struct Kind {
    name: &'static str,
    hash: &'static str,
    signer: &'static str,
    signature: &'static str,
    /// What must have one member.
    list: Option<&'static str>,
}

/// Of a signature of any text (<https://github.com/sigstore/rekor/tree/main/pkg/types/hashedrekord>).
const SIGNATURE: Kind = Kind {
    name: "hashedrekord",
    hash: "/spec/data/hash",
    signer: "/spec/signature/publicKey/content",
    signature: "/spec/signature/content",
    list: None,
};
/// Of a signed statement (<https://github.com/sigstore/rekor/tree/main/pkg/types/dsse>).
const ENVELOPE: Kind = Kind {
    name: "dsse",
    hash: "/spec/payloadHash",
    signer: "/spec/signatures/0/verifier",
    signature: "/spec/signatures/0/signature",
    list: Some("/spec/signatures"),
};

fn bytes_of(value: &Value) -> Option<Vec<u8>> {
    STANDARD.decode(value.as_str()?).ok()
}

impl Noted {
    fn of(promise: Vec<u8>, payload: &Value) -> Option<Self> {
        let [body, time, id, index] =
            exactly(payload, "the payload", ["body", "integratedTime", "logID", "logIndex"]).ok()?;
        let (body, log_id) = (body.as_str()?.to_owned(), id.as_str()?.to_owned());
        Some(Self { promise, body, seconds: time.as_u64()?, log_id, index: index.as_u64()? })
    }

    /// What a log signs of its entry (RFC 8785). The texts of a good one need no escapes.
    fn canonical(&self) -> Option<String> {
        let Self { body, seconds, log_id, index, .. } = self;
        // Above, JSON has no whole numbers.
        let is_exact = *seconds < 1 << 53 && *index < 1 << 53;
        let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte));
        let signed = format!(r#"{{"body":"{body}","integratedTime":{seconds},"logID":"{log_id}","logIndex":{index}}}"#);
        (is_exact && is_plain(body) && is_plain(log_id)).then_some(signed)
    }
}
