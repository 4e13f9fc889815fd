//! What a transfer tells while it runs.
//!
//! Invariant: nothing here influences a transfer; an implementation must be quick and must not panic.

use std::time::Duration;

use oci_spec::image::{Descriptor, Digest};

/// Callbacks of a transfer, from several threads at once. Every one may be left out.
pub trait Progress: Send + Sync {
    /// These blobs will move next, each of which is then told of as done or as skipped, unless the transfer fails.
    fn planned(&self, blobs: &[Descriptor]) {
        let _ = blobs;
    }
    /// The transfer of these failed: those of them that are not there will not come.
    fn abandoned(&self, blobs: &[Descriptor]) {
        let _ = blobs;
    }
    /// A blob begins to move.
    fn blob_started(&self, descriptor: &Descriptor) {
        let _ = descriptor;
    }
    /// `position_bytes` of it have moved; a smaller number than before means that it began again.
    fn blob_moved(&self, digest: &Digest, position_bytes: u64) {
        let _ = (digest, position_bytes);
    }
    /// It is whole at its destination.
    fn blob_done(&self, digest: &Digest) {
        let _ = digest;
    }
    /// It needs no transfer: the destination has it, or (after `blob_started`) took it from another repository.
    fn blob_skipped(&self, descriptor: &Descriptor) {
        let _ = descriptor;
    }
    /// `what` failed and is tried again after `wait`.
    fn retrying(&self, what: &str, cause: &str, wait: Duration) {
        let _ = (what, cause, wait);
    }
    /// A registry sent a warning (header `Warning: 299`) that it did not send before.
    fn warning(&self, registry: &str, text: &str) {
        let _ = (registry, text);
    }
}

/// Says nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {}
