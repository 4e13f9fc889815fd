//! The form of policy.json
//! (<https://github.com/containers/image/blob/main/docs/containers-policy.json.5.md>).
//!
//! Invariant: what is not understood is an error; what is understood but not supported is one where it is to be met.

use std::collections::BTreeMap;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::certificate::{Authority, Holder};
use super::gpg::GpgKeyring;
use super::identity::SignedIdentity;
use super::key::{PublicKey, read};
use super::log::PublicLog;
use super::payload::strict;
use super::trust::TrustedKeys;

/// What containers/image knows; it supports the first one only, too.
const KEY_TYPES: [&str; 4] = ["GPGKeys", "signedByGPGKeys", "X509Certificates", "signedByX509CAs"];

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rules {
    default: Vec<Requirement>,
    /// By transport, then by scope.
    #[serde(default)]
    transports: BTreeMap<String, BTreeMap<String, Vec<Requirement>>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", deny_unknown_fields)]
pub(super) enum Requirement {
    InsecureAcceptAnything {},
    Reject {},
    SigstoreSigned(Box<SigstoreSigned>),
    SignedBy(Box<SignedBy>),
    // It lets nothing in, whatever its fields are.
    SignedBaseLayer(IgnoredAny),
}

/// GPG's signature.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SignedBy {
    key_type: String,
    key_path: Option<PathBuf>,
    key_paths: Option<Vec<PathBuf>>,
    key_data: Option<String>,
    signed_identity: Option<SignedIdentity>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SigstoreSigned {
    key_path: Option<PathBuf>,
    key_paths: Option<Vec<PathBuf>>,
    key_data: Option<String>,
    key_datas: Option<Vec<String>>,
    fulcio: Option<Fulcio>,
    rekor_public_key_path: Option<PathBuf>,
    rekor_public_key_paths: Option<Vec<PathBuf>>,
    rekor_public_key_data: Option<String>,
    rekor_public_key_datas: Option<Vec<String>>,
    pki: Option<Pki>,
    signed_identity: Option<SignedIdentity>,
}

/// Whom an authority of somebody's own made a certificate for.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Pki {
    ca_roots_path: Option<PathBuf>,
    ca_roots_data: Option<String>,
    ca_intermediates_path: Option<PathBuf>,
    ca_intermediates_data: Option<String>,
    subject_email: Option<String>,
    subject_hostname: Option<String>,
}

/// Who may have asked a certificate authority for a certificate.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Fulcio {
    ca_path: Option<PathBuf>,
    ca_data: Option<String>,
    oidc_issuer: String,
    subject_email: String,
}

impl Default for Rules {
    /// All that comes is taken.
    fn default() -> Self {
        Self { default: vec![Requirement::InsecureAcceptAnything {}], transports: BTreeMap::new() }
    }
}

impl Rules {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        // Typed, for it tells what is wrong where; and once more, for it does not see all that is.
        strict(bytes)?;
        let rules: Self = serde_json::from_slice(bytes).map_err(|error| format!("it is no policy: {error}"))?;
        let scopes = rules.transports.values().flat_map(BTreeMap::values);
        for requirements in scopes.chain([&rules.default]) {
            if requirements.is_empty() {
                return Err(
                    "a list of requirements is empty; insecureAcceptAnything and reject say what is meant".to_owned()
                );
            }
            requirements.iter().try_for_each(Requirement::check)?;
        }
        Ok(rules)
    }

    /// Those of the narrowest scope that the place is in.
    pub(super) fn requirements(&self, transport: &str, names: &[String]) -> &[Requirement] {
        let scopes = self.transports.get(transport);
        let found = scopes.and_then(|scopes| names.iter().find_map(|name| scopes.get(name)).or(scopes.get("")));
        found.unwrap_or(&self.default)
    }
}

impl Requirement {
    /// Whether it is well formed, in scope or not.
    fn check(&self) -> Result<(), String> {
        match self {
            Self::SigstoreSigned(sigstore) => sigstore.check(),
            Self::SignedBy(gpg) => gpg.check(),
            _ => Ok(()),
        }
    }

