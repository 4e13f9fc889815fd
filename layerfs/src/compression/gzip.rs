//! Writes gzip in blocks that are compressed side by side, or that are known from before.
//!
//! Invariant: the input tells where it is cut ([`is_cut`]), each block is compressed with the 32 KiB
//! before it as dictionary and ended on a byte boundary, whoever compresses it: the result does not
//! depend on threads nor on what is known. One member, fixed header, no name, no time (<https://www.rfc-editor.org/rfc/rfc1952>).

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use flate2::{Compress, Compression, Crc, FlushCompress, Status};

use super::blocks::{self, BlockKey, Known, LEAST_BLOCK_BYTES, MOST_BLOCK_BYTES, MadeBlock, SECTOR_BYTES, is_cut};
use crate::digest::sum_of;

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
    /// Its key, and its own sum; not where nothing is looked up.
    name: Option<(BlockKey, [u8; 32])>,
}

/// How blocks are compressed.
#[derive(Clone)]
struct Packer {
    level: Compression,
    known: Known,
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
    /// How much of its own bytes has no cut but perhaps at the end.
    looked_at: usize,
    crc: Crc,
    /// How much the sink got; the header goes there first.
    written_bytes: u64,
    made: Vec<MadeBlock>,
    packer: Packer,
    workers: Option<Workers>,
}

/// Threads that compress, and their results in order.
struct Workers {
    jobs: Option<SyncSender<Job>>,
    threads: Vec<JoinHandle<()>>,
    pending: VecDeque<Receiver<Packed>>,
}

impl<W: Write> GzipWriter<W> {
    pub(super) fn new(sink: W, level: u8, threads: usize, known: Known) -> io::Result<Self> {
        let packer = Packer { level: Compression::new(level.into()), known };
        let workers = if threads > 1 { Some(Workers::start(threads, &packer)?) } else { None };
        let block = Block { bytes: Vec::new(), window: 0, is_last: false };
        let (crc, made) = (Crc::new(), Vec::new());
        Ok(Self { sink, block, looked_at: 0, crc, written_bytes: 0, made, packer, workers })
    }

    /// Compresses the last block and writes the trailer; gives the blocks, too, if known ones were looked up.
    pub(super) fn finish(mut self) -> io::Result<(W, Vec<MadeBlock>)> {
        self.block.is_last = true;
        self.dispatch(self.block.bytes.len() - self.block.window)?;
        while let Some(packed) = self.workers.as_mut().and_then(|workers| workers.pending.pop_front()) {
            self.write_packed(receive(&packed)?)?;
        }
        self.sink.write_all(&self.crc.sum().to_le_bytes())?;
        // The length modulo 2^32, as the format has it: what `amount` counts.
        self.sink.write_all(&self.crc.amount().to_le_bytes())?;
        self.sink.flush()?;
        Ok((self.sink, self.made))
    }

    /// How many bytes of the block lie before the first cut, if there is one.
    fn cut(&mut self) -> Option<usize> {
        let own = &self.block.bytes[self.block.window..];
        while self.looked_at + SECTOR_BYTES <= own.len() {
            let sector = &own[self.looked_at..][..SECTOR_BYTES];
            self.looked_at += SECTOR_BYTES;
            let end = self.looked_at;
            if end >= MOST_BLOCK_BYTES || end >= LEAST_BLOCK_BYTES && is_cut(sector) {
                return Some(end);
            }
        }
        None
    }

    /// Sends the first bytes of the block off and starts the next one with the rest, behind its window.
    fn dispatch(&mut self, size_bytes: usize) -> io::Result<()> {
        let end = self.block.window + size_bytes;
        let window = end.min(WINDOW_BYTES);
        let next = Block { window, bytes: self.block.bytes[end - window..].to_vec(), is_last: false };
        let mut block = std::mem::replace(&mut self.block, next);
        block.bytes.truncate(end);
        self.looked_at = 0;
        let Some(workers) = &mut self.workers else { return self.write_packed(self.packer.pack(&block)) };
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
        if self.written_bytes == 0 {
            self.sink.write_all(&HEADER)?;
            self.written_bytes = HEADER.len() as u64;
        }
        self.crc.combine(&packed.crc);
        if let Some((key, sum)) = packed.name {
            // At most a few mebibytes.
            let size_bytes = packed.bytes.len() as u32;
            self.made.push(MadeBlock { key, offset: self.written_bytes, size_bytes, sum });
        }
        self.written_bytes += packed.bytes.len() as u64;
        self.sink.write_all(&packed.bytes)
    }
}

impl<W: Write> Write for GzipWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = MOST_BLOCK_BYTES - (self.block.bytes.len() - self.block.window);
        let count = room.min(bytes.len());
        self.block.bytes.extend_from_slice(&bytes[..count]);
        while let Some(end) = self.cut() {
            self.dispatch(end)?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Workers {
    fn start(threads: usize, packer: &Packer) -> io::Result<Self> {
        let (jobs, queue) = sync_channel::<Job>(threads);
        let queue = Arc::new(Mutex::new(queue));
        let threads = (0..threads).map(|_| {
            let (queue, packer) = (Arc::clone(&queue), packer.clone());
            std::thread::Builder::new().name("gzip".to_owned()).spawn(move || work(&queue, &packer))
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

fn work(queue: &Mutex<Receiver<Job>>, packer: &Packer) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { block, done }) = job else { return };
        let _ = done.send(packer.pack(&block)); // nobody waits for it after an error
    }
}

fn receive(packed: &Receiver<Packed>) -> io::Result<Packed> {
    packed.recv().map_err(|_| stopped())
}

fn stopped() -> io::Error {
    io::Error::other("a compression thread has stopped")
}

impl Packer {
    /// Finds what one block was compressed to before, or compresses it.
    fn pack(&self, block: &Block) -> Packed {
        let mut crc = Crc::new();
        crc.update(&block.bytes[block.window..]);
        let Some(known) = &self.known else { return Packed { bytes: deflated(block, self.level), crc, name: None } };
        let key = blocks::key(&block.bytes, block.window, block.is_last, self.level.level());
        let (bytes, sum) = known.find(&key).unwrap_or_else(|| {
            let bytes = deflated(block, self.level);
            let sum = sum_of(&bytes);
            (bytes, sum)
        });
        Packed { bytes, crc, name: Some((key, sum)) }
    }
}

/// One block as raw deflate.
fn deflated(block: &Block, level: Compression) -> Vec<u8> {
    let (window, bytes) = block.bytes.split_at(block.window);
    let mut deflate = Compress::new(level, false);
    if !window.is_empty() {
        deflate.set_dictionary(window).expect("a raw deflate stream takes a dictionary before its first byte");
    }
    let flush = if block.is_last { FlushCompress::Finish } else { FlushCompress::Sync };
    let mut packed = Vec::with_capacity(bytes.len() / 2 + 1024);
    loop {
        // The count is that of this block's own bytes, at most [`MOST_BLOCK_BYTES`].
        let rest = &bytes[deflate.total_in() as usize..];
        let status = deflate.compress_vec(rest, &mut packed, flush).expect("deflate of valid state does not fail");
        let has_room = packed.len() < packed.capacity();
        let is_done = if block.is_last {
            status == Status::StreamEnd
        } else {
            has_room && deflate.total_in() as usize == bytes.len()
        };
        if is_done {
            return packed;
        }
        packed.reserve(bytes.len() / 4 + 1024);
    }
}
