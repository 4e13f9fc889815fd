//! The packages that an image holds, from the databases of its package managers: dpkg's and apk's.
//!
//! Invariant: what is found depends on the files of the image alone. A database that is damaged gives what can be read of
//! it; one of another package manager is not read.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use layerfs::{Tree, TreeInode};

use crate::changeset::{ChangeSet, join};

/// More than any real database of packages has; what is larger is no list of packages.
const MOST_DATABASE_BYTES: u64 = 256 << 20;

/// One package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Package {
    /// Of package URLs: `deb`, `apk`.
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) version: String,
    pub(super) architecture: Option<String>,
    pub(super) license: Option<String>,
    pub(super) supplier: Option<String>,
}

/// The packages of an image, and whose they are.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Packages {
    /// Sorted.
    pub(super) list: Vec<Package>,
    /// `ID` and `VERSION_ID` of os-release (<https://www.freedesktop.org/software/systemd/man/latest/os-release.html>).
    pub(super) distribution: Option<String>,
    pub(super) distribution_version: Option<String>,
}

/// Reads the databases of an image.
pub(super) fn find(tree: &Arc<dyn Tree>) -> io::Result<Packages> {
    let files = ChangeSet::new(Arc::clone(tree));
    let read = |path: &[u8]| {
        // Links that lead nowhere, and what is too large: no database.
        let Ok(path) = files.resolve(path) else { return Ok(Vec::new()) };
        match files.read_file(&path, MOST_DATABASE_BYTES) {
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Ok(Vec::new()),
            found => Ok::<_, io::Error>(found?.unwrap_or_default()),
        }
    };
    let release = read(b"etc/os-release")?;
    let release = if release.is_empty() { read(b"usr/lib/os-release")? } else { release };
    let (distribution, distribution_version) = (released(&release, "ID"), released(&release, "VERSION_ID"));
    let mut list = Vec::new();
    list.extend(paragraphs(&read(b"var/lib/dpkg/status")?).filter_map(|fields| debian(&fields)));
    // Images without a package manager have a file for each package there.
    for name in names(&files, b"var/lib/dpkg/status.d")? {
        let fields = paragraphs(&read(&join(b"var/lib/dpkg/status.d", &name))?).collect::<Vec<_>>();
        list.extend(fields.iter().filter_map(debian_without_status));
    }
    list.extend(paragraphs(&read(b"lib/apk/db/installed")?).filter_map(|fields| alpine(&fields)));
    list.extend(paragraphs(&read(b"usr/lib/apk/db/installed")?).filter_map(|fields| alpine(&fields)));
    list.sort();
    list.dedup();
    Ok(Packages { list, distribution, distribution_version })
}

fn names(files: &ChangeSet, directory: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let tree = files.below();
    let Some(inode) = files.resolve(directory).ok().and_then(|path| files.below_at(&path).transpose()).transpose()?
    else {
        return Ok(Vec::new());
    };
    let is_directory =
        |inode: TreeInode| Ok::<_, io::Error>(tree.attributes(inode)?.kind == layerfs::FileKind::Directory);
    if !is_directory(inode)? {
        return Ok(Vec::new());
    }
    let entries = tree.entries(inode, 0, usize::MAX)?;
    // The lists of files beside them.
    Ok(entries.into_iter().map(|entry| entry.name).filter(|name| !name.ends_with(b".md5sums")).collect())
}

/// A value of os-release, without quotes.
fn released(text: &[u8], key: &str) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim().trim_matches(['"', '\'']).to_owned()).filter(|value| !value.is_empty())
}

/// The paragraphs of a database: `Name: value` of dpkg, `N:value` of apk. Of a name that comes again the first counts;
/// lines that continue another are left out.
fn paragraphs(bytes: &[u8]) -> impl Iterator<Item = BTreeMap<String, String>> {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let blocks: Vec<_> = text.split("\n\n").map(str::to_owned).collect();
    blocks.into_iter().map(|block| {
        let fields =
            block.lines().filter(|line| !line.starts_with([' ', '\t'])).filter_map(|line| line.split_once(':'));
        let mut found = BTreeMap::new();
        for (name, value) in fields {
            found.entry(name.to_owned()).or_insert_with(|| value.trim().to_owned());
        }
        found
    })
}

/// <https://man7.org/linux/man-pages/man5/deb-control.5.html>
fn debian(fields: &BTreeMap<String, String>) -> Option<Package> {
    // What was removed and has its configuration left is listed, too.
    fields.get("Status").filter(|status| status.ends_with(" installed"))?;
    debian_without_status(fields)
}

fn debian_without_status(fields: &BTreeMap<String, String>) -> Option<Package> {
    Some(Package {
        kind: "deb",
        name: fields.get("Package")?.clone(),
        version: fields.get("Version")?.clone(),
        architecture: fields.get("Architecture").cloned(),
        license: None,
        supplier: fields.get("Maintainer").cloned(),
    })
}

/// <https://wiki.alpinelinux.org/wiki/Apk_spec#Install_DB>
fn alpine(fields: &BTreeMap<String, String>) -> Option<Package> {
    Some(Package {
        kind: "apk",
        name: fields.get("P")?.clone(),
        version: fields.get("V")?.clone(),
        architecture: fields.get("A").cloned(),
        license: fields.get("L").filter(|license| !license.is_empty()).cloned(),
        supplier: fields.get("m").cloned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_that_are_installed_are_found_in_what_dpkg_and_apk_write() {
        let status = "Package: a\nStatus: install ok installed\nMaintainer: M <m@x>\nArchitecture: amd64\nVersion: 1:2-3\n\
            Description: one\n Package: no\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n\
            Package: broken\nStatus: install ok installed\n";
        let found: Vec<_> = paragraphs(status.as_bytes()).filter_map(|fields| debian(&fields)).collect();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].name.as_str(), found[0].version.as_str()), ("a", "1:2-3"));
        assert_eq!(found[0].supplier.as_deref(), Some("M <m@x>"));
        let installed =
            "C:Q1abc=\nP:musl\nV:1.2.5-r0\nA:x86_64\nL:MIT\nF:lib\nR:ld-musl-x86_64.so.1\na:0:0:755\n\nP:x\n";
        let found: Vec<_> = paragraphs(installed.as_bytes()).filter_map(|fields| alpine(&fields)).collect();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].name.as_str(), found[0].license.as_deref()), ("musl", Some("MIT")));
        let damaged: Vec<_> = paragraphs(b"\xff\xfe\n\n:\n\n::\nP:\n").filter_map(|fields| alpine(&fields)).collect();
        assert_eq!(damaged, []);
    }

    #[test]
    fn the_distribution_is_what_os_release_says() {
        let text = b"PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\nVERSION_ID=\"12\"\n";
        assert_eq!(released(text, "ID").as_deref(), Some("debian"));
        assert_eq!(released(text, "VERSION_ID").as_deref(), Some("12"));
        assert_eq!(released(text, "VERSION"), None);
    }
}
