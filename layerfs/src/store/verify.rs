//! Looks for what the disk has damaged.
//!
//! Invariant: it changes nothing but layer indexes that are missing or unreadable, which are made again.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::Store;
use super::error::{AtPath, Result};
use super::prune::collect_digests;
use crate::digest::{DiffId, Digester};
use crate::index::{IndexBytes, IndexFile, Subject};

/// Something in the store that is not what its name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
}

impl Store {
    /// Digests every blob and every layer, makes every index again to compare, and looks for
    /// blobs that are named in `index.json` but missing. Takes as long as reading the whole store does.
    ///
    /// # Errors
    /// If a file cannot be opened; bytes that cannot be read are damage.
    pub fn verify(&self) -> Result<Vec<Damage>> {
        let mut damage = Vec::new();
        for path in sorted_files(&self.root.join("blobs/sha256"))? {
            check_sum(&path, &mut damage)?;
        }
        for path in sorted_files(&self.root.join("layers"))? {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("tar") => check_sum(&path, &mut damage)?,
                Some("idx") => self.check_index(&path, &mut damage)?,
                _ => {}
            }
        }
        for path in sorted_files(&self.root.join("trees"))? {
            self.check_tree(&path, &mut damage)?;
        }
        let mut named = Vec::new();
        let index = self.root.join("index.json");
        collect_digests(&fs::read(&index).at("reading", &index)?, &mut named);
        for digest in named {
            let path = self.root.join("blobs/sha256").join(digest);
            if !path.try_exists().at("looking for", &path)? {
                damage.push(Damage { path, problem: "index.json names it, but it is missing".to_owned() });
            }
        }
        Ok(damage)
    }

    fn check_index(&self, path: &Path, damage: &mut Vec<Damage>) -> Result<()> {
        let Some(diff_id) = stem(path).and_then(DiffId::from_hex) else { return Ok(()) };
        compare(path, self.indexed_layer(&diff_id), damage)
    }

    fn check_tree(&self, path: &Path, damage: &mut Vec<Damage>) -> Result<()> {
        match IndexFile::open(path, Subject::Tree) {
            Ok(index) => compare(path, self.merged_layers(&index.layers()), damage),
            Err(error) => {
                damage.push(Damage { path: path.to_owned(), problem: error.to_string() });
                Ok(())
            }
        }
    }
}

/// Compares an index with what it should be.
fn compare(path: &Path, expected: Result<IndexBytes>, damage: &mut Vec<Damage>) -> Result<()> {
    let problem = match expected {
        Ok(bytes) if is_content(path, &bytes).at("reading", path)? => return Ok(()),
        Ok(_) => "the index is not that of its layers; it is made again if it is removed".to_owned(),
        Err(error) => format!("it cannot be made again: {error}"),
    };
    damage.push(Damage { path: path.to_owned(), problem });
    Ok(())
}

/// Whether a file consists of these bytes.
fn is_content(path: &Path, bytes: &IndexBytes) -> io::Result<bool> {
    const PART_BYTES: usize = 8192;
    let mut file = io::BufReader::new(File::open(path)?);
    let mut chunk = [0; PART_BYTES];
    for piece in bytes.pieces().flat_map(|piece| piece.chunks(PART_BYTES)) {
        match file.read_exact(&mut chunk[..piece.len()]) {
            Ok(()) if chunk[..piece.len()] == *piece => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(file.read(&mut chunk)? == 0)
}

fn stem(path: &Path) -> Option<&str> {
    path.file_stem().and_then(|stem| stem.to_str())
}

fn sorted_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).at("listing", directory)?;
    let mut paths: Vec<_> =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<_>>().at("listing", directory)?;
    paths.sort();
    Ok(paths)
}

/// Compares the digest of a file with its name.
fn check_sum(path: &Path, damage: &mut Vec<Damage>) -> Result<()> {
    let mut file = File::open(path).at("opening", path)?;
    let mut writer = crate::digest::Digesting::new(io::sink());
    let problem = match io::copy(&mut file, &mut writer) {
        Err(error) => format!("it cannot be read: {error}"),
        Ok(_) => {
            let found = Digester::digest(writer.into_parts().1);
            if stem(path) == Some(found.digest()) {
                return Ok(());
            }
            format!("its content has the digest {found}")
        }
    };
    damage.push(Damage { path: path.to_owned(), problem });
    Ok(())
}
