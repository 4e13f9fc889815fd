//! Signatures of images: keys, what is signed, where it lies, and what a policy demands.
//!
//! The form is that of cosign with keys, which containers/image reads and writes too
//! (<https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md>): a payload that names a manifest's digest
//! and the image's name, signed, beside the image under the tag `sha256-<hex>.sig`. And that of GPG, of which the same
//! payload lies with its signature at a store of its own. And that of cosign 3, a bundle among the referrers.
//!
//! Invariant: nothing that a registry says about a signature counts before the signature was verified with a key
//! that somebody trusts; all of it is bounded in size and number.

mod attached;
mod bundle;
mod certificate;
mod companion;
mod gpg;
mod guard;
mod identity;
mod key;
mod log;
mod lookaside;
mod payload;
mod pem;
mod policy;
mod registries_d;
mod rules;
mod sealed;
mod trust;
mod yaml;

pub(crate) use self::attached::companion_tags;
pub use self::attached::{companion_subject, sign, sign_bundle};
#[cfg(any(test, fuzzing))]
pub(crate) use self::bundle::{Bundle, said_by};
pub(crate) use self::companion::{check_companion, has_companion_to_join, put_companion};
pub use self::gpg::{GpgKey, GpgKeyring};
pub use self::identity::SignedIdentity;
pub use self::key::{KeyFile, PrivateKey, PublicKey, SealedKey};
pub(crate) use self::lookaside::files;
pub use self::lookaside::{SignatureStores, sign_with_gpg};
#[cfg(any(test, fuzzing))]
pub(crate) use self::payload::Form;
pub use self::payload::Payload;
pub use self::policy::{Demands, Policy};
pub use self::trust::{Accepted, Signer, TrustedKeys};
