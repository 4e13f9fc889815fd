//! What steps leave behind, removed beside the steps that follow: a file system takes as long to remove files as to make
//! them.
//!
//! Invariant: all of it is gone when the value is; what waits is bounded, so that a disk has little to hold twice.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use layerfs::Upper;

/// Uppers that wait while one is removed.
const WAITING: usize = 1;

/// A thread that removes uppers, from the first one on.
#[derive(Debug, Default)]
pub(crate) struct Clearing(Mutex<Option<Worker>>);

#[derive(Debug)]
struct Worker {
    uppers: SyncSender<Upper>,
    thread: JoinHandle<()>,
}

impl Worker {
    fn new() -> std::io::Result<Self> {
        let (uppers, received) = sync_channel::<Upper>(WAITING);
        let thread =
            std::thread::Builder::new().name("clearing".to_owned()).spawn(move || received.iter().for_each(drop))?;
        Ok(Self { uppers, thread })
    }
}

impl Clearing {
    /// Has an upper removed, that nothing uses any more; here and now where there can be no thread for it.
    pub(crate) fn put(&self, upper: Upper) {
        let mut worker = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if worker.is_none() {
            *worker = Worker::new().ok();
        }
        let uppers = worker.as_ref().map(|worker| worker.uppers.clone());
        drop(worker);
        // What cannot be sent is dropped, and so removed.
        _ = uppers.map(|uppers| uppers.send(upper));
    }
}

impl Drop for Clearing {
    fn drop(&mut self) {
        let worker = self.0.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Worker { uppers, thread }) = worker {
            drop(uppers);
            // One that panicked has left an upper, which is pruned.
            _ = thread.join();
        }
    }
}
