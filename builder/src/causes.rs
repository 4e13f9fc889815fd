//! What lies below errors: causes that a person can do something about.
//!
//! Invariant: every error that carries another one is looked into, also where it is not its source.

use std::error::Error;

use registry_client::Cause;

/// What to do where a full disk is among the causes.
pub fn full_disk(error: &(dyn Error + 'static)) -> Option<&'static str> {
    const WORDS: &str =
        "the disk is full; if it is that of the store, `nacre prune` frees what no image and no later build needs";
    let is_full = |kind| matches!(kind, std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
    let mut causes = std::iter::successors(Some(error), |error| cause_of(*error));
    let found = causes.any(|error| error.downcast_ref::<std::io::Error>().is_some_and(|error| is_full(error.kind())));
    found.then_some(WORDS)
}

/// An error of the registry client has its cause beside it, and an I/O error may carry another error.
fn cause_of<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    if let Some(error) = error.downcast_ref::<registry_client::Error>() {
        return match error.cause() {
            Cause::Place(place) => Some(&**place),
            cause => cause.source(),
        };
    }
    match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        Some(carried) => Some(carried),
        None => error.source(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("making a mount failed")]
    struct Outer(#[source] std::io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read x")]
    struct Telling(#[source] Outer);

    #[test]
    fn a_full_disk_is_found_below_other_errors() {
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        assert!(full_disk(&Telling(Outer(full()))).is_some());
        assert!(full_disk(&Outer(std::io::Error::other(Outer(full())))).is_some(), "an I/O error that carries another");
        assert!(full_disk(&Outer(std::io::Error::other("else"))).is_none());
    }
}
