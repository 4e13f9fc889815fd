//! Writes gzip in blocks that are compressed side by side.
//!
//! Invariant: the stream is cut every [`BLOCK_BYTES`] of input, each block is compressed with the 32 KiB
//! before it as dictionary and ended on a byte boundary, whoever compresses it: the result does not
//! depend on threads. One member, fixed header, no name, no time (<https://www.rfc-editor.org/rfc/rfc1952>).

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use flate2::{Compress, Compression, Crc, FlushCompress, Status};

/// Large enough that cutting costs 0.01% of size, small enough to keep two cores busy and memory low.
const BLOCK_BYTES: usize = 1 << 20;
/// How far back deflate refers.
const WINDOW_BYTES: usize = 32 * 1024;
/// No flags, time 0, no extra flags, unknown system.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];

/// A block to compress: the window before it and its bytes in one piece.
struct Block {
    bytes: Vec<u8>,
    window: usize,
    is_last: bool,
}

/// A block when compressed, and the sum and length of what went in.
struct Packed {
    bytes: Vec<u8>,
    crc: Crc,
}

struct Job {
    block: Block,
    done: SyncSender<Packed>,
}

/// Compresses what is written to it into a sink.
pub(super) struct GzipWriter<W> {
    sink: W,
    /// The block that is being filled, behind the window before it.
    block: Block,
    crc: Crc,
    is_started: bool,
    level: Compression,
    workers: Option<Workers>,
}

/// Threads that compress, and their results in order.
struct Workers {
    jobs: Option<SyncSender<Job>>,
    threads: Vec<JoinHandle<()>>,
    pending: VecDeque<Receiver<Packed>>,
}

impl<W: Write> GzipWriter<W> {
    pub(super) fn new(sink: W, level: u8, threads: usize) -> io::Result<Self> {
        let level = Compression::new(level.into());
        let workers = if threads > 1 { Some(Workers::start(threads, level)?) } else { None };
        let block = Block { bytes: Vec::new(), window: 0, is_last: false };
        Ok(Self { sink, block, crc: Crc::new(), is_started: false, level, workers })
    }

    /// Compresses the last block and writes the trailer.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.block.is_last = true;
        self.dispatch()?;
        while let Some(packed) = self.workers.as_mut().and_then(|workers| workers.pending.pop_front()) {
            self.write_packed(receive(&packed)?)?;
        }
        self.sink.write_all(&self.crc.sum().to_le_bytes())?;
        // The length modulo 2^32, as the format has it: what `amount` counts.
        self.sink.write_all(&self.crc.amount().to_le_bytes())?;
        self.sink.flush()?;
        Ok(self.sink)
    }

    /// Sends the block off and starts the next one, behind its window.
    fn dispatch(&mut self) -> io::Result<()> {
        let window = self.block.bytes[self.block.bytes.len().saturating_sub(WINDOW_BYTES)..].to_vec();
        let next = Block { window: window.len(), bytes: window, is_last: false };
        let block = std::mem::replace(&mut self.block, next);
        let Some(workers) = &mut self.workers else { return self.write_packed(pack(&block, self.level)) };
        let (done, packed) = sync_channel(1);
        let jobs = workers.jobs.as_ref().ok_or_else(stopped)?;
        jobs.send(Job { block, done }).map_err(|_| stopped())?;
        workers.pending.push_back(packed);
        // One result waits for each thread that works: memory stays a few blocks.
        if workers.pending.len() > 2 * workers.threads.len() {
            let oldest = workers.pending.pop_front().ok_or_else(stopped)?;
            self.write_packed(receive(&oldest)?)?;
        }
        Ok(())
    }

    fn write_packed(&mut self, packed: Packed) -> io::Result<()> {
        if !self.is_started {
            self.sink.write_all(&HEADER)?;
            self.is_started = true;
        }
        self.crc.combine(&packed.crc);
        self.sink.write_all(&packed.bytes)
    }
}

impl<W: Write> Write for GzipWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = BLOCK_BYTES - (self.block.bytes.len() - self.block.window);
        let count = room.min(bytes.len());
        self.block.bytes.extend_from_slice(&bytes[..count]);
        if count == room {
            self.dispatch()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Workers {
    fn start(threads: usize, level: Compression) -> io::Result<Self> {
        let (jobs, queue) = sync_channel::<Job>(threads);
        let queue = Arc::new(Mutex::new(queue));
        let threads = (0..threads).map(|_| {
            let queue = Arc::clone(&queue);
            std::thread::Builder::new().name("gzip".to_owned()).spawn(move || work(&queue, level))
        });
        let threads = threads.collect::<io::Result<_>>()?;
        Ok(Self { jobs: Some(jobs), threads, pending: VecDeque::new() })
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        // Without senders the workers' queue ends.
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // a panic there has shown as a missing result
        }
    }
}

fn work(queue: &Mutex<Receiver<Job>>, level: Compression) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { block, done }) = job else { return };
        let _ = done.send(pack(&block, level)); // nobody waits for it after an error
    }
}

fn receive(packed: &Receiver<Packed>) -> io::Result<Packed> {
    packed.recv().map_err(|_| stopped())
}

fn stopped() -> io::Error {
    io::Error::other("a compression thread has stopped")
}

/// Compresses one block as raw deflate.
fn pack(block: &Block, level: Compression) -> Packed {
    let (window, bytes) = block.bytes.split_at(block.window);
    let mut crc = Crc::new();
    crc.update(bytes);
    let mut deflate = Compress::new(level, false);
    if !window.is_empty() {
        deflate.set_dictionary(window).expect("a raw deflate stream takes a dictionary before its first byte");
    }
    let flush = if block.is_last { FlushCompress::Finish } else { FlushCompress::Sync };
    let mut packed = Vec::with_capacity(bytes.len() / 2 + 1024);
    loop {
        // The count is that of this block's own bytes, at most `BLOCK_BYTES`.
        let rest = &bytes[deflate.total_in() as usize..];
        let status = deflate.compress_vec(rest, &mut packed, flush).expect("deflate of valid state does not fail");
        let has_room = packed.len() < packed.capacity();
        let is_done = if block.is_last {
            status == Status::StreamEnd
        } else {
            has_room && deflate.total_in() as usize == bytes.len()
        };
        if is_done {
            return Packed { bytes: packed, crc };
        }
        packed.reserve(bytes.len() / 4 + 1024);
    }
}
