//! The keys of signatures: made, read, written. The only file that names the library of signing.
//!
//! Invariant: a private key has no way to a log: it is written only where somebody asks for its file, and its `Debug`
//! shows nothing.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use oci_spec::image::Digest;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA256_ASN1, ED25519, EcdsaKeyPair,
    KeyPair as _, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};

use super::{pem, sealed};
use crate::digest::digest_of;
use crate::error::{Cause, Error};
use crate::secret::Secret;

/// Larger than any key.
const FILE_LIMIT_BYTES: u64 = 64 << 10;
const PLAIN: &str = "PRIVATE KEY";
const PUBLIC: &str = "PUBLIC KEY";
/// The older of cosign's two labels, which every version of cosign and of containers/image reads.
const SEALED: &str = "ENCRYPTED COSIGN PRIVATE KEY";
const NEWER_SEALED: &str = "ENCRYPTED SIGSTORE PRIVATE KEY";

/// `SEQUENCE { OID id-ecPublicKey, OID prime256v1 }` and the like, as a public key begins (RFC 5480, 8410, 8017).
const P256: &[u8] = &[0x06, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
const P384: &[u8] = &[0x06, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 0x06, 5, 0x2b, 0x81, 4, 0, 0x22];
const EDWARDS: &[u8] = &[0x06, 3, 0x2b, 0x65, 0x70];
const RSA: &[u8] = &[0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 0x05, 0];
const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;

/// What a file with a private key holds.
#[derive(Debug)]
pub enum KeyFile {
    /// A key that lies open.
    Plain(PrivateKey),
    /// One that a password opens.
    Sealed(SealedKey),
}

/// A private key under a password.
#[derive(Debug)]
pub struct SealedKey(Vec<u8>);

/// A private key that signs: ECDSA with P-256 and SHA-256, which is what cosign makes.
pub struct PrivateKey {
    pkcs8: Vec<u8>,
    pair: Box<EcdsaKeyPair>,
}

/// A public key that signatures are checked with: ECDSA, RSA or Ed25519, each with SHA-256 where it takes a digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    scheme: Scheme,
    key: Vec<u8>,
    der: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    P256,
    P384,
    Edwards,
    Rsa,
}

fn wrong(what: impl Into<String>) -> Error {
    Error::local("read a key", Cause::Input(what.into()))
}

/// The bytes of a key file, at most 64 KiB.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let file = File::open(path).and_then(|file| file.take(FILE_LIMIT_BYTES + 1).read_to_end(&mut bytes));
    file.map_err(|error| Error::disk("read a key", path, error))?;
    if bytes.len() as u64 > FILE_LIMIT_BYTES {
        return Err(wrong(format!("{}: it is larger than a key", path.display())));
    }
    Ok(bytes)
}

/// The same error, with the file that it is about.
fn of_file(path: &Path, error: Error) -> Error {
    match error.into_cause() {
        Cause::Input(what) => wrong(format!("{}: {what}", path.display())),
        other => Error::local("read a key", other),
    }
}

impl KeyFile {
    /// Reads a private key: PKCS#8, or cosign's form of it under a password, both as PEM.
    ///
    /// # Errors
    /// If it is something else, which the error names.
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        let (label, bytes) = pem::decode(text).map_err(wrong)?;
        match label.as_str() {
            PLAIN => Ok(Self::Plain(PrivateKey::from_pkcs8(bytes)?)),
            SEALED | NEWER_SEALED => {
                sealed::check(&bytes).map_err(wrong)?;
                Ok(Self::Sealed(SealedKey(bytes)))
            }
            "EC PRIVATE KEY" => {
                Err(wrong("it is a SEC 1 key; `openssl pkcs8 -topk8 -nocrypt` makes one of PKCS#8, which is supported"))
            }
            "ENCRYPTED PRIVATE KEY" => Err(wrong(
                "it is a PKCS#8 key under a password; supported are PKCS#8 without and cosign's own form with one",
            )),
            PUBLIC => Err(wrong("it is a public key; signing takes the private one")),
            other => Err(wrong(format!("it holds a {other}, which is no private key that is supported"))),
        }
    }

    /// Reads a file of at most 64 KiB.
    ///
    /// # Errors
    /// As [`Self::parse`], or if the file cannot be read.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::parse(&read(path)?).map_err(|error| of_file(path, error))
    }
}

impl SealedKey {
    /// Opens it: some tens of MiB and milliseconds, as it says itself, within bounds.
    ///
    /// # Errors
    /// If the password is wrong, or what it opens no key that signs.
    pub fn open(&self, password: &Secret) -> Result<PrivateKey, Error> {
        PrivateKey::from_pkcs8(sealed::open(&self.0, password).map_err(wrong)?)
    }
}

