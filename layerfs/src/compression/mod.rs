//! Compression of layer blobs: told by their first bytes, undone as a stream, done reproducibly.
//!
//! Invariant: what [`Encoder`] writes is a function of its input and the [`Packing`] alone, for
//! any number of threads and on any processor; it is named by [`Packing::format`] and held by golden
//! digests in the tests. It sets no limit on what a blob expands to: the reader of the stream does.

mod blocks;
mod gzip;
mod packing;
mod zstandard;

use std::io::{self, BufRead, Read, Write};
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;

use blocks::Known;
pub(crate) use blocks::{BlockKey, KnownBlocks, MadeBlock};
use gzip::GzipWriter;
pub(crate) use packing::version;
pub use packing::{Packing, PackingError};

/// 128 MiB: what zstd's command accepts by default, and all that a hostile blob can make us allocate.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// How a layer blob is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip (<https://www.rfc-editor.org/rfc/rfc1952>).
    Gzip,
    /// zstd (<https://www.rfc-editor.org/rfc/rfc8878>).
    Zstd,
}

impl Compression {
    /// Tells the compression by the first bytes of a blob; what is neither gzip nor zstd counts as a tar.
    pub fn detect(start: &[u8]) -> Self {
        // A zstd blob may start with a skippable frame, whose magic is 0x184d2a50 to 0x184d2a5f.
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// Undoes the compression of a stream: all members of a gzip file, all frames of a zstd one.
pub struct Decoder<R: BufRead>(Decoding<R>);

enum Decoding<R: BufRead> {
    None(R),
    Gzip(Box<MultiGzDecoder<R>>),
    Zstd(zstd::stream::read::Decoder<'static, R>),
}

impl<R: BufRead> Decoder<R> {
    /// Looks at the first bytes of a stream and undoes what they tell.
    ///
    /// # Errors
    /// What reading them gives.
    pub fn new(mut source: R) -> io::Result<Self> {
        Ok(Self(match Compression::detect(source.fill_buf()?) {
            Compression::None => Decoding::None(source),
            Compression::Gzip => Decoding::Gzip(Box::new(MultiGzDecoder::new(source))),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Decoding::Zstd(decoder)
            }
        }))
    }

    /// Which compression it undoes.
    pub fn compression(&self) -> Compression {
        match self.0 {
            Decoding::None(_) => Compression::None,
            Decoding::Gzip(_) => Compression::Gzip,
            Decoding::Zstd(_) => Compression::Zstd,
        }
    }

    /// The compressed stream.
    pub fn into_inner(self) -> R {
        match self.0 {
            Decoding::None(source) => source,
            Decoding::Gzip(decoder) => decoder.into_inner(),
            Decoding::Zstd(decoder) => decoder.finish(),
        }
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Decoding::None(source) => source.read(buffer),
            Decoding::Gzip(decoder) => decoder.read(buffer),
            Decoding::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

/// Compresses a stream, reproducibly.
pub struct Encoder<W: Write>(Encoding<W>);

enum Encoding<W: Write> {
    None(W),
    Gzip(Box<GzipWriter<W>>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> Encoder<W> {
    /// Compresses with up to `threads` threads, whose number does not show in the result.
    ///
    /// # Errors
    /// If a thread or the encoder's memory cannot be had.
    pub fn new(sink: W, packing: impl Into<Packing>, threads: usize) -> io::Result<Self> {
        Self::with(sink, packing.into(), threads, None)
    }

    /// The same, where blocks that were compressed before are looked up first: gzip has such. They do not show in the
    /// result either.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(crate) fn knowing(sink: W, packing: Packing, threads: usize, known: Arc<dyn KnownBlocks>) -> io::Result<Self> {
        Self::with(sink, packing, threads, Some(known))
    }

    fn with(sink: W, packing: Packing, threads: usize, known: Known) -> io::Result<Self> {
        Ok(Self(match packing.compression() {
            Compression::None => Encoding::None(sink),
            Compression::Gzip => Encoding::Gzip(Box::new(GzipWriter::new(sink, packing.level(), threads, known)?)),
            Compression::Zstd => Encoding::Zstd(zstandard::encoder(sink, packing.level(), threads)?),
        }))
    }

    /// Writes what is left and returns the sink.
    ///
    /// # Errors
    /// What writing gives.
    pub fn finish(self) -> io::Result<W> {
        self.finish_blocks().map(|(sink, _)| sink)
    }

    /// The same, with the blocks of the stream where known ones were looked up.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub(crate) fn finish_blocks(self) -> io::Result<(W, Vec<MadeBlock>)> {
        match self.0 {
            Encoding::None(sink) => Ok((sink, Vec::new())),
            Encoding::Gzip(writer) => writer.finish(),
            Encoding::Zstd(encoder) => Ok((encoder.finish()?, Vec::new())),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Encoding::None(sink) => sink.write(bytes),
            Encoding::Gzip(writer) => writer.write(bytes),
            Encoding::Zstd(encoder) => encoder.write(bytes),
        }
    }

    /// Does nothing: a flush in the middle would change the result.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;
    use crate::digest::{digest_of, sum_of};

    /// Bytes that compress somewhat, the same on every machine.
    fn sample(length: usize) -> Vec<u8> {
        let mut state = 1_u32;
        let mut step = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 16
        };
        let mut bytes = Vec::with_capacity(length + 64);
        while bytes.len() < length {
            match (step() % 4, bytes.len()) {
                (0, held) if held > 70_000 => {
                    let from = held - 1 - (step() as usize | 1) % 65_000;
                    bytes.extend_from_within(from..from + (step() as usize % 60).min(held - from));
                }
                _ => bytes.extend((0..step() % 20).map(|_| (step() % 23) as u8 + b'a')),
            }
        }
        bytes.truncate(length);
        bytes
    }

    fn encoded(bytes: &[u8], packing: impl Into<Packing>, threads: usize) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::new(), packing, threads).unwrap();
        // How the bytes come must not show either.
        for piece in bytes.chunks(33_333 * threads + 77) {
            encoder.write_all(piece).unwrap();
        }
        encoder.finish().unwrap()
    }

    fn decoded(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        Decoder::new(bytes)?.read_to_end(&mut plain)?;
        Ok(plain)
    }

    #[test]
    fn compressed_bytes_are_the_same_for_any_number_of_threads_and_size_of_writes() {
        let plain = sample(5_000_000);
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let one = encoded(&plain, compression, 1);
            assert_eq!(decoded(&one).unwrap(), plain);
            for threads in [0, 2, 3, 8] {
                assert!(encoded(&plain, compression, threads) == one, "{compression:?} with {threads} threads");
            }
        }
    }

