//! How one peer is connected to: whom its certificate must come from, who we are to it, and how long we wait.
//!
//! Invariant: a client certificate and its key fit together, checked when they are read; the key is never shown.

use std::fmt;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::secret::Secret;

/// What is special about connections to one peer; the default is nothing.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Peer {
    /// Certificate authorities in PEM, trusted beside the others.
    pub(crate) authorities_pem: Vec<String>,
    pub(crate) identity: Option<Identity>,
    /// Any certificate will do.
    pub(crate) skips_verification: bool,
    /// Another wait for a connection than usual.
    pub(crate) connect_timeout: Option<Duration>,
}

/// A client certificate with its chain, and its key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pub(crate) certificates_pem: String,
    pub(crate) key_pem: Secret,
}

impl Peer {
    /// What of it holds for another host that this one sends us to, such as its token server: the authorities, which a
    /// private registry and its surroundings share, but neither the identity nor the leave to skip verification.
    pub(crate) fn for_others(&self) -> Self {
        Self { authorities_pem: self.authorities_pem.clone(), ..Self::default() }
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("skips_verification", &self.skips_verification).finish_non_exhaustive()
    }
}

impl Identity {
    /// Takes a certificate chain and its key, both in PEM; the message says what is wrong.
    pub(crate) fn new(certificates_pem: String, key_pem: Secret) -> Result<Self, String> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificates_pem.as_bytes()).collect();
        let chain = chain.map_err(|error| format!("the client certificate is not PEM: {error}"))?;
        if chain.is_empty() {
            return Err("the client certificate's file holds no certificate".to_owned());
        }
        // The parser's message could quote the key: it is left out.
        let key = PrivateKeyDer::from_pem_slice(key_pem.reveal().as_bytes())
            .map_err(|_| "the client certificate's key is no unencrypted PEM key".to_owned())?;
        let provider = rustls::crypto::ring::default_provider();
        rustls::sign::CertifiedKey::from_der(chain, key, &provider)
            .map_err(|error| format!("the client certificate and its key cannot be used: {error}"))?;
        Ok(Self { certificates_pem, key_pem })
    }
}
