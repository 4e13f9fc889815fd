//! zstd with bytes that do not depend on the machine.
//!
//! Invariant: the input is always cut into jobs of [`JOB_BYTES`], by one worker or many, so that their number does not
//! show; and no frame asks its reader for more memory than every reader of the format must have.

use std::io::{self, Write};

use zstd::stream::write::Encoder;
use zstd::zstd_safe::CParameter;

/// What zstd itself takes at its default level; higher levels would take up to 512 MiB for each worker.
const JOB_BYTES: u32 = 8 << 20;
/// 8 MiB, the window that a reader has to support (<https://www.rfc-editor.org/rfc/rfc8878#section-3.1.1.1.2>).
const WINDOW_LOG_MAX: u32 = 23;
/// From this level on zstd's own windows are larger than that.
const LEVEL_OF_LARGE_WINDOWS: u8 = 20;

/// Compresses into `sink`.
pub(super) fn encoder<W: Write>(sink: W, level: u8, threads: usize) -> io::Result<Encoder<'static, W>> {
    // Its own level 0 means the default: the fastest is what a person means by it.
    let mut encoder = Encoder::new(sink, i32::from(level.max(1)))?;
    encoder.include_checksum(true)?;
    // From one worker on zstd cuts its input into jobs, whose result does not depend on
    // how many workers there are; without workers it differs.
    encoder.multithread(u32::try_from(threads.max(1)).unwrap_or(u32::MAX))?;
    encoder.set_parameter(CParameter::JobSize(JOB_BYTES))?;
    if level >= LEVEL_OF_LARGE_WINDOWS {
        encoder.set_parameter(CParameter::WindowLog(WINDOW_LOG_MAX))?;
    }
    Ok(encoder)
}