    #[test]
    fn every_level_gives_its_own_bytes_for_any_number_of_threads() {
        // More than one job of zstd.
        let plain = sample(9_000_000);
        let packings = [("gzip:0", 1.1), ("gzip:1", 0.8), ("gzip:9", 0.7), ("zstd:1", 0.7), ("zstd:20", 0.6)];
        let digests = packings.map(|(name, most)| {
            let packing: Packing = name.parse().unwrap();
            let one = encoded(&plain, packing, 1);
            assert!(decoded(&one).unwrap() == plain, "{name}");
            assert!(encoded(&plain, packing, 3) == one, "{name}");
            assert!((one.len() as f64) < plain.len() as f64 * most, "{name}: {} of {}", one.len(), plain.len());
            digest_of(&one).digest()[..16].to_owned()
        });
        assert_eq!(digests.join(" "), GOLDEN_LEVELS);
    }

    const GOLDEN_LEVELS: &str = "80db0df19ed914bb 57d90d429109098a e98dc34f5bf46399 4b382fbbd50ac354 f7b4b92101e4d4df";

    #[test]
    fn compressed_bytes_are_those_of_their_format() {
        assert_eq!([Compression::Gzip, Compression::Zstd].map(version), [2, 1], "these digests are theirs");
        let digests = [Compression::Gzip, Compression::Zstd].map(|compression| {
            [0, 1, 1 << 20, 3_000_000]
                .map(|length| digest_of(&encoded(&sample(length), compression, 2)).digest()[..16].to_owned())
        });
        assert_eq!(digests.map(|of| of.join(" ")), GOLDEN);
    }

    const GOLDEN: [&str; 2] = [
        "ac73670af3abed54 94992c9e182d4a53 5f6e5538728cbe4f 9d64c648e7a6a704",
        "f96deff1816083fd ab8010fda7f88947 0ee6a2ea43d307a8 b77a404b229c1d0b",
    ];

    /// What was compressed before, and how often something was not.
    #[derive(Default)]
    struct Remembered {
        blocks: HashMap<BlockKey, Vec<u8>>,
        missed: AtomicUsize,
    }

    impl KnownBlocks for Remembered {
        fn find(&self, key: &BlockKey) -> Option<(Vec<u8>, [u8; 32])> {
            let found = self.blocks.get(key).map(|bytes| (bytes.clone(), sum_of(bytes)));
            self.missed.fetch_add(usize::from(found.is_none()), Ordering::Relaxed);
            found
        }
    }

