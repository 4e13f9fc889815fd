//! The only unsafe code of the crate: system interfaces that have no safe wrapper.
//!
//! Each function here is safe to call; the argument why stands at its unsafe block.
#![expect(unsafe_code, reason = "this module exists to hold the unsafe code of the crate, with its arguments")]

mod mapping;

pub(crate) use mapping::Mapping;