impl PrivateKey {
    /// Makes a new one.
    ///
    /// # Errors
    /// If the system has no random bytes.
    pub fn generate() -> Result<Self, Error> {
        let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new());
        let made = made.map_err(|_| Error::local("make a key", no_random_bytes()))?;
        Self::from_pkcs8(made.as_ref().to_vec())
    }

    fn from_pkcs8(pkcs8: Vec<u8>) -> Result<Self, Error> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &pkcs8, &SystemRandom::new());
        let pair = pair
            .map_err(|why| wrong(format!("it is no PKCS#8 key for ECDSA with P-256, with its public half ({why})")))?;
        Ok(Self { pkcs8, pair: Box::new(pair) })
    }

    /// As PEM that cosign and podman read: under a password, which may be empty.
    ///
    /// # Errors
    /// If the system has no random bytes.
    pub fn to_sealed_pem(&self, password: &Secret) -> Result<Secret, Error> {
        let document =
            sealed::seal(&self.pkcs8, password).map_err(|what| Error::local("write a key", Cause::Input(what)))?;
        Ok(Secret::new(pem::encode(SEALED, &document)))
    }

    /// As PEM that openssl reads, open to everyone who reads it.
    pub fn to_plain_pem(&self) -> Secret {
        Secret::new(pem::encode(PLAIN, &self.pkcs8))
    }

    /// The other half.
    pub fn public(&self) -> PublicKey {
        let point = self.pair.public_key().as_ref();
        let wrap = |tag: u8, parts: &[&[u8]]| {
            let length = parts.iter().map(|part| part.len()).sum::<usize>();
            let length = u8::try_from(length).ok().filter(|length| *length < 0x80).expect("a key of P-256 is short");
            [&[tag, length][..], &parts.concat()].concat()
        };
        let der = wrap(SEQUENCE, &[&wrap(SEQUENCE, &[P256]), &wrap(BIT_STRING, &[&[0], point])]);
        PublicKey { scheme: Scheme::P256, key: point.to_vec(), der }
    }

    /// The signature of a message, as ASN.1.
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let signed = self.pair.sign(&SystemRandom::new(), message);
        Ok(signed.map_err(|_| Error::local("sign", no_random_bytes()))?.as_ref().to_vec())
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey")
    }
}

fn no_random_bytes() -> Cause {
    Cause::Input("the system gives no random bytes".to_owned())
}

impl PublicKey {
    /// Reads a public key as PEM.
    ///
    /// # Errors
    /// If it is something else, which the error names.
    pub fn from_pem(text: &[u8]) -> Result<Self, Error> {
        let (label, der) = pem::decode(text).map_err(wrong)?;
        match label.as_str() {
            PUBLIC => Self::from_der(der),
            private if private.contains("PRIVATE KEY") => {
                Err(wrong("it is a private key; checking takes the public one (`nacre key public` tells it)"))
            }
            other => Err(wrong(format!("it holds a {other}, not a public key"))),
        }
    }