    fn encoded_knowing(bytes: &[u8], known: &Arc<Remembered>) -> (Vec<u8>, Vec<MadeBlock>) {
        let mut encoder = Encoder::knowing(Vec::new(), Packing::default(), 2, Arc::clone(known) as _).unwrap();
        encoder.write_all(bytes).unwrap();
        encoder.finish_blocks().unwrap()
    }

    #[test]
    fn of_a_stream_like_an_earlier_one_only_the_blocks_around_the_difference_are_compressed() {
        let plain = sample(12_000_000);
        let (packed, blocks) = encoded_knowing(&plain, &Arc::default());
        let place = |block: &MadeBlock| &packed[block.offset as usize..][..block.size_bytes as usize];
        assert!(blocks.len() > 5 && blocks.iter().all(|block| digest_of(place(block)).digest() == hex(&block.sum)));
        let known = || {
            let blocks = blocks.iter().map(|block| (block.key, place(block).to_vec())).collect();
            Arc::new(Remembered { blocks, missed: AtomicUsize::new(0) })
        };
        let changed = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut changed = plain.clone();
            change(&mut changed);
            changed
        };
        for (name, most, changed) in [
            ("none", 0, plain.clone()),
            ("one byte", 2, changed(&|plain| plain[5_000_000] ^= 1)),
            ("sectors more", 3, changed(&|plain| drop(plain.splice(4_000_256..4_000_256, vec![7; 512 * 300])))),
            ("sectors less", 3, changed(&|plain| drop(plain.drain(1_024..1_024 * 101)))),
        ] {
            let known = known();
            let (packed, _) = encoded_knowing(&changed, &known);
            assert!(packed == encoded(&changed, Compression::Gzip, 1), "{name}: what is known does not show");
            let missed = known.missed.load(Ordering::Relaxed);
            assert!(missed <= most, "{name}: {missed} of {} blocks", blocks.len());
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn gzip_program_reads_what_we_write() {
        let plain = sample(3_000_000);
        let packed = encoded(&plain, Compression::Gzip, 2);
        assert_eq!(&packed[..10], &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255]);
        let mut gzip = std::process::Command::new("gzip")
            .args(["-d", "-c"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = gzip.stdin.take().unwrap();
        let writer = std::thread::spawn(move || stdin.write_all(&packed).unwrap());
        let output = gzip.wait_with_output().unwrap();
        writer.join().unwrap();
        assert!(output.status.success());
        assert!(output.stdout == plain);
    }

    #[test]
    fn all_members_of_a_gzip_file_are_read() {
        let members = [encoded(b"one ", Compression::Gzip, 1), encoded(b"two", Compression::Gzip, 1)].concat();
        assert_eq!(decoded(&members).unwrap(), b"one two");
    }

    #[test]
    fn damaged_and_truncated_streams_are_errors() {
        for compression in [Compression::Gzip, Compression::Zstd] {
            let packed = encoded(&sample(100_000), compression, 1);
            assert!(decoded(&packed[..packed.len() - 1]).is_err(), "{compression:?} truncated");
            let mut damaged = packed.clone();
            damaged[packed.len() / 2] ^= 0x55;
            assert!(decoded(&damaged).is_err(), "{compression:?} damaged");
        }
    }

    #[test]
    fn failure_of_the_sink_arrives() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        for threads in [1, 3] {
            let mut encoder = Encoder::new(Full, Compression::Gzip, threads).unwrap();
            let result = encoder.write_all(&sample(4 << 20)).and_then(|()| encoder.finish().map(drop));
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::StorageFull);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn any_bytes_come_back(plain in proptest::collection::vec(any::<u8>(), 0..5000), threads in 1_usize..4) {
            for compression in [Compression::Gzip, Compression::Zstd] {
                prop_assert_eq!(&decoded(&encoded(&plain, compression, threads)).unwrap(), &plain);
            }
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(mut packed in proptest::collection::vec(any::<u8>(), 0..500), gzip in any::<bool>()) {
            let magic: &[u8] = if gzip { &[0x1f, 0x8b, 8, 0] } else { &[0x28, 0xb5, 0x2f, 0xfd] };
            packed.splice(0..0, magic.iter().copied());
            let mut limited = Decoder::new(packed.as_slice()).unwrap().take(1 << 20);
            let _ = io::copy(&mut limited, &mut io::sink());
        }
    }
}