    /// Whose signature it wants, and for which name; `None` if it wants none.
    pub(super) fn wanted(&self, programs: &[PathBuf]) -> Result<Option<(TrustedKeys, SignedIdentity)>, String> {
        let (keys, identity) = match self {
            Self::InsecureAcceptAnything {} => return Ok(None),
            Self::Reject {} => return Err("lets no image in from there".to_owned()),
            Self::SignedBaseLayer(_) => {
                return Err("demands the type signedBaseLayer, which is not supported".to_owned());
            }
            Self::SignedBy(gpg) => (gpg.keys(programs)?.into(), &gpg.signed_identity),
            Self::SigstoreSigned(sigstore) => (sigstore.trusted()?, &sigstore.signed_identity),
        };
        Ok(Some((keys, identity.clone().unwrap_or(SignedIdentity::MatchRepoDigestOrExact {}))))
    }
}

impl SigstoreSigned {
    fn check(&self) -> Result<(), String> {
        let keys =
            [self.key_path.is_some(), self.key_paths.is_some(), self.key_data.is_some(), self.key_datas.is_some()];
        let others = [self.fulcio.is_some(), self.pki.is_some()];
        if keys.into_iter().chain(others).filter(|is_there| *is_there).count() != 1 {
            let what = "sigstoreSigned has not exactly one of keyPath, keyPaths, keyData, keyDatas, fulcio and pki";
            return Err(what.to_owned());
        }
        let log = [
            self.rekor_public_key_path.is_some(),
            self.rekor_public_key_paths.is_some(),
            self.rekor_public_key_data.is_some(),
            self.rekor_public_key_datas.is_some(),
        ];
        let log = log.into_iter().filter(|is_there| *is_there).count();
        if log > 1 {
            return Err("sigstoreSigned has more than one of rekorPublicKeyPath, Paths, Data and Datas".to_owned());
        }
        let paths = [&self.key_paths, &self.rekor_public_key_paths].into_iter().flatten().map(Vec::len);
        let datas = [&self.key_datas, &self.rekor_public_key_datas].into_iter().flatten().map(Vec::len);
        if paths.chain(datas).any(|count| count == 0) {
            return Err("sigstoreSigned has a list of no keys".to_owned());
        }
        if let Some(fulcio) = &self.fulcio {
            fulcio.check()?;
            if log == 0 {
                // Without, nothing says that the certificate was good when it was used.
                return Err("sigstoreSigned has fulcio without a rekorPublicKey".to_owned());
            }
        }
        if let Some(pki) = &self.pki {
            pki.check()?;
            if log > 0 {
                return Err("sigstoreSigned has pki with a rekorPublicKey, which is for keys and fulcio".to_owned());
            }
        }
        self.signed_identity.as_ref().map_or(Ok(()), SignedIdentity::check)
    }

    /// Who must have signed; all keys must be sound, so that a broken one is noticed before it is needed.
    fn trusted(&self) -> Result<TrustedKeys, String> {
        if let Some(pki) = &self.pki {
            return Ok(TrustedKeys::certified(pki.authority()?, None));
        }
        let log = keys(
            self.rekor_public_key_path.iter().chain(self.rekor_public_key_paths.iter().flatten()),
            self.rekor_public_key_data.iter().chain(self.rekor_public_key_datas.iter().flatten()),
        )?;
        let log = if log.is_empty() { None } else { Some(PublicLog::of(log)?) };
        if let Some(fulcio) = &self.fulcio {
            return Ok(TrustedKeys::certified(fulcio.authority()?, log));
        }
        let keys = keys(
            self.key_path.iter().chain(self.key_paths.iter().flatten()),
            self.key_data.iter().chain(self.key_datas.iter().flatten()),
        )?;
        Ok(TrustedKeys::logged(keys, log))
    }
}

/// Public keys of files, and of what stands in the policy itself.
fn keys<'a>(
    paths: impl Iterator<Item = &'a PathBuf>,
    datas: impl Iterator<Item = &'a String>,
) -> Result<Vec<PublicKey>, String> {
    let of_path = |path: &PathBuf| PublicKey::open(path).map_err(|error| format!("has a key of no use: {error}"));
    let of_data = |data: &String| {
        PublicKey::from_pem(&decoded(data)?).map_err(|error| format!("has a keyData of no use: {error}"))
    };
    paths.map(of_path).chain(datas.map(of_data)).collect()
}

