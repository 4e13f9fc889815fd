//! How layer blobs are packed: the compression and its level.
//!
//! Invariant: a level is one that the compression has. The text of a packing (`gzip:6`) is the name of the bytes that
//! it gives: one text, one blob for a layer.

use std::fmt;
use std::str::FromStr;

use super::Compression;

/// gzip's default: docker and buildah write the same level.
const GZIP_LEVEL: u8 = 6;
/// zstd's own default; higher levels cost more time than they save in transfer.
const ZSTD_LEVEL: u8 = 3;

/// A compression and its level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Packing {
    compression: Compression,
    level: u8,
}

/// A packing that there is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PackingError {
    /// No compression of ours.
    #[error("the compression {0:?} is not supported: gzip, zstd or uncompressed")]
    Compression(String),
    /// A level that the compression does not have.
    #[error("the compression level {level} is not one of {compression}, which has {levels}")]
    Level {
        /// The level as it was given.
        level: String,
        /// What it was given for.
        compression: &'static str,
        /// What there is.
        levels: &'static str,
    },
}

impl Packing {
    /// A compression at a level.
    ///
    /// # Errors
    /// A level that it does not have: gzip has 0 to 9, zstd 0 to 22.
    pub fn new(compression: Compression, level: u8) -> Result<Self, PackingError> {
        let (most, levels) = match compression {
            Compression::None => (None, "none"),
            Compression::Gzip => (Some(9), "0 to 9"),
            Compression::Zstd => (Some(22), "0 to 22"),
        };
        if most.is_some_and(|most| level <= most) {
            return Ok(Self { compression, level });
        }
        Err(PackingError::Level { level: level.to_string(), compression: name(compression), levels })
    }

    /// The compression.
    pub fn compression(self) -> Compression {
        self.compression
    }

    /// The level; 0 where nothing is compressed.
    pub fn level(self) -> u8 {
        self.level
    }
}

impl Default for Packing {
    /// gzip: every tool reads it.
    fn default() -> Self {
        Compression::Gzip.into()
    }
}

impl From<Compression> for Packing {
    /// At its default level.
    fn from(compression: Compression) -> Self {
        let level = match compression {
            Compression::None => 0,
            Compression::Gzip => GZIP_LEVEL,
            Compression::Zstd => ZSTD_LEVEL,
        };
        Self { compression, level }
    }
}

fn name(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "uncompressed",
        Compression::Gzip => "gzip",
        Compression::Zstd => "zstd",
    }
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.compression {
            Compression::None => f.write_str(name(self.compression)),
            _ => write!(f, "{}:{}", name(self.compression), self.level),
        }
    }
}

impl FromStr for Packing {
    type Err = PackingError;

    /// `gzip`, `zstd:19`, `uncompressed`.
    fn from_str(text: &str) -> Result<Self, PackingError> {
        let (kind, level) = text.split_once(':').map_or((text, None), |(kind, level)| (kind, Some(level)));
        let compression = match kind {
            "gzip" => Compression::Gzip,
            "zstd" => Compression::Zstd,
            "uncompressed" => Compression::None,
            other => return Err(PackingError::Compression(other.to_owned())),
        };
        match level {
            None => Ok(compression.into()),
            // What is no number fails as a level that no compression has.
            Some(level) => Self::new(compression, level.parse().unwrap_or(u8::MAX)).map_err(|error| match error {
                PackingError::Level { compression, levels, .. } => {
                    PackingError::Level { level: level.to_owned(), compression, levels }
                }
                other => other,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packings_have_one_text_each() {
        for (given, text) in
            [("gzip", "gzip:6"), ("zstd", "zstd:3"), ("zstd:22", "zstd:22"), ("uncompressed", "uncompressed")]
        {
            assert_eq!(given.parse::<Packing>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_there_is_not_names_itself() {
        for (text, words) in
            [("estargz", "estargz"), ("gzip:10", "10"), ("zstd:x", "x"), ("gzip:-1", "-1"), ("uncompressed:1", "1")]
        {
            let error = text.parse::<Packing>().unwrap_err().to_string();
            assert!(error.contains(&format!(" {words} ")) || error.contains(&format!("{words:?}")), "{error}");
        }
    }
}
