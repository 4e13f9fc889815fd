//! The packages that an image holds, from the databases of its package managers: dpkg's and apk's.
//!
//! Invariant: what is found depends on the files of the image alone, and no image can have us take more memory than
//! [`MOST_PACKAGES`] need. A database that is damaged gives what can be read of it; one of another package manager is an
//! error, because a list without its packages would be untrue.

use std::io;
use std::sync::Arc;

use layerfs::{FileKind, Tree};

use crate::changeset::ChangeSet;
use crate::paths::join;

/// In all databases of an image: some ten times what a machine with everything on it has.
const MOST_BYTES: u64 = 32 << 20;
/// As many are some 200 MB as a document.
const MOST_PACKAGES: usize = 20_000;

/// Databases that are not read, by their directories. What has one is not said to have no packages.
const UNREAD: [(&str, &[u8]); 3] =
    [("rpm", b"var/lib/rpm"), ("rpm", b"usr/lib/sysimage/rpm"), ("pacman", b"var/lib/pacman/local")];

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
///
/// # Errors
/// What cannot be read, is too large, or is of a package manager that is not known.
pub(super) fn find(tree: &Arc<dyn Tree>) -> io::Result<Packages> {
    let mut image = Image { files: ChangeSet::new(Arc::clone(tree)), left_bytes: MOST_BYTES };
    for (manager, directory) in UNREAD {
        if !image.names(directory)?.is_empty() {
            let what =
                format!("its packages of {manager} cannot be listed; `nacre attach` attaches what another tool finds");
            return Err(io::Error::other(what));
        }
    }
    let release = image.read(b"etc/os-release")?;
    let release = if release.is_empty() { image.read(b"usr/lib/os-release")? } else { release };
    let mut found = Packages {
        list: Vec::new(),
        distribution: released(&release, "ID"),
        distribution_version: released(&release, "VERSION_ID"),
    };
    found.add(&image.read(b"var/lib/dpkg/status")?, debian)?;
    // Images without a package manager have a file for each package there, and lists of their files beside them.
    for name in image.names(b"var/lib/dpkg/status.d")?.iter().filter(|name| !name.ends_with(b".md5sums")) {
        found.add(&image.read(&join(b"var/lib/dpkg/status.d", name))?, debian_without_status)?;
    }
    for database in [&b"lib/apk/db/installed"[..], b"usr/lib/apk/db/installed"] {
        found.add(&image.read(database)?, alpine)?;
    }
    found.list.sort();
    found.list.dedup();
    Ok(found)
}

impl Packages {
    /// Adds what the paragraphs of a database say.
    fn add(&mut self, bytes: &[u8], package: fn(&Fields<'_>) -> Option<Package>) -> io::Result<()> {
        let text = String::from_utf8_lossy(bytes);
        for package in text.split("\n\n").filter_map(|paragraph| package(&Fields(paragraph))) {
            if self.list.len() == MOST_PACKAGES {
                return Err(io::Error::other(format!("it has more than {MOST_PACKAGES} packages")));
            }
            self.list.push(package);
        }
        Ok(())
    }
}

/// The files of an image.
struct Image {
    files: ChangeSet,
    left_bytes: u64,
}

impl Image {
    /// The content of a file; nothing where there is none.
    fn read(&mut self, path: &[u8]) -> io::Result<Vec<u8>> {
        // A link that leads nowhere.
        let Ok(path) = self.files.resolve(path) else { return Ok(Vec::new()) };
        let bytes = self.files.read_file(&path, self.left_bytes).map_err(|error| match error.kind() {
            io::ErrorKind::FileTooLarge => {
                io::Error::other(format!("its lists of packages have more than {MOST_BYTES} bytes"))
            }
            _ => error,
        })?;
        let bytes = bytes.unwrap_or_default();
        self.left_bytes -= bytes.len() as u64;
        Ok(bytes)
    }

    /// The names in a directory; none where there is none.
    fn names(&self, path: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let tree = self.files.below();
        let Ok(path) = self.files.resolve(path) else { return Ok(Vec::new()) };
        let Some(inode) = self.files.below_at(&path)? else { return Ok(Vec::new()) };
        if tree.attributes(inode)?.kind != FileKind::Directory {
            return Ok(Vec::new());
        }
        // More than the most packages are refused later.
        let entries = tree.entries(inode, 0, 2 * MOST_PACKAGES + 2)?;
        Ok(entries.into_iter().map(|entry| entry.name).collect())
    }
}

/// A paragraph of a database: `Name: value` of dpkg, `N:value` of apk. Of a name that comes again the first counts; lines
/// that continue another have none.
struct Fields<'a>(&'a str);

impl Fields<'_> {
    fn find(&self, name: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    }

    fn text(&self, name: &str) -> Option<String> {
        self.find(name).filter(|text| !text.is_empty()).map(str::to_owned)
    }
}

/// A value of os-release, without quotes.
fn released(text: &[u8], key: &str) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim().trim_matches(['"', '\'']).to_owned()).filter(|value| !value.is_empty())
}

/// <https://man7.org/linux/man-pages/man5/deb-control.5.html>
fn debian(fields: &Fields<'_>) -> Option<Package> {
    // What was removed and has its configuration left is listed, too.
    fields.find("Status").filter(|status| status.ends_with(" installed"))?;
    debian_without_status(fields)
}

fn debian_without_status(fields: &Fields<'_>) -> Option<Package> {
    Some(Package {
        kind: "deb",
        name: fields.text("Package")?,
        version: fields.text("Version")?,
        architecture: fields.text("Architecture"),
        license: None,
        supplier: fields.text("Maintainer"),
    })
}

/// <https://wiki.alpinelinux.org/wiki/Apk_spec#Install_DB>
fn alpine(fields: &Fields<'_>) -> Option<Package> {
    Some(Package {
        kind: "apk",
        name: fields.text("P")?,
        version: fields.text("V")?,
        architecture: fields.text("A"),
        license: fields.text("L"),
        supplier: fields.text("m"),
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
        let listed = |text: &[u8], package| {
            let mut found = Packages::default();
            found.add(text, package).expect("few");
            found.list
        };
        let found = listed(status.as_bytes(), debian);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].name.as_str(), found[0].version.as_str()), ("a", "1:2-3"));
        assert_eq!(found[0].supplier.as_deref(), Some("M <m@x>"));
        let installed =
            "C:Q1abc=\nP:musl\nV:1.2.5-r0\nA:x86_64\nL:MIT\nF:lib\nR:ld-musl-x86_64.so.1\na:0:0:755\n\nP:x\n";
        let found = listed(installed.as_bytes(), alpine);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].name.as_str(), found[0].license.as_deref()), ("musl", Some("MIT")));
        assert_eq!(listed(b"\xff\xfe\n\n:\n\n::\nP:\n", alpine), []);
    }

    #[test]
    fn a_list_without_end_is_refused() {
        let many = "P:a\nV:1\n\n".repeat(MOST_PACKAGES + 1);
        let error = Packages::default().add(many.as_bytes(), alpine).expect_err("too many").to_string();
        assert!(error.contains("more than 20000 packages"), "{error}");
        Packages::default().add(&vec![b'\n'; 1 << 20], alpine).expect("nothing");
    }

    #[test]
    fn the_distribution_is_what_os_release_says() {
        let text = b"PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\nVERSION_ID=\"12\"\n";
        assert_eq!(released(text, "ID").as_deref(), Some("debian"));
        assert_eq!(released(text, "VERSION_ID").as_deref(), Some("12"));
        assert_eq!(released(text, "VERSION"), None);
    }
}
