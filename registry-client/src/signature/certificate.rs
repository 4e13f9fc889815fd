//! Certificates of those who sign: of people without a key of their own, as Fulcio makes them for some minutes
//! (<https://github.com/sigstore/fulcio/blob/main/docs/oid-info.md>), and of whoever has one of another authority. The only file that names the library of chains.
//!
//! Invariant: a key counts after its certificate was followed to a trusted root at the time of the signature, or else
//! now, and only for the names that are trusted.

use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::key::PublicKey;
use super::pem;

const LABEL: &str = "CERTIFICATE";
/// Of code signing, 1.3.6.1.5.5.7.3.3 (RFC 5280 section 4.2.1.12).
const CODE_SIGNING: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 3];
/// subjectAltName, 2.5.29.17.
const OTHER_NAMES: &[u8] = &[0x55, 0x1d, 0x11];
/// Who told Fulcio who it is: 1.3.6.1.4.1.57264.1.1, plain text, and 1.3.6.1.4.1.57264.1.8, a text of DER.
const ISSUER: &[u8] = &[0x2b, 6, 1, 4, 1, 0x83, 0xbf, 0x30, 1, 1];
const ISSUER_IN_DER: &[u8] = &[0x2b, 6, 1, 4, 1, 0x83, 0xbf, 0x30, 1, 8];

const BOOLEAN: u8 = 0x01;
const OCTETS: u8 = 0x04;
const OID: u8 = 0x06;
const UTF8: u8 = 0x0c;
const SEQUENCE: u8 = 0x30;
/// Of an address of electronic mail among other names.
const EMAIL: u8 = 0x81;
/// Of the extensions in a certificate.
const EXTENSIONS: u8 = 0xa3;

/// Who makes certificates, and whose are meant.
#[derive(Debug, Clone)]
pub(super) struct Authority {
    roots: Vec<CertificateDer<'static>>,
    /// Of those that a certificate may be made by, some that need not lie beside the signature.
    known: Vec<CertificateDer<'static>>,
    holder: Holder,
}

/// What a certificate must say; what is `None` it may leave out.
#[derive(Debug, Clone, Default)]
pub(super) struct Holder {
    /// Who knows the person, as Fulcio notes it.
    pub(super) issuer: Option<String>,
    pub(super) email: Option<String>,
    pub(super) host: Option<String>,
}

/// A certificate as it lies beside a signature, with those between it and a root.
pub(crate) struct Certificate {
    /// Its DER form.
    pub(super) own: Vec<u8>,
    chain: Vec<Vec<u8>>,
}

impl Certificate {
    /// Of its DER form, without those above it.
    pub(super) fn alone(own: Vec<u8>) -> Self {
        Self { own, chain: Vec::new() }
    }

    /// Of texts as PEM.
    pub(super) fn of(own: &str, chain: Option<&str>) -> Result<Self, String> {
        let odd = |what| format!("its certificate is odd: {what}");
        let blocks = pem::all(LABEL, own.as_bytes()).map_err(odd)?;
        let [own] = <[Vec<u8>; 1]>::try_from(blocks).map_err(|_| odd("there is not one".to_owned()))?;
        let chain = chain.map(|chain| pem::all(LABEL, chain.as_bytes()).map_err(odd)).transpose()?;
        Ok(Self { own, chain: chain.unwrap_or_default() })
    }
}

impl Authority {
    /// Of the roots as PEM, and of those below them that are known.
    pub(super) fn of(roots: &[u8], known: Option<&[u8]>, holder: Holder) -> Result<Self, String> {
        let read =
            |text: &[u8]| Ok::<_, String>(pem::all(LABEL, text)?.into_iter().map(CertificateDer::from).collect());
        let roots: Vec<_> = read(roots)?;
        for root in &roots {
            anchor_from_trusted_cert(root).map_err(|error| error.to_string())?;
        }
        let known = known.map(read).transpose()?.unwrap_or_default();
        Ok(Self { roots, known, holder })
    }

    /// Whose certificates are meant, in words.
    pub(super) fn holder(&self) -> String {
        let Holder { email, host, .. } = &self.holder;
        [email, host].into_iter().flatten().cloned().collect::<Vec<_>>().join(" ")
    }

