//! Moves container images between registries, OCI layouts and archives.
//!
//! Invariant: bytes arrive as they were or not at all: manifests are never rewritten, every blob is verified against
//! its digest, and no credential leaves for a host that it was not meant for. This crate knows nothing of file
//! systems in layers, nor of Dockerfiles.
//!
//! A place is a [`Source`], a [`Destination`] or both; [`copy()`] joins two of them.
//!
//! ```no_run
//! use registry_client::{Client, ClientOptions, CopyOptions, OciLayout, RegistrySource, Silent};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::new(ClientOptions::default());
//! let debian = RegistrySource::new(&client, &"debian:bookworm".parse()?)?;
//! let layout = OciLayout::new("layout", Some("debian".to_owned()));
//! let copied = registry_client::copy(&debian, &layout, &CopyOptions::default(), &Silent)?;
//! println!("{}", copied.manifest.digest());
//! # Ok(())
//! # }
//! ```

mod archive;
mod artifact;
mod auth;
mod client;
mod copy;
mod delete;
mod digest;
mod directory;
mod draft;
mod error;
mod fetch;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod growing;
mod hosts;
mod index;
mod kept;
mod known;
mod layout;
mod limits;
mod manifest;
#[cfg(test)]
mod mutations;
mod no_proxy;
mod open;
mod pages;
mod peer;
mod place;
mod platform;
mod progress;
mod pull;
mod push;
mod ranges;
mod reference;
mod referrers;
mod repack;
mod repository;
mod retry;
mod secret;
mod session;
mod signature;
mod spool;
mod stream;
mod transport;
mod upload;
mod url;
mod ways;

pub use self::archive::archived;
pub use self::archive::docker::{DockerArchiveDestination, DockerArchiveSource};
pub use self::archive::oci::{OciArchiveDestination, OciArchiveSource};
pub use self::artifact::{Artifact, FileContent};
pub use self::auth::credentials::{Credential, Credentials};
pub use self::client::{Client, ClientOptions};
pub use self::copy::{Copied, CopyOptions, PlatformChoice, choose_image, copy, copy_blob, join_companion};
pub use self::digest::{VerifyingReader, digest_of};
pub use self::directory::ImageDirectory;
pub use self::draft::{Draft, abandon_drafts};
pub use self::error::{Answer, Cause, Error, ErrorKind, in_full};
pub use self::fetch::{Fetched, Sink};
pub use self::growing::{BlobMaker, GrowingBlob};
pub use self::hosts::{Hosts, Schemes};
pub use self::index::{EntryChange, EntryChoice, IndexDraft, IndexSource};
pub use self::layout::OciLayout;
pub use self::limits::Limits;
pub use self::manifest::{MANIFEST_LIMIT_BYTES, Manifest, ManifestContent};
pub use self::open::{open_destination, open_source};
pub use self::place::{Content, Destination, Origin, Source, Stored};
pub use self::platform::Platform;
pub use self::progress::{Progress, Silent};
pub use self::pull::RegistrySource;
pub use self::push::RegistryDestination;
pub use self::ranges::RangePolicy;
pub use self::reference::{ImageName, Reference};
pub use self::repack::{LayerCompression, RepackOptions, RepackedSource, Repacker};
pub use self::repository::{Repository, Selector};
pub use self::retry::{RetryPolicy, twice_if_damaged};
pub use self::secret::{Secret, without_credentials};
pub use self::signature::{
    Accepted, Demands, GpgKey, GpgKeyring, KeyFile, Payload, Policy, PrivateKey, PublicKey, SealedKey, SignatureStores,
    SignedIdentity, Signer, TrustedKeys, companion_subject, sign, sign_bundle, sign_with_gpg,
};
pub use self::transport::TransportOptions;
pub use self::url::percent_decode;
