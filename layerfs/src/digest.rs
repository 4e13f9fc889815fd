//! Digests: of stored bytes ([`Digest`]), of uncompressed layers ([`DiffId`]), of stacks ([`ChainId`]).
//!
//! The three are different types because a swap of two of them is the classic bug of image tools.
//! This is the only file that names the library that computes SHA-256.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

pub use oci_spec::image::Digest;
use oci_spec::image::Sha256Digest;
use sha2::Digest as _;

/// Why a text is not the digest that it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a SHA-256 digest of the form sha256:<64 lowercase hexadecimal digits>")]
pub struct DigestError {
    text: String,
}

/// Computes a SHA-256 digest of bytes that come in pieces.
#[derive(Clone, Default)]
pub struct Digester(sha2::Sha256);

impl Digester {
    /// A digester that has seen no bytes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes seen, as stored or sent.
    pub fn digest(self) -> Digest {
        digest_from(self.sum())
    }

    /// The bytes of the digest of all bytes seen.
    pub fn sum(self) -> [u8; 32] {
        self.0.finalize().into()
    }

    /// The digest of all bytes seen, which are an uncompressed layer.
    pub fn diff_id(self) -> DiffId {
        DiffId(self.sum())
    }
}

impl fmt::Debug for Digester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digester")
    }
}

/// The digest of some bytes at hand.
pub fn digest_of(bytes: &[u8]) -> Digest {
    digest_from(sum_of(bytes))
}

/// The bytes of the digest of some bytes at hand.
pub fn sum_of(bytes: &[u8]) -> [u8; 32] {
    let mut digester = Digester::new();
    digester.update(bytes);
    digester.sum()
}

/// A reader or a writer that digests and counts what passes through it.
#[derive(Debug)]
pub struct Digesting<T> {
    inner: T,
    digester: Digester,
    size_bytes: u64,
}

impl<T> Digesting<T> {
    /// Wraps a reader or writer.
    pub fn new(inner: T) -> Self {
        Self { inner, digester: Digester::new(), size_bytes: 0 }
    }

    /// Bytes that have passed.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// What was wrapped, and the digester of all bytes that have passed.
    pub fn into_parts(self) -> (T, Digester) {
        (self.inner, self.digester)
    }

    fn pass(&mut self, bytes: &[u8]) {
        self.digester.update(bytes);
        self.size_bytes += bytes.len() as u64;
    }
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.pass(&buffer[..count]);
        Ok(count)
    }
}

impl<W: Write> Write for Digesting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.pass(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The digest of an uncompressed layer tar, as the `rootfs.diff_ids` of a config name it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiffId([u8; 32]);

/// The digest of a stack of layers: what identifies a tree.
///
/// <https://github.com/opencontainers/image-spec/blob/main/config.md#layer-chainid>
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainId([u8; 32]);

impl ChainId {
    /// The chain id of a stack, lowest layer first; `None` for a stack of no layers, which has none.
    pub fn of_stack(stack: &[DiffId]) -> Option<Self> {
        let (first, rest) = stack.split_first()?;
        Some(rest.iter().fold(Self(first.0), |below, layer| below.with_layer(layer)))
    }

    /// The chain id of this stack with one more layer on top.
    pub fn with_layer(&self, layer: &DiffId) -> Self {
        let mut digester = Digester::new();
        digester.update(format!("{self} {layer}").as_bytes());
        Self(digester.sum())
    }
}

macro_rules! sha256_newtype {
    ($name:ident) => {
        impl $name {
            /// The 64 hexadecimal digits, without the algorithm: the form of file names in a store.
            pub fn hex(&self) -> String {
                hex(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "sha256:{}", self.hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}(sha256:{})", stringify!($name), self.hex())
            }
        }

        impl FromStr for $name {
            type Err = DigestError;

            fn from_str(text: &str) -> Result<Self, DigestError> {
                let sum = text.strip_prefix("sha256:").and_then(from_hex);
                sum.map(Self).ok_or_else(|| DigestError { text: text.to_owned() })
            }
        }

        impl From<$name> for Digest {
            fn from(value: $name) -> Self {
                digest_from(value.0)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

impl DiffId {
    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        from_hex(text).map(Self)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

sha256_newtype!(DiffId);
sha256_newtype!(ChainId);

fn digest_from(sum: [u8; 32]) -> Digest {
    let digits = hex(&sum);
    Sha256Digest::from_str(&digits).expect("64 lowercase hexadecimal digits are a SHA-256 digest").into()
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]]).map(char::from).collect()
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    let is_lowercase_hex = digits.iter().all(|d| matches!(d, b'0'..=b'9' | b'a'..=b'f'));
    if digits.len() != 64 || !is_lowercase_hex {
        return None;
    }
    let mut sum = [0; 32];
    for (byte, pair) in sum.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_is_that_of_the_standard_test_vector() {
        let expected = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest_of(b"abc").to_string(), expected);
        let mut writer = Digesting::new(Vec::new());
        writer.write_all(b"abc").unwrap();
        assert_eq!(writer.size_bytes(), 3);
        assert_eq!(writer.into_parts().1.diff_id().to_string(), expected);
    }

    #[test]
    fn chain_id_of_one_layer_is_its_diff_id_and_of_more_the_digest_of_both_texts() {
        let a: DiffId = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
        let b: DiffId = format!("sha256:{}", "b".repeat(64)).parse().unwrap();
        assert_eq!(ChainId::of_stack(&[]), None);
        assert_eq!(ChainId::of_stack(&[a]).unwrap().to_string(), a.to_string());
        let both = digest_of(format!("{a} {b}").as_bytes());
        assert_eq!(ChainId::of_stack(&[a, b]).unwrap().to_string(), both.to_string());
    }

    #[test]
    fn texts_that_are_no_digest_are_refused() {
        for text in ["", "sha256:", "sha256:abc", &"a".repeat(64), &format!("sha256:{}", "A".repeat(64))] {
            assert!(text.parse::<DiffId>().is_err(), "{text}");
        }
        assert!(format!("sha256:{}\u{e9}", "a".repeat(62)).parse::<DiffId>().is_err());
    }
}
