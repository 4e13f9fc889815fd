//! Whose signatures count, and what of what was found they signed.
//!
//! Invariant: nothing that lies beside a signature (a certificate, an entry of a log) counts before it was verified from
//! what somebody trusts. For which image and name it was signed is for [`super::policy`] to compare.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use super::attached::{Attached, Found, Payloads};
use super::bundle::Bundle;
use super::certificate::Authority;
use super::gpg::GpgKeyring;
use super::key::PublicKey;
use super::log::PublicLog;
use super::payload::{Form, Payload};

/// Whose signatures count: one of these must have signed.
#[derive(Debug, Clone)]
pub struct TrustedKeys(Trust);

#[derive(Debug, Clone)]
enum Trust {
    /// Keys in cosign's way; with a log, it must have noted the signature.
    Keys(Vec<PublicKey>, Option<PublicLog>),
    /// Who had a certificate when the log noted the signature; without a log, who has one now.
    Certified(Authority, Option<PublicLog>),
    Gpg(GpgKeyring),
}

impl From<Vec<PublicKey>> for TrustedKeys {
    fn from(keys: Vec<PublicKey>) -> Self {
        Self(Trust::Keys(keys, None))
    }
}

impl From<GpgKeyring> for TrustedKeys {
    fn from(keys: GpgKeyring) -> Self {
        Self(Trust::Gpg(keys))
    }
}

/// A signature that counts.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// What was signed.
    pub payload: Payload,
    /// Who signed it.
    pub signer: Signer,
}

/// The key of a signature.
#[derive(Debug, Clone)]
pub enum Signer {
    /// One that signs in cosign's way.
    Key(PublicKey),
    /// One that a certificate was made for: the names in that which were wanted.
    Certified(String),
    /// The fingerprint of GPG's; of a subkey, that of the key that it is part of.
    Gpg(String),
}

impl fmt::Display for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(key) => f.write_str(key.digest().as_ref()),
            Self::Certified(name) | Self::Gpg(name) => f.write_str(name),
        }
    }
}

impl TrustedKeys {
    pub(super) fn logged(keys: Vec<PublicKey>, log: Option<PublicLog>) -> Self {
        Self(Trust::Keys(keys, log))
    }

    pub(super) fn certified(authority: Authority, log: Option<PublicLog>) -> Self {
        Self(Trust::Certified(authority, log))
    }

    pub(super) fn is_gpg(&self) -> bool {
        matches!(self.0, Trust::Gpg(_))
    }

    /// What was found that one of them signed, and why the rest does not count; an error if nothing can be checked.
    pub(super) fn verified(
        &self,
        found: &Found,
        payloads: &mut Payloads<'_>,
    ) -> Result<Vec<Result<Accepted, String>>, String> {
        let sigstore = |one: &Attached, payloads: &mut Payloads<'_>, log: Option<&PublicLog>, keys: &[PublicKey]| {
            let bytes = payloads.bytes(one.payload())?;
            let key = keys.iter().find(|key| key.verifies(bytes, one.signature()));
            let key = key.ok_or("it is of another key, or damaged")?;
            if let Some(log) = log {
                log.noted_at(one.log_entry()?, key.der(), one.signature(), bytes)?;
            }
            Ok(Accepted { payload: parsed(Form::Sigstore, bytes)?, signer: Signer::Key(key.clone()) })
        };
        let certified =
            |one: &Attached, payloads: &mut Payloads<'_>, log: Option<&PublicLog>, authority: &Authority| {
                let certificate = one.certificate()?;
                let bytes = payloads.bytes(one.payload())?;
                let seconds = match log {
                    Some(log) => log.noted_at(one.log_entry()?, &certificate.own, one.signature(), bytes)?,
                    None => now(),
                };
                let key = authority.key_of(&certificate, seconds)?;
                if !key.verifies(bytes, one.signature()) {
                    return Err("it is not of the key of its certificate, or damaged".to_owned());
                }
                let signer = Signer::Certified(authority.holder());
                Ok(Accepted { payload: parsed(Form::Sigstore, bytes)?, signer })
            };
        let (all, bundles) = (found.signatures.iter(), found.bundles.iter());
        Ok(match &self.0 {
            Trust::Keys(keys, log) => {
                let bundled = bundles.map(|one| bundled_by_key(one, log.as_ref(), keys));
                all.map(|one| sigstore(one, payloads, log.as_ref(), keys)).chain(bundled).collect()
            }
            Trust::Certified(authority, log) => {
                let bundled = bundles.map(|one| bundled_by_person(one, log.as_ref(), authority));
                all.map(|one| certified(one, payloads, log.as_ref(), authority)).chain(bundled).collect()
            }
            Trust::Gpg(keyring) => {
                let checker = keyring.checker()?;
                let check = |one: &Vec<u8>| {
                    let (text, fingerprint) = checker.check(one)?;
                    Ok(Accepted { payload: parsed(Form::Gpg, &text)?, signer: Signer::Gpg(fingerprint) })
                };
                found.of_gpg.iter().map(check).collect()
            }
        })
    }
}

fn bundled_by_key(one: &Bundle, log: Option<&PublicLog>, keys: &[PublicKey]) -> Result<Accepted, String> {
    let text = one.signed_text();
    let key = keys.iter().find(|key| key.verifies(&text, one.signature()));
    let key = key.ok_or("it is of another key, or damaged")?;
    if let Some(log) = log {
        log.noted_statement_at(&one.noted()?, key.der(), one.signature(), one.statement())?;
    }
    Ok(Accepted { payload: one.payload()?, signer: Signer::Key(key.clone()) })
}

fn bundled_by_person(one: &Bundle, log: Option<&PublicLog>, authority: &Authority) -> Result<Accepted, String> {
    let certificate = one.certificate()?;
    let seconds = match log {
        Some(log) => log.noted_statement_at(&one.noted()?, &certificate.own, one.signature(), one.statement())?,
        None => now(),
    };
    let key = authority.key_of(&certificate, seconds)?;
    if !key.verifies(&one.signed_text(), one.signature()) {
        return Err("it is not of the key of its certificate, or damaged".to_owned());
    }
    Ok(Accepted { payload: one.payload()?, signer: Signer::Certified(authority.holder()) })
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn parsed(form: Form, bytes: &[u8]) -> Result<Payload, String> {
    Payload::parse(form, bytes).map_err(|why| format!("what is signed is odd: {why}"))
}
