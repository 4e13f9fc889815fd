//! The flags with which layers are compressed otherwise on their way, and layerfs' compressors behind them.
//!
//! Invariant: without a flag no byte of an image changes; with one a person is told that its digest did.

use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use builder::Events;
use layerfs::{Compression, Decoder, Encoder, Packing};
use registry_client::{
    Copied, CopyOptions, Destination, LayerCompression, RepackOptions, RepackedSource, Repacker, Source, copy,
};

use crate::report::Usage;
use crate::session::Session;

/// Layers being compressed lie on a disk, unlike `/tmp` on many systems, in files without names.
const SCRATCH: &str = "/var/tmp";

/// Flags of `copy` and `push`.
#[derive(clap::Args)]
pub(crate) struct Repacking {
    /// Compress the layers anew: gzip, zstd or none. The image gets another digest
    #[arg(long, value_name = "KIND", conflicts_with = "referrers")]
    compression: Option<String>,
    /// At this level [default: 6 of gzip, 3 of zstd]
    #[arg(long, value_name = "N", requires = "compression")]
    compression_level: Option<u8>,
    /// Also layers that have this compression already
    #[arg(long, requires = "compression")]
    force_compression: bool,
}

impl Repacking {
    /// Copies, with layers compressed as the flags say.
    pub(crate) fn copy(
        &self,
        session: &Session,
        source: &dyn Source,
        destination: &dyn Destination,
        options: &CopyOptions,
    ) -> anyhow::Result<Copied> {
        let display = session.display.as_ref();
        let Some(packing) = self.packing()? else { return Ok(copy(source, destination, options, display)?) };
        let repacked = RepackedSource::new(
            source,
            &RepackOptions {
                repacker: &packing,
                is_forced: self.force_compression,
                platforms: options.platforms.clone(),
                jobs: options.jobs,
                directory: Path::new(SCRATCH),
                ahead: Some(destination),
            },
            display,
        )?;
        let mut copied = copy(&repacked, destination, options, display)?;
        let ahead = repacked.sent_ahead().min(copied.skipped);
        (copied.sent, copied.skipped) = (copied.sent + ahead, copied.skipped - ahead);
        if let Some(before) = repacked.changed() {
            let after = copied.manifest.digest();
            Events::warning(display, &format!("the layers were compressed anew: {before} is now {after}"));
        }
        Ok(copied)
    }

    fn packing(&self) -> Result<Option<Layers>, Usage> {
        let Some(kind) = &self.compression else { return Ok(None) };
        let compression = match kind.as_str() {
            "gzip" => Compression::Gzip,
            "zstd" => Compression::Zstd,
            "none" | "uncompressed" => Compression::None,
            other => return Err(Usage(format!("--compression {other:?} is not supported: gzip, zstd or none"))),
        };
        let packing = match self.compression_level {
            Some(level) => Packing::new(compression, level).map_err(|error| Usage(error.to_string()))?,
            None => compression.into(),
        };
        Ok(Some(Layers(packing)))
    }
}

/// layerfs' compressors, whose bytes are the same on every machine.
struct Layers(Packing);

impl Repacker for Layers {
    fn compression(&self) -> LayerCompression {
        match self.0.compression() {
            Compression::None => LayerCompression::None,
            Compression::Gzip => LayerCompression::Gzip,
            Compression::Zstd => LayerCompression::Zstd,
        }
    }

    fn name(&self) -> String {
        self.0.format()
    }

    fn repack(&self, layer: &mut (dyn Read + Send), out: &mut (dyn Write + Send)) -> io::Result<()> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut content = Decoder::new(BufReader::with_capacity(1 << 16, layer))?;
        let mut encoder = Encoder::new(out, self.0, threads)?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            match content.read(&mut buffer)? {
                0 => break,
                count => encoder.write_all(&buffer[..count])?,
            }
        }
        encoder.finish().map(drop)
    }
}
