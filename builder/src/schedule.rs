//! How much of a build goes on at once, and how all of it stops.
//!
//! Invariant: at most `jobs` steps are carried out at a time, and whoever waits for another stage or for a blob has no
//! turn, so that turns come back; who has one waits at most for the caches of other steps, which are locked in one order
//! (`step/mounts.rs`). The first failure is the build's; what ends because of it is only [`BuildError::Stopped`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::BuildError;
use crate::sandbox::Killer;

/// The turns of a build, and its first failure.
pub(crate) struct Schedule {
    free: Mutex<usize>,
    changed: Condvar,
    is_stopped: AtomicBool,
    failure: Mutex<Option<BuildError>>,
    /// Of the steps that run now, by a number of their own.
    killers: Mutex<(u64, Vec<(u64, Killer)>)>,
}

/// The right to carry out a step, given back when dropped.
pub(crate) struct Turn<'a>(&'a Schedule);

/// A running process that is killed if the build stops.
pub(crate) struct Watched<'a> {
    schedule: &'a Schedule,
    number: u64,
}

impl Schedule {
    /// Turns for `jobs` steps at once, at least one.
    pub(crate) fn new(jobs: usize) -> Self {
        Self {
            free: Mutex::new(jobs.max(1)),
            changed: Condvar::new(),
            is_stopped: AtomicBool::new(false),
            failure: Mutex::default(),
            killers: Mutex::default(),
        }
    }

    /// Waits for a turn.
    pub(crate) fn turn(&self) -> Result<Turn<'_>, BuildError> {
        let mut free = lock(&self.free);
        loop {
            self.check()?;
            if *free > 0 {
                *free -= 1;
                return Ok(Turn(self));
            }
            free = self.changed.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits a moment for another process, of which nothing is heard.
    pub(crate) fn pause(&self) -> Result<(), BuildError> {
        /// Short against any step, long against a look at a lock.
        const MOMENT: Duration = Duration::from_millis(20);
        let free = lock(&self.free);
        drop(self.changed.wait_timeout(free, MOMENT));
        self.check()
    }

    /// An error once the build has failed.
    pub(crate) fn check(&self) -> Result<(), BuildError> {
        if self.is_stopped() { Err(BuildError::Stopped) } else { Ok(()) }
    }

    /// Whether the build has failed.
    pub(crate) fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::SeqCst)
    }

    /// Keeps the first failure, and ends everything that goes on.
    pub(crate) fn fail(&self, error: BuildError) -> BuildError {
        {
            let mut failure = lock(&self.failure);
            if failure.is_none() && !matches!(error, BuildError::Stopped) {
                *failure = Some(error);
            }
        }
        // Under the lock of the killers: a process that is watched later sees the mark.
        let killers = lock(&self.killers);
        self.is_stopped.store(true, Ordering::SeqCst);
        killers.1.iter().for_each(|(_, killer)| killer.kill());
        drop(killers);
        // Under the lock of the turns: nobody goes to sleep between looking and waiting.
        let _free = lock(&self.free);
        self.changed.notify_all();
        BuildError::Stopped
    }

    /// What the build failed with, if that was said.
    pub(crate) fn into_failure(self) -> Option<BuildError> {
        self.failure.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a process killed if the build stops, also if it did so already.
    pub(crate) fn watch(&self, killer: Killer) -> Watched<'_> {
        let mut killers = lock(&self.killers);
        if self.is_stopped() {
            killer.kill();
        }
        killers.0 += 1;
        let number = killers.0;
        killers.1.push((number, killer));
        Watched { schedule: self, number }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *lock(&self.0.free) += 1;
        self.0.changed.notify_all();
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        lock(&self.schedule.killers).1.retain(|(number, _)| *number != self.number);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each value is whole between any two statements that change it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_is_kept_and_ends_who_waits_for_a_turn() {
        let schedule = Schedule::new(1);
        let turn = schedule.turn().expect("one is free");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| schedule.turn().map(drop));
            schedule.fail(BuildError::Request("first".to_owned()));
            schedule.fail(BuildError::Request("second".to_owned()));
            assert!(matches!(waiting.join().expect("no panic"), Err(BuildError::Stopped)));
        });
        drop(turn);
        assert_eq!(schedule.into_failure().expect("it failed").to_string(), "first");
    }
}
