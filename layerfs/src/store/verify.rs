//! Looks for what the disk has damaged.
//!
//! Invariant: it changes nothing but layer indexes that are missing or unreadable, which are made again.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Store;
use super::error::{AtPath, Result};
use crate::digest::{DiffId, Digest, Digester};
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
    /// Digests every blob and every layer, makes every index again to compare, and looks for what images
    /// need but is missing: their manifests, configs and layers. Takes as long as reading the whole store does.
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
        self.lease.with(std::iter::empty(), || self.check_presence(&mut damage))?;
        Ok(damage)
    }

    /// From the names to the manifests, and from each to what it consists of.
    fn check_presence(&self, damage: &mut Vec<Damage>) -> Result<()> {
        let index = self.root.join("index.json");
        let mut pending = parts(&fs::read(&index).at("reading", &index)?);
        let mut seen: HashSet<Digest> = pending.iter().map(|part| part.digest.clone()).collect();
        while let Some(part) = pending.pop() {
            let path = self.blob_path(&part.digest);
            match fs::metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    damage.push(Damage { path, problem: "an image needs it, but it is missing".to_owned() });
                    continue;
                }
                found => found.at("looking for", &path)?,
            };
            if part.is_manifest {
                let document = fs::read(&path).at("reading", &path)?;
                let further = parts(&document).into_iter().filter(|part| seen.insert(part.digest.clone()));
                pending.extend(further);
            }
        }
        Ok(())
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

/// What an image consists of.
struct Part {
    digest: Digest,
    is_manifest: bool,
}

/// The manifests of an index, the config and the layers of a manifest. What is only referred to, such as a subject, and
/// what is to be had elsewhere (`urls`) need not be there.
fn parts(document: &[u8]) -> Vec<Part> {
    let document: Value = serde_json::from_slice(document).unwrap_or_default();
    let list = |name: &str| document.get(name).and_then(Value::as_array).into_iter().flatten();
    let part = |descriptor: &Value, is_manifest| {
        let is_elsewhere = descriptor.get("urls").and_then(Value::as_array).is_some_and(|urls| !urls.is_empty());
        let digest = Digest::try_from(descriptor.get("digest")?.as_str()?).ok()?;
        (!is_elsewhere).then_some(Part { digest, is_manifest })
    };
    let manifests = list("manifests").filter_map(|descriptor| part(descriptor, true));
    let blobs = document.get("config").into_iter().chain(list("layers"));
    manifests.chain(blobs.filter_map(|descriptor| part(descriptor, false))).collect()
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
    let mut file = match File::open(path) {
        // Garbage that another process collected since it was listed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened.at("opening", path)?,
    };
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
