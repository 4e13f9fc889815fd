//! How much of a build goes on at once, and how all of it stops.
//!
//! Invariant: at most `jobs` steps are carried out at a time, and whoever waits for another stage or for a blob has no
//! turn, so that turns come back; who has one waits at most for the caches of other steps, which are locked in one
//! order (`step/mounts.rs`). The first failure is the build's; what ends because of it is only [`BuildError::Stopped`].

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::BuildError;

/// The turns of a build, and its first failure.
pub(crate) struct Schedule {
    free: Mutex<usize>,
    changed: Condvar,
    stop: Stop,
    failure: Mutex<Option<BuildError>>,
    /// Of the processes and transfers that go on now, by a number of their own.
    killers: Mutex<(u64, Vec<(u64, Kill)>)>,
}

/// Ends a process or a transfer.
type Kill = Box<dyn Fn() + Send>;

/// A mark that ends transfers; where nobody can set it, they go on to their end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

/// A stream that fails once its mark is set: nobody needs what it carries any more.
#[derive(Debug)]
pub(crate) struct Stoppable<T> {
    inner: T,
    stop: Stop,
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
            stop: Stop::default(),
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
        self.stop.is_set()
    }

    /// Keeps the first failure, and ends everything that goes on.
    pub(crate) fn fail(&self, error: BuildError) -> BuildError {
        {
            let mut failure = lock(&self.failure);
            if failure.is_none() && !matches!(error, BuildError::Stopped) {
                *failure = Some(error);
            }
        }
        // Under the lock of the killers: what is watched later sees the mark.
        let killers = lock(&self.killers);
        self.stop.0.store(true, Ordering::SeqCst);
        killers.1.iter().for_each(|(_, kill)| kill());
        drop(killers);
        // Under the lock of the turns: nobody goes to sleep between looking and waiting.
        let _free = lock(&self.free);
        self.changed.notify_all();
        BuildError::Stopped
    }

    /// What the build failed with, if that was said.
    pub(crate) fn take_failure(&self) -> Option<BuildError> {
        lock(&self.failure).take()
    }

    /// The mark that is set once the build has failed.
    pub(crate) fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// Has something ended if the build stops, also if it did so already.
    pub(crate) fn watch(&self, kill: impl Fn() + Send + 'static) -> Watched<'_> {
        let mut killers = lock(&self.killers);
        if self.is_stopped() {
            kill();
        }
        killers.0 += 1;
        let number = killers.0;
        killers.1.push((number, Box::new(kill)));
        Watched { schedule: self, number }
    }
}

impl Stop {
    /// Whether nobody needs what goes on any more.
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// A stream that this ends.
    pub(crate) fn ends<T>(&self, inner: T) -> Stoppable<T> {
        Stoppable { inner, stop: self.clone() }
    }
}

impl<T> Stoppable<T> {
    /// The stream alone.
    pub(crate) fn into_inner(self) -> T {
        self.inner
    }

    fn inner(&mut self) -> io::Result<&mut T> {
        match self.stop.is_set() {
            true => Err(io::Error::other(BuildError::Stopped.to_string())),
            false => Ok(&mut self.inner),
        }
    }
}

impl<T: Read> Read for Stoppable<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner()?.read(buffer)
    }
}

impl<T: Write> Write for Stoppable<T> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.inner()?.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner()?.flush()
    }
}

impl<T: registry_client::Sink> registry_client::Sink for Stoppable<T> {
    fn restart(&mut self) -> io::Result<()> {
        self.inner()?.restart()
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
        assert_eq!(schedule.take_failure().expect("it failed").to_string(), "first");
    }
}
