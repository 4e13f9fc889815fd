//! Private keys under a password, as cosign and containers/image keep them: a JSON document with what scrypt needs
//! and a secretbox, from
//! <https://github.com/secure-systems-lab/go-securesystemslib/blob/main/encrypted/encrypted.go>.
//!
//! Invariant: a key that is opened is what was sealed; a wrong password and a changed byte are the same error. What a
//! document may cost is bounded before any of it is spent.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use poly1305::Poly1305;
use poly1305::universal_hash::KeyInit as _;
use rustix::rand::{GetRandomFlags, getrandom};
use salsa20::XSalsa20;
use salsa20::cipher::{KeyIvInit as _, StreamCipher as _};
use serde::{Deserialize, Serialize};

use crate::secret::Secret;

/// What every version of cosign and containers/image accepts; the older ones accept nothing else.
const COST: Cost = Cost { n: 1 << 15, r: 8, p: 1 };
/// Of scrypt, which takes 128 N r bytes: four times what the newest tools take.
const MOST_MEMORY_BYTES: u64 = 256 << 20;
/// Of N r p, which its time is proportional to: a few seconds.
const MOST_WORK: u64 = 1 << 23;
const NONCE_BYTES: usize = 24;
const SALT_BYTES: usize = 32;
const TAG_BYTES: usize = 16;

#[derive(Serialize, Deserialize)]
struct Document {
    kdf: Kdf,
    cipher: Cipher,
    ciphertext: String,
}

#[derive(Serialize, Deserialize)]
struct Kdf {
    name: String,
    params: Cost,
    salt: String,
}

