//! Work that several threads may ask for, and that is done once.
//!
//! Invariant: for one key at most one thread works at a time; who comes later waits and gets its result. A failure is
//! nobody else's: the next one who asks tries again.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Condvar, Mutex, PoisonError};

/// Results by key. See the module's documentation.
pub(crate) struct Flights<K, V> {
    /// `None` while somebody works on it.
    results: Mutex<HashMap<K, Option<V>>>,
    ended: Condvar,
}

impl<K: Eq + Hash + Clone, V: Clone> Flights<K, V> {
    /// Nothing done yet.
    pub(crate) fn new() -> Self {
        Self { results: Mutex::default(), ended: Condvar::new() }
    }

    /// The result for a key: that of `work`, or of another thread's.
    pub(crate) fn once<E>(&self, key: &K, work: impl FnOnce() -> Result<V, E>) -> Result<V, E> {
        let mut results = self.lock();
        loop {
            match results.get(key) {
                Some(Some(value)) => return Ok(value.clone()),
                Some(None) => results = self.ended.wait(results).unwrap_or_else(PoisonError::into_inner),
                None => break,
            }
        }
        results.insert(key.clone(), None);
        drop(results);
        // Also on a panic: who waits would wait for ever.
        let landing = Landing { flights: self, key };
        let value = work()?;
        self.lock().insert(key.clone(), Some(value.clone()));
        drop(landing);
        Ok(value)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<K, Option<V>>> {
        // The map is whole between any two statements that change it.
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes those who wait, and forgets work that came to nothing.
struct Landing<'a, K: Eq + Hash + Clone, V: Clone> {
    flights: &'a Flights<K, V>,
    key: &'a K,
}

impl<K: Eq + Hash + Clone, V: Clone> Drop for Landing<'_, K, V> {
    fn drop(&mut self) {
        let mut results = self.flights.lock();
        if results.get(self.key).is_some_and(Option::is_none) {
            results.remove(self.key);
        }
        self.flights.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn work_is_done_once_however_many_ask_for_it() {
        let (flights, count) = (Flights::new(), AtomicUsize::new(0));
        let work = || Ok::<_, ()>(count.fetch_add(1, Ordering::Relaxed));
        std::thread::scope(|scope| {
            let asking: Vec<_> = (0..8).map(|_| scope.spawn(|| flights.once(&"key", work))).collect();
            assert!(asking.into_iter().all(|one| one.join().expect("no panic") == Ok(0)));
        });
        assert_eq!(flights.once(&"other", work), Ok(1));
    }

    #[test]
    fn a_failure_or_a_panic_leaves_the_work_to_the_next() {
        let flights = Flights::<_, u8>::new();
        assert_eq!(flights.once(&1, || Err("no")), Err("no"));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            _ = flights.once(&1, || -> Result<u8, ()> { panic!("in flight") });
        }));
        assert!(panicked.is_err());
        assert_eq!(flights.once(&1, || Ok::<_, ()>(7)), Ok(7));
    }
}
