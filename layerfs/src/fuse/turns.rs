//! Which threads of a mount read requests, and which sleep.
//!
//! Invariant: as long as the mount is there, some thread reads, or will go on reading within two ticks of the watch,
//! whatever the others wait for, if those are fewer than [`THREADS`]. Nothing here reads a request.
//!
//! Mostly one thread reads and answers alone, and one that sleeps watches it. Another is started when the last one that
//! slept is to read. A reader that answers is never woken and wakes nobody, so that a request of a single client costs
//! no change of threads on our side; several readers would sleep on the device and be woken for what another one takes.
//! More read when requests queue up; one that is about to wait for the disk lets another read meanwhile; and the one
//! that watches takes over where the readers stand still for another reason.

use std::{
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// The most threads of a mount: so many operations can wait for the disk at once.
pub(super) const THREADS: usize = 64;

/// How many may read at once.
const MOST_READING: usize = 8;

/// How often the readers are watched, so how long a request can hold up all others. Long beside any request that does
/// not wait for the disk, and rare enough to cost nothing.
const TICK: Duration = Duration::from_millis(2);

/// After so many ticks without a request nobody watches any more, until there is one.
const QUIET_TICKS: u32 = 50;

#[derive(Debug)]
struct Roles {
    /// That were started.
    threads: usize,
    sleeping: usize,
    reading: usize,
    /// How many are to read.
    wanted: usize,
    has_watch: bool,
}

/// What a thread is to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Read requests.
    Read,
    /// Start a thread of that number, since no other one sleeps, and read.
    StartAnother { number: usize },
    /// Go home: the mount is gone.
    End,
}

/// The turns of the threads of one mount.
#[derive(Debug)]
pub(super) struct Turns {
    roles: Mutex<Roles>,
    changed: Condvar,
    /// How many may read at once.
    most: usize,
    has_ended: AtomicBool,
    /// More than one reads.
    is_crowded: AtomicBool,
    /// Nobody watches, because nothing happened for long.
    is_quiet: AtomicBool,
    /// Of each thread, how often it began or finished a request as a reader: odd while it works on one.
    steps: [AtomicU64; THREADS],
}