fn decoded(data: &str) -> Result<Vec<u8>, String> {
    STANDARD.decode(data).map_err(|error| format!("has a keyData that is not base64: {error}"))
}

impl Fulcio {
    fn check(&self) -> Result<(), String> {
        if self.ca_path.is_some() == self.ca_data.is_some() {
            return Err("fulcio has not exactly one of caPath and caData".to_owned());
        }
        match self.oidc_issuer.is_empty() || self.subject_email.is_empty() {
            true => Err("fulcio has an oidcIssuer or subjectEmail that is empty".to_owned()),
            false => Ok(()),
        }
    }

    fn authority(&self) -> Result<Authority, String> {
        let (issuer, email) = (Some(self.oidc_issuer.clone()), Some(self.subject_email.clone()));
        let roots = certificates(self.ca_path.as_ref(), self.ca_data.as_deref())?.unwrap_or_default();
        authority("fulcio", &roots, None, Holder { issuer, email, host: None })
    }
}

impl Pki {
    fn check(&self) -> Result<(), String> {
        if self.ca_roots_path.is_some() == self.ca_roots_data.is_some() {
            return Err("pki has not exactly one of caRootsPath and caRootsData".to_owned());
        }
        if self.ca_intermediates_path.is_some() && self.ca_intermediates_data.is_some() {
            return Err("pki has both caIntermediatesPath and caIntermediatesData".to_owned());
        }
        let names = [&self.subject_email, &self.subject_hostname];
        match names.into_iter().flatten().any(String::is_empty) || names == [&None, &None] {
            true => Err("pki has neither subjectEmail nor subjectHostname, or one that is empty".to_owned()),
            false => Ok(()),
        }
    }

    fn authority(&self) -> Result<Authority, String> {
        let roots = certificates(self.ca_roots_path.as_ref(), self.ca_roots_data.as_deref())?.unwrap_or_default();
        let known = certificates(self.ca_intermediates_path.as_ref(), self.ca_intermediates_data.as_deref())?;
        let (email, host) = (self.subject_email.clone(), self.subject_hostname.clone());
        authority("pki", &roots, known.as_deref(), Holder { issuer: None, email, host })
    }
}

/// Certificates as PEM: of a file, or of what stands in the policy itself.
fn certificates(path: Option<&PathBuf>, data: Option<&str>) -> Result<Option<Vec<u8>>, String> {
    let read = path.map(|path| read(path).map_err(|error| format!("has certificates of no use: {error}")));
    read.or(data.map(decoded)).transpose()
}

fn authority(kind: &str, roots: &[u8], known: Option<&[u8]>, holder: Holder) -> Result<Authority, String> {
    let authority = Authority::of(roots, known, holder);
    authority.map_err(|what| format!("has a {kind} with certificates of no use: {what}"))
}

impl SignedBy {
    fn check(&self) -> Result<(), String> {
        if !KEY_TYPES.contains(&self.key_type.as_str()) {
            return Err(format!("signedBy has the keyType {:?}, which is none", self.key_type));
        }
        let sources = [self.key_path.is_some(), self.key_paths.is_some(), self.key_data.is_some()];
        if sources.into_iter().filter(|is_there| *is_there).count() != 1 {
            return Err("signedBy has not exactly one of keyPath, keyPaths and keyData".to_owned());
        }
        if self.key_paths.as_ref().is_some_and(Vec::is_empty) {
            return Err("signedBy has a list of no keys".to_owned());
        }
        self.signed_identity.as_ref().map_or(Ok(()), SignedIdentity::check)
    }

    fn keys(&self, programs: &[PathBuf]) -> Result<GpgKeyring, String> {
        if self.key_type != KEY_TYPES[0] {
            return Err(format!(
                "demands signedBy with the keyType {}, which is not supported; GPGKeys is",
                self.key_type
            ));
        }
        let keyring = match &self.key_data {
            Some(data) => {
                let bytes =
                    STANDARD.decode(data).map_err(|error| format!("has a keyData that is not base64: {error}"))?;
                GpgKeyring::of_bytes(&bytes, programs)
            }
            None => {
                let files: Vec<_> = self.key_path.iter().chain(self.key_paths.iter().flatten()).cloned().collect();
                GpgKeyring::open(&files, programs)
            }
        };
        keyring.map_err(|error| format!("demands signedBy, and {error}"))
    }
}
