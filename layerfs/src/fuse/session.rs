//! A mount being served: the first handshake, and the threads that read requests and answer them.
//!
//! Invariant: every request that was read is answered once, if it asks for an answer, by the thread that read it. What
//! the answers are is not known here, nor who mounted.

use std::{
    io,
    os::fd::OwnedFd,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::io::{Errno, Result};

use super::{
    channel::{Channel, DATA_BYTES, REQUEST_BYTES, Received},
    reply::{Reply, VERSION},
    request::{self, Header, Operation},
    turns::{Turn, Turns},
};

/// How long a thread looks for the next request before it sleeps. Waking a sleeping thread on another processor takes some
/// 25 µs; a client that reads small files and works on them, as sha256sum and compilers do, asks again after 50 to 80.
/// Nobody looks where the last pause was longer, so that this costs one such time at the end of a burst.
const SPIN: Duration = Duration::from_micros(100);

/// A thread that gave way for so long while it was looking shares its processor with one that has much to do: whoever
/// sleeps is served earlier there, because the scheduler lets him go first when he wakes.
const CROWDED: Duration = Duration::from_micros(500);

/// For so long nobody looks after that.
const CALM: Duration = Duration::from_millis(100);

/// After so many requests that had waited already when they were read, another thread reads as well.
const WAITED: u32 = 4;

/// What answers the requests of a mount, from several threads at once.
pub(crate) trait Server: Send + Sync + 'static {
    /// Chooses among what the kernel offers, before any other request.
    fn agree(&mut self, offered: u64) -> u64;

    /// Answers one request: into `reply`, or with an errno.
    fn answer(&self, header: &Header, operation: Operation<'_>, reply: &mut Reply) -> Result<()>;

    /// Takes back `count` lookups of a node.
    fn forget(&self, node: u64, count: u64);
}

/// The threads that serve a mount.
#[derive(Debug)]
pub(crate) struct Session {
    threads: Arc<Threads>,
}

type Threads = Mutex<Vec<JoinHandle<Result<()>>>>;

fn lock(threads: &Threads) -> MutexGuard<'_, Vec<JoinHandle<Result<()>>>> {
    threads.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the threads of a session share.
#[derive(Debug)]
struct Shared<S> {
    server: S,
    channel: Channel,
    turns: Turns,
    threads: Arc<Threads>,
    search: Search,
}

/// Whether looking for the next request pays, or sleeping until it comes.
#[derive(Debug)]
struct Search {
    has_processors: bool,
    /// Whether the last pause was a short one.
    is_busy: AtomicBool,
    began: Instant,
    /// Until when, in microseconds from `began`, others need the processor.
    crowded_until: AtomicU64,
}

impl Search {
    fn new(processors: usize) -> Self {
        let (is_busy, crowded_until) = (AtomicBool::new(false), AtomicU64::new(0));
        Self { has_processors: processors > 1, is_busy, began: Instant::now(), crowded_until }
    }

    fn pays(&self) -> bool {
        let is_crowded = || micros(self.began.elapsed()) < self.crowded_until.load(Relaxed);
        self.has_processors && self.is_busy.load(Relaxed) && !is_crowded()
    }

    fn give_way(&self) {
        let before = Instant::now();
        rustix::thread::sched_yield();
        if before.elapsed() > CROWDED {
            self.crowded_until.store(micros(self.began.elapsed() + CALM), Relaxed);
        }
    }

    fn note(&self, pause: Duration) {
        self.is_busy.store(pause < SPIN, Relaxed);
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// What the search for a request ended with.
enum Next {
    Request(usize),
    /// Others read.
    Rest,
    End,
}

impl Session {
    /// Agrees with the kernel on how to talk over the device of a new mount, and begins to serve.
    pub(crate) fn start(mut server: impl Server, device: OwnedFd) -> io::Result<Self> {
        let channel = shake_hands(&mut server, device)?;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let shared = Arc::new(Shared {
            server,
            channel,
            turns: Turns::new(processors.max(2)),
            threads: Arc::default(),
            search: Search::new(processors),
        });
        shared.start(0)?;
        Ok(Self { threads: Arc::clone(&shared.threads) })
    }

    /// Waits until the mount is gone, and gives the first error of a thread.
    pub(crate) fn join(self) -> io::Result<()> {
        let mut result = Ok(());
        // Whoever starts another one notes it before it ends itself.
        while let Some(thread) = { lock(&self.threads).pop() } {
            let ended = thread.join().unwrap_or(Err(Errno::IO));
            result = result.and(ended.map_err(io::Error::from));
        }
        result
    }
}

fn shake_hands(server: &mut impl Server, device: OwnedFd) -> io::Result<Channel> {
    let channel = Channel::new(device)?;
    let (mut buffer, mut reply) = (vec![0; REQUEST_BYTES], Reply::new());
    loop {
        channel.wait()?;
        let length = match channel.receive(&mut buffer)? {
            Received::Request(length) => length,
            Received::Nothing => continue,
            Received::End => return Err(Errno::NODEV.into()),
        };
        let Some((header, Ok(Operation::Init { major, minor, max_readahead, flags }))) =
            request::parse(&buffer[..length])
        else {
            return Err(io::Error::other("the kernel did not begin with a handshake"));
        };
        /// The first version with what the layouts here assume, of Linux 4.20.
        const OLDEST_MINOR: u32 = 28;
        reply.clear();
        if major < VERSION.0 || major == VERSION.0 && minor < OLDEST_MINOR {
            channel.send(reply.finish(header.unique, Err(Errno::PROTO)))?;
            return Err(io::Error::other(format!("the kernel's FUSE, {major}.{minor}, is too old")));
        }
        let agreed = if major > VERSION.0 { 0 } else { server.agree(flags) };
        let data_bytes = u32::try_from(DATA_BYTES).expect("a constant below 4 GiB");
        reply.agreed(max_readahead, agreed, data_bytes);
        channel.send(reply.finish(header.unique, Ok(())))?;
        // A newer kernel takes our version as an offer, and begins again.
        if major == VERSION.0 {
            return Ok(channel);
        }
    }
}

impl<S: Server> Shared<S> {
    fn start(self: &Arc<Self>, number: usize) -> io::Result<()> {
        let mut threads = lock(&self.threads);
        let shared = Arc::clone(self);
        threads.push(std::thread::Builder::new().name(format!("fuse-{number}")).spawn(move || shared.work(number))?);
        Ok(())
    }

    /// Serves until the mount is gone.
    fn work(self: &Arc<Self>, thread: usize) -> Result<()> {
        // Most threads of a mount that lives for one step never read.
        let mut buffers = None;
        loop {
            match self.turns.take() {
                Turn::Read => {}
                Turn::StartAnother { number } => {
                    // Without it this thread serves alone, until it waits for something.
                    if let Err(error) = self.start(number) {
                        tracing::warn!(%error, "starting a thread of a mount failed");
                    }
                }
                Turn::End => return Ok(()),
            }
            let (request, reply) = buffers.get_or_insert_with(|| (vec![0; REQUEST_BYTES], Reply::new()));
            // Whatever ends this thread, the others must not wait for it.
            self.read_requests(thread, request, reply).inspect_err(|_| self.turns.end())?;
        }
    }

    /// Answers requests until others do, or there will be no more.
    fn read_requests(&self, thread: usize, request: &mut [u8], reply: &mut Reply) -> Result<()> {
        let mut waited = 0;
        loop {
            let length = match self.next(request, &mut waited)? {
                Next::Request(length) => length,
                Next::Rest => return Ok(()),
                Next::End => {
                    self.turns.end();
                    return Ok(());
                }
            };
            if !self.answer(thread, &request[..length], reply)? {
                return Ok(());
            }
        }
    }

    /// The next request. `waited` counts those that were there already when they were looked for.
    fn next(&self, request: &mut [u8], waited: &mut u32) -> Result<Next> {
        match self.channel.receive(request)? {
            Received::Nothing => *waited = 0,
            Received::End => return Ok(Next::End),
            Received::Request(length) => {
                *waited += 1;
                if *waited == WAITED {
                    *waited = 0;
                    self.turns.call_another();
                }
                return Ok(Next::Request(length));
            }
        }
        if !self.turns.stays() {
            return Ok(Next::Rest);
        }
        let pause = Instant::now();
        if self.search.pays() {
            while pause.elapsed() < SPIN {
                // Whoever else wants this processor goes first: perhaps it is the client.
                self.search.give_way();
                match self.channel.receive(request)? {
                    Received::Nothing => {}
                    Received::Request(length) => return Ok(Next::Request(length)),
                    Received::End => return Ok(Next::End),
                }
            }
        }
        loop {
            self.channel.wait()?;
            let received = self.channel.receive(request)?;
            self.search.note(pause.elapsed());
            match received {
                Received::Nothing => {}
                Received::Request(length) => return Ok(Next::Request(length)),
                Received::End => return Ok(Next::End),
            }
        }
    }

    /// Answers one request; false where another thread reads the next one.
    fn answer(&self, thread: usize, bytes: &[u8], reply: &mut Reply) -> Result<bool> {
        let Some((header, operation)) = request::parse(bytes) else { return Err(Errno::PROTO) };
        let operation = match operation {
            Ok(Operation::Forget { count }) => {
                self.forget(thread, [(header.node, count)].into_iter());
                return Ok(true);
            }
            Ok(Operation::ForgetMany(forgets)) => {
                self.forget(thread, forgets);
                return Ok(true);
            }
            other => other,
        };
        reply.clear();
        let waits = operation.as_ref().is_ok_and(Operation::waits);
        if waits {
            self.turns.hand_over();
        } else {
            self.turns.begin(thread);
        }
        let result = operation.and_then(|operation| guarded(|| self.server.answer(&header, operation, reply)));
        self.channel.send(reply.finish(header.unique, result))?;
        if waits {
            return Ok(self.turns.comes_back());
        }
        self.turns.finish(thread);
        Ok(true)
    }

    /// Forgets nodes. The last lookup of a removed file takes its content along, which may take long.
    fn forget(&self, thread: usize, forgets: impl Iterator<Item = (u64, u64)>) {
        self.turns.begin(thread);
        // Nobody waits for an answer.
        _ = guarded(|| {
            forgets.for_each(|(node, count)| self.server.forget(node, count));
            Ok(())
        });
        self.turns.finish(thread);
    }
}

/// A fault of ours costs the answer to one request, not the mount. Locks are taken over from who panicked.
fn guarded<R>(work: impl FnOnce() -> Result<R>) -> Result<R> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        tracing::error!("serving a request failed by a fault in layerfs");
        Err(Errno::IO)
    })
}