    /// Reads a file of at most 64 KiB.
    ///
    /// # Errors
    /// As [`Self::from_pem`], or if the file cannot be read.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::from_pem(&read(path)?).map_err(|error| of_file(path, error))
    }

    /// Reads one in the form that PEM wraps.
    pub(super) fn from_der(der: Vec<u8>) -> Result<Self, Error> {
        let parts = || {
            let (info, rest) = pem::value(SEQUENCE, &der)?;
            let (algorithm, key) = pem::value(SEQUENCE, info)?;
            let (bits, after) = pem::value(BIT_STRING, key)?;
            // The first byte counts the bits that do not belong to it.
            let key = bits.strip_prefix(&[0])?;
            (rest.is_empty() && after.is_empty()).then(|| (algorithm, key.to_vec()))
        };
        let (algorithm, key) = parts().ok_or_else(|| wrong("it is no public key"))?;
        let (scheme, is_sound) = match algorithm {
            // Points are written whole (SEC 1, 2.3.3).
            P256 => (Scheme::P256, key.len() == 65 && key[0] == 4),
            P384 => (Scheme::P384, key.len() == 97 && key[0] == 4),
            EDWARDS => (Scheme::Edwards, key.len() == 32),
            RSA => (Scheme::Rsa, pem::value(SEQUENCE, &key).is_some()),
            _ => return Err(wrong("it is for none of ECDSA with P-256 or P-384, RSA and Ed25519")),
        };
        if !is_sound {
            return Err(wrong("it is damaged, or its point is compressed"));
        }
        Ok(Self { scheme, key, der })
    }

    pub(super) fn der(&self) -> &[u8] {
        &self.der
    }

    pub(super) fn is_ecdsa(&self) -> bool {
        matches!(self.scheme, Scheme::P256 | Scheme::P384)
    }

    /// As PEM.
    pub fn to_pem(&self) -> String {
        pem::encode(PUBLIC, &self.der)
    }

    /// The SHA-256 digest of its DER form, which names it.
    pub fn digest(&self) -> Digest {
        digest_of(&self.der)
    }

    /// Whether a signature is this key's for a message.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let algorithm: &dyn VerificationAlgorithm = match self.scheme {
            Scheme::P256 => &ECDSA_P256_SHA256_ASN1,
            Scheme::P384 => &ECDSA_P384_SHA256_ASN1,
            Scheme::Edwards => &ED25519,
            Scheme::Rsa => &RSA_PKCS1_2048_8192_SHA256,
        };
        UnparsedPublicKey::new(algorithm, &self.key).verify(message, signature).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::{Command, Stdio};

    fn openssl(directory: &Path, arguments: &[&str]) {
        let mut command = Command::new("openssl");
        command.args(arguments).current_dir(directory).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(command.status().expect("openssl runs").success(), "openssl {arguments:?}");
    }

    #[test]
    fn what_we_sign_openssl_verifies_and_the_reverse_with_every_kind_of_key() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("message"), "content").expect("written");
        let key = PrivateKey::generate().expect("made");
        std::fs::write(at("ours.pub"), key.public().to_pem()).expect("written");
        std::fs::write(at("signature"), key.sign(b"content").expect("signed")).expect("written");
        openssl(directory.path(), &["dgst", "-sha256", "-verify", "ours.pub", "-signature", "signature", "message"]);
        let kinds = [
            (&["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1"][..], "dgst"),
            (&["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:secp384r1"], "dgst"),
            (&["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"], "dgst"),
            (&["-algorithm", "ed25519"], "pkeyutl"),
        ];
        for (kind, tool) in kinds {
            openssl(directory.path(), &[&["genpkey", "-out", "key.pem"], kind].concat());
            openssl(directory.path(), &["pkey", "-in", "key.pem", "-pubout", "-out", "key.pub"]);
            match tool {
                "dgst" => {
                    openssl(directory.path(), &["dgst", "-sha256", "-sign", "key.pem", "-out", "made", "message"])
                }
                _ => openssl(
                    directory.path(),
                    &["pkeyutl", "-sign", "-inkey", "key.pem", "-rawin", "-in", "message", "-out", "made"],
                ),
            }
            let public = PublicKey::open(&at("key.pub")).expect("read");
            let made = std::fs::read(at("made")).expect("made");
            assert!(public.verifies(b"content", &made), "{kind:?}");
            assert!(!public.verifies(b"Content", &made) && !key.public().verifies(b"content", &made), "{kind:?}");
            assert_eq!(public.to_pem(), std::fs::read_to_string(at("key.pub")).expect("made"));
        }
        openssl(directory.path(), &[&["genpkey", "-out", "key.pem"], kinds[0].0].concat());
        assert!(matches!(KeyFile::open(&at("key.pem")), Ok(KeyFile::Plain(_))));
    }

    #[test]
    fn keys_come_back_from_their_files() {
        let key = PrivateKey::generate().expect("made");
        let Ok(KeyFile::Plain(plain)) = KeyFile::parse(key.to_plain_pem().reveal().as_bytes()) else { panic!("plain") };
        assert_eq!(plain.public(), key.public());
        let password = Secret::new("pass");
        let pem = key.to_sealed_pem(&password).expect("sealed");
        for label in [SEALED, NEWER_SEALED] {
            let text = pem.reveal().replace(SEALED, label);
            let Ok(KeyFile::Sealed(sealed)) = KeyFile::parse(text.as_bytes()) else { panic!("sealed") };
            assert_eq!(sealed.open(&password).expect("opened").public(), key.public());
            assert!(sealed.open(&Secret::new("Pass")).expect_err("wrong").to_string().contains("password is wrong"));
        }
        assert_eq!(PublicKey::from_pem(key.public().to_pem().as_bytes()).expect("read"), key.public());
        assert_eq!(format!("{key:?}"), "PrivateKey");
    }

    #[test]
    fn files_that_are_no_keys_say_what_they_are() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).expect("written");
            path
        };
        let key = PrivateKey::generate().expect("made");
        let public = at("public", &key.public().to_pem());
        for (path, why) in [
            (directory.path().to_owned(), "directory"),
            (directory.path().join("none"), "No such file"),
            (at("empty", ""), "empty"),
            (at("large", &"x".repeat(100_000)), "larger than a key"),
            (at("sec1", &pem::encode("EC PRIVATE KEY", b"x")), "SEC 1"),
            (at("other", &pem::encode("ENCRYPTED PRIVATE KEY", b"x")), "under a password"),
            (at("cut", &pem::encode("PRIVATE KEY", b"x")), "P-256"),
            (public.clone(), "private one"),
        ] {
            let error = KeyFile::open(&path).expect_err(why).to_string();
            assert!(error.contains(why) && error.contains(path.to_str().expect("UTF-8")), "{error}");
        }
        let private = at("private", key.to_plain_pem().reveal());
        let error = PublicKey::open(&private).expect_err("private").to_string();
        assert!(error.contains("nacre key public") && error.contains("private"), "{error}");
        let mut der = key.public().der;
        der.push(0);
        assert!(PublicKey::from_der(der).is_err());
    }

    proptest! {
        #[test]
        fn any_public_key_is_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120), at in 0usize..91, flip: u8) {
            let _ = PublicKey::from_der(bytes.clone());
            let mut der = PrivateKey::generate().expect("made").public().der;
            der[at] ^= flip;
            if let Ok(key) = PublicKey::from_der(der) {
                prop_assert!(!key.verifies(b"message", &bytes));
            }
        }
    }
}
