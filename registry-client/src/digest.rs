//! Digests of what passes through: the only file that names the digest library.
//!
//! Invariant: a [`VerifyingReader`] never hands out the last byte of content that does not match its descriptor.

use std::io::{self, Read};

use oci_spec::image::{Descriptor, Digest, DigestAlgorithm};
use sha2::{Digest as _, Sha256, Sha384, Sha512};

use crate::error::{Cause, Error};

/// The SHA-256 digest of some bytes.
pub fn digest_of(bytes: &[u8]) -> Digest {
    let mut digester = Digester::sha256();
    digester.update(bytes);
    digester.finish()
}

/// A digest being computed.
#[derive(Debug, Clone)]
pub(crate) enum Digester {
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
}

impl Digester {
    pub(crate) fn sha256() -> Self {
        Self::Sha256(Sha256::new())
    }

    /// The digester that makes digests like `digest`; `None` for an algorithm we cannot check.
    pub(crate) fn like(digest: &Digest) -> Option<Self> {
        match digest.algorithm() {
            DigestAlgorithm::Sha256 => Some(Self::sha256()),
            DigestAlgorithm::Sha384 => Some(Self::Sha384(Sha384::new())),
            DigestAlgorithm::Sha512 => Some(Self::Sha512(Sha512::new())),
            _ => None,
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(state) => state.update(bytes),
            Self::Sha384(state) => state.update(bytes),
            Self::Sha512(state) => state.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        let (algorithm, bytes) = match self {
            Self::Sha256(state) => ("sha256", state.finalize().to_vec()),
            Self::Sha384(state) => ("sha384", state.finalize().to_vec()),
            Self::Sha512(state) => ("sha512", state.finalize().to_vec()),
        };
        let mut text = format!("{algorithm}:");
        for byte in bytes {
            text.push_str(&format!("{byte:02x}"));
        }
        Digest::try_from(text).expect("a digester's output has the right length and alphabet")
    }
}

/// Checks bytes against the digest that names them.
pub(crate) fn check(bytes: &[u8], expected: &Digest) -> Result<(), Cause> {
    let mut digester = Digester::like(expected).ok_or_else(|| unsupported(expected))?;
    digester.update(bytes);
    let actual = digester.finish();
    if actual == *expected {
        return Ok(());
    }
    Err(Cause::DigestMismatch { expected: expected.clone(), actual: actual.to_string() })
}

/// Passes content through and checks size and digest: a mismatch is an error in place of the last bytes,
/// so content is good once as many bytes were read as the descriptor says, or `Ok(0)` came.
#[derive(Debug)]
pub struct VerifyingReader<R> {
    inner: R,
    expected: Digest,
    expected_bytes: u64,
    seen_bytes: u64,
    digester: Option<Digester>,
}

impl<R: Read> VerifyingReader<R> {
    /// Wraps `inner`, which must yield what `descriptor` describes.
    ///
    /// # Errors
    /// For a digest algorithm that cannot be checked.
    pub fn new(inner: R, descriptor: &Descriptor) -> Result<Self, Error> {
        let expected = descriptor.digest().clone();
        let Some(digester) = Digester::like(&expected) else {
            return Err(Error::new(format!("verify the blob {expected}"), unsupported(&expected)));
        };
        Ok(Self { inner, expected_bytes: descriptor.size(), expected, seen_bytes: 0, digester: Some(digester) })
    }

    pub(crate) fn inner(&self) -> &R {
        &self.inner
    }

    pub(crate) fn into_inner(self) -> R {
        self.inner
    }

    fn fail(&self, cause: Cause) -> io::Error {
        Error::new(format!("read the blob {}", self.expected), cause).into()
    }

    fn size_mismatch(&self, actual: String) -> io::Error {
        self.fail(Cause::SizeMismatch { expected_bytes: self.expected_bytes, actual })
    }

    /// Compares once, when all expected bytes were seen.
    fn check_digest(&mut self) -> io::Result<()> {
        let Some(digester) = self.digester.take() else { return Ok(()) };
        let actual = digester.finish();
        if actual == self.expected {
            return Ok(());
        }
        Err(self.fail(Cause::DigestMismatch { expected: self.expected.clone(), actual: actual.to_string() }))
    }
}

impl<R: Read> Read for VerifyingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let count = self.inner.read(buffer)?;
        self.seen_bytes += count as u64;
        if self.seen_bytes > self.expected_bytes {
            return Err(self.size_mismatch(format!("more than {} bytes", self.expected_bytes)));
        }
        if count == 0 && self.seen_bytes < self.expected_bytes {
            return Err(self.size_mismatch(format!("{} bytes", self.seen_bytes)));
        }
        if let Some(digester) = &mut self.digester {
            digester.update(&buffer[..count]);
        }
        if self.seen_bytes == self.expected_bytes {
            self.check_digest()?;
        }
        Ok(count)
    }
}

fn unsupported(digest: &Digest) -> Cause {
    Cause::Input(format!("the digest algorithm {} is not supported", digest.algorithm()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::image::MediaType;
    use proptest::prelude::*;

    fn descriptor(bytes: &[u8]) -> Descriptor {
        Descriptor::new(MediaType::ImageLayer, bytes.len() as u64, digest_of(bytes))
    }

    fn read(content: &[u8], descriptor: &Descriptor) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        VerifyingReader::new(content, descriptor).expect("sha256 is supported").read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn digest_of_nothing_is_the_well_known_one() {
        assert_eq!(digest_of(b"").as_ref(), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn empty_content_is_verified() {
        assert_eq!(read(b"", &descriptor(b"")).expect("empty matches"), b"");
        assert!(read(b"x", &descriptor(b"")).is_err());
    }

    #[test]
    fn an_unknown_algorithm_is_refused() {
        let digest = Digest::try_from("blake3:abc").expect("well formed");
        let error = VerifyingReader::new(&b""[..], &Descriptor::new(MediaType::ImageLayer, 0, digest)).unwrap_err();
        assert!(error.to_string().contains("blake3 is not supported"), "{error}");
    }

    proptest! {
        #[test]
        fn only_the_described_bytes_pass(
            content in proptest::collection::vec(any::<u8>(), 1..200), cut in 0usize..200, flip in 0usize..200, more in 0u8..2,
        ) {
            let good = descriptor(&content);
            prop_assert_eq!(read(&content, &good).expect("unchanged"), content.clone());
            let cut = cut % content.len();
            prop_assert!(read(&content[..cut], &good).is_err());
            let mut flipped = content.clone();
            flipped[flip % content.len()] ^= 1;
            prop_assert!(read(&flipped, &good).is_err());
            let mut longer = content.clone();
            longer.push(more);
            prop_assert!(read(&longer, &good).is_err());
        }
    }
}