    /// The key of a certificate that was good at a time, in seconds since 1970.
    pub(super) fn key_of(&self, certificate: &Certificate, seconds: u64) -> Result<PublicKey, String> {
        let bad = |error: webpki::Error| format!("its certificate is not good: {error}");
        let anchors = self.roots.iter().map(anchor_from_trusted_cert).collect::<Result<Vec<_>, _>>().map_err(bad)?;
        let beside = certificate.chain.iter().map(|der| CertificateDer::from(der.as_slice()));
        let chain: Vec<_> = self.known.iter().cloned().chain(beside).collect();
        let own = CertificateDer::from(certificate.own.as_slice());
        let leaf = EndEntityCert::try_from(&own).map_err(bad)?;
        let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let usage = KeyUsage::required_if_present(CODE_SIGNING);
        leaf.verify_for_usage(ALL_VERIFICATION_ALGS, &anchors, &chain, time, usage, None, None).map_err(bad)?;
        let said = Said::read(&certificate.own).ok_or("its certificate is not understood")?;
        if let Some(wanted) = &self.holder.issuer {
            let issuer = said.issuer().ok_or("its certificate does not say one issuer")?;
            if issuer != wanted {
                return Err(format!("its certificate is for somebody whom {issuer:?} knows, not {wanted:?}"));
            }
        }
        if let Some(wanted) = self.holder.email.as_deref().filter(|wanted| !said.emails.contains(wanted)) {
            return Err(format!("its certificate is for {:?}, not for {wanted}", said.emails.join(", ")));
        }
        if let Some(wanted) = &self.holder.host {
            let name = ServerName::try_from(wanted.as_str()).map_err(|_| format!("{wanted:?} is no host"))?;
            let is_for = leaf.verify_is_valid_for_subject_name(&name);
            is_for.map_err(|error| format!("its certificate is not for {wanted}: {error}"))?;
        }
        PublicKey::from_der(said.key.to_vec()).map_err(|error| format!("its certificate has a key of no use: {error}"))
    }
}

/// What a certificate says.
struct Said<'a> {
    /// A public key in DER.
    key: &'a [u8],
    emails: Vec<&'a str>,
    /// Each once.
    issuers: Vec<&'a [u8]>,
}

impl<'a> Said<'a> {
    /// Of a certificate that was verified (RFC 5280 section 4.1).
    fn read(der: &'a [u8]) -> Option<Self> {
        let (whole, _) = pem::value(SEQUENCE, der)?;
        let (mut rest, _) = pem::value(SEQUENCE, whole)?;
        // Version, number, algorithm, issuer, validity and subject stand before the key.
        for _ in 0..6 {
            (_, _, rest) = pem::first(rest)?;
        }
        let (_, _, mut after) = pem::first(rest)?;
        let key = rest.get(..rest.len() - after.len())?;
        let mut said = Self { key, emails: Vec::new(), issuers: Vec::new() };
        while !after.is_empty() {
            let (tag, content, next) = pem::first(after)?;
            if tag == EXTENSIONS {
                said.add_extensions(pem::value(SEQUENCE, content)?.0)?;
            }
            after = next;
        }
        Some(said)
    }

    fn add_extensions(&mut self, mut list: &'a [u8]) -> Option<()> {
        let (mut names, mut plain, mut in_der) = (None, None, None);
        while !list.is_empty() {
            let (extension, next) = pem::value(SEQUENCE, list)?;
            let (oid, mut rest) = pem::value(OID, extension)?;
            if let Some((_, after)) = pem::value(BOOLEAN, rest) {
                rest = after;
            }
            let (value, _) = pem::value(OCTETS, rest)?;
            let place = match oid {
                OTHER_NAMES => Some(&mut names),
                ISSUER => Some(&mut plain),
                ISSUER_IN_DER => Some(&mut in_der),
                _ => None,
            };
            if place.is_some_and(|place| place.replace(value).is_some()) {
                return None;
            }
            list = next;
        }
        let (mut names, _) = pem::value(SEQUENCE, names.unwrap_or(&[SEQUENCE, 0]))?;
        while !names.is_empty() {
            let (tag, name, next) = pem::first(names)?;
            if tag == EMAIL {
                self.emails.push(std::str::from_utf8(name).ok()?);
            }
            names = next;
        }
        self.issuers.extend(plain);
        if let Some(in_der) = in_der {
            let (text, rest) = pem::value(UTF8, in_der)?;
            self.issuers.push(rest.is_empty().then_some(text)?);
        }
        Some(())
    }

    /// The issuer, if it says it in one way or the same in both.
    fn issuer(&self) -> Option<&'a str> {
        let (first, others) = self.issuers.split_first()?;
        others.iter().all(|other| other == first).then(|| std::str::from_utf8(first).ok())?
    }
}
