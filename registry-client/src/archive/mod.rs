//! Images in one tar file: `oci-archive:` and `docker-archive:`.
//!
//! Invariant: an archive is never unpacked: reading uses offsets, so no name in it leads anywhere. A written archive is
//! the same bytes for the same image, and appears whole under its name.

pub(crate) mod docker;
pub(crate) mod oci;
pub(crate) mod tar_files;
