//! Errors with all that led to them, in words.
//!
//! Invariant: nothing is said twice: a cause that a message tells already is not told again.

use std::error::Error;

use registry_client::Cause;

/// An error and all its causes, on one line.
pub fn in_full(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !line.contains(&words) {
            line = format!("{line}: {words}");
        }
        cause = inner.source();
    }
    line
}

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
    #[error("cannot read x: {0}")]
    struct Telling(#[source] Outer);

    #[test]
    fn a_cause_is_told_once() {
        let bare = Outer(std::io::Error::other("no such device"));
        assert_eq!(in_full(&bare), "making a mount failed: no such device");
        assert_eq!(in_full(&Telling(bare)), "cannot read x: making a mount failed: no such device");
    }

    #[test]
    fn a_full_disk_is_found_below_other_errors() {
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        assert!(full_disk(&Telling(Outer(full()))).is_some());
        assert!(full_disk(&Outer(std::io::Error::other(Outer(full())))).is_some(), "an I/O error that carries another");
        assert!(full_disk(&Outer(std::io::Error::other("else"))).is_none());
    }
}