impl Turns {
    /// The turns of one thread, which does not read yet; at most `most` will at once.
    pub(super) fn new(most: usize) -> Self {
        Self {
            roles: Mutex::new(Roles { threads: 1, sleeping: 0, reading: 0, wanted: 1, has_watch: false }),
            changed: Condvar::new(),
            most: most.clamp(1, MOST_READING),
            has_ended: AtomicBool::new(false),
            is_crowded: AtomicBool::new(false),
            is_quiet: AtomicBool::new(false),
            steps: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    fn roles(&self) -> MutexGuard<'_, Roles> {
        self.roles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The mount is gone: everyone may go home.
    pub(super) fn end(&self) {
        self.has_ended.store(true, Relaxed);
        drop(self.roles());
        self.changed.notify_all();
    }

    /// Sleeps until this thread is to read; `End` once the mount is gone.
    pub(super) fn take(&self) -> Turn {
        let mut roles = self.roles();
        roles.sleeping += 1;
        loop {
            if self.has_ended.load(Relaxed) {
                return Turn::End;
            }
            if roles.reading < roles.wanted {
                self.join(&mut roles);
                roles.sleeping -= 1;
                if roles.sleeping > 0 || roles.threads == THREADS {
                    return Turn::Read;
                }
                roles.threads += 1;
                // It sleeps as soon as it runs.
                return Turn::StartAnother { number: roles.threads - 1 };
            }
            roles = if roles.has_watch || self.is_quiet.load(Relaxed) {
                self.changed.wait(roles).unwrap_or_else(PoisonError::into_inner)
            } else {
                self.watch(roles)
            };
        }
    }

    /// Watches the readers until this thread is to read or it has become quiet.
    fn watch<'a>(&'a self, mut roles: MutexGuard<'a, Roles>) -> MutexGuard<'a, Roles> {
        roles.has_watch = true;
        let (mut before, mut quiet) = (self.seen(), 0);
        loop {
            roles = self.changed.wait_timeout(roles, TICK).unwrap_or_else(PoisonError::into_inner).0;
            let now = self.seen();
            let stuck = before.iter().zip(&now).filter(|(before, now)| before == now && **now % 2 == 1).count();
            if stuck > 0 && stuck >= roles.reading {
                // They still count as readers: who finds nothing to do when they are back stops.
                roles.wanted = roles.reading + 1;
            }
            quiet = if before == now && stuck == 0 { quiet + 1 } else { 0 };
            before = now;
            if quiet == QUIET_TICKS {
                self.is_quiet.store(true, Relaxed);
            }
            if roles.reading < roles.wanted || quiet == QUIET_TICKS || self.has_ended.load(Relaxed) {
                roles.has_watch = false;
                // Somebody else watches on.
                self.changed.notify_one();
                return roles;
            }
        }
    }

    fn seen(&self) -> [u64; THREADS] {
        std::array::from_fn(|thread| self.steps[thread].load(Relaxed))
    }

    /// A reader begins to work on a request.
    pub(super) fn begin(&self, thread: usize) {
        self.steps[thread].fetch_add(1, Relaxed);
        if self.is_quiet.load(Relaxed) {
            let _roles = self.roles();
            self.is_quiet.store(false, Relaxed);
            self.changed.notify_one();
        }
    }

    /// A reader has answered.
    pub(super) fn finish(&self, thread: usize) {
        self.steps[thread].fetch_add(1, Relaxed);
    }

    /// A reader found nothing to do. Where others read as well, it no longer does, and this is false.
    pub(super) fn stays(&self) -> bool {
        if !self.is_crowded.load(Relaxed) {
            return true;
        }
        let mut roles = self.roles();
        if roles.reading <= 1 {
            return true;
        }
        self.leave(&mut roles);
        roles.wanted = roles.reading;
        false
    }

    /// A reader found requests that had to wait: one more is to read, if so many may.
    pub(super) fn call_another(&self) {
        let mut roles = self.roles();
        if roles.wanted < self.most && roles.reading == roles.wanted {
            roles.wanted += 1;
            self.changed.notify_one();
        }
    }

    /// A reader lets another one read, because it is about to wait.
    pub(super) fn hand_over(&self) {
        let mut roles = self.roles();
        self.leave(&mut roles);
        self.changed.notify_one();
    }

    /// After [`Self::hand_over`]: whether this thread reads again.
    pub(super) fn comes_back(&self) -> bool {
        let mut roles = self.roles();
        let is_missing = roles.reading < roles.wanted;
        if is_missing {
            self.join(&mut roles);
        }
        is_missing
    }

    fn join(&self, roles: &mut Roles) {
        roles.reading += 1;
        self.is_crowded.store(roles.reading > 1, Relaxed);
    }

    fn leave(&self, roles: &mut Roles) {
        roles.reading -= 1;
        self.is_crowded.store(roles.reading > 1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use super::*;

    /// What the second thread is told, which leaves nobody asleep.
    const SECOND: Turn = Turn::StartAnother { number: 2 };

    /// A thread that waits for its turn, and says when it has it.
    fn waiting(turns: &Arc<Turns>) -> mpsc::Receiver<Turn> {
        let (sender, receiver) = mpsc::channel();
        let turns = Arc::clone(turns);
        std::thread::spawn(move || sender.send(turns.take()));
        receiver
    }

    #[test]
    fn one_thread_reads_until_it_hands_over() {
        let turns = Arc::new(Turns::new(2));
        assert_eq!(turns.take(), Turn::StartAnother { number: 1 });
        let other = waiting(&turns);
        assert_eq!(other.try_recv(), Err(mpsc::TryRecvError::Empty));
        turns.hand_over();
        assert_eq!(other.recv(), Ok(SECOND));
        assert!(!turns.comes_back(), "the other one reads");
    }

    #[test]
    fn another_thread_reads_where_requests_wait_and_stops_where_there_are_none() {
        let turns = Arc::new(Turns::new(2));
        assert_eq!(turns.take(), Turn::StartAnother { number: 1 });
        let other = waiting(&turns);
        turns.call_another();
        assert_eq!(other.recv(), Ok(SECOND));
        assert!(!turns.stays(), "one of two is enough");
        assert!(turns.stays(), "the last one never leaves");
    }

    #[test]
    fn a_reader_that_stands_still_is_replaced() {
        let turns = Arc::new(Turns::new(1));
        assert_eq!(turns.take(), Turn::StartAnother { number: 1 });
        turns.begin(0);
        assert_eq!(waiting(&turns).recv(), Ok(SECOND));
        turns.finish(0);
        assert!(!turns.stays());
    }

    #[test]
    fn a_watch_that_became_quiet_begins_again() {
        let turns = Arc::new(Turns::new(1));
        assert_eq!(turns.take(), Turn::StartAnother { number: 1 });
        let other = waiting(&turns);
        while !turns.is_quiet.load(Relaxed) {
            std::thread::yield_now();
        }
        turns.begin(0);
        assert_eq!(other.recv(), Ok(SECOND));
    }

    #[test]
    fn the_end_wakes_everyone() {
        let turns = Arc::new(Turns::new(1));
        assert_eq!(turns.take(), Turn::StartAnother { number: 1 });
        let others = [waiting(&turns), waiting(&turns)];
        turns.end();
        assert!(others.into_iter().all(|other| other.recv() == Ok(Turn::End)));
    }
}