#[derive(Serialize, Deserialize)]
struct Cipher {
    name: String,
    nonce: String,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct Cost {
    #[serde(rename = "N")]
    n: u64,
    r: u32,
    p: u32,
}

/// Seals bytes under a password.
pub(super) fn seal(plain: &[u8], password: &Secret) -> Result<Vec<u8>, String> {
    let (mut salt, mut nonce) = ([0; SALT_BYTES], [0; NONCE_BYTES]);
    for random in [&mut salt[..], &mut nonce] {
        // Never fewer than asked for: that begins beyond 256 bytes.
        getrandom(random, GetRandomFlags::empty())
            .map_err(|error| format!("the system gives no random bytes: {error}"))?;
    }
    let key = stretch(password, &salt, COST)?;
    let (mut cipher, mac) = secretbox(&key, &nonce);
    let mut content = plain.to_vec();
    cipher.apply_keystream(&mut content);
    let mut sealed = mac.compute_unpadded(&content).to_vec();
    sealed.extend(content);
    let document = Document {
        kdf: Kdf { name: "scrypt".to_owned(), params: COST, salt: STANDARD.encode(salt) },
        cipher: Cipher { name: "nacl/secretbox".to_owned(), nonce: STANDARD.encode(nonce) },
        ciphertext: STANDARD.encode(sealed),
    };
    Ok(serde_json::to_vec(&document).expect("it has text keys only"))
}

/// Whether bytes are a sealed document, whose cost and parts are as they must be.
pub(super) fn check(document: &[u8]) -> Result<(), String> {
    Sealed::parse(document).map(drop)
}

/// Opens what was sealed.
pub(super) fn open(document: &[u8], password: &Secret) -> Result<Vec<u8>, String> {
    let sealed = Sealed::parse(document)?;
    let key = stretch(password, &sealed.salt, sealed.cost)?;
    let (mut cipher, mac) = secretbox(&key, &sealed.nonce);
    let (tag, content) = sealed.content.split_at(TAG_BYTES);
    // All bytes are looked at, wherever the first difference is.
    let differ = mac.compute_unpadded(content).iter().zip(tag).fold(0, |differ, (a, b)| differ | (a ^ b));
    if differ != 0 {
        return Err("the password is wrong, or the key is damaged".to_owned());
    }
    let mut plain = content.to_vec();
    cipher.apply_keystream(&mut plain);
    Ok(plain)
}

struct Sealed {
    cost: Cost,
    salt: Vec<u8>,
    nonce: [u8; NONCE_BYTES],
    /// The tag, then what is encrypted.
    content: Vec<u8>,
}

impl Sealed {
    fn parse(document: &[u8]) -> Result<Self, String> {
        let document: Document =
            serde_json::from_slice(document).map_err(|error| format!("it is not the document of a key: {error}"))?;
        if document.kdf.name != "scrypt" || document.cipher.name != "nacl/secretbox" {
            let (kdf, cipher) = (document.kdf.name, document.cipher.name);
            return Err(format!("it is sealed with {kdf} and {cipher}; scrypt and nacl/secretbox are supported"));
        }
        let bytes = |what: &str, text: &str| STANDARD.decode(text).map_err(|_| format!("its {what} is not base64"));
        let nonce = bytes("nonce", &document.cipher.nonce)?;
        let nonce = nonce.try_into().map_err(|_| format!("its nonce has not {NONCE_BYTES} bytes"))?;
        let content = bytes("ciphertext", &document.ciphertext)?;
        if content.len() < TAG_BYTES {
            return Err("its ciphertext is too short".to_owned());
        }
        document.kdf.params.check()?;
        Ok(Self { cost: document.kdf.params, salt: bytes("salt", &document.kdf.salt)?, nonce, content })
    }
}

impl Cost {
    fn check(self) -> Result<(), String> {
        let Self { n, r, p } = self;
        let blocks = n.checked_mul(u64::from(r));
        let memory = blocks.and_then(|blocks| blocks.checked_mul(128)).unwrap_or(u64::MAX);
        let work = blocks.and_then(|blocks| blocks.checked_mul(u64::from(p))).unwrap_or(u64::MAX);
        if !n.is_power_of_two() || n < 2 || r == 0 || p == 0 {
            return Err(format!("scrypt has no parameters N={n}, r={r}, p={p}"));
        }
        if memory > MOST_MEMORY_BYTES || work > MOST_WORK {
            return Err(format!(
                "its scrypt parameters N={n}, r={r}, p={p} would take more memory or time than a key may"
            ));
        }
        Ok(())
    }
}

fn stretch(password: &Secret, salt: &[u8], cost: Cost) -> Result<[u8; 32], String> {
    let wrong = |error: &dyn std::fmt::Display| format!("scrypt does not take its parameters: {error}");
    let log_n = u8::try_from(cost.n.trailing_zeros()).expect("a number of 64 bits has at most 64 zeros");
    let params = scrypt::Params::new(log_n, cost.r, cost.p).map_err(|error| wrong(&error))?;
    let mut key = [0; 32];
    scrypt::scrypt(password.reveal().as_bytes(), salt, &params, &mut key).map_err(|error| wrong(&error))?;
    Ok(key)
}

/// NaCl's secretbox (<https://nacl.cr.yp.to/secretbox.html>): the first 32 bytes of the stream are the key of the
/// authenticator, the rest encrypts.
fn secretbox(key: &[u8; 32], nonce: &[u8; NONCE_BYTES]) -> (XSalsa20, Poly1305) {
    let mut cipher = XSalsa20::new(key.into(), nonce.into());
    let mut mac_key = [0; 32];
    cipher.apply_keystream(&mut mac_key);
    (cipher, Poly1305::new(&mac_key.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn sealed() -> (Vec<u8>, Secret) {
        let password = Secret::new("correct horse");
        (seal(b"the key", &password).expect("sealed"), password)
    }

    #[test]
    fn only_the_password_opens_it_and_only_unchanged() {
        let (document, password) = sealed();
        assert_eq!(open(&document, &password).as_deref(), Ok(&b"the key"[..]));
        assert!(open(&document, &Secret::new("")).expect_err("wrong").contains("password is wrong"));
        let mut value: Value = serde_json::from_slice(&document).expect("JSON");
        let mut content = STANDARD.decode(value["ciphertext"].as_str().expect("text")).expect("base64");
        *content.last_mut().expect("not empty") ^= 1;
        value["ciphertext"] = STANDARD.encode(content).into();
        assert!(open(value.to_string().as_bytes(), &password).expect_err("changed").contains("damaged"));
    }

    #[test]
    fn parameters_that_would_take_100_gb_or_years_are_refused_before_anything_is_spent() {
        let (document, _) = sealed();
        let value: Value = serde_json::from_slice(&document).expect("JSON");
        for params in [
            json!({"N": 1u64 << 30, "r": 1024, "p": 1}),
            json!({"N": 1u64 << 63, "r": u32::MAX, "p": u32::MAX}),
            json!({"N": 1 << 15, "r": 8, "p": 1_000_000}),
            json!({"N": 2, "r": 1 << 30, "p": 1}),
            json!({"N": 0, "r": 8, "p": 1}),
            json!({"N": 1, "r": 8, "p": 1}),
            json!({"N": 32767, "r": 8, "p": 1}),
            json!({"N": 32768, "r": 0, "p": 1}),
            json!({"N": -1, "r": 8, "p": 1}),
            json!({"N": 1e30, "r": 8, "p": 1}),
            json!([]),
        ] {
            let mut value = value.clone();
            value["kdf"]["params"] = params.clone();
            assert!(check(value.to_string().as_bytes()).is_err(), "{params}");
        }
    }

    #[test]
    fn what_is_no_sealed_key_says_so() {
        let (document, password) = sealed();
        let value: Value = serde_json::from_slice(&document).expect("JSON");
        for (path, wrong) in [
            ("/kdf/name", json!("argon2")),
            ("/cipher/name", json!("none")),
            ("/cipher/nonce", json!("AAAA")),
            ("/kdf/salt", json!("!")),
            ("/ciphertext", json!("AAAA")),
            ("/ciphertext", json!(7)),
        ] {
            let mut value = value.clone();
            *value.pointer_mut(path).expect("there") = wrong.clone();
            assert!(open(value.to_string().as_bytes(), &password).is_err(), "{path} {wrong}");
        }
        assert!(check(b"").is_err() && check(b"[[[[").is_err());
    }

    /// NaCl's own test vector (tests/secretbox.c of <https://nacl.cr.yp.to>), its first bytes.
    #[test]
    fn the_box_is_nacls() {
        let hex = |text: &str| -> Vec<u8> {
            let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
            (0..text.len()).step_by(2).map(digit).collect()
        };
        let key: [u8; 32] =
            hex("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389").try_into().expect("32 bytes");
        let nonce: [u8; 24] = hex("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37").try_into().expect("24 bytes");
        let mut message = hex("be075fc53c81f2d5cf141316ebeb0c7b5228c52a4c62cbd44b66849b64244ffc");
        secretbox(&key, &nonce).0.apply_keystream(&mut message);
        assert_eq!(message, hex("8e993b9f48681273c29650ba32fc76ce48332ea7164d96a4476fb8c531a1186a"));
    }
}
