//! How layer blobs are packed: the compression and its level.
//!
//! Invariant: a level is one that the compression has. The format of a packing (`gzip:6/2`) is the name of the bytes that
//! it gives: one name, one blob for a layer, whichever version of this program made it.

use std::fmt;
use std::str::FromStr;

use super::Compression;

/// gzip's default: docker and buildah write the same level.
const GZIP_LEVEL: u8 = 6;
/// Counts up when the same tar gives other bytes: version 1 was cut every mebibyte. The golden digests of the tests tell.
const GZIP_VERSION: u32 = 2;
const ZSTD_VERSION: u32 = 1;
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

    /// The name of the bytes that it gives of a tar, in every version of this program: `gzip:6/2`.
    pub fn format(self) -> String {
        match self.compression {
            Compression::None => self.to_string(),
            compression => format!("{self}/{}", version(compression)),
        }
    }

    /// The packing that gives the bytes of such a name; `None` for one that no packing of this version does.
    pub fn of_format(name: &str) -> Option<Self> {
        let packing: Self = name.split('/').next()?.parse().ok()?;
        (packing.format() == name).then_some(packing)
    }
}

/// How often the bytes that a compression gives have changed.
pub(crate) fn version(compression: Compression) -> u32 {
    match compression {
        Compression::None => 1,
        Compression::Gzip => GZIP_VERSION,
        Compression::Zstd => ZSTD_VERSION,
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
    fn a_format_is_that_of_one_packing_of_this_version_or_of_none() {
        for name in ["gzip", "gzip:9", "zstd", "uncompressed"] {
            let packing: Packing = name.parse().unwrap();
            assert_eq!(Packing::of_format(&packing.format()), Some(packing));
        }
        for name in ["gzip:6", "gzip:6/1", "gzip/2", "gzip:6/2/2", "zstd:3/2", "", "/"] {
            assert_eq!(Packing::of_format(name), None, "{name}");
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
