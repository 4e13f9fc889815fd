//! Bytes that are for somebody's eyes only.
//!
//! Invariant: the type has neither `Debug` nor `Display`, so that no message can hold it.

use std::sync::Arc;

/// A secret's bytes. Neither printed nor logged.
#[derive(Clone)]
pub struct Secret(pub Arc<[u8]>);
